"""Tested claims: verdicts follow the numbers, nulls are told from effects, and the page is complete."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from scipy.stats import false_discovery_control, pearsonr, spearmanr

import moe_probe
from moe_probe import claims, plotting
from moe_probe.claims.claim import Claim, Finding
from moe_probe.claims.published import (
    gate_similarity,
    gating_residual,
    hundred_tokens,
    independent_choices,
    norm_preference,
    part_of_speech,
    simple_tokens,
)
from moe_probe.claims.testing import verdict
from moe_probe.claims.units import of_units
from moe_probe.claims.words import WordTypes
from moe_probe.errors import DenseModel, InputError, NoSuchName, NotFitting, WrongType
from moe_probe.results import load_result, save

REPEATS = 150
TEXTS = [list(np.random.default_rng(seed).integers(4, 12, 9)) for seed in range(12)]
LABELS = ["a", "b"] * 6


@pytest.fixture(scope="module")
def plus_plus(request):
    from conftest import FIXTURES

    return moe_probe.load(FIXTURES / "moe_plus_plus" / "checkpoint")


@pytest.fixture(scope="module")
def tested(plus_plus):
    texts = [[int(token) for token in text] for text in TEXTS]
    return claims.test(plus_plus, texts, labels=LABELS, progress=False)


def rejected(p_of: Callable[[np.random.Generator], float], repeats: int = REPEATS) -> float:
    return float(np.mean([p_of(np.random.default_rng(seed)) <= 0.05 for seed in range(repeats)]))


def test_every_claim_has_a_verdict_and_its_numbers(tested):
    assert tested.claim.values.tolist() == list(claims.CLAIMS)
    assert set(tested.claim_verdict.values) <= {"holds", "does not hold", "cannot be told", "does not apply"}
    known = np.isfinite(tested.p_value.values)
    np.testing.assert_allclose(
        tested.q_value.values[known], false_discovery_control(tested.p_value.values[known]), rtol=1e-12
    )
    assert all(tested.claim_why.values), "every verdict has its reason"
    assert tested.claim_verdict.sel(claim="polysemy") == "does not apply"
    assert "MH-MoE" in tested.claim_why.sel(claim="polysemy").item()


def test_a_claim_is_the_same_alone(plus_plus, tested):
    texts = [[int(token) for token in text] for text in TEXTS]
    alone = claims.test(plus_plus, texts, ["norm_preference"], labels=LABELS, progress=False)
    with_others = tested.isel(finding=np.flatnonzero(tested.claim_of.values == "norm_preference"))
    for name in ("effect", "low", "high", "p_value"):
        np.testing.assert_allclose(alone[name].values, with_others[name].values, rtol=1e-9)


def test_results_are_saved_drawn_and_put_on_a_page(tested, tmp_path):
    again = load_result(save(tested, tmp_path / "claims.nc"))
    np.testing.assert_array_equal(again.effect.values, tested.effect.values)
    assert again.claim_why.values.tolist() == tested.claim_why.values.tolist()
    figure = plotting.plot(tested, claim="domains", title=True)
    assert any("domains" in text.get_text() for text in figure.findobj(Text))
    page = claims.page(tested, tmp_path / "page").read_text(encoding="utf-8")
    for claim in claims.CLAIMS.values():
        assert claim.source.split(",")[0] in page
    assert page.count("<img") == len(list((tmp_path / "page" / "figures").glob("*.pdf"))) > 3
    assert (tmp_path / "page" / "norm_preference.csv").is_file()
    with pytest.raises(WrongType, match="result of claims"):
        claims.page(tested.drop_attrs(), tmp_path / "other")


def test_what_cannot_be_tested_is_refused(plus_plus, mistral):
    with pytest.raises(NoSuchName, match="norm_preference"):
        claims.test(plus_plus, [[4, 5]], ["norm_preferences"])
    with pytest.raises(NotFitting, match="No claim is named"):
        claims.test(plus_plus, [[4, 5]], [])
    with pytest.raises(DenseModel, match="dense"):
        claims.test(mistral, [[4, 5]])
    with pytest.raises(InputError, match="baseline"):
        claims.test(plus_plus, [[4, 5]], baseline="x")
    with pytest.raises(NoSuchName, match="claim"):
        plotting.plot(claims.test(plus_plus, TEXTS_INT, ["norm_preference"], progress=False), claim="nonesuch")


TEXTS_INT = [[int(token) for token in text] for text in TEXTS]


@pytest.mark.parametrize(
    ("finding", "q", "within", "expected"),
    [
        (Finding(0.2, 0.1, 0.3, 0.01), 0.02, None, "holds"),
        (Finding(-0.2, -0.3, -0.1, 0.01), 0.02, None, "does not hold"),
        (Finding(0.2, -0.1, 0.5, 0.3), 0.4, None, "cannot be told"),
        (Finding(0.2, -0.1, 0.5, 0.01), 0.02, None, "cannot be told"),  # the interval and p disagree
        (Finding(0.2), np.nan, None, "cannot be told"),
        (Finding(0.02, 0.01, 0.05, 0.01), 0.02, 0.1, "holds"),
        (Finding(0.3, 0.2, 0.4, 0.99), 0.99, 0.1, "does not hold"),
        (Finding(0.08, 0.01, 0.2, 0.3), 0.4, 0.1, "cannot be told"),
    ],
)
def test_verdicts(finding, q, within, expected):
    claim = Claim("A sentence.", "A paper.", "A size.", lambda evidence: [], within=within)
    assert verdict(claim, finding, q)[0] == expected


def test_rank_correlation_is_spearmans():
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randint(0, 5, (20, 8), generator=generator).float() for _ in range(2))
    expected = [spearmanr(x, y)[0] for x, y in zip(one, other, strict=True)]
    np.testing.assert_allclose(norm_preference.rank_correlation(one, other), expected, atol=1e-12)


def test_similarity_of_gates_is_pearsons_over_pairs():
    one, other = (np.cov(np.random.default_rng(seed).normal(size=(6, 9))) for seed in range(2))
    at = np.triu_indices(6, 1)
    assert gate_similarity.correlation(one, other) == pytest.approx(pearsonr(one[at], other[at])[0])


def mean_p(generator, effect=0.0, units=12):
    """Document effects, documents of unequal length, as `norm_preference` has them."""
    rows = generator.integers(20, 60, units)
    sums = rows * (effect + generator.normal(0, 0.2, units)) + generator.normal(0, 0.5, units) * np.sqrt(rows)
    return of_units(lambda total: total[:, 0] / total[:, 1], np.stack([sums, rows], 1))[3]


def test_means_over_documents_are_calibrated():
    assert 0.02 <= rejected(mean_p, 400) <= 0.09
    assert rejected(lambda generator: mean_p(generator, 0.3)) > 0.9


def residual_p(generator, scale=1.0, units=20):
    """Highest scores of the same tokens, those without the residual `scale` times as spread."""
    moments = np.zeros((2, units, 3))
    for unit in range(units):
        score = generator.normal(0.5, 0.1, 40) + generator.normal(0, 0.03)
        for at, factor in enumerate((1, scale)):
            own = 0.5 + factor * (score - 0.5) + generator.normal(0, 0.02, 40)
            moments[at, unit] = len(own), own.sum(), (own**2).sum()
    return gating_residual.steadier(*moments)[3]


def test_steadier_routing_is_calibrated_and_found():
    assert 0.01 <= rejected(residual_p, 300) <= 0.09
    assert rejected(lambda generator: residual_p(generator, 1.3)) > 0.9


def pairs(generator, together=0.0, units=24, rows=80):
    """Two of six experts per row, by uneven preferences; in some rows the first two, which go together."""
    preference = np.log([0.3, 0.25, 0.15, 0.12, 0.1, 0.08])
    chosen = np.zeros((units, rows, 6))
    order = np.argsort(-(preference + generator.gumbel(size=chosen.shape)), axis=-1)[..., :2]
    np.put_along_axis(chosen, order, 1.0, axis=-1)
    chosen[generator.random((units, rows)) < together] = [1, 1, 0, 0, 0, 0]
    return chosen.transpose(0, 2, 1) @ chosen


def test_independent_choices_are_small_and_pairs_are_found():
    found = [independent_choices.excess(pairs(np.random.default_rng(seed)), 2) for seed in range(60)]
    effect, _, _, p = np.array(found).T
    assert effect.mean() < 0.003
    assert (p < 0.05).mean() > 0.95
    together = [independent_choices.excess(pairs(np.random.default_rng(seed), 0.6), 2) for seed in range(20)]
    assert all(low > independent_choices.LITTLE for _, low, _, _ in together)
    assert all(low <= high for _, low, high, _ in together)


def test_independence_is_believed_no_more_often_than_it_should_be():
    """At the border, where the excess is as large as is called little, 5 % at most are believed."""
    of_many = [independent_choices.excess(pairs(np.random.default_rng(1), share, 4000), 2)[0] for share in (0.25, 0.3)]
    share = np.interp(independent_choices.LITTLE, of_many, (0.25, 0.3))
    rate = rejected(lambda generator: independent_choices.excess(pairs(generator, share), 2)[3], 200)
    assert of_many[0] < independent_choices.LITTLE < of_many[1]
    assert rate <= 0.1


def hundred_p(generator, topic, units=16):
    """Loads of a hundred tokens of each text, whose topic turns the experts' preferences."""
    weight = np.exp(topic * generator.normal(size=(units, 4)))
    chosen = np.array([generator.multinomial(1000, one / one.sum()) for one in weight])
    apart = hundred_tokens.distances(chosen.astype(float))
    table = np.stack([apart, np.ones(units)], axis=1)
    return of_units(lambda sums: sums[:, 0] / sums[:, 1], table, hundred_tokens.CLOSE, less=True, limits=(0, 1))


def test_a_hundred_tokens_suffice_only_without_topics():
    assert rejected(lambda generator: hundred_p(generator, 0.0)[3], 40) == 1
    assert rejected(lambda generator: hundred_p(generator, 1.0)[3], 40) == 0
    assert hundred_p(np.random.default_rng(0), 1.0)[1] > hundred_tokens.CLOSE


def types(generator, by_tag=0.0, by_count=0.0, number=60):
    count = np.sort(generator.zipf(1.7, number).clip(max=200))
    tag = generator.choice(["noun", "verb", "adverb"], number)
    density = 1 + by_tag * (tag == "verb") - by_count * np.log(count) + generator.normal(0, 0.3, number)
    return WordTypes(density, count, tag)


@pytest.mark.parametrize(
    ("claim", "effect"), [(part_of_speech.spread, {"by_tag": 0.5}), (simple_tokens.rarity, {"by_count": 0.3})]
)
def test_claims_about_words_are_calibrated_and_found(claim, effect):
    assert 0.01 <= rejected(lambda generator: claim(types(generator)).p, 200) <= 0.09
    assert rejected(lambda generator: claim(types(generator, **effect)).p, 40) > 0.9
    assert claim(types(np.random.default_rng(0), **effect)).effect > 0


def test_gate_similarity_is_calibrated_and_found():
    from moe_probe.statistics.rates import mantel

    def p_of(generator, shared):
        experts = generator.normal(size=(8, 16))
        gates = shared * experts + generator.normal(size=(8, 16))
        return mantel(*(np.corrcoef(each) for each in (experts, gates)), 199)

    assert 0.01 <= rejected(lambda generator: p_of(generator, 0), 200) <= 0.09
    assert rejected(lambda generator: p_of(generator, 3), 40) > 0.9
