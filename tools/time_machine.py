"""What did this program raise in 2023? Runs snippets under old versions, each in an environment of its own, and records what came of it.

    python -m tools.time_machine                      every environment, every snippet: measurements/time_machine.json
    python -m tools.time_machine transformers-4.37    one environment; the records of the others stay
    python -m tools.time_machine --search             look for one name in a release of every minor version of transformers

Environments are made when they are first asked for, from the package index, with the versions pinned below, and kept in
build/time_machine (about 15 GB on Linux, where the index has PyTorch with CUDA only). All run on the CPU, with no GPU to be seen. What
can't be installed is recorded as such. Where a program doesn't get as far as the error it is about, the line of the installed source
that would raise it is recorded instead.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from course_utils import ROOT
from course_utils.clinic import without_places
from tools.time_machine_snippets import SNIPPETS, TINY, Snippet

HOME = ROOT / "build" / "time_machine"
RECORDS = ROOT / "measurements" / "time_machine.json"
CHILD = ROOT / "tools" / "time_machine_child.py"
PINS = "installed.txt"
LONGEST = 1200
"""Characters of a message that are kept: half from its beginning, half from its end."""

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
INDEX = re.compile(r"-i https?://\S+")

OTHER_QUANTIZERS = re.compile(r"quantizer_(?!bnb_4bit)")
"""Files of transformers about other formats, whose messages are alike."""

CUDA_MEMORY = "torch/lib/libc10_cuda.so"
"""The library that says what PyTorch says when the memory of a GPU runs out."""

PACKAGES = ("torch", "transformers", "bitsandbytes", "accelerate", "tokenizers", "huggingface_hub")
"""Whose versions are recorded."""

# --- The environments ---


@dataclass(frozen=True)
class Base:
    """A virtual environment that several environments share: PyTorch, and what hardly matters here."""

    python: str
    packages: tuple[str, ...]


BASES = {
    "torch-2.1.2": Base(
        "3.11",
        (
            "torch==2.1.2", "numpy==1.26.4", "scipy==1.11.4", "psutil==5.9.8", "pyyaml==6.0.1", "regex==2023.12.25",
            "requests==2.31.0", "tqdm==4.66.2", "packaging==23.2", "filelock==3.13.1", "setuptools==69.5.1",
        ),
    ),
    "torch-2.4.1": Base(
        "3.11",
        (
            "torch==2.4.1", "numpy==1.26.4", "scipy==1.14.1", "psutil==6.0.0", "pyyaml==6.0.2", "regex==2024.7.24",
            "requests==2.32.3", "tqdm==4.66.5", "packaging==24.1", "filelock==3.15.4", "setuptools==72.2.0",
        ),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Environment:
    """Packages laid over a base, or over the course's own environment where `base` is None; or that one without one of its packages."""

    base: str | None
    packages: tuple[str, ...] = ()
    without: str | None = None


ENVIRONMENTS = {
    "transformers-4.29": Environment(
        "torch-2.1.2",
        ("transformers==4.29.2", "tokenizers==0.13.3", "huggingface-hub==0.15.1", "accelerate==0.19.0", "safetensors==0.3.1",
         "bitsandbytes==0.38.1"),
    ),
    "transformers-4.30": Environment(
        "torch-2.1.2",
        ("transformers==4.30.2", "tokenizers==0.13.3", "huggingface-hub==0.15.1", "accelerate==0.20.3", "safetensors==0.3.1",
         "bitsandbytes==0.39.1"),
    ),
    "transformers-4.36": Environment(
        "torch-2.1.2",
        ("transformers==4.36.2", "tokenizers==0.15.2", "huggingface-hub==0.20.3", "accelerate==0.25.0", "safetensors==0.4.2",
         "bitsandbytes==0.41.3.post2"),
    ),
    "transformers-4.37": Environment(
        "torch-2.1.2",
        ("transformers==4.37.2", "tokenizers==0.15.2", "huggingface-hub==0.20.3", "accelerate==0.26.1", "safetensors==0.4.2",
         "bitsandbytes==0.42.0"),
    ),
    "transformers-4.38": Environment(
        "torch-2.1.2",
        ("transformers==4.38.2", "tokenizers==0.15.2", "huggingface-hub==0.20.3", "accelerate==0.27.2", "safetensors==0.4.2",
         "bitsandbytes==0.42.0"),
    ),
    "transformers-4.44": Environment(
        "torch-2.4.1",
        ("transformers==4.44.2", "tokenizers==0.19.1", "huggingface-hub==0.24.6", "accelerate==0.33.0", "safetensors==0.4.4",
         "bitsandbytes==0.43.3"),
    ),
    "transformers-4.45": Environment(
        "torch-2.4.1",
        ("transformers==4.45.2", "tokenizers==0.20.0", "huggingface-hub==0.25.2", "accelerate==1.0.1", "safetensors==0.4.5",
         "bitsandbytes==0.44.1"),
    ),
    "transformers-4.45, no bitsandbytes": Environment(
        "torch-2.4.1",
        ("transformers==4.45.2", "tokenizers==0.20.0", "huggingface-hub==0.25.2", "accelerate==1.0.1", "safetensors==0.4.5"),
    ),
    "transformers-4.57": Environment(
        None, ("transformers==4.57.6", "tokenizers==0.22.2", "huggingface-hub==0.36.0", "accelerate==1.12.0", "bitsandbytes==0.49.1")
    ),
    "transformers-5.0": Environment(
        None, ("transformers==5.0.0", "tokenizers==0.22.2", "huggingface-hub==1.3.4", "accelerate==1.12.0", "bitsandbytes==0.49.1")
    ),
    "transformers-5.20": Environment(None, ("transformers==5.20.0", "bitsandbytes==0.50.0")),
    "the course's own": Environment(None),
    "the course's own, no bitsandbytes": Environment(None, without="bitsandbytes"),
}  # fmt: skip


def pip(python: str | Path, *arguments: str) -> None:
    """Run pip with another Python. CalledProcessError holds what it said."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-cache-dir", "--quiet", *arguments]
    subprocess.run(command, check=True, capture_output=True, text=True)


def made_once(folder: Path, packages: Iterable[str], make: Any) -> None:
    """Call `make` unless `folder` already holds just these packages. A folder that was left half-made is made again."""
    wanted, pins = "\n".join(packages) + "\n", folder / PINS
    if pins.is_file() and pins.read_text(encoding="utf-8") == wanted:
        return
    print(f"making {folder.name}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    make()
    pins.write_text(wanted, encoding="utf-8")


def base_python(name: str) -> Path:
    """The Python of a base, which is made if need be."""
    base, folder = BASES[name], HOME / name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    def make() -> None:
        subprocess.run([which_python(base.python), "-m", "venv", str(folder)], check=True, capture_output=True, text=True)
        pip(python, "install", *base.packages)

    made_once(folder, base.packages, make)
    return python


def which_python(version: str) -> str:
    """A Python of this version: the one that runs, or one on the PATH."""
    if platform.python_version().startswith(version + "."):
        return sys._base_executable
    found = shutil.which(f"python{version}")
    if found is None:
        raise FileNotFoundError(f"There is no python{version} on the PATH, which these old packages need.")
    return found


def interpreter(name: str) -> tuple[Path, Path | None]:
    """An environment's Python, and the folder that goes before its own packages. Both are made if need be."""
    environment, folder = ENVIRONMENTS[name], HOME / re.sub(r"[^\w.-]+", "-", name)
    if environment.without:
        link_all_but(environment.without, folder)
        return Path(sys._base_executable), folder
    python = base_python(environment.base) if environment.base else Path(sys.executable)
    if not environment.packages:
        return python, None
    made_once(folder, environment.packages, lambda: pip(python, "install", "--no-deps", "--target", str(folder), *environment.packages))
    return python, folder


def link_all_but(package: str, folder: Path) -> None:
    """Fill a folder with links to the course's own packages, one left out."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for installed in package_folders(Path(sys.executable), None)[0].iterdir():
        if installed.name.split("-")[0] != package:
            (folder / installed.name).symlink_to(installed, target_is_directory=installed.is_dir())


def variables(layer: Path | None) -> dict[str, str]:
    """The environment variables of a run: the layer's packages first, one thread, no GPU and no network."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "COURSE_MODEL", "HF_TOKEN")}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return {**kept, **offline, "PYTHONPATH": str(layer or ""), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8"}


# --- Running the snippets ---


def run_snippets(python: Path, layer: Path | None, snippets: dict[str, Snippet]) -> dict[str, dict[str, Any]]:
    """What came of each snippet in an environment. All share one process, but for those that must be alone and those after a crash."""
    shared = {name: TINY + snippet.code for name, snippet in snippets.items() if not snippet.alone}
    batches = [shared] + [{name: snippet.code} for name, snippet in snippets.items() if snippet.alone]
    results: dict[str, dict[str, Any]] = {}
    while batches:
        batch = batches.pop(0)
        seen, code = run_batch(python, layer, batch)
        results.update({name: judged(snippets[name], result) for name, result in seen.items()})
        left = {name: program for name, program in batch.items() if name not in seen}
        if left:
            crashed = next(iter(left))
            results[crashed] = {"outcome": "the process ended", "exit_code": code}
            batches.insert(0, {name: program for name, program in left.items() if name != crashed})
    return {name: results[name] for name in snippets}


def run_batch(python: Path, layer: Path | None, batch: dict[str, str]) -> tuple[dict[str, dict[str, Any]], int]:
    """Run programs in one fresh process, in an empty folder. Returns the results of those that ended, and the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.jsonl"
        command = [str(python), "-P", str(CHILD), str(results)]
        done = subprocess.run(command, input=json.dumps(batch), text=True, cwd=folder, env=variables(layer), capture_output=True)
        lines = results.read_text(encoding="utf-8").splitlines() if results.is_file() else []
    return {result.pop("id"): result for result in map(json.loads, lines)}, done.returncode


def judged(snippet: Snippet, result: dict[str, Any]) -> dict[str, Any]:
    """A result as it is recorded: what is this machine's own is left out, and the outcome is named."""
    error = result["error"]
    if error is None:
        outcome = "nothing raised"
    elif snippet.text in error["message"] and (snippet.text or not error["message"]):
        outcome = "raised"
    else:
        outcome = "another error"
    recorded: dict[str, Any] = {"outcome": outcome}
    if error:
        recorded["error"] = {**error, "message": tidy(error["message"])}
    for what in ("warned", "logged"):
        if result[what]:
            recorded[what] = [tidy(line) for line in dict.fromkeys(result[what])]
    if result["printed"].strip():
        recorded["printed"] = tidy(result["printed"])
    return recorded


def tidy(text: str) -> str:
    """A text as it is recorded: without places of this machine, colours and addresses of package indexes, and not too long.

    >>> tidy("\\x1b[1mpip install -i https://index.example/simple/ bitsandbytes\\x1b[0m")
    'pip install -i ... bitsandbytes'
    """
    text = INDEX.sub("-i ...", COLOUR.sub("", without_places(text)))
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]} [...] {text[-half:]}"


# --- Reading the source ---


def package_folders(python: Path, layer: Path | None) -> list[Path]:
    """Where the installed packages are: the layer, and the site-packages of the Python."""
    asked = subprocess.run(
        [str(python), "-P", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True
    )
    return [*([layer] if layer else []), Path(asked.stdout.strip())]


def source_lines(folders: list[Path], texts: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """Where each text stands in the Python files of transformers, bitsandbytes and torch: file, line and the line itself.

    In the compiled library of PyTorch's GPU memory, where there is one, a text has no line.
    """
    found: dict[str, list[dict[str, Any]]] = {text: [] for text in texts}
    for package in ("transformers", "bitsandbytes", "torch"):
        home = next((folder for folder in folders if (folder / package).is_dir()), None)
        for file in sorted((home / package).rglob("*.py")) if home else ():
            if OTHER_QUANTIZERS.search(file.name):
                continue
            content = file.read_text(encoding="utf-8", errors="replace")
            for text in found:
                if text in content:
                    line = content[: content.index(text)].count("\n")
                    where = file.relative_to(home).as_posix()
                    found[text].append({"file": where, "line": line + 1, "text": content.splitlines()[line].strip()[:240]})
    for library in (folder / CUDA_MEMORY for folder in folders):
        if library.is_file():
            strings = [printable.decode() for printable in re.findall(rb"[\x20-\x7e]{10,400}", library.read_bytes())]
            for text in found:
                found[text] += [{"file": CUDA_MEMORY, "line": None, "text": string.strip()} for string in strings if text in string][:1]
    return found


def occurrences(folder: Path, text: str) -> dict[str, Any]:
    """In how many files of a folder a text stands, Python, compiled or other; CUDA's own libraries are left out."""
    files, hits = 0, []
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        if file.is_file() and not file.is_symlink() and inside.parts[0] != "nvidia" and file.suffix != ".pyc":
            files += 1
            if text.encode() in file.read_bytes():
                hits.append(inside.as_posix())
    return {"files": files, "hits": hits}


# --- One environment, and all of them ---


def visit(name: str, snippets: dict[str, Snippet]) -> dict[str, Any]:
    """Everything recorded about an environment."""
    record: dict[str, Any] = {"date": datetime.date.today().isoformat(), "pinned": list(ENVIRONMENTS[name].packages)}
    try:
        python, layer = interpreter(name)
    except (subprocess.CalledProcessError, OSError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return {**record, "installed": False, "why": tidy(said.strip())}
    folders = package_folders(python, layer)
    record |= {"installed": True, "machine": machine(), "versions": versions(python, layer)}
    record["runs"] = run_snippets(python, layer, snippets)
    lines = source_lines(folders, [snippet.source for snippet in snippets.values() if snippet.source])
    for snippet_id, snippet in snippets.items():
        run = record["runs"][snippet_id]
        if snippet.source:
            run["in_source"] = lines[snippet.source]
        if run["outcome"] == "another error" and run.get("in_source"):
            run["outcome"] = "out of reach"
    return record


def versions(python: Path, layer: Path | None) -> dict[str, str | None]:
    """The versions that a program meets in an environment; None for a package that is not there."""
    program = (
        "import importlib.metadata as m, json, sys\n"
        "def version(name):\n"
        "    try: return m.version(name).split('+')[0]\n"
        "    except m.PackageNotFoundError: return None\n"
        f"print(json.dumps({{'python': sys.version.split()[0], **{{n: version(n) for n in {PACKAGES}}}}}))"
    )
    done = subprocess.run([str(python), "-P", "-c", program], env=variables(layer), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def machine() -> dict[str, Any]:
    """What of this machine the errors may depend on."""
    from course_utils import models

    models.quiet()  # before bitsandbytes is imported
    from bitsandbytes.functional import has_avx512bf16

    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "avx512_bf16": bool(has_avx512bf16()),
        "gpu": "none, or hidden",
    }


def search(text: str) -> dict[str, Any]:
    """Look for a text in the last release of every minor version of transformers since 4.27, and in the environments that are made."""
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "index", "versions", "transformers"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    known = re.search(r"^Available versions: (.*)$", asked.stdout, re.MULTILINE)
    assert known, asked.stdout
    releases = {}
    for version in last_of_each_minor(known[1].split(", ")):
        releases[version] = search_wheel(version, text)
        print(version, releases[version], flush=True)
    folders = {folder.name: folder for folder in sorted(HOME.iterdir()) if folder.is_dir() and folder.name not in BASES}
    folders = {name: folder for name, folder in folders.items() if (folder / PINS).is_file()}
    folders |= {name: folder for name in BASES for folder in (HOME / name).glob("lib/python*/site-packages")}
    folders["the course's own"] = package_folders(Path(sys.executable), None)[0]
    return {
        "text": text,
        "date": datetime.date.today().isoformat(),
        "transformers": releases,
        "installed": {name: occurrences(folder, text) for name, folder in folders.items()},
    }


def last_of_each_minor(known: Iterable[str], since: tuple[int, int] = (4, 27)) -> list[str]:
    """The last release of every minor version, oldest first.

    >>> last_of_each_minor(["5.0.0", "4.30.2", "4.30.1", "4.26.0", "5.0.0rc1"])
    ['4.30.2', '5.0.0']
    """
    numbers = sorted(tuple(int(part) for part in version.split(".")) for version in known if re.fullmatch(r"\d+\.\d+\.\d+", version))
    last = {version[:2]: version for version in numbers if version[:2] >= since}
    return [".".join(map(str, version)) for version in last.values()]


def search_wheel(version: str, text: str) -> dict[str, Any]:
    """Fetch a release of transformers, look into it, and throw it away. Its day is that on which its files were packed."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            pip(sys.executable, "download", "--no-deps", "--only-binary=:all:", "--dest", folder, f"transformers=={version}")
        except subprocess.CalledProcessError as error:
            return {"fetched": False, "why": tidy(error.stderr.strip())}
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            files = [info for info in wheel.infolist() if not info.is_dir()]
            hits = [info.filename for info in files if text.encode() in wheel.read(info)]
            day = max(info.date_time for info in files)
    return {"fetched": True, "packed": "{:04}-{:02}-{:02}".format(*day), "files": len(files), "hits": hits}


def read() -> dict[str, Any]:
    """The records as they are, or empty ones."""
    return json.loads(RECORDS.read_text(encoding="utf-8")) if RECORDS.is_file() else {}


def write(records: dict[str, Any]) -> None:
    """Write the records in one step, environments in their order."""
    order = list(ENVIRONMENTS)
    ordered = {
        "what": "what each snippet raised under each set of versions",
        "command": "python -m tools.time_machine",
        "snippets": {name: asdict(snippet) for name, snippet in SNIPPETS.items()},
        "environments": dict(sorted(records.get("environments", {}).items(), key=lambda item: order.index(item[0]))),
        "search": records.get("search", {}),
    }
    half = RECORDS.with_suffix(".part")
    half.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(half, RECORDS)


def summary(records: dict[str, Any]) -> Iterator[str]:
    """One line for each environment."""
    for name, record in records["environments"].items():
        if not record["installed"]:
            yield f"{name}: not installed. {record['why'].splitlines()[-1]}"
            continue
        outcomes = [run["outcome"] for run in record["runs"].values()]
        counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in dict.fromkeys(outcomes))
        yield f"{name}: {counts}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("environments", nargs="*", metavar="ENVIRONMENT", help=f"one of: {'; '.join(ENVIRONMENTS)}")
    parser.add_argument("--search", action="store_true", help="look for `_builtin_model_class` in every minor release of transformers")
    chosen = parser.parse_args(arguments)
    unknown = [name for name in chosen.environments if name not in ENVIRONMENTS]
    if unknown:
        parser.error(f"there is no environment {unknown[0]!r}; there are {'; '.join(ENVIRONMENTS)}")
    records = read()
    records.setdefault("environments", {})
    if chosen.search:
        records["search"] = search("_builtin_model_class")
    else:
        for name in chosen.environments or ENVIRONMENTS:
            records["environments"][name] = visit(name, SNIPPETS)
            write(records)  # after each, so that a stop loses one environment only
    write(records)
    print(*summary(records), sep="\n")


if __name__ == "__main__":
    main()
