"""The trainers that `benchmarks.rivals` compares, row by row."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Contender:
    """One row of a table.

    Attributes:
        title: As in the table.
        name: Module of `benchmarks.contenders`, and name of its environment.
        mode: Its variant.
        rounds: In how many rounds it runs.
    """

    title: str
    name: str
    mode: str = ""
    rounds: int = 1


FULL = (
    Contender("mlx-dpo", "ours", rounds=3),
    Contender("mlx-dpo, plain shuffle", "ours", "shuffled", rounds=3),
    Contender("unsloth-zoo", "unsloth", "eager", rounds=3),
    Contender("mlx-lm-lora", "mlx_lm_lora"),
    Contender("TRL, PyTorch on CPU", "trl"),
)
FULL_CHECKPOINTING = (
    Contender("mlx-dpo", "ours", "checkpointing", rounds=3),
    Contender("unsloth-zoo", "unsloth", "checkpointing", rounds=3),
)
LORA = (
    Contender("mlx-dpo", "ours", rounds=3),
    Contender("unsloth-zoo", "unsloth", "eager", rounds=3),
    Contender("mlx-lm-lora", "mlx_lm_lora", rounds=2),
    Contender("soup-cli", "soup", rounds=2),
    Contender("mlx-vlm", "mlx_vlm", rounds=2),
)
LORA_CHECKPOINTING = (
    Contender("mlx-dpo", "ours", "checkpointing", rounds=3),
    Contender("unsloth-zoo", "unsloth", "checkpointing", rounds=3),
    Contender("mlx-lm-lora", "mlx_lm_lora", "checkpointing", rounds=2),
    Contender("soup-cli", "soup", "checkpointing", rounds=2),
    Contender("mlx-vlm", "mlx_vlm", "checkpointing", rounds=2),
)
# Of each `Job.method` the tables by heading; the others are compared with the first row, ours.
TABLES: dict[str, dict[str, tuple[Contender, ...]]] = {
    "full": {
        "Other trainers": FULL,
        "Other trainers, gradient checkpointing": FULL_CHECKPOINTING,
    },
    "lora": {
        "Other trainers, LoRA": LORA,
        "Other trainers, LoRA and gradient checkpointing": LORA_CHECKPOINTING,
    },
}
