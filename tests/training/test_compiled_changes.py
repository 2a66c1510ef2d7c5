"""What changes between compiled steps is noticed: modes, parameters, names, shapes, numbers."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from training.compiled_cases import Y, built_by, eight_schools, graph_svi, schools, vae

import pyro_ext as px


def test_changed_and_loaded_optimizers_are_noticed():
    svi = graph_svi(*eight_schools()[:2])
    for _ in range(3):
        svi.step(Y)
    first = svi._last
    svi.optimizer.param_groups[0]["betas"] = (0.5, 0.5)
    svi.step(Y), svi.step(Y)
    assert svi._last is not first
    second, count = svi._last, svi.optimizer.state_dict()["state"][0]["step"]
    assert count == 5
    svi.optimizer.load_state_dict(svi.optimizer.state_dict())
    svi.step(Y), svi.step(Y)
    assert svi._last is not second
    assert svi.optimizer.state_dict()["state"][0]["step"] == 7


def test_mode_switch_leads_to_another_graph_and_back():
    model, guide, args = vae(torch.nn.Dropout(0.5))
    svi = graph_svi(model, guide)
    dropout = model.__closure__[0].cell_contents[1]
    svi.step(*args), svi.step(*args)
    training = built_by(svi)
    dropout.eval()
    svi.step(*args), svi.step(*args)
    evaluating = built_by(svi)
    assert evaluating is not training
    dropout.train()
    svi.step(*args)
    assert built_by(svi) is training


@pytest.mark.filterwarnings("ignore:.*was not registered in the param store")
def test_frozen_parameter_stays_and_thaws():
    model, guide, args = vae()
    svi = graph_svi(model, guide)
    svi.step(*args), svi.step(*args)
    decoder = model.__closure__[0].cell_contents
    weight = decoder[0].weight
    weight.requires_grad = False
    frozen, other = weight.detach().clone(), decoder[0].bias.detach().clone()
    for _ in range(3):
        svi.step(*args)
    assert torch.equal(weight, frozen)
    assert not torch.equal(decoder[0].bias, other)
    weight.requires_grad = True
    for _ in range(3):
        svi.step(*args)
    assert not torch.equal(weight, frozen)


SCALE = torch.tensor(1.0)


class Holder:
    def __init__(self):
        self.scale = torch.tensor(1.0)


def rebinding(kind):
    """Return a model whose scale is held in some way, and a function that binds another."""
    scale, holder, table, module = torch.tensor(1.0), Holder(), {}, torch.nn.Linear(1, 1)
    table["scale"], listed = torch.tensor(1.0), [torch.tensor(1.0)]
    module.register_buffer("scale", torch.tensor(1.0))
    number = 1.0

    def model(x):
        known = {
            "closure": scale,
            "number": number,
            "global": SCALE,
            "object": holder.scale,
            "dict": table["scale"],
            "list": listed[0],
            "buffer": module.scale,
        }
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, known[kind]), obs=x)

    def rebind(value):
        nonlocal scale, number
        if kind == "closure":
            scale = value
        elif kind == "number":
            number = value.item()
        elif kind == "global":
            globals()["SCALE"] = value
        elif kind == "object":
            holder.scale = value
        elif kind == "dict":
            table["scale"] = value
        elif kind == "list":
            listed[0] = value
        else:
            module.scale = value

    return model, rebind


KINDS = ["closure", "number", "global", "object", "dict", "list", "buffer"]


@pytest.mark.parametrize("kind", KINDS)
def test_rebinding_is_noticed(kind, monkeypatch):
    monkeypatch.setitem(globals(), "SCALE", torch.tensor(1.0))
    model, rebind = rebinding(kind)
    x = torch.tensor(50.0)
    svi = graph_svi(model, px.AutoJoint(model), lambda ps: torch.optim.SGD(ps, lr=0.0))
    for _ in range(3):
        assert svi.step(x) > 1000  # x is 50 standard deviations away
    first = built_by(svi)
    rebind(torch.tensor(100.0))
    for _ in range(3):
        assert svi.step(x) < 10
    assert built_by(svi) is not first


def test_edits_in_place_are_seen_without_a_new_graph():
    model, _ = rebinding("closure")
    svi = graph_svi(model, px.AutoJoint(model), lambda ps: torch.optim.SGD(ps, lr=0.0))
    x = torch.tensor(50.0)
    for _ in range(3):
        assert svi.step(x) > 1000
    first = built_by(svi)
    next(
        c.cell_contents
        for c in model.__closure__
        if c.cell_contents is not x and isinstance(c.cell_contents, torch.Tensor)
    ).fill_(100.0)
    assert svi.step(x) < 10
    assert built_by(svi) is first


def test_what_changes_at_every_step_runs_eagerly_in_the_end():
    model, rebind = rebinding("number")
    svi = graph_svi(model, px.AutoJoint(model))
    x = torch.tensor(0.0)

    def many():
        for step in range(20):
            rebind(torch.tensor(1.0 + step))
            svi.step(x)

    with pytest.warns(UserWarning, match="'number' of function model"):
        many()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svi.step(x)


def test_shapes_have_a_graph_each_up_to_a_limit():
    guide = px.AutoJoint(schools)
    svi = graph_svi(schools, guide, max_graphs=1)
    guide.setup(Y)
    for _ in range(3):
        svi.step(Y)
    assert len(svi._graphs) == 1
    other = Y.float()
    with pytest.warns(UserWarning, match="larger max_graphs"):
        svi.step(other)
    svi.step(other)
    assert len(svi._graphs) == 1
    more = graph_svi(schools, guide, max_graphs=2)
    for _ in range(2):
        more.step(Y), more.step(other)
    assert len(more._graphs) == 2


def test_numbers_among_the_arguments_count():
    def model(x, scale=1.0):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)

    def guide(x, scale):
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))

    svi = graph_svi(model, guide, lambda ps: torch.optim.SGD(ps, lr=0.0))
    x = torch.tensor(50.0)
    for _ in range(3):
        assert svi.step(x, scale=1.0) > 1000
        assert svi.step(x, scale=100.0) < 10
    assert len(svi._graphs) == 2


def test_rebinding_behind_an_encoder_is_noticed():
    factor = torch.tensor(1.0)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def encoder(x):
        return factor * x.unsqueeze(-1)

    x = torch.tensor([1.0, 2.0])
    svi = graph_svi(model, px.AutoAmortized(model, encoder))
    for _ in range(3):
        svi.step(x)
    first = built_by(svi)
    factor = torch.tensor(2.0)
    for _ in range(2):
        svi.step(x)
    assert built_by(svi) is not first
