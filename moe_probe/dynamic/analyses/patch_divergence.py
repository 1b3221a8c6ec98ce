"""Sub-token divergence of tokens that are the patches of a picture, as a map (MH-MoE, figures 8 and 10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import xarray as xr

from moe_probe.dynamic.analyses.subtoken_divergence import distinct
from moe_probe.dynamic.analysis import Analysis, labeled, recorded
from moe_probe.errors import NoSuchName, NotFitting, OutOfRange
from moe_probe.routing import LayerBatch, Source
from moe_probe.signatures import check_number
from moe_probe.statistics.bootstrap import DRAWS, check_draws, ratio_interval
from moe_probe.statistics.states import TokenTable
from moe_probe.texts.pictures import ENERGIES, patch_energy, read_picture

TEXTURES = ["high", "low"]


@dataclass
class PatchDivergence(Analysis):
    """Distinct experts among a patch's sub-tokens, on the patches' grid (MH-MoE, arXiv 2404.15045, figures 8 and 10).

    Every document is one picture: `rows * columns` tokens in reading order, after `offset` other tokens (a class token,
    text); later tokens are ignored. For several checkpoints, use `comparisons.patch_divergence_over_steps`.

    The paper judges by eye where a picture has much texture. moe_probe uses a rule of its own: a patch's energy is the
    `gradient` energy, the mean squared difference of neighboring gray values (0 to 1), or the `spectrum` energy, the
    share of the patch's two-dimensional Fourier power (mean removed) at or above `radius` cycles per pixel. Patches
    with an energy above the quantile 1 - `quantile` of their picture have high texture, those below `quantile` low
    texture.

    The result has `divergence` (layer, document, row, column), int16, and `divergence_mean` (document, row, column),
    float64, its mean over layers. With pictures, it also has:

    - `energy` (document, row, column), float64;
    - `texture` (document, row, column): `high`, `low` or "";
    - `texture_mean` (texture_group), the mean divergence, with a 95 % bootstrap interval over pictures,
      `texture_mean_low` and `texture_mean_high`;
    - `picture` (document, y, x), float32, gray values from 0 to 1, if all pictures have one size.

    Args:
        grid: rows and columns.
        pictures: one per document: an array (height, width[, 3]) of bytes or of floats from 0 to 1, or an image file.
        offset: tokens before the first patch.
        energy: `gradient` or `spectrum`.
        radius: lower limit of `spectrum`, in cycles per pixel.
        quantile: share of a picture's patches in each group, above 0 and up to 0.5.
        bootstrap: resamples of the documents for the intervals; 0 for none.

    Raises:
        InputError: a document's tokens do not fill the grid, there are more or fewer pictures than documents, or a
            picture is too small.

    Examples:
        >>> from moe_probe import dynamic
        >>> ds = dynamic.patch_divergence("ckpt/tiny-mh-moe", [[5, 6, 7, 8, 9, 10]], grid=(2, 3))
        >>> ds.divergence.dims
        ('layer', 'document', 'row', 'column')
    """

    grid: tuple[int, int]
    pictures: Sequence[np.ndarray | str | Path] | None = None
    offset: int = 0
    energy: str = "gradient"
    radius: float = 0.25
    quantile: float = 0.5
    bootstrap: int = DRAWS

    name = "patch_divergence"
    title = "Patch divergence"
    legend = {
        "divergence": ("distinct experts", "experts"),
        "divergence_mean": ("distinct experts, mean over layers", "experts"),
        "energy": ("energy of the patch", "1"),
        "texture_mean": ("distinct experts", "experts"),
        "picture": ("gray value", "1"),
    }

    divergence = TokenTable(dtype=np.int16)

    def __post_init__(self) -> None:
        if len(self.grid) != 2 or min(self.grid) < 1:
            raise OutOfRange(f"grid is {tuple(self.grid)}; pass (rows, columns), both at least 1.")
        self.grid = int(self.grid[0]), int(self.grid[1])
        check_number("offset", self.offset, 0)
        if self.energy not in ENERGIES:
            raise NoSuchName.among("energy", self.energy, ENERGIES)
        check_number("radius", self.radius, 0, whole=False)
        if not 0 < self.quantile <= 0.5:
            raise OutOfRange(f"quantile is {self.quantile}; pass a number above 0 and up to 0.5.")
        check_draws(self.bootstrap)
        self._pictures = None if self.pictures is None else [read_picture(picture) for picture in self.pictures]

    @classmethod
    def example(cls) -> Self:
        return cls(grid=(1, 2))

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | {"pictures": recorded(self._pictures)}

    def check(self, source: Source) -> None:
        rows, columns = self.grid
        needed, documents = self.offset + rows * columns, source.corpus.documents
        for document in documents:
            if len(document.ids) < needed:
                raise NotFitting(
                    f"Document {document.number} has {len(document.ids)} tokens; a grid of {rows} x {columns} after "
                    f"{self.offset} tokens needs {needed}."
                )
        if self._pictures is not None and len(self._pictures) != len(documents):
            raise NotFitting(
                f"There are {len(self._pictures)} pictures for {len(documents)} documents; pass one per document."
            )

    def update(self, batch: LayerBatch) -> None:
        self.divergence.add(batch, distinct(batch.by_token(batch.top_k_index).reshape(len(batch.tokens), -1)))

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        documents, (rows, columns) = source.corpus.documents, self.grid
        starts = np.cumsum([0, *(len(document.ids) for document in documents)])[:-1] + self.offset
        values = self.divergence.array.values[:, starts[:, None] + np.arange(rows * columns)]
        divergence = values.reshape(len(values), len(starts), rows, columns)
        grid, mean = ("document", "row", "column"), divergence.mean(0)
        variables: dict[str, tuple[tuple[str, ...], Any]] = {
            "divergence": (("layer", *grid), divergence),
            "divergence_mean": (grid, mean),
        }
        if self._pictures is not None:
            energy = np.stack([patch_energy(p, self.grid, self.energy, self.radius) for p in self._pictures])
            variables |= {"energy": (grid, energy), **self._textures(mean, energy)}
            if len({picture.shape for picture in self._pictures}) == 1:
                variables["picture"] = (("document", "y", "x"), np.stack(self._pictures).astype(np.float32))
        coords = {"layer": self.divergence.layers, "document": [d.number for d in documents], "texture_group": TEXTURES}
        return labeled(variables, coords)

    def _textures(self, mean: np.ndarray, energy: np.ndarray) -> dict[str, tuple[tuple[str, ...], Any]]:
        flat = energy.reshape(len(energy), -1)
        low, high = np.quantile(flat, [self.quantile, 1 - self.quantile], axis=1)
        groups = np.stack([flat > high[:, None], flat < low[:, None]])  # (2, documents, patches)
        values = np.where(groups, mean.reshape(len(mean), -1), 0).sum(2).T
        sums = {"total": values, "count": groups.sum(2).T.astype(float)}
        with np.errstate(invalid="ignore"):
            variables = {"texture_mean": (("texture_group",), values.sum(0) / sums["count"].sum(0))}
        if self.bootstrap:
            ends = ratio_interval(sums["total"], sums["count"], self.bootstrap)
            for end, value in zip(("low", "high"), ends, strict=True):
                variables[f"texture_mean_{end}"] = (("texture_group",), value)
        names = np.select(list(groups), TEXTURES, "").reshape(energy.shape)
        return variables | {"texture": (("document", "row", "column"), names)}
