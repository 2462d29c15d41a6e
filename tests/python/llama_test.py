"""models/llama.h from Python, beside the same network in NumPy and float64, option by option."""

import json

import numpy as np
import pytest

import dense

tiny = dict(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
tokens = np.random.default_rng(1).integers(50, size=(2, 40), dtype=np.int32)


def new(seed=0, **config):
    """Random weights where dense.init has ones and zeros, too, and large enough to matter."""
    model = dense.init("llama", seed=seed, **{**tiny, "initializer_range": 0.3, **config})
    random = np.random.default_rng(seed)
    for name, p in model.parameters().items():
        if p.ndim == 1:
            p += random.normal(scale=0.3, size=p.shape).astype(np.float32)
    return model


def frequencies(c, D):
    f = c["rope_theta"] ** (-np.arange(0, D, 2) / D)
    rope = c.get("rope_scaling", {})
    kind = rope.get("type", rope.get("rope_type", "default"))
    if kind == "linear":
        return f / rope["factor"]
    if kind != "llama3":
        return f
    turns = rope["original_max_position_embeddings"] * f / (2 * np.pi)  # in a text of the first training
    kept = np.clip((turns - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"]), 0, 1)
    return f * kept + f / rope["factor"] * (1 - kept)


activations = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "gelu_pytorch_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


def logits(model, ids):
    c, w = model.config, {name: p.astype(np.float64) for name, p in model.parameters().items()}
    B, T = ids.shape
    H = c["num_attention_heads"]
    H_kv, D = c["num_key_value_heads"] or H, c["head_dim"] or c["hidden_size"] // H
    angle = np.arange(T)[:, None] * frequencies(c, D)
    cos, sin = (np.concatenate([f(angle)] * 2, -1)[:, None] for f in (np.cos, np.sin))  # (T, 1, D)

    def norm(name, x):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + c["rms_norm_eps"]) * w[name + ".weight"]

    def linear(name, x):
        return x @ w[name + ".weight"].T + w.get(name + ".bias", 0)

    def rope(x):
        return x * cos + np.concatenate([-x[..., D // 2 :], x[..., : D // 2]], -1) * sin

    x = w["model.embed_tokens.weight"][ids]
    for layer in (f"model.layers.{i}." for i in range(c["num_hidden_layers"])):
        h = norm(layer + "input_layernorm", x)
        q, k, v = (linear(f"{layer}self_attn.{n}_proj", h).reshape(B, T, -1, D) for n in "qkv")
        k, v = (np.repeat(y, H // H_kv, axis=2) for y in (rope(k), v))
        scores = np.einsum("bthd,bshd->bhts", rope(q), k) / np.sqrt(D)
        scores[:, :, np.triu_indices(T, 1)[0], np.triu_indices(T, 1)[1]] = -np.inf
        p = np.exp(scores - scores.max(-1, keepdims=True))
        y = np.einsum("bhts,bshd->bthd", p / p.sum(-1, keepdims=True), v).reshape(B, T, H * D)
        x = x + linear(layer + "self_attn.o_proj", y)
        h = norm(layer + "post_attention_layernorm", x)
        gate = activations[c["hidden_act"]](linear(layer + "mlp.gate_proj", h))
        x = x + linear(layer + "mlp.down_proj", gate * linear(layer + "mlp.up_proj", h))
    head = "model.embed_tokens" if c["tie_word_embeddings"] else "lm_head"
    return norm("model.norm", x) @ w[head + ".weight"].T


llama3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16)
options = [
    dict(),
    dict(num_key_value_heads=1),
    dict(num_key_value_heads=2, head_dim=6),
    dict(num_attention_heads=3, num_key_value_heads=3, head_dim=16),
    dict(attention_bias=True, num_key_value_heads=2),
    dict(mlp_bias=True),
    dict(tie_word_embeddings=True),
    dict(hidden_act="relu"),
    dict(hidden_act="gelu_pytorch_tanh"),
    dict(rms_norm_eps=0.1),
    dict(rope_theta=30.0),
    dict(rope_scaling=dict(type="linear", factor=2.5)),
    dict(rope_scaling=dict(rope_type="linear", factor=4)),
    dict(rope_scaling=dict(type="dynamic", factor=2.0)),
    dict(rope_scaling=llama3),
    dict(rope_scaling={**llama3, "original_max_position_embeddings": 64}, rope_theta=50.0, head_dim=16),
    dict(rope_scaling={**llama3, "low_freq_factor": 2.0, "high_freq_factor": 3.0, "factor": 3.0}),
    dict(vocab_size=77, hidden_size=40, intermediate_size=33, num_hidden_layers=3, num_attention_heads=10),
]


@pytest.mark.parametrize("config", options, ids=str)
def test_logits_are_those_of_the_formulas(config):
    model = new(**config)
    got, want = model.logits(tokens), logits(model, tokens)
    assert np.abs(want).max() > 3
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()
    plain = new(**{k: v for k, v in config.items() if k in ("vocab_size", "hidden_size")})
    dynamic = config.get("rope_scaling", {}).get("type") == "dynamic"  # matters to longer texts
    if config and not dynamic and plain.num_parameters == model.num_parameters:
        assert np.abs(plain.logits(tokens) - got).max() > 0.01  # the option does something


def test_gradients_are_differences_of_the_loss():
    model = new(attention_bias=True, mlp_bias=True, num_key_value_heads=2, rope_scaling=llama3)
    grads, random = model.grads(tokens, tokens), np.random.default_rng(2)
    for name, p in model.parameters().items():
        direction, old, step = random.normal(size=p.shape).astype(np.float32), p.copy(), 1e-3
        losses = []
        for sign in (1, -1):
            p[...] = old + sign * step * direction
            losses.append(model.loss(tokens, tokens))
        p[...] = old
        slope = (losses[0] - losses[1]) / (2 * step)
        assert abs(slope - (grads[name] * direction).sum()) < 0.02 * max(1, np.abs(slope)), name


def test_training_lowers_the_loss():
    model = dense.init("llama", **tiny, num_key_value_heads=2)
    losses = [model.step(tokens, labels=tokens, lr=1e-2) for _ in range(60)]
    assert losses[-1] < losses[0] - 2


@pytest.mark.parametrize("config", [dict(), dict(tie_word_embeddings=True, rope_scaling=llama3)], ids=str)
def test_what_was_saved_is_loaded_again(tmp_path, config):
    model = new(**config, num_key_value_heads=2)
    model.save(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "llama" and written["num_key_value_heads"] == 2 and written["eos_token_id"] == 2
    again = dense.load(tmp_path)
    assert again.config == model.config
    assert np.array_equal(again.logits(tokens), model.logits(tokens))
    assert ("lm_head.weight" in again.parameters()) == (not config)


@pytest.mark.parametrize("dtype, bits", [("f32", 24), ("bf16", 8), ("f16", 11)])
def test_weights_are_rounded_where_they_are_saved_so(tmp_path, dtype, bits):
    model = new()
    model.save(tmp_path, dtype=dtype)
    again = dense.load(tmp_path)
    for name, p in model.parameters().items():
        assert np.abs(again.parameters()[name] - p).max() <= np.abs(p).max() * 2.0**-bits
    size = (tmp_path / "model.safetensors").stat().st_size
    assert 0 <= size - model.num_parameters * (4 if dtype == "f32" else 2) < 4000
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] in ("float32", "bfloat16", "float16")
    with pytest.raises(dense.Error, match="^save: dtype: expected 'f32' or 'bf16' or 'f16', got 'float16'$"):
        model.save(tmp_path, dtype="float16")


def test_tokens_that_end_a_text_may_be_several():
    assert dense.init("llama", **tiny).config["eos_token_id"] == 2
    assert dense.init("llama", **tiny, eos_token_id=[3, 4]).config["eos_token_id"] == [3, 4]
    assert dense.init("llama", **tiny, eos_token_id=None).config["eos_token_id"] is None
    with pytest.raises(dense.Error, match="init: eos_token_id: expected a token or a list of tokens, got"):
        dense.init("llama", **tiny, eos_token_id="</s>")


def test_what_does_not_fit_is_named():
    for config, words in [
        (dict(rope_scaling=dict(type="yarn", factor=2.0)), "rope_type: expected default, linear, dynamic or llama3, got yarn"),
        (dict(num_key_value_heads=3), "num_key_value_heads: expected a divisor of num_attention_heads = 4, got 3"),
        (dict(head_dim=7), "head_dim: expected an even number, got 7"),
        (dict(num_attention_heads=5), "num_attention_heads: expected a divisor of hidden_size = 32, got 5"),
    ]:
        with pytest.raises(dense.Error, match=words):
            dense.init("llama", **{**tiny, **config})
