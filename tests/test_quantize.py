"""`course_utils.quantize` against bitsandbytes, byte for byte, and against slow arithmetic where bitsandbytes can't be asked.

bitsandbytes is the judge of packed codes and scales for any shape. Of dequantized values it is the judge through the flattened
weight; for a matrix it takes wrong scales on some CPUs (`test_bitsandbytes_takes_the_wrong_scales_...`).

Hypothesis takes the same examples on each run. COURSE_EXAMPLES=1000 takes that many new ones for each test, and the last lines
of a run that isn't split among processes count them: pytest -n0 tests/test_quantize.py
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
import torch
from bitsandbytes import functional as bnb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from course_utils import ROOT
from course_utils.codebooks import CODEBOOKS, Codebook, dynamic_map, resolve_codebook
from course_utils.memory import tensor_bytes_in_4bit
from course_utils.quantize import (
    BLOCK_SIZES,
    FLOAT_DTYPES,
    SLICE,
    NestedScales,
    Quantized4bit,
    dequantize_slice,
    nearest_scale_codes,
    pack,
    quantize_4bit,
    unpack,
    values_times_scales,
)

EXAMPLES = int(os.environ.get("COURSE_EXAMPLES", 300))
examples = settings(
    max_examples=EXAMPLES,
    derandomize="COURSE_EXAMPLES" not in os.environ,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
dtypes = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
nested_or_not = pytest.mark.parametrize("double_quant", [False, True], ids=["plain", "nested"])
nf4_and_fp4 = pytest.mark.parametrize("codebook", ["nf4", "fp4"])

AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"

Kind = tuple[str, torch.dtype, bool]
example_count: Counter[Kind] = Counter()
byte_count: Counter[Kind] = Counter()


@pytest.fixture(scope="module", autouse=True)
def print_the_counts(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print what was compared, where there is a terminal. A difference would have been a failed test."""
    yield
    plugins = request.config.pluginmanager
    if not plugins.has_plugin("terminalreporter"):
        return
    with plugins.get_plugin("capturemanager").global_and_fixture_disabled():
        print("\n\ncodebook  dtype           scales  examples  bytes compared, all equal")
        for (codebook, dtype, double_quant), count in sorted(byte_count.items(), key=str):
            scales = "nested" if double_quant else "plain"
            print(f"{codebook:8}  {dtype!s:14}  {scales:6}  {example_count[codebook, dtype, double_quant]:8,}  {count:,}")
        print(f"{sum(example_count.values()):,} examples, {sum(byte_count.values()):,} bytes")


@pytest.fixture(scope="module", autouse=True)
def no_compiling() -> Iterator[None]:
    """bitsandbytes compiles its path for odd shapes anew for each shape, which takes seconds. Without, it runs the same code."""
    with torch.compiler.set_stance("force_eager"):
        yield


# --- What bitsandbytes says ---


def as_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def assert_same_bytes(ours: Tensor, theirs: Tensor, kind: Kind) -> None:
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    assert torch.equal(as_bytes(ours), as_bytes(theirs))
    byte_count[kind] += ours.nbytes


def oracle(weight: Tensor, codebook: str, block_size: int, double_quant: bool) -> tuple[Tensor, bnb.QuantState]:
    return bnb.quantize_4bit(weight, blocksize=block_size, quant_type=codebook, compress_statistics=double_quant)


def oracle_dequantize(packed: Tensor, state: bnb.QuantState, dtype: torch.dtype | None = None) -> Tensor:
    """What bitsandbytes reads back, through the flattened weight."""
    flattened = copy.copy(state)
    flattened.shape = torch.Size([state.shape.numel()])
    flattened.dtype = dtype or state.dtype
    return bnb.dequantize_4bit(packed, flattened).reshape(state.shape)


def reads_minus_zero(weights: int) -> bool:
    """Whether bitsandbytes reads FP4's second zero as -0.0. See test_second_zero_of_fp4."""
    return weights % 2 == 0 and not (AVX512 and weights % 16 == 0)


def compare_with_bitsandbytes(weight: Tensor, codebook: str, block_size: int, double_quant: bool) -> Quantized4bit:
    """Quantize by hand and by bitsandbytes, and compare every byte of codes, scales and of what is read back."""
    kind = (codebook, weight.dtype, double_quant)
    ours = quantize_4bit(weight, codebook, block_size, double_quant)
    packed, state = oracle(weight, codebook, block_size, double_quant)
    assert_same_bytes(ours.packed, packed, kind)
    assert (ours.shape, ours.dtype, ours.block_size) == (state.shape, state.dtype, state.blocksize)
    if double_quant:
        assert_same_bytes(ours.absmax.codes, state.absmax, kind)
        assert_same_bytes(ours.absmax.absmax, state.state2.absmax, kind)
        assert_same_bytes(ours.absmax.offset, state.offset, kind)
    else:
        assert_same_bytes(ours.absmax, state.absmax, kind)
    read_back, theirs = ours.dequantize(), oracle_dequantize(packed, state)
    if codebook == "fp4" and reads_minus_zero(weight.numel()):
        read_back, theirs = read_back.where(read_back != 0, 0), theirs.where(theirs != 0, 0)
    assert_same_bytes(read_back, theirs, kind)
    return ours


# --- Weights to try ---

SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 6e-8, -6e-8, 65504.0, 1e30, 3e38, -3.4028235e38]
SPECIAL += [1e-38, -1e-38, 1e-39, 2.9e-39, 1.1754944e-38, 1e-45, -1e-45]


def points_that_decide(codebook: str) -> np.ndarray:
    """The thresholds, the values, and the float32 next to each, below and above."""
    book = CODEBOOKS[codebook]
    points = np.array(book.thresholds() + book.values.tolist(), dtype=np.float32)
    return np.concatenate([points, np.nextafter(points, np.float32(-2)), np.nextafter(points, np.float32(2))]).astype(np.float32)


def numbers(count: int, kind: str, codebook: str, seed: int) -> np.ndarray:
    """`count` float32 numbers of one kind; infinities and NaN are left to other tests."""
    random = np.random.default_rng(seed)
    if kind == "normal":
        return random.normal(size=count) * 10.0 ** random.integers(-8, 4)
    if kind == "heavy tails":
        return random.standard_cauchy(size=count)
    if kind == "any bits":
        found = random.integers(0, 2**32, size=count, dtype=np.uint32).view(np.float32)
        return np.where(np.isfinite(found), found, np.float32(0))
    if kind == "denormal":
        return random.integers(0, 2**14, size=count, dtype=np.uint32).view(np.float32) * random.choice([-1, 1], size=count)
    if kind == "ties":
        chosen = random.choice(points_that_decide(codebook), size=count)
        chosen[:: random.integers(1, 32)] = 1
        return chosen * 2.0 ** random.integers(-3, 4)
    if kind == "special":
        return random.choice(np.array(SPECIAL, dtype=np.float32), size=count)
    if kind == "constant":
        return np.full(count, random.normal(), dtype=np.float32)
    return random.normal(size=count) * (random.random(count) < 0.02)  # mostly zeros, whole blocks of them


def as_weight(numbers: np.ndarray, dtype: torch.dtype) -> Tensor:
    largest = torch.finfo(dtype).max
    return torch.from_numpy(np.asarray(numbers, dtype=np.float32)).clamp(-largest, largest).to(dtype)


KINDS = ["normal", "heavy tails", "any bits", "denormal", "ties", "special", "constant", "mostly zeros"]

shapes = st.one_of(
    st.lists(st.integers(1, 9), min_size=0, max_size=4).map(tuple),
    st.tuples(st.integers(1, 70), st.sampled_from([16, 32, 48, 63, 64, 65, 96, 128, 192])),
    st.tuples(st.integers(1, 20_000)),
)


@st.composite
def weights(draw: st.DrawFn, dtype: torch.dtype, codebook: str) -> Tensor:
    """A weight of any shape: a few numbers that hypothesis chooses, or many of one kind."""
    shape = draw(shapes)
    count = torch.Size(shape).numel()
    if count <= 8:
        finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
        chosen = np.array(draw(st.lists(finite, min_size=count, max_size=count)), dtype=np.float32)
    else:
        chosen = numbers(count, draw(st.sampled_from(KINDS)), codebook, draw(st.integers(0, 2**32)))
    weight = as_weight(chosen, dtype)
    return weight.reshape(shape) if draw(st.booleans()) else weight.reshape(shape[::-1]).permute(list(range(len(shape)))[::-1])


# --- Every byte ---


@nf4_and_fp4
@dtypes
@nested_or_not
def test_every_byte_is_that_of_bitsandbytes(codebook: str, dtype: torch.dtype, double_quant: bool) -> None:
    @examples
    @given(weights(dtype, codebook), st.sampled_from(BLOCK_SIZES))
    def compare(weight: Tensor, block_size: int) -> None:
        example_count[codebook, dtype, double_quant] += 1
        _, absmax = oracle(weight, codebook, block_size, False)
        if double_quant and not torch.isfinite(absmax.absmax.mean()):
            with pytest.raises(ValueError, match="double_quant"):  # bitsandbytes stores an infinite offset
                quantize_4bit(weight, codebook, block_size, double_quant)
            return
        before = weight.clone()
        compare_with_bitsandbytes(weight, codebook, block_size, double_quant)
        assert torch.equal(as_bytes(weight), as_bytes(before))

    compare()


@nf4_and_fp4
@dtypes
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_every_threshold_and_its_neighbours(codebook: str, dtype: torch.dtype, block_size: int) -> None:
    points = torch.from_numpy(points_that_decide(codebook)).clamp(-1, 1).to(dtype)
    blocks = points.repeat(-(-3 * block_size // len(points)))[: 3 * block_size - 5]
    blocks[::block_size] = 1  # the absmax, so that the points stay what they are
    compare_with_bitsandbytes(blocks, codebook, block_size, False)


@nested_or_not
@dtypes
@nf4_and_fp4
def test_each_read_back_in_another_dtype(codebook: str, dtype: torch.dtype, double_quant: bool) -> None:
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(0)).to(dtype)
    ours = quantize_4bit(weight, codebook, 64, double_quant)
    packed, state = oracle(weight, codebook, 64, double_quant)
    for other in FLOAT_DTYPES:
        assert_same_bytes(ours.dequantize(other), oracle_dequantize(packed, state, other), (codebook, dtype, double_quant))


@nested_or_not
@nf4_and_fp4
def test_a_weight_of_many_slices(codebook: str, double_quant: bool) -> None:
    """Slices must join without a seam: three of them and a last one that is odd."""
    weight = torch.randn(3 * SLICE + 4097, generator=torch.Generator().manual_seed(0))
    for block_size in (32, 4096):
        compare_with_bitsandbytes(weight, codebook, block_size, double_quant)


def test_scale_codes_over_their_whole_range() -> None:
    """Ten million numbers from a millionth to 1, and each of the 65,536 points with its neighbours."""
    random = torch.Generator().manual_seed(0)
    spread = torch.randn(40_000 * 256, generator=random) * 10 ** (-6 * torch.rand(40_000 * 256, generator=random))
    points = torch.from_numpy((np.arange(2**17) / 65535 - 1).astype(np.float32)).clamp(-1, 1)  # and those half-way between them
    near = torch.cat([points, points.nextafter(torch.tensor(-2.0)), points.nextafter(torch.tensor(2.0))]).clamp(-1, 1).view(-1, 128)
    fine = torch.cat([torch.ones(len(near), 128), near], dim=1)  # each block with a 1, the absmax, so that the points stay what they are
    for scales in (spread.view(-1, 256), fine):
        codes, state = bnb.quantize_blockwise(scales, blocksize=256)
        assert torch.equal(nearest_scale_codes(scales * (1 / state.absmax)[:, None]), codes)


# --- Single cases, each of which decided a line of the code ---


def weight_with(first: list[float], count: int = 64, absmax: float = 1.0) -> Tensor:
    weight = torch.zeros(count)
    weight[: len(first)] = torch.tensor(first)
    weight[len(first)] = absmax
    return weight


generator = torch.Generator().manual_seed(2)
CASES = {
    "one number": torch.tensor([0.3]),
    "one zero": torch.tensor([0.0]),
    "one minus zero": torch.tensor([-0.0]),
    "a number without a dimension": torch.tensor(-2.5),
    "one row of one": torch.tensor([[1.5]]),
    "a column of two": torch.tensor([[1.5], [-0.5]]),
    "a block of zeros": torch.zeros(128),
    "a block of minus zeros": -torch.zeros(128),
    "a short block of zeros": torch.zeros(70),
    "a zero block between others": torch.cat([torch.ones(64), torch.zeros(64), -torch.ones(64)]),
    "a constant": torch.full((3, 64), 0.1),
    "a negative constant": torch.full((3, 64), -0.7),
    "the smallest denormal": torch.full((65,), 1e-45),
    "denormals": torch.arange(200).to(torch.int32).view(torch.float32),
    "around the smallest scale": torch.tensor([1e-38, -9e-39, 1.1e-38] * 50),
    "the largest numbers": torch.tensor([3.4028235e38, -3.4028235e38, 1e38, 1.0] * 32),
    "a number tiny beside its block": weight_with([1e-30, -1e-30, 1e-45, 0.0, -0.0]),
    "an odd count": torch.linspace(-1, 1, 63),
    "an odd count over two blocks": torch.linspace(-1, 1, 129),
    "a short last block": torch.randn(64 + 50, generator=generator),
    "only a short block": torch.randn(50, generator=generator),
    "many short last blocks": torch.randn(97, generator=generator) * 1e-3,
    "256 blocks": torch.randn(256, 64, generator=generator),
    "257 blocks": torch.randn(257, 64, generator=generator),
    "scales near their mean": torch.ones(600, 64) * (1 + 1e-6 * torch.randn(600, 1, generator=generator)),
    "scales of very different size": torch.randn(600, 64, generator=generator) * 10 ** (8 * torch.rand(600, 1, generator=generator) - 4),
    "scales that are all equal": torch.ones(300, 64),
    "transposed": torch.randn(96, 64, generator=generator).T,
    "every second row": torch.randn(96, 64, generator=generator)[::2],
    "a parameter": torch.nn.Parameter(torch.randn(32, 64, generator=generator)),
}


@nested_or_not
@dtypes
@nf4_and_fp4
@pytest.mark.parametrize("case", CASES)
def test_case(case: str, codebook: str, dtype: torch.dtype, double_quant: bool) -> None:
    largest = torch.finfo(dtype).max
    weight = CASES[case].clamp(-largest, largest).to(dtype) if dtype != torch.float32 else CASES[case]
    if double_quant and case == "the largest numbers" and dtype != torch.float16:
        weight = weight[:64]  # the sum of two such scales is infinite
    compare_with_bitsandbytes(weight, codebook, 64, double_quant)


def test_a_full_block_is_multiplied_and_a_short_one_divided() -> None:
    """Seek numbers for which ``x * (1 / absmax)`` and ``x / absmax`` lie on two sides of a threshold, and put them in both places."""
    absmax = torch.rand(200_000, generator=generator) + 0.5
    threshold = torch.tensor(CODEBOOKS["nf4"].thresholds())[11]
    x = absmax * threshold
    decided_by_the_last_bit = (x * (1 / absmax) > threshold) != (x / absmax > threshold)
    assert decided_by_the_last_bit.any()
    x, absmax = x[decided_by_the_last_bit][0], absmax[decided_by_the_last_bit][0]
    full = torch.cat([torch.stack([absmax, x]), torch.zeros(62)])
    both = torch.cat([full, full[:32]])
    ours = compare_with_bitsandbytes(both, "nf4", 64, False)
    codes = ours.packed.flatten().tolist()
    assert codes[0] != codes[32]  # the same two numbers, two different bytes


def test_the_pad_is_the_code_of_zero() -> None:
    for codebook, pad in (("nf4", 7), ("fp4", 0), ("int4", 0), (np.linspace(-1, 1, 17)[1:], 7)):
        assert quantize_4bit(torch.ones(3), codebook).packed[-1].item() & 0b1111 == pad


@dtypes
def test_second_zero_of_fp4(dtype: torch.dtype) -> None:
    """A tiny positive number gets FP4's code 0b1000, the second zero, on a CPU. Its sign, read back, depends on the path.

    0.0 in bitsandbytes' table, its path in PyTorch (odd counts, and on AVX-512 blocks of 2,048 and more) and its AVX-512 kernel
    (multiples of 16); -0.0 in its plain C++ kernel. By hand it is 0.0. All else is the same in every byte.
    """
    for count in (16, 62, 63, 64):
        weight = weight_with([1e-4], count).to(dtype)
        packed, state = oracle(weight, "fp4", 64, False)
        assert packed[0].item() >> 4 == 0b1000
        assert not state.code.signbit()[0b1000]
        ours, theirs = quantize_4bit(weight, "fp4").dequantize(), oracle_dequantize(packed, state)
        assert ours[0] == theirs[0] == 0
        assert not ours[0].signbit()
        assert theirs[0].signbit() == reads_minus_zero(count)


def test_of_two_weights_or_fewer_bitsandbytes_returns_the_transpose() -> None:
    """Packed codes of the shape (1, 1) look to it like a transposed weight. The values are the same."""
    weight = torch.tensor([[1.0], [-0.5]])
    packed, state = oracle(weight, "nf4", 64, False)
    theirs = bnb.dequantize_4bit(packed, state)
    ours = quantize_4bit(weight).dequantize()
    assert theirs.shape == (1, 2) and ours.shape == weight.shape
    assert torch.equal(ours.T, theirs)


# --- Where bitsandbytes is wrong ---


@nf4_and_fp4
@dtypes
@pytest.mark.parametrize(
    ("rows", "columns", "block_size"),
    [(128, 352, 64), (128, 320, 128), (128, 48, 64), (9, 1040, 1024), (9, 2064, 2048), (128, 384, 64), (64, 100, 64)],
)
def test_bitsandbytes_takes_the_wrong_scales_on_avx512(codebook: str, dtype: torch.dtype, rows: int, columns: int, block_size: int) -> None:
    """On a CPU with AVX-512, where rows are no whole number of blocks, its kernel counts the blocks of a row as columns // block_size.

    Codes and scales are right, and what is read back is not: it is what those scales give. Other CPUs, a last dimension that is no
    multiple of 16, and blocks of 2,048 and more take another path, which is right. By hand the blocks run over the
    flattened weight, as they did when it was quantized.
    """
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).to(dtype)
    ours = compare_with_bitsandbytes(weight, codebook, block_size, False)
    packed, state = oracle(weight, codebook, block_size, False)
    theirs = bnb.dequantize_4bit(packed, state)

    places = torch.arange(weight.numel()).view(rows, columns)
    right = ours.absmax[places // block_size]
    wrong = ours.absmax[(places // columns) * (columns // block_size) + places % columns // block_size]
    codes = torch.stack([packed >> 4, packed & 0b1111], dim=-1).view(rows, columns)
    values = CODEBOOKS[codebook].values[codes.int()]

    assert torch.equal(as_bytes(ours.dequantize()), as_bytes((values * right).to(dtype)))
    takes_the_wrong_scales = AVX512 and columns % 16 == 0 and block_size < 2048
    assert torch.equal(theirs, (values * (wrong if takes_the_wrong_scales else right)).to(dtype))
    assert torch.equal(theirs, ours.dequantize()) == (columns % block_size == 0 or not takes_the_wrong_scales)


# --- int4 and a codebook of one's own, against slow arithmetic ---


def slow_quantize(weight: Tensor, values: list[float], block_size: int) -> tuple[list[int], list[np.float32]]:
    """Codes and scales by loops over single float32 numbers. A number goes up to the next value when it lies above the point half-way,
    which is found by exact fractions and then rounded to float32."""
    ascending = sorted(values)
    half_way = [np.float32(float((Fraction(a) + Fraction(b)) / 2)) for a, b in zip(ascending, ascending[1:], strict=False)]
    codes, scales = [], []
    numbers = weight.float().flatten().numpy()
    for start in range(0, len(numbers), block_size):
        block = numbers[start : start + block_size]
        absmax = max(abs(number) for number in block)
        divisor = max(absmax, np.float32(1e-38))
        is_full = len(block) == block_size
        scales.append(absmax if is_full else divisor)
        for number in block:
            scaled = number * (np.float32(1) / divisor) if is_full else number / divisor
            place = 0
            while place < 15 and scaled > half_way[place]:
                place += 1
            codes.append(values.index(ascending[place]))
    return codes, scales


@st.composite
def own_codebooks(draw: st.DrawFn) -> list[float]:
    """Any sixteen float32 values that are allowed."""
    value = st.floats(-1, 1, width=32, allow_subnormal=False).filter(bool)
    return sorted([*draw(st.lists(value, min_size=15, max_size=15, unique=True)), 0.0])


@dtypes
def test_own_codebook_against_slow_arithmetic(dtype: torch.dtype) -> None:
    @examples
    @given(own_codebooks(), st.sampled_from(KINDS), st.integers(1, 150), st.sampled_from([32, 64, 128]), st.integers(0, 2**32))
    def compare(values: list[float], kind: str, count: int, block_size: int, seed: int) -> None:
        example_count["own", dtype, False] += 1
        weight = as_weight(numbers(count, kind, "int4", seed), dtype)
        assert_slow_arithmetic_agrees(weight, values, values, block_size, ("own", dtype, False))

    compare()


@dtypes
def test_int4_against_slow_arithmetic(dtype: torch.dtype) -> None:
    values = [float(np.float32(integer) / np.float32(7)) for integer in [*range(8), *range(-8, 0)]]

    @examples
    @given(st.sampled_from(KINDS), st.integers(1, 150), st.sampled_from([32, 64, 128]), st.integers(0, 2**32))
    def compare(kind: str, count: int, block_size: int, seed: int) -> None:
        example_count["int4", dtype, False] += 1
        weight = as_weight(numbers(count, kind, "int4", seed), dtype)
        assert_slow_arithmetic_agrees(weight, "int4", values, block_size, ("int4", dtype, False))

    compare()


def assert_slow_arithmetic_agrees(
    weight: Tensor, codebook: str | list[float], values: list[float], block_size: int, kind: Kind
) -> None:
    ours = quantize_4bit(weight, codebook, block_size)
    codes, scales = slow_quantize(weight, values, block_size)
    padded = codes + [values.index(0.0)] * (len(codes) % 2)
    packed = torch.tensor([16 * first + second for first, second in zip(padded[::2], padded[1::2], strict=True)], dtype=torch.uint8)
    assert_same_bytes(ours.packed, packed.unsqueeze(1), kind)
    assert_same_bytes(ours.absmax, torch.tensor(np.array(scales)), kind)
    read_back = [np.float32(values[code]) * scales[place // block_size] for place, code in enumerate(codes)]
    assert_same_bytes(ours.dequantize(), torch.tensor(np.array(read_back)).to(weight.dtype).reshape(weight.shape), kind)


def test_int4_is_round_of_seven_times() -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    absmax = weight.abs().amax(dim=1, keepdim=True)
    rounded = (7 * weight / absmax).round()
    packed = quantize_4bit(weight, "int4").packed.view(64, 32)
    codes = torch.stack([packed >> 4, packed & 0b1111], dim=-1).view(64, 64).to(torch.int8)
    assert torch.equal(torch.where(codes >= 8, codes - 16, codes).float(), rounded)
    assert rounded.min() == -7 and rounded.max() == 7


@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_no_weight_is_off_by_more_than_half_the_widest_gap(codebook: str) -> None:
    weight = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
    values = CODEBOOKS[codebook].values.sort().values
    half_gap = values.clamp(-1, 1).diff().max() / 2
    error = (quantize_4bit(weight, codebook).dequantize() - weight).abs() / weight.abs().amax(dim=1, keepdim=True)
    assert half_gap * 0.99 < error.max() <= half_gap * (1 + 1e-6)


# --- Bytes and memory ---


@examples
@given(st.integers(1, 100_000), st.sampled_from(BLOCK_SIZES), st.booleans())
def test_bytes_are_counted_as_predicted(count: int, block_size: int, double_quant: bool) -> None:
    quantized = quantize_4bit(torch.ones(count), "nf4", block_size, double_quant)
    assert quantized.nbytes == tensor_bytes_in_4bit(count, block_size, double_quant)
    assert quantized.bits_per_weight == 8 * quantized.nbytes / count


def test_bits_per_weight() -> None:
    weight = torch.ones(4096, 1024)
    assert quantize_4bit(weight).bits_per_weight == 4.5
    assert quantize_4bit(weight, double_quant=True).bits_per_weight == pytest.approx(4 + (8 + 32 / 256) / 64, abs=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process's memory is read from /proc")
def test_peak_memory_of_a_large_weight_is_at_most_twice_the_weight() -> None:
    """4096 x 11008 float32, the MLP of Llama-2-7B: quantizing it and reading it back, in a process of its own."""
    program = """
import pathlib, re, torch
from course_utils.quantize import quantize_4bit
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
quantize_4bit(torch.ones(64)).dequantize()
weight = torch.full((4096, 11008), 0.5)
before = peak()
quantized = quantize_4bit(weight)
after_quantizing = peak()
quantized.dequantize()
print((after_quantizing - before) / weight.nbytes, (peak() - before) / weight.nbytes)
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, encoding="utf-8")
    quantizing, both = map(float, run.stdout.split())
    assert 0.5 / 4 < quantizing < 0.5  # the result itself is 4.5 bits of 32
    assert 1 < both < 2  # four bits, and the weight once more


# --- Moving, and what is not allowed ---


@nested_or_not
def test_to_a_device(double_quant: bool) -> None:
    quantized = quantize_4bit(torch.ones(128), double_quant=double_quant)
    moved = quantized.to("meta")
    assert moved.packed.is_meta and (moved.absmax.codes if double_quant else moved.absmax).is_meta
    assert torch.equal(quantized.to("cpu").dequantize(), quantized.dequantize())


BAD_WEIGHTS = {
    "a list": ([1.0, 2.0], TypeError, ["weight", "list", "torch.Tensor"]),
    "nothing": (None, TypeError, ["weight", "NoneType", "torch.Tensor"]),
    "an array": (np.ones(4), TypeError, ["weight", "ndarray", "torch.Tensor"]),
    "integers": (torch.ones(4, dtype=torch.int64), TypeError, ["weight", "int64", "torch.float32", "torch.bfloat16", "cast"]),
    "packed codes": (torch.ones(4, dtype=torch.uint8), TypeError, ["weight", "uint8", "torch.float32", "quantized already"]),
    "booleans": (torch.ones(4, dtype=torch.bool), TypeError, ["weight", "bool", "torch.float32"]),
    "float64": (torch.ones(4, dtype=torch.float64), TypeError, ["weight", "float64", "weight.to(torch.float32)"]),
    "complex": (torch.ones(4, dtype=torch.complex64), TypeError, ["weight", "complex64", "torch.float32"]),
    "float8": (torch.ones(4).to(torch.float8_e4m3fn), TypeError, ["weight", "float8_e4m3fn", "torch.float32"]),
    "sparse": (torch.eye(4).to_sparse(), TypeError, ["weight", "sparse", "to_dense()"]),
    "sparse by rows": (torch.eye(4).to_sparse_coo().coalesce(), TypeError, ["weight", "sparse", "to_dense()"]),
    "meta": (torch.ones(4, device="meta"), ValueError, ["weight", "meta"]),
    "empty": (torch.ones(3, 0), ValueError, ["weight", "empty", "(3, 0)", "at least one"]),
    "NaN": (torch.tensor([1.0, float("nan")]), ValueError, ["weight", "1 NaN", "finite"]),
    "NaN in a full block": (torch.tensor([1.0, float("nan")] * 64), ValueError, ["weight", "64 NaN", "finite"]),
    "infinity": (torch.tensor([1.0, -float("inf"), float("inf")]), ValueError, ["weight", "2 infinite", "finite"]),
    "infinity of float16": (torch.tensor([1e6] * 64).half(), ValueError, ["weight", "64 infinite", "finite"]),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_bad_weight(case: str) -> None:
    weight, error, words = BAD_WEIGHTS[case]
    with pytest.raises(error) as caught:
        quantize_4bit(weight)
    assert_one_sentence(str(caught.value), words)


BAD_ARGUMENTS = {
    "a block size that is none": ({"block_size": 48}, ValueError, ["block_size", "48", "32, 64, 128, 256, 512, 1024, 2048, 4096"]),
    "a block size of zero": ({"block_size": 0}, ValueError, ["block_size", "0", "64"]),
    "a negative block size": ({"block_size": -64}, ValueError, ["block_size", "-64", "64"]),
    "a fraction": ({"block_size": 64.0}, TypeError, ["block_size", "64.0", "integers"]),
    "a truth for a size": ({"block_size": True}, TypeError, ["block_size", "True", "integers"]),
    "no block size": ({"block_size": None}, TypeError, ["block_size", "None", "integers"]),
    "a name in capitals": ({"codebook": "NF4"}, ValueError, ["codebook", '"NF4"', 'did you mean "nf4"?']),
    "a codebook for double_quant": ({"double_quant": "nf4"}, TypeError, ["double_quant", "'nf4'", "True or False"]),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_argument(case: str) -> None:
    arguments, error, words = BAD_ARGUMENTS[case]
    with pytest.raises(error) as caught:
        quantize_4bit(torch.ones(64), **arguments)
    assert_one_sentence(str(caught.value), words)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.uint8, "float32", 32])
def test_bad_dtype_to_read_back_in(dtype: object) -> None:
    with pytest.raises(TypeError) as caught:
        quantize_4bit(torch.ones(64)).dequantize(dtype)
    assert_one_sentence(str(caught.value), ["dtype", repr(dtype), "torch.float32, torch.float16, torch.bfloat16"])


def test_scales_too_large_for_their_mean() -> None:
    weight = torch.full((128,), 3e38)
    assert torch.isinf(oracle(weight, "nf4", 64, True)[1].offset)  # bitsandbytes says nothing
    with pytest.raises(ValueError) as caught:
        quantize_4bit(weight, double_quant=True)
    assert_one_sentence(str(caught.value), ["weight", "3e+38", "double_quant", "overflows float32"])


def test_parts_that_do_not_fit_together() -> None:
    whole = quantize_4bit(torch.randn(20_000))
    nested = quantize_4bit(torch.randn(20_000), double_quant=True).absmax
    parts = {"shape": whole.shape, "dtype": whole.dtype, "codebook": whole.codebook, "block_size": 64}
    bad = [
        (whole.packed[:-1], whole.absmax, ["packed", "(9999, 1)", "20,000 weights", "(10000, 1)"]),
        (whole.packed.flatten(), whole.absmax, ["packed", "(10000,)", "(10000, 1)"]),
        (whole.packed.to(torch.int32), whole.absmax, ["packed", "torch.int32", "torch.uint8"]),
        (whole.packed, whole.absmax[:-1], ["absmax", "312 scales", "313"]),
        (whole.packed, NestedScales(nested.codes[:-1], nested.absmax, nested.offset), ["absmax", "312 scales", "313"]),
        (whole.packed, NestedScales(nested.codes, nested.absmax[:-1], nested.offset), ["absmax.absmax", "1 scales", "2"]),
    ]
    for packed, absmax, words in bad:
        with pytest.raises(ValueError) as caught:
            Quantized4bit(packed, absmax, **parts)
        assert_one_sentence(str(caught.value), words)


BAD_PARTS = {
    "a block size that divides no slice": ({"block_size": 48}, ValueError, ["block_size", "48", "32, 64, 128"]),
    "a block size of zero": ({"block_size": 0}, ValueError, ["block_size", "0", "32, 64, 128"]),
    "a fraction": ({"block_size": 64.0}, TypeError, ["block_size", "64.0", "integers"]),
    "a shape that is none of torch's": ({"shape": (SLICE + 96,)}, TypeError, ["shape", "tuple", "torch.Size"]),
    "float64": ({"dtype": torch.float64}, TypeError, ["dtype", "torch.float64", "torch.float32"]),
}


@pytest.mark.parametrize("case", BAD_PARTS)
def test_parts_that_can_not_be_read_back(case: str) -> None:
    """48 divides no slice, so from the second slice on a weight would be read back with the scales of other blocks."""
    bad, error, words = BAD_PARTS[case]
    weights = SLICE + 96
    parts = {"shape": torch.Size([weights]), "dtype": torch.float32, "codebook": CODEBOOKS["nf4"], "block_size": 64} | bad
    packed, absmax = torch.zeros(weights // 2, 1, dtype=torch.uint8), torch.ones(-(-weights // int(parts["block_size"] or 64)))
    with pytest.raises(error) as caught:
        Quantized4bit(packed, absmax, **parts)
    assert_one_sentence(str(caught.value), words)


def assert_one_sentence(text: str, words: list[str]) -> None:
    """The text names the argument first, says what was given and what is allowed."""
    assert text.startswith(words[0])
    assert "\n" not in text
    for word in words:
        assert word in text


def test_an_odd_count_of_codes_does_not_fill_bytes() -> None:
    with pytest.raises(ValueError) as caught:
        pack(torch.tensor([1, 2, 3], dtype=torch.uint8))  # torch would use the 2 twice, and say nothing
    assert_one_sentence(str(caught.value), ["codes", "3 numbers", "even"])
    assert pack(torch.tensor([], dtype=torch.uint8)).tolist() == []


def test_looking_up_bytes_is_looking_up_codes() -> None:
    """All 256 bytes, in blocks that end at their end and in blocks that don't."""
    packed = torch.arange(256, dtype=torch.uint8)
    for block_size in (32, 64, 96):
        scales = torch.rand(-(-512 // block_size), generator=torch.Generator().manual_seed(0))
        for book in CODEBOOKS.values():
            by_code = values_times_scales(unpack(packed), scales, book.values, block_size)
            assert torch.equal(as_bytes(dequantize_slice(packed, scales, book.values, block_size)), as_bytes(by_code))


# --- What else the codebooks promise to quantizing ---


def test_a_codebook_can_be_made_once_and_used_often() -> None:
    weight = torch.randn(128, generator=torch.Generator().manual_seed(0))
    book = resolve_codebook("fp4")
    assert isinstance(book, Codebook)
    assert torch.equal(quantize_4bit(weight, book).packed, quantize_4bit(weight, "fp4").packed)
    ascending = CODEBOOKS["nf4"].values
    assert torch.equal(quantize_4bit(weight, ascending.double()).packed, quantize_4bit(weight, "nf4").packed)


def test_scale_codebook_is_left_as_it_was() -> None:
    before = dynamic_map()
    quantize_4bit(torch.randn(5000), double_quant=True).dequantize()
    assert torch.equal(dynamic_map(), before)
