"""A process that writes calls down, and dies as dying_disk.py says."""

from pathlib import Path
from typing import Final

from dying_disk import Say, main
from loremesh.storage.journal import Journal
from loremesh.testing.bills import Lane

CALLS: Final = 8


async def keep_a_journal(directory: Path, say: Say) -> None:
    lane = Lane()
    async with Journal.open(directory) as journal:
        say("open")
        # Often enough that the log is folded into the database several times in a short life.
        journal._database.writer.wal_autocheckpoint(12)
        for number in range(1, CALLS + 1):
            evidence, entry = lane.call(number, is_kept=True)
            await journal.record(entry)
            say(f"receipt {number}")
            await journal.record(lane.sign(evidence)[1])
            say(f"voucher {number}")
    say("closed")


main(keep_a_journal)
