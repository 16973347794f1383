"""What holds for every test: a learner's own files are neither read nor written, no network is used, and each process has one thread."""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest

WORK = pytest.StashKey[str]()

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
for variable in ("COURSE_MODEL", "COURSE_GRADED"):
    os.environ.pop(variable, None)


def pytest_configure(config: pytest.Config) -> None:
    """Each process, of those that pytest-xdist starts too, has a work folder of its own."""
    config.stash[WORK] = os.environ["COURSE_WORK"] = tempfile.mkdtemp(prefix="four-bits-")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove it."""
    shutil.rmtree(config.stash[WORK], ignore_errors=True)
