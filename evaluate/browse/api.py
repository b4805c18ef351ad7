"""What the browser's pages send to the server: JSON from a page of this server alone, answered by JSON."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlparse

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from evaluate.browse.folder import open_named_run
from evaluate.features.reader import NotFound
from evaluate.notes.file import change_note
from store.errors import Busy, Damaged, Refused

MOST_BYTES = 1 << 16
"""Of what a page may send."""

STATUS = {NotFound: 404, Busy: 409, Damaged: 409, Refused: 400}
"""By kind of error, the status of the answer."""

Answer = Callable[[str, int, dict], dict]
"""Run, latent and what the page sent -> what it is told."""


class NotAllowed(ValueError):
    """A request that no page of this server sends."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def endpoint(answer: Answer) -> Callable[[Request], Awaitable[Response]]:
    """The handler of requests that ask for a change or for work; every error is one line in the answer."""

    async def handler(request: Request) -> Response:
        try:
            sent = await read_json(request)
            path = request.path_params
            return JSONResponse(await run_in_threadpool(answer, path["run"], path["n"], sent))
        except NotAllowed as error:
            return JSONResponse({"error": str(error)}, error.status)
        except (NotFound, Busy, Damaged, Refused) as error:
            status = next(status for kind, status in STATUS.items() if isinstance(error, kind))
            return JSONResponse({"error": str(error)}, status)
        except OSError as error:
            return JSONResponse({"error": f"{error.filename or 'the disk'} cannot be used ({error.strerror})"}, 500)

    return handler


async def read_json(request: Request) -> dict:
    """What a page of this server sent. NotAllowed for other origins, other types, too much, and what is no JSON object.

    A browser names the origin of every such request, and a page of another one cannot send this type without asking first.
    """
    origin = request.headers.get("origin", "")
    if urlparse(origin).netloc != request.headers.get("host") or request.headers.get("sec-fetch-site") == "cross-site":
        raise NotAllowed(403, "only pages of this server may ask for this")
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise NotAllowed(415, "the content type must be application/json")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise NotAllowed(413, f"more than {MOST_BYTES:,} bytes")
    try:
        sent = json.loads(body)
    except ValueError:
        sent = None
    if not isinstance(sent, dict):
        raise NotAllowed(400, "the request holds no JSON object")
    return sent


def note_changer(results: Path) -> Answer:
    """Changes the fields of a latent's note that a page sends, and returns all of them."""

    def change(name: str, latent: int, sent: dict) -> dict:
        run = open_named_run(results, name)
        run.features().check(latent)
        return change_note(run.folder, latent, sent).model_dump()

    return change
