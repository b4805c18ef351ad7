"""Questions against a dense float64 look at the shards; judges that are perfect, constant or absent, on loopback."""

import dataclasses
import itertools
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score
from transformers import AutoTokenizer

from evaluate.features.config import FeaturesConfig
from evaluate.features.samples import collect_samples
from evaluate.judge.ask import address, complete, judge, read_list
from evaluate.judge.config import JudgeConfig, JudgeExportConfig, JudgeScoreConfig
from evaluate.judge.questions import export_questions, write_lines
from evaluate.judge.score import read_lines, score_answers, scores
from store.shards.reader import open_store
from store.transcoders.transcoder import Transcoder
from tests.evaluate.dense import dense
from tests.making import hash_of, make_store
from tests.store.transcoders.making import make_transcoder


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_models) -> JudgeExportConfig:
    folder = tmp_path_factory.mktemp("judge")
    tokenizer_hash = hash_of(tiny_models["gpt2"])
    store = make_store(folder / "store", n_shards=8, context=64, shard_sequences=16, tokenizer_hash=tokenizer_hash)
    transcoder = make_transcoder(d_in=12, d_out=10, d_sae=60, prefix_sizes=(10, 30, 60))
    # rare enough to be silent in whole texts
    rarer = dataclasses.replace(transcoder, threshold=transcoder.threshold + 3 * transcoder.W_enc.norm(dim=0).sqrt())
    rarer.save(folder / "run")
    common = dict(store=store.directory, run=folder / "run", tokenizer=tiny_models["gpt2"], device="cpu")
    collect_samples(FeaturesConfig(**common, samples=40, json=False))
    config = JudgeExportConfig(**common, count=12, explained=3, context=12)
    export_questions(config)
    return config


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def items_of(config: JudgeExportConfig) -> list[dict]:
    return records(config.folder / "items.jsonl")


def test_truths_equal_a_dense_computation_on_every_token(exported):
    d = dense(open_store(exported.store), Transcoder.load(exported.run_directory))
    place = {(s, q, t): i for i, (s, q, t) in enumerate(zip(d.shard, d.sequence, d.token, strict=True))}
    tokenizer = AutoTokenizer.from_pretrained(exported.tokenizer)
    kinds = dict.fromkeys(("positive", "near", "random", "misplaced"), 0)
    for item in items_of(exported):
        first = place[item["shard"], item["sequence"], item["start"]]
        on = d.fired[first : first + item["n_tokens"], item["latent"]]
        assert on.any() == (item["kind"] in ("positive", "misplaced"))
        assert item["truth"] == (item["kind"] == "positive")
        words = tokenizer.convert_ids_to_tokens(d.tokens[first : first + item["n_tokens"]])
        assert item["text"].replace("<<", "").replace(">>", "") == "".join(words).replace("Ġ", " ")
        kinds[item["kind"]] += 1
    assert all(kinds.values())


def test_marks_stand_where_the_latent_fires_and_nowhere_that_it_does_in_negatives(exported):
    d = dense(open_store(exported.store), Transcoder.load(exported.run_directory))
    place = {(s, q, t): i for i, (s, q, t) in enumerate(zip(d.shard, d.sequence, d.token, strict=True))}
    fuzzing = [item for item in items_of(exported) if item["task"] == "fuzzing"]
    # without special tokens and single signs, every token is one character and every mark is ours
    fuzzing = [item for item in fuzzing if not set("<>") & set(item["text"].replace("<<", "").replace(">>", ""))]
    assert len(fuzzing) > 20
    for item in fuzzing:
        first = place[item["shard"], item["sequence"], item["start"]]
        values = np.nan_to_num(d.latents[first : first + item["n_tokens"], item["latent"]])
        marked, inside = [], False
        for piece in re.findall("<<|>>|.", item["text"], re.DOTALL):
            if piece in ("<<", ">>"):
                inside = piece == "<<"
            else:
                marked.append(inside)
        assert any(marked)
        if item["truth"]:
            assert marked == ((values > 0) & (values >= 0.3 * values.max())).tolist()
        else:
            assert not (np.array(marked) & (values > 0)).any()


def test_positives_come_from_every_quantile_and_are_as_many_as_negatives(exported):
    items = items_of(exported)
    latents = {item["latent"] for item in items}
    assert len(latents) == 12
    for latent in latents:
        for task in ("detection", "fuzzing"):
            mine = [item for item in items if (item["latent"], item["task"]) == (latent, task)]
            quantiles = [item["quantile"] for item in mine if item["truth"]]
            assert sorted(quantiles) == sorted([1, 2, 3, 4, 5] * exported.per_quantile)
            assert len(mine) == 2 * len(quantiles)


def test_no_positive_overlaps_what_the_explainer_is_shown(exported):
    from evaluate.features.reader import Features

    features = Features(exported.run_directory / "activation_samples" / "features.parquet")
    for item in (item for item in items_of(exported) if item["truth"]):
        top = [c for c in features.records([item["latent"]])[0]["contexts"] if c["quantile"] == 0][: exported.explained]
        for context in top:
            if (context["shard"], context["sequence"]) == (item["shard"], item["sequence"]):
                apart = item["start"] >= context["start"] + len(context["tokens"])
                assert apart or context["start"] >= item["start"] + item["n_tokens"]


def test_the_same_seed_gives_the_same_questions(exported):
    before = (exported.folder / "items.jsonl").read_bytes()
    export_questions(exported)
    assert (exported.folder / "items.jsonl").read_bytes() == before


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_balanced_accuracy_is_sklearns(pairs):
    items = [
        {"id": str(i), "latent": 3, "task": "t", "truth": truth, "kind": "k", "quantile": None}
        for i, (truth, _) in enumerate(pairs)
    ]
    found = scores(items, {str(i): said for i, (_, said) in enumerate(pairs)})["t"]
    truths, said = zip(*pairs, strict=True)
    if len(set(truths)) == 2:
        assert found["latents"][0]["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truths, said))
        assert [each["balanced_accuracy"]["value"] for each in found["constant"].values()] == [0.5, 0.5]
        assert found["constant"]["always yes"]["accuracy"]["value"] == pytest.approx(np.mean(truths))
    else:
        assert found["latents_scored"] == 0


@pytest.mark.parametrize(
    ("reply", "n", "expected"),
    [
        ("[1, 0]", 2, [True, False]),
        ("Text [1] is odd. So: [0,1]", 2, [False, True]),
        ("[1]", 2, None),
        ("yes", 1, None),
        ("[1, 2]", 2, None),
    ],
)
def test_lists_in_replies(reply, n, expected):
    assert read_list(reply, n) == expected


def test_an_endpoint_is_given_with_or_without_its_path():
    whole = "http://h:1/v1/chat/completions"
    assert {address(short) for short in (whole, "http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/")} == {whole}


@pytest.fixture
def serve(monkeypatch) -> Iterator[Callable]:
    """Starts a server that gives each request to a function: body and headers in, a reply or a status out."""
    monkeypatch.setenv("no_proxy", "*")
    servers = []

    def start(reply: Callable[[dict, dict], str | int]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                said = reply(body, dict(self.headers)) if self.path == "/v1/chat/completions" else 404
                self.send_response(said if isinstance(said, int) else 200)
                self.end_headers()
                content = {"choices": [{"message": {"content": said}}]} if isinstance(said, str) else {"error": "no"}
                self.wfile.write(json.dumps(content).encode())

            def log_message(self, *_) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


class Oracle:
    """A judge that knows the truth by text; explanations say which latent is meant."""

    def __init__(self, config: JudgeExportConfig) -> None:
        self.items = {(item["latent"], item["text"]): item for item in items_of(config)}
        self.explained = {texts["texts"][0]: texts["latent"] for texts in records(config.folder / "explain.jsonl")}
        self.requests: list[dict] = []
        self.headers: list[dict] = []
        self.numbers = itertools.count(1)
        self.fail: Callable[[int], int | str | None] = lambda n: None

    def __call__(self, body: dict, headers: dict) -> str | int:
        self.requests.append(body)
        self.headers.append(headers)
        if said := self.fail(next(self.numbers)):  # of requests that come at once, too, each has a number of its own
            return said
        question = body["messages"][1]["content"]
        texts = re.split(r"(?:^|\n\n)Text \d+: ", question)
        if not question.startswith("Description: "):
            return f"<think>hm [1]</think>latent {self.explained[texts[1]]}"
        latent = int(texts[0].removeprefix("Description: latent "))
        return json.dumps([int(self.items[latent, text]["truth"]) for text in texts[1:]])


def judge_config(exported: JudgeExportConfig, endpoint: str, out: Path, **changes) -> JudgeConfig:
    fields = dict(run=exported.run_directory, endpoint=endpoint, model="org/fake", out=out, wait=0.001, retries=2)
    return JudgeConfig(**(fields | changes))


def test_a_judge_that_knows_is_marked_one_beside_constants_at_a_half(exported, serve, tmp_path, monkeypatch):
    monkeypatch.setenv("A_KEY", "secret")
    oracle = Oracle(exported)
    oracle.fail = lambda n: 503 if n in (2, 20) else "no list" if n == 30 else None
    judge(judge_config(exported, serve(oracle), tmp_path / "out", key_variable="A_KEY"))
    found = json.loads((tmp_path / "out" / "scores.json").read_text())
    for task in ("detection", "fuzzing"):
        assert found[task]["answered"] == found[task]["asked"] == 12 * 20
        assert found[task]["balanced_accuracy"] == {"value": 1.0, "ci95": [1.0, 1.0]}
        assert found[task]["constant"]["always yes"]["balanced_accuracy"]["value"] == 0.5
        assert found[task]["latents_scored"] == 12
    assert all(headers["Authorization"] == "Bearer secret" for headers in oracle.headers)
    assert len(oracle.requests) == 12 + 12 * 2 * 4 + 3
    assert "balanced accuracy  1.000" in (tmp_path / "out" / "summary.txt").read_text()


def test_a_judge_that_always_says_yes_is_marked_a_half(exported, serve, tmp_path):
    def yes(body: dict, headers: dict) -> str:
        return json.dumps([1] * body["messages"][1]["content"].count("Text ")) if "list" in str(body) else "anything"

    judge(judge_config(exported, serve(yes), tmp_path / "out"))
    found = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert found["detection"]["balanced_accuracy"]["value"] == 0.5
    assert found["fuzzing"]["right_by_kind"]["misplaced"]["right"] == 0


def test_a_judge_that_stops_is_continued_without_asking_twice(exported, serve, tmp_path):
    oracle = Oracle(exported)
    oracle.fail = lambda n: 500 if n > 40 else None
    config = judge_config(exported, serve(oracle), tmp_path / "out", parallel=1)
    with pytest.raises(ValueError, match="gave no answer in 3 attempts"):
        judge(config)
    answers = tmp_path / "out" / "answers.jsonl"
    kept = len(records(answers))
    assert kept == (40 - 12) * 5
    with answers.open("a") as file:
        file.write('{"id": "cut o')  # what a killed command leaves
    again = Oracle(exported)
    judge(judge_config(exported, serve(again), tmp_path / "out", parallel=1))
    assert len(again.requests) == 12 * 2 * 4 - 28
    found = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert found["fuzzing"]["balanced_accuracy"]["value"] == 1.0


def test_what_is_under_way_when_another_request_fails_is_kept(exported, serve, tmp_path):
    oracle, failed = Oracle(exported), threading.Event()

    def fail(n: int) -> int | None:
        if n == 1:
            assert failed.wait(600)
            time.sleep(0.3)  # until the failure is known
            return None
        failed.set()
        return 401

    oracle.fail = fail
    with pytest.raises(ValueError, match="refuses model"):
        judge(judge_config(exported, serve(oracle), tmp_path / "out", parallel=2))
    assert len(records(tmp_path / "out" / "explanations.jsonl")) == 1


def explanations_in(folder: Path, exported: JudgeExportConfig) -> Path:
    path = folder / "mine.jsonl"
    latents = sorted({item["latent"] for item in items_of(exported)})
    path.write_text("".join(json.dumps({"latent": i, "explanation": f"latent {i}"}) + "\n" for i in latents))
    return path


def test_given_explanations_are_used_and_others_later_are_refused(exported, serve, tmp_path):
    given, latents = explanations_in(tmp_path, exported), sorted({item["latent"] for item in items_of(exported)})
    oracle = Oracle(exported)
    config = judge_config(exported, serve(oracle), tmp_path / "out", explanations=given)
    judge(config)
    assert len(oracle.requests) == 12 * 2 * 4
    given.write_text(given.read_text().replace("latent ", "the latent "))
    with pytest.raises(ValueError, match="given to other explanations"):
        judge(config)
    given.write_text(json.dumps({"latent": latents[0], "explanation": "x"}) + "\n")
    with pytest.raises(ValueError, match=f"no explanation of latent {latents[1]}"):
        judge(config)
    given.write_text(json.dumps({"latent": latents[0], "explanation": None}) + "\n")
    with pytest.raises(ValueError, match="line 1 has None as 'explanation'"):
        judge(config)


def test_a_refusal_is_one_line_and_is_not_repeated(exported, serve, tmp_path):
    seen = []
    endpoint = serve(lambda body, headers: seen.append(body) or 401)
    with pytest.raises(ValueError, match=r"refuses model 'org/fake': 401 .*check --endpoint"):
        complete(judge_config(exported, endpoint, tmp_path / "out"), {"messages": []})
    assert len(seen) == 1


def test_line_separators_in_texts_do_not_end_a_line(tmp_path):
    asked = [{"id": "a", "text": "one\u2028two\x85three\u2029four"}, {"id": "b", "text": ""}]
    write_lines(tmp_path / "items.jsonl", asked)
    assert read_lines(tmp_path / "items.jsonl") == asked


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\n{",
        *(b'HTTP/1.0 200 OK\r\n\r\n{"choices": [{"message": {"content": %b}}]}' % content for content in (b"[{}]", b"5")),
    ],
)
def test_a_server_that_speaks_nonsense_is_one_line(exported, tmp_path, said, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection = listener.accept()[0]
            with connection:
                connection.recv(65536)
                connection.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        config = judge_config(exported, f"http://127.0.0.1:{listener.getsockname()[1]}", tmp_path / "out", retries=0)
        with pytest.raises(ValueError, match="gave no answer in 1 attempts"):
            complete(config, {"messages": []})
        thread.join()


def test_what_a_model_says_to_itself_is_no_answer(exported, serve, tmp_path):
    endpoint = serve(lambda body, headers: "<think>at first sight [1, 1, 1, 1, 1], but")
    judge(judge_config(exported, endpoint, tmp_path / "out", retries=0, explanations=explanations_in(tmp_path, exported)))
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["detection"]["answered"] == 0


@pytest.mark.parametrize("endpoint", ["ftp://h", "http://", "http://[", "http://h:80a", "http://a b/", "127.0.0.1:8000"])
def test_an_endpoint_that_is_no_address_is_refused(endpoint):
    with pytest.raises(ValueError, match="it must be an address like"):
        JudgeConfig(run=Path("run"), endpoint=endpoint, model="m")
    JudgeConfig(run=Path("run"), endpoint="http://[::1]:8000/v1", model="m")


def test_answers_to_nothing_or_both_ways_are_refused(exported, tmp_path):
    name = items_of(exported)[0]["id"]
    for lines, message in (
        ([{"id": "x", "answer": True}], "answers 'x', which is not asked"),
        ([{"id": name, "answer": "maybe"}], "is 'maybe'; write true or false"),
        ([{"id": name, "answer": True}, {"id": name, "answer": False}], "both yes and no"),
        ([{"id": name}], "line 1 has no 'answer'"),
        ([{"id": [name], "answer": True}], "line 1 has .* as 'id'"),
        ([["id", "answer"]], "line 1 is no JSON object"),
        (["id answer"], "line 1 is no JSON object"),
    ):
        path = tmp_path / "answers.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        with pytest.raises(ValueError, match=message):
            score_answers(JudgeScoreConfig(run=exported.run_directory, answers=path))
        assert not (tmp_path / "scores.json").exists()


def test_a_latent_without_samples_of_every_quantile_is_refused(exported):
    with pytest.raises(ValueError, match=r"latent \d+ has fewer than 9 samples"):
        export_questions(dataclasses.replace(exported, latents=(0,), per_quantile=9))
    with pytest.raises(ValueError, match="latent 60 does not exist"):
        export_questions(dataclasses.replace(exported, latents=(60,)))
