"""Structure of the checkpoint."""

from __future__ import annotations

from moe_probe.facts import facts
from moe_probe.report.section import Measure, Section, Subject

PLACE, NEEDS = 10, ()
READINGS = {
    "parameters": "Active parameters are those of the routed experts that a token chooses, and those "
    "outside the experts.",
    "also on disk": "Parameters that no forward pass of the language model uses.",
    "top-k": "Every token is the weighted sum of this many experts' outputs.",
}


def section(subject: Subject) -> Section:
    """The lines of `moe-probe info`."""
    lines = [(name or "note", value) for name, value in facts(subject.model)]
    return Section("Structure", [Measure(name, value, value, READINGS.get(name, "")) for name, value in lines])
