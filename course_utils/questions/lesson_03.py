"""The questions of lesson 03, quantize in blocks.

torch is imported where it is needed and not above, so that ``course_utils.checks`` is there at once in an exercise that does without it.
"""

from __future__ import annotations

import random

from course_utils.questions.kinds import ExplanationQuestion, FunctionQuestion, Mistake, NumberQuestion

# --- 03.1 ------------------------------------------------------------------------------------------------------------------------

COUNT_THE_SCALES = NumberQuestion(
    id="03.1",
    title="Count the scales",
    points=1,
    difficulty=2,
    minutes=4,
    name="scales",
    answer=235,
    within=1e-6,
    hints=(
        "Blocks run over the flattened weight: rows do not matter, only how many weights there are in all.",
        "15,000 / 64 is 234.375. The weights that are left over form a block, too.",
    ),
    solution="scales = -(-300 * 50 // 64)  # 234 full blocks, and a short one of 24 weights",
    mistakes=(
        Mistake("short block forgotten", 234, "those are the full blocks: 24 weights are left, and they need a scale as well."),
        Mistake("a part of a scale", 234.375, "there is no third of a scale: the weights that are left over have a whole one."),
        Mistake("rows", 300, "you have begun a new block in each row: blocks run on over the flattened weight."),
        Mistake("columns", 250, "you have begun a new block in each column: blocks run on over the flattened weight, row after row."),
        Mistake("one scale", 1, "that is one scale for the whole tensor: here each block has its own."),
        Mistake("weights in a block", 64, "64 is how many weights share a scale: asked is how many scales there are."),
        Mistake("what is left over", 24, "24 weights are left over for the last block: asked is how many blocks there are in all."),
        Mistake("bytes", 940, "that is bytes, 4 for each scale: asked is how many scales there are."),
        Mistake("weights", 15_000, "that is how many weights there are: 64 of them share a scale."),
    ),
)

# --- 03.2 ------------------------------------------------------------------------------------------------------------------------


def scale_blocks(numbers, block_size):
    """The numbers of a 1-D float32 tensor, each divided by the absmax of its block, and the absmax of each block."""
    import torch

    full = len(numbers) - len(numbers) % block_size
    blocks = numbers[:full].view(-1, block_size)
    absmax = blocks.abs().amax(dim=1)
    scaled = (blocks * (1 / absmax.clamp(min=1e-38)).unsqueeze(1)).view(-1)
    if full == len(numbers):
        return scaled, absmax
    rest = numbers[full:]
    rest_absmax = rest.abs().amax().clamp(min=1e-38)
    return torch.cat([scaled, rest / rest_absmax]), torch.cat([absmax, rest_absmax.view(1)])


def _numbers_and_block_sizes(seed: int) -> list[tuple]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    by_hand = [
        (torch.tensor([0.5, -2.0, 4.0, 1.0]), 2),
        (torch.tensor([1.0, -4.0, 2.0, 3.0, 0.5, 0.25, -0.125, 0.5, 4.0, -8.0]), 4),
        (torch.tensor([-5.0, 6.0, -5.0, 6.0, -5.0, 6.0, 5.0]), 4),  # 5 / 6 and 5 * (1 / 6) are one ulp apart
        (torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, -2.0, 0.0, 0.0, 0.0]), 2),  # zeros in a full block and in a short one
        (torch.tensor([-3.0]), 64),
    ]
    drawn = [(torch.randn(count, generator=generator), size) for count, size in ((128, 64), (200, 64), (1000, 32), (63, 128))]
    return by_hand + drawn


def _scale_blocks_with(
    numbers,
    block_size,
    *,
    largest=lambda block: block.abs().max(),
    full=lambda block, scale: block * (1 / scale),
    short=lambda block, scale: block / scale,
    smallest=1e-38,
    stored=lambda scale, is_full: scale if is_full else scale.clamp(min=1e-38),
):
    """``scale_blocks``, block by block, with one of its parts wrong."""
    import torch

    scaled, absmax = [], []
    for start in range(0, len(numbers), block_size):
        block = numbers[start : start + block_size]
        scale, is_full = largest(block), len(block) == block_size
        scaled.append((full if is_full else short)(block, scale.clamp(min=smallest) if smallest else scale))
        absmax.append(stored(scale, is_full))
    return torch.cat(scaled), torch.stack(absmax)


def _one_scale(numbers, block_size):
    scale = numbers.abs().max()
    return numbers / scale, scale.view(1)


def _no_short_block(numbers, block_size):
    """What is left over is lost."""
    full = len(numbers) - len(numbers) % block_size
    return scale_blocks(numbers[:full], block_size)


def _padding_kept(numbers, block_size):
    import torch

    scaled, absmax = scale_blocks(numbers, block_size)
    return torch.cat([scaled, scaled.new_zeros(-len(numbers) % block_size)]), absmax


def _signed_largest(block):
    return block[block.abs().argmax()]


def _sevenths(numbers, block_size):
    scaled, absmax = scale_blocks(numbers, block_size)
    return scaled * 7, absmax / 7


def _one_divided_by_absmax(numbers, block_size):
    scaled, absmax = scale_blocks(numbers, block_size)
    return scaled, 1 / absmax


def _in_rows(numbers, block_size):
    scaled, absmax = scale_blocks(numbers, block_size)
    full = len(numbers) - len(numbers) % block_size
    if full < len(numbers) or not full:
        return scaled, absmax
    return scaled.view(-1, block_size), absmax


SCALE_THE_BLOCKS = FunctionQuestion(
    id="03.2",
    title="Scale the blocks",
    points=4,
    difficulty=4,
    minutes=14,
    name="scale_blocks",
    answer=scale_blocks,
    inputs=_numbers_and_block_sizes,
    tolerance=0.0,
    hints=(
        "Cut the numbers in two: `full = len(numbers) - len(numbers) % block_size` of them form full blocks, and "
        "`numbers[:full].view(-1, block_size)` has one block in each row. What is left, if anything, is the short block.",
        "For the full blocks: `absmax = blocks.abs().amax(dim=1)`, then `blocks * (1 / absmax.clamp(min=1e-38)).unsqueeze(1)`. "
        "The absmax itself is returned as it is.",
        "For the short block: `rest_absmax = rest.abs().amax().clamp(min=1e-38)`, then `rest / rest_absmax`. "
        "torch.cat joins the two parts; `rest_absmax.view(1)` makes a tensor with one number of it.",
    ),
    mistakes=(
        Mistake(
            "divided everywhere",
            lambda *args: _scale_blocks_with(*args, full=lambda block, scale: block / scale),
            "only the last bits of some numbers differ: you divide full blocks by absmax; bitsandbytes multiplies them by 1 / absmax.",
        ),
        Mistake(
            "reciprocal everywhere",
            lambda *args: _scale_blocks_with(*args, short=lambda block, scale: block * (1 / scale)),
            "only the last bits of some numbers in the short block differ: bitsandbytes divides there, and so should you.",
        ),
        Mistake(
            "the other way round",
            lambda *args: _scale_blocks_with(
                *args, full=lambda block, scale: block / scale, short=lambda block, scale: block * (1 / scale)
            ),
            "only last bits differ: you have it the wrong way round. Full blocks are multiplied by 1 / absmax, the short one is divided.",
        ),
        Mistake(
            "zeros become NaN",
            lambda *args: _scale_blocks_with(*args, smallest=None, stored=lambda scale, is_full: scale),
            "a block of zeros becomes NaN, since its absmax is 0: divide by no less than 1e-38.",
        ),
        Mistake(
            "short block of zeros stores 0",
            lambda *args: _scale_blocks_with(*args, stored=lambda scale, is_full: scale),
            "all is right but the scale of a short block of zeros: bitsandbytes stores 1e-38 there, and you return 0.",
        ),
        Mistake(
            "full block of zeros stores 1e-38",
            lambda *args: _scale_blocks_with(*args, stored=lambda scale, is_full: scale.clamp(min=1e-38)),
            "all is right but the scale of a full block of zeros: it is 0, and is raised to 1e-38 only while dividing.",
        ),
        Mistake(
            "plain division",
            lambda *args: _scale_blocks_with(
                *args, full=lambda block, scale: block / scale, smallest=None, stored=lambda scale, is_full: scale
            ),
            "a block of zeros becomes NaN, since 0 / 0 is no number: divide by no less than 1e-38. Then look at the last bits: "
            "full blocks are multiplied by 1 / absmax.",
        ),
        Mistake(
            "plain reciprocal",
            lambda *args: _scale_blocks_with(
                *args, short=lambda block, scale: block * (1 / scale), smallest=None, stored=lambda scale, is_full: scale
            ),
            "a block of zeros becomes NaN, since 1 / 0 is infinite: take no absmax below 1e-38 there. Then look at the last bits: "
            "the short block is divided by its absmax.",
        ),
        Mistake(
            "divided everywhere, short block of zeros stores 0",
            lambda *args: _scale_blocks_with(*args, full=lambda block, scale: block / scale, stored=lambda scale, is_full: scale),
            "two things are left: full blocks are multiplied by 1 / absmax, and a short block of zeros has the scale 1e-38.",
        ),
        Mistake(
            "reciprocal everywhere, short block of zeros stores 0",
            lambda *args: _scale_blocks_with(*args, short=lambda block, scale: block * (1 / scale), stored=lambda scale, is_full: scale),
            "two things are left, both in the short block: it is divided by its absmax, and its scale is never below 1e-38. "
            "Filling it up with zeros to treat all blocks alike gives other bits.",
        ),
        Mistake(
            "one scale for all",
            _one_scale,
            "you have one absmax for the whole tensor: each block has its own.",
        ),
        Mistake(
            "largest instead of absmax",
            lambda *args: _scale_blocks_with(*args, largest=lambda block: block.max()),
            "your scale is the largest number of the block: where a negative one is larger in size, take its absolute value.",
        ),
        Mistake(
            "sign kept",
            lambda *args: _scale_blocks_with(*args, largest=_signed_largest, smallest=None, stored=lambda scale, is_full: scale),
            "your scale keeps the sign of the largest number, which turns all signs of its block round: an absmax is never negative.",
        ),
        Mistake(
            "short block dropped",
            _no_short_block,
            "what is left over after the full blocks is missing: it is a block of its own, with an absmax of its own.",
        ),
        Mistake(
            "padding kept",
            _padding_kept,
            "you return more numbers than you were given: cut off the zeros that fill the last block.",
        ),
        Mistake(
            "the 7 of int4",
            _sevenths,
            "your numbers lie between -7 and 7: divide by the absmax alone. The 7 of int4 belongs to its codebook, and others have no 7.",
        ),
        Mistake(
            "reciprocal returned",
            _one_divided_by_absmax,
            "you return 1 / absmax: the scale that is stored is the absmax, by which codes are multiplied on the way back.",
        ),
        Mistake(
            "blocks left as rows",
            _in_rows,
            "full blocks come back as rows of a matrix: flatten them again, with .view(-1).",
        ),
    ),
)

# --- 03.3 ------------------------------------------------------------------------------------------------------------------------


def restore(values, absmax, block_size):
    """Each value times the absmax of its block: two 1-D float32 tensors in, one out. The last block may be short."""
    scale_of_each = absmax.repeat_interleave(block_size)[: len(values)]
    return values * scale_of_each


def _values_and_scales(seed: int) -> list[tuple]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    by_hand = [
        (torch.tensor([1.0, -0.5, 0.25, 1.0]), torch.tensor([2.0, 8.0]), 2),
        (torch.tensor([1.0, 0.5, -1.0, 0.0, 0.5, -1.0, 1.0, 0.25, -1.0]), torch.tensor([2.0, 0.5, 4.0]), 4),
        (torch.tensor([-1.0]), torch.tensor([3.0]), 64),
    ]
    drawn = []
    for count, size in ((128, 64), (200, 64), (65, 32), (30, 8)):
        values = 2 * torch.rand(count, generator=generator) - 1
        drawn.append((values, 0.1 + torch.rand(-(-count // size), generator=generator), size))
    return by_hand + drawn


def _restore_by(values, absmax, block_of_each):
    """Each value times the absmax of the block that ``block_of_each`` gives for its place."""
    import torch

    return values * absmax[torch.tensor([block_of_each(place) for place in range(len(values))])]


def _short_block_unscaled(values, absmax, block_size):
    full = len(values) - len(values) % block_size
    restored = restore(values, absmax, block_size)
    restored[full:] = values[full:]
    return restored


RESTORE = FunctionQuestion(
    id="03.3",
    title="Go back",
    points=2,
    difficulty=2,
    minutes=7,
    name="restore",
    answer=restore,
    inputs=_values_and_scales,
    tolerance=0.0,
    hints=(
        "The number at place i belongs to block i // block_size. Each number needs the absmax of its block beside it.",
        "`absmax.repeat_interleave(3)` of [2, 8] is [2, 2, 2, 8, 8, 8]. For a short last block that is too many: cut them off.",
    ),
    mistakes=(
        Mistake(
            "one scale for all",
            lambda values, absmax, block_size: values * absmax[0],
            "you multiply everything by the first absmax: each block has its own.",
        ),
        Mistake(
            "repeat",
            lambda values, absmax, block_size: values * absmax.repeat(block_size)[: len(values)],
            "your scales run 2, 8, 2, 8: repeat_interleave makes 2, 2, 8, 8, so that neighbours share one.",
        ),
        Mistake(
            "divided",
            lambda values, absmax, block_size: restore(values, 1 / absmax, block_size),
            "you have divided by the scale: that was the way to the codes; the way back multiplies.",
        ),
        Mistake(
            "short block left as it is",
            _short_block_unscaled,
            "full blocks are right, but the numbers of the short last block are not multiplied: it has a scale, too, the last one.",
        ),
        Mistake(
            "short block dropped",
            lambda values, absmax, block_size: restore(values, absmax, block_size)[: len(values) - len(values) % block_size],
            "the numbers of the short last block are missing: return as many as you were given.",
        ),
        Mistake(
            "short block with the scale before",
            lambda values, absmax, block_size: _restore_by(
                values, absmax, lambda place: min(place // block_size, max(len(values) // block_size - 1, 0))
            ),
            "the short last block is multiplied by the scale of the block before it: its own is the last one.",
        ),
        Mistake(
            "blocks of equal length",
            lambda values, absmax, block_size: _restore_by(values, absmax, lambda place: place * len(absmax) // len(values)),
            "you have spread the numbers evenly over the scales: all blocks have block_size numbers, and only the last one has fewer.",
        ),
        Mistake(
            "padding kept",
            lambda values, absmax, block_size: restore(_with_zeros(values, len(absmax) * block_size), absmax, block_size),
            "you return more numbers than you were given: cut off those that fill the last block.",
        ),
        Mistake(
            "absmax / 7",
            lambda values, absmax, block_size: restore(values, absmax, block_size) / 7,
            "all is a seventh of what is due: these are values between -1 and 1 and not codes, so the scale is the absmax itself.",
        ),
    ),
)


def _with_zeros(values, count):
    import torch

    return torch.cat([values, values.new_zeros(count - len(values))])


# --- 03.4 ------------------------------------------------------------------------------------------------------------------------


def block_of(row: int, column: int, columns: int, block_size: int) -> int:
    """The number of the block, counted from 0, that a weight of a matrix belongs to."""
    return (row * columns + column) // block_size


def _places(seed: int) -> list[tuple[int, ...]]:
    pick = random.Random(seed)
    by_hand = [(0, 0, 6, 8), (1, 1, 6, 8), (1, 2, 6, 8), (3, 5, 6, 8), (2, 64, 128, 64), (127, 127, 128, 64)]
    drawn = []
    for _ in range(12):
        columns, block_size = pick.choice([96, 100, 128, 352, 384]), pick.choice([32, 64, 128, 256])
        drawn.append((pick.randrange(1, 200), pick.randrange(columns), columns, block_size))
    return by_hand + drawn


FIND_THE_BLOCK = FunctionQuestion(
    id="03.4",
    title="Find the block of a weight",
    points=2,
    difficulty=2,
    minutes=6,
    name="block_of",
    answer=block_of,
    inputs=_places,
    hints=(
        "How many weights come before this one when the matrix is flattened, row after row?",
        "row * columns + column of them. Each block takes block_size of those places.",
    ),
    mistakes=(
        Mistake(
            "rows begin anew",
            lambda row, column, columns, block_size: row * -(-columns // block_size) + column // block_size,
            "you begin a new block in each row: that is right only if columns is a multiple of block_size. Blocks run on.",
        ),
        Mistake(
            "full blocks of a row only",
            lambda row, column, columns, block_size: row * (columns // block_size) + column // block_size,
            "you count columns // block_size blocks for each row: right only if columns is a multiple of block_size. Blocks run on.",
        ),
        Mistake(
            "column alone",
            lambda row, column, columns, block_size: column // block_size,
            "you have left out the row: all the rows above come before this weight.",
        ),
        Mistake(
            "a block for each row",
            lambda row, column, columns, block_size: row,
            "that is the row: a block has block_size weights, wherever rows end.",
        ),
        Mistake(
            "place in the block",
            lambda row, column, columns, block_size: (row * columns + column) % block_size,
            "that is the place within the block: the number of the block is the quotient, //, and not the remainder, %.",
        ),
        Mistake(
            "place in the weight",
            lambda row, column, columns, block_size: row * columns + column,
            "that is the place in the flattened weight: block_size places make a block.",
        ),
        Mistake(
            "not whole",
            lambda row, column, columns, block_size: (row * columns + column) / block_size,
            "a block has a whole number: divide with //.",
        ),
        Mistake(
            "counted from 1",
            lambda row, column, columns, block_size: (row * columns + column) // block_size + 1,
            "all are one too large: the first block is number 0.",
        ),
        Mistake(
            "column by column",
            lambda row, column, columns, block_size: (column * columns + row) // block_size,
            "you go down the columns: a matrix is flattened row after row.",
        ),
    ),
)

# --- 03.5 ------------------------------------------------------------------------------------------------------------------------


def int4_in_blocks(numbers, block_size):
    """A 1-D float32 tensor, quantized to int4 with a scale for each block, and back again."""
    import torch

    restored = torch.empty_like(numbers)
    for start in range(0, len(numbers), block_size):
        block = numbers[start : start + block_size]
        scale = block.abs().max() / 7
        restored[start : start + block_size] = torch.round(block / scale) * scale
    return restored


def _blocks_of_numbers(seed: int) -> list[tuple]:
    """No number that is drawn lies near the middle between two codes, so that all ways to calculate give the same codes."""
    import torch

    pick = random.Random(seed)
    by_hand = [([0.21, -0.7, 0.43, 0.34, 7.0, -2.2, 1.0, 4.4], 4), ([0.21, -0.7, 0.43, 0.34, 7.0, -2.2, 1.7, -14.0, 3.4], 4)]
    drawn = []
    for count, block_size in ((16, 8), (21, 8), (70, 32), (5, 16)):
        numbers = []
        while len(numbers) < count:
            scale, largest = pick.uniform(0.01, 2), pick.choice([-7, 7])
            block = [pick.randint(-6, 6) + pick.uniform(-0.4, 0.4) for _ in range(min(block_size, count - len(numbers)))]
            block[pick.randrange(len(block))] = largest
            numbers += [scale * step for step in block]
        drawn.append((numbers, block_size))
    return [(torch.tensor(numbers), block_size) for numbers, block_size in by_hand + drawn]


def _int4_with(numbers, block_size, *, parts=7, rounding=None, scale_of=None, back=lambda codes, scale: codes * scale):
    """``int4_in_blocks`` with one of its parts wrong."""
    import torch

    restored = []
    for start in range(0, len(numbers), block_size):
        block = numbers[start : start + block_size]
        scale = (scale_of or (lambda block: block.abs().max()))(block) / parts
        restored.append(back((rounding or torch.round)(block / scale), scale))
    return torch.cat(restored)


INT4_IN_BLOCKS = FunctionQuestion(
    id="03.5",
    title="Quantize to int4 in blocks",
    points=3,
    difficulty=3,
    minutes=10,
    name="int4_in_blocks",
    answer=int4_in_blocks,
    inputs=_blocks_of_numbers,
    tolerance=1e-5,
    hints=(
        "Do the same for each block: absmax, codes, back. `for start in range(0, len(numbers), block_size)` finds the blocks, and "
        "`numbers[start : start + block_size]` is shorter by itself at the end.",
        "In a block: `scale = block.abs().max() / 7`, and then `torch.round(block / scale) * scale`. Or use your scale_blocks and restore "
        "from above, with `torch.round(7 * scaled) / 7` between them.",
    ),
    mistakes=(
        Mistake(
            "one scale for all",
            lambda numbers, block_size: int4_in_blocks(numbers, len(numbers)),
            "you have one scale for all numbers: each block has its own.",
        ),
        Mistake(
            "codes returned",
            lambda *args: _int4_with(*args, back=lambda codes, scale: codes),
            "those are the codes: multiply them by the scale of their block.",
        ),
        Mistake(
            "not scaled back",
            lambda *args: _int4_with(*args, back=lambda codes, scale: codes / 7),
            "those are values between -1 and 1: multiply them by the absmax of their block.",
        ),
        Mistake(
            "7 forgotten on the way back",
            lambda *args: _int4_with(*args, back=lambda codes, scale: codes * scale * 7),
            "all is 7 times too large: on the way back codes are multiplied by absmax / 7.",
        ),
        Mistake(
            "rounded to -1, 0 and 1",
            lambda *args: _int4_with(*args, parts=1),
            "only -1, 0 and 1 times the absmax come back: multiply by 7 before you round, so that there are codes from -7 to 7.",
        ),
        Mistake(
            "cut off",
            lambda *args: _int4_with(*args, rounding=lambda x: x.trunc()),
            "your codes are cut off towards 0: take the nearest whole number, torch.round.",
        ),
        Mistake(
            "absmax / 8",
            lambda *args: _int4_with(*args, parts=8, rounding=lambda x: x.round().clamp(-8, 7)),
            "you have divided the absmax by 8: then the largest positive number has no code. The codes are -7 to 7.",
        ),
        Mistake(
            "fifteen steps",
            lambda *args: _int4_with(*args, parts=15),
            "your codes go from -15 to 15, which takes 5 bits: with 4, absmax quantization has -7 to 7.",
        ),
        Mistake(
            "largest instead of absmax",
            lambda *args: _int4_with(*args, scale_of=lambda block: block.max(), rounding=lambda x: x.round().clamp(-7, 7)),
            "your scale comes from the largest number of the block: where the absmax is that of a negative one, that is too small.",
        ),
        Mistake(
            "short block as it was",
            lambda numbers, block_size: _short_block_as_it_was(numbers, block_size),
            "full blocks are right, but the short last one comes back unchanged: it is quantized like the others.",
        ),
        Mistake(
            "short block dropped",
            lambda numbers, block_size: int4_in_blocks(numbers, block_size)[: len(numbers) - len(numbers) % block_size],
            "the short last block is missing: return as many numbers as you were given.",
        ),
        Mistake(
            "nothing rounded",
            lambda numbers, block_size: numbers.clone(),
            "the numbers come back as they were: there is no rounding between the way there and the way back.",
        ),
    ),
)


def _short_block_as_it_was(numbers, block_size):
    full = len(numbers) - len(numbers) % block_size
    restored = int4_in_blocks(numbers, block_size)
    restored[full:] = numbers[full:]
    return restored


# --- 03.6 ------------------------------------------------------------------------------------------------------------------------

_WEIGHTS = 4096 * 4096

OUTLIERS = NumberQuestion(
    id="03.6",
    title="Bound the harm of outliers",
    points=1,
    difficulty=3,
    minutes=5,
    name="percent_harmed",
    answer=100 * 1000 * 64 / _WEIGHTS,
    within=0.0065,
    hints=(
        "One outlier shares its block, and so its scale, with 63 others. How many weights are in the blocks of 1,000 outliers?",
        "At most 64,000 of 4096 * 4096 = 16,777,216 weights. As a percentage.",
    ),
    solution="percent_harmed = 100 * 1000 * 64 / (4096 * 4096)  # with 63 instead of 64, the outliers left out, it is 0.38 as well",
    mistakes=(
        Mistake("a share", 1000 * 64 / _WEIGHTS, "that is a share of 1: asked is a percentage, 100 times as much."),
        Mistake("outliers alone", 100 * 1000 / _WEIGHTS, "those are the outliers alone: each spoils the scale of 63 others."),
        Mistake("one scale", 100, "all weights would be harmed if they shared one scale: here it is only the blocks with an outlier."),
        Mistake("rows", 100 * 1000 / 4096, "you have counted the whole rows of the outliers: a scale belongs to a block of 64."),
        Mistake("one outlier", 100 * 64 / _WEIGHTS, "that is one outlier: there are 1,000, each in a block of its own."),
        Mistake("blocks of all weights", 100 / 64, "that is one weight in 64: most blocks have no outlier, so take 1,000 blocks of all."),
        Mistake("a number of weights", 64_000, "that is how many weights: asked is the percentage of 4096 * 4096."),
    ),
)

# --- 03.7 ------------------------------------------------------------------------------------------------------------------------

PRICE_OF_Q4_1 = NumberQuestion(
    id="03.7",
    title="Price another format",
    points=1,
    difficulty=2,
    minutes=5,
    name="bits_for_each",
    answer=4 + (16 + 16) / 32,
    within=1e-6,
    hints=(
        "What does one block store beside its codes? Add up those bits, and share them among its weights.",
        "A scale of 16 bits and a smallest value of 16 bits, for 32 weights.",
    ),
    solution="bits_for_each = 4 + (16 + 16) / 32",
    mistakes=(
        Mistake(
            "no smallest value, or blocks of 64",
            4 + 16 / 32,
            "a number is missing, or you have shared both among 64 weights: a block has a scale, a smallest value, and 32 weights.",
        ),
        Mistake("float32 scale", 4 + (32 + 16) / 32, "you have taken one of the two numbers as a float32: both are float16, 16 bits."),
        Mistake("two float32", 4 + (32 + 32) / 32, "you have taken two numbers of 32 bits: both are float16."),
        Mistake(
            "smallest value as a code",
            4 + (16 + 4) / 32,
            "you have taken 4 bits for the smallest value, as for a zero point: it is no code here but a float16.",
        ),
        Mistake("blocks of 128", 4 + (16 + 16) / 128, "you have shared them among 128 weights: here a block has 32."),
        Mistake("overhead alone", (16 + 16) / 32, "that is the share of the two numbers: each weight has its code of 4 bits besides."),
        Mistake("one for each weight", 4 + 16 + 16 / 32, "there is one smallest value for each block and not for each weight."),
        Mistake("not shared", 4 + 16 + 16, "32 weights share a scale and a smallest value: divide their bits by 32."),
        Mistake("a whole block", 32 * 4 + 16 + 16, "those are the bits of a whole block: divide them by its 32 weights."),
        Mistake("one scale for all", 4, "those are the codes alone: each block has a scale and a smallest value besides."),
    ),
)

# --- 03.8 ------------------------------------------------------------------------------------------------------------------------

SET_THE_WORDS_RIGHT = ExplanationQuestion(
    id="03.8",
    title="Set the words right",
    points=4,
    difficulty=3,
    minutes=9,
    name="words_set_right",
    hints=(
        "Take the sentence apart: how many scales, is there an offset, what does asymmetric mean, what are the choices of quant_type?",
        "The lesson's table of four questions has an answer to each. Which of them does your colleague mix up?",
    ),
    model_answer=(
        "There is not one scale for a tensor but one for each block of 64 weights, its absmax, in float32.\n"
        "No offset is stored for the weights: absmax quantization maps 0 to 0, so multiplying by the scale is all there is to undo.\n"
        "(With double quantization there is something called offset, the mean of the scales: it belongs to the scales.)\n"
        "Asymmetric means that a zero point shifts the grid; bitsandbytes has none. To store weights in 4 bits and calculate\n"
        "in bfloat16 is right, but it is called weight-only quantization.\n"
        "NF4 says which sixteen values there are. It is scaled by absmax, just as FP4 is, so it is no alternative to symmetric\n"
        "but to FP4: quant_type accepts these two and nothing else."
    ),
    rubric=(
        (1, "A scale for each block (of 64 weights, on the flattened weight), not one for each tensor."),
        (1, "No offset for weights, since absmax needs none. (That double quantization has one, for the scales, needn't be said.)"),
        (1, "Asymmetric means a zero point; to calculate in a larger format is weight-only quantization."),
        (1, "NF4 is a set of values, scaled by absmax like FP4; the choice is nf4 or fp4, and symmetric is an answer to another question."),
    ),
)

QUESTIONS = (
    COUNT_THE_SCALES,
    SCALE_THE_BLOCKS,
    RESTORE,
    FIND_THE_BLOCK,
    INT4_IN_BLOCKS,
    OUTLIERS,
    PRICE_OF_Q4_1,
    SET_THE_WORDS_RIGHT,
)
