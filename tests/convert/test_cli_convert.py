"""`mlx_dpo convert` as it is typed."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mlx_dpo.cli.convert import convert
from mlx_dpo.convert.conversion import Kind, kind_of
from mlx_dpo.errors import UsageError
from tests import g2c
from tests.convert.conftest import MakeSource, assert_same_bits, tensors_of


def invoke(*args: object) -> Result:
    return CliRunner().invoke(convert, [str(arg) for arg in args])


def test_both_ways_are_found_and_told(make_source: MakeSource, tmp_path: Path) -> None:
    source, there, back = make_source("gpt2"), tmp_path / "mlx", tmp_path / "back"
    (source / "README.md").write_text("---\nlicense: mit\n---\n# Of the base\n")
    result = invoke(source, there)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == f"{source}: Hugging Face folder, to MLX"
    assert lines[1] == "gpt2, float32, 45,952 parameters"
    known = "forward pass: gpt2, every setting of config.json verified against transformers"
    assert lines[2].startswith(known)
    assert lines[3] == "weights: there and back is bit-identical, all 28 tensors"
    assert lines[4].startswith("logits")
    assert f"wrote {there}" in lines
    result = invoke(there, back)
    assert result.stdout.splitlines()[0] == f"{there}: MLX folder, to PyTorch"
    assert_same_bits(tensors_of(back), tensors_of(source))
    for folder in (there, back):
        assert (folder / "README.md").read_text() == (source / "README.md").read_text()


def test_a_trained_model_is_still_one_in_pytorch_s_layout_and_gets_a_card(
    make_source: MakeSource, tmp_path: Path
) -> None:
    invoke(make_source(), tmp_path / "mlx", "--no-verify")
    (tmp_path / "mlx" / "dpo.json").write_text('{"trained_from": {"name": "owner/base"}}')
    (tmp_path / "mlx" / "digests.json").unlink()
    assert invoke(tmp_path / "mlx", tmp_path / "back", "--no-verify").exit_code == 0
    card = (tmp_path / "back" / "README.md").read_text()
    assert "base_model: owner/base\n" in card
    assert 'from_pretrained("back")' in card
    assert kind_of(tmp_path / "back") is Kind.HUGGING_FACE
    assert invoke(tmp_path / "back", tmp_path / "again", "--no-verify").exit_code == 0
    assert "mlx_lm.generate --model again" in (tmp_path / "again" / "README.md").read_text()


def test_no_verify_says_nothing_of_proofs(make_source: MakeSource, tmp_path: Path) -> None:
    result = invoke(make_source(), tmp_path / "mlx", "--no-verify")
    assert "weights" not in result.stdout
    assert "logits" not in result.stdout


def test_an_error_is_one_line_with_its_exit_code(make_source: MakeSource, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    result = invoke(make_source(), tmp_path / "there")
    assert isinstance(result.exception, UsageError)
    assert result.exception.exit_code == 2
    assert "pass --overwrite" in str(result.exception)


@pytest.mark.parametrize(
    "args", [["--to", "jax"], ["--dtype", "int4"], ["--what"]], ids=lambda args: args[0]
)
def test_unknown_options(tmp_path: Path, args: list[str]) -> None:
    result = invoke("a", "b", *args)
    assert result.exit_code == 2
    assert "Usage" in result.stderr


def test_a_path_that_is_not_there_never_asks_the_network(tmp_path: Path) -> None:
    result = invoke("./not/there", tmp_path / "out")
    assert isinstance(result.exception, UsageError)


def test_the_direction_may_be_overruled(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source()
    invoke(source, tmp_path / "mlx", "--no-verify")
    result = invoke(tmp_path / "mlx", tmp_path / "half", "--to", "mlx", "--dtype", "bfloat16")
    assert result.exit_code == 0
    assert "the cast changes none by more than" in result.stdout


def test_a_course_artifact_goes_there_and_back(tmp_path: Path) -> None:
    there, back = tmp_path / "mlx", tmp_path / "StoryLM-1M-DPO"
    result = invoke(g2c.ARTIFACT, there)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[:3] == [
        f"{g2c.ARTIFACT}: course artifact, to MLX",
        "float32, 197,207 parameters",
        "weights: there and back is bit-identical, all 53 tensors",
    ]
    assert invoke(g2c.ARTIFACT, there, "--overwrite").exit_code == 0
    result = invoke(there, back)
    assert result.exit_code == 0
    assert f"{there}: MLX folder of a course model, to PyTorch" in result.stdout
    assert "the course looks for it as artifacts/models/StoryLM-1M-DPO" in result.stdout
    assert sorted(p.name for p in back.iterdir()) == ["config.json", "manifest.json", "model.pt"]
    for source, to in ((g2c.ARTIFACT, "torch"), (there, "mlx")):
        refused = invoke(source, tmp_path / "no", "--to", to)
        assert "already; leave out --to" in str(refused.exception)
    assert "no conversion made it" in str(invoke(there, back, "--overwrite").exception)
