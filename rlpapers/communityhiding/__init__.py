"""Evading overlapping community detection with a learned rewiring policy (arXiv 2509.21211).

Each name is imported from its module when it is first used.
"""

from typing import TYPE_CHECKING

from rlpapers.core.lazy import lazy_package

if TYPE_CHECKING:
    from .agent import AgentHider, train_agent
    from .angel import Angel
    from .angel_updates import IncrementalAngel
    from .audit import audit_table
    from .batches import HidingBatch
    from .covers import (
        CommunityDetector,
        Cover,
        as_detector,
        dice,
        hiding_f1,
        jaccard,
        membership_similarity,
        overlap_coefficient,
    )
    from .demon import Demon
    from .demon_updates import IncrementalDemon
    from .environments import CommunityHidingEnv
    from .evaluation import (
        evaluate,
        mcnemar_exact,
        noise_floor,
        paired_bootstrap,
        summary_table,
    )
    from .generators import affiliation_graph
    from .gradient import GradientHider
    from .graphs import (
        BudgetError,
        DetectorError,
        GraphArrays,
        GraphInputError,
        TargetError,
        as_arrays,
        load_graph,
    )
    from .heuristics import (
        BetweennessHider,
        DegreeHider,
        DICEHider,
        DisconnectInternalHider,
        GreedyHider,
        NaiveProxyHider,
        NoOpHider,
        RandomHider,
        ROAMHider,
    )
    from .hider import ODRLHider
    from .injection import budget_unit, inject_proxies
    from .nmi import overlapping_nmi, partition_nmi
    from .partitions import PartitionDetector
    from .plots import plot_before_after, plot_sr_vs_budget
    from .policy import ODRLPolicy
    from .searches import ExhaustiveSearch, OracleGreedyHider
    from .sessions import Hider, HidingResult, HidingSession
    from .tasks import HidingTask, make_tasks, sample_targets
    from .training import ODRLConfig, TrainResult, train_odrl
    from .vectors import CommunityHidingVecEnv

_MODULES = {
    "angel": "Angel",
    "angel_updates": "IncrementalAngel",
    "demon": "Demon",
    "demon_updates": "IncrementalDemon",
    "partitions": "PartitionDetector",
    "covers": "CommunityDetector Cover as_detector dice hiding_f1 jaccard membership_similarity overlap_coefficient",
    "nmi": "overlapping_nmi partition_nmi",
    "graphs": "BudgetError DetectorError GraphArrays GraphInputError TargetError as_arrays load_graph",
    "generators": "affiliation_graph",
    "injection": "budget_unit inject_proxies",
    "tasks": "HidingTask make_tasks sample_targets",
    "sessions": "Hider HidingResult HidingSession",
    "batches": "HidingBatch",
    "environments": "CommunityHidingEnv",
    "vectors": "CommunityHidingVecEnv",
    "policy": "ODRLPolicy",
    "training": "ODRLConfig TrainResult train_odrl",
    "hider": "ODRLHider",
    "heuristics": "BetweennessHider DegreeHider DICEHider DisconnectInternalHider GreedyHider NaiveProxyHider NoOpHider RandomHider ROAMHider",
    "searches": "ExhaustiveSearch OracleGreedyHider",
    "gradient": "GradientHider",
    "agent": "AgentHider train_agent",
    "evaluation": "evaluate mcnemar_exact noise_floor paired_bootstrap summary_table",
    "audit": "audit_table",
    "plots": "plot_before_after plot_sr_vs_budget",
}

__getattr__, __dir__, __all__ = lazy_package(
    __name__,
    _MODULES,
    "adjacency agreement attempts backends bench circles claims coalitions convolution draws encoder episodes files heads merging orders params propagation reference report trials verdicts",
)
