"""What encoders are given, and in which precision π is what they return."""

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_ext as px

X = torch.linspace(-1.0, 2.0, 6)
GUIDES: dict[str, Callable[..., Any]] = {
    "AutoAmortized": px.AutoAmortized,
    "AutoSemiAmortized": px.AutoSemiAmortized,
}
EVERY_GUIDE = pytest.mark.parametrize("build", GUIDES.values(), ids=GUIDES)
Data = namedtuple("Data", ["x", "count"])
NESTED: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "a dict": (lambda x: {"x": x, "name": "six rows"}, lambda data: data["x"]),
    "a tuple": (lambda x: (x, None), lambda data: data[0]),
    "a named tuple": (lambda x: Data(x, 6), lambda data: data.x),
    "a list in a dict": (lambda x: {"all": [x]}, lambda data: data["all"][0]),
}


@EVERY_GUIDE
@pytest.mark.parametrize(("wrap", "inner"), NESTED.values(), ids=NESTED)
def test_nested_data_are_cut_to_the_rows_of_the_batch(
    build: Callable[..., Any], wrap: Callable[[Tensor], Any], inner: Callable[[Any], Tensor]
) -> None:
    seen = []

    def model(data: Any) -> None:
        x = inner(data)
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def encoder(data: Any) -> Tensor:
        seen.append(inner(data))
        return inner(data).unsqueeze(-1)

    guide = build(model, encoder)
    for _ in range(3):
        weights = px.log_weights(model, guide, wrap(X))
        assert torch.equal(seen[-1], weights.model_trace.nodes["x"]["value"])


def two_levels(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mu.sum(-1), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class InSingle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 3, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.float().unsqueeze(-1))


@EVERY_GUIDE
@pytest.mark.parametrize(
    "options",
    [{}, {"family": px.Flow("nsf", context=2)}, {"condition_on_globals": True}],
    ids=["diagonal", "flow", "conditioned"],
)
def test_an_encoder_in_single_precision_of_a_model_in_double(
    build: Callable[..., Any], options: dict[str, Any]
) -> None:
    """The density is in double: draws that are scored again have it to the last digits."""
    guide = build(two_levels, InSingle(), **options)
    loss = px.IWAE(3, estimator="dreg")
    loss.differentiable_loss(two_levels, guide, X).backward()
    assert guide.encoder.linear.weight.grad.abs().sum() > 0
    weights = px.log_weights(two_levels, guide, X, joint=True)
    latents = {name: value[0] for name, value in weights.latents.items()}
    again = guide.log_prob(latents, X)
    torch.testing.assert_close(weights.terms[0].log_q[0], again, rtol=0, atol=1e-10)
