"""The worker process of a miner: searches nonces at a share of one core. Imports no libp2p and no trio.

Run as `python -m loremesh.services.search_process SHARE`. Each line on stdin is a job, `PREFIX TARGET START` with the
first two in hexadecimal, and replaces the one before; an empty line only ends it. Each line on stdout is the nonce of
the job that was found, `START NONCE`. It ends with its stdin, so it never outlives its node.
"""

import queue
import signal
import sys
import threading
import time
from typing import Final

from loremesh.primitives import Target
from loremesh.protocol.work import search

SLICE_SECONDS: Final = 0.01
"""How long to search before looking at the clock and the queue: also how late a cancellation may come."""


def main() -> None:
    """Search until stdin ends."""
    # A service manager signals every process of a node; this one goes when the node lets it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    share = float(sys.argv[1])
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    line: str | None = lines.get()
    while line is not None:
        line = lines.get() if not line.strip() else _work(line, share, lines)


def _read(lines: "queue.SimpleQueue[str | None]") -> None:
    for line in sys.stdin:
        lines.put(line)
    lines.put(None)


def _work(job: str, share: float, lines: "queue.SimpleQueue[str | None]") -> str | None:
    """Search until found or until another line comes; give the next line."""
    prefix_hex, target_hex, start = job.split()
    prefix, target, nonce = bytes.fromhex(prefix_hex), Target(int(target_hex, 16)), int(start)
    count = 256
    while True:
        began = time.perf_counter()
        found = search(prefix, target, nonce, count)
        if found is not None:
            sys.stdout.write(f"{start} {found}\n")
            sys.stdout.flush()
            return lines.get()
        nonce += count
        took = time.perf_counter() - began
        # Slices keep their length on a machine of any speed, so that the share is kept in fine grains.
        count = max(64, min(1 << 20, int(count * SLICE_SECONDS / took)))
        try:
            return lines.get(timeout=max(took * (1 / share - 1), 1e-4))
        except queue.Empty:
            continue


if __name__ == "__main__":
    main()
