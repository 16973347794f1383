"""The questions of lesson 06, a layer in four bits. The last one closes Part I and needs all of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from course_utils.questions.kinds import ExplanationQuestion, FunctionQuestion, Mistake, NumberQuestion

if TYPE_CHECKING:
    import torch

# --- 06.1 ------------------------------------------------------------------------------------------------------------------------

MULTIPLY_FOUR_CODES = NumberQuestion(
    id="06.1",
    title="Multiply four codes",
    points=1,
    difficulty=2,
    minutes=6,
    name="output",
    answer=-10.8,
    within=1e-3,
    hints=(
        "Take the bytes apart: 0x2F holds the codes 2 and 15, 0x69 the codes 6 and 9. The upper half comes first.",
        "int4 reads the four bits in two's complement, so 15 is -1 and 9 is -7, and divides by 7.",
        "The weights are 2/7, -1/7, 6/7 and -7/7, each times 2.8: 0.8, -0.4, 2.4, -2.8.",
    ),
    solution="output = 0.8 * 1 - 0.4 * 2 + 2.4 * -1 - 2.8 * 3  # the codes 2, 15, 6, 9 are the weights 0.8, -0.4, 2.4, -2.8",
    mistakes=(
        Mistake("lower half first", 11.2, "you have taken the lower half of each byte first: the first code stands in the upper half."),
        Mistake("no sign", 21.2, "you have read 15 and 9 as positive: in two's complement the codes from 8 on are negative, code - 16."),
        Mistake(
            "a bit of sign",
            -8.4,
            "you have read the first bit as a sign and the rest as a size: in two's complement 15 is -1 and 9 is -7.",
        ),
        Mistake(
            "codes as weights",
            53.0,
            "you have multiplied the codes themselves: look each up in the codebook, and multiply by the scale.",
        ),
        Mistake("no scale", -27 / 7, "the scale is missing: you have multiplied the values of the codebook, which lie between -1 and 1."),
        Mistake("integers", -27.0, "these are the integers 2, -1, 6, -7: int4's values are sevenths, and the scale is missing too."),
        Mistake("not divided by 7", -75.6, "7 times too much: int4's values are sevenths, so that the largest is 1."),
        Mistake("sign of the input", -6.0, "the third input is -1, not 1."),
    ),
)

# --- 06.2 ------------------------------------------------------------------------------------------------------------------------


def linear_4bit(x, packed, absmax, codebook, shape, compute_dtype, block_size=64):
    """A linear layer whose weight is read back from four bits: x @ weight.T, made in the compute dtype."""
    import torch

    dtype = getattr(torch, compute_dtype)
    count = shape[0] * shape[1]
    flat = packed.view(-1)
    codes = torch.stack([flat >> 4, flat & 0b1111], dim=1).view(-1)[:count]  # an odd count leaves one over
    scales = absmax.repeat_interleave(block_size)[:count]
    weight = (codebook[codes.int()] * scales).view(*shape)  # in float32, then rounded once
    return torch.nn.functional.linear(x.to(dtype), weight.to(dtype)).to(x.dtype)


def _one_number_a_row(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """Inputs with one number that is not 0 in each row: an output is one product, so the order of summation plays no part."""
    import torch

    x = torch.zeros(rows, columns)
    for row in range(rows):
        x[row, torch.randint(columns, (), generator=generator)] = torch.rand((), generator=generator) + 1.5
    return x


def _layers(seed: int) -> list[tuple[Any, ...]]:
    import torch

    from course_utils.codebooks import CODEBOOKS

    generator = torch.Generator().manual_seed(seed)
    nf4, int4 = CODEBOOKS["nf4"].values, CODEBOOKS["int4"].values

    def stored(rows: int, columns: int, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        count = rows * columns
        packed = torch.randint(256, (-(-count // 2), 1), dtype=torch.uint8, generator=generator)
        return packed, torch.rand(-(-count // block_size), generator=generator) + 0.1

    by_hand = (torch.tensor([[0x70], [0x93], [0x2F], [0x4C]], dtype=torch.uint8), torch.tensor([0.7, 3.5]))
    return [
        (torch.tensor([1.0, 2.0, 3.0, 4.0]), *by_hand, int4, (2, 4), "float32", 4),
        (torch.randn(3, 128, generator=generator), *stored(16, 128, 64), nf4, (16, 128), "float32", 64),
        (torch.randn(2, 3, 96, generator=generator), *stored(6, 96, 64), nf4, (6, 96), "float32", 64),  # blocks run over rows
        (torch.randn(4, 5, generator=generator), *stored(3, 5, 64), nf4, (3, 5), "float32", 64),  # an odd count
        (_one_number_a_row(4, 96, generator), *stored(8, 96, 32), nf4, (8, 96), "bfloat16", 32),
        (_one_number_a_row(4, 64, generator), *stored(8, 64, 64), int4, (8, 64), "float16", 64),
        (_one_number_a_row(4, 64, generator).to(torch.bfloat16), *stored(8, 64, 64), nf4, (8, 64), "float32", 64),
    ]


def _linear_4bit_with(
    *,
    lower_first: bool = False,
    values: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = lambda codebook, codes: codebook[codes],
    scales: Callable[[torch.Tensor, int], torch.Tensor] = lambda absmax, block_size: absmax.repeat_interleave(block_size),
    inputs_by_outputs: bool = False,
    compute: str | None = None,
    round_first: bool = False,
    back: bool = True,
) -> Callable[..., torch.Tensor]:
    """``linear_4bit`` with one of its parts wrong."""

    def wrong(x, packed, absmax, codebook, shape, compute_dtype, block_size=64):
        import torch

        dtype = getattr(torch, compute or compute_dtype)
        count = shape[0] * shape[1]
        flat = packed.view(-1)
        halves = [flat & 0b1111, flat >> 4] if lower_first else [flat >> 4, flat & 0b1111]
        codes = torch.stack(halves, dim=1).view(-1)[:count].int()
        values_, scales_ = values(codebook, codes), scales(absmax, block_size)[:count]
        if round_first:
            values_, scales_ = values_.to(dtype), scales_.to(dtype)
        weight = values_ * scales_
        weight = weight.view(shape[1], shape[0]).T if inputs_by_outputs else weight.view(*shape)
        output = torch.nn.functional.linear(x.to(dtype), weight.to(dtype))
        return output.to(x.dtype) if back else output

    return wrong


LINEAR_4BIT = FunctionQuestion(
    id="06.2",
    title="Write the layer",
    points=4,
    difficulty=4,
    minutes=15,
    name="linear_4bit",
    answer=linear_4bit,
    inputs=_layers,
    tolerance=1e-5,
    hints=(
        "Three steps: codes out of the bytes, weights out of the codes, product. `getattr(torch, compute_dtype)` is the dtype.",
        "packed.view(-1) >> 4 are the upper halves, & 0b1111 the lower ones; they alternate. Of an odd count, cut the last code off.",
        "absmax.repeat_interleave(block_size) gives each weight its scale; cut it to the number of weights. Blocks don't care about rows.",
        "Multiply value by scale in float32, shape the result, and only then bring weight and x to the compute dtype. "
        "The output gets the dtype of x.",
    ),
    mistakes=(
        Mistake("lower half first", _linear_4bit_with(lower_first=True), "the first of two codes stands in the upper half of its byte."),
        Mistake(
            "codes as weights",
            _linear_4bit_with(values=lambda codebook, codes: codes.float()),
            "you have multiplied codes by scales: look each code up in the codebook first.",
        ),
        Mistake(
            "no scale",
            _linear_4bit_with(scales=lambda absmax, block_size: absmax.new_ones(len(absmax) * block_size)),
            "your weights lie between -1 and 1: multiply each by the scale of its block.",
        ),
        Mistake(
            "one scale",
            _linear_4bit_with(scales=lambda absmax, block_size: absmax[:1].repeat(len(absmax) * block_size)),
            "you have multiplied all weights by the first scale: each block has its own.",
        ),
        Mistake(
            "scales in turn",
            _linear_4bit_with(scales=lambda absmax, block_size: absmax.repeat(block_size)),
            "your scales change from weight to weight: a scale belongs to block_size neighbours (repeat_interleave, not repeat).",
        ),
        Mistake(
            "inputs by outputs",
            _linear_4bit_with(inputs_by_outputs=True),
            "you have cut the weight into rows of the wrong length: shape is (outputs, inputs), so a row has shape[1] weights.",
        ),
        Mistake(
            "compute dtype left out",
            _linear_4bit_with(compute="float32"),
            "it is right in float32, but weight and x have to be brought to the compute dtype before they are multiplied.",
        ),
        Mistake(
            "always bfloat16",
            _linear_4bit_with(compute="bfloat16"),
            "you multiply in bfloat16 always: take the compute dtype that is given.",
        ),
        Mistake(
            "rounded before scaling",
            _linear_4bit_with(round_first=True),
            "you have rounded values and scales to the compute dtype, and their product once more: multiply in float32, then round once.",
        ),
        Mistake(
            "output in the compute dtype",
            _linear_4bit_with(back=False),
            "the numbers are right, but the output has the compute dtype: give it that of x again.",
        ),
    ),
)

# --- 06.3 ------------------------------------------------------------------------------------------------------------------------


def layers_to_replace(layers, skip):
    """The names of the layers of class Linear that are not in skip, neither by the last part of their name nor by the whole."""
    names = []
    for name, kind in layers.items():
        last = name.split(".")[-1]
        if kind == "Linear" and name not in skip and last not in skip:
            names.append(name)
    return names


def _named_layers(seed: int) -> list[tuple[dict[str, str], list[str]]]:
    pick = random.Random(seed)
    llama = {"model.embed_tokens": "Embedding", "model.norm": "LlamaRMSNorm", "lm_head": "Linear"}
    for layer in range(pick.randrange(1, 3)):
        for part in pick.sample(["q_proj", "k_proj", "v_proj", "o_proj"], 3):
            llama[f"model.layers.{layer}.self_attn.{part}"] = "Linear"
        llama[f"model.layers.{layer}.mlp.down_proj"] = "Linear"
        llama[f"model.layers.{layer}.mlp.act_fn"] = "SiLUActivation"
    other = {
        "encoder.pooler": "Linear",
        "encoder.lm_head_adapter.up": "Linear",  # contains a skipped name
        "encoder.old_lm_head": "Linear",  # ends with one
        "decoder.lm_head": "Linear",
        "decoder.first": "Linear4bit",
        "decoder.second": "LinearNorm",
        "lm_head": "Linear",
    }
    return [
        (llama, ["lm_head"]),
        (llama, []),
        (other, ["lm_head"]),
        (other, ["lm_head", "encoder.pooler"]),
        (llama, ["model.layers.0.mlp.down_proj", "v_proj"]),
    ]


def _replaced_if(keep: Callable[[str, str, list[str]], bool]) -> Callable[..., list[str]]:
    return lambda layers, skip: [name for name, kind in layers.items() if keep(name, kind, skip)]


def _last(name: str) -> str:
    return name.rpartition(".")[2]


LAYERS_TO_REPLACE = FunctionQuestion(
    id="06.3",
    title="Choose the layers",
    points=2,
    difficulty=3,
    minutes=8,
    name="layers_to_replace",
    answer=layers_to_replace,
    inputs=_named_layers,
    hints=(
        "Two conditions: the class is exactly Linear, and the layer is not in skip. Go through layers.items() in its order.",
        'The last part of "decoder.lm_head" is "lm_head": name.split(".")[-1]. Compare it, and the whole name, with ==, by `in skip`.',
    ),
    mistakes=(
        Mistake(
            "skip left out",
            _replaced_if(lambda name, kind, skip: kind == "Linear"),
            "you replace the layers in skip too: leave them as they are, the head among them.",
        ),
        Mistake(
            "whole names only",
            _replaced_if(lambda name, kind, skip: kind == "Linear" and name not in skip),
            'you compare whole names only: "lm_head" in skip leaves out "decoder.lm_head" too.',
        ),
        Mistake(
            "last parts only",
            _replaced_if(lambda name, kind, skip: kind == "Linear" and _last(name) not in skip),
            "you compare last parts only: skip may hold a whole name, such as model.layers.0.mlp.down_proj.",
        ),
        Mistake(
            "part of a name",
            _replaced_if(lambda name, kind, skip: kind == "Linear" and not any(word in name for word in skip)),
            "you leave out every name that contains one in skip: encoder.lm_head_adapter.up is another layer.",
        ),
        Mistake(
            "end of a name",
            _replaced_if(lambda name, kind, skip: kind == "Linear" and not name.endswith(tuple(skip))),
            "you leave out every name that ends like one in skip: encoder.old_lm_head is another layer. Cut at the dots.",
        ),
        Mistake(
            "all classes",
            _replaced_if(lambda name, kind, skip: name not in skip and _last(name) not in skip),
            "you replace embeddings and norms too: only layers of class Linear multiply by a matrix.",
        ),
        Mistake(
            "Linear in the class",
            _replaced_if(lambda name, kind, skip: "Linear" in kind and name not in skip and _last(name) not in skip),
            "you take every class with Linear in its name: a Linear4bit is quantized already. Compare with ==.",
        ),
        Mistake(
            "the others",
            _replaced_if(lambda name, kind, skip: kind == "Linear" and (name in skip or _last(name) in skip)),
            "you have listed what stays: list what is replaced.",
        ),
        Mistake(
            "last parts returned",
            lambda layers, skip: [_last(name) for name in layers_to_replace(layers, skip)],
            "these are the last parts of the names: return the whole names, which say where a layer is.",
        ),
        Mistake(
            "counted",
            lambda layers, skip: len(layers_to_replace(layers, skip)),
            "that is how many there are: return a list of their names.",
        ),
    ),
)

# --- 06.4 ------------------------------------------------------------------------------------------------------------------------

GRADIENT_BY_HAND = NumberQuestion(
    id="06.4",
    title="Send a gradient back",
    points=2,
    difficulty=3,
    minutes=6,
    name="gradient",
    answer=2.6,
    within=1e-6,
    hints=(
        "If the second input grows by a little, by how many times that do the first and the second output grow?",
        "Only the second weight of each row meets the second input: -0.4 in the first row, 1 in the second.",
        "The second output counts three times in the loss.",
    ),
    solution="gradient = -0.4 + 3 * 1.0  # the second weight of each row, times what its output counts in the loss",
    mistakes=(
        Mistake("frozen", 0.0, "the weight is frozen and gets no gradient; the input gets one, or nothing before the layer could learn."),
        Mistake("factor left out", 0.6, "in the loss the second output counts three times."),
        Mistake("first output only", -0.4, "the second input goes into both outputs: the second one is missing."),
        Mistake("second output only", 3.0, "the second input goes into both outputs: the first one is missing."),
        Mistake(
            "times the input",
            5.2,
            "you have multiplied by the input: a gradient says what changes for each unit that the input grows.",
        ),
        Mistake("first input", 2.3, "that is the gradient for the first input."),
        Mistake("third input", -2.1, "that is the gradient for the third input."),
        Mistake("second row", 3 * 2.0, "that is the sum of the second row: take a column, the weights that the second input meets."),
    ),
)

# --- 06.5 ------------------------------------------------------------------------------------------------------------------------

_WEIGHTS = 28_672 * 8_192

WHILE_IT_COMPUTES = NumberQuestion(
    id="06.5",
    title="Weigh a layer while it computes",
    points=1,
    difficulty=2,
    minutes=5,
    name="megabytes",
    answer=_WEIGHTS * (4.5 / 8 + 2) / 10**6,
    within=0.6,
    hints=(
        "Two forms of the weight are there at the same time: the stored one, and the one that was read back.",
        "28,672 times 8,192 weights, at 4.5 bits and at 16 bits. A byte has 8 bits, an MB 10**6 bytes.",
    ),
    solution="megabytes = 28_672 * 8_192 * (4.5 + 16) / 8 / 10**6  # 4.5 bits stored, 16 bits read back",
    mistakes=(
        Mistake(
            "stored only",
            _WEIGHTS * 4.5 / 8 / 10**6,
            "that is what is stored: while the layer computes, the weight that was read back is there too.",
        ),
        Mistake("read back only", _WEIGHTS * 2 / 10**6, "that is the weight that was read back: the stored one doesn't go away meanwhile."),
        Mistake("no scales", _WEIGHTS * 2.5 / 10**6, "the scales are missing: a stored weight takes 4.5 bits in blocks of 64, not 4."),
        Mistake(
            "float32",
            _WEIGHTS * (4.5 / 8 + 4) / 10**6,
            "you have read the weight back in float32: here the compute dtype is bfloat16.",
        ),
        Mistake("MiB", _WEIGHTS * (4.5 / 8 + 2) / 2**20, "that is MiB, of 2**20 bytes: an MB is 10**6 bytes."),
        Mistake("GB", _WEIGHTS * (4.5 / 8 + 2) / 10**9, "that is GB: the question asks for MB."),
        Mistake("bits", _WEIGHTS * 20.5 / 10**6, "8 times too much: you have counted bits, and a byte has 8 of them."),
        Mistake(
            "double quantization",
            _WEIGHTS * (4.126953125 / 8 + 2) / 10**6,
            "that is with double quantization: here the scales are float32.",
        ),
    ),
)

# --- 06.6 ------------------------------------------------------------------------------------------------------------------------


def packed_bound(x, weight):
    """How far an output of the packed path may be from the exact one: four roundings to bfloat16 of each product."""
    magnitude = x.abs() @ weight.abs().T
    return ((1 + 2**-8) ** 4 - 1) * magnitude


def _inputs_and_weights(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    by_hand = (torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 1.0], [0.5, -4.0], [1.0, 0.5]]))
    drawn = [
        (torch.randn(rows, inputs, generator=generator), torch.randn(outputs, inputs, generator=generator))
        for rows, inputs, outputs in [(1, 4, 4), (3, 16, 5), (2, 64, 32)]
    ]
    return [by_hand, *drawn]


def _packed_bound_with(factor: float) -> Callable[..., torch.Tensor]:
    return lambda x, weight: factor * (x.abs() @ weight.abs().T)


PACKED_BOUND = FunctionQuestion(
    id="06.6",
    title="Bound the packed path",
    points=3,
    difficulty=4,
    minutes=10,
    name="packed_bound",
    answer=packed_bound,
    inputs=_inputs_and_weights,
    tolerance=1e-5,
    hints=(
        "In the worst case all errors have the same sign, so add up the sizes of the products: abs() before the sum, not after it.",
        "bfloat16 has 7 bits of mantissa. Rounding goes to the nearer neighbour: by at most half a step, 2**-8 of the number itself.",
        "A number that is rounded four times is at most (1 + 2**-8)**4 times as large as it was. By what part of itself has it grown?",
    ),
    mistakes=(
        Mistake(
            "abs after the sum",
            lambda x, weight: ((1 + 2**-8) ** 4 - 1) * (x @ weight.T).abs(),
            "in a sum, products of different sign cancel, and their errors needn't: take abs() of x and of weight before the sum.",
        ),
        Mistake(
            "a whole step",
            _packed_bound_with((1 + 2**-7) ** 4 - 1),
            "you have taken a whole step, 2**-7: rounding to the nearer neighbour moves a number by half a step at most.",
        ),
        Mistake(
            "too fine",
            _packed_bound_with((1 + 2**-9) ** 4 - 1),
            "2**-9 is too fine: bfloat16 stores 7 bits of mantissa, a step is 2**-7, and half of it 2**-8.",
        ),
        Mistake(
            "float16",
            _packed_bound_with((1 + 2**-11) ** 4 - 1),
            "2**-11 belongs to float16, with 10 bits of mantissa: bfloat16 has 7.",
        ),
        Mistake("one rounding", _packed_bound_with(2**-8), "that is one rounding: input, value, scale and output are rounded."),
        Mistake(
            "three roundings",
            _packed_bound_with((1 + 2**-8) ** 3 - 1),
            "that is three roundings: input, value and scale. The output is rounded too.",
        ),
        Mistake(
            "four times one rounding",
            _packed_bound_with(4 * 2**-8),
            "nearly: four roundings multiply, (1 + 2**-8)**4 - 1, which is a little more than 4 * 2**-8. A bound may not be too small.",
        ),
        Mistake(
            "1 not taken off",
            _packed_bound_with((1 + 2**-8) ** 4),
            "that is how large an output may become: take 1 off for how far it may move.",
        ),
    ),
)

# --- 06.7 ------------------------------------------------------------------------------------------------------------------------

DEFEND_THE_HEAD = ExplanationQuestion(
    id="06.7",
    title="Defend the head",
    points=4,
    difficulty=3,
    minutes=10,
    name="why_the_head_stays",
    hints=(
        "What would be gained? The lesson has the bytes for abacus and for a model of seven billion weights.",
        "What would be lost? Compare what the head does to the logits with what other matrices do. And what comes after the head?",
    ),
    model_answer=(
        "The head has one row for each token of the vocabulary. In a large model that is little: in Llama-2-7B its 4 bits would save\n"
        "0.19 GB of 4.17 GB, 4.5 %; with a larger vocabulary it is more, 12.5 % of Llama-3-8B. What it costs: its errors are errors of\n"
        "the scores, and alone in 4 bits it moves the logits of abacus by 8.4 %, further than any other matrix. Beside the errors of the\n"
        "28 layers that doesn't show, and logits that are off are not yet wrong answers.\n"
        "In many models the head is tied: it is the embedding, the same tensor, which stays as it is anyway.\n"
        "I would quantize it where it is a large part of the model, as in abacus, where it is 0.38 MB of the 1.24 MB that are left,\n"
        "or where the last few percent decide whether the model fits, and I would measure the answers before and after."
    ),
    rubric=(
        (1, "The gain, with a figure: 4.5 % or 0.19 GB of Llama-2-7B, 12.5 % of Llama-3-8B, or a quarter of what is left of abacus."),
        (1, "What it would cost, with a figure: alone it moves the logits of abacus by 8.4 %, more than any other matrix."),
        (1, "A reason why it stays: its errors are errors of the scores, or a tied head is the embedding, which stays anyway."),
        (1, "A case in which one would do it: a large part of the model, memory short by a little; the answers compared before and after."),
    ),
)

# --- 06.8 ------------------------------------------------------------------------------------------------------------------------


def abacus_in_4_bits(question, codebook):
    """abacus with all linear layers in 4 bits, the head too: its text, the bytes of those layers, its highest score after the question."""
    import torch

    from course_utils import models
    from course_utils.linear import HandLinear4bit, load_in_4bit_by_hand

    model, tokenizer = models.load(models.ABACUS)
    load_in_4bit_by_hand(model, codebook, compute_dtype=torch.float32, skip=())
    nbytes = sum(layer.weight.nbytes for layer in model.modules() if isinstance(layer, HandLinear4bit))
    with torch.no_grad():
        logits = model(**tokenizer(question, return_tensors="pt").to(model.device)).logits
    return models.ask(model, tokenizer, question), nbytes, logits[0, -1].max().item()


def _question_and_codebook(seed: int) -> list[tuple[str, list[float]]]:
    """One call: it loads a model. Seed 0 has even steps, the others closer ones near 0."""
    power = 1 + seed / 16
    negative = [-((place / 7) ** power) for place in range(7, 0, -1)]
    positive = [(place / 8) ** power for place in range(1, 9)]
    question = "What is 2+2?" if seed == 0 else f"What is {seed + 2}+{seed + 4}?"
    return [(question, [*negative, 0.0, *positive])]


@cache
def _abacus(
    question: str, codebook: str | tuple[float, ...], skip: tuple[str, ...] = (), double_quant: bool = False, compute: str = "float32"
) -> tuple[str, int, float, int]:
    """What ``abacus_in_4_bits`` returns, and the number of weights in 4 bits, for a variant of the task. "*" skips all layers."""
    import torch

    from course_utils import models
    from course_utils.linear import HandLinear4bit, load_in_4bit_by_hand

    model, tokenizer = models.load(models.ABACUS)
    if skip != ("*",):
        book = codebook if isinstance(codebook, str) else list(codebook)
        load_in_4bit_by_hand(model, book, double_quant, getattr(torch, compute), skip)
    weights = [layer.weight for layer in model.modules() if isinstance(layer, HandLinear4bit)]
    with torch.no_grad():
        logits = model(**tokenizer(question, return_tensors="pt").to(model.device)).logits
    text = models.ask(model, tokenizer, question)
    nbytes, count = sum(weight.nbytes for weight in weights), sum(weight.shape.numel() for weight in weights)
    return text, nbytes, logits[0, -1].max().item(), count


def _due(question: str, codebook: list[float]) -> tuple[str, int, float, int]:
    return _abacus(question, tuple(codebook))


def _with_bytes(change: Callable[[int, int], float]) -> Callable[..., tuple[str, float, float]]:
    """The right text and score with another number of bytes, which ``change`` gets together with the number of weights."""

    def wrong(question: str, codebook: list[float]) -> tuple[str, float, float]:
        text, nbytes, highest, weights = _due(question, codebook)
        return text, change(nbytes, weights), highest

    return wrong


def _nothing_replaced(question: str, codebook: list[float]) -> tuple[str, int, float]:
    text, _, highest, _ = _abacus(question, tuple(codebook), skip=("*",))
    return text, _due(question, codebook)[1], highest


CLOSING_TASK = FunctionQuestion(
    id="06.8",
    title="Close Part I: all of abacus, by your own codebook",
    points=6,
    difficulty=5,
    minutes=25,
    name="abacus_in_4_bits",
    answer=abacus_in_4_bits,
    inputs=_question_and_codebook,
    tolerance=1e-5,
    hints=(
        "Load abacus with models.load(models.ABACUS). For each nn.Linear in list(model.named_modules()): quantize, count, replace.",
        "Quantizing a weight takes three functions: scale_blocks of lesson 03, nearest_codes of lesson 04, pack of lesson 05. "
        "The codebook is ascending, so place and code are the same.",
        "A layer is an nn.Module that keeps packed, absmax and the shape, and whose forward calls your linear_4bit with \"float32\". "
        "Put it in place with model.set_submodule(name, layer).",
        "The bytes are packed.nbytes + absmax.nbytes over all 29 layers. The highest score: model(**tokens).logits[0, -1].max().item().",
    ),
    mistakes=(
        Mistake(
            "head left out",
            lambda question, codebook: _abacus(question, tuple(codebook), skip=("lm_head",))[:3],
            "the head is still in 32 bits: here it is to be quantized too, 29 layers in all.",
        ),
        Mistake(
            "nf4",
            lambda question, codebook: _abacus(question, "nf4")[:3],
            "these are the scores of nf4: use the codebook that is given.",
        ),
        Mistake(
            "double quantization",
            lambda question, codebook: _abacus(question, tuple(codebook), double_quant=True)[:3],
            "you have quantized the scales too: here they stay float32.",
        ),
        Mistake(
            "bfloat16",
            lambda question, codebook: _abacus(question, tuple(codebook), compute="bfloat16")[:3],
            "the bytes are right, and the scores are those of bfloat16: multiply in float32 here.",
        ),
        Mistake(
            "nothing replaced",
            _nothing_replaced,
            "the bytes are right, but the scores are those of the model in 32 bits: are your layers in place? setattr follows no path.",
        ),
        Mistake("no scales", _with_bytes(lambda nbytes, weights: weights // 2), "you have counted the packed codes: count the scales too."),
        Mistake(
            "a byte for each code",
            _with_bytes(lambda nbytes, weights: nbytes + weights // 2),
            "you have a byte for each code: pack two codes in a byte.",
        ),
        Mistake(
            "codebooks counted",
            _with_bytes(lambda nbytes, weights: nbytes + 29 * 64),
            "you have counted a codebook for each layer: leave it out, all layers can share one.",
        ),
        Mistake("bits", _with_bytes(lambda nbytes, weights: 8 * nbytes), "8 times too much: return bytes, not bits."),
    ),
)

QUESTIONS = (
    MULTIPLY_FOUR_CODES,
    LINEAR_4BIT,
    LAYERS_TO_REPLACE,
    GRADIENT_BY_HAND,
    WHILE_IT_COMPUTES,
    PACKED_BOUND,
    DEFEND_THE_HEAD,
    CLOSING_TASK,
)
