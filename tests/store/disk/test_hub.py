"""Stores at hf://, in a repository and in a bucket: the hub's own file system over a hub in memory."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import torch
from huggingface_hub import BucketFile
from huggingface_hub.errors import BucketNotFoundError, HfHubHTTPError, RemoteEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.hf_file_system import HfFileSystemFile, HfFileSystemStreamFile

from store.disk import remote
from store.disk.lock import RemoteLock
from store.disk.remote import Remote
from store.loader.batches import batches
from store.shards.manifest import load_manifest
from store.shards.reader import check_shards, find_damage, open_store
from store.shards.writer import StoreWriter
from tests.making import make_norm, make_recipe, make_rows, make_store

FOLDER = f"layer8-{os.getpid()}"
"""Locks on one URL would meet, in whichever process the tests run."""


def answer(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    return kind("no", response=httpx.Response(status, request=httpx.Request("GET", "http://hub")))


@dataclass
class Hub:
    """What HfFileSystem asks its HfApi for. Files are replaced whole, by commits; there is no append and no rename."""

    files: dict[str, bytes] = field(default_factory=dict)
    refuses: bool = False

    def repo_info(self, name: str, **_: object) -> None:
        if name != "me/acts":
            raise answer(RepositoryNotFoundError, 404)

    def bucket_info(self, name: str) -> None:
        if name != "me/acts":
            raise answer(BucketNotFoundError, 404)

    def list_repo_tree(self, name: str, folder: str, **_: object) -> Iterator[RepoFile]:
        found = [path for path in self.files if path.rpartition("/")[0] == folder]
        if not found:
            raise answer(RemoteEntryNotFoundError, 404)
        return (RepoFile(path=path, size=len(self.files[path]), oid="") for path in found)

    def list_bucket_tree(self, name: str, folder: str, **_: object) -> list[BucketFile]:
        found = [path for path in self.files if path.startswith(folder + "/") or path == folder]
        return [BucketFile(type="file", path=path, size=len(self.files[path]), xetHash="") for path in found]

    def batch_bucket_files(self, name: str, add: tuple = (), delete: tuple = ()) -> None:
        for source, path in add:
            self.upload_file(path_or_fileobj=source, path_in_repo=path)
        for path in delete:
            self.delete_file(path_in_repo=path)

    def upload_file(self, *, path_or_fileobj: str, path_in_repo: str, **_: object) -> None:
        if self.refuses:
            raise answer(HfHubHTTPError, 403)
        self.files[path_in_repo] = Path(path_or_fileobj).read_bytes()

    def delete_file(self, *, path_in_repo: str, **_: object) -> None:
        if self.files.pop(path_in_repo, None) is None:
            raise answer(RemoteEntryNotFoundError, 404)


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    made = Hub()

    def range_of(self: HfFileSystemFile, start: int, end: int) -> bytes:
        return made.files[self.resolved_path.path][start:end]

    def connect(self: HfFileSystemStreamFile) -> None:
        self.response = httpx.Response(200, content=made.files[self.resolved_path.path])
        self._stream_iterator = self.response.iter_bytes()

    monkeypatch.setattr(HfFileSystemFile, "_fetch_range", range_of)
    monkeypatch.setattr(HfFileSystemStreamFile, "_open_connection", connect)
    remote.filesystem.cache_clear()
    monkeypatch.setattr(remote.filesystem("hf"), "_api", made)
    yield made
    remote.filesystem.cache_clear()


@pytest.fixture(params=["datasets/me/acts", "buckets/me/acts"])
def place(request, hub: Hub) -> Remote:
    return Remote(f"hf://{request.param}/{FOLDER}")


@pytest.mark.parametrize("name", ["safetensors", "zarr-zstd"])
def test_a_store_is_the_same_bytes_and_batches_on_the_hub(place: Remote, hub: Hub, tmp_path, name):
    local = make_store(tmp_path / "local", format=name)
    make_store(place, 2, format=name)
    distant = make_store(place, format=name)
    assert hub.files == {f"{FOLDER}/{path.name}": path.read_bytes() for path in (tmp_path / "local").iterdir()}
    check_shards(distant)
    pairs = zip(batches(local, "train", 32, stop=400), batches(distant, "train", 32, stop=400), strict=True)
    assert all(torch.equal(a.source, b.source) and torch.equal(a.target, b.target) for a, b in pairs)
    (place / local.manifest.shards[1].name).unlink()
    assert list(find_damage(place, distant.manifest)) == [local.manifest.shards[1].name]


def test_what_another_process_writes_is_seen_although_it_was_listed_before(place: Remote, hub: Hub):
    make_store(place, 1)
    pending = place / "shard-00001.entry.json"
    assert not pending.exists()
    hub.files[f"{FOLDER}/shard-00001.entry.json"] = b"{}"
    assert pending.exists()
    assert pending.read_bytes() == b"{}"
    hub.files[f"{FOLDER}/shard-00001.entry.json"] = b"{ }"
    assert pending.stat().st_size == 3
    del hub.files[f"{FOLDER}/shard-00001.entry.json"]
    assert pending.name not in place.sizes()
    pending.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        pending.unlink()


def test_ranks_on_the_hub_write_the_store_of_one(place: Remote, hub: Hub, tmp_path):
    recipe = make_recipe()
    with StoreWriter(place, recipe, make_norm(), 0, 2) as zero, StoreWriter(place, recipe, make_norm(), 1, 2) as one:
        for number in (1, 0, 3, 2):
            (zero, one)[number % 2].append(make_rows(number, recipe), number)
        assert len(zero.manifest.shards) == 4
    make_store(tmp_path, 4)
    assert hub.files == {f"{FOLDER}/{path.name}": path.read_bytes() for path in tmp_path.iterdir()}


def test_a_second_writer_is_refused_but_not_by_its_own_lock(place: Remote, hub: Hub, monkeypatch):
    lock, upload, answers = place / "writer.lock", hub.upload_file, [None]
    hub.files[f"{FOLDER}/writer.lock"] = b"elsewhere 17\n"
    with pytest.raises(ValueError, match="a process on elsewhere is writing hf://"):
        RemoteLock(lock)
    lock.unlink()

    def loses_its_answer(**arguments) -> None:
        upload(**arguments)
        if answers:
            answers.pop()
            raise ConnectionError("reset by peer")

    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(hub, "upload_file", loses_its_answer)
    RemoteLock(lock).release()
    assert not answers
    assert not hub.files


def test_no_right_to_write_is_said_at_once(place: Remote, hub: Hub):
    hub.refuses = True
    with pytest.raises(OSError, match=r"hf://.*/layer8-.*/writer\.lock cannot be written"):
        make_store(place, 1)
    assert not hub.files


@pytest.mark.parametrize("kind", ["datasets", "buckets"])
def test_a_repository_that_is_not_there_is_one_error(hub: Hub, kind):
    with pytest.raises(ValueError, match=r"hf://.* is not an activation store"):
        load_manifest(Remote(f"hf://{kind}/me/typo/{FOLDER}"))
    with pytest.raises(
        OSError, match=r"me/typo/layer8-.*/writer\.lock cannot be written: there is no such bucket or repository"
    ):
        make_store(Remote(f"hf://{kind}/me/typo/{FOLDER}"), 1)


def test_a_package_that_is_missing_is_named(monkeypatch, tmp_path):
    remote.filesystem.cache_clear()
    with pytest.raises(ValueError, match=r"gs:// cannot be opened \(.*gcsfs.*install"):
        open_store(Remote("gs://bucket/store"))
