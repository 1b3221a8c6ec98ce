"""EASY-EP over several domains, each of equal weight."""

from __future__ import annotations

from moe_probe.pruning.scores.easy_ep import EasyEP


class EasyEPMixed(EasyEP):
    """EASY-EP over several domains: the share of each expert in its layer, added over document labels.

    Texts without labels are one domain.
    """

    formula = "sum over labels of EASY-EP of the label's documents / its sum over the layer's experts"
    source = "Dong et al., arXiv 2504.06792, mixed domains"
    units = "1"
    mixed = True
