"""Forward hooks that observe MoE layers, and change only what an intervention changes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

from moe_probe.forward.site_call import Only
from moe_probe.forward.sites import Site
from moe_probe.forward.steps import OWNER
from moe_probe.forward.watching import Event, WatchedSite
from moe_probe.routing import Intervention, Need
from moe_probe.texts.corpus import Tokens


@contextmanager
def capture(
    sites: Iterable[Site],
    on_event: Callable[[Event], None] | None,
    owner: object | None = None,
    config: object = None,
    interventions: Sequence[Intervention] | Callable[[], Sequence[Intervention]] = (),
    tokens: Callable[[], Tokens] = Tokens.none,
    only: Only = lambda _: None,
    needs: frozenset[Need] = frozenset(),
    asked: Collection[int] | None = None,
    deleted: Mapping[int, Sequence[Sequence[int]]] = MappingProxyType({}),
) -> Iterator[Mapping[int, WatchedSite]]:
    """A context in which `on_event` is called after every call of each site's block.

    The first call of each site is checked: the weighted sum of the experts' outputs equals the block's routed output.

    Args:
        sites: the MoE layers to watch.
        on_event: receives each event, which it must not change; None for no events, which is faster.
        owner: owner of the forward passes to watch; by default passes without an owner, such as a call of the model.
        config: configuration of the model.
        interventions: the interventions on these sites' layers, or a function that returns the current ones.
        tokens: returns the tokens that run, for interventions.
        only: tokens (tokens,) bool in which an intervention acts; None for all.
        needs: `Need.RESIDUAL`, `Need.SELECTED` and `Need.WITHOUT` are recorded only if they are among these.
        asked: layers for which `needs` are recorded; all by default.
        deleted: sets of experts of each layer for which `Need.WITHOUT` records the choice without them; by default each
            expert alone.

    Raises:
        CannotWatch: a block computes something else than the weighted sum, or ran without calling its experts.
    """
    watched = {}
    for site in sites:
        index = site.layer.index
        acting = partial(acting_in, index, interventions)
        told = needs if asked is None or index in asked else frozenset()
        watched[index] = WatchedSite(site, config, on_event, acting, tokens, only, told, deleted.get(index, ()))
    handles = [handle for each in watched.values() for handle in _hook(each, owner)]
    try:
        yield watched
    finally:
        for handle in handles:
            handle.remove()


def acting_in(
    layer: int, interventions: Sequence[Intervention] | Callable[[], Sequence[Intervention]]
) -> list[Intervention]:
    """Those of the interventions that act in a layer."""
    all_of_them = interventions() if callable(interventions) else interventions
    return [each for each in all_of_them if each.acts_in([layer])]


def _hook(watch: WatchedSite, owner: object | None) -> list[Any]:
    def owned(call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda module, *values: call(*values) if OWNER.get() is owner else None

    site = watch.site
    handles = [
        site.block.register_forward_pre_hook(owned(watch.before_block), with_kwargs=True),
        site.router.register_forward_hook(owned(watch.on_router), with_kwargs=True),
        site.experts.register_forward_pre_hook(owned(watch.before_experts), with_kwargs=True),
        site.experts.register_forward_hook(owned(watch.on_experts)),
        site.block.register_forward_hook(owned(watch.on_block), always_call=True),
    ]
    if Need.RESIDUAL in watch.needs:
        handles += [module.register_forward_hook(owned(watch.on_beside)) for module in site.beside]
    if site.shared is not None:
        handles.append(site.shared.register_forward_hook(owned(watch.on_shared)))
    if site.shared_beside is not None:
        handles.append(site.shared_beside.register_forward_hook(owned(watch.on_shared_beside)))
    return handles
