"""Who may import whom inside moe_probe."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "moe_probe"
GROUND = {
    "errors",
    "shown",
    "signatures",
    "files",
    "checked",
    "progress",
    "parallel",
    "registry",
    "options",
    "deferred",
}
WEIGHTS = GROUND | {"checkpoint", "families"}
HANDLE = WEIGHTS | {"model", "facts", "tokenizer", "results", "tabular"}
WORDS = HANDLE | {"texts", "routing"}
ALLOWED = {
    "errors": {"shown"},
    "moved": set(),
    "deferred": {"errors"},
    "shown": set(),
    "files": {"errors", "shown"},
    "checked": {"errors", "shown", "files"},
    "signatures": {"errors", "progress", "shown"},
    "progress": {"shown"},
    "parallel": {"errors", "progress", "signatures"},
    "registry": {"errors"},
    "options": {"errors", "registry", "signatures"},
    "checkpoint": GROUND,
    "families": GROUND | {"checkpoint"},
    "results": {"errors", "shown", "files", "checked", "signatures"},
    "tabular": {"errors", "shown", "signatures", "files"},
    "facts": {"errors", "checkpoint", "families"},
    "tokenizer": {"errors", "files", "checkpoint"},
    "model": WEIGHTS | {"facts", "tokenizer"},
    "convert": HANDLE,
    "texts": HANDLE,
    "routing": HANDLE | {"texts"},
    "statistics": GROUND | {"routing", "texts"},
    "forward": WORDS,
    "traces": WORDS,
    "static": HANDLE | {"statistics"},
    "dynamic": WORDS | {"statistics", "forward", "traces"},
    "intervene": WORDS | {"statistics", "forward", "static", "dynamic"},
    "pruning": WORDS | {"convert", "statistics", "forward", "static", "dynamic", "intervene"},
    "comparisons": WORDS | {"statistics", "traces", "dynamic", "static", "intervene"},
    "plotting": {"errors", "registry", "shown", "signatures"},
    "figures": WORDS | {"static", "forward", "dynamic", "comparisons", "intervene", "plotting"},
    "explorer": WORDS | {"statistics", "traces", "forward", "static", "dynamic", "comparisons"},
}
ALLOWED["callbacks"] = WORDS | {"dynamic", "comparisons"}
ALLOWED["report"] = WORDS | {"static", "dynamic", "comparisons", "plotting", "figures"}
ALLOWED["claims"] = ALLOWED["report"] | {"statistics", "intervene", "report"}
ALLOWED["cli"] = set(ALLOWED) | {"cli"}
ALLOWED["__init__"] = ALLOWED["__main__"] = set(ALLOWED)


def imports(source, module):
    """Parts of moe_probe that the source of `module` imports, anywhere in it; "moe_probe" for the package itself."""
    package = module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            path = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{path}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "moe_probe":
                yield [*name.split("."), "moe_probe"][1]


def violations(source, module):
    part = module.split(".")[1]
    return {name for name in imports(source, module) if name not in ALLOWED[part] | {part}}


def test_every_module_imports_only_what_its_part_may():
    found = {}
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        found[module] = violations(path.read_text(encoding="utf-8"), module)
    assert "moe_probe.checkpoint.lazy" in found
    assert not {module: names for module, names in found.items() if names}


def test_a_forbidden_import_is_seen():
    assert violations("from moe_probe import static", "moe_probe.plotting.pca") == {"static"}
    assert violations("import moe_probe.families.mixtral", "moe_probe.checkpoint.store") == {"families"}
    assert violations("from moe_probe.cli import main", "moe_probe.static.pca") == {"cli"}
    assert violations("import torch, moe_probe", "moe_probe.static.pca") == {"moe_probe"}
    assert violations("def f():\n    from ..static import pca", "moe_probe.forward.running") == {"static"}
    assert violations("from . import static", "moe_probe.model") == {"static"}


def test_an_allowed_import_is_not_a_violation():
    assert not violations("from . import gram\nfrom ..model import load", "moe_probe.static.pca")
    assert not violations("import torch\nfrom moe_probe.errors import InputError", "moe_probe.plotting.pca")
