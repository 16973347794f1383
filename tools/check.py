"""Compare what is built with ``source/``, without executing anything: ``python -m tools.build --check``.

``problems`` gives one line for each difference, beginning with the file's name. Each kind of problem has a function of its own:
what the builder would write otherwise, orphans, traces of a run that went wrong, leaked solutions, questions and their checkers,
cells that depend on hardware, figures without a text, broken links.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import nbformat
from markdown_it import MarkdownIt
from nbformat import NotebookNode

from course_utils.lab import FOLDERS, GLOSSARY, moved_links
from tools.build import NOT_A_NOTEBOOK, difference
from tools.convert import CHECK, BuildError, Project, code_cells, notebooks_of, regions, text_of, with_marks

BUILT = ("notebooks", "solutions", "exercises")
NOT_OURS = {"my_work", "training", "screenshots", "build"}
"""Folders that git ignores; those whose names begin with a dot come on top."""
MENTION = re.compile(r"""\b(?:check|hint|reveal)\(\s*["']([^"']*)["']""")


def problems(project: Project) -> list[str]:
    """All problems, a line each, sorted; empty for a clean project."""
    found: list[str] = []
    expected: dict[Path, NotebookNode] = {}
    for source in project.sources():
        try:
            found += [f"{project.name(source)}: {problem}" for problem in source_problems(project, source)]
            expected |= notebooks_of(project, source)
        except BuildError as error:
            found.append(" ".join(str(error).split()))
    found += [f"{project.name(path)}: {problem}" for path, wanted in expected.items() if (problem := difference(path, wanted))]
    for path in sorted(path for folder in BUILT for path in notebooks_in(project.root / folder)):
        kind = "lessons" if path.parent.name == "notebooks" else "exercises"
        if path.parent.name not in BUILT or not (project.root / "source" / kind / f"{path.stem}.py").exists():
            found.append(f"{project.name(path)}: orphan: nothing in source/ gives it; delete it, or bring its source back")
        try:
            found += [f"{project.name(path)}: {problem}" for problem in notebook_problems(project, path, expected.get(path))]
        except NOT_A_NOTEBOOK:
            pass  # `difference`, or the line above, has said so
    for path in markdown_files(project.root):
        try:
            found += [f"{project.name(path)}: {problem}" for problem in link_problems(project, path, text_of(project, path))]
        except BuildError as error:
            found.append(str(error))
    found += unasked_questions(project)
    return sorted(set(found))


def source_problems(project: Project, source: Path) -> Iterator[str]:
    """Questions that no checker knows, and cells that depend on hardware and assert no bound."""
    text = text_of(project, source)
    for unknown in sorted({question for question in MENTION.findall(text) if question not in project.questions}):
        yield f"question without checker: {unknown} is not registered in course_utils.questions"
    try:
        cells = code_cells(with_marks(text))
    except BuildError:
        return  # `problems` says it
    for cell in cells:
        asserts = any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cell.source)))
        if "hardware" in cell.metadata.get("tags", []) and not asserts:
            yield f"a cell tagged hardware asserts no bound: {first_line(cell)}"


def unasked_questions(project: Project) -> Iterator[str]:
    """Questions that are registered, and that no exercise checks."""
    exercises = [path.read_text(encoding="utf-8", errors="replace") for path in project.sources() if path.parent.name == "exercises"]
    asked = {question for text in exercises for question in CHECK.findall(text)}
    for question in project.questions:
        if question not in asked:
            yield f'source/exercises: question {question} is registered, and no exercise has a cell check("{question}", ...)'


def notebook_problems(project: Project, path: Path, expected: NotebookNode | None) -> Iterator[str]:
    """What is wrong inside one notebook that is built."""
    notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
    yield from run_problems(path, notebook)
    yield from leak_problems(project, path, notebook, expected)
    yield from link_problems(project, path, "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown"))


def run_problems(path: Path, notebook: NotebookNode) -> Iterator[str]:
    """Traces of a run that is missing or went wrong, and figures without a text for those who can't see them."""
    cells = code_cells(notebook)
    if path.parent.name == "exercises":
        if any(cell.execution_count or cell.outputs for cell in cells):
            yield "executed: an exercise has no outputs and no counts"
        return
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        yield f"not executed from 1 to {len(cells)} in order"
    for cell in cells:
        failed, expected = (
            any(output.output_type == "error" for output in cell.outputs),
            "raises-exception" in cell.metadata.get("tags", []),
        )
        if failed and not expected:
            yield f"error in a cell that is not tagged raises-exception: {first_line(cell)}"
        if expected and not failed:
            yield f"no error in a cell that is tagged raises-exception: {first_line(cell)}"
        for output in cell.outputs:
            if output.get("name") == "stderr":
                yield f"writes to stderr: {first_line(cell)}"
            if "image/png" in output.get("data", {}) and not output.metadata.get("image/png", {}).get("alt"):
                yield f"figure without alternative text: {first_line(cell)}"


def leak_problems(project: Project, path: Path, notebook: NotebookNode, expected: NotebookNode | None) -> Iterator[str]:
    """Solution marks anywhere; in an exercise, lines of a solution that its stubs and given code do not have."""
    if any("BEGIN SOLUTION" in cell.source or "END SOLUTION" in cell.source for cell in notebook.cells):
        yield "solution mark"
    source = project.root / "source" / "exercises" / f"{path.stem}.py"
    if path.parent.name != "exercises" or expected is None:
        return
    present, given = lines_of(notebook), lines_of(expected)
    for cell in code_cells(with_marks(source.read_text(encoding="utf-8"))):
        lines = cell.source.split("\n")
        for line in (line.strip() for first, last in regions(cell.source) for line in lines[first + 1 : last]):
            if line and line in present and line not in given:
                yield f"solution leaked: {line}"
            elif len(line) >= 20 and line in given and not line.startswith("#"):
                yield f"solution leaked by the source, which has this line outside of the marks, too: {line}"


def lines_of(notebook: NotebookNode) -> set[str]:
    """All lines of all cells, without the space around them."""
    return {line.strip() for cell in notebook.cells for line in cell.source.split("\n")}


def first_line(cell: NotebookNode) -> str:
    """The first line of a cell, by which a person finds it."""
    return cell.source.split("\n")[0]


# Links --------------------------------------------------------------------------------------------------------------------------


def link_problems(project: Project, path: Path, text: str) -> Iterator[str]:
    """Relative links that lead nowhere from this file or from a learner's copy of it, and pictures without a text."""
    for target in broken_links(project.root, path.parent, text):
        yield f"broken link: {target}"
    for src, alt in re.findall(r"<img src=\"([^\"]*)\" alt=\"([^\"]*)\"", MarkdownIt().render(text)):
        if not alt.strip():
            yield f"picture without alternative text: {src}"
    if path.parent in (project.root / "notebooks", project.root / "exercises"):
        copies = project.root / "my_work" / path.parent.name
        for target in broken_links(project.root, copies, moved_links(text, path.parent, copies, (*FOLDERS, GLOSSARY))):
            yield f"broken link in a learner's copy: {target}"


def broken_links(root: Path, folder: Path, text: str) -> Iterator[str]:
    """The relative links in a Markdown text in ``folder`` that lead to no file of the repository, or to no heading of a Markdown file.

    A link into ``my_work/`` is good if the notebook, or the glossary, is there that will be copied to its place.
    """
    for target in re.findall(r"""\b(?:href|src)=["']([^"']*)["']""", MarkdownIt("commonmark").enable("table").render(text)):
        where, _, anchor = unquote(target).partition("#")
        if anchor and (not where or where.endswith(".ipynb")):
            yield f"{target} (JupyterLab and GitHub spell headings differently: link to the whole notebook or page)"
        if not where or re.match(r"[a-z][a-z0-9+.-]*:", where, re.IGNORECASE):
            continue
        destination = Path(os.path.normpath(folder / where))
        if destination.is_relative_to(root / "my_work"):
            destination = root / destination.relative_to(root / "my_work")
            copied = destination.suffix == ".ipynb" or destination == root / GLOSSARY
        else:
            copied = True
        if not (copied and destination.exists() and destination.is_relative_to(root)):
            yield target
        elif anchor and destination.suffix == ".md" and anchor not in anchors(destination.read_text(encoding="utf-8")):
            yield f"{target} (no such heading)"


@cache
def anchors(text: str) -> set[str]:
    """What can stand after ``#`` in a link to a Markdown text: headings as GitHub spells them, and ids written out in HTML.

    >>> sorted(anchors("# The `nf4` codebook\\n<a id='grid'></a>"))
    ['grid', 'the-nf4-codebook']
    """
    tokens = MarkdownIt().parse(text)
    headings = (following.children for token, following in zip(tokens, tokens[1:], strict=False) if token.type == "heading_open")
    words = ("".join(child.content for child in children) for children in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in words} | set(re.findall(r"\bid=[\"']([^\"']+)", text))


def notebooks_in(folder: Path) -> list[Path]:
    """All notebooks in a folder and the folders in it, but for what JupyterLab keeps in hidden ones."""
    return [path for path in folder.rglob("*.ipynb") if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def markdown_files(root: Path) -> list[Path]:
    """All Markdown files of the repository that people write."""
    files = root.rglob("*.md")
    return sorted(path for path in files if not any(part in NOT_OURS or part.startswith(".") for part in path.relative_to(root).parts[:-1]))
