import pytest
import torch

from tigerrec.runtime.devices import resolve_precision


@pytest.mark.parametrize(
    ("capabilities", "chosen"),
    [
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, "bf16"),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, "fp32"),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True}, "bf16"),
        ({"avx512_bf16": True}, "bf16"),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": False}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_auto_is_bf16_where_the_hardware_has_it_but_not_on_intel_without_amx(monkeypatch, capabilities, chosen):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    cpu = torch.device("cpu")
    assert resolve_precision(cpu, "auto") == chosen
    assert [resolve_precision(cpu, precision) for precision in ("fp32", "bf16")] == ["fp32", "bf16"]
