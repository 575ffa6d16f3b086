"""Connections to the labelling page: few at a time, each with a deadline for its request.

Any program on this computer can connect. One that says nothing, says it byte by byte or never reads
the reply must not keep the page from the person who labels.
"""

import asyncio
from itertools import count

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

DEADLINE = 10.0  # seconds from connecting, or from a request's first byte, until its reply is read
# With `BACKLOG` more that wait to be accepted, far below the 256 files a process may open on a Mac.
MAX_CONNECTIONS = 20
BACKLOG = 8
_TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_numbers = count()


class Connection(H11Protocol):
    """A connection that ends at its deadline, or when too many newer ones have come.

    Attributes:
        deadline: Calls `expire`.
    """

    deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the place of the oldest connection if there are too many."""
        super().connection_made(transport)
        self._number = next(_numbers)
        self._set_deadline()
        if len(self.connections) > MAX_CONNECTIONS:
            others = [each for each in self.connections if isinstance(each, Connection)]
            oldest = min((each for each in others if each is not self), key=Connection._rank)
            self.connections.discard(oldest)
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        super().connection_lost(exc)
        self._unset_deadline()

    def data_received(self, data: bytes) -> None:
        """The first bytes of a request set its deadline; later ones don't move it."""
        if not self._has_begun():
            self._set_deadline()
        super().data_received(data)

    def expire(self) -> None:
        """End it with status 408, unless it is answered and waits for another request."""
        has_reply = self.conn.our_state in (h11.IDLE, h11.DONE)
        is_sent = not self.transport.get_write_buffer_size()
        if is_sent and has_reply and not self._has_begun() and self.timeout_keep_alive_task:
            return  # answered; how long it may stay open is uvicorn's to say
        if is_sent and self._has_begun() and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(_TOO_LATE)
            self.transport.close()
        else:
            self.transport.abort()

    def _rank(self) -> tuple[bool, int]:
        """The least is dropped first: one that is being answered comes last."""
        return self.conn.their_state is h11.DONE, self._number

    def _has_begun(self) -> bool:
        """Whether a part of a request is there that is not answered yet."""
        return self.conn.their_state is not h11.IDLE or bool(self.conn.trailing_data[0])

    def _set_deadline(self) -> None:
        self._unset_deadline()
        self.deadline = self.loop.call_later(DEADLINE, self.expire)

    def _unset_deadline(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
