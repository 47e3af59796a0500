"""Errors are one line with the right exit status, and progress reads well with and without a terminal."""

from __future__ import annotations

import sys

import pytest

from ramen_jax import console


def _status(run) -> int:
    with pytest.raises(SystemExit) as caught:
        console.main(run)
    return caught.value.code


def test_main_returns_the_status_of_the_command():
    assert _status(lambda: None) == 0
    assert _status(lambda: 3) == 3


@pytest.mark.parametrize("code", [console.USAGE, console.DATA])
def test_a_user_error_is_one_line_without_traceback(capsys, monkeypatch, code):
    monkeypatch.setattr(sys, "argv", ["command"])

    def run():
        raise console.UserError('sensor "s2x": not known', code)

    assert _status(run) == code
    assert capsys.readouterr().err == 'error: sensor "s2x": not known\n'


def test_debug_shows_the_traceback(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command", "--debug"])

    def run():
        raise console.UserError("no such file")

    assert _status(run) == console.DATA
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.endswith("error: no such file\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("a bug\nwith details"), "error: unexpected RuntimeError: a bug (in test_console:"),
        (OSError(28, "No space left on device", "a.tif"), "error: a.tif: No space left on device (in "),
        (MemoryError(), "error: out of memory (in "),
        (KeyError("x" * 10_000), "error: unexpected KeyError: 'xxx"),
    ],
)
def test_what_nobody_foresaw_is_one_line_that_says_where(capsys, monkeypatch, error, line):
    monkeypatch.setattr(sys, "argv", ["command"])

    def run():
        raise error

    assert _status(run) == console.DATA
    told = capsys.readouterr().err
    assert told.startswith(line)
    assert told.endswith("; --debug shows the traceback)\n")
    assert told.count("\n") == 1
    assert len(told) < 700
    monkeypatch.setattr(sys, "argv", ["command", "--debug"])
    assert _status(run) == console.DATA
    assert "Traceback" in capsys.readouterr().err


def test_an_error_is_never_longer_than_a_page_and_may_hold_any_bytes(capsys):
    with pytest.raises(SystemExit):
        console.fail("no file \udcff" + "x" * 100_000)
    told = capsys.readouterr().err
    assert told.startswith("error: no file \\udcff")
    assert len(told) < 4200


def test_a_wrong_command_line_is_one_line(capsys):
    parser = console.parser("embed", "Features of any raster.")
    parser.add_argument("--layer", type=int)
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--layer", "two"])
    assert caught.value.code == console.USAGE
    told = capsys.readouterr().err
    assert told == (
        "error: argument --layer: invalid int value: 'two' (see python -m ramen_jax.embed --help)\n"
    )


def test_interruption_is_not_an_error_report(capsys):
    def run():
        raise KeyboardInterrupt

    assert _status(run) == console.INTERRUPTED
    assert capsys.readouterr().err == "error: interrupted\n"


def test_parser_names_the_command_and_refuses_abbreviations(capsys):
    parser = console.parser("embed", "Features of any raster.", "  python -m ramen_jax.embed --image a.tif")
    parser.add_argument("--image")
    assert parser.parse_args(["--image", "a.tif", "--debug"]).debug
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--imag", "a.tif"])
    assert caught.value.code == console.USAGE
    help_text = parser.format_help()
    assert "usage: python -m ramen_jax.embed" in help_text
    assert "examples:\n  python -m ramen_jax.embed --image a.tif" in help_text


def test_close_names():
    names = ["sentinel2_l2a", "sentinel2_l1c", "flairhub_aerial"]
    assert console.close_names("sentinel2_l2", names) == 'did you mean "sentinel2_l2a" or "sentinel2_l1c"?'
    assert console.close_names("aerial", names) == 'did you mean "flairhub_aerial"?'
    assert console.close_names("xyz", names) == "choose from: flairhub_aerial, sentinel2_l1c, sentinel2_l2a"
    assert console.close_names("xyz", [f"n{i}" for i in range(25)]).endswith("and 5 more")
    assert console.close_names("xyz", []) == "there is none to choose from"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")]
)
def test_duration(seconds, text):
    assert console.duration(seconds) == text


def test_plain_progress_prints_lines_and_a_last_one(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.progress(4, "training", "steps", start=1) as bar:
        for seconds, info in ((5, "loss 1"), (15, "loss 0.5"), (16, "")):
            now[0] = seconds
            bar.advance(info=info)
        bar.note("saved")
        now[0] = 20
    assert capsys.readouterr().err.splitlines() == [
        "training: 3/4 steps · 0.133 steps/s · 8 s left · loss 0.5",
        "saved",
        "training: 4/4 steps · 0.15 steps/s · took 20 s · loss 0.5",
    ]


def test_plain_progress_prints_its_last_line_once(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.progress(1, "embedding", "tiles") as bar:
        now[0] = 20
        bar.advance()
    assert capsys.readouterr().err == "embedding: 1/1 tiles · 0.05 tiles/s · took 20 s\n"


def test_progress_on_a_terminal_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with console.progress(2, "reading", "files") as bar:
        bar.advance(info="a.tif")
        bar.note("a note [with brackets]")
        bar.advance()
    error = capsys.readouterr().err
    assert "reading" in error
    assert "2/2" in error
    assert "a note [with brackets]" in error


def test_an_error_inside_progress_prints_no_closing_line(capsys):
    with pytest.raises(ValueError, match="broken"), console.progress(2, "reading", "files"):
        raise ValueError("broken")
    assert capsys.readouterr().err == ""
