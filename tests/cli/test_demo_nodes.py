"""What the demo concludes from what its nodes say."""

from pathlib import Path
from typing import cast

import pytest
import trio

from loremesh.cli.demo_nodes import DemoNode


@pytest.fixture
def node() -> DemoNode:
    return DemoNode("validator", Path(), [], "", cast("trio.Process", None))


def hear(node: DemoNode, height: int, producer: str | None, abandoned: int = 0) -> None:
    node.take({"event": "head", "height": height, "hash": "", "producer": producer, "reorg_depth": abandoned})


def test_those_have_won_who_wrote_below_the_head(node: DemoNode) -> None:
    hear(node, 0, None)
    for height, producer in enumerate(("ann", "bob", "ann", "cat"), start=1):
        hear(node, height, producer)
    assert node.winners() == {"ann", "bob"}


def test_who_wrote_what_was_abandoned_has_not_won(node: DemoNode) -> None:
    for height, producer in enumerate(("ann", "bob", "cat", "ann"), start=1):
        hear(node, height, producer)
    hear(node, 5, "dan", abandoned=3)  # nobody has told who wrote 2 to 4
    assert node.winners() == {"ann"}
    hear(node, 6, "ann")
    assert node.winners() == {"ann", "dan"}


def test_a_node_that_starts_again_tells_its_head_anew(node: DemoNode) -> None:
    for height, producer in enumerate(("ann", "bob", "cat"), start=1):
        hear(node, height, producer)
    hear(node, 3, "cat")
    hear(node, 4, "ann")
    assert node.winners() == {"ann", "bob", "cat"}
