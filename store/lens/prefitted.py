"""Jacobian lenses that others have fitted, as anthropics/jacobian-lens saves them and neuronpedia/jacobian-lens holds them.

A file of torch.save: `J`, by layer the matrix [d, d] from that block's output to the last block's; `n_prompts`; `d_model`.
On the hub it lies at MODEL/jlens/DATASET/NAME_jacobian_lens.pt. J sums over the row's token and all later ones.
"""

import io
import pickle
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from store.disk.remote import StorePath
from store.errors import Damaged, Refused

NAME = "*lens*.pt"
"""Pattern of the files' names."""
BLOCK_OUTPUTS = {"resid_pre": -1, "mlp_out": 0, "resid_post": 0}
"""By site at which a change is one of a block's output: which block, counted from the site's own."""


def read_prefitted(place: StorePath, layer: int, site: str, width: int) -> Float[Tensor, "d d"]:
    """The matrix of a site, from a file or from the folder that holds it.

    Refused where there is none, for a site of which the file does not tell, a layer that it lacks, and another width;
    Damaged when the file is none of these, or not finite.
    """
    if site not in BLOCK_OUTPUTS:
        raise Refused(
            f"{place} tells of the blocks' outputs, and the run predicts {site}; give --lens auto, after `make metric`"
        )
    path = file_in(place)
    by_layer = matrices_in(path)
    wanted = layer + BLOCK_OUTPUTS[site]
    if wanted not in by_layer:
        there = ", ".join(map(str, sorted(by_layer)))
        raise Refused(f"{path} has the layers {there}, and {site} of layer {layer} needs {wanted}; give --lens auto")
    found = by_layer[wanted].float()
    if found.shape != (width, width):
        shape = " x ".join(map(str, found.shape))
        raise Refused(f"{path} is {shape}, and {site} of the store has width {width}: give the lens of the store's model")
    if not torch.isfinite(found).all():
        raise Damaged(f"{path} is not finite at layer {wanted}; download it again")
    return found


def file_in(place: StorePath) -> StorePath:
    """The file itself, or the only one in a folder. Refused where there is none, or several."""
    if place.name.endswith(".pt"):
        if not place.exists():
            raise Refused(f"{place} is not there; give the file of a lens, or the folder that holds it")
        return place
    files = sorted(place.rglob(NAME) if isinstance(place, Path) else place.glob(NAME), key=str)
    if not files:
        raise Refused(f"{place} holds no {NAME}; give the file of a lens, or the folder that holds it")
    if len(files) > 1:
        raise Refused(f"{place} holds {len(files)} lenses; give one of them: {', '.join(map(str, files[:3]))}")
    return files[0]


def matrices_in(path: StorePath) -> dict[int, Tensor]:
    """By layer, the matrices of a file. Damaged when it holds none."""
    again = "download it again, or give another --lens"
    try:
        content = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        raise Damaged(f"{path} cannot be read ({line}); {again}") from None
    found = content.get("J") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not all(isinstance(matrix, Tensor) for matrix in found.values()):
        raise Damaged(f"{path} holds no matrices J by layer, as a fitted lens does; {again}")
    return {int(layer): matrix for layer, matrix in found.items()}
