"""pyproject.toml is the one list of dependencies: whatever else names a version, a file or a command agrees with it."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import course_utils
from course_utils import ROOT
from tools import lock

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
COMMANDS = set(re.findall(r"^([a-z-]+):.*##", MAKEFILE, flags=re.MULTILINE))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def named(*groups: str) -> dict[str, SpecifierSet]:
    """The dependencies of the course (group "") and of its extras: name -> bounds."""
    lines = [line for group in groups for line in (EXTRAS[group] if group else PROJECT["dependencies"])]
    return {canonicalize_name(requirement.name): requirement.specifier for requirement in map(Requirement, lines)}


EVERYTHING = named("", *EXTRAS)
PINS = dict(line.split("==") for line in read("constraints.txt").splitlines() if not line.startswith("#"))


def test_every_dependency_has_two_bounds_and_a_reason() -> None:
    lines = [line.strip() for line in read("pyproject.toml").splitlines() if re.match(r'\s+"[\w-]+[>=<~!]', line)]
    assert len(lines) == len(EVERYTHING) == len(lock.dependencies())
    for line in lines:
        assert re.fullmatch(r'"[\w-]+>=[\d.]+,<[\d.]+",\s+# .{10,}', line), line


def test_the_bounds_of_torch_are_the_same_in_the_readme() -> None:
    assert EVERYTHING["torch"] == SpecifierSet(">=2.11,<2.14")
    elsewhere = re.findall(r'torch([><=][^"\s]+)"', README)
    assert all(SpecifierSet(bounds) == EVERYTHING["torch"] for bounds in elsewhere)


@pytest.mark.parametrize("name", sorted(EVERYTHING))
def test_constraints_pin_every_dependency_inside_its_bounds(name: str) -> None:
    assert Version(PINS[name]) in EVERYTHING[name]


def test_constraints_are_versions_and_nothing_else() -> None:
    for line in read("constraints.txt").splitlines():
        assert line.startswith("# ") or re.fullmatch(r"[a-z0-9-]+==[0-9]+(\.[0-9]+)*([a-z]+[0-9]+)?", line), line
    assert list(PINS) == sorted(PINS)
    assert [name for name in PINS if re.match("nvidia|cuda|triton|four-bits", name)] == []


def imports(*paths: Path) -> set[str]:
    """The first names of all modules that these files import, wherever in the file."""
    found = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize(
    ("folder", "groups"), [("course_utils", [""]), ("source", [""]), ("tools", ["", "test"]), ("tests", ["", "test", "browser"])]
)
def test_what_is_imported_is_a_dependency(folder: str, groups: list[str]) -> None:
    ours = {"course_utils", "tools", "tests", "fake_hub"} | {"certifi", "pip"}  # the doctor uses these two if it finds them
    foreign = imports(*(ROOT / folder).rglob("*.py")) - set(sys.stdlib_module_names) - ours
    owners = packages_distributions()
    missing = {module for module in foreign if not {canonicalize_name(name) for name in owners.get(module, [module])} & set(named(*groups))}
    assert foreign and missing == set()


def test_course_utils_imports_neither_tools_nor_tests() -> None:
    assert not imports(*(ROOT / "course_utils").rglob("*.py")) & {"tools", "tests"}


def test_every_module_of_the_course_is_installed() -> None:
    packages = tomllib.loads(read("pyproject.toml"))["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in (ROOT / "course_utils").rglob("*.py")}
    assert set(packages) == folders


def test_environment_yml_is_python_and_this_package() -> None:
    environment = yaml.safe_load(read("environment.yml"))
    python, pip, with_pip = environment["dependencies"]
    assert Version(python.removeprefix("python=")) in SpecifierSet(PROJECT["requires-python"])
    assert pip == "pip" and with_pip == {"pip": ["-c constraints.txt", "-e ."]}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", ".ci/run", "course_utils/lab.py", "constraints.txt"])
def test_every_make_command_that_is_named_exists(name: str) -> None:
    text = read(name)
    used = set(re.findall(r"^\s*(?:timeout \d+ )?make ([a-z-]+)", text, flags=re.MULTILINE)) | set(re.findall(r"`make ([a-z-]+)", text))
    assert used and used <= COMMANDS


def plain_lines() -> list[str]:
    """The three lines in README.md for people without make."""
    (block,) = re.findall(r"## Without make.*?```\n(.*?)```", README, flags=re.DOTALL)
    return block.splitlines()


def test_readme_gives_two_commands_and_three_plain_lines() -> None:
    assert re.search(r"^make lab\b", README, flags=re.MULTILINE) and re.search(r"^make test\b", README, flags=re.MULTILINE)
    environment, install, start = plain_lines()
    assert environment == "python -m venv .venv"
    assert install == r".venv\Scripts\python -m pip install -c constraints.txt -e ."
    assert start == r".venv\Scripts\python -m course_utils.lab"


needs_make = pytest.mark.skipif(shutil.which("make") is None or sys.platform == "win32", reason="there is no make here")


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    outer = ("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS", "CONSTRAINTS", "PYTHON", "TORCH", "ARGS")
    environment = {key: value for key, value in os.environ.items() if key not in outer}
    return subprocess.run(["make", "-C", str(folder), *words], capture_output=True, text=True, encoding="utf-8", env=environment)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A clone in which nothing is set up; only what the Makefile looks at."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@needs_make
def test_make_does_what_the_plain_lines_do(bare: Path) -> None:
    done = make(bare, "-n", "lab")
    for line in plain_lines():
        words = line.replace(".venv\\Scripts\\python", "").replace("python -m venv", "-m venv").strip()
        assert re.search(words.replace(" ", r".* "), done.stdout), words


@needs_make
def test_a_second_make_lab_installs_nothing(bare: Path) -> None:
    (bare / ".venv").mkdir()
    (bare / ".venv" / "installed").touch()
    assert "pip" not in make(bare, "-n", "lab").stdout
    os.utime(bare / ".venv" / "installed", (0, 0))
    assert "pip install" in make(bare, "-n", "lab").stdout


@needs_make
def test_the_size_of_the_download_is_said_before_it_starts(bare: Path) -> None:
    done = make(bare, "-n", "lab")
    assert done.stdout.index("DOWNLOAD") < done.stdout.index("pip install")
    assert "--extra-index-url" not in done.stdout and "--extra-index-url" in make(bare, "-n", "lab", "TORCH=cpu").stdout


def pretend_python(path: Path, program: str) -> Path:
    """A Python at ``path`` that notes its arguments in ``asked``, obeys ``-c`` after ``program``, and does nothing else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    note = f"import sys\nopen({str(path.parent / 'asked')!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
    path.write_text(f"#!{sys.executable}\n{note}{program}\nif sys.argv[1] == '-c':\n    exec(sys.argv[2])\n", encoding="utf-8")
    path.chmod(0o755)
    return path


OLD = "sys.version_info = (3, 8, 19)\nsys.version = '3.8.19 (old)'"


@pytest.fixture
def installs(bare: Path) -> Callable[..., tuple[str, str]]:
    """Set up in ``bare``, where .venv has a CPU-only torch of today's version; what make printed, and the last installation by pip."""
    versions = {"torch": f"{PINS['torch']}+cpu"}
    pretend_python(bare / ".venv" / "bin" / "python", f"import importlib.metadata\nimportlib.metadata.version = {versions}.get")

    def run(torch: str, *words: str) -> tuple[str, str]:
        constraints = re.sub("^torch==.*", f"torch=={torch}", read("constraints.txt"), flags=re.MULTILINE)
        (bare / "constraints.txt").write_text(constraints, encoding="utf-8")
        (bare / ".venv" / "installed").unlink(missing_ok=True)
        done = make(bare, ".venv/installed", f"PYTHON={sys.executable}", *words)
        assert done.returncode == 0, done.stderr
        asked = (bare / ".venv" / "bin" / "asked").read_text(encoding="utf-8").splitlines()
        return done.stdout, [line for line in asked if "pip install" in line][-1]

    return run


@needs_make
def test_the_size_is_said_whenever_torch_will_be_downloaded(installs: Callable[..., tuple[str, str]]) -> None:
    assert "2.9 GB" not in installs(PINS["torch"])[0]
    assert "2.9 GB" in installs("9.9.0")[0]
    assert "2.9 GB" not in installs(PINS["torch"])[0]


@needs_make
def test_cpu_only_wheels_are_remembered(installs: Callable[..., tuple[str, str]]) -> None:
    """But they are only taken where they were asked for: a Linux without them may have no way to PyTorch's own server."""
    assert "--extra-index-url" not in installs("9.9.0")[1]
    assert "--extra-index-url" in installs(PINS["torch"], "TORCH=cpu")[1]
    printed, installation = installs("9.9.0")
    assert "--extra-index-url https://download.pytorch.org/whl/cpu" in installation
    assert "0.4 GB" in printed and "2.9 GB" not in printed
    assert "--extra-index-url" not in installs("9.9.0", "TORCH=")[1]
    assert "--extra-index-url" not in installs("9.9.0")[1]


@needs_make
def test_a_python_that_is_too_old_is_told_what_to_do(bare: Path) -> None:
    old = pretend_python(bare / "old" / "python", OLD)
    done = make(bare, "lab", f"PYTHON={old}")
    assert done.returncode != 0 and "3.8.19" in done.stderr and "make lab PYTHON=" in done.stderr
    assert not (bare / ".venv").exists()
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert f"({oldest.replace('.', ', ')})" in MAKEFILE and f"Python {oldest} " in MAKEFILE


@needs_make
def test_an_environment_of_a_python_that_is_too_old_is_told_what_to_do(bare: Path) -> None:
    old = pretend_python(bare / ".venv" / "bin" / "python", OLD)
    done = make(bare, "lab", f"PYTHON={sys.executable}")
    assert done.returncode != 0 and "3.8.19" in done.stderr and "Delete" in done.stderr and ".venv" in done.stderr
    assert "install" not in old.with_name("asked").read_text(encoding="utf-8")


def other_python(version: str) -> str | None:
    """A Python ``version`` of this machine, if there is one: pyenv's, or the one that is found by its name."""
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions")
    found = [*map(str, versions.glob(f"{version}.*/bin/python")), *filter(None, [shutil.which(f"python{version}")])]
    return next((python for python in found if subprocess.run([python, "--version"], capture_output=True).returncode == 0), None)


@pytest.mark.parametrize("version", ["3.6", "3.7"])
def test_a_python_that_cannot_read_the_doctor_gets_one_sentence(version: str) -> None:
    """From 3.8 on the doctor gives the advice itself."""
    python = other_python(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    done = subprocess.run([python, "-B", "-m", "course_utils.doctor"], cwd=ROOT, capture_output=True, encoding="utf-8")
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert f"Python {oldest} or newer" in done.stderr and f"Python {version}." in done.stderr and "python.org" in done.stderr


@pytest.mark.skipif(shutil.which("bash") is None or sys.platform == "win32", reason="there is no bash here")
def test_ci_ends_with_the_test_command_of_the_readme() -> None:
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)
    commands = [line for line in read(".ci/run").splitlines() if re.search(r"\bmake ", line)]
    assert len(commands) == 2 and "make test-browser" in commands[0] and commands[1].startswith("make test ")


def test_the_licence_is_apache_and_the_citation_says_what_is_installed() -> None:
    licence = read("LICENSE").replace("\r\n", "\n").encode()
    assert hashlib.sha256(licence).hexdigest() == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert str(citation["version"]) == course_utils.__version__
