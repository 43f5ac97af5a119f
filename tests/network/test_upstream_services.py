"""`upstream/services.py` and `upstream/streams.py`: nothing a peer can make a task do ends the node."""

import json
import logging
import subprocess
import sys
from typing import Any

import pytest
import trio

from loremesh.network.upstream.services import running
from loremesh.network.upstream.streams import contain
from loremesh.testing.loopback import PATIENCE

from libp2p.tools.anyio_service import Service  # isort: skip

# Each attack runs stock py-libp2p in a process of its own, which is what dies. Prints how the victim fared.
STOCK_VICTIM = r"""
import json, logging, os, secrets, sys
import trio
from multiaddr import Multiaddr
from libp2p import new_host
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.network.config import ConnectionConfig
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service
from libp2p.utils import encode_varint_prefixed

logging.disable(logging.CRITICAL)
LISTEN = [Multiaddr("/ip4/127.0.0.1/tcp/0")]
QUIET = ConnectionConfig(min_connections=0, low_watermark=0)

async def raising(stream):
    raise RuntimeError("a handler that raises")

def validator(peer, message):
    raise RuntimeError("a validator that raises")

def signed(key_pair, **changes):
    fields = dict(data=b"x", topicIDs=["t"], from_id=ID.from_pubkey(key_pair.public_key).to_bytes(), seqno=bytes(8))
    message = rpc_pb2.Message(**{**fields, **changes})
    message.signature = key_pair.private_key.sign(b"libp2p-pubsub:" + message.SerializeToString())
    return message

def frame(message):
    return encode_varint_prefixed(rpc_pb2.RPC(publish=[message]).SerializeToString())

async def main(attack):
    victim_keys, attacker_keys = (create_new_key_pair(secrets.token_bytes(32)) for _ in range(2))
    victim = new_host(key_pair=victim_keys, listen_addrs=LISTEN, connection_config=QUIET)
    attacker = new_host(key_pair=attacker_keys, connection_config=QUIET)
    async with attacker.run(listen_addrs=[]), victim.run(listen_addrs=LISTEN):
        router = GossipSub([PROTOCOL_ID_V11], 6, 4, 12, heartbeat_interval=1)
        pubsub = Pubsub(victim, router, strict_signing=True)
        async with background_trio_service(pubsub), background_trio_service(router):
            await pubsub.wait_until_ready()
            await pubsub.subscribe("t")
            victim.set_stream_handler("/raising", raising)
            address = victim.get_addrs()[0]
            await attacker.get_network().dial_addr(address, victim.get_id())
            protocol = "/raising" if attack == "handler" else PROTOCOL_ID_V11
            stream = await attacker.new_stream(victim.get_id(), [protocol])
            if attack == "frame":
                await stream.write(b"\x05\xff\xff\xff\xff\xff")
            if attack == "key":
                bad = signed(attacker_keys, from_id=b"\x12\x20" + bytes(32))
                bad.key = b"\xff\xff\xff"
                await stream.write(frame(bad))
            if attack == "validator":
                pubsub.set_topic_validator("t", validator, False)
                await stream.write(frame(signed(attacker_keys)))
            await trio.sleep(30)
            print(json.dumps(["survived"]), flush=True)
            os._exit(0)

def leaves(error):
    inner = getattr(error, "exceptions", None)
    return [f"{type(error).__name__}: {error}"] if inner is None else [leaf for one in inner for leaf in leaves(one)]

try:
    trio.run(main, sys.argv[1])
except BaseException as error:
    print(json.dumps(leaves(error)), flush=True)
"""


@pytest.mark.parametrize(
    ("attack", "cause"),
    [
        ("frame", "DecodeError"),
        ("key", "DecodeError"),
        ("handler", "RuntimeError: a handler that raises"),
        ("validator", "RuntimeError: a validator that raises"),
    ],
)
def test_canary_stock_libp2p_still_dies_of_one_bad(attack: str, cause: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOCK_VICTIM, attack], capture_output=True, text=True, timeout=120, check=False
    )
    died_of = json.loads(done.stdout.splitlines()[-1])
    assert any(cause in leaf for leaf in died_of), (
        f"upstream survives a bad {attack} now ({died_of}): look whether upstream/services.py,"
        " upstream/streams.contain and upstream/pubsub.ContainedPubsub are still needed"
    )


class Flawed(Service):
    """A service with a task that fails at once and a daemon that fails on its first round."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds = 0
        self.came_back = trio.Event()

    async def run(self) -> None:
        self.manager.run_task(self.fail)
        self.manager.run_daemon_task(self.beat)
        await self.manager.wait_finished()

    async def fail(self) -> None:
        raise RuntimeError("a task that fails")

    async def beat(self) -> None:
        self.rounds += 1
        if self.rounds == 1:
            raise RuntimeError("a daemon that fails")
        self.came_back.set()
        await trio.sleep_forever()


async def test_a_task_that_fails_leaves_its_service_running_and_a_daemon_starts_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = Flawed()
    async with running(service):
        with trio.fail_after(PATIENCE), caplog.at_level(logging.ERROR, "loremesh.network"):
            await service.came_back.wait()
        assert service.manager.is_running
        service.manager.run_task(trio.sleep_forever)
    assert "a daemon that fails" in caplog.text
    service.manager.run_task(trio.sleep_forever)  # too late, and no harm


class FakeStream:
    """A stream that notes whether it was reset."""

    muxed_conn: Any = None

    def __init__(self) -> None:
        self.is_reset = False

    async def reset(self) -> None:
        await trio.lowlevel.checkpoint()
        self.is_reset = True


class FakeConnection:
    """Knows whose it is."""

    peer_id = "somebody"


async def test_a_handler_that_raises_loses_its_stream_and_nothing_else() -> None:
    async def handler(_: Any) -> None:
        raise RuntimeError("a handler that raises")

    stream = FakeStream()
    stream.muxed_conn = FakeConnection()
    await contain(handler)(stream)  # type: ignore[arg-type]  # as much of a stream as a handler's guard needs
    assert stream.is_reset


async def test_a_handler_that_is_cancelled_is_cancelled_and_its_stream_reset() -> None:
    async def handler(_: Any) -> None:
        await trio.sleep_forever()

    stream = FakeStream()
    with trio.move_on_after(0) as scope:
        await contain(handler)(stream)  # type: ignore[arg-type]  # as above
    assert scope.cancelled_caught
    assert stream.is_reset
