"""Neuronpedia's API, as its Python client 1.2.1 calls it: the same addresses, bodies and header.

The client itself is not used: it sets no timeout, repeats nothing, and prints every request.
"""

import logging
import os
import time
from collections.abc import Callable
from typing import Any

import httpx2

from evaluate.judge.waiting import BUSY, asked_to_wait, waits
from evaluate.publish.config import PublishNeuronpediaConfig
from store.errors import Refused
from store.hub import HubUnreachable

SHOWN = 300
"""Characters of the server's reason that a message shows."""

log = logging.getLogger(__name__)


class Service:
    """The API with a key. Refused where the key is not set; `ask` says what else can go wrong."""

    def __init__(self, config: PublishNeuronpediaConfig) -> None:
        self.config = config
        self.key = os.environ.get(config.key_variable, "").strip()
        if not self.key:
            raise Refused(
                f"{config.key_variable} is not set; set it to your API key, from {config.server}/account, or see "
                "what would be sent with --dry-run"
            )
        self.client = httpx2.Client(timeout=config.timeout, headers={"X-Api-Key": self.key, "Accept-Encoding": "gzip"})

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *exception: object) -> None:
        self.client.close()

    def ask(
        self,
        method: str,
        place: str,
        body: dict[str, Any] | None = None,
        *,
        missing: str | None = None,
        arrived: Callable[[], bool] = lambda: False,
    ) -> Any:
        """The answer in JSON; None for status 404 where `missing` is None, and where `arrived` says so.

        Waits and repeats while the server is busy or away.

        place: below /api.
        missing: what is refused on status 404, with a cure.
        arrived: whether a request whose answer never came has done its work, asked before it is repeated.
        """
        url = f"{self.config.server.rstrip('/')}/api/{place}"
        problem = ""
        for wait in (*waits(self.config.wait, self.config.retries), None):
            asked = 0.0
            try:
                answer = self.client.request(method, url, json=body)
                if answer.status_code not in BUSY:
                    return self._read(answer, missing)
                problem = f"status {answer.status_code}"
                asked = asked_to_wait(answer.headers.get("Retry-After", ""))
            except httpx2.HTTPError as error:
                problem = str(error) or type(error).__name__
            if wait is not None:
                log.info("%s: %s; trying again", url, problem)
                time.sleep(max(wait, asked))
                if arrived():
                    return None
        raise HubUnreachable(
            f"{url} gave no answer in {self.config.retries + 1} attempts ({problem}); what has arrived is recorded, the "
            "same command continues"
        )

    def _read(self, answer: httpx2.Response, missing: str | None) -> Any:
        """What a server that is not busy answers."""
        status = answer.status_code
        url = answer.request.url
        if status == 401:
            raise Refused(
                f"{url} does not know the key in {self.config.key_variable} (status 401); take it from the account page"
            )
        if status == 404:
            if missing is None:
                return None
            raise Refused(f"{url} says status 404: {missing}")
        if 300 <= status < 400:
            raise Refused(f"{url} sends us to {answer.headers.get('Location', 'elsewhere')}; give that address as --server")
        if status >= 400:
            reason = " ".join(answer.text.split())[:SHOWN].replace(self.key, "KEY")
            raise Refused(f"{url} refuses the request (status {status}): {reason}")
        try:
            return answer.json()
        except ValueError:
            raise HubUnreachable(f"{url} answered with no JSON; is --server right?") from None
