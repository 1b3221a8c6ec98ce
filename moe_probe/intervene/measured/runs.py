"""Runs edited variants of a model together with the unedited one, and collects measures of them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from joblib import effective_n_jobs

from moe_probe.dynamic.driver import require_finite
from moe_probe.dynamic.saved_states import SavedStates
from moe_probe.errors import NothingToRead
from moe_probe.files import owned_folder
from moe_probe.forward.resuming import Resuming
from moe_probe.forward.running import SPILL_BYTES, Running
from moe_probe.forward.sharing import Base, Expected, Run, Tail, Variant
from moe_probe.forward.spill import Spill
from moe_probe.intervene.choosing import OnExperts
from moe_probe.intervene.measured.measures import Measures, measured, next_losses
from moe_probe.model import MoEModel
from moe_probe.parallel import map_items
from moe_probe.progress import reporting
from moe_probe.routing import Intervention
from moe_probe.texts.corpus import Corpus

LOGIT_VALUES = 1 << 25  # of the model's output that a run holds: places x vocabulary
Jobs = Sequence[tuple[int, int]]


class Collecting(Protocol):
    """Anything that adds up measures, and is saved and resumed like an analysis."""

    def add(self, measures: Measures) -> None: ...

    def state(self) -> Mapping[str, np.ndarray]: ...

    def restore(self, state: dict[str, np.ndarray]) -> None: ...

    def merge(self, other: Any) -> None: ...


class Stateless:
    """A source without a state to save."""

    def state(self) -> Mapping[str, np.ndarray]:
        return {}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Does nothing, because there is no state."""


@dataclass
class BaseRun:
    """The unedited run.

    Attributes:
        total: negative log-likelihood of each document's predicted tokens, summed, nats, (documents,).
        chosen: number of choices of each expert, (E,), by MoE layer.
    """

    corpus: Corpus
    experts: Mapping[int, int]
    total: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.total = np.zeros(len(self.corpus.documents))
        self.chosen = {layer: np.zeros(count, np.int64) for layer, count in self.experts.items()}
        self.place = {document.number: place for place, document in enumerate(self.corpus.documents)}

    def state(self) -> Mapping[str, np.ndarray]:
        return {"total": self.total, **{str(layer): counts for layer, counts in self.chosen.items()}}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self.total = state["total"]
        self.chosen = {layer: state[str(layer)] for layer in self.chosen}

    def merge(self, other: BaseRun) -> None:
        """Adds the run of other documents."""
        for number, place in other.place.items():
            self.total[self.place[number]] = other.total[place]
        for layer, counts in other.chosen.items():
            self.chosen[layer] += counts

    def add(self, base: Base, losses: Sequence[float]) -> None:
        """Adds a batch's run."""
        for document, loss in zip(base.batch.documents, losses, strict=True):
            self.total[self.place[document.number]] = loss
        for layer, index in base.index.items():
            mask = base.batch.attention_mask().bool().flatten()
            index = index.cpu()[mask.repeat_interleave(len(index) // len(mask))]
            self.chosen[layer] += torch.bincount(index.flatten(), minlength=len(self.chosen[layer])).numpy()


def unedited_run(source: Running) -> BaseRun:
    """Returns an empty record of a model's unedited run."""
    model = source.model
    return BaseRun(source.corpus, {index: model.layer(index).num_experts for index in model.moe_layers})


def check_predictable(corpus: Corpus) -> None:
    """Raises an error if the texts have no token to predict.

    Raises:
        NothingToRead: every document has one token.
    """
    if all(len(document.ids) < 2 for document in corpus.documents):
        raise NothingToRead("Every text is a single token, so nothing is predicted; pass texts of two tokens or more.")


def first_layer(model: MoEModel, edits: Sequence[Intervention]) -> int:
    """The first layer that is edited."""
    return min(layer for each in edits for layer in each.acts_in(model.moe_layers))


def direct_variant(model: MoEModel, edits: Sequence[Intervention]) -> Variant:
    """The edits, with routing replayed after the first edited layer and their own requests to routers there removed."""
    first = first_layer(model, edits)
    later = frozenset(layer for layer in model.moe_layers if layer > first)
    acting = (each for each in edits if not (each.decides and min(each.acts_in(model.moe_layers)) > first))
    return Variant(tuple(acting), later)


@dataclass
class Experiment:
    """A model on a corpus, and its edited variants.

    With the model in memory, batches run one after the other, and edited runs start at the edited layer from the hidden
    states of the unedited run. Layerwise, all runs of all batches pass through a layer while it is in memory.

    Attributes:
        source: the model and its texts.
        variants: the edited variants.
        collecting: adds up the measures.
    """

    source: Running
    variants: Sequence[Variant]
    collecting: Collecting

    def __post_init__(self) -> None:
        source, self.model = self.source, self.source.model
        self.unedited = unedited_run(source)
        self.row_tokens = max(1, min(source.batch_tokens, LOGIT_VALUES // source.vocab_size))
        self.batches = list(source.corpus.batches(self.row_tokens))
        self.starts = [first_layer(self.model, variant.edits) for variant in self.variants]
        self.resuming = Resuming(self.model, source.layerwise, source.interventions, self.starts)

    @torch.no_grad()
    def run(self, checkpoint_dir: str | Path | None, progress: bool, identity: Mapping[str, Any]) -> None:
        """Runs everything, or resumes from a saved state."""
        saved = None if checkpoint_dir is None else SavedStates(checkpoint_dir, identity)
        states = [self.collecting, self.unedited]
        done = 0 if saved is None else saved.load(Stateless(), states)
        layerwise = self.source.layerwise
        total = len(self.batches) * (1 if layerwise else len(set(self.starts)) + 1)
        steps = (self._by_layer if layerwise else self._by_batch)(done)
        with self.resuming.hooked(), reporting("edited layers x batches", total, progress) as advance, closing(steps):
            for step in steps:
                advance()
                if saved is not None and step > done:
                    saved.save_if_due(Stateless(), states, step)
        if saved is not None:
            saved.save(Stateless(), states, total)

    def _by_batch(self, done: int) -> Generator[int]:
        """Runs a step per batch for the unedited run and one per layer where edits begin; yields the steps' numbers."""
        starts, step = sorted(set(self.starts)), 0
        for batch in self.batches:
            if step + len(starts) < done:
                yield from range(step + 1, step + len(starts) + 2)
                step += len(starts) + 1
                continue
            base = Base(batch)
            with self._begun([base]):
                self.resuming.finish(base)
                self._measure_base(base, new=step >= done)
                for start in (None, *starts):
                    step += 1
                    if start is not None and step > done:
                        self._run_tails(base, start)
                    yield step

    def _run_tails(self, base: Base, start: int) -> None:
        for tail, numbers in self._tails(base, start):
            with self._begun([tail]):
                self.resuming.finish(tail)
                self._measure(tail, numbers)

    def _by_layer(self, done: int) -> Generator[int]:
        """Runs a step per batch, whose runs all end in the last layer; yields the steps' numbers."""
        yield from range(1, done + 1)
        bases = [Base(batch) for batch in self.batches[done:]]
        tails: list[tuple[Tail, np.ndarray]] = []
        last = self.resuming.layers - 1
        with ExitStack() as stack:
            for index in self.resuming.each_layer():
                if index == 0:
                    stack.enter_context(self._begun(bases))
                for number, base in enumerate(bases):
                    self.resuming.advance(base)
                    new = list(self._tails(base, index))
                    stack.enter_context(self._begun([tail for tail, _ in new]))
                    tails += new
                    of_base = [each for each in tails if each[0].base is base]
                    if index == last:
                        self._measure_last(base, of_base)
                        yield done + number + 1
                    else:
                        for tail, _ in of_base:
                            self.resuming.advance(tail)
                    base.left.pop(index - 1, None)
                    base.inside.pop(index, None)
                    base.ran.pop(index, None)

    def _measure_last(self, base: Base, tails: Sequence[tuple[Tail, np.ndarray]]) -> None:
        """Runs the last layer and the head for one batch, measures the outputs, and frees them."""
        self._measure_base(base, new=True)
        for tail, numbers in tails:
            self.resuming.advance(tail)
            self._measure(tail, numbers)
            tail.forward.output = None
        base.expected = None

    @contextmanager
    def _begun(self, runs: Sequence[Run]) -> Iterator[None]:
        """A context in which passes wait before their first layer; afterwards they are closed."""
        with ExitStack() as stack:
            for run in runs:
                self.resuming.begin(run, Spill() if self._spills else None)
                stack.enter_context(closing(run.forward))
            yield

    @property
    def _spills(self) -> bool:
        """Whether hidden states wait on disk, because layerwise those of all runs of all batches may exceed memory."""
        places = sum(rows * length for rows, length in (batch.shape for batch in self.batches))
        width = self.model.hidden_size * self.model.dtype.itemsize
        return self.source.layerwise and places * width * (1 + len(self.variants)) > SPILL_BYTES

    def _tails(self, base: Base, start: int) -> Iterator[tuple[Tail, np.ndarray]]:
        """Yields edited runs that begin at a layer, each with as many rows as fit, and their rows' variants."""
        waiting: list[tuple[int, int]] = []
        for job in self._jobs(base, start):
            if waiting and (len(waiting) + 1) * len(base.batch.documents[job[0]].ids) > self.row_tokens:
                yield self._tail(base, start, waiting)
                waiting = []
            waiting.append(job)
        if waiting:
            yield self._tail(base, start, waiting)

    def _tail(self, base: Base, start: int, jobs: Jobs) -> tuple[Tail, np.ndarray]:
        rows, numbers = np.asarray(jobs).T
        return Tail(base, start, torch.from_numpy(rows), [self.variants[number] for number in numbers]), numbers

    def _jobs(self, base: Base, start: int) -> Jobs:
        """Pairs (row, variant) that run from a layer on, without rows that a variant cannot change."""
        lengths = [len(document.ids) for document in base.batch.documents]
        numbers = [number for number, at in enumerate(self.starts) if at == start]
        jobs = [(row, number) for number in numbers for row in self._touched(base, self.variants[number])]
        return sorted(jobs, key=lambda job: (lengths[job[0]], job[0], job[1]))

    def _touched(self, base: Base, variant: Variant) -> Sequence[int]:
        """Documents of a batch that a variant may change: all, unless every edit needs its experts to be chosen."""
        documents, _ = base.batch.shape
        touched = np.zeros(documents, bool)
        for edit in variant.edits:
            if not isinstance(edit, OnExperts) or not edit.of_chosen or edit.on_shared or edit.layer not in base.index:
                return range(documents)  # it acts on others too, or in a layer that has not run yet
            layer = self.model.layer(edit.layer)
            chosen = torch.isin(base.index[edit.layer].cpu(), torch.tensor(edit.routed(layer))).any(1)
            mask = base.batch.attention_mask().bool().flatten().repeat_interleave(layer.subtokens)
            touched |= (chosen & mask).reshape(documents, -1).any(1).numpy()
        return np.flatnonzero(touched).tolist()

    def _measure_base(self, base: Base, new: bool) -> None:
        logits = base.forward.output.logits
        mask = base.batch.attention_mask().flatten().bool().to(logits.device)
        require_finite("logits", logits.flatten(0, 1)[mask], base.batch.tokens())
        base.expected, base.forward.output = Expected.of(logits), None
        if new:
            self.unedited.add(base, next_losses(base.expected.log_probability, base.batch).sum(1).tolist())

    def _measure(self, tail: Tail, numbers: np.ndarray) -> None:
        logits = tail.forward.output.logits
        assert tail.base.expected is not None
        measures = measured(tail, numbers, tail.base.expected, logits)
        if not np.isfinite(measures.kl.sum() + measures.loss_change.sum()):
            mask = tail.batch.attention_mask().flatten().bool().to(logits.device)
            require_finite("logits", logits.flatten(0, 1)[mask], tail.batch.tokens())
        self.collecting.add(measures)


def identity(source: Running, variants: Sequence[Variant], name: str) -> dict[str, Any]:
    """A description of the experiment, which must equal that of a saved state."""
    return {
        "measured": name,
        "source": source.identity(),
        "documents": [(document.number, document.ids, document.label) for document in source.corpus.documents],
        "variants": [(repr(variant.edits), sorted(variant.replayed)) for variant in variants],
    }


def measure(
    source: Running,
    variants: Sequence[Variant],
    collecting: Callable[[Corpus], Collecting],
    options: Mapping[str, Any],
    name: str,
) -> tuple[Any, BaseRun]:
    """Runs all variants, with documents split over workers, or resumes an interrupted run.

    Args:
        source: the unedited model and its texts.
        variants: the edited variants.
        collecting: makes the object that adds up measures of some texts.
        options: `checkpoint_dir`, `n_jobs` and `progress` (see `moe_probe.options.ObserveOptions`).
        name: name of the measurement; a saved state of another one is refused.

    Returns:
        The collected measures, and the unedited run.
    """
    folder, jobs = options["checkpoint_dir"], effective_n_jobs(options["n_jobs"])
    parts = list(enumerate(source.split(jobs) if jobs > 1 else [source]))
    shown = options["progress"] and len(parts) == 1
    work = partial(_measure_part, variants=variants, collecting=collecting, folder=folder, name=name, progress=shown)
    with nullcontext() if folder is None else owned_folder(folder):
        done = map_items(work, parts, jobs, "parts") if len(parts) > 1 else [work(parts[0])]
    collected, unedited = collecting(source.corpus), unedited_run(source)
    for part, base in done:
        collected.merge(part)
        unedited.merge(base)
    return collected, unedited


def _measure_part(
    part: tuple[int, Running], *, variants: Any, collecting: Any, folder: Any, name: str, progress: bool
) -> tuple[Collecting, BaseRun]:
    number, source = part
    experiment = Experiment(source, variants, collecting(source.corpus))
    saved = None if folder is None else Path(folder) / f"part-{number}"
    experiment.run(saved, progress, identity(source, variants, name))
    return experiment.collecting, experiment.unedited
