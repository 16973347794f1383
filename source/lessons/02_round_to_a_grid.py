# %% [markdown]
# # Round to a grid
#
# Lesson 01 counted four bits for a weight and left a question open: how does one get from a float to one of sixteen codes, and back? And
# how far from the old number does one arrive?
#
# | | |
# | --- | --- |
# | **What you'll do** | quantize eight numbers by hand in two ways, a million by PyTorch, and a picture with a lamp in it |
# | **What you'll learn** | how large the error can be, what a zero point is good for, and how a single number ruins all the others |
# | **What you need** | [lesson 01](01_count_the_bits.ipynb) |
# | **Time** | 40 minutes |
#
# Words in *italics* are explained here and in the [glossary](../glossary.md).

# %% [markdown]
# ## Whole numbers are too coarse
#
# Here are eight weights, of a size that weights often have. The nearest thing to a code is a whole number, so round to that.
#
# **Predict.** What is left of the eight?

# %%
weights = [0.02, -0.068, 0.008, 0.14, -0.036, 0.104, -0.016, 0.048]
print([round(x) for x in weights])

# %% [markdown]
# Nothing. A *grid* is a row of evenly spaced values, and the distance between neighbours is its *step*. Whole numbers are a grid with the
# step 1, and all eight weights lie nearer to 0 than to its neighbours. We need a smaller step.

# %% [markdown]
# ## Choose the step by the largest
#
# Four bits can name the whole numbers from -7 to 7, and one more that comes later. Let the weight with the largest absolute value get the code 7, or -7 if it is negative. Then the step
# is the absmax divided by 7. Dividing by the step turns weights into numbers between -7 and 7, and those can be rounded. Multiplying by
# it leads back.
#
# The absmax of the eight is 0.14, so the step is 0.02. The cells below call this step `scale`. Lesson 01 gave that name to the absmax itself; below you will see
# that both lead to the same numbers.
#
# **Predict.** Which code does -0.068 get, and which number comes back?

# %%
from tabulate import tabulate

absmax = max(abs(x) for x in weights)
scale = absmax / 7
rows = []
for x in weights:
    code = round(x / scale)
    back = code * scale
    rows.append([x, f"{x / scale:.1f}", code, f"{back:.2f}", f"{abs(x - back):.3f}"])
headers = ["weight", "weight / scale", "code", "comes back as", "error"]
print(tabulate(rows, headers, disable_numparse=True))

# %% [markdown]
# -0.068 is -3.4 steps, so it gets the code -3 and comes back as -0.06. What is stored are the eight codes, and 0.02.
#
# A number by which others are divided before they become codes is their *scale*. Where the codes are whole numbers, as here, the scale is the step. We say
# *scale* when we divide by it, and *step* when we speak of a distance. To take the scale from the absmax is *absmax quantization*. With
# the codes -7 to 7 this course calls it *int4*.
#
# The way back, from codes to numbers, is to *dequantize*.
#
# As two functions:

# %%
def absmax_codes(numbers: list[float]) -> tuple[list[int], float]:
    scale = max(abs(x) for x in numbers) / 7
    return [round(x / scale) for x in numbers], scale


def restore(codes: list[int], scale: float) -> list[float]:
    return [code * scale for code in codes]


codes, scale = absmax_codes(weights)
print(codes, round(scale, 6))
print([round(x, 2) for x in restore(codes, scale)])

# %% [markdown]
# Lesson 01 said it in other words: divide by the absmax, and look the codes up in a codebook of values between -1 and 1. That is the same
# if the codebook is -1, -6/7, ..., 6/7, 1: the 7 moves from the scale into the codebook, and the scale is then the absmax itself.

# %%
codebook = {code: code / 7 for code in range(-7, 8)}
by_codebook = [codebook[code] * absmax for code in codes]
same = [round(x, 12) for x in by_codebook] == [round(x, 12) for x in restore(codes, scale)]
print("same numbers:", same)

# %% [markdown]
# Now with tensors. `torch.int8` has a byte for each code, since PyTorch has no ordinary arithmetic for tensors of four bits. Lesson 05 packs
# two codes in a byte.

# %%
import torch

tensor = torch.tensor(weights)
scale = tensor.abs().max().item() / 7
int8_codes = torch.round(tensor / scale).to(torch.int8)
print(int8_codes.tolist(), "same numbers:", int8_codes.tolist() == codes)

# %% [markdown]
# PyTorch has a function that rounds to a grid and comes back at once, so that one can see what rounding will do to a model. Its arguments
# are the numbers, the scale, the code that stands for 0, and the smallest and the largest code.

# %%
restored = int8_codes * scale
library = torch.fake_quantize_per_tensor_affine(tensor, scale, 0, -7, 7)
print("same numbers:", torch.equal(library, restored))

# %% [markdown]
# One case is left. If all numbers are 0, the absmax is 0, and 0 / 0 is no number (NaN). Any scale but 0 will do then. Exercise 02 takes 1.

# %%
print((torch.zeros(3) / torch.zeros(3).abs().max()).tolist())

# %% [markdown]
# ## How wrong can it be?
#
# Write $s$ for the scale. $x/s$ lies between two neighbouring whole numbers. They are 1 apart, so the nearer one, the code, is at most a
# half away:
#
# $$\left|\frac{x}{s} - \text{code}\right| \le \frac12 \qquad\text{and, times } s, \qquad |x - s \cdot \text{code}| \le \frac s2$$
#
# This is the *half-step bound*. It asks for one thing: the nearest whole number must be a code. Here it is, since no $|x|$ is larger than
# the absmax, which is $7s$.
#
# With $s = \text{absmax}/7$ the error is at most a fourteenth of the absmax, whatever the numbers are. Try it on a million of them, drawn
# from the *normal distribution*, the bell curve. They are in float64, so that the rounding of the floats themselves stays out of sight.
#
# **Predict.** The bound is 0.5 steps. How near to it does the largest error of a million come?

# %%
generator = torch.Generator().manual_seed(0)
million = torch.randn(1_000_000, dtype=torch.float64, generator=generator)
scale = million.abs().max() / 7
restored = torch.round(million / scale) * scale
errors = (million - restored) / scale
print(f"largest error: {errors.abs().max():.4f} steps")
print(f"errors larger than half a step: {(errors.abs() > 0.5).sum()} of {len(errors):,}")

# %% [markdown]
# It comes as close to 0.5 as four digits can tell, and never beyond.
#
# How large is an error usually? Where in the step a number lies is a matter of chance, so the error $t$, in steps, is spread evenly from
# $-\frac12$ to $\frac12$. The mean of its square is $\int_{-1/2}^{1/2} t^2\,dt = \frac1{12}$.
#
# **Predict.** The root of the mean square, in steps?

# %%
print(f"by the formula : {(1 / 12) ** 0.5:.3f} steps")
print(f"of the million : {errors.square().mean().sqrt():.3f} steps")

# %% [markdown]
# 0.289, a bit more than a quarter of a step, as long as the numbers spread over several steps. Then all that counts is the step, and the step comes from one number,
# the largest.
#
# The bound is the same for all numbers, large and small. For small ones it is a lot: what lies nearer to 0 than half a step becomes 0.

# %%
zeros = (restored == 0).double().mean()
print(f"step: {scale:.2f}, where the typical number is {million.square().mean().sqrt():.2f}")
print(f"became 0: {zeros:.0%}")

# %% [markdown]
# More than a quarter of all numbers. To compare one way of rounding with another, we need a measure for a whole tensor. The *relative
# squared error* adds up the squares of the errors and divides by the added squares of the numbers. 0 is perfect. 1 is what you get by
# storing 0 for every number.

# %%
def relative_squared_error(numbers: torch.Tensor, restored: torch.Tensor) -> float:
    return ((numbers - restored).square().sum() / numbers.square().sum()).item()


print(f"the million, rounded: {relative_squared_error(million, restored):.3f}")
print(f"the million, as 0   : {relative_squared_error(million, torch.zeros_like(million)):.3f}")
print(f"step squared / 12   : {(scale**2 / 12).item():.3f}")

# %% [markdown]
# 0.042, as the formula foretold: the mean square of the million is 1, so the relative squared error is the mean square error, $s^2/12$.

# %% [markdown]
# ## Half-way between two codes
#
# Where $x/s$ ends in .5, two codes are equally near.
#
# **Predict.** What does Python make of `round(2.5)`?

# %%
import math

halves = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]
print("Python's round :", [round(x) for x in halves])
print("torch.round    :", torch.round(torch.tensor(halves)).int().tolist())
print("floor(x + 0.5) :", [math.floor(x + 0.5) for x in halves])

# %% [markdown]
# 2. Python and PyTorch go to the *even* neighbour: *half to even*. What many learnt at school goes up: *half up*. Both keep the half-step
# bound. What differs is what happens on average:

# %%
quarters = [k / 4 for k in range(-16, 16)]  # -4, -3.75, ..., 3.75: a quarter of them are halves
to_even = sum(round(x) - x for x in quarters) / len(quarters)
up = sum(math.floor(x + 0.5) - x for x in quarters) / len(quarters)
print(f"mean error, half to even: {to_even}")
print(f"mean error, half up     : {up}")

# %% [markdown]
# Half to even goes up as often as down. Half up moves every fourth of these numbers up by 0.5, which is 0.125 on average. In a long sum
# such a shift adds up, where errors of both signs partly cancel.
#
# Among arbitrary floats halves are rare. Among the million:

# %%
print("exactly half-way:", (errors.abs() == 0.5).sum().item())

# %% [markdown]
# But to get the same bytes as another program, you have to treat the rare ones as it does. bitsandbytes has a third rule; lesson 04 comes
# to it.

# %% [markdown]
# ## Why not -8?
#
# Four bits make sixteen patterns, and -7 to 7 are fifteen. Computers usually read four bits as -8 to 7. Use them all: then the step is
# absmax / 8, a little smaller.
#
# **Predict.** The absmax is 0.14. What becomes of the weight -0.14, and what of 0.14?

# %%
scale = 0.14 / 8
for x in (-0.14, 0.14):
    code = max(-8, min(7, round(x / scale)))
    error = abs(x - code * scale) / scale
    print(f"{x:5.2f}: code {code:2}, comes back as {code * scale:7.4f}, error {error:.1f} steps")

# %% [markdown]
# -0.14 is exact. 0.14 would need the code 8, which isn't there. It is cut off at 7, and the error is a whole step: twice the bound. And
# with the step absmax / 7, -8 would stand for a number beyond the absmax, where there is none. So absmax quantization leaves the
# sixteenth pattern unused.
#
# There are ways to use the sixteenth. The format Q4_0 of llama.cpp, a program that runs language models, gives -8 to the largest weight, whatever its sign, by allowing a
# negative scale (`quantize_row_q4_0_ref` in `ggml-quants.c`). NF4 gives it another value altogether (lesson 04).

# %% [markdown]
# ## All on one side
#
# Weights have both signs. Other numbers don't: the brightness of a pixel, or the scales of blocks, which lesson 05 quantizes too.
#
# **Predict.** If no number is negative, how many of the fifteen codes can occur?

# %%
positive = [0.04, 0.29, 0.6, 0.0, 0.15, 0.45, 0.23, 0.51]
codes, scale = absmax_codes(positive)
print(f"codes {codes}, step {scale:.4f}")

# %% [markdown]
# Eight, 0 to 7: half of the patterns are wasted. Spend all sixteen on the range from 0 to the largest. Sixteen values have fifteen gaps,
# so the step is 0.6 / 15 = 0.04 instead of 0.086.

# %%
scale = max(positive) / 15
codes = [round(x / scale) for x in positive]
print(f"codes {codes}, step {scale:.4f}")

# %% [markdown]
# Now the general case: some negative numbers, but not as far out as the positive ones.

# %%
mixed = [-0.2, 0.07, 0.55, 0.0, 0.31, 0.44, -0.08, 0.18]
print("absmax:", absmax_codes(mixed)[0], "of -7 to 7")

# %% [markdown]
# The codes below -3 are wasted. Lay the sixteen values from the smallest number to the largest instead. The two ends are 0.75 apart, so the step is 0.75 / 15 = 0.05. The codes run from 0 to 15, so that one of them in the middle has to stand for 0. This code is the
# *zero point*. Here it is 4, because 0 lies 0.2 / 0.05 = 4 steps above the smallest.
#
# $$\text{code} = \operatorname{round}(x/s) + \text{zero point} \qquad\qquad \text{and back: } s \cdot (\text{code} - \text{zero point})$$
#
# **Predict.** The code of -0.08, and the number that comes back?

# %%
low, high = min(mixed), max(mixed)
scale = (high - low) / 15
zero_point = round(-low / scale)
rows, restored = [], []
for x in mixed:
    code = round(x / scale) + zero_point
    back = scale * (code - zero_point)
    restored.append(back)
    rows.append([x, f"{x / scale:.1f}", code, f"{back:.2f}", f"{abs(x - back):.2f}"])
print("zero point:", zero_point)
print(tabulate(rows, headers, disable_numparse=True))

# %% [markdown]
# -0.08 is -1.6 steps, rounded -2, plus 4: the code is 2, and -0.1 comes back. No error is larger than 0.025, half a step. And 0 comes
# back as exactly 0, which is worth having: where a model holds zeros, they should stay so. If all numbers lie on one side of 0, the range
# is stretched to include it.
#
# Quantization with a zero point is also called *asymmetric*, without one *symmetric*.
#
# The library, told that 4 stands for 0 and that codes run from 0 to 15:

# %%
library = torch.fake_quantize_per_tensor_affine(torch.tensor(mixed), scale, zero_point, 0, 15)
print([round(x, 2) for x in library.tolist()])
print("same numbers:", torch.allclose(library, torch.tensor(restored)))

# %% [markdown]
# One thing can go wrong at the end of the range. Take numbers from -1.5 to 13.5 with the step 1. The zero point is round(1.5) = 2, the largest becomes
# round(13.5) = 14, and 14 + 2 = 16. Both halves were rounded up. The *clamp* cuts such a code off at 15.
#
# What does a zero point buy? The same million numbers, once as they are and once without their signs, each rounded in both ways.
#
# **Predict.** Without signs the step shrinks to 7/15. To what does the relative squared error shrink?

# %%
def absmax_error(x: torch.Tensor) -> float:
    scale = x.abs().max() / 7
    return relative_squared_error(x, torch.round(x / scale) * scale)


def zero_point_error(x: torch.Tensor) -> float:
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (high - low) / 15
    zero_point = torch.round(-low / scale)
    codes = (torch.round(x / scale) + zero_point).clamp(0, 15)
    return relative_squared_error(x, scale * (codes - zero_point))


rows = []
for name, x in {"without signs": million.abs(), "as they are": million}.items():
    rows.append([name, absmax_error(x), zero_point_error(x), zero_point_error(x) / absmax_error(x)])
headers = ["the million", "absmax", "zero point", "ratio"]
print(tabulate(rows, headers, floatfmt=".3f"))
print(f"(7/15)^2 = {(7 / 15) ** 2:.3f}")

# %% [markdown]
# To 0.218 of what it was, less than a quarter: from 0.042 to 0.009. A fifth bit would do the same: with the codes -15 to 15, absmax quantization has the step absmax / 15 as well. For
# this tensor, with both signs and one scale, a zero point buys little: there were 14 steps from -absmax to absmax, now there are 15, and the range may be a
# little shorter. In small blocks, where one side usually reaches further, it buys more
# (lesson 03); but it has to be stored and calculated with. bitsandbytes stores none for 4-bit
# weights, as you will see in its bytes in lesson 05.

# %% [markdown]
# ## One outlier
#
# Go back to the eight weights and absmax. Add a ninth, ten times as large as the largest: 1.4. The step becomes 0.2.
#
# **Predict.** Which codes do the eight get now?

# %%
codes, scale = absmax_codes([*weights, 1.4])
print("codes     :", codes)
print("come back :", [round(x, 2) for x in restore(codes, scale)])
print("were      :", [*weights, 1.4])

# %% [markdown]
# Six of the eight are 0, and the other two come back as 0.2. The ninth is exact. A number that lies far from all others is an *outlier*.
# It stretches the grid for itself, and everyone else falls between the same few values.
#
# Now in a tensor of 4,096 normal numbers with the standard deviation 0.02. One of them is replaced by an outlier, and the error is that
# of the 4,095 others.
#
# **Predict.** With an outlier of 1.0, fifty standard deviations, what share of the others becomes 0?

# %%
normal = 0.02 * torch.randn(4096, generator=torch.Generator().manual_seed(1))
others = normal[1:]
rows = []
for outlier in (normal[0].item(), 0.2, 0.4, 1.0):
    scale = max(abs(outlier), others.abs().max().item()) / 7
    codes = torch.round(others / scale)
    error = relative_squared_error(others, codes * scale)
    zeros = (codes == 0).float().mean().item()
    rows.append([f"{outlier:.2f}", f"{scale:.3f}", len(codes.unique()), f"{zeros:.1%}", f"{error:.3f}"])
print(tabulate(rows, ["first number", "step", "codes in use", "became 0", "error"], disable_numparse=True))

# %% [markdown]
# Practically all of them, and the error is 1, as if nothing had been stored. The first row is the tensor without an outlier.

# %%
import matplotlib.pyplot as plt

from course_utils import plots

plots.use_style()
fig, axes = plt.subplots(1, 2, sharex=True, sharey=True)
titles = {
    "No outlier: the grid fits the weights": others.abs().max().item(),
    "An outlier of 1.0: the weights go to 0": 1.0,
}
for ax, (title, largest) in zip(axes, titles.items(), strict=True):
    ax.hist(others.numpy(), bins=60, range=(-0.16, 0.16), color=plots.LOOKS["32 bits"].color)
    for code in range(-7, 8):
        ax.axvline(code * largest / 7, color=plots.LOOKS["int4"].color, linewidth=1)
    ax.grid(False)
    ax.set(xlim=(-0.16, 0.16), xticks=[-0.1, 0, 0.1], title=title)
    ax.set_xlabel("weight; lines: values of the grid")
axes[0].set_ylabel("weights (of 4,095)")
plots.show(fig, "Two histograms of the same 4,095 weights, a bell between -0.08 and 0.08. Left: the fifteen "
                "lines of the grid are 0.011 apart and span the bell. Right, with an outlier of 1.0 far outside of the "
                "picture: only the line at 0 stands in the bell, the next ones at -0.14 and 0.14.")

# %% [markdown]
# Does a model feel it? Round every linear layer of `abacus` but the head in two ways: with one scale for each matrix; and with the scale that
# the matrix would have if one weight in it were ten times as large as the largest is. No weight is changed for that, only the step.
#
# **Predict.** Will the two still know what 2+2 is?

# %%
import copy

from course_utils import models

model, tokenizer = models.load()
matrices = {
    name: module.weight.data
    for name, module in model.named_modules()
    if isinstance(module, torch.nn.Linear) and name != "lm_head"
}
print(len(matrices), "matrices")
answer = models.ask(model, tokenizer, "What is 2+2?")
print(answer)

# %%
for stretch in (1, 10):
    rounded_model = copy.deepcopy(model)
    zeros = 0
    for name, weight in matrices.items():
        scale = stretch * weight.abs().max() / 7
        rounded = torch.round(weight / scale) * scale
        zeros += (rounded == 0).sum().item()
        rounded_model.get_parameter(f"{name}.weight").data.copy_(rounded)
    share = zeros / sum(weight.numel() for weight in matrices.values())
    same = models.ask(rounded_model, tokenizer, "What is 2+2?") == answer
    print(f"absmax x {stretch:2}: became 0: {share:.0%}, same answer: {same}")

# %% [markdown]
# The first does, although it has only fifteen values for each matrix. With the step that one bad weight in each matrix would bring, this answer is lost. Four bits are
# not to blame: the grid is spent on a place where there is one number. The remedy is to let fewer numbers share a scale. A picture shows
# it best.

# %% [markdown]
# ## Sixteen shades and a brightness map
#
# The lesson that this course grew from explains 4-bit quantization so: it "is like converting" a picture "to a 16-color palette with a
# separate brightness map: the palette is tiny, but you restore colors from the map during viewing. You lose some detail, but the file is
# 1/8th the size and displays instantly on old hardware." We take it at its word.
#
# The picture is made here: a tiled wall, brighter to the right, and a lamp, thirty times as bright as white paper. It is grey, because a
# weight is one number and a colour would be three. Brightness is a float32, and 1 is white paper.

# %%
rows, columns = 128, 192
y = torch.linspace(0, 1, rows).view(-1, 1)
x = torch.linspace(0, 1, columns).view(1, -1)
tiles = 0.06 * torch.sign(torch.sin(40 * x) * torch.sin(30 * y))
from_lamp = ((1.5 * (x - 0.28)) ** 2 + (y - 0.35) ** 2).sqrt()
picture = 0.25 + 0.4 * x - 0.15 * y + tiles + 0.3 * torch.exp(-6 * from_lamp)
wall = from_lamp > 0.07
without_lamp = picture.clone()
picture[~wall] = 30.0
print(f"wall: brightness {picture[wall].min():.2f} to {picture[wall].max():.2f}")
print(f"lamp: {(~wall).sum()} of {picture.numel():,} pixels")

# %% [markdown]
# No pixel is negative, so the codes 0 to 15 will do, and the zero point is 0. The *palette*, that is, the codebook: sixteen shades 0,
# 1/15, ..., 1. First one brightness for the whole picture, that of the lamp.
#
# **Predict.** The step is 30/15 = 2. What is left of the wall?

# %%
brightness = picture.max()
codes = torch.round(picture / brightness * 15)
one_scale = codes / 15 * brightness
print(f"black pixels on the wall: {(one_scale[wall] == 0).float().mean():.0%}")
print(f"relative squared error of the wall: {relative_squared_error(picture[wall], one_scale[wall]):.3f}")

# %% [markdown]
# Nothing. The wall is darker than half a step. The lamp is the outlier.
#
# Now the brightness map: cut the picture into blocks of 8 x 8 = 64 pixels, and give each block the brightness of its brightest pixel.

# %%
def shades(picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    blocks = picture.view(rows // 8, 8, columns // 8, 8)
    brightness_map = blocks.amax(dim=(1, 3), keepdim=True)
    codes = torch.round(blocks / brightness_map * 15)
    return (codes / 15 * brightness_map).view(rows, columns), brightness_map.view(rows // 8, -1)


one_scale_a_block, brightness_map = shades(picture)
print("brightness map:", tuple(brightness_map.shape))
error = relative_squared_error(picture[wall], one_scale_a_block[wall])
print(f"relative squared error of the wall: {error:.3f}")
near_lamp = (brightness_map == 30).repeat_interleave(8, 0).repeat_interleave(8, 1)
print(f"blocks with a piece of the lamp: {(brightness_map == 30).sum()} of {brightness_map.numel()}")
far = ~near_lamp
print(f"in all the others: {relative_squared_error(picture[far], one_scale_a_block[far]):.4f}")

# %%
panels = {
    "As it is": picture,
    "One brightness: the wall is gone": one_scale,
    "The brightness map, 16 x 24": brightness_map,
    "One brightness for each block": one_scale_a_block,
}
fig, axes = plt.subplots(2, 2, figsize=(7, 5.2))
for ax, (title, image) in zip(axes.flat, panels.items(), strict=True):
    ax.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set(title=title, xticks=[], yticks=[])
    ax.grid(False)
fig.suptitle("With a brightness map the lamp blackens its own blocks and not the picture", fontsize=12)
plots.show(fig, "Four pictures. The wall with its tiles and a white lamp; the same in sixteen shades with one "
                "brightness, where all but the lamp is black; the brightness map, coarse and with a white "
                "square at the lamp; and in sixteen shades with the map: the wall is back, its squared error "
                "0.016 instead of 1, and a black square is left around the lamp, in nine of the 384 blocks.")

# %% [markdown]
# The wall is back. The lamp still ruins the blocks that it touches, those nine, and no others. That is the whole idea of blocks, and
# lesson 03 does it with weights.

# %% [markdown]
# ## What it costs in bits
#
# A scale is a float32, 32 bits. For a whole tensor that is next to nothing. For each block of 64 it is half a bit for each number, and a zero point of four bits costs another sixteenth of a bit.

# %%
choices = {
    "one scale for 4096 x 4096": 4 + 32 / (4096 * 4096),
    "a scale for each 64": 4 + 32 / 64,
    "a scale and a zero point for each 64": 4 + (32 + 4) / 64,
}
for name, bits in choices.items():
    print(f"{name:37} {bits:.4f} bits: 1/{32 / bits:.1f} of 32, 1/{16 / bits:.1f} of 16")

# %% [markdown]
# **Predict.** The blocks of the picture have 64 pixels, so its file with the map should be 1/7.1 of the size in float32. And of the size with 8 bits for each pixel?

# %%
code_bytes = picture.numel() * 4 // 8
map_bytes = brightness_map.numel() * 4
in_float32, in_8_bits = picture.numel() * 4, picture.numel()
print(f"codes {code_bytes:,} bytes, brightness map {map_bytes:,} bytes")
print(f"float32 is {in_float32 / (code_bytes + map_bytes):.1f} times as large")
print(f"8 bits for each pixel are {in_8_bits / (code_bytes + map_bytes):.1f} times as large")

# %% [markdown]
# A little more than half: 1/1.8. That is the fairer comparison, for pictures seldom come in float32, but with 8 bits for each pixel and colour.
# And of float32 it is 1/7.1 as the table said, not 1/8: the map takes its share, as scales do.

# %% [markdown]
# ## Where the analogy holds, and where it breaks
#
# Why is a coarse map enough for the wall? Because neighbouring pixels are much alike. Is that so of weights? Test it: shuffle the
# numbers, so that neighbours are neighbours by chance, quantize in blocks of 64, and put them back in their places. If the error grows, the
# blocks had profited from neighbours being alike.
#
# **Predict.** How many times as large is the error of the wall? And that of the weights of `abacus`?

# %%
from collections.abc import Callable


def shuffled(numbers: torch.Tensor, rounding: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    places = torch.randperm(numbers.numel(), generator=torch.Generator().manual_seed(2))
    result = torch.empty(numbers.numel())
    result[places] = rounding(numbers.reshape(-1)[places].view(numbers.shape)).reshape(-1)
    return result.view(numbers.shape)


def absmax_in_blocks(weight: torch.Tensor) -> torch.Tensor:
    blocks = weight.reshape(-1, 64)
    scales = blocks.abs().amax(dim=1, keepdim=True) / 7
    return (torch.round(blocks / scales) * scales).view(weight.shape)


in_place = relative_squared_error(picture[wall], one_scale_a_block[wall])
shuffled_picture = shuffled(picture, lambda numbers: shades(numbers)[0])
print(f"black pixels on the wall: {(shuffled_picture[wall] == 0).float().mean():.0%}")
print(f"picture: {relative_squared_error(picture[wall], shuffled_picture[wall]) / in_place:.0f} times")
in_place = relative_squared_error(without_lamp, shades(without_lamp)[0])
shuffled_without = shuffled(without_lamp, lambda numbers: shades(numbers)[0])
print(f"picture without the lamp: {relative_squared_error(without_lamp, shuffled_without) / in_place:.1f} times")

# %%
ratios = {}
for name, weight in matrices.items():
    weight = weight.float().cpu()
    in_place = relative_squared_error(weight, absmax_in_blocks(weight))
    ratios[name] = relative_squared_error(weight, shuffled(weight, absmax_in_blocks)) / in_place
mean = sum(ratios.values()) / len(ratios)
print(f"weights: {mean:.1f} times, on the average of {len(ratios)} matrices")
print("less than 1.1 times:", sum(ratio < 1.1 for ratio in ratios.values()))
largest_three = sorted(ratios, key=ratios.get, reverse=True)[:3]
for name in largest_three:
    print(f"{name}: {ratios[name]:.2f} times")

# %%
panels = {
    "Neighbours share a brightness": one_scale_a_block,
    "Shuffled: the lamp blackens half of the wall": shuffled_picture,
}
fig, axes = plt.subplots(1, 2, figsize=(7, 2.7))
for ax, (title, image) in zip(axes, panels.items(), strict=True):
    ax.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set(title=title, xticks=[], yticks=[])
    ax.grid(False)
plots.show(fig, "Left: the picture in sixteen shades with its brightness map, as before. Right: the same after "
                "its pixels were shuffled, quantized in blocks and put back: all over the wall, 51 % of "
                "the pixels are black.")

# %% [markdown]
# 32 times for the wall, and nearly all of it is the lamp: shuffled, it is scattered over about half of the blocks and blackens 51 % of the wall's
# pixels. In place its pixels are neighbours, and few blocks suffer. abacus has no lamp, so compare it with the picture without one: 2.0 times. That is what
# the wall gains from neighbours that are alike.
#
# Nearly all matrices of abacus gain nothing from them. In two of the 28, in the first layer, the error grows by 28 %; for the others, weights next to each
# other are hardly more alike than those from anywhere. Blocks help weights by keeping an outlier among few, and not by following a landscape. So:
#
# | in the picture | in a 4-bit model | |
# | --- | --- | --- |
# | a palette of 16 shades | the codebook, 16 values | holds |
# | a brightness map | the scales, one for each block | holds, if the map is coarse |
# | shade times brightness | value times scale: dequantizing | holds |
# | a palette is usually chosen for its picture | the codebook is fixed beforehand, the same for every model | breaks |
# | neighbours are alike, so a coarse map follows them | hardly so in abacus | breaks |
# | brightness is never negative | weights have both signs, and 0 in the middle | breaks |
# | "you lose some detail" | at most half a step for each weight | holds, while steps are small |
# | "you restore colors" | you get the nearest value there is; what rounding took is gone | breaks |
# | "1/8th the size" | 1/7.1 of 32 bits, and 1/3.6 of the 16 in which models are shipped | too good |
# | "displays instantly" | weights are dequantized for each forward pass: lesson 09 takes the time | not shown here |
#
# And a picture is judged by the eye, a model by its answers. Lesson 08 measures those.

# %% [markdown]
# ## What you have seen
#
# - From a float to a code: divide by the scale and round. Back: multiply. With absmax the scale is the largest absolute value divided by 7.
# - The error is at most half a step, and 0.289 steps in the root mean square, as long as the numbers spread over several steps. The step comes from the
#   largest number alone.
# - Halves go to the even neighbour in Python and PyTorch. -8 stays unused, because the largest positive number would be off by a whole
#   step.
# - A zero point lays all sixteen codes over a range that is not centred on 0. For numbers on one side it makes the squared error less
#   than a quarter; for a large tensor with both signs it does little; lesson 03 tries small blocks.
# - One outlier makes 0 of many of the others; if it is large enough, of all. A scale for each block confines it to its block, for half a bit.
# - The analogy with a palette and a brightness map holds for the arithmetic. It breaks where it relies on neighbours that are alike.
#
# The lesson began by asking how far from the old number one arrives. At most half a step, so the art is to keep steps small: by blocks,
# which is lesson 03, and by better values than evenly spaced ones, which is lesson 04.
#
# Now you: [exercise 02](../exercises/02_round_to_a_grid.ipynb).
