"""Foreign text: shown, never obeyed."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from moe_probe import cli
from moe_probe.errors import InputError, MachineError
from moe_probe.shown import PlainConsole, csv_cell, file_name, printable

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("m\x1b]0;owned\x07", r"m\x1b]0;owned\x07"),
        ("\u202eabc\u2066", r"\u202eabc\u2066"),
        ("a\0b\r\n", r"a\x00b\r\n"),
        ("\udc80", r"\udc80"),
        ("数学 👩‍👩‍👧 $a$ [red]", "数学 👩‍👩‍👧 $a$ [red]"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text, shown):
    assert printable(text) == shown


@given(st.text(st.characters()))
def test_nothing_that_steers_a_terminal_is_left(text):
    assert not CONTROL.search(printable(text))


def test_a_console_prints_brackets_and_escapes_as_they_are_tables_too():
    console = PlainConsole(file=io.StringIO(), width=120)
    table = Table(
        "a[red]", "a column that makes it wide enough for the title", "b\x1b[2J", title="m\x1b]0;x\x07[link=file:///x]y"
    )
    table.add_row("c[/x]", "", "d\x07")
    console.print(table)
    console.print("fine [/x] \x1b[2J :smile:")
    written = console.file.getvalue()
    assert not CONTROL.search(written.replace("\n", ""))
    for text in ("a[red]", r"b\x1b[2J", r"m\x1b]0;x\x07[link=file:///x]y", "c[/x]", r"fine [/x] \x1b[2J :smile:"):
        assert text in written


@pytest.mark.parametrize(("error", "code"), [(InputError, 2), (MachineError, 1), (OSError, 1), (MemoryError, 1)])
def test_an_error_is_one_line_that_cannot_steer_the_terminal(error, code, monkeypatch, capsys):
    def fail():
        raise error("no \x1b[2J[red]\nsuch file")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    written = capsys.readouterr().err
    assert written.startswith("moe-probe: ")
    assert "\x1b[2J" not in written
    assert "Traceback" not in written


@pytest.mark.parametrize("label", ["tiny-mixtral", "step 1000", "a+b=c", "Ωм", "v1.0", "(x)@y,z"])
def test_ordinary_labels_name_their_files(label):
    assert file_name(label) == label


@given(st.text(st.characters()))
def test_any_text_makes_the_name_of_one_file(text):
    name = file_name(text)
    assert name
    assert name not in (".", "..")
    assert not set(name) & set('/\\\0\n:*?"<>|')
    assert len(name.encode()) <= 120


def test_names_of_files_differ_where_the_texts_do():
    texts = ["a/b", "a%2Fb", "a\\b", "", "%", ".", "..", "a" * 300, "a" * 299 + "b", "数" * 100, "数" * 101]
    assert len({file_name(text) for text in texts}) == len(texts)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\tx", " =x"])
def test_a_spreadsheet_runs_no_cell(text):
    assert csv_cell(text) == f"'{text}"


def test_an_error_is_one_printable_line_whatever_a_file_says():
    error = InputError("config.json has bits=\x1b[31m" + "x" * 5000 + "\0; use the published file.\n")
    assert len(str(error)) <= 1200
    assert not CONTROL.search(str(error))
    assert str(error).startswith(r"config.json has bits=\x1b[31mxxx")
    assert str(error).endswith(r"\x00; use the published file.\n")
    plain = "layers=[9] are not there; choose some of 0-3."
    assert str(InputError(plain)) == plain
