"""The doctor's look at the network: each bootstrap node step by step, then whether they tell one story at one time."""

import secrets
from dataclasses import dataclass
from statistics import median
from typing import Final, Protocol

import trio

from loremesh.cli.errors import ExitCode
from loremesh.cli.findings import Check, failed
from loremesh.cli.present import several
from loremesh.config import Settings
from loremesh.errors import ProtocolError, ServiceError, UsageError
from loremesh.network.addresses import Endpoint, Transport
from loremesh.network.behaviour import Behaviour
from loremesh.network.settings import NetworkSettings
from loremesh.primitives import Hash, PeerId
from loremesh.protocol.genesis import Parameters
from loremesh.protocol.identity import Identity, peer_id_text
from loremesh.protocol.views import short
from loremesh.protocol.wire import Status, check_record
from loremesh.roles.joining import Lookout
from loremesh.roles.networking import running_network, wall_clock
from loremesh.services.sync import Puller

_STEP: Final = 5.0
"""Seconds for each step with each node."""
_AGREE: Final = 15.0
"""Seconds in which nodes that are in touch come to one head, blocks in flight included."""
AGREE_EVERY: Final = 0.5


@dataclass(frozen=True, slots=True)
class Reached:
    """A node that answered."""

    address: str
    peer_id: PeerId
    status: Status
    skew: float | None
    """How far its clock is ahead of ours, in milliseconds; None: it did not say."""
    doubt: float
    """How far off `skew` may be: half the time the answer took, in milliseconds."""


class Asked(Protocol):
    """Whom to ask for a node's head."""

    async def status(self, peer: PeerId) -> Status:
        """Ask where a peer stands."""


async def check_network(settings: Settings) -> list[Check]:
    """Look at each bootstrap node, then at what they say together."""
    if not settings.bootstrap_nodes:
        return [Check("bootstrap nodes", "none given, so no node was asked: add --bootstrap-nodes MULTIADDR")]
    identity = Identity.generate(secrets.token_bytes(32))
    async with running_network(identity, NetworkSettings(listen_addresses=(), dht_server=False)) as network:
        puller = Puller(network, identity, wall_clock)
        lookout = Lookout(identity, network, puller, wall_clock)
        nodes = [_Node(address, network, lookout) for address in settings.bootstrap_nodes]
        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(node.look)
        reached = [node.reached for node in nodes if node.reached is not None]
        together = [_stories(settings, reached), await check_heads(puller, reached), check_clock(reached)]
    return [*(check for node in nodes for check in node.checks), *(check for check in together if check)]


class _Node:
    """One bootstrap node, looked at step by step; a step that fails is the last one."""

    def __init__(self, address: str, network: Behaviour, lookout: Lookout) -> None:
        self.checks: list[Check] = []
        self.reached: Reached | None = None
        self._address = address
        self._network = network
        self._lookout = lookout

    async def look(self) -> None:
        """Go as far as it goes."""
        try:
            endpoint = Endpoint.from_str(self._address)
        except UsageError as error:
            self._fail(f"address {self._address}", str(error), "write the address as shown", ExitCode.USAGE)
            return
        if endpoint.kind.startswith("dns") and not await self._resolves(endpoint):
            return
        place = f"{endpoint.host}:{endpoint.port}"
        is_quic = endpoint.transport is Transport.QUIC
        if not is_quic and not await self._accepts(endpoint, place):
            return
        name = f"identity at {place}"
        try:
            peer_id = await self._network.connect(self._address, _STEP)
        except (ServiceError, ProtocolError, UsageError) as error:
            remedy = "something else listens there, or the node has a new key: ask for the address that it prints"
            if is_quic:
                remedy = f"start the node there and open its UDP port in the firewall; else {remedy}"
            self._fail(name, str(error), remedy)
            return
        self.checks.append(Check(name, f"noise handshake done, {peer_id_text(peer_id)}"))
        await self._ask(peer_id)

    async def _resolves(self, endpoint: Endpoint) -> bool:
        name = f"dns {endpoint.host}"
        remedy = "check the spelling and this machine's name server, or use the node's IP address"
        found: list[str] = []
        try:
            with trio.move_on_after(_STEP):
                infos = await trio.socket.getaddrinfo(endpoint.host, endpoint.port, endpoint.family)
                found = list(dict.fromkeys(str(info[4][0]) for info in infos))
        except OSError as error:
            self._fail(name, error.strerror or str(error), remedy)
            return False
        if not found:
            self._fail(name, f"no answer within {_STEP:g} s", remedy)
            return False
        self.checks.append(Check(name, ", ".join(found[:4])))
        return True

    async def _accepts(self, endpoint: Endpoint, place: str) -> bool:
        name = f"tcp {place}"
        reason, remedy = f"no answer within {_STEP:g} s", "open the port in the firewall there, or correct the address"
        try:
            with trio.move_on_after(_STEP):
                began = trio.current_time()
                stream = await trio.open_tcp_stream(endpoint.host, endpoint.port)
                took = trio.current_time() - began
                await stream.aclose()
                self.checks.append(Check(name, f"connected in {1000 * took:.1f} ms"))
                return True
        except OSError as error:
            reason, remedy = f"nobody listens there: {error}", "start the node there, or correct the address"
        self._fail(name, reason, remedy)
        return False

    async def _ask(self, peer_id: PeerId) -> None:
        name = f"answers of …{peer_id_text(peer_id)[-8:]}"
        try:
            latency = await self._network.ping(peer_id, _STEP)
            status = await self._lookout.puller.status(peer_id)
            before = wall_clock()
            peers = (await self._lookout.peer_list(peer_id)).peers
            after = wall_clock()
            cards = [check_record(listed.record) for listed in peers[:1]]
        except (ServiceError, ProtocolError) as error:
            remedy = "the node is overloaded or runs another version: look at its log, and compare loremesh --version"
            self._fail(name, str(error), remedy)
            return
        place = "an anchor without a story"
        if status.story and status.head:
            place = f"story {short(status.story[0])} at height {status.height}, head {short(status.head[0])}"
        self.checks.append(Check(name, f"{place}, {several(len(peers), 'node')} listed, ping {1000 * latency:.1f} ms"))
        # Its own card, the first of its list, was signed just now by its clock.
        skew = cards[0].time - (before + after) / 2 if cards and cards[0].peer_id == peer_id else None
        self.reached = Reached(self._address, peer_id, status, skew, (after - before) / 2)

    def _fail(self, name: str, detail: str, remedy: str, code: ExitCode = ExitCode.UNREACHABLE) -> None:
        self.checks.append(failed(name, detail, remedy, code))


def _stories(settings: Settings, reached: list[Reached]) -> Check | None:
    """Tell whether a client that gives these flags would know which story to read."""
    kept = {Hash(node.status.story[0]) for node in reached if node.status.story}
    if not reached:
        return None
    if settings.story is not None and settings.story not in kept:
        detail = f"none of the reached nodes keeps {short(settings.story)}"
        return failed("story", detail, "add --bootstrap-nodes of a node that keeps it", ExitCode.UNREACHABLE)
    if settings.story is None and len(kept) > 1:
        detail = f"there are {len(kept)}: {', '.join(sorted(name.hex() for name in kept))}"
        return failed("story", detail, "choose one with --story", ExitCode.USAGE)
    if not kept:
        return Check("story", "none here: clients follow the peer lists to nodes that keep one")
    return Check("story", (settings.story or next(iter(kept))).hex())


async def check_heads(nodes: Asked, reached: list[Reached]) -> Check | None:
    """Wait until the nodes of each story have one head, as those in touch with each other do."""
    keepers = [node for node in reached if node.status.story]
    if len(keepers) < 2:  # noqa: PLR2004 - one always agrees with itself
        return None
    heads: dict[str, Status] = {node.address: node.status for node in keepers}
    with trio.move_on_after(_AGREE):
        while not _is_agreed(heads):
            await trio.sleep(AGREE_EVERY)
            for node in keepers:
                try:
                    heads[node.address] = await nodes.status(node.peer_id)
                except (ServiceError, ProtocolError) as error:
                    remedy = "it went away while we looked: run the doctor again"
                    return failed("agreement", f"{node.address}: {error}", remedy, ExitCode.UNREACHABLE)
    if _is_agreed(heads):
        return Check("agreement", f"{len(keepers)} nodes have the same head")
    seen = "; ".join(f"{address} at {status.height} ({short(status.head[0])})" for address, status in heads.items())
    remedy = "let them reach each other (addresses, firewalls, deny.txt); loremesh tree shows both branches"
    return failed("agreement", f"different heads for {_AGREE:g} s: {seen}", remedy, ExitCode.DEADLINE)


def _is_agreed(heads: dict[str, Status]) -> bool:
    return len({status.story for status in heads.values()}) == len({status.head for status in heads.values()})


def check_clock(reached: list[Reached]) -> Check | None:
    """Compare our clock with those of the nodes: a block from ahead is held back, one from behind refused."""
    skews = [node.skew for node in reached if node.skew is not None]
    if not skews:
        return None
    skew = median(skews)
    doubt = max(node.doubt for node in reached)
    detail = f"{abs(skew):.0f} ms {'behind' if skew > 0 else 'ahead of'} the nodes, give or take {doubt:.0f} ms"
    allowed = Parameters().max_ahead
    if abs(skew) - doubt > allowed:
        remedy = f"set this machine's clock (timedatectl set-ntp true), or theirs: {allowed} ms are tolerated"
        return failed("clock", detail, remedy)
    return Check("clock", detail)
