"""The codec with every check, against msgpack with none: `encode(decode(x))` and `packb(unpackb(x))`."""

import msgpack

from harness import Row, Samples, at_least, compare, timed
from loremesh.primitives import Millis
from loremesh.protocol.block import Block, SignedHeader
from loremesh.protocol.codec import decode, encode
from loremesh.protocol.wire import BlockAnnouncement, Envelope, MessageType
from stories import Sample, chain

_BATCH = 10
"""Operations per reading of the clock: one takes little longer than the reading."""


def run() -> list[Row]:
    """Measure one kind of message after the other; the headline comes first."""
    usual, small, full = chain(100, 0), chain(17, 0), chain(100, 4)
    announcements = [_announcement(sample) for sample in usual]
    envelopes = [
        Envelope(MessageType.BLOCK_ANNOUNCEMENT, Millis(0), announcement.producer, b"", encode(announcement))
        for announcement in announcements
    ]
    headers = [SignedHeader(sample.block.header, sample.block.signature) for sample in usual]
    return [
        _against_msgpack("block of 100 words", Block, [sample.wire for sample in usual]),
        _against_msgpack("block of 17 words", Block, [sample.wire for sample in small]),
        _against_msgpack("block of 100 words and 4 suggestions", Block, [sample.wire for sample in full]),
        _against_msgpack("signed header", SignedHeader, [encode(header) for header in headers]),
        _against_msgpack("block announcement", BlockAnnouncement, [encode(value) for value in announcements]),
        _against_msgpack("envelope of an announcement", Envelope, [encode(value) for value in envelopes]),
    ]


def _announcement(sample: Sample) -> BlockAnnouncement:
    header, name = sample.block.header, sample.signatures[0][1]
    return BlockAnnouncement(header.height, name, header.producer, header.time, sample.wire)


def _against_msgpack(what: str, cls: type, wires: list[bytes]) -> Row:
    def ours() -> Samples:
        return timed(lambda wire: encode(decode(cls, wire)), wires, _BATCH)

    def bare() -> Samples:
        return timed(lambda wire: msgpack.packb(msgpack.unpackb(wire)), wires, _BATCH)

    size = sum(map(len, wires)) // len(wires)
    return compare(f"{what}, {size} bytes", "µs", ours, against="bare msgpack", peer=bare, goal=at_least(0.25))
