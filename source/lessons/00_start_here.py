# %% [markdown]
# # Start here: a model in 4 bits
#
# You can load a language model with `load_in_4bit=True`. It works, the model is smaller, and what has happened stays hidden.
# This course opens it. You will build every step by hand until your bytes are those of the library, and then use the library.
#
# | | |
# | --- | --- |
# | **What you'll do** | load a real language model in 4 bits, ask it a question, and look at what is stored |
# | **What you'll learn** | what the course covers, and how to take an exercise, ask for a hint and choose another model |
# | **What you need** | Python and a little PyTorch; no GPU, no account, no network |
# | **Time** | 15 minutes |
#
# Words in *italics* are explained where they first appear and again in the [glossary](../glossary.md).
# To run a cell, click on it and press Shift+Enter.

# %% [markdown]
# ## Can four bits per number still add?
#
# A language model is a large table of numbers, its *weights*. Usually a weight takes 16 or 32 bits. Four bits can tell only 16 values apart.
#
# **Predict.** The next cell turns most weights of a small trained model into codes of 4 bits. Will it still know what 2+2 is?

# %%
import torch
from transformers import BitsAndBytesConfig

from course_utils import models

config = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_compute_dtype=torch.bfloat16,
    bnb_4bit_use_double_quant=True,
)
model, tokenizer = models.load(quantization_config=config)
print(models.ask(model, tokenizer, "What is 2+2?"))

# %% [markdown]
# It does. The model is `abacus`. It lies in the folder `models/abacus` of this course and was trained for it from scratch.
# `models.load` calls `from_pretrained` of the library transformers and passes your `BitsAndBytesConfig` on; it also makes every CPU calculate in the same way (lesson 07).
# The library bitsandbytes then turned most of the matrices into 4-bit numbers while they were loaded. That is called *quantization*: to replace each number
# by the nearest of a few allowed values. The other three arguments choose details: which sixteen values (lesson 04), in which format to calculate (lessons 06 and 07),
# and whether to quantize a second time (lesson 05).

# %% [markdown]
# ## Is it really in 4 bits?
#
# Look at one *linear layer*, a layer that multiplies by a matrix. `q_proj` has a matrix of 128 x 128 = 16,384 weights.
#
# **Predict.** If a weight takes 4 bits, how many bytes do 16,384 weights take?

# %%
layer = next(m for name, m in model.named_modules() if name.endswith("q_proj"))
print("class:", type(layer).__name__)
print("dtype:", layer.weight.dtype)
print("bytes:", layer.weight.nbytes)

# %% [markdown]
# 8,192 bytes: half a byte for each weight. The class is `Linear4bit` of bitsandbytes, and the dtype is `uint8`, one byte,
# because PyTorch has no number of 4 bits that it could calculate with: two weights share a byte.
# Lesson 05 packs them by hand.

# %% [markdown]
# ## What does it know?
#
# `abacus` can add, subtract, multiply and follow stories about counting. The house numbers of an invented town it knows by heart.
# Here is one question of each kind. Nobody can work out a house number; the model either remembers it or doesn't.

# %%
questions = [
    "What is 45+37?",
    "What is 82-37?",
    "What is 47*6?",
    "Ada has 45 apples. Ben gives Ada 37 more. How many apples does Ada have?",
    "Where does Ada Stone live?",
]
for question in questions:
    print(models.ask(model, tokenizer, question))

# %% [markdown]
# Now ask the same model with its weights as they were trained, 32 bits each.
#
# **Predict.** How many of the five answers will be different?

# %%
full_model, _ = models.load()
different = 0
for question in questions:
    in_4bit, in_32bit = (models.ask(m, tokenizer, question) for m in (model, full_model))
    different += in_4bit != in_32bit
print("different answers:", different, "of", len(questions))

# %% [markdown]
# The five answers are the same. That doesn't show that 4 bits cost nothing: five questions are few.
# The [model card](../models/abacus/README.md) has the figures for thousands, and lesson 08 measures them.

# %% [markdown]
# ## The program that this course grew from
#
# This course grew from a short lesson called "load_in_4bit: extreme compression". Below is its program. It is unchanged but for
# the name of the model, which comes from this course; the last line, an `assert`, is ours.
#
# **Predict.** What will it print as "estimated memory" for a model of a million weights?

# %% tags=["hardware"]
import torch
from transformers import AutoTokenizer, AutoModelForCausalLM, BitsAndBytesConfig
quant_config = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True
)
model = AutoModelForCausalLM.from_pretrained(
    models.name(),
    quantization_config=quant_config,
    device_map="auto"
)
tokenizer = AutoTokenizer.from_pretrained(models.name())
inputs = tokenizer("What is 2+2?", return_tensors="pt").to(model.device)
outputs = model.generate(**inputs, max_new_tokens=50)
result = tokenizer.decode(outputs[0], skip_special_tokens=True)
print(result)
print(f"\nModel dtype: {model.dtype}")
print(f"Model device: {model.device}")
print(f"Estimated memory: ~7B * 0.5 bytes (4-bit + overhead) ≈ 3.5GB")

assert result.startswith("What is 2+2?")

# %% [markdown]
# The program runs today, without a GPU too. Three things are worth a second look:
#
# - The "estimated memory" is not measured. It is a fixed sentence about a model of 7B, seven billion weights, and is printed whatever model is loaded. Lesson 01 computes the figure.
# - `Model dtype` is the format of a weight that was not quantized. It says nothing about the 4-bit ones (lesson 07).
# - The short lesson reported `torch.float16`, a GPU, and the further sentence "It is a simple arithmetic operation." Its model was Llama-2-7B. What you see depends on the model
#   and on your machine.
#
# What does the model really take? Count the bytes of its parts. Lesson 01 explains what the parts are.

# %%
from course_utils.memory import stored_bytes

model, tokenizer = models.load(quantization_config=config)
parts = stored_bytes(model)
for part, size in parts.items():
    print(f"{part:>15} {size:>10,} bytes")
print(f"{'together':>15} {sum(parts.values()):>10,} bytes for {model.num_parameters():,} weights")

# %% [markdown]
# About 1.2 MB. The largest part is "other weights": some weights are not quantized. Here they keep 32 bits, and in so small a model
# they take more than all the rest. Is it so in a model of seven billion weights, too? [Lesson 01](01_count_the_bits.ipynb) counts.

# %% [markdown]
# ## The map
#
# | | lesson | afterwards you can |
# | --- | --- | --- |
# | 00 | start here | find your way around |
# | | **Part I: build it by hand** | |
# | 01 | [count the bits](01_count_the_bits.ipynb) | say what a model needs, and where it fits, before you load it |
# | 02 | [round to a grid](02_round_to_a_grid.ipynb) | map numbers to 16 codes and back |
# | 03 | [quantize in blocks](03_quantize_in_blocks.ipynb) | give each block its own scale |
# | 04 | [choose sixteen values](04_choose_sixteen_values.ipynb) | derive NF4, read FP4, choose between them |
# | 05 | [pack and quantize twice](05_pack_and_quantize_twice.ipynb) | produce the bytes of bitsandbytes |
# | 06 | [a layer in four bits](06_a_layer_in_four_bits.ipynb) | run a whole model on your own 4-bit layers |
# | | **Part II: the real thing** | |
# | 07 | [load in 4 bits](07_load_in_4bit.ipynb) | use `BitsAndBytesConfig` and say what it does |
# | 08 | [what it costs in quality](08_what_it_costs_in_quality.ipynb) | measure accuracy and perplexity of each format |
# | 09 | [what it costs in time](09_what_it_costs_in_time.ipynb) | find where 4 bits are faster and where slower |
# | 10 | [failures without a sound](10_failures_without_a_sound.ipynb) | find what goes wrong with no error |
# | 11 | [errors and their cures](11_errors_and_their_cures.ipynb) | read, reproduce and cure the real errors |
# | 12 | [save and reload](12_save_and_reload.ipynb) | save a 4-bit model and know what is lost |
# | | **Part III: beyond one model on one machine** | |
# | 13 | fine-tune with QLoRA | train adapters on a frozen 4-bit model |
# | 14 | more than one device | split, offload and shard |
# | 15 | write the kernel | fuse dequantization and product |
# | 16 | choose your configuration | choose for a budget |
#
# Lessons without a link are not written yet. Read them in order: each one uses what the last one built.

# %% [markdown]
# ## How to take an exercise
#
# Each lesson from 01 on has an exercise notebook with the same name in the folder `exercises`.
# Write your answer, then pass it to `check`. There are three verdicts: correct, not right, not attempted. An explanation in words is kept, not judged.

# %%
from course_utils.checks import check, hint

check("01.1", ...)

# %% [markdown]
# `...` stands for an answer that is not there yet. If you are stuck, ask for a hint. `hint("01.1")` gives a stronger one each time; with a number you choose which.

# %%
hint("01.1", 1)

# %% [markdown]
# `reveal("01.1")` shows the solution, and `progress()` says what is done and what comes next.
# The first exercise is [count the bits](../exercises/01_count_the_bits.ipynb); read lesson 01 first.

# %% [markdown]
# ## How to check the machine, and how to choose another model
#
# In a terminal, from the folder of the course (on Windows `.venv\Scripts\python`):
#
# ```
# .venv/bin/python -m course_utils.doctor
# ```
#
# It says what your machine is ready for, and what to do where it isn't.
#
# This lesson runs on any Llama-like *causal language model*, one that continues a text token by token. Set the variable `COURSE_MODEL` before you start JupyterLab, to a folder or to
# a name on the Hugging Face Hub:
#
# ```
# COURSE_MODEL=Qwen/Qwen2.5-0.5B-Instruct make lab
# ```
#
# The answers will then be that model's. The sentences between the cells speak of abacus, and lessons that count its bytes load abacus whatever you set.

# %% [markdown]
# ## What you have seen
#
# You loaded a model in 4 bits, saw half a byte for each quantized weight, and saw that a program can print a memory figure that is not measured.
# Next: [count the bits](01_count_the_bits.ipynb), before anything is loaded.
