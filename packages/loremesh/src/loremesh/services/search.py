"""The miner's work search: owns the worker process, one job at a time, cancelled at once."""

import logging
import subprocess
import sys

import trio

from loremesh.errors import MachineError
from loremesh.primitives import Target

logger = logging.getLogger("loremesh.search")


class Search:
    """Finds nonces in a process of its own, so that the node's loop never waits for a hash.

    Args:
        share: Of one core, above 0 and up to 1.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._process: trio.Process | None = None
        self._found: trio.MemorySendChannel[tuple[int, int]]
        self._answers: trio.MemoryReceiveChannel[tuple[int, int]]
        self._found, self._answers = trio.open_memory_channel[tuple[int, int]](16)
        self._job = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the worker process until cancelled.

        Raises:
            MachineError: It cannot be started, or it died.
        """
        command = [sys.executable, "-m", "loremesh.services.search_process", str(self._share)]
        try:
            process = await trio.lowlevel.open_process(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C in a terminal is the node's to handle
            )
        except OSError as error:
            raise MachineError(f"the search process cannot be started: {error}") from error
        self._process = process
        try:
            task_status.started()
            await self._read(process)
            raise MachineError("the search process ended; is the machine out of memory?")
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                # A killed process ends at once: this only collects it, so that no zombie stays.
                await process.wait()

    async def find(self, prefix: bytes, target: Target) -> int:
        """Search until a nonce meets `target`; a cancelled search stops within a slice."""
        assert self._process is not None  # noqa: S101 - run() has started
        assert self._process.stdin is not None  # noqa: S101 - opened with a pipe
        # Jobs are told apart by where they start, so that the answer to a cancelled one is not taken for this one's.
        self._job += 1
        start = self._job << 40
        job = f"{prefix.hex()} {target:x} {start}\n".encode()
        done = False
        try:
            await self._process.stdin.send_all(job)
            async for answered, nonce in self._answers:
                if answered == start:
                    done = True
                    return nonce
        finally:
            if not done:
                await self._stop()
        raise AssertionError("the answers' channel is never closed")

    async def _stop(self) -> None:
        assert self._process is not None  # noqa: S101 - a job has been sent
        assert self._process.stdin is not None  # noqa: S101 - opened with a pipe
        with trio.CancelScope(shield=True), trio.move_on_after(1):
            try:
                await self._process.stdin.send_all(b"\n")
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                logger.debug("the search process is gone already")

    async def _read(self, process: trio.Process) -> None:
        assert process.stdout is not None  # noqa: S101 - opened with a pipe
        unread = b""
        async for piece in process.stdout:
            *lines, unread = (unread + piece).split(b"\n")
            for line in lines:
                answered, nonce = line.split()
                # Nobody waits for the answers of cancelled jobs: the oldest make room.
                if self._found.statistics().current_buffer_used >= 8:  # noqa: PLR2004 - half the channel
                    self._answers.receive_nowait()
                self._found.send_nowait((int(answered), int(nonce)))
