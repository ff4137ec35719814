"What several papers share to learn a policy; each name is imported when first used."

from importlib import import_module
from typing import TYPE_CHECKING

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
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})
