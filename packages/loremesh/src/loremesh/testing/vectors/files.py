"""Every family of vectors as the text of its file."""

import json
from collections.abc import Callable

from loremesh.testing.vectors import (
    block,
    codec,
    fork_choice,
    genesis,
    identity,
    llm,
    paragraph,
    receipts,
    state,
    tracker,
    work,
)
from loremesh.testing.vectors.plain import Case

_FAMILIES: dict[str, tuple[str | None, Callable[[], list[Case]]]] = {
    "codec": (codec.__doc__, codec.cases),
    "identity": (identity.__doc__, identity.cases),
    "genesis": (genesis.__doc__, genesis.cases),
    "work": (work.__doc__, work.cases),
    "state": (state.__doc__, state.cases),
    "fork_choice": (fork_choice.__doc__, fork_choice.cases),
    "tracker": (tracker.__doc__, tracker.cases),
    "block": (block.__doc__, block.cases),
    "paragraph": (paragraph.__doc__, paragraph.cases),
    "llm": (llm.__doc__, llm.cases),
    "receipts": (receipts.__doc__, receipts.cases),
}


def vector_files() -> dict[str, str]:
    """Give the text of every vector file by its name; the same in every run."""
    files = {}
    for family, (about, cases) in _FAMILIES.items():
        whole: Case = {"about": " ".join((about or "").split())}
        if family == "block":
            whole |= block.context()
        whole["cases"] = cases()
        files[f"{family}.json"] = json.dumps(whole, indent=1) + "\n"
    return files
