"""How the demo looks: JSON lines for programs; for people, the race as it happens and the text that wins."""

import json
import sys
import time
from pathlib import Path
from typing import Any, Final

from rich.rule import Rule
from rich.text import Text

from loremesh.cli.demo_nodes import DemoNode, program
from loremesh.cli.present import beside, console

_INDENT: Final = 10
_NAME: Final = 8
"""Letters of a peer id that are shown: its last ones, they all begin alike."""
_COLOURS: Final = ("cyan", "green", "magenta", "yellow", "blue", "red")
_NEXT: Final = """\
Go on with this story: start its validator again, and in a second terminal an executor.

  {validator} --data-dir {directory}/validator \\
      --listen-address /ip4/127.0.0.1/tcp/4001
  {executor} --data-dir {directory}/executor-1 \\
      --listen-address /ip4/127.0.0.1/tcp/0 --bootstrap-nodes /ip4/127.0.0.1/tcp/4001

In a third, see who is there, ask for a turn of events, and read along (Ctrl-C ends it).

  export LOREMESH_BOOTSTRAP_NODES=/ip4/127.0.0.1/tcp/4001
  {client} peers
  {client} suggest "A ship without lights comes in."
  {client} canon --follow

The README shows how to begin a story of your own. All of this one is in {directory}."""


class Show:
    """Presents the demo on stdout.

    Args:
        as_json: Pass on the nodes' own events, with the node's name in each, and nothing else.
    """

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._console = console()
        self._shown: set[str] = set()
        self._ending = False
        self._began = time.monotonic()

    def opening(self, title: str, executors: int) -> None:
        """Say what is about to be seen."""
        self._heading(f"loremesh: {title}")
        self._print(Text(f"starting a validator and {executors} executors, each a process of its own …", "dim"))

    def wants_text(self, event: dict[str, Any]) -> bool:
        """Tell whether the paragraph of the block in `event` is wanted with it."""
        return not self._as_json and event["event"] == "head" and event["hash"] not in self._shown

    def listens(self, node: DemoNode) -> None:
        """Say at once that a node can be used: until the race is on, this is all there is to see."""
        self._line(f"{node.name} listens at {node.address.partition('/p2p/')[0]}", "dim")

    def event(self, node: DemoNode, event: dict[str, Any], nodes: list[DemoNode], text: str) -> None:
        """Show what a node said, if it is news."""
        if self._as_json:
            sys.stdout.write(json.dumps({**event, "node": node.name}, ensure_ascii=False) + "\n")
            sys.stdout.flush()
        elif self._ending and (node is not nodes[0] or event["event"] != "head"):
            pass  # what the validator has not heard in time is no part of the story, and it alone is left to tell it
        elif event["event"] == "head" and event["hash"] not in self._shown:
            self._shown.add(event["hash"])
            self._show_block(event, nodes, text)
        elif event["event"] == "state" and event["height"]:
            now = "is the tracker of the next round" if event["state"] == "tracker" else "is a peer again"
            self._line(f"{node.name} {now}", "dim")
        elif event["event"] == "head" and event["reorg_depth"]:
            self._line(f"{node.name} gives up {event['reorg_depth']} of its blocks for the better branch", "yellow")

    def network_stands(self, nodes: list[DemoNode]) -> None:
        """Say that everybody knows everybody."""
        self._line(f"all {len(nodes)} nodes have found each other; the race is on", "bold")

    def suggested(self, text: str) -> None:
        """Say that a reader has asked for something."""
        self._line(f"a reader suggests: “{text}”", "bold")

    def cut(self, there: list[DemoNode]) -> None:
        """Say that the network is cut."""
        self._line(
            f"cut: {' and '.join(node.name for node in there)} can reach nobody else now, and write on", "bold yellow"
        )

    def forked(self, here: list[DemoNode], there: list[DemoNode]) -> None:
        """Say that there are two stories."""
        heads = [max(side, key=lambda node: node.height) for side in (here, there)]
        both = " and ".join(f"{node.head[:8]} (height {node.height})" for node in heads)
        self._line(f"fork: two canons at once, {both}", "bold yellow")

    def healing(self) -> None:
        """Say that the network is whole again."""
        self._line("the cut is mended: they meet again, and compare what they wrote", "bold")

    def healed(self, nodes: list[DemoNode]) -> None:
        """Say that there is one story again."""
        self._line(f"healed: all {len(nodes)} nodes have head {nodes[0].head[:8]}", "bold green")

    def killed(self, node: DemoNode) -> None:
        """Say that somebody ended a node."""
        self._line(f"{node.name} was killed, and starts again; the others go on with the story", "bold yellow")

    def stranger_comes(self) -> None:
        """Say that somebody comes who means no good."""
        self._line(
            "a stranger comes, and will break every rule there is (first it does the work that lies need) …", "bold"
        )

    def refused(self, node: DemoNode, event: dict[str, Any], lie: str) -> None:
        """Show which lie a node refused, and why."""
        detail = f" ({event['detail']})" if event["detail"] else ""
        self._line(f"{node.name} refuses “{lie}” of …{event['peer_id'][-_NAME:]}: {event['fault']}{detail}", "red")

    def shut_out(self, node: DemoNode, event: dict[str, Any]) -> None:
        """Show whom a node lets in no more."""
        name, seconds = event["peer_id"][-_NAME:], event["seconds"]
        self._line(f"{node.name} shuts …{name} out for {seconds} s; it comes back under another name", "bold yellow")

    def stranger_is_done(self, lies: int, bans: int, began: int, height: int) -> None:
        """Say what came of it."""
        grown = f"the story went on from block {began} to {height}"
        self._line(f"{lies} lies told, {lies} refused, {bans} names shut out; {grown} meanwhile", "bold green")

    def unmoved(self, nodes: list[DemoNode]) -> None:
        """Say that the story is as it would have been."""
        self._line(f"all {len(nodes)} nodes have head {nodes[0].head[:8]}, and no lie is in it", "bold green")

    def race_ends(self) -> None:
        """Show from now on no more than the blocks that the validator still hears of; the others are stopped."""
        self._ending = True

    def race_is_over(self, validator: DemoNode) -> None:
        """Say how far the story got."""
        seconds = time.monotonic() - self._began
        ended = f"{validator.height} blocks in {seconds:.0f} s, one head everywhere: {validator.head[:8]}"
        self._line(ended, "bold green")

    def quote(self, command: str, output: str, *, is_prose: bool = False) -> None:
        """Show a command of the client and what it printed; lines of prose are wrapped, others cut."""
        self._print(Text(f"\n  $ {command}", "bold"))
        for line in output.rstrip().splitlines():
            if is_prose:
                self._indented(line, 2)
            else:
                self._print(Text(f"  {line}", no_wrap=True, overflow="ellipsis"))
        self._print(Text())

    def finale(self, canon: str, directory: Path) -> None:
        """Show the canon, and what to try next; with JSON, the canon alone."""
        if self._as_json:
            sys.stdout.write(canon.rstrip() + "\n")
            return
        self.quote("loremesh canon", canon, is_prose=True)
        self._heading("next")
        # To be copied: nothing may break these lines but what a shell joins again.
        self._print(Text(_NEXT.format(directory=directory, **_programs())), soft_wrap=True)

    def _heading(self, text: str) -> None:
        if self._console.is_terminal:
            self._print(Rule(Text(text, "bold"), align="left", style="dim"))
        else:
            self._print(Text(f"== {text}"))

    def _show_block(self, event: dict[str, Any], nodes: list[DemoNode], text: str) -> None:
        number = next((index for index, node in enumerate(nodes) if node.peer_id == event["producer"]), 0)
        winner = nodes[number].name
        line = Text(f"block {event['height']}  {event['hash'][:8]}  won by ")
        line.append(winner, _COLOURS[number % len(_COLOURS)])
        self._stamp(line)
        if text:
            self._indented(text, _INDENT)
            self._print(Text())

    def _indented(self, text: str, by: int) -> None:
        self._print(beside(self._console, Text(" " * by), Text(text)) if text else Text())

    def _line(self, text: str, style: str) -> None:
        self._stamp(Text(text, style))

    def _stamp(self, text: Text) -> None:
        stamp = Text(f"{time.monotonic() - self._began:5.1f} s  ", "dim")
        self._print(beside(self._console, stamp, text))

    def _print(self, what: Any, *, soft_wrap: bool = False) -> None:  # noqa: ANN401 - whatever rich renders
        if not self._as_json:
            self._console.print(what, soft_wrap=soft_wrap)


def _programs() -> dict[str, str]:
    """Give the programs as a shell in this folder finds them, by the names that `_NEXT` has for them."""
    return {
        "validator": program("loremesh-validator"),
        "executor": program("loremesh-executor"),
        "client": program("loremesh"),
    }
