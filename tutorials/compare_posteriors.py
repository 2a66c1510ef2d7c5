# %% [markdown]
# # Compare posteriors: swap the guide, swap the loss, and let ArviZ judge
#
# One Pyro model, several guides, several losses. A guide is a *family* (independent normals, a
# full covariance) times a *source* of its parameters (one for all latents, one per datapoint, an
# encoder); a loss is a *bound* on the log evidence. Swap one at a time and look at what changes:
#
# - **Eight schools** has ten latents and exact answers. How far are the posteriors from them,
#   and from NUTS?
# - A **variational auto-encoder** of handwritten digits has a latent vector per image. What do
#   parameters of its own for each image cost, and what does an encoder cost, in bias, in seconds
#   and in memory?
#
# Run it as a script (`python tutorials/compare_posteriors.py --list` shows what there is to
# combine), or open it as a notebook.

# %%
import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

if "__file__" in globals():  # models/ and guides/ stand beside tutorials/, and are not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import guides.eight_schools
import guides.vae
import models.eight_schools
import models.vae
import pyro_ext as px

SMOKE = "SMOKE" in os.environ  # a few steps only: the tests see whether everything runs


Loss = Callable[[], px.ELBO | px.IWAE]


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run, and for how long."""

    guides: tuple[str, ...]
    losses: tuple[str, ...]
    steps: int
    draws: int
    seed: int
    device: torch.device
    out: Path


# %% [markdown]
# ## Eight schools
#
# Rubin's eight coaching experiments: `mu ~ N(0, 5)`, `tau ~ HalfCauchy(5)`, non-centred effects.
# All but one integral is analytic, so that the log evidence (-31.3113) and every moment are
# known exactly. The best independent normals reach a bound of -31.60, the best full covariance
# -31.535; an importance-weighted bound with ten particles lies between those and the evidence.


# %%
SCHOOL_LOSSES: dict[str, Loss] = {
    "elbo": partial(px.ELBO, num_particles=32, estimator="stl"),
    "iwae-10": partial(px.IWAE, num_particles=10, estimator="dreg", num_outer=8),
}


def eight_schools(options: Options) -> px.Comparison:
    """Fit every guide under every loss, run NUTS once, and compare."""
    data = models.eight_schools.data(dtype=torch.float64)
    exact = models.eight_schools.exact_posterior(*data)
    args = tuple(value.to(options.device) for value in data)
    model = models.eight_schools.model
    runs = {}
    for guide_name in options.guides:
        for loss_name in options.losses:
            say(f"eight schools: {guide_name}, {loss_name}")
            runs[f"{guide_name}, {loss_name}"] = px.fit(
                model,
                guides.eight_schools.GUIDES[guide_name](model),
                SCHOOL_LOSSES[loss_name](),
                args,
                optim=partial(torch.optim.Adam, lr=0.2),
                schedule=partial(CosineAnnealingLR, T_max=options.steps),
                num_steps=options.steps,
                seed=options.seed,
            )
    say("eight schools: NUTS, the reference")
    reference = nuts(model, args, options)
    say_reference(reference, exact)
    return px.compare(
        runs,
        reference=reference,
        exact_evidence=exact.log_evidence,
        num_samples=options.draws,
        seed=options.seed,
    )


def nuts(model: Callable[..., Any], args: Sequence[Tensor], options: Options) -> MCMC:
    """Draw from the posterior by NUTS, whatever the caller's random state."""
    draws = max(options.draws // 4, 100)
    with torch.random.fork_rng():
        pyro.set_rng_seed(options.seed)
        kernel = NUTS(model, target_accept_prob=0.9)
        quiet = not sys.stderr.isatty()
        mcmc = MCMC(kernel, num_samples=draws, warmup_steps=draws // 3, disable_progbar=quiet)
        mcmc.run(*args)
    return mcmc


def say_reference(reference: MCMC, exact: models.eight_schools.ExactPosterior) -> None:
    """Print how far NUTS itself is from the exact moments."""
    errors, ratios = [], []
    for name, draws in reference.get_samples().items():
        errors.append(((draws.mean(0).cpu() - exact.mean[name]) / exact.sd[name]).abs().max())
        ratios += (draws.std(0).cpu() / exact.sd[name]).reshape(-1).tolist()
    print(
        f"NUTS against the exact moments: worst standardised mean error {max(errors):.3f}, "
        f"sd ratios {min(ratios):.2f} to {max(ratios):.2f}"
    )


# %% [markdown]
# ## A variational auto-encoder of digits
#
# The digits that come with scikit-learn, 8 x 8 pixels, binarized. Each guide is trained together
# with a decoder of its own that starts from the same weights. On held-out images the encoders
# need no training; parameters per image have to be fitted anew, with the decoder fixed, and that
# time is counted.


# %%
VAE_LOSSES: dict[str, Loss] = {
    "elbo": partial(px.ELBO, num_particles=10, estimator="stl"),
    "iwae-10": partial(px.IWAE, num_particles=10, estimator="dreg"),
}


def vae(options: Options) -> dict[str, px.Comparison]:
    """Fit every guide with its decoder, then compare on training and on held-out images."""
    train, held_out = (images.to(options.device) for images in models.vae.data(seed=options.seed))
    trained, new = {}, {}
    for guide_name in options.guides:
        for loss_name in options.losses:
            name = guide_name if len(options.losses) == 1 else f"{guide_name}, {loss_name}"
            say(f"VAE: {guide_name}, {loss_name}")
            with torch.random.fork_rng():
                torch.manual_seed(options.seed)
                model = models.vae.VAE(num_features=train.shape[1]).to(options.device)
                guide = guides.vae.GUIDES[guide_name](model)
            fit = partial(
                px.fit, loss=VAE_LOSSES[loss_name](), num_steps=options.steps, seed=options.seed
            )
            trained[name] = fit(
                model, guide, data=train, optim=partial(adam, model, guide), batch_size=100
            )
            new[name] = dataclasses.replace(trained[name], args=(held_out,), seconds=0.0)
            if isinstance(guide, px.AutoPerDatapoint):
                say(f"VAE: {guide_name} for the held-out images, decoder fixed")
                fresh = guides.vae.GUIDES[guide_name](model)
                new[name] = fit(
                    model, fresh, data=held_out, optim=partial(adam, None, fresh), batch_size=100
                )
    compare = partial(px.compare, num_samples=min(options.draws, 1000), seed=options.seed)
    parts = {"training images": compare(trained), "held-out images": compare(new)}
    print(f"\nWhat each guide costs, bias in nats per image:\n{costs(parts, trained, new)}")
    return parts


def costs(parts: dict[str, px.Comparison], trained: Any, new: Any) -> str:
    """Return the bias, the time and the memory of each guide as a table."""
    rows = []
    for name, run in trained.items():
        bias = {}
        for part, runs in (("training images", trained), ("held-out images", new)):
            row = parts[part].table.loc[name]
            gap = row["log evidence"] - row["ELBO"]
            bias[part] = f"{gap / len(runs[name].args[0]):.2f}"
        size = run.guide.num_params * 4 / 1024
        rows.append(
            (
                name,
                *bias.values(),
                f"{run.seconds:.1f} s",
                f"{new[name].seconds:.1f} s",
                f"{size:.0f} KiB",
            )
        )
    head = ("guide", "bias, training", "bias, held out", "training", "new images", "guide memory")
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    )


def adam(model: Any, guide: Any, params: Sequence[Tensor]) -> torch.optim.Optimizer:
    """Make one Adam: networks at 0.002, free parameters per image at 0.05."""
    table = [p for name, p in guide.named_parameters() if name == "local_params"]
    networks = [p for name, p in guide.named_parameters() if name != "local_params"]
    networks += [] if model is None else list(model.parameters())
    groups = [{"params": table, "lr": 0.05}, {"params": networks, "lr": 0.002}]
    return torch.optim.Adam([group for group in groups if group["params"]])


# %% [markdown]
# ## What to run


# %%
@dataclasses.dataclass(frozen=True)
class Model:
    """A model of this lesson: what can be combined with it."""

    run: Callable[[Options], Any]
    guides: tuple[str, ...]
    losses: tuple[str, ...]
    default_losses: tuple[str, ...]
    steps: int


MODELS = {
    "eight_schools": Model(
        run=eight_schools,
        guides=tuple(guides.eight_schools.GUIDES),
        losses=tuple(SCHOOL_LOSSES),
        default_losses=tuple(SCHOOL_LOSSES),
        steps=1500,
    ),
    "vae": Model(
        run=vae,
        guides=tuple(guides.vae.GUIDES),
        losses=tuple(VAE_LOSSES),
        default_losses=("elbo",),
        steps=3000,
    ),
}


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; a wrong name gets an error that lists what there is."""
    parser = argparse.ArgumentParser(
        description="Compare posteriors of real data across guides and losses.",
        epilog=f"Names:\n{listing()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", nargs="+", default=list(MODELS), metavar="NAME")
    parser.add_argument("--guides", nargs="+", metavar="NAME", help="default: all of the model's")
    parser.add_argument("--losses", nargs="+", metavar="NAME", help="default: see the list below")
    parser.add_argument("--steps", type=int, help="steps of each fit")
    draws = 200 if SMOKE else 4000
    parser.add_argument("--draws", type=int, default=draws, help="posterior draws (default: 4000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--out", type=Path, default=Path("results/compare_posteriors"))
    parser.add_argument("--list", action="store_true", help="show the names and stop")
    found = parser.parse_args(argv)
    check = partial(check_names, parser)
    check("model", found.model, tuple(MODELS))
    for name in found.model:
        check(f"guides of {name}", found.guides, MODELS[name].guides)
        check(f"losses of {name}", found.losses, MODELS[name].losses)
    for option, least in {"steps": 1, "draws": 100}.items():
        value = getattr(found, option)
        if value is not None and value < least:
            parser.error(f"--{option}: expected at least {least}, got {value}")
    return found


def check_names(
    parser: argparse.ArgumentParser, kind: str, names: Sequence[str] | None, known: tuple[str, ...]
) -> None:
    """Stop with an error if a name is not among those known."""
    wrong = [name for name in names or () if name not in known]
    if wrong:
        parser.error(f"{kind}: there is no {', '.join(wrong)}; there are:\n{listing()}")


def device(name: str) -> torch.device:
    """Return the device of that name, if this machine has it."""
    try:
        found = torch.device(name)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(
            f"no device {name} here ({str(error).splitlines()[0]}); write --device cpu"
        ) from error
    return found


def listing() -> str:
    """Return the names of models, guides and losses, a line each."""
    lines = []
    for name, model in MODELS.items():
        lines.append(f"  --model {name}")
        lines.append(f"    --guides {' '.join(model.guides)}")
        lines.append(f"    --losses {' '.join(model.losses)}")
        lines.append(f"    (default losses: {' '.join(model.default_losses)})")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what the command line asks for, print the tables and save everything."""
    found = parse(argv)
    if found.list:
        print(listing())
        return
    for name in found.model:
        model = MODELS[name]
        options = Options(
            guides=tuple(found.guides or model.guides),
            losses=tuple(found.losses or model.default_losses),
            steps=found.steps or (10 if SMOKE else model.steps),
            draws=found.draws,
            seed=found.seed,
            device=found.device,
            out=found.out / name,
        )
        result = model.run(options)
        parts = result if isinstance(result, dict) else {"": result}
        for title, comparison in parts.items():
            folder = options.out / title.replace(" ", "-")
            comparison.save(folder)
            print(f"\n{name}{', ' if title else ''}{title}\n{comparison}")
            print(f"Table, figures and draws: {folder}\n", flush=True)


if __name__ == "__main__":
    main()
