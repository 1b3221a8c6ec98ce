"""`moe-probe score`: what it writes and the table that it ends with."""

import json

import numpy as np
from conftest import FIXTURES
from typer.testing import CliRunner

from moe_probe.cli import app
from moe_probe.results import load_result

FOLDER = str(FIXTURES / "mixtral" / "checkpoint")


def texts(path, first):
    rows = [{"ids": [first + n, 31, 22 + 2 * n, 17, 9 + n, 40]} for n in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(*arguments):
    return CliRunner().invoke(app, ["score", FOLDER, *arguments], env={"COLUMNS": "200"})


def test_scores_are_written_with_what_they_are_worth(tmp_path):
    out = tmp_path / "out"
    given = ["--texts", texts(tmp_path / "a.jsonl", 20), "--column", "ids", "--names", "ean,reap", "--random", "1"]
    done = run(*given, "--fractions", "0.25", "--bootstrap", "0", "--no-progress", "-o", str(out))
    assert done.exit_code == 0, done.output
    agreement, curve = (load_result(out / f"{name}.nc") for name in ("score_agreement", "curve"))
    for score in ("ean", "reap"):
        line = next(line for line in done.output.splitlines() if f" {score} " in line)
        assert f"{agreement.mean_rank_correlation.sel(score=score).item():+.2f}" in line
        assert f"{curve.loss_change.sel(order=score).item():+.4f}" in line
    assert f"{curve.loss_change.sel(order='random 0').item():+.4f}" in done.output
    assert agreement.attrs["same_texts"] == "no"


def test_texts_to_judge_on_may_not_be_those_of_the_scores(tmp_path):
    path = texts(tmp_path / "a.jsonl", 20)
    done = run("--texts", path, "--evaluate", path, "--column", "ids", "--names", "ean", "-o", str(tmp_path / "out"))
    assert done.exit_code == 1
    assert "6 of 6 documents" in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_without_texts_weights_are_scored(tmp_path):
    done = run("--no-progress", "-o", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    assert np.isfinite(load_result(tmp_path / "out" / "scores.nc").value).all()


def test_a_plan_is_written_that_prune_takes(tmp_path):
    out = tmp_path / "out"
    done = run("--no-progress", "--names", "gate_norm", "--plan", "gate_norm:0.25", "-o", str(out))
    assert done.exit_code == 0, done.output
    pruned = ["prune", FOLDER, "--plan", str(out / "plan.json"), "-o", str(tmp_path / "smaller")]
    done = CliRunner().invoke(app, pruned)
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "smaller" / "config.json").read_text())["num_local_experts"] == 6
    done = run("--plan", "gate_norm", "-o", str(tmp_path / "other"))
    assert "pass one like reap:0.25" in str(done.exception)
    done = run("--names", "gate_norm", "--plan", "reap:0.25", "-o", str(tmp_path / "other"))
    assert "no score of these 'reap'" in str(done.exception)
    done = run("--names", "gate_norm", "--plan", "gate_norm:1.5", "-o", str(tmp_path / "other"))
    assert "fraction" in str(done.exception)
    assert not (tmp_path / "other").exists()
