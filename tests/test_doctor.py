"""The doctor on machines where something is broken: for real where that can be arranged, from the facts where it can't."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import http.server
import importlib.metadata
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from packaging.requirements import Requirement

from course_utils import ROOT, doctor
from course_utils.doctor import Finding, Machine

NAMES = ["Python", "operating system", "packages", "torch", "bitsandbytes", "transformers", "jupyterlab"]
NAMES += ["GPU", "CPU", "memory", "disk", "model abacus", "Hub"]

NO_CORE_FILE = """
import contextlib
with contextlib.suppress(ImportError):
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
"""

TORCH_ON_CPU = """
class Attributes:
    def __init__(self, **values):
        self.__dict__.update(values)
__version__ = "2.13.0"
version = Attributes(cuda=None, hip=None)
cuda = Attributes(is_available=lambda: False, device_count=lambda: 0)
backends = Attributes(mps=Attributes(is_available=lambda: False))
"""


def write_model(folder: Path) -> Path:
    """A folder that looks like a model's: two JSON files, 64 weights, checksums."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{\n"model_type": "llama"\n}\n', encoding="utf-8", newline="\n")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    header = json.dumps({"__metadata__": {}, "weight": {"dtype": "F32", "shape": [8, 8], "data_offsets": [0, 256]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(range(256)))
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(folder.iterdir())]
    (folder / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "abacus")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of the course, with what the doctor needs of it, a model of its own, and installed just now."""
    folder = tmp_path / "clone"
    (folder / "course_utils").mkdir(parents=True)
    for name in ("__init__.py", "doctor.py"):
        shutil.copy(ROOT / "course_utils" / name, folder / "course_utils" / name)
    shutil.copy(ROOT / "pyproject.toml", folder)
    write_model(folder / "models" / "abacus")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + [f"{text}; extra == 'test'" for text in project["optional-dependencies"]["test"]]
    distribution(folder, "four-bits", "0.0", requires_python=project["requires-python"], requires=wanted)
    return folder


def run(clone: Path, *arguments: str, python: str = sys.executable, stubs: Path | None = None, **variables: str) -> CompletedProcess[str]:
    """The command as a learner gives it. `stubs`: a folder of packages that come before the installed ones."""
    unset = {"COURSE_MODEL", "COURSE_WORK", "HF_ENDPOINT", "PYTHONPATH"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | variables
    if stubs is not None:
        environment["PYTHONPATH"] = str(stubs)
    return subprocess.run(
        [python, "-m", "course_utils.doctor", *arguments],
        cwd=clone, env=environment, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", timeout=120,
    )  # fmt: skip


def read(done: CompletedProcess[str]) -> dict[str, Finding]:
    """The findings by name, out of what `--json` printed; the exit status and the shape are what they must be."""
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1, "one object on one line"
    report = json.loads(done.stdout)
    assert set(report) == {"machine", "course", "ready", "checks"}
    findings = [Finding(**check) for check in report["checks"]]
    assert [finding.name for finding in findings] == NAMES
    assert {finding.state for finding in findings} <= {"ok", "note", "problem"}
    assert all(finding.advice for finding in findings if finding.state != "ok"), "what to do about it"
    assert report["ready"] == all(finding.state != "problem" for finding in findings)
    assert done.returncode == (0 if report["ready"] else 1)
    return {finding.name: finding for finding in findings}


def stub(folder: Path, package: str, code: str) -> Path:
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(NO_CORE_FILE + code, encoding="utf-8")
    return folder


def distribution(folder: Path, package: str, version: str, requires_python: str = ">=3", requires: list[str] | None = None) -> Path:
    """The metadata of an installed package, which is all that the bounds are read from and compared with."""
    place = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    place.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {package}", f"Version: {version}", f"Requires-Python: {requires_python}"]
    lines += [f"Requires-Dist: {text}" for text in requires or []]
    (place / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


# --- The command ---


def test_a_sound_machine_is_ready_within_seconds(clone: Path) -> None:
    before = os.times()
    findings = read(run(clone, "--json"))
    after = os.times()
    # Seconds of work, not of waiting while other tests run. (Windows doesn't count those of children.)
    assert after.children_user + after.children_system - before.children_user - before.children_system < 20
    assert [finding for finding in findings.values() if finding.state == "problem"] == []
    assert findings["torch"].found.startswith(importlib.metadata.version("torch"))
    assert "to 4 bits and back" in findings["bitsandbytes"].found
    assert findings["packages"].state == "ok" or "newer than tested" in findings["packages"].found
    assert findings["model abacus"].found == "intact"
    assert findings["Hub"].found == "switched off by HF_HUB_OFFLINE"
    if Path("/proc/cpuinfo").exists():  # there, what bitsandbytes says of the processor can be compared
        assert ("with avx512_bf16" in findings["CPU"].found) == doctor.has_avx512_bf16({})


def test_the_screen_is_one_screen_and_ends_with_a_verdict(clone: Path, tmp_path: Path) -> None:
    shutil.rmtree(clone / "models")
    stubs = stub(tmp_path / "stubs", "torch", "raise OSError('no such library, ' + 'and a long text ' * 40)")
    for requirement in doctor.requirements_of_pyproject():  # as much as can be wrong at once
        distribution(stubs, Requirement(requirement).name, "0.1")
    done = run(clone, stubs=stubs, HF_HUB_OFFLINE="0", HF_ENDPOINT="http://localhost:1")
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and done.stderr == ""
    assert len(lines) <= 40 and max(map(len, lines)) <= 110
    assert lines[-1] == "Not ready: cure the 3 problems above, then ask again."
    assert sum(line.startswith("problem ") for line in lines) == 3
    assert [name for name in NAMES if any(line[9:].startswith(name) for line in lines)] == NAMES


def test_the_verdict_and_the_status_follow_from_the_problems() -> None:
    good, note = Finding("memory", "ok", "8 GB"), Finding("Hub", "note", "off", "Nothing.")
    bad = Finding("torch", "problem", "gone", "Install.")
    assert doctor.is_ready([good, note]) and not doctor.is_ready([good, note, bad])
    assert doctor.screen([good, note]).endswith("Ready: the lessons run on this machine.")
    assert doctor.screen([bad, good]).endswith("Not ready: cure the problem above, then ask again.")


@pytest.mark.parametrize("name", ["__init__.py", "doctor.py"])
def test_an_old_python_can_read_the_file(name: str) -> None:
    tree = ast.parse((ROOT / "course_utils" / name).read_text(encoding="utf-8"), feature_version=(3, 8))
    imported = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert {module.split(".")[0] for module in imported} <= sys.stdlib_module_names | {"course_utils"}


@pytest.mark.parametrize("version", ["3.8", "3.9", "3.10"])
def test_an_old_python_is_told_what_to_install(clone: Path, version: str) -> None:
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "--version"], capture_output=True).returncode != 0:
        pytest.skip(f"no Python {version} here")
    findings = read(run(clone, "--json", python=python))
    assert findings["Python"].state == "problem" and "too old" in findings["Python"].found and "python.org" in findings["Python"].advice
    assert findings["packages"].advice == findings["torch"].advice == "First see Python."


# --- Packages and libraries that are broken, missing, or not as tested ---


def test_nothing_installed_at_all(clone: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    python = next(file for file in (tmp_path / "bare").glob("*/python*") if file.stem == "python")
    findings = read(run(clone, "--json", python=str(python)))
    assert (findings["torch"].state, findings["torch"].found) == ("problem", "not installed")
    assert findings["torch"].advice.endswith("python -m pip install -e . -c constraints.txt")
    assert findings["bitsandbytes"].advice == "First see torch."
    assert findings["packages"].state == "note"  # without packaging, which pip would bring, versions can't be compared
    assert findings["model abacus"].found == "intact"


def test_psutil_rich_and_packaging_missing(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "stubs").mkdir()
    blocked = "import sys\nfor name in ('psutil', 'rich', 'packaging', 'certifi', 'torch'):\n    sys.modules[name] = None\n"
    (tmp_path / "stubs" / "sitecustomize.py").write_text(blocked, encoding="utf-8")
    findings = read(run(clone, "--json", stubs=tmp_path / "stubs"))
    assert findings["torch"].found == "not installed"
    assert findings["packages"].state == "ok"  # compared with the help of pip's own copy of packaging
    assert findings["memory"].state in ("ok", "note")


def test_torch_that_cannot_load_its_library(clone: Path, tmp_path: Path) -> None:
    stubs = stub(tmp_path / "stubs", "torch", "import ctypes\nctypes.CDLL('libtorch_that_is_not_there.so')")
    findings = read(run(clone, "--json", stubs=stubs))
    assert findings["torch"].state == "problem" and "libtorch_that_is_not_there.so" in findings["torch"].found
    assert findings["GPU"].found.endswith("torch can't be asked")


@pytest.mark.parametrize(("fault", "signal"), [("import os; os.abort()", "SIGABRT"), ("import ctypes; ctypes.string_at(0)", "SIGSEGV")])
def test_bitsandbytes_that_crashes_is_reported_and_not_suffered(clone: Path, tmp_path: Path, fault: str, signal: str) -> None:
    stub(tmp_path / "stubs", "torch", TORCH_ON_CPU)  # importing the real one takes seconds and would change nothing
    findings = read(run(clone, "--json", stubs=stub(tmp_path / "stubs", "bitsandbytes", fault)))
    assert findings["torch"].state == "ok"
    assert findings["bitsandbytes"].state == "problem"
    assert os.name == "nt" or f"crashed ({signal})" in findings["bitsandbytes"].found  # Windows has no signals
    assert findings["transformers"].advice == "First see bitsandbytes."


@pytest.mark.parametrize("broken", ["zmq", "matplotlib"])
def test_a_lesson_that_could_not_be_opened_is_a_problem(broken: str, tmp_path: Path) -> None:
    code = "from course_utils import doctor; doctor.PROBES = {'jupyterlab': doctor.probe_jupyterlab}; doctor.probe()"
    stubs = stub(tmp_path / "stubs", broken, f"raise ImportError('no library of {broken}')")
    environment = {**os.environ, "PYTHONPATH": str(stubs)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", check=True)
    _, result = json.loads(done.stdout.removeprefix(doctor.MARK))
    finding = doctor.judge_library("jupyterlab", result, "")
    assert finding.state == "problem" and f"no library of {broken}" in finding.found and "the environment anew" in finding.advice


def test_bitsandbytes_without_its_native_library(clone: Path, tmp_path: Path) -> None:
    whole = Path(importlib.util.find_spec("bitsandbytes").origin).parent
    native = shutil.ignore_patterns("*.so", "*.dll", "*.dylib", "__pycache__")
    shutil.copytree(whole, tmp_path / "stubs" / "bitsandbytes", ignore=native)
    findings = read(run(clone, "--json", stubs=tmp_path / "stubs"))
    assert findings["torch"].state == "ok"
    assert findings["bitsandbytes"].state == "problem" and "native library" in findings["bitsandbytes"].found


def test_a_library_that_hangs_costs_no_more_than_the_patience(clone: Path, tmp_path: Path) -> None:
    start = time.monotonic()
    done = run(clone, "--json", "--patience", "1", stubs=stub(tmp_path / "stubs", "torch", "import time\ntime.sleep(60)"))
    assert time.monotonic() - start < 20
    assert read(done)["torch"].found == "can't be imported: no answer in 1 seconds"


def test_versions_outside_the_bounds(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(clone)
    wanted, remark = doctor.requirements_of_course()
    assert remark == ""
    monkeypatch.syspath_prepend(distribution(tmp_path / "newer", "psutil", "99.0"))
    newer = doctor.judge_packages(wanted, remark)
    assert newer.state == "note" and "psutil 99.0 (tested:" in newer.found and "numpy" not in newer.found
    monkeypatch.syspath_prepend(distribution(tmp_path / "older", "torch", "2.4.0+cpu"))
    older = doctor.judge_packages(wanted, remark)
    assert older.state == "problem" and "torch 2.4.0+cpu (needed:" in older.found and "psutil 99.0" in older.found


def test_a_missing_package_is_named_and_one_for_another_system_is_not() -> None:
    wanted = ["no-such-package>=1", 'another-one; sys_platform == "none"']
    finding = doctor.judge_packages(wanted, "")
    assert (finding.state, finding.found) == ("problem", "missing: no-such-package")


def test_bounds_without_and_beside_the_installed_metadata(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ROOT", clone)
    monkeypatch.syspath_prepend(clone)
    project = clone / "pyproject.toml"
    wanted, remark = doctor.requirements_of_course()
    assert remark == "" and len(wanted) == len(doctor.requirements_of_pyproject()), "what only tests need is left out"
    project.write_text(project.read_text(encoding="utf-8").replace("torch>=2.", "torch>=1."), encoding="utf-8")
    remark = doctor.requirements_of_course()[1]
    assert "has changed" in remark and doctor.judge_packages([], remark).state == "note"

    def not_installed(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", not_installed)
    monkeypatch.setattr(importlib.metadata, "metadata", not_installed)
    wanted, remark = doctor.requirements_of_course()
    assert any(requirement.startswith("torch>=1.") for requirement in wanted) and "not installed" in remark
    assert doctor.python_bounds().startswith(">=3.")
    project.unlink()
    assert doctor.python_bounds() == ""
    assert doctor.guarded("packages", lambda: doctor.judge_packages(*doctor.requirements_of_course())).state == "note"


# --- Pythons and systems that one doesn't have ---

NEWEST = "{}.{}".format(*doctor.NEWEST_PYTHON)
BEYOND = f"{doctor.NEWEST_PYTHON[0]}.{doctor.NEWEST_PYTHON[1] + 1}"


@pytest.mark.parametrize(
    ("version", "implementation", "has_torch", "state"),
    [
        ("3.8.18", "CPython", False, "problem"),
        ("3.10.2", "CPython", True, "problem"),
        ("3.11.0", "CPython", False, "ok"),
        (f"{NEWEST}.1", "CPython", False, "ok"),
        (f"{BEYOND}.0rc1", "CPython", False, "problem"),
        (f"{BEYOND}.0", "CPython", True, "note"),
        ("3.11.9", "PyPy", False, "problem"),
    ],
)
def test_which_python(version: str, implementation: str, has_torch: bool, state: str) -> None:
    finding = doctor.judge_python(version, implementation, doctor.python_bounds(), has_torch, "no virtual environment")
    assert finding.state == state and version in finding.found
    assert state != "problem" or "python.org" in finding.advice


@pytest.mark.parametrize(
    ("machine", "why", "cure"),
    [
        (Machine("Darwin", "x86_64", version="15.1"), "Intel Macs", "Binder"),
        (Machine("Darwin", "x86_64", version="15.1", translated=True), "Apple processor", "python.org"),
        (Machine("Darwin", "arm64", version="13.6"), "macOS 13.6 is too old", "Update macOS"),
        (Machine("Windows", "win32", bits=32), "32-bit Python", "64-bit Python from python.org"),
        (Machine("Windows", "arm64"), "Windows on ARM", "WSL"),
        (Machine("Linux", "x86_64", musl=True), "musl", "Debian"),
        (Machine("Linux", "x86_64", version="2.27"), "glibc 2.27", "newer distribution"),
        (Machine("Linux", "riscv64", version="2.39"), "Linux on riscv64", "Binder"),
        (Machine("FreeBSD", "amd64"), "FreeBSD on amd64", "another machine"),
    ],
)
def test_a_machine_without_wheels_is_told_what_to_use(machine: Machine, why: str, cure: str) -> None:
    finding = doctor.judge_system(machine, has_torch=False)
    assert finding.state == "problem" and why in finding.found and cure in finding.advice
    assert doctor.judge_system(machine, has_torch=True).state == "note"


@pytest.mark.parametrize(
    "machine",
    [
        Machine("Linux", "x86_64", version="2.28"),
        Machine("Linux", "aarch64", version="2.39"),
        Machine("Linux", "x86_64"),
        Machine("Darwin", "arm64", version="14.0"),
        Machine("Windows", "amd64"),
        doctor.this_machine(),
    ],
)
def test_a_machine_with_wheels(machine: Machine) -> None:
    assert doctor.judge_system(machine, has_torch=False).state == "ok"


# --- Memory, disk, processor, GPU ---


def test_memory_in_a_container_is_that_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 500000\ninactive_file 200000\n")  # pages of files, which the system gives back
    monkeypatch.setattr(doctor, "CONTAINER", tmp_path)
    assert doctor.read_memory() == (500_000, 1_000_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor.read_memory()[1] > 1_000_000, "no limit: the whole machine"


def test_memory_without_psutil_is_what_psutil_says(monkeypatch: pytest.MonkeyPatch) -> None:
    with_psutil = doctor.read_memory()
    assert with_psutil is not None and 0 < with_psutil[0] <= with_psutil[1]
    monkeypatch.setitem(sys.modules, "psutil", None)
    if Path("/proc/meminfo").exists():
        assert doctor.read_memory()[1] == with_psutil[1]

    def unreadable(*arguments: object, **options: object) -> str:
        raise FileNotFoundError("no /proc")

    monkeypatch.setattr(Path, "read_text", unreadable)
    assert doctor.read_memory() is None
    assert doctor.judge_memory(None).state == "note"
    assert doctor.has_avx512_bf16({}) in (None, False)


@pytest.mark.parametrize(("free", "total", "state"), [(0.3, 8, "problem"), (0.3, 0.5, "problem"), (1.2, 4, "note"), (4, 8, "ok")])
def test_memory(free: float, total: float, state: str) -> None:
    assert doctor.judge_memory((int(free * 10**9), int(total * 10**9))).state == state


def test_the_room_that_is_promised_holds_the_weights() -> None:
    found = doctor.judge_memory((8 * 10**9, 16 * 10**9)).found
    in_4_bits, in_16_bits = (float(word) for word in found.replace(",", "").split() if word in ("11.4", "3.2"))
    assert in_4_bits * 1e9 * 4.5 / 8 < 0.81 * 8e9 and in_16_bits * 1e9 * 2 <= 0.8 * 8e9


def test_disk(tmp_path: Path) -> None:
    free, refusal = doctor.read_disk(tmp_path / "not" / "made" / "yet")
    assert free > 0 and refusal == "" and list(tmp_path.iterdir()) == []
    assert [doctor.judge_disk(int(gigabytes * 10**9), "").state for gigabytes in (0.01, 1, 5)] == ["problem", "note", "ok"]


@pytest.mark.skipif(os.name == "nt" or (hasattr(os, "geteuid") and os.geteuid() == 0), reason="who may write everywhere can't be refused")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    finding = doctor.judge_disk(*doctor.read_disk(tmp_path))
    tmp_path.chmod(0o700)
    assert finding.state == "problem" and "COURSE_WORK" in finding.advice


def test_a_place_that_is_no_folder_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert doctor.judge_disk(*doctor.read_disk(tmp_path / "file")).state == "problem"


def test_each_cpu_gets_its_path_in_one_sentence() -> None:
    """No packed path doesn't mean no avx512_bf16: the libraries of bitsandbytes for CUDA and for Windows have none for any CPU."""
    assert "repacks" in doctor.judge_cpu(8, True).found
    assert "plain path" in doctor.judge_cpu(1, False).found and doctor.judge_cpu(1, False).found.startswith("1 core,")
    assert "without" not in doctor.judge_cpu(1, False).found
    assert doctor.judge_cpu(None, None).state == "note"


def torch_facts(*gpus: dict, cuda_build: str | None = "13.0", mps: bool = False, complaints: tuple[str, ...] = ()) -> dict:
    return {"version": "2.13.0", "cuda_build": cuda_build, "complaints": list(complaints), "mps": mps, "gpus": list(gpus)}


H200 = {"name": "NVIDIA H200", "bytes": 150_000_000_000, "capability": "9.0"}
T4 = {"name": "Tesla T4", "bytes": 16_000_000_000, "capability": "7.5"}
WORKS = {"version": "0.50.2", "library": "libbitsandbytes_cuda130.so", "avx512_bf16": False, "failed": {}}


@pytest.mark.parametrize(
    ("torch", "bitsandbytes", "driver_sees", "state", "found", "advice"),
    [
        (torch_facts(), WORKS, [], "ok", "none", "runs on the CPU"),
        (torch_facts(H200), WORKS, [], "ok", "compute capability 9.0; bitsandbytes uses libbitsandbytes_cuda130.so", ""),
        (torch_facts(T4, T4), WORKS, [], "note", "2 x Tesla T4", "float16"),
        (torch_facts(H200), dict(WORKS, library=None), [], "problem", "no native library", "CUDA_VISIBLE_DEVICES"),
        (torch_facts(H200), dict(WORKS, failed={"cuda:0": "no kernel image"}), [], "problem", "no kernel image", "CUDA_VISIBLE_DEVICES"),
        (torch_facts(H200), {"error": "crashed"}, [], "note", "can't be asked", "bitsandbytes"),
        (torch_facts(cuda_build=None), WORKS, ["Tesla T4"], "note", "built for the CPU only", "CUDA build"),
        (torch_facts(complaints=("driver too old",)), WORKS, ["Tesla T4"], "note", "driver too old", "Update"),
        (torch_facts(mps=True, cuda_build=None), WORKS, [], "ok", "MPS", "runs on the CPU"),
        ({"error": "crashed"}, {"error": "not tried"}, ["Tesla T4"], "note", "Tesla T4, but torch", "torch"),
    ],
)
def test_gpus(torch: dict, bitsandbytes: dict, driver_sees: list[str], state: str, found: str, advice: str) -> None:
    finding = doctor.judge_gpu(torch, bitsandbytes, driver_sees)
    assert finding.state == state and found in finding.found and advice in finding.advice


def test_the_driver_is_asked_by_its_own_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.name == "nt":
        pytest.skip("a shell script stands in for nvidia-smi")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: Tesla T4 (UUID: GPU-1b2c)'\n", encoding="utf-8")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert doctor.ask_nvidia_driver() == ["Tesla T4"]
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'couldn''t communicate with the NVIDIA driver'; exit 9\n", encoding="utf-8")
    assert doctor.ask_nvidia_driver() == []


# --- The Hub ---


@contextlib.contextmanager
def hub(status: int) -> Iterator[str]:
    """The address of a server on this machine that answers everything with `status`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("status", "reached"), [(200, True), (404, True), (407, False), (503, False)])
def test_a_hub_that_answers(status: int, reached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with hub(status) as address:
        failure = doctor.HubQuestion(address).answer()
    finding = doctor.judge_hub(address, False, failure)
    assert finding.state == ("ok" if reached else "note") and address in finding.found


def test_a_hub_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # taken, but nobody listens
        finding = doctor.judge_hub("the Hub", False, doctor.HubQuestion(f"http://127.0.0.1:{closed.getsockname()[1]}").answer())
    assert finding.state == "note" and "can't be reached" in finding.found and "offline" in finding.advice
    assert doctor.HubQuestion("no address at all").answer() != ""


def test_a_hub_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        assert doctor.HubQuestion(f"http://127.0.0.1:{silent.getsockname()[1]}", seconds=0.3).answer() != ""
        assert time.monotonic() - start < 5


def test_a_hub_behind_an_unknown_certificate() -> None:
    failure = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate in certificate chain"
    assert "SSL_CERT_FILE" in doctor.judge_hub("https://huggingface.co", False, failure).advice


# --- The bundled model ---


def test_a_model_that_is_whole(model: Path) -> None:
    assert doctor.judge_model(model, None) == Finding("model abacus", "ok", "intact")
    assert "COURSE_MODEL puts Qwen" in doctor.judge_model(model, "Qwen/Qwen2.5-0.5B-Instruct").found
    (model / "SHA256SUMS").unlink()
    assert doctor.judge_model(model, None).found == "intact (by size; there are no checksums)"


def cut_short(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def cut_in_the_header(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:20])


def flip_one_bit(model: Path) -> None:
    content = bytearray((model / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (model / "model.safetensors").write_bytes(content)


def change_the_configuration(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")


def take_the_weights_away(model: Path) -> None:
    (model / "model.safetensors").unlink()


def leave_a_pointer(model: Path) -> None:
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", encoding="utf-8")


def leave_a_merge_conflict(model: Path) -> None:
    (model / "SHA256SUMS").unlink()
    (model / "config.json").write_text("<<<<<<< HEAD\n{}\n", encoding="utf-8")


def put_a_folder_in_its_place(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").mkdir()


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (cut_short, "model.safetensors: "),
        (cut_in_the_header, "model.safetensors: cut short"),
        (flip_one_bit, "model.safetensors: not as it was published"),
        (change_the_configuration, "config.json: not as it was published"),
        (take_the_weights_away, "model.safetensors: missing"),
        (leave_a_pointer, "model.safetensors: a pointer of Git LFS"),
        (leave_a_merge_conflict, "config.json: not JSON"),
        (put_a_folder_in_its_place, "model.safetensors: can't be read"),
        (shutil.rmtree, "the folder models/abacus is missing"),
    ],
)
def test_a_damaged_model_is_named(model: Path, damage, what: str) -> None:
    damage(model)
    finding = doctor.judge_model(model, None)
    assert finding.state == "problem" and finding.found.startswith(what) and "git checkout" in finding.advice
    assert ";" not in finding.found, "one fault, one name"


def test_the_size_that_is_named_is_the_size_that_is_missing(model: Path) -> None:
    whole = (model / "model.safetensors").stat().st_size
    cut_short(model)
    assert doctor.safetensors_fault(model / "model.safetensors") == f"{whole - 100:,} bytes, by its header {whole:,}"


def test_windows_line_ends_do_a_text_no_harm(model: Path) -> None:
    for name in ("config.json", "SHA256SUMS"):
        (model / name).write_bytes((model / name).read_bytes().replace(b"\n", b"\r\n"))
    assert doctor.judge_model(model, None).state == "ok"


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum here")
def test_the_checksums_are_those_of_sha256sum(model: Path) -> None:
    files = ["config.json", "tokenizer.json", "model.safetensors"]
    for mode in ("--text", "--binary"):
        written = subprocess.run(["sha256sum", mode, *files], cwd=model, capture_output=True, check=True).stdout
        (model / "SHA256SUMS").write_bytes(written)
        assert doctor.judge_model(model, None).state == "ok"
    flip_one_bit(model)
    assert doctor.judge_model(model, None).state == "problem"


def test_the_weights_that_safetensors_itself_writes(model: Path) -> None:
    numpy, save = pytest.importorskip("numpy"), pytest.importorskip("safetensors.numpy").save_file
    (model / "SHA256SUMS").unlink()
    save({"a": numpy.ones((3, 5), "float32"), "empty": numpy.ones((0,), "float32")}, model / "model.safetensors", metadata={"format": "pt"})
    assert doctor.judge_model(model, None).state == "ok"


# --- A check that breaks, a second process that can't be had ---


def test_a_check_that_breaks_leaves_the_others() -> None:
    finding = doctor.guarded("disk", lambda: Finding("disk", "ok", str(1 / 0)))
    assert finding.state == "note" and "ZeroDivisionError" in finding.found and finding.advice


def test_no_second_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(ROOT / "no" / "python"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    findings = {finding.name: finding for finding in doctor.examine()}
    assert findings["torch"].state == "problem" and "second process" in findings["torch"].found
