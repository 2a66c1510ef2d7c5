"""A guide as a module: its name in Pyro's store, its state, its copies."""

import copy
import itertools
import weakref
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from pyro.nn import PyroModule
from pyro.params.param_store import param_with_module_name
from torch import Tensor

from pyro_ext.autoguide.loaded import adopt, register

__all__ = ["GuideModule"]

_COUNT = itertools.count()


class _AbstractGuideMeta(type(AutoGuide), ABCMeta):  # type: ignore[misc]
    """PyroModule's metaclass, with abstract methods."""


class GuideModule(AutoGuide, metaclass=_AbstractGuideMeta):  # type: ignore[metaclass]
    """A Pyro autoguide that shares no parameter with another one, and that can be copied.

    Its parameters carry a name in Pyro's store that no other guide of the process has; copies and
    pickles keep the model and leave the original as it was.
    """

    _met: bool  # whether it has looked for what the store was loaded with

    def __init__(
        self, model: Callable[..., Any], *, create_plates: Callable[..., Any] | None
    ) -> None:
        # By name: a second base such as AutoContinuous wants other arguments.
        AutoGuide.__init__(self, model, create_plates=create_plates)
        self._prototype_values: dict[str, Tensor] = {}
        self._own_name()

    @abstractmethod
    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        """Look at the model and create every parameter."""

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Look at the model once and create every parameter.

        Args:
            *args: The model's arguments.
            **kwargs: The model's keyword arguments.

        Raises:
            ValueError: If a latent site cannot be handled; the message names it.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)

    @property
    def num_params(self) -> int:
        """Number of trainable scalars, encoder included."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Load parameters into a guide that has been set up."""
        if self.prototype_trace is None:
            raise RuntimeError(
                f"{type(self).__name__}: expected a guide with parameters to load into; got one "
                "that has not seen the model's data. Write: guide.setup(*args) before "
                "guide.load_state_dict."
            )
        return super().load_state_dict(state_dict, *args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        """Move and cast the prototype values with the parameters, for ``.to`` and ``.double``."""
        with torch.no_grad():
            self._prototype_values = {k: fn(v) for k, v in self._prototype_values.items()}
        return super()._apply(fn, *args, **kwargs)

    def _meet_store(self) -> None:
        """Agree with Pyro's store, which SVI trains: take what it was loaded with.

        Pyro does so for a ``PyroParam`` only. With ``module_local_params`` there is no store, and
        SVI wants the link that it would have set.
        """
        if pyro.settings.get("module_local_params"):
            for parameter in self.parameters():
                parameter.unconstrained = weakref.ref(parameter)  # type: ignore[attr-defined]
            return
        store: Any = pyro.get_param_store()
        params = dict(self._stored_params())
        found = {name: store[name].unconstrained() for name in params if name in store}
        if not found or not self._met:
            self._met = True
            if all(value is params[name] for name, value in found.items()):
                ends = {name.removeprefix(self._own): param for name, param in params.items()}
                adopt(type(self).__name__, self._own, ends)
        for name, value in found.items():
            param = params[name]
            if value is param:
                continue
            if value.shape != param.shape:
                raise ValueError(
                    f"{type(self).__name__}: expected '{name}' in Pyro's parameter store to have "
                    f"shape {tuple(param.shape)}; got {tuple(value.shape)}, another guide's. "
                    "Write: pyro.clear_param_store(), and guide.load_state_dict(...) to restore."
                )
            with torch.no_grad():
                param.copy_(value)
            del store[name]

    def _stored_params(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name in Pyro's store of each parameter, and the parameter."""
        for name, param in self.named_parameters(recurse=False):
            yield f"{self._own}.{name}", param
        for name, module in self.named_children():
            if not isinstance(module, PyroModule):
                for inner, param in module.named_parameters():
                    yield param_with_module_name(f"{self._own}.{name}", inner), param

    def _own_name(self) -> None:
        """Give this guide names in the param store that no other guide of the process has."""
        self._own = f"{type(self).__name__}_{next(_COUNT)}"
        self._met = False
        register(self._own, self)
        self._pyro_set_supermodule(self._own, self._pyro_context)

    def _pyro_set_supermodule(self, name: str, context: Any) -> None:
        """Keep the own name in an ``AutoGuideList``, whose own is that of the next list too."""
        for module in self.modules():
            # Pyro refuses an encoder that has run under another name.
            if module is not self and isinstance(module, PyroModule):
                module._pyro_context = type(context)()
        super()._pyro_set_supermodule(self._own, context)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state with the model, and leave this guide as it was."""
        for module in (self, self.model):
            for param in module.parameters() if isinstance(module, torch.nn.Module) else ():
                # Pyro's store leaves a weak reference here, which cannot be pickled, and sets it
                # again at every read.
                param.__dict__.pop("unconstrained", None)
        return {**self.__dict__, "master": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state under a name of its own."""
        super().__setstate__(state)
        self._own_name()

    def __deepcopy__(self, memo: dict[int, Any]) -> "GuideModule":
        """Copy the guide and its parameters; the model is shared."""
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        memo[id(self._model)] = self._model
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return new
