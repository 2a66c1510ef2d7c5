# %% [markdown]
# # 10. Adversarial variational Bayes: a guide that can draw and cannot score
#
# A network on noise is a guide of any shape without a density. The ELBO needs log q(z | x)/p(z),
# which a critic estimates from draws of both (lesson 9): `px.Adversarial`. On four points with two
# latents the optimum is known, log p(x) = -log 4: the posteriors then are quarters of the prior,
# which no Gaussian guide can say, and so it holds the *model* back.
#
# Mescheder, Nowozin and Geiger (2017).

# %%
import math
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from _lesson import Lesson, figure

import pyro_ext as px
from guides.four_points import GUIDES
from models.four_points import OPTIMUM, FourPoints, data

lesson = Lesson(
    "10_adversarial_variational_bayes", "10. Adversarial variational Bayes", dtype=torch.float32
)

# %% [markdown]
# ## The critic's KL, where the truth is known
#
# A normal guide has a density, so that the adversarial estimate of the ELBO can be checked. The
# posterior is narrow and far from the prior: the plain contrast has a hard ratio to learn, the
# **adaptive contrast** compares with the Gaussian of q's own moments and has little left to learn.

# %%
DIM, NOISE = 6, 0.3


def model(x: torch.Tensor) -> None:
    """z ~ N(0, I), x ~ N(z, 0.3² I)."""
    z = pyro.sample("z", dist.Normal(torch.zeros(DIM), torch.ones(DIM)).to_event(1))
    pyro.sample("x", dist.Normal(z, NOISE).to_event(1), obs=x)


x = 1.5 * torch.ones(DIM)
evidence = dist.Normal(0.0, math.sqrt(1 + NOISE**2)).log_prob(x).sum().item()
precision = 1 + 1 / NOISE**2
posterior = dist.Normal(x / NOISE**2 / precision, precision**-0.5).to_event(1)


def guide(x: torch.Tensor) -> None:
    """Return the exact posterior, so that the ELBO is the evidence."""
    pyro.sample("z", posterior)


found: dict[str, px.ratio.RatioEstimate] = {}
for contrast in ("prior", "adaptive"):
    loss = px.Adversarial(256, contrast=contrast, warmup=lesson.steps(500, 20))
    pyro.set_rng_seed(lesson.seed)
    loss.differentiable_loss(model, guide, x)
    with warnings.catch_warnings():  # its doubts are in the estimate, too
        warnings.simplefilter("ignore", px.ratio.RatioWarning)
        found[contrast] = loss.evaluate(model, guide, x, num_steps=lesson.steps(2000, 10))
    lesson.say(f"{contrast}: ELBO {found[contrast]}, exact {evidence:.4f}")
off = {name: abs(value.value - evidence) for name, value in found.items()}
lesson.equal(
    "adaptive contrast: the ELBO of the exact posterior is the evidence",
    found["adaptive"].value,
    evidence,
    se=found["adaptive"].se,
    tolerance=0.1,
    trained=True,
)
lesson.holds(
    "plain contrast: farther off",
    f"by more than {off['adaptive']:.2f} nats",
    f"{off['prior']:.2f}",
    ok=off["prior"] > off["adaptive"],
    trained=True,
)
doubts = found["prior"].doubts
lesson.holds(
    "and says so",
    "doubts about the plain contrast, none about the adaptive one",
    "; ".join(doubts) if doubts else "no doubts",
    ok=bool(doubts) and not found["adaptive"].doubts,
    trained=True,
)

# %% [markdown]
# ## Four points
#
# The same decoder with a Gaussian guide and the ELBO, and with a network on noise. log p(x) is
# exact, by quadrature.

# %%
x = data()
steps = lesson.steps(1500, 5)
values: dict[str, float] = {}
fitted = {}
losses = {
    "gaussian": px.ELBO(num_particles=64),
    "implicit": px.Adversarial(
        96,
        contrast="prior",
        warmup=lesson.steps(300, 5),
        critic_optim=partial(torch.optim.Adam, lr=1e-3),
    ),
}
for name, loss in losses.items():
    pyro.set_rng_seed(lesson.seed)
    decoder, encoder = FourPoints(), GUIDES[name]()
    run = px.fit(
        decoder,
        encoder,
        loss,
        x,
        partial(torch.optim.Adam, lr=1e-3),
        num_steps=steps,
        seed=lesson.seed,
    )
    values[name] = decoder.log_evidence().mean().item()
    fitted[name] = decoder, encoder, run
    lesson.say(
        f"{name}: log p(x) = {values[name]:.4f} (optimum {OPTIMUM:.4f}), {run.seconds:.0f} s"
    )
lesson.holds(
    "no model beats -log 4",
    f"at most {OPTIMUM:.4f}",
    ", ".join(f"{v:.4f}" for v in values.values()),
    ok=max(values.values()) <= OPTIMUM + 1e-4,
)
lesson.holds(
    "the network on noise gets closer to the optimum than the Gaussian",
    f"above {values['gaussian']:.3f}",
    f"{values['implicit']:.3f}",
    ok=values["implicit"] > values["gaussian"],
    trained=True,
)
lesson.holds(
    "and close",
    "within 0.1 of -log 4",
    f"{OPTIMUM - values['implicit']:.3f}",
    ok=OPTIMUM - values["implicit"] < 0.1,
    trained=True,
)

# %% [markdown]
# ## What each guide learned
#
# Colour: the posterior of each point under the decoder, p(i | z). Dots: draws of the guide.

# %%
drawn, axes = figure(3)
span = torch.linspace(-3.5, 3.5, 200)
grid = torch.stack(torch.meshgrid(span, span, indexing="xy"), -1)
for panel, (name, (decoder, encoder, _)) in zip(axes, fitted.items(), strict=False):
    with torch.no_grad():
        log_x = dist.Bernoulli(logits=decoder.net(grid).unsqueeze(-2)).log_prob(x).sum(-1)
        region = log_x.argmax(-1)
        z = torch.stack([encoder(x) for _ in range(400)])
    panel.imshow(
        region, origin="lower", extent=(-3.5, 3.5, -3.5, 3.5), cmap="Pastel1", vmin=0, vmax=8
    )
    for point in range(4):
        panel.plot(*z[:, point].T, ".", markersize=2.5)
    panel.set(xlabel="z₁", ylabel="z₂", xlim=(-3.5, 3.5), ylim=(-3.5, 3.5))
    panel.set_title(
        f"{name} guide: log p(x) = {values[name]:.3f}\n(optimum {OPTIMUM:.3f})", fontsize=10
    )
names = list(found)
axes[2].axhline(0, color="k", linewidth=1)
for i, name in enumerate(names):
    error, se = found[name].value - evidence, found[name].se
    axes[2].errorbar([i], [error], [5 * se], fmt="o", color=("C3", "C0")[i], capsize=5)
    axes[2].text(i + 0.08, error, f"{error:+.2f}", va="center")
axes[2].set_xticks(range(len(names)), names)
axes[2].set(xlim=(-0.5, 1.6), xlabel="contrast", ylabel="estimated ELBO - exact ELBO, nats")
axes[2].set_title(f"narrow posterior, D = {DIM} (bars: 5 se of the draws)", fontsize=10)
lesson.save(drawn)
lesson.finish()
