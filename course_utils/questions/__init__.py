"""The questions of all lessons. A new lesson's questions are one more line in ``LESSONS``."""

from __future__ import annotations

import difflib

from course_utils.questions import lesson_01
from course_utils.questions.kinds import ExplanationQuestion, FunctionQuestion, Mistake, NumberQuestion, Question

__all__ = ["LESSONS", "ExplanationQuestion", "FunctionQuestion", "Mistake", "NumberQuestion", "Question", "all_questions", "find"]

LESSONS: dict[str, tuple[Question, ...]] = {
    "01_count_the_bits": lesson_01.QUESTIONS,
}
"""The stem of a lesson's files -> its questions, in the order of the exercise."""


def all_questions() -> list[Question]:
    """Every question of the course, in order."""
    return [question for questions in LESSONS.values() for question in questions]


def find(question_id: str) -> Question:
    """The question with this id, such as "01.2". If there is none: LookupError, a sentence that names ids near it."""
    if not isinstance(question_id, str):
        raise LookupError('The first argument is the id of a question in quotes, such as "01.2".')
    known = {question.id: question for question in all_questions()}
    if question_id in known:
        return known[question_id]
    near = difflib.get_close_matches(question_id, known, n=3, cutoff=0.5) or list(known)[:3]
    raise LookupError(f'There is no question "{question_id}"; near it are {", ".join(sorted(near, key=list(known).index))}.')
