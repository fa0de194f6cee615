"""What is installed here, as the first question about any problem."""

import importlib.metadata
import os
import platform

_NEEDED = (
    "numpy", "pillow", "pydantic", "rich", "safetensors", "scikit-learn", "scipy", "torch", "typer",
)  # fmt: skip
_OPTIONAL = {
    "pyarrow": "folders of parquet shards: kernel-distill[parquet]",
    "torchvision": "torchvision:<name> data sets: kernel-distill[torchvision]",
    "datasets": "hf:<owner>/<name> data sets: kernel-distill[huggingface]",
}


def diagnose() -> dict[str, dict[str, str]]:
    """Versions, threads and optional packages, by section."""
    import torch

    from . import __version__

    has_affinity = hasattr(os, "sched_getaffinity")
    usable = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
    return {
        "versions": {
            "kernel-distill": __version__,
            "python": f"{platform.python_version()} ({platform.python_implementation()})",
            "platform": platform.platform(),
            **{name: _version(name) or "missing" for name in _NEEDED},
        },
        "compute": {
            "device": "cpu",
            "threads": f"{torch.get_num_threads()} of torch, {usable} usable cores",
            "vector instructions": torch.backends.cpu.get_cpu_capability(),
        },
        "optional packages": {
            name: _version(name) or f"not installed; needed for {use}" for name, use in _OPTIONAL.items()
        },
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
