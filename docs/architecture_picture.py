"""Draw the picture of docs/architecture.md from the rule about imports: `python docs/architecture_picture.py`.

An arrow means "may import". Arrows that follow from others are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from test_imports import ALLOWED, GROUND

PICTURE = Path(__file__).with_name("architecture.svg")
GROUPS = {
    "ground": tuple(GROUND),
    "model": ("model", "facts", "tokenizer"),
}
APART = ("moved", "__init__", "__main__")  # old names, and what users import
# place of each room: column, floor counted from the top; and what it is for
ROOMS = {
    "cli": (0, 0, "commands"),
    "callbacks": (3.3, 1, "routing while a model trains"),
    "claims": (1.1, 0.3, "papers' claims, tested"),
    "report": (1.1, 0.65, "a page about a checkpoint"),
    "figures": (2.2, 1, "papers' figures"),
    "explorer": (0.8, 1.5, "one page of HTML"),
    "comparisons": (2, 2, "several sources"),
    "pruning": (3.3, 2, "expert scores, their worth"),
    "intervene": (2.4, 3, "kinds of intervention"),
    "static": (1, 4, "analyses of weights"),
    "dynamic": (2.2, 4, "analyses, the one driver"),
    "statistics": (1, 5, "states that merge"),
    "forward": (2, 5, "models as sources"),
    "traces": (3, 5, "records as sources"),
    "routing": (2, 6, "Source, LayerBatch, Call"),
    "texts": (2, 7, "rows, documents, words"),
    "convert": (0, 7, "safetensors folders"),
    "model": (2, 8, "load, under"),
    "tabular": (3.4, 10, "results as CSV, JSON, LaTeX"),
    "results": (0.6, 10, "Datasets, provenance"),
    "families": (2, 9, "what a model is made of"),
    "checkpoint": (2, 10, "files as lazy tensors"),
    "plotting": (4, 4, "a Dataset to a figure"),
    "ground": (2.8, 11, "errors, files, registry, options"),
}
WIDTH, HEIGHT, COLUMN, FLOOR, MARGIN = 170, 42, 185, 72, 12


def group(room: str) -> str:
    """The box that a part of the package is drawn in."""
    return next((name for name, parts in GROUPS.items() if room in parts), room)


def arrows() -> list[tuple[str, str]]:
    """Which box may import which, without what follows from other arrows."""
    allowed: dict[str, set[str]] = {}
    for room, imports in ALLOWED.items():
        if room not in APART:
            allowed.setdefault(group(room), set()).update(group(each) for each in imports if each not in APART)
    below = {room: imports - {room} for room, imports in allowed.items()}
    return [
        (room, other)
        for room, imports in below.items()
        for other in imports
        if not any(other in reached(below, each) for each in imports - {other})
    ]


def reached(below: Mapping[str, set[str]], room: str) -> set[str]:
    """Boxes below a box."""
    return below[room].union(*(reached(below, each) for each in below[room]))


def box(room: str) -> str:
    """A box with its name and its purpose."""
    column, floor, purpose = ROOMS[room]
    x, y = MARGIN + column * COLUMN, MARGIN + floor * FLOOR
    return (
        f'<g><rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
        f'<text class="room" x="{x + WIDTH / 2:g}" y="{y + 18:g}">{room}</text>'
        f'<text x="{x + WIDTH / 2:g}" y="{y + 35:g}">{purpose}</text></g>'
    )


def line(room: str, other: str) -> str:
    """An arrow from the lower edge of one box to the upper edge of another one."""
    (left, high, _), (right, low, _) = ROOMS[room], ROOMS[other]
    shift = 0.3 * WIDTH * max(-1.0, min(1.0, right - left))
    begin = MARGIN + left * COLUMN + WIDTH / 2 + shift, MARGIN + high * FLOOR + HEIGHT
    end = MARGIN + right * COLUMN + WIDTH / 2 - shift, MARGIN + low * FLOOR - 2
    return f'<path d="M{begin[0]:g},{begin[1]:g} L{end[0]:g},{end[1]:g}"><title>{room} imports {other}</title></path>'


def picture() -> str:
    """The whole SVG."""
    width = 2 * MARGIN + max(column for column, _, _ in ROOMS.values()) * COLUMN + WIDTH
    height = 2 * MARGIN + max(floor for _, floor, _ in ROOMS.values()) * FLOOR + HEIGHT
    parts = [*(line(*arrow) for arrow in sorted(arrows())), *(box(room) for room in ROOMS)]
    return HEAD.format(width=width, height=height) + "\n".join(parts) + "\n</svg>\n"


HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">
<title>Rooms of moe_probe; an arrow points to what a room may import</title>
<style>
rect {{ fill: #e8f1f8; stroke: #0072b2; }}
text {{ font: 12px sans-serif; text-anchor: middle; fill: #333333; }}
.room {{ font: bold 14px sans-serif; }}
path {{ fill: none; stroke: #777777; marker-end: url(#tip); }}
</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<polygon points="0,0 8,4 0,8" fill="#777777"/></marker></defs>
<rect x="0" y="0" width="{width:g}" height="{height:g}" style="fill: #ffffff; stroke: none"/>
"""

if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
