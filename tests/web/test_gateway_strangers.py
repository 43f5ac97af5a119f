"""Whoever comes to a gateway: rude clients hold nobody up, and only those are let in who may be."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from loremesh.errors import (
    UsageError,
)
from loremesh.testing.gateway_scene import CHAT, FakeMesh, gateway_at, post
from loremesh.web.chats import MAX_BODY_BYTES
from loremesh.web.guard import check_exposure
from loremesh.web.server import Limits, listen

Ask = Callable[..., Awaitable[Any]]
Say = Callable[[str, bytes], Awaitable[bytes]]


# ---- Sizes, speeds and rudeness --------------------------------------------------------------------------------------


async def test_a_body_that_says_it_is_too_long_is_refused_unread(ask: Ask) -> None:
    async with gateway_at(FakeMesh()) as (address, _):
        for declared in (str(MAX_BODY_BYTES + 1), "9" * 18):
            answer = await ask(address, "/v1/chat/completions", "POST", f"Content-Length: {declared}")
            assert (answer.status, answer.json["error"]["code"]) == (413, "body_too_large")


async def test_a_body_that_turns_out_too_long_is_refused_and_its_sender_reads_why(ask: Ask) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    async with gateway_at(FakeMesh()) as (address, _):
        answer = await ask(
            address, "/v1/chat/completions", "POST", "Transfer-Encoding: chunked", body=chunk * 40 + b"0\r\n\r\n"
        )
        assert (answer.status, answer.json["error"]["code"]) == (413, "body_too_large")
        assert (await post(ask, address, CHAT)).status == 200


async def test_a_client_that_leaves_cancels_its_call() -> None:
    for stream in (True, False):
        mesh = FakeMesh(hangs=True)
        async with gateway_at(mesh) as (address, gateway):
            host, _, port = address.partition(":")
            body = json.dumps({**CHAT, "stream": stream}).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(body)}\r\n\r\n"
            with trio.fail_after(60):
                async with await trio.open_tcp_stream(host, int(port)) as connection:
                    await connection.send_all(head.encode() + body)
                    await mesh.reached.wait()
                await mesh.cancelled.wait()
                await gateway.wait_idle()
        [figure] = [one for one in gateway.report().figures if one.name == "loremesh_gateway_calls_total"]
        assert figure.values == {("499",): 1}


async def test_a_client_that_does_not_read_its_stream_is_cut_off() -> None:
    mesh = FakeMesh(pieces=["x" * 60_000] * 2000)
    limits = Limits(connections=4, lifetime=3600, stall=2, received=1 << 20)
    async with gateway_at(mesh, limits=limits) as (address, gateway):
        host, _, port = address.partition(":")
        body = json.dumps({**CHAT, "stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(body)}\r\n\r\n"
        with trio.fail_after(60):
            async with await trio.open_tcp_stream(host, int(port)) as connection:
                await connection.send_all(head.encode() + body)
                assert await connection.receive_some(1)
                await gateway.wait_idle()
    [figure] = [one for one in gateway.report().figures if one.name == "loremesh_gateway_calls_total"]
    assert figure.values == {("499",): 1}


async def test_who_dawdles_over_a_head_or_a_body_does_not_keep_others_out(ask: Ask, say: Say) -> None:
    mesh = FakeMesh()
    async with gateway_at(mesh, limits=Limits(lifetime=3600, idle=2, received=1 << 21)) as (address, _):
        host, _, port = address.partition(":")
        with trio.fail_after(60):
            async with (
                await trio.open_tcp_stream(host, int(port)) as head,
                await trio.open_tcp_stream(host, int(port)) as body,
            ):
                await head.send_all(b"POST /v1/chat/completions HT")
                await body.send_all(
                    f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Length: 9\r\n\r\nabc".encode()
                )
                assert await head.receive_some() == b""
                assert (await post(ask, address, CHAT)).status == 200
    assert len(mesh.asked) == 1


# ---- Who is let in ---------------------------------------------------------------------------------------------------


async def test_with_a_key_whoever_sends_it_is_let_in_and_nobody_else(ask: Ask) -> None:
    mesh = FakeMesh()
    async with gateway_at(mesh, key="correct horse") as (address, _):
        for sent in ("", "Authorization: Bearer wrong horse", "Authorization: Basic correct horse", "Api-Key: correct"):
            for path in ("/v1/chat/completions", "/v1/models", "/metrics"):
                answer = await ask(address, path, "GET", *filter(None, [sent]))
                assert (answer.status, answer.json["error"]["code"]) == (401, "invalid_api_key")
                assert answer.headers["www-authenticate"] == "bearer"
        assert (await ask(address, "/v1/models", "GET", "Authorization: Bearer correct horse")).status == 200
        assert (await ask(address, "/v1/models", "GET", "authorization: bearer correct horse")).status == 200
        assert (await ask(address, "/healthz")).status == 200


LOCAL = ["127.0.0.1", "127.0.0.1:8080", "localhost:1", "LOCALHOST", "[::1]:80", "[::1]", "127.9.9.9"]
FOREIGN = [
    "evil.example",
    "evil.example:80",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "10.0.0.1",
    "",
    "[::2]",
]


@pytest.mark.parametrize("host", LOCAL + FOREIGN)
async def test_without_a_key_only_names_of_this_machine_are_answered(host: str, say: Say) -> None:
    async with gateway_at(FakeMesh()) as (address, _):
        answer = await say(address, f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    status = int(answer.split(b" ")[1])
    assert status == (200 if host in LOCAL else 403)


async def test_without_a_key_a_web_page_is_not_answered(ask: Ask) -> None:
    mesh = FakeMesh()
    async with gateway_at(mesh) as (address, _):
        for origin in ("https://evil.example", "null", f"http://{address}"):
            answer = await post(ask, address, CHAT, f"Origin: {origin}")
            assert (answer.status, answer.json["error"]["code"]) == (403, "not_local")
            assert not [name for name in answer.headers if name.startswith("access-control")]
    assert not mesh.asked


async def test_without_a_key_nobody_else_is_listened_to() -> None:
    for host, local in (("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)):  # noqa: S104 - to be refused
        listeners = await listen(f"{host}:0", "--listen")
        try:
            check_exposure(listeners, "a key")
            if local:
                check_exposure(listeners, None)
            else:
                with pytest.raises(UsageError, match="set an API key"):
                    check_exposure(listeners, None)
        finally:
            for listener in listeners:
                await listener.aclose()
