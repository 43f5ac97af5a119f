"""A scripted, OpenAI-compatible HTTP server on plain trio sockets: what an executor meets when its backend misbehaves.

In a test, `await nursery.start(fake.serve)` and give `fake.base_url` to the backend. By hand,
`python -m loremesh.testing.fake_openai --port 8090` serves until interrupted.
"""

import argparse
import json
import socket
import struct
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import trio

Send = Callable[[bytes], Awaitable[None]]

_MAX_REQUEST: Final = 1 << 20
_HUGE: Final = 50_000_000
_PATIENCE: Final = 30.0  # seconds a client may take to send its request
_CONTENT: Final = (
    "On evening {call} the keeper climbed the stair with a lantern in one hand and the map in the other. "
    "The coast had redrawn itself since supper: bay {call} was gone, and a road ran where the reef had been. "
    "“Then we walk,” she said, and blew out the light."
)


class Behaviour(StrEnum):
    """How one call is answered."""

    OK = "ok"
    """As asked: a stream if the request says so, else plain JSON."""
    PLAIN = "plain"
    """Plain JSON, whatever was asked."""
    SLOW = "slow"
    """A stream with a pause before each word; where none was asked for, plain JSON after a pause."""
    BROKEN = "broken"
    """A stream that breaks off in the middle."""
    RESET = "reset"
    """A stream whose connection is reset in the middle."""
    DRIP = "drip"
    """A byte after each pause, and never a whole line."""
    LINGER = "linger"
    """A stream that is whole, and neither ends nor says what it used."""
    UNAUTHORISED = "401"
    TOO_MANY = "429"
    FAILED = "500"
    BAD_GATEWAY = "502"
    BAD_REQUEST = "400"
    TOO_LONG = "too-long"
    """400: the prompt does not fit the model's context."""
    GARBAGE = "garbage"
    """200, and bytes that are no answer."""
    EMPTY = "empty"
    """200, and an answer whose content is null."""
    MISSING = "missing"
    """A stream that ends well and says nothing."""
    HANG = "hang"
    """Takes the request and never answers."""
    ENDLESS = "endless"
    """Words for as long as the client reads."""
    ENDLESS_LINE = "endless-line"
    """One line without end."""
    HUGE = "huge"
    """Plain JSON of 50 MB."""
    REFUSE = "refuse"
    """Closes the connection without an answer."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request as it came in; header names in lower case."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass(slots=True)
class FakeOpenAI:
    """The server and what it saw.

    `script` holds the behaviour of the next calls, first to last; when it is empty, `otherwise` applies. `content` is
    what an answer says; `{call}` in it counts the calls; of an answer begun in the last message only the rest comes.
    `retry_after` (seconds) goes into every 429.
    """

    otherwise: Behaviour = Behaviour.OK
    script: deque[Behaviour] = field(default_factory=deque)
    content: str = _CONTENT
    finish_reason: str = "stop"
    retry_after: str = "7"
    pause: float = 0.05
    usage: object = field(default_factory=lambda: {"prompt_tokens": 70, "completion_tokens": 30, "total_tokens": 100})
    models: tuple[str, ...] = ("fake",)
    calls: list[Call] = field(default_factory=list)
    disconnects: int = 0
    """Calls whose client left before the answer was complete."""
    called: trio.Event = field(default_factory=trio.Event)
    disconnected: trio.Event = field(default_factory=trio.Event)
    base_url: str = ""

    async def serve(self, port: int = 0, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve on 127.0.0.1 until cancelled; reports the base URL, which ends in `/v1`."""
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        self.base_url = f"http://127.0.0.1:{port}/v1"
        task_status.started(self.base_url)
        await trio.serve_listeners(self._serve_one, listeners)

    async def _serve_one(self, stream: trio.SocketStream) -> None:
        async with stream:
            try:
                with trio.fail_after(_PATIENCE):
                    call = await _read_call(stream)
            except (ValueError, trio.TooSlowError, trio.BrokenResourceError):
                return
            self.calls.append(call)
            self.called.set()
            number = len(self.calls)
            behaviour = self.script.popleft() if self.script else self.otherwise
            try:
                await self._answer_while_connected(stream, call, behaviour, number)
            except* trio.BrokenResourceError:
                self._note_disconnect()
            if behaviour is Behaviour.RESET:
                # Closing with nothing to linger for resets the connection.
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def _answer_while_connected(
        self, stream: trio.SocketStream, call: Call, behaviour: Behaviour, number: int
    ) -> None:
        async with trio.open_nursery() as nursery:

            async def answer() -> None:
                await self._answer(stream.send_all, call, behaviour, number)
                nursery.cancel_scope.cancel()

            async def watch() -> None:
                while await stream.receive_some(1024):
                    pass
                self._note_disconnect()
                nursery.cancel_scope.cancel()

            nursery.start_soon(answer)
            nursery.start_soon(watch)

    def _note_disconnect(self) -> None:
        self.disconnects += 1
        self.disconnected.set()

    async def _answer(self, send: Send, call: Call, behaviour: Behaviour, number: int) -> None:
        content = self.content.replace("{call}", str(number))
        begun = (call.body.get("messages") or [{}])[-1]
        content = content.removeprefix(str(begun.get("content"))) if begun.get("role") == "assistant" else content
        match behaviour:
            case Behaviour.REFUSE:
                return
            case Behaviour.HANG:
                await trio.sleep_forever()
            case _ if behaviour.isdecimal() or behaviour is Behaviour.TOO_LONG:
                await send(self._error(behaviour))
            case Behaviour.GARBAGE:
                await send(_response("200 OK", "<html>not an answer</html>"))
            case _ if call.path.endswith("/models"):
                await send(
                    _response(
                        "200 OK", {"object": "list", "data": [{"id": one, "object": "model"} for one in self.models]}
                    )
                )
            case Behaviour.EMPTY | Behaviour.HUGE:
                await send(self._plain("x" * _HUGE if behaviour is Behaviour.HUGE else None))
            case _ if behaviour is Behaviour.PLAIN or not call.body.get("stream"):
                await trio.sleep(self.pause if behaviour is Behaviour.SLOW else 0)
                await send(self._plain(content))
            case _:
                await self._stream(send, call, content, behaviour)

    def _error(self, behaviour: Behaviour) -> bytes:
        if behaviour is Behaviour.TOO_LONG:
            error = {"message": "maximum context length is 7 tokens", "code": "context_length_exceeded"}
            return _response("400 Scripted", {"error": error})
        error = {"message": f"scripted {behaviour}", "type": "scripted"}
        return _response(f"{behaviour} Scripted", {"error": error}, {"Retry-After": self.retry_after})

    def _plain(self, content: str | None) -> bytes:
        message = {"role": "assistant", "content": content}
        choice = {"index": 0, "message": message, "finish_reason": self.finish_reason}
        return _response("200 OK", {"object": "chat.completion", "choices": [choice], "usage": self.usage})

    async def _stream(self, send: Send, call: Call, content: str, behaviour: Behaviour) -> None:
        await send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        words = [word + " " for word in content.split(" ")] if behaviour is not Behaviour.MISSING else []
        if behaviour in (Behaviour.ENDLESS_LINE, Behaviour.DRIP):
            await self._drip(send, behaviour)
        for word in words:
            if behaviour is Behaviour.SLOW:
                await trio.sleep(self.pause)
            await send(_event({"content": word}))
            if behaviour in (Behaviour.BROKEN, Behaviour.RESET):
                return
        while behaviour is Behaviour.ENDLESS:
            await send(b"".join(_event({"content": word}) for word in words))
        await send(_event({}, self.finish_reason))
        if behaviour is Behaviour.LINGER:
            await trio.sleep_forever()
        if (call.body.get("stream_options") or {}).get("include_usage"):
            last = {"object": "chat.completion.chunk", "choices": [], "usage": self.usage}
            await send(_chunk(b"data: " + json.dumps(last).encode() + b"\n\n"))
        await send(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    async def _drip(self, send: Send, behaviour: Behaviour) -> None:
        if behaviour is Behaviour.ENDLESS_LINE:
            await send(_chunk(b"data: "))
        while True:
            drop = b"x" * 4096 if behaviour is Behaviour.ENDLESS_LINE else b"x"
            await send(_chunk(drop))
            await trio.sleep(self.pause if behaviour is Behaviour.DRIP else 0)


async def _read_call(stream: trio.SocketStream) -> Call:
    """Read one HTTP/1.1 request whose body has a Content-Length, or none.

    Raises:
        ValueError: Not such a request, or more than 1 MiB.
    """
    data = b""
    while b"\r\n\r\n" not in data:
        data += await _receive(stream, data)
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += await _receive(stream, body)
    return Call(first.split(" ")[1], headers, json.loads(body or b"{}"))


async def _receive(stream: trio.SocketStream, so_far: bytes) -> bytes:
    data = await stream.receive_some(65_536)
    if not data or len(so_far) > _MAX_REQUEST:
        raise ValueError("request not finished")
    return data


def _response(status: str, body: object, headers: dict[str, str] | None = None) -> bytes:
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    content_type = "text/html" if isinstance(body, str) else "application/json"
    fields = {"Content-Type": content_type, "Content-Length": str(len(data)), "Connection": "close", **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + data


def _event(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return _chunk(b"data: " + json.dumps({"object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _run(port: int, behaviour: Behaviour) -> None:
    fake = FakeOpenAI(otherwise=behaviour)
    async with trio.open_nursery() as nursery:
        base_url = await nursery.start(fake.serve, port)
        sys.stdout.write(f"{base_url} answers: {behaviour}\n")
        sys.stdout.flush()


def main() -> None:
    """Serve one behaviour until interrupted."""
    parser = argparse.ArgumentParser(description="A fake OpenAI-compatible server on 127.0.0.1.")
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument("--behaviour", type=Behaviour, choices=list(Behaviour), default=Behaviour.OK)
    arguments = parser.parse_args()
    try:
        trio.run(_run, arguments.port, arguments.behaviour)
    except KeyboardInterrupt:
        sys.stdout.write("stopped\n")


if __name__ == "__main__":
    main()
