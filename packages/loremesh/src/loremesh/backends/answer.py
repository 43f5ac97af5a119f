"""Reading what an OpenAI-compatible server answers, as it comes and within bounds: a stream of events, or JSON."""

import json
from typing import Any, Final, TypeGuard

from loremesh.errors import BackendFailed, BackendGarbage
from loremesh.primitives import KIB
from loremesh.protocol.llm import MAX_ANSWER_BYTES, MAX_TOKENS, whole_characters
from loremesh.protocol.receipts import BackendUsage

MAX_LINE_BYTES: Final = 512 * KIB
"""Of one event, or of a whole answer that is no stream."""

_DATA: Final = b"data:"
_DONE: Final = b"[DONE]"
_MOST_TOKENS: Final = 16 * MAX_TOKENS  # no call takes as many: such a count says nothing
_HIGH_SURROGATES: Final = ("\ud800", "\udbff")


class AnswerReader:
    """Reads one answer: `feed` it the body as it comes and take the text that it gives, then `end` it.

    `finish` is `stop` or `length` once the server has said that the text is complete; `is_complete` tells that nothing
    more comes at all; `usage` is what the server says the call took, unless that is nonsense.
    """

    __slots__ = ("_buffer", "_half", "_searched", "_size", "_streams", "finish", "is_complete", "usage")

    def __init__(self) -> None:
        self.finish: str | None = None
        self.is_complete = False
        self.usage: BackendUsage | None = None
        self._streams: bool | None = None  # unknown before the first character
        self._buffer = bytearray()
        self._searched = 0
        self._half = ""  # half a character that JSON has cut in two
        self._size = 0

    def feed(self, data: bytes) -> str:
        """Take the next bytes of the body and give the text in them, of whole characters.

        Raises:
            BackendGarbage: They are no answer, or there are more of them than any answer needs.
            BackendFailed: The server reports an error in the middle of its stream.
        """
        self._buffer += data
        if self._streams is None and self._buffer.strip():
            self._streams = not self._buffer.lstrip().startswith(b"{")
        text = []
        while self._streams and (end := self._buffer.find(b"\n", self._searched)) >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            self._searched = 0
            text.append(self._take_line(line.strip()))
        self._searched = len(self._buffer)
        if len(self._buffer) > MAX_LINE_BYTES:
            raise BackendGarbage(f"the backend's answer has {MAX_LINE_BYTES} bytes without an end")
        return self._whole("".join(text))

    def end(self) -> str:
        """Say that the body has ended; give the text that was left.

        Raises:
            BackendGarbage: A plain answer that cannot be read.
            BackendFailed: A stream that broke off.
        """
        rest = bytes(self._buffer).strip()
        self._buffer.clear()
        text = ""
        if self._streams is False:
            text = self._take_object(rest, "message")
            self.finish = self.finish or "stop"
        elif rest:
            text = self._take_line(rest)
        if self.finish is None:
            raise BackendFailed("the backend broke off in the middle of its answer")
        self.is_complete = True
        return self._whole(text) + ("\ufffd" if self._half else "")

    def _take_line(self, line: bytes) -> str:
        if self.is_complete or not line or line.startswith((b":", b"event:", b"id:", b"retry:")):
            return ""
        if not line.startswith(_DATA):
            raise BackendGarbage("the backend's answer is neither JSON nor a stream of events")
        payload = line[len(_DATA) :].strip()
        if payload != _DONE:
            return self._take_object(payload, "delta")
        self.finish = self.finish or "stop"
        self.is_complete = True
        return ""

    def _take_object(self, payload: bytes, part: str) -> str:
        """Read `choices[0].<part>.content`; a chunk without choices (usage, keep-alive) adds nothing."""
        try:
            answer: Any = json.loads(payload)
        except (ValueError, RecursionError) as error:
            raise BackendGarbage("the backend's answer is not JSON") from error
        try:
            if answer.get("error"):
                raise BackendFailed("the backend reports an error instead of an answer")
            self._take_usage(answer.get("usage"))
            text = ""
            for choice in (answer.get("choices") or ())[:1]:
                content = choice[part].get("content")
                text = "" if content is None or self.finish else content
                reason = choice.get("finish_reason")
                if reason is not None:
                    self.finish = "length" if reason == "length" else "stop"
            self._size += len(text.encode(errors="surrogatepass"))
        except (AttributeError, TypeError, KeyError) as error:
            raise BackendGarbage("the backend's answer is JSON of another shape") from error
        if self._size > MAX_ANSWER_BYTES:
            raise BackendGarbage(f"the backend's answer is longer than {MAX_ANSWER_BYTES} bytes")
        return text

    def _take_usage(self, usage: Any) -> None:  # noqa: ANN401 - whatever the server put there
        if not isinstance(usage, dict):
            return
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
        if _is_count(prompt) and _is_count(completion):
            self.usage = BackendUsage(prompt, completion)
            # The last chunk: whoever asks for usage gets it after the end of the text.
            self.is_complete |= self._streams is True and self.finish is not None

    def _whole(self, text: str) -> str:
        text = self._half + text
        low, high = _HIGH_SURROGATES
        self._half = text[-1:] if low <= text[-1:] <= high else ""
        return whole_characters(text.removesuffix(self._half) if self._half else text)


def _is_count(tokens: Any) -> TypeGuard[int]:  # noqa: ANN401 - whatever the server put there
    return type(tokens) is int and 0 <= tokens <= _MOST_TOKENS
