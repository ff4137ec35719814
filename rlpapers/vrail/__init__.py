"""VRAIL: vectorized reward-based attribution for interpretable learning (arXiv 2506.16014).

Each name is imported from its module when it is first used.
"""

from typing import TYPE_CHECKING

from rlpapers.core.lazy import lazy_package

if TYPE_CHECKING:
    from .agents import *
    from .attribution import *
    from .bilevel import *
    from .config import *
    from .engine import *
    from .features import *
    from .generic import *
    from .lockstep import *
    from .network import *
    from .report import *
    from .shaping import *
    from .tabular import *
    from .train import *
    from .units import *
    from .values import *
    from .vector import *

_MODULES = {
    "tabular": "TabularMDP EnvMismatchError value_iteration policy_evaluation reachable "
    "shaped from_gym compile",
    "vector": "TabularVectorEnv make_vector",
    "features": "Features TaxiFeatures GridFeatures DoorKeyFeatures BoxFeatures "
    "doorkey_key doorkey_reward",
    "values": "LinearValue QuadraticValue Design design dl_stage",
    "config": "VRAILConfig DQNConfig VARIANTS variant",
    "network": "Layout",
    "lockstep": "LockStep Outcomes",
    "engine": "Engine",
    "agents": "TableEngine",
    "train": "train StudyResult first_reach",
    "attribution": "Attribution linear pairwise anova shapley subgoals support "
    "plot_weights plot_heatmap",
    "shaping": "PotentialShaping VectorPotentialShaping oracle random_potential project",
    "bilevel": "bilevel_map",
    "generic": "GenericConfig train_generic",
    "units": "WORLDS world configurations train_block",
    "report": "contrast reference view speed_table compare",
}

__getattr__, __dir__, __all__ = lazy_package(
    __name__, _MODULES, "params claims bench pole"
)
