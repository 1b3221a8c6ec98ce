"""Pictures in grey, and how much texture each of their patches has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.image import imread

from moe_probe.errors import InputError

ENERGIES = ("gradient", "spectrum")
LUMA = np.asarray([0.299, 0.587, 0.114])  # ITU-R BT.601


def read_picture(picture: np.ndarray | str | Path) -> np.ndarray:
    """A picture in grey, (height, width), float64 from 0 to 1.

    Raises:
        InputError: it is no picture, or its values are out of range.
    """
    if isinstance(picture, str | Path):
        try:
            picture = imread(picture)
        except (OSError, SyntaxError) as error:
            raise InputError(f"{picture} is no picture ({error}).") from error
    array = np.asarray(picture)
    values = array / 255 if array.dtype == np.uint8 else array.astype(float)
    grey = values[..., :3] @ LUMA if values.ndim == 3 and values.shape[-1] in (3, 4) else values
    if grey.ndim != 2 or not (np.isfinite(grey).all() and grey.min() >= 0 and grey.max() <= 1):
        raise InputError(f"A picture is (height, width[, 3]), of bytes or of floats from 0 to 1; not {array.shape}.")
    return grey


def patch_energy(
    picture: np.ndarray, grid: tuple[int, int], energy: str = "gradient", radius: float = 0.25
) -> np.ndarray:
    """Texture energy of each patch, (rows, columns).

    Args:
        picture: grey, (height, width); what is left over at the right and the bottom does not count.
        grid: rows and columns of patches.
        energy: `gradient`, the mean squared difference of neighbouring pixels within the patch; `spectrum`, the share
            of its Fourier power, mean removed, at `radius` cycles per pixel and above (0 for a plain patch).
        radius: see above.

    Raises:
        InputError: patches would be smaller than 2 x 2 pixels.
    """
    height, width = (size // count for size, count in zip(picture.shape, grid, strict=True))
    if height < 2 or width < 2:
        raise InputError(f"A picture of {picture.shape} pixels has no {grid[0]} x {grid[1]} patches of 2 x 2 or more.")
    cut = picture[: height * grid[0], : width * grid[1]]
    patches = cut.reshape(grid[0], height, grid[1], width).swapaxes(1, 2)
    if energy == "gradient":
        return (np.diff(patches, axis=2) ** 2).mean((2, 3)) + (np.diff(patches, axis=3) ** 2).mean((2, 3))
    power = np.abs(np.fft.fft2(patches - patches.mean((2, 3), keepdims=True))) ** 2
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    total = power.sum((2, 3))
    return np.divide(power[:, :, frequency >= radius].sum(-1), total, out=np.zeros_like(total), where=total > 1e-20)
