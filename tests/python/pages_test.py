"""The pages of Llama's relatives and of GPT-NeoX from Python, beside the same networks in NumPy and float64."""

import json

import numpy as np
import pytest

import dense

tiny = dict(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
tokens = np.random.default_rng(1).integers(50, size=(2, 40), dtype=np.int32)


def new(page, **config):
    """Random weights where dense.init has ones and zeros, too, and large enough to matter."""
    own = {} if page == "gpt_neox" else dict(num_key_value_heads=2)
    if page.startswith("gemma"):
        own["head_dim"] = 8
    model = dense.init(page, **{**tiny, **own, "initializer_range": 0.3, **config})
    random = np.random.default_rng(0)
    for p in model.parameters().values():
        if p.ndim == 1:
            p += random.normal(scale=0.3, size=p.shape).astype(np.float32)
    return model


activations = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "gelu_pytorch_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


def attention(q, k, v, scale, window=None, cap=None):
    """(B, T, H, D) of each; a query sees itself and window - 1 before it."""
    T, H = q.shape[1], q.shape[2]
    k, v = (np.repeat(y, H // y.shape[2], axis=2) for y in (k, v))
    scores = np.einsum("bthd,bshd->bhts", q, k) * scale
    if cap:
        scores = cap * np.tanh(scores / cap)
    back = np.arange(T)[:, None] - np.arange(T)
    scores = np.where((back >= 0) & (back < (window or T)), scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    y = np.einsum("bhts,bshd->bthd", p / p.sum(-1, keepdims=True), v)
    return y.reshape(*y.shape[:2], -1)


def rope(x, frequencies, factor=1):
    """Turns the first elements of each head of x (B, T, H, D), two for each frequency."""
    angle = np.arange(x.shape[1])[:, None, None] * frequencies
    half = len(frequencies)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = factor * np.cos(angle), factor * np.sin(angle)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], -1)


def logits(page, model, ids):
    c, w = model.config, {name: p.astype(np.float64) for name, p in model.parameters().items()}
    H, T, gemma = c["num_attention_heads"], ids.shape[1], page.startswith("gemma")
    D = c.get("head_dim") or c["hidden_size"] // H
    turned = int(D * c.get("rotary_pct", c.get("partial_rotary_factor", 1)))
    frequencies, factor = c["rope_theta"] ** (-np.arange(0, turned, 2) / turned), 1
    scaling = {k: v for k, v in (c.get("rope_scaling") or {}).items() if v is not None}
    kind = scaling.get("type", scaling.get("rope_type"))
    if kind == "linear":
        frequencies = frequencies / scaling["factor"]
    if kind in ("longrope", "su"):
        first = c["original_max_position_embeddings"]
        frequencies = frequencies / np.array(scaling["long_factor" if T > first else "short_factor"])
        factor = np.sqrt(1 + np.log(c["max_position_embeddings"] / first) / np.log(first))
        factor = scaling.get("attention_factor", factor)

    def norm(name, x):
        if page == "gpt_neox":
            x = x - x.mean(-1, keepdims=True)
            x = x / np.sqrt((x * x).mean(-1, keepdims=True) + c["layer_norm_eps"])
            return x * w[name + ".weight"] + w[name + ".bias"]
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + c["rms_norm_eps"]) * (w[name + ".weight"] + gemma)

    def linear(name, x):
        return x @ w[name + ".weight"].T + w.get(name + ".bias", 0)

    def heads(x):
        return x.reshape(*x.shape[:2], -1, D)

    def turn(x):
        return rope(heads(x), frequencies, factor)

    def window(i):
        if page == "qwen2" and not c["use_sliding_window"]:
            return None
        slides = {"qwen2": i >= c.get("max_window_layers", 0), "gemma2": i % 2 == 0}.get(page, True)
        if c.get("layer_types"):
            slides = c["layer_types"][i] == "sliding_attention"
        return c.get("sliding_window") if slides else None

    def attend(name, x, i):
        scale = c.get("query_pre_attn_scalar", D) ** -0.5
        if page == "gpt_neox":
            q, k, v = np.moveaxis(linear(name + "query_key_value", x).reshape(*x.shape[:2], H, 3, D), 3, 0)
            return linear(name + "dense", attention(rope(q, frequencies), rope(k, frequencies), v, scale))
        if page == "phi3":
            q, k, v = np.split(linear(name + "qkv_proj", x), [H * D, (H + (c["num_key_value_heads"] or H)) * D], -1)
        else:
            q, k, v = (linear(f"{name}{n}_proj", x) for n in "qkv")
        if page == "olmo2":
            q, k = norm(name + "q_norm", q), norm(name + "k_norm", k)
        cap = c.get("attn_logit_softcapping")
        return linear(name + "o_proj", attention(turn(q), turn(k), heads(v), scale, window(i), cap))

    def experts(name, x):
        preference, y = linear(name + "gate", x), np.zeros_like(x)
        for place in np.ndindex(preference.shape[:-1]):  # one token after the other
            chosen = np.argsort(-preference[place])[: c["num_experts_per_tok"]]
            share = np.exp(preference[place][chosen] - preference[place].max())
            for e, s in zip(chosen, share / share.sum()):
                expert = f"{name}experts.{e}.w"
                gate = activations[c["hidden_act"]](linear(expert + "1", x[place]))
                y[place] += s * linear(expert + "2", gate * linear(expert + "3", x[place]))
        return y

    def mlp(name, x):
        if page == "gpt_neox":
            return linear(name + "dense_4h_to_h", activations[c["hidden_act"]](linear(name + "dense_h_to_4h", x)))
        if page == "mixtral":
            return experts(name, x)
        if page == "phi3":
            gate, up = np.split(linear(name + "gate_up_proj", x), 2, -1)
        else:
            gate, up = linear(name + "gate_proj", x), linear(name + "up_proj", x)
        act = (c["hidden_activation"] or "gelu_pytorch_tanh") if gemma else c["hidden_act"]
        return linear(name + "down_proj", activations[act](gate) * up)

    base, table = ("gpt_neox.", "gpt_neox.embed_in") if page == "gpt_neox" else ("model.", "model.embed_tokens")
    x = w[table + ".weight"][ids] * (np.sqrt(c["hidden_size"]) if gemma else 1)
    for i in range(c["num_hidden_layers"]):
        layer = f"{base}layers.{i}."
        before, between = layer + "input_layernorm", layer + "post_attention_layernorm"
        after = layer + "post_feedforward_layernorm"
        if page == "gpt_neox":
            y = x + attend(layer + "attention.", norm(before, x), i)
            x = y + mlp(layer + "mlp.", norm(between, x if c["use_parallel_residual"] else y))
        elif page == "olmo2":
            x = x + norm(between, attend(layer + "self_attn.", x, i))
            x = x + norm(after, mlp(layer + "mlp.", x))
        elif page == "gemma2":
            x = x + norm(between, attend(layer + "self_attn.", norm(before, x), i))
            x = x + norm(after, mlp(layer + "mlp.", norm(layer + "pre_feedforward_layernorm", x)))
        else:
            x = x + attend(layer + "self_attn.", norm(before, x), i)
            x = x + mlp(layer + ("block_sparse_moe." if page == "mixtral" else "mlp."), norm(between, x))
    x = norm(base + ("final_layer_norm" if page == "gpt_neox" else "norm"), x)
    head = "embed_out" if page == "gpt_neox" else "lm_head"
    y = x @ w[(table if c["tie_word_embeddings"] else head) + ".weight"].T
    cap = c.get("final_logit_softcapping")
    return cap * np.tanh(y / cap) if cap else y


linear = dict(type="linear", factor=2.5)
longrope = dict(type="longrope", short_factor=[1.0, 1.5, 2.0, 2.5], long_factor=[2.0, 3.0, 4.0, 5.0])
cases = [(page, config) for page, configs in dict(
    mistral=[dict(), dict(sliding_window=None), dict(sliding_window=1), dict(sliding_window=7), dict(head_dim=6),
             dict(num_key_value_heads=None), dict(tie_word_embeddings=True), dict(hidden_act="relu"),
             dict(rope_theta=30.0)],
    mixtral=[dict(), dict(num_experts_per_tok=1), dict(num_local_experts=3), dict(num_experts_per_tok=8),
             dict(sliding_window=5), dict(head_dim=6), dict(num_key_value_heads=None), dict(tie_word_embeddings=True),
             dict(hidden_act="relu"), dict(rope_theta=30.0), dict(rms_norm_eps=0.1)],
    qwen2=[dict(), dict(use_sliding_window=True, sliding_window=5, max_window_layers=1),
           dict(use_sliding_window=True, sliding_window=5, max_window_layers=0),
           dict(use_sliding_window=True, sliding_window=5,
                layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
           dict(tie_word_embeddings=True), dict(rope_scaling=linear), dict(num_key_value_heads=4)],
    gemma=[dict(), dict(head_dim=10), dict(hidden_activation="relu"), dict(attention_bias=True), dict(rms_norm_eps=0.1),
           dict(tie_word_embeddings=False), dict(num_key_value_heads=1)],
    phi3=[dict(), dict(sliding_window=5), dict(partial_rotary_factor=0.5), dict(tie_word_embeddings=True),
          dict(hidden_act="relu"), dict(num_key_value_heads=None), dict(rope_theta=30.0),
          dict(rope_scaling=longrope, original_max_position_embeddings=40, max_position_embeddings=160),
          dict(rope_scaling=longrope, original_max_position_embeddings=39, max_position_embeddings=160),
          dict(rope_scaling={**longrope, "attention_factor": 1.3}, original_max_position_embeddings=64)],
    olmo2=[dict(), dict(attention_bias=True), dict(tie_word_embeddings=True), dict(rope_scaling=linear),
           dict(num_key_value_heads=None), dict(rms_norm_eps=0.1)],
    gemma2=[dict(), dict(sliding_window=5), dict(sliding_window=None), dict(final_logit_softcapping=None),
            dict(attn_logit_softcapping=None, query_pre_attn_scalar=1.0), dict(query_pre_attn_scalar=3.5),
            dict(attn_logit_softcapping=2.0, final_logit_softcapping=3.0), dict(attention_bias=True),
            dict(tie_word_embeddings=False),
            dict(sliding_window=5, layer_types=["full_attention", "sliding_attention", "sliding_attention"])],
    gpt_neox=[dict(hidden_act="gelu_pytorch_tanh", **more) for more in (
        dict(), dict(use_parallel_residual=False), dict(rotary_pct=0.5), dict(rotary_pct=1.0),
        dict(rotary_pct=1.0, rope_theta=30.0), dict(rotary_pct=1.0, rotary_emb_base=30.0), dict(attention_bias=False),
        dict(tie_word_embeddings=True), dict(layer_norm_eps=0.1), dict(rope_scaling=linear),
        dict(partial_rotary_factor=0.5))],
).items() for config in configs]


@pytest.mark.parametrize("page, config", cases, ids=str)
def test_logits_are_those_of_the_formulas(page, config):
    model = new(page, **config)
    got, want = model.logits(tokens), logits(page, model, tokens)
    assert np.abs(want).max() > 2
    assert np.abs(got - want).max() < 2e-5 * np.abs(want).max()
    usual = {"hidden_act": "gelu_pytorch_tanh"} if page == "gpt_neox" else {}
    plain = new(page, **usual)
    far = config.get("sliding_window", 0) is None  # the usual window is longer than these texts
    if config not in ({}, usual) and not far and plain.num_parameters == model.num_parameters:
        assert np.abs(plain.logits(tokens) - got).max() > 0.01  # the option does something


short = [(page, config) for page, config in cases if "original_max_position_embeddings" not in config]


@pytest.mark.parametrize("page, config", short, ids=str)
def test_tokens_chosen_with_a_cache_are_those_of_whole_texts(page, config):
    model = new(page, **config)
    ids = tokens[0, :20].tolist()
    for token in model.generate(ids, tokens=15, temperature=0):
        y = logits(page, model, np.array([ids]))[0, -1]
        assert y[token] > y.max() - 1e-3
        ids.append(token)


def test_generation_knows_the_lengths_that_longrope_depends_on():
    config = dict(rope_scaling=longrope, original_max_position_embeddings=30, max_position_embeddings=100)
    model, ids = new("phi3", **config), tokens[0, :20].tolist()
    for token in model.generate(ids, tokens=10, temperature=0):
        y = logits("phi3", model, np.array([ids]))[0, -1]
        assert y[token] > y.max() - 1e-3
        ids.append(token)
    with pytest.raises(dense.Error, match="phi3: generation of more than original_max_position_embeddings = 30 tokens"):
        model.generate(tokens[0, :20].tolist(), tokens=11)


def test_both_names_of_a_field_are_read(tmp_path):
    """GPT-NeoX files of transformers 4 have both, those of 5 rope_parameters."""
    model = new("gpt_neox", rotary_pct=0.5, rotary_emb_base=300.0)
    model.save(tmp_path)
    want, config = model.logits(tokens), json.loads((tmp_path / "config.json").read_text())
    assert (config["rope_theta"], config["partial_rotary_factor"]) == (300, 0.5)
    config.update(rope_theta=77.0, partial_rotary_factor=1.0)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert np.array_equal(dense.load(tmp_path).logits(tokens), want)
    for name in ("rope_theta", "rotary_emb_base", "partial_rotary_factor", "rotary_pct"):
        del config[name]
    config["rope_parameters"] = dict(rope_theta=300.0, partial_rotary_factor=0.5, rope_type="default")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert np.array_equal(dense.load(tmp_path).logits(tokens), want)
