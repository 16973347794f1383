"""Codebooks: the sixteen values that four bits can name, and where they come from.

First met in lesson 04. A *code* is a number from 0 to 15; a *codebook* says which value each code stands for.
Values lie between -1 and 1 (int4's unused code 8 aside), and a block of weights is multiplied by its scale to get from there to the
weights (see `quantize`).
"""

from __future__ import annotations

import difflib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

# --- int4: evenly spaced ---


def int4_value(code: int) -> float:
    """The value of an int4 code: the four bits are an integer in two's complement, and 7 is the largest.

    -8, the code 0b1000, has no positive partner. Quantizing never yields it: its value lies beyond -1, where no scaled weight is.

    >>> int4_value(0b0111), int4_value(0b0000), int4_value(0b1001)
    (1.0, 0.0, -1.0)
    """
    integer = code - 16 if code >= 8 else code
    return integer / 7


# --- FP4: a floating-point number of four bits ---


def fp4_value(code: int) -> float:
    """The value of an FP4 code, read bit by bit: one bit of sign, two of exponent, one of mantissa.

    The exponent counts downwards, so codes are not in the order of their values. Exponent 0 is for numbers near zero: 0 and 1/192.
    There are two zeros, 0b0000 and 0b1000, so the sixteen codes name fifteen values. The second is no minus zero here, as in
    bitsandbytes' own table; some of its kernels, depending on device, CPU and shape, read it as -0.0.

    >>> [round(12 * fp4_value(code), 4) for code in range(8)]
    [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0]
    >>> fp4_value(0b1011), fp4_value(0b1000)
    (-1.0, 0.0)

    Source: `get_4bit_type` of bitsandbytes.
    """
    sign = -1.0 if code & 0b1000 else 1.0
    exponent = (code & 0b0110) >> 1
    mantissa = code & 0b0001
    magnitude = mantissa / 16 if exponent == 0 else (1 + mantissa / 2) * 2 ** (4 - exponent)
    return sign * magnitude / 12 + 0.0  # -0.0 + 0.0 is 0.0


# --- NF4: quantiles of the normal distribution ---

OUTERMOST = 0.9677083
"""The probability below NF4's largest value, before it is stretched to 1: the mean of 31/32 and 29/30, to seven digits.

Sixteen quantiles in the middle of equal parts would end at 31/32, fifteen at 29/30. One half of NF4 has as many values as the half of
sixteen quantiles has, the other as many as the half of fifteen. The digits that were cut off show in the last bits of some values.
"""


def nf4_values() -> list[float]:
    """NF4's sixteen values, ascending: quantiles of the normal distribution, stretched so that the outermost are -1 and 1.

    Eight quantiles above the middle, seven below it, and an exact zero. Every step is rounded to float32, as bitsandbytes once
    rounded it; without that, ten of the sixteen values differ in their last bits.

    >>> [round(value, 3) for value in nf4_values()[7:]]
    [0.0, 0.08, 0.161, 0.246, 0.338, 0.441, 0.563, 0.723, 1.0]

    Source: QLoRA (arXiv 2305.14314), section 3 and appendix E; `create_normal_map` of bitsandbytes.
    """
    quantile = NormalDist().inv_cdf
    positive = [float32(quantile(p)) for p in float32_steps(OUTERMOST, 0.5, 9)[:-1]]
    negative = [-float32(quantile(p)) for p in float32_steps(OUTERMOST, 0.5, 8)[:-1]]
    largest = positive[0]
    return sorted(float32(value / largest) for value in [*negative, 0.0, *positive])


def float32(number: float) -> float:
    """Round a Python number, which has 64 bits, to the nearest float32.

    >>> float32(0.1)
    0.10000000149011612
    """
    return struct.unpack("<f", struct.pack("<f", number))[0]


def float32_steps(start: float, end: float, count: int) -> list[float]:
    """`count` numbers from start to end in even steps, the step and each number rounded to float32, as `torch.linspace` has them.

    The first half is counted from the start, the second half from the end, so that both ends are exact.

    >>> float32_steps(0.0, 1.0, 5)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    start, end = float32(start), float32(end)
    step = float32(float32(end - start) / (count - 1))
    forwards = [float32(start + step * i) for i in range(count // 2)]
    backwards = [float32(end - step * i) for i in range(count - count // 2)]
    return forwards + backwards[::-1]


# --- The 8-bit codebook that double quantization uses for scales ---


def dynamic_map() -> Float[Tensor, " 256"]:
    """The 256 values, ascending, of the 8-bit codebook for scales.

    Seven powers of ten, from a millionth to 1. The k-th has the range from 0.1 to 1 times itself, cut into 2**k equal parts, and the
    middle of each part is a value: one for the smallest, 64 for the largest. All of them with both signs, then 0 and 1.

    >>> [f"{value:.3g}" for value in dynamic_map()[[0, 126, 127, 128, 254, 255]].tolist()]
    ['-0.993', '-5.5e-07', '0', '5.5e-07', '0.993', '1']

    Source: 8-Bit Approximations for Parallelism in Deep Learning (arXiv 1511.04561); `create_dynamic_map` of bitsandbytes.
    """
    middles = []
    for k in range(7):
        edges = torch.linspace(0.1, 1, 2**k + 1)
        middles.append((edges[:-1] + edges[1:]) / 2 * 10 ** (k - 6))
    positive = torch.cat(middles)
    return torch.cat([-positive, torch.tensor([0.0, 1.0]), positive]).sort().values


# --- What quantizing needs to know of a codebook ---


@dataclass(frozen=True, eq=False)
class Codebook:
    """Sixteen values by code, with a name.

    Attributes:
        name: ``nf4``, ``fp4``, ``int4``, or ``own`` for a learner's own.
        values: the value of each code, float32 on the CPU.

    Raises:
        TypeError: values is no tensor.
        ValueError: values has another dtype, shape or device, or is not finite. `resolve_codebook` makes a codebook of other numbers.
    """

    name: str
    values: Float32[Tensor, " 16"]

    def __post_init__(self) -> None:
        values = self.values
        if not isinstance(values, Tensor):
            raise TypeError(f"values is a {type(values).__name__}; it must be a torch.Tensor.")
        if values.dtype != torch.float32 or values.shape != (16,) or values.device.type != "cpu":
            raise ValueError(
                f"values has dtype {values.dtype} and the shape {tuple(values.shape)} on device {values.device}; "
                "a codebook needs torch.float32 and (16,) on cpu."
            )
        if not torch.isfinite(values).all():
            raise ValueError("values has NaN or infinities; all must be finite: a weight read back from one that isn't would be no number.")

    def codes_in_order(self) -> UInt8[Tensor, " 16"]:
        """The sixteen codes in the order of their values, the smallest value first. Of FP4's two zeros, code 0 comes first.

        >>> CODEBOOKS["fp4"].codes_in_order().tolist()
        [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3]
        """
        return torch.argsort(self.values, stable=True).to(torch.uint8)

    def thresholds(self) -> list[float]:
        """The fifteen points half-way between neighbouring values, rounded to float32. A number on such a point belongs to the lower value.

        >>> [round(7 * point, 4) for point in CODEBOOKS["int4"].thresholds()[7:11]]
        [-0.5, 0.5, 1.5, 2.5]
        """
        values = self.values.sort().values
        return ((values[:-1] + values[1:]) / 2).tolist()


CODEBOOKS = {
    "nf4": Codebook("nf4", torch.tensor(nf4_values(), device="cpu")),
    "fp4": Codebook("fp4", torch.tensor([fp4_value(code) for code in range(16)], device="cpu")),
    "int4": Codebook("int4", torch.tensor([int4_value(code) for code in range(16)], device="cpu")),
}
"""The codebooks that have a name."""


def resolve_codebook(codebook: str | Codebook | Tensor | Sequence[float]) -> Codebook:
    """Turn what a person writes for a codebook into a `Codebook`.

    Args:
        codebook: one of the names in `CODEBOOKS`, a `Codebook`, or a learner's own: sixteen finite ascending values in [-1, 1],
            one of them 0 (the others no denormals, which are too near to it).

    Raises:
        TypeError: it is none of these.
        ValueError: the name is unknown, or the values can't serve. The text says why.

    >>> resolve_codebook("NF4")
    Traceback (most recent call last):
    ValueError: codebook is "NF4", and the codebooks with a name are "nf4", "fp4", "int4": did you mean "nf4"?
    """
    if isinstance(codebook, Codebook):
        return codebook
    if isinstance(codebook, str):
        if codebook in CODEBOOKS:
            return CODEBOOKS[codebook]
        near = difflib.get_close_matches(codebook.lower().replace("-", "").replace("_", "").strip(), CODEBOOKS, n=1)
        names = ", ".join(f'"{name}"' for name in CODEBOOKS)
        guess = f': did you mean "{near[0]}"?' if near else "."
        raise ValueError(f'codebook is "{codebook}", and the codebooks with a name are {names}{guess}')
    return Codebook("own", checked_values(codebook))


def checked_values(codebook: Tensor | Sequence[float]) -> Float[Tensor, " 16"]:
    """A learner's sixteen values as float32, or an error that says what is wrong with them and why it matters."""
    what = "a name, or 16 ascending numbers from -1 to 1 with an exact 0"
    try:
        values = torch.as_tensor(codebook)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"codebook is a {type(codebook).__name__} that torch can't read as numbers; it must be {what}.") from None
    if values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"codebook has dtype {values.dtype}; it must be {what}.")
    if values.is_meta or values.layout != torch.strided:
        raise TypeError(f"codebook is on device {values.device} with layout {values.layout}, and its values are needed; it must be {what}.")
    if values.shape != (16,):
        raise ValueError(f"codebook has the shape {tuple(values.shape)}, and must have (16,): one value for each pattern of four bits.")
    values = values.detach().to("cpu", torch.float32, copy=True)
    listed = [f"{value:.7g}" for value in values.tolist()]
    for place, value in enumerate(values.tolist()):
        if not math.isfinite(value):
            raise ValueError(f"codebook[{place}] is {listed[place]}, and must be finite: a weight read back from it would be no number.")
        if abs(value) > 1:
            raise ValueError(
                f"codebook[{place}] is {listed[place]}, and must lie in [-1, 1]: weights are divided by the largest of their block, "
                "so nothing beyond 1 is ever near, and a weight read back from it would be larger than any in the block."
            )
        if 0 < abs(value) < torch.finfo(torch.float32).tiny:
            raise ValueError(
                f"codebook[{place}] is {listed[place]}, and must be 0 or at least {torch.finfo(torch.float32).tiny:.3g} in size: "
                "nearer to 0, the point half-way to it rounds to 0, and a weight of 0 would not stay 0."
            )
        if place and value <= values[place - 1]:
            raise ValueError(
                f"codebook[{place}] is {listed[place]} after {listed[place - 1]}, and must be larger, as float32: a code is found by "
                "counting the thresholds below a number, so values must ascend, and a value that occurs twice wastes a code."
            )
    if 0.0 not in values:
        raise ValueError(f"codebook has no 0 among {', '.join(listed)}, and needs it: a weight of 0 must stay 0.")
    return values
