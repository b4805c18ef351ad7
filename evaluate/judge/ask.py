"""A language model as judge, behind any OpenAI-compatible endpoint: explanations, answers, and then their marks."""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from http.client import HTTPException
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import TypeVar
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from evaluate.judge.config import JudgeConfig
from evaluate.judge.questions import CLOSE, OPEN, write_lines
from evaluate.judge.score import read_answers, read_lines, write_scores
from store.errors import Refused
from store.layout import ANSWERS, EXPLAIN, EXPLANATIONS, ITEMS, JUDGE

BUSY = (408, 409, 429, 500, 502, 503, 504)
"""HTTP statuses after which the same request may succeed."""

LONGEST_WAIT = 60.0

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
    """The folder with explanations, answers and scores, continued where it was left. Refused if the server fails."""
    questions = config.run / JUDGE
    for name in (EXPLAIN, ITEMS):
        if not (questions / name).exists():
            raise Refused(f"{questions} has no {name}; write the questions with python -m evaluate judge-export")
    items = read_lines(questions / ITEMS)
    folder = config.folder
    given = None if config.explanations is None else named_explanations(config.explanations, items)
    folder.mkdir(parents=True, exist_ok=True)
    answers = read_answers(folder / ANSWERS, items) if mend(folder / ANSWERS) else {}
    mend(folder / EXPLANATIONS)
    explanations = take(folder, given, bool(answers)) if given else explain(config, read_lines(questions / EXPLAIN))
    open_items = [item for item in items if item["id"] not in answers and item["latent"] in explanations]
    answer(config, open_items, explanations)
    write_scores(folder, items, read_answers(folder / ANSWERS, items) if mend(folder / ANSWERS) else {})
    return folder


def mend(path: Path) -> bool:
    """Whether the file exists; cuts off a last line that a killed command left unfinished."""
    if not path.exists():
        return False
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        with path.open("rb+") as file:
            file.truncate(content.rfind(b"\n") + 1)
    return True


def named_explanations(path: Path, items: Sequence[dict]) -> dict[int, str]:
    """The explanations in a file. Refused when one of a latent that is asked about is missing."""
    found = {record["latent"]: record["explanation"] for record in read_lines(path, {"latent": int, "explanation": str})}
    missing = sorted({item["latent"] for item in items} - set(found))
    if missing:
        raise Refused(f"{path} has no explanation of latent {missing[0]} (and {len(missing) - 1} more); add them")
    return found


def take(folder: Path, given: dict[int, str], answered: bool) -> dict[int, str]:
    """Given explanations, written beside the answers. Refused when answers there were given to other ones."""
    path = folder / EXPLANATIONS
    before = {record["latent"]: record["explanation"] for record in read_lines(path)} if path.exists() else given
    if answered and before != given:
        raise Refused(f"the answers in {folder} were given to other explanations; choose another folder with --out")
    write_lines(path, [{"latent": latent, "explanation": text} for latent, text in given.items()])
    return given


def explain(config: JudgeConfig, shown: Sequence[dict]) -> dict[int, str]:
    """An explanation of each latent by the model, those there are already kept."""
    path = config.folder / EXPLANATIONS
    found = {record["latent"]: record["explanation"] for record in read_lines(path)} if path.exists() else {}

    def ask_about(record: dict) -> list[dict]:
        texts = "\n\n".join(f"Text {number}: {text}" for number, text in enumerate(record["texts"], 1))
        text = ask(config, EXPLAINER, texts, lambda reply: " ".join(reply.split()) or None)
        return [] if text is None else [{"latent": record["latent"], "explanation": text}]

    rest = [record for record in shown if record["latent"] not in found]
    for record in append_in_parallel(config, path, "explanations", [(1, lambda r=record: ask_about(r)) for record in rest]):
        found[record["latent"]] = record["explanation"]
    return found


def answer(config: JudgeConfig, items: Sequence[dict], explanations: dict[int, str]) -> None:
    """Asks about the items, a few of one latent and task at a time; answers are appended as they come."""

    def ask_about(batch: Sequence[dict]) -> list[dict]:
        texts = "\n\n".join(f"Text {number}: {item['text']}" for number, item in enumerate(batch, 1))
        question = f"Description: {explanations[batch[0]['latent']]}\n\n{texts}"
        said = ask(config, TASKS[batch[0]["task"]] + FORM, question, lambda reply: read_list(reply, len(batch)))
        return [{"id": item["id"], "answer": yes} for item, yes in zip(batch, said or (), strict=bool(said))]

    batches = []
    for _, group in groupby(items, key=lambda item: (item["latent"], item["task"])):
        mine = list(group)
        batches += [mine[start : start + config.at_once] for start in range(0, len(mine), config.at_once)]
    work = [(len(batch), lambda b=batch: ask_about(b)) for batch in batches]
    answered = len(append_in_parallel(config, config.folder / ANSWERS, "answers", work))
    if answered < len(items):
        log.warning("%d of %d answers could not be read; the same command asks again", len(items) - answered, len(items))


def read_list(reply: str, n: int) -> list[bool] | None:
    """The last list of n zeros and ones in a reply; None where there is none."""
    lists = [re.findall("[01]", found) for found in re.findall(r"\[[01,\s]*\]", reply)]
    fitting = [found for found in lists if len(found) == n]
    return [digit == "1" for digit in fitting[-1]] if fitting else None


def append_in_parallel(
    config: JudgeConfig, path: Path, what: str, work: Sequence[tuple[int, Callable[[], list[dict]]]]
) -> list[dict]:
    """What the calls return, each appended to the file when it comes; a failure or Ctrl-C keeps what there is, and what is
    under way."""
    found: list[dict] = []
    writing = Lock()
    with path.open("a", encoding="utf-8") as file, tqdm(total=sum(n for n, _ in work), desc=what, unit="item") as bar:

        def keep(n: int, call: Callable[[], list[dict]]) -> None:
            records = call()
            with writing:
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
                file.flush()
                found.extend(records)
                bar.update(n)

        pool = ThreadPoolExecutor(config.parallel)
        try:
            for future in as_completed([pool.submit(keep, n, call) for n, call in work]):
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)
    return found


def ask(config: JudgeConfig, task: str, question: str, read: Callable[[str], T | None]) -> T | None:
    """What `read` makes of the model's reply; None where it makes nothing of any of a few replies."""
    messages = [{"role": "system", "content": task}, {"role": "user", "content": question}]
    for temperature in (0.0, 0.7, 0.7)[: config.retries + 1]:
        reply = complete(config, {"model": config.model, "messages": messages, "temperature": temperature})
        found = read(re.sub(r"<think>.*?(</think>|\Z)", "", reply, flags=re.DOTALL))  # what models say to themselves
        if found is not None:
            return found
    return None


def address(endpoint: str) -> str:
    """Where requests go, from the address of a server."""
    base = endpoint.rstrip("/").removesuffix("/chat/completions")
    return f"{base if base.endswith('/v1') else base + '/v1'}/chat/completions"


def complete(config: JudgeConfig, body: dict) -> str:
    """The model's reply. Waits and repeats while the server is busy or away; Refused when it stays so, or refuses."""
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(config.key_variable, "").strip():
        headers["Authorization"] = f"Bearer {key}"
    request = Request(address(config.endpoint), json.dumps(body).encode(), headers)
    problem = ""
    for wait in (*waits(config), None):
        asked_for = 0.0
        try:
            with urlopen(request, timeout=config.timeout) as response:
                said = json.load(response)["choices"][0]["message"]["content"] or ""
                return said.encode(errors="replace").decode()  # half a surrogate pair cannot be written
        except HTTPError as error:
            with error:
                said = error.read(300).decode(errors="replace").strip()
            problem = f"{error.code} {said}"
            if error.code not in BUSY:
                raise Refused(
                    f"{request.full_url} refuses model {config.model!r}: {problem}; check --endpoint, --model and the key "
                    f"in {config.key_variable}"
                ) from None
            after = error.headers.get("Retry-After", "")
            asked_for = min(float(after), LONGEST_WAIT) if after.isdecimal() else 0.0
        except (OSError, HTTPException, ValueError, LookupError, TypeError, AttributeError) as error:
            problem = f"{type(error).__name__}: {error}"
        if wait is not None:
            time.sleep(max(wait, asked_for))
    raise Refused(
        f"{request.full_url} gave no answer in {config.retries + 1} attempts ({problem}); what was answered is kept, the "
        "same command continues"
    )


def waits(config: JudgeConfig) -> Iterable[float]:
    """Seconds before each repetition."""
    return (min(config.wait * 2**number, LONGEST_WAIT) for number in range(config.retries))
