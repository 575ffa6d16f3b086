"""What a run works with: refused before training if it can't be used, and read once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx_lm.utils
import pytest

from mlx_dpo.errors import DataError, UsageError
from mlx_dpo.models import parameters
from mlx_dpo.models.parameters import load_arrays, save_arrays
from mlx_dpo.runs.job import prepare
from mlx_dpo.runs.run import train
from tests.runs.conftest import ORACLE, other_model, settings


def test_a_tokenizer_that_is_not_the_models_is_refused_before_any_forward(
    workplace: Path,
) -> None:
    model = other_model(vocab_size=300)
    arrays = load_arrays(Path("model/model.safetensors"))
    arrays["model.embed_tokens.weight"] = arrays["model.embed_tokens.weight"][:300]
    save_arrays(Path("model/model.safetensors"), arrays)
    with pytest.raises(UsageError, match="the tokenizer is not this model's"):
        train(settings(model=model))


def test_rows_longer_than_learned_positions_are_refused(workplace: Path) -> None:
    gpt2 = str(ORACLE.parent.parent / "gpt2" / "model")
    rows = [dict(row, chosen="otter " * 1200) for row in json.loads(Path("pairs.json").read_text())]
    Path("pairs.json").write_text(json.dumps(rows))
    with pytest.raises(UsageError, match=r"has 1024 positions.* pass --max-length 1024"):
        train(settings(model=gpt2, max_length=4096))


def test_unusable_weights_end_the_run_before_training(workplace: Path) -> None:
    model = other_model()
    arrays = load_arrays(Path("model/model.safetensors"))
    arrays["model.norm.weight"] = arrays["model.norm.weight"] * float("nan")
    save_arrays(Path("model/model.safetensors"), arrays)
    with pytest.raises(UsageError, match=r"model\.norm\.weight holds NaN or infinite values"):
        train(settings(model=model))


def test_held_out_pairs_in_a_file_of_their_own_must_be_new(workplace: Path) -> None:
    rows = json.loads(Path("pairs.json").read_text())
    Path("eval.json").write_text(json.dumps(rows[:2]))
    with pytest.raises(DataError, match="held-out pairs must be new"):
        train(settings(eval_data="eval.json"))


def test_no_pair_left_to_train_on_is_an_error_with_the_reason(workplace: Path) -> None:
    with pytest.raises(DataError, match="prompt fills the length"):
        train(settings(max_length=4))


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str], None]:
    """Counts the calls of a function, in its attribute `calls`."""

    def wrap(module: Any, name: str) -> None:
        real = getattr(module, name)

        def counted(*args: Any, **options: Any) -> Any:
            counted.calls += 1  # type: ignore[attr-defined]
            return real(*args, **options)

        counted.calls = 0  # type: ignore[attr-defined]
        monkeypatch.setattr(module, name, counted)

    return wrap


def test_the_weights_are_hashed_once(workplace: Path, count: Callable[[Any, str], None]) -> None:
    count(parameters, "named_arrays")  # by which `fingerprint` reads every weight
    prepare(settings())
    assert parameters.named_arrays.calls == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("reference", ["cached", "copy"])
def test_a_run_loads_the_tokenizer_once(
    workplace: Path, count: Callable[[Any, str], None], reference: str
) -> None:
    count(mlx_lm.utils, "load_tokenizer")
    train(settings(reference=reference), dry_run=True)
    assert mlx_lm.utils.load_tokenizer.calls == 1
