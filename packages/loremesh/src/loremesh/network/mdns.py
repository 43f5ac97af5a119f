"""Finding peers on the local network, in place of `libp2p.discovery.mdns`.

Symptoms of the stock one: it dials whatever answers, by itself; its records are not those of libp2p's specification,
so other implementations do not understand it; it runs an event loop of its own in a thread.

Whoever is on the local network may claim anything here: what is found is hearsay, to be dialled and proved.

IPv4 only, as far as asking goes; the addresses found may be of any kind. Multicast of IPv6 goes by interface, and is
not to be had on a loopback one: docs/protocol/network.md, "Neighbours".

Source: libp2p's mdns discovery specification; RFC 6762.
"""

import logging
import secrets
import socket
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

import dns.exception
import dns.flags
import dns.message
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import trio

from loremesh.errors import MachineError, UsageError
from loremesh.network.addresses import Endpoint
from loremesh.primitives import PeerId

_log = logging.getLogger("loremesh.network")
_GROUP: Final = "224.0.0.251"
_PORT: Final = 5353
_SERVICE: Final = "_p2p._udp.local."
_MARK: Final = b"dnsaddr="
_LONGEST: Final = 9000
_TEXT: Final = 255
_TTL: Final = 120
_ANSWERS_APART: Final = 1.0
_QUERIES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
_TOLD_AGAIN: Final = 60.0
_REMEMBERED: Final = 256
_ADDRESSES: Final = 8


class Mdns:
    """Asks who is here, answers whoever asks, and tells of each peer once a minute at most.

    Args:
        own: Gives the addresses to answer with, each ending in /p2p/<peer id>.
        found: Hears of a peer and where it says it is.
    """

    def __init__(self, own: Callable[[], tuple[str, ...]], found: Callable[[PeerId, tuple[str, ...]], None]) -> None:
        self._own = own
        self._found = found
        self._name = f"{secrets.token_hex(20)}.{_SERVICE}"
        self._told = OrderedDict[PeerId, float]()
        self._answered = -_ANSWERS_APART
        self._listener = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._hosts: list[str] = []

    async def open(self, hosts: Iterable[str]) -> None:
        """Join the group on the interfaces that have these IPv4 addresses.

        Raises:
            MachineError: Multicast is not to be had here.
        """
        try:
            self._hosts = await _join(self._listener, hosts)
        except BaseException:
            self._listener.close()
            raise

    async def run(self) -> None:
        """Ask, answer and tell until cancelled; then the socket is closed."""
        with self._listener:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ask)
                nursery.start_soon(self._listen)

    async def _ask(self) -> None:
        query = dns.message.make_query(_SERVICE, dns.rdatatype.PTR, flags=0, id=0).to_wire()
        for pause in _QUERIES:
            await _send(query, self._hosts)
            await trio.sleep(pause)
        while True:
            await _send(query, self._hosts)
            await trio.sleep(_QUERIES[-1])

    async def _listen(self) -> None:
        while True:
            data, _ = await self._listener.recvfrom(_LONGEST)
            try:
                message = dns.message.from_wire(data, ignore_trailing=True)
            except (dns.exception.DNSException, ValueError) as error:  # ValueError: what dnspython itself trips over
                _log.debug("not a DNS message: %r", error)
                continue
            if message.flags & dns.flags.QR:
                self._hear(message)
            elif any(one.name.to_text() == _SERVICE for one in message.question):
                await self._answer()

    async def _answer(self) -> None:
        now = trio.current_time()
        if now - self._answered < _ANSWERS_APART:
            return
        self._answered = now
        await _send(self._answer_message(), self._hosts)

    def _answer_message(self) -> bytes:
        answer = dns.message.Message(id=0)
        answer.flags = dns.flags.QR | dns.flags.AA
        answer.answer = [dns.rrset.from_text(_SERVICE, _TTL, dns.rdataclass.IN, dns.rdatatype.PTR, self._name)]
        texts = [f"dnsaddr={address}" for address in self._own()]
        quoted = [f'"{text}"' for text in texts if len(text) <= _TEXT][:_ADDRESSES]
        if quoted:
            text = " ".join(quoted)
            answer.additional = [dns.rrset.from_text(self._name, _TTL, dns.rdataclass.IN, dns.rdatatype.TXT, text)]
        return answer.to_wire()

    def _hear(self, message: dns.message.Message) -> None:
        places: dict[PeerId, list[str]] = {}
        for rrset in [*message.answer, *message.additional]:
            if rrset.rdtype == dns.rdatatype.TXT and rrset.name.to_text().endswith("." + _SERVICE):
                for endpoint in _endpoints(text for record in rrset for text in record.strings):
                    assert endpoint.peer_id is not None  # noqa: S101 - for the type checker: `_endpoints` sees to it
                    places.setdefault(endpoint.peer_id, []).append(str(endpoint))
        for peer_id, addresses in places.items():
            if self._is_news(peer_id):
                self._found(peer_id, tuple(addresses[:_ADDRESSES]))

    def _is_news(self, peer_id: PeerId) -> bool:
        now = trio.current_time()
        if now - self._told.get(peer_id, -_TOLD_AGAIN) < _TOLD_AGAIN:
            return False
        self._told[peer_id] = now
        self._told.move_to_end(peer_id)
        while len(self._told) > _REMEMBERED:
            self._told.popitem(last=False)
        return True


def _endpoints(texts: Iterable[bytes]) -> list[Endpoint]:
    found = []
    for text in texts:
        if text.startswith(_MARK):
            try:
                endpoint = Endpoint.from_str(text.removeprefix(_MARK).decode("ascii", errors="replace"))
            except UsageError:
                continue
            if endpoint.peer_id is not None and endpoint.relay is None and endpoint.port and not endpoint.is_wildcard:
                found.append(endpoint)
    return found


async def _join(listener: trio.socket.SocketType, hosts: Iterable[str]) -> list[str]:
    """Listen to the group on the interface of each host; give the hosts for which that worked."""
    joined = []
    try:
        # Shared by all on this machine that speak mDNS; each gets every message.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        await listener.bind((_GROUP, _PORT))
    except OSError as error:
        raise MachineError(f"cannot listen for mDNS at UDP port {_PORT}: {error.strerror or error}") from error
    for host in dict.fromkeys(hosts):
        membership = socket.inet_aton(_GROUP) + socket.inet_aton(host)
        try:
            listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        except OSError as error:
            _log.info("no mDNS on the interface of %s: %s", host, error)
        else:
            joined.append(host)
    if not joined:
        raise MachineError("cannot listen for mDNS: no interface of this machine takes part in multicast")
    return joined


async def _send(data: bytes, hosts: Iterable[str]) -> None:
    for host in hosts:
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            try:
                sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(host))
                sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
                sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
                await sender.sendto(data, (_GROUP, _PORT))
            except OSError as error:
                _log.debug("no mDNS through the interface of %s: %s", host, error)
