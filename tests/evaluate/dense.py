"""An independent look at a small store: every latent at every position in float64, from the raw shards, as one matrix."""

from dataclasses import dataclass

import numpy as np

from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder


@dataclass
class Dense:
    latents: np.ndarray
    """[positions, d_sae]: zero where silent, NaN at excluded tokens."""
    tokens: np.ndarray
    shard: np.ndarray
    sequence: np.ndarray
    token: np.ndarray
    document: np.ndarray
    """Numbered through the whole split."""

    @property
    def fired(self) -> np.ndarray:
        return np.nan_to_num(self.latents) > 0


def dense(store: Store, t: Transcoder, split: str = "heldout") -> Dense:
    parts: dict[str, list] = {name: [] for name in ("latents", "tokens", "shard", "sequence", "token", "document")}
    document = 0
    for number, shard in enumerate(store.manifest.shards):
        if shard.split != split:
            continue
        tokens = store.array(shard, "tokens").numpy()
        x = t.view(store.array(shard, "resid_mid"), store.norm).double()
        pre = x @ t.W_enc.double() + t.b_enc.double()
        acts = (pre * (pre > t.threshold.double()) * (pre > 0)).numpy()
        latents = np.full((tokens.size, acts.shape[1]), np.nan)
        index = store.array(shard, "token_index").numpy()
        latents[index[: shard.kept]] = acts[: shard.kept]
        for s, row in enumerate(tokens):
            for p, token in enumerate(row):
                parts["document"].append(document)
                document += p > 0 and token in store.manifest.recipe.excluded_tokens
                for name, value in (("tokens", token), ("shard", number), ("sequence", s), ("token", p)):
                    parts[name].append(value)
        document += 1
        parts["latents"].append(latents)
    return Dense(np.concatenate(parts.pop("latents")), **{name: np.array(values) for name, values in parts.items()})
