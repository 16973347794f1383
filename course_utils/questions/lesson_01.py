"""The questions of lesson 01, count the bits."""

from __future__ import annotations

import random

from course_utils.questions.kinds import ExplanationQuestion, FunctionQuestion, Mistake, NumberQuestion

# --- 01.1 ------------------------------------------------------------------------------------------------------------------------

READ_SIXTEEN_BITS = NumberQuestion(
    id="01.1",
    title="Read sixteen bits",
    points=1,
    difficulty=2,
    minutes=5,
    name="bfloat16_value",
    answer=-11.0,
    within=1e-6,
    hints=(
        "Cut the sixteen bits as bfloat16 does: 1 bit for the sign, 8 for the exponent, 7 for the mantissa.",
        "The exponent field 10000010 is 130, and the bias is 127: the power is 2 to the 3. The mantissa field 0110000 is 48 of 128.",
        "The value is -1 times (1 + 48/128) times 2 to the 3.",
    ),
    solution="bfloat16_value = -1 * (1 + 48 / 128) * 2 ** (130 - 127)  # sign 1, exponent field 130, mantissa field 48",
    mistakes=(
        Mistake("sign forgotten", 11.0, "the size is right: look at the first bit, the sign."),
        Mistake("hidden one forgotten", -3.0, "you have left out the hidden one: the mantissa is 1 + 48/128, not 48/128."),
        Mistake("no bias", -1.375 * 2.0**130, "you have not taken the bias from the exponent field: the power is 130 - 127."),
        Mistake("no power of two", -1.375, "sign and mantissa are right: the power of two is missing, 2 to the 130 - 127."),
        Mistake("bias 128", -5.5, "half of what is due: the bias of an 8-bit exponent is 127, not 128."),
        Mistake("bias 126", -22.0, "twice what is due: the bias of an 8-bit exponent is 127, not 126."),
        Mistake("mantissa as a whole number", -392.0, "the mantissa field 48 counts in steps of 1/128: 48/128, not 48."),
        Mistake("times the power", -4.125, "you have multiplied by the exponent 3: it is a power of two, 2 to the 3."),
        Mistake("read as float16", -2.59375, "you have cut the bits as float16 does, 1 + 5 + 10: bfloat16 has 1 + 8 + 7."),
    ),
)

# --- 01.2 ------------------------------------------------------------------------------------------------------------------------


def float_value(sign: int, exponent: int, mantissa: int, exponent_bits: int, mantissa_bits: int) -> float:
    """The number that three bit fields stand for."""
    bias = 2 ** (exponent_bits - 1) - 1
    fraction = mantissa / 2**mantissa_bits
    if exponent == 0:  # no hidden one, and the power is that of exponent field 1
        return (-1) ** sign * fraction * 2.0 ** (1 - bias)
    return (-1) ** sign * (1 + fraction) * 2.0 ** (exponent - bias)


def _fields(seed: int) -> list[tuple[int, ...]]:
    pick = random.Random(seed)
    by_hand = [(0, 127, 0, 8, 7), (1, 130, 48, 8, 7), (0, 12, 256, 5, 10), (0, 124, 2**21, 8, 23), (0, 0, 512, 5, 10), (1, 0, 1, 5, 10)]
    drawn = [
        (pick.randrange(2), pick.randrange(1, 2**exponent_bits - 1), pick.randrange(2**mantissa_bits), exponent_bits, mantissa_bits)
        for exponent_bits, mantissa_bits in [(8, 7), (5, 10), (8, 23), (2, 1), (4, 3)] * 3
    ]
    return by_hand + drawn


def _float_value_with(
    sign: int,
    exponent: int,
    mantissa: int,
    exponent_bits: int,
    mantissa_bits: int,
    *,
    bias: int | None = None,
    off: int = 0,
    hidden_always: bool = False,
    subnormal_power: int = 1,
    hidden: int = 1,
    scale: bool = True,
) -> float:
    """``float_value`` with one of its parts wrong."""
    bias = (2 ** (exponent_bits - 1) - 1 if bias is None else bias) + off
    fraction = mantissa / 2**mantissa_bits if scale else mantissa
    if exponent == 0 and not hidden_always:
        return (-1) ** sign * fraction * 2.0 ** (subnormal_power - bias)
    return (-1) ** sign * (hidden + fraction) * 2.0 ** (exponent - bias)


PUT_A_NUMBER_TOGETHER = FunctionQuestion(
    id="01.2",
    title="Put a number together",
    points=3,
    difficulty=3,
    minutes=10,
    name="float_value",
    answer=float_value,
    inputs=_fields,
    tolerance=0.0,
    hints=(
        "Three factors: (-1) to the sign, a mantissa between 1 and 2, and a power of two. Only the last two depend on the format.",
        "The bias is 2 ** (exponent_bits - 1) - 1: 127 for 8 bits, 15 for 5. The mantissa is 1 + mantissa / 2 ** mantissa_bits.",
        "Exponent field 0 is an `if` of its own: mantissa / 2 ** mantissa_bits with no 1 before it, and the power 1 - bias.",
    ),
    mistakes=(
        Mistake("sign forgotten", lambda s, *rest: float_value(0, *rest), "your numbers are never negative: sign 1 means minus."),
        Mistake(
            "-1 ** sign",
            lambda s, *rest: float_value(1, *rest),
            "your numbers are all negative: Python reads -1 ** sign as -(1 ** sign), so write (-1) ** sign.",
        ),
        Mistake(
            "hidden one forgotten",
            lambda *fields: _float_value_with(*fields, hidden=0),
            "the hidden one is missing: unless the exponent field is 0, the mantissa is 1 + mantissa / 2 ** mantissa_bits.",
        ),
        Mistake(
            "no bias",
            lambda *fields: _float_value_with(*fields, bias=0),
            "the bias is missing: the power of two is exponent - bias, with bias = 2 ** (exponent_bits - 1) - 1.",
        ),
        Mistake(
            "bias 127 always",
            lambda *fields: _float_value_with(*fields, bias=127),
            "your bias is 127 in every format: that belongs to 8 exponent bits; float16 has 5, and a bias of 15.",
        ),
        Mistake(
            "bias one too large",
            lambda *fields: _float_value_with(*fields, off=1),
            "all your numbers are half of what is due: the bias is 2 ** (exponent_bits - 1) - 1; is the - 1 missing?",
        ),
        Mistake(
            "mantissa as a whole number",
            lambda *fields: _float_value_with(*fields, scale=False),
            "the mantissa field counts in steps of 1 / 2 ** mantissa_bits: divide it.",
        ),
        Mistake(
            "hidden one at exponent 0",
            lambda *fields: _float_value_with(*fields, hidden_always=True),
            "only exponent field 0 is left: there the hidden one is gone, and the power is 1 - bias. Otherwise no pattern would mean 0.",
        ),
        Mistake(
            "hidden one and power at exponent 0",
            lambda *fields: _float_value_with(*fields, subnormal_power=0),
            "only exponent field 0 is left: you have dropped the hidden one there, but the power is 1 - bias, not 0 - bias.",
        ),
    ),
)

# --- 01.3 ------------------------------------------------------------------------------------------------------------------------

FIRST_MISSING_NUMBER = NumberQuestion(
    id="01.3",
    title="Find the first whole number that bfloat16 misses",
    points=2,
    difficulty=3,
    minutes=6,
    name="first_missing",
    answer=257,
    within=1e-6,
    hints=(
        "Between 1 and 2 the numbers are 1/128 apart, between 2 and 4 they are 2/128 apart, and so on. Where are they 1 apart, where 2?",
        "From 128 to 256 they are 1 apart: every whole number is there. From 256 to 512 they are 2 apart.",
    ),
    solution="first_missing = 2 ** (7 + 1) + 1  # 7 stored bits and the hidden one: whole numbers of up to 8 bits, and 256, are there",
    mistakes=(
        Mistake("last one held", 256, "256 is there: it is a power of two. It is the last one before the first gap."),
        Mistake("hidden one forgotten", 129, "129 is there: with the hidden one a number has 8 bits to count with, not 7."),
        Mistake("a power of two", 128, "128 is a power of two, and those are all there: their mantissa field is 0."),
        Mistake("largest of 8 bits", 255, "255 is there: eight ones, of which the first is the hidden one and seven are stored."),
        Mistake("one too far", 258, "258 is there: from 256 on the numbers are 2 apart, 256, 258, 260. Which does that leave out?"),
        Mistake("even", 130, "130 is there, and every whole number up to 256: between 128 and 256 they are 1 apart."),
        Mistake("one bit too many", 513, "there is one missing before 513: 7 stored bits and the hidden one make 8, not 9."),
        Mistake("float16", 2049, "that is the first that float16 misses, with 10 bits of mantissa: bfloat16 has 7."),
        Mistake("float32", 2**24 + 1, "that is the first that float32 misses, with 23 bits of mantissa: bfloat16 has 7."),
    ),
)

# --- 01.4 ------------------------------------------------------------------------------------------------------------------------


def weight_gb(weights: int, bits: float) -> float:
    """The gigabytes, of 10**9 bytes, that so many weights take at so many bits each."""
    return weights * bits / 8 / 10**9


def _weights_and_bits(seed: int) -> list[tuple[int, float]]:
    pick = random.Random(seed)
    by_hand = [(1_000_000_000, 8), (7_000_000_000, 32), (7_000_000_000, 16), (7_000_000_000, 4), (7_000_000_000, 4.5)]
    return by_hand + [(pick.randrange(10**9, 10**11), bits) for bits in (32, 16, 8, 4.5, 4.127, 4, 3)]


WEIGHTS_IN_GIGABYTES = FunctionQuestion(
    id="01.4",
    title="Weigh a model",
    points=1,
    difficulty=1,
    minutes=4,
    name="weight_gb",
    answer=weight_gb,
    inputs=_weights_and_bits,
    hints=(
        "A byte is 8 bits, and a GB is 10**9 bytes. Check by hand: 1,000,000,000 weights of 8 bits are 1 GB.",
        "weights * bits is a number of bits. Divide it twice, with / and not //, since bits may be 4.5.",
    ),
    mistakes=(
        Mistake(
            "GiB",
            lambda weights, bits: weights * bits / 8 / 2**30,
            "that is GiB, of 2**30 bytes: a GB is 10**9 bytes, 7 % less, so there are 7 % more of them.",
        ),
        Mistake("gigabits", lambda weights, bits: weights * bits / 10**9, "8 times too much: you have counted bits; a byte has 8 of them."),
        Mistake("bytes", lambda weights, bits: weights * bits / 8, "that is bytes: divide by 10**9 for GB."),
        Mistake("megabytes", lambda weights, bits: weights * bits / 8 / 10**6, "that is megabytes: a GB is 10**9 bytes."),
        Mistake(
            "whole bytes only",
            lambda weights, bits: weights * (bits // 8) / 10**9,
            "this holds for 32, 16 and 8 bits only: 4 // 8 is 0. Multiply by the bits first, then divide by 8 with /.",
        ),
        Mistake(
            "divided by the bits",
            lambda weights, bits: weights / bits / 10**9,
            "you have divided by the bits: more bits for each weight make more bytes, not fewer.",
        ),
        Mistake(
            "rounded",
            lambda weights, bits: round(weights * bits / 8 / 10**9, 2),
            "the numbers are right but rounded: return them as they are, and round when you print.",
        ),
    ),
)

# --- 01.5 ------------------------------------------------------------------------------------------------------------------------


def linear_weights(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int) -> int:
    """The weights in the linear layers of a Llama model, attention and MLP: no embedding, head or norm."""
    kv_width = hidden // heads * kv_heads  # one head is hidden // heads wide
    attention = 2 * hidden * hidden + 2 * hidden * kv_width  # query and output, key and value
    gated_mlp = 3 * hidden * mlp  # gate, up and down
    return layers * (attention + gated_mlp)


def _llama_shapes(seed: int) -> list[tuple[int, ...]]:
    pick = random.Random(seed)
    by_hand = [(4, 8, 1, 2, 2), (4, 8, 2, 2, 1)]
    published = [(4096, 11008, 32, 32, 32), (5120, 13824, 40, 40, 40), (8192, 28672, 80, 64, 8)]  # Llama-2-7B, 13B, 70B
    drawn = []
    for _ in range(5):
        kv_heads, groups, head_width = pick.choice([2, 4, 8]), pick.choice([1, 2, 4]), pick.choice([32, 64, 128])
        heads = kv_heads * groups
        drawn.append((heads * head_width, pick.randrange(64, 4096, 64), pick.randrange(2, 40), heads, kv_heads))
    return by_hand + published + drawn


def _linear_weights_with(
    hidden: int,
    mlp: int,
    layers: int,
    heads: int,
    kv_heads: int,
    *,
    wide: int = 2,
    narrow: int = 2,
    matrices: int = 3,
    kv_width: int | None = None,
    extra: int = 0,
) -> int:
    """``linear_weights`` with other counts of matrices, or another width of key and value."""
    kv_width = hidden // heads * kv_heads if kv_width is None else kv_width
    return layers * (wide * hidden * hidden + narrow * hidden * kv_width + matrices * hidden * mlp + extra)


COUNT_THE_WEIGHTS = FunctionQuestion(
    id="01.5",
    title="Count the weights of a Llama",
    points=3,
    difficulty=4,
    minutes=12,
    name="linear_weights",
    answer=linear_weights,
    inputs=_llama_shapes,
    hints=(
        "A layer has seven matrices: query, key, value and output in the attention; gate, up and down in the MLP.",
        "Query and output are hidden x hidden; gate, up and down hidden x mlp. Llama-2-7B must give 6,476,005,376.",
        "Key and value have kv_heads heads, each hidden // heads wide: they are hidden x (hidden // heads * kv_heads).",
    ),
    mistakes=(
        Mistake(
            "no grouped-query attention",
            lambda *shape: _linear_weights_with(*shape, wide=4, narrow=0),
            "this holds where kv_heads equals heads, but in grouped-query attention (Llama-2-70B) key and value are narrower: "
            "hidden // heads * kv_heads.",
        ),
        Mistake(
            "query narrow too",
            lambda *shape: _linear_weights_with(*shape, wide=1, narrow=3),
            "you have made the query as narrow as key and value: only those two are grouped, the query keeps all its heads.",
        ),
        Mistake(
            "one of key and value narrow",
            lambda *shape: _linear_weights_with(*shape, wide=3, narrow=1),
            "you have narrowed one of key and value only: both have kv_heads heads.",
        ),
        Mistake(
            "kv_heads times hidden",
            lambda hidden, mlp, layers, heads, kv_heads: _linear_weights_with(
                hidden, mlp, layers, heads, kv_heads, kv_width=hidden * kv_heads
            ),
            "your key and value are kv_heads * hidden wide: each head is hidden // heads numbers wide.",
        ),
        Mistake(
            "one head",
            lambda hidden, mlp, layers, heads, kv_heads: _linear_weights_with(
                hidden, mlp, layers, heads, kv_heads, kv_width=hidden // heads
            ),
            "your key and value are one head wide: they have kv_heads heads of hidden // heads each.",
        ),
        Mistake(
            "two matrices in the MLP",
            lambda *shape: _linear_weights_with(*shape, matrices=2),
            "your MLP has two matrices: Llama's has three, gate, up and down.",
        ),
        Mistake(
            "no output projection",
            lambda *shape: _linear_weights_with(*shape, wide=1),
            "your attention has three matrices: after query, key and value comes the output projection, hidden x hidden.",
        ),
        Mistake(
            "one layer",
            lambda hidden, mlp, layers, heads, kv_heads: linear_weights(hidden, mlp, 1, heads, kv_heads),
            "that is one layer: multiply by the number of layers.",
        ),
        Mistake(
            "MLP once",
            lambda hidden, mlp, layers, heads, kv_heads: (
                linear_weights(hidden, 0, layers, heads, kv_heads)
                + linear_weights(hidden, mlp, 1, heads, kv_heads)
                - linear_weights(hidden, 0, 1, heads, kv_heads)
            ),
            "you have multiplied the attention alone by the layers: every layer has its own MLP. Are brackets missing?",
        ),
        Mistake(
            "norms",
            lambda hidden, *rest: _linear_weights_with(hidden, *rest, extra=2 * hidden),
            "you have counted the norms, 2 x hidden in each layer: they are no linear layers and are not quantized.",
        ),
    ),
)

# --- 01.6 ------------------------------------------------------------------------------------------------------------------------


def bits_per_weight(block_size: int, double_quant: bool) -> float:
    """The bits that one 4-bit weight takes together with its share of the scales."""
    if double_quant:  # an 8-bit scale for each block, and a float32 for each 256 of those scales
        return 4 + 8 / block_size + 32 / (256 * block_size)
    return 4 + 32 / block_size


COUNT_THE_SCALES = FunctionQuestion(
    id="01.6",
    title="Count the scales",
    points=2,
    difficulty=3,
    minutes=8,
    name="bits_per_weight",
    answer=bits_per_weight,
    inputs=lambda seed: [(size, double) for double in (False, True) for size in (64, 32, 128, 256, 512, 1024, 2048, 4096)],
    hints=(
        "block_size weights share one scale, so each of them pays 1 / block_size of its bits. A float32 has 32.",
        "With 64 weights in a block: 4 + 32/64 = 4.5 bits. With double quantization the scale has 8 bits and not 32, "
        "and 256 scales share one float32.",
        "256 scales stand for 256 * block_size weights: that float32 costs each weight 32 / (256 * block_size) bits.",
    ),
    mistakes=(
        Mistake(
            "bytes",
            lambda size, double: 4 + 1 / size + 4 / (256 * size) if double else 4 + 4 / size,
            "you have counted the scales in bytes and the weights in bits: a float32 has 32 bits.",
        ),
        Mistake(
            "scales alone",
            lambda size, double: bits_per_weight(size, double) - 4,
            "that is the share of the scales alone: add the 4 bits of the weight.",
        ),
        Mistake(
            "no scales",
            lambda size, double: 4.0,
            "the scales are missing: without them the codes say nothing. Each block of weights stores one.",
        ),
        Mistake(
            "blocks of 64 always",
            lambda size, double: bits_per_weight(64, double),
            "this holds for blocks of 64 only: the share of a scale depends on block_size.",
        ),
        Mistake(
            "64 in the second term",
            lambda size, double: 4 + 8 / size + 32 / (256 * 64) if double else 4 + 32 / size,
            "nearly: in double quantization the last term, too, depends on block_size, and yours has 64 in it.",
        ),
        Mistake(
            "flag ignored",
            lambda size, double: 4 + 32 / size,
            "this holds without double quantization: with it, the scale of a block has 8 bits instead of 32.",
        ),
        Mistake(
            "16-bit scales",
            lambda size, double: 4 + 8 / size + 16 / (256 * size) if double else 4 + 16 / size,
            "you have given each scale 16 bits: bitsandbytes keeps them in float32.",
        ),
        Mistake(
            "scales of the scales forgotten",
            lambda size, double: 4 + 8 / size if double else 4 + 32 / size,
            "nearly: the 8-bit scales have scales of their own, one float32 for each 256 of them.",
        ),
        Mistake(
            "256 weights instead of 256 blocks",
            lambda size, double: 4 + 8 / size + 32 / 256 if double else 4 + 32 / size,
            "one float32 serves 256 scales, not 256 weights: that is 256 * block_size weights.",
        ),
        Mistake(
            "8-bit scales added",
            lambda size, double: 4 + (40 if double else 32) / size,
            "with double quantization the 8-bit scales replace the float32 ones: you have kept both.",
        ),
    ),
)

# --- 01.7 ------------------------------------------------------------------------------------------------------------------------

PERCENT_SAVED = NumberQuestion(
    id="01.7",
    title="Say what is saved",
    points=1,
    difficulty=2,
    minutes=4,
    name="percent_saved",
    answer=100 * (1 - 4.5 / 16),
    within=0.1,
    hints=(
        "Saved is what is gone, as a part of what was there before. Before: 16 bits a weight.",
        "After: 4 + 32/64 = 4.5 bits a weight. So 11.5 of 16 bits are gone.",
    ),
    solution="percent_saved = 100 * (16 - (4 + 32 / 64)) / 16",
    mistakes=(
        Mistake("scales forgotten", 75.0, "that is 4 of 16 bits: the scales are missing, 32 bits for each 64 weights."),
        Mistake("relative to float32, no scales", 87.5, "that is the folklore: 4 of 32 bits. Relative to 16 bits, and with the scales?"),
        Mistake("the whole model", 71.3, "that is all of Llama-2-7B with double quantization: here it is one linear layer without it."),
        Mistake("relative to float32", 100 * (1 - 4.5 / 32), "the scales are in it, but you compare with 32 bits: the model was in 16."),
        Mistake("what is left", 28.125, "that is what is left: saved is the rest."),
        Mistake("a fraction", 0.71875, "the fraction is right: in percent it is 100 times that."),
        Mistake("double quantization", 100 * (1 - 4.127 / 16), "that is with double quantization: here each block keeps a float32 scale."),
        Mistake("relative to what is left", 100 * 11.5 / 4.5, "you have divided by the 4.5 bits after: the part is of the 16 bits before."),
    ),
)

# --- 01.8 ------------------------------------------------------------------------------------------------------------------------

_LINEAR = 40 * (4 * 5120 * 5120 + 3 * 5120 * 13824)  # weights of Llama-2-13B: linear layers,
_TABLE = 32_000 * 5120  # the embedding, and again the head,
_NORMS = (2 * 40 + 1) * 5120  # two norms a layer and one at the end


def _gigabytes(linear_bits: float, table_bits: float = 16, tables: int = 2) -> float:
    return (_LINEAR * linear_bits + tables * _TABLE * table_bits + _NORMS * 16) / 8 / 10**9


LLAMA_IN_FOUR_BITS = NumberQuestion(
    id="01.8",
    title="Weigh Llama-2-13B in 4 bits",
    points=2,
    difficulty=4,
    minutes=8,
    name="llama_13b_gb",
    answer=_gigabytes(bits_per_weight(64, True)),
    within=0.015,  # half a step of the last decimal for each of three parts
    hints=(
        "Three groups, each with its own bits: linear layers at 4.127; embedding and head at 16; norms at 16.",
        "linear_weights(5120, 13824, 40, 40, 40) is 12,687,769,600. The embedding has 32,000 * 5120 weights; the head has as many again.",
        "Linear layers: 6.545 GB. Embedding and head: 2 * 163,840,000 weights * 2 bytes = 0.655 GB. The norms do not show in two decimals.",
    ),
    solution=(
        "linear = 40 * (4 * 5120 * 5120 + 3 * 5120 * 13824) * (4 + 8 / 64 + 32 / (256 * 64)) / 8  # bytes\n"
        "embedding_and_head = 2 * 32_000 * 5120 * 2\n"
        "norms = (2 * 40 + 1) * 5120 * 2\n"
        "llama_13b_gb = (linear + embedding_and_head + norms) / 10**9"
    ),
    mistakes=(
        Mistake("the rule of thumb", 6.5, "that is 13 * 0.5, the rule of thumb: no scales, and an embedding and a head in 4 bits."),
        Mistake(
            "all weights at 4 bits",
            (_LINEAR + 2 * _TABLE + _NORMS) / 2 / 10**9,
            "that is all weights at 4 bits: the scales are missing, and embedding and head stay in 16 bits.",
        ),
        Mistake(
            "all weights at 4.127 bits",
            _gigabytes(bits_per_weight(64, True), bits_per_weight(64, True)),
            "that is all weights at 4.127 bits: embedding and head are not quantized, they stay in 16.",
        ),
        Mistake(
            "linear layers only",
            _gigabytes(bits_per_weight(64, True), tables=0),
            "those are the linear layers alone: embedding and head are loaded too.",
        ),
        Mistake("no scales", _gigabytes(4), "embedding and head are right, but the linear layers are counted without their scales."),
        Mistake("no double quantization", _gigabytes(4.5), "that is at 4.5 bits, with float32 scales: here the scales are quantized too."),
        Mistake(
            "no head",
            _gigabytes(bits_per_weight(64, True), tables=1),
            "one table of 32,000 x 5120 is missing: embedding and head are two, Llama does not tie them.",
        ),
        Mistake(
            "tables in float32",
            _gigabytes(bits_per_weight(64, True), 32),
            "embedding and head are in 16 bits here, 2 bytes a weight: you have taken 4.",
        ),
        Mistake(
            "GiB",
            _gigabytes(bits_per_weight(64, True)) * 10**9 / 2**30,
            "that is GiB, of 2**30 bytes: in GB, of 10**9, it is 7 % more.",
        ),
    ),
)

# --- 01.9 ------------------------------------------------------------------------------------------------------------------------


def kv_cache_gb(layers: int, hidden: int, heads: int, kv_heads: int, tokens: int, batch: int) -> float:
    """The gigabytes, of 10**9 bytes, of a 16-bit KV cache."""
    head_width = hidden // heads
    values = 2 * layers * kv_heads * head_width * tokens * batch  # 2: a key and a value
    return values * 2 / 10**9  # 2 bytes each


def _cache_shapes(seed: int) -> list[tuple[int, ...]]:
    pick = random.Random(seed)
    published = [(32, 4096, 32, 32, 4096, 1), (80, 8192, 64, 8, 4096, 1), (32, 4096, 32, 8, 4096, 2)]  # Llama-2-7B, 70B, Mixtral-8x7B
    drawn = []
    for _ in range(5):
        kv_heads, groups, head_width = pick.choice([2, 4, 8]), pick.choice([2, 4]), pick.choice([64, 128])
        heads = kv_heads * groups
        drawn.append((pick.randrange(16, 81), heads * head_width, heads, kv_heads, pick.randrange(1000, 32000), pick.randrange(2, 9)))
    return published + drawn


KV_CACHE = FunctionQuestion(
    id="01.9",
    title="Weigh the KV cache",
    points=2,
    difficulty=3,
    minutes=8,
    name="kv_cache_gb",
    answer=kv_cache_gb,
    inputs=_cache_shapes,
    hints=(
        "Each layer keeps, for each token of each text, one key and one value for each of its kv_heads.",
        "A key is hidden // heads numbers long. In 16 bits each number takes 2 bytes. Llama-2-70B at 4096 tokens must give 1.342 GB.",
    ),
    mistakes=(
        Mistake(
            "a factor of 2",
            lambda *shape: kv_cache_gb(*shape) / 2,
            "half of what is due: there are two factors of 2, one for key and value, one for the 2 bytes of a 16-bit number.",
        ),
        Mistake(
            "all heads",
            lambda layers, hidden, heads, kv_heads, tokens, batch: kv_cache_gb(layers, hidden, heads, heads, tokens, batch),
            "you have kept a key and a value for every head: in grouped-query attention there are only kv_heads of them.",
        ),
        Mistake(
            "head as wide as hidden",
            lambda layers, hidden, heads, kv_heads, tokens, batch: kv_cache_gb(layers, hidden * heads, heads, kv_heads, tokens, batch),
            "you have made each head hidden numbers wide: one head is hidden // heads wide.",
        ),
        Mistake("bits", lambda *shape: kv_cache_gb(*shape) * 8, "8 times too much: 16 bits are 2 bytes."),
        Mistake(
            "one layer",
            lambda layers, *rest: kv_cache_gb(1, *rest),
            "that is one layer: every layer keeps its own keys and values.",
        ),
        Mistake(
            "one text",
            lambda *shape: kv_cache_gb(*shape[:-1], 1),
            "that is one text: each text of the batch has a cache of its own.",
        ),
        Mistake("GiB", lambda *shape: kv_cache_gb(*shape) * 10**9 / 2**30, "that is GiB, of 2**30 bytes: a GB is 10**9 bytes."),
        Mistake("bytes", lambda *shape: kv_cache_gb(*shape) * 10**9, "that is bytes: divide by 10**9 for GB."),
    ),
)

# --- 01.10 ------------------------------------------------------------------------------------------------------------------------

WHY_NOT_3_5 = ExplanationQuestion(
    id="01.10",
    title="Say why 3.5 GB is too little",
    points=4,
    difficulty=3,
    minutes=8,
    name="why_not_3_5_gb",
    hints=(
        "Look at your answer to question 01.8: which of its parts does 7 * 0.5 leave out?",
        "Then think of the moment when the model answers: what else lies in memory beside the weights?",
        "What the weights come to is in the lesson, with and without double quantization. How far above 3.5 is each?",
    ),
    model_answer=(
        "3.5 GB counts 7 billion weights at 4 bits and nothing else.\n"
        "A code means nothing without its scale: with a float32 scale for each 64 weights, a weight takes 4.5 bits\n"
        "(4.127 with double quantization). Embedding and head are not quantized: 131 million weights each in 16 bits\n"
        "are 0.52 GB, where 4 bits would be 0.13 GB.\n"
        "Together that is 4.17 GB, a fifth more than 3.5, although the model has 6.74 billion weights and not 7.\n"
        "And weights are not all: the KV cache takes 0.52 MB for each token, 2.1 GB at 4096 tokens, and activations come on top."
    ),
    rubric=(
        (1, "The scales: one for each block of weights, so more than 4 bits a weight (4.5, or 4.127 with double quantization)."),
        (1, "Embedding and head stay in 16 bits: about 0.5 GB."),
        (1, "A figure for the weights that fits: about 4.2 GB, 19 % above 3.5 (with double quantization 3.9, 10 % above)."),
        (1, "What comes on top when the model runs: the KV cache, which grows with the tokens, and activations."),
    ),
)

QUESTIONS = (
    READ_SIXTEEN_BITS,
    PUT_A_NUMBER_TOGETHER,
    FIRST_MISSING_NUMBER,
    WEIGHTS_IN_GIGABYTES,
    COUNT_THE_WEIGHTS,
    COUNT_THE_SCALES,
    PERCENT_SAVED,
    LLAMA_IN_FOUR_BITS,
    KV_CACHE,
    WHY_NOT_3_5,
)
