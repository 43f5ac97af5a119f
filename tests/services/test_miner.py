"""The race: who writes the next block, who stops when it is lost, and that every equal has an equal chance."""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import trio
import trio.testing

from loremesh.errors import BackendBusy, BackendFailed, BackendGarbage
from loremesh.primitives import Millis
from loremesh.protocol.block import PARAGRAPH, Block
from loremesh.protocol.codec import encode
from loremesh.protocol.fork_choice import children
from loremesh.protocol.genesis import Parameters
from loremesh.protocol.transaction import suggestion_id
from loremesh.services.happenings import Evidence, Head
from loremesh.services.miner import SUGGESTIONS_PER_PROMPT
from loremesh.testing.builders import EASY, identity, small_genesis, suggestion
from loremesh.testing.memory_disk import MemoryDisk
from loremesh.testing.orchard import Orchard, name_of
from loremesh.testing.small_network import RACE, SmallNetwork, SmallNode, wait_agreement
from loremesh.testing.virtual_time import run_jumping

pytestmark = pytest.mark.usefixtures("autojump_clock")

NewNetwork = Callable[..., SmallNetwork]
ZOE = identity("zoe")
SLOW = Parameters(initial_work=1, easiest_work=1, solo_after=Millis(60_000))


async def win(node: SmallNode, orchard: Orchard, *, by: str = "zoe") -> Block:
    """Let a stranger's block reach a node as if by gossip."""
    [block] = orchard.grow(node.head, 1, identity(by))
    await hand_in(node, block)
    return block


async def hand_in(node: SmallNode, *blocks: Block) -> None:
    """Let blocks reach a node once their time has come."""
    await trio.sleep_until((blocks[-1].header.time - node.chain.store.genesis.time) / 1000)
    await node.chain.submit_all(blocks, None)


async def test_a_lost_round_is_dropped_at_once_and_the_next_starts_on_the_winner(new_network: NewNetwork) -> None:
    network = new_network(small_genesis(EASY))
    node = await network.start("ann", mines=True, thinks=(1000, 1000), rate=1e-6)
    orchard = Orchard(network.genesis)
    await trio.sleep(5)
    assert len(node.backend.requests) == 1
    assert node.backend.requests[0].height == 1
    began = trio.current_time()
    winner = await win(node, orchard)
    await trio.testing.wait_all_tasks_blocked()
    assert trio.current_time() - began < 0.1
    assert (node.backend.aborted, node.search.aborted) == (1, 1)
    assert [request.height for request in node.backend.requests] == [1, 2]
    assert node.backend.requests[1].paragraphs == (winner.content.text,)


async def test_a_round_takes_the_longer_of_writing_and_searching_and_not_their_sum(new_network: NewNetwork) -> None:
    network = new_network(small_genesis(EASY))
    node = await network.start("ann", mines=True, thinks=(5, 5), rate=1000)
    await node.services.ready.wait()
    began = trio.current_time()
    await node.wait_height(1)
    assert 5 <= trio.current_time() - began < 5.5


async def test_the_tracker_does_not_mine_in_its_round_but_may_when_it_is_alone(new_network: NewNetwork) -> None:
    network = new_network()
    node = await network.start("ann", mines=True)
    await node.wait_height(5)
    canon = await node.canon()
    alone = network.genesis.parameters.solo_after
    gaps = [later.header.time - earlier.header.time for earlier, later in pairwise(canon)]
    assert min(gaps) >= alone


async def test_nobody_who_races_writes_two_blocks_in_a_row_within_solo_after(new_network: NewNetwork) -> None:
    network = new_network()
    first = await network.start("ann", mines=True)
    await network.start("bob", first, mines=True)
    await first.wait_height(20)
    canon = await first.canon()
    for earlier, later in pairwise(canon):
        if earlier.header.producer == later.header.producer:
            assert later.header.time - earlier.header.time >= network.genesis.parameters.solo_after


async def test_one_header_per_parent_however_often_heads_come_and_go(new_network: NewNetwork) -> None:
    network = new_network(small_genesis(EASY))
    node = await network.start("ann", mines=True, rate=1000)
    orchard = Orchard(network.genesis)
    await node.wait_height(1)
    [own] = await node.canon()
    # A heavier branch takes the head away from our block, and a heavier one gives it back: its parent is head again.
    rivals = orchard.grow(orchard.root, 2, ZOE, identity("yan"))
    await hand_in(node, *rivals)
    orchard.add(own)
    await node.wait_height(3)
    assert not node.happened.of(Evidence)
    store = node.chain.store
    for name in store.entries:
        producers = Counter(store.entries[child].link.producer for child in children(store, name))
        assert max(producers.values(), default=0) <= 1, name


async def test_a_restart_signs_no_second_header_on_a_parent(new_network: NewNetwork) -> None:
    network = new_network(small_genesis(SLOW))
    disk = MemoryDisk()
    node = await network.start("ann", mines=True, rate=1000, disk=disk)
    orchard = Orchard(network.genesis)
    await node.wait_height(1)
    [own] = await node.canon()
    rival, second = orchard.grow(orchard.root, 2, ZOE, identity("yan"))
    await hand_in(node, rival, second)
    await node.stop()
    again = await network.start("ann", mines=True, rate=1000, disk=disk)
    await again.wait_height(3)
    assert not again.happened.of(Evidence)
    assert set(children(again.chain.store, orchard.root)) == {name_of(own), name_of(rival)}


async def test_a_disk_that_takes_its_time_makes_no_second_header(new_network: NewNetwork) -> None:
    network = new_network(small_genesis(EASY))
    disk = MemoryDisk()
    disk.hold_up()
    node = await network.start("ann", mines=True, rate=1000, disk=disk)
    await disk.asked.wait()
    await trio.sleep(120)
    disk.go_on()
    await node.wait_height(2)
    assert not node.happened.of(Evidence)
    assert len(children(node.chain.store, node.chain.store.story)) == 1


async def test_a_block_that_waits_behind_others_for_the_disk_is_not_written_again(
    new_network: NewNetwork, nursery: trio.Nursery
) -> None:
    network = new_network(small_genesis(EASY))
    disk = MemoryDisk()
    node = await network.start("ann", mines=True, rate=1000, thinks=(1, 1), disk=disk)
    node.backend.failures = deque([BackendFailed("not yet")] * 3)
    orchard = Orchard(network.genesis)
    twins = [*orchard.grow(orchard.root, 1, ZOE), *orchard.grow(orchard.root, 1, identity("yan"))]
    head, loser = sorted(twins, key=name_of)
    await hand_in(node, head)
    disk.hold_up()
    nursery.start_soon(node.chain.submit, loser, None)
    await disk.asked.wait()
    await trio.sleep(60)
    disk.go_on()
    await node.wait_height(2)
    assert node.chain.store.entries[node.head].parent == name_of(head)
    await trio.sleep(60)
    assert not node.happened.of(Evidence)


async def test_a_block_is_announced_only_once_the_disk_has_it(new_network: NewNetwork) -> None:
    network = new_network(small_genesis(EASY))
    watcher = await network.start("bob")
    disk = MemoryDisk()
    node = await network.start("ann", watcher, mines=True, disk=disk, thinks=(2, 2))
    await watcher.wait_joined(node.peer_id)
    disk.hold_up()
    await disk.asked.wait()
    await trio.sleep(1)
    assert not watcher.happened.of(Head)
    disk.go_on()
    await watcher.wait_height(1)


async def test_a_backend_that_fails_is_tried_again_ever_more_patiently(new_network: NewNetwork) -> None:
    network = new_network(small_genesis(EASY))
    node = await network.start("ann", mines=True, rate=1000)
    node.backend.failures = deque(
        [BackendFailed("500"), BackendBusy("429", 1), BackendGarbage("no words"), BackendFailed("x")]
    )
    await node.services.ready.wait()
    began = trio.current_time()
    await node.wait_height(1)
    assert len(node.backend.requests) == 5
    assert 1 + 2 + 4 + 8 <= trio.current_time() - began < 17


async def test_a_backend_that_never_works_ends_neither_the_node_nor_its_chain(new_network: NewNetwork) -> None:
    network = new_network()
    broken = await network.start("ann", mines=True)
    broken.backend.failures = deque([BackendFailed("500")] * 10_000)
    working = await network.start("bob", broken, mines=True)
    await working.wait_height(5)
    assert await wait_agreement([broken, working], 5)
    assert {block.header.producer for block in await broken.canon()} == {working.peer_id}


async def test_a_backend_that_fails_just_when_the_round_is_lost_ends_no_node(new_network: NewNetwork) -> None:
    network = new_network(small_genesis(EASY))
    node = await network.start("ann", mines=True, thinks=(1000, 1000), rate=1e-6)
    node.backend.fails_when_cancelled = True
    orchard = Orchard(network.genesis)
    for name in ("zoe", "bob", "cat"):
        await win(node, orchard, by=name)
    await trio.testing.wait_all_tasks_blocked()
    assert [request.height for request in node.backend.requests] == [1, 2, 3, 4]


async def test_a_failing_backend_waits_for_no_new_head(new_network: NewNetwork) -> None:
    network = new_network(small_genesis(EASY))
    node = await network.start("ann", mines=True, thinks=(1, 1), rate=1000)
    node.backend.failures = deque([BackendFailed("500")] * 4)
    await trio.sleep(12)
    requests = len(node.backend.requests)
    await win(node, Orchard(network.genesis))
    await trio.testing.wait_all_tasks_blocked()
    assert len(node.backend.requests) == requests + 1


async def test_the_suggestions_with_the_most_support_are_in_the_prompt_and_cited(new_network: NewNetwork) -> None:
    network = new_network(small_genesis(EASY))
    node = await network.start("ann", mines=True, thinks=(30, 30), rate=1000)
    texts = ["The sea freezes.", "A ship sings.", "The lamp goes out."]
    senders = {texts[0]: ["bob"], texts[1]: ["bob", "cat", "dan"], texts[2]: ["bob", "cat"]}
    nonces = Counter[str]()
    for text in texts:
        for name in senders[text]:
            await node.chain.add_transaction(suggestion(identity(name), network.genesis, text, nonces[name]))
            nonces[name] += 1
    await win(node, Orchard(network.genesis))
    await node.wait_height(2)
    request = node.backend.requests[-1] if node.height == 2 else node.backend.requests[-2]
    assert SUGGESTIONS_PER_PROMPT == 2
    assert request.suggestions == (texts[1], texts[2])
    block = (await node.canon())[1]
    assert block.content.certificate.suggestions == tuple(
        suggestion_id(node.chain.store.story, text) for text in (texts[1], texts[2])
    )
    assert set(node.chain.parent().state.suggestions) >= {suggestion_id(node.chain.store.story, texts[0])}


async def test_a_prompt_holds_the_newest_paragraphs_and_no_more_than_the_story_allows(new_network: NewNetwork) -> None:
    genesis = small_genesis(EASY)
    network = new_network(replace(genesis, rules=replace(genesis.rules, context=3)))
    node = await network.start("ann", mines=True, thinks=(1000, 1000))
    orchard = Orchard(network.genesis)
    told = [(await win(node, orchard, by=name)).content.text for name in ("zoe", "bob", "cat", "dan")]
    await trio.testing.wait_all_tasks_blocked()
    request = node.backend.requests[-1]
    assert request.paragraphs == tuple(told[-3:])
    assert (request.max_context, request.max_words) == (3, genesis.rules.words)


async def test_mining_waits_until_the_node_is_ready(new_network: NewNetwork) -> None:
    network = new_network()
    first = await network.start("ann")
    first.network.deny(frozenset({identity("bob").peer_id}))
    lonely = await network.start("bob", first, mines=True)
    await trio.sleep(4.9)
    assert not lonely.backend.requests
    await lonely.services.ready.wait()
    await lonely.wait_height(1)


async def test_equal_miners_have_equal_chances(new_network: NewNetwork) -> None:
    """S0-13: over 300 rounds no author's share is beyond chance (chi-square, p > 0.01)."""
    network = new_network(small_genesis(RACE), seed=13)
    first = await network.start("ann", mines=True, thinks=(0.2, 1.5), rate=5)
    others = [await network.start(name, first, mines=True, thinks=(0.2, 1.5), rate=5) for name in ("bob", "cat", "dan")]
    nodes = [first, *others]
    await first.wait_height(300)
    canon = (await first.canon())[:300]
    shares = Counter(block.header.producer for block in canon)
    assert set(shares) == {node.peer_id for node in nodes}
    expected = len(canon) / len(nodes)
    assert sum((share - expected) ** 2 / expected for share in shares.values()) < 11.345  # 3 degrees of freedom
    assert {block.content.kind for block in canon} == {PARAGRAPH}
    assert len({block.content.text for block in canon}) == 300
    took = (canon[-1].header.time - canon[0].header.time) / 299
    assert 0.5 < took / network.genesis.parameters.spacing < 2


def test_the_same_seeds_tell_the_same_story() -> None:
    async def tell() -> list[bytes]:
        async with trio.open_nursery() as nursery:
            network = SmallNetwork(nursery, small_genesis(RACE), seed=4)
            first = await network.start("ann", mines=True, thinks=(0.2, 1.5))
            await network.start("bob", first, mines=True, thinks=(0.2, 1.5))
            await first.wait_height(20)
            told = [encode(block) for block in await first.canon()]
            nursery.cancel_scope.cancel()
        return told[:20]

    assert run_jumping(tell) == run_jumping(tell)
