"""Every question of the course: right answers pass, known mistakes and missing answers do not, and the numbers are true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from course_utils import ROOT
from course_utils.checks import check, reveal
from course_utils.questions import LESSONS, ExplanationQuestion, FunctionQuestion, NumberQuestion, all_questions, find, lesson_01
from course_utils.questions.kinds import CORRECT
from course_utils.session import LocalSession
from tools.convert import Project, notebooks_of

QUESTIONS = all_questions()
JUDGED = [question for question in QUESTIONS if not isinstance(question, ExplanationQuestion)]
MISTAKES = [(question, mistake) for question in JUDGED for mistake in question.mistakes]


@pytest.fixture(autouse=True)
def learner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A learner who has just begun."""
    monkeypatch.setenv("COURSE_WORK", str(tmp_path))
    monkeypatch.delenv("COURSE_GRADED", raising=False)


# --- all questions ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.id)
def test_a_question_has_all_that_it_needs(question):
    assert re.fullmatch(r"\d\d\.[1-9]\d?", question.id)
    assert question.points >= 1 and question.difficulty in range(1, 6) and question.minutes >= 1
    assert question.name.isidentifier()
    assert len(set(question.hints)) >= 2
    if isinstance(question, ExplanationQuestion):
        assert sum(points for points, _ in question.rubric) == question.points
    else:
        messages = [mistake.message for mistake in question.mistakes]
        assert len(messages) >= 3 and len(set(messages)) == len(messages)


@pytest.mark.parametrize("stem", LESSONS)
def test_the_ids_of_a_lesson_count_from_one_and_all_kinds_are_there(stem):
    questions = LESSONS[stem]
    assert [question.id for question in questions] == [f"{stem[:2]}.{number}" for number in range(1, len(questions) + 1)]
    assert {type(question) for question in questions} == {FunctionQuestion, NumberQuestion, ExplanationQuestion}
    assert all(find(question.id) is question for question in questions)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.id)
@pytest.mark.parametrize("missing", [..., None])
def test_a_missing_answer_is_not_attempted(question, missing):
    assert question.verdict(missing).state == "not attempted"


@pytest.mark.parametrize(("question", "mistake"), MISTAKES, ids=lambda part: getattr(part, "id", None) or part.name.replace(" ", "-"))
def test_a_mistake_is_refused_with_its_own_message(question, mistake):
    verdict = question.verdict(mistake.wrong)
    assert (verdict.state, verdict.reason) == ("not right", mistake.message)


@pytest.mark.parametrize("question", [q for q in JUDGED if isinstance(q, FunctionQuestion)], ids=lambda question: question.id)
@pytest.mark.parametrize("seed", range(1, 6))
def test_functions_are_judged_alike_on_other_inputs(question, seed):
    assert question.judge_session(LocalSession({question.name: question.answer}), seed).state == "correct"
    for mistake in question.mistakes:
        assert question.judge_session(LocalSession({question.name: mistake.wrong}), seed).reason == mistake.message


@pytest.mark.parametrize("question", JUDGED, ids=lambda question: question.id)
def test_the_solution_that_is_shown_passes_the_check_by_itself(question, capsys):
    reveal(question.id)
    title, shown = capsys.readouterr().out.split("\n\n", maxsplit=1)
    assert title == f"{question.id} {question.title}"
    defined: dict = {}
    exec(shown, defined)
    check(question.id, defined[question.name])
    assert capsys.readouterr().out == f"{question.id} correct.\n"


# --- the exercise files ---------------------------------------------------------------------------------------------------------------


def exercise(stem: str) -> dict[str, list]:
    """The cells of the solved and the unsolved exercise, by folder."""
    built = notebooks_of(Project(), ROOT / "source" / "exercises" / f"{stem}.py")
    return {path.parent.name: notebook.cells for path, notebook in built.items()}


@pytest.mark.parametrize("stem", LESSONS)
def test_the_exercise_says_of_each_question_what_is_registered(stem):
    text = "\n".join(cell.source for cell in exercise(stem)["exercises"] if cell.cell_type == "markdown")
    found = re.findall(r"^## Question (.*)\n(Difficulty .*)$", text, re.MULTILINE)
    assert found == [
        (
            f"{question.id}: {question.title}",
            f"Difficulty {question.difficulty}/5, {question.minutes} minutes, {question.points} point{'s' if question.points > 1 else ''}",
        )
        for question in LESSONS[stem]
    ]
    assert f"about {sum(question.minutes for question in LESSONS[stem])} minutes" in text


@pytest.mark.parametrize("question", [question for question in JUDGED if isinstance(question, NumberQuestion)], ids=lambda q: q.id)
def test_a_number_rounded_as_the_text_allows_is_accepted(question):
    """To as many decimals as the text says "will do"; and any number but a count to three digits, which no text forbids."""
    stem = next(stem for stem, questions in LESSONS.items() if question in questions)
    cells = [" ".join(cell.source.split()) for cell in exercise(stem)["exercises"] if cell.cell_type == "markdown"]
    text = next(cell for cell in cells if cell.startswith(f"## Question {question.id}:"))
    decimals = {"One": 1, "Two": 2, "Three": 3, "Four": 4, "Five": 5}
    allowed = [round(question.answer, decimals[word]) for word in re.findall(r"\b([A-Z][a-z]+) decimals?\b", text)]
    if "A whole number will do" in text:
        allowed.append(round(question.answer))
    elif not float(question.answer).is_integer():
        allowed.append(float(f"{question.answer:.3g}"))
    for answer in allowed:
        assert question.verdict(answer).state == CORRECT, answer


@pytest.mark.parametrize("stem", LESSONS)
@pytest.mark.parametrize(("folder", "states"), [("solutions", {"correct", "kept"}), ("exercises", {"not attempted"})])
def test_the_exercise_runs_solved_and_unsolved(stem, folder, states, capsys):
    defined: dict = {}
    for cell in exercise(stem)[folder]:
        if cell.cell_type == "code":
            exec(cell.source, defined)
    verdicts = re.findall(r"^(\d\d\.\d+) (correct|kept|not attempted|not right)\b", capsys.readouterr().out, re.MULTILINE)
    assert [question_id for question_id, _ in verdicts] == [question.id for question in LESSONS[stem]]
    assert {state for _, state in verdicts} == states


@pytest.mark.parametrize("stem", LESSONS)
def test_a_check_is_given_what_the_solution_defines(stem):
    source = "\n".join(cell.source for cell in exercise(stem)["solutions"] if cell.cell_type == "code")
    assert re.findall(r'^check\("(.*)", (\w+)\)', source, re.MULTILINE) == [(question.id, question.name) for question in LESSONS[stem]]


# --- lesson 01: the numbers are true --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "exponent_bits", "mantissa_bits"), [(torch.float16, 5, 10), (torch.bfloat16, 8, 7)])
def test_float_value_is_what_torch_reads_from_every_pattern(dtype, exponent_bits, mantissa_bits):
    values = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).double()
    for pattern, value in enumerate(values.tolist()):
        sign, exponent, mantissa = pattern >> 15, (pattern >> mantissa_bits) % 2**exponent_bits, pattern % 2**mantissa_bits
        if exponent < 2**exponent_bits - 1:
            assert lesson_01.float_value(sign, exponent, mantissa, exponent_bits, mantissa_bits) == value
    assert value != value  # the last pattern is a NaN: all of them were seen


def test_the_sixteen_bits_of_the_first_question():
    exercise_text = (ROOT / "source" / "exercises" / "01_count_the_bits.py").read_text(encoding="utf-8")
    pattern = int(re.search(r"the pattern `([01]{16})`", exercise_text)[1], 2)
    assert torch.tensor(pattern - 2**16, dtype=torch.int16).view(torch.bfloat16).item() == find("01.1").answer


def test_the_first_whole_number_that_bfloat16_misses():
    numbers = torch.arange(1.0, 1000.0)
    missed = numbers[numbers.to(torch.bfloat16).float() != numbers]
    assert missed[0].item() == find("01.3").answer


@pytest.mark.parametrize("name", ["Llama-2-7b", "Llama-2-13b", "Llama-2-70b"])
def test_the_linear_weights_are_those_of_the_architecture(name):
    from course_utils import models

    model = models.architecture(name)
    linear = [module for path, module in model.named_modules() if isinstance(module, torch.nn.Linear) and path != "lm_head"]
    config = model.config
    shape = (config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads)
    assert lesson_01.linear_weights(*shape) == sum(module.weight.numel() for module in linear)
    if name == "Llama-2-13b":
        in_4bit = lesson_01.weight_gb(lesson_01.linear_weights(*shape), lesson_01.bits_per_weight(64, True))
        others = lesson_01.weight_gb(model.num_parameters() - lesson_01.linear_weights(*shape), 16)
        assert find("01.8").answer == pytest.approx(in_4bit + others, rel=1e-12)


@pytest.mark.parametrize("block_size", [64, 256, 4096])
@pytest.mark.parametrize("double_quant", [False, True])
def test_the_bits_per_weight_are_those_that_bitsandbytes_stores(block_size, double_quant):
    from bitsandbytes.functional import quantize_4bit

    weight = torch.randn(block_size, 256, generator=torch.Generator().manual_seed(0))  # 256 blocks: one float32 for their scales
    packed, state = quantize_4bit(weight, blocksize=block_size, quant_type="nf4", compress_statistics=double_quant)
    stored = packed.nbytes + state.absmax.nbytes + (state.state2.absmax.nbytes if double_quant else 0)
    assert lesson_01.bits_per_weight(block_size, double_quant) == stored * 8 / weight.numel()


def test_the_kv_cache_is_what_a_model_keeps():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=64, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    with torch.no_grad():
        cache = model(torch.zeros(5, 7, dtype=torch.int64)).past_key_values  # 5 sequences of 7 tokens
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert lesson_01.kv_cache_gb(3, 64, 8, 2, 7, 5) == pytest.approx(kept / 10**9, rel=1e-12)
