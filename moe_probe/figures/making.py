"""`reproduce`: a paper's figures of any models, with what they were made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import xarray as xr
from rich.console import Console

from moe_probe import dynamic
from moe_probe.errors import FamilyError, InputError
from moe_probe.figures.album import Reproduction
from moe_probe.figures.papers import find_paper
from moe_probe.figures.recipes import Given, Kind, OfModels, OfTexts, OfWeights
from moe_probe.model import MoEModel, Source, load
from moe_probe.options import check_arguments
from moe_probe.results import load_result, save
from moe_probe.texts.corpus import Corpus, Texts

TOGETHER = "compared"  # the folder of figures that show several models


def reproduce(
    paper: str,
    models: Source | Sequence[Source] | Mapping[str, Source],
    out: str | Path,
    texts: Texts | None = None,
    *,
    baseline: Source | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    png: bool = False,
    layers: Sequence[int] | int | None = None,
    labels: Sequence[str] | str | None = None,
    column: str | None = None,
    max_length: int | None = None,
    batch_tokens: int = 4096,
    execution: str = "auto",
    n_jobs: int = 1,
    progress: bool = True,
) -> Reproduction:
    """Every figure of a paper that the models allow, as vector PDF, from results that are computed once.

    Results are saved below `out`; a second call computes only what is not there yet for the same model, texts and
    parameters. A figure of single tokens shows the beginning of the first text.

    Args:
        paper: `look-into-moes` (arXiv 2406.18219), `mh-moe` (2404.15045) or `moe-plus-plus` (2410.07348).
        models: one or several of what `moe_probe.load` accepts; by label, or under their own names.
        out: the folder.
        texts: as for `dynamic.run`; figures that need texts are listed as missing without.
        baseline: a dense model, which takes part where its shapes are those of an expert.
        options: arguments of the dynamic analyses by name, such as `{"ffn_experts_per_token": {"min_count": 2}}`.
        png: PNG files too, beside the PDF files.
        layers: as for `dynamic.run`.
        labels: as for `dynamic.run`.
        column: as for `dynamic.run`.
        max_length: as for `dynamic.run`.
        batch_tokens: as for `dynamic.run`.
        execution: as for `dynamic.run`.
        n_jobs: as for `dynamic.run`.
        progress: say what is being done.

    Returns:
        What was made, and what could not be made and why; it is also written to `manifest.json`.

    Raises:
        InputError: there is no such paper, option or layer, or two models have one name.
        CheckpointError, WeightError: a model's files are missing or damaged.

    Examples:
        >>> from moe_probe import figures
        >>> made = figures.reproduce("moe-plus-plus", "ckpt/tiny-moe-plus-plus", "out", ["A text."])  # doctest: +SKIP
        >>> [entry["file"] for entry in made.figures][:1]  # doctest: +SKIP
        ['figures/tiny-moe-plus-plus/table1_complexity.pdf']
    """
    plan, opened, options = find_paper(paper), named(models), options or {}
    _check_options(options, plan.kinds)
    work = Work(
        made=Reproduction(plan.name, Path(out), png, n_jobs),
        texts=texts,
        options=options,
        reading={"labels": labels, "column": column, "max_length": max_length},
        running={"batch_tokens": batch_tokens, "execution": execution, "n_jobs": n_jobs, "progress": progress},
        say=Console(quiet=not progress).print,
    )
    dense = None if baseline is None else load(baseline)
    for label, model in opened.items():
        fitting = dense if dense is not None and fits(dense, model) else None
        if fitting is not dense:
            work.say(f"{label}: {dense.name} has other shapes and takes no part.")
        given = Given(model, fitting, model.select_layers(layers), n_jobs)
        corpus = None if texts is None else dynamic.make_corpus(model, texts, **work.reading)
        work.corpora[label] = corpus
        work.of_one(label, given, corpus, plan.kinds)
    work.of_several(opened, layers, plan.kinds)
    work.made.finish()
    return work.made


def named(models: Source | Sequence[Source] | Mapping[str, Source]) -> dict[str, MoEModel]:
    """Each model under its label or name.

    Raises:
        InputError: there is none, or two have one name.
    """
    if isinstance(models, Mapping):
        found = {str(label): load(model) for label, model in models.items()}
    else:
        several = models if isinstance(models, list | tuple) else [models]
        opened = [load(model) for model in several]
        found = {model.name.replace("/", "--"): model for model in opened}
        if len(found) < len(opened):
            raise InputError("Two models have one name; give labels for them: {label: model}.")
    if not found:
        raise InputError("No model is given; give at least one.")
    return found


def fits(dense: MoEModel, model: MoEModel) -> bool:
    """Whether a dense model's FFN has the shape of the model's experts."""
    layer = model.layer(model.moe_layers[0]) if model.moe_layers else None
    return (
        layer is not None
        and (dense.hidden_size, dense.num_layers) == (model.hidden_size, model.num_layers)
        and dense.layer(layer.index).intermediate_size == layer.intermediate_size
        and dense.config.vocab_size == model.config.vocab_size
    )


@dataclass
class Work:
    """A reproduction on its way.

    Attributes:
        made: what is there.
        texts: as they were given.
        options: arguments by analysis name.
        reading: how texts are read; the arguments of `make_corpus`.
        running: how models run; arguments of `dynamic.run`.
        say: prints a line.
        corpora: each model's texts.
    """

    made: Reproduction
    texts: Texts | None
    options: Mapping[str, Mapping[str, Any]]
    reading: dict[str, Any]
    running: dict[str, Any]
    say: Any
    corpora: dict[str, Corpus | None] = field(default_factory=dict)

    def of_one(self, label: str, given: Given, corpus: Corpus | None, kinds: Sequence[Kind]) -> None:
        """All figures of one model."""
        results: dict[str, xr.Dataset] = {}
        for kind, dataset in self._results(label, given, corpus, kinds):
            results[kind.name] = dataset
            self.made.add(kind, label, self._path(label, kind), dataset, results)

    def of_several(self, models: Mapping[str, MoEModel], layers: Any, kinds: Sequence[Kind]) -> None:
        """All figures of several models together."""
        found: dict[str, xr.Dataset] = {}
        for kind in (kind for kind in kinds if isinstance(kind, OfModels)):
            if len(models) < 2:
                self.made.cannot(kind, TOGETHER, "It compares models; give at least two.")
            elif None in self.corpora.values():
                self.made.cannot(kind, TOGETHER, "It needs texts.")
            else:
                request = [kind.name, layers, *((label, m.fingerprint, m.dtype) for label, m in models.items())]
                request += [corpus.fingerprint for corpus in self.corpora.values()]
                if kind.name not in found:
                    found[kind.name] = self._saved(TOGETHER, kind, models.values(), request) or self._keep(
                        TOGETHER, kind, request, self._compare(kind, models, layers)
                    )
                self.made.add(kind, TOGETHER, self._path(TOGETHER, kind), found[kind.name], found)

    def _compare(self, kind: OfModels, models: Mapping[str, MoEModel], layers: Any) -> xr.Dataset:
        return kind.compute(models, self.texts, layers=layers, **self.reading, **self.running)

    def _results(
        self, label: str, given: Given, corpus: Corpus | None, kinds: Sequence[Kind]
    ) -> Iterator[tuple[Kind, xr.Dataset]]:
        for kind in (kind for kind in kinds if isinstance(kind, OfWeights)):
            request = [kind.name, given.model.fingerprint, given.layers, given.baseline and given.baseline.fingerprint]
            try:
                found = self._saved(label, kind, [given.model], request) or self._keep(
                    label, kind, request, kind.compute(given)
                )
            except (InputError, FamilyError) as error:
                self.made.cannot(kind, label, str(error))
            else:
                yield kind, found
        of_texts = sorted((kind for kind in kinds if isinstance(kind, OfTexts)), key=lambda kind: kind.tokens or 0)
        for tokens, group in groupby(of_texts, key=lambda kind: kind.tokens):
            if corpus is None:
                for kind in group:
                    self.made.cannot(kind, label, "It needs texts.")
            else:
                part = corpus if tokens is None else corpus.beginning(tokens)
                yield from self._of_texts(label, given, part, list(group))

    def _of_texts(
        self, label: str, given: Given, corpus: Corpus, kinds: Sequence[OfTexts]
    ) -> Iterator[tuple[Kind, xr.Dataset]]:
        """Results of kinds that see the same texts: saved ones, and the others in one pass."""
        wanted: dict[str, tuple[OfTexts, dynamic.Analysis, list]] = {}
        for kind in kinds:
            try:
                analysis = kind.analysis(given, **self.options.get(kind.name, {}))
                analysis.fresh().prepare(given.model, corpus, list(given.layers))
            except (InputError, FamilyError) as error:
                self.made.cannot(kind, label, str(error))
                continue
            dense = given.baseline and given.baseline.fingerprint
            request = [kind.name, given.model.fingerprint, given.layers, dense, corpus.fingerprint]
            request += [analysis.parameters(), given.model.dtype]
            if (found := self._saved(label, kind, [given.model], request)) is not None:
                yield kind, found
            else:
                wanted[kind.name] = kind, analysis, request
        passes = [[item] for item in wanted.values()]
        names = [analysis.name for _, analysis, _ in wanted.values()]
        if passes and len(set(names)) == len(names):
            passes = [list(wanted.values())]
        for together in passes:
            analyses = [analysis for _, analysis, _ in together]
            self.say(f"{label}: running {corpus.num_tokens:,} tokens for {', '.join(a.name for a in analyses)}")
            running = {**self.running, "layers": given.layers, "baseline": given.baseline}
            try:
                results = dynamic.run(given.model, corpus, analyses, **running)
            except (InputError, FamilyError) as error:
                for kind, _, _ in together:
                    self.made.cannot(kind, label, str(error))
                continue
            for kind, analysis, request in together:
                yield kind, self._keep(label, kind, request, results[analysis.name])

    def _path(self, label: str, kind: Kind) -> Path:
        return self.made.folder / "results" / label / f"{kind.name}.nc"

    def _saved(self, label: str, kind: Kind, models: Any, request: Any) -> xr.Dataset | None:
        """The result of an earlier call, if it is of the very same request; never of a model in memory."""
        path = self._path(label, kind)
        if not path.is_file() or any(model.checkpoint is None for model in models):
            return None
        found = load_result(path)
        if found.attrs.get("request") != digest(request):
            return None
        self.say(f"{label}: {kind.name} is there")
        return found

    def _keep(self, label: str, kind: Kind, request: Any, dataset: xr.Dataset) -> xr.Dataset:
        kept = dataset.assign_attrs(request=digest(request))
        save(kept, self._path(label, kind))
        self.say(f"{label}: {kind.name} is made")
        return kept


def digest(request: Any) -> str:
    """Identifies what was asked for."""
    return hashlib.sha256(json.dumps(request, default=str, sort_keys=True).encode()).hexdigest()[:16]


def _check_options(options: Mapping[str, Mapping[str, Any]], kinds: Sequence[Kind]) -> None:
    known = dynamic.analyses()
    names = [kind.name for kind in kinds if isinstance(kind, OfTexts) and kind.name in known]
    for name, given in options.items():
        if name not in names:
            raise InputError(f"No figure of this paper takes options as {name!r}; there are {', '.join(names)}.")
        check_arguments(name, known[name], given, besides=["baseline"])
