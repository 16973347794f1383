"""The questions of lesson 11: errors as cases. What counts is what the cured program does, not how it is spelled."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from course_utils.questions.kinds import ExplanationQuestion, FunctionQuestion, Mistake, NumberQuestion

if TYPE_CHECKING:
    import torch

# --- 11.1 ------------------------------------------------------------------------------------------------------------------------

_PACKED, _INPUTS = 22_544_384, 4_096

READ_THE_SHAPES = NumberQuestion(
    id="11.1",
    title="Read a layer out of an error",
    points=2,
    difficulty=3,
    minutes=6,
    name="outputs",
    answer=2 * _PACKED / _INPUTS,
    within=1e-6,
    hints=(
        "The first pair, 3x4096, is what went in: 3 tokens of 4,096 numbers each. The second pair is the packed weight.",
        "Which of the four numbers is a count of packed bytes? Entry 17 says how many weights a byte holds.",
        "The input has 4,096 numbers, so each output has 4,096 weights.",
    ),
    solution="outputs = 2 * 22_544_384 // 4_096  # two weights in a byte, 4,096 weights for each output",
    mistakes=(
        Mistake("a weight in a byte", _PACKED / _INPUTS, "you have counted one weight in each byte: a packed byte holds two."),
        Mistake(
            "half a byte twice", _PACKED / 2 / _INPUTS, "a byte holds two weights: there are twice as many weights as bytes, not half."
        ),
        Mistake("bytes", _PACKED, "that is the number of packed bytes: two weights in each, and 4,096 weights for each output."),
        Mistake("weights", 2 * _PACKED, "that is the number of weights: each output has 4,096 of them."),
        Mistake("inputs", _INPUTS, "that is the number of inputs, the second number of the first pair."),
        Mistake("questions", 3, "the 3 is the number of tokens that went in."),
    ),
)

# --- 11.2 ------------------------------------------------------------------------------------------------------------------------


def smooth(signal, filters, bias):
    """The convolution of a signal with filters and a bias, in the filters' dtype, whatever the others' are."""
    import torch

    return torch.nn.functional.conv1d(signal.to(filters.dtype), filters, bias.to(filters.dtype))


def _signals(seed: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    import torch

    generator = torch.Generator().manual_seed(seed)

    def whole(*shape: int) -> torch.Tensor:
        """Small whole numbers, whose sums of products are exact in every dtype."""
        return torch.randint(-3, 4, shape, generator=generator).double()

    ones = (torch.ones(1, 4, 8).double(), torch.ones(1, 4, 3).half(), torch.ones(1).half())
    dtypes = [
        (torch.float64, torch.float16, torch.float16),
        (torch.float64, torch.bfloat16, torch.float32),
        (torch.float16, torch.float32, torch.float64),
        (torch.float32, torch.float32, torch.float32),
    ]
    biases = torch.tensor([1.0, -2.0, 3.0])
    return [ones] + [(whole(2, 4, 8).to(one), whole(3, 4, 3).to(two), biases.to(three)) for one, two, three in dtypes]


def _smooth_in(dtype: Callable[[Any], Any]) -> Callable[..., Any]:
    def wrong(signal, filters, bias):
        import torch

        chosen = dtype(signal)
        return torch.nn.functional.conv1d(signal.to(chosen), filters.to(chosen), bias.to(chosen))

    return wrong


def _without_bias(signal, filters, bias):
    import torch

    return torch.nn.functional.conv1d(signal.to(filters.dtype), filters)


SMOOTH = FunctionQuestion(
    id="11.2",
    title="Cure the convolution",
    points=2,
    difficulty=2,
    minutes=6,
    name="smooth",
    answer=smooth,
    inputs=_signals,
    tolerance=1e-6,
    hints=(
        "Entry 1, in other words: dtypes met that differ. Three tensors go in. Whose dtype shall the result have? Bring the others to it.",
        "`tensor.to(other.dtype)` gives a tensor the dtype of another, whatever that is. The bias needs it as the signal does.",
    ),
    mistakes=(
        Mistake(
            "to the signal",
            _smooth_in(lambda signal: signal.dtype),
            "no error any more, but the result has the dtype of the signal: that of the filters is due.",
        ),
        Mistake(
            "always half",
            _smooth_in(lambda signal: signal.half().dtype),
            "you bring all to float16 always: the filters may have another dtype, and the result is to have that one.",
        ),
        Mistake(
            "always double",
            _smooth_in(lambda signal: signal.double().dtype),
            "no error any more, but the result is float64 always: that of the filters is due.",
        ),
        Mistake(
            "always float32",
            _smooth_in(lambda signal: signal.float().dtype),
            "no error any more, but the result is float32 always: that of the filters is due.",
        ),
        Mistake("bias left out", _without_bias, "the dtype is right, but the bias is missing: it is added to each output."),
    ),
)

# --- 11.3 ------------------------------------------------------------------------------------------------------------------------


def entry_of(text):
    """The number of the entry of lesson 11 that a traceback belongs to."""
    from course_utils.errors import find_error

    first_row = find_error(text).splitlines()[2]
    return int(first_row.split(".")[0])


_OWN_LINE = "    main()\n"
"""The last line of the way to each error."""


def _errors_met() -> list[Any]:
    from course_utils.errors import known_errors

    return [error for error in known_errors() if error.raised and len(error.text) > 40]


def _without_numbers(text: str) -> str:
    return re.sub(r"\d+", "#", text)


@wraps(entry_of)  # whose source is shown as the solution
def _entry_it_came_from(text):
    """The entry of the error that a traceback was made of: the search isn't asked, so that it is judged too."""
    message = _without_numbers(text.split(_OWN_LINE, 1)[1])
    return next(int(error.entry.split(".")[0]) for error in _errors_met() if _without_numbers(error.text) == message)


def _tracebacks(seed: int) -> list[tuple[str]]:
    """Errors of the lesson as other people met them: with the way to them, other sizes and other folders."""
    pick = random.Random(seed)
    tracebacks = []
    for error in pick.sample(_errors_met(), 4):
        text = re.sub(r"\b\d{2,}\b", lambda _: str(pick.randrange(10, 9999)), error.text)
        way = f'  File "/home/ada/experiments/run_{pick.randrange(9)}.py", line {pick.randrange(10, 99)}, in <module>\n'
        tracebacks.append((f"Traceback (most recent call last):\n{way}{_OWN_LINE}{text}",))
    return tracebacks


def _entry_with(change: Callable[[int, str], Any]) -> Callable[[str], Any]:
    return lambda text: change(entry_of(text), text)


ENTRY_OF = FunctionQuestion(
    id="11.3",
    title="Sort tracebacks",
    points=2,
    difficulty=2,
    minutes=8,
    name="entry_of",
    answer=_entry_it_came_from,
    inputs=_tracebacks,
    hints=(
        "`find_error(text)` takes a whole traceback and gives a table as text. Print it and look at its lines.",
        "The first two lines are heading and ruler. The third begins with the number, up to a dot.",
        "`line.split('.')[0]` is text: `int(...)` makes a number of it.",
    ),
    mistakes=(
        Mistake(
            "text", _entry_with(lambda number, text: str(number)), "the entry is right, but as text: make a number of it with `int(...)`."
        ),
        Mistake("list", _entry_with(lambda number, text: [number]), "you return a list: return the number of the likeliest entry."),
        Mistake(
            "line of the file",
            lambda text: int(re.search(r"line (\d+)", text)[1]),
            "that is the number of a line in somebody's program: the entry's number comes from `find_error`.",
        ),
        Mistake(
            "counted from 0", _entry_with(lambda number, text: number - 1), "one too small: entries count from 1, as their headings say."
        ),
    ),
)

# --- 11.4 ------------------------------------------------------------------------------------------------------------------------


def store(weight):
    """The packed nf4 bytes of a weight, which may be float64."""
    from bitsandbytes.functional import quantize_4bit

    packed, _ = quantize_4bit(weight.float(), quant_type="nf4")
    return packed


def _weights(seed: int) -> list[tuple[torch.Tensor]]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(128, 256, generator=generator, dtype=torch.float64)
    return [(torch.linspace(-1, 1, 64, dtype=torch.float64).view(1, 64),), (drawn,), (drawn.float(),)]


def _store_by(prepare: Callable[[Any], Any], quant_type: str = "nf4", block_size: int = 64) -> Callable[[Any], Any]:
    def wrong(weight):
        from bitsandbytes.functional import quantize_4bit

        return quantize_4bit(prepare(weight), quant_type=quant_type, blocksize=block_size)[0]

    return wrong


def _read_back(weight):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    return dequantize_4bit(*quantize_4bit(weight.float(), quant_type="nf4"))


STORE = FunctionQuestion(
    id="11.4",
    title="Cure one error, meet the next",
    points=3,
    difficulty=3,
    minutes=8,
    name="store",
    answer=store,
    inputs=_weights,
    hints=(
        "Run it, read the last line, cure that, and run it again: there are two errors, entries 8 and 9.",
        "The name of the format has small letters.",
        "Weights may be float64: bring them to float32, where nothing is lost that 4 bits would show.",
    ),
    mistakes=(
        Mistake(
            "fp4",
            _store_by(lambda weight: weight.float(), quant_type="fp4"),
            "no error any more, but these are fp4's codes: without `quant_type` quantize_4bit takes fp4, and nf4 was meant.",
        ),
        Mistake(
            "float16",
            _store_by(lambda weight: weight.half()),
            "nearly: some codes differ, since float16 has rounded the weights before they were quantized. Bring them to float32.",
        ),
        Mistake(
            "bfloat16",
            _store_by(lambda weight: weight.bfloat16()),
            "nearly: many codes differ, since bfloat16 has rounded the weights before they were quantized. Bring them to float32.",
        ),
        Mistake("read back", _read_back, "these are the weights read back: return the packed bytes."),
    ),
)

# --- 11.5 ------------------------------------------------------------------------------------------------------------------------

_WEIGHTS, _LARGEST, _CACHE, _PASSING = 4.17, 0.09, 1.07, 0.14

LARGEST_BATCH = NumberQuestion(
    id="11.5",
    title="Ask as much as fits",
    points=2,
    difficulty=3,
    minutes=6,
    name="questions",
    answer=6,
    within=1e-9,
    hints=(
        "Two parts are there once, the weights and the one that is read back; two come with every question.",
        "12 GB less 4.17 GB and 0.09 GB are left for questions of 1.07 GB + 0.14 GB each. Only whole questions count.",
    ),
    solution="questions = (12 - 4.17 - 0.09) // (1.07 + 0.14)",
    mistakes=(
        Mistake("activations left out", 7, "you have counted the cache alone: each question needs 0.14 GB of activations too."),
        Mistake("weights left out", 9, "the weights are missing: 4.17 GB are gone before the first question."),
        Mistake("weights for each", 2, "you have counted the weights for every question: they are there once."),
        Mistake("only weights", 1, "the weights serve all questions at once: look at what one more question adds."),
        Mistake("not whole", (12 - _WEIGHTS - _LARGEST) / (_CACHE + _PASSING), "the sum is right; only whole questions fit: round down."),
        Mistake("cache left out", 55, "the cache is missing: each question needs 1.07 GB of it."),
    ),
)

# --- 11.6 ------------------------------------------------------------------------------------------------------------------------


def lost_its_config(config, names):
    """Whether a checkpoint holds 4-bit weights of bitsandbytes and its config doesn't say so."""
    packed = any(".quant_state.bitsandbytes__" in name for name in names)
    return packed and not config.get("quantization_config", {}).get("load_in_4bit")


def _settings(in_4bit: bool, in_8bit: bool) -> dict[str, Any]:
    """What transformers writes of the two switches into config.json."""
    switches = {"load_in_4bit": in_4bit, "load_in_8bit": in_8bit}
    return {"quant_method": "bitsandbytes", **switches, **{f"_{name}": value for name, value in switches.items()}}


def _checkpoints(seed: int) -> list[tuple[dict[str, Any], list[str]]]:
    pick = random.Random(seed)
    layer = f"model.layers.{pick.randrange(40)}.mlp.down_proj.weight"
    plain = {"model_type": "llama", "hidden_size": 64 * pick.randrange(1, 9)}
    quantized = {**plain, "quantization_config": _settings(True, False)}
    unsaid = {**plain, "quantization_config": _settings(False, False)}
    in_8bit = {**plain, "quantization_config": _settings(False, True)}
    nf4 = [layer, f"{layer}.absmax", f"{layer}.quant_map", f"{layer}.quant_state.bitsandbytes__nf4", "model.norm.weight"]
    nested = [layer, f"{layer}.absmax", f"{layer}.nested_absmax", f"{layer}.nested_quant_map", f"{layer}.quant_state.bitsandbytes__fp4"]
    int8 = [layer, layer.replace(".weight", ".SCB"), "model.norm.weight"]
    floats = [layer, "model.norm.weight", "absmax_head.weight", "quant_map_head.weight"]
    return [
        *((plain, nf4), (quantized, nf4), (plain, floats), (plain, nested), (quantized, nested), (in_8bit, int8), (plain, int8)),
        *((unsaid, nf4), (unsaid, nested)),
    ]


LOST_ITS_CONFIG = FunctionQuestion(
    id="11.6",
    title="Find the checkpoint that forgot",
    points=3,
    difficulty=3,
    minutes=8,
    name="lost_its_config",
    answer=lost_its_config,
    inputs=_checkpoints,
    hints=(
        "Two things have to be seen together: what the file holds, and what the config says. Entry 14.",
        "A 4-bit weight comes with a tensor whose name goes on with .quant_state.bitsandbytes__nf4, or __fp4.",
        'The config says so if `config["quantization_config"]` is there and its "load_in_4bit" is true. `dict.get` takes a missing key.',
    ),
    mistakes=(
        Mistake(
            "config only",
            lambda config, names: "quantization_config" not in config,
            "you look at the config alone: a model in 16 bits has no quantization_config either, and is well.",
        ),
        Mistake(
            "switch only",
            lambda config, names: not config.get("quantization_config", {}).get("load_in_4bit"),
            "you look at the config alone: a model in 16 or 8 bits doesn't say load_in_4bit either, and is well.",
        ),
        Mistake(
            "part is there",
            lambda config, names: any(".quant_state." in name for name in names) and "quantization_config" not in config,
            'you ask only whether quantization_config is there: it may be, and say "load_in_4bit": false.',
        ),
        Mistake(
            "names only",
            lambda config, names: any(".quant_state." in name for name in names),
            "you look at the names alone: a 4-bit checkpoint whose config says so is well.",
        ),
        Mistake(
            "nf4 only",
            lambda config, names: any("__nf4" in name for name in names) and lost_its_config(config, names),
            "you look for nf4 alone: fp4 loses its config in the same way.",
        ),
        Mistake(
            "absmax anywhere",
            lambda config, names: any("absmax" in name for name in names) and not config.get("quantization_config", {}).get("load_in_4bit"),
            "you take a plain weight called absmax_head for scales: look for .quant_state.bitsandbytes__ in the names.",
        ),
        Mistake(
            "turned round",
            lambda config, names: not lost_its_config(config, names),
            "the other way round: True is due for the checkpoint that has lost its config.",
        ),
    ),
)

# --- 11.7 ------------------------------------------------------------------------------------------------------------------------

NOT_THE_CAUSE = ExplanationQuestion(
    id="11.7",
    title="Answer a colleague",
    points=4,
    difficulty=3,
    minutes=10,
    name="to_the_colleague",
    hints=(
        "Compare the two numbers. Is bitsandbytes missing, or is it something else that the text complains of?",
        "If the number were right: is the Python of the terminal that of the notebook? Entry 11 says how to ask the process that fails.",
        "What does a notebook see that was running while pip installed?",
    ),
    model_answer=(
        "bitsandbytes is there, but 0.45.5 is older than 0.46.1: the text comes for a version that is too old as well as for none. Ask\n"
        "importlib.metadata.version('bitsandbytes') and sys.executable in the notebook that fails. If the notebook too says 0.45.5, run\n"
        '%pip install -U "bitsandbytes>=0.46.1" in a cell, with the quotes, or the shell takes > for a redirection. If the notebook says\n'
        "another number, or that the package is missing, the terminal's pip belongs to another Python, and the same line in a cell\n"
        "installs into the right one. If it says 0.46.1 or newer and the error stays, the process was running while you installed:\n"
        "restart Python (Kernel > Restart Kernel), which is due after each installation."
    ),
    rubric=(
        (1, "version: says that 0.45.5 is older than 0.46.1, so that the text is right although bitsandbytes is installed"),
        (1, "other Python: says that pip list may speak of another one, and asks in the process that fails: version(), sys.executable"),
        (1, "running process: says that what is there is looked up once, and that Python has to be restarted"),
        (1, "tells the cases apart by what the process says, and cures by %pip install with the requirement in quotes"),
    ),
)

QUESTIONS = (READ_THE_SHAPES, SMOOTH, ENTRY_OF, STORE, LARGEST_BATCH, LOST_ITS_CONFIG, NOT_THE_CAUSE)
