"""What is said of chosen answers that fell: one line, and a warning only where it matters."""

import numpy as np
import pytest

from mlx_dpo.cli.displacement import print_fallen, show_displacement
from mlx_dpo.insight.displacement import Displacement, Fallen, Gain, Place, shift_of
from mlx_dpo.runs.config import RunConfig
from tests.cli.test_hostile_text import HOSTILE, controls

CONFIG = RunConfig(model="my model", data="pairs.json", learning_rate=1e-5)


def displaced(changes: list[float], *fallen: Fallen) -> Displacement:
    policy = np.array([changes, changes], np.float32)
    return Displacement(shift_of(policy, np.zeros_like(policy)), list(fallen))


def shown(found: Displacement, capsys: pytest.CaptureFixture[str]) -> str:
    show_displacement(found, CONFIG, "pairs.json")
    return capsys.readouterr().out


def test_one_line_says_how_many_fell_and_which_one_most(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = displaced([-4.0, 1.0, 3.0], Fallen(0, "12", -4.0, -9.0, "What  is\n it?"))
    assert shown(found, capsys) == (
        "\nChosen answer less likely after training: 1 of 3 held-out pairs; most: -4.0 nats, "
        "id 12: What is it?\n"
    )
    assert shown(displaced([1.0, 3.0]), capsys) == ""


def test_a_warning_names_the_cures_in_their_order_where_chosen_answers_surely_fall(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = displaced([-1.0, -2.0] * 10, Fallen(1, "2", -2.0, 0.0))
    line, warning = shown(found, capsys).strip().split("\n")
    assert line.endswith("20 of 20 held-out pairs; most: -2.0 nats, id 2")
    assert warning.startswith(
        "warning: training lowers chosen answers too: mean change -1.50 nats a pair (95 % interval "
        "-1.72 to -1.28)."
    )
    cures = ("--learning-rate (it was", "larger --beta (it was 0.1)", "data filter pairs.json")
    places = [warning.index(cure) for cure in (*cures, "--drop-ches 5% --model 'my model'")]
    assert places == sorted(places)


def test_texts_of_pairs_and_models_are_made_safe(capsys: pytest.CaptureFixture[str]) -> None:
    gain = Gain(HOSTILE, 0.5, 0.25)
    place = Place(1, HOSTILE, gain, [gain, gain])
    found = displaced([-1.0], Fallen(0, HOSTILE, -1.0, 0.0, HOSTILE, place))
    show_displacement(found, CONFIG, "pairs.json")
    print_fallen(found)
    text = capsys.readouterr().out
    assert text.count("hostile") == 7
    assert controls(text) == []
    print_fallen(displaced([-1.0] * 9, *[Fallen(row, str(row), -1.0, 0.0) for row in range(9)]))
    assert "and 4 more: --json" in capsys.readouterr().out
