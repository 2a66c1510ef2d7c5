"""π(x) from an encoder, corrected for each datapoint."""

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.functional import pad

from pyro_ext.autoguide.encoder import EncoderGuide
from pyro_ext.autoguide.guide import Group
from pyro_ext.autoguide.plates import Batch
from pyro_ext.autoguide.table import read_rows

__all__ = ["AutoSemiAmortized"]


class AutoSemiAmortized(EncoderGuide):
    r"""Guide whose π_i comes from an encoder and from a free row of its own.

    .. math::
        q(\theta, z \mid x) = q(\theta; \pi_0) \prod_i q(z_i; \pi(x_i) + \delta_i)

    The table of δ starts at zero, where this guide is ``AutoAmortized``; a mini-batch reads and
    updates the rows of its own datapoints. What the bound gains over ``AutoAmortized`` is what
    amortization costs. For other data than the table's, ``px.refine`` starts at the encoder.

    Args:
        model: A Pyro model with latents inside a data plate.
        encoder: Module, or function without parameters, of the model's arguments that returns
            ``(batch, features)``.
        family: Family of the latents of one datapoint.
        plate: Name of the data plate; by default the only one that holds latents, or the only
            subsampled one.
        global_family: Family of the latents outside the data plate, which share one free π_0.
        init_loc_fn: Where to start: a per-site initializer of ``pyro.infer.autoguide``.
        init_scale: Standard deviation to start from, in unconstrained units.
        create_plates: Function of the model's arguments that returns the plates to use.
        condition_on_globals: Whether the local latents depend on the draw of the globals, as in
            ``AutoAmortized``.
        sparse: Whether the gradient of δ holds the rows of the mini-batch alone, as in
            ``AutoPerDatapoint``.

    Raises:
        ValueError: If the data plate is ambiguous or absent, if the encoder's output has another
            shape than ``(batch, features)``, or if the guide is called with another number of
            datapoints than it was built for.

    References:
        Semi-Amortized Variational Autoencoders (Kim, Wiseman, Miller, Sontag and Rush, 2018) |
        https://arxiv.org/abs/1802.02550

    Example:
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> guide = AutoSemiAmortized(model, lambda x: x.unsqueeze(-1))
        >>> guide.setup(torch.zeros(3))
        >>> guide.delta
        Parameter containing:
        tensor([[0., 0.],
                [0., 0.],
                [0., 0.]], requires_grad=True)
    """

    papers: ClassVar[tuple[str, ...]] = ("kim2018semi",)

    def _create_local_source(self, group: Group, initial: Tensor, batch: Batch | None) -> None:
        super()._create_local_source(group, initial, batch)
        full = len(initial) if batch is None else batch.full_size
        self.delta = nn.Parameter(initial.new_zeros(full, group.num_params))

    def _local_params(self, batch: Batch, args: Any, kwargs: Any) -> Tensor:
        encoded = self._encoded(batch, args, kwargs)
        delta = read_rows(
            self.delta, batch, sparse=self.sparse, plate=self.plate, owner=type(self).__name__
        )
        return encoded + pad(delta, (0, encoded.shape[-1] - delta.shape[-1]))
