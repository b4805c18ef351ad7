from typing import get_args

import numpy as np
import pytest
import torch

from store.views import NORMS, Norm, NormKind, normed, raw, rms


def test_rms_views_by_hand():
    norm = Norm(kind="rms", eps=0.0, gain=torch.tensor([1.0, 10.0]))
    row = torch.tensor([[3.0, 4.0]])
    root = np.sqrt(12.5)
    assert raw(row, norm).tolist() == [[3.0, 4.0]]
    assert rms(row, norm).tolist()[0] == pytest.approx([3 / root, 4 / root])
    assert normed(row, norm).tolist()[0] == pytest.approx([3 / root, 40 / root])


def test_every_kind_of_norm_is_in_the_table():
    assert tuple(NORMS) == get_args(NormKind)


def test_layernorm_views_equal_torch_layer_norm():
    gain, bias = torch.randn(6), torch.randn(6)
    norm = Norm(kind="layernorm", eps=1e-5, gain=gain, bias=bias)
    x = torch.randn(4, 6) * 3 + 2
    torch.testing.assert_close(rms(x, norm), torch.nn.functional.layer_norm(x, (6,), eps=1e-5))
    torch.testing.assert_close(normed(x, norm), torch.nn.functional.layer_norm(x, (6,), gain, bias, 1e-5))


def test_views_of_bfloat16_are_computed_in_float32():
    norm = Norm(kind="rms", eps=1e-6, gain=torch.ones(640))
    x = (torch.randn(8, 640) * 6000).bfloat16()
    expected = x.double() / x.double().square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(rms(x, norm).double(), expected, rtol=1e-6, atol=1e-7)
