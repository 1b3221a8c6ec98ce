"""The page on a desk and on a phone, light and dark, without a mouse, and for people who hear it."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import LABELS, TEXTS, Opened

import moe_probe
from moe_probe import explorer
from moe_probe.intervene import Mask

pytestmark = [pytest.mark.thorough, pytest.mark.xdist_group("browser")]
SIZES = {"desk": (1400, 900), "phone": (390, 844)}
STATES = {
    "first": "",
    "expert and token": "#layer=1&expert=2&token=9",
    "search": "#layer=1&find=)",
    "filtered": "#layer=1&label=code&color=weight",
    "help": "",
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """A page of one model with few experts, of two models, and of one with more experts than there are colors."""
    folder = tmp_path_factory.mktemp("pages")
    model = moe_probe.load("ckpt/tiny-mixtral")
    options = {"labels": LABELS, "progress": False, "similar": "gate"}
    pages = {
        "one": explorer.explore(model, TEXTS, vocabulary=True, **options),
        "two": explorer.explore({"whole": model, "masked": model.under(Mask(layer=1, experts=[2]))}, TEXTS, **options),
        "many": explorer.explore("ckpt/tiny-deepseek-moe", TEXTS, **options),
    }
    return {name: page.save(folder / f"{name}.html") for name, page in pages.items()}


def shown(browser, paths, page, size, scheme, state):
    opened = Opened(browser, paths[page], *SIZES[size], scheme, STATES[state])
    if state == "help":
        opened.page.keyboard.press("?")
    if state == "search":
        opened.page.wait_for_selector("#found-experts[data-done=true]")
    return opened


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("page", ["one", "two", "many"])
@pytest.mark.parametrize(("size", "scheme"), [("desk", "light"), ("phone", "dark")])
def test_axe_finds_nothing(browser, paths, page, size, scheme, state):
    opened = shown(browser, paths, page, size, scheme, state)
    found = Axe().run(opened.page)
    assert found.violations_count == 0, found.generate_report()
    assert opened.problems == []
    opened.context.close()


OUTSIDE = """() => [...document.querySelectorAll("body *")].filter((element) => {
  const box = element.getBoundingClientRect();
  return box.width && !element.closest(".unseen, .scroll, canvas") && (box.right > innerWidth + 1 || box.left < -1);
}).map((element) => element.outerHTML.slice(0, 100))"""


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("page", ["one", "two", "many"])
@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_cut_and_nothing_scrolls_sideways(browser, paths, page, size, state):
    opened = shown(browser, paths, page, size, "light", state)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    assert opened.page.evaluate(OUTSIDE) == []
    for table in opened.page.locator(".scroll:visible").all():
        assert table.evaluate("element => element.scrollWidth <= element.clientWidth + 1")
    for select in opened.page.locator("select:visible").all():
        assert select.bounding_box()["width"] > 40
    opened.context.close()


def test_colors_follow_the_readers_scheme(browser, paths):
    papers = set()
    for scheme in ("light", "dark"):
        opened = shown(browser, paths, "one", "desk", scheme, "first")
        papers.add(opened.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        opened.context.close()
    assert papers == {"rgb(255, 255, 255)", "rgb(20, 22, 26)"}


def test_everything_goes_by_keyboard_alone(browser, paths):
    opened = shown(browser, paths, "two", "desk", "light", "first")
    page = opened.page

    def focused():
        return page.evaluate("document.activeElement.id || document.activeElement.className")

    page.keyboard.press("?")
    assert page.is_visible("#help")
    assert "the next way to color the text" in page.inner_text("#help")
    page.keyboard.press("Escape")
    assert not page.is_visible("#help")
    opened.focus_text()
    opened.press("ArrowRight", "ArrowRight", "ArrowDown")
    assert (page.get_attribute("body", "data-layer"), opened.address) == ("1", "#layer=1&token=1&layer2=0&token2=1")
    opened.press("]", "]", "[")
    assert page.input_value("#expert") == "0"
    opened.press("c")
    assert page.input_value("#color") == "weight"
    opened.press("Escape", "Escape")
    assert (page.input_value("#expert"), page.is_visible("#token")) == ("", False)
    page.keyboard.press("l")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert "Layer 1, expert 1" in page.inner_text("#load-cell")
    opened.press("Enter")
    assert page.inner_text("#expert-title") == "Expert 1 of layer 1"
    page.keyboard.press("o")
    page.keyboard.press("ArrowRight")
    opened.press("Enter")
    assert page.is_visible("#token")
    opened.press("m")
    assert page.input_value("#model") == "1"
    page.keyboard.press("e")
    assert focused() == "about"
    page.keyboard.press("/")
    assert focused() == "find"
    page.keyboard.type(")")
    page.wait_for_selector("#found-experts[data-done=true]")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('#found-experts .pick')"):
            break
    opened.press("Enter")
    assert page.inner_text("#expert-title").startswith("Expert ")
    assert opened.problems == []
    opened.context.close()


def test_keys_in_a_field_are_letters(browser, paths):
    opened = shown(browser, paths, "one", "desk", "light", "first")
    opened.page.focus("#find")
    opened.page.keyboard.type("c]?l")
    assert opened.page.input_value("#find") == "c]?l"
    assert not opened.page.is_visible("#help")
    opened.context.close()


def test_a_notebook_shows_the_page(browser, paths, tmp_path):
    page = explorer.explore("ckpt/tiny-mixtral", TEXTS, similar=None, progress=False)
    (tmp_path / "cell.html").write_text(f"<!DOCTYPE html><body>{page._repr_html_()}</body>", encoding="utf-8")
    context = browser.new_context()
    cell, problems = context.new_page(), []
    cell.on("pageerror", lambda error: problems.append(str(error)))
    cell.goto((tmp_path / "cell.html").as_uri())
    inner = cell.frame_locator("iframe")
    inner.locator("body[data-ready=true]").wait_for(timeout=60_000)
    inner.locator("#expert").select_option("3")
    inner.locator("#expert-title").wait_for()
    assert problems == []
    context.close()
