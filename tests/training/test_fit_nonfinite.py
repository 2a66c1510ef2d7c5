"""What a fit says when something is not finite, and what it does then."""

import random
import re
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

import pyro_ext as px
from pyro_ext.testing import NormalLocal
from pyro_ext.training import graphs

quiet = partial(px.fit, progress=False)


def local(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("num_steps", [0, -3])
def test_num_steps(num_steps):
    with pytest.raises(ValueError, match=rf"num_steps >= 1; got {num_steps}"):
        quiet(local, data=torch.zeros(3), num_steps=num_steps)


def test_nothing_to_fit():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="expected a parameter to fit"):
        quiet(local, guide, px.ELBO(), torch.zeros(3))


@pytest.mark.parametrize("batch_size", [None, 2])
def test_nan_in_the_data(batch_size):
    x = torch.zeros(9)
    x[[3, 7]] = float("nan")
    guide = px.AutoPerDatapoint(local)
    match = r"(?s)before the first step, site 'x'.* not finite in rows \[3, 7\]"
    with pytest.raises(ValueError, match=match):
        quiet(local, guide, px.ELBO(), x, num_steps=9, batch_size=batch_size)


def test_data_that_are_not_finite_in_a_later_batch():
    """A model that draws its rows inside: the first look does not see them all."""
    x = torch.zeros(40)
    x[17] = float("inf")
    model = NormalLocal(x, subsample_size=2).model
    guide = px.AutoPerDatapoint(model)
    guide.setup(x)
    states = []

    class Recorded(Adam):
        def step(self, closure=None):
            result = super().step(closure)
            states.append(guide.local_params.detach().clone())
            return result

    with pytest.raises(ValueError, match="fit: expected a finite loss") as caught:
        quiet(
            model,
            guide,
            px.ELBO(),
            x,
            partial(Recorded, lr=0.1),
            num_steps=99,
            batch_size=2,
            seed=0,
        )
    message = str(caught.value)
    assert f"at step {len(states)}." in message
    assert len(states) > 0
    assert "site 'x'" in message.lower()
    assert "rows [17]" in message
    assert torch.equal(guide.local_params, states[-1])


def test_sliced_data_that_are_not_finite_in_a_later_batch():
    x = torch.zeros(40)
    x[17] = float("inf")
    guide = px.AutoPerDatapoint(local)
    with pytest.raises(ValueError, match=r"(?s)at step \d+\. Site 'x'.*rows \[17\]") as caught:
        quiet(local, guide, px.ELBO(), x, num_steps=99, batch_size=2, seed=0)
    assert "the step before" in str(caught.value)


def test_a_parameter_that_is_not_finite():
    guide = px.AutoPerDatapoint(local)
    match = (
        r"'guide: local_params' of shape \(3, 2\) is not finite already.*Lower the learning rate"
    )
    with pytest.raises(ValueError, match=match):
        quiet(local, guide, px.ELBO(), torch.zeros(3), partial(SGD, lr=float("inf")), num_steps=50)


# ---------------------------------------------------------------------- injected faults


class Injected(nn.Module):
    """A VAE into which a fault is put at a step."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 4))
        self.decoder = nn.Linear(2, 2)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)


class Guide(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.encoder = net.encoder

    def forward(self, x):
        pyro.module("guide", self)
        with pyro.plate("data", len(x)):
            loc, scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


class Faults:
    """Tensors that spoil a layer's output once they are set; a compiled step reads them, too."""

    def __init__(self):
        self.gradient, self.factor = torch.zeros(()), torch.ones(())

    def spoil_gradient(self, module, args, out):
        """Return the output, whose derivative is not finite once ``gradient`` is one."""
        off = 1 - self.gradient
        return out + ((out - out.detach()).abs() + off).sqrt() - off.sqrt()

    def spoil_output(self, module, args, out):
        return out * self.factor


def faults(net, spoiled, x, rows):
    """From the name of a fault to what injects it, and how the message names it."""

    def data():
        x[rows] = float("nan")

    def parameter():
        with torch.no_grad():
            net.decoder.weight[0, 0] = float("nan")

    def gradient():
        spoiled.gradient.fill_(1.0)

    def output():
        spoiled.factor.fill_(float("inf"))

    return {
        "data": (data, rf"the guide says: .*Argument 0 .*rows \[{rows}\]"),
        "parameter": (parameter, r"Parameter 'param: decoder\$\$\$weight' of shape \(2, 2\)"),
        "gradient": (gradient, r"finite gradient; got nan.*gradient of 'guide: encoder.0.weight'"),
        "encoder": (output, r"the guide says.*come out of module 'encoder.2' of the guide"),
    }


def inject(fault, number, *, num_steps=12, compile=False, **options):
    """Return a fit into which a fault is put after a step, how it is named, and the pair."""
    torch.manual_seed(number)
    net, x, spoiled = Injected(), torch.randn(10, 2), Faults()
    net.encoder[1].register_forward_hook(spoiled.spoil_gradient)
    net.encoder[2].register_forward_hook(spoiled.spoil_output)
    guide, row = Guide(net), number % 10
    act, match = faults(net, spoiled, x, row)[fault]

    def callback(progress):
        if progress.step == number:
            act()

    given = {"num_steps": num_steps, "seed": number, "callbacks": [callback], "compile": compile}
    adam = partial(Adam, lr=0.01)
    fit = partial(quiet, net.model, guide, px.ELBO(), x, adam, **given, **options)
    return fit, match, (net, guide)


def check_fault(fault, number, **options):
    fit, match, (net, guide) = inject(fault, number, num_steps=number + 4, **options)
    with pytest.raises(ValueError, match=rf"(?s)at step {number + 1}\. .*") as caught:
        fit()
    assert re.search(f"(?s){match}", str(caught.value)), str(caught.value)
    params = (*net.parameters(), *guide.parameters())
    assert fault == "parameter" or all(torch.isfinite(p).all() for p in params)


FAULTS = ["data", "parameter", "gradient", "encoder"]


@pytest.mark.parametrize("number", [0, 3, 8])
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named(fault, number):
    check_fault(fault, number)


@pytest.mark.parametrize(("fault", "number"), [*((fault, 5) for fault in FAULTS), ("data", 0)])
def test_each_fault_of_a_compiled_step_is_named(fault, number, monkeypatch):
    """The step after step 0 is the one that is to be compiled."""
    monkeypatch.setattr(graphs, "BACKEND", "graph")
    check_fault(fault, number, compile=True)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "compile"), [(50, False), (10, True)])
def test_faults_at_random_steps(count, compile, monkeypatch):
    monkeypatch.setattr(graphs, "BACKEND", "graph")
    choice = random.Random(0)
    for _ in range(count):
        pyro.clear_param_store()
        check_fault(choice.choice(FAULTS), choice.randrange(150), compile=compile)


def spiked(rate, at):
    """A schedule of the rate with spikes that make a parameter overflow."""
    return lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: rate if t == at else 1.0)


def test_a_step_that_is_skipped_changes_nothing_and_is_told():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x[rows])

    x = torch.zeros(20)
    x[3] = float("inf")
    with pytest.warns(UserWarning, match=r"rows \[3\].*The step is left out") as told:
        run = quiet(
            model,
            data=x,
            batch_size=2,
            num_steps=40,
            seed=0,
            nonfinite="skip",
        )
    assert len(told) == 1
    assert "4 steps were left out as not finite" in run.stopped
    assert (~torch.isfinite(torch.tensor(run.losses))).sum() == 4
    assert all(torch.isfinite(p).all() for p in run.guide.parameters())


def test_halving_goes_back_and_goes_on():
    guide = px.AutoPerDatapoint(local)
    with pytest.warns(UserWarning, match="undone, with all rates halved"):
        run = quiet(
            local,
            guide,
            px.ELBO(),
            torch.zeros(3),
            partial(SGD, lr=0.1),
            schedule=spiked(1e200, at=20),
            num_steps=60,
            nonfinite="halve",
            seed=0,
        )
    assert "left out as not finite" in run.stopped
    assert torch.isfinite(guide.local_params).all()
    optimizer = run.session.stepper.optimizers.optimizers[0]
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_a_fit_that_is_never_finite_again_ends_with_an_error():
    fit, _, _ = inject("encoder", 2, nonfinite="skip", num_steps=500)
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ValueError, match="100 times in a row"),
    ):
        fit()


def test_a_run_that_froze_is_no_plateau():
    plateau = px.Plateau(window=40, z=5.0, patience=1)
    fit, _, _ = inject("encoder", 50, nonfinite="skip", num_steps=130, plateau=plateau)
    with pytest.warns(UserWarning, match="left out"):
        run = fit()
    assert run.stopped == "num_steps=130 reached; 79 steps were left out as not finite"


def test_other_ways():
    with pytest.raises(ValueError, match=r"expected nonfinite to be one of .*; got 'ignore'"):
        quiet(local, data=torch.zeros(3), nonfinite="ignore")
