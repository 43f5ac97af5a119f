"""What was found good lately is known, and what is older makes room."""

from loremesh.protocol.recent import Recent


def digest(number: int) -> bytes:
    return number.to_bytes(32, "big")


def test_the_last_so_many_are_known_and_never_more_than_twice_as_many_are_kept() -> None:
    recent = Recent(10)
    for number in range(100):
        recent.add(digest(number))
        assert all(digest(one) in recent for one in range(max(0, number - 9), number + 1))
        assert len(recent) <= 20
    assert digest(79) not in recent


def test_what_was_never_added_or_is_forgotten_is_not_known() -> None:
    recent = Recent(10)
    assert digest(1) not in recent
    recent.add(digest(1))
    recent.clear()
    assert digest(1) not in recent
