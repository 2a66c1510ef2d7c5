"""Every method has an entry in references.bib, and every entry belongs to a method."""

import ast
import inspect
import re
from collections import Counter
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal

import pyro_ext as px
from pyro_ext._cited import Cited
from pyro_ext.citation import ENGINES, FUNCTIONS, bibliography
from pyro_ext.families.flow_kinds import KINDS
from pyro_ext.losses.loss import ESTIMATOR_PAPERS, BoundLoss
from pyro_ext.ratio.contrast import CONTRASTS
from pyro_ext.ratio.objective import BOUNDS

PACKAGE = Path(px.__file__).parent
LINK = re.compile(r"\|\s*(https?://\S+)")


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0, 1))
        pyro.sample("x", dist.Normal(z, 1), obs=x)


def hierarchy(x):
    mu = pyro.sample("mu", dist.Normal(0, 1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mu, 1))
        pyro.sample("x", dist.Normal(z, 1), obs=x)


def encoder(x):
    return x.unsqueeze(-1)


def links():
    """Return the links under References in all docstrings of the package."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                _, _, references = (ast.get_docstring(node) or "").partition("References:")
                found |= set(LINK.findall(references.partition("Example:")[0]))
    return found


def field(entry, name):
    return re.search(rf"^  {name} = \{{(.*)\}},?$", entry, re.MULTILINE)[1]


def keys(text):
    return re.findall(r"^@\w+\{([^,]+),$", text, re.MULTILINE)


def classes(base):
    """Return the concrete classes of the package below one class."""
    for cls in base.__subclasses__():
        yield from classes(cls)
        if cls.__module__.startswith("pyro_ext") and not inspect.isabstract(cls):
            yield cls


ENTRIES = bibliography()
CLASSES = sorted(set(classes(Cited)), key=lambda cls: cls.__qualname__)
FAMILIES = [
    px.Diagonal(),
    px.FullCovariance(),
    px.LowRank(),
    px.Householder(),
    px.Mixture(px.Diagonal()),
    px.Implicit(),
    *(px.Flow(kind) for kind in KINDS),
]
GUIDES = [
    px.AutoJoint(model),
    px.AutoPerDatapoint(model),
    px.AutoAmortized(model, encoder),
    px.AutoSemiAmortized(model, encoder),
]
LOSSES = [
    *(
        cls(estimator=name)
        for cls in (px.ELBO, px.IWAE, px.MIWAE, px.PIWAE, px.CIWAE, px.Renyi, px.CUBO)
        for name in cls.estimators
    ),
    px.JackknifeIWAE(),
    px.WakeSleep(),
    px.Sleep({"x": 0}),
    px.Annealed(px.ELBO(), 0.5),
    px.Annealed(px.ELBO(), px.LinearSchedule(0.0, 1.0, 10)),
    *(px.Adversarial(contrast=name) for name in CONTRASTS),
    *(px.Adversarial(bound=name) for name in BOUNDS),
]


@pytest.mark.parametrize("key", ENTRIES)
def test_entry_is_whole(key):
    entry = ENTRIES[key]
    assert re.fullmatch(r"@[a-z]+\{\w+,\n(  \w+ = \{.+\},\n)*  \w+ = \{.+\}\n\}", entry)
    assert Counter(entry)["{"] == Counter(entry)["}"]
    first, year = re.fullmatch(r"([a-z]+)(\d{4})[a-z]+", key).groups()
    assert first in re.sub(r"van den(?= oord)|[^a-z]", "", field(entry, "author").lower())
    assert field(entry, "year") == year
    assert field(entry, "title")
    assert field(entry, "url").startswith("https://")


def test_entries_are_in_order_and_named_once():
    text = (PACKAGE / "references.bib").read_text()
    assert keys(text) == sorted(ENTRIES)


def test_docstrings_and_entries_name_the_same_papers():
    known = {field(entry, "url"): key for key, entry in ENTRIES.items()}
    assert len(known) == len(ENTRIES), "two entries of one paper"
    assert not links() - known.keys(), "papers of a docstring without an entry"
    cited = {paper for used in [*FAMILIES, *GUIDES, *LOSSES] for paper in used.references}
    cited |= {paper for papers in FUNCTIONS.values() for paper in papers} | set(ENGINES)
    assert not {known[link] for link in known.keys() - links()} - cited, "papers of nothing"


@pytest.mark.parametrize("used", [*FAMILIES, *GUIDES, *LOSSES], ids=repr)
def test_each_method_cites_papers_that_have_entries(used):
    assert used.references
    assert set(used.references) <= ENTRIES.keys()
    assert keys(px.citation(used)) == list(dict.fromkeys([*used.references, *ENGINES]))


def test_no_method_is_left_out():
    tried = {type(used) for used in [*FAMILIES, *GUIDES, *LOSSES]}
    elsewhere = {
        "AutoRun",
        "DensityRatio",
        "JudgedRun",
        "LocalRun",
        "Objective",
        "Regularizer",
        "Run",
        "TelescopingRatio",
    }
    assert {cls.__name__ for cls in set(CLASSES) - tried} == elsewhere
    estimators = {name for cls in classes(BoundLoss) for name in cls.estimators}
    assert estimators - ESTIMATOR_PAPERS.keys() == {"adversarial", "sleep", "wake"}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_papers_of_a_class_have_entries(cls):
    assert set(cls.papers) <= ENTRIES.keys()


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_functions_cite_papers(function):
    assert set(FUNCTIONS[function]) <= ENTRIES.keys()
    assert keys(px.citation(function))[: len(FUNCTIONS[function])] == list(FUNCTIONS[function])


def test_only_what_is_in_use_is_cited():
    family, globally = px.Flow("nice"), px.Mixture(px.FullCovariance())
    guide = px.AutoPerDatapoint(hierarchy, family=family, global_family=globally)
    assert "morningstar2021automatic" not in guide.references
    guide.setup(torch.zeros(3))
    assert keys(px.citation(guide, px.Annealed(px.ELBO(estimator="stl"), 0.5))) == [
        "hoffman2013stochastic",
        "rezende2015variational",
        "dinh2014nice",
        "rozet2022zuko",
        "kucukelbir2017automatic",
        "morningstar2021automatic",
        "higgins2017beta",
        "roeder2017sticking",
        *ENGINES,
    ]
    held = px.ratio.Regularizer(r1=1.0)
    assert "mescheder2018training" in px.Adversarial(regularizer=held).references
    assert "sonderby2017amortised" not in px.Adversarial(regularizer=held).references


def test_a_run_cites_its_guide_and_its_loss():
    x = torch.zeros(3)
    run = px.fit(model, px.AutoJoint(model), px.IWAE(2, estimator="dreg"), x, num_steps=1)
    assert px.citation(run) == px.citation(run.guide, run.loss)
    assert px.citation(run, px.sbc) == px.citation(run.guide, run.loss, px.sbc)


def test_locally_enhanced_bounds_are_cited_where_they_are_one():
    paper, guide = "geffner2022variational", px.AutoPerDatapoint(hierarchy)
    guide.setup(torch.zeros(3))
    assert paper in px.citation(guide, px.IWAE(2))
    for other in (px.IWAE(1), px.IWAE(2, joint=True), px.ELBO(2), px.Annealed(px.ELBO(2), 0.5)):
        assert paper not in px.citation(guide, other)
    assert paper not in px.citation(px.AutoJoint(hierarchy), px.IWAE(2))


def test_ratios_cite_their_bound():
    ratio = px.ratio.DensityRatio(px.ratio.QuadraticCritic(1), bound="nwj")
    assert keys(px.citation(ratio))[:2] == ["sugiyama2012density", "nguyen2010estimating"]
    chain = px.ratio.TelescopingRatio(lambda: px.ratio.QuadraticCritic(1), bound="dv")
    assert keys(px.citation(chain))[:2] == ["rhodes2020telescoping", "donsker1983asymptotic"]


def test_guides_and_losses_of_pyro_cite_pyro():
    assert keys(px.citation(AutoNormal(model), Trace_ELBO())) == list(ENGINES)


def test_a_class_from_elsewhere_cites_its_own_paper():
    entry = "@misc{doe2030, title = {Wider normals}, year = {2030}}"

    class Wide(px.Diagonal):
        papers = (entry,)

    text = px.citation(px.AutoJoint(model, family=Wide()))
    assert entry in text
    assert repr(text) == text


def test_what_cannot_be_cited():
    with pytest.raises(TypeError, match=r"expected guides.*; got 3\. Write: px\.citation\("):
        px.citation(3)

    class Wide(px.Diagonal):
        papers = ("doe2030",)

    with pytest.raises(ValueError, match=r"got 'doe2030'\. Write: papers = "):
        px.citation(Wide())
