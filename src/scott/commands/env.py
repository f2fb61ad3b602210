"""`scott env`: what a report of a fault has to say about where it happened."""

import os
import platform
from importlib.metadata import PackageNotFoundError, requires, version

import torch
from packaging.requirements import Requirement

from scott import __version__

EXTRAS = ("app", "data", "eval", "onnx", "quantize")


def environment() -> str:
    """A line each of scott, Python, the system, the devices, and what scott and each extra of it require."""
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    devices = [f"{card.name}, {card.total_memory / 2**30:.0f} GiB" for card in cards]
    needs = [Requirement(line) for line in requires("scott-diffusion") or ()]
    found = {
        "scott": __version__,
        "python": platform.python_version(),
        "system": f"{platform.platform()}, {os.cpu_count()} cores",
        "devices": "; ".join(devices) or ("mps" if torch.backends.mps.is_available() else "cpu alone"),
        "cuda": str(torch.version.cuda or torch.version.hip or "none"),
        **{need.name: _version(need.name) for need in needs if need.marker is None},
        **{
            f"[{extra}]": ", ".join(
                f"{need.name} {_version(need.name)}"
                for need in needs
                if need.marker and need.marker.evaluate({"extra": extra})
            )
            for extra in EXTRAS
        },
    }
    width = max(map(len, found))
    return "\n".join(f"{name:{width}}  {what}" for name, what in found.items())


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "absent"
