"""What a notebook needs: a text -> its tokens, the latents of each, and what each latent responds to."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from evaluate.config import EvaluateConfig
from evaluate.features.reader import Features, open_features
from evaluate.model.splice import open_model
from evaluate.model.texts import read_text
from evaluate.notes.file import Note, read_notes
from evaluate.runs import open_without_rows
from harvest.model.language_model import LanguageModel
from harvest.model.tokenizer import token_texts
from store.devices import resolve_device
from store.errors import Refused
from store.layout import EXPLANATIONS, FEATURES, JUDGE, SAMPLES
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder


@dataclass(frozen=True)
class TextLatents:
    """A text as a transcoder reads it."""

    tokens: list[str]
    """Each with the space before it; BOS is left out."""
    latents: Float[Tensor, "tokens d_sae"]
    """On the CPU; 0 where silent, and at tokens that the store excludes."""
    notes: tuple[str, ...] = ()
    """What differs from what one may expect, a sentence each: a text cut into several rows. They are logged, too."""

    def strongest(self, token: int, n: int = 5) -> list[tuple[int, float]]:
        """The latents that are most active at a token, with their activations: at most n, and none that is silent."""
        top = self.latents[token].topk(min(n, self.latents.shape[1]))
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return [(latent, value) for latent, value in pairs if value > 0]


@dataclass(frozen=True)
class RunOnText:
    """A run with the language model that it was trained for."""

    folder: Path
    transcoder: Transcoder
    model: LanguageModel
    store: Store
    """Its norm and its recipe are used; its rows are not."""

    def latents_of(self, text: str) -> TextLatents:
        """The tokens of a text and their latents. Refused for a text without a token."""
        return latents_of(text, self.transcoder, self.model, self.store)

    @property
    def features(self) -> Features:
        """What every latent responds to. Refused unless `make features` has collected it."""
        path = self.folder / SAMPLES / FEATURES
        if not path.exists():
            raise Refused(f"{self.folder} has no features yet; collect them with make features RUN={self.folder}")
        return open_features(path, path.stat().st_mtime_ns)

    @property
    def notes(self) -> Mapping[int, Note]:
        """By latent, the star, the name and the note that it was given in the browser. Damaged when the file is none."""
        return read_notes(self.folder)

    def top_tokens(self, latent: int, n: int = 5) -> list[str]:
        """The tokens that a latent fires on most, by the sum of its activations; empty for a latent that never fired.

        Refused unless `make features` has collected them, and for a number that no latent has.
        """
        features = self.features
        if not 0 <= latent < len(features):
            raise Refused(f"there is no latent {latent}: the run has latents 0 to {len(features) - 1}")
        [record] = features.records([latent], ["top_tokens"])
        return [top["token"] for top in record["top_tokens"][:n]]

    def label(self, latent: int) -> str:
        """The name that a latent was given in the browser; else a judge's explanation, where there is one; else the tokens
        that it fires on most."""
        note = self.notes.get(latent)
        if note is not None and note.name:
            return note.name
        path = self.folder / JUDGE / EXPLANATIONS
        for line in path.read_text().splitlines() if path.exists() else []:
            record = json.loads(line)
            if record["latent"] == latent:
                return record["explanation"]
        return " ".join(map(repr, self.top_tokens(latent)))


def open_on_text(run: Path | str, device: str = "auto") -> RunOnText:
    """A run and the model that it names, loaded. Needs the run's folder alone.

    Refused where the model is not the one that the run was trained for; runs of earlier versions also need their store.
    """
    opened = open_without_rows(EvaluateConfig(run=Path(run)))
    where = resolve_device(device)
    model = open_model(opened.store, where)
    return RunOnText(opened.folder, opened.transcoder.to(where), model, opened.store)


@torch.no_grad()
def latents_of(text: str, transcoder: Transcoder, model: LanguageModel, store: Store) -> TextLatents:
    """The tokens of a text and the latents of each.

    text: a longer one than the store's sequences is cut into several, which `notes` says.
    transcoder: on the model's device.
    model: the one that the transcoder was trained for.
    store: has the norm of the layer, and the tokens that are no rows; it may have no rows itself.
    """
    recipe = store.manifest.recipe
    site = transcoder.config.source_site
    tokens: list[str] = []
    found: list[Tensor] = []
    read = read_text(text, model.tokenizer, store, least=1)
    for row in read.rows:
        source = model.run_layers(row, (recipe.layer,), (site,))[recipe.layer][site][0].float()
        device = transcoder.W_enc.device
        latents = transcoder.encode(transcoder.view(source.to(device), store.norm.to(device))).cpu()
        latents[torch.isin(row[0], torch.tensor(recipe.excluded_tokens))] = 0
        tokens += token_texts(model.tokenizer, row[0, 1:].tolist())
        found.append(latents[1:])
    return TextLatents(tokens, torch.cat(found), read.notes)
