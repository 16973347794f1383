"""The questions of lesson 09, what it costs in time."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from typing import Any

from course_utils.questions.kinds import ExplanationQuestion, FunctionQuestion, Mistake, NumberQuestion

# --- 09.1 ------------------------------------------------------------------------------------------------------------------------

_RUNS = [8, 9, 8, 30, 8, 10, 9]

READ_THE_SPREAD = NumberQuestion(
    id="09.1",
    title="Read the spread",
    points=1,
    difficulty=1,
    minutes=5,
    name="percent",
    answer=100 * 1.5 / 9,
    within=0.4,
    hints=(
        "Put the seven times in order: 8, 8, 8, 9, 9, 10, 30. The median is the fourth.",
        "The quartiles of `statistics.quantiles(runs, n=4, method='inclusive')` are 8 and 9.5.",
    ),
    solution="percent = 100 * (9.5 - 8) / 9  # the distance of the quartiles, as a part of the median",
    mistakes=(
        Mistake("a part", 1.5 / 9, "that is the spread as a part of 1: the question asks for percent."),
        Mistake("milliseconds", 1.5, "that is the distance of the quartiles in milliseconds: divide it by the median."),
        Mistake("whole range", 100 * 22 / 9, "that is from the fastest run to the slowest: the spread leaves out a quarter at each end."),
        Mistake(
            "exclusive quartiles",
            100 * 2 / 9,
            "your quartiles are 8 and 10: with `method='inclusive'`, as in the lesson, they are 8 and 9.5.",
        ),
        Mistake(
            "of the mean",
            100 * 1.5 / statistics.mean(_RUNS),
            "you have divided by the mean, which the 30 has moved: take the median.",
        ),
        Mistake("upper half", 100 * 0.5 / 9, "that is from the median to the upper quartile: take both quartiles."),
    ),
)

# --- 09.2 ------------------------------------------------------------------------------------------------------------------------


def least_ms(outputs, inputs, batch, bits, flop_rate, bandwidth):
    """The roofline of a linear layer: the slower of calculating and moving, in milliseconds."""
    flops = 2 * outputs * inputs * batch
    nbytes = outputs * inputs * bits / 8 + batch * (inputs + outputs) * 2
    return 1000 * max(flops / flop_rate, nbytes / bandwidth)


def _machines_and_layers(seed: int) -> list[tuple[Any, ...]]:
    pick = random.Random(seed)
    drawn = []
    for _ in range(4):
        shape = pick.choice([(4096, 4096), (11008, 4096), (4096, 11008), (1024, 8192)])
        drawn.append((*shape, pick.choice([1, 2, 8]), pick.choice([4.5, 8, 16]), pick.uniform(2e11, 9e11), pick.uniform(5e9, 2e10)))
        drawn.append((*shape, pick.choice([64, 256]), pick.choice([4.5, 8, 16]), pick.uniform(5e10, 1e11), pick.uniform(5e10, 1e11)))
    return [(2, 4, 1, 16, 16_000, 14_000), (2, 4, 10, 16, 16_000, 136_000), *drawn]


def _least_ms_with(
    *,
    join: Callable[..., float] = max,
    per_weight: int = 2,
    bits_in_a_byte: int = 8,
    activations: int = 2,
    batched: bool = True,
    scale: float = 1000.0,
) -> Callable[..., float]:
    """``least_ms`` with one of its parts wrong."""

    def wrong(outputs, inputs, batch, bits, flop_rate, bandwidth):
        flops = per_weight * outputs * inputs * (batch if batched else 1)
        nbytes = outputs * inputs * bits / bits_in_a_byte + batch * (inputs + outputs) * activations
        return scale * join(flops / flop_rate, nbytes / bandwidth)

    return wrong


LEAST_MS = FunctionQuestion(
    id="09.2",
    title="Draw the roofline",
    points=3,
    difficulty=3,
    minutes=12,
    name="least_ms",
    answer=least_ms,
    inputs=_machines_and_layers,
    hints=(
        "Two times: calculations divided by flop_rate, and bytes divided by bandwidth. The layer needs the longer of the two.",
        "Each weight is multiplied and added once for each row of the batch: 2 * outputs * inputs * batch calculations.",
        "Bytes: the weights, bits / 8 each, and in 16 bits `inputs` numbers in and `outputs` numbers out for each row. Then times 1000.",
    ),
    mistakes=(
        Mistake(
            "added up",
            _least_ms_with(join=lambda calculating, moving: calculating + moving),
            "you add the two times: a machine calculates and moves at the same time, so the longer one counts.",
        ),
        Mistake("the shorter", _least_ms_with(join=min), "you take the shorter of the two times: the layer waits for the longer one."),
        Mistake("one calculation", _least_ms_with(per_weight=1), "a weight takes two calculations for each row: a product and a sum."),
        Mistake("bits as bytes", _least_ms_with(bits_in_a_byte=1), "you count bits where bytes are due: a byte has 8 bits."),
        Mistake(
            "no activations",
            _least_ms_with(activations=0),
            "inputs and outputs are moved too, in 16 bits: batch * (inputs + outputs) * 2 bytes.",
        ),
        Mistake(
            "activations in 32 bits",
            _least_ms_with(activations=4),
            "your inputs and outputs take 4 bytes each: in 16 bits they take 2.",
        ),
        Mistake("batch forgotten", _least_ms_with(batched=False), "each row of the batch is multiplied with all weights: times batch."),
        Mistake("seconds", _least_ms_with(scale=1.0), "these are seconds: times 1000."),
        Mistake(
            "only calculating",
            _least_ms_with(join=lambda calculating, moving: calculating),
            "you count calculations alone: at small batches the layer waits for memory.",
        ),
        Mistake(
            "only moving",
            _least_ms_with(join=lambda calculating, moving: moving),
            "you count bytes alone: at large batches the layer waits for the arithmetic.",
        ),
    ),
)

# --- 09.3 ------------------------------------------------------------------------------------------------------------------------

WHERE_IT_TURNS = NumberQuestion(
    id="09.3",
    title="Find where it turns",
    points=2,
    difficulty=3,
    minutes=8,
    name="batch",
    answer=0.5625 * 300 / (2 * 2),
    within=0.05,
    hints=(
        "For each weight: 2 * batch calculations, and 4.5 / 8 bytes. Write down the time of each on this GPU.",
        "Both are equal where 2 * batch / 300e12 = 0.5625 / 2e12. Solve for batch.",
    ),
    solution="batch = 4.5 / 8 / 2e12 * 300e12 / 2  # 0.5625 bytes take as long as 2 * batch calculations",
    mistakes=(
        Mistake("16 bits", 150.0, "at 150 it turns in 16 bits, where a weight takes 2 bytes: here it takes 4.5 bits."),
        Mistake("one calculation", 0.5625 * 300 / 2, "twice too much: a weight takes two calculations for each row, a product and a sum."),
        Mistake("no scales", 37.5, "that is with 4 bits a weight: with its share of the scale it is 4.5."),
        Mistake("bits", 4.5 * 300 / 4, "8 times too much: the bandwidth is in bytes."),
        Mistake(
            "two steps",
            4.5625 * 300 / 4,
            "that is for two steps, where a weight is written and read again: here the kernel is fused.",
        ),
        Mistake("upside down", 2 * 2 / (0.5625 * 300), "that is 1 divided by the batch: calculations grow with the batch, bytes don't."),
    ),
)

# --- 09.4 ------------------------------------------------------------------------------------------------------------------------


def which_is_faster(a, b):
    """ "a" or "b" if its times lie below the other's, quartile to quartile; "can't tell" if the two ranges overlap."""
    import statistics

    a_low, _, a_high = statistics.quantiles(a, n=4, method="inclusive")
    b_low, _, b_high = statistics.quantiles(b, n=4, method="inclusive")
    if a_high < b_low:
        return "a"
    if b_high < a_low:
        return "b"
    return "can't tell"


def _pairs_of_times(seed: int) -> list[tuple[list[float], list[float]]]:
    """By hand first; the rest are scaled and shuffled, which changes no verdict."""
    by_hand = [
        ([4, 4, 5, 5, 5], [8, 8, 9, 9, 9]),
        ([8, 8, 9, 9, 9], [4, 4, 5, 5, 5]),
        ([4, 6, 8, 10, 12], [5, 7, 9, 11, 13]),  # medians differ, ranges overlap
        ([4, 4, 5, 5, 60], [8, 8, 9, 9, 9]),  # one slow run: mean and range are misled
        ([9, 9, 9, 9, 1], [6, 6, 6, 6, 6]),  # one fast run
        ([1, 4, 5, 6, 9, 20], [6.8, 7, 7, 7.2, 7.2, 8]),  # inclusive quartiles overlap
        ([5, 5, 5, 5, 6.5, 9, 9], [8, 8, 8, 8, 8, 8, 8]),  # inclusive: 5 to 7.75 lies below 8; exclusive: 5 to 9
        ([4] * 10 + [60], [9] * 11),  # so many runs that both kinds of quartiles leave the slow one out
        ([5, 5, 5, 5, 5], [5, 5, 5, 5, 5]),
    ]
    pick = random.Random(seed)
    scaled = []
    for a, b in by_hand:
        factor = pick.choice([0.5, 2, 4, 8])
        scaled.append((pick.sample([factor * t for t in a], len(a)), pick.sample([factor * t for t in b], len(b))))
    return by_hand + scaled


def _by(number: Callable[[list[float]], float]) -> Callable[..., str]:
    """Compare one number of each."""

    def wrong(a, b):
        return "a" if number(a) < number(b) else "b" if number(b) < number(a) else "can't tell"

    return wrong


def _by_ranges(
    ends: Callable[[list[float]], tuple[float, float]], swapped: bool = False, otherwise: str = "can't tell"
) -> Callable[..., str]:
    """Compare ranges."""

    def wrong(a, b):
        (a_low, a_high), (b_low, b_high) = ends(a), ends(b)
        if a_high < b_low:
            return "b" if swapped else "a"
        if b_high < a_low:
            return "a" if swapped else "b"
        return otherwise

    return wrong


def _quartiles(times: list[float], method: Any = "inclusive") -> tuple[float, float]:
    low, _, high = statistics.quantiles(times, n=4, method=method)
    return low, high


WHICH_IS_FASTER = FunctionQuestion(
    id="09.4",
    title="Say which is faster, or that you can't",
    points=3,
    difficulty=3,
    minutes=12,
    name="which_is_faster",
    answer=which_is_faster,
    inputs=_pairs_of_times,
    hints=(
        "`statistics.quantiles(times, n=4, method='inclusive')` gives three numbers: lower quartile, median, upper quartile.",
        "a is faster if its upper quartile lies below the lower quartile of b. Then the other way round. What is left over can't be told.",
    ),
    mistakes=(
        Mistake(
            "medians",
            _by(statistics.median),
            "you compare the medians alone: where the quartiles overlap, the answer is \"can't tell\".",
        ),
        Mistake("means", _by(statistics.mean), "you compare the means: one slow run moves a mean. Compare quartiles."),
        Mistake("fastest runs", _by(min), "you compare the fastest run of each: one run is not enough. Compare quartiles."),
        Mistake(
            "whole ranges",
            _by_ranges(lambda times: (min(times), max(times))),
            "you ask that all runs of one are below all runs of the other: one odd run then decides. Compare quartiles.",
        ),
        Mistake(
            "exclusive quartiles",
            _by_ranges(lambda times: _quartiles(times, "exclusive")),
            "your quartiles are the exclusive ones, Python's default: the lesson takes method='inclusive'.",
        ),
        Mistake("swapped", _by_ranges(_quartiles, swapped=True), "you name the slower one: the faster has the smaller times."),
        Mistake(
            "never in doubt",
            _by_ranges(_quartiles, otherwise="a"),
            "where the quartiles overlap you say \"a\": say \"can't tell\".",
        ),
    ),
)

# --- 09.5 ------------------------------------------------------------------------------------------------------------------------

_LINEAR, _HEAD, _NESTED = 6_476_005_376, 131_072_000, 4.126953125

LEAST_FOR_A_TOKEN = NumberQuestion(
    id="09.5",
    title="Bound a token",
    points=2,
    difficulty=3,
    minutes=8,
    name="milliseconds",
    answer=(_LINEAR * _NESTED / 8 + 2 * _HEAD) / 1e9,
    within=0.006,
    hints=(
        "The linear layers take 4.127 bits a weight, and the head 16. The embedding is looked up in: one row, which is next to nothing.",
        "Add the bytes of both, and divide by 10**12 bytes a second. A second has 1,000 milliseconds.",
    ),
    solution="milliseconds = (6_476_005_376 * 4.127 / 8 + 131_072_000 * 2) / 1e12 * 1000",
    mistakes=(
        Mistake("16 bits", 2 * (_LINEAR + _HEAD) / 1e9, "that is the model in 16 bits."),
        Mistake(
            "no double quantization",
            (_LINEAR * 4.5 / 8 + 2 * _HEAD) / 1e9,
            "that is with float32 scales, 4.5 bits: with double quantization it is 4.127.",
        ),
        Mistake(
            "without the head",
            _LINEAR * _NESTED / 8 / 1e9,
            "the head is missing: it stays in 16 bits, and is multiplied with for each token.",
        ),
        Mistake("head in 4 bits", (_LINEAR + _HEAD) * _NESTED / 8 / 1e9, "you have put the head in 4 bits too: it stays in 16."),
        Mistake(
            "embedding read",
            (_LINEAR * _NESTED / 8 + 4 * _HEAD) / 1e9,
            "you count the whole embedding: only one row of it is looked up for a token.",
        ),
        Mistake("seconds", (_LINEAR * _NESTED / 8 + 2 * _HEAD) / 1e12, "these are seconds: the question asks for milliseconds."),
        Mistake("half a byte", (_LINEAR / 2 + 2 * _HEAD) / 1e9, "that is with 4 bits a weight, without any scales: with them it is 4.127."),
    ),
)

# --- 09.6 ------------------------------------------------------------------------------------------------------------------------


def overhead_ms(passes, quantizing, reading, path):
    """What double quantization costs in all: once while loading, and then as often as the path reads the scales back."""
    times_read = min(passes, 1) if path == "packed" else passes
    return quantizing + times_read * reading


def _uses(seed: int) -> list[tuple[int, float, float, str]]:
    pick = random.Random(seed)
    drawn = [
        (pick.randrange(2, 500), pick.uniform(5, 50), pick.uniform(0.1, 3), path) for path in ("plain", "packed", "fused") for _ in range(3)
    ]
    by_hand = [(passes, 40.0, 2.0, path) for passes in (10, 0) for path in ("plain", "packed", "fused")]
    return by_hand + drawn


OVERHEAD = FunctionQuestion(
    id="09.6",
    title="Add up the overhead",
    points=2,
    difficulty=2,
    minutes=8,
    name="overhead_ms",
    answer=overhead_ms,
    inputs=_uses,
    hints=(
        "Quantizing the scales is paid once, on every path. How often are they read back on each?",
        "Plain and fused: at each pass. Packed: at the first pass and never again; with no pass at all, never.",
    ),
    mistakes=(
        Mistake(
            "packed each time",
            lambda passes, quantizing, reading, path: quantizing + passes * reading,
            "on the packed path the first pass keeps the scales that it has read back: later passes cost nothing.",
        ),
        Mistake(
            "never on packed",
            lambda passes, quantizing, reading, path: quantizing + (0 if path == "packed" else passes * reading),
            "on the packed path the scales are read back too, once: at the first pass.",
        ),
        Mistake(
            "once without a pass",
            lambda passes, quantizing, reading, path: quantizing + (1 if path == "packed" else passes) * reading,
            "with no pass nothing is read back, on the packed path either.",
        ),
        Mistake(
            "loading forgotten",
            lambda passes, quantizing, reading, path: (min(passes, 1) if path == "packed" else passes) * reading,
            "the scales are quantized while the model is loaded: that is paid too, once.",
        ),
        Mistake(
            "loading each time",
            lambda passes, quantizing, reading, path: passes * quantizing + (min(passes, 1) if path == "packed" else passes) * reading,
            "the model is loaded once, not for each pass.",
        ),
        Mistake(
            "fused like packed",
            lambda passes, quantizing, reading, path: quantizing + (passes if path == "plain" else min(passes, 1)) * reading,
            "a GPU's fused kernel gets the 8-bit scales at every call, and reads them back each time.",
        ),
        Mistake(
            "once everywhere",
            lambda passes, quantizing, reading, path: quantizing + min(passes, 1) * reading,
            "that is the packed path for all: the others read the scales back at each pass.",
        ),
    ),
)

# --- 09.7 ------------------------------------------------------------------------------------------------------------------------

WHY_THE_OVERHEAD = ExplanationQuestion(
    id="09.7",
    title="Check your understanding",
    points=7,
    difficulty=4,
    minutes=15,
    name="why_the_overhead",
    hints=(
        "Say first what is quantized twice, and what has to happen before a scale can be used. Then: when, and how often?",
        "Look again at the table of calls: loading, first, second, third pass; plain path and packed path.",
        'Is "slower than expected" the fault of double quantization at all? What else may it be, and how would you find out?',
    ),
    model_answer="""Double quantization stores the scale of each block as an 8-bit code. Before a weight can be read back, its scale has to
be: looked up, multiplied by the scale that 256 of them share, and the offset added. That is additional work.
While loading, the scales are quantized, once; beside quantizing the weights, 64 times as many numbers, that is little, and it buys
memory for as long as the model stays. In use, the scales are read back at each forward pass, for each layer, and thrown away again:
on a CPU's plain path in a step of its own, on a GPU inside the fused kernel or, outside its range, in a step of its own. So the cost of
loading is shared by all tokens, and that of reading back is paid for each pass. At batch 1 it weighs most, since there is the least
other work.
It is not so everywhere. On a CPU with avx512_bf16 the first pass reads the scales back, keeps them, and dissolves the double
quantization: from then on it costs nothing, and saves no memory any more. "Every forward pass" depends on the kernel.
How much it is has to be measured: published figures for GPUs (bitsandbytes 0.45) go from 2 to 26 %, not 5 to 10. Before blaming it I
would time the model with and without it, in turns: reading the weights themselves back usually costs far more, and small batches on a
fast GPU wait for neither.""",
    rubric=(
        (1, "The scales themselves are quantized, so they have to be read back before the weights can be."),
        (1, "Loading: the scales are quantized once, little work beside the weights; the memory is saved from then on."),
        (2, "Inference: the scales are read back at each forward pass, in every layer, and not kept: the cost is repeated."),
        (1, "It depends on the kernel: on the packed path they are read back once, at the first pass, and the saving of memory is gone."),
        (1, "A figure with its source or machine, or that there is no one figure: the batch and the GPU decide."),
        (1, "How to find out whether it is the cause: time with and without it, in turns, after a warm-up; or names a more likely cause."),
    ),
)

QUESTIONS = (READ_THE_SPREAD, LEAST_MS, WHERE_IT_TURNS, WHICH_IS_FASTER, LEAST_FOR_A_TOKEN, OVERHEAD, WHY_THE_OVERHEAD)
