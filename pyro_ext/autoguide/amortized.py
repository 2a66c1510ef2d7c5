"""π(x) from an encoder."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.autoguide import init_to_median
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

from pyro_ext.autoguide.guide import Group
from pyro_ext.autoguide.local import LocalGuide
from pyro_ext.autoguide.plates import Batch
from pyro_ext.families import Family
from pyro_ext.minibatch import has_rows, rows_of

__all__ = ["AutoAmortized"]

_HEAD_SCALE = 0.1  # the features move the first π a little; S stays close to diagonal


class AutoAmortized(LocalGuide):
    r"""Guide whose π_i = π(x_i) comes from an encoder: amortized inference.

    .. math::
        q(\theta, z \mid x) = q(\theta; \pi_0) \prod_i q(z_i; \pi(x_i)), \qquad
        \pi(x) = A\,h(x) + b

    The encoder h turns the model's own arguments into one feature vector per datapoint of the
    batch; the linear head (A, b) is built here and starts close to the initial π. The encoder
    runs once per call, whatever the number of particles. Where the model takes all N rows and
    subsamples inside its plate, tensors with N rows are cut to the batch's rows first.

    Args:
        model: A Pyro model with latents inside a data plate.
        encoder: Module or function of the model's arguments that returns ``(batch, features)``.
        family: Family of the latents of one datapoint.
        plate: Name of the data plate; by default the only one that holds latents, or the only
            subsampled one.
        global_family: Family of the latents outside the data plate, which share one free π_0.
        init_loc_fn: Where to start: a per-site initializer of ``pyro.infer.autoguide``.
        init_scale: Standard deviation to start from, in unconstrained units.
        create_plates: Function of the model's arguments that returns the plates to use.

    Raises:
        ValueError: If the data plate is ambiguous or absent, or the encoder's output has another
            shape than ``(batch, features)``.

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2013) | https://arxiv.org/abs/1312.6114

    Example:
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> guide = AutoAmortized(model, lambda x: x.unsqueeze(-1))
        >>> guide.sample_posterior(4, torch.zeros(3))["z"].shape
        torch.Size([4, 3])
    """

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
    ) -> None:
        super().__init__(
            model,
            family=family,
            plate=plate,
            global_family=global_family,
            init_loc_fn=init_loc_fn,
            init_scale=init_scale,
            create_plates=create_plates,
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
        with torch.no_grad():
            features = self._features(batch, *self._setup_args)
        head = nn.Linear(features.shape[-1], group.num_params)
        head = head.to(dtype=features.dtype, device=features.device)
        with torch.no_grad():
            head.weight.mul_(_HEAD_SCALE)
            head.bias.copy_(initial.mean(0))
        self.head = head

    def _params(self, group: Group, batch: Batch | None, args: Any, kwargs: Any) -> Tensor:
        if group.name == "global":
            shared: Tensor = self.global_params
            return shared
        params: Tensor = self.head(self._features(batch, args, kwargs))
        return params

    def _features(self, batch: Batch | None, args: Any, kwargs: Any) -> Tensor:
        if batch is not None and batch.rows is not None:
            args, kwargs = self._batch_rows(batch, args, kwargs)
        features = self.encoder(*args, **kwargs)
        self._check_features(features, batch.size if batch is not None else None)
        return features

    def _check_features(self, features: Any, size: int | None) -> None:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        if not isinstance(features, Tensor) or features.dim() != 2 or features.shape[0] != size:
            end = ".unsqueeze(-1)" if shape == (size,) else ".flatten(1)"
            raise ValueError(
                "AutoAmortized: expected the encoder to return one feature vector for each of "
                f"the {size} elements of plate '{self.plate}' in the batch, shape ({size}, "
                f"features); got {shape}. End the encoder with {end}, and leave the heads to the "
                "guide."
            )
        if is_validation_enabled() and not torch.isfinite(features).all():
            rows = (~torch.isfinite(features).all(-1)).nonzero().flatten().tolist()
            sites = [site.name for site in self.groups[-1].packing.sites]
            raise ValueError(
                f"AutoAmortized, sites {sites}: expected finite features from the encoder; got "
                f"others in rows {rows[:10]} of the {size} of the batch. Drop or fill what is "
                "missing in the data: x.nan_to_num(0.0), with the mask as a further input."
            )

    def _batch_rows(self, batch: Batch, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Cut arguments that hold all N rows to the batch; leave those that are its rows."""
        full, rows = batch.full_size, batch.rows
        holds_all = batch.full_data
        if holds_all is None and batch.size < full:
            holds_all = any(has_rows(a, full) for a in (*args, *kwargs.values()))
            self._args_hold_all = holds_all
        elif holds_all is None:
            holds_all = self._args_hold_all
        if rows is None or holds_all is False:
            return args, kwargs
        if holds_all is None:
            if torch.equal(rows, torch.arange(full, device=rows.device)):
                return args, kwargs
            raise ValueError(
                f"AutoAmortized: plate '{self.plate}' is given all {full} rows in another order, "
                "so the arguments' own order cannot be told. Call the guide once with a smaller "
                f"batch, or with subsample=torch.arange({full})."
            )
        cut = rows_of(tuple(kwargs.values()), rows, full)
        return rows_of(args, rows, full), dict(zip(kwargs, cut, strict=True))
