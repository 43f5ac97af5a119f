"""The network: the only door to libp2p.

`behaviour` is what services use; `events`, `frames` and `settings` are its words and import nothing of libp2p, so that
commands which need no network start quickly. Whatever upstream gets wrong is put right in `upstream`.
"""

import os

# Before anything imports libp2p: its yamux answers every single read with a WINDOW_UPDATE, a third of the throughput.
os.environ.setdefault("PY_YAMUX_RELEASE_ON_READ", "0")
