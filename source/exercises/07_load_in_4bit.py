# %% [markdown]
# # Exercise 07: load in four bits
#
# Eight questions, about 70 minutes. They belong to the lesson [Load in four bits](../notebooks/07_load_in_4bit.ipynb). Words are
# explained in the [glossary](../glossary.md).

# %%
from course_utils.checks import check, hint, progress, reveal

# %% [markdown]
# Where you get stuck, ask for a hint in a cell of your own: `hint("07.1")` gives a stronger one each time.

# %%
hint("07.1", 1)

# %% [markdown]
# ## Question 07.1: Find what isn't reported
# Difficulty 2/5, 6 minutes, 1 point
#
# One matrix of 4096 x 4096 weights is loaded in nf4 with double quantization, in blocks of 64. How many bytes does it keep that
# `get_memory_footprint()` does not report? Count the codebooks, of which each matrix has its own copies.

# %%
### BEGIN SOLUTION
scales = 4096 * 4096 // 64
not_reported = scales + scales // 256 * 4 + 4 + (16 + 256) * 4
### END SOLUTION

# %%
check("07.1", not_reported)

# %% [markdown]
# ## Question 07.2: Fill in what nobody set
# Difficulty 2/5, 8 minutes, 2 points
#
# `given` is a dict of the arguments that somebody passes to `BitsAndBytesConfig`, with dtypes as text, such as
# `{"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}`. Return what is used then, as a list of four: the codebook
# (`"nf4"` or `"fp4"`), the compute dtype, double quantization (`True` or `False`), and the storage dtype.
#
# A dtype may be given as `None`, which means the default. A name that `BitsAndBytesConfig` doesn't know is ignored, as transformers
# ignores it. `load_in_4bit` may be missing: say what the four settings are all the same.


# %%
def settings_used(given: dict) -> list:
    """[codebook, compute dtype, double quantization, storage dtype]."""
    ### BEGIN SOLUTION
    return [
        given.get("bnb_4bit_quant_type", "fp4"),
        given.get("bnb_4bit_compute_dtype") or "float32",
        given.get("bnb_4bit_use_double_quant", False),
        given.get("bnb_4bit_quant_storage") or "uint8",
    ]
    ### END SOLUTION


# %%
check("07.2", settings_used)

# %% [markdown]
# ## Question 07.3: Count what is reported, and what is taken
# Difficulty 3/5, 14 minutes, 3 points
#
# `weights` is a list of pairs, such as `["linear", 16384]`: what a weight is, and how many numbers it has. The kinds are `"linear"`,
# `"head"`, `"embedding"`, `"norm"` and `"experts"` (fused, as transformers 5 has them). The model is loaded in nf4 with transformers 5;
# what isn't quantized is in bfloat16. Every count of a linear layer is a multiple of 64.
#
# Return two numbers of bytes: what `get_memory_footprint()` reports (there are no buffers), and what is taken, codebooks included.
# For `[["linear", 16384]]` without double quantization it is `[8192, 9280]`.


# %%
def two_footprints(weights: list, double_quant: bool) -> list[int]:
    """[bytes reported, bytes taken]."""
    ### BEGIN SOLUTION
    reported = taken = 0
    for kind, count in weights:
        if kind == "linear":
            blocks = count // 64
            scales = blocks + -(-blocks // 256) * 4 + 4 if double_quant else 4 * blocks
            codebooks = 4 * (16 + 256) if double_quant else 4 * 16
            reported += count // 2
            taken += count // 2 + scales + codebooks
        else:
            reported += 2 * count
            taken += 2 * count
    return [reported, taken]
    ### END SOLUTION


# %%
check("07.3", two_footprints)

# %% [markdown]
# ## Question 07.4: Predict the peak
# Difficulty 3/5, 12 minutes, 3 points
#
# `weights` is a list of pairs in the order in which they are loaded: how many numbers, and whether the weight is quantized. Each is read in
# 16 bits. If it is quantized, its 4 bits are made while the 16 are there: packed codes, and a float32 scale for every 64 weights. Then the 16 bits are
# dropped, before the next weight is read. Counts are multiples of 64; leave out codebooks and intermediate results.
#
# Return the largest number of bytes that is there at any moment. For `[[128, True]]` it is 256 + 72 = 328.


# %%
def peak_while_loading(weights: list) -> int:
    """The most bytes that are there at once."""
    ### BEGIN SOLUTION
    kept = peak = 0
    for count, quantized in weights:
        in_4_bits = count // 2 + count // 64 * 4
        now = kept + 2 * count + (in_4_bits if quantized else 0)
        peak = max(peak, now)
        kept += in_4_bits if quantized else 2 * count
    return peak
    ### END SOLUTION


# %%
check("07.4", peak_while_loading)

# %% [markdown]
# ## Question 07.5: Find the experts
# Difficulty 2/5, 7 minutes, 2 points
#
# A mixture of experts has 16 decoder layers and a hidden size of 2048. In each layer the attention has four matrices of 2048 x 2048, and
# there are 64 experts, each of three matrices of 2048 x 1024, and a router of 64 x 2048. The embedding and the head have 50,304 x 2048
# each; the head isn't tied. Norms are too small to matter.
#
# It is loaded with `load_in_4bit=True` and transformers 5. What percentage of its weights is in 4 bits? Two decimals will do.

# %%
### BEGIN SOLUTION
attention = 16 * 4 * 2048 * 2048
experts = 16 * 64 * 3 * 2048 * 1024
others = 16 * 64 * 2048 + 2 * 50_304 * 2048
percent_in_4_bits = 100 * attention / (attention + experts + others)
### END SOLUTION

# %%
check("07.5", percent_in_4_bits)

# %% [markdown]
# ## Question 07.6: Weigh it after the first forward pass
# Difficulty 2/5, 5 minutes, 1 point
#
# The linear layers of Llama-2-7B have 6,476,005,376 weights. They are in nf4 with double quantization, in blocks of 64, and the model has
# run once on a CPU with avx512_bf16, on the packed path. How many bytes do their scales take now?

# %%
### BEGIN SOLUTION
bytes_of_scales = 6_476_005_376 // 64 * 2
### END SOLUTION

# %%
check("07.6", bytes_of_scales)

# %% [markdown]
# ## Question 07.7: Read the dtype
# Difficulty 2/5, 8 minutes, 3 points
#
# A program prints `Model dtype: torch.float16`, and somebody asks: "So it isn't quantized?" Answer in a few sentences. What does the line
# tell, how would you find out, and what does it say about the format in which the model multiplies?

# %%
### BEGIN SOLUTION
what_the_dtype_says = """
The line doesn't tell. It is the dtype of the first parameter that is a float, the embedding, which is never quantized. I would look at
a layer: a Linear4bit with a weight of dtype uint8 and a quant_state is in 4 bits. What it multiplies in is layer.compute_dtype,
float32 unless something else was set.
"""
### END SOLUTION

# %%
check("07.7", what_the_dtype_says)

# %% [markdown]
# The next cell sets what you wrote beside a model answer and the rubric by which it is graded. Give yourself the points.

# %%
if isinstance(what_the_dtype_says, str):
    reveal("07.7")

# %% [markdown]
# ## Question 07.8: Explain a colleague's Mixtral
# Difficulty 3/5, 10 minutes, 4 points
#
# A colleague writes: "A blog says that Mixtral 8x7B runs on one 24 GB card in 4 bits. I use the same configuration with transformers 5, it loads
# without a warning on a machine with 128 GB, and takes over 90 GB. What am I doing wrong?" Answer: what happened, how to see it, why
# the blog says otherwise, and what can be done.

# %%
### BEGIN SOLUTION
why_it_does_not_fit = """
Nothing is wrong with the configuration. Mixtral's weights are mostly experts, and transformers 5 keeps the experts of a layer in one
tensor of three dimensions. Only linear layers are put in 4 bits, so about 91 GB are left (bitsandbytes #1849). Print dtype and shape of the parameters
of one mlp to see it. The blog is from the time when experts were linear layers, and even then it was 24.5 GB without a cache. Use
several cards, a format that quantizes experts, or a smaller model. No setting helps, but replace_parameter_4bit of bitsandbytes can put
the experts in 4 bits after loading. It is experimental, and the 16 bits must fit into memory first.
"""
### END SOLUTION

# %%
check("07.8", why_it_does_not_fit)

# %%
if isinstance(why_it_does_not_fit, str):
    reveal("07.8")

# %% [markdown]
# ## Where you are

# %%
progress("07")
