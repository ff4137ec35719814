"The LLM-RL engine that several papers share; each name is imported when first used."

from typing import TYPE_CHECKING

from rlpapers.core.lazy import lazy_package

if TYPE_CHECKING:
    from .advantages import *
    from .custom import *
    from .decisions import *
    from .distributed import *
    from .engines import *
    from .entropy import *
    from .evaluation import *
    from .frameworks import *
    from .fused import *
    from .hub import *
    from .kernels import *
    from .learner import *
    from .logprob import *
    from .losses import *
    from .mod10 import *
    from .models import *
    from .native import *
    from .rewards import *
    from .rollout import *
    from .sampling import *
    from .tasks import *
    from .tokenization import *
    from .trainer import *
    from .transformer import *
    from .workers import *

_MODULES = {
    "tokenization": "Tokenizer WordTokenizer ByteTokenizer BPETokenizer HFTokenizer pad_rows",
    "workers": "Outcome WorkerPool",
    "tasks": "Problem ReasoningTask ProblemList GymTask between score_math",
    "mod10": "Clause Story all_stories Mod10World Mod10Questions Example world_tokenizer",
    "transformer": "TransformerConfig TinyTransformer KVCache",
    "models": "CausalPolicy MaskedPolicy from_hf copy_weights",
    "sampling": "SamplingParams row_uniforms filter_probs sample_tokens",
    "rollout": "RolloutBatch RolloutEngine make_batch check_prompts",
    "native": "NativeEngine",
    "entropy": "TokenSet entropy_from_logits",
    "kernels": "has_kernel",
    "logprob": "TokenStats token_stats",
    "rewards": "RewardBatch Reward RewardError arithmetic TaskReward ExactMatch MathVerify",
    "custom": "FunctionReward WorkerReward LengthPenalty WeightedSum Cached",
    "advantages": "group_relative leave_one_out mixed_groups frac_zero_variance",
    "losses": "PolicyLossConfig policy_loss kl_estimate",
    "fused": "LossOutput fused_policy_loss",
    "evaluation": "pass_at_k fixed_problems Evaluation evaluate",
    "distributed": "Ranks",
    "decisions": "Decisions causal_decisions micro_batches",
    "learner": "TrainingError Regularizer KLPenalty LearnerConfig Learner",
    "engines": "TransformersEngine VLLMEngine decoding_seconds",
    "hub": "load_policy load_tokenizer load_smollm2",
    "frameworks": "trl_rows trl_reward verl_table verl_reward openrlhf_rows openrlhf_reward",
    "trainer": "TrainerConfig Stopped RLTrainer JsonlLog",
}
__getattr__, __dir__, __all__ = lazy_package(__name__, _MODULES)
