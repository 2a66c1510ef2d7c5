"""Every guide, family and loss on every awkward model keeps the contract of ``check_guide``."""

from functools import partial

import pytest
from awkward import (
    LOCAL_MODELS,
    Encoder,
    X,
    awkward_globals,
    awkward_locals,
    crossed_plates,
    one_global,
    one_local,
)

import pyro_ext as px
from pyro_ext.testing import check_guide

NORMALS = {
    "diagonal": px.Diagonal(),
    "triangle": px.FullCovariance(),
    "lu": px.FullCovariance("lu"),
    "dense": px.FullCovariance("dense"),
    "low-rank": px.LowRank(rank=2),
    "householder": px.Householder(num_reflections=2),
    "mixture": px.Mixture(px.Diagonal(), num_components=2),
    "mixture of triangles": px.Mixture(px.FullCovariance(), num_components=2),
}
NETWORKS = {
    "nsf": px.Flow("nsf", base=px.FullCovariance(), context=2, num_transforms=2, hidden=(8,)),
    "maf": px.Flow("maf", context=2, num_transforms=2, hidden=(8,)),
    "iaf": px.Flow("iaf", num_transforms=2, hidden=(8,)),
    "realnvp": px.Flow("realnvp", context=2, num_transforms=2, hidden=(8,)),
    "planar": px.Flow("planar", context=2, num_transforms=2, hidden=(8,)),
    "radial": px.Flow("radial", num_transforms=2, hidden=(8,)),
    "implicit": px.Implicit(noise_dim=3, context=2, hidden=(8,)),
}
FAMILIES = NORMALS | NETWORKS
SOURCES = {
    "per datapoint": px.AutoPerDatapoint,
    "amortized": lambda model, **options: px.AutoAmortized(model, Encoder(), **options),
    "semi-amortized": lambda model, **options: px.AutoSemiAmortized(model, Encoder(), **options),
    "given globals": partial(px.AutoPerDatapoint, condition_on_globals=True),
}
MODELS = (*LOCAL_MODELS.values(), crossed_plates)


def case(model, source, family):
    """Return a case; one in three, with every source and family among them, is not slow."""
    place = MODELS.index(model) + [*SOURCES].index(source) + [*FAMILIES].index(family)
    name = f"{model.__name__}-{source}-{family}"
    return pytest.param(
        model, source, family, id=name, marks=pytest.mark.slow if place % 3 else ()
    )


CASES = [
    case(model, source, family)
    for model in MODELS
    for source in (SOURCES if model is not crossed_plates else ("per datapoint", "given globals"))
    for family in (FAMILIES if model is awkward_locals else NORMALS)
    if model is not one_local or source != "given globals"  # it has none
    # Where plates cross all data make one weight, and a mixture in one plate has no losses.
    if model is not crossed_plates or not family.startswith("mixture")
]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("model", [one_global, awkward_globals])
def test_joint(model, family):
    check_guide(lambda: px.AutoJoint(model, family=family), model, X)


@pytest.mark.parametrize(("model", "source", "family"), CASES)
def test_local(model, source, family):
    family = FAMILIES[family]
    check_guide(
        lambda: SOURCES[source](model, family=family, global_family=family, plate="data"),
        model,
        X,
    )
