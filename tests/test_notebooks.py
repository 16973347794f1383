"""Every notebook of the course, run again and compared with what it stores.

nbval's strict mode compares every output of ``notebooks/`` and ``solutions/``; ``exercises/`` only have to run to their end unsolved.
Strict and lax can't both be on in one run of pytest, so each notebook gets a run of its own: on a copy in a temporary folder, with one
thread and no network. The runs are parallel where these tests are (``pytest -n 2``).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from course_utils import ROOT
from tools.build import kernel_environment
from tools.convert import Project, code_cells

EXECUTED = sorted(path for folder in ("notebooks", "solutions") for path in (ROOT / folder).glob("*.ipynb"))
EXERCISES = sorted((ROOT / "exercises").glob("*.ipynb"))
WATCHED = ("notebooks", "exercises", "solutions", "models", "measurements", "my_work", "source")
SECONDS = 900


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def notebook_environment(folder: Path) -> dict[str, str]:
    """The variables under which a notebook is tested: those of pytest left out, and with the GPU that conftest.py hides from the tests."""
    kept = {key: value for key, value in kernel_environment(folder).items() if not key.startswith("PYTEST_")}
    return kept | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "CUDA_VISIBLE_DEVICES": os.environ["COURSE_GPUS"]}


def run_nbval(notebook: Path, folder: Path, mode: str) -> subprocess.CompletedProcess[str]:
    """Run nbval in ``mode`` (``--nbval`` or ``--nbval-lax``) on the notebook as it lies in ``folder``.

    nbval's kernel uses TCP ports (see ``tools.build.kernel_sockets``): where it died before the first cell, a second one is started.
    """
    options = ["-p", "nbval.plugin", "-p", "no:cacheprovider", "-q", "--color=no", "--rootdir", str(folder), mode, "--nbval-current-env"]
    command = [sys.executable, "-m", "pytest", *options, str(notebook)]
    environment = notebook_environment(folder)
    text = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "encoding": "utf-8"}
    for _ in range(2):
        done = subprocess.run(command, cwd=folder, env=environment, timeout=SECONDS, **text)
        if "Kernel died before replying to kernel_info" not in done.stdout:
            break
    return done


def files(*folders: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of change of every file below the folders."""
    found = (path for folder in folders for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def assert_runs(notebook: Path, folder: Path, mode: str) -> None:
    """The notebook passes nbval, and writes nothing but into its own work folder."""
    here = folder / notebook.parent.name
    here.mkdir()
    copy = Path(shutil.copy(notebook, here))
    watched = (here, *(ROOT / part for part in WATCHED))
    before = files(*watched)
    done = run_nbval(copy, folder, mode)
    assert done.returncode == 0, f"{name(notebook)}\n{done.stdout}"
    assert files(*watched) == before


def test_there_is_a_notebook_for_every_source() -> None:
    stems = {kind: {path.stem for path in Project().sources() if path.parent.name == kind} for kind in ("lessons", "exercises")}
    assert stems["lessons"] and stems["exercises"]
    assert {name(path) for path in EXECUTED + EXERCISES} == (
        {f"notebooks/{stem}" for stem in stems["lessons"]}
        | {f"{folder}/{stem}" for folder in ("solutions", "exercises") for stem in stems["exercises"]}
    )


def test_what_is_built_is_what_the_source_gives() -> None:
    command = [sys.executable, "-m", "tools.build", "--check"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("notebook", EXECUTED, ids=name)
def test_the_outputs_are_what_a_fresh_run_gives(notebook: Path, tmp_path: Path) -> None:
    assert_runs(notebook, tmp_path, "--nbval")


@pytest.mark.parametrize("notebook", EXERCISES, ids=name)
def test_an_exercise_runs_to_its_end_unsolved(notebook: Path, tmp_path: Path) -> None:
    assert_runs(notebook, tmp_path, "--nbval-lax")


@pytest.mark.parametrize("notebook", EXECUTED, ids=name)
def test_every_cell_was_executed_in_order_and_said_nothing_on_stderr(notebook: Path) -> None:
    cells = code_cells(nbformat.read(notebook, as_version=4))
    assert cells
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))  # without counts nbval compares nothing
    assert [output.text for cell in cells for output in cell.outputs if output.get("name") == "stderr"] == []


@pytest.mark.parametrize("notebook", EXECUTED, ids=name)
def test_most_numbers_are_compared(notebook: Path) -> None:
    """Cells whose outputs are exempt are those tagged hardware, and they are the smaller part."""
    printing = [cell for cell in code_cells(nbformat.read(notebook, as_version=4)) if cell.outputs]
    exempt = [cell for cell in printing if re.search("nbval.(ignore|skip)", f"{cell.metadata.get('tags')} {cell.source}", re.IGNORECASE)]
    assert all("hardware" in cell.metadata.get("tags", []) for cell in exempt)
    assert len(exempt) < len(printing) / 2


def test_notebooks_have_the_gpu_that_the_tests_have_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that hides it from itself hides it from those that it starts; here the first of them is pytest-xdist's."""
    program = "import os, conftest; print(os.environ['COURSE_GPUS'], os.environ['CUDA_VISIBLE_DEVICES'])"
    for inherited, found in (({}, "0"), ({"CUDA_VISIBLE_DEVICES": "3"}, "3"), ({"CUDA_VISIBLE_DEVICES": "-1", "COURSE_GPUS": "3"}, "3")):
        plain = {key: value for key, value in os.environ.items() if key not in ("CUDA_VISIBLE_DEVICES", "COURSE_GPUS")}
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=plain | inherited, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [found, "-1"]
    monkeypatch.setenv("COURSE_GPUS", "3")
    assert notebook_environment(tmp_path)["CUDA_VISIBLE_DEVICES"] == "3"


@pytest.mark.parametrize(("failures", "status"), [(1, 0), (2, 1)])
def test_a_kernel_that_dies_at_its_start_gets_one_more_chance(failures: int, status: int, tmp_path: Path) -> None:
    """The kernel reads a configuration file at its start, and this one counts the starts and ends the first of them."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("2 + 2")])
    nbformat.write(notebook, tmp_path / "short.ipynb")
    profile = tmp_path / "ipython/profile_default"
    profile.mkdir(parents=True)
    starts = tmp_path / "starts"
    starts.touch()
    counting = f"import os, pathlib\nstarts = pathlib.Path({str(starts)!r})\nstarts.write_text(starts.read_text() + '.')\n"
    ending = f"if len(starts.read_text()) <= {failures}:\n    os._exit(1)\n"
    (profile / "ipython_kernel_config.py").write_text(counting + ending, encoding="utf-8")
    assert run_nbval(tmp_path / "short.ipynb", tmp_path, "--nbval-lax").returncode == status
    assert len(starts.read_text()) == min(failures + 1, 2)


def first_printed_number(notebook: nbformat.NotebookNode) -> tuple[int, str]:
    """The position of the first cell that prints a number and is compared, and that number."""
    for position, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            number = re.search(r"\d+", output.get("text", ""))
            if number and "nbval-ignore-output" not in cell.metadata.get("tags", []):
                return position, number[0]
    raise AssertionError("no cell prints a number")


def test_a_changed_number_is_noticed(tmp_path: Path) -> None:
    """The comparison is not empty: the beginning of the first lesson, which passes as it is, fails with one number changed."""
    notebook = nbformat.read(EXECUTED[0], as_version=4)
    position, number = first_printed_number(notebook)
    notebook.cells = notebook.cells[: position + 1]
    output = next(output for output in notebook.cells[position].outputs if number in output.get("text", ""))
    wrong = str(int(number) + 1)
    output.text = output.text.replace(number, wrong, 1)
    nbformat.write(notebook, tmp_path / "changed.ipynb")
    done = run_nbval(tmp_path / "changed.ipynb", tmp_path, "--nbval")
    assert done.returncode == 1
    assert "mismatch 'stdout'" in done.stdout and wrong in done.stdout and "1 failed" in done.stdout
