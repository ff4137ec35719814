"""AbideGym: MiniGrid whose rules change within an episode (arXiv 2509.21234); under construction.

Each name is imported from its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .agents import *
    from .batches import *
    from .cells import *
    from .changes import *
    from .ids import *
    from .layouts import *
    from .levels import *
    from .logs import *
    from .outcomes import *
    from .perturbations import *
    from .planner import *
    from .policy import *
    from .protocol import *
    from .resizing import *
    from .schedules import *
    from .states import *
    from .streams import *
    from .training import *
    from .vectors import *
    from .wrapper import *

_MODULES = {
    "cells": "State",
    "streams": "Stream",
    "layouts": "Task LevelBank",
    "planner": "plan distance_map verify",
    "schedules": "Stall Deadline Pressure BeforeSubgoal AtStep Periodic Bernoulli OnEvent "
    "Near Visited Loop",
    "perturbations": "Rekey ToggleDoor MoveObject Obstruct Clear Distractors RemapActions "
    "Sticky ShrinkView Blackout Recolor SeeThrough",
    "resizing": "Resize ResizeCurriculum PaddedFullyObs",
    "states": "StructuredState",
    "changes": "Rule",
    "wrapper": "AbideGymWrapper UnsolvableError",
    "ids": "env_ids make_env register_ids",
    "logs": "replay",
    "vectors": "AbideVecEnv",
    "agents": "RandomAgent OracleAgent FrozenPlanAgent StaleModelAgent",
    "outcomes": "brittleness resilience recovery strategy_mix",
    "protocol": "Report evaluate env_worlds",
    "batches": "vec_worlds",
    "levels": "LevelReplay",
    "policy": "PolicyAgent",
    "training": "Regime TrainConfig train",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name in _HOME:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})
