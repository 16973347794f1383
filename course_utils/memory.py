"""How many bytes a model takes: computed before it is loaded, and counted after.

First met in lesson 01. Sizes are in bytes; 1 GB is 10**9 bytes and 1 GiB is 2**30 bytes.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

import psutil
import torch
from torch import nn

from course_utils import ROOT

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

GB = 10**9


def bits_per_weight(block_size: int = 64, double_quant: bool = False) -> float:
    """Bits that a 4-bit weight really takes: its code, and its share of the scales.

    Every block has one scale, the absmax, in float32. With double quantization the scale is an 8-bit code,
    and every 256 of those share one float32 scale of their own.

    >>> bits_per_weight()
    4.5
    >>> bits_per_weight(double_quant=True)
    4.126953125

    Source: QLoRA (arXiv 2305.14314), section 3, "Double Quantization".
    """
    scale_bits = 8 + 32 / 256 if double_quant else 32
    return 4 + scale_bits / block_size


def tensor_bytes_in_4bit(weights: int, block_size: int = 64, double_quant: bool = False) -> int:
    """Bytes that bitsandbytes stores for a tensor of `weights` numbers: packed codes and scales, without the codebook.

    Two codes share a byte. A last block that is not full needs a scale too. Double quantization adds
    the mean of the scales, the offset, as one float32.

    >>> tensor_bytes_in_4bit(128)  # 64 bytes of codes, 2 scales of 4 bytes
    72
    >>> tensor_bytes_in_4bit(128, double_quant=True)  # 64 of codes, 2 of scale codes, 4 for their scale, 4 for the offset
    74
    """
    packed = -(-weights // 2)
    blocks = -(-weights // block_size)
    if not double_quant:
        return packed + 4 * blocks
    return packed + blocks + 4 * -(-blocks // 256) + 4


def weight_groups(model: nn.Module) -> dict[str, int]:
    """Count a model's weights by what 4-bit loading does with them.

    Returns:
        Number of weights in ``linear layers`` (which become 4-bit), ``experts`` (the fused three-dimensional weights
        of a mixture of experts), ``embedding``, ``head`` and ``the rest`` (norms, routers, biases).
    """
    counts = {"linear layers": 0, "experts": 0, "embedding": 0, "head": 0, "the rest": 0}
    for group, weight in _grouped_weights(model):
        counts[group] += weight.numel()
    return counts


def _grouped_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every weight once, with the name of its group. A tied head is the embedding and counted there."""
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    embedding = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = {id(m.weight) for name, m in model.named_modules() if name == "lm_head"}
    for weight in model.parameters():
        if id(weight) in embedding:
            yield "embedding", weight
        elif id(weight) in head:
            yield "head", weight
        elif id(weight) in linear:
            yield "linear layers", weight
        else:
            yield ("experts" if weight.ndim == 3 else "the rest"), weight


def model_bytes_in_4bit(model: nn.Module, double_quant: bool = False, other_bits: int = 16, experts_too: bool = False) -> int:
    """Predict the bytes of a model's weights after loading it in 4 bits. The model may be on the meta device.

    Args:
        other_bits: bits of a weight that stays as it is: embedding, head, norms.
        experts_too: count fused experts as 4-bit as well.
    """
    total = 0
    for group, weight in _grouped_weights(model):
        if group == "linear layers" or (group == "experts" and experts_too):
            total += tensor_bytes_in_4bit(weight.numel(), double_quant=double_quant)
        else:
            total += weight.numel() * other_bits // 8
    return total


def stored_bytes(model: PreTrainedModel) -> dict[str, int]:
    """Count the bytes of a loaded model's weights from the tensors themselves, the scales of 4-bit weights included.

    Read it before the first forward pass: on some CPUs that pass repacks the weights (lesson 07).

    Returns:
        Bytes of ``packed codes``, ``scales`` (with nested scales and offset), ``codebooks``, and ``other weights``.
    """
    parts = footprint(model)
    parts["scales"] += parts.pop("nested scales")
    del parts["buffers"]
    return parts


def footprint(model: nn.Module) -> dict[str, int]:
    """Count the bytes that a loaded model really keeps, part by part. First met in lesson 07.

    ``model.get_memory_footprint()`` of transformers counts parameters and buffers. The scales and codebooks of a quantized
    weight are neither: they hang on the weight as attributes, and are counted here.

    It is right before and after a forward pass. On some CPUs the first pass repacks 4-bit weights, and the bytes are others then
    (lesson 07); an offset that is left over, 4 bytes a matrix, is not counted. It also moves the scales of 8-bit weights from the
    weight to the layer; they are counted in both places, once.

    Args:
        model: loaded in any format: 16 or 32 bits, 4 bits or 8 bits by bitsandbytes.

    Returns:
        Bytes of ``packed codes`` (of 8-bit weights the codes), ``scales``, ``nested scales`` (of double quantization, with the
        offset), ``codebooks``, ``other weights`` and ``buffers``. A tensor that stands in several places is counted once.
    """
    parts: dict[str, list[torch.Tensor | None]] = {
        "packed codes": [], "scales": [], "nested scales": [], "codebooks": [], "other weights": [], "buffers": list(model.buffers()),
    }  # fmt: skip
    for weight in model.parameters():
        state = getattr(weight, "quant_state", None)
        if state is not None:
            parts["packed codes"].append(weight)
            parts["scales"].append(state.absmax)
            parts["codebooks"].append(state.code)
            if state.nested:
                parts["nested scales"] += [state.offset, state.state2.absmax]
                parts["codebooks"].append(state.state2.code)
        elif hasattr(weight, "SCB"):  # Int8Params
            parts["packed codes"].append(weight)
            parts["scales"].append(weight.SCB)
        else:
            parts["other weights"].append(weight)
    parts["scales"] += [layer.state.SCB for layer in model.modules() if hasattr(getattr(layer, "state", None), "SCB")]
    seen: set[int] = set()
    return {part: sum(_bytes_once(tensor, seen) for tensor in tensors) for part, tensors in parts.items()}


def _bytes_once(tensor: torch.Tensor | None, seen: set[int]) -> int:
    """Bytes of a tensor's numbers; 0 if there is none, or if its memory is in ``seen`` already."""
    if tensor is None or tensor.data_ptr() in seen:
        return 0
    if tensor.data_ptr():  # 0 on the meta device
        seen.add(tensor.data_ptr())
    return tensor.nbytes


class LoadEvent(NamedTuple):
    """Something that happened while a model was loaded: a file was opened or closed, a weight read or quantized."""

    what: str
    """``open``, ``read``, ``quantize`` or ``close``."""
    file: str
    """The name of the file that was opened, closed or read; empty for ``quantize``."""
    weight: str
    """The name of the weight that was read, or that was read last before ``quantize``; empty for files."""
    device: str
    """Where the full weight lay when it was quantized, such as ``cpu`` or ``cuda:0``; empty otherwise."""


@contextmanager
def watch_load() -> Iterator[list[LoadEvent]]:
    """Write down what `from_pretrained` does with a model's files and weights, in order. First met in lesson 07.

    It stands between transformers and two functions that it calls: `safe_open` of safetensors, which opens a file and hands out
    its weights one by one, and `quantize_4bit` of bitsandbytes. Nothing that is loaded is changed.

    >>> with watch_load() as events:  # doctest: +SKIP
    ...     model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
    >>> events[0]  # doctest: +SKIP
    LoadEvent(what='open', file='model-00001-of-00005.safetensors', weight='', device='')
    """
    import bitsandbytes.functional
    from transformers import modeling_utils

    events: list[LoadEvent] = []
    safe_open, quantize_4bit = modeling_utils.safe_open, bitsandbytes.functional.quantize_4bit

    class WatchedFile:
        def __init__(self, path: str, *args: Any, **settings: Any) -> None:
            self.name = Path(path).name
            self.opened = safe_open(path, *args, **settings)
            events.append(LoadEvent("open", self.name, "", ""))

        def __getattr__(self, attribute: str) -> Any:
            return getattr(self.opened, attribute)

        def __enter__(self) -> WatchedFile:
            self.opened.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            events.append(LoadEvent("close", self.name, "", ""))
            self.opened.__exit__(*error)

        def get_slice(self, weight: str) -> WatchedSlice:
            return WatchedSlice(self.name, weight, self.opened.get_slice(weight))

    class WatchedSlice:
        def __init__(self, file: str, weight: str, in_file: Any) -> None:
            self.file, self.weight, self.in_file = file, weight, in_file

        def __getattr__(self, attribute: str) -> Any:
            return getattr(self.in_file, attribute)

        def __getitem__(self, index: Any) -> torch.Tensor:
            events.append(LoadEvent("read", self.file, self.weight, ""))
            return self.in_file[index]

    def watched_quantize(weight: torch.Tensor, *args: Any, **settings: Any) -> Any:
        read = next((event.weight for event in reversed(events) if event.what == "read"), "")
        events.append(LoadEvent("quantize", "", read, str(weight.device)))
        return quantize_4bit(weight, *args, **settings)

    with (
        patch.object(modeling_utils, "safe_open", WatchedFile),
        patch.object(bitsandbytes.functional, "quantize_4bit", watched_quantize),
    ):
        yield events


@dataclass(frozen=True)
class LoadPeak:
    """What loading a model took from the system, in bytes, above what the process had before.

    Attributes:
        peak_bytes: the most that was taken while loading, in the process's own memory.
        after_bytes: what was still taken once the model was loaded.
        with_files_bytes: the peak, counted with the pages of mapped files that are in memory. The system may take these back
            at any time, since it can read them again. On macOS and Windows the two can't be told apart, and this is ``peak_bytes``.
        gpu_peak_bytes: as ``peak_bytes``, of tensors on the GPU; None without one.
        gpu_after_bytes: as ``after_bytes``, of tensors on the GPU; None without one.
    """

    peak_bytes: int
    after_bytes: int
    with_files_bytes: int
    gpu_peak_bytes: int | None = None
    gpu_after_bytes: int | None = None


def load_peak(load: str, setup: str = "", timeout: float = 600) -> LoadPeak:
    """Run a piece of Python that loads a model, in a process of its own, and watch the memory of that process.

    Args:
        load: the code to watch, such as ``model = AutoModelForCausalLM.from_pretrained(folder)``. What it assigns is kept alive.
        setup: code that runs before, unwatched, in the same namespace: imports, and the loading of a very small model, since
            libraries allocate things of their own on the first call.
        timeout: seconds after which the process is ended.

    Raises:
        RuntimeError: the code failed; the text ends with its last line of error.
        subprocess.TimeoutExpired: it took longer than ``timeout``.

    The process reads its own size every millisecond, so a peak that is shorter may be missed.

    On Linux the C library's allocator (glibc) moves the size above which it gives freed memory back to the system, depending on what
    was freed before. Left to itself it kept between 35 and 245 MB after the same load of a model of 26 MB in nf4 (glibc 2.36,
    torch 2.13.0, 11 runs), so the process is started with that size fixed at its first value: ``MALLOC_TRIM_THRESHOLD_=131072``.
    Your own program has no such luck unless you set the variable.
    """
    program = "from course_utils.memory import _report_load_peak; _report_load_peak()"
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps({"setup": setup, "load": load}), cwd=ROOT, timeout=timeout,
        env=os.environ | {"MALLOC_TRIM_THRESHOLD_": "131072", "PYTHON_COLORS": "0", "PYTHONIOENCODING": "utf-8"},
        capture_output=True, encoding="utf-8", errors="replace",
    )  # fmt: skip
    if done.returncode != 0:
        last_line = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise RuntimeError(f"The process that was to load the model failed with code {done.returncode}: {last_line}")
    return LoadPeak(**json.loads(done.stdout.splitlines()[-1]))


def _report_load_peak() -> None:
    """What the process of ``load_peak`` does: run the code that stands on stdin, and print a LoadPeak as JSON."""
    code = json.loads(sys.stdin.read())
    namespace: dict[str, object] = {}
    exec(code["setup"], namespace)
    gc.collect()

    process = psutil.Process()
    gpu = torch.cuda if torch.cuda.is_available() else None
    if gpu:
        gpu_before = gpu.memory_allocated()
        gpu.reset_peak_memory_stats()
    own_before, resident_before = _own_and_resident(process)
    own_peak, resident_peak = own_before, resident_before
    loaded = threading.Event()

    def sample() -> None:
        nonlocal own_peak, resident_peak
        while not loaded.wait(0.001):
            own, resident = _own_and_resident(process)
            own_peak, resident_peak = max(own_peak, own), max(resident_peak, resident)

    sampler = threading.Thread(target=sample)
    switch_interval = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)  # the sampler's turn comes at least this often
    sampler.start()
    try:
        exec(code["load"], namespace)
    finally:
        loaded.set()
        sampler.join()
        sys.setswitchinterval(switch_interval)
    own_peak = max(own_peak, _own_and_resident(process)[0])
    gc.collect()
    result = {
        "peak_bytes": own_peak - own_before,
        "after_bytes": _own_and_resident(process)[0] - own_before,
        "with_files_bytes": max(resident_peak - resident_before, own_peak - own_before),
    }
    if gpu:
        result |= {"gpu_peak_bytes": gpu.max_memory_allocated() - gpu_before, "gpu_after_bytes": gpu.memory_allocated() - gpu_before}
    print("\n" + json.dumps(result))


def _own_and_resident(process: psutil.Process) -> tuple[int, int]:
    """Bytes of a process that are in memory, without and with the pages of mapped files. Linux alone tells them apart."""
    info = process.memory_info()
    return info.rss - getattr(info, "shared", 0), info.rss


def kv_cache_bytes(config: PreTrainedConfig, tokens: int, batch: int = 1, bits: int = 16) -> int:
    """Bytes of the key-value cache: two vectors (key and value) for every layer, key-value head and token.

    Args:
        config: of a Llama-like model; its `num_key_value_heads` may be fewer than its attention heads.
        tokens: length of prompt and answer together.
        batch: texts that are written at the same time; each has a cache of its own.
        bits: of each number in the cache, 16 for float16 and bfloat16.
    """
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    numbers_per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head_size
    return numbers_per_token * tokens * batch * bits // 8


def float_fields(number: float, dtype: torch.dtype) -> tuple[str, str, str]:
    """Sign, exponent and mantissa of a number in a floating-point format, as strings of bits.

    >>> float_fields(-6.5, torch.float16)
    ('1', '10001', '1010000000')

    Raises:
        KeyError: for a dtype other than float32, float16 and bfloat16.
    """
    integer, exponent_bits = {
        torch.float32: (torch.int32, 8), torch.float16: (torch.int16, 5), torch.bfloat16: (torch.int16, 8)
    }[dtype]  # fmt: skip
    width = torch.finfo(dtype).bits
    pattern = torch.tensor(number, dtype=dtype).view(integer).item() % 2**width
    bits = f"{pattern:0{width}b}"
    return bits[0], bits[1 : 1 + exponent_bits], bits[1 + exponent_bits :]
