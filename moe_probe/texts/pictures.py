"""Pictures in gray, and the texture of their patches."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from moe_probe.errors import NoSuchName, NothingToRead, OutOfRange, WrongType, reason
from moe_probe.shown import brief

ENERGIES = ("gradient", "spectrum")
LUMA = np.asarray([0.299, 0.587, 0.114])  # ITU-R BT.601


def read_picture(picture: np.ndarray | str | Path) -> np.ndarray:
    """Returns a picture in gray, (height, width), float64 from 0 to 1.

    Raises:
        NothingToRead: the file is missing, or is not a picture.
        WrongType: the value is not an array of bytes or floats, (height, width[, 3]).
        OutOfRange: floats are not between 0 and 1.
    """
    array = np.asarray(_read(picture) if isinstance(picture, str | os.PathLike) else picture)
    if array.dtype.kind not in "fiu" or (array.dtype.kind in "iu" and array.dtype != np.uint8):
        raise WrongType(
            f"A picture is an array of bytes (uint8) or of floats from 0 to 1, not of {array.dtype}; convert it."
        )
    values = array / 255 if array.dtype == np.uint8 else array.astype(float)
    grey = values[..., :3] @ LUMA if values.ndim == 3 and values.shape[-1] in (3, 4) else values
    if grey.ndim != 2 or not grey.size:
        raise WrongType(f"A picture is (height, width) or (height, width, 3), not {array.shape}; pass one picture.")
    if not (np.isfinite(grey).all() and grey.min() >= 0 and grey.max() <= 1):
        raise OutOfRange(f"A picture has the values {grey.min():.3g} to {grey.max():.3g}; scale them to 0 to 1.")
    return grey


def _read(path: str | os.PathLike[str]) -> np.ndarray:
    from matplotlib.image import imread  # only where a picture is read: it is slow to import

    try:
        if not Path(path).is_file():
            raise NothingToRead(f"{brief(path)} is not a file; pass a picture such as a PNG.")
        return imread(Path(path))
    except (OSError, SyntaxError, ValueError) as error:
        raise NothingToRead(f"{brief(path)} is not a picture ({reason(error)}); pass one such as a PNG.") from error


def patch_energy(
    picture: np.ndarray, grid: tuple[int, int], energy: str = "gradient", radius: float = 0.25
) -> np.ndarray:
    """Texture energy of each patch, (rows, columns).

    Args:
        picture: gray, (height, width); pixels beyond the last whole patch do not count.
        grid: rows and columns of patches.
        energy: `gradient`, the mean squared difference of neighboring pixels within the patch; `spectrum`, the share
            of its Fourier power, mean removed, at `radius` cycles per pixel and above (0 for a plain patch).
        radius: the lowest frequency that `spectrum` counts, in cycles per pixel.

    Raises:
        OutOfRange: patches would be smaller than 2 x 2 pixels.
        NoSuchName: there is no such energy.
    """
    if energy not in ENERGIES:
        raise NoSuchName.among("energy", energy, ENERGIES)
    if min(grid) < 1:
        raise OutOfRange(f"A grid of {grid[0]} x {grid[1]} patches is empty; pass 1 x 1 or more.")
    height, width = (size // count for size, count in zip(picture.shape, grid, strict=True))
    if height < 2 or width < 2:
        raise OutOfRange(
            f"A picture of {picture.shape[0]} x {picture.shape[1]} pixels has no {grid[0]} x {grid[1]} patches of "
            "2 x 2 or more; pass a coarser grid."
        )
    cut = picture[: height * grid[0], : width * grid[1]]
    patches = cut.reshape(grid[0], height, grid[1], width).swapaxes(1, 2)
    if energy == "gradient":
        return (np.diff(patches, axis=2) ** 2).mean((2, 3)) + (np.diff(patches, axis=3) ** 2).mean((2, 3))
    power = np.abs(np.fft.fft2(patches - patches.mean((2, 3), keepdims=True))) ** 2
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    total = power.sum((2, 3))
    return np.divide(power[:, :, frequency >= radius].sum(-1), total, out=np.zeros_like(total), where=total > 1e-20)
