"""A finished folder to the hub: which files go, what is taken out of them, and the upload.

Only files that a run or an export writes go along: never pairs, logs or whatever else lies there.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mlx_dpo.convert.sources import RECORD, read_record
from mlx_dpo.errors import UsageError, one_line
from mlx_dpo.manifest import DIGESTS, check_digests, digests_of
from mlx_dpo.models.card import CARD, renewed_card
from mlx_dpo.models.export import companions
from mlx_dpo.models.hub import is_hub_id
from mlx_dpo.paths import check_links, check_ordinary, entries_of, inside

_PATTERNS = (
    *("config.json", "model*.safetensors", "model.safetensors.index.json"),
    *("model.gguf", "Modelfile"),
    *("adapters.safetensors", "adapter_config.json", "adapter_model.safetensors"),
    *("peft/adapter_config.json", "peft/adapter_model.safetensors", f"peft/{DIGESTS}"),
)
_TEXTS = (".json", ".md", ".jinja", ".txt")
_VOCABULARIES = ("tokenizer.", "vocab.", "merges.")  # lists of pieces of words
_MAX_TEXT = 64 * 2**20  # bytes of a text file that is searched for paths
_PATH = re.compile(r"[/~\\]|\.\.|[A-Za-z]:[/\\]")  # how a path begins that says where things lie


class Upload(NamedTuple):
    """A file to upload.

    Attributes:
        name: Its path in the repository.
        content: Its bytes, or where they lie.
        size: In bytes.
    """

    name: str
    content: bytes | Path
    size: int


def files_to_push(folder: Path, name: str) -> tuple[list[Upload], list[str]]:
    """What of a finished folder goes to the hub.

    Its ``dpo.json`` goes along without paths and without the ids of pairs. The card gets
    the repository's name, unless a person has edited it.

    Args:
        folder: Of a model or an adapter.
        name: Of the repository, ``owner/name``.

    Returns:
        The files, by name, and the names of those that stay here.

    Raises:
        UsageError: If no run or export made the folder, a link leads out of it, or a file names a
            path of this machine.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    check_links(folder)
    check_digests(folder)
    record = read_record(folder)
    if "trained_from" not in record:
        raise UsageError(f"{folder}: no run or export made it (no {RECORD} in it says so)")
    found = {file for pattern in _PATTERNS for file in folder.glob(pattern) if file.is_file()}
    if not any(file.suffix in (".safetensors", ".gguf") for file in found):
        raise UsageError(f"{folder}: holds no weights")
    for file in found:
        check_ordinary(file)
    files = [inside(file.parent, file.name) for file in found] + companions(folder)
    texts = {RECORD: (json.dumps(without_paths(record), indent=2) + "\n").encode()}
    if (card := renewed_card(folder, record, name)) is None:
        files.append(inside(folder, CARD))
    else:
        texts[CARD] = card.encode()
    if (folder / DIGESTS).is_file():
        contents: dict[str, Path | bytes] = {str(f.relative_to(folder)): f for f in files}
        texts[DIGESTS] = digests_of({**contents, **texts})
    uploads = [Upload(str(f.relative_to(folder)), f, f.stat().st_size) for f in files]
    uploads += [Upload(file, text, len(text)) for file, text in texts.items()]
    _check_paths(folder, uploads, set(_paths_in(record)))
    going = {upload.name for upload in uploads}
    left = [e.name for e in entries_of(folder) if e.is_file() and e.name not in going]
    return sorted(uploads), sorted(left)


def push(uploads: list[Upload], name: str, *, public: bool = False) -> str:
    """Upload files as one commit of a hub repository, which is made where it is not there.

    Args:
        uploads: From `files_to_push`.
        name: ``owner/name``.
        public: Whether everybody may read it. A repository that is there stays as it is.

    Returns:
        Its address.

    Raises:
        UsageError: If it is public already and was not to be, there is no login, or the hub
            refuses or can't be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if get_token() is None:
        raise UsageError(f"{name}: not pushed: no token of the hub here: hf auth login stores one")
    try:
        api = HfApi()
        address = api.create_repo(name, private=not public, exist_ok=True)
        if not public and not api.repo_info(name).private:
            raise UsageError(f"{name}: is public already; pass --public to upload there")
        api.create_commit(
            name,
            [CommitOperationAdd(each.name, each.content) for each in uploads],
            commit_message="Trained by mlx-dpo",
        )
    except UsageError:
        raise
    except HfHubHTTPError as error:
        raise UsageError(f"{name}: not pushed: {_refusal(error, name)}") from None
    except Exception as error:  # of the hub's client, its HTTP client (by version) or Xet
        raise UsageError(
            f"{name}: not pushed: the hub can't be reached, or fails: {one_line(error)}"
        ) from None
    return str(address)


def _refusal(error: Any, name: str) -> str:
    """What to do about an answer of the hub's."""
    status = getattr(error.response, "status_code", None)
    if status == 401:
        return "the hub does not know the token here: hf auth login stores another"
    if status in (403, 404):
        return (
            f"the token here may not write to {name.partition('/')[0]}: hf auth login stores one "
            "with write access; or choose another owner"
        )
    return f"the hub refuses: {one_line(error)}"


def without_paths(record: dict[str, Any]) -> dict[str, Any]:
    """A ``dpo.json`` as others may read it: names for paths, and numbers of pairs for their ids."""
    cleaned: dict[str, Any] = _named(record)
    data = cleaned.get("data")
    if isinstance(data, dict) and isinstance(data.get("split"), dict):
        sides = data["split"].items()
        data["split"] = {side: len(ids) if isinstance(ids, list) else None for side, ids in sides}
    origin = cleaned.get("trained_from")
    if isinstance(origin, dict) and isinstance(origin.get("name"), str):
        origin["model"] = origin["name"]
    return cleaned


def _named(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _named(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_named(each) for each in value]
    is_path = isinstance(value, str) and _PATH.match(value)
    return re.split(r"[/\\]+", value.rstrip("/\\"))[-1] if is_path else value


def _paths_in(value: Any) -> Iterator[str]:
    """The absolute paths in a record, but for those that may be found in any text, as ``/data``."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _paths_in(each)
    elif isinstance(value, str) and value.startswith("/") and value.count("/") > 1:
        yield value


def _check_paths(folder: Path, uploads: list[Upload], paths: set[str]) -> None:
    """Refuse texts that name this user's folder, or a path that the run knew."""
    places = sorted({*paths, str(folder.resolve()), str(Path.home())})
    for name, content, size in uploads:
        if not name.endswith(_TEXTS) or name.startswith(_VOCABULARIES) or size > _MAX_TEXT:
            continue
        found = content if isinstance(content, bytes) else content.read_bytes()
        text = found.decode("utf-8", "replace")
        if place := next((each for each in places if each in text), None):
            raise UsageError(
                f"{folder / name}: names {place}, a path of this machine; take it out, delete "
                f"{folder / DIGESTS}, then push"
            )


def check_name(name: str) -> None:
    """Refuse what can't be the name of a repository.

    Raises:
        UsageError: If it is not ``owner/name``.
    """
    if not is_hub_id(name):
        raise UsageError(f"{name}: expected owner/name, a repository of the hub")
