# %% [markdown]
# # Pack and quantize twice
#
# You can give every weight one of sixteen codes. But how does a code of four bits get into a memory made of bytes? And each block of 64
# weights still has a scale of 32 bits. Can that be smaller too?
#
# When you have an answer to both, your bytes can be those of bitsandbytes, and this lesson compares every one of them.
#
# | | |
# | --- | --- |
# | **What you'll do** | pack two codes in a byte, quantize the scales, compare with bitsandbytes byte for byte |
# | **What you'll learn** | how codes lie in bytes, how double quantization works, what a 4-bit weight takes |
# | **What you need** | [lesson 03](03_quantize_in_blocks.ipynb) and [lesson 04](04_choose_sixteen_values.ipynb) |
# | **Time** | 40 minutes |
#
# Words in *italics* are explained here and in the [glossary](../glossary.md).

# %% [markdown]
# ## Four bits that take eight
#
# Take a matrix of abacus as far as lessons 03 and 04 got: a scale for every block of 64, a code for every weight.
#
# **Predict.** How many bits does a weight take now, scales included?

# %%
import torch

from course_utils import models
from course_utils.codebooks import CODEBOOKS
from course_utils.quantize import nearest_codes, scale_blocks

model, _ = models.load(models.ABACUS)
weight = model.get_submodule("model.layers.0.self_attn.q_proj").weight.detach().cpu()
nf4 = CODEBOOKS["nf4"]
scaled, absmax = scale_blocks(weight.flatten(), 64)
codes = nearest_codes(scaled, nf4.thresholds(), nf4.codes_in_order())
print("codes are", codes.dtype, "from", codes.min().item(), "to", codes.max().item())
print("bits per weight:", 8 * (codes.nbytes + absmax.nbytes) / weight.numel())

# %% [markdown]
# 8.5. Each code lies in a byte of its own, and half of the byte is always 0. Nothing smaller than a byte has an address, so two codes have
# to share one.

# %% [markdown]
# ## Two codes in a byte
#
# Half a byte, four bits, is called a *nibble*. To put the codes 15 and 1 together, move the first up by four bits (`<<`) and join the two
# (`|`). To take them apart, move down by four bits (`>>`), or keep only the lower four (`& 0b1111`).
#
# **Predict.** Which number is the byte?

# %%
first, second = 15, 1
byte = first << 4 | second
print("first ", f"{first:04b}")
print("second", f"    {second:04b}")
print("byte  ", f"{byte:08b}", "=", byte)
print("back: ", byte >> 4, "and", byte & 0b1111)

# %% [markdown]
# $15 \times 16 + 1 = 241$. To store codes two in a byte is called *packing*. For a whole tensor, `[0::2]` takes the first of each pair and
# `[1::2]` the second.

# %%
def pack(codes: torch.Tensor) -> torch.Tensor:
    """Put two codes in a byte, the first in the upper half."""
    return codes[0::2] << 4 | codes[1::2]


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """Take the two codes out of each byte, the upper half first."""
    return torch.stack([packed >> 4, packed & 0b1111], dim=1).view(-1)


in_a_loop = [16 * a + b for a, b in zip(codes[0::2].tolist(), codes[1::2].tolist(), strict=True)]
print("same numbers:", pack(codes).tolist() == in_a_loop)
print("and back    :", torch.equal(unpack(pack(codes)), codes))
print("bits per weight:", 8 * (pack(codes).nbytes + absmax.nbytes) / weight.numel())

# %% [markdown]
# 4.5 bits. The first code went into the upper half because we wanted it so; the other way round would do as well. But whoever reads must do
# as the writer did. What does bitsandbytes do? Ask it with a block that begins with 1 and -1, and has zeros else. Their NF4 codes are 15, 0
# and 7.
#
# **Predict.** Is the first byte 240, $15 \times 16 + 0$, or 15, $0 \times 16 + 15$? And the second?

# %%
from bitsandbytes import functional as bnb

block = torch.zeros(64)
block[0], block[1] = 1.0, -1.0
packed, state = bnb.quantize_4bit(block, quant_type="nf4")
print("first bytes:", packed.flatten().tolist()[:3])
print("shape:", tuple(packed.shape), " weights:", block.numel())

# %% [markdown]
# 240: the first weight is in the upper half. And $119 = 7 \times 16 + 7$: two zeros. A reader who begins with the lower half swaps each
# weight with its neighbour, and no error says so.
#
# The shape is (32, 1): one column with a byte for each two weights. The shape of the matrix is gone. bitsandbytes keeps it beside the
# codes, in what it calls the *quantization state*.

# %%
print("kept beside the codes:", tuple(state.shape), state.dtype, state.quant_type, state.blocksize)

# %% [markdown]
# ## An odd number of weights
#
# Three codes don't fill two bytes. **Predict.** What does our `pack` make of 1, 2, 3?

# %%
print(pack(torch.tensor([1, 2, 3], dtype=torch.uint8)).tolist())

# %% [markdown]
# $18 = 1 \times 16 + 2$, and $50 = 3 \times 16 + 2$. The code 2 was used twice, since PyTorch stretches a tensor of one number to fit the
# other. No error again. (Five codes would raise one: three numbers and two don't fit together.)
#
# So a code has to be added, and its value will never be read. Does it matter which? For the weights no, for equal bytes yes.
#
# **Predict.** Five weights in NF4. Which code does bitsandbytes put into the last half: 0, 7 or 15?

# %%
five = torch.tensor([1.0, -1.0, 0.5, 0.2, -0.3])
for name in ("nf4", "fp4"):
    packed, state = bnb.quantize_4bit(five, quant_type=name)
    last = packed[-1].item()
    pad = last & 0b1111
    print(f"{name}: last byte {last:08b}, so the pad is code {pad},", end=" ")
    print("whose value is", CODEBOOKS[name].values[pad].item())

# %% [markdown]
# 7 in NF4 and 0 in FP4: in both the code of the *value* 0. bitsandbytes adds a weight of 0 before it looks for codes. We do the same, one
# step before `pack`.

# %%
scaled_five, absmax_five = scale_blocks(five, 64)
padded = torch.cat([scaled_five, torch.zeros(1)])
by_hand = pack(nearest_codes(padded, nf4.thresholds(), nf4.codes_in_order()))
packed, state = bnb.quantize_4bit(five, quant_type="nf4")
print("by hand:", by_hand.tolist(), " bitsandbytes:", packed.flatten().tolist())

# %% [markdown]
# ## A ninth of it is scales
#
# Now the scales. Of 4.5 bits they take half a bit, a ninth. The matrix above has only 256 of them, so look at a larger one, of a million
# normally distributed numbers.

# %%
weight = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
_, absmax = scale_blocks(weight.flatten(), 64)
print(f"packed codes: {weight.numel() // 2:,} bytes")
print(f"{len(absmax):,} scales: {absmax.nbytes:,} bytes")
print(f"smallest {absmax.min():.1f}, mean {absmax.mean():.1f}, largest {absmax.max():.1f}")

# %% [markdown]
# They are ordinary numbers, so what was done to the weights can be done to them: blocks, a scale for each block, and a codebook. This is
# *double quantization*. bitsandbytes spends 8 bits on a code, so the codebook has 256 values, and puts 256 scales in a block.
#
# ## 256 values
#
# The codebook is called the *dynamic map*. Its rule: take seven powers of ten, from a millionth to 1. The $k$-th, counted from 0, stands
# for the numbers from a tenth of it to itself. Cut that range into $2^k$ equal parts and take the middle of each. Do the same with a minus
# sign, and add 0 and 1.
#
# **Predict.** How many values does the top range, from 0.1 to 1, get?

# %%
from tabulate import tabulate

rows = []
for k in range(7):
    top = 10 ** (k - 6)
    width = 0.9 * top / 2**k  # of a part
    rows.append([k, f"{top / 10:.7f} to {top:.6f}", 2**k, f"{top / 10 + width / 2:.8f}"])
print(tabulate(rows, ["k", "range", "values", "first"], disable_numparse=True))
print("all together, with both signs, 0 and 1:", 2 * sum(2**k for k in range(7)) + 2)

# %% [markdown]
# 64, and as many below -0.1: half of the values are for numbers beyond a tenth, and the other half for those within. One may call it a
# float of 8 bits whose number of mantissa bits varies: with each power of ten downwards there is one less. In tensor form, and beside
# bitsandbytes' own:

# %%
def dynamic_map() -> torch.Tensor:
    """The 256 values of the 8-bit codebook for scales, ascending."""
    middles = []
    for k in range(7):
        edges = torch.linspace(0.1, 1, 2**k + 1)
        middles.append((edges[:-1] + edges[1:]) / 2 * 10 ** (k - 6))
    positive = torch.cat(middles)
    return torch.cat([-positive, torch.tensor([0.0, 1.0]), positive]).sort().values


SCALE_VALUES = dynamic_map()
print("first and last:", [round(value, 4) for value in SCALE_VALUES[[0, 1, -2, -1]].tolist()])
print("same bytes:", torch.equal(SCALE_VALUES, bnb.create_dynamic_map()))

# %% [markdown]
# The map has 1 but not -1: its smallest value is -0.993. (`torch.equal` is true if every number is the same. 0.0 and -0.0 count as the same
# number; the map has no -0.0.)
#
# ## All of one sign
#
# First do exactly what was done to the weights: divide each block by its largest, take the nearest value, multiply again.
#
# **Predict.** How many of the 256 codes will be used?

# %%
thresholds = (SCALE_VALUES[:-1] + SCALE_VALUES[1:]) / 2


def nearest_values(scaled: torch.Tensor) -> torch.Tensor:
    """The code of the nearest value: how many thresholds lie below the number."""
    return torch.bucketize(scaled, thresholds).to(torch.uint8)


def error(restored: torch.Tensor) -> float:
    """How far scales are off, as a part of what they should be: the root of the mean square."""
    return ((restored - absmax) / absmax).square().mean().sqrt().item()


blocks = absmax.view(-1, 256)
largest = blocks.amax(dim=1, keepdim=True)
codes = nearest_values(blocks / largest)
restored = SCALE_VALUES[codes.int()] * largest
print(f"codes used: {len(codes.unique())} of 256, scales are off by {error(restored.view(-1)):.2%}")

# %% [markdown]
# About a fifth. An absmax is never negative, so half of the codes can't occur. And no scale of this drawn matrix is near 0 beside the others (in a real one some may be), so the fine
# values around 0 are not used either.
#
# The remedy is to take off the mean of all scales first. Then they lie on both sides of 0. The mean is kept, as one float32 for the whole
# matrix, and is called the *offset*.

# %%
offset = absmax.mean()
centred = (absmax - offset).view(-1, 256)
largest = centred.abs().amax(dim=1, keepdim=True)
codes = nearest_values(centred / largest)
restored = SCALE_VALUES[codes.int()] * largest + offset
print(f"codes used: {len(codes.unique())} of 256, scales are off by {error(restored.view(-1)):.2%}")
print(f"largest of a block: {blocks.amax(dim=1).mean():.1f} on average, less the mean {largest.mean():.1f}")

# %%
import matplotlib.pyplot as plt

from course_utils import plots

plots.use_style()
fig, axes = plt.subplots(2, sharex=True)
before = (blocks / blocks.amax(dim=1, keepdim=True)).flatten()
after = (centred / largest).flatten()
names = ("as they are", "less their mean")
for ax, numbers, name in zip(axes, (before, after), names, strict=True):
    ax.hist(numbers.tolist(), bins=80, range=(-1, 1), color=plots.LOOKS["8 bits"].color)
    ax.axvline(0, color="#000000", linewidth=1)
    ax.set(ylabel="scales", ylim=(0, 1900))
    ax.text(-0.98, 1500, f"{name}: from {numbers.min():.1f} to {numbers.max():.1f}")
axes[0].set_title("Scales lie on one side of zero until their mean is taken off")
axes[1].set_xlabel("scale, divided by the largest of its block")
plots.show(fig, "Two histograms over the range from -1 to 1. Scales as they are lie between 0.3 "
                "and 1, most of them near 0.6. Less their mean they lie between -0.9 and 1, most "
                "of them near 0.")

# %% [markdown]
# The same 8 bits, and a third of the error. The other half of the codes is used now. And scales lie near each other: what a block of them is divided by is much smaller
# without their mean, so its steps are finer. (This is the only offset in the whole scheme. Weights lie on both sides of 0 already, and have
# none.)

# %% [markdown]
# ## Four scales, by hand
#
# Take the scales 1, 2, 3, 2. Their mean is 2. Less the mean they are -1, 0, 1, 0, and the largest of these is 1.
#
# **Predict.** Which code does a scale get that equals the mean? The map is ascending. And which scale can't be
# restored exactly?

# %%
four = torch.tensor([1.0, 2.0, 3.0, 2.0])
centred_four = four - four.mean()
codes_four = nearest_values(centred_four / centred_four.abs().max())
print("codes   :", codes_four.tolist())
print("restored:", [round(x, 3) for x in (SCALE_VALUES[codes_four.int()] + 2).tolist()])

# %% [markdown]
# The scale 1 comes back as 1.007, because the map has no -1. So it is in bitsandbytes. Are our codes the same, too?

# %%
codes_of_bnb, _ = bnb.quantize_blockwise(centred_four, blocksize=256)
print("codes of bitsandbytes:", codes_of_bnb.tolist())
print("value of code 131    :", f"{SCALE_VALUES[131].item():.7f}")

# %% [markdown]
# They are not. A scale that is exactly the mean should get 127, the code of 0, and gets 131, which stands for 0.00002. So each 2 comes back
# as 2.00002. That is the kind of thing one finds only by comparing every byte.
#
# To find a code, bitsandbytes doesn't compare with thresholds. On a CPU it rounds the number to one of 65,536 evenly spaced points from -1
# to 1, and has a table with the code of each point. The points are 0.00003 apart. 65,536 is even, so no point is 0. The two nearest to 0 are -0.000015 and 0.000015. bitsandbytes takes the second,
# and the value nearest to it is 0.0000212, code 131. (The function is `quantize_cpu_impl` in `csrc/cpu_ops.cpp`
# of bitsandbytes 0.50.2.)

# %%
def nearest_scale_codes(scaled: torch.Tensor) -> torch.Tensor:
    """The code of the nearest value, for the nearest of 65,536 points."""
    halved = (scaled.clamp(-1, 1).nan_to_num(nan=-1.0) + 1) * 0.5  # from -1..1 to 0..1
    point = (halved.double() * 65535 + 0.5).float().int()  # from 0..1 to 0..65535
    rounded = point.float() * 2 / 65535 - 1  # and back to -1..1
    return torch.bucketize(rounded, thresholds, out_int32=True).to(torch.uint8)


print("codes by hand now:", nearest_scale_codes(centred_four).tolist())
codes_now = nearest_scale_codes(centred / largest)
restored = SCALE_VALUES[codes_now.int()] * largest + offset
share = (codes_now != codes).float().mean()
print(f"changed in the matrix above: {share:.1%} of the codes;", end=" ")
print(f"scales are off by {error(restored.view(-1)):.2%}")

# %% [markdown]
# The same now. In the matrix two codes of a thousand change. They belong to numbers so near to a threshold that rounding to a point carries
# them across. The scales are as good as before. The difference is one of bytes.
#
# (Two details. bitsandbytes multiplies by 65,535 and adds 0.5 in one instruction where the processor has one, and that rounds only once. Here the product is exact in `double`,
# so that `.float()` is the only rounding, too. And if all scales are equal, nothing is left of them, and 0 / 0 is NaN, "not a number": it gets code 0.)

# %% [markdown]
# ## The second quantization, as a function
#
# What has to be kept are the codes, one scale for each block of 256 of them, and the offset. The last block may be shorter; it is filled up
# with zeros, which are cut off again.

# %%
from dataclasses import dataclass

from course_utils.quantize import values_times_scales


@dataclass
class NestedScales:
    """Scales, quantized."""

    codes: torch.Tensor  # 8 bits for each scale
    absmax: torch.Tensor  # float32, one for each 256 codes
    offset: torch.Tensor  # float32, one

    def dequantize(self) -> torch.Tensor:
        return values_times_scales(self.codes, self.absmax, SCALE_VALUES, 256) + self.offset


def quantize_scales(absmax: torch.Tensor) -> NestedScales:
    """Take off the mean, then 8-bit codes in blocks of 256."""
    offset = absmax.mean()
    centred = absmax - offset
    rows = torch.nn.functional.pad(centred, (0, -len(centred) % 256)).view(-1, 256)
    nested_absmax = rows.abs().amax(dim=1)
    codes = nearest_scale_codes(rows * (1 / nested_absmax).unsqueeze(1)).view(-1)
    return NestedScales(codes[: len(centred)].clone(), nested_absmax, offset)

# %% [markdown]
# As with full blocks of weights, each block is multiplied by `1 / absmax` instead of divided (lesson 03). And the same bytes? bitsandbytes
# calls double quantization `compress_statistics`. In its quantization state `absmax` then holds the codes of the scales, `state2` is the
# quantization state of the scales, and `offset` the mean.

# %%
def same_bytes(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bytes."""
    if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
        return False
    return torch.equal(ours.reshape(-1).view(torch.uint8), theirs.reshape(-1).view(torch.uint8))


nested = quantize_scales(absmax)
_, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
print("codes of the scales :", same_bytes(nested.codes, state.absmax))
print("scales of the scales:", same_bytes(nested.absmax, state.state2.absmax))
print("offset              :", same_bytes(nested.offset, state.offset))
print("codebook            :", same_bytes(SCALE_VALUES, state.state2.code))

# %% [markdown]
# ## What the paper says, and what the code does
#
# The paper on QLoRA (arXiv 2305.14314), which introduced double quantization, says in section 3: "We use NF4 for W and FP8 for c2", where
# c2 are the scales. *FP8* is a float of 8 bits with a fixed number of exponent bits; in its form E4M3 there are 4, and 3 of mantissa. The
# last line of the cell above says that the released code does something else: it uses the dynamic map, which is older (arXiv 1511.04561).
#
# Does it make a difference? Try both on the same scales, and for comparison the simplest codebook, 255 evenly spaced values.
#
# **Predict.** Which of the three is nearest to the scales?

# %%
def restore_with(values: torch.Tensor) -> torch.Tensor:
    """Quantize the centred scales with another codebook, and restore them."""
    half_way = (values[:-1] + values[1:]) / 2
    return (values[torch.bucketize(centred / largest, half_way)] * largest + offset).view(-1)


fp8 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
fp8 = fp8[fp8.isfinite()].unique() / 448  # 448 is its largest number
codebooks = {"FP8 (E4M3)": fp8, "dynamic map": SCALE_VALUES, "even": torch.linspace(-1, 1, 255)}
for name, values in codebooks.items():
    print(f"{name:11} {len(values)} values, scales are off by {error(restore_with(values)):.2%}")

# %% [markdown]
# The evenly spaced one. The other two have many values near 0, and fewer where most of the scales are.

# %%
near_zero = after.abs() < 0.1
print(f"within 0.1 of zero: {near_zero.float().mean():.0%} of the scales")
fig, ax = plt.subplots()
for place, (name, values) in enumerate(codebooks.items()):
    share = (values.abs() < 0.1).float().mean()
    print(f"within 0.1 of zero: {share:.0%} of the values of {name}")
    ax.plot(values, torch.full_like(values, place), "|", color="#000000", markersize=18)
ax.hist(after.tolist(), bins=80, range=(-1, 1), bottom=3, color=plots.LOOKS["8 bits"].color,
        weights=[0.003] * len(after))
ax.set_yticks(range(4), [*codebooks, "scales"])
ax.set(ylim=(-0.6, 5.3), xlabel="scale less the mean, divided by the largest of its block")
ax.set_title("FP8 and the dynamic map crowd around zero more than the scales do")
plots.show(fig, "The values of three codebooks as rows of ticks from -1 to 1, and above them a "
                "histogram of the scales. The ticks of FP8 and of the dynamic map are dense near 0 "
                "and sparse outside; the even ones are not. Within 0.1 of zero lie "
                f"{near_zero.float().mean():.0%} of the scales, and of the values "
                + ", ".join(f"{(values.abs() < 0.1).float().mean():.0%} of {name}" for name, values in codebooks.items()) + ".")

# %% [markdown]
# But compare with what a scale is for. A weight in NF4 is off by far more than that. Does it notice how its scale was stored? The next cell
# restores the whole matrix with float32 scales and with each kind of 8-bit scales, and prints the relative squared error of lesson 02.

# %%
scaled, _ = scale_blocks(weight.flatten(), 64)
codes = nearest_codes(scaled, nf4.thresholds(), nf4.codes_in_order())
choices = {"float32": absmax, "FP8 (E4M3)": restore_with(fp8), "dynamic map": nested.dequantize()}
for name, scales in choices.items():
    restored = values_times_scales(codes, scales, nf4.values, 64).view(1024, 1024)
    relative = ((restored - weight).square().sum() / weight.square().sum()).item()
    print(f"{name:11} {relative:.4f}")

# %% [markdown]
# 0.0085 each time. Its root is 9.2 %, and beside that the 0.2 or 0.4 % of the scales don't show. So paper and code differ in which values the 8 bits stand for, and for weights like these it doesn't matter. But whoever
# reads the codes of a file needs the right map.

# %% [markdown]
# ## All together
#
# Everything that is needed to read a weight back is in one object. Its six fields are what bitsandbytes keeps in the packed tensor and its
# quantization state.

# %%
@dataclass
class Quantized4bit:
    """A weight in four bits."""

    packed: torch.Tensor
    absmax: torch.Tensor | NestedScales
    shape: torch.Size
    dtype: torch.dtype
    codebook: object
    block_size: int

    def dequantize(self) -> torch.Tensor:
        nested = isinstance(self.absmax, NestedScales)
        scales = self.absmax.dequantize() if nested else self.absmax
        codes = unpack(self.packed.flatten())[: self.shape.numel()]
        numbers = values_times_scales(codes, scales, self.codebook.values, self.block_size)
        return numbers.to(self.dtype).view(self.shape)

# %% [markdown]
# And the way there, from lessons 03 (`scale_blocks`), 04 (`nearest_codes`) and 05:

# %%
def quantize_4bit(weight, codebook="nf4", block_size=64, double_quant=False) -> Quantized4bit:
    """Quantize a weight of any shape to four bits a number."""
    book = CODEBOOKS[codebook]
    scaled, absmax = scale_blocks(weight.flatten().float(), block_size)
    if len(scaled) % 2:
        scaled = torch.cat([scaled, torch.zeros(1)])
    packed = pack(nearest_codes(scaled, book.thresholds(), book.codes_in_order())).unsqueeze(1)
    scales = quantize_scales(absmax) if double_quant else absmax
    return Quantized4bit(packed, scales, weight.shape, weight.dtype, book, block_size)

# %% [markdown]
# ## Same bytes?
#
# Now every linear layer of abacus but the head, in NF4 and FP4, with and without double quantization, from float32 and from bfloat16. For
# each the packed codes, the scales in all their parts, and the weights that are read back.
#
# **Predict.** How many of these tensors will differ?

# %%
def pairs(weight, codebook, double_quant):
    """Every tensor that we make, beside the one that bitsandbytes makes."""
    ours = quantize_4bit(weight, codebook, double_quant=double_quant)
    packed, state = bnb.quantize_4bit(
        weight, quant_type=codebook, compress_statistics=double_quant
    )
    yield "packed codes", ours.packed, packed
    if double_quant:
        yield "codes of scales", ours.absmax.codes, state.absmax
        yield "scales of scales", ours.absmax.absmax, state.state2.absmax
        yield "offset", ours.absmax.offset, state.offset
    else:
        yield "scales", ours.absmax, state.absmax
    yield "read back", ours.dequantize() + 0.0, bnb.dequantize_4bit(packed, state) + 0.0

# %% [markdown]
# (The `+ 0.0` turns -0.0 into 0.0 on both sides. FP4's second zero is read as -0.0 by some of bitsandbytes' kernels, depending on CPU and shape. And a very small scale can come back from double quantization as
# a negative one: then 0 times it is -0.0, and all other weights of its block change their sign.)

# %%
from collections import Counter

matrices = [
    layer.weight.detach().cpu()
    for name, layer in model.named_modules()
    if isinstance(layer, torch.nn.Linear) and name != "lm_head"
]
compared, compared_bytes, different = Counter(), Counter(), Counter()
for matrix in [*matrices, *(matrix.bfloat16() for matrix in matrices)]:
    for codebook in ("nf4", "fp4"):
        for double_quant in (False, True):
            for part, ours, theirs in pairs(matrix, codebook, double_quant):
                compared[part] += 1
                compared_bytes[part] += theirs.nbytes
                different[part] += not same_bytes(ours, theirs)
rows = [[part, compared[part], f"{compared_bytes[part]:,}", different[part]] for part in compared]
print(tabulate(rows, ["part", "tensors", "bytes", "different"], disable_numparse=True))
assert not any(different.values())

# %% [markdown]
# No byte differs. Four things had to be known for that, which only a comparison of bytes shows: full blocks are multiplied by the reciprocal and short ones divided; a short block of zeros stores 1e-38;
# an odd count is filled up with the code of the value 0; and the codes of scales are found by way of 65,536 points. The matrices of abacus need
# only the reciprocal and the points, since they have no short block and no odd count. The tests named below have such shapes.
#
# You have rebuilt what `load_in_4bit` stores. `course_utils.quantize` has the same functions from here on, with checks of their
# input (`pack` refuses an odd count there), and its tests compare them with bitsandbytes on many odd shapes and strange numbers. These are
# the bytes of a CPU; on a GPU bitsandbytes runs other code.

# %% [markdown]
# ## Counted from the bytes
#
# Lesson 01 computed 4.5 and 4.127 bits from a formula. Now count the tensors themselves, for three sizes of matrix. `codebooks` are the
# sixteen values of NF4 and the 256 of the dynamic map; bitsandbytes gives every matrix its own copy. We count right after quantizing. In a
# model, count before it has been used: on some CPUs the first forward pass packs the weights anew (lesson 06).

# %%
def stored_bits(matrix, double_quant: bool, codebooks: bool = False) -> float:
    """Bits per weight in the tensors that bitsandbytes keeps."""
    packed, state = bnb.quantize_4bit(matrix, quant_type="nf4", compress_statistics=double_quant)
    tensors = [packed, state.absmax]
    if double_quant:
        tensors += [state.state2.absmax, state.offset]
    if codebooks:
        tensors += [state.code, state.state2.code] if double_quant else [state.code]
    return 8 * sum(tensor.nbytes for tensor in tensors) / matrix.numel()


random = torch.Generator().manual_seed(0)
sizes = {f"{n} x {n}": torch.rand(n, n, generator=random) for n in (4096, 1024, 128)}
rows = []
for size, matrix in sizes.items():
    once, twice = stored_bits(matrix, False), stored_bits(matrix, True)
    rows.append([size, *(f"{bits:.3f}" for bits in (once, twice, once - twice))])
print(tabulate(rows, ["matrix", "once", "twice", "saved"], disable_numparse=True))

# %% [markdown]
# 4.500, 4.127 and 0.373 in the large ones. In the smallest, 128 x 128, the offset shows: 32 bits for 16,384 weights.
#
# The lesson that this course grew from says that double quantization "saves another ~0.4 bits per weight". Rounded to one digit, 0.373 is
# 0.4: the claim holds, for blocks of 64. It is 8.3 % of the 4.5 bits. For other block sizes it is another number, since the scales are more
# or fewer:

# %%
from course_utils.memory import bits_per_weight

for block_size in (32, 64, 128, 256):
    once, twice = bits_per_weight(block_size), bits_per_weight(block_size, double_quant=True)
    print(f"blocks of {block_size:3}: {once:.3f} -> {twice:.3f}, saved {once - twice:.3f}", end="")
    print(f", {(once - twice) / once:.1%}")

# %% [markdown]
# In all of this the codebooks were left out. For a large matrix they don't count.
#
# **Predict.** And for one of 128 x 128, such as abacus has: what does double quantization save with the codebooks counted?

# %%
rows = []
for size, matrix in sizes.items():
    once, twice = (stored_bits(matrix, double, codebooks=True) for double in (False, True))
    rows.append([size, *(f"{bits:.3f}" for bits in (once, twice, once - twice))])
print(tabulate(rows, ["with codebooks", "once", "twice", "saved"], disable_numparse=True))

# %% [markdown]
# Less than nothing: with double quantization the small matrix takes more. 256 values of 32 bits are 1,024 bytes, and its scales were no
# more than that. Exercise 05 asks from which size on it pays.
#
# There is another price: scales have to be dequantized each time before the weights can be. Lesson 09 measures it.

# %% [markdown]
# ## Where the bytes are right and the weights are wrong
#
# Equal bytes are a strict test, and a strict test finds things. Take a matrix of 128 x 352, in blocks of 64. A row is five and a half
# blocks, so every second row begins in the middle of one. To the quantizer this is nothing special: blocks run over the flattened weight.

# %%
wide = torch.randn(128, 352, generator=torch.Generator().manual_seed(0))
ours = quantize_4bit(wide)
packed, state = bnb.quantize_4bit(wide, quant_type="nf4")
print("packed codes:", same_bytes(ours.packed, packed))
print("scales      :", same_bytes(ours.absmax, state.absmax))

# %% [markdown]
# Same bytes. So what is read back from them should be the same, too. The next cell depends on your CPU. Its `assert` says that ours is
# right by the arithmetic: the value of each code, times the scale of the block in which its weight lies, counted through the flattened
# weight.

# %% tags=["hardware"]
import bitsandbytes

theirs = bnb.dequantize_4bit(packed, state)
share = (theirs != ours.dequantize()).float().mean().item()
print("bitsandbytes", bitsandbytes.__version__, "on", torch.backends.cpu.get_cpu_capability())
print(f"{share:.0%} of the weights are different")

places = torch.arange(128 * 352)
values = nf4.values[unpack(packed.flatten()).int()]
right = values * state.absmax[places // 64]
assert torch.equal(ours.dequantize().flatten(), right)

# %% [markdown]
# On a CPU with AVX-512 (instructions that work on 16 floats at once) it is 90 %; on others, by the source, 0 %: this cell will tell you. (Where bitsandbytes finds a GPU it
# loads its library for CUDA, which has no such instructions: 0 % there, too.) Ours is right on all. Now give bitsandbytes
# the same numbers as one long row, which has no second row to begin anywhere:

# %%
packed_row, state_row = bnb.quantize_4bit(wide.flatten(), quant_type="nf4")
as_one_row = bnb.dequantize_4bit(packed_row, state_row).flatten()
print("packed codes:", same_bytes(packed_row, packed))
print("scales      :", same_bytes(state_row.absmax, state.absmax))
print("read back   :", same_bytes(as_one_row, right))

# %% [markdown]
# So on those CPUs it must take other scales. It looks as if it counted the blocks of each row by themselves, five to a row instead of five
# and a half. Then the scale of a weight would be number `row * 5 + column // 64`.

# %% tags=["hardware"]
rows, columns = places // 352, places % 352
wrong = values * state.absmax[rows * (352 // 64) + columns // 64]
for name, weights in {"right scales": right, "scales by row": wrong}.items():
    relative = ((weights - wide.flatten()).square().sum() / wide.square().sum()).item()
    is_theirs = torch.equal(theirs.flatten(), weights)
    print(f"{name:13} error {relative:.4f}, what bitsandbytes reads: {is_theirs}")
assert torch.equal(theirs.flatten(), right) or torch.equal(theirs.flatten(), wrong)

# %% [markdown]
# With AVX-512 `dequantize_4bit` of bitsandbytes 0.50.2 reads the second kind: the error of the matrix is seven times what it should be, and
# no message says so. By that formula the first row is right, so a glance at the first weights would not have shown it.
#
# It concerns matrices whose last dimension is a multiple of 16 and not of the block size, in blocks of up to 1,024 (larger ones take another
# path, which is right); a test of this course, in
# `tests/test_quantize.py`, has more sizes. The matrices of abacus have rows of 128 and 384 weights, whole blocks of 64, and above every
# byte was the same.

# %% [markdown]
# ## The same bytes in every version?
#
# All of this was said of bitsandbytes 0.50.2. A program of this course, `tools/compare_versions.py`, has put 14 small weights through six of
# its versions on a CPU with AVX-512, and compared each with `course_utils.quantize`: codebooks, codes and scales, and then the weights that
# are read back. What it found lies in `measurements/bitsandbytes_versions.json`.
#
# In the table, "same" means that every byte and every weight read back is ours; "other bytes", that a code, a scale or a codebook differs; and
# "other weights", that the stored bytes are ours, and the weights read back from them are not.
#
# **Predict.** In how many of the six are the bytes of ordinary full blocks in NF4 ours?

# %%
import json

from course_utils import ROOT

file = ROOT / "measurements" / "bitsandbytes_versions.json"
versions = json.loads(file.read_text(encoding="utf-8"))["bitsandbytes"]
rows = {}
for results in versions.values():
    for result in results:
        if result["codebook"] == "nf4" and not result["double_quant"]:
            rows.setdefault(result["case"], []).append(result["outcome"])
print(tabulate([[case, *row] for case, row in rows.items()], ["NF4", *versions]))
print("\nthe error of 0.45.5:", versions["0.45.5"][0]["error"])
in_fp4 = next(result for result in versions["0.46.0"] if result["codebook"] == "fp4")
print("0.46.0, full blocks in fp4:", in_fp4["error"])
for version in ("0.47.0", "0.48.2"):
    for result in versions[version]:
        if (result["outcome"], result["codebook"], result["double_quant"]) == ("other weights", "nf4", False):
            share = result["weights_different"] / result["weights"]
            print(f"{version}, {result['case']}: {share:.0%} of the weights read back are others")

# %% [markdown]
# In five. 0.45.5 doesn't quantize on a CPU at all (its error text says FP4 whatever was asked). 0.46.0 takes NF4 only, and only whole blocks. From
# 0.46.0 to 0.49.2 the stored bytes of ordinary blocks are ours, and those of rare ones are not: numbers exactly half-way between two values, blocks of very
# small numbers only, blocks of zeros. An odd count was an error. In 0.47.0 and 0.48.2 about a fifth of the bfloat16 and float16 weights (23 and 20 %) are read
# back as other numbers, although the bytes are the same. In the last row the wrong scales of above are there in 0.49.2 and were not in 0.48.2
# (releases between the two were not tried).
#
# With FP4 and with double quantization there is more. All 56 cases, both codebooks with and without it:

# %%
outcomes = ["same", "other weights", "other bytes", "error", "crash"]
rows = []
for name, results in versions.items():
    found = Counter(result["outcome"] for result in results)
    rows.append([name, *(found[outcome] for outcome in outcomes)])
print(tabulate(rows, ["of 56", *outcomes]))
[case] = [r for r in versions["0.49.2"]
          if (r["case"], r["codebook"], r["double_quant"]) == ("full blocks", "nf4", True)]
print("bytes that differ in full blocks, NF4, double quantization, 0.49.2:", case["bytes_different"])

# %% [markdown]
# A "crash" ends the Python process, without an exception. And the last line says that the dynamic map of 0.49.2 differs in three bytes. So
# "byte for byte" needs a version beside it: in this course it is 0.50.2.

# %% [markdown]
# ## What you have seen
#
# - Two codes share a byte, the first in the upper half. An odd one is filled with the code of the value 0, which is 7 in NF4. The shape
#   becomes (n/2, 1).
# - Double quantization takes the mean off the scales, and gives them 8-bit codes in blocks of 256. The codebook is the dynamic map,
#   although the paper says FP8.
# - Counted from the bytes a weight takes 4.5 bits, or 4.127 with double quantization. "~0.4" is 0.373, for blocks of 64, and it turns
#   into a loss where a matrix is very small, with the codebooks counted.
# - Your `quantize_4bit` gives the bytes of bitsandbytes in every tensor compared. In one case bitsandbytes stores the right bytes and reads wrong
#   weights from them, on CPUs with AVX-512.
#
# The lesson began with codes of four bits that took eight, and with a scale of 32 bits in each block. They take four now, and the scale 8
# and a little.
#
# Now you: [exercise 05](../exercises/05_pack_and_quantize_twice.ipynb). After it, lesson 06 multiplies with such a weight, and puts it into
# the model.
