"""A process that asks a hub on loopback for things and prints how each ends: `python -m tests.store.hub_calls ENDPOINT`."""

import os
import sys
import tempfile


def main(endpoint: str) -> None:
    os.environ |= {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": tempfile.mkdtemp(), "HF_HUB_DISABLE_XET": "1"}
    import urllib.request

    import huggingface_hub.constants as constants
    import huggingface_hub.utils._http as http
    import torch

    import store.hub
    from evaluate.baselines import published
    from harvest.config import HarvestConfig
    from harvest.model.loading import load_model
    from harvest.model.output_weights import read_output_weights
    from harvest.text.corpus import open_corpus

    http.time.sleep = lambda seconds: None  # ahead of the hub's own retries
    calls = {
        "model": lambda: load_model("org/tiny", 0, torch.device("cpu"), torch.float32).revision,
        "unembedding": lambda: tuple(read_output_weights("org/tiny").unembedding.shape),
        "data": lambda: open_corpus(HarvestConfig(dataset="org/texts")).revision,
        "baselines": lambda: published("google/gemma-2-2b", 8),
    }
    for mode in sys.argv[2:]:
        urllib.request.urlopen(f"{endpoint}/mode/{mode}").read()
        patience = 0.3 if mode == "hangs" else 10
        store.hub.TIMEOUT = constants.HF_HUB_ETAG_TIMEOUT = constants.HF_HUB_DOWNLOAD_TIMEOUT = patience
        for name, call in calls.items():
            try:
                print(mode, name, f"fine {call()}", sep="\t")
            except ValueError as error:
                code = getattr(error, "exit_code", 1)
                print(mode, name, f"{type(error).__name__} {code} {error}".replace("\n", "\\n"), sep="\t")


if __name__ == "__main__":
    main(sys.argv[1])
