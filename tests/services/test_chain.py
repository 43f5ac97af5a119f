"""The chain service: what it tells, when it tells it, and what the disk has by then."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from loremesh.errors import Fault, InvalidBlock, InvalidTransaction, ProtocolError
from loremesh.primitives import Hash, PeerId
from loremesh.protocol.fork_choice import KEEP_STATES
from loremesh.protocol.genesis import Genesis
from loremesh.protocol.transaction import transaction_hash
from loremesh.services.canon import newest_paragraphs
from loremesh.services.chain import ChainService, Disk
from loremesh.services.happenings import Evidence, Head
from loremesh.storage.writes import RemoveTransactions, SaveBlocks
from loremesh.testing.builders import BOB, CAT, DAN, START, resigned, small_genesis, suggestion
from loremesh.testing.happened import Happened
from loremesh.testing.memory_disk import MemoryDisk
from loremesh.testing.orchard import Orchard, name_of
from loremesh.testing.virtual_time import virtual_clock

pytestmark = pytest.mark.usefixtures("autojump_clock")

GENESIS = small_genesis()
LATER = START + 10**9


@dataclass(slots=True)
class Kept:
    """A chain service at work, and what it said."""

    chain: ChainService
    happened: Happened = field(default_factory=Happened)
    blamed: list[tuple[PeerId, Fault]] = field(default_factory=list)


Keep = Callable[..., Awaitable[Kept]]


@pytest.fixture
def keep(nursery: trio.Nursery) -> Keep:
    """Start a chain service; its clock stands far behind every block unless told otherwise."""

    async def start(
        disk: Disk | None = None, *, genesis: Genesis = GENESIS, start: int = LATER, max_reorg: int | None = None
    ) -> Kept:
        happened, blamed = Happened(), list[tuple[PeerId, Fault]]()

        def penalize(peer_id: PeerId, what: str, error: ProtocolError) -> None:
            assert what == "block"
            blamed.append((peer_id, error.fault))

        chain = ChainService(
            genesis,
            disk or MemoryDisk(),
            clock=virtual_clock(start),
            tell=happened,
            penalize=penalize,
            max_reorg=max_reorg,
        )
        await chain.restore()
        nursery.start_soon(chain.run)
        return Kept(chain, happened, blamed)

    return start


async def test_a_head_is_told_only_once_the_disk_has_it(keep: Keep, nursery: trio.Nursery) -> None:
    disk, orchard = MemoryDisk(), Orchard(GENESIS)
    kept = await keep(disk)
    [block] = orchard.grow(orchard.root, 1, BOB)
    disk.hold_up()
    nursery.start_soon(kept.chain.submit, block, CAT.peer_id)
    await disk.asked.wait()
    await trio.sleep(60)
    assert not kept.happened.of(Head)
    assert kept.chain.head.value == orchard.root
    disk.go_on()
    head = await kept.happened.wait(Head)
    assert head == Head(block.header.height, name_of(block), BOB.peer_id, 0)
    assert list(await disk.load_blocks([head.hash])) == [head.hash]


async def test_a_block_on_its_way_to_the_disk_is_neither_shown_nor_built_on(keep: Keep, nursery: trio.Nursery) -> None:
    disk, orchard = MemoryDisk(), Orchard(GENESIS)
    kept = await keep(disk)
    [block] = orchard.grow(orchard.root, 1, BOB)
    disk.hold_up()
    nursery.start_soon(kept.chain.submit, block, CAT.peer_id)
    await disk.asked.wait()
    assert name_of(block) not in kept.chain.store.entries
    assert kept.chain.parent().link.hash == orchard.root
    assert await newest_paragraphs(kept.chain, kept.chain.parent().link.hash, 30) == ()
    assert kept.chain.knows(name_of(block))
    assert kept.chain.is_overtaken(orchard.root)
    disk.go_on()
    await kept.happened.wait(Head)
    assert kept.chain.parent().link.hash == name_of(block)
    assert not kept.chain.is_overtaken(name_of(block))


async def test_a_batch_of_blocks_is_one_trip_to_the_disk(keep: Keep) -> None:
    disk, orchard = MemoryDisk(), Orchard(GENESIS)
    kept = await keep(disk)
    blocks = orchard.grow(orchard.root, 20, BOB, CAT)
    await kept.chain.submit_all(blocks, DAN.peer_id)
    assert len(disk.commits) == 1
    [[saved]] = disk.commits
    assert isinstance(saved, SaveBlocks)
    assert [block.hash for block in saved.blocks] == [name_of(block) for block in blocks]
    [head] = kept.happened.of(Head)
    assert head.height == 20


async def test_what_was_waiting_and_is_in_a_block_leaves_the_disk_with_that_block(keep: Keep) -> None:
    disk, orchard = MemoryDisk(), Orchard(GENESIS)
    kept = await keep(disk)
    wish = suggestion(DAN, GENESIS, "The sea freezes overnight.")
    assert await kept.chain.add_transaction(wish)
    [block] = orchard.grow(orchard.root, 1, BOB, transactions=(wish,))
    await kept.chain.submit(block, CAT.peer_id)
    assert await disk.transactions() == []
    assert not kept.chain.pool.waiting
    assert [type(write) for write in disk.commits[-1]] == [SaveBlocks, RemoveTransactions]


async def test_a_transaction_is_taken_in_once_and_is_durable_then(keep: Keep) -> None:
    disk = MemoryDisk()
    kept = await keep(disk)
    wish = suggestion(DAN, GENESIS, "The sea freezes overnight.")
    assert await kept.chain.add_transaction(wish)
    assert len(await disk.transactions()) == 1
    assert not await kept.chain.add_transaction(wish)
    assert len(disk.commits) == 1


async def test_the_transactions_of_an_abandoned_block_wait_again(keep: Keep) -> None:
    disk, orchard = MemoryDisk(), Orchard(GENESIS)
    kept = await keep(disk)
    wish = suggestion(DAN, GENESIS, "The sea freezes overnight.")
    lost = orchard.grow(orchard.root, 2, BOB, CAT, transactions=())
    [taken] = orchard.grow(name_of(lost[-1]), 1, BOB, transactions=(wish,))
    await kept.chain.submit_all([*lost, taken], CAT.peer_id)
    longer = orchard.grow(orchard.root, 4, CAT, DAN)
    await kept.chain.submit_all(longer, CAT.peer_id)
    assert kept.happened.of(Head)[-1] == Head(longer[-1].header.height, name_of(longer[-1]), DAN.peer_id, 3)
    assert list(kept.chain.pool.waiting) == [transaction_hash(orchard.root, wish.body)]
    assert len(await disk.transactions()) == 1


async def test_all_transactions_of_abandoned_blocks_return_with_one_trip_to_the_disk(keep: Keep) -> None:
    disk, orchard = MemoryDisk(), Orchard(GENESIS)
    kept = await keep(disk)
    tip, wishes = orchard.root, [suggestion(DAN, GENESIS, f"The sea freezes in year {n}.", n) for n in range(5)]
    for wish in wishes:
        [block] = orchard.grow(tip, 1, BOB, transactions=(wish,))
        await kept.chain.submit(block, CAT.peer_id)
        tip = name_of(block)
    before = len(disk.commits)
    longer = orchard.grow(orchard.root, 6, CAT)
    await kept.chain.submit_all(longer, CAT.peer_id)
    assert kept.chain.head.value == name_of(longer[-1])
    assert len(kept.chain.pool.waiting) == len(await disk.transactions()) == len(wishes)
    assert len(disk.commits) == before + 2  # the branch, and what returns


async def test_a_reorganisation_of_a_hundred_blocks_is_durable_at_once_and_shows_no_head_between(keep: Keep) -> None:
    disk, orchard = MemoryDisk(), Orchard(GENESIS)
    kept = await keep(disk)
    one, other = (orchard.grow(orchard.root, 100, *producers) for producers in ((BOB, CAT), (CAT, DAN)))
    right, left = sorted((one, other), key=lambda branch: name_of(branch[-1]))
    await kept.chain.submit_all(left, CAT.peer_id)
    commits, heads = len(disk.commits), len(kept.happened.of(Head))
    await kept.chain.submit_all(right, CAT.peer_id)
    assert [(head.hash, head.reorg_depth) for head in kept.happened.of(Head)[heads:]] == [(name_of(right[-1]), 100)]
    assert len(disk.commits) == commits + 1


async def test_a_transaction_that_the_new_branch_has_as_well_does_not_return(keep: Keep) -> None:
    orchard = Orchard(GENESIS)
    kept = await keep()
    wish = suggestion(DAN, GENESIS, "The sea freezes overnight.")
    await kept.chain.submit_all(orchard.grow(orchard.root, 1, BOB, transactions=(wish,)), CAT.peer_id)
    first, *rest = orchard.grow(orchard.root, 1, CAT, transactions=(wish,))
    longer = [first, *rest, *orchard.grow(name_of(first), 2, DAN, BOB)]
    await kept.chain.submit_all(longer, CAT.peer_id)
    assert kept.chain.head.value == name_of(longer[-1])
    assert not kept.chain.pool.waiting


async def test_whoever_sends_a_block_with_an_unknown_parent_is_asked_for_more(keep: Keep) -> None:
    orchard = Orchard(GENESIS)
    kept = await keep()
    missing, orphan = orchard.grow(orchard.root, 2, BOB, CAT)
    asked: list[PeerId | None] = []
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            asked.append(await kept.chain.orphaned.wait_change())

        nursery.start_soon(watch)
        await trio.testing.wait_all_tasks_blocked()
        await kept.chain.submit(orphan, DAN.peer_id)
    assert asked == [DAN.peer_id]
    assert not kept.happened.of(Head)
    await kept.chain.submit(missing, CAT.peer_id)
    assert kept.chain.head.value == name_of(orphan)
    assert not kept.blamed


async def test_an_orphan_that_turns_out_invalid_is_blamed_on_its_sender(keep: Keep) -> None:
    orchard = Orchard(GENESIS)
    kept = await keep()
    parent, child = orchard.grow(orchard.root, 2, BOB, CAT)
    liar = resigned(child, CAT, state_root=Hash(b"\x07" * 32))
    await kept.chain.submit(liar, DAN.peer_id)
    assert not kept.blamed
    await kept.chain.submit(parent, BOB.peer_id)
    assert kept.blamed == [(DAN.peer_id, Fault.WRONG_STATE_ROOT)]
    assert kept.chain.head.value == name_of(parent)


async def test_an_invalid_block_is_blamed_on_its_sender_and_changes_nothing(keep: Keep) -> None:
    disk, orchard = MemoryDisk(), Orchard(GENESIS)
    kept = await keep(disk)
    good, better = orchard.grow(orchard.root, 2, BOB, CAT)
    bad = resigned(good, BOB, height=2)
    with pytest.raises(InvalidBlock) as refused:
        await kept.chain.submit_all([bad, good, better], DAN.peer_id)
    assert refused.value.fault is Fault.WRONG_HEIGHT
    assert kept.blamed == [(DAN.peer_id, Fault.WRONG_HEIGHT)]
    assert kept.chain.head.value == name_of(better)
    assert len(disk.commits) == 1


async def test_our_own_invalid_block_is_nobody_elses_fault(keep: Keep) -> None:
    orchard = Orchard(GENESIS)
    kept = await keep()
    [block] = orchard.grow(orchard.root, 1, BOB)
    with pytest.raises(InvalidBlock):
        await kept.chain.submit(resigned(block, BOB, height=2), None)
    assert not kept.blamed


async def test_a_block_that_is_known_costs_nothing_and_nobody(keep: Keep) -> None:
    disk, orchard = MemoryDisk(), Orchard(GENESIS)
    kept = await keep(disk)
    blocks = orchard.grow(orchard.root, 3, BOB, CAT)
    for _ in range(3):
        await kept.chain.submit_all(blocks, DAN.peer_id)
    assert len(disk.commits) == 1
    assert len(kept.happened.of(Head)) == 1
    assert not kept.blamed


async def test_a_held_block_joins_at_its_time_and_not_before(keep: Keep) -> None:
    orchard = Orchard(GENESIS)
    ahead = GENESIS.parameters.max_ahead
    [block] = orchard.grow(orchard.root, 1, BOB)
    kept = await keep(start=block.header.time - ahead - 4000)
    await kept.chain.submit(block, DAN.peer_id)
    began = trio.current_time()
    assert kept.chain.head.value == orchard.root
    await kept.happened.wait(Head)
    assert trio.current_time() - began == pytest.approx(4.0, abs=0.01)
    assert kept.chain.head.value == name_of(block)


async def test_a_held_block_that_turns_out_invalid_is_blamed_on_its_sender(keep: Keep) -> None:
    orchard = Orchard(GENESIS)
    [block] = orchard.grow(orchard.root, 1, BOB)
    liar = resigned(block, BOB, state_root=Hash(b"\x07" * 32))
    kept = await keep(start=block.header.time - GENESIS.parameters.max_ahead - 4000)
    await kept.chain.submit(liar, DAN.peer_id)
    assert not kept.blamed
    await trio.sleep(5)
    assert kept.blamed == [(DAN.peer_id, Fault.WRONG_STATE_ROOT)]


async def test_a_fork_far_below_is_replayed_from_the_disk(keep: Keep) -> None:
    orchard = Orchard(GENESIS)
    kept = await keep()
    trunk = orchard.grow(orchard.root, KEEP_STATES + 30, BOB, CAT)
    await kept.chain.submit_all(trunk, DAN.peer_id)
    below = name_of(trunk[9])
    assert below not in kept.chain.store.states
    branch = orchard.grow(below, 2, DAN, BOB)
    await kept.chain.submit_all(branch, DAN.peer_id)
    assert name_of(branch[-1]) in kept.chain.store.tips
    assert kept.chain.head.value == name_of(trunk[-1])


async def test_a_fork_on_a_block_that_is_still_on_its_way_to_the_disk_is_replayed_too(keep: Keep) -> None:
    orchard = Orchard(GENESIS)
    kept = await keep()
    trunk = orchard.grow(orchard.root, KEEP_STATES + 30, BOB, CAT)
    branch = orchard.grow(name_of(trunk[9]), 2, DAN, BOB)
    await kept.chain.submit_all([*trunk, *branch], DAN.peer_id)
    assert name_of(branch[-1]) in kept.chain.store.tips
    assert kept.chain.head.value == name_of(trunk[-1])


async def test_a_reorganisation_deeper_than_allowed_waits_for_the_operator(
    keep: Keep, caplog: pytest.LogCaptureFixture
) -> None:
    disk, orchard = MemoryDisk(), Orchard(GENESIS)
    kept = await keep(disk, max_reorg=3)
    trunk, longer = orchard.grow(orchard.root, 5, BOB, CAT), orchard.grow(orchard.root, 7, CAT, DAN)
    await kept.chain.submit_all(trunk, DAN.peer_id)
    await kept.chain.submit_all(longer, DAN.peer_id)
    assert kept.chain.head.value == name_of(trunk[-1])
    assert "--max-reorg 5" in caplog.text
    allowed = await keep(disk, max_reorg=5)
    assert allowed.chain.head.value == name_of(longer[-1])


async def test_a_fork_within_what_is_allowed_switches_and_says_how_deep(keep: Keep) -> None:
    orchard = Orchard(GENESIS)
    kept = await keep(max_reorg=3)
    trunk, longer = orchard.grow(orchard.root, 3, BOB, CAT), orchard.grow(orchard.root, 4, CAT, DAN)
    await kept.chain.submit_all(trunk, DAN.peer_id)
    await kept.chain.submit_all(longer, DAN.peer_id)
    assert kept.happened.of(Head)[-1] == Head(longer[-1].header.height, name_of(longer[-1]), DAN.peer_id, 3)


async def test_two_headers_on_one_parent_are_evidence(keep: Keep) -> None:
    orchard = Orchard(GENESIS)
    kept = await keep()
    twins = orchard.grow(orchard.root, 1, BOB) + orchard.grow(orchard.root, 1, BOB, salt="twin")
    await kept.chain.submit_all(twins, DAN.peer_id)
    assert kept.happened.of(Evidence) == [Evidence(BOB.peer_id, "two headers on one parent")]


async def test_a_third_header_is_kept_with_what_is_built_on_it_through_a_restart(keep: Keep) -> None:
    disk, orchard = MemoryDisk(), Orchard(GENESIS)
    kept = await keep(disk)
    twins = [orchard.grow(orchard.root, 1, BOB, salt=salt)[0] for salt in "abc"]
    await kept.chain.submit_all(twins, DAN.peer_id)
    assert name_of(twins[2]) in kept.chain.store.surplus
    assert not await disk.load_blocks([name_of(twins[2])])
    [child] = orchard.grow(name_of(twins[2]), 1, CAT)
    await kept.chain.submit(child, DAN.peer_id)
    assert kept.chain.head.value == name_of(child)
    assert not kept.blamed
    again = await keep(disk)
    assert again.chain.head.value == name_of(child)
    assert set(again.chain.store.entries) == {orchard.root, name_of(child), *map(name_of, twins)}


async def test_a_third_header_that_turns_out_invalid_is_blamed_on_its_sender(keep: Keep) -> None:
    orchard = Orchard(GENESIS)
    kept = await keep()
    twins = [orchard.grow(orchard.root, 1, BOB, salt=salt)[0] for salt in "ab"]
    await kept.chain.submit_all(twins, None)
    bad = resigned(twins[0], BOB, state_root=Hash(bytes(32)))
    child = resigned(orchard.grow(name_of(twins[0]), 1, CAT)[0], CAT, parent=name_of(bad))
    await kept.chain.submit(bad, DAN.peer_id)
    assert not kept.blamed
    await kept.chain.submit(child, CAT.peer_id)
    assert (DAN.peer_id, Fault.WRONG_STATE_ROOT) in kept.blamed


async def test_a_restart_resumes_the_chain_and_what_was_waiting(keep: Keep) -> None:
    disk, orchard = MemoryDisk(), Orchard(GENESIS)
    before = await keep(disk)
    blocks = [*orchard.grow(orchard.root, 30, BOB, CAT), *orchard.grow(orchard.root, 2, DAN, BOB)]
    await before.chain.submit_all(blocks, DAN.peer_id)
    wishes = [suggestion(DAN, GENESIS, f"Boat number {number} comes home.", number) for number in range(3)]
    for wish in wishes:
        await before.chain.add_transaction(wish)
    after = await keep(disk)
    assert after.chain.head.value == before.chain.head.value
    assert after.chain.parent() == before.chain.parent()
    assert after.chain.store.tips == before.chain.store.tips
    assert set(after.chain.pool.waiting) == set(before.chain.pool.waiting)
    assert after.chain.next_nonce(DAN.peer_id) == 3


async def test_a_kept_transaction_that_a_block_overtook_is_let_go_at_the_restart(keep: Keep) -> None:
    disk, orchard = MemoryDisk(), Orchard(GENESIS)
    before = await keep(disk)
    await before.chain.add_transaction(suggestion(DAN, GENESIS, "The sea freezes overnight."))
    other = suggestion(DAN, GENESIS, "The sea boils by noon.")
    [block] = orchard.grow(orchard.root, 1, BOB, transactions=(other,))
    lost = MemoryDisk()
    for writes in disk.commits:
        await lost.commit(*writes)
    await before.chain.submit(block, CAT.peer_id)
    await lost.commit(*[write for writes in disk.commits for write in writes if isinstance(write, SaveBlocks)])
    after = await keep(lost)
    assert not after.chain.pool.waiting


async def test_a_transaction_that_breaks_a_rule_is_refused_and_leaves_no_trace(keep: Keep) -> None:
    disk = MemoryDisk()
    kept = await keep(disk)
    with pytest.raises(InvalidTransaction) as refused:
        await kept.chain.add_transaction(suggestion(DAN, GENESIS, "The sea freezes overnight.", nonce=99))
    assert refused.value.fault is Fault.WRONG_NONCE
    assert not disk.commits


async def test_what_waits_is_chosen_for_the_next_block_and_leaves_room_for_the_text(keep: Keep) -> None:
    kept = await keep()
    for number in range(10):
        await kept.chain.add_transaction(suggestion(DAN, GENESIS, f"Boat number {number} comes home.", number))
    chosen, after = kept.chain.choose_transactions(kept.chain.parent())
    assert [one.body.nonce for one in chosen] == list(range(10))
    assert after.nonce(DAN.peer_id) == 10


async def test_the_newest_paragraphs_are_read_in_the_order_they_are_told(keep: Keep) -> None:
    orchard = Orchard(GENESIS)
    kept = await keep()
    blocks = orchard.grow(orchard.root, 5, BOB, CAT)
    await kept.chain.submit_all(blocks, DAN.peer_id)
    assert await newest_paragraphs(kept.chain, kept.chain.head.value, 3) == tuple(
        block.content.text for block in blocks[-3:]
    )
    assert len(await newest_paragraphs(kept.chain, kept.chain.head.value, 30)) == 5
