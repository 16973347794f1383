"""What a learner calls in a notebook: ``check``, ``hint``, ``reveal``, ``progress``.

``check("01.2", answer)`` prints one of three verdicts: correct; not right, with the reason; not attempted. An explanation in words is not
judged but kept, and ``reveal`` sets it beside a model answer. Answers are passed as values; nothing is taken from the notebook's globals.

In the graded form (the variable ``COURSE_GRADED=1``) every verdict but "correct" raises :class:`NotCorrect`, except on explanations,
which are graded by hand.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from course_utils import work_folder
from course_utils.questions import LESSONS, ExplanationQuestion, Question, find
from course_utils.questions.kinds import CORRECT, KEPT, NOT_ATTEMPTED, NOT_RIGHT

MARKS = {CORRECT: "done", KEPT: "done", NOT_RIGHT: "tried", None: "open"}


class NotCorrect(Exception):
    """In the graded form: the verdict on an answer that is not correct."""


def check(question_id: str, answer: Any = ...) -> None:
    """Say whether ``answer`` to the question ``question_id`` (such as "01.2") is correct, and if not, why.

    Raises:
        NotCorrect: in the graded form only: the answer is not correct, explanations apart, or there is no such question.
    """
    question = _find(question_id)
    if question is None:
        return
    verdict = question.verdict(answer)
    print(f"{question.id} {verdict}")
    if verdict.state == KEPT:
        _keep(question.id, state=KEPT, text=answer)
    elif verdict.state != NOT_ATTEMPTED:
        _keep(question.id, state=verdict.state)
    if _graded() and verdict.state != CORRECT and not isinstance(question, ExplanationQuestion):
        raise NotCorrect(f"{question.id} {verdict}")


def hint(question_id: str, number: int | None = None) -> None:
    """Print the next hint for a question, each stronger than the last; ``hint("01.2", 1)`` prints the first one again.

    Raises:
        NotCorrect: in the graded form only: there is no such question.
    """
    question = _find(question_id)
    if question is None:
        return
    last = len(question.hints)
    shown = _kept().get(question.id, {}).get("hints", 0)
    if number is None:
        number = min(shown + 1, last)
    if type(number) is not int or not 1 <= number <= last:
        print(f"{question.id} has hints 1 to {last}.")
        return
    print(f"{question.id} hint {number} of {last}: {question.hints[number - 1]}")
    if number == last:
        print(f'That is the last hint; `reveal("{question.id}")` shows the solution.')
    _keep(question.id, hints=max(shown, number))


def reveal(question_id: str) -> None:
    """Print the solution of a question; for an explanation, yours, a model answer and the rubric.

    Raises:
        NotCorrect: in the graded form only: there is no such question.
    """
    question = _find(question_id)
    if question is None:
        return
    print(f"{question.id} {question.title}\n")
    if isinstance(question, ExplanationQuestion):
        print(f"Your answer:\n{_kept().get(question.id, {}).get('text', '(none is kept yet)').strip()}\n")
    print(question.solution)
    _keep(question.id, revealed=True)


def progress(lesson: str | None = None) -> None:
    """Print what is done and what is next: a line for each lesson, or for each question of one lesson, ``progress("01")``."""
    kept = _kept()
    chosen = {stem: questions for stem, questions in LESSONS.items() if lesson is None or stem.startswith(str(lesson).zfill(2))}
    if not chosen:
        print(f'There is no exercise "{lesson}"; there are {", ".join(LESSONS)}.')
        return
    for stem, questions in chosen.items():
        done = [question for question in questions if _mark(question, kept) == "done"]
        print(f"{stem}: {len(done)} of {len(questions)} done")
        for question in questions if lesson is not None else ():
            seen = ", solution seen" if kept.get(question.id, {}).get("revealed") else ""
            print(f"  {_mark(question, kept):5} {question.id} {question.title}{seen}")
    coming = [question for questions in chosen.values() for question in questions if _mark(question, kept) != "done"]
    print(f"Next: {coming[0].id} {coming[0].title}." if coming else "All done.")


def _graded() -> bool:
    return os.environ.get("COURSE_GRADED") == "1"


def _find(question_id: str) -> Question | None:
    """The question; or None, and a sentence printed (raised in the graded form)."""
    try:
        return find(question_id)
    except LookupError as error:
        if _graded():
            raise NotCorrect(str(error)) from None
        print(error)
        return None


def _mark(question: Question, kept: dict[str, dict[str, Any]]) -> str:
    return MARKS[kept.get(question.id, {}).get("state")]


# --- the progress file: {"01.2": {"state": "correct", "hints": 1, "revealed": true, "text": "an explanation"}} ---


def progress_file() -> Path:
    """Where progress is kept: a file in the learner's work folder."""
    return work_folder() / "progress.json"


def read_progress() -> dict[str, dict[str, Any]]:
    """What is kept, by question. A damaged file is set aside under another name, with a sentence. Raises OSError."""
    file = progress_file()
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return {}
    try:
        kept = json.loads(text.decode("utf-8"))
        if all(_is_entry(entry) for entry in kept.values()):
            return kept
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    number = 1
    while (aside := file.with_name(f"progress-damaged-{number}.json")).exists():
        number += 1
    os.replace(file, aside)
    print(f"Your progress file could not be read: it is set aside as {aside.name}, and a new one is begun.")
    return {}


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and entry.get("state") in MARKS
        and type(entry.get("hints", 0)) is int
        and isinstance(entry.get("text", ""), str)
    )


def write_progress(kept: dict[str, dict[str, Any]]) -> None:
    """Write beside the file, then put it in its place: a crash leaves the old file or the new one, never half of one. Raises OSError."""
    file = progress_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f"progress.{os.getpid()}.part")
    try:
        with open(beside, "w", encoding="utf-8") as part:
            json.dump(kept, part, indent=1, sort_keys=True)
            part.flush()
            os.fsync(part.fileno())
        os.replace(beside, file)
    finally:
        beside.unlink(missing_ok=True)


def _kept() -> dict[str, dict[str, Any]]:
    try:
        return read_progress()
    except OSError as error:
        print(f"Your progress could not be read ({error.strerror}: {progress_file()}).")
        return {}


def _keep(question_id: str, **changes: Any) -> None:
    """Add to what is kept about a question. What is correct stays correct. If it cannot be kept: one sentence."""
    try:
        kept = read_progress()
        entry = kept.setdefault(question_id, {})
        if entry.get("state") == CORRECT:
            changes.pop("state", None)
        entry.update(changes)
        write_progress(kept)
    except OSError as error:
        print(f"Your progress could not be kept ({error.strerror}: {progress_file()}); all else works.")
