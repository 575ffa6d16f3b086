"""The doctor's checks on a tiny model: what they find here, and that each notices its fault."""

import json
import platform
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map

from mlx_dpo.insight.doctor import correctness, cost, hardware
from mlx_dpo.insight.doctor.bench import (
    FAIL,
    LOOK,
    OK,
    Bench,
    Outcome,
    embedded_model,
    model_of_folder,
    packed_llama,
    random_llama,
    without_paths,
)
from mlx_dpo.insight.doctor.examination import (
    CHECKS,
    CHECKS_OF_ADAPTERS,
    CheckResult,
    examine,
    standard_specimens,
    worst,
)
from mlx_dpo.models import packed
from mlx_dpo.models.adapters import attach_adapters
from mlx_dpo.models.parameters import fingerprint
from mlx_dpo.training.paths import FastPath, PlainPath
from mlx_dpo.training.self_check import Choice

TINY = random_llama(kv_heads=1, layers=1, vocabulary=300)
ADAPTED = replace(TINY, adapt=lambda model: attach_adapters(model, rank=4))
ON_CPU = mx.default_device() == mx.cpu


@pytest.fixture(scope="module")
def results() -> dict[str, CheckResult]:
    return {result.check: result for result in examine([TINY])}


@pytest.fixture
def bench() -> Bench:
    return Bench(TINY)


def test_every_check_is_run_in_order_and_none_fails_here(results: dict[str, CheckResult]) -> None:
    assert list(results) == ["float32 products", "packed products", *CHECKS]
    assert not [r for r in results.values() if r.outcome.verdict == FAIL]


def test_a_cpu_trains_to_the_right_numbers(results: dict[str, CheckResult]) -> None:
    if not ON_CPU:
        pytest.skip("a GPU may round otherwise from run to run")
    for check in ("float32 products", "path", "plain against fast", "step 0", "gradients"):
        assert results[check].outcome.verdict == OK, check
    assert results["path"].outcome.figures["path"] == "shared-prompt"
    assert results["gradients"].outcome.figures["distinct"] == 1
    assert results["resume"].outcome.figures == {"steps": 4, "same_state": True, "same_end": True}


def test_step_0_shows_nine_digits_for_each_reference(results: dict[str, CheckResult]) -> None:
    starts = dict(part.split(" ") for part in results["step 0"].outcome.value.split(", "))
    assert list(starts) == ["cached", "copy", "bfloat16"]
    assert all(len(loss) == len("0.693147182") for loss in starts.values())


def test_results_are_plain_data(results: dict[str, CheckResult]) -> None:
    rows = json.loads(json.dumps([result.as_json() for result in results.values()]))
    for row in rows:
        assert row.keys() == {
            *("model", "check", "seconds", "verdict", "value", "meaning", "figures")
        }


def test_the_random_model_has_the_shapes_of_fused_kernels() -> None:
    model: Any = random_llama(layers=2, vocabulary=64).make("float32")
    attention = model.layers[0].self_attn
    assert (attention.n_heads, attention.n_kv_heads) == (9, 3)
    assert attention.k_proj.weight.shape == (3 * 64, 9 * 64)


def test_the_random_model_has_equal_weights_each_time_in_both_types() -> None:
    assert fingerprint(TINY.make("float32")) == fingerprint(TINY.make("float32"))
    wide, half = TINY.make("float32").parameters(), TINY.make("bfloat16").parameters()
    assert fingerprint(tree_map(lambda a: a.astype(mx.bfloat16), wide)) == fingerprint(half)


def test_the_batch_of_the_gradients_repeats_ids_and_crosses_the_width_of_eight() -> None:
    pairs = random_llama().examples[:2]
    repeated = Counter(token for pair in pairs for token in pair.prompt_ids)
    assert sum(count >= 3 for count in repeated.values()) >= 5
    lengths = [len(ids) for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]
    assert min(lengths) <= 8 < 16 < max(lengths)
    assert len(pairs[0].prompt_ids) != len(pairs[1].prompt_ids)


def test_a_gradient_summed_in_another_order_each_time_is_noticed_by_its_tensor() -> None:
    draw = np.random.default_rng(0)
    parts = draw.normal(size=(64, 3)).astype(np.float32)

    def gradient() -> dict[str, mx.array]:
        total = mx.zeros(3)
        for row in draw.permutation(len(parts)):
            total = total + mx.array(parts[row])
        return {"norm.weight": mx.ones(2), "embed.weight": total}

    number, tensors = correctness.distinct(gradient, 20)
    assert number > 1
    assert tensors == ["embed.weight"]


def test_gradients_that_vary_break_a_promise_on_a_cpu_only(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    drift = iter(range(100))
    monkeypatch.setattr(bench, "gradient", lambda *_: {"a": mx.array([float(next(drift))])})
    for device, verdict in (("CPU", FAIL), ("Metal", LOOK), ("CUDA", LOOK)):
        monkeypatch.setattr(correctness, "backend", lambda device=device: device)
        outcome = correctness.gradients(bench)
        assert (outcome.verdict, outcome.figures["distinct"]) == (verdict, 20)
        assert outcome.value == "20 distinct of 20, in a"


def test_a_refused_path_is_named_with_its_reason_and_no_path_of_the_disk(bench: Bench) -> None:
    reason = "its log-probs are off by 0.009 (see /home/ann/model.py)"
    refused = (("shared-prompt", reason), ("joined", "no such layer"))
    bench.choice = Choice(bench.plain, refused=refused)
    outcome = correctness.path(bench)
    assert outcome.verdict == LOOK
    assert outcome.value == (
        "plain (shared-prompt: its log-probs are off by 0.009 (see (path)); 1 more)"
    )


class _Off(FastPath):
    """A path whose log-probs are wrong by a hundredth of a nat, and so is their gradient."""

    def __call__(self, model: nn.Module, examples: Any, *, gradient: bool = False) -> mx.array:
        return 1.01 * super().__call__(model, examples, gradient=gradient)


def test_a_path_that_is_off_fails_where_it_is_taken_and_not_where_it_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.choice = Choice(_Off(TINY.max_length, TINY.pad_id), num_pairs=3)
    assert correctness.agreement(bench).verdict == FAIL
    refused = Bench(TINY)
    refused.choice = Choice(PlainPath(TINY.max_length, TINY.pad_id))
    off = _Off(TINY.max_length, TINY.pad_id, share_prompts=False)
    monkeypatch.setattr(Bench, "fast", off)
    assert correctness.agreement(refused).verdict == LOOK


class _ByBatch(FastPath):
    """A path whose log-probs depend on how many pairs are scored together."""

    def __call__(self, model: nn.Module, examples: Any, *, gradient: bool = False) -> mx.array:
        return super().__call__(model, examples, gradient=gradient) + 0.01 * len(examples)


def test_a_score_that_depends_on_the_batch_fails_step_0_where_a_run_is_refused(
    bench: Bench,
) -> None:
    bench.choice = Choice(_ByBatch(TINY.max_length, TINY.pad_id), num_pairs=3)
    outcome = correctness.start(bench)
    assert outcome.verdict == FAIL
    assert outcome.meaning == "A run is refused before it begins: cached is not at log 2."


def test_a_copy_that_is_not_the_policy_fails_step_0(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = random_llama(kv_heads=1, layers=1, vocabulary=300, seed=1)
    _ = bench.model
    monkeypatch.setattr(bench, "loaded", lambda dtype="float32": other.make(dtype))
    outcome = correctness.start(bench)
    assert outcome.verdict == FAIL
    assert outcome.meaning == "A run is refused before it begins: copy is not at log 2."


def test_a_loss_that_a_gradient_moves_is_worth_a_look(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = {"loss": 0.7, "largest_reward": 0.0, "allowed_reward": 1e-5, "grad_norm": 1.0}
    monkeypatch.setattr("mlx_dpo.training.trainer.DPOTrainer.check_start", lambda _: start)
    outcome = correctness.start(bench)
    assert outcome.verdict == LOOK
    assert "cached, copy, bfloat16" in outcome.meaning


def test_a_restore_that_restores_nothing_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correctness, "restore", lambda *_: None)
    outcome = correctness.resume(bench)
    assert outcome.verdict == FAIL
    assert outcome.value == "restored state not equal, after 4 steps not equal"


@pytest.mark.parametrize(("total", "verdict"), [(1, LOOK), (10**12, LOOK)])
def test_memory_that_is_not_as_predicted_is_worth_a_look(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, total: int, verdict: str
) -> None:
    monkeypatch.setattr(cost, "Predictor", lambda _: lambda _: type("P", (), {"total": total}))
    assert cost.memory(bench).verdict == verdict


@pytest.mark.parametrize(
    ("whole", "halves", "price"),
    [(1.0, 1.0, 0), (1.0, 0.9, 0), (1.0, 1.5, 100), (1.0, 2.0, float("inf"))],
)
def test_the_price_of_a_forward(whole: float, halves: float, price: float) -> None:
    # a + 100 b = 1 and 2 a + 100 b = 1.5: a = 0.5 and b = 0.005.
    assert cost.forward_price(100, whole, halves) == pytest.approx(price)


def test_a_price_that_times_do_not_tell_is_no_number(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([1.0, 3.0] * (1 + cost.TIMES))
    monkeypatch.setattr(cost, "seconds_of", lambda _: next(times))
    outcome = cost.forward(bench)
    assert outcome.value.startswith("too noisy to tell (")
    assert outcome.figures["price_tokens"] is None


@pytest.mark.parametrize(("switch", "verdict"), [("0", FAIL), ("1", LOOK), (None, LOOK)])
def test_operands_that_are_cut_are_noticed(
    monkeypatch: pytest.MonkeyPatch, switch: str | None, verdict: str
) -> None:
    monkeypatch.setattr(correctness, "product_error", lambda: 8e-4)
    monkeypatch.delenv(hardware.TF32, raising=False)
    if switch is not None:
        monkeypatch.setenv(hardware.TF32, switch)
    outcome = correctness.float32_products()
    assert outcome.verdict == verdict
    assert outcome.figures["tf32"] == {"value": switch, "set_by_user": switch == "1"}


def test_a_check_that_raises_has_failed_and_the_others_are_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(bench: Bench) -> Outcome:
        raise RuntimeError("cannot open /Users/ann/x.metallib")

    def fine(bench: Bench) -> Outcome:
        return Outcome(OK, "", "")

    monkeypatch.setattr(
        "mlx_dpo.insight.doctor.examination.CHECKS", {"first": broken, "second": fine}
    )
    _, _, first, second = examine([TINY])
    assert first.outcome.verdict == FAIL
    assert first.outcome.value == "RuntimeError: cannot open (path)"
    assert second.outcome.verdict == OK
    assert worst([first, second]) == FAIL
    assert worst([]) == OK


def test_the_machine_is_described_without_names() -> None:
    machine = hardware.describe_machine()
    text = json.dumps(machine)
    assert machine["backend"] in ("CPU", "Metal", "CUDA")
    assert machine["memory_bytes"] > 2**28
    assert str(Path.home()) not in text
    assert platform.node() not in text
    assert not {"uuid", "pci_bus_id"} & machine["limits"].keys()


@pytest.mark.parametrize(
    ("device", "metal", "name"),
    [
        (mx.cpu, False, "CPU"),
        (mx.cpu, True, "CPU"),
        (mx.gpu, True, "Metal"),
        (mx.gpu, False, "CUDA"),
    ],
)
def test_the_backend_is_that_of_the_default_device(
    monkeypatch: pytest.MonkeyPatch, device: mx.Device, metal: bool, name: str
) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: device)
    monkeypatch.setattr(mx.metal, "is_available", lambda: metal)
    assert hardware.backend() == name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no file /Users/ann/a b", "no file (path) b"),
        ("~/models/x: bad", "(path): bad"),
        ("in ./run and ../other", "in (path) and (path)"),
        ("0.5/0.6 of 3/4 tokens/s", "0.5/0.6 of 3/4 tokens/s"),
    ],
)
def test_what_looks_like_a_path_is_left_out(text: str, expected: str) -> None:
    assert without_paths(text) == expected


def test_the_embedded_model_is_examined_in_a_clone_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent.parent)
    specimen = embedded_model()
    assert specimen is not None
    assert (specimen.name, len(specimen.examples)) == ("tiny-sft", 8)
    monkeypatch.chdir(tmp_path)
    assert embedded_model() is None


def test_an_embedded_model_that_cannot_be_loaded_is_a_failed_check_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clone without Git LFS has a line of text where the weights should be."""
    clone = Path(__file__).parent.parent.parent
    shutil.copytree(clone / "checkpoints", tmp_path / "checkpoints")
    shutil.copytree(clone / "data", tmp_path / "data")
    weights = tmp_path / "checkpoints/tiny-sft/model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1")
    monkeypatch.chdir(tmp_path)
    specimens, (failed,) = standard_specimens()
    assert [specimen.name for specimen in specimens] == ["random", "packed"]
    assert (failed.model, failed.outcome.verdict) == ("embedded", "fail")
    assert "not a valid safetensors file" in failed.outcome.value


def test_adapters_on_quantised_weights_train_to_the_right_numbers() -> None:
    results = {result.check: result.outcome for result in examine([packed_llama()])}
    assert list(results) == ["float32 products", "packed products", *CHECKS_OF_ADAPTERS]
    if not ON_CPU:
        assert not [outcome for outcome in results.values() if outcome.verdict == FAIL]
        return
    assert {outcome.verdict for outcome in results.values()} == {OK}
    assert results["adapter off"].figures["difference"] == 0
    first, *_, last = results["adapter trains"].figures["losses"]
    assert last < first
    assert "adapter off 0.693147182" in results["step 0"].value


def test_an_adapter_of_the_users_is_examined_on_its_base(adapter_folder: Path) -> None:
    specimen = model_of_folder(str(adapter_folder))
    assert specimen.about == "llama, 0.4 M parameters; LoRA"
    for check in (correctness.start, correctness.adapter_off, correctness.adapter_trains):
        assert check(Bench(specimen)).verdict == OK


def test_packed_products_that_are_wrong_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    assert correctness.packed_products().verdict == OK
    monkeypatch.setattr(correctness, "dense", lambda module: 1.05 * packed.dense(module))
    assert correctness.packed_products().verdict == FAIL


def test_an_adapter_that_stays_on_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correctness, "without_adapter", lambda model: model)
    assert correctness.adapter_off(Bench(ADAPTED)).verdict == FAIL


def test_an_adapter_that_does_not_learn_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correctness, "_ADAPTER_RATE", 0.0)
    assert correctness.adapter_trains(Bench(ADAPTED)).verdict == FAIL


def test_a_base_that_trains_with_its_adapter_fails() -> None:
    def thaw(model: nn.Module) -> None:
        attach_adapters(model, rank=4)
        model.unfreeze()

    outcome = correctness.adapter_trains(Bench(replace(TINY, adapt=thaw)))
    assert outcome.verdict == FAIL
    assert outcome.value.endswith("base not equal")
