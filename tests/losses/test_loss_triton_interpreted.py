"""The Triton kernels without a GPU: run in Triton's interpreter, and compiled for GPUs that are not here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")


def test_the_kernels_in_the_interpreter():
    # The interpreter is chosen when a kernel is defined, hence the other process.
    script = Path(__file__).with_name("test_loss_triton.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "gpu", "-p", "no:cacheprovider", str(script)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=230,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


@pytest.mark.parametrize("shape", [(1, 2, 65_536 * 1024), (100_000, 1, 64)])
def test_large_and_many_masks_fit_into_a_launch(shape, monkeypatch):
    from arrcoc_sam.losses import triton_kernels

    class Launches(list):
        def __getitem__(self, grid):
            self.append(grid)
            return lambda *_, **__: None

    grids = Launches()
    monkeypatch.setattr(triton_kernels, "_sums_kernel", grids)
    monkeypatch.setattr(triton_kernels, "_gradient_kernel", grids)
    logits, targets = (torch.empty(shape, dtype=dtype, device="meta") for dtype in (torch.float16, torch.uint8))
    sums = triton_kernels.mask_sums_triton(logits, targets, None, None, 2.0)
    triton_kernels.mask_sums_triton_backward(sums, logits, targets, None, None, 2.0)
    assert len(grids) == 2
    for first, *others in grids:
        assert first < 2**31
        assert all(number <= 65_535 for number in others)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted here")
@pytest.mark.parametrize("power", [-1, 0, 1, 4])
@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize(
    ("capability", "logits", "targets"), [(80, "fp16", "u8"), (90, "fp32", "u8"), (90, "bf16", "fp32")]
)
def test_the_kernels_compile_for_gpus(capability, power, even, logits, targets):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from arrcoc_sam.losses import triton_kernels

    numbers = dict.fromkeys(("pixels", "masks", "x_group", "x_mask", "t_group", "t_mask"), "i32")
    numbers |= dict.fromkeys(("base", "slope", "gamma"), "fp32")
    pointers = {"x_ptr": f"*{logits}", "t_ptr": f"*{targets}", "valid_ptr": "*u8"}
    for kernel, own in (
        (triton_kernels._sums_kernel, {"partial_ptr": "*fp32"}),
        (triton_kernels._gradient_kernel, {"grads_ptr": "*fp32", "gradient_ptr": f"*{logits}"}),
    ):
        constants = {"MASKED": True, "POWER": power, "EVEN": even, "BLOCK": 1024, "STEPS": 16}
        signature = {**pointers, **own, **numbers, **dict.fromkeys(constants, "constexpr")}
        source = ASTSource(
            fn=kernel, signature={name: signature[name] for name in kernel.arg_names}, constexprs=constants
        )
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=triton_kernels._OPTIONS)
        assert f"sm_{capability}" in compiled.asm["ptx"]
