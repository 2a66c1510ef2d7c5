"""BibTeX of the papers behind a fit."""

from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import Any

import pyro.infer

from pyro_ext import diagnostics
from pyro_ext._cited import Cited
from pyro_ext.autoguide.local import LocalGuide
from pyro_ext.losses import ELBO, Annealed
from pyro_ext.losses.loss import BoundLoss
from pyro_ext.training import CompiledSVI, Run, refine

__all__ = ["BibTeX", "bibliography", "citation"]

ENGINES = ("bingham2019pyro", "paszke2019pytorch")
ARVIZ = "martin2026arviz"

FUNCTIONS: dict[Callable[..., Any], tuple[str, ...]] = {
    CompiledSVI: ("wingate2013automated",),
    diagnostics.ais: ("neal2001annealed", "wu2017quantitative", "zhou2016toward"),
    diagnostics.bdmc: ("grosse2015sandwiching", "zhou2016toward"),
    diagnostics.compare: (ARVIZ, "burda2016importance", "vehtari2024pareto"),
    diagnostics.distances: ("gretton2012kernel", "lopezpaz2017revisiting"),
    diagnostics.evidence: ("burda2016importance", "vehtari2024pareto"),
    diagnostics.gaps: ("cremer2018inference",),
    diagnostics.importance_resample: ("vehtari2024pareto",),
    diagnostics.k_hat: ("vehtari2024pareto", "yao2018yes"),
    diagnostics.k_hat_joint: ("vehtari2024pareto", "yao2018yes"),
    diagnostics.k_hat_per_datapoint: ("vehtari2024pareto", "yao2018yes"),
    diagnostics.loo: (ARVIZ, "magnusson2019bayesian", "vehtari2024pareto"),
    diagnostics.marginal_log_likelihood: ("burda2016importance",),
    diagnostics.nuts: ("hoffman2014no",),
    diagnostics.rates: ("alemi2018fixing", "burda2016importance"),
    diagnostics.sbc: ("talts2018validating", "yao2018yes"),
    diagnostics.to_datatree: (ARVIZ,),
    refine: ("kim2018semi", "cremer2018inference"),
}
"""Papers of what is called rather than made."""


class BibTeX(str):
    """Entries that an interpreter shows as they are written."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Return the text itself."""
        return str(self)


def citation(*used: object) -> BibTeX:
    r"""Return BibTeX of the papers that a fit rests on.

    Those of the guide's source and families, of the loss, its bound and its gradient estimator,
    then of the engines, Pyro and PyTorch. Options that are not in use are not cited:
    ``Flow("nsf")`` cites neural splines, and no other transform. A class of your own is cited
    once it derives from one of this package and sets ``papers``.

    Args:
        *used: Guides, losses and families, what ``px.fit`` returned, and functions such as
            ``px.evidence`` or ``px.sbc``. A guide or loss from elsewhere counts as Pyro's.

    Raises:
        TypeError: If something is none of these.

    Example:
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> guide = px.AutoJoint(model, family=px.FullCovariance())
        >>> text = citation(guide, px.IWAE(10, estimator="dreg"), px.sbc)
        >>> [line.partition("{")[2] for line in text.splitlines() if line.startswith("@")]
        ... # doctest: +NORMALIZE_WHITESPACE
        ['kucukelbir2017automatic,', 'burda2016importance,', 'tucker2019doubly,',
         'talts2018validating,', 'yao2018yes,', 'bingham2019pyro,', 'paszke2019pytorch,']
        >>> print(text.split("\n\n")[3])
        @misc{talts2018validating,
          title = {Validating {Bayesian} Inference Algorithms with Simulation-Based Calibration},
          author = {Talts, Sean and Betancourt, Michael and ...},
          year = {2018},
          url = {https://arxiv.org/abs/1804.06788}
        }
    """
    papers = [paper for one in used for paper in _papers(one)]
    parts = list(used)
    parts += [part for one in used if isinstance(one, Run) for part in (one.guide, one.loss)]
    if any(map(_has_both_kinds, parts)) and any(map(_averages_in_the_log, parts)):
        papers.append("geffner2022variational")
    found = dict.fromkeys([*papers, *ENGINES])
    return BibTeX("\n\n".join(_entry(paper) for paper in found))


def _papers(used: object) -> tuple[str, ...]:
    if isinstance(used, Cited):
        return used.references
    if callable(used) and used in FUNCTIONS:
        return FUNCTIONS[used]
    if callable(used) or isinstance(used, pyro.infer.ELBO):
        return ()  # a guide by hand, or one of Pyro's
    raise TypeError(
        "citation: expected guides, losses, families, runs or functions of pyro_ext; got "
        f"{used!r}. Write: px.citation(guide, loss), or px.citation(run)."
    )


def _has_both_kinds(used: object) -> bool:
    """Tell whether a guide has global and local latents."""
    return isinstance(used, LocalGuide) and len(used.groups) > 1


def _averages_in_the_log(used: object) -> bool:
    """Tell whether a loss draws several local particles inside each draw of the globals."""
    several = isinstance(used, BoundLoss) and used.num_particles > 1 and not used.joint
    return several and not isinstance(used, ELBO | Annealed)


def _entry(paper: str) -> str:
    """Return the entry of a key, or the paper itself if it is an entry."""
    if paper.startswith("@"):
        return paper.strip()
    known = bibliography()
    if paper not in known:
        raise ValueError(
            f"citation: expected keys of pyro_ext/references.bib, or BibTeX entries; got "
            f"{paper!r}. Write: papers = ('@article{{{paper}, title = {{...}}}}',)."
        )
    return known[paper]


@cache
def bibliography() -> dict[str, str]:
    """Return all entries that the package has, by key."""
    text = resources.files("pyro_ext").joinpath("references.bib").read_text("utf-8")
    entries = text.strip().split("\n\n")
    return {entry[entry.index("{") + 1 : entry.index(",")]: entry for entry in entries}
