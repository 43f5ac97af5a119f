"""One answer on its way to an HTTP client: whole, as a stream of events, or as an error in the shape of either."""

import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Final

import trio
from starlette.types import Send

from loremesh.web.answers import Answered, Chunks, Failure, Form
from loremesh.web.chats import Asked

LEFT: Final = 499
"""What nginx calls it when a client leaves before its answer is whole."""
_ID_BYTES: Final = 12
_STREAM_HEAD: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Reply:
    """Sends one answer. Of a stream nothing is sent before its first piece: until then an error has its own status."""

    def __init__(self, form: Form, send: Send) -> None:
        """Begin the clock.

        Args:
            form: How the client asked.
            send: The connection.
        """
        self.status = LEFT
        """How it ended."""
        self.answered: Answered | None = None
        """What was sent, when it ended well."""
        self.first_after: float | None = None
        """Seconds until the first piece of the answer."""
        self._form = form
        self._send = send
        self._began = trio.current_time()
        self._name = form.prefix + secrets.token_hex(_ID_BYTES)
        self._created = int(time.time())
        self._model = ""
        self._include_usage = False
        self._chunks: Chunks | None = None
        self._streams = False

    def prepare(self, asked: Asked) -> None:
        """Take in how the answer is wanted."""
        self._model = asked.model
        self._include_usage = asked.include_usage
        if asked.stream:
            self._chunks = self._form.chunks(self._name, self._created, asked.model)

    async def deliver(self, text: str) -> None:
        """Take a piece of the answer."""
        if self.first_after is None:
            self.first_after = trio.current_time() - self._began
        if self._chunks is None:
            return
        piece = self._chunks.piece(text)
        if not self._streams:
            piece = await self._begin_stream(self._chunks) + piece
        await self._write(piece)

    async def finish(self, answered: Answered) -> None:
        """Send the end of the answer, or all of it."""
        if self._chunks is None:
            await self._whole(200, self._form.answer(self._name, self._created, self._model, answered), [])
        else:
            first = b"" if self._streams else await self._begin_stream(self._chunks)
            last = self._chunks.last(answered, include_usage=self._include_usage)
            await self._write(first + last)
        self.status, self.answered = 200, answered
        await self._end()

    async def fail(self, failure: Failure, before_end: Callable[[], Awaitable[None]] | None = None) -> None:
        """Say why there is no answer, or no whole one.

        Args:
            failure: Why.
            before_end: Done when all is said, while the connection is still there.
        """
        if self._streams:
            await self._write(failure.event)
        else:
            await self._whole(failure.status, failure.body, failure.headers)
        self.status = failure.status
        if before_end is not None:
            await before_end()
        await self._end()

    async def _begin_stream(self, chunks: Chunks) -> bytes:
        self._streams = True
        await self._head(200, _STREAM_HEAD)
        return chunks.first()

    async def _whole(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        length = (b"content-length", str(len(body)).encode())
        await self._head(status, [(b"content-type", b"application/json"), length, *headers])
        await self._write(body)

    async def _head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        named = (b"x-request-id", self._name.encode())
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, named]})

    async def _write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def _end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
