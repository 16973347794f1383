# %% [markdown]
# # Count the bits
#
# Will this model fit on my machine? People answer with rules of thumb: "70B needs 140 GB", "7B in 4 bits is 3.5 GB", "4 bits save 87.5 %".
# Each of them leaves something out. This lesson counts, before anything is loaded, and then checks the count on a model that is.
#
# | | |
# | --- | --- |
# | **What you'll do** | take three number formats apart, count the weights of four large models without downloading them, and predict the bytes of a 4-bit model, exactly but for its codebooks |
# | **What you'll learn** | what a weight costs in 32, 16, 8 and 4 bits, what else takes memory, and what fits where |
# | **What you need** | [lesson 00](00_start_here.ipynb) |
# | **Time** | 40 minutes |
#
# Words in *italics* are explained here and in the [glossary](../glossary.md).

# %% [markdown]
# ## One number, three formats
#
# A *bit* is one binary digit; eight of them are a *byte*. A weight is stored in a *floating-point format*: some bits for the sign, some for the *exponent*,
# some for the *mantissa*. The number is
#
# $$(-1)^{\text{sign}} \times 2^{\,e - \text{bias}} \times \left(1 + \frac{m}{2^M}\right)$$
#
# where $e$ is the exponent field read as an integer, $m$ is the mantissa field read as an integer, and $M$ is the number of mantissa bits.
# The bias is a fixed number, about half of the largest $e$, so that exponents can be negative.
#
# Take -6.5. Written as a power of two times a number from 1 to 2, it is $-1 \times 2^2 \times 1.625$.
#
# **Predict.** float32 has 8 exponent bits and the bias 127. Which $e$ is stored?

# %%
import struct

pattern = struct.unpack(">I", struct.pack(">f", -6.5))[0]  # the four bytes of the float32, read as one whole number
bits = f"{pattern:032b}"
sign, exponent, mantissa = bits[0], bits[1:9], bits[9:]
print("sign    ", sign)
print("exponent", exponent, "=", int(exponent, 2))
print("mantissa", mantissa, "=", int(mantissa, 2))

# %% [markdown]
# 129, because $129 - 127 = 2$. The 1 before the mantissa is in no field, since nearly all numbers have it; it is called the *hidden one*.
#
# Now put the number together again from the three fields, by the formula.

# %%
e, m = int(exponent, 2), int(mantissa, 2)
print("1 + m / 2**23 =", 1 + m / 2**23)
print("the number    =", (-1) ** int(sign) * 2.0 ** (e - 127) * (1 + m / 2**23))

# %% [markdown]
# ## The same number in 16 bits
#
# Two formats have 16 bits. *float16* spends 5 of them on the exponent and 10 on the mantissa. *bfloat16* spends 8 and 7.
# `float_fields` in `course_utils.memory` does the cutting that you just did, for all three.

# %%
import torch
from tabulate import tabulate

from course_utils.memory import float_fields

formats = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
rows = [[name, *float_fields(-6.5, dtype)] for name, dtype in formats.items()]
print(tabulate(rows, ["format", "sign", "exponent", "mantissa"], disable_numparse=True))

# %% [markdown]
# bfloat16 has the exponent field of float32, with the same bias 127, and room for 7 bits of the mantissa. float16 has another exponent field with another bias, 15,
# and $10001_2 - 15 = 17 - 15 = 2$ again.
#
# (One rule is left out here: an exponent field of only zeros, or only ones, is read differently, so that there can be 0 and infinity. Exercise 01 has the first.)
#
# The exponent bits decide how large a number may be, the mantissa bits how finely numbers are spaced.
#
# **Predict.** bfloat16 has 7 mantissa bits. Which is the first bfloat16 after 1?

# %%
rows = []
for name, dtype in formats.items():
    mantissa_bits = len(float_fields(1.0, dtype)[2])
    rows.append([name, mantissa_bits, 1 + 2.0**-mantissa_bits, torch.finfo(dtype).max])
headers = ["format", "mantissa bits", "first number after 1", "largest number"]
print(tabulate(rows, headers, floatfmt=("", "", ".8f", ".5g")))

# %% [markdown]
# $1 + 2^{-7} = 1.0078125$. Nothing lies between 1 and that. And 65,504 is the largest float16: a sum that grows too far beyond it becomes infinite.
# PyTorch agrees, for each format:

# %%
for name, dtype in formats.items():
    one = torch.tensor(1.0, dtype=dtype)
    after_one = torch.nextafter(one, torch.tensor(2.0, dtype=dtype)).item()
    by_hand = 1 + 2.0 ** -len(float_fields(1.0, dtype)[2])
    print(f"{name:9}", "same number:", after_one == by_hand)

# %% [markdown]
# Here is what that does to four numbers.

# %%
numbers = [0.1, 1.001, 1001.0, 70000.0]
rows = []
for x in numbers:
    stored = [torch.tensor(x, dtype=dtype).item() for dtype in formats.values()]
    rows.append([f"{value:.10g}" for value in [x, *stored]])
print(tabulate(rows, ["number", *formats], disable_numparse=True))

# %% [markdown]
# No format holds 0.1 exactly. bfloat16 can't tell 1.001 from 1, and it has no 1001: from 512 to 1024 its numbers are 4 apart, because the spacing doubles at each power of two.
# float16 has no 70000. Large models are shipped in 16 bits all the same, as you will see below.

# %% [markdown]
# ## Four bits
#
# Four bits make $2^4 = 16$ patterns. A 4-bit weight is a *code*: the number of a place in a list of 16 values, the *codebook*. Which values are good ones is the subject of
# lessons 02 to 04.
#
# All weights share one codebook, whose values lie between -1 and 1. So weights must be brought into that range: they are divided by the largest absolute value
# among them, the *absmax*. One large weight would push all others towards 0. Therefore it is done for a few weights at a time, a *block*, usually 64 in a row.
# To get back from codes to weights the absmax of each block is needed. It has to be stored, and is called the block's *scale*.
#
# **Predict.** A block has 64 weights of 4 bits and one scale of 32 bits. How many bits per weight is that?

# %%
block_size = 64
bits_in_a_block = block_size * 4 + 32
print("bits per weight:", bits_in_a_block / block_size)

# %% [markdown]
# 4.5, not 4. The scales can be quantized too: 8 bits for each, and for every 256 of them one more scale of 32 bits. This is
# *double quantization*, or *nested quantization* (lesson 05).

# %%
bits_for_scales = 8 / 64 + 32 / (64 * 256)
print("bits per weight:", 4 + bits_for_scales)
print("saved          :", 4.5 - (4 + bits_for_scales))

# %% [markdown]
# `bits_per_weight` of `course_utils.memory` does this sum from here on.

# %% [markdown]
# ## How many weights?
#
# "7B" stands for seven billion weights, roughly. To count them you need the model's *configuration*, a page of sizes, and not the weights.
#
# First by hand, on `abacus`. Its configuration says:

# %%
from course_utils import models

model, tokenizer = models.load(models.ABACUS)
config = model.config
for field in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"):
    print(f"{field:18} {getattr(config, field)}")

# %% [markdown]
# A model reads and writes *tokens*: words, or pieces of them. The *vocabulary* is the list of all tokens it knows. The *embedding* turns a token into a vector of
# `hidden_size` numbers; it has one row for each token of the vocabulary. The *head* turns the last vector into a score for every token, and has as many rows.
#
# Between them is a stack of *decoder layers*. Each has seven linear layers, that is, seven matrices. Four belong to the *attention*, in which a token looks back at the tokens
# before it. These four make its query, its key, its value (explained below) and its output; each is `hidden_size` x `hidden_size` here. Three belong to the *MLP*, which works
# on each token by itself: gate, up and down. Each is `hidden_size` x `intermediate_size`.
# Two *norms* in each decoder layer, and one at the end, bring vectors to a standard size and hold `hidden_size` numbers each.

# %%
hidden, mlp, layers, vocabulary = 128, 384, 4, 736
linear = layers * (4 * hidden * hidden + 3 * hidden * mlp)
norms = (2 * layers + 1) * hidden
embedding = head = vocabulary * hidden
by_hand = linear + norms + embedding + head
print("linear layers", linear)
print("norms        ", norms)
print("embedding    ", embedding)
print("head         ", head)
print("together     ", by_hand, " same number:", by_hand == model.num_parameters())
print(f"embedding and head: {(embedding + head) / by_hand:.1%}")

# %% [markdown]
# Now the large ones. PyTorch can build a model on the *meta device*: every tensor has a shape and a dtype, and no data.
# `models.architecture` does so from a configuration in the folder [models/architectures](../models/architectures/README.md).

# %%
llama_7b = models.architecture("Llama-2-7b")
weight = llama_7b.get_submodule("model.layers.0.mlp.up_proj").weight
print(tuple(weight.shape), weight.device)
print(f"{llama_7b.num_parameters():,} weights, shipped in {llama_7b.config.dtype}")

# %% [markdown]
# 6.7 billion, and no memory used. What are they?
#
# They fall into the same groups, and a new one, the *experts*, which are explained below. "The rest" are the norms and, in Mixtral, the small matrices that choose among the experts.

# %%
from course_utils.memory import weight_groups

names = ["Llama-2-7b", "Llama-2-13b", "Llama-2-70b", "Mixtral-8x7B"]
architectures = {name: models.architecture(name) for name in names}
groups = {name: weight_groups(architecture) for name, architecture in architectures.items()}
rows = [[name, *(f"{n / 1e9:.3f}" for n in group.values())] for name, group in groups.items()]
headers = ["billions of weights", *groups["Llama-2-7b"]]
print(tabulate(rows, headers, disable_numparse=True))

# %% [markdown]
# **Predict.** In abacus 18.1 % of the weights are in the embedding and the head. In Llama-2-7B, is the share larger or smaller?

# %%
for name, group in groups.items():
    share = (group["embedding"] + group["head"]) / sum(group.values())
    print(f"{name:13} embedding and head: {share:.1%} of {sum(group.values()):,} weights")

# %% [markdown]
# Smaller: 3.9 % in the 7B model, and less in the larger ones.
#
# Mixtral is different. Almost all of its weights are in its experts: each decoder layer has several MLPs, and each token uses only some of them.

# %%
mixtral = architectures["Mixtral-8x7B"]
print(mixtral.config.num_local_experts, "experts, of which a token uses", mixtral.config.num_experts_per_tok)
experts = mixtral.get_parameter("model.layers.0.mlp.experts.gate_up_proj")
print("one tensor of a decoder layer:", tuple(experts.shape))

# %% [markdown]
# All eight have to be in memory, since the next token may need any of them. They lie in two tensors of three dimensions in each decoder layer, of which this is one. Keep that in mind.

# %% [markdown]
# ## Weights times bits
#
# The simplest count gives every weight the same number of bits. A *GB* is $10^9$ bytes in this course.

# %%
rows = []
for name, group in groups.items():
    weights = sum(group.values())
    rows.append([name, *(f"{weights * bits / 8 / 1e9:.1f}" for bits in (32, 16, 8, 4))])
print(tabulate(rows, ["GB", "32 bits", "16 bits", "8 bits", "4 bits"], disable_numparse=True))

# %% [markdown]
# Hold the lesson that this course grew from against it.
#
# - Llama 2 70B or Mixtral "require 140GB+ in full precision". If full precision means float32, that is true of both, and far too low: 276 and 187 GB.
#   The figure 140 is 70B in **16** bits, 138 GB. Mixtral in 16 bits takes 93 GB.
# - 7B takes "≈ 3.5GB": 3.4 GB, if every weight took 4 bits and nothing else took memory. Neither is so.
# - 4 bits let you run them "on a single 24GB GPU": 70B takes 34.5 GB by this simplest count, which is too low.

# %% [markdown]
# ## What 4-bit loading really leaves
#
# Two things are missing: the scales, and the weights that stay as they are. By default transformers has bitsandbytes quantize the linear layers but for the head. The embedding, the head and the norms keep their 16 bits.
#
# With half a byte for each of its 6.738 billion weights, Llama-2-7B takes 3.37 GB. Add half a bit for each of the 6.476 billion that are quantized, and 12 bits for each that isn't.
# (Without double quantization; that comes next.)
#
# **Predict.** By how much is 3.37 GB too low?

# %%
from course_utils.memory import bits_per_weight

linear = groups["Llama-2-7b"]["linear layers"]
others = sum(groups["Llama-2-7b"].values()) - linear
everything_in_4 = (linear + others) * 4 / 8
scales = linear * 0.5 / 8
kept_in_16 = others * (16 - 4) / 8
print(f"every weight in 4 bits     : {everything_in_4 / 1e9:.2f} GB")
print(f"scales of the linear layers: {scales / 1e9:.2f} GB")
print(f"12 more bits for the others: {kept_in_16 / 1e9:.2f} GB")
print(f"together                   : {(everything_in_4 + scales + kept_in_16) / 1e9:.2f} GB")
saved = linear * (4.5 - bits_per_weight(double_quant=True)) / 8
print(f"with double quantization   : {(everything_in_4 + scales + kept_in_16 - saved) / 1e9:.2f} GB")
print(f"the others, in 16 bits     : {others * 16 / 8 / 1e9:.2f} GB")

# %% [markdown]
# By 0.80 GB: it takes 4.17 GB. Half of the 0.80 GB are scales, the other half is the price of the embedding, the head and the norms. With double quantization it takes 3.87 GB.
#
# ### The same bytes
#
# A formula should be checked on something real. `tensor_bytes_in_4bit` counts the bytes of one quantized matrix: codes, scales, and with double quantization their scales
# and one more number, an offset (lesson 05). Predict the bytes of `abacus` in 4 bits, with its other weights in bfloat16.

# %%
from course_utils.memory import model_bytes_in_4bit, tensor_bytes_in_4bit

predicted = {}
for double_quant in (False, True):
    one_matrix = tensor_bytes_in_4bit(128 * 128, double_quant=double_quant)
    predicted[double_quant] = model_bytes_in_4bit(model, double_quant)
    print("double quantization:", double_quant)
    print(f"  a matrix of 128 x 128: {one_matrix:,} bytes")
    print(f"  the whole model      : {predicted[double_quant]:,} bytes")

# %% [markdown]
# Now load it, and add up the bytes of the tensors that are there.

# %%
from transformers import BitsAndBytesConfig

from course_utils.memory import stored_bytes

for double_quant in (False, True):
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double_quant
    )
    loaded, _ = models.load(models.ABACUS, quantization_config=quantization, dtype=torch.bfloat16)
    parts = stored_bytes(loaded)
    codebooks = parts.pop("codebooks")
    print(parts, "and codebooks:", codebooks)
    counted = sum(parts.values())
    print(f"counted: {counted:,} bytes, as predicted: {counted == predicted[double_quant]}")

# %% [markdown]
# The prediction is exact, the codebooks aside. bitsandbytes keeps a copy with each matrix, 16 numbers, and 256 more with double quantization. They are always the same
# numbers. In a matrix of 128 x 128 they are noticeable. In one of Llama's they are not:

# %%
codebook_bytes = 4 * (16 + 256)
matrix_bytes = tensor_bytes_in_4bit(4096 * 4096, double_quant=True)
print(f"codebooks: {codebook_bytes:,} bytes beside {matrix_bytes:,}")

# %% [markdown]
# ## 87.5 % of what?
#
# "Reducing memory footprint by 87.5%", says the lesson, "instead of 32 bits (float32)": $1 - 4/32 = 87.5$ %. The four large models are shipped in 16 bits, so the saving that you get is smaller.
#
# **Predict.** What does 4-bit loading, with double quantization, save of the 16-bit model of 7B: 75 %, more, or less?

# %%
rows = []
for name, architecture in {"abacus": model, **architectures}.items():
    shipped_in = str(architecture.config.dtype).removeprefix("torch.")
    weights = sum(weight_groups(architecture).values())
    in_4bit = model_bytes_in_4bit(architecture, double_quant=True)
    rows.append([name, shipped_in, f"{1 - in_4bit / (weights * 4):.1%}", f"{1 - in_4bit / (weights * 2):.1%}"])
print(tabulate(rows, ["saved", "shipped in", "of 32 bits", "of 16 bits"], disable_numparse=True))

# %% [markdown]
# Less: 71.3 %. None of the five reaches 87.5 % of 32 bits, and none can reach 75 % of 16 bits, since scales take some.
#
# Mixtral saves 2.1 %. That is no mistake. 4-bit loading replaces linear layers, and since transformers 5.0 the experts are none: they are
# tensors of three dimensions such as you saw, which are left alone. So the count says. Lesson 07 loads a small Mixtral and looks.

# %% [markdown]
# ## What grows while the model writes
#
# Weights are not all. In the attention a token looks back by comparing a vector of its own, its *query*, with one of each earlier token, its *key*, and takes up another one, its *value*.
# Keys and values are kept so that they needn't be computed again for every new token. This is the *KV cache*.
#
# The attention is cut into *attention heads*, each of which looks back in its own way with a piece of the vector. A piece is `head_dim` numbers long, the
# *head size*. In some models several attention heads share one key and one value; *key-value heads* counts the different ones. In the formula for the
# cache the 2 stands for keys and values:
#
# $$\text{bytes} = 2 \times \text{decoder layers} \times \text{key-value heads} \times \text{head size} \times \text{tokens} \times \text{texts at a time} \times \text{bytes per number}$$
#
# Check it on `abacus`, which is loaded in float32 here: let it read a question, and add up what it keeps.

# %%
from course_utils.memory import kv_cache_bytes

tokens = tokenizer("What is 2+2?", return_tensors="pt").to(model.device)
with torch.no_grad():
    cache = model(**tokens).past_key_values
kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
count = tokens["input_ids"].shape[1]
print(config.num_hidden_layers, "decoder layers,", config.num_key_value_heads, "heads of", config.head_dim)
print(f"{count} tokens, kept: {kept:,} bytes, by the formula: {kv_cache_bytes(config, count, bits=32):,}")

# %% [markdown]
# The same number. Now the large models, with 16-bit numbers and one text of 4,096 tokens. The head size is 128 in all of them; 7B has 32 decoder layers with 32 key-value heads,
# 70B has 80 decoder layers with 8.
#
# **Predict.** 70B has ten times the weights of 7B. Is its cache ten times as large?

# %%
caches = {name: kv_cache_bytes(architecture.config, tokens=4096) for name, architecture in architectures.items()}
for name, size in caches.items():
    sizes = architectures[name].config
    print(f"{name:13} {size / 1e9:.2f} GB, for 8 texts {8 * size / 1e9:.1f} GB", end="  ")
    print(f"({sizes.num_key_value_heads} key-value heads for {sizes.num_attention_heads} attention heads)")

# %% [markdown]
# It is smaller. In 70B eight attention heads share one key and one value (*grouped-query attention*); in 7B each has its own. With a *batch* of 8 texts at a time, multiply by 8: then
# the cache of 7B is 17.2 GB, four times its 4-bit weights. Quantizing the weights does nothing about that.

# %% [markdown]
# Last, the *activations*: the numbers that are passed on from layer to layer, and soon forgotten. A large example: when a long text is read at once, a program may ask
# for the head's scores at every token of the text, one for each token of the vocabulary. In training transformers brings them to float32:

# %%
scores = 4096 * llama_7b.config.vocab_size * 4
print(f"scores of 4,096 tokens in float32: {scores / 1e9:.2f} GB")

# %% [markdown]
# ## What fits where
#
# The table adds the weights, in 16 bits or in 4 with double quantization, and a 16-bit cache of 4,096 tokens for one text. Mixtral has one row more: with its name alone, what
# you get, with the experts in 16 bits; with "experts too", what one would expect. "fits" leaves a tenth of the card for activations and for what the
# driver and other programs take; "tight" doesn't. A *GiB* is $2^{30}$ bytes, 1.074 GB, and the memory of cards is often meant in GiB; we count in GB, to be careful.

# %%
needs = {}
for name, architecture in architectures.items():
    in_4bit = model_bytes_in_4bit(architecture, double_quant=True)
    needs[name, 16] = (architecture.num_parameters() * 16 / 8 + caches[name]) / 1e9
    needs[name, 4] = (in_4bit + caches[name]) / 1e9
experts_too = model_bytes_in_4bit(mixtral, double_quant=True, experts_too=True)
needs["Mixtral, experts too", 4] = (experts_too + caches["Mixtral-8x7B"]) / 1e9

rows = []
for (name, bits), total in needs.items():
    verdicts = ["fits" if total < 0.9 * card else "tight" if total < card else "-" for card in (8, 16, 24, 80)]
    rows.append([name, bits, f"{total:.1f}", *verdicts])
print(tabulate(rows, ["model", "bits", "GB", "8 GB", "16 GB", "24 GB", "80 GB"], disable_numparse=True))

# %% [markdown]
# 70B in 4 bits is far too large for 24 GB, and Mixtral as it is loaded is too large for 80. With its experts in 4 bits Mixtral would be slightly too large for 24 GB.
# Count that card as 24 GiB, and weights and cache would just go in, with almost nothing left for the rest:

# %%
in_gb = needs["Mixtral, experts too", 4]
print(f"Mixtral, experts too: {in_gb:.1f} GB = {in_gb * 1e9 / 2**30:.1f} GiB")

# %%
import matplotlib.pyplot as plt

from course_utils import plots

plots.use_style()
fig, ax = plt.subplots()
places = {name: place for place, name in enumerate(dict.fromkeys(name for name, _ in needs))}
for bits in (16, 4):
    look = plots.LOOKS[f"{bits} bits"]
    drawn = {places[name]: total for (name, b), total in needs.items() if b == bits}
    ax.plot(list(drawn.values()), list(drawn), look.marker, color=look.color, markersize=8, label=f"{bits} bits")
    for place, total in drawn.items():
        ax.annotate(f"{total:.1f}", (total, place), (0, 9 if bits == 4 else -17), textcoords="offset points", ha="center",
                    bbox={"color": "white", "pad": 0.5})
for card in (8, 16, 24, 80):
    ax.axvline(card, color="#B04A00", linestyle=":", zorder=0)
    ax.text(card * 1.02, 4.6, f"{card} GB", color="#B04A00")
ax.set(xscale="log", xlim=(4, 220), ylim=(4.7, -0.6), xlabel="weights and cache in GB, logarithmic; dotted: the memory of a card")
ax.set_xticks([5, 10, 20, 50, 100, 200], ["5", "10", "20", "50", "100", "200"])
ax.minorticks_off()
ax.set_yticks(range(5), places)
ax.set_title("In 4 bits, 13B fits on 16 GB, 70B not on 24, Mixtral not on 80")
ax.legend(loc="upper right")
plots.show(fig, "What models need with a cache of 4,096 tokens, in 16 and in 4 bits: Llama-2-7b "
                f"{needs['Llama-2-7b', 16]:.1f} and {needs['Llama-2-7b', 4]:.1f} GB, 13b {needs['Llama-2-13b', 16]:.1f} and "
                f"{needs['Llama-2-13b', 4]:.1f}, 70b {needs['Llama-2-70b', 16]:.1f} and {needs['Llama-2-70b', 4]:.1f}, "
                f"Mixtral {needs['Mixtral-8x7B', 16]:.1f} and {needs['Mixtral-8x7B', 4]:.1f}, or {in_gb:.1f} with its experts in 4 bits. "
                "Dotted lines stand at 8, 16, 24 and 80 GB.")

# %% [markdown]
# ## What you have seen
#
# - A float is a sign, an exponent and a mantissa. bfloat16 has the exponent field of a float32, and 7 bits of mantissa.
# - A 4-bit weight takes 4.5 bits, or 4.127 with double quantization, because of its scale.
# - The embedding, the head and the norms keep their 16 bits. Llama-2-7B takes 4.17 GB, or 3.87 with double quantization, not 3.5, and you can predict the bytes before you load, exactly but for the codebooks.
# - 87.5 % is relative to float32 and without scales. Of the 16-bit model, 7B saves 71 %.
# - The cache comes on top, and 4-bit loading doesn't quantize it.
#
# The lesson began with three rules of thumb. 140 GB is 70B in 16 bits, 3.5 GB leaves out the scales and the 16 bits of embedding and head, and 87.5 % compares with a format in which these models are not shipped.
#
# Now you: [exercise 01](../exercises/01_count_the_bits.ipynb). After it, [lesson 02](02_round_to_a_grid.ipynb) asks how one gets from a float to one of 16 codes.
