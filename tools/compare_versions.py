"""Where versions of bitsandbytes differ from 0.50.2 and from the course: ``python -m tools.compare_versions``.

The bytes of `course_utils.quantize` are those of bitsandbytes 0.50. Each version is installed into a folder of its own under ``build/`` and
runs the same cases on a CPU in a process of its own. What came of each goes to ``measurements/bitsandbytes_versions.json``, and lesson 05
prints a table of it.

    python -m tools.compare_versions
    python -m tools.compare_versions 0.46.0             one version; the records of the others stay
    python -m tools.compare_versions --cases-from 0     only the cases, with the bitsandbytes that Python finds: a line of JSON for each
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from bitsandbytes import functional as bnb
from torch import Tensor

from course_utils import ROOT
from course_utils.codebooks import CODEBOOKS
from course_utils.quantize import SCALE_VALUES, quantize_4bit

VERSIONS = ("0.45.5", "0.46.0", "0.47.0", "0.48.2", "0.49.2", "0.50.2")
VERSIONS_FILE = ROOT / "measurements" / "bitsandbytes_versions.json"
FOLDER = ROOT / "build" / "bitsandbytes"

# --- The cases ---


def drawn(*shape: int) -> Tensor:
    """Float32 numbers between -1 and 1, more of them near 0; the same on every machine."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(*shape, generator=generator) - torch.rand(*shape, generator=generator)


def thresholds(codebook: str) -> Tensor:
    """Two blocks of 64 that hold the points half-way between values, each beginning with a 1."""
    points = torch.tensor(CODEBOOKS[codebook].thresholds()).clamp(-1, 1).repeat(9)[:128]
    points[::64] = 1
    return points


CASES = {
    "full blocks": lambda codebook: (drawn(1000, 64), 64),
    "short last block": lambda codebook: (drawn(64 + 50), 64),
    "odd count": lambda codebook: (drawn(129), 64),
    "half-way between two values": lambda codebook: (thresholds(codebook), 64),
    "tiny beside 1": lambda codebook: (torch.tensor([1.0, 1e-5, -1e-5, 0.0, -0.0, 1e-30] + [0.0] * 58), 64),
    "numbers around 1e-43": lambda codebook: (torch.arange(1, 129, dtype=torch.int32).view(torch.float32), 64),
    "blocks of zeros": lambda codebook: (torch.zeros(128), 64),
    "a short block of zeros": lambda codebook: (torch.zeros(70), 64),
    "all scales equal": lambda codebook: (torch.ones(128), 64),
    "bfloat16": lambda codebook: (drawn(100, 64).bfloat16(), 64),
    "float16": lambda codebook: (drawn(100, 64).half(), 64),
    "blocks of 32": lambda codebook: (drawn(10, 64), 32),
    "blocks of 4096": lambda codebook: (drawn(4, 4096), 4096),
    "128 x 352": lambda codebook: (drawn(128, 352), 64),
}
"""A weight and a block size for each, by codebook. In the last one a row is no whole number of blocks."""

ALL = list(product(CASES, ("nf4", "fp4"), (False, True)))
"""Each case with both codebooks, without and with double quantization."""

OUTCOMES = ("same", "other weights", "other bytes", "error", "crash")
"""What can come of a case, from best to worst. "other weights": the stored bytes are the same, and what is read back from them isn't."""


def run_case(case: str, codebook: str, double_quant: bool) -> dict[str, Any]:
    """Quantize by hand and by bitsandbytes, and count what differs: stored bytes, and weights read back."""
    weight, block_size = CASES[case](codebook)
    told = {"case": case, "codebook": codebook, "double_quant": double_quant}
    ours = quantize_4bit(weight, codebook, block_size, double_quant)
    try:
        packed, state = bnb.quantize_4bit(weight, quant_type=codebook, blocksize=block_size, compress_statistics=double_quant)
        read_back = bnb.dequantize_4bit(packed, state)
    except Exception as error:
        return told | {"outcome": "error", "error": f"{type(error).__name__}: {error}"}
    parts = {"packed": (ours.packed, packed), "codebook": (ours.codebook.values, state.code)}
    if double_quant:
        parts |= {
            "codes of scales": (ours.absmax.codes, state.absmax),
            "scales of scales": (ours.absmax.absmax, state.state2.absmax),
            "offset": (ours.absmax.offset, state.offset),
            "codebook of scales": (SCALE_VALUES, state.state2.code),
        }
    else:
        parts |= {"scales": (ours.absmax, state.absmax)}
    different = {part: different_bytes(mine, theirs) for part, (mine, theirs) in parts.items()}
    mine, theirs = ours.dequantize(), read_back
    weights = int((mine != theirs).sum())  # 0.0 and -0.0 are the same number
    return told | {
        "outcome": "other bytes" if any(different.values()) else "other weights" if weights else "same",
        "bytes": sum(mine.nbytes for mine, _ in parts.values()),
        "bytes_different": {part: count for part, count in different.items() if count},
        "weights": weight.numel(),
        "weights_different": weights,
        "largest_difference": float(f"{(mine - theirs).abs().max().item() / max(mine.abs().max().item(), 1e-45):.1e}"),
    }


def different_bytes(ours: Tensor, theirs: Tensor) -> int:
    """How many bytes differ; all of ours, where dtype or shape do.

    >>> different_bytes(torch.tensor([1, 2, 3]), torch.tensor([1, 2, 259]))
    1
    """
    if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
        return ours.nbytes
    mine, other = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (ours, theirs))
    return int((mine != other).sum())


# --- The versions ---


def install(release: str) -> Path:
    """The folder with this version of bitsandbytes, without what it depends on; downloaded if it isn't there."""
    folder = FOLDER / release
    if not (folder / f"bitsandbytes-{release}.dist-info").exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, f"bitsandbytes=={release}"]
        subprocess.run(command, check=True)
    return folder


def run_cases(folder: Path) -> list[dict[str, Any]]:
    """All cases in a process that finds bitsandbytes in this folder; in a new one after each case that ends the process."""
    results: list[dict[str, Any]] = []
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONIOENCODING": "utf-8"}
    while len(results) < len(ALL):
        command = [sys.executable, "-m", "tools.compare_versions", "--cases-from", str(len(results))]
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8")
        results += [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
        if len(results) < len(ALL):
            if run.returncode >= 0:
                sys.exit(f"The cases ended early:\n{run.stderr}")
            case, codebook, double_quant = ALL[len(results)]
            ended = {"outcome": "crash", "error": signal.Signals(-run.returncode).name}
            results.append({"case": case, "codebook": codebook, "double_quant": double_quant} | ended)
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compare versions of bitsandbytes with the course, on a CPU.")
    parser.add_argument("releases", nargs="*", metavar="RELEASE", help=f"of {', '.join(VERSIONS)}; without it all of them")
    parser.add_argument("--cases-from", type=int, help="only run the cases, from this one on, with the bitsandbytes that is found")
    choice = parser.parse_args(arguments)
    for release in choice.releases:
        if release not in VERSIONS:
            parser.error(f"{release} is not among the versions compared: {', '.join(VERSIONS)}")
    if choice.cases_from is not None:
        with torch.compiler.set_stance("force_eager"):  # odd counts would be compiled, which takes seconds
            for case in ALL[choice.cases_from :]:
                print(json.dumps(run_case(*case)), flush=True)
        return

    record = {
        "what": "bitsandbytes on a CPU, beside course_utils.quantize: bytes stored and weights read back that differ, case by case",
        "command": "python -m tools.compare_versions",
        "date": date.today().isoformat(),
        "machine": {
            "processor": platform.machine(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "system": platform.system(),
            "device": "cpu",
        },
        "versions": {"python": platform.python_version(), "torch": version("torch")},
        "bitsandbytes": {},
    }
    if choice.releases:
        kept = json.loads(VERSIONS_FILE.read_text(encoding="utf-8"))
        if (kept["machine"], kept["versions"]) != (record["machine"], record["versions"]):
            sys.exit(f"{VERSIONS_FILE.name} was written on another machine or with other versions: run all releases again.")
        record["bitsandbytes"] = kept["bitsandbytes"]
    for release in choice.releases or VERSIONS:
        record["bitsandbytes"][release] = results = run_cases(install(release))
        counts = {outcome: sum(result["outcome"] == outcome for result in results) for outcome in OUTCOMES}
        print(release, ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count))
    record["bitsandbytes"] = {release: record["bitsandbytes"][release] for release in VERSIONS if release in record["bitsandbytes"]}
    VERSIONS_FILE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{VERSIONS_FILE.relative_to(ROOT)} is written.")


if __name__ == "__main__":
    main()
