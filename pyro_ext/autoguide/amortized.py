"""π(x) from an encoder."""

from collections.abc import Callable
from typing import Any, ClassVar

from pyro.infer.autoguide import init_to_median
from torch import Tensor

from pyro_ext.autoguide.encoder import EncoderGuide
from pyro_ext.autoguide.plates import Batch
from pyro_ext.families import Family

__all__ = ["AutoAmortized"]


class AutoAmortized(EncoderGuide):
    r"""Guide whose π_i = π(x_i) comes from an encoder: amortized inference.

    .. math::
        q(\theta, z \mid x) = q(\theta; \pi_0) \prod_i q(z_i; \pi(x_i)), \qquad
        \pi(x) = A\,h(x) + b

    The encoder h turns the model's own arguments into one feature vector per datapoint of the
    batch; the linear head (A, b) is built here and starts close to the initial π. The encoder
    runs once per call, whatever the number of particles. Where the model takes all N rows and
    subsamples inside its plate, tensors with N rows are cut to the batch's rows first. Where data
    are missing, the model takes their mask as an argument, and so the encoder sees it.

    With ``condition_on_globals`` the local latents depend on the unconstrained vector z_θ of the
    globals, q(z_i; π(x_i) + r(h(x_i), z_θ)), with a network r that starts at zero; the encoder
    still runs once.

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
        condition_on_globals: Whether the local latents depend on the draw of the globals.
            ``median`` and ``quantiles`` then take the globals at their median; the draws of
            ``sample_posterior`` have the marginals.

    Raises:
        ValueError: If the data plate is ambiguous or absent, or the encoder's output has another
            shape than ``(batch, features)``, or there are no globals to condition on.

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

    papers: ClassVar[tuple[str, ...]] = ("kingma2014auto",)

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
    ) -> None:
        super().__init__(
            model,
            encoder,
            family=family,
            plate=plate,
            global_family=global_family,
            init_loc_fn=init_loc_fn,
            init_scale=init_scale,
            create_plates=create_plates,
            condition_on_globals=condition_on_globals,
        )

    def _local_params(self, batch: Batch, args: Any, kwargs: Any) -> Tensor:
        return self._encoded(batch, args, kwargs)
