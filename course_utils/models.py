"""Which model a lesson works on: the bundled abacus, a model of the learner's choice, or an architecture without weights.

`load` is what lessons call. It is `AutoTokenizer.from_pretrained` and `AutoModelForCausalLM.from_pretrained`, and two things besides:
what goes wrong is said in one sentence with its cure (`CourseModelError`), and a lesson prints the same on every CPU
(`quiet`, `use_plain_cpu_path`).
"""

from __future__ import annotations

import logging
import os
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from course_utils import ROOT
from course_utils.doctor import read_memory
from course_utils.model_files import ABACUS, Wanted, file_names, how_to_get, local_copy, what_is_damaged, what_is_missing

ARCHITECTURES = ROOT / "models" / "architectures"
"""One folder with a config.json for each shipped architecture."""


class CourseModelError(Exception):
    """A model that can't be had: one sentence says what is wrong, one what to do.

    The traceback ends there; the library's own error, where there was one, is kept in ``original``.
    """

    def __init__(self, text: str, original: Exception | None = None) -> None:
        super().__init__(text)
        self.original = original


# --- The course's settings: only what would otherwise differ from machine to machine ---


def quiet() -> None:
    """Switch off what is printed on one machine and not on another. Called when this module is imported.

    Everything else the libraries have to say is still said: a warning in a lesson is cured, not hidden.
    """
    # "Loading weights: 100%" and its like show a speed that is never the same twice.
    transformers.utils.logging.disable_progress_bar()
    # The same for downloads, which happen only on the first run.
    disable_progress_bars()
    # On a CPU with avx512_bf16, and on no other, importing bitsandbytes warns that a faster kernel could not be fetched
    # from the Hub. That kernel serves the packed path alone (see `use_plain_cpu_path`), so a lesson loses nothing. With the
    # package `kernels`, which the course doesn't install, bitsandbytes asks the Hub for it on import and `kernels` logs a line.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # bitsandbytes compiles a few functions with torch.compile, for CPU tensors too. A torch that was built for CUDA then warns where it
    # finds CUDA's compiler but no GPU, as on the login node of a cluster, and shows a path of that machine.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    # peft 0.21 asks transformers for a property by its old name whenever it puts adapters on a model. The warning shows a path of
    # this machine, is meant for the authors of peft, and can't be cured from here.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


def use_plain_cpu_path(model: torch.nn.Module) -> None:
    """Make the 4-bit layers of `model` compute in the same way on every CPU. Call it before the first forward pass.

    On a CPU with avx512_bf16 the first forward pass in eval mode repacks each `Linear4bit` for a faster kernel: another order
    of the codes, block scales rounded to bfloat16, double quantization undone, arithmetic in bfloat16 whatever the compute
    dtype. Other CPUs dequantize the weight and multiply. That plain path is what the course explains, what gives the same
    digits everywhere, and what leaves the weights as they were loaded. Layers on a GPU never look at the switch.

    Source: `Linear4bit.forward` of bitsandbytes 0.49.0 and later; earlier versions have neither the packed path nor the switch.

    Raises:
        CourseModelError: a layer has been repacked already; going back would change its weights.
    """
    for layer_name, layer in model.named_modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            quant_state = getattr(layer.weight, "quant_state", None)
            if getattr(quant_state, "packing_format_for_cpu", False):
                raise CourseModelError(
                    f"The layer {layer_name or type(layer).__name__} was repacked by a forward pass and can't be unpacked without loss. "
                    "Load the model again and call use_plain_cpu_path before its first forward pass."
                )
            layer.support_avx512bf16_for_cpu = False


# --- Which model, and how to get it ---


def name() -> str:
    """The model that lessons load: the variable COURSE_MODEL where it is set, abacus otherwise.

    COURSE_MODEL is a name on the Hub or a folder; a relative folder is taken from the clone, wherever the notebook runs.
    """
    chosen = os.environ.get("COURSE_MODEL") or str(ABACUS)
    folder = ROOT / os.path.expanduser(chosen)
    return str(folder) if folder.is_dir() else chosen


def load(
    model: str | Path | None = None, *, quantization_config: Any = None, dtype: torch.dtype | str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, ready to answer: on the GPU where there is one, in eval mode.

    Without a network a model that is in the Hub's cache loads too, but only after huggingface_hub has tried for most of a
    minute; the variable HF_HUB_OFFLINE=1 spares the waiting. Abacus never asks the Hub.

    Args:
        model: a folder or a name on the Hub; `name()` if left out.
        quantization_config: passed on, such as a `BitsAndBytesConfig`. A model that was saved in 4 bits needs none.
        dtype: of the weights that are not quantized, such as torch.bfloat16 or "bfloat16"; as they were saved if left out.

    Raises:
        CourseModelError: the model can't be had. The text says why, and the cure.
    """
    source = name() if model is None else str(model)
    try:
        check_folder(source)
        config = read_config(source)
        in_4_bits = bool(quantization_of(config, quantization_config).get("load_in_4bit"))
        check_memory(source, weight_bytes(config, quantization_config, dtype), in_4_bits)
        tokenizer = read_tokenizer(source)
        device_map = {"": 0 if torch.cuda.is_available() else "cpu"}
        # A quantization_config=None would not be the same as none: a model that was saved in 4 bits would lose its own.
        given = {} if quantization_config is None else {"quantization_config": quantization_config}
        loaded = AutoModelForCausalLM.from_pretrained(source, dtype=dtype or "auto", device_map=device_map, **given)
    except Exception as error:
        sentence = explain(error, source)
        if sentence is None:
            raise
        raise CourseModelError(sentence, error) from None
    use_plain_cpu_path(loaded)
    return loaded, tokenizer


def architecture(model: str | Path) -> PreTrainedModel:
    """Build a model's architecture on the meta device: every shape and dtype, no weights, no memory, no download of weights.

    Args:
        model: one of the shipped names (Llama-2-7b, Llama-2-13b, Llama-2-70b, Mixtral-8x7B), a folder, or a name on the Hub.

    Raises:
        CourseModelError: there is no such architecture, or it can't be fetched. The text says why, and the cure.

    >>> architecture("Llama-2-7b").num_parameters()
    6738415616
    """
    shipped = ARCHITECTURES / model
    source = str(shipped if shipped.is_dir() else model)
    try:
        check_folder(source, "config")
        return skeleton(read_config(source))
    except Exception as error:
        sentence = explain(error, source, "config")
        if sentence is None:
            raise
        names = ", ".join(sorted(folder.name for folder in ARCHITECTURES.iterdir() if folder.is_dir()))
        raise CourseModelError(f"{sentence.removesuffix('.')}. Without a network there are {names}.", error) from None


def ask(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: str, max_new_tokens: int = 48) -> str:
    """Let the model go on from the question, taking the likeliest token each time, until it ends or `max_new_tokens` are written.

    Returns question and answer as one text.
    """
    inputs = tokenizer(question, return_tensors="pt").to(model.device)
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    return tokenizer.decode(tokens[0], skip_special_tokens=True)


# --- What can be known before anything is loaded ---


def check_folder(source: str, wanted: Wanted = "weights") -> None:
    """Raise a `CourseModelError` that says what is missing in a folder, before a library trips over it. A name on the Hub passes."""
    folder = Path(source)
    if folder.is_file():
        raise CourseModelError(f"{source} is a file, and a model is a folder. Give the folder that holds it: {folder.parent}")
    if not folder.is_dir():
        return
    missing = what_is_missing(source, file_names(folder), wanted)
    if missing:
        raise CourseModelError(missing)


def read_config(source: str) -> PreTrainedConfig:
    """A model's config.json. The course never runs code that comes with a model.

    Raises:
        CourseModelError: transformers can't use it by itself, or it is not that of a causal language model.
    """
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except ValueError as error:
        cure = how_to_get(source, "Choose a model that needs no code of its own, or a newer transformers.")
        sentence = f"{source} has no config.json that transformers {transformers.__version__} can use by itself. {cure}"
        raise CourseModelError(explain(error, source, "config") or sentence, error) from None
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise CourseModelError(
            f"{source} is of type {config.model_type}, which is not a causal language model. Choose one that continues a text, "
            "such as Qwen/Qwen2.5-0.5B-Instruct."
        )
    return config


def read_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """A model's tokenizer, by transformers alone. Raises `CourseModelError` where it needs more than that."""
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except ValueError as error:
        save = "Save it beside the weights with tokenizer.save_pretrained(folder), or choose a model that has a tokenizer.json."
        sentence = f"{source} has no tokenizer that transformers can read by itself. {how_to_get(source, save)}"
        raise CourseModelError(explain(error, source, "tokenizer") or sentence, error) from None


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """The model on the meta device: shapes and dtypes without storage."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def quantization_of(config: PreTrainedConfig, quantization_config: Any = None) -> dict[str, Any]:
    """How the weights will be quantized: as asked for, or else as they were saved. An empty dict if they will not be."""
    chosen = quantization_config or getattr(config, "quantization_config", None) or {}
    return chosen if isinstance(chosen, dict) else chosen.to_dict()


def weight_bytes(config: PreTrainedConfig, quantization_config: Any = None, dtype: torch.dtype | str | None = None) -> int:
    """Bytes of the weights once loaded, from their shapes alone.

    bitsandbytes quantizes the linear layers but the head: 4.5 bits a weight (4 bits and a float32 scale for each 64), or 8.
    The experts of a mixture such as Mixtral are no linear layers in transformers 5, and stay as they are (bitsandbytes #1849).
    """
    quantization = quantization_of(config, quantization_config)
    linear_bits = 4.5 if quantization.get("load_in_4bit") else 8 if quantization.get("load_in_8bit") else None
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype, None)  # None for "auto", as saved; of a name that is none transformers will complain
    other_bits = 8 * (dtype or config.dtype or torch.float32).itemsize
    model = skeleton(config)
    head = model.get_output_embeddings()
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head)
    return int(linear * (linear_bits or other_bits) + (model.num_parameters() - linear) * other_bits) // 8


def check_memory(source: str, needed: int, in_4_bits: bool = False) -> None:
    """Compare the bytes needed with those free on the GPU, where there is one, or else in the machine or its container.

    Raises:
        CourseModelError: the model doesn't fit.
    """
    if torch.cuda.is_available():
        set_aside = torch.cuda.memory_reserved(0) - torch.cuda.memory_allocated(0)  # torch keeps what was freed, for its next tensors
        free, where = torch.cuda.mem_get_info(0)[0] + set_aside, "on the GPU"
    elif (memory := read_memory()) is not None:
        free, where = memory[0], "in this machine's memory"
    else:
        return
    if needed > free:
        cure = "Choose a smaller model" if in_4_bits else "Load it in 4 bits, choose a smaller model"
        raise CourseModelError(
            f"The weights of {source} need {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free {where}. "
            f"{cure}, or close what else is running."
        )


# --- What went wrong, in one sentence ---


def explain(error: Exception, source: str, wanted: Wanted = "weights") -> str | None:
    """The sentence and the cure for a library's error; None if the error is best left to speak for itself."""
    if isinstance(error, CourseModelError):
        return None
    if (sentence := refusal(error, source) or what_is_damaged(source)) or Path(source).is_dir():
        return sentence
    cached = local_copy(source)
    if cached and what_is_missing(source, file_names(cached), wanted) is None:
        return None
    # A model on the Hub that is not here as a whole. transformers takes some refusals of the Hub for missing files: ask it directly.
    try:
        HfApi().auth_check(source)
        names = HfApi().list_repo_files(source)
    except Exception as answer:
        return refusal(answer, source) or out_of_reach(source)
    if (missing := what_is_missing(source, names, wanted)) or not isinstance(error, (OSError, HTTPError)):
        return missing
    *_, cause = chain(error)
    return f"The download of {source} broke off ({textwrap.shorten(str(cause), 120)}). Connect to the network and load it again."


def refusal(error: Exception, source: str) -> str | None:
    """Why the Hub did not give a model, if that caused the error."""
    causes = tuple(chain(error))

    def caused_by(*kinds: type[Exception]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if caused_by(GatedRepoError):
        page = f"{constants.ENDPOINT}/{source}"
        if get_token() is None:
            return f"{source} is gated, and you are not logged in. Ask for access on {page}, then log in, in a terminal: hf auth login"
        return f"{source} is gated, and your token has no access to it yet. Ask for access on {page}, and try again once it is granted."
    if caused_by(RepositoryNotFoundError):
        return (
            f"There is no folder {source} here and no model of that name on the Hub. Check the spelling, owner/model; "
            "if the model is private, log in, in a terminal: hf auth login"
        )
    if caused_by(HFValidationError):
        return f"There is no folder {source} here. Check the path, or give a model on the Hub as owner/model."
    # Before LocalEntryNotFoundError, which the library raises in its place when nothing is in the cache.
    for cause in causes:
        if isinstance(cause, HfHubHTTPError) and not isinstance(cause, EntryNotFoundError):
            status = cause.response.status_code
            if status == 401:
                return f"The Hub does not accept your token for {source}. Unset HF_TOKEN, or log in again, in a terminal: hf auth login"
            return f"The Hub answered {source} with an error of its own, {status}. Try again later."
    return out_of_reach(source) if caused_by(LocalEntryNotFoundError) else None


def out_of_reach(source: str) -> str:
    """The sentence for a model that is not on this machine, or not as a whole, while the Hub can't be asked for it."""
    offline = constants.is_offline_mode()
    asked_by_variable = bool(os.environ.get("COURSE_MODEL")) and source == name()
    cached = "no model of that name" if local_copy(source) is None else "only a part of that model"
    why = "the variable HF_HUB_OFFLINE forbids to fetch it" if offline else f"{constants.ENDPOINT} can't be reached"
    return (
        f"There is no folder {source} here, {cached} in the Hub's cache on this machine, and {why}. "
        f"{'Unset HF_HUB_OFFLINE' if offline else 'Connect to the network'} and load it again to fetch it, "
        f"or {'unset COURSE_MODEL to use abacus' if asked_by_variable else 'load models.ABACUS'}, which needs no network."
    )


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what caused it, what caused that, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


quiet()
