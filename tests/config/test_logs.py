"""What a log line holds, who may write one, and what must never come out."""

import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio

from loremesh import logs

log = logs.get_logger("loremesh.tests")
Configure = Callable[..., io.StringIO]


@pytest.fixture
def configure() -> Iterator[Configure]:
    """Configure logs into a text buffer, and leave the process as it was."""
    names = (None, "loremesh", "libp2p")
    levels = {name: logging.getLogger(name).level for name in names}
    handlers = list(logging.getLogger().handlers)

    def into_buffer(level: logs.Level = "info", style: logs.Format = "json") -> io.StringIO:
        stream = io.StringIO()
        logs.configure(level, style, stream)
        return stream

    yield into_buffer
    logging.captureWarnings(capture=False)
    logging.getLogger().handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_holds_its_event_its_facts_and_when_and_where_it_was_said(configure: Configure) -> None:
    stream = configure()
    log.info("block accepted", height=3, block=b"\x01\x02", peer=None)
    (line,) = lines(stream)
    assert line.pop("at").endswith("Z")
    assert line == {
        "event": "block accepted",
        "height": 3,
        "block": "0102",
        "peer": None,
        "level": "info",
        "logger": "loremesh.tests",
    }


def test_people_get_a_short_line(configure: Configure) -> None:
    stream = configure(style="text")
    log.info("block accepted", height=3)
    said = stream.getvalue()
    assert re.fullmatch(r"\S{10}T\S{8}Z \[info\] block accepted \[loremesh.tests\] height=3\n", said), said


def test_what_is_bound_is_in_every_line_of_a_task_and_its_children_and_nowhere_else(configure: Configure) -> None:
    stream = configure()

    async def node(name: str) -> None:
        with logs.bound(node=name):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(speak, name)
                await trio.lowlevel.checkpoint()

    async def speak(name: str) -> None:
        await trio.lowlevel.checkpoint()
        log.info("here", expected=name)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for name in ("ann", "bob"):
                nursery.start_soon(node, name)
        log.info("after")

    trio.run(main)
    *inside, after = lines(stream)
    assert sorted((line["node"], line["expected"]) for line in inside) == [("ann", "ann"), ("bob", "bob")]
    assert "node" not in after


def test_a_fact_never_replaces_the_event(configure: Configure) -> None:
    stream = configure()
    log.info("what happened", event="what a peer claims", logger="libp2p")
    (line,) = lines(stream)
    assert (line["event"], line["logger"]) == ("what happened", "loremesh.tests")


def test_less_severe_lines_than_asked_for_are_not_shown(configure: Configure) -> None:
    stream = configure("warning")
    log.info("quiet")
    log.warning("loud")
    assert [line["event"] for line in lines(stream)] == ["loud"]


def test_other_libraries_speak_only_when_debugging(configure: Configure) -> None:
    libp2p = logging.getLogger("libp2p.host.basic_host")
    stream = configure("info")
    libp2p.critical("a peer went away")
    logging.getLogger("hpack").error("noise")
    assert stream.getvalue() == ""
    stream = configure("debug")
    libp2p.error("a peer went away")
    assert [line["event"] for line in lines(stream)] == ["a peer went away"]


def test_configuring_again_replaces_and_does_not_double(configure: Configure) -> None:
    former = configure()
    stream = configure()
    log.info("once")
    assert former.getvalue() == ""
    assert len(lines(stream)) == 1


def test_no_control_character_of_a_peer_reaches_the_terminal(configure: Configure) -> None:
    stream = configure(style="text")
    try:
        int("\x1b]0;owned\x07")
    except ValueError:
        log.exception("refused \x1b[2J", peer="evil\r\n2026 [info] all is well", raw=b"\x1b")
    written = stream.getvalue()
    assert all(char.isprintable() or char == "\n" for char in written)
    first, *traceback = written.splitlines()
    assert "evil" in first
    assert "all is well" in first
    assert traceback[-1].startswith("ValueError: invalid literal")


def test_readable_text_stays_as_it_is() -> None:
    assert logs.printable("Küste “am Meer” — 海") == "Küste “am Meer” — 海"
    assert logs.printable("bidi \u202e") == "bidi \\u202e"


def test_a_stderr_that_went_away_stops_nobody() -> None:
    program = (
        "import sys, warnings; from loremesh import logs; logs.configure('info', 'text'); sys.stderr.close();"
        "logs.get_logger('loremesh.x').error('nobody hears this'); warnings.warn('nor this'); print('still here')"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, b"still here\n")


def test_a_library_user_who_configures_nothing_pays_for_nothing() -> None:
    program = "import sys, loremesh.logs; sys.exit('structlog' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
