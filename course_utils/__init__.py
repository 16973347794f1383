"""The small library that the lessons of Four Bits build up: one module for each idea.

Importing this package imports nothing else; a lesson names the module that it needs.
"""

from __future__ import annotations

import os
from pathlib import Path

__version__ = "0.1.0"

ROOT = Path(__file__).resolve().parent.parent
"""The folder of the clone."""


def work_folder() -> Path:
    """The learner's own folder: ``my_work`` in the clone, or wherever the variable ``COURSE_WORK`` points."""
    return Path(os.environ.get("COURSE_WORK") or ROOT / "my_work")
