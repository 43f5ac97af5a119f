"""Where py-libp2p 0.8.1 is put right: one file per family of defects, each naming the function and the symptom.

Every file has a test beside it (`tests/network/test_upstream_*.py`) that shows our node surviving, and that runs the
stock code to see whether the defect is still there: when such a test fails, upstream has mended it and the file can go.
"""

import logging

import libp2p  # noqa: F401 - its import sets up its logging, which the next line changes

# Upstream logs ordinary happenings (a peer leaving, a refused stream) as errors; ours are in `loremesh.network`.
logging.getLogger("libp2p").setLevel(logging.CRITICAL)
