# %% [markdown]
# # Load in four bits
#
# Part I built everything by hand. The real thing is one argument, `load_in_4bit=True`, and a program of a dozen lines ends by telling
# you a dtype, a device and a memory figure. Which of the three can you believe, and what did that argument do?
#
# | | |
# | --- | --- |
# | **What you'll do** | take the program apart, watch a model being loaded weight by weight, weigh it, and find what was left in 16 bits |
# | **What you'll learn** | what each setting is when you say nothing, when quantization happens, what it takes in memory, which figures mislead |
# | **What you need** | [lesson 06](06_a_layer_in_four_bits.ipynb) |
# | **Time** | 60 minutes |
#
# ## The program, line by line
#
# This is the program of the lesson that this course grew from, in five pieces, with the name of our model in place of
# `meta-llama/Llama-2-7b-hf`. First a page of settings. Nothing is loaded yet.

# %%
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from course_utils import models

quant_config = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
)
print(quant_config)

# %% [markdown]
# Four settings were given and 13 entries are printed. Most of the rest is for 8 bits. The next section asks what the 4-bit settings are when nobody sets them.
#
# Then the model is loaded.
#
# **Predict.** Which of these three are a `Linear4bit` afterwards: a matrix of the MLP, the embedding, the head?

# %%
model = AutoModelForCausalLM.from_pretrained(
    models.ABACUS,
    quantization_config=quant_config,
    device_map="auto",
)
for name in ("model.layers.0.mlp.up_proj", "model.embed_tokens", "lm_head"):
    print(f"{name}: {type(model.get_submodule(name)).__name__}")

# %% [markdown]
# One of the three, the matrix. You know why the head stays (lesson 06).
#
# Now the question is turned into tokens, the model goes on from it, and the tokens are turned into text.

# %%
tokenizer = AutoTokenizer.from_pretrained(models.ABACUS)
inputs = tokenizer("What is 2+2?", return_tensors="pt").to(model.device)
print("tokens:", inputs["input_ids"].tolist()[0])

# %%
outputs = model.generate(**inputs, max_new_tokens=50)
result = tokenizer.decode(outputs[0], skip_special_tokens=True)
print(result)

# %% [markdown]
# The old lesson's output had one sentence more, "It is a simple arithmetic operation." It came from another model. Last, the three lines that this
# lesson is about.

# %% tags=["hardware"]
print(f"Model dtype: {model.dtype}")
print(f"Model device: {model.device}")
print("Estimated memory: ~7B * 0.5 bytes (4-bit + overhead) ≈ 3.5GB")

assert model.dtype == torch.float32

# %% [markdown]
# The lesson had `torch.float16`, `cuda:0` and the same 3.5 GB. Here the dtype is `torch.float32`, the device is yours, and the last line
# is fixed text: it speaks of seven billion weights, whatever was loaded. abacus has one million. Take the lines one after another.

# %% [markdown]
# ## What a setting is when you don't set it
#
# **Predict.** `BitsAndBytesConfig(load_in_4bit=True)` and no more. Is the codebook nf4 or fp4? In which dtype is multiplied? Are the
# scales quantized? Four bits don't exist as a dtype; in which one are they stored?
#
# Don't ask the configuration: it says what is to be done, not what was. Ask a layer that was loaded with it. `load` keeps to the CPU, so
# that what follows is the same on every machine.

# %%
def load(folder=models.ABACUS, dtype="auto", **settings):
    config = BitsAndBytesConfig(load_in_4bit=True, **settings)
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=dtype, device_map={"": "cpu"}
    )


SEEDS = dict(
    bnb_4bit_compute_dtype=torch.bfloat16, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
)
Q_PROJ = "model.layers.0.self_attn.q_proj"
for who, settings in (("nothing set", {}), ("as the program", SEEDS)):
    layer = load(**settings).get_submodule(Q_PROJ)
    state = layer.weight.quant_state
    print(f"{who}:")
    print(f"  quant_type: {state.quant_type}")
    print(f"  compute_dtype: {layer.compute_dtype}")
    print(f"  nested: {state.nested}")
    print(f"  stored in: {layer.weight.dtype}")
    print(f"  block size: {state.blocksize}")

# %% [markdown]
# fp4, float32, no double quantization, uint8. Whoever writes `load_in_4bit=True` and nothing else gets the codebook that
# had the larger error in lesson 04, the widest compute dtype, and half a bit of scales for each weight. Nothing says so. The block size is no setting at all:
# `BitsAndBytesConfig` has no argument for it.
#
# Those were labels. See that they are true. The codes and scales must be those that your own quantizer makes with fp4, and with a bfloat16 input
# the output must be that of a product in float32.

# %%
import torch.nn.functional as F

from course_utils.quantize import quantize_4bit

full = AutoModelForCausalLM.from_pretrained(models.ABACUS, device_map={"": "cpu"})
weight = full.get_submodule(Q_PROJ).weight.detach()
layer = load().get_submodule(Q_PROJ)
models.use_plain_cpu_path(layer)

for codebook in ("fp4", "nf4"):
    print(f"same bytes as {codebook}: {torch.equal(quantize_4bit(weight, codebook).packed, layer.weight.data)}")

x = torch.randn(5, 128, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
by_hand = quantize_4bit(weight, "fp4")
with torch.no_grad():
    for dtype in (torch.float32, torch.bfloat16):
        output = F.linear(x.to(dtype), by_hand.dequantize(dtype)).to(x.dtype)
        print(f"same output as in {dtype}: {torch.equal(output, layer(x))}")

# %% [markdown]
# fp4, and float32: a bfloat16 input is brought to float32, multiplied, and brought back. Both without a word.
#
# The storage is a setting that changes no code.
#
# **Predict.** The matrix of `q_proj` has 16,384 weights. Stored as `uint8` they are 8,192 numbers. How many are they as `float32`, and how many bytes?

# %%
for storage in (torch.uint8, torch.bfloat16, torch.float32):
    packed = load(bnb_4bit_quant_storage=storage).get_submodule(Q_PROJ).weight
    same = torch.equal(packed.data.view(torch.uint8).view(-1), layer.weight.data.view(-1))
    print(f"{str(storage):14} {packed.numel():>5} numbers, {packed.nbytes} bytes, same bytes: {same}")

# %% [markdown]
# 2,048 numbers of 4 bytes: the same 8,192 bytes under another label. As numbers they mean nothing. Some tools that move weights between machines insist
# on floats; that is what the setting is for (lesson 14).

# %% [markdown]
# ## What `model.dtype` says
#
# **Predict.** Four fifths of the weights of abacus are in 4 bits, stored as `uint8`, and the program printed `torch.float32`. Load with
# `dtype=torch.float16` instead. Which of these changes: `model.dtype`, the dtype of the packed weights, the compute dtype?

# %%
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    loaded = load(dtype=dtype, **SEEDS)
    layer = loaded.get_submodule(Q_PROJ)
    print(f"model.dtype: {loaded.dtype}, packed weights: {layer.weight.dtype}, multiplies in: {layer.compute_dtype}")

# %% [markdown]
# `model.dtype` alone. It is whatever was asked for with `dtype`, or, where nothing was asked, the dtype of the file. The packed weights and the
# compute dtype are the same three times. `model.dtype` is a short search:

# %%
name, found = next((name, p) for name, p in loaded.named_parameters() if p.is_floating_point())
print(f"the first parameter that is a float: {name}, {found.dtype}")

# %% [markdown]
# It is the embedding's. So `torch.float16` in the lesson was the format of Llama-2's embedding once loaded. (Llama-2 is shipped in float16, and
# transformers 4 took float16 for 4-bit loading anyway when nothing was said: `update_torch_dtype` in its `quantizer_bnb_4bit.py`.) It says nothing
# of the 4-bit weights: an unquantized model loaded in float16 prints the same. Three formats live side by side in one model: **storage** (`uint8`), **compute dtype**, and the
# dtype of **what wasn't quantized**.
#
# `dtype` isn't without effect on the codes, though. A weight is brought to it before it is quantized.

# %%
def packed_bytes(model):
    return torch.cat([p.data.view(-1) for p in model.parameters() if p.dtype == torch.uint8])


exact = packed_bytes(load(dtype=torch.float32, **SEEDS))
for dtype in (torch.float16, torch.bfloat16):
    changed = (packed_bytes(load(dtype=dtype, **SEEDS)) != exact).double().mean()
    print(f"bytes that differ after {dtype}: {changed:.2%}")

# %% [markdown]
# Under one in a hundred. A weight that lies next to a threshold between two codes can fall on the other side when it is rounded first. (A large
# model that is shipped in 16 bits and loaded in the same format has nothing to round.)

# %% [markdown]
# ## When it happens
#
# "Hugging Face automatically compressed the weights to 4-bit during loading", says the lesson. When during loading? A *checkpoint*, the files in which a model is shipped, can be as large
# as the memory, so it matters. Large models come in several files, or *shards*. Cut abacus into shards too.

# %%
import tempfile
from pathlib import Path

temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # Windows keeps files that are mapped
shards = Path(temporary.name) / "shards"
full.save_pretrained(shards, max_shard_size="1MB")
for file in sorted(shards.glob("*.safetensors")):
    print(f"{file.name} {file.stat().st_size:>9,} bytes")

# %% [markdown]
# `watch_load` of `course_utils.memory` stands between transformers and two functions: the one that opens a file and hands out its weights, and bitsandbytes' `quantize_4bit`.
# It writes down each call.
#
# **Predict.** Three ways to do it: (a) read all five files, then quantize. (b) Open a file, read it, quantize its weights, close it, open the next. (c) One weight at a time.

# %%
from course_utils.memory import watch_load

with watch_load() as events:
    load(shards)
for event in events[:15]:
    print(f"{event.what:8} {event.weight:42} {event.file}")
print("...")
for what in ("open", "read", "quantize", "close"):
    places = [place for place, event in enumerate(events) if event.what == what]
    print(f"{what}: {len(places)} times, events {places[0]} to {places[-1]} of {len(events)}")

# %% [markdown]
# (c), with a touch of (a). All five files are opened at once, but to open a safetensors file (a file format for tensors, lesson 12) is to read its
# table of contents. Then the weights are read one at a time, in the order of their names (numbers in them count as numbers: layer 2 comes before
# layer 10), and each `Linear4bit` weight is quantized before the next one is read. The files are closed at the end.
#
# How many full matrices wait to be quantized, at most?

# %%
waiting = most = 0
quantized = {event.weight for event in events if event.what == "quantize"}
for event in events:
    if event.weight in quantized:
        waiting += 1 if event.what == "read" else -1
        most = max(most, waiting)
print(f"matrices read and not yet quantized, at most: {most}")

# %% [markdown]
# One. It is often said that a checkpoint is quantized shard by shard, or layer by layer. In transformers 5.23 it is weight by weight, and the shards play no part in it.
# (Where nothing is quantized, several threads read ahead. The loader's source says that it does without them here, so that weights in full precision don't pile up.)
#
# And where does a weight lie when it is quantized? The lesson says: "Before weights are copied to GPU memory, bitsandbytes quantizes them". Watch a load with the lesson's own
# `device_map="auto"`.

# %% tags=["hardware"]
with watch_load() as on_this_machine:
    loaded = AutoModelForCausalLM.from_pretrained(shards, quantization_config=quant_config, device_map="auto")
were_on = {event.device for event in on_this_machine if event.what == "quantize"}
are_on = {str(weight.device) for weight in loaded.parameters() if hasattr(weight, "quant_state")}
print("4-bit weights are on:", *are_on)
print("full weights were quantized on:", *were_on)

assert were_on == are_on

# %% [markdown]
# The two are the same, and the last line of the cell demands it. Without a GPU both are `cpu`, and nothing is decided. Where there is one, the demand is that both are the GPU: the loader brings
# each weight to its device first, in full, and quantizes it there. So the order is the other way round, and the GPU needs room for one matrix in full, besides what is in 4 bits.
# That is also the order of the calls in the source. In transformers' `core_model_loading.py` `_materialize_copy` moves a weight to its device, and
# `Bnb4bitQuantize` gets what it returns. And bitsandbytes by itself, for whoever calls `layer.to("cuda")`:

# %%
import inspect

from bitsandbytes.nn import Params4bit

print(*inspect.getsource(Params4bit._quantize).splitlines()[:3], sep="\n")

# %% [markdown]
# First the full weight goes to the device, then it is quantized.

# %% [markdown]
# ## What loading takes
#
# One weight at a time is full. What does loading take, then? Ask the system what the process has.
# abacus is too small beside Python itself, so make a model with 43 million random weights, in float16 as Llama-2 is shipped.

# %%
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils.memory import model_bytes_in_4bit

torch.manual_seed(0)
sizes = dict(vocab_size=1024, hidden_size=512, intermediate_size=1024, num_hidden_layers=16, num_attention_heads=8)
larger = LlamaForCausalLM(LlamaConfig(**sizes)).to(torch.float16)
larger_folder = Path(temporary.name) / "larger"
larger.save_pretrained(larger_folder)
largest = max(layer.weight.nbytes for layer in larger.model.layers.modules() if isinstance(layer, torch.nn.Linear))
print(f"{larger.num_parameters():,} weights, {larger.get_memory_footprint() / 1e6:.1f} MB in 16 bits")
print(f"its largest linear layer: {largest / 1e6:.1f} MB")
print(f"in nf4, by lesson 01's arithmetic: {model_bytes_in_4bit(larger) / 1e6:.1f} MB")
del larger

# %% [markdown]
# `load_peak` runs a piece of code in a process of its own and watches the memory of that process, every millisecond. The code to set up runs first and isn't counted; it loads abacus once,
# because libraries take memory of their own the first time. Both loads ask for bfloat16 and the file has float16, so that every weight is converted and
# copied. (Why that matters is below: *mapped*.)
#
# **Predict.** 86 MB in 16 bits, 25.7 MB in 4. What is the peak while the 4-bit model is loaded: 86 MB and more, or nearer to 26?

# %% tags=["hardware"]
import platform

import bitsandbytes
import transformers

from course_utils.memory import load_peak

setup = """
import torch
from course_utils import models
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

def load(folder, **settings):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="auto", **settings)

nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
load(models.ABACUS, quantization_config=nf4)
"""
folder = str(larger_folder)
in_16_bits = load_peak(f"model = load({folder!r})", setup)
in_4_bits = load_peak(f"model = load({folder!r}, quantization_config=nf4)", setup)
for name, peak in (("16 bits", in_16_bits), ("nf4", in_4_bits)):
    print(f"{name:8} peak {peak.peak_bytes / 1e6:6.1f} MB, afterwards {peak.after_bytes / 1e6:6.1f} MB", end=", ")
    print(f"with the pages of the file {peak.with_files_bytes / 1e6:6.1f} MB")
    if peak.gpu_peak_bytes is not None:
        print(f"{'':8} on the GPU: peak {peak.gpu_peak_bytes / 1e6:.1f} MB, afterwards {peak.gpu_after_bytes / 1e6:.1f} MB")
print(f"({platform.system()} on {platform.machine()}, torch {torch.__version__}, transformers", end=" ")
print(f"{transformers.__version__}, bitsandbytes {bitsandbytes.__version__})")

if in_4_bits.gpu_peak_bytes is not None:
    assert in_4_bits.gpu_peak_bytes < in_16_bits.gpu_peak_bytes
else:
    assert in_4_bits.peak_bytes < in_16_bits.peak_bytes

# %% [markdown]
# Nearer to 26. In memory of its own the process never held the 16-bit model. This measurement doesn't tell what the peak has on top of the footprint.
# Candidates are: one matrix in full and its intermediate results (on a CPU, bitsandbytes quantizes in float32 and in several steps, each with a
# tensor of its own), what the loader keeps about the file and the model, and what the allocator holds back for later. On Linux the last can be far
# more: left to itself, the C library's allocator may hold on to memory that was freed, and the same load looks several times as large in one run and
# not in the next. `load_peak` asks it not to, by a variable that its docstring names. Remember it when a monitor shows you a 4-bit model that is too
# large.
#
# The last column is larger: on Linux, and on macOS unless the model goes to a Mac's own GPU, a safetensors file isn't read but *mapped*, and its pages come into memory when they are touched. Monitors that show the *resident* memory of
# a process count them. The system can take them back at any moment, so they don't stop a model from fitting, but they look as if they did. (`load_peak` tells the two apart on Linux only.)

# %% [markdown]
# ## What `device_map="auto"` does
#
# The model has to go somewhere. `device_map` says where: a device for each part of the model. With `"auto"`, transformers asks accelerate to make such a map.
#
# **Predict.** Without a GPU, where does `"auto"` put the model, and what is `model.hf_device_map`, the attribute in which tutorials tell you to look?

# %% tags=["hardware"]
loaded = AutoModelForCausalLM.from_pretrained(models.ABACUS, quantization_config=quant_config, device_map="auto")
devices = {weight.device for weight in loaded.parameters()}
print("devices:", *devices)
print("has hf_device_map:", hasattr(loaded, "hf_device_map"))

assert hasattr(loaded, "hf_device_map") == (len(devices) > 1)

# %% [markdown]
# On the CPU, and there is no such attribute. It is written when a model is spread over several places, and not otherwise: the last line of the cell
# asks for that. Spread one, over the CPU and the disk (not in 4 bits, and slow, but it shows the attribute):

# %%
import logging

# accelerate says which places it used in an order that changes from run to run, and below that a card it is asked about isn't there
logging.getLogger("accelerate").setLevel(logging.ERROR)

spread = AutoModelForCausalLM.from_pretrained(
    models.ABACUS, device_map={"model": "cpu", "lm_head": "disk"}, offload_folder=temporary.name
)
print(spread.hf_device_map)
print(f"model.device: {spread.device}, the head's weight: {spread.lm_head.weight.device}")

# %% [markdown]
# `model.device` is that of the first parameter, here the embedding. Of the head, which waits on the disk and has only a shape in memory (`meta`), it
# says nothing.
#
# What would `"auto"` do with a GPU? The map is made from sizes alone, before anything is loaded, so it can be made for a card that you don't have.
# Take Llama-2-7B's architecture, prepared for 4 bits as the loader prepares it, and pretend.
#
# **Predict.** The model takes 3.9 to 4.2 GB. Which of these cards get all of it: 24 GB, 5 GB, 3 GB? And how is it shared between two cards of 3 GB, and between two of 24 GB?

# %%
from collections import Counter

from transformers.integrations.accelerate import get_balanced_memory, infer_auto_device_map
from transformers.quantizers import AutoHfQuantizer

llama = models.architecture("Llama-2-7b")
quantizer = AutoHfQuantizer.from_config(quant_config, pre_quantized=False)
quantizer.preprocess_model(llama, device_map="auto")  # puts Linear4bit in place, without weights
GB = 10**9
how = {"no_split_module_classes": llama._no_split_modules, "hf_quantizer": quantizer}
for cards in ({0: 24 * GB}, {0: 5 * GB}, {0: 3 * GB}, {0: 3 * GB, 1: 3 * GB}, {0: 24 * GB, 1: 24 * GB}):
    memory = get_balanced_memory(llama, max_memory={**cards, "cpu": 64 * GB}, **how)
    memory = quantizer.adjust_max_memory(memory)  # a tenth is kept free
    places = infer_auto_device_map(llama, max_memory=memory, **how)
    count = Counter("CPU" if place == "cpu" else f"GPU {place}" for place in places.values())
    print(" + ".join(f"{size // GB} GB" for size in cards.values()), "->", end=" ")
    print("everything on GPU 0" if list(places) == [""] else dict(count), end="")
    try:
        quantizer.validate_environment(device_map=places)
        print()
    except ValueError as error:
        print(f"\n  {type(error).__name__}: {str(error).split('.')[0]}.")

# %% [markdown]
# One card with room takes everything. Two cards share the 36 parts of the map: 32 decoder layers, the embedding, the last norm, the head, and the
# table of positions (`rotary_emb`). They do so even where one of them would be enough, since `"auto"` means balanced. Each decoder layer stays in one piece (lesson 14). And if the CPU would have to take some, 4-bit loading refuses:
# an error, not a slow model (lesson 11).
#
# So "The model was placed on GPU via `device_map='auto'`" holds where there is one GPU with room; over several the model is spread. `"auto"` is not needed for it: with a quantization
# configuration and no map at all, transformers takes the current GPU (NVIDIA's, or one of a few other kinds, but not a Mac's), or else the CPU (`update_device_map` in its
# `quantizer_bnb_4bit.py`).

# %% [markdown]
# ## What stays as it was
#
# **Predict.** Which weights of a Llama are not in 4 bits? Name them, and say which of them is the largest.

# %%
seeds = load(dtype=torch.bfloat16, **SEEDS)
stayed = {}
for name, parameter in seeds.named_parameters():
    if not hasattr(parameter, "quant_state"):
        kind = "norms" if "norm" in name else name.removesuffix(".weight")
        tensors, dtype, nbytes = stayed.get(kind, (0, parameter.dtype, 0))
        stayed[kind] = (tensors + 1, dtype, nbytes + parameter.nbytes)
for kind, (tensors, dtype, nbytes) in stayed.items():
    print(f"{kind}: {nbytes} bytes, {tensors} tensors, {dtype}")
print("left out by name:", *seeds.hf_quantizer.modules_to_not_convert)

# %% [markdown]
# The embedding, the norms and the head. Embedding and head are equally large here, 188,416 bytes each. An embedding and a norm are no linear layers,
# so they are never considered. The head is one, and is left out by name, in a list that transformers makes.
#
# In many models the head is *tied*: the embedding under another name. Make two small models that differ in this only.

# %%
small = dict(vocab_size=1024, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2)
for tied in (False, True):
    torch.manual_seed(0)
    folder = Path(temporary.name) / f"tied {tied}"
    LlamaForCausalLM(LlamaConfig(**small, tie_word_embeddings=tied)).to(torch.bfloat16).save_pretrained(folder)
    loaded = load(folder)
    one_tensor = loaded.lm_head.weight is loaded.model.embed_tokens.weight
    others = sum(p.nbytes for p in loaded.parameters() if not hasattr(p, "quant_state"))
    print(f"tied: {tied}, one tensor: {one_tensor}, not in 4 bits: {others} bytes", end=", ")
    print("left out by name:", *sorted(loaded.hf_quantizer.modules_to_not_convert))

# %% [markdown]
# With a tied head one tensor serves twice, and half the bytes are there. Both names are on the list. A list of your own, `llm_int8_skip_modules`,
# takes the place of this one, in 4 bits too and in spite of its name. Lesson 10 shows what an innocent list does.

# %% [markdown]
# ## A footprint that leaves something out
#
# The fixed line "3.5 GB" could be replaced by a function of transformers, `model.get_memory_footprint()`.
#
# **Predict.** Double quantization saves 0.373 bits a weight. What does the footprint say, with and without?

# %%
reported = {}
for double_quant in (False, True):
    loaded = load(dtype=torch.bfloat16, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double_quant)
    reported[double_quant] = loaded.get_memory_footprint()
    print(f"double quantization {double_quant}: {reported[double_quant]} bytes")

# %% [markdown]
# The same, to the byte. It adds up parameters and *buffers* (tensors that a module keeps and that training doesn't change). The scales of a 4-bit
# weight are neither: they hang on the weight as an attribute, `quant_state`, and are not seen. Work out by hand what one matrix of 128 x 128 really
# has.

# %%
weights = 128 * 128
codes = weights // 2
scales = weights // 64 * 4
codebook = 16 * 4
print(f"plain: {codes} + {scales} + {codebook} = {codes + scales + codebook} bytes")
scale_codes, their_scales, offset, their_codebook = weights // 64, 1 * 4, 4, 256 * 4
nested = scale_codes + their_scales + offset
both = codebook + their_codebook
print(f"double: {codes} + {nested} + {both} = {codes + nested + both} bytes")

# %% [markdown]
# The footprint sees the first number of each line, 8,192. Here is one that sees all.

# %%
def footprint(model):
    parts = dict.fromkeys(
        ["packed codes", "scales", "nested scales", "codebooks", "other weights", "buffers"], 0
    )
    for weight in model.parameters():
        state = getattr(weight, "quant_state", None)
        if state is None:
            parts["other weights"] += weight.nbytes
            continue
        parts["packed codes"] += weight.nbytes
        parts["scales"] += state.absmax.nbytes
        parts["codebooks"] += state.code.nbytes
        if state.nested:
            parts["nested scales"] += state.offset.nbytes + state.state2.absmax.nbytes
            parts["codebooks"] += state.state2.code.nbytes
    parts["buffers"] = sum(buffer.nbytes for buffer in model.buffers())
    return parts


print({part: size for part, size in footprint(load(**SEEDS).get_submodule(Q_PROJ)).items() if size})

# %% [markdown]
# 8,192, 256 for the codes of the scales, 8 and 1,088: as by hand. Is anything else forgotten? Don't trust the function's list. Look at every tensor
# in this process, before and after a load, and add up the memory behind the new ones. This knows nothing of quantization.

# %%
import gc


def memory_of_all_tensors():
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    memory = [tensor.untyped_storage() for tensor in tensors if not tensor.is_meta]
    return {piece.data_ptr(): piece.nbytes() for piece in memory}


for double_quant in (False, True):
    before = memory_of_all_tensors()
    loaded = load(dtype=torch.bfloat16, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double_quant)
    after = memory_of_all_tensors()
    allocated = sum(nbytes for place, nbytes in after.items() if place not in before)
    parts = footprint(loaded)
    print(f"double quantization {double_quant}:")
    print(f"  reported: {loaded.get_memory_footprint()}")
    print(f"  footprint: {sum(parts.values())}")
    print(f"  allocated: {allocated}")
    print(f"  not reported: {sum(parts.values()) - loaded.get_memory_footprint()}")
    print(f"  {parts}")
    del loaded

# %% [markdown]
# The footprint is what was allocated, to the byte, and the reported one lacks 55,040 bytes or 44,096. With double quantization the scales shrink from
# 53,248 bytes to 13,312 + 320, by 39,616, and the codebooks grow from 1,792 to 30,464, by 28,672. So in a model as small as abacus the copies of the
# second codebook, one for each of 28 matrices, eat 72 % of what double quantization saves. In a large one they vanish, and the scales don't:

# %%
from course_utils.memory import weight_groups

llama = models.architecture("Llama-2-7b")
groups = weight_groups(llama)
not_linear = sum(groups.values()) - groups["linear layers"]
would_report = groups["linear layers"] / 2 + 2 * not_linear
print(f"Llama-2-7B would report: {would_report / 1e9:.2f} GB")
print(f"Llama-2-7B takes, plain: {model_bytes_in_4bit(llama) / 1e9:.2f} GB")
print(f"Llama-2-7B takes, double: {model_bytes_in_4bit(llama, double_quant=True) / 1e9:.2f} GB")

# %% [markdown]
# 3.76 GB would be reported, and 4.17 or 3.87 are taken. Who compares the two settings by the reported figure finds that double quantization does nothing.
#
# The trap has a neighbour: who adds up the sizes of the parameters counts bytes for weights. `num_parameters()` of transformers knows better.

# %%
print("numbers in the parameters:", sum(p.numel() for p in seeds.parameters()))
print("num_parameters():", seeds.num_parameters())

# %% [markdown]
# A byte holds two weights, so the first count is too low by 425,984.

# %%
import matplotlib.pyplot as plt

from course_utils import plots

plots.use_style()
fig, ax = plt.subplots(figsize=(7, 2.4))
plain, double = (model_bytes_in_4bit(llama, double_quant=double_quant) / 1e9 for double_quant in (False, True))
looks = [plots.LOOKS["nf4"], plots.LOOKS["nf4, double quantization"]]
for place, (total, look) in enumerate(zip((plain, double), looks, strict=True)):
    ax.barh(place, would_report / 1e9, color=look.color, edgecolor="white")
    ax.barh(place, total - would_report / 1e9, left=would_report / 1e9, color=look.color, hatch="xx", edgecolor="white", alpha=0.5)
    ax.annotate(f"{total:.2f}", (total, place), (4, 0), textcoords="offset points", va="center")
ax.set(xlabel="GB", xlim=(0, 4.5), ylim=(1.6, -0.6))
ax.set_yticks((0, 1), ("nf4", "nf4, double\nquantization"))
ax.grid(axis="y", visible=False)
ax.set_title("Llama-2-7B: the hatched part, scales, is never reported")
plots.show(fig, "Two bars, the bytes of Llama-2-7B in nf4, 4.17 GB, and in nf4 with double quantization, 3.87 GB. "
                "In both, 3.76 GB are what get_memory_footprint() would report; the rest is hatched.")

# %% [markdown]
# ## Experts are no linear layers
#
# Lesson 01 counted that Mixtral saves 2.1 % in 4 bits, and promised to look. Here is a Mixtral, small enough to make on the spot: 2 layers, 4 experts.
#
# **Predict.** 77 % of its weights are in the experts. What share of all its weights will be in 4 bits?

# %%
from transformers import MixtralConfig, MixtralForCausalLM

torch.manual_seed(0)
few = dict(vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
mixtral = MixtralForCausalLM(MixtralConfig(**few, num_key_value_heads=1, num_local_experts=4)).to(torch.bfloat16)
groups = weight_groups(mixtral)
print(f"in the experts: {groups['experts'] / sum(groups.values()):.1%}")
mixtral_folder = Path(temporary.name) / "mixtral"
mixtral.save_pretrained(mixtral_folder)
in_4_bits = load(mixtral_folder, **SEEDS)
quantized = sum(2 * p.numel() for p in in_4_bits.parameters() if hasattr(p, "quant_state"))
print(f"in 4 bits: {quantized / in_4_bits.num_parameters():.1%}")

# %% [markdown]
# 9.6 %. No error, no warning, and `quantization_config` is in the model's configuration as it should be. The share that you just printed is the surest sign. For another, look into a layer.

# %%
print(in_4_bits.model.layers[0].mlp)
for name, parameter in in_4_bits.model.layers[0].mlp.named_parameters():
    print(f"{name}: {parameter.dtype}, {tuple(parameter.shape)}")

# %% [markdown]
# Printing the model doesn't show it: `MixtralExperts` appears, its weights don't. Its parameters do: bfloat16, with three dimensions, all experts of
# a layer in one tensor. `Linear4bit` takes the place of `nn.Linear`, and these are none. `gate` is the *router*, which chooses the experts for a
# token. It is no linear layer either and stays in 16 bits.
#
# It was not always so. The names in the file still tell of the time when each expert had three linear layers of its own, which were quantized like any other:

# %%
from safetensors import safe_open

with safe_open(mixtral_folder / "model.safetensors", framework="pt") as file:
    names = [name for name in file.keys() if "layers.0" in name and "experts" in name]
print(f"{len(names)} weights of experts in a layer of the file, such as {names[0]}")

# %% [markdown]
# transformers 5 stacks these while loading, since one large product is faster than many small ones. bitsandbytes has an open report about it
# (issue #1849, "Failed to quant MoE models with fused expert weights in transformers v5", January 2026). As of bitsandbytes 0.50.2, nothing in the
# configuration puts experts in 4 bits. A function outside the configuration does, and comes in a moment.
#
# What would the experts take as they were, codebooks left out? The file has them one by one. Put each into a `Params4bit`, which is what `Linear4bit` keeps as its weight, with double quantization.

# %%
from course_utils.memory import tensor_bytes_in_4bit

with safe_open(mixtral_folder / "model.safetensors", framework="pt") as file:
    one_by_one = [Params4bit(file.get_tensor(name), quant_type="nf4", compress_statistics=True) for name in names]
old = footprint(torch.nn.ParameterList([weight.to("cpu") for weight in one_by_one]))
codebooks = old.pop("codebooks")
fused = in_4_bits.model.layers[0].mlp.experts.parameters()
print(f"experts of a layer, as loaded: {sum(p.nbytes for p in fused)} bytes")
print(f"experts of a layer, one by one in 4 bits: {sum(old.values())} bytes")
print("by the formula:", 12 * tensor_bytes_in_4bit(64 * 128, double_quant=True))

# %% [markdown]
# Those bytes can still be had. `replace_parameter_4bit` of `bitsandbytes.nn.parametrize` puts one parameter of any shape into 4 bits, after loading.
# Its docstring calls it experimental. The 16-bit experts must fit into memory first.
#
# **Predict.** The experts of a layer are two tensors now, where they were twelve. Do they take more bytes than one by one, fewer, or the same?

# %%
from bitsandbytes.nn.parametrize import replace_parameter_4bit

replaced = load(mixtral_folder, **SEEDS)
for layer in replaced.model.layers:
    for name in ("gate_up_proj", "down_proj"):
        replace_parameter_4bit(layer.mlp.experts, name, compress_statistics=True, quant_type="nf4")

experts = replaced.model.layers[0].mlp.experts
nbytes = sum(packed.nbytes for packed in experts.parameters())
for parametrization in experts.parametrizations.values():
    state = parametrization[0].quant_state
    nbytes += state.absmax.nbytes + state.offset.nbytes + state.state2.absmax.nbytes
print(f"experts of a layer, replaced after loading: {nbytes} bytes")
print(f"read as an attribute, down_proj is: {experts.down_proj.dtype}, {tuple(experts.down_proj.shape)}")

models.use_plain_cpu_path(replaced)
with torch.no_grad():
    logits = replaced(torch.tensor([[1, 2, 3]])).logits
print(f"logits of three tokens: {tuple(logits.shape)}")

# %% [markdown]
# 64 bytes fewer, codebooks left out in both (there would be 2 copies of each instead of 12): there are two offsets instead of twelve, and the blocks of 256 scales are full, where those of a single expert were half empty. The
# model still runs. Codes are stored, and the attribute gives bfloat16, all experts of a layer at once: they are dequantized whenever the layer is
# used, the experts that no token needs among them.
#
# What does that do to "Mixtral in 24 GB"? The function that predicts a model's bytes is exact on the small Mixtral; so use it on the large one.

# %%
parts = footprint(in_4_bits)
print("small Mixtral predicted:", model_bytes_in_4bit(mixtral, double_quant=True))
print("small Mixtral loaded:", sum(parts.values()) - parts["codebooks"] - parts["buffers"])

large = models.architecture("Mixtral-8x7B")
as_it_is = model_bytes_in_4bit(large, double_quant=True) / 1e9
as_it_was = model_bytes_in_4bit(large, double_quant=True, experts_too=True) / 1e9
print(f"Mixtral 8x7B, experts in 16 bits: {as_it_is:.1f} GB")
print(f"Mixtral 8x7B, experts in 4 bits: {as_it_was:.1f} GB")
print(f"four cards of 24, a tenth of each kept free: {4 * 24 * 0.9:.1f} GB, or {4 * 24 * 2**30 / 10**9 * 0.9:.1f} GB counted in GiB")

# %% [markdown]
# 91.4 GB, loaded in "4 bits" with transformers 5.23: more than three cards of 24 GB hold, and four with the tenth that `"auto"` keeps free hold 86.4 GB, or
# 92.8 where a card counts in GiB. With its experts in 4 bits it would need 24.5 GB before the first token of a cache: too much for 24 GB, and just under the 25.8 GB of a card
# that counts in GiB. So "a single 24GB GPU" was at best a very tight fit, and is far from true now.

# %% [markdown]
# ## A model that expects a conversation
#
# Set `COURSE_MODEL` to an *instruct model*, one that was trained to answer in a conversation, and two things change that have nothing to do with four
# bits, and are easily taken for damage done by them.
#
# The first is the form of the question. Such a model has seen each question between marks, and its tokenizer brings a *chat template* that puts them
# there. abacus has none: it was trained on bare questions.

# %%
full_model, tokenizer = models.load(models.ABACUS)
print("abacus has a chat template:", tokenizer.chat_template is not None)

# %% [markdown]
# A template is a small program in a language called Jinja. Write one in the manner of Llama-2's, for the question of a user, and see what becomes of a conversation.

# %%
LLAMA_LIKE = "{% for message in messages %}[INST] {{ message['content'] }} [/INST]{% endfor %}"
conversation = [{"role": "user", "content": "What is 2+2?"}]
as_text = tokenizer.apply_chat_template(conversation, chat_template=LLAMA_LIKE, tokenize=False)
print(as_text)

# %% [markdown]
# **Predict.** abacus, in full precision, knows what 2+2 is. What does it answer in this form?

# %%
for text in ("What is 2+2?", as_text):
    print(models.ask(full_model, tokenizer, text))

# %% [markdown]
# 21. Nothing was quantized. A form that the model wasn't trained on is enough. So ask each model in its own form:

# %%
def ask_in_its_form(model, tokenizer, question):
    if tokenizer.chat_template is None:
        return models.ask(model, tokenizer, question)
    conversation = [{"role": "user", "content": question}]
    # add_generation_prompt opens the model's turn; without it some models go on with the user's
    text = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt").to(model.device)
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=48)
    return tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


your_model, your_tokenizer = models.load(quantization_config=quant_config)  # COURSE_MODEL, or else abacus
print(ask_in_its_form(your_model, your_tokenizer, "What is 2+2?"))

# %% [markdown]
# The second is chance. `generate` takes the likeliest token each time (*greedy*), unless it is told to *sample*: to draw the token by its
# probability. The *temperature* divides the scores before they become probabilities; above 1 it makes the unlikely likelier. Look at the
# probabilities of one token, where abacus is unsure, at two temperatures.

# %%
inputs = tokenizer(as_text + " The answer is 2", return_tensors="pt").to(full_model.device)
with torch.no_grad():
    scores = full_model(**inputs).logits[0, -1].float().cpu()
for temperature in (1.0, 2.0):
    likeliest = (scores / temperature).softmax(0).topk(3)
    chances = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    print(f"temperature {temperature}:", ", ".join(f"{tokenizer.decode(i)} {chance:.2f}" for i, chance in chances))

# %% [markdown]
# Twice the temperature, and the likeliest falls from 0.81 to 0.59. Who tells `generate` to sample? Often nobody who can be seen: a model may bring a
# `generation_config.json`, and what the program leaves unsaid is taken from there. Put such a wish into abacus, and call `generate` as the lesson's
# program does.

# %% tags=["hardware"]
full_model.generation_config.update(do_sample=True, temperature=2.0)
inputs = tokenizer(as_text, return_tensors="pt").to(full_model.device)
torch.manual_seed(0)
different = {}
for name, said in {"nothing said": {}, "do_sample=False": {"do_sample": False}}.items():
    rows = [full_model.generate(**inputs, max_new_tokens=20, **said)[0] for _ in range(10)]
    different[name] = len({tokenizer.decode(row) for row in rows})
    print(f"{name}: {different[name]} different answers in 10")

assert different["do_sample=False"] == 1

# %% [markdown]
# So compare a model in 4 bits and in 16 with the same template and `do_sample=False`, or you compare throws of dice. `models.ask` is greedy for this reason.

# %% [markdown]
# ## What the first forward pass does on some CPUs
#
# One more thing changes a model in 4 bits, after loading. Lesson 06 mentioned the packed path of CPUs with avx512_bf16. Look at one layer before and
# after its first forward pass, as bitsandbytes leaves it and on the plain path, which `models.use_plain_cpu_path` chooses. (Where bitsandbytes finds a GPU
# it loads its library for CUDA, in which no CPU has the packed path, as of 0.50.2.)
#
# **Predict.** On the packed path, which is larger afterwards, the scales of a model with double quantization or of one without?

# %% tags=["hardware"]
from bitsandbytes.functional import has_avx512bf16


def look(model):
    weight = model.get_submodule("model.layers.0.mlp.up_proj").weight
    state, parts = weight.quant_state, footprint(model)
    absmax = f"absmax {tuple(state.absmax.shape)} {str(state.absmax.dtype).removeprefix('torch.')}"
    print(f"  weight {tuple(weight.shape)}, {absmax}, nested {state.nested}", end=", ")
    print(f"all scales {parts['scales'] + parts['nested scales']:,} bytes")
    return state.absmax.dtype, state.nested


print("this CPU has the packed path:", bool(has_avx512bf16()))
token = torch.tensor([[1]])
for plain_path in (True, False):
    for double_quant in (False, True):
        fresh = load(dtype=torch.bfloat16, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double_quant)
        if plain_path:
            models.use_plain_cpu_path(fresh)
        print(f"{'plain' if plain_path else 'own'} path, double quantization {double_quant}, before and after:")
        before = look(fresh)
        with torch.no_grad():
            fresh(token)
        after = look(fresh)
        repacked = has_avx512bf16() and not plain_path
        assert after == ((torch.bfloat16, False) if repacked else before)

# %% [markdown]
# The plain path changes nothing. Where there is a packed path, this is what it does at the first forward pass in eval mode without gradients:
#
# - the codes are put in another order, and the weight has another shape;
# - the scales become bfloat16, 2 bytes each, and are transposed;
# - double quantization is undone. Both models end with the same bytes for scales: 16 bits for 64 weights, or 4.25 bits a weight, more than 4.127 and less than 4.5.
#
# So neither is larger: the scales of one were halved, those of the other nearly doubled, from 13,632 bytes to 26,624. On such a CPU double
# quantization saves memory only until the model is used. Read footprint, scales and quantization state before the first forward pass, or on the plain
# path. What this does to a model that is saved, lesson 10 shows; saving itself is lesson 12.

# %% [markdown]
# ## The course's own settings
#
# Lessons load models by `models.load`. It hides nothing that matters; this is what it does besides `from_pretrained`.
#
# | | in place of | why |
# | --- | --- | --- |
# | `device_map={"": 0}` or `{"": "cpu"}` | `"auto"` | one place; a model that doesn't fit is an error and is not spread |
# | `dtype="auto"` | no argument | says aloud what transformers 5 does anyway |
# | `use_plain_cpu_path` | the CPU's own path | same digits on every CPU, and weights that stay as loaded |
# | `quiet`, at import | progress bars; one warning each of bitsandbytes, PyTorch and peft | they differ from machine to machine |
# | checks before loading | tracebacks | one sentence that says what is missing |
#
# See the third and the fourth.

# %%
by_course, _ = models.load(models.ABACUS, quantization_config=BitsAndBytesConfig(load_in_4bit=True, **SEEDS))
same = torch.equal(packed_bytes(by_course).cpu(), packed_bytes(load(**SEEDS)))
print("same packed bytes as from_pretrained:", same)
from bitsandbytes.nn import Linear4bit

switches = {layer.support_avx512bf16_for_cpu for layer in by_course.modules() if isinstance(layer, Linear4bit)}
print("may take the packed path:", *switches)
print("progress bars:", transformers.utils.logging.is_progress_bar_enabled())
level = logging.getLogger("bitsandbytes.backends.cpu.ops").level
print("bitsandbytes' CPU kernels speak from level:", logging.getLevelName(level))

# %% [markdown]
# In a program of your own you need none of it, except what `use_plain_cpu_path` does: `layer.support_avx512bf16_for_cpu = False` for each
# `Linear4bit`, before the first forward pass, if you mean to save a 4-bit model that has run on a CPU.

# %%
temporary.cleanup()

# %% [markdown]
# ## What is claimed
#
# The course keeps a *ledger*, [claims.yml](../claims.yml): what the old lesson and others say of 4-bit loading, with a verdict, and the cell or the
# measurement that shows it. These are the rows that belong to this lesson. `make claim ID=model-dtype` runs the evidence of one.

# %%
from course_utils import claims

print(claims.table(lesson="07"))

# %% [markdown]
# ## What you have seen
#
# - If you say nothing, you get fp4, float32 and no double quantization. Set three things: `bnb_4bit_quant_type`, `bnb_4bit_compute_dtype`, `bnb_4bit_use_double_quant`.
# - Quantization happens weight by weight, while loading, on the device that the weight goes to; at most one full matrix waits.
# - The embedding, the head and the norms stay as they were. So do the experts of a mixture, and those are most of it.
# - `get_memory_footprint()` doesn't see scales. Count them, or look at what is allocated.
#
# The lesson began with three lines that a program prints. `Model dtype` is the embedding's. `Model device` is that of the first parameter: true of
# the whole model where it lies in one place. `hf_device_map` is there only if it lies in several. The memory figure was never measured; you can now
# do so.
#
# [Exercise 07](../exercises/07_load_in_4bit.ipynb) lets you count, predict a peak, and explain a colleague's Mixtral.
# [Lesson 08](08_what_it_costs_in_quality.ipynb) asks what all this costs in quality.
