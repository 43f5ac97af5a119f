"""Whose doing it is that serving a peer failed."""

import logging

from loremesh.errors import Fault, LoremeshError, ProtocolError, leaves

_log = logging.getLogger("loremesh.network")


def fault_of(error: Exception, what: str) -> Fault | None:
    """Name the rule that the peer broke, if it broke one; log what is a bug of ours."""
    errors = list(leaves(error))
    if not all(isinstance(leaf, LoremeshError) for leaf in errors):
        _log.error("serving %s failed: this is a bug", what, exc_info=error)
        return None
    _log.debug("serving %s ended: %s", what, error)
    return next((leaf.fault for leaf in errors if isinstance(leaf, ProtocolError)), None)
