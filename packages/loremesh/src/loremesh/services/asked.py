"""What a peer asks on a stream that is there for one question."""

from loremesh.errors import Fault, InvalidMessage
from loremesh.network.frames import Stream
from loremesh.primitives import PeerId
from loremesh.protocol.wire import MessageType, unseal


async def receive_request(stream: Stream, me: PeerId, timeout: float = 10) -> tuple[MessageType, bytes]:  # noqa: ASYNC109 - as Stream.receive has it
    """Receive the only request of a stream; give its type and its payload's bytes.

    Args:
        stream: Just opened by a peer.
        me: Whom the request must be for, if it names somebody.
        timeout: Seconds for it to come.

    Raises:
        ProtocolError: As `Stream.receive` and `unseal`; UNFINISHED, there was none.
        ServiceError: The peer went away, or was too slow.
    """
    frame = await stream.receive(timeout)
    if frame is None:
        raise InvalidMessage(Fault.UNFINISHED, "no request")
    return unseal(frame, stream.peer_id, me)
