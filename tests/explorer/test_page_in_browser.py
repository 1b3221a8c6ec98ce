"""The page in a real browser: what it shows equals the trace; no errors, no network."""

import os
import re
import shutil

import numpy as np
import pytest
from playwright.sync_api import sync_playwright

from moe_probe import dynamic, explorer, static

CHROMIUM = shutil.which("chromium")
WANTED = CHROMIUM is not None or "REQUIRE_BROWSER" in os.environ
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(not WANTED, reason="no chromium; .ci/run installs it"),
    pytest.mark.xdist_group("browser"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
TEXTS = ["The bank of the river was soft after the rain.", "def area(r):\n    return 3.14 * r ** 2", "12 * 3 = 36"]
LABELS = ["prose", "code", "arithmetic"]


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Opened:
    """A page of a trace, and what the browser said about it."""

    def __init__(self, browser, name, folder):
        dynamic.routing_trace(f"ckpt/{name}", TEXTS, path=folder / "trace", labels=LABELS, progress=False)
        self.trace = dynamic.read_trace(folder / "trace")
        self.frame = self.trace.to_dataframe()
        self.similarity = static.similarity(f"ckpt/{name}", "neuron_mean")
        path = explorer.explore(self.trace, similar=self.similarity).save(folder / "page.html")
        self.problems, self.requests = [], []
        self.page = browser.new_page(viewport={"width": 1400, "height": 1600})
        self.page.on("console", lambda said: self.problems.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("body[data-ready=true]", timeout=60_000)

    def choices(self, layer, token, subtoken=0):
        """The trace's rows of a token."""
        lengths = np.cumsum([0, *(len(document.ids) for document in self.trace.corpus.documents)])
        document = int(np.searchsorted(lengths, token, side="right")) - 1
        found = self.frame.query(
            f"layer == {layer} and document == {document} and position == {token - lengths[document]}"
        )
        return found[found.subtoken == subtoken]

    def rows(self, name):
        """What a table shows, row by row."""
        table = self.page.locator(f".bk-DataTable >> nth={['experts', 'subtokens', 'typical', 'similar'].index(name)}")
        self.page.wait_for_timeout(150)  # the grid draws in the next frame
        shown = table.locator(".slick-row").all()
        return [[cell.inner_text().strip() for cell in row.locator(".slick-cell").all()] for row in shown]

    def slide(self, layer):
        """Move the slider's handle by keyboard until the layer is shown."""
        handle = self.page.locator(".noUi-handle").first
        handle.focus()
        layers = list(self.trace.moe_layers)
        shown = layers.index(int(self.page.get_attribute("body", "data-layer")))
        for _ in range(abs(layers.index(layer) - shown)):
            handle.press("ArrowRight" if layers.index(layer) > shown else "ArrowLeft")
        self.page.wait_for_selector(f"body[data-layer='{layer}']")


@pytest.fixture(scope="module", params=["tiny-mixtral", "tiny-mh-moe", "tiny-moe-plus-plus"])
def opened(request, browser, tmp_path_factory):
    return Opened(browser, request.param, tmp_path_factory.mktemp("page"))


def assert_equal_to_the_trace(rows, choices):
    chosen = choices.sort_values("rank")
    assert [row[1] for row in rows[: len(chosen)]] == chosen.expert.astype(str).tolist()
    assert [row[2] for row in rows[: len(chosen)]] == chosen.kind.tolist()
    assert [row[0] for row in rows[: len(chosen)]] == [f"{rank + 1}." for rank in chosen["rank"]]
    np.testing.assert_allclose([float(row[4]) for row in rows[: len(chosen)]], chosen.weight, atol=5.1e-7)
    logits = chosen.router_logits.iloc[0]
    for _, expert, _, logit, _ in rows:
        assert float(logit) == pytest.approx(logits[int(expert)], abs=5.1e-6)


def test_every_token_is_written_and_pointing_at_one_shows_its_numbers(opened):
    assert opened.page.locator("[data-token]").count() == opened.trace.corpus.num_tokens
    for layer in opened.trace.moe_layers[:2]:
        opened.slide(layer)
        for token in (1, 5, opened.trace.corpus.num_tokens - 1):
            opened.page.hover(f"[data-token='{token}']")
            assert_equal_to_the_trace(opened.rows("experts"), opened.choices(layer, token))


def test_colours_follow_the_chosen_expert_layer_by_layer(opened):
    for layer in (opened.trace.moe_layers[-1], opened.trace.moe_layers[0]):
        opened.slide(layer)
        by_expert = {}
        for token in range(opened.trace.corpus.num_tokens):
            expert = int(opened.choices(layer, token).sort_values("rank").expert.iloc[0])
            color = opened.page.eval_on_selector(f"[data-token='{token}']", "element => element.style.background")
            assert by_expert.setdefault(expert, color) == color
        chips = opened.page.locator("#chips button").evaluate_all("chips => chips.map(chip => chip.style.background)")
        assert all(chips[expert] == color for expert, color in by_expert.items())


def test_picking_an_expert_shows_its_tokens_load_neighbours_and_labels(opened):
    layer = opened.trace.moe_layers[0]
    opened.slide(layer)
    own = opened.frame[opened.frame.layer == layer]
    expert = int(own.expert.mode()[0])
    opened.page.click(f"#chips button[value='{expert}']")
    share = (own.expert == expert).mean()
    assert f"Expert {expert} of layer {layer}" in opened.page.inner_text("#expert")
    assert f"{100 * share:.2f} %" in opened.page.inner_text("#expert")
    best = own[own.expert == expert].groupby("string").weight.max().sort_values(ascending=False)
    shown = opened.rows("typical")
    np.testing.assert_allclose([float(row[3]) for row in shown], best[: len(shown)], atol=5.1e-7)
    for row in shown[:3]:
        assert row[1] in {text.replace("\n", "↵").strip() for text in best.index}
    if str(expert) in opened.similarity.expert.values:
        cosine = opened.similarity.cosine.sel(layer=layer, expert=str(expert)).mean("projection").to_series()
        nearest = cosine.drop(str(expert)).sort_values(ascending=False)
        assert opened.rows("similar")[0] == [nearest.index[0], f"{nearest.iloc[0]:.4f}"]
    load = opened.page.evaluate("Bokeh.documents[0].get_model_by_name('load-source').data.share")
    expected = [(opened.frame[opened.frame.layer == at].expert == expert).mean() for at in opened.trace.moe_layers]
    np.testing.assert_allclose(list(load), expected, atol=1e-6)
    domains = opened.page.evaluate("Bokeh.documents[0].get_model_by_name('domains-source').data")
    by_label = own.groupby("label").expert.agg(lambda chosen: (chosen == expert).mean())
    np.testing.assert_allclose(list(domains["share"]), by_label[list(domains["label"])], atol=1e-9)
    uses = opened.page.locator("[data-token].uses").count()
    assert uses == len(own[own.expert == expert].groupby(["document", "position"]))


def test_a_held_token_stays_and_moves_by_keys(opened):
    opened.page.click("[data-token='3']")
    opened.page.hover("[data-token='8']")
    assert "token 3" in opened.page.inner_text("#token")
    opened.page.evaluate("document.activeElement.blur()")
    opened.page.keyboard.press("ArrowRight")
    assert "token 4" in opened.page.inner_text("#token")
    opened.page.click("[data-token='4']")


def test_subtokens_and_kinds_have_their_own_views(opened):
    layer = opened.trace.moe_layers[0]
    opened.slide(layer)
    own = opened.frame[opened.frame.layer == layer]
    parts = own.subtoken.nunique()
    options = opened.page.locator("select").evaluate_all(
        "all => all.map(select => [...select.options].map(option => option.text))"
    )
    assert (parts > 1) == any("distinct experts of its sub-tokens" in names for names in options)
    assert (set(own.kind) != {"ffn"}) == any("FFN experts used" in names for names in options)
    if parts > 1:
        opened.page.hover("[data-token='2']")
        rows = opened.rows("subtokens")
        assert len(rows) == parts
        for subtoken, row in enumerate(rows):
            chosen = opened.choices(layer, 2, subtoken).sort_values("rank").expert
            assert row[:2] == [str(subtoken), ", ".join(map(str, chosen))]
        opened.page.click(".bk-DataTable >> nth=1 >> .slick-row >> nth=1")
        opened.page.hover("[data-token='2']")
        assert "sub-token 1" in opened.page.inner_text("#token")
        assert_equal_to_the_trace(opened.rows("experts"), opened.choices(layer, 2, 1))
    if set(own.kind) != {"ffn"}:
        opened.page.evaluate("Bokeh.documents[0].get_model_by_name('color').value = 'ffn'")
        used = own.groupby(["document", "position"]).kind.agg(lambda kinds: (kinds == "ffn").sum()).to_numpy()
        colors = opened.page.locator("[data-token]").evaluate_all("all => all.map(span => span.style.background)")
        light = {colors[at]: int(used[at]) for at in range(len(used))}
        assert len(light) == len(set(used))
        brightness = {count: float(re.search(r"oklch\(([\d.]+)", color)[1]) for color, count in light.items()}
        assert sorted(brightness, key=brightness.get, reverse=True) == sorted(brightness)


def test_nothing_went_wrong_and_nothing_was_fetched(opened):
    assert opened.problems == []
    assert [url for url in opened.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert len([url for url in opened.requests if url.startswith("file:")]) == 1
