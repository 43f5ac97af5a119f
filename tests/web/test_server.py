"""The HTTP server: what it answers, and that whoever connects, however rudely, it goes on answering."""

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import ASGIApp, Receive, Scope, Send

from loremesh.errors import MachineError, UsageError
from loremesh.web.operating import operating_app
from loremesh.web.report import Figure, Kind, Report
from loremesh.web.server import Limits, bound_address, listen, serve

Ask = Callable[..., Awaitable[Any]]
Say = Callable[[str, bytes], Awaitable[bytes]]
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
GOOD = Report(
    (),
    (
        Figure("lamps", Kind.GAUGE, "Lamps that are lit.", (), {(): 3.0}),
        Figure("waves_total", Kind.COUNTER, "Waves so far.", ("where", "how"), {("reef", 'a "b"\n\\c'): 7.0}),
    ),
)
UNREADY = Report(("nobody is here", "it is late"), ())


async def start(nursery: trio.Nursery, app: ASGIApp | None = None, limits: Limits | None = None) -> str:
    listeners = await listen("127.0.0.1:0")
    nursery.start_soon(serve, app or operating_app(lambda: GOOD), listeners, limits or Limits())
    return bound_address(listeners[0])


async def test_a_living_node_says_so(nursery: trio.Nursery, ask: Ask) -> None:
    answer = await ask(await start(nursery), "/healthz")
    assert (answer.status, answer.json) == (200, {"alive": True})


async def test_a_useful_node_is_ready(nursery: trio.Nursery, ask: Ask) -> None:
    answer = await ask(await start(nursery), "/readyz")
    assert (answer.status, answer.json) == (200, {"ready": True, "reasons": []})


async def test_a_useless_node_says_why(nursery: trio.Nursery, ask: Ask) -> None:
    answer = await ask(await start(nursery, operating_app(lambda: UNREADY)), "/readyz")
    assert (answer.status, answer.json) == (503, {"ready": False, "reasons": ["nobody is here", "it is late"]})


async def test_figures_come_as_prometheus_reads_them(nursery: trio.Nursery, ask: Ask) -> None:
    answer = await ask(await start(nursery), "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(answer.body)}
    assert (families["lamps"].type, families["lamps"].documentation) == ("gauge", "Lamps that are lit.")
    assert families["waves"].type == "counter"
    (sample,) = families["waves"].samples
    assert (sample.name, sample.labels, sample.value) == ("waves_total", {"where": "reef", "how": 'a "b"\n\\c'}, 7)
    assert families["process_resident_memory_bytes"].samples[0].value > 0


async def test_the_node_is_looked_at_anew_for_each_request(nursery: trio.Nursery, ask: Ask) -> None:
    reports = [UNREADY, GOOD]
    address = await start(nursery, operating_app(lambda: reports.pop(0)))
    assert [(await ask(address, "/readyz")).status for _ in range(2)] == [503, 200]


REFUSED = [
    (404, "/", "GET", "", b""),
    (404, "/metrics/../healthz", "GET", "", b""),
    (404, "/%ff%00", "GET", "", b""),
    (405, "/healthz", "POST", "", b""),
    (405, "/healthz", "DELETE", "", b""),
    (413, "/healthz", "GET", "Content-Length: 3", b"abc"),
    (413, "/metrics", "POST", "Content-Length: 99999999999", b"abc"),
    (413, "/readyz", "POST", "Transfer-Encoding: chunked", b"3\r\nabc\r\n0\r\n\r\n"),
]


@pytest.mark.parametrize("case", REFUSED, ids=[f"{one[2]} {one[1]} {one[3]}" for one in REFUSED])
async def test_nothing_but_reading_is_answered(
    case: tuple[int, str, str, str, bytes], nursery: trio.Nursery, ask: Ask
) -> None:
    status, path, method, header, body = case
    address = await start(nursery)
    assert (await ask(address, path, method, *filter(None, [header]), body=body)).status == status


async def test_a_head_that_is_too_long_is_refused(nursery: trio.Nursery, ask: Ask, say: Say) -> None:
    address = await start(nursery, limits=Limits(head=1000))
    assert (await ask(address, "/healthz", "GET", "X: " + "a" * 700)).status == 200
    refused = await say(address, b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 2000)
    assert refused.split(b"\r\n")[0].split(b" ")[1] in {b"431", b"400"}


async def test_an_answer_that_fails_by_a_bug_of_ours_is_a_500_and_the_next_one_comes(
    nursery: trio.Nursery, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    def look() -> Report:
        raise LookupError("a bug")

    address = await start(nursery, operating_app(look))
    assert (await ask(address, "/readyz")).status == 500
    assert (await ask(address, "/metrics")).status == 500
    assert (await ask(address, "/healthz")).status == 200
    assert "LookupError: a bug" in caplog.text


# With a stock server the first of these ends the nursery it runs in, and so the node.
RUDE = [
    GET[:-2] + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: A\r\n\r\n",
    GET[:-2] + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAAA\r\n\r\n" + b"\0" * 500,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(range(256)) * 4,
    GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + b"\x81\xfe" * 300,
    GET[:-2] + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 4000,
    GET[:-2] + b"Content-Length: -1\r\n\r\n",
    GET[:-2] + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x11" * 500,
    b"\r\n" * 1000,
    b"GET /healthz HTTP/9.9\r\n\r\n",
    b"",
]


@pytest.mark.parametrize("request_", RUDE, ids=range(len(RUDE)))
async def test_a_rude_request_harms_nobody_but_itself(
    request_: bytes, nursery: trio.Nursery, ask: Ask, say: Say
) -> None:
    address = await start(nursery, limits=Limits(lifetime=0.5, idle=0.3))
    await say(address, request_)
    assert (await ask(address, "/healthz")).status == 200


async def fetch(host: str, port: int) -> bytes:
    async with await trio.open_tcp_stream(host, port) as stream:
        try:
            await stream.send_all(GET)
            return bytes(await stream.receive_some())
        except trio.BrokenResourceError:
            return b""


@given(st.lists(st.sampled_from([*RUDE, GET]) | st.binary(max_size=60), max_size=4), st.randoms())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_mixture_of_bytes_ends_the_server(pieces: list[bytes], chance: random.Random) -> None:
    request = bytearray(b"".join(pieces))
    for _ in range(chance.randrange(3) if request else 0):
        request[chance.randrange(len(request))] = chance.randrange(256)

    async def play() -> None:
        async with trio.open_nursery() as nursery:
            address = await start(nursery, limits=Limits(lifetime=0.1, idle=0.05))
            host, _, port = address.partition(":")
            with trio.fail_after(30):
                async with await trio.open_tcp_stream(host, int(port)) as stream:
                    try:
                        await stream.send_all(bytes(request))
                        while await stream.receive_some():
                            pass
                    except trio.BrokenResourceError:
                        pass
                # On a busy machine a twentieth of a second may pass before this one is looked at, too: it asks again.
                while not (await fetch(host, int(port))).startswith(b"HTTP/1.1 200"):
                    pass
            nursery.cancel_scope.cancel()

    trio.run(play)


async def test_no_more_connections_are_held_than_allowed_and_room_comes_back(
    nursery: trio.Nursery, ask: Ask, say: Say
) -> None:
    address = await start(nursery, limits=Limits(connections=5))
    host, _, port = address.partition(":")
    with trio.fail_after(30):
        held = [await trio.open_tcp_stream(host, int(port)) for _ in range(5)]
        for stream in held:
            await stream.send_all(GET)
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
        assert await say(address, GET) == b""
        await held.pop().aclose()
        while not await say(address, GET[:-2] + b"Connection: close\r\n\r\n"):
            await trio.testing.wait_all_tasks_blocked()
    for stream in held:
        await stream.aclose()


async def test_who_dawdles_over_a_request_is_cut_off(nursery: trio.Nursery) -> None:
    address = await start(nursery, limits=Limits(idle=0.2, lifetime=3600))
    host, _, port = address.partition(":")
    with trio.fail_after(30):
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(GET[:-2])
            assert await stream.receive_some() == b""


async def test_who_never_ends_is_ended(nursery: trio.Nursery) -> None:
    address = await start(nursery, limits=Limits(lifetime=0.5))
    host, _, port = address.partition(":")
    answers = 0
    with trio.fail_after(30):
        while not answers:  # half a second may go by before a busy machine gives the first
            async with await trio.open_tcp_stream(host, int(port)) as stream:
                with suppress(trio.BrokenResourceError):
                    while True:
                        await stream.send_all(GET)
                        if not await stream.receive_some():
                            break
                        answers += 1


async def test_who_sends_without_end_is_ended(nursery: trio.Nursery, say: Say) -> None:
    address = await start(nursery, limits=Limits(received=1000, lifetime=3600))
    assert (await say(address, GET * 1000)).count(b"200") < 1000


async def endless(scope: Scope, receive: Receive, send: Send) -> None:
    """An answer that no socket buffer holds."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": bytes(32 * 1024 * 1024)})


async def test_a_client_that_never_reads_does_not_hold_up_the_end(nursery: trio.Nursery) -> None:
    with trio.fail_after(30):
        async with trio.open_nursery() as serving:
            address = await start(serving, endless, Limits(lifetime=3600))
            host, _, port = address.partition(":")
            stream = await trio.open_tcp_stream(host, int(port))
            await stream.send_all(GET)
            unread = 64 * 1024  # the head of the answer is behind us, and its writer is stuck
            while unread > 0:
                unread -= len(await stream.receive_some(unread))
            await trio.testing.wait_all_tasks_blocked()
            serving.cancel_scope.cancel()
        await stream.aclose()


async def test_a_client_that_never_reads_is_let_go_in_time(nursery: trio.Nursery, ask: Ask) -> None:
    address = await start(nursery, endless, Limits(connections=1, lifetime=0.5))
    host, _, port = address.partition(":")
    with trio.fail_after(30):
        first = await trio.open_tcp_stream(host, int(port))
        await first.send_all(GET)
        with suppress(trio.BrokenResourceError):
            await first.receive_some(1)  # it is let in; on a busy machine it may be let go before its first byte
        while True:
            async with await trio.open_tcp_stream(host, int(port)) as stream:
                await stream.send_all(GET)
                try:
                    if await stream.receive_some(1):
                        break
                except trio.BrokenResourceError:
                    continue
        await first.aclose()


async def test_a_port_that_is_taken_is_named(nursery: trio.Nursery) -> None:
    address = await start(nursery)
    with pytest.raises(MachineError, match=f"cannot serve HTTP at {address}: .*in use"):
        await listen(address)


async def test_an_address_of_another_machine_is_this_machines_refusal() -> None:
    with pytest.raises(MachineError, match=r"192\.0\.2\.1:80"):
        await listen("192.0.2.1:80")


async def test_a_host_that_does_not_exist_is_the_operators_mistake() -> None:
    with pytest.raises(UsageError, match="no address of this machine"):
        await listen("no such host:80")


async def test_an_ipv6_address_is_said_in_brackets() -> None:
    try:
        (listener,) = await listen("[::1]:0")
    except MachineError:
        pytest.skip("this machine has no IPv6")
    async with listener:
        assert bound_address(listener).startswith("[::1]:")
