"""Lesson 09 where nothing has been measured, and the facts in its text and questions that no cell of it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch

from course_utils import ROOT, measure, models
from course_utils.questions import find
from tools.convert import Project, notebooks_of

SOURCE = ROOT / "source" / "lessons" / "09_what_it_costs_in_time.py"


def test_the_lesson_does_not_fail_where_nothing_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = measure.schema()
    monkeypatch.setattr(measure, "COMMITTED", tmp_path)
    monkeypatch.setattr(measure, "schema", lambda: schema)
    matplotlib.use("agg")
    (notebook,) = notebooks_of(Project(), SOURCE).values()
    defined: dict[str, Any] = {}
    for cell in notebook.cells:
        slow = "models.load" in cell.source or "repetitions=7" in cell.source  # nothing later needs them
        if cell.cell_type == "code" and not slow:
            exec(cell.source, defined)
    printed = capsys.readouterr().out
    assert printed.count(measure.NOT_MEASURED) >= 8
    assert "ms*" not in printed


def test_no_text_says_by_itself_that_something_is_not_measured() -> None:
    """The words come from the folder. The one text cell that has them says so."""
    code = [line for line in SOURCE.read_text(encoding="utf-8").splitlines() if measure.NOT_MEASURED in line and not line.startswith("# ")]
    assert code == []


def test_times_that_the_text_names_are_those_of_the_file() -> None:
    text = " ".join(line.removeprefix("# ") for line in SOURCE.read_text(encoding="utf-8").splitlines())
    twice, once = (
        measure.value(own=False, machine="AMD EPYC, 2 cores", quantity="quantize a layer", format=format) for format in ("nf4+dq", "nf4")
    )
    assert f"{twice:.2f} ms with it and {once:.2f} without for this layer" in text


def test_a_prompt_of_others_cannot_have_been_read_in_the_time_that_is_given() -> None:
    calculations = 2 * 13e9 * 16 * 512
    assert f"= {calculations / 1e12:.0f} million million calculations" in SOURCE.read_text(encoding="utf-8")
    assert calculations / 312e12 > 9 * 0.06994


def test_the_counts_of_question_5_are_those_of_the_architecture() -> None:
    model = models.architecture("Llama-2-7b")
    head = model.lm_head.weight.numel()
    linear = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, torch.nn.Linear)) - head
    exercise = (ROOT / "source" / "exercises" / SOURCE.name).read_text(encoding="utf-8")
    assert f"{linear:,}" in exercise and f"{head:,}" in exercise
    assert find("09.5").answer == pytest.approx((linear * (4 + (8 + 32 / 256) / 64) / 8 + 2 * head) / 1e9)


def test_the_lesson_asks_bitsandbytes_as_a_layer_does() -> None:
    """The functions whose calls the lesson watches are those that quantize, and read back."""
    from bitsandbytes.nn import Linear4bit

    layer = Linear4bit(64, 32, bias=False, compute_dtype=torch.float32, compress_statistics=True, quant_type="nf4").to("cpu").eval()
    models.use_plain_cpu_path(layer)
    before = layer.weight.quant_state.absmax.clone()
    with torch.no_grad():
        layer(torch.ones(1, 64))
    assert layer.weight.quant_state.nested and torch.equal(layer.weight.quant_state.absmax, before), "read back, and not kept"
