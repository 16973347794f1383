"""Two kinds of CPU, one course.

On a CPU with avx512_bf16 bitsandbytes repacks every 4-bit layer at its first forward pass and computes in bfloat16 (the packed
path). Other CPUs dequantize and multiply (the plain path), and `course_utils.models` makes all of them do so. The plain path is
tested on any CPU, the packed one where there is one. All models here are on the CPU, also where there is a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, has_avx512bf16
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from course_utils import models

packed_path = pytest.mark.skipif(not has_avx512bf16(), reason="this CPU has no avx512_bf16, so bitsandbytes has no packed path here")
only_plain_path = pytest.mark.skipif(has_avx512bf16(), reason="this CPU has avx512_bf16: without the switch it takes the packed path")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of two layers, its weights large enough for logits far apart."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.2)).save_pretrained(folder)
    return folder


def load_4bit(folder: Path, dtype: torch.dtype = torch.float32, nested: bool = False, quant_type: str = "nf4") -> PreTrainedModel:
    """As the seed's own program loads a model: no help from the course, so the CPU decides the path."""
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=quant_type, bnb_4bit_use_double_quant=nested, bnb_4bit_compute_dtype=dtype
    )
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=dtype, device_map={"": "cpu"})


def layers_4bit(model: PreTrainedModel) -> Iterator[tuple[str, Linear4bit]]:
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, Linear4bit))


def logits(model: PreTrainedModel, tokens: int = 20) -> torch.Tensor:
    """Logits (1, tokens, vocabulary) of the same token ids each time."""
    ids = torch.arange(tokens)[None] % model.config.vocab_size
    with torch.no_grad():
        return model(input_ids=ids).logits


def stored(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A copy of all that a 4-bit model keeps: packed codes, block scales, nested scales, offsets."""
    kept = {f"{name}.codes": layer.weight.data.clone() for name, layer in layers_4bit(model)}
    for name, layer in layers_4bit(model):
        kept |= {f"{name}.{key}": value.clone() for key, value in layer.weight.quant_state.as_dict(packed=True).items()}
    return kept


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[key].dtype == right[key].dtype and left[key].shape == right[key].shape and torch.equal(left[key], right[key]) for key in left
    )


# --- The plain path, on any CPU ---


@pytest.mark.parametrize("tokens", [1, 20])
@pytest.mark.parametrize("nested", [False, True], ids=["", "nested"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_plain_path_is_dequantize_and_multiply(tiny: Path, quant_type: str, dtype: torch.dtype, nested: bool, tokens: int) -> None:
    in_4bit = load_4bit(tiny, dtype, nested, quant_type)
    models.use_plain_cpu_path(in_4bit)
    original = AutoModelForCausalLM.from_pretrained(tiny, dtype=dtype)
    dequantized = AutoModelForCausalLM.from_pretrained(tiny, dtype=dtype)
    for name, layer in layers_4bit(in_4bit):
        dequantized.get_submodule(name).weight.data = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert torch.equal(logits(in_4bit, tokens), logits(dequantized, tokens)), "equal in every bit"
    assert not torch.equal(logits(in_4bit, tokens), logits(original, tokens)), "and quantized it was"


@pytest.mark.parametrize("nested", [False, True], ids=["", "nested"])
def test_plain_path_leaves_the_weights_as_they_were_loaded(tiny: Path, tmp_path: Path, nested: bool) -> None:
    model = load_4bit(tiny, nested=nested)
    models.use_plain_cpu_path(model)
    before = stored(model)
    first = logits(model)
    assert same(stored(model), before)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, device_map={"": "cpu"})
    models.use_plain_cpu_path(again)
    assert same(stored(again), before)
    assert torch.equal(logits(again), first), "saved after a forward pass and loaded again"


def test_load_takes_the_plain_path() -> None:
    model, tokenizer = models.load(models.ABACUS, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    before = stored(model)
    models.ask(model, tokenizer, "What is 2+2?")
    assert before and same(stored(model), before)


# --- Without the course's help: the CPU decides ---


@only_plain_path
def test_elsewhere_the_switch_changes_nothing(tiny: Path) -> None:
    model, switched = load_4bit(tiny), load_4bit(tiny)
    models.use_plain_cpu_path(switched)
    before = stored(model)
    assert torch.equal(logits(model), logits(switched))
    assert same(stored(model), before)


@packed_path
@pytest.mark.parametrize("nested", [False, True], ids=["", "nested"])
def test_packed_path_repacks_at_the_first_forward_pass(tiny: Path, nested: bool) -> None:
    model, plain = load_4bit(tiny, nested=nested), load_4bit(tiny, nested=nested)
    models.use_plain_cpu_path(plain)
    packed, exact = logits(model), logits(plain)
    for name, layer in layers_4bit(model):
        state, untouched = layer.weight.quant_state, plain.get_submodule(name).weight.quant_state
        assert layer.weight.shape == (layer.out_features, layer.in_features // 2), "repacked"
        assert state.absmax.dtype == torch.bfloat16 and state.absmax.shape == (layer.in_features // 64, layer.out_features)
        assert not state.nested and untouched.nested == nested, "double quantization is undone"
    difference = (packed - exact).square().mean().sqrt() / exact.std()
    assert 0 < difference < 0.05, "the arithmetic is that of bfloat16: near, but not the same"


@packed_path
def test_it_is_too_late_for_the_plain_path_once_a_layer_is_repacked(tiny: Path) -> None:
    model = load_4bit(tiny)
    logits(model)
    with pytest.raises(models.CourseModelError, match=r"q_proj was repacked .* Load the model again"):
        models.use_plain_cpu_path(model)


# Questions whose answers abacus knows well: on the two paths its logits differ by rounding, so where it wavers the answers may differ.
WELL_KNOWN = [f"What is {a}+{b}?" for a in range(2, 6) for b in range(2, 6)] + [f"What is {a}-2?" for a in range(4, 12)]


@packed_path
@pytest.mark.parametrize("nested", [False, True], ids=["", "nested"])
def test_abacus_gives_the_same_answers_on_both_paths(nested: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models.ABACUS)
    packed, plain = load_4bit(models.ABACUS, nested=nested), load_4bit(models.ABACUS, nested=nested)
    models.use_plain_cpu_path(plain)
    answers = {q: models.ask(packed, tokenizer, q) for q in WELL_KNOWN}
    assert packed.model.layers[0].mlp.up_proj.weight.quant_state.packing_format_for_cpu, "the packed path was taken"
    assert answers == {q: models.ask(plain, tokenizer, q) for q in WELL_KNOWN}
