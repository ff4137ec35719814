"Bad input to the LLM engine, rewards that fail, and answers that attack."

import json
import os
import time

import pytest
import torch

from rlpapers.llm.custom import Cached, FunctionReward, WeightedSum, WorkerReward
from rlpapers.llm.engines import TransformersEngine
from rlpapers.llm.evaluation import evaluate
from rlpapers.llm.hub import load_policy, load_tokenizer, look_into
from rlpapers.llm.mod10 import Mod10Questions, Mod10World
from rlpapers.llm.models import CausalPolicy
from rlpapers.llm.native import NativeEngine
from rlpapers.llm.rewards import (
    ExactMatch,
    MathVerify,
    RewardBatch,
    RewardError,
    TaskReward,
    arithmetic,
    checked,
)
from rlpapers.llm.sampling import SamplingParams
from rlpapers.llm.tasks import GymTask, Problem, ProblemList, between, huge_power
from rlpapers.llm.tokenization import BPETokenizer, HFTokenizer, WordTokenizer
from rlpapers.llm.transformer import TinyTransformer

V = 24
TOK = WordTokenizer(["<pad>", "<eos>", *(f"w{i}" for i in range(V - 2))])
WORLD = Mod10World()


def hf(**sizes):
    "A small model of `transformers`."
    lib = pytest.importorskip("transformers")
    sizes = dict(vocab_size=V, hidden_size=16, num_hidden_layers=1) | sizes
    sizes |= dict(num_attention_heads=2, intermediate_size=16, pad_token_id=0)
    return lib.LlamaForCausalLM(lib.LlamaConfig(**sizes, eos_token_id=1)).eval()


def fast_tokenizer(**special):
    "A tokenizer of `transformers` with the special tokens given."
    lib = pytest.importorskip("transformers")
    inner = BPETokenizer.train(["one two three four"] * 3, 280).inner
    return lib.PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def batch_of(*texts: str, answer: str = "7") -> RewardBatch:
    return RewardBatch(list(texts), [Problem("?", answer)] * len(texts))


# Model folders


def test_a_folder_without_weights(tmp_path):
    hf().save_pretrained(tmp_path)
    (weights,) = tmp_path.glob("*.safetensors")
    weights.unlink()
    with pytest.raises(ValueError, match="has no weights in safetensors, none at all"):
        load_policy(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"only pickled ones \(pytorch_model.bin\)"):
        load_policy(tmp_path)


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(ValueError, match="has no config.json: it is no model folder"):
        load_policy(tmp_path)
    with pytest.raises(ValueError, match="a name on the hub needs download=True"):
        load_policy(tmp_path / "nothing")
    with pytest.raises(ValueError, match="'gpt2'; a name on the hub needs download"):
        load_policy("gpt2")
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="several GGUF files: a.gguf, b.gguf"):
        load_policy(tmp_path)
    (tmp_path / "b.gguf").unlink()
    with pytest.raises(ValueError, match="no causal model can be read"):
        load_policy(tmp_path)


def test_weights_cut_short_and_a_config_that_is_none(tmp_path):
    hf().save_pretrained(tmp_path)
    (weights,) = tmp_path.glob("*.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="no causal model can be read"):
        load_policy(tmp_path)
    weights.write_bytes(whole)
    (tmp_path / "config.json").write_text('{"model_type": "no such"}')
    with pytest.raises(ValueError, match="no causal model can be read"):
        load_policy(tmp_path)


def test_code_of_a_model_folder_is_never_run(tmp_path):
    hf().save_pretrained(tmp_path)
    touched = tmp_path / "touched"
    (tmp_path / "evil.py").write_text(f"open({str(touched)!r}, 'w')\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoModelForCausalLM": "evil.M"}}
    config["auto_map"]["AutoConfig"] = "evil.C"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="no causal model can be read"):
        load_policy(tmp_path)
    assert not touched.exists()


def test_safetensors_count_more_than_a_gguf_file_beside_them(tmp_path):
    assert look_into_with(tmp_path, "a.gguf") == "a.gguf"
    assert look_into_with(tmp_path, "config.json") == "a.gguf"
    assert look_into_with(tmp_path, "model.safetensors") is None
    assert look_into_with(tmp_path, "b.gguf") is None


def look_into_with(folder, name):
    (folder / name).write_text("")
    return look_into(folder)


# Tokenizers


def test_a_tokenizer_without_an_end(tmp_path):
    inner = fast_tokenizer(pad_token="<pad>")
    with pytest.raises(ValueError, match="no eos token.* set tokenizer.eos_token to"):
        HFTokenizer(inner)
    hf(vocab_size=300).save_pretrained(tmp_path)
    inner.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no eos token"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="no eos token"):
        load_policy(tmp_path)
    with pytest.raises(ValueError, match="eos='</s>' is not among the words: add it"):
        WordTokenizer(["<pad>", "a"], eos="</s>")


def test_a_tokenizer_without_padding_or_chat():
    inner = fast_tokenizer(eos_token="<eos>")
    with pytest.raises(ValueError, match="no pad token: give pad='eos'"):
        HFTokenizer(inner)
    tok = HFTokenizer(inner, pad="eos")
    assert tok.pad_id == tok.eos_id
    with pytest.raises(ValueError, match="pad='<no>' is not a token"):
        HFTokenizer(inner, pad="<no>")
    with pytest.raises(ValueError, match="no chat template.* use encode"):
        tok.chat("What is 7 + 8?")


def test_a_folder_without_a_tokenizer(tmp_path):
    hf().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no tokenizer can be read from"):
        load_policy(tmp_path)


def test_a_tokenizer_of_another_model():
    big = WordTokenizer([*TOK.words, "more"])
    with pytest.raises(ValueError, match=f"has {V + 1} tokens, the model only {V}"):
        NativeEngine(CausalPolicy(TinyTransformer(vocab_size=V)), big)
    with pytest.raises(ValueError, match="'w99' is not in the vocabulary of 24 words"):
        TOK.encode("w1 w99")


# Prompts


@pytest.mark.parametrize("kind", ["tiny", "llama", "transformers"])
def test_a_prompt_longer_than_the_context(kind):
    if kind == "tiny":
        policy = CausalPolicy(TinyTransformer(vocab_size=V, max_length=32))
    else:
        policy = CausalPolicy(hf(max_position_embeddings=32))
    engine = (TransformersEngine if kind == "transformers" else NativeEngine)(
        policy, TOK
    )
    why = "prompt 1 has 28 tokens; with 5 new ones .* context of 32: shorten it"
    with pytest.raises(ValueError, match=why):
        engine.generate([[2], [3] * 28], SamplingParams(5))
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        engine.generate([[]], SamplingParams(5))
    with pytest.raises(ValueError, match=f"prompt 0 has id {V}, the model has {V}"):
        engine.generate([[V]], SamplingParams(5))
    out = engine.generate([[2], [3] * 28], SamplingParams(4))  # fills it to the end
    assert out.prompt_ids.shape == (2, 28) and len(out.texts) == 2


# Empty data


def test_empty_data_sets(tmp_path):
    policy = CausalPolicy(TinyTransformer(vocab_size=V))
    engine, params = NativeEngine(policy, TOK), SamplingParams(3)
    file = tmp_path / "none.jsonl"
    file.write_text("\n")
    reward = ExactMatch()
    for call, why in (
        (lambda: engine.generate([], params), "no prompts: is the data set empty"),
        (lambda: evaluate(engine, [], reward, params), "no problems to evaluate on"),
        (lambda: ProblemList([], len), "there are no problems: the data set is empty"),
        (lambda: ProblemList.read(file, len), "none.jsonl has no problem"),
        (lambda: BPETokenizer.train([]), "no text to train on: the corpus is empty"),
        (lambda: BPETokenizer.train(["", ""]), "the corpus is empty"),
    ):
        with pytest.raises(ValueError, match=why):
            call()
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        GymTask("chain_sum", size=0)
    with pytest.raises(ValueError, match="no data set 'chain_sums'.*chain_sum"):
        GymTask("chain_sums")
    for r in (reward, FunctionReward(len), WeightedSum({"a": (1.0, reward)})):
        assert r(RewardBatch([], [])).shape == (0,)


# Rewards that fail

AWKWARD = """
import os, sys, time

def raises(text, prompt, answer):
    raise KeyError("gone")

def hangs(text, prompt, answer):
    while text == "hang":
        pass
    return 1.0

def sleeps(text, prompt, answer):
    time.sleep(60)

def nan(text, prompt, answer):
    return float("nan")

def infinite(text, prompt, answer):
    return float("-inf")

def pair(text, prompt, answer):
    return [1.0, 0.0]

def nothing(text, prompt, answer):
    return None

def word(text, prompt, answer):
    return "good"

def big(text, prompt, answer):
    return 2

def unwritable(text, prompt, answer):
    return {1, 2}

def dies(text, prompt, answer):
    os._exit(3)

def leaves(text, prompt, answer):
    sys.exit("bye")

def deep(text, prompt, answer):
    return deep(text, prompt, answer)

def eats(text, prompt, answer):
    return len(bytearray(1 << 40))

def writes(text, prompt, answer):
    open(text, "w")
"""


@pytest.fixture
def awkward(tmp_path, monkeypatch):
    "A module of functions nobody wants as a reward."
    (tmp_path / "awkward.py").write_text(AWKWARD)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = []

    def make(name, **settings):
        made.append(WorkerReward(f"awkward:{name}", **{"seconds": 5.0} | settings))
        return made[-1]

    yield make
    for reward in made:
        reward.pool.close()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("raises", "'raises' failed: KeyError: 'gone', sample 0: 'a'; mend"),
        ("nan", "'nan' gave nan, outside .* sample 0: 'a'; a reward must be a finite"),
        ("infinite", "'infinite' gave -inf, outside"),
        ("big", "'big' gave 2, outside .*other bounds must be asked for"),
        ("pair", r"gave shape \(2, 2\) for 2 responses: return one number for each"),
        ("nothing", "'nothing' gave .*None.* not 2 numbers .*: return one number"),
        ("word", "'word' gave .*good.* not 2 numbers"),
        ("unwritable", "'unwritable' failed: TypeError: .*set"),
        ("dies", "'dies' failed: the worker died, sample 0"),
        ("leaves", "'leaves' failed: SystemExit: bye"),
        ("deep", "'deep' failed: RecursionError"),
        ("eats", "'eats' failed: MemoryError"),
    ],
)
def test_a_reward_that_fails_in_a_worker(awkward, name, why):
    with pytest.raises(RewardError, match=why):
        awkward(name)(batch_of("a", "b"))


def test_a_reward_that_hangs_is_ended(awkward):
    reward = awkward("hangs", seconds=0.5, on_error="zero")
    reward(batch_of("a"))  # started
    pid = reward.pool._free.get()
    reward.pool._free.put(pid)
    process = pid.process.pid
    start = time.monotonic()
    assert reward(batch_of("a", "hang", "a")).tolist() == [1.0, 0.0, 1.0]
    assert time.monotonic() - start < 30 and reward.failures == {"time": 1}
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    strict = awkward("sleeps", seconds=0.2)
    why = "'sleeps' did not return within 0.2 s and was ended, sample 0: 'a'; mend"
    with pytest.raises(RewardError, match=why):
        strict(batch_of("a"))


def test_a_reward_cannot_write_from_its_worker(awkward, tmp_path):
    target = tmp_path / "touched"
    with pytest.raises(RewardError, match="PermissionError: a worker must not write"):
        awkward("writes")(batch_of(str(target)))
    assert not target.exists()


def test_a_worker_that_cannot_start(awkward):
    with pytest.raises(RuntimeError, match="awkward:missing does not start: Attrib"):
        awkward("missing")(batch_of("a"))
    with pytest.raises(ValueError, match="'module:function', got 'awkward.nan'"):
        WorkerReward("awkward.nan")


def test_a_function_that_fails_here():
    def hangs(text, problem):
        time.sleep(2)

    for function, why in (
        (lambda t, p: 1 / 0, "failed for sample 0: ZeroDivisionError.*on_error='zero'"),
        (hangs, "'hangs' did not return within 0.2 s .* use WorkerReward"),
        (lambda t, p: [1.0], "failed for sample 0: TypeError"),
        (lambda t, p: float("nan"), "gave nan, outside .*must be a finite number"),
    ):
        with pytest.raises(RewardError, match=why):
            FunctionReward(function, seconds=0.2)(batch_of("a", "b"))


class Wrong:
    "A reward of one's own that gives what it was made with."

    name = "wrong"

    def __init__(self, values):
        self.values = values

    def __call__(self, batch):
        return self.values


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (torch.ones(3), r"'wrong' gave shape \(3,\) for 4 responses: return one"),
        (torch.ones(4, 1), r"'wrong' gave shape \(4, 1\) for 4"),
        (torch.tensor(1.0), r"'wrong' gave shape \(\) for 4"),
        (torch.tensor([0, 1, float("nan"), 0]), "'wrong' gave nan for sample 2"),
        (None, "'wrong' gave 'None', which is not 4 numbers"),
    ],
)
def test_evaluation_checks_rewards(values, why):
    policy = CausalPolicy(TinyTransformer(vocab_size=45))
    engine = NativeEngine(policy, WORLD.tokenizer)
    task = Mod10Questions(WORLD)
    problems = [task.problem(WORLD.story(rng(i))) for i in range(4)]
    with pytest.raises(RewardError, match=why):
        evaluate(engine, problems, Wrong(values), SamplingParams(3))
    with pytest.raises(RewardError, match=why):
        checked("wrong", values, batch_of(*"abcd"), None)


def rng(seed):
    import numpy as np

    return np.random.default_rng(seed)


def test_bounds_of_a_task_reward_can_be_asked_for():
    class Signed:
        def sample(self, rng):
            return Problem("?", "")

        def score(self, text, problem):
            return -1.0

    batch = batch_of("a", "b")
    why = "gave -1, outside .*bounds= of the reward, and reward_range= of TrainerConfig"
    with pytest.raises(RewardError, match=why):
        TaskReward(Signed())(batch)
    assert TaskReward(Signed(), bounds=(-1, 1))(batch).tolist() == [-1.0, -1.0]
    assert TaskReward(Signed(), bounds=None)(batch).tolist() == [-1.0, -1.0]


def test_a_cached_reward_sees_the_meta_of_a_problem():
    import numpy as np

    def level(text, problem):
        return float(np.sum(problem.meta["x"])) / 10

    cached = Cached(FunctionReward(level))
    big = [np.zeros(5000) for _ in range(2)]
    big[1][2500] = 1  # numpy's own text of it leaves the middle out
    stories = [WORLD.story(rng(i)) for i in range(2)]
    for metas, want, hits in (
        ([{"x": 0}, {"x": 1}, {"x": 0}], [0, 0.1, 0], 1),
        ([{"x": b} for b in (*big, big[0])], [0, 0.1, 0], 1),
        ([{"x": 1, "s": s} for s in (*stories, stories[0])], [0.1] * 3, 1),
        ([{"x": 1, "s": object()}] * 3, [0.1] * 3, 0),
        ([{"x": 1, (1, 2): 3}] * 2, [0.1] * 2, 0),
    ):
        before = cached.hits
        out = [cached(RewardBatch(["a"], [Problem("q", "", m)])).item() for m in metas]
        assert out == pytest.approx(want) and cached.hits - before == hits


# Many answers that hang


def test_a_batch_of_answers_that_hang_has_a_budget(awkward):
    reward = awkward("hangs", seconds=0.2, budget=2.0, on_error="zero")
    reward(batch_of("a"))  # started
    start = time.monotonic()
    with pytest.warns(UserWarning, match="'hangs': .* of 512 answers were not checked"):
        scores = reward(batch_of("a", *["hang"] * 511))
    assert time.monotonic() - start < 30
    assert scores.tolist() == [1.0] + [0.0] * 511
    assert reward.failures["time"] + reward.failures["budget"] == 511
    assert 1 <= reward.failures["time"] <= 10
    strict = awkward("hangs", seconds=0.2, budget=0.0)
    why = "'hangs' had spent the 0 s for a batch, sample 0"
    with pytest.raises(RewardError, match=why):
        strict(batch_of("a"))


def test_checkers_of_math_and_gym_have_a_budget():
    pytest.importorskip("math_verify")
    pytest.importorskip("reasoning_gym")
    reward = MathVerify(budget=0.0)
    with pytest.warns(UserWarning, match="reward 'math': 2 of 2 answers were not"):
        assert reward(batch_of("7", "7")).tolist() == [0.0, 0.0]
    assert reward.failures == {"budget": 2}
    task = GymTask("chain_sum", budget=0.0)
    text = f"<answer>{task.problem(0).answer}</answer>"
    with pytest.warns(UserWarning, match="chain_sum: 3 of 3 answers were not checked"):
        assert task.score_many([text] * 3, [task.problem(0)] * 3) == [0.0] * 3
    reward.pool.close(), task.pool.close()


def test_towers_of_powers_are_refused_before_they_are_computed():
    pytest.importorskip("math_verify")
    reward = MathVerify(seconds=5.0)
    reward(batch_of("$7$"))  # started
    pid = reward.pool._free.get()
    reward.pool._free.put(pid)
    process, start = pid.process.pid, time.monotonic()
    towers = ["9**9**9**9", "$9^{9^{9^{9}}}$", "\\boxed{(9^{9})^{9^9}}", "2^{-9^{9}}"]
    right = "of $7^{7^{7^7}}$ the last digit is \\boxed{7}"
    scores = reward(batch_of(*towers * 32, right)).tolist()
    assert scores == [0.0] * 128 + [1.0] and time.monotonic() - start < 30
    assert reward.failures == {"error": 128} and pid.process.pid == process
    reward.pool.close()


@pytest.mark.parametrize("text", ["2^{2024}-1", "7^{7^2}", "x^{2^{10}}", "10^{-12}"])
def test_powers_that_can_be_computed_are(text):
    pytest.importorskip("math_verify")
    assert not huge_power(text)
    reward = MathVerify()
    assert reward(batch_of(f"${text}$", answer=f"${text}$")).tolist() == [1.0]
    reward.pool.close()


# Answers that attack

ATTACKS = [
    "9**9**9**9",
    "9^9^9^9^9^9",
    "((((((9^64)^64)^64)^64)^64)^64)",
    "(" * 5000 + "1" + ")" * 5000,
    "[" * 5000 + "]" * 5000,
    "-" * 5000 + "1",
    "1" * 100_000,
    "1/" * 50_000 + "1",
    "9!!!!!!!!!!",
    "__import__('os').system('touch {path}')",
    "().__class__.__base__.__subclasses__()",
    "open('{path}', 'w')",
    'eval(\'open("{path}", "w")\')',
    "{{open('{path}', 'w')}}",
    "10 ** 10 ** 10 * 'a'",
    "\x00\ud800",
    "\\frac{" * 2000 + "1" + "}{2}" * 2000,
    "\\sum_{k=1}^{10^{10}} \\frac{1}{k!}",
    "factorial(10**9)",
    "x" * 1_000_000,
]


def attacks(path) -> list[str]:
    return [a.replace("{path}", str(path)) for a in ATTACKS]


def test_arithmetic_reads_and_never_evaluates(tmp_path):
    path = tmp_path / "touched"
    start = time.monotonic()
    for text in attacks(path):
        assert arithmetic(text) is None
        assert arithmetic(f"1 + {text}") is None
    assert time.monotonic() - start < 2 and not path.exists()


@pytest.mark.parametrize("numeric", [False, True])
def test_exact_match_reads_and_never_evaluates(numeric, tmp_path):
    path = tmp_path / "touched"
    texts = [f"<answer>{a}</answer>" for a in attacks(path)]
    texts += ["<answer>" * 100_000, "<answer>7" * 100_000 + "</answer>"]
    start = time.monotonic()
    scores = ExactMatch(numeric=numeric)(batch_of(*texts)).tolist()
    assert time.monotonic() - start < 2 and not path.exists()
    assert scores == [0.0] * len(ATTACKS) + [0.0, 1.0]
    assert between("<answer>" * 300_000 + "7") is None


def test_mod10_reads_and_never_evaluates(tmp_path):
    path = tmp_path / "touched"
    task = Mod10Questions(WORLD)
    problem = task.problem(WORLD.story(rng(0)))
    start = time.monotonic()
    assert max(task.score(a, problem) for a in attacks(path)) == 0
    assert time.monotonic() - start < 2 and not path.exists()


@pytest.mark.slow
@pytest.mark.parametrize("tags", [None, ("<answer>", "</answer>")])
def test_math_verify_reads_and_never_evaluates(tags, tmp_path):
    pytest.importorskip("math_verify")
    path, seconds = tmp_path / "touched", 1.5
    reward = MathVerify(tags, seconds=seconds)
    right = "<answer>$7$</answer>"
    reward(batch_of(right))  # started
    start = time.monotonic()
    texts = [f"<answer>{a}</answer>" for a in attacks(path)]
    scores = reward(batch_of(*texts, right, answer="42")).tolist()
    spent = time.monotonic() - start
    restarts = reward.failures["time"] + reward.failures["error"]
    assert spent < (len(ATTACKS) + 1) * seconds + 15 * restarts
    assert scores == [0.0] * (len(ATTACKS) + 1) and not path.exists()
    assert reward(batch_of(right)).tolist() == [1.0]
    reward.pool.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chain_sum", "countdown", "gsm_symbolic"])
def test_reasoning_gym_reads_and_never_evaluates(name, tmp_path):
    pytest.importorskip("reasoning_gym")
    path, seconds = tmp_path / "touched", 2.0
    task = GymTask(name, seconds=seconds)
    problem = task.problem(0)
    task.score("<answer></answer>", problem)
    start = time.monotonic()
    texts = [f"<answer>{a}</answer>" for a in attacks(path)]
    scores = task.score_many(texts, [problem] * len(texts))
    spent = time.monotonic() - start
    restarts = task.failures["time"] + task.failures["error"]
    assert spent < len(ATTACKS) * seconds + 15 * restarts
    assert max(scores) <= 0.05 and not path.exists()
    task.pool.close()


@pytest.mark.slow
def test_a_checker_that_takes_every_text_is_not_believed():
    pytest.importorskip("reasoning_gym")
    task = GymTask("game_of_life_halting")
    problem = next(p for p in map(task.problem, range(9)) if p.answer == "False")
    texts = [f"<answer>{t}</answer>" for t in ("True", "no idea", "False", " false ")]
    assert task.score_many(texts, [problem] * 4) == [0.0, 0.0, 1.0, 1.0]
    task.pool.close()


# Numbers that claim too much


@pytest.mark.parametrize(("score", "right"), [(1.0, 30), (0.0, 0)])
def test_thirty_of_thirty_is_not_certain(score, right):
    import numpy as np

    from rlpapers.core.stats import wilson
    from rlpapers.llm.evaluation import Evaluation

    scores = np.full((30, 4), score)
    out = Evaluation(scores, scores, 1.0, ["a"] * 120)
    want = wilson(right, 30)
    for found in (out.accuracy, out.pass_at(2)):
        assert found.low == pytest.approx(want.low, abs=1e-9)
        assert found.high == pytest.approx(want.high, abs=1e-9)
