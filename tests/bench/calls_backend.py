"""An OpenAI-compatible server that streams 32 words, each the time at which it was sent, on kept connections.

Usage: python calls_backend.py. Prints the port it took, and serves until killed. The model `quick` writes without a
pause, `calm` a word every 20 ms. Clocks of processes on one machine agree: `time.perf_counter` counts from its start.
"""

import contextlib
import json
import sys
import time
from typing import Final

import trio

QUICK: Final = "quick"
CALM: Final = "calm"
WORDS: Final = 32
_PAUSES: Final = {QUICK: 0.0, CALM: 0.02}
_START: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _event(data: str) -> bytes:
    line = f"data: {data}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(line), line)


def _chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    head = {"id": "chatcmpl-1", "created": 1, "model": QUICK, "object": "chat.completion.chunk"}
    return _event(json.dumps({**head, "choices": [choice]}))


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
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            while len(unread) < length:
                unread += await stream.receive_some()
            body, unread = json.loads(unread[:length]), unread[length:]
            await stream.send_all(_START)
            for _ in range(WORDS):
                await trio.sleep(_PAUSES[body["model"]])
                await stream.send_all(_chunk({"content": f"{time.perf_counter():.6f} "}))
            await stream.send_all(_chunk({}, "stop") + _event("[DONE]") + b"0\r\n\r\n")


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
