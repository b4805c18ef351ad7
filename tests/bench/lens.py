"""`python -m tests.bench.lens RUN --store STORE`: which lens says more about what a latent does to the model's predictions.

Latents are drawn at random among those that fire on the held-out sequences. Each is pinned at its mean activation while the
model runs on these (the transcoder's error kept): on all rows, and on every 16th row alone. What is measured is the mean
change of each token's logit over the pinned rows, beside a lens's prediction: the latent's decoder row, carried by the
lens, through the final norm's gain (unless the lens leads through that) and the unembedding. The figure is Spearman's rank
correlation of the two, over tokens: those that any lens ranks among its N highest or lowest, and a random sample of the
vocabulary. The change of a log-probability is that of the logit less a number that all tokens share, so it ranks alike.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm

from evaluate.config import EvaluateConfig
from evaluate.lens import LOGIT, Lens, choose_lens
from evaluate.model.edits import Edit, SplicedRows
from evaluate.model.sequences import Sequences, sample
from evaluate.model.splice import beside_mlp, hidden_states, open_model
from evaluate.runs import OpenRun, open_run
from harvest.model.language_model import LanguageModel
from harvest.model.output_weights import read_output_weights
from harvest.model.unembedding import Unembedding
from store.cli import one_line_errors

APART = 16
"""Rows between those that are pinned alone."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ground:
    """The held-out sequences on which latents are pinned, as the model and the transcoder see them."""

    part: Sequences
    beside: Float[Tensor, "sequences context d"]
    spliced: SplicedRows
    hidden: Float[Tensor, "sequences context d"]
    """The last hidden states without an edit."""

    @classmethod
    def of(cls, run: OpenRun, model: LanguageModel, part: Sequences) -> "Ground":
        beside = beside_mlp(part, model)
        spliced = SplicedRows.of(run.transcoder, run.store.norm, part.source, part.target, part.excluded, True)
        return cls(part, beside, spliced, hidden_states(model, part.tokens, beside + part.target))

    def pinned(
        self, run: OpenRun, model: LanguageModel, edit: Edit, where: Bool[Tensor, "sequences context"]
    ) -> Float[Tensor, "sequences context d"]:
        """The last hidden states with a latent pinned on some rows."""
        edited = self.spliced.edited(run.transcoder, [edit]).view_as(self.part.target)
        output = torch.where(where[..., None], edited, self.part.target)
        return hidden_states(model, self.part.tokens, self.beside + output)


def places(grounds: list[Ground]) -> dict[str, list[Tensor]]:
    """Where latents are pinned, by name: on all rows, and on rows that lie apart."""
    rows = [~ground.part.excluded for ground in grounds]
    context = torch.arange(rows[0].shape[1])
    return {"all rows": rows, f"one row in {APART}": [kept & (context % APART == APART - 1) for kept in rows]}


def change_of(
    unembedding: Unembedding, grounds: list[Ground], after: list[Tensor], where: list[Tensor], tokens: Int[Tensor, " t"]
) -> Float[Tensor, " t"]:
    """The mean change of some tokens' logits over the pinned rows."""
    total = torch.zeros(len(tokens), dtype=torch.float64)
    weight = unembedding.weight[tokens].float()
    bias = None if unembedding.bias is None else unembedding.bias[tokens].float()
    for ground, hidden, rows in zip(grounds, after, where, strict=True):
        before, changed = (
            unembedding.capped(torch.nn.functional.linear(states[rows].float(), weight, bias))
            for states in (ground.hidden, hidden)
        )
        total += (changed - before).double().sum(0)
    return total / sum(int(rows.sum()) for rows in where)


def latents_of(grounds: list[Ground], n: int, seed: int) -> Iterator[tuple[int, float]]:
    """Latents that fire, drawn at random, with the mean of their activations where they fire."""
    rows = torch.cat([ground.spliced.latents[~ground.spliced.excluded] for ground in grounds])
    alive = (rows > 0).any(0).nonzero().squeeze(1)
    order = torch.randperm(len(alive), generator=torch.Generator().manual_seed(seed))[:n]
    for latent in alive[order].tolist():
        active = rows[:, latent][rows[:, latent] > 0]
        yield latent, float(active.mean())


def correlations(
    scores: Float[Tensor, "lenses vocabulary"],
    drawn: Int[Tensor, " sample"],
    n: int,
    measure,
) -> Float[Tensor, "places lenses"]:
    """Rank correlations, for each place, of the scores of each lens with the measured change of the same tokens."""
    ends = [scores.topk(n, dim=1, largest=largest).indices.flatten() for largest in (True, False)]
    tokens = torch.cat([*ends, drawn]).unique()
    found = []
    for change in measure(tokens):
        found.append([float(spearmanr(one[tokens].numpy(), change.numpy()).statistic) for one in scores])
    return torch.tensor(found, dtype=torch.float64)


def in_words(values: Float[Tensor, " latents"], seed: int = 0) -> str:
    """The mean, and its 95% interval by bootstrap over latents."""
    generator = torch.Generator().manual_seed(seed)
    means = values[torch.randint(len(values), (2000, len(values)), generator=generator)].mean(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return f"{float(values.mean()):+.3f} [{low:+.3f}, {high:+.3f}]"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--lens", nargs="*", default=["jacobian"], help="compared with the logit lens")
    parser.add_argument("--latents", type=int, default=256)
    parser.add_argument("--sequences", type=int, default=6)
    parser.add_argument("--ends", type=int, default=50, help="tokens from each end of each lens's ranking")
    parser.add_argument("--sample", type=int, default=1000, help="tokens drawn from the vocabulary")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    run = open_run(EvaluateConfig(run=options.run, store=options.store, device="cpu"))
    chosen: dict[str, Lens] = {"logit": LOGIT}
    for name in options.lens:
        chosen[name] = choose_lens(name, run.store, run.transcoder.config)
    model = open_model(run.store, CPU)
    unembedding = Unembedding.of(model)
    weights = read_output_weights(run.store.manifest.recipe.model)
    vectors = weights.unembedding.float()
    grounds = [Ground.of(run, model, part) for part in sample(run.store, options.sequences)]
    where = places(grounds)
    drawn = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(options.seed))[: options.sample]
    found = []
    latents = list(latents_of(grounds, options.latents, options.seed))
    for latent, activation in tqdm(latents, desc="latents"):
        edit = Edit(latent, "pin", activation)
        after = {
            name: [ground.pinned(run, model, edit, rows) for ground, rows in zip(grounds, kept, strict=True)]
            for name, kept in where.items()
        }
        row = run.transcoder.W_dec[latent : latent + 1]
        scores = torch.cat([lens.carried(row, weights.gain) @ vectors.T for lens in chosen.values()])
        measure = lambda tokens, after=after: [  # noqa: E731
            change_of(unembedding, grounds, after[name], where[name], tokens) for name in where
        ]
        found.append(correlations(scores, drawn, options.ends, measure))
    values = torch.stack(found)
    print(f"{len(values)} latents, {len(grounds)} sequences; mean rank correlation and its 95% interval over latents")
    print("| pinned on | lens | correlation | minus logit lens | better than it for |\n|---|---|---|---|---|")
    for place, name in enumerate(where):
        plain = values[:, place, 0]
        for index, lens in enumerate(chosen):
            mine = values[:, place, index]
            beside = f"{in_words(mine - plain)} | {float((mine > plain).double().mean()):.0%}" if index else " | "
            print(f"| {name} | {lens} | {in_words(mine)} | {beside} |", flush=True)


if __name__ == "__main__":
    with one_line_errors("lens"):
        main()
