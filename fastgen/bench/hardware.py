"""The machine: its caches, and what nvidia-smi says of its driver and clocks."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .machine import describe

CLOCKS = {
    "clocks.sm": "sm_mhz",
    "clocks.max.sm": "sm_max_mhz",
    "clocks.mem": "memory_mhz",
    "temperature.gpu": "celsius",
    "power.draw": "watt",
    "power.limit": "watt_limit",
}


def machine(device: torch.device | str) -> dict[str, Any]:
    """What a result was measured on: processor, versions, commit; the GPU, its driver and clocks.

    The clocks are those of this moment; `clocks` reads them again.
    """
    device = torch.device(device)
    found: dict[str, Any] = describe(threads=torch.get_num_threads())
    found["device"] = str(device.type)
    if device.type != "cuda":
        return found
    properties = torch.cuda.get_device_properties(device)
    driver = _nvidia_smi(device, ["driver_version"])
    return found | {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": cache_bytes(device),
        "driver": driver.get("driver_version"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "clocks": clocks(device),
    }


def clocks(device: torch.device | str) -> dict[str, float]:
    """MHz, degrees Celsius and watts that nvidia-smi reads now, by the names in `CLOCKS`.

    Empty where it is not to be had, and entries are missing that it does not know.
    """
    read = _nvidia_smi(torch.device(device), list(CLOCKS))
    found = {}
    for field, name in CLOCKS.items():
        with contextlib.suppress(KeyError, ValueError):  # "[N/A]"
            found[name] = float(read[field])
    return found


def _nvidia_smi(device: torch.device, fields: Sequence[str]) -> dict[str, str]:
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    # CUDA's numbering need not be nvidia-smi's.
    if uuid := getattr(torch.cuda.get_device_properties(device), "uuid", None):
        command.append(f"--id=GPU-{uuid}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in done.stdout.strip().splitlines()[0].split(",")]
    return dict(zip(fields, values, strict=False))


def cache_bytes(device: torch.device | str) -> int:
    """The bytes of the last-level cache: L2 of a CUDA device, the largest cache of a CPU.

    32 MiB where a CPU does not say.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            text = file.read_text().strip()
            sizes.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[text[-1]])
    return max(sizes, default=32 << 20)
