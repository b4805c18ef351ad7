"""The training module: float32 master weights, buffers that must survive saving, and one step's loss and gradients.

Works in normalised units: the view and the target, each centred by the store's training mean (in place of the bias that
autoencoders subtract first, arXiv 2406.04093) and scaled to unit mean square (arXiv 2408.05147). train/export.py folds
both into the artefact's raw units.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from store.shards.manifest import Manifest
from store.sparse.scan import Bags, Candidates, cut_into_bags, sums_by_latent
from store.views import Norm
from train.activations import ACTIVATIONS
from train.activations.base import Selection
from train.config import TrainConfig
from train.parallel import Ranks
from train.scaling.defaults import encoder_norm
from train.step.auxk import auxk, some_of
from train.step.draws import draw_order, draw_prefixes, draw_unit_rows
from train.step.losses import StepResult, Sums, by_dense_latent, report
from train.step.moments import moments_of, scale_of, view_moments
from train.step.sparse import as_table, decode_nested, weight_gradients
from train.step.target import TargetRoot, in_plain_target
from train.step.watch import LossMonitor

CHUNK = 1024
"""Decoder rows touched at once on a CPU, so that they are read from memory once."""

BY_LATENT = frozenset({"encoder", "decoder", "b_enc", "tokens_since_fired"})
"""State with a row, or a number, for each latent, beside the activation's."""

FROZEN = {"random_decoder": frozenset({"decoder"}), "random_encoder": frozenset({"encoder"})}
"""By null: the weights that stay as they were drawn. They get no gradient, so that a step costs less."""

WAIT_EVERY = 100
"""Steps between two that wait for a GPU; the first WAIT_EVERY steps wait too."""


class TrainingTranscoder(nn.Module):
    """A transcoder while it is trained. The encoder is stored transposed, [d_sae, d_in]: both matrices by latent.

    Both matrices start as random rows: in the same directions in an autoencoder (arXiv 2406.04093), in independent ones in
    a transcoder, whose source and target are different spaces. Each start measured better there than the other (RESULTS).

    Where processes share the dictionary, each holds its own latents (train/parallel.py) and everything else whole.
    """

    input_mean: Tensor
    input_scale: Tensor
    target_mean: Tensor
    target_scale: Tensor
    target_root: Tensor | None
    """What the target is seen through; None where that is nothing."""
    target_inverse: Tensor | None
    tokens_since_fired: Tensor
    group_of: Tensor
    prefix_weights: Tensor | None

    def __init__(
        self,
        config: TrainConfig,
        manifest: Manifest,
        norm: Norm,
        candidates: Candidates,
        target_manifest: Manifest | None = None,
        ranks: Ranks = Ranks(),  # noqa: B008  # frozen
        target_root: TargetRoot | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.prefixes = config.prefixes
        self.ranks = ranks
        target_manifest = target_manifest or manifest
        d_in = manifest.widths[config.source_site]
        d_out = target_manifest.widths[config.target_site]
        mean, square = view_moments(manifest, norm, config.input_view, config.source_site)
        self.register_buffer("input_mean", mean.float())
        self.register_buffer("input_scale", scale_of(mean, square).float())
        mean, square = moments_of(target_manifest.statistics[config.target_site])
        scale = scale_of(mean, square)
        if target_root is not None:
            mean, scale = mean @ target_root.root, torch.ones_like(scale)
        self.register_buffer("target_mean", mean.float())
        self.register_buffer("target_scale", scale.float())
        self.register_buffer("target_root", None if target_root is None else target_root.root.float())
        self.register_buffer("target_inverse", None if target_root is None else target_root.inverse.clone())
        generator = torch.Generator().manual_seed(config.seed)
        drawn = draw_unit_rows(config.d_sae, d_in, generator, ranks.latents)
        self.encoder = nn.Parameter((config.encoder_norm or encoder_norm(config.activation, config.null)) * drawn)
        if not config.is_sae:
            drawn = draw_unit_rows(config.d_sae, d_out, generator, ranks.latents)
        self.decoder = nn.Parameter(drawn)
        self.b_enc = nn.Parameter(torch.zeros(len(self.encoder)))
        self.b_dec = nn.Parameter(torch.zeros(d_out))
        self.skip = nn.Parameter(torch.zeros(d_out, d_in)) if config.skip else None
        self.register_buffer("tokens_since_fired", torch.zeros(len(self.encoder), dtype=torch.int64))
        self.register_buffer("group_of", self._groups(torch.tensor(self.prefixes)), persistent=False)
        weights = None if config.weights is None else torch.tensor(config.weights)
        self.register_buffer("prefix_weights", weights, persistent=False)
        self.activation = ACTIVATIONS[config.activation](config, candidates, ranks)
        self.by_latent = BY_LATENT | {f"activation.{name}" for name in self.activation.by_latent}
        self.frozen = FROZEN.get(config.null, frozenset())
        self.watch = LossMonitor()
        self.listed_dead: Tensor | None = None
        self.n_dead_elsewhere = 0
        self.requires_grad_(False)

    def _groups(self, sizes: Tensor) -> Tensor:
        """The group of each latent: the first prefix that holds it."""
        held = torch.arange(self.config.d_sae, device=sizes.device)[self.ranks.latents.own].contiguous()
        return torch.bucketize(held, sizes, right=True)

    def whole(self, name: str, state: Tensor) -> Tensor:
        """The whole dictionary's state of this name (or Adam's state of it), on rank 0. Every process has to call."""
        return self.ranks.whole(state, self.config.d_sae) if self._is_shared(name, state) else state

    def own(self, name: str, state: Tensor) -> Tensor:
        """The part held here of the whole dictionary's state."""
        return state[self.ranks.latents.own].contiguous() if self._is_shared(name, state) else state

    def _is_shared(self, name: str, state: Tensor) -> bool:
        return name in self.by_latent and state.ndim > 0  # Adam counts a weight's steps in a scalar

    @property
    def dead(self) -> Tensor:
        """Which latents have not fired for `dead_after` tokens."""
        return self.tokens_since_fired >= self.config.n_dead_after

    def normalise(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Centred and scaled: source [rows, d_in] and target [rows, d_out] in the units that the module works in."""
        x = torch.addcmul(self.input_mean * -self.input_scale, source, self.input_scale)
        if self.target_root is not None:
            target = target @ self.target_root
        y = torch.addcmul(self.target_mean * -self.target_scale, target, self.target_scale)
        return x, y

    def step_gradients(self, source: Tensor, target: Tensor, step: int = 0) -> StepResult:
        """Loss of a batch; sets the gradient of every parameter that is not frozen by this process's rows, and counts which
        latents fired.

        Loss: the mean over rows and dimensions of the squared error, summed over all prefixes (arXiv 2503.17547) by their
        weights, equal ones by default, plus aux_weight * AuxK (arXiv 2406.04093), plus the penalty of the activation.
        Each process computes its rows' share, of its latents. Losses are the sums over all processes; the optimizer adds up
        gradients.
        """
        x, y = self.normalise(source, target)
        if self.config.null == "shuffled_targets":
            y = y.index_select(0, draw_order(len(y), self.config.seed, step).to(y.device, non_blocking=True))
        rows = len(x) * self.ranks.rows.world
        n_values = rows * y.shape[1]
        unit = 1 / n_values
        may_sync = self.may_sync(step)
        encoder, decoder, gathered_x = map(self._table, (self.encoder, self.decoder, x))
        selection = self.activation.select(gathered_x, encoder, self.b_enc, step, may_sync)
        entries = selection.entries
        latents = selection.latents
        bags = cut_into_bags(entries, *self._groups_of_step(step), len(x))
        goal = y if self.skip is None else torch.addmm(y, x, self.skip.T, alpha=-1)
        dead = self._listed_dead(step, may_sync, rows)
        n_dead = len(dead) + self.n_dead_elsewhere
        resamples = self.config.resamples_at(step)
        decoded = decode_nested(
            entries,
            latents,
            bags,
            decoder,
            self.b_dec,
            goal,
            keep_residual=n_dead > 0 or resamples,
            shared=self.ranks.latents,
            weights=self.prefix_weights,
            detached=self.config.detach_prefixes,
        )
        gate_sse, by_gate = self._decode_gate(selection, bags, decoder, goal, unit)
        fired = self._fired(entries.latent, latents > 0)
        by_latent = decoded.grad_latent * (2 * unit)
        by_dense = None
        if self.config.dense_weight:
            by_dense = by_dense_latent(fired, rows, self.config.dense_weight).index_select(0, entries.latent)
            by_latent += by_dense
        gradients = self.activation.gradients(selection, by_latent, by_gate, rows, step)
        weights = weight_gradients(
            entries,
            latents * (2 * unit),
            bags,
            self._table(decoded.grad_bags),
            gradients.pre,
            gradients.bias,
            gathered_x,
            len(self.encoder),
            self.frozen,
        )
        self.encoder.grad = weights.encoder
        self.b_enc.grad = weights.b_enc
        self.decoder.grad = weights.decoder
        self.b_dec.grad = decoded.grad_bags[: len(x)].sum(0) * (2 * unit)
        if self.skip is not None:
            self.skip.grad = decoded.grad_bags[: len(x)].T @ x * (2 * unit)
        aux_loss = x.new_zeros(())
        if n_dead:
            assert decoded.residual is not None
            own = (self.encoder, self.b_enc, self.decoder)
            low = self.activation.candidates == "bfloat16"
            aux_loss = auxk(own, self.dead, dead, n_dead, x, decoded.residual, self.config, self.ranks, low)
        variation = y.square().sum()
        plain = None
        if self.target_inverse is not None and self.config.is_logged(step + 1):
            back = self.target_inverse.float()
            plain = in_plain_target(decoded, y, back, self.prefix_weights, self.config.detach_prefixes)
        sums = Sums(
            sse=decoded.sse,
            gate_loss=gate_sse * unit,
            aux_loss=aux_loss,
            variation=variation,
            plain_sse=decoded.sse if plain is None else plain.sse,
            plain_variation=variation if plain is None else plain.variation,
            penalty=gradients.penalty if by_dense is None else gradients.penalty + torch.dot(by_dense, latents),
            n_active=(latents > 0).float().sum(),
        )
        self.tokens_since_fired.add_(rows).masked_fill_(fired > 0, 0)
        sums = sums.all_reduced(self.ranks)
        result = report(sums, rows, n_values, self.config.aux_weight, gradients.bias_shift, self.prefix_weights)
        self.watch.note(result.loss, selection.missed)
        return replace(result, residual=decoded.residual) if resamples else result

    def _table(self, rows: Tensor) -> Tensor:
        return as_table(rows, self.config, self.activation.candidates, self.ranks.latents)

    def may_sync(self, step: int) -> bool:
        """Whether this step may wait for the device to learn how long its lists are.

        Every step may on a CPU. Most steps on a GPU must not: waiting leaves it idle. BatchTopK and TopK then return lists
        of fixed length, and AuxK reuses the dead latents found at the last step that waited. If BatchTopK misses its
        latents in between, the weights stay as they are, the log counts the step, and the next step that waits finds them.
        The other kinds wait in every step. The same holds for each of several processes.
        """
        return self.encoder.device.type == "cpu" or step < WAIT_EVERY or step % WAIT_EVERY == 0

    def _listed_dead(self, step: int, may_sync: bool, rows: int) -> Tensor:
        """The latents that AuxK helps: those dead at the last step that waited, or of very many, those whose turn it is.

        A resumed run finds the same latents from their silent time.
        """
        if not self.config.aux_weight:
            return self.group_of[:0]
        if may_sync or self.listed_dead is None:
            seen = 0 if may_sync else step % WAIT_EVERY * rows
            self.listed_dead = (self.tokens_since_fired >= self.config.n_dead_after + seen).nonzero().squeeze(1)
            turn = step if step < WAIT_EVERY or self.encoder.device.type == "cpu" else step // WAIT_EVERY
            self.listed_dead, self.n_dead_elsewhere = some_of(self.listed_dead, turn, self.config, self.ranks.latents)
        return self.listed_dead

    def _groups_of_step(self, step: int) -> tuple[Tensor, int]:
        """The group of each latent in this step, and how many there are."""
        if not self.config.random_prefixes:
            return self.group_of, len(self.prefixes)
        sizes = draw_prefixes(self.config.d_sae, self.config.random_prefixes, self.config.seed, step)
        return self._groups(sizes.to(self.group_of.device, non_blocking=True)), len(sizes)

    def _decode_gate(
        self, selection: Selection, bags: Bags, decoder: Tensor, goal: Tensor, unit: float
    ) -> tuple[Tensor, Tensor | None]:
        """Squared error of the gate's own reconstruction, and the gradient by the gate, which alone learns from it."""
        if selection.gate is None:
            return goal.new_zeros(()), None
        decoded = decode_nested(
            selection.entries,
            selection.gate,
            bags,
            decoder,
            self.b_dec,
            goal,
            keep_residual=False,
            shared=self.ranks.latents,
            weights=self.prefix_weights,
            detached=self.config.detach_prefixes,
        )
        sse = decoded.sse if self.prefix_weights is None else decoded.sse * self.prefix_weights
        return sse.sum(), decoded.grad_latent * (2 * unit)

    def _fired(self, latent: Tensor, active: Tensor) -> Tensor:
        """On how many of the batch's rows, over all processes, each latent held here fired."""
        return self.ranks.rows.sum(sums_by_latent(latent, active.float(), len(self.b_enc)))

    def shift_biases(self, shift: Tensor | None) -> None:
        """Subtracts what the activation asked for in this step, unless training has stopped."""
        if shift is not None:
            self.b_enc.sub_(torch.where(self.watch.stopped > 0, torch.zeros_like(shift), shift))

    def renormalise(self) -> None:
        """Puts every decoder row back to norm 1 (arXiv 2309.08600), so that latents compete by what they contribute."""
        if "decoder" in self.frozen:
            return
        for rows in self.decoder.split(CHUNK if self.decoder.device.type == "cpu" else len(self.decoder)):
            rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True))
