# %% [markdown]
# # Exercise 12: save and reload
#
# Eight questions, about 84 minutes. They belong to the lesson [Save and reload](../notebooks/12_save_and_reload.ipynb). Words are
# explained in the [glossary](../glossary.md).
#
# None of them needs bitsandbytes. The last one is a loader.

# %%
import json

import torch

from course_utils.checks import check, hint, progress, reveal

# %% [markdown]
# Where you get stuck, ask for a hint in a cell of your own: `hint("12.1")` gives a stronger one each time.

# %%
hint("12.1", 1)

# %% [markdown]
# ## Question 12.1: Weigh a saved weight
# Difficulty 3/5, 8 minutes, 2 points
#
# A weight of 4096 x 4096 numbers was saved in NF4 with double quantization, in blocks of 64. How many bytes do its tensors take in the
# file, without the text of its quantization state and without the header?

# %%
### BEGIN SOLUTION
weights = 4096 * 4096
blocks = weights // 64
packed, absmax, nested_absmax = weights // 2, blocks, 4 * (blocks // 256)
nbytes = packed + absmax + nested_absmax + 4 * 16 + 4 * 256
### END SOLUTION

# %%
check("12.1", nbytes)

# %% [markdown]
# ## Question 12.2: Read a safetensors file
# Difficulty 3/5, 12 minutes, 3 points
#
# `raw` is a whole safetensors file, as a list of its bytes: numbers from 0 to 255. Return the bytes of the tensor called `name`, as a
# list of numbers too. Use neither safetensors nor torch.


# %%
def bytes_of(raw: list[int], name: str) -> list[int]:
    """The bytes of one tensor of a safetensors file."""
    ### BEGIN SOLUTION
    data = bytes(raw)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    start, end = header[name]["data_offsets"]
    return list(data[8 + length + start : 8 + length + end])
    ### END SOLUTION


# %%
check("12.2", bytes_of)

# %% [markdown]
# ## Question 12.3: Read a weight by hand
# Difficulty 3/5, 8 minutes, 2 points
#
# From a file with double quantization: the first byte of the packed codes is `0xF3`. The first scale has a code whose value in
# nested_quant_map is 0.9; its nested_absmax is 0.5, and nested_offset is 0.2. In NF4 code 3 has the value -0.3949, and code 15 the
# value 1. What is the **second** weight?

# %%
### BEGIN SOLUTION
second_weight = -0.3949 * (0.9 * 0.5 + 0.2)
### END SOLUTION

# %%
check("12.3", second_weight)

# %% [markdown]
# ## Question 12.4: Find the files of a weight
# Difficulty 2/5, 8 minutes, 2 points
#
# A model was saved in shards. `weight_map`, from its index, is a dict from the name of each tensor to its file. The tensors of one weight
# may be in several files. Which files does one have to open for `weight`, with all its parts? Return a list of their names, sorted, each once.
#
# The parts of `up.weight` are the tensors whose names begin with `up.weight.`, with the dot.


# %%
def files_of(weight_map: dict[str, str], weight: str) -> list[str]:
    """The files that hold a weight or one of its parts."""
    ### BEGIN SOLUTION
    files = set()
    for name, file in weight_map.items():
        if name == weight or name.startswith(weight + "."):
            files.add(file)
    return sorted(files)
    ### END SOLUTION


# %%
check("12.4", files_of)

# %% [markdown]
# ## Question 12.5: Find blocks that can't be right
# Difficulty 4/5, 12 minutes, 3 points
#
# The lesson says that a code that has changed can't be seen, most of the time. Here is the exception. In each block the largest weight was
# divided by itself, so a good block of NF4 has a weight with the value 1 or -1. A block without one is suspicious, unless all of its
# weights are 0.
#
# `packed` is a uint8 tensor of packed NF4 codes, and the number of weights is a multiple of `block_size`. Return the places of the
# suspicious blocks, counted from 0. For the bytes 7F 73 76 58 77 77 17 08 in blocks of 4 it is `[1]`.


# %%
def suspicious_blocks(packed: torch.Tensor, block_size: int) -> list[int]:
    """The places of the blocks that have no largest weight, although they are not all zero."""
    ### BEGIN SOLUTION
    codes = torch.stack([packed >> 4, packed & 0b1111], dim=1).view(-1, block_size)
    largest = ((codes == 0) | (codes == 15)).any(dim=1)
    zeros = (codes == 7).all(dim=1)
    return torch.nonzero(~largest & ~zeros).view(-1).tolist()
    ### END SOLUTION


# %%
check("12.5", suspicious_blocks)

# %% [markdown]
# ## Question 12.6: Survive the merge
# Difficulty 3/5, 6 minutes, 2 points
#
# A block of an NF4 weight has the scale 0.3. One of its weights has the value 0; the next values in the codebook are 0.0796 above and
# -0.0911 below. An adapter is merged. The adapter makes this weight larger. By how much at least, if something of the change is to be
# left after rounding? The scale of the block stays as it is.

# %%
### BEGIN SOLUTION
change = 0.3 * 0.0796 / 2
### END SOLUTION

# %%
check("12.6", change)

# %% [markdown]
# ## Question 12.7: Say what is left
# Difficulty 3/5, 10 minutes, 4 points
#
# Ada has trained an adapter on a model in NF4, merged it with `merge_and_unload`, and saved the result in 4 bits. To save space she has
# deleted the adapter, and she doesn't know any more from which model she started. Say in a few sentences what she still has, what is
# lost of the original and of the adapter, what `dequantize()` would bring her, and what she should have kept.

# %%
### BEGIN SOLUTION
what_is_left = """
Codes and scales are there to the bit, so the model answers as when she saved it. The original is gone, and dequantize()
brings back its size and not its numbers. If the adapter changed weights by little, merging has rounded most of that away,
and what arrived can't be taken out. She should have kept the adapter by itself, and the exact name of the original.
"""
### END SOLUTION

# %%
check("12.7", what_is_left)

# %% [markdown]
# Once you have written something, the next cell sets it beside a model answer and the rubric by which it is graded. Give yourself the
# points.

# %%
if isinstance(what_is_left, str):
    reveal("12.7")

# %% [markdown]
# ## Question 12.8: Load a weight from its file
# Difficulty 4/5, 20 minutes, 5 points
#
# `tensors` is a dict with what a file holds for one weight: `weight`, `weight.absmax`, `weight.quant_map`,
# `weight.quant_state.bitsandbytes__nf4` (or `..._fp4`), and with double quantization `weight.nested_absmax` and
# `weight.nested_quant_map`. Return the weight in float32, in its shape. All that you need to know stands in the tensors; the number
# of weights is even.


# %%
def weight_from_tensors(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """A weight in float32, from the tensors that a file holds for it."""
    ### BEGIN SOLUTION
    state_name = next(name for name in tensors if "quant_state" in name)
    state = json.loads(bytes(tensors[state_name].tolist()))
    scales = tensors["weight.absmax"]
    if "nested_offset" in state:
        values = tensors["weight.nested_quant_map"][scales.int()]
        of_scales = tensors["weight.nested_absmax"].repeat_interleave(state["nested_blocksize"])[: len(scales)]
        scales = values * of_scales + state["nested_offset"]
    packed = tensors["weight"].view(-1)
    codes = torch.stack([packed >> 4, packed & 0b1111], dim=1).view(-1).int()
    weights = tensors["weight.quant_map"][codes] * scales.repeat_interleave(state["blocksize"])[: len(codes)]
    return weights.view(state["shape"])
    ### END SOLUTION


# %%
check("12.8", weight_from_tensors)

# %% [markdown]
# ## Where you are

# %%
progress("12")
