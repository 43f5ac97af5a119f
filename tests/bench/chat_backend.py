"""A backend that costs next to nothing: an OpenAI-compatible server with ready answers, on kept connections.

Usage: python chat_backend.py. Prints the port it took, and serves until killed. The model `small` gives one answer of
29 words, whole or as a stream without a pause. `quick` streams 32 words, each the time at which it was sent; `calm`
pauses 20 ms before each. Clocks of processes on one machine agree: `time.perf_counter` counts from its start.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Final

import trio

SMALL: Final = "small"
QUICK: Final = "quick"
CALM: Final = "calm"
_TIMES: Final = 32
_PAUSES: Final = {QUICK: 0.0, CALM: 0.02}
_ANSWER: Final = (
    "Nobody keeps the lamp; it keeps itself, and on some nights it keeps the sea as well, "
    "which is more than the harbour master ever did for either of them."
)
_USAGE: Final = {"prompt_tokens": 20, "completion_tokens": 32, "total_tokens": 52}
_HEAD: Final = {"id": "chatcmpl-1", "created": 1, "model": SMALL}


@contextlib.contextmanager
def running() -> Iterator[int]:
    """Run one as a process of its own; give its port."""
    with subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


def _plain() -> bytes:
    message = {"role": "assistant", "content": _ANSWER}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = json.dumps({**_HEAD, "object": "chat.completion", "choices": [choice], "usage": _USAGE}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def _chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return _event({**_HEAD, "object": "chat.completion.chunk", "choices": [choice]})


def _event(value: object) -> bytes:
    data = b"data: %b\n\n" % (value if isinstance(value, bytes) else json.dumps(value).encode())
    return b"%x\r\n%b\r\n" % (len(data), data)


_PLAIN: Final = _plain()
_START: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_FIRST, *_OTHERS = _ANSWER.split(" ")
_PIECES: Final = [_chunk({"content": word}) for word in (_FIRST, *(" " + word for word in _OTHERS))]
_USED: Final = _event({**_HEAD, "object": "chat.completion.chunk", "choices": [], "usage": _USAGE})
_END: Final = _chunk({}, "stop") + _USED + _event(b"[DONE]") + b"0\r\n\r\n"


async def _serve(stream: trio.SocketStream) -> None:
    unread = b""
    async with stream:
        while True:
            while b"\r\n\r\n" not in unread:
                piece = await stream.receive_some()
                if not piece:
                    return
                unread += piece
            head, _, unread = unread.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            while len(unread) < length:
                unread += await stream.receive_some()
            body, unread = json.loads(unread[:length] or b"{}"), unread[length:]
            await _answer(stream, body.get("model"), streams=bool(body.get("stream")))


async def _answer(stream: trio.SocketStream, model: str | None, *, streams: bool) -> None:
    if not streams:
        await stream.send_all(_PLAIN)
        return
    await stream.send_all(_START + _chunk({"role": "assistant", "content": ""}))
    if model in _PAUSES:
        for _ in range(_TIMES):
            await trio.sleep(_PAUSES[model])
            await stream.send_all(_chunk({"content": f"{time.perf_counter():.6f} "}))
    else:
        for piece in _PIECES:
            await stream.send_all(piece)  # one word at a time, as models write
    await stream.send_all(_END)


async def _guarded(stream: trio.SocketStream) -> None:
    with contextlib.suppress(trio.BrokenResourceError):  # whoever asked may leave
        await _serve(stream)


async def _main() -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    sys.stdout.write(f"{listener.socket.getsockname()[1]}\n")
    sys.stdout.flush()
    await trio.serve_listeners(_guarded, [listener])


if __name__ == "__main__":
    trio.run(_main)
