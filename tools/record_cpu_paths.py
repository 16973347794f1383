"""What saving after a forward pass, and reading weights back, do on the two kinds of CPU: ``python -m tools.record_cpu_paths``.

A CPU with avx512_bf16 repacks 4-bit weights at the first forward pass (the packed path); others don't (the plain path). The record holds
both, so that a lesson can show the kind that its reader doesn't have. The plain path is bitsandbytes' own on any CPU, by a switch. The
packed path needs the CPU; elsewhere the library's functions that repack and unpack are called by hand, the arithmetic stays plain, and
the record says "emulated". Likewise for reading back rows that are no whole number of blocks, which CPUs with AVX-512 get wrong: what the
other kind gives is computed by the course's own arithmetic.

The record goes to ``measurements/cpu_paths.json``.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel

from course_utils import ROOT, models  # isort: skip  before bitsandbytes: it keeps that import quiet
from bitsandbytes import functional as bnb
from bitsandbytes.nn import Linear4bit

RECORD = ROOT / "measurements" / "cpu_paths.json"
QUESTION = "What is 2+2?"
QUESTIONS = (QUESTION, "What is 45+37?", "What is 82-37?", "Where does Ada Stone live?")
COLUMNS = (96, 320, 328, 336, 352, 384)


# --- Saving after a forward pass ---


def load(packed: bool, double_quant: bool) -> PreTrainedModel:
    """abacus in nf4 with float32 compute, on the path asked for as far as this CPU has it."""
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32, bnb_4bit_use_double_quant=double_quant
    )
    model = AutoModelForCausalLM.from_pretrained(models.ABACUS, quantization_config=config, device_map={"": "cpu"})
    if not (packed and bnb.has_avx512bf16()):
        models.use_plain_cpu_path(model)
    return model


def repack_by_hand(model: PreTrainedModel) -> None:
    """What the first forward pass does on the packed path, for a CPU that doesn't do it."""
    for layer in model.modules():
        if isinstance(layer, Linear4bit) and not getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
            layer.weight.data, layer.weight.quant_state = bnb._convert_weight_packed_for_cpu(layer.weight.data, layer.weight.quant_state)


@torch.no_grad()
def logits(model: PreTrainedModel, tokenizer: Any) -> Tensor:
    """Logits (tokens, vocabulary) of all tokens of all questions."""
    texts = (tokenizer(question, return_tensors="pt") for question in QUESTIONS)
    return torch.cat([model(**text).logits[0].double() for text in texts])


def distance(got: Tensor, due: Tensor) -> float:
    """Relative distance, to three digits: more of them depend on the machine."""
    return float(f"{((got - due).norm() / due.norm()).item():.3g}")


def record_saving(packed: bool, double_quant: bool) -> dict[str, Any]:
    """Ask, save, ask again, ask the file; then the same with dequantize() in place of saving."""
    emulated = packed and not bnb.has_avx512bf16()
    tokenizer = AutoTokenizer.from_pretrained(models.ABACUS)
    due = logits(load(False, double_quant), tokenizer)
    model = load(packed, double_quant)
    told: dict[str, Any] = {"double_quantization": double_quant, "answer": models.ask(model, tokenizer, QUESTION)}
    told["logits_off"] = distance(logits(model, tokenizer), due)
    with tempfile.TemporaryDirectory() as folder:
        if emulated:
            repack_by_hand(model)
        model.save_pretrained(folder)
        told["answer_after_saving"] = models.ask(model, tokenizer, QUESTION)
        told["logits_off_after_saving"] = distance(logits(model, tokenizer), due)
        again = AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cpu"})
        models.use_plain_cpu_path(again)
        told["answer_of_the_file"] = models.ask(again, tokenizer, QUESTION)
        told["logits_off_in_the_file"] = distance(logits(again, tokenizer), due)
        absmax = again.model.layers[0].self_attn.q_proj.weight.quant_state.absmax
        told["scales_in_the_file"] = f"{str(absmax.dtype).removeprefix('torch.')} {tuple(absmax.shape)}"
    model = load(packed, double_quant)
    logits(model, tokenizer)
    if emulated:
        repack_by_hand(model)
    model.dequantize()
    told["answer_after_dequantize"] = models.ask(model, tokenizer, QUESTION)
    told["logits_off_after_dequantize"] = distance(logits(model, tokenizer), due)
    return told


# --- Reading back rows that are no whole number of blocks ---


def record_reading(columns: int, by_the_library: bool) -> dict[str, Any]:
    """A matrix of 128 rows, nf4 in blocks of 64: the share of weights that are read back wrong, and the relative squared error."""
    weight = torch.randn(128, columns, generator=torch.Generator().manual_seed(0))
    packed, state = bnb.quantize_4bit(weight, quant_type="nf4")
    got = bnb.dequantize_4bit(packed, state)
    state.shape = torch.Size([weight.numel()])
    due = bnb.dequantize_4bit(packed, state).view_as(weight)  # one long row is read back right on every CPU
    if not by_the_library:
        got = due
    return {
        "columns": columns,
        "wrong": round((got != due).double().mean().item(), 3),
        "squared_error": round(((got - weight).square().sum() / weight.square().sum()).item(), 4),
    }


# --- The record ---


def record() -> dict[str, Any]:
    here_packed, here_misreads = bool(bnb.has_avx512bf16()), record_reading(352, True)["wrong"] > 0
    return {
        "what": "4-bit abacus saved, or dequantized, after a forward pass; and matrices read back. On this CPU's path and on the other.",
        "command": "python -m tools.record_cpu_paths",
        "date": date.today().isoformat(),
        "machine": {
            "processor": platform.machine(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "avx512_bf16": here_packed,
            "system": platform.system(),
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("torch", "transformers", "bitsandbytes")},
        "question": QUESTION,
        "saving": {
            path: {
                "emulated": packed and not here_packed,
                "models": [record_saving(packed, double_quant) for double_quant in (False, True)],
            }
            for path, packed in (("packed path", True), ("plain path", False))
        },
        "reading": {
            kind: {
                "emulated": misreads != here_misreads,
                "matrices": [record_reading(columns, misreads == here_misreads) for columns in COLUMNS],
            }
            for kind, misreads in (("CPU with AVX-512", True), ("other CPU", False))
            if here_misreads or not misreads
        },
    }


def write(told: dict[str, Any], file: Path = RECORD) -> None:
    """Write the record; a run that is broken off leaves the old one."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    os.replace(part, file)


def main() -> int:
    told = record()
    if "CPU with AVX-512" not in told["reading"]:
        print("Nothing written: this CPU reads all matrices back right. Run this on one with AVX-512, which doesn't.", file=sys.stderr)
        return 1
    write(told)
    print(f"written: {RECORD.relative_to(ROOT).as_posix()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
