"""`moe-probe demo`."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from joblib import cpu_count

from moe_probe.cli.common import Out, app, console
from moe_probe.cli.compare import compare
from moe_probe.cli.dynamic import dynamic_command
from moe_probe.cli.explore import explore
from moe_probe.cli.reproduce import reproduce
from moe_probe.cli.static import static_command
from moe_probe.cli.tables import info_table
from moe_probe.model import load

PAPERS = {
    "look-into-moes": ["tiny-mixtral"],
    "mh-moe": ["tiny-mh-moe", "tiny-x-moe"],
    "moe-plus-plus": ["tiny-moe-plus-plus"],
}


@app.command()
def demo(out: Out = Path("out/demo")) -> None:
    """Analyze the last layer of each embedded checkpoint, draw the papers' figures, and write an explorer page."""
    root = Path(str(files("moe_probe"))).parent / "ckpt"
    texts, folders = str(root / "texts.jsonl"), sorted(root.glob("tiny-*"))
    baseline, n_jobs = str(root / "tiny-mistral"), cpu_count()
    mixtures = [folder for folder in folders if load(folder).moe_layers]
    for folder in mixtures:
        model = load(folder)
        console.print(info_table(model))
        dense = baseline if model.family == "mixtral" else None
        options = {"baseline": dense, "layers": str(model.moe_layers[-1]), "n_jobs": n_jobs}
        static_command(str(folder), out / folder.name, **options)
        dynamic_command(str(folder), out / folder.name, texts, labels="domain", **options)
    compare([str(folder) for folder in mixtures], out / "compared", texts, analysis=["expert_activation"])
    for paper, names in PAPERS.items():
        models = [str(root / name) for name in names]
        reproduce(paper, models, out / paper, texts, baseline=baseline, labels="domain", n_jobs=n_jobs)
    page = out / "explorer.html"
    explore(str(root / "tiny-mixtral"), page, texts, labels="domain")
    count = len(list(out.rglob("*.pdf")))
    console.print(f"\n{count} files of figures are in {out}; the papers' figures at a glance:")
    for paper in PAPERS:
        console.print(f"  {out / paper / 'contact_sheet.pdf'}", soft_wrap=True)
    console.print(f"The explorer, for any browser:\n  {page}", soft_wrap=True)
