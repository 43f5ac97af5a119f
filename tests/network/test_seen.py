"""`network/seen.py`: what was heard already is known for a while, and no longer."""

from loremesh.network.seen import Seen


def test_a_name_is_known_until_its_time_is_over() -> None:
    seen = Seen(most=100, lifetime=10.0)
    seen.add(b"one", 0.0)
    seen.add(b"two", 10.0)
    assert b"one" in seen
    seen.add(b"three", 10.5)
    assert b"one" not in seen
    assert b"two" in seen
    assert len(seen) == 2


def test_of_too_many_names_the_oldest_are_forgotten() -> None:
    seen = Seen(most=2, lifetime=10.0)
    for name in (b"one", b"two", b"one", b"three"):
        seen.add(name, 0.0)
    assert b"two" not in seen
    assert b"one" in seen
    assert b"three" in seen
