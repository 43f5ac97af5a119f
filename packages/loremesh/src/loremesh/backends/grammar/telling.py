"""Telling one paragraph out of the grammar: who, where, and what happens in it.

The story's cast and the place, object and danger of each chapter of twelve paragraphs follow from the story id and the
premise alone, so whichever node wins a height, the same people go on with the same matter. The request's seed chooses
how it is told: the sentences, their details, and what becomes of a suggestion.

All chance comes from SHA-256 in counter mode: a request has one answer, on every machine and Python.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeVar

from loremesh.backends.grammar.phrases import NAMES, PHRASES, THEY
from loremesh.backends.grammar.reading import Premise, names_in, read_premise
from loremesh.backends.grammar.sentences import BEATS, OPENING_BEAT, SENTENCES, SPARE
from loremesh.backends.grammar.settings import STARS
from loremesh.backends.grammar.weaving import AGAIN, WRITTEN, pattern_for
from loremesh.backends.prompt import ParagraphRequest
from loremesh.errors import BackendFailed
from loremesh.primitives import StoryId

T = TypeVar("T")

MOST_WOVEN: Final = 3
"""So many suggestions are taken up in one paragraph, the first of them."""

MEMORY: Final = 12
"""Paragraphs within which nothing is said twice."""

_FEWEST_WORDS: Final = 40
_MOST_WORDS: Final = 110
_ATTEMPTS: Final = 64
_TRIES: Final = 6
_SLOT: Final = re.compile(r"\{(\w+)\}")
_STARTS: Final = ("", ". ", "? ", "! ")
_VOWELS: Final = "aeiou"
_STEP: Final = 5  # has no factor in common with the length of any list of places or things


class Draws:
    """Chance that is the same everywhere: SHA-256 in counter mode over a key."""

    __slots__ = ("_count", "_key", "_pool")

    def __init__(self, *key: bytes | str | int) -> None:
        parts = [part if isinstance(part, bytes) else str(part).encode() for part in key]
        self._key = hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()
        self._count = 0
        self._pool = b""

    def below(self, limit: int) -> int:
        """Draw from 0 up to `limit`, which is far below 2^32."""
        if not self._pool:
            self._pool = hashlib.sha256(self._key + self._count.to_bytes(8, "big")).digest()
            self._count += 1
        drawn, self._pool = self._pool[:4], self._pool[4:]
        return int.from_bytes(drawn, "big") % limit

    def pick(self, choices: Sequence[T]) -> T:
        """Draw one of them."""
        return choices[self.below(len(choices))]


def tell(request: ParagraphRequest) -> str:
    """Compose the paragraph at `request.height`.

    Raises:
        BackendFailed: Every attempt said what the story has said before.
    """
    so_far = set(request.paragraphs)
    for attempt in range(_ATTEMPTS):
        paragraph = _Telling(request, attempt).paragraph()
        if paragraph not in so_far:
            return paragraph
    raise BackendFailed("the builtin backend has nothing new to say here")


@dataclass(frozen=True, slots=True)
class Cast:
    """Who the story is about."""

    hero: str
    ally: str
    rival: str
    pronouns: tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Chapter:
    """What twelve paragraphs have in common."""

    place: str
    thing: str
    hazard: str
    person: str


class _Telling:
    """One attempt at one paragraph."""

    def __init__(self, request: ParagraphRequest, attempt: int) -> None:
        self.request = request
        self.draws = Draws(request.story, request.seed, "paragraph", request.height, attempt)
        self.recent = " ".join(request.paragraphs[-MEMORY:])
        self.premise = read_premise(request.title, request.premise)
        index = max(0, request.height - 1)
        number, self.beat = divmod(index, len(BEATS))
        chapter, before, after = (chapter_of(request.story, self.premise, n) for n in (number, number - 1, number + 1))
        cast = cast_of(request.story, self.premise)
        self.guests = names_in(
            request.paragraphs[-MEMORY:], self.premise.no_people | {cast.hero, cast.ally, cast.rival}
        )
        if self.guests and cast.hero not in self.recent and cast.ally not in self.recent:
            # Others have told this story so far: their people are the cast.
            leads = (*self.guests, cast.hero, cast.ally)
            cast, self.guests = Cast(leads[0], leads[1], leads[2], THEY), self.guests[3:]
        he, him, his = cast.pronouns
        self.fixed = {
            "hero": cast.hero, "ally": cast.ally, "rival": cast.rival, "guest": self.guests[0] if self.guests else "",
            "he": he, "him": him, "his": his,
            "place": chapter.place, "thing": chapter.thing, "hazard": chapter.hazard, "person": chapter.person,
            "a_thing": _with_article(chapter.thing), "next_place": after.place,
            "old_place": before.place, "old_thing": before.thing,
            "premise": self.premise.clause, "title": self.premise.title,
            "role": self.premise.roles[0] if self.premise.roles else "",
        }  # fmt: skip
        self.sentences: list[str] = []

    def paragraph(self) -> str:
        limit = min(_MOST_WORDS, self.request.max_words)
        woven = self._weave()
        slots = self._slots()
        if woven:
            slots = (*slots[:2], "", slots[3])  # where the paragraph turns, the readers' ideas come in
        room = limit - _words(woven)
        for slot in slots:
            if not slot:
                self.sentences += woven
                room += _words(woven)
            else:
                self._add(self._tell(slot), room)
        for slot in SPARE:
            if _words(self.sentences) < _FEWEST_WORDS:
                self._add(self._tell(slot), limit)
        return " ".join(self.sentences or [self._tell(slots[0])])

    def _slots(self) -> tuple[str, ...]:
        """Order what this paragraph does; a slot nothing can fill gives way to another."""
        chosen = list(self.draws.pick(BEATS[self.beat]))
        if self.request.height <= 1:
            chosen = list(OPENING_BEAT)
            if self.fixed["role"]:
                chosen[1] = "who_role"
            if not self.fixed["premise"]:
                chosen[0] = "arrive"
            if not self.fixed["title"]:
                chosen[3] = "close"
        if self.guests and self.request.height % 3 == 0:
            chosen[1] = "guest"
        return tuple(chosen)

    def _weave(self) -> list[str]:
        woven: list[str] = []
        for suggestion in self.request.suggestions[:MOST_WOVEN]:
            pattern = pattern_for(suggestion)
            if pattern:
                templates, text = pattern
                follows_writing = bool(woven) and templates is WRITTEN
                woven.append(self._sentence(AGAIN if follows_writing else templates, text=text))
        return woven

    def _tell(self, slot: str) -> str:
        aboard = f"{slot}_aboard" if self.premise.setting is STARS else slot
        return self._sentence(SENTENCES.get(aboard, SENTENCES[slot]))

    def _add(self, sentence: str, limit: int) -> None:
        if sentence not in self.sentences and _words([*self.sentences, sentence]) <= limit:
            self.sentences.append(sentence)

    def _sentence(self, templates: Sequence[str], **given: str) -> str:
        """Fill in a template whose wording has not been used of late."""
        said = f"{self.recent} {' '.join(self.sentences)}"
        template = self._unsaid(templates, said, wording=True)
        filled: dict[str, str] = {}

        def fill(match: re.Match[str]) -> str:
            name = match[1]
            if name not in filled:
                filled[name] = given.get(name) or self.fixed.get(name) or self._detail(name, said, filled)
            value = filled[name]
            before = template[max(0, match.start() - 2) : match.start()]
            return value[0].upper() + value[1:] if before in _STARTS or before[-1] == "“" else value

        return _SLOT.sub(fill, template)

    def _detail(self, name: str, said: str, filled: dict[str, str]) -> str:
        kind = name.rstrip("2")
        setting = self.premise.setting
        choices: Sequence[str]
        if kind in PHRASES:
            choices = PHRASES[kind]
        elif kind == "motif":
            choices = self._motifs()
        else:
            choices = {"sight": setting.sights, "sound": setting.sounds, "smell": setting.smells}[kind]
        taken = filled.values()
        return self._unsaid([choice for choice in choices if choice not in taken], said, wording=False)

    def _motifs(self) -> list[str]:
        nouns = [f"the {thing}" for thing in self.premise.things] + list(self.premise.places)
        return nouns or [f"the {self.fixed['old_thing']}"]

    def _unsaid(self, choices: Sequence[str], said: str, *, wording: bool) -> str:
        """Draw one whose text does not occur in `said`; the one used longest ago, when all do."""
        for _ in range(_TRIES):
            choice = self.draws.pick(choices)
            if (_longest_wording(choice) if wording else choice) not in said:
                return choice
        return min(choices, key=lambda choice: said.rfind(_longest_wording(choice) if wording else choice))


@lru_cache(maxsize=1024)
def cast_of(story: StoryId, premise: Premise) -> Cast:
    """Name the cast: whom the premise names, then whom the story id chooses."""
    draws = Draws(story, "cast")
    names = list(premise.names[:3])
    wanted = premise.pronouns
    while len(names) < 3:  # noqa: PLR2004 - hero, ally, rival
        name = draws.pick([name for name in NAMES if name not in names])
        if names or wanted in (THEY, NAMES[name]):
            names.append(name)
    return Cast(names[0], names[1], names[2], NAMES.get(names[0], THEY) if wanted == THEY else wanted)


@lru_cache(maxsize=1024)
def chapter_of(story: StoryId, premise: Premise, number: int) -> Chapter:
    """Set the scene of a chapter; the first is about the premise's own place and thing, if it names them."""
    setting = premise.setting
    draws = Draws(story, "chapters")
    offsets = [draws.below(1 << 16) for _ in range(4)]
    lists = (setting.places, setting.things, setting.hazards, setting.people)
    place, thing, hazard, person = (
        choices[(offset + number * _STEP) % len(choices)] for choices, offset in zip(lists, offsets, strict=True)
    )
    if number == 0 and premise.places:
        place = premise.places[0]
    if number == 0 and premise.things and not premise.things[0].endswith("s"):
        thing = premise.things[0]
    return Chapter(place, thing, hazard, person)


@lru_cache(maxsize=2048)
def _longest_wording(template: str) -> str:
    """Give the longest stretch of a template without a slot: what one would recognise it by."""
    return max(_SLOT.sub("\0", template).split("\0"), key=len)


def _words(sentences: Sequence[str]) -> int:
    return sum(sentence.count(" ") + 1 for sentence in sentences)


def _with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in _VOWELS else f"a {noun}"
