"""One page about a checkpoint: structure, dead and hot experts, similarity, specialization, what moved since a base.

Each file of `sections/` is one section. Another package adds one through the entry point group `moe_probe.report`.
"""

from moe_probe.report.building import Report, report
from moe_probe.report.section import Measure, Section, Subject

__all__ = ["Measure", "Report", "Section", "Subject", "report"]
