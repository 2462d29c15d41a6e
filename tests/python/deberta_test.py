"""The page of DeBERTa-v2 from Python, beside the same network in NumPy and float64."""

from math import erf

import numpy as np
import pytest

import dense

tokens = np.random.default_rng(1).integers(50, size=(2, 40), dtype=np.int32)
lengths = np.array([40, 29], dtype=np.int32)


def new(**config):
    """Random weights where dense.init has ones and zeros, too, and large enough to matter."""
    tiny = dict(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    model = dense.init("deberta-v2", **{**tiny, "max_position_embeddings": 48, "initializer_range": 0.3, **config})
    random = np.random.default_rng(0)
    for p in model.parameters().values():
        if p.ndim == 1:
            p += random.normal(scale=0.3, size=p.shape).astype(np.float32)
    return model


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(erf)(x / np.sqrt(2)))


def bucket(distance, buckets, farthest):
    """Near distances are themselves; far ones grow with their logarithm, up to 2 mid - 1 for the farthest."""
    mid, far = buckets // 2, abs(distance)
    if buckets < 1 or far <= mid:
        return distance
    grown = mid + int(np.ceil(np.float32(np.log(far / mid) / np.log((farthest - 1) / mid) * (mid - 1))))
    return grown if distance > 0 else -grown


def logits(model, ids):
    c, w = model.config, {name: p.astype(np.float64) for name, p in model.parameters().items()}
    B, T, H = *ids.shape, c["num_attention_heads"]
    D = c["hidden_size"] // H
    real = np.arange(T) < lengths[:, None]

    def norm(name, x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-7) * w[name + ".weight"] + w[name + ".bias"]

    def linear(name, x):
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    def heads(name, x):  # (..., n, C) -> (..., H, n, D)
        return np.moveaxis(linear(name, x).reshape(*x.shape[:-1], H, D), -2, -3)

    e = "deberta.embeddings."
    words = w[e + "word_embeddings.weight"]
    x = words[ids]
    if c["position_biased_input"]:
        x = x + w[e + "position_embeddings.weight"][:T]
    if c["type_vocab_size"]:
        x = x + w[e + "token_type_embeddings.weight"][0]
    x = embeddings = norm(e + "LayerNorm", x) * real[..., None]

    kinds = c["pos_att_type"] or []
    if c["relative_attention"]:
        farthest = c["max_relative_positions"] if c["max_relative_positions"] > 0 else c["max_position_embeddings"]
        span = c["position_buckets"] if c["position_buckets"] > 0 else farthest
        table = w["deberta.encoder.rel_embeddings.weight"]
        assert len(table) == 2 * span
        if c["norm_rel_ebd"] == "layer_norm":
            table = norm("deberta.encoder.LayerNorm", table)
        row = np.array([[bucket(t - s, c["position_buckets"], farthest) + span for s in range(T)] for t in range(T)])
        row = row.clip(0, 2 * span - 1)

    for i in range(c["num_hidden_layers"]):
        layer = f"deberta.encoder.layer.{i}."
        a = layer + "attention.self."
        q, k, v = (heads(a + name + "_proj", x) for name in ["query", "key", "value"])
        scores = np.einsum("bhtd,bhsd->bhts", q, k)
        own = "" if c["share_att_key"] else "pos_"
        if c["relative_attention"] and "c2p" in kinds:
            scores += np.einsum("bhtd,htsd->bhts", q, heads(a + own + "key_proj", table)[:, row])
        if c["relative_attention"] and "p2c" in kinds:
            scores += np.einsum("bhsd,htsd->bhts", k, heads(a + own + "query_proj", table)[:, row])
        scores /= np.sqrt(D * (1 + len(kinds)))
        scores = np.where(real[:, None, None], scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        y = np.einsum("bhts,bhsd->bthd", p / p.sum(-1, keepdims=True), v).reshape(x.shape)
        x = norm(layer + "attention.output.LayerNorm", x + linear(layer + "attention.output.dense", y))
        y = linear(layer + "output.dense", gelu(linear(layer + "intermediate.dense", x)))
        x = norm(layer + "output.LayerNorm", x + y)
        if i == 0 and c["conv_kernel_size"]:
            n, conv = c["conv_kernel_size"], "deberta.encoder.conv."
            padded = np.pad(embeddings, ((0, 0), (n // 2, n // 2), (0, 0)))
            windows = np.stack([padded[:, k : k + T] for k in range(n)], -1)  # (B, T, C, n)
            G = c["conv_groups"]
            taps = w[conv + "conv.weight"].reshape(G, -1, c["hidden_size"] // G, n)
            y = np.einsum("btgik,goik->btgo", windows.reshape(B, T, G, -1, n), taps).reshape(x.shape)
            x = norm(conv + "LayerNorm", x + np.tanh(y + w[conv + "conv.bias"]))

    head, transform = ("cls.predictions",) * 2
    if c["legacy"]:
        transform += ".transform"
    else:
        head = transform = "lm_predictions.lm_head"
    x = norm(transform + ".LayerNorm", gelu(linear(transform + ".dense", x)))
    return x @ words.T + w[head + ".bias"]


both = dict(relative_attention=True, position_biased_input=False, pos_att_type=["c2p", "p2c"])
variants = {
    "as it is without a file": {},
    "types": dict(type_vocab_size=2),
    "scaled for distances it has not": dict(pos_att_type=["c2p"]),
    "distances": dict(**both),
    "no distances after all": {**both, "pos_att_type": []},
    "c2p": {**both, "pos_att_type": ["c2p"]},
    "p2c": {**both, "pos_att_type": ["p2c"], "norm_rel_ebd": "layer_norm"},
    "clipped": dict(**both, max_relative_positions=7, share_att_key=True),
    "buckets": dict(**both, position_buckets=8, norm_rel_ebd="layer_norm", share_att_key=True),
    "odd buckets, fewer positions": dict(**both, position_buckets=7, max_relative_positions=20),
    "two buckets": dict(**both, position_buckets=2),
    "buckets that are not needed": dict(**both, position_buckets=200),
    "texts longer than any distance": dict(**both, position_buckets=8, max_position_embeddings=20),
    "all positions": {**both, "position_biased_input": True, "position_buckets": 16, "type_vocab_size": 2},
    "convolution": dict(**both, conv_kernel_size=3),
    "wide convolution in groups": dict(conv_kernel_size=5, conv_groups=4, legacy=False),
}


@pytest.mark.parametrize("config", variants.values(), ids=variants.keys())
def test_every_option_does_what_the_papers_say(config):
    m = new(**config)
    real = np.arange(40) < lengths[:, None]
    want, got = logits(m, tokens), m.logits(tokens, lengths=lengths)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[real], want[real], rtol=0, atol=1e-4 * abs(want).max())


def test_options_matter():
    def changes(**config):
        return abs(new(**both).logits(tokens) - new(**{**both, **config}).logits(tokens)).max() > 0.01

    assert changes(pos_att_type=["c2p"]) and changes(position_buckets=8) and changes(max_relative_positions=7)
    assert changes(conv_kernel_size=1) and changes(norm_rel_ebd="layer_norm")


@pytest.mark.parametrize("config", [both, dict(**both, conv_kernel_size=3)])
def test_a_row_is_the_same_alone_and_in_a_batch_whatever_fills_it(config):
    m = new(**config)
    want = m.logits(tokens[1:, :29])[0]
    filled = tokens.copy()
    filled[1, 29:] = 7
    for ids in [tokens, filled]:
        got = m.logits(ids, lengths=lengths)[1, :29]
        assert (got == want).all()
    assert np.isfinite(m.logits(tokens, lengths=np.array([40, 0], dtype=np.int32))).all()


def test_training_lowers_the_loss_and_dropout_is_of_attention_too():
    m = new(**both, initializer_range=0.05, norm_rel_ebd="layer_norm", position_buckets=8, conv_kernel_size=3)
    losses = [m.step(tokens, tokens, lr=1e-2) for _ in range(30)]
    assert losses[0] > 3 and losses[-1] < 0.5
    still = dict(**both, initializer_range=0.05, hidden_dropout_prob=0, attention_probs_dropout_prob=0.5)
    first = [new(**still).step(tokens, tokens, dropout=dropout) for dropout in [False, True]]
    assert first[0] != first[1] and abs(first[0] - first[1]) < 1
