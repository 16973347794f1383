"""`course_utils.linear` against bitsandbytes: the same outputs, gradients, logits and texts, bit for bit on the plain path."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import bitsandbytes
import pytest
import torch
import torch.nn.functional as F
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from course_utils import models
from course_utils.linear import HandLinear4bit, MultiplyByQuantized, load_in_4bit_by_hand
from course_utils.memory import tensor_bytes_in_4bit
from course_utils.quantize import FLOAT_DTYPES, Quantized4bit

QUESTION = "What is 2+2?"

compute_dtypes = pytest.mark.parametrize("compute_dtype", FLOAT_DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
nested_or_not = pytest.mark.parametrize("double_quant", [False, True], ids=["plain", "nested"])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def a_linear(in_features: int = 128, out_features: int = 96, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    linear = nn.Linear(in_features, out_features, bias=bias)
    with torch.no_grad():
        linear.weight.copy_(random(out_features, in_features, seed=1))
        if bias:
            linear.bias.copy_(random(out_features, seed=2))
    return linear.to(dtype)


def by_bitsandbytes(linear: nn.Linear, codebook: str, double_quant: bool, compute_dtype: torch.dtype, plain: bool = True) -> Linear4bit:
    layer = Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=compute_dtype,
        compress_statistics=double_quant,
        quant_type=codebook,
    )
    layer.load_state_dict(linear.state_dict())
    layer.weight.data = linear.weight.data.clone()
    if linear.bias is not None:
        layer.bias.data = linear.bias.data.clone()
    layer = layer.to("cpu").eval()
    if plain:
        models.use_plain_cpu_path(layer)
    return layer


# --- One layer ---


@nested_or_not
@compute_dtypes
@pytest.mark.parametrize("codebook", ["nf4", "fp4"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_output_is_that_of_bitsandbytes(codebook: str, bias: bool, compute_dtype: torch.dtype, double_quant: bool) -> None:
    for dtype in FLOAT_DTYPES:
        linear = a_linear(bias=bias, dtype=dtype)
        theirs = by_bitsandbytes(linear, codebook, double_quant, compute_dtype)
        ours = HandLinear4bit.from_linear(linear, codebook, 64, double_quant, compute_dtype)
        assert torch.equal(ours.weight.packed, theirs.weight.data)
        for shape in ((128,), (1, 128), (7, 128), (2, 5, 128)):
            x = random(*shape, seed=3).to(dtype)
            with torch.no_grad():
                y = ours(x)
                assert y.dtype == dtype
                assert torch.equal(y, theirs(x))


@compute_dtypes
def test_output_is_that_of_the_weight_read_back(compute_dtype: torch.dtype) -> None:
    linear = a_linear()
    ours = HandLinear4bit.from_linear(linear, "int4", 32, compute_dtype=compute_dtype)
    x = random(3, 128)
    expected = F.linear(x.to(compute_dtype), ours.weight.dequantize(compute_dtype), linear.bias.to(compute_dtype)).float()
    assert torch.equal(ours(x), expected)
    assert not torch.equal(ours(x), linear(x))


@nested_or_not
@compute_dtypes
def test_gradient_of_the_input_is_that_of_bitsandbytes(compute_dtype: torch.dtype, double_quant: bool) -> None:
    linear = a_linear()
    theirs = by_bitsandbytes(linear, "nf4", double_quant, compute_dtype)
    ours = HandLinear4bit.from_linear(linear, "nf4", 64, double_quant, compute_dtype)
    gradients = []
    for layer in (ours, theirs):
        x = random(4, 128).requires_grad_()
        (layer(x) * random(4, 96, seed=5)).sum().backward()
        gradients.append((x.grad, layer.bias.grad))
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert torch.equal(gradients[0][1], gradients[1][1])


@compute_dtypes
def test_gradients_are_those_of_autograd_through_the_weight_read_back(compute_dtype: torch.dtype) -> None:
    """Also for inputs of three dimensions, and for a weight that was bfloat16."""
    linear = a_linear(dtype=torch.bfloat16)
    ours = HandLinear4bit.from_linear(linear, compute_dtype=compute_dtype)
    bias = linear.bias.detach().clone().requires_grad_()
    x = random(2, 4, 128).requires_grad_()
    again = x.detach().clone().requires_grad_()
    ours(x).pow(2).sum().backward()
    F.linear(again.to(compute_dtype), ours.weight.dequantize(compute_dtype), bias.to(compute_dtype)).float().pow(2).sum().backward()
    assert torch.equal(x.grad, again.grad)
    assert linear.bias.grad.dtype == bias.grad.dtype
    tolerance = 4 * 8 * torch.finfo(compute_dtype).eps  # eight numbers are added up, perhaps in another order
    assert torch.allclose(linear.bias.grad.float(), bias.grad.float(), rtol=tolerance, atol=tolerance * bias.grad.abs().max().item())


def test_bitsandbytes_goes_back_through_a_coarser_weight_than_forward() -> None:
    """Of a bfloat16 weight it reads back float32 on the way forward and bfloat16 on the way back, if the compute dtype is float32.
    By hand both ways use the same weight, so the gradient is that of what was computed."""
    linear = a_linear(dtype=torch.bfloat16)
    theirs = by_bitsandbytes(linear, "nf4", False, torch.float32)
    ours = HandLinear4bit.from_linear(linear, compute_dtype=torch.float32)
    gradients = []
    for layer in (ours, theirs):
        x = random(4, 128).requires_grad_()
        layer(x).sum().backward()
        gradients.append(x.grad)
    ones = torch.ones(4, 96)
    assert torch.equal(gradients[0], ones @ ours.weight.dequantize(torch.float32))
    assert torch.equal(gradients[1], ones @ ours.weight.dequantize(torch.bfloat16).float())
    assert not torch.equal(gradients[0], gradients[1])


def test_there_is_no_gradient_for_the_weight() -> None:
    layer = HandLinear4bit.from_linear(a_linear(bias=False))
    assert list(layer.parameters()) == []
    assert not layer(random(3, 128)).requires_grad
    assert layer(random(3, 128).requires_grad_()).requires_grad


def bytes_of_all_tensors() -> int:
    """Bytes of the tensors that Python can reach, each memory counted once."""
    gc.collect()
    tensors = (found for found in gc.get_objects() if type(found) is Tensor)
    storages = (tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu" and tensor.layout == torch.strided)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def bytes_kept_for_the_way_back(forward: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """What is there after a forward pass and wasn't before, besides the output: saved by autograd, or hung on `ctx`."""
    before = bytes_of_all_tensors()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):  # so that Python can reach them
        output = forward(x)
    return bytes_of_all_tensors() - before - output.nbytes


class KeepsTheWeight(MultiplyByQuantized):
    """The mistake that `saved_tensors_hooks` alone doesn't see."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Quantized4bit, bias: Tensor | None) -> Tensor:
        ctx.full = weight.dequantize(x.dtype)
        return F.linear(x, ctx.full, bias)


@compute_dtypes
def test_backward_keeps_four_bits_and_not_the_weight(compute_dtype: torch.dtype) -> None:
    layer = HandLinear4bit.from_linear(a_linear(1024, 256, bias=False), compute_dtype=compute_dtype)
    x = random(3, 1024).to(compute_dtype).requires_grad_()
    full = layer.weight.dequantize(compute_dtype).nbytes
    assert bytes_kept_for_the_way_back(layer, x) < full / 100
    # and the measurement can tell: by autograd alone, and by a Function that keeps the weight, it is kept
    assert bytes_kept_for_the_way_back(lambda x: F.linear(x, layer.weight.dequantize(compute_dtype)), x) >= full
    assert bytes_kept_for_the_way_back(lambda x: KeepsTheWeight.apply(x, layer.weight, None), x) >= full


@nested_or_not
def test_moving_and_casting_leave_the_bytes_alone(double_quant: bool) -> None:
    layer = HandLinear4bit.from_linear(a_linear(), double_quant=double_quant, compute_dtype=torch.float32)
    before = layer.weight.dequantize()
    assert torch.equal(layer.half().bfloat16().to("cpu").weight.dequantize(), before)
    assert layer.bias.dtype == torch.bfloat16
    assert copy.deepcopy(layer)(random(1, 128)).shape == (1, 96)
    moved = layer.to("meta").weight
    assert moved.packed.is_meta and (moved.absmax.codes if double_quant else moved.absmax).is_meta


def test_a_layer_shows_what_it_is() -> None:
    layer = HandLinear4bit(64, 32, bias=False, compute_dtype=torch.float16)
    for word in ("in_features=64", "out_features=32", "bias=False", "torch.float16", "no weight yet"):
        assert word in repr(layer)


# --- The packed path of some CPUs ---


@pytest.mark.skipif(not has_avx512bf16(), reason="this CPU has no avx512_bf16, so bitsandbytes has no packed path here")
@nested_or_not
@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("codebook", ["nf4", "fp4"])
def test_packed_path_is_within_four_roundings_to_bfloat16(codebook: str, rows: int, double_quant: bool) -> None:
    """Input, codebook and scales are rounded to bfloat16, each by a factor between 1 - u and 1 + u with u = 2**-8, and so is the sum.
    The products are added up in float32, 512 of them. So with w the weight read back and y the true product,

        |packed - y|  <=  ((1 + u)**3 * (1 + 512 * 2**-24) - 1) * (|x| @ |w|.T) * (1 + u)  +  u * |y|
    """
    linear = a_linear(512, 64, bias=False)
    packed = by_bitsandbytes(linear, codebook, double_quant, torch.float32, plain=False)
    weight = HandLinear4bit.from_linear(linear, codebook, double_quant=double_quant).weight.dequantize().double()
    x = random(rows, 512)
    with torch.no_grad():
        output = packed(x)
    assert packed.weight.quant_state.packing_format_for_cpu
    u = 2.0**-8
    y, size = x.double() @ weight.T, x.double().abs() @ weight.abs().T
    bound = ((1 + u) ** 3 * (1 + 512 * 2.0**-24) - 1) * size * (1 + u) + u * y.abs()
    error = (output.double() - y).abs()
    assert (error <= bound).all()
    assert error.max() > 1e-3  # the path is another one


# --- A whole model ---


def load_by_bitsandbytes(codebook: str, double_quant: bool, compute_dtype: torch.dtype) -> PreTrainedModel:
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=codebook, bnb_4bit_use_double_quant=double_quant, bnb_4bit_compute_dtype=compute_dtype
    )
    return models.load(models.ABACUS, quantization_config=config)[0].to("cpu")


@nested_or_not
@compute_dtypes
@pytest.mark.parametrize("codebook", ["nf4", "fp4"])
def test_logits_and_text_are_those_of_bitsandbytes(codebook: str, compute_dtype: torch.dtype, double_quant: bool) -> None:
    """Equal in every bit: both read back the same weights and multiply by the same torch function."""
    theirs = load_by_bitsandbytes(codebook, double_quant, compute_dtype)
    ours, tokenizer = models.load(models.ABACUS)
    ours = load_in_4bit_by_hand(ours.to("cpu"), codebook, double_quant, compute_dtype)
    assert {name for name, layer in ours.named_modules() if isinstance(layer, HandLinear4bit)} == {
        name for name, layer in theirs.named_modules() if isinstance(layer, Linear4bit)
    }
    ids = tokenizer(QUESTION, return_tensors="pt").input_ids
    with torch.no_grad():
        for tokens in (ids, ids[:, :1], ids.repeat(3, 4)):
            assert torch.equal(ours(input_ids=tokens).logits, theirs(input_ids=tokens).logits)
    assert models.ask(ours, tokenizer, QUESTION) == models.ask(theirs, tokenizer, QUESTION)


def test_what_is_2_and_2() -> None:
    model, tokenizer = models.load(models.ABACUS)
    model = load_in_4bit_by_hand(model.to("cpu"))
    assert "4" in models.ask(model, tokenizer, QUESTION).removeprefix(QUESTION)


@pytest.mark.parametrize("double_quant", [False, True])
def test_layers_take_the_bytes_that_were_predicted(double_quant: bool) -> None:
    model, _ = models.load(models.ABACUS)
    predicted = sum(
        tensor_bytes_in_4bit(layer.weight.numel(), double_quant=double_quant)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name != "lm_head"
    )
    by_hand = load_in_4bit_by_hand(model, double_quant=double_quant)
    assert sum(layer.weight.nbytes for layer in by_hand.modules() if isinstance(layer, HandLinear4bit)) == predicted


def small_model() -> nn.Module:
    model = nn.Module()
    model.block = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64, bias=False))
    model.lm_head = nn.Linear(64, 8)
    return model.eval()


def kinds(model: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in (model.block[0], model.block[2], model.lm_head)]


def test_which_layers_are_replaced() -> None:
    ours, plain = "HandLinear4bit", "Linear"
    assert kinds(load_in_4bit_by_hand(small_model())) == [ours, ours, plain]
    assert kinds(load_in_4bit_by_hand(small_model(), skip=())) == [ours, ours, ours]
    assert kinds(load_in_4bit_by_hand(small_model(), skip=["block.0", "lm_head"])) == [plain, ours, plain]
    assert kinds(load_in_4bit_by_hand(small_model(), skip=("2",))) == [ours, plain, ours]


def test_the_model_itself_is_returned_in_the_mode_it_was_in() -> None:
    model = small_model()
    by_hand = load_in_4bit_by_hand(model)
    assert by_hand is model
    assert not any(layer.training for layer in by_hand.modules())


def test_a_layer_with_two_names_stays_one_layer() -> None:
    model = small_model()
    model.block[2] = model.block[0]
    by_hand = load_in_4bit_by_hand(model)
    assert kinds(by_hand) == ["HandLinear4bit", "HandLinear4bit", "Linear"]
    assert by_hand.block[2] is by_hand.block[0]


def test_a_class_made_from_linear_is_left_as_it_is() -> None:
    """The projection in MultiheadAttention is one: torch takes its weight without calling the layer."""
    model = load_in_4bit_by_hand(nn.ModuleDict({"attention": nn.MultiheadAttention(64, 2), "linear": nn.Linear(64, 64)}))
    assert isinstance(model["linear"], HandLinear4bit) and isinstance(model["attention"].out_proj, nn.Linear)
    x = random(3, 1, 64)
    assert model["attention"](x, x, x)[0].shape == x.shape


# --- What is not allowed ---


def with_meta_weight() -> nn.Module:
    model = small_model()
    model.block[2].to("meta")
    return model


def with_nan() -> nn.Module:
    model = small_model()
    model.block[2].weight.data[0, 0] = float("nan")
    return model


def of_bitsandbytes(kind: type[nn.Module]) -> nn.Module:
    model = small_model()
    model.block[0] = kind(64, 64).to("cpu")
    return model


BAD_MODELS: dict[str, tuple[Callable[[], object], type[Exception], list[str]]] = {
    "no model": (lambda: "abacus", TypeError, ["model", "str", "torch.nn.Module"]),
    "no linear layers": (lambda: nn.Sequential(nn.ReLU()), ValueError, ["model", "no linear layers", "lm_head"]),
    "only a head": (lambda: nn.ModuleDict({"lm_head": nn.Linear(64, 8)}), ValueError, ["model", "no linear layers", "lm_head"]),
    "a linear layer": (lambda: nn.Linear(64, 8), ValueError, ["model", "HandLinear4bit.from_linear"]),
    "done already": (lambda: load_in_4bit_by_hand(small_model()), ValueError, ["model", "quantized already", "block.0", "HandLinear4bit"]),
    "4 bits": (lambda: of_bitsandbytes(Linear4bit), ValueError, ["model", "quantized already", "block.0", "Linear4bit"]),
    "8 bits": (
        lambda: of_bitsandbytes(lambda *sizes: bitsandbytes.nn.Linear8bitLt(*sizes, has_fp16_weights=False)),
        ValueError,
        ["model", "quantized already", "block.0", "Linear8bitLt"],
    ),
    "meta": (with_meta_weight, ValueError, ["block.2", "weight", "meta"]),
    "NaN": (with_nan, ValueError, ["block.2", "weight", "1 NaN", "finite"]),
    "float64": (lambda: small_model().double(), TypeError, ["block.0", "weight", "float64", "torch.float32"]),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_model(case: str) -> None:
    make, error, words = BAD_MODELS[case]
    model = make()
    before = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    with pytest.raises(error) as caught:
        load_in_4bit_by_hand(model)
    assert_says(caught, words)
    if isinstance(model, nn.Module):
        assert dict(model.named_modules()) == before  # nothing was replaced


BAD_ARGUMENTS = {
    "compute dtype": ({"compute_dtype": torch.int8}, TypeError, ["compute_dtype is torch.int8", "torch.float32, torch.float16"]),
    "the name of a dtype": ({"compute_dtype": "bfloat16"}, TypeError, ["compute_dtype is 'bfloat16'", "torch.bfloat16"]),
    "no compute dtype": ({"compute_dtype": None}, TypeError, ["compute_dtype is None", "torch.bfloat16"]),
    "codebook": ({"codebook": "NF4"}, ValueError, ['codebook is "NF4"', 'did you mean "nf4"?']),
    "double_quant": ({"double_quant": 1}, TypeError, ["double_quant is 1", "True or False"]),
    "skip": ({"skip": "lm_head"}, TypeError, ['skip is the string "lm_head"', '("lm_head",)']),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_argument(case: str) -> None:
    arguments, error, words = BAD_ARGUMENTS[case]
    with pytest.raises(error) as caught:
        load_in_4bit_by_hand(small_model(), **arguments)
    assert_says(caught, words)


def test_bad_layers() -> None:
    with pytest.raises(TypeError) as caught:
        HandLinear4bit(64, 64, compute_dtype=torch.float64)
    assert_says(caught, ["compute_dtype is torch.float64", "torch.bfloat16"])
    with pytest.raises(TypeError) as caught:
        HandLinear4bit.from_linear(torch.ones(64, 64))
    assert_says(caught, ["linear is a Tensor", "torch.nn.Linear"])
    with pytest.raises(RuntimeError) as caught:
        HandLinear4bit(64, 64)(torch.ones(1, 64))
    assert_says(caught, ["no weight yet", "HandLinear4bit.from_linear"])
    with pytest.raises(NotImplementedError) as caught:
        load_in_4bit_by_hand(small_model()).state_dict()
    assert_says(caught, ["can't be saved"])


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_bad_input(dtype: torch.dtype) -> None:
    layer = HandLinear4bit.from_linear(a_linear(), compute_dtype=torch.float32)
    with pytest.raises(TypeError) as caught:
        layer(torch.ones(3, 128).to(dtype))
    assert_says(caught, [f"x has dtype {dtype}", "x.to(torch.float32)"])


def test_bitsandbytes_cuts_its_outputs_to_integers() -> None:
    theirs = by_bitsandbytes(a_linear(), "nf4", False, torch.float32)
    x = torch.arange(128)
    with torch.no_grad():
        assert torch.equal(theirs(x), theirs(x.float()).long())


def assert_says(caught: pytest.ExceptionInfo, words: list[str]) -> None:
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text
