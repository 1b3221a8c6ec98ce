"""The words of all that follows: what is seen of a MoE layer at work, where it is seen, and what may change it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from itertools import pairwise
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, Self, overload

import numpy as np
import torch

from moe_probe.errors import NotFitting
from moe_probe.families import Layer
from moe_probe.model import MoEModel
from moe_probe.signatures import Checked
from moe_probe.texts.corpus import Corpus, Tokens


class Need(StrEnum):
    """What an analysis asks of a source."""

    CHOICES = "choices"
    WEIGHTS = "weights"
    SCORES = "scores"
    INPUT = "expert input"
    ROUTED = "routed output"
    SELECTED = "selected outputs"
    OUTPUTS = "outputs"
    ACTIVATIONS = "activations"
    SHARED = "shared output"
    BASELINE = "baseline"
    LOGITS = "logits"
    BEFORE = "choices of the layer before"
    RESIDUAL = "residual stream"
    WITHOUT = "choices without each expert"


ROUTING = frozenset({Need.CHOICES, Need.WEIGHTS, Need.SCORES, Need.BEFORE})
# what is computed for a few tokens at a time, since it has a row per token and expert
CHUNKED = frozenset({Need.OUTPUTS, Need.ACTIVATIONS})


class Experts(Protocol):
    """The experts of one layer, run by the model's own code on rows (n, w)."""

    def all_outputs(self, rows: torch.Tensor) -> torch.Tensor:
        """Unweighted outputs of all experts, (E, n, w)."""
        ...

    def all_outputs_and_activations(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`all_outputs`, and act(gate projection) of the experts with weights, (E_ffn, n, ff)."""
        ...

    def selected_outputs(self, rows: torch.Tensor, top_k_index: torch.Tensor) -> torch.Tensor:
        """Unweighted outputs of the chosen experts (n, k), (n, k, w)."""
        ...


class Held:
    """A tensor field that a source may not hold; reading it then says so."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> None: ...

    @overload
    def __get__(self, instance: object, owner: type | None = None) -> torch.Tensor: ...

    def __get__(self, instance: object | None, owner: type | None = None) -> torch.Tensor | None:
        if instance is None:
            return None
        value = vars(instance)[self.name]
        if value is None:
            raise NotFitting(f"These batches hold no {self.name}; name the need for it in the analysis's `needs`.")
        return value

    def __set__(self, instance: object, value: torch.Tensor | None) -> None:
        vars(instance)[self.name] = value


PER_ROW = (
    "router_logits",
    "scores",
    "selection",
    "top_k_index",
    "top_k_weights",
    "expert_input",
    "routed_output",
    "selected_outputs",
    "before",
)
PER_TOKEN = ("block_output", "shared_output", "baseline_output", "baseline_activation", "residual")
PER_EXPERT = ("outputs", "activations", "without_index", "without_weights")


@dataclass(frozen=True)
class LayerBatch:
    """What some tokens do in one MoE layer: n rows, a row per token, or per sub-token, token by token (MH-MoE).

    Fields that the source does not hold raise `NotFitting` when they are read; `holds` tells.

    Attributes:
        layer: what the layer is made of.
        tokens: the n / `layer.subtokens` tokens.
        top_k_index: chosen experts, (n, k), int64.
        top_k_weights: what multiplies their outputs, (n, k), float32.
        router_logits: raw, (n, E), float32.
        scores: the affinity, a function of the logits such as softmax or sigmoid, (n, E), float32.
        selection: what top-k ranks, (n, E), float32: the affinity with the correction bias added, -inf for the experts
            of excluded groups; equal to `scores` where the router ranks those.
        expert_input: (n, w), w the width of an expert's input, in the compute dtype.
        routed_output: the weighted sum, (n, w).
        block_output: of the whole MoE block, with the shared experts' part, (tokens, d).
        selected_outputs: unweighted outputs of the chosen experts, (n, k, w).
        outputs: unweighted outputs of all experts, (E, n, w).
        activations: act(gate projection) of all experts with weights, (E_ffn, n, ff).
        shared_output: of the shared block, (tokens, d).
        baseline_output: of the dense model's FFN, (tokens, d).
        baseline_activation: act(gate projection) of the dense model's FFN, (tokens, ff).
        residual: the residual stream before the norm that the block follows, (tokens, d); not held where no module
            beside the block gives its input.
        without_index, without_weights: what the router would choose, and apply, if experts were deleted, for each of S
            sets (by default each of the E experts alone), (S, n, k); not held where none can be spared.
        before: experts that the same rows chose in the MoE layer before, (n, k), int64.
        layer_before: that layer's index; None where it is not known.
        score_kind: the name of the affinity's function, "(assumed)" added where nothing could confirm it.
        experts: computes what the forward pass did not; None for a trace.
    """

    layer: Layer
    tokens: Tokens
    top_k_index: torch.Tensor
    top_k_weights: Held = Held()
    router_logits: Held = Held()
    scores: Held = Held()
    selection: Held = Held()
    expert_input: Held = Held()
    routed_output: Held = Held()
    block_output: Held = Held()
    selected_outputs: Held = Held()
    outputs: Held = Held()
    activations: Held = Held()
    shared_output: Held = Held()
    baseline_output: Held = Held()
    baseline_activation: Held = Held()
    residual: Held = Held()
    without_index: Held = Held()
    without_weights: Held = Held()
    before: Held = Held()
    layer_before: int | None = None
    score_kind: str = ""
    experts: Experts | None = field(default=None, repr=False)

    def holds(self, name: str) -> bool:
        """Whether the field is there."""
        return vars(self)[name] is not None

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that are there, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}

    def part(self, tokens: slice | np.ndarray) -> Self:
        """The batch of some of its tokens alone, a slice or a mask (tokens,)."""
        parts = self.layer.subtokens
        if isinstance(tokens, slice):
            start, stop, _ = tokens.indices(len(self.tokens))
            of_tokens, rows = slice(start, stop), slice(start * parts, stop * parts)
        else:
            of_tokens, rows = torch.from_numpy(tokens), torch.from_numpy(np.repeat(tokens, parts))
        values = self.tensors()
        cut = {name: value[rows] for name, value in values.items() if name in PER_ROW}
        cut |= {name: value[of_tokens] for name, value in values.items() if name in PER_TOKEN}
        cut |= {name: value[:, rows] for name, value in values.items() if name in PER_EXPERT}
        return self.having(tokens=self.tokens[tokens], **cut)

    def completed(self, needs: frozenset[Need]) -> Self:
        """The batch with the outputs that `needs` names, run by the model's own experts."""
        experts = self.experts
        if experts is None:
            return self
        computed = {}
        if Need.ACTIVATIONS in needs:
            outputs, activations = experts.all_outputs_and_activations(self.expert_input)
            computed = {"outputs": outputs, "activations": activations}
        elif Need.OUTPUTS in needs:
            computed["outputs"] = experts.all_outputs(self.expert_input)
        if Need.SELECTED in needs and not self.holds("selected_outputs"):
            computed["selected_outputs"] = experts.selected_outputs(self.expert_input, self.top_k_index)
        return self.having(**computed)

    def with_before(self, layer: int, chosen: torch.Tensor) -> Self:
        """The batch with what its rows chose in the MoE layer before."""
        return self.having(layer_before=layer, before=chosen)

    def having(self, **changes: Any) -> Self:
        """The batch with other fields."""
        return type(self)(**{each.name: vars(self)[each.name] for each in fields(self)} | changes)

    @property
    def selected(self) -> torch.Tensor:
        """Whether an expert was chosen, (n, E), float32."""
        index = self.top_k_index
        chosen = torch.zeros(len(index), self.layer.num_experts, dtype=torch.float32, device=index.device)
        return chosen.scatter_(1, index, 1.0)

    @property
    def weights(self) -> torch.Tensor:
        """The applied weight of every expert, 0 where it was not chosen, (n, E), float32."""
        index = self.top_k_index
        applied = torch.zeros(len(index), self.layer.num_experts, dtype=torch.float32, device=index.device)
        return applied.scatter_add_(1, index, self.top_k_weights.float())

    @property
    def ranked_by(self) -> torch.Tensor:
        """What orders the choices, (n, k): the selection score, or the applied weight where no score is held."""
        return self.selection.gather(1, self.top_k_index) if self.holds("selection") else self.top_k_weights

    def ranked(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Chosen experts and their applied weights, (n, k), the largest selection score first."""
        order = self.ranked_by.argsort(dim=1, descending=True, stable=True)
        return self.top_k_index.gather(1, order), self.top_k_weights.gather(1, order)

    @property
    def first_choice(self) -> torch.Tensor:
        """The chosen expert with the largest selection score, (n,), int64."""
        return self.top_k_index.gather(1, self.ranked_by.argmax(1, keepdim=True))[:, 0]

    @property
    def labels(self) -> np.ndarray:
        """The document label of each row, (n,)."""
        return np.repeat(self.tokens.label, self.layer.subtokens)

    def by_token(self, rows: torch.Tensor) -> np.ndarray:
        """Rows (n, ...) as an array (tokens, subtokens, ...)."""
        array = rows.cpu().numpy()
        return array.reshape(len(self.tokens), self.layer.subtokens, *array.shape[1:])


class LayerBefore:
    """Remembers what tokens chose in one MoE layer until the next one.

    Args:
        moe_layers: of the model, ascending: a layer that was not seen leaves the next one without a layer before.
    """

    def __init__(self, moe_layers: Sequence[int]) -> None:
        self.before = {layer: before for before, layer in pairwise(moe_layers)}
        self.known: dict[tuple[int, int], tuple[int, torch.Tensor]] = {}

    def attach(self, batch: LayerBatch) -> LayerBatch:
        """The batch with the choices of the layer before, where the same tokens were seen there."""
        key, index = (int(batch.tokens.document[0]), len(batch.tokens)), batch.layer.index
        if any(layer > index for layer, _ in self.known.values()):
            self.known.clear()  # the next batch of a resident pass
        layer, chosen = self.known.get(key, (index, batch.top_k_index))
        self.known[key] = index, batch.top_k_index
        return batch.with_before(layer, chosen) if layer == self.before.get(index) else batch


@dataclass(frozen=True)
class LogitBatch:
    """The model's output for some tokens.

    Attributes:
        tokens: the tokens.
        logits: of the next token, (tokens, vocabulary).
    """

    tokens: Tokens
    logits: torch.Tensor


class Source(ABC):
    """Where batches come from: a model that runs or writes, or a recorded trace.

    Attributes:
        layers: the MoE layers that it tells of, by index.
        holds: what it can be asked for.
        corpus: the documents; of a model that writes, complete after the last step.
        vocab_size: of the model's output; 0 where there is none.
        kind: what it is, in errors.
    """

    layers: Mapping[int, Layer]
    holds: frozenset[Need]
    corpus: Corpus
    vocab_size: int = 0
    kind: ClassVar[str] = "this source"

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the model, in results."""

    @property
    @abstractmethod
    def family(self) -> str:
        """Of the model."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Identifies checkpoint, configuration, interventions and dtype; results are kept by it."""

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """MoE layers of the model, whichever it tells of; by default those that it tells of."""
        return tuple(sorted(self.layers))

    @property
    @abstractmethod
    def num_batches(self) -> int:
        """Layer batches in all, for progress."""

    @abstractmethod
    def split(self, parts: int) -> Sequence[Self]:
        """At most `parts` sources that share the work."""

    @abstractmethod
    def steps(self, needs: frozenset[Need], done: int = 0) -> Generator[Iterable[LayerBatch | LogitBatch]]:
        """The batches, step by step, but for the first `done` steps; a pass can be resumed after any step."""

    def state(self) -> dict[str, np.ndarray]:
        """What it must remember, beside `done`, to be resumed."""
        return {}

    def restore(self, state: dict[str, np.ndarray]) -> None:  # noqa: B027 - most remember nothing
        """Take back what `state` gave."""

    def absorb(self, parts: Sequence[Any]) -> None:  # noqa: B027
        """Take in what the parts of a split have learned."""

    def identity(self) -> dict[str, Any]:
        """What a saved pass over it must agree in, beside the corpus."""
        return {"fingerprint": self.fingerprint, "layers": list(self.layers)}

    @property
    def first_layer(self) -> Layer:
        """The first of its layers."""
        return next(iter(self.layers.values()))


class Call(Protocol):
    """What reaches the experts of one layer; an intervention gives another one back.

    Attributes:
        layer: what the layer is made of.
        tokens: the tokens, those of padding too.
        rows: the experts' input, (n, w).
        logits: raw router logits, (n, E).
        index: chosen experts, (n, k).
        weights: what multiplies their outputs, (n, k).
        memory: what interventions keep from call to call of the layer, while the model is watched.
    """

    layer: Layer
    tokens: Tokens
    rows: torch.Tensor
    logits: torch.Tensor
    index: torch.Tensor
    weights: torch.Tensor
    memory: dict[Any, Any]

    def chosen(self, index: torch.Tensor, weights: torch.Tensor) -> Call:
        """The call with other choices and weights."""
        ...

    def reselect(self, bias: torch.Tensor) -> Call:
        """The router's own choice with `bias`, (E,) or (n, E), on its logits; -inf masks an expert."""
        ...

    def outputs(self) -> torch.Tensor:
        """Unweighted outputs of all experts, (E, n, w)."""
        ...

    def output_norms(self) -> torch.Tensor:
        """L2 norms of the unweighted outputs of all experts, (n, E)."""
        ...

    def run_experts(
        self, rows: torch.Tensor, index: torch.Tensor, parameters: Mapping[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Unweighted outputs (m, w) of one expert (m,) for each of some rows (m, w).

        `parameters` stand in for those of the experts module of the same names.
        """
        ...

    @property
    def layout(self) -> Any:
        """Where projections lie in those parameters (`families.experts_layout`)."""
        ...

    def expert_parameters(self) -> Mapping[str, torch.Tensor]:
        """Parameters of the experts module, by name."""
        ...

    def rows_of(self, intervention: Intervention) -> torch.Tensor:
        """Rows in which an intervention acts, (n,) bool: those of the tokens of its `where`."""
        ...


class Request(Protocol):
    """What the interventions of a layer ask of its router, all together; their order does not matter."""

    def add_bias(self, bias: torch.Tensor, rows: torch.Tensor) -> None:
        """Add `bias` (E,) to the logits of some rows (n,) bool."""
        ...

    def mask(self, experts: torch.Tensor, rows: torch.Tensor) -> None:
        """Take experts (E,) bool out of the choice of some rows."""
        ...

    def steer(self, promote: torch.Tensor, demote: torch.Tensor, rows: torch.Tensor) -> None:
        """Put the logits of experts (E,) bool just above the largest, and below the least, of some rows."""
        ...

    def set_top_k(self, top_k: int, rows: torch.Tensor) -> None:
        """Choose another number of experts in some rows."""
        ...

    def rank(self, scores: torch.Tensor, rows: torch.Tensor) -> None:
        """Choose the experts with the largest scores (n, E) in some rows; weights follow by the router's own rule."""
        ...


class Changes(Protocol):
    """What the interventions of a layer do to its experts' outputs, choice by choice."""

    def of_experts(self, experts: Sequence[int], rows: torch.Tensor) -> torch.Tensor:
        """The choices (n, k) bool of some experts in some rows."""
        ...

    def replace(self, choices: torch.Tensor, values: torch.Tensor) -> None:
        """Put unweighted outputs (m, w) in place of those of m choices (n, k) bool, in their order."""
        ...

    def add(self, choices: torch.Tensor, values: torch.Tensor) -> None:
        """Add to the unweighted outputs of m choices."""
        ...


class Intervention(Checked):
    """Changes what MoE layers do; a frozen dataclass, so that its fields are its provenance.

    Interventions on one layer act together, stage by stage, and so in no order: `decide` (all requests to the router
    are granted at once), `route` (by `stage`), `change`, `output`.

    Attributes:
        config: fields of the model's configuration that it replaces.
        decides: whether it asks the router for another decision.
        stage: when its `route` comes, among those of the same layer.
    """

    config: Mapping[str, Any] = MappingProxyType({})
    decides: ClassVar[bool] = False
    stage: ClassVar[int] = 9

    @classmethod
    def example(cls) -> Self:
        """One with small parameters, for tests and documentation."""
        return cls()

    def layers(self) -> frozenset[int]:
        """MoE layers in which it acts: that of its field `layer`, if it has one."""
        layer: int | None = getattr(self, "layer", None)
        return frozenset() if layer is None else frozenset({layer})

    def acts_in(self, moe_layers: Collection[int]) -> frozenset[int]:
        """Those of the MoE layers in which it acts."""
        return self.layers().intersection(moe_layers)

    def claims(self, layer: int) -> frozenset[str]:
        """What it alone can set in a layer; two interventions that claim the same are refused."""
        return frozenset()

    def check(self, model: MoEModel) -> None:
        """Refuse layers and experts that there are not, and what the interventions that the model has exclude.

        Raises:
            InputError: the model has no such layer or expert, or an intervention that sets the same.
        """

    @property
    def needs(self) -> frozenset[Need]:
        """What it must know of the unedited run on the same texts, before it can act."""
        return frozenset()

    def told(self, reference: Any) -> Self:
        """The intervention that knows the unedited run (`forward.reference.Reference`)."""
        return self

    def decide(self, call: Call, request: Request) -> None:
        """Ask the router for another decision."""

    def route(self, call: Call) -> Call:
        """Change the choice before the experts run."""
        return call

    def change(self, call: Call, changes: Changes) -> None:
        """Change what chosen experts give."""

    def output(self, call: Call, routed: torch.Tensor) -> torch.Tensor:
        """Change the weighted sum (n, w) after the experts have run."""
        return routed

    def shared(self, layer: Layer, output: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Change the output (tokens, d) of a layer's shared block in some tokens (tokens,) bool."""
        return output
