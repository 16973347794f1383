# %% [markdown]
# # Failures without a sound
#
# Your model has loaded. It answers, no error came, nothing was red. Is it the model that you asked for?
#
# | | |
# | --- | --- |
# | **What you'll do** | make twelve things go wrong that raise no error, see each in numbers, and cure it |
# | **What you'll learn** | where to look in a loaded model, when a CPU changes its weights, how to tell a damaged file, what is only said to be silent |
# | **What you need** | [lesson 06](06_a_layer_in_four_bits.ipynb) and [lesson 07](07_load_in_4bit.ipynb) |
# | **Time** | 60 minutes |
#
# Everything is on the CPU here, also where there is a GPU. What depends on the kind of CPU comes twice: as it happens on yours, and as
# it was recorded on both kinds.

# %%
import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""

from course_utils import ROOT, models

RECORD = ROOT / "measurements" / "cpu_paths.json"

# %% [markdown]
# ## Saved after a forward pass
#
# A layer of 128 inputs and 64 outputs in 4 bits, every second row ten times as large. It computes once. Then its *state dict* is read,
# the dict of all its tensors, as every save does it. Then it computes once more, with the same input.
#
# **Predict.** How far is the second output from the first?

# %% tags=["hardware"]
import torch
from bitsandbytes.nn import Linear4bit

torch.manual_seed(0)
layer = Linear4bit(128, 64, bias=False, compute_dtype=torch.float32, compress_statistics=False, quant_type="nf4")
layer.weight.data[::2] *= 10
layer = layer.to("cpu").eval()
x = torch.randn(1, 128)
with torch.no_grad():
    first = layer(x)
    layer.state_dict()
    second = layer(x)
change = ((second - first).norm() / first.norm()).item()
print(f"the output has changed by {change:.0%}")

from bitsandbytes.functional import has_avx512bf16

assert (change > 0.5) == bool(has_avx512bf16())

# %% [markdown]
# On a CPU with avx512_bf16 most of it has changed. On any other it is the same. Nobody wrote to the layer; it was only read. These lines are all that a bug report needs: bitsandbytes 0.50.2, torch 2.13.0, a CPU with avx512_bf16.
#
# It is not a matter of one layer. Ask abacus, save it, and ask again.

# %% tags=["hardware"]
import tempfile

from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
model = AutoModelForCausalLM.from_pretrained(models.ABACUS, quantization_config=config, device_map={"": "cpu"})
tokenizer = AutoTokenizer.from_pretrained(models.ABACUS)
answer = models.ask(model, tokenizer, "What is 2+2?")
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
print("before saving:", answer)
print("after saving :", models.ask(model, tokenizer, "What is 2+2?"))

assert answer == "What is 2+2? The answer is 4."

# %% [markdown]
# No error, no warning. Here is what a program has recorded on both paths, on one machine: bitsandbytes takes the plain path where its
# switch is off, as lesson 06 did it. "off" is the relative distance of the logits of four questions from what they should be.

# %%
import json

from tabulate import tabulate

recorded = json.loads(RECORD.read_text(encoding="utf-8"))
print(f"recorded {recorded['date']}, bitsandbytes {recorded['versions']['bitsandbytes']}, torch {recorded['versions']['torch']}\n")
rows = []
for path, told in recorded["saving"].items():
    for run in told["models"]:
        for when, key in (("the model, saved", "after_saving"), ("its file", "")):
            answer = run[f"answer_{key}" if key else "answer_of_the_file"].removeprefix("What is 2+2? ")
            off = run["logits_off_after_saving" if key else "logits_off_in_the_file"]
            rows.append([path, "double" if run["double_quantization"] else "single", when, answer, f"{off:.1%}"])
print(tabulate(rows, ["path", "scales", "asked", "answer", "off"]))

# %% [markdown]
# On the packed path without double quantization, model and file are both destroyed: off by 101 %, where logits that are
# all 0 would be off by 100 %. With double quantization they are off by no more than the packed path is anyway. On the plain path nothing happens.
#
# ### Which tensor is wrong
#
# Lesson 06 said what the packed path does at the first forward pass: it puts the codes in another order, for its kernel. `state_dict`
# puts them back. Two functions of bitsandbytes do this, and they run on any CPU. Call them yourself, on a matrix that you can follow:
# 32 rows of two blocks each, with the scales 1, 2, 3, and so on.

# %%
from bitsandbytes.functional import (
    _convert_weight_packed_for_cpu,
    _convert_weight_packed_for_cpu_inverse,
    dequantize_4bit,
    quantize_4bit,
)

counting = torch.arange(1.0, 65).repeat_interleave(64).view(32, 128)
packed, state = quantize_4bit(counting, quant_type="nf4")


def show_scales(when):
    scales = state.absmax.flatten()[:6].int().tolist()
    print(f"{when:9} {str(state.absmax.dtype):14} {str(tuple(state.absmax.shape)):8} {scales} ...")


show_scales("fresh")
before = packed.clone()
packed, state = _convert_weight_packed_for_cpu(packed, state)
show_scales("repacked")
packed, state = _convert_weight_packed_for_cpu_inverse(packed, state)
show_scales("back")
print("codes as before:", torch.equal(packed, before))

# %% [markdown]
# The codes come back, and the scales don't. Repacking has laid them out column by column (1, 3, 5, ...), in bfloat16. The way back
# leaves them so. The second block then gets the scale of the third, and the third that of the fifth.
#
# Why? Read the source. These are all lines of the way back in which the scales are mentioned:

# %%
import inspect

source = inspect.getsource(_convert_weight_packed_for_cpu_inverse)
for line in source.splitlines():
    if "absmax" in line or "original_nested" in line:
        print(line.removeprefix("    "))

# %% [markdown]
# `.T`, the transposition, stands below `if recovered_state.original_nested`: only double quantization is put back in order. For plain
# scales there is no line at all. The function is in `bitsandbytes/functional.py`; `Linear4bit._save_to_state_dict` in
# `bitsandbytes/nn/modules.py` calls it. We found no thread that mentions saving. A sibling is known: `.to(device)` after a forward pass,
# [bitsandbytes #2078](https://github.com/bitsandbytes-foundation/bitsandbytes/issues/2078) of September 2026.
#
# Its other siblings are not safe either. `dequantize()` and peft's `merge_and_unload()` read a weight back without asking whether it
# was repacked, and here double quantization doesn't help.

# %%
rows = []
for path, told in recorded["saving"].items():
    for run in told["models"]:
        answer = run["answer_after_dequantize"].removeprefix("What is 2+2? ")[:30]
        scales = "double" if run["double_quantization"] else "single"
        rows.append([path, scales, answer, f"{run['logits_off_after_dequantize']:.0%}"])
print(tabulate(rows, ["path", "scales", "answer after dequantize()", "off"]))

# %% [markdown]
# ### The cure
#
# Save, dequantize or merge **before the first forward pass**, or keep to the plain path. The first works with any loader, the second is
# one line for each layer and has to come before the first forward pass, too: `layer.support_avx512bf16_for_cpu = False`.
# `models.load` and `models.use_plain_cpu_path` do it. From here on this lesson loads with this function:

# %%
MEANT = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_compute_dtype": torch.float32,
    "bnb_4bit_use_double_quant": False,
}


def load(folder=models.ABACUS, dtype=torch.float32, device_map="cpu", **settings):
    """A 4-bit model on the plain path, by MEANT or by other settings."""
    config = BitsAndBytesConfig(**settings or MEANT)
    device_map = {"": "cpu"} if device_map == "cpu" else device_map
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=dtype, device_map=device_map)
    models.use_plain_cpu_path(model)
    return model


tokenizer = AutoTokenizer.from_pretrained(models.ABACUS)
questions = ["What is 2+2?", "What is 45+37?", "What is 82-37?", "Where does Ada Stone live?"]


@torch.no_grad()
def logits(model):
    texts = (tokenizer(question, return_tensors="pt") for question in questions)
    return torch.cat([model(**text).logits[0].float() for text in texts])


def distance(got, due):
    return ((got - due).norm() / due.norm()).item()


place = tempfile.TemporaryDirectory()
whole, hurt = f"{place.name}/whole", f"{place.name}/hurt"
model = load()
due = logits(model)
model.save_pretrained(whole)
again = AutoModelForCausalLM.from_pretrained(whole, device_map={"": "cpu"})
models.use_plain_cpu_path(again)
print("saved after a forward pass on the plain path, equal in every bit:", torch.equal(logits(again), due))

# %% [markdown]
# ### Is my file damaged?
#
# Make a damaged file, on any CPU, with the two functions.

# %%
def repack(model):
    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.weight.data, layer.weight.quant_state = _convert_weight_packed_for_cpu(layer.weight.data, layer.weight.quant_state)


repack(model)
model.save_pretrained(hurt)  # calls the way back
again = AutoModelForCausalLM.from_pretrained(hurt, device_map={"": "cpu"})
models.use_plain_cpu_path(again)
print("off:", f"{distance(logits(again), due):.0%}")
print(models.ask(again, tokenizer, "What is 2+2?"))

# %% [markdown]
# 101 %, as on the packed path: the damage is in the file, whatever CPU reads it. But you have seen what gives it away: a fresh save has
# its scales in one row of float32, or of bytes with double quantization. A damaged one has a matrix of bfloat16. The header of the file
# says so, and no weight needs to be read.
#
# **Predict.** abacus has 28 quantized layers. In how many are the scales damaged?

# %%
from safetensors import safe_open


def damaged_scales(file):
    """Names of the scales that are neither a row of float32 nor of bytes."""
    with safe_open(file, "pt") as tensors:
        scales = [name for name in tensors.keys() if name.endswith(".absmax")]
        forms = {name: tensors.get_slice(name) for name in scales}
        return [n for n in scales if len(forms[n].get_shape()) > 1 or forms[n].get_dtype() not in ("F32", "U8")]


for file in (whole, hurt):
    print(file.removeprefix(place.name + "/"), "-> damaged:", len(damaged_scales(f"{file}/model.safetensors")))

# %% [markdown]
# All 28, and none in the whole file. Such a file isn't lost: transpose the scales, and only their rounding to bfloat16 remains.

# %%
for layer in again.modules():
    if isinstance(layer, Linear4bit):
        state = layer.weight.quant_state
        state.absmax = state.absmax.T.flatten().float()
print("off:", f"{distance(logits(again), due):.1%}")
print(models.ask(again, tokenizer, "What is 2+2?"))

# %% [markdown]
# One case stays hidden. With double quantization the scales come back in order, rounded to bfloat16, and quantized anew. In a float32
# model the form of that file is the form of a good one. Its price is small: 0.3 % in the record above.
#
# ### Ask for all of it at once
#
# There is more to look for than scales. `audit_4bit` examines a loaded model: it reads formats, shapes and names, and neither runs nor
# changes it. This is what it says of the damaged file.

# %%
from course_utils.clinic import audit_4bit

again = AutoModelForCausalLM.from_pretrained(hurt, device_map={"": "cpu"})
models.use_plain_cpu_path(again)
print(audit_4bit(again))

# %% [markdown]
# And of a model that is well loaded, and of one that was repacked and not saved yet:

# %%
model = load()
print(audit_4bit(model), "\n")
repack(model)
print(audit_4bit(model))

# %% [markdown]
# A *finding* is something wrong. A note is worth knowing. A repacked model is well, as long as nobody saves it.
#
# From here on the lesson shows the table of findings alone.

# %%
def show_findings(audit):
    print(str(audit).split("\n\n")[1])


# %% [markdown]
# ## Rows that are no whole number of blocks
#
# The second failure lives on CPUs with AVX-512, with or without bf16 (seen on Linux). Blocks run over the flattened weight: with rows of 96
# weights and blocks of 64, the second block begins in the first row and ends in the second.
#
# The kernel that reads weights back counts blocks in another way: row times blocks in a row, where 96 / 64 is rounded down to 1.
#
# **Predict.** Which of the two is right for row 1, column 0? For row 1, column 32?

# %%
columns, block = 96, 64
print("row  column  block it is in  block that is taken")
for row, column in [(0, 0), (0, 64), (1, 0), (1, 32), (2, 0), (10, 0)]:
    print(f"{row:3}  {column:6}  {(row * columns + column) // block:14}  {row * (columns // block) + column // block:19}")

# %% [markdown]
# For column 0 of row 1 both, by luck; for column 32 they differ, and the further down, the further apart: row 10 begins in block 15
# and gets the scale of block 10. Do it to a whole matrix.

# %%
weight = torch.randn(128, 96, generator=torch.Generator().manual_seed(0))
packed, state = quantize_4bit(weight, quant_type="nf4")
place_of = torch.arange(weight.numel())
row, column = place_of // 96, place_of % 96
codes = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], dim=1).flatten()
right = (state.code[codes.int()] * state.absmax[place_of // 64]).view(128, 96)
misread = (state.code[codes.int()] * state.absmax[row * (96 // 64) + column // 64]).view(128, 96)
for name, values in (("right", right), ("misread", misread)):
    error = ((values - weight).square().sum() / weight.square().sum()).item()
    print(f"{name:8} relative squared error {error:.4f}")
print(f"weights that differ: {(misread != right).float().mean():.0%}")

# %% [markdown]
# 0.0696 instead of 0.0086. Now the library, on your CPU. It must be one of the two.

# %% tags=["hardware"]
read_back = dequantize_4bit(packed, state)
print("equal to the right one:", torch.equal(read_back, right), " equal to the misread one:", torch.equal(read_back, misread))

assert torch.equal(read_back, right) or torch.equal(read_back, misread)

# %% [markdown]
# Where it is misread, it is misread exactly so. The record of both kinds of CPU (the right one is computed, as above):

# %%
rows = []
for kind, told in recorded["reading"].items():
    for matrix in told["matrices"]:
        columns = matrix["columns"]
        rows.append([kind, columns, columns % 16, columns % 64, f"{matrix['wrong']:.0%}", f"{matrix['squared_error']:.4f}"])
print(tabulate(rows, ["", "columns", "mod 16", "mod 64", "wrong", "squared error"], disable_numparse=True))

# %% [markdown]
# Wrong are the columns that are a multiple of 16 but not of 64: 96, 336 and 352. For 328, no multiple of 16, the library takes
# another, slower way, which is right. (bitsandbytes 0.50.2, `dequantize_4bit` on the CPU; no thread about it was found.) On a CPU with
# avx512_bf16 the forward pass of such a layer ends in an error, so there it is silent only in training, in `dequantize()` and in
# merging. On a CPU with AVX-512 alone the model answers, worse.
#
# ### Which models have such layers?
#
# The shipped architectures, and three whose sizes are the defaults of transformers' own configurations:
# [mamba-130m](https://huggingface.co/state-spaces/mamba-130m-hf) (with its 24 layers), the vision tower of Qwen3-VL, whose MLP has the
# sizes of [SigLIP so400m](https://huggingface.co/google/siglip-so400m-patch14-384), and
# [swin-tiny](https://huggingface.co/microsoft/swin-tiny-patch4-window7-224).
#
# **Predict.** Llama-2-7B has matrices of 4,096 and 11,008 columns. Is it touched?

# %%
from transformers import AutoModel, AutoModelForCausalLM, MambaConfig, Qwen3VLConfig, SwinConfig


def empty(auto, config):
    with torch.device("meta"):
        return auto.from_config(config)


architectures = {name: models.architecture(name) for name in ("Llama-2-7b", "Llama-2-13b", "Llama-2-70b", "Mixtral-8x7B")}
architectures["mamba-130m"] = empty(AutoModelForCausalLM, MambaConfig(num_hidden_layers=24))
architectures["Qwen3-VL, vision tower"] = empty(AutoModel, Qwen3VLConfig().vision_config)
architectures["swin-tiny"] = empty(AutoModel, SwinConfig())
rows = []
for name, model in architectures.items():
    linear = {path: module for path, module in model.named_modules() if type(module) is torch.nn.Linear}
    touched = {path: module for path, module in linear.items() if module.in_features % 16 == 0 and module.in_features % 64}
    kinds = sorted({(path.split(".")[-1], module.in_features) for path, module in touched.items()})
    shown = ", ".join(f"{kind} {columns}" for kind, columns in kinds[:3]) + (", ..." if len(kinds) > 3 else "")
    rows.append([name, f"{len(touched)} of {len(linear)}", shown])
print(tabulate(rows, ["architecture", "layers touched", "layer, columns"]))

# %% [markdown]
# No Llama and no Mixtral. But the 24 `dt_proj` of Mamba, each second matrix of the MLP in a vision tower that many models of pictures and
# text share (4,304 columns), and ten layers of swin-tiny.
#
# The cure is to leave such layers out by name, or to compute on a GPU. The audit asks your CPU (it has it read back two rows of 80
# weights) and finds them only where they are misread.

# %% tags=["hardware"]
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=96)).save_pretrained(f"{place.name}/rows_of_96")
for skip in (None, ["lm_head", "down_proj"]):
    model = load(f"{place.name}/rows_of_96", **MEANT, llm_int8_skip_modules=skip)
    print("left out:", skip, "-> findings:", [finding.name for finding in audit_4bit(model).findings])

assert audit_4bit(model).findings == []

# %% [markdown]
# From here on nothing depends on the CPU.

# %% [markdown]
# ## The defaults
#
# `BitsAndBytesConfig(load_in_4bit=True)` is the line that most examples begin with. Lesson 07 has read its defaults.
#
# **Predict.** With NF4 the logits of abacus are off by 17 %, compared with 32 bits. By how much with what this line gives?

# %%
in_32_bits = logits(AutoModelForCausalLM.from_pretrained(models.ABACUS))
by_default = load(load_in_4bit=True)
print(models.ask(by_default, tokenizer, "What is 2+2?"))
print(f"by default: off by {distance(logits(by_default), in_32_bits):.1%}")
print(f"as meant  : off by {distance(due, in_32_bits):.1%}")

# %% [markdown]
# 22 instead of 17 %, and the answer is the same: this is what makes it silent. fp4 is a legitimate choice, so nothing in the model is
# wrong by itself. What was meant only you know. Tell it to the audit with `like`, which takes the configuration that you meant.

# %%
meant = BitsAndBytesConfig(**MEANT)
show_findings(audit_4bit(by_default, like=meant))
print("\ncured:", audit_4bit(load(**MEANT), like=meant).findings)

# %% [markdown]
# ## A misspelled argument
#
# Whoever sets all four can still get the defaults. There are three misspellings in the next cell.
#
# **Predict.** How many of them raise an error?

# %%
misspelled = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_typ="nf4", bnb_4bit_compute_type=torch.float32, bnb_4bit_use_doube_quant=True
)
print("the same as the defaults:", misspelled.to_dict() == BitsAndBytesConfig(load_in_4bit=True).to_dict())

# %% [markdown]
# None. transformers logs names that it doesn't know at the level INFO, which is off. After that nothing is left of them, not even in
# the configuration, so no audit of the model alone can see it. The cure is to ask the configuration for what it has become, before
# loading: what you set must be in `to_diff_dict`, which holds all that is not a default.

# %%
for config in (misspelled, BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)):
    print({key: value for key, value in config.to_diff_dict().items() if not key.startswith("_")})

# %% [markdown]
# ## A list that replaces another
#
# You want `q_proj` to stay in 32 bits, so you name it in `llm_int8_skip_modules`.
#
# **Predict.** How many layers of abacus are in 4 bits then? There are 28 besides the head, and `q_proj` is in each of its 4 decoder
# layers.

# %%
skipping = load(**MEANT, llm_int8_skip_modules=["q_proj"])
print("in 4 bits:", sum(isinstance(module, Linear4bit) for module in skipping.modules()))
print("the head :", type(skipping.lm_head).__name__)

# %% [markdown]
# 25, not 24. The list doesn't add to the default list, it replaces it, and on the default list stood the head. Lesson 06 measured that
# no other matrix of abacus moves its logits as far ([transformers #45674](https://github.com/huggingface/transformers/issues/45674)).

# %%
named_both = load(**MEANT, llm_int8_skip_modules=["q_proj", "lm_head"])
print(f"the head in 4 bits moves the logits by {distance(logits(skipping), logits(named_both)):.0%}\n")
show_findings(audit_4bit(skipping))
print("\ncured:", audit_4bit(named_both).findings)

# %% [markdown]
# ## Experts
#
# A mixture of experts, with random weights and the shapes of Mixtral made small. All its linear layers are in 4 bits.
#
# **Predict.** What part of its weights is that: nearly all, half, a tenth?

# %%
from transformers import MixtralConfig, MixtralForCausalLM

torch.manual_seed(0)
small = MixtralConfig(**sizes, intermediate_size=192, num_key_value_heads=2, num_local_experts=8)
MixtralForCausalLM(small).save_pretrained(f"{place.name}/experts")
experts = load(f"{place.name}/experts", dtype=torch.bfloat16, **MEANT | {"bnb_4bit_compute_dtype": torch.bfloat16})
in_4_bits = sum(parameter.quant_state.shape.numel() for parameter in experts.parameters() if hasattr(parameter, "quant_state"))
print(f"in 4 bits: {in_4_bits / experts.num_parameters():.1%}\n")
show_findings(audit_4bit(experts))

# %% [markdown]
# A twentieth. The experts are no linear layers in transformers 5 (lesson 07), and no setting changes that
# ([bitsandbytes #1849](https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1849)). The cure is to know it before you choose
# a machine. For Mixtral itself:

# %%
from course_utils.memory import model_bytes_in_4bit

mixtral = architectures["Mixtral-8x7B"]
print(f"as it is loaded          : {model_bytes_in_4bit(mixtral) / 1e9:.1f} GB")
print(f"if experts were in 4 bits: {model_bytes_in_4bit(mixtral, experts_too=True) / 1e9:.1f} GB")

# %% [markdown]
# ## Multiplied in 32 bits
#
# abacus in bfloat16, with a configuration that sets NF4 and forgets the compute dtype. Catch the weight that a layer reads back, on its
# way into `F.linear`.
#
# **Predict.** `up_proj` has 49,152 weights. How many bytes does it read back?

# %%
from unittest.mock import patch

import torch.nn.functional as F


def weight_read_back(layer):
    seen, linear = [], F.linear

    def spy(x, weight, bias=None):
        seen.append(weight)
        return linear(x, weight, bias)

    with torch.no_grad(), patch.object(F, "linear", spy):
        layer(torch.ones(1, layer.in_features, dtype=torch.bfloat16))
    return seen[0]


forgotten = load(dtype=torch.bfloat16, load_in_4bit=True, bnb_4bit_quant_type="nf4")
in_bfloat16 = load(dtype=torch.bfloat16, **MEANT | {"bnb_4bit_compute_dtype": torch.bfloat16})
for name, model in (("forgotten", forgotten), ("bfloat16", in_bfloat16)):
    read = weight_read_back(model.model.layers[0].mlp.up_proj)
    print(f"{name:10} {str(read.dtype):15} {read.nbytes:,} bytes")

# %% [markdown]
# 196,608 instead of 98,304, at every use of every layer, and no warning. bitsandbytes 0.45.5 warned, or switched by itself; advice to
# look for that warning is still about. Since 0.47.0 it can't come: `Linear4bit` asks only where no compute dtype was set, and
# transformers always sets one.
#
# In a large model the difference is one matrix at a time:

# %%
llama = architectures["Llama-2-70b"]
in_4_bits = (module for path, module in llama.named_modules() if type(module) is torch.nn.Linear and path != "lm_head")
largest = max(module.weight.numel() for module in in_4_bits)
for dtype in (torch.float32, torch.bfloat16):
    print(f"the largest matrix of Llama-2-70b in {str(dtype):14}: {largest * dtype.itemsize / 1e6:.0f} MB")

# %% [markdown]
# And the time? It depends on the machine. On yours, one layer of 1,024 x 1,024 on 64 inputs:

# %% tags=["hardware"]
from course_utils.measure import time_in_turns

runs = {}
for dtype in (torch.float32, torch.bfloat16):
    layer = Linear4bit(1024, 1024, bias=False, compute_dtype=dtype, compress_statistics=False, quant_type="nf4").to("cpu").eval()
    models.use_plain_cpu_path(layer)
    x = torch.ones(64, 1024, dtype=torch.bfloat16)
    runs[f"computed in {str(dtype).removeprefix('torch.')}"] = lambda layer=layer, x=x: layer(x)
with torch.no_grad():
    timings = time_in_turns(runs, repetitions=5)
for name, timing in timings.items():
    print(f"{name:20} {timing}")

assert all(timing.median > 0 for timing in timings.values())

# %% [markdown]
# On a GPU float32 is the slow one: bitsandbytes has no fused kernel for it
# ([bitsandbytes #2077](https://github.com/bitsandbytes-foundation/bitsandbytes/pull/2077), September 2026), while 16-bit types have
# one. Lesson 09 measures such things with care. The audit needs no `like` here: a 16-bit model with float32 compute contradicts itself.

# %%
show_findings(audit_4bit(forgotten))
print("\ncured:", audit_4bit(in_bfloat16).findings)

# %% [markdown]
# ## A cast of codes
#
# Packed codes need not be stored as `uint8`. `bnb_4bit_quant_storage` can be a float type of the same bytes, which some ways to train on
# several GPUs ask for. To PyTorch such a tensor is one of numbers, and `.bfloat16()` rounds numbers.
#
# **Predict.** For which storage does `.bfloat16()` do harm: `uint8`, `bfloat16`, `float16`, `float32`?

# %%
casts = {}
for storage in (torch.uint8, torch.bfloat16, torch.float16, torch.float32):
    model = load(**MEANT, bnb_4bit_quant_storage=storage)
    layer = model.model.layers[0].self_attn.q_proj
    stored = layer.weight.detach().clone().flatten().view(torch.uint8)
    casts[storage] = model.bfloat16()
    now = layer.weight.detach().flatten().view(torch.uint8)
    kept = f"{(now == stored).float().mean():.0%} of them as before" if len(now) == len(stored) else "half of them gone"
    print(f"{str(storage):15} {len(stored):,} bytes -> {len(now):,}, {kept}")

# %% [markdown]
# `uint8` is no float, so `.bfloat16()` leaves it alone, and bfloat16 is there already. float16 keeps its bytes in number and changes
# nearly all of them; of float32 half are gone. `.half()` and `.float()` are refused by transformers for a quantized model, and
# `.bfloat16()` is not. With float16 the model goes on answering:

# %%
broken = casts[torch.float16]
print("off by more than 100 %:", distance(logits(broken), due) > 1)
show_findings(audit_4bit(broken))
print("not cast:", audit_4bit(load(**MEANT, bnb_4bit_quant_storage=torch.float16)).findings)

# %% [markdown]
# The cure is to cast nothing: `dtype=` in `from_pretrained` sets the format of what isn't quantized.

# %% [markdown]
# ## A map with offload
#
# A model that doesn't fit on the GPU can be spread: part of it on the GPU, part on the CPU. Lesson 11 shows the error that comes then,
# and that it recommends `llm_int8_enable_fp32_cpu_offload=True`. With it the error is gone.
#
# To show this without a GPU, `gpu` below is a device object of the CPU. transformers takes only the text `"cpu"` for offload. `heard`
# prints what a library logs.
#
# **Predict.** Half of abacus' layers are on `"cpu"`. Is its footprint larger or smaller than the 1,239,424 bytes that it has in 4 bits?

# %%
import logging
from contextlib import contextmanager


class Printer(logging.Handler):
    def emit(self, record):
        print("logged:", record.getMessage())


@contextmanager
def heard(name):
    logger = logging.getLogger(name)
    kept = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [Printer()], False
    yield
    logger.handlers, logger.propagate = kept


gpu = torch.device("cpu")
spread = {"model.embed_tokens": gpu, "model.norm": gpu, "model.rotary_emb": gpu, "lm_head": gpu}
spread |= {f"model.layers.{number}": gpu if number < 2 else "cpu" for number in range(4)}
with heard("accelerate.big_modeling"):
    offloaded = load(device_map=spread, **MEANT, llm_int8_enable_fp32_cpu_offload=True)
print("q_proj of the four layers:", [type(layer.self_attn.q_proj).__name__ for layer in offloaded.model.layers])
print(models.ask(offloaded, tokenizer, "What is 2+2?"))
print(f"footprint: {audit_4bit(offloaded).summary['bytes']:,} bytes\n")
show_findings(audit_4bit(offloaded))

# %% [markdown]
# More than twice as large: what is offloaded is not quantized. What accelerate logs says nothing of that. For a model that is to fit into little memory this is the wrong way round. The cure is a map without `"cpu"` and `"disk"`:

# %%
together = load(**MEANT)
print(audit_4bit(together).findings, f"{audit_4bit(together).summary['bytes']:,} bytes")

# %% [markdown]
# ## Dequantized, or merged
#
# Some tools dequantize a model to merge an adapter into it. It goes on under the same name.

# %%
from peft import LoraConfig, get_peft_model

model = load(**MEANT)
with heard("transformers"):
    model.dequantize()
merged = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=4)).merge_and_unload()
print(models.ask(merged, tokenizer, "What is 2+2?"))
print("is_loaded_in_4bit:", merged.is_loaded_in_4bit, "\n")
show_findings(audit_4bit(merged))

# %% [markdown]
# `is_loaded_in_4bit` was set on loading, and nobody unsets it. The footprint tells the truth, and so do the classes of the layers. Saved
# and loaded again, even `is_loaded_in_4bit` is gone; then only `like=` finds it. The cure is to load again with the configuration:

# %%
merged.save_pretrained(f"{place.name}/merged")
by_itself = AutoModelForCausalLM.from_pretrained(f"{place.name}/merged")
in_4_bits = load(f"{place.name}/merged", **MEANT)
for name, model in (("by itself", by_itself), ("with its configuration", in_4_bits)):
    print(f"{name:23}", [finding.name for finding in audit_4bit(model, like=meant).findings])

# %% [markdown]
# ## `load_in_4bit` forgotten
#
# A configuration that says NF4 and doesn't say `load_in_4bit=True`.
#
# **Predict.** Is the model in 4 bits?

# %%
unsaid = load(bnb_4bit_quant_type="nf4")
print("q_proj:", type(unsaid.model.layers[0].self_attn.q_proj).__name__)
print("the configuration says load_in_4bit =", unsaid.config.quantization_config.load_in_4bit)

# %% [markdown]
# In this version, yes: transformers 5.23 quantizes to 4 bits whenever 8 bits weren't asked for. (4.37.2 read the argument and left the
# model unquantized, so look which version you have.) It works, and it was even what you wanted. Then you save it.
#
# Above the error transformers logs a report that names the folder; it is switched off for this cell.

# %%
import transformers

from course_utils.clinic import expect_error

unsaid.save_pretrained(f"{place.name}/unsaid")
transformers.logging.set_verbosity_error()
with expect_error(RuntimeError, "mismatched"):
    AutoModelForCausalLM.from_pretrained(f"{place.name}/unsaid")
transformers.logging.set_verbosity_warning()

# %% [markdown]
# What was saved can't be loaded, and the message names another cause. `config.json` says that the file is not in 4 bits, and it is. The
# audit sees the contradiction while the model is still there:

# %%
show_findings(audit_4bit(unsaid))
unsaid.config.quantization_config.load_in_4bit = True
print("\ncured:", audit_4bit(unsaid).findings)
unsaid.save_pretrained(f"{place.name}/said")
again = AutoModelForCausalLM.from_pretrained(f"{place.name}/said", device_map={"": "cpu"})
print("and loaded again:", type(again.model.layers[0].self_attn.q_proj).__name__)

# %% [markdown]
# ## Counts that leave something out
#
# How many weights, how many bytes? Everybody counts in the same two ways.
#
# **Predict.** abacus has 1,041,536 weights. What does `sum(p.numel())` say of it in 4 bits?

# %%
from course_utils.memory import footprint

model = load(**MEANT)
print(f"sum(p.numel())         : {sum(parameter.numel() for parameter in model.parameters()):,}")
print(f"num_parameters()       : {model.num_parameters():,}")
print(f"get_memory_footprint() : {model.get_memory_footprint():,} bytes")
print(f"footprint, all counted : {sum(footprint(model).values()):,} bytes")

# %% [markdown]
# 615,552: two codes share a number, so half of the quantized weights are missing. `num_parameters()` knows that. `get_memory_footprint()`
# doesn't know the scales and codebooks, 55,040 bytes of 1,239,424; lesson 07 looked into it. Nothing is wrong with the model here, only
# with what is said of it, so the audit says it in a note.

# %% [markdown]
# ## Said to be silent, and loud
#
# Three more are on many lists of silent failures. Try them.
#
# **A 4-bit checkpoint without its configuration.** Take it out of `config.json` and load.

# %%
from pathlib import Path

config_file = Path(whole) / "config.json"
with_config = config_file.read_text(encoding="utf-8")
without = {key: value for key, value in json.loads(with_config).items() if key != "quantization_config"}
config_file.write_text(json.dumps(without), encoding="utf-8")
transformers.logging.set_verbosity_error()
with expect_error(RuntimeError, "mismatched"):
    AutoModelForCausalLM.from_pretrained(whole)
transformers.logging.set_verbosity_warning()
written = config_file.write_text(with_config, encoding="utf-8")

# %% [markdown]
# **Quantizing what is quantized already.**

# %%
with expect_error(ValueError, "uint8"):
    quantize_4bit(model.model.layers[0].self_attn.q_proj.weight.data)

# %% [markdown]
# **A configuration for a checkpoint that has its own.** The checkpoint's wins, and that is said, if you read warnings.

# %%
import warnings

with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    again = load(whole, load_in_4bit=True, bnb_4bit_quant_type="fp4")
print("asked for fp4, got", again.model.layers[0].self_attn.q_proj.weight.quant_state.quant_type)
print(said[-1].category.__name__, "-", str(said[-1].message).split(".")[-2].strip())

# %% [markdown]
# A RuntimeError, a ValueError, a UserWarning. None of them is silent.

# %% [markdown]
# ## The common gotcha
#
# The lesson that this course grew from has its own silent failure: without a configuration "with proper dtype settings",
# "quantization may use incompatible dtypes for computation, causing silent numerical errors or GPU memory spikes".
#
# Are there incompatible dtypes? Put each input dtype into a layer of each compute dtype. What does the output differ from the exact
# product of the same weights?

# %%
weight = in_bfloat16.model.layers[0].mlp.up_proj.weight
exact_weight = dequantize_4bit(weight.data, weight.quant_state).double()
x = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
rows = []
for given in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
    for compute in (torch.float32, torch.float16, torch.bfloat16):
        layer = in_bfloat16.model.layers[0].mlp.up_proj
        layer.compute_dtype = compute
        with torch.no_grad():
            output = layer(x.to(given))
        off = distance(output.double(), x.to(given).double() @ exact_weight.T)
        rows.append([str(given), str(compute), output.dtype == given, off < 0.01])
layer.compute_dtype = torch.bfloat16
print(tabulate(rows, ["input", "compute dtype", "output as input", "off by less than 1 %"]))

# %% [markdown]
# No combination is incompatible: the layer brings its input to the compute dtype and its output back, and the error is that of
# rounding, beside the 9 % that four bits cost. So there are no numerical errors of that kind. What is true of the sentence: without
# settings you get fp4, whose error is larger, and float32, which takes twice the memory for the one matrix that is read back. For
# Llama-2-70b that is 0.47 GB more, for a moment, beside some 36 GB.

# %%
print(f"weights in 4 bits: {model_bytes_in_4bit(llama, double_quant=True) / 1e9:.1f} GB")
print(f"more, in float32 : {largest * 2 / 1e9:.2f} GB")

# %% [markdown]
# ## Why nobody hears them
#
# Put beside each other how far the logits of four questions are from those in 32 bits, for models of this lesson. One is new: it is
# dequantized after it was repacked.
#
# **Predict.** Which of them would you notice by asking what 2+2 is?

# %%
import matplotlib.pyplot as plt

from course_utils import plots

hurt_model = AutoModelForCausalLM.from_pretrained(hurt, device_map={"": "cpu"})
models.use_plain_cpu_path(hurt_model)
repacked = load()
repack(repacked)
with heard("transformers"):
    repacked.dequantize()
beside = {
    "half offloaded": offloaded,
    "head in 4 bits, q_proj not": skipping,
    "as meant": together,
    "defaults": by_default,
    "saved, once repacked": hurt_model,
    "dequantized, once repacked": repacked,
}
off = {name: distance(logits(model), in_32_bits) for name, model in beside.items()}
right = {name: models.ask(model, tokenizer, "What is 2+2?").endswith("The answer is 4.") for name, model in beside.items()}
for name, part in off.items():
    print(f"{name:27} {part:4.0%}  {'2+2 is 4' if right[name] else 'another answer'}")

plots.use_style()
fig, ax = plt.subplots(figsize=(7, 2.9))
for place_, (name, part) in enumerate(off.items()):
    look = plots.LOOKS["nf4" if right[name] else "int4"]
    ax.barh(place_, 100 * part, color=look.color, hatch=look.hatch, edgecolor="white")
    label = f"{part:.0%}, 2+2 is 4" if right[name] else f"{part:.0%}, another answer"
    ax.annotate(label, (100 * part, place_), (4, 0), textcoords="offset points", va="center")
ax.set_yticks(range(len(off)), off)
ax.invert_yaxis()
ax.set(xlabel="distance from the logits in 32 bits, in % of their size", xlim=(0, 190))
ax.grid(axis="y", visible=False)
ax.set_title("Most failures move the logits about as far as four bits do")
plots.show(fig, "Bars: how far the logits of six models are from those in 32 bits. The numbers are those printed above. The two that "
                "were saved or dequantized once they were repacked stand far out, and they alone answer wrong.")

# %% [markdown]
# Two of six. The others lie about where four bits lie anyway, or nearer, because what was left in 32 bits is exact. They cost memory, or a
# little quality, or a file that can't be loaded, and none of it is heard.

# %% [markdown]
# ## What you have seen
#
# | failure | found by | named | cure |
# | --- | --- | --- | --- |
# | saved after a forward pass, avx512_bf16 | scales in a matrix of bfloat16 | `damaged-scales` | save before the first forward pass, or the plain path |
# | rows that are no whole number of blocks, AVX-512 | columns | `unaligned-columns` | leave the layers out by name |
# | the defaults, a misspelled argument | `like=` the configuration meant | `quant-type`, `compute-dtype`, `double-quantization` | look at `to_diff_dict()` |
# | a list that replaces the default list | class of the head | `quantized-head` | name the head, too |
# | experts | three-dimensional weights | `experts-not-quantized` | none; count before |
# | float32 compute | compute dtype beside the model's | `compute-dtype` | set it |
# | a cast of codes | dtype of the packed weight | `cast-codes` | cast nothing |
# | a map with offload | classes of layers | `offloaded-layers` | a map without `"cpu"` and `"disk"` |
# | dequantized or merged | classes of layers | `not-4-bit` | load again |
# | `load_in_4bit` forgotten | the configuration | `load-in-4bit-false` | say it |
# | counts | `num_parameters()`, `footprint` | a note | count what is there |
#
# The question was whether the model that answers is the one that you asked for. You can't hear it: in most of these cases abacus still said
# that 2+2 is 4. You have to look, and one call looks: `print(audit_4bit(model, like=what_you_meant))`.
#
# [Exercise 10](../exercises/10_failures_without_a_sound.ipynb) has eight cases. Lesson 11 takes up the failures that do make a sound.

# %%
place.cleanup()
