"""Routing while a model trains: the numbers of `dynamic.expert_load`, logged by transformers' `Trainer`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from moe_probe import dynamic
from moe_probe.comparisons.side_by_side import Choices, overlap
from moe_probe.model import load
from moe_probe.signatures import Checked, check_number
from moe_probe.texts.reading import Texts

COLD = 0.1  # times the mean load of a layer


@dataclass(eq=False)
class RoutingCallback(Checked, TrainerCallback):
    """Runs the model over the same texts at intervals while it trains, and logs how it routes.

    Logged besides the Trainer's own numbers, each over the observed MoE layers: `routing/entropy`, the lowest entropy
    of the load divided by ln E; `routing/max_violation`, the largest MaxVio (arXiv 2408.15664); `routing/dead`, the
    number of experts that no token chooses; `routing/cold`, the number of experts below 0.1 of their layer's mean load;
    `routing/drift`, the share of tokens whose set of chosen experts differs from that at the start.

    The callback restores the mode (training or evaluation) and the random states, and leaves the weights unchanged.

    Args:
        trainer: the Trainer whose model is observed, and whose `log` is called.
        texts: strings, lists of token ids, a file of texts, a `datasets` dataset or a table on which the model runs:
            enough that an even load gives every expert some tokens.
        every: training steps from one measurement to the next.
        layers: MoE layers; all by default.
        share: largest share of the training time that measurements may take, None for no limit; the callback skips
            those that would take more.
        least_entropy: the callback warns if the entropy of a layer is lower.
        most_drift: the callback warns if the drift is higher.

    Raises:
        OutOfRange: a number is outside its range.

    Examples:
        >>> from transformers import Trainer
        >>> trainer = Trainer(model, arguments, train_dataset=data)  # doctest: +SKIP
        >>> trainer.add_callback(RoutingCallback(trainer, "wiki.txt", every=100))  # doctest: +SKIP
    """

    trainer: Trainer
    texts: Texts
    every: int = 100
    layers: Sequence[int] | int | None = None
    share: float | None = 0.03
    least_entropy: float = 0.5
    most_drift: float = 0.5

    def __post_init__(self) -> None:
        check_number("every", self.every, 1)
        if self.share is not None:
            check_number("share", self.share, 0, 1, whole=False)
        check_number("least_entropy", self.least_entropy, 0, 1, whole=False)
        check_number("most_drift", self.most_drift, 0, 1, whole=False)
        self._start: xr.DataArray | None = None
        self._cost, self._ended = 0.0, time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measures the model before the first step."""
        self._start = None
        self._look(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measures the model every `every` steps, if time allows."""
        affordable = self.share is None or self._cost <= self.share * (time.monotonic() - self._ended)
        if state.global_step % self.every == 0 and affordable:
            self._look(state.global_step)

    def _look(self, step: int) -> None:
        began = time.monotonic()
        numbers = self.measure()
        self.trainer.log(numbers)
        self._warn(numbers, step)
        self._ended = time.monotonic()
        self._cost = self._ended - began

    def measure(self) -> dict[str, float]:
        """The numbers of the current model, by the names under which they are logged."""
        model = load(self.trainer.accelerator.unwrap_model(self.trainer.model), tokenizer=self._tokenizer())
        analyses = [dynamic.ExpertLoad(bootstrap=0, chance=False), Choices()]
        results = dynamic.run(model, self.texts, analyses, layers=self.layers, progress=False)
        ds, chosen = results["expert_load"], results["choices"].index
        start = self._start = chosen if self._start is None else self._start
        relative = ds.selections / ds.selections.mean("expert")
        return {
            "routing/entropy": float(ds.entropy.min()),
            "routing/max_violation": float(ds.max_violation.max()),
            "routing/dead": int((relative == 0).sum()),
            "routing/cold": int(((relative > 0) & (relative < COLD)).sum()),
            "routing/drift": float(np.mean(overlap(start.values, chosen.values) < 1)),
        }

    def _tokenizer(self) -> Any:
        return getattr(self.trainer, "processing_class", None)

    def _warn(self, numbers: dict[str, float], step: int) -> None:
        entropy, drift = numbers["routing/entropy"], numbers["routing/drift"]
        if entropy < self.least_entropy:
            warnings.warn(
                f"Step {step}: the entropy of a layer's load is {entropy:.2f} of that of an even load, below "
                f"least_entropy={self.least_entropy}; a stronger balancing loss makes the load more even.",
                stacklevel=2,
            )
        if drift > self.most_drift:
            warnings.warn(
                f"Step {step}: {drift:.0%} of the tokens choose other experts than at the start, above "
                f"most_drift={self.most_drift}; a lower learning rate of the router reduces the drift.",
                stacklevel=2,
            )
