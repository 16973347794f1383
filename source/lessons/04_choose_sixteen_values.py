# %% [markdown]
# # Choose sixteen values
#
# Lesson 03 ended with a riddle. int4 and NF4 had the same blocks, the same scales and the same bits, and NF4 had the smaller error. Only
# the values differ, sixteen against fifteen. Where do they come from? And which values should you choose?
#
# | | |
# | --- | --- |
# | **What you'll do** | derive NF4 until it equals bitsandbytes in every bit, read FP4 bit by bit, and measure both and int4 on four kinds of weights |
# | **What you'll learn** | why NF4 has an exact zero and one more positive value than negative ones, which value spoils FP4, where each codebook wins, and how near it comes to the best that can be found |
# | **What you need** | [lesson 03](03_quantize_in_blocks.ipynb) |
# | **Time** | 40 minutes |
#
# Words in *italics* are explained here and in the [glossary](../glossary.md).

# %% [markdown]
# ## Even steps are not evenly used
#
# Take the first matrix of abacus, and give its weights int4 codes in blocks of 64, as in lesson 03.
#
# **Predict.** There are fifteen codes. Used equally, each would get 6.7 % of the weights. What do the codes 0 and 6 get?

# %%
import torch

from course_utils import models
from course_utils.quantize import scale_blocks

model, _ = models.load(models.ABACUS)
matrices = [
    module.weight.detach().cpu()
    for name, module in model.named_modules()
    if isinstance(module, torch.nn.Linear) and name != "lm_head"
]
scaled, absmax = scale_blocks(matrices[0].flatten(), 64)
codes = torch.round(7 * scaled).int()
for code in range(-7, 8):
    share = (codes == code).double().mean().item()
    print(f"{code:3} {share:6.1%} {'#' * round(share * 200)}")

# %% [markdown]
# The code 0 gets more than twice an equal share, the code 6 about a fifth of one. The seven codes from -3 to 3 take four fifths of all weights, and the other
# eight share the rest. (Of each 64 weights one gets 7 or -7 for being the largest of its block, which is 1.6 % already.)
#
# Where weights crowd, a step is coarse; where they are rare, values lie idle. It should be better to put the values where the weights are.

# %% [markdown]
# ## The nearest of any values
#
# On a grid the nearest value is found by rounding. For values that are not evenly spaced we need something else. Take four values and five
# numbers.
#
# **Predict.** Which value is nearest to 0.7?

# %%
values = [-1.0, 0.0, 0.25, 1.0]
numbers = [0.1, 0.7, -0.6, 0.2, 0.125]
for x in numbers:
    distances = [abs(x - value) for value in values]
    code = distances.index(min(distances))
    print(f"{x:6}: distances {[round(d, 3) for d in distances]}, code {code}")

# %% [markdown]
# 1, at a distance of 0.3. And 0.125 lies half-way between 0 and 0.25; `index` took the first of the two.
#
# Sixteen distances for every weight are a lot of work. It is enough to know on which side of the points half-way between neighbours a
# number lies. These points are called *thresholds*. Here they are -0.5, 0.125 and 0.625. The code is the number of thresholds below the
# number.

# %%
from itertools import pairwise

thresholds = [(low + high) / 2 for low, high in pairwise(values)]
print("thresholds", thresholds)
print("codes     ", [sum(x > threshold for threshold in thresholds) for x in numbers])

# %% [markdown]
# The same codes. As a function of tensors: each threshold adds 1 where a number is above it. What is counted is a place in the ascending order
# of the values. NF4's codebook is in that order, so the place is the code. FP4's codebook isn't, as you will see. So the function is also
# told which code stands in which place of the order.

# %%
def nearest_codes(scaled, thresholds, codes_in_order):
    places = torch.zeros_like(scaled, dtype=torch.uint8)
    for threshold in thresholds:
        places += scaled > threshold
    return codes_in_order[places.int()]


in_order = torch.arange(4, dtype=torch.uint8)
print("codes     ", nearest_codes(torch.tensor(numbers), thresholds, in_order).tolist())

# %% [markdown]
# Because it says `>` and not `>=`, a number on a threshold belongs to the lower value. This is the third rule for halves, which lesson 02
# announced. We shall see that bitsandbytes has it on the CPU. (Its FP4 code for GPUs takes the sign off first, so there a negative number half-way goes
# to the value nearer to 0: `dQuantizeFP4` in `csrc/kernels.cu`.)
#
# Put together with the blocks of lesson 03, we can round a weight to any values and measure the error. First int4, to see that nothing has
# changed: lesson 03 found 0.0116 for normal numbers.

# %%
from course_utils.quantize import values_times_scales


def round_in_blocks(weight, values, block_size=64):
    in_order = values.sort().values
    thresholds = ((in_order[:-1] + in_order[1:]) / 2).tolist()
    codes_in_order = torch.argsort(values, stable=True).to(torch.uint8)
    scaled, absmax = scale_blocks(weight.flatten(), block_size)
    codes = nearest_codes(scaled, thresholds, codes_in_order)
    return values_times_scales(codes, absmax, values, block_size).view(weight.shape)


def relative_squared_error(weight, restored):
    return ((weight - restored).double().square().sum() / weight.double().square().sum()).item()


normal = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
int4 = torch.arange(-7, 8) / 7
print(f"int4: {relative_squared_error(normal, round_in_blocks(normal, int4)):.4f}")

# %% [markdown]
# ## Equal shares
#
# Now for better values. Suppose that weights follow the normal distribution, and that each value should serve an equal share of them.
#
# The number below which a share $p$ of a distribution lies is its *quantile* at $p$. Python knows those of the normal distribution:
# `NormalDist().inv_cdf`, often written $\Phi^{-1}$.
#
# **Predict.** Below which number do three quarters lie: 0.25, 0.67 or 1.5?

# %%
from statistics import NormalDist

quantile = NormalDist().inv_cdf
for p in (0.25, 0.5, 0.75):
    share = (normal < quantile(p)).double().mean()
    print(f"quantile at {p:.2f}: {quantile(p):7.4f}, and {share:.2%} of our numbers lie below it")

# %% [markdown]
# 0.67. Now cut the distribution into sixteen equal shares, and let the value of each be the quantile in its middle. The shares are 1/16
# wide, so the middles are at 0.5/16, 1.5/16, ..., 15.5/16. Divide by the largest to come to -1 and 1:
#
# $$\Phi^{-1}\!\left(\frac{i + 0.5}{16}\right) \Big/ \; \Phi^{-1}\!\left(\frac{15.5}{16}\right), \qquad i = 0, \ldots, 15$$
#
# You may meet this formula as that of NF4. Here are the sixteen values of bitsandbytes beside it.
#
# **Predict.** How many of the sixteen agree?

# %%
from bitsandbytes.functional import get_4bit_type
from tabulate import tabulate

library = get_4bit_type("nf4", device="cpu")
folklore = [quantile((i + 0.5) / 16) / quantile(15.5 / 16) for i in range(16)]
rows = [[code, f"{folklore[code]:.4f}", f"{library[code]:.4f}"] for code in range(16)]
print(tabulate(rows, ["code", "formula", "bitsandbytes"], disable_numparse=True))
difference = (torch.tensor(folklore) - library).abs().max()
print(f"equal: {(torch.tensor(folklore) == library).sum()}, largest difference {difference:.4f}")

# %% [markdown]
# Two, and those two can't differ: -1 and 1. The formula isn't NF4. What stands out is code 7: NF4 has an exact 0. The formula has none; its
# two values nearest to 0 are -0.042 and 0.042.

# %% [markdown]
# ## What a zero is worth
#
# **Predict.** Which of the two has the smaller error on normal numbers?

# %%
half_zeros = normal * (torch.rand(1024, 1024, generator=torch.Generator().manual_seed(1)) < 0.5)
rows = []
for name, values in {"formula": torch.tensor(folklore), "bitsandbytes": library}.items():
    errors = [relative_squared_error(w, round_in_blocks(w, values)) for w in (normal, half_zeros)]
    zero = round_in_blocks(torch.tensor([3.0, 0.0]), values)[1].item()
    rows.append([name, *(f"{error:.4f}" for error in errors), f"{zero:.3f}"])
headers = ["", "normal", "half of them 0", "what 0 becomes beside 3"]
print(tabulate(rows, headers, disable_numparse=True))
print("zeros among the normal numbers:", (normal == 0).sum().item())

# %% [markdown]
# The formula, by a hair. None of the million is exactly 0, so an exact zero is not asked for here.
#
# But zeros occur: where a model was pruned (unimportant weights set to 0), where rows were added to fill a matrix up. The formula turns a 0 beside a 3 into -0.126. Where
# half of the numbers are 0, its error is more than twice as large. The paper behind NF4 gives this as its reason: a 0 must come back
# without an error (QLoRA, arXiv 2305.14314, section 3).

# %% [markdown]
# ## Seven and eight
#
# So one of sixteen values is 0. Fifteen are left for the two sides, and fifteen is odd. NF4 gives seven to the negative side and eight to
# the positive one. Where numbers are as likely negative as positive, it doesn't matter which side gets one more. But one has to.
#
# Each side is made by itself: quantiles at even steps of probability, from some outermost one to 0.5, where the quantile is 0. Which
# outermost one? 1 is impossible, because the quantile at 1 is infinite.
#
# Sixteen middles of equal shares: eight lie on the positive side, and the last is at 15.5/16 = 31/32. Fifteen middles: one is 0, seven lie on
# each side, and the last is at 14.5/15 = 29/30. NF4 has eight on one side and seven on the other, and one outermost probability for both:
# the mean.

# %%
print("mean of 31/32 and 29/30:", (31 / 32 + 29 / 30) / 2)

# %% [markdown]
# In bitsandbytes stands 0.9677083: the mean, cut off after seven digits. (Where the number comes from is asked again and again, in issues
# 440, 938 and 968 of bitsandbytes. The docstring of `create_normal_map` doesn't mention fractions, and says that it was "empirically
# optimized to minimize quantization error for typical neural network weight distributions". We shall try, on normal numbers.)
#
# The positive side takes eight steps from there to 0.5. Its first three values:

# %%
OUTERMOST = 0.9677083
for i in range(3):
    p = OUTERMOST - i * (OUTERMOST - 0.5) / 8
    print(f"at {p:.4f} quantile {quantile(p):.4f}, value {quantile(p) / quantile(OUTERMOST):.4f}")

# %% [markdown]
# The table above has 1, 0.7230 and 0.5626 at its end. Now all of them: eight steps on the positive side, seven on the negative one, which
# starts from the same quantile with a minus sign.

# %%
def even_steps(start, end, count):
    return [start + (end - start) * i / (count - 1) for i in range(count)]


def two_halves(steps, rounding):
    positive = [rounding(quantile(p)) for p in steps(OUTERMOST, 0.5, 9)[:-1]]
    negative = [-rounding(quantile(p)) for p in steps(OUTERMOST, 0.5, 8)[:-1]]
    return sorted(x / positive[0] for x in [*negative, 0.0, *positive])


by_hand = two_halves(even_steps, float)
print(" ".join(f"{x:.5f}" for x in by_hand[:8]))
print(" ".join(f"{x:.5f}" for x in by_hand[8:]))
largest = max(abs(a - b) for a, b in zip(by_hand, library.tolist(), strict=True))
print(f"largest difference: {largest:.1e}")

# %% [markdown]
# These are the values, with a largest difference of a ten-millionth.
#
# **Predict.** Rounded to float32, how many of the sixteen equal those of bitsandbytes in every bit?

# %%
in_float32 = torch.tensor(by_hand)
print("equal in every bit:", (in_float32 == library).sum().item(), "of 16")
ulps = (in_float32.view(torch.int32) - library.view(torch.int32)).abs()
print("off by so many ulps:", ulps.tolist())

# %% [markdown]
# Six, and three of them are -1, 0 and 1, which would be equal in any case. The others are off by a few ulps, units in the last place. (Read
# as whole numbers, the bits of neighbouring floats differ by 1, so the difference counts ulps.) No
# model will notice. But we want the same bytes, and so we have to know how these numbers were rounded on their way.

# %% [markdown]
# ## What float32 rounding adds
#
# Python calculates with 64 bits. The values of bitsandbytes were once calculated in float32, by its function `create_normal_map`, and then
# written into the program. In float32 everything is rounded on the way: the even steps, the quantiles, the quotients.
#
# To round a Python number to float32, write it into four bytes and read it back.

# %%
import struct


def float32(number):
    return struct.unpack("<f", struct.pack("<f", number))[0]


print(0.1, "becomes", float32(0.1))

# %% [markdown]
# For even steps PyTorch has `torch.linspace`. It rounds the step, and then each number. It counts the first half from the start and the
# second half back from the end, so that both ends are exact. In plain Python:

# %%
def float32_steps(start, end, count):
    start, end = float32(start), float32(end)
    step = float32(float32(end - start) / (count - 1))
    forwards = [float32(start + step * i) for i in range(count // 2)]
    backwards = [float32(end - step * i) for i in range(count - count // 2)]
    return forwards + backwards[::-1]


for count in (8, 9):
    same = float32_steps(OUTERMOST, 0.5, count) == torch.linspace(OUTERMOST, 0.5, count).tolist()
    print(count, "numbers, the same as torch.linspace:", same)

# %% [markdown]
# **Predict.** With the steps in float32, how many of the sixteen are equal? And with the quantiles rounded too?

# %%
stages = {
    "64 bits until the end": (even_steps, float),
    "steps in float32": (float32_steps, float),
    "steps and quantiles in float32": (float32_steps, float32),
}
for stage, (steps, rounding) in stages.items():
    equal = torch.tensor(two_halves(steps, rounding)) == library
    print(f"{stage:31} {equal.sum():2} of 16")
OUTERMOST = (31 / 32 + 29 / 30) / 2
equal = torch.tensor(two_halves(float32_steps, float32)) == library
print(f"{'the same, with the exact mean':31} {equal.sum():2} of 16")
OUTERMOST = 0.9677083

# %% [markdown]
# Ten, then all sixteen. Even the digits that were cut off 0.96770833... show: with the exact mean it is four. Whoever wants these values
# needs the very number with seven digits.
#
# In one function, with Python's own library only:

# %%
def nf4_values():
    positive = [float32(quantile(p)) for p in float32_steps(OUTERMOST, 0.5, 9)[:-1]]
    negative = [-float32(quantile(p)) for p in float32_steps(OUTERMOST, 0.5, 8)[:-1]]
    return sorted(float32(x / positive[0]) for x in [*negative, 0.0, *positive])


nf4 = torch.tensor(nf4_values())
same_bits = nf4.view(torch.int32) == library.view(torch.int32)
print("equal in every bit:", same_bits.sum().item(), "of 16")

# %% [markdown]
# NF4, from nothing but a rule. The name is short for *4-bit NormalFloat*. It isn't a floating-point format, though: its codes have no
# exponent and no mantissa. They are places in a table.

# %% [markdown]
# ## Are the shares equal?
#
# A comment in the function `get_4bit_type` says of these values: "each bin has equal probability mass". That was the idea. Let us count, on
# normal numbers in blocks of 64.
#
# **Predict.** A sixteenth is 6.25 %. What do the most and the least used value get?

# %%
def shares(scaled):
    thresholds = ((nf4[:-1] + nf4[1:]) / 2).tolist()
    codes = nearest_codes(scaled, thresholds, torch.arange(16, dtype=torch.uint8))
    return torch.bincount(codes.int(), minlength=16) / len(codes)


scaled, absmax = scale_blocks(normal.flatten(), 64)
print([f"{share:.1%}" for share in shares(scaled)])

# %% [markdown]
# 9.2 % and 1.7 %. The values were made for normal numbers divided by the outermost quantile, which is 1.85. But a block is divided by its
# absmax, and the largest of 64 normal numbers is usually larger than that.

# %%
print(f"outermost quantile {quantile(OUTERMOST):.2f}, mean absmax {absmax.mean():.2f}")
divided = shares(normal.flatten() / quantile(OUTERMOST))
print(f"shares after dividing by the quantile: {divided.min():.1%} to {divided.max():.1%}")
print(f"on average: a negative value {divided[:7].mean():.1%}, a positive one {divided[8:].mean():.1%}")

# %% [markdown]
# It is 2.60 on average. Divided by 1.85 the shares are nearly equal; a negative value gets a little more, since seven values share that side and eight the other. In a block
# divided by its absmax the numbers are squeezed further towards the middle than NF4 expects. How far depends on the block size, and NF4 has one
# table for all sizes. (This is the subject of arXiv 2306.06965, whose title is "NF4 Isn't Information Theoretically Optimal (and that's
# Good)".)
#
# And is the outermost probability optimal? Let us try others, and measure two errors: the relative squared error, and the mean of the
# absolute errors.

# %%
rows = []
for p in (0.90, 0.94, OUTERMOST, 0.99):
    positive = [quantile(step) for step in even_steps(p, 0.5, 9)[:-1]]
    negative = [-quantile(step) for step in even_steps(p, 0.5, 8)[:-1]]
    values = torch.tensor(sorted(x / positive[0] for x in [*negative, 0.0, *positive]))
    restored = round_in_blocks(normal, values)
    absolute = (normal - restored).abs().double().mean()
    rows.append([p, f"{relative_squared_error(normal, restored):.4f}", f"{absolute:.4f}"])
headers = ["outermost", "relative squared error", "mean absolute error"]
print(tabulate(rows, headers, disable_numparse=True))

# %% [markdown]
# It depends on what is to be small. Of these four, 0.94 has the smallest squared error, and NF4's number the smallest absolute error. There
# is no best codebook without saying by which measure. This course takes the squared error.

# %% [markdown]
# ## FP4, bit by bit
#
# The values of the other codebook, FP4, are floating-point numbers of four bits: a sign, two bits of exponent, one of mantissa. Read it by the
# formula of lesson 01. The bias for two bits of exponent is 1. Where the exponent field is 0, the value is m/2, without the 1 + of the formula (exercise 01). The largest is
# 6, so divide by 6. In the next cell `code & 0b0110` keeps the two middle bits, and `>> 1` moves them one place down; lesson 05 does more of
# this.
#
# **Predict.** Code 0011: sign 0, exponent 01, mantissa 1. What is its value by the formula, and does bitsandbytes agree?

# %%
def ordinary_float(code):
    exponent, mantissa = (code & 0b0110) >> 1, code & 0b0001
    return mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2 ** (exponent - 1)


library = get_4bit_type("fp4", device="cpu")
rows = []
for code in range(8):
    by_formula, value = ordinary_float(code) / 6, library[code].item()
    rows.append([f"{code:04b}", f"{by_formula:.4f}", f"{value:.4f}", f"{12 * value:g}"])
print(tabulate(rows, ["code", "formula", "bitsandbytes", "times 12"], disable_numparse=True))

# %% [markdown]
# By the formula it is $1.5 / 6 = 0.25$. In bitsandbytes it is 1, the largest value. Only 0000, 0100 and 0101 agree. (Issues 851 and 988 of
# bitsandbytes ask why.)
#
# The last column, the values times 12, shows the pattern. From 8 and 12, with exponent 01, to 2 and 3, with exponent 11: the exponent
# counts downwards. Exponent 00 is for 0 and one tiny value.

# %%
def fp4_value(code):
    sign = -1.0 if code & 0b1000 else 1.0
    exponent, mantissa = (code & 0b0110) >> 1, code & 0b0001
    magnitude = mantissa / 16 if exponent == 0 else (1 + mantissa / 2) * 2 ** (4 - exponent)
    return sign * magnitude / 12 + 0.0  # -0.0 + 0.0 is 0.0


fp4 = torch.tensor([fp4_value(code) for code in range(16)])
same_bits = fp4.view(torch.int32) == library.view(torch.int32)
print("equal in every bit:", same_bits.sum().item(), "of 16")

# %% [markdown]
# The codes 8 to 15 are those of 0 to 7 with the sign set.
#
# **Predict.** How many different values do the sixteen codes have?

# %%
print("different values:", len(fp4.unique()))
print("codes in the order of their values:", torch.argsort(fp4, stable=True).tolist())

# %% [markdown]
# Fifteen: 0000 and 1000 are both 0. NF4 spends its sixteenth code on an eighth positive value, int4 and FP4 waste it. And FP4's codes are
# not in the order of its values, which is why `nearest_codes` wants to be told.

# %%
import matplotlib.pyplot as plt

from course_utils import plots

plots.use_style()
codebooks = {"nf4": nf4, "fp4": fp4, "int4": int4}
fig, ax = plt.subplots(figsize=(7, 2.6))
for place, (name, values) in enumerate(codebooks.items()):
    look, height = plots.LOOKS[name], 2 - place
    ax.hlines(height, -1, 1, color="#cccccc", linewidth=1)
    heights = [height] * len(values)
    ax.plot(values, heights, look.marker, color=look.color, markersize=7, linestyle="none")
ax.set_yticks((2, 1, 0), list(codebooks))
ax.set(xlabel="value, in units of the block's absmax", xlim=(-1.05, 1.05), ylim=(-0.6, 2.6))
ax.grid(False, axis="y")
ax.annotate("0 and ±0.0052", (0, 1), (0, 18), textcoords="offset points", ha="center", arrowprops={"arrowstyle": "-"})
ax.set_title("nf4 is dense in the middle; fp4 has a hole on each side of 0")
plots.show(fig, "The values of three codebooks between -1 and 1. nf4: sixteen, closest together "
                "around 0, 0.08 apart there and 0.30 at -1. fp4: three almost on top of each other at 0, nothing up to a sixth on "
                "either side, then ever wider apart. int4: fifteen, 0.14 apart everywhere.")

# %% [markdown]
# ## The same numbers as bitsandbytes
#
# Now a whole tensor: a million numbers, rounded by us and by bitsandbytes. The third rule for halves gets a tensor of its own: the
# thresholds themselves.

# %%
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

for name in ("nf4", "fp4"):
    values = codebooks[name].sort().values
    halves = torch.ones(1, 64)
    halves[0, :15] = (values[:-1] + values[1:]) / 2
    for what, weight in {"a million numbers": normal, "the thresholds": halves}.items():
        restored = dequantize_4bit(*quantize_4bit(weight, blocksize=64, quant_type=name))
        same = torch.equal(restored, round_in_blocks(weight, codebooks[name]))
        print(f"{name}, {what}: same numbers: {same}")
    print("every threshold to its lower value:", torch.equal(restored[0, :15], values[:-1]))

minus_five, six = torch.tensor(-5.0), torch.tensor(6.0)
threshold = (values[0] + values[1]) / 2  # of fp4, between -1 and -2/3
print("-5 * (1 / 6) is a threshold of fp4:", (minus_five * (1 / six) == threshold).item())
print("-5 / 6 lies above it              :", (minus_five / six > threshold).item())

# %% [markdown]
# The same, on the CPU, thresholds too. So lesson 03 is explained: times 1/6, -5 falls on the threshold and goes to the lower value, -6; divided by 6 it lies
# an ulp above, and goes to -4. Lesson 05 looks at the bytes in which they are stored.

# %% [markdown]
# ## Which one wins?
#
# Four kinds of weights, about a million of each:
#
# - **normal** numbers, for which NF4 was made;
# - **uniform** ones: from -1 to 1, none likelier than another;
# - *heavy-tailed* ones, with many outliers: a normal number divided by the root of the mean square of three others. This is the
#   *Student t distribution* with 3 degrees of freedom;
# - the weights of **abacus**, all 28 matrices.
#
# **Predict.** On which of them does nf4 lose, and to which?

# %%
generator = torch.Generator().manual_seed(2)
uniform = torch.rand(1024, 1024, generator=generator) * 2 - 1
three_others = torch.randn(3, 1024, 1024, generator=generator)
heavy_tailed = torch.randn(1024, 1024, generator=generator)
heavy_tailed /= three_others.square().mean(dim=0).sqrt()
abacus = torch.cat([matrix.flatten() for matrix in matrices])
kinds = {"normal": normal, "uniform": uniform, "heavy-tailed": heavy_tailed, "abacus": abacus}

errors, rows = {}, []
for kind, weight in kinds.items():
    restored = [round_in_blocks(weight, values) for values in codebooks.values()]
    errors[kind] = [relative_squared_error(weight, r) for r in restored]
    rows.append([kind, *(f"{error:.4f}" for error in errors[kind])])
print(tabulate(rows, ["relative squared error", *codebooks], disable_numparse=True))
sixteen_even = round_in_blocks(normal, torch.linspace(-1, 1, 16))
print(f"sixteen even values, on normal numbers: {relative_squared_error(normal, sixteen_even):.4f}")

# %% [markdown]
# nf4 loses on uniform numbers, to int4, whose even steps are right there. It wins on the three others. The outliers of the heavy-tailed
# numbers make all errors larger, in spite of the blocks. abacus is much like the normal numbers.
#
# nf4 has one value more than int4. That alone brings normal numbers from 0.0116 to 0.0101, half of the way to 0.0085; the other half is
# owed to where the values lie.
#
# fp4 is last on all four kinds. So much for the average; matrix by matrix, in abacus:

# %%
orders = []
for matrix in matrices:
    restored = {name: round_in_blocks(matrix, values) for name, values in codebooks.items()}
    error = {name: relative_squared_error(matrix, r) for name, r in restored.items()}
    orders.append(" < ".join(sorted(error, key=error.get)))
for order in sorted(set(orders)):
    print(f"{order}: {orders.count(order)} of {len(orders)} matrices")

# %% [markdown]
# The lesson that this course grew from says that nf4 "is almost always better than 'fp4' because weight distributions are typically normal,
# not uniform". That it is better holds in all that we measured. The reason doesn't: nf4 beats fp4 on uniform numbers too, and on
# heavy-tailed ones. Whether weights are normal or uniform decides between nf4 and **int4**. "Test both in your actual use case", the lesson
# goes on, and that stands. That "fp4 is slightly faster" is a question for lesson 09.
#
# Is there anything on which fp4 wins? Weights that happen to be its own values, of course.

# %%
drawn = fp4[torch.randint(16, (1024, 1024), generator=torch.Generator().manual_seed(3))]
for name, values in codebooks.items():
    print(f"{name}: {relative_squared_error(drawn, round_in_blocks(drawn, values)):.4f}")

# %% [markdown]
# ## One value makes the difference
#
# Why is fp4 so far behind? Look at the hole in the figure. Between 0.0052, which is 1/192, and 0.1667 there is no value, and 0.0052 itself
# stands so close to 0 that it is almost a third zero.
#
# By the formula for an ordinary float there was 0.0833 instead, in the middle of the hole. This ordinary float of four bits is called
# *E2M1*, after its bits (OCP Microscaling Formats Specification 1.0).
#
# **Predict.** Take E2M1 instead. Which place does it get beside nf4 and int4?

# %%
e2m1 = torch.tensor([sign * ordinary_float(code) / 6 for sign in (1, -1) for code in range(8)])
print("values exchanged:", (e2m1.sort().values != fp4.sort().values).sum().item())
rows = []
for kind, weight in kinds.items():
    size = scale_blocks(weight.flatten(), 64)[0].abs()
    in_the_hole = ((size > 1 / 192) & (size < 1 / 6)).double().mean()
    error = relative_squared_error(weight, round_in_blocks(weight, e2m1))
    rows.append([kind, f"{in_the_hole:.0%}", *(f"{e:.4f}" for e in [*errors[kind], error])])
print(tabulate(rows, ["", "in the hole", *codebooks, "E2M1"], disable_numparse=True))

# %% [markdown]
# The second, on all but uniform numbers. Two values, one with each sign, are all that differs, and a third of the normal numbers lie where
# they are missing. So when you read that "FP4" is good or bad, ask which one is meant: that of bitsandbytes isn't E2M1.

# %% [markdown]
# ## The best values we can find
#
# On three of the four kinds nf4 is the best of three. How much better could sixteen values be? There is a simple way to improve any codebook:
#
# 1. give each number to its nearest value;
# 2. move each value to the mean of its numbers, since the mean is the point with the smallest sum of squared distances.
#
# Neither step can make the squared error larger. Repeat until nothing moves. This is *Lloyd's algorithm*. Two values and five numbers, by
# hand:
#
# **Predict.** The values start at 0 and 1. Where will they end?

# %%
numbers, values = [0, 1, 2, 9, 10], [0, 1]
for _ in range(3):
    threshold = (values[0] + values[1]) / 2
    groups = [[x for x in numbers if x <= threshold], [x for x in numbers if x > threshold]]
    values = [sum(group) / len(group) for group in groups]
    print(groups, "values", values)

# %% [markdown]
# At 1 and 9.5, after two rounds. The third changes nothing.
#
# Now sixteen values and blocks. What we want to be small is the error of the weights, not that of the scaled numbers: an error in a block
# with twice the scale is twice as large, and its square four times. So each number counts with the square of its block's absmax.
# `bucketize` counts thresholds as `nearest_codes` does, and `bincount` adds up what falls to each value. We stop after a hundred rounds.

# %%
def lloyd(scaled, importance, values, rounds=100):
    for _ in range(rounds):
        places = torch.bucketize(scaled, (values[:-1] + values[1:]) / 2)
        sums = torch.bincount(places, importance * scaled, minlength=16)
        values = sums / torch.bincount(places, importance, minlength=16)
    return values


def best_values(weight, start):
    scaled, absmax = scale_blocks(weight.flatten(), 64)
    some = scaled.view(-1, 64)[::16].double()  # a sixteenth of the blocks will do
    importance = absmax[::16].double().square().unsqueeze(1).expand_as(some)
    return lloyd(some.flatten(), importance.flatten(), start.double()).float()


best = best_values(normal, nf4)
print("best for normal numbers:", [round(x, 2) for x in best.tolist()])
for name, values in {"nf4": nf4, "best": best}.items():
    print(f"{name}: neighbours are {values.diff().min():.2f} to {values.diff().max():.2f} apart")

# %% [markdown]
# For normal numbers: no exact 0, no exact 1, and values that are spaced more evenly than NF4's. And the errors? Lloyd's algorithm can get
# stuck where no small move helps but a large one would. So start it twice, from nf4 and from sixteen even steps, and compare with the
# better result.

# %%
rows = []
for kind, weight in kinds.items():
    books = [best_values(weight, start) for start in (nf4, torch.linspace(-1, 1, 16))]
    found = [relative_squared_error(weight, round_in_blocks(weight, values)) for values in books]
    errors[kind].append(min(found))
    above = [f"{error / min(found) - 1:.0%}" for error in errors[kind][:3]]
    rows.append([kind, *(f"{error:.4f}" for error in found), *above])
headers = ["", "from nf4", "from even steps", *(f"{name} is above by" for name in codebooks)]
print(tabulate(rows, headers, disable_numparse=True))

# %% [markdown]
# Both beginnings lead to nearly the same error, which is a good sign, though no proof that there is no better one. On normal numbers and on
# abacus nf4 is a tenth above it: there is little to gain. On uniform numbers it is at more than twice the best, and int4 a quarter above.
# On heavy-tailed numbers nf4 is a third above, and the other two have about three times the best error.

# %%
fig, ax = plt.subplots()
looks = {name: plots.LOOKS[name] for name in codebooks}
for place, (name, look) in enumerate(looks.items()):
    heights = [errors[kind][place] for kind in kinds]
    across = [i + (place - 1) * 0.16 for i in range(4)]
    ax.plot(across, heights, look.marker, color=look.color, markersize=8, ls="none", label=name)
for i, kind in enumerate(kinds):
    label = "best by Lloyd's algorithm" if i == 0 else None
    ax.hlines(errors[kind][3], i - 0.3, i + 0.3, color="#000000", linewidth=1.5, label=label)
ax.set_xticks(range(4), list(kinds))
ax.set(ylabel="relative squared error", ylim=(0, 0.04))
ax.set_title("nf4 wins except on uniform weights; fp4 is last on all four kinds")
ax.legend(loc="upper left")
plots.show(fig, "The relative squared error of nf4, fp4 and int4 on four kinds of weights, with a "
                "line for the best values of Lloyd's algorithm. fp4 is the highest everywhere. nf4 "
                "is the lowest and near the line, except on uniform weights, where int4 is. In the order nf4, fp4, int4, line: "
                + "; ".join(f"{kind} {', '.join(f'{error:.4f}' for error in errors[kind])}" for kind in kinds) + ".")

# %% [markdown]
# ## What it costs in bits
#
# Nothing. A code has four bits whatever its value is: 4.5 bits with its scale, for nf4, fp4 and int4. A fixed table need not be stored at all;
# bitsandbytes keeps a copy with each matrix all the same (lesson 05). A table of your own, say from Lloyd's algorithm, must be.
#
# **Predict.** How many bits for each weight are sixteen float32 numbers, in a matrix of abacus and in one of Llama-2-7B?

# %%
for rows, columns in ((128, 128), (4096, 4096)):
    print(f"{rows} x {columns}: {16 * 32 / (rows * columns):.5f} bits for each weight")

# %% [markdown]
# Next to nothing, too. It isn't the price of the table that speaks for a fixed one. The best table that we found for all of abacus is less than a tenth better, it may lack an exact 0, and every program that reads the model has to know it.

# %% [markdown]
# ## What you have seen
#
# - NF4 is made of quantiles of the normal distribution: eight steps on the positive side, seven on the negative one, and an exact 0
#   between them. All sixteen values are those of bitsandbytes in every bit, once everything is rounded to float32 on the way: steps, quantiles and quotients. Without that, six are.
# - $\Phi^{-1}((i+0.5)/16)$ is not NF4. It lacks the zero.
# - FP4's exponent counts downwards. It has fifteen different values, three of them at 0 or almost, and a hole beside them. With E2M1's value
#   in the hole it would be second, except on uniform weights.
# - On the CPU a scaled number equal to the threshold gets the lower value. (In lesson 03, -5 times 1/6 is exactly the threshold and goes to -6; -5 divided by 6 is an ulp
#   above it and goes to -4.)
# - nf4 has the smallest error on normal, heavy-tailed and abacus's weights, int4 on uniform ones. fp4 is last on all four. So nf4 beats fp4 for
#   another reason than that weights are normal.
# - On normal numbers nf4's error is a tenth above that of the best values that Lloyd's algorithm finds.
#
# The lesson began with a riddle: why has NF4 a smaller error than int4 for the same bits? Because its values lie where the weights are, and
# because it uses all sixteen. Sixteen even values alone would get 0.0101.
#
# From here on nf4 and fp4 come from `course_utils.codebooks`. int4 is there too, in another order, which lesson 06 explains.

# %%
from course_utils.codebooks import CODEBOOKS

for name in ("nf4", "fp4"):
    print(name, "same numbers:", torch.equal(CODEBOOKS[name].values, codebooks[name]))

# %% [markdown]
# Now you: [exercise 04](../exercises/04_choose_sixteen_values.ipynb). After it, [lesson 05](05_pack_and_quantize_twice.ipynb) packs the
# codes, and makes the scales smaller.
