"""The questions of lesson 02, round to a grid.

torch is imported where it is needed and not above, so that ``course_utils.checks`` is there at once in an exercise that does without it.
"""

from __future__ import annotations

import random

from course_utils.questions.kinds import ExplanationQuestion, FunctionQuestion, Mistake, NumberQuestion

LESSONS_EIGHT = [0.02, -0.068, 0.008, 0.14, -0.036, 0.104, -0.016, 0.048]
"""The weights that the lesson rounds by hand."""

# --- 02.1 ------------------------------------------------------------------------------------------------------------------------

READ_A_CODE = NumberQuestion(
    id="02.1",
    title="Read a code",
    points=1,
    difficulty=1,
    minutes=4,
    name="read_back",
    answer=-0.3,
    within=1e-6,
    hints=(
        "The code says how many steps from 0, and in which direction. How large is a step if the code 7 stands for 0.42?",
        "The scale is 0.42 / 7 = 0.06. Multiply it by the code.",
    ),
    solution="read_back = -5 * 0.42 / 7",
    mistakes=(
        Mistake("sign forgotten", 0.3, "the size is right: the code is negative, and so is the number."),
        Mistake("absmax / 8", -5 * 0.42 / 8, "you have divided the absmax by 8: in absmax quantization the largest gets the code 7."),
        Mistake("absmax / 15", -5 * 0.42 / 15, "you have divided the absmax by 15: from 0 to the absmax there are 7 steps."),
        Mistake("range / 15", -5 * 0.84 / 15, "you have cut the range into 15 steps: from -7 to 7 there are 14."),
        Mistake("absmax / 5", -0.42 / 5, "you have divided the absmax by the code: divide by 7 for the scale, then multiply by the code."),
        Mistake("absmax as the step", -2.1, "you have multiplied the code by the absmax: the step is a seventh of that."),
        Mistake("the scale", 0.06, "that is the scale: multiply it by the code."),
        Mistake("from the other end", -0.42 + 5 * 0.06, "you have counted from -0.42: codes count from 0."),
    ),
)

# --- 02.2 ------------------------------------------------------------------------------------------------------------------------

BOUND_THE_ERROR = NumberQuestion(
    id="02.2",
    title="Bound the error",
    points=1,
    difficulty=2,
    minutes=5,
    name="largest_error",
    answer=0.125,
    within=1e-6,
    hints=(
        "What is the scale, if the absmax is 1.75 and gets the code 7?",
        "The scale, and so the step, is 0.25. A number can lie no further from the nearest value than half of that.",
    ),
    solution="largest_error = 1.75 / 7 / 2",
    mistakes=(
        Mistake("a whole step", 0.25, "that is the step: a number lies between two values, and the nearer one is at most half of it away."),
        Mistake(
            "absmax / 8", 1.75 / 8 / 2, "you have divided the absmax by 8: the codes end at 7, so there are 7 steps from 0 to the absmax."
        ),
        Mistake(
            "absmax / 15", 1.75 / 15 / 2, "you have divided the absmax by 15: that is the step for 0 to 15, when no number is negative."
        ),
        Mistake("range / 15", 3.5 / 15 / 2, "you have cut the range into 15 steps: from -7 to 7 there are 14."),
        Mistake("root mean square", 0.25 / 12**0.5, "that is what an error is on (root mean square) average: asked is the largest."),
        Mistake("half of the absmax", 0.875, "that is half of the absmax: asked is half of a step, and 7 steps make the absmax."),
        Mistake("in steps", 0.5, "that is in steps: asked is the error of the numbers themselves."),
    ),
)

# --- 02.3 ------------------------------------------------------------------------------------------------------------------------


def int4_codes(numbers):
    """The codes of a float32 tensor by absmax, an int8 tensor of the same shape, and the scale, a number."""
    import torch

    absmax = numbers.abs().max().item()
    scale = absmax / 7 if absmax > 0 else 1.0  # zeros: any scale will do, but not 0
    return torch.round(numbers / scale).to(torch.int8), scale


def _tensors(seed: int) -> list[tuple]:
    """No number that is drawn lies near the middle between two codes, so that all ways to calculate give the same codes."""
    import torch

    pick = random.Random(seed)
    halves = [0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, -3.5, 7.0]
    by_hand = [LESSONS_EIGHT, halves, [0.25, -0.7, 0.13, 0.06], [0.0, 0.0, 0.0], [-3.0], [[1.0, -3.4], [0.4, 14.0]]]
    drawn = []
    for _ in range(4):
        scale = pick.uniform(0.001, 2)
        largest = pick.choice([-7, 7])
        steps = [pick.randint(-6, 6) + pick.uniform(-0.4, 0.4) for _ in range(pick.randrange(10, 30))] + [largest]
        drawn.append([scale * step for step in steps])
    return [(torch.tensor(numbers),) for numbers in by_hand + drawn]


def _int4_with(numbers, *, absmax=None, parts=7, rounding=None, zero_scale=1.0, codes_dtype="int8"):
    """``int4_codes`` with one of its parts wrong."""
    import torch

    largest = numbers.abs().max().item() if absmax is None else absmax
    scale = largest / parts
    if scale == 0:
        return torch.zeros_like(numbers, dtype=getattr(torch, codes_dtype)), zero_scale
    return (rounding or torch.round)(numbers / scale).to(getattr(torch, codes_dtype)), scale


def _with_scale(numbers, change):
    """The right codes, and the scale changed."""
    codes, scale = int4_codes(numbers)
    return codes, change(scale)


WRITE_INT4 = FunctionQuestion(
    id="02.3",
    title="Quantize by absmax",
    points=3,
    difficulty=3,
    minutes=10,
    name="int4_codes",
    answer=int4_codes,
    inputs=_tensors,
    tolerance=1e-6,
    hints=(
        "Four steps: the absmax, the scale, divide and round, change the dtype. `numbers.abs().max().item()` is a Python number.",
        "`torch.round(numbers / scale).to(torch.int8)` are the codes. `int4_codes(torch.tensor([0.5, -3.5]))` gives the codes 1 and -7 "
        "and the scale 0.5.",
        "For zeros: `scale = absmax / 7 if absmax > 0 else 1.0`.",
    ),
    mistakes=(
        Mistake(
            "zeros",
            lambda numbers: _int4_with(numbers, zero_scale=0.0),
            "all is right but a tensor of zeros: there your scale is 0, and 0 / 0 is NaN, which has no code. Take the scale 1.",
        ),
        Mistake(
            "cut off",
            lambda numbers: _int4_with(numbers, rounding=lambda x: x),
            "your codes are cut off towards 0, not rounded: `.to(torch.int8)` drops what comes after the point, so call torch.round first.",
        ),
        Mistake(
            "rounded down",
            lambda numbers: _int4_with(numbers, rounding=lambda x: x.floor()),
            "your codes are rounded down: take the nearest whole number, torch.round.",
        ),
        Mistake(
            "half up",
            lambda numbers: _int4_with(numbers, rounding=lambda x: (x + 0.5).floor()),
            "all is right but the halves: you round them up. torch.round goes to the even neighbour.",
        ),
        Mistake(
            "half away from zero",
            lambda numbers: _int4_with(numbers, rounding=lambda x: x.sign() * (x.abs() + 0.5).floor()),
            "all is right but the halves: you round them away from 0. torch.round goes to the even neighbour.",
        ),
        Mistake(
            "largest instead of absmax",
            lambda numbers: _int4_with(numbers, absmax=numbers.max().item()),
            "your scale comes from the largest number: where the absmax is that of a negative one, codes go beyond -7. Take abs() first.",
        ),
        Mistake(
            "absmax / 8",
            lambda numbers: _int4_with(numbers, parts=8, rounding=lambda x: x.round().clamp(-8, 7)),
            "you have divided the absmax by 8: then the largest positive number has no code. Divide by 7, and -8 stays unused.",
        ),
        Mistake(
            "range / 15",
            lambda numbers: _int4_with(numbers, absmax=(numbers.max() - numbers.min()).item(), parts=15),
            "you have divided the range by 15: that belongs to a zero point. By absmax the scale is absmax / 7.",
        ),
        Mistake(
            "absmax returned",
            lambda numbers: _with_scale(numbers, lambda scale: 7 * scale),
            "your codes are right, but you return 7 times the scale: is it the absmax? Codes times scale must give the numbers back.",
        ),
        Mistake(
            "one over the scale",
            lambda numbers: _with_scale(numbers, lambda scale: 1 / scale),
            "your codes are right, but you return 1 / scale: codes times scale must give the numbers back.",
        ),
        Mistake(
            "values instead of codes",
            lambda numbers: (int4_codes(numbers)[0] * int4_codes(numbers)[1], int4_codes(numbers)[1]),
            "you return the numbers that come back: asked are the codes, before they are multiplied by the scale.",
        ),
        Mistake(
            "codes as floats",
            lambda numbers: _int4_with(numbers, codes_dtype="float32"),
            "your codes are right, but they are float32: turn them into torch.int8, one byte instead of four.",
        ),
    ),
)

# --- 02.4 ------------------------------------------------------------------------------------------------------------------------


def half_to_even(numbers: list[float]) -> list[int]:
    """Each number rounded to the nearest whole number, halves to the even neighbour."""
    rounded = []
    for x in numbers:
        below = int(x // 1)  # the whole number just below, for negative numbers too
        above = below + 1
        if x - below == above - x:
            rounded.append(below if below % 2 == 0 else above)
        else:
            rounded.append(below if x - below < above - x else above)
    return rounded


def _halves(seed: int) -> list[tuple[list[float]]]:
    pick = random.Random(seed)
    by_hand = [[0.5, 1.5, 2.5, 3.5], [-0.5, -1.5, -2.5, -3.5], [2.4, 2.6, -2.4, -2.6, 3.0, 0.0]]
    return [(numbers,) for numbers in by_hand + [[pick.randrange(-64, 65) / 8 for _ in range(12)] for _ in range(4)]]


def _nearest_with(halves):
    """A function that rounds to the nearest, and does as ``halves`` says with the whole number below a half."""
    return lambda numbers: [halves(int(x // 1)) if x % 1 == 0.5 else int((x + 0.5) // 1) for x in numbers]


ROUND_HALF_TO_EVEN = FunctionQuestion(
    id="02.4",
    title="Round half to even",
    points=2,
    difficulty=3,
    minutes=8,
    name="half_to_even",
    answer=half_to_even,
    inputs=_halves,
    tolerance=0.0,
    hints=(
        "`below = int(x // 1)` is the whole number just below x, also where x is negative: -2.5 // 1 is -3.0. "
        "The other neighbour is below + 1.",
        "Three cases: nearer to below, nearer to below + 1, or equally near. In the third, take the one that is even: n % 2 == 0.",
        "-2.5 lies between -3 and -2, and -2 is even. 0.5 lies between 0 and 1, and 0 is even.",
    ),
    mistakes=(
        Mistake(
            "half up", _nearest_with(lambda below: below + 1), "you round halves up: of two equally near neighbours take the even one."
        ),
        Mistake(
            "half down", _nearest_with(lambda below: below), "you round halves down: of two equally near neighbours take the even one."
        ),
        Mistake(
            "half away from zero",
            _nearest_with(lambda below: below + 1 if below >= 0 else below),
            "you round halves away from 0: of two equally near neighbours take the even one.",
        ),
        Mistake(
            "half towards zero",
            _nearest_with(lambda below: below if below >= 0 else below + 1),
            "you round halves towards 0: of two equally near neighbours take the even one.",
        ),
        Mistake(
            "half to odd", _nearest_with(lambda below: below + 1 - below % 2), "you round halves to the odd neighbour: take the even one."
        ),
        Mistake(
            "cut off", lambda numbers: [int(x) for x in numbers], "you cut off what comes after the point: 2.6 is nearer to 3 than to 2."
        ),
        Mistake("rounded down", lambda numbers: [int(x // 1) for x in numbers], "you always round down: 2.6 is nearer to 3 than to 2."),
        Mistake(
            "every number to even",
            lambda numbers: [2 * round(x / 2) for x in numbers],
            "you round every number to an even one: only where two neighbours are equally near does the even one decide.",
        ),
    ),
)

# --- 02.5 ------------------------------------------------------------------------------------------------------------------------

PRICE_OF_MINUS_EIGHT = NumberQuestion(
    id="02.5",
    title="Say what -8 would cost",
    points=2,
    difficulty=2,
    minutes=6,
    name="error_with_minus_eight",
    answer=0.06,
    within=5e-4,
    hints=(
        "The scale is 0.56 / 8 = 0.07. How many steps is 0.55, and which code is the nearest that is there?",
        "0.55 is 7.86 steps. The code 8 isn't there, so it is cut off at 7 and comes back as 0.49.",
    ),
    solution="error_with_minus_eight = 0.55 - 7 * 0.56 / 8",
    mistakes=(
        Mistake(
            "code 8", 0.01, "you have let 0.55 come back as 0.56: with the scale absmax / 8 that is the code 8, and the codes end at 7."
        ),
        Mistake("the bound", 0.035, "that is half a step: the bound holds only where the nearest whole number is a code, and 8 is none."),
        Mistake("a whole step", 0.07, "that is a whole step, the error of 0.56 itself: 0.55 is a little nearer to 0.49."),
        Mistake("what comes back", 0.49, "that is the number that comes back: how far is it from 0.55?"),
        Mistake("in steps", 0.06 / 0.07, "that is in steps: multiply by the step, 0.07."),
        Mistake("with a sign", -0.06, "the size is right: give the error without its sign."),
        Mistake("scale absmax / 7, code 6", 0.55 - 6 * 0.08, "you have taken the scale absmax / 7: here it is absmax / 8."),
    ),
)

# --- 02.6 ------------------------------------------------------------------------------------------------------------------------


def zero_point_codes(numbers):
    """The codes of a float32 tensor, a uint8 tensor with 0 to 15; the scale; and the zero point, the code that stands for 0."""
    import torch

    low = min(numbers.min().item(), 0.0)
    high = max(numbers.max().item(), 0.0)
    scale = (high - low) / 15
    zero_point = round(-low / scale)
    codes = torch.round(numbers / scale) + zero_point
    return codes.clamp(0, 15).to(torch.uint8), scale, zero_point


def _ranges(seed: int) -> list[tuple]:
    """As for ``_tensors``: nothing that is drawn lies near the middle between two codes."""
    import torch

    pick = random.Random(seed)
    by_hand = [
        [-0.2, 0.07, 0.55, 0.0, 0.31, 0.44, -0.08, 0.18],  # the lesson's
        [2.0, 5.0, 3.2, 4.1],
        [-3.0, -1.2, -0.45],
        [-3.5, 11.5, 4.0],  # both ends half-way between two codes: the upper one needs the clamp
        [-1.3, 13.7, 6.3],  # the smallest is no whole number of steps below 0
    ]
    drawn = []
    for _ in range(4):
        scale, below = pick.uniform(0.01, 3), pick.randint(2, 13)
        low = -below - pick.uniform(0.1, 0.3)
        inner = [pick.randint(1 - below, 13 - below) + pick.uniform(-0.3, 0.3) for _ in range(pick.randrange(8, 20))]
        drawn.append([scale * step for step in [low, low + 15, *inner]])
    return [(torch.tensor(numbers),) for numbers in by_hand + drawn]


def _zero_point_with(numbers, *, include_zero=True, parts=15, codes=None, returned=None, cut=True, dtype="uint8", largest=None):
    """``zero_point_codes`` with one of its parts wrong. ``codes`` and ``returned`` say how to find the codes, and what to return last."""
    import torch

    low, high = (numbers.min().item(), numbers.max().item()) if largest is None else (-largest, largest)
    if include_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / parts
    zero_point = round(-low / scale)
    found = codes(numbers, low, scale, zero_point) if codes else torch.round(numbers / scale) + zero_point
    if cut:
        found = found.clamp(0, 15)
    return found.to(getattr(torch, dtype)), scale, returned(low, scale, zero_point) if returned else zero_point


WRITE_ZERO_POINT = FunctionQuestion(
    id="02.6",
    title="Quantize with a zero point",
    points=4,
    difficulty=4,
    minutes=12,
    name="zero_point_codes",
    answer=zero_point_codes,
    inputs=_ranges,
    tolerance=1e-6,
    hints=(
        "The range first: from the smallest to the largest number, and 0 must be in it: min(smallest, 0) and max(largest, 0). "
        "As Python numbers: numbers.min().item().",
        "scale = (high - low) / 15. The zero point is a code, so it is a whole number: round(-low / scale).",
        "codes = torch.round(numbers / scale) + zero_point, then .clamp(0, 15) and .to(torch.uint8).",
    ),
    mistakes=(
        Mistake(
            "no clamp",
            lambda numbers: _zero_point_with(numbers, cut=False),
            "nearly: one of your codes is 16, where both ends of the range lie half-way between two codes. Cut off with clamp(0, 15).",
        ),
        Mistake(
            "0 not in the range",
            lambda numbers: _zero_point_with(numbers, include_zero=False),
            "all is right where there are numbers on both sides of 0. Where not, stretch the range to 0, or no code stands for 0.",
        ),
        Mistake(
            "16 steps",
            lambda numbers: _zero_point_with(numbers, parts=16),
            "you have divided the range by 16: sixteen values have fifteen gaps between them.",
        ),
        Mistake(
            "14 steps",
            lambda numbers: _zero_point_with(numbers, parts=14),
            "you have divided the range by 14: that is -7 to 7. The codes 0 to 15 have fifteen gaps between them.",
        ),
        Mistake(
            "range from the absmax",
            lambda numbers: _zero_point_with(numbers, largest=numbers.abs().max().item()),
            "your range goes from -absmax to absmax: let it go from the smallest number to the largest, so that no codes are wasted.",
        ),
        Mistake(
            "zero point not rounded",
            lambda numbers: _zero_point_with(
                numbers, codes=lambda x, low, scale, zero: (x / scale - low / scale).round(), returned=lambda low, scale, zero: -low / scale
            ),
            "your zero point is not always a whole number: it is a code, so round it.",
        ),
        Mistake(
            "counted from the smallest",
            lambda numbers: _zero_point_with(numbers, codes=lambda x, low, scale, zero: ((x - low) / scale).round()),
            "your codes count steps from the smallest number: count them from 0, round(x / scale), and add the zero point. "
            "Otherwise 0 doesn't come back as 0.",
        ),
        Mistake(
            "smallest number returned",
            lambda numbers: _zero_point_with(
                numbers, codes=lambda x, low, scale, zero: ((x - low) / scale).round(), returned=lambda low, scale, zero: low
            ),
            "you return the smallest number: the zero point is a code, the one that stands for 0.",
        ),
        Mistake(
            "wrong sign",
            lambda numbers: _zero_point_with(numbers, returned=lambda low, scale, zero: -zero),
            "your zero point has the wrong sign: it is a code, from 0 to 15. Back goes scale * (code - zero point).",
        ),
        Mistake(
            "zero point not added",
            lambda numbers: _zero_point_with(numbers, codes=lambda x, low, scale, zero: (x / scale).round()),
            "you have not added the zero point: what is below 0 needs a code too, and codes begin at 0.",
        ),
        Mistake(
            "codes as floats",
            lambda numbers: _zero_point_with(numbers, dtype="float32"),
            "your codes are right, but they are float32: turn them into torch.uint8.",
        ),
        Mistake(
            "codes as int8",
            lambda numbers: _zero_point_with(numbers, dtype="int8"),
            "your codes are right, but they are int8: these have no sign, so take torch.uint8.",
        ),
    ),
)

# --- 02.7 ------------------------------------------------------------------------------------------------------------------------


def wiped_out(numbers, outlier):
    """How many of the numbers get the code 0 when the outlier joins them, by absmax with the codes -7 to 7."""
    import torch

    scale = max(numbers.abs().max().item(), abs(outlier)) / 7
    return (torch.round(numbers / scale) == 0).sum().item()


def _with_outliers(seed: int) -> list[tuple]:
    import torch

    pick = random.Random(seed)
    numbers = torch.tensor(LESSONS_EIGHT)
    halves = torch.tensor([0.5, -0.5, 0.25, 0.46, 1.5, 0.75, 3.0])
    by_hand = [(numbers, 1.4), (numbers, -1.4), (numbers, 0.01), (halves, 7.0), (halves, -7.0)]
    drawn = []
    for _ in range(4):
        scale = pick.uniform(0.01, 1)
        steps = [pick.choice([-1, 1]) * (pick.randint(0, 3) + pick.uniform(-0.4, 0.4)) for _ in range(30)]
        drawn.append((torch.tensor([scale * step for step in steps]), pick.choice([-7, 7]) * scale))
    return by_hand + drawn


def _wiped_out_with(numbers, absmax, parts=7, nearer_than=0.5, strictly=False):
    """How many numbers are nearer to 0 than so many steps."""
    steps = numbers.abs() / (absmax / parts)
    return ((steps < nearer_than) if strictly else (steps <= nearer_than)).sum().item()


def _absmax_of_all(numbers, outlier):
    return max(numbers.abs().max().item(), abs(outlier))


COUNT_WIPED_OUT = FunctionQuestion(
    id="02.7",
    title="Count what an outlier wipes out",
    points=3,
    difficulty=3,
    minutes=8,
    name="wiped_out",
    answer=wiped_out,
    inputs=_with_outliers,
    tolerance=0.0,
    hints=(
        "The outlier belongs to the tensor: the absmax is that of the numbers and the outlier together.",
        "scale = max(numbers.abs().max().item(), abs(outlier)) / 7. Then round, and count the zeros.",
        "`(torch.round(numbers / scale) == 0).sum().item()` counts them. The lesson's eight weights and 1.4 give 6.",
    ),
    mistakes=(
        Mistake(
            "scale without the outlier",
            lambda numbers, outlier: _wiped_out_with(numbers, numbers.abs().max().item()),
            "your scale is that of the numbers alone: the outlier is one of the tensor's numbers, so it has its part in the absmax.",
        ),
        Mistake(
            "scale of the outlier alone",
            lambda numbers, outlier: _wiped_out_with(numbers, abs(outlier)),
            "your scale is that of the outlier alone: where it is smaller than the largest of the numbers, that one gives the absmax.",
        ),
        Mistake(
            "sign of the outlier",
            lambda numbers, outlier: _wiped_out_with(numbers, max(numbers.abs().max().item(), outlier)),
            "your scale takes no notice of negative outliers: -1.4 stretches the grid as much as 1.4.",
        ),
        Mistake(
            "a whole step",
            lambda numbers, outlier: _wiped_out_with(numbers, _absmax_of_all(numbers, outlier), nearer_than=1, strictly=True),
            "you count what is nearer to 0 than a whole step: from half a step on the nearest code is 1. Round, don't cut off.",
        ),
        Mistake(
            "exactly half a step",
            lambda numbers, outlier: _wiped_out_with(numbers, _absmax_of_all(numbers, outlier), strictly=True),
            "all is right but the halves: exactly half a step goes to the even neighbour, which is 0.",
        ),
        Mistake(
            "absmax / 8",
            lambda numbers, outlier: _wiped_out_with(numbers, _absmax_of_all(numbers, outlier), parts=8),
            "you have divided the absmax by 8: by absmax the largest gets the code 7.",
        ),
        Mistake(
            "absmax / 15",
            lambda numbers, outlier: _wiped_out_with(numbers, _absmax_of_all(numbers, outlier), parts=15),
            "you have divided the absmax by 15: by absmax the largest gets the code 7.",
        ),
        Mistake(
            "what is left",
            lambda numbers, outlier: len(numbers) - wiped_out(numbers, outlier),
            "you have counted what is left: asked is how many get the code 0.",
        ),
        Mistake(
            "the share",
            lambda numbers, outlier: wiped_out(numbers, outlier) / len(numbers),
            "that is the share of the numbers: asked is how many they are.",
        ),
    ),
)

# --- 02.8 ------------------------------------------------------------------------------------------------------------------------

BITS_WITH_ZERO_POINT = NumberQuestion(
    id="02.8",
    title="Count the bits of a zero point",
    points=1,
    difficulty=2,
    minutes=4,
    name="bits_with_zero_point",
    answer=4 + (16 + 4) / 128,
    within=6.5e-3,  # 4.15 and 4.16 are both meant well
    hints=(
        "A block of 128 weights stores 128 codes, one scale and one zero point. How many bits are these three?",
        "128 * 4 + 16 + 4 = 532 bits, for 128 weights.",
    ),
    solution="bits_with_zero_point = 4 + (16 + 4) / 128",
    mistakes=(
        Mistake("zero point forgotten", 4 + 16 / 128, "the zero point is missing: one of 4 bits for each block."),
        Mistake("scale of 32 bits", 4 + 36 / 128, "you have given the scale 32 bits: here it is a float16."),
        Mistake("zero point of 8 bits", 4 + 24 / 128, "you have given the zero point 8 bits: it is a code, and has 4."),
        Mistake("zero point of 16 bits", 4 + 32 / 128, "you have given the zero point 16 bits: it is a code, and has 4."),
        Mistake("blocks of 64", 4 + 20 / 64, "that is for blocks of 64: here 128 weights share a scale and a zero point."),
        Mistake("without the codes", 20 / 128, "that is the share of scale and zero point: add the 4 bits of the code."),
        Mistake("a zero point for each weight", 8 + 16 / 128, "you have given each weight a zero point: each block has one."),
        Mistake("bits of a block", 532, "that is a whole block: divide by its 128 weights."),
    ),
)

# --- 02.9 ------------------------------------------------------------------------------------------------------------------------

JUDGE_THE_ANALOGY = ExplanationQuestion(
    id="02.9",
    title="Judge the analogy",
    points=4,
    difficulty=3,
    minutes=8,
    name="where_the_analogy_breaks",
    hints=(
        "Name the two parts of the picture, palette and brightness map, and what they are in a 4-bit model.",
        "Then remember the shuffled picture. What did the brightness map rely on, and do weights have it?",
    ),
    model_answer=(
        "It is right about the arithmetic. The palette is the codebook of sixteen values, the brightness map holds the scales,\n"
        "one for each block, and a pixel is read back as shade times brightness, as a weight is as value times scale.\n"
        "It is right about the lamp, too: what is far larger than all the rest makes everything black that shares its brightness.\n"
        "It misleads about the reason why a coarse map is enough. In a picture neighbours are alike, and the map follows them:\n"
        "shuffle the pixels, and the error grows, without the lamp too. Weights next to each other are hardly more alike than others.\n"
        "A block keeps an outlier among few, no more.\n"
        "And nothing is restored: what comes back is the nearest value, up to half a step off. Nor is it 1/8 of the size,\n"
        "but 1/7.1 of 32 bits with float32 scales for blocks of 64, and 1/3.6 of the 16 bits in which models are shipped."
    ),
    rubric=(
        (1, "What corresponds: palette and codebook, brightness map and scales of blocks, shade times brightness and dequantizing."),
        (1, "The outlier: what is much brighter than the rest blackens what shares its brightness, and blocks confine that."),
        (1, "The break: the map relies on neighbours that are alike (the shuffled picture), and weights hardly are."),
        (1, "One more break: rounding is not undone; the size is not 1/8; weights have signs; the codebook is not made for the one model."),
    ),
)

QUESTIONS = (
    READ_A_CODE,
    BOUND_THE_ERROR,
    WRITE_INT4,
    ROUND_HALF_TO_EVEN,
    PRICE_OF_MINUS_EIGHT,
    WRITE_ZERO_POINT,
    COUNT_WIPED_OUT,
    BITS_WITH_ZERO_POINT,
    JUDGE_THE_ANALOGY,
)
