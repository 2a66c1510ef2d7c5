"""Types of libraries that are imported only when they are used."""

from typing import TYPE_CHECKING, Any

import numpy as np

__all__ = ["Array", "Axes", "DataFrame", "DataTree", "Figure"]

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame
    from xarray import DataTree
else:
    Axes = DataFrame = DataTree = Figure = Any

Array = np.ndarray[Any, np.dtype[Any]]
