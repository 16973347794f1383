"""A saved 4-bit model: what its files hold, a loader that needs no bitsandbytes, and a save that is whole or not there.

First met in lesson 12. bitsandbytes stores a weight in 4 bits as several tensors with a common beginning of their names:

=====================================  ==========================================================================
``...weight``                          the packed codes, uint8, shape (bytes, 1)
``...weight.absmax``                   the scales, float32; with double quantization their 8-bit codes, uint8
``...weight.quant_map``                the sixteen values of the codebook
``...weight.nested_absmax``            with double quantization: the scales of the scales, float32
``...weight.nested_quant_map``         with double quantization: the 256 values of their codebook
``...weight.quant_state.bitsandbytes__nf4``  a text in JSON, a byte a number: block size, dtype, shape and the offset
=====================================  ==========================================================================

Every file is read by safetensors, which holds tensors and text. Nothing here opens a pickle file, which can run code if its reader lets it.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from course_utils import models
from course_utils.codebooks import CODEBOOKS
from course_utils.linear import HandLinear4bit
from course_utils.quantize import BLOCK_SIZES, SCALE_BLOCK_SIZE, SCALE_VALUES, NestedScales, Quantized4bit, named, values_times_scales

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

STATE_MARK = ".quant_state.bitsandbytes__"
"""What stands between the name of a weight and its kind of codes, in the name of the tensor with its quantization state."""

DRAFT_SUFFIX = ".unfinished"
"""What `save_whole` adds to the name of the folder while it writes."""

REPLACED_SUFFIX = ".replaced_by_save_whole"
"""What `save_whole` adds to the name of the old folder, from the renaming to the removal."""

PLAIN_PARTS = {"absmax", "quant_map"}
NESTED_PARTS = {"nested_absmax", "nested_quant_map"}
PLAIN_KEYS = {"quant_type", "blocksize", "dtype", "shape"}
NESTED_KEYS = {"nested_blocksize", "nested_dtype", "nested_offset"}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

LONGEST_STATE = 4096
"""Bytes that the JSON of one weight may take. bitsandbytes writes about 200."""

MOST_WEIGHTS = 2**63 - 1
"""How many numbers torch can count in one tensor."""

FURTHEST_ROUNDING = ((SCALE_VALUES[1:] - SCALE_VALUES[:-1]).max() / 2).item() + 1 / 65535
"""How far a scale may be moved by its 8-bit code, in units of nested_absmax: half the widest gap of the codebook, and a table's step."""

NOT_FINISHED = "The saving, or a copy or a download, was not finished."
"""The cause of a folder with half a model in it, for a sentence."""

SAVE_AGAIN = "Save the model again, or fetch it again."
"""What to do about most damage, for a sentence."""

AFTER_A_FORWARD_PASS = (
    "bitsandbytes writes this when a model is saved after a forward pass on a CPU with avx512_bf16. "
    "Load the original again and save it before its first forward pass."
)
"""The cause of scales in a form that no fresh quantization gives, and what to do, for a sentence."""


class CheckpointError(Exception):
    """A saved model that is not whole, or not what it says: one sentence names the file and the tensor, one says what to do."""


# --- What a folder holds ---


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a saved model whose files are all there and whole. `open_checkpoint` makes one.

    Attributes:
        folder: where it is.
        config: what config.json says.
        files: for the name of each tensor, the file that holds it.
    """

    folder: Path
    config: dict[str, Any]
    files: dict[str, Path]

    def read(self, name: str) -> Tensor:
        """One tensor, from the file that holds it.

        Raises:
            CheckpointError: no file holds it.
        """
        if name not in self.files:
            raise CheckpointError(f"No file in {self.folder} holds the tensor {name}. {SAVE_AGAIN}")
        with safe_open(self.files[name], framework="pt") as file:
            return file.get_tensor(name)

    def where(self, name: str) -> str:
        """A tensor and its file, for a sentence."""
        return f"{name} in {self.files[name].name}"

    def weights_in_4bit(self) -> list[str]:
        """The names of the weights that are stored in 4 bits, in order."""
        return sorted({name.partition(STATE_MARK)[0] for name in self.files if STATE_MARK in name})


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Look through a folder with a saved 4-bit model, without reading its weights.

    Raises:
        CheckpointError: a file is missing, cut short or left over, index and files disagree, or the model is not in 4 bits by
            bitsandbytes.
    """
    folder = Path(folder)
    replaced = folder.with_name(folder.name + REPLACED_SUFFIX)
    if not folder.exists() and replaced.is_dir():
        raise CheckpointError(
            f"There is no folder {folder}: save_whole was killed. The model that was in it is in {replaced.name}: rename that."
        )
    if not folder.is_dir():
        raise CheckpointError(f"There is no folder {folder}. Give the folder that save_pretrained wrote.")
    if folder.name.endswith(DRAFT_SUFFIX):
        raise CheckpointError(
            f"The folder {folder.name} is a save that was not finished. Load the folder without {DRAFT_SUFFIX}, or save the model again."
        )
    return look_through(folder)


def look_through(folder: Path) -> Checkpoint:
    """`open_checkpoint` for a folder of any name, a draft of `save_whole` too.

    Raises:
        CheckpointError: what the folder holds is no whole 4-bit model.
    """
    config = read_json(folder / "config.json", "so the folder holds no model, or one whose saving was not finished.")
    check_quantization(config, folder / "config.json")
    return Checkpoint(folder, config, find_tensors(folder))


def find_tensors(folder: Path) -> dict[str, Path]:
    """For each tensor of a saved model its file, after comparing the index, where there is one, with the files.

    Raises:
        CheckpointError: the weights are missing, damaged or of two saves, or index and files disagree.
    """
    single, index = folder / WEIGHTS, folder / INDEX
    if single.is_file() and index.is_file():
        raise CheckpointError(
            f"The folder {folder.name} holds both {WEIGHTS} and {INDEX}, of two saves: transformers would read the first and never "
            "look at the second. Remove the older one, or save into an empty folder."
        )
    if single.is_file():
        return dict.fromkeys(sorted(tensor_names(single)), single)
    if not index.is_file():
        raise CheckpointError(f"The folder {folder.name} has a config.json and no whole weights: {what_is_left(folder)} {SAVE_AGAIN}")

    listed = read_json(index, "").get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
        raise CheckpointError(f"The file {INDEX} has no weight_map that names a file for each tensor. {SAVE_AGAIN}")
    held: dict[str, set[str]] = {}
    for file_name in sorted(set(listed.values())):
        if Path(file_name).name != file_name:
            raise CheckpointError(f"The file {INDEX} points outside its folder, to {file_name!r}. Don't load this model.")
        if not (folder / file_name).is_file():
            names = sorted(name for name, holder in listed.items() if holder == file_name)
            raise CheckpointError(
                f"The file {file_name} is missing; by {INDEX} it holds {names[0]} and {len(names) - 1} others. {SAVE_AGAIN}"
            )
        held[file_name] = tensor_names(folder / file_name)
    for name, file_name in sorted(listed.items()):
        if name not in held[file_name]:
            raise CheckpointError(f"The file {file_name} lacks the tensor {name}, which {INDEX} says it holds. {SAVE_AGAIN}")
    for file_name, names in held.items():
        if unlisted := sorted(name for name in names if listed.get(name) != file_name):
            raise CheckpointError(f"The file {file_name} holds the tensor {unlisted[0]}, and {INDEX} has no such entry. {SAVE_AGAIN}")
    return {name: folder / listed[name] for name in sorted(listed)}


def tensor_names(file: Path) -> set[str]:
    """The names of the tensors in a safetensors file. Reads its beginning, and compares the length that follows from it.

    Raises:
        CheckpointError: the file is damaged or was cut short.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            return set(opened.keys())
    except SafetensorError as error:
        raise CheckpointError(
            f"The file {file.name} is damaged or was cut short, so none of its tensors can be read. {SAVE_AGAIN}"
        ) from error


def what_is_left(folder: Path) -> str:
    """What stands in a folder in the place of whole weights."""
    shards = sorted(folder.glob("model-*-of-*.safetensors"))
    if shards:
        return f"there are {len(shards)} parts, {shards[0].name} first, and no {INDEX}, which is written last. {NOT_FINISHED}"
    if drafts := sorted([*folder.glob("*.tmp*"), *folder.glob("*.incomplete")]):
        return f"{drafts[0].name} is a draft. {NOT_FINISHED}"
    if pickles := sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]):
        return f"{pickles[0].name} is a pickle file, which can run code when it is opened, so it is not opened here."
    return f"there is neither {WEIGHTS} nor {INDEX}. {NOT_FINISHED}"


def read_json(file: Path, if_missing: str) -> dict[str, Any]:
    """A file that holds one JSON object.

    Raises:
        CheckpointError: it is missing, is not valid JSON, or holds something else than an object.
    """
    if not file.is_file():
        raise CheckpointError(f"The folder {file.parent.name} has no {file.name}, {if_missing} {SAVE_AGAIN}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"The file {file.name} is damaged or was cut short: it is not valid JSON. {SAVE_AGAIN}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"The file {file.name} holds a {type(content).__name__} where a JSON object is due. {SAVE_AGAIN}")
    return content


def check_quantization(config: dict[str, Any], file: Path) -> None:
    """Refuse a model that is not quantized, quantized otherwise, or by settings that this course doesn't know."""
    settings = config.get("quantization_config")
    if not isinstance(settings, dict):
        raise CheckpointError(f"The file {file.name} has no quantization_config, so this model is not in 4 bits. Load it by models.load.")
    method = settings.get("quant_method", "bitsandbytes")
    if method != "bitsandbytes" or not settings.get("load_in_4bit"):
        said = f"quantized by {method}" if method != "bitsandbytes" else "not in 4 bits"
        raise CheckpointError(
            f"By {file.name} this model is {said}; here only the 4 bits of bitsandbytes are read. Load it by models.load."
        )
    if unknown := sorted(set(settings) - set(BitsAndBytesConfig().to_dict())):
        raise CheckpointError(
            f"The quantization_config in {file.name} has the setting {unknown[0]}, which the installed transformers doesn't know. "
            "The model was saved by a newer version: load it with that version."
        )
    compute = settings.get("bnb_4bit_compute_dtype", "float32")
    if not isinstance(compute, str) or compute not in DTYPES:
        raise CheckpointError(
            f"The file {file.name} names the compute dtype {compute!r}; it must be one of {', '.join(DTYPES)}. {SAVE_AGAIN}"
        )


# --- One weight, out of its parts ---


def read_quantized(checkpoint: Checkpoint, name: str, shape: torch.Size | None = None) -> Quantized4bit:
    """Put a 4-bit weight together from the tensors of a file.

    Args:
        name: of the weight, such as ``model.layers.0.self_attn.q_proj.weight``.
        shape: that the architecture gives to the weight, to be compared.

    Raises:
        CheckpointError: a part is missing, unknown, of the wrong size or dtype, or holds what quantizing can't have made.
    """
    state = read_state(checkpoint, name)
    nested = "nested_offset" in state
    due = PLAIN_PARTS | (NESTED_PARTS if nested else set())
    parts = {key.removeprefix(name + ".") for key in checkpoint.files if key.startswith(name + ".") and STATE_MARK not in key}
    if unknown := sorted(parts - due):
        raise CheckpointError(
            f"The tensor {checkpoint.where(f'{name}.{unknown[0]}')} is none that belongs to such a weight. "
            "The model was saved by a newer version, or put together wrongly."
        )
    for part in ("", *sorted(due)):
        key = f"{name}.{part}".removesuffix(".")
        if key not in checkpoint.files:
            what = "packed codes" if not part else part
            raise CheckpointError(
                f"The weight {name} has no {what}: no file holds the tensor {key}, which its quant_state in {state['file']} needs. "
                f"{SAVE_AGAIN}"
            )

    stored = torch.Size(state["shape"])
    if shape is not None and stored != shape:
        raise CheckpointError(
            f"The weight {checkpoint.where(name)} has the shape {tuple(stored)} by its quant_state, "
            f"and config.json asks for {tuple(shape)}. Two tensors were swapped, or the config belongs to another model."
        )
    weights, block_size = stored.numel(), state["blocksize"]
    packed = read_packed(checkpoint, name, -(-weights // 2))
    book = CODEBOOKS[state["quant_type"]]
    check_codebook(checkpoint, f"{name}.quant_map", book.values)
    blocks = -(-weights // block_size)
    if nested:
        check_codebook(checkpoint, f"{name}.nested_quant_map", SCALE_VALUES)
        codes = read_part(checkpoint, f"{name}.absmax", torch.uint8, blocks)
        of_scales = read_part(checkpoint, f"{name}.nested_absmax", torch.float32, -(-blocks // SCALE_BLOCK_SIZE))
        check_scales(checkpoint, f"{name}.nested_absmax", of_scales, torch.zeros(()))
        absmax = NestedScales(codes, of_scales, torch.tensor(float(state["nested_offset"])))
        lowest = values_times_scales(codes, of_scales, torch.full((256,), -FURTHEST_ROUNDING), SCALE_BLOCK_SIZE)
        check_scales(checkpoint, f"{name}.absmax", absmax.dequantize(), lowest - 1e-6 * absmax.offset.abs())
    else:
        absmax = read_part(checkpoint, f"{name}.absmax", torch.float32, blocks)
        check_scales(checkpoint, f"{name}.absmax", absmax, torch.zeros(()))
    return Quantized4bit(packed.unsqueeze(1), absmax, stored, DTYPES[state["dtype"]], book, block_size)


def read_state(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """The quantization state of a weight: the JSON in its tensor, checked. ``file`` is added: where it stands.

    Raises:
        CheckpointError: there is not just one such tensor, or it holds no JSON with the entries and values that are due.
    """
    keys = [key for key in checkpoint.files if key.startswith(name + STATE_MARK)]
    if len(keys) != 1:
        raise CheckpointError(f"The weight {name} has {len(keys)} tensors {name}{STATE_MARK}...; one is due. {SAVE_AGAIN}")
    key, where = keys[0], checkpoint.where(keys[0])
    kind = key.removeprefix(name + STATE_MARK)
    newer = "The model was saved by a newer version: load it with that version."
    if kind not in ("nf4", "fp4"):
        raise CheckpointError(f"The tensor {where} is of the quantization {kind!r}; known are nf4 and fp4. {newer}")
    text = checkpoint.read(key)
    if text.dtype != torch.uint8 or text.ndim != 1 or len(text) > LONGEST_STATE:
        raise CheckpointError(
            f"The tensor {where} has the shape {tuple(text.shape)} and dtype {text.dtype}; a text in JSON is due, as one row of at most "
            f"{LONGEST_STATE:,} bytes in {torch.uint8}. {SAVE_AGAIN}"
        )
    try:
        state = json.loads(bytes(text.tolist()).decode())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"The tensor {where} holds no valid JSON, so block size and shape of the weight are lost. {SAVE_AGAIN}"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"The tensor {where} holds a {type(state).__name__} where a JSON object is due. {SAVE_AGAIN}")
    if unknown := sorted(set(state) - PLAIN_KEYS - NESTED_KEYS):
        raise CheckpointError(f"The tensor {where} has the entry {unknown[0]!r}, which is not known. {newer}")
    due = PLAIN_KEYS | (NESTED_KEYS if NESTED_KEYS & set(state) else set())
    if missing := sorted(due - set(state)):
        raise CheckpointError(f"The tensor {where} lacks the entry {missing[0]!r}. {SAVE_AGAIN}")

    shape, offset = state["shape"], state.get("nested_offset", 0.0)
    right = {
        "quant_type": (state["quant_type"] == kind, f"{kind}, as in the name of the tensor"),
        "blocksize": (type(state["blocksize"]) is int and state["blocksize"] in BLOCK_SIZES, f"one of {named(BLOCK_SIZES)}"),
        "dtype": (isinstance(state["dtype"], str) and state["dtype"] in DTYPES, f"one of {named(tuple(DTYPES))}"),
        "shape": (
            isinstance(shape, list)
            and len(shape) == 2
            and all(type(size) is int and size > 0 for size in shape)
            and math.prod(shape) <= MOST_WEIGHTS,
            "two whole numbers above 0 whose product is below 2**63",
        ),
        "nested_blocksize": (state.get("nested_blocksize", SCALE_BLOCK_SIZE) == SCALE_BLOCK_SIZE, str(SCALE_BLOCK_SIZE)),
        "nested_offset": (
            type(offset) in (float, int) and abs(offset) <= torch.finfo(torch.float32).max,
            "a finite number in float32",
        ),
    }
    for entry, (good, due_value) in right.items():
        if not good:
            said = f"the entry {entry!r} with the value {reprlib.repr(state[entry])}"
            raise CheckpointError(f"The tensor {where} has {said}; it must be {due_value}. {SAVE_AGAIN}")
    if state.get("nested_dtype", "float32") != "float32":
        raise CheckpointError(
            f"By {where} the scales were quantized from {state['nested_dtype']}, and a fresh quantization starts from float32. "
            f"{AFTER_A_FORWARD_PASS}"
        )
    return state | {"file": checkpoint.files[key].name}


def read_packed(checkpoint: Checkpoint, name: str, count: int) -> Tensor:
    """The packed codes as bytes, whatever dtype they were stored under (bnb_4bit_quant_storage).

    Raises:
        CheckpointError: they are not ``count`` bytes in one column.
    """
    stored = checkpoint.read(name)
    packed = stored.reshape(-1).view(torch.uint8) if stored.numel() else stored
    if len(packed) != count or stored.ndim != 2 or stored.shape[1] != 1:
        raise CheckpointError(
            f"The tensor {checkpoint.where(name)} has the shape {tuple(stored.shape)}, {stored.nbytes:,} bytes; its quant_state asks for "
            f"{count:,} bytes of packed codes. Two tensors were swapped, or it is damaged. {SAVE_AGAIN}"
        )
    return packed


def read_part(checkpoint: Checkpoint, key: str, dtype: torch.dtype, count: int) -> Tensor:
    """Scales or their codes: one row of ``count`` numbers of one dtype.

    Raises:
        CheckpointError: the tensor has another shape or dtype.
    """
    part = checkpoint.read(key)
    if key.endswith(".absmax") and part.dtype == torch.bfloat16 and part.ndim == 2 and part.numel() == count:
        raise CheckpointError(
            f"The tensor {checkpoint.where(key)} holds {tuple(part.shape)} scales in bfloat16 where {count:,} in float32 are due: "
            f"rounded, and rows and columns exchanged. {AFTER_A_FORWARD_PASS}"
        )
    if part.dtype != dtype or part.shape != (count,):
        raise CheckpointError(
            f"The tensor {checkpoint.where(key)} has the shape {tuple(part.shape)} and dtype {part.dtype}; its quant_state asks for "
            f"({count},) and {dtype}. Two tensors were swapped, or the quant_state is wrong. {SAVE_AGAIN}"
        )
    return part


def check_codebook(checkpoint: Checkpoint, key: str, values: Tensor) -> None:
    """Refuse a codebook that is not the one its name stands for."""
    stored = checkpoint.read(key)
    if stored.shape != values.shape or not torch.equal(stored.float(), values):
        raise CheckpointError(f"The tensor {checkpoint.where(key)} doesn't hold the {len(values)} values of its codebook. {SAVE_AGAIN}")


def check_scales(checkpoint: Checkpoint, key: str, scales: Tensor, lowest: Tensor) -> None:
    """Refuse scales that no quantizing gives: NaN, infinite, or lower than rounding can make them."""
    if not torch.isfinite(scales).all():
        count = int((~torch.isfinite(scales)).sum())
        raise CheckpointError(
            f"The tensor {checkpoint.where(key)} has NaN or infinity in {count:,} of its {len(scales):,} scales. {SAVE_AGAIN}"
        )
    if (scales < lowest).any():
        count = int((scales < lowest).sum())
        raise CheckpointError(
            f"The tensor {checkpoint.where(key)} has {count:,} of its {len(scales):,} scales below 0, further than rounding explains; "
            f"a scale is an absolute value. {SAVE_AGAIN}"
        )


# --- The whole model, without bitsandbytes ---


def load_by_hand(folder: str | Path, compute_dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Load a saved 4-bit model from the bytes of its files, without bitsandbytes. It is on the CPU and in eval mode.

    Args:
        folder: what save_pretrained of transformers wrote for a causal language model in 4 bits.
        compute_dtype: float32, float16 or bfloat16; that of config.json if left out.

    Raises:
        CheckpointError: the folder holds no whole 4-bit model. Nothing is built then.
        models.CourseModelError: config.json is not that of a causal language model that transformers knows.

    Models whose tensors are named otherwise in the file than in transformers, such as some mixtures of experts, are refused.
    """
    checkpoint = open_checkpoint(folder)
    if compute_dtype is None:
        compute_dtype = DTYPES[checkpoint.config["quantization_config"].get("bnb_4bit_compute_dtype", "float32")]
    model = empty_model(checkpoint)
    due = model.state_dict()

    in_4bit = checkpoint.weights_in_4bit()
    for name in in_4bit:
        layer = linear_layer(model, checkpoint, name)
        hand = HandLinear4bit(layer.in_features, layer.out_features, bias=False, compute_dtype=compute_dtype)
        hand.bias, hand.weight = layer.bias, read_quantized(checkpoint, name, due[name].shape)
        model.set_submodule(name.removesuffix(".weight"), hand)

    parts = tuple(f"{name}." for name in in_4bit)
    others = [name for name in checkpoint.files if name not in in_4bit and not name.startswith(parts)]
    model.load_state_dict({name: read_other(checkpoint, name, due) for name in others}, strict=False, assign=True)
    model.tie_weights()
    if missing := [name for name, tensor in model.named_parameters() if tensor.is_meta]:
        raise CheckpointError(
            f"The tensor {missing[0]} is in no file of the folder {checkpoint.folder.name}, and config.json asks for it. {SAVE_AGAIN}"
        )
    return model.requires_grad_(False).eval()


def empty_model(checkpoint: Checkpoint) -> PreTrainedModel:
    """The architecture of a saved model: parameters on the meta device, and the tables that no file holds."""
    config = models.read_config(str(checkpoint.folder))
    del config.quantization_config
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    if (checkpoint.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.folder)
    return model


def linear_layer(model: PreTrainedModel, checkpoint: Checkpoint, name: str) -> nn.Linear:
    """The linear layer of the architecture to which a 4-bit weight belongs.

    Raises:
        CheckpointError: the architecture has no linear layer of that name.
    """
    place = name.removesuffix(".weight")
    layer = dict(model.named_modules()).get(place)
    if not isinstance(layer, nn.Linear):
        found = "nothing of that name" if layer is None else f"a {type(layer).__name__}"
        part = min(key for key in checkpoint.files if key.startswith(name + STATE_MARK))
        raise CheckpointError(
            f"The tensor {checkpoint.where(part)} belongs to a linear layer {place}, "
            f"and the architecture in config.json has {found} there. The config belongs to another model, or the file to a newer version."
        )
    return layer


def read_other(checkpoint: Checkpoint, name: str, due: dict[str, Tensor]) -> Tensor:
    """A tensor that is not in 4 bits: an embedding, a norm, a bias, the head.

    Raises:
        CheckpointError: the architecture has no place for it, it has another shape or dtype, holds packed codes, or NaN or infinity.
    """
    if name not in due:
        raise CheckpointError(
            f"The tensor {checkpoint.where(name)} belongs to no part of the architecture in config.json. "
            "The config belongs to another model, or the file to a newer version."
        )
    tensor = checkpoint.read(name)
    if tensor.dtype == torch.uint8:
        raise CheckpointError(
            f"The tensor {checkpoint.where(name)} holds packed codes, and no file holds {name}{STATE_MARK}..., "
            f"which says how to read them. {SAVE_AGAIN}"
        )
    if tensor.shape != due[name].shape:
        raise CheckpointError(
            f"The tensor {checkpoint.where(name)} has the shape {tuple(tensor.shape)}, and config.json asks for {tuple(due[name].shape)}. "
            "Two tensors were swapped, or the config belongs to another model."
        )
    if due[name].is_floating_point() and tensor.dtype not in DTYPES.values():
        raise CheckpointError(
            f"The tensor {checkpoint.where(name)} has the dtype {tensor.dtype}; it must be one of {named(tuple(DTYPES))}. {SAVE_AGAIN}"
        )
    if not torch.isfinite(tensor).all():
        count = int((~torch.isfinite(tensor)).sum())
        where = checkpoint.where(name)
        raise CheckpointError(f"The tensor {where} has NaN or infinity in {count:,} of its {tensor.numel():,} numbers. {SAVE_AGAIN}")
    return tensor


# --- Save so that what is there is whole ---


def save_whole(
    model: PreTrainedModel, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None, max_shard_size: int | str = "50GB"
) -> Checkpoint:
    """Save a 4-bit model so that the folder holds either all of it or what was there before.

    The files are written beside the folder, looked through, and then put in its place. Whoever is interrupted finds the old folder,
    or, if the process is killed in the one moment between two renamings, the old folder under a name that ends in
    ``.replaced_by_save_whole``. The next call puts it back.

    Args:
        model: in 4 bits by bitsandbytes, before its first forward pass or on the plain path.
        max_shard_size: as for save_pretrained.

    Raises:
        CheckpointError: it is no model of transformers, but one with adapters, say; no layer of it is in 4 bits, or one was repacked by a
            forward pass, so saving would damage file and model; the folder, or the draft beside it, holds something that is no saved
            model; the folder is named like a draft; or what was written is no whole 4-bit model. What was there before is still there.
    """
    folder = Path(folder).resolve()
    if not isinstance(model, PreTrainedModel):
        raise CheckpointError(
            f"save_whole takes a model of transformers, and this is a {type(model).__name__}. Save an adapter by its own save_pretrained."
        )
    layers = {name: getattr(getattr(layer, "weight", None), "quant_state", None) for name, layer in model.named_modules()}
    if all(state is None for state in layers.values()):
        raise CheckpointError("No layer of the model is in 4 bits by bitsandbytes. Save the model by its own save_pretrained.")
    for name, state in layers.items():
        if getattr(state, "packing_format_for_cpu", False):
            raise CheckpointError(
                f"The layer {name} was repacked by a forward pass, and saving would damage the file and the model. Load the model again, "
                "and save it before its first forward pass or call models.use_plain_cpu_path before that."
            )
    for suffix in (DRAFT_SUFFIX, REPLACED_SUFFIX):
        if folder.name.endswith(suffix):
            raise CheckpointError(f"The name {folder.name} is kept for what save_whole writes or sets aside. Choose one without {suffix}.")
    draft, replaced = folder.with_name(folder.name + DRAFT_SUFFIX), folder.with_name(folder.name + REPLACED_SUFFIX)
    check_replaceable(folder)
    check_replaceable(draft)
    put_back(replaced, folder)  # if an earlier call was killed between the two renamings
    shutil.rmtree(draft, ignore_errors=True)
    # transformers 5.23 can't undo what it did to a model that came from a 4-bit file, and needn't: bitsandbytes takes its weights apart.
    from_4bit_file = getattr(getattr(model, "hf_quantizer", None), "pre_quantized", False)
    model.save_pretrained(draft, max_shard_size=max_shard_size, save_original_format=not from_4bit_file)
    if tokenizer is not None:
        tokenizer.save_pretrained(draft)
    look_through(draft)
    shutil.rmtree(replaced, ignore_errors=True)
    try:
        if folder.exists():
            os.replace(folder, replaced)
        os.replace(draft, folder)
    finally:
        put_back(replaced, folder)
    shutil.rmtree(replaced, ignore_errors=True)
    return look_through(folder)


def check_replaceable(folder: Path) -> None:
    """Refuse to replace what is neither a folder with a saved model nor an empty one."""
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / "config.json").is_file())):
        raise CheckpointError(
            f"{folder} holds something that is no saved model, and would be replaced. Choose another folder, or move that away."
        )


def put_back(replaced: Path, folder: Path) -> None:
    """Undo the first of the two renamings of `save_whole` where the second didn't come about."""
    if replaced.exists() and not folder.exists():
        os.replace(replaced, folder)
