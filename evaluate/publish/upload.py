"""`python -m evaluate publish-neuronpedia`: the batches that export-features wrote, sent each once."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from evaluate.publish.config import PublishNeuronpediaConfig
from evaluate.publish.neuronpedia import MOST_FEATURES, MOST_TOKENS
from evaluate.publish.service import Service
from store.disk.files import write_text
from store.disk.lock import WriterLock
from store.errors import Damaged, Refused
from store.layout import UPLOADED


@dataclass(frozen=True)
class Batch:
    """A file that is one request."""

    name: str
    """Below the export's folder."""
    content: dict[str, Any]
    digest: str

    @property
    def model(self) -> str:
        return self.content["modelId"]

    @property
    def source(self) -> str:
        """LAYER-NAME, where NAME is that of the set."""
        return self.content["source"]

    @property
    def last(self) -> int:
        """The index of its last latent."""
        return self.content["features"][-1]["index"]


@dataclass
class Uploaded:
    """What a server has taken of an export: uploaded.json. A batch is entered before it is sent, and again when it has
    arrived."""

    path: Path
    server: str
    arrived: dict[str, str] = field(default_factory=dict)
    """Digests of batches by name."""
    sent: str | None = None
    """The batch that was sent last and whose answer has not come."""

    def save(self) -> None:
        content = {"server": self.server, "arrived": self.arrived, "sent": self.sent}
        write_text(self.path, json.dumps(content, indent=1) + "\n")


def upload(config: PublishNeuronpediaConfig) -> str:
    """What was sent, for people. Refused for what the server does not take, HubUnreachable where it is away or fails."""
    folder = config.folder
    names = batch_names(folder)
    if config.dry_run:
        return "\n".join(said_of(config, folder, names, uploaded_in(folder, config.server)))
    with Service(config) as service, WriterLock(folder / "upload.lock"):
        uploaded = uploaded_in(folder, config.server)
        # All are read before the first is sent: a batch that the server would refuse is found now.
        first = None
        rest: list[str] = []
        sources: set[str] = set()
        for name in names:
            batch = read_batch(folder, name)
            if is_due(batch, uploaded):
                first = first or batch
                rest.append(name)
                sources.add(batch.source)
        if first is None:
            return f"all {len(names)} batches of {folder} have arrived before; nothing was sent"
        made = prepare(service, first, sources)
        n_sent = 0
        for name in tqdm(rest, desc="batches", unit="batch"):
            batch = read_batch(folder, name)
            if uploaded.sent != name or not has_arrived(service, batch):
                uploaded.sent = name
                uploaded.save()
                send(service, batch)
                n_sent += len(batch.content["features"])
            uploaded.arrived[name] = batch.digest
            uploaded.sent = None
            uploaded.save()
    pages = [f"  {config.server}/{first.model}/{source}" for source in sorted(sources)]
    return "\n".join([f"{folder}: {n_sent:,} latents sent in {len(rest)} batches{made}", *pages])


def batch_names(folder: Path) -> list[str]:
    """All batches of an export, in the order of their layers and numbers. Refused where there are none."""
    found = [path for path in folder.glob("*/batch-*.json") if path.stem.removeprefix("batch-").isdecimal()]
    if not found:
        raise Refused(
            f"{folder} holds no batches; write them with make export-features RUNS=FOLDER LAYOUT=neuronpedia OUT={folder}"
        )

    def order(path: Path) -> tuple[int, str, int]:
        layer = path.parent.name.partition("-")[0]
        return int(layer) if layer.isdecimal() else 0, path.parent.name, int(path.stem.removeprefix("batch-"))

    return [path.relative_to(folder).as_posix() for path in sorted(found, key=order)]


def read_batch(folder: Path, name: str) -> Batch:
    """A batch. Damaged where it is none, Refused where the server would refuse it."""
    path = folder / name
    try:
        text = path.read_bytes()
        content = json.loads(text)
        batch = Batch(name, content, hashlib.sha256(text).hexdigest())
        _check(path, batch)
    except (OSError, KeyError, TypeError, IndexError, json.JSONDecodeError) as error:
        raise Damaged(f"{path} is no batch ({type(error).__name__}: {error}); export the features again") from None
    return batch


def _check(path: Path, batch: Batch) -> None:
    features = batch.content["features"]
    if not 1 <= len(features) <= MOST_FEATURES or not batch.model or "-" not in batch.source:
        raise Refused(f"{path} has {len(features)} latents; Neuronpedia takes 1 to {MOST_FEATURES} of a named source")
    for feature in features:
        activations = feature["activations"]
        if not activations or not all(
            0 < len(each["tokens"]) == len(each["values"]) <= MOST_TOKENS for each in activations
        ):
            raise Refused(f"{path}: latent {feature['index']} has no activation that Neuronpedia takes; export them again")
        if any(None in (each["methodName"], each["modelName"]) for each in feature["explanations"]):
            raise Refused(
                f"{path}: an explanation names no method or model, which Neuronpedia refuses; export the features again "
                "with --method and --explainer"
            )


def uploaded_in(folder: Path, server: str) -> Uploaded:
    """What this server has taken before; of another server nothing counts. Damaged where the record cannot be read."""
    path = folder / UPLOADED
    if not path.exists():
        return Uploaded(path, server)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = Uploaded(path, content["server"], dict(content["arrived"]), content["sent"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{path} cannot be read ({error}); it says what has arrived: restore it") from None
    if found.server != server:
        raise Refused(f"{folder} was sent to {found.server}, not to {server}; export the features again to send them there")
    return found


def is_due(batch: Batch, uploaded: Uploaded) -> bool:
    """Whether a batch is still to be sent. Refused where another of its name has arrived."""
    arrived = uploaded.arrived.get(batch.name)
    if arrived not in (None, batch.digest):
        raise Refused(
            f"{uploaded.path.parent / batch.name} has changed since it was sent, and what is there cannot be replaced; "
            "export the features to a new folder under another --source-set"
        )
    return arrived is None


def prepare(service: Service, batch: Batch, sources: set[str]) -> str:
    """Makes the set of sources, and the model where that is asked for, unless they are there. Returns words for people.

    Refused where the set lacks one of the sources.
    """
    config = service.config
    name = batch.source.partition("-")[2]
    found = service.ask("GET", f"source-set/{batch.model}/{name}")
    made = ""
    if not isinstance(found, dict):
        if config.model_layers is not None:
            model = {"id": batch.model, "layers": config.model_layers, "displayName": None, "url": None}
            service.ask("POST", "model/new", model, missing="is --server right?")
        new = {"name": name, "modelId": batch.model, "description": config.description, "url": config.url}
        cure = f"it does not know the model {batch.model}; export with another --model-id, or make it with --model-layers"
        found = service.ask("POST", "source-set/new", new, missing=cure)
        made = f"; the set {name} was made, and is unlisted"
    listed = found.get("sources") if isinstance(found, dict) else None
    there = {each.get("id") for each in listed or ()}
    if there and not sources <= there:
        raise Refused(f"{batch.model} has no layer for {', '.join(sorted(sources - there))}; is --model-id right?")
    return made


def send(service: Service, batch: Batch) -> None:
    """Sends a batch until the server has it."""
    cure = f"it has no source {batch.source} of {batch.model} that is yours; export with another --source-set"
    service.ask("POST", "feature/upload-batch", batch.content, missing=cure, arrived=lambda: has_arrived(service, batch))


def has_arrived(service: Service, batch: Batch) -> bool:
    """Whether the server has the last latent of a batch whose answer never came."""
    found = service.ask("GET", f"feature/{batch.model}/{batch.source}/{batch.last}")
    return isinstance(found, dict) and bool(found.get("activations"))


def said_of(config: PublishNeuronpediaConfig, folder: Path, names: list[str], uploaded: Uploaded) -> list[str]:
    """Lines about everything that would be sent, and the beginning of the first request."""
    batches: dict[str, list[int]] = {}
    first: Batch | None = None
    arrived = 0
    for name in names:
        batch = read_batch(folder, name)
        if not is_due(batch, uploaded):
            arrived += 1
            continue
        first = first or batch
        features = batch.content["features"]
        counts = (1, len(features), *(sum(len(each[key]) for each in features) for key in ("activations", "explanations")))
        before = batches.get(f"{batch.model} {batch.source}", [0] * len(counts))
        batches[f"{batch.model} {batch.source}"] = [a + b for a, b in zip(before, counts, strict=True)]
    lines = [f"{config.server}/api/feature/upload-batch, a request a batch; {arrived} of {len(names)} batches have arrived"]
    for source, (n_batches, n_features, n_activations, n_explanations) in batches.items():
        lines.append(
            f"  {source}: {n_batches:,} batches, {n_features:,} latents, {n_activations:,} activations, "
            f"{n_explanations:,} explanations"
        )
    if first is not None:
        features = first.content["features"]
        one = features[0] | {"activations": features[0]["activations"][:1]}
        lines.append(json.dumps(first.content | {"features": [one]}, ensure_ascii=False, indent=1))
        others = len(features[0]["activations"]) - 1
        lines.append(f"that is {first.name}, less {others} activations of this latent and {len(features) - 1} more latents")
    return [*lines, "nothing was sent"]
