"""Builds the report: runs one pass over the texts, makes every section, and writes the files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, Unpack

from moe_probe import comparisons, dynamic
from moe_probe.errors import DenseModel, NotFitting
from moe_probe.figures.saving import FileKind, Format
from moe_probe.files import make_folder, whole_file
from moe_probe.model import MoEModel, Openable, load
from moe_probe.options import REPORT_OPTIONS, RunOptions, completed
from moe_probe.registry import Registry
from moe_probe.report.page import draw_section, render, write_page
from moe_probe.report.section import Section, Subject
from moe_probe.signatures import checked
from moe_probe.texts.reading import Texts

SECTIONS: Registry[ModuleType] = Registry("moe_probe.report.sections", "report", "section of the report")


@checked
def report(
    model: Openable, texts: Texts | None = None, *, base: Openable | None = None, **options: Unpack[RunOptions]
) -> Report:
    """Makes a report about a checkpoint: structure, load, similarity, specialization by label, changes since a base.

    Args:
        model: a checkpoint folder, a hub id, or a model.
        texts: strings, lists of token ids, a file of texts, a `datasets` dataset, or a table, which run once for all
            sections; without texts, the report is about the weights only.
        base: the checkpoint from which this one was tuned, pruned or merged.
        options: those of `dynamic.run`, without `baseline` and `checkpoint_dir`; `labels` for specialization by label.

    Returns:
        The report; `save(folder)` writes it, and a notebook shows it.

    Raises:
        InputError: the texts, layers or options do not fit the model.
        NotFitting: there are labels, but no texts.
        DenseModel: the model has no experts.

    Examples:
        >>> from moe_probe.report import report
        >>> page = report("ckpt/tiny-mixtral", ["A short text."], progress=False)
        >>> [section.title for section in page.sections]
        ['Structure', 'Load of the experts', 'Similarity of the experts']
    """
    asked = completed(options, REPORT_OPTIONS, "report")
    opened, before = load(model), None if base is None else load(base)
    if not opened.moe_layers:
        raise DenseModel(f"{opened.name} is dense, but a report is about experts; pass a Mixture-of-Experts model.")
    if texts is None and asked["labels"] is not None:
        raise NotFitting("labels= was passed without texts; pass the texts that the labels belong to.")
    return Report(opened, tuple(_sections(_subject(opened, before, texts, asked))))


def _subject(model: MoEModel, base: MoEModel | None, texts: Texts | None, asked: Mapping[str, Any]) -> Subject:
    layers = model.select_layers(asked["layers"])
    if texts is None:
        return Subject(model, base, {}, {}, None, layers)
    needed = list(dict.fromkeys(name for module in SECTIONS.values() for name in module.NEEDS))
    results, before = ({} if one is None else dynamic.run(one, texts, needed, **asked) for one in (model, base))
    drift = None
    if base is not None:
        drift = comparisons.routing_drift({f"{base.name} (base)": base}, {model.name: model}, texts, **asked)
    return Subject(model, base, results, before, drift, layers)


def _sections(subject: Subject) -> Iterator[Section]:
    for module in sorted(SECTIONS.values(), key=lambda each: each.PLACE):
        if (section := module.section(subject)) is not None:
            yield section


@dataclass(frozen=True)
class Report:
    """A report of one checkpoint.

    Attributes:
        model: the checkpoint that it is about.
        sections: its sections, in order.
    """

    model: MoEModel
    sections: tuple[Section, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns all numbers and their provenance as values that JSON can hold."""
        return {
            "model": self.model.name,
            "fingerprint": self.model.fingerprint,
            "moe_probe": version("moe-probe"),
            "sections": {
                each.title: {measure.name: measure.value for measure in each.measures} for each in self.sections
            },
        }

    @property
    def html(self) -> str:
        """The self-contained page."""
        return render(self.model.name, self._note, [draw_section(each) for each in self.sections])

    @property
    def _note(self) -> str:
        return f"Fingerprint {self.model.fingerprint}. The numbers are in report.json, the tables in CSV files."

    def _repr_html_(self) -> str:
        return self.html

    def save(self, folder: str | Path, *, format: Format = "pdf", dpi: int = 300) -> Path:
        """Writes `index.html`, `report.json`, a CSV of every table and a file of every figure; returns the page's path.

        Args:
            folder: the output folder.
            format: format of the figures' files: `pdf`, `png` or `svg`.
            dpi: resolution in dots per inch, of PNG files and of rasterized parts of the others.

        Raises:
            NoSuchName: there is no such format.
            OutOfRange: `dpi` is below 30 or above 2,400.
            MachineError: the disk is full or not writable.
        """
        kind, target = FileKind(format, dpi), make_folder(folder)
        with whole_file(target / "report.json") as partial:
            partial.write_text(json.dumps(self.to_dict(), indent=1, default=str), encoding="utf-8")
        drawn = [draw_section(section, target, kind=kind) for section in self.sections]
        return write_page(target, self.model.name, self._note, drawn, kind)
