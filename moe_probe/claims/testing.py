"""Tests claims on a model and texts in one pass, and controls the false discovery rate over all findings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Unpack

import numpy as np
import xarray as xr

from moe_probe.claims import CLAIMS
from moe_probe.claims.claim import Claim, Evidence, Finding
from moe_probe.dynamic.driver import check, results
from moe_probe.dynamic.sources import open_source
from moe_probe.errors import DenseModel, InputError, NotFitting
from moe_probe.model import MoEModel, Openable, load
from moe_probe.options import REPORT_OPTIONS, RunOptions, completed
from moe_probe.results import dataset, provenance, variable
from moe_probe.routing import Source
from moe_probe.signatures import checked
from moe_probe.statistics.bootstrap import FEW
from moe_probe.statistics.rates import discoveries
from moe_probe.texts.reading import Texts

RATE = 0.05  # of false ones among the findings that are believed
HOLDS, FAILS, UNTOLD, UNFIT = "holds", "does not hold", "cannot be told", "does not apply"
NUMBERS = {
    "effect": "effect size",
    "low": "effect size, lower end of the 95 % interval",
    "high": "effect size, upper end of the 95 % interval",
    "p_value": "p-value",
    "q_value": "p-value, false discoveries controlled over all findings",
}
RULE = "a claim holds, or does not hold, if more than half of its findings do and none is the opposite"


@checked
def test(
    model: Openable,
    texts: Texts,
    names: Sequence[str] | Literal["all"] = "all",  # noqa: PT028
    **options: Unpack[RunOptions],
) -> xr.Dataset:
    """Tests claims: effect size, interval, p-value, q-value and verdict of each, in every layer or over all layers.

    The texts run once for all claims (once more for a claim about the model without a component). A finding holds, or
    does not hold, if its q-value is at most 0.05 and its effect is on that side; a claim that an effect is small does
    not hold if the whole interval is larger. Everything else cannot be told, such as a finding whose p-value and
    interval disagree; `why` gives the reason.

    Args:
        model: a checkpoint folder, a hub id, or a model.
        texts: strings, lists of token ids, a file of texts, a `datasets` dataset, or a table; units of the intervals
            are documents, or those that `unit=` names.
        names: names of claims; all by default.
        options: those of `dynamic.run`, without `baseline` and `checkpoint_dir`; `labels` for claims about domains.

    Returns:
        Dataset with `effect`, `low`, `high`, `p_value`, `q_value` (finding), float64, nan if undefined; `verdict` and
        `why` (finding), text, with the coordinates `claim_of` and `layer` (-1: all layers together); `claim_verdict`,
        `claim_why`, `hypothesis`, `published`, `effect_size`, `units_of_p` (claim), text; `within` (claim), float64,
        the largest effect that counts as small, nan for a claim of an effect.

    Raises:
        NoSuchName: there is no such claim.
        NotFitting: `names` is empty.
        DenseModel: the model has no experts.
        InputError: the texts, layers or options do not fit the model.

    Examples:
        >>> from moe_probe import claims
        >>> ds = claims.test("ckpt/tiny-mixtral", ["A short text."], ["token_identity"], progress=False)
        >>> ds.claim_verdict.values.tolist()
        ['cannot be told']
    """
    asked = completed(options, REPORT_OPTIONS, "claims.test")
    chosen = _chosen(names)
    opened = load(model)
    if not opened.moe_layers:
        raise DenseModel(f"{opened.name} is dense; the claims are about experts. Pass a Mixture-of-Experts model.")
    asked |= {"baseline": None, "checkpoint_dir": None}
    source = open_source(opened, texts, asked)
    refused = _refused(chosen, opened, source)
    fitting = {name: claim for name, claim in chosen.items() if name not in refused}
    evidence = _observed(opened, source, fitting, asked)
    findings: dict[str, Sequence[Finding]] = {}
    for name, claim in fitting.items():
        try:
            findings[name] = claim.findings(evidence)
        except InputError as error:
            refused[name] = str(error)
    return _dataset(source, chosen, findings, refused)


def _chosen(names: Sequence[str] | str) -> dict[str, Claim]:
    wanted = list(CLAIMS) if names == "all" else [names] if isinstance(names, str) else list(dict.fromkeys(names))
    if not wanted:
        raise NotFitting(f"No claim is named; pass names= some of {', '.join(CLAIMS)}, or 'all'.")
    return {name: CLAIMS[name] for name in wanted}


def _refused(chosen: Mapping[str, Claim], model: MoEModel, source: Source) -> dict[str, str]:
    """Reasons why claims do not apply, by name, as far as they are known before any work."""
    reasons = {}
    for name, claim in chosen.items():
        try:
            claim.applies(model)
            if claim.needs:
                check(source, claim.needs)
        except InputError as error:
            reasons[name] = str(error)
    return reasons


def _observed(model: MoEModel, source: Source, claims: Mapping[str, Claim], asked: Mapping[str, Any]) -> Evidence:
    """Runs all analyses that the claims need, in one pass."""
    needed = {analysis.name: analysis for claim in claims.values() for analysis in claim.needs}
    seen = results(source, list(needed.values()), asked) if needed else {}
    return Evidence(model, source, tuple(source.layers), seen, asked)


def _dataset(
    source: Source, claims: Mapping[str, Claim], by_claim: Mapping[str, Sequence[Finding]], refused: Mapping[str, str]
) -> xr.Dataset:
    rows = [(name, each) for name, findings in by_claim.items() for each in findings]
    p = np.array([each.p for _, each in rows])
    q = discoveries(p)
    told = [verdict(claims[name], each, at) for (name, each), at in zip(rows, q, strict=True)]
    numbers = np.array([[each.effect, each.low, each.high, each.p, at] for (_, each), at in zip(rows, q, strict=True)])
    columns = zip(NUMBERS.items(), numbers.reshape(-1, len(NUMBERS)).T, strict=True)
    variables = {name: variable(("finding",), values, said) for (name, said), values in columns}
    variables |= _texts("finding", {"verdict": [one for one, _ in told], "why": [why for _, why in told]})
    variables |= _of_claims(claims, [_summary(name, rows, told, refused) for name in claims])
    about = provenance("claims", source, claims=json.dumps(list(claims)), rate=RATE)
    clustered = any(document.cluster for document in source.corpus.documents)
    about |= {"resampled": "clusters of documents" if clustered else "documents", "rule": RULE}
    about["correction"] = f"Benjamini and Hochberg (1995) over {int(np.isfinite(p).sum())} findings"
    coords = {
        "claim": list(claims),
        "claim_of": ("finding", np.array([name for name, _ in rows], dtype=object)),
        "layer": ("finding", np.array([each.layer for _, each in rows], dtype=np.int64)),
    }
    return dataset(variables, about, coords)


def _of_claims(claims: Mapping[str, Claim], summary: Sequence[tuple[str, str]]) -> dict[str, xr.DataArray]:
    within = np.array([np.nan if claim.within is None else claim.within for claim in claims.values()])
    columns = {
        "claim_verdict": [one for one, _ in summary],
        "claim_why": [why for _, why in summary],
        "hypothesis": [claim.hypothesis for claim in claims.values()],
        "published": [claim.source for claim in claims.values()],
        "effect_size": [claim.effect for claim in claims.values()],
        "units_of_p": [claim.units for claim in claims.values()],
    }
    return {**_texts("claim", columns), "within": variable(("claim",), within, "largest effect that counts as small")}


def _texts(dim: str, columns: Mapping[str, Sequence[str]]) -> dict[str, xr.DataArray]:
    return {
        name: variable((dim,), np.array(values, dtype=object), name.replace("_", " "), "")
        for name, values in columns.items()
    }


def verdict(claim: Claim, finding: Finding, q: float) -> tuple[str, str]:
    """Returns the verdict of one finding, and the reason.

    Examples:
        >>> from moe_probe.claims.published.token_identity import CLAIM
        >>> verdict(CLAIM, Finding(0.2, 0.1, 0.3, 0.001), 0.002)[0]
        'holds'
    """
    if claim.within is not None and finding.low > claim.within:
        return FAILS, f"the interval is above {claim.within:g}"
    if np.isnan(q):
        return UNTOLD, finding.why or f"there is no p-value: {FEW}"
    null = claim.within or 0.0
    if q > RATE:
        beyond = "no effect" if claim.within is None else f"an effect of {null:g}"
        return UNTOLD, f"{beyond} is not excluded (q {q:.2g}) with these {claim.units}"
    if finding.low <= null <= finding.high:
        return UNTOLD, f"the p-value excludes {null:g} (q {q:.2g}), the interval over documents does not"
    if claim.within is not None:
        return HOLDS, f"an effect of {null:g} or more is excluded (q {q:.2g})"
    return (HOLDS, f"q {q:.2g}") if finding.effect > 0 else (FAILS, f"the effect is on the other side (q {q:.2g})")


def _summary(
    name: str, rows: Iterable[tuple[str, Finding]], told: Sequence[tuple[str, str]], refused: Mapping[str, str]
) -> tuple[str, str]:
    """Returns the verdict of a claim from those of its findings."""
    if name in refused:
        return UNFIT, refused[name]
    verdicts = [each for (of, _), each in zip(rows, told, strict=True) if of == name]
    count = {kind: sum(one == kind for one, _ in verdicts) for kind in (HOLDS, FAILS, UNTOLD)}
    said = "; ".join(f"{kind} in {number} of {len(verdicts)}" for kind, number in count.items() if number)
    why = verdicts[0][1] if len(verdicts) == 1 else said
    for kind, opposite in ((HOLDS, FAILS), (FAILS, HOLDS)):
        if 2 * count[kind] > len(verdicts) and not count[opposite]:
            return kind, why
    reasons = list(dict.fromkeys(reason for one, reason in verdicts if one == UNTOLD))
    return UNTOLD, why if len(verdicts) == 1 else f"{said}: {reasons[0]}" if reasons else said
