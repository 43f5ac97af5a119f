"""Immutable maps with structural sharing: the door to rpds.

An update costs the logarithm of the size and leaves the old map as it was, so a block's state costs what it touches.
"""

from rpds import HashTrieMap as Map

__all__ = ["Map"]
