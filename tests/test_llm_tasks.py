"Tasks, rewards and evaluation: exact worlds, right answers, and answers that attack."

import itertools
import math
import os
import time
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpapers.core.stats import wilson
from rlpapers.llm.custom import (
    Cached,
    FunctionReward,
    LengthPenalty,
    WeightedSum,
)
from rlpapers.llm.evaluation import Evaluation, evaluate, fixed_problems, pass_at_k
from rlpapers.llm.mod10 import (
    END,
    NAMES,
    START,
    Mod10Questions,
    Mod10World,
    Story,
    all_stories,
    answer_with,
    example,
    examples,
)
from rlpapers.llm.models import CausalPolicy
from rlpapers.llm.native import NativeEngine
from rlpapers.llm.rewards import (
    ExactMatch,
    MathVerify,
    RewardBatch,
    RewardError,
    TaskReward,
    arithmetic,
)
from rlpapers.llm.sampling import SamplingParams
from rlpapers.llm.tasks import GymTask, Problem, ProblemList, between
from rlpapers.llm.transformer import TinyTransformer
from rlpapers.llm.workers import WorkerPool

WORLD = Mod10World()
TASK = Mod10Questions(WORLD)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# The mod-10 world, read by a program that shares no code with it


def read(words: list[str]) -> int:
    "The number a row of facts leads to, over plain integers."
    total, i = 0, 0
    while i < len(words):
        if words[i] in NAMES:
            assert words[i + 1] == "has" and words[i + 3] == "."
            total, i = int(words[i + 2]), i + 4
        else:
            sign = {"gets": 1, "loses": -1}[words[i]]
            assert words[i + 2] == "." and 1 <= int(words[i + 1]) <= 4
            total, i = total + sign * int(words[i + 1]), i + 3
    return total % 10


def holds(sentence: list[str], total: int) -> bool:
    "Whether a conclusion or a sum is true."
    match sentence:
        case ["now", _, "has", n] | ["now", "is", n]:
            return int(n) == total
        case ["that", "is", parity]:
            return parity == ("even", "odd")[total % 2]
        case ["next", "is", n]:
            return int(n) == (total + 1) % 10
        case ["double", "is", n]:
            return int(n) == (total + total) % 10
        case ["so", a, "+", b, "=", c]:
            return (int(a) + int(b)) % 10 == int(c)
        case ["so", a, "-", b, "=", c]:
            return (int(a) - int(b)) % 10 == int(c)
    raise AssertionError(sentence)


def sentences(text: str) -> list[list[str]]:
    return [s.split() for s in text.split(" .") if s.strip()]


@pytest.mark.parametrize("changes", [1, 2, 3])
def test_every_question_has_the_answer_it_should_have(changes):
    names = NAMES if changes < 3 else NAMES[2:3]
    count = 0
    for story in all_stories(changes, names):
        problem = TASK.problem(story)
        facts = problem.prompt.removeprefix("<qa> ").removesuffix(" how many ? <think>")
        total = read(facts.split())
        assert problem.answer == str(total) == str(story.total)
        assert TASK.score(f"{START} now is {total} . {END}", problem) == 1
        assert TASK.score(f"{START} now is {(total + 1) % 10} . {END}", problem) == 0
        count += 1
    assert count == len(names) * 10 * 8**changes


def test_every_sentence_of_every_document_is_true():
    world, g = Mod10World(changes=(2, 4)), rng()
    for _ in range(3000):
        story = world.story(g)
        for clause in world.document(g, story=story)[:]:
            (words,) = sentences(clause.text)
            if clause.kind == "derivation":
                assert holds(words, 0) and int(words[-1]) == clause.value
            elif clause.kind not in ("start", "change"):
                assert holds(words, story.total)
        steps = [sentences(c.text)[0] for c in story.derivations()]
        assert int(steps[0][1]) == story.start and int(steps[-1][5]) == story.total
        for a, b in zip(steps, steps[1:], strict=False):
            assert a[5] == b[1]


def test_documents_have_the_frequencies_of_the_spec():
    g, n = rng(1), 20_000
    kinds = [[c.kind for c in WORLD.document(g)] for _ in range(n)]
    code = dict(start="s", change="c", derivation="d")
    shape = ["".join(code.get(k, "x") for k in doc) for doc in kinds]

    def near(hits, p):
        interval = wilson(sum(hits), n, 0.999)
        return interval.low <= p <= interval.high

    assert near((s.startswith("scd") for s in shape), 0.35)
    assert near(("ccdd" in s or "cccddd" in s for s in shape), 0.35)
    assert near((s.endswith("d") for s in shape), 0.15)
    assert near(("d" not in s for s in shape), 0.15)
    assert near((s.count("c") == 2 for s in shape), 0.5)
    for kind in ("parity", "next", "double"):
        assert near((kind in doc for doc in kinds), 0.6)
    assert all("sum" in doc for doc in kinds)


def test_examples_are_right_and_of_the_three_forms():
    g = rng(2)
    for kind in ("asr", "msr", "qa"):
        for _ in range(300):
            e = example(WORLD, kind, g)
            words = e.prompt.split()
            assert words[0] == f"<{kind}>" and words[-1] == "<think>"
            facts = [
                s for s in sentences(e.prompt) if {"has", "gets", "loses"} & set(s)
            ]
            facts = [s for s in facts if "now" not in s]
            total = read(
                " . ".join(
                    " ".join(s[-3:] if "has" in s else s[-2:]) for s in facts
                ).split()
                + ["."]
            )
            reason, _, answer = e.response.partition(START)
            for s in sentences(reason) + sentences(answer.removesuffix(END)):
                assert holds(s, total)
            assert sentences(answer.removesuffix(END))
            if kind == "msr":
                assert "<MASK>" in words
            ids, response = e.ids(WORLD.tokenizer)
            assert WORLD.tokenizer.decode(ids + response) == f"{e.prompt} {e.response}"
    reasons = [e.response.startswith("so") for e in examples(WORLD, 4000, g)]
    assert abs(np.mean(reasons) - 0.7) < 0.03


def test_same_generator_same_world():
    a, b = (WORLD.documents(50, rng(3)) for _ in range(2))
    assert a == b != WORLD.documents(50, rng(4))


def test_noise_words_follow_zipf_and_are_the_only_ones_off_the_support():
    world = Mod10World(vocab_size=200)
    counts = np.bincount(sum(world.documents(8000, rng()), []), minlength=200)
    noise, clauses = counts[45:], counts[world.tokenizer.ids["."]]
    low, high = wilson(int(noise.sum()), int(clauses), 0.999)[1:3]
    assert low <= 0.04 <= high and list(world.noise_ids) == list(range(45, 200))
    first = noise[0] / noise.sum()
    assert abs(first - 1 / sum(1 / k for k in range(1, 156))) < 0.02
    quiet = Mod10World(vocab_size=200, noise_rate=0.0)
    assert max(sum(quiet.documents(500, rng()), [])) < 45


# Answers in a response


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>1</answer>", "1"),
        ("<answer>1</answer><answer>2</answer> more", "2"),
        ("<answer>1</answer> <answer>2", None),
        ("<answer><answer>3</answer>", "3"),
        ("1</answer>", None),
        ("<answer>1", None),
        ("<answer> a\nb </answer></answer>", "a\nb"),
        ("", None),
    ],
)
def test_between(text, answer):
    assert between(text) == answer


# Workers


def test_workers_go_on_after_every_kind_of_death():
    pool = WorkerPool("time:sleep", seconds=1.0)
    assert [pool.call(t).error for t in (0, 9, 0)] == ["", "time", ""]
    assert pool.call("x").error.startswith("TypeError")
    pool._free.get().process.kill()  # as the system would
    pool.close()


def test_workers_end_with_the_pool():
    pool = WorkerPool("os:getpid")
    pid = pool.call().value
    assert pid != os.getpid()
    os.kill(pid, 0)
    del pool
    time.sleep(0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# reasoning-gym

ATTACKS = [
    "__import__('os').system('touch {path}')",
    "open('{path}', 'w')",
    "[x for x in ().__class__.__base__.__subclasses__()]",
    "exec(\"open('{path}','w')\")",
    "lambda: 1",
    "[" * 500 + "]" * 500,
    "\x00",
    "9" * 5000,
]
EVALUATING = ["string_insertion", "spiral_matrix", "binary_matrix", "n_queens"]
EVALUATING += ["number_sorting", "countdown", "puzzle24", "simple_integration"]
EVALUATING += ["polynomial_multiplication", "intermediate_integration"]


@pytest.mark.slow
@pytest.mark.parametrize("name", EVALUATING)
def test_answers_are_data(name, tmp_path):
    pytest.importorskip("reasoning_gym")
    task, path = GymTask(name), tmp_path / "touched"
    problem = task.problem(1)
    texts = [
        f"<answer>{a.format(path=path)}</answer>" for a in ATTACKS if "{}" not in a
    ]
    scores = task.score_many(texts, [problem] * len(texts))
    assert max(scores) <= 0.1 and not path.exists()
    right = f"<answer>{problem.answer}</answer>"
    assert not problem.answer or task.score(right, problem) == 1.0
    task.pool.close()


def test_a_checker_that_evaluates_does_so_no_more(tmp_path):
    pytest.importorskip("reasoning_gym")
    task, path = GymTask("spiral_matrix"), tmp_path / "touched"
    problem = task.problem(0)
    attack = f"<answer>[open({str(path)!r}, 'w')]</answer>"
    same = f"<answer>{problem.answer.split()}</answer>".replace("'", "")
    right = f"<answer>{problem.answer}</answer>"
    scores = task.score_many([attack, same, right], [problem] * 3)
    assert scores[0] <= 0.1 and scores[1] > 0 and scores[2] == 1.0
    assert not path.exists()
    task.pool.close()


@pytest.mark.slow
def test_every_data_set_of_reasoning_gym():
    gym = pytest.importorskip("reasoning_gym")
    names = sorted(set(gym.factory.DATASETS) - {"composite"})
    assert len(names) >= 100
    for name in names:
        task = GymTask(name, size=50, seconds=20.0)
        problem = task.sample(rng(5))
        assert problem.prompt and problem == task.problem(problem.meta["index"])
        texts = [f"<answer>{problem.answer}</answer>", "<answer>no idea</answer>", ""]
        scores = task.score_many(texts, [problem] * 3)
        assert scores[2] == 0 and 0 <= scores[1] < 1, name
        # the known answer may be an unevaluated integral, which is refused
        known = problem.answer and "Integral" not in problem.answer
        assert not known or scores[0] == 1, name
        task.pool.close()


def test_problem_list_refuses_what_is_empty(tmp_path):
    with pytest.raises(ValueError, match="the data set is empty"):
        ProblemList([], len)
    file = tmp_path / "a.jsonl"
    file.write_text("\n\n")
    with pytest.raises(ValueError, match="a.jsonl has no problem"):
        ProblemList.read(file, len)
    file.write_text('{"prompt": 1}\n')
    with pytest.raises(ValueError, match="line 1 of .* has no key 'answer'"):
        ProblemList.read(file, len)
    file.write_text("[1]\n")
    with pytest.raises(ValueError, match="is not a JSON object"):
        ProblemList.read(file, len)


# Rewards


def pairs(part):
    "Two expressions, an operator between them, brackets around them."
    three = st.tuples(part, st.sampled_from("+-*/"), part)
    return three.map(lambda t: f"({t[0]} {t[1]} {t[2]})")


@settings(max_examples=200, deadline=None)
@given(st.recursive(st.integers(0, 99).map(str), pairs, max_leaves=8))
def test_arithmetic_is_that_of_fractions(text):
    def value(s):
        "Evaluate a fully bracketed expression by its structure."
        if not s.startswith("("):
            return Fraction(s)
        depth, inner = 0, s[1:-1]
        for i, c in enumerate(inner):
            depth += (c == "(") - (c == ")")
            if depth == 0 and c == " ":
                a, op, b = inner[:i], inner[i + 1], inner[i + 3 :]
                break
        x, y = value(a), value(b)
        return {"+": x.__add__, "-": x.__sub__, "*": x.__mul__, "/": x.__truediv__}[op](
            y
        )

    try:
        want = value(text)
    except ZeroDivisionError:
        want = None
    assert arithmetic(text) == want


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_arithmetic_never_raises(text):
    assert arithmetic(text) is None or isinstance(arithmetic(text), Fraction)


def test_arithmetic_is_quick_about_towers():
    start = time.monotonic()
    for text in (
        "9^9^9^9",
        "2^64^64",
        "(((9^64)^64)^64)",
        "1" * 499,
        "-" * 400 + "1",
        "9*" * 249 + "9",
    ):
        arithmetic(text)
    assert time.monotonic() - start < 1
    assert arithmetic("2 + 3 * 4 ^ 2 / -8") == -4 and arithmetic("1,234.5") == Fraction(
        2469, 2
    )


def batch_of(*texts: str, answer: str = "7") -> RewardBatch:
    return RewardBatch(list(texts), [Problem("?", answer)] * len(texts))


def test_faults_have_names():
    def fails(text, problem):
        raise KeyError("gone")

    for function, why in (
        (fails, "reward 'fails' failed for sample 0: KeyError: 'gone'; response 'a'"),
        (lambda t, p: float("nan"), "gave nan"),
        (lambda t, p: float("inf"), "gave inf"),
        (lambda t, p: 1.5, "gave 1.5, outside"),
        (lambda t, p: None, "failed for sample 0: TypeError"),
        (lambda t, p: time.sleep(3), "did not return within 0.2 s"),
    ):
        with pytest.raises(RewardError, match=why):
            FunctionReward(function, seconds=0.2)(batch_of("a", "b"))
    loose = FunctionReward(lambda t, p: -3.0, bounds=None)
    assert loose(batch_of("a")).tolist() == [-3.0]
    quiet = FunctionReward(fails, on_error="zero")
    assert quiet(batch_of("a", "b")).tolist() == [0, 0] and quiet.failures["error"] == 2
    with pytest.raises(RewardError, match="reward 'task' gave 2"):
        TaskReward(ProblemList([Problem("?", "")], lambda t, p: 2.0))(batch_of("a"))


def test_sums_check_their_parts_and_remember_means():
    one = FunctionReward(lambda t, p: 1.0, "one")
    short = FunctionReward(lambda t, p: len(t) / 10, "short")
    total = WeightedSum({"one": (2.0, one), "short": (-1.0, short)})
    assert torch.allclose(total(batch_of("aaaa", "")), torch.tensor([1.6, 2.0]))
    assert total.last == pytest.approx({"one": 1.0, "short": 0.2})
    wrong = WeightedSum({"bad": (1.0, lambda b: torch.full((len(b),), float("nan")))})
    with pytest.raises(RewardError, match="reward 'bad' gave nan for sample 0"):
        wrong(batch_of("a"))


def test_cache_asks_once_for_the_same_response_to_the_same_problem():
    asked = []
    inner = FunctionReward(lambda t, p: asked.append((t, p.answer)) or 0.5, "r")
    reward = Cached(inner)
    reward(batch_of("a", "b", "a"))
    reward(batch_of("a", answer="8"))
    reward(batch_of("b"))
    assert sorted(asked) == [("a", "7"), ("a", "8"), ("b", "7")]
    assert reward(batch_of("ab", "c")).tolist() == [0.5, 0.5]
    a, b = Problem("ab", "c"), Problem("a", "bc")
    reward(RewardBatch(["x", "x"], [a, b]))
    assert len(asked) == 7  # nothing is mixed up by joining texts


@pytest.fixture(scope="module")
def verifier():
    pytest.importorskip("math_verify")
    reward = MathVerify(seconds=3.0)
    yield reward
    reward.pool.close()


@pytest.mark.parametrize(
    ("text", "answer", "score"),
    [
        ("The answer is $\\frac{3}{4}$.", "0.75", 1),
        ("\\boxed{\\sqrt{8}}", "2\\sqrt{2}", 1),
        ("\\boxed{x^2 - 1}", "(x-1)(x+1)", 1),
        ("7.0001", "7", 0),
        ("", "7", 0),
        ("__import__('os').getcwd()", "7", 0),
        ("\\boxed{7} or \\boxed{8}", "9", 0),
    ],
)
def test_math_verify(verifier, text, answer, score):
    assert verifier(batch_of(text, answer=answer)).tolist() == [score]


def test_math_verify_survives_what_it_cannot_read(verifier):
    before = sum(verifier.failures.values())
    texts = ["$9^{9^{9^{9^{9^{9}}}}}$", "\\boxed{7}", "$" * 3000, "\\boxed{7}"]
    assert verifier(batch_of(*texts)).tolist()[1::2] == [1, 1]
    assert sum(verifier.failures.values()) >= before


def test_exact_match():
    assert ExactMatch()(
        batch_of("<answer> 7 </answer>", "7", "<answer>7.0</answer>")
    ).tolist() == [1, 0, 0]
    numeric = ExactMatch(tags=None, numeric=True)
    assert numeric(batch_of("7.0", "3 + 4", "14/2", "x", "")).tolist() == [
        1,
        1,
        1,
        0,
        0,
    ]


def test_length_penalty_needs_a_rollout():
    with pytest.raises(RewardError, match="needs the rollout"):
        LengthPenalty(2, 4)(batch_of("a"))


# Golden 5: Pass@k


def test_pass_at_k_golden():
    assert pass_at_k(64, 1, 8) == pytest.approx(0.125, abs=1e-12)
    assert pass_at_k(64, 32, 1) == pytest.approx(0.5, abs=1e-12)
    assert pass_at_k(64, 0, 8) == 0.0 and pass_at_k(64, 57, 8) == 1.0
    for n in range(1, 11):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            sets = list(itertools.combinations(range(n), k))
            brute = sum(min(s) < c for s in sets) / len(sets)
            assert pass_at_k(n, c, k) == pytest.approx(brute, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_pass_at_k_grows(data):
    n = data.draw(st.integers(2, 200))
    c = data.draw(st.integers(0, n - 1))
    k = data.draw(st.integers(1, n - 1))
    x = pass_at_k(n, c, k)
    assert x == pytest.approx(1 - math.comb(n - c, k) / math.comb(n, k), abs=1e-9)
    assert x <= pass_at_k(n, c + 1, k) and x <= pass_at_k(n, c, k + 1) + 1e-12


# Evaluation


class Oracle:
    "An engine that writes the right answer to every second problem."

    tokenizer = WORLD.tokenizer

    def generate(self, prompts, params, n=1):
        from rlpapers.llm.rollout import make_batch

        rows, new = [], []
        for i, p in enumerate(prompts):
            words = self.tokenizer.decode(p).split()
            total = read(words[1:-4])
            start, steps = int(words[3]), [int(w) for w in words[6:-4] if w.isdigit()]
            signs = [1 if w == "gets" else -1 for w in words if w in ("gets", "loses")]
            changes = tuple(s * c for s, c in zip(signs, steps, strict=True))
            story = Story(words[1], start, changes)
            assert story.total == total
            wrong = Story(words[1], (start + i % 2) % 10, changes)
            text = answer_with(story, wrong.conclusions()[:1])
            rows += [p] * n
            new += [[*self.tokenizer.encode(text), self.tokenizer.eos_id]] * n
        return make_batch(rows, new, self.tokenizer, n)


def test_evaluation_of_a_known_policy():
    problems = fixed_problems(TASK, 100, seed=3)
    result = evaluate(Oracle(), problems, TASK, SamplingParams(44), n=4)
    assert result.scores.shape == (100, 4) and result.accuracy.value == 0.5
    assert result.pass_at(4).value == 0.5 and result.finished == 1.0
    greedy = evaluate(Oracle(), problems, TASK, SamplingParams(44, greedy=True))
    assert greedy.accuracy == wilson(50, 100)
    gap, p = greedy.against(result)
    assert gap == 0 and p == 1


def test_evaluation_is_repeatable_with_a_model():
    policy = CausalPolicy(TinyTransformer(vocab_size=45))
    engine = NativeEngine(policy, WORLD.tokenizer)
    problems = fixed_problems(TASK, 8)
    a, b = (
        evaluate(engine, problems, TASK, SamplingParams(6, seed=1), n=3)
        for _ in range(2)
    )
    assert a.texts == b.texts and isinstance(a, Evaluation)


def test_fixed_problems_are_different_and_end_where_the_world_ends():
    small = Mod10Questions(Mod10World(changes=(1, 1)))
    assert len(fixed_problems(small, 480)) <= 480
    some = fixed_problems(TASK, 50, seed=1)
    assert len({p.prompt for p in some}) == 50
    assert [p.prompt for p in some[:20]] == [
        p.prompt for p in fixed_problems(TASK, 20, seed=1)
    ]
