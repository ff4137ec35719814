"""A small run in a process of its own, to be killed and gone on with.

`python llm_run.py FOLDER STEPS SIGNAL STEP`: it sends itself a signal in that step.
"""

import os
import signal
import sys

import torch

from rlpapers.aent import AdaptiveCoefficient, AEnt, TokenSet
from rlpapers.aent.words import new_policy
from rlpapers.llm.learner import LearnerConfig
from rlpapers.llm.mod10 import Mod10Questions, Mod10World
from rlpapers.llm.native import NativeEngine
from rlpapers.llm.trainer import RLTrainer, TrainerConfig

WORLD = Mod10World((1, 2), 90)


class Known:
    "A reward an untrained policy can earn: the share of words that mean something."

    def __init__(self):
        self.asked, self.at, self.send = 0, None, None

    def __call__(self, batch):
        if self.asked == self.at:
            os.kill(os.getpid(), self.send)
        self.asked += 1
        known = lambda words: sum(not w.startswith("w") for w in words) / len(words)
        return torch.tensor([known(t.split() or ["w"]) for t in batch.texts])


def made(folder=None, regularizers=None, loss=None, learner=None, **settings):
    "A trainer on a tiny model; the same arguments give the same run."
    policy = new_policy(WORLD, 0, 16)
    if regularizers is None:
        steer = AdaptiveCoefficient(0.02, 0.5, 1.0, 0.01, (0.0, 0.3), warmup=1)
        regularizers = [AEnt(steer, TokenSet("top_k", 20))]
    base = dict(prompts=4, group=4, max_new_tokens=8, seed=1)
    more = {} if loss is None else {"loss": loss}
    return RLTrainer(
        policy, NativeEngine(policy, WORLD.tokenizer), WORLD.tokenizer,
        Mod10Questions(WORLD), Known(), TrainerConfig(**(base | settings)),
        learner=learner or LearnerConfig(lr=3e-3, minibatches=2),
        regularizers=regularizers, folder=folder, **more,
    )  # fmt: skip


if __name__ == "__main__":
    folder, steps, name, at = sys.argv[1:]
    trainer = made(folder, save_every=2)
    trainer.reward.at, trainer.reward.send = int(at), getattr(signal, name)
    trainer.train(int(steps))
