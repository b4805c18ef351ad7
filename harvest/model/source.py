"""Where a model's files lie, by its name: a commit on the hub, a folder, a package, or an adapter beside its base model."""

import json
from dataclasses import dataclass
from pathlib import Path

import xxhash
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.utils.hub import cached_file

from harvest.model import embedded
from store.disk.files import hash_file
from store.errors import Damaged, Refused
from store.hub import fetching, from_hub_or_cache, name_in_url

ELSEWHERE = "check the name, or give the folder of a model on this machine as --model"
ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """What transformers is given, and what a manifest records."""

    base: str
    """Folder or hub name of the model; of an adapter, its base model."""
    commit: str | None
    """Commit of the base on the hub; None for a folder."""
    revision: str
    """What a manifest calls model_revision: it changes with the weights."""
    adapter: Path | None = None
    """Folder of a LoRA adapter whose weights are merged into the base."""


def source_of(name: str, revision: str | None = None) -> ModelSource:
    """The source that a model's name stands for. `revision` chooses a commit, branch or tag of the hub.

    Refused for an unknown name, for a folder without safetensors weights, and for an adapter that names no base.
    """
    if embedded.is_embedded(name):
        folder, known = embedded.prepare(name)
        return ModelSource(base=str(folder), commit=None, revision=known)
    folder = Path(name)
    if (folder / ADAPTER_CONFIG).exists():
        base = source_of(*_named_base(folder))
        known = f"{base.revision}+{hash_of_weights(folder)}"
        return ModelSource(base=base.base, commit=base.commit, revision=known, adapter=folder)
    if folder.is_dir():
        return ModelSource(base=name, commit=None, revision=hash_of_weights(folder))
    commit = _commit(name, revision)
    return ModelSource(base=name, commit=commit, revision=commit)


def base_of(name: str) -> str:
    """What transformers is given to load the tokenizer and the unembedding of a model; an adapter has its base's."""
    if embedded.is_embedded(name):
        return str(embedded.prepare(name)[0])
    if (Path(name) / ADAPTER_CONFIG).exists():
        return base_of(_named_base(Path(name))[0])
    return name


def hash_of_weights(folder: Path) -> str:
    """A hash over the names and contents of a folder's safetensors files. Refused when it has none."""
    digest = xxhash.xxh3_128()
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise Refused(
            f"{folder} holds no .safetensors weights, and no others are read; convert them, or download them again"
        )
    for path in files:
        digest.update(path.name.encode())
        hash_file(digest, path)
    return f"xxh3:{digest.hexdigest()}"


def _named_base(adapter: Path) -> tuple[str, str | None]:
    """The base model of an adapter's folder, and its revision."""
    path = adapter / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return str(config["base_model_name_or_path"]), config.get("revision")
    except (ValueError, KeyError, TypeError):
        raise Damaged(f"{path} names no base_model_name_or_path; save the adapter again") from None


def _commit(name: str, revision: str | None) -> str:
    """The commit that a revision of a model on the hub stands for; the newest commit for None."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        cure = ELSEWHERE
        if Path(name).is_file():
            cure = f"give the folder, {Path(name).parent}"
        elif in_url := name_in_url(name):
            cure = f"give {in_url}, its name on the hub"
        raise Refused(f"model {name!r} is no folder here and no name on the hub; {cure}") from None
    with fetching(f"model {name!r}", ELSEWHERE):
        file = Path(
            from_hub_or_cache(
                lambda cached: str(cached_file(name, "config.json", revision=revision, local_files_only=cached))
            )
        )
    return file.parent.name  # cache/models--NAME/snapshots/COMMIT/config.json
