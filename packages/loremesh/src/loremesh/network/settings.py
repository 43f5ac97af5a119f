"""What a node's network is told: where to listen and how much to allow."""

from dataclasses import dataclass

from loremesh.primitives import MIB


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """Everything about the network that an operator or a test may set. Times are in seconds.

    Attributes:
        listen_addresses: Multiaddrs to listen on; port 0 lets the machine choose; `/ws` after the port means WebSocket,
            `/quic-v1` after a UDP port QUIC; `…/p2p/<relay>/p2p-circuit` means to be reachable through that relay;
            none: dial only.
        announce_addresses: Multiaddrs told to others instead of the ones listened on (behind NAT).
        relay: Pass bytes on between peers that cannot reach each other.
        mdns: Look for peers on the local network, and be found there.
        dht_server: Answer other nodes' Kademlia lookups and keep provider records.
        max_connections: Open connections, both directions together; an eighth is kept for those this node dials.
        max_connections_per_address: Inbound connections from one remote IP address.
        max_connections_per_loopback_address: The same for this machine, where many nodes share one address.
        max_pending: Inbound handshakes under way at once, a quarter of them with one remote IP address; more wait their
            turn within `handshake_timeout`.
        max_waiting: Sockets that wait for their turn, half of them of one remote IP address; more are closed at once.
        newcomers_per_second: Handshakes begun with one remote IP address, in the long run.
        newcomers_at_once: Handshakes begun with it without a pause when there was none for a while; whoever comes while
            as many connections from it are open is read last for its first seconds.
        max_streams_per_connection: Streams that the other side may hold open.
        max_frame: Bytes of one frame of a call, and of one gossip message with its envelope.
        handshake_timeout: From accepting or dialling to a usable connection.
        heartbeat_interval: Between two rounds of gossip upkeep.
        event_buffer: Events that may wait for the reader before gossip is dropped.
    """

    listen_addresses: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    announce_addresses: tuple[str, ...] = ()
    relay: bool = False
    mdns: bool = False
    dht_server: bool = True
    max_connections: int = 128
    max_connections_per_address: int = 16
    max_connections_per_loopback_address: int = 128
    max_pending: int = 16
    max_waiting: int = 128
    newcomers_per_second: float = 20.0
    newcomers_at_once: int = 4
    max_streams_per_connection: int = 64
    max_frame: int = MIB
    handshake_timeout: float = 5.0
    heartbeat_interval: float = 1.0
    event_buffer: int = 4096

    @property
    def max_inbound(self) -> int:
        """Most inbound connections: however many strangers come, this node can still go and meet others."""
        return self.max_connections - self.max_connections // 8
