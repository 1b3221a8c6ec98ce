"""Tests of papers' observations about Mixture-of-Experts models, on your model and texts.

Each file of `published/` defines one claim. Other packages add claims through the entry point group `moe_probe.claims`:
an entry point's value is a `Claim`, or a module that defines one as `CLAIM`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_probe.deferred import Deferred
from moe_probe.registry import Registry

if TYPE_CHECKING:
    from moe_probe.claims.claim import Claim, Evidence, Finding
    from moe_probe.claims.pages import page
    from moe_probe.claims.testing import test

__all__ = ["CLAIMS", "Claim", "Evidence", "Finding", "page", "test"]
CLAIMS: Registry[Claim] = Registry("moe_probe.claims.published", "claims", "claim", lambda module, _: module.CLAIM)
__getattr__ = Deferred(__name__, __file__).attribute
