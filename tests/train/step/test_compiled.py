"""That Triton's kernels compile for an H200, which need not be there."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.child import python


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton is there on Linux only")
def test_every_kernel_compiles_for_an_h200_without_spilling_registers(tmp_path: Path, monkeypatch):
    triton = pytest.importorskip("triton")
    if not os.access(Path(triton.__file__).parent / "backends/nvidia/bin/ptxas", os.X_OK):
        pytest.skip("this Triton brings no assembler for NVIDIA GPUs (ptxas)")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernels = json.loads(python("-m", "tests.compiled"))
    assert len(kernels) == 9
    for name, found in kernels.items():
        assert found["spills"] <= 16, name
        assert found["registers"] <= 128, f"{name} leaves room for fewer than four programs of four warps"
    for name in ("pair_dots", "errors_and_gradients", "sums_over_entries"):
        assert kernels[name]["widest_load"] == 16, name
