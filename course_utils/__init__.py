"""The small library that the lessons of Four Bits build up: one module for each idea.

Importing this package imports nothing else; a lesson names the module that it needs.
"""

import os
import sys
from pathlib import Path

if sys.version_info < (3, 8):  # noqa: UP036 (what these Pythons can't read is doctor.py, which has advice for all others)
    sys.exit(
        f"Four Bits needs Python 3.11 or newer, and this is Python {sys.version.split()[0]}. "
        "Install one from python.org (on Linux from the distribution, or with conda)."
    )

__version__ = "0.1.0"

ROOT = Path(__file__).resolve().parent.parent
"""The folder of the clone."""


def work_folder() -> Path:
    """The learner's own folder: ``my_work`` in the clone, or wherever the variable ``COURSE_WORK`` points.

    A relative path counts from the clone, so that it is the same folder for every notebook, wherever that one runs.
    """
    return ROOT / os.path.expanduser(os.environ.get("COURSE_WORK") or "my_work")
