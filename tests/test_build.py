"""The builder, tried on a small project: the same bytes each time, only what changed is executed, and every difference is named."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from course_utils import ROOT
from course_utils.questions import ExplanationQuestion, NumberQuestion
from tools import build as builder
from tools.build import build, main
from tools.check import problems
from tools.convert import BuildError, Project, notebooks_of

LESSON = """\
# %% [markdown]
# # A small lesson
# It leads to [its exercise](../exercises/01_small.ipynb), the [next lesson](02_next.ipynb) and a [term](../glossary.md#the-nf4-codebook).

# %%
total = 2 + 2
print("The answer is", total)

# %%
total

# %%
total

# %% tags=["raises-exception"]
1 / 0

# %% tags=["hardware"]
import os
import random

seconds = random.random()
assert seconds < 1
print(seconds)

# %%
from IPython.display import display

picture = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
display({"image/png": picture, "text/plain": "a dot"}, metadata={"image/png": {"alt": "a dot"}}, raw=True)
"""

EXERCISE = '''\
# %% [markdown]
# ## Question 01.1: a function
# Stuck? `hint("01.1")`

# %%
def check(question: str, answer: object) -> None:
    try:
        answer = answer(4) if callable(answer) else answer
    except NotImplementedError:
        answer = None
    print(question, "not attempted" if answer in (..., None) else "done")

# %%
def half(x: int) -> int:
    """Half of x, rounded down."""
    if x % 2:
        ### BEGIN SOLUTION
        return (x - 1) // 2
        ### END SOLUTION
    ### BEGIN SOLUTION
    return x // 2
    ### END SOLUTION

# %%
check("01.1", half)

# %%
### BEGIN SOLUTION
halves_of_ten = half(10) + 0
five = halves_of_ten
### END SOLUTION

# %%
check("01.2", five)

# %%
### BEGIN SOLUTION
why = "because two fives are ten"
### END SOLUTION

# %%
check("01.3", why)
'''

COMMON = {"difficulty": 1, "minutes": 1, "hints": ("one", "two")}
NUMBER = {"answer": 5, "within": 0, "mistakes": (), "solution": "5"} | COMMON
QUESTIONS = (
    NumberQuestion(id="01.1", title="a function", points=2, name="half", **NUMBER),
    NumberQuestion(id="01.2", title="a number", points=1, name="five", **NUMBER),
    ExplanationQuestion(id="01.3", title="why", points=3, name="why", model_answer="so", rubric=((3, "so"),), **COMMON),
)
NOTEBOOKS = {"notebooks/01_small.ipynb", "notebooks/02_next.ipynb", "solutions/01_small.ipynb", "exercises/01_small.ipynb"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small project, built once; tests change copies of it."""
    root = tmp_path_factory.mktemp("project")
    for name, text in {
        "source/lessons/01_small.py": LESSON,
        "source/lessons/02_next.py": "# %%\nprint(1)\n",
        "source/exercises/01_small.py": EXERCISE,
        "glossary.md": "# The `NF4` codebook\n\nSee the [first lesson](notebooks/01_small.ipynb).\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    build(project_in(root))
    return root


@pytest.fixture
def project(built: Path, tmp_path: Path) -> Project:
    """A copy of the small project, built and clean."""
    return project_in(Path(shutil.copytree(built, tmp_path / "project")))


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each notebook that was executed."""
    calls: list[int] = []
    execute = builder.execute
    monkeypatch.setattr(builder, "execute", lambda notebook, root: (calls.append(1), execute(notebook, root)))
    return calls


def project_in(root: Path) -> Project:
    return Project(root, {question.id: question for question in QUESTIONS})


def contents(project: Project) -> dict[str, bytes]:
    return {project.name(path): path.read_bytes() for path in project.root.rglob("*.ipynb")}


def replace(project: Project, name: str, old: str, new: str) -> None:
    path = project.root / name
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8", newline="\n")


def cells(project: Project, name: str) -> list[nbformat.NotebookNode]:
    return nbformat.read(project.root / name, as_version=4).cells


def code(project: Project, name: str) -> list[str]:
    return [cell.source for cell in cells(project, name) if cell.cell_type == "code"]


# Building -----------------------------------------------------------------------------------------------------------------------


def test_each_source_gives_its_notebooks_and_they_are_valid(project: Project) -> None:
    assert set(contents(project)) == NOTEBOOKS
    for name in NOTEBOOKS:
        nbformat.validate(nbformat.read(project.root / name, as_version=4))
    assert not list(project.root.rglob("*.partial"))


def test_executing_all_again_gives_the_same_bytes(project: Project, executed: list[int]) -> None:
    replace(project, "source/lessons/01_small.py", "print(seconds)", "print(seconds < 1)")
    build(project)
    before = contents(project)
    executed.clear()
    assert len(build(project, force=True)) == len(NOTEBOOKS)
    assert len(executed) == 3
    assert contents(project) == before


def test_one_lesson_alone_gives_the_same_bytes(project: Project) -> None:
    before = contents(project)
    for folder in ("notebooks", "solutions", "exercises"):
        shutil.rmtree(project.root / folder)
    build(project, ["02"])
    assert contents(project) == {"notebooks/02_next.ipynb": before["notebooks/02_next.ipynb"]}
    build(project, ["01"])
    after = contents(project)
    assert set(after) == NOTEBOOKS
    assert {name for name in NOTEBOOKS if after[name] != before[name]} == {"notebooks/01_small.ipynb"}  # its hardware cell prints chance


def test_the_same_place_or_another_gives_the_same_bytes(project: Project, tmp_path: Path) -> None:
    before = contents(project)
    elsewhere = project_in(Path(shutil.copytree(project.root, tmp_path / "somewhere" / "else")))
    build(elsewhere, ["02"], force=True)
    assert contents(elsewhere) == before


def test_only_what_changed_is_executed_again(project: Project, executed: list[int]) -> None:
    assert build(project) == []
    assert executed == []
    replace(project, "source/lessons/02_next.py", "print(1)", "print(2)")
    assert [project.name(path) for path in build(project)] == ["notebooks/02_next.ipynb"]
    assert len(executed) == 1
    assert cells(project, "notebooks/02_next.ipynb")[0].outputs[0].text == "2\n"


def test_what_a_hardware_cell_printed_stays_until_code_before_it_changes(project: Project) -> None:
    before = contents(project)
    build(project, force=True)
    assert contents(project) == before  # although its times are never the same twice
    replace(project, "source/lessons/01_small.py", "# A small lesson", "# A small, good lesson")
    build(project)
    times = [output.text for output in cells(project, "notebooks/01_small.ipynb")[5].outputs]
    assert json.dumps(times)[1:-1] in before["notebooks/01_small.ipynb"].decode("utf-8")
    replace(project, "source/lessons/01_small.py", "total = 2 + 2", "total = 1 + 3")
    build(project)
    assert json.dumps(times)[1:-1] not in contents(project)["notebooks/01_small.ipynb"].decode("utf-8")
    assert problems(project) == []


def test_a_hand_edited_time_is_not_kept(project: Project) -> None:
    time = cells(project, "notebooks/01_small.ipynb")[5].outputs[0].text.strip()
    replace(project, "notebooks/01_small.ipynb", time, "0.5")
    build(project)
    assert cells(project, "notebooks/01_small.ipynb")[5].outputs[0].text.strip() not in (time, "0.5")


def test_a_full_disk_is_said_and_leaves_no_half_notebook(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(project)
    replace(project, "source/lessons/02_next.py", "print(1)", "print(2)")

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(builder.os, "replace", full)
    with pytest.raises(BuildError, match="notebooks/02_next.ipynb can't be written: No space left on device"):
        build(project)
    assert contents(project) == before
    assert not list(project.root.rglob("*.partial"))


def test_a_hand_edited_notebook_is_put_right(project: Project) -> None:
    before = contents(project)
    replace(project, "solutions/01_small.ipynb", "01.1 done", "01.1 great")
    replace(project, "exercises/01_small.ipynb", "Half of x", "Half of y")
    assert len(build(project)) == 2
    assert contents(project) == before


def test_counts_outputs_and_tags(project: Project) -> None:
    lesson = [cell for cell in cells(project, "notebooks/01_small.ipynb") if cell.cell_type == "code"]
    assert [cell.execution_count for cell in lesson] == [1, 2, 3, 4, 5, 6]
    assert lesson[0].outputs[0].text == "The answer is 4\n"
    assert lesson[1].source == lesson[2].source and lesson[1].id != lesson[2].id
    assert lesson[3].outputs[0].traceback == ["ZeroDivisionError: division by zero"]
    assert lesson[4].metadata.tags == ["hardware", "nbval-ignore-output"]
    for cell in cells(project, "exercises/01_small.ipynb"):
        assert cell.get("execution_count") is None and not cell.get("outputs")


def test_notebooks_carry_no_times_no_paths_and_no_versions(project: Project) -> None:
    for name, content in contents(project).items():
        text = content.decode("utf-8")
        assert str(ROOT) not in text and str(Path.home()) not in text and str(project.root) not in text, name
        metadata = json.loads(text)["metadata"]
        assert set(metadata) == {"four_bits", "kernelspec", "language_info"}
        assert metadata["kernelspec"]["name"] == "python3"
        assert "version" not in metadata["language_info"]
        assert "execution" not in {key for cell in json.loads(text)["cells"] for key in cell["metadata"]}


def test_the_kernel_is_kept_from_the_learner_and_the_network(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = tmp_path / "learner"
    learner.mkdir()
    monkeypatch.setenv("COURSE_WORK", str(learner))
    monkeypatch.setenv("COURSE_MODEL", "some/model")
    monkeypatch.setenv("COURSE_GRADED", "1")
    source = """\
# %%
import os
from pathlib import Path

from course_utils import work_folder

work_folder().mkdir(parents=True, exist_ok=True)
(work_folder() / "left.txt").write_text("x")
Path("here.txt").write_text("x")
print([os.environ.get(name) for name in ("COURSE_MODEL", "COURSE_GRADED", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")])
"""
    (project.root / "source/lessons/03_alone.py").write_text(source, encoding="utf-8")
    build(project, ["03"])
    assert cells(project, "notebooks/03_alone.ipynb")[0].outputs[0].text == "[None, None, '1', '1', '-1']\n"
    assert list(learner.iterdir()) == []
    assert not list(project.root.rglob("*.txt"))


def test_a_cell_that_fails_is_named_and_nothing_of_its_source_is_written(
    project: Project, capsys: pytest.CaptureFixture[str], executed: list[int]
) -> None:
    before = contents(project)
    replace(project, "source/exercises/01_small.py", "half(10) + 0", "half(10) / 0")
    replace(project, "source/lessons/02_next.py", "print(1)", "print(2)")
    assert main([], project) == 1
    message = capsys.readouterr().err
    assert message.startswith("source/exercises/01_small.py: In [4] raised ZeroDivisionError: division by zero\n")
    assert "half(10) / 0" in message
    after = contents(project)
    assert {name for name in NOTEBOOKS if after[name] != before[name]} == {"notebooks/02_next.ipynb"}


def test_a_kernel_takes_no_port_that_another_process_could_take_first(project: Project) -> None:
    text = "# %%\nimport json\nfrom ipykernel.connect import get_connection_info\n\njson.loads(get_connection_info())['transport']\n"
    (project.root / "source/lessons/01_small.py").write_text(text, encoding="utf-8")
    build(project, ["01_small"])
    built = nbformat.read(project.root / "notebooks/01_small.ipynb", as_version=4)
    assert built.cells[0].outputs[0].data["text/plain"] == ("'ipc'" if os.name == "posix" else "'tcp'")


def test_a_kernel_that_does_not_start_is_said(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel specification that comes before the right one names a program that only fails."""
    folder = tmp_path / "broken/kernels/python3"
    folder.mkdir(parents=True)
    failing = {"argv": [sys.executable, "-c", "raise SystemExit(1)", "{connection_file}"], "display_name": "Python 3", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(failing), encoding="utf-8")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "broken"))
    with pytest.raises(BuildError, match="source/lessons/01_small.py: its kernel did not start: Kernel died"):
        build(project, ["01_small"], force=True)


def test_a_cell_that_prints_a_path_of_this_machine_is_refused(project: Project) -> None:
    replace(project, "source/lessons/02_next.py", "print(1)", "import os\nprint(os.getcwd())")
    with pytest.raises(BuildError, match=r"source/lessons/02_next.py: In \[1\] prints .*path of this machine"):
        build(project)


def test_a_path_with_letters_beyond_ascii_is_refused_too(project: Project, tmp_path: Path) -> None:
    elsewhere = tmp_path / "José"
    shutil.copytree(project.root, elsewhere)
    replace(project, "source/lessons/02_next.py", "print(1)", f"print({str(elsewhere)!r})")
    shutil.copy(project.root / "source/lessons/02_next.py", elsewhere / "source/lessons")
    with pytest.raises(BuildError, match="path of this machine"):
        build(Project(elsewhere, project.questions))


def test_check_looks_at_everything(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["01", "--check"], project)
    assert "name no lessons with it" in capsys.readouterr().err


def test_a_lesson_that_does_not_exist(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["77"], project) == 1
    assert "77" in capsys.readouterr().err


# Solutions and stubs ------------------------------------------------------------------------------------------------------------


def test_solutions_lose_their_marks_and_keep_their_code(project: Project) -> None:
    text = "\n".join(code(project, "solutions/01_small.ipynb"))
    assert "SOLUTION" not in text
    assert "        return (x - 1) // 2\n    return x // 2" in text
    outputs = [output.text for cell in cells(project, "solutions/01_small.ipynb") for output in cell.get("outputs", [])]
    assert outputs == ["01.1 done\n", "01.2 done\n", "01.3 done\n"]


def test_stubs_stand_at_the_indent_of_the_solution(project: Project) -> None:
    _, function, _, number, _, explanation, _ = code(project, "exercises/01_small.ipynb")
    assert (
        function
        == '''def half(x: int) -> int:
    """Half of x, rounded down."""
    if x % 2:
        raise NotImplementedError("write half here")
    raise NotImplementedError("write half here")'''
    )
    assert number == "five = ...  # replace the dots by your answer"
    assert explanation == "why = ...  # replace the dots by your explanation, in quotes"


@pytest.mark.parametrize(
    ("source", "cleared"),
    [
        ("class A:\n    def f(self):\n        ### BEGIN SOLUTION\n        return 1\n        ### END SOLUTION", 'write f here")'),
        ("def f():\n    def g():\n        ### BEGIN SOLUTION\n        return 1\n        ### END SOLUTION\n    return g", 'write g here")'),
        ("for n in range(2):\n    ### BEGIN SOLUTION\n    a = n\n    ### END SOLUTION\nprint(a)", "    a = ...  #"),
        ("### BEGIN SOLUTION\na, b = 1, 2\n### END SOLUTION\nprint(b, a)", "a = ...  # replace the dots by your answer\nb = ...  #"),
        (
            "### BEGIN SOLUTION\na = 1\n### END SOLUTION\nprint(a)\n### BEGIN SOLUTION\nb = 2\n### END SOLUTION\nprint(b)",
            "print(a)\nb = ...  #",
        ),
        ('table = {}\n### BEGIN SOLUTION\ntable["x"] = 1\n### END SOLUTION', "table = {}\n...  # replace"),
    ],
)
def test_stubs_in_other_places(tmp_path: Path, source: str, cleared: str) -> None:
    path = tmp_path / "source/exercises/01_x.py"
    path.parent.mkdir(parents=True)
    path.write_text(f'# %%\n{source}\n\n# %%\ncheck("01.2", 1)\n', encoding="utf-8")
    text = notebooks_of(project_in(tmp_path), path)[tmp_path / "exercises/01_x.ipynb"].cells[0].source
    assert cleared in text and "SOLUTION" not in text
    compile(text, "stub", "exec")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("### END SOLUTION\n\n# %%\ncheck", "\n\n# %%\ncheck", "solution marks are"),
        ("### BEGIN SOLUTION\nwhy", "# BEGIN SOLUTION\nwhy", "solution marks are"),
        ('check("01.2", five)', "print(five)", "after each solution cell comes the check cell"),
        ('check("01.3", why)', "print(why)", "no check follows"),
        ('check("01.2", five)', 'check("01.9", five)', "not one registered question, but 01.9"),
        ('check("01.2", five)', 'check("01.2", five)\ncheck("01.3", five)', "not one registered question, but 01.2, 01.3"),
        ("five = halves_of_ten", "five = halves_of_ten\ndef why(): pass", "the line that defines why is inside the solution marks"),
        ("five = halves_of_ten", "five = = halves_of_ten", "invalid syntax in line 3"),
        ("# %%\ndef half", "# %%\n\n# %%\ndef half", "a cell is empty"),
        ('check("01.3", why)', 'check("01.2", why)', "question 01.2 is checked a second time"),
    ],
)
def test_a_source_that_cannot_be_built_is_named(project: Project, old: str, new: str, message: str) -> None:
    before = contents(project)
    replace(project, "source/exercises/01_small.py", old, new)
    with pytest.raises(BuildError, match=f"source/exercises/01_small.py: {message}"):
        build(project)
    assert contents(project) == before
    assert any(message in problem for problem in problems(project))


# Checking -----------------------------------------------------------------------------------------------------------------------


def test_check_is_green_on_a_clean_project(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert problems(project) == []
    assert main(["--check"], project) == 0


def in_source(old: str, new: str, file: str = "exercises/01_small.py") -> Callable[[Project], None]:
    return lambda project: replace(project, f"source/{file}", old, new)


def in_built(file: str, old: str, new: str) -> Callable[[Project], None]:
    return lambda project: replace(project, file, old, new)


def orphan(project: Project) -> None:
    shutil.copy(project.root / "notebooks/02_next.ipynb", project.root / "notebooks/09_gone.ipynb")


def orphan_in_a_folder(project: Project) -> None:
    (project.root / "notebooks/old").mkdir()
    shutil.copy(project.root / "notebooks/01_small.ipynb", project.root / "notebooks/old")


def not_utf_8(file: str) -> Callable[[Project], None]:
    def spoil(project: Project) -> None:
        with open(project.root / file, "ab") as end:
            end.write(b"# \xff\n")

    return spoil


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (in_built("notebooks/01_small.ipynb", "total = 2 + 2", "total = 2 + 3"), "notebooks/01_small.ipynb: edited by hand: cell 2 "),
        (in_built("notebooks/01_small.ipynb", "# A small lesson", "# A great lesson"), "notebooks/01_small.ipynb: edited by hand: cell 1 "),
        (in_built("notebooks/01_small.ipynb", "The answer is 4", "The answer is 5"), "notebooks/01_small.ipynb: edited by hand: outputs"),
        (in_built("notebooks/01_small.ipynb", '"execution_count": 2', '"execution_count": 7'), "notebooks/01_small.ipynb: not executed"),
        (
            in_built("notebooks/01_small.ipynb", '"nbval-ignore-output"', '"nbval-skip"'),
            "notebooks/01_small.ipynb: edited by hand: cell 6 ",
        ),
        (
            in_built("notebooks/02_next.ipynb", '"name": "python3"', '"name": "mine"'),
            "notebooks/02_next.ipynb: edited by hand: the metadata",
        ),
        (in_built("notebooks/02_next.ipynb", '"metadata"', '"metdata"'), "notebooks/02_next.ipynb: edited by hand: no longer a notebook"),
        (in_built("notebooks/02_next.ipynb", "{", ""), "notebooks/02_next.ipynb: edited by hand: no longer a notebook"),
        (in_built("notebooks/02_next.ipynb", '"stdout"', '"stderr"'), "notebooks/02_next.ipynb: writes to stderr: print(1)"),
        (in_built("notebooks/01_small.ipynb", '"alt": "a dot"', '"alt": ""'), "notebooks/01_small.ipynb: figure without alternative text"),
        (in_built("notebooks/01_small.ipynb", '"raises-exception"', '"x"'), "notebooks/01_small.ipynb: error in a cell that is not tagged"),
        (in_built("exercises/01_small.ipynb", "five = ...", "five = halves_of_ten\\nfive = ..."), "solution leaked: five = halves_of_ten"),
        (
            in_built("exercises/01_small.ipynb", '"five = ...', '"### BEGIN SOLUTION\\nfive = ...'),
            "exercises/01_small.ipynb: solution mark",
        ),
        (in_built("exercises/01_small.ipynb", '"execution_count": null', '"execution_count": 1'), "exercises/01_small.ipynb: executed"),
        (
            in_source("# %%\ndef check", "# %%\n# return (x - 1) // 2 and\nreturn_ = 1\n\n# %%\ndef check"),
            "exercises/01_small.ipynb: stale",
        ),
        (in_source("print(1)", "print(2)", "lessons/02_next.py"), "notebooks/02_next.ipynb: stale"),
        (in_source('hint("01.1")', 'hint("01.9")'), "source/exercises/01_small.py: question without checker: 01.9"),
        (in_source("assert seconds < 1", "", "lessons/01_small.py"), "source/lessons/01_small.py: a cell tagged hardware asserts no bound"),
        (orphan, "notebooks/09_gone.ipynb: orphan"),
        (orphan_in_a_folder, "notebooks/old/01_small.ipynb: orphan"),
        (not_utf_8("notebooks/02_next.ipynb"), "notebooks/02_next.ipynb: edited by hand: no longer a notebook"),
        (not_utf_8("source/lessons/02_next.py"), "source/lessons/02_next.py: line 3 is not UTF-8 text (invalid start byte)"),
        (not_utf_8("glossary.md"), "glossary.md: line 4 is not UTF-8 text (invalid start byte)"),
        (in_built("notebooks/02_next.ipynb", "\n", "\r\n"), "notebooks/02_next.ipynb: edited by hand"),
        (in_built("glossary.md", "01_small.ipynb", "01_small.ipynb#A-small-lesson"), "JupyterLab and GitHub spell headings differently"),
        (in_built("glossary.md", "notebooks/01_small.ipynb", "#nowhere"), "JupyterLab and GitHub spell headings differently"),
        (lambda project: (project.root / "solutions/01_small.ipynb").unlink(), "solutions/01_small.ipynb: missing"),
        (lambda project: (project.root / "source/lessons/02_next.py").unlink(), "notebooks/02_next.ipynb: orphan"),
        (in_built("glossary.md", "01_small.ipynb", "01_big.ipynb"), "glossary.md: broken link: notebooks/01_big.ipynb"),
        (in_built("glossary.md", "NF4", "FP4"), "notebooks/01_small.ipynb: broken link: ../glossary.md#the-nf4-codebook (no such heading)"),
        (in_built("glossary.md", "See the", "![](glossary.md)"), "glossary.md: picture without alternative text: glossary.md"),
    ],
)
def test_check_is_red_and_names_the_difference(
    project: Project, capsys: pytest.CaptureFixture[str], change: Callable[[Project], None], named: str
) -> None:
    change(project)
    assert main(["--check"], project) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(named in line for line in lines), lines


def test_a_registered_question_that_no_exercise_asks(project: Project) -> None:
    more = QUESTIONS + (NumberQuestion(id="01.4", title="another", points=1, name="x", **NUMBER),)
    assert [problem for problem in problems(Project(project.root, {q.id: q for q in more})) if "01.4 is registered" in problem]


def test_a_line_of_a_solution_that_the_source_gives_away(project: Project) -> None:
    given_away = "# %% [markdown]\n# Write\n# halves_of_ten = half(10) + 0\n\n# %%\n### BEGIN SOLUTION\nhalves"
    replace(project, "source/exercises/01_small.py", "# %%\n### BEGIN SOLUTION\nhalves", given_away)
    assert "leaked by the source" in " ".join(problems(project))


def test_a_link_that_works_in_the_clone_but_not_from_a_learners_copy(project: Project) -> None:
    (project.root / "notebooks/table.csv").write_text("1", encoding="utf-8")
    replace(project, "source/lessons/02_next.py", "print(1)", "print(1)\n\n# %% [markdown]\n# [a table](table.csv)")
    build(project)
    assert problems(project) == ["notebooks/02_next.ipynb: broken link in a learner's copy: table.csv"]


def test_other_kinds_of_link_are_left_alone(project: Project) -> None:
    text = "[a](https://example.org/x) [b](mailto:a@example.org) `[c](nowhere.md)`\n\n```\n[d](nowhere.md)\n```\n[e](source/lessons)\n"
    (project.root / "README.md").write_text(text, encoding="utf-8")
    (project.root / "my_work").mkdir()
    (project.root / "my_work" / "notes.md").write_text("[mine](nowhere.md)", encoding="utf-8")
    assert problems(project) == []


def test_check_executes_nothing(project: Project, executed: list[int]) -> None:
    replace(project, "source/lessons/02_next.py", "print(1)", "print(2)")
    before = contents(project)
    assert problems(project)
    assert executed == [] and contents(project) == before
