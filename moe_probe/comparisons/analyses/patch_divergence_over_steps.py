"""The patch divergence of several checkpoints in order (MH-MoE, arXiv 2404.15045, figures 8 and 10)."""

from __future__ import annotations

from typing import Unpack

import xarray as xr

from moe_probe.comparisons.side_by_side import Sources, compared_attrs, observe_each, open_sources
from moe_probe.dynamic.analyses.patch_divergence import PatchDivergence
from moe_probe.errors import NotComparable
from moe_probe.options import RunOptions
from moe_probe.signatures import checked
from moe_probe.texts.reading import Texts

SOURCES = (2, None)
UNASKED = False  # needs to know the grid


@checked
def patch_divergence_over_steps(
    steps: Sources, texts: Texts | None, patches: PatchDivergence, **options: Unpack[RunOptions]
) -> xr.Dataset:
    """Patch divergence of several checkpoints in order (MH-MoE, arXiv 2404.15045, figures 8 and 10).

    Args:
        steps: checkpoints by label (training step), in order: folders, hub ids, models or traces.
        texts: token ids of the pictures, one document per picture.
        patches: the analysis with its grid and pictures.
        options: those of `dynamic.run`.

    Returns:
        The Dataset of `dynamic.patch_divergence`, in which variables that may differ between checkpoints have a first
        dimension `step`; nan in layers that a checkpoint lacks.

    Raises:
        InputError: the checkpoints' tokenizers differ.

    Examples:
        >>> from moe_probe import comparisons, dynamic
        >>> steps = {"1k": "ckpt/tiny-mh-moe", "2k": "ckpt/tiny-mh-moe"}
        >>> patches = dynamic.PatchDivergence(grid=(2, 2))
        >>> comparisons.patch_divergence_over_steps(steps, [[5, 6, 7, 8]], patches).divergence_mean.dims
        ('step', 'document', 'row', 'column')
    """
    opened = open_sources(steps)
    results, ids = [], None
    for label, (source, (seen,)) in observe_each(opened, texts, [patches], options).items():
        of_documents = [document.ids for document in source.corpus.documents]
        if ids is not None and of_documents != ids:
            raise NotComparable(
                f"{label} did not see the same tokens as the steps before; pass checkpoints with one tokenizer."
            )
        ids = of_documents
        results.append(seen.result(source))
    steps_dim = xr.Variable("step", list(opened))
    names = [str(name) for name in results[0] if str(name).startswith(("divergence", "texture_mean"))]
    joined = xr.concat(results, steps_dim, data_vars=names, coords="minimal", compat="equals", join="outer")
    return joined.assign_attrs(compared_attrs("patch_divergence", opened, **patches.parameters()))
