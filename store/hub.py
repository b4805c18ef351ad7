"""The Hugging Face hub: what can go wrong on the way to it, said in one line with a cure."""

import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlparse
from urllib.request import getproxies, proxy_bypass

import yaml
from httpx2 import HTTPError
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name

from store.errors import Damaged, Refused
from store.names import SET_CONFIG

T = TypeVar("T")

LAYER_WEIGHTS = re.compile(r"layer_\d+\.safetensors$")

TROUBLE = (OSError, HTTPError)
"""What the libraries raise when they cannot fetch a file, and what a stream raises when the network breaks."""

TIMEOUT = 20.0
"""Seconds that a question to the hub may take."""


class HubUnreachable(Refused):
    """The hub does not answer, fails, or was switched off."""

    exit_code = 69


def files_of(repo: str, revision: str | None = None, cached: bool = False) -> list[str]:
    """The paths of all files in a model repository of the hub, or of those in the cache. Errors as `fetching` explains
    them."""
    if cached:
        folder = cached_snapshot(repo, revision)
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    check_connection()
    return [file.rfilename for file in HfApi().model_info(repo, revision=revision, timeout=TIMEOUT).siblings or ()]


HUB_URL = re.compile(r"hf:/{1,2}([^/@?]+/[^/@?]+)/?([^@?]*)(?:(?:@|\?revision=)(.+))?")
"""hf://user/repo/path@revision; `Path` makes one slash of two, and circuit-tracer writes ?revision=."""

Choice = Callable[[str, Sequence[str]], Sequence[str]]
"""Those of a repository's files that are wanted, given the path within it and all of its files."""


def parts_of_url(url: Path | str) -> tuple[str, str, str | None]:
    """Repository, path within it and revision of hf://user/repo/path@revision. Refused for another text."""
    match = HUB_URL.fullmatch(str(url))
    if match is None:
        raise Refused(
            f"{url} is no place on the hub; write hf://user/repo/path, and @revision behind it where one is meant"
        )
    return match[1], match[2].strip("/"), match[3]


def fetch(url: Path | str, choose: Choice, what: str = "transcoder") -> Path:
    """The folder or file on this machine of hf://user/repo/path@revision, fetched unless it is cached.

    what: what it holds, for messages. Errors as `fetching` explains them, and Refused where `choose` finds nothing.
    """
    repo, path, revision = parts_of_url(url)

    def get(cached: bool) -> Path:
        if cached:
            return cached_snapshot(repo, revision) / path
        info = HfApi().model_info(repo, revision=revision, timeout=TIMEOUT)
        wanted = choose(path, [file.rfilename for file in info.siblings or ()])
        if not wanted:
            raise Refused(f"{repo} has no {what} at {path or 'its root'!r}; name the folder that holds its files")
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(wanted))) / path

    with fetching(f"the {what} at {url}", "give a folder on this machine"):
        place = from_hub_or_cache(get)
    if not place.exists():
        raise Refused(f"{url} is not among what was fetched before, and the hub was not asked; connect, and try again")
    return place


def fetch_transcoder(url: Path | str, layer: int | None = None) -> Path:
    """The folder or file on this machine with the transcoder at hf://user/repo/path@revision, as `fetch` gives it.

    Only the files that lie directly there are fetched, and of a set of circuit-tracer's only this layer's. A list of
    `transcoders` in its config.yaml is followed.

    layer: of the model; None for all that is there.
    """
    place = fetch(url, lambda path, files: files_at(path, files, layer))
    config = place / SET_CONFIG
    listed = _listed_in(config) if config.exists() else None
    if listed and layer is not None and layer < len(listed):
        return fetch_transcoder(listed[layer], layer)
    return place


def _listed_in(config: Path) -> list[str] | None:
    """The transcoders that a set's config.yaml lists. Damaged where it cannot be read."""
    try:
        return (yaml.safe_load(config.read_text(encoding="utf-8")) or {}).get("transcoders")
    except (yaml.YAMLError, AttributeError) as error:
        raise Damaged(f"{config} is no configuration of a set ({_first_line(error)}); tell its maker") from None


def cached_snapshot(repo: str, revision: str | None) -> Path:
    """Where the hub's library keeps a revision of a repository. FileNotFoundError where it has none."""
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    ref = folder / "refs" / (revision or "main")
    snapshot = folder / "snapshots" / (ref.read_text().strip() if ref.exists() else revision or "main")
    if not snapshot.exists():
        raise FileNotFoundError(snapshot)
    return snapshot


def files_at(path: str, files: Sequence[str], layer: int | None) -> list[str]:
    """The files of one transcoder: those directly in a folder, or a file and the settings beside it."""
    folder = path.rpartition("/")[0] if path in files else path
    beside = [file for file in files if file.rpartition("/")[0] == folder]
    if path in files:
        return [file for file in beside if file == path or file.endswith((SET_CONFIG, ".json"))]
    if any(file.endswith(f"/{SET_CONFIG}") or file == SET_CONFIG for file in beside) and layer is not None:
        return [file for file in beside if not LAYER_WEIGHTS.search(file) or file.endswith(f"layer_{layer}.safetensors")]
    return beside


def check_connection() -> None:
    """OfflineModeIsEnabled or ConnectError unless a connection to the hub opens within five seconds.

    The hub's own library tries again for half a minute before it gives up.
    """
    if constants.HF_HUB_OFFLINE:
        raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
    host = urlparse(_proxy_of(constants.ENDPOINT) or constants.ENDPOINT)
    port = host.port or (80 if host.scheme == "http" else 443)
    try:
        socket.create_connection((host.hostname or "", port), timeout=5).close()
    except OSError as error:
        raise HTTPError(str(error)) from error


def _proxy_of(url: str) -> str | None:
    """The proxy through which a URL is asked: HTTPS_PROXY, https_proxy or ALL_PROXY, unless NO_PROXY names its host."""
    asked = urlparse(url)
    if proxy_bypass(asked.hostname or ""):
        return None
    proxies = getproxies()
    return proxies.get(asked.scheme) or proxies.get("all")


def from_hub_or_cache(get: Callable[[bool], T]) -> T:
    """What `get` returns, given whether only the cache may be asked: where the hub cannot be reached.

    The hub's own library would try again for a minute, and then look there too. Raises the connection's error where the
    cache does not have it either.
    """
    try:
        check_connection()
    except TROUBLE as unreachable:
        try:
            return get(True)
        except (*TROUBLE, ValueError):
            raise unreachable from None
    return get(False)


def name_in_url(text: str) -> str | None:
    """The repository that an address of the hub names, as user/name; None for any other text."""
    match = re.match(r"(?:https?://(?:www\.)?huggingface\.co/|hf://)(?:datasets/)?([\w-][\w.-]*/[\w-][\w.-]*)", text)
    return None if match is None else match[1]


@contextmanager
def fetching(what: str, cure: str) -> Iterator[None]:
    """Around calls that may ask the hub: their errors become one line.

    what: what is fetched: `model 'google/gemma-2-2b'`.
    cure: what the user can give instead: `give a local MODEL=`.

    Raises:
        HubUnreachable: no connection, no answer, a hub that fails or asks to wait, or HF_HUB_OFFLINE.
        Refused: gated, unknown, and whatever else hinders the library.
    """
    try:
        yield
    except TROUBLE as error:
        raise explained(error, what, cure) from None


def explained(error: BaseException, what: str, cure: str) -> Refused:
    """The error of a library as a refusal; transformers hides the hub's own error among the causes of another."""
    for found in _causes(error):
        if isinstance(found, OfflineModeIsEnabled):
            return HubUnreachable(f"HF_HUB_OFFLINE is set, so {what} cannot be fetched; unset it, or {cure}")
        if isinstance(found, HfHubHTTPError):
            return _answered(found, what, cure)
        if isinstance(found, HTTPError):
            reason = str(found) or type(found).__name__
            hub = f"the hub ({constants.ENDPOINT})"
            return HubUnreachable(f"{hub} cannot be reached ({reason}), so {what} cannot be fetched; connect, or {cure}")
    return Refused(f"{what} cannot be opened ({_first_line(error)}); {cure}")


@contextmanager
def pushing(repo: str) -> Iterator[None]:
    """Around calls that write to a repository of the hub: their errors become one line.

    Raises:
        HubUnreachable: no connection, no answer, a hub that fails, or HF_HUB_OFFLINE. Nothing was committed.
        Refused: a token that the hub does not know or that may not write there, and whatever else hinders the library.
    """
    again = "nothing was committed; the same command continues"
    try:
        yield
    except (*TROUBLE, ValueError, RuntimeError) as error:  # the library wraps an upload's error in a RuntimeError
        for found in _causes(error):
            if isinstance(found, OfflineModeIsEnabled):
                raise HubUnreachable(f"HF_HUB_OFFLINE is set, so {repo} cannot be pushed; unset it") from None
            if isinstance(found, HfHubHTTPError):
                status = found.response.status_code
                if status in (401, 403):
                    raise Refused(
                        f"the token may not write to {repo} (status {status}): run `hf auth login` with a token that has "
                        "write access, or give another REPO"
                    ) from None
                raise HubUnreachable(f"the hub failed (status {status}) at {repo}; {again}") from None
            if isinstance(found, HTTPError | RuntimeError):
                raise HubUnreachable(f"the network broke off ({_first_line(found)}) at {repo}; {again}") from None
        raise Refused(f"{repo} cannot be pushed ({_first_line(error)})") from None


def _causes(error: BaseException) -> list[BaseException]:
    """The error, what caused it, what caused that, and so on."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def _answered(error: HfHubHTTPError, what: str, cure: str) -> Refused:
    """A refusal from what the hub answered."""
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return Refused(f"{what} is gated: accept its licence on its page at {constants.ENDPOINT}, then run `hf auth login`")
    if isinstance(error, RevisionNotFoundError):
        return Refused(f"{what} has no such revision on the hub; choose another")
    if isinstance(error, EntryNotFoundError):
        return Refused(f"{what} lacks a file on the hub ({_first_line(error)}); {cure}")
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403, 404):
        return Refused(
            f"{what} is not on the hub, or is private (status {status}); check the name, run `hf auth login`, or {cure}"
        )
    if status == 429:
        pause = f"a pause of {error.response.headers.get('Retry-After', 'some')} s"
        return HubUnreachable(f"the hub asks for {pause} before {what} can be fetched; try again then, or {cure}")
    return HubUnreachable(f"the hub failed (status {status}) at {what}; try again later, or {cure}")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
