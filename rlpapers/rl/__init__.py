"What several papers share to learn a policy; each name is imported when first used."

from typing import TYPE_CHECKING

from rlpapers.core.lazy import lazy_package

if TYPE_CHECKING:
    from .networks import *
    from .ppo import *
    from .returns import *
    from .rollouts import *

_MODULES = {
    "returns": "discounted_returns next_values gae normalize explained_variance",
    "rollouts": "Rollout minibatches columns final_rows Collector",
    "networks": "orthogonal mlp index_sum IndexLinear Categorical Memory ActorCritic",
    "ppo": "policy_loss value_loss PPOConfig ppo_loss NonFiniteLoss PPO",
}

__getattr__, __dir__, __all__ = lazy_package(__name__, _MODULES)
