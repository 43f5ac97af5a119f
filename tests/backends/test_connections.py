"""Connections to a backend are kept, and one that turns out to be gone costs a second try, never a second answer."""

import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from loremesh.backends.chat import ChatRequest
from loremesh.backends.openai import OpenAIBackend
from loremesh.errors import BackendFailed
from loremesh.protocol.llm import ChatMessage

GENEROUS = 60  # seconds, for whatever must end by itself
HEAD = b"HTTP/1.1 200 OK\r\n"


class Act(Enum):
    """What the server does with one request."""

    ANSWER = auto()
    ANSWER_AND_CLOSE = auto()
    """And says nothing of that."""
    CLOSE = auto()
    RESET = auto()
    HALF_HEAD = auto()
    """Part of an answer's head, and then the end."""
    HALF_BODY = auto()
    TALK_ON = auto()
    """A whole answer, and then a body that does not end."""


@dataclass
class Server:
    """Answers one chat after the other on each connection, as its script says; then as asked."""

    script: list[Act] = field(default_factory=list)
    connections: list[int] = field(default_factory=list)
    """For each, how many requests came on it."""
    closed: trio.Event = field(default_factory=trio.Event)

    async def serve(self, stream: trio.abc.Stream) -> None:
        number = len(self.connections)
        self.connections.append(0)
        try:
            while (body := await read_request(stream)) is not None:
                self.connections[number] += 1
                act = self.script.pop(0) if self.script else Act.ANSWER
                if not await self.play(act, stream, streams=bool(body.get("stream"))):
                    break
        except trio.BrokenResourceError:
            pass  # the client has left
        await stream.aclose()
        self.closed.set()

    async def play(self, act: Act, stream: trio.abc.Stream, *, streams: bool) -> bool:
        """Do it; tell if the connection goes on."""
        answer = streamed() if streams else whole()
        match act:
            case Act.ANSWER | Act.ANSWER_AND_CLOSE:
                await stream.send_all(answer)
            case Act.RESET:
                assert isinstance(stream, trio.SocketStream)
                # Closing with nothing to linger for resets the connection.
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            case Act.HALF_HEAD:
                await stream.send_all(HEAD[:12])
            case Act.HALF_BODY:
                await stream.send_all(answer[: len(answer) - 40])
            case Act.TALK_ON:
                await stream.send_all(answer.removesuffix(b"0\r\n\r\n"))
                while True:
                    await stream.send_all(b"5\r\n: so\n\r\n")
                    await trio.sleep(0.001)
        return act is Act.ANSWER

    @property
    def requests(self) -> int:
        return sum(self.connections)


async def read_request(stream: trio.abc.Stream) -> dict[str, object] | None:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = await stream.receive_some()
        if not piece:
            return None
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += await stream.receive_some()
    asked: dict[str, object] = json.loads(body)
    return asked


def whole() -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "One two."}, "finish_reason": "stop"}
    body = json.dumps({"choices": [choice]}).encode()
    return HEAD + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def streamed() -> bytes:
    events: list[tuple[dict[str, str], str | None]] = [({"content": "One"}, None), ({"content": " two."}, "stop")]
    choices = [{"index": 0, "delta": delta, "finish_reason": finish} for delta, finish in events]
    lines = [*(b"data: %b\n\n" % json.dumps({"choices": [one]}).encode() for one in choices), b"data: [DONE]\n\n"]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(line), line) for line in lines)
    return HEAD + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def backend(server: Server, nursery: trio.Nursery) -> AsyncIterator[OpenAIBackend]:
    listeners = await nursery.start(trio.serve_tcp, server.serve, 0)
    port = listeners[0].socket.getsockname()[1]
    async with open_backend(f"http://localhost:{port}/v1") as made:
        yield made


@asynccontextmanager
async def open_backend(url: str) -> AsyncIterator[OpenAIBackend]:
    made = OpenAIBackend(base_url=url, rest=GENEROUS)
    try:
        yield made
    finally:
        await made.aclose()


async def ask(backend: OpenAIBackend, *, is_whole: bool = False) -> str:
    pieces = list[str]()

    async def deliver(piece: str) -> None:
        await trio.lowlevel.checkpoint()
        pieces.append(piece)

    asked = ChatRequest("fake", (ChatMessage("user", "Well?"),), continues=False, max_tokens=50, is_whole=is_whole)
    with trio.fail_after(GENEROUS):
        await backend.chat(asked, deliver)
    return "".join(pieces)


async def test_calls_one_after_the_other_share_a_connection(backend: OpenAIBackend, server: Server) -> None:
    for is_whole in (False, False, True, True, False):
        assert await ask(backend, is_whole=is_whole) == "One two."
    assert server.connections == [5]


async def test_a_connection_that_was_closed_while_it_rested_is_not_used(backend: OpenAIBackend, server: Server) -> None:
    server.script = [Act.ANSWER_AND_CLOSE]
    await ask(backend)
    with trio.fail_after(GENEROUS):
        await server.closed.wait()
    assert await ask(backend) == "One two."
    assert server.connections == [1, 1]


@pytest.mark.parametrize("act", [Act.CLOSE, Act.RESET])
@pytest.mark.parametrize("is_whole", [False, True])
async def test_a_request_that_finds_its_kept_connection_gone_is_sent_once_more(
    backend: OpenAIBackend, server: Server, act: Act, *, is_whole: bool
) -> None:
    server.script = [Act.ANSWER, act]
    await ask(backend, is_whole=is_whole)
    assert await ask(backend, is_whole=is_whole) == "One two."
    assert server.connections == [2, 1]


async def test_it_is_sent_once_more_and_not_twice(backend: OpenAIBackend, server: Server) -> None:
    server.script = [Act.ANSWER, Act.CLOSE, Act.CLOSE, Act.ANSWER]
    await ask(backend)
    with pytest.raises(BackendFailed):
        await ask(backend)
    assert server.connections == [2, 1]


@pytest.mark.parametrize("act", [Act.CLOSE, Act.RESET])
async def test_on_a_new_connection_nothing_is_sent_twice(backend: OpenAIBackend, server: Server, act: Act) -> None:
    server.script = [act]
    with pytest.raises(BackendFailed):
        await ask(backend)
    assert server.connections == [1]


@pytest.mark.parametrize("act", [Act.HALF_HEAD, Act.HALF_BODY])
@pytest.mark.parametrize("is_whole", [False, True])
async def test_once_a_byte_came_back_nothing_is_sent_twice(
    backend: OpenAIBackend, server: Server, act: Act, *, is_whole: bool
) -> None:
    server.script = [Act.ANSWER, act]
    await ask(backend, is_whole=is_whole)
    with pytest.raises(BackendFailed):
        await ask(backend, is_whole=is_whole)
    assert server.connections == [2]
    assert await ask(backend, is_whole=is_whole) == "One two."


async def test_a_body_that_goes_on_after_the_answer_holds_nobody_up(backend: OpenAIBackend, server: Server) -> None:
    server.script = [Act.TALK_ON]
    assert await ask(backend) == "One two."
    assert await ask(backend) == "One two."
    assert server.connections == [1, 1]


async def test_calls_side_by_side_have_a_connection_each(backend: OpenAIBackend, server: Server) -> None:
    async with trio.open_nursery() as several:
        for _ in range(8):
            several.start_soon(ask, backend)
    assert sum(server.connections) == 8
    before = len(server.connections)
    await ask(backend)
    assert len(server.connections) == before


async def test_encrypted_connections_are_kept_too(
    server: Server, nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted, context = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    server.script = [Act.ANSWER, Act.ANSWER, Act.CLOSE]
    listeners = await nursery.start(trio.serve_ssl_over_tcp, server.serve, 0, context)
    async with open_backend(f"https://127.0.0.1:{listeners[0].transport_listener.socket.getsockname()[1]}/v1") as made:
        for _ in range(3):
            assert await ask(made) == "One two."
    assert server.connections == [3, 1]


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """Make a certificate of this machine's own; give where it lies, and what a server takes."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "here")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    trusted, both = folder / "trusted.pem", folder / "both.pem"
    trusted.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    both.write_bytes(secret + trusted.read_bytes())
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(both)
    return trusted, context
