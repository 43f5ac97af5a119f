"""The mesh as its users see it: models that somebody serves now, and answers to chats."""

from dataclasses import dataclass
from typing import Protocol

from loremesh.backends.chat import Deliver
from loremesh.primitives import PeerId
from loremesh.services.router import Answer, Chat


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that can be asked now."""

    id: str
    executors: tuple[PeerId, ...]
    """Who serves it; not empty."""
    context: int
    """Tokens that prompt and answer may have together, at whoever allows most."""
    price: int
    """Gwei per 1,000 tokens of `o200k_base`, at whoever asks least."""


class Mesh(Protocol):
    """Who can answer, and how to ask them."""

    @property
    def tried(self) -> tuple[str, ...]:
        """Say whom we asked for executors, and what came of it: a line each."""

    async def models(self) -> tuple[ServedModel, ...]:
        """Give what is served now, by name; only what executors have said of themselves in the last 90 s."""

    async def call(self, chat: Chat, deliver: Deliver) -> Answer:
        """Have a chat answered; cancelling gives the call up, on the executor too.

        Args:
            chat: What is asked.
            deliver: Takes each piece of the answer as it comes, whoever it is from; none comes twice.

        Raises:
            UnsupportedModel: There are executors, and none serves this model; `served` names those that are.
            NoExecutor: Nobody could serve it; `tried` says who was asked, and what came of it.
            ExecutorBusy: All who serve it are busy; `retry_after` says for how long, in seconds.
            CallFailed: All who serve it refuse the request itself; `kind` says why.
            DeadlinePassed: The chat's deadline.
        """
