"""Errors that are expected, the time machine and its records, and lesson 11's search for one's own error."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import traceback
from dataclasses import asdict

import pytest
import torch
from bitsandbytes.functional import quantize_4bit

from course_utils import ROOT, errors, models
from course_utils.clinic import expect_error, expect_failure, without_places
from course_utils.memory import kv_cache_bytes, model_bytes_in_4bit
from course_utils.questions import lesson_11
from tests.fake_hub import FakeHub
from tools import time_machine
from tools.time_machine_snippets import SNIPPETS, Snippet

RECORDS = errors.records()
INSTALLED = {name: record for name, record in RECORDS["environments"].items() if record["installed"]}
OUTCOMES = {"raised", "nothing raised", "another error", "out of reach", "the process ended"}
LESSON = (ROOT / "source" / "lessons" / "11_errors_and_their_cures.py").read_text(encoding="utf-8")

# --- expect_error and expect_failure ---


def test_the_error_that_is_expected_is_shown_and_kept(capsys):
    with expect_error(ValueError, "three", lines=2) as caught:
        raise ValueError("one\ntwo\n\nthree")
    assert capsys.readouterr().out == "ValueError: ...\ntwo\nthree\n"
    assert isinstance(caught.error, ValueError)


def test_an_error_without_a_message_is_shown_by_its_type(capsys):
    with expect_error(AssertionError, ""):
        raise AssertionError
    assert capsys.readouterr().out == "AssertionError\n"


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (None, "Nothing was raised"),
        (TypeError("shapes cannot be multiplied"), "What came: TypeError: shapes cannot be multiplied"),
        (RuntimeError("something else"), "What came: RuntimeError: something else"),
    ],
)
def test_a_cell_fails_if_nothing_or_another_error_comes(raised, said, capsys):
    with pytest.raises(AssertionError, match=f"Expected RuntimeError with 'shapes' in its message. {said}"):
        with expect_error(RuntimeError, "shapes"):
            if raised:
                raise raised
    assert capsys.readouterr().out == ""


def test_somebody_who_interrupts_is_obeyed():
    with pytest.raises(KeyboardInterrupt):
        with expect_error(Exception, ""):
            raise KeyboardInterrupt


def test_what_is_logged_is_kept_and_the_loggers_are_as_before():
    logger = logging.getLogger("transformers")
    before = (list(logger.handlers), logger.propagate)
    with expect_error(ValueError, "x") as caught:
        logging.getLogger("transformers.modeling_utils").warning("a report from /home/ada/model")
        raise ValueError("x")
    assert caught.log == "a report from .../model\n"
    assert (list(logger.handlers), logger.propagate) == before


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("no file /home/ada/.cache/hub/model.safetensors here", "no file .../model.safetensors here"),
        (r"no file C:\Users\Ada Lovelace\model.safetensors here", "no file .../model.safetensors here"),
        (str(FileNotFoundError(2, "No such file", r"C:\Users\Ada Lovelace\models\x.json")), "[Errno 2] No such file: '.../x.json'"),
        (str(FileNotFoundError(2, "No such file", "/Volumes/My Disk/a + b/x.json")), "[Errno 2] No such file: '.../x.json'"),
        ("no file C:/Users/ada/models/x.json", "no file .../x.json"),
        ('File "C:/Users/Ada Lovelace/models/x.py", line 3', 'File ".../x.py", line 3'),
        (r"C:\Users/ada\models/x.json", ".../x.json"),
        (r"from C:\a\x.json to D:\b c\y.json, see https://huggingface.co/docs", "from .../x.json to .../y.json, see https://huggingface.co/docs"),
        (
            "\"/home/ada/models/x is not a local folder and is not listed on https://huggingface.co/models\"",
            "\".../x is not a local folder and is not listed on https://huggingface.co/models\"",
        ),
        (r"C:\a\x.json does not match \d+ and \w", r".../x.json does not match \d+ and \w"),
        (r"FileNotFoundError: C:\models\x.json, or pass cache\hub", r"FileNotFoundError: .../x.json, or pass cache\hub"),
        ("/home/ada/x.json and meta-llama/Llama-2-7b-hf", ".../x.json and meta-llama/Llama-2-7b-hf"),
        ("C:/Users/x.json and meta-llama/Llama-2-7b-hf", ".../x.json and meta-llama/Llama-2-7b-hf"),
        ("'16'/32-bit floats, and/or 'meta-llama/Llama-2-7b-hf', '/x.json'", None),
        ("read 'https://huggingface.co/docs' or file://server/docs, and s3://bucket/key", None),
        (r"no file C:\Users\ada\model.safetensors", "no file .../model.safetensors"),
        ("<Model object at 0x7f31c0ffee00>", "<Model object at 0x...>"),
        ("url http://127.0.0.1:43627/api", "url http://127.0.0.1:.../api"),
        ("see https://huggingface.co/docs/transformers/main and meta-llama/Llama-2-7b-hf", None),
        ("shapes (1x128 and 8192x1), 16/32-bit, and/or 0x70", None),
    ],
)
def test_places_of_this_machine_are_left_out_and_nothing_else(text, left):
    assert without_places(text) == (text if left is None else left)


def test_a_process_that_fails_shows_its_last_lines(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as Jupyter's kernels have it: from Python 3.13 on tracebacks are coloured then
    expect_failure("print('first'); raise ValueError('one\\ntwo')", "two", lines=2)
    assert capsys.readouterr().out == "first\nValueError: one\ntwo\n"


def test_a_process_that_writes_in_an_encoding_of_its_own_is_understood(capsys, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")  # as a Windows of western Europe has it
    expect_failure("print('größer'); raise ValueError('kürzer')", "kürzer")
    assert capsys.readouterr().out == "größer\nValueError: kürzer\n"


@pytest.mark.parametrize(("code", "said"), [("pass", "code 0"), ("raise ValueError('no')", "code 1, and: .*ValueError: no")])
def test_a_process_that_ends_otherwise_fails_the_cell(code, said):
    with pytest.raises(AssertionError, match=re.compile(f"Expected a process that ends with 'memory'.*{said}", re.DOTALL)):
        expect_failure(code, "memory")


# --- the records of the time machine ---


def test_the_records_are_those_of_the_programs_as_they_are():
    """Where this fails, the programs have been changed since: make time-machine."""
    assert RECORDS["snippets"] == {name: {**asdict(snippet), "also": list(snippet.also)} for name, snippet in SNIPPETS.items()}
    assert list(RECORDS["environments"]) == list(time_machine.ENVIRONMENTS)


def test_the_versions_that_matter_are_there_with_those_of_their_day():
    tried = {errors.release(name): record["versions"] for name, record in INSTALLED.items()}
    assert {"4.30", "4.36", "4.37", "4.38", "4.44", "4.57"} <= set(tried)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", record["date"]) for record in INSTALLED.values())
    for name, record in INSTALLED.items():
        pinned = dict(package.split("==") for package in record["pinned"])
        for package, version in pinned.items():
            if package.replace("-", "_") in record["versions"]:
                assert record["versions"][package.replace("-", "_")] == version, name


@pytest.mark.parametrize("name", INSTALLED)
def test_every_program_has_an_outcome_that_its_record_bears_out(name):
    runs = INSTALLED[name]["runs"]
    assert set(runs) == set(SNIPPETS)
    for program, run in runs.items():
        assert run["outcome"] in OUTCOMES
        assert ("error" in run) == (run["outcome"] in ("raised", "another error", "out of reach"))
        if run["outcome"] == "raised":
            assert SNIPPETS[program].text in run["error"]["message"]
        if run["outcome"] == "out of reach":
            line = run["in_source"][0]
            assert line["text"] and (line["line"] or line["file"].endswith(".so"))


def test_what_cannot_be_installed_says_why():
    for record in RECORDS["environments"].values():
        assert record["installed"] or record["why"].strip()


def test_no_record_names_a_place_of_the_machine_that_made_it():
    text = errors.RECORDS.read_text(encoding="utf-8")
    assert not re.search(r"(/home/|/root/|/tmp/|/work/|[A-Z]:\\\\Users|pypi|\\u001b)", text)


def test_the_name_that_nobody_raises_was_searched_for_where_it_could_be():
    search = RECORDS["search"]
    minors = {version.rsplit(".", 1)[0] for version, found in search["transformers"].items() if found["fetched"]}
    assert {f"4.{minor}" for minor in range(30, 58)} <= minors and {f"5.{minor}" for minor in range(24)} <= minors
    assert {"torch-2.1.2", "torch-2.4.1", errors.OWN} <= set(search["installed"])
    for found in [*search["transformers"].values(), *search["installed"].values()]:
        assert found["files"] > 1000 and found["hits"] == []


# --- the time machine ---


@pytest.fixture
def no_preparation(monkeypatch):
    """Programs without the tiny model before them, which takes seconds."""
    monkeypatch.setattr(time_machine, "TINY", "")


def test_a_crash_loses_one_program_and_no_other(no_preparation):
    programs = {
        "before": Snippet("1. x", "division", "print('one'); 1 / 0"),
        "crash": Snippet("1. x", "", "import os; os._exit(3)"),
        "after": Snippet("1. x", "nothing", "import warnings; warnings.warn('look at /home/ada/it')"),
        "other": Snippet("1. x", "nothing", "raise SystemExit('stop')"),
    }
    python, layer = time_machine.interpreter(errors.OWN)
    results = time_machine.run_snippets(python, layer, programs)
    assert list(results) == list(programs)
    assert results["before"]["outcome"] == "raised" and results["before"]["printed"] == "one\n"
    assert results["crash"] == {"outcome": "the process ended", "exit_code": 3}
    assert results["after"] == {"outcome": "nothing raised", "warned": ["UserWarning: look at .../it"]}
    assert (results["other"]["outcome"], results["other"]["error"]["type"]) == ("another error", "SystemExit")


def test_an_environment_that_cannot_be_made_is_recorded_with_the_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(time_machine, "HOME", tmp_path)
    monkeypatch.setitem(time_machine.BASES, "torch-9", time_machine.Base("9.9", ("torch==9.9.9",)))
    monkeypatch.setitem(time_machine.ENVIRONMENTS, "transformers-9", time_machine.Environment("torch-9", ("transformers==9.9.9",)))
    record = time_machine.visit("transformers-9", SNIPPETS)
    assert record["installed"] is False and "There is no python9.9 on the PATH" in record["why"]


def test_an_environment_is_made_once_and_again_after_a_stop(tmp_path):
    calls = []

    def make():
        calls.append(1)
        (tmp_path / "environment").mkdir()

    for _ in range(2):
        time_machine.made_once(tmp_path / "environment", ["a==1"], make)
    assert len(calls) == 1
    time_machine.made_once(tmp_path / "environment", ["a==2"], make)
    assert len(calls) == 2
    (tmp_path / "environment" / time_machine.PINS).unlink()
    time_machine.made_once(tmp_path / "environment", ["a==2"], make)
    assert len(calls) == 3


def test_an_unknown_environment_is_named_with_those_there_are(capsys):
    with pytest.raises(SystemExit):
        time_machine.main(["transformers-3"])
    assert "there is no environment 'transformers-3'; there are transformers-4.29" in capsys.readouterr().err


def test_the_course_own_environment_raises_what_is_recorded():
    python, layer = time_machine.interpreter(errors.OWN)
    if time_machine.versions(python, layer) != RECORDS["environments"][errors.OWN]["versions"]:
        pytest.skip("the records are of other versions")
    programs = {name: SNIPPETS[name] for name in ("class_not_called", "keyword", "both_formats", "mixed_map", "cast", "saved")}
    results = time_machine.run_snippets(python, layer, programs)
    for name, result in results.items():
        recorded = errors.run_of(name)
        assert result["outcome"] == recorded["outcome"]
        assert result.get("error") == recorded.get("error")


# --- finding one's own ---


def test_every_entry_of_the_lesson_has_its_programs_and_the_other_way_round():
    headings = re.findall(r"^# ### (\d+\. .*)$", LESSON, re.MULTILINE)
    assert headings == list(dict.fromkeys(error.entry for error in errors.known_errors()))


def first_entry(text: str) -> str:
    """The entry that is named first, or the whole answer."""
    lines = errors.find_error(text).splitlines()
    return lines[2] if len(lines) > 2 else lines[0]


@pytest.mark.parametrize("error", [error for error in errors.known_errors() if error.raised], ids=lambda error: error.id)
def test_an_error_is_found_by_its_last_line_and_by_its_traceback(error):
    other_numbers = re.sub(r"\d{2,}", "4321", error.text)
    around = f'Traceback (most recent call last):\n  File "/home/ada/train.py", line 88, in <module>\n    main(config)\n{other_numbers}'
    for text in (error.text, other_numbers, around):
        assert first_entry(text).startswith(error.entry)


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("RuntimeError: Expected scalar type Double but found Half", "1."),
        ("AttributeError: type object 'BitsAndBytesConfig' has no attribute 'load_in_4bit'", "2."),
        ("CUDA out of memory even with load_in_4bit=True", "3."),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.65 GiB", "3."),
        ("ValueError: Attempting to deserialize object but no `_builtin_model_class` was stored in the config", "4."),
        ("You can't pass `load_in_4bit`or `load_in_8bit` as a kwarg", "5."),
        ("quant_type must be 'nf4' or 'fp4', got 'Nf4'", "8."),
        ("No GPU found. A GPU is needed for quantization.", "10."),
        ("requires Accelerate: `pip install accelerate` and the latest version of bitsandbytes", "11."),
        ("mat1 and mat2 shapes cannot be multiplied (4x2048 and 1x2097152)", "17."),
        ("FP4 quantization state not initialized. Please call .cuda() or .to(device) on the LinearFP4 layer first.", "19."),
        ("You are calling `save_pretrained` on a 4-bit converted model. This is currently not supported", "23."),
        ("RuntimeError: mat1 and mat2 must have the same dtype, but got Float and BFloat16", "1."),
        ("Input type (double) and bias type (c10::BFloat16) should be the same", "1."),
        ("CUDA is required but not available for bitsandbytes. Please consider installing the multi-platform enabled version", "10."),
        ("NotImplementedError: Device type not supported for FP4 quantization: cpu", "10."),
        ("AssertionError: Torch not compiled with CUDA enabled", "10."),
        ("requires bitsandbytes: `pip install -U bitsandbytes>=0.46.1`", "11."),
        ("CUDA SETUP ERROR: Missing dependency: libnvJitLink.so.13", "13."),
        ("CUDA Setup failed despite GPU being available.", "13."),
        ("RuntimeError: Blockwise 4bit quantization only supports 16/32-bit floats, but got torch.uint8", "14."),
        ("ValueError: Blockwise 4bit quantization only supports 16/32-bit floats, but got torch.float64", "9."),
        ("size mismatch for weight: copying a param with shape torch.Size([8388608, 1]) from checkpoint", "14."),
        ("GatedRepoError", "15."),
        ("huggingface_hub.errors.LocalEntryNotFoundError: Cannot find the requested files in the disk cache", "15."),
        ("Calling `to()` is not supported for `4-bit` quantized models with the installed version of bitsandbytes.", "16."),
        ("AssertionError: K must be even", "18."),
        ("RuntimeError: shape '[4096, 172]' is invalid for input of size 705000", "18."),
        ('File "/x/modules.py", line 9, in fix_4bit_weight_quant_state_from_module\n    assert module.weight\nAssertionError', "19."),
        ("AssertionError", "19."),
        ("RuntimeError: Only Tensors of floating point and complex dtype can require gradients", "21."),
        ("RuntimeError: expected m1 and m2 to have the same dtype, but got: unsigned char != c10::BFloat16", "17."),
        ("RuntimeError: expected m1 and m2 to have the same dtype, but got: float != c10::BFloat16", "1."),
        ("mat1 and mat2 must have the same dtype, but got Half and Byte", "17."),
        ("self and mat2 must have the same dtype, but got Half and Float", "1."),
        ("RuntimeError: The size of tensor a (128) must match the size of tensor b (22544384) at non-singleton dimension 0", "17."),
        ("OSError: ada/abakus is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models'", "15."),
        ("NotImplementedError", "23."),
    ],
)
def test_an_error_is_found_by_words_from_it(text, entry):
    assert first_entry(text).startswith(entry)


@pytest.mark.parametrize(
    "text",
    [
        "ZeroDivisionError: division by zero",
        "TypeError: 'int' object is not callable",
        "KeyError: 'loss'",
        "NotImplementedError: Cannot copy out of meta tensor; no data!",
        'Traceback (most recent call last):\n  File "/x/train.py", line 3, in <module>\n    Net().forward(batch)\n'
        '  File "/x/net.py", line 9, in forward\n    raise NotImplementedError\nNotImplementedError',
    ],
)
def test_an_error_of_another_kind_is_not_forced_into_an_entry(text):
    assert errors.find_error(text).startswith("None of the errors of this lesson is like yours")


def test_packed_weights_that_are_quantized_again_are_told_of_both_entries():
    found = errors.find_error("ValueError: Blockwise 4bit quantization only supports 16/32-bit floats, but got torch.uint8")
    assert re.findall(r"^(\d+)\.", found, re.MULTILINE) == ["9", "14"]


MISTAKEN_FOR_A_MATRIX = {
    "quantized": ("9.", lambda packed: quantize_4bit(packed)),
    "a norm": ("17.", lambda packed: packed.norm()),
    "a decomposition": ("17.", lambda packed: torch.linalg.svd(packed)),
    "a mean": ("17.", lambda packed: packed.mean()),
    "merged": ("17.", lambda packed: packed + torch.ones(128, 128)),
    "times the input": ("17.", lambda packed: packed @ torch.ones(1, 128)),
    "with a bias": ("17.", lambda packed: torch.nn.functional.linear(torch.ones(1, 1), packed, torch.ones(8192))),
    "with a packed bias": ("17.", lambda packed: torch.nn.functional.linear(torch.ones(1, 1), packed, packed.flatten())),
    "a bias of another dtype": ("1.", lambda _: torch.addmm(torch.ones(1, 3), torch.ones(1, 4), torch.ones(4, 3, dtype=torch.float16))),
}


def test_the_wordings_met_later_are_raised_and_found():
    packed, _ = quantize_4bit(torch.ones(128, 128))
    met = []
    for label, (entry, mistake) in MISTAKEN_FOR_A_MATRIX.items():
        with pytest.raises((RuntimeError, ValueError)) as caught:
            mistake(packed)
        met.append(f"{caught.type.__name__}: {caught.value}")
        assert first_entry(met[-1]).startswith(entry), label
    later = [text for program, texts in errors.MET_LATER.items() if program != "gated" for text in texts]
    assert all(any(errors.words(text) <= errors.words(raised) for raised in met) for text in later)


def test_a_misspelled_name_is_found_under_gated(tmp_path):
    program = "from transformers import AutoConfig; AutoConfig.from_pretrained('town/abakus')"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    with FakeHub({}) as hub:
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
        done = subprocess.run([sys.executable, "-c", program], env=kept | own, capture_output=True, encoding="utf-8", timeout=120)
    raised = done.stderr[done.stderr.index("OSError: town") :]
    assert "is not a valid model identifier" in raised and any(status == 401 for _, _, status in hub.requests)
    for text in (raised, raised.splitlines()[0], done.stderr):
        assert first_entry(text).startswith("15.")


def test_a_model_from_a_4bit_file_saved_again_is_found_by_its_traceback(tmp_path):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True)
    AutoModelForCausalLM.from_pretrained(models.ABACUS, quantization_config=config).save_pretrained(tmp_path / "once")
    for dequantized in (False, True):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "once")
        if dequantized:
            model.dequantize()
        with pytest.raises(NotImplementedError) as caught:
            model.save_pretrained(tmp_path / "refused")
        whole = "".join(traceback.format_exception(caught.value))
        assert first_entry(whole).startswith("23.")
        model.save_pretrained(tmp_path / str(dequantized), save_original_format=False)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / str(dequantized))
        assert type(again.model.layers[0].self_attn.q_proj).__name__ == ("Linear" if dequantized else "Linear4bit")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("quant_type must be 'nf4' or 'fp4', got 'Nf4'"), "ValueError: quant_type must be 'nf4' or 'fp4', got 'Nf4'"),
        (NotImplementedError(), "NotImplementedError"),
        (ValueError(), "ValueError"),
    ],
    ids=repr,
)
def test_an_exception_is_found_as_its_text_is(error, text):
    assert errors.find_error(error) == errors.find_error(text)


@pytest.mark.parametrize("text", ["ValueError", "RuntimeError: ", "OSError\n"])
def test_a_type_alone_is_too_little(text):
    assert "Put more of it between the quotes" in errors.find_error(text)


def test_an_error_of_a_gpu_names_no_releases():
    assert "(needs a GPU)" in errors.find_error("CUDA out of memory. Tried to allocate 172.00 MiB")
    assert {error.id for error in errors.known_errors() if error.needs_gpu} == {"out_of_memory_on_a_gpu", "fragmentation"}


def test_without_a_text_it_asks_for_one():
    assert errors.find_error(" \n").startswith("Put the text of your error between the quotes")


def test_spans_of_releases_hold_all_that_were_tried_between_their_ends():
    assert errors.ranges(["transformers-4.29", "transformers-4.30", "transformers-4.37", errors.OWN]) == ["4.29 to 4.30", "4.37", "5.23"]
    assert errors.ranges([]) == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("one two three", "one two ..."),
        ("one two", "one two"),
        ("one\ntwo", "one two"),
        ("threethree", "threeth ..."),
        ("three four", "three ..."),
    ],
)
def test_a_text_is_cut_between_words_or_inside_one_that_is_too_long(text, shown):
    assert errors.first_words(text, 7) == shown


# --- the numbers of the questions ---


def test_the_layer_that_is_read_out_of_an_error_is_one_of_llama_2_7b():
    """Its MLP: 11,008 outputs, 4,096 inputs."""
    assert lesson_11.READ_THE_SHAPES.answer == 11_008


@pytest.mark.parametrize("seed", range(10))
def test_the_solution_that_sorts_tracebacks_finds_the_entries_they_were_made_of(seed):
    for (text,) in lesson_11.ENTRY_OF.inputs(seed):
        assert lesson_11.entry_of(text) == lesson_11.ENTRY_OF.answer(text)


def test_the_parts_of_the_memory_are_those_of_the_lesson():
    from course_utils import models

    model = models.architecture("Llama-2-7b")
    layers = [layer.weight.numel() for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear) and name != "lm_head"]
    parts = (model_bytes_in_4bit(model), 2 * max(layers), kv_cache_bytes(model.config, 2048), 3 * 2048 * model.config.intermediate_size * 2)
    assert [round(part / 1e9, 2) for part in parts] == [4.17, 0.09, 1.07, 0.14]
    assert (lesson_11._WEIGHTS, lesson_11._LARGEST, lesson_11._CACHE, lesson_11._PASSING) == (4.17, 0.09, 1.07, 0.14)
