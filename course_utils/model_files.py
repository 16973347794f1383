"""The files of a model: where they are, which of them are missing, which can't be read, and how to get them whole.

`course_utils.models` asks here when a model can't be loaded. What is found comes back as a sentence with its cure, or as None.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from transformers import PreTrainedTokenizerFast

from course_utils import ROOT

Wanted = Literal["weights", "tokenizer", "config"]

ABACUS = ROOT / "models" / "abacus"
"""The bundled model."""

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""The names under which transformers looks for weights, in its order; an index names the files that hold the parts."""

TOKENIZER = ("tokenizer.", "vocab.", "spiece.", "sentencepiece.")
"""How the name of the file with a tokenizer's vocabulary begins."""


def local_copy(source: str) -> Path | None:
    """The folder with a model's files: `source` itself, or its copy in the Hub's cache, whole or not; None if there is neither."""
    if Path(source).is_dir():
        return Path(source)
    cached = try_to_load_from_cache(source, "config.json")
    return Path(cached).parent if isinstance(cached, str) else None


def file_names(folder: Path) -> set[str]:
    """The names of the files in a folder. A link that leads nowhere is none."""
    return {file.name for file in folder.iterdir() if file.is_file()}


def how_to_get(source: str, otherwise: str = "Give a folder that save_pretrained wrote to the end, or fetch the model again.") -> str:
    """The cure for a model that is not whole: `otherwise`, but for abacus, which git brings back."""
    if Path(source).resolve() == ABACUS.resolve():
        return "It came with the course; this brings it back: git restore models/abacus"
    return otherwise


def what_is_missing(source: str, names: Collection[str], wanted: Wanted = "weights") -> str | None:
    """What a model can't be loaded without.

    Args:
        source: the model's folder, or its name on the Hub.
        names: of its files, there.
        wanted: what is to be read: the weights, the tokenizer, or nothing but the config.
    """
    local = Path(source).is_dir()
    what = f"The folder {source}" if local else f"{source} on the Hub"
    suitable = "Choose a repository with a config.json, a tokenizer and a model.safetensors; a GGUF file is for other programs."
    cure = how_to_get(source) if local else suitable
    weights = next((name for name in WEIGHTS if name in names), None)
    if not ("config.json" in names and weights) and ("adapter_model.safetensors" in names or "adapter_model.bin" in names):
        return (
            f"{what} holds a LoRA adapter and not a whole model. Load the model that it was trained on, then add the adapter: "
            f"PeftModel.from_pretrained(model, {source!r})"
        )
    if "config.json" not in names:
        return f"{what} has no config.json, so it holds no model. {cure}"
    if wanted == "tokenizer" and not any(name.startswith(TOKENIZER) for name in names):
        return f"{what} has no tokenizer. {cure}"
    if wanted == "weights" and weights is None:
        others = sorted(name for name in names if name.endswith((".safetensors", ".bin", ".gguf")))
        found = f", and {others[0]} is neither" if others else ""
        return (
            f"{what} has a config.json but no weights that transformers looks for: model.safetensors, or parts with their "
            f"model.safetensors.index.json{found}. {cure}"
        )
    absent = sorted(parts(source, weights) - set(names)) if wanted == "weights" else []
    return f"{what} lacks {absent[0]}, which its {weights} names. {cure}" if absent else None


def parts(source: str, weights: str) -> set[str]:
    """The files that an index names; none if `weights` is no index, or one that is not here or can't be read."""
    folder = local_copy(source)
    if folder is None or not weights.endswith(".index.json"):
        return set()
    try:
        return set(json.loads((folder / weights).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return set()


def what_is_damaged(source: str) -> str | None:
    """The first file of a model that can't be read. A library's error seldom names it."""
    folder = local_copy(source)
    if folder is None:
        return None
    cure = how_to_get(source)
    if not Path(source).is_dir():
        # The files of a snapshot are links. Deleting one is not enough: it would be made anew, to the same damaged content.
        cure = f"Delete the folder {folder.parent.parent} and load {source} again. If that doesn't help it was published so."
    for file in sorted(folder.iterdir()):
        try:
            read(file)
        except OSError:
            continue  # a link that leads nowhere, or a file that is not ours to read: nothing is known of its content
        except Exception:
            return f"The file {file} is damaged, was cut short or is not what its name says, so it can't be read. {cure}"
    return None


def read(file: Path) -> None:
    """Read a file of a model just so far that any error shows, whatever its kind; no weights are kept."""
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt"):
            pass
    elif file.match("pytorch_model*.bin"):
        torch.load(file, map_location="meta", weights_only=True)
    elif file.name == "tokenizer.json":
        PreTrainedTokenizerFast(tokenizer_file=str(file))
    elif file.name.endswith(".index.json"):
        json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()
    elif file.name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        json.loads(file.read_text(encoding="utf-8")).items()
