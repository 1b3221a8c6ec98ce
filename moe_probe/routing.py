"""The shared vocabulary: what a running MoE layer gives, the sources that give it, and interventions that change it."""

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
    """What an analysis can require of a source."""

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
    """The experts of one layer, which the model's own code runs on rows (n, w)."""

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
    """A tensor field that a source may lack; reading it then raises `NotFitting`."""

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
            raise NotFitting(f"These batches hold no {self.name}; add the need for it to the analysis's `needs`.")
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
    """The routing of some tokens in one MoE layer: n rows, one per token, or one per sub-token of each token (MH-MoE).

    Reading a field that the source does not hold raises `NotFitting`; `holds` says which fields are there. E is the
    number of experts, k that of chosen ones, d the hidden size, w the width of an expert's input, ff its neurons.

    Attributes:
        layer: description of the layer.
        tokens: the n / `layer.subtokens` tokens.
        top_k_index: chosen experts, (n, k), int64.
        top_k_weights: applied weights, which multiply their outputs, (n, k), float32.
        router_logits: raw, (n, E), float32.
        scores: the affinity, a function of the logits such as softmax or sigmoid, (n, E), float32.
        selection: the score that top-k ranks, (n, E), float32: the affinity plus the correction bias, -inf for the
            experts of excluded groups; equal to `scores` if the router ranks those.
        expert_input: input of the experts, (n, w), in the compute dtype.
        routed_output: the weighted sum, (n, w).
        block_output: of the whole MoE block, with the shared experts' part, (tokens, d).
        selected_outputs: unweighted outputs of the chosen experts, (n, k, w).
        outputs: unweighted outputs of all experts, (E, n, w).
        activations: act(gate projection) of all experts with weights, (E_ffn, n, ff).
        shared_output: of the shared block, (tokens, d).
        baseline_output: of the dense model's FFN, (tokens, d).
        baseline_activation: act(gate projection) of the dense model's FFN, (tokens, ff).
        residual: the residual stream before the norm in front of the block, (tokens, d); not held if no module of its
            own gives the block's input.
        without_index: experts that the router would choose if some were deleted, for each of S sets (by default each
            of the E experts alone), (S, n, k), int64; not held if no expert can be spared.
        without_weights: the weights that it would apply to them, (S, n, k), float32.
        before: experts that the same rows chose in the previous MoE layer, (n, k), int64.
        layer_before: that layer's index; None if it is not known.
        score_kind: the name of the affinity's function, followed by "(assumed)" if nothing could confirm it.
        experts: computes outputs that the forward pass did not; None for a trace.
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
        """Whether the batch holds the field `name`."""
        return vars(self)[name] is not None

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that the batch holds, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}

    def part(self, tokens: slice | np.ndarray) -> Self:
        """The batch reduced to some of its tokens, given as a slice or a mask (tokens,)."""
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
        """The batch with the outputs that `needs` names, which the model's own experts compute."""
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
        """The batch with its rows' choices in the previous MoE layer."""
        return self.having(layer_before=layer, before=chosen)

    def having(self, **changes: Any) -> Self:
        """The batch with some fields replaced."""
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
        """The values that order the choices, (n, k): selection scores, or applied weights if no scores are held."""
        return self.selection.gather(1, self.top_k_index) if self.holds("selection") else self.top_k_weights

    def ranked(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Chosen experts and their applied weights, (n, k), in descending order of selection score."""
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
    """Keeps the choices of tokens in one MoE layer until the next MoE layer.

    Args:
        moe_layers: of the model, ascending: after a layer that was not seen, the next one has no previous layer.
    """

    def __init__(self, moe_layers: Sequence[int]) -> None:
        self.before = {layer: before for before, layer in pairwise(moe_layers)}
        self.known: dict[tuple[int, int], tuple[int, torch.Tensor]] = {}

    def attach(self, batch: LayerBatch) -> LayerBatch:
        """The batch with the choices of the previous layer, if the same tokens were seen there."""
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
    """Where batches come from: a model that runs or generates, or a recorded trace.

    Attributes:
        layers: the MoE layers that it gives, by index.
        holds: the needs that it can meet.
        corpus: the documents; complete only after the last step if the model generates.
        vocab_size: of the model's output; 0 if it gives none.
        kind: its name in errors.
    """

    layers: Mapping[int, Layer]
    holds: frozenset[Need]
    corpus: Corpus
    vocab_size: int = 0
    kind: ClassVar[str] = "this source"

    @property
    @abstractmethod
    def name(self) -> str:
        """The model's name in results."""

    @property
    @abstractmethod
    def family(self) -> str:
        """The model's family."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of checkpoint, configuration, interventions and dtype, which results record."""

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """All MoE layers of the model, whichever of them the source gives; by default those that it gives."""
        return tuple(sorted(self.layers))

    @property
    @abstractmethod
    def num_batches(self) -> int:
        """Total number of layer batches, for progress."""

    @abstractmethod
    def split(self, parts: int) -> Sequence[Self]:
        """At most `parts` sources that share the work."""

    @abstractmethod
    def steps(self, needs: frozenset[Need], done: int = 0) -> Generator[Iterable[LayerBatch | LogitBatch]]:
        """Yields the batches, step by step, after skipping `done` steps; a pass can resume after any step."""

    def state(self) -> dict[str, np.ndarray]:
        """The arrays that, besides `done`, it needs to resume."""
        return {}

    def restore(self, state: dict[str, np.ndarray]) -> None:  # noqa: B027 - most remember nothing
        """Restores what `state` returned."""

    def absorb(self, parts: Sequence[Any]) -> None:  # noqa: B027
        """Takes over what the parts of a split have learned."""

    def identity(self) -> dict[str, Any]:
        """What, besides the corpus, must be equal for a saved pass over it to resume."""
        return {"fingerprint": self.fingerprint, "layers": list(self.layers)}

    @property
    def first_layer(self) -> Layer:
        """The first of the MoE layers that it gives."""
        return next(iter(self.layers.values()))


class Call(Protocol):
    """The arguments of one call of a layer's experts; an intervention returns changed ones.

    Attributes:
        layer: description of the layer.
        tokens: the tokens, including those of padding.
        rows: the experts' input, (n, w).
        logits: raw router logits, (n, E).
        index: chosen experts, (n, k).
        weights: applied weights, which multiply their outputs, (n, k).
        memory: what interventions keep from one call of the layer to the next while the model is watched.
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
        """The router's own choice after adding `bias`, (E,) or (n, E), to its logits; -inf masks an expert."""
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
        """Unweighted outputs (m, w) of one expert per row, given by `index` (m,), for rows (m, w).

        `parameters` replace those of the same names in the experts module.
        """
        ...

    @property
    def layout(self) -> Any:
        """Where each projection is in the experts module's parameters (`families.experts_layout`)."""
        ...

    def expert_parameters(self) -> Mapping[str, torch.Tensor]:
        """Parameters of the experts module, by name."""
        ...

    def rows_of(self, intervention: Intervention) -> torch.Tensor:
        """Rows in which an intervention acts, (n,) bool: those of the tokens that its `where` selects."""
        ...


class Request(Protocol):
    """The requests of all interventions on a layer to its router; their order does not matter."""

    def add_bias(self, bias: torch.Tensor, rows: torch.Tensor) -> None:
        """Adds `bias` (E,) to the logits of some rows (n,) bool."""
        ...

    def mask(self, experts: torch.Tensor, rows: torch.Tensor) -> None:
        """Excludes experts (E,) bool from the choice in some rows."""
        ...

    def steer(self, promote: torch.Tensor, demote: torch.Tensor, rows: torch.Tensor) -> None:
        """Moves the logits of experts (E,) bool just above the largest, or just below the least, of some rows."""
        ...

    def set_top_k(self, top_k: int, rows: torch.Tensor) -> None:
        """Changes the number of experts that some rows choose."""
        ...

    def rank(self, scores: torch.Tensor, rows: torch.Tensor) -> None:
        """Chooses the experts with the largest scores (n, E) in some rows; the router's own rule weights them."""
        ...


class Changes(Protocol):
    """The changes that the interventions of a layer make to its experts' outputs, choice by choice."""

    def of_experts(self, experts: Sequence[int], rows: torch.Tensor) -> torch.Tensor:
        """A mask (n, k) bool of the choices of some experts in some rows."""
        ...

    def replace(self, choices: torch.Tensor, values: torch.Tensor) -> None:
        """Replaces the unweighted outputs of m choices, given as a mask (n, k), by `values` (m, w), in their order."""
        ...

    def add(self, choices: torch.Tensor, values: torch.Tensor) -> None:
        """Adds `values` (m, w) to the unweighted outputs of m choices, given as a mask (n, k)."""
        ...


class Intervention(Checked):
    """Changes what MoE layers compute; a frozen dataclass, whose fields are its provenance.

    Interventions on one layer act together, stage by stage, so that their order does not matter: `decide` (the router
    grants all requests at once), `route` (in order of `stage`), `change`, `output`.

    Attributes:
        config: fields of the model's configuration that it replaces.
        decides: whether it asks the router for another decision.
        stage: order of its `route` among those of the same layer.
    """

    config: Mapping[str, Any] = MappingProxyType({})
    decides: ClassVar[bool] = False
    stage: ClassVar[int] = 9

    @classmethod
    def example(cls) -> Self:
        """Returns an instance with small parameters, for tests and documentation."""
        return cls()

    def layers(self) -> frozenset[int]:
        """MoE layers in which it acts: by default that of its field `layer`."""
        layer: int | None = getattr(self, "layer", None)
        return frozenset() if layer is None else frozenset({layer})

    def acts_in(self, moe_layers: Collection[int]) -> frozenset[int]:
        """The MoE layers, of those given, in which it acts."""
        return self.layers().intersection(moe_layers)

    def claims(self, layer: int) -> frozenset[str]:
        """The things that only one intervention can set in a layer; two interventions that claim one are refused."""
        return frozenset()

    def check(self, model: MoEModel) -> None:
        """Raises an error if the intervention does not fit the model.

        Raises:
            InputError: the model lacks the layer or expert, or already has an intervention that sets the same.
        """

    @property
    def needs(self) -> frozenset[Need]:
        """What it must know of the unedited run on the same texts before it can act."""
        return frozenset()

    def told(self, reference: Any) -> Self:
        """Returns the intervention with its knowledge of the unedited run (a `forward.reference.Reference`)."""
        return self

    def decide(self, call: Call, request: Request) -> None:
        """Asks the router for another decision."""

    def route(self, call: Call) -> Call:
        """Returns the call with other choices or weights, before the experts run."""
        return call

    def change(self, call: Call, changes: Changes) -> None:
        """Changes the outputs of chosen experts."""

    def output(self, call: Call, routed: torch.Tensor) -> torch.Tensor:
        """Returns the changed weighted sum (n, w), after the experts have run."""
        return routed

    def shared(self, layer: Layer, output: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Returns the changed output (tokens, d) of a layer's shared block; `places` (tokens,) bool selects tokens."""
        return output
