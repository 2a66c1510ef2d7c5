"""Did it work? k-hat, evidence with its error, ArviZ, and guides side by side."""

from pyro_ext.diagnostics._estimates import Elements as Elements
from pyro_ext.diagnostics._estimates import Estimate as Estimate
from pyro_ext.diagnostics.annealing import Annealing as Annealing
from pyro_ext.diagnostics.annealing import ais as ais
from pyro_ext.diagnostics.annealing import bdmc as bdmc
from pyro_ext.diagnostics.calibration import Calibration as Calibration
from pyro_ext.diagnostics.calibration import sbc as sbc
from pyro_ext.diagnostics.compare import Comparison as Comparison
from pyro_ext.diagnostics.compare import compare as compare
from pyro_ext.diagnostics.datatree import from_draws as from_draws
from pyro_ext.diagnostics.datatree import from_mcmc as from_mcmc
from pyro_ext.diagnostics.datatree import to_datatree as to_datatree
from pyro_ext.diagnostics.distances import Distances as Distances
from pyro_ext.diagnostics.distances import distances as distances
from pyro_ext.diagnostics.evidence import Evidence as Evidence
from pyro_ext.diagnostics.evidence import evidence as evidence
from pyro_ext.diagnostics.gaps import Gaps as Gaps
from pyro_ext.diagnostics.gaps import gaps as gaps
from pyro_ext.diagnostics.khat import KHat as KHat
from pyro_ext.diagnostics.khat import k_hat as k_hat
from pyro_ext.diagnostics.khat import k_hat_joint as k_hat_joint
from pyro_ext.diagnostics.khat import k_hat_per_datapoint as k_hat_per_datapoint
from pyro_ext.diagnostics.nuts import nuts as nuts
from pyro_ext.diagnostics.rates import Rates as Rates
from pyro_ext.diagnostics.rates import rates as rates
