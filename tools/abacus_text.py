"""The text that abacus is trained and examined on, made from one seed.

Five kinds of question, each at two levels::

    kind         level      example                                              answer
    sums         2, 3       What is 45+37?                                       The answer is 82.
    differences  2, 3       What is 82-37?                                       The answer is 45.
    products     2, 3       What is 47*6?                                        7*6=42, 4*6=24. The answer is 282.
    stories      1, 2       Ada has 45 apples. Ben gives Ada 37 more. How ...?   The answer is 82.
    facts        often, seldom   Where does Ada Stone live?                      At number 417.

The level of sums, differences and products is the number of digits of the larger operand, that of a story
is its number of steps, that of a fact is how often it comes up in training.

**What is held out.** A step of arithmetic is an operation and two operands, whatever their order and whatever
the words around it: ``45+37``, ``37+45`` and the story about 37 and 45 apples are one step. `is_held_out`
puts about a tenth of all steps aside. A question is used for training only if none of its steps is held out;
the examination asks only questions with a step that is. Steps on two numbers below ten are the tables and never held out.
Facts can't be held out, since nobody can guess a house number. Instead each person is never asked
about in one of the four wordings, and the examination uses that wording.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

FIRST_NAMES = (
    "Ada Ben Cora Dan Eva Finn Gita Hugo Ida Jan Kira Leo Mia Noah Olga Paul Qi Rosa Sam Tara Udo Vera Will Xenia Yara Zeno "
    "Amir Bella Carl Dora Emil Fay Gus Hana Ivan Jane Karl Lena Max Nina Omar Pia Quinn Rolf Sara Tom Uma Vic Wanda Yuri "
    "Alma Bruno Clara Dino Elsa Felix Greta Hans Iris Jonas Kate Lars Maya Nils"
).split()
LAST_NAMES = (
    "Stone River Hill Wood Field Marsh Brook Lake Forest Meadow Bridge Tower Gate Wall Garden Orchard Baker Miller Smith Carter "
    "Cooper Fisher Hunter Mason Potter Taylor Weaver Tanner Turner Glover Parker Porter Sawyer Fletcher Farmer Shepherd Gardener "
    "Piper Singer Harper Fox Wolf Hare Finch Swan Crane Heron Robin Sparrow Raven Lamb Bull Colt Drake Salmon Pike Snow Frost "
    "Winter Summer Rain Storm Wind Cloud Moon Star Sun Day Knight King Bishop Abbot Silver Gold Iron Copper Steel Glass Linen Silk"
).split()
THINGS = "apples pears plums nuts eggs coins books stamps shells marbles".split()
FACT_WORDINGS = (
    "Where does {} live?",
    "Where is the house of {}?",
    "Where can I find {}?",
    "At which number does {} live?",
)
KINDS = ("sums", "differences", "products", "stories", "facts")
LEVELS: dict[str, tuple[str, ...]] = {
    "sums": ("2 digits", "3 digits"),
    "differences": ("2 digits", "3 digits"),
    "products": ("2 digits", "3 digits"),
    "stories": ("1 step", "2 steps"),
    "facts": ("often", "seldom"),
}

Step = tuple[str, int, int]
"""One step of arithmetic: operation (``+``, ``-`` or ``*``) and its two operands."""


@dataclass(frozen=True)
class Item:
    """A question, its one right answer, and the steps of arithmetic that the answer needs (none for a fact)."""

    kind: str
    level: str
    question: str
    answer: str
    steps: tuple[Step, ...] = ()

    @property
    def text(self) -> str:
        """Question and answer as the model writes them: one line, one space between."""
        return f"{self.question} {self.answer}"

    @property
    def held_out(self) -> bool:
        """True if training must never see this question, in any order or wording of its numbers."""
        return any(is_held_out(*step) for step in self.steps)


def is_held_out(operation: str, a: int, b: int) -> bool:
    """Say on which side of the split a step of arithmetic falls. The order of the operands plays no part.

    >>> is_held_out("+", 45, 37) == is_held_out("+", 37, 45)
    True
    >>> any(is_held_out("*", a, b) for a in range(10) for b in range(10))
    False
    """
    low, high = sorted((a, b))
    if high < 10:
        return False
    digest = hashlib.blake2b(f"{low}{operation}{high}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % 10 == 0


def carry_out(step: Step) -> int:
    """Compute one step.

    >>> carry_out(("-", 82, 37))
    45
    """
    operation, a, b = step
    return a + b if operation == "+" else a - b if operation == "-" else a * b


def sum_item(a: int, b: int) -> Item:
    """``What is a+b?``"""
    return _plain_item("sums", "+", a, b)


def difference_item(a: int, b: int) -> Item:
    """``What is a-b?`` with the larger number first: abacus knows no negative numbers."""
    return _plain_item("differences", "-", max(a, b), min(a, b))


def _plain_item(kind: str, operation: str, a: int, b: int) -> Item:
    step = (operation, a, b)
    return Item(kind, _level_by_digits(a, b), f"What is {a}{operation}{b}?", f"The answer is {carry_out(step)}.", (step,))


def product_item(a: int, b: int) -> Item:
    """``What is a*b?``, one of them a single digit, answered with the partial products of the schoolbook, last digit first.

    >>> product_item(47, 6).answer
    '7*6=42, 4*6=24. The answer is 282.'

    The partial products are of single digits, so they never give a held-out product away.
    """
    many, digit = (a, b) if a >= b else (b, a)
    partial = ", ".join(f"{d}*{digit}={int(d) * digit}" for d in reversed(str(many)))
    return Item("products", _level_by_digits(a, b), f"What is {a}*{b}?", f"{partial}. The answer is {a * b}.", (("*", a, b),))


def _level_by_digits(a: int, b: int) -> str:
    return "3 digits" if max(a, b) >= 100 else "2 digits"


def story_item(names: tuple[str, str], thing: str, steps: tuple[Step, ...]) -> Item:
    """A story about counting. Two steps are answered with the step between written out.

    >>> story_item(("Ada", "Ben"), "apples", (("+", 45, 37),)).text
    'Ada has 45 apples. Ben gives Ada 37 more. How many apples does Ada have? The answer is 82.'
    >>> story_item(("Ada", "Ben"), "nuts", (("+", 5, 9), ("-", 14, 6))).answer
    '5+9=14, 14-6=8. The answer is 8.'
    """
    owner, other = names
    sentences = [f"{owner} has {steps[0][1]} {thing}."]
    for operation, _, amount in steps:
        sentences.append(f"{other} gives {owner} {amount} more." if operation == "+" else f"{owner} gives {other} {amount} of them.")
    sentences.append(f"How many {thing} does {owner} have?")
    worked = ", ".join(f"{a}{operation}{b}={carry_out((operation, a, b))}" for operation, a, b in steps)
    shown = f"{worked}. " if len(steps) > 1 else ""
    level = "1 step" if len(steps) == 1 else "2 steps"
    return Item("stories", level, " ".join(sentences), f"{shown}The answer is {carry_out(steps[-1])}.", steps)


class Town:
    """An invented town: who lives at which number. The same seed gives the same town.

    >>> town = Town(seed=0)
    >>> len(town.people), town.people[0]
    (5120, 'Ada Stone')
    """

    def __init__(self, seed: int) -> None:
        rng = random.Random(f"town {seed}")
        self.people = [f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES]
        self.numbers = [rng.randint(100, 999) for _ in self.people]
        self.often = [rng.random() < 0.5 for _ in self.people]
        self.unused_wording = [rng.randrange(len(FACT_WORDINGS)) for _ in self.people]

    def item(self, person: int, wording: int) -> Item:
        """Ask for a person's house number in one of the `FACT_WORDINGS`."""
        question = FACT_WORDINGS[wording].format(self.people[person])
        return Item("facts", "often" if self.often[person] else "seldom", question, f"At number {self.numbers[person]}.")

    def training_item(self, rng: random.Random) -> Item:
        """A person at random, those of level "often" twice as likely, in one of the three wordings used for them."""
        person = rng.randrange(len(self.people))
        if not self.often[person] and rng.random() < 0.5:
            return self.training_item(rng)
        wordings = [w for w in range(len(FACT_WORDINGS)) if w != self.unused_wording[person]]
        return self.item(person, rng.choice(wordings))

    def examination(self) -> list[Item]:
        """Every person once, in the wording never used for them."""
        return [self.item(person, wording) for person, wording in enumerate(self.unused_wording)]


def random_item(kind: str, rng: random.Random) -> Item:
    """One question of arithmetic, from both sides of the split, levels mixed, small numbers not rare."""
    if kind == "sums":
        return sum_item(_number(rng), _number(rng))
    if kind == "differences":
        return difference_item(_number(rng), _number(rng))
    if kind == "products":
        pair = [rng.randint(2, 9), _number(rng)]
        rng.shuffle(pair)
        return product_item(*pair)
    owner, other = rng.sample(FIRST_NAMES[:16], 2)
    return story_item((owner, other), rng.choice(THINGS), _story_steps(rng))


def _number(rng: random.Random) -> int:
    """A number of one, two or three digits: one in ten, three in ten, six in ten."""
    digits = rng.choices((1, 2, 3), (1, 3, 6))[0]
    return rng.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)


def _story_steps(rng: random.Random) -> tuple[Step, ...]:
    total = rng.randint(2, 99)
    steps: list[Step] = []
    for _ in range(rng.choice((1, 2))):
        operation = rng.choice("+-")
        amount = rng.randint(1, 99 if operation == "+" else min(total, 99))
        steps.append((operation, total, amount))
        total = carry_out(steps[-1])
        if total == 0:
            break
    return tuple(steps)


def training_items(kind: str, rng: random.Random, town: Town) -> Iterator[Item]:
    """Training questions of one kind without end; none of them held out."""
    while True:
        item = town.training_item(rng) if kind == "facts" else random_item(kind, rng)
        if not item.held_out:
            yield item


def examination(kind: str, town: Town, seed: int, per_level: int, draws: int = 40_000) -> list[Item]:
    """The examination of one kind: held-out questions of different steps, at most `per_level` of each level.

    For facts: every person, see `Town.examination`. Of products of two digits there are fewer than a hundred: all of them.
    """
    if kind == "facts":
        return town.examination()
    rng = random.Random(f"examination {kind} {seed}")
    found: dict[str, dict[object, Item]] = {level: {} for level in LEVELS[kind]}
    for item in (random_item(kind, rng) for _ in range(draws)):
        same_steps = tuple((operation, min(a, b), max(a, b)) for operation, a, b in item.steps)
        if item.held_out and len(found[item.level]) < per_level:
            found[item.level].setdefault(same_steps, item)
    return [item for level in LEVELS[kind] for item in found[level].values()]
