# %% [markdown]
# # Exercise 08: what it costs in quality
#
# Eight questions, about 79 minutes. They belong to the lesson [What it costs in quality](../notebooks/08_what_it_costs_in_quality.ipynb).
# Words are explained in the [glossary](../glossary.md).

# %%
import torch

from course_utils.checks import check, hint, progress, reveal

# %% [markdown]
# Where you get stuck, ask for a hint in a cell of your own: `hint("08.1")` gives a stronger one each time.

# %%
hint("08.1", 1)

# %% [markdown]
# ## Question 08.1: Find a perplexity on paper
# Difficulty 2/5, 5 minutes, 1 point
#
# An answer has four tokens. The model gives the right ones the probabilities 1/2, 1/8, 1 and 1/4. What is the perplexity of the answer?
# Two decimals will do.

# %%
### BEGIN SOLUTION
perplexity_of_four = 2 ** ((1 + 3 + 0 + 2) / 4)
### END SOLUTION

# %%
check("08.1", perplexity_of_four)

# %% [markdown]
# ## Question 08.2: Give an accuracy its error
# Difficulty 1/5, 4 minutes, 1 point
#
# A model answers 180 of 200 questions rightly. How large is the standard error of its accuracy, in percentage points? Two
# decimals will do.

# %%
### BEGIN SOLUTION
error = 100 * (0.9 * 0.1 / 200) ** 0.5
### END SOLUTION

# %%
check("08.2", error)

# %% [markdown]
# ## Question 08.3: Ask until a fault would show
# Difficulty 2/5, 6 minutes, 2 points
#
# A format makes one answer in two hundred wrong. You want a run of questions that shows at least one wrong answer in 19 runs of 20. How many
# questions must it have?

# %%
### BEGIN SOLUTION
questions = 598
### END SOLUTION

# %%
check("08.3", questions)

# %% [markdown]
# ## Question 08.4: Toss until it can't be chance
# Difficulty 3/5, 12 minutes, 3 points
#
# A format is compared with another on the same questions. It won `won` of them: it was right where the other was wrong. How many
# questions must it have lost, at least, for the exact test to speak against it, with p < 0.05? Coins that fall as unevenly the other way
# count too, as in the lesson.
#
# With none won it takes 6 lost ones.


# %%
def fewest_lost(won: int) -> int:
    """The smallest number of lost questions that makes p < 0.05."""
    ### BEGIN SOLUTION
    from math import comb

    lost = won
    while 2 * sum(comb(won + lost, k) for k in range(won + 1)) / 2 ** (won + lost) >= 0.05:
        lost += 1
    return lost
    ### END SOLUTION


# %%
check("08.4", fewest_lost)

# %% [markdown]
# ## Question 08.5: Put papers together
# Difficulty 2/5, 7 minutes, 2 points
#
# Of several papers you know only the results: `perplexities` has the perplexity of each, and `tokens` the number of its tokens. What is the
# perplexity of all papers together?
#
# For the perplexities 2, 4 and 16 of 2, 1 and 1 tokens it is 4.


# %%
def perplexity_of_all(perplexities: list[float], tokens: list[int]) -> float:
    """The perplexity of all papers together."""
    ### BEGIN SOLUTION
    from math import exp, log

    losses = [count * log(perplexity) for perplexity, count in zip(perplexities, tokens, strict=True)]
    return exp(sum(losses) / sum(tokens))
    ### END SOLUTION


# %%
check("08.5", perplexity_of_all)

# %% [markdown]
# ## Question 08.6: Say how many questions it takes
# Difficulty 4/5, 12 minutes, 3 points
#
# Of `asked` questions, `only_first` were right in the first format only, and `only_second` in the second only. If that is the true
# difference, how many questions does it take to see it: 1.96 standard errors, with a power of 80 % (0.84 errors more)? Return the number
# without rounding it.
#
# Give each question 1, -1 or 0. The square of the standard deviation is the mean of the squares less the square of the mean (divide by
# `asked`, not by `asked - 1`).
#
# For 5, 0 and 300 it is 462.56.


# %%
def questions_needed(only_first: int, only_second: int, asked: int) -> float:
    """The number of questions, not rounded."""
    ### BEGIN SOLUTION
    difference = (only_first - only_second) / asked
    variance = (only_first + only_second) / asked - difference**2
    return (1.96 + 0.84) ** 2 * variance / difference**2
    ### END SOLUTION


# %%
check("08.6", questions_needed)

# %% [markdown]
# ## Question 08.7: Multiply in 8 bits
# Difficulty 4/5, 18 minutes, 4 points
#
# Write LLM.int8(), with weights that are kept in int8 only, as bitsandbytes keeps them. `x` has a row for each token, `weight` a row for each output; the result is near `x @ weight.T`.
#
# - A column of `x` in which any token has a number of size `threshold` or more is an outlier column.
# - Without these columns, each row of `x` has a scale, its absmax / 127, and codes; so has each row of `weight`, all its columns
#   included. (In bitsandbytes 0.50 a number below the threshold in an outlier column still counts for its row's absmax. Here it doesn't, as in the paper.)
# - Codes are multiplied by codes, and the result by both scales.
# - Outlier columns are multiplied as they are, by weights that are read back from their codes, and added.
#
# Both tensors are float64, so that you need not think about rounding between the steps.


# %%
def multiply_in_int8(x: torch.Tensor, weight: torch.Tensor, threshold: float) -> torch.Tensor:
    """The product of x (tokens, inputs) and weight (outputs, inputs), as (tokens, outputs)."""
    ### BEGIN SOLUTION
    outlier = (x.abs() >= threshold).any(dim=0)
    rest = torch.where(outlier, 0.0, x)
    x_scale = rest.abs().amax(dim=1, keepdim=True) / 127
    weight_scale = weight.abs().amax(dim=1, keepdim=True) / 127
    x_codes = torch.round(rest / x_scale)
    weight_codes = torch.round(weight / weight_scale)
    in_8_bits = (x_codes @ weight_codes.T) * x_scale * weight_scale.T
    read_back = weight_codes * weight_scale
    return in_8_bits + x[:, outlier] @ read_back[:, outlier].T
    ### END SOLUTION


# %%
check("08.7", multiply_in_int8)

# %% [markdown]
# ## Question 08.8: Judge a claim
# Difficulty 3/5, 15 minutes, 5 points
#
# "We asked the model 200 questions. In 16 bits it got 171 right. Loaded in 4 bits, it got 168 of the same questions right. So 4 bits cost
# 1.5 points of accuracy." What has been shown? Which numbers are missing? What would you measure next?

# %%
### BEGIN SOLUTION
what_it_shows = """
Little. The error of one such accuracy is 2.5 points, and that of the difference of two samples 3.6. The questions were the
same, so I would ask on how many the formats differed, and which way: 3 to 0 gives p = 0.25. It is not shown that
4 bits cost nothing either. I would ask ten times as many questions, or compare the losses question by question, and say that
it holds for this model and these questions.
"""
### END SOLUTION

# %%
check("08.8", what_it_shows)

# %% [markdown]
# Once you have written something, the next cell sets it beside a model answer and the rubric by which it is graded. Give yourself the
# points.

# %%
if isinstance(what_it_shows, str):
    reveal("08.8")

# %% [markdown]
# ## Where you are

# %%
progress("08")
