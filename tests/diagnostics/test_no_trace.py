"""No diagnostic changes the guide, the caller's random state, or the parameter store."""

import inspect

import numpy as np
import pyro
import pytest
import torch
from diagnostics.models import MODELS

import pyro_ext as px
from pyro_ext import diagnostics

LOCAL, HIERARCHY, REGRESSION = MODELS["local"], MODELS["hierarchy"], MODELS["regression"]


class Encoder(torch.nn.Module):
    """Whose dropout and running statistics would change in training mode."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(1, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5)
        )

    def forward(self, x):
        return self.layers(x.unsqueeze(-1))


def amortized():
    return LOCAL, px.AutoAmortized(LOCAL.model, Encoder())


def hierarchy():
    return HIERARCHY, px.AutoPerDatapoint(HIERARCHY.model)


def joint():
    return REGRESSION, px.AutoJoint(REGRESSION.model)


def draws(model, guide, args):
    return px.to_datatree(model, guide, *args, num_samples=30, seed=0)


def compared(model, guide, args):
    run = px.fit(model, guide, data=args, num_steps=1, seed=0)
    return lambda: px.compare({"one": run}, gaps=True, num_simulations=2, num_samples=30)


FEW = {"num_chains": 2, "num_temperatures": 2, "num_leapfrog": 1}
CALLS = {
    "ais": (amortized, lambda m, g, a: px.ais(m, g, *a, **FEW)),
    "bdmc": (amortized, lambda m, g, a: px.bdmc(m, g, *a, **FEW)),
    "evidence": (
        amortized,
        lambda m, g, a: px.evidence(m, g, *a, num_particles=20, num_repeats=2),
    ),
    "gaps": (amortized, lambda m, g, a: px.gaps(m, g, *a, num_samples=30, num_steps=2)),
    "rates": (amortized, lambda m, g, a: px.rates(m, g, *a, num_samples=30)),
    "sbc": (amortized, lambda m, g, a: px.sbc(m, g, *a, num_simulations=5, num_draws=5)),
    "sbc, refitted": (
        joint,
        lambda m, g, a: px.sbc(m, g, *a, num_simulations=2, num_draws=5, num_steps=2),
    ),
    "k_hat_joint": (joint, lambda m, g, a: px.k_hat_joint(m, g, *a, num_samples=30)),
    "k_hat_per_datapoint": (
        amortized,
        lambda m, g, a: px.k_hat_per_datapoint(m, g, *a, num_samples=30),
    ),
    "to_datatree": (hierarchy, lambda m, g, a: px.to_datatree(m, g, *a, num_samples=5)),
    "loo": (hierarchy, lambda m, g, a: px.loo(m, g, *a, num_samples=30, num_inner=3)),
    "marginal_log_likelihood": (
        hierarchy,
        lambda m, g, a: px.marginal_log_likelihood(m, g, *a, num_samples=5, num_inner=3),
    ),
    "importance_resample": (joint, lambda m, g, a: px.importance_resample(draws(m, g, a))),
    "distances": (joint, lambda m, g, a: px.distances(draws(m, g, a), draws(m, g, a))),
    "nuts": (
        joint,
        lambda m, g, a: px.nuts(m, *a, num_samples=2, warmup_steps=2, num_chains=1),
    ),
    "compare": (amortized, lambda m, g, a: compared(m, g, a)()),
    "k_hat": (joint, lambda m, g, a: px.k_hat(torch.linspace(0, 1, 30) ** 2)),
    "from_draws": (joint, lambda m, g, a: px.from_draws({"a": torch.zeros(3)})),
}


def state(guide):
    store = pyro.get_param_store()
    return {
        "torch": torch.get_rng_state(),
        # Not that of Python's random, from which the type checker of the tests draws.
        "numpy": torch.as_tensor(np.random.get_state()[1].astype(np.int64)),  # noqa: NPY002
        **{f"guide {name}": value.clone() for name, value in guide.state_dict().items()},
        **{f"store {name}": value.detach().clone() for name, value in store.items()},
        "modes": torch.tensor([module.training for module in guide.modules()]),
        "gradients": torch.tensor([p.grad is not None for p in guide.parameters()]),
        "required": torch.tensor([p.requires_grad for p in guide.parameters()]),
    }


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
@pytest.mark.filterwarnings("ignore:importance_resample:UserWarning")
@pytest.mark.parametrize("name", CALLS)
def test_leaves_no_trace(name):
    make, call = CALLS[name]
    exact, guide = make()
    guide.setup(*exact.args)
    if name == "compare":
        call = compared(exact.model, guide, exact.args)
        guide.zero_grad(set_to_none=True)
    pyro.param("theirs", torch.tensor(2.0), constraint=pyro.distributions.constraints.positive)
    guide.train()
    before = state(guide)
    call() if name == "compare" else call(exact.model, guide, exact.args)
    after = state(guide)
    assert before.keys() == after.keys()
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=0, msg=key)


def test_every_public_diagnostic_is_called():
    public = {
        name
        for name, value in vars(diagnostics).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }
    tested = {name.partition(",")[0] for name in CALLS}
    assert public - tested == {"from_mcmc"}  # nuts calls it
