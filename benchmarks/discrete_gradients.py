"""A discrete latent: the gradient of each K-sample loss beside the enumerated one.

z ~ Bernoulli(0.3), x | z ~ N(2 z, 1), x = 1, guide q(z) = Bernoulli(logits=0), K = 2. Every pair
of draws is enumerated, so that the exact gradient of the bound is known. Prints a Markdown table:

    python benchmarks/discrete_gradients.py
"""

import itertools
import math

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import RenyiELBO
from torch import Tensor

import pyro_ext as px

PRIOR, X, PARTICLES = 0.3, 1.0, 2


def _log_w(z: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return log w and log q of each particle."""
    log_q = dist.Bernoulli(logits=logits).log_prob(z)
    log_p = dist.Bernoulli(torch.tensor(PRIOR)).log_prob(z)
    return log_p + dist.Normal(2 * z, 1.0).log_prob(torch.tensor(X)) - log_q, log_q


def enumerated() -> float:
    """Return the exact gradient of the expected bound by the guide's logit."""
    logits = torch.zeros((), requires_grad=True)
    total = torch.zeros(())
    for draws in itertools.product([0.0, 1.0], repeat=PARTICLES):
        log_w, log_q = _log_w(torch.tensor(draws), logits)
        total = total + log_q.sum().exp() * px.bounds.iwae(log_w)
    return float(torch.autograd.grad(total, logits)[0])


def model() -> None:
    """One discrete latent."""
    z = pyro.sample("z", dist.Bernoulli(PRIOR))
    pyro.sample("x", dist.Normal(2 * z, 1.0), obs=torch.tensor(X))


def gradients(loss: pyro.infer.ELBO, repeats: int) -> Tensor:
    """Return independent gradients of the bound that Pyro's interface leaves in ``grad``."""
    logits = torch.zeros((), requires_grad=True)

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("logits", logits)))

    found = []
    with pyro.get_param_store().scope():
        for _ in range(repeats):
            loss.loss_and_grads(model, guide)
            (held,) = (param for _, param in pyro.get_param_store().named_parameters())
            found.append(torch.zeros(()) if held.grad is None else -held.grad.clone())
            held.grad = None
    return torch.stack(found)


def table(repeats: int = 4000) -> dict[str, Tensor]:
    """Return gradients by loss.

    Args:
        repeats: Number of gradients of each loss.
    """
    losses = {
        "`px.IWAE(2, estimator='vimco')`": px.IWAE(PARTICLES, estimator="vimco"),
        "`RenyiELBO(alpha=0, num_particles=2)`": RenyiELBO(
            alpha=0, num_particles=PARTICLES, vectorize_particles=True, max_plate_nesting=0
        ),
    }
    return {name: gradients(loss, repeats) for name, loss in losses.items()}


def main() -> None:
    """Print the table."""
    pyro.set_rng_seed(0)
    print("| | gradient by the guide's logit | standard error |\n| :-- | --: | --: |")
    print(f"| enumerated | {enumerated():.4f} | exact |")
    for name, found in table().items():
        error = found.std() / math.sqrt(len(found))
        print(f"| {name} | {found.mean():.4f} | {error:.4f} |")


if __name__ == "__main__":
    main()
