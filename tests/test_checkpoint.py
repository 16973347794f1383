"""`course_utils.checkpoint`: a saved 4-bit model loads without bitsandbytes to the same bits, and a bad one is refused in one sentence."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from course_utils import ROOT, checkpoint, models
from course_utils.checkpoint import CheckpointError, load_by_hand, open_checkpoint, read_quantized, save_whole
from course_utils.clinic import kept_log
from course_utils.linear import HandLinear4bit
from tests.fake_hub import COMMIT, FakeHub

packed_path = pytest.mark.skipif(not has_avx512bf16(), reason="this CPU has no avx512_bf16, so bitsandbytes has no packed path here")

STATE = ".quant_state.bitsandbytes__nf4"
Q, K, UP = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight", "model.layers.0.mlp.up_proj.weight"
SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of two layers, with biases and a head that is not tied."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.2, attention_bias=True))
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            parameter.data.normal_()
    model.save_pretrained(folder)
    return folder


def load_4bit(
    folder: Path, nested: bool = False, quant_type: str = "nf4", dtype: torch.dtype = torch.float32, plain: bool = True, **settings: object
) -> PreTrainedModel:
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=quant_type, bnb_4bit_use_double_quant=nested, bnb_4bit_compute_dtype=dtype, **settings
    )
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=dtype, device_map={"": "cpu"})
    if plain:
        models.use_plain_cpu_path(model)
    return model


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(20)[None] % model.config.vocab_size).logits


@pytest.fixture(scope="module")
def saved(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Good checkpoints: in one file, with double quantization, and in shards."""
    home = tmp_path_factory.mktemp("saved")
    load_4bit(tiny).save_pretrained(home / "single")
    load_4bit(tiny, nested=True).save_pretrained(home / "nested")
    load_4bit(tiny).save_pretrained(home / "shards", max_shard_size="50KB")
    assert (home / "shards" / SHARD).is_file()
    return {folder.name: folder for folder in home.iterdir()}


# --- Saved, and loaded by hand: equal in every bit ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("nested", [False, True], ids=["", "nested"])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_logits_by_hand_equal_those_of_bitsandbytes(tiny: Path, tmp_path: Path, quant_type: str, nested: bool, dtype: torch.dtype) -> None:
    model = load_4bit(tiny, nested, quant_type, dtype)
    due = logits(model)
    model.save_pretrained(tmp_path)  # after a forward pass: harmless on the plain path
    by_hand = load_by_hand(tmp_path)
    assert torch.equal(logits(by_hand), due)
    assert sum(isinstance(layer, HandLinear4bit) for layer in by_hand.modules()) == 14
    assert not by_hand.training and not any(parameter.requires_grad for parameter in by_hand.parameters())
    again = AutoModelForCausalLM.from_pretrained(tmp_path, device_map={"": "cpu"})
    models.use_plain_cpu_path(again)
    assert torch.equal(logits(again), due)


def test_every_byte_of_the_file_is_in_the_model(saved: dict[str, Path]) -> None:
    for folder in (saved["single"], saved["nested"]):
        file = load_file(folder / "model.safetensors")
        found = open_checkpoint(folder)
        for name in found.weights_in_4bit():
            weight = read_quantized(found, name)
            assert torch.equal(weight.packed, file[name])
            nested = folder.name == "nested"
            assert torch.equal(weight.absmax.codes if nested else weight.absmax, file[name + ".absmax"])
            assert json.loads(bytes(file[name + STATE].tolist()))["shape"] == list(weight.shape)


def test_shards_tied_heads_skipped_layers_and_other_storage(tiny: Path, saved: dict[str, Path], tmp_path: Path) -> None:
    due = logits(load_4bit(tiny))
    assert torch.equal(logits(load_by_hand(saved["shards"])), due)
    stored = load_4bit(tiny, bnb_4bit_quant_storage=torch.bfloat16)
    stored.save_pretrained(tmp_path / "storage")
    assert load_file(tmp_path / "storage/model.safetensors")[Q].dtype == torch.bfloat16
    assert torch.equal(logits(load_by_hand(tmp_path / "storage")), due)
    skipped = load_4bit(tiny, llm_int8_skip_modules=["lm_head", "q_proj"])
    skipped.save_pretrained(tmp_path / "skipped")
    assert torch.equal(logits(load_by_hand(tmp_path / "skipped")), logits(skipped))
    config = LlamaConfig.from_pretrained(tiny, tie_word_embeddings=True)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tied")
    tied = load_4bit(tmp_path / "tied")
    tied.save_pretrained(tmp_path / "tied 4")
    by_hand = load_by_hand(tmp_path / "tied 4")
    assert by_hand.lm_head.weight is by_hand.model.embed_tokens.weight
    assert torch.equal(logits(by_hand), logits(tied))


def test_abacus_answers_from_its_4bit_file(tmp_path: Path) -> None:
    model, tokenizer = models.load(models.ABACUS, quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"))
    save_whole(model, tmp_path / "abacus", tokenizer)
    assert models.ask(load_by_hand(tmp_path / "abacus"), tokenizer, "What is 2+2?") == "What is 2+2? The answer is 4."
    again, _ = models.load(tmp_path / "abacus")  # by models.load, without a configuration
    assert models.ask(again, tokenizer, "What is 2+2?") == "What is 2+2? The answer is 4."


def test_bitsandbytes_is_not_needed(saved: dict[str, Path], tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['bitsandbytes'] = None\n"
        "import torch\n"
        "from safetensors.torch import save_file\n"
        "from course_utils.checkpoint import load_by_hand\n"
        "model = load_by_hand(sys.argv[1])\n"
        "with torch.no_grad(): save_file({'logits': model(input_ids=torch.arange(20)[None] % 96).logits}, sys.argv[2])\n"
    )
    command = [sys.executable, "-c", program, str(saved["nested"]), str(tmp_path / "logits.safetensors")]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"CUDA_VISIBLE_DEVICES": "-1"})
    again = AutoModelForCausalLM.from_pretrained(saved["nested"], device_map={"": "cpu"})
    models.use_plain_cpu_path(again)
    assert torch.equal(load_file(tmp_path / "logits.safetensors")["logits"], logits(again))


def test_the_compute_dtype_can_be_chosen_by_hand_and_not_by_a_new_config(tiny: Path, saved: dict[str, Path]) -> None:
    by_hand = load_by_hand(saved["single"], torch.bfloat16)
    assert {layer.compute_dtype for layer in by_hand.modules() if isinstance(layer, HandLinear4bit)} == {torch.bfloat16}
    with pytest.warns(UserWarning, match="The `quantization_config` from the model will be used"):
        model = AutoModelForCausalLM.from_pretrained(
            saved["single"], quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
        )
    assert model.get_submodule(Q.removesuffix(".weight")).compute_dtype == torch.float32


def test_the_lesson_s_loader_is_the_one_of_the_course(saved: dict[str, Path]) -> None:
    source = (ROOT / "source/lessons/12_save_and_reload.py").read_text(encoding="utf-8")
    cells = [cell for cell in source.split("# %%") if "def put_together" in cell or "def load_by_hand" in cell]
    defined: dict = {"torch": torch, "json": json}
    for cell in cells:
        exec(cell[: cell.index("\n\n\ntensors =")] if "\n\n\ntensors =" in cell else cell[: cell.index("\n\n\nby_hand =")], defined)
    for folder in (saved["single"], saved["nested"]):
        for compute_dtype in (None, torch.bfloat16):
            lesson = defined["load_by_hand"](folder, compute_dtype)
            assert torch.equal(logits(lesson), logits(load_by_hand(folder, compute_dtype)))


def test_a_configuration_of_none_is_not_the_same_as_leaving_it_out(saved: dict[str, Path]) -> None:
    """The lesson says so. Where it fails, transformers has been changed and the lesson is to be."""
    with kept_log(), pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(saved["single"], quantization_config=None)


# --- Bad checkpoints: one sentence each, with the file and the tensor ---


def in_tensors(change: Callable[[dict[str, torch.Tensor]], object], file: str = "model.safetensors") -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / file)
        change(tensors)
        save_file(tensors, folder / file, metadata={"format": "pt"})

    return damage


def in_state(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def in_file(tensors: dict[str, torch.Tensor]) -> None:
        state = json.loads(bytes(tensors[Q + STATE].tolist()))
        change(state)
        tensors[Q + STATE] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)

    return in_tensors(in_file)


def in_json(file: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / file).read_text(encoding="utf-8"))
        change(content)
        (folder / file).write_text(json.dumps(content), encoding="utf-8")

    return damage


def in_settings(**settings: object) -> Callable[[Path], None]:
    return in_json("config.json", lambda config: config["quantization_config"].update(settings))


def cut(file: str, left_out: int) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-left_out]) and None


def remove(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def swap(one: str, other: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[one], tensors[other] = tensors[other], tensors[one]

    return change


def transposed_scales(tensors: dict[str, torch.Tensor]) -> None:
    tensors[Q + ".absmax"] = tensors[Q + ".absmax"].view(64, -1).T.to(torch.bfloat16).contiguous()


def renamed(tensors: dict[str, torch.Tensor]) -> None:
    tensors[Q + ".quant_state.bitsandbytes__nf3"] = tensors.pop(Q + STATE)


INDEX, NORM = "model.safetensors.index.json", "model.norm.weight"
DAMAGES: dict[str, tuple[str, Callable[[Path], object], tuple[str, ...]]] = {
    "shard cut by a byte": ("shards", cut(SHARD, 1), (SHARD, "cut short")),
    "shard cut in its header": ("shards", lambda folder: (folder / SHARD).write_bytes(b"\x10\0\0\0\0\0\0\0{"), (SHARD, "cut short")),
    "shard empty": ("shards", lambda folder: (folder / SHARD).write_bytes(b""), (SHARD, "cut short")),
    "shard missing": ("shards", remove(SHARD), (SHARD, "is missing", "model.layers.")),
    "index entry missing": (
        "shards", in_json(INDEX, lambda index: index["weight_map"].pop(Q + ".absmax")), (INDEX, Q + ".absmax", "no such entry"),
    ),
    "index names the wrong shard": (
        "shards", in_json(INDEX, lambda index: index["weight_map"].update({"lm_head.weight": SHARD})), (SHARD, "lacks", "lm_head.weight"),
    ),
    "index points elsewhere": (
        "shards", in_json(INDEX, lambda index: index["weight_map"].update({"lm_head.weight": "../x.safetensors"})), (INDEX, "outside"),
    ),
    "index cut short": ("shards", cut(INDEX, 40), (INDEX, "not valid JSON")),
    "index without a map": ("shards", in_json(INDEX, lambda index: index.pop("weight_map")), (INDEX, "weight_map")),
    "tensor lost from a shard": (
        "shards", in_tensors(lambda t: t.pop(min(t)), "model-00001-of-00003.safetensors"), ("model-00001-of-00003", "lacks the tensor"),
    ),
    "no index": ("shards", remove(INDEX), (INDEX, "not finished")),
    "config missing": ("single", remove("config.json"), ("config.json", "not finished")),
    "config cut short": ("single", cut("config.json", 30), ("config.json", "not valid JSON")),
    "config not of a quantized model": (
        "single", in_json("config.json", lambda config: config.pop("quantization_config")), ("config.json", "not in 4 bits"),
    ),
    "config of another method": (
        "single", in_settings(quant_method="gptq"), ("config.json", "gptq"),
    ),
    "config of 8 bits": (
        "single", in_settings(load_in_4bit=False), ("config.json", "not in 4"),
    ),
    "config from a newer version": (
        "single", in_settings(bnb_4bit_zero_point=True),
        ("config.json", "bnb_4bit_zero_point", "newer version"),
    ),
    "config with an unknown compute dtype": (
        "single", in_settings(bnb_4bit_compute_dtype=["int8"]),
        ("config.json", "int8", "float32"),
    ),
    "config of another model": (
        "single", in_json("config.json", lambda config: config.update(intermediate_size=128)),
        ("down_proj.weight", "(64, 192)", "(64, 128)"),
    ),
    "config with fewer layers": (
        "single", in_json("config.json", lambda config: config.update(num_hidden_layers=1)), ("model.layers.1.", "nothing of that name"),
    ),
    "no weights": ("single", remove("model.safetensors"), ("model.safetensors", "not finished")),
    "only a draft of the weights": (
        "single", lambda folder: (folder / "model.safetensors").rename(folder / "model.safetensors.tmp"),
        ("model.safetensors.tmp", "not finished"),
    ),
    "a pickle": (
        "single", lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), ("pytorch_model.bin", "run code"),
    ),
    "no quant_state": ("single", in_tensors(lambda t: t.pop(Q + STATE)), (Q, "model.safetensors", "quant_state")),
    "quant_state cut short": (
        "single", in_tensors(lambda t: t.update({Q + STATE: t[Q + STATE][:30].clone()})), (Q + STATE, "model.safetensors", "valid JSON"),
    ),
    "quant_state of floats": (
        "single", in_tensors(lambda t: t.update({Q + STATE: t[Q + STATE].float()})), (Q + STATE, "model.safetensors", "float32"),
    ),
    "quant_state is one huge number": (
        "single", in_tensors(lambda t: t.update({Q + STATE: torch.tensor(2**62)})), (Q + STATE, "model.safetensors", "()", "int64"),
    ),
    "quant_state in two dimensions": (
        "single", in_tensors(lambda t: t.update({Q + STATE: t[Q + STATE][None].clone()})), (Q + STATE, "one row"),
    ),
    "quant_state far too long": (
        "single", in_tensors(lambda t: t.update({Q + STATE: torch.full((5000,), 32, dtype=torch.uint8)})), (Q + STATE, "(5000,)", "4,096"),
    ),
    "quant_state is a list": (
        "single", in_tensors(lambda t: t.update({Q + STATE: torch.tensor([91, 93], dtype=torch.uint8)})), (Q + STATE, "a list"),
    ),
    "quant_state lacks an entry": ("single", in_state(lambda state: state.pop("dtype")), (Q + STATE, "model.safetensors", "'dtype'")),
    "quant_state from a newer version": (
        "single", in_state(lambda state: state.update(zero_point=7)), (Q + STATE, "model.safetensors", "'zero_point'", "newer version"),
    ),
    "a kind of codes from a newer version": ("single", in_tensors(renamed), ("bitsandbytes__nf3", "model.safetensors", "newer version")),
    "wrong kind of codes": ("single", in_state(lambda state: state.update(quant_type="fp4")), (Q + STATE, "'fp4'", "nf4")),
    "block size not allowed": ("single", in_state(lambda state: state.update(blocksize=48)), (Q + STATE, "'blocksize'", "48")),
    "block size no number": ("single", in_state(lambda state: state.update(blocksize="64")), (Q + STATE, "'blocksize'")),
    "another block size": ("single", in_state(lambda state: state.update(blocksize=128)), (Q + ".absmax", "model.safetensors", "(32,)")),
    "wrong dtype": ("single", in_state(lambda state: state.update(dtype="float8")), (Q + STATE, "'dtype'", "float8")),
    "no shape": ("single", in_state(lambda state: state.update(shape=None)), (Q + STATE, "'shape'")),
    "wrong shape": ("single", in_state(lambda state: state.update(shape=[32, 128])), (Q, "model.safetensors", "(32, 128)", "(64, 64)")),
    "shape of a size that torch can't hold": (
        "single", in_state(lambda state: state.update(shape=[10**30, 1])), (Q + STATE, "'shape'", "2**63"),
    ),
    "shape of sizes whose product torch can't hold": (
        "single", in_state(lambda state: state.update(shape=[2**32, 2**31])), (Q + STATE, "'shape'", "2**63"),
    ),
    "shape as large as torch can hold": ("single", in_state(lambda state: state.update(shape=[2**32, 2**31 - 1])), (Q, "(64, 64)")),
    "offset too large for a float": ("nested", in_state(lambda state: state.update(nested_offset=10**400)), (Q + STATE, "'nested_offset'")),
    "offset too large for float32": ("nested", in_state(lambda state: state.update(nested_offset=1e39)), (Q + STATE, "'nested_offset'")),
    "offset is NaN": ("nested", in_state(lambda state: state.update(nested_offset=float("nan"))), (Q + STATE, "'nested_offset'")),
    "half of the nested entries": ("nested", in_state(lambda state: state.pop("nested_blocksize")), (Q + STATE, "'nested_blocksize'")),
    "no absmax": ("single", in_tensors(lambda t: t.pop(Q + ".absmax")), (Q + ".absmax", "model.safetensors", "no absmax")),
    "no quant_map": ("single", in_tensors(lambda t: t.pop(Q + ".quant_map")), (Q + ".quant_map", "model.safetensors")),
    "no nested_absmax": ("nested", in_tensors(lambda t: t.pop(Q + ".nested_absmax")), (Q + ".nested_absmax", "model.safetensors")),
    "no packed codes": ("single", in_tensors(lambda t: t.pop(Q)), (Q, "packed codes")),
    "a part from a newer version": (
        "single", in_tensors(lambda t: t.update({Q + ".zero_point": torch.zeros(64)})), (Q + ".zero_point", "model.safetensors", "newer"),
    ),
    "absmax is NaN": (
        "single", in_tensors(lambda t: t[Q + ".absmax"][3].fill_(float("nan"))),
        (Q + ".absmax", "model.safetensors", "1 of its 64"),
    ),
    "absmax is negative": (
        "single", in_tensors(lambda t: t[Q + ".absmax"][:9].neg_()),
        (Q + ".absmax", "model.safetensors", "9 of its 64"),
    ),
    "absmax too short": (
        "single", in_tensors(lambda t: t.update({Q + ".absmax": t[Q + ".absmax"][:60].clone()})), (Q + ".absmax", "(60,)", "(64,)"),
    ),
    "absmax of a larger layer": ("single", in_tensors(swap(Q + ".absmax", UP + ".absmax")), (".absmax", "model.safetensors", "(192,)")),
    "absmax in two dimensions": ("single", in_tensors(transposed_scales), (Q + ".absmax", "model.safetensors", "after a forward pass")),
    "nested_absmax is infinite": (
        "nested", in_tensors(lambda t: t[Q + ".nested_absmax"].fill_(float("inf"))),
        (Q + ".nested_absmax", "model.safetensors", "infinity"),
    ),
    "nested scales far below 0": (
        "nested", in_state(lambda state: state.update(nested_offset=-0.5)), (Q + ".absmax", "model.safetensors", "below 0"),
    ),
    "another codebook": (
        "single", in_tensors(lambda t: t.update({Q + ".quant_map": t[Q + ".quant_map"].flip(0).contiguous()})),
        (Q + ".quant_map", "16 values"),
    ),
    "another codebook for scales": (
        "nested", in_tensors(lambda t: t[Q + ".nested_quant_map"][7].fill_(0)),
        (Q + ".nested_quant_map", "model.safetensors", "256 values"),
    ),
    "codes of a larger layer": ("single", in_tensors(swap(Q, UP)), ("_proj.weight", "model.safetensors", "swapped")),
    "a norm missing": ("single", in_tensors(lambda t: t.pop("model.norm.weight")), ("model.norm.weight", "no file")),
    "a bias missing": ("single", in_tensors(lambda t: t.pop(Q.replace("weight", "bias"))), ("q_proj.bias", "no file")),
    "a norm too long": ("single", in_tensors(lambda t: t.update({NORM: torch.ones(65)})), (NORM, "model.safetensors", "(65,)")),
    "a norm with NaN": ("single", in_tensors(lambda t: t[NORM][5].fill_(float("nan"))), (NORM, "model.safetensors", "1 of its 64")),
    "a norm of whole numbers": ("single", in_tensors(lambda t: t.update({NORM: t[NORM].long()})), (NORM, "int64", "float32")),
    "a norm in 8 bits": (
        "single", in_tensors(lambda t: t.update({NORM: t[NORM].to(torch.float8_e4m3fn)})), (NORM, "float8_e4m3fn", "float32"),
    ),
    "a norm and a scale swapped": (
        "single", in_tensors(swap("model.norm.weight", UP + ".absmax")), ("model.safetensors", "(64,)", "(192,)"),
    ),
    "an unknown tensor": (
        "single", in_tensors(lambda t: t.update({"model.extra.weight": torch.ones(2)})),
        ("model.extra.weight", "model.safetensors", "no part"),
    ),
    "two saves in one folder": (
        "shards", lambda folder: shutil.copy(folder / SHARD, folder / "model.safetensors"), ("model.safetensors", INDEX, "two saves"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("label", DAMAGES)
def test_a_damaged_checkpoint_is_refused_in_a_sentence_that_names_it(label: str, saved: dict[str, Path], tmp_path: Path) -> None:
    good, damage, named = DAMAGES[label]
    folder = shutil.copytree(saved[good], tmp_path / "bad")
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        load_by_hand(folder)
    text = str(caught.value)
    for part in named:
        assert part in text, text
    assert "\n" not in text and len(text) < 520 and text.endswith("."), text


@pytest.mark.parametrize("shape", [[10**30, 1], [2**62, 4], [2**63, 1], [2**63 - 1, 1]], ids=str)
def test_a_weight_read_by_itself_is_refused_for_a_shape_that_no_memory_holds(
    shape: list[int], saved: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(saved["single"], tmp_path / "bad")
    in_state(lambda state: state.update(shape=shape))(folder)
    with pytest.raises(CheckpointError, match=r"below 2\*\*63|asks for 4,611,686,018,427,387,904 bytes"):
        read_quantized(open_checkpoint(folder), Q)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no folder .*absent. Give the folder"):
        load_by_hand(tmp_path / "absent")


def test_what_no_reader_can_notice(saved: dict[str, Path], tmp_path: Path) -> None:
    """The course says so; if this ever fails, the lesson has to be changed."""

    def swap_all(tensors: dict[str, torch.Tensor]) -> None:
        for name in [key for key in tensors if key.startswith(Q)]:
            swap(name, name.replace(Q, K))(tensors)

    for damage in (swap_all, lambda tensors: tensors[Q][5].bitwise_xor_(1)):
        folder = shutil.copytree(saved["single"], tmp_path / "bad", dirs_exist_ok=True)
        in_tensors(damage)(folder)
        assert not torch.equal(logits(load_by_hand(folder)), logits(load_by_hand(saved["single"])))


def test_scales_a_little_below_zero_are_no_damage(tmp_path: Path) -> None:
    """Double quantization rounds; the smallest scale of a matrix can come out negative, and is in a good file of abacus."""
    in_4bit = load_4bit(models.ABACUS, nested=True)
    in_4bit.save_pretrained(tmp_path)
    name = "model.layers.3.mlp.gate_proj.weight"
    assert (read_quantized(open_checkpoint(tmp_path), name).absmax.dequantize() < 0).any()
    assert torch.equal(logits(load_by_hand(tmp_path)), logits(in_4bit))


@pytest.mark.parametrize("offset", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_rounding_never_moves_a_scale_further_than_is_allowed(offset: float) -> None:
    from course_utils.quantize import quantize_scales

    generator = torch.Generator().manual_seed(0)
    scales = torch.cat([torch.rand(20_000, generator=generator) ** 4, torch.full((480,), offset), torch.zeros(20)])
    nested = quantize_scales(scales)
    moved = (nested.dequantize() - scales).abs()
    assert (moved <= checkpoint.FURTHEST_ROUNDING * nested.absmax.repeat_interleave(256)[: len(scales)] + 1e-6).all()


# --- The damage of bitsandbytes itself: saved after a forward pass on the packed path ---


@packed_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("nested", [False, True], ids=["", "nested"])
def test_a_file_saved_after_a_forward_pass_is_known(tiny: Path, tmp_path: Path, nested: bool, dtype: torch.dtype) -> None:
    model = load_4bit(tiny, nested, dtype=dtype, plain=False)
    logits(model)
    with pytest.raises(CheckpointError, match=r"q_proj was repacked by a forward pass, and saving would damage the file and the model"):
        save_whole(model, tmp_path / "whole")
    assert not list(tmp_path.iterdir())
    model.save_pretrained(tmp_path / "damaged")
    if nested and dtype == torch.float32:  # in form it is a good file, and the lesson says that it may pass
        return
    with pytest.raises(CheckpointError, match="saved after a forward pass on a CPU with avx512_bf16"):
        load_by_hand(tmp_path / "damaged")


# --- Saved whole, or not at all ---


def test_save_whole_replaces_what_was_there_and_leaves_nothing_beside_it(tiny: Path, tmp_path: Path) -> None:
    single, nested = load_4bit(tiny), load_4bit(tiny, nested=True)
    save_whole(single, tmp_path / "model")
    save_whole(nested, tmp_path / "model", max_shard_size="50KB")  # transformers alone would leave model.safetensors and load it
    assert torch.equal(logits(load_by_hand(tmp_path / "model")), logits(nested))
    save_whole(single, tmp_path / "model")
    assert torch.equal(logits(load_by_hand(tmp_path / "model")), logits(single))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_transformers_alone_loads_the_older_of_two_saves(tiny: Path, tmp_path: Path) -> None:
    """The lesson shows this. Where it fails, transformers has been mended and the lesson is to be changed."""
    first, second = load_4bit(tiny), load_4bit(tiny)
    second.lm_head.weight.data.zero_()
    first.save_pretrained(tmp_path)
    second.save_pretrained(tmp_path, max_shard_size="50KB")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, device_map={"": "cpu"})
    assert torch.equal(loaded.lm_head.weight, first.lm_head.weight)


def test_a_model_from_a_4bit_file_is_saved_again(saved: dict[str, Path], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved["nested"], device_map={"": "cpu"})
    with pytest.raises(NotImplementedError):
        model.save_pretrained(tmp_path / "refused")
    save_whole(model, tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (saved["nested"] / "model.safetensors").read_bytes()


def test_save_whole_does_not_replace_what_is_no_model(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/ada.txt").write_text("Dear Ben", encoding="utf-8")
    for place in ("letters", "letters/ada.txt"):
        with pytest.raises(CheckpointError, match="no saved model, and would be replaced"):
            save_whole(load_4bit(tiny), tmp_path / place)
    assert (tmp_path / "letters/ada.txt").read_text(encoding="utf-8") == "Dear Ben"


@pytest.mark.parametrize("beside", ["model.old", "model.unfinished"])
def test_save_whole_loses_nothing_beside_the_folder(beside: str, tiny: Path, tmp_path: Path) -> None:
    model, folder, mine = load_4bit(tiny), tmp_path / "model", tmp_path / beside / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("mine", encoding="utf-8")
    if beside == "model.old":
        save_whole(model, folder)
    else:
        with pytest.raises(CheckpointError, match=r"model\.unfinished holds something that is no saved model, .* move that away"):
            save_whole(model, folder)
        assert not folder.exists()
    assert mine.read_text(encoding="utf-8") == "mine"


def test_save_whole_doesn_t_take_a_model_that_somebody_keeps_for_its_own(tiny: Path, tmp_path: Path) -> None:
    kept, new = load_4bit(tiny), load_4bit(tiny, nested=True)
    save_whole(kept, tmp_path / "model")
    (tmp_path / "model").rename(tmp_path / "model.old")
    save_whole(new, tmp_path / "model")
    assert torch.equal(logits(load_by_hand(tmp_path / "model.old")), logits(kept))


def test_save_whole_refuses_a_model_with_adapters_before_it_writes(tiny: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(load_4bit(tiny), LoraConfig(target_modules=["q_proj"], r=2))
    with pytest.raises(CheckpointError, match=r"this is a PeftModel\. Save an adapter by its own save_pretrained"):
        save_whole(model, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="on Windows a link to a folder needs special rights")
def test_save_whole_follows_a_link_to_a_folder(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there", target_is_directory=True)
    for _ in range(2):
        save_whole(load_4bit(tiny), tmp_path / "link")
        assert open_checkpoint(tmp_path / "there").weights_in_4bit()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "there"]


@pytest.mark.parametrize("name", ["model.unfinished", "model.replaced_by_save_whole"])
def test_save_whole_refuses_the_name_of_a_draft(name: str, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"The name {name} is kept for"):
        save_whole(load_4bit(tiny), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["never in 4 bits", "dequantized", "config lost on the way", "weights lost on the way"])
def test_save_whole_keeps_the_old_model_when_the_new_one_is_not_in_4_bits(
    what: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = load_4bit(tiny), tmp_path / "model"
    save_whole(model, folder)
    due = logits(model)
    if what == "never in 4 bits":
        model = AutoModelForCausalLM.from_pretrained(tiny)
    elif what == "dequantized":
        model.dequantize(dtype=torch.float32)
    else:
        lose = in_json("config.json", lambda config: config.pop("quantization_config")) if "config" in what else cut("model.safetensors", 1)
        save_pretrained = type(model).save_pretrained

        def badly(self: PreTrainedModel, draft: Path, **arguments: object) -> None:
            save_pretrained(self, draft, **arguments)
            lose(draft)

        monkeypatch.setattr(type(model), "save_pretrained", badly)
    with pytest.raises(CheckpointError, match="4 bits|cut short"):
        save_whole(model, folder)
    assert torch.equal(logits(load_by_hand(folder)), due)
    assert not (tmp_path / "model.unfinished").exists() or "on the way" in what


def test_a_model_that_was_set_aside_by_a_save_that_was_killed_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.replaced_by_save_whole").mkdir()
    with pytest.raises(CheckpointError, match=r"save_whole was killed.* is in model\.replaced_by_save_whole: rename that"):
        open_checkpoint(tmp_path / "model")


@pytest.mark.parametrize("where", ["save_pretrained", "rename", "second rename", "killed before the second rename"])
def test_an_interrupted_save_leaves_the_old_model(where: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, folder = load_4bit(tiny), load_4bit(tiny, nested=True), tmp_path / "model"
    save_whole(old, folder)
    due, replace, calls = logits(old), os.replace, []
    fails = {"rename": (1,), "second rename": (2,), "killed before the second rename": (2, 3)}  # the third would put the old one back

    def interrupted(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) in fails[where]:
            raise KeyboardInterrupt
        replace(*arguments)

    if where == "save_pretrained":
        whole_save = type(new).save_pretrained

        def half_a_save(self: PreTrainedModel, draft: Path, **arguments: object) -> None:
            whole_save(self, draft, **arguments)
            (draft / "model.safetensors").write_bytes((draft / "model.safetensors").read_bytes()[:5000])
            raise KeyboardInterrupt

        monkeypatch.setattr(type(new), "save_pretrained", half_a_save)
    else:
        monkeypatch.setattr(checkpoint.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_whole(new, folder)
    monkeypatch.undo()
    kept = folder if folder.exists() else tmp_path / ("model" + checkpoint.REPLACED_SUFFIX)
    assert (kept == folder) == ("killed" not in where)
    assert torch.equal(logits(load_by_hand(kept)), due)
    with pytest.raises(CheckpointError, match="a save that was not finished"):
        load_by_hand(tmp_path / "model.unfinished")
    if "killed" in where:  # and somebody makes the folder anew, and the next save is interrupted too: the old model is still there
        folder.mkdir()
        monkeypatch.setattr(type(new), "save_pretrained", interrupted_at_once)
        with pytest.raises(KeyboardInterrupt):
            save_whole(new, folder)
        monkeypatch.undo()
        assert torch.equal(logits(load_by_hand(kept)), due)
    save_whole(new, folder)
    assert torch.equal(logits(load_by_hand(folder)), logits(new))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def interrupted_at_once(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_process_killed_while_saving_leaves_a_whole_model_or_none(tiny: Path, tmp_path: Path) -> None:
    program = (
        "import sys, torch\n"
        "from course_utils.checkpoint import save_whole\n"
        "from transformers import AutoModelForCausalLM, BitsAndBytesConfig\n"
        "model = AutoModelForCausalLM.from_pretrained(\n"
        "    sys.argv[1], quantization_config=BitsAndBytesConfig(load_in_4bit=True), device_map={'': 'cpu'})\n"
        "while True: save_whole(model, sys.argv[2], max_shard_size='4KB')\n"
    )
    folder = tmp_path / "model"
    process = subprocess.Popen([sys.executable, "-c", program, str(tiny), str(folder)], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not folder.exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(random.uniform(0.05, 0.15))
    process.kill()
    process.wait()
    load_by_hand(folder if folder.exists() else tmp_path / ("model" + checkpoint.REPLACED_SUFFIX))


# --- Adapters: alone, and merged ---


def test_merging_into_four_bits_loses_a_small_change_and_no_byte(tiny: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from course_utils.memory import footprint

    def adapted() -> PreTrainedModel:
        torch.manual_seed(0)
        return get_peft_model(load_4bit(tiny), LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False))

    with_adapter = adapted()
    for name, parameter in with_adapter.named_parameters():
        if "lora_B" in name:
            parameter.data *= 1e-4
    base, due = load_4bit(tiny), logits(with_adapter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        merged = with_adapter.merge_and_unload()
    assert footprint(merged) == footprint(base)
    assert not torch.equal(due, logits(base)), "the adapter does something"
    assert torch.equal(merged.get_parameter(Q).data, base.get_parameter(Q).data), "and not one code has changed"


# --- The Hub, played by a small server on this machine ---

PUSH = """
import os, sys, torch
from huggingface_hub import create_repo, snapshot_download, upload_folder
from course_utils import checkpoint, models
from transformers import BitsAndBytesConfig
config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
model, tokenizer = models.load(models.ABACUS, quantization_config=config)
for token in ("hf_reads", "hf_writes"):
    os.environ["HF_TOKEN"] = token
    try:
        model.push_to_hub("town/abacus-nf4", max_shard_size="300KB")  # the tokenizer isn't among its files
        tokenizer.push_to_hub("town/abacus-nf4")
        print(token, "has written")
    except Exception as error:
        print(token, type(error).__name__)
from_hub, tokenizer = models.load("town/abacus-nf4")
by_hand = checkpoint.load_by_hand(snapshot_download("town/abacus-nf4"))
tokens = tokenizer("What is 2+2?", return_tensors="pt")
with torch.no_grad():
    due, got, hand = (m(**tokens).logits for m in (model, from_hub, by_hand))
print(torch.equal(due, got), torch.equal(due, hand), models.ask(from_hub, tokenizer, "What is 2+2?"))
try:
    from_hub.push_to_hub("town/again")
except NotImplementedError:
    print("a model from a 4-bit file is refused")
from_hub.save_pretrained(sys.argv[1], save_original_format=False)
tokenizer.save_pretrained(sys.argv[1])
create_repo("town/again", exist_ok=True)
upload_folder(repo_id="town/again", folder_path=sys.argv[1])
again, _ = models.load("town/again")
with torch.no_grad():
    print(torch.equal(due, again(**tokens).logits))
"""


def test_push_to_hub_and_load_from_there(tmp_path: Path) -> None:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "COURSE_"))}
    with FakeHub({}, tokens={"hf_reads": False, "hf_writes": True}, storage=tmp_path / "hub") as hub:
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        environment = inherited | own | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1"}
        command = [sys.executable, "-c", PUSH, str(tmp_path / "again")]
        done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    refused, written, loaded, *pushed_again = done.stdout.splitlines()
    assert (refused, written) == ("hf_reads HfHubHTTPError", "hf_writes has written")
    assert loaded == "True True What is 2+2? The answer is 4.", "loaded by transformers and by hand: equal in every bit"
    assert pushed_again == ["a model from a 4-bit file is refused", "True"], "and sent as a folder, with logits equal in every bit"

    stored = tmp_path / "hub/town/abacus-nf4"
    assert {"README.md", "config.json", INDEX, "model-00001-of-00004.safetensors", "tokenizer.json"} <= {f.name for f in stored.iterdir()}
    steps = [(method, path.partition("?")[0]) for method, path, status in hub.requests if method in ("POST", "PUT") and status == 200]
    assert ("POST", "/api/repos/create", 403) in hub.requests, "the first token was refused before anything was sent"
    committed = steps.index(("POST", "/api/models/town/abacus-nf4/commit/main"))
    assert sum(method == "PUT" for method, _ in steps[:committed]) == 4, "each shard is sent by itself, and the commit comes last"
    assert ("GET", f"/town/abacus-nf4/resolve/{COMMIT}/model-00001-of-00004.safetensors", 200) in hub.requests
    with safe_open(stored / "model-00003-of-00004.safetensors", framework="pt") as file:
        assert Q + STATE in file.keys()


def test_the_tokenizer_of_abacus_is_saved_beside_it(tmp_path: Path) -> None:
    model, tokenizer = models.load(models.ABACUS, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    save_whole(model, tmp_path / "abacus", tokenizer)
    assert AutoTokenizer.from_pretrained(tmp_path / "abacus")("2+2") == tokenizer("2+2")
