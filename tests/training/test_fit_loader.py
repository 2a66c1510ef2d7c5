"""Fits from a DataLoader: its batches, its order, the scale of the data plate."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
)

import pyro_ext as px
from pyro_ext.training import graphs
from pyro_ext.training.loader import LoaderBatches
from pyro_ext.training.ranks import Ranks

X = torch.linspace(-2, 3, 10)
quiet = partial(px.fit, progress=False)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class Encoder(nn.Module):
    def forward(self, x):
        return x.unsqueeze(-1)


def amortized(model=model, **options):
    torch.manual_seed(0)
    return px.AutoAmortized(model, Encoder(), **options)


class Maps(torch.utils.data.Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, row):
        return {"x": X[row]}


def loader_of(data, **options):
    return DataLoader(data, **{"batch_size": 4, "shuffle": True, **options})


LOADERS = {
    "tensors": lambda **options: loader_of(X.tolist(), collate_fn=torch.tensor, **options),
    "tuples": lambda **options: loader_of(TensorDataset(X), **options),
    "maps": lambda **options: loader_of(Maps(), **options),
}


def check_scale(pair, loader, *whole):
    """Assert that the mean over an epoch of equal batches is the loss of all rows.

    There is next to no noise: the draws have a standard deviation of 1e-6, the entropy is exact.
    """
    loss, still = px.ELBO(form="entropy"), partial(torch.optim.SGD, lr=0.0)
    run = quiet(*pair, loss, loader, still, num_steps=2, seed=0)
    assert run.losses.mean() == pytest.approx(loss.loss(*pair, *whole), abs=1e-3)
    assert np.ptp(run.losses) > 1
    assert run.num_data == 10


@pytest.mark.parametrize("name", LOADERS)
def test_the_data_plate_is_scaled(name):
    check_scale((model, amortized(init_scale=1e-6)), LOADERS[name](batch_size=5), X)


@pytest.mark.parametrize("name", LOADERS)
def test_every_row_is_seen_once_an_epoch_in_a_new_order(name):
    seen = []
    guide = amortized()
    guide.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append([*args, *kwargs.values()][0].tolist()),
        with_kwargs=True,
    )
    quiet(model, guide, px.ELBO(), LOADERS[name](), num_steps=6, seed=0, compile=False)
    first, second = seen[-6:-3], seen[-3:]
    for epoch in (first, second):
        assert sorted(row for rows in epoch for row in rows) == X.tolist()
    assert first != second


@pytest.mark.parametrize("generator", [None, 5])
@pytest.mark.parametrize("name", LOADERS)
def test_a_run_that_was_stopped_goes_on_to_the_last_bit(name, generator, tmp_path):
    def fit(folder=None, **options):
        own = None if generator is None else torch.Generator().manual_seed(generator)
        saving = {} if folder is None else {"checkpoints": px.Checkpoints(folder, every=4)}
        loader = LOADERS[name](generator=own)
        return quiet(
            model, amortized(), px.IWAE(2), loader, num_steps=20, seed=0, **saving, **options
        )

    def stop(progress):
        if progress.step == 10:
            raise KeyError("stopped here")

    never = fit()
    with pytest.raises(KeyError, match="stopped here"):
        fit(tmp_path, callbacks=[stop])
    torch.manual_seed(99)
    assert np.array_equal(fit(tmp_path).losses, never.losses)


OTHERS = {
    "data": ((X + 1, 4), r"whose data of the loader is '\w+'; got '\w+'\. Write: the same data"),
    "rows": ((X[:9], 4), r"whose number of rows is 9; got 10\. Write: the same number of rows"),
    "batches": ((X, 5), r"whose batch_size of the loader is 5; got 4\. Write: the same batch_si"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_another_loader_is_refused(name, tmp_path):
    def fit(x, size):
        loader = loader_of(TensorDataset(x), batch_size=size)
        options = {"num_steps": 7, "seed": 0, "checkpoints": tmp_path}
        return quiet(model, amortized(), px.ELBO(), loader, **options)

    fit(X, 4)
    other, match = OTHERS[name]
    with pytest.raises(ValueError, match=match):
        fit(*other)


def test_compiled_steps_are_the_eager_ones(monkeypatch):
    monkeypatch.setattr(graphs, "BACKEND", "graph")
    for name in LOADERS:
        losses = []
        for compile in (True, False):
            options = {"num_steps": 20, "seed": 0, "compile": compile}
            run = quiet(model, amortized(), px.ELBO(), LOADERS[name](), **options)
            losses.append(run.losses)
            assert run.compiled.startswith("from step 1 on" if compile else "no")
        np.testing.assert_allclose(*losses, rtol=1e-10)


def test_a_model_that_is_given_its_rows_needs_no_scale():
    def given(x, rows):
        with pyro.plate("data", 10, subsample=rows):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    rows = torch.arange(10)
    guide = px.AutoPerDatapoint(given, init_scale=1e-6)
    check_scale((given, guide), loader_of(TensorDataset(X, rows), batch_size=5), X, rows)


HALF = (1, 3, 5, 6, 8)
SUBSETS = {
    "sampler": lambda data, part: DataLoader(data, batch_size=1, sampler=part),
    "batches": lambda data, part: DataLoader(
        data, batch_sampler=BatchSampler(part, 1, drop_last=False)
    ),
    "lists": lambda data, part: DataLoader(
        data, batch_size=None, sampler=BatchSampler(part, 1, drop_last=False)
    ),
}


@pytest.mark.parametrize("name", SUBSETS)
def test_the_rows_are_those_of_the_subset_that_is_drawn_from(name):
    """Its size scales the plate, as where the other rows are held out."""
    pair, loss = (model, amortized(init_scale=1e-6)), px.ELBO(form="entropy")
    loader = SUBSETS[name](TensorDataset(X), SubsetRandomSampler(HALF))
    still = partial(torch.optim.SGD, lr=0.0)
    run = quiet(*pair, loss, loader, still, num_steps=5, seed=0)
    assert run.num_data == 5
    assert run.losses.mean() == pytest.approx(loss.loss(*pair, X[list(HALF)]), abs=1e-3)


def test_faults_are_named():
    bad = X.clone()
    bad[7] = float("nan")
    loader = loader_of(TensorDataset(bad), shuffle=False)
    with pytest.raises(ValueError, match=r"not finite in rows \[3\]"):
        quiet(model, amortized(), px.ELBO(), loader, num_steps=9, seed=0)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(X)


class Once(Stream):
    """Data that can be gone through once."""

    def __init__(self):
        self.rows = iter(X)

    def __iter__(self):
        return self.rows


def fit_from(loader, **options):
    def given(x):
        with pyro.plate("rows", 99, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0), obs=x)

    return quiet(given, lambda x: None, px.ELBO(), loader, num_steps=9, seed=0, **options)


REFUSED = {
    "no batch": (
        lambda: fit_from(LOADERS["tuples"](batch_size=11, drop_last=True)),
        r"expected a DataLoader that has batches in each epoch.*; got an epoch that ended early",
    ),
    "one epoch": (
        lambda: fit_from(DataLoader(Once(), batch_size=2)),
        r"expected a DataLoader that has batches in each epoch.*Write: an IterableDataset whose",
    ),
    "batches for data": (
        lambda: quiet(model, amortized(), px.ELBO(), DataLoader(X.split(2), batch_size=None)),
        r"expected a loader that knows how many rows there are.*; got one that does not tell",
    ),
    "no such plate": (
        lambda: quiet(model, amortized(), px.ELBO(), LOADERS["tuples"](), plate="dta"),
        r"fit: expected plate to be one of the model's, \['data'\]; got 'dta'\. Write: the name",
    ),
    "a table": (
        lambda: quiet(model, px.AutoPerDatapoint(model), px.ELBO(), LOADERS["tuples"]()),
        r"which of the 10 rows of plate 'data' a batch has.*a DataLoader, which does not tell",
    ),
    "no length": (
        lambda: quiet(model, amortized(), px.ELBO(), DataLoader(Stream(), batch_size=4)),
        r"expected a loader that knows how many rows there are, to scale plate 'data'",
    ),
    "no settings": (
        lambda: quiet(model, data=LOADERS["tuples"](), optim="auto"),
        r"expected data in a tensor with optim='auto'",
    ),
    "two sizes of a batch": (
        lambda: quiet(model, amortized(), px.ELBO(), LOADERS["maps"](), batch_size=3),
        r"expected a DataLoader without batch_size, as it has its own; got 3",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    act, match = REFUSED[name]
    with pytest.raises(ValueError, match=match):
        act()


def test_a_run_without_its_data_says_what_to_write():
    run = quiet(model, amortized(), px.ELBO(), LOADERS["maps"](), num_steps=2, seed=0)
    with pytest.raises(ValueError, match=r"run\.guide\.sample_posterior\(num_samples, x\)"):
        run.sample(3)
    with pytest.raises(ValueError, match=r"px\.evidence\(run\.model, run\.guide, x\)"):
        px.evidence(run)


# ---------------------------------------------------------------------- devices


class Elsewhere(nn.Module):
    """A model on a device of its own, where there are no numbers, and its methods."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros((), device="meta"))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.loc, 1.0, validate_args=False), obs=x)

    def other(self, x):
        return self(x)


SEEN = {
    "module": lambda module: module,
    "method": lambda module: module.other,
    "closure": lambda module: lambda x: module(x),
    "partial": lambda module: partial(lambda part, x: part(x), module),
    "object": lambda module: Holder(module).model,
}


class Holder:
    def __init__(self, module):
        self.module = module

    def model(self, x):
        return self.module(x)


@pytest.mark.parametrize("name", SEEN)
def test_batches_go_to_the_device_of_a_module_that_the_model_sees(name):
    model = SEEN[name](Elsewhere())
    batches = LoaderBatches(model, lambda x: None, LOADERS["tuples"](), None, Ranks())
    (x,) = batches.first.args
    assert x.device.type == "meta"
    assert next(batches).args[0].device.type == "meta"
