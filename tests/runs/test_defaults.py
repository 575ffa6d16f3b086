"""Settings that were not given: decided in one place, by the model and by each other."""

import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_dpo.errors import UsageError
from mlx_dpo.preferences.chat import today
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.runs.defaults import decided, decided_by_pairs
from tests.packed import pack
from tests.runs.conftest import ORACLE, dated_model, workplace

__all__ = ["workplace"]  # a fixture, used by its name


@pytest.fixture
def packed(tmp_path: Path) -> str:
    return str(pack(ORACLE, tmp_path / "packed", dtype=mx.bfloat16))


def test_a_model_in_floats_is_trained_in_full(tmp_path: Path) -> None:
    config = decided(RunConfig(model=str(ORACLE)))
    assert (config.method, config.dtype, config.learning_rate) == ("full", "float32", 1e-5)
    assert config.lora_rank is None


def test_a_quantised_model_gets_adapters_and_keeps_its_own_dtype(packed: str) -> None:
    config = decided(RunConfig(model=packed))
    assert (config.method, config.dtype, config.learning_rate) == ("lora", "bfloat16", 1e-4)
    assert (config.lora_rank, config.lora_scale, config.lora_modules) == (16, 2.0, "all")
    assert config.lora_layers is None
    assert decided(RunConfig(model=packed, dtype="float32")).dtype == "float32"


def test_what_was_given_stays_and_deciding_twice_changes_nothing(packed: str) -> None:
    given: dict[str, Any] = {"lora_rank": 4, "learning_rate": 3e-4, "lora_modules": "attention"}
    config = decided(RunConfig(model=packed, **given))
    assert {name: getattr(config, name) for name in given} == given
    assert decided(config) == config


def test_an_adapter_to_start_from_brings_rank_scale_and_layers(tmp_path: Path) -> None:
    config = decided(RunConfig(model=str(ORACLE), adapter=str(tmp_path)))
    assert config.method == "lora"
    assert config.lora_rank is None
    assert config.adapter_reference == "start"
    assert decided(config) == config


@pytest.mark.parametrize(("steps", "warmup"), [(2, 0), (53, 5), (100, 10), (5000, 10)])
def test_the_warm_up_is_a_tenth_of_the_steps_and_ten_at_most(steps: int, warmup: int) -> None:
    assert decided_by_pairs(RunConfig(steps=steps), 100)[0].warmup_steps == warmup
    assert decided_by_pairs(RunConfig(steps=steps, warmup_steps=0), 100)[0].warmup_steps == 0


@pytest.mark.parametrize(
    ("pairs", "epochs", "steps"),
    [(1, 25, 25), (8, 25, 50), (40, 5, 50), (197, 1, 50), (900, 1, 225)],
)
def test_few_pairs_are_seen_several_times_and_many_once(
    pairs: int, epochs: int, steps: int
) -> None:
    config, max_steps = decided_by_pairs(RunConfig(), pairs)
    assert (config.epochs, max_steps) == (epochs, steps)
    assert decided_by_pairs(RunConfig(epochs=2), pairs)[1] == 2 * -(-pairs // 4)
    assert decided_by_pairs(RunConfig(steps=7), pairs)[1] == 7


def test_a_run_that_selects_a_step_looks_ten_times() -> None:
    assert decided_by_pairs(RunConfig(steps=53), 100)[0].eval_every == 100
    for selects in ({"keep": "best"}, {"patience": 2}):
        for steps, every in ((5, 1), (53, 5), (5000, 100)):
            config = RunConfig(steps=steps, **selects)
            assert decided_by_pairs(config, 100)[0].eval_every == every


def test_a_measure_without_a_selection_is_refused() -> None:
    assert decided(RunConfig(model=str(ORACLE), keep="best")).best_by == "loss"
    with pytest.raises(UsageError, match="--best-by takes --keep best or --patience"):
        decided(RunConfig(model=str(ORACLE), best_by="accuracy"))


def test_the_date_is_decided_once_and_only_where_the_template_asks(workplace: Path) -> None:
    assert decided(RunConfig(model=str(ORACLE))).date is None
    model = dated_model()
    assert decided(RunConfig(model=model)).date == today()
    assert decided(RunConfig(model=model, date="2024-07-26")).date == "2024-07-26"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lora_rank": 8}, ["--lora-rank", "--method lora"]),
        ({"method": "full", "adapter": "there"}, ["--adapter", "--method lora"]),
        ({"reference": "adapters-off"}, ["adapters-off", "--method lora"]),
        ({"dtype": "float16"}, ["float16", "bfloat16"]),
        ({"method": "lora", "adapter_reference": "base"}, ["--adapter-reference", "--adapter"]),
        ({"adapter": "there", "lora_rank": 8}, ["--lora-rank and --adapter"]),
        ({"adapter": "there", "reference": "copy"}, ["--adapter-reference base"]),
        ({"adapter": "nowhere"}, ["nowhere", "no such adapter"]),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, Any], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    with pytest.raises(UsageError) as error:
        decided(RunConfig(model=str(ORACLE), **settings))
    assert all(word in str(error.value) for word in words)


def test_all_weights_of_a_quantised_model_can_t_train_and_both_ways_out_are_named(
    packed: str,
) -> None:
    with pytest.raises(UsageError) as error:
        decided(RunConfig(model=packed, method="full"))
    assert "--method lora" in str(error.value)
    assert "full-precision model" in str(error.value)


def test_a_model_that_names_the_rate_it_wants_gets_it_unless_another_is_given(
    tmp_path: Path,
) -> None:
    model = shutil.copytree(ORACLE, tmp_path / "model")
    (model / "train.toml").write_text('model = "m"\nlearning_rate = 4e-4\nepochs = 9\n')
    found = decided(RunConfig(model=str(model)))
    assert found.learning_rate == 4e-4
    assert "epochs" not in found.to_toml()  # nothing else of that file
    assert decided(RunConfig(model=str(model), learning_rate=1e-6)).learning_rate == 1e-6
    assert decided(RunConfig(model=str(model), method="lora")).learning_rate == 1e-4
    (model / "train.toml").write_text("[another.program]\nx = 1\n")
    assert decided(RunConfig(model=str(model))).learning_rate == 1e-5
