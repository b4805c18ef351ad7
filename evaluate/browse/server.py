"""`python -m evaluate browse`: a local server over a results folder. Of the runs it writes their notes alone."""

import contextlib
import socket
import threading
import webbrowser
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from evaluate.browse.api import endpoint, note_changer
from evaluate.browse.config import BrowseConfig
from evaluate.browse.folder import find_runs
from evaluate.browse.links import Links
from evaluate.browse.pages import Pages
from evaluate.browse.places import open_results
from evaluate.browse.texts import text_answer
from evaluate.features.reader import NotFound
from store.errors import Damaged, Refused
from store.layout import REPORT

STATIC = Path(__file__).parent / "static"

LOCAL = ("127.0.0.1", "localhost")

POLICY = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; img-src data:; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

"""Headers of every page: scripts and styles are those of the browser alone."""

REPORT_POLICY = POLICY | {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data: blob:"
}

Handler = Callable[[Request], Awaitable[Response]]


def make_app(results: Path, hosts: tuple[str, ...] = LOCAL) -> Starlette:
    """The server, for runs that a scan of the folder finds: no part of a URL becomes a path.

    It answers GET, and POST where one of its own pages sends it.
    """
    pages = Pages(results, Links())

    def page(make: Callable[[Request], str]) -> Handler:
        async def handler(request: Request) -> Response:
            try:
                return HTMLResponse(await run_in_threadpool(make, request), headers=POLICY)
            except NotFound as error:
                return HTMLResponse(pages.message("Not here", str(error)), 404, POLICY)
            except Damaged as error:
                return HTMLResponse(pages.message("Cannot be shown", str(error)), 500, POLICY)

        return handler

    async def report(request: Request) -> Response:
        run = find_runs(results).get(request.path_params["run"])
        if run is None or request.path_params["kind"] not in run.reports:
            return HTMLResponse(pages.message("Not here", "there is no such report"), 404, POLICY)
        return FileResponse(run.folder / request.path_params["kind"] / REPORT, headers=REPORT_POLICY)

    def named(request: Request) -> str:
        return request.path_params["run"]

    routes = [
        Route("/", page(lambda r: pages.runs(r.query_params))),
        Route("/compare", page(lambda r: pages.compare(r.query_params))),
        Route("/run/{run:path}", page(lambda r: pages.run(named(r)))),
        Route("/features/{run:path}", page(lambda r: pages.features(named(r), r.query_params))),
        Route("/tree/{run:path}", page(lambda r: pages.tree(named(r), r.query_params))),
        Route("/feature/{run:path}/{n:int}", page(lambda r: pages.feature(named(r), r.path_params["n"]))),
        Route("/graph/{run:path}/{n:int}", page(lambda r: pages.graph(named(r), r.path_params["n"]))),
        Route("/report/{run:path}/{kind}", report),
        Route("/note/{run:path}/{n:int}", endpoint(note_changer(results)), methods=["POST"]),
        Route("/text/{run:path}/{n:int}", endpoint(text_answer(pages.open_run, pages.render)), methods=["POST"]),
        Mount("/static", StaticFiles(directory=STATIC)),
        Route("/{rest:path}", page(_nothing)),
    ]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))])


def _nothing(request: Request) -> str:
    raise NotFound(f"there is no page {request.url.path}")


def browse(config: BrowseConfig) -> None:
    """Serves the pages until Ctrl-C. Refused when the folder is missing or the port is taken."""
    results = open_results(config.results)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((config.host, config.port))
        except OSError as error:
            raise Refused(f"port {config.port} of {config.host} cannot be used ({error.strerror}); give another") from None
        host, port = listener.getsockname()[:2]
        url = f"http://{host}:{port}/"
        print(f"{url}   (Ctrl-C ends it)", flush=True)
        if config.open:
            threading.Timer(0.5, webbrowser.open, [url]).start()
        local = config.host in (*LOCAL, "::1")
        threading.Thread(target=_open_features, args=(results,), daemon=True).start()
        app = make_app(results, LOCAL if local else ("*",))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        server.run(sockets=[listener])


def _open_features(results: Path) -> None:
    """Reads the plain columns of every run's features before anybody asks for a page."""
    for run in find_runs(results).values():
        if run.has_features:
            with contextlib.suppress(Damaged):  # the run's page says so
                run.features()
