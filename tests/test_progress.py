"""Progress is shown, silenced as a whole, and logged."""

import logging

import pytest
from test_cli import run

from moe_probe import claims, explorer, figures, intervene, static
from moe_probe.progress import quiet, reporting
from moe_probe.report import report


@pytest.fixture
def terminal(monkeypatch):
    """A terminal, as progress sees it."""
    monkeypatch.setenv("FORCE_COLOR", "1")


def test_static_analyses_show_progress_unless_told_not_to(capfd, terminal):
    static.similarity("ckpt/tiny-mixtral", layers=[0])
    assert "Similarity" in capfd.readouterr().err
    static.similarity("ckpt/tiny-mixtral", layers=[0], progress=False)
    assert capfd.readouterr().err == ""


def test_nothing_inside_of_quiet_shows_progress(capfd, terminal):
    with quiet(), reporting("layers", 2) as advance:
        advance()
    assert capfd.readouterr().err == ""
    with quiet(False), reporting("layers", 2) as advance:
        advance()
    assert "layers" in capfd.readouterr().err


def test_no_progress_silences_a_command_and_its_figures(tmp_path, terminal):
    arguments = ["static", "ckpt/tiny-mixtral", "--analysis", "similarity", "--layers", "0", "-o", tmp_path]
    assert "Figures of" in run(*arguments).stderr
    done = run(*arguments, "--no-progress")
    assert done.stderr == ""
    assert all(line.strip() for line in done.stdout.splitlines())


def test_work_is_logged_shown_or_not(caplog):
    with caplog.at_level(logging.INFO, logger="moe_probe"), reporting("layers\x1b", 3, show=False):
        pass
    begun, ended = (record.getMessage() for record in caplog.records)
    assert begun == "layers\\x1b: 3 to do"
    assert ended.startswith("layers\\x1b: done in ")


@pytest.mark.parametrize(
    "work",
    [
        lambda texts, folder: explorer.explore("ckpt/tiny-mixtral", texts, progress=False),
        lambda texts, folder: claims.test("ckpt/tiny-mixtral", texts, progress=False),
        lambda texts, folder: report("ckpt/tiny-mixtral", texts, progress=False),
        lambda texts, folder: intervene.claims("ckpt/tiny-mixtral", texts, layers=[1], progress=False),
        pytest.param(
            lambda texts, folder: figures.reproduce(
                "look-into-moes", "ckpt/tiny-mixtral", folder, texts, layers=[1], progress=False
            ),
            marks=pytest.mark.thorough,
        ),
    ],
    ids=["explore", "claims", "report", "tested claims", "reproduce"],
)
def test_work_of_many_parts_shows_nothing_of_them_when_told_not_to(work, tmp_path, capfd, terminal, unrendered):
    work(["The river bank is near.", "A program runs."] * 3, tmp_path / "out")
    assert capfd.readouterr().err == ""
