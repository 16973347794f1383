# %% [markdown]
# # A layer in four bits
#
# Lesson 05 ended with bytes, and they were those of bitsandbytes. Bytes don't answer questions. How does a model compute with weights
# that are stored as codes?
#
# | | |
# | --- | --- |
# | **What you'll do** | write a linear layer of 4-bit weights, put it into a model 28 times, and compare its scores with bitsandbytes' |
# | **What you'll learn** | when and in which format a weight is read back, why the head stays, what "equal" takes, where gradients flow |
# | **What you need** | [lesson 05](05_pack_and_quantize_twice.ipynb) |
# | **Time** | 45 minutes |
#
# This lesson compares bits on the CPU, and stays there where there is a GPU too. The first cell sees to that.

# %%
import os

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

# %% [markdown]
# ## Codes are not numbers
#
# A linear layer has one row of weights for each output. An output is the sum of its row's weights, each times the input that belongs to
# it.
#
# Take a layer of four inputs and two outputs, small enough for paper. Its weights are int4 codes, two in a byte, and each row is a
# block with one scale.

# %%
packed = [0x70, 0x93, 0x2F, 0x4C]  # two bytes a row: the codes 7 0 9 3, and 2 15 4 12
scales = [0.7, 3.5]  # one a row
x = [1.0, 2.0, 3.0, 4.0]

# %% [markdown]
# **Predict.** What comes out if you multiply the codes by the inputs, as if they were weights?

# %%
for row in range(2):
    codes = []
    for byte in packed[2 * row : 2 * row + 2]:
        codes += [byte >> 4, byte & 0b1111]
    total = sum(code * number for code, number in zip(codes, x, strict=True))
    print("codes", codes, " sum of code * input:", total)

# %% [markdown]
# 46 and 92. These numbers mean nothing: a code names a place in the codebook, and a larger code needn't be a larger weight.
#
# Which value stands in which place is a convention. Lesson 03 put int4's values in ascending order. `CODEBOOKS` reads the four bits as computers do
# (*two's complement*): 0 to 7 are themselves, from 8 on take off 16. So 9 is -7, and stands for -7/7 = -1. (8 would be -8/7. Quantizing never yields it:
# lesson 02.)
#
# Whatever the convention, a code has to become a weight before it can be multiplied: its value in the codebook, times the scale of its block.
#
# int4's values are sevenths, and 0.7 and 3.5 were chosen so that you can do it in your head: code 3 in the first row is $3/7 \times 0.7
# = 0.3$.
#
# **Predict.** The codes of the first row are 7, 0, 9 and 3. Which weights are they, and what is the first output?

# %%
from course_utils.codebooks import int4_value

for row in range(2):
    weights = []
    for byte in packed[2 * row : 2 * row + 2]:
        for code in (byte >> 4, byte & 0b1111):
            weights.append(int4_value(code) * scales[row])
    output = sum(weight * number for weight, number in zip(weights, x, strict=True))
    print("weights", [round(weight, 6) for weight in weights], " output", round(output, 6))

# %% [markdown]
# The weights are 0.7, 0, -0.7 and 0.3, and $0.7 \cdot 1 + 0 \cdot 2 - 0.7 \cdot 3 + 0.3 \cdot 4 = -0.2$.
#
# Now with tensors, and with the functions of the lessons before. `F.linear(x, weight)` multiplies each row of the weight by the input
# and adds up, for any number of inputs at once.

# %%
import torch
import torch.nn.functional as F

from course_utils.codebooks import CODEBOOKS
from course_utils.quantize import unpack, values_times_scales

codes = unpack(torch.tensor(packed, dtype=torch.uint8))
int4 = CODEBOOKS["int4"].values
weight = values_times_scales(codes, torch.tensor(scales), int4, block_size=4).view(2, 4)
print([round(output, 6) for output in F.linear(torch.tensor(x), weight).tolist()])

# %% [markdown]
# The same numbers.

# %% [markdown]
# ## A layer of a real model
#
# Here is a linear layer of abacus, as it was trained.

# %%
from course_utils import models
from course_utils.quantize import quantize_4bit

model, tokenizer = models.load(models.ABACUS)
linear = model.get_submodule("model.layers.0.self_attn.q_proj")
q = quantize_4bit(linear.weight)
print("shape:", tuple(q.shape))
print(f"bytes in float32: {linear.weight.nbytes:,}, in 4 bits: {q.nbytes:,}")

# %% [markdown]
# A forward pass has three steps: read the weight back, multiply, throw the weight away. The layer keeps the 4 bits only. To read back at each use is to *dequantize on the fly*.

# %%
@torch.no_grad()
def forward(x):
    weight = q.dequantize()
    return F.linear(x, weight)  # `weight` ends here


x = torch.randn(5, 128, generator=torch.Generator().manual_seed(0))
print("outputs", tuple(forward(x).shape))

# %% [markdown]
# So the full weight is there for a moment after all.
#
# **Predict.** Does a model in 4 bits therefore need the memory of a full one while it computes?

# %%
llama = models.architecture("Llama-2-7b")
linears = [layer.weight.numel() for layer in llama.modules() if isinstance(layer, torch.nn.Linear)]
print(f"all linear layers but the head, in 4.5 bits: {sum(linears[:-1]) * 4.5 / 8 / 1e9:.2f} GB")
print(f"the largest of them, read back in bfloat16 : {max(linears[:-1]) * 2 / 1e9:.2f} GB")

# %% [markdown]
# No, because the layers take turns: one weight is read back at a time. For Llama-2-7B that is 0.09 GB on top of the 3.64 GB of these layers. The price is
# paid in work instead: every weight is read back in every forward pass, for each token that the model writes. Lesson 09 measures that.

# %% [markdown]
# ## In which format does it multiply?
#
# The 4 bits don't say. A weight that is read back may be a float32, a float16 or a bfloat16. But both factors of a product must have
# the same format:

# %%
try:
    F.linear(x, q.dequantize(torch.bfloat16))
except RuntimeError as error:
    print(type(error).__name__, "for an input of", x.dtype)

# %% [markdown]
# So the layer has a *compute dtype*. The weight is read back in it, the input is rounded to it, the product is made in it, and the
# output gets the dtype of the input again.

# %%
@torch.no_grad()
def forward(x, compute_dtype):
    weight = q.dequantize(compute_dtype)
    return F.linear(x.to(compute_dtype), weight).to(x.dtype)


for compute_dtype in (torch.float32, torch.float16, torch.bfloat16):
    output = forward(x, compute_dtype)
    print(f"{str(compute_dtype):14} stored: {q.nbytes:,} bytes, output: {output.dtype}")

# %% [markdown]
# The same bytes are stored each time. The compute dtype is no property of the weights; it says what is done with them.
#
# **Predict.** In lesson 05 NF4 had a relative squared error of 0.0085. Its root is 9 %, so four bits move weights by about a tenth, in the root mean square;
# `relative_error` below is such a root. The compute dtype rounds once more. Is that error as
# large, a tenth of it, or less?

# %% tags=["hardware"]
def relative_error(got, due):
    return ((got.double() - due).norm() / due.norm()).item()


exact = x.double() @ q.dequantize().double().T
dtypes = (torch.float32, torch.float16, torch.bfloat16)
errors = {dtype: relative_error(forward(x, dtype), exact) for dtype in dtypes}
for dtype, error in errors.items():
    print(f"{str(dtype):14} rounding moves the outputs by {error:.6%}")
four_bits = relative_error(exact, x.double() @ linear.weight.detach().double().T)
print(f"four bits move them by {four_bits:.1%}")

assert errors[torch.float32] < errors[torch.float16] < errors[torch.bfloat16] < four_bits / 10

# %% [markdown]
# Less than a tenth, even for bfloat16, the coarsest of the three: the last line of the cell holds it to that. The digits depend on the
# processor, and the order doesn't. So a finer compute dtype brings back nothing of what four bits took away.
#
# The lesson that this course grew from puts it in one sentence: "The actual model weights in memory are 4-bit, but computation happened
# in bfloat16." You have seen both halves of it.

# %% [markdown]
# ## A gradient for the input
#
# A model is trained with gradients: for each number, how much would the result change if this number changed a little? Take the small
# layer from above and the sum of its two outputs.
#
# **Predict.** If the first input grows by 1, by how much does the sum of both outputs grow? The weights were 0.7, 0, -0.7, 0.3 and 1,
# -0.5, 2, -2.

# %%
small_x = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
F.linear(small_x, weight).sum().backward()
print([round(number, 6) for number in small_x.grad.tolist()])

# %% [markdown]
# By 1.7: the input goes into the first output 0.7 times and into the second 1 time. The gradient for the inputs is the gradient for the
# outputs, here 1 and 1, times the weight. And the gradient for the weight? Ask for one where the codes are.

# %%
try:
    codes.requires_grad_()
except RuntimeError as error:
    print(f"{type(error).__name__}: {str(error).capitalize()}")

# %% [markdown]
# There is none. A code is a place in a list, and "a little more than place 9" is not a place. A layer in 4 bits is *frozen*: it passes
# gradients on, and itself is not trained.
#
# To pass them on it needs its weight a second time, on the way back. PyTorch's *autograd*, which records what has to be known for the
# way back, keeps the weight that was read back. Count what it keeps:

# %%
from torch.autograd.graph import saved_tensors_hooks


def bytes_kept(forward):
    kept = []

    def keep(tensor):
        kept.append(tensor.nbytes)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        forward(torch.ones(5, 128, requires_grad=True))
    return sum(kept)


print(f"kept for the way back: {bytes_kept(lambda x: F.linear(x, q.dequantize())):,} bytes")

# %% [markdown]
# 65,536 bytes, the whole weight in float32. Now the layers don't take turns any more. Until the way back begins, the weights of all of
# them are there at once, and nothing is left of the saving.
#
# The remedy is to say by hand what the way back does: read the weight back once more. An `autograd.Function` has a `forward` and a
# `backward`; what is put into `ctx` is kept between them. `ctx.needs_input_grad` says for each argument whether its gradient is wanted. One calls
# the function by `.apply`, which runs `forward` and records `backward`.

# %%
class MultiplyByQuantized(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.weight = weight  # the four bits
        return F.linear(x, weight.dequantize(x.dtype), bias)

    @staticmethod
    def backward(ctx, grad):
        needs_x, _, needs_bias = ctx.needs_input_grad
        grad_x = grad @ ctx.weight.dequantize(grad.dtype) if needs_x else None
        grad_bias = grad.reshape(-1, grad.shape[-1]).sum(dim=0) if needs_bias else None
        return grad_x, None, grad_bias


kept = bytes_kept(lambda x: MultiplyByQuantized.apply(x, q, None))
output = MultiplyByQuantized.apply(torch.ones(5, 128, requires_grad=True), q, None)
in_ctx = sum(value.nbytes for value in vars(output.grad_fn).values())
print(f"kept for the way back: {kept:,} bytes by autograd, {in_ctx:,} bytes in ctx")

# %% [markdown]
# autograd keeps nothing by itself now; what we put into `ctx` are the 9,216 bytes of the four bits, and the layer has those anyway. (`ctx` becomes the
# `grad_fn` of the output.)
#
# `backward` returns three things, one for each argument: the gradient for the input, none for the weight, and one for the *bias*, a
# number that some layers add to each output. The gradient is the one that autograd finds by itself:

# %%
def input_gradient(forward):
    numbers = x.clone().requires_grad_()
    forward(numbers).square().sum().backward()
    return numbers.grad


autograds = input_gradient(lambda x: F.linear(x, q.dequantize()))
ours = input_gradient(lambda x: MultiplyByQuantized.apply(x, q, None))
print("same numbers:", torch.allclose(ours, autograds, rtol=1e-4, atol=1e-4))

# %% [markdown]
# ## A module
#
# PyTorch's models are made of modules: objects that keep weights and have a `forward`. Ours keeps a weight in 4 bits. The class method
# `from_linear` makes one from a layer that has its weight already.

# %%
from torch import nn


class HandLinear4bit(nn.Module):
    def __init__(self, in_features, out_features, bias=True, compute_dtype=torch.bfloat16):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.compute_dtype = compute_dtype
        self.weight = None  # a Quantized4bit
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    @classmethod
    def from_linear(
        cls, linear, codebook="nf4", block_size=64, double_quant=False, compute_dtype=torch.bfloat16
    ):
        layer = cls(linear.in_features, linear.out_features, False, compute_dtype)
        layer.weight = quantize_4bit(linear.weight, codebook, block_size, double_quant)
        layer.bias = linear.bias
        return layer

    def forward(self, x):
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        return MultiplyByQuantized.apply(x.to(self.compute_dtype), self.weight, bias).to(x.dtype)


# %% [markdown]
# An `nn.Linear` registers its weight as a *parameter*, a tensor that training may change.
#
# **Predict.** `q_proj` has 16,384 weights and no bias. How many parameters does the layer have before and after?

# %%
layer = HandLinear4bit.from_linear(linear, compute_dtype=torch.float32)
print("before:", sum(parameter.numel() for parameter in linear.parameters()))
print("after :", sum(parameter.numel() for parameter in layer.parameters()))
print("bits a weight:", layer.weight.bits_per_weight)

# %% [markdown]
# None. Our weight is no parameter, and there is nothing in the layer that training could change.
#
# ### The same bits
#
# bitsandbytes has a class for the same purpose, `Linear4bit`. Load abacus with it. `models.load` passes the configuration on to
# transformers, which puts `Linear4bit` in place of `nn.Linear`.

# %%
from transformers import BitsAndBytesConfig


def load_with_bitsandbytes(compute_dtype=torch.float32, double_quant=False):
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_use_double_quant=double_quant,
    )
    return models.load(models.ABACUS, quantization_config=config)[0]


theirs = load_with_bitsandbytes().get_submodule("model.layers.0.self_attn.q_proj")
print("same bytes :", torch.equal(layer.weight.packed, theirs.weight.data))
print("same scales:", torch.equal(layer.weight.absmax, theirs.weight.quant_state.absmax))

# %% [markdown]
# Now the outputs and the gradient for the input, in each compute dtype. `torch.equal` allows no difference, not in the last bit.

# %%
for compute_dtype in dtypes:
    layer.compute_dtype = theirs.compute_dtype = compute_dtype
    outputs = torch.equal(layer(x), theirs(x))
    gradients = torch.equal(input_gradient(layer), input_gradient(theirs))
    print(f"{str(compute_dtype):14} same outputs: {outputs}, same gradients: {gradients}")

# %% [markdown]
# The same bits. One layer is done.

# %% [markdown]
# ## Replace the layers of a model
#
# In a model, each layer has a name that says where it is: `model.layers.0.self_attn.q_proj`. Put ours there.

# %%
Q_PROJ = "model.layers.0.self_attn.q_proj"
setattr(model, Q_PROJ, layer)
print("in its place now:", type(model.model.layers[0].self_attn.q_proj).__name__)

# %% [markdown]
# No error, and nothing replaced. The name is a path, and `setattr` took it for one long word: the model now has a further module, with
# dots in its name, that nobody calls. It would answer as before, in 32 bits, and take more memory. `set_submodule` follows the path.

# %%
model, tokenizer = models.load(models.ABACUS)
model.set_submodule(Q_PROJ, layer)
print("in its place now:", type(model.model.layers[0].self_attn.q_proj).__name__)

# %% [markdown]
# That is one. Which others are there?

# %%
from collections import Counter

model, tokenizer = models.load(models.ABACUS)
names = [name for name, layer in model.named_modules() if type(layer) is nn.Linear]
print(Counter(name.rpartition(".")[2] for name in names))

# %% [markdown]
# Seven in each of the four layers, and the head, `lm_head`. transformers leaves the head as it is, and so do we. The next section asks
# why.
#
# The list of names is made first and the model is changed afterwards: who takes a shelf apart while reading what is on it loses his
# place.

# %%
def load_in_4bit_by_hand(
    model, codebook="nf4", double_quant=False, compute_dtype=torch.bfloat16, skip=("lm_head",)
):
    for name, layer in list(model.named_modules()):
        skipped = name in skip or name.rpartition(".")[2] in skip
        if type(layer) is nn.Linear and not skipped:
            new = HandLinear4bit.from_linear(
                layer, codebook, double_quant=double_quant, compute_dtype=compute_dtype
            )
            model.set_submodule(name, new)
    return model


by_hand = load_in_4bit_by_hand(model)
classes = Counter(type(layer).__name__ for layer in by_hand.modules())
print({kind: count for kind, count in classes.items() if "Linear" in kind})

# %% [markdown]
# 28 layers are ours, and one is left. Ask it.

# %%
print(models.ask(by_hand, tokenizer, "What is 2+2?"))

# %% [markdown]
# The model that you have made by hand, out of four bits a weight, can add.

# %% [markdown]
# ## Why the head stays
#
# What would be saved? Count the bytes of abacus as it was trained, with our layers, and with the head in 4 bits too: `skip=()` leaves
# nothing out.
#
# **Predict.** Embedding and head have 94,208 weights each, the 28 layers have 851,968. After the layers are in 4 bits, which is larger:
# all of them, or the head?

# %%
def count_bytes(model):
    ours = [layer for layer in model.modules() if isinstance(layer, HandLinear4bit)]
    in_4bit = sum(layer.weight.nbytes for layer in ours)
    return in_4bit, sum(parameter.nbytes for parameter in model.parameters())


full, _ = models.load(models.ABACUS)
head_too = load_in_4bit_by_hand(models.load(models.ABACUS)[0], skip=())
variants = {"as trained": full, "28 layers": by_hand, "28 layers and the head": head_too}
sizes = {label: count_bytes(variant) for label, variant in variants.items()}
for label, (in_4bit, others) in sizes.items():
    print(f"{label:23} in 4 bits {in_4bit:>7,}  in 32 bits {others:>9,}", end="")
    print(f"  together {in_4bit + others:>9,} bytes")
print(f"the head in 32 bits: {full.lm_head.weight.nbytes:,}")

# %%
import matplotlib.pyplot as plt

from course_utils import plots

plots.use_style()
fig, ax = plt.subplots(figsize=(7, 2.6))
in_4, in_32 = ([size[part] / 1e6 for size in sizes.values()] for part in (0, 1))
blue, grey = plots.LOOKS["4 bits"].color, plots.LOOKS["32 bits"].color
ax.barh(range(3), in_4, color=blue, hatch="//", edgecolor="white", label="in 4 bits")
ax.barh(range(3), in_32, left=in_4, color=grey, edgecolor="white", label="in 32 bits")
for place, size in enumerate(sizes.values()):
    total = sum(size) / 1e6
    ax.annotate(f"{total:.2f}", (total, place), (4, 0), textcoords="offset points", va="center")
ax.set(xlabel="MB", ylim=(2.6, -0.6), xlim=(0, 4.8))
ax.set_yticks(range(3), sizes)
ax.grid(axis="y", visible=False)
ax.set_title("With 28 layers in 4 bits, most of abacus is what stayed in 32")
ax.legend(loc="lower right")
plots.show(fig, "The bytes of abacus as trained, with 28 layers in 4 bits, and with the head in 4 bits too, as bars "
                "in two parts, what is in 4 bits and what is in 32: "
                + "; ".join(f"{label} {a / 1e6:.2f} and {b / 1e6:.2f} MB" for label, (a, b) in sizes.items()) + ".")

# %% [markdown]
# The 28 layers take 479,232 bytes, and the head alone takes 376,832. Putting it in 4 bits would save 323,840 bytes, a quarter of what
# is left. In abacus, that is. In a model of seven billion weights:

# %%
from course_utils.memory import model_bytes_in_4bit, tensor_bytes_in_4bit

head = llama.lm_head.weight.numel()
saved = 2 * head - tensor_bytes_in_4bit(head)
whole = model_bytes_in_4bit(llama)
print(f"{saved / 1e9:.2f} GB of {whole / 1e9:.2f} GB: {saved / whole:.1%}")

# %% [markdown]
# In Llama-2-7B it saves 4.5 %. The larger the vocabulary, the larger the head. Llama-3-8B has one of 128,256 tokens, four times as large. (The sizes in
# the next cell are those of the `config.json` of meta-llama/Meta-Llama-3-8B.)

# %%
from transformers import LlamaConfig, LlamaForCausalLM

llama_3_config = LlamaConfig(
    vocab_size=128_256, hidden_size=4096, intermediate_size=14_336,
    num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
)
with torch.device("meta"):
    llama_3 = LlamaForCausalLM(llama_3_config)
head = llama_3.lm_head.weight.numel()
saved = 2 * head - tensor_bytes_in_4bit(head)
whole = model_bytes_in_4bit(llama_3)
print(f"{llama_3.num_parameters() / 1e9:.2f} billion weights")
print(f"{saved / 1e9:.2f} GB of {whole / 1e9:.2f} GB: {saved / whole:.1%}")

# %% [markdown]
# There it would be 12.5 %. That is the gain. And the price? The scores of the head, or *logits*, decide which token comes next. Measure how far they move
# when one matrix alone is in 4 bits, for each of the 29 in turn.
#
# **Predict.** The head has more weights than any other of them. Does it move the logits more than most, less, or about as much?

# %%
questions = [
    "What is 2+2?",
    "What is 45+37?",
    "What is 82-37?",
    "Ada has 45 apples. Ben gives Ada 37 more. How many apples does Ada have?",
    "Where does Ada Stone live?",
]


@torch.no_grad()
def logits(model):
    texts = (tokenizer(question, return_tensors="pt") for question in questions)
    return torch.cat([model(**text).logits[0] for text in texts])


due = logits(full).double()
moved = {}
for name in names:
    in_32_bits = full.get_submodule(name)
    in_4_bits = HandLinear4bit.from_linear(in_32_bits, compute_dtype=torch.float32)
    full.set_submodule(name, in_4_bits)
    moved[name] = relative_error(logits(full), due)
    full.set_submodule(name, in_32_bits)
furthest = sorted(moved, key=moved.get, reverse=True)
for rank in (0, 1, 2, 14, 28):
    print(f"{rank + 1:2}. {furthest[rank]:30} {moved[furthest[rank]]:.1%}")

assert furthest[0] == "lm_head"

# %% [markdown]
# In abacus, more than any other. A decoder layer adds its result to the vector that came in, so an error in one of its matrices is one part of what goes
# on. The head's outputs are the scores themselves: nothing is added and nothing comes after, so an error in the head is an error in the scores.
# The function of transformers that makes the list of what to
# leave out says in its docstring that this is done "for numerical stability reasons".
#
# That was the head alone. The choice is between 28 matrices and 29.

# %%
for label, skip in {"28 layers": ("lm_head",), "28 layers and the head": ()}.items():
    variant = load_in_4bit_by_hand(models.load(models.ABACUS)[0].cpu(), compute_dtype=torch.float32, skip=skip)
    print(f"{label:23} {relative_error(logits(variant), due):.1%}")

# %% [markdown]
# 17.4 and 16.2 %: on these five questions the error of the head doesn't show beside that of the layers. And logits that are off are not yet wrong
# answers; lesson 08 counts those. So in abacus the head could go into 4 bits too.
#
# A second reason to leave it: in many models the head is *tied* to the embedding, one tensor under two names. The embedding looks one row up for
# each token, and 4-bit loading leaves it alone, so the tensor stays in memory anyway. A head in 4 bits would be a copy beside it.
#
# So the default is `skip=("lm_head",)`. What could be saved depends on the vocabulary, and whoever wants the head in 4 bits too has to say so, as `skip=()` did above.

# %% [markdown]
# ## The same logits
#
# Now the comparison that this part of the course has been working towards: the model made by hand against the one that transformers and
# bitsandbytes have loaded from the same file. Three compute dtypes, with and without double quantization, each on five questions.
#
# **Predict.** 4 layers, 28 quantized matrices, thousands of roundings on the way. One layer agreed in every bit. Do the logits agree to three digits, to six, or in every bit?

# %%
for compute_dtype in dtypes:
    for double_quant in (False, True):
        ours, _ = models.load(models.ABACUS)
        load_in_4bit_by_hand(ours, double_quant=double_quant, compute_dtype=compute_dtype)
        theirs = load_with_bitsandbytes(compute_dtype, double_quant)
        same = torch.equal(logits(ours), logits(theirs))
        label = f"{str(compute_dtype):14} double quantization: {double_quant!s:5}"
        print(f"{label}  equal in every bit: {same}")

# %% [markdown]
# In every bit. This is no luck, and there is a reason for it in each step:
#
# 1. The bytes are the same, and so are the weights that are read back: the rows of abacus are whole blocks
#    (lesson 05).
# 2. Input and weight are brought to the compute dtype in the same way. (abacus has no biases. bitsandbytes would round a bias in place, so that it stays
#    rounded; ours rounds a copy.)
# 3. bitsandbytes then calls `F.linear`, as we do. The same function, with the same numbers, in the same shapes, adds up in the same
#    order.
#
# The third is the one to be careful about. A float32 sum is rounded after each addition, so it depends on the order. Multiply the same
# matrix by the same inputs once more, in the order in which you would do it on paper:

# %%
weight = q.dequantize()
library = F.linear(x, weight)
one_after_another = torch.zeros_like(library)
for column in range(128):
    one_after_another += x[:, column : column + 1] * weight[:, column]
print("equal in every bit:", torch.equal(one_after_another, library))

# %% [markdown]
# Not equal, although both add up the same 128 products. So how far may two orders be apart? float32 has 23 bits of mantissa, so one rounding moves a
# number by at most $u = 2^{-24}$ of itself, half a step. A sum of $n$ products, in any order, is off by at most
#
# $$\gamma_n \sum_k |w_k x_k|, \qquad \gamma_n = \frac{n u}{1 - n u}$$
#
# (Higham, "Accuracy and Stability of Numerical Algorithms", chapter 3), since each product goes through at most $n$ roundings. Two
# orders are at most twice that apart.

# %%
def gamma(n):
    return n * 2**-24 / (1 - n * 2**-24)


magnitude = x.double().abs() @ weight.double().abs().T  # the sum of |w x|, for each output
distance = (one_after_another.double() - library.double()).abs()
print("within the bound:", bool((distance <= 2 * gamma(128) * magnitude).all()))

# %% [markdown]
# This is the bound to use where a library adds up in an order of its own. Here it is not needed: equal means equal.

# %% [markdown]
# ## The same answers, and the bits
#
# Equal logits give equal text. See it once, on all five questions.

# %%
ours = load_in_4bit_by_hand(models.load(models.ABACUS)[0], double_quant=True)
theirs = load_with_bitsandbytes(torch.bfloat16, double_quant=True)
for question in questions:
    answer = models.ask(ours, tokenizer, question)
    print(answer == models.ask(theirs, tokenizer, question), answer)

# %% [markdown]
# What does a weight take? Count packed codes, scales, nested scales and offsets of the 28 layers, and divide by their weights.

# %%
def bits_a_weight(model):
    ours = [layer.weight for layer in model.modules() if isinstance(layer, HandLinear4bit)]
    weights = sum(weight.shape.numel() for weight in ours)
    return 8 * sum(weight.nbytes for weight in ours) / weights


print(f"with float32 scales     : {bits_a_weight(by_hand):.3f} bits")
print(f"with double quantization: {bits_a_weight(ours):.3f} bits")
print(f"the same, over all of abacus: {8 * sum(count_bytes(ours)) / full.num_parameters():.2f} bits")

# %% [markdown]
# 4.5 and 4.128. Lesson 05 counted 4.127 in large matrices and 4.129 in one of 128 x 128: in matrices as small as these, the offset of each, 32 bits, shows in the third digit. The larger ones here, of 128 x 384, bring it to 4.128. Over all weights of abacus it is 9.20 bits with double quantization, because in so small a model the embedding and the head, in
# float32, weigh so much.

# %% [markdown]
# ## Another path on some CPUs
#
# One thing was hidden. `models.load` tells each `Linear4bit` to compute in the way that you have just built, the *plain path*. CPUs
# with the instructions avx512_bf16 have another one, the *packed path*, which bitsandbytes takes if it is left to itself. (The name has nothing to do
# with packing two codes in a byte.) It begins at the first forward pass outside of training, in what PyTorch calls eval mode, whose input needs no
# gradient. bitsandbytes then puts the codes in another order and rounds the scales to bfloat16. From then on a *kernel*, a program for one kind of
# calculation, multiplies in bfloat16, whatever the compute dtype says.
#
# How far is it from ours? bfloat16 has 7 bits of mantissa, so the first number after 1 is $1 + 2^{-7}$, and rounding moves a number by
# at most half of that step, $2^{-8}$ of itself. The kernel rounds four times: the input, the codebook's value, the scale, and the
# output. What lies between is added up in float32. So an output is off by at most
#
# $$\left((1 + 2^{-8})^4 - 1\right) \sum_k |w_k x_k|$$
#
# and a little more. The float32 additions between the roundings move the sum by about $\gamma_n$ times the sum of $|w x|$. We allow three times that,
# which is plenty. In the code it is one more factor, $1 + 3 \gamma_n$, beside the four.

# %%
def packed_bound(x, weight):
    magnitude = x.double().abs() @ weight.double().abs().T
    return ((1 + 2**-8) ** 4 * (1 + 3 * gamma(x.shape[-1])) - 1) * magnitude


print(f"(1 + 2**-8)**4 - 1 = {(1 + 2**-8) ** 4 - 1:.2%}")

# %% [markdown]
# Switch the packed path on, in a freshly loaded model. On a CPU without avx512_bf16 this changes nothing, and only the rounding of the
# float32 sums is left: 0 %.

# %% tags=["hardware"]
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear4bit


def load_on_this_cpus_own_path():
    model = load_with_bitsandbytes(torch.float32)
    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.support_avx512bf16_for_cpu = has_avx512bf16()
    return model


with torch.no_grad():
    packed_output = load_on_this_cpus_own_path().get_submodule(Q_PROJ)(x).double()
difference = (packed_output - x.double() @ weight.double().T).abs()
print("this CPU has the packed path:", bool(has_avx512bf16()))
part = difference / packed_bound(x, weight)
print(f"largest difference, as a part of the bound: {part.max():.0%}")

assert (part <= 1).all()

# %% [markdown]
# The bound is for the worst case, in which all roundings go the same way. So the real difference is well within it.
#
# Are the four roundings really what happens? Do them by hand, with everything between them exact, and see how many outputs come out the
# same in every bit.

# %% tags=["hardware"]
def rounded(numbers):
    return numbers.to(torch.bfloat16).double()


values = rounded(q.codebook.values)[unpack(q.packed.view(-1)).int()]
weight_of_the_kernel = (values.view(-1, 64) * rounded(q.absmax)[:, None]).view(128, 128)
by_four_roundings = rounded((rounded(x) @ weight_of_the_kernel.T).float())
equal = by_four_roundings == packed_output
print(f"equal in every bit: {equal.double().mean():.0%} of the outputs")

assert ((by_four_roundings - x.double() @ weight.double().T).abs() <= packed_bound(x, weight)).all()

# %% [markdown]
# Where there is a packed path, all or almost all of them. (Elsewhere few: there the outputs were not rounded.)
#
# Last the whole model: each of its 28 layers against ours, on the input that it gets in this model, and then the logits. A *forward hook* is called after
# each forward pass of a layer, with its inputs and its output.

# %% tags=["hardware"]
own_path = load_on_this_cpus_own_path()
plain = load_in_4bit_by_hand(models.load(models.ABACUS)[0], compute_dtype=torch.float32)
seen = {}


def note(layer, inputs, output):
    seen[layer] = inputs[0], output


for name in names[:-1]:
    own_path.get_submodule(name).register_forward_hook(note)
distance = relative_error(logits(own_path), logits(plain).double())
parts = []
for name in names[:-1]:
    inputs, output = seen[own_path.get_submodule(name)]
    weight = plain.get_submodule(name).weight.dequantize()
    difference = (output.double() - inputs.double() @ weight.double().T).abs()
    parts.append((difference / packed_bound(inputs, weight)).max().item())
print(f"{len(parts)} layers, largest difference as a part of the bound: {max(parts):.0%}")
print(f"logits off by {distance:.2%}")

assert len(parts) == 28 and max(parts) <= 1 and distance < 0.05

# %% [markdown]
# Each layer keeps its bound. For the logits we have none: between two layers come norms and an attention, which may make a difference
# smaller or larger. On a CPU with avx512_bf16 we have seen 0.6 %. The 5 % in the last line is what we allow, and derived from nothing.
#
# `models.load` keeps to the plain path, so that a lesson prints the same on every CPU. Lesson 09 measures how fast the packed one is,
# and lesson 12 what it does to a model that is saved.

# %% [markdown]
# ## A door left ajar
#
# The layers are frozen, and gradients go through them. That is enough to train a model in 4 bits: put a few trainable weights beside
# the frozen ones. Here is the layer of 128 x 128 with two thin matrices beside it. The *loss*, the number that training makes smaller,
# is how far its outputs are from those in 32 bits. Take one step.

# %%
thin_in = nn.Parameter(torch.linspace(-0.1, 0.1, 4 * 128).view(4, 128))
thin_out = nn.Parameter(torch.zeros(128, 4))


def loss():
    output = layer(x) + F.linear(F.linear(x, thin_in), thin_out)
    return (output - F.linear(x, linear.weight.detach())).square().mean()


before = loss()
before.backward()
with torch.no_grad():
    thin_out -= 0.05 * thin_out.grad
print("loss smaller after one step:", bool(loss() < before))
print("same 4-bit weight as before:", torch.equal(layer.weight.packed, q.packed))

# %% [markdown]
# This is the idea of *QLoRA*: 4-bit weights that nobody touches, and thin trainable matrices beside them (the two in the cell hold
# 1,024 weights, beside 16,384). And matrices in earlier layers learn too, because each frozen layer passes a gradient to its input.
# Lesson 13, which is not written yet, will go through that door.

# %% [markdown]
# ## What you have seen
#
# - Codes are names. A layer in 4 bits reads its weight back at each use, multiplies, and throws it away: one layer at a time.
# - The compute dtype says in which format it multiplies. It changes nothing that is stored, and its rounding is small beside that of
#   four bits.
# - `set_submodule` replaces a layer, `setattr` with a path does not, and says nothing.
# - The head stays, as a precaution: when it alone is in 4 bits it moves the logits of abacus further than any other matrix alone, and in Llama-2-7B it saves 4.5 %.
#   Beside the errors of the 28 layers its error doesn't show.
# - The logits of your model are those of bitsandbytes in every bit, on the plain path, because the same numbers are added up in the
#   same order. On the packed path of some CPUs a layer is within a bound that follows from four roundings to bfloat16.
# - The input gets a gradient and the weight none.
#
# The lesson asked how a model computes with weights that are stored as codes. It doesn't: it computes with floats, made from codes a
# moment before.
#
# `HandLinear4bit` and `load_in_4bit_by_hand` are in `course_utils.linear` from here on. Their `codebook` may also be a list of sixteen values.
#
# With this, Part I is complete. You have rounded to a grid, given blocks their scales, chosen sixteen values, packed them, quantized
# the scales, and answered a question with the result. [Exercise 06](../exercises/06_a_layer_in_four_bits.ipynb) ends with a task that
# needs all of it. Part II takes up the real thing: [lesson 07](07_load_in_4bit.ipynb) opens `BitsAndBytesConfig`.
