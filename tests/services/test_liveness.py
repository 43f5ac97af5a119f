"""Ghosts, ways back, and which addresses a list passes on."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import trio

from loremesh.primitives import Height, Millis
from loremesh.protocol.codec import decode
from loremesh.protocol.identity import Identity, peer_id_text
from loremesh.protocol.wire import PEERS_PROTOCOL, MessageType, PeerCard, PeerList, seal, sign_card, unseal
from loremesh.services.happenings import PeerChanged
from loremesh.services.liveness import DEAD_AFTER, HEARTBEAT, LATE_AFTER, SUSPECT_AFTER, Known, Liveness
from loremesh.services.reachability import Reachability
from loremesh.testing.builders import EASY, identity, small_genesis
from loremesh.testing.memory_network import MemoryNetwork
from loremesh.testing.small_network import SmallNetwork, SmallNode
from loremesh.testing.weather import Weather

pytestmark = pytest.mark.usefixtures("autojump_clock")

NewNetwork = Callable[..., SmallNetwork]
EVE = identity("eve")


Pair = tuple[SmallNetwork, SmallNode, SmallNode]


async def wait_connected(one: SmallNode, other: SmallNode, seconds: float) -> None:
    with trio.fail_after(seconds):
        while other.peer_id not in one.network.connected():  # noqa: ASYNC110 - the surface has no event for it
            await trio.sleep(0.1)


def life_of(node: SmallNode, other: SmallNode) -> Known:
    return node.services.peers._known[other.peer_id]


async def wait_sign(node: SmallNode, other: SmallNode) -> None:
    """Wait until a node hears of another once more."""
    known = life_of(node, other)
    before = known.seen
    with trio.fail_after(3 * HEARTBEAT):
        while known.seen == before:  # noqa: ASYNC110 - the table rings no bell for it
            await trio.sleep(0.01)


PHASES = (0.0, 0.01, 2.5, 4.9, 4.99, 5.05, 5.2, 8.0, 9.5)
"""Seconds from a sign of life to the freeze."""


@pytest.mark.parametrize("is_anchor", [False, True], ids=["heard by gossip", "an anchor that is asked"])
@pytest.mark.parametrize("jitter", [0, 10])
async def test_whenever_a_peer_freezes_it_is_dead_and_disconnected_30_to_36_seconds_later(
    jitter: float, new_network: NewNetwork, *, is_anchor: bool
) -> None:
    for phase in PHASES:
        network = new_network(small_genesis(EASY), seed=round(100 * phase))
        frozen = await network.start("ann", anchor=is_anchor)
        watcher = await network.start("bob", frozen)
        await watcher.wait_joined(frozen.peer_id)
        network.between.set_weather(Weather(jitter=jitter))  # up to 0.2 s each way
        await trio.sleep(60)
        await wait_sign(watcher, frozen)
        await trio.sleep(phase)
        network.between.cut(watcher.peer_id, frozen.peer_id, silently=True)
        began = trio.current_time()
        await watcher.happened.wait(PeerChanged, lambda one: one.change == "dead")
        took = trio.current_time() - began
        assert 30 <= took <= 36, (phase, took)
        await trio.sleep(0.5)
        assert frozen.peer_id not in watcher.network.connected()


@pytest.mark.parametrize(
    ("silent", "liveness"),
    [
        (SUSPECT_AFTER - 0.01, Liveness.ALIVE),
        (SUSPECT_AFTER + 0.01, Liveness.SUSPECT),
        (DEAD_AFTER - 0.01, Liveness.SUSPECT),
        (DEAD_AFTER + 0.01, Liveness.DEAD),
    ],
)
async def test_silence_is_judged_to_the_moment(silent: float, liveness: Liveness, pair: Pair) -> None:
    network, first, second = pair
    await trio.sleep(60)
    await wait_sign(first, second)
    network.between.cut(first.peer_id, second.peer_id, silently=True)
    known = life_of(first, second)
    await trio.sleep_until(known.seen + silent)
    assert known.liveness is liveness


async def test_whose_heartbeat_is_late_is_asked_and_lives(pair: Pair) -> None:
    _, first, second = pair
    await trio.sleep(60)
    await wait_sign(first, second)
    known = life_of(first, second)
    first.story.tracker.beat = second.story.tracker.beat = lost  # type: ignore[method-assign]  # both live, unheard
    heard = known.seen
    await trio.sleep_until(heard + LATE_AFTER + 0.5)
    assert known.seen > heard
    await trio.sleep(10 * DEAD_AFTER)
    assert known.liveness is Liveness.ALIVE
    assert not first.happened.of(PeerChanged, lambda one: one.change == "dead")


async def lost(heartbeat: bytes) -> None:
    assert heartbeat
    await trio.lowlevel.checkpoint()


async def test_a_node_beats_every_5_seconds(pair: Pair) -> None:
    _, _, second = pair
    beats = list[float]()

    async def noted(heartbeat: bytes) -> None:
        assert heartbeat
        beats.append(trio.current_time())
        await trio.lowlevel.checkpoint()

    second.story.tracker.beat = noted  # type: ignore[method-assign]  # notes when, and says nothing
    await trio.sleep(31)
    assert [later - earlier for earlier, later in pairwise(beats)] == pytest.approx([5.0] * 5)


async def test_a_beat_that_takes_long_makes_the_next_no_later(pair: Pair) -> None:
    _, _, second = pair
    beats = list[float]()

    async def slow(heartbeat: bytes) -> None:
        assert heartbeat
        beats.append(trio.current_time())
        await trio.sleep(1.5)

    second.story.tracker.beat = slow  # type: ignore[method-assign]  # a network that takes its time
    await trio.sleep(6 * HEARTBEAT)
    gaps = [later - earlier for earlier, later in pairwise(beats)]
    assert len(gaps) >= 4
    assert gaps == pytest.approx([HEARTBEAT] * len(gaps))


async def test_nodes_that_a_cut_made_dead_to_each_other_find_each_other_again(pair: Pair) -> None:
    network, first, second = pair
    network.between.cut(first.peer_id, second.peer_id, silently=True)
    await trio.sleep(5 * DEAD_AFTER)
    assert second.peer_id not in first.network.connected()
    network.between.heal()
    await wait_connected(first, second, 40)


async def test_a_node_that_lost_everybody_for_long_finds_its_way_back_without_any_bootstrap_node(
    new_network: NewNetwork,
) -> None:
    network = new_network(small_genesis(EASY))
    anchor = await network.start("ann")
    others = [await network.start(name, anchor) for name in ("bob", "cat", "dan")]
    for node in others:
        for other in others:
            if node is not other:
                await node.wait_joined(other.peer_id)
    lost, *rest = others
    network.between.partition([lost.peer_id], [anchor.peer_id, *(node.peer_id for node in rest)])
    await anchor.stop()
    await trio.sleep(10 * 60)
    assert lost.network.connected() == ()
    network.between.heal()
    await wait_connected(lost, rest[0], 60)


async def test_while_it_is_alone_it_dials_ever_more_rarely(pair: Pair) -> None:
    network, _, second = pair
    dials = list[float]()
    second.network._network = Counting(network.between, dials)  # type: ignore[assignment]  # it passes all else on
    network.between.partition([pair[1].peer_id], [second.peer_id])
    await trio.sleep(5 * 60)
    dials.clear()
    await trio.sleep(5 * 60)
    assert 5 <= len(dials) <= 30


class Counting:
    """The network in memory, counting who dials."""

    def __init__(self, between: MemoryNetwork, dials: list[float]) -> None:
        self._between = between
        self._dials = dials

    async def dial(self, *args: object) -> object:
        self._dials.append(trio.current_time())
        return await self._between.dial(*args)  # type: ignore[arg-type]  # passed on as they came

    def __getattr__(self, name: str) -> object:
        return getattr(self._between, name)


# which addresses a list passes on


def card(who: Identity, *addresses: str) -> PeerCard:
    return PeerCard(who.peer_id, addresses, ("executor",), (), (), Height(0), Millis(0))


async def test_a_list_passes_on_the_addresses_at_which_a_peer_was_met_and_no_others(
    pair: Pair, nursery: trio.Nursery
) -> None:
    network, first, second = pair
    eve = network.between.node(EVE)
    await nursery.start(eve.run)
    await eve.connect(first.address)
    [real] = eve.addresses()
    claims = (f"/ip4/10.9.9.9/tcp/4001/p2p/{peer_id_text(EVE.peer_id)}", real, second.address)
    frame = seal(EVE, MessageType.PEER_JOIN, sign_card(EVE, card(EVE, *claims)), 0, first.peer_id)
    _, payload = unseal(await eve.call(first.peer_id, PEERS_PROTOCOL, frame, 5), first.peer_id)
    listed = {one.record.card.peer_id: one.reached for one in decode(PeerList, payload).peers}
    assert listed == {
        first.peer_id: first.network.addresses(),
        second.peer_id: second.network.addresses(),
        EVE.peer_id: (real,),
    }


async def test_addresses_are_checked_once_and_those_that_do_not_work_again_later() -> None:
    asked: list[str] = []
    name = f"/p2p/{peer_id_text(EVE.peer_id)}"
    good, bad, late = (f"/ip4/127.0.0.1/tcp/{port}{name}" for port in (1, 2, 3))
    works = {good}

    class Doors:
        async def reaches(self, address: str, timeout: float) -> bool:  # noqa: ARG002, ASYNC109 - the surface
            await trio.sleep(1)
            asked.append(address)
            return address in works

    table = Reachability(Doors())
    claimed = card(EVE, good, bad, late, "/ip4/127.0.0.1/tcp/4", "nonsense")
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(table.check, claimed)
    assert sorted(asked) == [good, bad, late]
    assert table.reached(claimed) == (good,)
    assert not table.is_due(claimed)
    works.add(late)
    await trio.sleep(60)
    await table.check(claimed)
    assert table.reached(claimed) == (good, late)
    assert asked.count(good) == 1
    table.forget(EVE.peer_id)
    assert table.reached(claimed) == ()


async def test_a_check_that_nobody_waits_for_is_left_to_the_next() -> None:
    class Slow:
        async def reaches(self, address: str, timeout: float) -> bool:  # noqa: ARG002, ASYNC109 - the surface
            await trio.sleep(2)
            return True

    table = Reachability(Slow())
    claimed = card(EVE, f"/ip4/127.0.0.1/tcp/1/p2p/{peer_id_text(EVE.peer_id)}")
    with trio.move_on_after(1):
        await table.check(claimed)
    assert table.is_due(claimed)
    await table.check(claimed)
    assert table.reached(claimed) == claimed.addresses
