"""Fits for several processes; as a script, one process of a job of torchrun."""

import os
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
import torch.distributed as distributed
import torch.distributions.multivariate_normal
import torch.distributions.normal
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam

import pyro_ext as px
from pyro_ext.minibatch import _ACTIVE
from pyro_ext.training.session import Session

RANDN = torch.randn
NOISE_SOURCES = [
    (torch, "randn"),
    (torch.distributions.normal, "_standard_normal"),
    (torch.distributions.multivariate_normal, "_standard_normal"),
]
N, K = 12, 7
X = torch.linspace(-2, 3, N, dtype=torch.float64)


class Model(nn.Module):
    """A global latent, a local one for each row, or both; and a parameter."""

    def __init__(self, latents):
        super().__init__()
        self.latents = latents
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        z = 0.0 if self.latents == "local" else pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            if self.latents != "global":
                z = pyro.sample("z", dist.Normal(z, 1.0))
            pyro.sample("x", dist.Normal(z, self.log_scale.exp()), obs=x)


def amortized(model, **options):
    encoder = nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 4), nn.Tanh())
    return px.AutoAmortized(model, encoder, **options)


GUIDES = {
    "amortized": amortized,
    "table": px.AutoPerDatapoint,
    "sparse table": partial(px.AutoPerDatapoint, sparse=True),
    "joint": px.AutoJoint,
}
LOSSES = {
    "ELBO": lambda: px.ELBO(K),
    "ELBO stl": lambda: px.ELBO(K, estimator="stl"),
    "IWAE": lambda: px.IWAE(K),
    "IWAE dreg": lambda: px.IWAE(K, estimator="dreg"),
    "CIWAE": lambda: px.CIWAE(K, beta=0.3),
    "Renyi": lambda: px.Renyi(K),
    "CUBO": lambda: px.CUBO(K),
    "jackknife": lambda: px.JackknifeIWAE(K),
    "annealed": lambda: px.Annealed(px.ELBO(K), px.LinearSchedule(0.2, 1.0, num_steps=0.5)),
}
LOCAL = {"CUBO", "jackknife", "CIWAE"}  # losses of models without a global latent
BATCHES = {"full batch": None, "batches of 8": 8, "batches of 5": 5, "batches of 1": 1}


class NoiseOfRows:
    """Normal noise that belongs to rows, whichever process draws for them."""

    def __init__(self):
        self.calls = 0

    def __call__(self, shape, dtype, device):
        generator = torch.Generator().manual_seed(self.calls)
        self.calls += 1
        active, shape = _ACTIVE.get(), list(shape)
        rows = None if active is None else active.indices
        if rows is None or len(rows) not in shape:
            return RANDN(shape, generator=generator, dtype=dtype)
        place = shape.index(len(rows))
        shape[place] = active.size
        return RANDN(shape, generator=generator, dtype=dtype).index_select(place, rows)


@contextmanager
def fixed_noise():
    """Within this context noise belongs to rows, the same at the same step of each fit."""
    noise, train = NoiseOfRows(), Session.train

    def train_from_the_first(session):
        noise.calls = 0
        train(session)

    Session.train = train_from_the_first
    before = [getattr(module, name) for module, name in NOISE_SOURCES]
    for module, name in NOISE_SOURCES:
        setattr(module, name, noise)
    try:
        yield
    finally:
        Session.train = train
        for (module, name), source in zip(NOISE_SOURCES, before, strict=True):
            setattr(module, name, source)


def fit(guide="amortized", loss="ELBO", batch="batches of 8", *, model=None, **options):
    """Return what a fit leaves behind: losses, recorded bounds and parameters."""
    pyro.clear_param_store()
    torch.manual_seed(1)
    if model is None:
        model = Model("global" if guide == "joint" else "local" if loss in LOCAL else "both")
    made = GUIDES[guide](model)
    settings = {
        "optim": partial(SGD, lr=1.0),
        "num_steps": 1,
        "compile": False,
        "seed": 3,
        "progress": False,
        **options,
    }
    run = px.fit(model, made, LOSSES[loss](), X, batch_size=BATCHES[batch], **settings)
    params = {f"model {n}": p.detach() for n, p in model.named_parameters()}
    params |= {f"guide {n}": p.detach() for n, p in nn.Module.named_parameters(made)}
    return {
        "losses": torch.tensor(run.losses),
        "elbos": torch.tensor(run.elbo_per_datum),
        "stopped": run.stopped,
        "compiled": run.compiled,
        **params,
    }


def cases():
    """From the name of a case to what fits it."""
    adam = {"optim": partial(Adam, lr=0.05), "num_steps": 20}
    found = {f"{g}, {b}": partial(fit, g, "ELBO", b) for g in GUIDES for b in BATCHES}
    found |= {name: partial(fit, "amortized", name) for name in LOSSES}
    found |= {f"{guide}, curve": partial(fit, guide, "ELBO", **adam) for guide in GUIDES}
    found["IWAE, curve"] = partial(fit, "amortized", "IWAE", **adam)
    found["clipped"] = partial(fit, clip_norm=0.1)
    stop = lambda progress: "enough" if progress.step == 7 else None  # noqa: E731
    found["stopped"] = partial(fit, callbacks=[stop], **adam)
    return found


def ddp_gradient(rows):
    """Gradient in a loop of one's own: torch's wrapper around a loss as a module."""
    torch.manual_seed(1)
    model = Model("local")
    guide = amortized(model)
    guide.setup(X)
    module = px.IWAE(K)(model, guide)
    wrapped = DistributedDataParallel(module) if distributed.is_initialized() else module
    with fixed_noise(), px.MiniBatch("data", N, rows, sliced=True):
        wrapped(X[rows]).backward()
    return {name: param.grad for name, param in module.named_parameters()}


def long_fit(folder, **options):
    """A fit with checkpoints, and noise of each process."""
    saving = {"checkpoints": px.Checkpoints(folder, every=5)} if folder else {}
    settings = {"optim": partial(Adam, lr=0.05), "num_steps": 40, "seed": 3, **saving, **options}
    return fit("sparse table", "IWAE", **settings)


def main(folder):
    """One process of a job: a fit that is slow enough to be killed, and what came of it."""
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    result = long_fit(folder / "checkpoints", callbacks=[lambda progress: time.sleep(0.02)])
    torch.save(result, folder / f"result-{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    main(Path(sys.argv[1]))
