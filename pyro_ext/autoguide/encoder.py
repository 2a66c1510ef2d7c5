"""π(x) of the guides with an encoder."""

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import init_to_median
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

from pyro_ext._modules import leaves_of
from pyro_ext._precision import as_outside, widened
from pyro_ext.autoguide.guide import Group
from pyro_ext.autoguide.local import LocalGuide
from pyro_ext.autoguide.plates import Batch
from pyro_ext.autoguide.response import NetworkResponse
from pyro_ext.families import Family
from pyro_ext.minibatch import has_rows, rows_of

__all__ = ["EncoderGuide"]

_HEAD_SCALE = 0.1  # the features move the first π a little; S stays close to diagonal


class EncoderGuide(LocalGuide):
    """Base of ``AutoAmortized`` and ``AutoSemiAmortized``."""

    def __init__(
        self,
        model: Callable[..., Any],
        encoder: Callable[..., Tensor],
        *,
        family: Family | None = None,
        plate: str | None = None,
        global_family: Family | None = None,
        init_loc_fn: Callable[[Any], Tensor] = init_to_median,
        init_scale: float = 0.1,
        create_plates: Callable[..., Any] | None = None,
        condition_on_globals: bool = False,
        sparse: bool = False,
    ) -> None:
        super().__init__(
            model,
            family=family,
            plate=plate,
            global_family=global_family,
            init_loc_fn=init_loc_fn,
            init_scale=init_scale,
            create_plates=create_plates,
            condition_on_globals=condition_on_globals,
            sparse=sparse,
        )
        self.encoder = encoder
        self._args_hold_all: bool | None = None

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        self._setup_args = (args, kwargs)
        try:
            super()._setup_prototype(*args, **kwargs)
        finally:
            del self._setup_args

    def _create_local_source(self, group: Group, initial: Tensor, batch: Batch | None) -> None:
        with torch.enable_grad():
            features = self._features(batch, *self._setup_args)
            self._check_trained(features)
        dtype = torch.promote_types(initial.dtype, features.dtype)
        with torch.device("cpu"):  # a seed then means the same on each device
            head = nn.Linear(features.shape[-1], group.num_params)
        head = head.to(dtype=dtype, device=features.device)
        with torch.no_grad():
            head.weight.mul_(_HEAD_SCALE)
            head.bias.copy_(initial.mean(0))
        self.head = head
        if self.condition_on_globals:
            with torch.device("cpu"):
                response = NetworkResponse(features.shape[-1], self._num_globals, group.num_params)
            self.response = response.to(dtype=dtype, device=features.device)

    def _encoded(self, batch: Batch | None, args: Any, kwargs: Any) -> Tensor:
        """Return π(x) of each row, followed by its features if the globals condition it."""
        # An encoder in single precision does not make the density so.
        features = self._features(batch, args, kwargs).to(self.head.weight.dtype)
        params: Tensor = self.head(features)
        return torch.cat([params, features], dim=-1) if self.condition_on_globals else params

    def _features(self, batch: Batch | None, args: Any, kwargs: Any) -> Tensor:
        if batch is not None and batch.rows is not None:
            args, kwargs = self._batch_rows(batch, args, kwargs)
        with as_outside():
            features = widened(self.encoder(*args, **kwargs))
        self._check_features(features, batch.size if batch is not None else None)
        return features

    def _check_trained(self, features: Tensor) -> None:
        """Raise if the encoder is a function of parameters that nobody would train."""
        stored = pyro.get_param_store()._params.values()
        of_model = self.model.parameters() if isinstance(self.model, nn.Module) else ()
        known = {id(param) for param in (*self.parameters(), *stored, *of_model)}
        if unknown := leaves_of(features).keys() - known:
            raise ValueError(
                f"{type(self).__name__}: expected an encoder whose parameters the guide knows; "
                f"got a function of {len(unknown)} trainable tensors that are not the guide's, "
                f"and would stay as they are. Write: {type(self).__name__}(model, encoder) with "
                "the torch.nn.Module itself, or encoder.requires_grad_(False) to leave it so."
            )

    def _check_features(self, features: Any, size: int | None) -> None:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        if not isinstance(features, Tensor) or features.dim() != 2 or features.shape[0] != size:
            end = ".unsqueeze(-1)" if shape == (size,) else ".flatten(1)"
            raise ValueError(
                f"{type(self).__name__}: expected the encoder to return one feature vector for "
                f"each of the {size} elements of plate '{self.plate}' in the batch, shape "
                f"({size}, features); got {shape}. Write: return h{end} in the encoder, and "
                "leave the heads to the guide."
            )
        if is_validation_enabled() and not torch.isfinite(features).all():
            rows = (~torch.isfinite(features).all(-1)).nonzero().flatten().tolist()
            sites = [site.name for site in self.groups[-1].packing.sites]
            raise ValueError(
                f"{type(self).__name__}, sites {sites}: expected finite features from the "
                f"encoder; got others in rows {rows[:10]} of the {size} of the batch. Write: "
                "x.nan_to_num(0.0) for what is missing in the data, with the mask as a further "
                "input, or drop these rows."
            )

    def _batch_rows(self, batch: Batch, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Cut arguments that hold all N rows to the batch; leave those that are its rows."""
        full, rows = batch.full_size, batch.rows
        holds_all = batch.full_data
        if holds_all is None and batch.size < full:
            holds_all = any(has_rows(value, full) for value in _leaves((args, kwargs)))
            self._args_hold_all = holds_all
        elif holds_all is None:
            holds_all = self._args_hold_all
        if rows is None or holds_all is False:
            return args, kwargs
        if holds_all is None:
            if torch.equal(rows, torch.arange(full, device=rows.device)):
                return args, kwargs
            raise ValueError(
                f"{type(self).__name__}: expected plate '{self.plate}' to show its rows in order "
                f"in a first call; got all {full} rows in another order, so that the arguments' "
                f"own order cannot be told. Write: subsample=torch.arange({full}) in a call "
                "before this one, or a smaller batch."
            )
        found: tuple[Any, dict[str, Any]] = _cut((args, kwargs), rows, full)
        return found


def _leaves(value: Any) -> Iterator[Any]:
    """Yield what dicts, lists and tuples hold."""
    if isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)
    else:
        yield value


def _cut(value: Any, rows: Tensor, size: int) -> Any:
    """Return ``value`` with the tensors of ``size`` rows that it holds cut to the given ones."""
    if isinstance(value, dict):
        return {key: _cut(inner, rows, size) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        inner = [_cut(part, rows, size) for part in value]
        named = hasattr(value, "_fields")
        return type(value)(*inner) if named else type(value)(inner)
    return rows_of((value,), rows, size)[0]
