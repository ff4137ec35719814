"""Entropy control in LLM-RL: clamped entropy with an adaptive coefficient (arXiv 2509.03493).

Each name is imported from its module when it is first used. Token sets, entropies and the fused
head are defined in `rlpapers.llm` and importable from here too.
"""

from typing import TYPE_CHECKING

from rlpapers.core.lazy import lazy_package

if TYPE_CHECKING:
    from rlpapers.llm.entropy import TokenSet, entropy_from_logits
    from rlpapers.llm.fused import LossOutput, fused_policy_loss
    from rlpapers.llm.logprob import TokenStats, token_stats

    from .coefficient import *
    from .exact import *
    from .onestate import *
    from .regularizers import *
    from .trl import AEntGRPOTrainer

_MODULES = {
    "coefficient": "AdaptiveCoefficient",
    "regularizers": "AEnt EntropyBonus TargetBonus ClipCov KLCov METHODS method",
    "exact": "best_mass optimal_value half_mass_coefficient ascend",
    "onestate": "problem train expected_reward",
    "trl": "AEntGRPOTrainer",
    "rlpapers.llm.entropy": "TokenSet entropy_from_logits",
    "rlpapers.llm.logprob": "TokenStats token_stats",
    "rlpapers.llm.fused": "LossOutput fused_policy_loss",
}

__getattr__, __dir__, __all__ = lazy_package(
    __name__, _MODULES, "params words units real claims bench report"
)
