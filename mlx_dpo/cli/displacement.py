"""Chosen answers that became less likely, as `mlx_dpo train` and `mlx_dpo eval` show them."""

import shlex
from dataclasses import asdict
from typing import Any

from mlx_dpo.cli.screen import program, say
from mlx_dpo.insight.displacement import Displacement, Fallen, Gain, Shift
from mlx_dpo.runs.config import RunConfig

_SHOWN, _WIDTH = 5, 60  # pairs, and characters of a prompt


def displacement_record(found: Displacement | None) -> dict[str, Any] | None:
    """The same as plain data."""
    if found is None:
        return None
    return {
        **asdict(found.shift),
        "matters": found.shift.matters,
        "fallen": [asdict(pair) for pair in found.fallen],
    }


def show_displacement(found: Displacement, config: RunConfig, data: str) -> None:
    """One line at the end of a run; a warning with its cures where chosen answers surely fall.

    Args:
        found: What the run has found.
        config: Its settings.
        data: The file of its pairs.
    """
    shift, fallen = found.shift, found.fallen
    if fallen:
        worst = fallen[0]
        say(
            f"\nChosen answer less likely after training: {shift.num_fallen} of {shift.num_pairs} "
            f"held-out pairs; most: {worst.chosen:+.1f} nats, id {_line(worst.id)}"
            f"{': ' * bool(worst.prompt)}{_line(worst.prompt)}"
        )
    if not shift.matters:
        return
    words = ["data", "filter", data, "--drop-ches", "5%", "--model", str(config.model)]
    command = shlex.join([program(), *words, "--out", "clearer.jsonl"])
    say(
        f"warning: training lowers chosen answers too: {_on_average(shift)}. Cures, in this order: "
        f"a lower --learning-rate (it was {config.learning_rate:g}), a larger --beta (it was "
        f"{config.beta:g}), leaving out pairs with like answers ({command})"
    )


def print_fallen(found: Displacement) -> None:
    """The pairs that lost most, with what became likelier instead."""
    shift = found.shift
    say(
        f"displaced  chosen answer less likely than under the reference: {shift.num_fallen} of "
        f"{shift.num_pairs} pairs; {_on_average(shift)}"
    )
    for pair in found.fallen[:_SHOWN]:
        say(_about(pair))
    if (more := len(found.fallen) - _SHOWN) > 0:
        say(f"  and {more} more: --json")
    say()


def _about(pair: Fallen) -> str:
    text = (
        f"  id {_line(pair.id)}: chosen {pair.chosen:+.2f}, rejected {pair.rejected:+.2f} nats: "
        f"{_line(pair.prompt)}"
    )
    if (place := pair.place) is None:
        return text
    gained = ", ".join(map(_change, place.gained)) or "nothing in particular"
    return f"{text}\n    lost most at {_change(place.lost)}, token {place.position}; rose: {gained}"


def _change(gain: Gain) -> str:
    return f"{gain.token!r} ({gain.before:.2g} -> {gain.after:.2g})"


def _on_average(shift: Shift) -> str:
    low, high = shift.interval
    return f"mean change {shift.mean:+.2f} nats a pair (95 % interval {low:+.2f} to {high:+.2f})"


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "\u2026"
