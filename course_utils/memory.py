"""How many bytes a model takes: computed before it is loaded, and counted after.

First met in lesson 01. Sizes are in bytes; 1 GB is 10**9 bytes and 1 GiB is 2**30 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

GB = 10**9
GIB = 2**30


def bits_per_weight(block_size: int = 64, double_quant: bool = False) -> float:
    """Bits that a 4-bit weight really takes: its code, and its share of the scales.

    Every block has one scale, the absmax, in float32. With double quantization the scale is an 8-bit code,
    and every 256 of those share one float32 scale of their own.

    >>> bits_per_weight()
    4.5
    >>> bits_per_weight(double_quant=True)
    4.126953125

    Source: QLoRA (arXiv 2305.14314), section 3, "Double Quantization".
    """
    scale_bits = 8 + 32 / 256 if double_quant else 32
    return 4 + scale_bits / block_size


def tensor_bytes_in_4bit(weights: int, block_size: int = 64, double_quant: bool = False) -> int:
    """Bytes that bitsandbytes stores for a tensor of `weights` numbers: packed codes and scales, without the codebook.

    Two codes share a byte. A last block that is not full needs a scale too. Double quantization adds
    the mean of the scales, the offset, as one float32.

    >>> tensor_bytes_in_4bit(128)  # 64 bytes of codes, 2 scales of 4 bytes
    72
    >>> tensor_bytes_in_4bit(128, double_quant=True)  # 64 of codes, 2 of scale codes, 4 for their scale, 4 for the offset
    74
    """
    packed = -(-weights // 2)
    blocks = -(-weights // block_size)
    if not double_quant:
        return packed + 4 * blocks
    return packed + blocks + 4 * -(-blocks // 256) + 4


def weight_groups(model: nn.Module) -> dict[str, int]:
    """Count a model's weights by what 4-bit loading does with them.

    Returns:
        Number of weights in ``linear layers`` (which become 4-bit), ``experts`` (the fused three-dimensional weights
        of a mixture of experts), ``embedding``, ``head`` and ``the rest`` (norms, routers, biases).
    """
    counts = {"linear layers": 0, "experts": 0, "embedding": 0, "head": 0, "the rest": 0}
    for group, weight in _grouped_weights(model):
        counts[group] += weight.numel()
    return counts


def _grouped_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every weight once, with the name of its group. A tied head is the embedding and counted there."""
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    embedding = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = {id(m.weight) for name, m in model.named_modules() if name == "lm_head"}
    for weight in model.parameters():
        if id(weight) in embedding:
            yield "embedding", weight
        elif id(weight) in head:
            yield "head", weight
        elif id(weight) in linear:
            yield "linear layers", weight
        else:
            yield ("experts" if weight.ndim == 3 else "the rest"), weight


def model_bytes_in_4bit(model: nn.Module, double_quant: bool = False, other_bits: int = 16, experts_too: bool = False) -> int:
    """Predict the bytes of a model's weights after loading it in 4 bits. The model may be on the meta device.

    Args:
        other_bits: bits of a weight that stays as it is: embedding, head, norms.
        experts_too: count fused experts as 4-bit as well.
    """
    total = 0
    for group, weight in _grouped_weights(model):
        if group == "linear layers" or (group == "experts" and experts_too):
            total += tensor_bytes_in_4bit(weight.numel(), double_quant=double_quant)
        else:
            total += weight.numel() * other_bits // 8
    return total


def stored_bytes(model: PreTrainedModel) -> dict[str, int]:
    """Count the bytes of a loaded model's weights from the tensors themselves, the scales of 4-bit weights included.

    Read it before the first forward pass: on some CPUs that pass repacks the weights (lesson 07).

    Returns:
        Bytes of ``packed codes``, ``scales`` (with nested scales and offset), ``codebooks``, and ``other weights``.
    """
    counts = {"packed codes": 0, "scales": 0, "codebooks": 0, "other weights": 0}
    for weight in model.parameters():
        state = getattr(weight, "quant_state", None)
        if state is None:
            counts["other weights"] += weight.nbytes
            continue
        counts["packed codes"] += weight.nbytes
        counts["scales"] += state.absmax.nbytes
        counts["codebooks"] += state.code.nbytes
        if state.nested:
            counts["scales"] += state.offset.nbytes + state.state2.absmax.nbytes
            counts["codebooks"] += state.state2.code.nbytes
    return counts


def kv_cache_bytes(config: PretrainedConfig, tokens: int, batch: int = 1, bits: int = 16) -> int:
    """Bytes of the key-value cache: two vectors (key and value) for every layer, key-value head and token.

    Args:
        config: of a Llama-like model; its `num_key_value_heads` may be fewer than its attention heads.
        tokens: length of prompt and answer together.
    """
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    numbers_per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head_size
    return numbers_per_token * tokens * batch * bits // 8


def float_fields(number: float, dtype: torch.dtype) -> tuple[str, str, str]:
    """Sign, exponent and mantissa of a number in a floating-point format, as strings of bits.

    >>> float_fields(-6.5, torch.float16)
    ('1', '10001', '1010000000')

    Raises:
        KeyError: for a dtype other than float32, float16 and bfloat16.
    """
    integer, exponent_bits = {
        torch.float32: (torch.int32, 8), torch.float16: (torch.int16, 5), torch.bfloat16: (torch.int16, 8)
    }[dtype]  # fmt: skip
    width = torch.finfo(dtype).bits
    pattern = torch.tensor(number, dtype=dtype).view(integer).item() % 2**width
    bits = f"{pattern:0{width}b}"
    return bits[0], bits[1 : 1 + exponent_bits], bits[1 + exponent_bits :]
