"""Make tests/convert/peft: adapters that PEFT saved, and the logits it computes with them.

    python -m tools.peft_adapters make           # needs torch, transformers and peft
    python -m tools.peft_adapters write FOLDER   # needs MLX: reads them all, and writes them anew
    python -m tools.peft_adapters check FOLDER   # needs peft: compares what was written

The first and the last may run in another environment than the second. The weights of the models
are not stored: they follow from the names of their tensors.
"""

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.convert.tiny import CASES, model_type, write_folder

FOLDER = Path(__file__).parent.parent / "tests" / "convert" / "peft"
IDS = (np.arange(24)[None] * 37 + 11) % 90
POSITIONS = slice(2, None, 3)  # of the logits that are stored

_SIZES = {"vocab_size": 96, "num_hidden_layers": 3}
BASES: dict[str, dict[str, Any]] = {
    "llama": {**CASES["llama"], **_SIZES},
    "llama:tied": {**CASES["llama"], **_SIZES, "tie_word_embeddings": True},
    "qwen2": {**CASES["qwen2:untied"], **_SIZES},
    "gpt2": {**CASES["gpt2"], "vocab_size": 96, "n_layer": 3},
}
_ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_LLAMA: dict[str, Any] = {"r": 2, "lora_alpha": 4, "target_modules": _ALL}
# Each kind: its model, and PEFT's settings.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {**_LLAMA, "lora_alpha": 5}),
    "two-modules": ("llama", {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}),
    "all-linear": ("llama", {**_LLAMA, "target_modules": "all-linear"}),
    "rslora": ("llama", {**_LLAMA, "lora_alpha": 5, "use_rslora": True}),
    "patterns": (
        "llama",
        {
            **_LLAMA,
            "rank_pattern": {"q_proj": 1, "model.layers.1.mlp.up_proj": 3},
            "alpha_pattern": {"v_proj": 16},
        },
    ),
    "some-layers": ("llama", {**_LLAMA, "layers_to_transform": [0, 2]}),
    "lm-head": ("llama", {**_LLAMA, "target_modules": ["q_proj", "lm_head"]}),
    "dora": ("llama", {**_LLAMA, "use_dora": True}),
    "biased": ("qwen2", _LLAMA),
    "dora-biased": ("qwen2", {**_LLAMA, "target_modules": ["q_proj", "v_proj"], "use_dora": True}),
    "embedding": ("llama", {**_LLAMA, "target_modules": ["q_proj", "embed_tokens"]}),
    "gpt2": (
        "gpt2",
        {**_LLAMA, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    ),
}


def write_base(name: str, folder: Path) -> Path:
    """Write the folder of a model that the adapters are for.

    Args:
        name: A key of `BASES`.
        folder: The new folder.
    """
    base = json.loads((FOLDER / "bases.json").read_text())[name]
    return write_folder(folder, base["config"], base["tensors"])


def stored_logits() -> dict[str, npt.NDArray[np.float32]]:
    """PEFT's logits of `IDS` at `POSITIONS`, float32 (8, 96), by kind."""
    stored = json.loads((FOLDER / "logits.json").read_text())
    return {kind: np.array(rows, np.float32) for kind, rows in stored.items()}


def peft_difference(kind: str, adapter: Path, base: Path) -> float:
    """Largest difference of the stored logits from those PEFT computes with an adapter's folder.

    PEFT must find every tensor that it expects, and no other.
    """
    from peft import PeftModel

    model = PeftModel.from_pretrained(_torch_base(base), adapter)
    saved = set(_safe_tensors(adapter))
    expected = {
        name.replace(".default", "") for name, _ in model.named_parameters() if ".lora_" in name
    }
    expected = {name.replace("magnitude_vector.weight", "magnitude_vector") for name in expected}
    if saved != expected:
        raise SystemExit(f"{kind}: PEFT expects other tensors: {sorted(saved ^ expected)[:4]}")
    return float(np.abs(_torch_logits(model) - stored_logits()[kind]).max())


def make() -> None:
    """Write the models' configs, the adapters and the logits."""
    FOLDER.mkdir(exist_ok=True)
    bases = {name: _describe(name, config) for name, config in BASES.items()}
    (FOLDER / "bases.json").write_text(_lines(bases))
    logits = {}
    with tempfile.TemporaryDirectory() as place:
        for kind, (base, settings) in KINDS.items():
            folder = write_base(base, Path(place) / base)
            plain = _torch_logits(_torch_base(folder))
            found = _make_adapter(kind, folder, settings)
            logits[kind] = np.round(found.astype(float), 6).tolist()
            print(f"{kind}: moves logits of {np.abs(plain).max():.3g} by "
                  f"{np.abs(found - plain).max():.2g}")  # fmt: skip
    (FOLDER / "logits.json").write_text(_lines(logits))


def write(out: Path) -> None:
    """Read each adapter, print how far MLX's logits are from PEFT's, and write it anew.

    Args:
        out: The folder below which they are written in PEFT's layout.
    """
    import mlx.core as mx

    from mlx_dpo.convert.adapters import read_adapter, write_peft
    from mlx_dpo.models.adapters import attach
    from mlx_dpo.models.folder import load_model

    for kind, (base, _) in KINDS.items():
        with tempfile.TemporaryDirectory() as place:
            model = load_model(write_base(base, Path(place)))
        (out / kind).mkdir(parents=True)
        adapter = read_adapter(FOLDER / kind, model)
        write_peft(out / kind, adapter, model, None)
        attach(model, adapter)
        logits = np.array(model(mx.array(IDS))[0])[POSITIONS]
        print(f"{kind}: {np.abs(logits - stored_logits()[kind]).max():.1e}")


def check(written: Path) -> None:
    """Print how far PEFT's logits with what was written are from those it had before."""
    with tempfile.TemporaryDirectory() as place:
        for kind, (base, _) in KINDS.items():
            folder = write_base(base, Path(place) / base)
            print(f"{kind}: {peft_difference(kind, written / kind, folder):.1e}")


def _describe(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Config and shapes of a model as transformers saves it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type(name), **json.loads(json.dumps(settings)))
    with tempfile.TemporaryDirectory() as place:
        AutoModelForCausalLM.from_config(config).save_pretrained(place)
        saved = json.loads((Path(place) / "config.json").read_text())
        shapes = {n: list(v.shape) for n, v in sorted(_safe_tensors(Path(place)).items())}
    return {"config": saved, "tensors": shapes}


def _make_adapter(kind: str, base: Path, settings: dict[str, Any]) -> npt.NDArray[np.float32]:
    """Save an adapter of random numbers, and return its logits."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(_torch_base(base), LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_embedding" in name:
                parameter.normal_(std=0.1)
            if "magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.rand(parameter.shape))
    model.save_pretrained(FOLDER / kind)
    (FOLDER / kind / "README.md").unlink()
    file = FOLDER / kind / "adapter_config.json"
    config = {**json.loads(file.read_text()), "base_model_name_or_path": base.name}
    # PEFT writes a set, in another order every time.
    config["target_modules"] = sorted(config["target_modules"])
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return _torch_logits(model)


def _torch_base(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


def _torch_logits(model: Any) -> npt.NDArray[np.float32]:
    import torch

    with torch.no_grad():
        logits: Any = model.eval()(torch.from_numpy(IDS)).logits
    rows: npt.NDArray[np.float32] = logits[0].numpy()[POSITIONS]
    return rows


def _safe_tensors(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return {name: v for file in folder.glob("*.safetensors") for name, v in load_file(file).items()}


def _lines(entries: Mapping[str, Any]) -> str:
    return (
        "{\n"
        + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in entries.items())
        + "\n}\n"
    )


def main(arguments: list[str]) -> None:
    """See the top of this file."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    match arguments:
        case ["make"]:
            make()
        case ["write", folder]:
            write(Path(folder))
        case ["check", folder]:
            check(Path(folder))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
