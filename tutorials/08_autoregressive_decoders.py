# %% [markdown]
# # 8. Autoregressive decoders: what a pixel sees, and what is left for the latent
#
# log p(x) = Σ_i log p(x_i | x_<i) is exact, and a stack of masked convolutions has all terms in
# one pass. Which pixels a pixel sees is set arithmetic on the masks; one stack leaves a **blind
# spot** that no depth removes, two stacks leave none. Put such a network behind a latent vector
# (PixelVAE), and the further it sees, the less the latent has to say.
#
# van den Oord et al. (2016a, 2016b); Gulrajani et al. (2016).

# %%
import itertools
import math
from functools import partial

import torch
from _lesson import Lesson, figure
from matplotlib import colormaps
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

import guides.pixel_vae
import guides.vae
import models.vae
import pyro_ext as px
from models.pixel_vae import PixelVAE
from pyro_ext.nn import PixelCNN, blind_spot, receptive_field, receptive_field_by_gradients

lesson = Lesson("08_autoregressive_decoders", "8. Autoregressive decoders", dtype=torch.float32)

# %% [markdown]
# ## Receptive fields of two layers, 5 x 5
#
# Mask A leaves the pixel itself out, mask B lets it in; both keep the rows above and what is left
# in the row. Exactly one A makes a stack autoregressive *and* lets it see all neighbours.

# %%
fields: dict[str, Tensor] = {}
for masks, count in {"AA": 9, "AB": 11, "BA": 11, "BB": 12}.items():
    name = f"{masks[0]} then {masks[1]}"
    layers = [(mask, 3) for mask in masks]
    fields[name] = receptive_field(layers, size=(5, 5), pixel=(2, 2))
    network = torch.nn.Sequential(*(px.nn.MaskedConv2d(1, 1, 3, mask=mask) for mask in masks))
    gradients = receptive_field_by_gradients(network, size=(5, 5), pixel=(2, 2))
    same = bool((fields[name] == gradients).all())
    lesson.holds(
        f"{name}: gradients agree with the masks", "yes", "yes" if same else "no", ok=same
    )
    lesson.equal(f"{name}: pixels seen, counted by hand", int(fields[name].sum()), count)

# %% [markdown]
# ## The blind spot
#
# 28 x 28 pixels, seen from (14, 14), which has 406 pixels before it. In the row r above, the
# rightmost pixel in sight is r to the right (r + 2 with a 7 x 7 first layer), whatever the depth.

# %%
PAST = 14 * 28 + 14
for first, further, seen in ((3, 5, 69), (7, 7, 192), (7, 15, 351), (7, 40, 351), (3, 40, 328)):
    layers = [("A", first)] + further * [("B", 3)]
    field = receptive_field(layers, size=(28, 28), pixel=(14, 14))
    lesson.equal(f"A{first} and {further} x B3: pixels seen of {PAST}", int(field.sum()), seen)
one = receptive_field([("A", 7)] + 15 * [("B", 3)], size=(28, 28), pixel=(14, 14))
both = PixelCNN(4, num_layers=16, first_kernel_size=7, two_stacks=True)
two = receptive_field_by_gradients(both, size=(28, 28), pixel=(14, 14))
lesson.equal("one stack: blind spot", int(blind_spot(one, (14, 14)).sum()), 55)
lesson.equal("two stacks: blind spot", int(blind_spot(two, (14, 14)).sum()), 0)
lesson.equal("two stacks: pixels seen, all before it and none after", int(two.sum()), PAST)

# %% [markdown]
# ## It is a distribution
#
# The probabilities of all 512 images of 3 x 3 pixels sum to one, with any weights.

# %%
images = torch.tensor(list(itertools.product([0.0, 1.0], repeat=9)), dtype=torch.float64)
images = images.reshape(-1, 1, 3, 3)


def log_prob(network: PixelCNN, x: Tensor) -> Tensor:
    """Return log p(x) of images ``(batch, 1, rows, columns)``."""
    return torch.distributions.Bernoulli(logits=network(x)).log_prob(x).sum((-3, -2, -1))


small = PixelCNN(8, num_layers=3).double()
for param in small.parameters():
    torch.nn.init.normal_(param, std=0.5)
with torch.no_grad():
    log_p = log_prob(small, images)
lesson.equal("log of the sum of p over all 3 x 3 images", log_p.logsumexp(0).item(), 0.0)
num = lesson.steps(20_000, 2000)
draws = small.sample(num, size=(3, 3))
surprise = -log_prob(small, draws).detach()
entropy = -(log_p.exp() * log_p).sum().item()
se = surprise.std().item() / math.sqrt(num)
lesson.equal("entropy, from draws pixel by pixel", surprise.mean().item(), entropy, se=se)

# %% [markdown]
# ## Digits
#
# The 8 x 8 digits, binarized. PixelCNN gives the exact log p(x) of held-out images. The first bar
# to pass is that of independent pixels, each with its own base rate.

# %%
train, held_out = models.vae.data(seed=lesson.seed)
base = (train.sum(0) + 1) / (len(train) + 2)
independent = -torch.distributions.Bernoulli(base).log_prob(held_out).sum(-1).mean().item()


def maximum_likelihood(network: PixelCNN, num_steps: int) -> float:
    """Fit by Adam on mini-batches; return nats per held-out image."""
    optim = torch.optim.Adam(network.parameters(), lr=3e-3)
    schedule = CosineAnnealingLR(optim, T_max=num_steps)
    for _ in range(num_steps):
        rows = torch.randint(len(train), (100,))
        loss = -log_prob(network, train[rows].reshape(-1, 1, 8, 8)).mean()
        optim.zero_grad()
        loss.backward()
        optim.step()
        schedule.step()
    with torch.no_grad():
        return -log_prob(network, held_out.reshape(-1, 1, 8, 8)).mean().item()


KINDS = {
    "plain, one stack": {"gated": False, "two_stacks": False, "skip": False},
    "gated, one stack": {"gated": True, "two_stacks": False, "skip": False},
    "gated, two stacks, skip": {"gated": True, "two_stacks": True, "skip": True},
}
nats = {"independent pixels": independent}
for name, kind in KINDS.items():
    nats[name] = maximum_likelihood(PixelCNN(12, num_layers=4, **kind), lesson.steps(500))
    lesson.say(f"PixelCNN, {name}: {nats[name]:.2f} nats per held-out image")
worst, best = max(nats[name] for name in KINDS), nats["gated, two stacks, skip"]
lesson.holds(
    "every PixelCNN beats independent pixels",
    f"below {independent:.2f} nats per held-out image",
    f"at most {worst:.2f}",
    ok=worst < independent,
    trained=True,
)
lesson.holds(
    "two stacks and skip connections beat one plain stack",
    f"below {nats['plain, one stack']:.2f} nats per held-out image",
    f"{best:.2f}",
    ok=best < nats["plain, one stack"],
    trained=True,
)

# %% [markdown]
# ## PixelVAE: the decoder takes over
#
# A decoder that sees the neighbours explains them without z. Trained by the plain ELBO, the rate
# falls to zero: the **posterior collapses** onto the prior, and the VAE is a PixelCNN. With the
# rate's weight warmed up from 0 (`px.Annealed`), z is in use before the decoder can do without.

# %%
found: dict[str, px.Rates] = {}
steps = lesson.steps(500)
warm_up = px.Annealed(px.ELBO(form="kl"), px.LinearSchedule(0.0, 1.0, num_steps=0.6))
cases = {
    "VAE": (models.vae.VAE(latent_dim=8), px.ELBO(form="kl")),
    "PixelVAE": (PixelVAE(num_layers=3, channels=12), px.ELBO(form="kl")),
    "PixelVAE, warmed up": (PixelVAE(num_layers=3, channels=12), warm_up),
}
for name, (model, loss) in cases.items():
    make = guides.vae.GUIDES if name == "VAE" else guides.pixel_vae.GUIDES
    run = px.fit(
        model,
        make["amortized-mean-field"](model),
        loss,
        train,
        partial(torch.optim.Adam, lr=4e-3),
        schedule=partial(CosineAnnealingLR, T_max=steps),
        num_steps=steps,
        batch_size=100,
        seed=lesson.seed,
    )
    x = held_out[: lesson.steps(297, 20)]
    found[name] = px.rates(run.model, run.guide, x, num_samples=lesson.steps(30, 2), seed=1)
rates = {name: value.rate.value / len(x) for name, value in found.items()}
bounds = {name: -value.elbo / len(x) for name, value in found.items()}
for name in cases:
    lesson.say(f"{name}: rate {rates[name]:.2f}, -ELBO {bounds[name]:.2f} nats per image")
lesson.holds(
    "a plain VAE uses its latent",
    "rate above 2 nats",
    f"{rates['VAE']:.2f}",
    ok=rates["VAE"] > 2,
    trained=True,
)
lesson.holds(
    "a PixelVAE's posterior collapses",
    "rate below 0.1 nats",
    f"{rates['PixelVAE']:.3f}",
    ok=rates["PixelVAE"] < 0.1,
    trained=True,
)
lesson.holds(
    "warmed up, it does not",
    "rate above 0.3 nats, and below the VAE's",
    f"{rates['PixelVAE, warmed up']:.2f}",
    ok=0.3 < rates["PixelVAE, warmed up"] < rates["VAE"],
    trained=True,
)

# %%
drawn, axes = figure(4, width=3)
for panel, (name, field) in zip(axes, fields.items(), strict=True):
    panel.imshow(field, cmap="Blues", vmin=0, vmax=1.6)
    panel.plot(2, 2, "rs", markersize=9)
    panel.set_title(f"{name}: sees {int(field.sum())}", fontsize=10)
    panel.set(xticks=range(5), yticks=range(5))
lesson.save(drawn, "_masks")

PASTEL = colormaps["Pastel1_r"]
drawn, axes = figure(3, 2, width=4.4, height=3.4)
for panel, field, name in (
    (axes[0][0], one, "one stack, 7 x 7 then 15 x 3 x 3"),
    (axes[0][1], two, "two stacks"),
):
    shade = field.float() + 2.0 * blind_spot(field, (14, 14)).float()
    panel.imshow(shade, cmap=PASTEL, vmin=0, vmax=2)
    panel.plot(14, 14, "ks", markersize=4)
    spot = int(blind_spot(field, (14, 14)).sum())
    panel.set_title(f"{name}\nsees {int(field.sum())} of {PAST}, blind to {spot}", fontsize=9)
axes[0][0].plot([], [], "s", color=PASTEL(0.5), label="in sight")
axes[0][0].plot([], [], "s", color=PASTEL(1.0), label="blind spot")
axes[0][0].legend(loc="lower left", fontsize=8)
names = list(nats)
axes[0][2].barh(names[::-1], [nats[name] for name in names[::-1]], color=["C0"] * 3 + ["0.7"])
axes[0][2].set(
    xlabel="nats per held-out image",
    title="PixelCNN on digits",
    xlim=(min(nats.values()) * 0.8, None),
)
for name in found:
    label = f"{name}: -ELBO {bounds[name]:.2f}"
    axes[1][0].plot(rates[name], bounds[name] - rates[name], "o", label=label)
axes[1][0].set(
    xlabel="rate, nats per image",
    ylabel="distortion, nats per image",
    title="PixelVAE: the decoder takes over",
)
axes[1][0].legend(fontsize=8)
with torch.no_grad():
    drawn_x = cases["PixelVAE, warmed up"][0].decode(torch.randn(24, 8)).sample()
for panel, x, name in (
    (axes[1][1], held_out[:24], "held-out digits, binarized"),
    (axes[1][2], drawn_x, "draws of the warmed-up PixelVAE"),
):
    tiles = torch.nn.functional.pad(x.reshape(4, 6, 8, 8), (1, 1, 1, 1), value=0.5)
    panel.imshow(tiles.permute(0, 2, 1, 3).reshape(40, 60), cmap="gray")
    panel.set(xticks=[], yticks=[], title=name)
lesson.save(drawn)
lesson.finish()
