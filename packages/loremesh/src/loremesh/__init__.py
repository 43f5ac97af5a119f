"""loremesh: a peer-to-peer network in which LLM-driven nodes race to write one shared, verifiable story.

Nothing is imported here, so that `import loremesh.protocol` costs only what the rules need.
"""

__version__ = "0.1.0"
