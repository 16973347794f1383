"""The audit of a loaded model: silent on models that are well loaded in every legitimate way, and right about every planted fault.

A repacked model, as a CPU with avx512_bf16 leaves it after a forward pass, is made on other CPUs by the library's own functions,
so both paths are tested on any machine.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import _convert_weight_packed_for_cpu, _convert_weight_packed_for_cpu_inverse
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from course_utils import clinic, models
from course_utils.clinic import audit_4bit
from tools import record_cpu_paths

SIZES = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2}
GOOD = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_compute_dtype": torch.bfloat16,
    "bnb_4bit_use_double_quant": True,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random models of two layers: plain, with a tied head, with experts, with rows that are no multiple of a block, and a GPT-2."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    made = {
        "plain": LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.2)),
        "tied": LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.2, tie_word_embeddings=True)),
        "experts": MixtralForCausalLM(MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=2)),
        "unaligned": LlamaForCausalLM(LlamaConfig(**SIZES | {"intermediate_size": 96}, initializer_range=0.2)),
        "gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=96, n_positions=64, n_embd=64, n_layer=2, n_head=2)),
    }
    for name, model in made.items():
        model.save_pretrained(root / name)
    return {name: root / name for name in made}


def load(folder: Path, dtype: torch.dtype = torch.bfloat16, device_map: Any = None, **changes: Any) -> PreTrainedModel:
    """Load in 4 bits with GOOD and changes to it; a change to ... leaves the argument out."""
    settings = {key: value for key, value in (GOOD | changes).items() if value is not ...}
    config = BitsAndBytesConfig(**settings)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=dtype, device_map=device_map or {"": "cpu"})


def repack(model: torch.nn.Module) -> torch.nn.Module:
    """Do to each 4-bit layer what its first forward pass does on a CPU with avx512_bf16."""
    for layer in model.modules():
        state = getattr(layer.weight, "quant_state", None) if isinstance(layer, Linear4bit) else None
        if state is not None and not getattr(state, "packing_format_for_cpu", False):
            layer.weight.data, layer.weight.quant_state = _convert_weight_packed_for_cpu(layer.weight.data, state)
    return model


def damage(model: torch.nn.Module) -> torch.nn.Module:
    """Repack and unpack, as saving after a forward pass does there."""
    for layer in repack(model).modules():
        if isinstance(layer, Linear4bit) and getattr(layer.weight, "quant_state", None) is not None:
            layer.weight.data, layer.weight.quant_state = _convert_weight_packed_for_cpu_inverse(
                layer.weight.data, layer.weight.quant_state
            )
    return model


def names(audit: clinic.Audit) -> list[str]:
    return [finding.name for finding in audit.findings]


def fingerprint(model: torch.nn.Module) -> list[Any]:
    """Everything that an audit must leave as it is."""
    kept: list[Any] = [model.training]
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        kept += [name, parameter.data_ptr(), parameter.dtype, tuple(parameter.shape), parameter._version]
        if state is not None:
            kept += [sorted(vars(state)), state.absmax.data_ptr(), state.absmax._version, state.dtype, state.nested]
    return kept


# --- Models that are well loaded ---------------------------------------------------------------------------------------------------


def reloaded(folders: dict[str, Path], tmp_path: Path) -> PreTrainedModel:
    load(folders["plain"]).save_pretrained(tmp_path)
    return AutoModelForCausalLM.from_pretrained(tmp_path, device_map={"": "cpu"})


def generated(folders: dict[str, Path], tmp_path: Path) -> PreTrainedModel:
    """On this CPU's own path, whichever that is."""
    model = load(folders["plain"])
    model.generate(torch.arange(5)[None], max_new_tokens=2, do_sample=False, pad_token_id=0)
    return model


def generated_on_the_plain_path(folders: dict[str, Path], tmp_path: Path) -> PreTrainedModel:
    model = load(folders["plain"])
    models.use_plain_cpu_path(model)
    model.generate(torch.arange(5)[None], max_new_tokens=2, do_sample=False, pad_token_id=0)
    return model


WELL_LOADED: dict[str, Callable[[dict[str, Path], Path], torch.nn.Module]] = {
    **{
        f"{quant_type}, {'double' if double else 'single'}, {str(dtype).removeprefix('torch.')}": (
            lambda folders, _, q=quant_type, d=double, t=dtype: load(
                folders["plain"], t, bnb_4bit_quant_type=q, bnb_4bit_use_double_quant=d, bnb_4bit_compute_dtype=t
            )
        )
        for quant_type, double, dtype in itertools.product(
            ("nf4", "fp4"), (False, True), (torch.float16, torch.bfloat16, torch.float32)
        )
    },
    "float32 with bfloat16 compute": lambda folders, _: load(folders["plain"], torch.float32),
    "tied head": lambda folders, _: load(folders["tied"]),
    "GPT-2, tied, Conv1D": lambda folders, _: load(folders["gpt2"]),
    "storage for FSDP": lambda folders, _: load(folders["plain"], bnb_4bit_quant_storage=torch.bfloat16),
    "a layer skipped by name": lambda folders, _: load(folders["plain"], llm_int8_skip_modules=["lm_head", "q_proj"]),
    "LoRA": lambda folders, _: get_peft_model(load(folders["plain"]), LoraConfig(target_modules=["q_proj", "v_proj"], r=4)),
    "LoRA on all layers": lambda folders, _: get_peft_model(load(folders["plain"]), LoraConfig(target_modules="all-linear", r=4)),
    "LoRA, the head saved with it": lambda folders, _: get_peft_model(
        load(folders["plain"]), LoraConfig(target_modules=["q_proj"], r=4, modules_to_save=["lm_head"])
    ),
    "prepared for training": lambda folders, _: prepare_model_for_kbit_training(
        load(folders["plain"]), use_gradient_checkpointing=False
    ),
    "prepared, with LoRA": lambda folders, _: get_peft_model(
        prepare_model_for_kbit_training(load(folders["plain"]), use_gradient_checkpointing=False),
        LoraConfig(target_modules=["q_proj"], r=4),
    ),
    "reloaded from 4 bits": reloaded,
    "after generate": generated,
    "after generate, plain path": generated_on_the_plain_path,
    "repacked": lambda folders, _: repack(load(folders["plain"])),
    "repacked, reloaded": lambda folders, tmp_path: repack(reloaded(folders, tmp_path)),
    "repacked, storage for FSDP": lambda folders, _: repack(load(folders["plain"], bnb_4bit_quant_storage=torch.bfloat16)),
    "repacked, float32 compute of a float32 model": lambda folders, _: repack(
        load(folders["plain"], torch.float32, bnb_4bit_compute_dtype=torch.float32)
    ),
    "never quantized": lambda folders, _: AutoModelForCausalLM.from_pretrained(folders["plain"]),
}


@pytest.mark.parametrize("how", WELL_LOADED)
def test_nothing_is_found_in_a_model_that_is_well_loaded(how: str, folders: dict[str, Path], tmp_path: Path) -> None:
    model = WELL_LOADED[how](folders, tmp_path)
    before = fingerprint(model)
    audit = audit_4bit(model)
    assert names(audit) == []
    assert "No findings." in str(audit)
    assert fingerprint(model) == before, "an audit changes nothing"


@pytest.mark.parametrize("how", [how for how in WELL_LOADED if how != "never quantized"])
def test_nothing_is_found_beside_the_unquantized_model(how: str, folders: dict[str, Path], tmp_path: Path) -> None:
    model = WELL_LOADED[how](folders, tmp_path)
    folder = {"tied head": "tied", "GPT-2, tied, Conv1D": "gpt2"}.get(how, "plain")
    assert names(audit_4bit(model, like=AutoModelForCausalLM.from_pretrained(folders[folder]))) == []


DEFAULTS = {"bnb_4bit_quant_type": "fp4", "bnb_4bit_compute_dtype": torch.float32, "bnb_4bit_use_double_quant": False}


@pytest.mark.parametrize(
    ("folder", "changes"),
    [("plain", {}), ("tied", {}), ("gpt2", {}), ("plain", DEFAULTS), ("tied", DEFAULTS), ("plain", {"llm_int8_skip_modules": []})],
)
def test_nothing_is_found_where_the_configuration_is_the_one_that_was_meant(folder: str, changes: dict, folders: dict[str, Path]) -> None:
    assert names(audit_4bit(load(folders[folder], **changes), like=BitsAndBytesConfig(**GOOD | changes))) == []


def test_the_summary_says_what_was_loaded(folders: dict[str, Path]) -> None:
    model = load(folders["plain"])
    summary = audit_4bit(model).summary
    assert summary == {
        "linear layers in 4 bits": 14,
        "linear layers not quantized": 1,
        "quant type": "nf4",
        "double quantization": "yes",
        "compute dtype": "bfloat16",
        "storage": "uint8",
        "head": "not quantized",
        "weights": sum(parameter.numel() for parameter in LlamaForCausalLM(LlamaConfig(**SIZES)).parameters()),
        "bytes": summary["bytes"],
    }
    assert audit_4bit(repack(model)).summary | {"bytes": 0} == summary | {"bytes": 0}, "repacked, it is still what was loaded"


# --- Faults, alone and in pairs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """How to plant a fault: another model, other arguments, something done to the model afterwards; and what is to be found."""

    name: str
    folder: str = "plain"
    changes: dict = field(default_factory=dict)
    device_map: Any = None
    action: Callable[[torch.nn.Module], Any] | None = None
    without_like: bool = True  # whether it leaves a trace in the model

    def goes_with(self, other: Fault) -> bool:
        """Whether both can be planted in one model, and neither does away with the other."""
        gone = {"not-4-bit": {"quant-type", "compute-dtype", "double-quantization", "quantized-head", "damaged-scales", "cast-codes",
                              "unaligned-columns", "load-in-4bit-false", "offloaded-layers", "unquantized-layers", "half-quantized"},
                "damaged-scales": {"cast-codes", "unaligned-columns"}}  # fmt: skip  # the library can't repack what doesn't align
        return (
            self.name != other.name
            and "plain" in (self.folder, other.folder)
            and not self.changes.keys() & other.changes.keys()
            and other.name not in gone.get(self.name, ())
            and self.name not in gone.get(other.name, ())
        )


ACCELERATOR = torch.device("cpu")
"""In a device_map, transformers takes "cpu" for offload. A device of the same kind stands for the GPU that this machine may not have."""
HALF_OFFLOADED = {
    "model.embed_tokens": ACCELERATOR, "model.layers.0": ACCELERATOR, "model.layers.1": "cpu", "model.norm": ACCELERATOR,
    "model.rotary_emb": ACCELERATOR, "lm_head": ACCELERATOR,
}  # fmt: skip

FAULTS = [
    Fault("quant-type", changes={"bnb_4bit_quant_type": ..., "bnb_4bit_quant_typ": "nf4"}, without_like=False),
    Fault("compute-dtype", changes={"bnb_4bit_compute_dtype": ..., "bnb_4bit_compute_type": torch.bfloat16}),
    Fault("double-quantization", changes={"bnb_4bit_use_double_quant": ..., "bnb_4bit_use_doube_quant": True}, without_like=False),
    Fault("quantized-head", changes={"llm_int8_skip_modules": ["o_proj_of_another_model"]}),
    Fault("unquantized-layers", changes={"llm_int8_skip_modules": ["lm_head", "q_proj"]}, without_like=False),
    Fault("half-quantized", folder="tied", changes={"llm_int8_skip_modules": ["o_proj_of_another_model"]}),
    Fault("load-in-4bit-false", changes={"load_in_4bit": ...}),
    Fault("offloaded-layers", changes={"llm_int8_enable_fp32_cpu_offload": True}, device_map=HALF_OFFLOADED),
    Fault("experts-not-quantized", folder="experts"),
    Fault("unaligned-columns", folder="unaligned"),
    Fault("damaged-scales", action=damage),
    Fault("cast-codes", changes={"bnb_4bit_quant_storage": torch.float16}, action=lambda model: model.bfloat16()),
    Fault("not-4-bit", action=lambda model: model.dequantize()),
]


PAIRS = [pair for pair in itertools.combinations(FAULTS, 2) if pair[0].goes_with(pair[1])]


def plant(folders: dict[str, Path], *faults: Fault) -> PreTrainedModel:
    folder = next((fault.folder for fault in faults if fault.folder != "plain"), "plain")
    changes = {key: value for fault in faults for key, value in fault.changes.items()}
    device_map = next((fault.device_map for fault in faults if fault.device_map), None)
    model = load(folders[folder], device_map=device_map, **changes)
    for fault in faults:
        if fault.action:
            fault.action(model)
    return model


@pytest.fixture
def misreading_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with AVX-512, whichever this is."""
    monkeypatch.setattr(clinic, "_cpu_misreads_unaligned_rows", lambda: True)


@pytest.mark.usefixtures("misreading_cpu")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_found_and_nothing_else(fault: Fault, folders: dict[str, Path]) -> None:
    model = plant(folders, fault)
    before = fingerprint(model)
    audit = audit_4bit(model, like=BitsAndBytesConfig(**GOOD))
    assert names(audit) == [fault.name]
    assert fingerprint(model) == before
    (finding,) = audit.findings
    assert finding.modules and finding.evidence and finding.price and finding.cure
    for shown in (finding.name, "evidence", "price", "cure"):
        assert shown in str(audit)
    assert names(audit_4bit(model)) == ([fault.name] if fault.without_like else [])


@pytest.mark.parametrize(
    ("settings", "like", "price", "cure"),
    [
        ({"bnb_4bit_compute_dtype": ...}, {}, "read back in 49,152 bytes, in 16 bits 24,576", "bnb_4bit_compute_dtype=torch.bfloat16"),
        ({"bnb_4bit_compute_dtype": ..., "dtype": torch.float16}, None, "in 16 bits 24,576", "bnb_4bit_compute_dtype=torch.float16"),
        ({}, {"bnb_4bit_compute_dtype": torch.float32}, "another rounding", "bnb_4bit_compute_dtype=torch.float32"),
        ({"llm_int8_skip_modules": ["x"], "dtype": torch.float32, "bnb_4bit_compute_dtype": torch.float32}, None,
         "it saves 21,120 bytes against the head in float32", 'Add "lm_head"'),
        ({"load_in_4bit": ...}, None, "as it is", "In the next load: BitsAndBytesConfig(load_in_4bit=True, ...)"),
        ({"llm_int8_skip_modules": ["lm_head", "q_proj"]}, {}, "more than in 4.5 bits", "what is to stay, and the head."),
    ],
)  # fmt: skip
def test_price_and_cure_are_those_of_the_model_at_hand(settings: dict, like: dict | None, price: str, cure: str, folders: dict) -> None:
    """The largest matrix of the model has 64 x 192 weights, and its head 96 x 64: 4 bytes each, or 4.5 bits."""
    audit = audit_4bit(load(folders["plain"], **settings), like=None if like is None else BitsAndBytesConfig(**GOOD | like))
    (finding,) = audit.findings
    assert price in finding.price and cure in finding.cure


def test_the_price_of_damaged_scales_is_that_of_their_order(folders: dict[str, Path]) -> None:
    """A row of 64 weights is one block: its scales can't change places. Double quantization puts them back in order."""
    single = audit_4bit(damage(load(folders["plain"], bnb_4bit_use_double_quant=False))).findings[0]
    assert single.price == "scales of other blocks: the weights are wrong" and "transpose its scales" in single.cure
    nested = audit_4bit(damage(load(folders["plain"]))).findings[0]
    assert "before they were quantized again" in nested.price and "transpose" not in nested.cure
    layer = Linear4bit(64, 64, compute_dtype=torch.bfloat16, quant_type="nf4", compress_statistics=False).to("cpu")
    one_block_in_a_row = audit_4bit(damage(torch.nn.Sequential(layer, torch.nn.ReLU()))).findings[0]
    assert one_block_in_a_row.price == "the scales were rounded to bfloat16, as a save after a forward pass does"


def test_packed_weights_that_were_quantized_once_more_are_found(folders: dict[str, Path], tmp_path: Path) -> None:
    """The folder has lost its configuration, and is loaded with one: transformers takes the packed bytes for weights."""
    load(folders["plain"]).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    del config["quantization_config"]
    file.write_text(json.dumps(config), encoding="utf-8")
    with clinic.kept_log():
        model = load(tmp_path)
    assert names(audit_4bit(model)) == ["quantized-twice"]
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model.train()(torch.tensor([[1, 2, 3]]))  # in training no CPU repacks


@pytest.mark.usefixtures("misreading_cpu")
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0].name}+{pair[1].name}")
def test_two_faults_are_both_found_and_nothing_else(pair: tuple[Fault, Fault], folders: dict[str, Path]) -> None:
    model = plant(folders, *pair)
    assert sorted(names(audit_4bit(model, like=BitsAndBytesConfig(**GOOD)))) == sorted(fault.name for fault in pair)
    assert sorted(names(audit_4bit(model))) == sorted(fault.name for fault in pair if fault.without_like)


# --- What only the unquantized model tells ------------------------------------------------------------------------------------------


def test_other_weights_are_told_from_the_unquantized_model(folders: dict[str, Path]) -> None:
    torch.manual_seed(1)
    other = LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.2))
    assert names(audit_4bit(load(folders["plain"]), like=other)) == ["other-weights"]


def test_a_merged_adapter_is_told_from_the_unquantized_model(folders: dict[str, Path]) -> None:
    with_adapter = get_peft_model(load(folders["plain"]), LoraConfig(target_modules=["q_proj"], r=4, init_lora_weights=False))
    with pytest.warns(UserWarning, match="Merge lora module to 4-bit"):
        merged = with_adapter.merge_and_unload()
    assert names(audit_4bit(merged)) == []
    audit = audit_4bit(merged, like=AutoModelForCausalLM.from_pretrained(folders["plain"]))
    assert names(audit) == ["other-weights"]
    assert all(name.endswith("q_proj") for name in audit.findings[0].modules) and len(audit.findings[0].modules) == 2


@pytest.mark.parametrize("again", [False, True], ids=["", "repacked again"])
def test_damage_is_told_from_the_unquantized_model_even_where_no_trace_is_left(again: bool, folders: dict[str, Path]) -> None:
    """A model that went on after it was saved is repacked, so its form is that of a good one."""
    model = damage(load(folders["plain"], bnb_4bit_use_double_quant=False))
    if again:
        repack(model)
    assert names(audit_4bit(model)) == ([] if again else ["damaged-scales"])
    audit = audit_4bit(model, like=AutoModelForCausalLM.from_pretrained(folders["plain"]))
    assert names(audit) == ["damaged-scales"]


def test_damage_without_double_quantization_is_found_in_a_model_that_was_reloaded(folders: dict[str, Path], tmp_path: Path) -> None:
    damage(load(folders["plain"], bnb_4bit_use_double_quant=False)).save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, device_map={"": "cpu"})
    assert names(audit_4bit(again)) == ["damaged-scales"]


def with_a_layer_of_zeros(folder: Path, to: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.nn.init.zeros_(model.model.layers[0].self_attn.o_proj.weight)
    model.save_pretrained(to)
    return to


@pytest.mark.parametrize("double_quant", [False, True], ids=["", "double"])
def test_a_layer_of_zeros_has_the_scales_that_are_due(double_quant: bool, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = with_a_layer_of_zeros(folders["plain"], tmp_path)
    zeros, others = load(folder, bnb_4bit_use_double_quant=double_quant), load(folders["plain"], bnb_4bit_use_double_quant=double_quant)
    assert names(audit_4bit(zeros, like=AutoModelForCausalLM.from_pretrained(folder))) == []
    (finding,) = audit_4bit(others, like=AutoModelForCausalLM.from_pretrained(folder)).findings
    assert finding.name == "other-weights" and finding.modules == ("model.layers.0.self_attn.o_proj",)
    assert finding.evidence.endswith("by up to 100%")


def test_rounded_scales_of_a_float32_model_leave_no_trace(folders: dict[str, Path]) -> None:
    """The limit of the audit: double quantization of a float32 model, rounded by a save, has the form of a fresh one."""
    model = damage(load(folders["plain"], torch.float32))
    assert names(audit_4bit(model)) == []


# --- Notes, and bad input -----------------------------------------------------------------------------------------------------------


def notes(audit: clinic.Audit) -> list[str]:
    return [note.name for note in audit.notes]


def test_notes_say_what_is_worth_knowing(folders: dict[str, Path]) -> None:
    assert notes(audit_4bit(load(folders["plain"]))) == ["counts"]
    assert notes(audit_4bit(repack(load(folders["plain"])))) == ["repacked", "counts"]
    defaults = load(folders["plain"], torch.float32, **dict.fromkeys(list(GOOD)[1:], ...))
    assert notes(audit_4bit(defaults)) == ["counts", "defaults"]
    assert notes(audit_4bit(defaults, like=BitsAndBytesConfig(load_in_4bit=True))) == ["counts"]


NAMED_RIGHTLY = ["o_proj", "model.layers.0", r"model\.layers\.0\..*", "model.layers.[01].mlp.*", "embed_tokens", "layers.0.mlp.up_proj"]


@pytest.mark.parametrize("entry", NAMED_RIGHTLY)
def test_a_name_that_transformers_finds_is_not_noted(entry: str, folders: dict[str, Path]) -> None:
    audit = audit_4bit(load(folders["plain"], llm_int8_skip_modules=["lm_head", entry]))
    assert (audit.summary["linear layers in 4 bits"] == 14) == (entry == "embed_tokens")
    assert notes(audit) == ["counts"]


@pytest.mark.parametrize("entry", ["o_proj_of_another_model", "o_pro", "mlp.gate_pro", "layers.0"])
def test_a_name_that_skips_nothing_is_noted(entry: str, folders: dict[str, Path]) -> None:
    """Transformers takes an entry for the beginning of a layer's name, up to a dot, or for its end: ``layers.0`` is neither."""
    audit = audit_4bit(load(folders["plain"], llm_int8_skip_modules=["lm_head", entry]))
    assert audit.summary["linear layers in 4 bits"] == 14, "nothing but the head was skipped"
    assert notes(audit) == ["counts", "skip"]
    assert f"names {entry}: " in audit.notes[1].text


def test_counts_in_the_note_are_true(folders: dict[str, Path]) -> None:
    model = load(folders["plain"])
    (note,) = audit_4bit(model).notes
    state = model.model.layers[0].mlp.up_proj.weight.quant_state
    hidden = [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    assert "of 119,104 weights" in note.text.replace(f"{model.num_parameters():,}", "119,104")
    left_out = int(note.text.rpartition("leaves out ")[2].split(" ")[0].replace(",", ""))
    assert left_out > sum(tensor.nbytes for tensor in hidden)


def test_unaligned_columns_are_found_only_where_the_cpu_misreads_them(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clinic, "_cpu_misreads_unaligned_rows", lambda: False)
    assert names(audit_4bit(load(folders["unaligned"]))) == []


def test_the_cpu_is_asked_and_not_its_name() -> None:
    """Whatever this CPU does with two rows of 80 it does with other rows that don't align."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.randn(8, 96, generator=torch.Generator().manual_seed(0))
    packed, state = quantize_4bit(weight, quant_type="fp4")
    by_rows = dequantize_4bit(packed, state)
    state.shape = torch.Size([8 * 96])
    misread = not torch.equal(by_rows.flatten(), dequantize_4bit(packed, state).flatten())
    assert clinic._cpu_misreads_unaligned_rows() == misread


@pytest.mark.parametrize(
    ("model", "like", "says"),
    [
        ("models/abacus", None, "model is a str; give the loaded model itself"),
        (LlamaForCausalLM, None, "model is a class, LlamaForCausalLM; give the loaded model itself"),
        (torch.nn.Linear(2, 2), {"load_in_4bit": True}, "like is a dict; give the BitsAndBytesConfig"),
        (torch.nn.Linear(2, 2), BitsAndBytesConfig, "like is a class, BitsAndBytesConfig; give the BitsAndBytesConfig"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(model: Any, like: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        audit_4bit(model, like=like)


def test_a_module_that_transformers_does_not_know_is_examined_too() -> None:
    layer = Linear4bit(64, 64, compute_dtype=torch.bfloat16, quant_type="nf4", compress_statistics=False).to("cpu")
    audit = audit_4bit(torch.nn.Sequential(layer, torch.nn.ReLU()))
    assert names(audit) == [] and audit.summary["linear layers in 4 bits"] == 1
    assert names(audit_4bit(torch.nn.Sequential(damage(torch.nn.Sequential(layer)), torch.nn.ReLU()))) == ["damaged-scales"]


# --- The record of both kinds of CPU ------------------------------------------------------------------------------------------------

RECORDED = json.loads(record_cpu_paths.RECORD.read_text(encoding="utf-8"))
DISTANCES = ("logits_off", "logits_off_after_saving", "logits_off_in_the_file", "logits_off_after_dequantize")


@pytest.mark.parametrize("double_quant", [False, True], ids=["", "double"])
@pytest.mark.parametrize("path", ["packed path", "plain path"])
def test_what_was_recorded_happens_here_too(path: str, double_quant: bool) -> None:
    """On this CPU's own path, and on the other as far as it can be had: one of the two is emulated on any machine without avx512_bf16."""
    told = RECORDED["saving"][path]["models"][int(double_quant)]
    seen = record_cpu_paths.record_saving(path == "packed path", double_quant)
    answers = {key: value for key, value in told.items() if not key.startswith("logits") and key != "answer_after_dequantize"}
    assert {key: seen[key] for key in answers} == answers
    for key in DISTANCES:
        # the packed path's own rounding is under 2 % of the logits, and is missing where it is emulated
        assert seen[key] == pytest.approx(told[key], abs=0.02)


def test_the_record_says_what_the_lesson_says_of_it() -> None:
    packed = {run["double_quantization"]: run for run in RECORDED["saving"]["packed path"]["models"]}
    plain = RECORDED["saving"]["plain path"]["models"]
    assert packed[False]["logits_off_in_the_file"] > 0.5 > 0.02 > packed[True]["logits_off_in_the_file"]
    assert all(run["logits_off_after_dequantize"] > 0.5 for run in packed.values())
    assert all(run[key] == 0 for run in plain for key in DISTANCES)
    assert not any(told["emulated"] for told in RECORDED["saving"].values()), "recorded on a CPU that has both paths"


@pytest.mark.parametrize("columns", record_cpu_paths.COLUMNS)
def test_rows_are_read_back_as_one_of_the_two_kinds_of_cpu_does(columns: int) -> None:
    recorded = [next(m for m in told["matrices"] if m["columns"] == columns) for told in RECORDED["reading"].values()]
    assert record_cpu_paths.record_reading(columns, by_the_library=True) in recorded
    assert record_cpu_paths.record_reading(columns, by_the_library=False) == recorded[1]
    assert (recorded[0]["wrong"] > 0) == (columns % 16 == 0 and columns % 64 != 0)


def test_a_record_that_is_broken_off_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cpu_paths.json"
    record_cpu_paths.write({"date": "first"}, file)

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(record_cpu_paths.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        record_cpu_paths.write({"date": "second"}, file)
    assert json.loads(file.read_text(encoding="utf-8")) == {"date": "first"}
