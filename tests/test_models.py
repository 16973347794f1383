"""`course_utils.models`: what loads, what it gives, and what a learner reads when something can't be had."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
)

from course_utils import ROOT, doctor, model_files, models
from course_utils.models import CourseModelError
from tests.fake_hub import COMMIT, FakeHub

QUESTION, ANSWER = "What is 2+2?", "What is 2+2? The answer is 4."


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of one layer and a tokenizer of a few words."""
    folder = tmp_path_factory.mktemp("tiny")
    vocabulary = {word: i for i, word in enumerate("<pad> <s> </s> ? What is 2 + The answer 4 .".split())}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "max_position_embeddings": 64}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, **ids, num_attention_heads=2)).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to be damaged."""
    return shutil.copytree(tiny, tmp_path / "copy")


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


# --- What loads ---


def test_abacus_answers_without_any_code_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    tokenizer = AutoTokenizer.from_pretrained("models/abacus")
    model = AutoModelForCausalLM.from_pretrained("models/abacus")
    tokens = model.generate(**tokenizer(QUESTION, return_tensors="pt"))
    assert tokenizer.decode(tokens[0], skip_special_tokens=True) == ANSWER
    assert tokens[0, -1] == tokenizer.eos_token_id, "it stops by itself"


@pytest.mark.parametrize("config", [None, BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")], ids=["float32", "nf4"])
def test_load_gives_abacus_ready_to_answer(config: BitsAndBytesConfig | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COURSE_MODEL", raising=False)
    model, tokenizer = models.load(quantization_config=config)
    assert not model.training
    assert model.device.type == "cpu"
    assert models.ask(model, tokenizer, QUESTION) == ANSWER


def test_course_model_takes_the_place_of_abacus(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSE_MODEL", str(tiny))
    model, _ = models.load()
    assert model.config.hidden_size == 64


def test_course_model_as_a_relative_folder_is_found_from_any_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSE_MODEL", "models/abacus")
    monkeypatch.chdir(tmp_path)
    assert Path(models.name()) == models.ABACUS
    for other in ("Qwen/Qwen2.5-0.5B-Instruct", "~nobody/model"):
        monkeypatch.setenv("COURSE_MODEL", other)
        assert models.name() == other
    monkeypatch.delenv("COURSE_MODEL")
    assert Path(models.name()) == models.ABACUS


def test_dtype_is_that_of_the_file_unless_asked_for(tiny: Path) -> None:
    assert models.load(tiny)[0].dtype == torch.float32
    assert models.load(tiny, dtype=torch.bfloat16)[0].dtype == torch.bfloat16
    assert models.load(tiny, dtype="bfloat16")[0].dtype == torch.bfloat16
    assert models.load(tiny, dtype="auto")[0].dtype == torch.float32


def test_a_quantization_config_may_be_a_dict(tiny: Path) -> None:
    model, _ = models.load(tiny, quantization_config={"load_in_4bit": True})
    assert model.is_loaded_in_4bit
    as_dict, as_object = {"load_in_4bit": True}, BitsAndBytesConfig(load_in_4bit=True)
    config = models.read_config(str(tiny))
    assert models.weight_bytes(config, as_dict, "bfloat16") == models.weight_bytes(config, as_object, torch.bfloat16)


def test_an_index_that_is_left_over_beside_whole_weights_is_no_matter(copy: Path) -> None:
    (copy / "model.safetensors.index.json").write_text('{"weight_map": {"lm_head.weight": "gone.safetensors"}}', encoding="utf-8")
    assert models.load(copy)[0].config.hidden_size == 64


# The sums can be done by hand; models/architectures/README.md shows one.
@pytest.mark.parametrize(
    ("name", "weights", "dtype"),
    [
        ("Llama-2-7b", 6_738_415_616, torch.float16),
        ("Llama-2-13b", 13_015_864_320, torch.float16),
        ("Llama-2-70b", 68_976_648_192, torch.float16),
        ("Mixtral-8x7B", 46_702_792_704, torch.bfloat16),
    ],
)
def test_shipped_architectures_have_every_weight_and_no_memory(name: str, weights: int, dtype: torch.dtype) -> None:
    model = models.architecture(name)
    assert model.num_parameters() == weights
    assert model.dtype == dtype
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_every_shipped_architecture_names_its_source() -> None:
    readme = (models.ARCHITECTURES / "README.md").read_text(encoding="utf-8")
    for config in models.ARCHITECTURES.glob("*/config.json"):
        assert f"`{config.parent.name}`" in readme


def test_architecture_takes_a_folder_without_weights_too(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert models.architecture(copy).config.hidden_size == 64


# --- What is known beforehand ---


@pytest.fixture(scope="module")
def tiny_mixture(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's tokenizer with a random mixture of two experts: in transformers 5 their weights are no linear layers."""
    folder = shutil.copytree(tiny, tmp_path_factory.mktemp("mixture"), dirs_exist_ok=True)
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_local_experts": 2}
    MixtralForCausalLM(MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("which", ["tiny", "tiny_mixture"])
def test_weight_bytes_are_those_of_the_loaded_model(which: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(which)
    plain, _ = models.load(folder)
    assert models.weight_bytes(plain.config) == sum(p.nbytes for p in plain.parameters())
    config = BitsAndBytesConfig(load_in_4bit=True)
    in_4bit, _ = models.load(folder, quantization_config=config)
    scales = sum(p.quant_state.absmax.numel() * 4 for p in in_4bit.parameters() if hasattr(p, "quant_state"))
    assert models.weight_bytes(plain.config, config) == sum(p.nbytes for p in in_4bit.parameters()) + scales


def test_a_saved_4bit_model_is_known_to_be_small(tiny: Path, tmp_path: Path) -> None:
    config = BitsAndBytesConfig(load_in_4bit=True)
    models.load(tiny, quantization_config=config)[0].save_pretrained(tmp_path)
    assert models.weight_bytes(models.read_config(str(tmp_path))) == models.weight_bytes(models.read_config(str(tiny)), config)


# --- What a learner reads when something can't be had. Each text names the thing and the cure. ---


def refusal(model: str | Path, **arguments: object) -> str:
    with pytest.raises(CourseModelError) as caught:
        models.load(model, **arguments)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400, "a sentence and its cure, on one line"
    return text


def test_no_such_folder(tmp_path: Path) -> None:
    text = refusal(tmp_path / "absent")
    assert str(tmp_path / "absent") in text and "Check the path" in text


def test_a_file_in_the_place_of_its_folder(tiny: Path) -> None:
    text = refusal(tiny / "model.safetensors")
    assert "is a file" in text and f"Give the folder that holds it: {tiny}" in text


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    text = refusal(tmp_path)
    assert str(tmp_path) in text and "config.json" in text and "save_pretrained" in text


def test_a_folder_without_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    text = refusal(copy)
    assert str(copy) in text and "no weights" in text and "fetch the model again" in text


@pytest.mark.parametrize("kept", [0, 5, 1000, -1], ids=["empty", "in the length", "in the header", "in the last weight"])
def test_a_truncated_file_is_named(copy: Path, kept: int) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    text = refusal(copy)
    assert str(file) in text and "cut short" in text and "fetch the model again" in text


def test_the_truncated_one_of_several_files_is_named(tiny: Path, tmp_path: Path) -> None:
    model, tokenizer = models.load(tiny)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    tokenizer.save_pretrained(tmp_path)
    whole, second, *_ = sorted(tmp_path.glob("*.safetensors"))
    second.write_bytes(second.read_bytes()[:-1])
    text = refusal(tmp_path)
    assert second.name in text and whole.name not in text


def test_the_missing_one_of_several_files_is_named(tiny: Path, tmp_path: Path) -> None:
    model, tokenizer = models.load(tiny)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    tokenizer.save_pretrained(tmp_path)
    _, second, *_ = sorted(tmp_path.glob("*.safetensors"))
    second.unlink()
    text = refusal(tmp_path)
    assert f"lacks {second.name}" in text and "model.safetensors.index.json" in text and "fetch the model again" in text
    (tmp_path / "model.safetensors.index.json").unlink()  # as after a save that was interrupted
    text = refusal(tmp_path)
    assert "no weights" in text and "model.safetensors.index.json" in text and "-00001-of-" in text


def test_weights_under_a_name_that_nobody_looks_for(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "q4.gguf")
    text = refusal(copy)
    assert "no weights" in text and "q4.gguf is neither" in text


@pytest.mark.skipif(os.name == "nt", reason="making a link needs a privilege on Windows")
def test_weights_that_are_a_link_to_nowhere(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").symlink_to(copy / "gone")
    assert "no weights" in refusal(copy)


@pytest.mark.parametrize("config", [True, False], ids=["with a config", "as peft saves it"])
def test_an_adapter_in_the_place_of_a_model(copy: Path, config: bool) -> None:
    (copy / "model.safetensors").rename(copy / "adapter_model.safetensors")
    if not config:
        (copy / "config.json").unlink()
    text = refusal(copy)
    assert "LoRA adapter" in text and f"PeftModel.from_pretrained(model, {str(copy)!r})" in text


@pytest.mark.parametrize("damage", [b"", b"garbage!" * 100, None], ids=["empty", "garbage", "cut short"])
def test_a_damaged_file_in_the_old_format_is_named(copy: Path, damage: bytes | None) -> None:
    (copy / "model.safetensors").unlink()
    file = copy / "pytorch_model.bin"
    torch.save(LlamaForCausalLM(models.read_config(str(copy))).state_dict(), file)
    assert models.load(copy)[0].config.hidden_size == 64
    file.write_bytes(file.read_bytes()[:-1000] if damage is None else damage)
    text = refusal(copy)
    assert str(file) in text and "damaged" in text and "fetch the model again" in text
    assert "weights_only" not in text


@pytest.mark.parametrize("content", ["", '{"x', "[]", "{}"])
@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_damaged_config_or_tokenizer_is_named(copy: Path, name: str, content: str) -> None:
    (copy / name).write_text(content, encoding="utf-8")
    text = refusal(copy)
    if (name, content) == ("config.json", "{}"):
        assert f"{copy} has no config.json that transformers" in text
    else:
        assert str(copy / name) in text and "damaged" in text and "fetch the model again" in text


@pytest.mark.parametrize("content", [None, "", "{}"], ids=["gone", "empty", "{}"])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_the_cure_for_a_damaged_abacus_is_git(copy: Path, name: str, content: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "ABACUS", copy)
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_text(content, encoding="utf-8")
    assert refusal(copy).endswith(": git restore models/abacus")


def test_too_large_for_the_memory_that_is_free(copy: Path) -> None:
    edit_config(copy, vocab_size=10**10)  # embedding and head: 2 * 10^10 * 64 weights of 4 bytes
    text = refusal(copy)
    assert str(copy) in text and "need 5,120.0 GB" in text and "GB are free" in text and "Load it in 4 bits" in text
    for config in ({"load_in_4bit": True}, BitsAndBytesConfig(load_in_4bit=True)):
        text = refusal(copy, quantization_config=config)
        assert "GB are free" in text and "Load it in 4 bits" not in text and "Choose a smaller model" in text


def test_what_torch_has_set_aside_on_a_gpu_is_free_for_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 GB are free on the card, and of the 5 GB that torch holds 4 are in no tensor."""
    for name, value in (("is_available", True), ("mem_get_info", (3 * 10**9, 8 * 10**9)), ("memory_reserved", 5 * 10**9)):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: 10**9)
    models.check_memory("a model", 7 * 10**9)
    with pytest.raises(models.CourseModelError, match=r"need 7.1 GB, and 7.0 GB are free on the GPU"):
        models.check_memory("a model", 7 * 10**9 + 10**8)


def test_too_large_for_the_container(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in {"memory.max": "100000", "memory.current": "60000", "memory.stat": "inactive_file 0"}.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(doctor, "CONTAINER", tmp_path)
    assert "are free in this machine's memory" in refusal(tiny)
    monkeypatch.setattr(models, "read_memory", lambda: None)
    assert models.load(tiny)[0].config.hidden_size == 64, "where the system doesn't say, loading is tried"


def test_not_a_causal_language_model(copy: Path) -> None:
    edit_config(copy, model_type="t5")
    text = refusal(copy)
    assert "t5" in text and "not a causal language model" in text and "Choose one" in text


def test_a_config_that_needs_code_of_its_own(copy: Path) -> None:
    edit_config(copy, model_type="oddity", auto_map={"AutoConfig": "odd.OddConfig"})
    text = refusal(copy)
    assert str(copy) in text and "Choose a model that needs no code of its own" in text


def test_no_tokenizer(copy: Path) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    text = refusal(copy)
    assert "no tokenizer" in text and "tokenizer.save_pretrained" in text


def test_an_unknown_architecture_is_told_which_are_shipped(tmp_path: Path) -> None:
    with pytest.raises(CourseModelError, match="Llama-2-13b, Llama-2-70b, Llama-2-7b, Mixtral-8x7B"):
        models.architecture(tmp_path / "Llama-2-8b")


def test_the_library_s_own_error_is_kept_but_not_printed(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CourseModelError) as caught:
        models.load(copy)
    assert type(caught.value.original).__name__ == "SafetensorError"
    assert caught.value.__suppress_context__, "the traceback ends with our sentence"


def test_an_error_that_is_not_known_speaks_for_itself(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise RuntimeError("the disk caught fire")

    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", breaks)
    with pytest.raises(RuntimeError, match="the disk caught fire"):
        models.load(tiny)


# --- The Hub, played by a small server on this machine ---

# The address of the Hub is read when huggingface_hub is imported, so each of these runs in a Python of its own.
# It loads one model after another, each with its token, and prints what a learner would read. The library waits
# for some seconds between its attempts to reach a Hub that is gone; here it does not.
CHILD = """
import json, os, sys, time
time.sleep = lambda seconds: None
from course_utils import models
for model, token, *architecture in json.loads(sys.argv[1]):
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    try:
        if architecture:
            print(json.dumps(type(models.architecture(model)).__name__))
            continue
        loaded, tokenizer = models.load(model)
        print(json.dumps(models.ask(loaded, tokenizer, "What is", max_new_tokens=1)))
    except models.CourseModelError as error:
        print(json.dumps(str(error)))
"""


def load_from(url: str, home: Path, *attempts: tuple[str | None, ...], **environment: str) -> tuple[list[str], str]:
    """What each attempt printed, and stderr."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "COURSE_"))}
    environment = {**inherited, "HF_ENDPOINT": url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", CHILD, json.dumps(attempts)]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_the_hub_answers_refuses_and_is_gone(tiny: Path, tmp_path: Path) -> None:
    hub_models = {"town/tiny": tiny, "town/second": tiny, "town/gated": tiny}
    tokens = {"hf_granted": True, "hf_other": False}
    with FakeHub(hub_models, gated=("town/gated",), tokens=tokens) as hub:
        texts, _ = load_from(
            hub.url,
            tmp_path,
            (None, None),
            ("town/tyni", None),
            ("town/tyni", "hf_other"),
            ("town/gated", None),
            ("town/gated", "hf_other"),
            ("town/gated", "hf_granted"),
            ("town/second", "hf_expired"),
            ("town/second", None, "architecture"),
            COURSE_MODEL="town/tiny",
        )
    answer, misspelled, misspelled_with_token, no_token, no_access, granted, expired, built = texts
    assert answer.startswith("What is")
    assert ("GET", f"/town/tiny/resolve/{COMMIT}/model.safetensors", 200) in hub.requests, "the weights came from this server"
    assert "town/tyni" in misspelled and "Check the spelling" in misspelled
    assert misspelled_with_token == misspelled
    assert "town/gated is gated" in no_token and "not logged in" in no_token and "hf auth login" in no_token
    assert f"{hub.url}/town/gated" in no_token, "where to ask for access"
    assert "your token has no access" in no_access and f"{hub.url}/town/gated" in no_access
    assert granted == answer
    assert "town/second" in expired and "does not accept your token" in expired and "hf auth login" in expired

    assert built == "LlamaForCausalLM"

    # The Hub is gone: what was fetched still loads, what was not, or not as a whole, is refused.
    (cached, not_cached, part), _ = load_from(hub.url, tmp_path, ("town/tiny", None), ("town/other", None), ("town/second", None))
    assert cached == answer
    assert "only a part of that model" in part and f"{hub.url} can't be reached" in part and "Connect to the network" in part
    assert "town/other" in not_cached and f"{hub.url} can't be reached" in not_cached and "Connect to the network" in not_cached
    (cached, not_cached), _ = load_from(hub.url, tmp_path, ("town/tiny", None), ("town/other", None), HF_HUB_OFFLINE="1")
    assert cached == answer
    assert "HF_HUB_OFFLINE" in not_cached and "Unset HF_HUB_OFFLINE" in not_cached and "or load models.ABACUS" in not_cached
    chosen = {"COURSE_MODEL": "town/other", "HF_HUB_OFFLINE": "1"}
    (by_variable, by_name), _ = load_from(hub.url, tmp_path, (None, None), ("town/third", None), **chosen)
    assert "or unset COURSE_MODEL" in by_variable and "or load models.ABACUS" in by_name


def test_what_was_not_fetched_to_the_end(tiny: Path, tmp_path: Path) -> None:
    model, tokenizer = models.load(tiny)
    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    tokenizer.save_pretrained(tmp_path / "shards")
    hub_models = {f"town/{name}": tiny for name in ("whole", "cut", "config", "later_gated")} | {"town/shards": tmp_path / "shards"}
    attempts = ("town/whole", None), ("town/cut", None), ("town/shards", None), ("town/config", None)
    architectures = ("town/config", None, "architecture"), ("town/later_gated", None, "architecture")
    with FakeHub(hub_models, breaking_off=("town/cut", "town/shards")) as hub:
        (answer, cut, shards, *built), _ = load_from(hub.url, tmp_path, *attempts[:3], *architectures)
    assert answer.startswith("What is") and built == ["LlamaForCausalLM"] * 2
    for text in (cut, shards):
        assert "The download of town/" in text and "broke off" in text and "Connect to the network and load it again" in text

    # A whole file that is damaged later on. What the snapshot shows is a link to it, on systems with links.
    cache = tmp_path / "hub" / "models--town--whole"
    file = next(cache.glob("snapshots/*/model.safetensors"))
    content = file.read_bytes()
    file.resolve().write_bytes(content[:1000])

    # And a tokenizer of which the settings were fetched and the vocabulary was not.
    shutil.copy(tiny / "tokenizer_config.json", next((tmp_path / "hub" / "models--town--config").glob("snapshots/*")))

    (damaged, *parts), _ = load_from(hub.url, tmp_path, *attempts, HF_HUB_OFFLINE="1")
    assert str(file) in damaged and f"Delete the folder {cache} and load town/whole again" in damaged
    for text in parts:
        assert "only a part of that model" in text and "Unset HF_HUB_OFFLINE and load it again" in text

    # Each cure, done as it says.
    shutil.rmtree(re.search(r"Delete the folder (.*) and load", damaged)[1])
    with FakeHub(hub_models, gated=("town/later_gated",)) as hub:
        (*answers, gated), _ = load_from(hub.url, tmp_path, *attempts, ("town/later_gated", None))
    assert answers == [answer] * len(attempts)
    assert "town/later_gated is gated" in gated, "though its config is in the cache"


def test_the_hub_has_no_such_file_or_an_error_of_its_own(tiny: Path, tmp_path: Path) -> None:
    gguf, adapter, no_tokenizer = (shutil.copytree(tiny, tmp_path / name) for name in ("gguf", "adapter", "no_tokenizer"))
    (gguf / "model.safetensors").rename(gguf / "q4.gguf")
    (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    (adapter / "config.json").unlink()
    for file in no_tokenizer.glob("tokenizer*"):
        file.unlink()
    failing = {f"town/{status}": status for status in (429, 500, 503)}
    folders = {"town/gguf": gguf, "town/adapter": adapter, "town/no_tokenizer": no_tokenizer}
    with FakeHub(folders | dict.fromkeys(failing, tiny), failing=failing) as hub:
        attempts = [(name, None) for name in hub.models] + [("town/tyni", None, "architecture")]
        texts, _ = load_from(hub.url, tmp_path / "home", *attempts)
    gguf_text, adapter_text, tokenizer_text, *failures, misspelled = texts
    assert "no weights" in gguf_text and "q4.gguf is neither" in gguf_text and "Choose a repository" in gguf_text
    assert "LoRA adapter" in adapter_text and "PeftModel.from_pretrained(model, 'town/adapter')" in adapter_text
    assert "town/no_tokenizer on the Hub has no tokenizer" in tokenizer_text
    for status, text in zip(failing.values(), failures, strict=True):
        assert f"an error of its own, {status}. Try again later" in text
    assert "hf auth login. Without a network there are Llama-2-13b" in misspelled


def test_abacus_asks_the_hub_nothing_and_prints_nothing_of_its_own(tmp_path: Path) -> None:
    with FakeHub({}) as hub:
        texts, stderr = load_from(hub.url, tmp_path, (None, None))
        assert texts[0].startswith("What is")
        assert hub.requests == []
        assert stderr == ""


def test_a_cuda_compiler_without_a_gpu_is_not_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a torch built for CUDA runs at its first torch.compile, on a machine with CUDA's compiler and without a GPU.
    from torch.utils import cpp_extension

    said: list[str] = []
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cpp_extension.logger, "handle", lambda record: said.append(record.getMessage()))
    cpp_extension._find_cuda_home()
    assert said == []
    monkeypatch.setattr(cpp_extension.logger, "isEnabledFor", lambda level: True)
    cpp_extension._find_cuda_home()
    assert str(tmp_path) in said[0]
