# %% [markdown]
# # Exercise 02: round to a grid
#
# Nine questions, about 65 minutes. They belong to the lesson [Round to a grid](../notebooks/02_round_to_a_grid.ipynb).
# Words are explained in the [glossary](../glossary.md).
#
# Ask `hint("02.1")` where you get stuck; `reveal("02.1")` shows the solution.

# %%
import torch

from course_utils.checks import check, hint, progress, reveal

# %% [markdown]
# ## Question 02.1: Read a code
# Difficulty 1/5, 4 minutes, 1 point
#
# Some weights were quantized by absmax, with the codes -7 to 7. Their absmax is 0.42. Which number does the code -5 stand for?

# %%
### BEGIN SOLUTION
read_back = -5 * 0.42 / 7
### END SOLUTION

# %%
check("02.1", read_back)

# %% [markdown]
# ## Question 02.2: Bound the error
# Difficulty 2/5, 5 minutes, 1 point
#
# The absmax of a tensor is 1.75, and it is quantized by absmax, with the codes -7 to 7.
# You know nothing else about its numbers. How large can an error be at most?

# %%
### BEGIN SOLUTION
largest_error = 1.75 / 7 / 2
### END SOLUTION

# %%
check("02.2", largest_error)

# %% [markdown]
# ## Question 02.3: Quantize by absmax
# Difficulty 3/5, 10 minutes, 3 points
#
# Write absmax quantization for a float32 tensor of any shape. Return two things: the codes, -7 to 7, as a tensor of the same shape
# with dtype `torch.int8`; and the scale as a number. Codes times scale give the numbers back. Halves go where `torch.round` sends them.
#
# For a tensor of zeros the scale is 1, so that nothing is divided by 0.


# %%
def int4_codes(numbers: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Codes and scale: int4_codes(torch.tensor([0.5, -3.5])) is (tensor([1, -7], dtype=torch.int8), 0.5)."""
    ### BEGIN SOLUTION
    absmax = numbers.abs().max().item()
    scale = absmax / 7 if absmax > 0 else 1.0
    return torch.round(numbers / scale).to(torch.int8), scale
    ### END SOLUTION


# %%
check("02.3", int4_codes)

# %% [markdown]
# ## Question 02.4: Round half to even
# Difficulty 3/5, 8 minutes, 2 points
#
# Round each number of a list to the nearest whole number, and halves to the even neighbour. Do it without `round` and without PyTorch.


# %%
def half_to_even(numbers: list[float]) -> list[int]:
    """Rounded numbers: half_to_even([2.4, 2.5, 3.5]) is [2, 2, 4]."""
    ### BEGIN SOLUTION
    rounded = []
    for x in numbers:
        below = int(x // 1)
        above = below + 1
        if x - below == above - x:
            rounded.append(below if below % 2 == 0 else above)
        else:
            rounded.append(below if x - below < above - x else above)
    return rounded
    ### END SOLUTION


# %%
check("02.4", half_to_even)

# %% [markdown]
# ## Question 02.5: Say what -8 would cost
# Difficulty 2/5, 6 minutes, 2 points
#
# Somebody wants to use all sixteen patterns: the codes are -8 to 7, the scale is absmax / 8, and a code that isn't there is cut off to the
# nearest one. The absmax is 0.56. What is the error of the number 0.55, without its sign?

# %%
### BEGIN SOLUTION
error_with_minus_eight = 0.55 - 7 * 0.56 / 8
### END SOLUTION

# %%
check("02.5", error_with_minus_eight)

# %% [markdown]
# ## Question 02.6: Quantize with a zero point
# Difficulty 4/5, 12 minutes, 4 points
#
# Lay sixteen values over the range of a float32 tensor. The range goes from its smallest number to its largest, stretched to include 0
# where all numbers lie on one side of it.
#
# Return three things: the codes, 0 to 15, as a tensor of the same shape with dtype `torch.uint8`; the scale; and the zero point, a whole
# number. Numbers come back as scale * (code - zero point), and 0 as exactly 0. A code that comes out as 16 is cut off to 15.
# Halves go to the even neighbour as in question 02.3, in the zero point too.
# You needn't treat a tensor of zeros.


# %%
def zero_point_codes(numbers: torch.Tensor) -> tuple[torch.Tensor, float, int]:
    """Codes, scale and zero point: of the numbers -0.5, 0.0 and 1.0 they are the codes 0, 5 and 15, the scale 0.1 and the zero point 5."""
    ### BEGIN SOLUTION
    low = min(numbers.min().item(), 0.0)
    high = max(numbers.max().item(), 0.0)
    scale = (high - low) / 15
    zero_point = round(-low / scale)
    codes = torch.round(numbers / scale) + zero_point
    return codes.clamp(0, 15).to(torch.uint8), scale, zero_point
    ### END SOLUTION


# %%
check("02.6", zero_point_codes)

# %% [markdown]
# ## Question 02.7: Count what an outlier wipes out
# Difficulty 3/5, 8 minutes, 3 points
#
# A number joins a tensor, perhaps an outlier, positive or negative. Then all are quantized by absmax, with the codes -7 to 7, as in
# question 02.3. How many of the old numbers get the code 0?


# %%
def wiped_out(numbers: torch.Tensor, outlier: float) -> int:
    """How many of the numbers get the code 0: wiped_out(torch.tensor([0.1, 0.2, 0.9]), 2.8) is 2."""
    ### BEGIN SOLUTION
    scale = max(numbers.abs().max().item(), abs(outlier)) / 7
    return (torch.round(numbers / scale) == 0).sum().item()
    ### END SOLUTION


# %%
check("02.7", wiped_out)

# %% [markdown]
# ## Question 02.8: Count the bits of a zero point
# Difficulty 2/5, 4 minutes, 1 point
#
# Each block of 128 weights has one scale in float16 and one zero point, which is a code of 4 bits. How many bits does a weight take, with
# its share of both? Two decimals will do.

# %%
### BEGIN SOLUTION
bits_with_zero_point = 4 + (16 + 4) / 128
### END SOLUTION

# %%
check("02.8", bits_with_zero_point)

# %% [markdown]
# ## Question 02.9: Judge the analogy
# Difficulty 3/5, 8 minutes, 4 points
#
# "4-bit quantization is like a picture in 16 colours with a brightness map." Say in a few sentences what is right about that, and where it
# misleads. Say what corresponds to what, what the lamp is among weights, why a coarse map is enough for the picture and whether that holds for weights,
# and name one more thing that doesn't fit.
# Write it between quotes, or three of them: `"""..."""`.

# %%
### BEGIN SOLUTION
where_the_analogy_breaks = """
The palette is the codebook, the brightness map holds the scales of the blocks, and shade times brightness is dequantizing.
A lamp blackens what shares its brightness, as an outlier makes 0 of what shares its scale, and blocks confine it.
But a brightness map is enough for a picture because neighbouring pixels are alike.
Shuffled, the picture suffers, even without its lamp, and weights hardly notice.
And what rounding took doesn't come back: each weight is up to half a step off.
"""
### END SOLUTION

# %%
check("02.9", where_the_analogy_breaks)

# %% [markdown]
# Once you have written something, the next cell sets it beside a model answer and the rubric by which it is graded.
# Give yourself the points.

# %%
if isinstance(where_the_analogy_breaks, str):
    reveal("02.9")

# %% [markdown]
# ## Where you are

# %%
progress("02")
