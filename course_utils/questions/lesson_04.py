"""The questions of lesson 04, choose sixteen values.

torch is imported where it is needed and not above, so that ``course_utils.checks`` is there at once in an exercise that does without it.
"""

from __future__ import annotations

import random
import struct
from statistics import NormalDist, median

from course_utils.questions.kinds import ExplanationQuestion, FunctionQuestion, Mistake, NumberQuestion

quantile = NormalDist().inv_cdf

# --- 04.1 ------------------------------------------------------------------------------------------------------------------------

ERROR_OF_A_ZERO = NumberQuestion(
    id="04.1",
    title="Round a zero without a zero",
    points=1,
    difficulty=2,
    minutes=6,
    name="error_of_zero",
    answer=2.5 * quantile(8.5 / 16) / quantile(15.5 / 16),
    within=5e-4,
    hints=(
        "Which of the sixteen values are next to 0? Their i are 7 and 8, and one is the other with a minus sign.",
        "The value for i = 8 is quantile(8.5 / 16), divided by the largest, quantile(15.5 / 16). Then multiply by the absmax.",
    ),
    solution="""from statistics import NormalDist

quantile = NormalDist().inv_cdf
error_of_zero = 2.5 * quantile(8.5 / 16) / quantile(15.5 / 16)""",
    mistakes=(
        Mistake(
            "an exact zero", 0.0, "NF4 has an exact 0, the formula has none: its two values in the middle are as far from 0 on either side."
        ),
        Mistake(
            "in units of the absmax",
            quantile(8.5 / 16) / quantile(15.5 / 16),
            "that is the value nearest to 0: multiply it by the absmax of the block, 2.5.",
        ),
        Mistake(
            "not divided by the largest",
            2.5 * quantile(8.5 / 16),
            "that is the quantile times the absmax: the quantiles are divided by the largest of them first.",
        ),
        Mistake("neither", quantile(8.5 / 16), "that is the quantile alone: divide it by the largest one, and multiply by the absmax."),
        Mistake(
            "the distance between the two",
            5 * quantile(8.5 / 16) / quantile(15.5 / 16),
            "that is the distance between the two values in the middle: 0 is half-way.",
        ),
        Mistake(
            "one place too far",
            2.5 * quantile(9.5 / 16) / quantile(15.5 / 16),
            "that is the value after it: counted from 0, the first one above the middle is i = 8.",
        ),
        Mistake(
            "with a minus sign",
            -2.5 * quantile(8.5 / 16) / quantile(15.5 / 16),
            "the size is right: asked is how large the error is, without a sign.",
        ),
        Mistake("NF4's neighbour", 2.5 * 0.07958, "that is the first value above 0 of NF4: the question is about the formula."),
    ),
)

# --- 04.2 ------------------------------------------------------------------------------------------------------------------------


def normal_float(bits):
    """The ascending values of NF4's rule for so many bits, without rounding to float32."""
    from statistics import NormalDist

    quantile = NormalDist().inv_cdf
    count = 2**bits
    outermost = ((1 - 0.5 / count) + (1 - 0.5 / (count - 1))) / 2

    def side(steps):
        return [quantile(outermost + (0.5 - outermost) * i / steps) for i in range(steps)]

    positive, negative = side(count // 2), [-x for x in side(count // 2 - 1)]
    return sorted(x / positive[0] for x in [*negative, 0.0, *positive])


def _normal_float_with(bits, *, outermost=None, positive=None, negative=None, zeros=1, divided=True, ascending=True):
    """``normal_float`` with another outermost probability, other counts on the two sides, or something left out."""
    count = 2**bits
    p = ((1 - 0.5 / count) + (1 - 0.5 / (count - 1))) / 2 if outermost is None else outermost(count)
    up = count // 2 if positive is None else positive(count)
    down = count // 2 - 1 if negative is None else negative(count)
    above = [quantile(p + (0.5 - p) * i / up) for i in range(up)]
    below = [-quantile(p + (0.5 - p) * i / down) for i in range(down)]
    values = [x / (above[0] if divided else 1) for x in [*below, *[0.0] * zeros, *above]]
    return sorted(values) if ascending else values


ANY_NUMBER_OF_BITS = FunctionQuestion(
    id="04.2",
    title="Make a NormalFloat of any number of bits",
    points=4,
    difficulty=4,
    minutes=15,
    name="normal_float",
    answer=normal_float,
    inputs=lambda seed: [(bits,) for bits in (2, 3, 4, 5, 6)],
    hints=(
        "Make each side by itself: even steps of probability from the outermost one towards 0.5, which itself is left out, then quantiles.",
        "For 3 bits: 8 middles of equal shares end at 15/16, 7 end at 13/14; the outermost probability is the mean of the two. "
        "4 steps on the positive side, 3 on the negative one.",
        "The i-th of n steps is outermost + (0.5 - outermost) * i / n, for i from 0 to n - 1. Add 0, divide by the largest, sort.",
    ),
    mistakes=(
        Mistake(
            "the formula",
            lambda bits: [quantile((i + 0.5) / 2**bits) / quantile(1 - 0.5 / 2**bits) for i in range(2**bits)],
            "that is the quantile in the middle of each equal share: it has no exact 0. Make each side by itself.",
        ),
        Mistake(
            "the other side",
            lambda bits: [-x for x in reversed(normal_float(bits))],
            "your negative side has one value more: it is the positive one that gets it.",
        ),
        Mistake(
            "no extra value",
            lambda bits: _normal_float_with(bits, positive=lambda count: count // 2 - 1),
            "both of your sides have as many values, so one code is left over: the positive side gets it.",
        ),
        Mistake(
            "two zeros",
            lambda bits: _normal_float_with(bits, zeros=2),
            "you have 0 twice: both sides end there, and it is kept once.",
        ),
        Mistake(
            "no zero",
            lambda bits: _normal_float_with(bits, zeros=0),
            "the 0 is missing: the steps stop before 0.5, so add it.",
        ),
        Mistake(
            "outermost of all",
            lambda bits: _normal_float_with(bits, outermost=lambda count: 1 - 0.5 / count),
            "you start both sides at the last middle of 2**bits shares (31/32 for 4 bits): take its mean with that of one share less.",
        ),
        Mistake(
            "outermost of one less",
            lambda bits: _normal_float_with(bits, outermost=lambda count: 1 - 0.5 / (count - 1)),
            "you start both sides at the last middle of 2**bits - 1 shares (29/30 for 4 bits): take its mean with that of 2**bits shares.",
        ),
        Mistake(
            "always that of four bits",
            lambda bits: _normal_float_with(bits, outermost=lambda count: 0.9677083),
            "your outermost probability is 0.9677083 for any number of bits: it comes from the number of values, 2**bits.",
        ),
        Mistake(
            "not divided",
            lambda bits: _normal_float_with(bits, divided=False),
            "those are the quantiles themselves: divide them by the largest, so that the values end at -1 and 1.",
        ),
        Mistake(
            "not sorted",
            lambda bits: _normal_float_with(bits, ascending=False),
            "the values are right, but not in order: sort them, the smallest first.",
        ),
        Mistake(
            "even values",
            lambda bits: (
                [i / (2 ** (bits - 1) - 1) - 1 for i in range(2 ** (bits - 1) - 1)]
                + [i / 2 ** (bits - 1) for i in range(2 ** (bits - 1) + 1)]
            ),
            "your values are evenly spaced: even are the steps of probability, and the values are their quantiles.",
        ),
    ),
)

# --- 04.3 ------------------------------------------------------------------------------------------------------------------------


def nf4_codebook():
    """The sixteen values of NF4, ascending, as float32 has them."""
    from statistics import NormalDist

    from course_utils.codebooks import float32, float32_steps

    quantile = NormalDist().inv_cdf
    positive = [float32(quantile(p)) for p in float32_steps(0.9677083, 0.5, 9)[:-1]]
    negative = [-float32(quantile(p)) for p in float32_steps(0.9677083, 0.5, 8)[:-1]]
    return sorted(float32(x / positive[0]) for x in [*negative, 0.0, *positive])


def _float32(number):
    return struct.unpack("<f", struct.pack("<f", number))[0]


def _even_steps(start, end, count):
    return [start + (end - start) * i / (count - 1) for i in range(count)]


def _forward_steps(start, end, count):
    step = _float32((_float32(end) - _float32(start)) / (count - 1))
    return [_float32(_float32(start) + step * i) for i in range(count)]


def _nf4_with(*, steps=None, inner=_float32, last=_float32, outermost=0.9677083, sides=(9, 8), ascending=True):
    """``nf4_codebook`` with other steps, without one of the roundings, or with another outermost probability."""
    from course_utils.codebooks import float32_steps

    steps = steps or float32_steps
    positive = [inner(quantile(p)) for p in steps(outermost, 0.5, sides[0])[:-1]]
    negative = [-inner(quantile(p)) for p in steps(outermost, 0.5, sides[1])[:-1]]
    values = [last(x / positive[0]) for x in [*negative, 0.0, *positive]]
    return sorted(values) if ascending else values


NF4_IN_EVERY_BIT = FunctionQuestion(
    id="04.3",
    title="Derive NF4 in every bit",
    points=3,
    difficulty=3,
    minutes=10,
    name="nf4_codebook",
    answer=nf4_codebook,
    inputs=lambda seed: [()],
    tolerance=0.0,
    hints=(
        "Nine numbers from 0.9677083 to 0.5 for the positive side, eight for the negative one; the last of each, 0.5, is left out. "
        "Then quantiles, quotients, and an exact 0.",
        "Three things are rounded to float32: the steps (float32_steps does it), each quantile, and each quotient.",
    ),
    mistakes=(
        Mistake(
            "no rounding at all",
            lambda: _nf4_with(steps=_even_steps, inner=float, last=float),
            "the rule is right, but nothing is rounded to float32: take float32_steps, and round each quantile and each quotient.",
        ),
        Mistake(
            "only the end rounded",
            lambda: _nf4_with(steps=_even_steps, inner=float),
            "six of the sixteen are equal: you have rounded at the end alone. Take float32_steps, and round each quantile too.",
        ),
        Mistake(
            "quantiles not rounded",
            lambda: _nf4_with(inner=float),
            "ten of the sixteen are equal: each quantile is to be rounded before it is divided.",
        ),
        Mistake(
            "steps not rounded",
            lambda: _nf4_with(steps=_even_steps),
            "eight of the sixteen are equal: the steps are to be taken in float32 too, with float32_steps.",
        ),
        Mistake(
            "end not rounded",
            lambda: _nf4_with(last=float),
            "nearly: what is still to be rounded to float32 is each quotient, at the very end.",
        ),
        Mistake(
            "steps from the start alone",
            lambda: _nf4_with(steps=_forward_steps),
            "one of the steps is off: torch.linspace counts the second half back from the end, as float32_steps does.",
        ),
        Mistake(
            "the exact mean",
            lambda: _nf4_with(outermost=(31 / 32 + 29 / 30) / 2),
            "four of the sixteen are equal: start from 0.9677083, with seven digits, and not from the exact mean.",
        ),
        Mistake(
            "31/32", lambda: _nf4_with(outermost=31 / 32), "you start at 31/32: the outermost probability is 0.9677083, a little less."
        ),
        Mistake(
            "the other side",
            lambda: _nf4_with(sides=(8, 9)),
            "your negative side has one value more: it is the positive one that has eight.",
        ),
        Mistake("not sorted", lambda: _nf4_with(ascending=False), "the values are right, but not in order: sort them, the smallest first."),
        Mistake(
            "the formula",
            lambda: [_float32(quantile((i + 0.5) / 16) / quantile(15.5 / 16)) for i in range(16)],
            "that is quantile((i + 0.5) / 16), which isn't NF4: it has no exact 0.",
        ),
    ),
)

# --- 04.4 ------------------------------------------------------------------------------------------------------------------------

NF4_AT_WORST = NumberQuestion(
    id="04.4",
    title="Find NF4's worst case",
    points=2,
    difficulty=2,
    minutes=6,
    name="worst_error",
    answer=(1 - 0.6961928009986877) / 2,
    within=5e-4,
    hints=(
        "A weight lies between two neighbouring values, and the nearer one is at most half of the distance between them away.",
        "Look for the two neighbours that are furthest apart. They are at one end: -1 and -0.6962.",
    ),
    solution="worst_error = (1 - 0.6962) / 2  # half-way between -1 and -0.6962",
    mistakes=(
        Mistake(
            "the whole gap",
            1 - 0.6961928,
            "that is the distance between -1 and its neighbour: the nearer of the two is at most half of it away.",
        ),
        Mistake(
            "the positive side", (1 - 0.7229568) / 2, "that is the widest gap of the positive side: on the other side there is a wider one."
        ),
        Mistake("int4", 1 / 14, "that is int4, whose gaps are all 1/7: NF4's are wider at the ends."),
        Mistake("the gap of int4", 1 / 7, "that is the gap of int4: asked is half of the widest gap of NF4."),
        Mistake("fp4", 1 / 6, "that is FP4, between 2/3 and 1: asked is NF4."),
        Mistake("next to zero", 0.0910500 / 2, "that is between 0 and its lower neighbour, where the gaps are narrow: look at the ends."),
        Mistake(
            "root mean square",
            (1 - 0.6961928) / 12**0.5,
            "that is what the error is in this gap on (root mean square) average: asked is the largest.",
        ),
        Mistake("0.5", 0.5, "that would be half a step of length 1: look how far apart NF4's values are."),
    ),
)

# --- 04.5 ------------------------------------------------------------------------------------------------------------------------


def fp4_value(code):
    """The value of an FP4 code of bitsandbytes, from -1 to 1."""
    sign = -1.0 if code & 0b1000 else 1.0
    exponent, mantissa = (code & 0b0110) >> 1, code & 0b0001
    if exponent == 0:
        return sign * mantissa / 16 / 12
    return sign * (1 + mantissa / 2) * 2 ** (4 - exponent) / 12


def _fp4_with(code, *, exponent_of=lambda e: 4 - e, hidden=1, at_zero=lambda m: m / 16, divisor=12, signed=True):
    """``fp4_value`` with one of its parts wrong."""
    sign = -1.0 if signed and code & 0b1000 else 1.0
    exponent, mantissa = (code & 0b0110) >> 1, code & 0b0001
    magnitude = at_zero(mantissa) if exponent == 0 else (hidden + mantissa / 2) * 2.0 ** exponent_of(exponent)
    return sign * magnitude / divisor


READ_FP4 = FunctionQuestion(
    id="04.5",
    title="Read FP4",
    points=2,
    difficulty=2,
    minutes=8,
    name="fp4_value",
    answer=fp4_value,
    inputs=lambda seed: [(code,) for code in (0b0011, 0b0001, 0b1011, *range(16))],
    tolerance=1e-6,
    hints=(
        "Cut the four bits: code & 0b1000 is the sign, (code & 0b0110) >> 1 the exponent, code & 0b0001 the mantissa.",
        "With exponent 1 to 3 the size, times 12, is (1 + mantissa / 2) * 2 ** (4 - exponent): 12 for the code 0011.",
        "Exponent 0 is an `if` of its own: 0 for mantissa 0, and 1/16, times 1/12, for mantissa 1.",
    ),
    mistakes=(
        Mistake(
            "an ordinary float",
            lambda code: _fp4_with(code, exponent_of=lambda e: e - 1, at_zero=lambda m: m / 2, divisor=6),
            "that is E2M1, the ordinary float of four bits: in bitsandbytes the exponent counts downwards.",
        ),
        Mistake(
            "downwards, but ordinary near 0",
            lambda code: _fp4_with(code, at_zero=lambda m: float(m)),
            "only exponent 0 is left: the code 0001 is 1/16 of a twelfth in bitsandbytes, and not a whole twelfth.",
        ),
        Mistake(
            "upwards, with the tiny value",
            lambda code: _fp4_with(code, exponent_of=lambda e: e),
            "your exponent counts upwards: exponent 01 is the largest power of two, exponent 11 the smallest.",
        ),
        Mistake(
            "sign forgotten",
            lambda code: _fp4_with(code, signed=False),
            "your values are never negative: the first of the four bits is the sign.",
        ),
        Mistake("times 12", lambda code: _fp4_with(code, divisor=1), "12 times what is due: the largest value is 1."),
        Mistake(
            "hidden one forgotten",
            lambda code: _fp4_with(code, hidden=0),
            "unless the exponent is 0, the mantissa is 1 + mantissa / 2: the hidden one is missing.",
        ),
        Mistake(
            "hidden one at exponent 0",
            lambda code: _fp4_with(code, at_zero=lambda m: (1 + m / 2) * 16),
            "exponent 0 isn't a power of two like the others: its two codes stand for 0 and 1/192.",
        ),
        Mistake(
            "1/16 undivided",
            lambda code: _fp4_with(code, at_zero=lambda m: m * 12 / 16),
            "the code 0001 is 1/16 before it is divided by 12, as all others are.",
        ),
        Mistake(
            "one power too low",
            lambda code: _fp4_with(code, exponent_of=lambda e: 3 - e),
            "all but the tiniest are half of what is due: exponent 01 stands for 2 ** 3, so that 1.5 * 8 makes 12.",
        ),
    ),
)

# --- 04.6 ------------------------------------------------------------------------------------------------------------------------

CODE_IN_FP4 = NumberQuestion(
    id="04.6",
    title="Find a code in FP4",
    points=1,
    difficulty=2,
    minutes=5,
    name="fp4_code",
    answer=0b1010,
    within=1e-6,
    hints=(
        "Divide by the absmax first: -0.6. Which of FP4's values is nearest?",
        "0.6 lies between 0.5 and 0.6667, nearer to the latter, which is 8 of 12. Which exponent and which mantissa make 8? And the sign?",
        "8 is 1 times 2 ** 3: exponent 01, mantissa 0. With the sign the four bits are 1010.",
    ),
    solution="fp4_code = 0b1010  # -1.8 / 3 = -0.6, nearest to -8/12: sign 1, exponent 01, mantissa 0",
    mistakes=(
        Mistake(
            "sign forgotten", 0b0010, "2 is 0010, the code of 2/3: the weight is negative, and the sign is the first of the four bits."
        ),
        Mistake("written in binary", 1010, "those are the right bits: give the number that they make, or write 0b1010."),
        Mistake("E2M1", 0b1110, "1110 would be -2/3 in E2M1: in bitsandbytes the exponent counts downwards."),
        Mistake("the other neighbour", 0b1101, "1101 is -0.5, which is 0.1 away from -0.6: the other neighbour, -0.6667, is nearer."),
        Mistake(
            "the place", 1, "1 is its place in the order of the values: FP4's codes are not in that order. Put the four bits together."
        ),
        Mistake("not divided", 0b1011, "1011 is -1: divide the weight by the absmax first, -1.8 / 3."),
        Mistake("int4", 0b1100, "1100 would be -4 in int4, nearest to -0.6 * 7: in FP4 it is -1/3. Look for the value nearest to -0.6."),
        Mistake("the value", -2 / 3, "that is the value: asked is its code, a whole number from 0 to 15."),
        Mistake("the scaled weight", -0.6, "that is the weight divided by the absmax: asked is the code of the value nearest to it."),
    ),
)

# --- 04.7 ------------------------------------------------------------------------------------------------------------------------


def nearest_codes(scaled, codebook):
    """For each number the place of the nearest value in an ascending codebook, as uint8; half-way the lower one."""
    import torch

    thresholds = (codebook[:-1] + codebook[1:]) / 2
    codes = torch.zeros(len(scaled), dtype=torch.uint8)
    for threshold in thresholds:
        codes += scaled > threshold
    return codes


def _scaled_and_codebooks(seed: int) -> list[tuple]:
    """By hand; then numbers on a grid, where halves are exact and occur; then NF4, away from its thresholds."""
    import torch

    pick = random.Random(seed)
    by_hand = [
        (torch.tensor([0.1, -0.6, 0.125]), torch.tensor([-1.0, 0.0, 0.25, 1.0])),
        (torch.tensor([-1.0, 0.7, 0.2, 0.9, 1.0]), torch.tensor([-1.0, 0.0, 0.25, 1.0])),
    ]
    drawn = []
    for _ in range(4):
        inner = pick.sample([k for k in range(-31, 32) if k], 13)
        codebook = torch.tensor(sorted([-32, 0, 32, *inner])) / 32
        drawn.append((torch.tensor([pick.randrange(-64, 65) for _ in range(200)] + [-64, 64]) / 64, codebook))
    nf4 = torch.tensor(nf4_codebook())
    numbers = torch.tensor([pick.uniform(-1, 1) for _ in range(300)])
    distance = (numbers.unsqueeze(1) - (nf4[:-1] + nf4[1:]) / 2).abs().amin(dim=1)
    return [*by_hand, *drawn, (numbers[distance > 1e-5], nf4)]


def _codes_by_distance(scaled, codebook, dtype=None):
    import torch

    return (scaled.unsqueeze(1) > (codebook[:-1] + codebook[1:]) / 2).sum(dim=1).to(dtype or torch.uint8)


def _half_way_up(scaled, codebook):
    import torch

    return (scaled.unsqueeze(1) >= (codebook[:-1] + codebook[1:]) / 2).sum(dim=1).to(torch.uint8)


def _value_below(scaled, codebook):
    import torch

    return (scaled.unsqueeze(1) >= codebook[1:]).sum(dim=1).to(torch.uint8)


def _value_above(scaled, codebook):
    import torch

    return (scaled.unsqueeze(1) > codebook[:-1]).sum(dim=1).to(torch.uint8)


def _even_grid(scaled, codebook):
    import torch

    return torch.round((scaled + 1) / 2 * (len(codebook) - 1)).to(torch.uint8)


def _int64(scaled, codebook):
    import torch

    return _codes_by_distance(scaled, codebook, torch.int64)


FIND_THE_NEAREST = FunctionQuestion(
    id="04.7",
    title="Find the nearest codes",
    points=3,
    difficulty=3,
    minutes=10,
    name="nearest_codes",
    answer=nearest_codes,
    inputs=_scaled_and_codebooks,
    hints=(
        "Lay a threshold half-way between each two neighbours of the codebook. The code is the number of thresholds below the number.",
        "thresholds = (codebook[:-1] + codebook[1:]) / 2. Start from zeros of dtype torch.uint8, and add scaled > threshold for each.",
    ),
    mistakes=(
        Mistake(
            "half-way up",
            _half_way_up,
            "only numbers half-way between two values are left: they belong to the lower one. Compare with >, not with >=.",
        ),
        Mistake("the value below", _value_below, "you take the nearest value below the number: the one above may be nearer."),
        Mistake("the value above", _value_above, "you take the nearest value above the number: the one below may be nearer."),
        Mistake(
            "counted from one",
            lambda scaled, codebook: nearest_codes(scaled, codebook) + 1,
            "your codes are one too high: the lowest value has the code 0.",
        ),
        Mistake(
            "from the other end",
            lambda scaled, codebook: len(codebook) - 1 - nearest_codes(scaled, codebook),
            "you count from the largest value: count the thresholds below the number, so that -1 gets the code 0.",
        ),
        Mistake("int64", _int64, "the codes are right, but each takes eight bytes: return dtype torch.uint8."),
        Mistake(
            "values",
            lambda scaled, codebook: codebook[nearest_codes(scaled, codebook).int()],
            "you have returned the nearest values: asked are their codes, the places in the codebook.",
        ),
        Mistake("an even grid", _even_grid, "you round to even steps: the values of the codebook are not evenly spaced."),
    ),
)

# --- 04.8 ------------------------------------------------------------------------------------------------------------------------


def lloyd_round(numbers, values):
    """One round of Lloyd's algorithm: the values, each moved to the mean of the numbers nearest to it."""
    groups = [[] for _ in values]
    for x in numbers:
        distances = [abs(x - value) for value in values]
        groups[distances.index(min(distances))].append(x)
    return [sum(group) / len(group) if group else value for group, value in zip(groups, values, strict=True)]


def _numbers_and_values(seed: int) -> list[tuple[list[float], list[float]]]:
    """By hand, with an empty group and halves among them; then whole numbers drawn, where halves are frequent and exact."""
    pick = random.Random(seed)
    by_hand = [
        ([0, 1, 2, 9, 10], [0, 1]),
        ([0, 1, 2, 9, 10], [0, 5.5]),
        ([1, 2, 4], [0, 2, 100]),
        ([-3, -1, 1, 1], [-2, 0, 2]),
    ]
    drawn = [([pick.randrange(-40, 41) for _ in range(30)], sorted(pick.sample(range(-40, 41, 2), 6))) for _ in range(6)]
    return by_hand + drawn


def _lloyd_with(numbers, values, *, centre=lambda group: sum(group) / len(group), empty=lambda value: value, tie_up=False):
    """``lloyd_round`` with another middle of a group, another rule for halves, or for groups that are empty."""
    groups = [[] for _ in values]
    for x in numbers:
        distances = [abs(x - value) for value in values]
        place = distances.index(min(distances))
        if tie_up:
            place = len(values) - 1 - distances[::-1].index(min(distances))
        groups[place].append(x)
    return [centre(group) if group else empty(value) for group, value in zip(groups, values, strict=True)]


def _half_the_way(numbers, values):
    return [(old + new) / 2 for old, new in zip(values, lloyd_round(numbers, values), strict=True)]


def _while_moving(numbers, values):
    """Moves a value as soon as its group is known, so that the next group is found with it."""
    values = list(values)
    for place in range(len(values)):
        distances = [[abs(x - value) for value in values] for x in numbers]
        group = [x for x, d in zip(numbers, distances, strict=True) if d.index(min(d)) == place]
        if group:
            values[place] = sum(group) / len(group)
    return values


ONE_ROUND_OF_LLOYD = FunctionQuestion(
    id="04.8",
    title="Improve a codebook",
    points=3,
    difficulty=3,
    minutes=12,
    name="lloyd_round",
    answer=lloyd_round,
    inputs=_numbers_and_values,
    hints=(
        "Two steps: first make a group of numbers for each value, then move each value to the mean of its group.",
        "Find the groups with the old values, all of them, before any value moves. [0, 1, 2, 9, 10] and [0, 1] must give [0, 5.5].",
        "A value whose group is empty stays where it is: there is no mean of nothing.",
    ),
    mistakes=(
        Mistake(
            "empty becomes 0",
            lambda numbers, values: _lloyd_with(numbers, values, empty=lambda value: 0.0),
            "a value to which no number is nearest becomes 0 in yours: let it stay where it is.",
        ),
        Mistake(
            "empty is dropped",
            lambda numbers, values: [x for x in _lloyd_with(numbers, values, empty=lambda value: None) if x is not None],
            "a value to which no number is nearest is gone in yours: let it stay where it is, so that there are as many values as before.",
        ),
        Mistake(
            "half-way up",
            lambda numbers, values: _lloyd_with(numbers, values, tie_up=True),
            "only numbers half-way between two values are left: they belong to the lower one.",
        ),
        Mistake(
            "median",
            lambda numbers, values: _lloyd_with(numbers, values, centre=median),
            "you have taken the median of each group: the smallest sum of squares is at the mean.",
        ),
        Mistake(
            "middle of the range",
            lambda numbers, values: _lloyd_with(numbers, values, centre=lambda group: (min(group) + max(group)) / 2),
            "you have taken the middle between the smallest and the largest of each group: take the mean of all.",
        ),
        Mistake(
            "sums",
            lambda numbers, values: _lloyd_with(numbers, values, centre=sum),
            "those are the sums of the groups: divide by how many they are.",
        ),
        Mistake(
            "two rounds",
            lambda numbers, values: lloyd_round(numbers, lloyd_round(numbers, values)),
            "you have gone two rounds: one is asked for.",
        ),
        Mistake(
            "half the way",
            _half_the_way,
            "you have moved each value half of the way: move it to the mean itself.",
        ),
        Mistake(
            "moved too early",
            _while_moving,
            "you move a value before all groups are found: find all of them with the old values first.",
        ),
        Mistake(
            "unmoved",
            lambda numbers, values: list(values),
            "no value has moved: each goes to the mean of the numbers that are nearest to it.",
        ),
    ),
)

# --- 04.9 ------------------------------------------------------------------------------------------------------------------------

WHY_NF4 = ExplanationQuestion(
    id="04.9",
    title="Judge a sentence by its figures",
    points=4,
    difficulty=3,
    minutes=10,
    name="why_nf4",
    hints=(
        'Two things are claimed: that nf4 is better, and why. Look at each row of the table in "Which one wins?" for both.',
        "If the reason were right, what would happen on uniform numbers? Which of the three codebooks gains there? And what makes fp4 bad?",
    ),
    model_answer=(
        "That nf4 is better than fp4 holds for all that the lesson measured: on normal numbers the relative squared error is 0.0085\n"
        "against 0.0149, and it is also smaller on heavy-tailed numbers and in every matrix of abacus.\n"
        "The reason doesn't hold. On uniform numbers nf4 is better than fp4 too, 0.0083 against 0.0123.\n"
        "What the distribution decides is between nf4 and int4: on uniform numbers int4 has 0.0049, since even steps suit them.\n"
        "fp4 is bad for a reason of its own: between 1/192 and 1/6 it has no value, where a third of the scaled normal numbers lie.\n"
        "With 1/12 in place of 1/192, as in E2M1, its error on normal numbers is 0.0112, less than that of int4."
    ),
    rubric=(
        (1, "The comparison holds: nf4 has the smaller error on all four kinds of weights, with at least one pair of figures."),
        (1, "The reason does not: on uniform (or heavy-tailed) numbers, too, nf4 beats fp4."),
        (1, "Normal or uniform decides between nf4 and int4, which wins on uniform numbers."),
        (1, "Why fp4 is bad: no value between 1/192 and 1/6, or its value 1/192 is almost 0; E2M1 is better for that reason."),
    ),
)

QUESTIONS = (
    ERROR_OF_A_ZERO,
    ANY_NUMBER_OF_BITS,
    NF4_IN_EVERY_BIT,
    NF4_AT_WORST,
    READ_FP4,
    CODE_IN_FP4,
    FIND_THE_NEAREST,
    ONE_ROUND_OF_LLOYD,
    WHY_NF4,
)
