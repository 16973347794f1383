"""What a source file should give: from percent text to notebooks that are not executed yet.

    source/lessons/NN_name.py    -> notebooks/NN_name.ipynb
    source/exercises/NN_name.py  -> solutions/NN_name.ipynb   with the solutions, without the marks around them
                                 -> exercises/NN_name.ipynb   with stubs in place of the solutions

jupytext reads the percent format; the marks and the metadata of exercises are nbgrader's, so that they can be released and graded as
they are. The result depends on the source and the registered questions alone.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent, indent

import jupytext
import nbformat
from nbformat import NotebookNode

from course_utils import ROOT
from course_utils.questions import ExplanationQuestion, Question, all_questions

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
CHECK = re.compile(r"""^check\(\s*["']([^"']*)["']""", re.MULTILINE)
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python", "pygments_lexer": "ipython3"},
}


class BuildError(Exception):
    """A source file that can't be built. The text says which file, which cell, and what is wrong."""


@dataclass(frozen=True)
class Project:
    """A folder with ``source/`` in it, and the questions that its exercises ask, by id (``"01.2"``)."""

    root: Path = ROOT
    questions: Mapping[str, Question] = field(default_factory=lambda: {question.id: question for question in all_questions()})

    def sources(self) -> list[Path]:
        """All source files, lessons first, in order."""
        return [path for folder in ("lessons", "exercises") for path in sorted((self.root / "source" / folder).glob("*.py"))]

    def name(self, path: Path) -> str:
        """How a file of the project is called in messages: ``notebooks/01_name.ipynb``."""
        return path.relative_to(self.root).as_posix()


def text_of(project: Project, path: Path) -> str:
    """The text of a file, line ends included as they are. Raises ``BuildError`` if it is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise BuildError(f"{project.name(path)}: line {line} is not UTF-8 text ({error.reason}): save the file as UTF-8") from error


def notebooks_of(project: Project, source: Path) -> dict[Path, NotebookNode]:
    """The notebooks that one source file gives, not executed, by the path where each belongs. Raises ``BuildError``."""
    text = text_of(project, source)
    try:
        marked = with_marks(text)
        if source.parent.name == "lessons":
            built = {"notebooks": marked}
        else:
            add_nbgrader_metadata(marked, project.questions)
            built = {"solutions": without_marks(marked), "exercises": without_solutions(marked)}
    except BuildError as error:
        raise BuildError(f"{project.name(source)}: {error}") from error
    return {project.root / folder / f"{source.stem}.ipynb": finished(notebook, text) for folder, notebook in built.items()}


def with_marks(text: str) -> NotebookNode:
    """The percent text as a notebook, solutions and marks included. A cell that depends on hardware is exempt from nbval's comparison."""
    notebook = nbformat.v4.new_notebook(cells=jupytext.reads(text, fmt="py:percent").cells)
    for cell in notebook.cells:
        if not cell.source.strip():
            raise BuildError("a cell is empty")
        try:
            ast.parse(cell.source if cell.cell_type == "code" else "")
        except SyntaxError as error:
            raise BuildError(f"{error.msg} in line {error.lineno} of\n{quoted(cell.source)}") from error
        cell.metadata = NotebookNode({key: value for key, value in cell.metadata.items() if not key.startswith("lines_to_")})
        if "hardware" in cell.metadata.get("tags", []):
            cell.metadata.tags.append("nbval-ignore-output")
    return notebook


def add_nbgrader_metadata(notebook: NotebookNode, questions: Mapping[str, Question]) -> None:
    """Mark the solution cell and the check cell of each question as nbgrader knows them.

    A check cell is worth the question's points. An explanation is graded by a person: there the solution cell has the points.
    """
    solution = None
    checked: set[str] = set()
    for cell in code_cells(notebook):
        asked = CHECK.findall(cell.source)
        if regions(cell.source):
            if asked or solution:
                raise BuildError(f"after each solution cell comes the check cell of its question, and not before\n{quoted(cell.source)}")
            solution = cell
        elif asked:
            if len(asked) > 1 or asked[0] not in questions:
                raise BuildError(f"not one registered question, but {', '.join(asked)}, is checked in\n{quoted(cell.source)}")
            if asked[0] in checked:
                raise BuildError(f"question {asked[0]} is checked a second time in\n{quoted(cell.source)}")
            checked.add(asked[0])
            if not solution:
                raise BuildError(f"no solution cell comes before\n{quoted(cell.source)}")
            question = questions[asked[0]]
            grade_id = "q" + question.id.replace(".", "_")
            by_hand = isinstance(question, ExplanationQuestion)
            solution.metadata["nbgrader"] = nbgrader_metadata(grade_id, solution=True, points=question.points if by_hand else None)
            cell.metadata["nbgrader"] = nbgrader_metadata(f"{grade_id}_check", locked=True, points=None if by_hand else question.points)
            solution = None
    if solution:
        raise BuildError(f"no check follows\n{quoted(solution.source)}")


def nbgrader_metadata(grade_id: str, *, points: float | None, solution: bool = False, locked: bool = False) -> NotebookNode:
    """One cell's metadata in nbgrader's schema 3; a cell without points is not graded."""
    graded = {"grade": False} if points is None else {"grade": True, "points": points}
    known = {"schema_version": 3, "grade_id": grade_id, "cell_type": "code", "solution": solution, "locked": locked, "task": False}
    return NotebookNode(known | graded)


def without_marks(notebook: NotebookNode) -> NotebookNode:
    """A copy with the solutions and without the marks around them."""
    solved = copy.deepcopy(notebook)
    for cell in solved.cells:
        cell.source = "\n".join(line for line in cell.source.split("\n") if line.strip() not in (BEGIN, END))
    return solved


def without_solutions(notebook: NotebookNode) -> NotebookNode:
    """A copy in which each solution is a stub that says what to write, and with which the notebook still runs to its end."""
    cleared = copy.deepcopy(notebook)
    given = [replace_regions(cell.source, lambda first, last: "pass") for cell in code_cells(cleared)]
    names = {node.id for source in given for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    for cell in code_cells(cleared):
        by_hand = "points" in cell.metadata.get("nbgrader", {})
        what = "explanation, in quotes" if by_hand else "answer"
        cell.source = replace_regions(cell.source, lambda first, last, cell=cell, what=what: stub(cell.source, first, last, names, what))
    return cleared


def regions(source: str) -> list[tuple[int, int]]:
    """The lines (from 0) of each pair of solution marks.

    >>> regions("x = 1\\n### BEGIN SOLUTION\\ny = 2\\n### END SOLUTION")
    [(1, 3)]
    """
    marks = [(number, line.strip()) for number, line in enumerate(source.split("\n")) if "BEGIN SOLUTION" in line or "END SOLUTION" in line]
    if [mark for _, mark in marks] != [BEGIN, END] * (len(marks) // 2):
        raise BuildError(f"solution marks are {BEGIN} and {END}, each on a line of its own and in pairs, unlike in\n{quoted(source)}")
    return [(first, last) for (first, _), (last, _) in zip(marks[::2], marks[1::2], strict=True)]


def replace_regions(source: str, replacement: Callable[[int, int], str]) -> str:
    """The source with each region replaced by ``replacement(first line, last line)``, set in as far as the region's first mark."""
    lines = source.split("\n")
    for first, last in reversed(regions(source)):
        margin = lines[first][: lines[first].index("#")]
        lines[first : last + 1] = [indent(replacement(first, last), margin)]
    return "\n".join(lines)


def stub(source: str, first: int, last: int, names: set[str], what: str) -> str:
    """What stands in for the region from line ``first`` to ``last``.

    Inside a function, a ``raise`` that names it; elsewhere ``name = ...`` for each of ``names`` that the region assigns.
    """
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    around = [node for node in functions if node.lineno <= first < (node.end_lineno or 0)]
    if around:
        return f'raise NotImplementedError("write {max(around, key=lambda node: node.lineno).name} here")'
    region = ast.parse(dedent("\n".join(source.split("\n")[first : last + 1])))
    for node in region.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in names:
            raise BuildError(f"the line that defines {node.name} is inside the solution marks: only its body should be\n{quoted(source)}")
    stored = [node for node in ast.walk(region) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in names]
    asked = dict.fromkeys(node.id for node in sorted(stored, key=lambda node: (node.lineno, node.col_offset)))
    return "\n".join(f"{name} = ...  # replace the dots by your {what}" for name in asked) or f"...  # replace the dots by your {what}"


def finished(notebook: NotebookNode, text: str) -> NotebookNode:
    """The notebook with the course's metadata, and with cell ids made from the cell and how often the same cell came before."""
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        content = f"{cell.cell_type}\n{cell.source}"
        cell.id = digest(f"{content}\n{seen[content]}")[:12]
        seen[content] += 1
    four_bits = {"source": digest(text), "outputs": digest_of_outputs(notebook)}
    notebook.metadata = nbformat.from_dict(METADATA | {"four_bits": four_bits})
    return notebook


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The code cells, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def digest(text: str) -> str:
    """The sha256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def digest_of_outputs(notebook: NotebookNode) -> str:
    """The sha256 of all counts and outputs."""
    return digest(json.dumps([(cell.execution_count, cell.outputs) for cell in code_cells(notebook)], sort_keys=True))


def quoted(source: str) -> str:
    """A cell's source, set in, for a message."""
    return indent(source, "    | ", lambda line: True)
