"""The ledger of claims: each row's figure is the figure that its evidence shows, and would not pass if it were another one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from course_utils import ROOT, claims
from course_utils.claims import Claim, Evidence, LedgerError
from tools import claims as tool
from tools.claims import EvidenceError, figure_in, look, same_value, value_in

LEDGER = claims.read()
SHOWN = [claim for claim in LEDGER if claim.evidence]
each_row = pytest.mark.parametrize("claim", LEDGER, ids=lambda claim: claim.id)
each_row_shown = pytest.mark.parametrize("claim", SHOWN, ids=lambda claim: claim.id)


# --- the rows of claims.yml ---


def test_every_section_of_the_seed_lesson_is_judged() -> None:
    assert len(LEDGER) >= 24
    for section in claims.SECTIONS:
        assert any(row.source == f'{claims.SEED}, "{section}"' for row in LEDGER), section
    assert sum(not row.source.startswith(claims.SEED) for row in LEDGER) >= 5


@each_row_shown
def test_its_figures_stand_where_it_says(claim: Claim) -> None:
    for evidence in claim.evidence:
        finding = look(evidence)
        for label, line in finding.lines.items():
            there = tool.lines_with(finding.printed, label) or finding.printed
            assert line is not None, f"{evidence.figures[label]} is not printed beside {label!r} in {evidence.place}: {there}"


def changed(figure: str) -> Iterator[str]:
    """Every figure that differs from this one in a digit, or lacks its first or last one; of a word, others."""
    for place, digit in enumerate(figure):
        if digit.isdigit():
            yield from (figure[:place] + other + figure[place + 1 :] for other in "0123456789" if other != digit)
    if re.search(r"\d", figure):
        yield re.sub(r"\d", "", figure, count=1)
        yield re.sub(r"\d(?=\D*$)", "", figure)
    else:
        yield from ({"True": "False", "False": "True"}.get(figure, f"{figure}s"), figure[:-1], figure[1:])


@each_row_shown
def test_another_figure_would_not_pass(claim: Claim) -> None:
    """A digit changed anywhere in the row's figures is found out."""
    for evidence in claim.evidence:
        for label, figure in evidence.figures.items():
            for other in filter(str.strip, changed(figure)):
                looked = look_stored(evidence, {label: other})
                assert looked[label] is None, f"{other} would pass for {figure} beside {label!r} in {evidence.place}"


def look_stored(evidence: Evidence, figures: dict[str, str]) -> dict[str, str | None]:
    """What ``look`` says of other figures at the same place; a notebook is read once."""
    if evidence.measurement:
        return look(Evidence(figures, measurement=evidence.measurement)).lines
    if evidence.place not in PRINTED:
        PRINTED[evidence.place] = look(evidence).printed
    return {label: figure_in(PRINTED[evidence.place], label, figure) for label, figure in figures.items()}


PRINTED: dict[str, str] = {}

NOT_FIGURES = re.compile(
    r"(?:transformers|bitsandbytes|torch|peft|accelerate|Python) \d[\d.]*\d|arXiv \d+\.\d+|#\d+|lessons? \d\d|version \d+\.\d+"
    r"|\b\d+(?:-bit\b| bits?\b)|(?:bits?|blocks) of \d+\b"
)


NUMBER = re.compile(r"(?<![\w.,/-])(\d+(?:,\d{3})*(?:\.\d+)?)(?!\w|[.,]\d)( ?%| [GM]B| bytes| ms| times)?")


def numbers(text: str) -> tuple[set[str], set[str]]:
    """The numbers in a text, without commas: those that were measured or counted (decimals, shares, with a unit), and the bare ones.

    Versions, widths of formats and digits inside of names are neither.
    """
    measured, bare = set(), set()
    for number, unit in NUMBER.findall(NOT_FIGURES.sub(" ", text)):
        (measured if unit or "." in number else bare).add(number.replace(",", ""))
    return measured, bare


@each_row_shown
def test_the_numbers_of_its_finding_are_its_evidence(claim: Claim) -> None:
    """A figure in the prose is one of the row's figures, tested above. A bare number may also stand around them, or in the cell."""
    figures = "\n".join([claim.claim, *(f"{label}\n{figure}" for evidence in claim.evidence for label, figure in evidence.figures.items())])
    around = figures
    for evidence in claim.evidence:
        around += "\n" + look(evidence).printed
        if evidence.notebook:
            notebook, positions = tool.read_notebook(evidence)
            around += "\n".join(notebook.cells[position].source for position in positions)
    measured, bare = numbers(f"{claim.finding} {claim.headline}")
    for number, text in [(number, figures) for number in measured] + [(number, around) for number in bare]:
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d|\.\d)", without_grouping(text)), (
            f"{number} is in the finding, not in the evidence"
        )


def without_grouping(text: str) -> str:
    """``70,000`` as prose has it and ``70_000`` as Python has it, both as ``70000``."""
    return re.sub(r"(?<=\d)_(?=\d)", "", text.replace(",", ""))


@each_row_shown
def test_hardware_and_versions_are_named_where_a_figure_depends_on_them(claim: Claim) -> None:
    for evidence in claim.evidence:
        if tool.depends_on_hardware(evidence) and not names_its_machine(evidence):
            assert claim.seen_on, f"{evidence.place} depends on the hardware: say in `seen_on` where the figures were seen"


def names_its_machine(evidence: Evidence) -> bool:
    """A file of measurements says itself on which machine it was written."""
    if not evidence.measurement:
        return False
    return '"machine":' in (ROOT / "measurements" / evidence.measurement).read_text(encoding="utf-8")


@each_row_shown
def test_it_is_not_shown_by_the_ledger_itself(claim: Claim) -> None:
    for evidence in claim.evidence:
        if evidence.notebook:
            notebook, positions = tool.read_notebook(evidence)
            assert not any("course_utils.claims" in notebook.cells[position].source for position in positions)


@each_row
def test_it_is_open_only_while_its_lesson_is_not_written(claim: Claim) -> None:
    written = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    if claim.kind == "open":
        assert claim.lesson not in written, f"lesson {claim.lesson} is there and has to judge this"
    else:
        assert claim.lesson in written or not any(evidence.notebook for evidence in claim.evidence)


def test_the_readme_has_what_the_ledger_gives() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == tool.with_summary(readme, LEDGER), "run `python -m tools.claims --write`"
    assert 3 <= sum(bool(row.headline) for row in LEDGER) <= 10


# --- the rule by which a figure counts as printed ---

PRINT = """\
codes used: 233 of 256, scales are off by 0.22%
bits per weight: 4.5
bits per weight, once more: 14.51
model         bits    GB     8 GB
------------  ------  -----  ---------
Llama-2-70b   16      139.3  -
Llama-2-70b   4       37.7   tight fit

nf4  error -0.0085, 28 layers (12 %)
"""


@pytest.mark.parametrize(
    ("label", "figure"),
    [
        ("scales are off by", "0.22%"),
        ("codes used", "233"),
        ("codes used", "233 of 256"),
        ("bits per weight", "4.5"),
        ("bits per weight, once more", "14.51"),
        ("Llama-2-70b | 4 | GB", "37.7"),
        ("Llama-2-70b | 16 | GB", "139.3"),
        ("Llama-2-70b | 4 | 8 GB", "tight fit"),
        ("error", "-0.0085"),
        ("nf4 | layers", "28"),
    ],
)
def test_a_figure_beside_its_label_is_found(label: str, figure: str) -> None:
    assert figure_in(PRINT, label, figure)


@pytest.mark.parametrize(
    ("label", "figure"),
    [
        ("scales are off by", "0.22"),  # a sign that touches it belongs to it
        ("scales are off by", "0.2"),
        ("scales are off by", "233"),  # on the line, but not beside
        ("codes used", "23"),
        ("codes used", "256"),
        ("bits per weight", "4"),
        ("bits per weight", "5"),
        ("bits per weight, once more", "4.51"),
        ("per weigh", "4.5"),  # half of a label
        ("Llama-2-70b | 4 | GB", "139.3"),  # another row
        ("Llama-2-70b | 16 | 8 GB", "139.3"),  # another column
        ("Llama-2-70b | 16 | GB", "9.3"),
        ("Llama-2-70b | 8 | GB", "37.7"),  # no such row
        ("Llama-2-70b | 7 | GB", "37.7"),  # the 7 of 37.7 is no 7
        ("error", "0.0085"),  # the minus belongs to it
        ("layer", "28"),
    ],
)
def test_another_figure_or_another_place_is_not(label: str, figure: str) -> None:
    assert figure_in(PRINT, label, figure) is None


NUMBERS = st.one_of(
    st.integers(-(10**6), 10**6).map(lambda number: f"{number:,}"),
    st.floats(-1e4, 1e4, allow_nan=False).map(lambda number: f"{number:.4f}"),
)


@given(NUMBERS, NUMBERS, st.sampled_from(["{label}: {figure}", "{label} = {figure} of 9", "{figure} {label}", "9 and {label} {figure}, 9"]))
def test_one_number_is_found_and_no_other(figure: str, other: str, line: str) -> None:
    printed = line.format(label="error of nf4", figure=figure)
    assert figure_in(printed, "error of nf4", figure) == printed
    assert other == figure or figure_in(printed, "error of nf4", other) is None


@given(st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=1, max_size=4), NUMBERS)
def test_in_a_table_only_row_and_column_count(rows: list[list[str]], other: str) -> None:
    from tabulate import tabulate

    printed = tabulate([[f"row {n}", *row] for n, row in enumerate(rows)], ["", "a", "b", "a b"], disable_numparse=True)
    for n, row in enumerate(rows):
        for column, figure in zip(("a", "b", "a b"), row, strict=True):
            assert figure_in(printed, f"row {n} | {column}", figure)
            assert other == figure or figure_in(printed, f"row {n} | {column}", other) is None


RECORD = {
    "formats": {"nf4": {"bits": 4.1269, "name": "nf4"}},
    "records": [{"format": "nf4", "batch": 1, "value": 3.217, "unit": "ms"}, {"format": "nf4", "batch": 64, "value": 9.0, "unit": "ms"}],
}


@pytest.mark.parametrize(
    ("label", "figure", "same"),
    [
        ("formats | nf4 | bits", "4.127", True),
        ("formats | nf4 | bits", "4.1", True),
        ("formats | nf4 | bits", "4.12", False),
        ("formats | nf4 | bits", "4.127 bits", False),  # the file names no unit
        ("formats | nf4 | name", "nf4", True),
        ("formats | nf4 | name", "fp4", False),
        ("records | format=nf4, batch=1 | value", "3.22 ms", True),
        ("records | format=nf4, batch=1 | value", "3.22", True),
        ("records | format=nf4, batch=1 | value", "3.22 s", False),
        ("records | format=nf4, batch=1 | value", "3.20", False),
        ("records | batch=64 | value", "9.00", True),
        ("records | batch=64 | value", "", False),
    ],
)
def test_a_measured_figure_is_the_value_rounded(label: str, figure: str, same: bool) -> None:
    assert same_value(*value_in(RECORD, label), figure) is same


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("formats | fp4 | bits", "no 'fp4' in it; there is nf4"),
        ("formats | nf4 | bits | more", "no 'more' in it; there is a value"),
        ("records | format=nf4 | value", "one entry and is of 2"),
        ("records | format=fp4 | value", "one entry and is of 0"),
        ("records | nf4 | value", "does not say which entry, as in format=nf4, batch=1"),
    ],
)
def test_a_measurement_that_is_not_there(label: str, message: str) -> None:
    with pytest.raises(EvidenceError, match=re.escape(message)):
        value_in(RECORD, label)


def test_headings_end_where_the_next_of_their_level_begins() -> None:
    new = nbformat.v4
    cells = [
        new.new_markdown_cell("# Lesson\n## One"), new.new_code_cell("1"), new.new_markdown_cell("### Part of one"), new.new_code_cell("2"),
        new.new_markdown_cell("no heading"), new.new_code_cell("3"), new.new_markdown_cell("## Two"), new.new_code_cell("4"),
    ]  # fmt: skip
    notebook = new.new_notebook(cells=cells)
    assert tool.cells_under(notebook, "One") == [1, 3, 5]
    assert tool.cells_under(notebook, "Part of one") == [3, 5]
    assert tool.cells_under(notebook, "Two") == [7]
    assert tool.cells_under(notebook, "Lesson") == [1, 3, 5, 7]
    assert tool.cells_under(notebook, "Three") == []


# --- a ledger that can't be read ---

ROW = """\
- id: a-row
  claim: Something is so.
  source: {seed: Code}
  verdict: holds
  finding: It is.
  evidence:
    - {notebook: 00_small, heading: Count, figures: {total: "4"}}
"""
WITHOUT_EVIDENCE = ROW[: ROW.index("  evidence")]


def ledger_of(text: str, folder: Path) -> list[Claim]:
    path = folder / "claims.yml"
    path.write_text(text, encoding="utf-8")
    return claims.read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (WITHOUT_EVIDENCE, "row a-row, the row: 'evidence' is a required property"),
        (WITHOUT_EVIDENCE.replace("holds", "holds with a limit"), "'evidence' is a required property"),
        (WITHOUT_EVIDENCE.replace("holds", "open"), "'lesson' is a required property"),
        (ROW.replace("holds", "true enough"), "there is no verdict 'true enough'; there are holds, holds with a limit, "),
        (ROW.replace("holds", "out of date"), 'names library and version, as in "out of date since transformers 4.37"'),
        (ROW.replace("holds", "out of date since 4.37"), "names library and version"),
        (ROW.replace('"4"', "4"), "evidence.0.figures.total: 4 is not of type 'string'. Put it in quotation marks."),
        (ROW.replace('{total: "4"}', "{}"), "should be non-empty"),
        (ROW.replace('{total: "4"}', '{total: "4", total: "5"}'), "the key 'total' stands twice"),
        (ROW.replace("seed: Code", "seed: Coda"), "'Coda' is not one of"),
        (ROW.replace("seed: Code", "title: A page"), "'date' is a required property"),
        (ROW.replace("notebook: 00_small, heading: Count", "measurement: a.json, heading: Count"), "'heading' was unexpected"),
        (ROW + "  because: of that\n", "'because' was unexpected"),
        (ROW + ROW, "2 rows called a-row"),
        ("claims: none\n", "has to be a list of rows"),
        ("", "has to be a list of rows"),
        ("- 3\n", "row number 1"),
        ("- id: [\n", "can't be read"),
    ],
)
def test_a_ledger_that_is_wrong_is_refused_with_the_reason(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=re.escape(message)):
        ledger_of(text, tmp_path)


def test_no_ledger_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="There is no ledger"):
        claims.read(tmp_path / "claims.yml")


@pytest.mark.parametrize(
    "verdict", ["holds", "wrong", "not reproducible", "out of date since transformers 4.37", "out of date since bitsandbytes 0.41.3"]
)
def test_a_row_with_evidence_may_have_any_of_these_verdicts(verdict: str, tmp_path: Path) -> None:
    (row,) = ledger_of(ROW.replace("verdict: holds", f"verdict: {verdict}"), tmp_path)
    assert row.verdict == verdict
    assert row.kind in claims.VERDICTS


@pytest.mark.parametrize("verdict", ["open", "not measured yet"])
def test_a_row_without_evidence_names_the_lesson_that_is_to_judge_it(verdict: str, tmp_path: Path) -> None:
    text = WITHOUT_EVIDENCE.replace("verdict: holds", f"verdict: {verdict}\n  lesson: 13_finetune_with_qlora")
    assert ledger_of(text, tmp_path)[0].lesson == "13_finetune_with_qlora"


# --- tables ---


def test_a_lessons_table_has_the_rows_of_that_lesson_in_full() -> None:
    chosen = [row for row in LEDGER if row.lesson.startswith("01")]
    table = claims.table(lesson="01")
    assert len(chosen) >= 4 and len(LEDGER) > len(chosen)
    joined = re.sub(r"\W+", "", table)
    for row in LEDGER:
        assert (row.id in table) == (row in chosen)
    for row in chosen:
        cells = [re.sub(r"\W+", "", line) for line in cells_of(table, row.id)]
        assert cells[1:] == [re.sub(r"\W+", "", text) for text in (row.verdict, row.claim, row.finding)]
    assert joined


def cells_of(table: str, row_id: str) -> list[str]:
    """The cells of a table's row, each put together again from its lines."""
    blocks = [block.splitlines() for block in re.split(r"\n?[├└┌][^\n]*\n?", table)]
    (block,) = [block for block in blocks if block and row_id in block[0].replace(" ", "│").split("│")]
    return [" ".join(column) for column in zip(*(line.strip("│").split("│") for line in block), strict=True)]


def test_tables_by_verdict_and_counts_agree_with_the_ledger() -> None:
    assert sum(claims.counts().values()) == len(LEDGER)
    for verdict, count in claims.counts().items():
        words = claims.table(verdict=verdict).split()
        assert sum(row.id in words for row in LEDGER) == count
    with pytest.raises(ValueError, match="no verdict 'okay'; there are holds"):
        claims.table(verdict="okay")
    assert claims.table(lesson="99") == "No row of the ledger is of this kind."


# --- make claim ---


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("memory-87", "memory-87.5"),
        ("Memory-87.5 ", "memory-87.5"),
        ("fp4", "fp4-slightly-faster"),
        ("double_quantization_0.4", "double-quantization-0.4"),
    ],
)
def test_an_unknown_id_gets_its_near_misses(asked: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([asked]) == 2
    assert near in capsys.readouterr().err


def test_an_id_that_is_near_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["zzzz"]) == 2
    assert "`make claim` lists them" in capsys.readouterr().err


def test_without_an_id_the_rows_and_their_number_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[: len(LEDGER)]] == [row.id for row in LEDGER]
    assert lines[-1].startswith(f"{len(LEDGER)} rows: holds ")


SMALL = """\
import random

print("before")
"""


@pytest.fixture
def small_course(tmp_path: Path) -> Path:
    """A notebook that stores ``total: 4`` and, run now, prints what stands in ``now.txt``; and a file of measurements."""
    new = nbformat.v4
    stored = new.new_output("stream", name="stdout", text="total: 4\n")
    now = (tmp_path / "now.txt").as_posix()
    cells = [
        new.new_code_cell(SMALL),
        new.new_markdown_cell("## Count"),
        new.new_code_cell(f"print('total:', open({now!r}).read())", outputs=[stored]),
        new.new_markdown_cell("## Later"),
        new.new_code_cell("raise RuntimeError('not to be run')"),
    ]
    notebook = new.new_notebook(cells=cells, metadata={"four_bits": {"source": "", "outputs": ""}})
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook, tmp_path / "notebooks" / "00_small.ipynb")
    (tmp_path / "measurements").mkdir()
    (tmp_path / "measurements" / "a.json").write_text(json.dumps(RECORD), encoding="utf-8")
    (tmp_path / "now.txt").write_text("4", encoding="utf-8")
    return tmp_path


def test_a_claim_is_run_again_up_to_its_heading(small_course: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = ledger_of(ROW, small_course)
    before = (small_course / "notebooks" / "00_small.ipynb").read_bytes()
    assert tool.run(row, small_course)
    printed = capsys.readouterr().out
    for text in ("Something is so.", 'the seed lesson, "Code"', "holds", "first 2 cells", "found     4 for 'total' in: total: 4"):
        assert text in printed
    (small_course / "now.txt").write_text("41", encoding="utf-8")
    assert not tool.run(row, small_course)
    assert "MISSING   4 for 'total'; printed now: total: 41" in capsys.readouterr().out
    assert (small_course / "notebooks" / "00_small.ipynb").read_bytes() == before


def test_a_cell_that_fails_is_said_and_not_passed_over(small_course: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (small_course / "now.txt").unlink()
    assert not tool.run(ledger_of(ROW, small_course)[0], small_course)
    assert "MISSING   the cells don't run: In [2] raised FileNotFoundError" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("evidence", "message"),
    [
        ("notebook: 00_smell, heading: Count", "there is no notebook 00_smell"),
        ("notebook: 00_small, heading: Counting", "00_small has no cell under a heading 'Counting'"),
        ("measurement: b.json", "there is no file measurements/b.json"),
        ("measurement: a.json", "there is no 'total' in it; there is formats, records"),
    ],
)
def test_evidence_that_is_not_there_is_said(evidence: str, message: str, small_course: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not tool.run(ledger_of(ROW.replace("notebook: 00_small, heading: Count", evidence), small_course)[0], small_course)
    assert f"MISSING   {message}" in capsys.readouterr().out


@pytest.mark.parametrize(("figure", "there"), [("4.127", True), ("4.128", False)])
def test_a_measurement_is_read(figure: str, there: bool, small_course: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = ROW.replace("notebook: 00_small, heading: Count", "measurement: a.json").replace(
        'total: "4"', f'formats | nf4 | bits: "{figure}"'
    )
    assert tool.run(ledger_of(text, small_course)[0], small_course) is there
    assert ("found     4.127" if there else "MISSING   4.128 for 'formats | nf4 | bits'; printed now: ") in capsys.readouterr().out
    (small_course / "measurements" / "a.json").write_text("{", encoding="utf-8")
    assert not tool.run(ledger_of(text, small_course)[0], small_course)


def test_an_open_claim_has_nothing_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = WITHOUT_EVIDENCE.replace("verdict: holds", "verdict: open\n  lesson: 13_finetune_with_qlora")
    assert tool.run(ledger_of(text, tmp_path)[0], tmp_path)
    assert "none yet: lesson 13_finetune_with_qlora" in capsys.readouterr().out


def test_a_claim_of_the_course_runs_from_the_command_line() -> None:
    command = [sys.executable, "-m", "tools.claims", "140-gb-full-precision"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("found     ") == 4
    assert "found     93.4 for 'Mixtral-8x7B | 16 bits' in: Mixtral-8x7B" in done.stdout


def test_the_readmes_part_is_written_between_its_marks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    monkeypatch.setattr(tool, "README", readme)
    readme.write_text(f"# Course\n\n{tool.BEGIN}\nan older part\n{tool.END}\n\nmore\n", encoding="utf-8")
    assert tool.main(["--check"]) == 1
    assert "python -m tools.claims --write" in capsys.readouterr().out
    assert tool.main(["--write"]) == 0
    assert tool.main(["--check"]) == 0
    text = readme.read_text(encoding="utf-8")
    assert (
        text.startswith(f"# Course\n\n{tool.BEGIN}\n[The ledger]")
        and text.endswith(f"\n{tool.END}\n\nmore\n")
        and "an older part" not in text
    )
    for broken in ("# Course\n", f"{tool.END}\n{tool.BEGIN}\n", text + text):
        readme.write_text(broken, encoding="utf-8")
        assert tool.main(["--write"]) == 2
        assert "these two lines once" in capsys.readouterr().err
        assert readme.read_text(encoding="utf-8") == broken
