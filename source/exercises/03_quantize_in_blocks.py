# %% [markdown]
# # Exercise 03: quantize in blocks
#
# Eight questions, about 60 minutes. They belong to the lesson [Quantize in blocks](../notebooks/03_quantize_in_blocks.ipynb).
# Words are explained in the [glossary](../glossary.md).
#
# Ask `hint("03.1")` where you get stuck; `reveal("03.1")` shows the solution.

# %%
import torch

from course_utils.checks import check, hint, progress, reveal

# %% [markdown]
# ## Question 03.1: Count the scales
# Difficulty 2/5, 4 minutes, 1 point
#
# bitsandbytes quantizes a weight of 300 rows and 50 columns, in blocks of 64. How many scales does it store?

# %%
### BEGIN SOLUTION
scales = -(-300 * 50 // 64)
### END SOLUTION

# %%
check("03.1", scales)

# %% [markdown]
# ## Question 03.2: Scale the blocks
# Difficulty 4/5, 14 minutes, 4 points
#
# Write the function with which the lesson ended its section on the last block. It takes a float32 tensor of one dimension and returns two:
# the numbers, each brought to the range from -1 to 1 by the absmax of its block, and the absmax of each block.
#
# The numbers are to be those of bitsandbytes in every bit. So:
#
# - full blocks are multiplied by 1 / absmax, and a short last block is divided by its absmax;
# - nothing is divided by less than 1e-38, and a short block never has a smaller scale than that; full blocks return their absmax as it is.


# %%
def scale_blocks(numbers: torch.Tensor, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled numbers and absmax: scale_blocks(torch.tensor([0.5, -2, 4]), 2) is (tensor([0.25, -1, 1]), tensor([2, 4]))."""
    ### BEGIN SOLUTION
    full = len(numbers) - len(numbers) % block_size
    blocks = numbers[:full].view(-1, block_size)
    absmax = blocks.abs().amax(dim=1)
    scaled = (blocks * (1 / absmax.clamp(min=1e-38)).unsqueeze(1)).view(-1)
    if full == len(numbers):
        return scaled, absmax
    rest = numbers[full:]
    rest_absmax = rest.abs().amax().clamp(min=1e-38)
    return torch.cat([scaled, rest / rest_absmax]), torch.cat([absmax, rest_absmax.view(1)])
    ### END SOLUTION


# %%
check("03.2", scale_blocks)

# %% [markdown]
# ## Question 03.3: Go back
# Difficulty 2/5, 7 minutes, 2 points
#
# The way back. You are given the *values* that the codes stand for, numbers between -1 and 1, and the absmax of each block.
# Multiply each value by the absmax of its block. The last block may be short.


# %%
def restore(values: torch.Tensor, absmax: torch.Tensor, block_size: int) -> torch.Tensor:
    """Numbers again: restore(torch.tensor([0.25, -1, 1]), torch.tensor([2.0, 4.0]), 2) is tensor([0.5, -2, 4])."""
    ### BEGIN SOLUTION
    scale_of_each = absmax.repeat_interleave(block_size)[: len(values)]
    return values * scale_of_each
    ### END SOLUTION


# %%
check("03.3", restore)

# %% [markdown]
# ## Question 03.4: Find the block of a weight
# Difficulty 2/5, 6 minutes, 2 points
#
# A weight stands in a matrix, in this row and this column, both counted from 0. The matrix has `columns` columns.
# Which block does the weight belong to? Blocks are counted from 0 and run over the flattened matrix.


# %%
def block_of(row: int, column: int, columns: int, block_size: int) -> int:
    """The number of the block: block_of(1, 1, 6, 8) is 0, and block_of(1, 2, 6, 8) is 1."""
    ### BEGIN SOLUTION
    return (row * columns + column) // block_size
    ### END SOLUTION


# %%
check("03.4", block_of)

# %% [markdown]
# ## Question 03.5: Quantize to int4 in blocks
# Difficulty 3/5, 10 minutes, 3 points
#
# There and back: quantize a float32 tensor of one dimension to int4, with the codes -7 to 7 and an absmax for each block, and return the numbers that come back.
# The last block may be short. No block is all zeros. You may use what you wrote above.


# %%
def int4_in_blocks(numbers: torch.Tensor, block_size: int) -> torch.Tensor:
    """What comes back: int4_in_blocks(torch.tensor([0.21, -0.7, 7.0, -2.2]), 2) is tensor([0.2, -0.7, 7, -2])."""
    ### BEGIN SOLUTION
    scaled, absmax = scale_blocks(numbers, block_size)
    return restore(torch.round(7 * scaled) / 7, absmax, block_size)
    ### END SOLUTION


# %%
check("03.5", int4_in_blocks)

# %% [markdown]
# ## Question 03.6: Bound the harm of outliers
# Difficulty 3/5, 5 minutes, 1 point
#
# A weight of 4096 x 4096 has 1,000 outliers, each in a block of its own, and is quantized in blocks of 64.
# How many percent of all weights share a scale with an outlier? Two decimals will do.

# %%
### BEGIN SOLUTION
percent_harmed = 100 * 1000 * 64 / (4096 * 4096)
### END SOLUTION

# %%
check("03.6", percent_harmed)

# %% [markdown]
# ## Question 03.7: Price another format
# Difficulty 2/5, 5 minutes, 1 point
#
# Q4_1, a format of llama.cpp, has codes of 4 bits and blocks of 32. For each block it stores a scale in float16, and the smallest value of the
# block in float16. How many bits does a weight take?

# %%
### BEGIN SOLUTION
bits_for_each = 4 + (16 + 16) / 32
### END SOLUTION

# %%
check("03.7", bits_for_each)

# %% [markdown]
# ## Question 03.8: Set the words right
# Difficulty 3/5, 9 minutes, 4 points
#
# A colleague explains: "`load_in_4bit` stores each tensor with a scale factor and an offset. The quantization is asymmetric, because we calculate in bfloat16.
# I chose NF4 instead of symmetric." What is right in it, and what would you put differently? Write a few friendly sentences between quotes, `"""..."""`.

# %%
### BEGIN SOLUTION
words_set_right = """
It is true that weights are stored small and calculated with in bfloat16. That is called weight-only quantization; asymmetric means that there is
a zero point, and bitsandbytes has none. There is a scale for each block of 64 weights, not one for each tensor, and since it is the absmax,
no offset is needed. NF4 names the sixteen values. They are scaled by absmax as those of FP4 are, and FP4 is what NF4 was chosen instead of,
not symmetric quantization: that is about the zero point.
"""
### END SOLUTION

# %%
check("03.8", words_set_right)

# %% [markdown]
# Once you have written something, the next cell sets it beside a model answer and the rubric by which it is graded. Give yourself the points.

# %%
if isinstance(words_set_right, str):
    reveal("03.8")

# %% [markdown]
# ## Where you are

# %%
progress("03")
