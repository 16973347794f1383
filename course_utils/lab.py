"""Open the course: copy the lessons and exercises for the learner, then start JupyterLab on the first one.

    python -m course_utils.lab                  copy what is missing, open JupyterLab
    python -m course_utils.lab --copy-only      copy what is missing, stop there
    python -m course_utils.lab --fresh 03       set the copies of lesson 03 aside and take new ones
    python -m course_utils.lab -- --port=9999   what follows -- goes to JupyterLab

The learner works on copies in ``my_work/`` (or in the folder that the variable ``COURSE_WORK`` names). So the clone stays clean, and an
update never conflicts with the learner's work. Nothing in ``my_work/`` is ever overwritten or deleted. The glossary is copied too: its
links then lead to the learner's lessons, not to those of the clone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import quote

from course_utils import ROOT, work_folder

FOLDERS = ("notebooks", "exercises")
"""What is copied: the folders have the same names in the clone and in the learner's folder."""

GLOSSARY = "glossary.md"
"""The page that lessons lead to and that leads back to lessons. It is copied too, again after each update."""

SETTINGS = Path(__file__).parent / "jupyter"
"""JupyterLab looks for its settings here first, and then among the learner's own."""

LINK = re.compile(r"""(\]\(|^\[[^\]\n]+\]:[ \t]*|\b(?:href|src)=["'])(\.\./[^)\s"'#]*)""", re.MULTILINE)
"""A relative link that leaves the folder, in Markdown or HTML: what stands before its path, and the path."""


class LabError(Exception):
    """Something that the learner can put right. Its text is what happened and what to do."""


@dataclass(frozen=True)
class Shipped:
    """One notebook of the course and the learner's copy of it."""

    path: Path
    """The notebook in the clone."""
    copy: Path
    """Where the learner's copy is, or will be."""

    @property
    def number(self) -> str:
        """``"03"`` for ``03_quantize_in_blocks.ipynb``."""
        return self.path.stem.split("_")[0]

    @property
    def title(self) -> str:
        """``"lesson 03"`` or ``"exercise 03"``, as the messages say it."""
        return f"{'lesson' if self.path.parent.name == 'notebooks' else 'exercise'} {self.number}"


def version_of(notebook: Path) -> Any:
    """What the builder noted in a notebook of what it was built from; `None` where there is no such note, or no notebook.

    A learner's copy keeps the note, whatever is written and run in it. So a copy says itself which version it comes from.
    """
    try:
        return json.loads(notebook.read_text(encoding="utf-8"))["metadata"]["four_bits"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def shipped(root: Path = ROOT) -> list[Shipped]:
    """All lessons and exercises of the clone in ``root``, in order. Raises `LabError` if there is no lesson."""
    work = work_folder()
    found = [Shipped(path, work / folder / path.name) for folder in FOLDERS for path in sorted((root / folder).glob("[0-9]*.ipynb"))]
    if not found:
        raise LabError(f"{root} holds no lessons: clone the course again, or run `make build` if you changed its source.")
    return found


def copy_missing(root: Path = ROOT) -> tuple[list[Shipped], list[Shipped]]:
    """Copy every notebook of which the learner has no copy yet; overwrite nothing.

    Returns two lists: what was copied now, and what has changed in the clone since the learner's copy was taken.
    A copy that doesn't say what it was taken from is among the latter. Raises `LabError` if the learner's folder cannot be written.
    """
    copied, newer = [], []
    for notebook in shipped(root):
        if not notebook.copy.exists():
            take(notebook)
            copied.append(notebook)
        elif version_of(notebook.copy) != version_of(notebook.path):
            newer.append(notebook)
    return copied, newer


def refresh_glossary(root: Path = ROOT) -> Path | None:
    """Let the learner's copy of the glossary be that of the clone; return where an earlier one was set aside, if there was another.

    Raises `LabError` if the learner's folder cannot be written.
    """
    text = (root / GLOSSARY).read_text(encoding="utf-8")
    copy = work_folder() / GLOSSARY
    with contextlib.suppress(OSError):
        if copy.read_bytes() == text.encode("utf-8"):
            return None
    return put(copy, text)


def fresh(lesson: str, root: Path = ROOT) -> list[tuple[Shipped, Path | None]]:
    """Set the learner's copies of one lesson and its exercise aside, under a dated name, and take new ones.

    ``lesson`` is a number (``"3"``, ``"03"``) or a name (``"03_quantize_in_blocks"``). Returns what was taken, each with the path of the
    copy set aside (``None`` where there was none). Raises `LabError` for a lesson that does not exist.
    """
    everything = shipped(root)
    wanted = lesson.strip()
    number, *words = wanted.split("_", 1)
    name = "_".join([number.zfill(2), *words])
    chosen = [notebook for notebook in everything if wanted and name in (notebook.number, notebook.path.stem)]
    if not chosen:
        names = sorted({notebook.path.stem for notebook in everything})
        problem = f"There is no lesson {lesson!r}" if wanted else "No lesson was named"
        raise LabError(f"{problem}; the lessons are {', '.join(names)}: name one of them, as in `make fresh LESSON={names[0][:2]}`.")
    return [(notebook, take(notebook)) for notebook in chosen]


def take(notebook: Shipped) -> Path | None:
    """Write the learner's copy of ``notebook``; return where an earlier copy was set aside."""
    return put(notebook.copy, with_moved_links(notebook.path.read_text(encoding="utf-8"), notebook))


def put(copy: Path, text: str) -> Path | None:
    """Write ``text`` to the file ``copy`` in the learner's folder; return where an earlier file of that name was set aside.

    The new file is complete on the disk before the earlier one is touched, so a full disk loses nothing. Raises `LabError` where it
    cannot be written.
    """
    aside = None
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        part = write_beside(copy, text)
        if copy.exists():
            aside = unused_name(copy)
            copy.rename(aside)
        os.replace(part, copy)
    except OSError as error:
        reason = error.strerror or str(error)
        raise LabError(
            f"{work_folder()} could not be written ({reason}): free some space, or make the folder writable, and run the command again; "
            "nothing of yours was lost."
        ) from error
    return aside


def write_beside(path: Path, text: str) -> Path:
    """Write ``text`` to a file beside ``path``, wait until the disk has it, and return that file; leave nothing behind if that fails."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    return part


def unused_name(copy: Path) -> Path:
    """A dated name beside ``copy`` that no file has: ``03_name.2026-11-21.ipynb``, then ``03_name.2026-11-21-2.ipynb``, ..."""

    def names() -> Iterator[Path]:
        today = date.today().isoformat()
        yield copy.with_name(f"{copy.stem}.{today}{copy.suffix}")
        count = 2
        while True:
            yield copy.with_name(f"{copy.stem}.{today}-{count}{copy.suffix}")
            count += 1

    return next(name for name in names() if not name.exists())


def with_moved_links(text: str, notebook: Shipped) -> str:
    """The text of a notebook with its relative links pointing from the learner's copy to where they pointed from the clone.

    Links to lessons, exercises and the glossary stay as they are, since the learner has those too.
    """
    content = json.loads(text)
    old, new = notebook.path.parent, notebook.copy.parent
    for cell in content["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = moved_links("".join(cell["source"]), old, new, (*FOLDERS, GLOSSARY)).splitlines(keepends=True)
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def moved_links(markdown: str, old: Path, new: Path, copied: tuple[str, ...] = FOLDERS) -> str:
    """``markdown`` with every link that leaves the folder ``old`` rewritten for the folder ``new``; but not the links to what was copied.

    ``old`` and ``new`` stand in two folders; ``copied`` are the names that are found in both. From one drive of Windows to another there
    is no relative link: there it becomes an absolute one.

    >>> clone = Path("/course")
    >>> moved_links("a [card](../models/abacus/README.md#size)", clone / "notebooks", clone / "my_work" / "notebooks")
    'a [card](../../models/abacus/README.md#size)'
    >>> moved_links("[try it](../exercises/01_x.ipynb)", clone / "notebooks", clone / "my_work" / "notebooks")
    '[try it](../exercises/01_x.ipynb)'
    """

    def move(link: re.Match[str]) -> str:
        before, path = link.groups()
        if path.split("/")[1] in copied:
            return link[0]
        target = os.path.normpath(old / path)
        with contextlib.suppress(ValueError):
            target = os.path.relpath(target, new)
        return before + Path(target).as_posix() + ("/" if path.endswith("/") else "")

    return LINK.sub(move, markdown)


def report(copied: list[Shipped], newer: list[Shipped], old_glossary: Path | None = None) -> str:
    """What the learner reads before JupyterLab opens; empty when there is nothing to say."""
    lines = []
    if copied:
        count = len(copied)
        lines.append(f"Copied {count} notebook{'' if count == 1 else 's'} into {work_folder()}: that is where you work.")
    if old_glossary:
        lines.append(f"The glossary is new: {old_glossary.with_name(GLOSSARY)}; your earlier one is kept as {old_glossary.name}.")
    for notebook in newer:
        if version_of(notebook.copy):
            found = f"A newer version of {notebook.title} than your copy has come with an update."
        else:
            found = f"Your copy of {notebook.title} doesn't say which version it comes from; there may be a newer one."
        lines.append(
            f"{found} To take it: make fresh LESSON={notebook.number} (or python -m course_utils.lab --fresh {notebook.number}). "
            "Your copy is then set aside, not deleted."
        )
    return "\n".join(lines)


def open_jupyterlab(options: list[str]) -> None:
    """Start JupyterLab on the learner's first lesson and return when it ends. ``options`` are those of ``jupyter lab``.

    The clone is the root folder, so that the links from the copies to the rest of the course work. (If ``COURSE_WORK`` names a folder
    outside the clone, that folder is the root, and links lead no further than the learner's copies.) ``SETTINGS`` switches off
    JupyterLab's announcements: its question whether to fetch news, and its search for updates.

    What the kernels inherit: the clone comes first on their path, because the installed package leads to where the clone was when it
    was set up, and it may have been renamed since. And transformers logs what it logs by default, since lessons 10 and 11 print that.
    """
    from jupyterlab.labapp import main

    for name, ours in (("JUPYTER_CONFIG_PATH", SETTINGS), ("PYTHONPATH", ROOT)):
        os.environ[name] = os.pathsep.join(filter(None, [str(ours), os.environ.get(name)]))
    os.environ.pop("TRANSFORMERS_VERBOSITY", None)
    work = work_folder().resolve()
    root = ROOT if work.is_relative_to(ROOT) else work
    first_lesson = work / shipped()[0].copy.relative_to(work_folder())
    first = quote(first_lesson.relative_to(root).as_posix())
    main([f"--ServerApp.root_dir={root}", f"--LabApp.default_url=/lab/tree/{first}", *options])


def command_line() -> argparse.ArgumentParser:
    """The options that the top of this file shows."""
    parser = argparse.ArgumentParser(prog="python -m course_utils.lab", description="Copy the lessons and open JupyterLab.")
    parser.add_argument("--copy-only", action="store_true", help="copy what is missing and do not open JupyterLab")
    parser.add_argument("--fresh", metavar="LESSON", help="set your copies of this lesson aside, take new ones, and stop there")
    parser.add_argument("--no-browser", action="store_true", help="start JupyterLab but let me open its address myself")
    parser.add_argument("options", nargs="*", metavar="-- OPTION", help="options of `jupyter lab`, after --")
    return parser


def main(words: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = command_line().parse_args(words)
    try:
        if arguments.fresh is not None:
            for notebook, aside in fresh(arguments.fresh):
                kept = f"; yours is kept as {aside.name}" if aside else ""
                print(f"{notebook.title.capitalize()} is new: {notebook.copy}{kept}.")
            return 0
        text = report(*copy_missing(), refresh_glossary())
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    if text:
        print(text, flush=True)
    if not arguments.copy_only:
        open_jupyterlab((["--no-browser"] if arguments.no_browser else []) + arguments.options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
