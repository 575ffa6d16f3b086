"""Peak memory of training adapters, measured and predicted: `python -m benchmarks.adapters`.

LoRA and QLoRA beside full fine-tuning, on the shapes of small models and at the true size of two
large ones. A quantised layer's product is the one that a GPU runs on packed weights. On a CPU it
would take hours, so there it is replaced by one that makes the same arrays and does no arithmetic:
what is computed then means nothing, what is held is the same. Weights are zeros.

Each cell is a process of its own that first predicts, as `mlx_dpo plan` does, and then measures two
steps (one of a large model) and the self-check of a run. Results are kept as they come in
``runs/adapters.jsonl``; a cell that is there is not measured again. `--plan` predicts without
measuring, for large models.
"""

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from benchmarks.measure import now, one_thread_environment, seconds_unit
from benchmarks.memory import LENGTHS, MEMORY_PAGE
from benchmarks.report import PAGE, publish, table
from benchmarks.workload import machine
from mlx_dpo.memory.predict import SELF_CHECK, STEP, Predictor
from mlx_dpo.memory.settings import UNPACKED, WEIGHTS, Prediction, Settings, Workload, total
from mlx_dpo.memory.shapes import shell
from mlx_dpo.memory.trace import optimizer_of
from mlx_dpo.models.adapters import attach_adapters
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.paths import FastPath
from mlx_dpo.training.self_check import choose_path
from mlx_dpo.training.trainer import DPOTrainer

RESULTS = PAGE.parent.parent / "runs" / "adapters.jsonl"
RANK, GROUP_SIZE, MAX_LENGTH = 8, 64, 2048
# Kind, hidden, layers, heads, heads of keys and values, size of one, MLP, vocabulary, tied.
SHAPES = {
    "A": ("llama", 512, 8, 8, 8, 64, 1408, 8192, True),
    "B": ("llama", 576, 12, 9, 3, 64, 1536, 49152, True),
    "135M": ("llama", 576, 30, 9, 3, 64, 1536, 49152, True),
    "SmolLM2 1.7B": ("llama", 2048, 24, 32, 32, 64, 8192, 49152, True),
    "Llama 3.2 3B": ("llama", 3072, 28, 24, 8, 128, 8192, 128256, True),
    "Qwen3 4B": ("qwen3", 2560, 36, 32, 8, 128, 9728, 151936, True),
    "Llama 3.1 8B": ("llama", 4096, 32, 32, 8, 128, 14336, 128256, False),
    "Qwen3 14B": ("qwen3", 5120, 40, 40, 8, 128, 17408, 151936, False),
}
PAIR = (512, 256, 256)  # prompt, chosen, rejected of the large models' one pair


@dataclass(frozen=True)
class Cell:
    """What is measured.

    Attributes:
        model: Of `SHAPES`.
        modules: As ``--lora-modules``; "" for full fine-tuning.
        bits: Of a quantised base; 0 for one that is not.
        checkpoint: Whether layers compute again for the gradient.
        dtype: Of the base.
        large: Whether a step is one pair of `PAIR`, and not four of about 110 tokens.
    """

    model: str
    modules: str = "all"
    bits: int = 0
    checkpoint: bool = False
    dtype: str = "float32"
    large: bool = False

    @property
    def settings(self) -> Settings:
        """The settings of its run."""
        return Settings(
            batch_size=1 if self.large else 4,
            checkpoint_layers=self.checkpoint,
            dtype=self.dtype,
            grad_clip=0.0,
            method="lora" if self.modules else "full",
            lora_rank=RANK,
            lora_modules=self.modules,
        )

    @property
    def title(self) -> str:
        """As it is shown."""
        method = "full" if not self.modules else "QLoRA" if self.bits else "LoRA"
        words = [f"{self.model}, {self.dtype}, {method}"]
        words += [f"{self.bits} bits"] if self.bits else []
        words += [self.modules] if self.modules not in ("", "all") else []
        return ", ".join([*words, *(["checkpointing"] if self.checkpoint else [])])


def cells() -> Iterator[Cell]:
    """What is measured, in the order of the table."""
    for name in ("135M", "A", "B"):
        yield Cell(name, modules="")
        yield Cell(name)
        yield Cell(name, modules="q_proj,v_proj")
        yield Cell(name, checkpoint=True)
        yield Cell(name, bits=4)
        yield Cell(name, bits=4, checkpoint=True)
    for name in ("Qwen3 4B", "Llama 3.1 8B"):
        yield Cell(name, bits=4, checkpoint=True, dtype="bfloat16", large=True)


def main() -> None:
    """Measure each cell that was not measured yet, and publish; or measure one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="cells of one model")
    parser.add_argument("--plan", action="store_true", help="predict large models, in docs/memory")
    parser.add_argument("--publish", action="store_true", help="write what is measured to docs")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell is not None:
        print(json.dumps(measure(Cell(**json.loads(options.cell)))))
        return
    if options.plan:
        publish("large models", plan_table(), MEMORY_PAGE)
        return
    results = _results()
    for cell in cells():
        key = json.dumps(asdict(cell), sort_keys=True)
        if key not in results and not options.publish and options.only in (None, cell.model):
            results[key] = _in_process(key)
            print(cell.title, results[key], file=sys.stderr, flush=True)
    if options.publish:
        body = f"{machine()}, 1 BLAS thread.\n\n{measured_table(results)}"
        publish("adapters", body, MEMORY_PAGE)


def measure(cell: Cell) -> dict[str, float]:
    """Predicted and measured peaks of a step and of a self-check, and seconds of the step."""
    predictor, settings = predictor_of(cell), cell.settings
    moments = {
        name: total(parts) - parts.get(UNPACKED, 0) for name, parts in predictor.moments(settings)
    }
    examples, model = predictor.workload.examples, make_shell(cell)
    if cell.modules:
        attach_adapters(model, rank=RANK, modules=cell.modules)
    mx.eval(model.parameters())
    found: dict[str, float] = {"predicted check": moments[SELF_CHECK]}
    found["predicted step"] = moments[STEP]
    with without_arithmetic():
        trainer = make_trainer(cell, model, examples)
        mx.eval(trainer.optimizer.state)
        found["held"] = mx.get_active_memory()
        mx.reset_peak_memory()
        for _ in range(1 if cell.large else 2):
            begin = now()
            trainer.train_step()
        found |= {"seconds": now() - begin, "step": mx.get_peak_memory()}
        print(found, file=sys.stderr, flush=True)
        del trainer
        gc.collect()
        mx.reset_peak_memory()
        choose_path(model, examples, max_seq_len=MAX_LENGTH, pad_id=0, checkpoint=cell.checkpoint)
        found["check"] = mx.get_peak_memory()
    return found


def make_trainer(cell: Cell, model: nn.Module, examples: Sequence[PreferenceExample]) -> DPOTrainer:
    """The trainer of a cell."""
    return DPOTrainer(
        model,
        ref_model=None,
        reference=lambda batch: mx.full((2, len(batch)), -300.0),
        examples=examples,
        max_seq_len=MAX_LENGTH,
        pad_id=0,
        beta=0.1,
        batch_size=cell.settings.batch_size,
        max_steps=2,
        max_lr=1e-6,
        path=FastPath(MAX_LENGTH, 0, checkpoint=cell.checkpoint),
        optimizer=optimizer_of(cell.settings),
        fused_update=True,
    )


def predictor_of(cell: Cell) -> Predictor:
    """Predicts for a cell's model and pairs."""
    vocabulary = int(SHAPES[cell.model][7])
    rng = np.random.default_rng(0)
    lengths = [PAIR] if cell.large else LENGTHS["middling"]
    pairs = [
        PreferenceExample(*(rng.integers(3, vocabulary, n).tolist() for n in each))
        for each in lengths
    ]
    return Predictor(Workload(lambda _: make_shell(cell), pairs, MAX_LENGTH, pad_id=0))


def make_shell(cell: Cell) -> nn.Module:
    """The cell's model from its config alone; its zeros may be evaluated."""
    kind, hidden, layers, heads, kv_heads, head, mlp, vocabulary, tied = SHAPES[cell.model]
    config: dict[str, Any] = {
        "model_type": kind,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head,
        "intermediate_size": mlp,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 40960,
    }
    if cell.bits:
        config["quantization"] = {"bits": cell.bits, "group_size": GROUP_SIZE}
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        return shell(Path(folder), getattr(mx, cell.dtype))


@contextmanager
def without_arithmetic() -> Iterator[None]:
    """On a CPU: packed products that make the arrays they would make, and multiply nothing."""
    original = mx.quantized_matmul
    if mx.default_device() == mx.cpu:
        mx.quantized_matmul = _same_arrays  # type: ignore[assignment]
    try:
        yield
    finally:
        mx.quantized_matmul = original


def _same_arrays(
    x: mx.array, w: mx.array, scales: mx.array, biases: mx.array, *, bits: int, **_: Any
) -> mx.array:
    outputs, inputs = w.shape[0], w.shape[1] * 32 // bits
    casts = [each.astype(x.dtype) for each in (scales, biases) if each.dtype != x.dtype]

    def filled(like: mx.array, width: int) -> mx.array:
        made = like[..., :1] * mx.full((width,), 1e-3, like.dtype)
        return mx.depends([made], casts)[0] if casts else made

    def back(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
        return filled(cotangent, inputs)

    product: Any = mx.custom_function(lambda x: filled(x, outputs))
    product.vjp(back)
    result: mx.array = product(x)
    return result


def _in_process(key: str) -> dict[str, float]:
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.adapters", "--cell", key],
        cwd=PAGE.parent.parent,
        env=one_thread_environment(),
        check=True,
        stdout=subprocess.PIPE,
    )
    measured: dict[str, float] = json.loads(ran.stdout)
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"cell": key, **measured}) + "\n")
    return measured


def _results() -> dict[str, dict[str, Any]]:
    if not RESULTS.exists():
        return {}
    rows = map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines())
    return {row.pop("cell"): row for row in rows}


def measured_table(results: dict[str, dict[str, Any]]) -> str:
    """Self-check and step of each cell, in MiB; one that was not measured yet has no figures."""
    rows = []
    for cell in cells():
        figures = results.get(json.dumps(asdict(cell), sort_keys=True), {})
        row = [cell.title, f"{figures['held'] / 2**20:.0f}" if figures else ""]
        for name in ("check", "step"):
            pair = [figures.get(name, 0), figures.get(f"predicted {name}", 0)]
            row += [f"{n / 2**20:.0f}" if n else "" for n in pair]
            row.append(f"{pair[0] / pair[1]:.3f}" if all(pair) else "")
        rows.append([*row, f"{figures['seconds']:.1f}" if figures else ""])
    head = ["", "held MiB", "self-check", "predicted", "ratio", "a step", "predicted", "ratio"]
    return table([*head, seconds_unit()], rows)


def plan_table() -> str:
    """Predicted peaks of quantised large models, with layer checkpointing and without."""
    rows = []
    for name in list(SHAPES)[3:]:
        cell = Cell(name, bits=4, checkpoint=True, dtype="bfloat16", large=True)
        found = [predictor_of(c)(c.settings) for c in (cell, replace(cell, checkpoint=False))]
        rows.append([name, *(f"{_gib(each.on_gpu)}" for each in found), *_shares(found[0])])
        print(rows[-1], file=sys.stderr, flush=True)
    head = ["4 bits, bfloat16", "checkpointing, GiB", "without", "weights", "adapters and AdamW"]
    return table(head, rows)


def _shares(found: Prediction) -> list[str]:
    trained = 3 * 4 * found.num_trained
    return [_gib(found.parts[WEIGHTS]), _gib(trained)]


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f}"


if __name__ == "__main__":
    main()
