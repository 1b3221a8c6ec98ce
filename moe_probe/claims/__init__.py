"""What papers observe of Mixture-of-Experts models, tested on a model and texts.

Each file of `published/` is one claim. Another package adds one through the entry point group `moe_probe.claims`: an
entry point's value is a `Claim`, or a module that holds one as `CLAIM`.
"""

from moe_probe.claims.claim import Claim, Evidence, Finding
from moe_probe.claims.page import page
from moe_probe.claims.testing import CLAIMS, test

__all__ = ["CLAIMS", "Claim", "Evidence", "Finding", "page", "test"]
