"""Taking up readers' suggestions: text from strangers becomes something that is said, written or met in the story.

Nothing of it is obeyed. A noun phrase is met, an order or a claim is spoken by somebody, and whatever is neither is
found in writing, so that any text makes a sentence.
"""

import re
from typing import Final

from loremesh.backends.grammar.reading import DETERMINERS, SINGULAR, VERBS, lower_first, plain
from loremesh.backends.grammar.settings import words_of

_LINKS: Final = re.compile(r"\S*(?:://|www\.|@)\S*")
_WISH: Final = re.compile(
    r"(?:please|maybe|perhaps|i (?:want|would like|wish for|suggest|think)|i’d (?:like|love)|we (?:want|need)|"
    r"how about|there (?:should|could|must) be|add|introduce|include|put in|give us|show us|bring in|use|mention|"
    r"with|it needs)\b[ ,:]*(?:to see |that )?",
    re.IGNORECASE,
)
_ORDERS: Final = words_of(
    "let make have open close kill send follow find give take ask burn steal hide run go turn bring show tell "
    "reveal look listen wait sing drink eat fight save free build break cross climb swim fly return leave "
    "stay kiss marry meet trust betray forgive wake bury dig search read write draw paint play dance call "
    "summon destroy throw keep remember forget beware never don’t do stop start begin end change travel visit "
    "explore explain describe increase try ignore"
)
_MODALS: Final = words_of("should must could would will shall can might may needs has have is are was were")
_LOOSE_ENDS: Final = words_of("and or but the a an of to in on at with for by from that who which as than her his")
_INNER_S: Final = words_of("of with the two three four some many more in no")
_MOST_WORDS: Final = 16
_MOST_PHRASE: Final = 9
_MOST_CHARACTERS: Final = 120

MET: Final = (
    "And then, with no more noise than a thought, they met {text}.",
    "Nobody had sent for {text}, and nobody, when it came to that, seemed much surprised.",
    "It was {person} who first spoke of {text}, and after that the talk would not go back into its box.",
    "What they found at the turn of the way had no business in that country: {text}.",
    "“Don’t turn round too quickly,” said {ally}, “but I believe we have been joined by {text}.”",
    "For weeks there had been rumours of {text}; now {hero} would never again be able to call them rumours.",
    "{hero} had expected many things, but among them there had not been {text}.",
)
ORDERED: Final = (
    "“{text},” said {ally}, as if it were the simplest thing in the world, and {hero} could find no reason why not.",
    "A voice that none of them knew called out of the dark: “{text}!” For want of a better plan, they did.",
    "On the wall somebody had written, in letters a hand high: “{text}.” The paint was still wet.",
    "“{text},” the note said, nothing more, and {hero} turned it over twice in search of a please.",
    "{person} bent close and gave them only this advice: “{text}.” It was worse than none, and they took it.",
)
CLAIMED: Final = (
    "“They are saying it everywhere now,” said {ally}: “{text}.” Nobody laughed.",
    "“Listen,” whispered {person}. “{text}.” And the room grew a little smaller.",
    "{hero} had dreamed it three nights running, always in the same words: “{text}.”",
    "“{text},” said {rival}, in the tone of somebody who has read the last page.",
)
ASKED: Final = (
    "“{text}?” asked {ally}, and the question stayed in the air like smoke.",
    "Somebody had scratched a question into the bench: “{text}?” Nobody there could read it without blinking.",
    "“{text}?” It was {person} who had said it aloud, and now it could not be unsaid.",
)
WRITTEN: Final = (
    "Pushed under the door lay a strip of paper in a hand that nobody knew: “{text}.”",
    "In the margin, beside the date, stood a single line in green ink: “{text}.”",
    "The last thing chalked on the slate, before it broke, had been this: “{text}.”",
    "Sewn into the lining of the coat they found a label, and on the label: “{text}.”",
)
AGAIN: Final = (
    "And beneath it, in another hand: “{text}.”",
    "There was more on the back: “{text}.”",
)


def pattern_for(suggestion: str) -> tuple[tuple[str, ...], str] | None:
    """Choose the sentences that can carry a suggestion, and the words to put in for `{text}`.

    Returns:
        None when nothing is left of it that could stand in a story.
    """
    text = _clean(suggestion)
    if not text:
        return None
    if suggestion.rstrip().endswith("?") or text.lower().startswith("what if "):
        return ASKED, _sentence(text)
    wished = _WISH.sub("", text, count=1) if _WISH.match(text) else text
    if _is_noun_phrase(wished):
        return MET, lower_first(wished)
    words = text.lower().split(" ")
    if words[0] in _ORDERS:
        return ORDERED, _sentence(text)
    if any(word in _MODALS or word in VERBS for word in words[1:]):
        return CLAIMED, _sentence(text)
    return WRITTEN, _sentence(text)


def _clean(suggestion: str) -> str:
    """Cut a stranger's text down to the first words of one plain line, without links and marks."""
    line = plain(_LINKS.sub(" ", suggestion[: 8 * _MOST_CHARACTERS]))
    words = line.split()
    kept = words[:_MOST_WORDS]
    while kept and (len(" ".join(kept)) > _MOST_CHARACTERS or (len(kept) < len(words) and _is_loose(kept[-1]))):
        kept.pop()
    return " ".join(kept).strip(".,;:!?-–—… ")


def _is_loose(word: str) -> bool:
    return word.lower() in _LOOSE_ENDS


def _is_noun_phrase(text: str) -> bool:
    """Tell "a talking fox" from a sentence about one; when in doubt it is a sentence, which can be quoted."""
    words = text.lower().split(" ")
    if words[0] not in DETERMINERS or not 1 < len(words) <= _MOST_PHRASE or "," in text:
        return False
    if any(word in VERBS or word in _MODALS or word.endswith("ed") for word in words[2:]):
        return False
    for number, word in enumerate(words[2:], start=2):
        is_plural_or_verb = word.endswith("s") and not word.endswith(("ss", "us", "’s"))
        is_last_plural = number == len(words) - 1 and words[0] not in SINGULAR
        if is_plural_or_verb and words[number - 1] not in _INNER_S and not is_last_plural:
            return False
    return True


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
