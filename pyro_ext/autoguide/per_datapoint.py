"""One free π per datapoint: classical mean field, in every family."""

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.functional import pad

from pyro_ext.autoguide.guide import Group
from pyro_ext.autoguide.local import LocalGuide
from pyro_ext.autoguide.plates import Batch
from pyro_ext.autoguide.response import LinearResponse
from pyro_ext.autoguide.table import read_rows

__all__ = ["AutoPerDatapoint"]


class AutoPerDatapoint(LocalGuide):
    r"""Guide with one free π_i for each element of the data plate.

    .. math:: q(\theta, z) = q(\theta; \pi_0) \prod_i q(z_i; \pi_i)

    Latents outside the data plate are global and share π_0. A mini-batch reads and updates the
    rows of its own datapoints. With ``condition_on_globals`` the local latents depend on the
    unconstrained vector z_θ of the globals:

    .. math:: q(\theta, z) = q(\theta; \pi_0) \prod_i q(z_i; \pi_i + A_i z_\theta)

    where A_i is a part of row i that starts at zero.

    Args:
        model: A Pyro model with latents inside a data plate.
        family: Family of the latents of one datapoint.
        plate: Name of the data plate; by default the only one that holds latents, or the only
            subsampled one.
        global_family: Family of the global latents.
        init_loc_fn: Where to start: a per-site initializer of ``pyro.infer.autoguide``.
        init_scale: Standard deviation to start from, in unconstrained units.
        create_plates: Function of the model's arguments that returns the plates to use.
        condition_on_globals: Whether the local latents depend on the draw of the globals.
            ``median`` and ``quantiles`` then take the globals at their median; the draws of
            ``sample_posterior`` have the marginals.
        sparse: Whether the table's gradient holds the rows of the mini-batch alone, so that a
            step costs what the batch costs. ``px.fit`` then updates these rows alone. Pyro's SVI
            has one class of optimizer for all parameters: give ``pyro.optim.PyroOptim`` a function
            that returns ``SparseAdam(params, **options)`` where ``params[0].grad.is_sparse``, and
            ``Adam`` elsewhere.

    Raises:
        ValueError: If the data plate is ambiguous or absent, or if the guide is called with
            another number of datapoints than it was built for, or if there are no globals to
            condition on.

    References:
        Stochastic Variational Inference (Hoffman, Blei, Wang and Paisley, 2013) |
        https://arxiv.org/abs/1206.7051

    Example:
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> guide = AutoPerDatapoint(model)
        >>> guide.setup(torch.zeros(3))
        >>> guide.local_params.shape
        torch.Size([3, 2])
    """

    papers: ClassVar[tuple[str, ...]] = ("hoffman2013stochastic",)

    def _create_local_source(self, group: Group, initial: Tensor, batch: Batch | None) -> None:
        full = len(initial) if batch is None else batch.full_size
        in_order = len(initial) == full and (batch is None or batch.rows is None)
        table = initial if in_order else initial.mean(0).expand(full, -1)
        if self.condition_on_globals:
            table = pad(table, (0, group.num_params * self._num_globals))
            self.response = LinearResponse()
        self.local_params = nn.Parameter(table.clone())

    def _local_params(self, batch: Batch, args: Any, kwargs: Any) -> Tensor:
        return read_rows(
            self.local_params,
            batch,
            sparse=self.sparse,
            plate=self.plate,
            owner=type(self).__name__,
        )
