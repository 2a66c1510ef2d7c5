# %% [markdown]
# # 1. Reparameterization: noise in, a draw of q out
#
# z = μ + S ε with ε ~ N(0, I) is a draw of N(μ, S Sᵀ) for **any** non-singular S: the density
# comes from the change of variables, log q(z) = log N(ε; 0, I) - log |det S|. So a draw is a
# differentiable function of μ and S, and the gradient of an expectation can be computed by
# backprop through one sample of noise. What that costs in variance, and what the alternatives
# cost, is known in closed form for the KL divergence to a standard normal.

# %%
import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from _lesson import Lesson, figure
from torch import Tensor

import pyro_ext as px

lesson = Lesson("01_reparameterization", "1. Reparameterization")

# %% [markdown]
# ## Any non-singular S
#
# A triangle, and the same triangle turned by a rotation R: S R (S R)ᵀ = S Sᵀ. One density, two
# ways to draw from it. `px.FullCovariance("dense")` is the family with such an S.

# %%
DIM = 3
loc, square = torch.randn(DIM), torch.randn(DIM, DIM)
rotation = torch.linalg.qr(torch.randn(DIM, DIM)).Q
noise = torch.randn(1000, DIM)
standard = dist.Normal(0.0, 1.0)


def changed_variables(s: Tensor) -> tuple[Tensor, Tensor]:
    """Return z = μ + S ε and its log density by the change of variables."""
    z = loc + noise @ s.T
    return z, standard.log_prob(noise).sum(-1) - torch.linalg.slogdet(s).logabsdet


normal = dist.MultivariateNormal(loc, square @ square.T)
for name, s in {"S": square, "S R": square @ rotation}.items():
    z, log_q = changed_variables(s)
    worst = (log_q - normal.log_prob(z)).abs().max().item()
    lesson.equal(f"log q of z = μ + {name} ε is that of N(μ, S Sᵀ): largest error", worst, 0.0)

family = px.FullCovariance("dense")
params = family.initial_params(loc, torch.ones(DIM))
params = params + 0.3 * torch.randn_like(params)
q = family.distribution(params, DIM)
z = q.rsample((1000,))
same = dist.MultivariateNormal(q.mean, q.covariance_matrix).log_prob(z)
lesson.equal(
    'px.FullCovariance("dense") has the density of its own mean and covariance: largest error',
    (q.log_prob(z) - same).abs().max().item(),
    0.0,
)

# %% [markdown]
# ## KL to the prior, a sum over dimensions
#
# For independent normals, KL(N(μ, σ²) ‖ N(0, I)) = ½ Σ_d (μ_d² + σ_d² - 1 - log σ_d²).

# %%
means, scales = torch.randn(DIM), torch.rand(DIM) + 0.3
by_hand = 0.5 * (means**2 + scales**2 - 1 - 2 * scales.log()).sum()
independent = dist.Normal(means, scales).to_event(1)
prior = dist.Normal(torch.zeros(DIM), torch.ones(DIM)).to_event(1)
kl = torch.distributions.kl_divergence(independent, prior)
lesson.equal("KL to the prior is ½ Σ (μ² + σ² - 1 - log σ²)", by_hand.item(), kl.item())

# %% [markdown]
# ## Its gradient, from one noise sample
#
# In one dimension the gradient by (μ, σ) is (μ, σ - 1/σ). Three unbiased estimators of it, each
# from one ε:
#
# - **reparam**: backprop through log q(z) - log p(z) at z = μ + σ ε;
# - **stl** (path): the same without the score of q, which has expectation zero;
# - **score** (REINFORCE): no backprop through z at all.
#
# Means and variances are expectations of polynomials in ε, so Gauss-Hermite quadrature gives
# them exactly. The same gradients are taken from `px.ELBO`, on a model without data. (Pyro draws
# a normal by reparameterization unless told otherwise: `has_rsample_(False)`.)


# %%
def one_sample(estimator: str, mu: float, sigma: float, eps: Tensor) -> Tensor:
    """Return the gradient of the KL by (μ, σ) that one ε gives, shape ``(len(eps), 2)``."""
    z = mu + sigma * eps
    if estimator == "score":
        # (log q - log p + 1) ∇ log q; the 1 comes from differentiating log q itself.
        weight = 0.5 * z**2 - 0.5 * eps**2 - math.log(sigma) + 1
        return torch.stack([weight * eps / sigma, weight * (eps**2 - 1) / sigma], -1)
    path = z - eps / sigma if estimator == "stl" else z
    first = path * eps - (0.0 if estimator == "stl" else 1 / sigma)
    return torch.stack([path, first], -1)


def exact(estimator: str, mu: float, sigma: float) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the estimator, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    weight = torch.as_tensor(weights / weights.sum()).unsqueeze(-1)
    values = one_sample(estimator, mu, sigma, torch.as_tensor(nodes))
    mean = (weight * values).sum(0)
    return mean, (weight * (values - mean) ** 2).sum(0).sqrt()


def by_pyro(estimator: str, mu: float, sigma: float, num: int) -> Tensor:
    """Return ``num`` independent gradients of -ELBO = KL: each row has parameters of its own."""

    def model() -> None:
        with pyro.plate("rows", num):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide() -> None:
        mus = pyro.param("mus", torch.full((num,), mu))
        sigmas = pyro.param("sigmas", torch.full((num,), sigma))
        q = dist.Normal(mus, sigmas).has_rsample_(estimator != "score")
        with pyro.plate("rows", num):
            pyro.sample("z", q)

    with pyro.get_param_store().scope():
        loss = px.ELBO(estimator=estimator).differentiable_loss(model, guide)
        params = [param for _, param in pyro.get_param_store().named_parameters()]
        return torch.stack(torch.autograd.grad(loss, params), -1)


MU, ESTIMATORS = 0.5, ("reparam", "stl", "score")
num = lesson.steps(200_000, 20_000)
rows: dict[str, dict[float, Tensor]] = {name: {} for name in ESTIMATORS}
for sigma in (0.3, 0.6, 1.0, 1.5, 2.5):
    for name in ESTIMATORS:
        rows[name][sigma] = by_pyro(name, MU, sigma, num)

for name in ESTIMATORS:
    found, (mean, sd) = rows[name][0.6], exact(name, MU, 0.6)
    closed = torch.tensor([MU, 0.6 - 1 / 0.6])
    lesson.equal(
        f"{name}: quadrature gives the closed-form gradient, largest error",
        (mean - closed).abs().max().item(),
        0.0,
    )
    for i, parameter in enumerate(("μ", "σ")):
        column = found[:, i]
        se = column.std().item() / math.sqrt(num)
        lesson.equal(
            f"{name}: mean of d KL / d{parameter}", column.mean().item(), closed[i], se=se
        )
        centred = (column - closed[i]) ** 2
        lesson.equal(
            f"{name}: variance of d KL / d{parameter}",
            centred.mean().item(),
            sd[i].item() ** 2,
            se=centred.std().item() / math.sqrt(num),
        )

# %% [markdown]
# The path gradient by μ has standard deviation |σ - 1/σ|: zero where q is as wide as the prior.
# At the exact answer, μ = 0 and σ = 1, every single ε gives a zero gradient by both parameters,
# while the other estimators keep their noise. That is why `stl` is the one for the end of a fit.

# %%
at_optimum = by_pyro("stl", 0.0, 1.0, 1000).abs().max().item()
lesson.equal("stl at q = p: largest gradient of 1000 draws", at_optimum, 0.0)
lesson.equal("reparam at q = p: sd by μ", exact("reparam", 0.0, 1.0)[1][0].item(), 1.0)

# %%
drawn, (left, middle, right) = figure(3)
plane = torch.tensor([[1.2, 0.0], [1.0, 0.6]])
angle = torch.tensor(2.0)
turn = torch.stack(
    [torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])]
)
few = torch.randn(250, 2)
for s, name, color in ((plane, "z = S ε, S a triangle", "C0"), (plane @ turn, "z = S R ε", "C1")):
    left.plot(*(few @ s.T).T, ".", color=color, markersize=4, alpha=0.7, label=name)
grid = torch.linspace(-4, 4, 80)
points = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), -1)
density = dist.MultivariateNormal(torch.zeros(2), plane @ plane.T).log_prob(points)
levels = density.max() - torch.tensor([4.5, 2.0, 0.5])
left.contour(grid, grid, density, levels=levels.tolist(), colors="0.3", linewidths=1)
left.set(
    xlabel="z₁", ylabel="z₂", title="same noise, two S, one density", xlim=(-4, 4), ylim=(-4, 4)
)
left.legend(loc="upper left", fontsize=8)
at = torch.linspace(0.25, 2.7, 200)
for axes, i, parameter in ((middle, 0, "μ"), (right, 1, "σ")):
    for color, name in enumerate(ESTIMATORS):
        curve = [exact(name, MU, float(value))[1][i].item() for value in at]
        axes.plot(at, curve, f"C{color}", label=f"{name}, exact")
        dots = {sigma: found[:, i].std().item() for sigma, found in rows[name].items()}
        axes.plot(list(dots), list(dots.values()), f"C{color}o")
    axes.set(xlabel="σ of q", ylabel="standard deviation", yscale="log", ylim=(0.02, 60))
    axes.set_title(
        f"one-sample gradient of KL by {parameter}, μ = {MU} (dots: px.ELBO)", fontsize=9
    )
    axes.legend(fontsize=8)
lesson.save(drawn)
lesson.finish()
