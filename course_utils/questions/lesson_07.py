"""The questions of lesson 07, load in four bits."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from course_utils.questions.kinds import ExplanationQuestion, FunctionQuestion, Mistake, NumberQuestion

# --- 07.1 ------------------------------------------------------------------------------------------------------------------------

NOT_REPORTED = NumberQuestion(
    id="07.1",
    title="Find what isn't reported",
    points=1,
    difficulty=2,
    minutes=6,
    name="not_reported",
    answer=267_332,
    within=0.5,
    hints=(
        "get_memory_footprint() sees the packed codes. Everything that hangs on quant_state is missing: list it as the lesson does.",
        "There are 4096 * 4096 / 64 scales, each an 8-bit code, and one float32 for every 256 of them. Then the offset, and two codebooks.",
        "The codebooks are copies of 16 and of 256 float32 numbers. The offset is one float32.",
    ),
    solution=(
        "scales = 4096 * 4096 // 64\n"
        "not_reported = scales + scales // 256 * 4 + 4 + (16 + 256) * 4  # codes of the scales, their scales, offset, two codebooks"
    ),
    mistakes=(
        Mistake("codebooks left out", 266_244, "the codebooks are missing: this weight keeps a copy of each, 16 and 256 numbers."),
        Mistake("one codebook", 266_308, "one codebook is missing: the codes of the scales have one too, of 256 numbers."),
        Mistake("offset left out", 267_328, "the offset is missing, one float32."),
        Mistake("scales of scales left out", 263_236, "the scales of the scales are missing: one float32 for every 256 of them."),
        Mistake("plain", 1_048_640, "this is the weight without double quantization: with it a scale is an 8-bit code."),
        Mistake("everything", 8_655_940, "this is all that the weight takes: leave out the packed codes, which are reported."),
        Mistake("reported", 8_388_608, "this is the part that is reported, the packed codes: the rest is asked for."),
        Mistake("bits", 8 * 267_332, "8 times too much: bytes, not bits."),
    ),
)

# --- 07.2 ------------------------------------------------------------------------------------------------------------------------


def settings_used(given):
    """Codebook, compute dtype, double quantization and storage that BitsAndBytesConfig(**given) stands for."""
    compute_dtype = given.get("bnb_4bit_compute_dtype")
    storage = given.get("bnb_4bit_quant_storage")
    return [
        given.get("bnb_4bit_quant_type", "fp4"),
        "float32" if compute_dtype is None else compute_dtype,
        given.get("bnb_4bit_use_double_quant", False),
        "uint8" if storage is None else storage,
    ]


def _given_settings(seed: int) -> list[tuple[dict[str, Any]]]:
    pick = random.Random(seed)
    full = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": pick.choice(["bfloat16", "float16"]),
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_quant_storage": pick.choice(["bfloat16", "float16", "float32"]),
    }
    some = {name: full[name] for name in pick.sample(sorted(full), 3)}
    return [
        ({"load_in_4bit": True},),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"},),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": None, "bnb_4bit_quant_storage": None},),
        ({"load_in_4bit": True, "bnb_4bit_use_doube_quant": True, "bnb_4bit_compute_type": "bfloat16"},),  # two misspelled names
        (full,),
        (some,),
        ({"bnb_4bit_use_double_quant": True},),
    ]


def _with_settings(change: Callable[[list[Any], dict[str, Any]], list[Any]]) -> Callable[..., list[Any]]:
    """``settings_used`` with something changed in its result."""
    return lambda given: change(settings_used(given), given)


def _default(place: int, name: str, value: Any) -> Callable[..., list[Any]]:
    """``settings_used`` with another value where ``name`` is not given."""

    def change(used: list[Any], given: dict[str, Any]) -> list[Any]:
        if given.get(name) is None:
            used[place] = value
        return used

    return _with_settings(change)


def _near_names_count(used: list[Any], given: dict[str, Any]) -> list[Any]:
    for name, value in given.items():
        if "doub" in name:
            used[2] = value
        if "compute" in name and value is not None:
            used[1] = value
    return used


SETTINGS_USED = FunctionQuestion(
    id="07.2",
    title="Fill in what nobody set",
    points=2,
    difficulty=2,
    minutes=8,
    name="settings_used",
    answer=settings_used,
    inputs=_given_settings,
    hints=(
        "given.get(name, default) gives the default where the name is missing. The lesson saw the four defaults in a loaded layer.",
        "fp4, float32, False, uint8. For the two dtypes None means the default too, and a name that isn't one of the four plays no part.",
    ),
    mistakes=(
        Mistake(
            "nf4 by default",
            _default(0, "bnb_4bit_quant_type", "nf4"),
            "where no codebook is given you say nf4: the default is the other one.",
        ),
        Mistake(
            "bfloat16 by default",
            _default(1, "bnb_4bit_compute_dtype", "bfloat16"),
            "where no compute dtype is given you say bfloat16: look at what the layer multiplies in when nothing is set.",
        ),
        Mistake(
            "float16 by default",
            _default(1, "bnb_4bit_compute_dtype", "float16"),
            "where no compute dtype is given you say float16: look at what the layer multiplies in when nothing is set.",
        ),
        Mistake(
            "double quantization by default",
            _default(2, "bnb_4bit_use_double_quant", True),
            "where double quantization isn't given you say True: the scales stay float32 unless it is asked for.",
        ),
        Mistake(
            "near names",
            _with_settings(_near_names_count),
            "you have taken a misspelled name for the right one: transformers doesn't, and says nothing.",
        ),
        Mistake(
            "None kept",
            lambda given: [
                given.get("bnb_4bit_quant_type", "fp4"),
                given.get("bnb_4bit_compute_dtype", "float32"),
                given.get("bnb_4bit_use_double_quant", False),
                given.get("bnb_4bit_quant_storage", "uint8"),
            ],
            "you return None for a dtype that is given as None: there it means the default.",
        ),
        Mistake(
            "storage follows the compute dtype",
            _with_settings(lambda used, given: [*used[:3], given.get("bnb_4bit_quant_storage") or used[1]]),
            "where no storage is given you take the compute dtype: the codes are stored in a type of their own, one byte for two of them.",
        ),
        Mistake(
            "only defaults",
            lambda given: ["fp4", "float32", False, "uint8"],
            "these are the defaults whatever is given: a setting that is there counts.",
        ),
    ),
)

# --- 07.3 ------------------------------------------------------------------------------------------------------------------------


def two_footprints(weights, double_quant):
    """The bytes that get_memory_footprint() reports for a model in 4 bits, and those that it takes: [reported, taken]."""
    reported = taken = 0
    for kind, count in weights:
        if kind != "linear":
            reported += 2 * count
            taken += 2 * count
            continue
        blocks = count // 64
        reported += count // 2
        taken += count // 2 + 16 * 4
        if double_quant:
            taken += blocks + -(-blocks // 256) * 4 + 4 + 256 * 4
        else:
            taken += blocks * 4
    return [reported, taken]


def _weights_of_models(seed: int) -> list[tuple[list[list[Any]], bool]]:
    pick = random.Random(seed)
    by_hand = [["linear", 128 * 128]]
    llama: list[list[Any]] = [["embedding", 736 * 128]]
    for _ in range(pick.randrange(2, 4)):
        llama += [["linear", 128 * 128], ["linear", 128 * 64 * pick.randrange(3, 9)], ["norm", 128]]
    llama.append(["head", 736 * 128])
    mixture = [
        ["embedding", 256 * 64],
        ["linear", 64 * 64],
        ["linear", 64 * 320],
        ["experts", 4 * 64 * 64 * pick.randrange(2, 7)],
        ["norm", 64],
    ]
    return [(weights, double_quant) for weights in (by_hand, llama, mixture) for double_quant in (False, True)]


def _footprints_if(
    *,
    in_4_bits: tuple[str, ...] = ("linear",),
    other_bytes: int = 2,
    report_scales: bool = False,
    codebooks: bool = True,
    offset: bool = True,
    nested: bool | None = None,
    swapped: bool = False,
) -> Callable[..., list[int]]:
    """``two_footprints`` with one of its parts wrong."""

    def wrong(weights: list[list[Any]], double_quant: bool) -> list[int]:
        double_quant = double_quant if nested is None else nested
        reported = taken = 0
        for kind, count in weights:
            if kind not in in_4_bits:
                reported, taken = reported + other_bytes * count, taken + other_bytes * count
                continue
            blocks = count // 64
            beside = blocks + -(-blocks // 256) * 4 + 4 * offset if double_quant else blocks * 4
            copies = (16 + 256 * double_quant) * 4 * codebooks
            reported += count // 2 + (beside + copies) * report_scales
            taken += count // 2 + beside + copies
        return [taken, reported] if swapped else [reported, taken]

    return wrong


TWO_FOOTPRINTS = FunctionQuestion(
    id="07.3",
    title="Count what is reported, and what is taken",
    points=3,
    difficulty=3,
    minutes=14,
    name="two_footprints",
    answer=two_footprints,
    inputs=_weights_of_models,
    hints=(
        'Only "linear" is quantized. All other kinds take 2 bytes a weight, in both figures.',
        "Reported are the packed codes, count // 2. Taken are, besides: the scales, and the codebook of 16 float32 numbers.",
        "With double quantization a matrix has count // 64 bytes of scale codes, 4 bytes for every 256 of them (round up), 4 for the "
        "offset, and a second codebook of 256 float32 numbers.",
    ),
    mistakes=(
        Mistake(
            "head too",
            _footprints_if(in_4_bits=("linear", "head")),
            "you have put the head in 4 bits: it stays in 16.",
        ),
        Mistake(
            "experts too",
            _footprints_if(in_4_bits=("linear", "experts")),
            "you have put the experts in 4 bits: transformers 5 keeps them in one tensor of three dimensions, and that is no linear layer.",
        ),
        Mistake(
            "everything",
            _footprints_if(in_4_bits=("linear", "head", "experts", "embedding", "norm")),
            "you have put everything in 4 bits: only the linear layers but the head are quantized.",
        ),
        Mistake("32 bits", _footprints_if(other_bytes=4), "what isn't quantized takes 2 bytes a weight here, not 4."),
        Mistake(
            "scales reported",
            _footprints_if(report_scales=True),
            "your two figures are the same: get_memory_footprint() doesn't see scales and codebooks.",
        ),
        Mistake("no codebooks", _footprints_if(codebooks=False), "the codebooks are missing in what is taken: each matrix keeps its copy."),
        Mistake("no offset", _footprints_if(offset=False), "the offset is missing: with double quantization, one float32 for each matrix."),
        Mistake("never double", _footprints_if(nested=False), "double_quant changes nothing in your figures: it makes scales 8-bit codes."),
        Mistake("always double", _footprints_if(nested=True), "you count double quantization always: without it a scale takes 4 bytes."),
        Mistake("swapped", _footprints_if(swapped=True), "the two are swapped: first what is reported, then what is taken."),
    ),
)

# --- 07.4 ------------------------------------------------------------------------------------------------------------------------


def peak_while_loading(weights):
    """The most bytes that are there at once while the weights are loaded in order, each first in 16 bits."""
    kept = peak = 0
    for count, quantized in weights:
        in_16_bits = 2 * count
        if quantized:
            in_4_bits = count // 2 + count // 64 * 4
            peak = max(peak, kept + in_16_bits + in_4_bits)
            kept += in_4_bits
        else:
            peak = max(peak, kept + in_16_bits)
            kept += in_16_bits
    return peak


def _loads(seed: int) -> list[tuple[list[list[Any]]]]:
    pick = random.Random(seed)
    small = [[64 * pick.randrange(20, 60), pick.random() < 0.7] for _ in range(8)]
    first_is_largest = [[64_000, True], *small]
    last_is_largest = [[64 * 40, False], *small, [64_000, True]]
    return [
        ([[128, True]],),
        ([[128, True], [128, False], [640, True]],),
        ([[6400, True], [128, True], [64, False]],),  # the peak is at the beginning
        (first_is_largest,),
        (last_is_largest,),
        ([[64 * 100, False], [64 * 10, True], [64 * 200, False]],),  # the last one isn't quantized
    ]


def _final(weights: list[list[Any]]) -> int:
    return sum(count // 2 + count // 64 * 4 if quantized else 2 * count for count, quantized in weights)


def _peak_if(*, both_forms: bool = True, kept_in_16: bool = False, scales: bool = True, quantize_all: bool = False) -> Callable[..., int]:
    """``peak_while_loading`` with one of its parts wrong."""

    def wrong(weights: list[list[Any]]) -> int:
        kept = peak = 0
        for count, quantized in weights:
            if quantized or quantize_all:
                in_4_bits = count // 2 + count // 64 * 4 * scales
                peak = max(peak, kept + 2 * count + in_4_bits * both_forms)
                kept += 2 * count if kept_in_16 else in_4_bits
            else:
                peak = max(peak, kept + 2 * count)
                kept += 2 * count
        return peak

    return wrong


PEAK_WHILE_LOADING = FunctionQuestion(
    id="07.4",
    title="Predict the peak",
    points=3,
    difficulty=3,
    minutes=12,
    name="peak_while_loading",
    answer=peak_while_loading,
    inputs=_loads,
    hints=(
        "Go through the weights in order, with two numbers: what is kept so far, and the largest sum that was there at any moment.",
        "While a weight is quantized, three things are there: what was kept before, the weight in 16 bits, and the weight in 4 bits.",
        "Then the 16 bits are gone: kept grows by count // 2 + count // 64 * 4. A weight that isn't quantized stays, 2 * count bytes.",
    ),
    mistakes=(
        Mistake("the end", _final, "this is what is there at the end: each weight is there in 16 bits too, for a moment."),
        Mistake(
            "all in 16 bits",
            lambda weights: sum(2 * count for count, _ in weights),
            "this is the whole model in 16 bits: it is never there, since each weight is quantized before the next is read.",
        ),
        Mistake(
            "16 bits kept",
            _peak_if(kept_in_16=True),
            "you keep the 16-bit weights until the end: they are dropped as soon as a weight is quantized.",
        ),
        Mistake(
            "one form at a time",
            _peak_if(both_forms=False),
            "while a weight is quantized both its forms are there: you count its 16 bits, and its 4 bits only afterwards.",
        ),
        Mistake("no scales", _peak_if(scales=False), "the scales are missing: 4 bytes for every 64 weights."),
        Mistake("all quantized", _peak_if(quantize_all=True), "you quantize every weight: those with False stay in 16 bits."),
        Mistake(
            "largest on top of the end",
            lambda weights: _final(weights) + max(2 * count for count, _ in weights),
            "you add the largest weight to what is there at the end: it may have come early, when little was kept, or not be quantized.",
        ),
    ),
)

# --- 07.5 ------------------------------------------------------------------------------------------------------------------------

SHARE_OF_A_MIXTURE = NumberQuestion(
    id="07.5",
    title="Find the experts",
    points=2,
    difficulty=2,
    minutes=7,
    name="percent_in_4_bits",
    answer=3.88,
    within=0.02,
    hints=(
        "Which of these weights are linear layers, besides the head? In transformers 5 the experts and the router are not.",
        "Only the attention is quantized: 16 * 4 * 2048 * 2048 weights. Divide by all weights.",
        "All weights: attention 268,435,456, experts 6,442,450,944, routers 2,097,152, embedding and head 206,045,184.",
    ),
    solution=(
        "attention = 16 * 4 * 2048 * 2048\n"
        "experts = 16 * 64 * 3 * 2048 * 1024\n"
        "others = 16 * 64 * 2048 + 2 * 50_304 * 2048\n"
        "percent_in_4_bits = 100 * attention / (attention + experts + others)"
    ),
    mistakes=(
        Mistake("experts too", 96.99, "you have counted the experts as 4-bit: they are tensors of three dimensions and stay in 16 bits."),
        Mistake("experts only", 93.11, "this is the share of the experts, which are not quantized."),
        Mistake("the rest", 96.12, "this is what stays in 16 bits: the share in 4 bits is asked for."),
        Mistake("head too", 5.37, "you have counted the head as 4-bit: it stays in 16 bits."),
        Mistake("fraction", 0.0388, "this is the fraction: times 100 makes percent."),
        Mistake("one layer", 0.2425, "you have counted the attention of one decoder layer: there are 16."),
        Mistake("without experts", 56.33, "you have left the experts out of all weights: they are most of them."),
    ),
)

# --- 07.6 ------------------------------------------------------------------------------------------------------------------------

SCALES_AFTER_THE_FIRST_PASS = NumberQuestion(
    id="07.6",
    title="Weigh it after the first forward pass",
    points=1,
    difficulty=2,
    minutes=5,
    name="bytes_of_scales",
    answer=202_375_168,
    within=0.5,
    hints=(
        "What becomes of double quantization, and in which format are the scales afterwards?",
        "One scale for every 64 weights. Double quantization is undone, and each scale is a bfloat16.",
    ),
    solution="bytes_of_scales = 6_476_005_376 // 64 * 2  # double quantization is undone, and the scales are bfloat16",
    mistakes=(
        Mistake("as loaded", 102_769_536, "this is before the pass, offsets included: on this path double quantization is undone."),
        Mistake("as loaded, no offsets", 102_768_640, "this is before the pass: on this path double quantization is undone."),
        Mistake("float32 scales", 404_750_336, "the scales aren't float32 on this path: they become bfloat16."),
        Mistake("8-bit scales", 101_187_584, "the scales aren't 8-bit codes any more: they become bfloat16, 2 bytes each."),
        Mistake("bits", 8 * 202_375_168, "8 times too much: bytes, not bits."),
        Mistake("codes too", 3_440_377_856, "this is codes and scales together: only the scales are asked for."),
        Mistake("codes only", 3_238_002_688, "these are the codes: the scales are asked for."),
        Mistake("a scale for each weight", 12_952_010_752, "you have a scale for each weight: 64 weights share one."),
    ),
)

# --- 07.7 ------------------------------------------------------------------------------------------------------------------------

READ_THE_DTYPE = ExplanationQuestion(
    id="07.7",
    title="Read the dtype",
    points=3,
    difficulty=2,
    minutes=8,
    name="what_the_dtype_says",
    hints=(
        "The lesson found the one parameter whose dtype model.dtype reports. Which is it, and is it quantized?",
        "Three formats live in a model in 4 bits. Which of them are seen by model.dtype, by layer.weight.dtype, by layer.compute_dtype?",
    ),
    model_answer=(
        "The line can't tell. model.dtype is the dtype of the first parameter that is a float, here the embedding, and the embedding\n"
        "is not quantized: a model without any quantization prints the same.\n"
        "To know, look at a layer of the model: type(layer) is Linear4bit, layer.weight.dtype is uint8, and weight.quant_state.quant_type\n"
        "names the codebook. Or count: the footprint is far below two bytes for each of num_parameters().\n"
        "What is multiplied in is a third thing: layer.compute_dtype, which is float32 unless bnb_4bit_compute_dtype was set."
    ),
    rubric=(
        (1, "model.dtype is that of a parameter that isn't quantized (the first float, the embedding), so the line doesn't tell."),
        (1, "A way to find out: the class Linear4bit, a weight of dtype uint8, quant_state, or bytes far below two for each weight."),
        (1, "The compute dtype is something else again, with its own place or its default."),
    ),
)

# --- 07.8 ------------------------------------------------------------------------------------------------------------------------

EXPLAIN_THE_MIXTURE = ExplanationQuestion(
    id="07.8",
    title="Explain a colleague's Mixtral",
    points=4,
    difficulty=3,
    minutes=10,
    name="why_it_does_not_fit",
    hints=(
        "Where are most of Mixtral's weights, and what does Linear4bit take the place of?",
        "The lesson has two figures for Mixtral 8x7B, and two ways to see in a loaded model what happened.",
    ),
    model_answer=(
        "Almost all of Mixtral's weights are in its experts. In transformers 5 the experts of a layer are one tensor of three dimensions,\n"
        "and no linear layers, and only linear layers are replaced by Linear4bit (bitsandbytes #1849). So about 91 GB are left, of 93 in\n"
        "16 bits. There is no error and no warning, and printing the model doesn't show it.\n"
        "To check: print the share of the weights that have a quant_state, or the dtype and shape of the parameters of one mlp: bfloat16,\n"
        "three dimensions.\n"
        "The figure in the blog is from the time of transformers 4, when each expert was three linear layers. Even then the weights alone\n"
        "were 24.5 GB. Options: several cards, a library or format that quantizes experts, or a smaller model. No setting of\n"
        "BitsAndBytesConfig does it, but a function does, after loading: replace_parameter_4bit of bitsandbytes.nn.parametrize. It is\n"
        "experimental, and the 16-bit experts must fit into memory first."
    ),
    rubric=(
        (1, "The cause: in transformers 5 experts are tensors of three dimensions, no linear layers, and are left as they are."),
        (1, "Why the blog says otherwise: with transformers 4 experts were linear layers and were quantized (a tight fit even then)."),
        (1, "A check that the colleague can run: dtype and shape of the experts' parameters, or the share of weights with a quant_state."),
        (
            1,
            "An honest way out, and no setting that doesn't exist: more cards, a format that quantizes experts, another model, or "
            "replace_parameter_4bit after loading, which needs room for the 16 bits first.",
        ),
    ),
)

QUESTIONS = (
    NOT_REPORTED,
    SETTINGS_USED,
    TWO_FOOTPRINTS,
    PEAK_WHILE_LOADING,
    SHARE_OF_A_MIXTURE,
    SCALES_AFTER_THE_FIRST_PASS,
    READ_THE_DTYPE,
    EXPLAIN_THE_MIXTURE,
)
