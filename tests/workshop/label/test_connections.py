"""Programs that connect to the labelling page and say little: the page goes on, they are let go."""

import socket
from collections.abc import Iterator

import pytest

from mlx_dpo.workshop.label import connections
from tests.workshop.label.client import Client, serving

POST = b"POST /api/undo HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
HEAD = POST + b"Authorization: Bearer a-token-for-tests\r\nContent-Length: 20\r\n\r\n"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with serving(tmp_path_factory.mktemp("connections")) as client:
        assert client("GET", "/")[0] == 200
        yield client


def connect(client: Client, said: bytes) -> socket.socket:
    """A connection on which something is said, and little fits until it is read."""
    found = socket.socket()
    found.settimeout(20)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    found.connect(("127.0.0.1", client.port))
    found.sendall(said.replace(b"%d", b"%d" % client.port))
    return found


PAGE = b"GET /page.js HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n"
SAID = {"nothing": b"", "half a line": b"GET / HT", "half a head": POST, "no body": HEAD}


@pytest.mark.parametrize("said", [*SAID.values(), PAGE * 400], ids=[*SAID, "all and never read"])
def test_many_idle_connections_do_not_keep_the_page_from_its_user(
    client: Client, said: bytes
) -> None:
    idle = []
    for _ in range(3 * connections.MAX_CONNECTIONS):
        idle.append(connect(client, said))
        if len(idle) % connections.BACKLOG == 0:
            assert client("GET", "/api/state")[0] == 200
    assert client("GET", "/api/state")[0] == 200
    assert len(client.server.server_state.connections) <= connections.MAX_CONNECTIONS
    for connection in idle:
        connection.close()


def state_of(client: Client, mine: socket.socket) -> connections.Connection | None:
    """The server's end of a connection when all that was sent has been read; None if it is gone."""
    assert client("GET", "/")[0] == 200  # which is read after what was sent before
    name = mine.getsockname()
    for each in client.server.server_state.connections:
        if isinstance(each, connections.Connection) and each.client == name:
            return each
    return None


def expire(client: Client, mine: socket.socket) -> None:
    """Let the deadline of a connection come."""
    state = state_of(client, mine)
    assert state is not None
    assert state.deadline is not None
    assert not state.deadline.cancelled()
    state.loop.call_soon_threadsafe(state.expire)


@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
def test_a_request_that_does_not_end_is_ended(client: Client, said: bytes) -> None:
    with connect(client, said) as slow:
        expire(client, slow)
        assert slow.recv(1000)[:12] == (b"HTTP/1.1 408" if said else b"")


def test_more_bytes_of_a_request_do_not_move_its_deadline(client: Client) -> None:
    with connect(client, b"GET / HTTP/1.1\r\n") as slow:
        state = state_of(client, slow)
        assert state is not None
        before = state.deadline
        for drop in (b"x", b": y\r\nHost: ", b"127"):
            slow.sendall(drop)
            assert state_of(client, slow) is state
            assert state.deadline is before


def test_a_reply_that_is_never_read_is_dropped(client: Client) -> None:
    with connect(client, PAGE * 400) as deaf:
        expire(client, deaf)
        assert state_of(client, deaf) is None


def test_a_connection_that_is_kept_open_serves_again_and_again(client: Client) -> None:
    page = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % client.port
    deadlines = set()
    with connect(client, page) as kept:
        for _ in range(3):
            answer = kept.recv(100_000)
            assert answer.startswith(b"HTTP/1.1 200 ")
            while not answer.endswith(b"</html>\n"):
                answer += kept.recv(100_000)
            expire(client, kept)
            state = state_of(client, kept)
            assert state is not None
            deadlines.add(state.deadline)
            kept.sendall(page)
    assert len(deadlines) == 3
