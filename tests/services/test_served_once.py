"""A request is taken once, for as long as it could be sent again; afterwards nothing is kept of it."""

import pytest

from loremesh.errors import BackendBusy
from loremesh.primitives import Hash, Millis
from loremesh.services.served_once import ServedOnce
from loremesh.testing.builders import ANN, BOB

NOW = Millis(1_000_000)


def name(number: int) -> Hash:
    return Hash(number.to_bytes(32, "big"))


def test_a_request_is_taken_once_and_another_clients_of_the_same_name_too() -> None:
    once = ServedOnce()
    assert once.take(ANN.peer_id, name(1), Millis(NOW + 5), NOW)
    assert not once.take(ANN.peer_id, name(1), Millis(NOW + 5), NOW)
    assert not once.take(ANN.peer_id, name(1), Millis(NOW + 5), Millis(NOW + 5))
    assert once.take(BOB.peer_id, name(1), Millis(NOW + 5), NOW)
    assert once.is_taken(ANN.peer_id, name(1))
    assert not once.is_taken(ANN.peer_id, name(2))


def test_what_has_expired_is_forgotten() -> None:
    once = ServedOnce()
    for number in range(1000):
        once.take(ANN.peer_id, name(number), Millis(NOW + number), NOW)
    once.take(ANN.peer_id, name(9999), Millis(NOW + 9999), Millis(NOW + 500))
    assert len(once) == 501
    assert not once.is_taken(ANN.peer_id, name(499))
    assert once.is_taken(ANN.peer_id, name(500))


def test_where_no_more_can_be_remembered_no_more_is_taken_until_something_expires() -> None:
    once = ServedOnce(most=2)
    for number in (1, 2):
        once.take(ANN.peer_id, name(number), Millis(NOW + number * 1000), NOW)
    with pytest.raises(BackendBusy) as caught:
        once.take(BOB.peer_id, name(3), Millis(NOW + 1), NOW)
    assert caught.value.retry_after == pytest.approx(1, abs=0.01)
    assert once.take(BOB.peer_id, name(3), Millis(NOW + 9000), Millis(NOW + 1001))
