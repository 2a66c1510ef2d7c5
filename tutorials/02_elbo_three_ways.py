# %% [markdown]
# # 2. The ELBO, three ways
#
# One number, three readings:
#
# - log p(x) - KL(q ‖ p(z | x)): how far q is from the posterior;
# - E log p(x | z) - KL(q ‖ p(z)): reconstruction minus rate;
# - E log p(x, z) + H(q): joint plus entropy.
#
# In probabilistic PCA everything is known, so that the three can be computed for *any* normal q
# and compared to the last digit. Then: which losses of deep learning the decoders are, the
# rate-distortion curve that a weight β on the rate traces out, and what happens when the
# posteriors of different data overlap.

# %%
import math
from functools import partial

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from _lesson import Lesson, figure
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_ext as px
from guides.linear_gaussian import LinearGuide, amortized_full_covariance
from models.linear_gaussian import LinearGaussian, data

lesson = Lesson("02_elbo_three_ways", "2. The ELBO, three ways")
model = LinearGaussian.random(num_features=6, latent_dim=2, sigma=0.7)
x = data(50, model=model)

# %% [markdown]
# ## Three readings, one number
#
# q(z | x) = N(A x + c, L Lᵀ) with A, c and L that are nobody's optimum.

# %%
guide = LinearGuide(
    0.2 * torch.randn(2, 6), 0.3 * torch.randn(2), torch.tensor([[0.8, 0.0], [0.5, 0.4]])
)
with torch.no_grad():
    q = dist.MultivariateNormal(x @ guide.slope.T + guide.intercept, scale_tril=guide.scale_tril)
    posterior = dist.MultivariateNormal(*model.posterior(x))
    prior = dist.MultivariateNormal(torch.zeros(2), torch.eye(2))
    kl = torch.distributions.kl_divergence
    residual = x - q.mean @ model.weight.T - model.bias
    spread = torch.einsum("fd,de,fe->", model.weight, q.covariance_matrix[0], model.weight)
    log_2pi = math.log(2 * math.pi)
    variance = model.sigma**2
    squares = (residual.square().sum(-1) + spread) / variance
    reconstruction = -0.5 * (squares + 6 * (log_2pi + variance.log()))
    log_prior = -0.5 * (2 * log_2pi + q.mean.square().sum(-1) + q.covariance_matrix[0].trace())
    ways = {
        "evidence - KL to the posterior": model.log_evidence_per_datum(x) - kl(q, posterior),
        "reconstruction - rate": reconstruction - kl(q, prior),
        "joint + entropy": reconstruction + log_prior + q.entropy(),
    }
values = {name: value.sum().item() for name, value in ways.items()}
first, *others = values
for name in others:
    lesson.equal(f"{name} = {first}", values[name], values[first])

# %% [markdown]
# `px.ELBO` has the three as `form=`: `"mc"` averages log p(x, z) - log q(z), `"kl"` takes the
# rate in closed form, `"entropy"` takes the entropy in closed form. Same expectation, other noise.

# %%
num = lesson.steps(400, 40)
noise: dict[str, float] = {}
for form in ("mc", "kl", "entropy"):
    loss = px.ELBO(num_particles=100, form=form)
    draws = -torch.tensor([loss.loss(model, guide, x) for _ in range(num)])
    se = (draws.std() / math.sqrt(num)).item()
    noise[form] = draws.std().item() * 10  # of one particle
    lesson.equal(f'px.ELBO(form="{form}"), Monte Carlo', draws.mean().item(), values[first], se=se)

# %% [markdown]
# ## Decoders are losses
#
# A Bernoulli decoder's -log p(x | z) is the binary cross-entropy of its logits; a Gaussian
# decoder's is the squared error over 2 s², plus n log(s √2π).

# %%
logits, pixels, real, s = (
    torch.randn(4, 64),
    torch.randint(2, (4, 64)).double(),
    torch.randn(4, 64),
    0.3,
)
bernoulli = -dist.Bernoulli(logits=logits).log_prob(pixels).sum().item()
entropy = F.binary_cross_entropy_with_logits(logits, pixels, reduction="sum").item()
lesson.equal("Bernoulli decoder = binary cross-entropy", bernoulli, entropy)
gaussian = -dist.Normal(logits, s).log_prob(real).sum().item()
squared = F.mse_loss(logits, real, reduction="sum").item() / (2 * s**2)
constant = real.numel() * math.log(s * math.sqrt(2 * math.pi))
lesson.equal("Gaussian decoder = squared error / 2s² + constant", gaussian, squared + constant)

# %% [markdown]
# ## Rate and distortion over β
#
# `px.Annealed(px.ELBO(), β)` weighs the rate by β (β-VAE). With the decoder held, the best q has
# precision I + WᵀW/(β σ²), the posterior at noise β σ², so the whole curve is known; its slope is
# dD/dR = -β. A linear encoder with a full covariance can reach it.


# %%
def tempered(beta: float) -> tuple[float, float]:
    """Return rate and distortion of the best q at β, nats per datum."""
    with torch.no_grad():
        warm = LinearGaussian(model.weight, model.bias, sigma=model.sigma.item() * math.sqrt(beta))
        best = dist.MultivariateNormal(*warm.posterior(x))
        residual = x - best.mean @ model.weight.T - model.bias
        spread = torch.einsum("fd,de,fe->", model.weight, best.covariance_matrix[0], model.weight)
        squares = (residual.square().sum(-1) + spread) / model.sigma**2
        distortion = 0.5 * (squares + 6 * (log_2pi + (model.sigma**2).log()))
        return kl(best, prior).mean().item(), distortion.mean().item()


BETAS = (0.1, 0.3, 1.0, 3.0, 10.0)
fitted: dict[float, px.Rates] = {}
steps = lesson.steps(1200)
for beta in BETAS:
    loss = px.Annealed(px.ELBO(num_particles=8, estimator="stl"), beta)
    found = px.fit(
        model,
        amortized_full_covariance(model),
        loss,
        x,
        partial(torch.optim.Adam, lr=0.03),
        schedule=partial(CosineAnnealingLR, T_max=steps),
        num_steps=steps,
        seed=lesson.seed,
        train="guide",
    )
    fitted[beta] = px.rates(found, num_samples=lesson.steps(2000, 100), seed=1)
    rate, distortion = tempered(beta)
    measured = fitted[beta]
    lesson.say(
        f"β = {beta:4}: rate {measured.rate.value / 50:.3f} (best {rate:.3f}), distortion "
        f"{measured.distortion.value / 50:.3f} (best {distortion:.3f})"
    )
    optimum = distortion + beta * rate
    reached = (measured.distortion.value + beta * measured.rate.value) / 50
    se = (measured.distortion.se + beta * measured.rate.se) / 50
    lesson.equal(
        f"β = {beta}: D + βR of the fit, nats per datum",
        reached,
        optimum,
        se=se,
        tolerance=0.01,
        trained=True,
    )

low, high = tempered(0.99), tempered(1.01)
lesson.equal(
    "slope dD/dR of the curve at β = 1",
    (high[1] - low[1]) / (high[0] - low[0]),
    -1.0,
    tolerance=1e-3,
)

# %% [markdown]
# ## When posteriors overlap
#
# N data, q(z | i) = N(m_i, s²) with means d apart. The best any decoder can do is
# r(i | z) = q(z | i) / Σ_j q(z | j), so that the distortion is the conditional entropy H(i | z):
# 0 where the posteriors are apart, log N where they coincide. The distortion plus the mutual
# information is log N, always: **overlap is the only reason for a reconstruction error**, and the
# rate pays for keeping posteriors apart.


# %%
def overlap(distance: float, num: int = 8, s: float = 0.5) -> tuple[float, float, float, float]:
    """Return rate, distortion, mutual information and neighbours' overlap, by quadrature."""
    means = distance * (torch.arange(num) - (num - 1) / 2)
    at = torch.linspace(-40, 40, 40_001)
    log_q = dist.Normal(means, s).log_prob(at.unsqueeze(-1))
    log_r = log_q.log_softmax(-1)
    width = (at[1] - at[0]).item()
    weight = log_q.exp() * width / num
    distortion = -(weight * log_r).sum().item()
    log_marginal = log_q.logsumexp(-1, keepdim=True) - math.log(num)
    information = (weight * (log_q - log_marginal)).sum().item()
    rate = kl(dist.Normal(means, s), dist.Normal(0.0, 1.0)).mean().item()
    return rate, distortion, information, math.exp(-(distance**2) / (8 * s**2))


distances = torch.linspace(0, 4, 41).tolist()
curves = torch.tensor([overlap(d) for d in distances])
worst = (curves[:, 1] + curves[:, 2] - math.log(8)).abs().max().item()
lesson.holds(
    "distortion + mutual information = log N",
    "0 at every distance",
    f"{worst:.1e} at most",
    ok=worst < 1e-6,
)
lesson.holds(
    "rate ≥ mutual information",
    "at every distance",
    f"least difference {(curves[:, 0] - curves[:, 2]).min():.3f} nats",
    ok=bool((curves[:, 0] >= curves[:, 2]).all()),
)
lesson.equal(
    "posteriors that coincide: distortion is log N",
    curves[0, 1].item(),
    math.log(8),
    tolerance=1e-6,
)

# %%
drawn, (left, middle, right) = figure(3)
names = list(noise)
left.bar(names, [noise[name] for name in names], color=["C0", "C1", "C2"])
left.set(
    ylabel="sd of a one-particle ELBO, nats", title="same mean, other noise: px.ELBO(form=...)"
)
betas = torch.logspace(-1.5, 1.7, 60).tolist()
rates, distortions = zip(*(tempered(b) for b in betas), strict=True)
middle.plot(rates, distortions, "0.4", label="exact curve")
for beta, found in fitted.items():
    spot = found.rate.value / 50, found.distortion.value / 50
    middle.plot(*spot, "o", label=f"β = {beta:g}, fitted")
middle.set(
    xlabel="rate, nats per datum",
    ylabel="distortion, nats per datum",
    title="rate-distortion curve over β",
)
middle.legend(fontsize=8)
for i, name in enumerate(("rate", "distortion", "mutual information")):
    right.plot(distances, curves[:, i], f"C{i}", label=name)
right.plot(distances, curves[:, 3], "k:", label="overlap of neighbours (0 to 1)")
right.axhline(math.log(8), color="0.7", linewidth=1)
right.text(0.05, math.log(8) + 0.1, "log 8", color="0.4", fontsize=8)
right.set(
    xlabel="distance of neighbouring posterior means (s = 0.5)",
    ylabel="nats",
    ylim=(0, 8),
    title="overlap is what costs reconstruction",
)
right.legend(fontsize=8)
lesson.save(drawn)
lesson.finish()
