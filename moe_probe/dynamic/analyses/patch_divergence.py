"""Sub-token divergence as an image: of tokens that are the patches of a picture (MH-MoE, figures 8 and 10)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_probe.dynamic.analyses.subtoken_divergence import distinct
from moe_probe.dynamic.per_token import PerToken, by_token
from moe_probe.errors import InputError
from moe_probe.routing import LayerBatch
from moe_probe.statistics.bootstrap import check_draws, interval
from moe_probe.texts.corpus import Corpus
from moe_probe.texts.pictures import ENERGIES, patch_energy, read_picture

TEXTURES = ["high", "low"]


class PatchDivergence(PerToken):
    """Distinct experts among a patch's sub-tokens, on the patches' grid (MH-MoE, arXiv 2404.15045, figures 8 and 10).

    Every document is one picture: `rows * columns` tokens in reading order, after `offset` other tokens (a class token,
    text) and before whatever follows. Several checkpoints in order:
    `dynamic.patch_divergence_over_steps`.

    The paper judges by eye where a picture has much texture. The rule here is ours: a patch's energy is the `gradient`
    energy, the mean squared difference of neighbouring grey values (0 to 1), or the `spectrum` energy, the share of
    the patch's two-dimensional Fourier power (mean removed) at or above `radius` cycles per pixel. Of each picture, the
    patches above the quantile 1 - `quantile` are of high texture, those below `quantile` of low texture.

    The result has `divergence` (layer, document, row, column), int16, and `divergence_mean` (document, row, column),
    over layers; with pictures `energy` (document, row, column), `texture` (document, row, column), `high`, `low` or "",
    `texture_mean` (texture), the mean divergence, with a 95 % bootstrap interval over pictures, `texture_mean_low` and
    `_high`, and `picture` (document, y, x), grey, 0 to 1, where all pictures have one size.

    Args:
        grid: rows and columns.
        pictures: one per document, an array (height, width[, 3]), of bytes or of floats from 0 to 1, or an image file.
        offset: tokens before the first patch.
        energy: `gradient` or `spectrum`.
        radius: of `spectrum`, in cycles per pixel.
        quantile: share of a picture's patches in each group.
        bootstrap: draws of the intervals; 0 for none.

    Raises:
        InputError: a document's tokens do not fill the grid, pictures are not as many as documents, or too small.

    Examples:
        >>> from moe_probe import dynamic
        >>> ds = dynamic.patch_divergence("ckpt/tiny-mh-moe", [[5, 6, 7, 8, 9, 10]], grid=(2, 3))
        >>> ds.divergence.dims
        ('layer', 'document', 'row', 'column')
    """

    name = "patch_divergence"

    def __init__(
        self,
        grid: tuple[int, int],
        pictures: Sequence[np.ndarray | str | Path] | None = None,
        offset: int = 0,
        energy: str = "gradient",
        radius: float = 0.25,
        quantile: float = 0.5,
        bootstrap: int = 200,
    ):
        super().__init__()
        if len(grid) != 2 or min(grid) < 1 or offset < 0:
            raise InputError(f"grid is (rows, columns) and offset not negative; not {tuple(grid)} and {offset}.")
        if energy not in ENERGIES or not 0 < quantile <= 0.5:
            raise InputError(f"energy is one of {ENERGIES} and quantile in (0, 0.5]; not {energy!r} and {quantile}.")
        self.grid, self.offset = (int(grid[0]), int(grid[1])), offset
        self.energy, self.radius, self.quantile = energy, radius, quantile
        self.bootstrap = check_draws(bootstrap)
        self._pictures = None if pictures is None else [read_picture(picture) for picture in pictures]

    def prepare(self, model: Any, corpus: Corpus, layers: list[int]) -> None:
        rows, columns = self.grid
        needed = self.offset + rows * columns
        for document in corpus.documents:
            if len(document.ids) < needed:
                raise InputError(
                    f"Document {document.number} has {len(document.ids)} tokens; a grid of {rows} x {columns} after "
                    f"{self.offset} tokens needs {needed}."
                )
        if self._pictures is not None and len(self._pictures) != len(corpus.documents):
            raise InputError(f"There are {len(self._pictures)} pictures for {len(corpus.documents)} documents.")

    def measure(self, batch: LayerBatch) -> dict[str, np.ndarray]:
        return {"divergence": distinct(by_token(batch.top_k_index.cpu(), batch).reshape(len(batch.tokens), -1))}

    def dataset(
        self, model: Any, corpus: Corpus, layers: list[int], values: dict[str, np.ndarray]
    ) -> tuple[dict, dict]:
        self.prepare(model, corpus, layers)
        rows, columns = self.grid
        starts = np.cumsum([0, *(len(document.ids) for document in corpus.documents)])[:-1] + self.offset
        at = starts[:, None] + np.arange(rows * columns)
        divergence = values["divergence"][:, at].reshape(len(layers), len(starts), rows, columns)
        grid = ("document", "row", "column")
        mean = divergence.mean(0)
        variables: dict[str, Any] = {"divergence": (("layer", *grid), divergence), "divergence_mean": (grid, mean)}
        coords: dict[str, Any] = {"document": [document.number for document in corpus.documents]}
        if self._pictures is not None:
            energy = np.stack([patch_energy(p, self.grid, self.energy, self.radius) for p in self._pictures])
            variables |= {"energy": (grid, energy), **self._textures(mean, energy)}
            coords["texture_group"] = TEXTURES
            if len({picture.shape for picture in self._pictures}) == 1:
                variables["picture"] = (("document", "y", "x"), np.stack(self._pictures).astype(np.float32))
        return variables, coords

    def _textures(self, mean: np.ndarray, energy: np.ndarray) -> dict[str, tuple[tuple[str, ...], Any]]:
        flat = energy.reshape(len(energy), -1)
        low, high = np.quantile(flat, [self.quantile, 1 - self.quantile], axis=1)
        groups = np.stack([flat > high[:, None], flat < low[:, None]])  # (2, documents, patches)
        values = np.where(groups, mean.reshape(len(mean), -1), 0).sum(2).T
        sums = {"total": values, "count": groups.sum(2).T.astype(float)}
        with np.errstate(invalid="ignore"):
            found = {"texture_mean": (("texture_group",), values.sum(0) / sums["count"].sum(0))}
        if self.bootstrap:
            ends = interval(lambda total: total["total"] / total["count"], sums, self.bootstrap)
            for end, value in zip(("low", "high"), ends, strict=True):
                found[f"texture_mean_{end}"] = (("texture_group",), value)
        names = np.select(list(groups), TEXTURES, "").reshape(energy.shape)
        return found | {"texture": (("document", "row", "column"), names)}
