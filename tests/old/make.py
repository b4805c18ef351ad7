"""Made the files beside it, with the code of commit 8248318; run in a checkout of that, it makes them again.

    git worktree add /tmp/then 8248318 && cd /tmp/then && PYTHONPATH=. python HERE/tests/old/make.py EMPTY_FOLDER

A training run is stopped after 12 of 20 steps and copied; `expected.safetensors` is what it gives when it goes on.
"""

import json
import os
import shutil
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

os.environ |= {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}

import torch
import xxhash
from safetensors.torch import save_file

STEPS, STOP = 20, 12


class Stopped(BaseException):
    pass


def machine() -> dict[str, str]:
    """What decides the last bits of a product: the processor with its instructions, and the library."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    described = sorted({line for line in lines if line.startswith(("model name", "flags"))})
    return {"processor": xxhash.xxh3_64_hexdigest("\n".join(described).encode()), "torch": torch.__version__}


def main() -> None:
    from store.transcoder import Transcoder

    from tests.conftest import make_store
    from train import checkpoint
    from train.config import TrainConfig
    from train.loop import train

    os.chdir(sys.argv[1])
    store = make_store(Path("store"))
    plain = TrainConfig(
        model="tiny",
        layer=1,
        store=Path("store"),
        run=Path("run"),
        d_sae=24,
        k=3,
        tokens=32 * STEPS,
        batch_rows=32,
        lr=5e-3,
        warmup_steps=5,
        checkpoint_every=STOP,
        log_every=5,
        heldout_every=0,
        dead_after=200,
        aux_k=4,
        device="cpu",
        candidates="float32",
    )
    train(plain)
    train(replace(plain, run=Path("topk"), activation="topk", skip=True))
    for name in ("run", "topk"):
        x, t = torch.randn(5, 12, generator=torch.Generator().manual_seed(1)), Transcoder.load(Path(name))
        save_file({"x": x, "latents": t.encode(x), "y": t(x)}, Path(name) / "forward.safetensors")

    stopped, save = replace(plain, run=Path("stopped")), checkpoint.save

    def save_and_stop(*arguments) -> None:
        save(*arguments)
        raise Stopped

    checkpoint.save = save_and_stop
    with suppress(Stopped):
        train(stopped)
    checkpoint.save = save
    kept = Path("checkpoint")
    kept.mkdir()
    for name in ("checkpoint.safetensors", "train_config.json"):
        shutil.copy(stopped.run / name, kept / name)
    train(stopped)
    shutil.copy(stopped.run / "transcoder.safetensors", kept / "expected.safetensors")
    (kept / "machine.json").write_text(json.dumps(machine(), indent=1) + "\n")
    shutil.rmtree(stopped.run)
    assert store.manifest.n_tokens == 512


if __name__ == "__main__":
    main()
