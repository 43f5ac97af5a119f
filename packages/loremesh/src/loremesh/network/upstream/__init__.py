"""Where py-libp2p 0.8.1 is put right: one file per family of defects, each naming the function and the symptom.

Every file has a test beside it (`tests/network/test_upstream_*.py`) that shows our node surviving, and that runs the
stock code to see whether the defect is still there: when such a test fails, upstream has mended it and the file can go.
"""

import logging

import libp2p  # noqa: F401 - its import sets up its logging, which the lines below undo

# Upstream logs ordinary happenings (a peer leaving, a refused stream) as errors, so it is silent unless a program has
# asked for it (`--log-level debug`); then its lines go where all others go. Ours are in `loremesh.network`. What was
# asked for is read from our own logger: whoever imports libp2p before this module has let it overwrite its own.
_upstream = logging.getLogger("libp2p")
_upstream.propagate = True
_upstream.setLevel(logging.WARNING if logging.getLogger("loremesh").isEnabledFor(logging.DEBUG) else logging.CRITICAL)
