"AbideGym's library half: the wrapper against MiniGrid, and golden numbers."

import gymnasium as gym
import numpy as np
import pytest

minigrid = pytest.importorskip("minigrid")

from rlpapers.abidegym.cells import State  # noqa: E402
from rlpapers.abidegym.planner import plan  # noqa: E402
from rlpapers.abidegym.wrapper import AbideGymWrapper  # noqa: E402
from rlpapers.rl.returns import gae  # noqa: E402


@pytest.mark.parametrize(
    "name", ["DoorKey-6x6", "Empty-5x5", "FourRooms", "LavaGapS7", "Unlock"]
)
@pytest.mark.parametrize("seed", [0, 7])
def test_without_rules_the_wrapper_is_minigrid(name, seed):
    "Golden 1."
    bare = gym.make(f"MiniGrid-{name}-v0")
    ours = AbideGymWrapper(gym.make(f"MiniGrid-{name}-v0"), rules=[])
    rng = np.random.default_rng(seed)
    a, _ = bare.reset(seed=seed)
    b, _ = ours.reset(seed=seed)
    for _ in range(150):
        np.testing.assert_array_equal(a["image"], b["image"])
        assert bare.unwrapped.hash() == ours.unwrapped.hash()
        act = int(rng.integers(7))
        (a, *x), (b, *y) = bare.step(act), ours.step(act)
        assert x[:3] == y[:3]
        if x[1] or x[2]:
            a, b = bare.reset()[0], ours.reset()[0]


@pytest.mark.parametrize("size, length", [(5, 11), (6, 14), (8, 17), (16, 29)])
def test_oracle_plans_have_the_golden_length(size, length):
    "Golden 3, seed 0; in MiniGrid the plan earns exactly 1 - 0.9 L / (10 n^2)."
    env = gym.make(f"MiniGrid-DoorKey-{size}x{size}-v0")
    env.reset(seed=0)
    steps = plan(State.from_env(env))
    assert len(steps) == length
    for act in steps:
        _, reward, done, _, _ = env.step(int(act))
    assert done and reward == pytest.approx(
        1 - 0.9 * length / (10 * size**2), rel=1e-12
    )


def test_advantages_have_the_golden_values():
    "Golden 15: reward 1, value 0, discount .9, lambda .5, three steps to an end."
    torch = pytest.importorskip("torch")
    zero, one = torch.zeros(3, 1), torch.ones(3, 1)
    last = torch.tensor([[False], [False], [True]])
    none = torch.zeros(3, 1, dtype=torch.bool)
    got = gae(one, zero, zero, last, none, 0.9, 0.5)
    torch.testing.assert_close(got[:, 0], torch.tensor([1.6525, 1.45, 1.0]))
