"""`make lab` and `make fresh`: the learner's copies are made, found again, renewed, and never lost."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path
from urllib.parse import quote

import nbformat
import pytest

from course_utils import ROOT, lab, work_folder

RELATIVE_LINK = re.compile(r"""(?:\]\(|(?:href|src)=["'])(?![a-z]+:|#)([^)\s"'#]+)""")


def write_notebook(path: Path, *markdown: str) -> None:
    """A notebook of text cells, with the builder's note of what it was built from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [nbformat.v4.new_markdown_cell(text) for text in markdown]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"four_bits": {"source": " ".join(markdown)}}), path)


def rewrite(path: Path, *markdown: str) -> None:
    """Write other text into a notebook, as a learner does: what stands in its metadata stays."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [nbformat.v4.new_markdown_cell(text) for text in markdown]
    nbformat.write(notebook, path)


def markdown(path: Path) -> str:
    return "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small course: two lessons, one exercise, and the learner's folder where `make lab` puts it."""
    monkeypatch.setenv("COURSE_WORK", str(tmp_path / "my_work"))
    write_notebook(tmp_path / "notebooks" / "00_start_here.ipynb", "Go on to [one](01_count.ipynb).")
    write_notebook(
        tmp_path / "notebooks" / "01_count.ipynb",
        "A [term](../glossary.md#bit), [your turn](../exercises/01_count.ipynb), [elsewhere](https://example.org/../x).",
        '<img src="../models/picture.png" alt="a picture">',
    )
    write_notebook(tmp_path / "exercises" / "01_count.ipynb", "Back to [the lesson](../notebooks/01_count.ipynb).")
    (tmp_path / "glossary.md").write_text("**bit**: see [one](notebooks/01_count.ipynb)\n", encoding="utf-8")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "picture.png").write_bytes(b"")
    return tmp_path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The options of each JupyterLab that was started; none is. The variables that it would get are put back after the test."""
    from jupyterlab import labapp

    calls: list[list[str]] = []
    monkeypatch.setattr(labapp, "main", calls.append)
    for name in ("JUPYTER_CONFIG_PATH", "PYTHONPATH", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, "")
    return calls


def test_everything_is_copied_once(clone: Path) -> None:
    copied, newer = lab.copy_missing(clone)
    assert [notebook.title for notebook in copied] == ["lesson 00", "lesson 01", "exercise 01"]
    assert all(notebook.copy.is_file() for notebook in copied) and newer == []
    assert lab.copy_missing(clone) == ([], [])
    assert lab.report([], []) == ""


def test_what_the_learner_wrote_is_never_overwritten(clone: Path) -> None:
    lab.copy_missing(clone)
    mine = clone / "my_work" / "notebooks" / "01_count.ipynb"
    rewrite(mine, "my own words")
    assert lab.copy_missing(clone) == ([], [])
    write_notebook(clone / "notebooks" / "01_count.ipynb", "a newer lesson")
    lab.copy_missing(clone)
    assert markdown(mine) == "my own words"


def test_a_newer_version_is_reported_until_it_is_taken(clone: Path) -> None:
    lab.copy_missing(clone)
    write_notebook(clone / "notebooks" / "01_count.ipynb", "a newer lesson")
    for _ in range(2):
        copied, newer = lab.copy_missing(clone)
        assert copied == [] and [notebook.title for notebook in newer] == ["lesson 01"]
    assert "A newer version" in lab.report(copied, newer) and "make fresh LESSON=01" in lab.report(copied, newer)
    lab.fresh("01", clone)
    assert lab.copy_missing(clone) == ([], [])


def test_a_newer_version_is_reported_though_all_but_the_copies_was_deleted(clone: Path) -> None:
    lab.copy_missing(clone)
    for path in (clone / "my_work").iterdir():
        if path.is_file():
            path.unlink()
    write_notebook(clone / "notebooks" / "01_count.ipynb", "a newer lesson")
    assert [notebook.title for notebook in lab.copy_missing(clone)[1]] == ["lesson 01"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"metadata": []}', '{"metadata": {}, "cells": []}', "\xff"])
def test_a_copy_that_does_not_say_its_version_is_reported_and_kept(clone: Path, text: str) -> None:
    lab.copy_missing(clone)
    mine = clone / "my_work" / "notebooks" / "01_count.ipynb"
    mine.write_text(text, encoding="latin-1")
    copied, newer = lab.copy_missing(clone)
    assert copied == [] and [notebook.title for notebook in newer] == ["lesson 01"]
    assert "doesn't say which version" in lab.report(copied, newer) and "make fresh LESSON=01" in lab.report(copied, newer)
    assert mine.read_text(encoding="latin-1") == text


def test_fresh_sets_each_copy_aside_under_its_own_name(clone: Path) -> None:
    lab.copy_missing(clone)
    folder = clone / "my_work" / "notebooks"
    today = date.today().isoformat()
    for words, lesson in (("first", "1"), ("second", "01"), ("third", "01_count")):
        write_notebook(folder / "01_count.ipynb", words)
        lab.fresh(lesson, clone)
        assert markdown(folder / "01_count.ipynb").startswith("A [term]")
    kept = {name: markdown(folder / f"01_count.{name}.ipynb") for name in (today, f"{today}-2", f"{today}-3")}
    assert kept == {today: "first", f"{today}-2": "second", f"{today}-3": "third"}


def test_fresh_takes_the_exercise_too_and_leaves_other_lessons_alone(clone: Path) -> None:
    lab.copy_missing(clone)
    taken = lab.fresh("01", clone)
    assert [notebook.title for notebook, _ in taken] == ["lesson 01", "exercise 01"]
    assert len(list((clone / "my_work" / "exercises").glob("*.ipynb"))) == 2
    assert [path.name for path in (clone / "my_work" / "notebooks").glob("00*")] == ["00_start_here.ipynb"]


def test_fresh_of_a_lesson_never_opened_copies_it(clone: Path) -> None:
    assert [aside for _, aside in lab.fresh("00", clone)] == [None]
    assert (clone / "my_work" / "notebooks" / "00_start_here.ipynb").is_file()


@pytest.mark.parametrize("lesson", ["07", "", " ", "seven", "1x", "01_cuont", "1_count_", "01_start_here"])
def test_a_lesson_that_does_not_exist_gets_the_list_of_those_that_do(clone: Path, lesson: str) -> None:
    with pytest.raises(lab.LabError, match="00_start_here, 01_count:"):
        lab.fresh(lesson, clone)
    assert not (clone / "my_work").exists()


def test_a_clone_without_lessons_says_so(tmp_path: Path) -> None:
    with pytest.raises(lab.LabError, match="make build"):
        lab.copy_missing(tmp_path)


def test_links_are_the_same_places_seen_from_the_copy(clone: Path) -> None:
    lab.copy_missing(clone)
    text = markdown(clone / "my_work" / "notebooks" / "01_count.ipynb")
    assert "[term](../glossary.md#bit)" in text
    assert "[your turn](../exercises/01_count.ipynb)" in text
    assert "(https://example.org/../x)" in text
    assert 'src="../../models/picture.png"' in text


def test_a_link_to_another_drive_of_windows_is_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    """There ``os.path.relpath`` raises; here it is made to."""

    def relpath(path: str, start: Path) -> str:
        raise ValueError("path is on mount 'C:', start on mount 'D:'")

    monkeypatch.setattr(os.path, "relpath", relpath)
    moved = lab.moved_links("[card](../models/abacus/README.md#size)", Path("/course/notebooks"), Path("/work/notebooks"))
    assert moved == f"[card]({Path(os.path.normpath('/course/models/abacus/README.md')).as_posix()}#size)"


@pytest.mark.parametrize("place", ["my_work", "elsewhere/deep/down"])
def test_links_of_the_small_course_resolve_wherever_the_copies_are(clone: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("COURSE_WORK", str(clone / place))
    copied, _ = lab.copy_missing(clone)
    lab.refresh_glossary(clone)
    checked = [target for notebook in copied for path in (notebook.path, notebook.copy) for target in assert_links_resolve(path)]
    assert len(checked) == 2 * 5


def assert_links_resolve(path: Path) -> list[str]:
    links = RELATIVE_LINK.findall(markdown(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8"))
    broken = [link for link in links if not (path.parent / link).exists()]
    assert broken == [], f"{path} has broken links"
    return links


@pytest.mark.parametrize("folder", lab.FOLDERS)
def test_links_of_the_real_course_resolve_from_both_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setenv("COURSE_WORK", str(tmp_path))
    lab.copy_missing()
    lab.refresh_glossary()
    notebooks = [notebook for notebook in lab.shipped() if notebook.path.parent.name == folder]
    assert notebooks
    for notebook in notebooks:
        assert len(assert_links_resolve(notebook.path)) == len(assert_links_resolve(notebook.copy))


def test_no_chain_of_links_leads_from_a_copy_to_a_notebook_of_the_clone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """JupyterLab saves whatever notebook is open and run: one of the clone would then differ from what git has."""
    work = tmp_path / "course" / "my_work"
    for name in lab.FOLDERS + ("models", lab.GLOSSARY, "claims.yml"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, work.parent / name)
    monkeypatch.setenv("COURSE_WORK", str(work))
    ahead = [notebook.copy for notebook in lab.copy_missing(work.parent)[0]]
    lab.refresh_glossary(work.parent)
    seen: set[Path] = set()
    while ahead:
        page = ahead.pop()
        if page not in seen and page.suffix in (".ipynb", ".md"):
            assert page.suffix == ".md" or page.is_relative_to(work), page
            ahead += [Path(os.path.normpath(page.parent / link)) for link in assert_links_resolve(page)]
        seen.add(page)
    assert {work / lab.GLOSSARY, work.parent / "models" / "abacus" / "README.md"} <= seen


def test_the_glossary_follows_the_clone_and_an_edited_one_is_set_aside(clone: Path) -> None:
    mine = clone / "my_work" / "glossary.md"
    assert lab.refresh_glossary(clone) is None and mine.read_bytes() == (clone / "glossary.md").read_bytes()
    assert lab.refresh_glossary(clone) is None
    mine.write_text("my own words", encoding="utf-8")
    aside = lab.refresh_glossary(clone)
    assert aside is not None and aside.read_text(encoding="utf-8") == "my own words"
    assert str(mine) in lab.report([], [], aside) and aside.name in lab.report([], [], aside)
    assert lab.refresh_glossary(clone) is None and len(list((clone / "my_work").iterdir())) == 2


def test_a_copy_is_the_shipped_notebook_but_for_its_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSE_WORK", str(tmp_path))
    for notebook in lab.copy_missing()[0]:
        ours, theirs = (nbformat.read(path, as_version=4) for path in (notebook.path, notebook.copy))
        nbformat.validate(theirs)
        for mine, copied in zip(ours.cells, theirs.cells, strict=True):
            if mine.cell_type == "markdown":
                mine.source = copied.source
        assert ours == theirs


def test_a_disk_that_fills_up_at_any_moment_loses_nothing(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.copy_missing(clone)
    folder = clone / "my_work" / "notebooks"
    write_notebook(folder / "01_count.ipynb", "my own words")
    real = os.fsync
    failures = 0
    for moment in range(1, 10):
        left = moment

        def full(descriptor: int) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", full)
        try:
            lab.fresh("01", clone)
        except lab.LabError as error:
            failures += 1
            assert os.strerror(errno.ENOSPC) in str(error) and "nothing of yours was lost" in str(error)
        else:
            break
        finally:
            monkeypatch.setattr(os, "fsync", real)
        assert "my own words" in [markdown(path) for path in folder.glob("01_count*.ipynb")]
        assert list(clone.rglob("*.part")) == []
    assert failures == 2  # a lesson and its exercise


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of a file")
def test_a_disk_that_is_really_full_is_one_sentence(tmp_path: Path) -> None:
    program = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); from course_utils import lab; exit(lab.main())"
    environment = {**os.environ, "COURSE_WORK": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", program, "--copy-only"], env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and str(tmp_path) in done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root and Windows may write into a folder marked read-only")
def test_a_read_only_folder_is_one_sentence(clone: Path) -> None:
    (clone / "my_work").mkdir(mode=0o500)
    with pytest.raises(lab.LabError, match=os.strerror(errno.EACCES)):
        lab.copy_missing(clone)


def test_a_file_in_the_place_of_the_work_folder_is_one_sentence(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clone / "my_work").write_text("a file", encoding="utf-8")
    with pytest.raises(lab.LabError, match="could not be written"):
        lab.copy_missing(clone)
    assert (clone / "my_work").read_text(encoding="utf-8") == "a file"


def run(*words: str, work: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COURSE_WORK": str(work), "PYTHONUTF8": "1"}
    return subprocess.run(
        [sys.executable, "-m", "course_utils.lab", *words], cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8"
    )


def test_the_command_copies_then_has_nothing_to_say(tmp_path: Path) -> None:
    first, second = run("--copy-only", work=tmp_path), run("--copy-only", work=tmp_path)
    assert (first.returncode, second.returncode) == (0, 0)
    assert str(tmp_path) in first.stdout and second.stdout == ""
    assert (tmp_path / lab.GLOSSARY).is_file()


def test_the_command_takes_a_fresh_lesson_and_refuses_an_unknown_one(tmp_path: Path) -> None:
    run("--copy-only", work=tmp_path)
    done = run("--fresh", "00", work=tmp_path)
    assert done.returncode == 0 and date.today().isoformat() in done.stdout
    refused = run("--fresh", "99", work=tmp_path)
    assert refused.returncode == 1 and refused.stdout == "" and refused.stderr.count("\n") == 1


def test_jupyterlab_opens_the_first_lesson_and_asks_nothing(
    clone: Path, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from jupyterlab import labapp

    monkeypatch.setenv("JUPYTER_CONFIG_PATH", str(clone))
    assert lab.main(["--no-browser", "--", "--port=9999"]) == 0
    assert started == [
        [
            f"--ServerApp.root_dir={(clone / 'my_work').resolve()}",
            "--LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb",
            "--no-browser",
            "--port=9999",
        ]
    ]

    disabled = labapp.get_static_page_config(level="all")["disabledExtensions"]
    assert disabled["@jupyterlab/apputils-extension:announcements"] is True
    assert os.environ["JUPYTER_CONFIG_PATH"].split(os.pathsep)[-1] == str(clone)


@pytest.mark.parametrize("work", ["my_work", "elsewhere/my work"])
def test_the_clone_is_the_root_where_the_copies_are_in_it(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    monkeypatch.setenv("COURSE_WORK", str(ROOT / work))
    lab.open_jupyterlab([])
    start = f"--LabApp.default_url=/lab/tree/{quote(work)}/notebooks/00_start_here.ipynb"
    assert started == [[f"--ServerApp.root_dir={ROOT}", start]]


@pytest.mark.skipif(os.name == "nt", reason="on Windows a link to a folder needs special rights")
def test_the_first_lesson_opens_where_the_learner_keeps_the_notebooks_elsewhere(
    clone: Path, tmp_path: Path, started: list[list[str]]
) -> None:
    (clone / "my_work").mkdir(exist_ok=True)
    elsewhere = tmp_path / "synchronized"
    elsewhere.mkdir()
    (clone / "my_work" / "notebooks").symlink_to(elsewhere, target_is_directory=True)
    lab.open_jupyterlab([])
    assert started[0][1] == "--LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb"


def test_what_the_kernels_inherit(started: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The learner's own modules are still found, after those of the clone; what transformers logs is what the lessons show."""
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    lab.open_jupyterlab([])
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "/mine"]
    assert "TRANSFORMERS_VERBOSITY" not in os.environ


def test_a_renamed_clone_uses_its_own_code(tmp_path: Path) -> None:
    """The package that is installed for this Python is in another folder, as it is after a clone was renamed or copied."""
    renamed = tmp_path / "renamed"
    for name in ("course_utils", *lab.FOLDERS):
        shutil.copytree(ROOT / name, renamed / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / lab.GLOSSARY, renamed)
    kernel = "import course_utils; print(course_utils.ROOT, course_utils.work_folder())"
    program = (
        "import subprocess, sys; from jupyterlab import labapp; from course_utils import lab; "
        f"labapp.main = lambda options: subprocess.run([sys.executable, '-c', {kernel!r}], cwd='my_work/notebooks'); lab.main([])"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("COURSE_WORK", "PYTHONPATH")}
    done = subprocess.run([sys.executable, "-c", program], cwd=renamed, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.stdout.splitlines()[-1:] == [f"{renamed.resolve()} {renamed.resolve() / 'my_work'}"], done.stderr


@pytest.mark.parametrize(("named", "folder"), [("rel", ROOT / "rel"), ("~/mine", Path.home() / "mine"), ("", ROOT / "my_work")])
def test_the_work_folder_is_the_same_wherever_a_notebook_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, folder: Path
) -> None:
    monkeypatch.setenv("COURSE_WORK", named)
    monkeypatch.chdir(tmp_path)
    assert work_folder() == folder


def test_starting_needs_nothing_heavy() -> None:
    program = "import sys, course_utils.lab; print([name for name in ('torch', 'jupyterlab', 'numpy', 'nbformat') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
