import os
import stat
from pathlib import Path

import pytest

from loremesh.errors import InvalidKey, MachineError, UsageError
from loremesh.protocol.identity import Identity
from loremesh.storage.keys import load_or_create_key, read_key, write_key

ENTROPY = bytes(range(1, 33))
OTHER_ENTROPY = bytes(range(2, 34))


def test_the_first_run_makes_a_key_of_the_entropy_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "key"

    identity = load_or_create_key(path, ENTROPY)

    assert identity.secret == ENTROPY
    assert path.read_text() == ENTROPY.hex() + "\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        write_key(tmp_path / "key", Identity.generate(ENTROPY))
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_later_runs_keep_the_first_identity(tmp_path: Path) -> None:
    path = tmp_path / "key"
    first = load_or_create_key(path, ENTROPY)

    again = load_or_create_key(path, OTHER_ENTROPY)

    assert again.peer_id == first.peer_id
    assert path.read_text() == ENTROPY.hex() + "\n"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o777])
def test_a_key_that_others_may_open_is_refused_with_the_command_that_mends_it(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    load_or_create_key(path, ENTROPY)
    path.chmod(mode)

    with pytest.raises(UsageError, match=f"chmod 600 {path}"):
        load_or_create_key(path, ENTROPY)


MALFORMED = {
    "empty": b"",
    "blank": b"\n",
    "short": b"12" * 31,
    "long": b"12" * 33,
    "letters": b"zz" * 32,
    "zero": b"00" * 32,
    "over the order": b"ff" * 32,
    "binary": b"\xff" * 64,
    "nul": b"\x00" * 64,
    "huge": b"1" * 100_000,
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_key_file_is_named_and_its_content_never_repeated(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)

    with pytest.raises(InvalidKey, match=str(path)) as caught:
        load_or_create_key(path, ENTROPY)

    assert path.read_bytes() == content
    secret = content.strip().decode("ascii", "replace")[:31]
    assert not secret or secret not in str(caught.value)


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_key(path, Identity.generate(ENTROPY))

    with pytest.raises(UsageError, match="never overwritten"):
        write_key(path, Identity.generate(OTHER_ENTROPY))

    assert read_key(path).secret == ENTROPY


def test_a_link_to_nowhere_is_not_followed_when_a_key_is_made(tmp_path: Path) -> None:
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(UsageError, match="never overwritten"):
        load_or_create_key(tmp_path / "key", ENTROPY)

    assert not (tmp_path / "elsewhere").exists()


def test_a_directory_or_a_pipe_is_not_a_key_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    for path in (tmp_path, pipe):
        with pytest.raises(UsageError, match="not a file"):
            load_or_create_key(path, ENTROPY)


def test_a_key_below_a_file_is_the_machines_refusal(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(MachineError, match="cannot"):
        load_or_create_key(tmp_path / "file" / "key", ENTROPY)
