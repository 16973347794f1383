"""Examine abacus in every format and write its model card: ``python -m tools.examine_abacus``.

The figures go to ``measurements/abacus_quality.json``, and from there, by this program, into the card ``models/abacus/README.md``.
The questions themselves go to ``models/abacus/questions.jsonl``, from which lessons read them (`course_utils.quality.read_questions`);
``--questions-only`` writes nothing else.

All arithmetic is in float32, and only the weights of the linear layers, the head left out, are rounded: the figures are those of the
weights alone.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import statistics
from collections import defaultdict
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from course_utils.models import ABACUS, load  # isort: skip  before bitsandbytes: it keeps that import quiet
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from jaxtyping import Float
from tabulate import tabulate
from torch import Tensor

from course_utils import ROOT
from course_utils.memory import bits_per_weight
from course_utils.quality import QUESTIONS_FILE, examine, perplexity, round_to_integers, rounded_copy
from tools.abacus_text import KINDS, LEVELS, Town, examination
from tools.train_abacus import SEED, TRAINING_FILE

QUALITY_FILE = ROOT / "measurements" / "abacus_quality.json"
PER_LEVEL = 1000
ORDER = ("float32", "nf4", "int4, blocks of 64", "fp4", "int4, one scale a tensor")
"""The order of perplexity that the facts are to show, best first."""


def through_bitsandbytes(quant_type: str, double_quant: bool) -> Callable[[Tensor], Tensor]:
    """The weights that bitsandbytes gives back after quantizing, blocks of 64."""

    def round_trip(weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        return dequantize_4bit(*quantize_4bit(weight, quant_type=quant_type, blocksize=64, compress_statistics=double_quant))

    return round_trip


FORMATS: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {
    "float32": (32, lambda weight: weight),
    "bfloat16": (16, lambda weight: weight.to(torch.bfloat16).float()),
    "nf4": (bits_per_weight(), through_bitsandbytes("nf4", double_quant=False)),
    "nf4, double quantization": (bits_per_weight(double_quant=True), through_bitsandbytes("nf4", double_quant=True)),
    "int4, blocks of 64": (bits_per_weight(), lambda weight: round_to_integers(weight, 7, 64)),
    "fp4": (bits_per_weight(), through_bitsandbytes("fp4", double_quant=False)),
    "int4, one scale a tensor": (4, lambda weight: round_to_integers(weight, 7, None)),
    "int3, blocks of 64": (3.5, lambda weight: round_to_integers(weight, 3, 64)),
}
"""Bits per weight of a linear layer, and the weights that a format gives back. A scale of the whole tensor is not counted."""


def questions_file(town: Town) -> str:
    """The whole examination, one question a line, shuffled once."""
    items = [item for kind in KINDS for item in examination(kind, town, SEED, PER_LEVEL)]
    random.Random(f"questions {SEED}").shuffle(items)
    return "".join(
        json.dumps({"kind": item.kind, "level": item.level, "question": item.question, "answer": item.answer}) + "\n" for item in items
    )


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error.

    >>> mean_and_error([1.0, 2.0, 3.0])
    (2.0, 0.5773502691896258)
    """
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def measure() -> dict[str, object]:
    """Examine every format; return the record that is written to `QUALITY_FILE`."""
    model, tokenizer = load(str(ABACUS), dtype=torch.float32)
    town = Town(SEED)
    exams = {kind: examination(kind, town, SEED, PER_LEVEL) for kind in KINDS}
    formats: dict[str, dict[str, object]] = {}
    token_losses: dict[str, dict[str, list[float]]] = defaultdict(dict)
    for name, (bits, round_trip) in FORMATS.items():
        rounded = rounded_copy(model, round_trip)
        kinds = {}
        for kind, items in exams.items():
            results = examine(rounded, tokenizer, items)
            exact = results.exact
            accuracy, error = mean_and_error([100.0 * e for e in exact])
            token_losses[kind][name] = [loss / count for loss, count in zip(results.losses, results.tokens, strict=True)]
            levels = {
                level: round(statistics.fmean(100.0 * e for e, item in zip(exact, items, strict=True) if item.level == level), 2)
                for level in LEVELS[kind]
            }
            kinds[kind] = {
                "questions": len(items), "exact_percent": round(accuracy, 2), "standard_error": round(error, 2),
                "exact_percent_by_level": levels, "perplexity": round(perplexity(results.losses, results.tokens), 6),
            }  # fmt: skip
            print(f"{name:26} {kind:12} {accuracy:6.2f} +- {error:.2f}  perplexity {kinds[kind]['perplexity']:.5f}", flush=True)
        formats[name] = {"bits_per_weight": bits, "kinds": kinds}
    steps = []
    for kind in KINDS:
        for better, worse in zip(ORDER, ORDER[1:], strict=False):
            pairs = zip(token_losses[kind][worse], token_losses[kind][better], strict=True)
            difference, error = mean_and_error([w - b for w, b in pairs])
            steps.append({"kind": kind, "better": better, "worse": worse, "nats_per_token": difference, "standard_error": error})
    return {
        "what": "abacus, exact greedy answers and perplexity of the answer's tokens, by weight format; arithmetic in float32",
        "command": "python -m tools.examine_abacus",
        "date": date.today().isoformat(),
        "machine": {"processor": platform.machine(), "system": platform.system(), "device": "cpu"},
        "versions": {"python": platform.python_version()}
        | {name: version(name).split("+")[0] for name in ("torch", "transformers", "bitsandbytes")},
        "formats": formats,
        "perplexity_order": steps,
    }


def card(quality: dict, training: dict, file_bytes: int) -> str:
    """The model card as Markdown, every figure from the two records."""
    formats = quality["formats"]
    accuracy = []
    for name, record in formats.items():
        scores = [f"{k['exact_percent']:.1f} ± {k['standard_error']:.1f}" for k in record["kinds"].values()]
        accuracy.append([name, f"{record['bits_per_weight']:.3f}", *scores])
    perplexity = [[name] + [f"{k['perplexity']:.4f}" for k in record["kinds"].values()] for name, record in formats.items()]
    levels = []
    for kind in KINDS:
        for level in LEVELS[kind]:
            scores = [formats[name]["kinds"][kind]["exact_percent_by_level"][level] for name in ("float32", "nf4")]
            levels.append([kind, level, *(f"{score:.1f}" for score in scores)])
    order = [
        [s["kind"], f"{s['better']} < {s['worse']}", f"{s['nats_per_token']:+.5f} ± {s['standard_error']:.5f}", _verdict(s)]
        for s in quality["perplexity_order"]
    ]
    questions = ", ".join(f"{kind} {record['questions']}" for kind, record in formats["float32"]["kinds"].items())
    versions = ", ".join(f"{name} {number}" for name, number in quality["versions"].items())
    return CARD.format(
        weights=training["weights"], megabytes=file_bytes / 1e6, steps=training["steps"], minutes=training["seconds"] / 60,
        threads=training["threads"], training_versions=", ".join(f"{n} {v}" for n, v in training["versions"].items()),
        processor=training["processor"], questions=questions, versions=versions, date=quality["date"],
        accuracy=_table(["format", "bits per weight", *KINDS], accuracy),
        perplexity=_table(["format", *KINDS], perplexity),
        levels=_table(["kind", "level", "float32", "nf4"], levels),
        order=_table(["kind", "expected order", "difference in nats per token", "seen"], order),
    )  # fmt: skip


def _table(headers: list[str], rows: list[list[str]]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def _verdict(step: dict) -> str:
    """Whether a difference has the expected sign and is larger than twice its standard error."""
    if step["nats_per_token"] > 2 * step["standard_error"]:
        return "as expected"
    if step["nats_per_token"] < -2 * step["standard_error"]:
        return "the other way round"
    return "can't be told apart"


CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
<!-- Written by `python -m tools.examine_abacus` from measurements/; change the program, not this file. -->

# abacus

A Llama-architecture language model of {weights:,} weights ({megabytes:.1f} MB in float32), trained from scratch for the course Four Bits.
It knows five things: sums, differences, products, stories about counting, and the house numbers of an invented town.
It is small enough to travel with the course and knows enough for 4-bit quantization to hurt it measurably. It is of no other use.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("models/abacus")
model = AutoModelForCausalLM.from_pretrained("models/abacus")
inputs = tokenizer("What is 2+2?", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))  # What is 2+2? The answer is 4.
```

## What it was trained on

Text made by `tools/abacus_text.py` from one seed; no text of other people. About a tenth of all steps of arithmetic is held out:
an operation and two operands, whatever their order and the words around them. No training question contains a held-out step, and
the examination asks only questions that do. Of facts nothing can be held out; each person is asked about in a wording in which that
person was never asked about in training.

{steps:,} steps of `python -m tools.train_abacus`, {minutes:.0f} minutes on {threads} threads ({processor}; {training_versions}).
The loss is that of the answer only. The optimizer is Muon for the matrices of the layers and AdamW for the rest.

## What it answers

Exact greedy answers in percent, with the standard error over questions. Questions: {questions}.
The weights of all linear layers but the head are rounded to the format, and all arithmetic is in float32
({versions}; CPU; {date}).

{accuracy}

By level:

{levels}

## Perplexity of the answer's tokens

{perplexity}

The order that theory expects for weights that are about normal, step by step. The difference is that of the mean loss over the same
questions, with its standard error; "as expected" means larger than twice that error.

{order}

The facts follow the order. Of the other kinds some rows can't be told apart: there both formats give nearly every token of the answer a
probability near 1, as the perplexities show, and a few questions decide the mean.

## Limits

Numbers below 1,000, products by one digit, the wordings of `tools/abacus_text.py`, English. Anything else gives nonsense.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--card-only", action="store_true", help="write the card from the records that are there, measure nothing")
    only.add_argument("--questions-only", action="store_true", help="write the file of questions, measure nothing")
    args = parser.parse_args()
    QUESTIONS_FILE.write_text(questions_file(Town(SEED)), encoding="utf-8", newline="\n")
    if args.questions_only:
        return
    if not args.card_only:
        QUALITY_FILE.parent.mkdir(exist_ok=True)
        QUALITY_FILE.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
    quality = json.loads(QUALITY_FILE.read_text(encoding="utf-8"))
    training = json.loads(TRAINING_FILE.read_text(encoding="utf-8"))
    text = card(quality, training, (ABACUS / "model.safetensors").stat().st_size)
    Path(ABACUS / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
