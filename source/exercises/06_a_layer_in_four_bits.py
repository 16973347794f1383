# %% [markdown]
# # Exercise 06: a layer in four bits
#
# Eight questions, about 85 minutes. They belong to the lesson [A layer in four bits](../notebooks/06_a_layer_in_four_bits.ipynb). Words
# are explained in the [glossary](../glossary.md).
#
# The last question closes Part I and needs all of it. Your functions from exercises 02 to 05 will be of use there; so are those of the
# same names in `course_utils.quantize`. Three differ there: `nearest_codes` takes the thresholds and the codes in order, and no codebook; `unpack` takes no count, so cut
# off what is too many; `quantize_scales` returns one object.

# %%
import torch
from torch import nn

from course_utils import models
from course_utils.checks import check, hint, progress, reveal

# %% [markdown]
# Where you get stuck, ask for a hint in a cell of your own: `hint("06.1")` gives a stronger one each time.

# %%
hint("06.1", 1)

# %% [markdown]
# ## Question 06.1: Multiply four codes
# Difficulty 2/5, 6 minutes, 1 point
#
# A linear layer has four inputs and one output. Its weights are int4 codes in the two bytes `0x2F` and `0x69`, and its one scale is
# 2.8. The inputs are 1, 2, -1 and 3. What is the output? Work it out on paper.

# %%
### BEGIN SOLUTION
output = 0.8 * 1 - 0.4 * 2 + 2.4 * -1 - 2.8 * 3
### END SOLUTION

# %%
check("06.1", output)

# %% [markdown]
# ## Question 06.2: Write the layer
# Difficulty 4/5, 15 minutes, 4 points
#
# Write the forward pass of a linear layer in 4 bits, from the bytes on.
#
# - `x` has the inputs in its last dimension; its dtype is float32, float16 or bfloat16, and the output has the same.
# - `packed` holds two codes in a byte, the first in the upper half. It is a uint8 tensor of shape (bytes, 1). If the number of weights
#   is odd, the last half is padding.
# - `absmax` holds a float32 scale for each block of `block_size` weights. Blocks run over the flattened weight, across the ends of
#   rows, and the last one may be shorter.
# - `codebook` is a float32 tensor of 16 values, by code.
# - `shape` is (outputs, inputs).
# - `compute_dtype` is `"float32"`, `"float16"` or `"bfloat16"`. `getattr(torch, "float16")` is `torch.float16`.
#
# Value times scale is computed in float32 and rounded to the compute dtype once.


# %%
def linear_4bit(
    x: torch.Tensor,
    packed: torch.Tensor,
    absmax: torch.Tensor,
    codebook: torch.Tensor,
    shape: tuple[int, int],
    compute_dtype: str,
    block_size: int = 64,
) -> torch.Tensor:
    """x @ weight.T, with a weight that is read back from 4 bits."""
    ### BEGIN SOLUTION
    dtype = getattr(torch, compute_dtype)
    count = shape[0] * shape[1]
    flat = packed.view(-1)
    codes = torch.stack([flat >> 4, flat & 0b1111], dim=1).view(-1)[:count]
    scales = absmax.repeat_interleave(block_size)[:count]
    weight = (codebook[codes.int()] * scales).view(*shape)
    return nn.functional.linear(x.to(dtype), weight.to(dtype)).to(x.dtype)
    ### END SOLUTION


# %%
check("06.2", linear_4bit)

# %% [markdown]
# ## Question 06.3: Choose the layers
# Difficulty 3/5, 8 minutes, 2 points
#
# Which layers are replaced? `layers` is a dict from the name of a layer to its class, such as `{"lm_head": "Linear"}`, in the order in
# which the model has them. A layer is replaced if its class is `Linear` and nothing else, and if neither its whole name nor the last
# part of it, after the last dot, is in the list `skip`.


# %%
def layers_to_replace(layers: dict[str, str], skip: list[str]) -> list[str]:
    """The names of the layers to replace, in order."""
    ### BEGIN SOLUTION
    names = []
    for name, kind in layers.items():
        last = name.split(".")[-1]
        if kind == "Linear" and name not in skip and last not in skip:
            names.append(name)
    return names
    ### END SOLUTION


# %%
check("06.3", layers_to_replace)

# %% [markdown]
# ## Question 06.4: Send a gradient back
# Difficulty 3/5, 6 minutes, 2 points
#
# A linear layer in 4 bits has four inputs and two outputs. Read back, its weights are
#
# | | | | | |
# | --- | --- | --- | --- | --- |
# | first output | 0.8 | -0.4 | 2.4 | -2.8 |
# | second output | 0.5 | 1 | -1.5 | 2 |
#
# The inputs are 1, 2, -1 and 3. The loss is the first output plus three times the second. What is the gradient of the loss for the
# second input?

# %%
### BEGIN SOLUTION
gradient = -0.4 + 3 * 1.0
### END SOLUTION

# %%
check("06.4", gradient)

# %% [markdown]
# ## Question 06.5: Weigh a layer while it computes
# Difficulty 2/5, 5 minutes, 1 point
#
# The largest matrices of Llama-2-70B have 28,672 rows and 8,192 columns. One of them is stored in 4 bits, in blocks of 64, with float32
# scales. How many MB does it take while the layer computes in bfloat16, the weight that was read back included? An MB is $10^6$ bytes,
# and one decimal will do.

# %%
### BEGIN SOLUTION
megabytes = 28_672 * 8_192 * (4.5 + 16) / 8 / 10**6
### END SOLUTION

# %%
check("06.5", megabytes)

# %% [markdown]
# ## Question 06.6: Bound the packed path
# Difficulty 4/5, 10 minutes, 3 points
#
# On the packed path of some CPUs, input, value, scale and output are each rounded to bfloat16. How far can an output be from the exact
# one, at most? Leave out the rounding of the float32 sum between them.
#
# `x` has the shape (rows, inputs), `weight` (outputs, inputs); the result has (rows, outputs). All are float32. For `x` = [[1, -2]] and a weight with
# the one row [3, 1] it is [[0.0786]], rounded.


# %%
def packed_bound(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """For each output, the largest distance that four roundings to bfloat16 can make."""
    ### BEGIN SOLUTION
    magnitude = x.abs() @ weight.abs().T
    return ((1 + 2**-8) ** 4 - 1) * magnitude
    ### END SOLUTION


# %%
check("06.6", packed_bound)

# %% [markdown]
# ## Question 06.7: Defend the head
# Difficulty 3/5, 10 minutes, 4 points
#
# "The head is a linear layer like any other. Leaving it in 16 bits is waste." Say in a few sentences why it stays, what quantizing it
# would gain and cost, with numbers from the lesson, and when you would do it all the same.

# %%
### BEGIN SOLUTION
why_the_head_stays = """
In Llama-2-7B the head in 4 bits would save 0.19 GB of 4.17 GB, 4.5 %. Its price can't be read off one number: alone it moves
the logits of abacus by 8.4 %, further than any other matrix, and beside the 28 layers it doesn't show. An error of the head is
an error of the scores. In many models it is tied to the embedding, which stays anyway. I would do it where the head is a large part of the model, as in abacus, or where little is missing to make a
model fit, and compare the answers.
"""
### END SOLUTION

# %%
check("06.7", why_the_head_stays)

# %% [markdown]
# Once you have written something, the next cell sets it beside a model answer and the rubric by which it is graded. Give yourself the
# points.

# %%
if isinstance(why_the_head_stays, str):
    reveal("06.7")

# %% [markdown]
# ## Question 06.8: Close Part I: all of abacus, by your own codebook
# Difficulty 5/5, 25 minutes, 6 points
#
# Put every linear layer of abacus into 4 bits, **the head too**, with a codebook that is given: 16 ascending values with an exact 0.
# Blocks of 64, scales in float32, compute dtype float32. Then return three things:
#
# - the text of `models.ask(model, tokenizer, question)`,
# - the bytes of packed codes and scales, over all layers that you have replaced,
# - the highest score for the token after the question, `logits[0, -1].max()`, as a Python number.
#
# This takes everything from lesson 02 on: blocks and their scales, the nearest of sixteen values, packing, counting bytes, a layer, and
# a model whose layers are replaced. Use your own functions, or those of `course_utils`.


# %%
def abacus_in_4_bits(question: str, codebook: list[float]) -> tuple[str, int, float]:
    """The text, the bytes and the highest score of abacus with 29 layers in 4 bits."""
    ### BEGIN SOLUTION
    from course_utils.codebooks import resolve_codebook
    from course_utils.quantize import nearest_codes, pack, scale_blocks

    book = resolve_codebook(codebook)

    class OwnLayer(nn.Module):
        def __init__(self, weight):
            super().__init__()
            scaled, self.absmax = scale_blocks(weight.detach().flatten(), 64)
            self.packed = pack(nearest_codes(scaled, book.thresholds(), book.codes_in_order().to(weight.device)))
            self.values = book.values.to(weight.device)
            self.shape = tuple(weight.shape)

        def forward(self, x):
            return linear_4bit(x, self.packed, self.absmax, self.values, self.shape, "float32")

    model, tokenizer = models.load(models.ABACUS)
    nbytes = 0
    for name, linear in list(model.named_modules()):
        if type(linear) is nn.Linear:
            layer = OwnLayer(linear.weight)
            nbytes += layer.packed.nbytes + layer.absmax.nbytes
            model.set_submodule(name, layer)
    tokens = tokenizer(question, return_tensors="pt").to(model.device)
    with torch.no_grad():
        highest = model(**tokens).logits[0, -1].max().item()
    return models.ask(model, tokenizer, question), nbytes, highest
    ### END SOLUTION


# %%
check("06.8", abacus_in_4_bits)

# %% [markdown]
# Ask it. The codebook below has even steps, seven down and eight up.

# %%
even_steps = [place / 7 for place in range(-7, 0)] + [place / 8 for place in range(9)]
try:
    text, nbytes, highest = abacus_in_4_bits("What is 2+2?", even_steps)
    print(text)
    print(f"{nbytes:,} bytes for 946,176 weights: {8 * nbytes / 946_176} bits a weight")
except (NotImplementedError, TypeError):
    print("Question 06.8 is still to be answered.")

# %% [markdown]
# ## Where you are

# %%
progress("06")
