"""Interventions on a live model, for your own evaluation loops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from transformers import PreTrainedModel

from moe_probe.errors import NotFitting
from moe_probe.forward.capture import capture
from moe_probe.forward.live_tokens import LiveTokens
from moe_probe.forward.model_source import require_told
from moe_probe.forward.sites import find_sites
from moe_probe.model import Openable, load
from moe_probe.routing import Intervention


@contextmanager
def applied(model: Openable, interventions: Intervention | Sequence[Intervention]) -> Iterator[PreTrainedModel]:
    """A context in which a live model runs under interventions, whoever calls it; afterwards it is bit-identical.

    For `where=` and replayed runs, each row of a call's `input_ids` is a document, numbered by its place in the call.

    Args:
        model: a live model, alone or wrapped by torch.compile, DataParallel or PEFT; or a checkpoint folder, a hub id
            or a `MoEModel`, which is then loaded into memory.
        interventions: one or several, which act together with those that the model has.

    Returns:
        A context manager that yields the torch module.

    Raises:
        InputError: the model lacks a layer or expert, or an intervention needs another run that was not given.
        FamilyError: the model's MoE layers cannot be watched.

    Examples:
        >>> import moe_probe, torch
        >>> from moe_probe import intervene
        >>> model, ids = moe_probe.load("ckpt/tiny-mixtral"), torch.tensor([[1, 2, 3]])
        >>> with intervene.applied(model, intervene.Zero(layer=0, experts="all")) as module:
        ...     edited = module(ids).logits
        >>> bool((edited != model.module(ids).logits).any())
        True
    """
    several = [interventions] if isinstance(interventions, Intervention) else interventions
    opened = load(model).under(*several)
    edits = [each for each in opened.interventions if isinstance(each, Intervention)]
    fields = next((each for each in several if each.config), None)
    if fields is not None:
        raise NotFitting(f"{fields!r} needs another torch module; use model.under({fields!r}).module instead.")
    require_told(edits)
    layers = {layer for each in edits for layer in each.acts_in(opened.moe_layers)}
    with ExitStack() as stack:
        tokens = stack.enter_context(LiveTokens().watching(opened.module))
        sites = find_sites(opened.module, sorted(layers)).values()
        stack.enter_context(capture(sites, None, None, opened.config, edits, tokens))
        yield opened.module
