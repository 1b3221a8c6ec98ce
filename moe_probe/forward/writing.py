"""A source of batches in which a model generates, one prompt at a time, with its own `generate`."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, GenerationMixin

from moe_probe.errors import CannotWatch, MachineError, MoEProbeError, NoSuchName, NotFitting, WrongType, reason
from moe_probe.families import Layer
from moe_probe.forward.capture import capture
from moe_probe.forward.execution import Runner, borrowed
from moe_probe.forward.live_tokens import LiveTokens
from moe_probe.forward.model_source import ModelSource, require_told
from moe_probe.forward.running import layer_batch
from moe_probe.forward.sites import find_sites
from moe_probe.forward.steps import Forward, hand_over
from moe_probe.forward.watching import Event
from moe_probe.model import MoEModel
from moe_probe.routing import PER_ROW, PER_TOKEN, LayerBatch, LayerBefore, Need
from moe_probe.shown import brief
from moe_probe.signatures import value_shown
from moe_probe.texts.corpus import Corpus, Document, Tokens, of_ids
from moe_probe.texts.tokenizing import token_strings

PROMPT, GENERATED = "prompt", "generated"
# several sequences, or tokens that are taken back: their rows in the batches are not those of the text
REFUSED = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "prompt_lookup_num_tokens": None,
    "assistant_early_exit": None,
    "return_dict_in_generate": False,
}
SEVERAL = ("assistant_model", "streamer", "input_ids", "inputs", "attention_mask")


@dataclass
class Writing(ModelSource):
    """A model that continues prompts.

    Every token has the label `prompt` or `generated`. The last generated token has no routing, because the model never
    processes it.

    Attributes:
        model: the model, which is loaded into memory.
        prompts: the prompts.
        layers: the watched MoE layers.
        options: those of transformers' `generate`.
        written: ids of all tokens that went through the model, by the prompt's number.
    """

    model: MoEModel
    prompts: Corpus
    layers: Mapping[int, Layer]
    options: Mapping[str, Any]
    written: dict[int, list[int]] = field(default_factory=dict)

    corpus: Corpus = field(init=False)

    kind = "generation"
    holds = frozenset(Need) - {Need.BASELINE, Need.LOGITS, Need.RESIDUAL, Need.WITHOUT}

    def __post_init__(self) -> None:
        self.model.require_module()
        self.corpus = self.prompts

    @property
    def num_batches(self) -> int:
        """One per prompt and layer."""
        return len(self.prompts.documents) * len(self.layers)

    def _read_written(self) -> None:
        """The corpus becomes the prompts with what was written."""
        strings, special = token_strings({token for ids in self.written.values() for token in ids}, self.model)
        documents = [
            replace(
                of_ids(prompt.number, self.written[prompt.number], prompt.label, strings, special),
                cluster=prompt.cluster,
                unit=prompt.unit,
            )
            for prompt in self.prompts.documents
            if prompt.number in self.written
        ]
        self.corpus = Corpus(tuple(documents), strings, special)

    def split(self, parts: int) -> list[Writing]:
        """The same model on parts of the prompts."""
        return [replace(self, prompts=part, written={}) for part in self.prompts.split(parts)]

    def absorb(self, parts: Sequence[Any]) -> None:
        """Take in what the parts have written."""
        for part in parts:
            self.written |= part.written
        self._read_written()

    def state(self) -> dict[str, np.ndarray]:
        """What was written."""
        return {str(number): np.asarray(ids, np.int64) for number, ids in self.written.items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Take back what was written."""
        self.written = {int(number): ids.tolist() for number, ids in state.items()}

    def identity(self) -> dict[str, Any]:
        """Model, layers, and how it writes."""
        plain = {
            name: value.to_dict() if isinstance(value, GenerationConfig) else value
            for name, value in self.options.items()
        }
        return {**super().identity(), "options": plain}

    @torch.no_grad()
    def steps(self, needs: frozenset[Need], done: int = 0) -> Generator[list[LayerBatch]]:
        """A step per prompt.

        Raises:
            NotFitting: several sequences at a time are asked for.
            CannotWatch: the model's MoE layers cannot be watched, or it generates without a cache.
        """
        module, model = self.model.module, self.model
        check_generation(module.generation_config, self.options)
        require_told(self.interventions)
        watched = self.watched(model.num_layers)
        sites = find_sites(module, watched)
        for prompt in self.prompts.documents[done:]:
            live = LiveTokens(self, prompt.number, partial(label_of, len(prompt.ids)))
            with (
                borrowed(module),
                live.watching(module) as tokens,
                capture(sites.values(), hand_over, self, model.config, self.interventions, tokens),
            ):
                yield self._continue(prompt, watched)
        self._read_written()

    def _continue(self, prompt: Document, watched: Collection[int]) -> list[LayerBatch]:
        module: Any = self.model.module
        ids = torch.tensor([prompt.ids], device=Runner(self.model, layerwise=False).device)
        options = {"do_sample": False, **self.options}
        write = partial(module.generate, ids, attention_mask=torch.ones_like(ids), **options)
        forward: Forward[Event] = Forward(write, self)
        seen: dict[int, list[Event]] = {index: [] for index in watched}
        with closing(forward), said(self.options):
            for event in forward.advance():
                if event.site.layer.index in seen:
                    seen[event.site.layer.index].append(event)
        written = forward.output[0, :-1].tolist()
        self.written[prompt.number] = written
        before = LayerBefore(self.moe_layers)
        batches = [before.attach(self._joined(prompt, written, events)) for events in seen.values()]
        return [batch for batch in batches if batch.layer.index in self.layers]

    def _joined(self, prompt: Document, ids: list[int], events: list[Event]) -> LayerBatch:
        """The batches of all calls as one."""
        layer = events[0].site.layer
        rows = sum(len(event.top_k_index) for event in events)
        if rows != len(ids) * layer.subtokens:
            raise CannotWatch(
                f"{self.model.family} ran {rows} rows for {len(ids)} tokens: it generates without a cache, so its "
                "tokens cannot be told apart; pass use_cache=True or use dynamic.run on the finished text."
            )
        position = np.arange(len(ids))
        label = label_of(len(prompt.ids), position)
        document, unit = (np.full(len(ids), number) for number in (prompt.number, prompt.unit))
        tokens = Tokens(document, position, np.asarray(ids), label, unit)
        parts = [layer_batch(event, tokens, every_place(event)) for event in events]
        values = [part.tensors() for part in parts]
        joined = {name: torch.cat([each[name] for each in values]) for name in values[0] if name in PER_ROW + PER_TOKEN}
        kinds = " and ".join(dict.fromkeys(part.score_kind for part in parts))
        batch = LayerBatch(
            layer=layer, tokens=tokens, top_k_index=joined["top_k_index"], score_kind=kinds, experts=events[0].site
        )
        return batch.having(**joined)


def label_of(prompt: int, position: np.ndarray) -> np.ndarray:
    """Labels of tokens at some positions: `prompt` for the first `prompt` tokens, then `generated`."""
    return np.where(position < prompt, PROMPT, GENERATED).astype(object)


@contextmanager
def said(options: Mapping[str, Any]) -> Iterator[None]:
    """Within, what transformers refuses is said in a sentence of ours.

    Raises:
        NotFitting: transformers' `generate` refuses the options, or these together with the prompt.
    """
    try:
        yield
    except (MoEProbeError, MemoryError, OSError):
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, RuntimeError) and ("memory" in str(error) or "allocate" in str(error)):
            raise MachineError(f"The memory is full ({brief(error)}); pass shorter prompts or fewer tokens.") from error
        shown = ", ".join(f"{name}={value_shown(value)}" for name, value in options.items())
        raise NotFitting(
            f"The model's own generate does not take {shown} with this prompt ({reason(error)}); correct or omit them."
        ) from error


def every_place(event: Event) -> torch.Tensor:
    """All tokens of a call, (places,) bool."""
    places = len(event.top_k_index) // event.site.layer.subtokens
    return torch.ones(places, dtype=torch.bool, device=event.expert_input.device)


@cache
def _known_options() -> list[str]:
    """What transformers' `generate` takes: fields of its configuration, and arguments of its own."""
    arguments = inspect.signature(GenerationMixin.generate).parameters  # pyright: ignore[reportAttributeAccessIssue]
    known = {*GenerationConfig().to_dict(), *arguments, *SEVERAL, *REFUSED}
    return sorted(known - {"self", "kwargs"})


def _is_of_generation(value: object) -> bool:
    """Whether transformers' `generate` has a use for values of this type."""
    plain = bool | int | float | str | list | tuple | dict | torch.Tensor | None
    return isinstance(value, plain) or callable(value) or type(value).__module__.split(".")[0] == "transformers"


def check_generation(config: GenerationConfig | None, options: Mapping[str, Any]) -> None:
    """Raises an error (`NotFitting`, `NoSuchName`, `WrongType`) if generation would run rows of several texts."""
    for name, given in options.items():
        if name not in _known_options():
            close = get_close_matches(name, _known_options(), n=1)
            hint = f"; did you mean {close[0]!r}? There" if close else "; there"
            raise NoSuchName(
                f"There is no option of generate {name!r}{hint} are those of dynamic.generate, and the fields of "
                "transformers.GenerationConfig."
            )
        if not _is_of_generation(given):
            raise WrongType(f"{name} is {value_shown(given)}; pass a value that transformers.GenerationConfig takes.")
    given = options.get("generation_config")
    for name in SEVERAL:
        if options.get(name) is not None:
            raise NotFitting(f"Generation takes no {name}; prompts are the texts, written on one at a time.")
    for name, allowed in REFUSED.items():
        holders = [holder for holder in (given, config) if holder is not None]
        value = options.get(name, next((v for h in holders if (v := getattr(h, name, None)) is not None), allowed))
        if value is not None and value != allowed:
            raise NotFitting(
                f"Generation is watched one sequence at a time; {name} is {value!r} (in the options or the model's "
                f"generation_config), pass {name}={allowed!r}."
            )
