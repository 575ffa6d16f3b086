"""Short trainings in several processes, to be compared with the same in one.

A process of a group runs this file and prints what it came to; a test calls `trained` itself.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from mlx_dpo.models.adapters import attach_adapters
from mlx_dpo.models.parameters import fingerprint, named_arrays
from mlx_dpo.preferences.store import lengths
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.optimizers import StochasticRounding, make_optimizer
from mlx_dpo.training.paths import FastPath
from mlx_dpo.training.peers import Alone, Group
from mlx_dpo.training.trainer import DPOTrainer
from tests.training import architectures

Weights = dict[str, npt.NDArray[np.float32]]
STEPS = 16
# Of many lengths; the last batch of an epoch is smaller, and some ranks get no pair of it.
PAIRS = [
    PreferenceExample(
        prompt_ids=[40 + i, *range(1, 2 + i % 4)],
        chosen_ids=[*range(10, 11 + (3 * i) % 7), 2],
        rejected_ids=[*range(20, 21 + (5 * i) % 8), 2],
    )
    for i in range(10)
]
WAYS: dict[str, dict[str, Any]] = {
    "clipped": {"batch_size": 4, "grad_clip": 0.5},
    "accumulating": {"batch_size": 2, "grad_accumulation": 2, "grad_clip": 0.5},
    "fused": {"batch_size": 4, "fused_update": True},
    "lora": {"batch_size": 4, "grad_clip": 0.5, "lora": True},
    "bfloat16": {"batch_size": 4, "grad_clip": 0.5, "dtype": mx.bfloat16},
}


def trained(
    way: str, peers: Alone | None = None, steps: int = STEPS, **changes: Any
) -> tuple[DPOTrainer, list[float]]:
    """A trainer after some steps, and the losses of the steps and of an evaluation."""
    options = {**WAYS[way], **changes}
    dtype = options.pop("dtype", mx.float32)
    model = architectures.make("llama")
    model.set_dtype(dtype)
    if options.pop("lora", False):
        attach_adapters(model, rank=2)
    optimizer = make_optimizer("adamw", learning_rate=3e-3, weight_decay=0.0)
    trainer = DPOTrainer(
        model,
        reference=lambda batch: mx.zeros((2, len(batch))) - 20,
        examples=PAIRS,
        lengths=lengths(PAIRS),
        max_seq_len=64,
        pad_id=0,
        beta=0.1,
        max_steps=steps,
        max_lr=3e-3,
        path=FastPath(64, 0),
        optimizer=optimizer if dtype == mx.float32 else StochasticRounding(optimizer, seed=1),
        peers=peers,
        **options,
    )
    losses = [trainer.check_start()["loss"]]
    losses += [trainer.train_step()["loss"] for _ in range(steps)]
    return trainer, [*losses, trainer.evaluate(PAIRS)["loss"]]


def weights(trainer: DPOTrainer) -> Weights:
    """The trained weights, as float32."""
    arrays = named_arrays(trainer.model.trainable_parameters())
    return {name: np.array(array.astype(mx.float32)) for name, array in arrays.items()}


def distance(found: Weights, expected: Weights) -> float:
    """Of two sets of weights, relative to the second."""
    squares = sum(float(((found[n] - expected[n]) ** 2).sum()) for n in expected)
    return float((squares / sum(float((w**2).sum()) for w in expected.values())) ** 0.5)


def largest_distance(ranks: int, folder: Path, steps: int, ways: list[str]) -> dict[str, float]:
    """How far ranks end from one process, by way; all are to end alike.

    In bfloat16 as a share of three times the distance that other batch shapes make.
    """
    words = [sys.executable, "-m", "tests.training.ranked", str(folder), str(steps), *ways]
    found = []
    for process in start(ranks, words):
        out, err = process.communicate()
        assert process.returncode == 0, err
        found.append(json.loads(out))
    assert all(each == found[0] for each in found)
    distances = {}
    for way in ways:
        alone, losses = trained(way, steps=steps)
        mine = load_file(folder / f"0-{way}.safetensors")
        distances[way] = distance(mine, weights(alone))
        if way == "bfloat16":
            other, _ = trained(way, steps=steps, batch_size=2, grad_accumulation=2)
            distances[way] /= 3 * distance(weights(other), weights(alone))
        else:
            assert np.allclose(found[0][way]["losses"], losses, rtol=1e-5, atol=1e-6)
    return distances


def start(ranks: int, command: list[str]) -> list["subprocess.Popen[str]"]:
    """Start the processes of a group, as `mlx.launch` does."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(ranks)]
    hosts = [[f"127.0.0.1:{each.getsockname()[1]}"] for each in sockets]
    for each in sockets:
        each.close()
    file = Path(tempfile.mkstemp(suffix=".json")[1])
    file.write_text(json.dumps(hosts))
    return [
        subprocess.Popen(
            command,
            env={**os.environ, "MLX_RANK": str(rank), "MLX_HOSTFILE": str(file)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def main(folder: str, steps: str, ways: list[str]) -> None:
    """Train in some ways as a rank of a group."""
    peers = Group(mx.distributed.init(strict=True, backend="ring"))
    found = {}
    for way in ways:
        trainer, losses = trained(way, peers, steps=int(steps))
        found[way] = {"losses": losses, "fingerprint": fingerprint(trainer.model)}
        save_file(weights(trainer), Path(folder) / f"{peers.rank}-{way}.safetensors")
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        main(sys.argv[1], sys.argv[2], sys.argv[3:])
    else:  # as a row of `make torture`: so many ranks, in every way
        with tempfile.TemporaryDirectory() as place:
            far = largest_distance(int(sys.argv[1]), Path(place), STEPS, list(WAYS))
        print(far)
        sys.exit(far.pop("bfloat16") > 1 or max(far.values()) > 2e-6)
