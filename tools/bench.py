"""What 4 bits cost in time on this machine: by hand, by bitsandbytes, and beside a plain copy, which nothing can beat.

Everything is measured in one run, and what is compared takes turns, so that a busy moment hits all alike. A figure is the median
of its runs, with the quartiles beside it. Under torch.compile the functions of `course_utils.quantize` are the same.

Dequantizing makes a new matrix, and so does what it is compared with: "copy" reads a matrix and writes a new one, "write" only writes it.
Where "write" alone takes nine tenths of bitsandbytes' time, nothing that returns a new matrix can take much less.

    python -m tools.bench
    python -m tools.bench --size 1024 --runs 3 --threads 1
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from unittest import mock

import torch
from tabulate import tabulate
from torch import Tensor, nn

from course_utils import models, quantize  # isort: skip  before bitsandbytes: it keeps that import quiet
from bitsandbytes import functional as bnb
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear4bit

from course_utils.linear import HandLinear4bit
from course_utils.measure import time_in_turns
from course_utils.quantize import Quantized4bit, quantize_4bit

Run = Callable[[], object]


def table_rows(title: str, runs: dict[str, Run], repeats: int, judge: str = "bitsandbytes") -> list[list[str]]:
    """A row for each run: median and quartiles in milliseconds, and its median as a multiple of the judge's."""
    timings = time_in_turns(runs, repeats)
    unit = timings[judge].median
    rows = []
    for name, timing in timings.items():
        median, low, high = (1000 * seconds for seconds in (timing.median, *timing.quartiles))
        rows.append(["" if rows else title, name, f"{median:.1f}", f"{low:.1f} to {high:.1f}", f"{timing.median / unit:.2f}"])
    return rows


COMPILED = {
    "quantize_slice": torch.compile(quantize.quantize_slice, dynamic=False),
    "dequantize_slice": torch.compile(quantize.dequantize_slice, dynamic=False),
}
"""The two steps of `course_utils.quantize` that do the work. torch compiles each when it is first called, once for each codebook."""


def compiled(run: Run) -> Run:
    """The same run, with compiled steps in the place of the readable ones."""

    def run_compiled() -> object:
        with mock.patch.multiple(quantize, **COMPILED):
            return run()

    return run_compiled


def check_bytes(ours: Quantized4bit, packed: Tensor, state: bnb.QuantState) -> None:
    """Refuse to time two things that don't do the same."""
    pairs = [(ours.packed, packed)]
    if state.nested:
        pairs += [(ours.absmax.codes, state.absmax), (ours.absmax.absmax, state.state2.absmax), (ours.absmax.offset, state.offset)]
    else:
        pairs += [(ours.absmax, state.absmax)]
    if not all(torch.equal(mine, theirs) for mine, theirs in pairs):
        raise SystemExit("The bytes differ from those of bitsandbytes; there is no point in timing them.")


def weights(size: int, repeats: int) -> tuple[list[list[str]], list[str]]:
    """Quantizing and reading back a float32 matrix. Returns rows for the table, and a line for each compilation."""
    weight = torch.randn(size, size)
    rows, compilations = [], []
    for codebook in ("nf4", "fp4"):
        for double_quant in (False, True):
            title = f"{codebook}, double quantization" if double_quant else codebook
            by_bitsandbytes = partial(bnb.quantize_4bit, weight, quant_type=codebook, compress_statistics=double_quant)
            by_hand = partial(quantize_4bit, weight, codebook, double_quant=double_quant)
            packed, state = by_bitsandbytes()
            ours = by_hand()
            read = partial(bnb.dequantize_4bit, packed, state)

            started = time.perf_counter()
            ours_compiled = compiled(by_hand)()
            half_way = time.perf_counter()
            read_compiled = compiled(ours.dequantize)()
            if not double_quant:  # with it, the same steps are used again
                quantizing, reading = half_way - started, time.perf_counter() - half_way
                compilations.append(f"{codebook}: {quantizing:.1f} s to quantize, {reading:.1f} s to read back")

            check_bytes(ours, packed, state)
            check_bytes(ours_compiled, packed, state)
            if not (torch.equal(ours.dequantize(), read()) and torch.equal(read_compiled, read())):
                raise SystemExit("What is read back differs from bitsandbytes; there is no point in timing it.")

            for what, theirs, mine in (("quantize", by_bitsandbytes, by_hand), ("dequantize", read, ours.dequantize)):
                runs = {"bitsandbytes": theirs, "by hand": mine, "by hand, compiled": compiled(mine), "copy": weight.clone}
                if what == "dequantize":
                    runs["write"] = partial(torch.full_like, weight, 0.5)
                rows += table_rows(f"{what}, {title}", runs, repeats)
    return rows, compilations


@torch.no_grad()
def products(size: int, repeats: int) -> list[list[str]]:
    """A linear layer of size x size on a batch of 1 and of 64, computed in float32 and in bfloat16."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        linear = nn.Linear(size, size, bias=False).eval().to(dtype)
        plain, packed = (linear_4bit(linear, dtype) for _ in range(2))
        models.use_plain_cpu_path(plain)
        layers = {"bitsandbytes": plain, "by hand": HandLinear4bit.from_linear(linear, compute_dtype=dtype), "not quantized": linear}
        if has_avx512bf16():
            layers["bitsandbytes, packed path"] = packed
        for batch in (1, 64):
            x = torch.randn(batch, size, dtype=dtype)
            runs = {name: partial(layer, x) for name, layer in layers.items()}
            rows += table_rows(f"product, batch {batch}, {str(dtype).removeprefix('torch.')}", runs, repeats)
    return rows


def linear_4bit(linear: nn.Linear, compute_dtype: torch.dtype) -> Linear4bit:
    """The layer of bitsandbytes with the weight of another."""
    layer = Linear4bit(
        linear.in_features, linear.out_features, bias=False, compute_dtype=compute_dtype, compress_statistics=False, quant_type="nf4"
    )
    layer.weight.data = linear.weight.data.clone()
    return layer.to("cpu").eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="Time 4-bit weights by hand and by bitsandbytes.")
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the matrix (default: 4096)")
    parser.add_argument("--runs", type=int, default=15, help="how often each is measured (default: 15)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads (default: those of torch)")
    choice = parser.parse_args()
    torch.set_num_threads(choice.threads)
    torch.manual_seed(0)

    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "bitsandbytes"))
    print(f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}, {choice.threads} threads, {libraries}")
    print(f"A matrix of {choice.size} x {choice.size}, blocks of 64, {choice.runs} runs each. Milliseconds.\n")
    rows, compilations = weights(choice.size, choice.runs)
    rows += products(choice.size, choice.runs)
    headers = ["", "", "median", "quartiles", "times bitsandbytes"]
    print(tabulate(rows, headers, disable_numparse=True, colalign=("left", "left", "right", "right", "right")))
    print("\nCodes, scales and what is read back were equal in all cases, compiled or not. Compiling, with the first run, took:")
    print("\n".join(f"  {line}" for line in compilations))


if __name__ == "__main__":
    main()
