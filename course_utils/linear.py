"""A linear layer whose weight is kept in four bits, and a model made of such layers.

First met in lesson 06. The weight is read back each time it is used, in the compute dtype, and thrown away again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from course_utils.codebooks import Codebook, resolve_codebook
from course_utils.quantize import Quantized4bit, check_dtype, quantize_4bit

Model = TypeVar("Model", bound=nn.Module)


class MultiplyByQuantized(torch.autograd.Function):
    """``x @ weight.T + bias``, with a weight that is read back from four bits both on the way forward and on the way back.

    Autograd by itself would keep the weight that was read back until the backward pass, for every layer at once.
    Here only the four bits are kept. There is a gradient for x and for the bias, and none for the weight.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "... in_features"], weight: Quantized4bit, bias: Float[Tensor, " out_features"] | None
    ) -> Float[Tensor, "... out_features"]:
        """The product, in the dtype of x and bias. For the way back, the four bits are hung on ``ctx``."""
        ctx.weight = weight
        return F.linear(x, weight.dequantize(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "... out_features"]) -> tuple[Tensor | None, None, Tensor | None]:
        """From the gradient of the output those of x, of the weight (none) and of the bias; None too for what needs no gradient."""
        needs_x, _, needs_bias = ctx.needs_input_grad
        grad_x = grad @ ctx.weight.dequantize(grad.dtype) if needs_x else None
        grad_bias = grad.reshape(-1, grad.shape[-1]).sum(dim=0) if needs_bias else None
        return grad_x, None, grad_bias


class HandLinear4bit(nn.Module):
    """A linear layer with a weight in four bits. `from_linear` makes one from a layer that has its weight already.

    Args:
        in_features: numbers in an input.
        out_features: numbers in an output.
        bias: whether something is added to each output.
        compute_dtype: float32, float16 or bfloat16. Input, weight and bias are brought to it, and the product is made in it;
            the output has the dtype of the input again.

    Attributes:
        weight: the quantized weight; None until it is given one. It is no parameter: it can't be trained.
        bias: a parameter, or None.

    >>> layer = HandLinear4bit.from_linear(nn.Linear(64, 2), compute_dtype=torch.float32)
    >>> layer
    HandLinear4bit(in_features=64, out_features=2, bias=True, compute_dtype=torch.float32, nf4, 4.5 bits a weight)
    >>> layer(torch.ones(3, 64)).shape
    torch.Size([3, 2])
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, compute_dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        check_dtype("compute_dtype", compute_dtype)
        self.in_features = in_features
        self.out_features = out_features
        self.compute_dtype = compute_dtype
        self.weight: Quantized4bit | None = None
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        codebook: str | Codebook | Tensor | list[float] = "nf4",
        block_size: int = 64,
        double_quant: bool = False,
        compute_dtype: torch.dtype = torch.bfloat16,
    ) -> HandLinear4bit:
        """Make a 4-bit layer of a linear layer, which stays as it is. The bias is shared, not copied.

        Raises:
            TypeError, ValueError: as `quantize_4bit` does, and for a compute_dtype other than float32, float16 and bfloat16.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear is a {type(linear).__name__}; it must be a torch.nn.Linear.")
        layer = cls(linear.in_features, linear.out_features, bias=False, compute_dtype=compute_dtype)
        layer.weight = quantize_4bit(linear.weight, codebook, block_size, double_quant)
        layer.bias = linear.bias
        return layer.train(linear.training)

    def forward(self, x: Float[Tensor, "... in_features"]) -> Float[Tensor, "... out_features"]:
        """``x @ weight.T + bias``, computed in the compute dtype and returned in the dtype of x.

        Raises:
            RuntimeError: the layer has no weight yet.
            TypeError: x has no floating-point dtype. bitsandbytes' layer would cut its outputs to integers, and say nothing.
        """
        if self.weight is None:
            raise RuntimeError("This HandLinear4bit has no weight yet. Make the layer with HandLinear4bit.from_linear(linear).")
        if not x.is_floating_point():
            raise TypeError(f"x has dtype {x.dtype}; it must be a floating-point dtype: cast it with x.to(torch.float32).")
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        return MultiplyByQuantized.apply(x.to(self.compute_dtype), self.weight, bias).to(x.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> HandLinear4bit:
        """What `.to(...)`, `.cuda()` and `.half()` call. The weight goes to the new device, and its bytes stay as they are."""
        super()._apply(fn, recurse)
        if self.weight is not None:
            device = fn(torch.empty(0, dtype=torch.uint8, device=self.weight.packed.device)).device
            self.weight = self.weight.to(device)
        return self

    def get_extra_state(self) -> None:
        """What `state_dict()` calls. A state dict without the weight would be a loss that nobody notices."""
        raise NotImplementedError(
            "A HandLinear4bit can't be saved: its weight is no parameter, so a state dict would lack it. "
            "Save the model before it is quantized, and quantize it again after loading."
        )

    def extra_repr(self) -> str:
        """What `print(layer)` shows between the brackets."""
        weight = "no weight yet" if self.weight is None else f"{self.weight.codebook.name}, {self.weight.bits_per_weight:.4g} bits a weight"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"compute_dtype={self.compute_dtype}, {weight}"
        )


def load_in_4bit_by_hand(
    model: Model,
    codebook: str | Codebook | Tensor | list[float] = "nf4",
    double_quant: bool = False,
    compute_dtype: torch.dtype = torch.bfloat16,
    skip: Iterable[str] = ("lm_head",),
) -> Model:
    """Replace every `nn.Linear` of a model by a `HandLinear4bit`, in blocks of 64. Returns the same model.

    Nothing is replaced unless everything can be.

    Args:
        skip: layers that stay as they are, by the last part of their name or by the whole. The head, which turns the last hidden
            state into one number for each token, is left out as transformers leaves it out.

    Raises:
        TypeError: model is no module, skip is one string, or the dtype of a weight or of compute_dtype is not allowed.
        ValueError: there is no linear layer to replace, the model is quantized already, or a weight can't be quantized.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; it must be a torch.nn.Module.")
    if isinstance(skip, str):
        raise TypeError(f'skip is the string "{skip}"; it must be a tuple of names: ("{skip}",).')
    check_dtype("compute_dtype", compute_dtype)
    book = resolve_codebook(codebook)
    skip = tuple(skip)

    linears: dict[str, nn.Linear] = {}
    for name, layer in model.named_modules(remove_duplicate=False):
        if is_quantized(layer):
            raise ValueError(f"model is quantized already: {name or 'it'} is a {type(layer).__name__}. Load it without quantization.")
        if type(layer) is nn.Linear and name not in skip and name.rpartition(".")[2] not in skip:
            linears[name] = layer
    if "" in linears:
        raise ValueError("model is itself a linear layer, so there is nothing to replace it in; use HandLinear4bit.from_linear(model).")
    if not linears:
        raise ValueError(f"model, a {type(model).__name__}, has no linear layers besides those in skip={skip}; it must have at least one.")

    made: dict[nn.Linear, HandLinear4bit] = {}
    for name, linear in linears.items():
        try:
            made[linear] = HandLinear4bit.from_linear(linear, book, double_quant=double_quant, compute_dtype=compute_dtype)
        except (TypeError, ValueError) as error:
            raise type(error)(f"In the layer {name}: {error}") from None
    for name, linear in linears.items():
        model.set_submodule(name, made[linear])
    return model


def is_quantized(layer: nn.Module) -> bool:
    """Whether a layer is one of ours, or a linear layer of bitsandbytes or another library that keeps integers."""
    if isinstance(layer, HandLinear4bit):
        return True
    return isinstance(layer, nn.Linear) and (hasattr(layer.weight, "quant_state") or not layer.weight.is_floating_point())
