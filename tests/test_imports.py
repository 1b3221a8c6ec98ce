"""Who may import whom inside moe_probe."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "moe_probe"
ALLOWED = {
    "errors": set(),
    "checkpoint": {"errors"},
    "families": {"errors", "checkpoint"},
    "model": {"errors", "checkpoint", "families"},
    "results": {"errors"},
    "static": {"errors", "checkpoint", "families", "model", "results"},
    "plotting": {"errors"},
    "cli": {"errors", "model", "results", "static", "plotting"},
    "__init__": {"model", "static", "plotting"},
}


def imports(source):
    """Parts of moe_probe that a module's source imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("moe_probe."))


def violations(part, source):
    return {name for name in imports(source) if name not in ALLOWED[part] | {part}}


def test_every_module_imports_only_what_its_part_may():
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        assert not violations(part, path.read_text()), path


def test_a_forbidden_import_is_seen():
    assert violations("plotting", "from moe_probe import static") == {"static"}
    assert violations("checkpoint", "import moe_probe.families.mixtral") == {"families"}
