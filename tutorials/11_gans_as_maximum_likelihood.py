# %% [markdown]
# # 11. GANs: which objective, and whether the game ends
#
# The critic at its best knows p_data/p_gen (lesson 9). What the generator does with that decides
# what it minimizes: E log(1 - D) descends the Jensen-Shannon divergence, -E D/(1 - D) has the
# gradient of **maximum likelihood**. Whether the game of two players gets there is another
# question: Dirac-GAN has closed forms for it, and turns in circles until the critic is held back
# (R1 penalty).
#
# Goodfellow et al. (2014); Goodfellow (2014); Mescheder, Geiger and Nowozin (2018).

# %%
import math

import torch
from _lesson import Lesson, figure
from torch import Tensor
from torch.distributions import Normal

import pyro_ext as px
from models import dirac_gan

lesson = Lesson(
    "11_gans_as_maximum_likelihood", "11. GANs as maximum likelihood, and their dynamics"
)

# %% [markdown]
# ## Three objectives at the best critic
#
# Data N(0, 1), generator N(θ, 1), so that log p_data/p_gen is known. Each objective's gradient
# by θ, from draws, against the derivative of the divergence that it should descend.

# %%
data = Normal(0.0, 1.0)
at = torch.linspace(-12, 14, 4001)
width = 26 / 4000


def jensen_shannon(theta: Tensor) -> Tensor:
    """Return the divergence of data and generator, by quadrature."""
    log_p, log_g = data.log_prob(at), Normal(theta, 1.0).log_prob(at)
    log_m = torch.logaddexp(log_p, log_g) - math.log(2)
    return (
        0.5
        * ((log_p.exp() * (log_p - log_m)).sum() + (log_g.exp() * (log_g - log_m)).sum())
        * width
    )


def gradients(theta: float, num: int) -> dict[str, Tensor]:
    """Return one-sample gradients of each objective by θ, with the critic held at its best."""
    noise = torch.randn(num)
    thetas = torch.full((num,), theta, requires_grad=True)
    x = thetas + noise
    logits = data.log_prob(x) - Normal(theta, 1.0).log_prob(x)  # the critic does not move
    objectives = {
        "minimax": px.ratio.minimax(logits),
        "non-saturating": px.ratio.non_saturating(logits),
        "maximum likelihood": px.ratio.maximum_likelihood(logits),
    }
    return {
        name: num * torch.autograd.grad(value, thetas, retain_graph=True)[0]
        for name, value in objectives.items()
    }


num = lesson.steps(400_000, 40_000)
points = (0.25, 0.5, 1.0)
sizes: dict[str, list[float]] = {}
for theta in points:
    found = gradients(theta, num)
    free = torch.tensor(theta, requires_grad=True)
    (js_slope,) = torch.autograd.grad(2 * jensen_shannon(free), free)
    expected = {"minimax": js_slope.item(), "maximum likelihood": theta}
    for name, value in found.items():
        se = value.std().item() / math.sqrt(num)
        sizes.setdefault(name, []).append(value.std().item())
        if name in expected:
            what = "2 JSD" if name == "minimax" else "-log likelihood, which is θ"
            lesson.equal(
                f"θ = {theta}: {name} has the gradient of {what}",
                value.mean().item(),
                expected[name],
                se=se,
            )

# %% [markdown]
# The price of maximum likelihood is importance sampling from the generator: the variance of
# p_data/p_gen grows as exp(θ²). And the minimax gradient fades where the critic is sure, which is
# why the non-saturating loss is used in practice.

# %%
theta_line = torch.linspace(0.05, 6, 60)
fading = torch.stack(
    [torch.autograd.functional.jacobian(lambda t: 2 * jensen_shannon(t), t) for t in theta_line]
)
critic = torch.sigmoid(-theta_line.unsqueeze(-1) * at + theta_line.unsqueeze(-1) ** 2 / 2)
weight = Normal(theta_line.unsqueeze(-1), 1.0).log_prob(at).exp() * width
saturated = theta_line * (1 - (weight * critic).sum(-1))  # of -E log D, critic held
lesson.holds(
    "the minimax gradient fades with distance",
    "at θ = 6 less than a fifth of its largest",
    f"{fading[-1] / fading.max():.3f}",
    ok=bool(fading[-1] < fading.max() / 5),
)

# %% [markdown]
# ## Dirac-GAN
#
# Data at 0, generator at θ, critic ψ x. The field at the origin has eigenvalues
# -γ/2 ± √(γ²/4 - 1/4): circles without a penalty, a spiral inwards with one, fastest at γ = 1. The
# norms after 500 steps of 0.2 from (1, 1) are those of the notebook DiracGAN.ipynb in the authors'
# repository, LMescheder/GAN_stability.

# %%
PUBLISHED = {  # (γ, alternating): the norm, and half a unit of its last digit
    (0.0, False): (3.0969, 5e-5),
    (0.3, False): (2.643e-6, 5e-10),
    (0.0, True): (1.42102, 5e-6),
    (0.3, True): (2.30e-7, 5e-10),
}
origin, start = torch.zeros(2), torch.ones(2)
paths: dict[tuple[float, bool], Tensor] = {}
for gamma in (0.0, 0.3, 1.0):
    game = dirac_gan.game(gamma=gamma)
    found = game.stability(origin).eigenvalues
    closed = torch.tensor(dirac_gan.eigenvalues(gamma))
    order = sorted(range(2), key=lambda i: (closed[i].real.item(), closed[i].imag.item()))
    mine = sorted(range(2), key=lambda i: (found[i].real.item(), found[i].imag.item()))
    worst = max(
        abs(complex(found[i]) - complex(closed[j])) for i, j in zip(mine, order, strict=True)
    )
    lesson.equal(
        f"γ = {gamma}: eigenvalues of the field, largest error", worst, 0.0, tolerance=1e-6
    )
    for alternating in (False, True):
        path = game.trajectory(start, step_size=0.2, num_steps=500, alternating=alternating)
        paths[gamma, alternating] = path
        kind = "alternating" if alternating else "simultaneous"
        if (gamma, alternating) in PUBLISHED:
            published, half = PUBLISHED[gamma, alternating]
            lesson.equal(
                f"γ = {gamma}, {kind} steps: norm after 500, over the published {published:g}",
                path[-1].norm().item() / published,
                1.0,
                tolerance=half / published,
            )
growth = dirac_gan.game().step_stability(origin, step_size=0.2)
lesson.holds(
    "simultaneous steps without a penalty diverge",
    "unstable",
    growth.verdict,
    ok=growth.verdict == "unstable",
)
verdict = dirac_gan.game(gamma=0.3).step_stability(origin, step_size=0.2).verdict
lesson.holds("with R1 they converge", "stable", verdict, ok=verdict == "stable")

# %%
drawn, (left, middle, right) = figure(3)
for i, (name, values) in enumerate(sizes.items()):
    left.plot(points, values, f"C{i}o{('-', '--', '-')[i]}", label=f"{name}: sd of one sample")
left.set(
    xlabel="θ, distance of generator and data",
    ylabel="standard deviation of the gradient",
    yscale="log",
    title="noise at the best critic",
)
left.legend(fontsize=8)
middle.plot(theta_line, fading, "C0", label="minimax: derivative of 2 JSD")
middle.plot(theta_line, saturated, "C1", label="non-saturating, -E log D")
middle.plot(theta_line, theta_line, "C2", label="maximum likelihood: θ")
middle.set(xlabel="θ", ylabel="gradient", ylim=(0, 3), title="signal at the best critic")
middle.legend(fontsize=8)
for (gamma, alternating), path in paths.items():
    style = "-" if alternating else "--"
    color = {0.0: "C3", 0.3: "C0", 1.0: "C2"}[gamma]
    right.semilogy(
        path.norm(dim=1),
        style,
        color=color,
        label=f"γ = {gamma}, {'alternating' if alternating else 'simultaneous'}",
    )
right.set(
    xlabel="step",
    ylabel="distance from the equilibrium",
    ylim=(1e-8, 10),
    title="Dirac-GAN: does the game end?",
)
right.legend(fontsize=7)
lesson.save(drawn)
for gamma, suffix in ((0.0, "_plain"), (0.3, "_r1")):
    shown = {
        kind: paths[gamma, kind == "alternating"][:100] for kind in ("simultaneous", "alternating")
    }
    portrait = px.ratio.phase_portrait(
        dirac_gan.game(gamma=gamma), shown, limit=2.5, title=f"Dirac-GAN, R1 penalty γ = {gamma}"
    )
    lesson.save(portrait, suffix)
lesson.finish()
