"""Text from models and files can't take over the terminal; the bar fits 80 columns."""

import io
import os
import sys
from pathlib import Path

import pytest
from rich.console import Console

from mlx_dpo.cli.footer import Footer, printable
from mlx_dpo.cli.screen import Stream, clock, open_page, page_place, say, table
from mlx_dpo.runs.plan import gigabytes


def test_control_characters_of_a_model_are_not_sent_to_the_terminal() -> None:
    assert printable("a\x1b[31mred\x07\r\nb\tc é") == "a�[31mred��\nb\tc é"


def test_the_bar_shows_every_figure_in_80_columns() -> None:
    screen = io.StringIO()
    footer = Footer(Console(file=screen, force_terminal=True, width=80, legacy_windows=False))
    figures = "loss 0.6612  margin +0.069  chosen +0.031  rejected -0.038  accuracy 0.75"
    pace = "24.3 pairs/s  ETA 1:00:10  peak 12.41 GiB"
    footer.bar("step 1200/5300", 1200, 5300, pace=pace, figures=figures)
    footer.clear()
    shown = screen.getvalue()
    assert figures in shown
    assert pace in shown
    assert "step 1200/5300" in shown
    assert "\u2026" not in shown


def test_figures_are_for_people() -> None:
    assert gigabytes(3 * 2**29) == "1.50 GiB"
    assert gigabytes(3 * 2**18) == "0.8 MiB"
    assert clock(3725.4) == "1:02:05"


def test_columns_of_a_table_are_aligned_whatever_the_script() -> None:
    rows = [["kind", "pairs"], ["语气", "4"], ["tone", "10"]]
    assert table(rows).split("\n") == ["kind  pairs", "语气      4", "tone     10"]


def on_terminal(monkeypatch: pytest.MonkeyPatch, width: int = 40) -> io.StringIO:
    """Make stdout a terminal; what is written to it."""
    written = io.StringIO()
    monkeypatch.setattr(written, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdout", written)
    monkeypatch.setattr("mlx_dpo.cli.screen.terminal_width", lambda **_: width)
    return written


def test_colour_is_for_terminals_and_not_where_no_color_is_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say("warning: mind the gap", bold=True)
    assert capsys.readouterr().out == "warning: mind the gap\n"
    written = on_terminal(monkeypatch)
    monkeypatch.delenv("NO_COLOR", raising=False)
    say("warning: mind the gap")
    monkeypatch.setenv("NO_COLOR", "1")
    say("warning: mind the gap")
    yellow, plain = written.getvalue().splitlines()
    assert yellow == "\x1b[33mwarning: mind the gap\x1b[0m"
    assert plain == "warning: mind the gap"


def test_an_answer_grows_by_whole_words_and_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    written, stream = on_terminal(monkeypatch, width=20), Stream()
    seen = []
    for text in (
        "Th",
        "The ca",
        "The cat\ufffd",
        "The cat\u2019s lantern",
        "The cat\u2019s lantern is lit",
    ):
        stream.so_far(text)
        seen.append(written.getvalue())
    assert seen == ["", "The", "The", "The cat\u2019s", "The cat\u2019s lantern is"]
    stream.end("The cat\u2019s lantern is lit.")
    assert written.getvalue() == "The cat\u2019s lantern is\nlit.\n"


def test_an_answer_in_chinese_grows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    written, stream = on_terminal(monkeypatch, width=8), Stream()
    stream.so_far("\u6c34\u7378\u5728\ufffd")
    assert written.getvalue() == "\u6c34\u7378\u5728"
    stream.end("\u6c34\u7378\u5728\u6cb3\u91cc")
    assert written.getvalue() == "\u6c34\u7378\u5728\u6cb3\n\u91cc\n"


def test_a_log_says_what_begins_and_a_line_leaves_the_status_below_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Footer().doing("loading the model")
    Footer().doing("answering 5 prompts", log=True)
    assert capsys.readouterr().err == "answering 5 prompts ...\n"
    screen = io.StringIO()
    footer = Footer(Console(file=screen, force_terminal=True, width=80, legacy_windows=False))
    footer.doing("loading the model")
    with footer.aside(for_good=False):
        assert screen.getvalue().endswith("\x1b[2K")  # erased
    assert footer.is_shown
    footer.clear()
    assert not footer.is_shown
    assert screen.getvalue().endswith("\x1b[2K")


def test_the_browser_starts_without_the_preload_and_only_where_there_is_a_screen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = list[tuple[str, bool]]()

    def launch(address: str) -> None:
        seen.append((address, "LD_PRELOAD" in os.environ))

    monkeypatch.setattr("click.launch", launch)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("LD_PRELOAD", "libblas.so")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    open_page("http://127.0.0.1/")
    assert seen == []
    monkeypatch.setenv("DISPLAY", ":0")
    open_page("http://127.0.0.1/")
    assert seen == [("http://127.0.0.1/", False)]
    assert os.environ["LD_PRELOAD"] == "libblas.so"


def test_a_page_is_an_address_on_a_terminal_and_a_path_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = Path("my runs/report.html")
    assert page_place(page) == "my runs/report.html"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert page_place(page) == f"{Path.cwd().as_uri()}/my%20runs/report.html"
