"""What has papers behind it."""

from collections.abc import Iterable
from typing import ClassVar

__all__ = ["Cited", "references_of"]


class Cited:
    """Base of what ``px.citation`` cites: families, guides, losses and runs."""

    papers: ClassVar[tuple[str, ...]] = ()
    """Keys of references.bib, or BibTeX entries themselves, of the class alone."""

    @property
    def references(self) -> tuple[str, ...]:
        """Papers of the class, then those of the options and parts in use."""
        return tuple(dict.fromkeys([*self.papers, *self._papers_in_use()]))

    def _papers_in_use(self) -> Iterable[str]:
        """Return the papers behind options and parts."""
        return ()


def references_of(*parts: object) -> list[str]:
    """Return the papers of all parts that have some."""
    return [paper for part in parts for paper in getattr(part, "references", ())]
