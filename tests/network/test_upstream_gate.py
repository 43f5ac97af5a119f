"""`upstream/gate.py`: noise and secp256k1 peers, nothing and nobody else."""

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from loremesh.network.behaviour import Behaviour
from loremesh.network.events import PeerConnected
from loremesh.network.upstream.gate import OnceSignedNoise
from loremesh.testing.loopback import ECHO, PATIENCE, echo, wait_event

from libp2p import new_host  # isort: skip
from libp2p.crypto.ed25519 import create_new_key_pair as new_ed25519_key_pair  # isort: skip
from libp2p.crypto.keys import KeyPair, KeyType, PrivateKey, PublicKey  # isort: skip
from libp2p.crypto.secp256k1 import create_new_key_pair  # isort: skip
from libp2p.crypto.x25519 import create_new_key_pair as new_x25519_key_pair  # isort: skip
from libp2p.peer.id import ID  # isort: skip
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport  # isort: skip
from libp2p.security.noise.patterns import PatternXX  # isort: skip
from libp2p.security.noise.transport import Transport  # isort: skip
from multiaddr import Multiaddr  # isort: skip

StartNode = Callable[..., Awaitable[Behaviour]]
StartStock = Callable[..., Awaitable[Any]]


class CountingKey(PrivateKey):
    """A key that counts its signatures."""

    def __init__(self, key: PrivateKey) -> None:
        self._key = key
        self.signatures = 0

    def to_bytes(self) -> bytes:
        return self._key.to_bytes()

    def get_type(self) -> KeyType:
        return self._key.get_type()

    def sign(self, data: bytes) -> bytes:
        self.signatures += 1
        return self._key.sign(data)

    def get_public_key(self) -> PublicKey:
        return self._key.get_public_key()


def new_stock_noise(key_pair: KeyPair) -> Transport:
    return Transport(key_pair, new_x25519_key_pair().private_key)


class EcdsaPublicKey(PublicKey):
    """A P-256 key as other implementations send it: DER, as the peer-id specification asks."""

    def __init__(self, key: ec.EllipticCurvePublicKey) -> None:
        self._key = key

    def to_bytes(self) -> bytes:
        return self._key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

    def get_type(self) -> KeyType:
        return KeyType.ECDSA

    def verify(self, data: bytes, signature: bytes) -> bool:
        self._key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        return True


class EcdsaPrivateKey(PrivateKey):
    """Its private half."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())

    def to_bytes(self) -> bytes:
        return b""

    def get_type(self) -> KeyType:
        return KeyType.ECDSA

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data, ec.ECDSA(hashes.SHA256()))

    def get_public_key(self) -> PublicKey:
        return EcdsaPublicKey(self._key.public_key())


def new_ecdsa_key_pair() -> KeyPair:
    private = EcdsaPrivateKey()
    return KeyPair(private, private.get_public_key())


async def try_to_use(stranger: Any, node: Behaviour) -> bytes:
    connection = await stranger.get_network().dial_addr(Multiaddr(node.addresses()[0]), ID(node.peer_id))
    with trio.fail_after(PATIENCE):
        await connection.muxed_conn.event_closed.wait()
        stream = await stranger.new_stream(ID(node.peer_id), [ECHO])
        await stream.write(b"\x00\x00\x00\x01x")
        return bytes(await stream.read(5))


@pytest.mark.parametrize("new_keys", [new_ed25519_key_pair, new_ecdsa_key_pair], ids=["Ed25519", "ECDSA"])
async def test_a_peer_with_another_kind_of_key_is_turned_away_and_does_no_harm(
    start_node: StartNode, start_stock: StartStock, new_keys: Callable[[], KeyPair]
) -> None:
    node, other = await start_node(), await start_node()
    node.serve(ECHO, echo)
    stranger = await start_stock(new_keys())
    with pytest.raises(Exception):  # noqa: B017, PT011 - stock code has many names for it
        await try_to_use(stranger, node)
    assert node.connected() == ()
    await other.connect(node.addresses()[0], PATIENCE)
    assert await other.call(node.peer_id, ECHO, b"served", PATIENCE) == b"served"


async def test_who_offers_only_plaintext_is_turned_away(start_node: StartNode, start_stock: StartStock) -> None:
    node = await start_node()
    keys = create_new_key_pair(secrets.token_bytes(32))
    stranger = await start_stock(keys, sec_opt={PLAINTEXT_PROTOCOL_ID: InsecureTransport(keys)})
    with pytest.raises(Exception, match="upgrade security"):
        await stranger.get_network().dial_addr(Multiaddr(node.addresses()[0]), ID(node.peer_id))
    assert node.connected() == ()


async def test_a_connection_is_secured_with_noise(start_node: StartNode) -> None:
    node, other = await start_node(), await start_node()
    await node.connect(other.addresses()[0], PATIENCE)
    for end in (node, other):
        await wait_event(end, PeerConnected)
        (connection,) = end._swarm.get_connections()
        assert vars(connection)["_negotiated_security_protocol"] == "/noise"


def test_canary_the_stock_host_still_offers_plaintext() -> None:
    host = new_host(key_pair=create_new_key_pair(secrets.token_bytes(32)))
    offered = vars(host.get_network())["upgrader"].security_multistream.transports
    assert PLAINTEXT_PROTOCOL_ID in offered, "upstream's default is secure now: upstream/gate.py may offer its default"


@pytest.mark.parametrize(("noise", "signatures"), [(OnceSignedNoise, 1), (new_stock_noise, 3)])
def test_the_static_key_is_signed_once_and_not_in_every_handshake(
    noise: Callable[[KeyPair], Transport], signatures: int
) -> None:
    pair = create_new_key_pair(secrets.token_bytes(32))
    key = CountingKey(pair.private_key)
    transport = noise(KeyPair(key, pair.public_key))
    payloads = {_payload_of(transport) for _ in range(3)}
    assert len(payloads) == 1
    assert key.signatures == signatures


def _payload_of(noise: Transport) -> bytes:
    pattern = noise.get_pattern()
    assert isinstance(pattern, PatternXX)
    return pattern.make_handshake_payload().serialize()
