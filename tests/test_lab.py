"""`make lab` and `make fresh`: the learner's copies are made, found again, renewed, and never lost."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from urllib.parse import quote

import nbformat
import pytest

from course_utils import ROOT, lab

RELATIVE_LINK = re.compile(r"""(?:\]\(|(?:href|src)=["'])(?![a-z]+:|#)([^)\s"'#]+)""")


def write_notebook(path: Path, *markdown: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text) for text in markdown]), path)


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
    (tmp_path / "glossary.md").write_text("# Words", encoding="utf-8")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "picture.png").write_bytes(b"")
    return tmp_path


def test_everything_is_copied_once(clone: Path) -> None:
    copied, newer = lab.copy_missing(clone)
    assert [notebook.title for notebook in copied] == ["lesson 00", "lesson 01", "exercise 01"]
    assert all(notebook.copy.is_file() for notebook in copied) and newer == []
    assert lab.copy_missing(clone) == ([], [])
    assert lab.report([], []) == ""


def test_what_the_learner_wrote_is_never_overwritten(clone: Path) -> None:
    lab.copy_missing(clone)
    mine = clone / "my_work" / "notebooks" / "01_count.ipynb"
    write_notebook(mine, "my own words")
    write_notebook(clone / "notebooks" / "01_count.ipynb", "a newer lesson")
    lab.copy_missing(clone)
    assert markdown(mine) == "my own words"


def test_a_newer_version_is_reported_until_it_is_taken(clone: Path) -> None:
    lab.copy_missing(clone)
    write_notebook(clone / "notebooks" / "01_count.ipynb", "a newer lesson")
    for _ in range(2):
        copied, newer = lab.copy_missing(clone)
        assert copied == [] and [notebook.title for notebook in newer] == ["lesson 01"]
    assert "make fresh LESSON=01" in lab.report(copied, newer)
    lab.fresh("01", clone)
    assert lab.copy_missing(clone) == ([], [])


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


@pytest.mark.parametrize("lesson", ["07", "", "seven", "1x"])
def test_a_lesson_that_does_not_exist_gets_the_list_of_those_that_do(clone: Path, lesson: str) -> None:
    with pytest.raises(lab.LabError, match="00, 01"):
        lab.fresh(lesson, clone)


def test_a_clone_without_lessons_says_so(tmp_path: Path) -> None:
    with pytest.raises(lab.LabError, match="make build"):
        lab.copy_missing(tmp_path)


def test_links_are_the_same_places_seen_from_the_copy(clone: Path) -> None:
    lab.copy_missing(clone)
    text = markdown(clone / "my_work" / "notebooks" / "01_count.ipynb")
    assert "[term](../../glossary.md#bit)" in text
    assert "[your turn](../exercises/01_count.ipynb)" in text
    assert "(https://example.org/../x)" in text
    assert 'src="../../models/picture.png"' in text


@pytest.mark.parametrize("place", ["my_work", "elsewhere/deep/down"])
def test_links_of_the_small_course_resolve_wherever_the_copies_are(clone: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("COURSE_WORK", str(clone / place))
    copied, _ = lab.copy_missing(clone)
    checked = [target for notebook in copied for path in (notebook.path, notebook.copy) for target in assert_links_resolve(path)]
    assert len(checked) == 2 * 5


def assert_links_resolve(path: Path) -> list[str]:
    links = RELATIVE_LINK.findall(markdown(path))
    broken = [link for link in links if not (path.parent / link).exists()]
    assert broken == [], f"{path} has broken links"
    return links


@pytest.mark.parametrize("folder", lab.FOLDERS)
def test_links_of_the_real_course_resolve_from_both_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setenv("COURSE_WORK", str(tmp_path))
    lab.copy_missing()
    notebooks = [notebook for notebook in lab.shipped() if notebook.path.parent.name == folder]
    assert notebooks
    for notebook in notebooks:
        assert len(assert_links_resolve(notebook.path)) == len(assert_links_resolve(notebook.copy))


def test_a_copy_is_the_shipped_notebook_but_for_its_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSE_WORK", str(tmp_path))
    for notebook in lab.copy_missing()[0]:
        ours, theirs = (nbformat.read(path, as_version=4) for path in (notebook.path, notebook.copy))
        nbformat.validate(theirs)
        for mine, copied in zip(ours.cells, theirs.cells, strict=True):
            if mine.cell_type == "markdown":
                mine.source = copied.source
        assert ours == theirs


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"notebooks/01_count.ipynb": 7}'])
def test_a_damaged_record_loses_no_copy(clone: Path, damage: str) -> None:
    lab.copy_missing(clone)
    mine = clone / "my_work" / "notebooks" / "01_count.ipynb"
    write_notebook(mine, "my own words")
    (clone / "my_work" / lab.RECORD).write_text(damage, encoding="utf-8")
    lab.copy_missing(clone)
    assert markdown(mine) == "my own words"


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
    assert failures == 4  # a lesson and its exercise, each with a note in the record


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
    assert set(json.loads((tmp_path / lab.RECORD).read_text(encoding="utf-8"))) == {notebook.key for notebook in lab.shipped()}


def test_the_command_takes_a_fresh_lesson_and_refuses_an_unknown_one(tmp_path: Path) -> None:
    run("--copy-only", work=tmp_path)
    done = run("--fresh", "00", work=tmp_path)
    assert done.returncode == 0 and date.today().isoformat() in done.stdout
    refused = run("--fresh", "99", work=tmp_path)
    assert refused.returncode == 1 and refused.stdout == "" and refused.stderr.count("\n") == 1


def test_jupyterlab_opens_the_first_lesson_and_asks_nothing(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jupyterlab import labapp

    calls: list[list[str]] = []
    monkeypatch.setattr(labapp, "main", calls.append)
    monkeypatch.setenv("COURSE_WORK", str(clone / "my_work"))
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", str(clone))
    assert lab.main(["--no-browser", "--", "--port=9999"]) == 0
    assert calls == [
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
def test_the_clone_is_the_root_where_the_copies_are_in_it(monkeypatch: pytest.MonkeyPatch, work: str) -> None:
    from jupyterlab import labapp

    calls: list[list[str]] = []
    monkeypatch.setattr(labapp, "main", calls.append)
    monkeypatch.setenv("COURSE_WORK", str(ROOT / work))
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "")
    lab.open_jupyterlab([])
    start = f"--LabApp.default_url=/lab/tree/{quote(work)}/notebooks/00_start_here.ipynb"
    assert calls == [[f"--ServerApp.root_dir={ROOT}", start]]


def test_starting_needs_nothing_heavy() -> None:
    program = "import sys, course_utils.lab; print([name for name in ('torch', 'jupyterlab', 'numpy', 'nbformat') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
