"""Stores at a URL: a real S3 server on loopback that throttles and hangs up when told to, and fsspec's memory."""

import logging
import os
import socket
import socketserver
import threading
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
import pytest
import torch

from harvest.planning.probe import write_seconds
from store.disk import remote
from store.disk.lock import RemoteLock
from store.disk.remote import Remote, parse_store_path
from store.loader.batches import batches
from store.shards.arrays import LocalFile
from store.shards.manifest import load_manifest
from store.shards.reader import check_shards, find_damage, open_store
from store.shards.writer import StoreWriter
from tests.command import run
from tests.making import files_of, make_norm, make_recipe, make_rows, make_store

SLOW_DOWN = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: 73\r\n\r\n"
    b"<Error><Code>SlowDown</Code><Message>Please slow down.</Message> </Error>"
)


@dataclass
class Trouble:
    """A proxy before the server: what it does to the next connections, and how often it did."""

    port: int = 0
    plan: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)


def start_proxy(target: tuple[str, int]) -> tuple[Trouble, socketserver.ThreadingTCPServer]:
    trouble = Trouble()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            kind = trouble.plan.pop(0) if trouble.plan else None
            if kind is not None:
                trouble.done.append(kind)
                self.request.recv(1 << 16)
                if kind == "slow down":
                    self.request.sendall(SLOW_DOWN)
                elif kind == "half":
                    self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nhalf")
                return  # closes the connection: "drop" has not even answered
            with socket.create_connection(target) as server:
                threading.Thread(target=pump, args=(server, self.request), daemon=True).start()
                pump(self.request, server)

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, trouble.port = True, server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return trouble, server


def pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while block := source.recv(1 << 16):
            sink.sendall(block)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@pytest.fixture(scope="module")
def trouble():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    proxied, proxy = start_proxy(server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1", "NO_PROXY": "*"}
        for key, value in (keys | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxied.port}"}).items():
            patch.setenv(key, value)
        patch.setattr(remote, "FIRST_PAUSE", 0.01)
        remote.filesystem.cache_clear()
        remote.filesystem("s3").makedirs("bucket", exist_ok=True)  # moto keeps buckets while the process lives
        yield proxied
        fsspec.filesystem("s3").clear_instance_cache()
        remote.filesystem.cache_clear()
    proxy.shutdown()
    proxy.server_close()
    server.stop()


@pytest.fixture(params=["s3", "memory", "file"])
def place(request, tmp_path) -> Remote:
    if request.param == "s3":
        request.getfixturevalue("trouble").plan.clear()
    bucket = {"s3": "s3://bucket/", "memory": "memory://", "file": f"file://{tmp_path}/"}[request.param]
    return Remote(f"{bucket}{os.getpid()}-{tmp_path.name}/store")  # locks on one URL would meet, whichever process tests


def objects_of(place: Remote) -> dict[str, bytes]:
    return {name: (place / name).read_bytes() for name in place.sizes()}


def test_a_url_is_told_from_a_folder():
    assert parse_store_path("data/x") == Path("data/x")
    store = parse_store_path("s3://bucket/a/store/")
    assert (str(store), store.name, str(store.parent), str(store / "b")) == (
        "s3://bucket/a/store",
        "store",
        "s3://bucket/a",
        "s3://bucket/a/store/b",
    )


def test_an_unknown_protocol_is_one_clear_error():
    with pytest.raises(ValueError, match="nonsense:// cannot be opened .*; write s3://, gs:// or hf://, or a folder"):
        load_manifest(Remote("nonsense://x"))


@pytest.mark.parametrize("name", ["safetensors", "zarr", "zarr-zstd"])
def test_a_store_is_the_same_bytes_and_batches_at_a_url(place: Remote, tmp_path, name):
    local, distant = make_store(tmp_path / "local", format=name), make_store(place, format=name)
    assert objects_of(place) == files_of(tmp_path / "local")
    check_shards(distant)
    pairs = zip(batches(local, "train", 32, stop=400), batches(distant, "train", 32, stop=400), strict=True)
    assert all(torch.equal(a.source, b.source) and torch.equal(a.target, b.target) for a, b in pairs)


def test_a_store_is_continued_and_a_damaged_shard_named(place: Remote, tmp_path):
    make_store(tmp_path / "local", 3)
    make_store(place, 2)
    assert make_store(place, 3).manifest == load_manifest(tmp_path / "local")
    remote.filesystem(place.protocol).pipe_file((place / "shard-00001.safetensors").path, b"short")
    (place / "shard-00002.safetensors").unlink()
    found = find_damage(place, load_manifest(place))
    assert [what.split(",")[0] for what in found.values()] == ["has 5 bytes", "is missing"]
    with pytest.raises(ValueError, match=r"//.*shard-00001\.safetensors has 5 bytes"):
        open_store(place)


def test_an_upload_that_dies_leaves_no_object_and_the_manifest_as_it_was(place: Remote, monkeypatch):
    make_store(place, 2)
    before = objects_of(place)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with StoreWriter(place, make_recipe(), make_norm()) as writer, pytest.raises(KeyboardInterrupt):
        monkeypatch.setattr(Remote, "upload", dies)
        writer.append(make_rows(2, make_recipe()))
    assert objects_of(place) == before


@pytest.mark.parametrize("kind", ["slow down", *(pytest.param(each, marks=pytest.mark.slow) for each in ("drop", "half"))])
def test_throttling_and_dropped_connections_are_waited_out(trouble: Trouble, tmp_path, caplog, kind):
    place = Remote(f"s3://bucket/{os.getpid()}-{tmp_path.name}/{kind.replace(' ', '-')}")
    make_store(tmp_path / "local", 3)
    recipe = make_recipe()
    with StoreWriter(place, recipe, make_norm()) as writer, caplog.at_level(logging.INFO):
        for number in range(3):
            fresh_connections()
            trouble.plan[:] = [kind] * 5
            writer.append(make_rows(number, recipe))
    assert objects_of(place) == files_of(tmp_path / "local")
    fresh_connections()
    trouble.plan[:] = [kind] * 5
    check_shards(open_store(place))
    assert trouble.done.count(kind) == 20
    assert "shard-00002.safetensors could not be written" in caplog.text
    assert "trying again" in caplog.text


def fresh_connections() -> None:
    """The proxy counts connections: what was kept alive would pass it by."""
    remote.filesystem("s3").clear_instance_cache()
    remote.filesystem.cache_clear()


def test_what_does_not_pass_is_one_error_that_names_the_object(monkeypatch):
    calls: list[int] = []

    def fails(*_: object) -> bytes:
        calls.append(1)
        raise OSError("it rains")

    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.001)
    with pytest.raises(OSError, match=r"memory://a/b could not be read in 7 attempts \(OSError\('it rains'\)\)"):
        remote.with_retries(Remote("memory://a/b"), "read", fails)
    assert len(calls) == remote.ATTEMPTS


def test_a_second_writer_is_refused_and_a_killed_ones_lock_is_taken_over(place: Remote):
    place.mkdir()
    first = RemoteLock(place / "writer.lock")
    with pytest.raises(ValueError, match=f"pid {os.getpid()} on {socket.gethostname()} is writing {place}"):
        StoreWriter(place, make_recipe(), make_norm())
    first.local.release()  # as the kernel does for a process that is killed: the object stays
    make_store(place, 2)
    assert "writer.lock" not in place.sizes()


def test_a_lock_of_another_host_is_refused_and_kept(place: Remote):
    place.mkdir()
    (place / "writer.lock").create(b"elsewhere 17\n")
    with pytest.raises(ValueError, match=r"a process on elsewhere is writing .*delete that object"):
        StoreWriter(place, make_recipe(), make_norm())
    assert (place / "writer.lock").read_bytes() == b"elsewhere 17\n"


def test_local_shards_are_still_read_straight_into_the_buffer(tmp_path):
    store = make_store(tmp_path)
    stream = batches(store, "train", 8)
    next(stream)
    [windows] = [value for value in stream.gi_frame.f_locals.values() if type(value).__name__ == "Windows"]
    assert {type(file) for file in windows.reader.files.values()} == {LocalFile}
    stream.close()


@pytest.mark.slow
def test_harvest_train_evaluate_verify_repair_and_info_take_a_url(
    trouble: Trouble, tiny_models, text_file, tmp_path, monkeypatch, capsys
):
    def done(*words: str) -> int:
        return run(monkeypatch, capsys, *words)[0]

    trouble.plan.clear()
    store, folder = f"s3://bucket/{os.getpid()}-{tmp_path.name}/whole", str(tmp_path / "run")
    model = ("--model", str(tiny_models["gemma2"]), "--layer", "1", "--store", store)
    harvest = (
        "harvest",
        *model,
        "--dataset",
        str(text_file),
        "--tokens",
        "1536",
        "--shard-tokens",
        "512",
        "--context",
        "32",
    )
    assert done(*harvest, "--heldout-every", "2", "--device", "cpu") == 0
    assert len(load_manifest(Remote(store)).shards) == 3
    train = ("train", *model, "--run", folder, "--d-sae", "32", "--k", "4", "--tokens", "2K", "--batch-rows", "64")
    assert done(*train, "--device", "cpu", "--warmup-steps", "2") == 0
    assert done("evaluate", "metrics", *model, "--run", folder, "--device", "cpu") == 0
    assert done("store", "verify", "--store", store) == 0
    (Remote(store) / "shard-00001.safetensors").unlink()
    assert done("store", "verify", "--store", store) == 1
    assert done("harvest", "repair", "--store", store, "--device", "cpu") == 0
    check_shards(open_store(Remote(store)))
    assert done("harvest", "info", "--store", store) == 0


def test_a_plan_measures_the_upload_and_leaves_nothing():
    place = Remote(f"memory://{os.getpid()}/plan")
    assert write_seconds(place) > 0
    assert place.sizes() == {}


def test_a_url_with_one_slash_is_no_folder(tmp_path):
    with pytest.raises(ValueError, match="s3:/bucket/x has one slash behind the colon; write s3://bucket/x"):
        parse_store_path("s3:/bucket/x")
    assert parse_store_path(f"{tmp_path}/s3:/x") == tmp_path / "s3:/x"
