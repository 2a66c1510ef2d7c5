from typing import Any

import pytest
import torch
from torch import nn

from pyro_ext.nn import MLP, ConvEncoder


@pytest.mark.parametrize("batch", [(), (5,), (3, 5), (2, 3, 5)])
def test_every_leading_dimension_is_a_batch(batch: tuple[int, ...]) -> None:
    mlp = MLP(4, hidden=(6, 3), out_features=2)
    x = torch.randn(*batch, 4)
    rows = torch.stack([mlp(row) for row in x.reshape(-1, 4)])
    torch.testing.assert_close(mlp(x), rows.reshape(*batch, 2))


def test_equals_the_layers_by_hand() -> None:
    mlp = MLP(4, hidden=(3,), out_features=2, activation=nn.Tanh)
    first, _, last = mlp.layers
    x = torch.randn(5, 4)
    expected = (x @ first.weight.T + first.bias).tanh() @ last.weight.T + last.bias
    torch.testing.assert_close(mlp(x), expected)


def test_without_hidden_layers_it_is_linear() -> None:
    mlp = MLP(4, hidden=(), out_features=2)
    x, y = torch.randn(2, 4)
    torch.testing.assert_close(mlp(x + y) + mlp(0 * x), mlp(x) + mlp(y))
    assert len(mlp.layers) == 1


def test_every_parameter_gets_a_gradient() -> None:
    mlp = MLP(4, hidden=(6, 3), out_features=2)
    mlp(torch.randn(5, 4)).square().sum().backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in mlp.parameters())


def test_state_dict_round_trips() -> None:
    mlp, other = (MLP(4, hidden=(3,), out_features=2) for _ in range(2))
    other.load_state_dict(mlp.state_dict())
    x = torch.randn(5, 4)
    assert torch.equal(mlp(x), other(x))


@pytest.mark.parametrize("shape", [(3,), (5, 3), (4, 5), ()])
def test_wrong_input_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(Exception, match=r"expected input of shape \(\*batch, 4\)|in_features"):
        MLP(4, hidden=(3,), out_features=2)(torch.zeros(shape))


def test_one_width_for_all_layers_is_named() -> None:
    widths: Any = 64
    with pytest.raises(
        TypeError, match=r"MLP: expected hidden .*; got 64\. Write: hidden=\(64,\)"
    ):
        MLP(3, widths, 2)
    with pytest.raises(TypeError, match=r"ConvEncoder: expected channels .*channels=\(64,\)"):
        ConvEncoder((8, 8), channels=widths)


def test_wrong_width_is_named() -> None:
    with pytest.raises(ValueError, match=r"positive widths.*hidden=\(0,\)"):
        MLP(4, hidden=(0,), out_features=2)
