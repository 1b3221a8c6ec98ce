"""`reproduce` makes a paper's figures for any models, and saves their results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, Unpack, cast

import xarray as xr

from moe_probe import comparisons, dynamic
from moe_probe.dynamic.driver import check
from moe_probe.errors import FamilyError, InputError, NoSuchName, NotFitting, WrongType
from moe_probe.figures.album import Album
from moe_probe.figures.papers import find_paper
from moe_probe.figures.recipes import FromModel, FromModels, FromTexts, FromWeights, Recipe, Subject
from moe_probe.figures.saving import FileKind, Format
from moe_probe.forward.running import Running
from moe_probe.model import MoEModel, Openable, load
from moe_probe.options import REPRODUCE_OPTIONS, TEXT_OPTIONS, RunOptions, check_arguments, completed
from moe_probe.plotting import Which
from moe_probe.results import load_result, save
from moe_probe.shown import PlainConsole, file_name
from moe_probe.signatures import checked
from moe_probe.texts.corpus import Corpus
from moe_probe.texts.reading import Texts, read_rows

OF_ROWS = ("labels", "unit", "column", "split")
TOGETHER = "compared"  # the folder of figures that show several models
NO_TEXTS = "This figure needs texts; pass texts."
LIBRARIES = ("moe-probe", "torch", "transformers")  # other versions of these may give other numbers


@checked
def reproduce(
    paper: str,
    models: Openable | Sequence[Openable] | Mapping[str, Openable],
    out: str | Path,
    texts: Texts | None = None,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    png: bool = False,
    which: Which = "main",
    format: Format = "pdf",
    dpi: int = 300,
    **run_options: Unpack[RunOptions],
) -> Album:
    """Makes every figure of a paper that the models support, by default as vector PDF, and saves their results.

    Results are saved below `out`; a second call computes only those that are missing for the same model (by its
    fingerprint and dtype), texts, parameters and versions. Figures of single tokens show the beginning of the first
    text.

    Args:
        paper: `look-into-moes` (arXiv 2406.18219), `mh-moe` (2404.15045) or `moe-plus-plus` (2410.07348).
        models: checkpoint folders, hub ids, live transformers models or `MoEModel`s; one, a list, or a mapping from
            labels.
        out: the output folder.
        texts: a file of texts, or a list of texts or token ids; without texts, figures that need them are listed as
            missing.
        options: arguments of the dynamic analyses by name, such as `{"ffn_experts_per_token": {"min_count": 2}}`.
        png: write PNG files besides those of `format`.
        which: `main`: all figures, those of single layers for six evenly spaced layers; `all`: for all layers; `none`:
            no figures, only results.
        format: format of the files: `pdf`, `png` or `svg`.
        dpi: resolution in dots per inch, of PNG files and of rasterized parts of the others.
        run_options: those of `dynamic.run`; a `baseline` is used if its shapes are those of an expert.

    Returns:
        The album: the figures, and the missing ones with the reason; `manifest.json` holds the same lists.

    Raises:
        NoSuchName: there is no such paper, analysis or option.
        InputError: another argument does not fit, or two models have one name.
        CheckpointError: a model's files are missing or damaged.
        WeightError: a model's weights are missing or damaged.
        MachineError: the disk is full.

    Examples:
        >>> from moe_probe import figures
        >>> made = figures.reproduce("moe-plus-plus", "ckpt/tiny-moe-plus-plus", "out", ["A text."])  # doctest: +SKIP
        >>> [entry["file"] for entry in made.figures][:1]  # doctest: +SKIP
        ['figures/tiny-moe-plus-plus/table1_complexity.pdf']
    """
    plan, options, asked = find_paper(paper), options or {}, completed(run_options, REPRODUCE_OPTIONS, "reproduce")
    _check_options(options, plan.recipes)
    opened = named(models)
    layers, reading = asked.pop("layers"), {name: asked.pop(name) for name in TEXT_OPTIONS}
    dense = None if asked["baseline"] is None else _dense(asked["baseline"])
    maker = Maker(
        album=Album(plan.name, Path(out), png, asked["n_jobs"], which, FileKind(format, dpi)),
        texts=None if texts is None else read_rows(texts, **{name: reading.pop(name) for name in OF_ROWS}),
        options=options,
        reading=reading,
        running={name: value for name, value in asked.items() if name != "baseline"},
        report=PlainConsole(quiet=not asked["progress"]).print,
    )
    for label, model in opened.items():
        subject = Subject(model, maker.fitting(label, dense, model), model.select_layers(layers), asked["n_jobs"])
        maker.make_single(label, subject, plan.recipes)
    maker.make_compared(opened, layers, plan.recipes)
    maker.album.finish()
    return maker.album


def named(models: Openable | Sequence[Openable] | Mapping[str, Openable]) -> dict[str, MoEModel]:
    """Opens the models, by label or name.

    Raises:
        NotFitting: there is no model, or two have one name.
    """
    if isinstance(models, Mapping):
        opened = {str(label): load(model) for label, model in models.items()}
    else:
        listed = models if isinstance(models, list | tuple) else [models]
        several = [load(cast(Openable, model)) for model in listed]
        opened = {model.name.replace("/", "--"): model for model in several}
        if len(opened) < len(several):
            raise NotFitting("Two models have one name; pass labels for them: {label: model}.")
    if not opened:
        raise NotFitting("models is empty; pass at least one model.")
    folders = [file_name(label) for label in (*opened, TOGETHER)]
    if len({folder.lower() for folder in folders}) < len(folders):
        raise NotFitting(
            f"The labels {', '.join(opened)} and {TOGETHER!r}, the folder of comparisons, give one folder twice; "
            "pass labels that differ in more than their case."
        )
    return opened


def same_shape(dense: MoEModel, model: MoEModel) -> bool:
    """Whether a dense model's FFN has the shape of the model's experts."""
    layer = model.layer(model.moe_layers[0]) if model.moe_layers else None
    return (
        layer is not None
        and (dense.hidden_size, dense.num_layers) == (model.hidden_size, model.num_layers)
        and dense.layer(layer.index).intermediate_size == layer.intermediate_size
        and dense.config.vocab_size == model.config.vocab_size
    )


def _dense(baseline: Openable) -> MoEModel:
    model = load(baseline)
    if model.moe_layers:
        raise NotFitting(
            f"The baseline {model.name} is a Mixture-of-Experts model; pass a dense model, or omit baseline=."
        )
    return model


@dataclass
class Maker:
    """Makes the figures of a paper, one after the other.

    Attributes:
        album: the album that receives them.
        texts: the texts as they were passed.
        options: arguments by analysis name.
        reading: how to read texts; the arguments of `make_corpus`.
        running: how to run models; the arguments of `dynamic.run`.
        report: prints a line.
        corpora: each model's corpus.
    """

    album: Album
    texts: Texts | None
    options: Mapping[str, Mapping[str, Any]]
    reading: dict[str, Any]
    running: dict[str, Any]
    report: Callable[[str], None]
    corpora: dict[str, Corpus | None] = field(default_factory=dict)

    def fitting(self, label: str, dense: MoEModel | None, model: MoEModel) -> MoEModel | None:
        """The baseline if it fits the model, else None."""
        if dense is None or same_shape(dense, model):
            return dense
        self.report(f"{label}: the baseline {dense.name} has other shapes and is not used.")
        return None

    def make_single(self, label: str, subject: Subject, recipes: Sequence[Recipe]) -> None:
        """Makes all figures of one model."""
        corpus = None if self.texts is None else dynamic.make_corpus(subject.model, self.texts, **self.reading)
        self.corpora[label] = corpus
        results: dict[str, xr.Dataset] = {}
        for recipe, dataset in self._results(label, subject, corpus, recipes):
            results[recipe.name] = dataset
            self.album.add(recipe, label, self._path(label, recipe), dataset, results)

    def make_compared(
        self, models: Mapping[str, MoEModel], layers: Sequence[int] | int | None, recipes: Sequence[Recipe]
    ) -> None:
        """Makes all figures that compare several models."""
        results: dict[str, xr.Dataset] = {}
        for recipe in (recipe for recipe in recipes if isinstance(recipe, FromModels)):
            if len(models) < 2:
                self.album.cannot(recipe, TOGETHER, "This figure compares models, and there is one; pass at least two.")
                continue
            if None in self.corpora.values():
                self.album.cannot(recipe, TOGETHER, NO_TEXTS)
                continue
            try:
                if recipe.name not in results:
                    results[recipe.name] = self._compared(recipe, models, layers)
            except (InputError, FamilyError) as error:
                self.album.cannot(recipe, TOGETHER, str(error))
            else:
                self.album.add(recipe, TOGETHER, self._path(TOGETHER, recipe), results[recipe.name], results)

    def _compared(
        self, recipe: FromModels, models: Mapping[str, MoEModel], layers: Sequence[int] | int | None
    ) -> xr.Dataset:
        analyses = [recipe.analysis(**self.options.get(recipe.options, {}))] if recipe.analysis else []
        request = [recipe.name, layers, *((label, identity(m)) for label, m in models.items())]
        request += [analysis.parameters() for analysis in analyses]
        request += [corpus and corpus.fingerprint for corpus in self.corpora.values()]
        saved = self._saved(TOGETHER, recipe, request)
        if saved is not None:
            return saved
        computed = recipe.compute(models, self.texts, *analyses, layers=layers, **self.reading, **self.running)
        return self._keep(TOGETHER, recipe, request, computed)

    def _results(
        self, label: str, subject: Subject, corpus: Corpus | None, recipes: Sequence[Recipe]
    ) -> Iterator[tuple[Recipe, xr.Dataset]]:
        for recipe in sorted(recipes, key=lambda one: isinstance(one, FromModel)):
            try:
                if isinstance(recipe, FromWeights):
                    yield recipe, self._from_weights(label, recipe, subject)
                elif isinstance(recipe, FromModel):
                    yield recipe, self._from_model(label, recipe, subject, corpus)
            except (InputError, FamilyError) as error:
                self.album.cannot(recipe, label, str(error))
        of_texts = [recipe for recipe in recipes if isinstance(recipe, FromTexts)]
        for tokens, group in groupby(sorted(of_texts, key=lambda one: one.tokens or 0), key=lambda one: one.tokens):
            if corpus is None:
                for recipe in group:
                    self.album.cannot(recipe, label, NO_TEXTS)
            else:
                part = corpus if tokens is None else corpus.beginning(tokens)
                yield from self._from_texts(label, subject, part, list(group))

    def _from_weights(self, label: str, recipe: FromWeights, subject: Subject) -> xr.Dataset:
        request = [recipe.name, *self._subject(subject)]
        saved = self._saved(label, recipe, request)
        return self._keep(label, recipe, request, recipe.compute(subject)) if saved is None else saved

    def _from_model(self, label: str, recipe: FromModel, subject: Subject, corpus: Corpus | None) -> xr.Dataset:
        if corpus is None:
            raise NotFitting(NO_TEXTS)
        arguments = self.options.get(recipe.name, {})
        request = [recipe.name, *self._subject(subject), corpus.fingerprint, arguments]
        saved = self._saved(label, recipe, request)
        if saved is not None:
            return saved
        computed = recipe.compute(subject.model, corpus, **arguments, layers=subject.layers, **self.running)
        return self._keep(label, recipe, request, computed)

    def _from_texts(
        self, label: str, subject: Subject, corpus: Corpus, recipes: Sequence[FromTexts]
    ) -> Iterator[tuple[Recipe, xr.Dataset]]:
        """Results of recipes with the same texts: saved ones, and the others computed in one pass."""
        wanted: list[Wanted] = []
        for recipe in recipes:
            try:
                analysis = recipe.analysis(subject, **self.options.get(recipe.name, {}))
                check_analysis(analysis, subject, corpus)
            except (InputError, FamilyError) as error:
                self.album.cannot(recipe, label, str(error))
                continue
            request = [recipe.name, *self._subject(subject), corpus.fingerprint, analysis.parameters()]
            saved = self._saved(label, recipe, request)
            if saved is None:
                wanted.append(Wanted(recipe, analysis, request))
            else:
                yield recipe, saved
        for together in passes(wanted):
            yield from self._run(label, subject, corpus, together)

    def _run(
        self, label: str, subject: Subject, corpus: Corpus, together: Sequence[Wanted]
    ) -> Iterator[tuple[Recipe, xr.Dataset]]:
        """Results of one pass, all of which are saved before the first one is drawn."""
        analyses = [wanted.analysis for wanted in together]
        self.report(f"{label}: running {corpus.num_tokens:,} tokens for {', '.join(a.name for a in analyses)}")
        running = {**self.running, "layers": subject.layers, "baseline": subject.baseline}
        try:
            results = dynamic.run(subject.model, corpus, analyses, **running)
        except (InputError, FamilyError) as error:
            for wanted in together:
                self.album.cannot(wanted.recipe, label, str(error))
            return
        saved = [self._keep(label, one.recipe, one.request, results[one.analysis.name]) for one in together]
        yield from zip([one.recipe for one in together], saved, strict=True)

    def _subject(self, subject: Subject) -> list[Any]:
        """The facts that identify this model and the way in which it is analyzed."""
        return [identity(subject.model), subject.layers, subject.baseline and identity(subject.baseline)]

    def _path(self, label: str, recipe: Recipe) -> Path:
        return self.album.folder / "results" / file_name(label) / f"{recipe.name}.nc"

    def _saved(self, label: str, recipe: Recipe, request: Sequence[Any]) -> xr.Dataset | None:
        """The result of an earlier call with exactly the same request, if there is one."""
        path = self._path(label, recipe)
        if not path.is_file():
            return None
        try:
            saved = load_result(path)
        except InputError as error:
            self.report(f"{label}: {recipe.name} is computed again: {error}")
            return None
        if saved.attrs.get("request") != digest(request):
            return None
        self.report(f"{label}: {recipe.name} exists already")
        return saved

    def _keep(self, label: str, recipe: Recipe, request: Sequence[Any], dataset: xr.Dataset) -> xr.Dataset:
        labeled = dataset.assign_attrs(request=digest(request))
        save(labeled, self._path(label, recipe))
        self.report(f"{label}: {recipe.name} is done")
        return labeled


@dataclass(frozen=True)
class Wanted:
    """An analysis that has to run, the recipe that needs it, and the request that identifies its result."""

    recipe: FromTexts
    analysis: dynamic.Analysis
    request: list[Any]


def passes(wanted: Sequence[Wanted]) -> list[list[Wanted]]:
    """Analyses that can share a pass: all, unless two have one name."""
    names = {one.analysis.name for one in wanted}
    return [list(wanted)] if wanted and len(names) == len(wanted) else [[one] for one in wanted]


def check_analysis(analysis: dynamic.Analysis, subject: Subject, corpus: Corpus) -> None:
    """Raises an error, before the pass, if an analysis cannot run on this model and these texts."""
    layers = {index: subject.model.layer(index) for index in subject.layers}
    check(Running(subject.model, corpus, layers, subject.baseline), [analysis])


def identity(model: MoEModel) -> list[Any]:
    """The facts about a model on which its results depend, besides texts and parameters."""
    return [model.fingerprint, model.dtype, {name: version(name) for name in LIBRARIES}]


def digest(request: Any) -> str:
    """A hash that identifies a request."""
    return hashlib.sha256(json.dumps(request, default=str, sort_keys=True).encode()).hexdigest()[:16]


def _check_options(options: Mapping[str, Mapping[str, Any]], recipes: Sequence[Recipe]) -> None:
    known: dict[str, Callable[..., Any]] = {**dynamic.names(), **comparisons.names()}
    names = [recipe.name for recipe in recipes if isinstance(recipe, FromTexts | FromModel) and recipe.name in known]
    for name, arguments in options.items():
        if name not in names:
            raise NoSuchName.among("figure of this paper that takes options as", name, names)
        if not isinstance(arguments, Mapping):
            raise WrongType(f"options[{name!r}]={arguments!r} is not a mapping; pass {{'argument': value}}.")
        check_arguments(name, known[name], arguments, besides=("baseline", "model", "texts", "options"))
