"""A small model in this process: llama.cpp, through `xllamacpp`, to which this is the only door.

The engine is spoken to over its own listener on the loopback, under a key that is made for it: so an answer is read
within the same bounds as any server's, and closing the connection stops the engine, in the middle of a prompt as well.
"""

import importlib.util
import platform
import secrets
from pathlib import Path
from typing import Any, Final, Self

import trio

from loremesh.backends.chat import ChatEnd, ChatRequest, Deliver
from loremesh.backends.openai import OpenAIBackend
from loremesh.errors import MachineError, UsageError

_BATCH: Final = 64  # tokens of a prompt between two looks at whether somebody still wants the answer
_CPU_FLAGS: Final = frozenset({"avx2", "fma", "f16c", "bmi2"})  # what the wheel of xllamacpp is built for
_CPU_FILE: Final = Path("/proc/cpuinfo")


class LocalBackend:
    """Answers chats with the weights of one GGUF file, whichever model a request names."""

    def __init__(self, engine: Any, backend: OpenAIBackend) -> None:  # noqa: ANN401 - xllamacpp ships no types
        """Take what `open` has loaded."""
        self._engine = engine
        self._backend = backend

    @classmethod
    async def open(cls, weights: Path, *, threads: int = 1, context: int = 4096, slots: int = 1) -> Self:
        """Load a model: half a second and 200 MB for a small one.

        Args:
            weights: A GGUF file.
            threads: Cores to use; more than are free make it far slower, for they wait for each other.
            context: Tokens that prompt and answer of one call may have together.
            slots: Calls at once, which share the threads.

        Raises:
            UsageError: The extra is not installed.
            MachineError: This processor, or the memory, cannot run it, or the file is no model.
        """
        if importlib.util.find_spec("xllamacpp") is None:
            raise UsageError("the local backend needs the extra `local`: run pip install 'loremesh[local]'")
        check_processor(platform.machine(), _CPU_FILE)
        key = secrets.token_hex(16)
        engine = await trio.to_thread.run_sync(_load, weights, threads, context, slots, key)
        return cls(engine, OpenAIBackend(base_url=f"{engine.listening_address}/v1", api_key=key))

    async def chat(self, request: ChatRequest, deliver: Deliver) -> ChatEnd:
        """Answer; cancelling stops the engine within a second.

        Raises:
            BackendError: As `OpenAIBackend.chat`.
        """
        return await self._backend.chat(request, deliver)

    async def aclose(self) -> None:
        """Unload the model; a call that still runs takes up to a second to end."""
        await self._backend.aclose()
        engine, self._engine = [self._engine], None
        await trio.to_thread.run_sync(engine.clear)


def check_processor(machine: str, cpu_file: Path) -> None:
    """Check that the engine's code can run here, for where it cannot it ends the process.

    Args:
        machine: The processor's family.
        cpu_file: Where Linux tells what the processor can; missing elsewhere, and then nothing is known.

    Raises:
        MachineError: It lacks something.
    """
    if machine not in ("x86_64", "AMD64") or not cpu_file.exists():
        return
    lines = cpu_file.read_text(errors="replace").splitlines()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    missing = _CPU_FLAGS.difference(flags)
    if missing:
        raise MachineError(
            f"this processor lacks {', '.join(sorted(missing))}, which the local backend needs: use --backend builtin, "
            "or --backend openai with a server elsewhere"
        )


def _load(weights: Path, threads: int, context: int, slots: int, key: str) -> Any:  # noqa: ANN401 - as above
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(weights)
    parameters.n_ctx = context * slots
    parameters.n_parallel = slots
    parameters.n_batch = parameters.n_ubatch = _BATCH
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.warmup = False
    parameters.verbosity = 0
    parameters.ui = False
    parameters.api_keys = [key]
    try:
        return xllamacpp.Server(parameters)
    except (RuntimeError, ValueError, MemoryError, OSError) as error:
        raise MachineError(f"{weights} cannot be loaded: {error}") from error
