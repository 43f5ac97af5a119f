"""How a node program shows what happens: a JSON object per line for programs, short lines for people."""

import json
import sys
from datetime import UTC, datetime
from typing import Any, Final

from rich.text import Text

from loremesh.cli.present import console
from loremesh.config import Settings
from loremesh.primitives import PeerId
from loremesh.protocol.identity import peer_id_text
from loremesh.protocol.tracker import TrackerState
from loremesh.services.happenings import (
    Banned,
    Evidence,
    Happening,
    Head,
    PeerChanged,
    Ready,
    Rejected,
    Role,
    Served,
    Tell,
    Tracker,
)

_SHORT: Final = 8
_NO_STORY: Final = {
    "validator": "no story: an address for others to join through",
    "executor": "no story: it serves calls to its models, and writes nothing",
}


def printer(settings: Settings, *, node: str | None = None) -> Tell:
    """Give what prints happenings on stdout, for people or, as the command line's contract has it, for programs.

    Args:
        settings: The node's.
        node: Which of several nodes of this process it is.
    """
    return _json_printer(node) if settings.json_output else _text_printer(settings, node)


def event_view(happening: Happening) -> dict[str, Any]:  # noqa: PLR0911 - one arm per event
    """Show a happening as the JSON object that scripts rely on, without its time."""
    match happening:
        case Ready(role, peer_id, addresses, story, http):
            where = {"peer_id": peer_id_text(peer_id), "addresses": list(addresses)}
            return {"event": "ready", "role": role, **where, "story": story.hex() if story else None, "http": http}
        case Head(height, name, producer, depth):
            by = peer_id_text(producer) if producer else None
            return {"event": "head", "height": height, "hash": name.hex(), "producer": by, "reorg_depth": depth}
        case Role(state, height):
            return {"event": "state", "state": str(state), "height": height}
        case Tracker(peer_id, height):
            return {"event": "tracker", "peer_id": peer_id_text(peer_id), "height": height}
        case PeerChanged(peer_id, change):
            return {"event": "peer", "peer_id": peer_id_text(peer_id), "change": change}
        case Rejected(what, fault, peer_id, detail):
            why = {"fault": str(fault), "detail": detail}
            return {"event": "rejected", "what": what, **why, "peer_id": peer_id_text(peer_id)}
        case Banned(peer_id, seconds):
            return {"event": "banned", "peer_id": peer_id_text(peer_id), "seconds": round(seconds)}
        case Evidence(producer, kind):
            return {"event": "evidence", "validator": peer_id_text(producer), "kind": kind}
        case Served(receipt):
            return {
                "event": "served",
                "client": peer_id_text(receipt.client),
                "model": receipt.model,
                "usage": {
                    "prompt_tokens": receipt.prompt_tokens,
                    "completion_tokens": receipt.completion_tokens,
                    "total_tokens": receipt.tokens,
                },
                "receipt": receipt.request.hex(),
            }


def _json_printer(node: str | None) -> Tell:
    def tell(happening: Happening) -> None:
        view = event_view(happening)
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        named = {"node": node} if node else {}
        line = {"event": view.pop("event"), "at": at, **named, **view}
        sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
        sys.stdout.flush()

    return tell


def _text_printer(settings: Settings, node: str | None) -> Tell:
    out = console()
    prefix = f"{node}: " if node else ""
    own: PeerId | None = None
    first: Role | None = None

    def tell(happening: Happening) -> None:
        nonlocal own, first
        if isinstance(happening, Tracker):
            return  # the line of its block has named it
        if isinstance(happening, Role) and own is None:
            first = happening  # said below who we are
            return
        line, style = _line(happening, own)
        out.print(Text(prefix + line, style), soft_wrap=True)
        if isinstance(happening, Ready):
            own = happening.peer_id
            lines = [f"serving {', '.join(settings.served_models)}"] if settings.served_models else []
            for line in (*lines, f"keeping its key and what it knows in {settings.data_dir}"):
                out.print(Text(f"{prefix}  {line}", "bold"), soft_wrap=True)
            if first is not None:
                tell(first)

    return tell


_Shown = Ready | Head | Role | PeerChanged | Rejected | Banned | Evidence | Served


def _line(happening: _Shown, own: PeerId | None) -> tuple[str, str]:  # noqa: PLR0911 - one arm per event
    """Put a happening into a line for people, and its style; `own` is the node that speaks, once it is ready."""
    match happening:
        case Ready(role, peer_id, addresses, story, http):
            lines = [f"{role} {peer_id_text(peer_id)} is ready"]
            lines += [f"  story {story.hex()}" if story else f"  {_NO_STORY[role]}"]
            lines += [f"  listening at {address}" for address in addresses]
            lines += [f"  health and metrics at http://{http}"] if http else []
            return "\n".join(lines), "bold"
        case Head(height, name, producer, depth):
            by = "us" if producer and producer == own else _short(producer) if producer else "nobody"
            reorg = f", in place of {depth} blocks that lost" if depth else ""
            return f"block {height} ({name.hex()[:_SHORT]}) by {by}{reorg}", "yellow" if depth else "green"
        case Role(state, _):
            return f"we are {'the tracker of' if state is TrackerState.TRACKER else 'a peer in'} this round", "cyan"
        case PeerChanged(peer_id, change):
            return f"peer {_short(peer_id)} {'is dead' if change == 'dead' else change}", "dim"
        case Rejected(what, fault, peer_id, detail):
            return f"refused a {what} of {_short(peer_id)}: {fault}" + (f" ({detail})" if detail else ""), "red"
        case Banned(peer_id, seconds):
            return f"{_short(peer_id)} broke too many rules and is kept out for {seconds:.0f} s", "bold red"
        case Evidence(producer, kind):
            return f"evidence against {_short(producer)}: {kind}", "red"
        case Served(receipt):
            tokens = f"{receipt.prompt_tokens} + {receipt.completion_tokens} tokens of {receipt.model}"
            return f"served {_short(receipt.client)}: {tokens}", "blue"


def _short(peer_id: PeerId) -> str:
    """Show the end of a peer id: they all begin alike."""
    return "…" + peer_id_text(peer_id)[-_SHORT:]
