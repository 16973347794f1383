# %% [markdown]
# # Exercise 09: what it costs in time
#
# Seven questions, about 68 minutes. They belong to the lesson [What it costs in time](../notebooks/09_what_it_costs_in_time.ipynb). Words
# are explained in the [glossary](../glossary.md).

# %%
import statistics

from course_utils.checks import check, hint, progress, reveal

# %% [markdown]
# Where you get stuck, ask for a hint in a cell of your own: `hint("09.1")` gives a stronger one each time.

# %%
hint("09.1", 1)

# %% [markdown]
# ## Question 09.1: Read the spread
# Difficulty 1/5, 5 minutes, 1 point
#
# Seven runs of a layer took 8, 9, 8, 30, 8, 10 and 9 milliseconds. What is their spread, as the lesson defines it, in percent? A
# whole number will do.

# %%
### BEGIN SOLUTION
low, median, high = statistics.quantiles([8, 9, 8, 30, 8, 10, 9], n=4, method="inclusive")
percent = 100 * (high - low) / median
### END SOLUTION

# %%
check("09.1", percent)

# %% [markdown]
# ## Question 09.2: Draw the roofline
# Difficulty 3/5, 12 minutes, 3 points
#
# A linear layer has `outputs` x `inputs` weights of `bits` bits each, and gets `batch` rows of input. Inputs and outputs are in 16 bits.
# A machine does `flop_rate` calculations a second and moves `bandwidth` bytes a second, both at the same time. How many milliseconds does
# the layer need at least? Weights, inputs and outputs are each moved once.
#
# Two outputs, four inputs, batch 1, 16 bits, on a machine that does 16,000 calculations and moves 14,000 bytes a second: 16 calculations
# take 1 ms, and 28 bytes take 2 ms, so it is 2.


# %%
def least_ms(outputs: int, inputs: int, batch: int, bits: float, flop_rate: float, bandwidth: float) -> float:
    """The least time of a layer, in milliseconds."""
    ### BEGIN SOLUTION
    flops = 2 * outputs * inputs * batch
    nbytes = outputs * inputs * bits / 8 + batch * (inputs + outputs) * 2
    return 1000 * max(flops / flop_rate, nbytes / bandwidth)
    ### END SOLUTION


# %%
check("09.2", least_ms)

# %% [markdown]
# ## Question 09.3: Find where it turns
# Difficulty 3/5, 8 minutes, 2 points
#
# A GPU moves 2 TB a second and does 300 TFLOP a second, 300 million million calculations. A fused kernel reads weights of 4.5 bits. Leave the
# inputs and outputs out. At which batch does moving take as long as calculating, so that the layer turns from one bound to the other? Two
# decimals; it need not be a whole number.

# %%
### BEGIN SOLUTION
batch = 4.5 / 8 / 2e12 * 300e12 / 2
### END SOLUTION

# %%
check("09.3", batch)

# %% [markdown]
# ## Question 09.4: Say which is faster, or that you can't
# Difficulty 3/5, 12 minutes, 3 points
#
# Two layers were timed in turns. `a` and `b` are their times. Return `"a"` if a is faster: if its upper quartile lies below the lower quartile
# of b. Return `"b"` in the opposite case, and `"can't tell"` otherwise. Take the quartiles as the lesson does.


# %%
def which_is_faster(a: list[float], b: list[float]) -> str:
    """ "a", "b" or "can't tell"."""
    ### BEGIN SOLUTION
    a_low, _, a_high = statistics.quantiles(a, n=4, method="inclusive")
    b_low, _, b_high = statistics.quantiles(b, n=4, method="inclusive")
    if a_high < b_low:
        return "a"
    return "b" if b_high < a_low else "can't tell"
    ### END SOLUTION


# %%
check("09.4", which_is_faster)

# %% [markdown]
# ## Question 09.5: Bound a token
# Difficulty 3/5, 8 minutes, 2 points
#
# Llama-2-7B in nf4 with double quantization (4.127 bits a weight) writes one token at batch 1, on a GPU with a bandwidth of 1 TB a second, by fused kernels. Its
# linear layers have 6,476,005,376 weights. Its head and its embedding have 131,072,000 each, in 16 bits. Leave out the norms and the KV cache.
# How many milliseconds does it take at least? Two decimals.

# %%
### BEGIN SOLUTION
milliseconds = (6_476_005_376 * 4.127 / 8 + 131_072_000 * 2) / 1e12 * 1000
### END SOLUTION

# %%
check("09.5", milliseconds)

# %% [markdown]
# ## Question 09.6: Add up the overhead
# Difficulty 2/5, 8 minutes, 2 points
#
# What does double quantization cost in all? A model is loaded once, and its scales are quantized in `quantizing` milliseconds. Then it makes `passes`
# forward passes. To read all its scales back once takes `reading` milliseconds on the path given. `path` is `"plain"` or `"packed"`, two paths of a CPU, or `"fused"`, the kernel of
# a GPU. In how many passes the scales are read back depends on the path. Return the milliseconds that double quantization has cost.


# %%
def overhead_ms(passes: int, quantizing: float, reading: float, path: str) -> float:
    """Milliseconds that double quantization costs, from loading to the last pass."""
    ### BEGIN SOLUTION
    times_read = min(passes, 1) if path == "packed" else passes
    return quantizing + times_read * reading
    ### END SOLUTION


# %%
check("09.6", overhead_ms)

# %% [markdown]
# ## Question 09.7: Check your understanding
# Difficulty 4/5, 15 minutes, 7 points
#
# This is the question with which the lesson ends that this course grew from:
#
# "Your model loads successfully in 4-bit but inference is slower than expected. You used `bnb_4bit_use_double_quant=True`. Explain why this
# overhead exists and why it doesn't apply equally to weight loading vs. inference."
#
# Answer it. Say also where the usual answer does not hold, how large the overhead is and by whose measurement, and how you would find out
# whether it is what makes this model slow.

# %%
### BEGIN SOLUTION
why_the_overhead = """
The scales are stored in 8 bits, so before a weight can be read back its scale has to be: looked up, times a scale that 256
share, plus an offset. While loading, the scales are quantized once, little beside the weights, and memory is saved from then on. In use they are read back at
each pass and thrown away, so it is paid for every token, and weighs most at batch 1. On a CPU with avx512_bf16 the first pass
keeps them: from then on it costs nothing, and saves nothing. Published figures for GPUs go from 2 to 26 %. I would time the
model with and without it, in turns, before I blame it.
"""
### END SOLUTION

# %%
check("09.7", why_the_overhead)

# %% [markdown]
# Once you have written something, the next cell sets it beside a model answer and the rubric by which it is graded. Give yourself the
# points.

# %%
if isinstance(why_the_overhead, str):
    reveal("09.7")

# %% [markdown]
# ## Where you are

# %%
progress("09")
