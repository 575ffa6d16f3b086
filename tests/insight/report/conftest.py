"""The folder of a run with hostile texts, and a browser to look at its page."""

import json
from pathlib import Path

import pytest

from mlx_dpo.runs.config import RunConfig
from tests.workshop.label.conftest import browser

__all__ = ["browser"]  # a fixture, used by its name

HOSTILE = "<script>document.title='taken'</script><img src=http://x.invalid/y>"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder, with hostile text wherever data and models put text."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": f"p {n}", "chosen": "a b c", "rejected": "d " * (n % 5 + 1)} for n in range(20)
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    folder = tmp_path / "run-1"
    folder.mkdir()
    config = RunConfig(model=HOSTILE, data="pairs.json", beta=0.2, steps=60)
    (folder / "config.toml").write_text(config.to_toml())
    names = {"device": "cpu", "system": "Linux", "mlx": "1", "mlx-dpo": "1"}
    (folder / "environment.json").write_text(json.dumps(names))
    (folder / "split.json").write_text('{"train": ["1", "2"], "held_out": ["3", "4"]}')
    metrics = ("loss", "chosen_reward", "rejected_reward", "reward_margin", "accuracy")
    steps = [
        {"step": n, "lr": 1e-4, "grad_norm": 2.0, **{name: 0.5 for name in metrics}}
        for n in range(60)
    ]
    found = {"step": 59, "held_out": {name: 0.6 for name in metrics}}
    lines = [json.dumps(row) for row in [*steps, found]]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 60, "lo']))
    timing = [
        {
            **{"step": n, "seconds": 0.5, "pairs": 4, "peak_bytes": 2**30 if n >= 7 else 2**29},
            **{"data_seconds": 0.0, "reference_seconds": 0.05, "update_seconds": 0.1},
            **{"forward_backward_seconds": 0.3, "real_tokens": 100},
            **{"computed_tokens": 125, "unshared_tokens": 150, "ended": 1_790_000_000 + n},
        }
        for n in range(60)
    ]
    (folder / "timings.jsonl").write_text("\n".join(map(json.dumps, timing)))
    said = {"prompt": HOSTILE, "kind": "x", "answer": HOSTILE + "halfway"}
    (folder / "samples.jsonl").write_text(json.dumps({"step": 29, "answers": [said]}))
    held_out = {
        "kinds": [HOSTILE, "tone"],
        "policy": [[-1.0, -2.0], [-5.0, -1.0]],
        "reference": [[-2.0, -2.0], [-4.0, -1.0]],
    }
    (folder / "held_out.json").write_text(json.dumps(held_out))
    gain = {"token": HOSTILE, "before": 0.5, "after": 0.25}
    place = {"position": 3, "context": HOSTILE, "lost": gain, "gained": [gain, gain]}
    fell = {"row": 1, "id": HOSTILE, "chosen": -3.5, "rejected": -4.5, "prompt": HOSTILE * 2}
    fallen = [{**fell, "place": place}, {**fell, "prompt": "", "place": None}]
    answers = [{"prompt": HOSTILE, "kind": "x", "sft": HOSTILE + "before", "dpo": "after \ud83d"}]
    result = {"out": "o", "answers": answers, "displacement": {"fallen": fallen}}
    (folder / "result.json").write_text(json.dumps(result))
    return folder
