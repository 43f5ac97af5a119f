"""When a node is of use, and what its figures are: whole services on a network in memory, in virtual time."""

import re
import threading
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from loremesh.errors import Fault, InvalidMessage
from loremesh.primitives import Hash, Height, Millis, StoryId
from loremesh.protocol.genesis import story_id
from loremesh.protocol.identity import Identity, peer_id_text
from loremesh.protocol.wire import PeerCard, sign_card
from loremesh.roles.desk import Desk, reported_height
from loremesh.services.happenings import Evidence, Happening, Head, PeerChanged, Ready, Rejected
from loremesh.services.liveness import DEAD_AFTER
from loremesh.services.llm_server import LlmServer
from loremesh.testing.builders import (
    ANN,
    BOB,
    CAT,
    DAN,
    EASY,
    block_on,
    identity,
    parent_of,
    resigned,
    small_genesis,
    suggestion,
)
from loremesh.testing.memory_disk import MemoryDisk
from loremesh.testing.memory_journal import MemoryJournal
from loremesh.testing.small_network import SmallNetwork, SmallNode, wait_agreement
from loremesh.web.report import Kind

GENESIS = small_genesis(EASY)
STORY = story_id(GENESIS)
OTHERS = [identity(name) for name in ("eve", "fay", "gus")]


@pytest.fixture
def between(nursery: trio.Nursery) -> SmallNetwork:
    return SmallNetwork(nursery, GENESIS)


def desk_at(node: SmallNode, network: SmallNetwork) -> Desk:
    desk = Desk(clock=network.clock)
    desk.open(node.services)
    return desk


def value(desk: Desk, name: str, *labels: str) -> float:
    (figure,) = [figure for figure in desk.report().figures if figure.name == name]
    return figure.values[labels]


def claim(node: SmallNode, who: Identity, height: int, story: StoryId = STORY) -> None:
    """Let a peer say how high it is."""
    card = PeerCard(who.peer_id, (), ("validator",), (), (story,), Height(height), Millis(int(trio.current_time())))
    node.services.peers.on_heartbeat(sign_card(who, card))


def test_a_node_that_has_no_story_yet_is_starting() -> None:
    report = Desk().report()
    assert report.reasons == ("it is starting: its story is not loaded yet",)
    assert [(figure.name, figure.values[()]) for figure in report.figures] == [("loremesh_ready", 0)]


async def test_a_node_that_was_told_of_nobody_is_ready_alone(autojump_clock: MockClock, between: SmallNetwork) -> None:
    node = await between.start("ann")
    desk = desk_at(node, between)
    await node.services.ready.wait()
    assert desk.report().reasons == ()
    assert value(desk, "loremesh_ready") == 1


async def test_a_node_is_ready_while_one_of_those_it_was_told_of_is_there(
    autojump_clock: MockClock, between: SmallNetwork
) -> None:
    ann = await between.start("ann")
    bob = await between.start("bob", ann)
    desk = desk_at(bob, between)
    assert "it is starting: nobody has been asked yet" in desk.report().reasons
    await bob.services.ready.wait()
    await bob.wait_joined(ann.peer_id)
    assert desk.report().reasons == ()
    assert value(desk, "loremesh_connected_peers") == value(desk, "loremesh_peers", "alive") == 1
    await ann.stop()
    await bob.happened.wait(PeerChanged, lambda one: one.change == "left")
    await trio.sleep(1)
    assert desk.report().reasons == ("no peer is connected",)
    ann = await between.start("ann", disk=ann.disk)
    await trio.sleep(60)
    assert desk.report().reasons == ()


@pytest.mark.parametrize(("claimed", "reasons"), [(0, ()), (2, ()), (3, ("it is 3 blocks behind its peers",))])
async def test_a_node_more_than_two_blocks_behind_is_not_ready(
    autojump_clock: MockClock, claimed: int, reasons: tuple[str, ...], between: SmallNetwork
) -> None:
    node = await between.start("ann")
    desk = desk_at(node, between)
    await node.services.ready.wait()
    claim(node, OTHERS[0], claimed)
    assert desk.report().reasons == reasons


async def test_one_liar_among_three_takes_no_node_out_of_service(
    autojump_clock: MockClock, between: SmallNetwork
) -> None:
    node = await between.start("ann")
    desk = desk_at(node, between)
    await node.services.ready.wait()
    for who, height in zip(OTHERS, (1, 2, 10**9), strict=True):
        claim(node, who, height)
    assert desk.report().reasons == ()


async def test_who_keeps_another_story_or_is_dead_has_no_say(autojump_clock: MockClock, between: SmallNetwork) -> None:
    node = await between.start("ann")
    desk = desk_at(node, between)
    await node.services.ready.wait()
    claim(node, OTHERS[0], 50, StoryId(Hash(bytes(32))))
    assert desk.report().reasons == ()
    claim(node, OTHERS[1], 50)
    assert desk.report().reasons == ("it is 50 blocks behind its peers",)
    await trio.sleep(DEAD_AFTER + 2)
    assert desk.report().reasons == ()
    assert value(desk, "loremesh_peers", "dead") == 2


@given(st.lists(st.integers(0, 10**6), max_size=20))
def test_at_least_half_of_the_peers_have_reached_the_reported_height(heights: list[int]) -> None:
    reached = reported_height(heights)
    assert sum(height >= reached for height in heights) * 2 >= len(heights)
    assert sum(height > reached for height in heights) * 2 <= len(heights)


async def test_the_process_shows_how_many_tasks_and_threads_it_runs(
    autojump_clock: MockClock, between: SmallNetwork, nursery: trio.Nursery
) -> None:
    desk = desk_at(await between.start("ann"), between)
    before = value(desk, "loremesh_tasks")
    for _ in range(5):
        nursery.start_soon(trio.sleep, 1)
    assert value(desk, "loremesh_tasks") == before + 5
    assert value(desk, "loremesh_threads") == threading.active_count() >= 1


async def test_an_anchor_is_ready_and_has_no_figures_of_a_chain(
    autojump_clock: MockClock, between: SmallNetwork
) -> None:
    node = await between.start("ann", anchor=True)
    desk = desk_at(node, between)
    await node.services.ready.wait()
    report = desk.report()
    assert report.reasons == ()
    names = {figure.name for figure in report.figures}
    assert "loremesh_peers" in names
    assert "loremesh_head_height_blocks" not in names


async def test_the_chain_shows_its_height_and_what_came_since_the_start(
    autojump_clock: MockClock, between: SmallNetwork
) -> None:
    ann = await between.start("ann")
    await trio.sleep(60)  # blocks from ahead of the clock would be held
    await ann.chain.submit(block_on(GENESIS, parent_of(ann.chain.store), ANN), None)
    desk = desk_at(ann, between)
    assert value(desk, "loremesh_blocks_accepted_total") == 0
    for author in (ANN, BOB):
        await ann.chain.submit(block_on(GENESIS, parent_of(ann.chain.store), author), None)
    assert value(desk, "loremesh_blocks_accepted_total") == 2
    assert value(desk, "loremesh_blocks") == value(desk, "loremesh_head_height_blocks") == 3
    before = value(desk, "loremesh_head_age_seconds")
    await trio.sleep(100)
    assert value(desk, "loremesh_head_age_seconds") == pytest.approx(before + 100, abs=0.1)


async def test_whatever_waits_is_counted_where_it_waits(autojump_clock: MockClock, between: SmallNetwork) -> None:
    disk = MemoryDisk()
    ann = await between.start("ann", disk=disk)
    await trio.sleep(60)
    root = parent_of(ann.chain.store)
    twins = [block_on(GENESIS, root, ANN, salt=salt) for salt in "abcd"]
    early = [block_on(GENESIS, root, author, time=ann.clock() + 60_000) for author in (BOB, CAT, DAN)]
    await ann.chain.submit_all([*twins, *early], None)
    tip = parent_of(ann.chain.store)
    nowhere = Hash(b"\x0a" * 32)
    orphans = [resigned(block_on(GENESIS, tip, author), author, parent=nowhere) for author in (BOB, CAT, DAN, *OTHERS)]
    await ann.chain.submit_all(orphans, None)
    for reader in (BOB, CAT, DAN, OTHERS[0]):
        await ann.chain.add_transaction(suggestion(reader, GENESIS, "Let the tide speak."))
    disk.hold_up()
    await ann.chain.offer(block_on(GENESIS, tip, BOB), BOB.peer_id)
    await disk.asked.wait()  # while one is being written, the next ones wait
    for author in (CAT, *OTHERS, DAN):
        await ann.chain.offer(block_on(GENESIS, tip, author), BOB.peer_id)
    desk = desk_at(ann, between)
    waiting = {"surplus_blocks": 2, "held_blocks": 3, "mempool_transactions": 4, "chain_inbox_blocks": 5}
    for name, count in {**waiting, "orphan_blocks": 6}.items():
        assert (name, value(desk, f"loremesh_{name}")) == (name, count)
    disk.go_on()


async def test_whoever_is_kept_out_is_counted(autojump_clock: MockClock, between: SmallNetwork) -> None:
    node = await between.start("ann")
    desk = desk_at(node, between)
    assert value(desk, "loremesh_banned_peers") == 0
    for _ in range(10):
        node.services.scores.penalize(BOB.peer_id, "block", InvalidMessage(Fault.WRONG_SENDER, ""))
    assert value(desk, "loremesh_banned_peers") == 1


async def test_what_comes_by_asking_and_by_gossip_is_counted(autojump_clock: MockClock, between: SmallNetwork) -> None:
    ann = await between.start("ann")
    await ann.chain.submit(block_on(GENESIS, parent_of(ann.chain.store), ANN), None)
    bob = await between.start("bob", ann)
    desk = desk_at(bob, between)
    await wait_agreement([ann, bob])
    await trio.sleep(1)  # the round that brought the block ends a little later, and counts then
    assert value(desk, "loremesh_sync_blocks_total") >= 1
    assert value(desk, "loremesh_sync_rounds_total") >= 1
    assert value(desk, "loremesh_sync_failures_total") == 0
    gossip = value(desk, "loremesh_gossip_received_total")
    await trio.sleep(30)
    assert value(desk, "loremesh_gossip_received_total") > gossip
    assert value(desk, "loremesh_calls_served_total") > 0


async def test_each_happening_is_counted_and_passed_on(autojump_clock: MockClock, between: SmallNetwork) -> None:
    node = await between.start("ann")
    desk = desk_at(node, between)
    desk.address = "127.0.0.1:9464"
    heard: list[Happening] = []
    tell = desk.hearing(heard.append)
    told: list[Happening] = [
        Rejected("block", Fault.TOO_EARLY, BOB.peer_id, ""),
        Rejected("block", Fault.TOO_EARLY, ANN.peer_id, "again"),
        Rejected("sync", Fault.TOO_EARLY, ANN.peer_id, ""),
        Head(Height(4), Hash(bytes(32)), ANN.peer_id, 0),
        Head(Height(5), Hash(bytes(32)), ANN.peer_id, 3),
        Head(Height(6), Hash(bytes(32)), ANN.peer_id, 1),
        Evidence(BOB.peer_id, "two headers on one parent"),
    ]
    for happening in told:
        tell(happening)
    tell(Ready("validator", ANN.peer_id, (), None))
    assert heard == [*told, Ready("validator", ANN.peer_id, (), None, "127.0.0.1:9464")]
    assert value(desk, "loremesh_rejected_total", "block", "before the minimum spacing") == 2
    assert value(desk, "loremesh_rejected_total", "sync", "before the minimum spacing") == 1
    assert value(desk, "loremesh_reorgs_total") == 2
    assert value(desk, "loremesh_reorg_deepest_blocks") == 3
    assert value(desk, "loremesh_equivocations_total") == 1


@pytest.fixture
def page(pytestconfig: pytest.Config) -> str:
    return Path(pytestconfig.rootpath / "docs" / "metrics.md").read_text(encoding="utf-8")


async def test_the_page_lists_every_figure_as_what_it_is(
    autojump_clock: MockClock, between: SmallNetwork, page: str
) -> None:
    node = await between.start("ann")
    desk = desk_at(node, between)
    node.services.servers.append(
        LlmServer(identity=node.identity, models=dict, journal=MemoryJournal(), clock=node.clock, tell=node.happened)
    )
    listed = dict(re.findall(r"^\| `(loremesh_\w+)` \| (\w+) \|", page, re.MULTILINE))
    figures = desk.report().figures
    assert listed == {figure.name: str(figure.kind) for figure in figures}
    assert all(figure.name.endswith("_total") is (figure.kind is Kind.COUNTER) for figure in figures)


async def test_the_node_says_who_it_is(autojump_clock: MockClock, between: SmallNetwork) -> None:
    node = await between.start("ann")
    (info,) = [one for one in desk_at(node, between).report().figures if one.name == "loremesh_node_info"]
    ((labels, one),) = info.values.items()
    assert (dict(zip(info.labels, labels, strict=True))["peer_id"], one) == (peer_id_text(node.peer_id), 1)
