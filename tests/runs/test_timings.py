"""Where the time of a step goes, as `timings.jsonl` has it."""

import json
from pathlib import Path

from mlx_dpo.runs.run import train
from mlx_dpo.training.step import PHASES
from tests.runs.conftest import settings


def test_phases_are_parts_of_the_step_and_tokens_are_counted(workplace: Path) -> None:
    result = train(settings(steps=3, run_dir="run"))
    assert result is not None
    lines = [json.loads(line) for line in Path("run/timings.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    for line in lines:
        spent = [line[f"{phase}_seconds"] for phase in PHASES]
        assert all(seconds > 0 for seconds in spent)
        assert sum(spent) <= line["seconds"]
        assert 0 < line["real_tokens"] <= line["computed_tokens"]
        assert line["real_tokens"] < line["unshared_tokens"]
    for name in ("data_seconds", "pairs", "computed_tokens"):
        assert result.totals[name] == sum(line[name] for line in lines)
