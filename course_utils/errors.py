"""The errors of lesson 11: finding one's own among them, and saying which versions raised it.

What is known of them stands in measurements/time_machine.json, which `make time-machine` writes: each error's program, and what came
of it under each set of versions. A few wordings were met later, under the course's own versions alone: they stand here.
"""

from __future__ import annotations

import builtins
import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from tabulate import tabulate

from course_utils import ROOT

RECORDS = ROOT / "measurements" / "time_machine.json"
OWN = "the course's own"
"""The environment in which the course runs, among those that are recorded."""

NEAR = 0.5
"""How much of a text's weight has to be found again: half."""

TYPES_OF_MANY = frozenset(
    name.lower()
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, Exception) and kind not in (AssertionError, NotImplementedError)
)
"""Python's own types of errors, which say too little alone. Two aren't among them: entries 19 and 23 have errors of one word."""


@dataclass(frozen=True)
class KnownError:
    """An error that a program of the time machine is about.

    Attributes:
        id: of the program.
        entry: heading in lesson 11.
        text: the error as it was raised most recently, or as it stands in a library's source; type first.
        raised: environments in which the program raised it.
        read: environments in which the program stopped earlier, and whose source holds the error's text.
        others: other wordings: raised elsewhere, logged beside it, told, or raised only on hardware that the time machine has not.
        needs_gpu: only a GPU raises it, so that nothing was raised under any release, and the source says nothing of one.
    """

    id: str
    entry: str
    text: str
    raised: tuple[str, ...]
    read: tuple[str, ...]
    others: tuple[str, ...]
    needs_gpu: bool


SAVED_AGAIN = KnownError(
    id="saved_again",
    entry="23. Saving is refused",
    text="NotImplementedError, from reverse_op",
    raised=(OWN,),
    read=(),
    others=("revert_weight_conversion reverse_transform operations reverse_op NotImplementedError",),
    needs_gpu=False,
)
"""A model from a 4-bit file, saved again: an error without a message, known by the last lines of its traceback."""

MET_LATER = {
    "double_and_half_in_a_product": (
        "RuntimeError: expected m1 and m2 to have the same dtype, but got:",
        "RuntimeError: mat1 and mat2 must have the same dtype, but got",
        "RuntimeError: self and mat2 must have the same dtype, but got",
    ),
    "float64_weights": ("ValueError: Blockwise 4bit quantization only supports 16/32-bit floats, but got torch.uint8",),
    "gated": (
        "OSError: meta-llama/Llama is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models' "
        "If this is a private repository, make sure to pass a token having permission to this repo",
    ),
    "packed_as_a_matrix": (
        "RuntimeError: linalg.vector_norm: Expected a floating point or complex tensor as input. Got Byte",
        "RuntimeError: mean(): could not infer output dtype. Input dtype must be either a floating point or complex dtype. Got: Byte",
        "RuntimeError: The size of tensor a (8192) must match the size of tensor b (128) at non-singleton dimension 0",
        "RuntimeError: expected m1 and m2 to have the same dtype, but got: unsigned char",
        "RuntimeError: mat1 and mat2 must have the same dtype, but got Byte",
        "RuntimeError: self and mat2 must have the same dtype, but got Byte",
    ),
}
"""Program -> other wordings of its error, from code that does nearly the same; of the dtypes only Byte is named, which
tells a packed weight from two floats. tests/test_errors.py raises each."""


@cache
def records() -> dict[str, Any]:
    """What the time machine has recorded."""
    return json.loads(RECORDS.read_text(encoding="utf-8"))


@cache
def known_errors() -> tuple[KnownError, ...]:
    """Every error of lesson 11, in the order of its entries."""
    found = [known_error(program) for program in records()["snippets"]]
    known = [error for error in found if error is not None]
    return tuple(sorted([*known, SAVED_AGAIN], key=lambda error: int(error.entry.split(".")[0])))


def known_error(program: str) -> KnownError | None:
    """What is known of a program's error; None for a program without one, which goes with an error of another."""
    raised, unreached = runs_that_ended(program, "raised"), runs_that_ended(program, "out of reach")
    wordings = [whole_text(run) for run in raised.values()]
    in_source = [text_in_source(run) for run in unreached.values()]
    if not wordings and not in_source:
        return None
    text = wordings[-1] if wordings else in_source[0]
    snippet = records()["snippets"][program]
    logged = [line for run in raised.values() for line in run.get("logged", ())]
    others = {*wordings, *logged, snippet["folklore"], *snippet["also"], *MET_LATER.get(program, ())} - {text, None}
    return KnownError(
        id=program,
        entry=snippet["entry"],
        text=text,
        raised=tuple(raised),
        read=tuple(name for name in unreached if has_bitsandbytes(name)),
        others=tuple(sorted(others)),
        needs_gpu=snippet["needs_gpu"],
    )


def runs_that_ended(program: str, outcome: str) -> dict[str, dict[str, Any]]:
    """Environment -> what came of a program, where that was `outcome`; oldest environment first."""
    results = {name: runs[program] for name, runs in all_runs().items() if program in runs}
    return {name: run for name, run in results.items() if run["outcome"] == outcome}


def text_in_source(run: dict[str, Any]) -> str:
    """An error's text as it stands in a library's source, without Python's marks around it: f, quotes, a bracket, a comma."""
    return run["in_source"][0]["text"].strip("f\"', (")


def all_runs() -> dict[str, dict[str, Any]]:
    """Environment -> program -> what came of it."""
    return {name: environment["runs"] for name, environment in records()["environments"].items() if environment["installed"]}


def has_bitsandbytes(environment: str) -> bool:
    """Whether bitsandbytes is installed in an environment; two were recorded without it."""
    return records()["environments"][environment]["versions"]["bitsandbytes"] is not None


def run_of(program: str, environment: str = OWN) -> dict[str, Any]:
    """What came of a program in an environment: its outcome, and with it error, log, warnings and lines of source."""
    return all_runs()[environment][program]


def whole_text(run: dict[str, Any]) -> str:
    """An error as a learner meets it: its type and its message."""
    error = run["error"]
    message = error["message"].strip()
    return f"{error['type']}: {message}" if message else error["type"]


# --- Finding one's own ---


def find_error(text: str | BaseException, at_most: int = 3) -> str:
    """The entries of lesson 11 whose error is likest to `text`: a line, a whole traceback, or the exception itself.

    Numbers, quotes and folders don't count, and rare words count more than common ones. Of an exception, type and message count.
    """
    if isinstance(text, BaseException):
        text = f"{type(text).__name__}: {text}"
    wanted = words(text)
    if not wanted:
        return "Put the text of your error between the quotes: its last line, or all of it."
    if wanted <= TYPES_OF_MANY:
        return "That is only the type of your error, which many have. Put more of it between the quotes: its last line, or all of it."
    ranked = sorted(known_errors(), key=lambda error: likeness(wanted, error), reverse=True)
    rows = []
    for error in ranked:
        if likeness(wanted, error)[0] >= NEAR and error.entry not in [row[0] for row in rows]:
            rows.append([error.entry, first_words(error.text, 60), versions(error)])
    if not rows:
        return (
            "None of the errors of this lesson is like yours. Read its last line, and the last line of your own code above it; "
            "then compare your versions with those it is reported for."
        )
    return tabulate(rows[:at_most], headers=["entry", "error", "raised under transformers"], maxcolwidths=[None, 34, 26])


def likeness(wanted: frozenset[str], error: KnownError) -> tuple[float, float]:
    """How much of the lighter of two texts is found in the other, from 0 to 1, and then how much of both together.

    Words weigh by how few errors hold them. The second number tells apart what the first finds equal.
    """
    pairs = [(0.0, 0.0)]
    for text in (error.text, *error.others):
        held = words(text)
        if lighter := min(weight(wanted), weight(held)):
            common = weight(wanted & held)
            pairs.append((common / lighter, common / weight(wanted | held)))
    return max(pairs)


def words(text: str) -> frozenset[str]:
    """The words of a text, without numbers and folders.

    >>> sorted(words("ValueError: 'x' got `load_in_4bit` at /home/ada/a.py:12"))
    ['at', 'got', 'load_in_4bit', 'valueerror', 'x']
    """
    text = re.sub(r"\S*[/\\]\S*", " ", text.lower())
    return frozenset(word for word in re.findall(r"\w+", text) if not word.isdigit())


@cache
def word_weights() -> dict[str, float]:
    """How much a word weighs: more, the fewer errors hold it."""
    texts = [words(text) for error in known_errors() for text in (error.text, *error.others)]
    counts = Counter(word for text in texts for word in text)
    return {word: math.log(1 + len(texts) / count) for word, count in counts.items()}


@cache
def heaviest() -> float:
    """The weight of the rarest words."""
    return max(word_weights().values())


def weight(chosen: Iterable[str]) -> float:
    """The weight of some words together. A word that no error holds weighs as much as one that a single error holds.

    The sum is `fsum`'s, which is the same in every order: that of a set's words is another in every process.
    """
    return math.fsum(word_weights().get(word, heaviest()) for word in chosen)


# --- Tables ---


def versions(error: KnownError) -> str:
    """The releases of transformers under which an error was raised; in brackets those whose source holds it, out of the program's reach."""
    if error.needs_gpu:
        return "(needs a GPU)"
    raised = ranges(error.raised)
    read = ranges(name for name in error.read if name not in error.raised)
    return ", ".join([*raised, *(f"({span})" for span in read)]) or "none"


def ranges(environments: Iterable[str]) -> list[str]:
    """Releases as spans, such as "4.29 to 4.37": every release between the ends that was tried is among them."""
    chosen = {release(name) for name in environments}
    spans: list[list[str]] = []
    before = None
    for tried in dict.fromkeys(release(name) for name in all_runs()):
        if tried in chosen and before in chosen:
            spans[-1][1:] = [tried]
        elif tried in chosen:
            spans.append([tried])
        before = tried
    return [" to ".join(span) for span in spans]


def release(environment: str) -> str:
    """The release of transformers in an environment, to the minor version.

    >>> release("transformers-4.37")
    '4.37'
    """
    version = records()["environments"][environment]["versions"]["transformers"]
    return ".".join(version.split(".")[:2])


def history(program: str) -> str:
    """What came of a program of the time machine under each set of versions, as a table."""
    rows = []
    for name, runs in all_runs().items():
        run, installed = runs[program], records()["environments"][name]["versions"]
        came = run["outcome"]
        if "error" in run:
            came = first_words(whole_text(run), 72)
        if came == "nothing raised" and run.get("printed"):
            came = f"nothing raised; printed {run['printed'].strip()}"
        if run["outcome"] == "out of reach":
            line = run["in_source"][0]
            came += f"\nnot reached: {line['file']}" + (f", line {line['line']}" if line["line"] else "")
        rows.append([installed["transformers"], installed["bitsandbytes"] or "none", installed["torch"], came])
    return tabulate(rows, headers=["transformers", "bitsandbytes", "torch", "what came"], disable_numparse=True)


def first_words(text: str, length: int) -> str:
    """The beginning of a text on one line, cut between words. A first word of more than `length` letters is cut itself.

    >>> first_words("ValueError: one two three", 20)
    'ValueError: one two ...'
    """
    line = " ".join(text.split())
    if len(line) <= length:
        return line
    last_space = line.rfind(" ", 0, length + 1)
    return line[: length if last_space == -1 else last_space] + " ..."


def table() -> str:
    """Every error of lesson 11, with the number of its entry and the releases of transformers under which it was raised."""
    rows = [[error.entry.partition(".")[0], first_words(error.text, 76), versions(error)] for error in known_errors()]
    return tabulate(rows, headers=["entry", "error", "raised under transformers"])
