"""What is kept of peers that are gone: `libp2p.peer.peerstore.PeerStore`.

Symptoms: whoever was ever connected is kept until the node ends; over 1,000 peers, those go first that told no address,
among them the node itself, whose own key is kept there too, and clients in the middle of a call; what a peer told
expires, and is kept all the same.
"""

from collections.abc import Callable
from typing import Final

from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore

_GONE: Final = 512
"""As many as the table of peers has places for."""


class BoundedPeerStore(PeerStore):
    """Keeps this node, whoever is connected, and of the others those that were here last and can be dialled.

    Args:
        me: This node.
        is_connected: Tells whether there is a connection to a peer.
        most_gone: How many of the others.
    """

    def __init__(self, me: ID, is_connected: Callable[[ID], bool], most_gone: int = _GONE) -> None:
        super().__init__(max_peers=most_gone)
        self._me = me
        self._is_connected = is_connected

    def on_gone(self, peer_id: ID) -> None:
        """Take in that the last connection to a peer is closed; nothing is kept of one that nobody can dial."""
        data = self.peer_data_map.pop(peer_id, None)
        if data is not None and data.get_addrs():
            self.peer_data_map[peer_id] = data  # the newest of those that are gone
            self._enforce_peer_limit()
        else:
            self.peer_record_map.pop(peer_id, None)

    def _enforce_peer_limit(self) -> None:
        """Let the oldest go; upstream asks this only when addresses are added."""
        gone = [one for one in self.peer_data_map if one != self._me and not self._is_connected(one)]
        for peer_id in gone[: max(0, len(gone) - self.max_peers)]:
            self.clear_peerdata(peer_id)
