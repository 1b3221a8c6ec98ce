"""Take the explorer's picture, docs/explorer.png: `python docs/explorer_picture.py`; needs chromium."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from moe_probe import explorer

DOCS = Path(__file__).parent
CKPT = DOCS.parent / "ckpt"
ADDRESS = "#layer=0&expert=6&token=90"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        texts = str(CKPT / "texts.jsonl")
        path = explorer.explore(CKPT / "tiny-mixtral", texts, labels="domain").save(Path(folder) / "page.html")
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(path.as_uri() + ADDRESS)
        page.wait_for_selector("body[data-ready=true]")
        page.wait_for_selector("#expert-near table")
        page.screenshot(path=DOCS / "explorer.png")
        browser.close()


if __name__ == "__main__":
    main()
