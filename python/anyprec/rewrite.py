"""A checkpoint written anew with some of its tensors replaced, all else to the byte."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from anyprec._core import Checkpoint, CheckpointWriter, FormatError
from anyprec.files import CONFIG, MANIFEST, files_to_copy


def rewrite_checkpoint(
    directory: Path,
    out: Path,
    replaced: Mapping[str, np.ndarray],
    record: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
    """Writes the checkpoint in `directory` to `out`: the same, a new one, or one to overwrite.

    replaced: tensors by their names in the checkpoint, of the same dtype and shape. record: added
    to the options that the manifest tells. Files take their final names only when all are whole.

    Raises FormatError where a name is not in the checkpoint or a tensor is of another size.
    """
    checkpoint = Checkpoint(directory)
    unknown = sorted(set(replaced) - set(checkpoint.tensor_names()))
    if unknown:
        raise FormatError(f"{directory}: no tensor named {unknown[0]}")
    manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    writer = CheckpointWriter(
        out,
        (directory / CONFIG).read_text(encoding="utf-8"),
        json.dumps({**manifest.get("options", {}), **record}),
        overwrite=overwrite or out.resolve() == directory.resolve() or not out.exists(),
    )
    try:
        for name in checkpoint.tensor_names():
            data = checkpoint.data(name)
            if name in replaced:
                new = np.ascontiguousarray(replaced[name]).reshape(-1).view(np.uint8)
                if new.nbytes != data.nbytes:
                    raise FormatError(
                        f"{name}: {new.nbytes} bytes to replace {data.nbytes}, wanted as many"
                    )
                data = new
            writer.add(name, checkpoint.dtype(name), checkpoint.shape(name), data)
        for file in files_to_copy(directory):
            writer.add_file(file.name, file.read_bytes())
        writer.finish()
    except BaseException:
        writer.abort()
        raise
