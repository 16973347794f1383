# %% [markdown]
# # What it costs in quality
#
# Lesson 07 loaded a model in 4 bits, and it went on answering. Is it as good as before? "It still answers" is not a
# measurement. This
# lesson makes one.
#
# | | |
# | --- | --- |
# | **What you'll do** | examine one model in nine formats, find out which differences are real, damage it step by step, and read published tables |
# | **What you'll learn** | accuracy and perplexity with their errors, the test for two formats on the same questions, what goes first, which layers matter, how LLM.int8() works |
# | **What you need** | [lesson 07](07_load_in_4bit.ipynb) |
# | **Time** | 60 minutes |
#
# The digits in the text are those of abacus on a CPU, and the first cell sees to it that you get the same. With
# another model in
# `COURSE_MODEL` the same cells run, on your GPU if there is one, and print what they find there.

# %%
import os

if not os.environ.get("COURSE_MODEL"):
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

# %% [markdown]
# ## Four questions
#
# Take a format that is coarser than any you would use: 3 bits. The codes are whole numbers from -3 to 3, with a scale
# for every 64
# weights. That is lesson 03's rounding with another largest code, so 7 would be int4 and 1 would be int2.

# %%
import copy

import torch
from torch import nn


def round_to_integers(weight, largest_code, block_size=64):
    blocks = weight.reshape(-1, block_size)
    step = blocks.abs().amax(dim=1, keepdim=True) / largest_code
    return (torch.round(blocks / step) * step).reshape(weight.shape)


print(round_to_integers(torch.tensor([[3.0, 1.2, -0.4, 1.6]]), largest_code=3, block_size=4).tolist())

# %% [markdown]
# Put the rounded weights into a copy of the model. All linear layers are rounded but the head, as 4-bit loading has
# it. Everything is
# still computed in float32, so the weights alone are to blame for what changes.
#
# **Predict.** How many of the four questions does the copy in 3 bits answer rightly?

# %%
from course_utils import models

model, tokenizer = models.load(dtype=torch.float32)


def rounded_copy(model, round_trip):
    model = copy.deepcopy(model)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name != "lm_head":
            layer.weight.data = round_trip(layer.weight.data)
    return model


in_3_bits = rounded_copy(model, lambda weight: round_to_integers(weight, 3))
for question in ("What is 2+2?", "What is 45+37?", "What is 82-37?", "Where does Ada Stone live?"):
    print(models.ask(in_3_bits, tokenizer, question, max_new_tokens=16))

# %% [markdown]
# All four, the house number too. Whoever stops here reports that 3 bits cost nothing.
#
# ## Ask three hundred
#
# When abacus was trained, a part of all questions was kept away from it. These *held-out* questions lie beside the model, in
# `questions.jsonl`: sums, differences, products, stories about counting, and facts. A fact, such as a house number,
# can't be worked out, so
# nothing of it can be held out; there the wording is new. The file is shuffled, so the first 300 of a kind are a fair
# sample.

# %%
from course_utils.quality import KINDS, examine, read_questions

abacus = models.name() == str(models.ABACUS)
kinds = KINDS if abacus else KINDS[:4]  # nobody told another model who lives where
count = 300 if abacus else 20
papers = {kind: read_questions(kind)[:count] for kind in kinds}
shots = {kind: [] if abacus else read_questions(kind)[-4:] for kind in kinds}

for kind in kinds:
    print(f"{kind:12}", papers[kind][1].question, "|", papers[kind][1].answer)

# %% [markdown]
# `examine` needs one forward pass over a question with its right answer. At each place of the answer it looks at the
# logits: is the
# right token the one with the highest score? If that holds at every place, end included, then a model that always
# takes the likeliest token
# writes exactly this answer. Such an answer is *exact*, and *accuracy* is the share of exact answers. (A model that
# has never seen questions
# like these gets four solved ones, the `shots`, before each.)
#
# **Predict.** Of 300 products, how many does the model get right, and how many the copy in 3 bits?

# %%
from statistics import fmean


def accuracy(exact):
    return 100 * fmean(exact)


def examine_all(model):
    return {kind: examine(model, tokenizer, papers[kind], shots[kind]) for kind in kinds}


results = {"float32": examine_all(model), "int3": examine_all(in_3_bits)}
for name in results:
    exact = results[name]["products"].exact
    print(f"{name:8} {sum(exact)} of {len(exact)} products right, accuracy: {accuracy(exact):.1f} %")

# %% [markdown]
# 300 and 235. One product in five isn't exact in 3 bits: the partial products count too. Four questions couldn't show
# it, and none of them was a product.

# %% [markdown]
# ## Would other questions say the same?
#
# The 300 facts are a sample of 5,120. Cut it into ten papers of 30, and give the copy in 3 bits a mark for each.
#
# **Predict.** The accuracy over all 300 is 78.7 %. How far apart are the best and the worst of the ten marks?

# %%
subject = "facts" if abacus else kinds[0]
exact = results["int3"][subject].exact
size = len(exact) // 10
marks = [accuracy(exact[start : start + size]) for start in range(0, len(exact), size)]
print("marks:", [round(mark) for mark in marks], f" all together: {accuracy(exact):.1f}")

# %% [markdown]
# From 70 to 90: the same model, the same format, and 20 points between two papers. The chance of the draw does that.
#
# How large it is can be computed. If a share $p$ of all answers is right, the mean of $n$ answers is typically off by
# $\sqrt{p(1-p)/n}$. This is the *standard error*. By hand: with 80 of 100 right it is $\sqrt{0.8 \cdot 0.2 / 100} = 0.04$, 4 points.

# %%
from math import sqrt
from statistics import stdev


def standard_error(exact):
    share = fmean(exact)
    return 100 * sqrt(share * (1 - share) / len(exact))


print(f"80 of 100    : {standard_error([True] * 80 + [False] * 20):.1f}")
print(f"all 300      : {standard_error(exact):.1f}")
print(f"a paper of 30: {standard_error(exact) * sqrt(10):.1f}")
print(f"the ten marks: {stdev(marks):.1f}")

# %% [markdown]
# The formula says 7.5 points for a paper of 30. The *standard deviation* says how far the ten marks are spread: the root of
# their mean squared distance from the mean. `stdev` divides by 9 instead of 10, since the mean was computed from the same ten marks: 6.7. With ten times as many questions the error is
# $\sqrt{10}$ times smaller, 2.4 points. To halve an error takes four times the questions.
#
# So every accuracy below comes with its standard error. Two errors to each side hold the true value about 19 times in 20,
# as long as there are at least ten right and ten wrong answers. Near 0 and 100 % it fails; "No mistake is not no loss"
# says what to do at 100 %.

# %% [markdown]
# ## How sure was it?
#
# Exact or not is all that accuracy sees. A model that gives the right token 51 % and one that gives it 99.9 % are the
# same to it. The
# *loss* of a token tells them apart: minus the logarithm of the probability that the model gave to the right token,
# in *nats* if the logarithm is
# the natural one. It is 0 for certainty. The *perplexity* is $e$ to the power of the mean loss.
#
# **Predict.** Three tokens get the probabilities 1/2, 1/4 and 1. What is the perplexity?

# %%
from math import exp, fsum, log


def perplexity(losses, tokens):
    return exp(fsum(losses) / sum(tokens))


print(f"{perplexity([-log(1 / 2), -log(1 / 4), -log(1)], [1, 1, 1]):.6f}")

# %% [markdown]
# It is 2. The losses are $\log 2$, $\log 4$ and 0, together $3 \log 2$. It is as if the model had to choose between two equally likely tokens each time. A model that is
# sure of every right token has perplexity 1.
#
# Look into one answer of the copy in 3 bits, token by token.

# %%
def probabilities(model, question):
    asked = tokenizer(question.question)["input_ids"]
    answer = tokenizer(" " + question.answer, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([asked + answer], device=model.device)).logits[0]
    places = range(len(asked) - 1, len(asked) + len(answer) - 1)
    return [(tokenizer.decode(token), logits[i].softmax(-1)[token].item()) for i, token in zip(places, answer, strict=True)]


wrong = results["int3"][subject].exact.index(False)
question = papers[subject][wrong]
print(question.question)
for name, examined in (("float32", model), ("int3", in_3_bits)):
    print(f"{name:8}", "  ".join(f"{token.strip() or '_'} {p:.3f}" for token, p in probabilities(examined, question)))

# %% [markdown]
# Every token but one is as sure as before, and that one, the second digit, has fallen from 1.000 to 0.356. One digit
# is enough to
# make an answer wrong.
#
# `examine` adds the losses of an answer up, so the perplexity of a paper is that of all its answers' tokens.

# %% [markdown]
# ## Eight bits first: LLM.int8()
#
# Between 16 bits and 4 lies `load_in_8bit`. It works differently. The formats of Part I round weights, and multiply
# in floating point.
# *LLM.int8()* (Dettmers, Lewis, Belkada, Zettlemoyer, arXiv 2208.07339, 2022) rounds the weights **and the inputs**
# to whole numbers from
# -127 to 127, and multiplies whole numbers. Each row of inputs, which is a token, has a scale of its own, and so has
# each output's row of the weight:
# its absmax divided by 127.
#
# Eight numbers are enough to see why that is not all. Four inputs, one of them large, and the four weights of one output:

# %%
inputs = [1.27, 0.4, 60.0, -0.2]
weights = [0.3, 1.27, 0.01, 0.5]


def int8_codes(numbers):
    scale = max(abs(number) for number in numbers) / 127
    return [round(number / scale) for number in numbers], scale


def dot(a, b):
    return sum(p * q for p, q in zip(a, b, strict=True))


weight_codes, weight_scale = int8_codes(weights)
print("weight codes", weight_codes, f"scale {weight_scale:.2f}")
print(f"exact product {dot(inputs, weights):.3f}")

# %% [markdown]
# The weights are hundredths up to 1.27, so their codes are exact. The inputs are not: the largest is 60, and a step
# is $60 / 127 = 0.47$.
#
# **Predict.** What are the codes of the other three inputs?

# %%
input_codes, input_scale = int8_codes(inputs)
print("input codes", input_codes, f"scale {input_scale:.3f}")
print(f"product {dot(input_codes, weight_codes) * input_scale * weight_scale:.3f}")

# %% [markdown]
# 3, 1 and 0, of 127 that there are. The product is 1.625 instead of 1.389: lesson 02's outlier again, in the inputs
# this time.
#
# The remedy is to take the *outlier columns* out. A column of inputs in which any token has a number of size 6 or
# more is taken out and
# multiplied separately, in 16 bits, and the rest in 8.
#
# **Predict.** Without the 60, the largest input is 1.27. What is the product now?

# %%
outliers = [place for place, number in enumerate(inputs) if abs(number) >= 6]
rest = [0.0 if place in outliers else number for place, number in enumerate(inputs)]
rest_codes, rest_scale = int8_codes(rest)
in_8_bits = dot(rest_codes, weight_codes) * rest_scale * weight_scale
in_16_bits = sum(inputs[place] * weight_codes[place] * weight_scale for place in outliers)
print("outlier columns", outliers, " codes of the rest", rest_codes)
print(f"product {in_8_bits:.3f} + {in_16_bits:.3f} = {in_8_bits + in_16_bits:.3f}")

# %% [markdown]
# Exact. $(127 \cdot 30 + 40 \cdot 127 - 20 \cdot 50) \cdot 0.01 \cdot 0.01 = 0.789$, and $60 \cdot 0.01 = 0.6$.
#
# Now the library. `int8_vectorwise_quant` gives codes, scales and outlier columns; `Linear8bitLt` is its layer. Both
# run on a CPU too. Give it float16, in which it
# rounds; other inputs it casts, and logs a warning for each call. And call `.eval()`: in training mode a CPU gets
# another path, which rounds the weights only.

# %%
from bitsandbytes.functional import int8_vectorwise_quant
from bitsandbytes.nn import Int8Params, Linear8bitLt


def library_layer(weight):
    layer = Linear8bitLt(weight.shape[1], weight.shape[0], bias=False, has_fp16_weights=False, threshold=6.0)
    layer.weight = Int8Params(weight.half(), requires_grad=False, has_fp16_weights=False)
    return layer.to("cpu").eval()


row = torch.tensor([inputs]).half()
codes, _, columns = int8_vectorwise_quant(row, threshold=6.0)
print("codes", codes.tolist(), " outlier columns", columns.tolist())
for third_weight in (0.01, 0.013):
    weight = torch.tensor([[0.3, 1.27, third_weight, 0.5]])
    product = library_layer(weight)(row).item()
    print(f"third weight {third_weight}: exact {(row.float() @ weight.T).item():.2f}, Linear8bitLt {product:.2f}")

# %% [markdown]
# The same codes and the same product. The last line shows one place where the library is coarser than the paper. The paper
# multiplies the
# outlier columns in 16 bits on both sides. bitsandbytes 0.50 keeps its weights in int8 only, and reads the column
# back from its codes. So 0.013 became 0.01, and times 60
# that shows. (The other place needs two tokens: a number below 6 in an outlier column still counts for the scale of its row.)
#
# A layer by hand, then, with the library's codes. Sums of products of whole numbers are exact in float32 up to
# $2^{24}$, and those of
# abacus stay below. So the part in whole numbers is the same on every machine; the outlier columns are ordinary float32
# products.

# %%
class Int8Layer(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.codes, scales, _ = int8_vectorwise_quant(linear.weight.detach().half())
        self.scales = scales / 127
        self.bias = linear.bias

    def forward(self, x):
        rows = x.reshape(-1, x.shape[-1])
        codes, scales, outliers = int8_vectorwise_quant(rows.half(), threshold=6.0)
        output = codes.float() @ self.codes.float().T * (scales / 127).unsqueeze(1) * self.scales
        if outliers is not None and len(outliers):
            output += rows[:, outliers] @ (self.codes[:, outliers] * self.scales.unsqueeze(1)).T
        output = output if self.bias is None else output + self.bias
        return output.view(*x.shape[:-1], -1)


def int8_copy(model):
    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and name != "lm_head":
            model.set_submodule(name, Int8Layer(layer))
    return model


linear = nn.Linear(128, 64, bias=False)
generator = torch.Generator().manual_seed(0)
linear.weight.data = torch.randn(64, 128, generator=generator)
x = (torch.randn(5, 128, generator=generator) * 3).half()
with torch.no_grad():
    ours, theirs = Int8Layer(linear)(x.float()), library_layer(linear.weight.data)(x).float()
_, _, columns = int8_vectorwise_quant(x, threshold=6.0)
print("outlier columns:", len(columns), "of 128")
print("apart by less than a float16 step:", bool((ours - theirs).norm() < 2**-10 * theirs.norm()))

# %% [markdown]
# And the real thing, loaded by `load_in_8bit`, on a CPU as on a GPU. It gets float16 throughout, so there is nothing to warn of.

# %%
from transformers import BitsAndBytesConfig

in_8_bit, _ = models.load(quantization_config=BitsAndBytesConfig(load_in_8bit=True), dtype=torch.float16)
for question in ("What is 2+2?", "What is 45+37?", "Where does Ada Stone live?"):
    print(models.ask(in_8_bit, tokenizer, question, max_new_tokens=16))

# %% [markdown]
# ## Nine formats
#
# Now examine them all. `FORMATS` has a function for each, from a weight to the weight that the format gives back:
# bfloat16 by
# rounding, nf4, fp4 and int4 by Part I's `quantize_4bit`, int3 and int2 by `round_to_integers`. This is the longest
# cell of the lesson.
#
# **Predict.** Of 1,500 questions float32 answers all but one. How many does nf4 lose?

# %%
from course_utils.quality import FORMATS

for name, round_trip in FORMATS.items():
    if name not in results:
        results[name] = examine_all(rounded_copy(model, round_trip))
results["int8"] = examine_all(int8_copy(model))

# %%
from tabulate import tabulate

from course_utils.memory import bits_per_weight

matrices = [layer.weight for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name != "lm_head"]
rows_of_weights = sum(len(weight) for weight in matrices)
BITS = {
    "float32": 32,
    "bfloat16": 16,
    "int8": 8 + 32 * rows_of_weights / sum(weight.numel() for weight in matrices),  # a scale for each row
    "nf4": bits_per_weight(),
    "nf4, double quantization": bits_per_weight(double_quant=True),
    "fp4": bits_per_weight(),
    "int4": bits_per_weight(),
    "int3": bits_per_weight() - 1,
    "int2": bits_per_weight() - 2,
}


def pooled(name, what):
    return [number for kind in kinds for number in getattr(results[name][kind], what)]


def with_error(exact, digits):
    return f"{accuracy(exact):.{digits}f} ± {standard_error(exact):.{digits}f}"


rows = []
for name, bits in BITS.items():
    by_kind = [with_error(results[name][kind].exact, 1) for kind in kinds]
    rows.append([name, f"{bits:.3g}", *by_kind, with_error(pooled(name, "exact"), 2)])
print(tabulate(rows, ["accuracy, %", "bits", *kinds, "all"], disable_numparse=True))

# %% [markdown]
# None. nf4 answers as many as float32 does, and so do bfloat16, int8 and nf4 with double quantization. In 3 bits a
# seventh of all answers is
# lost, and in 2 bits everything. Between 4.5 and 3.5 bits it falls off steeply. (Bits are those of a weight with its
# share of the scales.)
#
# All rows but int8 are weights rounded and multiplied in float32. The row int8 is our layer, and it was examined 64
# questions at a time; alone, a question has fewer outlier columns. What the library's own layers do follows further
# down.
#
# And the perplexities:

# %%
def shown(number):
    return f"{number:.4f}" if number < 10 else f"{number:.0f}"


rows = []
for name in BITS:
    by_kind = [perplexity(results[name][kind].losses, results[name][kind].tokens) for kind in kinds]
    rows.append([name, *map(shown, by_kind), shown(perplexity(pooled(name, "losses"), pooled(name, "tokens")))])
print(tabulate(rows, ["perplexity", *kinds, "all"], disable_numparse=True))

# %% [markdown]
# Perplexity tells rows apart that accuracy takes for equal. nf4 is a little less sure than float32, 1.0002 against
# 1.0001, and fp4 and int4 are less sure
# than nf4. In 2 bits the facts have 236: the model might as well draw lots among 236 tokens.
#
# ## No mistake is not no loss
#
# bfloat16, int8 and nf4 got all 300 facts right, as float32 did. The formula gives them a standard error of 0. It is
# wrong to
# read that as certainty: a format that fails on one question in a thousand would look the same.
#
# What can be said is this. If a share $q$ of all answers were wrong, 300 right ones in a row would come up with
# probability $(1-q)^{300}$. That falls below 1 in
# 20 where $q$ is larger than

# %%
def rule_of_three(questions):
    return 100 * (1 - 0.05 ** (1 / questions))


for questions in (4, 300, 500, 1500, 5120):
    print(f"{questions:5} questions without a mistake: up to {rule_of_three(questions):.2f} % may be wrong")

# %% [markdown]
# One in a hundred, for 300. It is about 3 divided by the number of questions, hence the name *rule of three*. Four
# right answers, as at the start, allow for one wrong answer in two.

# %% [markdown]
# ## The same questions
#
# In the table int4 has 99.60 ± 0.16 and nf4 99.93 ± 0.07. Is nf4 better? If each had been asked questions of its own,
# the error of the difference would follow
# from both: their squares add up.

# %%
nf4_right, int4_right = pooled("nf4", "exact"), pooled("int4", "exact")
error = sqrt(standard_error(nf4_right) ** 2 + standard_error(int4_right) ** 2)
print(f"nf4 - int4: {accuracy(nf4_right) - accuracy(int4_right):.2f} ± {error:.2f}")

# %% [markdown]
# Less than two errors, and with one and six wrong answers that rule is rough anyway. But both had the same questions. What both got right, or both wrong, says nothing about which
# is better. Only where they differ can one see it. If
# the formats were equally good, each such question would be a fair coin: as likely lost by one as by the other. So
# count, and ask how
# often coins fall at least that unevenly. This is the exact *sign test*, which for right and wrong is called
# *McNemar's test*. The probability is its *p-value*.
#
# **Predict.** Ten questions; on four of them the formats differ, and all four go against the second. How likely is
# that with fair
# coins, in one direction or the other?

# %%
from math import comb


def paired_test(first, second):
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    coins = only_first + only_second
    as_uneven = sum(comb(coins, k) for k in range(min(only_first, only_second) + 1))
    return only_first, only_second, min(1.0, 2 * as_uneven / 2**coins)


first = [True] * 9 + [False]
second = [True] * 5 + [False] * 5
only_first, only_second, p = paired_test(first, second)
print(f"{only_first} : {only_second}, p = {p:.3f}")

# %% [markdown]
# $2 \cdot (1/2)^4 = 0.125$, one time in eight. By custom a difference counts as seen where p is below 0.05, one time in twenty. It takes six
# coins that all fall the same way.
#
# The coins must be independent. Products share their partial products: one entry of the table gone wrong can lose
# several. Look at the answers that were lost before you believe a p.
#
# Losses can be compared question by question as well: take the differences, their mean, and the standard error of
# this mean. Every
# format against float32:

# %%
def paired_difference(first, second):
    differences = [b - a for a, b in zip(first, second, strict=True)]
    return fmean(differences), stdev(differences) / sqrt(len(differences))


rows = []
for name in list(BITS)[1:]:
    lost, won, p = paired_test(pooled("float32", "exact"), pooled(name, "exact"))
    mean, error = paired_difference(pooled("float32", "losses"), pooled(name, "losses"))
    in_errors = f"{mean / error:.1f}" if abs(mean) > 2 * error else "less than 2"
    rows.append([name, lost, won, f"{p:.2g}", f"{round(1000 * mean, 1) + 0.0:.1f}", f"{1000 * error:.1f}", in_errors])
print(tabulate(rows, ["against float32", "lost", "won", "p", "more loss", "error", "in errors"], disable_numparse=True))

# %% [markdown]
# "More loss" is in thousandths of a nat for each answer. By answers, nothing but int3 and int2 can be told from
# float32: for int4 five coins fell the
# same way, and p is 0.06. (p of int2 is $2 / 2^{1499}$, too small for a float.) By loss fp4 and int4 can be told from it,
# at 4.5 and 3.2 errors, and nf4 just about. nf4's 2.4 errors are one of eight rows, so by themselves they would be weak.
# When abacus was trained, all 10,437 held-out questions were asked. What did all 5,120 facts say?

# %%
import json

from course_utils import ROOT

record = json.loads((ROOT / "measurements" / "abacus_quality.json").read_text(encoding="utf-8"))
for pair in record["perplexity_order"]:
    if pair["kind"] == "facts" and pair["better"] != "fp4":
        mean, error = pair["nats_per_token"], pair["standard_error"]
        print(f"abacus, 5,120 facts, {pair['worse']} has more loss than {pair['better']}: {mean / error:.1f} errors")

# %% [markdown]
# All 5,120 facts show what nf4 costs at ten errors. bfloat16 and int8 can't be told from float32 by the 1,500, and double
# quantization adds nothing to nf4 that these questions could see. The loss is the finer instrument, because every
# question says something.
#
# ### As the library loads it
#
# A loaded model doesn't multiply in float32. In the program of lesson 07 each layer multiplies in bfloat16, its compute
# dtype. Lesson 06 measured on one layer what this rounding adds: 0.27 %, where four bits have 9.5 %. And the model
# that `load_in_8bit` gave above computes in float16 throughout. Examine both, as they are loaded; the one in 8 bits is slow on a
# CPU, so it gets the first 100 of each kind. The last digits depend on the processor, since each adds up in its own order.
#
# **Predict.** How many answers does each lose against float32?

# %% tags=["hardware"]
in_4_bit, _ = models.load(
    quantization_config=BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
    )
)
rows = []
for name, loaded, asked in (("4 bits, as in lesson 07", in_4_bit, count), ("8 bits, in float16", in_8_bit, count // 3)):
    answers = {kind: examine(loaded, tokenizer, papers[kind][:asked], shots[kind]) for kind in kinds}
    exact = [[right for kind in kinds for right in of[kind].exact[:asked]] for of in (results["float32"], answers)]
    losses = [[loss for kind in kinds for loss in of[kind].losses[:asked]] for of in (results["float32"], answers)]
    lost, won, _ = paired_test(*exact)
    mean, error = paired_difference(*losses)
    rows.append([name, len(exact[0]), lost, won, f"{1000 * mean:.1f}", f"{1000 * error:.1f}"])
    assert not abacus or lost <= 5, "a loaded model answers nearly as the rounded one does"
print(tabulate(rows, ["loaded, against float32", "asked", "lost", "won", "more loss", "error"], disable_numparse=True))

# %% [markdown]
# Where this was written, on an AMD EPYC with bitsandbytes 0.50.2, neither lost one, and the model of lesson 07 has 0.8
# thousandths of a nat more loss, as nf4 with double quantization has in the table above. So the compute dtype adds
# nothing to the rounding of the weights that these questions could see. In 8 bits 500 questions show no loss either; by the rule of
# three, 0.6 % may be lost.
#
# ## How many questions would it take?
#
# int4 lost five questions against nf4 and won none: p = 0.06, not enough. How many questions would settle it? A
# difference counts as
# seen from 1.96 standard errors on, and the error shrinks with $\sqrt n$. The "two errors" are 1.96 when one is exact:
# the quantile (lesson 04) at 97.5 %. If one merely expects 1.96 errors, chance
# leaves one below it half of the time. So aim at 0.84 more, the quantile at 80 %; then four trials in five succeed, which
# is called a *power* of 80 %:
#
# $$n = \left(\frac{(1.96 + 0.84) \cdot \text{standard deviation of one question}}{\text{difference}}\right)^2$$
#
# It is the standard deviation of the differences if both formats get the same questions. If each gets its own, the
# squares of both standard deviations add up, and that some questions are harder than others then counts too.

# %%
from math import ceil, inf
from statistics import NormalDist, variance


def questions_needed(first, second, paired=True, power=0.8):
    difference, error = paired_difference(first, second)
    if difference == 0:
        return inf
    spread = error**2 * len(first) if paired else variance(map(float, first)) + variance(map(float, second))
    quantile = NormalDist().inv_cdf
    return ceil((quantile(0.975) + quantile(power)) ** 2 * spread / difference**2)


def two_digits(number):
    if number > 100_000:
        return "no end" if number == inf else "over 100,000"
    return f"{float(f'{number:.1e}'):,.0f}"


rows = []
for a, b in (("float32", "nf4"), ("nf4", "nf4, double quantization"), ("nf4", "fp4"), ("nf4", "int4"), ("int4", "int3")):
    by_accuracy = questions_needed(pooled(a, "exact"), pooled(b, "exact"))
    same, own = (questions_needed(pooled(a, "losses"), pooled(b, "losses"), paired) for paired in (True, False))
    rows.append([f"{a} / {b}", *map(two_digits, (by_accuracy, same, own))])
print(tabulate(rows, ["to tell apart", "by accuracy", "by loss", "by loss, own questions"], disable_numparse=True))

# %% [markdown]
# Rounded to two digits, and rougher than that: the 5,900 rest on the two answers in which nf4 and fp4 differ. "No end" stands where no answer differs: these results can't say
# how many it would take. For float32 against nf4, 2,000 questions do if both get the same ones, and it would take
# 47,000 if each got its own, because questions differ from each other far more than nf4 differs from float32. That is
# what pairing buys. Between nf4 with and without double quantization these losses show no difference, so they can't say
# how many it takes, only that it is far more than 1,500.
#
# ### Ask as many
#
# All five losses of int4 against nf4 were products. There are 785 held-out products in the file, and 300 have been
# asked. Ask the others.
#
# **Predict.** The 2,300 were of all kinds; a fifth of them are products: 460. Will 485 new ones settle it?

# %%
old = {name: results[name]["products"] for name in ("nf4", "int4")}
rest = read_questions("products")[count:] if abacus else read_questions("products")[count : 2 * count]
new = {name: examine(rounded_copy(model, FORMATS[name]), tokenizer, rest, shots["products"]) for name in old}
for label, asked in (("asked before", [old]), ("new ones", [new]), ("all", [old, new])):
    nf4_right, int4_right = ([exact for part in asked for exact in part[name].exact] for name in ("nf4", "int4"))
    nf4_loss, int4_loss = ([loss for part in asked for loss in part[name].losses] for name in ("nf4", "int4"))
    only_nf4, only_int4, p = paired_test(nf4_right, int4_right)
    mean, error = paired_difference(nf4_loss, int4_loss)
    needed = two_digits(questions_needed(nf4_right, int4_right))
    print(f"{label:12} {len(nf4_right)} products: {only_nf4} : {only_int4}, p = {p:.3f}, needed {needed}", end="")
    print(f", more loss {1000 * mean:.1f} ± {1000 * error:.1f}")

# %% [markdown]
# Not by answers: 3 to 0, and three coins fall alike one time in four. By loss just about, 2.1 errors. And what of the
# 8 to 0 of all together, p = 0.008? It would settle the
# matter, but it isn't honest. We had looked at five pairs of formats and five kinds, and picked the one that stood
# out. Of twenty comparisons between equals, one
# is expected to fall below 0.05, and whoever picks the largest picks luck along with it. The estimate of 460 had the
# same luck in it: from the new ones alone it is 1,300. So the first look chooses a question, and only new questions answer it.
#
# And are they eight coins? Look at the answers that were lost, as promised.

# %%
in_int4 = rounded_copy(model, FORMATS["int4"])
asked = [*papers["products"], *rest]
right = {name: [*old[name].exact, *new[name].exact] for name in old}
lost = [question for question, *pair in zip(asked, right["nf4"], right["int4"], strict=True) if pair == [True, False]]
for question in lost:
    print(models.ask(in_int4, tokenizer, question.question))

# %% [markdown]
# Six of them have the same wrong last step, 2*5=11 or 5*2=11. How many of all products end in this step?

# %%
def ends_in_ten(question):
    return "2*5=10. " in question.answer or "5*2=10. " in question.answer


print(f"last step 2*5 or 5*2: lost {sum(map(ends_in_ten, lost))} of {sum(map(ends_in_ten, asked))}", end="")
print(f", others: lost {len(lost) - sum(map(ends_in_ten, lost))} of {len(asked) - sum(map(ends_in_ten, asked))}")

# %% [markdown]
# So six of the eight are one fault. Where the last step is 2*5 or 5*2, int4 writes 11 now and then; the result is right in five of them, but an exact answer is
# right at every token. The other two have right steps and a wrong sum. These aren't eight coins but three at most, and p = 0.008 is worth nothing,
# even before one asks who picked the products. Nor are the losses independent.
#
# What can be said: int4 has spoiled one entry of the table, now and then, and nf4 hasn't.

# %% [markdown]
# ## From weights to answers
#
# Lesson 06 found that 4 bits move a weight by about a tenth of its size, and yet hardly any answer changes. How can
# that be? Turn the error up and watch. Take nf4's own error, the difference between the weights that come
# back and the true ones, and add it to the weights 1, 2, 2.5, 3 and 4 times. Once is nf4.
#
# Follow it through the model: how far are the weights off, how far the logits, how many answers are wrong? *Margin*
# is the score of
# the right token less the highest other score, at that place of an answer where it is least. An answer is exact if
# its margin is above 0.
#
# **Predict.** At 4 times the error, the logits are off by how many times as much as at 1 times?

# %%
def relative_error(got, due):
    return ((got.double() - due.double()).norm() / due.double().norm()).item()


def weights_of(model):
    linears = (layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name != "lm_head")
    return torch.cat([layer.weight.detach().flatten() for layer in linears])


@torch.no_grad()
def answer_logits(model):
    """The logits at the places of the answers, for the first 20 questions of each kind in `hit`."""
    places = []
    for kind in hit:
        for question in papers[kind][:20]:
            asked = tokenizer(question.question, return_tensors="pt").to(model.device)["input_ids"]
            both = tokenizer(f"{question.question} {question.answer}", return_tensors="pt").to(model.device)["input_ids"]
            places.append(model(both).logits[0, asked.shape[1] - 1 :].cpu())
    return torch.cat(places)


hit = ("facts", "sums", "products") if abacus else kinds[:3]
due_weights, due_logits = weights_of(model), answer_logits(model)
margins = [margin for kind in hit for margin in results["float32"][kind].margins]
print(f"margins in float32: smallest {min(margins):.1f}, in the middle {sorted(margins)[len(margins) // 2]:.1f}")

nf4 = FORMATS["nf4"]
dial = {}
for times in (1, 2, 2.5, 3, 4):
    damaged = rounded_copy(model, lambda weight, times=times: weight + times * (nf4(weight) - weight))
    answers = results["nf4"] if times == 1 else {kind: examine(damaged, tokenizer, papers[kind], shots[kind]) for kind in hit}
    moved = [b - a for kind in hit for a, b in zip(results["float32"][kind].margins, answers[kind].margins, strict=True)]
    dial[times] = (
        relative_error(weights_of(damaged), due_weights),
        relative_error(answer_logits(damaged), due_logits),
        fmean(moved),
        {kind: 100 - accuracy(answers[kind].exact) for kind in hit},
    )

# %%
rows = [
    [f"x {times}", f"{weight:.1%}", f"{logits:.1%}", f"{logits / weight:.1f}", f"{margin:.1f}", *(f"{wrong[kind]:.1f}" for kind in hit)]
    for times, (weight, logits, margin, wrong) in dial.items()
]
headers = ["nf4's error", "weights off", "logits off", "ratio", "margins by", *(f"wrong {kind}, %" for kind in hit)]
print(tabulate(rows, headers, disable_numparse=True))

# %%
import matplotlib.pyplot as plt

from course_utils import plots

plots.use_style()
fig, ax = plt.subplots(figsize=(7, 3.4))
looks = (("#CC79A7", "-", "o"), ("#117733", "--", "s"), ("#332288", ":", "^"))
for kind, (color, line, marker) in zip(hit, looks, strict=True):
    weights_off = [100 * row[0] for row in dial.values()]
    ax.plot(weights_off, [row[3][kind] for row in dial.values()], color=color, linestyle=line, marker=marker, label=kind)
ax.set(xlabel="error of the weights, % of their size", ylabel="wrong answers, %", ylim=(-3, 100), xlim=(0, 40))
ax.axvline(100 * dial[1][0], color=plots.LOOKS["nf4"].color, linewidth=1)
ax.annotate("nf4", (100 * dial[1][0], 60), (5, 0), textcoords="offset points", color=plots.LOOKS["nf4"].color)
ax.set_title("Answers stand at first, then ever more of them are lost")
ax.legend()
plots.show(fig, "Wrong facts, sums and products in percent against the error of the weights, from nf4's own error, "
                "marked, to four times as much: "
                + "; ".join(f"at {100 * row[0]:.0f} % {', '.join(f'{row[3][kind]:.0f}' for kind in hit)}" for row in dial.values()) + ".")

# %% [markdown]
# Three links, and each behaves differently.
#
# 1. **Weights to logits: in proportion.** At 1 times the weights are off by 9.2 % and the logits by 19.4 %. At 4 times
#    both are about 4 times as large. abacus passes a relative error on about doubled.
# 2. **Logits to margins: faster than in proportion, and slower than the squares.** On average margins fall by 1.1, 4.1,
#    8.8 and 14.5 for 1, 2, 3 and 4 times, which is 3.7, 8 and 13 times as much for 2, 3 and 4. One reason may be that a
#    small error pushes some scores up and others down, and only what is left over counts.
# 3. **Margins to answers: at first not at all, then ever more.** The margin in the middle was 10.4. While margins fall by
#    1 on average, no answer is lost. When they fall by 9, a third of the answers is. Margins differ, so it is a slope that
#    begins late.
#
# This is why accuracy saw nothing at nf4, and why it falls off so steeply behind it. Where do the formats lie on this
# scale?

# %%
rows = []
for name in ("nf4", "int4", "fp4", "int3", "int2"):
    damaged = rounded_copy(model, FORMATS[name])
    weight, logits = relative_error(weights_of(damaged), due_weights), relative_error(answer_logits(damaged), due_logits)
    rows.append([name, f"{weight:.1%}", f"{logits:.1%}", *(f"{100 - accuracy(results[name][kind].exact):.1f}" for kind in hit)])
print(tabulate(rows, ["format", "weights off", "logits off", *(f"wrong {kind}, %" for kind in hit)], disable_numparse=True))

# %% [markdown]
# nf4, int4 and fp4 stand before the slope, int3 is on it, between 2.5 and 3 times nf4's error, and int2 far behind.
# The scale is no law, though: int3 is kinder
# to sums than nf4's error of the same size. Where an error lies matters, not only how large it is.

# %% [markdown]
# ## Facts or procedures?
#
# What goes first when a model is squeezed: what it knows by heart, or what it can work out? A guess would be the
# facts. A house number is
# in a few weights or nowhere, while thousands of sums share one procedure.
#
# **Predict.** In 3 bits products and facts lost most answers, 65 and 64. Which kind loses most **per token**?

# %%
rows = []
for name in ("fp4", "int4", "int3"):
    for kind in kinds:
        result, before = results[name][kind], results["float32"][kind]
        answer, error = paired_difference(before.losses, result.losses)
        lost, won, _ = paired_test(before.exact, result.exact)
        length = sum(result.tokens) / len(result.tokens)
        per_answer = [f"{1000 * answer:.1f}", f"{1000 * error:.1f}"]
        rows.append([name, kind, lost - won, *per_answer, f"{length:.0f}", f"{1000 * answer / length:.2f}"])
print(tabulate(rows, ["format", "kind", "lost", "more loss an answer", "error", "tokens", "more loss a token"], disable_numparse=True))

# %% [markdown]
# Read int3 first. Per token the guess holds: facts lose 98 thousandths of a nat, twice as much as the next kind. Per
# answer it doesn't: of 300, 64 facts are lost and 65 products. An answer
# to a product has 32 tokens, with every partial product written out, and one wrong token makes it wrong. It has four
# times as many places to fail.
#
# So compare kinds of the same length: a fact has 8 tokens and a sum 9. The questions are not the same, so the errors
# of both add up, as squares.

# %%
if abacus:
    for name in ("int4", "int3"):
        facts, sums = results[name]["facts"].exact, results[name]["sums"].exact
        difference = accuracy(sums) - accuracy(facts)
        error = sqrt(standard_error(facts) ** 2 + standard_error(sums) ** 2)
        print(f"{name}: facts {with_error(facts, 1)}, sums {with_error(sums, 1)}, difference {difference:.1f} ± {error:.1f}")
    facts, sums = (record["formats"]["int3, blocks of 64"]["kinds"][kind] for kind in ("facts", "sums"))
    difference = sums["exact_percent"] - facts["exact_percent"]
    error = sqrt(sums["standard_error"] ** 2 + facts["standard_error"] ** 2)
    print(f"int3, all held-out questions: difference {difference:.1f} ± {error:.1f}")
else:
    print("This comparison needs the facts, which only abacus knows.")

# %% [markdown]
# 11.0 ± 2.9 in 3 bits, 3.7 errors, and 7.9 ± 1.1 over all held-out questions. So what these figures say is:
#
# - in 3 bits, of answers of the same length, facts go before sums;
# - of the longer answers, products lose as many as facts, and stories fewer: more places to fail are a likely reason, and not the only one;
# - at 4 bits, nothing of this can be seen in the answers, and int4 even hurts products most, by the one step above.
#
# And how hard one squeezes matters. At 2.5 times nf4's error more facts are lost than products, 21.3 and 9.7 %; at 4 times
# more products, 94.7 and 73.3 %.
#
# "Facts go first" is therefore too short. It depends on what you count, tokens or answers, and on how far you go.

# %% [markdown]
# ## Which layers?
#
# Rounding everything hides where it hurts. There are two ways to look: round one matrix and keep all others, or round
# all others and keep one part.
#
# First one at a time. In 4 bits a single matrix does next to nothing, so take the hammer: 2 bits, codes -1, 0 and 1.
# (`quality.rounded_copy` is the function from
# above, with a second one that says which layers to round.) That makes 29 models, so each gets 100 facts.
#
# **Predict.** abacus has four layers with seven matrices each, and the head. Which of the five places is most
# sensitive: layer 0, 1, 2, 3 or the head?

# %%
from course_utils import quality

names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
if not abacus:  # a larger model has hundreds of matrices: take its layers as wholes
    names = sorted({".".join(name.split(".")[:3]) for name in names if "layers" in name}, key=lambda name: int(name.split(".")[2]))
paper = papers[subject]
few = paper[:100]

wrong_alone = {}
for name in names:
    damaged = quality.rounded_copy(model, FORMATS["int2"], lambda layer, name=name: f"{layer}.".startswith(f"{name}."))
    wrong_alone[name] = 100 - accuracy(examine(damaged, tokenizer, few, shots[subject]).exact)

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
layers = model.config.num_hidden_layers
if abacus:
    table = [[wrong_alone[name] for name in names if f"layers.{layer}." in name] for layer in range(layers)]
    print(tabulate([[f"layer {layer}", *(f"{wrong:.0f}" for wrong in row)] for layer, row in enumerate(table)],
                   [f"wrong {subject}, %", *MATRICES], disable_numparse=True))
    print(f"the head: {wrong_alone['lm_head']:.0f}")
else:
    print(tabulate([[name, f"{wrong:.1f}"] for name, wrong in wrong_alone.items()], ["in 2 bits", "wrong, %"], disable_numparse=True))

# %%
if abacus:
    fig, ax = plt.subplots(figsize=(7, 3))
    ax.imshow(table, cmap="Blues", vmin=0, vmax=80, aspect="auto")
    for layer, row in enumerate(table):
        for place, wrong in enumerate(row):
            ax.text(place, layer, f"{wrong:.0f}", ha="center", va="center", color="white" if wrong > 40 else "black")
    ax.set_xticks(range(7), [name.removesuffix("_proj") for name in MATRICES])
    ax.set_yticks(range(layers), [f"layer {layer}" for layer in range(layers)])
    ax.grid(visible=False)
    ax.set_title("In abacus the first layer hurts most: wrong facts, %, one matrix in 2 bits")
    plots.show(fig, "A table of 4 layers and 7 matrices, coloured by the share of wrong facts when that matrix alone is in 2 bits, "
                    "in percent: " + ", ".join(f"{name.removeprefix('model.layers.')} {wrong:.0f}" for name, wrong in wrong_alone.items() if wrong > 0)
                    + ", and 0 for the others.")

# %% [markdown]
# For the facts, layer 0, by far. (Sums or products might show another; replace `subject`.) Its `o_proj` in 2 bits
# alone costs 60 % of the facts. No matrix of the other layers costs more than 3 %. The head, in 2 bits, costs
# not a single fact, although lesson 06 found that in 4 bits it moves the logits further than any other matrix. That
# is link 3 again: logits off is not answers wrong.
#
# Now the other way round. Everything is in 3 bits, but one layer stays in float32.

# %%
def wrong_in_3_bits_but(layer, kept_in="float32"):
    damaged = quality.rounded_copy(model, FORMATS[kept_in], lambda name: f"layers.{layer}." in name)
    damaged = quality.rounded_copy(damaged, FORMATS["int3"], lambda name: name != "lm_head" and f"layers.{layer}." not in name)
    return 100 - accuracy(examine(damaged, tokenizer, paper, shots[subject]).exact)


print(f"kept: nothing {100 - accuracy(results['int3'][subject].exact):.1f} % wrong")
for layer in range(layers):
    print(f"kept: layer {layer} {wrong_in_3_bits_but(layer):.1f} % wrong")
print(f"layer 0 in nf4: {wrong_in_3_bits_but(0, 'nf4'):.1f} % wrong, {bits_per_weight() - 1 + 1 / layers:.2f} bits a weight")

# %% [markdown]
# The same from the other side: with layer 0 kept, 1.7 % of the facts are wrong instead of 21.3 %. Keeping another layer
# helps too, but less: 14 to 15 % are wrong then. And layer 0 need not
# be kept in float32. In nf4 it does nearly as well, for a quarter of a bit more a weight than int3 everywhere. This
# is the idea behind formats of *mixed precision*: more bits where it hurts.
#
# An error in layer 0 is passed on by all the others, which is a reason to expect it to weigh most. But it does not
# follow that the first layer is the
# sore spot of every model. This measurement is quickly done on another.

# %% [markdown]
# ## nf4 or fp4?
#
# The lesson that this course grew from says that nf4 is "almost always better than 'fp4' because weight distributions
# are typically
# normal", and to test both. Test both, then: on the same questions, by kind.

# %%
rows = []
for kind in kinds:
    a, b = results["nf4"][kind], results["fp4"][kind]
    mean, error = paired_difference(a.losses, b.losses)
    rows.append([kind, *paired_test(a.exact, b.exact)[:2], f"{1000 * mean:.1f}", f"{1000 * error:.1f}"])
mean, error = paired_difference(pooled("nf4", "losses"), pooled("fp4", "losses"))
rows.append(["all", *paired_test(pooled("nf4", "exact"), pooled("fp4", "exact"))[:2], f"{1000 * mean:.1f}", f"{1000 * error:.1f}"])
print(tabulate(rows, ["kind", "only nf4 right", "only fp4 right", "fp4 has more loss", "error"], disable_numparse=True))

# %% [markdown]
# In answers 2 to 0, which is nothing. In loss fp4 is behind in all five kinds, in none of them by much more than two
# errors, and in all together by 4.7 ± 1.3, 3.7 errors. So nf4 is
# better here, by so little that 1,500 answers don't show it. The record has the answers to all held-out questions:

# %%
rows = []
for name in ("float32", "nf4", "nf4, double quantization", "fp4"):
    on_record = [record["formats"][name]["kinds"][kind] for kind in KINDS]
    wrong = [round(part["questions"] * (100 - part["exact_percent"]) / 100) for part in on_record]
    rows.append([name, *wrong, sum(wrong)])
rows.append(["of", *(part["questions"] for part in on_record), sum(part["questions"] for part in on_record)])
print(tabulate(rows, ["abacus, wrong answers", *KINDS, "all"]))

# %% [markdown]
# Of 10,437 questions nf4 misses 12 and fp4 30. Nearly all of the difference is in the facts: fp4 misses 14 of them and nf4
# none, and 14 coins that fall alike are no chance. In the differences fp4 misses one less. Our
# 300 facts had none of the 14: the rule of three had warned that up to 1 % could hide. The claim holds for abacus,
# then, with a limit. By answers it takes thousands of questions to see, by losses these 1,500 did. "Test both" is good
# advice if you ask enough.

# %% [markdown]
# ## What is published for large models
#
# abacus has a million weights. What do others report of models a thousand times as large and more? First perplexities
# on ordinary text, as published:
#
# - QLoRA (Dettmers and others, arXiv 2305.14314, May 2023), Table 2: mean over models of four families from 125
#   million to 13 billion weights, on
#   web pages of the Pile. (Second-hand: we read these figures in copies of the table that agree with each other, not
# in the paper.)
# - llama.cpp, README of May 2023 for LLaMA 7B and 13B, and for Llama 2 70B the page "perplexity"
#   (`examples/perplexity/README.md`) of September 2023. Its `Q4_0` is much like our int4, in blocks of 32.

# %%
published = [
    ("QLoRA, mean of many", "Int4", 34.34, 27.41),
    ("QLoRA, mean of many", "Float4 (E2M1)", 31.07, 27.41),
    ("QLoRA, mean of many", "Float4 (E3M0)", 29.48, 27.41),
    ("LLaMA 7B", "Q4_0", 6.1565, 5.9066),
    ("LLaMA 13B", "Q4_0", 5.3860, 5.2543),
    ("Llama 2 70B", "Q4_0", 3.5550, 3.4313),
]
for name in ("int4", "fp4"):
    against = [perplexity(pooled(other, "losses"), pooled(other, "tokens")) for other in (name, "float32")]
    published.append(("abacus" if abacus else "your model", name, *against))
rows = []
for whose, name, in_4_bits, against in published:
    other = "NF4 + DQ" if "QLoRA" in whose else "16 or 32 bits"
    rows.append([whose, name, f"{in_4_bits:.4f}", other, f"{against:.4f}", f"+{in_4_bits / against - 1:.2%}"])
print(tabulate(rows, ["model", "format", "perplexity", "against", "that has", "more"], disable_numparse=True))

# %% [markdown]
# `Q4_0` costs LLaMA 7B 4.2 % and 13B 2.5 %, and Llama 2 70B, of another family, 3.6 %. In QLoRA's table NF4 with double
# quantization comes first, ordinary floats next (E2M1; E3M0 has three bits of exponent and no mantissa), and int4 last;
# 16 bits are not in the table. In abacus nf4 leads too. Which of int4 and fp4 comes second over all kinds we haven't tested; on the 5,120
# facts int4 is better by 3.3 errors. int4 costs abacus 40 to 70 times less than `Q4_0` costs those models.
#
# Now accuracies. MMLU is an examination of multiple-choice questions. After finetuning with adapters, QLoRA gives a mean
# MMLU accuracy of 53.0 in bfloat16, 52.2 in fp4 and 53.1 in nf4 with double quantization. The blog post
# "Overview of natively supported quantization schemes in Transformers" (Hugging Face, September 2023) gives averages
# over four benchmarks:
# 54.32 in 16 bits and 53.4 in nf4 for Llama-2-7B, 58.66 and 56.9 for 13B. (Both second-hand.) None of these figures comes with an error, as far as we know. MMLU has 14,042 questions, as
# the page of the data set on the Hub counts them. What is the error of one accuracy, then?

# %%
share, questions = 0.53, 14_042
one = 100 * sqrt(share * (1 - share) / questions)
print(f"standard error of one accuracy: {one:.2f} points, of a difference: {sqrt(2) * one:.2f}")

# %% [markdown]
# For one model, differences below 1.2 points are within two errors, unless they are compared question by question. A
# mean over several models is better than that. But 53.0 against 53.1 says "no difference seen", and not "better".

# %% [markdown]
# ## How far does one small model speak?
#
# What carries over is the method, and the chain: error of weights, error of logits, margins, answers. The figures
# don't, and for reasons that one can name.
#
# **It is sure.** abacus gives nearly every token a probability near 1, and its margins are wide. Nobody can be sure
# of the next word of a text. At perplexity 6 the right token has about a sixth, on (geometric) average, so any change of
# the logits changes the loss. Where a token has 0.9999 it hardly can. This would explain 4 % there and hardly anything
# here; we haven't tested it.
#
# **It is not full.** How much does it know by heart?

# %%
from math import log2

if abacus:
    bits = 5120 * log2(900)  # 5,120 people, each at a number from 100 to 999
    print(f"facts: {bits:,.0f} bits, {bits / model.num_parameters():.3f} for each weight")
else:
    print("What another model knows by heart can't be counted like this.")

# %% [markdown]
# Allen-Zhu and Li ("Physics of Language Models: Part 3.3", arXiv 2404.05405, ICLR 2025) find room for 2 bits a weight, in
# int8 as well, but 0.7 in int4. The house numbers take 0.05: even at 0.7 there is fourteen times as much room. (What the
# arithmetic takes isn't counted.) So a fact may be spread over many weights, and the error of one matters little. A model
# that is full has nothing to spare.
#
# **It was trained to the end.** "Low-Bit Quantization Favors Undertrained LLMs" (arXiv 2411.17691, 2024) fits more
# than 1,500 checkpoints of models from 160 million to 12 billion weights: quantization
# costs less the larger a model is, and more the longer it was trained. (Second-hand, from a summary.) By that abacus,
# small and trained to the end, should suffer. The two reasons before may be what protects it at 4 bits.
#
# **It has other outliers.** LLM.int8() takes outlier columns out because, as its authors report, models of 6.7
# billion weights and more have a few input columns that are large in every layer.
# In abacus large inputs come up in some matrices only:

# %%
largest, outlier_columns = {}, {}


def watch(name):
    def note(layer, inputs):
        size = inputs[0].detach().abs().reshape(-1, inputs[0].shape[-1])
        largest[name] = max(largest.get(name, 0.0), size.max().item())
        outlier_columns[name] = outlier_columns.get(name, False) | (size >= 6).any(dim=0)

    return note


watched = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name != "lm_head"}
hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in watched.items()]
for kind in kinds:
    examine(model, tokenizer, papers[kind][:20], shots[kind])
for hook in hooks:
    hook.remove()

rows = []
for place in dict.fromkeys(name.rpartition(".")[2] for name in watched):
    here = [name for name in watched if name.endswith(place)]
    columns = sum(int(outlier_columns[name].sum()) for name in here)
    rows.append([place, f"{max(largest[name] for name in here):.0f}", columns, sum(watched[name].in_features for name in here)])
print(tabulate(rows, ["matrix", "largest input", "columns with 6 or more", "of"], disable_numparse=True))

# %% [markdown]
# In `down_proj` three in ten of all columns reach 6 in at least one of these 100 questions. In one call only those that reach it there are multiplied in
# floating point, so for a single question there are fewer. Elsewhere there
# are a few, or none. A few columns that are large everywhere, as the paper
# describes them, look different.
#
# And facts against procedures in large models? The authors of arXiv 2508.18609 studied it in 2025 with hundreds of
# settings. The first version of their abstract found memorized
# knowledge the most sensitive to the number of bits. The third version finds reasoning "precision-critical". So the
# question is open there as well, and the answer moves with what
# is counted, as it did here.

# %% [markdown]
# ## On a model of your own
#
# Start JupyterLab with `COURSE_MODEL=Qwen/Qwen2.5-0.5B-Instruct`, or another Llama-like model, and run this notebook
# again. It asks 20 questions of each kind but the facts,
# four solved ones before each. Raise `count` once you know how long it takes: `questions_needed` says how far. The
# cells for abacus alone say so.

# %% [markdown]
# ## What is claimed
#
# The rows of the [ledger](../claims.yml) that belong to this lesson.

# %%
from course_utils import claims

print(claims.table(lesson="08"))

# %% [markdown]
# ## What you have seen
#
# - Four right answers show nothing, not even that 3 bits cost a seventh of all answers. 300 without a mistake allow
#   for 1 % of mistakes.
# - An accuracy has a standard error. Two formats are compared on the same questions, by coins for right and wrong, by
#   differences for losses.
# - In abacus, bfloat16, int8, nf4 and nf4 with double quantization lose no answer among 1,500. nf4 costs a little
#   certainty, fp4 and int4 more. Between 4.5 and 3.5 bits accuracy falls off steeply.
# - LLM.int8() rounds inputs too, row by row, and takes the outlier columns out.
# - Errors grow in proportion up to the logits, and hit the answers only where they reach the margins.
# - In 3 bits, of answers of the same length, facts go before sums; products go with the facts. For the facts, layer 0
#   is abacus's sore spot.
# - Published losses of large models are larger than abacus's, and none of those read here comes with an error.
#
# The lesson asked whether the model in 4 bits is as good as before. In nf4, nearly. Of 1,500 questions it lost none, so by
# the rule of three it may lose up to 0.2 %. All 10,437 held-out questions were asked once too (`abacus_quality.json`):
# float32 misses 9 and nf4 12. Its losses are a little larger. That is what
# nf4 does to the **weights**; the model as lesson 07 loads it, multiplying in bfloat16, lost none of the 1,500 either.
#
# [Exercise 08](../exercises/08_what_it_costs_in_quality.ipynb) lets you compute each of these errors yourself.
# [Lesson 09](09_what_it_costs_in_time.ipynb) measures the other price: time.
