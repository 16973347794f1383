"""Measuring: times and their spread, the files that hold them, and `make measure`, which may be killed at any moment."""

from __future__ import annotations

import copy
import json
import random
import re
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from course_utils import ROOT, measure
from course_utils.measure import NOISY, SCHEMA_VERSION, MeasurementFileError, Timing, layer_work, time_in_turns
from tools import measure as program
from tools import measure_parts
from tools.measure import LeftOut, MachineFile, Part, Step, counted, identity, key, left_out, timed

MACHINE = {
    "name": "Abacus 1, 2 cores", "device": "cpu", "processor": "Abacus 1", "cores": 2, "memory_gb": 8.0, "instructions": "DEFAULT",
    "packed_path": False, "gpu": None, "gpu_memory_gb": None, "system": "Linux", "architecture": "x86_64",
}  # fmt: skip
RUN = {
    "date": "2026-11-21", "command": "make measure", "threads": 2,
    "versions": {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0", "bitsandbytes": "0.50.2"},
}  # fmt: skip


# --- Times ---

milliseconds = st.lists(st.floats(min_value=1e-6, max_value=1e3), min_size=2, max_size=30)


class FakeClock:
    """Each thing that runs takes as long as the list says."""

    def __init__(self, durations: list[float]) -> None:
        self.now, self.durations = 0.0, iter(durations)

    def __call__(self) -> float:
        return self.now

    def work(self) -> None:
        self.now += next(self.durations)


def cells_of_lesson(*starts: str) -> dict[str, Any]:
    """The names that the cells of lesson 09 define which begin with these words."""
    source = (ROOT / "source" / "lessons" / "09_what_it_costs_in_time.py").read_text(encoding="utf-8")
    cells = [cell.split("\n", 1)[1] for cell in source.split("\n# %%")[1:] if not cell.startswith(" [markdown]")]
    defined: dict[str, Any] = {"torch": torch, "time": time, "statistics": statistics, "device": "cpu"}
    for start in starts:
        function = next(cell for cell in cells if start in cell)
        exec(function[function.index(start) :].split("\n\n\n")[0].split("\n\nclock =")[0], defined)
    return defined


LESSON = cells_of_lesson("def summary(", "def wait_for_gpu(", "def time_in_turns(", "def layer_work(")


@given(seconds=milliseconds)
def test_a_timing_says_what_the_lesson_computes(seconds: list[float]) -> None:
    timing = Timing(tuple(seconds))
    median, quartiles, spread = LESSON["summary"](seconds)
    assert (timing.median, timing.quartiles, timing.spread) == (median, quartiles, pytest.approx(spread))
    assert timing.noisy == (timing.spread > NOISY)


@given(
    durations=st.lists(st.integers(1, 1000).map(float), min_size=40, max_size=40),
    repetitions=st.integers(1, 5),
    warm_up=st.integers(0, 3),
)
def test_taking_turns_is_what_the_lesson_writes(durations: list[float], repetitions: int, warm_up: int) -> None:
    clocks = FakeClock(durations), FakeClock(durations)
    ours = time_in_turns(dict.fromkeys("abc", clocks[0].work), repetitions, warm_up, clock=clocks[0])
    lessons = LESSON["time_in_turns"](dict.fromkeys("abc", clocks[1].work), repetitions, warm_up, clock=clocks[1])
    assert {name: list(timing.seconds) for name, timing in ours.items()} == lessons
    first = warm_up * 3  # a round for each warm-up, then a, b, c in each round that counts
    assert ours["b"].seconds == tuple(durations[first + 1 : first + 3 * repetitions : 3])


@given(outputs=st.integers(1, 9999), inputs=st.integers(1, 9999), batch=st.integers(1, 512), bits=st.sampled_from([4, 4.5, 8, 16]))
def test_the_work_of_a_layer_is_what_the_lesson_counts(outputs: int, inputs: int, batch: int, bits: float) -> None:
    work = layer_work(outputs, inputs, batch, bits)
    flops, moved = LESSON["layer_work"](outputs, inputs, batch, bits)
    assert work.flops == flops and work.bytes_moved == pytest.approx(moved, abs=1)


def test_there_must_be_something_to_time() -> None:
    with pytest.raises(ValueError, match="at least one run"):
        time_in_turns({})
    with pytest.raises(ValueError, match="at least one repetition"):
        time_in_turns({"a": lambda: None}, repetitions=0)


# --- Files ---


def test_the_schema_is_one_and_every_committed_file_keeps_it() -> None:
    jsonschema.Draft202012Validator.check_schema(measure.schema())
    for path in measure.files(own=False):
        content = measure.read_file(path)
        assert path.stem == program.slug(content["machine"]["name"])
        keys = [key(one) for one in content["records"] + content["left_out"]]
        assert len(set(keys)) == len(keys), "measured once"
        for record in content["records"]:
            assert record["run"] < len(content["runs"])
            if record["statistic"] == "median":
                low, high = record["quartiles"]
                assert low <= record["value"] <= high


def some_records() -> list[dict[str, Any]]:
    layer = {"part": "layers"} | identity("layer time", "4096x4096", "nf4", path="plain", batch=1, block_size=64)
    return [
        timed(layer, Timing((0.004, 0.004, 0.004))),
        timed(layer | {"batch": 64}, Timing((0.001, 0.004, 0.009))),
        counted({"part": "memory"} | identity("footprint", "Llama", "nf4"), 1234, "bytes"),
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A learner's own folder, with the file of one machine; nothing is committed."""
    measure.schema()  # is read once, from the folder that is replaced below
    committed = tmp_path / "committed"
    committed.mkdir()
    monkeypatch.setattr(measure, "COMMITTED", committed)
    monkeypatch.setenv("COURSE_WORK", str(tmp_path))
    measure_folder = tmp_path / "measurements"
    MachineFile(measure_folder, MACHINE, RUN, print).add(some_records())
    return measure_folder


def the_file(folder: Path) -> Path:
    (path,) = folder.glob("*.json")
    return path


def test_what_was_written_is_found(folder: Path) -> None:
    assert the_file(folder).name == "abacus-1-2-cores.json"
    assert len(measure.records()) == 3
    (quiet,) = measure.find(quantity="layer time", batch=1)
    assert (quiet["value"], quiet["unit"], quiet["noisy"], quiet["machine"]) == (4.0, "ms", False, "Abacus 1, 2 cores")
    assert measure.shown(measure.find(batch=64)[0]) == "4.00 ms*", "noisy, and shown"
    assert measure.value(quantity="footprint") == 1234
    assert measure.value(quantity="footprint", format="fp4") is None
    assert measure.machines()["Abacus 1, 2 cores"]["cores"] == 2
    assert measure.records(own=False) == [] and measure.shown(None) == "not measured yet"


def test_an_unclear_question_is_an_error(folder: Path) -> None:
    with pytest.raises(ValueError, match="2 records fit; they differ in batch"):
        measure.value(quantity="layer time", format="nf4")
    with pytest.raises(ValueError, match="has no field colour"):
        measure.find(colour="blue")


def test_ones_own_file_goes_before_the_committed_one(folder: Path) -> None:
    content = measure.read_file(the_file(folder))
    content["records"] = content["records"][:1]
    (measure.COMMITTED / "abacus-1-2-cores.json").write_text(program.as_text(content), encoding="utf-8")
    assert (len(measure.records()), len(measure.records(own=False))) == (3, 1)


NO_JSON: dict[str, Callable[[str], str]] = {
    "cut short": lambda text: text[:200],
    "nested too deeply": lambda text: "[" * 100_000,
    "a number too long": lambda text: text.replace('"cores": 2', f'"cores": {"2" * 10_000}'),
}


def spoil(path: Path, how: str) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    if how in NO_JSON:
        path.write_text(NO_JSON[how](path.read_text(encoding="utf-8")), encoding="utf-8")
        return
    if how == "older schema":
        content["schema"] = SCHEMA_VERSION - 1
    elif how == "newer schema":
        content["schema"] = SCHEMA_VERSION + 1
    elif how == "no such run":
        content["records"][0]["run"] = 99
    elif how == "left out in no such run":
        content["left_out"].append({name: content["records"][0][name] for name in program.IDENTITY} | {"reason": "why", "run": 1})
    elif how == "a run that is no place":
        content["records"][0]["run"] = 0.0
    else:
        content["records"][0]["value"] = "fast"
    path.write_text(json.dumps(content), encoding="utf-8")


SPOILT = {
    "older schema": r"was written in older schema 0, and this course reads 1\. Run make measure",
    "newer schema": r"was written in newer schema 2, and this course reads 1\. Update the course",
    "wrong value": r"is not as the schema says: 'fast' is not of type 'number' \(at records/0/value\)",
    "no such run": r"has a record of run 99, counted from 0, and 1 runs\. Measure again",
    "left out in no such run": r"has a record of run 1, counted from 0, and 1 runs\. Measure again",
    "a run that is no place": r"has a record of run 0\.0, counted from 0, and 1 runs\. Measure again",
    **dict.fromkeys(NO_JSON, "is damaged and can't be read as JSON"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_file_that_cant_be_used_is_named_and_the_rest_goes_on(folder: Path, how: str) -> None:
    other = copy.deepcopy(MACHINE) | {"name": "Abacus 2, 2 cores"}
    MachineFile(folder, other, RUN, print).add(some_records()[:1])
    spoil(folder / "abacus-1-2-cores.json", how)
    with pytest.raises(MeasurementFileError, match=SPOILT[how]):
        measure.read_file(folder / "abacus-1-2-cores.json")
    assert [record["machine"] for record in measure.records()] == ["Abacus 2, 2 cores"]
    (problem,) = measure.problems()
    assert problem.count(". ") <= 1


@pytest.mark.parametrize("how", SPOILT)
def test_make_measure_sets_such_a_file_aside_and_begins_anew(folder: Path, how: str) -> None:
    spoil(the_file(folder), how)
    spoilt = the_file(folder).read_bytes()
    said: list[str] = []
    file = MachineFile(folder, MACHINE, RUN, said.append)
    file.add(some_records()[:1])
    assert len(measure.records()) == 1
    assert (folder / "abacus-1-2-cores-1.old").read_bytes() == spoilt, "nothing is lost"
    assert len(said) == 1 and "set aside as abacus-1-2-cores-1.old" in said[0]


def test_files_of_other_programs_are_left_alone(folder: Path) -> None:
    (folder / "another.json").write_text('{"what": "something else"}', encoding="utf-8")
    assert len(measure.records()) == 3 and measure.problems() == []


# --- make measure, with parts that take no time ---


def quick_part(name: str, steps: int, ran: list[str] | None = None, failing: Callable[[], list[dict[str, Any]]] | None = None) -> Part:
    def one(number: int) -> Step:
        what = identity("layer time", f"{number}", "nf4")

        def run() -> list[dict[str, Any]]:
            if ran is not None:
                ran.append(f"{name} {number}")
            if failing and number == 1:
                return failing()
            return [timed(what, Timing((0.001, 0.001)))]

        return Step(f"step {number}", [what], run, 1)

    return Part(name, "something quick", [one(number) for number in range(steps)])


def run_main(tmp_path: Path, parts: list[Part], *arguments: str) -> int:
    return program.main([*arguments, "--out", str(tmp_path)], parts=lambda: parts)


@pytest.fixture(autouse=True)
def fake_machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real_machine" not in request.fixturenames:
        monkeypatch.setattr(program, "this_machine", lambda: MACHINE)
        monkeypatch.setattr(program, "this_run", lambda command: RUN | {"command": command})
        monkeypatch.setattr(program, "load_of_others", lambda: 0.0)


@pytest.fixture
def real_machine() -> None:
    """Look at the machine that the test runs on."""


def test_it_lists_first_then_measures_and_a_second_call_has_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[str] = []
    parts = [quick_part("first", 2, ran), quick_part("second", 3, ran)]
    assert run_main(tmp_path, parts, "--list") == 0
    listed = capsys.readouterr().out
    assert ran == [] and "0 of 2" in listed and "0 of 3" in listed
    assert "No GPU that PyTorch can use was found" in listed
    assert run_main(tmp_path, parts, "--part", "second") == 0
    assert ran == ["second 0", "second 1", "second 2"]
    assert run_main(tmp_path, parts) == 0
    assert ran[3:] == ["first 0", "first 1"]
    assert "second: all there." in capsys.readouterr().out
    assert run_main(tmp_path, parts, "--again") == 0
    assert len(ran) == 10 and len(measure.read_file(the_file(tmp_path))["records"]) == 5, "measured anew, not twice"


def test_an_unknown_part_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(tmp_path, [quick_part("first", 1)], "--part", "frist") == 2
    assert capsys.readouterr().out == 'There is no part "frist"; there are first.\n'


def test_on_a_busy_machine_it_says_so_and_marks_what_varies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "load_of_others", lambda: 80.0)
    what = identity("layer time", "1", "nf4")
    part = quick_part("first", 3, failing=lambda: [timed(what, Timing((0.001, 0.002, 0.009)))])
    assert run_main(tmp_path, [part]) == 0
    shown = capsys.readouterr().out
    assert "Other programs use 80 % of the processor" in shown and "1 of them are noisy" in shown
    assert [record["noisy"] for record in measure.read_file(the_file(tmp_path))["records"]] == [False, True, False], "marked, not hidden"


def raising(error: Exception) -> Callable[[], list[dict[str, Any]]]:
    def run() -> list[dict[str, Any]]:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (LeftOut("It needs 14.8 GB, and 7.9 GB are free on the GPU."), r"It needs 14\.8 GB, and 7\.9 GB are free on the GPU\."),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "there was not enough memory: CUDA out of memory"),
        (MemoryError(), "there was not enough memory"),
        (RuntimeError("no kernel for that\nand more"), "it failed: no kernel for that$"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_machine_cant_measure_is_written_down_and_the_rest_goes_on(
    tmp_path: Path, error: Exception, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []
    parts = [quick_part("first", 3, ran, raising(error)), quick_part("second", 1, ran)]
    assert run_main(tmp_path, parts) == 0
    content = measure.read_file(the_file(tmp_path))
    assert len(content["records"]) == 3
    (omitted,) = content["left_out"]
    assert omitted["of"] == "1" and re.search(reason, omitted["reason"])
    assert "1 left out" in capsys.readouterr().out
    assert run_main(tmp_path, parts) == 0 and len(ran) == 4, "it is not tried again at each call"


def test_a_part_stops_after_its_minutes_and_the_next_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "LIMIT_SECONDS", -1)
    ran: list[str] = []
    assert run_main(tmp_path, [quick_part("first", 3, ran), quick_part("second", 1, ran)]) == 0
    assert ran == [] and "with 3 of 3 steps to go" in capsys.readouterr().out
    monkeypatch.setattr(program, "LIMIT_SECONDS", 480)
    assert run_main(tmp_path, [quick_part("first", 3, ran)]) == 0 and len(ran) == 3


def test_other_versions_are_measured_anew_in_the_place_of_the_old(tmp_path: Path) -> None:
    parts = [quick_part("first", 2)]
    console = Console(quiet=True)
    program.measure(parts, MachineFile(tmp_path, MACHINE, RUN, print), console)
    newer = RUN | {"date": "2027-01-01", "versions": RUN["versions"] | {"torch": "2.14.0"}}
    file = MachineFile(tmp_path, MACHINE, newer, print)
    assert file.done() == set()
    program.measure(parts, file, console)
    content = file.content()
    assert len(content["records"]) == 2 and content["runs"] == [newer], "the old run has no record left"


def test_a_folder_that_cant_be_written_to_is_said_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert run_main(tmp_path / "file", [quick_part("first", 1)]) == 1
    assert "Choose another folder with OUT=" in capsys.readouterr().out


# --- Killed ---

SLOW = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from rich.console import Console
    from course_utils.measure import Timing
    from tools.measure import MachineFile, Part, Step, identity, measure, timed
    machine, run, folder = {machine!r}, {run!r}, Path({folder!r})

    def step(part, number):
        finds = [identity("layer time", f"{{number}}", format) for format in ("nf4", "bf16")]
        def go():
            with open(folder / "log.txt", "a", encoding="utf-8") as log:
                log.write(f"{{part}} {{number}}\\n")
            time.sleep(0.03)
            return [timed(what, Timing((0.001, 0.001))) for what in finds]
        return Step(str(number), finds, go, 0.03)

    parts = [Part(name, "slow", [step(name, number) for number in range(8)]) for name in ("a", "b", "c")]
    print("ready", flush=True)
    measure(parts, MachineFile(folder, machine, run, print), Console(quiet=True))
""")


def start(folder: Path) -> subprocess.Popen[str]:
    code = SLOW.format(machine=MACHINE, run=RUN, folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_killed_five_times_and_finished_it_has_the_same_records(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    assert start(whole).wait() == 0
    pick = random.Random()  # other moments in every run
    kills = 0
    for _ in range(5):
        process = start(killed)
        time.sleep(pick.uniform(0.0, 0.25))
        kills += process.poll() is None
        process.kill()
        process.wait()
        for path in killed.glob("*.json"):
            measure.read_file(path)  # whole at every moment
    assert kills >= 4, "it was still at work when it was killed"
    assert start(killed).wait() == 0
    assert [path.name for path in killed.glob("*.part")] == [], "nothing is left beside the file"

    def found(folder: Path) -> dict[tuple[Any, ...], Any]:
        return {key(record): record["value"] for record in measure.read_file(the_file(folder))["records"]}

    assert found(killed) == found(whole) and len(found(whole)) == 48
    steps = (killed / "log.txt").read_text(encoding="utf-8").splitlines()
    assert len(set(steps)) == 24 and len(steps) <= 24 + kills, "a kill costs the step that was running, and no other"


# --- The real parts, on layers and models that are quickly done ---


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
    for name, value in {
        "SHAPES": ((64, 128),), "BATCHES": (1, 4), "BLOCK_SIZES": (64, 128), "REPETITIONS": 2, "PROMPT_TOKENS": 4, "CONTEXT_TOKENS": 3,
        "SUMMED_NUMBERS": 64, "FLOP_SIZE": 64, "DOUBLE_SHAPE": (64, 128), "BLOCK_SHAPE": (128, 128), "model_config": lambda name: config,
    }.items():  # fmt: skip
        monkeypatch.setattr(measure_parts, name, value)
    quality = measure_parts.quality
    monkeypatch.setattr(quality, "FORMATS", {name: quality.FORMATS[name] for name in ("bfloat16", "int2")})
    monkeypatch.setattr(quality, "read_questions", lambda kind, read=quality.read_questions: read(kind)[:6])
    measure_parts.forget_models()
    measure_parts.layers.cache_clear()


def test_each_part_finds_what_it_announces(small: None, tmp_path: Path) -> None:
    parts = [part for part in measure_parts.parts() if part.name != "memory"]
    file = MachineFile(tmp_path, MACHINE, RUN, print)
    program.measure(parts, file, Console(quiet=True))
    content = file.content()
    assert content["left_out"] == []
    assert {key(record) for record in content["records"]} == {key(one) for part in parts for one in program.finds(part)}
    assert all(record["value"] > 0 for record in content["records"] if record["quantity"] != "accuracy")
    measure_parts.forget_models()
    measure_parts.layers.cache_clear()


def test_where_memory_is_short_models_are_left_out_with_the_figures(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_parts, "free_bytes", lambda: 1000)
    for part in (measure_parts.model_part(measure_parts.SMALL), measure_parts.memory_part()):
        for step in part.steps:
            for found in program.run_step(part, step):
                assert "GB, and 0.0 GB are free" in found["reason"]


def test_models_that_dont_fit_together_are_measured_one_by_one(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    one = max(measure_parts.needed_bytes(measure_parts.SMALL, variant) for variant in measure_parts.model_variants(measure_parts.SMALL))
    monkeypatch.setattr(measure_parts, "free_bytes", lambda: 2 * one)
    part = measure_parts.model_part(measure_parts.SMALL)
    records = program.run_step(part, part.steps[0])
    assert len(records) == 1 and "measured by itself" in records[0]["note"]
    measure_parts.forget_models()


def test_the_small_model_has_as_many_weights_as_its_name_says() -> None:
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(measure_parts.model_config(measure_parts.SMALL))
    assert f"{model.num_parameters() / 1e6:.0f}M" in measure_parts.SMALL


def test_a_built_model_is_what_transformers_loads(small: None, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    variant = measure_parts.Variant("nf4+dq", "plain")
    built = measure_parts.build_model(measure_parts.SMALL, variant)
    measure_parts.build_model(measure_parts.SMALL, measure_parts.Variant("bf16")).save_pretrained(tmp_path)
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, dtype=torch.bfloat16, device_map={"": "cpu"})
    kinds = [{name: type(layer).__name__ for name, layer in model.named_modules()} for model in (built.cpu(), loaded)]
    assert kinds[0] == kinds[1]
    assert measure_parts.footprint(built) == measure_parts.footprint(loaded)
    linears = [layer for layer in built.modules() if isinstance(layer, measure_parts.Linear4bit)]
    predicted = measure_parts.predicted_bytes(measure_parts.SMALL, variant)
    parts = measure_parts.footprint(built)
    assert predicted == pytest.approx(sum(parts.values()) - parts["codebooks"] - parts["buffers"], abs=16 * len(linears))


def test_no_two_parts_measure_the_same_and_each_is_short(real_machine: None) -> None:
    parts = measure_parts.parts()
    keys = [key(one) for part in parts for one in program.finds(part)]
    assert len(set(keys)) == len(keys)
    minutes = {part.name: sum(step.seconds for step in part.steps) / 60 for part in parts}
    assert all(estimate < 8 for estimate in minutes.values())
    assert sum(minutes.values()) < 25


def test_this_machine_keeps_the_schema(real_machine: None) -> None:
    machine, run = program.this_machine(), program.this_run("make measure")
    for name, value in (("machine", machine), ("run", run)):
        jsonschema.validate(value, {"$ref": f"#/$defs/{name}", "$defs": measure.schema()["$defs"]})


def test_a_step_that_finds_something_else_is_a_mistake_in_the_program() -> None:
    what, other = identity("layer time", "1", "nf4"), identity("layer time", "2", "nf4")
    part = Part("first", "", [Step("", [what], lambda: [left_out(other, "why")], 1)])
    with pytest.raises(AssertionError, match="did not find what it announced"):
        program.run_step(part, part.steps[0])


def test_identities_have_the_words_of_the_schema() -> None:
    with pytest.raises(TypeError, match="unknown field colour"):
        identity("layer time", "1", "nf4", colour="blue")
    required = set(measure.schema()["$defs"]["record"]["required"])
    assert set(program.IDENTITY) < required


# --- make bench ---


def test_make_bench_begins_quietly_and_is_content_with_one_run() -> None:
    """In a process of its own, since only the first import of bitsandbytes can warn, and on some CPUs it does."""
    program = "from tools.bench import table_rows; print(table_rows('sums', {'bitsandbytes': lambda: sum(range(1000))}, 1))"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("[['sums', 'bitsandbytes', ") and "'1.00']" in run.stdout
    assert "kernel" not in run.stderr


@pytest.mark.parametrize("tool", ["bench", "measure_parts", "examine_abacus"])
def test_a_tool_imports_bitsandbytes_after_what_keeps_that_quiet(tool: str) -> None:
    text = (ROOT / "tools" / f"{tool}.py").read_text(encoding="utf-8")
    assert re.search(r"^from course_utils(\.models)? import .*", text, re.MULTILINE).start() < text.index("from bitsandbytes")
