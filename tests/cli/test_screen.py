"""Text from models and files can't take over the terminal; the bar fits 80 columns."""

import io

from rich.console import Console

from mlx_dpo.cli.footer import Footer
from mlx_dpo.cli.screen import clock, printable, table
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
