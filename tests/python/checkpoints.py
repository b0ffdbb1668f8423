"""Tiny random models, checkpoints of them, and what those must compute, in numpy.

Nothing here uses the quantizer or the operators: codes are a plain nested rounding, and the dense
matrices that a precision stands for follow from docs/format.md alone.
"""

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from anyprec._core import CheckpointWriter

VOCABULARY = 320
EOS = 257
ALL = tuple(range(2, 9))

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 256,
    "eos_token_id": EOS,
    "pad_token_id": 258,
}
_GATED = {**_COMMON, "intermediate_size": 72, "num_key_value_heads": 2}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_PARTIAL_ROPE = {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5}
_GEMMA3 = {
    **_GATED,
    "head_dim": 16,
    "query_pre_attn_scalar": 20,
    "sliding_window": 7,
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    },
}


def tiny_model(family: str, dtype: torch.dtype = torch.float32, **changes) -> PreTrainedModel:
    """A random model of one of FAMILIES, the same at every call."""
    torch.manual_seed(7)
    make = _FAMILIES[family]
    model = make(changes).eval()
    # Larger than the default initialization, so that precisions differ clearly.
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.2 if "embed" in name else 0.15)
        elif name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    model.config.dtype = dtype
    return model.to(dtype)


_FAMILIES = {
    "llama": lambda c: LlamaForCausalLM(
        LlamaConfig(**{**_GATED, "tie_word_embeddings": False, **c})
    ),
    "llama-tied": lambda c: LlamaForCausalLM(
        LlamaConfig(**{**_GATED, "tie_word_embeddings": True, **c})
    ),
    "qwen2": lambda c: Qwen2ForCausalLM(
        Qwen2Config(**{**_GATED, "tie_word_embeddings": True, **c})
    ),
    "opt": lambda c: OPTForCausalLM(
        OPTConfig(**{**_COMMON, "ffn_dim": 72, "word_embed_proj_dim": 48, **c})
    ),
    "gemma2": lambda c: Gemma2ForCausalLM(
        Gemma2Config(
            **{**_GATED, "head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": 8, **c}
        )
    ),
    "llama3": lambda c: LlamaForCausalLM(
        LlamaConfig(**{**_GATED, "rope_parameters": _LLAMA3_ROPE, "attention_bias": True, **c})
    ),
    "mistral": lambda c: MistralForCausalLM(
        MistralConfig(**{**_GATED, "head_dim": 12, "sliding_window": 9, **c})
    ),
    "qwen3": lambda c: Qwen3ForCausalLM(Qwen3Config(**{**_GATED, "head_dim": 16, **c})),
    "gemma": lambda c: GemmaForCausalLM(GemmaConfig(**{**_GATED, "head_dim": 16, **c})),
    "gemma3_text": lambda c: Gemma3ForCausalLM(Gemma3TextConfig(**{**_GEMMA3, **c})),
    "phi3": lambda c: Phi3ForCausalLM(
        Phi3Config(**{**_GATED, "rope_parameters": _PARTIAL_ROPE, "sliding_window": 11, **c})
    ),
}
FAMILIES = ("llama", "llama-tied", "qwen2", "opt", "gemma2")
# Those that the native engine serves.
NATIVE_FAMILIES = tuple(family for family in _FAMILIES if family != "opt")

FULL = {"lut_bits": 8, "cell_groups": "one", "group_size": 0}
GROUPED = {"lut_bits": 8, "cell_groups": "one", "group_size": 32}
HYBRID = {"lut_bits": 3, "cell_groups": "sym", "group_size": 0}
BINARY = {"lut_bits": 0, "cell_groups": "one", "group_size": 0}
BINARY_GROUPED = {"lut_bits": 0, "cell_groups": "one", "group_size": 32}
CODEBOOKS = {
    "lut": FULL,
    "lut by groups": GROUPED,
    "hybrid": HYBRID,
    "bcq": BINARY,
    "bcq by groups": BINARY_GROUPED,
}


def each_codebook(*but: str) -> dict:
    """Parameters of a fixture or test for every kind of codebook, `but` some."""
    chosen = {name: codebook for name, codebook in CODEBOOKS.items() if name not in but}
    return {"params": list(chosen.values()), "ids": list(chosen)}


def linears_of(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers inside the decoder's blocks."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in name
    }


@dataclass
class Matrix:
    """One quantized weight as the checkpoint stores it."""

    planes: np.ndarray  # uint8 [P, N, ceil(K/8)]
    luts: dict[int, np.ndarray]  # fp16 [N, G, 2^min(b, L)]
    alphas: dict[int, np.ndarray]  # fp16 [N, G, b - L, C]
    in_features: int
    codebook: dict = field(default_factory=lambda: dict(FULL))

    def codes(self, precision: int) -> np.ndarray:
        """uint [N, K]: the first `precision` planes, the most significant first."""
        bits = np.unpackbits(self.planes[:precision], axis=2, bitorder="little")
        bits = bits[:, :, : self.in_features].astype(np.int64)
        return sum(bits[i] << (precision - 1 - i) for i in range(precision))

    def dense(self, precision: int) -> np.ndarray:
        """float32 [N, K]: the weight that this precision stands for."""
        codes = self.codes(precision)
        table_bits = min(precision, self.codebook["lut_bits"])
        cells = codes >> (precision - table_bits)
        rows = np.arange(codes.shape[0])[:, None]
        group = np.arange(self.in_features)[None] // (
            self.codebook["group_size"] or self.in_features
        )
        values = self.luts[precision].astype(np.float32)[rows, group, cells]
        for i in range(precision - table_bits):
            sign = 2 * (codes >> (precision - table_bits - 1 - i) & 1) - 1
            alpha = self.alphas[precision].astype(np.float32)[:, :, i]
            classes = _classes(self.codebook, cells)
            values = values + alpha[rows, group, classes] * sign
        return values


def _classes(codebook: dict, cells: np.ndarray) -> np.ndarray:
    last = 2 ** codebook["lut_bits"] - 1
    return {
        "one": lambda: np.zeros_like(cells),
        "io": lambda: ((cells != 0) & (cells != last)).astype(np.int64),
        "sym": lambda: np.minimum(cells, last - cells),
        "cell": lambda: cells,
    }[codebook["cell_groups"]]()


def quantized(weight: np.ndarray, precisions=ALL, codebook=FULL) -> Matrix:
    """Nested uniform codes of each row, and a codebook for each precision.

    Table entries are interval centres; of signed planes each halves the interval of the one above.
    """
    k = weight.shape[1]
    size = codebook["group_size"] or k
    groups = -(-k // size)
    group = np.arange(k) // size
    low = np.stack([weight[:, group == g].min(1) for g in range(groups)], 1)  # [N, G]
    span = np.stack([np.ptp(weight[:, group == g], axis=1) for g in range(groups)], 1) + 1e-6
    codes = np.clip((weight - low[:, group]) / span[:, group] * 256, 0, 255).astype(np.uint8)
    parent = max(precisions)
    planes = np.stack(
        [np.packbits(codes >> (7 - i) & 1, axis=1, bitorder="little") for i in range(parent)]
    )
    luts, alphas = {}, {}
    for b in precisions:
        table_bits = min(b, codebook["lut_bits"])
        entries = 2**table_bits
        centres = (np.arange(entries) + 0.5) / entries
        luts[b] = (low[:, :, None] + span[:, :, None] * centres).astype(np.float16)
        if b > table_bits:
            halves = 0.5 ** (np.arange(table_bits, b) + 2)
            count = {"one": 1, "io": 2, "sym": max(1, entries // 2), "cell": entries}
            classes = count[codebook["cell_groups"]]
            alpha = span[:, :, None, None] * halves[None, None, :, None]
            # Each class a little different, so that a mix-up of classes shows.
            alphas[b] = (alpha * (1 + 0.05 * np.arange(classes))).astype(np.float16)
    return Matrix(planes, luts, alphas, k, dict(codebook))


@dataclass
class Written:
    """A checkpoint on disk and the model that it was made from."""

    path: Path
    original: PreTrainedModel
    matrices: dict[str, Matrix]

    def dense_model(self, precision) -> PreTrainedModel:
        """The original with each linear's weight replaced by what `precision` stands for.

        precision: an int, or a mapping of linears' names to ints.
        """
        model = copy.deepcopy(self.original)
        for name, matrix in self.matrices.items():
            b = precision if isinstance(precision, int) else precision[name]
            weight = model.get_submodule(name).weight
            weight.data = torch.from_numpy(matrix.dense(b)).to(weight.dtype)
        return model


_STORED = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def write_checkpoint(
    path: Path,
    model: PreTrainedModel,
    precisions=ALL,
    codebook=FULL,
    tokenizer: PreTrainedTokenizerFast | None = None,
    leave_out=(),
    extra=(),
) -> Written:
    """Writes a checkpoint of `model`. leave_out, extra: dense tensors to omit, and to add."""
    matrices = {
        name: quantized(linear.weight.detach().float().numpy(), precisions, codebook)
        for name, linear in linears_of(model).items()
    }
    config = json.loads(model.config.to_json_string())
    config["architectures"] = [type(model).__name__]
    config["quantization_config"] = {
        "quant_method": "anyprec",
        "format_version": 1,
        "codebook": codebook,
        "precisions": list(precisions),
        "seed_precision": min(max(3, min(precisions)), max(precisions)),
        "modules": [
            {"name": n, "out_features": m.planes.shape[1], "in_features": m.in_features}
            for n, m in matrices.items()
        ],
        "calibration": {"dataset": "none", "num_examples": 0},
        "producer": "tests",
    }
    writer = CheckpointWriter(path, json.dumps(config), json.dumps({"made_by": "tests"}))
    tied = set(model.all_tied_weights_keys)
    skipped = {f"{name}.weight" for name in matrices} | tied | set(leave_out)
    for name, tensor in model.state_dict().items():
        if name not in skipped:
            data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
            writer.add(name, _STORED[tensor.dtype], list(tensor.shape), data)
    for name in extra:
        writer.add(name, "F32", [2], np.zeros(2, np.float32))
    for name, matrix in matrices.items():
        for i, plane in enumerate(matrix.planes):
            writer.add(f"{name}.plane.{i}", "U8", list(plane.shape), plane)
        for b in precisions:
            writer.add(f"{name}.lut.{b}", "F16", list(matrix.luts[b].shape), matrix.luts[b])
            if b in matrix.alphas:
                alpha = matrix.alphas[b]
                writer.add(f"{name}.alpha.{b}", "F16", list(alpha.shape), alpha)
    generation = model.generation_config.to_json_string(use_diff=True)
    writer.add_file("generation_config.json", generation.encode())
    for name, data in _tokenizer_files(tokenizer, path).items():
        writer.add_file(name, data)
    writer.finish()
    return Written(path, model, matrices)


def byte_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """One token a byte, 256 + three special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: i for i, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=chat_template,
    )


def _tokenizer_files(tokenizer: PreTrainedTokenizerFast | None, path: Path) -> dict[str, bytes]:
    if tokenizer is None:
        return {}
    folder = path.with_name(path.name + "-tokenizer")
    tokenizer.save_pretrained(folder)
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
