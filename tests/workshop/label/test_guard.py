"""Who may talk to the page's server, asked over a real socket."""

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo import files
from tests.workshop.label.client import TOKEN, Client, serving


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """One server for all: tests leave its book as empty as they found it."""
    with serving(tmp_path_factory.mktemp("guard")) as client:
        yield client


def own_pair(client: Client, **changes: Any) -> dict[str, Any]:
    pair = {"prompt": "Is it?", "chosen": "Yes", "rejected": "No", "kind": ""}
    return {"revision": client.book.revision, **pair, **changes}


def test_the_page_itself_is_served_with_its_rules(client: Client) -> None:
    for path in ("/", "/page.css", "/draw.js", "/page.js"):
        status, headers, body = client("GET", path, authorization=None)
        assert (status, bool(body)) == (200, True)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "require-trusted-types-for 'script'; trusted-types rendered" in policy
        assert headers["x-content-type-options"] == "nosniff"
    assert client("GET", "/../book.py")[0] == 404
    assert client("GET", "/page/page.html")[0] == 404


@pytest.mark.parametrize("path", ["/", "/page.js", "/api/state"])
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "0.0.0.0:{port}", None]
)
def test_another_host_name_is_refused(client: Client, path: str, host: str | None) -> None:
    name = host and host.format(port=client.port)
    assert client("GET", path, host=name)[0] in (400, 421)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", ""])
def test_another_origin_is_refused_and_writes_nothing(client: Client, origin: str) -> None:
    sent = origin.format(port=client.port)
    status, headers, _ = client("POST", "/api/write", own_pair(client), origin=sent)
    assert (status, client.book.pairs) == (403, [])
    assert not [name for name in headers if name.startswith("access-control")]
    # The browser's own question before a foreign request with a header of ours.
    assert client("OPTIONS", "/api/write", origin=sent)[0] == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": None},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Bearer {TOKEN} "[:-2]},
        {"authorization": "Bearer é"},
    ],
)
def test_without_the_token_nothing_is_told_or_written(
    client: Client, headers: dict[str, str | None]
) -> None:
    assert client("GET", "/api/state", **headers)[0] == 401
    assert client("POST", "/api/write", own_pair(client), **headers)[0] == 401
    assert client("POST", "/api/show", {"a": "", "b": ""}, **headers)[0] == 401
    assert client.book.pairs == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content_type": "text/plain"}, 415),
        ({"content_type": "application/x-www-form-urlencoded"}, 415),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
    ],
)
def test_what_a_form_of_another_page_could_send_is_refused(
    client: Client, headers: dict[str, str], status: int
) -> None:
    assert client("POST", "/api/write", own_pair(client), **headers)[0] == status
    assert client.book.pairs == []


def test_bodies_that_are_too_long_or_nonsense_are_refused(client: Client) -> None:
    assert client("POST", "/api/write", own_pair(client, chosen="x" * 2_000_001))[0] == 413
    long_number = b'{"revision": 1, "number": ' + b"9" * 5000 + b"}"
    for body in (b"", b"[]", b"{", b"\xff", b"[" * 100_000, long_number):
        for path in ("write", "label", "undo", "show"):
            assert client("POST", f"/api/{path}", body)[0] == 400
    for length in ("9" * 15, "9" * 5000, "-1", "1e9", "²"):
        status = client("POST", "/api/undo", b"{}", content_length=length)[0]
        assert status in (400, 411, 413), length
    chunked = {"transfer_encoding": "chunked"}
    assert client("POST", "/api/undo", b"2\r\n{}\r\n0\r\n\r\n", **chunked)[0] == 411
    assert client("POST", "/api/write", own_pair(client, chosen=5))[0] == 422
    assert client("POST", "/api/label", own_pair(client, task="x", verdict="a"))[0] == 422
    assert client("POST", "/api/label", own_pair(client, task="x", verdict=[]))[0] == 422
    for number in (1, 99, int("9" * 4000), "1", True, [2]):
        undo = {"revision": client.book.revision, "number": number}
        assert client("POST", "/api/undo", undo)[0] == 422
    for texts in ({}, {"a": "x"}, {"a": "x", "b": 1}, {"a": "half \ud800", "b": "x"}):
        assert client("POST", "/api/show", texts)[0] == 400
    assert client("GET", "/api/write")[0] == 405
    assert client.book.pairs == []


def test_the_page_may_write_and_a_page_that_missed_it_may_not(client: Client) -> None:
    said = own_pair(client)
    status, _, body = client("POST", "/api/write", said, origin=f"http://127.0.0.1:{client.port}")
    assert (status, json.loads(body)["by_hand"]) == (200, 1)
    status, _, body = client("POST", "/api/write", {**said, "chosen": "Maybe"})
    assert (status, json.loads(body)["by_hand"]) == (409, 1)
    assert len(client.book.pairs) == 1
    client.book.undo()
    assert client.book.pairs == []


def test_a_decision_whose_pairs_could_not_be_written_is_shown_as_taken(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(files.Disk):
        def rename(self, old: Path, new: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "disk", Refusing())
    status, _, body = client("POST", "/api/write", own_pair(client))
    found = json.loads(body)
    assert (status, found["by_hand"], found["revision"]) == (409, 1, client.book.revision)
    assert "No space left on device" in found["error"]
    assert "; the decision is kept in pairs.jsonl.labels.jsonl" in found["error"]
    monkeypatch.undo()
    client.book.undo()
