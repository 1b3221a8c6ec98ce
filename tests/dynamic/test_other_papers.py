"""The other papers' analyses by hand, their intervals and chance levels, and what they refuse."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, spearmanr
from small_batches import ByHand, batch_of, corpus_of, layer_of, random_routing

import moe_probe
from moe_probe import comparisons, dynamic, plotting
from moe_probe.errors import InputError
from moe_probe.statistics.bootstrap import interval
from moe_probe.statistics.capacity import ORDERS, arrival_ranks, capacity, has_place
from moe_probe.texts.pictures import patch_energy
from moe_probe.texts.tokenizing import make_corpus
from moe_probe.texts.words import LISTS, find_words, tokens_of_spans, tokens_of_words

TEXTS = ["The bank's light.", "Banks lie; the BANK lies.", "A long bear market."]


def result(analysis, model, corpus, batches):
    analysis.check(model.on(corpus))
    for batch in batches:
        analysis.update(batch)
    return analysis.result(model.on(corpus))


def routed(layer, documents, seed=0, labels=None):
    corpus = corpus_of(documents, labels)
    return ByHand(layer), corpus, random_routing(layer, corpus, seed)


@pytest.mark.parametrize("name", ["tiny-mixtral", "tiny-mh-moe", "tiny-moe-plus-plus"])
def test_every_piece_of_a_listed_word_is_marked_and_nothing_else(name):
    model = moe_probe.load(f"ckpt/{name}")
    corpus = make_corpus(model, TEXTS)
    marked = tokens_of_words(corpus, ["bank", "bear"])
    for document in corpus.documents:
        own = marked[corpus.tokens().document == document.number]
        text = "".join(document.text[a:b] for (a, b), mark in zip(document.spans, own, strict=True) if mark)
        assert text.replace(" ", "") == {0: "bank's", 1: "BANK", 2: "bear"}[document.number]
    assert find_words(corpus.documents[0]).texts.tolist() == ["The", "bank's", "light"]


def test_spans_mark_the_tokens_that_they_touch():
    corpus = make_corpus(moe_probe.load("ckpt/tiny-mixtral"), [f"  {TEXTS[2]}"])
    marked = tokens_of_spans(corpus, {0: [(9, 13)]})
    document = corpus.documents[0]
    assert "".join(document.text[a:b] for (a, b), m in zip(document.spans, marked, strict=True) if m).strip() == "bear"
    with pytest.raises(InputError, match="Document 0 has 21 characters, not the span"):
        tokens_of_spans(corpus, {0: [(5, 99)]})
    with pytest.raises(InputError, match="Document 3 is not in the corpus"):
        tokens_of_spans(corpus, {3: [(0, 1)]})


def test_texts_and_token_ids_have_the_same_words():
    model = moe_probe.load("ckpt/tiny-mixtral")
    written = make_corpus(model, TEXTS)
    ids = make_corpus(model, [list(document.ids) for document in written.documents])
    assert [d.text for d in ids.documents] == [d.text for d in written.documents]
    for one, other in zip(written.documents, ids.documents, strict=True):
        np.testing.assert_array_equal(find_words(one).of_token, find_words(other).of_token)


@pytest.mark.parametrize("name", LISTS)
def test_word_lists_hold_distinct_words(name):
    words = dynamic.word_list(name)
    assert len(words) == len(set(words)) >= 70
    assert all(word.isascii() and word == word.lower() for word in words)


def test_divergence_of_two_groups_by_hand():
    layer, corpus = layer_of(4, 1, subtokens=2), corpus_of([[1, 2], [1, 3]])
    index = [[0], [1], [2], [2], [0], [3], [1], [1]]
    found = result(
        dynamic.SubtokenDivergence(words=["1"]),
        ByHand(layer),
        corpus,
        [batch_of(layer, corpus, torch.zeros(8, 4), index)],
    )
    assert found.divergence.values.tolist() == [[2, 1, 2, 1]]
    assert found.group_mean.values.tolist() == [2, 1]
    assert float(found.difference) == 1
    assert found.token_group.values.tolist() == ["PF", "non-PF", "PF", "non-PF"]
    assert float(found.superiority) == 1
    assert float(found.p_value) == pytest.approx(mannwhitneyu([2], [1, 1]).pvalue)  # word types 1; 2 and 3


def test_without_a_listed_word_there_is_divergence_but_no_difference():
    found = result(dynamic.SubtokenDivergence(), *routed(layer_of(4, 1, subtokens=2), [[1, 2], [3]]))
    assert np.isfinite(found.divergence_mean).all()
    assert np.isnan(found.difference)
    assert len(dict(moe_probe.plotting.figures(found))) == 2


def test_without_sub_tokens_occurrences_are_compared():
    layer, corpus = layer_of(6, 2), corpus_of([[1, 1, 1, 2, 2]])
    batch = batch_of(layer, corpus, torch.zeros(5, 6), [[0, 1], [1, 2], [3, 4], [0, 5], [0, 5]])
    analysis = dynamic.SubtokenDivergence(words=["1"], bootstrap=0, permutations=0)
    found = result(analysis, ByHand(layer), corpus, [batch])
    np.testing.assert_allclose(found.divergence.values[0], [3.5, 3.5, 4, 2, 2])
    assert found.attrs["unit"] == "two occurrences"
    assert "difference_low" not in found
    assert "difference_chance" not in found


def test_a_marked_group_that_is_like_the_rest_lies_within_chance():
    rng = np.random.default_rng(1)
    documents = [rng.integers(0, 40, size=60).tolist() for _ in range(20)]
    layer = layer_of(8, 2, subtokens=4)
    found = result(dynamic.SubtokenDivergence(words=[str(n) for n in range(20)]), *routed(layer, documents))
    assert float(found.difference_chance_low) < float(found.difference) < float(found.difference_chance_high)
    assert float(found.difference_low) < 0 < float(found.difference_high)


def test_ffn_experts_by_class_by_hand():
    layer, corpus = layer_of(3, 1, kinds=("ffn", "ffn", "zero")), corpus_of([[7, 7, 8], [7]])
    batch = batch_of(layer, corpus, torch.zeros(4, 3), [[0], [2], [2], [1]])

    def tagger(words):
        return ["noun" if word == "7" else "verb" for word in words]

    found = result(dynamic.FFNExpertsPerToken(1, tagger), ByHand(layer), corpus, [batch])
    assert found.ffn_experts.values.tolist() == [[1, 0, 0, 1]]
    assert found.type.values.tolist() == [7, 8]
    np.testing.assert_allclose(found.type_density, [2 / 3, 0])
    assert found.type_count.values.tolist() == [3, 1]
    assert found.pos.values.tolist() == ["noun", "verb"]
    np.testing.assert_allclose(found.place_density, [1, 0, 0])
    assert float(found.chance) == 0.5


def test_a_tagger_must_tag_every_word():
    layer, corpus = layer_of(2, 1, kinds=("ffn", "zero")), corpus_of([[7, 7]])
    batch = batch_of(layer, corpus, torch.zeros(2, 2), [[0], [1]])
    with pytest.raises(InputError, match="returned 1 tags for 2 words"):
        result(dynamic.FFNExpertsPerToken(1, lambda words: ["x"]), ByHand(layer), corpus, [batch])
    with pytest.raises(InputError, match="A tagger is a callable"):
        dynamic.FFNExpertsPerToken(tagger="nltk")


def test_textblob_tags_words_without_a_download():
    analysis = dynamic.FFNExpertsPerToken(1, "textblob")
    found = dynamic.run("ckpt/tiny-moe-plus-plus", ["The old man sees the river."], [analysis], progress=False)
    assert {"noun", "verb", "adjective", "determiner"} <= set(found["ffn_experts_per_token"].pos.values)


def test_a_spacy_pipeline_is_given_the_words():
    class Pipeline:
        pipe_names, vocab = ("tagger",), None

    assert type(dynamic.FFNExpertsPerToken(tagger=Pipeline())._tag).__name__ == "_Spacy"


@settings(max_examples=40)
@given(
    seed=st.integers(0, 99),
    order=st.sampled_from(ORDERS),
    groups=st.integers(1, 3),
    factor=st.sampled_from([0.3, 0.5, 1.0, 1.1, 2.0]),
)
def test_capacity_is_that_of_a_walk_through_the_choices(seed, order, groups, factor):
    rng = np.random.default_rng(seed)
    rows, experts, k = int(rng.integers(3, 20)), 4, 2
    index = np.stack([rng.permutation(experts)[:k] for _ in range(rows)])
    weights = rng.random((rows, k))
    expected = np.zeros((rows, k), bool)
    limit = capacity(rows, experts, k, factor, groups)
    for part in np.array_split(np.arange(rows), groups):
        ordered = sorted(part, key=lambda row: -weights[row].max()) if order == "score" else part
        walk = [(r, s) for r in ordered for s in range(k)] if order == "token" else None
        seen = [0] * experts
        for row, slot in walk or [(r, s) for s in range(k) for r in ordered]:
            expected[row, slot] = seen[index[row, slot]] < limit
            seen[index[row, slot]] += 1
    np.testing.assert_array_equal(has_place(index, weights, experts, factor, order, groups), expected)


def test_no_choice_is_dropped_when_there_is_room_and_most_are_when_there_is_none():
    layer = layer_of(4, 2)
    found = result(dynamic.ExpertCapacity([0.01, 4.0]), *routed(layer, [[1] * 50, [2] * 50]))
    assert (found.dropped.sel(factor=4.0) == 0).all()
    assert (found.fully_dropped.sel(factor=0.01) > 0.9).all()
    assert (found.second_dropped.sel(factor=4.0) > 0).all()
    assert found.capacity.values[0].tolist() == [1, 200]
    with pytest.raises(InputError, match="groups=9 is more than the 2 rows"):
        arrival_ranks(np.zeros((2, 1), int), np.ones((2, 1)), 2, groups=9)


def test_tasks_of_ffn_experts_alone_have_nothing_to_correlate():
    texts, labels = ["1 + 1 = 2", "def f(x): return x", "The river was soft."], ["sums", "code", "prose"]
    found = dynamic.task_load("ckpt/tiny-deepseek-moe", texts, labels=labels, progress=False)
    assert (found.ffn_per_token == 4).all()
    assert found.ffn_spread.isnull().all()  # one document a task
    assert found.correlation.isnull().all()
    assert "at least three" in found.correlation.attrs["undefined"]
    assert "task_load_correlation_tasks" not in [stem for stem, _ in plotting.figures(found)]


def test_task_load_by_hand():
    layer = layer_of(3, 1, kinds=("ffn", "constant", "zero"))
    corpus = corpus_of([[1, 1], [1, 1], [1, 1]], ["a", "b", "c"])
    batch = batch_of(layer, corpus, torch.zeros(6, 3), [[0], [0], [0], [2], [2], [2]])
    accuracy = {"a": 0.1, "b": 0.5, "c": 0.9}
    found = result(dynamic.TaskLoad(accuracy), ByHand(layer), corpus, [batch]).isel(layer=0)
    np.testing.assert_allclose(found.share, [[1, 0, 0], [0.5, 0, 0.5], [0, 0, 1]])
    np.testing.assert_allclose(found.ffn_per_token, [1, 0.5, 0])
    assert found.task_distance.isnull()  # one document a task
    plain = result(dynamic.TaskLoad(accuracy, as_published=True), ByHand(layer), corpus, [batch]).isel(layer=0)
    assert float(plain.task_distance) == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert float(plain.ffn_spread) == pytest.approx(np.std([1, 0.5, 0]))
    assert float(found.zero_accuracy_p) == pytest.approx(2 / 6)  # of the orders of three tasks
    assert float(found.zero_accuracy) == pytest.approx(spearmanr([0, 0.5, 1], [0.1, 0.5, 0.9]).statistic)


@pytest.mark.parametrize("spans", [None, {0: [(0, 1)], 1: [(0, 1)]}])
def test_chance_of_marked_words_does_not_depend_on_the_order_of_documents(spans):
    rng = np.random.default_rng(4)
    ids = [rng.integers(1, 9, 12).tolist() for _ in range(6)]
    choices = [rng.integers(0, 6, (12, 2)) for _ in ids]
    layer, found = layer_of(6, 2), []
    for order in ([0, 1, 2, 3, 4, 5], [4, 2, 1, 5, 3, 0]):
        marks = spans and {at: spans[number] for at, number in enumerate(order) if number in spans}
        corpus = corpus_of([ids[number] for number in order])
        index = np.concatenate([choices[number] for number in order])
        batch = batch_of(layer, corpus, torch.zeros(72, 6), index)
        analysis = dynamic.SubtokenDivergence(words=None if spans else ["3", "5"], spans=marks, permutations=99)
        found.append(result(analysis, ByHand(layer), corpus, [batch]))
    for name in ("difference", "difference_chance", "difference_chance_low", "difference_chance_high"):
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-9, err_msg=name)


def test_tasks_whose_documents_do_not_differ_have_a_distance_and_no_interval():
    layer, corpus = layer_of(3, 1), corpus_of([[1, 1]] * 12, ["a", "b"] * 6)
    index = np.repeat([[0], [2]] * 6, 2, 0)
    found = result(dynamic.TaskLoad(), ByHand(layer), corpus, [batch_of(layer, corpus, torch.zeros(24, 3), index)])
    assert float(found.task_distance[0]) == 1
    assert found.task_distance_low.isnull().all()
    assert float(found.ffn_spread[0]) == 0
    assert found.ffn_spread_low.isnull().all()
    assert float(found.task_distance_p[0]) < 0.01


def test_tasks_of_one_kind_differ_by_chance_and_others_beyond():
    layer = layer_of(6, 2, kinds=("ffn",) * 5 + ("zero",))
    documents = [[1] * 30] * 24
    labels = ["a", "b"] * 12
    same = result(dynamic.TaskLoad(), *routed(layer, documents, labels=labels))
    assert (same.task_distance < same.task_distance_chance_high).all()
    corpus = corpus_of(documents, labels)
    rng = np.random.default_rng(0)
    batches = []
    for document in corpus.documents:
        prefers = 0 if document.label == "a" else 3
        index = np.stack([prefers + rng.permutation(3)[:2] for _ in document.ids])
        batches.append(batch_of(layer, corpus, torch.zeros(30, 6), index, documents=[document.number]))
    other = result(dynamic.TaskLoad(), ByHand(layer), corpus, batches)
    assert float(other.task_distance[0]) == 1
    assert float(other.task_distance_chance_high[0]) <= 0.5
    assert float(other.task_distance_p[0]) == pytest.approx(1 / 1001)


def test_the_interval_of_a_mean_is_that_of_student():
    from scipy.stats import t

    values = np.random.default_rng(0).normal(size=30)
    low, high = interval(lambda total: total["x"] / total["n"], {"x": values, "n": np.ones(30)}, 4000)
    expected = t.interval(0.95, 29, values.mean(), values.std(ddof=1) / 30**0.5)
    np.testing.assert_allclose([low, high], expected, atol=0.03)


def test_intervals_hold_the_value_and_can_be_left_out():
    layer = layer_of(6, 2)
    documents = [np.random.default_rng(n).integers(0, 9, 40).tolist() for n in range(12)]
    names = {
        dynamic.ExpertLoad: ["label_share"],
        dynamic.Coactivation: ["lift"],
        dynamic.TokenSpecialization: [
            "vocabulary_specialization",
            "context_independence",
            "position_share",
            "repetition",
        ],
    }
    for cls, variables in names.items():
        model, corpus, batches = routed(layer, documents, labels=["a", "b"] * 6)
        found = result(cls(), model, corpus, batches)
        for name in variables:
            inside = (found[f"{name}_low"] <= found[name] + 1e-9) & (found[name] <= found[f"{name}_high"] + 1e-9)
            assert float(inside.mean()) > 0.9, name
        bare = result(cls(bootstrap=0, chance=False), model, corpus, batches)
        assert not [name for name in bare if name.endswith(("_low", "_high", "chance"))]
        for name in variables:
            np.testing.assert_allclose(bare[name], found[name])


def test_published_coactivation_counts_neighbours_only():
    layer, corpus = layer_of(4, 3), corpus_of([[1, 2]])
    logits = [[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]]
    batch = batch_of(layer, corpus, logits, [[2, 0, 1], [1, 2, 3]])
    found = result(dynamic.Coactivation(as_published=True), ByHand(layer), corpus, [batch])
    every = result(dynamic.Coactivation(), ByHand(layer), corpus, [batch])
    assert found.pairs.values[0].tolist() == [[1, 1, 0, 0], [1, 2, 2, 0], [0, 2, 2, 1], [0, 0, 1, 1]]
    assert every.pairs.values[0].tolist() == [[1, 1, 1, 0], [1, 2, 2, 1], [1, 2, 2, 1], [0, 1, 1, 1]]
    assert dynamic.TokenSpecialization(as_published=True).min_count == 1


def test_texture_energy_of_plain_and_striped_patches():
    picture = np.zeros((8, 16))
    picture[:, 8::2] = 1
    for energy in ("gradient", "spectrum"):
        plain, striped = patch_energy(picture, (1, 2), energy)[0]
        assert plain == 0
        assert striped == pytest.approx(1)
    with pytest.raises(InputError, match="patches of 2 x 2 or more"):
        patch_energy(picture, (8, 8))


def test_patches_stand_where_their_tokens_are():
    layer = layer_of(4, 1, subtokens=2)
    model, corpus, batches = routed(layer, [[9, 1, 2, 3, 4, 5, 6, 8], [9, 1, 2, 3, 4, 5, 6, 8]])
    pictures = [np.random.default_rng(n).random((8, 12)) for n in range(2)]
    found = result(dynamic.PatchDivergence((2, 3), pictures, offset=1), model, corpus, batches)
    expected = [[len(set(row)) for row in batch.top_k_index.view(8, 2).tolist()] for batch in batches]
    np.testing.assert_array_equal(found.divergence[0, 1].values.flatten(), expected[1][1:7])
    high = found.energy.values > np.median(found.energy.values, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(found.texture_mean.sel(texture_group="high"), found.divergence_mean.values[high].mean())
    with pytest.raises(InputError, match="has 8 tokens; a grid of 3 x 3 after 0 tokens needs 9"):
        dynamic.PatchDivergence((3, 3)).check(model.on(corpus))
    with pytest.raises(InputError, match="There are 1 pictures for 2 documents"):
        dynamic.PatchDivergence((2, 3), pictures[:1]).check(model.on(corpus))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dynamic.SubtokenDivergence(words=[]), "words is an empty list"),
        (lambda: dynamic.SubtokenDivergence(words="bank"), "words is the string 'bank'; pass a list"),
        (lambda: dynamic.SubtokenDivergence(bootstrap=-1), "bootstrap is -1; pass a whole number from 0"),
        (lambda: dynamic.ExpertCapacity(factors=[]), "factors is \\[\\]; pass positive numbers"),
        (lambda: dynamic.ExpertCapacity(orders=["last"]), "no order of arrival"),
        (lambda: dynamic.Complexity([0]), "taus is \\[0\\]; pass positive numbers"),
        (lambda: dynamic.PatchDivergence((0, 3)), "grid is"),
        (lambda: dynamic.word_list("latin"), "no word list 'latin'"),
    ],
)
def test_bad_parameters_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_what_a_corpus_or_model_lacks_is_said():
    texts, run = ["2 + 2"], dynamic.run
    with pytest.raises(InputError, match="at least two labels"):
        run("ckpt/tiny-mixtral", texts, [dynamic.TaskLoad()], progress=False)
    with pytest.raises(InputError, match="accuracy lacks the tasks b"):
        run("ckpt/tiny-mixtral", texts * 2, [dynamic.TaskLoad({"a": 1})], labels=["a", "b"], progress=False)
    with pytest.raises(InputError, match="No token of the corpus is PF"):
        run("ckpt/tiny-mh-moe", texts, [dynamic.SubtokenDivergence(words=["bank"])], progress=False)
    with pytest.raises(InputError, match="only FFN experts, so every token uses 2"):
        run("ckpt/tiny-mixtral", texts, [dynamic.FFNExpertsPerToken()], progress=False)
    with pytest.raises(InputError, match="no gating residual"):
        comparisons.gating_residual("ckpt/tiny-mixtral", texts, progress=False)


def test_removing_the_residual_leaves_the_model_as_it_was():
    model = moe_probe.load("ckpt/tiny-moe-plus-plus")
    first = comparisons.gating_residual(model, TEXTS, progress=False)
    assert model.module.config.moe_gate_residual
    live = moe_probe.load(model.module, tokenizer=model.tokenizer)
    again = comparisons.gating_residual(live, TEXTS, progress=False)
    np.testing.assert_array_equal(again.histogram, first.histogram)
    both = first.histogram.values
    assert (both[0] != both[1]).any()


@pytest.mark.thorough
@pytest.mark.xdist_group("workers")  # on one worker: processes are started once
def test_workers_remove_the_residual_too():
    model = moe_probe.load("ckpt/tiny-moe-plus-plus")
    one, two = (comparisons.gating_residual(model, TEXTS, progress=False, n_jobs=jobs) for jobs in (1, 2))
    np.testing.assert_array_equal(one.histogram, two.histogram)


def test_a_corpus_in_which_no_token_comes_twice_has_no_divergence():
    ds = dynamic.subtoken_divergence("ckpt/tiny-mixtral", [[10, 11, 12], [20, 21, 22]], progress=False)
    assert ds.divergence.isnull().all()
    assert ds[["difference", "difference_low", "difference_high", "p_value"]].to_array().isnull().all()
    assert len(list(plotting.figures(ds))) == 2
