"""A finished folder to the hub: what goes along, what never does, what is refused."""

import json
import shutil
from base64 import b64decode
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import XetDownloadError

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


class Hub(ThreadingHTTPServer):
    """Stands for the hub; what talks to it is `huggingface_hub` itself.

    Attributes:
        is_private: Whether the repository is; None until there is one.
        sent: Content of each file that was sent, by name.
        fails: Status of the answer to a request, by the end of its path.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.is_private: bool | None = None
        self.sent: dict[str, bytes] = {}
        self.fails: dict[str, int] = {}

    def answer(self, path: str, body: bytes) -> Any:
        if path == "/api/repos/create":
            if self.is_private is None:
                self.is_private = json.loads(body)["visibility"] == "private"
            return {"url": f"{self.address}/{NAME}"}
        if path == f"/api/models/{NAME}/preupload/main":
            files = json.loads(body)["files"]
            kinds = {"uploadMode": "regular", "shouldIgnore": False}
            return {"files": [{"path": each["path"], **kinds} for each in files]}
        if path == f"/api/models/{NAME}/commit/main":
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.sent[entry["value"]["path"]] = b64decode(entry["value"]["content"])
            url = f"{self.address}/{NAME}/commit/{'0' * 40}"
            return {"success": True, "commitOid": "0" * 40, "commitUrl": url}
        return {"_id": "0", "id": NAME, "private": self.is_private, "tags": [], "downloads": 0}


class Answer(BaseHTTPRequestHandler):
    """Of the false hub."""

    server: Hub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status = next((s for end, s in self.server.fails.items() if path.endswith(end)), 200)
        content = json.dumps(self.server.answer(path, body) if status == 200 else {}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi", partial(HfApi, endpoint=server.address))
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


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
    ("path", "status", "message"),
    [
        ("", 401, "not pushed: the hub does not know the token here: hf auth login stores"),
        ("", 403, "not pushed: the token here may not write to ada: hf auth login stores"),
        ("/main", 400, "not pushed: the hub refuses: "),
    ],
)
def test_a_hub_that_refuses_is_one_line(
    folder: Path,
    hub: Hub,
    path: str,
    status: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.fails[path] = status
    assert push(str(folder), NAME) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mlx_dpo: {NAME}: {message}")
    assert not hub.sent


def test_without_a_hub_or_a_token_nothing_is_sent(
    folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", partial(HfApi, endpoint="http://127.0.0.1:9"))
    assert push(str(folder), NAME) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mlx_dpo: {NAME}: not pushed: the hub can't be reached, or fails: ")

    def refuse(*_: object, **__: object) -> None:
        raise XetDownloadError("no route")  # of no class but Exception

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    assert push(str(folder), NAME) == 2
    assert "the hub can't be reached, or fails: no route" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert push(str(folder), NAME) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("not pushed: no token of the hub here: hf auth login stores one")


def test_a_name_without_an_owner_is_refused(folder: Path, hub: Hub) -> None:
    assert push(str(folder), "tiny-dpo") == 2
    assert not hub.sent


def test_every_path_of_a_record_becomes_a_name() -> None:
    paths = ["/home/ada/x", "~/ada/x/", "../ada/x", "C:\\ada\\x", "\\\\ada\\x"]
    found = without_paths({"a": paths, "b": {"c": paths}, "d": "owner/name", "e": 0.5})
    assert found == {"a": ["x"] * 5, "b": {"c": ["x"] * 5}, "d": "owner/name", "e": 0.5}
