"""The three kinds of question: a function to write, a number to give, an explanation in words.

A question knows its text for the learner (hints, solution) and gives a :class:`Verdict` on an answer. It keeps nothing and prints nothing;
``course_utils.checks`` does that.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from numbers import Real
from typing import Any

from course_utils.session import (
    LearnerFault,
    LocalSession,
    NotAttempted,
    Session,
    difference_in_kind,
    first_difference,
    plain,
    same,
    show,
    show_call,
)

NEARLY = (1e-12, 1e-6)
"""How far two results of the same mistake may be apart, if they were calculated in another order: in float64, and in float32."""

CORRECT, NOT_RIGHT, NOT_ATTEMPTED, KEPT = "correct", "not right", "not attempted", "kept"


@dataclass(frozen=True)
class Verdict:
    """What is said about an answer: one of the four states above, with a reason unless it is correct."""

    state: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.state}: {self.reason}" if self.reason else f"{self.state}."


@dataclass(frozen=True)
class Mistake:
    """A wrong answer that learners give, and what to say to it.

    ``wrong`` is a number for a NumberQuestion, and for a FunctionQuestion a function that makes the mistake.
    """

    name: str
    wrong: Any
    message: str


@dataclass(frozen=True, kw_only=True)
class Question:
    """What every question has. ``name`` is what the learner's cell defines; ``difficulty`` is 1 to 5; hints grow in strength."""

    id: str
    title: str
    points: int
    difficulty: int
    minutes: int
    name: str
    hints: tuple[str, ...]

    def verdict(self, answer: Any) -> Verdict:
        """The verdict on an answer as a learner passes it. Never raises for what the answer is, even if it raises where it is looked at.

        A learner who presses stop is obeyed: KeyboardInterrupt passes.
        """
        if answer is None or answer is ...:
            return Verdict(NOT_ATTEMPTED, f"{self.name} has no answer yet.")
        return self.judge(answer)

    def judge(self, answer: Any) -> Verdict:
        """The verdict on an answer that is there."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class FunctionQuestion(Question):
    """A function to write. It is right if it agrees with ``answer`` on all ``inputs``.

    ``inputs(seed)`` gives the argument tuples, those that can be checked by hand first. ``tolerance`` is that of ``session.same``.
    The solution shown is the source of ``answer``, which therefore leans on nothing outside itself.
    """

    answer: Callable[..., Any]
    inputs: Callable[[int], list[tuple[Any, ...]]]
    mistakes: tuple[Mistake, ...]
    tolerance: float = 1e-9

    @property
    def solution(self) -> str:
        """The source of ``answer``."""
        return inspect.getsource(self.answer).rstrip()

    def judge(self, answer: Any) -> Verdict:
        """The verdict on a function, called in this process with the inputs of seed 0."""
        if not callable(answer):
            return Verdict(NOT_RIGHT, f"pass the function itself, `{self.name}`, with no brackets after it; you passed {show(answer)}.")
        return self.judge_session(LocalSession({self.name: answer}))

    def judge_session(self, session: Session, seed: int = 0) -> Verdict:
        """The verdict on the function called ``name`` in ``session``, wherever that runs."""
        calls = self.inputs(seed)
        try:
            results = [session.call(self.name, *args) for args in calls]
        except NotAttempted as fault:
            return Verdict(NOT_ATTEMPTED, str(fault))
        except LearnerFault as fault:
            return Verdict(NOT_RIGHT, str(fault))

        due = [self.answer(*plain(args)) for args in calls]
        if same(results, due, self.tolerance):
            return Verdict(CORRECT)

        @cache
        def results_of(mistake: Mistake) -> list[Any]:
            return [mistake.wrong(*plain(args)) for args in calls]

        for tolerance in (self.tolerance, *NEARLY):
            for mistake in self.mistakes:
                if same(results, results_of(mistake), tolerance) and not same(results_of(mistake), due, tolerance):
                    return Verdict(NOT_RIGHT, mistake.message)
        first = next(i for i, result in enumerate(results) if not same(result, due[i], self.tolerance))
        call = show_call(self.name, calls[first])
        if different := difference_in_kind(results[first], due[first]):
            return Verdict(NOT_RIGHT, f"{call} returned {different}.")
        return Verdict(NOT_RIGHT, f"{call} returned {first_difference(results[first], due[first], self.tolerance)}.")


@dataclass(frozen=True, kw_only=True)
class NumberQuestion(Question):
    """A number to predict or compute. It is right if it is ``within`` so much of ``answer``."""

    answer: float
    within: float
    mistakes: tuple[Mistake, ...]
    solution: str

    def judge(self, answer: Any) -> Verdict:
        """The verdict on a number; a known mistake is told by its own message."""
        try:
            number = one_number(answer)
        except LearnerFault as fault:
            return Verdict(NOT_RIGHT, str(fault))
        if abs(number - self.answer) <= self.within:
            return Verdict(CORRECT)
        nearest = min(self.mistakes, key=lambda mistake: abs(number - mistake.wrong))
        if abs(number - nearest.wrong) <= max(self.within, 1e-6 * abs(nearest.wrong)):
            return Verdict(NOT_RIGHT, nearest.message)
        written = int(number) if number.is_integer() else number
        return Verdict(NOT_RIGHT, f"{show(written)} is too {'large' if number > self.answer else 'small'}.")


def one_number(value: Any) -> float:
    """``value`` as a float: a Python number, or one number of NumPy or torch.

    Raises:
        LearnerFault: it is none, or not finite.

    >>> one_number(3)
    3.0
    """
    if issubclass(type(value), str):  # unlike isinstance, this asks nothing of the value itself
        raise LearnerFault(f"a number is due, and you passed text, {show(value)}: leave the quotes and the unit out.")
    if callable(value):
        raise LearnerFault("a number is due, and you passed a function: pass what it returns.")
    try:
        number = value.item() if hasattr(value, "item") else value
        if isinstance(number, bool) or not isinstance(number, Real):
            raise TypeError
        number = float(number)
    except OverflowError:
        raise LearnerFault(f"a number is due, and you passed {show(value)}: too large by far.") from None
    except Exception:  # .item() may be that of any class, and raise anything
        raise LearnerFault(f"one number is due, and you passed {show(value)}.") from None
    if not math.isfinite(number):
        raise LearnerFault(f"a finite number is due, and you passed {show(number)}.")
    return number


@dataclass(frozen=True, kw_only=True)
class ExplanationQuestion(Question):
    """An explanation in words: kept, never judged by a program. ``rubric`` holds (points, what earns them); they add up to ``points``."""

    model_answer: str
    rubric: tuple[tuple[int, str], ...]

    @property
    def solution(self) -> str:
        """The model answer and, below it, the rubric."""
        rows = (f"  {points} point{'s' if points > 1 else ''}: {text}" for points, text in self.rubric)
        return "\n".join(["A model answer:", self.model_answer, "", "What earns points:", *rows])

    def judge(self, answer: Any) -> Verdict:
        """Whether there is a text to keep."""
        if not issubclass(type(answer), str):
            return Verdict(NOT_RIGHT, f"an explanation is text in quotes, and you passed {show(answer)}.")
        if not str.strip(answer):
            return Verdict(NOT_ATTEMPTED, "write your explanation between the quotes.")
        return Verdict(KEPT, f'`reveal("{self.id}")` sets your explanation beside a model answer and a rubric.')
