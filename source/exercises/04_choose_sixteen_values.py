# %% [markdown]
# # Exercise 04: choose sixteen values
#
# Nine questions, about 82 minutes. They belong to the lesson [Choose sixteen values](../notebooks/04_choose_sixteen_values.ipynb).
# Words are explained in the [glossary](../glossary.md).
#
# Ask `hint("04.1")` where you get stuck; `reveal("04.1")` shows the solution.

# %%
from statistics import NormalDist

import torch

from course_utils.checks import check, hint, progress, reveal

quantile = NormalDist().inv_cdf

# %% [markdown]
# ## Question 04.1: Round a zero without a zero
# Difficulty 2/5, 6 minutes, 1 point
#
# Take the sixteen values $\Phi^{-1}((i + 0.5)/16)$, divided by the largest of them: the formula that is not NF4. A block has the absmax
# 2.5. One of its weights is 0. How large is the error of this weight? Three decimals will do.

# %%
### BEGIN SOLUTION
error_of_zero = 2.5 * quantile(8.5 / 16) / quantile(15.5 / 16)
### END SOLUTION

# %%
check("04.1", error_of_zero)

# %% [markdown]
# ## Question 04.2: Make a NormalFloat of any number of bits
# Difficulty 4/5, 15 minutes, 4 points
#
# NF4's rule works for other numbers of bits. With $b$ bits there are $n = 2^b$ values. The outermost probability is the mean of
# $1 - 1/(2n)$ and $1 - 1/(2(n-1))$, which is where the middles of $n$ and of $n - 1$ equal shares end. The positive side takes $n/2$ even
# steps from there to 0.5, the negative side one step fewer. 0.5 itself is the zero, so there are as many values as steps. There is one exact 0. All is divided by the largest.
#
# Return the values in ascending order. Nothing is rounded to float32 here.


# %%
def normal_float(bits: int) -> list[float]:
    """The 2**bits values, ascending: normal_float(2) is about [-1, 0, 0.4358, 1]."""
    ### BEGIN SOLUTION
    count = 2**bits
    outermost = ((1 - 0.5 / count) + (1 - 0.5 / (count - 1))) / 2

    def side(steps: int) -> list[float]:
        return [quantile(outermost + (0.5 - outermost) * i / steps) for i in range(steps)]

    positive, negative = side(count // 2), [-x for x in side(count // 2 - 1)]
    return sorted(x / positive[0] for x in [*negative, 0.0, *positive])
    ### END SOLUTION


# %%
check("04.2", normal_float)

# %% [markdown]
# ## Question 04.3: Derive NF4 in every bit
# Difficulty 3/5, 10 minutes, 3 points
#
# Now NF4 itself, equal to bitsandbytes in every bit. The outermost probability is 0.9677083. `float32` rounds one number;
# `float32_steps(start, end, count)` gives `count` evenly spaced numbers as `torch.linspace` does, both ends included, which makes `count - 1` steps. The rest is yours: what is rounded, and when?

# %%
from course_utils.codebooks import float32, float32_steps


def nf4_codebook() -> list[float]:
    """Sixteen values, ascending, each of them a float32."""
    ### BEGIN SOLUTION
    positive = [float32(quantile(p)) for p in float32_steps(0.9677083, 0.5, 9)[:-1]]
    negative = [-float32(quantile(p)) for p in float32_steps(0.9677083, 0.5, 8)[:-1]]
    return sorted(float32(x / positive[0]) for x in [*negative, 0.0, *positive])
    ### END SOLUTION


# %%
check("04.3", nf4_codebook)

# %% [markdown]
# ## Question 04.4: Find NF4's worst case
# Difficulty 2/5, 6 minutes, 2 points
#
# A block has the absmax 1. How large can the error of one of its weights be at most, with NF4? Three decimals will do.
#
# (For int4 it would be 1/14, which is 0.071. Compare your answer with that, and with which of the two is better on normal numbers.)

# %%
### BEGIN SOLUTION
worst_error = (1 - 0.6962) / 2
### END SOLUTION

# %%
check("04.4", worst_error)

# %% [markdown]
# ## Question 04.5: Read FP4
# Difficulty 2/5, 8 minutes, 2 points
#
# Write the value of an FP4 code of bitsandbytes. From the left: one bit of sign, two of exponent, one of mantissa. Times 12, the code 0011 is
# 12, the code 0110 is 2, and the code 0001 is 1/16.


# %%
def fp4_value(code: int) -> float:
    """The value, from -1 to 1, of a code from 0 to 15: fp4_value(0b1011) is -1."""
    ### BEGIN SOLUTION
    sign = -1.0 if code & 0b1000 else 1.0
    exponent, mantissa = (code & 0b0110) >> 1, code & 0b0001
    if exponent == 0:
        return sign * mantissa / 16 / 12
    return sign * (1 + mantissa / 2) * 2 ** (4 - exponent) / 12
    ### END SOLUTION


# %%
check("04.5", fp4_value)

# %% [markdown]
# ## Question 04.6: Find a code in FP4
# Difficulty 2/5, 5 minutes, 1 point
#
# The weight -1.8 stands in a block whose absmax is 3. Which code, from 0 to 15, does bitsandbytes give it in FP4?

# %%
### BEGIN SOLUTION
fp4_code = 0b1010
### END SOLUTION

# %%
check("04.6", fp4_code)

# %% [markdown]
# ## Question 04.7: Find the nearest codes
# Difficulty 3/5, 10 minutes, 3 points
#
# `scaled` holds float32 numbers from -1 to 1, `codebook` ascending float32 values, sixteen or fewer. Return the code of the nearest value for
# each number: its place in the codebook, counted from 0, dtype `uint8`. Half-way between two values the lower one counts.


# %%
def nearest_codes(scaled: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Codes: [0.1, -0.6, 0.125] and the codebook [-1, 0, 0.25, 1] give [1, 0, 1]."""
    ### BEGIN SOLUTION
    thresholds = (codebook[:-1] + codebook[1:]) / 2
    codes = torch.zeros(len(scaled), dtype=torch.uint8)
    for threshold in thresholds:
        codes += scaled > threshold
    return codes
    ### END SOLUTION


# %%
check("04.7", nearest_codes)

# %% [markdown]
# ## Question 04.8: Improve a codebook
# Difficulty 3/5, 12 minutes, 3 points
#
# Write one round of Lloyd's algorithm in plain Python: each number goes to its nearest value (half-way to the lower one), then each value
# moves to the mean of its numbers. A value without numbers stays where it is.


# %%
def lloyd_round(numbers: list[float], values: list[float]) -> list[float]:
    """The moved values: lloyd_round([0, 1, 2, 9, 10], [0, 1]) is [0, 5.5]. The values that come in are ascending."""
    ### BEGIN SOLUTION
    groups = [[] for _ in values]
    for x in numbers:
        distances = [abs(x - value) for value in values]
        groups[distances.index(min(distances))].append(x)
    return [sum(group) / len(group) if group else value for group, value in zip(groups, values, strict=True)]
    ### END SOLUTION


# %%
check("04.8", lloyd_round)

# %% [markdown]
# ## Question 04.9: Judge a sentence by its figures
# Difficulty 3/5, 10 minutes, 4 points
#
# "nf4 is almost always better than fp4, because weight distributions are typically normal, not uniform." What do the figures of the lesson
# say of the first half of this sentence, and what of the second? When does it matter whether weights are normal or uniform, and
# what is wrong with fp4? Write it between quotes, or three of them: `"""..."""`.

# %%
### BEGIN SOLUTION
why_nf4 = """
The first half holds: nf4 has a smaller error than fp4 on all four kinds of weights, 0.0085 against 0.0149 on normal numbers.
The reason is wrong: on uniform numbers nf4 is better than fp4 too, 0.0083 against 0.0123.
Normal or uniform decides between nf4 and int4; int4 wins on uniform numbers with 0.0049.
fp4 has no value between 1/192 and 1/6, where many weights are. With 1/12 instead of 1/192, as E2M1 has it, it would be much better.
"""
### END SOLUTION

# %%
check("04.9", why_nf4)

# %% [markdown]
# Once you have written something, the next cell sets it beside a model answer and the rubric by which it is graded.
# Give yourself the points.

# %%
if isinstance(why_nf4, str):
    reveal("04.9")

# %% [markdown]
# ## Where you are

# %%
progress("04")
