"""`python -m evaluate judge`: a language model explains features and answers questions, at an OpenAI-compatible server."""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import TypeVar
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from evaluate.judge.config import JudgeConfig
from evaluate.judge.excerpts import CLOSE, OPEN
from evaluate.judge.questions import write_lines
from evaluate.judge.score import read_answers, read_lines, write_scores
from evaluate.judge.waiting import BUSY, asked_to_wait, waits
from store.disk.suggest import command_line
from store.errors import Refused
from store.layout import ANSWERS, EXPLAIN, EXPLANATIONS, ITEMS, JUDGE

EXPLAINER = (
    "You study what makes one unit of a language model active. You are given texts in which it is; the tokens on which it "
    f"is active stand between {OPEN} and {CLOSE}. Say in one short sentence what these tokens, with the text before them, "
    "have in common. Be specific. Do not mention the marks. Answer with that sentence alone."
)

TASKS = {
    "detection": (
        "You are given a description of what makes one unit of a language model active, and numbered texts. For each text, "
        "decide whether the unit is active somewhere in it."
    ),
    "fuzzing": (
        "You are given a description of what makes one unit of a language model active, and numbered texts with marks: "
        f"tokens between {OPEN} and {CLOSE}. For each text, decide whether the marked tokens are those on which the unit "
        "is active."
    ),
}

FORM = " Answer with a list of 1 (yes) and 0 (no), one number for each text in their order, like [1, 0, 1]; nothing else."

log = logging.getLogger(__name__)

T = TypeVar("T")


def judge(config: JudgeConfig) -> Path:
    """The folder with explanations, answers and scores. The same command continues an unfinished folder. Refused if the
    server fails."""
    questions = config.run / JUDGE
    for name in (EXPLAIN, ITEMS):
        if not (questions / name).exists():
            write = command_line("evaluate", "judge-export", run=config.run)
            raise Refused(f"{questions} has no {name}; write the questions with {write}")
    items = read_lines(questions / ITEMS)
    folder = config.folder
    given = None if config.explanations is None else read_explanations(config.explanations, items)
    folder.mkdir(parents=True, exist_ok=True)
    answers = answers_so_far(folder, items)
    mend(folder / EXPLANATIONS)
    if given:
        explanations = save_explanations(folder, given, bool(answers))
    else:
        explanations = explain(config, read_lines(questions / EXPLAIN))
    unanswered = [item for item in items if item["id"] not in answers and item["latent"] in explanations]
    answer(config, unanswered, explanations)
    write_scores(folder, items, answers_so_far(folder, items))
    return folder


def answers_so_far(folder: Path, items: Sequence[dict]) -> dict[str, bool]:
    """The answers in the folder, by id; none before the first."""
    mend(folder / ANSWERS)
    return read_answers(folder / ANSWERS, items) if (folder / ANSWERS).exists() else {}


def mend(path: Path) -> None:
    """Cuts off a last line that a killed command left unfinished, where the file exists."""
    if not path.exists():
        return
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        with path.open("rb+") as file:
            file.truncate(content.rfind(b"\n") + 1)


def read_explanations(path: Path, items: Sequence[dict]) -> dict[int, str]:
    """The explanations in a file, by latent. Refused when the items ask about a latent that has none there."""
    lines = read_lines(path, {"latent": int, "explanation": str})
    explanations = {line["latent"]: line["explanation"] for line in lines}
    missing = sorted({item["latent"] for item in items} - set(explanations))
    if missing:
        raise Refused(f"{path} has no explanation of latent {missing[0]} (and {len(missing) - 1} more); add them")
    return explanations


def save_explanations(folder: Path, given: dict[int, str], answered: bool) -> dict[int, str]:
    """Writes the given explanations beside the answers. Refused when the answers there belong to other explanations."""
    path = folder / EXPLANATIONS
    before = {record["latent"]: record["explanation"] for record in read_lines(path)} if path.exists() else given
    if answered and before != given:
        raise Refused(f"the answers in {folder} were given to other explanations; choose another folder with --out")
    write_lines(path, [{"latent": latent, "explanation": text} for latent, text in given.items()])
    return given


def explain(config: JudgeConfig, shown: Sequence[dict]) -> dict[int, str]:
    """An explanation of each latent by the model. Explanations that are there already are kept."""
    path = config.folder / EXPLANATIONS
    lines = read_lines(path) if path.exists() else []
    explanations = {line["latent"]: line["explanation"] for line in lines}

    def ask_about(record: dict) -> list[dict]:
        texts = "\n\n".join(f"Text {number}: {text}" for number, text in enumerate(record["texts"], 1))
        text = ask(config, EXPLAINER, texts, lambda reply: " ".join(reply.split()) or None)
        return [] if text is None else [{"latent": record["latent"], "explanation": text}]

    rest = [record for record in shown if record["latent"] not in explanations]
    calls = [Call(1, partial(ask_about, record)) for record in rest]
    for record in append_in_parallel(config, path, "explanations", calls):
        explanations[record["latent"]] = record["explanation"]
    return explanations


def answer(config: JudgeConfig, items: Sequence[dict], explanations: dict[int, str]) -> None:
    """Asks about the items, a few of one latent and task in each request. Answers are appended as they come."""

    def ask_about(batch: Sequence[dict]) -> list[dict]:
        texts = "\n\n".join(f"Text {number}: {item['text']}" for number, item in enumerate(batch, 1))
        question = f"Description: {explanations[batch[0]['latent']]}\n\n{texts}"
        answers = ask(config, TASKS[batch[0]["task"]] + FORM, question, lambda reply: read_list(reply, len(batch)))
        if answers is None:
            return []
        return [{"id": item["id"], "answer": yes} for item, yes in zip(batch, answers, strict=True)]

    calls = []
    for _, group in groupby(items, key=lambda item: (item["latent"], item["task"])):
        mine = list(group)
        for start in range(0, len(mine), config.at_once):
            batch = mine[start : start + config.at_once]
            calls.append(Call(len(batch), partial(ask_about, batch)))
    answered = len(append_in_parallel(config, config.folder / ANSWERS, "answers", calls))
    if answered < len(items):
        log.warning("%d of %d answers could not be read; the same command asks again", len(items) - answered, len(items))


def read_list(reply: str, n: int) -> list[bool] | None:
    """The last list of n zeros and ones in a reply, as booleans; None when there is no such list."""
    lists = [re.findall("[01]", text) for text in re.findall(r"\[[01,\s]*\]", reply)]
    fitting = [digits for digits in lists if len(digits) == n]
    return [digit == "1" for digit in fitting[-1]] if fitting else None


@dataclass(frozen=True)
class Call:
    """A request that answers some items."""

    n_items: int
    records: Callable[[], list[dict]]


def append_in_parallel(config: JudgeConfig, path: Path, label: str, calls: Sequence[Call]) -> list[dict]:
    """The records of all calls. Each call's are appended to the file as they come.

    A failure or Ctrl-C keeps the records that have come, and waits for the requests that are under way.

    config: says how many requests are under way at once.
    path: JSONL file.
    label: stands before the progress bar.
    calls: the requests, in their order.
    """
    everything: list[dict] = []
    writing = Lock()
    n_items = sum(call.n_items for call in calls)
    with path.open("a", encoding="utf-8") as file, tqdm(total=n_items, desc=label, unit="item") as bar:

        def append(call: Call) -> None:
            records = call.records()
            with writing:
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
                file.flush()
                everything.extend(records)
                bar.update(call.n_items)

        pool = ThreadPoolExecutor(config.parallel)
        try:
            for future in as_completed([pool.submit(append, call) for call in calls]):
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)
    return everything


def ask(config: JudgeConfig, task: str, question: str, read: Callable[[str], T | None]) -> T | None:
    """The model's reply as `read` returns it; None when `read` returns None for each of a few replies.

    config: names server and model.
    task: the system message.
    question: the user's message.
    read: parses a reply; None where it cannot.
    """
    messages = [{"role": "system", "content": task}, {"role": "user", "content": question}]
    for temperature in (0.0, 0.7, 0.7)[: config.retries + 1]:
        reply = complete(config, {"model": config.model, "messages": messages, "temperature": temperature})
        without_thoughts = re.sub(r"<think>.*?(</think>|\Z)", "", reply, flags=re.DOTALL)
        parsed = read(without_thoughts)
        if parsed is not None:
            return parsed
    return None


def address(endpoint: str) -> str:
    """The URL of chat completions, from the address of a server."""
    base = endpoint.rstrip("/").removesuffix("/chat/completions")
    return f"{base.removesuffix('/v1')}/v1/chat/completions"


def complete(config: JudgeConfig, body: dict) -> str:
    """The model's reply to a request. Waits and repeats while the server is busy or away.

    Refused when the server stays busy or away, or refuses the request.
    """
    request = request_of(config, body)
    problem = ""
    for wait in (*waits(config.wait, config.retries), None):
        retry_after = 0.0
        try:
            with urlopen(request, timeout=config.timeout) as response:
                reply = json.load(response)["choices"][0]["message"]["content"] or ""
                return reply.encode(errors="replace").decode()  # half a surrogate pair cannot be written
        except HTTPError as error:
            with error:
                reason = error.read(300).decode(errors="replace").strip()
            problem = f"{error.code} {reason}"
            if error.code not in BUSY:
                raise Refused(
                    f"{request.full_url} refuses model {config.model!r}: {problem}; check --endpoint, --model and the key "
                    f"in {config.key_variable}"
                ) from None
            retry_after = asked_to_wait(error.headers.get("Retry-After", ""))
        except (OSError, HTTPException, ValueError, LookupError, TypeError, AttributeError) as error:
            problem = f"{type(error).__name__}: {error}"
        if wait is not None:
            time.sleep(max(wait, retry_after))
    raise Refused(
        f"{request.full_url} gave no answer in {config.retries + 1} attempts ({problem}); what was answered is kept, the "
        "same command continues"
    )


def request_of(config: JudgeConfig, body: dict) -> Request:
    """A POST request with the API key, where there is one."""
    headers = {"Content-Type": "application/json"}
    key = os.environ.get(config.key_variable, "").strip()
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return Request(address(config.endpoint), json.dumps(body).encode(), headers)
