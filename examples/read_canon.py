"""Read a story from nodes nobody has to trust: fetch it, recompute all of it, then print it.

Run it against any node, for example one of `make demo` or of the README:

    python examples/read_canon.py /ip4/127.0.0.1/tcp/4001
"""

import sys

import trio

from loremesh.config import Program, load_settings
from loremesh.errors import LoremeshError
from loremesh.logs import printable
from loremesh.protocol.identity import peer_id_text
from loremesh.roles.client import Copy, visit


async def read(address: str) -> None:
    """Print the canon that the node at `address` keeps.

    Raises:
        LoremeshError: Nobody is there, or what came breaks a rule.
    """
    settings = load_settings(Program.CLIENT, {"bootstrap_nodes": address}, {})
    async with visit(settings) as guest:
        genesis = await guest.fetch_story()
        copy = Copy(genesis)
        server = await guest.fetch(copy)  # every block passes every rule on its way into the copy
        print(f"{genesis.title}: {copy.store.tip.link.height} blocks from …{peer_id_text(server)[-8:]}, all verified")
        for block in copy.canon():
            author, model = peer_id_text(block.header.producer)[-8:], block.content.certificate.model
            print(f"\n{block.header.height} · …{author} · {model}\n{printable(block.content.text)}")


def main() -> None:
    """Read from the node that the command line names."""
    if len(sys.argv) != 2:  # noqa: PLR2004 - the program and one address
        sys.exit("usage: python examples/read_canon.py MULTIADDR")
    try:
        trio.run(read, sys.argv[1])
    except* LoremeshError as failed:
        sys.exit("; ".join(str(error) for error in failed.exceptions))


if __name__ == "__main__":
    main()
