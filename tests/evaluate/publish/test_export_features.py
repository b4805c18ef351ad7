"""Collected features for other tools: read as their own readers do, and compared with the feature files of the run."""

import gzip
import json
import shutil
import struct

import pytest

from evaluate.features.reader import open_features
from evaluate.publish.command import export_features
from evaluate.publish.config import ExportFeaturesConfig
from evaluate.publish.viewer import viewer_record
from store.errors import Refused


@pytest.fixture
def run(on_tiny_model, tmp_path):
    return shutil.copytree(on_tiny_model.run, tmp_path / "run")


def options(tmp_path, *runs, layout: str, **changes) -> ExportFeaturesConfig:
    return ExportFeaturesConfig(runs=runs, layout=layout, out=tmp_path / "out", **changes)


def records_of(run) -> list[dict]:
    path = run / "activation_samples/features.parquet"
    return open_features(path, path.stat().st_mtime_ns).records(range(40))


def test_the_viewers_index_finds_every_latent(run, tmp_path):
    said = export_features(options(tmp_path, run, layout="circuit-tracer"))
    index = json.loads(gzip.decompress((tmp_path / "out/index.json.gz").read_bytes()))
    assert list(index) == ["1"]
    offsets = index["1"]["offsets"]
    content = (tmp_path / "out" / index["1"]["filename"]).read_bytes()
    assert len(offsets) == 41
    assert offsets[-1] == len(content)
    for latent, expected in enumerate(records_of(run)):
        chunk = content[offsets[latent] : offsets[latent + 1] + 1]  # its readers ask for one byte too many
        [length] = struct.unpack("<I", chunk[:4])
        found = json.loads(gzip.decompress(chunk[4 : 4 + length]))
        assert found["index"] == latent
        assert found["act_max"] == expected["max_activation"]
        assert found["activation_frequency"] == expected["density"]
        examples = [example for group in found["examples_quantiles"] for example in group["examples"]]
        assert len(examples) == len(expected["contexts"])
        strongest = max((value for example in examples for value in example["tokens_acts_list"]), default=0)
        assert strongest == pytest.approx(expected["max_activation"], rel=1e-4)
    assert "layer 1: 40 latents" in said


def test_a_viewers_example_marks_the_token_that_fires(run):
    for record in records_of(run):
        for group in viewer_record(record, "r")["examples_quantiles"]:
            for example in group["examples"]:
                assert len(example["tokens"]) == len(example["tokens_acts_list"])
                assert example["tokens_acts_list"][example["train_token_ind"]] > 0


def test_neuronpedia_takes_the_batches(run, tmp_path, monkeypatch):
    """The limits of its schema: apps/webapp/app/api/feature/upload-batch."""
    monkeypatch.setattr("evaluate.publish.neuronpedia.MOST_FEATURES", 16)
    (run / "judge").mkdir()
    (run / "judge/explanations.jsonl").write_text(json.dumps({"latent": 3, "explanation": "x" * 600}) + "\n")
    said = export_features(options(tmp_path, run, layout="neuronpedia", model_id="tiny", method="m", explainer="e"))
    records = records_of(run)
    living = [record for record in records if record["contexts"]]
    batches = [json.loads(path.read_text()) for path in (tmp_path / "out/1-matryoshka-transcoder").iterdir()]
    assert {(batch["modelId"], batch["source"]) for batch in batches} == {("tiny", "1-matryoshka-transcoder")}
    assert max(len(batch["features"]) for batch in batches) <= 16
    features = sorted((feature for batch in batches for feature in batch["features"]), key=lambda each: each["index"])
    assert [feature["index"] for feature in features] == [record["feature"] for record in living]
    for feature in features:
        assert 0 <= feature["density"] <= 1
        assert feature["activations"]
        for each in feature["activations"]:
            assert 1 <= len(each["tokens"]) == len(each["values"]) <= 1024
            assert 0 <= each["quantileFraction"] <= 1
            assert each["quantileMin"] <= each["quantileMax"]
    [explained] = [feature for feature in features if feature["explanations"]]
    assert (explained["index"], len(explained["explanations"][0]["text"])) == (3, 512)
    assert explained["explanations"][0]["methodName"] == "m"
    assert f"{len(living)} latents of tiny" in said


@pytest.mark.parametrize("layout", ["circuit-tracer", "neuronpedia"])
def test_a_run_without_collected_features_is_refused_naming_the_command(run, tmp_path, layout):
    shutil.rmtree(run / "activation_samples")
    with pytest.raises(Refused, match="run has no collected features; collect them with make features RUN="):
        export_features(options(tmp_path, run, layout=layout))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_options_that_do_not_fit_are_refused(run, tmp_path):
    with pytest.raises(Refused, match="are both of layer 1; give one run a layer"):
        export_features(options(tmp_path, run, run, layout="circuit-tracer"))
    with pytest.raises(Refused, match="no run is given"):
        export_features(options(tmp_path, layout="circuit-tracer"))
    with pytest.raises(Refused, match="'My_Set'; Neuronpedia takes lower-case letters"):
        options(tmp_path, run, layout="neuronpedia", source_set="My_Set")
    with pytest.raises(Refused, match="is no name of a model on Neuronpedia .* give --model-id"):
        export_features(options(tmp_path, run, layout="neuronpedia", model_id="x" * 40))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
