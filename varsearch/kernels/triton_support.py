"""Where Triton compiles its kernels, asked without importing it."""

from __future__ import annotations

from importlib.util import find_spec

import torch


def refusal(device: torch.device) -> str | None:
    """Why no Triton kernel can run on a device, or None if one can."""
    if find_spec("triton") is None:
        return "Triton is not installed (pip install 'varsearch[triton]')"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return None if major >= 8 else f"it needs compute capability 8.0, this GPU has {major}.{minor}"
    from varsearch.kernels.quantized_linear_triton import interpreted

    if device.type == "cpu" and interpreted():
        return None
    return f"it compiles for CUDA devices, not for {device.type}"
