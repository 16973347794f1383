"""Runs in an old environment: each snippet once, and what came of it. Needs nothing but Python, so that any environment can run it.

    python tools/time_machine_child.py RESULTS.jsonl < snippets.json

The input is a JSON object, id -> code. One line of JSON is written after each snippet, so that a crash loses one snippet only.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import traceback
import warnings
from pathlib import Path


class Kept(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname}: {record.getMessage()}")


def place(error: BaseException) -> str | None:
    """The last line of an installed package on the way to the error, as package/file.py:line."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        parts = Path(frame.filename).parts
        packages = ("transformers", "bitsandbytes", "accelerate", "huggingface_hub", "peft", "torch")
        inside = [index for index, part in enumerate(parts[:-1]) if part in packages]
        if inside:
            return f"{'/'.join(parts[inside[0] :])}:{frame.lineno}"
    return None


def run(code: str) -> dict:
    """Run one snippet: what it raised, logged, warned of and printed."""
    printed, kept = io.StringIO(), Kept()
    for name in ("transformers", "bitsandbytes", "accelerate"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [kept], False
    result: dict = {"error": None}
    with warnings.catch_warnings(record=True) as warned, contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("always")
        try:
            exec(code, {"__name__": "__main__"})
        except BaseException as error:  # SystemExit too: whatever it is, it is what a learner would have met
            result["error"] = {"type": type(error).__name__, "message": str(error), "raised_at": place(error)}
    result["warned"] = [f"{warning.category.__name__}: {warning.message}" for warning in warned]
    result["logged"] = kept.lines
    result["printed"] = printed.getvalue()
    return result


def main() -> None:
    results = Path(sys.argv[1])
    for name, code in json.load(sys.stdin).items():
        line = json.dumps({"id": name, **run(code)})
        with results.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
