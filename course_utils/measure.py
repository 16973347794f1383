"""How long something takes, with its spread, and what was measured on which machine.

First met in lesson 09. A time is never one number: `time_in_turns` gives each a `Timing`, which is a median with quartiles and says
when they lie so far apart that the machine was busy. `tools/measure.py` (``make measure``) writes what it finds to one JSON file for each
machine, and `records`, `find` and `value` read those files. What nobody has measured is said to be so.

This module imports neither torch nor bitsandbytes, so that reading figures is quick.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from course_utils import ROOT, work_folder

SCHEMA_VERSION = 1
"""Of the files in `measurements/`; raised when an older file can no longer be read as one of today's."""

COMMITTED = ROOT / "measurements"
"""One file for each machine measured, and the schema of these files."""

NOISY = 0.10
"""A time is noisy if its quartiles are further apart than this part of its median: the machine had other things to do."""

NOT_MEASURED = "not measured yet"


# --- Time ---


@dataclass(frozen=True)
class Timing:
    """What repeated runs of the same thing took.

    >>> timing = Timing((0.004, 0.002, 0.003, 0.002, 0.009))
    >>> timing.median, timing.quartiles
    (0.003, (0.002, 0.004))
    >>> round(timing.spread, 2), timing.noisy
    (0.67, True)
    >>> print(timing)
    3.00 ms (2.00 to 4.00), noisy
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The run in the middle: at most half of the runs took less, and at most half took more. In seconds."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """A quarter of the runs was faster than the first, a quarter slower than the second. In seconds."""
        if len(self.seconds) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    @property
    def spread(self) -> float:
        """The distance of the quartiles as a part of the median."""
        low, high = self.quartiles
        return (high - low) / self.median if self.median else 0.0

    @property
    def noisy(self) -> bool:
        """Whether the spread is above `NOISY`. A noisy time is shown, and marked."""
        return self.spread > NOISY

    def __str__(self) -> str:
        low, high = self.quartiles
        return f"{1e3 * self.median:.2f} ms ({1e3 * low:.2f} to {1e3 * high:.2f}){', noisy' if self.noisy else ''}"


def wait_for_gpu() -> None:
    """Wait until the GPU has done all it was asked to do. Without a GPU there is nothing to wait for.

    A call that starts work on a GPU returns before the work is done; a clock that is read then has timed the asking.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def time_in_turns(
    runs: Mapping[str, Callable[[], object]], repetitions: int = 9, warm_up: int = 1, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Timing]:
    """Time several things against each other: a round for each repetition, and in each round every one of them once.

    A busy moment then hits all of them alike, and what is compared was measured at the same time.

    Args:
        runs: what to time, by name.
        repetitions: rounds that count, at least 1.
        warm_up: rounds before them that don't: they fill caches, choose kernels and allocate memory.
        clock: seconds, as `time.perf_counter` gives them.

    Raises:
        ValueError: repetitions is less than 1, or there is nothing to time.
    """
    if repetitions < 1 or not runs:
        raise ValueError("time_in_turns needs at least one run and at least one repetition.")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warm_up + repetitions):
        for name, run in runs.items():
            wait_for_gpu()
            start = clock()
            run()
            wait_for_gpu()
            if turn >= warm_up:
                seconds[name].append(clock() - start)
    return {name: Timing(tuple(taken)) for name, taken in seconds.items()}


# --- What a layer has to do ---


@dataclass(frozen=True)
class Work:
    """The work of a linear layer in one forward pass: how much it calculates, and how much it moves.

    >>> work = layer_work(outputs=4096, inputs=4096, batch=1, bits=16)
    >>> work.flops, work.bytes_moved
    (33554432, 33570816)
    >>> round(work.intensity, 3)
    1.0
    """

    flops: int
    """Additions and multiplications."""
    bytes_moved: int
    """Weights, inputs and outputs, each once."""

    @property
    def intensity(self) -> float:
        """The arithmetic intensity: calculations for each byte that is moved. It decides which half of the roofline counts.

        Source: Williams, Waterman and Patterson, "Roofline: An Insightful Visual Performance Model for Multicore Architectures",
        Communications of the ACM 52 (2009), doi 10.1145/1498765.1498785.
        """
        return self.flops / self.bytes_moved


def layer_work(outputs: int, inputs: int, batch: int, bits: float, activation_bits: int = 16) -> Work:
    """Count the work of a linear layer in one forward pass.

    Args:
        outputs: rows of the weight.
        inputs: columns of the weight.
        batch: rows of input.
        bits: that a weight takes, its share of the scales included: 4.5 for nf4 in blocks of 64.
        activation_bits: that a number of the input or the output takes.
    """
    moved_bits = outputs * inputs * bits + batch * (inputs + outputs) * activation_bits
    return Work(flops=2 * outputs * inputs * batch, bytes_moved=round(moved_bits / 8))


# --- Files of measurements ---


class MeasurementFileError(Exception):
    """A file of measurements that can't be used: one sentence says why, and what to do."""


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of a file of measurements."""
    return json.loads((COMMITTED / "schema.json").read_text(encoding="utf-8"))


def read_file(path: Path) -> dict[str, Any]:
    """Read the measurements of one machine.

    Raises:
        MeasurementFileError: it is not JSON, of another schema, or not as the schema says; or a record names a run that is not there.
        OSError: it can't be read.
    """
    import jsonschema

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise MeasurementFileError(f"{path.name} is damaged and can't be read as JSON ({error}). Delete it and measure again.") from None
    version = content.get("schema") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        age = "newer" if isinstance(version, int) and version > SCHEMA_VERSION else "older"
        cure = "Update the course to read it." if age == "newer" else "Run make measure to measure again."
        raise MeasurementFileError(f"{path.name} was written in {age} schema {version}, and this course reads {SCHEMA_VERSION}. {cure}")
    try:
        jsonschema.validate(content, schema())
    except jsonschema.ValidationError as error:
        where = "/".join(map(str, error.absolute_path)) or "the whole file"
        raise MeasurementFileError(f"{path.name} is not as the schema says: {error.message} (at {where}). Measure again.") from None
    except RecursionError:
        raise MeasurementFileError(f"{path.name} is nested too deeply to be checked. Measure again.") from None
    runs = len(content["runs"])
    for found in content["records"] + content["left_out"]:
        if not isinstance(found["run"], int) or found["run"] >= runs:
            raise MeasurementFileError(f"{path.name} has a record of run {found['run']}, counted from 0, and {runs} runs. Measure again.")
    return content


def is_measurement_file(path: Path) -> bool:
    """Whether a JSON file is of this kind: `measurements/` also holds what other programs have written."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return True  # it may be one, and what is wrong with it has to be said
    return isinstance(content, dict) and {"schema", "machine"} <= content.keys()


def files(own: bool = True, committed: bool = True) -> list[Path]:
    """Files of measurements: those that came with the course, and the learner's own in `my_work/measurements`."""
    folders = []
    if committed:
        folders.append(COMMITTED)
    if own:
        folders.append(work_folder() / "measurements")
    found = [path for folder in folders for path in sorted(folder.glob("*.json")) if path.name != "schema.json"]
    return [path for path in found if is_measurement_file(path)]


def problems(own: bool = True, committed: bool = True) -> list[str]:
    """A sentence for each file that is there and can't be used."""
    found = []
    for path in files(own, committed):
        try:
            read_file(path)
        except (MeasurementFileError, OSError) as error:
            found.append(str(error))
    return found


def machines(own: bool = True, committed: bool = True) -> dict[str, dict[str, Any]]:
    """The hardware of every machine measured, by the name of the machine. A learner's own file goes before a committed one."""
    return {content["machine"]["name"]: content["machine"] for content in _contents(own, committed)}


def records(own: bool = True, committed: bool = True) -> list[dict[str, Any]]:
    """Everything that was measured on any machine. A file that can't be used is passed over; `problems` says why.

    Args:
        own: read `my_work/measurements` too. A cell whose output is compared must not.
        committed: read `measurements`.

    Returns:
        Dicts as the schema describes them, each with its ``machine``, ``date`` and ``versions`` added.
    """
    found = []
    for content in _contents(own, committed):
        for record in content["records"]:
            run = content["runs"][record["run"]]
            found.append(record | {"machine": content["machine"]["name"], "date": run["date"], "versions": run["versions"]})
    return found


def find(own: bool = True, committed: bool = True, **wanted: Any) -> list[dict[str, Any]]:
    """The records in which every field has the value that is asked for: ``find(quantity="layer time", format="nf4", batch=1)``.

    Raises:
        ValueError: there is no field of that name.
    """
    known = {*schema()["$defs"]["record"]["properties"], "machine", "date", "versions"}
    if unknown := sorted(set(wanted) - known):
        raise ValueError(f"A record has no field {unknown[0]}; there are {', '.join(sorted(known))}.")
    return [record for record in records(own, committed) if all(record.get(field) == value for field, value in wanted.items())]


def value(own: bool = True, committed: bool = True, **wanted: Any) -> float | None:
    """The value of the one record that fits, or None if there is none.

    Raises:
        ValueError: several records fit, so it is not clear which is meant.
    """
    fitting = find(own, committed, **wanted)
    if len(fitting) > 1:
        differing = sorted(field for field in fitting[0] if len({str(record.get(field)) for record in fitting}) > 1)
        raise ValueError(f"{len(fitting)} records fit; they differ in {', '.join(differing)}. Ask for one of them.")
    return fitting[0]["value"] if fitting else None


def shown(record: Mapping[str, Any] | None, digits: int = 2) -> str:
    """A record as a table shows it, or `NOT_MEASURED`. An asterisk marks what is noisy.

    >>> shown({"value": 3.0, "unit": "ms", "noisy": True}), shown(None)
    ('3.00 ms*', 'not measured yet')
    """
    if record is None:
        return NOT_MEASURED
    return f"{record['value']:,.{digits}f} {record['unit']}{'*' if record.get('noisy') else ''}"


def _contents(own: bool, committed: bool) -> list[dict[str, Any]]:
    """What the readable files hold, one for each machine: the learner's own file stands for the committed one of the same name."""
    by_machine: dict[str, dict[str, Any]] = {}
    for path in files(own, committed):
        try:
            content = read_file(path)
        except (MeasurementFileError, OSError):
            continue
        by_machine[content["machine"]["name"]] = content
    return list(by_machine.values())
