"""Offline learning of continuous-time LQR with exogenous disturbances (arXiv 2509.16746).

A reconstruction: the method section of the paper could not be read. Each name is imported from its
module when it is first used.
"""

from typing import TYPE_CHECKING

from rlpapers.core.lazy import lazy_package

if TYPE_CHECKING:
    from .algebra import *
    from .batched import *
    from .certificates import *
    from .estimators import *
    from .iteration import *
    from .matrices import *
    from .moments import *
    from .operator import *
    from .rank import *
    from .records import *
    from .reference import *
    from .regression import *
    from .signals import *
    from .simulation import *
    from .systems import *
    from .value import *
    from .windows import *

_MODULES = {
    "algebra": "svec smat phi fold NotStabilizingError RankConditionError "
    "IllConditionedWarning abscissa suboptimality",
    "systems": "PLANTS LinearPlant scalar double_integrator f16_short_period diesel_engine "
    "diesel_weights triple_inverted_pendulum pendulum_gain oscillators mass_chain "
    "coupled_oscillators ring_with_chords random_stable",
    "signals": "MultiSine Zero Pulse Step BandLimited OU White Multiplicative exploration design",
    "records": "Block Trajectories",
    "simulation": "simulate",
    "matrices": "WindowData sample_weights",
    "windows": "build_windows simulate_windows",
    "moments": "expected_windows",
    "reference": "care kleinman perturbed_kleinman cost_matrix cost_rate",
    "rank": "RankReport rank_report",
    "regression": "Compressed Direct assemble",
    "operator": "Operator",
    "iteration": "SOLVERS PIResult policy_iteration",
    "value": "value_iteration certainty_equivalent identify",
    "certificates": "Certificate certificate",
    "estimators": "ESTIMATORS Interval OfflineLQR estimate interval",
    "batched": "batched_policy_iteration batched_kleinman random_plants",
}

__getattr__, __dir__, __all__ = lazy_package(
    __name__, _MODULES, "params claims bench report"
)
