"""Four worlds to tell in, each with its own places, things and weather. English.

Places, hazards and people carry their article; things are bare nouns in the singular; sights are clauses in the past;
sounds and smells are noun phrases.
"""

from dataclasses import dataclass
from typing import Final


def words_of(text: str) -> frozenset[str]:
    """Read a set of words that is written as a line."""
    return frozenset(text.split())


@dataclass(frozen=True, slots=True)
class Setting:
    """A world's vocabulary. `signs` are the words of a premise that call for it."""

    signs: frozenset[str]
    places: tuple[str, ...]
    things: tuple[str, ...]
    hazards: tuple[str, ...]
    people: tuple[str, ...]
    sights: tuple[str, ...]
    sounds: tuple[str, ...]
    smells: tuple[str, ...]


COAST: Final = Setting(
    signs=words_of(
        "sea ocean coast harbour harbor lighthouse island isle ship boat sail sailor captain pirate tide reef "
        "beach shore whale fish fisher fisherman anchor drowned port bay wave waves storm mermaid keeper kraken "
        "cove pearl raft submarine salt gull gulls"
    ),
    places=(
        "the drowned chapel", "the outer mole", "the salt market", "the ropewalk", "the customs stair",
        "the wreckers’ beach", "the pilot house", "the tide mill", "the lamp room", "the oyster sheds",
        "the causeway", "the chandler’s attic",
    ),
    things=(
        "brass sextant", "tide table", "cracked ship’s bell", "coil of green rope", "whalebone comb",
        "pilot’s whistle", "drowned man’s letter", "salt-stained chart", "lead seal", "glass float",
        "signal lamp", "harbour key",
    ),
    hazards=(
        "the white fog", "the tenth wave", "the wreckers", "the undertow", "the thing beneath the mole",
        "the spring tide", "the harbour watch", "the drowned bell",
    ),
    people=(
        "the ferryman", "an old net-mender", "the harbourmaster’s clerk", "a boy with a bucket of eels",
        "the widow who kept the light", "a pilot long out of work", "the salt-seller", "one of the divers",
    ),
    sights=(
        "the gulls had gone inland", "the tide stood still halfway up the stones",
        "every hull in the basin swung north", "a single lamp burned on the water where no boat lay",
        "salt had drawn white veins on all the windows", "the nets hung empty and dry",
        "the moon laid a road on the bay and nobody took it",
        "somebody had turned the weathercock to face the sea", "the mud flats shone like the back of a fish",
        "a line of wet footprints came up from the water and ended", "the fog had eaten the end of the pier",
        "foam lay along the steps like torn paper",
    ),
    sounds=(
        "the knock of hulls against the quay", "a bell under the water", "the long drag of shingle",
        "wind in the rigging", "oars, unhurried and close", "a foghorn two notes too low",
        "the drip of the sluice", "somebody mending a net and humming", "the hiss of rain on the bay",
        "a chain running out",
    ),
    smells=(
        "tar and cold salt", "wet rope", "lamp oil", "mud at low water", "smoked herring", "rain on hot planks",
        "old varnish", "seaweed and iron",
    ),
)  # fmt: skip

WILDS: Final = Setting(
    signs=words_of(
        "forest wood woods mountain mountains valley village farm wolf wolves bear fox deer hunter witch dragon "
        "river snow winter tree trees oak cave moor marsh swamp shepherd miller knight castle king queen prince "
        "princess kingdom sword troll giant elf wizard field meadow hill hills road inn orchard crow raven beast"
    ),
    places=(
        "the charcoal clearing", "the old toll bridge", "the hollow mill", "the shepherds’ hut",
        "the drovers’ inn", "the stone ring", "the beech avenue", "the flooded quarry", "the abbey orchard",
        "the pass below the snow", "the bone meadow", "the gallows oak",
    ),
    things=(
        "iron ring", "horn-handled knife", "bundle of letters", "clay whistle", "silver thimble",
        "beekeeper’s veil", "rusted lantern", "wolf’s tooth on a cord", "seed purse", "half-burnt candle",
        "carved staff", "copper bowl",
    ),
    hazards=(
        "the grey wolves", "the first snow", "the tax riders", "the voice in the well", "the fire on the ridge",
        "the marsh lights", "the bailiff’s men", "the thing that walked the hedges",
    ),
    people=(
        "the miller’s daughter", "a pedlar with one boot", "the oldest of the charcoal burners",
        "a girl herding geese", "the priest without a parish", "the innkeeper", "a soldier on his way home",
        "the woman who read the bees",
    ),
    sights=(
        "the rooks had left the elms", "frost lay on the summer grass",
        "smoke stood straight up from every chimney", "the stream ran thick and without a sound",
        "a hare sat in the road and would not move", "the leaves had all turned their pale side out",
        "one window showed a light, then none did", "somebody had tied red thread along the fence",
        "the snow held no tracks but their own", "mist filled the valley to the brim",
        "the bees hung in a knot beneath the gate", "the moon came up the colour of old bone",
    ),
    sounds=(
        "an axe, far off, and then its echo", "the creak of the mill wheel", "dogs barking at nothing",
        "wind combing the barley", "a cart on the frozen road", "an owl that asked twice",
        "water talking under ice", "somebody whistling a hymn too slowly", "the tick of cooling stones",
        "branches shifting their weight",
    ),
    smells=(
        "wood smoke and wet wool", "crushed fern", "apples gone soft", "cold iron", "turned earth", "pine resin",
        "bread from a house they could not see", "snow on the way",
    ),
)  # fmt: skip

CITY: Final = Setting(
    signs=words_of(
        "city town street streets library librarian museum station train theatre detective police market hotel "
        "school factory clock clockmaker tower bridge cathedral palace tailor baker painter printer bank thief "
        "thieves night cafe café apartment house shop bookshop rain tram subway radio newspaper archive letter "
        "letters post"
    ),
    places=(
        "the night market", "the reading room", "the tram depot", "the stair behind the theatre",
        "the old bathhouse", "the print shop", "the clock tower", "the flower cellar", "the court of locks",
        "the rooftop gardens", "the lost property office", "the bridge of scribes",
    ),
    things=(
        "brass key", "unsent letter", "stopped watch", "library card", "violin without strings",
        "ledger of debts", "glass eye", "torn playbill", "street map of another city", "blue ticket",
        "music box", "wax seal",
    ),
    hazards=(
        "the night inspectors", "the silence in the wires", "the fire brigade’s bell",
        "the man in the grey gloves", "the rising river", "the curfew", "the rent collectors",
        "the copied faces",
    ),
    people=(
        "the lamplighter", "a tram conductor off duty", "the woman at the ticket window",
        "a boy selling matches", "the night librarian", "the pawnbroker", "a violinist between two jobs",
        "the porter",
    ),
    sights=(
        "every clock in the street showed a different hour", "the lamps went out one after another, politely",
        "a curtain moved in a house with no floors", "the posters had been pasted over with blank paper",
        "rain stood in the gutters like ink", "someone had chalked an arrow on every third door",
        "the pigeons walked instead of flying", "the last tram went by with nobody aboard",
        "steam came up through the gratings in slow rings", "a row of umbrellas dried in an empty hall",
        "the statue in the square had turned its head", "light lay in the wet street like spilled coins",
    ),
    sounds=(
        "a piano two floors up, always the same four bars", "keys, a great many of them", "the hum of the wires",
        "heels on the iron stair", "a shutter coming down", "the cough of a motor that would not start",
        "pages turning in a shut room", "the bells disagreeing about the hour", "rain in the downpipes",
        "laughter that stopped a moment late",
    ),
    smells=(
        "coffee and machine oil", "wet stone", "old paper", "burnt sugar", "coal smoke", "floor wax",
        "oranges, out of season", "printer’s ink",
    ),
)  # fmt: skip

STARS: Final = Setting(
    signs=words_of(
        "space spaceship starship star stars planet planets moon mars orbit orbital robot robots android ai "
        "colony galaxy alien aliens astronaut station comet asteroid machine machines engine crew cosmic "
        "satellite void rocket computer future terraforming nebula generation"
    ),
    places=(
        "the seed vault", "the upper ring", "the cold dock", "the hydroponic terraces",
        "the chapel of instruments", "the sleepers’ deck", "the antenna field", "the water works",
        "the glass observatory", "the dead shuttle", "the repair spine", "the school on the ninth level",
    ),
    things=(
        "burnt-out beacon", "hand-drawn star chart", "sealed canister", "child’s spacesuit", "memory crystal",
        "analog clock", "spool of black wire", "captain’s log", "paper book", "jar of earth", "signal key",
        "cracked visor",
    ),
    hazards=(
        "the slow leak", "the quiet on every channel", "the maintenance swarm", "the solar storm",
        "the second signal", "the failing reactor", "the auditors from the inner worlds",
        "the voice in the coolant",
    ),
    people=(
        "the quartermaster", "a welder with silver hands", "the girl who fed the algae",
        "the ship’s last gardener", "an engineer on the wrong shift", "the navigator’s twin", "the archivist",
        "a sleeper woken early",
    ),
    sights=(
        "frost had grown across the inside of the hatch", "the status lamps all burned a patient amber",
        "the planet below turned its dark side to them", "a glove drifted past, waving at nobody",
        "dust hung in the light and would not settle", "the stars in the port did not match the chart",
        "condensation crawled upward along the pipes", "one panel had been polished until it shone",
        "the plants all leaned away from the lamp", "the far docking lights blinked in no known code",
        "ice rang like glass along the hull", "somebody had drawn a sun on the bulkhead in grease",
    ),
    sounds=(
        "the pumps changing their mind", "a tapping in the pipes, three and three",
        "the hull shrugging off the cold", "static that almost made words", "a fan somewhere, out of true",
        "boots on the grating one deck down", "the lock cycling by itself", "an old song on a dead channel",
        "the reactor’s low steady vowel", "tools knocking against a belt",
    ),
    smells=(
        "ozone and warm dust", "recycled rain", "solder", "green leaves, of all things", "cold metal",
        "burnt coffee", "machine grease", "somebody else’s soap",
    ),
)  # fmt: skip

SETTINGS: Final = (COAST, WILDS, CITY, STARS)
