"""Vectors of calls to models, for another implementation to run against.

A case has a `rule`:
`request`: `hex` is a signed request as `client` sends it to `executor` at `now`; `digest` is what its client signs, and
`fault` is null where it is taken.
`progress`: `pieces` of an answer to the request with the id `request` at `price`; for each, the `size` and `hash` of
the output so far, the `digest` that the executor with the `key` signs, and the `signature`.
`prompt`: `messages` (role, content) and the SHA-256 of their canonical encoding.
`serving`: an `answer`, folded to `words`; `hex` is the signed statement of the executor with the `key`, null for none.
`tokens`: how many tokens of o200k_base are in `text`, which is `unit` repeated `times`.
`answer limit`: most `bytes` of an answer to a request with so many `max_tokens`.
`amount`: what `tokens` cost at `price`.
`card`: `hex` is a signed card; `digest` is what its executor signs, and `fault` is null where it is fresh at `now`.
"""

from dataclasses import replace

from loremesh.backends.tokens import load_counter
from loremesh.primitives import Hash, Millis, PeerId, Signature
from loremesh.protocol.cards import (
    CARD_LIFE,
    CapabilityCard,
    ModelOffer,
    SignedCard,
    card_digest,
    check_capability_card,
    sign_capability_card,
)
from loremesh.protocol.codec import encode
from loremesh.protocol.llm import (
    CLOCK_SKEW,
    LONGEST_CALL,
    ChatMessage,
    LlmRequest,
    SignedRequest,
    Transcript,
    answer_limit,
    check_request,
    progress_digest,
    prompt_digest,
    request_digest,
    sign_request,
    sign_serving,
)
from loremesh.protocol.metering import amount_of
from loremesh.testing.builders import CAT, START
from loremesh.testing.calls import ASKED, CLIENT, EXECUTOR, PIECES, PRICE, chat_request
from loremesh.testing.vectors.plain import Case, outcome

_BEGUN = (*ASKED, ChatMessage("assistant", "Nobody keeps"))
_GOOD = chat_request()

_REQUESTS: tuple[tuple[str, LlmRequest, int], ...] = (
    ("an ordinary request", _GOOD, START),
    ("every option", chat_request(2, top_p=(950,), stop=("END", "\n\n"), fold_words=140), START),
    ("no option", chat_request(3, temperature=(), seed=()), START),
    ("a response format", chat_request(4, response_format='{"type": "json_object"}'), START),
    ("a continuation", chat_request(5, messages=_BEGUN, continues=1), START),
    ("text that is not in NFC", chat_request(6, messages=(ChatMessage("user", "cafe\u0301"),)), START),
    ("in its last millisecond", _GOOD, _GOOD.expires),
    ("a millisecond late", _GOOD, _GOOD.expires + 1),
    ("a clock a minute ahead", _GOOD, START - CLOCK_SKEW),
    ("a clock further ahead", _GOOD, START - CLOCK_SKEW - 1),
    ("expires when it begins", chat_request(expires=START), START),
    ("as long a life as allowed", chat_request(expires=Millis(START + LONGEST_CALL)), START),
    ("too long a life", chat_request(expires=Millis(START + LONGEST_CALL + 1)), START),
    ("no message", chat_request(messages=()), START),
    ("an unknown role", chat_request(messages=(ChatMessage("tool", "x"),)), START),
    ("a continuation of a question", chat_request(continues=1), START),
    ("an empty stop word", chat_request(stop=("",)), START),
    ("a response format that is no JSON", chat_request(response_format="{"), START),
    ("a response format that is no object", chat_request(response_format="[]"), START),
)

_TOKENS: tuple[tuple[str, str, int], ...] = (
    ("nothing", "", 1),
    ("a word", "lamp", 1),
    ("a sentence", "Nobody keeps the lamp — it keeps itself.", 1),
    ("capitals and contractions", "She'll say IT'S HERS, won't she?", 1),
    ("numbers in threes", "1234567890", 1),
    ("code", "def f(x):\n    return {'a': x ** 2}  # squared\n", 1),
    ("JSON", '{"title":"The Lamp","pages":[1,2,3],"done":null}', 1),
    ("Japanese", "灯が消えた。だれも来なかった。", 1),
    ("Russian", "Светильник погас, и никто не пришёл.", 1),
    ("Arabic", "انطفأ المصباح ولم يأت أحد.", 1),
    ("Hindi", "दीपक बुझ गया।", 1),
    ("an emoji", "🐉", 1),
    ("an emoji of several", "👩‍🚀👨‍👩‍👧‍👦🏴‍☠️", 1),
    ("composed", "café", 1),
    ("decomposed: another text", "cafe\u0301", 1),
    ("what looks like a special token is text", "<|endoftext|><|endofprompt|>", 1),
    ("controls", "\x00\x07\x1b[31m\x7f", 1),
    ("blanks of all kinds", " \t\u00a0\u2003\u3000\r\n\n  \n x", 1),
    ("a long run of one letter", "a", 4096),
    ("a long run of blanks", " ", 4096),
    ("a long run of line feeds", "\n", 4096),
    ("a long run of marks", "\u0301", 2048),
    ("a long run of punctuation", "!", 4096),
    ("a long run of dragons", "🐉", 1024),
    ("half a mebibyte", "The lamp burned low. ", 24_966),
)

_OFFER = ModelOffer("small-model", 8192, PRICE)
_CARD = CapabilityCard(
    EXECUTOR.peer_id, ("/ip4/192.0.2.1/tcp/4001",), (_OFFER,), 1, 4, START, Millis(START + CARD_LIFE)
)
_CARDS: tuple[tuple[str, CapabilityCard, int], ...] = (
    ("a fresh card", _CARD, START),
    ("without models", replace(_CARD, models=(), slots=0), START),
    ("in its last millisecond", _CARD, _CARD.expires),
    ("a millisecond late", _CARD, _CARD.expires + 1),
    ("a clock a minute ahead", _CARD, START - CLOCK_SKEW),
    ("a clock further ahead", _CARD, START - CLOCK_SKEW - 1),
    ("too long a life", replace(_CARD, expires=Millis(_CARD.expires + 1)), START),
    ("expires when it begins", replace(_CARD, expires=START), START),
    ("one model twice", replace(_CARD, models=(_OFFER, replace(_OFFER, price=1))), START),
    ("another's name", replace(_CARD, peer_id=CAT.peer_id), START),
)


def cases() -> list[Case]:
    """Compute every case from the rules as they stand."""
    return [
        *(_request(name, sign_request(CLIENT, request), now) for name, request, now in _REQUESTS),
        _request("another client's", sign_request(CLIENT, _GOOD), START, client=CAT.peer_id),
        _request("for another executor", sign_request(CLIENT, _GOOD), START, executor=CAT.peer_id),
        _request("signed by nobody", SignedRequest(_GOOD, Signature(bytes(65))), START),
        _request("signed by the executor", sign_request(EXECUTOR, _GOOD), START),
        _progress("three pieces", PIECES),
        _progress("one character per piece", "🐉 é\u0301"),
        *(_prompt(name, messages) for name, messages in (("two messages", ASKED), ("a continuation", _BEGUN))),
        *_servings(),
        *(_tokens(name, unit, times) for name, unit, times in _TOKENS),
        *_answer_limits(),
        *_amounts(),
        *(_card(name, sign_capability_card(EXECUTOR, card), now) for name, card, now in _CARDS),
    ]


def _request(
    name: str, signed: SignedRequest, now: int, *, executor: PeerId = EXECUTOR.peer_id, client: PeerId = CLIENT.peer_id
) -> Case:
    return {
        "rule": "request",
        "name": name,
        "hex": encode(signed).hex(),
        "executor": executor.hex(),
        "client": client.hex(),
        "now": now,
        "digest": request_digest(signed.request).hex(),
        **outcome(lambda: check_request(signed, executor, client, Millis(now))),
    }


def _progress(name: str, pieces: tuple[str, ...] | str) -> Case:
    request = Hash(bytes(range(32)))
    transcript = Transcript(request, PRICE)
    steps = []
    for piece in pieces:
        delta = transcript.add(EXECUTOR, piece)
        progress = transcript.progress
        steps.append(
            {
                "text": piece,
                "size": progress.size,
                "hash": progress.digest.hex(),
                "digest": progress_digest(progress).hex(),
                "signature": delta.signature.hex(),
            }
        )
    key = EXECUTOR.secret.hex()
    return {"rule": "progress", "name": name, "request": request.hex(), "price": PRICE, "key": key, "pieces": steps}


def _prompt(name: str, messages: tuple[ChatMessage, ...]) -> Case:
    told = [[message.role, message.content] for message in messages]
    return {"rule": "prompt", "name": name, "messages": told, "digest": prompt_digest(messages).hex()}


def _servings() -> list[Case]:
    told = (
        ("a paragraph", "Sure, here it is:\n\nNobody keeps the lamp.", 140),
        ("cut to its words", "Nobody keeps the lamp. It keeps itself.", 4),
        ("no paragraph", "---", 140),
        ("no folding asked", "Nobody keeps the lamp.", 0),
    )
    served = [(name, answer, words, chat_request(fold_words=words)) for name, answer, words in told]
    return [
        {
            "rule": "serving",
            "name": name,
            "request": encode(request).hex(),
            "answer": answer,
            "words": words,
            "key": EXECUTOR.secret.hex(),
            "hex": encode(statement).hex() if (statement := sign_serving(EXECUTOR, request, answer)) else None,
        }
        for name, answer, words, request in served
    ]


def _tokens(name: str, unit: str, times: int) -> Case:
    return {"rule": "tokens", "name": name, "unit": unit, "times": times, "tokens": load_counter()(unit * times)}


def _answer_limits() -> list[Case]:
    told = (
        ("one token", 1),
        ("the usual", 1024),
        ("the last that counts", 4087),
        ("the most there is", 4088),
        ("a mebi", 2**20),
    )
    return [
        {"rule": "answer limit", "name": name, "max_tokens": tokens, "bytes": answer_limit(tokens)}
        for name, tokens in told
    ]


def _amounts() -> list[Case]:
    told = (
        ("free", 12_345, 0),
        ("nothing", 0, 250),
        ("rounded up", 1, 1),
        ("even", 2000, 250),
        ("one above even", 2001, 250),
        ("the most", 2**33 - 2, 10**12),
    )
    return [
        {"rule": "amount", "name": name, "tokens": tokens, "price": price, "amount": amount_of(tokens, price)}
        for name, tokens, price in told
    ]


def _card(name: str, signed: SignedCard, now: int) -> Case:
    return {
        "rule": "card",
        "name": name,
        "hex": encode(signed).hex(),
        "now": now,
        "digest": card_digest(signed.card).hex(),
        **outcome(lambda: check_capability_card(signed, Millis(now))),
    }
