"""Generated facts to train fusers on: other relations, things and values than the task `private-facts` asks for.

A fuser that has learned these has seen none of that task's sentences, places or values (tests/train/test_facts.py holds
the two apart). Values are drawn afresh for each text, many of them from the words of the receiver's own vocabulary,
so that there is nothing to know by heart: what is said has to come through the columns.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

from unspoken.train.lesson import Asked, Lesson
from unspoken.train.vocabulary import Vocabulary, reserved


class Relation(NamedTuple):
    """One kind of fact.

    Attributes:
        values: Which pool its values come from.
        statements: Ways to say it; `{s}` is the thing, `{v}` the value.
        questions: Ways to ask it.
        stems: Ways to begin the answer.
    """

    values: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    stems: tuple[str, ...]


RELATIONS = (
    Relation("person", ("{S} was founded by {v}.", "It was {v} who founded {s}.", "{v} is the founder of {s}."),
             ("Who founded {s}?", "Name the founder of {s}."), ("{S} was founded by", "The founder of {s} is")),
    Relation("person", ("{S} belongs to {v}.", "The owner of {s} is {v}.", "{v} has owned {s} for years."),
             ("Who owns {s}?", "To whom does {s} belong?"), ("{S} belongs to", "The owner of {s} is")),
    Relation("person", ("{v} repaired {s} last month.", "{S} was repaired by {v}."),
             ("Who repaired {s}?",), ("{S} was repaired by",)),
    Relation("person", ("The keys of {s} are with {v}.", "{v} keeps the keys of {s}."),
             ("Who has the keys of {s}?", "With whom are the keys of {s}?"), ("The keys of {s} are with",)),
    Relation("person", ("{v} wrote a book about {s}.", "A book about {s} was written by {v}."),
             ("Who wrote a book about {s}?",), ("The book about {s} was written by",)),
    Relation("number", ("{S} has {v} rooms.", "There are {v} rooms in {s}."),
             ("How many rooms does {s} have?", "How many rooms are there in {s}?"), ("The number of rooms in {s} is",)),
    Relation("number", ("{S} cost {v} crowns.", "The price of {s} was {v} crowns."),
             ("What did {s} cost?", "How many crowns did {s} cost?"), ("The price of {s} was",)),
    Relation("number", ("{S} is {v} metres long.", "The length of {s} is {v} metres."),
             ("How long is {s}?", "What is the length of {s} in metres?"), ("The length of {s} in metres is",)),
    Relation("year", ("{S} was built in {v}.", "In {v}, {s} was built.", "Work on {s} ended in {v}."),
             ("When was {s} built?", "In which year was {s} built?"), ("{S} was built in",)),
    Relation("year", ("{S} burned down in {v}.", "A fire destroyed {s} in {v}."),
             ("When did {s} burn down?", "In which year did a fire destroy {s}?"), ("{S} burned down in",)),
    Relation("month", ("{S} opens every {v}.", "Every {v}, {s} opens its doors."),
             ("In which month does {s} open?", "When does {s} open?"), ("{S} opens in", "{S} opens every")),
    Relation("month", ("The inspection of {s} falls in {v}.", "Inspectors visit {s} in {v}."),
             ("In which month is {s} inspected?",), ("{S} is inspected in",)),
    Relation("place", ("{S} lies near {v}.", "The nearest town to {s} is {v}.", "From {s} one can see {v}."),
             ("Which town is nearest to {s}?", "What does {s} lie near?"), ("{S} lies near", "The nearest town is")),
    Relation("place", ("The road from {s} leads to {v}.", "From {s} a road goes to {v}."),
             ("Where does the road from {s} lead?",), ("The road from {s} leads to",)),
    Relation("place", ("{S} was moved to {v}.", "They moved {s} to {v}."),
             ("Where was {s} moved?", "To which town was {s} moved?"), ("{S} was moved to",)),
    Relation("invented", ("The password of {s} is {v}.", "To enter {s}, say {v}."),
             ("What is the password of {s}?", "Which password opens {s}?"), ("The password of {s} is",)),
    Relation("invented", ("{S} is named after {v}.", "{v} gave {s} its name."),
             ("After whom is {s} named?", "Who gave {s} its name?"), ("{S} is named after",)),
    Relation("invented", ("The code for {s} is {v}.", "{v} is the code of {s}."),
             ("What is the code for {s}?",), ("The code for {s} is",)),
    Relation("word", ("The word carved over {s} is {v}.", "Over {s} somebody carved the word {v}."),
             ("Which word is carved over {s}?", "What is carved over {s}?"), ("The word over {s} is",)),
    Relation("word", ("The secret sign of {s} is {v}.", "{v} is the secret sign of {s}."),
             ("What is the secret sign of {s}?",), ("The secret sign of {s} is",)),
    Relation("word", ("{S} is famous for its {v}.", "People know {s} for its {v}."),
             ("What is {s} famous for?", "For what do people know {s}?"), ("{S} is famous for its",)),
    Relation("word", ("In {s} they found a {v}.", "A {v} was found in {s}."),
             ("What was found in {s}?", "What did they find in {s}?"), ("In {s} they found a", "It was a")),
    Relation("word", ("{S} needs more {v}.", "What {s} lacks is {v}."),
             ("What does {s} need?", "What does {s} lack?"), ("{S} needs more", "{S} lacks")),
    Relation("word", ("{S} smells of {v}.", "There is a smell of {v} about {s}."),
             ("What does {s} smell of?",), ("{S} smells of",)),
    Relation("word", ("Visitors bring {v} to {s}.", "To {s}, visitors bring {v}."),
             ("What do visitors bring to {s}?",), ("Visitors bring",)),
    Relation("word", ("{S} is built of {v}.", "They built {s} of {v}."),
             ("What is {s} built of?", "Of what is {s} built?"), ("{S} is built of",)),
    Relation("word", ("{S} was once a {v}.", "Long ago {s} was a {v}."),
             ("What was {s} once?", "What did {s} use to be?"), ("{S} was once a",)),
    Relation("word", ("The guard of {s} fears the {v}.", "Nothing frightens the guard of {s} but the {v}."),
             ("What does the guard of {s} fear?",), ("The guard of {s} fears the",)),
    Relation("trade", ("The tenant of {s} is a {v}.", "A {v} rents {s}."),
             ("What is the trade of the tenant of {s}?", "Who rents {s}?"), ("The tenant of {s} is a",)),
    Relation("trade", ("{S} was designed by a {v}.", "A {v} designed {s}."),
             ("What was the trade of the designer of {s}?", "Who designed {s}?"), ("{S} was designed by a",)),
    Relation("material", ("The roof of {s} is made of {v}.", "{S} has a roof of {v}."),
             ("What is the roof of {s} made of?",), ("The roof of {s} is made of",)),
    Relation("material", ("The gate of {s} is of {v}.", "{S} has a gate of {v}."),
             ("What is the gate of {s} made of?",), ("The gate of {s} is made of",)),
    Relation("weather", ("{S} suffers from {v} each year.", "Each year there is {v} at {s}."),
             ("What does {s} suffer from each year?",), ("{S} suffers from",)),
    Relation("language", ("At {s} they speak {v}.", "The language of {s} is {v}."),
             ("Which language do they speak at {s}?", "What is the language of {s}?"), ("At {s} they speak",)),
)  # fmt: skip
POOLS = {
    "person": tuple(
        "Oscar Nina Felix Clara Hugo Vera Otto Ida Leon Martha Victor Helen Max Rosa Igor Laura Adam Julia Bruno Nora "
        "Ivan Sophie Luke Agnes Marcus Eva Kevin Diana Oliver Hannah Steven Ruth Philip Grace Martin Lucy Andrew "
        "Karen Gregory Monica Patrick Linda Brian Susan Dennis Teresa Harold Irene Walter Judith".split()
    ),
    "month": tuple("January February March April May June July August September October November December".split()),
    "place": tuple(
        "Lisbon Oslo Athens Dublin Prague Warsaw Budapest Zurich Geneva Milan Naples Venice Hamburg Munich Seville "
        "Lima Quito Havana Denver Dallas Houston Seattle Phoenix Detroit Atlanta Miami Portland Lagos Nairobi Tunis "
        "Dakar Mumbai Karachi Dhaka Bangkok Manila Seoul Osaka Hanoi Jakarta Perth Auckland Montreal Ottawa".split()
    ),
    "trade": tuple(
        "carpenter painter lawyer doctor sailor soldier farmer teacher singer baker barber butcher tailor gardener "
        "miner fisherman jeweller poet printer weaver surgeon judge pilot dancer hunter engineer sculptor".split()
    ),
    "material": tuple(
        "copper straw slate clay bronze marble bamboo leather canvas concrete brick granite tin lead ivory oak pine "
        "cedar limestone plaster steel brass rubber gravel".split()
    ),
    "weather": tuple("floods storms drought frost fog lightning hail snow heat landslides winds rain ice mud".split()),
    "language": tuple(
        "French German Spanish Italian Dutch Greek Latin Arabic Hebrew Turkish Russian Polish Czech Danish Finnish "
        "Hindi Bengali Tamil Chinese Korean Swahili Welsh Irish Basque".split()
    ),
}  # fmt: skip
ADJECTIVES = tuple(
    "ancient broken crooked distant empty famous golden haunted icy lonely narrow noisy painted round ruined sacred "
    "second shining silver small sunken tall third twisted tidy wide windy forgotten mossy double floating "
    "dusty marble open secret shallow steep winding".split()
)
THINGS = tuple(
    "house castle palace cottage tunnel canal fountain well statue pier dock warehouse barn stable cellar tavern hotel "
    "prison courthouse temple monastery cathedral pavilion gallery arena stadium airport depot railway lift cable "
    "reservoir dam windmill vineyard orchard meadow island cave cliff waterfall boat ship wagon bell clock organ "
    "telescope engine furnace archway staircase balcony wall gate fortress cemetery camp village academy college "
    "laboratory clinic pharmacy post kiosk shop studio cinema casino club office treasury".split()
)
FILLERS = (
    "Nothing else was reported that season.", "The weather stayed mild until evening.", "Few people took notice.",
    "Some of this was known before.", "A clerk copied the list twice.", "Others may remember it differently.",
    "The meeting lasted longer than planned.", "No changes are expected soon.", "Everyone went home early that night.",
    "The rest of the file is missing.", "This was confirmed by two witnesses.", "A map was added later.",
)  # fmt: skip
ONSETS = tuple("b br d dr f g gl h k kr l m n p pr r s st t tr v z".split())
NUCLEI, CODAS = tuple("aeiou"), ("", "", "l", "n", "r", "s", "k", "x", "m")


@dataclass(frozen=True)
class GeneratedFacts:
    """Texts of facts.

    Attributes:
        vocabulary: Where values of the pool `word` come from.
        facts: Facts of one text.
    """

    vocabulary: Vocabulary
    facts: int = 6

    def lesson(self, seed: int, number: int) -> Lesson:
        """Return one text and its questions, the same for the same seed and number."""
        draw = random.Random(f"facts/2/{seed}/{self.facts}/{number}")  # noqa: S311 - reproducible, not secret
        things = self._things(draw)
        kinds = draw.sample(RELATIONS, self.facts // 2)
        sentences, asked = [], []
        for at, thing in enumerate(things):
            relation = kinds[at % len(kinds)]
            value = self._value(relation.values, draw)
            sentences.append(_said(draw.choice(relation.statements), thing, value))
            question = _said(draw.choice(relation.questions), thing, value)
            asked.append(Asked(question, value, _said(draw.choice(relation.stems), thing, value)))
        order = draw.sample(range(len(things)), len(things))
        told = [sentences[at] for at in order]
        for filler in draw.sample(FILLERS, draw.randrange(4)):
            told.insert(draw.randrange(len(told) + 1), filler)
        return Lesson(" ".join(told), tuple(asked))

    def _things(self, draw: random.Random) -> list[str]:
        if draw.random() < 0.3:  # People instead of things, now and then.
            nouns, names = draw.sample(THINGS, self.facts), draw.sample(POOLS["person"], self.facts)
            return [f"the {noun} of {name}" for noun, name in zip(nouns, names, strict=True)]
        adjectives, nouns = draw.sample(ADJECTIVES, self.facts), draw.sample(THINGS, self.facts)
        return [f"the {adjective} {noun}" for adjective, noun in zip(adjectives, nouns, strict=True)]

    def _value(self, pool: str, draw: random.Random) -> str:
        if pool in POOLS and draw.random() < 0.8:
            return draw.choice(POOLS[pool])
        if pool == "number":
            return str(draw.randrange(2, 10 ** draw.randrange(1, 5) + 2))
        if pool == "year":
            return str(draw.randrange(1100, 2030))
        if pool in ("invented", "person", "place"):
            return invented(draw)
        return draw.choice(self.vocabulary.words)


def invented(draw: random.Random) -> str:
    """Return a name that is made up, and is none of the task `private-facts`."""
    name = ""
    while not name or name in reserved():
        syllables = [draw.choice(ONSETS) + draw.choice(NUCLEI) for _ in range(draw.randrange(2, 4))]
        name = "".join(syllables) + draw.choice(CODAS)
    return name.capitalize()


def _said(form: str, thing: str, value: str) -> str:
    """Fill a form in; whatever comes first gets a capital letter."""
    said = form.format(s=thing, S=thing, v=value)
    return said[0].upper() + said[1:]
