"""The training module: float32 master weights, buffers that must survive saving, and one step's loss and gradients.

Works in normalised units: the view and the target, each centred by the store's training mean (in place of the bias that
autoencoders subtract first, arXiv 2406.04093) and scaled to unit mean square (arXiv 2408.05147). `export` folds both into
the artefact's raw units.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from store.errors import Refused
from store.shards.manifest import Manifest, Moments
from store.sparse.scan import Bags, Candidates, cut_into_bags
from store.transcoders.transcoder import Transcoder, TranscoderConfig
from store.views import Norm, ViewName
from train.activations import ACTIVATIONS
from train.activations.base import Selection
from train.config import TrainConfig
from train.parallel import Latents, Ranks
from train.sparse import decode_nested, weight_gradients
from train.watch import LossMonitor

CHUNK = 1024
"""Decoder rows touched at once on a CPU, so that they are read from memory once."""
BY_LATENT = frozenset({
    "encoder", "decoder", "b_enc", "tokens_since_fired", "activation.threshold", "activation.log_threshold",
    "activation.r_mag", "activation.b_mag",
})  # fmt: skip
"""State with a row, or a number, for each latent."""
WAIT_EVERY = 100
"""Every so many steps, and in as many first ones, a device that is not a CPU is waited for."""
NAMES = {"batchtopk": "BatchTopK", "topk": "TopK", "relu": "ReLU", "jumprelu": "JumpReLU", "gated": "Gated"}


@dataclass(frozen=True)
class StepResult:
    """What a step reports, as tensors on the device."""

    loss: Tensor
    l2_loss: Tensor
    aux_loss: Tensor
    sparsity_loss: Tensor
    fvu_per_prefix: Tensor
    """Squared error over squared distance from the store's training mean, in this batch."""
    l0: Tensor


def view_moments(manifest: Manifest, norm: Norm, view: ViewName, site: str = "resid_mid") -> tuple[Tensor, Tensor]:
    """Mean and mean square by dimension of a site (resid_mid: of a view of it) over the training rows, float64."""
    name = site if view == "raw" else f"{site}.rms"
    if name not in manifest.statistics:
        raise Refused(f"view {view} does not exist for {site} of this store; give --view raw")
    mean, square = _tensors(manifest.statistics[name])
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


def draw_prefixes(d_sae: int, n: int, seed: int, step: int) -> Tensor:
    """n prefix sizes for one step, the last of them d_sae; size m is drawn in proportion to sqrt(m) - sqrt(m - 1), as in
    N. Nabeshima's Matryoshka SAEs (2024)."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    weights = torch.arange(d_sae, dtype=torch.float64).sqrt().diff()
    drawn = torch.multinomial(weights, n - 1, generator=generator) + 1
    return torch.cat([drawn.sort().values, torch.tensor([d_sae])])


class TrainingTranscoder(nn.Module):
    """A transcoder while it is trained. The encoder is stored transposed, [d_sae, d_in]: both matrices by latent.

    Both start as random rows of norm 1: the same ones in an autoencoder (arXiv 2406.04093), independent ones in a
    transcoder, whose source and target are different spaces; either measured better there than the other (RESULTS.md).

    Of processes that share the dictionary each holds its own latents (train/parallel.py), and all the rest whole.
    """

    input_mean: Tensor
    input_scale: Tensor
    target_mean: Tensor
    target_scale: Tensor
    tokens_since_fired: Tensor
    group_of: Tensor

    def __init__(
        self,
        config: TrainConfig,
        manifest: Manifest,
        norm: Norm,
        candidates: Candidates,
        target_manifest: Manifest | None = None,
        ranks: Ranks = Ranks(),  # noqa: B008  # frozen
    ) -> None:
        super().__init__()
        self.config, self.prefixes, self.ranks = config, config.prefixes, ranks
        target_manifest = target_manifest or manifest
        d_in, d_out = manifest.widths[config.source_site], target_manifest.widths[config.target_site]
        for name, (mean, square) in {
            "input": view_moments(manifest, norm, config.input_view, config.source_site),
            "target": _tensors(target_manifest.statistics[config.target_site]),
        }.items():
            self.register_buffer(f"{name}_mean", mean.float())
            self.register_buffer(f"{name}_scale", scale_of(mean, square).float())
        generator = torch.Generator().manual_seed(config.seed)
        self.encoder = nn.Parameter(_unit_rows(config.d_sae, d_in, generator, ranks.latents))
        drawn = self.encoder if config.is_sae else _unit_rows(config.d_sae, d_out, generator, ranks.latents)
        self.decoder = nn.Parameter(drawn.detach().clone())
        self.b_enc = nn.Parameter(torch.zeros(len(self.encoder)))
        self.b_dec = nn.Parameter(torch.zeros(d_out))
        self.skip = nn.Parameter(torch.zeros(d_out, d_in)) if config.skip else None
        self.register_buffer("tokens_since_fired", torch.zeros(len(self.encoder), dtype=torch.int64))
        self.register_buffer("group_of", self._groups(torch.tensor(self.prefixes)), persistent=False)
        self.activation = ACTIVATIONS[config.activation](config, candidates, ranks)
        self.watch = LossMonitor()
        self.listed_dead: Tensor | None = None
        self.requires_grad_(False)

    def _groups(self, sizes: Tensor) -> Tensor:
        """The group of each latent: the first prefix that holds it."""
        held = torch.arange(self.config.d_sae, device=sizes.device)[self.ranks.latents.own].contiguous()
        return torch.bucketize(held, sizes, right=True)

    def whole(self, name: str, state: Tensor) -> Tensor:
        """State of this name (or Adam's of it) of the whole dictionary, on rank 0: every process has to ask for it."""
        by_latent = name in BY_LATENT and state.ndim > 0
        return self.ranks.latents.whole(state, self.config.d_sae) if by_latent else state

    def own(self, name: str, state: Tensor) -> Tensor:
        """Of state of the whole dictionary what is held here."""
        return state[self.ranks.latents.own].contiguous() if name in BY_LATENT and state.ndim > 0 else state

    @property
    def dead(self) -> Tensor:
        """Which latents have not fired for `dead_after` tokens."""
        return self.tokens_since_fired >= self.config.dead_after

    def normalise(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        shifts = self.input_mean * -self.input_scale, self.target_mean * -self.target_scale
        return torch.addcmul(shifts[0], source, self.input_scale), torch.addcmul(shifts[1], target, self.target_scale)

    def step_gradients(self, source: Tensor, target: Tensor, step: int = 0) -> StepResult:
        """Loss of a batch; sets every parameter's gradient and counts which latents fired.

        Loss: the mean over rows and dimensions of the squared error, summed over all prefixes with equal weights
        (arXiv 2503.17547), plus aux_weight * AuxK (arXiv 2406.04093), plus what the activation asks for sparsity.
        Of several processes each computes its rows' share, or its latents'; gradients and losses are their sums.
        """
        x, y = self.normalise(source, target)
        rows = len(x) * self.ranks.rows.world
        unit = 1 / (rows * y.shape[1])
        may_sync = self.may_sync(step)
        selection = self.activation.select(x, self.encoder, self.b_enc, may_sync)
        entries, latents = selection.entries, selection.latents
        bags = cut_into_bags(entries, *self._groups_of_step(step), len(x))
        goal = y if self.skip is None else torch.addmm(y, x, self.skip.T, alpha=-1)
        dead = self._listed_dead(step, may_sync, rows)
        n_dead = self.ranks.latents.total(len(dead))
        decoded = decode_nested(
            entries, latents, bags, self.decoder, self.b_dec, goal, keep_residual=n_dead > 0, shared=self.ranks.latents
        )
        gate_sse, by_gate = self._decode_gate(selection, bags, goal, unit)
        gradients = self.activation.gradients(selection, decoded.grad_latent * (2 * unit), by_gate, rows)
        weights = weight_gradients(
            entries, latents * (2 * unit), bags, decoded.grad_bags, gradients.pre, gradients.bias, x, len(self.encoder)
        )
        self.encoder.grad, self.b_enc.grad, self.decoder.grad = weights.encoder, weights.b_enc, weights.decoder
        self.b_dec.grad = decoded.grad_bags[: len(x)].sum(0) * (2 * unit)
        if self.skip is not None:
            self.skip.grad = decoded.grad_bags[: len(x)].T @ x * (2 * unit)
        aux_loss = x.new_zeros(()) if decoded.residual is None else self._aux(x, decoded.residual, dead, n_dead)
        result = self._share(decoded.sse, gate_sse * unit, aux_loss, gradients.penalty, y, entries.latent, latents)
        self.watch.note(result.loss, selection.missed)
        return result

    def may_sync(self, step: int) -> bool:
        """Whether this step may wait for the device to learn how long its lists are: any step on a CPU, or of several
        processes, which wait for each other.

        Elsewhere waiting leaves the device idle. In most steps BatchTopK's and TopK's lists have lengths known before, and
        AuxK's dead latents are those that the last step to wait listed, as far as they are dead still. Where BatchTopK's
        latents are missed in between, weights stay as they are, the log counts it, and the next step to wait puts it
        right. The other kinds wait in every step.
        """
        alone_on_a_device = self.encoder.device.type != "cpu" and self.ranks.world == 1
        return not alone_on_a_device or step < WAIT_EVERY or step % WAIT_EVERY == 0

    def _listed_dead(self, step: int, may_sync: bool, rows: int) -> Tensor:
        """Which latents AuxK helps: those dead at the last step to wait. A run that is continued lists them again,
        as those that were silent long enough by then."""
        if not self.config.aux_weight:
            return self.group_of[:0]
        if may_sync or self.listed_dead is None:
            seen = 0 if may_sync else step % WAIT_EVERY * rows
            self.listed_dead = (self.tokens_since_fired >= self.config.dead_after + seen).nonzero().squeeze(1)
        return self.listed_dead

    def _groups_of_step(self, step: int) -> tuple[Tensor, int]:
        """The group of each latent in this step, and how many there are."""
        if not self.config.random_prefixes:
            return self.group_of, len(self.prefixes)
        sizes = draw_prefixes(self.config.d_sae, self.config.random_prefixes, self.config.seed, step)
        return self._groups(sizes.to(self.group_of.device, non_blocking=True)), len(sizes)

    def _decode_gate(self, selection: Selection, bags: Bags, goal: Tensor, unit: float) -> tuple[Tensor, Tensor | None]:
        """Squared error of the gate's own reconstruction and its gradient by the gate; nothing else learns from it."""
        if selection.gate is None:
            return goal.new_zeros(()), None
        decoded = decode_nested(
            selection.entries, selection.gate, bags, self.decoder, self.b_dec, goal, keep_residual=False,
            shared=self.ranks.latents,
        )  # fmt: skip
        return decoded.sse.sum(), decoded.grad_latent * (2 * unit)

    def _share(
        self, sse: Tensor, gate_loss: Tensor, aux: Tensor, penalty: Tensor, y: Tensor, latent: Tensor, latents: Tensor
    ) -> StepResult:
        """Adds gradients and losses up over all processes, counts what fired, and reports."""
        rows = len(y) * self.ranks.rows.world
        active = (latents > 0).float()
        fired = active.new_zeros(len(self.encoder)).index_add_(0, latent, active)
        for parameter in self.parameters():
            self.ranks.rows.sum(parameter.grad)  # type: ignore[arg-type]
        sums = self.ranks.rows.sum(torch.cat([sse, torch.stack([gate_loss, aux, y.square().sum()])]))
        penalty, n_active = self.ranks.sum(torch.stack([penalty, active.sum()])).unbind()
        self.tokens_since_fired.add_(rows).masked_fill_(self.ranks.rows.sum(fired) > 0, 0)
        sse, (gate_loss, aux, variation) = sums[: len(sse)], sums[len(sse) :].unbind()
        l2_loss, sparsity_loss = sse.sum() / (rows * y.shape[1]), penalty + gate_loss
        loss = l2_loss + self.config.aux_weight * aux + sparsity_loss
        return StepResult(loss, l2_loss, aux, sparsity_loss, fvu_per_prefix=sse / variation, l0=n_active / rows)

    def _aux(self, x: Tensor, residual: Tensor, index: Tensor, n_dead: int) -> Tensor:
        """AuxK: dead latents predict what the living ones leave, detached; adds its gradient to the dead latents'.

        `index` has those of the `n_dead` that are held here; any that live again since they were listed take no part.
        """
        k, shared = self.config.aux_k, self.ranks.latents
        with torch.enable_grad():
            encoder, decoder = self.encoder[index].requires_grad_(), self.decoder[index].requires_grad_()
            b_enc = self.b_enc[index].masked_fill(~self.dead[index], -torch.inf).requires_grad_()
            top = torch.addmm(b_enc, x, encoder.T).topk(min(k, len(index)), dim=1, sorted=False)
            values = shared.largest(top.values, min(k, n_dead)).relu()
            recon = torch.zeros(len(x), len(index), device=x.device).scatter(1, top.indices, values) @ decoder
            error = shared.sum(recon.detach().clone()).add_(residual)
            norm = self.ranks.rows.sum(residual.square().sum())
            by_recon = error * (2 * self.config.aux_weight / norm)
            gradients = torch.autograd.grad(recon, (encoder, b_enc, decoder), by_recon)
        for parameter, gradient in zip((self.encoder, self.b_enc, self.decoder), gradients, strict=True):
            assert parameter.grad is not None
            parameter.grad.index_add_(0, index, gradient)
        return error.square().sum() / norm

    def renormalise(self) -> None:
        """Puts every decoder row back to norm 1 (arXiv 2309.08600), so that latents compete by what they contribute."""
        for rows in self.decoder.split(CHUNK if self.decoder.device.type == "cpu" else len(self.decoder)):
            rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True))

    @torch.no_grad()
    def export(
        self, store_fingerprint: str, source: str, threshold: Tensor | None = None, gather: bool = True
    ) -> Transcoder:
        """The transcoder in raw units: means and scales folded into weights, biases and thresholds.

        The threshold is the activation's own unless another is given. The module stays as it is. Of a dictionary that
        processes share, rank 0 has the whole; the others, and without `gather` all, have that of their own latents.
        """
        folded = self.activation.fold(self.b_enc)
        limit = folded.threshold if threshold is None else threshold
        shared = self.ranks.latents if gather else Latents()
        parts = (self.encoder, self.decoder, folded.scale, folded.bias, limit)
        encoder, decoder, scale, bias, limit = (shared.whole(part, self.config.d_sae) for part in parts)
        input_scale, input_mean, target_scale, target_mean, b_dec = (
            part.to(encoder.device)
            for part in (self.input_scale, self.input_mean, self.target_scale, self.target_mean, self.b_dec)
        )
        W_enc = (encoder.T * input_scale * scale).contiguous()
        W_skip = None if self.skip is None else self.skip.to(encoder.device) * (input_scale / target_scale)
        b_dec = b_dec / target_scale + target_mean
        return Transcoder(
            self._describe(len(encoder), store_fingerprint, source), W_enc=W_enc, b_enc=bias - input_mean @ W_enc,
            W_dec=decoder / target_scale, b_dec=b_dec if W_skip is None else b_dec - W_skip @ input_mean,
            threshold=limit.detach().clone(), W_skip=W_skip,
        )  # fmt: skip

    def _describe(self, d_sae: int, store_fingerprint: str, source: str) -> TranscoderConfig:
        """Of the whole dictionary, or of the latents that are held here: a dictionary too, nested likewise."""
        config, whole = self.config, d_sae == self.config.d_sae
        return TranscoderConfig(
            name=self.name, architecture=config.architecture, model=config.model, layer=config.layer,
            activation="topk" if config.activation == "topk" else "threshold", view=config.input_view,
            source_site=config.source_site, target_site=config.target_site, d_in=self.encoder.shape[1], d_sae=d_sae,
            d_out=self.decoder.shape[1], k=min(config.k, d_sae), store_fingerprint=store_fingerprint, source=source,
            prefix_sizes=self.prefixes if whole else tuple(map(self.ranks.latents.count, self.prefixes)),
        )  # fmt: skip

    @property
    def name(self) -> str:
        """For people: `Matryoshka BatchTopK, k 64`."""
        config = self.config
        kind = ("Matryoshka " if len(self.prefixes) > 1 else "") + NAMES[config.activation]
        return kind + (" SAE" if config.is_sae else "") + (" with skip" if config.skip else "") + f", k {config.k}"


def _unit_rows(n: int, width: int, generator: torch.Generator, shared: Latents) -> Tensor:
    """Those held here of n random rows of norm 1; drawn a chunk at a time, so that all n are never in memory."""
    held = torch.empty(shared.count(n), width)
    for first in range(0, n, CHUNK):
        drawn = torch.randn(min(CHUNK, n - first), width, generator=generator)
        rows = drawn[(shared.rank - first) % shared.world :: shared.world]
        place = shared.count(first)
        held[place : place + len(rows)] = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return held
