"""Scores at work: whoever breaks too many rules is shut out for a while, and nobody is for what others did."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import trio

from loremesh.errors import Fault, InvalidMessage, ProtocolError, RequestRefused, StorageError
from loremesh.primitives import Hash, Millis, PeerId, Signature
from loremesh.protocol.block import Block, header_hash
from loremesh.protocol.codec import encode
from loremesh.protocol.peer_score import FIRST_BAN, FOUL, LIE, LONGEST_BAN, next_release
from loremesh.protocol.wire import BlockAnnouncement, MessageType, seal, topic
from loremesh.services.happenings import Banned, Head, Rejected
from loremesh.services.scores import ScoreService
from loremesh.storage.writes import Ban, SaveBan, Write
from loremesh.testing.builders import ANN, BOB, CAT, DAN, EASY, identity, resigned, small_genesis
from loremesh.testing.happened import Happened
from loremesh.testing.memory_disk import MemoryDisk
from loremesh.testing.orchard import Orchard
from loremesh.testing.small_network import SmallNetwork, SmallNode, wait_agreement

pytestmark = pytest.mark.usefixtures("autojump_clock")

NewNetwork = Callable[..., SmallNetwork]
EVE = identity("eve")
LYING = InvalidMessage(Fault.WRONG_SENDER, "somebody else's")


class Door:
    """Keeps whom it was told to deny, every time."""

    def __init__(self) -> None:
        self.denied: list[frozenset[PeerId]] = []

    def deny(self, peers: frozenset[PeerId]) -> None:
        self.denied.append(peers)


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.fixture
def happened() -> Happened:
    return Happened()


def wall() -> int:
    """Tell the time of day, in a year when nobody was banned."""
    return 10**12 + round(1000 * trio.current_time())


@pytest.fixture
async def judge(door: Door, happened: Happened, nursery: trio.Nursery) -> ScoreService:
    service = ScoreService(ANN.peer_id, door, MemoryDisk(), clock=wall, tell=happened)
    nursery.start_soon(service.run)
    return service


def lie(judge: ScoreService, times: int = 4) -> None:
    for _ in range(times):
        judge.penalize(EVE.peer_id, "gossip message", LYING)


async def test_every_refusal_is_told_with_its_reason(judge: ScoreService, happened: Happened) -> None:
    lie(judge, 1)
    assert happened.all == [Rejected("gossip message", Fault.WRONG_SENDER, EVE.peer_id, "somebody else's")]
    assert judge.score(EVE.peer_id) == -LIE


async def test_one_too_many_shuts_the_peer_out_and_says_for_how_long(
    judge: ScoreService, door: Door, happened: Happened
) -> None:
    lie(judge, 3)
    assert not door.denied
    lie(judge, 1)
    assert door.denied == [{EVE.peer_id}]
    assert happened.of(Banned) == [Banned(EVE.peer_id, FIRST_BAN)]


async def test_what_was_sent_before_the_ban_is_not_told_any_more(judge: ScoreService, happened: Happened) -> None:
    lie(judge, 100)
    assert len(happened.of(Rejected)) == 4
    assert len(happened.of(Banned)) == 1


async def test_a_ban_is_lifted_after_its_time(judge: ScoreService, door: Door) -> None:
    lie(judge)
    await trio.sleep(FIRST_BAN - 1)
    assert door.denied == [{EVE.peer_id}]
    await trio.sleep(2)
    assert door.denied == [{EVE.peer_id}, frozenset()]
    assert not judge.banned


async def test_bans_that_overlap_end_one_after_the_other(judge: ScoreService, door: Door) -> None:
    lie(judge)
    await trio.sleep(100)
    for _ in range(4):
        judge.penalize(DAN.peer_id, "sync", LYING)
    await trio.sleep(FIRST_BAN - 99)
    assert door.denied[-1] == {DAN.peer_id}
    await trio.sleep(100)
    assert door.denied[-1] == frozenset()


async def test_the_operators_list_and_the_bans_are_one_list(judge: ScoreService, door: Door) -> None:
    judge.deny(frozenset({BOB.peer_id}))
    lie(judge)
    assert door.denied[-1] == {BOB.peer_id, EVE.peer_id}
    judge.deny(frozenset())
    assert door.denied[-1] == {EVE.peer_id}
    judge.deny(frozenset({CAT.peer_id}))
    await trio.sleep(FIRST_BAN + 1)
    assert door.denied[-1] == {CAT.peer_id}


async def restarted(disk: MemoryDisk, door: Door, nursery: trio.Nursery, skew: int = 0) -> ScoreService:
    """Start a service on what another one has left, its clock so many milliseconds off."""
    service = ScoreService(ANN.peer_id, door, disk, clock=lambda: wall() + skew, tell=Happened())
    await service.restore()
    nursery.start_soon(service.run)
    await trio.sleep(1)
    return service


async def test_a_restart_lets_nobody_in_who_is_kept_out_and_keeps_to_the_end_of_the_ban(
    door: Door, nursery: trio.Nursery
) -> None:
    disk = MemoryDisk()
    lie(await restarted(disk, door, nursery))
    await trio.sleep(99)
    later = Door()
    judge = await restarted(disk, later, nursery)
    assert later.denied == [{EVE.peer_id}]
    await trio.sleep(FIRST_BAN - 105)
    assert judge.banned == {EVE.peer_id}
    await trio.sleep(10)
    assert later.denied == [{EVE.peer_id}, frozenset()]


async def test_the_next_ban_after_a_restart_is_longer_than_the_one_before(door: Door, nursery: trio.Nursery) -> None:
    disk = MemoryDisk()
    lie(await restarted(disk, door, nursery))
    await trio.sleep(FIRST_BAN + 10)
    judge = await restarted(disk, door, nursery)
    assert not judge.banned
    lie(judge)
    await trio.sleep(2 * FIRST_BAN - 10)
    assert judge.banned == {EVE.peer_id}


async def test_after_a_good_day_a_ban_is_forgotten_on_the_disk_too(door: Door, nursery: trio.Nursery) -> None:
    disk = MemoryDisk()
    await disk.commit(SaveBan(Ban(EVE.peer_id, Millis(wall() - 1000 * round(LONGEST_BAN) - 1), 1), Millis(0)))
    judge = await restarted(disk, door, nursery)
    for _ in range(4):
        judge.penalize(DAN.peer_id, "sync", LYING)
    await trio.sleep(1)
    assert [ban.peer_id for ban in await disk.bans()] == [DAN.peer_id]


async def test_a_clock_set_back_over_a_restart_keeps_nobody_out_for_longer_than_the_longest_ban(
    door: Door, nursery: trio.Nursery
) -> None:
    disk = MemoryDisk()
    lie(await restarted(disk, door, nursery))
    await trio.sleep(1)
    before = trio.current_time()
    judge = await restarted(disk, door, nursery, skew=-(10**11))
    assert judge.banned == {EVE.peer_id}
    release = next_release(judge._standings, trio.current_time())
    assert release == pytest.approx(before + LONGEST_BAN)


async def test_a_ban_that_comes_while_another_is_being_written_is_written_too(
    door: Door, nursery: trio.Nursery
) -> None:
    disk = MemoryDisk()
    judge = await restarted(disk, door, nursery)
    disk.hold_up()
    lie(judge)
    await disk.asked.wait()
    for _ in range(4):
        judge.penalize(DAN.peer_id, "sync", LYING)
    disk.go_on()
    await trio.sleep(1)
    assert {ban.peer_id for ban in await disk.bans()} == {EVE.peer_id, DAN.peer_id}


class FailingDisk(MemoryDisk):
    """Fails at every write."""

    async def commit(self, *writes: Write) -> None:
        """Fail."""
        await trio.lowlevel.checkpoint()
        if writes:
            raise StorageError("no")


async def test_a_ban_holds_although_the_disk_fails(door: Door, nursery: trio.Nursery) -> None:
    judge = await restarted(FailingDisk(), door, nursery)
    lie(judge)
    await trio.sleep(1)
    assert door.denied[-1] == {EVE.peer_id}


async def test_a_refused_request_is_no_fault_and_no_news(judge: ScoreService, happened: Happened) -> None:
    for _ in range(100):
        judge.penalize(EVE.peer_id, "sync", RequestRefused(Fault.NOT_AS_ASKED, "refused: this node keeps no story"))
    assert not happened.all
    assert judge.score(EVE.peer_id) == 0


async def test_we_are_never_shut_out_ourselves(judge: ScoreService, door: Door) -> None:
    for _ in range(100):
        judge.penalize(ANN.peer_id, "block", ProtocolError(Fault.EQUIVOCATION))
    assert not door.denied


# ---- whole nodes


@pytest.fixture
async def three(new_network: NewNetwork) -> tuple[SmallNode, SmallNode, SmallNode]:
    """Eve is connected to Bob alone, Bob to Ann: what Ann hears of Eve, Bob has passed on."""
    network = new_network(small_genesis(EASY))
    ann = await network.start("ann")
    bob = await network.start("bob", ann)
    eve = await network.start("eve")
    await ann.wait_joined(bob.peer_id)
    eve.network.deny(frozenset({ann.peer_id}))
    await eve.network.connect(bob.address)
    await bob.wait_joined(eve.peer_id)
    return ann, bob, eve


def announced(block: Block, by: SmallNode) -> bytes:
    header = block.header
    announcement = BlockAnnouncement(header.height, header_hash(header), header.producer, header.time, encode(block))
    return seal(by.identity, MessageType.BLOCK_ANNOUNCEMENT, announcement, 0)


async def gossip(node: SmallNode, block: Block) -> None:
    await node.network.publish(topic(block.header.story, "blocks"), announced(block, node))


def wrong_states(count: int) -> list[Block]:
    """Give blocks of Eve's that only whoever knows the parent can refuse."""
    orchard = Orchard(small_genesis(EASY))
    (good,) = orchard.grow(orchard.root, 1, EVE)
    return [resigned(good, EVE, state_root=Hash(bytes([number]) * 32)) for number in range(1, count + 1)]


async def test_an_invalid_block_is_its_producers_and_whoever_passed_it_on_loses_nothing(
    three: tuple[SmallNode, SmallNode, SmallNode],
) -> None:
    ann, bob, eve = three
    (block,) = wrong_states(1)
    await gossip(eve, block)
    rejected = await ann.happened.wait(Rejected)
    assert (rejected.peer_id, rejected.fault) == (eve.peer_id, Fault.WRONG_STATE_ROOT)
    assert ann.services.scores.score(bob.peer_id) == 0
    assert ann.services.scores.score(eve.peer_id) == pytest.approx(-FOUL, rel=0.1)


async def test_a_liar_is_disconnected_kept_out_and_let_in_again(
    three: tuple[SmallNode, SmallNode, SmallNode],
) -> None:
    ann, bob, eve = three
    for block in wrong_states(12):
        await gossip(eve, block)
    await bob.happened.wait(Banned, lambda one: one.peer_id == eve.peer_id)
    assert eve.peer_id in bob.services.scores.banned
    await trio.sleep(1)
    assert eve.peer_id not in bob.network.connected()
    assert bob.peer_id in ann.network.connected()
    await trio.sleep(FIRST_BAN + 60)
    assert not bob.services.scores.banned
    await eve.network.connect(bob.address)
    await bob.happened.wait(Rejected)
    assert not ann.happened.of(Banned, lambda one: one.peer_id != eve.peer_id)


async def test_the_story_goes_on_while_somebody_lies(three: tuple[SmallNode, SmallNode, SmallNode]) -> None:
    ann, bob, eve = three
    for block in wrong_states(12):
        await gossip(eve, block)
    await bob.happened.wait(Banned)
    orchard = Orchard(small_genesis(EASY))
    for block in orchard.grow(orchard.root, 3, BOB, CAT):
        await bob.chain.submit(block, None)
        await bob.story.announcer.announce(block)
    await wait_agreement([ann, bob], 3)
    assert {block.header.producer for block in await ann.canon()} == {BOB.peer_id, CAT.peer_id}


async def test_early_blocks_and_orphans_cost_nobody_anything(three: tuple[SmallNode, SmallNode, SmallNode]) -> None:
    ann, bob, eve = three
    orchard = Orchard(small_genesis(EASY))
    early = [block for block in orchard.grow(orchard.root, 40, EVE, DAN) if block.header.producer == EVE.peer_id]
    for block in early:  # those of the near future wait; those without their parents too
        await gossip(eve, block)
    await trio.sleep(5)
    for node in (ann, bob):
        assert not node.happened.of(Rejected)
        assert node.services.scores.score(eve.peer_id) == 0


async def test_of_many_headers_on_one_parent_two_are_passed_on_and_the_rest_are_their_producers(
    three: tuple[SmallNode, SmallNode, SmallNode],
) -> None:
    ann, bob, eve = three
    orchard = Orchard(small_genesis(EASY))
    for number in range(5):
        (block,) = Orchard(orchard.genesis).grow(orchard.root, 1, EVE, salt=str(number))
        await gossip(eve, block)
        await trio.sleep(1)
    assert [one.fault for one in bob.happened.of(Rejected)] == [Fault.EQUIVOCATION] * 3
    assert {one.peer_id for one in bob.happened.of(Rejected)} == {eve.peer_id}
    assert not ann.happened.of(Rejected)
    assert len(ann.chain.store.entries) == 3


async def test_of_many_orphans_on_one_parent_two_are_passed_on(
    three: tuple[SmallNode, SmallNode, SmallNode],
) -> None:
    ann, bob, eve = three
    orchard = Orchard(small_genesis(EASY))
    (good,) = orchard.grow(orchard.root, 1, EVE)
    stray = resigned(good, EVE, parent=Hash(b"\x07" * 32), height=5)
    for number in range(1, 6):
        await gossip(eve, resigned(stray, EVE, time=Millis(stray.header.time + number)))
        await trio.sleep(0.5)
    assert [one.fault for one in bob.happened.of(Rejected)] == [Fault.EQUIVOCATION] * 3
    assert len(ann.chain.store.orphans) == 2
    assert not ann.happened.of(Rejected)


async def test_a_third_header_that_a_peer_keeps_is_not_that_peers_fault(
    three: tuple[SmallNode, SmallNode, SmallNode],
) -> None:
    ann, bob, _ = three
    await trio.sleep(5)  # the blocks' time has come
    orchard = Orchard(small_genesis(EASY))
    headers = [Orchard(orchard.genesis).grow(orchard.root, 1, EVE, salt=str(number))[0] for number in range(3)]
    for block in headers[:2]:
        await ann.chain.submit(block, None)
    await ann.chain.submit(headers[2], bob.peer_id)
    assert ann.services.scores.score(bob.peer_id) == 0
    assert not ann.happened.of(Rejected)


async def test_a_forwarder_answers_for_what_it_could_have_seen(
    three: tuple[SmallNode, SmallNode, SmallNode],
) -> None:
    _, bob, eve = three
    (block,) = wrong_states(1)
    unsigned = replace(block, signature=Signature(block.signature[:64] + b"\x05"))
    await gossip(eve, unsigned)
    rejected = await bob.happened.wait(Rejected)
    assert (rejected.peer_id, rejected.fault) == (eve.peer_id, Fault.BAD_SIGNATURE)


async def test_an_anchor_that_is_asked_for_blocks_says_so_and_loses_nothing(new_network: NewNetwork) -> None:
    network = new_network(small_genesis(EASY))
    anchor = await network.start("anchor", anchor=True)
    node = await network.start("ann", anchor)
    await node.wait_joined(anchor.peer_id)
    orchard = Orchard(network.genesis)
    orphan = orchard.grow(orchard.root, 2, BOB, CAT)[1]
    await node.chain.submit(orphan, CAT.peer_id)
    await trio.sleep(60)  # sync asks for the parent, many times
    assert node.services.scores.score(anchor.peer_id) == 0
    assert not node.happened.of(Rejected)
    assert not node.happened.of(Head)
