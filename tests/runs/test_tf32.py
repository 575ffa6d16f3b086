"""Where the user has turned TF32 on: the run says so, and allows for it where it must."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_dpo.cli.run_screen import TerminalScreen
from mlx_dpo.models.device import TF32_SWITCH
from mlx_dpo.preferences.batches import EpochOrder
from mlx_dpo.preferences.store import lengths
from mlx_dpo.records import PreferenceExample
from mlx_dpo.runs import reference_cache
from mlx_dpo.runs.run import train
from mlx_dpo.training import head, reference, self_check
from mlx_dpo.training.paths import PlainPath
from tests.runs.conftest import finished, settings
from tests.training import architectures

PAIRS = [PreferenceExample([7] * n, [*range(10, 12 + n), 2], [20, 21, 2]) for n in range(2, 9)]


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("value", ["0", "1"])
def test_the_screen_and_the_environment_name_it(
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    value: str,
    plain: bool,
) -> None:
    monkeypatch.setenv(TF32_SWITCH, value)
    config = settings(steps=1, run_dir="run", eval_fraction=0.0, plain=plain)
    train(config, screen=TerminalScreen(config, is_terminal=False))
    assert ("TF32 is on (MLX_ENABLE_TF32=1)" in capfd.readouterr().err) is (value == "1")
    environment = json.loads(Path("run/environment.json").read_text())
    assert environment["tf32"] is (value == "1")
    assert environment["architecture"] == mx.device_info()["architecture"]


@pytest.mark.parametrize("value", ["0", "1"])
def test_the_reference_is_scored_in_the_batches_of_training(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """Cut operands make the rounding of other shapes visible: only equal shapes start at log 2."""
    monkeypatch.setenv(TF32_SWITCH, value)
    scored: list[Any] = []
    right = reference.score_in_batches

    def watched(*args: Any, batches: Any = None, **options: Any) -> Any:
        scored.append(batches)
        return right(*args, batches=batches, **options)

    monkeypatch.setattr(reference_cache, "score_in_batches", watched)
    result = finished(steps=1)
    examples = result.job.train.examples
    order = EpochOrder(len(examples), 2, result.job.config.seed, lengths=lengths(examples))
    epoch = [list(batch) for batch in order.first_epoch()]
    if value == "0":
        assert scored == [None]
        return
    (batches,) = scored
    assert [list(batch) for batch in batches[: len(epoch)]] == epoch
    rest = sorted(row for batch in batches[len(epoch) :] for row in batch)
    assert rest == list(range(len(examples), len(result.job.examples))), "the held-out pairs"


def test_the_reference_cache_is_of_one_device_generation_and_switch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = set()
    for generation in ("applegpu_g13g", "applegpu_g17s"):
        for value in ("0", "1"):
            monkeypatch.setenv(TF32_SWITCH, value)
            monkeypatch.setattr(mx, "device_info", lambda g=generation: {"architecture": g})
            names.add(reference_cache.cache_file("m", PAIRS, 2, "plain"))
    assert len(names) == 4


def _cut(x: mx.array) -> mx.array:
    cut = (x.view(mx.uint32) & 0xFFFFE000).view(mx.float32)
    return x + mx.stop_gradient(cut - x)


@pytest.mark.parametrize(("value", "name"), [("0", "plain"), ("1", "shared-prompt")])
def test_the_self_check_allows_for_cut_operands_only_where_they_were_asked_for(
    monkeypatch: pytest.MonkeyPatch, value: str, name: str
) -> None:
    """The fast path's head loses 13 bits, as an M5's kernels of some shapes do."""
    monkeypatch.setenv(TF32_SWITCH, value)
    right = head.token_logprobs
    monkeypatch.setattr(
        "mlx_dpo.training.paths.token_logprobs",
        lambda model, hidden, targets, **more: right(model, _cut(hidden), targets, **more),
    )
    choice = self_check.choose_path(architectures.make("llama"), PAIRS, max_seq_len=32, pad_id=0)
    assert choice.path.name == name
    assert choice.tf32 is (value == "1")


def test_a_wrong_path_is_refused_with_tf32_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TF32_SWITCH, "1")
    right = head.token_logprobs
    monkeypatch.setattr(
        "mlx_dpo.training.paths.token_logprobs",
        lambda model, hidden, targets, **more: right(model, hidden * 1.1, targets, **more),
    )
    choice = self_check.choose_path(architectures.make("llama"), PAIRS, max_seq_len=32, pad_id=0)
    assert isinstance(choice.path, PlainPath)
    assert all("off by" in reason for _, reason in choice.refused)
