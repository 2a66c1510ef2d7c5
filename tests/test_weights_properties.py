"""Log weights of random model structures equal those of a plain loop over elements."""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyro_ext as px

FAMILIES = {
    "real": lambda loc: dist.Normal(loc, 0.7),
    "positive": lambda loc: dist.LogNormal(loc, 0.4),
    "unit": lambda loc: dist.Beta(1.5 + loc**2, 2.0),
    "discrete": lambda loc: dist.Poisson(0.5 + loc**2),
}


@dataclass(frozen=True)
class Site:
    """A latent site: its support, whether it is in the plate, its parent and its mask."""

    kind: str
    inside: bool
    parent: int | None
    mask: tuple[bool, ...] | None


@dataclass(frozen=True)
class Structure:
    sites: tuple[Site, ...]
    size: int
    rows: tuple[int, ...]
    seen: tuple[bool, ...] | None

    def where(self, mask):
        """Return a mask of the rows that are drawn."""
        return True if mask is None else torch.tensor([mask[row] for row in self.rows])

    def run(self, x, shift):
        """The model with ``shift`` 0, else the guide, which has no data."""
        values = {}
        for number, site in enumerate(self.sites):
            if not site.inside:
                self.draw(values, number, shift)
        rows = torch.tensor(self.rows)
        with pyro.plate("data", self.size, subsample=rows):
            for number, site in enumerate(self.sites):
                if site.inside:
                    with pyro.poutine.mask(mask=self.where(site.mask)):
                        self.draw(values, number, shift)
            if shift == 0:
                with pyro.poutine.mask(mask=self.where(self.seen)):
                    loc = sum(values.values())
                    pyro.sample("x", dist.Normal(loc, 1.0), obs=x[rows])

    def draw(self, values, number, shift):
        site = self.sites[number]
        loc = 0.3 if site.parent is None else 0.5 * values[site.parent]
        values[number] = pyro.sample(
            f"z{number}", FAMILIES[site.kind](torch.as_tensor(loc) + shift)
        )


@st.composite
def structures(draw):
    size = draw(st.integers(1, 5))
    rows = draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=size, unique=True))
    masks = st.none() | st.tuples(*[st.booleans()] * size)
    sites = []
    for number in range(draw(st.integers(1, 4))):
        inside = draw(st.booleans())
        parents = [i for i, site in enumerate(sites) if inside or not site.inside]
        parent = draw(st.sampled_from([None, *parents]))
        mask = draw(masks) if inside else None
        sites.append(Site(draw(st.sampled_from(list(FAMILIES))), inside, parent, mask))
        assert number == len(sites) - 1
    return Structure(tuple(sites), size, tuple(rows), draw(masks))


def plain(structure, x, values, shift):
    """Return log p (shift 0) or log q of one particle, in loops over rows."""
    scale = structure.size / len(structure.rows)
    total = 0.0

    def value_of(number, place):
        value = values[number]
        return value[place] if structure.sites[number].inside else value

    for number, site in enumerate(structure.sites):
        for place, row in enumerate(structure.rows if site.inside else [None]):
            if site.mask is not None and not site.mask[row]:
                continue
            loc = 0.3 if site.parent is None else 0.5 * value_of(site.parent, place)
            density = FAMILIES[site.kind](torch.as_tensor(loc) + shift)
            weight = scale if site.inside else 1.0
            total += weight * density.log_prob(value_of(number, place)).item()
    for place, row in enumerate(structure.rows if shift == 0 else []):
        if structure.seen is None or structure.seen[row]:
            loc = sum(value_of(number, place) for number in range(len(structure.sites)))
            total += scale * dist.Normal(loc, 1.0).log_prob(x[row]).item()
    return total


@settings(max_examples=40, deadline=None, derandomize=True)
@given(structures(), st.integers(1, 3))
def test_log_weights_are_those_of_a_plain_loop(structure, particles):
    pyro.set_rng_seed(0)
    x = torch.linspace(-1, 1, structure.size)
    model = lambda: structure.run(x, 0.0)  # noqa: E731
    guide = lambda: structure.run(x, 0.2)  # noqa: E731
    weights = px.log_weights(model, guide, num_particles=particles, joint=True)
    (term,) = weights.terms
    found = term.scale * term.log_w
    assert found.shape == (particles,)
    latents = weights.latents
    for k in range(particles):
        values = [latents[f"z{i}"][min(k, len(latents[f"z{i}"]) - 1)] for i in range(len(latents))]
        expected = plain(structure, x, values, 0.0) - plain(structure, x, values, 0.2)
        assert found[k].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
