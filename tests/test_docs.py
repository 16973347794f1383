"""The pages beside the lessons are true: ledger, glossary, and the words that must not stand anywhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest
import yaml

from course_utils import ROOT

VERDICTS = {"holds", "holds with a limit", "out of date", "wrong", "nobody can reproduce it"}
CLAIMS = yaml.safe_load((ROOT / "claims.yml").read_text(encoding="utf-8"))
LESSONS = sorted((ROOT / "source" / "lessons").glob("*.py"))


def outputs_under(notebook: nbformat.NotebookNode, heading: str) -> str:
    """What the cells print from a heading on to the next heading of the same level or above; empty if there is no such heading."""
    printed, level = [], 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for hashes, title in re.findall(r"^(#+) (.+)$", cell.source, flags=re.MULTILINE):
                if title.strip() == heading:
                    level = len(hashes)
                elif len(hashes) <= level:
                    level = 0
        elif level:
            printed += [output.text for output in cell.outputs if output.output_type == "stream"]
    return "".join(printed)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim["id"])
def test_claim_is_shown_where_the_ledger_says(claim: dict) -> None:
    assert claim["verdict"] in VERDICTS
    place = claim["shown_in"]
    notebook = nbformat.read(ROOT / "notebooks" / f"{place['notebook']}.ipynb", as_version=4)
    printed = outputs_under(notebook, place["heading"])
    for what, figure in claim["figures"].items():
        lines = [line for line in printed.splitlines() if str(figure) in line]
        assert lines, f"{figure} is not printed under {place['heading']}"
        name = what.removeprefix("saved of ")
        assert name in printed, f"{name} is not named under {place['heading']}"


def test_ids_of_claims_are_unique() -> None:
    ids = [claim["id"] for claim in CLAIMS]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_words_in_italics_are_in_the_glossary(lesson: Path) -> None:
    """A lesson sets a term in italics where it explains it; the glossary has every such term (its plural counts)."""
    glossary = (ROOT / "glossary.md").read_text(encoding="utf-8").lower()
    text = "\n".join(line[2:] for line in lesson.read_text(encoding="utf-8").splitlines() if line.startswith("# "))
    known = ("italics", "not")  # emphasis, not terms
    for term in re.findall(r"(?<![*\w])\*([A-Za-z][\w -]*?)\*(?![*\w])", text):
        singular = re.sub(r"s$", "", term.lower())
        assert term.lower() in known or singular in glossary, f"{term} is not in the glossary"


def test_glossary_links_to_lessons_in_which_the_word_stands() -> None:
    glossary = (ROOT / "glossary.md").read_text(encoding="utf-8")
    for words, link in re.findall(r"^\| \*\*(.+?)\*\*.*\]\((notebooks/[^)]+)\) \|$", glossary, re.MULTILINE):
        text = json.dumps(json.loads((ROOT / link).read_text(encoding="utf-8"))["cells"]).lower()
        for word in words.split(", "):
            stem = re.sub(r" \(.*", "", word).lower().removesuffix("e")
            assert stem in text, f"{word} does not stand in {link}"
