"""NumPyro's side of `accuracy.py`, in a process of its own: requests on stdin, answers on stdout.

A request is a line of JSON; arrays travel in .npz files that it names.
"""

import json
import sys
import time
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import lax, random
from numpyro import optim
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal
from numpyro.infer.util import log_density
from numpyro_models import MODELS

GUIDES = {
    "AutoNormal": AutoNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
    "AutoIAFNormal": AutoIAFNormal,
}


def arrays(path):
    with np.load(path) as file:
        args = [jnp.asarray(file[name]) for name in file.files if name.startswith("arg_")]
        points = {n[6:]: jnp.asarray(file[n]) for n in file.files if n.startswith("point_")}
    return args, points


def densities(posterior, path):
    """Return the log density at each of the points."""
    args, points = arrays(path)
    one = lambda point: log_density(MODELS[posterior], args, {}, point)[0]  # noqa: E731
    return {"log_density": jax.vmap(one)(points).tolist()}


def fit(posterior, path, guide, steps, particles, lr, seed, draws, out):
    """Fit a guide; write its draws and their log weights."""
    args, _ = arrays(path)
    model = MODELS[posterior]
    guide = GUIDES[guide](model)
    cosine = lambda step: lr * 0.5 * (1 + jnp.cos(jnp.pi * step / steps))  # noqa: E731
    svi = SVI(model, guide, optim.Adam(cosine), Trace_ELBO(num_particles=particles))
    begun = time.process_time()
    state = svi.init(random.PRNGKey(seed), *args)
    state, _ = jax.jit(
        lambda start: lax.scan(lambda s, _: svi.update(s, *args), start, None, length=steps)
    )(state)
    params = jax.block_until_ready(svi.get_params(state))
    seconds = time.process_time() - begun

    key, other = random.split(random.PRNGKey(seed + 1))
    one = lambda k: -Trace_ELBO().loss(k, params, model, guide, *args)  # noqa: E731
    log_w = jax.jit(jax.vmap(one))(random.split(key, draws))
    sites = guide.sample_posterior(other, params, *args, sample_shape=(draws,))
    np.savez(out, log_w=log_w, **{f"site_{name}": value for name, value in sites.items()})
    return {"seconds": seconds}


def until(posterior, path, guide, bound, every, limit, particles, lr, seed):
    """Take steps until the ELBO of 4,000 draws has reached a bound; looks are not timed."""
    args, _ = arrays(path)
    model = MODELS[posterior]
    guide = GUIDES[guide](model)
    svi = SVI(model, guide, optim.Adam(lr), Trace_ELBO(num_particles=particles))
    body = lambda s, _: svi.update(s, *args)  # noqa: E731
    take = jax.jit(lambda start: lax.scan(body, start, None, length=every)[0])
    look = jax.jit(
        lambda key, state: (
            -Trace_ELBO(num_particles=4000).loss(key, svi.get_params(state), model, guide, *args)
        )
    )
    begun = time.process_time()
    state = svi.init(random.PRNGKey(seed), *args)
    seconds, elbo, steps = time.process_time() - begun, -np.inf, 0
    while elbo < bound and steps < limit:
        begun = time.process_time()
        state = jax.block_until_ready(take(state))
        seconds += time.process_time() - begun
        steps += every
        elbo = float(look(random.PRNGKey(seed + steps), state))
    return {"seconds": seconds, "steps": steps, "elbo": elbo, "reached": elbo >= bound}


def main():
    numpyro.enable_x64()
    versions = {name: version(name) for name in ("numpyro", "jax")}
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        act = {"densities": densities, "fit": fit, "until": until}[request.pop("act")]
        print(json.dumps(act(**request)), flush=True)


if __name__ == "__main__":
    main()
