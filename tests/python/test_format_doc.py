"""docs/format.md holds what it says: its reader, run as it stands, reads what we write."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from checkpoints import ALL, CODEBOOKS, tiny_model, write_checkpoint

DOCUMENT = Path(__file__).parents[2] / "docs" / "format.md"


@pytest.fixture(scope="module")
def reader():
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    namespace = {}
    exec(code, namespace)
    return namespace["dequantize"]


@pytest.mark.parametrize(
    "codebook",
    [*CODEBOOKS.values(), {"lut_bits": 3, "cell_groups": "io", "group_size": 0}],
    ids=str,
)
def test_the_documents_reader_reads_every_precision(reader, codebook, tmp_path):
    written = write_checkpoint(tmp_path / "out", tiny_model("llama"), codebook=codebook)
    for name, matrix in written.matrices.items():
        for b in ALL:
            np.testing.assert_allclose(
                reader(written.path, name, b), matrix.dense(b), rtol=1e-6, atol=1e-7
            )


def test_the_safetensors_library_reads_every_file(tmp_path):
    written = write_checkpoint(tmp_path / "out", tiny_model("qwen2"))
    index = json.loads((written.path / "model.safetensors.index.json").read_text())["weight_map"]
    found = {}
    for file in set(index.values()):
        with safe_open(written.path / file, framework="np") as tensors:
            found |= {name: file for name in tensors.keys()}  # noqa: SIM118
    assert found == index
    for name, matrix in written.matrices.items():
        for i, plane in enumerate(matrix.planes):
            with safe_open(written.path / index[f"{name}.plane.{i}"], framework="np") as tensors:
                assert np.array_equal(tensors.get_tensor(f"{name}.plane.{i}"), plane)
