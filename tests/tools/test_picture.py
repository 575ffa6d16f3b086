"""A picture shows what is left on a terminal, in its colours, and loads nothing."""

import re

from tools.picture import picture, screen_of


def test_erased_lines_are_gone_and_colours_stay() -> None:
    written = (
        "model\r\n\x1b[?25l  bar 1\r\x1b[2K  bar 2\r\n figures\r\x1b[2K\x1b[1A\x1b[2K\x1b[?25h"
    )
    assert screen_of(f"{written}\x1b[32mbetter\x1b[0m\r\nend") == [
        "model",
        "\x1b[32mbetter\x1b[0m",
        "end",
    ]


def test_a_picture_is_one_file_of_text_that_asks_for_nothing() -> None:
    shown = picture(["\x1b[32mbetter\x1b[0m & <done>"], "mlx_dpo train")
    assert "better" in shown
    assert "&lt;done&gt;" in shown
    assert re.findall(r"https?:[^\"]*", shown) == ["http://www.w3.org/2000/svg"]
    assert "font-face" not in shown
    assert "<script" not in shown
