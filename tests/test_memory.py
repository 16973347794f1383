"""What a model takes: footprints against the memory that was really allocated, and loads watched from outside."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import bitsandbytes.functional
import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel, modeling_utils

from course_utils import models
from course_utils.memory import LoadEvent, footprint, load_peak, model_bytes_in_4bit, stored_bytes, watch_load

FORMATS = {
    "bfloat16": None,
    "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "nf4, double quantization": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "fp4, stored as bfloat16": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_storage=torch.bfloat16),
    "int8": BitsAndBytesConfig(load_in_8bit=True),
}


def save_llama(folder: Path, tied: bool = False) -> Path:
    """A random Llama of two layers, saved."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=tied)).save_pretrained(folder, max_shard_size="100KB")
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


def load(folder: Path, config: BitsAndBytesConfig | None) -> PreTrainedModel:
    """On the CPU, in bfloat16 where it isn't quantized, so that every weight is a copy and none lies in the mapped file."""
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16, device_map={"": "cpu"})


def memory_of_all_tensors() -> dict[int, int]:
    """Address and bytes of the memory behind every tensor of this process. It knows nothing of quantization, nor of sparse tensors."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    pieces = [tensor.untyped_storage() for tensor in tensors if not tensor.is_meta and tensor.layout == torch.strided]
    return {piece.data_ptr(): piece.nbytes() for piece in pieces}


def allocated(action: Callable[[], object]) -> tuple[object, int]:
    """What an action returns, and the bytes of the tensors that are there after it and weren't before."""
    before = memory_of_all_tensors()
    result = action()
    return result, sum(nbytes for place, nbytes in memory_of_all_tensors().items() if place not in before)


# --- footprint ---


@pytest.mark.parametrize("name", FORMATS)
def test_footprint_is_what_was_allocated(llama: Path, name: str) -> None:
    load(llama, FORMATS[name])  # bitsandbytes keeps small tables from the first call on
    model, nbytes = allocated(lambda: load(llama, FORMATS[name]))
    assert sum(footprint(model).values()) == nbytes


def test_a_tied_head_is_counted_once(tmp_path: Path) -> None:
    model, nbytes = allocated(lambda: load(save_llama(tmp_path, tied=True), FORMATS["nf4"]))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(footprint(model).values()) == nbytes


@pytest.mark.parametrize("name", FORMATS)
def test_what_transformers_reports_is_a_part_of_it(llama: Path, name: str) -> None:
    model = load(llama, FORMATS[name])
    parts = footprint(model)
    assert model.get_memory_footprint() == parts["packed codes"] + parts["other weights"] + parts["buffers"]
    quantized = name != "bfloat16"
    assert (parts["scales"] > 0) == quantized and (parts["packed codes"] > 0) == quantized
    assert (parts["nested scales"] > 0) == ("double" in name)


@pytest.mark.parametrize("double_quant", [False, True])
def test_footprint_and_prediction_are_the_same(llama: Path, double_quant: bool) -> None:
    config = FORMATS["nf4, double quantization" if double_quant else "nf4"]
    parts = footprint(load(llama, config))
    in_16_bits = load(llama, None)
    assert sum(parts.values()) - parts["codebooks"] - parts["buffers"] == model_bytes_in_4bit(in_16_bits, double_quant)


def test_stored_bytes_are_the_footprint_without_buffers(llama: Path) -> None:
    model = load(llama, FORMATS["nf4, double quantization"])
    parts, stored = footprint(model), stored_bytes(model)
    assert list(stored) == ["packed codes", "scales", "codebooks", "other weights"]
    assert sum(stored.values()) == sum(parts.values()) - parts["buffers"]
    assert stored["scales"] == parts["scales"] + parts["nested scales"]


@pytest.mark.parametrize("name", ["nf4", "nf4, double quantization", "int8"])
def test_a_forward_pass_on_the_plain_path_changes_no_footprint(llama: Path, name: str) -> None:
    model = load(llama, FORMATS[name])
    models.use_plain_cpu_path(model)
    before = footprint(model)
    with torch.no_grad():
        model(torch.arange(4)[None])
    assert footprint(model) == before


@pytest.mark.skipif(not has_avx512bf16(), reason="this CPU has no avx512_bf16, so bitsandbytes has no packed path here")
def test_on_the_packed_path_both_end_with_the_same_scales(llama: Path) -> None:
    after = {}
    for name in ("nf4", "nf4, double quantization"):
        model = load(llama, FORMATS[name])
        with torch.no_grad():
            model(torch.arange(4)[None])
        after[name] = footprint(model)
    assert after["nf4"] == after["nf4, double quantization"]
    assert 8 * (after["nf4"]["packed codes"] + after["nf4"]["scales"]) / (2 * after["nf4"]["packed codes"]) == 4.25


# --- watch_load ---


def test_weights_are_quantized_one_at_a_time(llama: Path) -> None:
    with watch_load() as events:
        model = load(llama, FORMATS["nf4"])
    files = {path.name for path in llama.glob("*.safetensors")}
    assert len(files) > 1
    first_read = next(place for place, event in enumerate(events) if event.what == "read")
    assert {event.file for event in events[:first_read]} == files and {event.what for event in events[:first_read]} == {"open"}
    assert [event.what for event in events[-len(files) :]] == ["close"] * len(files)
    quantized = {f"{name}.weight" for name, layer in model.named_modules() if type(layer).__name__ == "Linear4bit"}
    reads = [event.weight for event in events if event.what == "read"]
    assert reads == sorted(reads) and set(reads) == set(dict(model.named_parameters()))
    for event, following in zip(events, events[1:], strict=False):
        if event.what == "read" and event.weight in quantized:
            assert following == LoadEvent("quantize", "", event.weight, "cpu")
    assert {event.weight for event in events if event.what == "quantize"} == quantized


def test_a_watched_load_gives_the_same_model(llama: Path) -> None:
    with watch_load():
        watched = load(llama, FORMATS["nf4, double quantization"])
    alone = load(llama, FORMATS["nf4, double quantization"])
    for (name, ours), (_, theirs) in zip(watched.state_dict().items(), alone.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), name


def test_nobody_watches_afterwards(llama: Path) -> None:
    functions = modeling_utils.safe_open, bitsandbytes.functional.quantize_4bit
    with pytest.raises(OSError), watch_load():
        load(llama / "nowhere", None)
    assert (modeling_utils.safe_open, bitsandbytes.functional.quantize_4bit) == functions


# --- load_peak ---

MB = 10**6


def test_load_peak_sees_what_is_kept_and_what_was_there_for_a_moment() -> None:
    watched = load_peak(
        "moment = bytearray(b'1') * (150 * MB)\ntime.sleep(0.2)\ndel moment\nmodel = bytearray(b'1') * (40 * MB)", "import time; MB = 10**6"
    )
    assert 149 * MB < watched.peak_bytes < 170 * MB
    assert 39 * MB < watched.after_bytes < 60 * MB
    assert watched.with_files_bytes >= watched.peak_bytes


def test_load_peak_does_not_count_what_was_there_before() -> None:
    watched = load_peak("model = before", "before = bytearray(b'1') * 10**8")
    assert watched.after_bytes < 10 * MB


def test_load_peak_says_what_went_wrong() -> None:
    with pytest.raises(RuntimeError, match="failed with code 1: NameError: name 'missing' is not defined"):
        load_peak("print('noise')\nmodel = missing")
