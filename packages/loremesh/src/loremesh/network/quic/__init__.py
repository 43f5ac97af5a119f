"""QUIC, in place of `libp2p.transport.quic`: the only door to aioquic.

Symptoms of the stock transport: it gives credit for what it has not read, so that a slow reader's data is held without
end or lost (of 16 MB sent to one, 11 MB arrived, and then a clean end); its check of a remote's proof ignores what the
check of the signature answers, so that anyone can claim to be anyone; it knows nothing of our limits.

`aioquic` has the protocol itself and no I/O. What is here: sockets and timers by trio, credit that follows what was
read, libp2p's proof of identity, and streams as the swarm wants them. Source: RFC 9000; libp2p's TLS specification.
"""

import logging

# A stranger can make it warn of every packet; what we make of it is in `loremesh.network`.
logging.getLogger("quic").setLevel(logging.CRITICAL)
