"""Ten families of models, the path each takes and what it gains: ``python -m benchmarks.families``.

Prints a table and writes it to docs/engine.md. A model of each family, of random weights and a few
layers, computes the gradient of the same pairs. Prompts are twice as long as responses.
"""

from collections.abc import Sequence
from statistics import median

import click
import mlx.core as mx
import numpy as np

from benchmarks.measure import now, seconds_unit
from benchmarks.report import PAGE, publish, table
from benchmarks.step import gradient
from benchmarks.workload import MAX_SEQ_LEN, PAIRS_PER_STEP, SEED, machine
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.paths import FastPath, PlainPath, ScoringPath
from mlx_dpo.training.self_check import choose_path
from tests.training import architectures

Batch = Sequence[PreferenceExample]
ENGINE_PAGE = PAGE.with_name("engine.md")
PROMPT, RESPONSE = (96, 160), (48, 80)  # lengths, uniform, ends included
VOCABULARY = 4096
SIZES = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 4}
_GATED_DELTA = {"linear_num_value_heads": 8, "linear_num_key_heads": 4}
_GATED_DELTA |= {"linear_key_head_dim": 48, "linear_value_head_dim": 48}
_MAMBA2 = {"mamba_n_heads": 12, "mamba_d_head": 64, "mamba_d_state": 32, "mamba_chunk_size": 256}
_SHARED_KEYS = {"num_kv_shared_layers": 2, "vocab_size_per_layer_input": VOCABULARY}
_SHARED_KEYS |= {"sliding_window": 64, "hidden_size_per_layer_input": 32}
# What each needs besides: its own names of sizes.
FAMILIES: dict[str, dict[str, int]] = {
    "llama": {},
    "qwen3": {},
    "olmo2": {},
    "gemma3_text": {"sliding_window": 64},
    "lfm2": {"block_dim": 384},
    "qwen3_5": _GATED_DELTA,
    "falcon_h1": {**_MAMBA2, "mamba_d_ssm": 768},
    "granitemoehybrid": {**_MAMBA2, "num_local_experts": 0},
    "gemma3n": _SHARED_KEYS,
    "gemma4_text": {**_SHARED_KEYS, "global_head_dim": 96},
}


def pairs(count: int) -> list[PreferenceExample]:
    """Random pairs, ragged; prompts are twice as long as responses in the mean."""
    rng = np.random.default_rng(SEED)

    def ids(bounds: tuple[int, int]) -> list[int]:
        drawn: list[int] = rng.integers(
            3, VOCABULARY, rng.integers(*bounds, endpoint=True)
        ).tolist()
        return drawn

    return [PreferenceExample(ids(PROMPT), ids(RESPONSE), ids(RESPONSE)) for _ in range(count)]


def measure(name: str, batches: Sequence[Batch]) -> list[str]:
    """A family's row of the table; paths take turns on the same batches."""
    model = architectures.make(name, vocab_size=VOCABULARY, **SIZES, **FAMILIES[name])
    choice = choose_path(model, batches[0], max_seq_len=MAX_SEQ_LEN, pad_id=0)
    joined = FastPath(MAX_SEQ_LEN, 0, share_prompts=False)
    paths: tuple[ScoringPath, ...] = (choice.path, joined, PlainPath(MAX_SEQ_LEN, 0))
    reference = mx.zeros((2, PAIRS_PER_STEP))
    seconds: list[list[float]] = [[] for _ in paths]
    for batch in [batches[0], *batches]:  # the first is slow, and left out below
        for path, spent in zip(paths, seconds, strict=True):
            start = now()
            mx.eval(gradient(model, path, batch, reference))
            spent.append(now() - start)
    own, *others = [np.array(spent[1:]) for spent in seconds]
    ratios = [f"{median(other / own):.2f}" for other in others]
    return [name, choice.path.name, *ratios, f"{median(own):.2f}"]


@click.command()
@click.option("--rounds", default=2, show_default=True, help="Batches each path takes.")
@click.option("--family", "families", multiple=True, type=click.Choice(list(FAMILIES)))
def main(rounds: int, families: tuple[str, ...]) -> None:
    """Measure what reading a prompt once gains on each family."""
    drawn = pairs(rounds * PAIRS_PER_STEP)
    batches = [drawn[i : i + PAIRS_PER_STEP] for i in range(0, len(drawn), PAIRS_PER_STEP)]
    rows = [measure(name, batches) for name in families or FAMILIES]
    header = ["family", "path", "joined ÷ it", "plain ÷ it", seconds_unit()]
    body = table(header, rows)
    print(body)
    if not families:
        about = (
            f"`python -m benchmarks.families`; {machine()}. Medians of {rounds} batches of "
            f"{PAIRS_PER_STEP} pairs, forward and backward, by turns."
        )
        publish("families", f"{body}\n\n{about}", ENGINE_PAGE)


if __name__ == "__main__":
    main()
