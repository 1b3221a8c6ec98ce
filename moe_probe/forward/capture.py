"""Forward hooks that see all that MoE layers do, and change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from moe_probe.errors import FamilyError
from moe_probe.forward.score_function import Score, score_function
from moe_probe.forward.sites import Site, expert_call, raw_logits
from moe_probe.forward.steps import OWNER

CHECKED_ROWS = 2
# largest difference between the experts' weighted sum and the block's routed output, relative to the largest output
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
LOW_PRECISION_TOLERANCE = 5e-2


@dataclass
class Event:
    """One call of one MoE layer, all rows of it (padding too).

    Attributes:
        site: the layer.
        router_logits: raw, (n, E).
        expert_input: (n, w).
        top_k_index, top_k_weights: chosen experts and what multiplies their outputs, (n, k).
        routed_output: the weighted sum, (n, w).
        block_output: of the whole block, (tokens, d).
        shared_output: of the shared block, (tokens, d), where there is one.
    """

    site: Site
    router_logits: torch.Tensor
    expert_input: torch.Tensor
    top_k_index: torch.Tensor
    top_k_weights: torch.Tensor
    routed_output: torch.Tensor
    block_output: torch.Tensor
    shared_output: torch.Tensor | None = None


@dataclass
class Watch:
    """What is known of one site while its hooks are in place."""

    site: Site
    scores: Score | None = None
    score_name: str = ""
    calls: int = 0
    parts: dict[str, Any] = field(default_factory=dict)


@contextmanager
def capture(
    sites: Iterable[Site], on_event: Callable[[Event, Watch], None], owner: object | None = None
) -> Iterator[Mapping[int, Watch]]:
    """Within, `on_event` is called after every call of each site's block.

    The first call of each site is checked: the experts' outputs, weighted and added, are the block's routed output.

    Args:
        sites: where to look.
        on_event: what to do with what was seen; must not change it.
        owner: whose forward passes are watched; by default those that are nobody's, such as a call of the model.

    Raises:
        FamilyError: a block does something else than weighting its experts' outputs, or was called without its experts.
    """
    watches = {site.layer.index: Watch(site) for site in sites}
    handles = [handle for watch in watches.values() for handle in _hook(watch, on_event, owner)]
    try:
        yield watches
    finally:
        for handle in handles:
            handle.remove()


def _hook(watch: Watch, on_event: Callable[[Event, Watch], None], owner: object | None) -> list[Any]:
    site = watch.site

    def on_router(module: nn.Module, args: tuple, output: Any) -> None:
        if OWNER.get() is owner:
            watch.parts["router"] = output

    def on_experts(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if OWNER.get() is owner:
            watch.parts["call"] = expert_call(args, kwargs), output

    def on_shared(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        if OWNER.get() is owner:
            watch.parts["shared"] = output.reshape(-1, output.shape[-1])

    def on_block(module: nn.Module, args: tuple, output: Any) -> None:
        if OWNER.get() is not owner:
            return
        event = _event(watch, output if isinstance(output, torch.Tensor) else output[0])
        watch.parts.clear()
        if watch.calls == 0:
            _check(event)
            watch.score_name, watch.scores = score_function(
                site.router, event.router_logits, event.top_k_index, event.top_k_weights
            )
        watch.calls += 1
        on_event(event, watch)

    handles = [
        site.router.register_forward_hook(on_router),
        site.experts.register_forward_hook(on_experts, with_kwargs=True),
        site.block.register_forward_hook(on_block),
    ]
    if site.shared is not None:
        handles.append(site.shared.register_forward_hook(on_shared))
    return handles


def _event(watch: Watch, block_output: torch.Tensor) -> Event:
    index = watch.site.layer.index
    if "call" not in watch.parts or "router" not in watch.parts:
        raise FamilyError(f"Layer {index} ran without calling its router or its experts; it cannot be watched.")
    (rows, top_k_index, top_k_weights), output = watch.parts["call"]
    logits = raw_logits(watch.parts["router"], watch.site.layer.num_experts, len(rows))
    return Event(
        site=watch.site,
        router_logits=logits,
        expert_input=rows,
        top_k_index=top_k_index.long(),
        top_k_weights=top_k_weights,
        routed_output=output.reshape(rows.shape),
        block_output=block_output.reshape(-1, block_output.shape[-1]),
        shared_output=watch.parts.get("shared"),
    )


def _check(event: Event) -> None:
    """sum_k weight_k * output_k == routed output, on the first and the last row.

    Raises:
        FamilyError: it is not.
    """
    rows = torch.linspace(0, len(event.expert_input) - 1, CHECKED_ROWS, device=event.expert_input.device).long()
    outputs = event.site.selected_outputs(event.expert_input[rows], event.top_k_index[rows]).float()  # (n, k, w)
    found = (event.top_k_weights[rows].float().unsqueeze(-1) * outputs).sum(1)
    expected = event.routed_output[rows].float()
    if not bool(expected.isfinite().all()):
        return  # said by whoever looks at the values
    error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    allowed = TOLERANCE.get(event.expert_input.dtype, LOW_PRECISION_TOLERANCE)
    if not error <= allowed:
        raise FamilyError(
            f"Layer {event.site.layer.index}, {type(event.site.block).__name__}: the experts' outputs, weighted and "
            f"added, differ from the block's routed output by {error:.1e} of it ({allowed:.0e} allowed); the block "
            "does something that is not known here."
        )
