"""Settings that were not given: decided in one place, by the model and by each other."""

import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo.errors import UsageError
from mlx_dpo.models.config import num_stored_parameters
from mlx_dpo.models.folder import load_model
from mlx_dpo.models.packed import num_parameters
from mlx_dpo.preferences.chat import today
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.runs.defaults import decided, decided_by_pairs, rate_for, warned_rate, why_rate
from tests.packed import pack
from tests.runs.conftest import ORACLE, dated_model, workplace

__all__ = ["workplace"]  # a fixture, used by its name


@pytest.fixture
def packed(tmp_path: Path) -> str:
    return str(pack(ORACLE, tmp_path / "packed", dtype=mx.bfloat16))


def test_a_model_in_floats_is_trained_in_full(tmp_path: Path) -> None:
    config = decided(RunConfig(model=str(ORACLE)))
    assert (config.method, config.dtype) == ("full", "float32")
    assert config.lora_rank is None


def test_a_quantised_model_gets_adapters_and_keeps_its_own_dtype(packed: str) -> None:
    config = decided(RunConfig(model=packed))
    assert (config.method, config.dtype) == ("lora", "bfloat16")
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


M, B = 10**6, 10**9


@pytest.mark.parametrize(
    ("method", "parameters", "pairs", "rate"),
    [
        ("full", 135 * M, 10, 1e-5),  # docs/results.md: 53 steps of 210 pairs, 1e-5 and 1e-4
        ("full", 135 * M, 210, 1e-5),
        ("full", 135 * M, 1000, 5e-6),
        ("full", 135 * M, 2000, 2e-6),
        ("full", 135 * M, 60_000, 1e-6),  # SmolLM2-135M's own recipe
        ("full", 360 * M, 210, 5e-6),
        ("full", 1700 * M, 210, 2e-6),
        ("full", 1700 * M, 60_000, 1e-6),  # SmolLM2-1.7B's
        ("full", 7 * B, 60_000, 5e-7),  # Zephyr-7B's
        ("lora", 135 * M, 210, 1e-4),
        ("lora", 7 * B, 210, 2e-5),
        ("lora", 8 * B, 800, 1e-5),  # the best of marin's sweep
        ("lora", 7 * B, 60_000, 5e-6),  # Zephyr-7B's with adapters
    ],
)
def test_the_learning_rate_falls_with_the_parameters_and_the_steps(
    method: str, parameters: int, pairs: int, rate: float
) -> None:
    config, _ = decided_by_pairs(RunConfig(method=method), pairs, parameters)
    assert (config.learning_rate, config.beta) == (rate, 0.1)
    assert warned_rate(config, parameters) is None
    given = RunConfig(method=method, learning_rate=3e-5)
    assert decided_by_pairs(given, pairs, parameters)[0].learning_rate == 3e-5


def test_more_steps_or_parameters_never_raise_the_learning_rate() -> None:
    sizes, steps = [M, 200 * M, 400 * M, 2 * B, 70 * B], [1, 60, 150, 300, 700, 5000, 10**6]
    table = np.array([[rate_for("full", size, count) for count in steps] for size in sizes])
    assert (np.diff(table, axis=0) <= 0).all()
    assert (np.diff(table, axis=1) <= 0).all()


def test_the_reason_for_a_rate_names_what_it_came_from() -> None:
    assert why_rate("full", 135 * M, 53) == "because 53 steps are few; with thousands it would " + (
        "be 1e-06"
    )
    assert why_rate("full", 135 * M, 250).startswith("for 250 steps: between 1e-05 for 100 and")
    assert why_rate("lora", 7 * B, 9000).startswith("the published rate for a model of this size")


@pytest.mark.parametrize(
    ("method", "parameters", "rate", "is_hot"),
    [
        ("full", 2 * B, 3e-6, True),
        ("full", 2 * B, 2e-6, False),
        ("full", 500 * M, 1e-4, False),
        ("lora", 2 * B, 3e-5, True),
        ("lora", 2 * B, 2e-5, False),
        ("full", M, 0.02, True),
    ],
)
def test_a_rate_above_what_recipes_have_is_warned_of(
    method: str, parameters: int, rate: float, is_hot: bool
) -> None:
    config = RunConfig(method=method, learning_rate=rate)
    warning = warned_rate(config, parameters)
    assert (f"learning rate {rate:g}" in (warning or "")) == is_hot


def test_parameters_are_counted_without_loading_also_where_they_are_packed(packed: str) -> None:
    sizes = [num_stored_parameters(Path(folder)) for folder in (ORACLE, packed)]
    assert sizes == [num_parameters(load_model(Path(f))) for f in (ORACLE, packed)]
    assert sizes[0] == sizes[1]


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
    assert decided_by_pairs(found, 100_000, 10**10)[0].learning_rate == 4e-4
    assert decided(RunConfig(model=str(model), method="lora")).learning_rate is None
    (model / "train.toml").write_text("[another.program]\nx = 1\n")
    assert decided(RunConfig(model=str(model))).learning_rate is None
