"""The settings of a run: one frozen dataclass; options, their help and TOML are made from it."""

import datetime
import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from operator import ge, gt, lt
from pathlib import Path
from typing import Any, get_args, get_type_hints

from mlx_dpo.errors import UsageError
from mlx_dpo.paths import flaw_of_name
from mlx_dpo.preferences.chat import is_date
from mlx_dpo.runs.config_file import read_file
from mlx_dpo.runs.sources import data_files, held_out_file, kept_names
from mlx_dpo.runs.tracker_process import trackers_of

# As in `training.optimizers`, which imports MLX: too slow for the command line's help.
OPTIMIZERS = ("adamw", "lion", "adafactor")
DTYPES = ("float32", "bfloat16", "float16")
METHODS = ("full", "lora")
EMBEDDED_CONFIG = Path("checkpoints/tiny-sft/train.toml")
EMBEDDED_DATA = Path("data/dpo/preferences.json")
OF_LORA = ("lora_rank", "lora_scale", "lora_layers", "lora_modules", "adapter_reference")
REFERENCES = ("cached", "copy", "adapters-off")
KEEPS = (LAST, BEST) = ("last", "best")
MEASURES = ("loss", "accuracy")
_LIMITS: dict[str, Any] = {"above": gt, "at_least": ge, "below": lt}


def _option(default: Any, help_text: str, **rules: Any) -> Any:
    return field(default=default, metadata={"help": help_text, **rules})


@dataclass(frozen=True)
class RunConfig:
    """Settings of a DPO run. Each field is a command-line option and a TOML key of its name.

    Those whose default depends on the model or on other settings are None until `runs.defaults`
    has decided them.
    """

    model: str | None = _option(
        None, "Model to start from: a folder (Hugging Face or MLX layout) or a hub id owner/name."
    )
    data: str | None = _option(
        None,
        "Preference pairs: .json or .jsonl; a folder with train.jsonl and perhaps valid.jsonl, "
        "which is held out; or a data set of the hub with these.",
    )
    eval_data: str | None = _option(
        None, "Held-out pairs in a file of their own, instead of a share of --data."
    )
    drop_bad: bool = _option(
        False, "Skip and count rows with errors, instead of refusing the file."
    )
    eval_fraction: float = _option(
        0.2, "Share of the pairs of each kind to hold out; 0 holds out none.", at_least=0, below=1
    )
    out: str | None = _option(
        None,
        "Folder of the finished model or adapter. Default: checkpoints/<model>-dpo, numbered where "
        "that is taken.",
    )
    overwrite: bool = _option(False, "Replace --out if an earlier run made it.")
    run_dir: str | None = _option(
        None, "The run's own folder: checkpoints, metrics. Default: runs/<model>-<n>."
    )
    beta: float = _option(
        0.1,
        "Pull towards the reference; a larger beta stays closer.",
        above=0,
    )
    learning_rate: float = _option(
        None,
        "Learning rate after warm-up. Default: by the size of the model and the number of steps, "
        "from 1e-5 (small, 100 steps or fewer) to 5e-7; with LoRA ten times that.",
        above=0,
    )
    min_learning_rate: float = _option(0.0, "Learning rate at the end of the cosine.", at_least=0)
    warmup_steps: int = _option(
        None, "Steps of linear warm-up. Default: a tenth of all steps, 10 at most.", at_least=0
    )
    weight_decay: float = _option(0.0, "Decoupled weight decay.", at_least=0)
    grad_clip: float = _option(
        1.0,
        "Largest global gradient norm; 0 never clips, and frees gradients as they are used.",
        at_least=0,
    )
    optimizer: str = _option(
        "adamw",
        "AdamW; Lion, with half its state; or Adafactor, with almost none.",
        choices=OPTIMIZERS,
    )
    dtype: str = _option(
        None,
        "Number type of weights, gradients and optimizer state. bfloat16 halves them; updates then "
        "use stochastic rounding, because rounding to the nearest would lose the small ones. "
        "Adapters are always float32. Default: float32; of a quantised model its own.",
        choices=DTYPES,
    )
    checkpoint_layers: bool = _option(
        False, "Compute layers again for the gradient: much less memory, up to a third more time."
    )
    batch_size: int = _option(4, "Pairs per forward and backward pass.", at_least=1)
    grad_accumulation: int = _option(1, "Batches per optimizer step.", at_least=1)
    epochs: int = _option(
        None,
        "Times each pair is seen. Default: 1; with few pairs as many as it takes for about 50 "
        "steps, 25 at most.",
        at_least=1,
    )
    steps: int | None = _option(None, "Optimizer steps, instead of --epochs.", at_least=1)
    max_length: int = _option(512, "Longest prompt + response in tokens.", at_least=2)
    seed: int = _option(0, "Random seed; decides the order of the pairs.", at_least=0)
    date: str | None = _option(
        None,
        "Today's date for chat templates that ask for it, YYYY-MM-DD. Default: the day the run "
        "began, after --resume too.",
        is_date=True,
    )
    eval_every: int = _option(
        None,
        "Steps between evaluations on the held-out pairs. Default: 100; with --keep best or "
        "--patience a tenth of all steps, where that is less.",
        at_least=1,
    )
    keep: str = _option(
        "last",
        "Which weights become the finished model: those of the last step, or of the "
        "evaluation with the best result (best). The others stay in --run-dir.",
        choices=KEEPS,
    )
    best_by: str = _option(
        None,
        "What --keep best and --patience look at: the loss or the accuracy on the held-out pairs. "
        "Default: loss.",
        choices=MEASURES,
    )
    patience: int | None = _option(
        None, "Stop after so many evaluations in a row without a better result.", at_least=1
    )
    save_every: int = _option(
        100, "Steps between saved states, from which --resume goes on.", at_least=1
    )
    sample_every: int = _option(
        0,
        "Steps between answers to a few held-out prompts, kept in samples.jsonl of the run; 0 "
        "never.",
        at_least=0,
    )
    log_every: int = _option(10, "Steps between lines when not on a terminal.", at_least=1)
    report_to: str = _option(
        "none",
        "Trackers that get the figures too: trackio and tensorboard, which keep them on this "
        "machine, and wandb, which sends them to its cloud. Several with commas between.",
        is_list=True,
        is_trackers=True,
    )
    skip_nonfinite: int = _option(
        0,
        "How many steps in a row may be skipped because a loss or gradient is not finite; each "
        "is reported. 0 stops at the first.",
        at_least=0,
    )
    allow_sleep: bool = _option(False, "Let a Mac go to sleep while training.")
    reference: str = _option(
        "cached",
        "Reference log-probs: computed before the first update and kept (cached); or at every step "
        "by a second, frozen model (copy), with LoRA by the same weights without the adapter "
        "(adapters-off).",
        choices=REFERENCES,
    )
    method: str = _option(
        None,
        "Train all weights (full), or small matrices beside them (lora). Default: full; lora for a "
        "quantised model.",
        choices=METHODS,
    )
    lora_rank: int = _option(
        None, "Rank of the adapters. Default: 16, or that of --adapter.", at_least=1
    )
    lora_scale: float = _option(
        None, "Factor of the adapters' product, PEFT's alpha / r. Default: 2.", above=0
    )
    lora_layers: int | None = _option(
        None, "How many of the last blocks to adapt. Default: all.", at_least=1
    )
    lora_modules: str = _option(
        None,
        "Which linear layers of the blocks to adapt: all, attention, or names such as "
        "q_proj,v_proj. Default: all, without routers of experts.",
        is_list=True,
    )
    adapter: str | None = _option(
        None,
        "Start from this adapter, of mlx-lm or PEFT. The reference is the model with it, the "
        "policy at step 0.",
    )
    adapter_reference: str = _option(
        None,
        "With --adapter: the reference is the model with the adapter (start), or without (base). "
        "Default: start.",
        choices=("start", "base"),
    )
    adapter_format: str = _option(
        None,
        "Files of the trained adapter: mlx-lm's, PEFT's, or both. Default: mlx.",
        choices=("mlx", "peft", "both"),
    )
    memory_budget: str | None = _option(
        None,
        "The most memory that MLX may use, such as 4GB: settings that were not given are changed "
        "until the run fits (mlx_dpo plan shows which). Default on Apple silicon: three quarters "
        "of what the system recommends for the GPU.",
        is_size=True,
    )
    plain: bool = _option(
        False, "Compute log-probs by the plain definition: the slowest way, to compare others with."
    )

    @property
    def selects(self) -> bool:
        """Whether the held-out pairs decide which step is kept, or when to stop."""
        return self.keep == BEST or self.patience is not None

    @property
    def files(self) -> tuple[str, str | None]:
        """The file of ``--data``, and that of the held-out pairs where they have their own."""
        held_out = self.eval_data and held_out_file(self.eval_data)
        return data_files(str(self.data))[0], held_out

    def to_toml(self) -> str:
        """The settings as TOML, for `read_settings`; those that are unset are left out."""
        settings = {key: value for key, value in asdict(self).items() if value is not None}
        if self.steps is not None:
            settings.pop("epochs", None)
        # JSON's spelling of text, numbers and booleans is TOML's as well.
        # But for the character DEL, which TOML wants escaped.
        texts = {key: json.dumps(v, ensure_ascii=False) for key, v in settings.items()}
        lines = [f"{key} = {text}".replace("\x7f", "\\u007f") for key, text in texts.items()]
        return "\n".join(lines) + "\n"


# Where things go and how often to report: a resumed run may change these. Model, data and
# adapter are compared by their digests; the date is in that of the data, as far as it is written.
NOT_IN_IDENTITY = frozenset(
    {"out", "overwrite", "run_dir", "model", "data", "memory_budget", "date"}
    | {"adapter", "adapter_format"}
    | {"eval_every", "save_every", "sample_every", "log_every", "report_to", "allow_sleep"}
    | {"keep", "best_by", "patience"}
)
# Their defaults depend on the number of training pairs.
OF_PAIRS = ("epochs", "warmup_steps", "eval_every")
# Of a run whose held-out pairs select a step, these decide which one: they belong to its identity.
OF_SELECTION = ("keep", "best_by", "patience", "eval_every")


def resolve(toml: Path | None, options: dict[str, Any]) -> RunConfig:
    """Settings from options over a TOML file over the defaults.

    Args:
        toml: A config file. None takes the embedded default where neither it nor a model is named.
        options: Settings by field name; only those that were given.

    Raises:
        UsageError: If a key is unknown, a value is out of range, or no model is known.
    """
    is_implied = toml is None
    toml = toml or _embedded(options)
    settings = read_settings(toml) if toml else {}
    if is_implied and options.get("data") is not None:
        for name in ("epochs", "warmup_steps"):  # chosen for the demo's pairs; others may be few
            settings.pop(name, None)
    _check_not_both(options, "--epochs and --steps")
    if "steps" in options:
        settings.pop("epochs", None)
    if "epochs" in options:
        settings.pop("steps", None)
    for key, value in options.items():
        settings[key] = _check_value(f"--{key.replace('_', '-')}", key, value)
    if settings.get("data") is None and EMBEDDED_DATA.is_file():
        settings["data"] = str(EMBEDDED_DATA)
    for key in ("model", "data"):
        if settings.get(key) is None:
            raise UsageError(f"no {key} given: pass --{key}, or name it in the config file")
    settings["data"], held_out = kept_names(settings["data"])
    if held_out is not None:
        settings.setdefault("eval_data", held_out)
    return RunConfig(**settings)


def _embedded(options: dict[str, Any]) -> Path | None:
    """The embedded default, where no model is named."""
    if options.get("model") is not None:
        return None
    if not EMBEDDED_CONFIG.is_file():
        raise UsageError(
            "no model given: pass --model and --data (only a clone of the repository holds a "
            "model to try)"
        )
    return EMBEDDED_CONFIG


def given_names(toml: Path | None, options: dict[str, Any]) -> set[str]:
    """Settings that were given by hand, in a config file or as options."""
    return set(options) | (set(read_settings(toml)) if toml else set())


def read_settings(path: Path) -> dict[str, Any]:
    """Settings of a TOML or YAML file, with every key known and every value of its type.

    Keys may have hyphens, and the names of other trainers; see `runs.habits`.

    Raises:
        UsageError: If the file is missing or broken, or a key or value is not as it must be.
    """
    known = [f.name for f in fields(RunConfig)]
    content, _ = read_file(path, known)
    settings: dict[str, Any] = {}
    for key, value in content.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(known)}"
            raise UsageError(f"{path}: unknown key {key!r}{hint}")
        if isinstance(value, datetime.date):  # TOML and YAML have dates of their own
            value = value.isoformat()
        if isinstance(value, list) and "is_list" in _rules(key):
            value = ",".join(map(str, value))
        settings[key] = _check_value(f"{path}: {key}", key, value)
    _check_not_both(settings, f"{path}: epochs and steps")
    return settings


def _check_not_both(settings: dict[str, Any], names: str) -> None:
    if settings.get("epochs") is not None and settings.get("steps") is not None:
        raise UsageError(f"{names} both say how long to train; give one")


def _rules(key: str) -> Mapping[str, Any]:
    return next(f for f in fields(RunConfig) if f.name == key).metadata


def _check_value(name: str, key: str, value: Any) -> Any:
    expected = option_type(key)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not expected:
        raise UsageError(
            f"{name}: expected {expected.__name__}, found {type(value).__name__} {value!r}"
        )
    if isinstance(value, int | float) and not abs(value) < 2**63:
        raise UsageError(f"{name}: must be a finite number below 2^63, found {value}")
    rules = _rules(key)
    for rule, holds in _LIMITS.items():
        if rule in rules and not holds(value, rules[rule]):
            raise UsageError(
                f"{name}: must be {rule.replace('_', ' ')} {rules[rule]}, found {value}"
            )
    if "choices" in rules and value not in rules["choices"]:
        raise UsageError(f"{name}: must be {' or '.join(rules['choices'])}, found {value!r}")
    for rule, (has_form, form) in _FORMS.items():
        if rule in rules and not has_form(value):
            raise UsageError(f"{name}: expected {form}, found {value!r}")
    if isinstance(value, str) and "choices" not in rules and (flaw := flaw_of_name(value)):
        raise UsageError(f"{name}: {flaw}")
    return value


def parse_size(text: str) -> int | None:
    """Bytes of ``8GB``, ``5.3 GiB`` or ``900MB``, in powers of 1024; None if it is no size."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([KMGT])i?B", text.strip(), re.IGNORECASE)
    if match is None:
        return None
    return round(float(match[1]) * 1024 ** ("KMGT".index(match[2].upper()) + 1)) or None


_FORMS: dict[str, Any] = {
    "is_size": (parse_size, "a size such as 8GB or 900MB"),
    "is_date": (is_date, "a date such as 2026-01-31"),
    "is_trackers": (
        lambda text: trackers_of(text) is not None,
        "trackio, wandb or tensorboard, with commas between, or none",
    ),
}


def option_type(key: str) -> type:
    """The plain type of a setting: str, int, float or bool."""
    hint = get_type_hints(RunConfig)[key]
    plain: type = next((t for t in get_args(hint) if t is not type(None)), hint)
    return plain
