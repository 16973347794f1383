"""The questions of lesson 10, failures without a sound. They are cases: something that somebody has loaded, saved or counted."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

from course_utils.questions.kinds import ExplanationQuestion, FunctionQuestion, Mistake, NumberQuestion

# --- 10.1 ------------------------------------------------------------------------------------------------------------------------

_REPORTED, _OTHERS = 3_500_412_928, 262_410_240

HALF_A_MODEL = NumberQuestion(
    id="10.1",
    title="Half a model",
    points=1,
    difficulty=2,
    minutes=4,
    name="weights",
    answer=2 * (_REPORTED - _OTHERS) + _OTHERS,
    within=0.5,
    hints=(
        "Which of the numbers that sum(p.numel()) counts are weights, and which hold two codes each?",
        "3,500,412,928 - 262,410,240 numbers are bytes of two codes. The other 262,410,240 are weights already.",
    ),
    solution="weights = 2 * (3_500_412_928 - 262_410_240) + 262_410_240  # a byte holds two codes",
    mistakes=(
        Mistake("as reported", _REPORTED, "that is what was counted: a byte of packed codes was counted as one weight, and holds two."),
        Mistake("all doubled", 2 * _REPORTED, "you have doubled everything: embedding, head and norms are not packed, so count them once."),
        Mistake("packed only", 2 * (_REPORTED - _OTHERS), "that is what is in 4 bits: embedding, head and norms are missing."),
        Mistake("bytes only", _REPORTED - _OTHERS, "that is the number of bytes of packed codes: each holds two weights."),
        Mistake("all of it eight times", 8 * _REPORTED, "you have counted bits: a byte of packed codes holds two weights."),
    ),
)

# --- 10.2 ------------------------------------------------------------------------------------------------------------------------


def judged(header):
    """From the name of each layer to "fresh", "rounded", "wrong" or "unknown", by the form of its scales."""
    words = {}
    for name, (dtype, shape) in header.items():
        if not name.endswith(".weight.absmax"):
            continue
        if dtype == "U8":  # double quantization, put back in order if it was repacked
            word = "unknown"
        elif len(shape) == 1:
            word = "fresh"
        else:
            word = "rounded" if min(shape) == 1 else "wrong"  # one block in a row: nothing to put in another order
        words[name.removesuffix(".weight.absmax")] = word
    return words


def _headers(seed: int) -> list[tuple[dict[str, list[Any]]]]:
    chosen = random.Random(seed)

    def layer(name: str, rows: int, columns: int, kind: str) -> dict[str, list[Any]]:
        blocks = rows * columns // 64
        scales = {"fresh": ["F32", [blocks]], "double": ["U8", [blocks]], "damaged": ["BF16", [columns // 64, rows]]}[kind]
        told = {f"{name}.weight": ["U8", [rows * columns // 2, 1]], f"{name}.weight.absmax": scales}
        if kind == "double":
            told |= {f"{name}.weight.nested_absmax": ["F32", [-(-blocks // 256)]], f"{name}.weight.nested_quant_map": ["F32", [256]]}
        return told | {f"{name}.weight.quant_map": ["F32", [16]]}

    def model(kinds: list[str]) -> tuple[dict[str, list[Any]]]:
        header: dict[str, list[Any]] = {"model.embed_tokens.weight": ["BF16", [96, 128]]}
        for number, kind in enumerate(kinds):
            name, columns = chosen.choice([("q_proj", 128), ("up_proj", 128), ("down_proj", 384), ("k_proj", 64)])
            header |= layer(f"model.layers.{number}.{name}", chosen.choice([64, 128]), columns, kind)
            header[f"model.layers.{number}.input_layernorm.weight"] = ["BF16", [128]]
        return (header,)

    by_hand = layer("up_proj", 128, 128, "damaged") | layer("down_proj", 128, 128, "fresh")
    by_hand |= layer("k_proj", 128, 64, "damaged") | layer("v_proj", 128, 128, "double")
    kinds = ["fresh", "damaged", "double", "damaged", "damaged", "fresh", "double"]
    chosen.shuffle(kinds)
    return [(by_hand,), model(["double", "fresh", "fresh"]), model(["double", "damaged", "fresh", "damaged"]), model(kinds)]


def _words(ending: str = ".weight.absmax", without: str = ".weight.absmax", **others: str) -> Callable[..., dict[str, str]]:
    """Judge tensors that end in ``ending``, and say another word instead of the right one."""

    def wrong(header: dict[str, list[Any]]) -> dict[str, str]:
        told = {}
        for name, scales in header.items():
            if name.endswith(ending):
                (word,) = judged({".weight.absmax": scales}).values()
                told[name.removesuffix(without)] = others.get(word, word)
        return told

    return wrong


JUDGED = FunctionQuestion(
    id="10.2",
    title="Is the file whole?",
    points=3,
    difficulty=3,
    minutes=10,
    name="judged",
    answer=judged,
    inputs=_headers,
    hints=(
        "Which tensor of a layer holds its scales? Three forms of it are possible: a row of F32, a row of U8, a matrix of BF16.",
        "A damaged matrix is in the order of the columns. When is that the order of the rows, too? And of the scales in bytes: which "
        "damage did the lesson say stays hidden?",
        'name.removesuffix(".weight.absmax") is the name of the layer. A matrix [1, rows] is only rounded.',
    ),
    mistakes=(
        Mistake(
            "every matrix",
            _words(rounded="wrong"),
            "you have called every matrix wrong: with one block in a row, the order by columns is that by rows, so it is only rounded.",
        ),
        Mistake(
            "no matrix",
            _words(wrong="rounded"),
            "you have called every matrix rounded: where a row has two blocks or more, their scales are in another order.",
        ),
        Mistake(
            "bytes are fresh",
            _words(unknown="fresh"),
            "you have called scales in bytes fresh: after a forward pass they may be rounded, and the form is the same.",
        ),
        Mistake(
            "bytes are wrong",
            _words(unknown="wrong"),
            "you have called scales in bytes wrong: this is double quantization, and a fresh save has that form, too.",
        ),
        Mistake(
            "names of tensors",
            _words(without=""),
            "the words are right, and the names are those of tensors: take .weight.absmax off, for the names of the layers.",
        ),
        Mistake(
            "all scales",
            _words(ending="absmax"),
            "you have judged .weight.nested_absmax, too: the form of .weight.absmax alone tells.",
        ),
        Mistake(
            "only the damaged",
            lambda header: {name: word for name, word in judged(header).items() if word in ("rounded", "wrong")},
            "some layers are missing: give a word for each layer in 4 bits, also for those that are fresh or unknown.",
        ),
    ),
)

# --- 10.3 ------------------------------------------------------------------------------------------------------------------------


def misread_layers(layers, block_size):
    """Layers whose columns are a multiple of 16 and not of the block size."""
    return [name for name, (rows, columns) in layers.items() if columns % 16 == 0 and columns % block_size != 0]


def _layers_and_blocks(seed: int) -> list[tuple[dict[str, list[int]], int]]:
    chosen = random.Random(seed)
    sizes = [48, 64, 96, 120, 128, 160, 200, 256, 320, 328, 352, 384, 1152, 4304]

    def drawn() -> dict[str, list[int]]:
        return {f"layers.{number}": [chosen.choice(sizes), chosen.choice(sizes)] for number in range(12)}

    by_hand = {"q_proj": [128, 128], "fc2": [1152, 4304], "fc1": [4304, 1152], "dt_proj": [1536, 48], "x_proj": [80, 1536]}
    by_hand |= {"odd": [64, 200], "v_proj": [128, 320]}
    return [(by_hand, 64), (by_hand, 128), (drawn(), 64), (drawn(), 128)]


def _by_shape(test: Callable[[int, int, int], bool]) -> Callable[..., list[str]]:
    return lambda layers, block_size: [name for name, (rows, columns) in layers.items() if test(rows, columns, block_size)]


MISREAD_LAYERS = FunctionQuestion(
    id="10.3",
    title="Rows and blocks",
    points=2,
    difficulty=3,
    minutes=8,
    name="misread_layers",
    answer=misread_layers,
    inputs=_layers_and_blocks,
    hints=(
        "A weight has the shape (rows, columns), and a row has as many weights as there are columns. Which of the two matters?",
        "In the record of the lesson 96, 336 and 352 columns were misread, and 320, 328 and 384 were not.",
        "Two conditions: a multiple of 16, and no multiple of the block size.",
    ),
    mistakes=(
        Mistake(
            "rows",
            _by_shape(lambda rows, columns, block: rows % 16 == 0 and rows % block != 0),
            "you have looked at the number of rows: what has to fit are the blocks within a row, so look at the columns.",
        ),
        Mistake(
            "not aligned",
            _by_shape(lambda rows, columns, block: columns % block != 0),
            "you have named columns that are no multiple of 16 too: for those the library takes a slower way, which is right.",
        ),
        Mistake(
            "multiples of 16",
            _by_shape(lambda rows, columns, block: columns % 16 == 0),
            "you have named every multiple of 16: where rows are whole blocks, the kernel counts right.",
        ),
        Mistake(
            "whole matrix",
            _by_shape(lambda rows, columns, block: columns % 16 == 0 and rows * columns % block != 0),
            "you have divided the whole matrix into blocks: the kernel counts them row by row.",
        ),
        Mistake(
            "always 64",
            _by_shape(lambda rows, columns, block: columns % 16 == 0 and columns % 64 != 0),
            "you have taken blocks of 64 always: use block_size.",
        ),
        Mistake(
            "the good ones",
            _by_shape(lambda rows, columns, block: columns % 16 != 0 or columns % block == 0),
            "these are the layers that are read back right: name the others.",
        ),
    ),
)

# --- 10.4 ------------------------------------------------------------------------------------------------------------------------


def swallowed(settings):
    """The names that BitsAndBytesConfig takes without knowing them."""
    import inspect

    from transformers import BitsAndBytesConfig

    known = inspect.signature(BitsAndBytesConfig).parameters
    return [name for name in settings if name not in known]


def _settings(seed: int) -> list[tuple[dict[str, Any]]]:
    chosen = random.Random(seed)
    right = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": chosen.choice(["nf4", "fp4"]),
        "bnb_4bit_compute_dtype": chosen.choice(["bfloat16", "float32"]),
        "bnb_4bit_use_double_quant": chosen.choice([True, False]),
        "llm_int8_skip_modules": ["lm_head"],
    }
    wrong = {
        "bnb_4bit_quant_typ": "nf4",
        "bnb_4bit_compute_type": "bfloat16",
        "bnb_4bit_use_doube_quant": True,
        "bnb_4bit_blocksize": 128,
        "quant_type": "nf4",
        "double_quant": True,
        "skip_modules": ["lm_head"],
    }

    def mixed(rights: int, wrongs: int) -> tuple[dict[str, Any]]:
        items = chosen.sample(list(right.items()), rights) + chosen.sample(list(wrong.items()), wrongs)
        chosen.shuffle(items)
        return (dict(items),)

    by_hand = ({"load_in_4bit": True, "bnb_4bit_quant_typ": "nf4", "bnb_4bit_use_double_quant": True},)
    defaults = ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False, "quant_type": "nf4"},)
    return [by_hand, defaults, (dict(right),), mixed(2, 2), mixed(4, 3), mixed(3, 7)]


def _not_in_diff(settings: dict[str, Any]) -> list[str]:
    from transformers import BitsAndBytesConfig

    return [name for name in settings if name not in BitsAndBytesConfig(**settings).to_diff_dict()]


SWALLOWED = FunctionQuestion(
    id="10.4",
    title="What was swallowed?",
    points=2,
    difficulty=3,
    minutes=8,
    name="swallowed",
    answer=swallowed,
    inputs=_settings,
    hints=(
        "Make the configuration, and ask which of the names it has. Or ask its signature.",
        "to_diff_dict() leaves out what is a default, even if you have set it. to_dict() holds everything.",
        "import inspect; then inspect.signature(BitsAndBytesConfig).parameters has the names that it knows.",
    ),
    mistakes=(
        Mistake(
            "defaults too",
            _not_in_diff,
            "you have named settings that were taken: to_diff_dict() leaves out what is a default, so fp4 or False is missing there.",
        ),
        Mistake(
            "by the beginning",
            lambda settings: [name for name in settings if not name.startswith(("bnb_4bit_", "load_in_", "llm_int8_"))],
            "you have gone by the beginning of the names: bnb_4bit_quant_typ begins well, and is unknown all the same.",
        ),
        Mistake(
            "those taken",
            lambda settings: [name for name in settings if name not in swallowed(settings)],
            "these are the names that were taken: return the others.",
        ),
        Mistake("the first", lambda settings: swallowed(settings)[:1], "you have stopped at the first one: return all of them."),
        Mistake(
            "sorted",
            lambda settings: sorted(swallowed(settings)),
            "the right names, sorted: return them in the order of the settings.",
        ),
    ),
)

# --- 10.5 ------------------------------------------------------------------------------------------------------------------------

_OFFLOADED = 8 * 202_375_168

OFFLOAD = NumberQuestion(
    id="10.5",
    title="A map with offload",
    points=2,
    difficulty=2,
    minutes=5,
    name="gigabytes",
    answer=_OFFLOADED * (16 - 4.5) / 8 / 10**9,
    within=0.006,
    hints=(
        "In which format are the linear layers that the map puts on the CPU? And what would they take in 4 bits, scales included?",
        "8 layers of 202,375,168 weights, at 16 bits instead of 4.5. A GB is 10**9 bytes.",
    ),
    solution="gigabytes = 8 * 202_375_168 * (16 - 4.5) / 8 / 10**9  # not quantized: 16 bits instead of 4.5",
    mistakes=(
        Mistake("no scales", _OFFLOADED * 12 / 8 / 10**9, "the scales are missing: in 4 bits a weight takes 4.5 bits, in blocks of 64."),
        Mistake("in all", _OFFLOADED * 2 / 10**9, "that is what these layers take in 16 bits: take off what they would take in 4.5."),
        Mistake("in 4 bits", _OFFLOADED * 4.5 / 8 / 10**9, "that is what they would take in 4 bits: with this map they are not quantized."),
        Mistake("all layers", 4 * _OFFLOADED * 11.5 / 8 / 10**9, "you have counted all 32 layers: 8 of them are on the CPU."),
        Mistake("one layer", 202_375_168 * 11.5 / 8 / 10**9, "that is one layer: 8 of them are on the CPU."),
        Mistake(
            "float32",
            _OFFLOADED * 27.5 / 8 / 10**9,
            "you have taken float32: the model was loaded in 16 bits, and what isn't quantized stays so.",
        ),
        Mistake("bits", _OFFLOADED * 11.5 / 10**9, "8 times too much: you have counted bits, and a byte has 8 of them."),
        Mistake("GiB", _OFFLOADED * 11.5 / 8 / 2**30, "that is GiB, of 2**30 bytes: a GB is 10**9 bytes."),
    ),
)

# --- 10.6 ------------------------------------------------------------------------------------------------------------------------


def load_as_meant(dtype):
    """abacus in nf4 with double quantization, computing in ``dtype``, with its head and every o_proj left in it: what the audit says."""
    import torch
    from transformers import BitsAndBytesConfig

    from course_utils import models
    from course_utils.clinic import audit_4bit

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
        llm_int8_skip_modules=["o_proj", "lm_head"],
    )
    model, tokenizer = models.load(models.ABACUS, quantization_config=config, dtype=getattr(torch, dtype))
    audit = audit_4bit(model)
    return [audit.summary, [finding.name for finding in audit.findings]]


def _dtypes(seed: int) -> list[tuple[str]]:
    """One call: it loads a model."""
    return [("bfloat16" if seed % 2 == 0 else "float16",)]


@cache
def _loaded(dtype: str, rest: str = "", **settings: Any) -> list[Any]:
    import torch
    from transformers import BitsAndBytesConfig

    from course_utils import models
    from course_utils.clinic import audit_4bit

    given = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": dtype,
        "llm_int8_skip_modules": ("o_proj", "lm_head"),
    } | settings
    skip = given.pop("llm_int8_skip_modules")
    config = BitsAndBytesConfig(**given, llm_int8_skip_modules=None if skip is None else list(skip))
    model, _ = models.load(models.ABACUS, quantization_config=config, dtype=getattr(torch, rest or dtype))
    audit = audit_4bit(model)
    return [audit.summary, [finding.name for finding in audit.findings]]


def _left(**settings: Any) -> Callable[[str], list[Any]]:
    return lambda dtype: _loaded(dtype, **settings)


LOAD_AS_MEANT = FunctionQuestion(
    id="10.6",
    title="Four faults in one load",
    points=4,
    difficulty=4,
    minutes=14,
    name="load_as_meant",
    answer=load_as_meant,
    inputs=_dtypes,
    hints=(
        "Load it as it is, and print(audit_4bit(model)). Then again with like=, and the configuration that was meant.",
        "One argument is missing that sets the format of the products, one is not said at all, one is misspelled, and one replaces a list.",
        "getattr(torch, dtype) is the dtype. It is needed twice: for the products, and for what isn't quantized.",
    ),
    mistakes=(
        Mistake("fp4", _left(bnb_4bit_quant_type="fp4"), "the layers are still in fp4: how is bnb_4bit_quant_type spelled?"),
        Mistake(
            "float32 compute",
            _left(bnb_4bit_compute_dtype="float32"),
            "the layers still multiply in float32: set bnb_4bit_compute_dtype.",
        ),
        Mistake(
            "head",
            _left(llm_int8_skip_modules=("o_proj",)),
            "the head is still in 4 bits: the list replaces the default list, so the head has to stand on it too.",
        ),
        Mistake(
            "no list",
            _left(llm_int8_skip_modules=None),
            "o_proj is in 4 bits now: it was to stay as it is, and the head, too.",
        ),
        Mistake(
            "load_in_4bit",
            _left(load_in_4bit=False),
            "the configuration still doesn't say load_in_4bit=True, so what is saved could not be loaded.",
        ),
        Mistake(
            "double quantization",
            _left(bnb_4bit_use_double_quant=False),
            "double quantization is gone: it was set, and meant.",
        ),
        Mistake(
            "float32 model",
            _left(rest="float32"),
            "what isn't quantized is in float32: pass dtype to from_pretrained, or to models.load, as well.",
        ),
    ),
)

# --- 10.7 ------------------------------------------------------------------------------------------------------------------------


def scale_taken(block, rows, blocks_in_row):
    """The number of the block whose scale ``block`` gets, where the scales stand column by column."""
    column, row = divmod(block, rows)
    return row * blocks_in_row + column


def _blocks(seed: int) -> list[tuple[int, int, int]]:
    chosen = random.Random(seed)

    def drawn(rows: int, blocks_in_row: int) -> tuple[int, int, int]:
        return chosen.randrange(rows + 1, rows * blocks_in_row - 1), rows, blocks_in_row

    return [(1, 32, 2), (2, 32, 2), (33, 32, 2), (0, 64, 3), (63, 32, 2), drawn(128, 6), drawn(64, 3), drawn(32, 2)]


SCALE_TAKEN = FunctionQuestion(
    id="10.7",
    title="Whose scale?",
    points=2,
    difficulty=3,
    minutes=8,
    name="scale_taken",
    answer=scale_taken,
    inputs=_blocks,
    hints=(
        "In the damaged file come the scales of all first blocks of a row, then those of all second blocks. How many are there of each?",
        "Place number `block` in the file is column block // rows, row block % rows. Which number has that block, counted row by row?",
        "Row r begins with block r * blocks_in_row.",
    ),
    mistakes=(
        Mistake("its own", lambda block, rows, blocks_in_row: block, "that is the block itself: most get the scale of another."),
        Mistake(
            "the way round",
            lambda block, rows, blocks_in_row: block % blocks_in_row * rows + block // blocks_in_row,
            "that is the other way round: the block that gets this one's scale. Asked is whose scale this one gets.",
        ),
        Mistake(
            "first column",
            lambda block, rows, blocks_in_row: block % rows * blocks_in_row,
            "right for the first column alone: after as many places as there are rows, the second blocks of the rows begin.",
        ),
        Mistake(
            "too far",
            lambda block, rows, blocks_in_row: block * blocks_in_row,
            "beyond as many places as there are rows this runs past the last block: there the second column begins, at row 0.",
        ),
        Mistake(
            "from one",
            lambda block, rows, blocks_in_row: scale_taken(block, rows, blocks_in_row) + 1,
            "one too many: blocks are counted from 0.",
        ),
    ),
)

# --- 10.8 ------------------------------------------------------------------------------------------------------------------------

NO_FINDINGS = ExplanationQuestion(
    id="10.8",
    title="No findings",
    points=4,
    difficulty=3,
    minutes=10,
    name="what_it_can_not_see",
    hints=(
        "Which failures of the lesson leave no trace in the model? What does `like` change about that?",
        "Think of a misspelled argument, of a model that was saved and loaded again, and of scales rounded to bfloat16.",
    ),
    model_answer=(
        "The audit reads formats, shapes and names. A right answer to 2+2 says little: models with failures of the lesson gave it, too.\n"
        "A misspelled argument gives the defaults, fp4 and float32 and no double quantization, and these are legitimate. A note says\n"
        "so where all are defaults; that others were meant, only like= can tell. A dequantized model, saved and loaded again, is an\n"
        "ordinary model in 16 bits: again only like= finds it. And a float32 model with double quantization that was saved after a\n"
        "forward pass has scales rounded to bfloat16 in a form that is that of a fresh one; the price is small, 0.3 % of the logits.\n"
        "So I would pass the configuration that I meant, or the unquantized model, look at the footprint and at the notes (a repacked\n"
        "model must not be saved), and measure answers on more than one question."
    ),
    rubric=(
        (1, "A case with the reason why no finding comes: settings misspelled or forgotten; a dequantized model saved and loaded again."),
        (1, "A second one of these, or scales rounded under double quantization; columns misread on another CPU; a repacked model."),
        (1, "A check that finds one of them: like= with what was meant, to_diff_dict() before loading, the footprint, or the notes."),
        (1, "Why the right answer to 2+2 proves little, and what to measure instead: more questions, or logits."),
    ),
)

QUESTIONS = (
    HALF_A_MODEL,
    JUDGED,
    MISREAD_LAYERS,
    SWALLOWED,
    OFFLOAD,
    LOAD_AS_MEANT,
    SCALE_TAKEN,
    NO_FINDINGS,
)
