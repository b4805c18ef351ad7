from pathlib import Path

import pytest
from starlette.testclient import TestClient

from evaluate.browse.server import make_app
from tests.evaluate.browse.making import Truth, make_results, truth_of


@pytest.fixture(scope="session")
def results(tmp_path_factory, tiny_models) -> Path:
    return make_results(tmp_path_factory.mktemp("site"), tiny_models["gpt2"])


@pytest.fixture(scope="session")
def client(results) -> TestClient:
    return TestClient(make_app(results), base_url="http://127.0.0.1")


@pytest.fixture(scope="session")
def truth(results) -> Truth:
    return truth_of(results)
