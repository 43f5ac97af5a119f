"""What the network tells services: one frozen type per happening, all in one stream."""

from dataclasses import dataclass, field

from loremesh.errors import Fault
from loremesh.primitives import PeerId


@dataclass(frozen=True, slots=True)
class PeerConnected:
    """A first connection to a peer is up, and gossip and lookups are usable on it.

    `address` is the multiaddr we dialled, or for an inbound connection the one it came from (not one to dial).
    """

    peer_id: PeerId
    address: str
    inbound: bool


@dataclass(frozen=True, slots=True)
class PeerDisconnected:
    """The last connection to a peer is gone. Follows its `PeerConnected`, always."""

    peer_id: PeerId


@dataclass(frozen=True, slots=True)
class GossipReceived:
    """A message of a subscribed topic, signed by `signer`, accepted by the topic's check; never one of our own."""

    topic: str
    data: bytes
    signer: PeerId
    forwarder: PeerId
    value: object = field(default=None, compare=False)
    """What the check has made of `data`: nothing is decoded twice."""


@dataclass(frozen=True, slots=True)
class GossipRefused:
    """A message that was neither delivered nor relayed. `forwarder` handed it to us and could have known better.

    `signer` is as claimed when the fault is BAD_SIGNATURE, and the forwarder when the claim was unreadable.
    """

    topic: str
    fault: Fault
    signer: PeerId
    forwarder: PeerId


@dataclass(frozen=True, slots=True)
class CallServed:
    """A stream opened by `peer_id` ended; `fault` says which rule the peer broke on it, if it broke one."""

    protocol: str
    peer_id: PeerId
    fault: Fault | None


@dataclass(frozen=True, slots=True)
class ProviderRecord:
    """Who says it provides a key, and where: multiaddrs ending in /p2p/<peer id>. Hearsay: dial to find out."""

    peer_id: PeerId
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProvidersFound:
    """A lookup ended."""

    key: str
    providers: tuple[ProviderRecord, ...]


@dataclass(frozen=True, slots=True)
class PeerNearby:
    """Somebody on the local network says that this peer is there, and where. Hearsay: dial to find out."""

    peer_id: PeerId
    addresses: tuple[str, ...]


NetworkEvent = (
    PeerConnected | PeerDisconnected | GossipReceived | GossipRefused | CallServed | ProvidersFound | PeerNearby
)
