"""Agreeing on a protocol: `libp2p.protocol_muxer.multiselect_client.MultiselectClient`.

Symptom: before it proposes a protocol it waits for the other side's greeting, which says nothing new. So every
connection is two waits slower than it need be, and every stream one.

Here the proposal goes out right behind the greeting, in one write, as go-libp2p and js-libp2p do it. The bytes are the
same.
"""

from collections.abc import Sequence

from libp2p.abc import IMultiselectCommunicator
from libp2p.custom_types import TProtocol
from libp2p.io.exceptions import IOException
from libp2p.protocol_muxer.exceptions import MultiselectCommunicatorError
from libp2p.protocol_muxer.multiselect_client import (
    DEFAULT_NEGOTIATE_TIMEOUT,
    MultiselectClient,
)
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.utils import encode_delim


class EagerClient(MultiselectClient):
    """Greets and proposes at once, where there is only one protocol to propose."""

    async def select_one_of(
        self,
        protocols: Sequence[TProtocol],
        communicator: IMultiselectCommunicator,
        negotiate_timeout: int = DEFAULT_NEGOTIATE_TIMEOUT,
    ) -> TProtocol:
        """Agree on one of `protocols`, as upstream's, which raises what this raises."""
        if len(protocols) == 1 and isinstance(communicator, MultiselectCommunicator):
            communicator = _Ahead(communicator, protocols[0])
        return await super().select_one_of(protocols, communicator, negotiate_timeout)


class _Ahead(MultiselectCommunicator):
    """Sends the proposal together with the greeting, and nothing when the proposal's own turn comes."""

    def __init__(self, communicator: MultiselectCommunicator, proposal: str) -> None:
        super().__init__(communicator.read_writer)
        self._proposal = proposal
        self._writes = 0

    async def write(self, msg_str: str) -> None:
        """Send a message, unless it has been sent."""
        self._writes += 1
        if self._writes == 1:
            try:
                await self.read_writer.write(encode_delim(msg_str.encode()) + encode_delim(self._proposal.encode()))
            except (IOException, ValueError) as error:
                raise MultiselectCommunicatorError("the greeting was not taken") from error
        elif self._writes > 2:  # noqa: PLR2004 - greeting, proposal
            await super().write(msg_str)
