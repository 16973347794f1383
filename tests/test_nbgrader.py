"""Every exercise is a valid nbgrader assignment: nbgrader itself validates it, releases it, and grades it solved and unsolved."""

from __future__ import annotations

import copy
import os
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbgrader.api import Gradebook
from nbgrader.apps import NbGraderAPI
from nbgrader.nbgraderformat import SCHEMA_VERSION, MetadataValidator
from nbgrader.preprocessors import ClearSolutions
from traitlets.config import Config

from course_utils import ROOT
from course_utils.questions import ExplanationQuestion, Question
from tools.build import kernel_environment, kernel_sockets
from tools.convert import Project, add_nbgrader_metadata, finished, replace_regions, with_marks

PROJECT = Project()
SOURCES = [path for path in PROJECT.sources() if path.parent.name == "exercises"]
each_exercise = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def empty_gradebook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gradebook's file with nothing in it, made once: for a new one nbgrader starts ``alembic``, which takes seconds.

    It starts it by name: that has to be the one beside this Python, also where the environment is not activated.
    """
    file = tmp_path_factory.mktemp("gradebook") / "gradebook.db"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        Gradebook(f"sqlite:///{file}").close()
    return file


def exercise_of(source: Path) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "exercises" / f"{source.stem}.ipynb", as_version=4)


def questions_of(source: Path) -> dict[str, Question]:
    """The questions of one exercise, by nbgrader's name for them: ``q01_2``."""
    return {"q" + key.replace(".", "_"): question for key, question in PROJECT.questions.items() if key[:2] == source.name[:2]}


def marked(source: Path) -> nbformat.NotebookNode:
    """The exercise with its solutions between marks, as nbgrader's ``generate_assignment`` takes it."""
    text = source.read_text(encoding="utf-8")
    notebook = with_marks(text)
    add_nbgrader_metadata(notebook, PROJECT.questions)
    return finished(notebook, text)


def course(folder: Path, gradebook: Path, name: str, notebook: nbformat.NotebookNode, config: Config) -> NbGraderAPI:
    """An nbgrader course in ``folder`` with one assignment, ``week``, made of one notebook, that is released."""
    shutil.copy(gradebook, folder / "gradebook.db")
    (folder / "source/week").mkdir(parents=True)
    nbformat.write(notebook, folder / "source/week" / f"{name}.ipynb")
    config.CourseDirectory.root = str(folder)
    config.CourseDirectory.db_url = f"sqlite:///{folder / 'gradebook.db'}"
    config.Exchange.root = str(folder / "exchange")
    config.Execute.timeout = 300
    config.merge(kernel_sockets(folder))
    api = NbGraderAPI(config=config)
    released = api.generate_assignment("week")
    assert released["success"], released
    return api


def test_there_is_an_exercise() -> None:
    assert SOURCES
    assert [(ROOT / "exercises" / f"{source.stem}.ipynb").exists() for source in SOURCES] == [True] * len(SOURCES)


@each_exercise
def test_nbgrader_finds_the_metadata_valid(source: Path) -> None:
    exercise = exercise_of(source)
    MetadataValidator().validate_nb(exercise)
    metadata = [cell.metadata["nbgrader"] for cell in exercise.cells if "nbgrader" in cell.metadata]
    assert {cell["schema_version"] for cell in metadata} == {SCHEMA_VERSION}
    assert all({"grade", "solution", "locked", "task", "grade_id"} <= set(cell) for cell in metadata)
    for grade_id, question in questions_of(source).items():
        by_hand = isinstance(question, ExplanationQuestion)
        answer = next(cell for cell in metadata if cell["grade_id"] == grade_id)
        check = next(cell for cell in metadata if cell["grade_id"] == f"{grade_id}_check")
        assert (answer["solution"], answer["locked"], answer["grade"], answer.get("points", 0)) == (
            (True, False, True, question.points) if by_hand else (True, False, False, 0)
        )
        assert (check["solution"], check["locked"], check["grade"], check.get("points", 0)) == (
            (False, True, False, 0) if by_hand else (False, True, True, question.points)
        )


@each_exercise
def test_nbgrader_releases_the_exercise_that_we_ship(source: Path, tmp_path: Path, empty_gradebook: Path) -> None:
    """The same cells and the same metadata; only in place of our stubs it has its own."""
    api = course(tmp_path, empty_gradebook, source.stem, marked(source), Config())
    released = nbformat.read(tmp_path / "release/week" / f"{source.stem}.ipynb", as_version=4)
    ours, solved = exercise_of(source), marked(source)
    its_stub = ClearSolutions().code_stub["python"]
    assert len(released.cells) == len(ours.cells) == len(solved.cells)
    for its_cell, our_cell, solved_cell in zip(released.cells, ours.cells, solved.cells, strict=True):
        cleared = replace_regions(solved_cell.source, lambda first, last: its_stub)
        assert its_cell.source == (our_cell.source if cleared == solved_cell.source else cleared)
        its_metadata = copy.deepcopy(its_cell.metadata.get("nbgrader", {}))
        its_metadata.pop("checksum", None)
        assert its_metadata == our_cell.metadata.get("nbgrader", {})
    with Gradebook(api.coursedir.db_url) as gradebook:
        assert gradebook.find_assignment("week").max_score == sum(question.points for question in questions_of(source).values())


@each_exercise
def test_nbgrader_gives_no_points_unsolved_and_all_points_solved(
    source: Path, tmp_path: Path, empty_gradebook: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the graded form a check that is not passed raises: nbgrader gives full marks to a test cell that does not.

    What is released is the exercise as we ship it, so nbgrader must not clear it again: in a cell without marks it clears everything.
    """
    config = Config()
    config.ClearSolutions.enabled = False
    api = course(tmp_path, empty_gradebook, source.stem, exercise_of(source), config)
    released = nbformat.read(tmp_path / "release/week" / f"{source.stem}.ipynb", as_version=4)
    assert [cell.source for cell in released.cells] == [cell.source for cell in exercise_of(source).cells]
    for student, folder in (("unsolved", "exercises"), ("solved", "solutions")):
        submitted = tmp_path / "submitted" / student / "week"
        submitted.mkdir(parents=True)
        shutil.copy(ROOT / folder / f"{source.stem}.ipynb", submitted)
    for name, value in (kernel_environment(tmp_path) | {"COURSE_GRADED": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("COURSE_MODEL", raising=False)
    for student in ("unsolved", "solved"):
        graded = api.autograde("week", student)
        assert graded["success"], graded
    with Gradebook(api.coursedir.db_url) as gradebook:
        for grade_id, question in questions_of(source).items():
            if isinstance(question, ExplanationQuestion):
                assert gradebook.find_grade(grade_id, source.stem, "week", "unsolved").auto_score == 0
                assert gradebook.find_grade(grade_id, source.stem, "week", "solved").needs_manual_grade
            else:
                scores = {
                    student: gradebook.find_grade(f"{grade_id}_check", source.stem, "week", student).auto_score
                    for student in ("unsolved", "solved")
                }
                assert scores == {"unsolved": 0, "solved": question.points}, grade_id
