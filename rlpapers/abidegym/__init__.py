"""AbideGym: MiniGrid whose rules change within an episode (arXiv 2509.21234).

Each name is imported from its module when it is first used; the ids are registered at once.
`gymnasium.make("rlpapers.abidegym:AbideGym-DoorKey-8x8-v0")` imports and makes in one.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from rlpapers.core.lazy import lazy_package

if TYPE_CHECKING:
    from .agents import *
    from .batches import *
    from .cells import *
    from .comparisons import *
    from .changes import *
    from .ids import *
    from .layouts import *
    from .levels import *
    from .logs import *
    from .outcomes import *
    from .perturbations import *
    from .planner import *
    from .policy import *
    from .positioning import *
    from .protocol import *
    from .resizing import *
    from .schedules import *
    from .states import *
    from .streams import *
    from .training import *
    from .vectors import *
    from .senses import *
    from .worlds import *
    from .wrapper import *

_MODULES = {
    "cells": "State",
    "streams": "Stream",
    "layouts": "Task LevelBank",
    "planner": "plan distance_map verify",
    "schedules": "Stall Deadline Pressure BeforeSubgoal AtStep Periodic Bernoulli OnEvent "
    "Near Visited Loop",
    "perturbations": "Rekey ToggleDoor MoveObject Obstruct Clear Distractors",
    "senses": "RemapActions Sticky ShrinkView Blackout Recolor SeeThrough",
    "resizing": "Resize ResizeCurriculum PaddedFullyObs",
    "states": "StructuredState",
    "changes": "Rule",
    "wrapper": "AbideGymWrapper UnsolvableError",
    "ids": "env_ids make_env register_ids",
    "logs": "replay",
    "vectors": "AbideVecEnv",
    "agents": "RandomAgent OracleAgent FrozenPlanAgent StaleModelAgent",
    "outcomes": "brittleness resilience recovery strategy_mix",
    "protocol": "Report evaluate",
    "worlds": "env_worlds",
    "batches": "vec_worlds",
    "levels": "LevelReplay",
    "policy": "PolicyAgent",
    "training": "Regime TrainConfig train",
    "comparisons": "permutation recovery_curves",
    "positioning": "positions",
}

_MORE = "params report trials variants claims bench cli"

__getattr__, __dir__, __all__ = lazy_package(__name__, _MODULES, _MORE)

import_module(f"{__name__}.ids")  # registers names and plain data: nothing heavy
