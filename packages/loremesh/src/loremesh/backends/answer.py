"""Reading what an OpenAI-compatible server answers, as it comes and within bounds: a stream of events, or JSON."""

import json
from typing import Any, Final

from loremesh.errors import BackendFailed, BackendGarbage
from loremesh.primitives import KIB
from loremesh.protocol.content.paragraph import without_thoughts

MAX_ANSWER_BYTES: Final = 512 * KIB
"""Of one response, everything counted; a paragraph with its JSON round every token takes some 60 KiB."""

_DATA: Final = b"data:"
_DONE: Final = b"[DONE]"


class AnswerReader:
    """Collects the text of one answer: feed it the body as it comes, stop when `is_complete`, then `finish`.

    `text` is the answer so far; `total_tokens` what the server says the call took, if it does; `is_truncated` tells
    that the server stopped at its token limit.
    """

    __slots__ = ("_buffer", "_enough_words", "_size", "_streams", "is_complete", "is_truncated", "text", "total_tokens")

    def __init__(self, enough_words: int) -> None:
        """Stop after `enough_words` words, not counting thoughts: what follows them is dropped anyway."""
        self.text = ""
        self.total_tokens: int | None = None
        self.is_complete = False
        self.is_truncated = False
        self._enough_words = enough_words
        self._streams: bool | None = None  # unknown before the first character
        self._buffer = b""
        self._size = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body.

        Raises:
            BackendGarbage: They are no answer, or there are more of them than any answer needs.
            BackendFailed: The server reports an error in the middle of its stream.
        """
        self._size += len(data)
        if self._size > MAX_ANSWER_BYTES:
            raise BackendGarbage(f"the backend's answer is longer than {MAX_ANSWER_BYTES} bytes")
        self._buffer += data
        if self._streams is None and self._buffer.strip():
            self._streams = not self._buffer.lstrip().startswith(b"{")
        if self._streams:
            *lines, self._buffer = self._buffer.split(b"\n")
            for line in lines:
                self._take_line(line.strip())

    def finish(self) -> None:
        """Say that the body has ended.

        Raises:
            BackendGarbage: A plain answer that cannot be read.
            BackendFailed: A stream that broke off.
        """
        if self._streams is False:
            self._take_object(self._buffer, "message")
            self.is_complete = True
        elif self._buffer:
            self._take_line(self._buffer.strip())
        if not self.is_complete:
            raise BackendFailed("the backend broke off in the middle of its answer")

    def _take_line(self, line: bytes) -> None:
        if self.is_complete or not line or line.startswith((b":", b"event:", b"id:", b"retry:")):
            return
        if not line.startswith(_DATA):
            raise BackendGarbage("the backend's answer is neither JSON nor a stream of events")
        payload = line[len(_DATA) :].strip()
        if payload == _DONE:
            self.is_complete = True
        else:
            self._take_object(payload, "delta")
            self.is_complete |= len(without_thoughts(self.text).split(" ")) > self._enough_words

    def _take_object(self, payload: bytes, part: str) -> None:
        """Read `choices[0].<part>.content`; a chunk without choices (usage, keep-alive) adds nothing."""
        try:
            answer: Any = json.loads(payload)
        except (ValueError, RecursionError) as error:
            raise BackendGarbage("the backend's answer is not JSON") from error
        try:
            if answer.get("error"):
                raise BackendFailed("the backend reports an error instead of an answer")
            self._take_usage(answer.get("usage"))
            for choice in (answer.get("choices") or ())[:1]:
                content = choice[part].get("content")
                if content is not None:
                    self.text += content
                reason = choice.get("finish_reason")
                self.is_truncated |= reason == "length"
                self.is_complete |= reason is not None
        except (AttributeError, TypeError, KeyError) as error:
            raise BackendGarbage("the backend's answer is JSON of another shape") from error

    def _take_usage(self, usage: Any) -> None:  # noqa: ANN401 - whatever the server put there
        tokens = usage.get("total_tokens") if usage else None
        if type(tokens) is int and tokens >= 0:
            self.total_tokens = tokens
