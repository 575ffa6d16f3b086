"""Course artifacts: the numbers PyTorch gives, the way there and back, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_dpo.convert.conversion import Kind, kind_of
from mlx_dpo.convert.course.checkpoint import is_course_folder, read_artifact
from mlx_dpo.convert.course.params import params_to_torch, slots
from mlx_dpo.convert.sources import load_folder, needs_conversion
from mlx_dpo.convert.store import converted_once
from mlx_dpo.convert.torch_zip.archive import read_torch_zip, write_torch_zip
from mlx_dpo.convert.torch_zip.tensors import BFloat16
from mlx_dpo.errors import UsageError
from mlx_dpo.models.course import CourseArgs
from mlx_dpo.models.generate import Request, generate_each
from mlx_dpo.models.parameters import named_arrays, same_bits
from mlx_dpo.training.logprobs import pair_logprobs
from mlx_dpo.training.trainer import DPOTrainer
from tests import g2c
from tests.convert.conftest import change_json, run

NAME = "StoryLM-1M-SFT"
Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="session")
def mlx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("course") / "mlx"
    run(g2c.ARTIFACT, out, verify=False)
    return out


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A copy that may be changed, with its tokenizer beside it."""
    shutil.copytree(g2c.FOLDER / "artifacts", tmp_path / "artifacts")
    return tmp_path / "artifacts" / "models" / NAME


def rewrite_model(folder: Path, change: Change) -> None:
    content = read_torch_zip(folder / "model.pt")
    change(content)
    write_torch_zip(folder / "model.pt", content)


def weights_of(model: nn.Module) -> dict[str, mx.array]:
    return named_arrays(model.parameters())


# --- The numbers of PyTorch ----------------------------------------------------------------------


def test_log_probs_are_those_of_pytorch(mlx_folder: Path) -> None:
    model, _ = load_folder(mlx_folder)
    expected = g2c.expected()
    found = pair_logprobs(
        model, g2c.pairs(), max_seq_len=expected["max_seq_len"], pad_id=expected["pad_id"]
    )
    truth = [expected["chosen_logp"], expected["rejected_logp"]]
    np.testing.assert_allclose(np.array(found), truth, rtol=0, atol=1e-4)


def test_the_first_logits_are_those_of_pytorch(mlx_folder: Path) -> None:
    model, _ = load_folder(mlx_folder)
    logits = model(mx.array([g2c.pairs()[0].prompt_ids]))
    np.testing.assert_allclose(
        np.array(logits[0, 0, :8]), g2c.expected()["chosen_x0_logits_row0_first8"], atol=1e-5
    )


def test_twenty_steps_of_dpo_go_as_in_pytorch(mlx_folder: Path) -> None:
    expected = g2c.expected()
    run, examples = expected["dpo_run"], g2c.pairs()
    trainer = DPOTrainer(
        load_folder(mlx_folder)[0],
        ref_model=load_folder(mlx_folder)[0],
        examples=examples,
        max_seq_len=expected["max_seq_len"],
        pad_id=expected["pad_id"],
        **run["config"],
    )
    steps = [trainer.train_step([examples[i] for i in rows]) for rows in run["batch_indices"]]
    assert len(steps) == 20
    for key, tolerance in {
        "loss": 1e-4, "lr": 1e-9, "grad_norm": 1e-3, "chosen_reward": 1e-3, "rejected_reward": 1e-3,
        "reward_margin": 1e-3, "accuracy": 0,
    }.items():  # fmt: skip
        truth = run["history"]["train_loss" if key == "loss" else key]
        found = [step[key] for step in steps]
        np.testing.assert_allclose(found, truth, rtol=0, atol=tolerance, err_msg=key)


def test_the_tokenizer_of_the_folder_gives_the_ids_of_the_course(mlx_folder: Path) -> None:
    tokenizer = load_folder(mlx_folder)[1]
    for row in g2c.expected()["encoded"]:
        assert tokenizer.encode(row["prompt_text"]) == row["prompt_ids"]
    assert set(tokenizer.eos_token_ids) == {262}


def test_an_answer_comes_from_the_folder(mlx_folder: Path) -> None:
    model, tokenizer = load_folder(mlx_folder)
    ids = list(g2c.pairs()[0].prompt_ids)
    new = generate_each(model, [Request(ids)], stop_ids=tokenizer.eos_token_ids, max_tokens=8)[0]
    for token in new:
        assert token == int(model(mx.array([ids]))[0, -1].argmax())
        ids.append(token)


# --- There and back ------------------------------------------------------------------------------


def test_there_and_back_every_bit_is_the_same(mlx_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "StoryLM-1M-DPO"
    assert "artifacts/models/StoryLM-1M-DPO\n" in run(mlx_folder, out, verify=False)
    before, after = (read_torch_zip(f / "model.pt") for f in (g2c.ARTIFACT, out))
    assert list(after) == ["vocab_size", "model_config", "params"]
    assert after["vocab_size"] == before["vocab_size"]
    assert list(after["model_config"].items()) == list(before["model_config"].items())
    for number, (a, b) in enumerate(zip(before["params"], after["params"], strict=True)):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.tobytes() == b.tobytes(), number
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "manifest.json",
        "model.pt",
    ]
    assert (out / "config.json").read_text() == (g2c.ARTIFACT / "config.json").read_text()
    manifest = (g2c.ARTIFACT / "manifest.json").read_text()
    assert (out / "manifest.json").read_text() == manifest.replace(NAME, "StoryLM-1M-DPO", 1)


def test_equal_folders_give_equal_files(mlx_folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(mlx_folder, tmp_path / name, verify=False)
        run(g2c.ARTIFACT, tmp_path / f"mlx-{name}", verify=False)
    for one, two in (("a", "b"), ("mlx-a", "mlx-b")):
        for file in (tmp_path / one).iterdir():
            assert file.read_bytes() == (tmp_path / two / file.name).read_bytes(), file.name


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_stays_half_precision(artifact: Path, tmp_path: Path, kind: str) -> None:
    def halve(content: dict[str, Any]) -> None:
        for number, value in enumerate(content["params"]):
            half = value.astype(np.float16)
            bits = (value.view(np.uint32) >> 16).astype(np.uint16)
            content["params"][number] = half if kind == "float16" else BFloat16(bits)

    rewrite_model(artifact, halve)
    run(artifact, tmp_path / "mlx", verify=False)
    run(tmp_path / "mlx", tmp_path / "back", verify=False)
    assert (tmp_path / "back" / "model.pt").read_bytes() == (artifact / "model.pt").read_bytes()
    model, _ = load_folder(tmp_path / "mlx")
    assert {value.dtype for value in weights_of(model).values()} == {mx.float32}


def test_a_trained_folder_goes_back_with_its_own_story(mlx_folder: Path, tmp_path: Path) -> None:
    trained = tmp_path / "trained"
    shutil.copytree(mlx_folder, trained)
    model, _ = load_folder(mlx_folder)
    changed = {name: value + 0.5 for name, value in weights_of(model).items()}
    mx.save_safetensors(str(trained / "model.safetensors"), changed)
    story = {"steps": 12, "settings": {"beta": 0.1, "seed": 3}, "held_out": {"loss": 0.25}}
    (trained / "dpo.json").write_text(json.dumps(story))

    run(trained, tmp_path / "back", verify=False)
    old = g2c.read(g2c.ARTIFACT / "manifest.json")
    new = json.loads((tmp_path / "back" / "manifest.json").read_text())
    assert list(new) == list(old)
    assert new["name"] == "StoryLM-1M-DPO"
    assert NAME in new["source"]
    assert (new["steps_completed"], new["final_val_loss"], new["seed"]) == (12, 0.25, 3)
    assert new["training_config"] == story["settings"]
    for key in ("tokenizer_artifact", "vocab_size", "model_config"):
        assert new[key] == old[key]
    shutil.copytree(g2c.FOLDER / "artifacts" / "tokenizers", tmp_path / "a" / "tokenizers")
    shutil.copytree(tmp_path / "back", tmp_path / "a" / "models" / "StoryLM-1M-DPO")
    again = read_artifact(tmp_path / "a" / "models" / "StoryLM-1M-DPO")
    for name, value in changed.items():
        assert same_bits(again.arrays[name], value), name


def test_a_name_without_sft_stays_and_foreign_keys_go_last(artifact: Path, tmp_path: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        names = [*manifest]
        for key in names[::-1]:
            manifest[key] = manifest.pop(key)
        manifest |= {"name": "my-model", "own": [1]}

    change_json(artifact / "manifest.json", change)
    run(artifact, tmp_path / "mlx", verify=False)
    shown = run(tmp_path / "mlx", tmp_path / "back", verify=False)
    assert "artifacts/models/my-model\n" in shown
    keys = [*json.loads((tmp_path / "back" / "manifest.json").read_text())]
    assert keys == [*g2c.read(g2c.ARTIFACT / "manifest.json"), "own"]


def test_the_list_has_the_course_s_order_and_layout() -> None:
    args = CourseArgs(
        vocab_size=5, embedding_dim=2, num_layers=2, num_heads=1, max_seq_len=3, hidden_dim=7
    )
    found = [(slot.name, slot.shape) for slot in slots(args)]
    assert found[:2] == [("model.token_embed.weight", (5, 2)), ("model.pos_embed.weight", (3, 2))]
    block = [(name.removeprefix("model.layers.1."), shape) for name, shape in found[18:34]]
    assert block == [
        *(("ln1.weight", (2,)), ("ln1.bias", (2,))),
        *(("attention.q.weight", (2, 2)), ("attention.q.bias", (2,))),
        *(("attention.k.weight", (2, 2)), ("attention.k.bias", (2,))),
        *(("attention.v.weight", (2, 2)), ("attention.v.bias", (2,))),
        *(("attention.out.weight", (2, 2)), ("attention.out.bias", (2,))),
        *(("ln2.weight", (2,)), ("ln2.bias", (2,))),
        *(("fc1.weight", (2, 7)), ("fc1.bias", (7,))),
        *(("fc2.weight", (7, 2)), ("fc2.bias", (2,))),
    ]
    assert found[34:] == [
        ("model.ln_final.weight", (2,)),
        ("model.ln_final.bias", (2,)),
        ("head_bias", (5,)),
    ]


def test_square_matrices_are_turned(mlx_folder: Path) -> None:
    params = read_torch_zip(g2c.ARTIFACT / "model.pt")["params"]
    model, _ = load_folder(mlx_folder)
    q = np.array(weights_of(model)["model.layers.0.attention.q.weight"])
    np.testing.assert_array_equal(q, params[4].T)
    assert not np.array_equal(q, params[4])


def test_a_hidden_width_of_one_s_own_survives(artifact: Path, tmp_path: Path) -> None:
    checkpoint = read_artifact(artifact)
    sizes = {**checkpoint.model_config, "hidden_dim": 24, "num_layers": 1}
    args = CourseArgs.from_dict({**sizes, "vocab_size": 599})
    rng = np.random.default_rng(0)
    arrays = {
        slot.name: mx.array(
            rng.normal(size=slot.shape[::-1] if slot.is_matrix else slot.shape).astype(np.float32)
        )
        for slot in slots(args)
    }
    content = {"vocab_size": 599, "model_config": sizes, "params": params_to_torch(arrays, args)}
    write_torch_zip(artifact / "model.pt", content)
    for name in ("config.json", "manifest.json"):
        change_json(artifact / name, lambda c: c.update(model_config=sizes))
    run(artifact, tmp_path / "mlx", verify=False)
    assert load_folder(tmp_path / "mlx")[0](mx.array([[1, 2]])).shape == (1, 2, 599)
    run(tmp_path / "mlx", tmp_path / "back", verify=False)
    assert (tmp_path / "back" / "model.pt").read_bytes() == (artifact / "model.pt").read_bytes()


def test_an_artifact_is_converted_once_and_again_when_it_changes(
    artifact: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store" / "converted"
    assert needs_conversion(artifact)
    first = converted_once(artifact, store)
    assert is_course_folder(first)
    assert not needs_conversion(first)
    stamp = (first / "config.json").stat().st_mtime_ns
    assert converted_once(artifact, store) == first
    assert (first / "config.json").stat().st_mtime_ns == stamp
    change_json(artifact / "manifest.json", lambda c: c.update(notes="changed"))
    assert converted_once(artifact, store) != first


# --- What kind of folder it is -------------------------------------------------------------------


def test_kinds_of_folders_are_told_apart(mlx_folder: Path, tmp_path: Path) -> None:
    assert kind_of(g2c.ARTIFACT) is Kind.COURSE
    assert not is_course_folder(g2c.ARTIFACT)
    assert kind_of(mlx_folder) is Kind.COURSE_MLX
    assert is_course_folder(mlx_folder)
    assert kind_of(tmp_path) is Kind.HUGGING_FACE
    assert not is_course_folder(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        kind_of(tmp_path / "none")
    assert not is_course_folder(tmp_path / "none")
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "manifest.json").write_text("{")
    assert not is_course_folder(tmp_path)
    with pytest.raises(UsageError, match=r"model\.pt is missing"):
        kind_of(tmp_path)


def test_the_source_is_not_written_to(artifact: Path, tmp_path: Path) -> None:
    def snapshot() -> dict[str, bytes]:
        files = (artifact.parent.parent).rglob("*")
        return {str(path): path.read_bytes() for path in files if path.is_file()}

    before = snapshot()
    run(artifact, tmp_path / "mlx", verify=False)
    assert snapshot() == before
    for out in (artifact, artifact / "mlx", artifact.parent, tmp_path / "mlx"):
        with pytest.raises(UsageError, match=r"overlaps|exists"):
            run(artifact, out, verify=False)
    assert snapshot() == before
