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
    """A latent site: its support, how many plates it is in, its parent and its mask of rows."""

    kind: str
    depth: int
    parent: int | None
    mask: tuple[bool, ...] | None


@dataclass(frozen=True)
class Structure:
    """Sites outside plates, then in the plate of rows, then in that of the parts of each row."""

    sites: tuple[Site, ...]
    size: int
    parts: int
    rows: tuple[int, ...]
    seen: tuple[bool, ...] | None

    def where(self, mask):
        """Return a mask of the rows that are drawn."""
        return True if mask is None else torch.tensor([mask[row] for row in self.rows])

    def run(self, x, shift):
        """The model with ``shift`` 0, else the guide, which has no data."""
        values = {}
        self.draw(values, 0, shift)
        rows = torch.tensor(self.rows)
        with pyro.plate("data", self.size, subsample=rows, dim=-1):
            self.draw(values, 1, shift)
            if shift == 0:
                with pyro.poutine.mask(mask=self.where(self.seen)):
                    loc = sum(v for n, v in values.items() if self.sites[n].depth < 2)
                    pyro.sample("x", dist.Normal(torch.as_tensor(loc), 1.0), obs=x[rows])
            if any(site.depth == 2 for site in self.sites):
                with pyro.plate("parts", self.parts, dim=-2):
                    self.draw(values, 2, shift)

    def draw(self, values, depth, shift):
        for number, site in enumerate(self.sites):
            if site.depth == depth:
                loc = 0.3 if site.parent is None else 0.5 * values[site.parent]
                with pyro.poutine.mask(mask=self.where(site.mask)):
                    made = FAMILIES[site.kind](torch.as_tensor(loc) + shift)
                    values[number] = pyro.sample(f"z{number}", made)


@st.composite
def structures(draw):
    size = draw(st.integers(1, 5))
    rows = draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=size, unique=True))
    masks = st.none() | st.tuples(*[st.booleans()] * size)
    sites = []
    for number in range(draw(st.integers(1, 4))):
        depth = draw(st.integers(0, 2))
        parents = [i for i, site in enumerate(sites) if site.depth <= depth]
        parent = draw(st.sampled_from([None, *parents]))
        mask = draw(masks) if depth else None
        sites.append(Site(draw(st.sampled_from(list(FAMILIES))), depth, parent, mask))
        assert number == len(sites) - 1
    return Structure(tuple(sites), size, draw(st.integers(1, 3)), tuple(rows), draw(masks))


def plain(structure, x, values, shift):
    """Return log p (shift 0) or log q of one particle, in loops over rows and parts."""
    scale = structure.size / len(structure.rows)
    sites, total = structure.sites, 0.0

    def value_of(number, part, place):
        index = ((), (place,), (part, place))[sites[number].depth]
        return values[number][index]

    for number, site in enumerate(sites):
        rows = list(enumerate(structure.rows)) if site.depth else [(None, None)]
        for place, row in rows:
            if site.mask is not None and not site.mask[row]:
                continue
            for part in range(structure.parts) if site.depth == 2 else [None]:
                loc = 0.3 if site.parent is None else 0.5 * value_of(site.parent, part, place)
                density = FAMILIES[site.kind](torch.as_tensor(loc) + shift)
                weight = scale if site.depth else 1.0
                total += weight * density.log_prob(value_of(number, part, place)).item()
    for place, row in enumerate(structure.rows if shift == 0 else []):
        if structure.seen is None or structure.seen[row]:
            shown = [number for number, site in enumerate(sites) if site.depth < 2]
            loc = torch.as_tensor(sum(value_of(number, None, place) for number in shown))
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
