"""Where a computation runs, and in which precision."""

from __future__ import annotations

from typing import Any

import torch

from tigerrec import TigerrecError


def resolve_device(device: str) -> torch.device:
    """`auto` is the first CUDA device where there is one, else the CPU. Raises TigerrecError if there is no such
    device."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError):
        raise TigerrecError(f"There is no device {device!r} on this machine; give auto, cpu or cuda.") from None


def resolve_precision(device: torch.device, precision: str) -> str:
    """`auto` is bf16 on hardware that multiplies bf16 matrices, else fp32.

    On Intel without AMX it is fp32 too: bf16 was measured to be slower there (docs/performance.md).
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    capabilities = torch.cpu.get_capabilities()
    vectors_serve = capabilities.get("avx512_bf16") and "Intel" not in capabilities.get("cpu_name", "")
    return "bf16" if capabilities.get("amx_bf16") or vectors_serve else "fp32"


def product_type(device: torch.device, precision: str) -> torch.dtype:
    """The type of matrix products, weights being fp32."""
    return torch.bfloat16 if resolve_precision(device, precision) == "bf16" else torch.float32


def environment(device: torch.device, precision: str) -> dict[str, Any]:
    """What the last bits of a result depend on beside configuration and inputs."""
    import transformers

    return {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": device.type,
        "precision": resolve_precision(device, precision),
    }
