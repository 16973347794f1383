"""Four bits for a weight: blocks and their scales, codes, packing, and scales that are quantized themselves.

First met in lessons 02, 03 and 05. The bytes are those of bitsandbytes 0.50.2 on a CPU, for its codebooks nf4 and fp4:

1. The weights, flattened, are cut into blocks. The scale of a block is its absmax, the largest absolute value.
2. Each weight, divided by its scale, gets the code of the nearest value of the codebook.
3. Two codes share a byte, the first in the upper half.
4. With double quantization the scales become 8-bit codes themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from course_utils.codebooks import Codebook, dynamic_map, resolve_codebook

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""The dtypes that a weight may have, before and after."""

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""The block sizes of bitsandbytes 0.50.2."""

SCALE_BLOCK_SIZE = 256
"""How many scales share a scale of their own in double quantization."""

SMALLEST_SCALE = 1e-38
"""No weight is divided by less, so a block of zeros is not divided by zero. A last block that is not full stores it as its scale."""

SCALE_VALUES = dynamic_map()
"""The codebook of the scales themselves."""

SLICE = 2**18
"""Weights that are worked on at a time: a multiple of every block size, small enough for the processor's cache."""


@dataclass(frozen=True, eq=False)
class NestedScales:
    """The scales of blocks, quantized: each is ``dynamic_map()[code] * absmax + offset``, with one absmax for every 256 codes.

    Attributes:
        codes: an 8-bit code for each block.
        absmax: float32, a scale for every 256 of them.
        offset: float32, the mean of the scales.
    """

    codes: UInt8[Tensor, " blocks"]
    absmax: Float32[Tensor, " superblocks"]
    offset: Float32[Tensor, ""]

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and offset. The 256 values of the codebook are not counted: all weights share them."""
        return self.codes.nbytes + self.absmax.nbytes + self.offset.nbytes

    def dequantize(self) -> Float32[Tensor, " blocks"]:
        """The scales, as near as their codes can name them."""
        values = SCALE_VALUES.to(self.codes.device)
        return values_times_scales(self.codes, self.absmax, values, SCALE_BLOCK_SIZE) + self.offset


@dataclass(frozen=True, eq=False)
class Quantized4bit:
    """A weight in four bits: everything that is needed to read it back.

    Attributes:
        packed: two codes a byte, the first in the upper half. Of an odd number of weights, the last lower half is the code of 0.
        absmax: the scale of each block, or its quantized form.
        shape: of the weight.
        dtype: of the weight, and of what `dequantize` returns if not told otherwise.
        codebook: the value of each code.
        block_size: weights that share a scale. Blocks run over the flattened weight; the last may be shorter.

    Raises:
        TypeError: shape is no torch.Size, dtype none of `FLOAT_DTYPES`, or block_size no integer.
        ValueError: block_size is none of `BLOCK_SIZES`, or packed or absmax has not the length that shape and block_size ask for.
    """

    packed: UInt8[Tensor, "bytes 1"]
    absmax: Float32[Tensor, " blocks"] | NestedScales
    shape: torch.Size
    dtype: torch.dtype
    codebook: Codebook
    block_size: int

    def __post_init__(self) -> None:
        if not isinstance(self.shape, torch.Size):
            raise TypeError(f"shape is a {type(self.shape).__name__}; it must be a torch.Size.")
        check_dtype("dtype", self.dtype)
        check_block_size(self.block_size)
        weights = self.shape.numel()
        expected = (-(-weights // 2), 1)
        if self.packed.dtype != torch.uint8 or self.packed.shape != expected:
            raise ValueError(
                f"packed has dtype {self.packed.dtype} and the shape {tuple(self.packed.shape)}; {weights:,} weights, two a byte, "
                f"need torch.uint8 and {expected}."
            )
        nested = isinstance(self.absmax, NestedScales)
        scales, blocks = len(self.absmax.codes if nested else self.absmax), -(-weights // self.block_size)
        if scales != blocks:
            raise ValueError(f"absmax has {scales:,} scales; {weights:,} weights in blocks of {self.block_size} need {blocks:,}.")
        if nested and len(self.absmax.absmax) != -(-blocks // SCALE_BLOCK_SIZE):
            raise ValueError(
                f"absmax.absmax has {len(self.absmax.absmax):,} scales; {blocks:,} codes in blocks of {SCALE_BLOCK_SIZE} "
                f"need {-(-blocks // SCALE_BLOCK_SIZE):,}."
            )

    @property
    def nbytes(self) -> int:
        """Bytes of packed codes and scales, nested ones and their offset included.

        The codebook is not counted: its sixteen values are the same for all weights.
        """
        return self.packed.nbytes + self.absmax.nbytes

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight takes: those of `nbytes`, divided by the number of weights. The codebook is not counted.

        >>> quantize_4bit(torch.ones(128, 64)).bits_per_weight
        4.5
        """
        return 8 * self.nbytes / self.shape.numel()

    def dequantize(self, dtype: torch.dtype | None = None) -> Float[Tensor, " ..."]:
        """Read the weight back: the value of each code times the scale of its block, in float32, then rounded to `dtype`.

        Args:
            dtype: float32, float16 or bfloat16; that of the weight if left out.

        >>> quantize_4bit(torch.tensor([-2.0, 0.0, 0.7, 2.0])).dequantize()
        tensor([-2.0000,  0.0000,  0.6758,  2.0000])
        """
        dtype = self.dtype if dtype is None else dtype
        check_dtype("dtype", dtype)
        scales = self.absmax.dequantize() if isinstance(self.absmax, NestedScales) else self.absmax
        values = self.codebook.values.to(self.packed.device)
        packed = self.packed.view(-1)
        weights = self.shape.numel()
        result = torch.empty(weights, dtype=dtype, device=self.packed.device)
        for start in range(0, weights, SLICE):
            end = min(start + SLICE, weights)
            numbers = dequantize_slice(
                packed[start // 2 : -(-end // 2)], scales[start // self.block_size : -(-end // self.block_size)], values, self.block_size
            )
            result[start:end] = numbers[: end - start]
        return result.view(self.shape)

    def to(self, device: torch.device | str) -> Quantized4bit:
        """The same weight on another device."""
        absmax = self.absmax
        if isinstance(absmax, NestedScales):
            absmax = NestedScales(absmax.codes.to(device), absmax.absmax.to(device), absmax.offset.to(device))
        else:
            absmax = absmax.to(device)
        return Quantized4bit(self.packed.to(device), absmax, self.shape, self.dtype, self.codebook, self.block_size)


# --- The whole way ---


def quantize_4bit(
    weight: Float[Tensor, " ..."],
    codebook: str | Codebook | Tensor | list[float] = "nf4",
    block_size: int = 64,
    double_quant: bool = False,
) -> Quantized4bit:
    """Quantize a weight of any shape to four bits a number.

    The input is worked on in slices, so the memory needed besides it is little more than that of the result. A weight that is not
    contiguous, such as a transposed one, is copied as a whole first.

    Args:
        weight: float32, float16 or bfloat16, finite.
        codebook: ``nf4``, ``fp4``, ``int4``, or sixteen values of your own (see `codebooks.resolve_codebook`).
        block_size: weights that share a scale, one of `BLOCK_SIZES`.
        double_quant: quantize the scales too. A part is computed in float64, which CPU and CUDA have and Apple's MPS hasn't.

    Raises:
        TypeError: weight is no dense tensor of an allowed dtype; block_size is no integer; double_quant is neither True nor False.
        ValueError: weight is empty, on the meta device, or not finite; block_size or codebook is not one of those allowed.

    >>> q = quantize_4bit(torch.tensor([-2.0, 0.0, 0.7, 2.0]))
    >>> [f"{byte:08b}" for byte in q.packed.flatten().tolist()], q.absmax.tolist()
    (['00000111', '10111111'], [2.0])
    """
    check_weight(weight)
    check_block_size(block_size)
    if not isinstance(double_quant, bool):
        raise TypeError(f"double_quant is {double_quant!r}; it must be True or False.")
    book = resolve_codebook(codebook)
    thresholds, codes_in_order = book.thresholds(), book.codes_in_order().to(weight.device)

    flat = weight.detach().reshape(-1)
    packed = torch.empty(-(-len(flat) // 2), dtype=torch.uint8, device=weight.device)
    absmax = torch.empty(-(-len(flat) // block_size), dtype=torch.float32, device=weight.device)
    for start in range(0, len(flat), SLICE):
        end = min(start + SLICE, len(flat))
        codes, scales = quantize_slice(flat[start:end], thresholds, codes_in_order, block_size)
        packed[start // 2 : -(-end // 2)] = codes
        absmax[start // block_size : -(-end // block_size)] = scales
    check_finite(weight, absmax)
    scales = quantize_scales(absmax) if double_quant else absmax
    return Quantized4bit(packed.unsqueeze(1), scales, weight.shape, weight.dtype, book, block_size)


def quantize_slice(
    numbers: Float[Tensor, " n"], thresholds: list[float], codes_in_order: UInt8[Tensor, " 16"], block_size: int
) -> tuple[UInt8[Tensor, " bytes"], Float32[Tensor, " blocks"]]:
    """Packed codes and scales of some numbers. An odd count is filled up with the code of 0."""
    scaled, absmax = scale_blocks(numbers.float(), block_size)
    if len(scaled) % 2:
        scaled = torch.cat([scaled, scaled.new_zeros(1)])
    return pack(nearest_codes(scaled, thresholds, codes_in_order)), absmax


def dequantize_slice(
    packed: UInt8[Tensor, " bytes"], absmax: Float32[Tensor, " blocks"], values: Float32[Tensor, " 16"], block_size: int
) -> Float32[Tensor, " n"]:
    """The numbers that packed codes and scales stand for. An odd count comes back with the 0 that filled it up.

    They are those of ``values_times_scales(unpack(packed), ...)``, in half as many look-ups: a byte has 256 patterns, and each stands for
    a pair of values. Both are moved at once, as one integer of 8 bytes.
    """
    pairs = torch.stack([values.repeat_interleave(16), values.repeat(16)], dim=1)  # of the upper half of a byte and of the lower
    numbers = pairs.view(torch.int64).view(-1).index_select(0, packed.int()).view(torch.float32)
    return times_scales(numbers, absmax, block_size)


# --- The steps ---


def scale_blocks(numbers: Float32[Tensor, " n"], block_size: int) -> tuple[Float32[Tensor, " n"], Float32[Tensor, " blocks"]]:
    """Divide each block by its absmax. Returns the numbers, now from -1 to 1, and the absmax of each block.

    Full blocks are multiplied by 1 / absmax; a last block that is not full is divided. The two differ in the last bit of some
    numbers, which decides a code now and then, so bytes that are to equal those of bitsandbytes need both.
    """
    full = len(numbers) - len(numbers) % block_size
    blocks = numbers[:full].view(-1, block_size)
    absmax = blocks.abs().amax(dim=1)
    scaled = (blocks * (1 / absmax.clamp(min=SMALLEST_SCALE)).unsqueeze(1)).view(-1)
    if full == len(numbers):
        return scaled, absmax
    rest = numbers[full:]
    rest_absmax = rest.abs().amax().clamp(min=SMALLEST_SCALE)
    return torch.cat([scaled, rest / rest_absmax]), torch.cat([absmax, rest_absmax.view(1)])


def nearest_codes(
    scaled: Float32[Tensor, " n"], thresholds: list[float], codes_in_order: UInt8[Tensor, " 16"]
) -> UInt8[Tensor, " n"]:
    """The code of the value nearest to each number.

    The place of that value among the sixteen, counted from 0, is the number of thresholds below the number.

    >>> book = resolve_codebook("fp4")
    >>> nearest_codes(torch.tensor([-1.0, 0.0, 0.2, 1.0]), book.thresholds(), book.codes_in_order())
    tensor([11,  0,  6,  3], dtype=torch.uint8)
    """
    places = torch.zeros_like(scaled, dtype=torch.int32)
    for threshold in thresholds:
        places += scaled > threshold
    return codes_in_order.index_select(0, places)


def pack(codes: UInt8[Tensor, " n"]) -> UInt8[Tensor, " bytes"]:
    """Put two codes in a byte, the first in the upper half.

    Args:
        codes: uint8, from 0 to 15. Every weight comes by here, so that is not checked: a larger code spoils its byte, and codes of
            another dtype are returned in it.

    Raises:
        ValueError: there is an odd number of codes.
    """
    if len(codes) % 2:
        raise ValueError(f"codes has {len(codes):,} numbers; two fill a byte, so their number must be even: add the code of 0 at the end.")
    return codes[0::2] << 4 | codes[1::2]


def unpack(packed: UInt8[Tensor, " bytes"]) -> UInt8[Tensor, " n"]:
    """Take the two codes out of each byte, the upper half first.

    >>> unpack(pack(torch.tensor([1, 2, 3, 15], dtype=torch.uint8))).tolist()
    [1, 2, 3, 15]
    """
    return torch.stack([packed >> 4, packed & 0b1111], dim=1).view(-1)


def values_times_scales(
    codes: UInt8[Tensor, " n"], scales: Float32[Tensor, " blocks"], values: Float32[Tensor, " codebook"], block_size: int
) -> Float32[Tensor, " n"]:
    """Look up the value of each code and multiply it by the scale of its block. The last block may be shorter."""
    return times_scales(values.index_select(0, codes.int()), scales, block_size)


def times_scales(numbers: Float32[Tensor, " n"], scales: Float32[Tensor, " blocks"], block_size: int) -> Float32[Tensor, " n"]:
    """Multiply each number by the scale of its block, in place."""
    full = len(numbers) - len(numbers) % block_size
    numbers[:full].view(-1, block_size).mul_(scales[: full // block_size].unsqueeze(1))
    if full < len(numbers):
        numbers[full:].mul_(scales[-1])
    return numbers


# --- Double quantization ---


def quantize_scales(absmax: Float32[Tensor, " blocks"]) -> NestedScales:
    """Quantize the scales of blocks: take off their mean, then 8-bit codes in blocks of 256, by the values of `dynamic_map`.

    Scales are positive, so without the mean at most half of the codes would be used. The mean of more than 32,768 scales depends in
    its last bit on the number of threads, which each sum a part; so do bitsandbytes' bytes.

    Raises:
        ValueError: the sum of the scales is too large for float32.
    """
    offset = absmax.mean()
    if not torch.isfinite(offset):
        raise ValueError(f"weight has scales up to {absmax.max():.3g}, too large for double_quant: their sum overflows float32.")
    centred = absmax - offset
    rows = F.pad(centred, (0, -len(centred) % SCALE_BLOCK_SIZE)).view(-1, SCALE_BLOCK_SIZE)
    nested_absmax = rows.abs().amax(dim=1)
    codes = nearest_scale_codes(rows * (1 / nested_absmax).unsqueeze(1)).view(-1)
    return NestedScales(codes[: len(centred)].clone(), nested_absmax, offset)


def nearest_scale_codes(scaled: Float32[Tensor, " ..."]) -> UInt8[Tensor, " ..."]:
    """The code of the value of `dynamic_map` that is nearest to each number, as bitsandbytes finds it on a CPU.

    It does not compare the number itself: it rounds it to one of 65,536 evenly spaced points from -1 to 1, for which the codes are kept in
    a table. The points are 0.00003 apart and the values near 0 only 0.000003, so a small number often gets a neighbour's code.

    Scales that are all equal leave nothing when their mean is taken off, and 0 / 0 is NaN: it gets code 0.

    Args:
        scaled: from -1 to 1, on a CPU or CUDA; Apple's MPS has no float64.

    Source: `quantize_cpu_impl` in `csrc/cpu_ops.cpp` of bitsandbytes 0.50.2.
    """
    halved = (scaled.clamp(-1, 1).nan_to_num(nan=-1.0) + 1) * 0.5
    point = (halved.double() * 65535 + 0.5).float().int()  # a fused multiply-add: one rounding, at the end
    rounded = point.float() * 2 / 65535 - 1
    thresholds = ((SCALE_VALUES[:-1] + SCALE_VALUES[1:]) / 2).to(scaled.device)
    return torch.bucketize(rounded, thresholds, out_int32=True).to(torch.uint8)


# --- Bad input, in one sentence ---


def check_weight(weight: Tensor) -> None:
    """Refuse what is no dense tensor of float32, float16 or bfloat16 with at least one number."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight is a {type(weight).__name__}; it must be a torch.Tensor.")
    if weight.dtype == torch.uint8:
        raise TypeError(f"weight has dtype torch.uint8; it must be one of {named(FLOAT_DTYPES)}: it looks quantized already.")
    if weight.dtype not in FLOAT_DTYPES:
        raise TypeError(f"weight has dtype {weight.dtype}; it must be one of {named(FLOAT_DTYPES)}: cast it with weight.to(torch.float32).")
    if weight.layout != torch.strided:
        raise TypeError(f"weight is a sparse tensor, {weight.layout}; it must be dense: pass weight.to_dense().")
    if weight.is_meta:
        raise ValueError("weight is on the meta device, where it has a shape but no numbers; load its numbers first.")
    if weight.numel() == 0:
        raise ValueError(f"weight is empty, with the shape {tuple(weight.shape)}; it must have at least one number.")


def check_dtype(argument: str, dtype: torch.dtype) -> None:
    """Refuse a dtype that is asked for and is none of `FLOAT_DTYPES`."""
    if dtype not in FLOAT_DTYPES:
        raise TypeError(f"{argument} is {dtype!r}; it must be one of {named(FLOAT_DTYPES)}.")


def check_block_size(block_size: int) -> None:
    """Refuse a block size that is none of `BLOCK_SIZES`."""
    if not isinstance(block_size, int) or isinstance(block_size, bool):
        raise TypeError(f"block_size is {block_size!r}; it must be one of the integers {named(BLOCK_SIZES)}.")
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size is {block_size}; it must be one of {named(BLOCK_SIZES)}.")


def check_finite(weight: Tensor, absmax: Float32[Tensor, " blocks"]) -> None:
    """Refuse a weight with NaN or infinities. They show in the scales, so only those are looked at."""
    if not torch.isfinite(absmax).all():
        nan, infinite = int(weight.isnan().sum()), int(weight.isinf().sum())
        raise ValueError(f"weight has {nan:,} NaN and {infinite:,} infinite among {weight.numel():,} numbers; all must be finite.")


def named(choices: tuple[object, ...]) -> str:
    """What is allowed, for a sentence.

    >>> named((32, 64, 128))
    '32, 64, 128'
    """
    return ", ".join(map(str, choices))
