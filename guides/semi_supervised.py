r"""The guide of the semi-supervised VAE, written by hand: a classifier and an encoder.

.. math:: q(y \mid x)\, q(z \mid x, y)

The label is enumerated where it is not known: ``TraceEnum_ELBO`` sums over its ten values.

Example:
    >>> from models.semi_supervised import M2, data
    >>> found = data()
    >>> guide = GUIDES["classifier-and-encoder"](M2())
    >>> guide.classify(found.x_test).shape
    torch.Size([400, 10])
"""

from collections.abc import Callable, Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.nn import PyroModule
from torch import Tensor

import pyro_ext as px
from models._names import unique_name
from models.semi_supervised import M2, NUM_CLASSES
from pyro_ext.nn import MLP

__all__ = ["GUIDES", "M2Guide", "semi_supervised_loss"]


class M2Guide(PyroModule):
    """A classifier q(y | x) and an encoder q(z | x, y).

    Args:
        model: The model.
        hidden: Width of the layers of each.
    """

    def __init__(self, model: M2, *, hidden: int = 128) -> None:
        super().__init__(unique_name("m2_guide"))
        self.classifier = MLP(model.num_features, (hidden,), NUM_CLASSES)
        self.encoder = MLP(model.num_features + NUM_CLASSES, (hidden,), 2 * model.latent_dim)

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        """Sample ``y``, if it is not known, and ``z`` in the plate ``"data"``.

        Args:
            x: Features, shape ``(batch, num_features)``.
            y: One-hot labels, shape ``(batch, 10)``, where they are known.
        """
        with pyro.plate("data", len(x), dim=-1):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=self.classifier(x)))
            batch = torch.broadcast_shapes(x.shape[:-1], y.shape[:-1])  # enumerated labels first
            given = torch.cat([x.expand(*batch, -1), y.expand(*batch, -1)], -1)
            loc, raw = self.encoder(given).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, torch.nn.functional.softplus(raw)).to_event(1))

    def classify(self, x: Tensor) -> Tensor:
        """Return the logits of q(y | x), shape ``(batch, 10)``.

        Args:
            x: Features, shape ``(batch, num_features)``.
        """
        logits: Tensor = self.classifier(x)
        return logits


def semi_supervised_loss(
    model: M2, guide: M2Guide, x: Tensor, x_labelled: Tensor, y: Tensor, *, weight: float
) -> Tensor:
    r"""Return minus both ELBOs and the classifier's loss, in nats per image, a scalar.

    .. math:: -\tfrac1B \sum \mathcal{U}(x) - \tfrac1L \sum \mathcal{L}(x, y)
              - \alpha\, \tfrac1L \sum \log q(y \mid x)

    Args:
        model: The model.
        guide: Its guide.
        x: Images without labels, shape ``(B, num_features)``.
        x_labelled: Images with labels, shape ``(L, num_features)``.
        y: Those labels, one-hot, shape ``(L, 10)``.
        weight: α; without it, known labels do not train the classifier.
    """
    enumerated = config_enumerate(guide, default="parallel")
    summed = TraceEnum_ELBO(max_plate_nesting=1)
    unknown: Tensor = summed.differentiable_loss(model, enumerated, x) / len(x)
    known: Tensor = px.ELBO().differentiable_loss(model, guide, x_labelled, y) / len(y)
    log_q = guide.classify(x_labelled).log_softmax(-1)
    return unknown + known - weight * (log_q * y).sum(-1).mean()


GUIDES: Mapping[str, Callable[..., M2Guide]] = {"classifier-and-encoder": M2Guide}
