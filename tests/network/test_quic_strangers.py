"""QUIC at whose other end somebody does not keep to the rules: refused without harm."""

import random
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import trio

from loremesh.errors import Unreachable
from loremesh.network.behaviour import Behaviour
from loremesh.network.frames import Stream
from loremesh.network.quic.connection import QuicMuxed, Terms
from loremesh.network.quic.credit import CreditedConnection
from loremesh.network.quic.dialling import dialled
from loremesh.network.quic.listener import QuicListener
from loremesh.network.quic.proof import Credentials, peer_of
from loremesh.network.quic.sockets import DatagramSocket
from loremesh.network.settings import NetworkSettings
from loremesh.network.udp import bound, connected
from loremesh.primitives import MIB
from loremesh.testing.loopback import PATIENCE

# After our own, which sets what upstream reads when it is imported.
from aioquic.quic.configuration import QuicConfiguration  # isort: skip
from aioquic.quic.packet import QuicPacketType, QuicProtocolVersion, pull_quic_header  # isort: skip
from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # isort: skip  # imported there for others
from cryptography.hazmat.primitives import hashes  # isort: skip
from cryptography.hazmat.primitives.asymmetric import ec  # isort: skip
from libp2p.crypto.ed25519 import create_new_key_pair as new_ed25519_key_pair  # isort: skip
from libp2p.crypto.secp256k1 import create_new_key_pair  # isort: skip
from libp2p.peer.id import ID  # isort: skip
from libp2p.security.tls.certificate import add_libp2p_extension, create_cert_template  # isort: skip
from libp2p.transport.exceptions import SecurityUpgradeFailure  # isort: skip
from libp2p.transport.quic.security import PeerAuthenticator  # isort: skip

StartNode = Callable[..., Awaitable[Behaviour]]
ANYWHERE = ("/ip4/127.0.0.1/udp/0/quic-v1",)
QUIC = NetworkSettings(listen_addresses=ANYWHERE)
DIAL_ONLY = NetworkSettings(listen_addresses=(), handshake_timeout=PATIENCE)
SMALLEST = 1200


def port_of(node: Behaviour) -> int:
    return int(node.addresses()[0].split("/")[4])


def terms_of(credentials: Credentials) -> Terms:
    return Terms(credentials, lambda chain, _: peer_of(chain), 8)


def honest() -> Credentials:
    return Credentials.new(create_new_key_pair(secrets.token_bytes(32)))


def of_another_kind() -> Credentials:
    return Credentials.new(new_ed25519_key_pair())


def without_proof() -> Credentials:
    key = ec.generate_private_key(ec.SECP256R1())
    return Credentials(create_cert_template().public_key(key.public_key()).sign(key, hashes.SHA256()), key)


def with_the_proof_of_somebody_else() -> Credentials:
    """Show what a peer once proved for another TLS key."""
    somebody = create_new_key_pair(secrets.token_bytes(32))
    signature = somebody.private_key.sign(b"libp2p-tls-handshake:" + b"another key")
    key = ec.generate_private_key(ec.SECP256R1())
    template = add_libp2p_extension(create_cert_template(), somebody.public_key, signature)
    return Credentials(template.public_key(key.public_key()).sign(key, hashes.SHA256()), key)


def with_a_key_it_does_not_have() -> Credentials:
    return replace(honest(), key=ec.generate_private_key(ec.SECP256R1()))


class WithoutCertificate(Terms):
    """Terms of who shows none."""

    def configuration(self, *, is_client: bool) -> QuicConfiguration:
        """Write them as aioquic has them."""
        configuration = super().configuration(is_client=is_client)
        configuration.certificate = configuration.private_key = None
        return configuration


async def is_alive(start_node: StartNode, node: Behaviour) -> None:
    client = await start_node(DIAL_ONLY)
    assert await client.connect(node.addresses()[0], PATIENCE) == node.peer_id
    await client.ping(node.peer_id, PATIENCE)


@pytest.mark.parametrize(
    "show", [of_another_kind, without_proof, with_the_proof_of_somebody_else, with_a_key_it_does_not_have]
)
async def test_who_dials_with_a_false_proof_is_refused_and_the_node_lives(
    start_node: StartNode, nursery: trio.Nursery, show: Callable[[], Credentials]
) -> None:
    node = await start_node(QUIC)
    with trio.fail_after(PATIENCE), pytest.raises(SecurityUpgradeFailure):
        async with dialled("127.0.0.1", port_of(node), None, terms_of(show()), nursery.start_soon):
            pass
    assert node.connected() == ()
    await is_alive(start_node, node)


async def test_who_dials_without_a_certificate_is_refused_and_the_node_lives(
    start_node: StartNode, nursery: trio.Nursery
) -> None:
    node = await start_node(QUIC)
    terms = WithoutCertificate(honest(), lambda chain, _: peer_of(chain), 8)
    with trio.fail_after(PATIENCE), pytest.raises(SecurityUpgradeFailure):
        async with dialled("127.0.0.1", port_of(node), None, terms, nursery.start_soon):
            pass
    await is_alive(start_node, node)


async def test_canary_stock_quic_still_believes_the_proof_of_somebody_else() -> None:
    false = with_the_proof_of_somebody_else().certificate
    assert isinstance(PeerAuthenticator().verify_peer_certificate(false), ID), (
        "upstream checks it now: see docs/adr/0004-quic.md"
    )
    with pytest.raises(SecurityUpgradeFailure):
        peer_of([false])


class OpenDoor:
    """Lets everybody in."""

    def may_enter(self, _address: str) -> bool:
        return True

    def is_crowded(self) -> bool:
        return False

    async def take_turn(self, _connection: QuicMuxed) -> bool:
        return True

    async def serve_quic(self, connection: QuicMuxed) -> None:
        await connection.run()


@pytest.mark.parametrize(
    ("show", "why"),
    [
        (of_another_kind, "another kind"),
        (without_proof, "no proof"),
        (with_the_proof_of_somebody_else, "no proof"),
        (with_a_key_it_does_not_have, "handshake"),
    ],
)
async def test_who_answers_with_a_false_proof_is_unreachable(
    start_node: StartNode, nursery: trio.Nursery, show: Callable[[], Credentials], why: str
) -> None:
    node = await start_node(QUIC)
    [socket] = await bound("127.0.0.1", 0)
    listener = QuicListener(socket, terms_of(show()))
    nursery.start_soon(listener.serve, OpenDoor(), nursery)
    with pytest.raises(Unreachable, match=why):
        await node.connect(str(listener.endpoint), PATIENCE)
    assert node.connected() == ()


def first_packet(terms: Terms) -> bytes:
    quic = CreditedConnection(terms.configuration(is_client=True), 8)
    quic.connect(("127.0.0.1", 1), 0.0)
    return quic.datagrams_to_send(0.0)[0][0]


def junk(seed: int) -> list[bytes]:
    luck = random.Random(seed)
    real = first_packet(terms_of(honest()))
    cut = bytearray(real)
    for _ in range(40):
        cut[luck.randrange(len(cut))] ^= 1 << luck.randrange(8)
    long = bytes([0xC0 | luck.randrange(64)]) + (1).to_bytes(4, "big") + bytes([8]) + luck.randbytes(SMALLEST)
    return [
        b"",
        b"\x40",
        luck.randbytes(luck.randrange(2000)),
        bytes([0x40]) + luck.randbytes(SMALLEST),
        long,
        bytes(cut),
        real[: luck.randrange(len(real))],
        real[:30] + luck.randbytes(SMALLEST),
    ]


@pytest.mark.parametrize("seed", range(4))
async def test_datagrams_of_anything_are_let_go_and_the_node_lives(start_node: StartNode, seed: int) -> None:
    node = await start_node(QUIC)
    stranger = await connected("127.0.0.1", port_of(node))
    with stranger:
        for round_ in range(8):
            for datagram in junk(8 * seed + round_):
                await stranger.send(datagram)
    await is_alive(start_node, node)


async def test_another_version_is_answered_with_ours_and_only_to_who_has_sent_enough(start_node: StartNode) -> None:
    node = await start_node(QUIC)
    stranger = await connected("127.0.0.1", port_of(node))
    of_another = b"\xc0" + b"\x1a\x2a\x3a\x4a" + b"\x08" + bytes(8) + b"\x08"
    with stranger, trio.fail_after(PATIENCE):
        await stranger.send(of_another + b"too few." + bytes(SMALLEST // 2))
        await stranger.send(of_another + b"enough.." + bytes(SMALLEST))
        answer = pull_quic_header(Buffer(data=await stranger.recv(2048)))
    assert answer.packet_type is QuicPacketType.VERSION_NEGOTIATION
    assert answer.destination_cid == b"enough.."
    assert answer.supported_versions == [QuicProtocolVersion.VERSION_1]


async def test_handshakes_that_stall_end_after_their_time_and_let_others_in(start_node: StartNode) -> None:
    node = await start_node(replace(QUIC, max_pending=1, handshake_timeout=4))
    stranger = await connected("127.0.0.1", port_of(node))
    with stranger, trio.fail_after(PATIENCE):
        await stranger.send(first_packet(terms_of(honest())))
        await stranger.recv(2048)  # the node waits for what never comes
        await is_alive(start_node, node)


async def test_when_half_of_the_turns_are_taken_a_dialler_shows_that_its_address_is_its_own(
    start_node: StartNode,
) -> None:
    node = await start_node(replace(QUIC, max_pending=2, handshake_timeout=PATIENCE))
    strangers = [await connected_from_elsewhere(port_of(node)) for _ in range(2)]
    answers = []
    with trio.fail_after(PATIENCE):
        for stranger in strangers:
            await stranger.send(first_packet(terms_of(honest())))
            answers.append(pull_quic_header(Buffer(data=await stranger.recv(2048)), host_cid_length=8))
    assert [answer.packet_type for answer in answers] == [QuicPacketType.INITIAL, QuicPacketType.RETRY]
    with trio.fail_after(PATIENCE / 2):
        await is_alive(start_node, node)  # by way of a Retry: the first one's turn is still taken
    false_token = _with_token(first_packet(terms_of(honest())))
    await strangers[1].send(false_token)
    with trio.fail_after(PATIENCE):
        answer = pull_quic_header(Buffer(data=await strangers[1].recv(2048)), host_cid_length=8)
    assert answer.packet_type is QuicPacketType.INITIAL  # a refusal
    for stranger in strangers:
        stranger.close()


async def connected_from_elsewhere(port: int) -> trio.socket.SocketType:
    """Of one address only so many take a turn, so these strangers have another than the one who dials honestly."""
    socket = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    await socket.bind(("127.0.0.2", 0))
    await socket.connect(("127.0.0.1", port))
    return socket


def _with_token(packet: bytes) -> bytes:
    """Put a token into an Initial packet where it has an empty one."""
    header = pull_quic_header(Buffer(data=packet), host_cid_length=8)
    place = 7 + len(header.destination_cid) + len(header.source_cid)
    assert packet[place] == 0
    return packet[:place] + b"\x08" + bytes(8) + packet[place + 1 :]


async def test_a_refused_dial_costs_no_more_than_its_answer(start_node: StartNode, nursery: trio.Nursery) -> None:
    node = await start_node(replace(QUIC, max_connections_per_loopback_address=0))
    with trio.fail_after(PATIENCE), pytest.raises(SecurityUpgradeFailure, match="code 2"):
        async with dialled("127.0.0.1", port_of(node), None, terms_of(honest()), nursery.start_soon):
            pass


class Impudent(CreditedConnection):
    """Sends whatever it likes, whatever it was allowed."""

    def allow_itself(self, stream_id: int) -> None:
        self._remote_max_data = self._remote_max_streams_bidi = 2**40
        self._streams[stream_id].max_stream_data_remote = 2**40


async def dial_impudently(node: Behaviour, nursery: trio.Nursery) -> tuple[QuicMuxed, Impudent]:
    terms = terms_of(honest())
    remote = ("127.0.0.1", port_of(node))
    socket = DatagramSocket(await connected(*remote), remote)
    quic = Impudent(terms.configuration(is_client=True), 8)
    connection = QuicMuxed(quic, terms, socket, remote)
    connection.begin()
    nursery.start_soon(socket.run, connection.receive, connection.on_refusal)
    nursery.start_soon(connection.run)
    with trio.fail_after(PATIENCE):
        await connection.wait_ready()
    return connection, quic


async def test_who_sends_more_than_it_may_loses_its_connection(start_node: StartNode, nursery: trio.Nursery) -> None:
    async def never_read(_stream: Stream) -> None:
        await trio.sleep_forever()

    node = await start_node(QUIC)
    node.serve("/loremesh/hold/1", never_read)
    connection, quic = await dial_impudently(node, nursery)
    stream = await connection.open_stream()
    quic.allow_itself(stream.stream_id)
    quic.send_stream_data(stream.stream_id, b"\x13/multistream/1.0.0\n\x11/loremesh/hold/1\n" + bytes(MIB))
    connection.wake()
    with trio.fail_after(PATIENCE):
        await connection.event_closed.wait()
    await is_alive(start_node, node)


async def test_who_opens_more_streams_than_it_may_loses_its_connection(
    start_node: StartNode, nursery: trio.Nursery
) -> None:
    node = await start_node(replace(QUIC, max_streams_per_connection=4))
    connection, quic = await dial_impudently(node, nursery)
    held: list[Any] = []
    with trio.fail_after(PATIENCE):
        held.append(await connection.open_stream())
        quic.allow_itself(held[0].stream_id)
        for _ in range(4):
            held.append(await connection.open_stream())
            await held[-1].write(b"?")
        await connection.event_closed.wait()
    await is_alive(start_node, node)


async def test_streams_that_come_and_go_without_end_leave_nothing(start_node: StartNode, nursery: trio.Nursery) -> None:
    node = await start_node(replace(QUIC, max_streams_per_connection=8))
    connection, quic = await dial_impudently(node, nursery)
    with trio.fail_after(PATIENCE):
        for _ in range(200):
            stream = await connection.open_stream()
            await stream.write(b"\x13/multi")
            await stream.reset()
        while any(one % 4 == 0 for one in quic._streams):  # noqa: ASYNC110 - ours; no event tells of the last one
            await trio.sleep(0.05)
        [far] = node._swarm.get_connections()
        assert isinstance(far.muxed_conn, QuicMuxed)
        assert not [one for one in far.muxed_conn._streams if one % 4 == 0]
    assert not connection.is_over
    await is_alive(start_node, node)
