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
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_ext as px
from models._names import unique_name
from models.semi_supervised import M2, NUM_CLASSES
from pyro_ext.nn import MLP

__all__ = ["GUIDES", "M2Guide", "fit_m2", "semi_supervised_loss"]


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


def fit_m2(
    x: Tensor,
    x_labelled: Tensor,
    y: Tensor,
    *,
    model: M2,
    guide: M2Guide,
    weight: float,
    num_steps: int,
    batch_size: int = 64,
    num_labelled: int | None = None,
) -> None:
    """Fit model and guide by :func:`semi_supervised_loss`, AdamW and a cosine.

    Args:
        x: Images without labels, shape ``(unlabelled, num_features)``.
        x_labelled: Images with labels, shape ``(labelled, num_features)``.
        y: Those labels, one-hot, shape ``(labelled, 10)``.
        model: The model.
        guide: Its guide.
        weight: Weight of the classifier's loss.
        num_steps: Number of steps.
        batch_size: Images without labels of a step.
        num_labelled: Images with labels of a step; by default all.
    """
    params = [*model.parameters(), *guide.parameters()]
    optim = torch.optim.AdamW(params, lr=3e-3, weight_decay=0.05)
    schedule = CosineAnnealingLR(optim, T_max=num_steps)
    known, labels = x_labelled, y
    for _ in range(num_steps):
        rows = torch.randint(len(x), (batch_size,))
        if num_labelled is not None:
            some = torch.randint(len(y), (num_labelled,))
            known, labels = x_labelled[some], y[some]
        optim.zero_grad()
        semi_supervised_loss(model, guide, x[rows], known, labels, weight=weight).backward()
        optim.step()
        schedule.step()


GUIDES: Mapping[str, Callable[..., M2Guide]] = {"classifier-and-encoder": M2Guide}
