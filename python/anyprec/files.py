"""The files of a checkpoint directory beside its tensors."""

from collections.abc import Iterator
from pathlib import Path

CONFIG = "config.json"
GENERATION = "generation_config.json"
INDEX = "model.safetensors.index.json"
MANIFEST = "anyprec_manifest.json"

# What CheckpointWriter makes itself.
_OF_THE_WRITER = {CONFIG, INDEX, MANIFEST}


def files_to_copy(directory: Path) -> Iterator[Path]:
    """Tokenizer and other small files: all that neither hold tensors nor are made by the writer."""
    for file in sorted(directory.iterdir()):
        if file.is_file() and file.suffix != ".safetensors" and file.name not in _OF_THE_WRITER:
            yield file
