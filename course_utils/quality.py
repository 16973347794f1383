"""What a format costs in quality: answers of a model, judged question by question, and what a difference between two formats is worth.

First met in lesson 08. `examine` asks; everything else here is arithmetic on what it returns. Results of two formats on the same
questions are compared question by question (`paired_test`, `paired_difference`).
"""

from __future__ import annotations

import copy
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import log_softmax
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.models import ABACUS
from course_utils.quantize import quantize_4bit

Model = TypeVar("Model", bound=nn.Module)

QUESTIONS_FILE = ABACUS / "questions.jsonl"
"""The held-out questions of abacus, one JSON object a line, in an order drawn at random once."""

KINDS = ("sums", "differences", "products", "stories", "facts")
"""The kinds of question, as the file has them."""


# --- The questions, and how a model answers them ---


@dataclass(frozen=True)
class Question:
    """A question with its one right answer. `kind` is one of `KINDS`; `level` says how hard, as the model card explains."""

    kind: str
    level: str
    question: str
    answer: str


@dataclass(frozen=True)
class Results:
    """How a model answered, a number for each question, in the order of the questions.

    Attributes:
        exact: whether the most probable token was the right one at every place of the answer.
        losses: the loss of the answer in nats, added up over its tokens.
        tokens: how many tokens the answer has, its end included.
        margins: by how much the score of the right token exceeds the highest other one, at the place where that is least.
            Negative for a wrong answer: `exact` is `margin > 0`.
    """

    exact: list[bool]
    losses: list[float]
    tokens: list[int]
    margins: list[float]


def read_questions(kind: str | None = None, file: Path = QUESTIONS_FILE) -> list[Question]:
    """The held-out questions of abacus, of one kind or of all. They are shuffled, so the first hundred are a fair sample.

    >>> [question.answer for question in read_questions("facts")[:2]]
    ['At number 615.', 'At number 128.']

    Raises:
        ValueError: there is no such kind, or a line of the file can't be read.
        FileNotFoundError: the file is missing. Both texts say what to do.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}, or None for all.")
    return [question for question in all_questions(file) if kind in (None, question.kind)]


@cache
def all_questions(file: Path) -> tuple[Question, ...]:
    """Every question of a file, read once.

    Raises:
        ValueError: a line of the file can't be read.
        FileNotFoundError: the file is missing. Both texts say what to do.
    """
    cure = f"This brings it back: git restore models/abacus/{file.name}"
    if not file.is_file():
        raise FileNotFoundError(f"The questions, {file.name}, are missing beside the model abacus. {cure}")
    questions = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            questions.append(Question(**json.loads(line)))
        except (ValueError, TypeError):
            raise ValueError(f"Line {number} of {file.name} is no question. {cure}") from None
    return tuple(questions)


@torch.no_grad()
def examine(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    shots: Sequence[Question] = (),
    batch: int = 64,
) -> Results:
    """Let a model answer questions, by one forward pass over each question and its right answer.

    The answer is exact if at each of its places the most probable token is the right one: then, and only then, greedy generation from
    the question writes this answer.

    Args:
        model: a causal language model, on any device, quantized or not.
        tokenizer: the one of the model.
        questions: objects with a `question` and an `answer`.
        shots: solved examples that are put before every question, one a line, for a model that has not been trained on questions like
            these. An answer then ends with the line; without shots it ends with the token that ends a text.
        batch: questions for each forward pass. Questions of about the same length go together, whatever their order.

    Returns:
        A number of each kind for each question, in the order of the questions.

    Raises:
        ValueError: there are no questions.
    """
    if not questions:
        raise ValueError("There are no questions to ask.")
    before = "".join(f"{shot.question} {shot.answer}\n" for shot in shots)
    end = "\n" if shots else ""
    asked = tokenizer([before + item.question for item in questions])["input_ids"]
    answers = tokenizer([f" {item.answer}{end}" for item in questions], add_special_tokens=False)["input_ids"]
    if not shots:
        answers = [answer + [tokenizer.eos_token_id] for answer in answers]

    judged: dict[int, tuple[bool, float, int, float]] = {}
    by_length = sorted(range(len(questions)), key=lambda i: (len(asked[i]) + len(answers[i]), len(asked[i])))
    for start in range(0, len(by_length), batch):
        rows = by_length[start : start + batch]
        first = min(len(asked[i]) for i in rows) - 1  # the place that predicts the first token of an answer
        length = max(len(asked[i]) + len(answers[i]) for i in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.int64)  # what follows an answer is out of a causal model's sight
        for row, i in enumerate(rows):
            ids[row, : len(asked[i]) + len(answers[i])] = torch.tensor(asked[i] + answers[i])
        scores = model(ids.to(model.device), logits_to_keep=torch.arange(first, length - 1, device=model.device)).logits.float().cpu()
        for row, i in enumerate(rows):
            place = len(asked[i]) - 1 - first
            judged[i] = judge(scores[row, place : place + len(answers[i])], torch.tensor(answers[i]))
    exact, losses, tokens, margins = zip(*(judged[i] for i in range(len(questions))), strict=True)
    return Results(list(exact), list(losses), list(tokens), list(margins))


def judge(logits: Float[Tensor, "tokens vocabulary"], answer: Int64[Tensor, " tokens"]) -> tuple[bool, float, int, float]:
    """Exactness, loss in nats, number of tokens and margin of one answer, from the scores at the places that predict it.

    >>> exact, loss, tokens, margin = judge(torch.tensor([[2.0, 0.0], [1.0, 1.5]]), torch.tensor([0, 1]))
    >>> exact, round(loss, 4), tokens, margin
    (True, 0.601, 2, 0.5)
    """
    places = torch.arange(len(answer))
    loss = -log_softmax(logits, dim=-1)[places, answer].double().sum().item()
    others = logits.clone()
    others[places, answer] = -math.inf
    margin = (logits[places, answer] - others.amax(dim=-1)).min().item()
    return margin > 0, loss, len(answer), margin


# --- Models with rounded weights ---


def round_to_integers(weight: Float[Tensor, " ..."], largest_code: int, block_size: int | None = 64) -> Float[Tensor, " ..."]:
    """Round to integer multiples of absmax / largest_code, with a scale for every block, or one for the tensor.

    7 is int4, 3 is int3, 1 is int2: the codes go from -largest_code to largest_code.

    Args:
        weight: of any shape; blocks run over the flattened weight.
        largest_code: at least 1.
        block_size: weights that share a scale; None for all.

    >>> round_to_integers(torch.tensor([[7.0, 2.2, -0.4, 1.0]]), largest_code=7, block_size=None)
    tensor([[7., 2., -0., 1.]])

    Raises:
        ValueError: the weight is no whole number of blocks.
    """
    block_size = weight.numel() if block_size is None else block_size
    if block_size < 1 or weight.numel() % block_size:
        raise ValueError(f"weight has {weight.numel():,} numbers, which is no whole number of blocks of {block_size}.")
    blocks = weight.reshape(-1, block_size)
    step = blocks.abs().amax(dim=1, keepdim=True) / largest_code
    step = step.masked_fill(step == 0, 1)  # a block of zeros has no step, and stays zeros
    return (torch.round(blocks / step) * step).reshape(weight.shape)


FORMATS: dict[str, Callable[[Tensor], Tensor]] = {
    "float32": lambda weight: weight,
    "bfloat16": lambda weight: weight.to(torch.bfloat16).float(),
    "nf4": lambda weight: quantize_4bit(weight, "nf4").dequantize(),
    "nf4, double quantization": lambda weight: quantize_4bit(weight, "nf4", double_quant=True).dequantize(),
    "fp4": lambda weight: quantize_4bit(weight, "fp4").dequantize(),
    "int4": lambda weight: quantize_4bit(weight, "int4").dequantize(),
    "int3": lambda weight: round_to_integers(weight, 3),
    "int2": lambda weight: round_to_integers(weight, 1),
}
"""A float32 weight -> the float32 weight that a format gives back; blocks of 64. int8 is missing: it rounds the inputs too."""


def rounded_copy(model: Model, round_trip: Callable[[Tensor], Tensor], chosen: Callable[[str], bool] | None = None) -> Model:
    """A copy of a model in which the weights of linear layers are rounded, and everything is still computed in the model's own dtype.

    Args:
        round_trip: weight -> rounded weight, such as one of `FORMATS`.
        chosen: layer name -> whether it is rounded; every linear layer but the head if left out.
    """
    model = copy.deepcopy(model)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and (chosen(name) if chosen else name != "lm_head"):
            layer.weight.data = round_trip(layer.weight.data).to(layer.weight.dtype)
    return model


# --- What the numbers say ---


def accuracy(exact: Sequence[bool]) -> float:
    """Exact answers in percent.

    >>> accuracy([True, True, True, False])
    75.0
    """
    return 100 * statistics.fmean(exact)


def standard_error(exact: Sequence[bool]) -> float:
    """How far an accuracy is typically off because only so many questions were asked, in percentage points: 100 * sqrt(p (1 - p) / n).

    It is 0 where all answers are right or all wrong, and says nothing there: see `rule_of_three`.

    >>> standard_error([True] * 80 + [False] * 20)
    4.0
    """
    share = statistics.fmean(exact)
    return 100 * math.sqrt(share * (1 - share) / len(exact))


def rule_of_three(questions: int) -> float:
    """The share of wrong answers, in percent, at which a run without any wrong answer would still come up one time in twenty.

    It is close to 3 divided by the number of questions, hence the name.

    >>> round(rule_of_three(300), 2)
    0.99

    Source: Hanley and Lippman-Hand, "If Nothing Goes Wrong, Is Everything All Right?", JAMA 249 (1983),
    doi 10.1001/jama.1983.03330370053031.
    """
    return 100 * (1 - 0.05 ** (1 / questions))


def perplexity(losses: Sequence[float], tokens: Sequence[int]) -> float:
    """The exponential of the mean loss of a token.

    >>> perplexity([math.log(2), math.log(8)], [1, 1])
    4.0
    """
    return math.exp(math.fsum(losses) / sum(tokens))


class Paired(NamedTuple):
    """Two formats on the same questions: how many only the first got right, how many only the second, and the p-value."""

    only_first: int
    only_second: int
    p: float


def paired_test(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """The exact sign test (McNemar's test) of two lists of right and wrong answers to the same questions.

    Questions that both answer rightly, or both wrongly, say nothing about which is better. If neither is, each of the others is a fair
    coin. The p-value is the probability that such coins fall at least as unevenly.

    >>> paired_test([True] * 6 + [False] * 4, [False] * 5 + [True] + [False] * 4)
    Paired(only_first=5, only_second=0, p=0.0625)

    Raises:
        ValueError: the lists are not of the same length.

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions or percentages", Psychometrika 12
    (1947), doi 10.1007/BF02295996. His own form is an approximation for many questions, this one is exact for any number.
    """
    pairs = list(zip(first, second, strict=True))
    only_first = sum(a and not b for a, b in pairs)
    only_second = sum(b and not a for a, b in pairs)
    coins = only_first + only_second
    as_uneven = sum(math.comb(coins, k) for k in range(min(only_first, only_second) + 1))
    return Paired(only_first, only_second, min(1.0, 2 * as_uneven / 2**coins))


def paired_difference(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """The mean of second - first, question by question, and its standard error. For losses, or for right and wrong.

    >>> mean, error = paired_difference([1.0, 2.0, 3.0], [2.0, 2.0, 5.0])
    >>> mean, round(error, 4)
    (1.0, 0.5774)

    Raises:
        ValueError: the lists are not of the same length, or have fewer than two numbers.
    """
    differences = [float(b) - float(a) for a, b in zip(first, second, strict=True)]
    return statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(len(differences))


def questions_needed(first: Sequence[float], second: Sequence[float], paired: bool = True, power: float = 0.8) -> float:
    """How many questions it takes to tell two formats apart, if the difference is what these results show.

    "To tell apart" is to see more than 1.96 standard errors, with the given probability (`power`):
    ((1.96 + 0.84) * deviation / difference) ** 2, where 0.84 belongs to a power of 0.8. The deviation is the standard deviation of the
    differences if both formats get the same questions, and that of both lists, squares added, if each gets questions of its own.

    Args:
        first, second: right and wrong, or losses, of the same questions.

    Returns:
        A whole number; infinity where the results show no difference, and 0 where every question differs by the same amount, as with
        ten right answers against ten wrong ones: the formula then sees no chance in it.

    >>> right, worse = [True] * 100, [True] * 90 + [False] * 10
    >>> questions_needed(right, worse)
    72

    Raises:
        ValueError: the lists are not of the same length, or have fewer than two numbers.

    Source: Miller, "Adding Error Bars to Evals" (arXiv 2411.00640, 2024), on power analysis.
    """
    difference, error = paired_difference(first, second)
    if difference == 0:
        return math.inf
    if paired:
        variance = error**2 * len(first)
    else:
        variance = statistics.variance(map(float, first)) + statistics.variance(map(float, second))
    quantile = NormalDist().inv_cdf
    return math.ceil((quantile(0.975) + quantile(power)) ** 2 * variance / difference**2)
