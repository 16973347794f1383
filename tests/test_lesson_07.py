"""Lesson 07: what it defines is what `course_utils` holds, and the numbers of its exercise are those of the real libraries."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import _convert_weight_packed_for_cpu, quantize_4bit
from bitsandbytes.nn import Params4bit
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from course_utils import ROOT, memory, models
from course_utils.questions import find, lesson_07

LESSON = ROOT / "source" / "lessons" / "07_load_in_4bit.py"


def load_4bit(folder: Path, **config: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(load_in_4bit=True, **config), dtype=torch.bfloat16, device_map={"": "cpu"}
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A Llama, a Llama with a tied head and biases, and a Mixtral, all random and small."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2}
    made = [
        LlamaForCausalLM(LlamaConfig(**sizes)),
        LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True, attention_bias=True)),
        MixtralForCausalLM(MixtralConfig(**sizes, num_key_value_heads=1, num_local_experts=4)),
    ]
    saved = [tmp_path_factory.mktemp(type(model).__name__) for model in made]
    for model, folder in zip(made, saved, strict=True):
        model.save_pretrained(folder)
    return saved


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("double_quant", [False, True])
def test_the_lesson_s_footprint_is_that_of_course_utils(folders: list[Path], which: int, double_quant: bool) -> None:
    tree = ast.parse(LESSON.read_text(encoding="utf-8"))
    body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "footprint"]
    defined: dict[str, Any] = {}
    exec(compile(ast.Module(body, []), str(LESSON), "exec", dont_inherit=True), defined)
    model = load_4bit(folders[which], bnb_4bit_use_double_quant=double_quant)
    assert defined["footprint"](model) == memory.footprint(model)


# --- The exercise ---


@pytest.mark.parametrize("seed", range(3))
def test_settings_used_is_what_the_configuration_holds(seed: int) -> None:
    for (given_settings,) in lesson_07._given_settings(seed):
        config = BitsAndBytesConfig(**given_settings)
        held = [
            config.bnb_4bit_quant_type,
            str(config.bnb_4bit_compute_dtype).removeprefix("torch."),
            config.bnb_4bit_use_double_quant,
            str(config.bnb_4bit_quant_storage).removeprefix("torch."),
        ]
        assert lesson_07.settings_used(given_settings) == held


@pytest.mark.parametrize("which", [0, 2])
@pytest.mark.parametrize("double_quant", [False, True])
def test_two_footprints_are_those_of_a_model(folders: list[Path], which: int, double_quant: bool) -> None:
    model = load_4bit(folders[which], bnb_4bit_use_double_quant=double_quant)
    kinds = []
    for name, weight in model.named_parameters():
        packed = hasattr(weight, "quant_state")
        kind = "linear" if packed else "experts" if weight.ndim == 3 else "head" if name == "lm_head.weight" else "norm"
        kinds.append([kind, weight.quant_state.shape.numel() if packed else weight.numel()])
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    taken = sum(memory.footprint(model).values()) - buffers
    assert lesson_07.two_footprints(kinds, double_quant) == [model.get_memory_footprint() - buffers, taken]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 50).map(lambda blocks: 64 * blocks), st.booleans()), min_size=1, max_size=10))
def test_peak_while_loading_is_the_largest_of_all_moments(weights: list[tuple[int, bool]]) -> None:
    moments = [0]  # bytes after each single step: a form of a weight appears, or goes
    for count, quantized in weights:
        moments.append(moments[-1] + 2 * count)
        if quantized:
            moments.append(moments[-1] + count // 2 + count // 16)
            moments.append(moments[-1] - 2 * count)
    assert lesson_07.peak_while_loading([list(weight) for weight in weights]) == max(moments)


def test_not_reported_is_what_a_weight_keeps_beside_its_codes() -> None:
    weight = Params4bit(torch.randn(4096, 4096), requires_grad=False, quant_type="nf4", compress_statistics=True).to("cpu")
    parts = memory.footprint(torch.nn.ParameterList([weight]))
    assert sum(parts.values()) - parts["packed codes"] == find("07.1").answer


def test_the_share_of_the_mixture_is_that_of_its_architecture() -> None:
    config = MixtralConfig(
        vocab_size=50_304, hidden_size=2048, intermediate_size=1024, num_hidden_layers=16,
        num_attention_heads=16, num_key_value_heads=16, num_local_experts=64,
    )  # fmt: skip
    with torch.device("meta"):
        groups = memory.weight_groups(MixtralForCausalLM(config))
    assert 100 * groups["linear layers"] / sum(groups.values()) == pytest.approx(find("07.5").answer, abs=find("07.5").within)


def test_scales_after_the_first_pass_are_those_of_the_packed_path() -> None:
    """The repacking is plain PyTorch and runs on any CPU; the kernel that needs it doesn't."""
    codes, state = quantize_4bit(torch.randn(128, 256), quant_type="nf4", compress_statistics=True)
    codes, state = _convert_weight_packed_for_cpu(codes, state)
    llama = models.architecture("Llama-2-7b")
    weights = memory.weight_groups(llama)["linear layers"]
    assert weights == 6_476_005_376
    assert state.absmax.nbytes * weights // (128 * 256) == find("07.6").answer
    assert not state.nested

    as_loaded = [memory.tensor_bytes_in_4bit(layer.weight.numel(), double_quant=True) - layer.weight.numel() // 2
                 for name, layer in llama.named_modules() if isinstance(layer, torch.nn.Linear) and name != "lm_head"]  # fmt: skip
    assert sum(as_loaded) == next(mistake.wrong for mistake in find("07.6").mistakes if mistake.name == "as loaded")
