"""Forward hooks that see all that MoE layers do, and change nothing but what an intervention changes."""

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
    """Within, `on_event` is called after every call of each site's block.

    The first call of each site is checked: the experts' outputs, weighted and added, are the block's routed output.

    Args:
        sites: where to look.
        on_event: what to do with what was seen; must not change it. None to have nothing told, which is quicker.
        owner: whose forward passes are watched; by default those that are nobody's, such as a call of the model.
        config: of the model.
        interventions: what changes in these sites' layers, or a function that says what does so now.
        tokens: says which tokens run, for interventions.
        only: tokens (tokens,) bool to which an intervention is confined; None for all.
        needs: `Need.RESIDUAL`, `Need.SELECTED` and `Need.WITHOUT` are told only where they are asked for.
        asked: layers of which `needs` are told; all by default.
        deleted: sets of experts of each layer without which `Need.WITHOUT` asks what would be chosen; by default each
            expert alone.

    Raises:
        CannotWatch: a block does something else than weighting its experts' outputs, or was called without its experts.
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
