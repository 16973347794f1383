"""The bundled model: its text, its split, its training, and that it knows what its card says."""

from __future__ import annotations

import json
import random
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from course_utils.models import ABACUS
from course_utils.quality import examine
from tools import train_abacus
from tools.abacus_text import KINDS, LEVELS, Town, examination, is_held_out, story_item, sum_item, training_items
from tools.examine_abacus import PER_LEVEL, QUALITY_FILE, card
from tools.train_abacus import SEED, TRAINING_FILE

WRITTEN_STEP = re.compile(r"(\d+)([-+*])(\d+)")


@pytest.fixture(scope="module")
def town() -> Town:
    return Town(SEED)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(str(ABACUS))


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(str(ABACUS))


@pytest.fixture(scope="module")
def quality() -> dict:
    return json.loads(QUALITY_FILE.read_text(encoding="utf-8"))


@given(st.integers(0, 999), st.integers(0, 999), st.sampled_from("+-*"))
def test_order_of_operands_does_not_matter_to_the_split(a: int, b: int, operation: str) -> None:
    assert is_held_out(operation, a, b) == is_held_out(operation, b, a)


@given(st.integers(10, 99), st.integers(1, 99))
def test_sum_and_story_about_the_same_numbers_fall_on_one_side(a: int, b: int) -> None:
    told = story_item(("Ada", "Ben"), "apples", (("+", a, b),))
    assert sum_item(a, b).held_out == sum_item(b, a).held_out == told.held_out == is_held_out("+", a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_written_in_training_is_held_out(kind: str, town: Town) -> None:
    """Read from the text itself: no step written in a question or an answer is one that the examination may ask."""
    source = training_items(kind, random.Random(7), town)
    for _ in range(5000):
        item = next(source)
        written = [(operation, int(a), int(b)) for a, operation, b in WRITTEN_STEP.findall(item.text)]
        assert not any(is_held_out(*step) for step in written), item.text
        assert not item.held_out, item.text


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "facts"])
def test_examination_asks_only_what_is_held_out(kind: str, town: Town) -> None:
    items = examination(kind, town, SEED, per_level=50)
    assert all(item.held_out for item in items)
    assert {item.level for item in items} == set(LEVELS[kind])


def test_facts_are_examined_in_a_wording_not_used_in_training(town: Town) -> None:
    examined = {item.question for item in town.examination()}
    source = training_items("facts", random.Random(3), town)
    assert len(examined) == len(town.people) == 5120
    assert not examined & {next(source).question for _ in range(20_000)}


def test_answers_in_the_text_are_right() -> None:
    rng = random.Random(5)
    for kind in ("sums", "differences", "products"):
        source = training_items(kind, rng, Town(SEED))
        for _ in range(300):
            item = next(source)
            a, operation, b = WRITTEN_STEP.search(item.question).groups()  # type: ignore[union-attr]
            right = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[operation]
            assert item.answer.endswith(f"The answer is {right}.")


def test_tokenizer_gives_any_text_back(tokenizer: PreTrainedTokenizerBase) -> None:
    @given(st.text(max_size=80))
    @settings(max_examples=200)
    def comes_back(text: str) -> None:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text

    comes_back()


def test_digits_and_words_are_single_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("What is 45+37?")["input_ids"])
    assert [piece.replace("Ġ", " ") for piece in pieces] == ["<s>", "What", " is", " ", "4", "5", "+", "3", "7", "?"]


def test_sizes_allow_every_layer_to_be_quantized_on_every_cpu(model: LlamaForCausalLM) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert module.in_features % 64 == 0 and module.out_features % 32 == 0, name
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert model.config.vocab_size % 32 == 0
    assert (ABACUS / "model.safetensors").stat().st_size <= 16_000_000


def test_answers_in_writing_and_stops_by_itself(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    inputs = tokenizer("What is 2+2?", return_tensors="pt")
    output = model.generate(**inputs)[0]
    assert tokenizer.decode(output, skip_special_tokens=True) == "What is 2+2? The answer is 4."
    assert output[-1] == tokenizer.eos_token_id


def test_exact_in_the_examination_means_generated_exactly(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, town: Town) -> None:
    items = [item for kind in KINDS for item in examination(kind, town, SEED, per_level=4)[:8]]
    exact = examine(model, tokenizer, items).exact
    for item, right in zip(items, exact, strict=True):
        inputs = tokenizer(item.question, return_tensors="pt")
        written = tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True)
        assert (written == item.text) == right, item.text


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_known(kind: str, quality: dict) -> None:
    assert quality["formats"]["float32"]["kinds"][kind]["exact_percent"] >= 97


def test_facts_tell_the_formats_apart(quality: dict) -> None:
    for step in quality["perplexity_order"]:
        if step["kind"] == "facts":
            assert step["nats_per_token"] > step["standard_error"], step


def test_accuracy_tells_the_formats_apart(quality: dict) -> None:
    def loss(name: str) -> list[float]:
        formats = quality["formats"]
        return [formats["float32"]["kinds"][k]["exact_percent"] - formats[name]["kinds"][k]["exact_percent"] for k in KINDS]

    assert max(loss("nf4")) <= 1
    assert max(loss("int4, one scale a tensor")) >= 5


def test_recorded_quality_is_that_of_the_model_in_the_clone(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, town: Town, quality: dict
) -> None:
    """Examine one kind again, in float32. Another processor may round differently; one question in a thousand is allowed for that."""
    items = examination("sums", town, SEED, PER_LEVEL)
    exact = examine(model, tokenizer, items).exact
    recorded = quality["formats"]["float32"]["kinds"]["sums"]
    assert len(items) == recorded["questions"]
    assert abs(100 * sum(exact) / len(exact) - recorded["exact_percent"]) <= 0.1 + 0.005


def test_card_is_written_by_the_program(quality: dict) -> None:
    training = json.loads(TRAINING_FILE.read_text(encoding="utf-8"))
    expected = card(quality, training, (ABACUS / "model.safetensors").stat().st_size)
    assert (ABACUS / "README.md").read_text(encoding="utf-8") == expected


def test_a_killed_training_ends_with_the_same_weights(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_abacus, "PER_STEP", {0: dict.fromkeys(KINDS, 2), 3: dict.fromkeys(KINDS, 3)})
    monkeypatch.setattr(train_abacus, "TRAINING_FILE", tmp_path / "record.json")
    deterministic = torch.are_deterministic_algorithms_enabled()
    run = dict(steps=5, threads=1, save_every=2)
    train_abacus.train(**run, work=tmp_path / "whole", output=tmp_path / "whole_model")

    def killed_at_step_three(model, tokenizer, town, step):
        if step == 3:
            raise KeyboardInterrupt
        return real_step(model, tokenizer, town, step)

    real_step = train_abacus.train_step
    monkeypatch.setattr(train_abacus, "train_step", killed_at_step_three)
    with pytest.raises(KeyboardInterrupt):
        train_abacus.train(**run, work=tmp_path / "killed", output=tmp_path / "killed_model")
    monkeypatch.setattr(train_abacus, "train_step", real_step)
    train_abacus.train(**run, work=tmp_path / "killed", output=tmp_path / "killed_model")
    torch.use_deterministic_algorithms(deterministic)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole_model", "killed_model")]
    assert weights[0] == weights[1]
