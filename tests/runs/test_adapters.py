"""Runs that train adapters: what they write, what they find again, and what they refuse."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.tuner.utils import load_adapters
from safetensors import safe_open

from mlx_dpo import load
from mlx_dpo.convert.sources import load_model
from mlx_dpo.errors import MlxDpoError, StoppedError, UsageError
from mlx_dpo.models.adapters import base_parameters, parts_of
from mlx_dpo.models.parameters import fingerprint, load_arrays
from mlx_dpo.runs.callbacks import Screen
from mlx_dpo.runs.run import train
from tests.packed import pack
from tests.runs.conftest import ORACLE, StopAfter, digest, finished, metrics, settings

LOG_2 = np.log(2)
IDS = mx.array([[5, 9, 11, 2, 7]])


def lora(**changes: Any) -> dict[str, Any]:
    return {"method": "lora", "lora_rank": 4, "learning_rate": 1e-2, "steps": 4, **changes}


@pytest.fixture
def packed(workplace: Path) -> str:
    return str(pack(ORACLE, workplace / "packed"))


class Seen(Screen):
    """Notes whether reference log-probs were found, and what was warned of."""

    found = False

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def reference_found(self, total: int) -> None:
        self.found = True

    def warned(self, text: str) -> None:
        self.warnings.append(text)


def test_a_quantised_model_just_trains(packed: str) -> None:
    before = digest(Path(packed, "model.safetensors"))
    result = finished(model=packed, learning_rate=1e-2, run_dir="run")
    rows = metrics("run")
    assert rows[0]["loss"] == pytest.approx(LOG_2, abs=2e-6)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert not np.array_equal(result.policy, result.reference)
    assert digest(Path(packed, "model.safetensors")) == before
    assert fingerprint(base_parameters(result.job.policy)) == result.job.weights_digest


def test_the_adapter_is_mlx_lm_s_folder_and_computes_what_was_trained(workplace: Path) -> None:
    policy = finished(**lora(out="out")).job.policy
    theirs = load_adapters(load_model(ORACLE), "out")
    ours, _ = load("out")
    assert mx.array_equal(ours(IDS), policy(IDS))
    np.testing.assert_allclose(theirs(IDS), policy(IDS), atol=1e-5)
    record = json.loads(Path("out/dpo.json").read_text())
    assert record["trained_from"]["model"] == str(ORACLE)
    assert {file.name for file in Path("out").iterdir()} >= {"README.md", "tokenizer.json"}
    assert not Path("out/config.json").exists(), "it would pass for a model"


def test_equal_runs_give_equal_bytes_and_no_name_or_time_is_in_them(workplace: Path) -> None:
    for name in ("a", "b"):
        finished(**lora(out=name, run_dir=f"runs/{name}"))
    assert digest(Path("a/adapters.safetensors")) == digest(Path("b/adapters.safetensors"))
    with safe_open("a/adapters.safetensors", framework="numpy") as opened:
        assert opened.metadata() == {"format": "mlx"}


@pytest.mark.parametrize("adapter_format", ["peft", "both"])
def test_peft_s_files_hold_the_same_adapter(workplace: Path, adapter_format: str) -> None:
    policy = finished(**lora(out="out", adapter_format=adapter_format)).job.policy
    below = "out/peft" if adapter_format == "both" else "out"
    assert Path(below, "adapter_model.safetensors").is_file()
    assert Path("out/adapters.safetensors").exists() == (adapter_format == "both")
    again, _ = load("out")
    np.testing.assert_allclose(again(IDS), policy(IDS), atol=1e-5)


@pytest.mark.parametrize("is_packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("reference", ["cached", "adapters-off"])
def test_a_stopped_and_resumed_run_is_byte_equal_to_a_straight_one(
    workplace: Path, is_packed: bool, reference: str
) -> None:
    model = str(pack(ORACLE, workplace / "packed")) if is_packed else str(ORACLE)
    options = lora(model=model, reference=reference, save_every=2)
    finished(**options, out="straight", run_dir="one")
    config = settings(**options, out="resumed", run_dir="two")
    with pytest.raises(StoppedError):
        train(config, screen=StopAfter(1))
    assert train(config, resume=True) is not None
    name = "adapters.safetensors"
    assert digest(Path("straight", name)) == digest(Path("resumed", name))
    assert Path("one/metrics.jsonl").read_bytes() == Path("two/metrics.jsonl").read_bytes()


def test_full_runs_and_adapter_runs_share_their_reference(workplace: Path) -> None:
    finished(out="full", steps=1)
    screen = Seen()
    assert train(settings(**lora(out="adapter")), screen=screen) is not None
    assert screen.found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_adapter_off_the_cache_and_a_copy_are_one_reference(
    workplace: Path, dtype: str
) -> None:
    for reference in ("cached", "adapters-off", "copy"):
        finished(
            **lora(out=f"out-{reference}", run_dir=reference, reference=reference, dtype=dtype)
        )
    rounding = 1e-6 if dtype == "float32" else 2e-2
    for other in ("adapters-off", "copy"):
        for mine, theirs in zip(metrics("cached"), metrics(other), strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], abs=rounding)


def test_half_precision_starts_at_exactly_log_2(workplace: Path) -> None:
    model = str(pack(ORACLE, workplace / "packed", dtype=mx.bfloat16))
    for reference in ("cached", "adapters-off"):
        for layers in (1, None):
            run = f"{reference}-{layers}"
            options = lora(model=model, reference=reference, lora_layers=layers, steps=1)
            finished(**options, out=f"out-{run}", run_dir=run)
            assert metrics(run)[0]["loss"] == np.float32(LOG_2), run


def test_training_goes_on_from_an_adapter_and_its_reference_is_where_it_starts(
    workplace: Path,
) -> None:
    finished(**lora(out="first", run_dir="one"))
    more = {"adapter": "first", "learning_rate": 1e-2, "steps": 4}
    result = finished(**more, out="second", run_dir="two")
    assert metrics("two")[0]["loss"] == pytest.approx(LOG_2, abs=2e-6)
    started, _ = load("first")
    assert {p.scale for p in parts_of(result.job.policy).values()} == {2.0}
    assert parts_of(result.job.policy).keys() == parts_of(started).keys()


def test_with_the_base_as_reference_the_loss_starts_where_the_adapter_is(workplace: Path) -> None:
    finished(**lora(out="first", run_dir="one", steps=8))
    more = {"adapter": "first", "adapter_reference": "base", "learning_rate": 1e-2, "steps": 2}
    for reference in ("cached", "adapters-off"):
        finished(**more, reference=reference, out=f"out-{reference}", run_dir=reference)
        assert metrics(reference)[0]["loss"] < LOG_2 - 0.01
    assert metrics("cached")[0]["loss"] == pytest.approx(
        metrics("adapters-off")[0]["loss"], abs=1e-6
    )


def test_another_rank_or_adapter_does_not_go_on_from_a_checkpoint(workplace: Path) -> None:
    config = settings(**lora(run_dir="run", save_every=2))
    with pytest.raises(StoppedError):
        train(config, screen=StopAfter(1))
    for change in ({"lora_rank": 8}, {"lora_modules": "attention"}, {"method": "full"}):
        cleared = dict.fromkeys(("lora_rank",)) if "method" in change else {}
        other = settings(**{**lora(run_dir="run", save_every=2), **cleared, **change})
        with pytest.raises(UsageError, match="cannot continue with another"):
            train(other, resume=True)


def test_an_adapter_of_other_weights_is_refused_before_anything_is_written(
    workplace: Path,
) -> None:
    finished(**lora(out="first", run_dir="one"))
    other = shutil.copytree(ORACLE, "other")
    weights = load_arrays(Path(ORACLE, "model.safetensors"))
    weights["model.norm.weight"] = weights["model.norm.weight"] * 2
    mx.save_safetensors(str(Path(other, "model.safetensors")), weights)
    with pytest.raises(UsageError) as error:
        finished(model=str(other), adapter="first", out="second", run_dir="two", steps=1)
    assert "other weights" in str(error.value)
    assert not Path("second").exists()
    record = json.loads(Path("first/dpo.json").read_text())
    record["trained_from"]["model"] = str(other)
    Path("first/dpo.json").write_text(json.dumps(record))
    Path("first/digests.json").unlink()
    with pytest.raises(UsageError, match="other weights"):
        load("first")


def test_an_adapter_is_no_model_to_start_from_and_the_way_is_named(workplace: Path) -> None:
    finished(**lora(out="first", run_dir="one"))
    with pytest.raises(UsageError) as error:
        finished(model="first", out="second", run_dir="two", steps=1)
    assert f"--model {ORACLE} --adapter first" in str(error.value)


def test_a_base_that_changed_during_the_run_is_noticed(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaks(Screen):
        def stepped(self, step: int, *_: Any) -> None:
            if step == 2:
                job_policy[0].model.norm.weight = job_policy[0].model.norm.weight + 1e-3

        def prepared(self, job: Any, folder: Path | None) -> None:
            job_policy.append(job.policy)

    job_policy: list[Any] = []
    with pytest.raises(MlxDpoError, match="reference changed"):
        train(settings(**lora(out="out")), screen=Breaks())
    assert not Path("out").exists()
