"""The artefact of a training module: means and scales folded into weights that take rows in raw units."""

import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from store.loader.batches import batches, mix_of
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder, TranscoderConfig
from train.activations import ACTIVATIONS
from train.config import TrainConfig
from train.parallel import Ranks
from train.step.module import TrainingTranscoder

CALIBRATION_ROWS = 32_768
"""Training rows on which the finished weights are calibrated, at most."""

MAPPED = 4096
"""Decoder rows that are mapped in float64 at once on an accelerator, whose memory would hardly hold all of a wide one's."""

FEW = "%s: L0 will be about %.1f, below k = %d: no more pre-activations pass half of training's threshold; train for longer"
log = logging.getLogger(__name__)


@torch.no_grad()
def export(
    module: TrainingTranscoder, store_fingerprint: str, source: str, threshold: Tensor | None = None, gather: bool = True
) -> Transcoder:
    """The transcoder that computes in raw units what the module computes in normalised ones. The module stays as it is.

    `store_fingerprint` and `source` name the store and the run in the artefact's config.
    `threshold [d_sae]` takes the place of the activation's own, in normalised units.
    `gather` puts a dictionary that processes share together on rank 0: every process has to call. The other processes,
    and all without `gather`, get the transcoder of the latents that they hold.
    """
    folded = module.activation.fold(module.b_enc)
    limit = folded.threshold if threshold is None else threshold
    shared = module.ranks if gather else Ranks()
    d_sae = module.config.d_sae
    encoder = shared.whole(module.encoder, d_sae)
    decoder = shared.whole(module.decoder, d_sae)
    scale = shared.whole(folded.scale, d_sae)
    bias = shared.whole(folded.bias, d_sae)
    limit = shared.whole(limit, d_sae)
    device = encoder.device
    input_scale = module.input_scale.to(device)
    input_mean = module.input_mean.to(device)
    target_scale = module.target_scale.to(device)
    target_mean = module.target_mean.to(device)
    W_enc = (encoder.T * input_scale * scale).contiguous()
    b_dec = module.b_dec.to(device) / target_scale + target_mean
    W_skip = None
    if module.skip is not None:
        W_skip = module.skip.to(device) * (input_scale / target_scale)
        b_dec = b_dec - W_skip @ input_mean
    W_dec = decoder / target_scale
    if module.target_inverse is not None:
        back = module.target_inverse.to(device)
        for rows in W_dec.split(len(W_dec) if device.type == "cpu" else MAPPED):
            rows.copy_(rows.double() @ back)
        b_dec = (b_dec.double() @ back).float()
        W_skip = None if W_skip is None else (back @ W_skip.double()).float()
    return Transcoder(
        _describe(module, len(encoder), store_fingerprint, source),
        W_enc=W_enc,
        b_enc=bias - input_mean @ W_enc,
        W_dec=W_dec,
        b_dec=b_dec,
        threshold=limit.detach().clone(),
        W_skip=W_skip,
    )


def _describe(module: TrainingTranscoder, d_sae: int, store_fingerprint: str, source: str) -> TranscoderConfig:
    """The config of the whole dictionary, or of the latents held here: these are a dictionary too, nested likewise."""
    config = module.config
    prefixes = module.prefixes
    if d_sae != config.d_sae:
        prefixes = tuple(module.ranks.latents.count(size) for size in prefixes)
    return TranscoderConfig(
        name=name(config, module.activation.k),
        architecture=config.architecture,
        model=config.model,
        layer=config.layer,
        activation=module.activation.inference,
        view=config.input_view,
        source_site=config.source_site,
        target_site=config.target_site,
        d_in=module.encoder.shape[1],
        d_sae=d_sae,
        d_out=module.decoder.shape[1],
        k=min(module.activation.k, d_sae),
        store_fingerprint=store_fingerprint,
        source=source,
        prefix_sizes=prefixes,
    )


def name(config: TrainConfig, k: int) -> str:
    """For people: `Matryoshka BatchTopK, k 64`."""
    parts = ["Matryoshka"] if len(config.prefixes) > 1 else []
    parts.append(ACTIVATIONS[config.activation].label)
    if config.is_sae:
        parts.append("SAE")
    if config.skip:
        parts.append("with skip")
    null = "" if config.null == "none" else f", {config.null.replace('_', ' ')} (chance)"
    return f"{' '.join(parts)}, k {k}{null}"


def calibrate(module: TrainingTranscoder, store: Store, done: int, folder: Path) -> Tensor | None:
    """The threshold of each latent held here that the activation calibrates on a store's training rows, in normalised
    units; None where it calibrates none. Logs a warning when L0 stays below k.

    done: steps that the module was trained for. folder: of the run, for people.
    """
    k = module.activation.k
    found = module.activation.calibrate(_rows_to_come(module, store, done), module.encoder, module.b_enc)
    if found is None:
        return None
    if found.l0 < k:
        log.warning(FEW, folder, found.l0, k)
    return found.threshold


def _rows_to_come(module: TrainingTranscoder, store: Store, done: int) -> Iterator[Tensor]:
    """CALIBRATION_ROWS normalised rows, in batches: those that would be trained on next.

    In the first epoch these rows are new to the run. That matters: on rows just trained on more latents pass a threshold
    than on others, so that a threshold set there gives too high an L0 elsewhere.
    """
    config = module.config
    cursor = done * config.batch_rows
    n_rows = min(CALIBRATION_ROWS, store.manifest.n_rows("train"))
    stream = batches(
        store,
        "train",
        config.batch_rows,
        view=config.input_view,
        sites=(config.source_site, config.target_site),
        device=module.encoder.device,
        seed=config.seed,
        cursor=cursor,
        stop=cursor + n_rows,
        mix=mix_of(store, "train", (config.source_site, config.target_site), config.piece_bytes),
    )
    with tqdm(total=n_rows, unit="row", unit_scale=True, desc="threshold", disable=module.ranks.rank != 0) as bar:
        for batch in stream:
            x, _ = module.normalise(batch.source, batch.target)
            yield x
            bar.update(len(x))
