"""`moe-probe demo`."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from moe_probe.cli.commands import compare, dynamic, explore, reproduce, static
from moe_probe.cli.common import Out, console

PAPERS = {
    "look-into-moes": ["tiny-mixtral"],
    "mh-moe": ["tiny-mh-moe", "tiny-x-moe"],
    "moe-plus-plus": ["tiny-moe-plus-plus"],
}


def command(out: Out = Path("out/demo")) -> None:
    """Analyze the last layer of each bundled checkpoint, draw the papers' figures, and write an explorer page."""
    from joblib import cpu_count

    from moe_probe.cli.tables import info_table
    from moe_probe.model import load

    root = Path(str(files("moe_probe"))).parent / "ckpt"
    texts, folders = str(root / "texts.jsonl"), sorted(root.glob("tiny-*"))
    baseline, n_jobs = str(root / "tiny-mistral"), cpu_count()
    mixtures = [folder for folder in folders if load(folder).moe_layers]
    for folder in mixtures:
        model = load(folder)
        console.print(info_table(model))
        dense = baseline if model.family == "mixtral" else None
        options = {"baseline": dense, "layers": str(model.moe_layers[-1]), "n_jobs": n_jobs}
        static.command(str(folder), out / folder.name, **options)
        dynamic.command(str(folder), out / folder.name, texts, labels="domain", **options)
    compare.command([str(folder) for folder in mixtures], out / "compared", texts, analysis=["expert_activation"])
    for paper, names in PAPERS.items():
        models = [str(root / name) for name in names]
        reproduce.command(paper, models, out / paper, texts, baseline=baseline, labels="domain", n_jobs=n_jobs)
    page = out / "explorer.html"
    explore.command(str(root / "tiny-mixtral"), page, texts, labels="domain")
    count = len(list(out.rglob("*.pdf")))
    console.print(f"\n{count} files of figures are in {out}; the papers' figures at a glance:")
    for paper in PAPERS:
        console.print(f"  {out / paper / 'contact_sheet.pdf'}", soft_wrap=True)
    console.print(f"The explorer, for any browser:\n  {page}", soft_wrap=True)
