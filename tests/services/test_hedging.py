"""Whoever is slow to answer holds nobody up, is not blamed for it, and costs one more question, never two."""

from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import trio

from loremesh.errors import DeadlinePassed, Fault, InvalidMessage
from loremesh.network.frames import Stream
from loremesh.primitives import Hash, PeerId
from loremesh.protocol.block import Block
from loremesh.protocol.codec import decode
from loremesh.protocol.wire import SYNC_PROTOCOL, Headers, MessageType, seal, unseal
from loremesh.services.download import BATCH, Download
from loremesh.services.happenings import Rejected
from loremesh.services.hedging import Failure, first_answer, patience
from loremesh.testing.builders import ANN, BOB, CAT, DAN, EASY, small_genesis
from loremesh.testing.orchard import Orchard, name_of
from loremesh.testing.small_network import SmallNetwork, SmallNode

pytestmark = pytest.mark.usefixtures("autojump_clock")

NewNetwork = Callable[..., SmallNetwork]
GENESIS = small_genesis(EASY)
FIRST, SECOND = BOB.peer_id, CAT.peer_id


class Panel:
    """Peers that answer after a while, each in its own way."""

    def __init__(self, **answers: tuple[float, str | Failure | None]) -> None:
        self.answers = {FIRST: answers["first"], SECOND: answers["second"]}
        self.asked: list[tuple[PeerId, float]] = []
        self.given_up: list[PeerId] = []
        self.failed: dict[PeerId, Failure] = {}

    async def ask(self, peer: PeerId) -> str | None:
        self.asked.append((peer, trio.current_time()))
        pause, answer = self.answers[peer]
        try:
            await trio.sleep(pause)
        except trio.Cancelled:
            self.given_up.append(peer)
            raise
        if isinstance(answer, Failure):
            raise answer
        return answer

    async def first_answer(self, usual: float = 0.0, second: PeerId | None = SECOND) -> tuple[PeerId, str] | None:
        return await first_answer(self.ask, FIRST, lambda: second, usual, self.failed)


LIE = InvalidMessage(Fault.NOT_AS_ASKED, "a lie")


async def test_who_answers_in_time_is_asked_alone() -> None:
    panel = Panel(first=(0.99, "true"), second=(0, "too"))
    assert await panel.first_answer() == (FIRST, "true")
    assert panel.asked == [(FIRST, 0)]


@pytest.mark.parametrize(("usual", "after"), [(0.0, 1.0), (0.5, 1.0), (0.6, 1.2), (4.0, 8.0)])
async def test_a_second_is_asked_after_a_second_or_twice_the_usual_time(usual: float, after: float) -> None:
    panel = Panel(first=(100, "late"), second=(0.1, "quick"))
    assert patience(usual) == after
    assert await panel.first_answer(usual) == (SECOND, "quick")
    assert panel.asked == [(FIRST, 0), (SECOND, after)]
    assert panel.given_up == [FIRST]
    assert panel.failed == {}


async def test_the_first_may_still_win_and_the_second_is_given_up() -> None:
    panel = Panel(first=(1.5, "true"), second=(1, "too"))
    assert await panel.first_answer() == (FIRST, "true")
    assert panel.given_up == [SECOND]
    assert panel.failed == {}


async def test_who_lies_loses_and_is_named_whoever_was_quicker() -> None:
    panel = Panel(first=(3, "true"), second=(0.1, LIE))
    assert await panel.first_answer() == (FIRST, "true")
    assert panel.failed == {SECOND: LIE}


async def test_who_fails_or_has_nothing_is_followed_at_once() -> None:
    for useless in (LIE, DeadlinePassed("slow"), None):
        panel = Panel(first=(0.2, useless), second=(0.1, "true"))
        began = trio.current_time()
        assert await panel.first_answer() == (SECOND, "true")
        assert trio.current_time() - began == pytest.approx(0.3)


async def test_when_both_have_nothing_nobody_else_is_asked() -> None:
    panel = Panel(first=(2, None), second=(2, LIE))
    assert await panel.first_answer() is None
    assert [peer for peer, _ in panel.asked] == [FIRST, SECOND]
    assert panel.failed == {SECOND: LIE}


async def test_without_a_second_the_first_is_waited_for() -> None:
    panel = Panel(first=(9, "late"), second=(0, "never asked"))
    assert await panel.first_answer(second=None) == (FIRST, "late")
    assert [peer for peer, _ in panel.asked] == [FIRST]


# bodies


class Taken:
    """A chain that takes everything but what it is told to refuse."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.refuses: PeerId | None = None

    async def submit_all(self, blocks: Sequence[Block], sender: PeerId | None) -> None:
        await trio.lowlevel.checkpoint()
        if sender == self.refuses:
            raise InvalidMessage(Fault.WRONG_CONTENT_ROOT, "forged")
        self.blocks += blocks


async def download(
    chain: Taken, pauses: dict[PeerId, float], *parts: int
) -> tuple[Counter[PeerId], dict[PeerId, list[float]], Download]:
    """Fetch some batches, named in parts; give who was asked how often, who was given up when, and the download."""
    orchard = Orchard(GENESIS)
    blocks = {name_of(block): block for block in orchard.grow(orchard.root, sum(parts) * BATCH, BOB, CAT)}
    asked = Counter[PeerId]()
    given_up: dict[PeerId, list[float]] = {peer: [] for peer in pauses}

    async def fetch(peer: PeerId, wanted: Sequence[Hash], into: list[Block]) -> None:
        asked[peer] += 1
        try:
            await trio.sleep(pauses[peer])
        except trio.Cancelled:
            given_up[peer].append(trio.current_time())
            raise
        into.extend(blocks[name] for name in wanted)

    loading = Download(fetch, chain, list(pauses))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(loading.run)
        names = list(blocks)
        for part in parts:
            await loading.add(names[: part * BATCH])
            del names[: part * BATCH]
            await trio.sleep(5 if names else 0)
        loading.finish()
    assert chain.blocks == list(blocks.values())
    return asked, given_up, loading


async def test_a_batch_that_does_not_come_is_asked_of_one_more_and_the_slow_peer_is_let_go() -> None:
    pauses = {ANN.peer_id: 25.0, BOB.peer_id: 0.5, CAT.peer_id: 0.5, DAN.peer_id: 0.5}
    asked, given_up, loading = await download(Taken(), pauses, 30)
    assert trio.current_time() > 3
    assert asked[ANN.peer_id] == 2  # two requests under way, and no more
    assert max(given_up[ANN.peer_id]) < 2.5  # the download goes on, but nobody waits for it
    assert asked.total() <= 30 + 2  # each of its batches was asked once more
    assert loading.failed == {}
    assert ANN.peer_id not in loading.gave


async def test_where_everybody_takes_long_nobody_is_asked_twice_for_it() -> None:
    pauses = {BOB.peer_id: 3.0, CAT.peer_id: 3.0}
    asked, given_up, loading = await download(Taken(), pauses, 1, 12)
    assert asked.total() == 13 + 1  # the first, before anybody knew what is usual here
    assert [time for times in given_up.values() for time in times] == pytest.approx([3.0])
    assert loading.gave == pauses.keys()  # to be a little later than another is no reason to be asked no more


async def test_a_quick_liar_does_not_take_the_slow_peers_turn() -> None:
    chain = Taken()
    chain.refuses = CAT.peer_id
    asked, _, loading = await download(chain, {BOB.peer_id: 5.0, CAT.peer_id: 0.1}, 2)
    assert list(loading.failed) == [CAT.peer_id]
    assert loading.gave == {BOB.peer_id}
    assert asked[BOB.peer_id] == 2


# on a network


async def keeper(network: SmallNetwork, name: str, blocks: Sequence[Block]) -> SmallNode:
    node = await network.start(name)
    await trio.sleep_until((max(block.header.time for block in blocks) - GENESIS.time) / 1000)
    await node.chain.submit_all(blocks, None)
    return node


def slow_down(node: SmallNode, slow: MessageType, pause: float) -> Counter[MessageType]:
    """Let a node take its time for one kind of request; counts what it is asked for."""
    asked = Counter[MessageType]()
    serve = node.network._handlers[SYNC_PROTOCOL]

    async def dawdle(stream: Stream) -> None:
        receive = stream.receive

        async def and_wait(*args: float) -> bytes | None:
            frame = await receive(*args)  # type: ignore[arg-type]  # passed on as they came
            kind, _ = unseal(frame or b"", stream.peer_id)
            asked[kind] += 1
            if kind is slow:
                await trio.sleep(pause)
            return frame

        stream.receive = and_wait  # type: ignore[method-assign, assignment]  # a tap on one stream
        await serve(stream)

    node.network.serve(SYNC_PROTOCOL, dawdle)
    return asked


@pytest.mark.parametrize("slow", [MessageType.HEADERS_REQUEST, MessageType.BLOCKS_REQUEST])
async def test_a_late_joiner_does_not_wait_for_a_slow_peer_and_blames_nobody(
    slow: MessageType, new_network: NewNetwork
) -> None:
    network = new_network(GENESIS)
    blocks = Orchard(GENESIS).grow(Orchard(GENESIS).root, 600, BOB, CAT)
    dawdler = await keeper(network, "ann", blocks)
    quick = await keeper(network, "bob", blocks)
    asked = slow_down(dawdler, slow, 9)
    joiner = await network.start("dan")
    await joiner.network.connect(dawdler.address)
    await trio.sleep(0.5)  # the slow one is asked first
    assert asked[slow] >= 1
    began = trio.current_time()
    await joiner.network.connect(quick.address)
    await joiner.wait_height(600)
    assert trio.current_time() - began < 4
    assert asked[slow] <= 2
    await trio.sleep(60)
    for node in (joiner, dawdler, quick):
        assert not node.happened.of(Rejected)
        assert node.services.scores.score(dawdler.peer_id) == 0


async def test_a_quick_helper_that_lies_about_headers_is_named_and_the_slow_truth_counts(
    new_network: NewNetwork,
) -> None:
    network = new_network(GENESIS)
    blocks = Orchard(GENESIS).grow(Orchard(GENESIS).root, 40, BOB, CAT)
    honest = await keeper(network, "ann", blocks)
    liar = await keeper(network, "bob", blocks)
    slow_down(honest, MessageType.HEADERS_REQUEST, 5)
    lied = lie_about_headers(liar)
    joiner = await network.start("dan")
    await joiner.network.connect(honest.address)
    await trio.sleep(0.5)
    await joiner.network.connect(liar.address)
    await joiner.wait_height(40)
    assert (await joiner.happened.wait(Rejected)).peer_id == liar.peer_id
    assert lied
    assert {one.peer_id for one in joiner.happened.of(Rejected)} == {liar.peer_id}
    assert joiner.services.scores.score(honest.peer_id) == 0


def lie_about_headers(node: SmallNode) -> list[Headers]:
    """Let a node give headers in an order that makes no chain; keeps those it gave."""
    lies = list[Headers]()
    serve = node.network._handlers[SYNC_PROTOCOL]

    async def and_lie(stream: Stream) -> None:
        send = stream.send

        async def reversed_headers(frame: bytes) -> None:
            kind, payload = unseal(frame, node.peer_id)
            if kind is MessageType.HEADERS:
                lies.append(Headers(tuple(reversed(decode(Headers, payload).headers))))
                frame = seal(node.identity, kind, lies[-1], 0, stream.peer_id)
            await send(frame)

        stream.send = reversed_headers  # type: ignore[method-assign, assignment]  # a tap on one stream
        await serve(stream)

    node.network.serve(SYNC_PROTOCOL, and_lie)
    return lies
