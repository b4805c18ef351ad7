"""A text of one's own on a feature's page: the latent's activation on each token. The model is loaded at the first text."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from evaluate.browse.feature_views import shaded
from evaluate.browse.folder import RunFolder
from evaluate.text import brief
from store.errors import Refused
from store.layout import WEIGHTS

if TYPE_CHECKING:
    from evaluate.notebook import RunOnText, TextLatents

TEXT_LENGTH = 10_000
"""Characters of a text at most."""

log = logging.getLogger(__name__)


class TextReader:
    """Runs with their models, for texts: the one that was used last stays loaded."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.loaded: tuple[Path, int] | None = None
        self.run: RunOnText | None = None

    def read(self, folder: Path, text: str) -> "TextLatents":
        """The tokens of a text and their latents.

        Refused for an empty text and for one that is too long, and where the model cannot be had.
        """
        if not text.strip():
            raise Refused("the text is empty; type one")
        if len(text) > TEXT_LENGTH:
            raise Refused(f"the text has {len(text):,} characters; {TEXT_LENGTH:,} are the most: shorten it")
        with self.lock:
            return self._opened(folder).latents_of(text)

    def _opened(self, folder: Path) -> "RunOnText":
        wanted = (folder, (folder / WEIGHTS).stat().st_mtime_ns)
        if self.run is None or self.loaded != wanted:
            from evaluate.notebook import open_on_text  # brings torch, without which the browser starts

            self.run = None  # before the next one is loaded: two may not fit into memory
            log.info("loading the model of %s for a text, once", folder)
            self.run = open_on_text(folder)
            self.loaded = wanted
        return self.run


def text_view(tokens: list[str], activations: list[float], largest: float) -> dict[str, object]:
    """What a page shows of a text.

    largest: the activation of the darkest shade, unless the text has a larger one.
    """
    context = {"tokens": tokens, "activations": activations, "token": -1, "start": 0}
    words = shaded(context, max(largest, *activations))
    firing = [(word, value) for word, shade, value, _ in words if shade]
    return {"words": words, "firing": firing, "n_tokens": len(tokens), "strongest": brief(max(activations))}


def text_answer(
    open_run: Callable[[str], RunFolder], render: Callable[..., str]
) -> Callable[[str, int, dict], dict[str, str]]:
    """Answers a page that sends a text, with the HTML of what the latent does on it.

    open_run: gives the run of a name.
    render: gives the HTML of a template.
    """
    reader = TextReader()

    def answer(name: str, latent: int, sent: dict) -> dict[str, str]:
        run = open_run(name)
        features = run.features()
        features.check(latent)
        read = reader.read(run.folder, str(sent.get("text", "")))
        activations = read.latents[:, latent].tolist()
        view = text_view(read.tokens, activations, float(features.columns["max_activation"][latent]))
        return {"html": render("text.html", notes=read.notes, **view)}

    return answer
