"""`moe-probe demo`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_probe.cli.commands import compare, dynamic, explore, reproduce, static
from moe_probe.cli.common import Out, console
from moe_probe.errors import NoSuchName

if TYPE_CHECKING:
    import xarray as xr

    from moe_probe.model import MoEModel
    from moe_probe.report import Section

PAPERS = {
    "look-into-moes": ["tiny-mixtral"],
    "mh-moe": ["tiny-mh-moe", "tiny-x-moe"],
    "moe-plus-plus": ["tiny-moe-plus-plus"],
}


def command(
    out: Out = Path("out/demo"),
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A bundled checkpoint; may be repeated. Default: all.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Also draw all figures of all layers, comparisons, and the papers' figures.")
    ] = False,
) -> None:
    """Analyze each bundled checkpoint in one pass over bundled texts; write a page of main figures and an explorer."""
    from joblib import cpu_count

    from moe_probe.report.page import draw_section, write_page

    root, others, drawn = bundled(), max(cpu_count(), 2), []
    texts = str(root / "texts.jsonl")
    with ThreadPoolExecutor(1) as drawing:  # other processes draw a checkpoint while this one analyzes the next
        for model in mixtures(root, only):
            with timed(model.name):
                drawn.append(drawing.submit(draw_section, section(model, root, texts, out), out, others))
        with timed("page"):
            sections = [each.result() for each in drawn]
            page = write_page(out, "moe_probe demo", "The main figure of every analysis, by checkpoint.", sections)
    with timed("explorer"):
        explorer = out / "explorer.html"
        explore.command([str(root / "tiny-mixtral")], explorer, texts, labels="domain", progress=False)
    if every:
        with timed("all figures"):
            draw_everything(root, texts, out / "all")
    console.print(f"The main figures:\n  {page}\nThe explorer, for any browser:\n  {explorer}", soft_wrap=True)


def bundled() -> Path:
    """The folder of the tiny checkpoints and their texts."""
    package = Path(str(files("moe_probe")))
    return next(folder for folder in (package / "ckpt", package.parent / "ckpt") if folder.is_dir())


def mixtures(root: Path, only: list[str] | None = None) -> list[MoEModel]:
    """The bundled checkpoints that have experts.

    Raises:
        NoSuchName: a requested checkpoint is not bundled.
    """
    from moe_probe.model import load

    models = {path.name: load(path) for path in sorted(root.glob("tiny-*"))}
    models = {name: model for name, model in models.items() if model.moe_layers}
    for name in only or ():
        if name not in models:
            raise NoSuchName.among("bundled checkpoint", name, models)
    return [models[name] for name in only or models]


@contextmanager
def timed(step: str) -> Iterator[None]:
    """A context that prints the name and duration of a step at its end."""
    began = time.monotonic()
    yield
    console.print(f"{step:24} {time.monotonic() - began:5.1f} s")


def section(model: MoEModel, root: Path, texts: str, out: Path) -> Section:
    """Makes the main figure of every analysis of a checkpoint, and saves the results."""
    from moe_probe import plotting
    from moe_probe.facts import facts
    from moe_probe.figures import result_stem
    from moe_probe.report import Measure, Section
    from moe_probe.results import save

    figures = []
    for ds in results(model, root, texts):
        stem = f"{model.name}/{result_stem(ds)}"
        save(ds, out / f"{stem}.nc")
        if ds.attrs["analysis"] in plotting.names():
            figures.append((stem, ds.attrs["analysis"].replace("_", " "), plotting.plot(ds)))
    return Section(model.name, [Measure(name, value, value, "") for name, value in facts(model)], None, figures)


def results(model: MoEModel, root: Path, texts: str) -> Iterator[xr.Dataset]:
    """Runs static analyses of the last layer, then dynamic ones in one pass over the texts."""
    from moe_probe import dynamic as analyses
    from moe_probe import static as of_weights
    from moe_probe.dynamic.driver import applicable
    from moe_probe.dynamic.driver import results as observed
    from moe_probe.dynamic.sources import open_source
    from moe_probe.options import completed

    layers = [model.moe_layers[-1]]
    yield of_weights.similarity(model, level="neuron_mean", layers=layers)
    yield of_weights.gate_similarity(model)
    baseline = root / "tiny-mistral" if model.family == "mixtral" else None
    asked = completed({"labels": "domain", "layers": layers, "baseline": baseline, "progress": False})
    source = open_source(model, texts, asked)
    unasked = [kind() for kind in analyses.names().values() if kind.unasked]
    yield from observed(source, applicable(source, unasked), asked).values()


def draw_everything(root: Path, texts: str, out: Path) -> None:
    """Draws every figure of the last layers, comparisons, and the papers' figures."""
    from joblib import cpu_count

    baseline, n_jobs = str(root / "tiny-mistral"), cpu_count()
    for model in mixtures(root):
        dense = baseline if model.family == "mixtral" else None
        options = {"baseline": dense, "layers": str(model.moe_layers[-1]), "n_jobs": n_jobs}
        static.command(str(root / model.name), out / model.name, **options)
        dynamic.command(str(root / model.name), out / model.name, texts, labels="domain", **options)
    compare.command(
        [str(root / model.name) for model in mixtures(root)], out / "compared", texts, analysis=["expert_activation"]
    )
    for paper, names in PAPERS.items():
        models = [str(root / name) for name in names if (root / name).is_dir()]
        reproduce.command(paper, models, out / paper, texts, baseline=baseline, labels="domain", n_jobs=n_jobs)
