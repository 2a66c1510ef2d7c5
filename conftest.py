"""Isolation of every test and doctest: seed, parameter store, and guards on global settings."""

import os
import sys

os.environ["MPLBACKEND"] = "Agg"

import pyro
import pytest
import torch
from torch.distributions import Distribution


def global_settings():
    """Return the settings of torch that no test and no import may change."""
    return {
        "argument validation": Distribution._validate_args,
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradient mode": torch.is_grad_enabled(),
    }


def restore(settings):
    """Put the settings back, so that one test at fault does not fail those after it."""
    Distribution.set_default_validate_args(settings["argument validation"])
    torch.set_default_dtype(settings["default dtype"])
    torch.set_default_device(settings["default device"])
    torch.set_grad_enabled(settings["gradient mode"])


@pytest.fixture(autouse=True)
def isolate(request):
    """Same seed, empty parameter store, float32 in doctests; settings left as they were."""
    outside = global_settings()
    if isinstance(request.node, pytest.DoctestItem):
        torch.set_default_dtype(torch.float32)
    before = global_settings()
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    yield
    after = global_settings()
    restore(outside)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    assert not changed, f"changed a global setting (before, after): {changed}"


@pytest.fixture(autouse=True)
def names_for_doctests(request, doctest_namespace):
    """Give the doctests the names that every docstring of the package may take for granted."""
    if isinstance(request.node, pytest.DoctestItem):
        import pyro_ext

        doctest_namespace.update(torch=torch, pyro=pyro, dist=pyro.distributions, px=pyro_ext)
