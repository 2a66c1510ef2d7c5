# %% [markdown]
# # 9. Density ratios: what a discriminator knows
#
# The best discriminator D between samples of f1 and of f0 has logit log f1/f0. So
#
# - f1 = f0 · D/(1 - D): a known density and a classifier give an unknown density;
# - its logistic loss is the Jensen-Shannon divergence, and other losses of the same critic bound
#   the KL divergence (NWJ, Donsker-Varadhan, InfoNCE);
# - where the supports do not overlap, the divergence says "different" and nothing about how far.
#
# Sugiyama et al. (2012); Nguyen, Wainwright and Jordan (2010); Poole et al. (2019); Rhodes et al.
# (2020).

# %%
import math
import warnings
from functools import partial

import torch
from _lesson import Lesson, figure
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal

import pyro_ext as px
from benchmarks.ratios import exact_critic

lesson = Lesson("09_density_ratios", "9. Density ratios")

# %% [markdown]
# ## A density from a classifier
#
# f1 is a mixture of two normals, f0 a wide normal. A network is trained to tell their samples
# apart, and never sees a density.

# %%
f0 = Normal(0.0, 2.5)
f1 = MixtureSameFamily(
    Categorical(torch.tensor([0.3, 0.7])),
    Normal(torch.tensor([-2.0, 1.5]), torch.tensor([0.5, 0.9])),
)
at = torch.linspace(-15, 15, 6001).unsqueeze(-1)
width = 30 / 6000
log_f0, log_f1 = f0.log_prob(at[:, 0]), f1.log_prob(at[:, 0])
log_r = log_f1 - log_f0
kl = (log_f1.exp() * log_r).sum().item() * width
middle_density = torch.logaddexp(log_f0, log_f1) - math.log(2)
js = (
    0.5
    * (
        (log_f1.exp() * (log_f1 - middle_density)).sum()
        + (log_f0.exp() * (log_f0 - middle_density)).sum()
    ).item()
    * width
)

ratio = px.ratio.DensityRatio(px.ratio.MLPCritic(1, hidden=(64, 64)))
ratio.fit(
    lambda n: f1.sample((n, 1)),
    lambda n: f0.sample((n, 1)),
    num_steps=lesson.steps(2000, 20),
    batch_size=512,
    num_held_out=lesson.steps(100_000, 2000),
    seed=lesson.seed,
)
with torch.no_grad():
    found = ratio.density(at, log_f0)
error = 0.5 * (found.exp() - log_f1.exp()).abs().sum().item() * width
lesson.holds(
    "f1 = f0 D/(1 - D): total variation to the true density",
    "below 0.03",
    f"{error:.4f}",
    ok=error < 0.03,
    trained=True,
)
learned_js, learned_kl = ratio.js(), ratio.kl()
lesson.equal(
    "JSD from the discriminator's loss",
    learned_js.value,
    js,
    se=learned_js.se,
    tolerance=0.005,
    trained=True,
)
lesson.equal(
    "KL(f1 ‖ f0) from its logits",
    learned_kl.value,
    kl,
    se=learned_kl.se,
    tolerance=0.02,
    trained=True,
)

# %% [markdown]
# ## Bounds at the best critic, and at a worse one
#
# At T = log f1/f0 all three are tight. At any other T they lie below, and DV never below NWJ.

# %%
num = lesson.steps(400_000, 20_000)
x1, x0 = f1.sample((num,)), f0.sample((num,))


def exact(x: Tensor) -> Tensor:
    """Return log f1(x)/f0(x)."""
    return f1.log_prob(x) - f0.log_prob(x)


t1, t0 = exact(x1), exact(x0)
se_js = (
    ((torch.nn.functional.softplus(-t1).var() + torch.nn.functional.softplus(t0).var()) / 4 / num)
    .sqrt()
    .item()
)
lesson.equal("jsd(T*) is the Jensen-Shannon divergence", px.ratio.jsd(t1, t0).item(), js, se=se_js)
se_nwj = ((t1.var() + t0.exp().var()) / num).sqrt().item()
lesson.equal(
    "nwj(T* + 1) is the KL divergence", px.ratio.nwj(t1 + 1, t0 + 1).item(), kl, se=se_nwj
)
lesson.equal("dv(T*) is the KL divergence", px.ratio.dv(t1, t0).item(), kl, se=se_nwj)
shrunk: dict[float, tuple[float, float]] = {}
for factor in (0.25, 0.5, 0.75, 1.0, 1.25):
    shrunk[factor] = (
        px.ratio.nwj(factor * t1 + 1, factor * t0 + 1).item(),
        px.ratio.dv(factor * t1, factor * t0).item(),
    )
below = all(nwj <= dv + 1e-9 and dv <= kl + 5 * se_nwj for nwj, dv in shrunk.values())
lesson.holds("NWJ ≤ DV ≤ KL at multiples of T*", "at all of 5", "yes" if below else "no", ok=below)

# %% [markdown]
# ## How much information 64 pairs can show
#
# Twenty pairs of correlated normals whose mutual information is known, and the *exact* critic, on
# batches of 64. InfoNCE cannot exceed log 64, the average of NWJ is right with a variance that
# grows as exp(2 MI), and DV on a batch is biased upwards.

# %%
information = (2, 4, 6, 8)
repeats = lesson.steps(1000, 50)
batches = {mi: exact_critic(mi, repeats=repeats) for mi in information}
top = batches[8]["infonce"]
lesson.holds(
    "InfoNCE stays below log 64",
    f"{math.log(64):.3f}",
    f"{top[0]:.3f} at a mutual information of 8",
    ok=top[0] < math.log(64),
)
two = batches[2]
lesson.equal(
    "NWJ at a mutual information of 2", two["nwj"][0], 2.0, se=two["nwj"][1] / math.sqrt(repeats)
)
high, error = batches[8]["dv"][0], batches[8]["dv"][1] / math.sqrt(repeats)
lesson.holds(
    "DV on a batch lies above a mutual information of 8",
    "above 8",
    f"{high:.2f} ± {error:.2f}",
    ok=high > 8 + 2 * error,
    trained=True,
)

# %% [markdown]
# ## Disjoint supports
#
# Two uniform distributions θ apart. The divergence is known: θ log 2 up to θ = 1, log 2 from then
# on, whatever the distance. The critic separates them, its samples cannot say how far apart they
# are, and `kl` warns. A chain of ratios has overlapping neighbours (`px.ratio.TelescopingRatio`).

# %%
shifts, found_js = (0.25, 0.5, 1.5, 3.0), []
for shift in shifts:
    uniform = px.ratio.DensityRatio(
        px.ratio.MLPCritic(1, hidden=(64, 64)), optim=partial(torch.optim.Adam, lr=0.01)
    )
    uniform.fit(
        lambda n: torch.rand(n, 1),
        lambda n, shift=shift: shift + torch.rand(n, 1),
        num_steps=lesson.steps(1000, 5),
        num_held_out=5000,
        seed=lesson.seed,
    )
    js_of = uniform.js()
    found_js.append(js_of.value)
    expected = min(shift, 1.0) * math.log(2)
    lesson.equal(
        f"uniforms {shift} apart: JSD",
        js_of.value,
        expected,
        se=js_of.se,
        tolerance=0.015,
        trained=True,
    )
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    uniform.kl()
warned = any(issubclass(w.category, px.ratio.RatioWarning) for w in caught)
lesson.holds(
    "kl warns where samples do not overlap",
    "RatioWarning",
    "RatioWarning" if warned else "nothing",
    ok=warned,
    trained=True,
)

adam = partial(torch.optim.Adam, lr=0.1)
distances = (1.0, 2.0, 4.0, 6.0)
estimates: dict[str, list[float]] = {"one critic": [], "chain of 10": []}
for distance in distances:
    make = partial(px.ratio.MLPCritic, 1, hidden=(32,))
    pair = {
        "one critic": px.ratio.DensityRatio(make(), optim=partial(torch.optim.Adam, lr=0.01)),
        "chain of 10": px.ratio.TelescopingRatio(
            partial(px.ratio.QuadraticCritic, 1), num_ratios=10, optim=adam
        ),
    }
    for name, made in pair.items():
        far = Normal(distance, 1.0)
        made.fit(
            lambda n, far=far: far.sample((n, 1)),
            lambda n: torch.randn(n, 1),
            num_steps=lesson.steps(1500, 5),
            seed=lesson.seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", px.ratio.RatioWarning)
            estimates[name].append(made.kl().value)
chain, single = estimates["chain of 10"][-1], estimates["one critic"][-1]
lesson.holds(
    "normals 6 apart, KL = 18: a chain of ratios is within 10 %",
    "16.2 to 19.8",
    f"{chain:.1f}",
    ok=abs(chain - 18) < 1.8,
    trained=True,
)
lesson.holds(
    "and closer than one critic",
    f"error above {abs(chain - 18):.1f} nats",
    f"{abs(single - 18):.1f}",
    ok=abs(single - 18) > abs(chain - 18),
    trained=True,
)

# %%
drawn, axes = figure(4, width=3.9)
axes[0].plot(at, log_f1.exp(), "k", label="f1")
axes[0].plot(at, log_f0.exp(), "0.6", label="f0")
axes[0].plot(at, found.exp(), "C1--", label="f0 D/(1 - D)")
axes[0].set(
    xlim=(-6, 6),
    xlabel="x",
    ylabel="density",
    title=f"a density from a classifier\nKL {learned_kl.value:.3f} (exact {kl:.3f})",
)
axes[0].legend(fontsize=8)
for i, name in enumerate(("infonce", "nwj", "dv")):
    means = [batches[mi][name][0] for mi in information]
    sds = [batches[mi][name][1] for mi in information]
    axes[1].errorbar(
        [mi + 0.12 * (i - 1) for mi in information],
        means,
        sds,
        fmt=f"C{i}o-",
        label=f"{name} (bars: sd of a batch)",
    )
axes[1].plot(information, information, "k--", label="truth")
axes[1].axhline(math.log(64), color="0.7", label="log 64")
axes[1].set(
    xlabel="mutual information, nats", ylabel="bound", title="exact critic, batches of 64 pairs"
)
axes[1].legend(fontsize=7)
line = torch.linspace(0, 3.2, 50)
axes[2].plot(line, line.clamp(max=1) * math.log(2), "k", label="exact")
axes[2].plot(shifts, found_js, "C1o", label="from the discriminator")
axes[2].set(
    xlabel="distance of two uniforms",
    ylabel="Jensen-Shannon divergence",
    title="disjoint supports: log 2, and no more",
)
axes[2].legend(fontsize=8)
axes[3].plot(distances, [d**2 / 2 for d in distances], "k--", label="exact, d²/2")
for i, (name, values) in enumerate(estimates.items()):
    axes[3].plot(distances, values, f"C{i}o-", label=name)
axes[3].set(
    xlabel="distance of two normals", ylabel="KL, nats", title="far apart: a chain of ratios"
)
axes[3].legend(fontsize=8)
lesson.save(drawn)
lesson.finish()
