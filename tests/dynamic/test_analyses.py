"""Each analysis against numbers by hand, against float64 and libraries, and merged in any order."""

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax
from scipy.stats import rankdata
from small_batches import ByHand, batch_of, corpus_of, layer_of, random_routing

from moe_probe import dynamic
from moe_probe.errors import InputError

DOCUMENTS = [[4, 5, 4, 6], [4, 4], [6, 5, 5]]
LABELS = ["a", "b", "a"]
MAKERS = [
    dynamic.ExpertLoad,
    lambda: dynamic.RouterScores(bins=7),
    dynamic.Coactivation,
    lambda: dynamic.TokenSpecialization(min_count=1),
    lambda: dynamic.TokenSpecialization(as_published=True),
    dynamic.NormScoreRanks,
    lambda: dynamic.OutputSimilarity("angular"),
    dynamic.GateChoices,
    dynamic.OutputNorms,
    lambda: dynamic.SubtokenDivergence(words=["4"], bootstrap=9, permutations=9),
    lambda: dynamic.PatchDivergence(grid=(1, 2)),
    lambda: dynamic.FFNExpertsPerToken(min_count=1, bootstrap=9),
    lambda: dynamic.TaskLoad(bootstrap=9, permutations=9),
    lambda: dynamic.ExpertCapacity(factors=[0.5, 1], groups=2, batch_documents=2),
    dynamic.AdaptiveMixtures,
    dynamic.Complexity,
]
UNLABELLED = [maker for at, maker in enumerate(MAKERS) if at not in (7, 8, 10, 11, 12, 15)]
KINDS = ("ffn", "ffn", "ffn", "constant", "zero")


def result(analysis, model, corpus, batches):
    for batch in batches:
        analysis.update(batch)
    return analysis.result(model.on(corpus))


# three tokens, four experts, two of them per token; logits such that the choice is plain
LOGITS = [[3.0, 2.0, 0.0, 0.0], [3.0, 0.0, 2.0, 0.0], [0.0, 3.0, 2.0, 0.0]]
INDEX = [[0, 1], [0, 2], [1, 2]]
WEIGHTS = [[0.7, 0.3], [0.6, 0.4], [0.9, 0.1]]


@pytest.fixture
def three():
    layer, corpus = layer_of(4, 2), corpus_of([[7, 8], [7]], ["x", "y"])
    return ByHand(layer), corpus, [batch_of(layer, corpus, LOGITS, INDEX, WEIGHTS)]


def test_load_by_hand(three):
    found = result(dynamic.ExpertLoad(), *three).isel(layer=0)
    assert found.selections.values.tolist() == [2, 2, 2, 0]
    np.testing.assert_allclose(found.share, [1 / 3, 1 / 3, 1 / 3, 0])
    np.testing.assert_allclose(found.frequency, [2 / 3, 2 / 3, 2 / 3, 0])
    np.testing.assert_allclose(found.importance, [1.3, 1.2, 0.5, 0], rtol=1e-6)
    assert found.label.values.tolist() == ["x", "y"]
    np.testing.assert_allclose(found.label_share, [[0.5, 0.25, 0.25, 0], [0, 0.5, 0.5, 0]])
    assert float(found.cv2_load) == pytest.approx(0.75 / 2.25)
    assert float(found.cv2_importance) == pytest.approx(np.var([1.3, 1.2, 0.5, 0]) / 0.75**2)
    assert float(found.entropy) == pytest.approx(np.log(3) / np.log(4))
    assert float(found.max_violation) == pytest.approx(2 / 1.5 - 1)
    assert float(found.activation_ratio) == pytest.approx(0.75)


def test_balance_losses_by_formula_in_float64(three):
    found = result(dynamic.ExpertLoad(), *three).isel(layer=0)
    logits = np.asarray(LOGITS)
    scores = softmax(logits, axis=1).mean(0)
    first = np.asarray([2, 1, 0, 0]) / 3
    assert float(found.gshard_loss) == pytest.approx((first * scores).mean(), rel=1e-6)
    assert float(found.switch_loss) == pytest.approx(4 * (np.asarray([1, 1, 1, 0]) / 3 * scores).sum(), rel=1e-6)
    assert float(found.z_loss) == pytest.approx((logsumexp(logits, axis=1) ** 2).mean(), rel=1e-6)


def test_switch_loss_is_one_when_routing_is_even():
    layer, corpus = layer_of(3, 1), corpus_of([[1, 2, 3]])
    batch = batch_of(layer, corpus, torch.zeros(3, 3), [[0], [1], [2]])
    found = result(dynamic.ExpertLoad(), ByHand(layer), corpus, [batch])
    np.testing.assert_allclose(found.switch_loss, [1], rtol=1e-6)


def test_highest_and_second_scores_by_hand():
    layer, corpus = layer_of(3, 1), corpus_of([[1, 2]])
    scores = np.asarray([[0.7, 0.2, 0.1], [0.3, 0.25, 0.45]])
    batch = batch_of(layer, corpus, np.log(scores), [[0], [2]])
    found = result(dynamic.RouterScores(bins=4), ByHand(layer), corpus, [batch])
    assert found.histogram.isel(layer=0).values.tolist() == [[0, 1, 1, 0], [1, 1, 0, 0]]
    np.testing.assert_allclose(found.score_mean.isel(layer=0), [0.575, 0.25], rtol=1e-6)
    np.testing.assert_allclose(found.score_variance.isel(layer=0), [0.125**2, 0.05**2], rtol=1e-5)
    np.testing.assert_allclose(found["maximum"].isel(layer=0), [0.7, 0.3], rtol=1e-6)
    np.testing.assert_allclose(found["pooled_minimum"], [0.45, 0.2], rtol=1e-6)
    np.testing.assert_allclose(found.bin, [0, 0.25, 0.5, 0.75])


def test_the_variance_of_scores_that_hardly_differ_is_that_of_their_differences():
    layer, corpus = layer_of(3, 1), corpus_of([[1] * 400, [2] * 300])
    generator = np.random.default_rng(0)
    batches = []
    for document in corpus.documents:
        near = generator.normal([0.99, 0.009, 0.001], 1e-6, (len(document.ids), 3))
        part, index = replace(corpus, documents=(document,)), np.zeros((len(near), 1), int)
        batches.append(batch_of(layer, part, torch.zeros(len(near), 3), index).having(scores=torch.tensor(near)))
    found = result(dynamic.RouterScores(), ByHand(layer), corpus, batches)
    top = np.concatenate([batch.scores.numpy()[:, :2] for batch in batches]).astype(np.longdouble)
    expected = ((top - top.mean(0)) ** 2).mean(0).astype(float)
    np.testing.assert_allclose(found.score_variance.isel(layer=0), expected, rtol=1e-9)
    np.testing.assert_allclose(found.pooled_score_variance, expected, rtol=1e-9)


def test_pairs_by_hand(three):
    found = result(dynamic.Coactivation(), *three).isel(layer=0)
    assert found.pairs.values.tolist() == [[2, 1, 1, 0], [1, 2, 1, 0], [1, 1, 2, 0], [0, 0, 0, 0]]
    assert float(found.conditional.sel(expert="0", other="2")) == 0.5
    assert float(found.lift.sel(expert="0", other="1")) == pytest.approx((1 / 3) / (2 / 3) ** 2)
    # experts 0, 1, 2 are chosen by two rows of three each, so that pairs of them are equally likely
    assert float(found.chance_lift.sel(expert="0", other="1")) == pytest.approx((1 / 3) / (2 / 3) ** 2, rel=1e-4)
    published = result(dynamic.Coactivation(as_published=True), *three).isel(layer=0)
    assert float(published.chance_lift) == pytest.approx(4 * 1 / (2 * 3))


def test_flow_between_layers_by_hand():
    corpus = corpus_of([[1, 2, 3]])
    layers = [layer_of(2, 1, index) for index in (1, 4)]
    first = batch_of(layers[0], corpus, torch.zeros(3, 2), [[0], [0], [1]])
    before = torch.tensor([[0], [0], [1]])
    second = batch_of(layers[1], corpus, torch.zeros(3, 2), [[1], [0], [1]]).with_before(1, before)
    found = result(dynamic.Coactivation(), ByHand(*layers), corpus, [first, second])
    assert np.isnan(found.flow.sel(layer=1)).all()
    assert found.flow.sel(layer=4).values.tolist() == [[0.5, 0.5], [0, 1]]
    np.testing.assert_allclose(found.flow_excess.sel(layer=4), [[1 / 2 - 1 / 3, 1 / 2 - 2 / 3], [-1 / 3, 1 / 3]])


def test_lift_of_random_choices_is_near_its_chance_level():
    layer, corpus = layer_of(8, 3), corpus_of([list(range(20000))])
    found = result(dynamic.Coactivation(), ByHand(layer), corpus, random_routing(layer, corpus, 0))
    pairs = found.lift.isel(layer=0).where(found.expert != found.other)
    assert float(abs(pairs - found.chance_lift.isel(layer=0)).max()) < 0.05


def test_specialization_by_hand():
    # id 7 goes to 0, 0, 1; id 8 to 1, 1: two of the three choices of expert 1 are of id 8, always routed there
    layer, corpus = layer_of(2, 1), corpus_of([[7, 7, 8, 8, 7]])
    index = [[0], [0], [1], [1], [1]]
    logits = torch.nn.functional.one_hot(torch.tensor(index)[:, 0], 2).float()
    batch = batch_of(layer, corpus, logits, index)
    found = result(dynamic.TokenSpecialization(min_count=1), ByHand(layer), corpus, [batch]).isel(layer=0)
    # other occurrences that choose the same: of id 7, one of two for expert 0, none for 1; of id 8, the one other
    np.testing.assert_allclose(found.vocabulary_specialization, [(2 * 1 / 2) / 2, (0 + 2 * 1 / 1) / 3])
    # any two of the five tokens: another choice of expert 0 among the 4 others is 1, of expert 1 it is 2
    np.testing.assert_allclose(found.vocabulary_chance, [1 / 4, 2 / 4])
    assert float(found.context_independence) == pytest.approx((2 + 2) / (6 + 2))  # ordered pairs of one id
    assert float(found.context_chance) == pytest.approx((2 + 6) / 20)
    np.testing.assert_allclose(found.repetition.sel(choice="first"), 3 / 4)
    np.testing.assert_allclose(found.repetition_chance.sel(choice="first"), (2 + 6) / 20)
    np.testing.assert_allclose(found.repetition_excess.sel(choice="first"), 3 / 4 - 8 / 20)
    published = result(dynamic.TokenSpecialization(as_published=True), ByHand(layer), corpus, [batch]).isel(layer=0)
    np.testing.assert_allclose(published.vocabulary_specialization, [2 / 3, 1])
    assert float(published.vocabulary_mean) == pytest.approx((2 / 3 + 1) / 2)
    assert float(published.vocabulary_first_mean) == pytest.approx((2 / 3 + 1) / 2)
    assert found.place.values.tolist() == [0, 1, 2, 4]
    np.testing.assert_allclose(found.position_share, [[1, 0], [1, 0], [0, 1], [0, 1]])
    np.testing.assert_allclose(found.position_excess, found.position_share - np.array([2 / 5, 3 / 5]))


def test_published_specialization_counts_all_choices():
    """OLMoE's do_token_analysis_layers_experts with topk = k: an id's most frequent expert, by its occurrences."""
    layer, corpus = layer_of(4, 2), corpus_of([[7, 7, 7, 8, 8, 9, 9, 9, 9]])
    index = [[1, 0], [2, 0], [1, 0], [2, 1], [1, 2], [0, 1], [1, 2], [2, 0], [0, 1]]
    logits = torch.zeros(len(index), 4)
    for row, (first, second) in enumerate(index):
        logits[row, first], logits[row, second] = 2, 1
    batch = batch_of(layer, corpus, logits, index)
    found = result(dynamic.TokenSpecialization(as_published=True), ByHand(layer), corpus, [batch]).isel(layer=0)
    # id 7: expert 0 in 3 of 3; id 8: 1 and 2 in 2 of 2, 2 seen first; id 9: 0 and 1 in 3 of 4, 0 seen first
    np.testing.assert_allclose(found.vocabulary_specialization, [(1 + 3 / 4) / 2, np.nan, 1, np.nan])
    assert float(found.vocabulary_mean) == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert float(found.vocabulary_first_mean) == pytest.approx((2 / 3 + 1 / 2 + 2 / 4) / 3)


def shares_of_the_most_frequent(choices_by_id):
    """(expert, share) of each id, of what each of its occurrences chooses, best first, in the corpus' order."""
    leading = []
    for occurrences in choices_by_id.values():
        times = Counter(expert for chosen in occurrences for expert in chosen)
        expert = max(times, key=times.get)  # of several, the one that was counted first
        leading.append((expert, times[expert] / len(occurrences)))
    return leading


def test_published_specialization_of_a_corpus_in_pieces_is_that_of_lists_in_its_order():
    """Eight of 64 experts, ids many of which are rare, batches in reverse order."""
    rng = np.random.default_rng(5)
    layer, corpus = layer_of(64, 8), corpus_of([rng.zipf(1.5, 50).clip(max=200).tolist() for _ in range(6)])
    logits = torch.tensor(rng.normal(size=(300, 64)), dtype=torch.float32)
    analysis = dynamic.TokenSpecialization(as_published=True)
    choices_by_id, first_by_id = defaultdict(list), defaultdict(list)
    for number, document in enumerate(corpus.documents):
        for token_id, row in zip(document.ids, logits[50 * number : 50 * number + 50], strict=True):
            chosen = row.topk(8).indices.tolist()
            choices_by_id[token_id].append(chosen)
            first_by_id[token_id].append(chosen[:1])
    for number in reversed(range(6)):
        rows = logits[50 * number : 50 * number + 50]
        index = rows.topk(8).indices.sort(1).values
        analysis.update(batch_of(layer, corpus, rows, index, documents=[number]))
    found = analysis.result(ByHand(layer, corpus=corpus)).isel(layer=0)
    leading = shares_of_the_most_frequent(choices_by_id)
    for expert in range(64):
        expected = np.mean([share for at, share in leading if at == expert] or [np.nan])
        assert float(found.vocabulary_specialization[expert]) == pytest.approx(expected, nan_ok=True)
    assert float(found.vocabulary_mean) == pytest.approx(np.mean([share for _, share in leading]))
    first = [share for _, share in shares_of_the_most_frequent(first_by_id)]
    assert float(found.vocabulary_first_mean) == pytest.approx(np.mean(first))


def test_rare_tokens_are_left_out():
    layer, corpus = layer_of(2, 1), corpus_of([[7, 7, 8]])
    batch = batch_of(layer, corpus, torch.zeros(3, 2), [[0], [0], [1]])
    found = result(dynamic.TokenSpecialization(min_count=2), ByHand(layer), corpus, [batch]).isel(layer=0)
    assert int(found.token_ids) == 1
    np.testing.assert_allclose(found.vocabulary_specialization, [1, np.nan])


def test_consecutive_tokens_are_of_one_document_and_share_any_expert():
    layer, corpus = layer_of(4, 2), corpus_of([[1, 2], [3, 4]])
    batch = batch_of(layer, corpus, torch.zeros(4, 4), [[0, 1], [1, 2], [1, 2], [0, 3]])
    found = result(dynamic.TokenSpecialization(min_count=1), ByHand(layer), corpus, [batch]).isel(layer=0)
    assert float(found.repetition.sel(choice="any")) == 0.5  # of two pairs, not three
    assert float(found.repetition_chance.sel(choice="any")) == 0.5  # documents of two tokens have one pair


def test_subtokens_are_rows_of_their_token():
    layer, corpus = layer_of(2, 1, subtokens=2), corpus_of([[1, 2]], ["x"])
    batch = batch_of(layer, corpus, torch.zeros(4, 2), [[0], [1], [0], [0]])
    model = ByHand(layer)
    load = result(dynamic.ExpertLoad(), model, corpus, [batch]).isel(layer=0)
    assert load.selections.values.tolist() == [3, 1]
    np.testing.assert_allclose(load.frequency, [1.5, 0.5])
    choices = result(dynamic.GateChoices(), model, corpus, [batch])
    assert choices.weight.dims == ("layer", "token", "subtoken", "expert")
    assert choices.weight.values[0].tolist() == [[[1, 0], [0, 1]], [[1, 0], [1, 0]]]
    places = result(dynamic.TokenSpecialization(min_count=1), model, corpus, [batch]).isel(layer=0)
    assert float(places.repetition.sel(choice="any")) == 0.5


@pytest.mark.parametrize("subtokens", [1, pytest.param(2, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("maker", MAKERS)
@settings(max_examples=10)
@given(order=st.permutations(range(len(DOCUMENTS))), cut=st.integers(1, 2), seed=st.integers(0, 9))
def test_merging_in_any_order_gives_the_same(maker, subtokens, order, cut, seed):
    layers = [layer_of(5, 2, index, subtokens, kinds=KINDS) for index in (0, 3)]
    corpus, model = corpus_of(DOCUMENTS, LABELS), ByHand(*layers)
    routed = list(zip(*(random_routing(layer, corpus, seed + layer.index) for layer in layers), strict=True))
    whole = result(maker(), model, corpus, [batch for batches in routed for batch in batches])
    parts = [maker(), maker()]
    for place, number in enumerate(order):
        for batch in routed[number]:
            parts[place >= cut].update(batch)
    restored = maker()
    restored.restore(parts[1].state())
    parts[0].merge(restored)
    xr.testing.assert_allclose(parts[0].result(model.on(corpus)), whole)


@pytest.mark.parametrize("maker", UNLABELLED)
@settings(max_examples=10)
@given(new=st.permutations(range(5)), seed=st.integers(0, 9))
def test_relabelling_experts_permutes_results(maker, new, seed):
    layer, corpus = layer_of(5, 2), corpus_of(DOCUMENTS)
    model, new = ByHand(layer), torch.tensor(new)
    old = new.argsort()  # expert e becomes new[e]
    batches = random_routing(layer, corpus, seed)
    renamed = []
    for batch in batches:
        number = int(batch.tokens.document[0])
        logits, outputs = batch.router_logits[:, old], batch.outputs[old]
        index = new[batch.top_k_index]
        renamed.append(batch_of(layer, corpus, logits, index, batch.top_k_weights, [number], outputs))
    found, expected = (result(maker(), model, corpus, some) for some in (renamed, batches))
    for dim in {"expert", "other", "source"} & set(expected.dims):
        expected = expected.isel({dim: old.tolist()}).assign_coords({dim: found[dim]})
    for name in expected.data_vars:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-9, err_msg=name)


def test_norm_and_score_ranks_equal_those_of_scipy():
    layer, corpus = layer_of(6, 2), corpus_of(DOCUMENTS)
    batches = random_routing(layer, corpus, 3)
    found = result(dynamic.NormScoreRanks(), ByHand(layer), corpus, batches)
    expected = np.zeros((6, 6), int)
    for batch in batches:
        norms = np.linalg.norm(batch.outputs.double().numpy(), axis=-1).T
        scores = rankdata(batch.scores.numpy(), axis=1, method="ordinal").astype(int)
        np.add.at(expected, (scores - 1, rankdata(norms, axis=1, method="ordinal").astype(int) - 1), 1)
    np.testing.assert_array_equal(found.pairs.isel(layer=0), expected)


def test_layers_made_differently_are_refused_together():
    layers = [layer_of(4, 2, 0), layer_of(3, 2, 1)]
    corpus = corpus_of(DOCUMENTS)
    batches = [batch for layer in layers for batch in random_routing(layer, corpus, 0)]
    with pytest.raises(InputError, match="Layers 0 and 1 differ"):
        result(dynamic.ExpertLoad(), ByHand(*layers), corpus, batches)


def test_parameters_out_of_range_are_refused():
    with pytest.raises(InputError, match="bins is 0; pass a whole number from 1 to 1,000,000"):
        dynamic.RouterScores(bins=0)
    with pytest.raises(InputError, match="min_count is 0"):
        dynamic.TokenSpecialization(min_count=0)
    with pytest.raises(InputError, match="no metric 'dot'; there are cosine, angular"):
        dynamic.OutputSimilarity("dot")
    with pytest.raises(InputError, match="no value of outputs 'some'"):
        dynamic.Record(outputs="some")
