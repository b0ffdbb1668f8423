"""Where a command runs its model, and in which dtype."""

from typing import Annotated

import torch
import typer

DeviceOption = Annotated[
    str, typer.Option(help="auto (a GPU where there is one), cpu, cuda, cuda:1, ...")
]
DtypeOption = Annotated[
    str,
    typer.Option(
        help="Of activations: auto (float32 on a CPU, else the checkpoint's), float32, bfloat16 or "
        "float16."
    ),
]


def resolve(device: str, dtype: str) -> tuple[str, str]:
    """Replaces "auto". A GPU is taken only where this build has operators for it."""
    if device == "auto":
        built = torch._C._dispatch_has_kernel_for_dispatch_key("anyprec::linear", "CUDA")
        device = "cuda" if built and torch.cuda.is_available() else "cpu"
    if dtype == "auto" and device == "cpu":
        dtype = "float32"
    return device, dtype
