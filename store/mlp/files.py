"""mlp.safetensors: written beside norm.safetensors, and read back checked."""

from weakref import WeakValueDictionary

import xxhash
from safetensors import SafetensorError
from safetensors.torch import load

from store.disk.files import size_and_checksum, write_tensors
from store.disk.remote import StorePath
from store.errors import Damaged
from store.layout import MLP_FILE
from store.mlp.forward import Mlp
from store.mlp.info import MlpInfo, PostNorm
from store.views import Norm

CURE = "run `make repair` to write it again, or restore it from a copy"

_loaded: WeakValueDictionary[tuple[StorePath, str], Mlp] = WeakValueDictionary()
"""By folder and checksum: the views of a store that readers hold share one copy of the weights."""


def save_mlp(directory: StorePath, mlp: Mlp) -> MlpInfo:
    """Writes mlp.safetensors, in the dtype of the weights; returns what the manifest says of it."""
    arrays = mlp.weights
    post_norm = None
    if mlp.post_norm is not None:
        post_norm = PostNorm(kind=mlp.post_norm.kind, eps=mlp.post_norm.eps)
        arrays = arrays | {"post_gain": mlp.post_norm.gain}
        if mlp.post_norm.bias is not None:
            arrays = arrays | {"post_bias": mlp.post_norm.bias}
    path = directory / MLP_FILE
    write_tensors(path, arrays)
    n_bytes, checksum = size_and_checksum(path)
    return MlpInfo(
        bytes=n_bytes,
        xxh3_128=checksum,
        kind=mlp.kind,
        activation=mlp.activation,
        post_norm=post_norm,
    )


def load_mlp(directory: StorePath, info: MlpInfo, norm: Norm) -> Mlp:
    """The MLP of a store, on the host. Damaged when its file is missing, or was changed.

    Args:
        directory: of the store.
        info: what its manifest says.
        norm: before the MLP.
    """
    key = (directory, info.xxh3_128)
    mlp = _loaded.get(key)
    if mlp is None:
        mlp = _loaded[key] = _read(directory / MLP_FILE, info, norm)
    return mlp


def _read(path: StorePath, info: MlpInfo, norm: Norm) -> Mlp:
    try:
        content = path.read_bytes()
        arrays = load(content)
    except FileNotFoundError:
        raise Damaged(f"{path} is missing; {CURE}") from None
    except SafetensorError as error:
        raise Damaged(f"{path} is damaged ({error}); {CURE}") from None
    if xxhash.xxh3_128_hexdigest(content) != info.xxh3_128:
        raise Damaged(f"{path} has another checksum: its bytes changed on disk; {CURE}")
    post_norm = None
    if info.post_norm is not None:
        gain = arrays.pop("post_gain")
        post_norm = Norm(kind=info.post_norm.kind, eps=info.post_norm.eps, gain=gain, bias=arrays.pop("post_bias", None))
    return Mlp(kind=info.kind, activation=info.activation, norm=norm, post_norm=post_norm, **arrays)
