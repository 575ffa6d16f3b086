"""A finished folder to the hub: what goes along, what never does, what is refused."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from mlx_dpo.cli import main
from mlx_dpo.errors import UsageError
from mlx_dpo.runs.push import files_to_push, without_paths
from tests.runs.conftest import ORACLE

NAME = "ada/tiny-dpo"


@pytest.fixture
def folder(adapter_folder: Path, tmp_path: Path) -> Path:
    """A finished adapter, with files beside it that nobody asked for."""
    here = Path(shutil.copytree(adapter_folder, tmp_path / adapter_folder.name))
    for name in ("pairs.json", "preferences.jsonl", "notes.txt", "optimizer.safetensors"):
        (here / name).write_text("private")
    return here


class Hub:
    """Stands for `huggingface_hub.HfApi`.

    Attributes:
        is_private: Whether the repository is; None until there is one.
        sent: Content of each file that was sent, by name.
    """

    def __init__(self, is_private: bool | None = None) -> None:
        self.is_private = is_private
        self.sent: dict[str, bytes] = {}

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
        assert exist_ok
        if self.is_private is None:
            self.is_private = private
        return f"https://hub.example/{name}"

    def repo_info(self, name: str) -> Any:
        return SimpleNamespace(private=self.is_private)

    def create_commit(self, name: str, operations: list[Any], *, commit_message: str) -> None:
        for each in operations:
            content = each.path_or_fileobj
            is_bytes = isinstance(content, bytes)
            self.sent[each.path_in_repo] = content if is_bytes else Path(content).read_bytes()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    false = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: false)
    return false


def push(*args: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["push", *args])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_what_a_run_wrote_goes_along_and_nothing_else(folder: Path, hub: Hub) -> None:
    assert push(str(folder), NAME) == 0
    assert sorted(hub.sent) == [
        *("README.md", "adapter_config.json", "adapters.safetensors", "chat_template.jinja"),
        *("digests.json", "dpo.json", "generation_config.json", "peft/adapter_config.json"),
        *("peft/adapter_model.safetensors", "peft/digests.json", "tokenizer.json"),
        "tokenizer_config.json",
    ]
    assert hub.is_private is True
    for name, content in hub.sent.items():
        is_new = name in ("dpo.json", "digests.json", "README.md")
        assert is_new or (folder / name).read_bytes() == content
    assert f"--adapter-path {NAME}" in hub.sent["README.md"].decode()
    text = hub.sent["dpo.json"].decode()
    here = (folder / "dpo.json").read_text()
    assert str(ORACLE) in here
    assert str(ORACLE.parent) not in text
    assert "run_dir" in text
    assert '"/' not in text
    record, own = json.loads(text), json.loads(here)
    assert record["trained_from"]["model"] == "model"
    assert record["trained_from"]["sha256"] == own["trained_from"]["sha256"]
    split = own["data"]["split"]
    assert record["data"]["split"] == {side: len(ids) for side, ids in split.items()}


def test_a_dry_run_lists_the_sizes_and_sends_nothing(
    folder: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(str(folder), NAME, "--dry-run") == 0
    said = capsys.readouterr().out
    size = (folder / "adapters.safetensors").stat().st_size
    assert f"{size:,} bytes" in next(line for line in said.splitlines() if "adapters.s" in line)
    assert "left    notes.txt, optimizer.safetensors, pairs.json, preferences.jsonl" in said
    assert f"nothing was sent; without --dry-run these go to {NAME}, private" in said
    assert (hub.sent, hub.is_private) == ({}, None)


@pytest.mark.parametrize(("given", "code"), [((), 2), (("--public",), 0)])
def test_a_repository_that_is_public_is_not_written_to_unasked(
    folder: Path, hub: Hub, given: tuple[str, ...], code: int
) -> None:
    hub.is_private = False
    assert push(str(folder), NAME, *given) == code
    assert bool(hub.sent) == (code == 0)


def test_a_folder_that_no_run_made_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run or export made it"):
        files_to_push(ORACLE, NAME)
    with pytest.raises(UsageError, match="no such folder"):
        files_to_push(tmp_path / "absent", NAME)
    for file in (folder / "digests.json", *folder.rglob("adapter*.safetensors")):
        file.unlink()
    with pytest.raises(UsageError, match="holds no weights"):
        files_to_push(folder, NAME)


@pytest.mark.parametrize("file", ["README.md", "tokenizer_config.json"])
def test_a_file_that_names_a_path_of_the_machine_is_refused(folder: Path, file: str) -> None:
    with (folder / file).open("a") as opened:
        opened.write(f"\nfrom {ORACLE}\n")
    (folder / "digests.json").unlink()
    with pytest.raises(UsageError, match=rf"{file}: names .*, a path of this machine; take it out"):
        files_to_push(folder, NAME)


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(UsageError):
        files_to_push(folder, NAME)


def card_to_push(folder: Path) -> str:
    files, _ = files_to_push(folder, NAME)
    (content,) = [file.content for file in files if file.name == "README.md"]
    return content.decode() if isinstance(content, bytes) else content.read_text()


def test_a_card_gets_the_repository_s_name_unless_a_person_edited_it(folder: Path) -> None:
    made = card_to_push(folder)
    assert f"# {NAME}" in made
    (folder / "README.md").unlink()
    assert card_to_push(folder) == made
    (folder / "README.md").write_text("# My own words")
    assert card_to_push(folder) == "# My own words"


@pytest.mark.parametrize(
    "error", [httpx2.ConnectError("no route"), OSError("no token"), ValueError]
)
def test_a_hub_that_fails_is_one_line(
    folder: Path,
    hub: Hub,
    error: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(hub, "create_commit", fail)
    assert push(str(folder), NAME) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mlx_dpo: {NAME}: not pushed (no network, no login")


def test_a_name_without_an_owner_is_refused(folder: Path, hub: Hub) -> None:
    assert push(str(folder), "tiny-dpo") == 2
    assert not hub.sent


def test_every_path_of_a_record_becomes_a_name() -> None:
    paths = ["/home/ada/x", "~/ada/x/", "../ada/x", "C:\\ada\\x", "\\\\ada\\x"]
    found = without_paths({"a": paths, "b": {"c": paths}, "d": "owner/name", "e": 0.5})
    assert found == {"a": ["x"] * 5, "b": {"c": ["x"] * 5}, "d": "owner/name", "e": 0.5}
