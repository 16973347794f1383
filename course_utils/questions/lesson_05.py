"""The questions of lesson 05, pack and quantize twice."""

from __future__ import annotations

import random
from types import ModuleType
from typing import TYPE_CHECKING

from course_utils.questions.kinds import ExplanationQuestion, FunctionQuestion, Mistake, NumberQuestion

if TYPE_CHECKING:
    import torch


def _torch() -> ModuleType:
    """torch, imported when a question of this lesson is checked and not before: the checks of other lessons start faster."""
    import torch

    return torch


def _dynamic_map() -> torch.Tensor:
    from course_utils.codebooks import dynamic_map

    return dynamic_map()


def _nearest_scale_codes(scaled: torch.Tensor) -> torch.Tensor:
    from course_utils.quantize import nearest_scale_codes

    return nearest_scale_codes(scaled)


# --- 05.1 ------------------------------------------------------------------------------------------------------------------------

PUT_TWO_CODES_IN_A_BYTE = NumberQuestion(
    id="05.1",
    title="Put two codes in a byte",
    points=1,
    difficulty=1,
    minutes=3,
    name="byte",
    answer=60,
    within=0,
    hints=(
        "The first code goes into the upper half: it moves up by four bits. Moving up by one bit doubles a number.",
        "Four bits are four doublings: the first code counts 16 times. Add the second.",
    ),
    solution="byte = 3 * 16 + 12  # 0011 and 1100: 00111100",
    mistakes=(
        Mistake("halves swapped", 195, "the halves are swapped: the first code, 3, belongs in the upper half."),
        Mistake("not moved", 15, "you have joined the codes without moving the first: it goes up by four bits."),
        Mistake("times 15", 57, "the largest code is 15, but four bits up means 16 times."),
        Mistake("decimal digits", 312, "that is more than a byte can hold: side by side are bits, not decimal digits."),
        Mistake("first alone", 48, "the first code is where it should be: the second is missing."),
        Mistake("moved by eight", 780, "you have moved the first code by eight bits, a whole byte: half a byte is four."),
        Mistake("moved by three", 28, "you have moved the first code by three bits: a nibble has four."),
        Mistake("moved by five", 108, "you have moved the first code by five bits: a nibble has four."),
        Mistake("product", 36, "you have multiplied the codes: the first counts 16 times, and the second is added."),
    ),
)

# --- 05.2 ------------------------------------------------------------------------------------------------------------------------


def pack(codes):
    """Two codes in each byte, the first in the upper half; an odd count is filled up with 7."""
    import torch

    if len(codes) % 2:
        codes = torch.cat([codes, codes.new_tensor([7])])
    return codes[0::2] << 4 | codes[1::2]


def _codes(count: int, pick: random.Random) -> torch.Tensor:
    """Codes without a 7 at the end, where it could be taken for the pad."""
    import torch

    return torch.tensor([pick.randrange(16) for _ in range(count - 1)] + [pick.randrange(1, 7)], dtype=torch.uint8)


def _codes_to_pack(seed: int) -> list[tuple[torch.Tensor]]:
    import torch

    pick = random.Random(seed)
    by_hand = [torch.tensor(codes, dtype=torch.uint8) for codes in ([15, 1], [3, 12, 0, 9], [1, 2, 3], [5])]
    return [(codes,) for codes in [*by_hand, *(_codes(count, pick) for count in (64, 10, 3, 128))]]


def _padded(codes: torch.Tensor, pad: int = 7) -> torch.Tensor:
    import torch

    return torch.cat([codes, codes.new_full((len(codes) % 2,), pad)])


PACK = FunctionQuestion(
    id="05.2",
    title="Pack",
    points=2,
    difficulty=2,
    minutes=8,
    name="pack",
    answer=pack,
    inputs=_codes_to_pack,
    hints=(
        "codes[0::2] are the first of each pair, codes[1::2] the second. The first has to move up by four bits.",
        "If len(codes) is odd, add one code at the end before you take pairs: torch.cat([codes, torch.tensor([7], dtype=torch.uint8)]).",
        "codes[0::2] << 4 | codes[1::2] joins them and remains uint8.",
    ),
    mistakes=(
        Mistake(
            "halves swapped",
            lambda codes: _padded(codes)[1::2] << 4 | _padded(codes)[0::2],
            "the halves are swapped: the first code of each pair belongs in the upper half.",
        ),
        Mistake(
            "not padded",
            lambda codes: codes[0::2] << 4 | codes[1::2],
            "even counts are right, and odd ones are not: PyTorch stretches one code to fit the others. Add a 7 at the end first.",
        ),
        Mistake(
            "pad 0",
            lambda codes: pack(_padded(codes, 0)),
            "only the fill of an odd count is left: code 0 of NF4 stands for -1. The fill is the code of the value 0.",
        ),
        Mistake(
            "pad 8",
            lambda codes: pack(_padded(codes, 8)),
            "only the fill of an odd count is left: NF4 has 8 positive values and 7 negative ones, so its zero is code 7 and not 8.",
        ),
        Mistake(
            "pad 15",
            lambda codes: pack(_padded(codes, 15)),
            "only the fill of an odd count is left: code 15 of NF4 stands for 1. The fill is the code of the value 0.",
        ),
        Mistake(
            "pad in front",
            lambda codes: pack(_torch().cat([codes.new_full((len(codes) % 2,), 7), codes])),
            "only an odd count is left: the fill comes at the end, and you have put it in front.",
        ),
        Mistake(
            "last code dropped",
            lambda codes: pack(codes[: len(codes) // 2 * 2]),
            "of an odd count you have dropped the last code: it needs a byte, too, filled up with 7.",
        ),
        Mistake(
            "fill in the upper half",
            lambda codes: pack(codes) if len(codes) % 2 == 0 else pack(_torch().cat([codes[:-1], codes.new_tensor([7]), codes[-1:]])),
            "only an odd count is left: its last code belongs in the upper half, and the 7 in the lower.",
        ),
        Mistake(
            "two halves of the tensor",
            lambda codes: _padded(codes)[: (len(codes) + 1) // 2] << 4 | _padded(codes)[(len(codes) + 1) // 2 :],
            "you have paired the first half of the tensor with the second: a byte holds two codes that follow each other.",
        ),
        Mistake(
            "times 15",
            lambda codes: _padded(codes)[0::2] * 15 + _padded(codes)[1::2],
            "you have multiplied by 15: four bits up means 16 times.",
        ),
        Mistake(
            "int64",
            lambda codes: pack(codes).long(),
            "the numbers are right, but each takes 8 bytes: return dtype uint8, or nothing is saved.",
        ),
        Mistake(
            "a column",
            lambda codes: pack(codes).unsqueeze(1),
            "the bytes are right, in the shape (n, 1) of bitsandbytes: here return them in one dimension.",
        ),
    ),
)

# --- 05.3 ------------------------------------------------------------------------------------------------------------------------


def unpack(packed, count):
    """The first ``count`` codes, two from each byte, the upper half first."""
    import torch

    codes = torch.stack([packed >> 4, packed & 0b1111], dim=1).view(-1)
    return codes[:count]


def _bytes_to_unpack(seed: int) -> list[tuple[torch.Tensor, int]]:
    import torch

    pick = random.Random(seed)
    by_hand = [(torch.tensor([241], dtype=torch.uint8), 2), (torch.tensor([60, 9, 87], dtype=torch.uint8), 5)]
    drawn = [(pack(_codes(count, pick)), count) for count in (64, 31, 2, 1)]
    return by_hand + drawn


UNPACK = FunctionQuestion(
    id="05.3",
    title="Unpack",
    points=2,
    difficulty=2,
    minutes=7,
    name="unpack",
    answer=unpack,
    inputs=_bytes_to_unpack,
    hints=(
        "packed >> 4 are all upper halves, packed & 15 all lower ones. They have to alternate.",
        "torch.stack([upper, lower], dim=1) makes a table with a row for each byte; .view(-1) reads it row by row.",
        "The last code of an odd count is followed by the fill: return only the first `count` codes.",
    ),
    mistakes=(
        Mistake(
            "halves swapped",
            lambda packed, count: _torch().stack([packed & 15, packed >> 4], dim=1).view(-1)[:count],
            "each pair is swapped: the first code is in the upper half.",
        ),
        Mistake(
            "fill kept",
            lambda packed, count: unpack(packed, 2 * len(packed)),
            "the codes are right, and there is one too many if `count` is odd: the fill is no code of a weight.",
        ),
        Mistake(
            "upper halves first",
            lambda packed, count: _torch().cat([packed >> 4, packed & 15])[:count],
            "you have put all upper halves before all lower ones: they alternate. Is it dim=1 in your torch.stack?",
        ),
        Mistake(
            "lower half not masked",
            lambda packed, count: _torch().stack([packed >> 4, packed], dim=1).view(-1)[:count],
            "every second code still has the upper half in it: keep the lower four bits, & 15.",
        ),
        Mistake(
            "upper half not moved",
            lambda packed, count: _torch().stack([packed & 240, packed & 15], dim=1).view(-1)[:count],
            "your upper halves are 16 times too large: move them down by four bits.",
        ),
        Mistake(
            "modulo 15",
            lambda packed, count: _torch().stack([packed // 15, packed % 15], dim=1).view(-1)[:count],
            "you have divided by 15: a byte is 16 times the first code plus the second.",
        ),
        Mistake(
            "lower three bits",
            lambda packed, count: _torch().stack([packed >> 4, packed & 7], dim=1).view(-1)[:count],
            "your lower codes never exceed 7: four bits are kept by & 15, or & 0b1111.",
        ),
        Mistake(
            "int64",
            lambda packed, count: unpack(packed, count).long(),
            "the codes are right: return them as uint8, so that eight bytes aren't taken for each.",
        ),
    ),
)

# --- 05.4 ------------------------------------------------------------------------------------------------------------------------


def quantize_scales(absmax):
    """8-bit codes of the scales less their mean, a scale for each 256 codes, and the mean."""
    import torch

    from course_utils.quantize import nearest_scale_codes

    offset = absmax.mean()
    centred = absmax - offset
    rows = torch.nn.functional.pad(centred, (0, -len(centred) % 256)).view(-1, 256)
    nested_absmax = rows.abs().amax(dim=1)
    codes = nearest_scale_codes(rows * (1 / nested_absmax).unsqueeze(1)).view(-1)
    return codes[: len(centred)], nested_absmax, offset.item()


def _scales(count: int, random_numbers: torch.Generator) -> torch.Tensor:
    """Scales as those of blocks of normal numbers, and one that is far below.

    All are whole numbers of 1/1024, and their mean is, too. So it comes out the same in whichever order and precision it is computed.
    """
    import torch

    units = (torch.randn(count, 64, generator=random_numbers).abs().amax(dim=1) * 1024).round()
    units[count // 2] = 1
    units[: int(units.sum()) % count] -= 1
    return units / 1024


def _scales_to_quantize(seed: int) -> list[tuple[torch.Tensor]]:
    import torch

    random_numbers = torch.Generator().manual_seed(seed)
    by_hand = [torch.tensor([1.0, 2.0, 3.0, 2.0]), torch.tensor([1.0, 3.0, 3.0, 3.0])]
    return [(scales,) for scales in [*by_hand, *(_scales(count, random_numbers) for count in (256, 300, 1000))]]


def _evenly_spaced(scaled: torch.Tensor) -> torch.Tensor:
    import torch

    return ((scaled + 1) * 127.5).round().to(torch.uint8)


def _compared_with_thresholds(scaled: torch.Tensor) -> torch.Tensor:
    import torch

    from course_utils.codebooks import dynamic_map

    values = dynamic_map()
    return torch.bucketize(scaled, (values[:-1] + values[1:]) / 2).to(torch.uint8)


def _quantize_scales_with(
    absmax, *, offset=None, size=256, by_block=False, signed=False, of_all=False, find=_nearest_scale_codes, cut=True
):
    """``quantize_scales`` with one of its parts wrong."""
    import torch

    offset = absmax.mean() if offset is None else offset
    size = len(absmax) if of_all else size
    pad = (0, -len(absmax) % size)
    rows = torch.nn.functional.pad(absmax - offset, pad).view(-1, size)
    if by_block:
        counts = torch.nn.functional.pad(torch.ones_like(absmax), pad).view(-1, size)
        offset = torch.nn.functional.pad(absmax, pad).view(-1, size).sum(dim=1) / counts.sum(dim=1)
        rows = (torch.nn.functional.pad(absmax, pad).view(-1, size) - offset[:, None]) * counts
    largest = rows.amax(dim=1) if signed else rows.abs().amax(dim=1)
    codes = find(rows * (1 / largest).unsqueeze(1)).view(-1)
    return codes[: len(absmax)] if cut else codes, largest, offset.tolist() if isinstance(offset, torch.Tensor) else offset


QUANTIZE_SCALES = FunctionQuestion(
    id="05.4",
    title="Quantize the scales",
    points=4,
    difficulty=4,
    minutes=18,
    name="quantize_scales",
    answer=quantize_scales,
    inputs=_scales_to_quantize,
    tolerance=1e-6,
    hints=(
        "Three steps: take off the mean of all scales; divide each block of 256 by its largest absolute value; find the codes.",
        "torch.nn.functional.pad(centred, (0, -len(centred) % 256)).view(-1, 256) makes rows of 256, the last one filled up with zeros.",
        "rows.abs().amax(dim=1) is the scale of each row. nearest_scale_codes takes the rows as they are after the division.",
        "Cut the codes of the fill off again: .view(-1)[:len(absmax)]. Return codes, the scales of the rows, and the mean.",
    ),
    mistakes=(
        Mistake(
            "no offset",
            lambda absmax: _quantize_scales_with(absmax, offset=0.0),
            "the mean is missing: take it off all scales first, or no code below the middle is used.",
        ),
        Mistake(
            "offset kept and not taken off",
            lambda absmax: (*_quantize_scales_with(absmax, offset=0.0)[:2], absmax.mean().item()),
            "you return the mean but have not taken it off the scales.",
        ),
        Mistake(
            "smallest as offset",
            lambda absmax: _quantize_scales_with(absmax, offset=absmax.min()),
            "you have taken off the smallest scale, so that nothing is negative, as with a zero point: here it is the mean.",
        ),
        Mistake(
            "median as offset",
            lambda absmax: _quantize_scales_with(absmax, offset=absmax.median()),
            "you have taken off the median: the offset is the mean.",
        ),
        Mistake(
            "a mean for each block",
            lambda absmax: _quantize_scales_with(absmax, by_block=True),
            "you have a mean for each block of 256: there is one offset, the mean of all scales.",
        ),
        Mistake(
            "largest with its sign",
            lambda absmax: _quantize_scales_with(absmax, signed=True),
            "you have divided by the largest number of each block: less the mean, a negative one may be larger in size. Use abs().",
        ),
        Mistake(
            "one block",
            lambda absmax: _quantize_scales_with(absmax, of_all=True),
            "all scales have been divided by the same number: each block of 256 has a scale of its own.",
        ),
        Mistake(
            "blocks of 64",
            lambda absmax: _quantize_scales_with(absmax, size=64),
            "your blocks have 64 scales, as those of the weights have: here they have 256.",
        ),
        Mistake(
            "evenly spaced",
            lambda absmax: _quantize_scales_with(absmax, find=_evenly_spaced),
            "scales and offset are right, the codes are not: 256 even steps are not the dynamic map. Use nearest_scale_codes.",
        ),
        Mistake(
            "compared with thresholds",
            lambda absmax: _quantize_scales_with(absmax, find=_compared_with_thresholds),
            "nearly: a scale equal to the mean gets 127 from you, and 131 from bitsandbytes, which rounds to one of 65,536 points first. "
            "Use nearest_scale_codes.",
        ),
        Mistake(
            "not divided",
            lambda absmax: (_nearest_scale_codes(absmax - absmax.mean()), *quantize_scales(absmax)[1:]),
            "you have looked up codes without dividing: each block of 256 is divided by its own scale first.",
        ),
        Mistake(
            "fill kept",
            lambda absmax: _quantize_scales_with(absmax, cut=False),
            "there are more codes than scales: cut off those of the zeros that filled the last block.",
        ),
    ),
)

# --- 05.5 ------------------------------------------------------------------------------------------------------------------------


def restore_scales(codes, nested_absmax, offset):
    """The scales: the value of each code, times the scale of its block of 256, plus the offset."""
    from course_utils.codebooks import dynamic_map

    values = dynamic_map()[codes.int()]
    return values * nested_absmax.repeat_interleave(256)[: len(codes)] + offset


def _scales_to_restore(seed: int) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
    import torch

    random_numbers = torch.Generator().manual_seed(seed)
    by_hand = [(torch.tensor([0, 131, 255, 191], dtype=torch.uint8), torch.tensor([1.0]), 2.0)]
    drawn = [
        (
            torch.randint(0, 256, (count,), generator=random_numbers, dtype=torch.uint8),
            torch.rand(-(-count // 256), generator=random_numbers) + 0.5,
            2.0 + count / 1000,
        )
        for count in (100, 512, 600)
    ]
    return by_hand + drawn


def _restore_with(codes, nested_absmax, offset, *, values=None, size=256):
    """``restore_scales`` with other values, or another block size."""
    import torch

    from course_utils.codebooks import dynamic_map

    values = dynamic_map()[codes.int()] if values is None else values
    return values * nested_absmax[(torch.arange(len(codes)) // size).clamp(max=len(nested_absmax) - 1)] + offset


RESTORE_SCALES = FunctionQuestion(
    id="05.5",
    title="Restore the scales",
    points=2,
    difficulty=3,
    minutes=8,
    name="restore_scales",
    answer=restore_scales,
    inputs=_scales_to_restore,
    tolerance=1e-6,
    hints=(
        "The way back, step by step: look the codes up in the map, multiply by the scale of the block, add the offset.",
        "dynamic_map()[codes.int()] looks up all codes at once.",
        "nested_absmax.repeat_interleave(256) has each scale 256 times; the last block may be shorter, so cut it to len(codes).",
    ),
    mistakes=(
        Mistake(
            "offset forgotten",
            lambda codes, nested_absmax, offset: restore_scales(codes, nested_absmax, 0.0),
            "the offset is missing: the mean that was taken off has to come back.",
        ),
        Mistake(
            "offset taken off",
            lambda codes, nested_absmax, offset: restore_scales(codes, nested_absmax, -offset),
            "you have taken the offset off a second time: on the way back it is added.",
        ),
        Mistake(
            "offset before the product",
            lambda codes, nested_absmax, offset: _restore_with(codes, nested_absmax, 0.0, values=_dynamic_map()[codes.int()] + offset),
            "you have added the offset before you multiply: it was taken off before the division, so it comes back after the product.",
        ),
        Mistake(
            "not multiplied",
            lambda codes, nested_absmax, offset: _dynamic_map()[codes.int()] + offset,
            "values and offset are right: each value has to be multiplied by the scale of its block.",
        ),
        Mistake(
            "first scale for all",
            lambda codes, nested_absmax, offset: _restore_with(codes, nested_absmax[:1], offset),
            "the first 256 are right: the blocks after it have scales of their own.",
        ),
        Mistake(
            "blocks of 64",
            lambda codes, nested_absmax, offset: _restore_with(codes, nested_absmax, offset, size=64),
            "you go on to the next scale after 64 codes: here a block has 256.",
        ),
        Mistake(
            "codes as even steps",
            lambda codes, nested_absmax, offset: _restore_with(codes, nested_absmax, offset, values=codes / 127.5 - 1),
            "you have read the codes as even steps from -1 to 1: they are places in the dynamic map.",
        ),
        Mistake(
            "codes as values",
            lambda codes, nested_absmax, offset: _restore_with(codes, nested_absmax, offset, values=codes.float()),
            "you have multiplied the codes themselves: look their values up in dynamic_map() first.",
        ),
    ),
)

# --- 05.6 ------------------------------------------------------------------------------------------------------------------------


def stored_bytes(weights, block_size, double_quant):
    """The bytes of packed codes and scales, the offset included and the codebooks not."""
    packed = (weights + 1) // 2
    blocks = (weights + block_size - 1) // block_size
    if not double_quant:
        return packed + 4 * blocks
    return packed + blocks + 4 * ((blocks + 255) // 256) + 4


def _sizes(seed: int) -> list[tuple[int, int, bool]]:
    pick = random.Random(seed)
    by_hand = [(64, 64, False), (128, 64, True), (5, 64, False), (5, 64, True), (16_384, 64, True), (65, 64, False)]
    even = [pick.randrange(100_000, 1_000_000) * 2 for _ in range(4)]
    drawn = [(even[0], 64, False), (even[1] + 1, 128, False), (even[2], 32, True), (even[3] + 1, 64, True)]
    return by_hand + drawn


def _stored_with(weights, block_size, double_quant, *, offset=4, codebooks=False, bits=False, packed=None, blocks=None, nested=None):
    """``stored_bytes`` with one of its parts wrong."""
    packed = (weights + 1) // 2 if packed is None else packed
    blocks = (weights + block_size - 1) // block_size if blocks is None else blocks
    nested = (blocks + 255) // 256 if nested is None else nested
    total = packed + (blocks + 4 * nested + offset if double_quant else 4 * blocks)
    total += (64 + 1024 * double_quant) * codebooks
    return total * 8 if bits else total


COUNT_THE_BYTES = FunctionQuestion(
    id="05.6",
    title="Count the bytes to the last one",
    points=3,
    difficulty=3,
    minutes=10,
    name="stored_bytes",
    answer=stored_bytes,
    inputs=_sizes,
    tolerance=0.0,
    hints=(
        "Without double quantization: a byte for each two weights, and 4 bytes for each block. The last ones may not be full.",
        "With it: a byte for each block, 4 bytes for each 256 blocks, and 4 for the offset.",
        "Rounded up, n / m is (n + m - 1) // m. So the packed codes take (weights + 1) // 2 bytes.",
    ),
    mistakes=(
        Mistake(
            "last byte missing",
            lambda weights, size, double: _stored_with(weights, size, double, packed=weights // 2),
            "even counts are right: the last code of an odd count needs a byte, too. Round up.",
        ),
        Mistake(
            "short block missing",
            lambda weights, size, double: _stored_with(weights, size, double, blocks=weights // size),
            "whole blocks are right: a last block that is not full has a scale, too. Round up.",
        ),
        Mistake(
            "short second block missing",
            lambda weights, size, double: _stored_with(weights, size, double, nested=(weights + size - 1) // size // 256),
            "nearly: the last block of scales, which may have fewer than 256 codes, has a scale, too. Round up.",
        ),
        Mistake(
            "nothing rounded",
            lambda weights, size, double: _stored_with(
                weights, size, double, packed=weights / 2, blocks=weights / size, nested=weights / size / 256
            ),
            "you have parts of bytes and of blocks: round each of the divisions up.",
        ),
        Mistake(
            "offset forgotten",
            lambda weights, size, double: _stored_with(weights, size, double, offset=0),
            "with double quantization 4 bytes are missing: the offset.",
        ),
        Mistake(
            "offset in each second block",
            lambda weights, size, double: _stored_with(weights, size, double, offset=4 * (((weights + size - 1) // size + 255) // 256)),
            "you have an offset for each 256 scales: the whole matrix has one.",
        ),
        Mistake(
            "scales of scales forgotten",
            lambda weights, size, double: _stored_with(weights, size, double, nested=0),
            "the scales of the scales are missing: 4 bytes for each 256 blocks.",
        ),
        Mistake(
            "both kinds of scales",
            lambda weights, size, double: stored_bytes(weights, size, double) + 4 * ((weights + size - 1) // size) * double,
            "with double quantization the 8-bit codes replace the float32 scales: you have counted both.",
        ),
        Mistake(
            "flag ignored",
            lambda weights, size, double: stored_bytes(weights, size, False),
            "this holds without double quantization: with it a block has one byte instead of four, and more comes on top.",
        ),
        Mistake(
            "codes not packed",
            lambda weights, size, double: _stored_with(weights, size, double, packed=weights),
            "you have a byte for each weight: two share one.",
        ),
        Mistake(
            "codebooks counted",
            lambda weights, size, double: _stored_with(weights, size, double, codebooks=True),
            "the codebooks are in it, 64 and 1,024 bytes: leave them out here.",
        ),
        Mistake("bits", lambda weights, size, double: _stored_with(weights, size, double, bits=True), "8 times too much: those are bits."),
    ),
)

# --- 05.7 ------------------------------------------------------------------------------------------------------------------------


def reads_right(row, column, columns, block_size):
    """Whether bitsandbytes 0.50.2 on AVX-512 takes the scale of a weight's own block."""
    own = (row * columns + column) // block_size
    taken = row * (columns // block_size) + column // block_size
    return taken == own


def _weights_of_matrices(seed: int) -> list[tuple[int, int, int, int]]:
    pick = random.Random(seed)
    by_hand = [(1, 0, 352, 64), (1, 40, 352, 64), (0, 300, 352, 64), (2, 0, 352, 64), (1, 5, 64, 64), (3, 47, 48, 64), (1, 10, 48, 64)]
    drawn = [(pick.randrange(2, 100), pick.randrange(columns), columns, 64) for columns in (100, 128, 1040)]
    return by_hand + drawn


FIND_THE_WRONG_SCALE = FunctionQuestion(
    id="05.7",
    title="Find the weights that are read wrongly",
    points=2,
    difficulty=3,
    minutes=8,
    name="reads_right",
    answer=reads_right,
    inputs=_weights_of_matrices,
    hints=(
        "Which number has the weight's own block? In the flattened matrix the rows before it have `columns` weights each.",
        "Its place is row * columns + column, counted from 0, and its block that // block_size. Compare with the number taken.",
    ),
    mistakes=(
        Mistake(
            "whole rows only",
            lambda row, column, columns, size: columns % size == 0,
            "where a row is no whole number of blocks, some are still read right: those of row 0, for example. Compare the numbers.",
        ),
        Mistake(
            "whole rows or the first one",
            lambda row, column, columns, size: columns % size == 0 or row == 0,
            "nearly: in later rows, too, the two numbers can be the same, as for (1, 0, 352, 64).",
        ),
        Mistake(
            "the other way round",
            lambda row, column, columns, size: not reads_right(row, column, columns, size),
            "the other way round: return True where the scale is its own.",
        ),
        Mistake(
            "number of the own block",
            lambda row, column, columns, size: (row * columns + column) // size,
            "that is the number of the weight's own block: is it the number that is taken?",
        ),
        Mistake(
            "number that is taken",
            lambda row, column, columns, size: row * (columns // size) + column // size,
            "that is the number that is taken: is it that of the weight's own block?",
        ),
        Mistake(
            "divided twice",
            lambda row, column, columns, size: row * (columns // size) + column // size == row * columns // size + column // size,
            "nearly: you have rounded down twice, and two halves of a block can make a whole one. Add first, then divide once.",
        ),
    ),
)

# --- 05.8 ------------------------------------------------------------------------------------------------------------------------

WHERE_IT_PAYS = NumberQuestion(
    id="05.8",
    title="Say where double quantization begins to pay",
    points=2,
    difficulty=4,
    minutes=10,
    name="blocks_that_pay",
    answer=346,
    within=0,
    hints=(
        "Each block saves something: its scale shrinks from 4 bytes to 1. What comes on top for each matrix, and for each 256 blocks?",
        "With b blocks 3 * b bytes are saved. The map takes 1,024 bytes, the offset 4, and each 256 blocks that are begun take 4.",
        "Somewhere above 256 blocks: 3 * b has to be more than 1,024 + 4 + 2 * 4.",
    ),
    solution=("blocks_that_pay = next(\n    blocks for blocks in range(1, 1000)\n    if 3 * blocks > 1024 + 4 + 4 * -(-blocks // 256)\n)"),
    mistakes=(
        Mistake("map alone", 342, "you have set 3 bytes a block against the map alone: offset and scales of the scales come on top."),
        Mistake("map and offset", 343, "map and offset are in it: the scales of the scales are missing, 4 bytes for each 256 blocks."),
        Mistake("as many", 344, "nearly: what is saved must be more than what comes on top, and that is the map, the offset and more."),
        Mistake(
            "one byte short",
            345,
            "nearly: with 345 blocks 1,035 bytes are saved, and 1,036 come on top: map, offset, and two scales of scales.",
        ),
        Mistake("one too far", 347, "it pays already with one block fewer."),
        Mistake("as large as the map", 256, "there the scales take as much as the map: but they don't vanish, they shrink to a quarter."),
        Mistake("codes forgotten", 257, "a block doesn't save 4 bytes: 1 remains for its code."),
        Mistake("weights", 346 * 64, "that is the number of weights: how many blocks of 64 are they?"),
        Mistake("bits", 43, "you have taken bits and bytes together: a block saves 3 bytes, 24 bits, and the map takes 1,024 bytes."),
    ),
)

# --- 05.9 ------------------------------------------------------------------------------------------------------------------------

WHY_THE_MEAN = ExplanationQuestion(
    id="05.9",
    title="Say why the mean is taken off",
    points=4,
    difficulty=3,
    minutes=8,
    name="why_the_mean",
    hints=(
        "Which codes can occur if the mean is left in? Think of what an absmax never is.",
        "How far apart are the scales of a matrix, compared with how large they are? And what does the offset cost?",
    ),
    model_answer=(
        "A scale is an absmax and never negative, so without the offset the codes of negative values, half of the 256, would go unused.\n"
        "Moreover the scales of a matrix lie near each other. Less their mean they are small. Each block is then divided by its largest\n"
        "deviation and not by its largest scale, so the steps between values become finer: in the lesson the scales were off by 0.22 %\n"
        "instead of 0.68 %. It costs one float32 for the whole matrix.\n"
        "Weights lie on both sides of 0 already, around a mean near 0: taking it off would gain nothing."
    ),
    rubric=(
        (1, "Scales are never negative: without it half of the codes, those of negative values, go unused."),
        (1, "Scales lie near each other: less the mean the range is smaller and the steps are finer (off by 0.22 % instead of 0.68 %)."),
        (1, "The price: one number, 4 bytes, for the whole matrix."),
        (1, "Weights have values on both sides of 0 and a mean near 0, so there is nothing to gain."),
    ),
)

QUESTIONS = (
    PUT_TWO_CODES_IN_A_BYTE,
    PACK,
    UNPACK,
    QUANTIZE_SCALES,
    RESTORE_SCALES,
    COUNT_THE_BYTES,
    FIND_THE_WRONG_SCALE,
    WHERE_IT_PAYS,
    WHY_THE_MEAN,
)
