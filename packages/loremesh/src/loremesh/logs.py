"""Structured logs on stderr: readable lines or one JSON object each. The only door to structlog.

Code anywhere logs through the standard library, by `get_logger`, with facts as keywords; nothing is set up, and
structlog is not imported, until a program calls `configure`. What peers send may be logged: control characters never
reach the terminal.
"""

import logging
import sys
import traceback
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Literal, TextIO

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["text", "json"]

_STANDARD: Final = frozenset({"exc_info", "stack_info", "stacklevel", "extra"})
_context: ContextVar[Mapping[str, object]] = ContextVar("loremesh.logs", default={})  # noqa: B039 - never changed


class Logger(logging.LoggerAdapter[logging.Logger]):
    """A standard logger that takes facts as keywords: `log.info("block accepted", height=3)`."""

    def process(self, msg: object, kwargs: MutableMapping[str, Any]) -> tuple[object, MutableMapping[str, Any]]:
        """Move the facts to where `configure` looks for them."""
        facts = {name: value for name, value in kwargs.items() if name not in _STANDARD}
        passed = {name: value for name, value in kwargs.items() if name in _STANDARD}
        return msg, {**passed, "extra": {"facts": facts}}


def get_logger(name: str) -> Logger:
    """Give a module its logger; `name` is the module's `__name__`."""
    return Logger(logging.getLogger(name))


@contextmanager
def bound(**facts: object) -> Iterator[None]:
    """Add `facts` (a node's name, its role) to every line logged inside, in this task and those it starts."""
    token = _context.set({**_context.get(), **facts})
    try:
        yield
    finally:
        _context.reset(token)


def configure(level: Level, style: Format, stream: TextIO | None = None) -> None:
    """Send log lines to stderr from now on; calling it again replaces the former choice.

    Args:
        level: The least severe kind shown. libp2p reports every peer that goes away as an error, so its own lines and
            those of other libraries are shown only with `debug`.
        style: `text` for people, `json` for programs.
        stream: Instead of stderr.
    """
    import structlog  # noqa: PLC0415 - slow to import, and only programs log

    target = stream or sys.stderr
    chain: list[Any] = [
        _add_facts,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(
            fmt="%Y-%m-%dT%H:%M:%SZ" if style == "text" else "iso",  # people need no microseconds
            utc=True,
            key="timestamp" if style == "text" else "at",
        ),
    ]
    final: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if style == "json":
        final += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=_plain)]
    else:
        colours = target.isatty()
        final += [
            _printable,
            structlog.dev.ConsoleRenderer(
                colors=colours, sort_keys=False, exception_formatter=_traceback, pad_event_to=0, pad_level=False
            ),
        ]
    handler = _Handler(target)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=chain, processors=final))
    root = logging.getLogger()
    for former in [one for one in root.handlers if isinstance(one, _Handler)]:
        root.removeHandler(former)
    root.addHandler(handler)
    logging.captureWarnings(capture=True)
    verbose = level == "debug"
    root.setLevel(logging.WARNING if verbose else logging.CRITICAL)
    logging.getLogger("libp2p").setLevel(logging.WARNING if verbose else logging.CRITICAL + 1)
    logging.getLogger("loremesh").setLevel(level.upper())


class _Handler(logging.StreamHandler[TextIO]):
    """Writes what it can: a terminal that went away must not take the node with it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the standard library's name
        """Drop the line."""


def _add_facts(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    record: logging.LogRecord = event["_record"]
    return {**_context.get(), **getattr(record, "facts", {}), **event}


def _printable(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if name != "exc_info":
            event[name] = _plain(value)
    return event


def _traceback(stream: TextIO, exc_info: Any) -> None:  # noqa: ANN401 - as structlog passes it
    for line in "".join(traceback.format_exception(*exc_info)).splitlines():
        stream.write(f"\n{_plain(line)}")


def _plain(value: object) -> object:
    """Keep numbers, write bytes in hexadecimal, and anything else as text that a terminal may show."""
    if isinstance(value, bool | int | float | None):
        return value
    return value.hex() if isinstance(value, bytes) else printable(str(value))


def printable(text: str) -> str:
    """Escape what would move a terminal's cursor, line ends included; anything a peer wrote goes through here."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
