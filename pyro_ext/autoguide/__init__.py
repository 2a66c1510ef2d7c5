"""Guides built from any model's trace."""

from pyro_ext.autoguide.amortized import AutoAmortized as AutoAmortized
from pyro_ext.autoguide.joint import AutoJoint as AutoJoint
from pyro_ext.autoguide.per_datapoint import AutoPerDatapoint as AutoPerDatapoint
from pyro_ext.autoguide.semi_amortized import AutoSemiAmortized as AutoSemiAmortized

__all__ = ["AutoAmortized", "AutoJoint", "AutoPerDatapoint", "AutoSemiAmortized"]
