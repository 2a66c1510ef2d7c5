"""The type checker of `make test`'s second run."""

from beartype import BeartypeConf, beartype

__all__ = ["check"]

# As for mypy, an int is a float (PEP 484); torch writes 1 and 20 where a graph takes floats.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
