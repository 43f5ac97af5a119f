"""Addresses: what can be dialled is read, everything else is refused with an example of what would do."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loremesh.errors import UsageError
from loremesh.network.addresses import Endpoint
from loremesh.network.local import dialable
from loremesh.protocol.identity import Identity, peer_id_text

PEER = Identity.new(bytes(31) + b"\x01").peer_id
OTHER = Identity.new(bytes(31) + b"\x02").peer_id


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/127.0.0.1/tcp/4001",
        "/ip6/::1/tcp/4001",
        "/dns/example.org/tcp/1",
        "/dns4/a-b.example.org/tcp/65535",
        "/dns6/localhost/tcp/0",
        f"/ip4/10.0.0.1/tcp/4001/p2p/{peer_id_text(PEER)}",
        "/dns4/example.org/tcp/80/ws",
        f"/ip4/10.0.0.1/tcp/4002/ws/p2p/{peer_id_text(PEER)}",
        "/ip4/127.0.0.1/udp/4001/quic-v1",
        f"/dns6/example.org/udp/4001/quic-v1/p2p/{peer_id_text(PEER)}",
        f"/ip4/10.0.0.1/udp/4001/quic-v1/p2p/{peer_id_text(PEER)}/p2p-circuit/p2p/{peer_id_text(OTHER)}",
        f"/ip4/10.0.0.1/tcp/4001/p2p/{peer_id_text(PEER)}/p2p-circuit",
        f"/ip4/10.0.0.1/tcp/4002/ws/p2p/{peer_id_text(PEER)}/p2p-circuit/p2p/{peer_id_text(OTHER)}",
    ],
)
def test_an_address_is_read_and_written_as_it_was(text: str) -> None:
    assert str(Endpoint.from_str(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "127.0.0.1:4001",
        "/ip4/127.0.0.1",
        "/ip4/127.0.0.1/tcp",
        "/ip4/127.0.0.1/tcp/",
        "/ip4/127.0.0.1/tcp/65536",
        "/ip4/127.0.0.1/tcp/-1",
        "/ip4/127.0.0.1/tcp/٤",
        "/ip4/127.0.0.256/tcp/1",
        "/ip4/localhost/tcp/1",
        "/ip6/fe80::1%eth0/tcp/1",
        "/dns4/no spaces/tcp/1",
        "/dns4//tcp/1",
        "/ip4/127.0.0.1/udp/4001",
        "/ip4/127.0.0.1/udp/4001/quic",
        "/ip4/127.0.0.1/udp/4001/quic-v1x",
        "/ip4/127.0.0.1/udp/4001/quic-v1/webtransport",
        "/ip4/127.0.0.1/tcp/4001/quic-v1",
        "/ip4/127.0.0.1/tcp/4001/wss",
        "/ip4/127.0.0.1/tcp/4001/wsx/p2p/16Uiu2nonsense",
        "/ip4/127.0.0.1/tcp/4001/p2p-circuit",
        f"/ip4/127.0.0.1/tcp/4001/p2p/{peer_id_text(PEER)}/p2p-circuitx",
        f"/ip4/127.0.0.1/tcp/4001/p2p/{peer_id_text(PEER)}/p2p-circuit/ip4/127.0.0.1",
        "/ip4/127.0.0.1/tcp/4001/p2p/",
        "/ip4/127.0.0.1/tcp/4001/p2p/16Uiu2nonsense",
        "/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKXtf",
        "/ip4/127.0.0.1/tcp/4001/" + "x" * 1000,
    ],
)
def test_anything_else_is_a_usage_error_that_shows_what_would_do(text: str) -> None:
    with pytest.raises(UsageError, match=r"/ip4/127\.0\.0\.1/tcp/4001|16Uiu2"):
        Endpoint.from_str(text)


@given(st.text(max_size=80))
def test_no_text_does_worse_than_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        Endpoint.from_str(text)


def test_a_wildcard_becomes_addresses_of_this_machine() -> None:
    places = dialable([Endpoint.from_str("/ip4/0.0.0.0/tcp/4001")])
    assert Endpoint.from_str("/ip4/127.0.0.1/tcp/4001") in places
    assert not any(place.is_wildcard for place in places)


def test_any_other_address_is_announced_as_it_is() -> None:
    place = Endpoint.from_str("/ip4/192.0.2.7/tcp/4001")
    assert dialable([place]) == [place]
