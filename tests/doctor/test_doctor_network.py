"""What the doctor says of bootstrap nodes, each step by step and all of them together."""

import os
from collections.abc import Awaitable, Callable
from dataclasses import replace

import trio

from loremesh.cli.doctor_network import AGREE_EVERY, Reached, check_clock, check_heads, check_network
from loremesh.cli.errors import ExitCode
from loremesh.cli.findings import Check
from loremesh.config import Program, load_settings
from loremesh.errors import Unreachable
from loremesh.primitives import Hash, Height, PeerId
from loremesh.protocol.genesis import story_id
from loremesh.protocol.identity import peer_id_text
from loremesh.protocol.wire import Status
from loremesh.testing.builders import ANN, BOB, small_genesis
from loremesh.testing.loopback import PATIENCE

StartValidator = Callable[..., Awaitable[str]]
TALE = small_genesis()
OTHER_TALE = small_genesis(title="Anchors")


async def look(*addresses: str, **flags: object) -> list[Check]:
    settings = load_settings(Program.CLIENT, {"bootstrap_nodes": ",".join(addresses), **flags}, {})
    with trio.fail_after(PATIENCE):
        return await check_network(settings)


def failure(checks: list[Check]) -> Check:
    (check,) = [check for check in checks if not check.ok]
    assert check.remedy
    return check


def details(checks: list[Check]) -> str:
    return "\n".join(f"{check.name}: {check.detail}" for check in checks)


async def test_a_healthy_node_passes_every_step(start_validator: StartValidator) -> None:
    address = await start_validator(genesis=TALE)
    checks = await look(address)
    assert all(check.ok for check in checks), details(checks)
    assert [check.name.split(" ")[0] for check in checks] == ["tcp", "identity", "answers", "story", "clock"]
    assert story_id(TALE).hex() in details(checks)
    assert address.partition("/p2p/")[2] in details(checks)
    assert "height 0" in details(checks)


async def test_an_anchor_without_a_story_is_said_to_be_one(start_validator: StartValidator) -> None:
    checks = await look(await start_validator())
    assert all(check.ok for check in checks)
    assert "anchor" in details(checks)


async def test_where_nobody_listens_the_doctor_says_so_and_goes_no_further() -> None:
    checks = await look("/ip4/127.0.0.1/tcp/1")
    assert failure(checks).name == "tcp 127.0.0.1:1"
    assert failure(checks).code == ExitCode.UNREACHABLE
    assert len(checks) == 1


async def test_a_name_that_does_not_resolve_is_told_from_a_node_that_is_down() -> None:
    check = failure(await look("/dns4/nobody.invalid/tcp/4001"))
    assert check.name == "dns nobody.invalid"
    assert check.code == ExitCode.UNREACHABLE


async def test_a_node_with_another_identity_than_its_address_says_is_named(start_validator: StartValidator) -> None:
    place = (await start_validator(genesis=TALE)).partition("/p2p/")[0]
    check = failure(await look(f"{place}/p2p/{peer_id_text(ANN.peer_id)}"))
    assert check.name.startswith("identity at ")
    assert check.code == ExitCode.UNREACHABLE


async def test_something_that_is_no_node_of_ours_is_named(nursery: trio.Nursery) -> None:
    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.aclose()

    listeners: list[trio.SocketListener] = await nursery.start(trio.serve_tcp, hang_up, 0)
    port = listeners[0].socket.getsockname()[1]
    assert failure(await look(f"/ip4/127.0.0.1/tcp/{port}")).name.startswith("identity at ")


async def test_one_node_that_is_down_does_not_hide_the_others(start_validator: StartValidator) -> None:
    checks = await look("/ip4/127.0.0.1/tcp/1", await start_validator(genesis=TALE))
    assert failure(checks).name == "tcp 127.0.0.1:1"
    assert "height 0" in details(checks)


async def test_two_nodes_of_one_story_are_found_to_agree(start_validator: StartValidator) -> None:
    checks = await look(await start_validator("ann", TALE), await start_validator("bob", TALE))
    assert all(check.ok for check in checks), details(checks)
    assert "agreement: 2 nodes have the same head" in details(checks)


async def test_several_stories_ask_for_a_choice_which_settles_it(start_validator: StartValidator) -> None:
    addresses = await start_validator("ann", TALE), await start_validator("bob", OTHER_TALE)
    check = failure(await look(*addresses))
    assert check.code == ExitCode.USAGE
    assert "--story" in check.remedy
    assert story_id(TALE).hex() in check.detail
    assert all(check.ok for check in await look(*addresses, story=story_id(TALE).hex()))


async def test_a_story_that_nobody_keeps_is_said_to_be_missing(start_validator: StartValidator) -> None:
    check = failure(await look(await start_validator(genesis=TALE), story=story_id(OTHER_TALE).hex()))
    assert check.name == "story"
    assert check.code == ExitCode.UNREACHABLE


STATUS = Status((story_id(TALE),), Height(0), (story_id(TALE),), ())
AHEAD = replace(STATUS, height=Height(1), head=(Hash(os.urandom(32)),))


class Nodes:
    """Answers with what each node says next; the last answer stays. Silence is an error."""

    def __init__(self, answers: dict[PeerId, list[Status]]) -> None:
        self._answers = answers

    async def status(self, peer: PeerId) -> Status:
        if peer not in self._answers:
            raise Unreachable("gone")
        left = self._answers[peer]
        return left.pop(0) if len(left) > 1 else left[0]


def reached(peer: PeerId, status: Status = STATUS, skew: float | None = 0.0, doubt: float = 1.0) -> Reached:
    return Reached(f"/ip4/127.0.0.1/tcp/1/p2p/{peer_id_text(peer)}", peer, status, skew, doubt)


async def test_a_block_on_its_way_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    nodes = Nodes({ANN.peer_id: [AHEAD], BOB.peer_id: [STATUS, STATUS, AHEAD]})
    began = trio.current_time()
    check = await check_heads(nodes, [reached(ANN.peer_id, AHEAD), reached(BOB.peer_id)])
    assert check is not None
    assert check.ok
    assert trio.current_time() - began == 3 * AGREE_EVERY


async def test_nodes_that_never_agree_are_named_with_what_they_have(autojump_clock: trio.testing.MockClock) -> None:
    nodes = Nodes({ANN.peer_id: [AHEAD], BOB.peer_id: [STATUS]})
    check = await check_heads(nodes, [reached(ANN.peer_id, AHEAD), reached(BOB.peer_id)])
    assert check is not None
    assert (check.ok, check.code) == (False, ExitCode.DEADLINE)
    assert AHEAD.head[0].hex()[:8] in check.detail
    assert STATUS.head[0].hex()[:8] in check.detail


async def test_a_node_that_goes_away_meanwhile_is_named() -> None:
    check = await check_heads(Nodes({ANN.peer_id: [AHEAD]}), [reached(ANN.peer_id, AHEAD), reached(BOB.peer_id)])
    assert check is not None
    assert check.code == ExitCode.UNREACHABLE


def test_a_clock_within_what_blocks_tolerate_is_right() -> None:
    check = check_clock([reached(ANN.peer_id, skew=-400.0), reached(BOB.peer_id, skew=300.0)])
    assert check is not None
    assert check.ok


def test_a_clock_that_would_have_our_blocks_held_is_wrong() -> None:
    check = check_clock([reached(ANN.peer_id, skew=-700.0)])
    assert check is not None
    assert (check.ok, check.code) == (False, ExitCode.MACHINE)
    assert "ahead" in check.detail


def test_a_slow_answer_is_no_wrong_clock() -> None:
    check = check_clock([reached(ANN.peer_id, skew=-700.0, doubt=400.0)])
    assert check is not None
    assert check.ok


def test_one_wrong_clock_among_the_nodes_is_outvoted() -> None:
    check = check_clock([reached(ANN.peer_id, skew=90_000.0), *[reached(BOB.peer_id, skew=5.0)] * 2])
    assert check is not None
    assert check.ok
