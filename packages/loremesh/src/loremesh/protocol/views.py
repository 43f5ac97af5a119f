"""JSON views of protocol values, for people and programs outside: never hashed, never sent between nodes.

Source: the answers listed in docs/cli.md.
"""

from typing import Any

from loremesh.primitives import Hash
from loremesh.protocol.block import Block, header_hash
from loremesh.protocol.identity import peer_id_text


def block_view(block: Block, *, finalised: bool = False) -> dict[str, Any]:
    """Show a block: its place, its producer under both names, its text, and which executor signed for that, if any."""
    header, content = block.header, block.content
    producer = peer_id_text(header.producer)
    return {
        "height": header.height,
        "hash": header_hash(header).hex(),
        "parent": header.parent.hex(),
        "producer": producer,
        "tracker_id": producer,
        "time": header.time,
        "kind": content.kind,
        "text": content.text,
        "model": content.certificate.model,
        "served_by": next((peer_id_text(signed.serving.executor) for signed in content.certificate.serving), None),
        "finalised": finalised,
    }


def short(name: Hash) -> str:
    """Show the first eight digits of a hash, enough to tell blocks apart on a screen."""
    return name.hex()[:8]
