"""Train abacus, the bundled model, from scratch: ``python -m tools.train_abacus``.

A kill loses at most `--save-every` steps: the same command goes on from the last checkpoint in ``training/``,
and ends with the same weights as a run that was never killed, on the same number of threads.
Each step draws its batch from a generator seeded with the step's number, so nothing but the step has to be remembered.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import random
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from course_utils import ROOT
from tools.abacus_text import KINDS, Item, Town, training_items

ABACUS = ROOT / "models" / "abacus"
TRAINING_FILE = ROOT / "measurements" / "abacus_training.json"
SEED = 0
PER_STEP = {
    0: {"facts": 52, "sums": 32, "differences": 20, "products": 12, "stories": 12},
    7_500: {"facts": 52, "sums": 20, "differences": 24, "products": 14, "stories": 26},
}
"""Questions of each kind in a batch, from a step on. Stories need sums and differences and are learnt after them: later they get more."""
SHORT_KINDS = ("facts", "sums", "differences")
LONG_KINDS = ("products", "stories")
PAD, START, END = "<pad>", "<s>", "</s>"


def build_tokenizer(town: Town) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose merges make every word of the training text one token and every digit one token.

    Being byte-level, it gives any text back exactly, also words that abacus has never seen.
    """
    rng = random.Random(0)
    words: set[str] = set()
    splitter = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    for kind in KINDS:
        items = town.examination() if kind == "facts" else [next(training_items(kind, rng, town)) for _ in range(2000)]
        for item in items:
            words.update(piece for piece, _ in splitter.pre_tokenize_str(item.text))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD, START, END]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # Room for more merges than there are: training ends when every word has become one token.
    trainer = trainers.BpeTrainer(vocab_size=2**16, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False)
    tokenizer.train_from_iterator([decoders.ByteLevel().decode([word]) for word in sorted(words)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, tokenizer.token_to_id(START))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=START, eos_token=END, pad_token=PAD, model_max_length=128, clean_up_tokenization_spaces=False
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A small Llama. In-features are multiples of 64, out-features and vocabulary of 32, and the head is not tied."""
    vocabulary = math.ceil(len(tokenizer) / 32) * 32
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, max_new_tokens=48
    )
    return model


def batch_tensors(items: list[Item], tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (items, length), padded on the right, and the mask of those positions whose next token is part of the answer."""
    questions = tokenizer([item.question for item in items])["input_ids"]
    texts = [ids + [tokenizer.eos_token_id] for ids in tokenizer([item.text for item in items])["input_ids"]]
    length = max(map(len, texts))
    ids = torch.full((len(items), length), tokenizer.pad_token_id)
    predicts_answer = torch.zeros((len(items), length), dtype=torch.bool)
    for row, (question, text) in enumerate(zip(questions, texts, strict=True)):
        ids[row, : len(text)] = torch.tensor(text)
        predicts_answer[row, len(question) - 1 : len(text) - 1] = True
    return ids, predicts_answer


def answer_losses(model: LlamaForCausalLM, ids: torch.Tensor, predicts_answer: torch.Tensor) -> torch.Tensor:
    """Cross-entropy (answer tokens,) in nats of every answer token; padding on the right is out of a causal model's sight."""
    hidden = model.model(ids).last_hidden_state[:, :-1][predicts_answer[:, :-1]]
    return cross_entropy(model.lm_head(hidden), ids[:, 1:][predicts_answer[:, :-1]], reduction="none")


def build_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embedding, head and norms, with their peak learning rates."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    return [
        torch.optim.AdamW(others, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
        torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.05),
    ]


def learning_rate_scale(step: int, steps: int) -> float:
    """Share of the peak learning rate: 200 steps of warm-up, then a cosine down to 2 %."""
    return min(1.0, (step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def train_step(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, town: Town, step: int) -> dict[str, float]:
    """Add the gradients of one batch. Returns the mean loss of an answer, in nats, of each kind.

    Short and long kinds go through the model apart, so that little of it is padding.
    """
    rng = random.Random(f"step {SEED} {step}")
    per_step = PER_STEP[max(first for first in PER_STEP if first <= step)]
    questions = sum(per_step.values())
    losses: dict[str, float] = {}
    for kinds in (SHORT_KINDS, LONG_KINDS):
        items: list[Item] = []
        for kind in kinds:
            source = training_items(kind, rng, town)
            items += [next(source) for _ in range(per_step[kind])]
        ids, predicts_answer = batch_tensors(items, tokenizer)
        token_losses = answer_losses(model, ids, predicts_answer)
        item_losses = torch.stack([tokens.sum() for tokens in token_losses.split(predicts_answer.sum(1).tolist())])
        (item_losses.sum() / questions / 6).backward()
        for kind, of_kind in zip(kinds, item_losses.detach().split([per_step[kind] for kind in kinds]), strict=True):
            losses[kind] = of_kind.mean().item()
    return losses


def train(steps: int, threads: int, save_every: int, work: Path, output: Path) -> None:
    """Train, or go on from the checkpoint in `work`; then write the model to `output` and the record of the run."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    town = Town(SEED)
    tokenizer = build_tokenizer(town)
    model = build_model(tokenizer)
    optimizers = build_optimizers(model)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    first, seconds_before = 0, 0.0
    checkpoint = work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        for optimizer, optimizer_state in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        first, seconds_before = state["step"], state["seconds"]
        print(f"going on after step {first}", flush=True)
    start = time.monotonic()
    for step in range(first, steps):
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * learning_rate_scale(step, steps)
        losses = train_step(model, tokenizer, town, step)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        seconds = seconds_before + time.monotonic() - start
        if step % 50 == 0:
            print(f"{step} {seconds:.0f} s " + " ".join(f"{kind}={loss:.3f}" for kind, loss in losses.items()), flush=True)
        if (step + 1) % save_every == 0 or step + 1 == steps:
            state = {
                "model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step + 1, "seconds": seconds
            }  # fmt: skip
            work.mkdir(parents=True, exist_ok=True)
            torch.save(state, checkpoint.with_suffix(".new"))
            os.replace(checkpoint.with_suffix(".new"), checkpoint)
            seconds_done = seconds
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    write_checksums(output)
    record = {
        "what": "the training run of abacus", "command": "python -m tools.train_abacus", "date": date.today().isoformat(),
        "weights": model.num_parameters(), "steps": steps, "questions_per_step": PER_STEP, "seed": SEED,
        "seconds": round(seconds_before if first >= steps else seconds_done), "threads": threads, "processor": processor_name(),
        "versions": {name: version(name).split("+")[0] for name in ("torch", "transformers", "tokenizers")},
    }  # fmt: skip
    TRAINING_FILE.parent.mkdir(exist_ok=True)
    TRAINING_FILE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def write_checksums(folder: Path) -> None:
    """Write SHA256SUMS, in the format of sha256sum, for every file that loading the model needs."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def processor_name() -> str:
    """The processor as Linux names it, else what Python says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description="Train abacus, the bundled model.")
    parser.add_argument("--steps", type=int, default=14_000)
    parser.add_argument("--threads", type=int, default=2, help="the result depends on it")
    parser.add_argument("--save-every", type=int, default=250, help="steps between checkpoints")
    parser.add_argument("--work", type=Path, default=ROOT / "training", help="folder of the checkpoint")
    parser.add_argument("--output", type=Path, default=ABACUS, help="folder of the finished model")
    args = parser.parse_args()
    train(args.steps, args.threads, args.save_every, args.work, args.output)


if __name__ == "__main__":
    main()
