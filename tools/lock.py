"""Choose versions of what the course needs, from the one list in pyproject.toml.

    python -m tools.lock             constraints.txt: the newest versions inside the bounds, and all that they need in turn
    python -m tools.lock --oldest    print constraints for the oldest versions inside the bounds
    python -m tools.lock --newest    print requirements without upper bounds: the newest versions there are

Run it with the oldest Python that the course supports: what installs there has, as a rule, a version for every newer one too.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from course_utils import ROOT

BOUNDED = re.compile(r"(?P<name>[A-Za-z0-9._-]+)>=(?P<lower>[0-9.]+),<(?P<upper>[0-9.]+)")
"""How every dependency in pyproject.toml is written."""

BY_SYSTEM = re.compile(r"(nvidia|cuda|triton)\b")
"""Packages that torch chooses by system: pinning them would say nothing on the other systems and bind a GPU to one CUDA release."""

HEADER = """\
# Written by `make lock`; not edited by hand. The bounds are in pyproject.toml.
# Versions only: no hosts, and no local versions, so that torch==2.13.0 is met by the CPU-only wheel as well as by the one with CUDA.
# Not pinned: CUDA's packages and triton, which torch itself chooses where it needs them, and packages that only Windows or macOS needs.
"""


def project() -> dict[str, Any]:
    """The table [project] of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def dependencies() -> dict[str, tuple[str, str]]:
    """Every dependency in pyproject.toml, extras included: name -> (lower bound, upper bound).

    Raises:
        ValueError: one of them is not written with both bounds.

    >>> dependencies()["torch"]
    ('2.11', '2.14')
    """
    table = project()
    lines = table["dependencies"] + [line for extra in table["optional-dependencies"].values() for line in extra]
    matches = [BOUNDED.fullmatch(line) for line in lines]
    unbounded = [line for line, match in zip(lines, matches, strict=True) if match is None]
    if unbounded:
        raise ValueError(f"pyproject.toml: write {unbounded[0]!r} as name>=lower,<upper.")
    return {match["name"]: (match["lower"], match["upper"]) for match in matches if match}


def oldest() -> list[str]:
    """The lower bounds as constraints."""
    return sorted(f"{name}=={lower}" for name, (lower, _) in dependencies().items())


def newest() -> list[str]:
    """The dependencies without their upper bounds."""
    return sorted(f"{name}>={lower}" for name, (lower, _) in dependencies().items())


def pinned(packages: Iterable[tuple[str, str]]) -> list[str]:
    """Constraints for these (name, version): names as pip compares them, no local versions, nothing that depends on the system.

    >>> pinned([("torch", "2.13.0+cpu"), ("Jinja2", "3.1.6"), ("nvidia-cublas", "13.1"), ("four-bits", "0.1.0")])
    ['jinja2==3.1.6', 'torch==2.13.0']
    """
    canonical = [(re.sub(r"[-_.]+", "-", name).lower(), version.split("+")[0]) for name, version in packages]
    return [f"{name}=={version}" for name, version in sorted(canonical) if name != "four-bits" and not BY_SYSTEM.match(name)]


def resolved(python: str) -> list[tuple[str, str]]:
    """What pip would install now for the course with all its extras: (name, version) of each package. Installs nothing.

    ``python`` such as ``"3.11"`` stands for the first release of that Python, 3.11.0, whichever release runs this program.
    """
    wanted = [f"{name}>={lower},<{upper}" for name, (lower, upper) in dependencies().items()]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        words = ["install", "--quiet", "--dry-run", "--ignore-installed", "--report", str(report)]
        words += ["--python-version", python, "--only-binary", ":all:", "--target", folder]
        subprocess.run([sys.executable, "-m", "pip", *words, *wanted], check=True)
        installs = json.loads(report.read_text(encoding="utf-8"))["install"]
    return [(package["metadata"]["name"], package["metadata"]["version"]) for package in installs]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.lock", description="Choose versions from the bounds in pyproject.toml.")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--oldest", action="store_true", help="print constraints for the oldest versions inside the bounds")
    choice.add_argument("--newest", action="store_true", help="print requirements without upper bounds")
    arguments = parser.parse_args()
    try:
        dependencies()
    except ValueError as error:  # told at once, before pip runs
        sys.exit(str(error))
    if arguments.oldest:
        print("\n".join(oldest()))
    elif arguments.newest:
        print("\n".join(newest()))
    else:
        supported = project()["requires-python"].removeprefix(">=")
        if sys.version_info[:2] != tuple(map(int, supported.split("."))):
            sys.exit(f"The lock is made with Python {supported}, the oldest that the course supports; this is {sys.version.split()[0]}.")
        lines = pinned(resolved(supported))
        (ROOT / "constraints.txt").write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        print(f"constraints.txt: {len(lines)} versions.")


if __name__ == "__main__":
    main()
