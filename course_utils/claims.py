"""The ledger: what is claimed of 4-bit loading, and what the course found. Read from ``claims.yml`` and printed as tables.

A lesson prints ``table(lesson="07")``. ``make claim ID=...`` runs the evidence of one row.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from tabulate import tabulate

from course_utils import ROOT

LEDGER = ROOT / "claims.yml"
OUT_OF_DATE = "out of date"
VERDICTS = ("holds", "holds with a limit", OUT_OF_DATE, "wrong", "not reproducible", "not measured yet", "open")
WITHOUT_EVIDENCE = ("not measured yet", "open")
SEED = "the seed lesson"
"""The short lesson "load_in_4bit: extreme compression" that the course grew from."""
SECTIONS = (
    "Why this matters", "Explanation", "Analogy", "Code", "What just happened?", "Common gotcha", "Error recovery",
    "Experienced dev note", "Check your understanding",
)  # fmt: skip

_VERDICT = re.compile(r"out of date since (transformers|bitsandbytes|torch|peft|accelerate) \d+(\.\d+)+")
_TEXT = {"type": "string", "pattern": r"\S"}
_STEM = {"type": "string", "pattern": r"^\d\d_\w+$"}
_FIGURES = {"type": "object", "minProperties": 1, "additionalProperties": _TEXT}


def _object(required: tuple[str, ...], optional: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    """The schema of an object with these properties and no others; those that are not described are texts."""
    described = {name: properties.get(name, _TEXT) for name in required + optional}
    return {"type": "object", "required": list(required), "additionalProperties": False, "properties": described}


def _if_it_has(key: str, then: dict[str, Any], otherwise: dict[str, Any]) -> dict[str, Any]:
    return {"if": {"type": "object", "required": [key]}, "then": then, "else": otherwise}


SCHEMA: dict[str, Any] = _object(
    ("id", "claim", "source", "verdict"),
    ("finding", "evidence", "seen_on", "lesson", "headline"),
    id={"type": "string", "pattern": r"^[a-z0-9][a-z0-9.-]*$"},
    source=_if_it_has("seed", _object(("seed",), seed={"enum": list(SECTIONS)}), _object(("title", "date"), ("url",))),
    evidence={
        "type": "array",
        "minItems": 1,
        "items": _if_it_has(
            "notebook",
            _object(("notebook", "heading", "figures"), notebook=_STEM, figures=_FIGURES),
            _object(("measurement", "figures"), figures=_FIGURES),
        ),
    },
    lesson=_STEM,
) | {
    "if": {"properties": {"verdict": {"enum": list(WITHOUT_EVIDENCE)}}},
    "then": {"required": ["lesson"]},
    "else": {"required": ["finding", "evidence"]},
}
"""The form of a row. A verdict other than ``open`` and ``not measured yet`` needs a finding and evidence."""


class LedgerError(ValueError):
    """A ledger that can't be read: which row, what is wrong with it, and what to do."""


@dataclass(frozen=True)
class Evidence:
    """Where a figure stands: under a heading of a notebook, or in a file of ``measurements/``.

    ``figures`` maps a label, as it is printed beside the figure (``row | column`` in a table), to the figure.
    For a measurement the label names the keys on the way to the value.
    """

    figures: dict[str, str]
    notebook: str = ""
    heading: str = ""
    measurement: str = ""

    @property
    def place(self) -> str:
        """Where to look: the file, or the notebook and the heading in it."""
        return f"measurements/{self.measurement}" if self.measurement else f'{self.notebook}, "{self.heading}"'


@dataclass(frozen=True)
class Claim:
    """One row of the ledger.

    ``lesson`` is the stem of the lesson that shows it or, if it is still open, is to show it. ``headline`` is the finding in a few words,
    for the README; most rows have none.
    """

    id: str
    claim: str
    source: str
    verdict: str
    finding: str
    evidence: tuple[Evidence, ...]
    lesson: str
    seen_on: str = ""
    headline: str = ""

    @property
    def kind(self) -> str:
        """The verdict without its version: one of ``VERDICTS``."""
        return OUT_OF_DATE if self.verdict.startswith(OUT_OF_DATE) else self.verdict


def read(path: Path = LEDGER) -> list[Claim]:
    """Read and validate the ledger.

    Raises:
        LedgerError: if the file is no YAML, a row has not the form of ``SCHEMA``, or an id occurs twice.
    """
    try:
        rows = yaml.load(path.read_text(encoding="utf-8"), Loader=_LoaderWithoutTwins)
    except FileNotFoundError:
        raise LedgerError(f"There is no ledger at {path}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LedgerError(f"{path.name} can't be read: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise LedgerError(f"{path.name} has to be a list of rows, each beginning with `- id:`.")
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for number, row in enumerate(rows, start=1):
        name = row.get("id", f"number {number}") if isinstance(row, dict) else f"number {number}"
        if error := jsonschema.exceptions.best_match(validator.iter_errors(row)):
            where = ".".join(str(part) for part in error.absolute_path) or "the row"
            cure = " Put it in quotation marks." if "not of type 'string'" in error.message else ""
            raise LedgerError(f"{path.name}, row {name}, {where}: {error.message}.{cure}")
        if row["verdict"] not in set(VERDICTS) - {OUT_OF_DATE} and not _VERDICT.fullmatch(row["verdict"]):
            raise LedgerError(
                f"{path.name}, row {name}: there is no verdict {row['verdict']!r}; there are {', '.join(VERDICTS)}. "
                f'What is out of date names library and version, as in "{OUT_OF_DATE} since transformers 4.37".'
            )
    for name, times in Counter(row["id"] for row in rows).items():
        if times > 1:
            raise LedgerError(f"{path.name} has {times} rows called {name}; give each an id of its own.")
    return [_claim(row) for row in rows]


class _LoaderWithoutTwins(yaml.SafeLoader):
    """YAML keeps the last of two equal keys in silence, and a figure would be lost. This loader refuses them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [str(key.value) for key, _ in node.value]
        for key, times in Counter(keys).items():
            if times > 1:
                raise yaml.constructor.ConstructorError(problem=f"the key {key!r} stands twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def _claim(row: dict[str, Any]) -> Claim:
    source = row["source"]
    evidence = tuple(Evidence(**item) for item in row.get("evidence", ()))
    shown_in = [item.notebook for item in evidence if item.notebook]
    return Claim(
        id=row["id"],
        claim=_one_line(row["claim"]),
        source=f'{SEED}, "{source["seed"]}"' if "seed" in source else f"{source['title']} ({source['date']})",
        verdict=row["verdict"],
        finding=_one_line(row.get("finding", "")),
        evidence=evidence,
        lesson=row.get("lesson") or (shown_in[0] if shown_in else ""),
        seen_on=row.get("seen_on", ""),
        headline=row.get("headline", ""),
    )


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def find(claim_id: str, claims: Iterable[Claim] | None = None) -> Claim:
    """The row with this id. Raises ``LookupError`` with the ids that come nearest."""
    by_id = {claim.id: claim for claim in (read() if claims is None else claims)}
    if claim_id in by_id:
        return by_id[claim_id]
    words = set(re.findall(r"[a-z0-9.]+", claim_id.lower()))
    shared = {name: len(words & set(name.split("-"))) for name in by_id}
    similar = difflib.get_close_matches(claim_id.lower(), by_id, n=3, cutoff=0.5)
    near = list(dict.fromkeys(similar + sorted((name for name in by_id if shared[name]), key=shared.get, reverse=True)))[:5]
    hint = f"Near it: {', '.join(near)}." if near else "`make claim` lists them."
    raise LookupError(f"The ledger has no row {claim_id!r}. {hint}")


def choose(claims: Iterable[Claim], lesson: str | None = None, verdict: str | None = None) -> list[Claim]:
    """The rows of one lesson (any beginning of its name, such as "07") and of one verdict (without its version).

    Raises:
        ValueError: there is no such verdict.
    """
    if verdict is not None and verdict not in VERDICTS:
        raise ValueError(f"There is no verdict {verdict!r}; there are {', '.join(VERDICTS)}.")
    return [row for row in claims if (lesson is None or row.lesson.startswith(lesson)) and (verdict is None or row.kind == verdict)]


def counts(claims: Iterable[Claim] | None = None) -> dict[str, int]:
    """How many rows have each verdict, in the order of ``VERDICTS``; verdicts that no row has are left out."""
    found = Counter(claim.kind for claim in (read() if claims is None else claims))
    return {verdict: found[verdict] for verdict in VERDICTS if found[verdict]}


def table(lesson: str | None = None, verdict: str | None = None) -> str:
    """The ledger as a table, for a lesson to print: all of it, one lesson's rows or those of one verdict."""
    rows = [
        (row.id, row.verdict, row.claim, row.finding or f"Lesson {row.lesson[:2]} is to show it.")
        for row in choose(read(), lesson, verdict)
    ]
    if not rows:
        return "No row of the ledger is of this kind."
    return tabulate(
        rows,
        headers=("row", "verdict", "what is claimed", "what was found"),
        tablefmt="simple_grid",
        maxcolwidths=[None, 14, 28, 38],
        disable_numparse=True,
    )
