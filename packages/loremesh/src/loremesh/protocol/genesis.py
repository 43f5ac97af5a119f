"""Where a story begins: a TOML file for people, canonical bytes for the network, and their hash, the story id.

Source: docs/protocol/genesis.md.
"""

import json
import tomllib
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Final

from loremesh.errors import InvalidGenesis, ProtocolError
from loremesh.primitives import KIB, Height, Millis, PeerId, StoryId
from loremesh.protocol.codec import Int, Many, MillisField, PeerIdField, Text, decode, encode, schema
from loremesh.protocol.content.paragraph import check_paragraph
from loremesh.protocol.identity import NO_STORY, check_peer_id, digest, peer_id_from_text, peer_id_text

GENESIS_HEIGHT: Final = Height(0)
_TITLE_WORDS: Final = 24
_PREMISE_WORDS: Final = 200
_PERSONALITY_WORDS: Final = 8
_MAX_SPACING: Final = 24 * 3600 * 1000


@schema(version=1, limit=256)
@dataclass(frozen=True, slots=True)
class Validator:
    """A voter of the first set."""

    peer_id: PeerIdField
    personality: Annotated[str, Text(32)] = ""


@schema(version=1, limit=64)
@dataclass(frozen=True, slots=True)
class Rules:
    """What a block may contain."""

    words: Annotated[int, Int(1, 140)] = 140
    """Most words in a paragraph."""
    context: Annotated[int, Int(1, 30)] = 30
    """Most paragraphs a prompt repeats."""
    block_bytes: Annotated[int, Int(8 * KIB, 256 * KIB)] = 64 * KIB
    """Most bytes of an encoded block."""
    transactions: Annotated[int, Int(0, 256)] = 64
    """Most transactions in a block."""


@schema(version=1, limit=128)
@dataclass(frozen=True, slots=True)
class Parameters:
    """The pace of the story; spans in milliseconds, work in hashes."""

    spacing: Annotated[Millis, Int(1, _MAX_SPACING)] = Millis(3000)
    """The time that should pass between blocks (T)."""
    min_spacing: Annotated[Millis, Int(0, _MAX_SPACING)] = Millis(1000)
    """The least time between a block and its parent."""
    max_ahead: Annotated[Millis, Int(0, _MAX_SPACING)] = Millis(500)
    """A block further ahead of the local clock than this is held until then."""
    half_life: Annotated[Millis, Int(1, 10 * _MAX_SPACING)] = Millis(60_000)
    """A lag of this much halves the work."""
    initial_work: Annotated[int, Int(1)] = 2**20
    easiest_work: Annotated[int, Int(1)] = 2**14
    solo_after: Annotated[Millis, Int(0, 10 * _MAX_SPACING)] = Millis(9000)
    """After this long alone the tracker may produce again; 3 T unless said otherwise."""


@schema(version=1, limit=32 * KIB)
@dataclass(frozen=True, slots=True)
class Genesis:
    """The premise, the rules and the first roles of a story."""

    title: Annotated[str, Text(200)]
    premise: Annotated[str, Text(2 * KIB)]
    language: Annotated[str, Text(35)]
    """A BCP 47 tag."""
    time: MillisField
    """Time zero."""
    validators: Annotated[tuple[Validator, ...], Many(100)] = ()
    tracker: Annotated[tuple[PeerIdField, ...], Many(1)] = ()
    """The first tracker, or nobody."""
    rules: Rules = field(default_factory=Rules)
    parameters: Parameters = field(default_factory=Parameters)


def story_id(genesis: Genesis) -> StoryId:
    """Name the story that `genesis` begins."""
    return StoryId(digest("genesis", NO_STORY, encode(genesis)))


def genesis_from_bytes(data: bytes, expected: StoryId | None = None) -> Genesis:
    """Read a genesis that came from a peer or from the disk.

    Args:
        data: Canonical bytes.
        expected: The story that was asked for.

    Raises:
        InvalidMessage: The bytes are no genesis.
        InvalidGenesis: The genesis contradicts itself, or begins another story than `expected`.
    """
    genesis = decode(Genesis, data)
    _check(genesis)
    if expected is not None and story_id(genesis) != expected:
        raise InvalidGenesis(f"this genesis begins story {story_id(genesis).hex()}, not {expected.hex()}")
    return genesis


def genesis_from_toml(text: str) -> Genesis:
    """Read a genesis file.

    Raises:
        InvalidGenesis: With the key that is wrong, and what would be right.
    """
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also what tomllib lets through: huge numbers, deep nesting
        raise InvalidGenesis(f"not TOML: {error}") from error
    _only(table, {"title", "premise", "language", "time", "tracker", "validators", "rules", "parameters"}, "genesis")
    try:
        genesis = Genesis(
            title=_typed(table, "title", str),
            premise=_typed(table, "premise", str),
            language=_typed(table, "language", str, "en"),
            time=Millis(_typed(table, "time", int)),
            validators=tuple(_validator(entry) for entry in _typed(table, "validators", list, [])),
            tracker=tuple(_peer("tracker", text) for text in [_typed(table, "tracker", str, "")] if text),
            rules=Rules(**_numbers(table, "rules", Rules)),
            parameters=_parameters(_numbers(table, "parameters", Parameters)),
        )
        # A round trip through the codec checks every range in the one place that knows them.
        genesis = decode(Genesis, encode(genesis))
    except (ProtocolError, OverflowError) as error:
        raise InvalidGenesis(f"genesis: {error}") from error
    _check(genesis)
    return genesis


def genesis_to_toml(genesis: Genesis) -> str:
    """Write a genesis file that `genesis_from_toml` reads back."""
    lines = [
        f"title = {_quoted(genesis.title)}",
        f"premise = {_quoted(genesis.premise)}",
        f"language = {_quoted(genesis.language)}",
        f"time = {genesis.time} # Unix milliseconds",
        *(f"tracker = {_quoted(peer_id_text(peer_id))}" for peer_id in genesis.tracker),
    ]
    for name, values in (("rules", asdict(genesis.rules)), ("parameters", asdict(genesis.parameters))):
        lines += ["", f"[{name}]", *(f"{key} = {value}" for key, value in values.items())]
    for validator in genesis.validators:
        lines += ["", "[[validators]]", f"peer_id = {_quoted(peer_id_text(validator.peer_id))}"]
        lines += [f"personality = {_quoted(validator.personality)}"] if validator.personality else []
    return "\n".join(lines) + "\n"


def _check(genesis: Genesis) -> None:
    parameters = genesis.parameters
    texts = [("title", genesis.title, _TITLE_WORDS), ("premise", genesis.premise, _PREMISE_WORDS)]
    texts += [("language", genesis.language, 1)]
    texts += [("personality", one.personality, _PERSONALITY_WORDS) for one in genesis.validators if one.personality]
    for key, text, words in texts:
        try:
            check_paragraph(text, words)
        except ProtocolError as error:
            raise InvalidGenesis(f"genesis: {key!r}: {error}") from error
    try:
        for peer_id in [*genesis.tracker, *(validator.peer_id for validator in genesis.validators)]:
            check_peer_id(peer_id)
    except ProtocolError as error:
        raise InvalidGenesis(f"genesis: {error}") from error
    if len({validator.peer_id for validator in genesis.validators}) < len(genesis.validators):
        raise InvalidGenesis("genesis: a validator is named twice")
    if parameters.min_spacing > parameters.spacing:
        raise InvalidGenesis("genesis: min_spacing may not exceed spacing")
    if parameters.easiest_work > parameters.initial_work:
        raise InvalidGenesis("genesis: easiest_work may not exceed initial_work")


def _only(table: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(table) - known)
    if unknown:
        raise InvalidGenesis(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")


def _typed(table: dict[str, Any], key: str, kind: type, default: object = None) -> Any:  # noqa: ANN401 - as TOML is
    value = table.get(key, default)
    if value is None:
        raise InvalidGenesis(f"genesis: {key!r} is missing")
    if type(value) is not kind:
        raise InvalidGenesis(f"genesis: {key!r} is not of type {kind.__name__}")
    return value


def _numbers(table: dict[str, Any], name: str, kind: type) -> dict[str, Any]:
    section: dict[str, Any] = _typed(table, name, dict, {})
    _only(section, {entry.name for entry in fields(kind)}, name)
    return {key: _typed(section, key, int) for key in section}


def _parameters(values: dict[str, Any]) -> Parameters:
    values.setdefault("solo_after", 3 * values.get("spacing", Parameters().spacing))
    return Parameters(**values)


def _validator(entry: object) -> Validator:
    if not isinstance(entry, dict):
        raise InvalidGenesis("genesis: each of 'validators' is a table with a peer_id")
    _only(entry, {"peer_id", "personality"}, "validators")
    return Validator(_peer("validators.peer_id", _typed(entry, "peer_id", str)), _typed(entry, "personality", str, ""))


def _peer(where: str, text: str) -> PeerId:
    try:
        return peer_id_from_text(text)
    except ProtocolError as error:
        raise InvalidGenesis(f"genesis: {where}: {error}") from error


def _quoted(text: str) -> str:
    # JSON's escapes are TOML's, and the text rules have kept out the one control character JSON leaves as it is.
    return json.dumps(text, ensure_ascii=False)
