"""Run the evidence of one claim, list the ledger, or write its summary into the README: ``python -m tools.claims``.

``figure_in`` is the one rule by which a figure counts as printed, here and in the tests: it stands beside its label as a whole token,
or in a table where row and column cross.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from course_utils import ROOT, claims
from course_utils.claims import Claim, Evidence, LedgerError
from tools.build import execute
from tools.convert import BuildError

README = ROOT / "README.md"
BEGIN = "<!-- from claims.yml; `python -m tools.claims --write` writes this part -->"
END = "<!-- end of the part from claims.yml -->"
HARDWARE = "hardware"


class EvidenceError(LookupError):
    """Evidence that isn't there: a notebook, heading, file or quantity that doesn't exist, and what does."""


# --- what is printed under a heading ---


def cells_under(notebook: NotebookNode, heading: str) -> list[int]:
    """Positions of the code cells from a heading on to the next heading of the same level or above; empty if there is no such heading."""
    positions, level = [], 0
    for position, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            for hashes, title in re.findall(r"^(#+) (.+)$", cell.source, flags=re.MULTILINE):
                if title.strip() == heading:
                    level = len(hashes)
                elif len(hashes) <= level:
                    level = 0
        elif level and cell.cell_type == "code":
            positions.append(position)
    return positions


def printed_by(cells: Sequence[NotebookNode]) -> str:
    """All that code cells have printed, stderr included."""
    texts = []
    for cell in cells:
        for output in cell.outputs:
            texts.append(output.get("text") or output.get("data", {}).get("text/plain", ""))
    return "\n".join(text.rstrip("\n") for text in texts if text) + "\n"


def read_notebook(evidence: Evidence, root: Path = ROOT) -> tuple[NotebookNode, list[int]]:
    """The built notebook, and the positions of the cells under the heading. Raises ``EvidenceError`` if there are none."""
    path = root / "notebooks" / f"{evidence.notebook}.ipynb"
    if not path.exists():
        raise EvidenceError(f"there is no notebook {evidence.notebook}")
    notebook = _as_it_is(path, path.stat().st_mtime_ns)
    positions = cells_under(notebook, evidence.heading)
    if not positions:
        raise EvidenceError(f"{evidence.notebook} has no cell under a heading {evidence.heading!r}")
    return notebook, positions


@cache
def _as_it_is(path: Path, changed: int) -> NotebookNode:
    """The notebook, read once as long as it is not written anew. Not to be changed."""
    return nbformat.read(path, as_version=4)


# --- is the figure there? ---


def figure_in(printed: str, label: str, figure: str) -> str | None:
    """The line in which ``figure`` stands beside ``label``, as a whole token; None if there is no such line.

    >>> figure_in("saved          : 0.373046875", "saved", "0.373046875")
    'saved          : 0.373046875'
    >>> figure_in("saved          : 0.373046875", "saved", "0.373") is None
    True

    In a table with a ruler of dashes, ``row | column`` names the place; the row may take several words, ``row | row | column``:

    >>> table = "GB   4 bits    16 bits\\n---  --------  ---------\\n70b  34.5      138.0\\n"
    >>> figure_in(table, "70b | 16 bits", "138.0")
    '70b  34.5      138.0'
    >>> figure_in(table, "70b | 4 bits", "138.0") is None
    True
    """
    *row, last = [part.strip() for part in label.split("|")]
    lines = printed.splitlines()
    for number, line in enumerate(lines):
        if all(_stands(part, line) for part in row) and (_beside(line, last, figure) or figure == _cell(lines, number, last)):
            return line
    return None


def lines_with(printed: str, label: str) -> list[str]:
    """The lines that name the label (of a table: its row), to show what is printed in place of a missing figure."""
    parts = [part.strip() for part in label.split("|")]
    return [line for line in printed.splitlines() if all(_stands(part, line) for part in parts[:-1] or parts)]


def _stands(part: str, line: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(part)}(?!\w|\.\d)", line) is not None


def _beside(line: str, label: str, figure: str) -> bool:
    """``label: figure``, ``label = figure``, ``label figure`` or ``figure label``. No digit, letter, sign or % may touch the figure."""
    whole = rf"(?<![\w.,+-]){re.escape(figure)}(?![\w%]|[.,]\d)"
    name = rf"(?<!\w){re.escape(label)}(?!\w)"
    return re.search(rf"{name}[\s:=~≈('\"]*{whole}|{whole}[\s:]*{name}", line) is not None


def _cell(lines: Sequence[str], number: int, column: str) -> str | None:
    """What stands in a table's line under the heading ``column``; None if the line is in no table, or the table has no such column."""
    for ruler in range(number - 1, 0, -1):
        if not lines[ruler].strip():
            return None
        if re.fullmatch(r"-[- ]*", lines[ruler]):
            for span in re.finditer("-+", lines[ruler]):
                if lines[ruler - 1][slice(*span.span())].strip() == column:
                    return lines[number][slice(*span.span())].strip()
            return None
    return None


def value_in(record: Any, label: str) -> tuple[Any, str]:
    """The value in a file of measurements to which ``a | b | c`` leads, and its unit (empty if none is given there).

    Each part is a key or, where there is a list, the fields that one of its entries has and no other.

    >>> records = [{"format": "nf4", "batch": 1, "value": 3.2, "unit": "ms"}, {"format": "fp4", "batch": 1, "value": 3.3, "unit": "ms"}]
    >>> value_in({"records": records}, "records | format=nf4, batch=1 | value")
    (3.2, 'ms')

    Raises:
        EvidenceError: naming the first part that leads nowhere, and what is there instead.
    """
    value, unit = record, ""
    for part in (part.strip() for part in label.split("|")):
        if isinstance(value, list):
            wanted = dict(field.strip().split("=", 1) for field in part.split(",") if "=" in field)
            if not wanted:
                raise EvidenceError(f"there is a list in it, and {part!r} does not say which entry, as in format=nf4, batch=1")
            entries = [entry for entry in value if all(str(entry.get(field)) == text for field, text in wanted.items())]
            if len(entries) != 1:
                raise EvidenceError(f"{part!r} has to be true of one entry and is of {len(entries)}")
            value = entries[0]
        elif isinstance(value, dict) and part in value:
            unit = value.get("unit", "")
            value = value[part]
        else:
            there = ", ".join(list(value)[:12]) if isinstance(value, dict) else "a value"
            raise EvidenceError(f"there is no {part!r} in it; there is {there}")
    return value, unit


def same_value(value: Any, unit: str, figure: str) -> bool:
    """Is the figure the value, rounded to as many decimals as the figure has? The unit may stand after it.

    >>> same_value(36.4871, "ms", "36.49 ms"), same_value(36.4871, "ms", "36.5")
    (True, True)
    >>> same_value(36.4871, "ms", "36.6"), same_value(36.4871, "ms", "36.5 s")
    (False, False)
    """
    number, after = re.match(r"(-?[\d,]*\.?\d*)\s*(.*)", figure).groups()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value) == figure
    decimals = len(number.partition(".")[2])
    return f"{value:,.{decimals}f}" in (number, f"{float(number.replace(',', '') or 'nan'):,.{decimals}f}") and after in ("", unit)


@dataclass(frozen=True)
class Finding:
    """What one look at a piece of evidence gave: for each figure the line or value in which it stands, or None."""

    evidence: Evidence
    lines: dict[str, str | None]
    printed: str

    @property
    def complete(self) -> bool:
        return None not in self.lines.values()


def look(evidence: Evidence, root: Path = ROOT, again: bool = False) -> Finding:
    """Look for the figures of a piece of evidence in what is stored or, ``again``, in what the cells print now.

    Raises:
        EvidenceError: if the notebook, heading, file or quantity doesn't exist, or the cells don't run.
    """
    if evidence.measurement:
        return _look_into_measurement(evidence, root)
    notebook, positions = read_notebook(evidence, root)
    if again:
        notebook = run_up_to(notebook, positions[-1], root)
    printed = printed_by([notebook.cells[position] for position in positions])
    return Finding(evidence, {label: figure_in(printed, label, figure) for label, figure in evidence.figures.items()}, printed)


def _look_into_measurement(evidence: Evidence, root: Path) -> Finding:
    path = root / "measurements" / evidence.measurement
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EvidenceError(f"there is no file {evidence.place}") from None
    except ValueError as error:
        raise EvidenceError(f"{evidence.place} can't be read: {error}") from error
    lines: dict[str, str | None] = {}
    printed: dict[str, str] = {}
    for label, figure in evidence.figures.items():
        value, unit = value_in(record, label)
        printed[label] = f"{label}: {value} {unit}".rstrip()
        lines[label] = printed[label] if same_value(value, unit, figure) else None
    return Finding(evidence, lines, "\n".join(printed.values()))


def run_up_to(notebook: NotebookNode, last: int, root: Path = ROOT) -> NotebookNode:
    """Execute a copy of the notebook up to the cell at ``last``, in a temporary folder, as ``make build`` does."""
    part = copy.deepcopy(notebook)
    part.cells = part.cells[: last + 1]
    try:
        execute(part, root)
    except BuildError as error:
        raise EvidenceError(f"the cells don't run: {error}") from error
    return part


# --- one claim, for a reader who doubts it ---


def run(claim: Claim, root: Path = ROOT) -> bool:
    """Print the claim, the verdict and what its evidence says now. True if every figure is there."""
    print(f"claim     {_wrapped(claim.claim)}\n          ({claim.source})\nverdict   {claim.verdict}")
    if claim.finding:
        print(f"because   {_wrapped(claim.finding)}")
    if claim.seen_on:
        print(f"seen on   {_wrapped(claim.seen_on)}")
    if not claim.evidence:
        print(f"evidence  none yet: lesson {claim.lesson} is to give it")
        return True
    return all([_run_evidence(evidence, root) for evidence in claim.evidence])


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, subsequent_indent=" " * 10, break_on_hyphens=False)


def _run_evidence(evidence: Evidence, root: Path) -> bool:
    print(f"\nevidence  {evidence.place}")
    try:
        if evidence.notebook:
            notebook, positions = read_notebook(evidence, root)
            count = sum(cell.cell_type == "code" for cell in notebook.cells[: positions[-1] + 1])
            print(f"          running its first {count} cells in a temporary copy ...", flush=True)
        finding = look(evidence, root, again=True)
    except EvidenceError as error:
        print(f"MISSING   {error}")
        return False
    for label, figure in evidence.figures.items():
        if (line := finding.lines[label]) is not None:
            print(f"found     {figure} for {label!r} in: {line.strip()}")
        else:
            there = " / ".join(line.strip() for line in lines_with(finding.printed, label)) or "nothing with that label"
            print(f"MISSING   {figure} for {label!r}; printed now: {there}")
    if evidence.notebook and not finding.complete and depends_on_hardware(evidence, root):
        print("          a cell under this heading depends on the hardware; the ledger says where its figure was seen")
    return finding.complete


def depends_on_hardware(evidence: Evidence, root: Path = ROOT) -> bool:
    """Does one of the evidence's figures stand only in cells whose output depends on the hardware? A measurement's always does."""
    if evidence.measurement:
        return True
    notebook, positions = read_notebook(evidence, root)
    cells = [notebook.cells[position] for position in positions]
    everywhere = printed_by([cell for cell in cells if HARDWARE not in cell.metadata.get("tags", [])])
    printed = printed_by(cells)
    return any(
        figure_in(printed, label, figure) is not None and figure_in(everywhere, label, figure) is None
        for label, figure in evidence.figures.items()
    )


# --- the README's part ---


def summary(ledger: Sequence[Claim]) -> str:
    """The README's part: how many rows have each verdict, and one line for each row marked as a headline."""
    number = ", ".join(f"{verdict} {count}" for verdict, count in claims.counts(ledger).items())
    lines = [
        f"[The ledger](claims.yml) has {len(ledger)} claims about 4-bit loading, those of the short lesson that the course grew from,",
        "well-known ones of others, and one of its own.",
        f"Each has a verdict and, unless it is open or not measured, the cell or the measurement that shows it: {number}.",
        "`make claim` lists them; `make claim ID=memory-87.5` runs the evidence of one. Some of them:",
        "",
        "| claimed | verdict | found |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {_in_table(row.claim)} | [{row.verdict}]({_link(row)}) | {_in_table(row.headline)} |" for row in ledger if row.headline]
    return "\n".join(lines)


def _in_table(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;")


def _link(row: Claim) -> str:
    first = row.evidence[0]
    return f"measurements/{first.measurement}" if first.measurement else f"notebooks/{first.notebook}.ipynb"


def with_summary(readme: str, ledger: Sequence[Claim]) -> str:
    """The README's text with its part from the ledger renewed. Raises ``LedgerError`` if the marks aren't there, once each and in order."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise LedgerError(f"README.md has to have these two lines once, in this order:\n{BEGIN}\n{END}")
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{summary(ledger)}\n{END}{rest.split(END)[1]}"


def _listed(ledger: Sequence[Claim]) -> Iterator[str]:
    width = max(len(row.id) for row in ledger)
    for row in ledger:
        yield f"{row.id:{width}}  {row.verdict}"
    yield ""
    yield f"{len(ledger)} rows: " + ", ".join(f"{verdict} {count}" for verdict, count in claims.counts(ledger).items())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Exit status 0: all is there; 1: a figure isn't, or the README differs; 2: no such row, or no ledger."""
    parser = argparse.ArgumentParser(prog="python -m tools.claims", description="Run the evidence of a claim, or list them.")
    parser.add_argument("id", nargs="?", help="the row whose evidence to run; without it the rows are listed")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", action="store_true", help="write the README's part")
    action.add_argument("--check", action="store_true", help="compare the README's part with the ledger")
    options = parser.parse_args(arguments)
    try:
        ledger = claims.read()
        if options.write or options.check:
            text = README.read_text(encoding="utf-8")
            wanted = with_summary(text, ledger)
            if options.check and text != wanted:
                print("README.md: its part from claims.yml is not what the ledger gives; run `python -m tools.claims --write`")
                return 1
            if options.write:
                README.write_text(wanted, encoding="utf-8", newline="\n")
            return 0
        if not options.id:
            print("\n".join(_listed(ledger)))
            return 0
        return 0 if run(claims.find(options.id, ledger)) else 1
    except (LedgerError, LookupError) as error:
        print(error.args[0], file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
