"""`course_utils.codebooks`: the values are those of bitsandbytes in every bit, and a codebook that can't serve is refused with a reason."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from bitsandbytes import functional as bnb
from hypothesis import given
from hypothesis import strategies as st

from course_utils.codebooks import (
    CODEBOOKS,
    OUTERMOST,
    Codebook,
    dynamic_map,
    float32,
    float32_steps,
    fp4_value,
    int4_value,
    nf4_values,
    resolve_codebook,
)


def bits(values: torch.Tensor) -> list[int]:
    return values.view(torch.int32).tolist()


# --- Every bit ---


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_values_are_those_of_bitsandbytes_in_every_bit(name: str) -> None:
    assert bits(CODEBOOKS[name].values) == bits(bnb.get_4bit_type(name, device="cpu"))


def test_dynamic_map_is_that_of_bitsandbytes_in_every_bit() -> None:
    assert bits(dynamic_map()) == bits(bnb.create_dynamic_map())


@pytest.mark.parametrize("count", [8, 9])
def test_steps_are_those_of_torch(count: int) -> None:
    """For other counts, torch rounds once or twice as the CPU has it."""
    assert float32_steps(OUTERMOST, 0.5, count) == torch.linspace(OUTERMOST, 0.5, count).tolist()


@given(st.floats(allow_nan=False, allow_infinity=False, width=64).filter(lambda number: abs(number) < 3.4e38))
def test_float32_rounds_as_numpy_does(number: float) -> None:
    assert float32(number) == float(np.float32(number))


# --- What the lesson says of them ---


def count_equal(values: list[float]) -> int:
    """How many of the sixteen are NF4's, once they are float32."""
    return sum(a == b for a, b in zip(torch.tensor(sorted(values)).tolist(), CODEBOOKS["nf4"].values.tolist(), strict=True))


def test_nf4_without_rounding_on_the_way_matches_in_6_of_16() -> None:
    quantile = NormalDist().inv_cdf
    steps = {n: [OUTERMOST + (0.5 - OUTERMOST) / n * i for i in range(n)] for n in (7, 8)}
    largest = quantile(OUTERMOST)
    exact = [quantile(p) / largest for p in steps[8]] + [0.0] + [-quantile(p) / largest for p in steps[7]]
    assert count_equal(exact) == 6
    assert max(abs(a - b) for a, b in zip(sorted(exact), nf4_values(), strict=True)) < 2e-7


def test_nf4_from_all_digits_of_the_outermost_probability_matches_in_4_of_16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("course_utils.codebooks.OUTERMOST", (31 / 32 + 29 / 30) / 2)
    assert count_equal(nf4_values()) == 4


def test_nf4_by_the_folklore_formula_is_another_codebook() -> None:
    folklore = [NormalDist().inv_cdf((i + 0.5) / 16) for i in range(16)]
    folklore = [value / max(folklore) for value in folklore]
    assert 0.0 not in folklore
    assert count_equal(folklore) == 2  # only -1 and 1


def test_nf4_has_seven_negative_values_a_zero_and_eight_positive() -> None:
    values = nf4_values()
    assert [sum(v < 0 for v in values), values.count(0.0), sum(v > 0 for v in values)] == [7, 1, 8]
    assert values[0] == -1 and values[-1] == 1 and math.copysign(1, values[7]) == 1


def test_fp4_names_fifteen_values_with_two_codes_for_zero() -> None:
    values = [fp4_value(code) for code in range(16)]
    assert len(set(values)) == 15
    assert [code for code in range(16) if values[code] == 0] == [0b0000, 0b1000]
    assert values != sorted(values)


def test_fp4_is_not_what_the_function_named_beside_it_makes() -> None:
    """bitsandbytes says that create_fp8_map regenerates its FP4 table. The smallest value but 0 is four times as large there."""
    regenerated = bnb.create_fp8_map(signed=True, exponent_bits=2, precision_bits=1, total_bits=4).unique()
    ours = CODEBOOKS["fp4"].values.unique()
    different = regenerated != ours
    assert different.sum() == 2
    assert torch.equal(regenerated[different], 4 * ours[different])


def test_int4_is_two_s_complement() -> None:
    for code in range(16):
        assert round(7 * int4_value(code)) & 0b1111 == code
    assert [round(7 * value) for value in CODEBOOKS["int4"].values.tolist()] == [0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1]


@pytest.mark.parametrize("name", CODEBOOKS)
def test_thresholds_lie_half_way(name: str) -> None:
    book = CODEBOOKS[name]
    ordered = [book.values[code].item() for code in book.codes_in_order().tolist()]
    assert ordered == sorted(ordered)
    assert len(book.thresholds()) == 15
    for low, threshold, high in zip(ordered, book.thresholds(), ordered[1:], strict=False):
        assert threshold == pytest.approx((low + high) / 2, rel=1e-7, abs=1e-9)


# --- What a person may write, and what not ---


@pytest.mark.parametrize("name", CODEBOOKS)
def test_a_name(name: str) -> None:
    assert resolve_codebook(name) is CODEBOOKS[name]
    assert resolve_codebook(CODEBOOKS[name]) is CODEBOOKS[name]


GOOD = [-1.0, -0.9, -0.7, -0.5, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1.0]


@pytest.mark.parametrize("make", [list, tuple, np.array, torch.tensor, lambda values: torch.tensor(values, dtype=torch.float64)])
def test_a_codebook_of_ones_own(make: object) -> None:
    book = resolve_codebook(make(GOOD))
    assert book.name == "own"
    assert book.values.dtype == torch.float32
    assert book.values.tolist() == torch.tensor(GOOD).tolist()
    assert book.codes_in_order().tolist() == list(range(16))


def test_changing_ones_own_numbers_later_changes_nothing() -> None:
    numbers = torch.tensor(GOOD)
    book = resolve_codebook(numbers)
    numbers[0] = 5
    assert book.values[0] == -1


@pytest.mark.parametrize(
    ("name", "meant"),
    [("NF4", "nf4"), ("Nf4", "nf4"), ("nf-4", "nf4"), (" nf4", "nf4"), ("nf", "nf4"), ("FP4", "fp4"), ("fp_4", "fp4"), ("INT4", "int4")],
)
def test_near_miss(name: str, meant: str) -> None:
    with pytest.raises(ValueError) as caught:
        resolve_codebook(name)
    assert_says(caught, [f'codebook is "{name}"', '"nf4", "fp4", "int4"', f'did you mean "{meant}"?'])


def test_far_miss() -> None:
    with pytest.raises(ValueError) as caught:
        resolve_codebook("quantiles")
    assert_says(caught, ['codebook is "quantiles"', '"nf4", "fp4", "int4"'])
    assert "mean" not in str(caught.value)


def replaced(place: int, value: float) -> list[float]:
    return [*GOOD[:place], value, *GOOD[place + 1 :]]


BAD_VALUES = {
    "fifteen": (GOOD[:-1], ["(15,)", "(16,)", "pattern of four bits"]),
    "seventeen": ([*GOOD, 1.0], ["(17,)", "(16,)"]),
    "a table": (torch.tensor(GOOD).view(4, 4), ["(4, 4)", "(16,)"]),
    "a single number": (4, ["()", "(16,)"]),
    "NaN": (replaced(3, math.nan), ["codebook[3] is nan", "finite", "no number"]),
    "infinity": (replaced(15, math.inf), ["codebook[15] is inf", "finite"]),
    "beyond 1": (replaced(15, 1.5), ["codebook[15] is 1.5", "[-1, 1]", "largest of their block"]),
    "beyond -1": (replaced(0, -7.0), ["codebook[0] is -7", "[-1, 1]"]),
    "not ascending": (replaced(3, 0.6), ["codebook[4] is -0.3", "after 0.6", "larger", "counting"]),
    "descending": (GOOD[::-1], ["codebook[1] is 0.9", "after 1", "larger"]),
    "twice the same": (replaced(2, -0.9), ["codebook[2] is -0.9", "after -0.9", "larger", "wastes"]),
    "twice the same as float32": (torch.tensor(replaced(2, -0.9 + 1e-12), dtype=torch.float64), ["codebook[2]", "float32"]),
    "no zero": (replaced(7, 0.01), ["no 0 among", "a weight of 0 must stay 0"]),
    "almost zero beside zero": (replaced(6, -1.4e-45), ["codebook[6]", "1.18e-38", "stay 0"]),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_values_that_can_not_serve(case: str) -> None:
    values, words = BAD_VALUES[case]
    with pytest.raises(ValueError) as caught:
        resolve_codebook(values)
    assert_says(caught, words)


BAD_TYPES = {
    "nothing": (None, ["NoneType", "a name, or 16 ascending numbers"]),
    "a dict": ({0: -1.0}, ["dict", "a name, or 16 ascending numbers"]),
    "words": (["a"] * 16, ["list", "a name, or 16 ascending numbers"]),
    "complex": (torch.tensor(GOOD, dtype=torch.complex64), ["complex64", "a name, or 16 ascending numbers"]),
    "booleans": ([True] * 16, ["bool", "a name, or 16 ascending numbers"]),
    "meta": (torch.tensor(GOOD, device="meta"), ["meta", "a name, or 16 ascending numbers"]),
    "sparse": (torch.tensor(GOOD).to_sparse(), ["sparse", "a name, or 16 ascending numbers"]),
}


@pytest.mark.parametrize("case", BAD_TYPES)
def test_what_is_no_codebook(case: str) -> None:
    given, words = BAD_TYPES[case]
    with pytest.raises(TypeError) as caught:
        resolve_codebook(given)
    assert_says(caught, words)


BAD_PARTS = {
    "float64": (torch.linspace(-1, 1, 16, dtype=torch.float64), ValueError, ["torch.float64", "torch.float32"]),
    "fifteen": (torch.tensor(GOOD[:-1]), ValueError, ["(15,)", "(16,)"]),
    "a table": (torch.tensor(GOOD).view(4, 4), ValueError, ["(4, 4)", "(16,)"]),
    "meta": (torch.tensor(GOOD, device="meta"), ValueError, ["device meta", "cpu"]),
    "NaN": (torch.tensor(replaced(3, math.nan)), ValueError, ["NaN", "finite"]),
    "infinity": (torch.tensor(replaced(15, math.inf)), ValueError, ["infinities", "finite"]),
    "a list": (GOOD, TypeError, ["list", "torch.Tensor"]),
}


@pytest.mark.parametrize("case", BAD_PARTS)
def test_a_codebook_is_not_made_of_what_can_not_be_looked_up(case: str) -> None:
    values, error, words = BAD_PARTS[case]
    with pytest.raises(error, match="^values ") as caught:
        Codebook("mine", values)
    for word in words:
        assert word in str(caught.value)


def assert_says(caught: pytest.ExceptionInfo, words: list[str]) -> None:
    text = str(caught.value)
    assert text.startswith("codebook") and "\n" not in text
    for word in words:
        assert word in text
