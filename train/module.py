"""The training module: float32 master weights, buffers that must survive saving, and one step's loss and gradients.

Works in normalised units: the view and the target, each centred by the store's training mean and scaled to unit mean
square. `export` folds both into the artefact's raw units.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from store.manifest import Manifest, Moments
from store.sparse import cut_into_bags
from store.transcoder import Transcoder, TranscoderConfig
from store.views import Norm, ViewName
from train.activations import ACTIVATIONS, JumpReLU
from train.config import TrainConfig
from train.sparse import decode_nested, weight_gradients

CHUNK = 1024
"""Decoder rows touched at once, so that they are read from memory once."""


@dataclass(frozen=True)
class StepResult:
    """What a step reports, as tensors on the device."""

    loss: Tensor
    l2_loss: Tensor
    aux_loss: Tensor
    fvu_per_prefix: Tensor
    """Squared error over squared distance from the store's training mean, in this batch."""
    l0: Tensor


def view_moments(manifest: Manifest, norm: Norm, view: ViewName) -> tuple[Tensor, Tensor]:
    """Mean and mean square by dimension of a view of resid_mid over the training rows, float64."""
    moments = manifest.statistics["resid_mid" if view == "raw" else "resid_mid.rms"]
    mean, square = _tensors(moments)
    if view != "normed":
        return mean, square
    gain = norm.gain.double()
    bias = torch.zeros_like(gain) if norm.bias is None else norm.bias.double()
    return gain * mean + bias, gain**2 * square + 2 * gain * bias * mean + bias**2


def _tensors(moments: Moments) -> tuple[Tensor, Tensor]:
    return torch.tensor(moments.mean, dtype=torch.float64), torch.tensor(moments.mean_square, dtype=torch.float64)


def scale_of(mean: Tensor, mean_square: Tensor) -> Tensor:
    """One factor that gives centred rows a mean square of 1 over rows and dimensions."""
    return (mean_square - mean**2).mean().rsqrt()


class TrainingTranscoder(nn.Module):
    """A transcoder while it is trained. The encoder is stored transposed, [d_sae, d_in]: both matrices by latent."""

    input_mean: Tensor
    input_scale: Tensor
    target_mean: Tensor
    target_scale: Tensor
    tokens_since_fired: Tensor
    group_of: Tensor

    def __init__(self, config: TrainConfig, manifest: Manifest, norm: Norm, low_precision: bool) -> None:
        super().__init__()
        self.config, self.prefixes = config, config.prefixes
        d_in, d_out = manifest.widths["resid_mid"], manifest.widths["mlp_out"]
        for name, (mean, square) in {
            "input": view_moments(manifest, norm, config.view),
            "target": _tensors(manifest.statistics["mlp_out"]),
        }.items():
            self.register_buffer(f"{name}_mean", mean.float())
            self.register_buffer(f"{name}_scale", scale_of(mean, square).float())
        generator = torch.Generator().manual_seed(config.seed)
        self.encoder = nn.Parameter(_unit_rows(torch.randn(config.d_sae, d_in, generator=generator)))
        self.decoder = nn.Parameter(_unit_rows(torch.randn(config.d_sae, d_out, generator=generator)))
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_out))
        self.register_buffer("tokens_since_fired", torch.zeros(config.d_sae, dtype=torch.int64))
        groups = torch.bucketize(torch.arange(config.d_sae), torch.tensor(self.prefixes), right=True)
        self.register_buffer("group_of", groups, persistent=False)
        self.activation = ACTIVATIONS[config.architecture](config, low_precision)
        self.requires_grad_(False)

    @property
    def dead(self) -> Tensor:
        """Which latents have not fired for `dead_after` tokens."""
        return self.tokens_since_fired >= self.config.dead_after

    def normalise(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        shifts = self.input_mean * -self.input_scale, self.target_mean * -self.target_scale
        return torch.addcmul(shifts[0], source, self.input_scale), torch.addcmul(shifts[1], target, self.target_scale)

    def step_gradients(self, source: Tensor, target: Tensor) -> StepResult:
        """Loss of a batch; sets every parameter's gradient and counts which latents fired.

        Loss: the mean over rows and dimensions of the squared error, summed over all prefixes with equal weights
        (arXiv 2503.17547), plus aux_weight * AuxK (arXiv 2406.04093).
        """
        x, y = self.normalise(source, target)
        rows, unit = len(x), 1 / y.numel()
        selection = self.activation.select(x, self.encoder, self.b_enc)
        entries, latents = selection.entries, selection.latents
        bags = cut_into_bags(entries, self.group_of, len(self.prefixes), rows)
        dead = self.dead.nonzero().squeeze(1) if self.config.aux_weight else self.group_of[:0]
        decoded = decode_nested(entries, latents, bags, self.decoder, self.b_dec, y, keep_residual=len(dead) > 0)
        grad_pre, grad_threshold = self.activation.gradients(selection, decoded.grad_latent * (2 * unit), rows)
        weights = weight_gradients(entries, latents * (2 * unit), bags, decoded.grad_bags, grad_pre, x, self.config.d_sae)
        self.encoder.grad, self.b_enc.grad, self.decoder.grad = weights.encoder, weights.b_enc, weights.decoder
        self.b_dec.grad = decoded.grad_bags[:rows].sum(0) * (2 * unit)
        if isinstance(self.activation, JumpReLU):
            self.activation.log_threshold.grad = grad_threshold
        aux_loss = x.new_zeros(()) if decoded.residual is None else self._aux(x, decoded.residual, dead)
        l2_loss = decoded.sse.sum() * unit
        active = (latents > 0).float()
        fired = torch.bincount(entries.latent, weights=active, minlength=self.config.d_sae) > 0
        self.tokens_since_fired.add_(rows).masked_fill_(fired, 0)
        return StepResult(
            loss=l2_loss + self.config.aux_weight * aux_loss, l2_loss=l2_loss, aux_loss=aux_loss,
            fvu_per_prefix=decoded.sse / y.square().sum(), l0=active.sum() / rows,
        )  # fmt: skip

    def _aux(self, x: Tensor, residual: Tensor, index: Tensor) -> Tensor:
        """AuxK: dead latents predict what the living ones leave, detached; adds its gradient to the dead latents'."""
        with torch.enable_grad():
            encoder, decoder = self.encoder[index].requires_grad_(), self.decoder[index].requires_grad_()
            b_enc = self.b_enc[index].requires_grad_()
            top = torch.addmm(b_enc, x, encoder.T).topk(min(self.config.aux_k, len(index)), dim=1, sorted=False)
            latents = torch.zeros(len(x), len(index), device=x.device).scatter(1, top.indices, top.values.relu())
            loss = (latents @ decoder + residual).square().mean() / residual.square().mean()
            gradients = torch.autograd.grad(loss * self.config.aux_weight, (encoder, b_enc, decoder))
        for parameter, gradient in zip((self.encoder, self.b_enc, self.decoder), gradients, strict=True):
            assert parameter.grad is not None
            parameter.grad.index_add_(0, index, gradient)
        return loss.detach()

    def project(self) -> None:
        """Removes from the decoder's gradient what would only change the rows' norms (arXiv 2309.08600's code)."""
        gradient = self.decoder.grad
        assert gradient is not None
        for rows, grads in zip(self.decoder.split(CHUNK), gradient.split(CHUNK), strict=True):
            grads.addcmul_(rows, torch.linalg.vecdot(grads, rows)[:, None], value=-1)

    def renormalise(self) -> None:
        """Puts every decoder row back to norm 1."""
        for rows in self.decoder.split(CHUNK):
            rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True))

    @torch.no_grad()
    def export(self, store_fingerprint: str, name: str, source: str, threshold: Tensor | None = None) -> Transcoder:
        """The transcoder in raw units: means and scales folded into weights, biases and thresholds.

        The threshold is the activation's own unless another is given.
        """
        config = self.config
        threshold = self.activation.threshold if threshold is None else threshold
        W_enc = self.encoder.T * self.input_scale
        scale = 1 / self.target_scale
        artefact = TranscoderConfig(
            name=name, architecture=config.architecture, model=config.model, layer=config.layer, view=config.view,
            d_in=self.encoder.shape[1], d_sae=config.d_sae, d_out=self.decoder.shape[1], k=config.k,
            prefix_sizes=self.prefixes, store_fingerprint=store_fingerprint, source=source,
        )  # fmt: skip
        return Transcoder(
            artefact, W_enc=W_enc.contiguous(), b_enc=self.b_enc - self.input_mean @ W_enc, W_dec=self.decoder * scale,
            b_dec=self.b_dec * scale + self.target_mean, threshold=threshold.detach().clone(),
        )  # fmt: skip


def _unit_rows(matrix: Tensor) -> Tensor:
    return matrix / torch.linalg.vector_norm(matrix, dim=1, keepdim=True)
