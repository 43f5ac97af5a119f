"""Counts what a node tells of: plain numbers since it started, for whoever shows them."""

from collections import Counter
from dataclasses import dataclass, field

from loremesh.errors import Fault
from loremesh.services.happenings import Evidence, Happening, Head, Rejected, Served


@dataclass(slots=True)
class Tally:
    """Sole owner of its counts; hears every happening of one node.

    Attributes:
        reorgs: Heads that took the place of blocks of another branch.
        deepest_reorg: Most blocks that one of them abandoned.
        equivocations: Pairs of headers that one producer signed on one parent.
        calls: Of clients to models, answered in full.
        prompt_tokens: That they had, of `o200k_base`.
        completion_tokens: That the answers had.
        rejected: How often what kind of thing broke which rule; both are names of ours, so there are few.
    """

    reorgs: int = 0
    deepest_reorg: int = 0
    equivocations: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    rejected: Counter[tuple[str, Fault]] = field(default_factory=Counter)

    def take(self, happening: Happening) -> None:
        """Count a happening."""
        match happening:
            case Head(_, _, _, depth) if depth:
                self.reorgs += 1
                self.deepest_reorg = max(self.deepest_reorg, depth)
            case Rejected(what, fault, _, _):
                self.rejected[what, fault] += 1
            case Served(receipt):
                self.calls += 1
                self.prompt_tokens += receipt.prompt_tokens
                self.completion_tokens += receipt.completion_tokens
            case Evidence():
                self.equivocations += 1
            case _:
                pass
