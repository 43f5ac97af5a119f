"""Names and phrases that fit every setting. English."""

from typing import Final

SHE: Final = ("she", "her", "her")
HE: Final = ("he", "him", "his")
THEY: Final = ("they", "them", "their")
"""Pronouns: subject, object, possessive. Sentences give them no verb whose form depends on which it is."""

NAMES: Final[dict[str, tuple[str, str, str]]] = {
    **dict.fromkeys(
        ("Ilsa", "Maren", "Oriel", "Sefa", "Tamsin", "Wenna", "Briony", "Callis", "Dorthe", "Elspeth", "Fenna",
         "Isaura", "Jorunn", "Kerensa", "Lisbet", "Mirela", "Nadja", "Perpetua", "Rosalba", "Saskia",
         "Thessaly", "Ulla"),
        SHE,
    ),
    **dict.fromkeys(
        ("Anselm", "Bram", "Corin", "Davor", "Emeric", "Falk", "Gideon", "Halloran", "Ivo", "Jory", "Kaspar",
         "Lorcan", "Mattis", "Nils", "Osric", "Piran", "Quillon", "Rurik", "Tobiah", "Varro", "Wendel",
         "Yorick"),
        HE,
    ),
}  # fmt: skip
"""What the cast is called when the premise names nobody."""

PHRASES: Final[dict[str, tuple[str, ...]]] = {
    "time": (
        "at first light", "a little before dawn", "at noon, under a white sky", "as the lamps were being lit",
        "late in the afternoon", "an hour after midnight", "between two showers", "at the turn of the watch",
        "on the third day", "when the streets had emptied", "before anyone else was awake",
        "at the blue end of dusk", "once the last bell had gone", "in the thin light of morning",
        "at an hour that belonged to nobody", "with the day already half spent", "on the coldest morning so far",
        "before the kettle had boiled",
    ),
    "feel": (
        "a cold patience", "something close to hope", "the old anger", "a doubt that would not sit down",
        "more courage than sense", "a calm that had to be borrowed", "the beginning of a laugh",
        "a grief with no name to it yet", "the stubbornness of the very tired", "a small bright fear",
        "relief, and shame at the relief", "the sense of being expected", "an envy of all ordinary people",
        "the weight of an unkept promise", "a tenderness that came at the wrong moment",
        "plain, useful curiosity", "the itch of a word half remembered", "a pity that surprised everyone",
        "the loneliness of being right", "a readiness that felt like hunger", "the quiet after a decision",
        "nothing at all",
    ),
    "gesture": (
        "counted the steps back to the door", "turned up a collar against the draught",
        "let the silence do the asking", "wiped both hands and began again", "set down the bag without a sound",
        "listened with closed eyes", "drew a line in the dust and stepped across it",
        "tied the knot a second time", "held the light a little higher",
        "looked once over one shoulder and not again",
        "breathed out slowly, the way one does before lifting something", "laid one palm flat against the wall",
        "pocketed a crust for later", "put the chair back where it had stood",
        "traced the edge with a fingertip", "nodded as if somebody had spoken",
        "pulled the door to and leaned on it", "knelt to see it from below",
        "smiled for the first time that day", "waited for the others to catch up",
        "folded the page along its old crease", "put an ear to the floor",
    ),
    "manner": (
        "without hurry", "in the voice people use with horses", "without looking up", "in a borrowed voice",
        "a little too quickly", "with great politeness", "after a while", "to nobody in particular",
        "very quietly", "with a mouth full of bread", "from the doorway", "across the table",
        "with careful cheerfulness", "like someone paying a debt", "over the noise", "in half a whisper",
        "into the dark", "at long last",
    ),
    "likeness": (
        "like a held breath", "like a coin at the bottom of a well", "like a guest who has mistaken the house",
        "like the last page of a borrowed book", "like bread under a cloth", "like a tooth about to come loose",
        "like a name called in a crowd", "like smoke that has forgotten its fire",
        "like a stair one did not expect", "like a letter nobody dares to open",
        "like a dog that knows the way home", "like frost deciding on a window",
        "like an answer to some other question", "like a hand laid on a shoulder",
        "like the pause before applause", "like a debt remembered at night",
    ),
}  # fmt: skip
