"""`python -m evaluate push`: a run to the Hugging Face hub, in one commit."""

import hashlib
import logging
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import RepositoryNotFoundError

from evaluate.publish.config import PushConfig
from evaluate.publish.stage import Staged, stage
from store.errors import Refused
from store.hub import check_connection, pushing

NEEDS_TOKEN = "run `hf auth login`, or set HF_TOKEN to a token with write access (from the hub's page Settings, Tokens)"
NAMED = 3
"""Files that an error names."""
log = logging.getLogger(__name__)


def push(config: PushConfig) -> str:
    """What was pushed and where it lies, for people; of a dry run the card and the files.

    Refused without a token, where the hub does not let it write, and where files of the repository differ and `force` is
    not given. HubUnreachable where the network or the hub fails: nothing is committed then.
    """
    if config.dry_run:
        staged = stage(config)
        return "\n".join([staged.card, *listed(staged), f"nothing was pushed; all of it lies in {staged.folder}"])
    if get_token() is None:
        raise Refused(f"there is no token for the hub; {NEEDS_TOKEN}")
    with pushing(config.repo):
        check_connection()
        api = HfApi()
        user = api.whoami()["name"]
        there = files_there(api, config.repo)
    staged = stage(config)
    known = [path for path in staged.files if str(path) in there]
    differing = [path for path in known if there[str(path)] not in digests(staged.folder / path)]
    if differing and not config.force:
        names = ", ".join(map(str, differing[:NAMED]))
        more = f" and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
        raise Refused(f"{config.repo} holds other files of these names: {names}{more}; give --force, or another REPO")
    if not differing and len(known) == len(staged.files):
        return f"{page(config.repo)} holds all of it already; nothing was pushed"
    with pushing(config.repo):
        api.create_repo(config.repo, private=not config.public, exist_ok=True)
        log.info("pushing %d files as %s", len(staged.files), user)
        api.upload_folder(
            repo_id=config.repo,
            folder_path=staged.folder,
            commit_message=f"Push {config.run.name}",
            ignore_patterns=[".cache/**"],
        )
    return "\n".join([*listed(staged), page(config.repo)])


def page(repo: str) -> str:
    return f"{constants.ENDPOINT}/{repo}"


def listed(staged: Staged) -> list[str]:
    """The files at the top, and folders with what they hold, a line each."""
    groups: dict[str, list[int]] = {}
    for path in staged.files:
        name = path.parts[0] + "/" * (len(path.parts) > 1)
        groups.setdefault(name, []).append((staged.folder / path).stat().st_size)
    return [
        f"  {name:28} {sum(sizes) / 1e6:10,.2f} MB" + (f" in {len(sizes)} files" if name.endswith("/") else "")
        for name, sizes in groups.items()
    ]


def files_there(api: HfApi, repo: str) -> dict[str, str]:
    """The files of a repository, each with one of its `digests`; empty where there is no such repository."""
    try:
        siblings = api.model_info(repo, files_metadata=True).siblings or ()
    except RepositoryNotFoundError:
        return {}
    return {file.rfilename: (file.lfs.sha256 if file.lfs else file.blob_id) or "" for file in siblings}


def digests(path: Path) -> tuple[str, str]:
    """How the hub names a file's content: by SHA-256 in its large storage, by git's SHA-1 elsewhere."""
    content = path.read_bytes()
    return hashlib.sha256(content).hexdigest(), hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
