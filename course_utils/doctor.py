"""What is this machine ready for? One screen, a line for each thing that matters, and what to do about it.

    python -m course_utils.doctor           # the screen; exit status 0 if the lessons can run here, 1 if not
    python -m course_utils.doctor --json    # the same as one JSON object on one line, for a teacher with forty laptops

Three states: `ok`; `note`, good to know, the lessons run all the same; `problem`, cure it first.

The doctor itself must run where nothing else does. So this file imports nothing but Python's own library, keeps to the syntax
of Python 3.8 (an old Python is told what to install; it gets no SyntaxError), and imports torch, bitsandbytes and transformers
in a second process: a native library that crashes is reported, not suffered. For each thing one function gathers the facts and one,
named `judge_...`, says what they mean; the second kind can be tried by hand, on machines that one doesn't have.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import glob
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import queue
import re
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from course_utils import ROOT, __version__, work_folder

GB = 10**9

# For which machines torch and bitsandbytes are published ready to install (wheels), as of torch 2.11-2.13 and bitsandbytes 0.50.
WHEELS = {("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "arm64"), ("Windows", "amd64")}
NEWEST_PYTHON = (3, 14)
OLDEST_GLIBC = (2, 28)
OLDEST_MACOS = (14,)

CONTAINER = Path("/sys/fs/cgroup")  # where Linux says what a container may use

# A lesson's kernel that has loaded abacus in 4 bits holds 0.42 GB, JupyterLab's server 0.15 GB.
MEMORY_NEEDED = 0.6 * GB
MEMORY_COMFORTABLE = 1.5 * GB
DISK_NEEDED = 0.1 * GB
DISK_COMFORTABLE = 2 * GB  # a small model from the Hub in its original precision

HUB_SECONDS = 2.0
PATIENCE_SECONDS = 60.0  # a few are usual; the first import after an installation is slow: virus scanners, cold disks
SCREEN_WIDTH = 108

BROWSER = "take the course in the browser (the Binder link in the README), or use another machine"
MAKE_LAB = "make lab (without make: the three lines in the README)"
START_ANEW = f"delete the folder .venv, then: {MAKE_LAB}"


@dataclass(frozen=True)
class Finding:
    """One line of the screen: what was looked at, how it stands ("ok", "note" or "problem"), what was found, what to do about it."""

    name: str
    state: str
    found: str
    advice: str = ""


def numbers(version: str) -> tuple[int, ...]:
    """The numbers in a version.

    >>> numbers("2.28")
    (2, 28)
    """
    return tuple(int(number) for number in re.findall(r"\d+", version))


def in_own_environment() -> bool:
    """Whether this Python is that of the environment that `make lab` makes."""
    return Path(sys.prefix).resolve() == (ROOT / ".venv").resolve()


def in_some_environment() -> bool:
    """Whether this Python is that of a virtual environment or of conda."""
    return sys.prefix != sys.base_prefix or Path(sys.prefix, "conda-meta").is_dir()


def install() -> str:
    """What puts the course's packages right, for the Python that runs this."""
    if in_own_environment():
        python = str(Path(".venv", "Scripts", "python") if os.name == "nt" else Path(".venv", "bin", "python"))
    elif in_some_environment():
        python = "python"
    else:
        return f"In the folder of the course: {MAKE_LAB}"
    return f"In the folder of the course: {python} -m pip install -e . -c constraints.txt"


# --- Python and the operating system ---


def python_bounds() -> str:
    """The Pythons that the course supports, such as ">=3.11": from the installed package, or from pyproject.toml in the clone."""
    try:
        return importlib.metadata.metadata("four-bits")["Requires-Python"] or ""
    except importlib.metadata.PackageNotFoundError:
        pass
    with contextlib.suppress(OSError):
        # No TOML reader here: it came with Python 3.11, and this line is for those who have an older one.
        line = re.search(r'^requires-python *= *"(.*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
        return line.group(1) if line else ""
    return ""


def has_package(name: str) -> bool:
    """Whether a package is there to import; nothing is imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def judge_python(version: str, implementation: str, bounds: str, has_torch: bool, environment: str) -> Finding:
    """Is this Python one that the course supports, and one for which torch is published?

    >>> judge_python("3.8.18", "CPython", ">=3.11", has_torch=False, environment="no virtual environment").state
    'problem'
    """
    lowest = re.search(r">=\s*(\d+)\.(\d+)", bounds)
    oldest = (int(lowest.group(1)), int(lowest.group(2))) if lowest else (3, 11)
    which = f"Python {oldest[0]}.{oldest[1]} to {NEWEST_PYTHON[0]}.{NEWEST_PYTHON[1]}"
    advice = f"Install {which} from python.org (on Linux from the distribution, or with conda); {START_ANEW}"
    found = f"{implementation} {version}, {environment}"
    running = numbers(version)[:2]
    if running < oldest:
        return Finding("Python", "problem", f"{found}: too old, the course needs {which}", advice)
    if implementation != "CPython" and not has_torch:
        return Finding("Python", "problem", f"{found}: torch is published for CPython only", advice)
    if running > NEWEST_PYTHON and not has_torch:
        return Finding("Python", "problem", f"{found}: newer than the Pythons that torch is published for", advice)
    if running > NEWEST_PYTHON:
        return Finding("Python", "note", f"{found}: newer than the course was tested with", f"If a lesson fails: use {which}.")
    return Finding("Python", "ok", found)


def this_environment() -> str:
    """Where this Python keeps its packages, in words that name no folder of the machine."""
    if in_own_environment():
        return "the course's own environment"
    return "an environment that is not the course's .venv" if in_some_environment() else "no virtual environment"


@dataclass(frozen=True)
class Machine:
    """What decides whether torch and bitsandbytes are published for a machine.

    Attributes:
        system: "Linux", "Darwin" (macOS) or "Windows".
        processor: as Python was built for it, such as "x86_64", "arm64", "amd64".
        bits: of a pointer in this Python, 32 or 64.
        version: of macOS, or of the C library on Linux ("2.36"); empty where it doesn't matter or isn't known.
        musl: a Linux whose C library is musl (Alpine) and not glibc.
        translated: an Intel Python that runs on an Apple processor.
    """

    system: str
    processor: str
    bits: int = 64
    version: str = ""
    musl: bool = False
    translated: bool = False


def this_machine() -> Machine:
    """The machine that this runs on."""
    system, processor = platform.system(), platform.machine()
    version, musl, translated = "", False, False
    if system == "Linux":
        library, version = platform.libc_ver()
        musl = library != "glibc" and bool(glob.glob("/lib/ld-musl-*"))
    elif system == "Darwin":
        version = platform.mac_ver()[0]
        if processor == "x86_64":
            asked = subprocess.run(["sysctl", "-n", "sysctl.proc_translated"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=5)
            translated = asked.stdout.strip() == b"1"
    elif system == "Windows":
        processor = sysconfig.get_platform().rpartition("-")[2]  # of this Python; Windows on ARM runs both kinds
    return Machine(system, processor, struct.calcsize("P") * 8, version, musl, translated)


def why_no_wheel(machine: Machine) -> tuple[str, str] | None:
    """Why torch or bitsandbytes can't be installed on a machine, and what to use instead; None where they can.

    >>> why_no_wheel(Machine("Linux", "x86_64", version="2.17"))[0]
    'glibc 2.17 is too old, torch needs 2.28'
    >>> why_no_wheel(Machine("Windows", "amd64"))
    """
    if machine.bits != 64:
        cure = f"Install the 64-bit Python from python.org; if the system itself has {machine.bits} bits, {BROWSER}."
        return f"a {machine.bits}-bit Python, torch needs 64 bits", cure
    if machine.translated:
        return (
            "an Intel Python on an Apple processor, torch is no longer published for it",
            f"Install Python from python.org (it is made for both processors); {START_ANEW}",
        )
    if (machine.system, machine.processor) == ("Darwin", "x86_64"):
        return "torch is no longer published for Intel Macs", f"On this Mac {BROWSER}, such as one with Linux."
    if machine.system == "Windows" and machine.processor == "arm64":
        return "torch is not published for Windows on ARM", f"Use Linux inside Windows (WSL), {BROWSER}."
    if (machine.system, machine.processor) not in WHEELS:
        return f"torch and bitsandbytes are not published for {machine.system} on {machine.processor}", f"Instead, {BROWSER}."
    if machine.musl:
        return (
            "its C library is musl, torch needs glibc",
            f"Use a distribution with glibc (Debian, Ubuntu, Fedora), a container of one will do; or {BROWSER}.",
        )
    if machine.system == "Linux" and () < numbers(machine.version) < OLDEST_GLIBC:
        cure = f"Use a newer distribution, a container of one will do; or {BROWSER}."
        return f"glibc {machine.version} is too old, torch needs 2.28", cure
    if machine.system == "Darwin" and () < numbers(machine.version) < OLDEST_MACOS:
        return f"macOS {machine.version} is too old, bitsandbytes needs 14", f"Update macOS; or {BROWSER}."
    return None


def judge_system(machine: Machine, has_torch: bool) -> Finding:
    """Can torch and bitsandbytes be installed on this kind of machine?"""
    name = {"Darwin": "macOS"}.get(machine.system, machine.system)
    library = ", musl" if machine.musl else f", glibc {machine.version}" if machine.system == "Linux" and machine.version else ""
    version = f" {machine.version}" if machine.system == "Darwin" else ""
    found = f"{name}{version} on {machine.processor}{library}"
    reason = why_no_wheel(machine)
    if reason is None:
        return Finding("operating system", "ok", found)
    why, cure = reason
    if has_torch:
        return Finding("operating system", "note", f"{found}: {why}, and yet torch is here", f"If a lesson fails: {cure}")
    return Finding("operating system", "problem", f"{found}: {why}", cure)


# --- Packages ---


def load_packaging() -> Any:
    """The module `packaging.requirements`: the package, or the copy that pip carries with it."""
    try:
        import packaging.requirements as requirements
    except ImportError:
        import pip._vendor.packaging.requirements as requirements
    return requirements


def requirements_of_pyproject() -> list[str]:
    """What the clone's pyproject.toml asks for, extras left out."""
    import tomllib  # Python 3.11; who has an older one has been told so

    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]


def requirements_of_course() -> tuple[list[str], str]:
    """What the course asks for, extras left out, and a sentence if that is not as it should be ("" if it is)."""
    Requirement = load_packaging().Requirement
    try:
        installed = importlib.metadata.requires("four-bits") or []
    except importlib.metadata.PackageNotFoundError:
        return requirements_of_pyproject(), "the course itself is not installed in this Python"
    wanted = [text for text in installed if "extra" not in str(Requirement(text).marker)]
    with contextlib.suppress(OSError, ImportError, ValueError):
        if {str(Requirement(text)) for text in wanted} != {str(Requirement(text)) for text in requirements_of_pyproject()}:
            return wanted, "pyproject.toml has changed since the course was installed"
    return wanted, ""


def installed_version(package: str) -> str | None:
    """The version of an installed package; None if it isn't there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def judge_packages(wanted: list[str], remark: str, version_of: Callable[[str], str | None] = installed_version) -> Finding:
    """Are all packages there, in versions inside the course's bounds?

    A version older than the bounds or a missing package is a problem; a newer one than was tested is only noted.

    >>> judge_packages(["numpy>=2,<3"], "", version_of=lambda package: "1.26.4").found
    'numpy 1.26.4 (needed: <3,>=2)'
    """
    Requirement = load_packaging().Requirement
    fitting, newer, wrong, missing = [], [], [], []
    for text in wanted:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        version = version_of(requirement.name)
        if version is None:
            missing.append(requirement.name)
            continue
        broken = [bound.operator for bound in requirement.specifier if not bound.contains(version, prereleases=True)]
        if not broken:
            fitting.append(f"{requirement.name} {version}")
        elif set(broken) <= {"<", "<="}:
            newer.append(f"{requirement.name} {version} (tested: {requirement.specifier})")
        else:
            wrong.append(f"{requirement.name} {version} (needed: {requirement.specifier})")
    if missing:
        wrong.append("missing: " + ", ".join(missing))
    if wrong:
        return Finding("packages", "problem", "; ".join(wrong + newer), install())
    if newer:
        return Finding("packages", "note", "newer than tested: " + "; ".join(newer), f"If a lesson fails. {install()}")
    if remark:
        return Finding("packages", "note", remark, install())
    return Finding("packages", "ok", f"all {len(fitting)} inside the tested bounds: " + ", ".join(fitting))


# --- torch, bitsandbytes, transformers and JupyterLab, tried in a second process ---

MARK = "four-bits-probe "


def probe_torch() -> dict[str, Any]:
    """Import torch; its version and the GPUs that it can use. Runs in the second process."""
    import torch

    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        has_cuda = torch.cuda.is_available()
    facts = {
        "version": torch.__version__,
        "cuda_build": torch.version.cuda or torch.version.hip,
        "complaints": [str(complaint.message) for complaint in complaints],
        "mps": torch.backends.mps.is_available(),
        "gpus": [],
    }
    for index in range(torch.cuda.device_count() if has_cuda else 0):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        facts["gpus"].append({"name": properties.name, "bytes": properties.total_memory, "capability": capability})
    return facts


def probe_bitsandbytes() -> dict[str, Any]:
    """Import bitsandbytes, take a small matrix to 4 bits and back, on the CPU and on each GPU. Runs in the second process."""
    import bitsandbytes
    import torch
    from bitsandbytes.cextension import ErrorHandlerMockBNBNativeLibrary, lib
    from bitsandbytes.functional import dequantize_4bit, has_avx512bf16, quantize_4bit

    facts = {"version": bitsandbytes.__version__, "library": None, "avx512_bf16": None, "failed": {}}
    if not isinstance(lib, ErrorHandlerMockBNBNativeLibrary):  # stands in for the native library where none could be loaded
        facts["library"] = Path(lib._lib._name).name
        facts["avx512_bf16"] = bool(has_avx512bf16())  # the libraries for CUDA and for Windows have no packed path, and say no of every CPU
        for device in ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]:
            try:
                packed, state = quantize_4bit(torch.ones(64, 64, device=device), quant_type="nf4")
                if not bool((dequantize_4bit(packed, state) == 1).all()):
                    facts["failed"][device] = "a matrix of ones came back as something else"
            except Exception as error:
                facts["failed"][device] = one_line(error)
    return facts


def probe_transformers() -> dict[str, Any]:
    """Import what every lesson takes from transformers. Runs in the second process."""
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig  # noqa: F401

    return {"version": transformers.__version__}


def probe_jupyterlab() -> dict[str, Any]:
    """Import what opens a lesson, runs its cells and draws its figures. Runs in the second process."""
    import ipykernel.kernelapp  # noqa: F401
    import jupyterlab.labapp
    import matplotlib.pyplot  # noqa: F401

    return {"version": jupyterlab.__version__}


PROBES = {
    "torch": probe_torch,
    "bitsandbytes": probe_bitsandbytes,
    "transformers": probe_transformers,
    "jupyterlab": probe_jupyterlab,
}


def one_line(error: BaseException) -> str:
    """An error on one line, shortened."""
    return textwrap.shorten(f"{type(error).__name__}: {error}", 160, placeholder=" ...")


def probe() -> None:
    """The second process: try the libraries in turn, and print what was found of each as soon as it is known."""
    logging.disable(logging.WARNING)  # so that the last line on stderr is about what ended the process
    for name, look in PROBES.items():
        try:
            facts = look()
        except (Exception, SystemExit) as error:
            facts = {"error": one_line(error), "missing": isinstance(error, ModuleNotFoundError) and error.name == name}
        print(MARK + json.dumps([name, facts]), flush=True)


class LibraryTrial:
    """The second process, running `probe`. Start it, do other things, then ask for `results`."""

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.deadline = time.monotonic() + patience
        # Files, not pipes: a pipe stays open, and we waiting, as long as any grandchild lives.
        self.out, self.err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "course_utils.doctor", "--probe"],
            cwd=str(ROOT),
            # Importing bitsandbytes may ask the Hub for a kernel; last words on stderr may be in colours.
            env=dict(os.environ, HF_HUB_OFFLINE="1", PYTHON_COLORS="0"),
            stdin=subprocess.DEVNULL,
            stdout=self.out,
            stderr=self.err,
        )

    def results(self) -> dict[str, dict[str, Any]]:
        """For each library what its probe found, or {"error": why}; those after one that ended the process are left out."""
        try:
            status = self.process.wait(max(0.0, self.deadline - time.monotonic()))
            end = f"the process {describe_exit(status)}"
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            end = f"no answer in {self.patience:.0f} seconds"
        with self.out, self.err:
            self.out.seek(0)
            self.err.seek(0)
            lines = self.out.read().decode("utf-8", "replace").splitlines()
            last_words = self.err.read().decode("utf-8", "replace").strip().splitlines()[-1:]
        found = dict(json.loads(line[len(MARK) :]) for line in lines if line.startswith(MARK))
        culprit = next((name for name in PROBES if name not in found), None)
        if culprit is not None:
            found[culprit] = {"error": textwrap.shorten(": ".join([end, *last_words]), 160, placeholder=" ...")}
        return found


def try_libraries(patience: float) -> Callable[[], dict[str, dict[str, Any]]]:
    """Start a `LibraryTrial`. Returns the function that waits for its results, also where no process can be started."""
    try:
        return LibraryTrial(patience).results
    except OSError as error:
        refusal = {"torch": {"error": f"a second process can't be started, {one_line(error)}"}}
        return lambda: refusal


def describe_exit(status: int) -> str:
    """How a process ended, in words.

    >>> describe_exit(1)
    'ended with status 1'
    >>> describe_exit(0xC0000005)
    'crashed (0xC0000005)'
    """
    if status < 0:
        try:
            return f"crashed ({signal.Signals(-status).name})"
        except ValueError:
            return f"crashed (signal {-status})"
    return f"crashed (0x{status:X})" if status > 255 else f"ended with status {status}"


def judge_library(name: str, result: dict[str, Any] | None, earlier: str) -> Finding:
    """Does a library import, and does it work?

    Args:
        result: what `LibraryTrial.results` holds for it; None if it was not reached.
        earlier: the name of a problem found before, which must be cured first; "" if there was none.
    """
    if result is None or ("error" in result and earlier):
        return Finding(name, "note", "can't be tried", f"First see {earlier}.")
    if result.get("missing"):
        return Finding(name, "problem", "not installed", install())
    again = f"Make the environment anew: {START_ANEW}"
    if "error" in result:
        error = result["error"]
        if "SIGILL" in error or "0xC000001D" in error:
            advice = f"This processor lacks instructions that {name} uses: {BROWSER}."
        elif "no answer" in error:
            advice = f"Ask again, a first import is slow. If it stays so: {again}"
        elif "DLL" in error or "WinError" in error:
            advice = f"Install Microsoft's Visual C++ Redistributable (x64). If it stays so: {again}"
        else:
            advice = again
        return Finding(name, "problem", f"can't be imported: {error}", advice)
    if name == "bitsandbytes" and result["library"] is None:
        advice = f"With a GPU, see there. Without: {again}"
        return Finding(name, "problem", f"{result['version']} can't load its native library", advice)
    if name == "bitsandbytes" and "cpu" in result["failed"]:
        return Finding(name, "problem", f"{result['version']} fails on the CPU: {result['failed']['cpu']}", again)
    works = ", a matrix went to 4 bits and back" if name == "bitsandbytes" else ""
    return Finding(name, "ok", f"{result['version']}, can be imported{works}")


# --- Memory, disk, processor ---


def read_memory() -> tuple[int, int] | None:
    """Bytes of memory, free and in total; those of the container where one is limited by cgroup v2. None if the system doesn't say."""
    try:
        import psutil

        free, total = psutil.virtual_memory().available, psutil.virtual_memory().total
    except Exception:  # missing or broken: Linux says it without
        try:
            lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
            free, total = (int(lines[key].split()[0]) * 1024 for key in ("MemAvailable", "MemTotal"))
        except (OSError, KeyError, ValueError):
            return None
    with contextlib.suppress(OSError, ValueError, KeyError):  # a limit ("max" if there is none) that containers and Binder set
        limit = int((CONTAINER / "memory.max").read_text(encoding="utf-8"))
        used = int((CONTAINER / "memory.current").read_text(encoding="utf-8"))
        pages = dict(line.split() for line in (CONTAINER / "memory.stat").read_text(encoding="utf-8").splitlines())
        free, total = min(free, limit - used + int(pages["inactive_file"])), min(total, limit)
    return free, total


def judge_memory(memory: tuple[int, int] | None) -> Finding:
    """Is there memory for a lesson, and for how large a model besides?

    Four fifths of what is free are counted: 2 bytes a weight in 16 bits, 4.5 bits a weight in 4 bits with its scales.

    >>> judge_memory((5 * 10**9, 8 * 10**9)).found
    '5.0 GB free of 8.0 GB: room for models of about 7.1 billion weights in 4 bits, 2.0 in 16'
    """
    if memory is None:
        return Finding("memory", "note", "the system doesn't say", f"The lessons need {MEMORY_NEEDED / GB:.1f} GB free.")
    free, total = memory
    found = f"{free / GB:.1f} GB free of {total / GB:.1f} GB"
    if total < MEMORY_NEEDED:
        return Finding("memory", "problem", found, f"Too little for torch. Instead, {BROWSER}.")
    if free < MEMORY_NEEDED:
        return Finding("memory", "problem", found, f"A lesson needs {MEMORY_NEEDED / GB:.1f} GB: close other programs and notebooks.")
    if free < MEMORY_COMFORTABLE:
        return Finding("memory", "note", found, "Enough for one notebook at a time with abacus; close other programs before larger models.")
    in_4_bits, in_16_bits = (0.8 * free / bytes_per_weight / 1e9 for bytes_per_weight in (4.5 / 8, 2))
    return Finding("memory", "ok", f"{found}: room for models of about {in_4_bits:.1f} billion weights in 4 bits, {in_16_bits:.1f} in 16")


def read_disk(folder: Path) -> tuple[int, str]:
    """Bytes free on the disk of a folder that may not exist yet, and why nothing can be written there ("" if it can)."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=str(folder)):
            refusal = ""
    except OSError as error:
        refusal = error.strerror or str(error)
    return shutil.disk_usage(str(folder)).free, refusal


def judge_disk(free: int, refusal: str) -> Finding:
    """Can a learner's work be kept, and is there room for a model from the Hub?"""
    found = f"{free / GB:.1f} GB free where your work is kept"
    if refusal:
        found = f"nothing can be written where your work is kept: {refusal}"
        return Finding("disk", "problem", found, "Set COURSE_WORK to a folder where you may write.")
    if free < DISK_NEEDED:
        return Finding("disk", "problem", found, f"Make room: {DISK_NEEDED / GB:.1f} GB at least.")
    if free < DISK_COMFORTABLE:
        return Finding("disk", "note", found, f"Enough for the lessons. A small model from the Hub takes {DISK_COMFORTABLE / GB:.0f} GB.")
    return Finding("disk", "ok", found)


def has_avx512_bf16(result: dict[str, Any]) -> bool | None:
    """Whether bitsandbytes can use this processor's avx512_bf16, or else whether Linux says that it has it. None if nobody says."""
    seen = result.get("avx512_bf16")
    if seen is None and platform.machine() not in ("x86_64", "AMD64", "i386", "i686"):
        return False
    if seen is None:
        with contextlib.suppress(OSError):
            return "avx512_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    return seen


def judge_cpu(cores: int | None, avx512_bf16: bool | None) -> Finding:
    """How many cores there are, and which of its two ways through a 4-bit layer bitsandbytes takes on them."""
    count = "cores unknown" if cores is None else f"{cores} core{'s' if cores > 1 else ''}"
    if avx512_bf16 is None:
        return Finding("CPU", "note", f"{count}; only bitsandbytes can say whether it has avx512_bf16", "First see bitsandbytes.")
    if avx512_bf16:
        path = "with avx512_bf16: bitsandbytes repacks a 4-bit layer at its first use and computes in bfloat16"
        return Finding("CPU", "ok", f"{count}, {path}", "Nothing to do: the lessons take the plain path, the same on every CPU.")
    path = "bitsandbytes takes the plain path, the one that the lessons show, since it finds no avx512_bf16 that it can use"
    return Finding("CPU", "ok", f"{count}, {path}")


def count_cores() -> int | None:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


# --- GPU ---


def ask_nvidia_driver() -> list[str]:
    """The names of the GPUs that NVIDIA's driver sees, whatever torch says; an empty list without driver."""
    try:
        asked = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return []
    return re.findall(r"^GPU \d+: (.*?)(?: \(UUID.*)?$", asked.stdout.decode("utf-8", "replace"), re.MULTILINE)


def judge_gpu(torch: dict[str, Any], bitsandbytes: dict[str, Any], driver_sees: list[str]) -> Finding:
    """Is there a GPU, can torch use it, and does bitsandbytes have a native library for it?

    Args:
        torch, bitsandbytes: what their probes found, or {"error": ...}.
        driver_sees: the names of GPUs that torch can't use.
    """
    on_cpu = "Nothing to do: every lesson runs on the CPU."
    if "error" in torch:
        seen = f"{', '.join(driver_sees)}, but " if driver_sees else ""
        return Finding("GPU", "note", f"{seen}torch can't be asked", "First see torch.")
    if torch["gpus"]:
        return judge_cuda(torch["gpus"], bitsandbytes)
    if torch["mps"]:
        found = "Apple's (MPS); bitsandbytes has no native library for it and takes a slow way through torch"
        return Finding("GPU", "ok", found, on_cpu)
    if driver_sees and torch["cuda_build"]:
        why = textwrap.shorten("; ".join(torch["complaints"]), 160, placeholder=" ...") or "torch.cuda.is_available() is False"
        advice = "Update NVIDIA's driver, and see that CUDA_VISIBLE_DEVICES hides nothing. Until then the lessons run on the CPU."
        return Finding("GPU", "note", f"{', '.join(driver_sees)}, but torch can't use it: {why}", advice)
    if driver_sees:
        advice = "The lessons run on the CPU. To use the GPU install torch's CUDA build in this environment (pytorch.org, Get Started)."
        return Finding("GPU", "note", f"{', '.join(driver_sees)}, but this torch ({torch['version']}) is built for the CPU only", advice)
    return Finding("GPU", "ok", "none that torch can use", on_cpu)


def judge_cuda(gpus: list[dict[str, Any]], bitsandbytes: dict[str, Any]) -> Finding:
    """GPUs that torch can use: does bitsandbytes work on them?"""
    each = [f"{gpu['name']}, {gpu['bytes'] / GB:.0f} GB, compute capability {gpu['capability']}" for gpu in gpus]
    found = "; ".join(f"{each.count(text)} x {text}" if each.count(text) > 1 else text for text in dict.fromkeys(each))
    hide = "Or hide the GPU, then the lessons run on the CPU: set CUDA_VISIBLE_DEVICES to -1"
    if "error" in bitsandbytes:
        return Finding("GPU", "note", f"{found}; bitsandbytes can't be asked", "First see bitsandbytes.")
    if bitsandbytes["library"] is None:
        advice = f"See: python -m bitsandbytes. A torch for another CUDA version often helps. {hide}"
        return Finding("GPU", "problem", f"{found}; bitsandbytes finds no native library for it", advice)
    failures = sorted({why for device, why in bitsandbytes["failed"].items() if device.startswith("cuda")})
    if failures:
        found = f"{found}; bitsandbytes fails on it: {'; '.join(failures)}"
        return Finding("GPU", "problem", found, f"See: python -m bitsandbytes. {hide}")
    if any(numbers(gpu["capability"]) < (8, 0) for gpu in gpus):
        advice = "bfloat16 is slow below compute capability 8.0: give float16 as bnb_4bit_compute_dtype."
        return Finding("GPU", "note", f"{found}; bitsandbytes uses {bitsandbytes['library']}", advice)
    return Finding("GPU", "ok", f"{found}; bitsandbytes uses {bitsandbytes['library']}")


# --- The Hub ---


def ask_hub(address: str, seconds: float) -> str:
    """Ask a Hub for its first page. "" if it answers, else why not."""
    import ssl
    import urllib.error
    import urllib.request

    try:
        import certifi  # what the libraries trust; Python's own list is empty on some Macs

        trusted = certifi.where()
    except ImportError:
        trusted = None
    try:
        request = urllib.request.Request(address, method="HEAD")
        urllib.request.urlopen(request, timeout=seconds, context=ssl.create_default_context(cafile=trusted)).close()
    except urllib.error.HTTPError as error:
        return f"it answers with status {error.code}" if error.code == 407 or error.code >= 500 else ""
    except Exception as error:  # no route, no name, refused, a certificate nobody knows, an address that is none
        return textwrap.shorten(str(getattr(error, "reason", "") or error), 100, placeholder=" ...")
    return ""


class HubQuestion:
    """The question to the Hub, asked in a thread of its own: looking up a name may take longer than anyone wants to wait."""

    def __init__(self, address: str, seconds: float = HUB_SECONDS) -> None:
        self.seconds = seconds
        self.deadline = time.monotonic() + seconds
        self.answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=lambda: self.answers.put(ask_hub(address, seconds)), daemon=True).start()

    def answer(self) -> str:
        """As `ask_hub`."""
        try:
            return self.answers.get(timeout=max(0.1, self.deadline - time.monotonic()))
        except queue.Empty:
            return f"no answer in {self.seconds:.0f} seconds"


def hub_is_switched_off() -> bool:
    """Whether the libraries were told not to ask the Hub."""
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def judge_hub(address: str, switched_off: bool, failure: str) -> Finding:
    """Can models be fetched from the Hub? The lessons don't need it."""
    if switched_off:
        return Finding("Hub", "note", "switched off by HF_HUB_OFFLINE", "Nothing to do; unset it to fetch models from the Hub.")
    if "CERTIFICATE" in failure.upper():
        advice = "The lessons run offline. For the Hub: set SSL_CERT_FILE to your network's own certificate; ask who runs it."
        return Finding("Hub", "note", f"{address} shows a certificate that nobody vouches for", advice)
    if failure:
        advice = "Nothing to do: the lessons run offline. Only a COURSE_MODEL from the Hub needs it; behind a proxy set HTTPS_PROXY."
        return Finding("Hub", "note", f"{address} can't be reached: {failure}", advice)
    return Finding("Hub", "ok", f"{address} answers")


# --- The bundled model ---


def safetensors_fault(file: Path) -> str:
    """What is wrong with the size of a safetensors file, "" if nothing: its header says how long the file must be.

    The format: 8 bytes with the header's length n, n bytes of JSON with the place of every tensor, then the tensors.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if start == b"version ":
            return "a pointer of Git LFS and not the weights"
        header_length = int.from_bytes(start, "little")
        if len(start) < 8 or header_length > size:
            return f"cut short or not safetensors at all ({size:,} bytes)"
        try:
            header = json.loads(stream.read(header_length).decode("utf-8"))
            end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return "its header can't be read"
    expected = 8 + header_length + end
    return "" if size == expected else f"{size:,} bytes, by its header {expected:,}"


def checksum_fault(file: Path, expected: str) -> str:
    """What is wrong with a file of which the SHA-256 sum is known, "" if nothing. Windows line ends do a text no harm."""
    content = file.read_bytes()
    versions = [content] if file.suffix == ".safetensors" else [content, content.replace(b"\r\n", b"\n")]
    return "" if expected in {hashlib.sha256(version).hexdigest() for version in versions} else "not as it was published"


def model_faults(folder: Path) -> list[str]:
    """What is wrong with a model's folder: missing files, weights cut short, other bytes than SHA256SUMS says."""
    if not folder.is_dir():
        return ["the folder models/abacus is missing"]
    sums = {}
    if (folder / "SHA256SUMS").is_file():
        lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
        sums = {name.strip(" *"): digest.lower() for digest, _, name in (line.strip().partition(" ") for line in lines if line.strip())}
    faults = []
    for name in sorted({"config.json", "tokenizer.json", "model.safetensors", *sums}):
        file = folder / name
        try:
            fault = "missing" if not file.exists() else safetensors_fault(file) if file.suffix == ".safetensors" else ""
            if not fault and file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8"))
            if not fault and name in sums:
                fault = checksum_fault(file, sums[name])
        except OSError as error:
            fault = f"can't be read: {error.strerror or error}"
        except ValueError:
            fault = "not JSON"
        if fault:
            faults.append(f"{name}: {fault}")
    return faults


def judge_model(folder: Path, replaced_by: str | None) -> Finding:
    """Is the bundled model whole? And does the learner know if another one is in its place?

    Args:
        folder: of the bundled model.
        replaced_by: the value of COURSE_MODEL.
    """
    faults = model_faults(folder)
    if faults:
        advice = "In the folder of the course: git checkout -- models/abacus (or download the course again)"
        return Finding("model abacus", "problem", "; ".join(faults), advice)
    if replaced_by:
        found = f"intact, but COURSE_MODEL puts {replaced_by} in its place"
        return Finding("model abacus", "note", found, "Nothing to do if that is meant; else unset COURSE_MODEL.")
    return Finding("model abacus", "ok", "intact" + ("" if (folder / "SHA256SUMS").is_file() else " (by size; there are no checksums)"))


# --- All together ---


def guarded(name: str, look: Callable[[], Finding]) -> Finding:
    """One check that may itself break: then that is what was found, and the others go on."""
    try:
        return look()
    except Exception as error:
        return Finding(name, "note", f"could not be looked at: {one_line(error)}", "Nothing to do if lesson 00 runs.")


def examine(patience: float = PATIENCE_SECONDS) -> list[Finding]:
    """Look at everything. The slow questions, to the libraries and to the Hub, run while the others are answered."""
    results_of_trial = try_libraries(patience)
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    offline = hub_is_switched_off()
    question = None if offline else HubQuestion(address)

    has_torch = has_package("torch")
    python = guarded(
        "Python",
        lambda: judge_python(
            platform.python_version(), platform.python_implementation(), python_bounds(), has_torch, this_environment()
        ),
    )
    system = guarded("operating system", lambda: judge_system(this_machine(), has_torch))
    findings = [python, system]
    earlier = next((finding.name for finding in findings if finding.state == "problem"), "")
    if earlier:  # then no command of pip's would help
        findings.append(Finding("packages", "note", "not looked at", f"First see {earlier}."))
    else:
        findings.append(guarded("packages", lambda: judge_packages(*requirements_of_course())))
    rest = [
        guarded("memory", lambda: judge_memory(read_memory())),
        guarded("disk", lambda: judge_disk(*read_disk(work_folder()))),
        guarded("model abacus", lambda: judge_model(ROOT / "models" / "abacus", os.environ.get("COURSE_MODEL"))),
        guarded("Hub", lambda: judge_hub(address, offline, question.answer() if question else "")),
    ]

    results = results_of_trial()
    for name in PROBES:
        findings.append(guarded(name, functools.partial(judge_library, name, results.get(name), earlier)))
        if findings[-1].state == "problem":
            earlier = earlier or name
    torch, bitsandbytes = (results.get(name, {"error": "not tried"}) for name in ("torch", "bitsandbytes"))
    findings += [
        guarded("GPU", lambda: judge_gpu(torch, bitsandbytes, [] if torch.get("gpus") else ask_nvidia_driver())),
        guarded("CPU", lambda: judge_cpu(count_cores(), has_avx512_bf16(bitsandbytes))),
    ]
    return findings + rest


def is_ready(findings: list[Finding]) -> bool:
    """Whether the lessons can run."""
    return all(finding.state != "problem" for finding in findings)


def screen(findings: list[Finding]) -> str:
    """The findings as text, at most `SCREEN_WIDTH` columns wide."""
    lines = [f"Four Bits {__version__}: what is this machine ready for?", ""]
    for finding in findings:
        first, indent = f"{finding.state:<8} {finding.name:<17}", " " * 26
        wrap = functools.partial(textwrap.wrap, width=SCREEN_WIDTH, break_on_hyphens=False)
        lines += wrap(finding.found, initial_indent=first, subsequent_indent=indent)
        lines += wrap(finding.advice, initial_indent=indent + "-> ", subsequent_indent=indent + "   ") if finding.advice else []
    problems = sum(finding.state == "problem" for finding in findings)
    verdict = "Ready: the lessons run on this machine."
    if problems:
        verdict = f"Not ready: cure {'the problem' if problems == 1 else f'the {problems} problems'} above, then ask again."
    return "\n".join(lines + ["", verdict])


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns its exit status: 0 if the lessons can run here, else 1."""
    parser = argparse.ArgumentParser(prog="python -m course_utils.doctor", description="Say what this machine is ready for.")
    parser.add_argument("--json", action="store_true", help="one JSON object on one line: machine, course, ready, checks")
    parser.add_argument("--patience", type=float, default=PATIENCE_SECONDS, metavar="SECONDS", help="for the libraries (%(default)s)")
    parser.add_argument("--probe", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.probe:
        probe()
        return 0
    findings = examine(options.patience)
    ready = is_ready(findings)
    if options.json:
        checks = [asdict(finding) for finding in findings]
        print(json.dumps({"machine": platform.node(), "course": __version__, "ready": ready, "checks": checks}))
    else:
        # An error text may hold signs that an old console can't show.
        encoding = sys.stdout.encoding or "ascii"
        print(screen(findings).encode(encoding, "replace").decode(encoding))
    return 0 if ready else 1


if __name__ == "__main__":
    sys.exit(main())
