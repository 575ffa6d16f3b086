"""export as a person types it: what is written, what is said to be kept, what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo.convert.sources import Source, load_source, locate
from mlx_dpo.insight.proof import plan_trial
from mlx_dpo.models.parameters import load_arrays
from tests.cli.conftest import run, trained
from tests.runs.conftest import ORACLE, workplace

__all__ = ["workplace"]  # a fixture, used by its name

ROOT = Path(__file__).parent.parent.parent
IDS = mx.array([[5, 9, 11, 2, 7, 3, 60]])
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, packed_base: Path) -> Path:
    """An adapter on 4 bits that changes less than they can hold."""
    folder = tmp_path_factory.mktemp("small")
    return trained(folder, model=str(packed_base), learning_rate=1e-5, steps=6)


@pytest.fixture(autouse=True)
def here(workplace: Path) -> Path:
    return workplace


def record_of(folder: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(Path(folder, "dpo.json").read_text())
    return record


def logits(folder: str) -> Any:
    """As mlx-lm itself computes them."""
    from mlx_lm import load

    model = load(folder)[0]
    return np.array(model(IDS).astype(mx.float32))


def adapter_logits(adapter: Path) -> Any:
    return np.array(load_source(locate(adapter))(IDS).astype(mx.float32))


def test_float32_keeps_all_of_it(large: Path, capsys: Capture) -> None:
    code, out, err = run(capsys, "export", str(large), "out", "--fuse", "--dtype", "float32")
    assert (code, err) == (0, "")
    margin, kept, moved, wrote, *then = out.splitlines()
    assert then == ["Next:", "  mlx_dpo generate --model out --prompt Hello"]
    assert margin.startswith("margin  +")
    assert "held-out pairs (95 % interval +" in margin
    assert kept.endswith(": 1.00 of the margin")
    assert moved.startswith("moved   log-probs by 0.000 nats on average")
    assert wrote == "wrote   out  (float32)"
    assert np.abs(logits("out") - adapter_logits(large)).max() <= 1e-5
    record = record_of("out")
    assert record["trained_from"]["model"] == str(ORACLE)
    assert record["export"]["base"] == str(ORACLE)
    assert record["export"]["model"] == str(large)
    assert record["export"]["dtype"] == "float32"
    assert record["export"]["proof"]["kept"] == pytest.approx(1, abs=1e-3)
    card = Path("out/README.md").read_text()
    assert "| margin kept by the export | 1 |" in card
    assert "--adapter-path" not in card
    assert sorted(path.name for path in Path("out").iterdir()) == [
        *("README.md", "chat_template.jinja", "config.json", "digests.json", "dpo.json"),
        *("generation_config.json", "model.safetensors", "tokenizer.json"),
        "tokenizer_config.json",
    ]


def test_sixteen_bits_keep_nearly_all_of_a_large_update(large: Path, capsys: Capture) -> None:
    assert run(capsys, "export", str(large), "out", "--fuse")[0] == 0
    record = record_of("out")
    assert record["export"]["dtype"] == "bfloat16"  # of a float32 base
    assert 0.99 <= record["export"]["proof"]["kept"] <= 1.01
    arrays = load_arrays(Path("out/model.safetensors"))
    assert {array.dtype for array in arrays.values()} == {mx.bfloat16}
    assert json.loads(Path("out/config.json").read_text())["torch_dtype"] == "bfloat16"
    code, out, err = run(
        capsys, "eval", "--model", "out", "--data", "pairs.json", "--num-prompts", "0"
    )
    assert (code, err) == (0, "")
    assert f"reference  {ORACLE}" in out


def test_a_packed_base_becomes_a_dense_folder(small: Path, capsys: Capture) -> None:
    assert run(capsys, "export", str(small), "out", "--fuse", "--dtype", "float32")[0] == 0
    config = json.loads(Path("out/config.json").read_text())
    assert not {"quantization", "quantization_config"} & config.keys()
    arrays = load_arrays(Path("out/model.safetensors"))
    assert {array.dtype for array in arrays.values()} == {mx.float32}
    found, expected = logits("out"), adapter_logits(small)
    assert np.abs(found - expected).max() <= 1e-4


def test_packing_anew_undoes_a_small_update_and_is_refused(small: Path, capsys: Capture) -> None:
    words = ("export", str(small), "out", "--fuse", "--quantize", "4")
    code, out, err = run(capsys, *words)
    assert code == 1
    assert err.splitlines()[-1].startswith("mlx_dpo: out: not written: 4 bits keeps 0.")
    assert "warning: rounding moved log-probs further than training did" in err
    assert "--force" in err
    assert "margin  +" in out
    assert [path.name for path in Path().iterdir() if "out" in path.name] == []
    code, out, err = run(capsys, *words, "--force")
    assert code == 0
    assert "warning: 4 bits keeps " in err
    record = record_of("out")["export"]
    assert record["proof"]["kept"] < 0.9
    config = json.loads(Path("out/config.json").read_text())
    assert config["quantization"] == config["quantization_config"] == record["quantization"]
    assert record["quantization"] == {"group_size": 32, "bits": 4, "mode": "affine"}
    assert logits("out").shape == (1, 7, 512)


def test_more_bits_keep_it(large: Path, capsys: Capture) -> None:
    assert run(capsys, "export", str(large), "out", "--fuse", "--quantize", "8")[0] == 0
    assert record_of("out")["export"]["proof"]["kept"] > 0.9
    assert json.loads(Path("out/config.json").read_text())["quantization"]["bits"] == 8
    code, out, err = run(capsys, "export", "out", "again", "--quantize", "4")
    assert (code, out) == (2, "")
    assert "out: is quantised already" in err


def test_a_full_model_is_packed_and_measured_against_its_own_reference(
    large: Path, capsys: Capture
) -> None:
    assert run(capsys, "export", str(large), "full", "--fuse", "--dtype", "float32")[0] == 0
    code, out, _ = run(capsys, "export", "full", "out", "--quantize", "8")
    assert code == 0
    assert "wrote   out  (8 bits)" in out.splitlines()
    record = record_of("out")
    assert record["export"]["model"] == "full"
    assert record["export"]["base"] is None
    assert record["export"]["dtype"] == "bfloat16"
    assert record["export"]["proof"]["kept"] > 0.9
    assert logits("out").shape == (1, 7, 512)


def without(large: Path, **changes: Any) -> str:
    """A copy of an adapter whose dpo.json says something else."""
    shutil.copytree(large, "copy", ignore=shutil.ignore_patterns("digests.json"))
    Path("copy/dpo.json").write_text(json.dumps(record_of("copy") | changes))
    return "copy"


def test_a_margin_that_may_be_zero_is_said_and_no_obstacle(large: Path, capsys: Capture) -> None:
    data = record_of(str(large))["data"]
    one = {"train": data["split"]["train"], "held_out": data["split"]["held_out"][:1]}
    source = without(large, data={**data, "split": one})
    code, out, _ = run(capsys, "export", source, "out", "--fuse", "--quantize", "2")
    assert code == 0
    assert "includes 0: nothing measurable to keep" in out
    assert record_of("out")["export"]["proof"]["kept"] is None


def test_another_margin_than_the_runs_is_pointed_out(large: Path, capsys: Capture) -> None:
    source = without(large, held_out={"reward_margin": -5.0})
    code, _, err = run(capsys, "export", source, "out", "--fuse")
    assert code == 0
    assert "warning: the run itself recorded a margin of -5.0000" in err


def test_without_pairs_sixteen_bits_are_written_unmeasured(large: Path, capsys: Capture) -> None:
    Path("pairs.json").rename("moved.json")
    code, out, err = run(capsys, "export", str(large), "out", "--fuse")
    assert (code, err) == (0, "")
    reason = "pairs.json, the file with the held-out pairs, is not there"
    shown = [f"kept    not measured: {reason}", "wrote   out  (bfloat16)"]
    assert out.splitlines()[:2] == shown
    assert record_of("out")["export"]["proof"] is None


def test_a_model_too_large_to_be_loaded_dense_is_written_unmeasured(
    large: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_dpo.models.device.recommended_here", lambda: 1000)
    code, out, _ = run(capsys, "export", str(large), "out", "--fuse")
    assert code == 0
    assert "not measured: its weights take" in out
    assert record_of("out")["export"]["proof"] is None


def test_without_pairs_packing_is_refused_with_the_way_out(large: Path, capsys: Capture) -> None:
    Path("pairs.json").rename("moved.json")
    words = ("export", str(large), "out", "--fuse", "--quantize", "8")
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert "can't be measured: pairs.json" in err
    assert "pass --data with the run's pairs, or --force" in err
    assert run(capsys, *words, "--data", "moved.json")[0] == 0
    assert run(capsys, *words, "--overwrite", "--force")[0] == 0
    assert record_of("out")["export"]["proof"] is None
    code, _, err = run(capsys, *words, "--overwrite", "--data", "absent.json")
    assert code == 2
    assert "absent.json: no such file" in err


def test_an_adapter_of_others_takes_its_base(large: Path, capsys: Capture) -> None:
    shutil.copytree(large, "copy", ignore=shutil.ignore_patterns("digests.json"))
    Path("copy/dpo.json").unlink()
    code, _, err = run(capsys, "export", "copy", "out", "--fuse")
    assert code == 2
    assert "no dpo.json in it says; pass that as --base" in err
    code, out, _ = run(capsys, "export", "copy", "out", "--fuse", "--base", str(ORACLE))
    assert code == 0
    assert "not measured: no dpo.json says which pairs its run held out" in out
    assert record_of("out")["trained_from"]["model"] == str(ORACLE)
    code, _, err = run(
        capsys, "export", "copy", "more", "--fuse", "--base", str(ORACLE), "--quantize", "8"
    )
    assert code == 2
    assert "pass --force to write it unmeasured" in err


def test_a_base_that_has_moved_is_named(large: Path, capsys: Capture) -> None:
    origin = record_of(str(large))["trained_from"]
    source = without(large, trained_from={**origin, "model": "./gone"})
    code, _, err = run(capsys, "export", source, "out", "--fuse")
    assert code == 2
    assert "./gone" in err
    assert "pass that as --base" in err
    assert run(capsys, "export", source, "out", "--fuse", "--base", str(ORACLE))[0] == 0
    found = record_of("out")["trained_from"]
    assert found == {**origin, "model": str(ORACLE)}


def test_an_adapter_trained_further_is_measured_from_where_it_began(large: Path) -> None:
    settings = record_of(str(large))["settings"]
    first = {"adapter": str(large), "adapter_reference": "start"}
    trial = plan_trial(locate(without(large, settings=settings | first)))
    assert trial.reference == Source(ORACLE, large, large)
    first["adapter_reference"] = "base"
    Path("copy/dpo.json").write_text(json.dumps(record_of("copy") | {"settings": settings | first}))
    assert plan_trial(locate("copy")).reference == Source(ORACLE, None, ORACLE)


def test_a_model_of_the_course_is_fused_and_not_packed(here: Path, capsys: Capture) -> None:
    course = next((ROOT / "tests" / "g2c" / "artifacts" / "models").iterdir())
    adapter = trained(here, model=str(course), learning_rate=1e-2, steps=2, max_length=64)
    assert run(capsys, "export", str(adapter), "out", "--fuse")[0] == 0
    assert load_source(locate("out"))
    assert run(capsys, "convert", "out", "back")[0] == 0
    code, _, err = run(capsys, "export", str(adapter), "more", "--fuse", "--quantize", "8")
    assert code == 2
    assert "is a model of the course" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["ADAPTER", "out"], "is an adapter: --fuse or --to sums it into its model, and mlx_dpo"),
        (["MODEL", "out", "--fuse"], "is a full model, no adapter: --fuse has no effect"),
        (["MODEL", "out", "--quantize", "4", "--base", "MODEL"], "--base has no effect"),
        (["MODEL", "out"], "is a full model as it stands: --to says what to write it for"),
        (["MODEL", "out", "--quantize", "4"], "no dpo.json says which pairs"),
        (["./absent", "out", "--fuse"], "no such model folder"),
        (["ADAPTER", "out", "--fuse", "--quantize", "5"], "--quantize"),
        (["ADAPTER", "out", "--fuse", "--dtype", "int8"], "--dtype"),
        (["ADAPTER", "ADAPTER", "--fuse", "--overwrite"], "overlaps"),
        (["ADAPTER", "MODEL/inside", "--fuse"], "overlaps"),
        (["ADAPTER", "theirs", "--fuse"], "theirs: exists; pass --overwrite"),
        (["ADAPTER", "theirs", "--fuse", "--overwrite"], "exists and no export made it"),
        (["ADAPTER", "out", "--fuse", "--what"], "No such option"),
    ],
)
def test_a_mistake_is_one_line_with_its_exit_code(
    args: list[str], message: str, large: Path, capsys: Capture
) -> None:
    Path("theirs").mkdir()
    names = {"ADAPTER": str(large), "MODEL": str(ORACLE), "MODEL/inside": f"{ORACLE}/inside"}
    code, out, err = run(capsys, "export", *(names.get(arg, arg) for arg in args))
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not Path("out").exists()


def test_an_export_replaces_an_earlier_one(large: Path, capsys: Capture) -> None:
    assert run(capsys, "export", str(large), "out", "--fuse")[0] == 0
    assert "exists; pass --overwrite" in run(capsys, "export", str(large), "out", "--fuse")[2]
    words = ("--fuse", "--overwrite", "--dtype", "float16")
    assert run(capsys, "export", str(large), "out", *words)[0] == 0
    assert record_of("out")["export"]["dtype"] == "float16"
