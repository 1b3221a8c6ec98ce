"""One page about a checkpoint: structure, load, similarity and specialization of experts, changes since a base.

Each file of `sections/` defines one section. Other packages add sections through the entry point group
`moe_probe.report`.
"""

from typing import TYPE_CHECKING

from moe_probe.deferred import Deferred

if TYPE_CHECKING:
    from moe_probe.report.building import Report, report
    from moe_probe.report.section import Measure, Section, Subject

__all__ = ["Measure", "Report", "Section", "Subject", "report"]
__getattr__ = Deferred(__name__, __file__).attribute
