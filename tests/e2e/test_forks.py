"""A fork made by an operator's deny files, and healed the same way."""

import signal
from pathlib import Path

from loremesh.testing.node_processes import NodeProcess, ask


def deny(node: NodeProcess, directory: Path, *others: str) -> None:
    (directory / "deny.txt").write_text("".join(f"{other} # cut off\n" for other in others))
    node.send(signal.SIGHUP)


async def test_nodes_that_deny_each_other_fork_and_meet_again(
    story: tuple[NodeProcess, NodeProcess, NodeProcess], tmp_path: Path
) -> None:
    validator, first, second = story
    ids = [node.told("ready")[0]["peer_id"] for node in story]
    await validator.wait("head", min_height=3)
    deny(second, tmp_path / "bob", ids[0], ids[1])
    deny(first, tmp_path / "ann", ids[2])
    deny(validator, tmp_path / "validator", ids[2])
    start = max(node.height for node in story)
    left = await first.wait("head", min_height=start + 2, producer=ids[1])
    right = await second.wait("head", min_height=start + 2, producer=ids[2])
    assert left["hash"] != right["hash"]
    for node, name in zip(story, ("validator", "ann", "bob"), strict=True):
        deny(node, tmp_path / name)
    high = max(node.height for node in story) + 2
    for node in story:
        await node.wait("head", min_height=high)
    assert any(event["reorg_depth"] >= 2 for node in story for event in node.told("head"))
    trees = [await ask("tree", await node.wait_address()) for node in (first, second)]
    for tree in trees:
        lost = [branch for branch in tree["branches"] if branch["fate"] == "abandoned"]
        names = {block["hash"] for branch in lost for block in branch["blocks"]}
        assert {left["hash"], right["hash"]} & names
    common = min(len(tree["branches"][0]["blocks"]) for tree in trees) - 2
    canons = [[block["hash"] for block in tree["branches"][0]["blocks"][:common]] for tree in trees]
    assert canons[0] == canons[1]


async def test_a_deny_file_with_a_mistake_in_it_is_named_and_changes_nothing(
    story: tuple[NodeProcess, NodeProcess, NodeProcess], tmp_path: Path
) -> None:
    _, first, _ = story
    deny(first, tmp_path / "ann", "nobody")
    await first.wait("head", min_height=first.height + 2)
    assert "deny.txt, line 1" in first.log()
    assert "Traceback" not in first.log()
