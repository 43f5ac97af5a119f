"""Vectors of the genesis: files for people, their canonical bytes and the story they begin.

A case is `{"name", "toml", "hex", "story", "fault": null}`, or `{"name", "toml", "fault"}`: a file that describes no
story.
"""

from dataclasses import replace

from loremesh.errors import InvalidGenesis
from loremesh.protocol.codec import encode
from loremesh.protocol.genesis import Validator, genesis_from_toml, genesis_to_toml, story_id
from loremesh.protocol.identity import peer_id_text
from loremesh.testing.builders import ANN, BOB, CAT, small_genesis
from loremesh.testing.vectors.plain import Case

_HEAD = 'title = "Lanterns"\npremise = "A keeper finds a map."\ntime = 1700000000000\n'
_BOB = peer_id_text(BOB.peer_id)
_SMALL = small_genesis(tracker=ANN)

_FILES = (
    ("the least that a story needs", _HEAD),
    ("every field", genesis_to_toml(_SMALL)),
    (
        "validators with and without personality",
        genesis_to_toml(replace(_SMALL, validators=(Validator(BOB.peer_id, "a sceptic"), Validator(CAT.peer_id)))),
    ),
    ("another pace takes its own solo_after along", _HEAD + "[parameters]\nspacing = 30000\n"),
    ("text beyond ASCII", _HEAD.replace("Lanterns", "Lanternes à marée haute")),
    ("no title", _HEAD.replace("title", "tittle")),
    ("no time", _HEAD.replace("time = 1700000000000\n", "")),
    ("title of the wrong type", _HEAD.replace('"Lanterns"', "7")),
    ("empty title", _HEAD.replace("Lanterns", "")),
    ("title of 25 words", _HEAD.replace("Lanterns", " ".join(["word"] * 25))),
    ("title with a control character", _HEAD.replace("Lanterns", "Lan\\u001bterns")),
    ("title not in NFC", _HEAD.replace("Lanterns", "cafe\\u0301")),
    ("premise of 201 words", _HEAD.replace("A keeper finds a map.", " ".join(["word"] * 201))),
    ("time before 1970", _HEAD.replace("1700000000000", "-1")),
    ("time of 65 bits", _HEAD.replace("1700000000000", str(2**64))),
    ("time as a boolean", _HEAD.replace("1700000000000", "true")),
    ("language of two words", _HEAD + 'language = "plain English"\n'),
    ("an unknown key", _HEAD + 'colour = "blue"\n'),
    ("an unknown rule", _HEAD + "[rules]\nparagraphs = 2\n"),
    ("an unknown parameter", _HEAD + "[parameters]\npace = 2\n"),
    ("141 words", _HEAD + "[rules]\nwords = 141\n"),
    ("no words", _HEAD + "[rules]\nwords = 0\n"),
    ("31 paragraphs of context", _HEAD + "[rules]\ncontext = 31\n"),
    ("blocks below 8 KiB", _HEAD + "[rules]\nblock_bytes = 8191\n"),
    ("blocks above 256 KiB", _HEAD + "[rules]\nblock_bytes = 262145\n"),
    ("257 transactions", _HEAD + "[rules]\ntransactions = 257\n"),
    ("rules that are no table", _HEAD + "rules = 3\n"),
    ("no spacing", _HEAD + "[parameters]\nspacing = 0\n"),
    ("spacing as a float", _HEAD + "[parameters]\nspacing = 3.0\n"),
    ("spacing over a day", _HEAD + "[parameters]\nspacing = 86400001\n"),
    ("min_spacing above spacing", _HEAD + "[parameters]\nspacing = 500\n"),
    ("easiest work above the initial", _HEAD + "[parameters]\ninitial_work = 16\n"),
    ("work of zero", _HEAD + "[parameters]\ninitial_work = 1\neasiest_work = 0\n"),
    ("a tracker that is no peer id", _HEAD + 'tracker = "ann"\n'),
    ("a validator without peer id", _HEAD + '[[validators]]\npersonality = "calm"\n'),
    ("a validator with an unknown key", _HEAD + f'[[validators]]\npeer_id = "{_BOB}"\nmood = "calm"\n'),
    ("a validator twice", _HEAD + f'[[validators]]\npeer_id = "{_BOB}"\n' * 2),
    (
        "a personality with a control character",
        _HEAD + f'[[validators]]\npeer_id = "{_BOB}"\npersonality = "\\u007f"\n',
    ),
    ("not TOML", "title = Lanterns\n"),
    ("nested 20,000 deep", "x = " + "[" * 20_000),
    ("a number of 5,000 digits", "time = " + "9" * 5_000),
)


def cases() -> list[Case]:
    """Compute every case from the rules as they stand."""
    return [_case(name, toml) for name, toml in _FILES]


def _case(name: str, toml: str) -> Case:
    try:
        genesis = genesis_from_toml(toml)
    except InvalidGenesis as error:
        return {"name": name, "toml": toml, "fault": type(error).__name__}
    return {"name": name, "toml": toml, "hex": encode(genesis).hex(), "story": story_id(genesis).hex(), "fault": None}
