"""Where the files of a course artifact lie, and reading them without leaving the folder."""

import json
import re
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UsageError
from mlx_dpo.files import inside

MODEL, CONFIG, MANIFEST = "model.pt", "config.json", "manifest.json"
HF_KIND = "huggingface_causal_lm"
_MAX_JSON_BYTES = 64 * 2**20
_ARTIFACT_NAME = re.compile(r"\w[\w.+-]*")


def is_artifact(folder: Path) -> bool:
    """Whether a folder is a course artifact, of either kind."""
    return is_transformer_artifact(folder) or is_hf_artifact(folder)


def is_transformer_artifact(folder: Path) -> bool:
    """Whether a folder holds a TransformerLM of the course: model.pt, config and manifest."""
    return all((folder / name).is_file() for name in (MODEL, CONFIG, MANIFEST))


def is_hf_artifact(folder: Path) -> bool:
    """Whether a folder holds a Hugging Face model as the course keeps it (BaseLM)."""
    if not all((folder / name).is_file() for name in (CONFIG, MANIFEST)):
        return False
    try:
        return read_json(folder / CONFIG).get("kind") == HF_KIND
    except UsageError:
        return False


def read_json(path: Path) -> dict[str, Any]:
    """An object in a JSON file, its keys in the file's order.

    Raises:
        UsageError: If the file is missing, leads out of its folder, is too large or holds
            anything else.
    """
    file = inside(path.parent, path.name)
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise UsageError(f"{path}: larger than {_MAX_JSON_BYTES} bytes")
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not readable as JSON: {type(error).__name__}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected a JSON object")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object as the course does: indented by two, keys as they come."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def tokenizer_file(folder: Path, manifest: dict[str, Any]) -> Path:
    """The tokenizer an artifact was trained with: ``artifacts/tokenizers/<name>/tokenizer.json``.

    Args:
        folder: ``artifacts/models/<model>``.
        manifest: Names the tokenizer as ``tokenizer_artifact``.

    Raises:
        UsageError: If it is not named, not there, or lies outside ``artifacts``.
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


def _hf_folder(folder: Path, named: Any, usual: str) -> Path:
    # The path may have been written from where the course stood; its last part is what counts.
    name = Path(named).name if isinstance(named, str) else usual
    path = folder / (name or usual)
    if name == ".." or not path.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{folder}: {name!r:.80} points outside the folder")
    if not path.is_dir():
        raise UsageError(f"{folder}: its folder {name!r:.80} is missing")
    return path
