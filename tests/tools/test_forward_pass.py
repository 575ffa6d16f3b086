"""mlx-lm beside transformers itself: a sample of what `python -m tools.conversion_table` tries."""

from pathlib import Path

import pytest

from mlx_dpo.convert.verify import TOLERANCE
from mlx_dpo.insight.doctor.bench import FAIL, OK
from mlx_dpo.insight.doctor.forward import forward_pass
from mlx_dpo.models import verified
from tests.convert.tiny import save_with_transformers

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="`make test-torch` runs it")

from tools.conversion_table import measure, save_tiny  # noqa: E402
from tools.forward_pass import examine  # noqa: E402

SAMPLE = {
    **dict.fromkeys(("cohere2", "deepseek_v3", "exaone4", "glm", "mistral", "phi3"), True),
    **dict.fromkeys(("qwen3_moe", "lfm2", "granitemoehybrid"), True),
    **dict.fromkeys(("gemma3", "qwen3_5", "mistral3"), False),
}


@pytest.mark.parametrize(("kind", "is_open"), SAMPLE.items())
def test_both_ways(tmp_path: Path, kind: str, is_open: bool) -> None:
    difference, largest, found = measure(save_tiny(kind), tmp_path)
    assert difference <= TOLERANCE * max(1.0, largest)
    assert found == is_open


def test_a_row_of_the_table_is_found_again() -> None:
    harmless = verified.table()["harmless"]
    found = examine("glm")
    for key in ("idle", "null"):
        found[key] = [name for name in found[key] if name not in harmless]
    assert found == verified.table()["architectures"]["glm"]


def test_an_architecture_that_computes_something_else_is_found_out() -> None:
    assert examine("ernie4_5_moe") == {"wrong": True}


def test_doctor_compares_a_model_with_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_with_transformers("qwen3:yarn with an attention factor", tmp_path / "model")
    outcome = forward_pass(str(tmp_path / "model"))
    assert outcome.verdict == OK
    assert "transformers beside MLX on 128 tokens of text" in outcome.value
    monkeypatch.setattr("mlx_dpo.models.dialects.corrections_of", lambda kind, config: [])
    outcome = forward_pass(str(tmp_path / "model"))
    assert outcome.verdict == FAIL
    assert str(tmp_path) not in outcome.value
