# %% [markdown]
# # Quantize in blocks
#
# Lesson 02 ended with a remedy against outliers: let fewer numbers share a scale. How many should it be? A scale takes 32 bits, so small blocks are dear.
# And what happens where a weight can't be cut into whole blocks?
#
# | | |
# | --- | --- |
# | **What you'll do** | give each block of a weight its own scale, compare your scales with those of bitsandbytes, and measure the error of each block size |
# | **What you'll learn** | what a block size costs and what it saves, where blocks begin and end, why the last one is treated differently, and what "offset", "symmetric" and "asymmetric" mean |
# | **What you need** | [lesson 02](02_round_to_a_grid.ipynb) |
# | **Time** | 40 minutes |
#
# Words in *italics* are explained here and in the [glossary](../glossary.md).

# %% [markdown]
# ## One scale for two kinds of weights
#
# Here are eight weights. The last four are about ten times as large as the first four. Quantize them to int4 by absmax, as in lesson 02. The absmax is 7, so the step is 1.
#
# **Predict.** What comes back for the first four?

# %%
weights = [0.21, -0.7, 0.43, 0.34, 7.0, -2.2, 1.0, 4.4]

absmax = max(abs(x) for x in weights)
codes = [round(x / absmax * 7) for x in weights]
restored = [code / 7 * absmax for code in codes]
print("codes    ", codes)
print("come back", [round(x, 2) for x in restored])

# %% [markdown]
# 0, -1, 0 and 0. No weight here is wild: 7 is only ten times 0.7. Yet three of the first four are gone, because they share a scale with larger neighbours.

# %% [markdown]
# ## One scale for each block
#
# Cut the list into blocks of four, and do the same in each. The first block has the absmax 0.7, so its step is 0.1. The second one has the absmax 7 as before.
#
# **Predict.** Which codes do the first four get now?

# %%
block_size = 4
absmax_of_blocks, codes, restored = [], [], []
for start in range(0, len(weights), block_size):
    block = weights[start : start + block_size]
    absmax = max(abs(x) for x in block)
    block_codes = [round(x / absmax * 7) for x in block]
    absmax_of_blocks.append(absmax)
    codes += block_codes
    restored += [code / 7 * absmax for code in block_codes]
print("absmax   ", absmax_of_blocks)
print("codes    ", codes)
print("come back", [round(x, 2) for x in restored])

# %% [markdown]
# 2, -7, 4 and 3: they come back as 0.2, -0.7, 0.4 and 0.3. The codes of the second block are the same as before. What is stored now are eight codes and two numbers.
#
# Those two numbers have a price.
#
# **Predict.** A code takes 4 bits, an absmax 32. How many bits does a weight take in blocks of four?

# %%
for size in (4, 8, 64):
    print(f"blocks of {size:2}: {4 + 32 / size} bits for each weight")

# %% [markdown]
# 12 bits: cheaper to keep them in 8 bits and have done. In blocks of 64 it is 4.5. What larger blocks do to the error remains to be measured.

# %% [markdown]
# ## With tensors
#
# The *scale* of a block is its absmax from here on, because that is the number which bitsandbytes stores. Divided by it, all weights lie between -1 and 1.
# The 7 of int4 moves into the codebook, -1, -6/7, ..., 6/7, 1, as lesson 02 has shown. Cutting into blocks is a matter of `view`: each row is a block.

# %%
import torch


def scale_full_blocks(numbers, block_size):
    blocks = numbers.view(-1, block_size)
    absmax = blocks.abs().amax(dim=1)
    scaled = blocks / absmax.unsqueeze(1)
    return scaled.view(-1), absmax


tensor = torch.tensor(weights)
scaled, absmax = scale_full_blocks(tensor, block_size=4)
print("scaled", [round(x, 2) for x in scaled.tolist()])
print("absmax", [round(x, 2) for x in absmax.tolist()])

# %% [markdown]
# A code is the number of a place in the codebook (lesson 01). For int4 we have used the whole number from -7 to 7 as the code. Its place is that number plus 7:
# -7 stands in place 0, and 0 in place 7. The next cell stores places. Where the text says "the codes -7 to 7", it means the whole numbers.
#
# The way back looks each code up and multiplies by the scale of its block.

# %%
int4 = torch.arange(-7, 8) / 7


def values_times_scales(codes, scales, values, block_size):
    scale_of_each = scales.repeat_interleave(block_size)[: len(codes)]
    return values[codes.int()] * scale_of_each


codes = (torch.round(7 * scaled) + 7).to(torch.uint8)
back = values_times_scales(codes, absmax, int4, block_size=4)
print("codes    ", codes.tolist())
print("come back", [round(x, 2) for x in back.tolist()])
print("same numbers:", [round(x, 6) for x in back.tolist()] == [round(x, 6) for x in restored])

# %% [markdown]
# ## The scales of bitsandbytes
#
# Now a real weight: one of the 28 matrices of `abacus` that 4-bit loading quantizes.

# %%
from course_utils import models

model, _ = models.load(models.ABACUS)
matrices = {
    name: module.weight.detach().cpu()
    for name, module in model.named_modules()
    if isinstance(module, torch.nn.Linear) and name != "lm_head"
}
q_proj = matrices["model.layers.0.self_attn.q_proj"]
print(len(matrices), "matrices; q_proj of the first decoder layer is", tuple(q_proj.shape))

# %% [markdown]
# `quantize_4bit` of bitsandbytes returns the packed codes and a *quantization state*, an object with all else that is needed to get the weight back. Its `absmax` are the scales.
#
# **Predict.** 128 x 128 weights in blocks of 64: how many scales are there?

# %%
from bitsandbytes.functional import quantize_4bit

_, absmax = scale_full_blocks(q_proj.reshape(-1), block_size=64)
packed, state = quantize_4bit(q_proj, blocksize=64, quant_type="nf4")
print("scales:", len(absmax), "in", absmax.dtype)
print("same numbers as bitsandbytes:", torch.equal(absmax, state.absmax))

# %% [markdown]
# 256, and every one is the same, bit for bit. The codes will be compared too, when we have the sixteen values of NF4 (lesson 04) and know how codes are packed (lesson 05).

# %% [markdown]
# ## An outlier stays at home
#
# In lesson 02 one outlier of 1.0 made 0 of practically all of the 4,095 others. Here are the same weights with one scale, and in blocks of 64.
#
# **Predict.** In blocks, how many of the 4,095 others are hurt by the outlier?

# %%
normal_4096 = 0.02 * torch.randn(4096, generator=torch.Generator().manual_seed(1))
normal_4096[0] = 1.0
for block_size in (4096, 64):
    scaled, absmax = scale_full_blocks(normal_4096, block_size)
    became_0 = torch.round(7 * scaled) == 0
    same_block, elsewhere = became_0[1:64].sum(), became_0[64:].float().mean()
    print(f"blocks of {block_size:4}: 0 for {same_block} of its 63, {elsewhere:.1%} elsewhere")

# %% [markdown]
# The 63 that share a block with it. The other blocks don't contain it, so their scales are what they would be without it: some weights become 0 because 0 is the nearest value. A block keeps harm inside.

# %% [markdown]
# ## How large a block?
#
# Take a million numbers from the normal distribution, and quantize them to int4 with block sizes from 32 to 4096, and with one scale for the whole tensor.
# The error is the *relative squared error* of lesson 02: the sum of the squared errors, divided by the sum of the squares.

# %%
def round_in_blocks(weight, block_size, largest=7):
    scaled, absmax = scale_full_blocks(weight.reshape(-1), block_size)
    codes = (torch.round(largest * scaled) + largest).to(torch.uint8)
    values = torch.arange(-largest, largest + 1) / largest
    return values_times_scales(codes, absmax, values, block_size).view(weight.shape)


def relative_squared_error(weights, restored):
    pairs = zip(weights, restored, strict=True)
    squared = sum((w - r).double().square().sum() for w, r in pairs)
    return (squared / sum(w.double().square().sum() for w in weights)).item()


normal = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
print(f"in blocks of 64: {relative_squared_error([normal], [round_in_blocks(normal, 64)]):.4f}")

# %% [markdown]
# What should we expect? Lesson 02 found the mean squared error of rounding, a twelfth of the step squared. Here the step is absmax / 7, and the numbers have the mean square 1, so the error should be
# about the mean of absmax² / (12 · 49). One weight in each block has no error: the largest, whose code is 7 or -7. So, for blocks of $n$ weights,
#
# $$\text{relative squared error} \approx \left(1 - \frac1n\right) \cdot \frac{\operatorname{mean}(\text{absmax}^2)}{12 \cdot 7^2}$$
#
# All that changes from one block size to the next is the absmax. The largest of many numbers is larger than the largest of few.
#
# **Predict.** From blocks of 64 to blocks of 4096: is the error 2, 8 or 64 times as large?

# %%
from tabulate import tabulate

block_sizes = [32, 64, 128, 256, 512, 1024, 2048, 4096, None]  # None: the whole tensor
normal_errors, rows = [], []
for block_size in block_sizes:
    n = block_size or normal.numel()
    _, absmax = scale_full_blocks(normal.view(-1), n)
    foretold = (1 - 1 / n) * absmax.square().mean() / (12 * 49)
    error = relative_squared_error([normal], [round_in_blocks(normal, n)])
    normal_errors.append(error)
    in_bits = f"{4 + 32 / n:.4f}"
    rows.append(
        [block_size or "tensor", in_bits, f"{absmax.mean():.2f}", f"{foretold:.4f}", f"{error:.4f}"]
    )
headers = ["block size", "bits per weight", "mean absmax", "error, foretold", "error, measured"]
print(tabulate(rows, headers, disable_numparse=True))

# %% [markdown]
# Twice: 0.0116 and 0.0248. The formula is good to one in the last digit.
#
# Now read the columns downwards. Each doubling of the block adds about the same to the error, 0.0022. It saves half as many bits as the doubling before: a half, a quarter, an eighth. So doubling
# is worth a lot at first, and next to nothing in the end: from 2048 to 4096 it saves 0.008 bits for 0.0021 of error.
#
# Is a real weight like that? The same for the 28 matrices of `abacus`, taken together. "Tensor" is one scale for each matrix.

# %%
def abacus_error(block_size):
    weights = list(matrices.values())
    restored = [round_in_blocks(weight, block_size or weight.numel()) for weight in weights]
    return relative_squared_error(weights, restored)


abacus_errors = [abacus_error(block_size) for block_size in block_sizes]
rows = []
for block_size, normal_error, error in zip(block_sizes, normal_errors, abacus_errors, strict=True):
    ratio = f"{error / normal_error:.2f}"
    rows.append([block_size or "tensor", f"{normal_error:.4f}", f"{error:.4f}", ratio])
print(tabulate(rows, ["block size", "normal numbers", "abacus", "ratio"], disable_numparse=True))

# %%
import matplotlib.pyplot as plt

from course_utils import plots

plots.use_style()
int4_color = plots.LOOKS["int4"].color
fig, (left, right) = plt.subplots(1, 2, sharey=True)
bits = [4 + 32 / (size or normal.numel()) for size in block_sizes]
lines = {"abacus": (abacus_errors, "-", "o"), "normal numbers": (normal_errors, ":", "X")}
for label, (errors, style, marker) in lines.items():
    left.plot(range(9), errors, style, marker=marker, color=int4_color, label=label)
    right.plot(bits, errors, style, marker=marker, color=int4_color, label=label)
left.set_xticks(range(9), [size or "tensor" for size in block_sizes], rotation=60)
left.set(xlabel="weights in a block", ylabel="relative squared error", ylim=(0, None))
left.set_title("Larger blocks, larger errors ...")
right.set(xlabel="bits per weight", title="... but smaller blocks cost ever more bits")
for size in (32, 64, 128):
    place = block_sizes.index(size)
    right.text(bits[place], abacus_errors[place] + 0.002, size, ha="center")
right.text(bits[-1] + 0.04, abacus_errors[-1] - 0.0008, "tensor")
left.legend()
plots.show(fig, "Left: the relative squared error of int4 against the block size, from 32 to 4096 and "
                f"for a whole tensor: from {normal_errors[0]:.4f} to {normal_errors[-2]:.4f} for normal numbers and from "
                f"{abacus_errors[0]:.4f} to {abacus_errors[-2]:.4f} for the weights of abacus in blocks, and for the whole tensor "
                f"{normal_errors[-1]:.4f} and {abacus_errors[-1]:.4f}. Right: the same errors against bits per weight: a steep fall from 4 bits to "
                "4.25, where blocks have 128 weights, and a gentle slope from there to 5 bits.")

# %% [markdown]
# In small blocks the weights of abacus behave like normal numbers. The larger the block, the further they part: the likelier there is an outlier in it, and the weights of abacus have more of those than the normal distribution foresees. Count the weights that lie more than 5 standard deviations from 0:

# %%
from statistics import NormalDist

weights_in_all = sum(weight.numel() for weight in matrices.values())
far_out = sum((weight.abs() > 5 * weight.std()).sum().item() for weight in matrices.values())
share = 2 * (1 - NormalDist().cdf(5))
print(f"of {weights_in_all:,} weights: {far_out}")
print(f"of as many normal numbers, on average: {share * weights_in_all:.1f}")

# %% [markdown]
# So blocks are worth more on the weights of abacus than on normal numbers. The row "tensor" understates this. There a million normal numbers share one scale, but only
# 16,384 or 49,152 weights of abacus do. abacus has the smaller blocks, and the larger error all the same. (In the figure the last step is so steep because from
# 4096 to a whole tensor is more than one doubling.)

# %% [markdown]
# ### Or a fifth bit?
#
# If smaller blocks cost bits, there is another way to spend them: on the codes. Five bits make codes from -15 to 15.
#
# Try it on normal numbers, on the weights of abacus, and on numbers with many more outliers: each is a normal number divided by the root of the mean square of three others
# (lesson 04 uses such numbers too).
#
# **Predict.** Five bits for a weight: codes of four in blocks of 32, or codes of five in blocks of 4096. Which has the smaller error?

# %%
print(f"codes of 4 bits, blocks of   32: {4 + 32 / 32:.3f} bits")
print(f"codes of 5 bits, blocks of 4096: {5 + 32 / 4096:.3f} bits")
generator = torch.Generator().manual_seed(2)
many_outliers = torch.randn(1024, 1024, generator=generator)
many_outliers /= torch.randn(3, 1024, 1024, generator=generator).square().mean(dim=0).sqrt()
kinds = {"normal numbers": [normal], "abacus": list(matrices.values()), "many outliers": [many_outliers]}
rows = []
for kind, tensors in kinds.items():
    small_blocks = relative_squared_error(tensors, [round_in_blocks(w, 32) for w in tensors])
    longer_codes = relative_squared_error(tensors, [round_in_blocks(w, 4096, largest=15) for w in tensors])
    rows.append([kind, f"{small_blocks:.4f}", f"{longer_codes:.4f}"])
print(tabulate(rows, ["error", "4 bits, blocks of 32", "5 bits, blocks of 4096"], disable_numparse=True))

# %% [markdown]
# On normal numbers and on abacus the longer codes win, by far. With many more outliers it is the other way round: 0.021 against 0.092. Then a block of 4096 nearly always has
# an outlier, and the fifth bit can't make up for it.
#
# So 64, the default of bitsandbytes, is a compromise and no law. Blocks of 32 lose to longer codes, unless outliers are many. Blocks of 128 are a fair offer: a quarter of a bit less, a fifth more error. Far above, the
# error goes on growing and there is hardly anything left to save. bitsandbytes allows the powers of two from 32 to 4096, as `help(quantize_4bit)` says.

# %% [markdown]
# ## Blocks do not know rows
#
# A weight is a matrix, and `view(-1, 64)` has cut its flattened form: first all of row 0, then row 1, and so on. Where the columns are a multiple of 64, each block lies in one row. Where they
# aren't, blocks run on from one row to the next.
#
# **Predict.** A matrix has 4 rows of 6 weights, in blocks of 8. Which blocks does the second row belong to?

# %%
places = torch.arange(4 * 6)
print((places // 8).view(4, 6))

# %% [markdown]
# Its first two weights belong to block 0, the others to block 1. bitsandbytes cuts in the same way:

# %%
matrix = torch.randn(128, 96, generator=torch.Generator().manual_seed(3))
_, absmax = scale_full_blocks(matrix.view(-1), block_size=64)
_, state = quantize_4bit(matrix, blocksize=64, quant_type="nf4")
print("blocks of the flattened matrix :", len(absmax))
print("blocks, if each row began anew :", 128 * 2)
print("same numbers as bitsandbytes   :", torch.equal(absmax, state.absmax))

# %% [markdown]
# Keep that in mind. It is easy to count blocks row by row instead, and some programs do: lesson 05 meets one.

# %% [markdown]
# ## The last block
#
# Not every weight has a multiple of 64 numbers.

# %%
ten = torch.tensor([1.0, -4.0, 2.0, 3.0, 0.5, 0.2, -0.1, 0.4, 6.0, -5.0])
try:
    scale_full_blocks(ten, block_size=4)
except RuntimeError as error:
    print(error)

# %% [markdown]
# Ten numbers make two full blocks of 4, and two numbers are left. They form a *short last block* with a scale of its own. There are
# $\lceil 10/4 \rceil = 3$ blocks. In Python $\lceil a/b \rceil$ is written `-(-a // b)`.
#
# For your own purposes you could now divide each block by its absmax and be done. For the same bytes as bitsandbytes there are two things to know. Neither can be guessed.

# %% [markdown]
# ### To divide, or to multiply by the reciprocal
#
# To divide 64 numbers by the same absmax, one can compute 1 / absmax once and multiply 64 times. In exact arithmetic that is the same.
#
# **Predict.** Is it the same in float32?

# %%
five, six = torch.tensor(5.0), torch.tensor(6.0)
divided = five / six
multiplied = five * (1 / six)
print(f"5 / 6       = {divided.item():.9f}")
print(f"5 * (1 / 6) = {multiplied.item():.9f}")
print("neighbours:", (torch.nextafter(divided, torch.tensor(1.0)) == multiplied).item())

# %% [markdown]
# No. 5 / 6 = 0.8333333333..., and the first one is the float32 nearest to it. The second one was rounded twice, at 1 / 6 and at the product, and came out as the next
# float32. The distance between one float and the next is called an *ulp*, a unit in the last place: the two are one ulp apart.
#
# How often does that happen?

# %%
blocks = normal.view(-1, 64)
absmax = blocks.abs().amax(dim=1, keepdim=True)
divided, multiplied = blocks / absmax, blocks * (1 / absmax)
other_code = torch.round(7 * divided) != torch.round(7 * multiplied)
other = (divided != multiplied).float().mean()
print(f"of {normal.numel():,} numbers {other:.0%} differ, and {other_code.sum()} codes")

# %% [markdown]
# A quarter of the numbers differ, and not one code: an ulp decides only where a number lies just about half-way between two values. Such numbers are rare, but they exist.
# FP4, the other codebook of bitsandbytes, has the values -1 and -2/3 as neighbours (lesson 04), and -5/6 lies half-way between them.
#
# So take a block with the absmax 6, and fill it with -5. Once it is a full block of 64, once a short one of 62.
#
# **Predict.** -5 lies half-way between -4 and -6. Which comes back?

# %%
minus_five = torch.full((64,), -5.0)
minus_five[0] = 6.0
for count in (64, 62):
    packed, state = quantize_4bit(minus_five[:count], blocksize=64, quant_type="fp4")
    code = packed[1].item() & 0b1111  # one of the two codes in the second byte; lesson 05
    back = state.code[code] * state.absmax[0]
    print(f"block of {count}: -5 gets the code {code}, and comes back as {back:.0f}")

# %% [markdown]
# It depends on the block. The same number beside the same neighbours comes back as -6 from a full block, and as -4 from a short one. On the CPU bitsandbytes multiplies full blocks by the reciprocal, and divides the short last one. Neither is wrong, since -5 is as far from -4 as from -6. But whoever wants the same bytes has to do the same.

# %% [markdown]
# ### A block of zeros
#
# The second thing is a block in which all weights are 0. Its absmax is 0, and 0 / 0 is no number.

# %%
print(scale_full_blocks(torch.zeros(4), block_size=4)[0].tolist())

# %% [markdown]
# The remedy: where the absmax is smaller than some tiny number, divide by that number instead. bitsandbytes takes 1e-38. Then 0 stays 0. What does it store as the scales of 100 zeros, a full block of 64 and a short one of 36?

# %%
_, state = quantize_4bit(torch.zeros(100), blocksize=64, quant_type="nf4")
print([f"{scale:.3g}" for scale in state.absmax.tolist()])

# %% [markdown]
# 0 for the full block, which is raised to 1e-38 only while dividing. 1e-38 for the short one, where it is stored. Whichever it is, 0 times it is 0. It matters only for the bytes.
#
# ### All together
#
# Here is the function that does all of it. `clamp(min=...)` raises what is smaller, and the rest is as before.

# %%
def scale_blocks(numbers, block_size):
    full = len(numbers) - len(numbers) % block_size
    blocks = numbers[:full].view(-1, block_size)
    absmax = blocks.abs().amax(dim=1)
    scaled = (blocks * (1 / absmax.clamp(min=1e-38)).unsqueeze(1)).view(-1)
    if full == len(numbers):
        return scaled, absmax
    rest = numbers[full:]
    rest_absmax = rest.abs().amax().clamp(min=1e-38)
    return torch.cat([scaled, rest / rest_absmax]), torch.cat([absmax, rest_absmax.view(1)])


scaled, absmax = scale_blocks(ten, block_size=4)
print("absmax", [round(x, 6) for x in absmax.tolist()])
print("scaled", [round(x, 3) for x in scaled.tolist()])

# %% [markdown]
# Check it by hand: the short block is 6 and -5, its absmax is 6, and -5 / 6 = -0.833. `values_times_scales` above can do short blocks already: it cuts off what `repeat_interleave` makes too many.
#
# And the scales of bitsandbytes, for shapes of which some are odd:

# %%
generator = torch.Generator().manual_seed(4)
for shape in [(128, 64), (100, 50), (7, 9), (1, 1)]:
    weight = torch.randn(shape, generator=generator)
    _, absmax = scale_blocks(weight.view(-1), block_size=64)
    _, state = quantize_4bit(weight, blocksize=64, quant_type="nf4")
    same = torch.equal(absmax, state.absmax)
    print(f"{shape!s:9} {weight.numel():5,} weights, {len(absmax):3} scales, same numbers: {same}")
_, absmax = scale_blocks(torch.zeros(100), block_size=64)
print("100 zeros:", [f"{scale:.3g}" for scale in absmax.tolist()])

# %% [markdown]
# A short block pays for a whole scale, so the price goes up a little. `tensor_bytes_in_4bit` of lesson 01 counts it.

# %%
from course_utils.memory import tensor_bytes_in_4bit

for count in (128 * 64, 100 * 50, 7 * 9, 65):
    print(f"{count:5,} weights: {8 * tensor_bytes_in_4bit(count) / count:.3f} bits for each")

# %% [markdown]
# In a weight of a real model it doesn't show. In tiny ones it does: 65 weights need two scales.

# %% [markdown]
# ## Four questions that get mixed up
#
# You now know enough to read three sentences of the lesson that this course grew from. They contain right observations, and use some words differently from the rest of the field.
# If you search for help with those words you will find other things. At the end stand four questions to keep apart.
#
# > bitsandbytes quantizes them: it scales each weight tensor to fit in 4 bits (storing an additional scale factor **and offset**).
#
# What is stored? (`compress_statistics` is bitsandbytes' name for double quantization.)

# %%
_, state = quantize_4bit(q_proj, blocksize=64, quant_type="nf4")
_, nested = quantize_4bit(q_proj, blocksize=64, quant_type="nf4", compress_statistics=True)
print("scales:", len(state.absmax), " offset:", state.offset)
is_the_mean = torch.equal(nested.offset, state.absmax.mean())
print("with double quantization: offset is the mean of the scales:", is_the_mean)

# %% [markdown]
# A scale for each block, and no offset. To undo absmax quantization a code needs the scale and nothing else: 0 has always the same code.
# There is something called *offset*, with double quantization. It is one number for the whole weight, and is added to the scales, not to the weights (lesson 05).
#
# > ... this is **asymmetric quantization** (weights compressed, computation in higher precision).
#
# What the brackets say is true: weights are stored in 4 bits and calculated with in 16 or 32. That is called *weight-only quantization*.
# *Asymmetric quantization* is something else: quantization with a zero point, as in lesson 02
# ("A White Paper on Neural Network Quantization", arXiv 2106.08295, section 2.2, uses the words so). *Symmetric* is without one: the grid reaches as far to the left of 0 as to the right.
#
# Is absmax quantization then a loss? A block of 64 weights hardly ever reaches equally far on both sides. Try it: the same blocks with a zero point for each, which takes 4 more bits a block.
# NF4 is there too, as bitsandbytes does it.
#
# **Predict.** By how much does a zero point lower the error: not at all, by a quarter, by three quarters?

# %%
from bitsandbytes.functional import dequantize_4bit


def round_with_zero_point(weight, block_size, steps=15):
    blocks = weight.reshape(-1, block_size)
    low = blocks.amin(dim=1, keepdim=True).clamp(max=0)
    high = blocks.amax(dim=1, keepdim=True).clamp(min=0)
    scale = (high - low) / steps
    zero_point = torch.round(-low / scale)
    codes = (torch.round(blocks / scale) + zero_point).clamp(0, steps)
    return ((codes - zero_point) * scale).view(weight.shape)


def round_to_nf4(weight):
    packed, state = quantize_4bit(weight, blocksize=64, quant_type="nf4")
    return dequantize_4bit(packed, state)


# %%
ways = {
    "int4, symmetric (absmax)": (4.5, lambda w: round_in_blocks(w, 64)),
    "int4, asymmetric (zero point)": (4 + (32 + 4) / 64, lambda w: round_with_zero_point(w, 64)),
    "the same with fifteen values": (4 + (32 + 4) / 64, lambda w: round_with_zero_point(w, 64, steps=14)),
    "nf4, absmax": (4.5, round_to_nf4),
}
rows = []
for way, (bits, rounding) in ways.items():
    on_abacus = relative_squared_error(matrices.values(), map(rounding, matrices.values()))
    on_normal = relative_squared_error([normal], [rounding(normal)])
    rows.append([way, f"{bits:.4f}", f"{on_normal:.4f}", f"{on_abacus:.4f}"])
print(tabulate(rows, ["blocks of 64", "bits", "normal numbers", "abacus"], disable_numparse=True))

# %% [markdown]
# By more than a quarter, from 0.0116 to 0.0083, for a sixteenth of a bit. Two thirds of that come from the range: in a small block one side usually reaches further
# than the other, and the codes beyond the nearer end are wasted. The last third comes from the sixteenth code (15 steps instead of 14): with fifteen values it is 0.0095.
#
# So absmax *needs* no offset, which is not to say that a zero point would be useless. Some formats do store an offset for each block, for example Q4_1 of llama.cpp, its smallest value (`block_q4_1` in `ggml-common.h`).
# bitsandbytes comes to almost the same error without one, by choosing better values: NF4.
#
# > The bnb_4bit_quant_type parameter controls whether quantization is **symmetric** (all weights scaled identically) **or NF4** ...
#
# Ask for it:

# %%
try:
    quantize_4bit(q_proj, quant_type="symmetric")
except ValueError as error:
    print(error)

# %% [markdown]
# The choice is between NF4 and FP4. Which sixteen values there are is one question, and how a block is brought to their range is another. Do the two codebooks have different scales?

# %%
states = {kind: quantize_4bit(q_proj, blocksize=64, quant_type=kind)[1] for kind in ("nf4", "fp4")}
print("same scales:", torch.equal(states["nf4"].absmax, states["fp4"].absmax))
for kind, state in states.items():
    values = state.code.unique()
    mirrored = torch.equal(values, -values.flip(0))
    print(f"{kind}: from {values.min():.0f} to {values.max():.0f}, mirrored one by one: {mirrored}")

# %% [markdown]
# The scales are the same, since both divide by the absmax of the block. NF4 uses what is called symmetric scaling, and its values reach equally far on both sides, although they are not mirrored one by one (lesson 04 says
# why). So NF4 is no alternative to symmetric quantization, but to other sets of values, such as FP4 and int4. And "all weights scaled identically" describes neither symmetric quantization nor the alternative to NF4: it is one scale for the whole tensor, an answer to the first question here:
#
# | question | possible answers | bitsandbytes, 4 bits |
# | --- | --- | --- |
# | How many weights share a scale? | a tensor, a row, a block | a block of 32, 64 and so on up to 4096, by default 64, on the flattened weight |
# | Is there a zero point? | no: symmetric; yes: asymmetric | no; the scale is the absmax |
# | Which values? | evenly spaced ones (int4), FP4, NF4, your own | NF4 or FP4: `bnb_4bit_quant_type` |
# | In which format are products calculated? | that of the codes; a larger one: weight-only quantization | a larger one: `bnb_4bit_compute_dtype` |
#
# Each can be answered without the others. When two people disagree about "symmetric", find out which of the four they mean.

# %% [markdown]
# ## What you have seen
#
# - A scale for each block keeps small weights from being rounded to 0 by large ones, and confines an outlier's harm to its 63 neighbours.
# - A scale of 32 bits costs $32/n$ bits for each weight in a block of $n$. The error follows the mean square of the absmax: each doubling of the block adds the same on normal numbers, and saves half as many bits as
#   the one before. The weights of abacus have more outliers, and gain more from blocks.
# - Blocks run over the flattened weight. The last may be short.
# - On the CPU bitsandbytes multiplies full blocks by the reciprocal and divides the short one, which differ in the last bit of a quarter of normal numbers, and in a code only where a number lies half-way between two values, or nearly so.
# - absmax needs no offset. Asymmetric means: with a zero point. NF4 is a set of values, and is scaled by absmax like the others.
#
# The lesson began by asking how many weights should share a scale. 64 is a compromise: at 5 bits a weight, blocks of 32 already lose to codes of 5 bits, unless outliers are many; with far more than 64, outliers do harm, and little is saved.
# And where a weight can't be cut into whole blocks, the last one is short and has a scale of its own; on the CPU its weights are divided by it, where those of full blocks are multiplied by the reciprocal.
#
# The table holds a hint for what comes next: NF4 had a smaller error than int4 for the same bits. Where do its sixteen values come from? That is lesson 04.
#
# Now you: [exercise 03](../exercises/03_quantize_in_blocks.ipynb).
