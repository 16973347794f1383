"""The workflows: valid, pinned by commit, and running the commands that the README gives."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from course_utils import ROOT
from tools import lock

FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
COMMANDS = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
every_workflow = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def workflow(name: str | Path) -> dict[Any, Any]:
    return yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8"))


def steps(content: dict[Any, Any]) -> list[dict[str, Any]]:
    return [step for job in content["jobs"].values() for step in job["steps"]]


def scripts(content: dict[Any, Any]) -> str:
    return "\n".join(step["run"] for step in steps(content) if "run" in step)


def triggers(content: dict[Any, Any]) -> set[str]:
    return set(content[True])  # YAML reads the key `on` as true


def test_there_are_three() -> None:
    assert [path.stem for path in FILES] == ["cpu", "gpu", "weekly"]


@every_workflow
def test_actions_are_pinned_by_commit_with_the_version_beside_it(path: Path) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if "uses:" in line]
    assert len(lines) == sum("uses" in step for step in steps(workflow(path)))
    for line in lines:
        assert re.fullmatch(r"\s+- uses: actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_an_action_is_the_same_commit_everywhere() -> None:
    uses = {tuple(step["uses"].split("@")) for path in FILES for step in steps(workflow(path)) if "uses" in step}
    assert len(uses) == len(dict(uses))


@every_workflow
def test_a_workflow_may_only_read_and_ends_by_itself(path: Path) -> None:
    content = workflow(path)
    assert content["permissions"] == {"contents": "read"}
    assert all(job["timeout-minutes"] <= 90 for job in content["jobs"].values())


@every_workflow
def test_every_command_exists(path: Path) -> None:
    text = scripts(workflow(path))
    made = set(re.findall(r"\bmake ([a-z-]+)", text))
    modules = set(re.findall(r"python -m ([\w.]+)", text))
    assert made | modules
    assert made <= COMMANDS
    assert [module for module in modules if importlib.util.find_spec(module) is None] == []


@every_workflow
def test_every_python_is_one_that_the_course_supports(path: Path) -> None:
    supported = SpecifierSet(lock.project()["requires-python"])
    content = workflow(path)
    given = [step["with"]["python-version"] for step in steps(content) if step.get("uses", "").startswith("actions/setup-python")]
    matrix = [version for job in content["jobs"].values() for version in job.get("strategy", {}).get("matrix", {}).get("python", [])]
    versions = [version for version in given + matrix if not version.startswith("${{")]
    assert versions and all(isinstance(version, str) and Version(version) in supported for version in versions)


def test_cpu_covers_three_systems_and_both_ends_of_everything() -> None:
    content = workflow("cpu.yml")
    matrix = content["jobs"]["test"]["strategy"]["matrix"]
    assert {system.split("-")[0] for system in matrix["system"]} == {"ubuntu", "macos", "windows"}
    assert matrix["python"][0] == lock.project()["requires-python"].removeprefix(">=")
    assert len(matrix["python"]) == 2 and matrix["libraries"] == ["oldest", "newest"]
    assert triggers(content) == {"push", "pull_request"}


def test_windows_runs_the_plain_lines_of_the_readme() -> None:
    (lines,) = [step["run"].splitlines() for step in steps(workflow("cpu.yml")) if step.get("if") == "runner.os == 'Windows'"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\", "/")
    environment, install, test = lines
    assert environment in readme
    assert install.replace('"$CONSTRAINTS"', "constraints.txt").replace('".[test]"', ".") in readme
    assert '-e ".[test]"' in readme and test.split(" ")[1:4] == [".venv/Scripts/python", "-m", "pytest"]


def test_weekly_goes_beyond_the_bounds_and_opens_an_issue() -> None:
    content = workflow("weekly.yml")
    assert "schedule" in triggers(content) and "tools.lock --newest" in scripts(content)
    assert all(re.fullmatch(r"[\w-]+>=[\d.]+", line) for line in lock.newest())
    (report,) = [step for step in steps(content) if step.get("if") == "failure()"]
    assert "gh issue create" in report["run"] and content["jobs"]["newest"]["permissions"]["issues"] == "write"


def test_gpu_runs_every_test_but_never_a_pull_request() -> None:
    content = workflow("gpu.yml")
    assert content["jobs"]["test"]["runs-on"] == ["self-hosted", "gpu"]
    assert "pull_request" not in triggers(content) and "make test" in scripts(content)


@pytest.mark.skipif(shutil.which("actionlint") is None, reason="actionlint is not installed; cpu.yml says how to install it")
def test_actionlint_finds_nothing() -> None:
    done = subprocess.run(["actionlint", "-no-color"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout
