"""What goes wrong on the way to the hub is one line with a cure: asked of a hub on loopback."""

import json
import shutil
from types import SimpleNamespace

import pytest

from store import hub
from tests.child import python
from tests.hub import MODES, serving

COMMITS = {mode: f"{number:040x}" for number, mode in enumerate(MODES, 1)}


@pytest.fixture(scope="module")
def said(tiny_models) -> dict[tuple[str, str], str]:
    """What each call ended with, by the hub's mode and the thing asked for."""
    with serving() as (hub, endpoint):
        hub.add("org/tiny", tiny_models["gpt2"])
        lines = python("-m", "tests.store.hub_calls", endpoint, *MODES).splitlines()
    rows = [line.split("\t") for line in lines if line.count("\t") == 2]
    return {(mode, name): end for mode, name, end in rows}


EXPECTED = {
    ("whole", "model"): f"fine {COMMITS['whole']}",
    ("whole", "unembedding"): "fine (98, 16)",
    ("partial", "model"): "Refused 1 model 'org/tiny'",
    ("partial", "unembedding"): "Refused 1 model 'org/tiny' lacks a file on the hub",
    ("cut", "model"): "HubUnreachable 69 the hub (http://127.0.0.1",
}
KINDS = {
    "401": "Refused 1 {} is not on the hub, or is private",
    "gated": "Refused 1 {} is gated: accept its licence",
    "404": "Refused 1 {} is not on the hub, or is private",
    "429": "HubUnreachable 69 the hub asks for a pause of 17 s before {}",
    "500": "HubUnreachable 69 the hub failed (status 500) at {}",
    "hangs": "HubUnreachable 69 the hub (http://127.0.0.1",
    "refuses": "HubUnreachable 69 the hub (http://127.0.0.1",
}
THINGS = {
    "model": "model 'org/tiny'",
    "unembedding": "model 'org/tiny'",
    "data": "data set 'org/texts'",
    "baselines": "Google's repository google/gemma-scope-2b-pt-transcoders",
}


@pytest.mark.parametrize(("mode", "thing"), [(mode, thing) for mode in KINDS for thing in THINGS] + list(EXPECTED))
def test_trouble_with_the_hub_is_one_line_with_its_cure(said, mode, thing):
    end = said[mode, thing]
    assert end.startswith(EXPECTED.get((mode, thing)) or KINDS[mode].format(THINGS[thing])), json.dumps(end)
    assert "\\n" not in end


CLOSED = "http://127.0.0.1:9"
"""Nobody listens there."""


def test_without_a_network_the_cache_is_used_at_once_and_what_it_lacks_is_named(tiny_models, tmp_path):
    """The hub's own library tries again for a minute first: the connection is tried beforehand."""
    snapshot = tmp_path / "hub/models--org--tiny/snapshots" / COMMITS["whole"]
    shutil.copytree(tiny_models["gpt2"], snapshot)
    (tmp_path / "hub/models--org--tiny/refs").mkdir()
    (tmp_path / "hub/models--org--tiny/refs/main").write_text(COMMITS["whole"])
    script = """
from types import SimpleNamespace
import huggingface_hub.utils._http as http
from harvest.model.source import source_of
from harvest.model.tokenizer import load_tokenizer, vocabulary_hash
from transformers import AutoTokenizer
known = vocabulary_hash(AutoTokenizer.from_pretrained(FOLDER))
http.time.sleep = None  # the library would sleep before it tries again
print(source_of("org/tiny").commit)
print(load_tokenizer(SimpleNamespace(model="org/tiny", tokenizer_hash=known)).bos_token)
unknown = SimpleNamespace(model="org/none", tokenizer_hash=known)
for call in (lambda: source_of(unknown.model), lambda: load_tokenizer(unknown)):
    try:
        call()
    except ValueError as error:
        print(type(error).__name__, error)
""".replace("FOLDER", repr(str(snapshot)))
    said = python("-c", script, HF_ENDPOINT=CLOSED, HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path)).splitlines()
    assert said[:2] == [COMMITS["whole"], "<bos>"]
    for line, what in zip(said[2:], ("model 'org/none'", "the tokenizer of org/none"), strict=True):
        assert line.startswith(f"HubUnreachable the hub ({CLOSED}) cannot be reached")
        assert f"so {what} cannot be fetched; connect, or " in line


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
def test_the_connection_is_tried_through_the_proxy_that_the_environment_names(monkeypatch, variable):
    """In either case, as curl and the hub's library read it; a host in NO_PROXY is asked itself."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    asked = []
    monkeypatch.setattr(
        hub.socket, "create_connection", lambda place, timeout: asked.append(place) or SimpleNamespace(close=int)
    )
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.constants, "ENDPOINT", "https://huggingface.co")
    hub.check_connection()
    monkeypatch.setenv(variable, "http://proxy.example:3128")
    hub.check_connection()
    monkeypatch.setenv("no_proxy", "huggingface.co")
    hub.check_connection()
    itself = ("huggingface.co", 443)
    assert asked == [itself, ("proxy.example", 3128), itself]
