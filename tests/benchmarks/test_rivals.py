"""Rivals are given the same weights and ids, and a script replaces its own section only."""

import ast
import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm import load

from benchmarks.contenders import ours
from benchmarks.contenders.job import Job, Outcome
from benchmarks.environments import INSTALLS
from benchmarks.lineup import TABLES
from benchmarks.model_folder import EOS_ID, as_row, closed, save, save_adapters
from benchmarks.report import publish, table, with_section
from benchmarks.rivals import LEARNING_RATES, SECTIONS, TINY, same_loss
from benchmarks.workload import make_batches, make_model
from mlx_dpo.models.adaptable import choose_modules
from mlx_dpo.models.parameters import fingerprint

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
CONTENDERS = [row for tables in TABLES.values() for rows in tables.values() for row in rows]


def test_the_folder_holds_the_weights_and_its_tokenizer_gives_the_ids_meant(tmp_path: Path) -> None:
    save(TINY, tmp_path)
    model, tokenizer = load(str(tmp_path))
    assert fingerprint(model) == fingerprint(make_model(TINY))
    for pair in map(closed, make_batches(TINY, 1)[0]):
        row = as_row(pair)
        for side in ("chosen", "rejected"):
            ids = tokenizer.encode(row["prompt"] + row[side], add_special_tokens=False)
            assert ids == row["prompt_ids"] + row[f"{side}_ids"]
            assert ids[-1] == EOS_ID


def test_our_contender_starts_at_log_2_and_learns(tmp_path: Path) -> None:
    save(TINY, tmp_path)
    rows = [as_row(closed(pair)) for pair in make_batches(TINY, 1)[0]]
    outcome = ours.run(Job(str(tmp_path), rows, rows, 2, 4, 384, 0.1, 1e-4))
    first, second = outcome.check_losses
    # The cached reference scored other batches: equal to rounding only, as many threads round.
    assert first == pytest.approx(math.log(2.0), abs=1e-4)
    assert second < first
    assert outcome.pairs == 4


def test_the_file_of_adapters_has_an_a_for_every_linear_layer_of_the_blocks(tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    save_adapters(TINY, 8, one)
    save_adapters(TINY, 8, two)
    assert one.read_bytes() == two.read_bytes()
    model = make_model(TINY)
    layers = {path: m for path, m in model.named_modules() if path in choose_modules(model)}
    arrays: Any = mx.load(str(one))
    assert arrays.keys() == {f"{path}.lora_a" for path in layers}
    for path, layer in layers.items():
        a = arrays[f"{path}.lora_a"]
        assert (a.shape, a.dtype) == ((layer.weight.shape[1], 8), mx.float32)


@pytest.mark.parametrize("mode", ["", "checkpointing"])
def test_our_contender_trains_the_adapters_it_is_given(tmp_path: Path, mode: str) -> None:
    save(TINY, tmp_path)
    save_adapters(TINY, 8, tmp_path / "adapters.safetensors")
    rows = [as_row(closed(pair)) for pair in make_batches(TINY, 1)[0]]
    job = Job(str(tmp_path), rows, rows, 3, 4, 384, 0.1, 1e-3, method="lora", mode=mode)
    job.adapters = str(tmp_path / "adapters.safetensors")
    first, second, third = ours.run(job).check_losses
    assert first == pytest.approx(math.log(2.0), abs=1e-4)
    assert third < second < first
    # Other A, other losses: what trains is what the file holds.
    arrays: Any = mx.load(job.adapters)
    mx.save_safetensors(job.adapters, {name: 2 * a for name, a in arrays.items()})
    assert abs(ours.run(job).check_losses[2] - third) > 1e-4


def test_a_rival_with_another_loss_is_told_apart() -> None:
    mine = Outcome(check_losses=[0.6931472, 0.51, 0.42])
    assert same_loss(Outcome(check_losses=[0.6931471, 0.51002, 0.42]), mine)
    assert not same_loss(Outcome(check_losses=[0.6931471, 0.515, 0.42]), mine)
    assert not same_loss(Outcome(check_losses=[0.6931472]), mine)
    assert not same_loss(Outcome(check_losses=[0.6931472, float("nan"), 0.42]), mine)


def test_contenders_are_the_files_of_their_folder_and_each_takes_a_job() -> None:
    """Read and not imported: what they train with is installed for a measurement only."""
    files = {path.stem: path for path in Path(ours.__file__).parent.glob("*.py")}
    assert {contender.name for contender in CONTENDERS} == files.keys() - {"__init__", "job"}
    assert INSTALLS.keys() == {contender.name for contender in CONTENDERS} - {"ours"}
    for tables in TABLES.values():
        assert all(rows[0].name == "ours" for rows in tables.values())
    assert TABLES.keys() == LEARNING_RATES.keys() == SECTIONS.keys()
    for contender in CONTENDERS:
        tree = ast.parse(files[contender.name].read_text("utf-8"))
        (run,) = (node for node in tree.body if getattr(node, "name", "") == "run")
        assert ast.unparse(run).startswith("def run(job: Job) -> Outcome:")


def test_a_section_is_replaced_and_the_rest_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    publish("one", "first", page)
    publish("two", "second", page)
    publish("one", table(["a", "b"], [["x", "1"]]), page)
    assert page.read_text("utf-8") == (
        "# Benchmarks\n\n<!-- begin one -->\n| a | b |\n| --- | ---: |\n| x | 1 |\n<!-- end one -->"
        "\n\n<!-- begin two -->\nsecond\n<!-- end two -->\n"
    )


def test_a_lost_mark_is_an_error() -> None:
    with pytest.raises(ValueError, match="once each and in this order"):
        with_section("<!-- begin one -->", "one", json.dumps(1))
