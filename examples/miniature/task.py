"""The miniature's world: texts of scattered facts, questions on them, and two skills that need no text.

A fact is a line ``owns Alice lantern.`` (a relation, a name, a thing) or ``met Alice Carla Lyon.`` (whom and where).
Lines of everyday life stand between the facts. In one text a name has a relation once, so every question has one
answer; where the fact stands tells nothing about it. Three kinds of question:

    what owns Alice                   lantern
    what met Alice                    Carla Lyon
    what owns Alice and sold Bruno    Alice lantern Bruno tiger

The skills, ``capital France`` and ``reverse Alice Bruno Carla``, are taught with the short texts and stand in no long
one: they show what training on long texts loses.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass


def _words(text: str) -> list[str]:
    return text.split()


NAMES = _words(
    """
    Alice Bruno Carla David Elena Felix Greta Hugo Irene Jonas Klara Lucas Maria Nils Olga Peter Quinn Rosa Simon
    Tessa Ulrich Vera Walter Xenia Yusuf Zoe Anton Bella Clara Dario Emil Fiona Gavin Helga Ivan Julia Karl Lydia
    Marco Nadia
    """
)
TOWNS = _words(
    """
    Lyon Porto Ghent Turin Malmo Bergen Krakow Graz Basel Leeds Cork Nantes Sevilla Bari Aarhus Tampere Brno Split
    Varna Izmir Osaka Busan Perth Boston Dallas Denver Quito Lima Cusco Recife Kano Durban Pune Hanoi Cebu Medan
    Basra Tabriz Kazan Odessa
    """
)
ANIMALS = _words(
    """
    tiger horse rabbit parrot turtle hamster goose donkey camel otter badger falcon spider lizard beaver monkey
    pigeon ferret llama panda zebra weasel raven salmon lobster shrimp gecko iguana bison moose walrus dolphin
    jackal hyena cobra toucan pelican magpie ostrich yak
    """
)
FOODS = _words(
    """
    pasta curry soup bread cheese salad sushi tacos waffle pizza risotto noodles omelette porridge stew pancakes
    dumplings lasagna paella goulash kebab falafel hummus ramen burger muffin pretzel bagel yogurt granola pudding
    custard trifle sorbet chowder gumbo polenta gnocchi ravioli couscous
    """
)
TOOLS = _words(
    """
    hammer chisel wrench pliers shovel rake ladder anvil drill saw needle compass telescope lantern bucket broom
    ruler scissors tweezers scalpel trowel mallet crowbar clamp level axe sickle scythe plough kettle bellows
    spanner awl file lathe pulley winch jigsaw sander vise
    """
)
THINGS = [*ANIMALS, *FOODS, *TOOLS]
RELATIONS = ("owns", "wants", "sold", "lost", "met")
_COUNTRIES = _words(
    """
    France/Paris Spain/Madrid Italy/Rome Germany/Berlin Austria/Vienna Poland/Warsaw Greece/Athens Norway/Oslo
    Sweden/Stockholm Finland/Helsinki Ireland/Dublin Portugal/Lisbon Hungary/Budapest Egypt/Cairo Kenya/Nairobi
    Japan/Tokyo China/Beijing India/Delhi Cuba/Havana Canada/Ottawa Chile/Santiago Turkey/Ankara Iran/Tehran
    Iraq/Baghdad
    """
)
CAPITALS = dict(pair.split("/") for pair in _COUNTRIES)
LINES = (
    "the day is warm .",
    "it was a long walk along the shore .",
    "the river runs to the sea .",
    "snow fell in the night .",
    "many people came to the market .",
    "the old road is closed .",
)
KINDS = ("what", "met", "two")
SKILLS = ("capital", "reverse")
SPECIAL = ("<pad>", "<bos>", "<user>", "<assistant>", "<end>", "<unknown>")
FUNCTION_WORDS = ("what", "and", "capital", "reverse")
VOCABULARY = [
    *SPECIAL,
    *dict.fromkeys(word for line in LINES for word in line.split()),
    *FUNCTION_WORDS,
    *RELATIONS,
    *NAMES,
    *THINGS,
    *TOWNS,
    *(word for pair in CAPITALS.items() for word in pair),
]
"""Every token is a word; its place is its id."""

FILLER = 0.3
"""Part of the lines that state nothing asked about."""
MAX_ANSWER_TOKENS = 5
"""Of an answer with its end."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One line that states something."""

    relation: str
    name: str
    thing: str
    """After "met" another name and a town."""

    @property
    def line(self) -> str:
        """As it stands in a text, a space between tokens."""
        return f"{self.relation} {self.name} {self.thing} ."


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and the one right answer."""

    kind: str
    text: str
    answer: str
    evidence: tuple[Fact, ...] = ()


@dataclass(frozen=True, slots=True)
class Text:
    """Lines in order, and the facts among them."""

    lines: tuple[str, ...]
    facts: tuple[Fact, ...]

    def __str__(self) -> str:
        return "\n".join(written(line) for line in self.lines)


def written(line: str) -> str:
    """A line as it is written: no space before its period."""
    return line.replace(" .", ".")


def make_text(
    draw: random.Random, num_tokens: int, *, repeated: float = 0.0, num_relations: int = len(RELATIONS)
) -> Text:
    """A text of at most ``num_tokens`` tokens.

    Args:
        repeated: part of the lines that say again what was said.
        num_relations: how many of the relations its facts are of.
    """
    names = draw.sample(NAMES, min(len(NAMES), max(4, num_tokens // 4)))  # several facts a person, also in short texts
    unused = [(name, relation) for name in names for relation in draw.sample(RELATIONS, num_relations)]
    draw.shuffle(unused)
    things = draw.sample(THINGS, len(THINGS))
    lines, facts, room = list[str](), list[Fact](), num_tokens
    while True:
        if lines and draw.random() < repeated:
            line = draw.choice(lines)
        elif not unused or not things or draw.random() < FILLER:
            line = draw.choice(LINES)
        else:
            name, relation = unused.pop()
            fact = Fact(relation, name, _company(draw, name) if relation == "met" else things.pop())
            line = fact.line
            if room >= num_words(line):
                facts.append(fact)
        room -= num_words(line)
        if room < 0:
            return Text(tuple(lines), tuple(facts))
        lines.append(line)


def _company(draw: random.Random, name: str) -> str:
    other = draw.choice([one for one in NAMES if one != name])
    return f"{other} {draw.choice(TOWNS)}"


def num_words(text: str) -> int:
    """Tokens of a text that is written with a space between tokens."""
    return text.count(" ") + 1


def ask(draw: random.Random, facts: Sequence[Fact], kind: str) -> Question:
    """A question of that kind on some of ``facts``; of the kind "what" where they do not allow another."""
    meetings = [fact for fact in facts if fact.relation == "met"]
    others = [fact for fact in facts if fact.relation != "met"]
    if kind == "two" and len(others) >= 2:
        one, other = draw.sample(others, 2)
        text = f"what {one.relation} {one.name} and {other.relation} {other.name}"
        return Question(kind, text, f"{one.name} {one.thing} {other.name} {other.thing}", (one, other))
    fact = draw.choice(meetings if kind == "met" and meetings else others or meetings)
    return Question("met" if fact in meetings else "what", f"what {fact.relation} {fact.name}", fact.thing, (fact,))


def ask_skill(draw: random.Random, kind: str) -> Question:
    """A question that needs no text."""
    if kind == "capital":
        country = draw.choice(list(CAPITALS))
        return Question(kind, f"capital {country}", CAPITALS[country])
    names = draw.sample(NAMES, 3)
    return Question(kind, "reverse " + " ".join(names), " ".join(reversed(names)))
