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
    "gated, two stacks": {"gated": True, "two_stacks": True, "skip": False},
    "gated, two stacks, skip": {"gated": True, "two_stacks": True, "skip": True},
}
nats = {"independent pixels": independent}
for name, kind in KINDS.items():
    network = PixelCNN(12, num_layers=4, **kind)
    nats[name] = maximum_likelihood(network, lesson.steps(700))
    lesson.say(f"PixelCNN, {name}: {nats[name]:.2f} nats per held-out image")
best = min(KINDS, key=lambda name: nats[name])
lesson.holds(
    "every PixelCNN beats independent pixels",
    f"below {independent:.2f} nats per held-out image",
    f"{max(nats[name] for name in KINDS):.2f} at most, {nats[best]:.2f} for {best}",
    ok=max(nats[name] for name in KINDS) < independent - 3,
    trained=True,
)

# %% [markdown]
# ## PixelVAE: the decoder takes over
#
# The same encoder and latent, with decoders that see 0 (a plain VAE), 1 or more layers far.

# %%
found: dict[str, px.Rates] = {}
steps = lesson.steps(1000)
models_by_name = {
    "VAE": models.vae.VAE(latent_dim=8),
    "1 layer": PixelVAE(num_layers=1, channels=12),
    "2 layers": PixelVAE(num_layers=2, channels=12),
    "4 layers": PixelVAE(num_layers=4, channels=12),
}
for name, model in models_by_name.items():
    make = guides.vae.GUIDES if name == "VAE" else guides.pixel_vae.GUIDES
    run = px.fit(
        model,
        make["amortized-mean-field"](model),
        px.ELBO(form="kl"),
        train,
        partial(torch.optim.Adam, lr=3e-3),
        schedule=partial(CosineAnnealingLR, T_max=steps),
        num_steps=steps,
        batch_size=100,
        seed=lesson.seed,
    )
    found[name] = px.rates(run.model, run.guide, held_out, num_samples=lesson.steps(50, 2), seed=1)
    rate, distortion = (
        v.value / len(held_out) for v in (found[name].rate, found[name].distortion)
    )
    lesson.say(
        f"{name}: rate {rate:.2f}, distortion {distortion:.2f}, -ELBO {rate + distortion:.2f}"
    )
rates = {name: value.rate.value / len(held_out) for name, value in found.items()}
bounds = {name: -value.elbo / len(held_out) for name, value in found.items()}
lesson.holds(
    "the further the decoder sees, the lower the rate",
    "rate falls from VAE to 4 layers",
    ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items()),
    ok=rates["VAE"] > rates["1 layer"] > rates["4 layers"],
    trained=True,
)
lesson.holds(
    "and the better the bound",
    f"-ELBO of 4 layers below that of the VAE, {bounds['VAE']:.2f}",
    f"{bounds['4 layers']:.2f}",
    ok=bounds["4 layers"] < bounds["VAE"],
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

drawn, axes = figure(3, 2, width=4)
for panel, field, name in (
    (axes[0][0], one, "one stack, 7 x 7 then 15 x 3 x 3"),
    (axes[0][1], two, "two stacks"),
):
    shade = field.float() + 2.0 * blind_spot(field, (14, 14)).float()
    panel.imshow(shade, cmap="Pastel1_r", vmin=0, vmax=2)
    panel.plot(14, 14, "ks", markersize=4)
    spot = int(blind_spot(field, (14, 14)).sum())
    panel.set_title(f"{name}\nsees {int(field.sum())} of {PAST}, blind to {spot}", fontsize=9)
names = list(nats)
axes[0][2].barh(names[::-1], [nats[name] for name in names[::-1]], color=["C0"] * 4 + ["0.7"])
axes[0][2].set(
    xlabel="nats per held-out image",
    title="PixelCNN on digits",
    xlim=(min(nats.values()) * 0.8, None),
)
for name in found:
    axes[1][0].plot(rates[name], bounds[name] - rates[name], "o", label=name)
axes[1][0].set(
    xlabel="rate, nats per image",
    ylabel="distortion, nats per image",
    title="PixelVAE: the decoder takes over",
)
axes[1][0].legend(fontsize=8)
with torch.no_grad():
    drawn_x = models_by_name["4 layers"].decode(torch.randn(24, 8)).sample()
for panel, x, name in (
    (axes[1][1], held_out[:24], "held-out digits, binarized"),
    (axes[1][2], drawn_x, "draws of the PixelVAE, 4 layers"),
):
    tiles = torch.nn.functional.pad(x.reshape(4, 6, 8, 8), (1, 1, 1, 1), value=0.5)
    panel.imshow(tiles.permute(0, 2, 1, 3).reshape(40, 60), cmap="gray")
    panel.set(xticks=[], yticks=[], title=name)
lesson.save(drawn)
lesson.finish()
