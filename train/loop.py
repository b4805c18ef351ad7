"""The run: batches -> steps -> checkpoints -> a calibrated artefact."""

import json
import logging
import math
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from store.batches import batches
from store.devices import native_bfloat16, resolve_device
from store.files import write_text
from store.interchange import save_scope2
from store.reader import Store, check_shards, open_store
from store.sparse import scan
from store.transcoder import CONFIG, WEIGHTS, Transcoder
from train import checkpoint
from train.config import TrainConfig
from train.log import TrainingLog
from train.module import StepResult, TrainingTranscoder

TRAIN_CONFIG = "train_config.json"
CALIBRATION_ROWS = 65_536
NAMES = {"matryoshka_batchtopk": "Matryoshka BatchTopK", "jumprelu": "JumpReLU"}
THRESHOLD_LR_SCALE = 10.0
"""JumpReLU's thresholds are learnt as logarithms: at the weights' rate they lag far behind a shrinking encoder."""
log = logging.getLogger(__name__)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine from lr down to min_lr * lr at the last step."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    span = max(1, config.n_steps - 1 - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
    return config.lr * (config.min_lr + (1 - config.min_lr) * 0.5 * (1 + math.cos(math.pi * progress)))


def train(config: TrainConfig) -> Transcoder:
    """The trained transcoder, saved in the run's folder. ValueError for bad input, before anything is trained."""
    store = open_store(config.store_directory)
    check_store(store, config)
    device = resolve_device(config.device)
    low_precision = config.candidates == "bfloat16" or (config.candidates == "auto" and native_bfloat16(device))
    run = checkpoint.identity(config, store.fingerprint, low_precision)
    transcoder = already_trained(config.run_directory, run)
    if transcoder is None:
        if config.check:
            check_shards(store, "train")
        module = TrainingTranscoder(config, store.manifest, store.norm, low_precision).to(device)
        transcoder = run_to_the_end(config, store, module, run)
    else:
        log.info("%s is trained already", config.run_directory)
    if config.gemma_scope_folder is not None:
        save_scope2(transcoder, config.gemma_scope_folder)
    return transcoder


@torch.no_grad()
def run_to_the_end(config: TrainConfig, store: Store, module: TrainingTranscoder, run: dict) -> Transcoder:
    """Trains from the last checkpoint on, calibrates, and saves the artefact."""
    folder = config.run_directory
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / checkpoint.CHECKPOINT
    optimizer = make_optimizer(module, config.lr)
    first = checkpoint.load(path, module, optimizer, run) if path.exists() else 0
    if first:
        log.info("continuing %s at step %d of %d", folder, first, config.n_steps)
    write_text(folder / TRAIN_CONFIG, json.dumps(run, indent=1) + "\n")
    steps(config, store, module, optimizer, first, run)
    threshold = calibrate(config, store, module) if config.architecture == "matryoshka_batchtopk" else None
    name = f"{NAMES[config.architecture]}, k {config.k}"
    transcoder = module.export(store.fingerprint, name, str(folder), threshold).to("cpu")
    transcoder.save(folder)
    path.unlink(missing_ok=True)
    return transcoder


def make_optimizer(module: TrainingTranscoder, lr: float) -> torch.optim.Adam:
    """Adam over float32 master weights; `lr_scale` of a group multiplies the schedule's learning rate."""
    thresholds = [p for name, p in module.named_parameters() if name.endswith("log_threshold")]
    others = [p for name, p in module.named_parameters() if not name.endswith("log_threshold")]
    groups = [{"params": others, "lr_scale": 1.0}]
    if thresholds:
        groups.append({"params": thresholds, "lr_scale": THRESHOLD_LR_SCALE})
    return torch.optim.Adam(groups, lr=lr, fused=True)


def check_store(store: Store, config: TrainConfig) -> None:
    """ValueError unless the store is of the model and layer that the run is named after."""
    recipe = store.manifest.recipe
    if (recipe.model, recipe.layer) != (config.model, config.layer):
        raise ValueError(
            f"{store.directory} holds {recipe.model} layer {recipe.layer} (fingerprint {store.fingerprint}), but the run "
            f"is for {config.model} layer {config.layer}; give the store's --model and --layer, or another --store"
        )


def already_trained(folder: Path, run: dict) -> Transcoder | None:
    """The finished transcoder of the same run. ValueError when the folder holds a run with other options."""
    if not (folder / TRAIN_CONFIG).exists() or not (folder / WEIGHTS).exists() or not (folder / CONFIG).exists():
        return None
    saved = json.loads((folder / TRAIN_CONFIG).read_text())
    if saved != run:
        raise ValueError(
            f"{folder} holds a run with other options: {checkpoint.differences(saved, run)}; "
            "give those options, or another RUN"
        )
    return Transcoder.load(folder)


def steps(
    config: TrainConfig, store: Store, module: TrainingTranscoder, optimizer: torch.optim.Adam, first: int, run: dict
) -> None:
    """Runs the steps that are left. Ctrl-C finishes the step, saves a checkpoint and raises KeyboardInterrupt."""
    path = config.run_directory / checkpoint.CHECKPOINT
    stream = batches(
        store, "train", config.batch_rows, view=config.view, device=module.encoder.device, seed=config.seed,
        cursor=first * config.batch_rows, stop=config.n_steps * config.batch_rows,
    )  # fmt: skip
    with closing(stream), TrainingLog(config, first) as records, interruptible() as interrupted:
        last_time, last_step, waited = time.perf_counter(), first, 0.0
        for step in range(first, config.n_steps):
            before = time.perf_counter()
            batch = next(stream)
            waited += time.perf_counter() - before
            result = train_step(module, optimizer, batch.source, batch.target, learning_rate(step, config))
            done = step + 1
            records.bar.update(config.batch_rows)
            if done % config.log_every == 0 or done == config.n_steps:
                record = record_of(done, config, module, result, optimizer)
                if not math.isfinite(record["loss"]):  # type: ignore[arg-type]
                    raise ValueError(f"the loss is {record['loss']} at step {done}; try a lower --lr")
                elapsed = time.perf_counter() - last_time
                record["rows_per_second"] = (done - last_step) * config.batch_rows / elapsed
                record["data_wait_share"] = waited / elapsed
                last_time, last_step, waited = time.perf_counter(), done, 0.0
                records.write(record)
            if done < config.n_steps and (interrupted() or done % config.checkpoint_every == 0):
                checkpoint.save(path, module, optimizer, done, run)
                if interrupted():
                    raise KeyboardInterrupt
    checkpoint.save(path, module, optimizer, config.n_steps, run)


def train_step(
    module: TrainingTranscoder, optimizer: torch.optim.Adam, source: Tensor, target: Tensor, lr: float
) -> StepResult:
    """One step: gradients, projection, Adam, decoder rows back to norm 1."""
    result = module.step_gradients(source, target)
    module.project()
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    optimizer.step()
    module.renormalise()
    return result


def record_of(
    step: int, config: TrainConfig, module: TrainingTranscoder, result: StepResult, optimizer: torch.optim.Adam
) -> dict[str, float | int | list[float]]:
    per_prefix = result.fvu_per_prefix.tolist()
    return {
        "step": step, "tokens": step * config.batch_rows, "loss": result.loss.item(), "l2_loss": result.l2_loss.item(),
        "aux_loss": result.aux_loss.item(), "fvu": per_prefix[-1], "fvu_min": min(per_prefix),
        "fvu_max": max(per_prefix), "fvu_mean": sum(per_prefix) / len(per_prefix), "fvu_per_prefix": per_prefix,
        "l0_norm": result.l0.item(), "dead_features_percentage": 100 * module.dead.float().mean().item(),
        "learning_rate": optimizer.param_groups[0]["lr"],
    }  # fmt: skip


@contextmanager
def interruptible() -> Iterator:
    """Turns the first Ctrl-C into a flag that is looked at after each step; the second one interrupts at once."""
    pressed = []

    def note(number: int, frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    try:
        previous = signal.signal(signal.SIGINT, note)
    except ValueError:  # not in the main thread: nothing to catch
        yield lambda: False
        return
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, previous)


def calibrate(config: TrainConfig, store: Store, module: TrainingTranscoder) -> Tensor:
    """The one threshold at which the finished weights have a mean L0 of k on training rows."""
    rows = min(CALIBRATION_ROWS, store.manifest.n_rows("train"))
    stream = batches(
        store,
        "train",
        config.batch_rows,
        view=config.view,
        device=module.encoder.device,
        seed=config.seed + 1,
        stop=rows,
    )
    cutoff = 0.5 * float(module.activation.threshold.min())
    values = []
    with tqdm(total=rows, unit="row", unit_scale=True, desc="threshold") as bar:
        for batch in stream:
            x, _ = module.normalise(batch.source, batch.target)
            found = scan(x, module.encoder, module.b_enc, cutoff, module.activation.low_precision).value
            values.append(found[found > cutoff])
            bar.update(len(x))
    pooled = torch.cat(values)
    if len(pooled) < config.k * rows:
        return torch.full_like(module.b_enc, cutoff)
    return torch.full_like(module.b_enc, float(torch.kthvalue(pooled, len(pooled) - config.k * rows).values))
