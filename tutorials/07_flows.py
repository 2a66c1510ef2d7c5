# %% [markdown]
# # 7. Flows: a density without samples, samples without a density
#
# A flow F bends noise U into F(U), and its density follows by the change of variables. Two uses:
#
# - **a density without samples**: draw from the flow, score by both, minimize KL(q ‖ p), which
#   needs F and its log-determinant at its own draws;
# - **samples without a density**: score the samples by the flow, minimize KL(p ‖ q), maximum
#   likelihood, which needs F⁻¹.
#
# A planar flow has no inverse to compute with, so that it can be a guide and no density model.
# Rezende and Mohamed (2015), Kingma et al. (2016), Durkan et al. (2019), Hoffman et al. (2019).

# %%
import math
from functools import partial

import torch
from _lesson import Lesson, figure
from pyro.infer import MCMC, NUTS
from pyro.infer.reparam import NeuTraReparam
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_ext as px
from guides.energies import GUIDES
from models.energies import ENERGIES, FUNNEL_SD, log_normalizer, sample_banana

lesson = Lesson("07_flows", "7. Flows")

# %% [markdown]
# ## Reverse KL: six densities, four guides
#
# Z is known by quadrature, so that KL(q ‖ p) = log Z - ELBO is known to Monte Carlo error.

# %%
steps = lesson.steps(400, 3)
names = list(ENERGIES) if not lesson.smoke else ["funnel", "energy 4"]
runs: dict[tuple[str, str], px.Run] = {}
gaps: dict[tuple[str, str], px.diagnostics.Estimate] = {}
for name in names:
    energy = ENERGIES[name]
    log_z = log_normalizer(energy)
    for kind, make in GUIDES.items():
        run = px.fit(
            energy,
            make(energy),
            px.ELBO(num_particles=64),
            optim=partial(torch.optim.Adam, lr=0.02),
            schedule=partial(CosineAnnealingLR, T_max=steps),
            num_steps=steps,
            seed=lesson.seed,
        )
        with torch.no_grad():
            (term,) = px.log_weights(energy, run.guide, num_particles=4000, joint=True).terms
        se = term.log_w.std().item() / math.sqrt(term.log_w.numel())
        gaps[name, kind] = px.diagnostics.Estimate(log_z - term.log_w.mean().item(), se)
        runs[name, kind] = run
    found = ", ".join(f"{kind} {gaps[name, kind]}" for kind in GUIDES)
    lesson.say(f"{name}: KL(q ‖ p) of {found}")
    for kind in ("planar", "iaf", "nsf"):
        ours, normal = gaps[name, kind], gaps[name, "gaussian"]
        lesson.holds(
            f"{name}: {kind} is closer than the best Gaussian",
            f"KL below {normal}",
            str(ours),
            ok=ours.value < normal.value + 5 * math.hypot(ours.se, normal.se),
            trained=True,
        )
    best, bar = gaps[name, "nsf"], gaps[name, "gaussian"].value / 3
    lesson.holds(
        f"{name}: a spline flow leaves less than a third of the Gaussian's KL",
        f"KL below {bar:.2f}",
        str(best),
        ok=best.value < bar,
        trained=True,
    )

# %% [markdown]
# ## Forward KL: the banana from its samples
#
# Maximum likelihood of a family's parameters, no guide and no model: `family.distribution`.

# %%
banana = ENERGIES["banana"]
family = px.Flow("nsf", base=px.FullCovariance(), hidden=(32, 32))
network = family.network(2)
scale = torch.tensor([2.0, 3.0])
params = family.initial_params(torch.zeros(2), scale).requires_grad_()
optim = torch.optim.Adam([params, *network.parameters()], lr=0.01)
num_steps = lesson.steps(400)
schedule = CosineAnnealingLR(optim, T_max=num_steps)
for _ in range(num_steps):
    loss = -family.distribution(params, 2, network).log_prob(sample_banana(128)).mean()
    optim.zero_grad()
    loss.backward()
    optim.step()
    schedule.step()
with torch.no_grad():
    q = family.distribution(params, 2, network)
    test = sample_banana(lesson.steps(10_000, 1000))
    log_ratio = banana.log_density(test) - q.log_prob(test)
    sample = q.rsample((3000,))
se = log_ratio.std().item() / math.sqrt(len(log_ratio))
forward = px.diagnostics.Estimate(log_ratio.mean().item(), se)
normal_fit = torch.distributions.MultivariateNormal(test.mean(0), test.T.cov())
gaussian = (banana.log_density(test) - normal_fit.log_prob(test)).mean().item()
lesson.holds(
    "banana by maximum likelihood",
    f"KL(p ‖ q) below 0.1 nats (best Gaussian {gaussian:.2f})",
    str(forward),
    ok=forward.value < 0.1,
    trained=True,
)

# %% [markdown]
# ## One divergence, in two spaces
#
# KL(p_X ‖ p_F(U)) = KL(p_F⁻¹(X) ‖ p_U): fitting a flow to data is making the data look like noise.
# Both sides by quadrature, each in its own space: on the left over x, where the flow has to be
# inverted; on the right over u, where it is not, and |det ∂F/∂u| comes from autograd.

# %%
wobbly = px.Flow("iaf", num_transforms=2, hidden=(8,))
bent = wobbly.network(2)
for parameter in bent.parameters():
    torch.nn.init.normal_(parameter, std=0.3)
start = wobbly.initial_params(torch.tensor([0.5, -0.5]), torch.tensor([1.5, 3.0]))
transform = wobbly.transform(start, 2, bent)
grid, area = banana.grid(lesson.steps(500, 300))
with torch.no_grad():
    x = grid.reshape(-1, 2)
    log_p = banana.log_density(x)
    log_q = wobbly.distribution(start, 2, bent).log_prob(x)
    in_x = (log_p.exp() * (log_p - log_q)).sum().item() * area


def jacobian_log_det(u: Tensor) -> Tensor:
    """Return log |det ∂F/∂u| by autograd, one row at a time in a batch."""
    rows = torch.vmap(torch.func.jacrev(transform._call), chunk_size=20_000)(u)
    return torch.linalg.slogdet(rows).logabsdet


num = lesson.steps(500, 300)
corners = transform.inv(x[log_p > -25]).detach()
low, high = corners.amin(0) - 0.1, corners.amax(0) + 0.1
axes_u = [torch.linspace(low[i], high[i], num) for i in range(2)]
u = torch.stack(torch.meshgrid(*axes_u, indexing="xy"), -1).reshape(-1, 2)
cell = ((axes_u[0][1] - axes_u[0][0]) * (axes_u[1][1] - axes_u[1][0])).item()
with torch.no_grad():
    log_pulled = banana.log_density(transform(u)) + jacobian_log_det(u)
    log_noise = torch.distributions.Normal(0.0, 1.0).log_prob(u).sum(-1)
    in_u = (log_pulled.exp() * (log_pulled - log_noise)).sum().item() * cell
lesson.equal(
    "KL in the space of the noise = KL in the space of the data", in_u, in_x, tolerance=2e-3 * in_x
)

# %% [markdown]
# ## What a flow without an inverse cannot do
#
# A planar flow scores its own latest draw, since it knows where it came from, and nothing else:
# no maximum likelihood, no `stl`, no `guide.log_prob`. The error says so.

# %%
planar = px.Flow("planar")
without = planar.distribution(
    planar.initial_params(torch.zeros(2), torch.ones(2)), 2, planar.network(2)
)
own = without.rsample((5,))
lesson.holds(
    "a planar flow scores its own draw",
    "yes",
    "yes",
    ok=bool(without.log_prob(own).isfinite().all()),
)
try:
    without.log_prob(sample_banana(5))
    answer = "it scored them"
except ValueError as error:
    answer = str(error)
lesson.holds(
    "a planar flow refuses the data", "ValueError", answer.split(".")[0], ok="expected" in answer
)

# %% [markdown]
# ## NeuTra: NUTS in the space of a fitted flow
#
# NUTS gets stuck in the funnel's neck; in the space of a flow that was fitted to it the funnel is
# a round hill. `NeuTraReparam(guide)` is Pyro's own, and takes a `px.AutoJoint` of a bijection.


# %%
def draw(model: object, num: int) -> tuple[dict[str, Tensor], int]:
    """Run NUTS; return its draws and the number of gradients that they took."""
    count = 0

    def counted() -> Tensor:
        nonlocal count
        count += 1
        return model()

    mcmc = MCMC(NUTS(counted), num_samples=num, warmup_steps=num // 2, disable_progbar=True)
    mcmc.run()
    return mcmc.get_samples(), count


def effective(first: Tensor) -> float:
    """Return the effective number of draws of one chain."""
    import arviz_stats

    return float(arviz_stats.ess(first.numpy()[None], method="mean"))


funnel = ENERGIES["funnel"]
num = lesson.steps(400, 10)
neutra = NeuTraReparam(runs["funnel", "iaf"].guide)
noise, cost_warped = draw(neutra.reparam(funnel), num)
warped = neutra.transform_sample(noise["z_shared_latent"])["z"][:, 0].detach()
plain_draws, cost_plain = draw(funnel, num)
plain = plain_draws["z"][:, 0]
sizes = {
    name: effective(chain) if not lesson.smoke else 1.0
    for name, chain in (("NUTS", plain), ("NeuTra", warped))
}
se = FUNNEL_SD / math.sqrt(sizes["NeuTra"])
lesson.equal(
    "NeuTra: mean of the funnel's first coordinate", warped.mean().item(), 0.0, se=se, trained=True
)
lesson.equal("NeuTra: its standard deviation", warped.std().item(), FUNNEL_SD, se=se, trained=True)
worth = {"NUTS": sizes["NUTS"] / cost_plain, "NeuTra": sizes["NeuTra"] / cost_warped}
lesson.holds(
    "NeuTra: more effective draws per gradient than NUTS on the funnel itself",
    f"above {1000 * worth['NUTS']:.1f} in 1000 gradients",
    f"{1000 * worth['NeuTra']:.1f}",
    ok=worth["NeuTra"] > worth["NUTS"],
    trained=True,
)

# %%
drawn, axes = figure(len(names), 1 + len(GUIDES), width=2.3, height=2.2)
for column, name in enumerate(names):
    energy = ENERGIES[name]
    box = ((-5.0, 5.0), (-12.0, 12.0)) if name == "funnel" else energy.box
    box = ((-6.0, 6.0), (-5.0, 20.0)) if name == "banana" else box
    points, _ = type(energy)(energy.log_density, box).grid(150)
    density = energy.log_density(points)
    for row, kind in enumerate(("target", *GUIDES)):
        panel = axes[row][column]
        if kind == "target":
            panel.imshow(
                density.exp(),
                origin="lower",
                extent=(*box[0], *box[1]),
                aspect="auto",
                cmap="viridis",
            )
            panel.set_title(name, fontsize=10)
        else:
            with torch.no_grad():
                z = runs[name, kind].guide.sample_posterior(4000)["z"]
            panel.hist2d(*z.T.numpy(), bins=70, range=box, cmap="viridis")
            panel.set_title(f"KL {gaps[name, kind].value:.2f}", fontsize=9)
        panel.set(xticks=[], yticks=[])
        if column == 0:
            panel.set_ylabel(kind)
lesson.save(drawn, "_reverse_kl")

drawn, (left, middle, right) = figure(3)
left.plot(*test[:3000].T, ".", markersize=2, label="data")
left.plot(*sample.T, ".", markersize=2, alpha=0.5, label="draws of the flow")
left.set(
    title=f"forward KL: {forward} nats", xlabel="x₁", ylabel="x₂", xlim=(-8, 8), ylim=(-7, 25)
)
left.legend(markerscale=4)
image = log_pulled.exp().reshape(len(axes_u[1]), -1)
extent = (low[0], high[0], low[1], high[1])
middle.imshow(
    image, origin="lower", extent=[float(v) for v in extent], aspect="auto", cmap="viridis"
)
circle = torch.linspace(0, 2 * math.pi, 100)
for radius in (1, 2):
    middle.plot(radius * circle.cos(), radius * circle.sin(), "w--", linewidth=1)
middle.set(
    title=f"F⁻¹(banana) beside N(0, I): KL {in_u:.4f}\nin x: {in_x:.4f}", xlabel="u₁", ylabel="u₂"
)
right.plot(
    plain,
    "C3",
    linewidth=0.8,
    label=f"NUTS, {1000 * worth['NUTS']:.1f} effective draws in 1000 gradients",
)
right.plot(warped, "C0", linewidth=0.8, label=f"NeuTra, {1000 * worth['NeuTra']:.1f}")
right.set(title="funnel: first coordinate (mean 0, sd 1.5)", xlabel="draw", ylim=(-6, 8))
right.legend(fontsize=8, loc="upper left")
lesson.save(drawn)
lesson.finish()
