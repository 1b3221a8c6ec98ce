"""Pages that are made from the code: for each analysis, each packed form and each class of errors, and their indices.

`docs/analyses/NAME.md` is optional: what it says stands on the page before the reference. A page without an example of
its own gets example and figure from the docstring of the plot. `hooks.py` and the tests ask for `pages`.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import moe_probe
from moe_probe import comparisons, dynamic, errors, plotting, pruning, static
from moe_probe.checkpoint.encodings import ENCODINGS
from moe_probe.checkpoint.encodings._matrix import PackedMatrix
from moe_probe.checkpoint.store import FORMATS
from moe_probe.claims import CLAIMS
from moe_probe.families import FAMILIES, families
from moe_probe.families.declared import Declared
from moe_probe.families.releases import RELEASES

DOCS = Path(__file__).parent
PACKAGE = Path(moe_probe.__file__).parent
SECTIONS = {
    "Of the weights": "They read the published files once, and run no model.",
    "Of the model at work": "They observe a forward pass over texts, a model that generates, or a recorded trace.",
    "Of several checkpoints": "They compare models on the same texts.",
}


@cache
def pages() -> Mapping[str, str]:
    """The text of every generated page by its path in the documentation."""
    return (
        dict(_analysis_pages())
        | dict(_error_pages())
        | dict(_format_pages())
        | dict(_family_pages())
        | {"gallery.md": _gallery(), "claims.md": _claims(), "pruning.md": _scores()}
    )


def analyses() -> dict[str, dict[str, Any]]:
    """Every analysis (a function or a class) by section and name, each once."""
    weights = dict(static.names())
    several = {name: function for name, function in comparisons.names().items() if name not in weights}
    return dict(zip(SECTIONS, (weights, dict(dynamic.names()), several), strict=True))


def _analysis_pages() -> Iterator[tuple[str, str]]:
    index = [
        "# Analyses",
        "Each page states the question that an analysis answers, shows an example with its figure, and gives formula, "
        "needs, cost and source.",
    ]
    for section, named in analyses().items():
        index += [f"## {section}", SECTIONS[section]]
        rows = ["| analysis | question |", "|---|---|"]
        for name, analysis in named.items():
            title, question, text = _analysis(name, analysis)
            rows.append(f"| [{title}]({name}.md) | {question} |")
            yield f"analyses/{name}.md", text
        index.append("\n".join(rows))
    yield "analyses/index.md", "\n\n".join(index) + "\n"


def _analysis(name: str, analysis: Any) -> tuple[str, str, str]:
    """Title, question and page of an analysis."""
    extra = DOCS / "analyses" / f"{name}.md"
    if extra.is_file():
        heading, question, body = (extra.read_text(encoding="utf-8").rstrip() + "\n\n\n").split("\n\n", 2)
        title, body = heading.removeprefix("# "), body.strip()
    else:
        title, question, body = _title(name, analysis), _question(analysis), ""
    parts = [f"# {title}", question, body]
    if "## Example" not in body:
        parts += _example(name, analysis)
    parts += ["## Reference", f"::: {analysis.__module__}.{analysis.__qualname__}"]
    return title, question, "\n\n".join(part for part in parts if part) + "\n"


def _gallery() -> str:
    """Every figure at the size of a real model, with the first line of what its plot says."""
    parts = ["# Gallery", GALLERY]
    for name in plotting.names():
        told = (inspect.getdoc(plotting.PLOTS[name].plot) or "").split("\n\n")[0].replace("\n", " ")
        parts += [f"## {name.replace('_', ' ').capitalize()}", told, f"![{name}](figures/gallery/{name}.png)"]
    return "\n\n".join(parts) + "\n"


def _scores() -> str:
    """The page of expert scores, with a table of those that there are."""
    rows = ["| score | value | goes first | source |", "|---|---|---|---|"]
    for name, score in sorted(pruning.names().items()):
        first = "smallest" if score.keep_high else "largest"
        formula = score.formula.replace("|", "&#124;")
        rows.append(f"| `{name}` | {formula} | {first} | {score.source} |")
    return (DOCS / "pruning.md").read_text(encoding="utf-8").replace("<!-- scores -->", "\n".join(rows))


def _claims() -> str:
    """The page of claims, with a table of those that there are."""
    rows = ["| claim | says | units of p | small | from |", "|---|---|---|---|---|"]
    for name, claim in CLAIMS.items():
        small = "" if claim.within is None else f"{claim.within:g}"
        rows.append(f"| `{name}` | {claim.hypothesis} | {claim.units} | {small} | {claim.source} |")
    return (DOCS / "claims.md").read_text(encoding="utf-8").replace("<!-- claims -->", "\n".join(rows))


def _title(name: str, analysis: Any) -> str:
    stated = getattr(analysis, "title", None) or getattr(inspect.getmodule(analysis), "TITLE", None)
    return stated or name.replace("_", " ").capitalize()


def _question(analysis: Any) -> str:
    """The first line of the module's docstring where that is a question, else that of the analysis itself."""
    asked = (inspect.getdoc(inspect.getmodule(analysis)) or "").split("\n")[0]
    return asked if asked.endswith("?") else (inspect.getdoc(analysis) or "").split("\n\n")[0].replace("\n", " ")


def _example(name: str, analysis: Any) -> list[str]:
    """Example and figure, from the docstring of the plot; the command line, where the analysis takes one model."""
    if name not in plotting.names():
        return []
    plot = inspect.getdoc(plotting.PLOTS[name].plot) or ""
    code = re.findall(r"^ *>>> (.*)$", plot, re.MULTILINE)
    code.append(f'figure.savefig("{name}.png", dpi=150)')
    parts = ["## Example", "```python\n" + "\n".join(code) + "\n```"]
    if name in static.names() and static.models(name) == 1:
        command = f"moe-probe static ckpt/tiny-mixtral --analysis {name} --layers 2 -o out/{name}"
        parts += ["On the command line:", f"```console\n{command}\n```"]
    parts += ["## Figure", re.split(r"\n\n(?:Args|Raises|Examples):", plot)[0]]
    if (DOCS / "figures" / f"{name}.png").is_file():
        parts.insert(-1, f"![{_title(name, analysis)}](../figures/{name}.png)")
    return parts


def _format_pages() -> Iterator[tuple[str, str]]:
    """A page for each packed form, and one of all that opens."""
    rows = ["| form | `quant_method` |", "|---|---|"]
    for name, encoding in ENCODINGS.items():
        methods = ", ".join(f"`{method}`" for method in encoding.methods) or "known by its tensors"
        rows.append(f"| [{encoding.title}]({name}.md) | {methods} |")
        yield f"formats/{name}.md", _encoding_page(encoding)
    parts = ["# Formats", FORMATS_SAY, "## Files", files_that_open(), "## Packed layers", "\n".join(rows)]
    parts += ["## Releases that are spelled otherwise", releases_that_open()]
    parts += ["## Static analyses only", STATIC_ONLY, declared_families()]
    yield "formats/index.md", "\n\n".join(parts) + "\n"


def _family_pages() -> Iterator[tuple[str, str]]:
    """A page for each family that has none by hand, and the index with all of them."""
    rows = []
    for family in families():
        if (DOCS / "families" / f"{family.name}.md").is_file():
            continue
        text = inspect.getdoc(import_module(f"{FAMILIES.package}.{family.name}")) or ""
        heading, _, more = text.partition("\n\n")
        types = ", ".join(f"`{kind}`" for kind in getattr(family, "model_types", ()))
        parts = [f"# {family.name}", heading, more, f"Model types: {types}." if types else ""]
        yield f"families/{family.name}.md", "\n\n".join(part for part in parts if part) + "\n"
        rows.append(f"| [{family.name}]({family.name}.md) | {heading.replace(chr(10), ' ')} | |")
    index = (DOCS / "families" / "index.md").read_text(encoding="utf-8")
    table = re.search(r"(?:^\|.*\n)+", index, re.MULTILINE)
    assert table is not None
    yield "families/index.md", index[: table.end()] + "\n".join(rows) + "\n" + index[table.end() :]


GALLERY = """\
The first figure of every result at 48 layers of 128 experts. The numbers are those of the plot's own example on a tiny
model, again and again, each a little different: they show how a figure looks, and nothing about any model.
`tests/plotting/test_gallery.py` checks every figure at 8 to 256 experts and 1 to 61 layers."""
FORMATS_SAY = """\
`load` takes a folder, a GGUF file or a hub id. Packed matrices are decoded as they are read, a slice at a
time; a slice reads its own bytes. Decoded values equal those of the format's own package
(`tests/checkpoint/test_packed.py`). Opening a model raises an error that names any tensor that no encoding explains."""
STATIC_ONLY = """\
transformers has no code for these; a family of theirs is a declaration of where the matrices are. Dynamic
analyses are refused. GGUF files of any architecture with `ffn_*_exps` tensors open in the same way."""


def _encoding_page(encoding: Any) -> str:
    module = inspect.getmodule(type(encoding))
    heading, _, layout = (inspect.getdoc(module) or "").partition("\n\n")
    classes = [value for value in vars(module).values() if inspect.isclass(value)]
    sources = [value for value in classes if issubclass(value, PackedMatrix)]
    decoders = [inspect.getdoc(value) or "" for value in sources if value.__module__ == module.__name__]
    methods = ", ".join(f"`{method}`" for method in encoding.methods)
    stated = f"`quant_method` in config.json: {methods}." if methods else ""
    parts = [
        f"# {encoding.title}",
        heading,
        layout,
        "## Values" if decoders else "",
        *decoders,
        "## Configuration",
        stated,
    ]
    parts += ["## Source", encoding.source] if getattr(encoding, "source", "") else []
    return "\n\n".join(part for part in parts if part) + "\n"


def files_that_open() -> str:
    """The container formats, in the order in which they are tried."""
    formats = sorted(FORMATS.items(), key=lambda each: each[1].preference)
    return "\n".join(f"- {each.expects}" for _, each in formats)


def releases_that_open() -> str:
    """The releases under other names."""
    return "\n".join(f"- {release.title}" for release in RELEASES.values())


def declared_families() -> str:
    """Families without a torch module, by name."""
    return ", ".join(family.name for family in FAMILIES.values() if isinstance(family, Declared))


def what_opens() -> str:
    """The lines of the README that say what opens."""
    packed = ", ".join(encoding.title for encoding in ENCODINGS.values() if encoding.methods)
    return "\n".join(
        [
            f"- Packed layers: {packed}.",
            *releases_that_open().splitlines(),
            f"- Static analyses only: {declared_families()}, and GGUF of every other architecture.",
        ]
    )


def error_classes() -> list[type[errors.MoEProbeError]]:
    """Every class of errors, each after its base."""
    classes = [value for value in vars(errors).values() if inspect.isclass(value)]
    return [cls for cls in classes if issubclass(cls, errors.MoEProbeError) and cls.__module__ == errors.__name__]


def _error_pages() -> Iterator[tuple[str, str]]:
    said = sentences()
    rows = ["| class | of what |", "|---|---|"]
    for cls in error_classes():
        meaning, _, more = (inspect.getdoc(cls) or "").partition("\n\n")
        more = re.split(r"(?:^|\n\n)Examples:", more)[0].strip()
        depth = len(cls.__mro__) - len(errors.MoEProbeError.__mro__)
        rows.append(f"| {'&emsp;' * depth}[`{cls.__name__}`]({cls.__name__}.md) | {meaning.replace(chr(10), ' ')} |")
        parts = [f"# {cls.__name__}", meaning, more, _place(cls)]
        if said.get(cls.__name__):
            parts += [
                "## Sentences",
                "… stands for the part that differs.",
                "```text\n" + "\n".join(said[cls.__name__]) + "\n```",
            ]
        yield f"errors/{cls.__name__}.md", "\n\n".join(part for part in parts if part) + "\n"
    yield "errors/index.md", ERRORS + "\n".join(rows) + "\n"


ERRORS = """# Errors

Every error that moe_probe raises on purpose is one sentence: what was given, what there is, and what to do. On the
command line it is printed alone, with exit code 2, or 1 where the machine failed. In scripts all of them are
`moe_probe.errors.MoEProbeError`.

"""


def _place(cls: type) -> str:
    above = [base.__name__ for base in cls.__mro__[1:] if issubclass(base, errors.MoEProbeError)]
    return f"In scripts: `moe_probe.errors.{cls.__name__}`" + "".join(f", a [`{n}`]({n}.md)" for n in above) + "."


@cache
def sentences() -> Mapping[str, list[str]]:
    """The sentences of each class of errors in the source, … for what differs."""
    found: dict[str, set[str]] = {cls.__name__: set() for cls in error_classes()}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                name, sentence = _class_of(node.func), _sentence(node)
                if name in found and sentence:
                    found[name].add(sentence)
    return {name: sorted(said) for name, said in found.items()}


def _class_of(function: ast.expr) -> str:
    """`X` of `X(...)`, `errors.X(...)` and `X.among(...)`."""
    if isinstance(function, ast.Attribute):
        return _class_of(function.value) if function.attr == "among" else function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _sentence(call: ast.Call) -> str:
    text = _written(call.args[0])
    if isinstance(call.func, ast.Attribute) and call.func.attr == "among":
        return f"There is no {text} …; there are …."
    return text if " " in text else ""


def _written(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(_written(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return _written(node.left) + _written(node.right)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value.replace("\n", " ")
    return "…"
