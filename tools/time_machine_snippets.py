"""The snippets of the time machine: small programs that raise the errors of lesson 11, each with an id.

A snippet runs in an empty folder. `TINY` comes before each: it makes a Llama of 0.1 million random weights in the folder `tiny`,
since the bundled model can't be read by old versions.
"""

from __future__ import annotations

from dataclasses import dataclass

TINY = """\
import torch, transformers
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

transformers.utils.logging.disable_progress_bar()
LlamaForCausalLM(LlamaConfig(vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                             num_attention_heads=2, num_key_value_heads=2)).save_pretrained("tiny")

def load(**more):
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", **more)
    return AutoModelForCausalLM.from_pretrained("tiny", quantization_config=config)
"""


@dataclass(frozen=True)
class Snippet:
    """A program that fails, and how to know its error.

    Attributes:
        entry: the heading in lesson 11 under which the error is treated.
        text: words of the message; "" for an error without a message.
        code: the program. `TINY` comes before it.
        source: words of the message as they stand in a library's source, to be looked for where the program can't get that far.
            None if Python itself makes the message.
        folklore: the error as the lesson that the course grew from gives it.
        also: other wordings of it: from hardware that the time machine doesn't have, from other versions, or further up in a traceback.
        alone: run it in a process of its own, without `TINY` before it.
        needs_gpu: only a GPU raises it, so that no record says which versions do.
    """

    entry: str
    text: str
    code: str
    source: str | None = None
    folklore: str | None = None
    also: tuple[str, ...] = ()
    alone: bool = False
    needs_gpu: bool = False


SNIPPETS = {
    # --- the four of the old lesson ---
    "double_and_half": Snippet(
        "1. Scalar type Double, found Half",
        "expected scalar type Double but found Half",
        "torch.nn.functional.conv1d(torch.ones(1, 4, 8, dtype=torch.float64), torch.ones(1, 4, 3, dtype=torch.float16))",
        folklore="RuntimeError: Expected scalar type Double but found Half",
        also=("RuntimeError: Input type (float) and bias type (c10::Half) should be the same",),
    ),
    "double_and_half_in_a_product": Snippet(
        "1. Scalar type Double, found Half",
        "to have the same dtype",
        "torch.ones(1, 4, dtype=torch.float64) @ torch.ones(4, 3, dtype=torch.float16)",
        also=("RuntimeError: mat1 and mat2 must have the same dtype, but got Double and Half",),
    ),
    "attribute_of_the_class": Snippet(
        "2. BitsAndBytesConfig has no attribute",
        "type object 'BitsAndBytesConfig' has no attribute 'load_in_4bit'",
        "BitsAndBytesConfig.load_in_4bit",
        folklore="AttributeError: type object 'BitsAndBytesConfig' has no attribute 'load_in_4bit'",
    ),
    "class_not_called": Snippet(
        "2. BitsAndBytesConfig has no attribute",
        "type object 'BitsAndBytesConfig' has no attribute",
        'AutoModelForCausalLM.from_pretrained("tiny", quantization_config=BitsAndBytesConfig)',
    ),
    "out_of_memory": Snippet(
        "3. Out of memory, although the model is in 4 bits",
        "can't allocate memory",
        """\
import resource
from pathlib import Path

import torch

pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 256 * 2**20,) * 2)
torch.zeros(2**30)
""",
        folklore="CUDA out of memory even with load_in_4bit=True",
        alone=True,
    ),
    "out_of_memory_on_a_gpu": Snippet(
        "3. Out of memory, although the model is in 4 bits",
        "CUDA out of memory. Tried to allocate",
        'torch.zeros(2**50, device="cuda")',
        source="CUDA out of memory. Tried to allocate",
        also=("OutOfMemoryError: CUDA out of memory. Tried to allocate",),
        needs_gpu=True,
    ),
    "fragmentation": Snippet(
        "3. Out of memory, although the model is in 4 bits",
        "expandable_segments:True to avoid fragmentation",
        'torch.zeros(2**50, device="cuda")',
        source="expandable_segments:True to avoid fragmentation",
        needs_gpu=True,
    ),
    "checkpoint_of_a_gpu": Snippet(
        "4. No `_builtin_model_class` was stored",
        "Attempting to deserialize object on a CUDA device",
        """\
import zipfile

torch.save(torch.ones(2), "here.pt")
with zipfile.ZipFile("here.pt") as read, zipfile.ZipFile("gpu.pt", "w") as write:
    for name in read.namelist():
        content = read.read(name)
        if name.endswith("data.pkl"):  # the place of the tensor: text of 3 letters becomes text of 6
            content = content.replace(b"X\\x03\\x00\\x00\\x00cpu", b"X\\x06\\x00\\x00\\x00cuda:0")
        write.writestr(name, content)
torch.load("gpu.pt")
""",
        source="Attempting to deserialize object on",
        folklore="ValueError: Attempting to deserialize object but no `_builtin_model_class` was stored in the config",
    ),
    "no_model_type": Snippet(
        "4. No `_builtin_model_class` was stored",
        "Should have a `model_type` key in its config.json",
        """\
import json
from pathlib import Path

config = json.loads(Path("tiny/config.json").read_text())
del config["model_type"]
Path("tiny/config.json").write_text(json.dumps(config))
AutoModelForCausalLM.from_pretrained("tiny")
""",
        source="Should have a `model_type` key in its",
    ),
    # --- asking for 4 bits ---
    "keyword": Snippet(
        "5. Unexpected keyword `load_in_4bit`",
        "unexpected keyword argument 'load_in_4bit'",
        'AutoModelForCausalLM.from_pretrained("tiny", load_in_4bit=True)',
    ),
    "keyword_and_config": Snippet(
        "5. Unexpected keyword `load_in_4bit`",
        "You can't pass `load_in_4bit`",
        'AutoModelForCausalLM.from_pretrained("tiny", load_in_4bit=True, quantization_config=BitsAndBytesConfig(load_in_4bit=True))',
        source="You can't pass `load_in_4bit`",
    ),
    "both_formats": Snippet(
        "6. 4 and 8 bits at once",
        "load_in_4bit and load_in_8bit are both True",
        "BitsAndBytesConfig(load_in_4bit=True, load_in_8bit=True)",
        source="load_in_4bit and load_in_8bit are both True",
    ),
    "text_for_true": Snippet(
        "6. 4 and 8 bits at once",
        "load_in_4bit must be a boolean",
        'BitsAndBytesConfig(load_in_4bit="True")',
        source="load_in_4bit must be a boolean",
    ),
    "bf16": Snippet(
        "7. No attribute `bf16`",
        "module 'torch' has no attribute 'bf16'",
        'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype="bf16")',
    ),
    "nf4_in_capitals": Snippet(
        "8. Issues during automatic conversion",
        "quant_type must be 'nf4' or 'fp4', got 'NF4'",
        'import bitsandbytes\nbitsandbytes.functional.quantize_4bit(torch.ones(64), quant_type="NF4")',
        source="quant_type must be 'nf4' or 'fp4'",
    ),
    "nf4_in_capitals_loaded": Snippet(
        "8. Issues during automatic conversion",
        "We encountered some issues during automatic conversion of the weights",
        """\
config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="NF4")
AutoModelForCausalLM.from_pretrained("tiny", quantization_config=config)
""",
        source="We encountered some issues during automatic conversion of the weights",
    ),
    "float64_weights": Snippet(
        "9. Only 16/32-bit floats",
        "Blockwise 4bit quantization only supports 16/32-bit floats",
        "import bitsandbytes\nbitsandbytes.functional.quantize_4bit(torch.ones(64, dtype=torch.float64))",
        source="Blockwise 4bit quantization only supports 16/32-bit floats",
    ),
    # --- loading ---
    "load": Snippet(
        "10. No GPU found",
        "No GPU found. A GPU is needed for quantization.",
        "print(type(load().model.layers[0].self_attn.q_proj).__name__)",
        source="No GPU found. A GPU is needed for quantization",
        also=(
            "RuntimeError: CUDA is required but not available for bitsandbytes",
            "NotImplementedError: Device type not supported for FP4 quantization: cpu",
            "AssertionError: Torch not compiled with CUDA enabled",
        ),
    ),
    "bitsandbytes_missing": Snippet(
        "11. Requires bitsandbytes, although it is installed",
        "Using `bitsandbytes`",
        "load()",
        source="Using `bitsandbytes` 4-bit quantization requires",
    ),
    "bitsandbytes_without_metadata": Snippet(
        "11. Requires bitsandbytes, although it is installed",
        "No package metadata was found for bitsandbytes",
        "load()",
    ),
    "mixed_map": Snippet(
        "12. Some modules are dispatched on the CPU or the disk",
        "Some modules are dispatched on the CPU or the disk",
        """\
where = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu", "lm_head": "cpu"}
config = BitsAndBytesConfig(load_in_4bit=True)
AutoModelForCausalLM.from_pretrained("tiny", quantization_config=config, device_map=where, offload_folder="disk")
""",
        source="Some modules are dispatched on the CPU or the disk",
    ),
    "no_library_for_this_gpu": Snippet(
        "13. The native library is not available",
        "Attempted to use bitsandbytes native library functionality but it's not available",
        """\
from bitsandbytes.cextension import ErrorHandlerMockBNBNativeLibrary
ErrorHandlerMockBNBNativeLibrary("No compatible CUDA binary found at libbitsandbytes_cuda999.so").cquantize_blockwise_fp16_nf4()
""",
        source="Attempted to use bitsandbytes native library functionality but it's not available",
        also=(
            "RuntimeError: CUDA SETUP ERROR: Missing dependency: libcudart.so",
            "RuntimeError: CUDA VERSION MISMATCH Requested CUDA version Detected PyTorch CUDA version Available pre-compiled versions",
            "RuntimeError: CUDA Setup failed despite GPU being available. Please run the following command to get more information",
            "RuntimeError: CUDA Setup failed despite CUDA being available. Please run the following command to get more information",
        ),
    ),
    "checkpoint_without_its_config": Snippet(
        "14. A 4-bit checkpoint that forgot its config",
        "You set `ignore_mismatched_sizes` to `False`",
        """\
import json
from pathlib import Path

load().save_pretrained("packed")
config = json.loads(Path("packed/config.json").read_text())
del config["quantization_config"]
Path("packed/config.json").write_text(json.dumps(config))
AutoModelForCausalLM.from_pretrained("packed")
""",
        source="You set `ignore_mismatched_sizes` to `False`",
        also=(
            "RuntimeError: Error(s) in loading state_dict for Linear: size mismatch for weight: copying a param with shape "
            "torch.Size([4096, 1]) from checkpoint, the shape in current model is torch.Size([64, 128]).",
            "RuntimeError: Blockwise 4bit quantization only supports 16/32-bit floats, but got torch.uint8",
        ),
    ),
    "quantized_twice": Snippet(
        "14. A 4-bit checkpoint that forgot its config",
        "We encountered some issues during automatic conversion of the weights",
        """\
import json
from pathlib import Path

load().save_pretrained("packed")
config = json.loads(Path("packed/config.json").read_text())
del config["quantization_config"]
Path("packed/config.json").write_text(json.dumps(config))
AutoModelForCausalLM.from_pretrained("packed", quantization_config=BitsAndBytesConfig(load_in_4bit=True))
""",
    ),
    "offline": Snippet(
        "15. Offline, and gated",
        "We couldn't connect to",
        'AutoModelForCausalLM.from_pretrained("meta-llama/Llama-2-7b-hf", quantization_config=BitsAndBytesConfig(load_in_4bit=True))',
        source="We couldn't connect to '",
        also=(
            "LocalEntryNotFoundError: Cannot find the requested files in the disk cache and outgoing traffic has been disabled. "
            "To enable hf.co look-ups and downloads online, set 'local_files_only' to False.",
        ),
    ),
    "gated": Snippet(
        "15. Offline, and gated",
        "gated repo",
        """\
import os, threading
from http.server import BaseHTTPRequestHandler, HTTPServer

class Gate(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(401)
        self.send_header("X-Error-Code", "GatedRepo")
        self.end_headers()
    do_GET = do_HEAD
    log_message = lambda *_: None

hub = HTTPServer(("127.0.0.1", 0), Gate)
threading.Thread(target=hub.serve_forever, daemon=True).start()
os.environ.update(HF_ENDPOINT=f"http://127.0.0.1:{hub.server_port}", HF_HUB_OFFLINE="0", TRANSFORMERS_OFFLINE="0")
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained("meta-llama/Llama-2-7b-hf")
""",
        source="You are trying to access a gated repo",
        also=(
            "GatedRepoError: 401 Client Error. Cannot access gated repo for url. Access to model is restricted. "
            "You must have access to it and be authenticated to access it. Please log in.",
            "GatedRepoError: 403 Client Error. Cannot access gated repo for url. Access to model is restricted "
            "and you are not in the authorized list.",
        ),
        alone=True,
    ),
    # --- using ---
    "moved": Snippet(
        "16. Neither moved nor cast",
        "`.to` is not supported for `4-bit` or `8-bit`",
        'load().to("cpu")',
        source="`.to` is not supported for `4-bit` or `8-bit`",
        also=("ValueError: Calling `to()` is not supported for `4-bit` quantized models with the installed version of bitsandbytes.",),
    ),
    "cast": Snippet(
        "16. Neither moved nor cast",
        "You cannot cast a bitsandbytes model in a new `dtype`",
        "load().to(torch.float16)",
        source="You cannot cast a bitsandbytes model in a new `dtype`",
    ),
    "half": Snippet(
        "16. Neither moved nor cast",
        "`.half()` is not supported for quantized model",
        "load().half()",
        source="`.half()` is not supported for",
    ),
    "packed_as_a_matrix": Snippet(
        "17. Shapes cannot be multiplied",
        "mat1 and mat2 shapes cannot be multiplied",
        "torch.nn.functional.linear(torch.ones(1, 64), load().model.layers[0].self_attn.q_proj.weight)",
    ),
    "size_for_the_packed_path": Snippet(
        "18. Sizes that the packed path refuses",
        "N must be divisible by block_n",
        """\
import bitsandbytes
layer = bitsandbytes.nn.Linear4bit(128, 40, bias=False).to("cpu").eval()
with torch.no_grad():
    layer(torch.ones(1, 128))
""",
        source="N must be divisible by block_n",
        also=("AssertionError: K must be even", "RuntimeError: shape '[128, 5]' is invalid for input of size 648"),
    ),
    "not_quantized_yet": Snippet(
        "19. AssertionError, and nothing more",
        "",
        "import bitsandbytes\nbitsandbytes.nn.Linear4bit(64, 64)(torch.ones(1, 64))",
        source="quantization state not initialized",
        also=("fix_4bit_weight_quant_state_from_module assert module.weight.shape[1] == 1 AssertionError",),
    ),
    # --- training and saving ---
    "training_without_adapters": Snippet(
        "20. Fine-tuning without adapters",
        "You cannot perform fine-tuning on purely quantized models",
        """\
from transformers import Trainer, TrainingArguments
Trainer(model=load(), args=TrainingArguments(output_dir="out", report_to=[]))
""",
        source="You cannot perform fine-tuning on purely quantized models",
    ),
    "gradient_for_packed_weights": Snippet(
        "21. Gradients for packed weights",
        "can require gradients",
        "load().model.layers[0].self_attn.q_proj.weight.requires_grad_()",
        also=("RuntimeError: Only Tensors of floating point and complex dtype can require gradients",),
    ),
    "nothing_to_train": Snippet(
        "21. Gradients for packed weights",
        "does not require grad and does not have a grad_fn",
        """\
model = load()
for parameter in model.parameters():
    parameter.requires_grad_(False)
tokens = torch.tensor([[1, 2, 3]])
model(tokens, labels=tokens).loss.backward()
""",
    ),
    "packed_into_plain": Snippet(
        "22. A 4-bit state dict in a 16-bit model",
        "Error(s) in loading state_dict",
        'AutoModelForCausalLM.from_pretrained("tiny").load_state_dict(load().state_dict())',
    ),
    "saved": Snippet(
        "23. Saving is refused",
        "on a 4-bit converted model. This is currently not supported",
        'load().save_pretrained("out")',
        source="on a 4-bit converted model. This is currently not supported",
    ),
    "saved_with_an_older_bitsandbytes": Snippet(
        "23. Saving is refused",
        "to a 4-bit converted model, but your `bitsandbytes` version doesn't support it",
        'load().save_pretrained("out")',
        source="to a 4-bit converted model, but your `bitsandbytes` version doesn't support it",
    ),
}
