"""Evidence by annealed importance sampling, and distances to reference draws, on real posteriors.

The posteriors of posteriordb whose priors are proper have a known log evidence. From the prior and
from a Gaussian guide with a full covariance, AIS is held against it, in standard errors; the
guide's draws are held against the reference means and sds.

    python benchmarks/posteriordb.py --data DIR [--chains 100] [--temperatures 200]

DIR holds `cases.json`, and the files that it names: data as JSON, reference draws as NPZ.
"""

import argparse
import json
import math
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch

import pyro_ext as px


def eight_schools(d):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(d["y"])):
        z = pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        pyro.sample("y", dist.Normal(theta, d["sigma"]), obs=d["y"])


def ark(d):
    y, order = d["y"], int(d["K"])
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(torch.zeros(order), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    past = torch.stack([y[order - k - 1 : len(y) - k - 1] for k in range(order)], -1)
    with pyro.plate("data", len(y) - order):
        mean = alpha + (past * beta).sum(-1)
        pyro.sample("y", dist.Normal(mean, sigma), obs=y[order:])


def arma(d):
    y = d["y"]
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = pyro.sample("phi", dist.Normal(0.0, 2.0))
    theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    error, errors = y[0] - (mu + phi * mu), []
    errors.append(error)
    for t in range(1, len(y)):
        error = y[t] - (mu + phi * y[t - 1] + theta * error)
        errors.append(error)
    together = torch.stack(torch.broadcast_tensors(*errors), -1)
    noise = dist.Normal(torch.zeros(len(y)), sigma.unsqueeze(-1)).log_prob(together)
    pyro.factor("y", noise.sum(-1))


def blr(d):
    x, y = d["X"], d["y"]
    beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[1]), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal((x * beta).sum(-1), sigma), obs=y)


def gp(d):
    x, y = d["x"], d["y"]
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))[..., None, None]
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))[..., None, None]
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))[..., None, None]
    kernel = alpha**2 * (-((x[:, None] - x) ** 2) / (2 * rho**2)).exp()
    covariance = kernel + sigma * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)


def mixture(d):
    flat = dist.Normal(torch.zeros(2), 1.0).to_event(1).mask(mask=False)
    mu = pyro.sample(
        "mu", dist.TransformedDistribution(flat, [dist.transforms.OrderedTransform()])
    )
    # Normal(0, 2) on the ordered pair, which is half of the plane.
    prior = dist.Normal(0.0, 2.0).log_prob(mu).sum(-1) + math.log(2)
    pyro.factor("prior", prior + (mu[..., 1] - mu[..., 0]).log())
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0 * torch.ones(2)).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    with pyro.plate("data", len(d["y"])):
        weights = torch.stack([theta, 1 - theta], -1)
        parts = dist.Normal(mu, sigma)
        mixed = dist.MixtureSameFamily(dist.Categorical(weights), parts)
        pyro.sample("y", mixed, obs=d["y"])


def flat_normal(size):
    return dist.Normal(torch.zeros(size), 10.0).to_event(1).mask(mask=False)


def regression(x, y, sigma):
    b = pyro.sample("beta", flat_normal(x.shape[1]))
    sigma = pyro.sample("sigma", sigma)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal((x * b).sum(-1), sigma), obs=y)


FLAT_POSITIVE = dist.LogNormal(0.0, 1.0).mask(mask=False)


def mesquite(d):
    names = ("diam1", "diam2", "canopy_height", "total_height", "density")
    ones = torch.ones_like(d["weight"])
    x = torch.stack([ones, *(d[name].log() for name in names), d["group"]], -1)
    regression(x, d["weight"].log(), FLAT_POSITIVE)


def kidiq(d):
    ones = torch.ones_like(d["mom_hs"])
    x = torch.stack([ones, d["mom_hs"], d["mom_iq"], d["mom_hs"] * d["mom_iq"]], -1)
    regression(x, d["kid_score"], dist.HalfCauchy(2.5))


def nes(d):
    age = [(d["age_discrete"] == level).double() for level in (2, 3, 4)]
    ones = torch.ones_like(d["income"])
    columns = (ones, d["real_ideo"], d["race_adj"], *age, d["educ1"], d["gender"], d["income"])
    regression(torch.stack(columns, -1), d["partyid7"], FLAT_POSITIVE)


MODELS = {
    "gp_pois_regr-gp_regr": gp,
    "low_dim_gauss_mix-low_dim_gauss_mix": mixture,
    "mesquite-logmesquite": mesquite,
    "kidiq-kidscore_interaction": kidiq,
    "nes2000-nes": nes,
    "eight_schools-eight_schools_noncentered": eight_schools,
    "arK-arK": ark,
    "arma-arma11": arma,
    "sblri-blr": blr,
}


def tensors(path):
    read = json.loads(path.read_text())
    return {name: torch.as_tensor(value, dtype=torch.float64) for name, value in read.items()}


def means_and_sds(path):
    held = np.load(path, allow_pickle=False)
    found = {}
    for name, mean, sd in zip(held["param_names"], held["mean"], held["sd"], strict=True):
        base, _, index = str(name).partition("[")
        found.setdefault(base, {})[int(index.rstrip("]") or 1)] = (mean, sd)
    moments = {}
    for base, entries in found.items():
        pairs = np.array([entries[i] for i in sorted(entries)])
        scalar = len(pairs) == 1
        moments[base] = tuple(
            torch.as_tensor(column[0] if scalar else column) for column in pairs.T
        )
    return moments


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--chains", type=int, default=100)
    parser.add_argument("--temperatures", type=int, default=200)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--only", nargs="*", help="posteriors to run; all by default")
    options = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    cases = json.loads((options.data / "cases.json").read_text())["cases"]
    print("| posterior | exact | from the guide (z) | from the prior (z) | k̂ | mean | sd | s |")
    print("|" + " --- |" * 8)
    for case in cases:
        if options.only and case["posterior"] not in options.only:
            continue
        model, exact = MODELS.get(case["posterior"]), case.get("log_evidence")
        if model is None:
            print(f"| {case['posterior']} | no model here |", flush=True)
            continue
        data = tensors(options.data / case["data"])
        start = time.perf_counter()
        guide = px.AutoJoint(model, family=px.FullCovariance())
        adam = partial(torch.optim.Adam, lr=0.02)
        run = px.fit(
            model, guide, px.ELBO(num_particles=4), (data,), adam, num_steps=options.steps, seed=0
        )
        cells = []
        for origin in ("guide", "prior") if exact is not None else ():
            found = px.ais(
                run,
                start=origin,
                num_chains=options.chains,
                num_temperatures=options.temperatures,
                seed=0,
            ).log_evidence
            cells.append(f"{found} ({(found.value - exact) / found.se:+.1f})")
        cells = cells or ["improper prior", ""]
        k_hat = px.k_hat_joint(run, seed=0).values.item()
        far = px.distances(run, means_and_sds(options.data / case["reference"])).marginals
        spent = time.perf_counter() - start
        print(
            f"| {case['posterior']} | {exact} | {cells[0]} | {cells[1]} | {k_hat:.2f} | "
            f"{far.worst_mean_error:+.2f} | {far.worst_sd_ratio:.2f} | {spent:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
