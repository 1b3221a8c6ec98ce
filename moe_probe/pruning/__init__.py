"""Expert scores, pruning and merging of experts, and the measured cost of removing them.

Each file of `scores/` defines one score. Other packages add scores through the entry point group `moe_probe.scores`: an
entry point's name is the score's, its value the module that defines it.
"""

from __future__ import annotations

import moe_probe.pruning.scores  # noqa: F401 - before the function of that name, which hides it from here on
from moe_probe.pruning.agreeing import agreement
from moe_probe.pruning.curves import curve
from moe_probe.pruning.deleting import naee
from moe_probe.pruning.grouping import Groups, groups, read_groups
from moe_probe.pruning.halves import halves
from moe_probe.pruning.merging import merging
from moe_probe.pruning.observer import read_observer, write_observer
from moe_probe.pruning.outliers import super_experts
from moe_probe.pruning.plans import Plan, plan, read_plan
from moe_probe.pruning.scoring import names, scores
from moe_probe.pruning.smaller import prune

__all__ = [
    "Groups",
    "Plan",
    "agreement",
    "curve",
    "groups",
    "halves",
    "merging",
    "naee",
    "names",
    "plan",
    "prune",
    "read_groups",
    "read_observer",
    "read_plan",
    "scores",
    "super_experts",
    "write_observer",
]
