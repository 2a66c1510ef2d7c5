# %% [markdown]
# # 12. Dropout and weight decay are one thing, in linear regression
#
# Each entry of X is kept with probability p. Averaged over the masks R,
#
# E_R ‖y - (X⊙R) w‖² = ‖y - p X w‖² + p (1 - p) ‖Γ w‖², with Γ² = diag(XᵀX).
#
# So dropout is ridge regression of w̃ = p w with coefficient (1 - p)/p in units of each feature's
# own length: w̃ = (XᵀX + (1 - p)/p Γ²)⁻¹ Xᵀy. Dropout as it is implemented today divides by p
# ("inverted dropout"), so that its weights are w̃ themselves. A Bayesian reads w̃ as the mean of a
# posterior with a normal prior for each feature, and a guide can fit that.
#
# Srivastava et al. (2014), section 9.1; Wager, Wang and Liang (2013).

# %%
import math
from functools import partial

import torch
from _lesson import Lesson, figure
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_ext as px
from guides.dropout_regression import GUIDES
from models import dropout_regression as dropout

lesson = Lesson("12_dropout_and_weight_decay", "12. Dropout and weight decay")
x, y = dropout.data()
KEEP, SIGMA = 0.6, 0.7

# %% [markdown]
# ## The identity
#
# For any w, not only for the best one: exactly, and by masks.

# %%
w = torch.randn(x.shape[1])
exact = dropout.penalized_loss(x, y, w, keep=KEEP).item()
expected = dropout.dropout_loss(x, y, w, keep=KEEP).item()
lesson.equal("E_R‖y - (X⊙R)w‖² = ‖y - pXw‖² + p(1-p)‖Γw‖²", expected, exact)
masked = dropout.dropout_loss_by_masks(x, y, w, keep=KEEP, num_masks=lesson.steps(4000, 400))
se = (masked.std() / math.sqrt(len(masked))).item()
lesson.equal("the same by Monte Carlo over masks", masked.mean().item(), exact, se=se)

# %% [markdown]
# ## Both closed forms, by gradient descent
#
# Full-batch descent with fresh masks at every step, with a step size that falls, is a stochastic
# approximation of the minimum. One run without rescaling, one with inverted dropout.


# %%
def descend(*, inverted: bool, num_steps: int) -> Tensor:
    """Fit w under fresh masks; the mean of the last half of the path."""
    lengths = x.square().mean(0).sqrt()
    w = torch.zeros_like(lengths, requires_grad=True)  # in units of the feature's length
    optim = torch.optim.SGD([w], lr=0.2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optim, lambda t: (1 + t / 50) ** -0.7)
    total, num = torch.zeros_like(lengths), 0
    for step in range(num_steps):
        mask = torch.bernoulli(torch.full_like(x, KEEP)) / (KEEP if inverted else 1.0)
        loss = (y - (x / lengths * mask) @ w).square().mean()
        optim.zero_grad()
        loss.backward()
        optim.step()
        schedule.step()
        if step >= num_steps // 2:
            total, num = total + w.detach(), num + 1
    return total / num / lengths


tilde = dropout.posterior(x, y, keep=KEEP)[0]
scale = x.square().mean(0).sqrt()
found: dict[str, Tensor] = {}
num_seeds, num_steps = lesson.steps(8, 2), lesson.steps(8000, 50)
for name, inverted, best in (("plain", False, tilde / KEEP), ("inverted", True, tilde)):
    runs = torch.stack([descend(inverted=inverted, num_steps=num_steps) for _ in range(num_seeds)])
    error, se = (runs.mean(0) - best) * scale, runs.std(0) * scale / math.sqrt(num_seeds)
    found[name] = runs.mean(0)
    worst = error.abs().max().item()
    lesson.equal(
        f"{name} dropout by gradient descent: largest error of a standardized weight",
        worst,
        0.0,
        se=se.max().item(),
        tolerance=0.005,
        trained=True,
    )
reference = tilde / KEEP
gradient_at = torch.autograd.functional.jacobian(
    lambda w: dropout.dropout_loss(x, y, w, keep=KEEP), reference
)
lesson.equal(
    "gradient of the expected loss at w̃/p: largest entry", gradient_at.abs().max().item(), 0.0,
    tolerance=1e-6,
)  # fmt: skip

# %% [markdown]
# ## The Bayesian reading, fitted
#
# `px.fit` on the model w_j ~ N(0, σ²/(λ Γ_j²)), y ~ N(Xw, σ²): the mean of q is the dropout
# solution, for a full covariance and for independent normals (whose mean is right, and whose
# variances are too small).

# %%
arguments = {"keep": KEEP, "sigma": SIGMA}
model = partial(dropout.model, **arguments)
mean, covariance = dropout.posterior(x, y, **arguments)
fitted: dict[str, Tensor] = {}
widths: dict[str, Tensor] = {}
for name, make in GUIDES.items():
    steps = lesson.steps(4000)
    run = px.fit(
        model,
        make(model),
        px.ELBO(num_particles=16, estimator="stl"),
        (x, y),
        partial(torch.optim.Adam, lr=0.02),
        schedule=partial(CosineAnnealingLR, T_max=steps),
        num_steps=steps,
        seed=lesson.seed,
    )
    posterior = run.guide.get_posterior(x, y)
    fitted[name], widths[name] = posterior.mean.detach(), posterior.variance.detach().sqrt()
    off = ((fitted[name] - mean) / covariance.diagonal().sqrt()).abs().max().item()
    lesson.equal(
        f"{name} guide: mean is p w of dropout, largest error in posterior sd",
        off,
        0.0,
        tolerance=0.05,
        trained=True,
    )
full = (widths["full-covariance"] / covariance.diagonal().sqrt() - 1).abs().max().item()
lesson.equal(
    "full covariance: largest relative error of an sd", full, 0.0, tolerance=0.02, trained=True
)
precision = torch.linalg.inv(covariance).diagonal()
narrow = (widths["mean-field"] * precision.sqrt() - 1).abs().max().item()
lesson.equal(
    "mean field: sd is 1/√precision, largest relative error",
    narrow,
    0.0,
    tolerance=0.02,
    trained=True,
)

# %% [markdown]
# ## Why Γ matters: units
#
# Measure the third feature (body mass index) in other units. The prediction of dropout stays what
# it was; that of plain ridge regression changes.

# %%
units = torch.ones(x.shape[1])
units[2] = 10.0
after = (x * units) @ dropout.posterior(x * units, y, keep=KEEP)[0]
lesson.equal(
    "dropout does not care for units: largest change of a prediction",
    (after - x @ tilde).abs().max().item(),
    0.0,
)


def ridge(features: Tensor) -> Tensor:
    """Return the predictions of plain ridge regression with the mean Γ² as coefficient."""
    penalty = (1 - KEEP) / KEEP * x.square().sum(0).mean() * torch.eye(x.shape[1])
    return features @ torch.linalg.solve(features.T @ features + penalty, features.T @ y)


change = (ridge(x * units) - ridge(x)).abs().max().item()
lesson.holds(
    "plain ridge does: largest change of a prediction",
    "above 0.1 sd of y",
    f"{change:.3f}",
    ok=change > 0.1,
)

# %%
drawn, (left, middle, right) = figure(3)
keeps = torch.linspace(0.02, 0.999, 150)
paths = torch.stack([dropout.posterior(x, y, keep=float(p))[0] * scale for p in keeps])
left.plot(keeps, paths)
left.plot(
    [KEEP] * x.shape[1], found["inverted"] * scale, "k.", label="gradient descent with masks"
)
left.set(
    xlabel="probability p to keep",
    ylabel="standardized weight p w",
    title="closed form, and dropout itself",
)
left.legend(fontsize=8)
sd = covariance.diagonal().sqrt()
order = torch.arange(x.shape[1])
middle.axhline(0, color="0.8")
for shift, (name, style) in enumerate({"full-covariance": "C0o", "mean-field": "C1s"}.items()):
    middle.errorbar(
        order + 0.25 * (shift + 1),
        (fitted[name] - mean) / sd,
        widths[name] / sd,
        fmt=style,
        label=f"{name} guide",
    )
middle.errorbar(order, 0 * mean, torch.ones_like(sd), fmt="k_", label="exact posterior")
middle.set(
    xlabel="feature",
    ylabel="posterior sd from p w of dropout",
    ylim=(-1.8, 2.6),
    title="the Bayesian reading, fitted",
)
middle.legend(fontsize=8)
right.hist(masked.numpy(), bins=40, color="C0", alpha=0.7, label="one mask")
right.axvline(exact, color="k", label="‖y-pXw‖² + p(1-p)‖Γw‖²")
right.axvline(masked.mean().item(), color="C1", linestyle="--", label="mean over masks")
right.set(xlabel="‖y - (X⊙R)w‖², any w", ylabel="number of masks", title="the expected loss")
right.legend(fontsize=8)
lesson.save(drawn)
lesson.finish()
