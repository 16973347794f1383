# %% [markdown]
# # Exercise 10: failures without a sound
#
# Eight cases, about 67 minutes. They belong to the lesson [Failures without a sound](../notebooks/10_failures_without_a_sound.ipynb).
# Words are explained in the [glossary](../glossary.md).
#
# In each case somebody has loaded, saved or counted something, and no error came. Any cure that cures is right.

# %%
import torch
from transformers import BitsAndBytesConfig

from course_utils.checks import check, hint, progress, reveal

# %% [markdown]
# Where you get stuck, ask for a hint in a cell of your own: `hint("10.1")` gives a stronger one each time.

# %%
hint("10.1", 1)

# %% [markdown]
# ## Question 10.1: Half a model
# Difficulty 2/5, 4 minutes, 1 point
#
# A colleague has loaded Llama-2-7B in 4 bits, and `sum(p.numel() for p in model.parameters())` gives 3,500,412,928. "They have sold us
# a model of half the size." Of these numbers 262,410,240 belong to embedding, head and norms, which are not quantized. How many weights does the model
# have?

# %%
### BEGIN SOLUTION
weights = 2 * (3_500_412_928 - 262_410_240) + 262_410_240
### END SOLUTION

# %%
check("10.1", weights)

# %% [markdown]
# ## Question 10.2: Is the file whole?
# Difficulty 3/5, 10 minutes, 3 points
#
# A checkpoint was written on a CPU with avx512_bf16, and nobody remembers whether the model had been used before. You have the header of
# its file: `header` is a dict from the name of a tensor to its dtype (`"F32"`, `"BF16"`, `"U8"`) and shape, such as
# `{"model.layers.0.q_proj.weight.absmax": ["F32", [256]]}`. A damaged tensor of scales has the shape [blocks in a row, rows].
#
# Return a dict from the name of each layer in 4 bits, such as `"model.layers.0.q_proj"`, to one of four words: `"fresh"`, `"wrong"` where
# blocks get the scales of others, `"rounded"` where each block still has its own scale and only the format has suffered, and `"unknown"`
# where the header can't tell. Layers with and without double quantization stand side by side.


# %%
def judged(header: dict[str, list]) -> dict[str, str]:
    """What the header says of the scales of each layer."""
    ### BEGIN SOLUTION
    words = {}
    for name, (dtype, shape) in header.items():
        if not name.endswith(".weight.absmax"):
            continue
        if dtype == "U8":  # double quantization, put back in order if it was repacked
            word = "unknown"
        elif len(shape) == 1:
            word = "fresh"
        else:
            word = "rounded" if min(shape) == 1 else "wrong"  # one block in a row: nothing to put in another order
        words[name.removesuffix(".weight.absmax")] = word
    return words
    ### END SOLUTION


# %%
check("10.2", judged)

# %% [markdown]
# ## Question 10.3: Rows and blocks
# Difficulty 3/5, 8 minutes, 2 points
#
# A model of pictures and text answers well on a GPU and worse on a CPU with AVX-512. `layers` is a dict from the name of a layer to
# the shape of its weight, `[rows, columns]`. Which of them does such a CPU read back wrong, with blocks of `block_size`? Return their
# names in the order of the dict.


# %%
def misread_layers(layers: dict[str, list[int]], block_size: int) -> list[str]:
    """The layers whose weights are read back with scales of other blocks."""
    ### BEGIN SOLUTION
    return [name for name, (rows, columns) in layers.items() if columns % 16 == 0 and columns % block_size != 0]
    ### END SOLUTION


# %%
check("10.3", misread_layers)

# %% [markdown]
# ## Question 10.4: What was swallowed?
# Difficulty 3/5, 8 minutes, 2 points
#
# `BitsAndBytesConfig(**settings)` takes any name. Return those names in `settings` that it doesn't know, in their order. A setting
# that is known and happens to be the default has not been swallowed.


# %%
def swallowed(settings: dict) -> list[str]:
    """The names that BitsAndBytesConfig takes without knowing them."""
    ### BEGIN SOLUTION
    import inspect

    known = inspect.signature(BitsAndBytesConfig).parameters
    return [name for name in settings if name not in known]
    ### END SOLUTION


# %%
check("10.4", swallowed)

# %% [markdown]
# ## Question 10.5: A map with offload
# Difficulty 2/5, 5 minutes, 2 points
#
# "Some modules are dispatched on the CPU", said an error, and `llm_int8_enable_fp32_cpu_offload=True` made it go away. Now 8 of the 32
# decoder layers of Llama-2-7B are on the CPU, with 202,375,168 weights in linear layers each; the model was loaded with
# `dtype=torch.bfloat16`. How many GB more do these 8 layers take than in 4 bits, with blocks of 64 and float32 scales? Two decimals will do.

# %%
### BEGIN SOLUTION
gigabytes = 8 * 202_375_168 * (16 - 4.5) / 8 / 10**9
### END SOLUTION

# %%
check("10.5", gigabytes)

# %% [markdown]
# ## Question 10.6: Four faults in one load
# Difficulty 4/5, 14 minutes, 4 points
#
# Somebody wants abacus in NF4 with double quantization, multiplying in the dtype in which all the rest of the model is, and with `o_proj`
# and the head left in that dtype. This is the cell that they have written. It raises no error.

# %%
from course_utils import models
from course_utils.clinic import audit_4bit

as_written = BitsAndBytesConfig(
    bnb_4bit_quant_typ="nf4", bnb_4bit_use_double_quant=True, llm_int8_skip_modules=["o_proj"]
)
model, tokenizer = models.load(models.ABACUS, quantization_config=as_written, dtype=torch.bfloat16)
print(models.ask(model, tokenizer, "What is 2+2?"))

# %% [markdown]
# Find the four faults, and write a function that loads abacus as it was meant, for `dtype` `"bfloat16"` or `"float16"`. It returns a list of two: the `summary` of `audit_4bit(model)`, without
# `like`, and the list of the names of its findings.


# %%
def load_as_meant(dtype: str) -> list:
    """What the audit says of abacus, loaded as it was meant."""
    ### BEGIN SOLUTION
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
        llm_int8_skip_modules=["o_proj", "lm_head"],
    )
    model, _ = models.load(models.ABACUS, quantization_config=config, dtype=getattr(torch, dtype))
    audit = audit_4bit(model)
    return [audit.summary, [finding.name for finding in audit.findings]]
    ### END SOLUTION


# %%
check("10.6", load_as_meant)

# %% [markdown]
# ## Question 10.7: Whose scale?
# Difficulty 3/5, 8 minutes, 2 points
#
# A weight has `rows` rows of `blocks_in_row` blocks each, counted from 0, row by row. It was saved after a forward pass on a CPU with
# avx512_bf16, without double quantization. With the scale of which block is block number `block` read back from that file? In the lesson's
# matrix of 32 rows of 2 blocks, block 1 gets the scale of block 2, and block 2 that of block 4.


# %%
def scale_taken(block: int, rows: int, blocks_in_row: int) -> int:
    """The number of the block whose scale this block gets."""
    ### BEGIN SOLUTION
    column, row = divmod(block, rows)  # the scales stand column by column, and a column has one for each row
    return row * blocks_in_row + column
    ### END SOLUTION


# %%
check("10.7", scale_taken)

# %% [markdown]
# ## Question 10.8: No findings
# Difficulty 3/5, 10 minutes, 4 points
#
# "It says that 2+2 is 4, and `audit_4bit(model)` has no findings. So it is well loaded." Say in a few sentences what may be wrong all the
# same, with at least two cases from the lesson, what you would do to find it, and what the right answer proves.

# %%
### BEGIN SOLUTION
what_it_can_not_see = """
A misspelled argument leaves the defaults, which are legitimate. A dequantized model, saved and loaded again, is an ordinary
model. One right answer proves little: damaged models gave it, too. I would pass like= with the configuration that I meant,
look at the footprint, and measure more than one question.
"""
### END SOLUTION

# %%
check("10.8", what_it_can_not_see)

# %% [markdown]
# Once you have written something, the next cell sets it beside a model answer and the rubric by which it is graded. Give yourself the
# points.

# %%
if isinstance(what_it_can_not_see, str):
    reveal("10.8")

# %% [markdown]
# ## Where you are

# %%
progress("10")
