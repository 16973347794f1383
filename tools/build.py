"""Build the notebooks from ``source/``: ``python -m tools.build [NN ...] [--force | --check]``.

``tools.convert`` says what each source file should give. ``difference`` compares that with what is there; only where they differ is a
notebook executed (``execute``) and written. ``tools.check`` (``--check``) does the first two steps and never executes anything.

Building twice, or one lesson alone, gives the same bytes: cell ids are hashes, no times, paths or versions are kept, and the kernel runs
with one thread, without a network or a GPU, in a temporary folder, away from a learner's files. Each notebook's metadata records the
sha256 of its source and of its outputs, by which a changed source and a hand-edited output are known. A cell tagged ``hardware`` may
print something else at each run: its stored output stays as long as no code up to it changes.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from traitlets.config import Config

from tools.convert import BuildError, Project, code_cells, digest_of_outputs, notebooks_of, quoted

CELL_SECONDS = 600
NOT_A_NOTEBOOK = (KeyError, AttributeError, TypeError, ValueError, nbformat.ValidationError)
"""What reading a file that is no notebook, or a damaged one, raises."""
KERNELS_AT_ONCE = min(4, os.cpu_count() or 1)
PARSING = threading.Lock()
"""In Python 3.11 ``ast.parse`` in two threads at once can end in a SystemError (https://github.com/python/cpython/issues/106905)."""


def difference(path: Path, wanted: NotebookNode) -> str:
    """How the notebook at ``path`` differs from what its source gives; empty if it does not."""
    if not path.exists():
        return "missing: never built, run `make build`"
    try:
        text = path.read_bytes().decode("utf-8")
        built = nbformat.reads(text, as_version=4)
        recorded = built.metadata["four_bits"]
        if recorded["source"] != wanted.metadata["four_bits"]["source"]:
            return "stale: its source has changed, run `make build`"
        if recorded["outputs"] != digest_of_outputs(built):
            return "edited by hand: outputs or counts are not those that were recorded; edit the source, run `make build`"
        unedited = copy.deepcopy(wanted)
        unedited.metadata["four_bits"]["outputs"] = recorded["outputs"]
        for cell, there in zip(code_cells(unedited), code_cells(built), strict=False):
            cell.execution_count, cell.outputs = there.execution_count, there.outputs
        if text != as_text(unedited):
            changed = [number for number, pair in enumerate(zip(unedited.cells, built.cells, strict=False), 1) if pair[0] != pair[1]]
            where = f"cell {changed[0]}" if changed else "the metadata, the number of cells or the layout"
            return f"edited by hand: {where} is not what the source and its questions give; edit those, run `make build`"
    except NOT_A_NOTEBOOK:
        return "edited by hand: no longer a notebook as the builder writes them; edit the source, run `make build`"
    return ""


def kernel_environment(folder: Path) -> dict[str, str]:
    """The variables under which the course's notebooks run when built and when tested: what they write goes to ``folder``."""
    dropped = {"COURSE_MODEL", "COURSE_GRADED", "MPLBACKEND", "PYTHONSTARTUP", "TRANSFORMERS_VERBOSITY"}
    inherited = {name: value for name, value in os.environ.items() if name not in dropped}
    return inherited | {
        "COURSE_WORK": str(folder / "my_work"),
        "IPYTHONDIR": str(folder / "ipython"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def kernel_sockets(folder: Path) -> Config:
    """Let a kernel be spoken to through Unix sockets in ``folder``, where there are such.

    A TCP port is chosen some time before the kernel takes it, so that of two kernels started at once, by two processes, one may find
    its port taken and die (https://github.com/jupyter/jupyter_client/issues/487). A name of 100 characters is near the limit of macOS.
    """
    name = str(folder / "kernel")
    return Config(KernelManager={"transport": "ipc", "ip": name}) if os.name == "posix" and len(name) < 100 else Config()


def execute(notebook: NotebookNode, root: Path) -> None:
    """Run all cells in a fresh kernel, in a temporary folder; record counts 1..n and outputs in place. Raises ``BuildError``."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        here = Path(temporary, "here")
        here.mkdir()
        local = [path for path in (temporary, str(root), sys.prefix, str(Path.home())) if len(path) > 3]
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=CELL_SECONDS,
            record_timing=False,
            resources={"metadata": {"path": str(here)}},
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
            config=kernel_sockets(Path(temporary)),
        )
        with ExitStack() as stack:
            try:
                stack.enter_context(client.setup_kernel(env=kernel_environment(Path(temporary)) | {"CUDA_VISIBLE_DEVICES": "-1"}))
            except RuntimeError as error:
                raise BuildError(f"its kernel did not start: {error}") from error
            count = 0
            for position, cell in enumerate(notebook.cells):
                if cell.cell_type != "code":
                    continue
                count += 1
                try:
                    client.execute_cell(cell, position, execution_count=count)
                except CellExecutionError as error:
                    raise BuildError(f"In [{count}] raised {error.ename}: {error.evalue}\n{quoted(cell.source)}") from error
                except (CellTimeoutError, DeadKernelError) as error:
                    raise BuildError(f"In [{count}] did not finish: {error}\n{quoted(cell.source)}") from error
                cell.outputs = tidy(cell.outputs)
                for path in local:
                    if json.dumps(path, ensure_ascii=False)[1:-1] in json.dumps(cell.outputs, ensure_ascii=False):
                        raise BuildError(f"In [{count}] prints {path}, which is a path of this machine only\n{quoted(cell.source)}")
    notebook.metadata["four_bits"]["outputs"] = digest_of_outputs(notebook)


def keep_hardware_outputs(notebook: NotebookNode, path: Path) -> None:
    """In a notebook just executed, put back the outputs of hardware cells that are stored at ``path``, up to the first changed code cell.

    So a new sentence in a lesson does not bring new times and new figures along. To have them anew, delete the notebook and build it.
    """
    try:
        stored = nbformat.read(path, as_version=4)
        if stored.metadata["four_bits"]["outputs"] != digest_of_outputs(stored):
            return
        for cell, there in zip(code_cells(notebook), code_cells(stored), strict=False):
            if cell.source != there.source:
                break
            if "hardware" in cell.metadata.get("tags", []):
                cell.outputs = there.outputs
    except (FileNotFoundError, *NOT_A_NOTEBOOK):
        return
    notebook.metadata["four_bits"]["outputs"] = digest_of_outputs(notebook)


def tidy(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Neighbouring pieces of a stream joined (where they break is chance); of a traceback only the last line (the rest has paths)."""
    tidied: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "error":
            output.traceback = [f"{output.ename}: {output.evalue}"]
        if output.output_type == "stream" and tidied and tidied[-1].get("name") == output.name:
            tidied[-1].text += output.text
        else:
            tidied.append(output)
    return tidied


def as_text(notebook: NotebookNode) -> str:
    """The text of a notebook's file."""
    return nbformat.writes(notebook, version=4) + "\n"


def write(path: Path, notebook: NotebookNode) -> None:
    """Write a notebook so that a crash leaves either the old file or the new one. Raises ``BuildError`` where it can't be written."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(as_text(notebook), encoding="utf-8", newline="\n")
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise BuildError(f"{path.parent.name}/{path.name} can't be written: {error.strerror}") from error


def build_source(project: Project, source: Path, force: bool = False) -> list[Path]:
    """Build what differs of that which one source file gives: all of it or, on a ``BuildError``, nothing. Returns what was written."""
    with PARSING:
        wanted = notebooks_of(project, source)
    changed = {path: notebook for path, notebook in wanted.items() if force or difference(path, notebook)}
    for path, notebook in changed.items():
        if path.parent.name != "exercises":
            try:
                execute(notebook, project.root)
            except BuildError as error:
                raise BuildError(f"{project.name(source)}: {error}") from error
            keep_hardware_outputs(notebook, path)
    for path, notebook in changed.items():
        write(path, notebook)
    return list(changed)


def build(project: Project, lessons: Sequence[str] = (), force: bool = False) -> list[Path]:
    """Build all sources, or those whose names begin with one of ``lessons``. Returns what was written.

    Raises one ``BuildError`` with a paragraph for each source that failed; the others are built.
    """
    chosen = [path for path in project.sources() if not lessons or path.name.startswith(tuple(lessons))]
    if not chosen:
        raise BuildError(f"source/ holds no lesson or exercise {' '.join(lessons)}")
    written: list[Path] = []
    failures: list[str] = []

    def attempt(source: Path) -> None:
        start = time.perf_counter()
        try:
            paths = build_source(project, source, force)
        except BuildError as error:
            failures.append(str(error))
            return
        written.extend(paths)
        if paths:
            print(f"{' '.join(project.name(path) for path in paths)}  built in {time.perf_counter() - start:.1f} s", flush=True)

    with ThreadPoolExecutor(KERNELS_AT_ONCE) as pool:
        list(pool.map(attempt, chosen))
    if failures:
        raise BuildError("\n".join(sorted(failures)))
    return sorted(written)


def main(arguments: Sequence[str] | None = None, project: Project | None = None) -> int:
    """The command line. The exit status is 1 if something could not be built or, with ``--check``, differs."""
    parser = argparse.ArgumentParser(prog="python -m tools.build", description="Build notebooks/, solutions/ and exercises/ from source/.")
    parser.add_argument("lessons", nargs="*", metavar="NN", help="build only the lessons and exercises whose names begin so, such as 01")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--force", action="store_true", help="execute again what has not changed, too")
    action.add_argument("--check", action="store_true", help="execute nothing; name each difference between source and built")
    options = parser.parse_args(arguments)
    project = project or Project()
    if options.check and options.lessons:
        parser.error("--check looks at everything: name no lessons with it")
    if options.check:
        from tools.check import problems

        found = problems(project)
        print("\n".join(found) or "What is built is what source/ gives.")
        return 1 if found else 0
    try:
        written = build(project, options.lessons, options.force)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    if not written:
        print("Nothing to do: what is built is what source/ gives.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
