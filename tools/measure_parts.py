"""The parts of ``make measure``: memory, layers, a whole model, block sizes, double quantization, quality, and the machine itself.

What is compared is measured in turns, and in each round every format moves its whole weight, so none of them finds its weight in a cache
that the round before has left behind. On a GPU, where a layer is done in microseconds, a run goes through many copies of the layer.

The models have random weights: for time and memory the values don't matter, with one exception, which its records name.
"""

from __future__ import annotations

import atexit
import copy
import gc
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import psutil
import torch

from course_utils import models  # isort: skip  before bitsandbytes: it keeps that import quiet
from bitsandbytes import functional as bnb
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from course_utils import quality
from course_utils.measure import Timing, time_in_turns, wait_for_gpu
from course_utils.memory import footprint, kv_cache_bytes, load_peak, tensor_bytes_in_4bit
from tools.measure import LeftOut, Part, Step, averaged, counted, identity, left_out, rounded, timed

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")

SHAPES = ((4096, 4096), (11008, 4096), (4096, 11008))
"""Outputs and inputs of the linear layers of Llama-2-7B: attention, up and gate, down."""

BATCHES = (1, 4, 16, 64)
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
REPETITIONS = 25 if GPU else 15
PROMPT_TOKENS = 512 if GPU else 128
CONTEXT_TOKENS = 128 if GPU else 32
LOADS = 3
COPIES_BYTES = 512 * 2**20
"""On a GPU a layer is copied until its copies take this much, several times what the largest cache holds."""

SMALL = "Llama, 134M weights"
LARGE = "Llama-2-7b"

# LLM.int8() casts its input to float16 and says so at every call.
logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


# --- Formats ---


@dataclass(frozen=True)
class Variant:
    """A format, and how its layers compute."""

    format: str
    path: str | None = None
    compute: str | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the input, and of all that is not quantized."""
        return torch.float32 if self.format == "float32" else torch.bfloat16

    def names(self, quantity: str, of: str, **others: Any) -> dict[str, Any]:
        """The identity of a record of this variant."""
        return identity(quantity, of, self.format, path=self.path, compute=self.compute, **others)


def variants(float32_compute: bool = True) -> list[Variant]:
    """All that this machine can be asked for. The packed path stands beside the plain one where the processor has it."""
    paths = [None] if GPU else ["plain", "packed"] if has_avx512bf16() else ["plain"]
    found = [Variant("float32"), Variant("bf16"), Variant("int8")]
    found += [Variant(format, path) for format in ("nf4", "nf4+dq", "fp4") for path in paths]
    return found + [Variant("nf4", paths[0], "float32")] * float32_compute


def linear(variant: Variant, weight: Tensor, block_size: int = 64) -> nn.Module:
    """A linear layer with this weight, a bfloat16 tensor on the device that is measured."""
    outputs, inputs = weight.shape
    if variant.format in ("float32", "bf16"):
        layer: nn.Module = nn.Linear(inputs, outputs, bias=False, device="meta")
        layer.weight = nn.Parameter(weight.to(variant.dtype), requires_grad=False)
        return layer.eval()
    if variant.format == "int8":
        layer = Linear8bitLt(inputs, outputs, bias=False, has_fp16_weights=False, threshold=6.0, device="meta")
        # Quantized where it is moved from the CPU; of a weight that is on a GPU already only the first forward pass would do it.
        layer.weight = Int8Params(weight.to(torch.float16).cpu(), requires_grad=False, has_fp16_weights=False)
        return layer.to(weight.device).eval()
    quant_type, nested = variant.format.removesuffix("+dq"), variant.format.endswith("+dq")
    compute_dtype = torch.float32 if variant.compute == "float32" else torch.bfloat16
    layer = Linear4bit(inputs, outputs, False, compute_dtype, nested, quant_type, device="meta")
    layer.weight = Params4bit(
        weight, requires_grad=False, blocksize=block_size, compress_statistics=nested, quant_type=quant_type, module=layer
    )
    layer = layer.to(weight.device).eval()
    layer.support_avx512bf16_for_cpu = variant.path == "packed"
    return layer


def random_weight(outputs: int, inputs: int) -> Tensor:
    """A weight of about the size that trained ones have."""
    return torch.randn(outputs, inputs, device=DEVICE, dtype=torch.bfloat16) * 0.02


def rate(what: dict[str, Any], timing: Timing, amount: float, unit: str) -> dict[str, Any]:
    """The record of so much a second, in billions."""
    record = timed(what, timing)
    low, high = timing.quartiles
    quartiles = [rounded(amount / high / 1e9), rounded(amount / low / 1e9)]
    return record | {"unit": unit, "value": rounded(amount / timing.median / 1e9), "quartiles": quartiles}


def race(runs: dict[Any, tuple[dict[str, Any], Callable[[], object]]], calls: dict[Any, int] | None = None) -> list[dict[str, Any]]:
    """Time runs in turns. One that fails at its first call is left out, and the others race without it.

    Args:
        runs: identity and function, by name.
        calls: how many forward passes a run stands for, where that is not one.
    """
    found, fit = [], {}
    for name, (what, run) in runs.items():
        try:
            run()
        except (RuntimeError, NotImplementedError, OSError, ValueError) as error:
            found.append(left_out(what, f"it failed: {(str(error).strip() or type(error).__name__).splitlines()[0][:200]}"))
        else:
            fit[name] = run
    if fit:
        for name, timing in time_in_turns(fit, REPETITIONS).items():
            per_call = Timing(tuple(seconds / (calls or {}).get(name, 1) for seconds in timing.seconds))
            found.append(timed(runs[name][0], per_call))
    return found


# --- The machine: how fast it reads, how fast it multiplies ---


@torch.inference_mode()
def measure_bandwidth() -> list[dict[str, Any]]:
    numbers = torch.ones(SUMMED_NUMBERS, device=DEVICE)
    timing = time_in_turns({"sum": numbers.sum}, REPETITIONS)["sum"]
    return [rate(BANDWIDTH, timing, numbers.nbytes, "GB/s")]


@torch.inference_mode()
def measure_flop_rate() -> list[dict[str, Any]]:
    size = FLOP_SIZE
    runs = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.randn(size, size, device=DEVICE).to(dtype)
        runs["bf16" if dtype == torch.bfloat16 else "float32"] = partial(torch.mm, matrix, matrix)
    return [rate(flop_rate(name), timing, 2 * size**3, "GFLOP/s") for name, timing in time_in_turns(runs, REPETITIONS).items()]


SUMMED_NUMBERS = 2**28 if GPU else 2**26
FLOP_SIZE = 8192 if GPU else 2048
BANDWIDTH = identity("bandwidth", "adding up a large tensor", "float32")


def flop_rate(format: str) -> dict[str, Any]:
    return identity("flop rate", f"{FLOP_SIZE}x{FLOP_SIZE} times {FLOP_SIZE}x{FLOP_SIZE}", format)


def machine_part() -> Part:
    return Part("machine", "how fast memory is read, and matrices are multiplied", (
        Step("bandwidth", (BANDWIDTH,), measure_bandwidth, 2),
        Step("flop rate", (flop_rate("float32"), flop_rate("bf16")), measure_flop_rate, 6),
    ))  # fmt: skip


# --- Layers ---


@lru_cache(maxsize=1)
def layers(outputs: int, inputs: int) -> dict[Variant, list[nn.Module]]:
    """Each variant of a layer; on a GPU many copies of it."""
    weight = random_weight(outputs, inputs)
    found = {}
    for variant in variants():
        layer = linear(variant, weight.clone())
        nbytes = sum(tensor.nbytes for tensor in layer.parameters())
        copies = min(64, -(-COPIES_BYTES // nbytes)) if GPU else 1
        found[variant] = [layer, *(copy.deepcopy(layer) for _ in range(copies - 1))]
    return found


def layer_time(variant: Variant, outputs: int, inputs: int, batch: int) -> dict[str, Any]:
    block_size = None if variant.format in ("float32", "bf16", "int8") else 64
    return variant.names("layer time", f"{outputs}x{inputs}", batch=batch, block_size=block_size)


@torch.inference_mode()
def measure_layers(outputs: int, inputs: int, batch: int) -> list[dict[str, Any]]:
    runs, calls = {}, {}
    for variant, copies in layers(outputs, inputs).items():
        x = torch.randn(batch, inputs, device=DEVICE).to(variant.dtype)
        runs[variant] = (layer_time(variant, outputs, inputs, batch), partial(call_all, copies, x))
        calls[variant] = len(copies)
    return race(runs, calls=calls)


def call_all(layers: Sequence[nn.Module], x: Tensor) -> None:
    for layer in layers:
        layer(x)


def layers_part() -> Part:
    steps = [
        Step(
            f"{outputs}x{inputs}, batch {batch}",
            [layer_time(variant, outputs, inputs, batch) for variant in variants()],
            partial(measure_layers, outputs, inputs, batch),
            outputs * inputs / 45e6 * (2 if GPU else {1: 18, 4: 8, 16: 10, 64: 16}[batch]) + 1,
        )
        for outputs, inputs in SHAPES
        for batch in BATCHES
    ]
    return Part("layers", "one linear layer of Llama-2-7B, batch 1 to 64, every format", steps)


# --- A whole model ---


@cache
def model_config(name: str) -> LlamaConfig:
    """The sizes of a model; its dtype plays no part."""
    if name == LARGE:
        return LlamaConfig.from_pretrained(models.ARCHITECTURES / LARGE)
    return LlamaConfig(hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12, vocab_size=32000)


def build_model(name: str, variant: Variant) -> PreTrainedModel:
    """A model of random weights in a format: every linear layer but the head, as transformers does it."""
    with torch.device("meta"):
        model = LlamaForCausalLM(model_config(name)).to(variant.dtype)
    for path, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear):
            plain = Variant("float32" if variant.format == "float32" else "bf16")
            model.set_submodule(path, linear(plain if path == "lm_head" else variant, random_weight(*layer.weight.shape)))
        elif isinstance(layer, nn.Embedding):
            layer.weight = nn.Parameter(random_weight(*layer.weight.shape).to(variant.dtype), requires_grad=False)
        elif not list(layer.children()) and list(layer.parameters()):  # norms
            layer.weight = nn.Parameter(torch.ones_like(layer.weight, device=DEVICE), requires_grad=False)
    model.model.rotary_emb = LlamaRotaryEmbedding(model.config).to(DEVICE)
    return model.eval()


def predicted_bytes(name: str, variant: Variant) -> int:
    """What the weights of a model take, before any is made."""
    config = model_config(name)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    head = model.lm_head.weight.numel()
    linears = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear)) - head
    others = (model.num_parameters() - linears) * variant.dtype.itemsize
    if variant.format in ("float32", "bf16"):
        return others + linears * variant.dtype.itemsize
    return others + (linears if variant.format == "int8" else tensor_bytes_in_4bit(linears, double_quant=variant.format.endswith("+dq")))


def free_bytes() -> int:
    """Memory that is free where the models are measured."""
    return torch.cuda.mem_get_info(0)[0] if GPU else psutil.virtual_memory().available


def model_variants(name: str) -> list[Variant]:
    """The formats of a model; float32 only of the small one."""
    return [variant for variant in variants(float32_compute=GPU) if name == SMALL or variant.format != "float32"]


def needed_bytes(name: str, variant: Variant) -> int:
    """Weights, the KV cache of the largest batch, and a tenth for what is made on the way."""
    kv_cache = kv_cache_bytes(model_config(name), CONTEXT_TOKENS + 1, max(BATCHES), bits=8 * variant.dtype.itemsize)
    return round(1.1 * (predicted_bytes(name, variant) + 2 * kv_cache))


def groups(name: str) -> list[tuple[Variant, ...]]:
    """All formats of a model together if they fit in memory at the same time, so that they can take turns; or else each by itself."""
    together = tuple(model_variants(name))
    if sum(needed_bytes(name, variant) for variant in together) < free_bytes():
        return [together]
    return [(variant,) for variant in together]


BUILT: dict[tuple[str, tuple[Variant, ...]], dict[Variant, PreTrainedModel]] = {}
"""The models that are in memory: those of one group at most."""


def forget_models() -> None:
    """Give the memory of the models back. A layer and its weight point at each other, so only the collector finds them."""
    BUILT.clear()
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()


def load_group(name: str, group: tuple[Variant, ...]) -> dict[Variant, PreTrainedModel]:
    """The models of a group; those of the group before are dropped first. Raises LeftOut where there is too little memory."""
    if (name, group) not in BUILT:
        if BUILT:
            forget_models()
        needed = sum(needed_bytes(name, variant) for variant in group)
        if needed > free_bytes():
            where = "on the GPU" if GPU else "in this machine's memory"
            raise LeftOut(f"{name} in {group[0].format} needs {needed / 1e9:.1f} GB, and {free_bytes() / 1e9:.1f} GB are free {where}.")
        BUILT[name, group] = {variant: build_model(name, variant) for variant in group}
    return BUILT[name, group]


def note_on(record: dict[str, Any], group: tuple[Variant, ...]) -> str:
    """What a reader of a record should know, if anything."""
    alone, outliers = len(group) == 1, record["format"] == "int8"
    return "; ".join(
        ["measured by itself, not in turns: the formats do not fit in memory together"] * alone
        + ["random weights: with those of a trained model LLM.int8() may find outliers and take longer"] * outliers
    )


@torch.inference_mode()
def measure_decode(name: str, group: tuple[Variant, ...], batch: int) -> list[dict[str, Any]]:
    runs = {}
    for variant, model in load_group(name, group).items():
        ids = torch.randint(model.config.vocab_size, (batch, CONTEXT_TOKENS), device=DEVICE)
        kept = model(ids, use_cache=True, logits_to_keep=1).past_key_values
        runs[variant] = (decode(variant, name, batch), partial(one_token, model, ids[:, :1], kept))
    return with_notes(race(runs), group)


def one_token(model: PreTrainedModel, token: Tensor, kept: Any) -> None:
    """One token more for each sequence of the batch; then the cache is as before."""
    model(token, past_key_values=kept, use_cache=True)
    kept.crop(-1)


@torch.inference_mode()
def measure_prefill(name: str, group: tuple[Variant, ...]) -> list[dict[str, Any]]:
    runs = {}
    for variant, model in load_group(name, group).items():
        ids = torch.randint(model.config.vocab_size, (1, PROMPT_TOKENS), device=DEVICE)
        runs[variant] = (prefill(variant, name), partial(model, ids, use_cache=True, logits_to_keep=1))
    return with_notes(race(runs), group)


def with_notes(found: list[dict[str, Any]], group: tuple[Variant, ...]) -> list[dict[str, Any]]:
    for record in found:
        if "reason" not in record and (note := note_on(record, group)):
            record["note"] = note
    return found


def decode(variant: Variant, name: str, batch: int) -> dict[str, Any]:
    return variant.names("decode", name, batch=batch, tokens=CONTEXT_TOKENS)


def prefill(variant: Variant, name: str) -> dict[str, Any]:
    return variant.names("prefill", name, batch=1, tokens=PROMPT_TOKENS)


def model_part(name: str) -> Part:
    large = name == LARGE
    steps = []
    for group in groups(name):
        share = len(group) / len(model_variants(name))
        for batch in BATCHES:
            seconds = share * ({1: 40, 4: 10, 16: 12, 64: 20} if large else {1: 20, 4: 12, 16: 20, 64: 60})[batch]
            finds = [decode(variant, name, batch) for variant in group]
            steps.append(Step(f"one token, batch {batch}", finds, partial(measure_decode, name, group, batch), seconds))
        finds = [prefill(variant, name) for variant in group]
        steps.append(Step("prompt", finds, partial(measure_prefill, name, group), share * (15 if large else 45)))
    what = f"{name}, random weights: one token more, batch 1 to 64, and a prompt"
    return Part("large-model" if large else "model", what, steps)


# --- Memory ---


def memory_records(name: str, variant: Variant) -> dict[str, dict[str, Any]]:
    quantities = ("footprint", "footprint, reported", "load peak", "load peak, with mapped files", "after loading")
    return {quantity: variant.names(quantity, name) for quantity in quantities}


@cache
def checkpoint(name: str) -> Path:
    """A folder with the model in bfloat16, removed when the program ends. Raises LeftOut where the disk is too full."""
    folder = Path(tempfile.mkdtemp(prefix="four-bits-measure-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    needed, free = predicted_bytes(name, Variant("bf16")), shutil.disk_usage(folder).free
    if 1.2 * needed > free:
        raise LeftOut(f"{name} has to be written to the disk first: that takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free.")
    build_model(name, Variant("bf16")).save_pretrained(folder)
    return folder


def measure_memory(name: str, variant: Variant) -> list[dict[str, Any]]:
    """Footprint of the model in memory, counted and as transformers reports it; and what loading it takes, in a process of its own."""
    if BUILT:
        forget_models()
    if (needed := round(1.1 * predicted_bytes(name, variant))) > free_bytes():
        raise LeftOut(f"{name} in {variant.format} needs {needed / 1e9:.1f} GB, and {free_bytes() / 1e9:.1f} GB are free.")
    what = memory_records(name, variant)
    model = build_model(name, variant)
    found = [
        counted(what["footprint"], sum(footprint(model).values()), "bytes", "weights, scales, codebooks and buffers"),
        counted(what["footprint, reported"], model.get_memory_footprint(), "bytes", "model.get_memory_footprint()"),
    ]
    del model
    folder = checkpoint(name)
    forget_models()
    setup = f"""
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from course_utils import models
config = {config_text(variant)}
place = {{"": {'0' if GPU else '"cpu"'}}}
AutoModelForCausalLM.from_pretrained(models.ABACUS, quantization_config=config, dtype={variant.dtype}, device_map=place)
"""
    how = f"quantization_config=config, dtype={variant.dtype}, device_map=place"
    load = f"model = AutoModelForCausalLM.from_pretrained({str(folder)!r}, {how})"
    seen = [load_peak(load, setup) for _ in range(LOADS)]
    own = "the process's own memory; mapped pages of the file are not counted"
    amounts = {
        "load peak": [one.gpu_peak_bytes if GPU else one.peak_bytes for one in seen],
        "load peak, with mapped files": [one.with_files_bytes for one in seen],
        "after loading": [one.gpu_after_bytes if GPU else one.after_bytes for one in seen],
    }
    for quantity, amount in amounts.items():
        note = "of the process, in the machine's memory" if quantity.endswith("files") else "on the GPU" if GPU else own
        found.append(timed(what[quantity], Timing(tuple(amount)), "bytes", 1, note))
    return found


def config_text(variant: Variant) -> str:
    """The Python text of the configuration with which a checkpoint is loaded in this format."""
    if variant.format in ("float32", "bf16"):
        return "None"
    if variant.format == "int8":
        return "BitsAndBytesConfig(load_in_8bit=True)"
    quant_type, nested = variant.format.removesuffix("+dq"), variant.format.endswith("+dq")
    return (
        f'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="{quant_type}", bnb_4bit_use_double_quant={nested}, '
        "bnb_4bit_compute_dtype=torch.bfloat16)"
    )


def memory_part() -> Part:
    steps = []
    for name in [SMALL] + [LARGE] * GPU:
        for format in ("float32", "bf16", "int8", "nf4", "nf4+dq", "fp4"):
            variant = Variant(format)  # on a CPU, before the first forward pass: the same on both paths
            if name == SMALL or format != "float32":
                finds = list(memory_records(name, variant).values())
                steps.append(Step(f"{name}, {format}", finds, partial(measure_memory, name, variant), 75 if name == LARGE else 25))
    return Part("memory", "footprint, and peak while loading", steps)


# --- Block sizes ---


BLOCK_SHAPE = (4096, 4096)


def block_time(variant: Variant, block_size: int) -> dict[str, Any]:
    return variant.names("layer time by block size", "4096x4096", batch=1, block_size=block_size)


def block_bytes(block_size: int) -> dict[str, Any]:
    return identity("layer bytes", "4096x4096", "nf4", block_size=block_size)


def block_variants() -> list[Variant]:
    return [variant for variant in variants(float32_compute=False) if variant.format == "nf4"]


@torch.inference_mode()
def measure_blocks() -> list[dict[str, Any]]:
    weight = random_weight(*BLOCK_SHAPE)
    found, runs, calls = [], {}, {}
    for block_size in BLOCK_SIZES:
        for variant in block_variants():
            layer = linear(variant, weight.clone(), block_size)
            if variant == block_variants()[0]:
                found.append(counted(block_bytes(block_size), layer.weight.nbytes + layer.weight.quant_state.absmax.nbytes, "bytes"))
            copies = [layer, *(copy.deepcopy(layer) for _ in range(min(63, COPIES_BYTES // layer.weight.nbytes) if GPU else 0))]
            x = torch.randn(1, BLOCK_SHAPE[1], device=DEVICE, dtype=torch.bfloat16)
            runs[variant, block_size] = (block_time(variant, block_size), partial(call_all, copies, x))
            calls[variant, block_size] = len(copies)
    return found + race(runs, calls=calls)


def blocks_part() -> Part:
    finds = [block_bytes(size) for size in BLOCK_SIZES]
    finds += [block_time(variant, size) for size in BLOCK_SIZES for variant in block_variants()]
    return Part("blocks", "a layer in nf4, blocks of 32 to 4,096", (Step("all block sizes, in turns", finds, measure_blocks, 40),))


# --- Double quantization: what is paid once, and what each time ---

DOUBLE_SHAPE = (11008, 4096)
DOUBLE_OF = "11008x4096"


def double_variants() -> list[Variant]:
    return [variant for variant in variants(float32_compute=False) if variant.format in ("nf4", "nf4+dq")]


@torch.inference_mode()
def measure_quantizing() -> list[dict[str, Any]]:
    weight = random_weight(*DOUBLE_SHAPE)
    runs, states = {}, {}
    for format in ("nf4", "nf4+dq"):
        run = partial(bnb.quantize_4bit, weight, quant_type="nf4", compress_statistics=format == "nf4+dq")
        states[format] = run()
        runs["quantize", format] = (identity("quantize a layer", DOUBLE_OF, format), run)
        runs["read", format] = (identity("read the weight back", DOUBLE_OF, format), partial(bnb.dequantize_4bit, *states[format]))
    state = states["nf4+dq"][1]
    runs["scales"] = (identity("read the scales back", DOUBLE_OF, "nf4+dq"), partial(read_scales, state))
    return race(runs)


def read_scales(state: bnb.QuantState) -> Tensor:
    """The scales in float32, as they are before they are used."""
    return bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset


@torch.inference_mode()
def measure_first_forward() -> list[dict[str, Any]]:
    """Each round takes fresh copies: on some CPUs the first forward pass changes a layer. Later passes follow the first ones of all."""
    weight = random_weight(*DOUBLE_SHAPE)
    fresh = {variant: linear(variant, weight.clone()) for variant in double_variants()}
    x = torch.randn(1, DOUBLE_SHAPE[1], device=DEVICE, dtype=torch.bfloat16)
    seconds: dict[tuple[str, Variant], list[float]] = {(which, v): [] for which in ("first forward", "later forward") for v in fresh}
    for turn in range(REPETITIONS + 1):
        copies = {variant: copy.deepcopy(layer) for variant, layer in fresh.items()}
        for which in ("first forward", "later forward"):
            for variant, mine in copies.items():
                wait_for_gpu()
                start = time.perf_counter()
                mine(x)
                wait_for_gpu()
                if turn > 0:
                    seconds[which, variant].append(time.perf_counter() - start)
    return [timed(variant.names(which, DOUBLE_OF, batch=1), Timing(tuple(taken))) for (which, variant), taken in seconds.items()]


def double_part() -> Part:
    quantizing = [identity("read the scales back", DOUBLE_OF, "nf4+dq")]
    for quantity in ("quantize a layer", "read the weight back"):
        quantizing += [identity(quantity, DOUBLE_OF, format) for format in ("nf4", "nf4+dq")]
    forward = [variant.names(which, DOUBLE_OF, batch=1) for which in ("first forward", "later forward") for variant in double_variants()]
    return Part("double-quantization", "what double quantization costs: while loading, at the first forward pass, at each", (
        Step("quantize and read back", quantizing, measure_quantizing, 40),
        Step("first and later passes", forward, measure_first_forward, 25),
    ))  # fmt: skip


# --- Quality of abacus ---

QUALITY_FORMATS = {"bfloat16": "bf16", "nf4, double quantization": "nf4+dq"}
"""The names in `course_utils.quality` that differ from those of these records."""


def quality_records(format: str) -> list[dict[str, Any]]:
    return [identity(quantity, f"abacus, {kind}", format) for kind in quality.KINDS for quantity in ("accuracy", "perplexity")]


def measure_quality(name: str) -> list[dict[str, Any]]:
    """All held-out questions, in one format."""
    format = QUALITY_FORMATS.get(name, name)
    if name == "int8":
        model, tokenizer = models.load(models.ABACUS, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    else:
        model, tokenizer = models.load(models.ABACUS, dtype=torch.float32)
        model = quality.rounded_copy(model, quality.FORMATS[name])
    found = []
    for kind in quality.KINDS:
        asked = quality.examine(model, tokenizer, quality.read_questions(kind))
        count = len(asked.exact)
        accuracy, error = quality.accuracy(asked.exact), quality.standard_error(asked.exact)
        found.append(averaged(identity("accuracy", f"abacus, {kind}", format), accuracy, error, count, "%"))
        perplexity = quality.perplexity(asked.losses, asked.tokens)
        loss = math.log(perplexity)
        off = math.sqrt(sum((one - loss * tokens) ** 2 for one, tokens in zip(asked.losses, asked.tokens, strict=True))) / sum(asked.tokens)
        found.append(averaged(identity("perplexity", f"abacus, {kind}", format), perplexity, perplexity * off, count, ""))
    return found


def quality_part() -> Part:
    names = [*quality.FORMATS, "int8"]
    steps = [Step(name, quality_records(QUALITY_FORMATS.get(name, name)), partial(measure_quality, name), 25) for name in names]
    return Part("quality", "abacus on its held-out questions, every format", steps)


def parts() -> list[Part]:
    """All parts, the short ones first."""
    torch.manual_seed(0)
    small = [machine_part(), memory_part(), layers_part(), model_part(SMALL)]
    return [*small, *([model_part(LARGE)] if GPU else []), blocks_part(), double_part(), quality_part()]
