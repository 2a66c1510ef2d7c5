# %% [markdown]
# # 3. Amortized, or parameters for each datapoint
#
# log p(x) - ELBO is the sum of two gaps: what the **family** cannot represent (approximation), and
# what the **source** of its parameters loses beyond that (amortization). An encoder is fast and
# answers for new data at once; parameters of its own for each datum lose nothing but have to be
# fitted; semi-amortized guides add the second to the first. `px.gaps` splits the two.
#
# First where everything is known, then on digits (`--data mnist --path mnist.npz` for MNIST).
#
# Kingma and Welling (2013); Cremer, Li and Duvenaud (2018); Kim et al. (2018).

# %%
import itertools
import math
import time
from functools import partial

import torch
from _lesson import Lesson, figure
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

import guides.vae
import models.vae
import pyro_ext as px
from guides.linear_gaussian import LinearGuide
from models.linear_gaussian import LinearGaussian, data

lesson = Lesson(
    "03_amortized_or_per_datapoint",
    "3. Amortized, or parameters for each datapoint",
    options={"data": "digits", "path": ""},
)

# %% [markdown]
# ## Two gaps in closed form
#
# Probabilistic PCA has a posterior of full covariance, precision Λ, the same for all data. The
# best independent normals lie ½ (Σ log Λ_dd - log det Λ) below log p(x): the approximation gap.
# An encoder that is told nothing about x can only give one answer to all; its amortization gap is
# the mean of ½ (μ_i - μ̄)ᵀ Λ (μ_i - μ̄). A linear encoder has none.

# %%
toy = LinearGaussian.random(num_features=6, latent_dim=3, sigma=0.8)
x = data(40, model=toy)
mean, covariance = toy.posterior(x)
off = mean - mean.mean(0)
deaf = 0.5 * torch.einsum("nd,de,ne->n", off, torch.linalg.inv(covariance), off).mean().item()
encoders = {
    "linear encoder": (nn.Linear(6, 6), 0.0),
    "encoder that hears nothing": (lambda x: torch.ones(len(x), 1), deaf),
}
adam = partial(torch.optim.Adam, lr=0.02)
for name, (encoder, expected) in encoders.items():
    guide = px.AutoAmortized(toy, encoder, family=px.Diagonal(), plate="data")
    steps = lesson.steps(1200)
    cosine = partial(CosineAnnealingLR, T_max=steps)
    run = px.fit(
        toy, guide, px.ELBO(4, form="kl"), x, adam, schedule=cosine, num_steps=steps, seed=0
    )
    split = px.gaps(
        run,
        log_evidence=toy.log_evidence_per_datum(x),
        num_samples=lesson.steps(4000, 50),
        num_steps=lesson.steps(300),
        seed=1,
    )
    for part, value, exact in (
        ("approximation", split.approximation.average(), toy.mean_field_gap().item()),
        ("amortization", split.amortization.average(), expected),
    ):
        lesson.equal(
            f"{name}: {part} gap, nats per datum",
            value.value,
            exact,
            se=value.se,
            tolerance=0.01,
            trained=True,
        )

# %% [markdown]
# ## Alternating E and M steps
#
# `train="guide"` is an E-step, `train="model"` an M-step. With the exact posterior as E-step each
# round raises log p(x) (EM), and the end is known: the maximum likelihood of probabilistic PCA,
# from the eigenvalues of the sample covariance (Tipping and Bishop, 1999).

# %%
num, dim, latents = 200, 5, 2
truth = LinearGaussian.random(num_features=dim, latent_dim=latents, seed=3)
x = data(num, model=truth, seed=4)
eigenvalues = torch.linalg.eigvalsh((x - x.mean(0)).T.cov(correction=0)).flip(0)
noise = eigenvalues[latents:].mean()
log_det = eigenvalues[:latents].log().sum() + (dim - latents) * noise.log()
best = -0.5 * (dim * math.log(2 * math.pi) + log_det + dim).item()
student = LinearGaussian.random(num_features=dim, latent_dim=latents, seed=9, trainable=True)
path = [student.log_evidence(x).item() / num]
rounds = lesson.steps(40, 3)
for step in range(rounds):
    rate = 0.05 * (1 - step / rounds) + 0.002
    posterior = LinearGuide.exact(student)
    px.fit(
        student,
        posterior,
        px.ELBO(64),
        x,
        partial(torch.optim.Adam, lr=rate),
        num_steps=15,
        train="model",
        seed=step,
    )
    path.append(student.log_evidence(x).item() / num)
falls = [before - after for before, after in itertools.pairwise(path)]
lesson.holds(
    "EM: log p(x) rises in each round",
    "falls by 0.002 nats per datum at most (Monte Carlo)",
    f"largest fall {max(0.0, *falls):.4f}",
    ok=max(falls) < 0.002,
)
lesson.equal(
    "EM: log p(x) per datum reaches the maximum likelihood",
    path[-1],
    best,
    tolerance=0.01,
    trained=True,
)

# %% [markdown]
# ## Digits: bias, seconds, memory
#
# A decoder is trained once, with an encoder, and then held. The four sources below are fitted to
# that decoder on the same training images, with the same family, independent normals.

# %%
torch.set_default_dtype(torch.float32)
source, where = lesson.options.data, lesson.options.path or None
train, held_out = models.vae.data(source, path=where, seed=lesson.seed)
model = models.vae.VAE(num_features=train.shape[1], latent_dim=8)
start = guides.vae.amortized_mean_field(model, hidden=(64,))
px.fit(
    model,
    start,
    px.ELBO(form="kl"),
    train,
    partial(torch.optim.Adam, lr=3e-3),
    num_steps=lesson.steps(1000),
    batch_size=100,
    seed=0,
)
num_images = lesson.steps(300, 20)
images, new = train[:num_images], held_out[:num_images]


def encoder() -> nn.Module:
    """Make a small encoder: its width is what it costs."""
    return guides.vae.mlp_encoder(model, hidden=(16,))


sources = {
    "amortized": lambda: px.AutoAmortized(model, encoder(), plate="data"),
    "semi-amortized": lambda: px.AutoSemiAmortized(model, encoder(), plate="data"),
    "per datapoint": lambda: px.AutoPerDatapoint(model, plate="data"),
}
torch.manual_seed(lesson.seed)
steps = lesson.steps(600)
bias: dict[str, tuple[float, float]] = {}
cost: dict[str, tuple[float, float]] = {}
curves: dict[str, Tensor] = {}
for name, make in sources.items():
    guide = make()
    began = time.process_time()
    run = px.fit(
        model,
        guide,
        px.ELBO(4, form="kl"),
        images,
        partial(torch.optim.Adam, lr=0.03 if name == "per datapoint" else 0.01),
        schedule=partial(CosineAnnealingLR, T_max=steps),
        num_steps=steps,
        train="guide",
        seed=lesson.seed,
    )
    cost[name] = (time.process_time() - began, guide.num_params * 4 / 1024)
    found = px.evidence(run, num_particles=lesson.steps(500, 50), num_repeats=2, seed=1)
    per_datum = (found.log_evidence.value - found.elbo.value) / num_images
    bias[name] = per_datum, math.hypot(found.log_evidence.se, found.elbo.se) / num_images
    curves[name] = torch.as_tensor(run.elbo_per_datum)
    lesson.say(
        f"{name}: bias {per_datum:.3f} ± {bias[name][1]:.3f} nats per image, "
        f"{cost[name][0]:.1f} s, {cost[name][1]:.0f} KiB"
    )
    if name == "amortized":
        split = px.gaps(
            run.model,
            guide,
            new,
            num_samples=lesson.steps(300, 50),
            num_steps=lesson.steps(200),
            seed=2,
        )
        lesson.say(f"the encoder on held-out images:\n{split}\n")
order = [bias[name][0] for name in ("amortized", "semi-amortized", "per datapoint")]
error = max(value[1] for value in bias.values())
lesson.holds(
    "bias on training images falls from amortized to semi-amortized to per datapoint",
    "amortized > semi-amortized ≥ per datapoint",
    " > ".join(f"{value:.3f}" for value in order),
    ok=order[0] > order[1] > order[2] - 5 * error - 0.05,
    trained=True,
)
gap = split.amortization.average()
lesson.holds(
    "held out, the encoder has an amortization gap",
    "above 0 by 5 standard errors",
    str(gap),
    ok=gap.value > 5 * gap.se,
    trained=True,
)
lesson.equal(
    "per datapoint: KiB of parameters, 2 x 8 numbers an image",
    cost["per datapoint"][1],
    num_images * 16 * 4 / 1024,
)

# %%
drawn, (left, middle, right) = figure(3)
left.plot(path, "o-", markersize=3, label="log p(x) after each round")
left.axhline(best, color="k", linestyle="--", label="maximum likelihood, closed form")
left.set(xlabel="round of E and M steps", ylabel="nats per datum", title="EM on probabilistic PCA")
left.legend(fontsize=8)
at = torch.arange(len(sources))
middle.bar(
    at,
    [bias[name][0] for name in sources],
    yerr=[bias[name][1] for name in sources],
    color=["C0", "C1", "C2"],
)
middle.set_xticks(
    at, [f"{name}\n{cost[name][0]:.0f} s, {cost[name][1]:.0f} KiB" for name in sources], fontsize=8
)
middle.set(
    ylabel="log p(x) - ELBO, nats per image", title=f"{num_images} training images, one decoder"
)
parts = [split.approximation.value, split.amortization.value]
right.boxplot(
    [part.numpy() for part in parts],
    tick_labels=["approximation", "amortization"],
    showfliers=False,
)
right.set(ylabel="nats, per held-out image", title="gaps of the encoder on new images")
lesson.save(drawn)
lesson.finish()
