"""What goes wrong: errors shown as a learner meets them, and an audit of a model that was loaded.

First met in lessons 10 and 11.
"""

from __future__ import annotations

import io
import logging
import math
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import torch
from tabulate import tabulate
from torch import nn

from course_utils.memory import bits_per_weight, footprint

if TYPE_CHECKING:
    from bitsandbytes.functional import QuantState
    from transformers import BitsAndBytesConfig

# --- An error that is expected (lesson 11) ---

ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")
LOCAL_SERVER = re.compile(r"\b(127\.0\.0\.1|localhost):\d+")
QUOTED_FOLDERS = re.compile(r"""(?<!\w)(['"])(?:[A-Za-z]:|/[^\\/:'"\n]+)[\\/]+(?:[^\\/:'"\n]+[\\/]+)*""")  # the quote, then any name
# A space only in what ends in a backslash, and not after the name of a file.
WINDOWS_FOLDERS = re.compile(r"""\b[A-Za-z]:[\\/]+(?:(?![^\\/\s]*\.\w+,? )[^\\/:'"\n]+\\+|[^\\/:'"\s]+/+)*""")
POSIX_FOLDERS = re.compile(r"(?<![\w.:/])(?:/[\w.+@~-]+)+/")  # not the path of a web address, nor owner/model


@dataclass
class Caught:
    """What a block marked by `expect_error` has raised: the error, None until the block has ended, and what was logged before it."""

    error: Exception | None = None
    log: str = ""


@contextmanager
def expect_error(kind: type[Exception], text: str, lines: int = 4) -> Iterator[Caught]:
    """Run a block that must fail, and print the error's type and the last lines of its message.

    Folders of this machine and addresses of objects are left out of what is printed; the error itself is kept in `.error`. What
    transformers and bitsandbytes log meanwhile, such as the long report of a load, is not printed but kept in `.log`.

    Args:
        kind: the error that must come, or a class above it.
        text: words that its message must hold.
        lines: how many lines of a long message to print, counted from its end.

    Raises:
        AssertionError: if nothing is raised, or an error of another kind, or one with another message.

    >>> with expect_error(ZeroDivisionError, "division"):
    ...     1 / 0
    ZeroDivisionError: division by zero
    """
    caught = Caught()
    try:
        with kept_log() as log:
            yield caught
    except Exception as error:
        if not isinstance(error, kind) or text not in str(error):
            raise AssertionError(f"Expected {kind.__name__} with {text!r} in its message. What came: {error_lines(error)}") from error
        caught.error, caught.log = error, without_places(log.getvalue())
    if caught.error is None:
        raise AssertionError(f"Expected {kind.__name__} with {text!r} in its message. Nothing was raised.")
    print(error_lines(caught.error, lines))


@contextmanager
def kept_log() -> Iterator[io.StringIO]:
    """Keep what the libraries log, instead of showing it."""
    kept = io.StringIO()
    handler = logging.StreamHandler(kept)
    loggers = [logging.getLogger(name) for name in ("transformers", "bitsandbytes", "accelerate")]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
    try:
        yield kept
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate


def expect_failure(code: str, text: str, lines: int = 1, seconds: float = 300) -> None:
    """Run code in a Python process of its own, which must fail and say `text` on stderr.

    What the process printed is printed, and then the last lines of stderr. This is for what would spoil the notebook's own process:
    memory that runs out, and settings that are read on import.

    Raises:
        AssertionError: if the process ends well, or without `text` on stderr.
        subprocess.TimeoutExpired: if it takes longer than `seconds`; it is ended then.

    >>> expect_failure("print('before'); 1 / 0", "division")
    before
    ZeroDivisionError: division by zero
    """
    command = [sys.executable, "-c", code]
    # From Python 3.13 on tracebacks have colours where FORCE_COLOR is set, as Jupyter sets it for its kernels. Windows writes to a pipe
    # in an encoding of its own.
    plain = os.environ | {"PYTHON_COLORS": "0", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, env=plain, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=seconds)
    said = [line for line in without_places(done.stderr).splitlines() if line.strip()]
    if done.returncode == 0 or text not in done.stderr:
        end = "\n".join(said[-3:]) or "nothing on stderr"
        raise AssertionError(f"Expected a process that ends with {text!r}. It ended with code {done.returncode}, and: {end}")
    print(without_places(done.stdout), end="")
    print("\n".join(said[-lines:]))


def error_lines(error: BaseException, lines: int = 4) -> str:
    """An error's type and the last lines of its message, without this machine's folders and addresses.

    >>> error_lines(ValueError("one\\ntwo\\n\\nthree /home/ada/models/abacus at 0x7f31c0ffee00\\n"), lines=2)
    'ValueError: ...\\ntwo\\nthree .../abacus at 0x...'
    """
    message = without_places(str(error))
    text = [line.rstrip() for line in message.splitlines() if line.strip()]
    shown = ["...", *text[-lines:]] if len(text) > lines else text
    return f"{type(error).__name__}: {chr(10).join(shown)}" if shown else type(error).__name__


def without_places(text: str) -> str:
    """A text without this machine's folders, addresses of objects and ports of local servers; the names of files stay.

    A folder whose name holds a space is known by the quotes around it, or by Windows' backslashes; else its end can't be told from words.

    >>> without_places("no /home/ada/.cache/model.safetensors, see https://huggingface.co/docs/hub")
    'no .../model.safetensors, see https://huggingface.co/docs/hub'
    """
    text = LOCAL_SERVER.sub(r"\1:...", ADDRESS.sub("0x...", text))
    text = QUOTED_FOLDERS.sub(r"\1.../", text)
    return POSIX_FOLDERS.sub(".../", WINDOWS_FOLDERS.sub(".../", text))


# --- A model that loaded without a word (lesson 10) ---


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a loaded model.

    Attributes:
        name: what it is, always in the same words, such as ``quantized-head``.
        modules: names of the modules concerned.
        evidence: what was read in the model.
        price: what it costs, in bytes or in error.
        cure: what to do.
    """

    name: str
    modules: tuple[str, ...]
    evidence: str
    price: str
    cure: str


@dataclass(frozen=True)
class Note:
    """Something worth knowing about a loaded model that is not wrong."""

    name: str
    text: str


@dataclass(frozen=True)
class Audit:
    """What `audit_4bit` found. Printed, it is a table.

    Attributes:
        findings: what is wrong; empty when all is well.
        notes: what is worth knowing.
        summary: what the model is, as plain numbers and words.
    """

    findings: list[Finding]
    notes: list[Note]
    summary: dict[str, str | int | bool]

    def __str__(self) -> str:
        facts = ", ".join(f"{what}: {value:,}" if type(value) is int else f"{what}: {value}" for what, value in self.summary.items())
        rows = []
        for found in self.findings:
            lines = (("where", shorten(found.modules)), ("evidence", found.evidence), ("price", found.price), ("cure", found.cure))
            rows += [(found.name if what == "where" else "", what, "\n".join(textwrap.wrap(text, 84))) for what, text in lines]
        table = tabulate(rows, ("finding", "", ""), tablefmt="simple", disable_numparse=True) if rows else "No findings."
        notes = (f"Note, {note.name}: {note.text}" for note in self.notes)
        return "\n".join(["\n".join(textwrap.wrap(facts, 110)), "", table, "", *("\n".join(textwrap.wrap(text, 110)) for text in notes)])

    __repr__ = __str__


def shorten(modules: tuple[str, ...]) -> str:
    """The names of modules in short: how many there are, and the first of them.

    >>> shorten(("lm_head",)), shorten(("layers.0", "layers.1", "layers.2"))
    ('lm_head', '3: layers.0 to layers.2')
    """
    return modules[0] if len(modules) == 1 else f"{len(modules)}: {modules[0]} to {modules[-1]}" if modules else ""


def audit_4bit(model: nn.Module, *, like: BitsAndBytesConfig | nn.Module | None = None) -> Audit:
    """Examine a model that bitsandbytes has loaded in 4 bits, for faults that raise no error.

    Formats, shapes and names are read; the model is neither run nor changed. The weights themselves are read only where ``like`` is
    the unquantized model, and then only the scales are compared.

    Args:
        model: any module, such as what ``from_pretrained`` or peft returns.
        like: the configuration that was meant, or the model before it was quantized. Faults that leave no trace in the model, such
            as a misspelled argument of the configuration, are found only with it.

    Returns:
        The findings (none for a model that is well loaded), notes, and a summary.

    Raises:
        TypeError: ``model`` is no module, or ``like`` is neither a BitsAndBytesConfig nor a module.
    """
    case = _Case.of(model, like)
    findings = [check(case) for check in _CHECKS]
    notes = [note(case) for note in _NOTES]
    return Audit([found for found in findings if found], [note for note in notes if note], case.summary())


ERROR_OF_FORMAT = {"nf4": 0.0085, "fp4": 0.0149}
"""Relative squared error on normally distributed weights, blocks of 64 (lesson 04)."""


@dataclass
class _Case:
    """What the checks read: the model taken apart by kinds of layers. Names are those before peft put its own around them."""

    model: nn.Module
    base: nn.Module  # the model without peft's wrapper
    config: BitsAndBytesConfig | None  # the one that the model carries
    meant: BitsAndBytesConfig | None
    original: nn.Module | None
    in_4bit: dict[str, nn.Module]
    half: dict[str, nn.Module]  # of the class of 4-bit layers, with a weight that is not quantized
    plain: dict[str, nn.Module]  # linear layers that are not quantized, adapters left out
    head: str | None

    @classmethod
    def of(cls, model: nn.Module, like: BitsAndBytesConfig | nn.Module | None) -> _Case:
        import course_utils.models  # noqa: F401, I001  before bitsandbytes: it keeps that import quiet on every CPU
        from bitsandbytes.nn import Linear4bit
        from transformers import BitsAndBytesConfig
        from transformers.pytorch_utils import Conv1D

        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {_kind(model)}; give the loaded model itself, as from_pretrained returns it.")
        if like is not None and not isinstance(like, (BitsAndBytesConfig, nn.Module)):
            raise TypeError(f"like is a {_kind(like)}; give the BitsAndBytesConfig that was meant, or the model before it was quantized.")
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        config = getattr(getattr(base, "config", None), "quantization_config", None)
        if isinstance(config, dict):
            config = BitsAndBytesConfig.from_dict(config) if config.get("quant_method") == "bitsandbytes" else None
        modules = dict(_own_modules(base))
        quantized = {name: module for name, module in modules.items() if isinstance(module, Linear4bit)}
        half = {name: module for name, module in quantized.items() if _state(module) is None and not module.weight.is_meta}
        output = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
        output = getattr(output, "base_layer", output)
        return cls(
            model=model,
            base=base,
            config=config if isinstance(config, BitsAndBytesConfig) else None,
            meant=like if isinstance(like, BitsAndBytesConfig) else None,
            original=like if isinstance(like, nn.Module) else None,
            in_4bit={name: module for name, module in quantized.items() if _state(module) is not None},
            half=half,
            plain={name: module for name, module in modules.items() if type(module) in (nn.Linear, Conv1D)},
            head=next((name for name, module in modules.items() if module is output), None),
        )

    def states(self) -> Iterator[tuple[str, nn.Module, QuantState]]:
        return ((name, layer, _state(layer)) for name, layer in self.in_4bit.items())

    def is_said_to_be_4bit(self) -> bool:
        """Whether the model has 4-bit layers, says that it has, or was meant to have."""
        says = getattr(self.base, "is_loaded_in_4bit", False) or (self.config is not None and not self.config.load_in_8bit)
        return bool(self.in_4bit or says or (self.meant is not None and not self.meant.load_in_8bit))

    @cached_property
    def kept(self) -> list[str]:
        """Names of what 4-bit loading leaves alone: the default list, and what the configuration names, the one meant if there is one."""
        from transformers.quantizers.base import HfQuantizer, get_keys_to_not_convert

        if not hasattr(self.base, "all_tied_weights_keys"):  # no model of transformers
            return []
        config = self.meant or self.config
        named = config.llm_int8_skip_modules if config else None
        in_32_bits = getattr(self.base, "_keep_in_fp32_modules", None)
        return [*HfQuantizer.get_modules_to_not_convert(self.base, named, in_32_bits), *get_keys_to_not_convert(self.base)]

    def to_convert(self, name: str) -> bool:
        """Whether 4-bit loading is to replace the linear layer of this name."""
        from transformers.quantizers.quantizers_utils import should_convert_module

        return should_convert_module(name, self.kept)

    def summary(self) -> dict[str, str | int | bool]:
        head = "none" if self.head is None else "4 bits" if self.head in self.in_4bit else "not quantized"
        states = list(self.states())
        facts: dict[str, str | int | bool] = {
            "linear layers in 4 bits": len(self.in_4bit),
            "linear layers not quantized": len(self.plain) + len(self.half),
        }
        if states:
            facts |= {
                "quant type": _all_of(state.quant_type for _, _, state in states),
                "double quantization": _all_of("yes" if _before_packing(state, "nested") else "no" for _, _, state in states),
                "compute dtype": _all_of(_short(layer.compute_dtype) for _, layer, _ in states),
                "storage": _all_of(_short(layer.quant_storage) for _, layer, _ in states),
            }
        return facts | {"head": head, "weights": _count(self.model), "bytes": sum(footprint(self.model).values())}


def _kind(value: object) -> str:
    return f"class, {value.__name__}" if isinstance(value, type) else type(value).__name__


def _own_modules(base: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """A model's modules without those that adapters have brought, by the names that they had before."""
    brought = []
    for name, module in base.named_modules():
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in brought):
            continue
        if hasattr(module, "base_layer"):
            brought += [f"{name}.{child}" for child, _ in module.named_children() if child != "base_layer"]
        elif hasattr(module, "original_module") and hasattr(module, "modules_to_save"):
            brought.append(f"{name}.modules_to_save")
        yield name.replace(".base_layer", "").replace(".original_module", ""), module


def _state(layer: nn.Module) -> QuantState | None:
    """The quantization state of a 4-bit layer; the layer itself keeps it too, for wrappers that lose that of the weight."""
    return getattr(layer.weight, "quant_state", None) or getattr(layer, "quant_state", None)


def _is_packed(state: QuantState) -> bool:
    return bool(getattr(state, "packing_format_for_cpu", False))


def _before_packing(state: QuantState, what: str) -> Any:
    """``dtype`` or ``nested`` of a state, as it was before a CPU repacked the weight."""
    return getattr(state, f"original_{what}") if _is_packed(state) else getattr(state, what)


def _short(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


def _all_of(values: Iterable[str]) -> str:
    return ", ".join(sorted(set(values)))


def _count(model: nn.Module) -> int:
    """The number of weights, those in 4 bits included."""
    states = ((parameter, getattr(parameter, "quant_state", None)) for parameter in model.parameters())
    return sum(parameter.numel() if state is None else math.prod(state.shape) for parameter, state in states)


def _weights(layers: Iterable[nn.Module]) -> int:
    return sum(math.prod(_state(layer).shape) for layer in layers)


def _bytes(number: float) -> str:
    return f"{round(number):,} bytes"


# What is wrong: each check gives one finding or None.


def _damaged_scales(case: _Case) -> Finding | None:
    """A fresh load has scales in one row of float32, or of uint8 codes with float32 scales of their own."""
    damaged, evidence, in_order, nested = [], "", True, True
    for name, _, state in case.states():
        if _is_packed(state):
            continue
        nested_dtype = state.state2.dtype if state.nested else torch.float32
        due = torch.uint8 if state.nested else torch.float32
        if state.absmax.dtype != due or state.absmax.ndim != 1 or nested_dtype != torch.float32:
            damaged.append(name)
            in_order &= state.absmax.ndim == 1 or min(state.absmax.shape) == 1  # one block in a row: nothing to put in another order
            nested &= bool(state.nested)
            form = f"{_short(state.absmax.dtype)} of shape {tuple(state.absmax.shape)}"
            evidence = evidence or (
                f"nested scales made from {_short(nested_dtype)}, where a fresh load has float32" if state.nested
                else f"scales in {form}, where a fresh load has {_short(due)} of shape ({state.absmax.numel()},)"
            )  # fmt: skip
    if not damaged:
        return _other_scales(case, "damaged-scales")
    if not in_order:
        return Finding("damaged-scales", tuple(damaged), evidence, _OTHER_BLOCKS, f"{_RELOAD} {_TRANSPOSE}")
    again = " before they were quantized again" if nested else ""
    price = f"the scales were rounded to bfloat16{again}, as a save after a forward pass does"
    return Finding("damaged-scales", tuple(damaged), evidence, price, _RELOAD)


_OTHER_BLOCKS = "scales of other blocks: the weights are wrong"
_RELOAD = "Load the model again from a file that is whole, and save it before its first forward pass, or on the plain path."
_TRANSPOSE = "If this file is the only one, transpose its scales (lesson 10)."


def _other_weights(case: _Case) -> Finding | None:
    return _other_scales(case, "other-weights")


def _other_scales(case: _Case, name: str) -> Finding | None:
    """Layers whose scales are not those of the unquantized model: transposed by a damaged save, or of other weights altogether."""
    found, worst = [], 0.0
    for layer_name, kind, distance in _compared_scales(case):
        if kind == name:
            found.append(layer_name)
            worst = max(worst, distance)
    if not found:
        return None
    if name == "damaged-scales":
        return Finding(name, tuple(found), f"scales off by up to {worst:.0%}, in the order that a repacked weight leaves",
                       _OTHER_BLOCKS, f"{_RELOAD} {_TRANSPOSE}")  # fmt: skip
    return Finding(name, tuple(found), f"scales differ from those of the unquantized model by up to {worst:.0%}",
                   "not the weights of that model",
                   "If an adapter was merged, compare with the merged model; else load the model again.")  # fmt: skip


SCALES_DIFFER = 0.05
"""A relative distance between scales that no rounding makes: bfloat16 moves them by 0.4 % at most, double quantization by about 1 %."""


def _compared_scales(case: _Case) -> Iterator[tuple[str, str, float]]:
    if case.original is None:
        return
    from bitsandbytes.functional import dequantize_blockwise
    from transformers.pytorch_utils import Conv1D

    originals = dict(_own_modules(case.original))
    for name, _, state in case.states():
        original = originals.get(name)
        if original is None or not hasattr(original, "weight") or not original.weight.is_floating_point() or original.weight.is_meta:
            continue
        weight = original.weight.detach().T if isinstance(original, Conv1D) else original.weight.detach()
        if tuple(weight.shape) != tuple(state.shape):
            yield name, "other-weights", 1.0
            continue
        blocks = nn.functional.pad(weight.flatten().float(), (0, -weight.numel() % state.blocksize)).view(-1, state.blocksize)
        due = blocks.abs().amax(dim=1)
        if _is_packed(state):
            scales = state.absmax.T.reshape(-1)
        else:
            scales = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax.reshape(-1)
        scales = scales.float().to(due.device)
        near = SCALES_DIFFER * due.norm()  # 0 for a layer of zeros
        off = (scales - due).norm()
        if off <= near:
            continue
        transposed = due.view(state.shape[0], -1).T.reshape(-1) if due.numel() % state.shape[0] == 0 else due
        distance = (off / due.norm()).item() if due.any() else 1.0
        yield name, "damaged-scales" if (scales - transposed).norm() <= near else "other-weights", distance


@cache
def _cpu_misreads_unaligned_rows() -> bool:
    """Whether dequantize_4bit takes wrong scales on this machine's CPU where rows and blocks don't align. Two rows of 80 tell."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.linspace(0.1, 10, 160).view(2, 80)
    packed, state = quantize_4bit(weight, quant_type="nf4", blocksize=64)
    by_rows = dequantize_4bit(packed, state).flatten()
    state.shape = torch.Size([160])
    return not torch.equal(by_rows, dequantize_4bit(packed, state).flatten())


def _unaligned_columns(case: _Case) -> Finding | None:
    names = tuple(
        name
        for name, layer, state in case.states()
        if layer.weight.device.type == "cpu" and state.shape[-1] % 16 == 0 and state.shape[-1] % state.blocksize and state.blocksize < 2048
    )
    if not names or not _cpu_misreads_unaligned_rows():
        return None
    state = _state(case.in_4bit[names[0]])
    return Finding(
        "unaligned-columns", names,
        f"rows of {state.shape[-1]} weights in blocks of {state.blocksize}, on a CPU with AVX-512",
        "the weights are read back with scales of other blocks",
        "Name these layers in llm_int8_skip_modules, together with the head, or compute on a GPU.",
    )  # fmt: skip


def _compute_dtype(case: _Case) -> Finding | None:
    names = []
    for name, layer, state in case.states():
        if case.meant is not None:
            wrong = layer.compute_dtype != case.meant.bnb_4bit_compute_dtype
        else:
            wrong = layer.compute_dtype == torch.float32 and _before_packing(state, "dtype") in (torch.float16, torch.bfloat16)
        if wrong:
            names.append(name)
    if not names:
        return None
    first = case.in_4bit[names[0]]
    if case.meant is not None:
        due = case.meant.bnb_4bit_compute_dtype
        evidence = f"{_short(first.compute_dtype)}, and {_short(due)} was meant"
    else:
        due = _before_packing(_state(first), "dtype")
        evidence = f"{_short(first.compute_dtype)}, in a model of {_short(due)}"
    price = "another rounding of each product"
    if first.compute_dtype == torch.float32:
        largest = max(math.prod(_state(case.in_4bit[name]).shape) for name in names)
        price = f"the largest of these matrices is read back in {_bytes(largest * 4)}, in 16 bits {largest * 2:,}"
    return Finding("compute-dtype", tuple(names), evidence, price, f"bnb_4bit_compute_dtype=torch.{_short(due)}")


def _quant_type(case: _Case) -> Finding | None:
    if case.meant is None:
        return None
    meant = case.meant.bnb_4bit_quant_type
    names = tuple(name for name, _, state in case.states() if state.quant_type != meant)
    if not names:
        return None
    got = _state(case.in_4bit[names[0]]).quant_type
    price = f"relative squared error {ERROR_OF_FORMAT[got]} instead of {ERROR_OF_FORMAT.get(meant, 'that of ' + meant)} on normal weights"
    cure = f'bnb_4bit_quant_type="{meant}"; check its spelling, since a misspelled argument is ignored'
    return Finding("quant-type", names, f"{got}, and {meant} was meant", price, cure)


def _double_quantization(case: _Case) -> Finding | None:
    if case.meant is None:
        return None
    meant = bool(case.meant.bnb_4bit_use_double_quant)
    names = tuple(name for name, _, state in case.states() if bool(_before_packing(state, "nested")) != meant)
    if not names:
        return None
    bits = bits_per_weight() - bits_per_weight(double_quant=True)
    size = _bytes(_weights(case.in_4bit[name] for name in names) * bits / 8)
    evidence, price = ("not done, and meant", f"{size} more") if meant else ("done, and not meant", f"time at each use; saves {size}")
    return Finding("double-quantization", names, evidence, price, f"bnb_4bit_use_double_quant={meant}; check its spelling")


def _storage(case: _Case) -> Finding | None:
    """Packed codes that a cast has taken for numbers. Repacking, on the CPU, stores bytes again."""
    names, lost = [], 0
    for name, layer, state in case.states():
        if not _is_packed(state) and layer.weight.dtype != layer.quant_storage:
            names.append(name)
            lost += (math.prod(state.shape) + 1) // 2 - layer.weight.nbytes
    if not names:
        return None
    layer = case.in_4bit[names[0]]
    evidence = f"packed codes stored as {_short(layer.quant_storage)} and cast to {_short(layer.weight.dtype)}"
    price = f"{_bytes(lost)} of codes lost" if lost > 0 else "codes changed: the weights are wrong"
    return Finding("cast-codes", tuple(names), evidence, price,
                   "Load again and cast nothing; dtype= of from_pretrained sets the format of the rest.")  # fmt: skip


def _quantized_head(case: _Case) -> Finding | None:
    if case.head not in case.in_4bit or (case.meant is not None and case.meant.llm_int8_skip_modules == []):
        return None
    weights, dtype = _weights([case.in_4bit[case.head]]), _before_packing(_state(case.in_4bit[case.head]), "dtype")
    saved = _bytes(weights * (dtype.itemsize - bits_per_weight() / 8))
    named = case.config.llm_int8_skip_modules if case.config else None
    evidence = f"the head is in 4 bits; llm_int8_skip_modules={named} replaced the default list" if named is not None else "in 4 bits"
    return Finding("quantized-head", (case.head,), evidence,
                   f"its error goes into the scores directly; it saves {saved} against the head in {_short(dtype)}",
                   f'Add "{case.head}" to llm_int8_skip_modules.')  # fmt: skip


def _half_quantized(case: _Case) -> Finding | None:
    if not case.half:
        return None
    return Finding("half-quantized", tuple(case.half), "the class is that of a 4-bit layer, the weight a plain parameter",
                   "the forward pass ends in an AssertionError", f'Add "{next(iter(case.half))}" to llm_int8_skip_modules.')  # fmt: skip


def _quantized_twice(case: _Case) -> Finding | None:
    """Packed bytes that were taken for weights: the shape that was quantized is not that of the layer."""
    names = tuple(name for name, layer, state in case.states() if tuple(state.shape) != (layer.out_features, layer.in_features))
    if not names:
        return None
    layer = case.in_4bit[names[0]]
    evidence = f"weights of shape {tuple(_state(layer).shape)}, in a layer of {(layer.out_features, layer.in_features)}"
    return Finding("quantized-twice", names, evidence, "the first forward pass ends in an error",
                   "The folder holds packed weights, and its config.json has lost quantization_config: write it back there, "
                   "and load without a configuration.")  # fmt: skip


def _experts(case: _Case) -> Finding | None:
    """Experts are fused into one tensor of three dimensions, which no linear layer holds."""
    if not case.is_said_to_be_4bit():
        return None
    names, now, in_4bit = [], 0, 0.0
    for name, module in _own_modules(case.base):
        fused = [p for p in module.parameters(recurse=False) if p.ndim == 3 and p.is_floating_point() and not hasattr(p, "quant_state")]
        if fused and "expert" in f"{name} {type(module).__name__}".lower():
            names.append(name)
            now += sum(parameter.nbytes for parameter in fused)
            in_4bit += sum(parameter.numel() for parameter in fused) * bits_per_weight() / 8
    if not names:
        return None
    dtype = next(case.base.get_submodule(names[0]).parameters()).dtype
    return Finding("experts-not-quantized", tuple(names), f"three-dimensional weights in {_short(dtype)}; only linear layers are replaced",
                   f"{_bytes(now - in_4bit)} more than in 4.5 bits",
                   "None in this version of transformers (bitsandbytes #1849): "
                   "count them in 16 bits before you choose the machine.")  # fmt: skip


def _left_out(case: _Case) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Linear layers that 4-bit loading should have replaced and hasn't: those that were offloaded, and others."""
    if not case.is_said_to_be_4bit():
        return {}, {}
    left_out = {name: layer for name, layer in case.plain.items() if case.to_convert(name)}
    if case.config is None or not case.config.llm_int8_enable_fp32_cpu_offload:
        return {}, left_out
    device_map = getattr(case.base, "hf_device_map", None)
    if device_map is None:  # one entry for the whole model leaves no map behind
        return left_out, {}
    away = [name for name, device in device_map.items() if device in ("cpu", "disk")]
    offloaded = {name: layer for name, layer in left_out.items() if any(f"{name}.".startswith(f"{part}.") for part in away)}
    return offloaded, {name: layer for name, layer in left_out.items() if name not in offloaded}


def _more_than_in_4bit(layers: dict[str, nn.Module]) -> str:
    weights = [layer.weight for layer in layers.values()]
    return f"{_bytes(sum(w.nbytes - w.numel() * bits_per_weight() / 8 for w in weights))} more than in 4.5 bits"


def _formats(layers: dict[str, nn.Module]) -> str:
    return f"linear layers in {_all_of(_short(layer.weight.dtype) for layer in layers.values())}"


def _offloaded(case: _Case) -> Finding | None:
    layers, _ = _left_out(case)
    if not layers:
        return None
    return Finding("offloaded-layers", tuple(layers), f"{_formats(layers)}; llm_int8_enable_fp32_cpu_offload=True",
                   _more_than_in_4bit(layers),
                   "A device_map without \"cpu\" and \"disk\", for a model that fits in 4 bits; else a smaller model.")  # fmt: skip


def _not_quantized(case: _Case) -> Finding | None:
    offloaded, layers = _left_out(case)
    if not layers:
        return None
    if case.in_4bit or offloaded:
        return Finding("unquantized-layers", tuple(layers), f"{_formats(layers)}, beside {len(case.in_4bit)} in 4 bits",
                       _more_than_in_4bit(layers), "Load again; name in llm_int8_skip_modules what is to stay, and the head.")  # fmt: skip
    trace = "; is_loaded_in_4bit says True" if getattr(case.base, "is_loaded_in_4bit", False) else ""
    return Finding("not-4-bit", tuple(layers), f"{_formats(layers)}, not one in 4 bits{trace}", _more_than_in_4bit(layers),
                   "Dequantized or never quantized: load again with the configuration, "
                   "and look at the classes of the layers.")  # fmt: skip


def _load_in_4bit_false(case: _Case) -> Finding | None:
    if case.config is None or not case.in_4bit or case.config.load_in_4bit:
        return None
    return Finding("load-in-4bit-false", tuple(case.in_4bit), "the configuration says load_in_4bit=False, and the layers are in 4 bits",
                   "what is saved now can't be loaded as it is",
                   "Before saving: model.config.quantization_config.load_in_4bit = True. "
                   "In the next load: BitsAndBytesConfig(load_in_4bit=True, ...). "
                   "In a folder that was saved: \"load_in_4bit\": true in its config.json.")  # fmt: skip


_CHECKS = (
    _damaged_scales, _other_weights, _unaligned_columns, _quant_type, _compute_dtype, _double_quantization, _storage, _quantized_head,
    _half_quantized, _quantized_twice, _experts, _offloaded, _not_quantized, _load_in_4bit_false,
)  # fmt: skip


# What is worth knowing.


def _note_repacked(case: _Case) -> Note | None:
    packed = [name for name, _, state in case.states() if _is_packed(state)]
    if not packed:
        return None
    return Note("repacked", f"a forward pass repacked {len(packed)} layers for this CPU: do not save now, "
                "nor call state_dict(), dequantize(), merge_and_unload() or to(). Load the model again for that.")  # fmt: skip


def _note_counts(case: _Case) -> Note | None:
    if not case.in_4bit:
        return None
    numel = sum(parameter.numel() for parameter in case.model.parameters())
    text = f"sum(p.numel()) gives {numel:,} of {_count(case.model):,} weights"
    if hasattr(case.base, "get_memory_footprint"):
        left_out = sum(footprint(case.model).values()) - case.base.get_memory_footprint()
        text += f"; get_memory_footprint() leaves out {_bytes(left_out)} of scales and codebooks"
    return Note("counts", text + ".")


def _note_defaults(case: _Case) -> Note | None:
    """All four at once are what BitsAndBytesConfig(load_in_4bit=True) gives, and what a misspelled argument falls back to."""
    if case.meant is not None or not case.in_4bit:
        return None
    formats = {(state.quant_type, layer.compute_dtype, bool(_before_packing(state, "nested"))) for _, layer, state in case.states()}
    if formats != {("fp4", torch.float32, False)}:
        return None
    return Note("defaults", "fp4, float32 and no double quantization are the defaults of BitsAndBytesConfig. If you meant others, "
                "pass like= with the configuration that you meant.")  # fmt: skip


def _note_skip(case: _Case) -> Note | None:
    from transformers.quantizers.quantizers_utils import should_convert_module

    named = (case.config.llm_int8_skip_modules or []) if case.config else []
    layers = [name for name, module in _own_modules(case.base) if not list(module.children())]
    without = [entry for entry in named if all(should_convert_module(layer, [entry]) for layer in layers)]
    if not without:
        return None
    return Note("skip", f"llm_int8_skip_modules names {', '.join(without)}: no layer of this model is called so. An entry is the beginning "
                "of a layer's name up to a dot, such as model.layers.0, or its end, such as q_proj.")  # fmt: skip


_NOTES = (_note_repacked, _note_counts, _note_defaults, _note_skip)
