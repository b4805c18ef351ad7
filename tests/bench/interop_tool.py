"""The tools of other projects, run in an environment of their own by tests/bench/interop.py: each reads what was exported.

`python interop_tool.py JOBS`: a JSON list of objects with `tool`, `folder`, and `x` and `out`, safetensors files with what
the tool's hook would hold and for its outputs. Prints a line of JSON for each: `version`, or `error`.
`python interop_tool.py make TOOL FOLDER` writes the small example that the tests keep. A package that is unpacked without
what it depends on is imported past its `__init__`.
"""

import importlib.metadata
import json
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

HERE = Path(sys.prefix).parent
"""Folder of the environments, and of packages that are unpacked without what they depend on."""


def bare(package: str, *names: str) -> str:
    """Makes packages importable past their `__init__`. Returns the version."""
    root = HERE / package
    [found] = root.glob("*.dist-info")
    version = found.name.removesuffix(".dist-info").replace("-", " ")
    if names[0] in sys.modules:
        return version
    sys.path.insert(0, str(root))
    for name in names:
        module = types.ModuleType(name)
        module.__path__ = [str(root / name.replace(".", "/"))]
        sys.modules[name] = module
    return version


def stub(name: str, **attributes: object) -> None:
    """A module that is imported and not used."""
    module = types.ModuleType(name)
    vars(module).update(attributes)
    sys.modules[name] = module


def saelens(folder: Path, x: torch.Tensor) -> tuple[str, torch.Tensor]:
    from sae_lens import SAE

    sae = SAE.load_from_disk(folder, device="cpu")
    return f"sae-lens {importlib.metadata.version('sae-lens')}", sae(x)


def circuit_tracer_package() -> tuple[str, types.ModuleType]:
    import huggingface_hub.constants

    # It is gone since huggingface_hub 1.0, which the package excludes.
    huggingface_hub.constants.HF_HUB_ENABLE_HF_TRANSFER = False
    names = ("circuit_tracer", "circuit_tracer.utils", "circuit_tracer.transcoder", "circuit_tracer.frontend")
    version = bare("circuit-tracer", *names)
    sys.modules["circuit_tracer.utils"].get_default_device = lambda: torch.device("cpu")
    import circuit_tracer.transcoder.single_layer_transcoder as module

    return f"{version} (a fork of v0.5.0: same loader of JumpReLU files)", module


def circuit_tracer(folder: Path, x: torch.Tensor, lazy: bool = False) -> tuple[str, torch.Tensor]:
    version, _ = circuit_tracer_package()
    from circuit_tracer.utils.caching import load_transcoders_from_cache

    found, _ = load_transcoders_from_cache(str(folder), device=torch.device("cpu"), lazy_encoder=lazy, lazy_decoder=lazy)
    return version, torch.stack([each(x) for each in found])


def circuit_tracer_layer(folder: Path, x: torch.Tensor) -> tuple[str, torch.Tensor]:
    version, module = circuit_tracer_package()
    load = getattr(module, "load_transcoder", None) or module.load_relu_transcoder
    [path] = folder.glob("layer_*.safetensors")
    return version, load(str(path), 0, device=torch.device("cpu"))(x)


def gemma_scope_1(folder: Path, x: torch.Tensor) -> tuple[str, torch.Tensor]:
    version, module = circuit_tracer_package()
    return version, module.load_gemma_scope_transcoder(str(folder / "params.npz"), 0, device=torch.device("cpu"))(x)


def gemma_scope_2(folder: Path, x: torch.Tensor) -> tuple[str, torch.Tensor]:
    version, module = circuit_tracer_package()
    path = str(folder / "params.safetensors")
    return version, module.load_gemma_scope_2_transcoder(path, 0, device=torch.device("cpu"))(x)


def sparsify(folder: Path, x: torch.Tensor) -> tuple[str, torch.Tensor]:
    from sparsify import SparseCoder

    return f"eai-sparsify {importlib.metadata.version('eai-sparsify')}", SparseCoder.load_from_disk(folder)(x).sae_out


def delphi_package() -> str:
    version = bare("eai-delphi", "delphi.latents")
    stub("faiss")
    stub("sentence_transformers", SentenceTransformer=object)
    stub("blobfile")
    stub("orjson")
    stub("asyncer", asyncify=lambda function: function)
    return version


def delphi(folder: Path, x: torch.Tensor) -> tuple[str, torch.Tensor]:
    """Sums of activations over each token and over each latent; x gives the number of latents."""
    version = delphi_package()
    from delphi.latents.loader import TensorBuffer

    [module] = (folder / "latents").iterdir()
    of_token, of_latent = None, torch.zeros(len(x))
    for path in module.glob("*.safetensors"):
        buffer = TensorBuffer(str(path), module.name)
        of_token = torch.zeros(buffer.tokens.shape) if of_token is None else of_token
        for data in buffer:
            at, values = data.activation_data.locations, data.activation_data.activations.float()
            of_token[at[:, 0], at[:, 1]] += values
            of_latent[data.latent.latent_index] = values.sum()
    assert of_token is not None
    return version, torch.cat([of_token.flatten(), of_latent])


def viewer(folder: Path, x: torch.Tensor) -> tuple[str, torch.Tensor]:
    """Largest activation of each latent, by circuit-tracer's own model of a feature file."""
    import gzip
    import struct

    version, _ = circuit_tracer_package()
    from circuit_tracer.frontend.feature_models import Model

    [layer] = json.loads(gzip.decompress((folder / "index.json.gz").read_bytes())).values()
    content = (folder / layer["filename"]).read_bytes()
    most = []
    for start in layer["offsets"][:-1]:
        [length] = struct.unpack("<I", content[start : start + 4])
        most.append(Model.model_validate_json(gzip.decompress(content[start + 4 : start + 4 + length])).act_max)
    return version, torch.tensor(most)


def neuronpedia(folder: Path, x: torch.Tensor) -> tuple[str, torch.Tensor]:
    """Largest activation of each latent that its client would send; its payload has to equal ours."""
    version = bare("neuronpedia", "neuronpedia", "neuronpedia.requests")
    from neuronpedia.np_activation import Activation
    from neuronpedia.np_feature import Feature, Logit
    from neuronpedia.requests.feature_request import FeatureRequest

    most = torch.zeros(len(x))
    request = FeatureRequest.__new__(FeatureRequest)
    for path in sorted(folder.glob("*/batch-*.json")):
        batch = json.loads(path.read_text())
        name = {"modelId": batch["modelId"], "source": batch["source"]}
        features = []
        for each in batch["features"]:
            features.append(
                Feature(
                    **name,
                    index=each["index"],
                    density=each["density"],
                    top_logits=[Logit(**logit) for logit in each["topLogits"]],
                    bottom_logits=[Logit(**logit) for logit in each["bottomLogits"]],
                    explanations=[],
                    activations=[Activation(**name, index=each["index"], **shown) for shown in each["activations"]],
                )
            )
            most[each["index"]] = max(max(shown["values"]) for shown in each["activations"])
        request.send_request = lambda method, uri, json: json
        sent = request.upload_batch(batch["modelId"], batch["source"], features)
        assert sent["features"] == [each | {"explanations": []} for each in batch["features"]], path
    return version, most


TOOLS = {
    "saelens": saelens,
    "circuit-tracer": circuit_tracer,
    "circuit-tracer-lazy": lambda folder, x: circuit_tracer(folder, x, lazy=True),
    "circuit-tracer-layer": circuit_tracer_layer,
    "gemma-scope-1": gemma_scope_1,
    "gemma-scope-2": gemma_scope_2,
    "sparsify": sparsify,
    "delphi": delphi,
    "viewer": viewer,
    "neuronpedia": neuronpedia,
}


def make_circuit_tracer(folder: Path) -> None:
    """A layer with random weights, written by the tool, and its outputs."""
    _, module = circuit_tracer_package()
    activation = module.JumpReLU(torch.rand(10), 0.1)
    made = module.SingleLayerTranscoder(6, 10, activation, 8, skip_connection=True, dtype=torch.float32)
    fill(made, folder / "layer_8.safetensors", made.to_safetensors)
    lines = ("model_kind: transcoder_set", "model_name: google/gemma-2-2b", "feature_output_hook: hook_mlp_out")
    (folder / "config.yaml").write_text("\n".join([*lines, "feature_input_hook: ln2.hook_normalized"]) + "\n")
    outputs(made, folder)


def make_sparsify(folder: Path) -> None:
    from sparsify import SparseCoder
    from sparsify.config import SparseCoderConfig

    config = SparseCoderConfig(num_latents=10, k=3, skip_connection=True, transcode=True)
    made = SparseCoder(6, config)
    fill(made, folder, made.save_to_disk)
    outputs(lambda x: made(x).sae_out, folder)


def make_delphi(folder: Path) -> None:
    """A cache of random latents, and these latents, of which two are dead."""
    delphi_package()
    from delphi.latents.cache import LatentCache

    latents = torch.relu(torch.randn(4, 8, 11) - 0.5)
    latents[..., 7] = 0
    tokens = torch.randint(0, 50, (4, 8))
    made = LatentCache.__new__(LatentCache)
    from delphi.latents.cache import InMemoryCache

    made.cache, made.width = InMemoryCache(batch_size=4), 11
    made.cache.add(latents, tokens, 0, "layers.1.mlp")
    made.cache.save()
    made.save_splits(5, folder)
    save_file({"latents": latents, "tokens": tokens}, folder / "made.safetensors")


def make_llamascopium(folder: Path) -> None:
    """A JumpReLU transcoder with the mean norms of a data set, and its outputs in raw units."""
    bare("llamascopium", "llamascopium", "llamascopium.models", "llamascopium.backend")
    stub("llamascopium.backend.language_model", LanguageModelConfig=object)
    from llamascopium.models.sae import SAEConfig, SparseAutoEncoder

    hook_in, hook_out = "blocks.8.ln2.hook_normalized", "blocks.8.hook_mlp_out"
    sizes = {"d_model": 6, "expansion_factor": 2, "act_fn": "jumprelu"}
    config = SAEConfig(hook_point_in=hook_in, hook_point_out=hook_out, device="cpu", dtype=torch.float32, **sizes)
    made = SparseAutoEncoder(config)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter.data)
    made.set_dataset_average_activation_norm({hook_in: 2.4, hook_out: 0.7})
    made.save_pretrained(folder)
    config.save_hyperparameters(folder)

    def raw(x: torch.Tensor) -> torch.Tensor:
        scaled, factors = made.normalize_activations({hook_in: x, hook_out: x}, return_scale_factor=True)
        return made.denormalize_activations({hook_out: made(scaled[hook_in])}, factors)[hook_out]

    outputs(raw, folder)


MAKERS = {
    "circuit_tracer": make_circuit_tracer,
    "delphi": make_delphi,
    "llamascopium": make_llamascopium,
    "sparsify": make_sparsify,
}


def fill(module: torch.nn.Module, place: Path, save) -> None:
    for parameter in module.parameters():
        if parameter.abs().sum() == 0 or parameter.ndim > 1:
            torch.nn.init.normal_(parameter.data)
    save(str(place))


def outputs(call, folder: Path) -> None:
    x = torch.randn(8, 6)
    save_file({"x": x, "y": call(x).detach().contiguous()}, folder / "forward.safetensors")


def main() -> None:
    torch.manual_seed(0)
    if sys.argv[1] == "make":
        place = Path(sys.argv[3])
        place.mkdir(parents=True, exist_ok=True)
        MAKERS[sys.argv[2]](place)
        return
    for job in json.loads(Path(sys.argv[1]).read_text()):
        try:
            with torch.no_grad():
                version, y = TOOLS[job["tool"]](Path(job["folder"]), load_file(job["x"])["x"])
            save_file({"y": y.detach().float().contiguous()}, job["out"])
            said = {"version": version}
        except Exception as error:  # whatever a tool raises stands in its row
            said = {"error": f"{type(error).__name__} {error}".splitlines()[0]}
        print("\n" + json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
