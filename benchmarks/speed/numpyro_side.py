"""The same steps in NumPyro, in a process of its own: a line with a workload in, a time out.

``python numpyro_side.py`` runs in an environment that has NumPyro, and answers lines
``W1 update 200`` and ``W1 scan 200`` with seconds per step.
"""

import os
import sys
import time
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from numpyro import optim
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

LATENT, HIDDEN, PIXELS = 50, 200, 784
CLOCK = time.process_time if os.environ.get("OMP_NUM_THREADS") == "1" else time.perf_counter
GENERATOR = np.random.default_rng(0)


def layers(key, *sizes):
    keys = random.split(key, len(sizes))
    shapes = zip(keys, pairwise(sizes), strict=False)
    return [(random.normal(k, (a, b)) / np.sqrt(a), jnp.zeros(b)) for k, (a, b) in shapes]


def apply(params, x):
    for index, (weight, bias) in enumerate(params):
        x = x @ weight + bias
        if index < len(params) - 1:
            x = jax.nn.softplus(x)
    return x


def vae(batch, num_particles):
    x = jnp.asarray(GENERATOR.random((batch, PIXELS)) < 0.3, dtype=jnp.float32)
    first = layers(random.PRNGKey(0), LATENT, HIDDEN, HIDDEN, PIXELS)
    second = layers(random.PRNGKey(1), PIXELS, HIDDEN, HIDDEN, 2 * LATENT)

    def model(x):
        decoder = numpyro.param("decoder", first)
        with numpyro.plate("data", batch):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(LATENT), 1.0).to_event(1))
            logits = apply(decoder, z)
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x):
        out = apply(numpyro.param("encoder", second), x)
        with numpyro.plate("data", batch):
            scale = jax.nn.softplus(out[:, LATENT:])
            numpyro.sample("z", dist.Normal(out[:, :LATENT], scale).to_event(1))

    loss = Trace_ELBO() if num_particles == 1 else RenyiELBO(alpha=0, num_particles=num_particles)
    return model, guide, loss, (x,)


def eight_schools():
    y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfCauchy(5))
        with numpyro.plate("schools", 8):
            z = numpyro.sample("z", dist.Normal(0, 1))
            numpyro.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)

    return model, AutoNormal(model), Trace_ELBO(), (y,)


def logistic():
    x = jnp.asarray(GENERATOR.standard_normal((5_000, 50)), dtype=jnp.float32)
    t = jnp.asarray(GENERATOR.random(5_000) < 0.5, dtype=jnp.float32)

    def model(x, t):
        b = numpyro.sample("b", dist.Normal(jnp.zeros(50), 1.0).to_event(1))
        with numpyro.plate("data", 5_000):
            numpyro.sample("t", dist.Bernoulli(logits=x @ b), obs=t)

    return model, AutoMultivariateNormal(model), Trace_ELBO(num_particles=10), (x, t)


def local_latents():
    x = jnp.asarray(GENERATOR.standard_normal(10_000), dtype=jnp.float32)

    def model(x):
        with numpyro.plate("data", 10_000, subsample_size=256) as rows:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide(x):
        loc = numpyro.param("loc", jnp.zeros(10_000))
        raw = numpyro.param("raw", jnp.full(10_000, -2.0))
        with numpyro.plate("data", 10_000, subsample_size=256) as rows:
            numpyro.sample("z", dist.Normal(loc[rows], jax.nn.softplus(raw[rows])))

    return model, guide, Trace_ELBO(), (x,)


WORKLOADS = {
    "W1": lambda: vae(100, 1),
    "W2": lambda: vae(20, 50),
    "W3": eight_schools,
    "W4": logistic,
    "W5": local_latents,
}


class Runner:
    def __init__(self, name):
        model, guide, loss, args = WORKLOADS[name]()
        svi = SVI(model, guide, optim.Adam(1e-3), loss)
        self.state = svi.init(random.PRNGKey(0), *args)
        self._update = jax.jit(lambda state: svi.update(state, *args))
        self._scans = {}
        self._body = lambda state, _: svi.update(state, *args)

    def update(self, count):
        for _ in range(count):
            self.state, loss = self._update(self.state)
            loss.block_until_ready()

    def scan(self, count):
        if count not in self._scans:
            self._scans[count] = jax.jit(lambda s: lax.scan(self._body, s, None, length=count))
        self.state, losses = self._scans[count](self.state)
        losses.block_until_ready()


def main():
    runners = {}
    print("ready", flush=True)
    for line in sys.stdin:
        name, how, count = line.split()
        if name not in runners:
            runners[name] = Runner(name)
        run = getattr(runners[name], how)
        if (name, how, count) not in runners:
            run(int(count))  # compiles
            runners[name, how, count] = True
        start = CLOCK()
        run(int(count))
        print((CLOCK() - start) / int(count), flush=True)


if __name__ == "__main__":
    main()
