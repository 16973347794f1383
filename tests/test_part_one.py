"""Part I as a whole: what learners write in its exercises loads abacus, and what its lessons define is what `course_utils` holds.

Both are read from the sources of the lessons and exercises. Nothing is skipped: a function that is not there makes its test fail.
"""

from __future__ import annotations

import ast
import dis
import inspect
from collections.abc import Iterator
from functools import cache
from types import CodeType, SimpleNamespace
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from course_utils import ROOT, codebooks, linear, models, quantize
from course_utils.codebooks import CODEBOOKS
from course_utils.quantize import FLOAT_DTYPES, NestedScales, Quantized4bit

LESSONS = {
    "02": "02_round_to_a_grid",
    "03": "03_quantize_in_blocks",
    "04": "04_choose_sixteen_values",
    "05": "05_pack_and_quantize_twice",
    "06": "06_a_layer_in_four_bits",
}
QUESTIONS = ["What is 2+2?", "What is 45+37?", "What is 47*6?", "Where does Ada Stone live?"]

examples = settings(max_examples=40, deadline=None, derandomize=True)


def source(kind: str, lesson: str) -> ast.Module:
    return ast.parse((ROOT / "source" / kind / f"{LESSONS[lesson]}.py").read_text(encoding="utf-8"))


def compiled(statements: list[ast.stmt], lesson: str) -> CodeType:
    """Statements as code, compiled as a notebook compiles them, without the `from __future__` of this file."""
    return compile(ast.Module(statements, []), LESSONS[lesson], "exec", dont_inherit=True)


def bound_by(node: ast.stmt) -> list[str]:
    """The names that a statement defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [(alias.asname or alias.name).partition(".")[0] for alias in node.names]
    if isinstance(node, ast.Assign):
        return [name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    return []


def looked_up_by(code: CodeType) -> set[str]:
    """The global names that a piece of code looks up, when it is executed or when the functions in it are called."""
    lookups = ("LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS")
    names = {instruction.argval for instruction in dis.get_instructions(code) if instruction.opname in lookups}
    return names.union(*(looked_up_by(inner) for inner in code.co_consts if isinstance(inner, CodeType)))


@cache
def taken_from(kind: str, lesson: str, name: str) -> Any:
    """What the source defines under this name: the statements that define it, and all that it leans on, are executed in their order."""
    statements = source(kind, lesson).body
    needed: set[int] = set()
    names, seen = [name], {name}
    while names:
        wanted = names.pop()
        for place, node in enumerate(statements):
            if place not in needed and wanted in bound_by(node):
                needed.add(place)
                more = looked_up_by(compiled([node], lesson)) - seen
                names += more
                seen |= more
    defined: dict[str, Any] = {"__name__": f"{kind}_{lesson}"}
    exec(compiled([statements[place] for place in sorted(needed)], lesson), defined)
    assert name in defined, f"{LESSONS[lesson]} in source/{kind} defines no {name}"
    return defined[name]


# --- The exercises: their solutions, put together -----------------------------------------------------------------------------------

WRITTEN_BY_LEARNERS = {
    "02": ["int4_codes"],
    "03": ["scale_blocks", "restore"],
    "04": ["nf4_codebook", "nearest_codes"],
    "05": ["pack", "unpack", "quantize_scales", "restore_scales"],
    "06": ["linear_4bit"],
}


@pytest.fixture(scope="module")
def learner() -> SimpleNamespace:
    """What a learner has written in exercises 02 to 06: the published solutions."""
    return SimpleNamespace(
        **{name: taken_from("exercises", lesson, name) for lesson, names in WRITTEN_BY_LEARNERS.items() for name in names}
    )


class LearnersLayer(nn.Module):
    """A quantizer and a layer of the learner's functions alone."""

    def __init__(self, learner: SimpleNamespace, weight: Tensor, compute_dtype: str, double_quant: bool) -> None:
        super().__init__()
        self.learner, self.compute_dtype, self.shape = learner, compute_dtype, tuple(weight.shape)
        self.codebook = torch.tensor(learner.nf4_codebook(), dtype=torch.float32)
        scaled, self.absmax = learner.scale_blocks(weight.detach().flatten(), 64)
        self.packed = learner.pack(learner.nearest_codes(scaled, self.codebook)).view(-1, 1)
        self.nested = learner.quantize_scales(self.absmax) if double_quant else None

    def scales(self) -> Tensor:
        return self.absmax if self.nested is None else self.learner.restore_scales(*self.nested)

    def forward(self, x: Tensor) -> Tensor:
        return self.learner.linear_4bit(x, self.packed, self.scales(), self.codebook, self.shape, self.compute_dtype)


def load_on_the_cpu() -> PreTrainedModel:
    return models.load(models.ABACUS)[0].to("cpu")


def by_the_learner(learner: SimpleNamespace, compute_dtype: str = "float32", double_quant: bool = False) -> PreTrainedModel:
    model = load_on_the_cpu()
    chosen = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name != "lm_head"]
    for name, layer in chosen:
        model.set_submodule(name, LearnersLayer(learner, layer.weight, compute_dtype, double_quant))
    return model


def by_bitsandbytes(compute_dtype: str = "float32", double_quant: bool = False) -> PreTrainedModel:
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=getattr(torch, compute_dtype),
        bnb_4bit_use_double_quant=double_quant,
    )
    return models.load(models.ABACUS, quantization_config=config)[0]


def pairs(ours: PreTrainedModel, theirs: PreTrainedModel) -> Iterator[tuple[LearnersLayer, Linear4bit]]:
    """Each layer of the learner's beside that of bitsandbytes; all 28, and no other."""
    found = {name: layer for name, layer in theirs.named_modules() if isinstance(layer, Linear4bit)}
    assert len(found) == 28
    assert {name for name, layer in ours.named_modules() if isinstance(layer, LearnersLayer)} == set(found)
    return ((ours.get_submodule(name), layer) for name, layer in found.items())


def test_the_learners_functions_store_the_bytes_of_bitsandbytes(learner: SimpleNamespace) -> None:
    for ours, theirs in pairs(by_the_learner(learner), by_bitsandbytes()):
        assert torch.equal(ours.packed, theirs.weight.data)
        assert torch.equal(ours.absmax, theirs.weight.quant_state.absmax)
        assert torch.equal(ours.codebook, theirs.weight.quant_state.code)
        codes = learner.unpack(ours.packed.view(-1), theirs.weight.quant_state.shape.numel())
        assert torch.equal(learner.pack(codes), ours.packed.view(-1))
        restored = learner.restore(ours.codebook[codes.int()], ours.absmax, 64)
        assert torch.equal(restored, dequantize_4bit(theirs.weight.data, theirs.weight.quant_state).view(-1))


def test_the_learners_functions_quantize_the_scales_as_bitsandbytes_does(learner: SimpleNamespace) -> None:
    for ours, theirs in pairs(by_the_learner(learner, double_quant=True), by_bitsandbytes(double_quant=True)):
        state, (codes, absmax, offset) = theirs.weight.quant_state, ours.nested
        assert torch.equal(ours.packed, theirs.weight.data)
        assert torch.equal(codes, state.absmax)
        assert torch.equal(absmax, state.state2.absmax)
        assert offset == state.offset.item()


@pytest.mark.parametrize("double_quant", [False, True], ids=["", "nested"])
@pytest.mark.parametrize("compute_dtype", ["float32", "float16", "bfloat16"])
def test_abacus_made_of_the_learners_functions_answers_as_bitsandbytes_does(
    learner: SimpleNamespace, compute_dtype: str, double_quant: bool
) -> None:
    tokenizer = models.read_tokenizer(str(models.ABACUS))
    ours, theirs = by_the_learner(learner, compute_dtype, double_quant), by_bitsandbytes(compute_dtype, double_quant)
    tokens = tokenizer(QUESTIONS[0], return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(ours(**tokens).logits, theirs(**tokens).logits), "equal in every bit"
    for question in QUESTIONS:
        assert models.ask(ours, tokenizer, question) == models.ask(theirs, tokenizer, question)


def test_the_learners_integers_are_the_codes_of_int4(learner: SimpleNamespace) -> None:
    """Block by block, `int4_codes` of exercise 02 is the library's int4: packed by the learner, read by the learner's layer."""
    weight = load_on_the_cpu().model.layers[0].self_attn.q_proj.weight.detach()
    blocks = [learner.int4_codes(block) for block in weight.view(-1, 64)]
    codes = torch.cat([block_codes for block_codes, _ in blocks])
    library = quantize.quantize_4bit(weight, "int4")
    theirs = quantize.unpack(library.packed.view(-1))
    scaled, absmax = learner.scale_blocks(weight.flatten(), 64)
    half_way = ((7 * scaled.abs()) % 1 - 0.5).abs() < 1e-5  # there the last bit of a division decides
    assert torch.equal((codes.int() & 0b1111)[~half_way], theirs.int()[~half_way]) and half_way.sum() < 10
    torch.testing.assert_close(torch.tensor([scale for _, scale in blocks]) * 7, absmax, rtol=1e-6, atol=0)

    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    output = learner.linear_4bit(x, library.packed, library.absmax, CODEBOOKS["int4"].values, (128, 128), "float32")
    assert torch.equal(output, linear.MultiplyByQuantized.apply(x, library, None))


# --- The lessons: what they define is what the library holds ----------------------------------------------------------------------

FIRST_MET = {
    "scale_blocks": "03",
    "values_times_scales": "03",
    "float32": "04",
    "float32_steps": "04",
    "nf4_values": "04",
    "fp4_value": "04",
    "nearest_codes": "04",
    "pack": "05",
    "unpack": "05",
    "dynamic_map": "05",
    "nearest_scale_codes": "05",
    "quantize_scales": "05",
    "NestedScales": "05",
    "Quantized4bit": "05",
    "quantize_4bit": "05",
    "MultiplyByQuantized": "06",
    "HandLinear4bit": "06",
    "load_in_4bit_by_hand": "06",
}
"""Functions and classes that a lesson and the library both define, and the lesson."""

LIBRARY = {
    name: value
    for module in (codebooks, quantize, linear)
    for name, value in vars(module).items()
    if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module.__name__
}


def from_lesson(name: str) -> Any:
    """What the lesson of `FIRST_MET` defines under this name."""
    return taken_from("lessons", FIRST_MET[name], name)


def defined_in(lesson: str) -> set[str]:
    return {node.name for node in source("lessons", lesson).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


@pytest.mark.parametrize("lesson", ["03", "04", "05", "06"])
def test_all_that_a_lesson_and_the_library_both_define_is_compared(lesson: str) -> None:
    assert defined_in(lesson) & set(LIBRARY) == {name for name, first in FIRST_MET.items() if first == lesson}


def numbers(count: int, seed: int, kind: str) -> Tensor:
    """Float32 numbers of the kinds that weights come in: normal, few and far out, rounded (so there are ties), blocks of zeros, tiny."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, generator=generator)
    if kind == "outliers":
        drawn = drawn**5
    elif kind == "ties":
        drawn = (drawn * 4).round() / 8
    elif kind == "zeros":
        drawn[: count // 2] = 0
    elif kind == "tiny":
        drawn = drawn * 1e-40
    return drawn


seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(["normal", "outliers", "ties", "zeros", "tiny"])
counts = st.one_of(st.integers(1, 200), st.sampled_from([4096, 5000]))
weights = st.builds(numbers, counts, seeds, kinds)
code_tensors = st.lists(st.integers(0, 15), max_size=99).map(lambda codes: torch.tensor(codes + codes, dtype=torch.uint8))


def same(ours: Any, due: Any) -> bool:
    """Tensors of the same dtype, shape and numbers; tuples and nested scales of such."""
    if isinstance(due, Tensor):
        return ours.dtype == due.dtype and ours.shape == due.shape and torch.equal(ours, due)
    if isinstance(due, NestedScales):
        return all(same(getattr(ours, part), getattr(due, part)) for part in ("codes", "absmax", "offset"))
    if isinstance(due, Quantized4bit):
        return same(ours.packed, due.packed) and same(ours.absmax, due.absmax) and ours.shape == due.shape and ours.dtype == due.dtype
    return len(ours) == len(due) and all(map(same, ours, due))


@examples
@given(weights, st.one_of(st.integers(1, 80), st.sampled_from(quantize.BLOCK_SIZES)))
def test_scale_blocks(weight: Tensor, block_size: int) -> None:
    assert same(from_lesson("scale_blocks")(weight.clone(), block_size), quantize.scale_blocks(weight, block_size))


@examples
@given(counts, st.integers(1, 80), st.sampled_from(sorted(CODEBOOKS)), seeds)
def test_values_times_scales(count: int, block_size: int, codebook: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(16, (count,), dtype=torch.uint8, generator=generator)
    scales = torch.rand(-(-count // block_size), generator=generator)
    given = codes, scales, CODEBOOKS[codebook].values, block_size
    assert same(from_lesson("values_times_scales")(*given), quantize.values_times_scales(*given))


def test_codebooks() -> None:
    assert list(from_lesson("nf4_values")()) == codebooks.nf4_values()
    ours, due = ([function(code) for code in range(16)] for function in (from_lesson("fp4_value"), codebooks.fp4_value))
    assert ours == due, "but for the sign of the second zero, code 8, which bitsandbytes' table and its kernels see differently"
    assert same(from_lesson("dynamic_map")(), codebooks.dynamic_map())


@examples
@given(st.floats(0, 1), st.floats(0, 1), st.integers(2, 40))
def test_float32_and_its_steps(start: float, end: float, count: int) -> None:
    assert from_lesson("float32")(start) == codebooks.float32(start)
    assert from_lesson("float32_steps")(start, end, count) == codebooks.float32_steps(start, end, count)


@examples
@given(weights, st.sampled_from(sorted(CODEBOOKS)))
def test_nearest_codes(weight: Tensor, codebook: str) -> None:
    book = CODEBOOKS[codebook]
    scaled = torch.cat([weight / weight.abs().max().clamp(min=1e-38), torch.tensor(book.thresholds()), book.values])
    given = scaled, book.thresholds(), book.codes_in_order()
    assert same(from_lesson("nearest_codes")(*given), quantize.nearest_codes(*given))


@examples
@given(code_tensors)
def test_pack_and_unpack(codes: Tensor) -> None:
    packed = quantize.pack(codes)
    assert same(from_lesson("pack")(codes), packed)
    assert same(from_lesson("unpack")(packed), codes)


@examples
@given(st.builds(numbers, st.one_of(st.integers(1, 50), st.integers(200, 1000)), seeds, kinds))
def test_quantize_scales(weight: Tensor) -> None:
    absmax = weight.abs()
    nested, due = from_lesson("quantize_scales")(absmax), quantize.quantize_scales(absmax)
    assert same(nested, due)
    assert same(nested.dequantize(), due.dequantize())
    scaled = weight / weight.abs().max().clamp(min=1e-38)
    assert same(from_lesson("nearest_scale_codes")(scaled), quantize.nearest_scale_codes(scaled))


@examples
@given(weights, st.sampled_from(FLOAT_DTYPES), st.sampled_from(sorted(CODEBOOKS)), st.sampled_from([32, 64, 256]), st.booleans())
def test_quantize_4bit(
    weight: Tensor, dtype: torch.dtype, codebook: str, block_size: int, double_quant: bool
) -> None:
    weight = weight.clamp(-60_000, 60_000).to(dtype)
    given = weight, codebook, block_size, double_quant
    ours, due = from_lesson("quantize_4bit")(*given), quantize.quantize_4bit(*given)
    assert same(ours, due)
    assert same(ours.dequantize(), due.dequantize())


# --- Lesson 06 --------------------------------------------------------------------------------------------------------------------


def output_and_gradients(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, and the gradients for the input and the bias."""
    x = x.clone().requires_grad_()
    if layer.bias is not None:
        layer.bias.grad = None
    output = layer(x)
    output.square().sum().backward()
    return [output, x.grad] + ([] if layer.bias is None else [layer.bias.grad])


@examples
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5)),
    seeds,
    st.sampled_from(sorted(CODEBOOKS)),
    st.sampled_from([32, 64]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(FLOAT_DTYPES),
)
def test_the_layer(
    sizes: tuple[int, int, int],
    seed: int,
    codebook: str,
    block_size: int,
    double_quant: bool,
    bias: bool,
    compute_dtype: torch.dtype,
) -> None:
    inputs, outputs, rows = sizes
    layer = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(numbers(inputs * outputs, seed, "normal").view(outputs, inputs))
    chosen = {"codebook": codebook, "block_size": block_size, "double_quant": double_quant, "compute_dtype": compute_dtype}
    ours, due = (cls.from_linear(layer, **chosen) for cls in (from_lesson("HandLinear4bit"), linear.HandLinear4bit))
    x = numbers(rows * inputs, seed, "normal").view(rows, inputs)
    assert same(ours.weight, due.weight) and ours.compute_dtype == due.compute_dtype
    assert all(map(same, output_and_gradients(ours, x), output_and_gradients(due, x)))
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in due.named_parameters()]
    by_function = [function.apply(x, due.weight, None) for function in (from_lesson("MultiplyByQuantized"), linear.MultiplyByQuantized)]
    assert same(*by_function)


def a_model(seed: int) -> nn.Module:
    """A few linear layers, nested, with a head, and layers that are none."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inner = nn.ModuleDict({"q_proj": nn.Linear(8, 8), "norm": nn.LayerNorm(8), "lm_head_adapter": nn.Linear(8, 8)})
        return nn.ModuleDict({"embed": nn.Embedding(4, 8), "layers": nn.ModuleList([inner, nn.Linear(8, 8)]), "lm_head": nn.Linear(8, 4)})


@examples
@given(
    seeds,
    st.sampled_from(sorted(CODEBOOKS)),
    st.booleans(),
    st.sampled_from(FLOAT_DTYPES),
    st.lists(st.sampled_from(["lm_head", "q_proj", "layers.1", "layers.0.q_proj", "head", "1"]), unique=True),
)
def test_the_loader(
    seed: int, codebook: str, double_quant: bool, compute_dtype: torch.dtype, skip: list[str]
) -> None:
    given = codebook, double_quant, compute_dtype, skip
    ours = from_lesson("load_in_4bit_by_hand")(a_model(seed), *given)
    due = linear.load_in_4bit_by_hand(a_model(seed), *given)
    kinds = [{name: type(layer).__name__ for name, layer in model.named_modules()} for model in (ours, due)]
    assert kinds[0] == kinds[1]
    for name, layer in due.named_modules():
        if isinstance(layer, linear.HandLinear4bit):
            x = numbers(16, seed, "normal").view(2, 8)
            assert same(ours.get_submodule(name)(x), layer(x))


def test_the_loader_leaves_the_head_by_default() -> None:
    for load in (from_lesson("load_in_4bit_by_hand"), linear.load_in_4bit_by_hand):
        model = load(a_model(0))
        assert type(model["lm_head"]) is nn.Linear
        assert {type(layer).__name__ for layer in model["layers"].modules() if "Linear" in type(layer).__name__} == {"HandLinear4bit"}
        assert model["layers"][1].compute_dtype == torch.bfloat16
