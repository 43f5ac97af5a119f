"""Reading an OpenAI-compatible answer: torn anywhere, of any shape, within bounds."""

import json

import pytest

from loremesh.backends.answer import MAX_LINE_BYTES, AnswerReader
from loremesh.errors import BackendFailed, BackendGarbage
from loremesh.protocol.llm import MAX_ANSWER_BYTES
from loremesh.protocol.receipts import BackendUsage


def read(*pieces: bytes) -> tuple[AnswerReader, str]:
    reader, text = AnswerReader(), ""
    for piece in pieces:
        text += reader.feed(piece)
    if not reader.is_complete:
        text += reader.end()
    return reader, text


def event(content: str | None = None, finish: str | None = None, **more: object) -> bytes:
    """One chunk of a stream."""
    choice = {"delta": {} if content is None else {"content": content}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice], **more}).encode() + b"\n\n"


def test_a_stream_may_be_torn_anywhere() -> None:
    body = (
        b': hello\r\n\r\nevent: x\r\ndata: {"choices": [{"delta": {"content": "The l\xc3\xa4mp"}}]}\r\n\r\n'
        b'data:{"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}\n\ndata: [DONE]\n\n'
    )
    for size in (1, 2, 3, 7, 1000):
        reader, text = read(*(body[start : start + size] for start in range(0, len(body), size)))
        assert (text, reader.usage, reader.finish) == ("The lämp", BackendUsage(9, 2), "stop")


def test_a_character_that_json_has_cut_in_two_comes_whole() -> None:
    _, text = read(b'data: {"choices": [{"delta": {"content": "a \\ud83d"}}]}\n', event("\udd25 b", "stop"))
    assert text == "a \N{FIRE} b"


def test_half_a_character_is_replaced() -> None:
    assert read(event("a \ud83d b", "stop"))[1] == "a \ufffd b"
    assert read(event("a \ud83d"), event(None, "stop"))[1] == "a \ufffd"


@pytest.mark.parametrize("reason", ["stop", "content_filter", "tool_calls"])
def test_whatever_ends_an_answer_but_its_limit_is_a_stop(reason: str) -> None:
    assert read(event("x", reason))[0].finish == "stop"
    assert read(event("x", "length"))[0].finish == "length"


def test_nothing_is_added_to_an_answer_that_has_finished() -> None:
    reader, text = read(event("x", "stop"), event("y"))
    assert (text, reader.finish) == ("x", "stop")


@pytest.mark.parametrize("count", [-1, 2**40, 1.5, "7", True, None, []])
def test_usage_that_is_nonsense_is_dropped(count: object) -> None:
    usage = {"prompt_tokens": count, "completion_tokens": 1}
    assert read(event("x", "stop", usage=usage))[0].usage is None
    assert read(event("x", "stop", usage=count))[0].usage is None


@pytest.mark.parametrize("body", [b"", b"  \n", b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'])
def test_a_body_that_ends_too_early_is_a_failure(body: bytes) -> None:
    with pytest.raises(BackendFailed):
        read(body)


@pytest.mark.parametrize(
    "body",
    [
        b"nonsense\n",
        b"{",
        b"{} trailing",
        b"data: {\n",
        b"data: 7\n",
        b"data: null\n",
        b'data: {"choices": 7}\n',
        b'data: {"choices": [7]}\n',
        b'data: {"choices": [{"delta": {"content": 7}}]}\n',
        b'{"choices": [{"message": null}]}',
        b'{"choices": [{}]}',
        b"data: " + b"[" * 100_000 + b"\n",
        b"data: \xff\xfe\n",
        b"x" * (MAX_LINE_BYTES + 1),
        b"data: " + b"x" * MAX_LINE_BYTES,
    ],
)
def test_a_body_of_another_shape_is_garbage(body: bytes) -> None:
    with pytest.raises(BackendGarbage):
        read(body)


def test_an_answer_without_end_is_garbage() -> None:
    reader, piece = AnswerReader(), event("x" * 1000)
    for _ in range(MAX_ANSWER_BYTES // 1000):
        reader.feed(piece)
    with pytest.raises(BackendGarbage):
        reader.feed(piece)


def test_no_more_is_kept_of_a_line_than_one_may_have() -> None:
    for begin in (b"data: ", b"{"):
        reader = AnswerReader()
        reader.feed(begin + b"x" * (MAX_LINE_BYTES - len(begin)))
        with pytest.raises(BackendGarbage):
            reader.feed(b"x")


def test_an_error_inside_a_stream_is_a_failure() -> None:
    with pytest.raises(BackendFailed):
        read(b'data: {"error": {"message": "out of memory"}}\n')
