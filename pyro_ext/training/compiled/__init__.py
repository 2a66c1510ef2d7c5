"""The compiled step: Pyro's SVI at the speed of a compiled training loop."""

from pyro_ext.training.compiled.svi import CompiledSVI as CompiledSVI
