"""Conversion between scores and the observer files of REAP's code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import xarray as xr

from moe_probe.errors import Damaged, NotComparable, NotFitting
from moe_probe.files import as_path, whole_file
from moe_probe.model import MoEModel, Openable, load
from moe_probe.pruning.costs import check_of_model
from moe_probe.pruning.scoring import scores_result
from moe_probe.results import provenance

SCORES: Final[Mapping[str, str]] = {
    "ean": "ean_sum",
    "man": "ean_mean",
    "weighted_ean": "weighted_ean_sum",
    "reap": "reap",
    "soft_count": "weighted_expert_frequency_sum",
    "max_activation_as_published": "max_activations",
}
COUNTS, TOTAL, PAIRS = "expert_frequency", "total_tokens", "pairwise_expert_frequency"


def read_observer(model: Openable, path: str | Path) -> xr.Dataset:
    """Reads scores that REAP's observer recorded of a model (arXiv 2510.13999), as a result of `pruning.scores`.

    REAP's code takes softmax and top-k of the raw logits for every family, so its scores are wrong for routers with
    other rules. The file does not record its texts, so `pruning.curve` cannot detect that they are the same as the
    evaluation texts.

    Args:
        model: the observed model.
        path: the file, `{layer: {name: tensor (E,)}}`; reading it runs no code.

    Returns:
        The Dataset of `pruning.scores` with the scores in the file: ean, man, weighted_ean, reap, soft_count,
        max_activation_as_published and frequency.

    Raises:
        Damaged: the file is not one of REAP's observer.
        NotComparable: its layers or experts are not those of the model.

    Examples:
        >>> read_observer("ckpt/tiny-mixtral", "observer.pt")  # doctest: +SKIP
    """
    opened = load(model)
    content = read_tables(path)
    check_tables(opened, content, path)
    names = [name for name, field in SCORES.items() if all(field in table for table in content.values())]
    values = {name: {layer: content[layer][SCORES[name]] for layer in content} for name in names}
    counts = {layer: table[COUNTS] for layer, table in content.items()}
    values["frequency"] = {layer: counts[layer] / float(content[layer][TOTAL]) for layer in content}
    never = {layer: np.where(count > 0, 1.0, np.nan) for layer, count in counts.items()}
    for name in ("man", "reap", "max_activation_as_published"):
        values |= {name: {layer: of * never[layer] for layer, of in values[name].items()}} if name in values else {}
    about = provenance("scores", opened, scores=list(values), observer=Path(path).name)
    return scores_result(opened, sorted(content), list(values), values, counts, about)


def read_tables(path: str | Path) -> dict[int, dict[str, np.ndarray]]:
    """The file's tables by layer, float64."""
    try:
        content = torch.load(Path(path), map_location="cpu", weights_only=True)
        tables = {
            int(layer): {
                str(name): torch.as_tensor(value).double().numpy()
                for name, value in table.items()
                if isinstance(value, torch.Tensor | int | float)
            }
            for layer, table in content.items()
        }
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError) as error:
        raise Damaged(f"{path} is not a file of REAP's observer: {str(error).splitlines()[0]}") from None
    lacks = [name for table in tables.values() for name in (COUNTS, TOTAL) if name not in table]
    lacks += [f"{TOTAL} above 0" for table in tables.values() if TOTAL in table and not one_count(table[TOTAL])]
    if lacks or not tables:
        raise Damaged(f"{path} is not a file of REAP's observer: it has no {lacks[0] if lacks else 'layers'}.")
    return tables


def one_count(value: np.ndarray) -> bool:
    """Whether a value is a single number above 0."""
    return value.size == 1 and bool(value > 0)


def check_tables(model: MoEModel, content: Mapping[int, Mapping[str, np.ndarray]], path: str | Path) -> None:
    """Raises an error if the tables are of another model."""
    for layer, table in content.items():
        experts = model.layer(layer).num_experts if layer in model.moe_layers else 0
        fields = [COUNTS, *(field for field in SCORES.values() if field in table)]
        other = next((field for field in fields if table[field].shape != (experts,)), None)
        if other is not None:
            there = f"{experts} experts" if experts else "no MoE layer of that number"
            raise NotComparable(
                f"{path} has {other} of shape {table[other].shape} in layer {layer}, and {model.name} has {there}; "
                "pass the model that was observed."
            )


def write_observer(model: Openable, scores: xr.Dataset, path: str | Path) -> Path:
    """Writes scores in the format of REAP's observer, for its pruning code.

    The weights and choices are those that the model applies, for any router, so REAP's code prunes by them.

    Args:
        model: the model of the scores.
        scores: result of `pruning.scores` with ean, man, weighted_ean, reap, soft_count and
            max_activation_as_published.
        path: the file, which appears when it is complete.

    Raises:
        NotFitting: a score is missing.

    Examples:
        >>> write_observer("ckpt/tiny-mixtral", scores, "observer.pt")  # doctest: +SKIP
    """
    opened = load(model)
    check_of_model(opened, scores, "scores")
    lacks = [name for name in SCORES if name not in scores.score.values]
    if lacks or "chosen" not in scores:
        raise NotFitting(
            f"The file needs {', '.join(SCORES)}, but the scores lack {', '.join(lacks) or 'counts'}; compute them too."
        )
    content = {int(layer): table_of(opened, scores, int(layer)) for layer in scores.layer.values}
    with whole_file(as_path(path)) as partial:
        torch.save(content, partial)
    return Path(path)


def table_of(model: MoEModel, scores: xr.Dataset, layer: int) -> dict[str, Any]:
    """The observer's record of a layer; the pairs in REAP's code are sums of counts."""
    of_layer = model.layer(layer)
    counts = torch.from_numpy(scores.chosen.sel(layer=layer).values[: of_layer.num_experts]).long()
    table: dict[str, Any] = {
        TOTAL: counts.sum() // of_layer.top_k,
        COUNTS: counts,
        PAIRS: counts[:, None] + counts,
    }
    for name, field in SCORES.items():
        values = torch.from_numpy(scores.value.sel(score=name, layer=layer).values[: of_layer.num_experts].copy())
        table[field] = values.nan_to_num(nan=0.0)
    return table
