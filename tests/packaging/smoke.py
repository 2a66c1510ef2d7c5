"""What an installed wheel must do, with nothing of the repository in reach.

    PYTHON tests/packaging/smoke.py SITE_PACKAGES

Plain Python, so that it runs where pytest is not installed. It meets every library that
pyro_ext asks for: zuko, ArviZ, pandas, SciPy, matplotlib, h5netcdf and tqdm.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch

import pyro_ext as px

SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ADAM = partial(torch.optim.Adam, lr=0.05)


def schools(y):
    mu, tau = pyro.sample("mu", dist.Normal(0, 5)), pyro.sample("tau", dist.HalfCauchy(5))
    with pyro.plate("schools", len(y)):
        z = pyro.sample("z", dist.Normal(0, 1))
        pyro.sample("y", dist.Normal(mu + tau * z, SIGMA), obs=y)


def rows(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0, 1))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def check_import(site_packages):
    assert Path(px.__file__).is_relative_to(site_packages), px.__file__
    assert px.__version__.count(".") == 2, px.__version__
    heavy = {"arviz", "arviz_base", "matplotlib", "pandas", "zuko"} & sys.modules.keys()
    assert not heavy, heavy


def check_joint():
    """Fit eight schools, and ask for all that looks at a run."""
    guide = px.AutoJoint(schools, family=px.FullCovariance())
    loss = px.IWAE(num_particles=10, estimator="dreg")
    run = px.fit(schools, guide, loss, EFFECTS, ADAM, num_steps=400, seed=0)
    evidence = px.evidence(run, num_particles=100, seed=0)
    assert abs(evidence.log_evidence.value + 31.31) < 0.2, evidence
    tree = px.to_datatree(run, num_samples=200)
    assert tree["posterior"]["z"].shape == (1, 200, 8), tree
    comparison = px.compare({"full covariance": run}, num_samples=400, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        comparison.save(folder)
        written = {path.suffix for path in Path(folder).iterdir()}
    assert written == {".html", ".md", ".csv", ".png", ".nc"}, written
    assert "burda2016importance" in px.citation(run)


def check_local():
    """Train a flow through an encoder, by Pyro's own engine too, and calibrate it."""
    x = 1.1 * torch.randn(200)
    encoder = torch.nn.Sequential(torch.nn.Unflatten(-1, (-1, 1)), torch.nn.Linear(1, 8))
    guide = px.AutoAmortized(rows, encoder, family=px.Flow("nsf", context=2))
    run = px.fit(rows, guide, px.ELBO(5), x, ADAM, num_steps=20, batch_size=50, seed=0)
    assert torch.isfinite(torch.as_tensor(run.losses)).all()
    assert px.sbc(run, num_simulations=200, seed=0).table.shape[0] == 1
    svi = pyro.infer.SVI(rows, guide, pyro.optim.Adam({"lr": 1e-3}), loss=px.IWAE(5))
    assert torch.isfinite(torch.tensor(svi.step(x)))
    svi = px.CompiledSVI(rows, guide, pyro.optim.Adam({"lr": 1e-3}), px.ELBO())
    # The first is eager, the second compiled or, with an untested torch, recorded.
    assert all(torch.isfinite(torch.tensor(svi.step(x))) for _ in range(2))


def check_automatic():
    run = px.fit(schools, data=EFFECTS, optim="auto", family=px.FullCovariance(), seed=0)
    assert run.sample(50)["mu"].shape == (50,)


if __name__ == "__main__":
    check_import(Path(sys.argv[1]).resolve())
    pyro.set_rng_seed(0)
    for check in (check_joint, check_local, check_automatic):
        check()
        print(check.__name__.removeprefix("check_"), "passed", flush=True)
