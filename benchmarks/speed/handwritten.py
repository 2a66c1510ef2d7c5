"""The same steps as somebody who does not use Pyro writes them in torch."""

from collections.abc import Callable
from math import log, pi

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.nn.functional import softplus
from workloads import HIDDEN, LATENT, PIXELS, perceptron

LOG_2PI = log(2 * pi)
Step = Callable[[], float]
Loss = tuple[Callable[[], Tensor], list[Tensor]]


def normal(z: Tensor, loc: Tensor | float, scale: Tensor) -> Tensor:
    return -0.5 * ((z - loc) / scale) ** 2 - scale.log() - 0.5 * LOG_2PI


def trained(loss: Callable[[], Tensor], params: list[Tensor]) -> Step:
    optimizer = torch.optim.Adam(params, lr=1e-3, fused=True)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        optimizer.step()
        return value.item()

    return step


def vae(batch: int, num_particles: int) -> Loss:
    decoder = perceptron(LATENT, HIDDEN, HIDDEN, PIXELS)
    encoder = nn.Sequential(perceptron(PIXELS, HIDDEN, HIDDEN), nn.Softplus())
    head = nn.Linear(HIDDEN, 2 * LATENT)
    x = (torch.rand(batch, PIXELS) < 0.3).float()

    def loss() -> Tensor:
        loc, raw = head(encoder(x)).chunk(2, -1)
        scale = softplus(raw)
        noise = torch.randn(num_particles, batch, LATENT)
        z = loc + scale * noise
        log_q = (-0.5 * noise**2 - scale.log()).sum(-1)
        log_p = (-0.5 * z**2).sum(-1)
        logits = decoder(z)
        log_p = log_p - bce(logits, x.expand_as(logits), reduction="none").sum(-1)
        return -(torch.logsumexp(log_p - log_q, 0) - log(num_particles)).sum()

    modules = (decoder, encoder, head)
    return loss, [p for module in modules for p in module.parameters()]


def eight_schools() -> Loss:
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    loc, raw = nn.Parameter(torch.zeros(10)), nn.Parameter(torch.full((10,), -2.0))
    five, one = torch.tensor(5.0), torch.tensor(1.0)

    def loss() -> Tensor:
        scale = softplus(raw)
        u = loc + scale * torch.randn(10)
        mu, tau, z = u[0], u[1].exp(), u[2:]
        log_q = normal(u, loc, scale).sum() - u[1]
        log_p = normal(mu, 0.0, five) + log(2 / (5 * pi)) - torch.log1p((tau / 5) ** 2)
        log_p = log_p + normal(z, 0.0, one).sum() + normal(y, mu + tau * z, sigma).sum()
        return log_q - log_p

    return loss, [loc, raw]


def logistic() -> Loss:
    x = torch.randn(5_000, 50)
    t = (torch.rand(5_000) < 0.5).float()
    loc, raw = nn.Parameter(torch.zeros(50)), nn.Parameter(torch.full((50,), -2.0))
    unit = nn.Parameter(torch.zeros(50, 50))

    def loss() -> Tensor:
        scale = softplus(raw)
        factor = scale.unsqueeze(-1) * (unit.tril(-1) + torch.eye(50))
        noise = torch.randn(10, 50)
        b = loc + noise @ factor.T
        log_q = (-0.5 * noise**2).sum(-1) - scale.log().sum() - 25 * LOG_2PI
        log_p = (-0.5 * b**2).sum(-1) - 25 * LOG_2PI
        logits = b @ x.T
        log_p = log_p - bce(logits, t.expand_as(logits), reduction="none").sum(-1)
        return (log_q - log_p).mean()

    return loss, [loc, raw, unit]


def local_latents() -> Loss:
    x = torch.randn(10_000)
    loc, raw = nn.Parameter(torch.zeros(10_000)), nn.Parameter(torch.full((10_000,), -2.0))
    one = torch.tensor(1.0)

    def loss() -> Tensor:
        rows = torch.randperm(10_000)[:256]
        m, scale = loc[rows], softplus(raw[rows])
        z = m + scale * torch.randn(256)
        log_q = normal(z, m, scale).sum()
        log_p = normal(z, 0.0, one).sum() + normal(x[rows], z, one).sum()
        return (10_000 / 256) * (log_q - log_p)

    return loss, [loc, raw]


LOSSES: dict[str, Callable[[], Loss]] = {
    "W1": lambda: vae(100, 1),
    "W2": lambda: vae(20, 50),
    "W3": eight_schools,
    "W4": logistic,
    "W5": local_latents,
}


def handwritten(name: str, *, compile: bool = False) -> Step:
    """Return the step of a workload, its loss run by ``torch.compile`` or as it is."""
    loss, params = LOSSES[name]()
    return trained(torch.compile(loss) if compile else loss, params)
