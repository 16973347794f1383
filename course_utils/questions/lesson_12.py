"""The questions of lesson 12, save and reload. The last one is the loader of one weight, from the tensors of a file."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from course_utils.questions.kinds import ExplanationQuestion, FunctionQuestion, Mistake, NumberQuestion

if TYPE_CHECKING:
    import torch

# --- 12.1 ------------------------------------------------------------------------------------------------------------------------

WEIGH_A_WEIGHT = NumberQuestion(
    id="12.1",
    title="Weigh a saved weight",
    points=2,
    difficulty=3,
    minutes=8,
    name="nbytes",
    answer=8_655_936,
    within=0.5,
    hints=(
        "Five tensors, without the text: weight, absmax, nested_absmax, quant_map, nested_quant_map. How many numbers has each?",
        "There are 4096 * 4096 / 64 = 262,144 blocks. With double quantization each has a byte in absmax, and 256 of them share a float32.",
        "The codebooks have 16 and 256 float32 values, and are stored with every weight.",
    ),
    solution=(
        "weights = 4096 * 4096\n"
        "blocks = weights // 64\n"
        "packed, absmax, nested_absmax = weights // 2, blocks, 4 * (blocks // 256)\n"
        "nbytes = packed + absmax + nested_absmax + 4 * 16 + 4 * 256"
    ),
    mistakes=(
        Mistake("no codebooks", 8_654_848, "the two codebooks are missing: a file has them with every weight, 16 and 256 float32 values."),
        Mistake("no dynamic map", 8_654_912, "nested_quant_map is missing, the 256 values of the codebook for scales."),
        Mistake("no NF4 values", 8_655_872, "quant_map is missing, the sixteen values of NF4."),
        Mistake("plain scales", 9_437_248, "these are float32 scales: with double quantization absmax holds one byte for each block."),
        Mistake("no nested scales", 8_651_840, "nested_absmax is missing, one float32 for every 256 scales."),
        Mistake("codes only", 8_388_608, "that is the packed codes alone: scales and codebooks are stored beside them."),
        Mistake("the offset", 8_655_940, "you have counted the offset: the file has it in the text of the state, which is left out here."),
        Mistake("a byte a code", 17_044_544, "you have stored a byte for each code: two codes share one."),
    ),
)

# --- 12.2 ------------------------------------------------------------------------------------------------------------------------


def bytes_of(raw, name):
    """The bytes of one tensor of a safetensors file, as a list of numbers."""
    import json

    data = bytes(raw)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    start, end = header[name]["data_offsets"]
    return list(data[8 + length + start : 8 + length + end])


def _files(seed: int) -> list[tuple[list[int], str]]:
    pick = random.Random(seed)
    calls = []
    for asked, sizes in (("a", {"a": 3}), ("weight", {"weight": 6, "weight.absmax": 4}), ("head", {"norm": 8, "head": 300, "bias": 5})):
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        content: list[int] = []
        for name, size in sizes.items():
            entries[name] = {"dtype": "U8", "shape": [size], "data_offsets": [len(content), len(content) + size]}
            content += [pick.randrange(256) for _ in range(size)]
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)
        calls.append(([*len(header).to_bytes(8, "little"), *header, *content], asked))
    return calls


def _bytes_with(cut: Callable[[bytes, int, int, int], Any]) -> Callable[..., Any]:
    def wrong(raw: list[int], name: str) -> Any:
        data = bytes(raw)
        length = int.from_bytes(data[:8], "little")
        start, end = json.loads(data[8 : 8 + length])[name]["data_offsets"]
        return cut(data, length, start, end)

    return wrong


BYTES_OF = FunctionQuestion(
    id="12.2",
    title="Read a safetensors file",
    points=3,
    difficulty=3,
    minutes=12,
    name="bytes_of",
    answer=bytes_of,
    inputs=_files,
    hints=(
        "bytes(raw) makes bytes of the list. int.from_bytes(data[:8], \"little\") is the length of the header, which begins at byte 8.",
        "json.loads takes bytes. header[name][\"data_offsets\"] says where the tensor begins and ends, counted from the end of the header.",
        "So add 8 + length to both.",
    ),
    mistakes=(
        Mistake(
            "from the start of the file",
            _bytes_with(lambda data, length, start, end: list(data[start:end])),
            "data_offsets are counted from the end of the header, not from the start of the file.",
        ),
        Mistake(
            "without the eight bytes",
            _bytes_with(lambda data, length, start, end: list(data[length + start : length + end])),
            "you are eight bytes too early: before the header stand the eight bytes of its length.",
        ),
        Mistake(
            "from after the length",
            _bytes_with(lambda data, length, start, end: list(data[8 + start : 8 + end])),
            "these are bytes of the header: the tensors come after it.",
        ),
        Mistake(
            "to the end of the file",
            _bytes_with(lambda data, length, start, end: list(data[8 + length :])),
            "these are the bytes of all tensors: cut at the data_offsets of the one that is asked for.",
        ),
        Mistake(
            "one too many",
            _bytes_with(lambda data, length, start, end: list(data[8 + length + start : 8 + length + end + 1])),
            "you have one byte too many: the second offset is where the next tensor begins.",
        ),
        Mistake(
            "counted",
            _bytes_with(lambda data, length, start, end: end - start),
            "that is how many bytes there are: return the bytes themselves, as a list of numbers.",
        ),
        Mistake(
            "the offsets",
            _bytes_with(lambda data, length, start, end: [start, end]),
            "these are the offsets: return the bytes that stand there.",
        ),
    ),
)

# --- 12.3 ------------------------------------------------------------------------------------------------------------------------

SECOND_WEIGHT = NumberQuestion(
    id="12.3",
    title="Read a weight by hand",
    points=2,
    difficulty=3,
    minutes=8,
    name="second_weight",
    answer=-0.3949 * (0.9 * 0.5 + 0.2),
    within=6e-4,
    hints=(
        "First the scale. With double quantization it is value * nested_absmax + nested_offset.",
        "The scale is 0.9 * 0.5 + 0.2 = 0.65. The byte 0xF3 holds the codes 15 and 3; the first weight has the upper half.",
        "The second weight has code 3, whose value is -0.3949.",
    ),
    solution="second_weight = -0.3949 * (0.9 * 0.5 + 0.2)  # 0xF3 holds the codes 15 and 3; the scale is 0.65",
    mistakes=(
        Mistake("first weight", 0.65, "that is the first weight, code 15: the second stands in the lower half of the byte."),
        Mistake("no offset", -0.3949 * 0.45, "the offset is missing: a scale is value * nested_absmax + nested_offset."),
        Mistake("offset scaled", -0.3949 * 0.9 * 0.7, "you have scaled the offset too: it is added at the end, to value * nested_absmax."),
        Mistake("offset subtracted", -0.3949 * 0.25, "you have taken the offset off: quantizing takes it off, reading back adds it."),
        Mistake("code for value", 3 * 0.65, "you have multiplied the code by the scale: look its value up, -0.3949."),
        Mistake("no nested scale", -0.3949 * 1.1, "nested_absmax is missing: it multiplies the value of the scale's code."),
        Mistake("unscaled", -0.3949, "that is the value in the codebook: multiply it by the scale."),
        Mistake("offset on the weight", -0.3949 * 0.45 + 0.2, "you have added the offset to the weight: it belongs to the scale."),
    ),
)

# --- 12.4 ------------------------------------------------------------------------------------------------------------------------


def files_of(weight_map, weight):
    """The files that hold a weight or one of its parts, each once, in order."""
    files = set()
    for name, file in weight_map.items():
        if name == weight or name.startswith(weight + "."):
            files.add(file)
    return sorted(files)


def _indexes(seed: int) -> list[tuple[dict[str, str], str]]:
    pick = random.Random(seed)
    shards = [f"model-0000{number}-of-00005.safetensors" for number in range(1, 6)]
    first, second, third, fourth, fifth = pick.sample(shards, 5)
    split = {
        "up.weight": max(first, second),
        "up.weight.absmax": min(first, second),
        "up.weight.quant_map": min(first, second),
        "up.weight_scale": third,  # begins like it, and is another
        "up.bias": fifth,
        "layer.up.weight": fourth,  # ends like it
        "down.weight": third,
        "down.weight.absmax": third,
    }
    together = {"up.weight": first, "up.weight.absmax": first, "norm.weight": second}
    return [(together, "up.weight"), (split, "up.weight"), (split, "down.weight")]


def _files_if(belongs: Callable[[str, str], bool]) -> Callable[..., list[str]]:
    return lambda weight_map, weight: sorted({file for name, file in weight_map.items() if belongs(name, weight)})


FILES_OF = FunctionQuestion(
    id="12.4",
    title="Find the files of a weight",
    points=2,
    difficulty=2,
    minutes=8,
    name="files_of",
    answer=files_of,
    inputs=_indexes,
    hints=(
        "Go through weight_map.items(). A tensor belongs to the weight if its name is the weight's, or begins with it and a dot.",
        "Collect the files in a set, so that each is there once, and return sorted(files).",
    ),
    mistakes=(
        Mistake(
            "the weight alone",
            _files_if(lambda name, weight: name == weight),
            "you have the file of the packed codes alone: scales, codebook and state may be in another.",
        ),
        Mistake(
            "no dot",
            _files_if(lambda name, weight: name.startswith(weight)),
            "up.weight_scale begins like up.weight and is another tensor: compare with the dot.",
        ),
        Mistake(
            "anywhere in the name",
            _files_if(lambda name, weight: weight in name),
            "you take every name that contains the weight's: layer.up.weight is another weight.",
        ),
        Mistake(
            "parts only",
            _files_if(lambda name, weight: name.startswith(weight + ".")),
            "you have the files of the parts, and not that of the weight itself.",
        ),
        Mistake(
            "the layer",
            _files_if(lambda name, weight: name.startswith(weight.removesuffix("weight"))),
            "you have the files of the whole layer, its bias too: only those of the weight are asked for.",
        ),
        Mistake(
            "all files",
            lambda weight_map, weight: sorted(set(weight_map.values())),
            "these are the files of the whole model: take those of the weight that is asked for.",
        ),
        Mistake(
            "several times",
            lambda weight_map, weight: sorted(file for name, file in weight_map.items() if (name + ".").startswith(weight + ".")),
            "some files are there more than once: name each once.",
        ),
        Mistake(
            "names of tensors",
            lambda weight_map, weight: sorted(name for name in weight_map if (name + ".").startswith(weight + ".")),
            "these are the tensors: return the files that hold them.",
        ),
    ),
)

# --- 12.5 ------------------------------------------------------------------------------------------------------------------------


def suspicious_blocks(packed, block_size):
    """The places of the blocks that have no largest weight, although they are not all zero."""
    import torch

    codes = torch.stack([packed >> 4, packed & 0b1111], dim=1).view(-1, block_size)
    largest = ((codes == 0) | (codes == 15)).any(dim=1)
    zeros = (codes == 7).all(dim=1)
    return torch.nonzero(~largest & ~zeros).view(-1).tolist()


def _packed_blocks(seed: int) -> list[tuple[torch.Tensor, int]]:
    """Good blocks, blocks of zeros, and damaged ones. Some have a -1 alone, some a 1 alone."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def packed(kinds: str, block_size: int) -> torch.Tensor:
        codes = torch.randint(1, 15, (len(kinds), block_size), dtype=torch.uint8, generator=generator)
        for block, kind in zip(codes, kinds, strict=True):
            place = torch.randint(block_size, (), generator=generator)
            if kind in "+-":
                block[place] = 15 if kind == "+" else 0
            if kind == "0":
                block[:] = 7
        flat = codes.view(-1)
        return flat[0::2] << 4 | flat[1::2]

    by_hand = torch.tensor([0x7F, 0x73, 0x76, 0x58, 0x77, 0x77, 0x17, 0x08], dtype=torch.uint8)  # four blocks of four
    return [(by_hand, 4), (packed("+-?+0-?", 64), 64), (packed("??+-0+-?", 32), 32), (packed("-+0", 128), 128)]


def _suspicious_with(
    *,
    ends: tuple[int, ...] = (0, 15),
    zero: int | None = 7,
    bytes_a_block: bool = False,
    halves: tuple[str, ...] = ("upper", "lower"),
    good: bool = False,
) -> Callable[..., Any]:
    def wrong(packed: torch.Tensor, block_size: int) -> Any:
        import torch

        parts = [packed >> 4 if half == "upper" else packed & 0b1111 for half in halves]
        codes = torch.stack(parts, dim=1).view(-1)
        size = 2 * block_size if bytes_a_block else block_size * len(halves) // 2
        blocks = [codes[start : start + size] for start in range(0, len(codes), size)]
        found = []
        for place, block in enumerate(blocks):
            has_largest = any(bool((block == end).any()) for end in ends)
            suspicious = not has_largest and not (zero is not None and bool((block == zero).all()))
            if suspicious != good:
                found.append(place)
        return found

    return wrong


SUSPICIOUS_BLOCKS = FunctionQuestion(
    id="12.5",
    title="Find blocks that can't be right",
    points=3,
    difficulty=4,
    minutes=12,
    name="suspicious_blocks",
    answer=suspicious_blocks,
    inputs=_packed_blocks,
    hints=(
        "The weight with the largest absolute value was divided by itself. Which two codes of NF4 have the values -1 and 1?",
        "Take the codes apart with >> 4 and & 0b1111, in turn, and cut them into rows of block_size.",
        "A block is suspicious if it has neither code 0 nor code 15, and not only the code 7.",
    ),
    mistakes=(
        Mistake("15 only", _suspicious_with(ends=(15,)), "a block whose largest weight is negative has a code 0 and may have no 15."),
        Mistake("0 only", _suspicious_with(ends=(0,)), "a block whose largest weight is positive has a code 15 and may have no 0."),
        Mistake(
            "zeros suspicious",
            _suspicious_with(zero=None),
            "a block of zeros is not suspicious: all its codes are 7, NF4's code of 0.",
        ),
        Mistake(
            "zero is code 0",
            _suspicious_with(ends=(15,), zero=0),
            "in NF4 code 0 has the value -1, and the value 0 has code 7.",
        ),
        Mistake(
            "bytes for weights",
            _suspicious_with(bytes_a_block=True),
            "your blocks are twice too long: block_size counts weights, two a byte.",
        ),
        Mistake(
            "upper halves",
            _suspicious_with(halves=("upper",)),
            "you have looked at the upper halves only: each byte holds two codes.",
        ),
        Mistake(
            "lower halves",
            _suspicious_with(halves=("lower",)),
            "you have looked at the lower halves only: each byte holds two codes.",
        ),
        Mistake("good ones", _suspicious_with(good=True), "these are the good blocks: return the places of the others."),
        Mistake(
            "counted",
            lambda packed, block_size: len(suspicious_blocks(packed, block_size)),
            "that is how many there are: return a list of their places, counted from 0.",
        ),
    ),
)

# --- 12.6 ------------------------------------------------------------------------------------------------------------------------

SMALLEST_CHANGE = NumberQuestion(
    id="12.6",
    title="Survive the merge",
    points=2,
    difficulty=3,
    minutes=6,
    name="change",
    answer=0.3 * 0.0796 / 2,
    within=7e-5,
    hints=(
        "The weight goes to the next value as soon as the sum is nearer to it than to 0.",
        "Half-way between the values 0 and 0.0796; then times the scale.",
    ),
    solution="change = 0.3 * 0.0796 / 2",
    mistakes=(
        Mistake("whole step", 0.3 * 0.0796, "that is the whole way to the next value: half-way is enough, the nearest value is taken."),
        Mistake("no scale", 0.0796 / 2, "that is half-way in the codebook: the weights of the block are 0.3 times as large."),
        Mistake("whole step, no scale", 0.0796, "that is the next value in the codebook: go half-way, and multiply by the scale."),
        Mistake("downwards", 0.3 * 0.0911 / 2, "that is the way down, to -0.0911: upwards the next value is nearer."),
        Mistake("divided by the scale", 0.0796 / 2 / 0.3, "multiply by the scale to get from the codebook to weights; you have divided."),
        Mistake("even steps", 0.3 / 15, "you have cut the range into even steps: NF4's values lie closer together near 0."),
    ),
)

# --- 12.7 ------------------------------------------------------------------------------------------------------------------------

WHAT_IS_LEFT = ExplanationQuestion(
    id="12.7",
    title="Say what is left",
    points=4,
    difficulty=3,
    minutes=10,
    name="what_is_left",
    hints=(
        "Go through what is in the folder: what can be read from it to the last bit, and what was thrown away before it was written?",
        "What does dequantize() bring back, in bytes and in numbers? And what becomes of a small change when it is merged into four bits?",
    ),
    model_answer=(
        "The codes and scales are there to the bit, so the model answers as it did when it was saved. The original is gone: no file has\n"
        "what lay between two values of the codebook. dequantize() gives a file of the original's size with the error of four bits.\n"
        "From it one can't make a better 4-bit model: NF4 of it, without double quantization, gives the same codes, and FP4 would be\n"
        "worse than FP4 of the original.\n"
        "The adapter was merged into four bits, so most of a small change has probably been rounded away, and it can't be taken out.\n"
        "She should have kept the adapter by itself, 171 kB in abacus, and the name and version of the original, or the original."
    ),
    rubric=(
        (1, "What is left: codes and scales, to the bit; the model answers as when it was saved."),
        (1, "What is lost: the original; dequantize() brings back the size and not the numbers."),
        (1, "The adapter is lost too: merging into four bits rounds again, much of a small change is gone, and it can't be taken out."),
        (1, "What to keep: the adapter by itself, and the original or its exact name."),
    ),
)

# --- 12.8 ------------------------------------------------------------------------------------------------------------------------


def weight_from_tensors(tensors):
    """A weight in float32, from the tensors that a file holds for it."""
    import json

    import torch

    state_name = next(name for name in tensors if "quant_state" in name)
    state = json.loads(bytes(tensors[state_name].tolist()))
    scales = tensors["weight.absmax"]
    if "nested_offset" in state:
        values = tensors["weight.nested_quant_map"][scales.int()]
        of_scales = tensors["weight.nested_absmax"].repeat_interleave(state["nested_blocksize"])[: len(scales)]
        scales = values * of_scales + state["nested_offset"]
    packed = tensors["weight"].view(-1)
    codes = torch.stack([packed >> 4, packed & 0b1111], dim=1).view(-1).int()
    weights = tensors["weight.quant_map"][codes] * scales.repeat_interleave(state["blocksize"])[: len(codes)]
    return weights.view(state["shape"])


def _saved_weights(seed: int) -> list[tuple[dict[str, torch.Tensor]]]:
    import torch

    from course_utils.codebooks import CODEBOOKS
    from course_utils.quantize import SCALE_VALUES, NestedScales, quantize_4bit

    generator = torch.Generator().manual_seed(seed)
    calls = []
    for kind, shape, block_size, nested in (("nf4", (4, 32), 64, False), ("nf4", (24, 64), 64, True), ("fp4", (160, 96), 32, True)):
        weight = torch.randn(shape, generator=generator) * torch.rand(shape[0], 1, generator=generator)
        q = quantize_4bit(weight, kind, block_size, nested)
        state: dict[str, Any] = {"quant_type": kind, "blocksize": block_size, "dtype": "float32", "shape": list(shape)}
        tensors = {"weight": q.packed, "weight.quant_map": CODEBOOKS[kind].values}
        if isinstance(q.absmax, NestedScales):
            tensors |= {"weight.absmax": q.absmax.codes, "weight.nested_absmax": q.absmax.absmax, "weight.nested_quant_map": SCALE_VALUES}
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": q.absmax.offset.item()}
        else:
            tensors["weight.absmax"] = q.absmax
        text = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        calls.append((tensors | {f"weight.quant_state.bitsandbytes__{kind}": text},))
    return calls


def _weight_with(
    *,
    offset: bool = True,
    nested: bool = True,
    of_scales: bool = True,
    lower_first: bool = False,
    book: str | None = None,
    block_size: int | None = None,
    transposed: bool = False,
    flat: bool = False,
    scaled: bool = True,
) -> Callable[..., Any]:
    """``weight_from_tensors`` with one of its steps wrong."""

    def wrong(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        import torch

        from course_utils.codebooks import CODEBOOKS

        state = json.loads(bytes(next(tensor for name, tensor in tensors.items() if "quant_state" in name).tolist()))
        scales = tensors["weight.absmax"].float()
        if "nested_offset" in state and nested:
            scales = tensors["weight.nested_quant_map"][scales.int()]
            if of_scales:
                scales = scales * tensors["weight.nested_absmax"].repeat_interleave(256)[: len(scales)]
            scales = scales + (state["nested_offset"] if offset else 0)
        packed = tensors["weight"].view(-1)
        halves = [packed & 0b1111, packed >> 4] if lower_first else [packed >> 4, packed & 0b1111]
        codes = torch.stack(halves, dim=1).view(-1).int()
        values = CODEBOOKS[book].values if book else tensors["weight.quant_map"]
        size = block_size or state["blocksize"]
        repeated = scales.repeat_interleave(size)
        repeated = repeated.repeat(-(-len(codes) // len(repeated)))[: len(codes)]
        weights = values[codes] * (repeated if scaled else 1.0)
        rows, columns = state["shape"]
        if flat:
            return weights
        return weights.view(columns, rows).T.contiguous() if transposed else weights.view(rows, columns)

    return wrong


WEIGHT_FROM_TENSORS = FunctionQuestion(
    id="12.8",
    title="Load a weight from its file",
    points=5,
    difficulty=4,
    minutes=20,
    name="weight_from_tensors",
    answer=weight_from_tensors,
    inputs=_saved_weights,
    tolerance=1e-6,
    hints=(
        "First the text: json.loads(bytes(tensor.tolist())) of the tensor whose name has quant_state in it. It holds blocksize and shape.",
        "If the text has a nested_offset, weight.absmax holds codes: look each up in nested_quant_map, multiply by its nested_absmax "
        "(one for every nested_blocksize scales), and add the offset.",
        "Then as in lesson 05: codes out of the bytes, upper half first; quant_map[codes]; times the scale of the block, repeated "
        "blocksize times.",
        "Last .view(state[\"shape\"]).",
    ),
    mistakes=(
        Mistake("no offset", _weight_with(offset=False), "with double quantization nested_offset has to be added to each scale."),
        Mistake(
            "scales not read back",
            _weight_with(nested=False),
            "with double quantization weight.absmax holds codes from 0 to 255: look them up in nested_quant_map first.",
        ),
        Mistake(
            "no nested_absmax",
            _weight_with(of_scales=False),
            "the values of nested_quant_map lie between -1 and 1: multiply them by nested_absmax before you add the offset.",
        ),
        Mistake("lower half first", _weight_with(lower_first=True), "the first of two codes stands in the upper half of its byte."),
        Mistake("always NF4", _weight_with(book="nf4"), "one of the weights is in FP4: take the values from weight.quant_map."),
        Mistake("always 64", _weight_with(block_size=64), "one of the weights has blocks of 32: take blocksize from the text."),
        Mistake(
            "transposed",
            _weight_with(transposed=True),
            "you have exchanged rows and columns: shape is (rows, columns), row after row.",
        ),
        Mistake("flat", _weight_with(flat=True), "the numbers are right: bring them into the shape that the text names."),
        Mistake("unscaled", _weight_with(scaled=False), "your numbers lie between -1 and 1: multiply each by the scale of its block."),
    ),
)

QUESTIONS = (
    WEIGH_A_WEIGHT,
    BYTES_OF,
    SECOND_WEIGHT,
    FILES_OF,
    SUSPICIOUS_BLOCKS,
    SMALLEST_CHANGE,
    WHAT_IS_LEFT,
    WEIGHT_FROM_TENSORS,
)
