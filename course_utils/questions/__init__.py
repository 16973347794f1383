"""The questions of all lessons. A new lesson's questions are one more line in ``LESSONS``."""

from __future__ import annotations

import difflib

from course_utils.questions import (
    lesson_01,
    lesson_02,
    lesson_03,
    lesson_04,
    lesson_05,
    lesson_06,
    lesson_07,
    lesson_08,
    lesson_09,
    lesson_10,
    lesson_11,
    lesson_12,
)
from course_utils.questions.kinds import ExplanationQuestion, FunctionQuestion, Mistake, NumberQuestion, Question

__all__ = ["LESSONS", "ExplanationQuestion", "FunctionQuestion", "Mistake", "NumberQuestion", "Question", "all_questions", "find"]

LESSONS: dict[str, tuple[Question, ...]] = {
    "01_count_the_bits": lesson_01.QUESTIONS,
    "02_round_to_a_grid": lesson_02.QUESTIONS,
    "03_quantize_in_blocks": lesson_03.QUESTIONS,
    "04_choose_sixteen_values": lesson_04.QUESTIONS,
    "05_pack_and_quantize_twice": lesson_05.QUESTIONS,
    "06_a_layer_in_four_bits": lesson_06.QUESTIONS,
    "07_load_in_4bit": lesson_07.QUESTIONS,
    "08_what_it_costs_in_quality": lesson_08.QUESTIONS,
    "09_what_it_costs_in_time": lesson_09.QUESTIONS,
    "10_failures_without_a_sound": lesson_10.QUESTIONS,
    "11_errors_and_their_cures": lesson_11.QUESTIONS,
    "12_save_and_reload": lesson_12.QUESTIONS,
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
    lesson, dot, number = question_id.partition(".")
    of_lesson = [known_id for known_id in known if known_id.split(".")[0] == lesson.zfill(2)]
    near = difflib.get_close_matches(lesson.zfill(2) + dot + number, of_lesson or known, n=3, cutoff=0.5) or list(known)[:3]
    raise LookupError(f'There is no question "{question_id}"; near it are {", ".join(sorted(near, key=list(known).index))}.')
