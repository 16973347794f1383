"""The course as a learner meets it: JupyterLab as `make lab` starts it, in a Chromium, by clicks and keys.

    make test-browser

A headless Chromium of the system, driven by Playwright, opens the page that JupyterLab would open, runs the first lesson from the menu,
follows its link to an exercise, types a wrong and then a right answer, follows the links of the glossary, and looks at every lesson.
What it saw is kept in ``screenshots/``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from course_utils import ROOT, lab
from course_utils.questions import NumberQuestion, find

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("quic", "background-networking", "component-update", "sync", "gpu")
FLAGS = ["--no-first-run", *(f"--disable-{feature}" for feature in QUIET)]
SCREENSHOTS = ROOT / "screenshots"
SECONDS = 1000  # Playwright counts in milliseconds
START = 120 * SECONDS
RUN = 300 * SECONDS

LESSON = "00_start_here"
ANSWER = "The answer is 4."
QUESTION = find("01.1")

RED = '[data-mime-type="application/vnd.jupyter.error"], [data-mime-type="application/vnd.jupyter.stderr"]'
NOTICE = ".jp-Dialog, .Toastify__toast, .jp-toast"

NOT_A_LEARNERS = {"@jupyter/nbgrader": True, "jupyterlab-jupytext": True}  # extensions that come with what only maintainers install

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")


@pytest.fixture(scope="module")
def work() -> Iterator[Path]:
    """A learner's folder that is new, and inside the clone as my_work/ is, so that links are the same."""
    (ROOT / "build").mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="browser-", dir=ROOT / "build"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def first_page(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start JupyterLab for a newcomer, who has no settings; the address that it hands to the browser."""
    folder = tmp_path_factory.mktemp("jupyter")
    handed_over = folder / "address"
    recorder = folder / "record.py"
    recorder.write_text(f"import pathlib, sys\npathlib.Path({str(handed_over)!r}).write_text(sys.argv[1])\n", encoding="utf-8")
    settings = folder / "CONFIG" / "labconfig" / "page_config.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"disabledExtensions": NOT_A_LEARNERS}), encoding="utf-8")
    environment = {
        **os.environ,
        "COURSE_WORK": str(work),
        "BROWSER": f"{sys.executable} {recorder} %s",
        **{f"JUPYTER_{name}_DIR": str(folder / name) for name in ("CONFIG", "DATA", "RUNTIME")},
        **{f"JUPYTERLAB_{name}_DIR": str(folder / name) for name in ("SETTINGS", "WORKSPACES")},
    }
    options = ["--allow-root"] if os.geteuid() == 0 else []
    log = folder / "log"
    with log.open("w", encoding="utf-8") as output:
        command = [sys.executable, "-m", "course_utils.lab", "--", "--port=0", *options]
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        deadline = time.monotonic() + START / SECONDS
        while not (handed_over.exists() and handed_over.read_text(encoding="utf-8")):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.2)
        yield handed_over.read_text(encoding="utf-8")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


@pytest.fixture(scope="module")
def page(first_page: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page of a Chromium with a new profile, on what JupyterLab opened."""
    shutil.rmtree(SCREENSHOTS, ignore_errors=True)
    flags = FLAGS + (["--no-sandbox"] if os.geteuid() == 0 else [])
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=CHROMIUM,
            headless=True,
            args=flags,
            viewport={"width": 1400, "height": 1000},
        )
        page = context.new_page()
        page.set_default_timeout(START)
        page.goto(first_page)
        yield page
        context.close()


@pytest.fixture(autouse=True)
def last_sight(page: Page, request: pytest.FixtureRequest) -> Iterator[None]:
    """Keep a picture of how each test ended: the place to look when it failed."""
    yield
    photograph(page, request.node.name)


def photograph(page: Page, name: str) -> None:
    """Keep a picture of the page, once it has drawn what has scrolled in."""
    page.wait_for_timeout(500)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def notebook(page: Page, name: str) -> Locator:
    """The notebook ``name``, open in front, with its kernel ready."""
    tab = page.locator(".lm-DockPanel-tabBar .lm-TabBar-tab.lm-mod-current", has_text=f"{name}.ipynb")
    expect(tab).to_be_visible(timeout=START)
    panel = page.locator(f'[id="{tab.get_attribute("data-id")}"]')
    expect(panel.locator(".jp-Cell").first).to_be_visible(timeout=START)
    expect(panel.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]')).to_be_visible(timeout=START)
    return panel


def visit(page: Page, work: Path, lesson: str) -> Locator:
    """The learner's copy of a lesson, opened by its address."""
    page.wait_for_url("http://**/lab/**")
    base = page.url.split("/lab/")[0]
    page.goto(f"{base}/lab/tree/{work.relative_to(ROOT).as_posix()}/notebooks/{lesson}.ipynb")
    return notebook(page, lesson)


def choose(page: Page, menu: str, item: str) -> None:
    """Click an item of a menu."""
    page.locator(".lm-MenuBar-itemLabel", has_text=re.compile(f"^{menu}$")).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{item}$")).click()


def run_all(page: Page, panel: Locator, code_cells: int) -> None:
    """Run > Run All Cells, and wait until the last cell has its number; nothing on the page is red.

    JupyterLab drops the order, without a word, while a kernel that calls itself idle is still being connected.
    So, like a learner, click again.
    """
    begun = panel.locator(".jp-InputPrompt", has_text=re.compile(r"\[(\*|\d+)\]:")).first
    for _ in range(5):
        choose(page, "Run", "Run All Cells")
        with contextlib.suppress(AssertionError):
            expect(begun).to_be_attached(timeout=15 * SECONDS)
            break
    finished = panel.locator(".jp-CodeCell").last.locator(".jp-InputPrompt", has_text=f"[{code_cells}]:")
    expect(finished.or_(panel.locator(RED)).first).to_be_attached(timeout=RUN)
    assert panel.locator(RED).all_inner_texts() == []
    expect(panel.locator(".jp-InputPrompt", has_text="[*]:")).to_have_count(0)


def saved(page: Page, path: Path) -> nbformat.NotebookNode:
    """Save from the menu; the notebook as it is then on the disk."""
    before = path.stat().st_mtime_ns
    choose(page, "File", "Save Notebook")
    deadline = time.monotonic() + 30
    while path.stat().st_mtime_ns == before and time.monotonic() < deadline:
        page.wait_for_timeout(200)
    return nbformat.read(path, as_version=4)


def code_cells(content: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in content.cells if cell.cell_type == "code"]


def errors(content: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [out for cell in code_cells(content) for out in cell.outputs if out.output_type == "error" or out.get("name") == "stderr"]


def cell(panel: Locator, words: str) -> Locator:
    """The first code cell whose text contains ``words``."""
    return panel.locator(".jp-CodeCell", has=panel.page.locator(".cm-content", has_text=words)).first


def answer(panel: Locator, question: NumberQuestion, value: float) -> str:
    """Type ``value`` as the answer to ``question`` and run it and its check; the verdict on the page."""
    panel.locator(".jp-CodeCell .cm-content", has_text=re.compile(rf"^{question.name} = ")).first.click()
    keyboard = panel.page.keyboard
    keyboard.press("ControlOrMeta+a")
    keyboard.insert_text(f"{question.name} = {value}")
    keyboard.press("Shift+Enter")
    check = cell(panel, f'check("{question.id}"')
    number = check.locator(".jp-InputPrompt").inner_text()
    keyboard.press("Shift+Enter")
    expect(check.locator(".jp-InputPrompt")).not_to_have_text(number)
    expect(check.locator(".jp-InputPrompt")).to_have_text(re.compile(r"\[\d+\]:"))
    return check.locator(".jp-OutputArea-output").inner_text().strip()


def test_the_first_lesson_runs_from_the_menu(page: Page, work: Path) -> None:
    panel = notebook(page, LESSON)
    photograph(page, "opened")
    expect(page.locator(NOTICE)).to_have_count(0)

    path = work / "notebooks" / f"{LESSON}.ipynb"
    count = len(code_cells(nbformat.read(path, as_version=4)))
    choose(page, "Edit", "Clear Outputs of All Cells")
    expect(panel.locator(".jp-OutputArea-output")).to_have_count(0)
    run_all(page, panel, count)
    photograph(page, "lesson_run")

    output = panel.locator(".jp-OutputArea-output", has_text=ANSWER).first
    output.scroll_into_view_if_needed()
    expect(output).to_be_visible()
    photograph(page, "lesson_answer")
    expect(page.locator(NOTICE)).to_have_count(0)
    content = saved(page, path)
    assert [cell.execution_count for cell in code_cells(content)] == list(range(1, count + 1))
    assert errors(content) == []


def test_an_exercise_tells_a_wrong_answer_from_a_right_one(page: Page, work: Path) -> None:
    assert isinstance(QUESTION, NumberQuestion)
    link = notebook(page, LESSON).locator('a[href*="exercises/01_count_the_bits.ipynb"]').first
    link.scroll_into_view_if_needed()
    link.click()
    panel = notebook(page, "01_count_the_bits")
    path = work / "exercises" / "01_count_the_bits.ipynb"
    run_all(page, panel, len(code_cells(nbformat.read(path, as_version=4))))
    photograph(page, "exercise_unsolved")

    mistake = QUESTION.mistakes[0]
    wrong = answer(panel, QUESTION, mistake.wrong)
    photograph(page, "exercise_wrong")
    right = answer(panel, QUESTION, QUESTION.answer)
    photograph(page, "exercise_right")
    assert mistake.message in wrong
    assert right == f"{QUESTION.id} correct."
    expect(panel.locator(RED)).to_have_count(0)
    assert errors(saved(page, path)) == []


def test_the_glossary_leads_to_the_learners_own_lessons(page: Page, work: Path) -> None:
    """Not to those of the clone, which JupyterLab would change when it saves."""
    visit(page, work, LESSON).locator('a[href*="glossary.md"]').first.click()
    page.locator('.jp-MarkdownViewer a[href*="02_round_to_a_grid.ipynb"]').first.click()
    notebook(page, "02_round_to_a_grid")
    mine, shipped = (folder / "notebooks" / "02_round_to_a_grid.ipynb" for folder in (work, ROOT))
    before = mine.stat().st_mtime_ns, shipped.stat().st_mtime_ns
    saved(page, mine)
    assert mine.stat().st_mtime_ns > before[0] and shipped.stat().st_mtime_ns == before[1]


@pytest.mark.parametrize("lesson", [notebook.path.stem for notebook in lab.shipped() if notebook.path.parent.name == "notebooks"])
def test_a_lesson_as_it_is_stored_looks_right(page: Page, work: Path, lesson: str) -> None:
    panel = visit(page, work, lesson)
    pages = panel.locator(".jp-WindowedPanel-outer")
    for number in range(1, 100):
        photograph(page, f"{lesson}_{number:02d}")
        for picture in panel.locator("img").all():
            assert picture.evaluate("image => image.complete && image.naturalWidth > 0")
        before = pages.evaluate("shown => shown.scrollTop")
        pages.evaluate("shown => shown.scrollBy(0, 0.9 * shown.clientHeight)")
        if pages.evaluate("shown => shown.scrollTop") == before:
            break
    expect(panel.locator(RED)).to_have_count(0)
    expect(page.locator(NOTICE)).to_have_count(0)
