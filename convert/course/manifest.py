"""The manifest of a course artifact."""

from typing import Any

MANIFEST_KEYS = (
    *("name", "module", "source", "tokenizer_artifact", "vocab_size", "model_config"),
    *("training_config", "seed", "git_commit", "created_at", "steps_completed"),
    *("final_train_loss", "final_val_loss", "notes"),
)
HF_MANIFEST_KEYS = (
    *("name", "display_name", "kind", "role", "module", "source", "base_artifact"),
    *("tokenizer_artifact", "steps_completed", "final_train_loss", "final_val_loss", "notes"),
)
HF_ROLE = "BaseLM-finetuned"


def dpo_manifest(manifest: dict[str, Any], run: dict[str, Any] | None) -> dict[str, Any]:
    """The manifest of the DPO model, with its keys in the course's order.

    The course finds a DPO model by its name alone: ``<tier>-DPO``.

    Args:
        manifest: Of the SFT model.
        run: What ``dpo.json`` says of the run; None where nothing was trained, and then only the
            name changes.
    """
    changed = dict(manifest)
    for key in ("name", "display_name"):
        if isinstance(changed.get(key), str):
            changed[key] = dpo_name(changed[key])
    keys: tuple[str, ...] = MANIFEST_KEYS
    if "kind" in manifest:
        keys = HF_MANIFEST_KEYS
        changed["role"] = HF_ROLE
    if run is not None:
        changed |= _of_run(manifest, run, keys)
    ordered = [key for key in keys if key in changed]
    return {key: changed[key] for key in [*ordered, *(k for k in changed if k not in keys)]}


def dpo_name(name: str) -> str:
    """``StoryLM-1M-SFT`` becomes ``StoryLM-1M-DPO``; any other name stays."""
    return f"{name.removesuffix('-SFT')}-DPO" if name.endswith("-SFT") else name


def _of_run(manifest: dict[str, Any], run: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    settings = _as_dict(run.get("settings"))
    found = {
        "source": f"DPO from {manifest.get('name')} with mlx-dpo",
        "training_config": settings,
        "seed": settings.get("seed"),
        "git_commit": None,
        "steps_completed": run.get("steps"),
        # The losses of the SFT run would be read as those of this one.
        "final_train_loss": None,
        "final_val_loss": _as_dict(run.get("held_out")).get("loss"),
    }
    return {key: value for key, value in found.items() if key in keys}


def _as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
