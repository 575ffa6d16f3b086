"""Artifacts of the course on disk: their files, found without leaving the folder, and manifests."""

import json
import re
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UsageError
from mlx_dpo.models.config import read_json

MODEL, CONFIG, MANIFEST = "model.pt", "config.json", "manifest.json"

_HF_KIND = "huggingface_causal_lm"
_HF_ROLE = "BaseLM-finetuned"
_ARTIFACT_NAME = re.compile(r"\w[\w.+-]*")
_MANIFEST_KEYS = (
    *("name", "module", "source", "tokenizer_artifact", "vocab_size", "model_config"),
    *("training_config", "seed", "git_commit", "created_at", "steps_completed"),
    *("final_train_loss", "final_val_loss", "notes"),
)
_HF_MANIFEST_KEYS = (
    *("name", "display_name", "kind", "role", "module", "source", "base_artifact"),
    *("tokenizer_artifact", "steps_completed", "final_train_loss", "final_val_loss", "notes"),
)


def missing_files(folder: Path) -> list[str]:
    """Names of the files of a TransformerLM artifact that a folder does not hold."""
    return [name for name in (MODEL, CONFIG, MANIFEST) if not (folder / name).is_file()]


def is_hf_artifact(folder: Path) -> bool:
    """Whether a folder holds a Hugging Face model as the course keeps it (BaseLM)."""
    if not all((folder / name).is_file() for name in (CONFIG, MANIFEST)):
        return False
    try:
        return read_json(folder / CONFIG).get("kind") == _HF_KIND
    except UsageError:
        return False


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object as the course does: indented by two, keys as they come."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def tokenizer_file(folder: Path, manifest: dict[str, Any]) -> Path:
    """The tokenizer an artifact was trained with: ``artifacts/tokenizers/<name>/tokenizer.json``.

    Args:
        folder: ``artifacts/models/<model>``.
        manifest: Names the tokenizer as ``tokenizer_artifact``.

    Raises:
        UsageError: If it is not named, missing, or lies outside ``artifacts``.
    """
    name = manifest.get("tokenizer_artifact")
    if not isinstance(name, str) or not _ARTIFACT_NAME.fullmatch(name):
        raise UsageError(
            f"{folder / MANIFEST}: tokenizer_artifact: expected the name of a folder, found "
            f"{name!r:.80}"
        )
    artifacts = folder.resolve().parent.parent
    path = artifacts / "tokenizers" / name / "tokenizer.json"
    if not path.resolve().is_relative_to(artifacts):
        raise UsageError(f"{path}: leads out of {artifacts}")
    if not path.is_file():
        raise UsageError(
            f"{path}: the tokenizer of {folder.name} is missing; keep the folders 'models' and "
            "'tokenizers' of the course's artifacts side by side"
        )
    return path


def hf_folders(folder: Path) -> tuple[Path, Path]:
    """The two Hugging Face folders inside a BaseLM artifact: of the model, of the tokenizer.

    Raises:
        UsageError: If one is missing or lies outside the artifact.
    """
    config = read_json(folder / CONFIG)
    return (
        _hf_folder(folder, config.get("model_path"), "hf_model"),
        _hf_folder(folder, config.get("tokenizer_path"), "hf_tokenizer"),
    )


def dpo_manifest(manifest: dict[str, Any], run: dict[str, Any] | None) -> dict[str, Any]:
    """The manifest of the DPO model, with its keys in the course's order.

    The course finds a DPO model by its name alone: ``StoryLM-1M-SFT`` becomes ``StoryLM-1M-DPO``.

    Args:
        manifest: Of the SFT model.
        run: The run's ``dpo.json``; None where nothing was trained, and then only the name
            changes.
    """
    changed = dict(manifest)
    for key in ("name", "display_name"):
        name = changed.get(key)
        if isinstance(name, str) and name.endswith("-SFT"):
            changed[key] = f"{name.removesuffix('-SFT')}-DPO"
    keys: tuple[str, ...] = _MANIFEST_KEYS
    if "kind" in manifest:
        keys = _HF_MANIFEST_KEYS
        changed["role"] = _HF_ROLE
    if run is not None:
        changed |= {k: v for k, v in _run_entries(manifest, run).items() if k in keys}
    ordered = [key for key in keys if key in changed]
    return {key: changed[key] for key in [*ordered, *(k for k in changed if k not in keys)]}


def write_hf_records(
    folder: Path, config: dict[str, Any], manifest: dict[str, Any], run: dict[str, Any] | None
) -> str:
    """Write config.json and manifest.json of a BaseLM artifact that is converted back.

    Args:
        folder: The artifact; its ``hf_model`` and ``hf_tokenizer`` are not touched.
        config: The course's config.json of the SFT artifact.
        manifest: Its manifest.json.
        run: The run's ``dpo.json``; None where nothing was trained.

    Returns:
        The name in the new manifest.
    """
    changed = dpo_manifest(manifest, run)
    # The artifact loads what lies inside it, and runs no code of its own.
    own = {"model_path": "hf_model", "tokenizer_path": "hf_tokenizer", "trust_remote_code": False}
    write_json(folder / CONFIG, config | own)
    write_json(folder / MANIFEST, changed)
    return str(changed.get("name"))


def _hf_folder(folder: Path, path_in_config: Any, default: str) -> Path:
    # The path may be relative to where the course ran; only its last part counts.
    name = Path(path_in_config).name if isinstance(path_in_config, str) else default
    path = folder / (name or default)
    if name == ".." or not path.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{folder}: {name!r:.80} points outside the folder")
    if not path.is_dir():
        raise UsageError(f"{folder}: its folder {name!r:.80} is missing")
    return path


def _run_entries(manifest: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    settings, held_out = (
        entry if isinstance(entry, dict) else {}
        for entry in (run.get("settings"), run.get("held_out"))
    )
    return {
        "source": f"DPO from {manifest.get('name')} with mlx-dpo",
        "training_config": settings,
        "seed": settings.get("seed"),
        "git_commit": None,
        "steps_completed": run.get("steps"),
        # The losses of the SFT run would be read as those of this one.
        "final_train_loss": None,
        "final_val_loss": held_out.get("loss"),
    }
