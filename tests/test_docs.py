"""The pages beside the lessons are true: the glossary has the words of the lessons, and leads to them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from course_utils import ROOT
from course_utils.questions import LESSONS as QUESTIONS

LESSONS = sorted((ROOT / "source" / "lessons").glob("*.py"))


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_words_in_italics_are_in_the_glossary(lesson: Path) -> None:
    """A lesson sets a term in italics where it explains it; the glossary has every such term (its plural counts)."""
    glossary = (ROOT / "glossary.md").read_text(encoding="utf-8").lower()
    text = " ".join(line[2:] for line in lesson.read_text(encoding="utf-8").splitlines() if line.startswith("# "))
    known = ("italics", "not", "more")  # emphasis, not terms
    for term in re.findall(r"(?<![*\w])\*([A-Za-z][\w -]*?)\*(?![*\w])", text):
        singular = re.sub(r"s$", "", term.lower())
        assert term.lower() in known or singular in glossary, f"{term} is not in the glossary"


@pytest.mark.parametrize("page", ["README.md", "source/lessons/00_start_here.py"])
@pytest.mark.parametrize("lesson", LESSONS[1:], ids=lambda path: path.stem)
def test_the_tables_of_lessons_link_every_lesson(page: str, lesson: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    row = rf"^(?:# )?\| {lesson.stem[:2]} \| \[.*\((?:notebooks/)?{lesson.stem}\.ipynb\)"
    assert re.search(row, text, re.MULTILINE)


@pytest.mark.parametrize("lesson", LESSONS[1:], ids=lambda path: path.stem)
def test_the_readme_has_the_minutes_of_lesson_and_exercise(lesson: Path) -> None:
    *_, minutes = re.findall(r"\d+", re.search(r"\| \*\*Time\*\* \| (.*) \|", lesson.read_text(encoding="utf-8"))[1])
    row = next(line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if f"notebooks/{lesson.stem}.ipynb" in line)
    assert row.endswith(f"| {minutes} + {sum(question.minutes for question in QUESTIONS[lesson.stem])} min |")


def test_glossary_links_to_lessons_in_which_the_word_stands() -> None:
    glossary = (ROOT / "glossary.md").read_text(encoding="utf-8")
    for words, link in re.findall(r"^\| \*\*(.+?)\*\*.*\]\((notebooks/[^)]+)\) \|$", glossary, re.MULTILINE):
        cells = json.loads((ROOT / link).read_text(encoding="utf-8"))["cells"]
        text = " ".join("".join("".join(cell["source"]) for cell in cells).lower().split())
        for word in words.split(", "):
            stem = re.sub(r" \(.*", "", word).lower().removesuffix("e")
            assert stem in text, f"{word} does not stand in {link}"
