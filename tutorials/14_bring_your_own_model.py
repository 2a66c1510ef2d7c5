# %% [markdown]
# # 14. Bring your own model: radon, from first guide to report
#
# 919 houses in 85 counties of Minnesota; log radon is a regression whose intercept differs between
# counties. How one works: choose a guide, fit it, **read what the diagnostics say**, change what
# they point at, and report. Here each step can be checked: all but two integrals of the model are
# Gaussian, so that quadrature gives the evidence and every moment.
#
# Gelman and Hill (2007), chapter 12.

# %%
import math
from functools import partial
from typing import Any

import torch
from _lesson import Lesson, figure
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_ext as px
from guides.radon import GUIDES
from models import radon

lesson = Lesson("14_bring_your_own_model", "14. Bring your own model")
houses = radon.data()
exact = radon.exact_posterior(houses)
GLOBALS = ("intercept", "uranium", "floor", "tau", "sigma")
lesson.say(
    f"{int(houses.mask.sum())} houses, log evidence {exact.log_evidence:.3f} by quadrature\n"
)

# %% [markdown]
# ## First attempt: independent normals, the model as it is in the book
#
# County intercepts a_j ~ N(α + β u_j, τ²): the centred form.


# %%
def fit(model: Any, guide: Any, num_steps: int, lr: float = 0.03) -> px.Run:
    """Fit with a learning rate that falls to zero."""
    return px.fit(
        model,
        guide,
        px.ELBO(8, estimator="stl"),
        houses,
        partial(torch.optim.Adam, lr=lr),
        schedule=partial(CosineAnnealingLR, T_max=num_steps),
        num_steps=num_steps,
        seed=lesson.seed,
    )


centred = partial(radon.model, centred=True)
apart = radon.model
runs = {"1. mean field, centred": fit(centred, GUIDES["mean-field"](centred), lesson.steps(800))}
first = px.evidence(*runs.values(), num_particles=lesson.steps(1000, 100), num_repeats=4, seed=1)
lesson.say(f"1. mean field, centred\n{first}\n")

# %% [markdown]
# k-hat is above 0.7: these draws cannot be used, weighted or not. The bound lies nats below the
# evidence. What a mean field cannot say is that the intercepts move together with α, β and τ.
#
# ## Second: a full covariance
#
# One normal over all 90 latents, correlations included.

# %%
runs["2. full covariance, centred"] = fit(
    centred, GUIDES["full-covariance"](centred), lesson.steps(1500)
)

# %% [markdown]
# Better by a nat or two, and k-hat still at the limit. What is left is the funnel: how far apart
# the intercepts can be depends on τ, and no normal has a spread that depends on a coordinate.
#
# ## Third: the structure of the model
#
# q(globals) · Π_j q(county j | globals, its houses): non-centred, so that the funnel is gone, with
# the county's part from an encoder of the *set* of its houses (`pyro_ext.nn.SetEncoder`), and
# conditional on the draw of the globals.

# %%
runs["3. set encoder given globals"] = fit(apart, GUIDES["set-encoder"](apart), lesson.steps(1500))

# %% [markdown]
# ## Reading the diagnostics side by side

# %%
found: dict[str, px.Evidence] = {}
draws: dict[str, dict[str, torch.Tensor]] = {}
off: dict[str, float] = {}
ratios: dict[str, list[float]] = {}
head = f"{'guide':<30} {'ELBO':>18} {'k-hat':>6} {'worst mean':>11} {'sd ratios':>13}"
lesson.say(head)
for name, run in runs.items():
    found[name] = px.evidence(run, num_particles=lesson.steps(1000, 100), num_repeats=4, seed=1)
    draws[name] = run.sample(lesson.steps(2000, 200))
    errors = [
        ((draws[name][k].mean() - exact.mean[k]) / exact.sd[k]).abs().item() for k in GLOBALS
    ]
    off[name] = max(errors)
    ratios[name] = [(draws[name][k].std() / exact.sd[k]).item() for k in GLOBALS]
    shape = found[name].k_hat.values.max().item()
    lesson.say(
        f"{name:<30} {found[name].elbo!s:>18} {shape:6.2f} {off[name]:11.2f} "
        f"{min(ratios[name]):6.2f} - {max(ratios[name]):4.2f}"
    )
one, two, three = runs
k_hats = {name: value.k_hat.values.max().item() for name, value in found.items()}
lesson.holds(
    "mean field: k-hat says not to use it",
    "above 0.7",
    f"{k_hats[one]:.2f}",
    ok=k_hats[one] > 0.7,
    trained=True,
)
lesson.holds(
    "and rightly: an sd is far too small",
    "an sd ratio below 0.8",
    f"{min(ratios[one]):.2f}",
    ok=min(ratios[one]) < 0.8,
    trained=True,
)
lesson.holds(
    "the structured guide: k-hat says usable",
    "below 0.7",
    f"{k_hats[three]:.2f}",
    ok=k_hats[three] < 0.7,
    trained=True,
)
for name in runs:
    bound = found[name].elbo
    lesson.holds(
        f"{name}: the ELBO is a lower bound",
        f"at most {exact.log_evidence:.2f}",
        str(bound),
        ok=bound.value < exact.log_evidence + 5 * bound.se,
    )
gain = found[three].elbo.value - found[one].elbo.value
lesson.holds(
    "each fix raises the bound: from first to third",
    "by more than 1 nat",
    f"{gain:.2f}",
    ok=gain > 1,
    trained=True,
)

# %% [markdown]
# ## Report
#
# A k-hat below 0.7 allows importance weights, so the report is of weighted draws: evidence and
# moments, each with the exact value beside it.

# %%
draw = partial(px.log_weights, apart, runs[three].guide, *houses, joint=True)
with torch.no_grad():  # by parts: each draw scores 85 x 116 places of a table
    parts = [draw(num_particles=lesson.steps(500, 100)) for _ in range(lesson.steps(16, 4))]
log_w = torch.cat([part.terms[0].log_w for part in parts])
share, num = log_w.softmax(0), len(log_w)
effective = 1 / share.square().sum().item()
evidence = (log_w.logsumexp(0) - math.log(num)).item()
relative = math.sqrt(max(1 / effective - 1 / num, 0.0))
lesson.equal(
    "log evidence, importance sampling from the third guide",
    evidence,
    exact.log_evidence,
    se=relative,
    tolerance=0.1,
    trained=True,
)
lesson.say(f"\n{'':<10} {'exact':>16} {'guide, weighted':>18}")
for name in GLOBALS:
    value = torch.cat([part.latents[name].flatten() for part in parts])
    mean = (share * value).sum()
    sd = (share * (value - mean) ** 2).sum().sqrt()
    lesson.say(
        f"{name:<10} {exact.mean[name]:8.3f} ± {exact.sd[name]:.3f} {mean:10.3f} ± {sd:.3f}"
    )
    lesson.equal(
        f"{name}: weighted mean, in exact posterior sds from the exact one",
        ((mean - exact.mean[name]) / exact.sd[name]).item(),
        0.0,
        se=1 / math.sqrt(effective),
        tolerance=0.05,
        trained=True,
    )
drop, between = 1 - math.exp(exact.mean["floor"].item()), exact.mean["tau"].item()
lesson.say(f"\nAbove the basement radon is lower by {drop:.0%}; beyond what uranium predicts,")
lesson.say(f"counties differ by ±{between:.2f} in log radon.\n")
with torch.no_grad():
    s = draws[three]
    centre = s["intercept"].flatten()[:, None] + s["uranium"].flatten()[:, None] * houses.u
    a = centre + s["tau"].flatten()[:, None] * s["eta"].reshape(len(centre), -1)
worst = ((a.mean(0) - exact.mean["a"]) / exact.sd["a"]).abs().max().item()
lesson.holds(
    "third guide, unweighted: worst of 85 county intercepts",
    "within 0.5 exact sds",
    f"{worst:.2f}",
    ok=worst < 0.5,
    trained=True,
)

# %%
drawn, (left, middle, right) = figure(3, width=4.8, height=4.2)
left.axhline(exact.log_evidence, color="k", label="log evidence, exact")
for i, name in enumerate(runs):
    left.errorbar(
        [i], [found[name].elbo.value], [5 * found[name].elbo.se], fmt=f"C{i}o", capsize=4
    )
    left.text(
        i + 0.08, found[name].elbo.value, f"k-hat {k_hats[name]:.2f}", va="center", fontsize=9
    )
left.set_xticks(
    range(3), ["mean field,\ncentred", "full covariance,\ncentred", "set encoder\ngiven globals"]
)
left.set(xlim=(-0.4, 2.9), ylabel="ELBO, nats", title="three guides")
left.legend(fontsize=8, loc="lower right")
for i, name in enumerate(runs):
    middle.errorbar(
        [k + 0.2 * (i - 1) for k in range(5)],
        [((draws[name][g].mean() - exact.mean[g]) / exact.sd[g]).item() for g in GLOBALS],
        ratios[name],
        fmt=f"C{i}o",
        capsize=3,
        label=name,
    )
for edge in (-1, 1):
    middle.axhline(edge, color="0.7", linestyle="--", linewidth=1)
middle.axhline(0, color="0.7", linewidth=1)
middle.set_xticks(range(5), GLOBALS)
middle.set(
    ylabel="exact posterior sds (dashed: exact ± 1 sd)",
    ylim=(-3, 4),
    title="means ± sd against quadrature",
)
middle.legend(fontsize=8)
size = houses.mask.sum(1)
raw = (houses.y - exact.mean["floor"] * houses.x).masked_fill(~houses.mask, 0).sum(1) / size
right.plot(
    size,
    raw - (exact.mean["intercept"] + exact.mean["uranium"] * houses.u),
    "x",
    color="0.6",
    label="mean of its own houses",
)
shrunk = exact.mean["a"] - (exact.mean["intercept"] + exact.mean["uranium"] * houses.u)
right.errorbar(
    size,
    a.mean(0) - (exact.mean["intercept"] + exact.mean["uranium"] * houses.u),
    a.std(0),
    fmt="C2o",
    markersize=3,
    linewidth=0.7,
    label="third guide, ± sd",
)
right.plot(size, shrunk, "k.", markersize=2, label="exact mean")
right.set(
    xscale="log",
    xlabel="houses in the county",
    ylabel="intercept - what uranium predicts",
    title="small counties are drawn to the line",
)
right.legend(fontsize=8)
lesson.save(drawn)
lesson.finish()
