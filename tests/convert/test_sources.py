"""Where a model name leads: a folder, the hub, or a clear refusal."""

import errno
from pathlib import Path
from typing import Literal

import httpx2
import pytest
from huggingface_hub.errors import XetDownloadError

import mlx_dpo
from mlx_dpo.convert import sources
from mlx_dpo.errors import DiskError, UsageError
from mlx_dpo.models.hub import download
from tests import g2c


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for the network, and notes what was asked of it."""
    asked: list[str] = []

    def refuse(name: str, **options: object) -> str:
        asked.append(name)
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    return asked


def test_an_existing_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert sources.find(tmp_path) == tmp_path


@pytest.mark.parametrize("name", ["./owner/name", "/no/where", "~/absent", "a/b/c", "plain", ""])
def test_a_missing_path_never_asks_the_network(name: str, hub: list[str]) -> None:
    with pytest.raises(UsageError, match="no such model folder"):
        sources.find(name)
    assert hub == []


def test_a_typo_below_a_folder_that_is_here_never_asks_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("checkpoints").mkdir()
    with pytest.raises(UsageError, match="no such model folder"):
        sources.find("checkpoints/tpyo")
    assert hub == []


def test_owner_and_name_ask_the_hub_and_say_so_when_it_fails(hub: list[str]) -> None:
    with pytest.raises(UsageError, match=r"the download from the hub failed \(.*\): offline"):
        sources.find("owner/name")
    assert hub == ["owner/name"]


@pytest.mark.parametrize("kind", ["model", "dataset"])
@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (httpx2.ProxyError("407 Proxy Authentication Required"), "407 Proxy Authentication Req"),
        (httpx2.ReadTimeout(""), "ReadTimeout"),
        (httpx2.RemoteProtocolError("illegal status line"), "illegal status line"),
        (XetDownloadError("no route"), "no route"),  # of no class but Exception
    ],
)
def test_a_download_that_fails_in_any_way_names_the_repository(
    monkeypatch: pytest.MonkeyPatch, kind: Literal["model", "dataset"], error: Exception, kept: str
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(UsageError, match=rf"^owner/name: .* no such {kind}, .*: {kept}"):
        download("owner/name", [], kind)


def test_a_download_to_a_full_disk_is_no_fault_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device", "blobs/0123")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(DiskError, match="blobs/0123: not downloaded: No space left"):
        download("owner/name", [])


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        sources.find(tmp_path / "model")


def test_loading_a_checkpoint_that_is_converted_writes_nothing_into_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, cache = tmp_path / "here", tmp_path / "cache"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    _, tokenizer = mlx_dpo.load(g2c.ARTIFACT)
    assert list(here.iterdir()) == []
    assert len(list((cache / "mlx_dpo" / "converted").iterdir())) == 1
    assert tokenizer.encode(g2c.expected()["encoded"][0]["prompt_text"])


def test_a_name_that_is_nearly_a_folders_is_corrected(tmp_path: Path) -> None:
    (tmp_path / "tiny-sft").mkdir()
    with pytest.raises(UsageError, match=r"no such model folder.*did you mean .*tiny-sft\?"):
        sources.find(tmp_path / "tinysft")


@pytest.mark.parametrize(
    ("result", "said"),
    [('{"out": "checkpoints/m-dpo"}', "its model is checkpoints/m-dpo"), (None, "not finished")],
)
def test_the_folder_of_a_run_is_no_model_and_names_the_one_it_made(
    tmp_path: Path, result: str | None, said: str
) -> None:
    (tmp_path / "config.toml").write_text("")
    if result is not None:
        (tmp_path / "result.json").write_text(result)
    with pytest.raises(UsageError, match=f"is the folder of a run.*{said}"):
        sources.find(tmp_path)
