"""Settings: option over TOML over default, and errors that name the key."""

from dataclasses import fields
from pathlib import Path

import pytest

from mlx_dpo.errors import UsageError
from mlx_dpo.runs.config import RunConfig, read_settings, resolve


def written(text: str) -> Path:
    Path("run.toml").write_text(text)
    return Path("run.toml")


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_an_option_beats_the_file_and_the_file_beats_the_default() -> None:
    toml = written('model = "m"\ndata = "d"\nbeta = 0.3\nseed = 5\n')
    config = resolve(toml, {"beta": 0.2})
    assert (config.beta, config.seed, config.batch_size) == (0.2, 5, RunConfig.batch_size)


def test_what_to_toml_writes_is_read_back_equal() -> None:
    config = RunConfig(model='a "quoted" 🦦', data="d", learning_rate=5e-7, overwrite=True)
    assert resolve(written(config.to_toml()), {}) == config
    config = RunConfig(model="m", data="d", steps=7)
    assert resolve(written(config.to_toml()), {}) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("betta = 0.1", "run.toml: unknown key 'betta'; did you mean 'beta'"),
        ("zzz = 1", "unknown key 'zzz'; known keys: model, data"),
        ('beta = "big"', "run.toml: beta: expected float, found str 'big'"),
        ("batch_size = 1.5", "batch_size: expected int"),
        ("batch_size = true", "batch_size: expected int"),
        ("beta = 0", "beta: must be above 0, found 0"),
        ("eval_fraction = 1", "must be below 1"),
        ("seed = -1", "seed: must be at least 0"),
        ('reference = "none"', "must be cached or copy"),
        ("epochs = 1\nsteps = 2", "give one"),
        ('date = "26 Jul 2024"', "date: expected a date such as 2026-01-31, found '26 Jul 2024'"),
        ("date = 2024-07-26T10:00:00", "expected a date such as"),
        ("beta = ", "run.toml: not TOML"),
        ("beta = inf", "beta: must be a finite number below 2.63, found inf"),
        ("x = " + "[" * 5000, "run.toml: not TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_settings(written(text))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["date = 2024-07-26", 'date = "2024-07-26"'])
def test_a_date_is_one_of_tomls_or_text(text: str) -> None:
    assert read_settings(written(text)) == {"date": "2024-07-26"}


def test_a_number_without_a_point_is_a_float_where_one_is_expected() -> None:
    assert resolve(written('model = "m"\ndata = "d"\ngrad_clip = 2\n'), {}).grad_clip == 2.0


def test_steps_as_an_option_replaces_epochs_of_the_file() -> None:
    toml = written('model = "m"\ndata = "d"\nepochs = 3\n')
    config = resolve(toml, {"steps": 7})
    assert (config.steps, config.epochs) == (7, RunConfig.epochs)


def test_without_a_clone_and_a_model_the_way_out_is_named() -> None:
    with pytest.raises(UsageError, match="no model given: pass --model and --data"):
        resolve(None, {})


def test_every_setting_has_help() -> None:
    assert all(setting.metadata["help"].endswith(".") for setting in fields(RunConfig))


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.json", "mine.csv"])
def test_pairs_in_the_place_of_a_config_file_are_named(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}: is no config file; pairs are given by --data"):
        read_settings(Path(name))


def test_the_embedded_settings_leave_the_length_of_a_run_on_other_pairs_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    demo, own = resolve(None, {}), resolve(None, {"data": "mine.jsonl"})
    assert (demo.epochs, demo.warmup_steps) == (3, 10)
    assert "epochs" not in own.to_toml()
    assert "warmup_steps" not in own.to_toml()
    assert own.learning_rate == demo.learning_rate
