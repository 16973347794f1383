"""What a learner sees from check, hint, reveal and progress, whatever they pass, and what is kept."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

from course_utils import checks
from course_utils.checks import NotCorrect, check, hint, progress, reveal
from course_utils.questions import LESSONS
from course_utils.questions.kinds import FunctionQuestion, Mistake
from course_utils.questions.lesson_01 import weight_gb


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A learner who has just begun: an empty work folder."""
    monkeypatch.setenv("COURSE_WORK", str(tmp_path / "work"))
    monkeypatch.delenv("COURSE_GRADED", raising=False)
    return tmp_path / "work"


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]):
    """What a call prints; that it prints nothing on stderr."""

    def run(function, *args):
        assert function(*args) is None
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out.rstrip("\n")

    return run


def kept(work: Path) -> dict:
    return json.loads((work / "progress.json").read_text(encoding="utf-8"))


# --- verdicts -------------------------------------------------------------------------------------------------------


def test_the_three_verdicts_and_an_explanation(said):
    assert said(check, "01.1", -11) == "01.1 correct."
    assert said(check, "01.1", 11) == "01.1 not right: the size is right: look at the first bit, the sign."
    assert said(check, "01.1", -12.0) == "01.1 not right: -12 is too small."
    assert said(check, "01.1") == said(check, "01.1", None) == "01.1 not attempted: bfloat16_value has no answer yet."
    assert said(check, "01.4", weight_gb) == "01.4 correct."
    assert said(check, "01.10", "Scales.").startswith("01.10 kept: ")
    assert said(check, "01.10", "  \n").startswith("01.10 not attempted: ")


@pytest.mark.parametrize("answer", [257, 257.0, np.float32(257), np.array([257]), torch.tensor(257), torch.tensor([257.0]), Fraction(257)])
def test_one_number_of_any_library_is_a_number(answer, said):
    assert said(check, "01.3", answer) == "01.3 correct."


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("257", "a number is due, and you passed text, '257': leave the quotes and the unit out."),
        (weight_gb, "a number is due, and you passed a function: pass what it returns."),
        ([257], "one number is due, and you passed [257]."),
        (True, "one number is due, and you passed True."),
        (1 + 2j, "one number is due, and you passed (1+2j)."),
        (Decimal(257), "one number is due, and you passed Decimal('257')."),
        (np.zeros(3), "one number is due, and you passed array([0., 0., 0.])."),
        (torch.zeros(2, 3), "one number is due, and you passed tensor([[0., 0., 0.], [0., 0., 0.]])."),
        (torch.zeros((), device="meta"), "one number is due, and you passed tensor(..., device='meta', size=())."),
        (float("nan"), "a finite number is due, and you passed nan."),
        (10**5000, "a number is due, and you passed a whole number of more than 30 digits: too large by far."),
    ],
    ids=lambda part: type(part).__name__,
)
def test_what_is_not_a_number_gets_a_sentence(answer, reason, said):
    assert said(check, "01.3", answer) == f"01.3 not right: {reason}"


class Unreadable:
    """Raises whatever is asked of it, and what class it is of, too."""

    def asked(self, *args):
        raise KeyError("not to be read")

    __getattr__ = __repr__ = __str__ = __eq__ = __hash__ = __bool__ = __len__ = __iter__ = __float__ = __format__ = item = asked
    __class__ = property(asked)


class UnreadableFunction(Unreadable):
    """It can be called, and raises then, too."""

    __call__ = Unreadable.asked


class UnreadableNumber(Unreadable, float):
    """Raises where it is turned into a number that can be trusted."""


class UnreadableText(Unreadable, str):
    """Raises where it is stripped."""

    strip = Unreadable.asked


ODD = "an object of type {} that can't be shown"


@pytest.mark.parametrize(
    ("question_id", "make", "reason"),
    [
        ("01.3", Unreadable, f"one number is due, and you passed {ODD.format('Unreadable')}."),
        ("01.3", lambda: UnreadableNumber(257), f"one number is due, and you passed {ODD.format('UnreadableNumber')}."),
        ("01.3", lambda: UnreadableText("257"), f"a number is due, and you passed text, {ODD.format('UnreadableText')}: leave the quotes"),
        ("01.3", UnreadableFunction, "a number is due, and you passed a function: pass what it returns."),
        ("01.4", Unreadable, f"pass the function itself, `weight_gb`, with no brackets after it; you passed {ODD.format('Unreadable')}."),
        ("01.4", UnreadableFunction, "weight_gb(1_000_000_000, 8) raised KeyError: 'not to be read'."),
        ("01.4", lambda: lambda weights, bits: Unreadable(), "weight_gb(1_000_000_000, 8) returned an object of type Unreadable, where"),
        ("01.10", Unreadable, f"an explanation is text in quotes, and you passed {ODD.format('Unreadable')}."),
    ],
)
def test_an_answer_that_raises_where_it_is_looked_at_gets_a_sentence(question_id, make, reason, said):
    assert said(check, question_id, make()).startswith(f"{question_id} not right: {reason}")


def test_a_text_with_ways_of_its_own_is_kept_as_a_text(said, work):
    assert said(check, "01.10", UnreadableText("Scales.")).startswith("01.10 kept: ")
    assert kept(work)["01.10"]["text"] == "Scales."


def test_a_function_is_passed_and_not_called(said):
    expected = "01.4 not right: pass the function itself, `weight_gb`, with no brackets after it; you passed 3.5."
    assert said(check, "01.4", weight_gb(7 * 10**9, 4)) == expected
    assert said(check, "01.10", 4.17) == "01.10 not right: an explanation is text in quotes, and you passed 4.17."


def test_an_unknown_question_gets_ids_near_it(said):
    assert said(check, "01.11", 1) == 'There is no question "01.11"; near it are 01.1, 01.9, 01.10.'
    for call in (check, hint, reveal):
        assert said(call, "1.2").startswith('There is no question "1.2"; near it are 01.2')
        assert said(call, 1.2) == 'The first argument is the id of a question in quotes, such as "01.2".'
    assert said(check, weight_gb, "01.4") == 'The first argument is the id of a question in quotes, such as "01.2".'
    assert said(progress, "44") == 'There is no exercise "44"; there are ' + ", ".join(LESSONS) + "."


# --- what a learner's function may do -----------------------------------------------------------------------------------------------


def stub(weights, bits):
    """Nothing is here yet."""
    raise NotImplementedError("write it here")


def body_of_dots(weights, bits): ...


def prints_only(weights, bits):
    print(weights * bits / 8 / 10**9)


def divides_by_zero(weights, bits):
    return weights / 0


def leaves(weights, bits):
    sys.exit("bye")


def recurses(weights, bits):
    return recurses(weights, bits)


def asks_torch_for_what_it_cannot_do(weights, bits):
    return torch.empty(1, device="meta").to("cpu")


class Sulky(Exception):
    def __str__(self):
        raise ValueError


def raises_what_cannot_be_printed(weights, bits):
    raise Sulky


@pytest.mark.parametrize(
    ("function", "verdict"),
    [
        (stub, "not attempted: weight_gb is still to be written."),
        (body_of_dots, "not attempted: weight_gb(1_000_000_000, 8) returned None: write its body, or is a `return` missing?"),
        (lambda weights, bits: ..., "not attempted: weight_gb(1_000_000_000, 8) returned `...`: write its body, or is a `return` missing?"),
        (lambda weights: 1.0, "not right: weight_gb(1_000_000_000, 8) raised TypeError: "),
        (divides_by_zero, "not right: weight_gb(1_000_000_000, 8) raised ZeroDivisionError: division by zero, in line "),
        (leaves, "not right: weight_gb(1_000_000_000, 8) raised SystemExit: bye, in line "),
        (recurses, "not right: weight_gb(1_000_000_000, 8) raised RecursionError: maximum recursion depth exceeded"),
        (asks_torch_for_what_it_cannot_do, "not right: weight_gb(1_000_000_000, 8) raised NotImplementedError: Cannot copy out of meta"),
        (raises_what_cannot_be_printed, "not right: weight_gb(1_000_000_000, 8) raised "),
        (lambda weights, bits: "1 GB", "not right: weight_gb(1_000_000_000, 8) returned text ('1 GB') where a number is due."),
        (lambda weights, bits: [1.0], "not right: weight_gb(1_000_000_000, 8) returned a list ([1.0]) where a number is due."),
        (lambda weights, bits: {1.0}, "not right: weight_gb(1_000_000_000, 8) returned an object of type set, where"),
        (lambda weights, bits: (1.0 for _ in "a"), "not right: weight_gb(1_000_000_000, 8) returned an object of type generator, where"),
        (lambda weights, bits: bits > 0, "not right: weight_gb(1_000_000_000, 8) returned True or False (True) where a number is due."),
        (lambda weights, bits: float("nan"), "not right: weight_gb(1_000_000_000, 8) returned nan where 1.0 is due."),
        (lambda weights, bits: 10**5000, "not right: weight_gb(1_000_000_000, 8) returned a whole number of more than 30 digits where"),
        (lambda weights, bits: torch.ones(3), "not right: weight_gb(1_000_000_000, 8) returned a tensor (tensor([1., 1., 1.])) where"),
        (lambda weights, bits: np.float64(weight_gb(weights, bits)), "correct."),
        (lambda weights, bits: torch.tensor(weight_gb(weights, bits), dtype=torch.float64), "correct."),
        (lambda weights, bits: print("trying") or weight_gb(weights, bits), "trying"),
    ],
)
def test_whatever_a_function_does_there_is_a_verdict(function, verdict, said):
    lines = said(check, "01.4", function)
    assert "Traceback" not in lines
    assert lines.startswith(verdict if verdict == "trying" else f"01.4 {verdict}")
    assert lines.splitlines()[-1].startswith("01.4 ")


def test_a_missing_return_is_named_although_the_function_prints(said):
    assert said(check, "01.4", prints_only).endswith("returned None: write its body, or is a `return` missing?")


def test_a_list_that_holds_itself_gets_a_sentence(said):
    endless: list = []
    endless.append(endless)
    assert "lists within lists" in said(check, "01.4", lambda weights, bits: endless)


def test_stop_stops(said):
    def waits(weights, bits):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check("01.4", waits)


def test_the_line_shown_is_the_learners_own(capsys):
    """In a notebook the error is in a cell; the sentence shows that cell's line, and no path."""
    shell = InteractiveShell.instance()
    try:
        shell.run_cell("def helper(x):\n    return 1 / x")
        shell.run_cell("from course_utils.checks import check\n\ndef weight_gb(weights, bits):\n    zero = 0\n    return helper(zero)")
        assert shell.run_cell('check("01.4", weight_gb)').success
    finally:
        InteractiveShell.clear_instance()
    expected = "raised ZeroDivisionError: division by zero, in line 5 of your code: return helper(zero)"
    assert capsys.readouterr().out == f"01.4 not right: weight_gb(1_000_000_000, 8) {expected}\n"


CALL = "add_one(tensor([[0., 1., 2.], [3., 4., 5.]]))"
SHIFTED = FunctionQuestion(
    id="99.1",
    title="Add one to a tensor",
    points=1,
    difficulty=1,
    minutes=1,
    name="add_one",
    hints=("a", "b"),
    answer=lambda x: x + 1,
    inputs=lambda seed: [(torch.arange(6.0).reshape(2, 3),), (torch.zeros(2, 3),)],
    mistakes=(Mistake("wrong axis", lambda x: x.T + 1, "your result is transposed."),),
    tolerance=1e-6,
)


@pytest.mark.parametrize(
    ("function", "verdict"),
    [
        (lambda x: x + 1, "correct."),
        (lambda x: x + 1 + 1e-7, "correct."),
        (lambda x: torch.nn.Parameter(x + 1), "correct."),
        (lambda x: x.T + 1, "not right: your result is transposed."),
        (lambda x: x.add_(1), f"not right: {CALL} changed its input: make a copy and change that."),
        (lambda x: x[0] + 1, f"not right: {CALL} returned a tensor of shape (3,) where (2, 3) is due."),
        (lambda x: (x + 1).half(), f"not right: {CALL} returned a tensor with dtype torch.float16 where"),
        (lambda x: (x + 1).to("meta"), f"not right: {CALL} returned a tensor with device meta where cpu is due."),
        (lambda x: (x + 1).to_sparse(), f"not right: {CALL} returned a tensor with layout torch.sparse_coo where"),
        (lambda x: (x + 1).tolist(), f"not right: {CALL} returned a list ("),
        (lambda x: (x + 1).numpy(), f"not right: {CALL} returned an object of type ndarray, where"),
        (lambda x: x + float("nan"), f"not right: {CALL} returned nan at [0][0] where 1.0 is due."),
        (lambda x: x + (x == 4) + 1, f"not right: {CALL} returned 6.0 at [1][1] where 5.0 is due."),
        (lambda x: x + 2, f"not right: {CALL} returned 2.0 at [0][0] where 1.0 is due."),
    ],
)
def test_tensors_are_held_to_shape_dtype_device_and_values(function, verdict):
    assert str(SHIFTED.verdict(function)).startswith(verdict)


class Agreeable:
    """Of a number, a list, a tensor: whatever it is compared with, it says that it is the same."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = None


class AgreeableFloat(Agreeable, float):
    """Equals every number."""


class AgreeableInt(Agreeable, int):
    """Equals every whole number."""


class AgreeableText(Agreeable, str):
    """Equals every text."""


class BrokenList(list):
    """Raises where it is read."""

    def __iter__(self):
        raise RuntimeError("not to be read")


class AgreeableTensor(torch.Tensor):
    """Raises or lies wherever torch asks it."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return True


DUE_FIVE = FunctionQuestion(
    id="99.2", title="t", points=1, difficulty=1, minutes=1, name="five", hints=("a", "b"),
    answer=lambda as_text: "5" if as_text else 5, inputs=lambda seed: [(False,), (True,)], mistakes=(),
)  # fmt: skip


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda as_text: "5" if as_text else AgreeableInt(4), "five(False) returned 4 where 5 is due."),
        (lambda as_text: "5" if as_text else AgreeableFloat(4.5), "five(False) returned 4.5 where 5 is due."),
        (lambda as_text: AgreeableText("4") if as_text else 5, "five(True) returned '4' where '5' is due."),
        (lambda as_text: "5" if as_text else BrokenList([5]), "five(False) returned a list ([5]) where a number is due."),
        (
            lambda as_text: "5" if as_text else torch.tensor(5).as_subclass(AgreeableTensor),
            "five(False) returned an object of type AgreeableTensor, where a number, text, list, dict or tensor is due.",
        ),
    ],
)
def test_an_answer_that_says_of_itself_that_it_is_right_is_not_believed(function, reason):
    assert str(DUE_FIVE.verdict(lambda as_text: "5" if as_text else 5)) == "correct."
    assert str(DUE_FIVE.verdict(function)) == f"not right: {reason}"


def test_a_mistake_in_another_order_of_arithmetic_is_still_that_mistake():
    """A hundredth too much, by two ways that differ in last bits. What rounding alone tells from the right answer is no such mistake."""
    exact = replace(
        SHIFTED,
        answer=lambda x: x * 3,
        tolerance=0.0,
        mistakes=(
            Mistake("rounded once more", lambda x: x * 3 * (1 + 2**-20), "only last bits differ."),
            Mistake("a hundredth", lambda x: x * 3 * 1.01, "a hundredth too much."),
        ),
        inputs=lambda seed: [(torch.linspace(0.1, 0.9, 7),)],
    )
    assert str(exact.verdict(lambda x: x * 3 * 1.01)) == str(exact.verdict(lambda x: x * 1.01 * 3)) == "not right: a hundredth too much."
    assert str(exact.verdict(lambda x: x * 3 * (1 + 2**-20))) == "not right: only last bits differ."
    assert "only last bits" not in str(exact.verdict(lambda x: x * 3 * (1 + 2**-21)))
    assert exact.verdict(lambda x: x * 3).state == "correct"


def test_whole_numbers_are_exact_whatever_the_tolerance():
    counting = replace(SHIFTED, answer=lambda x: 1_000_000, tolerance=1e-3, inputs=lambda seed: [(0,)], mistakes=())
    assert str(counting.verdict(lambda x: 1_000_001)) == "not right: add_one(0) returned 1_000_001 where 1_000_000 is due."
    assert str(counting.verdict(lambda x: 1_000_001.0)) == "correct."


def test_a_result_that_the_next_call_overwrites_is_judged_as_it_was_returned():
    buffer = torch.zeros(2, 3)

    def add_one(x):
        return torch.add(x, 1, out=buffer)

    assert str(SHIFTED.verdict(add_one)) == "correct."


def test_a_session_of_another_kind_serves_the_same_checker():
    """A checker needs nothing of a session but ``call``."""

    class Elsewhere:
        calls: list[tuple] = []

        def call(self, name, *args):
            self.calls.append((name, *args))
            return args[0] + 1

    session = Elsewhere()
    question = replace(SHIFTED, inputs=lambda seed: [(seed,), (seed + 1,)])
    assert str(question.judge_session(session, seed=7)) == "correct."
    assert session.calls == [("add_one", 7), ("add_one", 8)]


# --- graded form ------------------------------------------------------------------------------------------------------------


def test_in_the_graded_form_only_correct_passes(monkeypatch, said):
    monkeypatch.setenv("COURSE_GRADED", "1")
    assert said(check, "01.1", -11.0) == "01.1 correct."
    for question_id, answer in [("01.1", 11.0), ("01.1", ...), ("01.4", stub), ("01.4", divides_by_zero), ("77.7", 1), (1.1, 1)]:
        with pytest.raises(NotCorrect):
            check(question_id, answer)
    with pytest.raises(NotCorrect, match=r"^01\.1 not right: the size is right: look at the first bit, the sign\.$"):
        check("01.1", 11.0)
    for explanation in ("Scales.", ...):  # graded by hand
        check("01.10", explanation)


# --- hints and solutions ------------------------------------------------------------------------------------------------------


def test_hints_come_one_at_a_time_and_are_remembered(said, work):
    first, second, third = (said(hint, "01.1") for _ in range(3))
    assert first.startswith("01.1 hint 1 of 3: ") and second.startswith("01.1 hint 2 of 3: ") and third.startswith("01.1 hint 3 of 3: ")
    assert third.endswith('That is the last hint; `reveal("01.1")` shows the solution.')
    assert said(hint, "01.1") == third
    assert said(hint, "01.1", 1) == first
    assert said(hint, "01.1") == third
    assert kept(work)["01.1"]["hints"] == 3
    assert said(hint, "01.2").startswith("01.2 hint 1 of 3: ")
    for number in (4, 0, True, 2.0, "2", np.int64(2)):
        assert said(hint, "01.1", number) == "01.1 has hints 1 to 3."
    assert kept(work)["01.1"]["hints"] == 3


def test_reveal_sets_the_learners_words_beside_the_model_answer(said):
    assert "(none is kept yet)" in said(reveal, "01.10")
    said(check, "01.10", "Each block has a scale; größer.")
    shown = said(reveal, "01.10")
    assert shown.index("Each block has a scale; größer.") < shown.index("A model answer:") < shown.index("What earns points:")


# --- progress -----------------------------------------------------------------------------------------------------------------


def test_progress_shows_what_is_done_and_what_is_next(said):
    lines = said(progress).splitlines()
    assert lines[:-1] == [f"{stem}: 0 of {len(questions)} done" for stem, questions in LESSONS.items()]
    assert lines[-1] == "Next: 01.1 Read sixteen bits."
    said(check, "01.1", -11.0)
    said(check, "01.2", None)
    said(check, "01.3", 256)
    said(check, "01.10", "Scales.")
    said(reveal, "01.3")
    assert said(progress, 1) == said(progress, "1") == said(progress, "01")
    lines = said(progress, "01").splitlines()
    assert lines[0] == "01_count_the_bits: 2 of 10 done"
    assert lines[1:4] == [
        "  done  01.1 Read sixteen bits",
        "  open  01.2 Put a number together",
        "  tried 01.3 Find the first whole number that bfloat16 misses, solution seen",
    ]
    assert lines[-1] == "Next: 01.2 Put a number together."


def test_what_is_correct_stays_correct(said, work):
    said(check, "01.1", -11.0)
    said(check, "01.1", 11.0)
    said(hint, "01.1")
    assert kept(work)["01.1"] == {"state": "correct", "hints": 1}


DAMAGED = {
    "empty": b"",
    "cut short": b'{"01.1": {"st',
    "no text": b"\xff\xfe",
    "a list": b"[]",
    "a number": b"7",
    "no entry": b'{"01.1": 7}',
    "no number of hints": b'{"01.1": {"hints": "two"}}',
    "no state": b'{"01.1": {"state": []}}',
    "another state": b'{"01.1": {"state": "great"}}',
    "too deep": b"[" * 9999,
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_progress_file_is_set_aside_and_the_verdict_stands(damage, said, work):
    work.mkdir()
    for number in (1, 2):
        (work / "progress.json").write_bytes(damage)
        lines = said(check, "01.1", -11.0).splitlines()
        aside = f"progress-damaged-{number}.json"
        assert lines == ["01.1 correct.", f"Your progress file could not be read: it is set aside as {aside}, and a new one is begun."]
        assert (work / aside).read_bytes() == damage
        assert kept(work) == {"01.1": {"state": "correct"}}


def test_where_nothing_can_be_kept_the_verdict_stands(said, work):
    work.write_text("a file where the folder should be", encoding="utf-8")
    lines = said(check, "01.1", -11.0).splitlines()
    assert lines[0] == "01.1 correct."
    assert len(lines) == 2 and lines[1].startswith("Your progress could not be kept (") and lines[1].endswith("; all else works.")
    assert said(hint, "01.1", 2).splitlines()[1].startswith("01.1 hint 2 of 3: ")
    assert work.read_text(encoding="utf-8") == "a file where the folder should be"


def test_a_progress_file_that_cannot_be_opened_is_left_alone(said, work):
    (work / "progress.json").mkdir(parents=True)
    lines = said(check, "01.1", -11.0).splitlines()
    assert lines[0] == "01.1 correct." and lines[1].startswith("Your progress could not be kept (")
    assert [path.name for path in work.iterdir()] == ["progress.json"]


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_an_interruption_while_writing_leaves_the_old_file(where, monkeypatch, said, work):
    said(check, "01.1", -11.0)
    before = (work / "progress.json").read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checks.os, where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        check("01.3", 257)
    monkeypatch.undo()
    assert (work / "progress.json").read_bytes() == before
    assert [path.name for path in work.iterdir()] == ["progress.json"]


def test_killed_while_writing_the_file_is_whole(tmp_path):
    """A process that writes without pause is killed at a random moment, some times; what is there can always be read."""
    endless = "from course_utils.checks import check\nfor i in range(10**9):\n    check('01.10', str(i) + 'words ' * 20000)"
    environment = os.environ | {"COURSE_WORK": str(tmp_path)}
    file = tmp_path / "progress.json"
    for _ in range(3):
        file.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", endless], env=environment, stdout=subprocess.DEVNULL)
        while not file.exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(random.uniform(0.05, 0.2))
        process.kill()
        process.wait()
        assert kept(tmp_path)["01.10"]["text"].endswith("words ")


def test_the_questions_are_known_without_torch():
    """A builder reads points, and a learner's first cell imports the checks: neither waits for torch."""
    program = "import sys, course_utils.checks; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
