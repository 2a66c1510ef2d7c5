"""Tables read by rows: sparse gradients, and an optimizer that leaves other rows alone."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.nn import PyroModule
from pyro.optim import PyroOptim
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop, SparseAdam
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_ext as px
from pyro_ext.autoguide import AutoSemiAmortized
from pyro_ext.testing import NormalHierarchy, NormalLocal
from pyro_ext.training.optimizers import Optimizers

EXACT = NormalHierarchy.simulate(12, scale=0.7, local_scale=0.5, prior_scale=2.0)
X = EXACT.x
quiet = partial(px.fit, progress=False)
# Torch's own optimizers say so where no trainer of ours is around them.
UNCHECKED = pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")


def per_datapoint(model, **options):
    return px.AutoPerDatapoint(model, **options)


def semi_amortized(model, **options):
    return AutoSemiAmortized(model, lambda x: x.unsqueeze(-1), **options)


def table_of(guide):
    return guide.local_params if isinstance(guide, px.AutoPerDatapoint) else guide.delta


EVERY_TABLE = pytest.mark.parametrize("build", [per_datapoint, semi_amortized])


def pair_of(build, **options):
    """Return a dense and a sparse guide with the same parameters."""
    guides = []
    for sparse in (False, True):
        torch.manual_seed(0)
        guides.append(build(EXACT.model, sparse=sparse, **options))
        guides[-1].setup(X)
    return guides


def gradients(guide, loss, rows):
    torch.manual_seed(1)
    with px.MiniBatch("data", len(X), rows, sliced=True):
        value = loss.differentiable_loss(EXACT.model, guide, X[rows])
    return torch.autograd.grad(value, list(guide.parameters()))


@EVERY_TABLE
@pytest.mark.parametrize("condition_on_globals", [False, True])
@pytest.mark.parametrize(
    "loss",
    [px.ELBO(2), px.ELBO(2, estimator="stl"), px.IWAE(3, estimator="dreg"), px.ELBO(2, form="kl")],
    ids=repr,
)
def test_the_gradient_is_the_dense_one(build, condition_on_globals, loss):
    dense, sparse = pair_of(build, condition_on_globals=condition_on_globals)
    rows = torch.tensor([7, 2, 3])
    ours = gradients(sparse, loss, rows)
    seen = 0
    for theirs, grad in zip(gradients(dense, loss, rows), ours, strict=True):
        assert not theirs.is_sparse
        seen += grad.is_sparse
        if grad.is_sparse:
            assert grad.coalesce().indices().flatten().tolist() == [2, 3, 7]
            grad = grad.to_dense()
        torch.testing.assert_close(grad, theirs)
    assert seen == 1


@EVERY_TABLE
def test_full_batches_fit_as_the_dense_table_does(build):
    """Every row in every step: Adam by rows is Adam."""
    ends = []
    for guide in pair_of(build):
        quiet(EXACT.model, guide, px.ELBO(2), X, num_steps=20, seed=0)
        ends.append(torch.cat([p.detach().flatten() for p in guide.parameters()]))
    torch.testing.assert_close(*ends)


@EVERY_TABLE
def test_only_the_rows_of_the_batch_move(build):
    _, guide = pair_of(build)
    table = table_of(guide)
    optimizers, moments = None, None
    rows = torch.randperm(12).split(4)
    for number, batch in enumerate((rows[0], rows[1], rows[0])):
        before = table.detach().clone()
        if optimizers is not None:
            state = optimizers.optimizers[1].state[table]
            moments = {name: state[name].clone() for name in ("exp_avg", "exp_avg_sq")}
        for param in guide.parameters():
            param.grad = None
        with px.MiniBatch("data", len(X), batch, sliced=True):
            px.ELBO().differentiable_loss(EXACT.model, guide, X[batch]).backward()
        if optimizers is None:
            optimizers = Optimizers(partial(Adam, lr=0.1), None, list(guide.parameters()))
        optimizers.step()
        moved = (table != before).any(-1).nonzero().flatten()
        assert torch.equal(moved, batch.sort().values), number
        if moments is not None:
            for name, old in moments.items():
                now = optimizers.optimizers[1].state[table][name]
                changed = (now != old).any(-1).nonzero().flatten()
                assert torch.equal(changed, batch.sort().values), name


def test_mini_batches_reach_the_exact_posterior():
    exact = NormalLocal.simulate(12)
    guide = px.AutoPerDatapoint(exact.model, sparse=True)
    options = {
        "optim": partial(Adam, lr=0.2),
        "schedule": partial(CosineAnnealingLR, T_max=400),
        "num_steps": 400,
    }
    quiet(
        exact.model, guide, px.ELBO(4, estimator="stl"), exact.x, **options, batch_size=6, seed=0
    )
    value = -px.ELBO(4000).loss(exact.model, guide, exact.x)
    assert value == pytest.approx(exact.log_evidence().item(), abs=1e-3)


# ---------------------------------------------------------------------- optimizers


def first_gradients(**options):
    _, guide = pair_of(per_datapoint, **options)
    px.ELBO().differentiable_loss(EXACT.model, guide, X).backward()
    return guide, list(guide.parameters())


def test_options_and_schedule_go_along():
    guide, params = first_gradients()
    optim = partial(Adam, lr=0.3, betas=(0.8, 0.99), eps=1e-5)
    made = Optimizers(optim, partial(CosineAnnealingLR, T_max=4), params)
    user, rows = made.optimizers
    assert isinstance(rows, SparseAdam)
    assert rows.param_groups[0]["params"] == [guide.local_params]
    assert user.param_groups[0]["params"] == [guide.global_params]
    for _ in range(3):
        made.step()
        for name in ("lr", "betas", "eps"):
            assert rows.param_groups[0][name] == user.param_groups[0][name]
    assert user.param_groups[0]["lr"] < 0.3
    assert user.param_groups[0]["betas"] == (0.8, 0.99)


def test_groups_of_the_user_keep_their_rates():
    guide, params = first_gradients()

    def optim(params):
        return Adam([{"params": [p], "lr": 0.1 * (i + 1)} for i, p in enumerate(params)])

    made = Optimizers(optim, None, params)
    (group,) = [g for g in made.optimizers[1].param_groups if g["params"]]
    assert group["lr"] == pytest.approx(
        0.1 * (1 + [id(p) for p in params].index(id(guide.local_params)))
    )


@pytest.mark.parametrize("optim", [SGD, Adagrad])
def test_optimizers_that_take_sparse_gradients_take_all(optim):
    _, params = first_gradients()
    made = Optimizers(partial(optim, lr=0.1), None, params)
    assert [type(o) for o in made.optimizers] == [optim]
    made.step()


@pytest.mark.parametrize(
    ("optim", "got"),
    [
        (partial(AdamW, lr=0.1), r"AdamW\(weight_decay=0.01\)"),
        (partial(Adam, amsgrad=True), r"Adam\(amsgrad=True\)"),
        (RMSprop, r"RMSprop\(\)"),
    ],
)
def test_optimizers_without_a_form_by_rows_are_an_error(optim, got):
    guide = px.AutoPerDatapoint(EXACT.model, sparse=True)
    with pytest.raises(ValueError, match=rf"where a gradient is sparse.*got {got}.*sparse=False"):
        quiet(EXACT.model, guide, px.ELBO(), X, optim, num_steps=2)


def test_a_users_sparse_embedding():
    class Model(PyroModule):
        def __init__(self):
            super().__init__("model_of_test_sparse")
            self.shift = nn.Embedding(12, 1, sparse=True)

        def forward(self, x, index):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                loc = mu + self.shift(index).squeeze(-1)
                pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    model = Model()
    before = model.shift.weight.detach().clone()
    quiet(model, None, px.ELBO(), (X, torch.arange(12)), num_steps=1, batch_size=3, seed=0)
    assert (model.shift.weight != before).sum() == 3


# ---------------------------------------------------------------------- Pyro's SVI


def adam_by_rows(params, **options):
    return (SparseAdam if params[0].grad.is_sparse else Adam)(params, **options)


@UNCHECKED
def test_svi_with_an_optimizer_of_each_kind():
    guide = px.AutoPerDatapoint(EXACT.model, sparse=True)
    svi = SVI(EXACT.model, guide, PyroOptim(adam_by_rows, {"lr": 0.1}), px.ELBO())
    svi.step(X)
    before = [param.detach().clone() for param in guide.parameters()]
    svi.step(X)
    assert all((a != b).any() for a, b in zip(before, guide.parameters(), strict=True))


@UNCHECKED
def test_svi_with_sparse_adam_where_the_table_is_all():
    exact = NormalLocal.simulate(12)
    guide = px.AutoPerDatapoint(exact.model, sparse=True)
    svi = SVI(exact.model, guide, pyro.optim.SparseAdam({"lr": 0.1}), px.ELBO())
    losses = [svi.step(exact.x) for _ in range(30)]
    assert losses[-1] < losses[0]


def test_the_one_class_of_optimizer_of_svi_must_take_the_rows():
    guide = px.AutoPerDatapoint(EXACT.model, sparse=True)
    svi = SVI(EXACT.model, guide, pyro.optim.Adam({"lr": 0.1}), px.ELBO())
    with pytest.raises(RuntimeError, match=r"not support sparse gradients.*SparseAdam"):
        svi.step(X)
