"""What a function can see: the variables and attributes that a recorded graph depends on."""

import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from operator import attrgetter, itemgetter
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_ext.losses import Annealed
from pyro_ext.losses.loss import BoundLoss

__all__ = [
    "SCALARS",
    "Binding",
    "TooMuch",
    "bindings",
    "in_sight",
    "modules",
    "narrowed",
    "stored",
]

_CONTAINERS = (torch.nn.ModuleList, torch.nn.ModuleDict, torch.nn.Sequential)
SCALARS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_WRAPPERS = {property: "fget", classmethod: "__func__", staticmethod: "__func__"}
_WRAPPERS |= {cached_property: "func"}
_LIMIT = 20_000
_LIBRARIES = {"torch", "pyro", "pyro_ext", "numpy", "math", "builtins", "functools", "itertools"}
_LIBRARIES |= {"typing", "collections", "contextlib", "operator", "jaxtyping", "pandas", "scipy"}
_MACHINERY = frozenset(vars(torch.nn.Module()))
_LIBRARIES |= {"_pytest"}  # which an assert in a model sees under pytest


class TooMuch(Exception):
    """A model sees more objects than can be watched."""

    def __init__(self) -> None:
        super().__init__("its model sees too many objects to watch. Pass the data as arguments")


@dataclass(frozen=True)
class Binding:
    """Names that were bound to objects when the graph was recorded.

    Args:
        read: Returns what is bound now, given ``holder``; ``len`` where only the number of names
            counts.
        holder: What holds the names.
        names: The names.
        values: What was bound.
        where: Who has the names, in words.
        fixed: Whether the names cannot be bound to anything else.
    """

    read: Callable[[Any], Any]
    holder: Any
    names: tuple[Any, ...]
    values: tuple[Any, ...]
    where: str
    fixed: bool = False


def narrowed(binding: Binding, keep: Callable[[Any], bool]) -> Binding | None:
    """Return a binding of those names alone whose values are to be kept, or None.

    Args:
        binding: The binding.
        keep: Tells whether a value is to be kept.
    """
    if binding.fixed:
        return None
    kept = [index for index, value in enumerate(binding.values) if keep(value)]
    if not kept or binding.read is tuple:
        return binding if kept else None
    names = tuple(binding.names[index] for index in kept)
    values = tuple(binding.values[index] for index in kept)
    if binding.read is _cells:
        cells = tuple(binding.holder[index] for index in kept)
        return Binding(_cells, cells, names, values, binding.where)
    return Binding(_reader(names), binding.holder, names, values, binding.where)


def bindings(*roots: Any) -> Iterator[Binding]:
    """Yield every binding that functions and modules can see, the nearest first.

    Closures, globals, defaults, partial arguments, attributes, also of classes, hooks of modules,
    and what lies in lists, dicts and tuples there; what belongs to a library is left out.

    Args:
        *roots: Functions and modules.

    Raises:
        TooMuch: If they see more than 20,000 objects.
    """
    seen: set[int] = set()
    queue = deque(roots)
    while queue:
        obj = queue.popleft()
        if id(obj) in seen or isinstance(obj, (Tensor, *SCALARS)):
            continue
        seen.add(id(obj))
        if len(seen) > _LIMIT:
            raise TooMuch
        for binding in _of(obj):
            yield binding
            queue.extend(binding.values)


def modules(*roots: Any) -> Iterator[torch.nn.Module]:
    """Yield the modules among functions and modules and what they can see, some more than once.

    Args:
        *roots: Functions and modules.

    Raises:
        TooMuch: If they see more than 20,000 objects; the nearest modules were yielded by then.
    """
    yield from (root for root in roots if isinstance(root, torch.nn.Module))
    for binding in bindings(*roots):
        yield from (value for value in binding.values if isinstance(value, torch.nn.Module))


def in_sight(*roots: Any) -> list[torch.nn.Module]:
    """Return what ``modules`` yields, each once, and the nearest where there is too much.

    Args:
        *roots: Functions and modules.
    """
    found: list[torch.nn.Module] = []
    with suppress(TooMuch):
        found.extend(modules(*roots))
    return list(dict.fromkeys(found))


def stored(store: Any, ids: set[int]) -> list[Binding]:
    """Return the binding of the given tensors in Pyro's parameter store.

    Args:
        store: The store.
        ids: Ids of tensors.
    """
    params: dict[str, Tensor] = store._params
    names = tuple(name for name, param in params.items() if id(param) in ids)
    return list(_keys(params, names, "Pyro's parameter store"))


def _of(obj: Any) -> Iterator[Binding]:
    if isinstance(obj, torch.nn.Module):
        yield from _module(obj)
    elif isinstance(obj, BoundLoss):
        # An annealed one counts its steps; its weight is an input of the graph.
        if not isinstance(obj, Annealed):
            yield from _keys(vars(obj), tuple(vars(obj)), f"loss {type(obj).__name__}")
    elif isinstance(obj, partial):
        yield _parts((obj.func, *obj.args, *obj.keywords.values()), "a partial function")
    elif isinstance(obj, types.MethodType):
        yield _parts((obj.__self__, obj.__func__), "a method")
    elif type(obj) in _WRAPPERS:
        yield _parts((getattr(obj, _WRAPPERS[type(obj)]),), "a property")
    elif isinstance(obj, type):
        yield from _class(obj)
    elif isinstance(obj, types.FunctionType):
        yield from _function(obj)
    elif isinstance(obj, dict):
        yield Binding(tuple, obj, tuple(obj), tuple(obj), "the keys of a dict")
        yield from _keys(obj, tuple(obj), "a dict")
    elif isinstance(obj, list | tuple):
        held = tuple(obj)
        names, fixed = tuple(range(len(held))), isinstance(obj, tuple)
        yield Binding(tuple, obj, names, held, "a sequence", fixed=fixed)
    elif hasattr(obj, "__dict__") and (isinstance(obj, Messenger) or not _library(type(obj))):
        if not isinstance(obj, types.ModuleType):
            yield from _attributes(obj, tuple(vars(obj)), f"{type(obj).__name__} object")


def _module(module: torch.nn.Module) -> Iterator[Binding]:
    held, name = vars(module), type(module).__name__
    for registry in ("_parameters", "_buffers", "_modules"):
        yield from _keys(held[registry], tuple(held[registry]), f"module {name}")
    if isinstance(module, _CONTAINERS):
        layers = held["_modules"]
        yield Binding(tuple, layers, tuple(layers), tuple(layers), f"the layers of a {name}")
    for registry in ("_forward_hooks", "_forward_pre_hooks"):
        hooks = held[registry]
        yield Binding(tuple, hooks, tuple(hooks), tuple(hooks), f"the hooks of a {name}")
        yield from _keys(hooks, tuple(hooks), f"the hooks of a {name}")
    own = [key for key, value in held.items() if isinstance(value, (Tensor, *SCALARS))]
    yield from _keys(held, tuple(own), f"module {name}")
    if _library(type(module)):
        # Of guides and layers of a library, only what they call counts beside tensors and numbers.
        calls = (types.FunctionType, types.MethodType, partial, tuple)
        called = [key for key, value in held.items() if isinstance(value, calls)]
        yield from _keys(held, tuple(called), f"module {name}")
        return
    rest = [key for key in held if key not in own and not _internal(key)]
    yield from _attributes(module, tuple(rest), f"module {name}")


def _internal(key: str) -> bool:
    """Tell whether an attribute of a module belongs to torch's or Pyro's machinery."""
    return key in _MACHINERY or key.startswith(("_pyro", "call_super"))


def _attributes(obj: Any, keys: tuple[str, ...], where: str) -> Iterator[Binding]:
    yield from _keys(vars(obj), keys, where)
    yield Binding(len, vars(obj), (), (), f"the attributes of {where}")
    yield _parts((type(obj),), "a class")


def _class(kind: type) -> Iterator[Binding]:
    if _library(kind):
        return
    held, where = vars(kind), f"class {kind.__name__}"
    keys = [k for k, v in held.items() if k[:2] != "__" or isinstance(v, types.FunctionType)]
    yield from _keys(held, tuple(keys), where)
    yield Binding(len, held, (), (), f"the attributes of {where}")
    yield _parts(kind.__bases__, where)


def _parts(parts: tuple[Any, ...], where: str) -> Binding:
    return Binding(tuple, parts, parts, parts, where, fixed=True)


def _function(function: types.FunctionType) -> Iterator[Binding]:
    if _library(function):
        return
    name = function.__name__
    free = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    filled = {variable: cell for variable, cell in free if _filled(cell)}
    if filled:
        cells = tuple(filled.values())
        yield Binding(_cells, cells, tuple(filled), _cells(cells), f"function {name}")
    for defaults in (function.__defaults__, function.__kwdefaults__):
        if defaults:
            yield from _of(defaults)
    used = _names(function.__code__)
    known = tuple(key for key in used if key in function.__globals__)
    yield from _keys(function.__globals__, known, f"function {name}")
    for key in known:
        value = function.__globals__[key]
        if isinstance(value, types.ModuleType) and not _library(value):
            attributes = tuple(attr for attr in used if attr in vars(value))
            yield from _keys(vars(value), attributes, f"Python module {key}")


def _names(code: types.CodeType) -> list[str]:
    names = list(code.co_names)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            names += _names(const)
    return list(dict.fromkeys(names))


def _keys(holder: Mapping[Any, Any], keys: tuple[Any, ...], where: str) -> Iterator[Binding]:
    if keys:
        read = _reader(keys)
        yield Binding(read, holder, keys, read(holder), where)


def _reader(keys: tuple[Any, ...]) -> Callable[[Any], tuple[Any, ...]]:
    return itemgetter(*keys) if len(keys) > 1 else _Single(keys[0])


@dataclass(frozen=True)
class _Single:
    """What ``itemgetter`` does for several keys, for one."""

    key: Any

    def __call__(self, holder: Any) -> tuple[Any, ...]:
        return (holder[self.key],)


_contents = attrgetter("cell_contents")


def _filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _cells(cells: Any) -> tuple[Any, ...]:
    return tuple(map(_contents, cells))


def _library(obj: Any) -> bool:
    name = obj.__name__ if isinstance(obj, types.ModuleType) else getattr(obj, "__module__", None)
    return str(name).partition(".")[0] in _LIBRARIES
