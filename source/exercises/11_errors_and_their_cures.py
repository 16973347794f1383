# %% [markdown]
# # Exercise 11: errors and their cures
#
# Seven cases, about 52 minutes. They belong to the lesson [Errors and their cures](../notebooks/11_errors_and_their_cures.ipynb), and the numbers of
# entries are those of its headings. Words are explained in the [glossary](../glossary.md).
#
# Where a program is to be cured, what it does counts, and any cure that does it is right.

# %%
import torch

from course_utils import models
from course_utils.checks import check, hint, progress, reveal

# %% [markdown]
# Where you get stuck, ask for a hint in a cell of your own: `hint("11.1")` gives a stronger one each time.

# %%
hint("11.1", 1)

# %% [markdown]
# ## Question 11.1: Read a layer out of an error
# Difficulty 3/5, 6 minutes, 2 points
#
# Somebody's program, which merges adapters by itself, ends with
#
#     mat1 and mat2 shapes cannot be multiplied (3x4096 and 1x22544384)
#
# How many outputs does the layer have whose weight it took?

# %%
### BEGIN SOLUTION
outputs = 2 * 22_544_384 // 4_096
### END SOLUTION

# %%
check("11.1", outputs)

# %% [markdown]
# ## Question 11.2: Cure the convolution
# Difficulty 2/5, 6 minutes, 2 points
#
# This function works as long as nobody passes it numbers of NumPy. Then it raises an error: run the next cell to see it, and find its entry. Cure
# the function, so that it takes any three dtypes of floats; the result is to have the dtype of the filters.

# %%
from course_utils.clinic import expect_error


def uncured(signal, filters, bias):
    return torch.nn.functional.conv1d(signal, filters, bias)


with expect_error(RuntimeError, "should be the same"):
    uncured(torch.ones(1, 4, 8).double(), torch.ones(1, 4, 3).half(), torch.ones(1).half())


# %%
def smooth(signal: torch.Tensor, filters: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The convolution of signal and filters, with the bias added, in the filters' dtype."""
    ### BEGIN SOLUTION
    return torch.nn.functional.conv1d(signal.to(filters.dtype), filters, bias.to(filters.dtype))
    ### END SOLUTION


# %%
check("11.2", smooth)

# %% [markdown]
# ## Question 11.3: Sort tracebacks
# Difficulty 2/5, 8 minutes, 2 points
#
# You answer questions in a forum. Write a function that takes a whole traceback as text and returns the number of the lesson's entry that
# it belongs to. `find_error` of `course_utils.errors` does most of it.


# %%
def entry_of(text: str) -> int:
    """The number of the entry of lesson 11."""
    ### BEGIN SOLUTION
    from course_utils.errors import find_error

    first_row = find_error(text).splitlines()[2]
    return int(first_row.split(".")[0])
    ### END SOLUTION


# %%
check("11.3", entry_of)

# %% [markdown]
# ## Question 11.4: Cure one error, meet the next
# Difficulty 3/5, 8 minutes, 3 points
#
# This function is to give the packed nf4 bytes of a weight, in blocks of 64. It raises an error, and when that is cured, another for weights that come from
# NumPy.
#
#     from bitsandbytes.functional import quantize_4bit
#
#     def store(weight):
#         packed, state = quantize_4bit(weight, quant_type="NF4")
#         return packed


# %%
def store(weight: torch.Tensor) -> torch.Tensor:
    """The packed nf4 bytes of a weight in float64, float32 or 16 bits: uint8, of shape (bytes, 1)."""
    from bitsandbytes.functional import quantize_4bit

    ### BEGIN SOLUTION
    packed, state = quantize_4bit(weight.float(), quant_type="nf4")
    return packed
    ### END SOLUTION


# %%
check("11.4", store)

# %% [markdown]
# ## Question 11.5: Ask as much as fits
# Difficulty 3/5, 6 minutes, 2 points
#
# "CUDA out of memory", with Llama-2-7B in 4 bits and 12 questions at once, on a card of which 12 GB are free. From the table of entry 3: the weights take 4.17 GB, the one
# that is read back 0.09 GB. A question of 2,048 tokens takes 1.07 GB of cache and 0.14 GB of activations. How many of them
# fit at once?

# %%
### BEGIN SOLUTION
questions = (12 - 4.17 - 0.09) // (1.07 + 0.14)
### END SOLUTION

# %%
check("11.5", questions)

# %% [markdown]
# ## Question 11.6: Find the checkpoint that forgot
# Difficulty 3/5, 8 minutes, 3 points
#
# A folder of checkpoints, and some of them raise the error of entry 14. Write a function that finds those before they are loaded: 4-bit weights of bitsandbytes,
# and a config that doesn't say so, because its part `quantization_config` is missing or says `"load_in_4bit": false`. `config` is the content
# of `config.json`, as a dict, `names` are those of the tensors in the file. With a 4-bit weight `w` there are `w.absmax`, `w.quant_map` and, by the codebook, `w.quant_state.bitsandbytes__nf4` or `w.quant_state.bitsandbytes__fp4`.


# %%
def lost_its_config(config: dict, names: list[str]) -> bool:
    """Whether the checkpoint holds 4-bit weights and its config doesn't say so."""
    ### BEGIN SOLUTION
    packed = any(".quant_state.bitsandbytes__" in name for name in names)
    return packed and not config.get("quantization_config", {}).get("load_in_4bit")
    ### END SOLUTION


# %%
check("11.6", lost_its_config)

# %% [markdown]
# ## Question 11.7: Answer a colleague
# Difficulty 3/5, 10 minutes, 4 points
#
# A colleague writes: "My notebook has transformers 5.23, and it keeps telling me that 4-bit quantization `requires bitsandbytes>=0.46.1`. But I
# have bitsandbytes! In the terminal `pip list` shows 0.45.5." Several things may be wrong, also after pip has been run once more. Answer in a few
# sentences: what may it be, how to tell one from the other, and what cures each.

# %%
### BEGIN SOLUTION
to_the_colleague = """
0.45.5 is older than 0.46.1, so the text is right. Ask importlib.metadata.version("bitsandbytes") and sys.executable in the notebook. If it says 0.45.5 too,
run %pip install -U "bitsandbytes>=0.46.1" in a cell, with the quotes. If it says another number, your terminal has another Python: the same line cures it. If
it says a new number and the error stays, the notebook was running while you installed: restart Python.
"""
### END SOLUTION

# %%
check("11.7", to_the_colleague)

# %% [markdown]
# Once you have written something, the next cell sets it beside a model answer and the rubric by which it is graded. Give yourself the
# points.

# %%
if isinstance(to_the_colleague, str):
    reveal("11.7")

# %% [markdown]
# ## Where you are

# %%
progress("11")
