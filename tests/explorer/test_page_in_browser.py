"""The page in a real browser: what it shows equals the trace; no errors, no network."""

import csv
import re

import numpy as np
import pytest
from browsing import LABELS, TEXTS, Opened, Routed

import moe_probe
from moe_probe import explorer, static
from moe_probe.intervene import Mask

pytestmark = [pytest.mark.thorough, pytest.mark.xdist_group("browser")]
SMOOTHING, LEAST = 5, 2


@pytest.fixture(scope="module", params=["tiny-mixtral", "tiny-mh-moe", "tiny-moe-plus-plus"])
def routed(request, tmp_path_factory):
    return Routed(request.param, tmp_path_factory.mktemp("trace"))


@pytest.fixture(scope="module")
def similarity(routed):
    return static.similarity(f"ckpt/{routed.name}", "neuron_mean")


@pytest.fixture(scope="module")
def opened(routed, similarity, browser, tmp_path_factory):
    path = explorer.explore(routed.trace, similar=similarity).save(tmp_path_factory.mktemp("page") / "page.html")
    return Opened(browser, path)


@pytest.fixture
def fresh(opened):
    """The page as it is when it has just been opened."""
    opened.page.goto("about:blank")
    opened.page.goto(opened.path.as_uri())
    opened.wait()
    return opened


def lifts(routed, layer):
    """By token string and expert: hits, rows of the string, and the lift with smoothing, from the trace."""
    own = routed.frame[routed.frame.layer == layer]
    rows = own[own["rank"] == 0]
    rate = own.groupby("expert").size() / len(rows)
    hits = own.groupby(["string", "expert"]).size().rename("hits").reset_index()
    hits["rows"] = hits.string.map(rows.groupby("string").size())
    share = hits.expert.map(rate)
    hits["lift"] = (hits.hits + SMOOTHING * share) / (hits.rows + SMOOTHING) / share
    return hits[hits.hits >= LEAST]


def written(string):
    return string.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣") or "∅"


def times(value):
    return f"{round(value)}×" if value >= 99.5 else f"{value:#.2g}".rstrip(".") + "×"


def pick(opened, expert):
    opened.act(lambda: opened.page.select_option("#expert", str(expert)))


def test_nothing_is_picked_and_nothing_is_empty_when_it_opens(fresh):
    assert not fresh.page.is_visible("#token")
    assert fresh.page.input_value("#expert") == ""
    assert fresh.page.locator("table:visible tbody:empty").count() == 0
    assert fresh.page.locator(".uses, .held").count() == 0
    assert len(fresh.rows("Experts of the layer")) == fresh.page.locator("#expert option").count() - 1


def test_every_token_is_written_and_pointing_at_one_shows_its_numbers(fresh, routed):
    assert fresh.page.locator("[data-token]").count() == routed.trace.corpus.num_tokens
    for layer in routed.trace.moe_layers[:2]:
        fresh.slide(layer)
        part = ", sub-token 0" if "mh" in routed.name else ""
        for token in (1, 5, routed.trace.corpus.num_tokens - 1):
            fresh.page.hover(f"[data-token='{token}']")
            rows, chosen = fresh.rows(f"Its experts, layer {layer}{part}"), routed.choices(layer, token)
            first = rows[: len(chosen)]
            assert [row[:2] for row in first] == [
                [f"{r + 1}.", str(e)] for r, e in zip(chosen["rank"], chosen.expert, strict=True)
            ]
            np.testing.assert_allclose([float(row[-1]) for row in first], chosen.weight, rtol=0.0051)
            logits = chosen.router_logits.iloc[0]
            for row in rows:
                assert float(row[-2]) == pytest.approx(logits[int(row[1])], abs=0.0051)
            if "kind" in fresh.page.inner_text("#token thead"):
                assert [row[2] for row in first] == chosen.kind.tolist()


def test_colors_follow_the_chosen_expert_layer_by_layer(fresh, routed):
    for layer in (routed.trace.moe_layers[-1], routed.trace.moe_layers[0]):
        fresh.slide(layer)
        colors = fresh.page.locator("[data-token]").evaluate_all("all => all.map(span => span.style.background)")
        firsts = routed.frame.query(f"layer == {layer} and subtoken == 0 and rank == 0").sort_values("token").expert
        by_expert = dict(zip(firsts, colors, strict=True))
        if routed.trace.layer(layer).num_experts <= 8:
            assert [by_expert[expert] for expert in firsts] == colors
            chips = fresh.page.locator("#legend button").evaluate_all("all => all.map(chip => chip.style.background)")
            assert all(chips[expert] == color for expert, color in by_expert.items())
            assert len(set(chips)) == len(chips) or routed.trace.layer(layer).expert_kinds[0] != "ffn"


def test_an_expert_shows_what_it_fires_on_by_lift(fresh, routed):
    layer = routed.trace.moe_layers[0]
    fresh.slide(layer)
    known = lifts(routed, layer)
    expert = int(known.expert.mode()[0])
    pick(fresh, expert)
    own = known[known.expert == expert].sort_values(["lift", "hits"], ascending=False).head(15)
    shown = fresh.rows("What it fires on")
    assert [row[1] for row in shown] == [times(value) for value in own["lift"]]
    assert sorted(row[2] for row in shown) == sorted(f"{h} of {r}" for h, r in zip(own.hits, own.rows, strict=True))
    assert {row[0] for row in shown[:3]} <= {written(string) for string in own.string}
    choices = routed.frame[routed.frame.layer == layer]
    assert f"{100 * (choices.expert == expert).mean():.3g}"[:3] in fresh.page.inner_text("#expert-load")
    marked = "uses" if routed.trace.layer(layer).num_experts <= 8 else "colored"
    uses = fresh.page.evaluate(
        """marked => [...document.querySelectorAll("[data-token]")].filter((token) => marked === "uses"
          ? token.classList.contains("uses") : token.style.background !== "transparent").length""",
        marked,
    )
    assert uses == choices[choices.expert == expert].token.nunique()


def test_an_experts_tokens_by_weight_have_their_contexts(fresh, routed):
    layer = routed.trace.moe_layers[0]
    fresh.slide(layer)
    own = routed.frame[routed.frame.layer == layer]
    expert = int(own.expert.mode()[0])
    pick(fresh, expert)
    fresh.act(lambda: fresh.page.get_by_role("button", name="by weight").click())
    best = own[own.expert == expert].groupby("string").weight.max().sort_values(ascending=False)
    shown = fresh.rows("What it fires on")
    np.testing.assert_allclose([float(row[1]) for row in shown], best[: len(shown)], rtol=0.0051)
    whole = "".join(routed.trace.corpus.strings[token] for d in routed.trace.corpus.documents for token in d.ids)
    assert all(row[2].replace("↵", "\n") in whole for row in shown)


def test_an_expert_shows_its_partners_neighbors_and_labels(fresh, routed, similarity):
    layer = routed.trace.moe_layers[0]
    fresh.slide(layer)
    own = routed.frame[routed.frame.layer == layer]
    expert = int(own.expert.mode()[0])
    pick(fresh, expert)
    keys = ["token", "subtoken"]
    beside = own.merge(own[own.expert == expert][keys], on=keys)
    rows = len(own[own.expert == expert])
    together = beside.groupby("expert").size().drop(expert)
    for name, ratio, count, _ in fresh.rows("Whom it fires with"):
        rate = (own.expert == int(name)).sum() / len(own[own["rank"] == 0])
        assert count == f"{together[int(name)]} of {rows}"
        assert ratio == times((together[int(name)] + SMOOTHING * rate) / (rows + SMOOTHING) / rate)
    if str(expert) in similarity.expert.values:
        cosine = similarity.cosine.sel(layer=layer, expert=str(expert)).mean("projection").to_series()
        nearest = cosine.drop(str(expert)).sort_values(ascending=False)
        fresh.page.wait_for_selector("#expert-near table")
        assert fresh.rows("Most similar experts, by their weights")[0] == [nearest.index[0], f"{nearest.iloc[0]:.3f}"]
    by_label = own.groupby("label").expert.agg(lambda chosen: (chosen == expert).mean())
    for label, share, _ in fresh.rows("Its share by label"):
        assert float(share.split()[0]) / 100 == pytest.approx(by_label[label], rel=0.006, abs=1e-9)


def test_a_person_finds_the_expert_that_fires_on_closing_brackets(fresh, routed):
    fresh.page.keyboard.press("/")
    fresh.page.keyboard.type(")")
    fresh.page.wait_for_selector("#found-experts[data-done=true]")
    shown = fresh.rows("Experts that fire on it")
    expected = []
    for layer in routed.trace.moe_layers:
        own = routed.frame[routed.frame.layer == layer]
        rows = own[own["rank"] == 0]
        brackets = own[own.string.str.strip() == ")"]
        count = (rows.string.str.strip() == ")").sum()
        for expert, hits in brackets.groupby("expert").size().items():
            rate = (own.expert == expert).sum() / len(rows)
            if hits >= LEAST:
                ratio = (hits + SMOOTHING * rate) / (count + SMOOTHING) / rate
                expected.append((ratio, [str(layer), str(expert), times(ratio), f"{hits} of {count}"]))
    expected.sort(key=lambda each: -each[0])
    assert [row[2] for row in shown] == [row[2] for _, row in expected[:20]]
    assert shown[0] in [row for ratio, row in expected if ratio == expected[0][0]]
    fresh.act(lambda: fresh.page.locator("#found-experts tbody button").first.click())
    assert fresh.page.inner_text("#expert-title").startswith(f"Expert {shown[0][1]} of layer {shown[0][0]}")
    assert fresh.address.startswith(f"#layer={shown[0][0]}&expert={shown[0][1]}")


def test_search_finds_texts_and_labels(fresh):
    fresh.act(lambda: fresh.page.fill("#find", "river was"))
    (row,) = fresh.rows("Texts")
    assert row[0] == "text 0"
    fresh.act(lambda: fresh.page.get_by_role("button", name="text 0").click())
    assert "text 0" in fresh.page.inner_text("#token")
    fresh.act(lambda: fresh.page.fill("#find", "arith"))
    fresh.act(lambda: fresh.page.get_by_role("region", name="Labels").get_by_role("button").click())
    assert fresh.page.locator(".document:visible").count() == 1
    assert "label=arithmetic" in fresh.address


def test_a_label_filters_the_texts_and_all_numbers(fresh, routed):
    layer = routed.trace.moe_layers[0]
    fresh.slide(layer)
    fresh.act(lambda: fresh.page.select_option("#label", "code"))
    own = routed.frame.query(f"layer == {layer} and label == 'code'")
    expert = int(own.expert.mode()[0])
    pick(fresh, expert)
    assert f"{100 * (own.expert == expert).mean():.3g}"[:3] in fresh.page.inner_text("#expert-load")
    rows = own[own["rank"] == 0].groupby("string").size()
    for string, _, hits, _ in fresh.rows("What it fires on"):
        assert int(hits.split(" of ")[1]) in rows[[written(each) == string for each in rows.index]].tolist()


def test_a_held_token_stays_and_moves_by_keys(fresh):
    fresh.act(lambda: fresh.page.click("[data-token='3']"))
    fresh.page.hover("[data-token='8']")
    assert "token 3" in fresh.page.inner_text("#token")
    fresh.focus_text()
    fresh.press("ArrowRight")
    assert "token 4" in fresh.page.inner_text("#token")
    fresh.press("Escape")
    assert not fresh.page.is_visible("#token")


def test_subtokens_and_kinds_have_their_own_views(fresh, routed):
    layer = routed.trace.moe_layers[0]
    fresh.slide(layer)
    own = routed.frame[routed.frame.layer == layer]
    parts = own.subtoken.nunique()
    options = fresh.page.locator("#color option").all_inner_texts()
    assert (parts > 1) == ("distinct experts of its sub-tokens" in options)
    assert (set(own.kind) != {"ffn"}) == ("FFN experts used" in options)
    assert fresh.page.is_visible("#part-field") == (parts > 1)
    if parts > 1:
        fresh.act(lambda: fresh.page.click("[data-token='2']"))
        rows = fresh.rows("Its sub-tokens")
        expected = [", ".join(map(str, routed.choices(layer, 2, part).expert)) for part in range(parts)]
        assert [row[:2] for row in rows] == [[str(part), experts] for part, experts in enumerate(expected)]
        fresh.act(
            lambda: fresh.page.get_by_role("region", name="Its sub-tokens").get_by_role("button", name="1").click()
        )
        assert [row[1] for row in fresh.rows(f"Its experts, layer {layer}, sub-token 1")][:1] == [
            expected[1].split(",")[0]
        ]
    if set(own.kind) != {"ffn"}:
        fresh.act(lambda: fresh.page.select_option("#color", "ffn"))
        used = own.groupby("token").kind.agg(lambda kinds: (kinds == "ffn").sum()).to_numpy()
        colors = fresh.page.locator("[data-token]").evaluate_all("all => all.map(span => span.style.background)")
        shades = {color: int(count) for color, count in zip(colors, used, strict=True)}
        assert len(shades) == len(set(used))
        brightness = {count: sum(map(int, re.findall(r"\d+", color))) for color, count in shades.items()}
        assert sorted(brightness, key=brightness.get, reverse=True) == sorted(brightness)


def test_the_address_keeps_what_is_shown(fresh, routed, browser):
    layer = routed.trace.moe_layers[-1]
    fresh.slide(layer)
    pick(fresh, 2)
    fresh.act(lambda: fresh.page.click("[data-token='7']"))
    fresh.act(lambda: fresh.page.select_option("#label", "prose"))
    assert fresh.address == f"#layer={layer}&expert=2&token=7&label=prose"
    again = Opened(browser, fresh.path, address=fresh.address)
    assert again.page.inner_text("#token") == fresh.page.inner_text("#token")
    assert again.page.inner_text("#about") == fresh.page.inner_text("#about")
    assert again.problems == []
    again.context.close()
    fresh.act(lambda: fresh.page.go_back())
    assert fresh.page.input_value("#label") == ""
    fresh.act(lambda: fresh.page.go_back())
    fresh.act(lambda: fresh.page.go_back())
    assert fresh.page.input_value("#expert") == ""
    fresh.act(lambda: fresh.page.go_forward())
    assert fresh.page.input_value("#expert") == "2"


@pytest.mark.parametrize(
    "address", ["#layer=99&expert=-1&token=1e9", "#expert=x,,2&label=nonesuch&color=no", "#%E0%A4%A&=&find=%"]
)
def test_an_address_of_what_there_is_not_opens_the_page(opened, browser, address):
    other = Opened(browser, opened.path, address=address)
    assert other.problems == []
    other.context.close()


def test_what_is_seen_can_be_taken_along(fresh, routed, tmp_path):
    layer = routed.trace.moe_layers[0]
    fresh.slide(layer)
    pick(fresh, 1)

    def saved(button):
        with fresh.page.expect_download() as waiting:
            fresh.page.get_by_label(button).click()
        path = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(path)
        return path

    with saved("Save the tokens and their experts as CSV").open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    own = routed.frame.query(f"layer == {layer} and rank == 0").sort_values(["token", "subtoken"])
    assert [row[head.index("string")] for row in rows] == own.string.tolist()
    assert [int(row[head.index("expert 1")]) for row in rows] == own.expert.tolist()
    with saved("Save the map as CSV: Load of every expert").open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    load = routed.frame.groupby("layer").expert.value_counts(normalize=True)
    for index, expert, share, _ in rows:
        assert float(share) == pytest.approx(load.get((int(index), int(expert)), 0), abs=1e-6)
    for name in ("Save the map as SVG: Load of every expert", "Save the text that is seen as SVG"):
        svg = saved(name)
        drawing = fresh.context.new_page()
        drawing.goto(svg.as_uri())
        assert drawing.evaluate("document.documentElement.nodeName") == "svg"
        assert drawing.locator("rect").count() > 8
        drawing.close()
    fresh.page.get_by_label("Copy what it fires on").click()
    fresh.page.wait_for_function("document.getElementById('said').textContent === 'Copied'")


def test_hostile_text_stays_text(opened):
    assert opened.page.locator("main b, main i:not(.bar i), main img, main script").count() == 0
    assert "<i>markup</i>" in opened.page.inner_text("#texts")
    assert TEXTS[3].replace(" ", "") in opened.page.inner_text("#texts").replace(" ", "")


def test_nothing_went_wrong_and_nothing_was_fetched(opened):
    assert opened.problems == []
    assert {url.partition("#")[0] for url in opened.requests} <= {opened.path.as_uri(), "about:blank"} | {
        url for url in opened.requests if url.startswith(("data:", "blob:")) or url.endswith(".svg")
    }


def test_two_models_are_shown_and_compared_token_by_token(browser, tmp_path):
    model = moe_probe.load("ckpt/tiny-mixtral")
    pair = {"whole": model, "masked": model.under(Mask(layer=1, experts=[2]))}
    page = explorer.explore(pair, TEXTS, labels=LABELS, similar=None, vocabulary=True, progress=False)
    opened = Opened(
        browser, page.save(tmp_path / "two.html"), address="#layer=1&layer2=1&expert2=0&color=differs&token=4"
    )
    assert opened.page.locator(".text").count() == 2
    ours, theirs = opened.rows("Its experts in whole, layer 1"), opened.rows("Its experts in masked, layer 1")
    assert len(ours) == 8
    assert sorted({row[1] for row in ours} - {row[1] for row in theirs}) == ["2"]
    colors = opened.page.locator(".text >> nth=0 >> [data-token]").evaluate_all(
        "all => all.map(s => s.style.background)"
    )
    assert len(set(colors)) > 1
    opened.press("m")
    assert opened.page.inner_text("#expert-title") == "Expert 0 of layer 1"
    assert "model=2" in opened.address
    opened.page.wait_for_selector("#expert-words table")
    assert len(opened.rows("What it writes into the vocabulary")) == 10
    assert opened.problems == []
    opened.context.close()
