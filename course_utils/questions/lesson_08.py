"""The questions of lesson 08, what it costs in quality.

torch is imported where it is needed and not above, so that ``course_utils.checks`` is there at once in an exercise that does without it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from math import comb, exp, fsum, log, sqrt
from typing import TYPE_CHECKING

from course_utils.questions.kinds import ExplanationQuestion, FunctionQuestion, Mistake, NumberQuestion

if TYPE_CHECKING:
    import torch

# --- 08.1 ------------------------------------------------------------------------------------------------------------------------

PERPLEXITY_BY_HAND = NumberQuestion(
    id="08.1",
    title="Find a perplexity on paper",
    points=1,
    difficulty=2,
    minutes=5,
    name="perplexity_of_four",
    answer=2**1.5,
    within=5e-3,
    hints=(
        "The loss of a token is minus the logarithm of its probability. Take logarithms to the base 2: they are whole numbers here.",
        "The losses are 1, 3, 0 and 2 in powers of two. The perplexity is 2 to the power of their mean.",
    ),
    solution="perplexity_of_four = 2 ** ((1 + 3 + 0 + 2) / 4)",
    mistakes=(
        Mistake("mean loss in bits", 1.5, "that is the mean loss, to the base 2: the perplexity is 2 to the power of it."),
        Mistake("mean loss in nats", 1.5 * log(2), "that is the mean loss in nats: the perplexity is e to the power of it."),
        Mistake("not the mean", 64.0, "that is 1 divided by the probability of all four together: take the mean loss, not the sum."),
        Mistake("certain token left out", 4.0, "you have left the certain token out: its loss is 0, and it counts in the mean."),
        Mistake("mean of 1/p", 3.75, "that is the mean of 1 / probability: take the mean of the logarithms."),
        Mistake("1/mean of p", 4 / 1.875, "that is 1 divided by the mean probability: take the mean of the logarithms."),
        Mistake("e for 2", exp(1.5), "the mean loss was to the base 2, and you have raised e to it: use one base for both."),
    ),
)

# --- 08.2 ------------------------------------------------------------------------------------------------------------------------

ERROR_OF_AN_ACCURACY = NumberQuestion(
    id="08.2",
    title="Give an accuracy its error",
    points=1,
    difficulty=1,
    minutes=4,
    name="error",
    answer=100 * sqrt(0.9 * 0.1 / 200),
    within=1e-2,
    hints=(
        "It is the square root of p (1 - p) / n, with p the share of right answers.",
        "p is 0.9 and n is 200. In percentage points it is 100 times as much.",
    ),
    solution="from math import sqrt\n\nerror = 100 * sqrt(0.9 * 0.1 / 200)",
    mistakes=(
        Mistake("a share", sqrt(0.9 * 0.1 / 200), "that is a share: asked are percentage points, 100 times as much."),
        Mistake("no n", 30.0, "that is the standard deviation of one answer: divide by the root of the number of questions."),
        Mistake("n for its root", 100 * 0.3 / 200, "you have divided by the number of questions: divide by its root."),
        Mistake("no root", 100 * 0.09 / 200, "the square root is missing."),
        Mistake("two errors", 200 * sqrt(0.9 * 0.1 / 200), "that is twice the standard error."),
        Mistake("of 180", 100 * sqrt(0.9 * 0.1 / 180), "you have divided by the right answers: all 200 questions count."),
        Mistake("p alone", 100 * sqrt(0.9 / 200), "you have left out 1 - p, the share of wrong answers."),
    ),
)

# --- 08.3 ------------------------------------------------------------------------------------------------------------------------

WHAT_CAN_HIDE = NumberQuestion(
    id="08.3",
    title="Ask until a fault would show",
    points=2,
    difficulty=2,
    minutes=6,
    name="questions",
    answer=598,
    within=2.5,  # 3 / 0.005 = 600 is the rule of three
    hints=(
        "If one answer in two hundred is wrong, one question is answered rightly with probability 0.995, and n "
        "questions in a row with 0.995 ** n.",
        "For which n does 0.995 ** n fall below 0.05? Take logarithms: n = log(0.05) / log(0.995), with log from math.",
    ),
    solution="from math import ceil, log\n\nquestions = ceil(log(0.05) / log(0.995))",
    mistakes=(
        Mistake(
            "one wrong expected",
            200.0,
            "with 200 questions you expect one wrong answer, but 200 right ones still come up 37 % of the time.",
        ),
        Mistake("95 for 5", 11.0, "that is where the chance of seeing a wrong answer reaches 5 %: it is to be 95 %."),
        Mistake("half the time", 139.0, "that is where a fault shows half of the time: it is to show in 19 runs of 20."),
        Mistake("one run in a hundred", 919.0, "that is where all are right one time in a hundred: one time in twenty will do."),
        Mistake(
            "one answer in a hundred", 299.0, "that is for one wrong answer in a hundred: half as many faults take twice the questions."
        ),
        Mistake("a fifth", 20.0, "that is the twenty of one time in twenty: how many right answers in a row have a probability of 1/20?"),
    ),
)

# --- 08.4 ------------------------------------------------------------------------------------------------------------------------


def fewest_lost(won):
    """How many questions must be lost, with so many won, for p < 0.05."""
    from math import comb

    lost = won
    while 2 * sum(comb(won + lost, k) for k in range(won + 1)) / 2 ** (won + lost) >= 0.05:
        lost += 1
    return lost


def _first_lost(won: int, enough: Callable[[int], bool]) -> int:
    """The smallest number of lost questions, from `won` on, that is enough."""
    return next(lost for lost in range(won, 1000) if enough(lost))


def _tail(coins: int, fewest: int) -> float:
    return sum(comb(coins, k) for k in range(fewest + 1)) / 2**coins


def _won_questions(seed: int) -> list[tuple[int]]:
    rng = random.Random(f"08.4 {seed}")
    return [(0,), (1,), (4,), (rng.randint(8, 20),), (rng.randint(21, 50),)]


TOSS_COINS = FunctionQuestion(
    id="08.4",
    title="Toss until it can't be chance",
    points=3,
    difficulty=3,
    minutes=12,
    name="fewest_lost",
    answer=fewest_lost,
    inputs=_won_questions,
    hints=(
        "The coins are the questions on which the formats differ, won and lost ones together. Find p for a number of lost ones first.",
        "Of n fair coins, exactly k fall one way with probability comb(n, k) / 2 ** n (math.comb). At least "
        "as uneven, one way: k from 0 up to `won`. The other way is as likely, so p is twice as much.",
        "Begin with lost = won, and add 1 to it while p is 0.05 or more.",
    ),
    mistakes=(
        Mistake(
            "one direction",
            lambda won: _first_lost(won, lambda lost: _tail(won + lost, won) < 0.05),
            "you count coins that fall one way only: as uneven the other way counts too, twice as much.",
        ),
        Mistake(
            "exactly as uneven",
            lambda won: _first_lost(won, lambda lost: 2 * comb(won + lost, won) / 2 ** (won + lost) < 0.05),
            "you count only what is exactly as uneven: more uneven counts too.",
        ),
        Mistake(
            "all coins",
            lambda won: fewest_lost(won) + won,
            "that is the number of coins, lost and won together: how many of them are lost?",
        ),
        Mistake(
            "how many more",
            lambda won: fewest_lost(won) - won,
            "that is by how many more are lost than won: how many are lost?",
        ),
        Mistake(
            "the last that is not enough",
            lambda won: fewest_lost(won) - 1,
            "one too few: with so many lost, p is still 0.05 or more.",
        ),
        Mistake(
            "from no lost question on",
            lambda won: next(lost for lost in range(1000) if 2 * _tail(won + lost, min(won, lost)) < 0.05),
            "with fewer lost than won the test speaks for the format: begin with as many lost as won.",
        ),
        Mistake(
            "always six more",
            lambda won: won + 6,
            "six more lost than won will do where none is won: the more coins there are, the more uneven they may fall by chance.",
        ),
        Mistake(
            "two errors",
            lambda won: _first_lost(won, lambda lost: lost - won > 1.96 * sqrt(lost + won)),
            "that is 1.96 standard errors, which holds for many coins only: for few, count the ways in which they can fall.",
        ),
    ),
)

# --- 08.5 ------------------------------------------------------------------------------------------------------------------------


def perplexity_of_all(perplexities, tokens):
    """The perplexity of papers taken together, from that of each and the number of its tokens."""
    from math import exp, log

    losses = [count * log(perplexity) for perplexity, count in zip(perplexities, tokens, strict=True)]
    return exp(sum(losses) / sum(tokens))


def _several_papers(seed: int) -> list[tuple[list[float], list[int]]]:
    rng = random.Random(f"08.5 {seed}")
    many = [rng.randint(2, 3000) for _ in range(8)]
    return [
        ([2.0, 4.0, 16.0], [2, 1, 1]),
        ([1.0, 8.0], [9, 1]),
        ([rng.uniform(1.0, 9.0) for _ in many], many),
    ]


def _losses(perplexities: list[float], tokens: list[int]) -> list[float]:
    return [n * log(p) for p, n in zip(perplexities, tokens, strict=True)]


POOLED_PERPLEXITY = FunctionQuestion(
    id="08.5",
    title="Put papers together",
    points=2,
    difficulty=2,
    minutes=7,
    name="perplexity_of_all",
    answer=perplexity_of_all,
    inputs=_several_papers,
    tolerance=1e-9,
    hints=(
        "Go back to the losses: the mean loss of a paper's tokens is the logarithm of its perplexity. What is the loss of the whole paper?",
        "Multiply each logarithm by the number of tokens and add up. Divide by the number of all tokens, and raise e to it (math.exp).",
    ),
    mistakes=(
        Mistake(
            "mean of perplexities",
            lambda perplexities, tokens: fsum(perplexities) / len(perplexities),
            "that is the mean of the perplexities: take the mean of the losses, over all tokens, and raise e to it.",
        ),
        Mistake(
            "mean over tokens",
            lambda perplexities, tokens: fsum(p * n for p, n in zip(perplexities, tokens, strict=True)) / sum(tokens),
            "you weigh by tokens, which is right, but you average perplexities: average the losses, and raise e to the mean.",
        ),
        Mistake(
            "every paper alike",
            lambda perplexities, tokens: exp(fsum(map(log, perplexities)) / len(perplexities)),
            "you give each paper the same weight: each token has the same weight, so a long paper counts for more.",
        ),
        Mistake(
            "the loss",
            lambda perplexities, tokens: fsum(_losses(perplexities, tokens)) / sum(tokens),
            "that is the mean loss of a token: raise e to it.",
        ),
        Mistake(
            "two bases",
            lambda perplexities, tokens: 2 ** (fsum(_losses(perplexities, tokens)) / sum(tokens)),
            "you have taken natural logarithms and raised 2 to their mean: use one base for both.",
        ),
    ),
)

# --- 08.6 ------------------------------------------------------------------------------------------------------------------------


def questions_needed(only_first, only_second, asked):
    """How many questions it takes to see the difference, 1.96 errors, with a power of 80 %. Not rounded."""
    difference = (only_first - only_second) / asked
    variance = (only_first + only_second) / asked - difference**2
    return (1.96 + 0.84) ** 2 * variance / difference**2


def _needed(
    only_first: int,
    only_second: int,
    asked: int,
    *,
    errors: float = 2.8,
    mean: bool = True,
    squared: bool = True,
    either: Callable[[int, int], int] = lambda a, b: a + b,
) -> float:
    """``questions_needed`` with one of its parts wrong."""
    difference = (only_first - only_second) / asked
    variance = either(only_first, only_second) / asked - (difference**2 if mean else 0)
    ratio = errors**2 * variance / difference**2
    return ratio if squared else sqrt(ratio)


def _unpaired(only_first: int, only_second: int, asked: int) -> float:
    """As if each format had had its own questions, all others answered rightly by both."""
    first, second = 1 - only_second / asked, 1 - only_first / asked
    return 2.8**2 * (first * (1 - first) + second * (1 - second)) / (first - second) ** 2


def _differing_counts(seed: int) -> list[tuple[int, int, int]]:
    rng = random.Random(f"08.6 {seed}")
    return [(5, 0, 300), (30, 10, 100), (10, 30, 100)] + [(rng.randint(12, 40), rng.randint(1, 9), rng.randint(200, 900)) for _ in range(3)]


HOW_MANY_QUESTIONS = FunctionQuestion(
    id="08.6",
    title="Say how many questions it takes",
    points=3,
    difficulty=4,
    minutes=12,
    name="questions_needed",
    answer=questions_needed,
    inputs=_differing_counts,
    tolerance=1e-6,
    hints=(
        "A question that only the first got right has 1, one that only the second did has -1, any other 0. "
        "What is the mean of these numbers, and what is the mean of their squares?",
        "The mean is (only_first - only_second) / asked, which is the difference. The squares are 1 and 0, so their mean is "
        "(only_first + only_second) / asked.",
        "n = 2.8 ** 2 * (mean of the squares - difference ** 2) / difference ** 2.",
    ),
    mistakes=(
        Mistake(
            "half the time",
            lambda a, b, n: _needed(a, b, n, errors=1.96),
            "with 1.96 errors alone the difference is seen half of the time: add 0.84, for four times in five.",
        ),
        Mistake(
            "not squared",
            lambda a, b, n: _needed(a, b, n, squared=False),
            "the square is missing: half the error takes four times the questions.",
        ),
        Mistake(
            "square of the mean left in",
            lambda a, b, n: _needed(a, b, n, mean=False),
            "that is the mean of the squares: take the square of the mean off, to get the square of the standard deviation.",
        ),
        Mistake(
            "difference for the squares",
            lambda a, b, n: _needed(a, b, n, either=lambda x, y: abs(x - y)),
            "you have taken losses and wins against each other in the standard deviation too: squared, both count as 1, so add them.",
        ),
        Mistake(
            "own questions",
            _unpaired,
            "that is for formats that are asked questions of their own: here both had the same ones.",
        ),
    ),
)

# --- 08.7 ------------------------------------------------------------------------------------------------------------------------


def multiply_in_int8(x, weight, threshold):
    """x @ weight.T by LLM.int8(): whole numbers, and outlier columns apart, by weights read back from their codes."""
    import torch

    outlier = (x.abs() >= threshold).any(dim=0)
    rest = torch.where(outlier, 0.0, x)
    x_scale = rest.abs().amax(dim=1, keepdim=True) / 127
    weight_scale = weight.abs().amax(dim=1, keepdim=True) / 127
    x_codes = torch.round(rest / x_scale)
    weight_codes = torch.round(weight / weight_scale)
    in_8_bits = (x_codes @ weight_codes.T) * x_scale * weight_scale.T
    read_back = weight_codes * weight_scale
    return in_8_bits + x[:, outlier] @ read_back[:, outlier].T


def _int8_with(
    *,
    columns: bool = True,
    absmax_of_all: bool = False,
    one_scale: bool = False,
    add: bool = True,
    exact_weights: bool = False,
    largest: int = 127,
    none: bool = False,
) -> Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]:
    """``multiply_in_int8`` with one of its parts wrong."""

    def wrong(x, weight, threshold):
        import torch

        large = torch.zeros_like(x, dtype=torch.bool) if none else x.abs() >= threshold
        outlier = large.any(dim=0).expand_as(x) if columns else large
        rest = torch.where(outlier, 0.0, x)
        sizes = (x if absmax_of_all else rest).abs().amax(dim=1, keepdim=True)
        x_scale = (sizes.max().expand_as(sizes) if one_scale else sizes) / largest
        weight_scale = weight.abs().amax(dim=1, keepdim=True) / largest
        weight_codes = torch.round(weight / weight_scale)
        product = (torch.round(rest / x_scale) @ weight_codes.T) * x_scale * weight_scale.T
        apart = torch.where(outlier, x, 0.0) @ (weight if exact_weights else weight_codes * weight_scale).T
        return product + apart if add else product

    return wrong


def _inputs_and_weights(seed: int) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
    import torch

    by_hand = (
        torch.tensor([[2.54, -20.0, 1.015, 0.5]], dtype=torch.float64),
        torch.tensor([[0.63, 0.024, -1.27, 0.404]], dtype=torch.float64),
    )
    calls = [(*by_hand, 6.0)]
    generator = torch.Generator().manual_seed(seed)
    for tokens, inputs, outputs, threshold in ((3, 8, 2, 6.0), (5, 32, 7, 4.0)):
        x = torch.randn(tokens, inputs, generator=generator, dtype=torch.float64)
        x *= torch.arange(1, tokens + 1).unsqueeze(1) / tokens  # tokens of different sizes
        x[1, 2], x[0, 5] = 9.0, -7.5  # two outlier columns, whatever else there is
        weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64) * torch.arange(1, outputs + 1).unsqueeze(1)
        calls.append((x, weight, threshold))
    return calls


MULTIPLY_IN_INT8 = FunctionQuestion(
    id="08.7",
    title="Multiply in 8 bits",
    points=4,
    difficulty=4,
    minutes=18,
    name="multiply_in_int8",
    answer=multiply_in_int8,
    inputs=_inputs_and_weights,
    tolerance=1e-9,
    hints=(
        "outlier = (x.abs() >= threshold).any(dim=0) says for each column whether it is one. Put 0 there before you look for the absmax.",
        "The scale of a row is its absmax / 127; amax(dim=1, keepdim=True) gives the absmax of every row. torch.round gives the codes.",
        "The product of codes is multiplied by x's scale, one a row, and by the weight's scale, one a column "
        "of the result: weight_scale.T.",
        "Last add x[:, outlier] @ (weight_codes * weight_scale)[:, outlier].T.",
    ),
    mistakes=(
        Mistake(
            "absmax of all",
            _int8_with(absmax_of_all=True),
            "the scale of a row of x still sees the outliers: take the absmax after the outlier columns are out.",
        ),
        Mistake("not taken out", _int8_with(none=True), "the outliers went through int8 with all others: take their columns out first."),
        Mistake("left out", _int8_with(add=False), "the outlier columns are gone from the result: multiply them separately, and add that."),
        Mistake(
            "entries",
            _int8_with(columns=False),
            "you have taken single numbers out: if one token has an outlier in a column, the whole column goes, for all tokens.",
        ),
        Mistake("one scale", _int8_with(one_scale=True), "you have one scale for all of x: each row, each token, has its own."),
        Mistake(
            "exact weights",
            _int8_with(exact_weights=True),
            "you multiply the outlier columns by the exact weights, as the paper does: bitsandbytes has only the "
            "codes left, so read them back.",
        ),
        Mistake("128", _int8_with(largest=128), "the largest code is 127, not 128."),
    ),
)

# --- 08.8 ------------------------------------------------------------------------------------------------------------------------

JUDGE_A_CLAIM = ExplanationQuestion(
    id="08.8",
    title="Judge a claim",
    points=5,
    difficulty=3,
    minutes=15,
    name="what_it_shows",
    hints=(
        "How large is the standard error of 171 right answers in 200? And of a difference of two such "
        "accuracies, if each had questions of its own?",
        "Both formats had the same questions. Which numbers would you ask for, and what could they be at best and at worst?",
        "What would you have them measure next, on which questions, and could a larger model or other questions give another answer?",
    ),
    model_answer=(
        "171 of 200 is 85.5 %, with a standard error of 2.5 points, and 168 is 84 % ± 2.6. As two samples "
        "they differ by 1.5 ± 3.6 points: less than half an "
        "error, so nothing. Since the questions were the same, I would ask on how many the formats differed. "
        "If it was 3 to 0, p is 0.25; if it was "
        "20 to 17, p is 0.74. By neither has 4 bits been seen to cost anything. Nor has it been seen to cost "
        "nothing: a true loss of several points would fit too. "
        "With 3 to 0 in 200 some 500 questions would be needed, with 20 to 17 several thousand. Losses, question by question, would "
        "tell more with the same questions. And the result would hold for this model and these questions."
    ),
    rubric=(
        (
            1,
            "gives a standard error, about 2.5 points for one accuracy or 3.6 for the difference, and concludes "
            "that 1.5 points are within it",
        ),
        (1, "says that the same questions were asked, and that the questions on which the formats differ decide"),
        (1, 'says that "not seen" is not "no loss", in whatever words'),
        (1, "says what to do: more questions, with an idea of how many, or losses question by question"),
        (1, "limits the result: one model, one kind of question, one format"),
    ),
)

QUESTIONS = (
    PERPLEXITY_BY_HAND,
    ERROR_OF_AN_ACCURACY,
    WHAT_CAN_HIDE,
    TOSS_COINS,
    POOLED_PERPLEXITY,
    HOW_MANY_QUESTIONS,
    MULTIPLY_IN_INT8,
    JUDGE_A_CLAIM,
)
