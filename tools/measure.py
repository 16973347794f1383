"""Measure this machine: ``make measure``. What it finds goes to one file, named after the hardware, in ``my_work/measurements``.

    make measure                      lists the parts with their times, then measures what is missing
    make measure PART=layers          one part; several with commas between them
    make measure OUT=measurements     for those who maintain the course: the file that is committed
    make measure ARGS=--list          the list alone
    make measure ARGS=--again         measure anew what is there already

A part is a row of steps, and a step is what is measured against each other, in turns. When a step is done its records are
written: beside the file, and then into its place, so that the file is whole at every moment. Stop the program when you like,
and call it again: it goes on with the step that was not done. What this machine can't measure is written down, with the reason.

The parts themselves stand in `tools/measure_parts.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from course_utils import ROOT, work_folder
from course_utils.measure import NOISY, SCHEMA_VERSION, MeasurementFileError, Timing, read_file

LIMIT_SECONDS = 480
"""A part stops at the end of a step once it has taken this long; the next call goes on with it."""

BUSY_PERCENT = 25
"""Of the processor, by other programs: from here on a sentence says that times may be spoiled."""

IDENTITY = ("part", "quantity", "of", "format", "path", "compute", "block_size", "batch", "tokens")
"""The fields that say what was measured. No two records of a file agree in all of them."""


class LeftOut(Exception):
    """This machine can't measure that. The text is the reason, as one sentence."""


def identity(quantity: str, of: str, format: str, **others: Any) -> dict[str, Any]:
    """What is to be measured, in the words of the schema; the part is added by its step.

    Raises:
        TypeError: a field that is none of `IDENTITY`.
    """
    if unknown := others.keys() - set(IDENTITY):
        raise TypeError(f"unknown field {sorted(unknown)[0]}")
    given = {"quantity": quantity, "of": of, "format": format, **others}
    return {name: given.get(name) for name in IDENTITY if name != "part"}


def timed(what: dict[str, Any], timing: Timing, unit: str = "ms", scale: float = 1e3, note: str = "") -> dict[str, Any]:
    """The record of a time: `scale` turns its seconds into the unit."""
    low, high = timing.quartiles
    record = what | {
        "unit": unit, "statistic": "median", "value": rounded(scale * timing.median),
        "quartiles": [rounded(scale * low), rounded(scale * high)], "noisy": timing.noisy, "repetitions": len(timing.seconds),
    }  # fmt: skip
    return record | ({"note": note} if note else {})


def counted(what: dict[str, Any], value: float, unit: str, note: str = "") -> dict[str, Any]:
    """The record of something that is counted, and the same each time."""
    return what | {"unit": unit, "statistic": "count", "value": value, "repetitions": 1} | ({"note": note} if note else {})


def averaged(what: dict[str, Any], value: float, standard_error: float, count: int, unit: str) -> dict[str, Any]:
    """The record of a mean over questions."""
    return what | {
        "unit": unit, "statistic": "mean", "value": round(value, 6), "standard_error": round(standard_error, 6), "repetitions": count
    }  # fmt: skip


def left_out(what: dict[str, Any], reason: str) -> dict[str, Any]:
    """What stands in the place of a record that this machine can't have."""
    return what | {"reason": reason}


def rounded(number: float) -> float:
    """To five significant digits, which is more than any clock here is good for."""
    return float(f"{number:.5g}")


# --- Parts and steps ---


@dataclass(frozen=True)
class Step:
    """What is measured in one go.

    Attributes:
        name: for the progress bar.
        finds: the identities of all that it measures or leaves out.
        measure: measures it. Returns a record, or what `left_out` gives, for each identity. Raises `LeftOut` to leave out all of them.
        seconds: an estimate.
    """

    name: str
    finds: Sequence[dict[str, Any]]
    measure: Callable[[], list[dict[str, Any]]]
    seconds: float


@dataclass(frozen=True)
class Part:
    """A row of steps that belong together and take less than eight minutes."""

    name: str
    what: str
    steps: Sequence[Step] = field(repr=False)


def key(found: dict[str, Any]) -> tuple[Any, ...]:
    """The identity of a record, in a form that can be looked up."""
    return tuple(found[name] for name in IDENTITY)


# --- The file of this machine ---


class MachineFile:
    """The file in which one machine's records are kept, and read anew before each change.

    Args:
        folder: where it is; made if need be.
        machine: the hardware, as the schema describes it.
        run: date, command, threads and versions of this call.
        say: takes the sentences that the learner should read.
    """

    def __init__(self, folder: Path, machine: dict[str, Any], run: dict[str, Any], say: Callable[[str], None]) -> None:
        self.machine, self.run = machine, run
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{slug(machine['name'])}.json"
        self.remove_leftovers()
        try:
            self.content()
        except MeasurementFileError as error:
            aside = self.set_aside()
            say(f"{error} It was set aside as {aside.name}, and a new file is begun.")

    def content(self) -> dict[str, Any]:
        """What the file holds now. Raises MeasurementFileError."""
        if not self.path.exists():
            return {"schema": SCHEMA_VERSION, "machine": self.machine, "runs": [], "records": [], "left_out": []}
        return read_file(self.path)

    def done(self) -> set[tuple[Any, ...]]:
        """The identities that were measured, or left out, with these versions and as many threads."""
        content = self.content()
        current = {place for place, run in enumerate(content["runs"]) if self.same_setting(run)}
        return {key(found) for found in content["records"] + content["left_out"] if found["run"] in current}

    def same_setting(self, run: dict[str, Any]) -> bool:
        """Whether a run was made with what is installed now, so that its records stand."""
        return all(run[name] == self.run[name] for name in ("threads", "versions"))

    def add(self, found: Iterable[dict[str, Any]]) -> None:
        """Write down what a step has found, in the place of what was known of the same things."""
        found = list(found)
        content = self.content()
        if self.run not in content["runs"]:
            content["runs"].append(self.run)
        place = content["runs"].index(self.run)
        replaced = {key(one) for one in found}
        for kind in ("records", "left_out"):
            content[kind] = [one for one in content[kind] if key(one) not in replaced]
            content[kind] += [one | {"run": place} for one in found if ("reason" in one) == (kind == "left_out")]
        content["machine"] = self.machine
        self.write(forget_unused_runs(content))

    def write(self, content: dict[str, Any]) -> None:
        """Write beside the file, then move into its place: a kill at any moment leaves the old file or the new one."""
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            with open(beside, "w", encoding="utf-8", newline="\n") as part:
                part.write(as_text(content))
                part.flush()
                os.fsync(part.fileno())
            os.replace(beside, self.path)
        finally:
            beside.unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Remove what a killed run left beside the file."""
        for leftover in self.path.parent.glob(f"{self.path.name}.*.part"):
            process = leftover.name.removesuffix(".part").rpartition(".")[2]
            if not (process.isdigit() and psutil.pid_exists(int(process))):
                leftover.unlink(missing_ok=True)

    def set_aside(self) -> Path:
        """Give a file that can't be used another name. Nothing is deleted."""
        number = 1
        while (aside := self.path.with_name(f"{self.path.stem}-{number}.old")).exists():
            number += 1
        os.replace(self.path, aside)
        return aside


def forget_unused_runs(content: dict[str, Any]) -> dict[str, Any]:
    """Drop the runs of which no record is left, and number the others anew."""
    used = sorted({one["run"] for kind in ("records", "left_out") for one in content[kind]})
    places = {old: new for new, old in enumerate(used)}
    return content | {
        "runs": [content["runs"][old] for old in used],
        **{kind: [one | {"run": places[one["run"]]} for one in content[kind]] for kind in ("records", "left_out")},
    }


def as_text(content: dict[str, Any]) -> str:
    """JSON with one line for each record, so that a change can be read in a diff."""
    lists = {name: content[name] for name in ("runs", "records", "left_out")}
    head = json.dumps({name: content[name] for name in content if name not in lists}, indent=1, ensure_ascii=False)
    body = ",\n".join(
        f' "{name}": [' + (",".join("\n  " + json.dumps(one, ensure_ascii=False) for one in ones) + "\n ]" if ones else "]")
        for name, ones in lists.items()
    )
    return f"{head.removesuffix('}').rstrip()},\n{body}\n}}\n"


# --- This machine ---


def slug(name: str) -> str:
    """The name of a machine as the name of a file.

    >>> slug("AMD EPYC 7B13, 2 cores"), slug("NVIDIA GeForce RTX 4090")
    ('amd-epyc-7b13-2-cores', 'nvidia-geforce-rtx-4090')
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "machine"


def processor_name() -> str:
    """As the system calls the processor; its architecture where the system has no name for it."""
    found = ""
    if platform.system() == "Linux" and (info := Path("/proc/cpuinfo")).is_file():
        match = re.search(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        found = match[1] if match else ""
    elif platform.system() == "Darwin":
        asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
        found = asked.stdout
    elif platform.system() == "Windows":
        found = platform.processor()
    name = re.sub(r"\((?:R|TM)\)|\bCPU\b|\bProcessor\b|@.*|\d+-Core", "", found or platform.machine())
    return re.sub(r"\s+", " ", name).strip()


def this_machine() -> dict[str, Any]:
    """The hardware, as the schema describes it."""
    import torch
    from bitsandbytes.functional import has_avx512bf16

    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    processor, cores = processor_name(), psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return {
        "name": gpu.name if gpu else f"{processor}, {cores} core{'s' if cores > 1 else ''}",
        "device": "cuda" if gpu else "cpu",
        "processor": processor,
        "cores": cores,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "packed_path": bool(has_avx512bf16()),
        "gpu": gpu.name if gpu else None,
        "gpu_memory_gb": round(gpu.total_memory / 1e9, 1) if gpu else None,
        "system": platform.system(),
        "architecture": platform.machine(),
    }


def this_run(command: str) -> dict[str, Any]:
    """Date, command, threads and versions."""
    import torch

    versions = {"python": platform.python_version()}
    versions |= {name: version(name).partition("+")[0] for name in ("torch", "transformers", "bitsandbytes")}
    if torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    return {"date": date.today().isoformat(), "command": command, "threads": torch.get_num_threads(), "versions": versions}


def load_of_others() -> float:
    """Percent of the processor that is in use while this program waits."""
    return psutil.cpu_percent(interval=0.5)


# --- Measuring ---


def list_parts(parts: Sequence[Part], done: set[tuple[Any, ...]], console: Console) -> None:
    """What there is to measure, how much of it is there, and how long the rest will take."""
    table = Table("part", "what", "there", "minutes to go", title="What make measure measures")
    for part in parts:
        open_steps = missing(part, done)
        wanted = [key(one) for one in finds(part)]
        there = f"{sum(one in done for one in wanted)} of {len(wanted)}"
        minutes = sum(step.seconds for step in open_steps) / 60
        table.add_row(part.name, part.what, there, f"{minutes:.1f}" if open_steps else "-")
    console.print(table)


def finds(part: Part) -> list[dict[str, Any]]:
    """The identities of all that a part measures."""
    return [one | {"part": part.name} for step in part.steps for one in step.finds]


def missing(part: Part, done: set[tuple[Any, ...]]) -> list[Step]:
    """The steps of a part of which not everything is there."""
    return [step for step in part.steps if not {key(one | {"part": part.name}) for one in step.finds} <= done]


def measure(parts: Sequence[Part], file: MachineFile, console: Console, again: bool = False) -> None:
    """Measure what is missing, step by step, and write each step down when it is done."""
    for part in parts:
        steps = list(part.steps) if again else missing(part, file.done())
        if not steps:
            console.print(f"{part.name}: all there.")
            continue
        started, fresh = time.monotonic(), []
        texts = TextColumn(f"{part.name}:"), TextColumn("{task.percentage:>3.0f}%  {task.description}")
        with Progress(texts[0], BarColumn(), texts[1], TimeElapsedColumn(), console=console) as progress:
            task = progress.add_task("", total=sum(step.seconds for step in steps))
            for place, step in enumerate(steps):
                if time.monotonic() - started > LIMIT_SECONDS:
                    console.print(
                        f"{part.name} has taken its {LIMIT_SECONDS // 60} minutes with {len(steps) - place} of {len(steps)} steps to go. "
                        "What is measured is kept; the same command goes on with the rest."
                    )
                    break
                progress.update(task, description=step.name)
                found = run_step(part, step)
                file.add(found)
                fresh += found
                progress.update(task, advance=step.seconds)
            progress.update(task, description="")
        report(part, fresh, console)


def run_step(part: Part, step: Step) -> list[dict[str, Any]]:
    """The records of a step. What goes wrong in it is written down, and the rest goes on."""
    try:
        found = step.measure()
    except LeftOut as reason:
        found = [left_out(one, str(reason)) for one in step.finds]
    except (RuntimeError, MemoryError, OSError, NotImplementedError, ValueError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        what = "there was not enough memory" if "memory" in first_line.lower() or isinstance(error, MemoryError) else "it failed"
        found = [left_out(one, f"{what}: {first_line[:200]}") for one in step.finds]
    due, got = {key(one | {"part": part.name}) for one in step.finds}, {key(one | {"part": part.name}) for one in found}
    if due != got:
        raise AssertionError(f"The step {step.name} of {part.name} did not find what it announced: {due ^ got}")
    return [one | {"part": part.name} for one in found]


def report(part: Part, found: list[dict[str, Any]], console: Console) -> None:
    """A line for the part, one for what is noisy, and one for each reason why something was left out."""
    records = [one for one in found if "reason" not in one]
    console.print(f"{part.name}: {len(records)} records written.")
    noisy = [one for one in records if one.get("noisy")]
    if noisy:
        console.print(
            f"  {len(noisy)} of them are noisy: their quartiles are further apart than {NOISY:.0%} of the median. "
            f"They are kept, and marked. On an idle machine, make measure PART={part.name} ARGS=--again measures them anew."
        )
    for reason in dict.fromkeys(one["reason"] for one in found if "reason" in one):
        count = sum(one.get("reason") == reason for one in found)
        console.print(f"  {count} left out: {reason}")


def main(arguments: Sequence[str] | None = None, parts: Callable[[], Sequence[Part]] | None = None) -> int:
    """The program. ``parts`` replaces the list of parts, for tests."""
    parser = argparse.ArgumentParser(prog="make measure", description="Measure time, memory and quality on this machine.")
    parser.add_argument("--part", default="", help="measure these parts only, with commas between them")
    parser.add_argument("--out", type=Path, help="folder for the file (default: my_work/measurements)")
    parser.add_argument("--list", action="store_true", help="list the parts, measure nothing")
    parser.add_argument("--again", action="store_true", help="measure anew what is there already")
    chosen = parser.parse_args(arguments)
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())

    import course_utils.models  # noqa: F401  (before bitsandbytes, to which it says what not to print)

    if parts is None:
        from tools.measure_parts import parts
    all_parts = parts()
    names = [name.strip() for name in chosen.part.split(",") if name.strip()]
    known = [part.name for part in all_parts]
    if unknown := [name for name in names if name not in known]:
        console.print(f'There is no part "{unknown[0]}"; there are {", ".join(known)}.')
        return 2
    wanted = [part for part in all_parts if not names or part.name in names]

    folder = chosen.out if chosen.out else work_folder() / "measurements"
    folder = folder if folder.is_absolute() else ROOT / folder
    command = " ".join(["make measure", *([f"PART={','.join(names)}"] if names else [])])
    machine = this_machine()
    try:
        file = MachineFile(folder, machine, this_run(command), console.print)
        console.print(f"Measuring {machine['name']}, into {file.path.name}")
        if machine["device"] == "cpu":
            console.print("No GPU that PyTorch can use was found: all is measured on the CPU.")
        list_parts(wanted, set() if chosen.again else file.done(), console)
        if chosen.list:
            return 0
        if (busy := load_of_others()) > BUSY_PERCENT:
            console.print(f"Other programs use {busy:.0f} % of the processor: times may be too long. Those that vary much will be marked.")
        measure(wanted, file, console, chosen.again)
    except KeyboardInterrupt:
        console.print("Stopped. What was measured is kept; the same command goes on from there.")
        return 130
    except MeasurementFileError as error:
        console.print(str(error))
        return 1
    except OSError as error:
        console.print(f"The measurements can't be written to {folder}: {error.strerror or error}. Choose another folder with OUT=...")
        return 1
    console.print(f"Done: {file.path.name}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
