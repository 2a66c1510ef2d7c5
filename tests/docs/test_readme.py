"""Each figure of the README stands on the page that it links, and each link leads somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FIGURES = README.partition("## Measured")[2].partition("\n## ")[0]
ROWS = [line for line in FIGURES.splitlines() if "](docs/" in line]
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*")
PAGES = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")


def plain(text):
    """Return text with hyphens for minus signs."""
    return text.replace("−", "-")


def stands(number, known):
    """Tell whether a number is among the known ones, rounded as it is."""
    decimals = len(number.partition(".")[2])
    value = float(number.replace(",", ""))
    return any(round(float(other.replace(",", "")), decimals) == value for other in known)


def test_there_are_figures():
    assert len(ROWS) > 5


@pytest.mark.parametrize("row", ROWS)
def test_figures_stand_on_the_page_that_is_linked(row):
    measured = row.split(" | ")[1]
    page = (ROOT / re.search(r"\]\((docs/\S+)\)", row)[1]).read_text()
    known = NUMBER.findall(plain(page))
    assert not [n for n in NUMBER.findall(plain(measured)) if not stands(n, known)]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    assert not [link for link in links if not (ROOT / link).exists()]
