"""A loss of this package in a LightningModule."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import pyro_ext as px

lightning = pytest.importorskip("lightning", reason="the package lightning is not installed")
X = torch.linspace(-2, 3, 40)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class Fit(lightning.LightningModule):
    """``loss(model, guide)`` is a module with the parameters of both."""

    def __init__(self, model, guide, loss, num_data):
        super().__init__()
        self.pair, self.num_data = loss(model, guide), num_data

    def training_step(self, x):
        # The rows of a batch stand for all: model and guide are scaled by N/B.
        with px.MiniBatch("data", self.num_data, None, sliced=True):
            loss = self.pair(x)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        adam = torch.optim.Adam(self.parameters(), lr=0.05)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=60)
        return {"optimizer": adam, "lr_scheduler": decay}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("loss", [px.ELBO(4, estimator="stl"), px.IWAE(4, estimator="dreg")])
def test_lightning_trains_a_pair(loss, tmp_path):
    torch.manual_seed(0)
    guide = px.AutoAmortized(model, nn.Unflatten(0, (-1, 1)))
    guide.setup(X)
    trainer = lightning.Trainer(
        max_epochs=60,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    module = Fit(model, guide, loss, len(X))
    trainer.fit(module, DataLoader(X.tolist(), 10, shuffle=True, collate_fn=torch.tensor))
    torch.testing.assert_close(guide.median(X)["z"], X / 2, rtol=0, atol=0.05)
    # A guide that is the posterior has a bound without noise, of the scaled batch as well.
    value = trainer.callback_metrics["loss"]
    assert torch.isfinite(value)
    exact = dist.Normal(0.0, 2.0**0.5).log_prob(X).sum()
    assert -loss.loss(model, guide, X) == pytest.approx(exact.item(), abs=0.1)
