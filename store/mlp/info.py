"""What a manifest says of mlp.safetensors; nothing heavy is imported here."""

from pydantic import BaseModel, ConfigDict

from store.names import MlpActivation, MlpKind, NormKind


class PostNorm(BaseModel):
    """The norm between the MLP and the residual stream; its gain and bias lie in mlp.safetensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: NormKind
    eps: float


class MlpInfo(BaseModel):
    """mlp.safetensors: the layer's own MLP. The norm before it lies in norm.safetensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    bytes: int
    xxh3_128: str
    kind: MlpKind
    activation: MlpActivation
    post_norm: PostNorm | None
    """None where the MLP adds to the residual stream without a norm."""
