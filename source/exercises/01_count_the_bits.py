# %% [markdown]
# # Exercise 01: count the bits
#
# Ten questions, about 73 minutes. They belong to the lesson [Count the bits](../notebooks/01_count_the_bits.ipynb).
# Words are explained in the [glossary](../glossary.md).
#
# Each question has a cell to fill in and a cell that checks it. The check says one of three things: correct; not right, and why; or
# not attempted. An explanation in words is kept and not judged.
#
# Where you get stuck, ask for a hint in a cell of your own. `hint("01.1")` gives a stronger one each time, and `hint("01.1", 1)`
# the first one again. `reveal("01.1")` shows the solution.

# %%
from course_utils.checks import check, hint, progress, reveal

# %% [markdown]
# ## Question 01.1: Read sixteen bits
# Difficulty 2/5, 5 minutes, 1 point
#
# Which number does the pattern `1100000100110000` stand for in bfloat16, whose bias is 127? Work it out on paper.

# %%
### BEGIN SOLUTION
bfloat16_value = -1 * (1 + 48 / 128) * 2 ** (130 - 127)
### END SOLUTION

# %%
check("01.1", bfloat16_value)

# %% [markdown]
# ## Question 01.2: Put a number together
# Difficulty 3/5, 10 minutes, 3 points
#
# Write what you have just done as a function, for any format. The three fields come as whole numbers.
# The bias is $2^{E-1} - 1$ for $E$ exponent bits: 127 for 8 bits, 15 for 5.
#
# One more rule, since otherwise no pattern would mean 0. Where the exponent field is 0, the 1 before the mantissa (the *hidden one*)
# is left out, and the power of two is that of exponent field 1. So the value is $\pm\, m / 2^M \times 2^{\,1 - \text{bias}}$.
#
# The largest exponent field stands for infinity and NaN. You needn't treat it.


# %%
def float_value(sign: int, exponent: int, mantissa: int, exponent_bits: int, mantissa_bits: int) -> float:
    """The number that three bit fields stand for: float_value(0, 128, 64, 8, 7) is 3.0."""
    ### BEGIN SOLUTION
    bias = 2 ** (exponent_bits - 1) - 1
    fraction = mantissa / 2**mantissa_bits
    if exponent == 0:
        return (-1) ** sign * fraction * 2.0 ** (1 - bias)
    return (-1) ** sign * (1 + fraction) * 2.0 ** (exponent - bias)
    ### END SOLUTION


# %%
check("01.2", float_value)

# %% [markdown]
# ## Question 01.3: Find the first whole number that bfloat16 misses
# Difficulty 3/5, 6 minutes, 2 points
#
# bfloat16 holds 1, 2, 3 and many whole numbers after them exactly. Which is the first that it doesn't hold?

# %%
### BEGIN SOLUTION
first_missing = 2 ** (7 + 1) + 1
### END SOLUTION

# %%
check("01.3", first_missing)

# %% [markdown]
# ## Question 01.4: Weigh a model
# Difficulty 1/5, 4 minutes, 1 point
#
# How many GB do `weights` weights take, at `bits` bits each? A GB is $10^9$ bytes. `bits` may be a number such as 4.5.


# %%
def weight_gb(weights: int, bits: float) -> float:
    """Gigabytes of 10**9 bytes, not rounded."""
    ### BEGIN SOLUTION
    return weights * bits / 8 / 10**9
    ### END SOLUTION


# %%
check("01.4", weight_gb)

# %% [markdown]
# ## Question 01.5: Count the weights of a Llama
# Difficulty 4/5, 12 minutes, 3 points
#
# Count the weights that 4-bit loading quantizes: the four matrices of the attention and the three of the MLP, in every decoder layer.
# Leave out the embedding, the head of the model and the norms.
#
# The lesson's formula is right where every attention head has its own key and value. In grouped-query attention there are fewer
# key-value heads, `kv_heads`. Each attention head is `hidden // heads` numbers wide. The *query* and the *output* matrix remain `hidden` x `hidden`.
# The *key* and the *value* matrix have one row for each number that the `kv_heads` heads produce, and `hidden` columns.


# %%
def linear_weights(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int) -> int:
    """How many weights 4-bit loading quantizes: linear_weights(4, 8, 1, 2, 2) is 160, linear_weights(4, 8, 2, 2, 1) is 288."""
    ### BEGIN SOLUTION
    kv_width = hidden // heads * kv_heads
    attention = 2 * hidden * hidden + 2 * hidden * kv_width
    gated_mlp = 3 * hidden * mlp
    return layers * (attention + gated_mlp)
    ### END SOLUTION


# %%
check("01.5", linear_weights)

# %% [markdown]
# ## Question 01.6: Count the scales
# Difficulty 3/5, 8 minutes, 2 points
#
# How many bits does a 4-bit weight take with its share of the scales? Without double quantization each block has one float32 scale.
# With it each block has a scale of 8 bits, and every 256 of those scales share one float32. Leave out what a whole matrix has only once.


# %%
def bits_per_weight(block_size: int, double_quant: bool) -> float:
    """Bits for each weight, scales included: bits_per_weight(64, False) is 4.5."""
    ### BEGIN SOLUTION
    if double_quant:
        return 4 + 8 / block_size + 32 / (256 * block_size)
    return 4 + 32 / block_size
    ### END SOLUTION


# %%
check("01.6", bits_per_weight)

# %% [markdown]
# ## Question 01.7: Say what is saved
# Difficulty 2/5, 4 minutes, 1 point
#
# A linear layer is in 16 bits. It is quantized to 4 bits in blocks of 64, without double quantization.
# How many percent of its bytes are saved? One decimal will do.

# %%
### BEGIN SOLUTION
percent_saved = 100 * (16 - (4 + 32 / 64)) / 16
### END SOLUTION

# %%
check("01.7", percent_saved)

# %% [markdown]
# ## Question 01.8: Weigh Llama-2-13B in 4 bits
# Difficulty 4/5, 8 minutes, 2 points
#
# How many GB do its weights take, in blocks of 64 **with** double quantization? Embedding, head and norms stay in 16 bits.
# Two decimals will do, in the parts as well as in the sum.
#
# Llama-2-13B has a vocabulary of 32,000, hidden size 5120, MLP size 13,824, 40 decoder layers, 40 attention heads and 40 key-value heads.
# Embedding and head are two tables of vocabulary x hidden size. There are two norms in each decoder layer and one at the end.
# Your functions from above may help.

# %%
### BEGIN SOLUTION
linear = weight_gb(linear_weights(5120, 13824, 40, 40, 40), bits_per_weight(64, True))
embedding_and_head = weight_gb(2 * 32_000 * 5120, 16)
norms = weight_gb((2 * 40 + 1) * 5120, 16)
llama_13b_gb = linear + embedding_and_head + norms
### END SOLUTION

# %%
check("01.8", llama_13b_gb)

# %% [markdown]
# ## Question 01.9: Weigh the KV cache
# Difficulty 3/5, 8 minutes, 2 points
#
# How many GB does the KV cache take when its numbers have 16 bits? An attention head is `hidden // heads` numbers wide.


# %%
def kv_cache_gb(layers: int, hidden: int, heads: int, kv_heads: int, tokens: int, batch: int) -> float:
    """Gigabytes of 10**9 bytes, not rounded. kv_cache_gb(80, 8192, 64, 8, 4096, 1), Llama-2-70B, is 1.342177..."""
    ### BEGIN SOLUTION
    head_width = hidden // heads
    values = 2 * layers * kv_heads * head_width * tokens * batch
    return values * 2 / 10**9
    ### END SOLUTION


# %%
check("01.9", kv_cache_gb)

# %% [markdown]
# ## Question 01.10: Say why 3.5 GB is too little
# Difficulty 3/5, 8 minutes, 4 points
#
# "A model of 7 billion weights needs half a byte for each: 3.5 GB." Say in a few sentences why Llama-2-7B needs more than that in 4 bits.
# Name three things that 3.5 GB leaves out, with numbers, and say what the weights come to. Write it between quotes, or three of them: `"""..."""`.

# %%
### BEGIN SOLUTION
why_not_3_5_gb = """
3.5 GB counts 7 billion weights at 4 bits and nothing else. Each block of 64 weights has a float32 scale, so a weight takes 4.5 bits.
Embedding and head stay in 16 bits, 0.52 GB. Together the weights take 4.17 GB, a fifth more than 3.5.
And while the model runs there are the KV cache, 0.52 MB for each token, and the activations.
"""
### END SOLUTION

# %%
check("01.10", why_not_3_5_gb)

# %% [markdown]
# Once you have written something, the next cell sets it beside a model answer and the rubric by which it is graded.
# Give yourself the points.

# %%
if isinstance(why_not_3_5_gb, str):
    reveal("01.10")

# %% [markdown]
# ## Where you are

# %%
progress("01")
