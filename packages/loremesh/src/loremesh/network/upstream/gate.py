"""Who may connect: `libp2p.transport.upgrader.TransportUpgrader.upgrade_security`.

Symptoms: the default host accepts plaintext and secio, so anyone can claim to be anyone; any kind of key is a peer,
although only a secp256k1 id gives an EVM address; there is no say in who connects; a dial must know the peer id
beforehand although the handshake would tell; and every handshake derives and signs the same static key again.

Here noise is all that is offered, and a remote is admitted right after it has proved its key. QUIC has a proof of its
own; who gives that is admitted by the same rule.
"""

from collections.abc import Callable
from weakref import WeakSet

from libp2p.abc import IRawConnection, ISecureConn
from libp2p.crypto.keys import KeyPair, PrivateKey
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as new_x25519_key_pair
from libp2p.peer.id import ID
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.noise.messages import NoiseExtensions, NoiseHandshakePayload
from libp2p.security.noise.patterns import (  # type: ignore[attr-defined]  # NoiseState is an import of upstream's
    IPattern,
    NoiseState,
    PatternXX,
)
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.transport.exceptions import SecurityUpgradeFailure
from libp2p.transport.upgrader import TransportUpgrader

from loremesh.errors import InvalidMessage
from loremesh.network.muxed import Muxed
from loremesh.network.quic.connection import Terms
from loremesh.network.quic.proof import Chain, Credentials, peer_of
from loremesh.network.upstream.muxing import PROTOCOL as YAMUX
from loremesh.network.upstream.muxing import BoundedMuxers, BoundedYamux
from loremesh.network.upstream.negotiating import EagerClient
from loremesh.primitives import PeerId
from loremesh.protocol.identity import check_peer_id


class OnceSignedNoise(Noise):
    """Noise whose one static key is derived and signed once, not in every handshake."""

    def __init__(self, key_pair: KeyPair) -> None:
        super().__init__(key_pair, noise_privkey=new_x25519_key_pair().private_key)
        self._pattern = _OnceSigned(self.local_peer, self.libp2p_privkey, self.noise_privkey)

    def get_pattern(self) -> IPattern:
        """Give the handshake, which keeps nothing of a connection."""
        return self._pattern


class _OnceSigned(PatternXX):
    def __init__(self, local_peer: ID, libp2p_privkey: PrivateKey, noise_static_key: PrivateKey) -> None:
        super().__init__(local_peer, libp2p_privkey, noise_static_key)
        self._payload = super().make_handshake_payload()
        self._static = super().create_noise_state().noise_protocol.keypairs["s"]

    def create_noise_state(self, prologue: bytes | None = None) -> NoiseState:  # noqa: ARG002 - upstream's; there is none
        state = NoiseState.from_name(self.protocol_name)
        state.noise_protocol.keypairs["s"] = self._static
        return state

    def make_handshake_payload(self, extensions: NoiseExtensions | None = None) -> NoiseHandshakePayload:  # noqa: ARG002 - upstream's; there are none
        return self._payload


class Gate(TransportUpgrader):
    """Noise and nothing but noise, yamux and nothing but yamux, or QUIC, and only peers that `is_welcome` lets in."""

    def __init__(
        self, secret: bytes, is_welcome: Callable[[PeerId], bool], *, max_streams: int, timeout: float
    ) -> None:
        key_pair = create_new_key_pair(secret)
        all_of_node = WeakSet[Muxed]()
        super().__init__({NOISE: OnceSignedNoise(key_pair)}, {YAMUX: BoundedYamux})
        self.security_multistream._selector.multiselect_client = EagerClient()  # noqa: SLF001 - upstream has no other way
        self.muxer_multistream = BoundedMuxers(max_streams, timeout, all_of_node)
        self.quic = Terms(Credentials.new(key_pair), self.prove, max_streams, all_of_node)
        self._is_welcome = is_welcome

    async def upgrade_security(
        self,
        raw_conn: IRawConnection,
        is_initiator: bool,  # noqa: FBT001 - upstream's
        peer_id: ID | None = None,
    ) -> ISecureConn:
        """Prove both keys to each other and admit the remote.

        Raises:
            SecurityUpgradeFailure: No noise, a false proof, another peer than `peer_id`, or one that is not welcome.
        """
        if is_initiator and peer_id is None:
            try:
                secured = await self.security_multistream.secure_outbound(raw_conn, None)  # type: ignore[arg-type]  # noise takes None
            except HandshakeFailure as error:
                raise SecurityUpgradeFailure("handshake failed") from error
        else:
            secured = await super().upgrade_security(raw_conn, is_initiator, peer_id)
        try:
            self._admit(secured.get_remote_peer())
        except SecurityUpgradeFailure:
            await secured.close()
            raise
        return secured

    def prove(self, chain: Chain, expected: ID | None) -> ID:
        """Tell who shows a chain of certificates, and admit the remote.

        Raises:
            SecurityUpgradeFailure: A false proof, another peer than `expected`, or one that is not welcome.
        """
        remote = peer_of(chain)
        if expected is not None and remote != expected:
            raise SecurityUpgradeFailure(f"{remote} answers there")
        self._admit(remote)
        return remote

    def _admit(self, peer_id: ID) -> None:
        try:
            remote = check_peer_id(peer_id.to_bytes())
        except InvalidMessage as error:
            raise SecurityUpgradeFailure(f"a peer of another kind: {error}") from error
        if not self._is_welcome(remote):
            raise SecurityUpgradeFailure("a peer that is not welcome here")
