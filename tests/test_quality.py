"""What the course says about quality: the arithmetic agrees with other ways to compute it, and the examination with generation."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from course_utils import ROOT, models, quality
from course_utils.quality import KINDS, Question, Results, examine, judge, read_questions
from tools.abacus_text import KINDS as GENERATED_KINDS
from tools.abacus_text import Town
from tools.convert import Project, notebooks_of
from tools.examine_abacus import questions_file
from tools.train_abacus import SEED

LESSON = ROOT / "source" / "lessons" / "08_what_it_costs_in_quality.py"
DEFINED_IN_THE_LESSON = (
    "round_to_integers", "rounded_copy", "accuracy", "standard_error", "rule_of_three", "perplexity", "paired_test", "paired_difference",
    "questions_needed",
)  # fmt: skip

examples = settings(max_examples=60, deadline=None, derandomize=True)
papers = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40)


@pytest.fixture(scope="module")
def abacus() -> tuple[nn.Module, PreTrainedTokenizerBase]:
    return models.load(models.ABACUS, dtype=torch.float32)


# --- the questions ------------------------------------------------------------------------------------------------------------------


def test_the_file_of_questions_is_the_examination_of_the_generator() -> None:
    assert quality.QUESTIONS_FILE.read_text(encoding="utf-8") == questions_file(Town(SEED))
    assert KINDS == GENERATED_KINDS


def test_questions_are_read_by_kind_and_shuffled() -> None:
    everything = read_questions()
    assert [len(read_questions(kind)) for kind in KINDS] == [1364, 1313, 785, 1855, 5120]
    assert set(everything) == {question for kind in KINDS for question in read_questions(kind)}
    for kind in KINDS:  # shuffled: the first 300 have both levels in the proportion of all, within four standard errors
        levels = [question.level for question in read_questions(kind)]
        share = levels.count(levels[0]) / len(levels)
        assert abs(levels[:300].count(levels[0]) / 300 - share) < 4 * math.sqrt(share * (1 - share) / 300)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "missing"), ("{}", "Line 1"), ('{"kind": "sums"', "Line 1"), ("[1]", "Line 1"), ('{"kind": 1, "wrong": 2}', "Line 1")],
)
def test_a_damaged_file_says_what_to_do(tmp_path: Path, content: str | None, sentence: str) -> None:
    file = tmp_path / "questions.jsonl"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises((ValueError, FileNotFoundError), match=f"{sentence}.*git restore"):
        read_questions(file=file)


def test_a_kind_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="kind is 'sum'; it must be one of sums, differences"):
        read_questions("sum")


# --- the examination ------------------------------------------------------------------------------------------------------------------


def test_an_answer_is_exact_if_greedy_generation_writes_it(abacus) -> None:
    model, tokenizer = abacus
    damaged = quality.rounded_copy(model, quality.FORMATS["int3"])
    questions = [question for kind in KINDS for question in read_questions(kind)[:5]]
    results = examine(damaged, tokenizer, questions)
    written = [models.ask(damaged, tokenizer, question.question) for question in questions]
    assert results.exact == [text == f"{question.question} {question.answer}" for text, question in zip(written, questions, strict=True)]
    assert 0 < sum(results.exact) < len(questions)  # both cases were seen


def test_the_loss_is_that_of_the_model_itself(abacus) -> None:
    """transformers computes the mean loss of the tokens that are not masked by -100."""
    model, tokenizer = abacus
    questions = [read_questions(kind)[0] for kind in KINDS]
    results = examine(model, tokenizer, questions)
    for question, loss, tokens in zip(questions, results.losses, results.tokens, strict=True):
        asked = tokenizer(question.question)["input_ids"]
        ids = torch.tensor([tokenizer(f"{question.question} {question.answer}")["input_ids"] + [tokenizer.eos_token_id]])
        labels = ids.masked_fill(torch.arange(ids.shape[1]) < len(asked), -100)
        with torch.no_grad():
            theirs = model(ids, labels=labels).loss.item()
        assert tokens == ids.shape[1] - len(asked)
        assert loss / tokens == pytest.approx(theirs, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_neither_batch_nor_order_changes_an_answer(abacus, batch: int) -> None:
    questions = [question for kind in KINDS for question in read_questions(kind)[:8]]
    due = dict(zip(questions, examine(*abacus, questions).margins, strict=True))
    random.Random(batch).shuffle(questions)
    got = examine(*abacus, questions, batch=batch)
    assert got.exact == [margin > 0 for margin in got.margins]
    assert got.margins == pytest.approx([due[question] for question in questions], abs=1e-3)


def test_solved_questions_come_first_and_an_answer_ends_with_its_line(abacus) -> None:
    """Asked with shots, a model sees question and answer as one text after them. abacus isn't made for that, so no answer is compared."""
    model, tokenizer = abacus
    seen: list[str] = []
    hook = model.register_forward_pre_hook(lambda module, inputs: seen.extend(tokenizer.batch_decode(inputs[0])))
    shots, question = read_questions("sums")[:2], Question("sums", "2 digits", "What is 2+2?", "The answer is 4.")
    results = examine(model, tokenizer, [question], shots)
    hook.remove()
    text = "".join(f"{shot.question} {shot.answer}\n" for shot in [*shots, question])
    assert [line.removeprefix("<s>").lstrip() for line in seen] == [text]
    assert results.tokens == [len(tokenizer(" The answer is 4.\n", add_special_tokens=False)["input_ids"])]


def test_no_questions_is_an_error(abacus) -> None:
    with pytest.raises(ValueError, match="no questions"):
        examine(*abacus, [])


@given(st.integers(1, 5), st.integers(0, 2**31 - 1))
@examples
def test_the_margin_says_what_the_argmax_says(length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, answer = torch.randn(length, 7, generator=generator), torch.randint(7, (length,), generator=generator)
    logits[torch.arange(length), answer] += 1.5
    exact, loss, tokens, margin = judge(logits, answer)
    assert exact == bool((logits.argmax(-1) == answer).all()) == (margin > 0)
    assert loss == pytest.approx(nn.functional.cross_entropy(logits.double(), answer, reduction="sum").item(), rel=1e-5)
    assert tokens == length


# --- rounding -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("largest", "values"), [(7, 15), (3, 7), (1, 3)])
def test_integers_are_at_most_half_a_step_off(largest: int, values: int) -> None:
    weight = torch.randn(32, 128, generator=torch.Generator().manual_seed(largest))
    blocks, rounded = weight.view(-1, 64), quality.round_to_integers(weight, largest).view(-1, 64)
    step = blocks.abs().amax(dim=1, keepdim=True) / largest
    assert ((blocks - rounded).abs() <= step / 2 * (1 + 1e-5)).all()
    assert max(len(block.unique()) for block in (rounded / step).round()) == values


def test_blocks_of_zeros_stay_zeros() -> None:
    weight = torch.cat([torch.zeros(64), torch.ones(64), -torch.zeros(64)])
    for name in ("int3", "int2"):
        assert torch.equal(quality.FORMATS[name](weight), weight)


@pytest.mark.parametrize("block_size", [64, 0, -1])
def test_blocks_must_fill_the_weight(block_size: int) -> None:
    with pytest.raises(ValueError, match=f"weight has 100 numbers, which is no whole number of blocks of {block_size}"):
        quality.round_to_integers(torch.ones(10, 10), 7, block_size)


def test_int4_by_rounding_is_int4_of_part_one() -> None:
    """Up to ties, and to the last bit: one divides by the step, the other multiplies by 1 / absmax."""
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(quality.FORMATS["int4"](weight), quality.round_to_integers(weight, 7), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_four_bit_formats_are_those_of_bitsandbytes(quant_type: str, double_quant: bool) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    name = f"{quant_type}, double quantization" if double_quant else quant_type
    if name in quality.FORMATS:
        theirs = dequantize_4bit(*quantize_4bit(weight, quant_type=quant_type, blocksize=64, compress_statistics=double_quant))
        assert torch.equal(quality.FORMATS[name](weight), theirs)
    else:
        assert name == "fp4, double quantization"


def test_a_rounded_copy_leaves_the_model_and_its_head_alone(abacus) -> None:
    model, _ = abacus
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    changed = quality.rounded_copy(model, quality.FORMATS["nf4"]).state_dict()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    linears = {f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    assert {name for name in before if not torch.equal(before[name], changed[name])} == linears - {"lm_head.weight"}
    chosen = quality.rounded_copy(model, quality.FORMATS["nf4"], lambda name: name == "lm_head").state_dict()
    assert [name for name in before if not torch.equal(before[name], chosen[name])] == ["lm_head.weight"]


@pytest.mark.parametrize("name", quality.FORMATS)
def test_a_rounded_copy_keeps_the_dtype_of_the_model(abacus, name: str) -> None:
    model, tokenizer = abacus
    in_16_bits = quality.rounded_copy(copy.deepcopy(model).to(torch.bfloat16), quality.FORMATS[name])
    assert {weight.dtype for weight in in_16_bits.parameters()} == {torch.bfloat16}
    assert len(examine(in_16_bits, tokenizer, read_questions("sums")[:1]).exact) == 1


# --- what the numbers say ----------------------------------------------------------------------------------------------------------------


@given(papers)
@examples
def test_the_p_value_is_that_of_coins_counted_one_by_one(pairs: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in pairs][:16], [b for _, b in pairs][:16]
    only_first, only_second, p = quality.paired_test(first, second)
    coins = only_first + only_second
    falls = [bin(fall).count("1") for fall in range(2**coins)]  # every way in which the coins can fall
    unevenness = abs(only_first - only_second)
    assert p == pytest.approx(sum(abs(2 * heads - coins) >= unevenness for heads in falls) / len(falls))
    assert quality.paired_test(second, first).p == p


def test_the_p_value_keeps_its_promise() -> None:
    """Of two equal formats at most one test in twenty says p < 0.05."""
    generator = torch.Generator().manual_seed(0)
    below = 0
    for _ in range(2000):
        flips = torch.rand(2, 100, generator=generator) < 0.9
        below += quality.paired_test(*flips.tolist()).p < 0.05
    assert 0.01 < below / 2000 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_the_standard_error_is_the_spread_of_many_papers() -> None:
    generator = torch.Generator().manual_seed(0)
    marks = (torch.rand(4000, 50, generator=generator) < 0.8).double().mean(dim=1)
    due = quality.standard_error([True] * 40 + [False] * 10)
    assert 100 * marks.std().item() == pytest.approx(due, rel=4 / math.sqrt(2 * 4000))  # a spread is known to 1 / sqrt(2 n)


@given(st.integers(1, 6000))
@examples
def test_the_rule_of_three(questions: int) -> None:
    share = quality.rule_of_three(questions) / 100
    assert (1 - share) ** questions == pytest.approx(0.05)
    assert share < 3 / questions


@pytest.mark.parametrize("paired", [True, False])
def test_as_many_questions_as_needed_succeed_four_times_in_five(paired: bool) -> None:
    """Draw as many questions as are asked for, again and again: 80 % of the draws show more than 1.96 errors."""
    generator = torch.Generator().manual_seed(3)
    ease = torch.randn(200_000, generator=generator)
    first, second = ease, ease + 0.1 + 0.3 * torch.randn(200_000, generator=generator)
    needed = quality.questions_needed(first.tolist(), second.tolist(), paired)
    errors = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)
    assert needed == pytest.approx(errors**2 * (0.09 if paired else 2.09) / 0.01, rel=0.05)
    draws = 2000
    picked = torch.randint(200_000, (draws, needed), generator=generator)
    other = picked if paired else torch.randint(200_000, (draws, needed), generator=generator)
    if paired:
        differences = second[picked] - first[picked]
        error = differences.std(dim=1) / math.sqrt(needed)
    else:
        differences = second[other] - first[picked]
        error = ((first[picked].var(dim=1) + second[other].var(dim=1)) / needed).sqrt()
    seen = (differences.mean(dim=1) > 1.96 * error).double().mean().item()
    assert seen == pytest.approx(0.8, abs=0.05)


def test_no_difference_needs_questions_without_end() -> None:
    assert quality.questions_needed([True, False, True], [True, False, True]) == math.inf


def test_one_difference_throughout_leaves_no_deviation() -> None:
    assert quality.questions_needed([True] * 10, [False] * 10) == 0


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError):
        quality.paired_test([True], [True, False])
    with pytest.raises(ValueError):
        quality.paired_difference([1.0], [1.0, 2.0])


# --- the lesson ------------------------------------------------------------------------------------------------------------------------


def cells() -> list[str]:
    built = notebooks_of(Project(), LESSON)
    return [cell.source for notebook in built.values() for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def lesson() -> dict:
    """What the lesson defines, by running only the imports and functions of its cells."""
    import ast

    defined: dict = {}
    for source in cells():
        kept = [node for node in ast.parse(source).body if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef))]
        exec(compile(ast.Module(kept, []), LESSON.name, "exec", dont_inherit=True), defined)
    return defined


def test_the_lesson_defines_what_the_library_holds(lesson: dict) -> None:
    assert set(DEFINED_IN_THE_LESSON) <= set(lesson)
    for name in DEFINED_IN_THE_LESSON:
        assert lesson[name] is not getattr(quality, name), f"{name} is imported where the lesson should define it"


@given(papers)
@examples
def test_lesson_and_library_agree_on_right_and_wrong(lesson: dict, pairs: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    for name in ("accuracy", "standard_error"):
        assert lesson[name](first) == pytest.approx(getattr(quality, name)(first))
    for name in ("paired_test", "paired_difference", "questions_needed"):
        assert lesson[name](first, second) == pytest.approx(getattr(quality, name)(first, second))
    assert lesson["questions_needed"](first, second, False) == pytest.approx(quality.questions_needed(first, second, False))
    assert lesson["rule_of_three"](len(pairs)) == pytest.approx(quality.rule_of_three(len(pairs)))


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(1, 40)), min_size=1, max_size=20))
@examples
def test_lesson_and_library_agree_on_perplexity(lesson: dict, answers: list[tuple[float, int]]) -> None:
    losses, tokens = [loss for loss, _ in answers], [count for _, count in answers]
    assert lesson["perplexity"](losses, tokens) == pytest.approx(quality.perplexity(losses, tokens))


@pytest.mark.parametrize("largest", [7, 3, 1])
def test_lesson_and_library_agree_on_rounding(lesson: dict, abacus, largest: int) -> None:
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(largest))
    assert torch.equal(lesson["round_to_integers"](weight, largest), quality.round_to_integers(weight, largest))
    ours = lesson["rounded_copy"](abacus[0], quality.FORMATS["fp4"]).state_dict()
    theirs = quality.rounded_copy(abacus[0], quality.FORMATS["fp4"]).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_int8_layer_of_the_lesson_is_that_of_bitsandbytes(lesson: dict, abacus) -> None:
    """On the inputs that a layer of abacus really gets, outlier columns included, within the steps of float16."""
    model, tokenizer = abacus
    layer = model.get_submodule("model.layers.3.mlp.down_proj")
    seen: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    examine(model, tokenizer, read_questions("facts")[:8])
    hook.remove()
    x = seen[0].half()
    assert (x.abs() >= 6).any()
    with torch.no_grad():
        ours, theirs = lesson["Int8Layer"](layer)(x.float()), lesson["library_layer"](layer.weight.detach())(x).float()
    assert ours.shape == theirs.shape == (*x.shape[:-1], 128)
    assert (ours - theirs).norm() < 2**-9 * theirs.norm()
    assert (ours - layer(x.float())).norm() > 2**-9 * theirs.norm()  # the rounding to int8 itself is larger than that


def test_counts_in_the_lesson_do_not_hang_on_a_rounding(abacus) -> None:
    """No answer of the lesson's longest table is decided by so little that another processor could see it otherwise.

    Two orders of summation of float32 move logits of size 20 by some 1e-5 here (seen: 1e-5 between batches); every margin is beyond 1e-4.
    int3 has the narrowest ones.
    """
    model, tokenizer = abacus
    damaged = quality.rounded_copy(model, quality.FORMATS["int3"])
    narrowest = min(abs(margin) for kind in KINDS for margin in examine(damaged, tokenizer, read_questions(kind)[:300]).margins)
    assert narrowest > 1e-4


@pytest.mark.parametrize("gpu", ["0", "-1"])
def test_the_first_cell_hides_a_gpu_from_abacus_only(monkeypatch: pytest.MonkeyPatch, gpu: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("COURSE_MODEL", "somebody/model") if gpu == "0" else monkeypatch.delenv("COURSE_MODEL", raising=False)
    exec(cells()[0], {})
    assert os.environ["CUDA_VISIBLE_DEVICES"] == gpu


def test_the_lesson_runs_on_another_model(tmp_path: Path) -> None:
    """A tiny model of another shape, never trained, with abacus's tokenizer: every cell runs, and those for abacus alone say so."""
    tokenizer = AutoTokenizer.from_pretrained(str(models.ABACUS))
    torch.manual_seed(0)
    shape = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    LlamaForCausalLM(LlamaConfig(vocab_size=736, pad_token_id=0, bos_token_id=1, eos_token_id=2, **shape)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    program = "import matplotlib\nmatplotlib.use('Agg')\n" + "\n\n".join(cells())
    environment = os.environ | {"COURSE_MODEL": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "which only abacus knows" in run.stdout and "can't be counted" in run.stdout
    assert re.search(r"^model.layers.1 ", run.stdout, re.MULTILINE)


def test_the_figures_of_the_card_are_read_from_the_record() -> None:
    """The lesson reads the record for all facts; the questions in the file are as many."""
    record = json.loads((ROOT / "measurements" / "abacus_quality.json").read_text(encoding="utf-8"))
    for kind in KINDS:
        assert record["formats"]["nf4"]["kinds"][kind]["questions"] == len(read_questions(kind))


def test_results_are_plain_lists(abacus) -> None:
    results = examine(*abacus, read_questions("sums")[:3])
    assert isinstance(results, Results)
    assert [len(numbers) for numbers in vars(results).values()] == [3, 3, 3, 3]
    assert json.dumps(vars(results))
