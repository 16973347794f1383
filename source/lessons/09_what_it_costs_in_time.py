# %% [markdown]
# # What it costs in time
#
# A weight in four bits is a quarter of a weight in sixteen. Does a model in four bits therefore answer four times as fast, or is it
# slowed down, since each weight has to be read back first?
#
# | | |
# | --- | --- |
# | **What you'll do** | time a layer so that the figure means something, count what it has to do, and compare the count with clocks on this machine and on others |
# | **What you'll learn** | why a clock around a call may show nothing, what bounds a layer's time, when four bits are faster and when slower, what double quantization costs and when it is paid |
# | **What you need** | [lesson 06](06_a_layer_in_four_bits.ipynb), [lesson 07](07_load_in_4bit.ipynb), [lesson 08](08_what_it_costs_in_quality.ipynb) |
# | **Time** | 60 minutes |
#
# Both are said: that 4 bits are several times faster, and that they are slower. Some of those who say it have measured. So the
# first question is how to measure.

# %% [markdown]
# ## Five runs
#
# Someone has timed a layer five times. These are milliseconds.

# %%
runs = [4, 12, 4, 5, 5]

# %% [markdown]
# **Predict.** What is their mean? And which number would you report?

# %%
import statistics

print("mean  :", statistics.mean(runs))
print("median:", statistics.median(runs))

# %% [markdown]
# The mean is 6, and none of the runs took 6. One run of 12 has moved it: the machine did something else for a moment. The *median*
# is the number in the middle when they are sorted, 5: at most half of the runs took less and at most half took more, and a run of
# 1,200 in the place of the 12 would not move it.
#
# How far do runs differ? The *quartiles* cut off the fastest quarter and the slowest quarter. What lies between them, as a part of
# the median, is the *spread*.

# %%
def summary(seconds):
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return median, (low, high), (high - low) / median


median, quartiles, spread = summary(runs)
print(f"median {median}, quartiles {quartiles}, spread {spread:.0%}")

# %% [markdown]
# A spread of 20 %. In this course a time with a spread above 10 % is called noisy. It is shown all the same, with a mark: who
# leaves it out chooses his results.

# %% [markdown]
# ## Asking is not doing
#
# A GPU has a queue. A call puts work into it and returns; the GPU gets round to it. Here is such a queue without a GPU: a worker
# who needs 50 milliseconds for a task.
#
# **Predict.** A clock is read before and after the call, as in most scripts. What does it show?

# %% tags=["hardware"]
import time
from concurrent.futures import ThreadPoolExecutor

queue = ThreadPoolExecutor(max_workers=1)
queue.submit(time.sleep, 0).result()  # the worker is there now

start = time.perf_counter()
task = queue.submit(time.sleep, 0.05)
asked = time.perf_counter() - start
task.result()  # wait until it is done
done = time.perf_counter() - start
print(f"asked after {1e3 * asked:.1f} ms, done after {1e3 * done:.1f} ms")

assert asked < done and done > 0.049

# %% [markdown]
# Next to nothing. The clock has timed the asking. On a GPU the same happens to `time.time()` before and after `layer(x)`: what it
# shows is how long Python took to ask. `torch.cuda.synchronize()` waits for the queue. It belongs before the first reading of the
# clock, so that no earlier work is counted, and before the second.
#
# (`time.perf_counter` is the clock for short times. `time.time` is the time of day, and the system may set it.)

# %%
import torch

device = "cuda" if torch.cuda.is_available() else "cpu"


def wait_for_gpu():
    if device == "cuda":
        torch.cuda.synchronize()


# %% [markdown]
# ## Taking turns
#
# Two layers are to be compared, A and B. Each takes 10 seconds on a machine that is idle. But from second 50 to second 100 the
# machine is busy, and all takes twice as long.
#
# **Predict.** First A runs five times, then B five times. Which one is faster?

# %%
class Clock:
    """A clock that runs by itself: no machine is needed."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        return self.now

    def work(self):
        self.now += 20 if 50 <= self.now < 100 else 10


clock = Clock()
times = {"A": [], "B": []}
for name in times:
    for _ in range(5):
        start = clock()
        clock.work()
        times[name].append(clock() - start)
print({name: statistics.median(taken) for name, taken in times.items()})

# %% [markdown]
# A, says the clock, and by a factor of 2. B has done nothing wrong but to come second. Now let them take turns, one round after the
# other. In the function below, a *warm-up* comes first: a round that isn't counted. The first call is often slow, since memory has
# to be found and a *kernel*, the program that does the work on the processor or the GPU, has to be chosen.

# %%
def time_in_turns(runs, repetitions=9, warm_up=1, clock=time.perf_counter):
    seconds = {name: [] for name in runs}
    for turn in range(warm_up + repetitions):
        for name, run in runs.items():
            wait_for_gpu()
            start = clock()
            run()
            wait_for_gpu()
            if turn >= warm_up:
                seconds[name].append(clock() - start)
    return seconds


clock = Clock()
times = time_in_turns({"A": clock.work, "B": clock.work}, 5, warm_up=0, clock=clock)
print({name: statistics.median(taken) for name, taken in times.items()})

# %% [markdown]
# 10 and 10. The busy moment has hit both. From here on everything that is compared takes turns.

# %% [markdown]
# ## Reading a prompt, writing an answer
#
# A language model has two kinds of work. It reads the prompt, all tokens of which are known: one forward pass over all of them.
# This is *prefill*. Then it writes, and each token can only be computed once the one before it is there: one forward pass for each.
# This is *decode*.
#
# **Predict.** abacus reads 48 tokens at once, and then the same 48 one at a time, as when it writes. Which takes longer, and by
# what factor?

# %% tags=["hardware"]
from course_utils import models

model, tokenizer = models.load(models.ABACUS)
ids = torch.randint(model.config.vocab_size, (1, 48), device=model.device)


@torch.inference_mode()
def prefill():
    return model(ids, use_cache=True)


@torch.inference_mode()
def decode():
    kept = model(ids[:, :1], use_cache=True).past_key_values
    for place in range(1, 48):
        model(ids[:, place : place + 1], past_key_values=kept, use_cache=True)


all_weights = torch.cat([weight.flatten() for weight in model.parameters()])
times = time_in_turns({"prefill": prefill, "decode": decode, "fetching": all_weights.sum}, repetitions=5)
medians = {name: statistics.median(taken) for name, taken in times.items()}
print(f"prefill {1e3 * medians['prefill']:.1f} ms, decode {1e3 * medians['decode']:.1f} ms")
print(f"decode takes {medians['decode'] / medians['prefill']:.0f} times as long")
print(f"one pass of decode: {1e3 * medians['decode'] / 48:.2f} ms; to fetch all weights once and add them up: {1e3 * medians['fetching']:.2f} ms")

assert medians["decode"] > 2 * medians["prefill"]
assert medians["decode"] / 48 > 2 * medians["fetching"]

# %% [markdown]
# The same tokens, the same weights, and many times as long. What a pass costs regardless of the number of tokens is paid 48 times in
# decode and once in prefill: Python calls each layer, and the weights are fetched. (A *batch* of 48 answers that are written at the
# same time would also share it.) In a model as small as abacus it is mostly the calls: to fetch all its weights takes less than half
# of a pass (the assert). In a large one it is the fetching, and this lesson counts that.
#
# So there are two kinds of effort: moving, and calculating. They can be counted.

# %% [markdown]
# ## Count the work
#
# Take the layer of lesson 06 again: four inputs, two outputs, eight weights.
#
# **Predict.** How many additions and multiplications does it take to get the two outputs? And how many bytes of weights are read,
# in 16 bits?

# %%
outputs, inputs, batch = 2, 4, 1
print("calculations:", 2 * outputs * inputs * batch)
print("bytes       :", outputs * inputs * 16 // 8)

# %% [markdown]
# 16 and 16. It is 16 calculations as they are usually counted: each weight is multiplied once, and its product is added once, the
# first one to 0. And each weight takes two bytes. One such addition or multiplication is called a *FLOP*, a floating-point
# operation.
#
# With a batch of 3 there are three times as many calculations, and still 16 bytes. Calculations for each byte moved are the
# *arithmetic intensity*. Inputs and outputs have to be moved as well, so count them in. Now for a real layer, one of Llama-2-7B.

# %%
from tabulate import tabulate


def layer_work(outputs, inputs, batch, bits):
    flops = 2 * outputs * inputs * batch
    weights = outputs * inputs * bits / 8
    activations = batch * (inputs + outputs) * 16 / 8
    return flops, weights + activations


def table(rows, headers):
    print(tabulate(rows, headers, disable_numparse=True, stralign="right"))


rows = []
for batch in (1, 4, 16, 64, 512):
    intensities = [flops / moved for flops, moved in (layer_work(4096, 4096, batch, bits) for bits in (16, 4.5))]
    rows.append([batch, *(f"{intensity:.1f}" for intensity in intensities)])
table(rows, ["batch", "16 bits", "4.5 bits"])

# %% [markdown]
# At batch 1 a layer in 16 bits does one calculation for each byte, and a layer in 4.5 bits 3.5. That is very little: a processor
# can do many calculations in the time in which one byte arrives from memory. At batch 64 it is 62 and 205.

# %% [markdown]
# ## The roofline
#
# Take a machine for paper. It moves 10 GB a second, its *bandwidth*, and it does 100 GFLOP a second, 100 billion calculations. It
# can do both at the same time. So a layer takes at least as long as the slower of the two.
#
# **Predict.** The layer of 4096 x 4096 has 16.8 million weights. Which of the two does it wait for at batch 1? How long? And in 4.5
# bits?

# %%
def least_ms(batch, bits, flop_rate=100e9, bandwidth=10e9):
    flops, moved = layer_work(4096, 4096, batch, bits)
    return 1e3 * flops / flop_rate, 1e3 * moved / bandwidth


for bits in (16, 4.5):
    for batch in (1, 64):
        calculating, moving = least_ms(batch, bits)
        print(f"{bits:4} bits, batch {batch:2}: calculating {calculating:5.2f} ms, moving {moving:5.2f} ms")

# %% [markdown]
# At batch 1 it waits for memory: 3.36 ms in 16 bits, and 0.95 ms in 4.5 bits. Here 4 bits can be 3.5 times as fast. At batch 64 it
# waits for the arithmetic: 21.47 ms, in any format. There is nothing to gain.
#
# This way of thinking is called the *roofline* (Williams, Waterman and Patterson, "Roofline", Communications of the ACM, 2009). A
# machine has a point at which the two meet: here at 100 / 10 = 10 calculations for each byte. Below it a layer is
# *bound by memory*, above it *bound by arithmetic*.

# %%
import matplotlib.pyplot as plt

from course_utils import plots

plots.use_style()
fig, ax = plt.subplots(figsize=(7, 3.6))
batches = [2 ** (k / 16) for k in range(129)]
for bits, name in ((16, "16 bits"), (4.5, "4 bits")):
    look = plots.LOOKS[name]
    ax.plot(batches, [max(least_ms(batch, bits)) for batch in batches], color=look.color, linestyle=look.linestyle, label=name)
for batch in (1, 4, 16, 64, 256):
    print(f"batch {batch:3}: 16 bits {max(least_ms(batch, 16)):6.2f} ms, 4.5 bits {max(least_ms(batch, 4.5)):6.2f} ms")
ax.set(xscale="log", yscale="log", xlabel="batch", ylabel="least time in ms")
ax.set_xticks([1, 4, 16, 64, 256], [1, 4, 16, 64, 256])
ax.set_title("Four bits can help only where the layer waits for memory")
ax.legend()
plots.show(fig, "The least time of a layer of 4096 x 4096 on the paper machine, by batch, in 16 and in 4.5 bits. Both lines are flat, "
                "at 3.4 ms up to batch 10 and at 0.9 ms up to batch 3, and then rise on one line, to 85.9 ms at batch 256.")

# %% [markdown]
# From a batch of about 10 on, the two are the same: there 16 bits too reach the 10 calculations for each byte. Where that point lies depends on the machine. Measure this one: how fast it
# adds up a large tensor, which is nearly all moving, and how fast it multiplies two large matrices, which is nearly all
# calculating.

# %% tags=["hardware"]
numbers = torch.ones(2**24, device=device)
matrix = torch.randn(1024, 1024, device=device)
half = matrix.to(torch.bfloat16)
times = time_in_turns({"sum": numbers.sum, "float32": lambda: matrix @ matrix, "bfloat16": lambda: half @ half})
bandwidth = numbers.nbytes / statistics.median(times["sum"])
print(f"bandwidth: {bandwidth / 1e9:.0f} GB/s")
rates = {name: 2 * 1024**3 / statistics.median(times[name]) for name in ("float32", "bfloat16")}
for name, rate in rates.items():
    print(f"{name:9}: {rate / 1e9:,.0f} GFLOP/s, so the two meet at {rate / bandwidth:,.0f} calculations a byte")

assert rates["float32"] > bandwidth

# %% [markdown]
# In 16 bits and at batch 1 a layer does one calculation for each byte. That is below the meeting point of this machine (the assert
# holds it to that, in float32). On a GPU it is farther below: by NVIDIA's data sheet an H100 SXM moves 3.35 TB a second and does 989
# TFLOP a second in bfloat16 (half of the 1,979 of the sheet, which hold only where half of the weights are zeros), so the two meet at
# 295 calculations for each byte. So a layer at batch 1 is bound by memory, and by this count 4 bits should win there.

# %% [markdown]
# ## What is moved besides
#
# The count has left something out. Nothing can be multiplied by a code. In lesson 06 the weight was read back first, and then
# multiplied: two steps, with the whole weight in 16 bits between them.
#
# **Predict.** How many bytes are moved for each weight when it is read back in one step and multiplied in the next? In 16 bits it
# is 2 bytes.

# %%
codes, written, read_again = 4.5 / 8, 2, 2
print("in two steps:", codes + written + read_again, "bytes a weight")
print("in one step :", codes, "bytes a weight")
print(f"two steps, compared with 16 bits: {(codes + written + read_again) / 2:.2f} times as much")

# %% [markdown]
# 4.56 bytes, more than twice what 16 bits take. In two steps a layer in 4 bits moves more than one in 16, not less, and reading
# back is work besides. By this count it can't be faster, unless a cache holds the weight between the two steps.
#
# It can be if a kernel reads the codes, makes weights of them where it calculates, and never writes them to memory. This is a
# *fused kernel*: two steps in one. So "are 4 bits faster" means "which kernel runs". Ask bitsandbytes which functions it calls:

# %%
from contextlib import ExitStack
from unittest.mock import patch

from bitsandbytes.nn import Linear4bit

STEPS = ("quantize_4bit", "quantize_blockwise", "dequantize_blockwise", "dequantize_4bit", "gemv_4bit")


def calls(run):
    """Which of bitsandbytes' own functions `run` calls, in order."""
    called = []

    def watched(name, function):
        def call(*arguments, **named):
            called.append(name)
            return function(*arguments, **named)

        return call

    with ExitStack() as stack:
        for name in STEPS:
            function = getattr(torch.ops.bitsandbytes, name)
            stack.enter_context(patch.object(function, "default", watched(name, function.default)))
        run()
    return list(dict.fromkeys(called))


def new_layer(outputs=128, inputs=256, double_quant=False, quant_type="nf4", packed_path=False):
    torch.manual_seed(0)
    layer = Linear4bit(
        inputs, outputs, False, torch.bfloat16, compress_statistics=double_quant, quant_type=quant_type
    )
    layer.support_avx512bf16_for_cpu = packed_path
    return layer.eval()


x = torch.ones(1, 256, dtype=torch.bfloat16)
layer = new_layer().to("cpu")  # quantizes
with torch.inference_mode():
    print("plain path:", calls(lambda: layer(x)))

# %% [markdown]
# On a CPU's plain path, two steps: `dequantize_4bit`, and then PyTorch's own product. The packed path, where a CPU has one, calls
# `gemv_4bit`, which is fused. (Where bitsandbytes finds a GPU it loads its library for CUDA, in which no CPU has the packed path, as of 0.50.2.)

# %% tags=["hardware"]
from bitsandbytes.functional import has_avx512bf16

layer = new_layer(packed_path=bool(has_avx512bf16())).to("cpu")
with torch.inference_mode():
    seen = calls(lambda: layer(x))
print("this CPU has the packed path:", bool(has_avx512bf16()))
print("it calls:", seen)

assert seen == (["gemv_4bit"] if has_avx512bf16() else ["dequantize_4bit"])

# %% [markdown]
# And on a GPU? There bitsandbytes decides by the size of the batch. Its source can be read without a GPU.

# %%
from importlib.util import find_spec
from pathlib import Path

source = Path(find_spec("bitsandbytes").origin).parent / "backends" / "cuda" / "ops.py"
for line in source.read_text(encoding="utf-8").splitlines():
    if line.strip().startswith(("_GEMM_4BIT_CUSTOM_FLOOR_M =", "_gemm_4bit_custom_max_m =")):
        print(line.strip())

# %% [markdown]
# On NVIDIA's GPUs, and for layers whose width is a multiple of the block size: up to 4 rows of input it always takes its fused
# kernel, above 1,536 never, and between them it depends on the GPU and on the layer. (The 256 is for AMD's GPUs. Where the width,
# the number of inputs, is no multiple, it gives a warning and takes two steps.) A row is a token, so a prompt of 512 tokens has 512.
#
# Version 0.50.0 of July 2026 brought these kernels (bitsandbytes #1949). Before it, only a single row was fused.

# %% [markdown]
# ## One layer, measured
#
# Now the clock. One layer of 4096 x 4096 on this machine: not quantized, and in nf4 on each path that it has.
#
# **Predict.** On a CPU's plain path at batch 1: is nf4 faster or slower than bfloat16, and by about what factor? You have counted
# 2.28.

# %% tags=["hardware"]
from torch import nn


def same_layer(**how):
    return new_layer(4096, 4096, **how).to(device)


layers = {
    "float32": nn.Linear(4096, 4096, bias=False, device=device),
    "bfloat16": nn.Linear(4096, 4096, bias=False, device=device, dtype=torch.bfloat16),
    "nf4": same_layer(),
    "nf4, double quantization": same_layer(double_quant=True),
}
if device == "cpu" and has_avx512bf16():
    layers["nf4, packed path"] = same_layer(packed_path=True)

rows, measured = [], {}
with torch.inference_mode():
    for batch in (1, 16, 64):
        x = torch.randn(batch, 4096, device=device)
        given = {name: x if name == "float32" else x.to(torch.bfloat16) for name in layers}
        runs = {name: lambda layer=layer, x=given[name]: layer(x) for name, layer in layers.items()}
        measured[batch] = time_in_turns(runs, repetitions=7)
for name in layers:
    summaries = [summary(measured[batch][name]) for batch in measured]
    rows.append([name, *(f"{1e3 * median:.2f}{'*' if spread > 0.1 else ''}" for median, _, spread in summaries)])
table(rows, ["ms, * is noisy", *(f"batch {batch}" for batch in measured)])

# the plain path reads the weight back and then makes the same product as bfloat16, so it can't be done earlier
for seconds in measured.values():
    assert device == "cuda" or min(seconds["nf4"]) > min(seconds["bfloat16"])

# %% [markdown]
# These are figures of the machine on which this notebook ran, and the cell says nothing about any other. So `make measure` writes
# down what a machine does, with more repetitions, more formats and all three shapes of Llama-2-7B's layers. Its files are in
# `measurements/`, and a few lines read them.

# %%
from course_utils import measure

for name, machine in measure.machines(own=False).items():
    print(f"{name}: {machine['device']}, {machine['memory_gb']:.0f} GB, {machine['instructions']}, packed path: {machine['packed_path']}")
    run = measure.find(own=False, machine=name)[-1]
    print("   ", ", ".join(f"{library} {version}" for library, version in run["versions"].items()))

# %% [markdown]
# The table says for each machine how long a layer of 4096 x 4096 takes. Its rows: float32, bfloat16 (bf16), int8 (LLM.int8(),
# lesson 08), nf4, nf4 with double quantization (nf4+dq) and fp4, each on both paths, and nf4 with float32 as its compute dtype.
#
# **Predict.** Look only at the column of batch 1 first. On a CPU with both paths, which row will be the fastest, and which the
# slowest?

# %%
PATHS = {None: "", "plain": ", plain path", "packed": ", packed path"}


def layer_rows(machine, of="4096x4096"):
    found = measure.find(own=False, quantity="layer time", machine=machine, of=of)
    names = dict.fromkeys((record["format"], record["path"], record["compute"]) for record in found)
    for format, path, compute in names:
        by_batch = {
            record["batch"]: record
            for record in found
            if (record["format"], record["path"], record["compute"]) == (format, path, compute)
        }
        label = format + PATHS[path] + (", computed in float32" if compute == "float32" else "")
        yield label, [by_batch.get(batch) for batch in (1, 4, 16, 64)]


def print_layers(machine):
    rows = [[label, *map(measure.shown, records)] for label, records in layer_rows(machine)]
    print(machine)
    table(rows or [[measure.NOT_MEASURED]], ["4096x4096", "batch 1", "batch 4", "batch 16", "batch 64"])


for machine, hardware in measure.machines(own=False).items():
    print_layers(machine)
    at_batch_1 = {label: records[0]["value"] for label, records in layer_rows(machine) if records[0]}
    if at_batch_1 and hardware["packed_path"] and hardware["device"] == "cpu":
        assert "packed path" in min(at_batch_1, key=at_batch_1.get)
        assert "plain path, computed in float32" in max(at_batch_1, key=at_batch_1.get)

# %% [markdown]
# The fastest is a packed path, and the slowest is the plain path with float32 as its compute dtype (the asserts hold the table to
# both). float32 is what `BitsAndBytesConfig` takes if nothing is said, as lesson 07 has shown: twice the bytes are written and read
# again.
#
# Now as factors: nf4's time divided by that of bfloat16. Below 1, four bits are faster. Where the quartiles of the two overlap one
# can't tell.

# %%
def compare(one, other):
    """The factor between two records, and whether it can be told from 1: only if their quartiles don't overlap."""
    word = "can't tell"
    if one["quartiles"][1] < other["quartiles"][0]:
        word = "faster"
    if one["quartiles"][0] > other["quartiles"][1]:
        word = "slower"
    return one["value"] / other["value"], word


def pairs(machine, format, path, to):
    """A format compared with another at batch 1, 4, 16, 64. None where a time is missing."""
    by_label = dict(layer_rows(machine))
    both = by_label.get(format + PATHS[path]), by_label.get(to if to == "bf16" else to + PATHS[path])
    if not all(both) or not all(both[0] + both[1]):
        return None
    return [compare(one, other) for one, other in zip(*both, strict=True)]


def print_comparison(title, format, to, look="{:.2f}", less=0):
    rows, by_path = [], {}
    for machine, hardware in measure.machines(own=False).items():
        for path in [None] if hardware["device"] == "cuda" else ["plain", "packed"]:
            found = pairs(machine, format, path, to)
            cells = [f"{look.format(factor - less)} {word}" for factor, word in found] if found else [measure.NOT_MEASURED]
            rows.append([machine + PATHS[path], *cells])
            by_path.setdefault(path, []).extend([found] if found else [])
    table(rows or [[measure.NOT_MEASURED]], [title, "batch 1", "batch 4", "batch 16", "batch 64"])
    return by_path


found = print_comparison("nf4, times bf16", "nf4", "bf16")
assert all(word == "slower" for row in found.get("plain", []) for _, word in row)
assert all(row[0][0] > max(5, row[-1][0]) for row in found.get("plain", []))
assert all(1 / 3.76 < row[0][0] < 1 / 2 and row[-1][1] == "slower" for row in found.get("packed", []))

# %% [markdown]
# On the plain path 4 bits are slower than bfloat16 at every batch, and at batch 1 by much more than the 2.28 of the bytes (the asserts
# hold the table to what is said here). From batch 1 to 64 the factor falls, since the product grows and the reading back stays the
# same.
#
# Why more than 2.28? One would suspect the look-up of the codes. But something else comes first: the weight that is read back needs
# memory, at every pass.
#
# **Predict.** A tensor as large as this weight is filled with ones. How many times as long does it take in new memory as in memory
# that was in use before?

# %% tags=["hardware"]
kept = torch.ones(4096, 4096, device=device, dtype=torch.bfloat16)
fill = {"memory in use": lambda: kept.fill_(1), "new memory": lambda: torch.empty_like(kept).fill_(1)}
for name, seconds in time_in_turns(fill).items():
    print(f"{name:13}: {1e3 * statistics.median(seconds):.2f} ms")
print(f"{kept.nbytes:,} bytes")

assert kept.nbytes == 32 * 2**20

# %% [markdown]
# On a CPU under Linux it takes several times as long. The system hands out memory in pages, of 4,096 bytes as a rule, and clears each
# one. A small tensor gets memory that the process already has. But 32 MiB and more are as a rule asked for anew, and handed back at
# once (the manual page of `mallopt` explains when). So this layer pays for 8,192 pages at every pass. A process that happens to have
# so much memory left over need not pay. That is the likeliest reason why the same layer takes less than half of this time in the table of block
# sizes, near the end of this lesson: so little that the factor is then below 2.28. The count says which way it goes, and not how far. On a GPU PyTorch
# keeps memory for the next tensor.
#
# The packed path is the other way round. At batch 1 four bits are more than twice as fast as sixteen. The roofline would allow 3.76 times, since on
# this path scales have 16 bits (lesson 07) and a weight takes 4.25. At batch 64 they are slower, since there the arithmetic counts, and the kernel's own product
# is slower than the one that PyTorch has for bfloat16.
#
# So the same layer, at batch 1, on the same CPU and in the same format, is several times slower than in 16 bits or more than twice as
# fast. (A whole model differs less; see below.) What decides is one switch.

# %% [markdown]
# ## What others have measured on GPUs
#
# There is a table in bitsandbytes' own repository (`benchmarking/README.md`, "Results (as of v0.45.0)", with transformers
# 4.46.3 and torch 2.5.1). It gives the mean time in seconds for one token more, over a whole model.

# %%
PUBLISHED = [  # GPU, model, batch, 16 bits (None where the model has no such row), NF4, NF4 with double quantization
    ("T4", "Qwen 2.5 3B", 1, 0.0390, 0.0608, 0.0736),
    ("T4", "Qwen 2.5 3B", 8, 0.0422, 0.0960, 0.1042),
    ("T4", "Qwen 2.5 3B", 32, 0.0601, 0.1150, 0.1215),
    ("RTX 4090", "Llama 3.1 8B", 1, 0.0211, 0.0148, 0.0175),
    ("RTX 4090", "Llama 3.1 8B", 8, 0.0239, 0.0425, 0.0443),
    ("RTX 4090", "Llama 3.1 8B", 32, 0.0304, 0.0461, 0.0471),
    ("RTX 4090", "Qwen 2.5 14B", 1, None, 0.0214, 0.0256),
    ("RTX 4090", "Qwen 2.5 14B", 8, None, 0.0696, 0.0719),
    ("H100", "Llama 3.1 8B", 1, 0.0244, 0.0331, 0.0411),
    ("H100", "Llama 3.1 8B", 8, 0.0255, 0.0476, 0.0566),
    ("H100", "Llama 3.1 8B", 32, 0.0261, 0.0486, 0.0577),
    ("H100", "Qwen 2.5 32B", 1, 0.0508, 0.0707, 0.0860),
    ("H100", "Qwen 2.5 32B", 8, 0.0525, 0.1154, 0.1209),
    ("H100", "Qwen 2.5 32B", 32, 0.0547, 0.1246, 0.1298),
    ("H100", "Llama 3.1 70B", 1, None, 0.0833, 0.1052),
    ("H100", "Llama 3.1 70B", 8, None, 0.2348, 0.2423),
    ("H100", "Llama 3.1 70B", 32, None, 0.2491, 0.2580),
]
against_16_bits = [row for row in PUBLISHED if row[3] is not None]
print(len(PUBLISHED), "rows with NF4,", len(against_16_bits), "of them with 16 bits beside it")

# %% [markdown]
# **Predict.** The lesson that this course grew from says that reading back "adds ~5-10% overhead". In how many of the twelve is that
# so?

# %%
rows = []
for gpu, name, batch, in_16, nf4, _ in against_16_bits:
    rows.append([gpu, name, batch, f"{nf4 / in_16 - 1:+.0%}"])
table(rows, ["GPU", "model", "batch", "NF4 against 16 bits"])
print("rows from 5 to 10 %:", sum(0.05 <= nf4 / in_16 - 1 <= 0.10 for _, _, _, in_16, nf4, _ in against_16_bits))
print("rows in which NF4 is faster:", sum(nf4 < in_16 for _, _, _, in_16, nf4, _ in against_16_bits))

# %% [markdown]
# In none. In one row NF4 takes 30 % less time, and in the other eleven it takes from 36 % to 128 % more.
#
# Others found the same. Hugging Face's "Overview of natively supported quantization schemes" (September 2023) has Llama-2-13B on an
# A100: 36.96 ms a token in float16 and 52.00 in 4 bits at batch 1, 69.94 and 113.98 at batch 16. (Its heading says "prefill", and a
# prompt of 512 tokens. Count: 16 such prompts are 2 x 13 thousand million x 16 x 512 = 213 million million calculations, and an A100
# does 312 million million a second by its data sheet, so 70 ms can't be that. The float16 figures stand in optimum's
# `tests/benchmark/README.md` as the time of one token while 512 are written. The same page has prefill of 16 prompts: 1,209 ms.)
#
# And the release notes of bitsandbytes 0.40.0 (July 2023) expect 2.2 to 4.0 times the speed of 16 bits at batch 1. Both can be true:
# the notes speak of one product of matrices, the tables of a whole model.
#
# Where does the difference go? Count what a whole model has to move for one token: the weights of its layers and of its head, each
# once. The GPUs' bandwidths are in NVIDIA's data sheets (T4, GeForce RTX 4090, H100 SXM), and the counts of weights on the models'
# cards. This is for the two smallest models of the table.

# %%
BANDWIDTH = {"T4": 300e9, "RTX 4090": 1008e9, "H100": 3350e9}  # bytes a second
WEIGHTS = {"Qwen 2.5 3B": 3.09e9, "Llama 3.1 8B": 7.50e9}  # without an embedding that is only looked up in

rows = []
for gpu, name, batch, in_16, _, _ in against_16_bits:
    if batch == 1 and name in WEIGHTS:
        least = 2 * WEIGHTS[name] / BANDWIDTH[gpu]
        rows.append([gpu, f"{1e3 * least:.1f} ms", f"{1e3 * in_16:.1f} ms", f"{least / in_16:.0%}"])
table(rows, ["GPU, 16 bits, batch 1", "least by memory", "measured", "waiting for memory"])

# %% [markdown]
# On the RTX 4090 the moving explains at least 71 % of the time in 16 bits, so there is much to gain, and NF4 gained. On the H100 it
# explains 18 %. Nor is it calculating: at batch 32 the H100 needs hardly longer than at batch 1. The likeliest candidate for the
# rest is the asking. For each token Python calls the kernels of 224 linear layers and of all that lies between them, one after
# another, and a fast GPU waits for the next call. Four bits don't make that any faster: a `Linear4bit` has more to ask for than an
# `nn.Linear`. It is a third bound, beside moving and calculating.
#
# All of this is older than 0.50. The change that brought its fused kernels says "up to 4x faster at batch serving sizes (i.e. 2-64)"
# (bitsandbytes #1949), compared with the kernels before. A table against 16 bits we have not found. `make measure` makes one, on a
# GPU with enough memory, with a model of Llama-2-7B's exact shape.

# %%
def print_decode(of):
    found = measure.find(own=False, quantity="decode", of=of)
    rows = {}
    for record in found:
        label = record["format"] + PATHS[record["path"]] + (", computed in float32" if record["compute"] else "")
        rows.setdefault((record["machine"], label), {})[record["batch"]] = record
    lines = []
    for (machine, label), by_batch in rows.items():
        lines.append([machine, label, *(measure.shown(by_batch.get(batch), 1) for batch in (1, 4, 16, 64))])
    print(f"{of}, one token more for each sequence")
    table(lines or [[measure.NOT_MEASURED]], ["machine", "format", "batch 1", "batch 4", "batch 16", "batch 64"])


print_decode("Llama-2-7b")

# %% [markdown]
# (If the table says "not measured yet", nobody has committed a file from such a GPU so far. The words come from the folder, not
# from this text.)

# %% [markdown]
# ## A whole model
#
# On a CPU a smaller model will do: a Llama of 134 million weights. Decode at batch 1 to 64, and then a prompt.

# %%
print_decode("Llama, 134M weights")

# %%
found = measure.find(own=False, quantity="prefill")
rows = [[r["machine"], r["of"], r["tokens"], r["format"] + PATHS[r["path"]], measure.shown(r, 0)] for r in found]
table(rows or [[measure.NOT_MEASURED]], ["machine", "model", "tokens", "format", "prefill"])

# %% [markdown]
# **Predict.** A batch of 64 takes longer than a batch of 1. But it gives 64 tokens instead of one. How many times as many tokens a
# second is that?

# %%
fig, ax = plt.subplots(figsize=(7, 3.6))
drawn = [("bf16", None, "16 bits"), ("nf4", "plain", "nf4"), ("nf4+dq", "plain", "nf4, double quantization"), ("fp4", "plain", "fp4")]
cpus = [name for name, machine in measure.machines(own=False).items() if machine["device"] == "cpu"]
wanted = {"quantity": "decode", "of": "Llama, 134M weights", "machine": cpus[0] if cpus else None}
for format, path, look_name in drawn:
    found = measure.find(own=False, format=format, path=path, **wanted)
    found = sorted(found, key=lambda record: record["batch"])
    tokens = [1e3 * record["batch"] / record["value"] for record in found]
    look = plots.LOOKS[look_name]
    batches = [record["batch"] for record in found]
    ax.plot(batches, tokens, color=look.color, linestyle=look.linestyle, marker=look.marker, label=look_name)
    figures = [f"batch {batch}: {number:,.0f} tokens/s" for batch, number in zip(batches, tokens, strict=True)]
    print(f"{look_name:25}", "  ".join(figures) or measure.NOT_MEASURED)
    assert not found or tokens[-1] > 4 * tokens[0], "a batch shares what is fetched"
ax.set(xscale="log", yscale="log", xlim=(0.9, 70), ylim=(10, 2000), xlabel="batch", ylabel="tokens a second")
ax.set_xticks([1, 4, 16, 64], [1, 4, 16, 64])
ax.set_title("A larger batch gives more tokens a second, in every format drawn")
ax.legend()
plots.show(fig, "Tokens a second of the Llama of 134 million weights on a CPU, by batch and format, on the plain path, as lines "
                "that rise with the batch. The numbers are those printed above.")

# %% [markdown]
# More than four times as many, in each format (the assert holds it to that): the batch shares what is fetched.
#
# Time for one is *latency*, and tokens a second are *throughput*. A batch makes the latency worse and the throughput better. Say
# which of the two you mean before you say "faster".

# %% [markdown]
# ## Is fp4 faster than nf4?
#
# The lesson that this course grew from says: "fp4 is slightly faster if you're bandwidth-limited". Count the bytes.

# %%
def bytes_of(layer):
    return layer.weight.nbytes + layer.weight.quant_state.absmax.nbytes


for quant_type in ("nf4", "fp4"):
    print(quant_type, f"{bytes_of(new_layer(quant_type=quant_type).to('cpu')):,} bytes")

# %% [markdown]
# The same. Who waits for memory waits for bytes, and there is no difference in bytes. So the reason that is given can't be right.
# What may differ is the look-up of a code. What do the clocks say?

# %%
found = print_comparison("fp4, times nf4", "fp4", "nf4")
assert not any(word == "faster" for rows in found.values() for row in rows for _, word in row)

# %% [markdown]
# Where the quartiles overlap one can't tell, and here they overlap everywhere. No cell says that fp4 is faster (the assert).

# %% [markdown]
# ## Where the overhead sits
#
# Double quantization stores the scales in 8 bits, and to use a scale it has to be read back first. The lesson that this course grew
# from names the price, "~5-10% latency overhead", and asks why it does not apply to loading as it does to inference. Its own
# answer: the memory is saved while loading, a "one-time cost", and "the scale factors must be dequantized every forward pass".
#
# When is it paid? Watch the calls again: while a layer is quantized, which happens when it is loaded, and in three forward passes.
#
# **Predict.** In which of the four columns will double quantization show?

# %%
NEW = {"quantize_blockwise": "scales to 8 bits", "dequantize_blockwise": "scales back"}


def when(double_quant, packed_path=False):
    layer = new_layer(double_quant=double_quant, packed_path=packed_path)
    x = torch.ones(1, 256, dtype=torch.bfloat16)
    with torch.no_grad():
        seen = [calls(lambda: layer.to("cpu")), *(calls(lambda: layer(x)) for _ in range(3))]
    return [", ".join(NEW[name] for name in names if name in NEW) or "-" for names in seen]


columns = ["", "loading", "1st pass", "2nd pass", "3rd pass"]
table([["nf4", *when(False)], ["nf4, double quantization", *when(True)]], columns)

# %% [markdown]
# In all four. While loading, the scales are quantized, once. In each pass they are read back, and thrown away with the weight. So
# far the answer that goes with the question is right: paid once when loading, and again at every pass.
#
# Now the packed path.

# %% tags=["hardware"]
if has_avx512bf16():
    paid = when(True, packed_path=True)
    table([["packed path", *paid]], columns)
    assert paid == ["scales to 8 bits", "scales back", "-", "-"]
else:
    print("This CPU has no packed path.")
    assert when(True)[1:] == ["scales back"] * 3

# %% [markdown]
# On a CPU with avx512_bf16 the scales are read back at the first pass and stay so. From the second pass on there is no overhead at
# all, and no saving of memory either. bitsandbytes' own function says it plainly; it is the one that puts the codes in order for
# the packed path:

# %%
import inspect

from bitsandbytes.functional import _convert_weight_packed_for_cpu

lines = inspect.getsource(_convert_weight_packed_for_cpu).splitlines()
print(*[line.strip() for line in lines if "nested" in line or "state2" in line], sep="\n")

# %% [markdown]
# `nested = False`: the double quantization is dissolved, and its second set of scales deleted. So "the scale factors must be
# dequantized every forward pass" is true of the plain path, and false here. It depends on the kernel that runs.
#
# And on a GPU? bitsandbytes hands codes, 8-bit scales and their scales to its fused kernel at every call, and the kernel reads them
# back for itself (the parameter `absmax_8bit` in the source that you have opened above). Outside the fused kernel's range they are
# read back in a step of their own. So it is paid at each pass. With the kernels of 0.50 presumably less than before: the change that
# brought them (#1949) speaks of "improvements when using nested quantization", and gives no figure for it.
#
# How much is it?

# %%
rows = []
for gpu, name, batch, _, nf4, double in PUBLISHED:
    rows.append([gpu, name, batch, f"{double / nf4 - 1:+.0%}"])
table(rows, ["GPU, 0.45", "model", "batch", "double quantization against NF4"])
print("rows from 5 to 10 %:", sum(0.05 <= double / nf4 - 1 <= 0.10 for _, _, _, _, nf4, double in PUBLISHED), "of", len(PUBLISHED))

# %% [markdown]
# From 2 % to 26 %, and in two of 17 rows between 5 and 10 % (the +5% is 4.8 before rounding). It is largest at batch 1, where there
# is the least work to hide it behind. And what the files of measurements say, layer by layer:

# %%
found = print_comparison("double quantization against nf4", "nf4+dq", "nf4", "{:+.0%}", less=1)
assert all(word == "can't tell" for rows in found.values() for row in rows for _, word in row)

# %% [markdown]
# On this machine one can't tell either, at any batch. Reading the scales back can be timed by itself. Quantizing them is timed
# here together with the weights.

# %%
QUANTITIES = ("quantize a layer", "read the weight back", "read the scales back", "first forward", "later forward")
rows = []
for quantity in QUANTITIES:
    for r in measure.find(own=False, quantity=quantity):
        rows.append([r["machine"], quantity, r["format"] + PATHS[r["path"]], measure.shown(r)])
table(rows or [[measure.NOT_MEASURED]], ["machine", "a layer of 11008 x 4096", "format", "median"])

for machine in measure.machines(own=False):
    found = {(q, r["format"], r["path"]): r for q in QUANTITIES for r in measure.find(own=False, quantity=q, machine=machine)}
    taken = {what: record["value"] for what, record in found.items()}
    if taken:
        for f in ("nf4", "nf4+dq"):
            part = taken["read the scales back", "nf4+dq", None] / taken["read the weight back", f, None]
            print(f"{machine}: reading the scales back takes {part:.0%} of what reading the weight back takes ({f})")
            assert max(taken, key=taken.get)[0] == "quantize a layer" and part < 0.5
        assert compare(found["quantize a layer", "nf4+dq", None], found["quantize a layer", "nf4", None])[1] == "can't tell"
    if ("first forward", "nf4+dq", "packed") in taken:
        assert all(taken["first forward", f, "packed"] > 10 * taken["later forward", f, "packed"] for f in ("nf4", "nf4+dq"))

# %% [markdown]
# The largest time in the table is that of quantizing, and it is paid once, when the model is loaded. Then comes the first pass on the
# packed path, which is paid once too: it takes more than ten times as long as the later ones, with and without double quantization.
# And to read the scales back is a small part of reading a weight back. (The weight itself, of 90 MB, needs new memory at every pass,
# or finds some left over. That is the likeliest reason why its times differ by so much more than its scales can explain.)
#
# That is the whole answer. While loading, double quantization costs once. How much, this clock can't tell: 974.77 ms with it and
# 887.11 without for this layer, and the quartiles overlap. By the count it is little, one scale for 64 weights. In use it costs at each pass, by as much as the kernel makes of it; and
# where the kernel keeps scales that were read back, it costs once, at the first pass, and the memory is not saved any more.

# %% [markdown]
# ## Does the block size matter?
#
# Larger blocks have fewer scales to fetch. Lesson 03 weighed that against their error. And in time?

# %%
rows = []
for machine in measure.machines(own=False):
    for size in (32, 64, 128, 256, 512, 1024, 2048, 4096):
        found = measure.find(own=False, quantity="layer time by block size", machine=machine, block_size=size)
        nbytes = measure.value(own=False, quantity="layer bytes", machine=machine, block_size=size)
        times = [measure.shown(record) for record in found]
        codes = 4096 * 4096 // 2
        held = [nbytes, codes + (nbytes - codes) / 2] if nbytes else []  # the packed path keeps scales of 16 bits
        rows.append([machine, size, *([f"{n / 1e6:.2f} MB" for n in held] or [measure.NOT_MEASURED] * 2), *times])
    at = {(r["path"], r["block_size"]): r for r in measure.find(own=False, quantity="layer time by block size", machine=machine)}
    if ("packed", 64) in at:
        words = [compare(at[path, size], at[path, to])[1] for path, size, to in (
            ("plain", 1024, 64), ("plain", 2048, 1024), ("packed", 1024, 64), ("packed", 2048, 1024)
        )]
        assert words == ["can't tell", "slower", "faster", "slower"]
        above = dict(layer_rows(machine))["nf4, plain path"][0]
        assert at["plain", 64]["value"] < above["value"] / 2
        assert at["plain", 64]["value"] < 2.28 * dict(layer_rows(machine))["bf16"][0]["value"]
table(rows or [[measure.NOT_MEASURED]], ["machine", "block size", "plain holds", "packed holds", "plain path, batch 1", "packed path, batch 1"])

# %% [markdown]
# A layer of 4096 x 4096 in nf4, with what each path holds of it, codes and scales. From 64 to 1,024 they shrink by a tenth, and on the packed path, which keeps its scales in 16 bits (lesson 07), by
# a twentieth. On the plain path that is too little for the clock of this machine to show. On the packed path 1,024 is faster than 64 by more than
# its bytes explain, and 2,048 is slower again with still fewer, so the bytes are not all. On the plain path too
# 2,048 is slow, and far more so: from there on bitsandbytes leaves its own kernel, which is inexact for such blocks, and takes a
# general one (its source says so).

# %% [markdown]
# ## Your machine
#
# In a terminal, in the folder of the course:
#
# ```
# make measure
# ```
#
# It lists its parts and how long each takes, and then measures. You may stop it at any time and call it again; what is done is
# kept. It writes to `my_work/measurements/`. With a GPU it also measures a model of Llama-2-7B's shape.

# %% tags=["hardware"]
own = measure.records(committed=False)
print(f"Your own measurements: {len(own) or measure.NOT_MEASURED}")
for problem in measure.problems(committed=False):
    print(problem)
for record in own:
    if record["quantity"] == "decode" and record["batch"] == 1:
        print(f"{record['machine']}, {record['of']}, {record['format']}{PATHS[record['path']]}: {measure.shown(record)}")

assert isinstance(own, list)

# %% [markdown]
# ## What is claimed
#
# The rows of the [ledger](../claims.yml) that belong to this lesson.

# %%
from course_utils import claims

print(claims.table(lesson="09"))

# %% [markdown]
# ## What you have seen
#
# - A time is a median with its quartiles, after a warm-up, with the GPU's queue empty before and after, and what is compared takes
#   turns.
# - Prefill calls each layer and fetches its weights once, for all tokens of the prompt; decode does so anew for each token.
# - A layer takes at least as long as the slower of moving and calculating. Four bits can help only where it waits for memory: at small
#   batches.
# - They do help only if a fused kernel reads the codes. In two steps they move 2.28 times the bytes of 16 bits, may need new memory
#   at every pass, and are slower.
# - On fast GPUs a model at batch 1 may wait for neither, but for being asked.
# - Double quantization is paid at each pass on the plain path and on GPUs, and only once on the packed path, where it also saves
#   nothing any more.
#
# The lesson asked whether four bits are four times as fast. In bytes they are, nearly. In time it depends on the kernel, the batch
# and the machine, from well below half the speed to more than the speed of 16 bits, and "5-10 %" was the answer in none of twelve
# published cases. So measure, and say on what.
#
# [Exercise 09](../exercises/09_what_it_costs_in_time.ipynb) ends with the question about double quantization, in its own words.
# [Lesson 10](10_failures_without_a_sound.ipynb) is about what goes wrong without any error.
