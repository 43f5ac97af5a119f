"""What the builtin backend reads out of other people's English: names, places and things, by simple signs."""

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Final

from loremesh.backends.grammar.phrases import HE, SHE, THEY
from loremesh.backends.grammar.settings import SETTINGS, Setting, words_of
from loremesh.protocol.content.paragraph import to_visible_lines

SINGULAR: Final = words_of("a an one every each another")
DETERMINERS: Final = SINGULAR | words_of(
    "the her his their its my our your this that these those some two three four seven many more last no any"
)
_STOPS: Final = DETERMINERS | words_of(
    "of in on at to from with by for under over near into onto beyond behind between through across after "
    "before about against around and or but nor so as if when where while who whom whose which what that than "
    "then once she he it they we you i him them us me not never always only just still yet also very too must "
    "should would could will can may might do does did is are was were be been has have had here there how "
    "why because until"
)
VERBS: Final = words_of(
    "is are was were has have had finds find found keeps kept wakes woke learns learned discovers discovered "
    "returns returned must should would could will can may might comes came goes went gets got becomes became "
    "makes made takes took gives gave sees saw hears heard turns turned begins began starts started tells "
    "told says said knows knew dies died lives lived loses lost leaves left meets met opens opened falls fell "
    "rises rose steals stole hides hid wants wanted needs needed tries tried runs ran speaks spoke sings sang "
    "brings brought breaks broke draws drew redraws grows grew holds held builds built appears appeared "
    "arrives arrived waits waited vanishes vanished inherits inherited receives received travels traveled "
    "travelled decides decided reads read writes wrote guards guarded sells sold buys bought dreams dreamed "
    "hunts hunted follows followed betrays betrayed attacks attacked shows showed calls called sails sailed "
    "awakens awakened remembers remembered does did doesn’t isn’t"
)
_ROLES: Final = words_of(
    "keeper captain witch king queen prince princess girl boy woman man child knight thief detective robot "
    "doctor librarian sailor pilot hunter miller baker smith blacksmith tailor apprentice painter poet singer "
    "gardener nurse teacher student orphan pirate wizard monk nun priest ghost dragon spy soldier merchant "
    "inventor astronaut engineer archivist cartographer mapmaker clockmaker fisherman fisher shepherd farmer "
    "judge chef cook android stranger traveller traveler mother father sister brother daughter son twin twins "
    "sisters brothers crew wanderer hermit scribe musician dancer beekeeper navigator"
)
_PLACE_WORDS: Final = words_of(
    "lighthouse island isle city town village harbour harbor port sea ocean coast forest wood mountain valley "
    "castle tower library station ship house inn tavern market bridge river desert kingdom planet moon colony "
    "mill cave temple church chapel palace school hotel theatre theater garden field farm road street swamp "
    "marsh bay lake well cellar attic museum observatory ruins shop bakery hospital prison train submarine "
    "monastery academy archive"
)
_TOO_VAGUE: Final = words_of(
    "hundred thousand dozen few couple pair bit moment day’s way time night day end world one thing things "
    "year years life story part side lot kind place people name truth war peace same other first second next "
    "hour morning evening winter summer spring autumn tale"
)
_NOT_A_NAME: Final = _STOPS | words_of(
    "monday tuesday wednesday thursday friday saturday sunday january february march april june july august "
    "september october november december god lord lady sir mister madam"
)
_WORD: Final = re.compile(r"[A-Za-zÀ-ÖØ-öø-ÿ]+(?:[’'-][A-Za-zÀ-ÖØ-öø-ÿ]+)*|[.,;:!?—]")
_NAME: Final = re.compile(r"(?<=[a-z,;:] )[A-Z][a-zà-ÿ]{2,15}\b")
_PLACE_NAME: Final = re.compile(
    r"\b(?:in|at|to|from|near|on|under|beyond|of) ((?:[A-Z][a-zà-ÿ]+)(?: (?:of |the )?[A-Z][a-zà-ÿ]+){0,2})"
)
_MOST_PHRASE_WORDS: Final = 3
_MOST_READ: Final = 2000
_CALLED: Final = re.compile(rf"\b(?:{'|'.join(sorted(_PLACE_WORDS))}) ([A-Z][a-zà-ÿ]+)")


@dataclass(frozen=True, slots=True)
class Premise:
    """What a title and a premise say a story is about; any part may be empty."""

    setting: Setting
    clause: str
    """The premise as the end of a sentence, without its full stop; empty when it is too long for that."""
    title: str
    names: tuple[str, ...]
    pronouns: tuple[str, str, str]
    roles: tuple[str, ...]
    """Nouns of people, without an article."""
    places: tuple[str, ...]
    """With an article, or proper names."""
    no_people: frozenset[str]
    """Capitalised words that name something else: places, words of the title."""
    things: tuple[str, ...]
    """Nouns without an article."""


@lru_cache(maxsize=64)
def read_premise(title: str, premise: str, *, longest_clause: int = 34, longest_title: int = 8) -> Premise:
    """Read a story's title and premise; they come from strangers, so only what is plain English is used."""
    title = plain(title)[:_MOST_READ]
    premise = plain(premise)[:_MOST_READ]
    text = f"{premise} . {_lower_title(title)}"
    words = {word.lower() for word in _WORD.findall(f"{title} {premise}")}
    place_names = tuple(dict.fromkeys([*_PLACE_NAME.findall(premise), *_CALLED.findall(premise)]))
    phrases = noun_phrases(text)
    heads = {phrase: phrase.split(" ")[-1] for phrase in phrases}
    clause = re.split(r"(?<=[.!?])\s", premise)[0].rstrip(".!?,;: ")
    return Premise(
        setting=max(SETTINGS, key=lambda setting: len(setting.signs & words)),
        clause=lower_first(clause) if 0 < clause.count(" ") < longest_clause else "",
        title=title.strip(".“”\"' ") if title.count(" ") < longest_title else "",
        names=_names_of_premise(premise, " ".join(place_names)),
        pronouns=_pronouns(words),
        roles=tuple(phrase for phrase in phrases if heads[phrase] in _ROLES),
        places=place_names + tuple(f"the {phrase}" for phrase in phrases if heads[phrase] in _PLACE_WORDS),
        no_people=frozenset(re.findall(r"[A-Z][\w’]+", f"{' '.join(place_names)} {title}")),
        things=tuple(phrase for phrase in phrases if heads[phrase] not in _ROLES | _PLACE_WORDS | _TOO_VAGUE),
    )


def names_in(paragraphs: tuple[str, ...], known: frozenset[str]) -> tuple[str, ...]:
    """Find names that a story uses at least twice in the middle of sentences, the most frequent first."""
    found = Counter(name for paragraph in paragraphs for name in _NAME.findall(paragraph))
    return tuple(
        name
        for name, count in found.most_common()
        if count > 1 and name not in known and name.lower() not in _NOT_A_NAME
    )


def noun_phrases(text: str) -> tuple[str, ...]:
    """Find what follows an article or the like, up to the next word that cannot belong to a noun; in lower case."""
    found: list[str] = []
    words = _WORD.findall(text)
    for number, word in enumerate(words):
        if word.lower() not in DETERMINERS:
            continue
        phrase: list[str] = []
        for following in words[number + 1 : number + 2 + _MOST_PHRASE_WORDS]:
            ends = not following[0].islower() or following in _STOPS or following in VERBS
            if ends or (phrase and _is_verb_after(word, following)):
                break
            phrase.append(following)
        if phrase and len(phrase) <= _MOST_PHRASE_WORDS and len(phrase[-1]) > 2:  # noqa: PLR2004 - shorter is no noun
            found.append(" ".join(phrase))
    return tuple(dict.fromkeys(found))


def plain(text: str) -> str:
    """Make one visible line with typographic apostrophes and without other quotation marks."""
    line = to_visible_lines(text).replace("\n", " ").replace("'", "’")
    return re.sub(r"[\"“”„«»`*_#<>\[\]{}|\\]", "", line).strip()


def lower_first(text: str) -> str:
    """Write a sentence's first word as it stands inside a sentence, if that is surely right."""
    first, _, rest = text.partition(" ")
    return f"{first.lower()} {rest}" if first.lower() in _STOPS and first != "I" else text


def _is_verb_after(determiner: str, word: str) -> bool:
    """Tell "a keeper finds" from "the glass doors" by the little that can be told."""
    return word.endswith("ed") or (determiner.lower() in SINGULAR and word.endswith("s") and not word.endswith("ss"))


def _names_of_premise(premise: str, places: str) -> tuple[str, ...]:
    inside = _NAME.findall(premise)
    words = _WORD.findall(premise)
    first = [
        word
        for word, following in pairwise(words)
        if word[0].isupper() and (following in VERBS or (following == "," and word == words[0]))
    ]
    names = {name for name in [*first, *inside] if name.lower() not in _NOT_A_NAME and name not in places}
    return tuple(sorted(names, key=premise.index))


def _pronouns(words: set[str]) -> tuple[str, str, str]:
    hers, his = (
        bool(words & {"she", "her", "woman", "girl", "queen"}),
        bool(words & {"he", "his", "man", "boy", "king"}),
    )
    if hers == his:
        return THEY
    return SHE if hers else HE


def _lower_title(title: str) -> str:
    """Read "The Glass Door" as "the glass door"; names in a title are not told apart, so only with an article."""
    return title.lower() if title.lower().startswith(("the ", "a ", "an ")) else ""
