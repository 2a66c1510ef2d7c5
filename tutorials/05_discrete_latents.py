# %% [markdown]
# # 5. Discrete latents: no path to differentiate
#
# A draw of a Bernoulli is a step function of its logit: the derivative is zero wherever it exists,
# and reparameterization has nothing to say. What is left:
#
# - **enumeration**: the exact sum, where there are few configurations;
# - **REINFORCE**: the score function, unbiased and noisy;
# - **leave-one-out**: the other particles as a baseline, `px.ELBO(K, estimator="score")`;
# - **VIMCO**: the same for the K-sample bound, `px.IWAE(K, estimator="vimco")`;
# - **relaxation**: a continuous stand-in, with little noise and the wrong mean.
#
# Three binary causes have 8 configurations, so that mean *and variance* of every estimator are
# sums over all tuples of draws. Williams (1992); Kool et al. (2019); Mnih and Rezende (2016).

# %%
import itertools
import math
from functools import partial

import pyro.distributions as dist
import torch
from _lesson import Lesson, figure
from torch import Tensor

import pyro_ext as px
from guides.binary_latents import GUIDES
from models.binary_latents import BinaryLatents, data

lesson = Lesson("05_discrete_latents", "5. Discrete latents")
model = BinaryLatents()
PARTICLES = 3
x_one = data(1, model=model)
logits = torch.tensor([0.5, -0.5, 0.2])


# %% [markdown]
# ## Every tuple of draws
#
# The gradient by the logits that a tuple of K draws gives, with log w_k its log weights and
# s_k = z_k - σ(logits) the scores. (log w contains -log q, whose own derivative has mean zero and
# is part of each estimator.)


# %%
def estimate(name: str, log_w: Tensor, score: Tensor) -> Tensor:
    """Return the gradient that K draws give, from ``(tuples, K)`` and ``(tuples, K, D)``."""
    num = log_w.shape[1]
    if name == "vimco":
        bound = log_w.logsumexp(1, keepdim=True) - math.log(num)
        others = (log_w.sum(1, keepdim=True) - log_w) / (num - 1)
        same = torch.eye(num, dtype=torch.bool)
        without = torch.where(same, others.unsqueeze(1), log_w.unsqueeze(1)).logsumexp(-1)
        signal = bound - (without - math.log(num)) - log_w.softmax(1)
        return (signal.unsqueeze(-1) * score).sum(1)
    baseline = (log_w.sum(1, keepdim=True) - log_w) / max(num - 1, 1)
    signal = log_w - (baseline if num > 1 else 0.0) - 1
    return (signal.unsqueeze(-1) * score).mean(1)


def enumerated(name: str, num: int) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the estimator with K draws, over all tuples."""
    states = model.configurations()
    tuples = torch.tensor(list(itertools.product(range(len(states)), repeat=num)))
    z = states[tuples]
    log_q = dist.Bernoulli(logits=logits).log_prob(z).sum(-1)
    values = estimate(name, model.log_joint(x_one[0], z) - log_q, z - logits.sigmoid())
    weight = log_q.sum(1, keepdim=True).exp()
    mean = (weight * values).sum(0)
    return mean, (weight * (values - mean) ** 2).sum(0).sqrt()


free = logits.clone().unsqueeze(0).requires_grad_()
(exact,) = torch.autograd.grad(model.elbo_per_datum(x_one, free).sum(), free)
LOSSES = {
    "REINFORCE, 1 draw": ("score", 1, px.ELBO(estimator="score")),
    "leave-one-out, 3 draws": ("score", PARTICLES, px.ELBO(PARTICLES, estimator="score")),
    "VIMCO, 3 draws": ("vimco", PARTICLES, px.IWAE(PARTICLES, estimator="vimco")),
}
for name, (kind, num, _) in LOSSES.items():
    mean, _ = enumerated(kind, num)
    if kind == "score":
        error = (mean - exact[0]).abs().max().item()
        lesson.equal(f"{name}: unbiased for the ELBO, largest error over all tuples", error, 0.0)

# %% [markdown]
# ## The same from the losses
#
# Each row of the guide is a replicate with logits of its own: one backward pass gives thousands
# of independent gradients.

# %%
replicates = lesson.steps(100_000, 10_000)
x_rows = x_one.expand(replicates, -1)
guide = GUIDES["per-datapoint"](model, replicates)
with torch.no_grad():
    guide.logits.copy_(logits.expand(replicates, -1))
spread: dict[str, float] = {"enumeration": 0.0}
for name, (kind, num, loss) in LOSSES.items():
    (found,) = torch.autograd.grad(-loss.differentiable_loss(model, guide, x_rows), guide.logits)
    mean, sd = enumerated(kind, num)
    spread[name] = sd.norm().item()
    se = found.std(0) / math.sqrt(replicates)
    worst = ((found.mean(0) - mean) / se).abs().argmax()
    lesson.equal(
        f"{name}: mean gradient, worst of 3 logits",
        found.mean(0)[worst].item(),
        mean[worst].item(),
        se=se[worst].item(),
    )
    squares = (found - mean).square().sum(-1)
    lesson.equal(
        f"{name}: variance, sum over logits",
        squares.mean().item(),
        sd.square().sum().item(),
        se=(squares.std() / math.sqrt(replicates)).item(),
    )

small = GUIDES["per-datapoint"](model, 1)
with torch.no_grad():
    small.logits.copy_(logits.unsqueeze(0))


try:
    px.ELBO(PARTICLES, estimator="reparam").loss_and_grads(model, small, x_one)
    answer = "no error"
except ValueError as error:
    answer = str(error)
lesson.holds(
    "reparameterization is refused, with what to write",
    "ValueError that names the site",
    answer,
    ok="'z'" in answer,
)

# %% [markdown]
# ## Relaxation: the wrong mean
#
# The concrete distribution at temperature τ: reparameterized, and a gradient of something else.


# %%
def relaxed(temperature: float, num: int) -> Tensor:
    """Return gradients of the ELBO with log p and log q evaluated at relaxed draws."""
    rows = logits.expand(num, -1).clone().requires_grad_()
    q = torch.distributions.RelaxedBernoulli(torch.tensor(temperature), logits=rows)
    z = q.rsample()
    prior = (z * math.log(model.rho) + (1 - z) * math.log(1 - model.rho)).sum(-1)
    noise = dist.Normal(z @ model.weight.T, model.sigma).log_prob(x_one[0]).sum(-1)
    probs = rows.sigmoid()
    entropy = -(probs * probs.log() + (1 - probs) * (1 - probs).log()).sum(-1)
    return torch.autograd.grad((prior + noise + entropy).sum(), rows)[0]


bias: dict[float, float] = {}
noise: dict[float, float] = {}
for temperature in (0.1, 0.3, 1.0, 3.0):
    found = relaxed(temperature, replicates)
    bias[temperature] = (found.mean(0) - exact[0]).norm().item()
    noise[temperature] = found.std(0).norm().item()
    if temperature == 1.0:
        se = (found.std(0).norm() / math.sqrt(replicates)).item()
lesson.holds(
    "relaxation at temperature 1 is biased",
    "by more than 5 standard errors",
    f"|bias| {bias[1.0]:.3f} ± {se:.1g}, of a gradient of length {exact.norm():.3f}",
    ok=bias[1.0] > 5 * se,
)
order = spread["REINFORCE, 1 draw"] ** 2 / PARTICLES > spread["leave-one-out, 3 draws"] ** 2
lesson.holds(
    "leave-one-out beats three draws of REINFORCE",
    f"variance below {spread['REINFORCE, 1 draw'] ** 2 / PARTICLES:.3f}",
    f"{spread['leave-one-out, 3 draws'] ** 2:.3f}",
    ok=order,
)

# %% [markdown]
# ## What it means for a fit
#
# 30 data, logits of their own for each, the exact ELBO after every few steps. The best independent
# Bernoullis come from the enumerated gradient.

# %%
x = data(30, model=model)
steps, every = lesson.steps(400, 4), lesson.steps(20, 2)


def best_elbo() -> float:
    """Ascend the enumerated ELBO to its optimum."""
    free = torch.zeros(30, 3, requires_grad=True)
    lbfgs = torch.optim.LBFGS([free], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        lbfgs.zero_grad()
        loss = -model.elbo_per_datum(x, free).sum()
        loss.backward()
        return loss

    lbfgs.step(closure)
    return model.elbo_per_datum(x, free).mean().item()


optimum, evidence = best_elbo(), model.log_evidence_per_datum(x).mean().item()
curves: dict[str, list[float]] = {}
fits = {name: loss for name, (kind, _, loss) in LOSSES.items()}
for name, loss in fits.items():
    guide = GUIDES["per-datapoint"](model, 30)
    curves[name] = [model.elbo_per_datum(x, guide.logits).mean().item()]
    optim = partial(torch.optim.Adam, lr=0.1)
    params = optim(list(guide.parameters()))
    for step in range(steps):
        params.zero_grad()
        loss.loss_and_grads(model, guide, x)
        params.step()
        if (step + 1) % every == 0:
            curves[name].append(model.elbo_per_datum(x, guide.logits).mean().item())
    lesson.say(
        f"{name}: ELBO {curves[name][-1]:.4f} (best {optimum:.4f}, evidence {evidence:.4f})"
    )
left_out, reinforce = (curves[n][-1] for n in ("leave-one-out, 3 draws", "REINFORCE, 1 draw"))
lesson.equal(
    "leave-one-out reaches the best ELBO, nats per datum",
    left_out,
    optimum,
    tolerance=0.05,
    trained=True,
)
lesson.holds(
    "REINFORCE is behind after the same number of steps",
    f"below {left_out:.3f}",
    f"{reinforce:.3f}",
    ok=reinforce < left_out,
    trained=True,
)

# %%
drawn, (left, middle, right) = figure(3)
names = list(spread)
left.barh(names[::-1], [spread[n] for n in names][::-1], color="C0")
left.axvline(exact.norm().item(), color="k", linestyle="--", label="length of the exact gradient")
left.set(xlabel="standard deviation of the gradient, all tuples", title="noise")
left.legend(fontsize=8)
taus = list(bias)
middle.loglog(taus, [bias[t] for t in taus], "o-", label="relaxed: |bias|")
middle.loglog(taus, [noise[t] for t in taus], "s-", label="relaxed: standard deviation")
middle.axhline(
    spread["leave-one-out, 3 draws"],
    color="k",
    linestyle="--",
    label="leave-one-out: sd (no bias)",
)
middle.set(xlabel="temperature", title="relaxation trades noise for bias")
middle.legend(fontsize=8)
for name, curve in curves.items():
    right.plot(every * torch.arange(len(curve)), curve, label=name)
right.axhline(optimum, color="k", linestyle="--", label="best independent Bernoullis")
right.axhline(evidence, color="0.6", label="log p(x)")
right.set(xlabel="step", ylabel="exact ELBO, nats per datum", title="30 data")
right.legend(fontsize=8)
lesson.save(drawn)
lesson.finish()
