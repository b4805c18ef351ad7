"""Training state on disk: all that a resumed run needs to equal an uninterrupted one, bit for bit."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from store.devices import native_bfloat16
from store.disk.files import write_tensors
from store.errors import Damaged, Refused
from store.layout import TRAIN_CONFIG
from store.loader.batches import mix_of
from store.loader.schedule import LEAST_PIECE_BYTES
from store.shards.reader import Store
from store.sparse.scan import Candidates
from store.transcoders.files import read_settings
from train.config import TrainConfig
from train.scaling.defaults import encoder_norm
from train.step.adam import Adam
from train.step.module import TrainingTranscoder
from train.step.optimizer import load_state, state_of
from train.step.start import TargetView

NOT_PART_OF_THE_RUN = (
    "store",
    "target_store",
    "run",
    "device",
    "checkpoint_every",
    "checkpoint_minutes",
    "log_every",
    "heldout_every",
    "heldout_rows",
    "features_every",
    "tokenizer",
    "wandb_project",
    "shard_dictionary",
    "shard_optimizer",
    "check",
    "nulls",
)
"""Options that change no weight: a run may be resumed with other ones."""


def identity(config: TrainConfig, store: Store, device: torch.device) -> dict[str, Any]:
    """The options and fingerprints that must agree for two runs to be the same run."""
    found = {key: value for key, value in asdict(config).items() if key not in NOT_PART_OF_THE_RUN}
    found["prefix_sizes"] = list(config.prefixes)
    found["prefix_weights"] = None if config.weights is None else list(config.weights)
    found["view"] = config.input_view
    found["lr"] = config.peak_lr
    found["warmup_steps"] = config.n_warmup_steps
    found["dead_after"] = config.n_dead_after
    found["encoder_norm"] = config.encoder_norm or begun_with(config)
    found["store_fingerprint"] = store.fingerprint
    found["target_view"] = target_view(config, store)
    fisher = found["target_view"] == "fisher"
    found["whitening"] = config.whitening if fisher else None
    found["metric"] = store.target_side.manifest.metric.xxh3_128 if fisher else None  # type: ignore[union-attr]
    found["candidates"] = candidates(config, device)
    found["aux_latents"] = config.aux_latents if config.aux_weight and config.aux_latents < config.d_sae else 0
    found["piece_bytes"] = piece_bytes(config, store)
    if store.target is not None:
        found["target_store_fingerprint"] = store.target.fingerprint
    return found


def begun_with(config: TrainConfig) -> float:
    """The norm at which the encoder rows of a run start that is not given one. One that was begun goes on as it was, though
    an earlier version had another default."""
    path = config.run_directory / TRAIN_CONFIG
    if not path.exists():
        return encoder_norm(config.activation, config.null)
    return in_todays_words(read_settings(path))["encoder_norm"]


def piece_bytes(config: TrainConfig, store: Store) -> int:
    """Least bytes of a read, as far as they decide the order of rows: of few shards, or in order, each read has more."""
    sites = (config.source_site, config.target_site)
    mix = mix_of(store, "train", sites, config.piece_bytes)
    decides = not config.follow and mix != mix_of(store, "train", sites)
    return config.piece_bytes if decides else LEAST_PIECE_BYTES


def target_view(config: TrainConfig, store: Store) -> TargetView:
    """What the loss weighs errors by. Refused for fisher where the store has no metric of the target's site."""
    info = store.target_side.manifest.metric
    has_metric = info is not None and config.target_site in info.agreement
    if config.target_view == "fisher" and not has_metric:
        raise Refused(
            f"target_view is fisher, but {store.target_side.directory} has no metric of {config.target_site}; run "
            "`make metric` for this store (python -m harvest metric), or give --target-view whitened or raw"
        )
    if config.target_view == "auto":
        return "fisher" if has_metric and not config.follow else "raw"
    return config.target_view


def candidates(config: TrainConfig, device: torch.device) -> Candidates:
    """Precision of the search for active latents: the config's, or what is fastest on the device."""
    if config.candidates != "auto":
        return config.candidates
    return "bfloat16" if native_bfloat16(device) else "float32"


ADDED: dict[str, Any] = {
    "null": "none",
    "target_view": "raw",
    "whitening": None,
    "metric": None,
    "k_start": 1.0,
    "prefix_weights": None,
    "detach_prefixes": False,
    "lr_decay": "cosine",
    "resample_every": 0,
    "dense_weight": 0.0,
    "threshold_lr": 10.0,
    "step_gradients": False,
    "l0_warmup": 0.0,
    "target_dtype": "float32",
    "decoder_start": "random",
    "encoder_norm": 1.0,
    "piece_bytes": LEAST_PIECE_BYTES,
    "aux_latents": 0,
    "tables": "float32",
    "gradient_dtype": "float32",
}
"""Options that came after the first runs, with the value that stands for what the code did before it had them."""


def in_todays_words(saved: dict[str, Any]) -> dict[str, Any]:
    """The options of a run that an earlier version wrote, as this one writes them.

    It had int8 candidates, which found the same latents as float32 ones, and lacked the options that were ADDED. The
    metric was mixed with the plain squared error, by fisher_mix: where one was, it stays, as no option of today is equal.
    """
    candidates = "float32" if saved.get("candidates") == "int8" else saved.get("candidates")
    kept = {name: value for name, value in saved.items() if name != "fisher_mix" or value is not None}
    return ADDED | kept | {"candidates": candidates}


def differences(saved: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Each option that differs, as `name: saved != wanted`."""
    names = sorted(saved.keys() | wanted.keys())
    if saved.get("target_view") != wanted.get("target_view"):
        names = [name for name in names if name not in ("fisher_mix", "whitening", "metric")]  # they follow from it
    parts = {n: f"{n}: {saved.get(n)!r} != {wanted.get(n)!r}" for n in names if saved.get(n) != wanted.get(n)}
    if "fisher_mix" in parts:
        parts["fisher_mix"] = f"fisher_mix: {saved['fisher_mix']}, of an earlier version, which no option gives now"
    return "; ".join(parts.values())


def save(
    path: Path,
    module: TrainingTranscoder,
    optimizer: Adam,
    step: int,
    run: dict[str, Any],
    write: Callable[[Path, dict[str, Tensor], dict[str, str]], None] = write_tensors,
) -> None:
    """Replaces the checkpoint at `path` whole or not at all. Every process has to call; rank 0 has it written.

    `write` gets the path, the tensors and the metadata of the file.
    """
    tensors = {f"module.{name}": module.whole(name, tensor) for name, tensor in module.state_dict().items()}
    tensors |= {f"adam.{key}": tensor for key, tensor in state_of(module, optimizer).items()}
    if module.ranks.rank == 0:
        write(path, tensors, {"step": str(step), "run": json.dumps(run)})


def load(path: Path, module: TrainingTranscoder, optimizer: Adam, run: dict[str, Any]) -> int:
    """Puts a checkpoint's state into module and optimizer; returns the number of steps that it had done.

    `run` is the identity of the run that is to go on. Damaged when the file cannot be read; Refused when it belongs to a
    run with other options (another width, say).
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            saved = in_todays_words(json.loads(metadata["run"]))
            if saved != run:
                raise Refused(
                    f"{path} belongs to a run with other options: {differences(saved, run)}; "
                    "give those options, or another --run"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise Damaged(f"{path} is damaged ({error}); delete it to start this run again") from None
    state = _under("module.", tensors)
    known = set(module.state_dict())
    if known != set(state):
        raise Damaged(
            f"{path} was written by another version: it holds {sorted(state)}, and this one {sorted(known)}; delete it to "
            "start this run again"
        )
    module.load_state_dict({name: module.own(name, tensor) for name, tensor in state.items()})
    load_state(module, optimizer, _under("adam.", tensors))
    return int(metadata["step"])


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
