"""What holds for every test: it reads and writes none of a learner's files, uses no network and no GPU, and has one thread a process."""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest

WORK = pytest.StashKey[str]()

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Where bitsandbytes finds a GPU it loads another library, whose CPU functions are not those that the tests compare with.
# tests/test_notebooks.py gives the notebooks their GPU back.
os.environ.setdefault("COURSE_GPUS", os.environ.get("CUDA_VISIBLE_DEVICES", "0"))
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
for variable in ("COURSE_MODEL", "COURSE_GRADED"):
    os.environ.pop(variable, None)


def pytest_configure(config: pytest.Config) -> None:
    """Each process, of those that pytest-xdist starts too, has a work folder of its own."""
    config.stash[WORK] = os.environ["COURSE_WORK"] = tempfile.mkdtemp(prefix="four-bits-")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove it."""
    shutil.rmtree(config.stash[WORK], ignore_errors=True)
