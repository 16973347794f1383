# %% [markdown]
# # Exercise 05: pack and quantize twice
#
# Nine questions, about 80 minutes. They belong to the lesson [Pack and quantize twice](../notebooks/05_pack_and_quantize_twice.ipynb).
# Words are explained in the [glossary](../glossary.md).
#
# `hint("05.1")` gives a hint, a stronger one each time. `reveal("05.1")` shows the solution.

# %%
import torch

from course_utils.checks import check, hint, progress, reveal

# %% [markdown]
# ## Question 05.1: Put two codes in a byte
# Difficulty 1/5, 3 minutes, 1 point
#
# The first of two weights has the code 3, the second the code 12. Which number is the byte that holds both?

# %%
### BEGIN SOLUTION
byte = 3 << 4 | 12
### END SOLUTION

# %%
check("05.1", byte)

# %% [markdown]
# ## Question 05.2: Pack
# Difficulty 2/5, 8 minutes, 2 points
#
# Put two codes in each byte, as bitsandbytes does. The codes are those of NF4: an odd count is filled up with 7. Return a tensor of one
# dimension and dtype `uint8`.


# %%
def pack(codes: torch.Tensor) -> torch.Tensor:
    """Codes from 0 to 15, dtype uint8. [15, 1] becomes [241]; of [1, 2, 3] the last byte is 55."""
    ### BEGIN SOLUTION
    if len(codes) % 2:
        codes = torch.cat([codes, torch.tensor([7], dtype=torch.uint8)])
    return codes[0::2] << 4 | codes[1::2]
    ### END SOLUTION


# %%
check("05.2", pack)

# %% [markdown]
# ## Question 05.3: Unpack
# Difficulty 2/5, 7 minutes, 2 points
#
# And back. `count` is the number of weights, which the bytes alone don't tell.


# %%
def unpack(packed: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` codes, uint8. [241] and 2 give [15, 1]; [18, 55] and 3 give [1, 2, 3]."""
    ### BEGIN SOLUTION
    upper, lower = packed >> 4, packed & 0b1111
    return torch.stack([upper, lower], dim=1).view(-1)[:count]
    ### END SOLUTION


# %%
check("05.3", unpack)

# %% [markdown]
# ## Question 05.4: Quantize the scales
# Difficulty 4/5, 18 minutes, 4 points
#
# The second quantization: take the mean off the scales, scale each block of 256 by its largest absolute value (multiply by 1 / it, as the
# lesson does), find the codes. Return three things: the codes, one for each scale; the float32 scale of each block of 256; and the mean that you took off.
#
# A last block that is not full is filled up with zeros; their codes are not returned. `nearest_scale_codes` finds the codes of numbers from
# -1 to 1, as bitsandbytes finds them.

# %%
from course_utils.quantize import nearest_scale_codes


def quantize_scales(absmax: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Codes, scales of the scales, offset: [1, 2, 3, 2] gives [0, 131, 255, 131], [1] and 2."""
    ### BEGIN SOLUTION
    offset = absmax.mean()
    centred = absmax - offset
    rows = torch.nn.functional.pad(centred, (0, -len(centred) % 256)).view(-1, 256)
    nested_absmax = rows.abs().amax(dim=1)
    codes = nearest_scale_codes(rows * (1 / nested_absmax).unsqueeze(1)).view(-1)
    return codes[: len(absmax)], nested_absmax, offset.item()
    ### END SOLUTION


# %%
check("05.4", quantize_scales)

# %% [markdown]
# ## Question 05.5: Restore the scales
# Difficulty 3/5, 8 minutes, 2 points
#
# The way back from the three things that you have just returned. `dynamic_map()` is the codebook.

# %%
from course_utils.codebooks import dynamic_map


def restore_scales(codes: torch.Tensor, nested_absmax: torch.Tensor, offset: float) -> torch.Tensor:
    """One float32 for each code: [0, 255], [1] and 2 give about [1.007, 3]."""
    ### BEGIN SOLUTION
    values = dynamic_map()[codes.int()]
    scale_of_each = nested_absmax.repeat_interleave(256)[: len(codes)]
    return values * scale_of_each + offset
    ### END SOLUTION


# %%
check("05.5", restore_scales)

# %% [markdown]
# ## Question 05.6: Count the bytes to the last one
# Difficulty 3/5, 10 minutes, 3 points
#
# How many bytes do so many weights take? Count the packed codes and the scales; with double quantization the 8-bit codes of the scales, the
# float32 scales of those, and the offset. Leave the codebooks out. The last byte, the last block and the last block of scales may not be
# full.


# %%
def stored_bytes(weights: int, block_size: int, double_quant: bool) -> int:
    """A whole number: stored_bytes(64, 64, False) is 36, stored_bytes(128, 64, True) is 74."""
    ### BEGIN SOLUTION
    packed = -(-weights // 2)
    blocks = -(-weights // block_size)
    if not double_quant:
        return packed + 4 * blocks
    return packed + blocks + 4 * -(-blocks // 256) + 4
    ### END SOLUTION


# %%
check("05.6", stored_bytes)

# %% [markdown]
# ## Question 05.7: Find the weights that are read wrongly
# Difficulty 3/5, 8 minutes, 2 points
#
# On a CPU with AVX-512 bitsandbytes 0.50.2 counts the blocks of each row by themselves: it gives the weight in this row and this column, both counted from 0, the scale number
# `row * (columns // block_size) + column // block_size`. But blocks run over the flattened matrix. Is that the scale of the weight's own block?


# %%
def reads_right(row: int, column: int, columns: int, block_size: int) -> bool:
    """Whether the scale is its own: reads_right(1, 0, 352, 64) is True, reads_right(1, 40, 352, 64) is False."""
    ### BEGIN SOLUTION
    own = (row * columns + column) // block_size
    taken = row * (columns // block_size) + column // block_size
    return taken == own
    ### END SOLUTION


# %%
check("05.7", reads_right)

# %% [markdown]
# ## Question 05.8: Say where double quantization begins to pay
# Difficulty 4/5, 10 minutes, 2 points
#
# bitsandbytes gives each matrix its own copy of the dynamic map, 1,024 bytes. Count it this time, and the offset, and the scales of the
# scales. How many blocks must a matrix have, at least, to take fewer bytes with double quantization than without?

# %%
### BEGIN SOLUTION
blocks_that_pay = 1
while 4 * blocks_that_pay <= blocks_that_pay + 4 * -(-blocks_that_pay // 256) + 4 + 1024:
    blocks_that_pay += 1
### END SOLUTION

# %%
check("05.8", blocks_that_pay)

# %% [markdown]
# ## Question 05.9: Say why the mean is taken off
# Difficulty 3/5, 8 minutes, 4 points
#
# Why does bitsandbytes take the mean off the scales before it gives them codes? What does that cost, and why isn't it done to the weights?
# A few sentences, between quotes.

# %%
### BEGIN SOLUTION
why_the_mean = """
A scale is never negative, so half of the codes would go unused. And scales lie near each other:
less their mean they are small, and the same 8 bits cut a smaller range into finer steps.
It costs one float32 for the matrix.
Weights lie on both sides of 0 already, so it would gain nothing there.
"""
### END SOLUTION

# %%
check("05.9", why_the_mean)

# %% [markdown]
# Once you have written something, the next cell sets it beside a model answer and the rubric by which it is graded. Give yourself the
# points.

# %%
if isinstance(why_the_mean, str):
    reveal("05.9")

# %% [markdown]
# ## Where you are

# %%
progress("05")
