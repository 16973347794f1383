"""What learners answer to the questions of lessons 02 to 06, written here as they write it, and what the checkers say.

`tests/test_questions.py` holds a question to what is registered with it. Here little is taken from the question: numbers are worked out
another way, many of them by asking bitsandbytes or torch, and wrong answers are written anew, each with words that the verdict must
have. So a wrong number in a question, a message at the wrong mistake, or inputs that no longer tell two answers apart, show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bitsandbytes import functional as bnb
from torch import Tensor

from course_utils.codebooks import CODEBOOKS, dynamic_map, float32
from course_utils.linear import MultiplyByQuantized
from course_utils.memory import tensor_bytes_in_4bit
from course_utils.quantize import Quantized4bit, nearest_scale_codes, quantize_4bit
from course_utils.questions import LESSONS, FunctionQuestion, NumberQuestion, find

QUESTIONS = [question for stem, questions in LESSONS.items() if "02" <= stem[:2] <= "06" for question in questions]
NUMBERS = [question for question in QUESTIONS if isinstance(question, NumberQuestion)]
FUNCTIONS = [question for question in QUESTIONS if isinstance(question, FunctionQuestion)]

# --- Numbers, worked out another way --------------------------------------------------------------------------------------------------


def int4(code: int) -> float:
    """The value of a code of int4, by its signed integer."""
    return CODEBOOKS["int4"].values[code & 0b1111].item()


def largest_error(codebook: str, absmax: float) -> float:
    """The largest error of a million evenly spaced numbers in a block with this absmax."""
    numbers = torch.linspace(-absmax, absmax, 1_000_000)
    blocks = torch.cat([torch.full((15_874, 1), absmax), F.pad(numbers, (0, 62)).view(-1, 63)], dim=1)
    return (quantize_4bit(blocks, codebook).dequantize() - blocks).abs().max().item()


def folklore_zero() -> float:
    """The value nearest to 0 of the sixteen quantiles without a zero, in a block with absmax 2.5."""
    p = (torch.arange(16, dtype=torch.float64) + 0.5) / 16
    values = torch.erfinv(2 * p - 1)  # sqrt(2) times that is the quantile, and the largest divides it away
    return 2.5 * (values / values.max()).abs().min().item()


def fp4_code() -> int:
    packed, _ = bnb.quantize_4bit(torch.tensor([-1.8, 3.0]), quant_type="fp4")
    return packed.item() >> 4


def bytes_of_bitsandbytes(blocks: int, double_quant: bool) -> int:
    """What bitsandbytes keeps of a weight of so many blocks of 64, the dynamic map included."""
    packed, state = bnb.quantize_4bit(torch.ones(blocks, 64), quant_type="nf4", compress_statistics=double_quant)
    kept = [packed, state.absmax, *([state.state2.absmax, state.state2.code, state.offset] if double_quant else [])]
    return sum(tensor.nbytes for tensor in kept)


def by_the_layer() -> float:
    packed = torch.tensor([[0x2F], [0x69]], dtype=torch.uint8)
    weight = Quantized4bit(packed, torch.tensor([2.8]), torch.Size([1, 4]), torch.float32, CODEBOOKS["int4"], 64)
    return MultiplyByQuantized.apply(torch.tensor([1.0, 2.0, -1.0, 3.0]), weight, None).item()


def by_autograd() -> float:
    weight = torch.tensor([[0.8, -0.4, 2.4, -2.8], [0.5, 1, -1.5, 2]])
    x = torch.tensor([1.0, 2.0, -1.0, 3.0], requires_grad=True)
    first, second = weight @ x
    (first + 3 * second).backward()
    return x.grad[1].item()


WORKED_OUT: dict[str, Callable[[], float]] = {
    "02.1": lambda: 0.42 * int4(-5),
    "02.2": lambda: largest_error("int4", 1.75),
    "02.5": lambda: 0.55 - (torch.tensor(0.55) / 0.07).round().clamp(-8, 7).item() * 0.07,
    "02.8": lambda: (128 * 4 + 16 + 4) / 128,
    "03.1": lambda: len(bnb.quantize_4bit(torch.ones(300, 50), quant_type="nf4")[1].absmax),
    "03.6": lambda: sum(64 for _ in range(1000)) / (4096 * 4096 / 100),
    "03.7": lambda: (32 * 4 + 16 + 16) / 32,
    "04.1": folklore_zero,
    "04.4": lambda: largest_error("nf4", 1.0),
    "04.6": fp4_code,
    "05.1": lambda: int("0011" + "1100", base=2),
    "05.8": lambda: next(n for n in range(1, 2000) if bytes_of_bitsandbytes(n, True) < bytes_of_bitsandbytes(n, False)),
    "06.1": by_the_layer,
    "06.4": by_autograd,
    "06.5": lambda: (tensor_bytes_in_4bit(28_672 * 8_192) + 28_672 * 8_192 * 2) / 1e6,
}


@pytest.mark.parametrize("question", NUMBERS, ids=lambda question: question.id)
def test_a_number_worked_out_another_way_is_correct(question: NumberQuestion) -> None:
    number = WORKED_OUT[question.id]()
    assert question.verdict(number).state == "correct"
    assert number == pytest.approx(question.answer, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("question", NUMBERS, ids=lambda question: question.id)
def test_a_number_near_the_right_one_is_not(question: NumberQuestion) -> None:
    """Two percent beside it. The text asks for two decimals or three where less than all are enough."""
    for near in (question.answer * 1.02, question.answer * 0.98):
        assert question.verdict(near).state == "not right"


# --- Functions: another right way, and results that are nearly right ----------------------------------------------------------------------


def changed(value: Any, by: float) -> Any:
    """A result with each of its float numbers changed by this factor."""
    if isinstance(value, Tensor):
        return value * by if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        return [changed(item, by) for item in value]
    return value * by if isinstance(value, float) else value


WHOLE_NUMBERS = ("02.4", "02.7", "03.4", "04.7", "05.2", "05.3", "05.6", "05.7", "06.3")
WITH_A_POINT = [question for question in FUNCTIONS if question.id not in WHOLE_NUMBERS]
"""Those that return numbers with a point, beside whole ones or alone."""


@pytest.mark.parametrize("question", WITH_A_POINT, ids=lambda question: question.id)
@pytest.mark.parametrize("by", [1.0005, 0.9995])
def test_a_result_that_is_off_a_little_is_not_right(question: FunctionQuestion, by: float) -> None:
    assert question.verdict(lambda *args: changed(question.answer(*args), by)).state == "not right"


def nearest_by_distance(scaled: Tensor, codebook: Tensor) -> Tensor:
    return (scaled.double()[:, None] - codebook.double()).abs().argmin(dim=1).to(torch.uint8)  # argmin takes the first, the lower one


OTHER_RIGHT_WAYS: dict[str, Callable[..., Any]] = {
    "02.4": lambda numbers: [round(x) for x in numbers],
    "03.2": lambda numbers, size: (lambda q: (scaled_by_bitsandbytes(numbers, size), q))(
        bnb.quantize_4bit(numbers, blocksize=64, quant_type="nf4")[1].absmax if size == 64 else absmax_of(numbers, size)
    ),
    "03.3": lambda values, absmax, size: torch.stack([v * absmax[i // size] for i, v in enumerate(values)]),
    "03.4": lambda row, column, columns, size: divmod(row * columns + column, size)[0],
    "04.5": lambda code: bnb.get_4bit_type("fp4", device="cpu")[code].item(),
    "04.3": lambda: bnb.get_4bit_type("nf4", device="cpu").tolist(),
    "04.7": nearest_by_distance,
    "05.2": lambda codes: sum((16 * F.pad(codes, (0, len(codes) % 2), value=7)[0::2], F.pad(codes, (0, len(codes) % 2), value=7)[1::2])),
    "05.3": lambda packed, count: torch.tensor([part for byte in packed.tolist() for part in divmod(byte, 16)], dtype=torch.uint8)[:count],
    "05.7": lambda row, column, columns, size: divmod(column, size)[0] == (row * columns + column) // size - row * (columns // size),
}


def blocks_of(numbers: Tensor, size: int) -> Iterator[Tensor]:
    return (numbers[start : start + size] for start in range(0, len(numbers), size))


def absmax_of(numbers: Tensor, size: int) -> Tensor:
    return torch.stack([b.abs().max() if len(b) == size else b.abs().max().clamp(min=1e-38) for b in blocks_of(numbers, size)])


def scaled_by_bitsandbytes(numbers: Tensor, size: int) -> Tensor:
    parts = []
    for block in blocks_of(numbers, size):
        divisor = block.abs().max().clamp(min=1e-38)
        parts.append(block * (1 / divisor) if len(block) == size else block / divisor)
    return torch.cat(parts)


@pytest.mark.parametrize("question_id", OTHER_RIGHT_WAYS)
def test_another_right_way_is_correct(question_id: str) -> None:
    assert str(find(question_id).verdict(OTHER_RIGHT_WAYS[question_id])) == "correct."


# --- Wrong answers, and what must be said to them ----------------------------------------------------------------------------------------

answer = SimpleNamespace(**{question.name: question.answer for question in FUNCTIONS})
"""The right functions by their names, for wrong answers that differ only in one thing."""


def int4_codes_with(rounding: Callable[[Tensor], Tensor], parts: int = 7) -> Callable[[Tensor], Any]:
    def int4_codes(numbers: Tensor) -> Any:
        scale = numbers.abs().max().item() / parts or 1.0
        return rounding(numbers / scale).to(torch.int8), scale

    return int4_codes


def zero_point_with(low_high: Callable[[Tensor], tuple[float, float]], parts: int = 15, limit: int = 15) -> Callable[[Tensor], Any]:
    def zero_point_codes(numbers: Tensor) -> Any:
        low, high = low_high(numbers)
        scale = (high - low) / parts
        zero_point = round(-low / scale)
        return (torch.round(numbers / scale) + zero_point).clamp(0, limit).to(torch.uint8), scale, zero_point

    return zero_point_codes


def with_zero(numbers: Tensor) -> tuple[float, float]:
    return min(0.0, numbers.min().item()), max(0.0, numbers.max().item())


def wiped_out_with(scale_of: Callable[[Tensor, float], float]) -> Callable[[Tensor, float], int]:
    return lambda numbers, outlier: int((torch.round(numbers / scale_of(numbers, outlier)) == 0).sum())


def scaled_everywhere_by(scale: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, int], Any]:
    def scale_blocks(numbers: Tensor, size: int) -> Any:
        found = [(scale(block, block.abs().max().clamp(min=1e-38)), block) for block in blocks_of(numbers, size)]
        return torch.cat([scaled for scaled, _ in found]), absmax_of(numbers, size)

    return scale_blocks


def int4_in_blocks_with(rounding: Callable[[Tensor], Tensor]) -> Callable[[Tensor, int], Tensor]:
    def int4_in_blocks(numbers: Tensor, size: int) -> Tensor:
        scales = [(b, b.abs().max() / 7) for b in blocks_of(numbers, size)]
        return torch.cat([scale * rounding(b / scale) for b, scale in scales])

    return int4_in_blocks


def float_of_four_bits(code: int) -> float:
    """E2M1: the value of an ordinary float, with 6 as the largest, divided so that it is 1."""
    sign, exponent, mantissa = code >> 3, (code >> 1) & 3, code & 1
    size = (1 + mantissa / 2) * 2 ** (exponent - 1) if exponent else mantissa / 2
    return (-1) ** sign * size / 6


def nested(absmax: Tensor, offset: Tensor, size: int = 256) -> Any:
    centred = absmax - offset
    rows = F.pad(centred, (0, -len(centred) % size)).view(-1, size)
    largest = rows.abs().amax(dim=1)
    return nearest_scale_codes(rows * (1 / largest)[:, None]).view(-1)[: len(absmax)], largest, offset.item()


def restored(codes: Tensor, nested_absmax: Tensor, offset: float, size: int = 256) -> Tensor:
    return dynamic_map()[codes.int()] * nested_absmax.repeat_interleave(size)[: len(codes)] + offset


def linear_with(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    codebook: Tensor,
    shape: tuple[int, int],
    compute_dtype: str,
    block_size: int = 64,
    halves: Callable[[Tensor], tuple[Tensor, Tensor]] = lambda b: (b >> 4, b & 15),
    scale: bool = True,
    dtype: torch.dtype | None = None,
    back: bool = True,
) -> Tensor:
    count = shape[0] * shape[1]
    codes = torch.stack(halves(packed.view(-1)), dim=1).view(-1)[:count].int()
    weight = codebook[codes] * (absmax.repeat_interleave(block_size)[:count] if scale else 1)
    dtype = dtype or getattr(torch, compute_dtype)
    output = F.linear(x.to(dtype), weight.view(*shape).to(dtype))
    return output.to(x.dtype) if back else output


def layers_where(chosen: Callable[[str, str, list[str]], bool]) -> Callable[[dict[str, str], list[str]], list[str]]:
    return lambda layers, skip: [name for name, kind in layers.items() if chosen(name, kind, skip)]


def stored_with(
    count: Callable[[int, int], int] = lambda a, b: -(-a // b), offset: int = 4, second: bool = True, float_scales: bool = False
) -> Callable[[int, int, bool], int]:
    def stored_bytes(weights: int, block_size: int, double_quant: bool) -> int:
        blocks = count(weights, block_size)
        if not double_quant:
            return count(weights, 2) + 4 * blocks
        scales = blocks + (4 * count(blocks, 256) if second else 0) + offset
        return count(weights, 2) + scales + (4 * blocks if float_scales else 0)

    return stored_bytes


def bound_with(unit: float, roundings: int = 4, less: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, weight: ((1 + unit) ** roundings - less) * (x.abs() @ weight.abs().T)


def quantiles(bits: int, outermost: float, largest: float | None = None) -> list[float]:
    """The values of a NormalFloat from this outermost probability, in order; nothing is rounded."""
    count = 2**bits

    def side(steps: int) -> list[float]:
        return [NormalDist().inv_cdf(outermost - i * (outermost - 0.5) / steps) for i in range(steps)]

    positive, negative = side(count // 2), [-x for x in side(count // 2 - 1)]
    return [x / (largest or positive[0]) for x in [*negative, 0.0, *positive[::-1]]]


def outermost(bits: int) -> float:
    return 1 - (1 / 2**bits + 1 / (2**bits - 1)) / 4


WRONG: list[tuple[str, Any, list[str]]] = [
    ("02.1", -5 * 0.42 / 8, ["divided the absmax by 8"]),
    ("02.1", 5 * 0.42 / 7, ["negative"]),
    ("02.1", 0.42 / 7, ["the scale", "multiply"]),
    ("02.2", 1.75 / 7, ["that is the step", "half"]),
    ("02.2", 1.75 / 2, ["half of the absmax"]),
    ("02.3", int4_codes_with(lambda x: x), ["cut off", "torch.round"]),
    ("02.3", int4_codes_with(torch.floor), ["rounded down"]),
    ("02.3", int4_codes_with(lambda x: torch.floor(x + 0.5)), ["halves", "up"]),
    ("02.3", int4_codes_with(lambda x: x.round().clamp(-8, 7), parts=8), ["by 8"]),
    ("02.3", lambda x: (answer.int4_codes(x)[0].float(), answer.int4_codes(x)[1]), ["float32", "int8"]),
    ("02.4", lambda numbers: [int(x + 0.5) if x >= 0 else -int(-x + 0.5) for x in numbers], ["away from 0"]),
    ("02.4", lambda numbers: [int(x) for x in numbers], ["cut off"]),
    ("02.4", lambda numbers: [int((x + 0.5) // 1) for x in numbers], ["round halves up"]),
    ("02.4", lambda numbers: [-int((-x + 0.5) // 1) for x in numbers], ["round halves down"]),
    ("02.5", 8 * 0.07 - 0.55, ["code 8"]),
    ("02.5", 7 * 0.07, ["comes back"]),
    ("02.5", 7 * 0.07 - 0.55, ["without its sign"]),
    ("02.6", zero_point_with(with_zero, limit=255), ["16", "clamp"]),
    ("02.6", zero_point_with(with_zero, parts=16), ["by 16", "fifteen gaps"]),
    ("02.6", zero_point_with(lambda x: (-x.abs().max().item(), x.abs().max().item())), ["absmax", "no codes are wasted"]),
    ("02.6", lambda x: (*answer.zero_point_codes(x)[:2], -answer.zero_point_codes(x)[2]), ["wrong sign"]),
    ("02.6", lambda x: (answer.zero_point_codes(x)[0].to(torch.int8), *answer.zero_point_codes(x)[1:]), ["int8", "uint8"]),
    ("02.7", wiped_out_with(lambda x, outlier: x.abs().max().item() / 7), ["numbers alone"]),
    ("02.7", wiped_out_with(lambda x, outlier: abs(outlier) / 7), ["outlier alone"]),
    ("02.7", wiped_out_with(lambda x, outlier: max(x.abs().max().item(), outlier) / 7), ["negative outliers"]),
    ("02.7", wiped_out_with(lambda x, outlier: max(x.abs().max().item(), abs(outlier)) / 8), ["by 8"]),
    ("02.7", lambda x, outlier: len(x) - answer.wiped_out(x, outlier), ["what is left"]),
    ("02.8", 4 + 16 / 128, ["zero point is missing"]),
    ("02.8", 4 + (32 + 4) / 128, ["32 bits"]),
    ("03.1", 300 * 50 // 64, ["left"]),
    ("03.1", 300, ["row"]),
    ("03.2", scaled_everywhere_by(lambda block, m: block / m), ["divide full blocks"]),
    ("03.2", scaled_everywhere_by(lambda block, m: block * (1 / m)), ["short block", "divides"]),
    ("03.2", lambda x, n: (answer.scale_blocks(x, n)[0], 1 / answer.scale_blocks(x, n)[1]), ["1 / absmax"]),
    ("03.2", lambda x, n: (7 * answer.scale_blocks(x, n)[0], answer.scale_blocks(x, n)[1] / 7), ["7 of int4"]),
    ("03.3", lambda values, absmax, n: values * absmax.repeat(n)[: len(values)], ["repeat_interleave"]),
    ("03.3", lambda values, absmax, n: values * absmax[0], ["first absmax"]),
    ("03.3", lambda values, absmax, n: values / absmax.repeat_interleave(n)[: len(values)], ["divided"]),
    ("03.3", lambda values, absmax, n: answer.restore(values, absmax, n) / 7, ["seventh"]),
    ("03.4", lambda row, column, columns, n: row * (columns // n) + column // n, ["columns // block_size"]),
    ("03.4", lambda row, column, columns, n: (row * columns + column) / n, ["whole number"]),
    ("03.4", lambda row, column, columns, n: column // n, ["left out the row"]),
    ("03.4", lambda row, column, columns, n: (row * columns + column) % n, ["place within the block"]),
    ("03.5", int4_in_blocks_with(torch.trunc), ["cut off towards 0"]),
    ("03.5", int4_in_blocks_with(lambda x: x), ["as they were"]),
    ("03.5", lambda x, n: int4_in_blocks_with(torch.round)(x, len(x)), ["one scale for all"]),
    ("03.5", lambda x, n: int4_in_blocks_with(torch.round)(x, n)[: len(x) // n * n], ["missing"]),
    ("03.6", 1000 / 4096**2 * 100, ["outliers alone"]),
    ("03.6", 1000 * 64 / 4096**2, ["percentage"]),
    ("03.7", 4 + 16 / 32, ["a number is missing", "64"]),
    ("03.7", 4 + (16 + 4) / 32, ["float16"]),
    ("04.1", 0, ["exact 0"]),
    ("04.1", folklore_zero() / 2.5, ["2.5"]),
    ("04.1", 2 * folklore_zero(), ["distance"]),
    ("04.2", lambda bits: quantiles(bits, outermost(bits), largest=1), ["divide"]),
    ("04.2", lambda bits: quantiles(bits, 1 - 1 / 2 ** (bits + 1)), ["31/32"]),
    ("04.2", lambda bits: quantiles(bits, 0.9677083), ["0.9677083"]),
    ("04.2", lambda bits: [-x for x in quantiles(bits, outermost(bits))][::-1], ["negative side"]),
    ("04.2", lambda bits: [x for x in quantiles(bits, outermost(bits)) if x], ["0 is missing"]),
    ("04.3", lambda: quantiles(4, 0.9677083), ["nothing is rounded"]),
    ("04.3", lambda: [float32(x) for x in quantiles(4, 0.9677083)], ["six of the sixteen"]),
    ("04.3", lambda: [*answer.nf4_codebook()[:8], *answer.nf4_codebook()[:7:-1]], ["not in order"]),
    ("04.4", 2 * largest_error("nf4", 1.0), ["distance between -1"]),
    ("04.4", largest_error("fp4", 1.0), ["FP4"]),
    ("04.4", largest_error("int4", 1.0), ["int4"]),
    ("04.5", float_of_four_bits, ["E2M1"]),
    ("04.5", lambda code: abs(answer.fp4_value(code)), ["never negative"]),
    ("04.5", lambda code: 12 * answer.fp4_value(code), ["12 times"]),
    ("04.6", fp4_code() & 0b0111, ["sign"]),
    ("04.6", bnb.quantize_4bit(torch.tensor([-3.0, 3.0]), quant_type="fp4")[0].item() >> 4, ["absmax first"]),
    ("04.6", CODEBOOKS["fp4"].codes_in_order().tolist().index(fp4_code()), ["place"]),
    ("04.7", lambda scaled, book: nearest_by_distance(scaled, book).long(), ["eight bytes"]),
    ("04.7", lambda scaled, book: nearest_by_distance(scaled, book) + 1, ["one too high"]),
    ("04.7", lambda scaled, book: book[nearest_by_distance(scaled, book).int()], ["nearest values"]),
    ("04.7", lambda x, book: (len(book) - 1 - nearest_by_distance(-x, -book.flip(0))).to(torch.uint8), ["half-way", "lower"]),
    ("04.8", lambda numbers, values: answer.lloyd_round(numbers, answer.lloyd_round(numbers, values)), ["two rounds"]),
    ("04.8", lambda numbers, values: list(values), ["no value has moved"]),
    ("04.8", lambda n, v: [(a + b) / 2 for a, b in zip(v, answer.lloyd_round(n, v), strict=True)], ["half of the way"]),
    ("05.1", 12 * 16 + 3, ["swapped"]),
    ("05.1", 3 | 12, ["without moving"]),
    ("05.1", 3 * 12, ["multiplied"]),
    ("05.2", lambda c: F.pad(c, (0, len(c) % 2), value=7)[1::2] << 4 | F.pad(c, (0, len(c) % 2), value=7)[0::2], ["swapped"]),
    ("05.2", lambda c: c[0::2] << 4 | c[1::2], ["odd", "Add a 7"]),
    ("05.2", lambda c: (lambda p: p[0::2] << 4 | p[1::2])(F.pad(c, (0, len(c) % 2), value=0)), ["code 0", "-1"]),
    ("05.2", lambda c: answer.pack(F.pad(c, (0, len(c) % 2), value=8)), ["code 7 and not 8"]),
    ("05.2", lambda c: answer.pack(c).view(-1, 1), ["(n, 1)"]),
    ("05.3", lambda packed, count: torch.stack([packed & 15, packed >> 4], dim=1).view(-1)[:count], ["swapped"]),
    ("05.3", lambda packed, count: torch.cat([packed >> 4, packed & 15])[:count], ["alternate"]),
    ("05.3", lambda packed, count: torch.stack([packed >> 4, packed & 15], dim=1).view(-1), ["one too many"]),
    ("05.4", lambda absmax: nested(absmax, torch.tensor(0.0)), ["mean is missing"]),
    ("05.4", lambda absmax: nested(absmax, absmax.min()), ["smallest scale"]),
    ("05.4", lambda absmax: nested(absmax, absmax.median()), ["median"]),
    ("05.4", lambda absmax: nested(absmax, absmax.mean(), size=64), ["64"]),
    ("05.4", lambda absmax: nested(absmax, absmax.mean(), size=len(absmax)), ["same number"]),
    ("05.5", lambda codes, largest, offset: restored(codes, largest, 0.0), ["offset is missing"]),
    ("05.5", lambda codes, largest, offset: restored(codes, largest, -offset), ["second time"]),
    ("05.5", lambda codes, largest, offset: restored(codes, largest[:1].expand(99), offset), ["first 256"]),
    ("05.5", lambda codes, largest, offset: codes * largest.repeat_interleave(256)[: len(codes)] + offset, ["look their values up"]),
    ("05.6", stored_with(count=lambda a, b: a / b), ["parts of bytes"]),
    ("05.6", stored_with(offset=0), ["4 bytes are missing", "offset"]),
    ("05.6", stored_with(second=False), ["scales of the scales"]),
    ("05.6", stored_with(float_scales=True), ["replace"]),
    ("05.6", lambda *args: 8 * stored_with()(*args), ["bits"]),
    ("05.7", lambda row, column, columns, n: columns % n == 0, ["those of row 0"]),
    ("05.7", lambda row, column, columns, n: columns % n == 0 or row == 0, ["in later rows, too"]),
    ("05.7", lambda row, column, columns, n: (row * columns + column) // n != row * (columns // n) + column // n, ["other way round"]),
    ("05.7", lambda row, column, columns, n: (row * columns + column) // n, ["own block: is it"]),
    ("05.8", 1024 // 4, ["a quarter"]),
    ("05.8", 346 * 64, ["number of weights"]),
    ("06.1", -by_the_layer(), ["too large"]),
    ("06.1", by_the_layer() / 2.8, ["scale is missing"]),
    ("06.1", 7 * by_the_layer(), ["sevenths"]),
    ("06.2", lambda *args: linear_with(*args, halves=lambda b: (b & 15, b >> 4)), ["upper half"]),
    ("06.2", lambda *args: linear_with(*args, scale=False), ["between -1 and 1"]),
    ("06.2", lambda *args: linear_with(*args, dtype=torch.float32), ["compute dtype"]),
    ("06.2", lambda *args: linear_with(*args, dtype=torch.bfloat16), ["bfloat16 always"]),
    ("06.2", lambda *args: linear_with(*args, back=False), ["that of x"]),
    ("06.3", layers_where(lambda name, kind, skip: kind == "Linear"), ["in skip too"]),
    ("06.3", layers_where(lambda name, kind, skip: kind == "Linear" and name not in skip), ["whole names only"]),
    ("06.3", layers_where(lambda name, kind, skip: kind == "Linear" and name.split(".")[-1] not in skip), ["last parts only"]),
    ("06.3", layers_where(lambda name, kind, skip: name not in skip and name.split(".")[-1] not in skip), ["embeddings"]),
    ("06.4", 0, ["frozen"]),
    ("06.4", 2 * by_autograd(), ["multiplied by the input"]),
    ("06.4", -0.4 + 1.0, ["three times"]),
    ("06.5", tensor_bytes_in_4bit(28_672 * 8_192) / 1e6, ["what is stored"]),
    ("06.5", 28_672 * 8_192 * 2 / 1e6, ["read back"]),
    ("06.6", bound_with(2**-8, less=0.0), ["take 1 off"]),
    ("06.6", bound_with(2**-8, roundings=3), ["three roundings"]),
    ("06.6", bound_with(2**-11), ["float16"]),
    ("06.6", lambda x, weight: ((1 + 2**-8) ** 4 - 1) * (x @ weight.T).abs(), ["abs()", "before the sum"]),
]


@pytest.mark.parametrize(("question_id", "wrong", "words"), WRONG, ids=[f"{row[0]} {row[2][0]}" for row in WRONG])
def test_a_wrong_answer_is_told_why(question_id: str, wrong: Any, words: list[str]) -> None:
    verdict = find(question_id).verdict(wrong)
    assert verdict.state == "not right"
    for word in words:
        assert word in verdict.reason


def test_each_question_has_such_a_wrong_answer() -> None:
    """The closing task, which takes a model, is left to tests/test_questions.py."""
    assert {question_id for question_id, _, _ in WRONG} == {question.id for question in NUMBERS + FUNCTIONS} - {"06.8"}
