"""A rule the model could learn instead of the behaviour: one verdict on lengths, wherever asked."""

import json
import re
from pathlib import Path

import pytest

from tests.cli.conftest import run
from tests.runs.conftest import ORACLE

MODEL = ["--model", str(ORACLE)]


def write_pairs(count: int, longer: int) -> None:
    """Pairs whose chosen answer is the longer one in the first `longer`, else the shorter."""
    rows = []
    for number in range(count):
        answers = ["The otter finds a lantern, and keeps it.", "No."]
        chosen, rejected = answers if number < longer else answers[::-1]
        rows.append({"prompt": f"Otter {number}?", "chosen": chosen, "rejected": rejected})
    Path("mine.json").write_text(json.dumps(rows))


@pytest.mark.parametrize(
    ("count", "longer", "verdict"),
    [
        (10, 10, "stop"),  # so few, and yet beyond chance
        (10, 5, "ok"),
        (10, 8, "ok"),  # may be chance
        (60, 42, "look"),
    ],
)
def test_audit_check_and_train_give_one_verdict_on_lengths(
    workplace: Path,
    capsys: pytest.CaptureFixture[str],
    count: int,
    longer: int,
    verdict: str,
) -> None:
    write_pairs(count, longer)
    audited = run(capsys, "audit", "mine.json", *MODEL)[1]
    assert re.search(r"^length bias +(\w+)", audited, re.MULTILINE)[1] == verdict  # type: ignore[index]
    for more in (MODEL, ()):
        checked = run(capsys, "data", "check", "mine.json", *more)[1]
        assert f"length bias: {verdict}: " in checked
        assert ("warning: the model may learn length" in checked) == (verdict != "ok")
    code, _, told = run(capsys, "train", *MODEL, "--data", "mine.json", "--dry-run", "--plain")
    assert code == 0
    assert f"lengths     {verdict}: chosen longer in {longer / count:.0%} of the pairs" in told
    assert ("warning: length bias: " in told) == (verdict != "ok")
