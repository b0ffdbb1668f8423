"""Amounts of memory: as people write them, and as a machine has them."""

from __future__ import annotations

import re
from pathlib import Path

import torch

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_BINARY_UNITS = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", re.IGNORECASE)

_CGROUP = Path("/sys/fs/cgroup")


class MemoryLimitError(ValueError):
    """An amount that is none, or one that a request cannot do with."""


def parse_memory(text: str | int) -> int:
    """Bytes: 20GiB is 20 * 2^30, 20GB is 20 * 10^9, a number alone is bytes.

    Raises MemoryLimitError where the text is no positive amount.
    """
    match = _AMOUNT.fullmatch(str(text).strip())
    unit = match[2].lower() if match else "i"
    factor = {**_UNITS, **_BINARY_UNITS}.get(unit)
    if match is None or factor is None or float(match[1]) <= 0:
        raise MemoryLimitError(f"memory {text!r}: wanted an amount like 20GiB or 800MB")
    return int(float(match[1]) * factor)


def format_memory(amount: int) -> str:
    """In GiB or MiB, rounded up, so that it can be asked for."""
    unit, size = ("GiB", 1 << 30) if amount >= 1 << 30 else ("MiB", 1 << 20)
    return f"{-(-amount * 100 // size) / 100:.2f}{unit}"


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on a device; of RAM, within this process's control group."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = next(
        int(line.split()[1]) << 10
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable:")
    )
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
    except OSError:  # no control group of version 2
        return free
    return free if limit == "max" else min(free, int(limit) - used)
