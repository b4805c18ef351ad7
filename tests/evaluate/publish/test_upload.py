"""The upload to Neuronpedia: a server on loopback that checks every payload against the schema and fails on purpose."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Annotated

import pytest
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from evaluate.publish.command import export_features
from evaluate.publish.config import ExportFeaturesConfig, PublishNeuronpediaConfig
from evaluate.publish.upload import upload
from store.errors import Busy, Damaged, Refused
from store.hub import HubUnreachable
from tests.child import PATIENCE

KEY = "np-secret-key"
SOURCE = "1-matryoshka-transcoder"
IMPATIENT = 2.0
"""Seconds that a client waits which is to give up."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class SentLogit(Strict):
    token: str
    value: float


class SentExplanation(Strict):
    text: Annotated[str, StringConstraints(min_length=1, max_length=512)]
    methodName: str
    modelName: str


class SentActivation(Strict):
    tokens: Annotated[list[str], Field(min_length=1, max_length=1024)]
    values: list[float]
    quantileMax: float
    quantileMin: float
    quantileFraction: Annotated[float, Field(ge=0, le=1)]

    @model_validator(mode="after")
    def _same_length(self) -> "SentActivation":
        assert len(self.tokens) == len(self.values)
        return self


class SentFeature(Strict):
    index: Annotated[int, Field(ge=0, le=10_000_000)]
    density: Annotated[float, Field(ge=0, le=1)]
    topLogits: Annotated[list[SentLogit], Field(max_length=20)]
    bottomLogits: Annotated[list[SentLogit], Field(max_length=20)]
    explanations: list[SentExplanation]
    activations: Annotated[list[SentActivation], Field(min_length=1)]


class SentBatch(Strict):
    modelId: Annotated[str, StringConstraints(min_length=2, max_length=32, pattern="^[a-z0-9.-]+$")]
    source: Annotated[str, StringConstraints(pattern="^[0-9]+-[a-z0-9]+(-[a-z0-9]+)*$")]
    features: Annotated[list[SentFeature], Field(min_length=1, max_length=128)]


class SentSet(Strict):
    name: Annotated[str, StringConstraints(pattern="^[a-z0-9]+(-[a-z0-9]+)*$")]
    modelId: str
    description: Annotated[str, StringConstraints(max_length=128)] | None
    url: str | None


class SentModel(Strict):
    id: str
    layers: Annotated[int, Field(ge=1, le=127)]
    displayName: str | None
    url: str | None


class Site(BaseHTTPRequestHandler):
    """Neuronpedia's API as far as an upload goes. `faults` has what happens at each call of upload-batch, in order."""

    models: dict[str, int]
    sets: set[tuple[str, str]]
    stored: Counter
    """How often each (model, source, index) was stored."""
    faults: list[str]
    calls: list[str]

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        _, _, kind, *rest = self.path.split("/")
        self.calls.append(f"GET {kind}")
        if kind == "source-set":
            model, name = rest
            return self.answer(
                self.set_of(model, name) if (model, name) in self.sets else {}, 200 if (model, name) in self.sets else 404
            )
        model, source, index = rest
        there = self.stored[model, source, int(index)]
        return self.answer({"index": index, "activations": [{}]} if there else {}, 200 if there else 404)

    def do_POST(self) -> None:
        place = self.path.removeprefix("/api/")
        self.calls.append(f"POST {place}")
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["X-Api-Key"] != KEY:
            return self.answer({"message": "who are you"}, 401)
        try:
            return {"model/new": self.new_model, "source-set/new": self.new_set, "feature/upload-batch": self.batch}[place](
                body
            )
        except ValidationError as error:
            return self.answer({"message": f"{error.errors()[0]['loc']}, you with the key {KEY}"}, 400)

    def new_model(self, body: dict) -> None:
        sent = SentModel.model_validate(body)
        self.models[sent.id] = sent.layers
        self.answer({"id": sent.id, "layers": sent.layers, "displayName": None, "website": None})

    def new_set(self, body: dict) -> None:
        sent = SentSet.model_validate(body)
        if sent.modelId not in self.models:
            return self.answer({"message": "no such model"}, 404)
        self.sets.add((sent.modelId, sent.name))
        return self.answer(self.set_of(sent.modelId, sent.name))

    def set_of(self, model: str, name: str) -> dict:
        sources = [{"id": f"{layer}-{name}", "modelId": model, "setName": name} for layer in range(self.models[model])]
        return {"name": name, "modelId": model, "description": "", "urls": [], "sources": sources}

    def batch(self, body: dict) -> None:
        sent = SentBatch.model_validate(body)
        fault = self.faults.pop(0) if self.faults else ""
        if (sent.modelId, sent.source.partition("-")[2]) not in self.sets or fault == "404":
            return self.answer({}, 404)
        if fault in ("429", "500", "503"):
            return self.answer({"message": "later"}, int(fault))
        if fault == "cut":
            return self.connection.close()
        for feature in sent.features:
            self.stored[sent.modelId, sent.source, feature.index] += 1
        if fault == "hangs":
            time.sleep(IMPATIENT + 0.3)
        if fault in ("hangs", "stored, then cut"):
            return self.connection.close()
        return self.answer({"message": "ok"})

    def answer(self, content: dict, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def site(monkeypatch) -> Iterator[type[Site]]:
    """A site that knows the model `tiny` of three layers; its address is `site.address`."""
    empty = {"models": {"tiny": 3}, "sets": set(), "stored": Counter(), "faults": [], "calls": []}
    kind = type("Mine", (Site,), empty)
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    kind.address = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NEURONPEDIA_API_KEY", KEY)
    yield kind
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(on_tiny_model, tmp_path, monkeypatch) -> Path:
    """An export in batches of eight latents, of which one is explained."""
    monkeypatch.setattr("evaluate.publish.neuronpedia.MOST_FEATURES", 8)
    run = shutil.copytree(on_tiny_model.run, tmp_path / "run")
    (run / "judge").mkdir()
    (run / "judge/explanations.jsonl").write_text(json.dumps({"latent": 3, "explanation": "words"}) + "\n")
    config = ExportFeaturesConfig(runs=(run,), layout="neuronpedia", out=tmp_path / "out", model_id="tiny")
    export_features(replace(config, method="m", explainer="e"))
    return tmp_path / "out"


def options(folder: Path, site: type[Site], **changes) -> PublishNeuronpediaConfig:
    return PublishNeuronpediaConfig(**(dict(folder=folder, server=site.address, wait=0.0, timeout=PATIENCE) | changes))


def written(folder: Path) -> dict[tuple[str, str, int], int]:
    """Every latent of the export, each once."""
    batches = [json.loads(path.read_text()) for path in folder.glob("*/batch-*.json")]
    assert len(batches) > 2
    return {(batch["modelId"], batch["source"], each["index"]): 1 for batch in batches for each in batch["features"]}


def n_batches(folder: Path) -> int:
    return len(list(folder.glob("*/batch-*.json")))


def test_every_latent_arrives_once_in_a_set_that_the_command_makes(folder, site):
    said = upload(options(folder, site))
    assert site.stored == written(folder)
    assert site.sets == {("tiny", "matryoshka-transcoder")}
    assert f"{len(site.stored)} latents sent in {n_batches(folder)} batches; the set matryoshka-transcoder was made" in said
    assert f"{site.address}/tiny/{SOURCE}" in said
    assert "nothing was sent" in upload(options(folder, site))
    assert site.stored == written(folder)


@pytest.mark.parametrize("fault", ["429", "500", "503", "cut", "stored, then cut", "hangs"])
def test_a_server_that_fails_now_and_then_stores_every_latent_once(folder, site, fault):
    site.faults = ["", fault, "", fault]
    upload(options(folder, site, timeout=IMPATIENT if fault == "hangs" else PATIENCE))
    assert site.stored == written(folder)


def test_an_interrupted_upload_continues_where_it_was(folder, site):
    site.faults = ["", "500", "500"]
    with pytest.raises(HubUnreachable, match=r"gave no answer in 2 attempts \(status 500\).*the same command continues"):
        upload(options(folder, site, retries=1))
    assert len(site.stored) == 8
    site.calls.clear()
    upload(options(folder, site))
    assert site.stored == written(folder)
    assert site.calls.count("POST feature/upload-batch") == n_batches(folder) - 1
    assert "POST source-set/new" not in site.calls


def test_a_batch_that_had_arrived_when_its_answer_was_lost_is_not_sent_again(folder, site):
    site.faults = ["", "stored, then cut"]
    with pytest.raises(HubUnreachable):
        upload(options(folder, site, retries=0))
    upload(options(folder, site))
    assert site.stored == written(folder)


def test_what_the_server_refuses_is_one_line_with_its_cure(folder, site, monkeypatch):
    monkeypatch.setenv("NEURONPEDIA_API_KEY", "wrong")
    with pytest.raises(Refused, match=r"does not know the key in NEURONPEDIA_API_KEY \(status 401\); take it from"):
        upload(options(folder, site))
    monkeypatch.setenv("NEURONPEDIA_API_KEY", KEY)
    site.faults = ["404"]
    with pytest.raises(Refused, match=f"status 404: it has no source {SOURCE} of tiny that is yours"):
        upload(options(folder, site))
    site.sets.clear()
    site.models.clear()
    with pytest.raises(Refused, match="status 404: it does not know the model tiny; export with another --model-id"):
        upload(options(folder, site))
    site.models["tiny"] = 1
    with pytest.raises(Refused, match=f"tiny has no layer for {SOURCE}; is --model-id right"):
        upload(options(folder, site))
    assert not site.stored


def test_a_model_that_the_site_lacks_is_made_when_its_layers_are_given(folder, site):
    site.models.clear()
    upload(options(folder, site, model_layers=18, description="a test", url="https://example.org"))
    assert site.models == {"tiny": 18}
    assert site.stored == written(folder)


def test_the_key_is_needed_and_never_shown(folder, site, monkeypatch, capsys, caplog):
    path = sorted(folder.glob("*/batch-*.json"))[0]
    batch = json.loads(path.read_text())
    batch["features"][0]["density"] = 7.0
    path.write_text(json.dumps(batch))
    with pytest.raises(Refused, match=r"refuses the request \(status 400\): .*density.*with the key KEY") as refused:
        upload(options(folder, site))
    shown = capsys.readouterr()
    assert KEY not in f"{refused.value}{shown.out}{shown.err}{caplog.text}"
    monkeypatch.setenv("OTHER", KEY)
    monkeypatch.delenv("NEURONPEDIA_API_KEY")
    with pytest.raises(Refused, match="NEURONPEDIA_API_KEY is not set; set it to your API key, from .*/account"):
        upload(options(folder, site))
    with pytest.raises(Refused, match="status 400"):
        upload(options(folder, site, key_variable="OTHER"))


def test_a_dry_run_counts_what_is_left_shows_the_first_payload_and_sends_nothing(folder, site, monkeypatch):
    monkeypatch.delenv("NEURONPEDIA_API_KEY")
    said = upload(options(folder, site, dry_run=True))
    assert site.calls == []
    latents = written(folder)
    assert f"tiny {SOURCE}: {n_batches(folder)} batches, {len(latents)} latents, " in said
    assert " 1 explanations" in said
    shown = json.loads(said[said.index("{") : said.rindex("}") + 1])
    assert SentBatch.model_validate(shown).features[0].index == min(index for _, _, index in latents)
    monkeypatch.setenv("NEURONPEDIA_API_KEY", KEY)
    site.faults = ["", "404"]
    with pytest.raises(Refused):
        upload(options(folder, site))
    said = upload(options(folder, site, dry_run=True))
    assert f"1 of {n_batches(folder)} batches have arrived" in said
    assert f"{n_batches(folder) - 1} batches, {len(latents) - 8} latents" in said


def test_batches_that_changed_are_damaged_or_are_another_server_s_are_refused(folder, site):
    upload(options(folder, site))
    path = sorted(folder.glob("*/batch-*.json"))[0]
    before = path.read_text()
    path.write_text(before.replace("words", "other words") + " ")
    with pytest.raises(Refused, match="has changed since it was sent, and what is there cannot be replaced"):
        upload(options(folder, site))
    path.write_text("{")
    with pytest.raises(Damaged, match="is no batch .*; export the features again"):
        upload(options(folder, site))
    path.write_text(before.replace('"methodName": "m"', '"methodName": null'))
    with pytest.raises(Refused, match="an explanation names no method or model, which Neuronpedia refuses; .* --method"):
        upload(options(folder, site))
    path.write_text(before)
    with pytest.raises(Refused, match="was sent to http://127.0.0.1.*, not to http://127.0.0.1:9; export the features"):
        upload(options(folder, site, server="http://127.0.0.1:9"))
    (folder / "uploaded.json").write_text("{}")
    with pytest.raises(Damaged, match=r"uploaded.json cannot be read .*restore it"):
        upload(options(folder, site))


def test_a_folder_without_batches_and_a_second_upload_are_refused(folder, site, tmp_path):
    with pytest.raises(Refused, match="holds no batches; write them with make export-features RUNS=FOLDER"):
        upload(options(tmp_path / "run", site))
    from store.disk.lock import WriterLock

    with WriterLock(folder / "upload.lock"), pytest.raises(Busy, match="is writing"):
        upload(options(folder, site))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"server": "neuronpedia.org"}, "must be an address like https://neuronpedia.org"),
        ({"description": "x" * 129}, "has 129 characters; Neuronpedia takes 128"),
        ({"model_layers": 128}, "Neuronpedia takes at most 127"),
    ],
)
def test_options_that_the_site_would_refuse_are_refused_before_anything_is_read(tmp_path, changes, said):
    with pytest.raises(Refused, match=said):
        PublishNeuronpediaConfig(folder=tmp_path, **changes)
