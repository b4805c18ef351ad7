"""What tests of metrics share."""

import pytest

from store.transcoders.transcoder import Transcoder
from tests.store.transcoders.making import make_transcoder


@pytest.fixture
def transcoders() -> list[Transcoder]:
    return [
        make_transcoder(d_in=12, d_out=10, d_sae=20, prefix_sizes=(4, 9, 20), view="rms"),
        make_transcoder(d_in=12, d_out=10, d_sae=15, prefix_sizes=(15,), view="normed", skip=True),
    ]
