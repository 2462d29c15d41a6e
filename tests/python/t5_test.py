"""The page of T5 from Python, beside the same network in NumPy and float64."""

import json

import numpy as np
import pytest

import dense

tiny = dict(vocab_size=50, d_model=32, d_kv=6, d_ff=40, num_layers=2, num_heads=4, relative_attention_num_buckets=8,
            relative_attention_max_distance=20)
random = np.random.default_rng(1)
texts, answers = random.integers(50, size=(2, 30), dtype=np.int32), random.integers(50, size=(2, 27), dtype=np.int32)
lengths = np.array([30, 21], np.int32)


def new(**config):
    """Random weights where dense.init has ones, too, and biases that matter."""
    model = dense.init("t5", **{**tiny, **config})
    noise = np.random.default_rng(0)
    for name, p in model.parameters().items():
        if p.ndim == 1:
            p += noise.normal(scale=0.3, size=p.shape).astype(np.float32)
        if "relative_attention_bias" in name or "lm_head" in name:
            p *= 8
    return model


activations = {
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


def buckets(c, T, S, decodes):
    """(T, S), as the paper's code computes them: exact ones, then on a scale of logarithms up to the largest distance."""
    n = c["relative_attention_num_buckets"]
    back = np.arange(T)[:, None] - np.arange(S)
    later = 0
    if decodes:
        back = np.maximum(back, 0)
    else:
        n //= 2
        later, back = n * (back < 0), abs(back)
    exact = n // 2
    ratio = np.log(np.maximum(back, 1).astype(np.float32) / np.float32(exact))
    ratio = ratio / np.float32(np.log(c["relative_attention_max_distance"] / exact)) * np.float32(n - exact)
    return later + np.where(back < exact, back, np.minimum(exact + ratio.astype(int), n - 1))


def logits(model, ids, lengths, decoder_ids):
    c, w = model.config, {name: p.astype(np.float64) for name, p in model.parameters().items()}
    H, seen = c["num_heads"], np.arange(ids.shape[1]) < np.array(lengths)[:, None]
    kind = c["feed_forward_proj"].split("-")
    act = activations["gelu_new" if kind == ["gated", "gelu"] else kind[-1]]

    def norm(name, x):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + c["layer_norm_epsilon"]) * w[name + ".weight"]

    def attend(layer, name, x, text, bias):
        y = norm(layer + "layer_norm", x)
        heads = lambda n, x: (x @ w[f"{layer}{name}.{n}.weight"].T).reshape(*x.shape[:2], H, -1)
        q, k, v = heads("q", y), heads("k", y if text is None else text), heads("v", y if text is None else text)
        scores = np.einsum("bthd,bshd->bhts", q, k) + bias
        p = np.exp(scores - scores.max(-1, keepdims=True))
        y = np.einsum("bhts,bshd->bthd", p / p.sum(-1, keepdims=True), v)
        return x + y.reshape(*y.shape[:2], -1) @ w[f"{layer}{name}.o.weight"].T

    def mlp(layer, x):
        y, name = norm(layer + "layer_norm", x), layer + "DenseReluDense."
        if kind[0] == "gated":
            h = act(y @ w[name + "wi_0.weight"].T) * (y @ w[name + "wi_1.weight"].T)
        else:
            h = act(y @ w[name + "wi.weight"].T)
        return x + h @ w[name + "wo.weight"].T

    def bias(stack, T, decodes):
        table = w[stack + ".block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        return table[buckets(c, T, T, decodes)].transpose(2, 0, 1)

    padding = np.where(seen, 0, -np.inf)[:, None, None]
    x = w["shared.weight"][ids]
    for i in range(c["num_layers"]):
        layer = f"encoder.block.{i}.layer."
        x = attend(layer + "0.", "SelfAttention", x, None, bias("encoder", ids.shape[1], False) + padding)
        x = mlp(layer + "1.", x)
    text, T = norm("encoder.final_layer_norm", x), decoder_ids.shape[1]
    x = w["shared.weight"][decoder_ids]
    for i in range(c["num_decoder_layers"] or c["num_layers"]):
        layer = f"decoder.block.{i}.layer."
        causal = np.where(np.tri(T, dtype=bool), 0, -np.inf)
        x = attend(layer + "0.", "SelfAttention", x, None, bias("decoder", T, True) + causal)
        x = attend(layer + "1.", "EncDecAttention", x, text, padding)
        x = mlp(layer + "2.", x)
    x = norm("decoder.final_layer_norm", x)
    if c["tie_word_embeddings"]:
        return x * c["d_model"] ** -0.5 @ w["shared.weight"].T
    return x @ w["lm_head.weight"].T


cases = [
    dict(), dict(feed_forward_proj="gated-gelu"), dict(feed_forward_proj="gated-silu", tie_word_embeddings=False),
    dict(feed_forward_proj="silu"), dict(tie_word_embeddings=False), dict(num_decoder_layers=1),
    dict(num_decoder_layers=3), dict(relative_attention_num_buckets=32, relative_attention_max_distance=128),
    dict(relative_attention_num_buckets=5), dict(relative_attention_num_buckets=9), dict(layer_norm_epsilon=0.1),
    dict(relative_attention_max_distance=5), dict(d_kv=8), dict(num_heads=1),
]


@pytest.mark.parametrize("config", cases, ids=str)
def test_logits_are_those_of_the_formulas(config):
    model = new(**config)
    got, want = model.logits(texts, lengths, decoder_ids=answers), logits(model, texts, lengths, answers)
    assert got.shape == (2, 27, 50)
    assert np.abs(want).max() > 2
    assert np.abs(got - want).max() < 2e-5 * np.abs(want).max()
    plain = new()
    if config and plain.num_parameters == model.num_parameters:
        assert np.abs(plain.logits(texts, lengths, answers) - got).max() > 0.01  # the option does something


@pytest.mark.parametrize("config", cases, ids=str)
def test_tokens_chosen_with_a_cache_are_those_of_whole_answers(config):
    model, text, answer = new(decoder_start_token_id=3, **config), texts[:1, :20], [3]
    new_ids = model.generate(text[0].tolist(), tokens=24, greedy=True)
    assert len(new_ids) == 24
    for token in new_ids:
        y = logits(model, text, [20], np.array([answer]))[0, -1]
        assert y[token] > y.max() - 1e-3
        answer.append(token)


def test_labels_say_what_the_decoder_sees():
    model, labels = new(decoder_start_token_id=3, pad_token_id=4), answers.copy()
    labels[0, 5] = labels[1, 20:] = -100
    seen = np.concatenate([np.full((2, 1), 3), np.where(labels == -100, 4, labels)[:, :-1]], 1)
    y = logits(model, texts, lengths, seen)
    scores = np.take_along_axis(y - np.log(np.exp(y).sum(-1, keepdims=True)), np.maximum(labels, 0)[..., None], -1)[..., 0]
    assert model.loss(texts, labels, lengths) == pytest.approx(-scores[labels != -100].mean(), abs=1e-5)
    assert model.loss(texts, labels, lengths, decoder_ids=seen) == model.loss(texts, labels, lengths)
    assert model.loss(texts[0], labels[0]) == model.loss(texts[:1], labels[:1])
    a, b = model.grads(texts, labels, lengths), model.grads(texts, labels, lengths, decoder_ids=seen)
    assert all(np.array_equal(a[name], b[name]) for name in model.parameters())


def test_what_does_not_fit_is_refused():
    model, gpt2 = new(), dense.init("gpt2", n_layer=1, n_head=1, n_embd=8, vocab_size=50, n_positions=30)
    with pytest.raises(dense.Error, match="decoder_input_ids: expected one token of each row or more, or labels"):
        model.logits(texts)
    with pytest.raises(dense.Error, match=r"loss: labels: expected shape \(2, 5\), got \(2, 27\)"):
        model.loss(texts, answers, decoder_ids=answers[:, :5])
    with pytest.raises(dense.Error, match=r"logits: decoder_ids: expected shape \(2, 27\), got \(1, 27\)"):
        model.logits(texts, decoder_ids=answers[:1])
    gpt2.step(texts, texts)
    for call in (lambda: gpt2.logits(texts, decoder_ids=texts), lambda: gpt2.step(texts, texts, decoder_ids=texts)):
        with pytest.raises(dense.Error, match="decoder_input_ids: expected none, since gpt2 is no encoder-decoder"):
            call()


@pytest.mark.parametrize("config", [dict(), dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)], ids=str)
def test_what_was_trained_and_saved_is_loaded_again(config, tmp_path):
    model = dense.init("t5", **{**tiny, **config})
    losses = [model.step(texts, answers, lr=1e-2, lengths=lengths, dropout=i % 2 == 1) for i in range(60)]
    assert losses[-2] < losses[0] - 1
    model.save(tmp_path)
    for file in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / file).read_text())["decoder_start_token_id"] == 0
    again = dense.load(tmp_path)
    assert again.config == model.config
    assert np.array_equal(again.logits(texts, lengths, answers), model.logits(texts, lengths, answers))


def test_weights_of_fewer_bits_give_nearly_the_same(tmp_path):
    model = new(d_model=64, d_ff=128)
    model.save(tmp_path)
    want = model.logits(texts, lengths, answers)
    for dtype, share in dict(bf16=0.03, int8=0.05, int4=0.5).items():
        again = dense.load(tmp_path, dtype=dtype)
        error = np.abs(again.logits(texts, lengths, answers) - want).max()
        assert 0 < error < share * np.abs(want).max(), dtype
        assert len(again.generate(texts[0], tokens=5, ignore_eos=True)) == 5


def test_new_weights_are_those_of_hugging_face():
    c = dict(d_model=256, d_kv=32, d_ff=512, num_heads=4, vocab_size=500, num_layers=1, initializer_factor=0.5)
    p = dense.init("t5", feed_forward_proj="gated-gelu", tie_word_embeddings=False, **c).parameters()
    block = "decoder.block.0.layer."
    for name, deviation in {
        "shared": 1, "lm_head": 1, block + "0.SelfAttention.q": (256 * 32) ** -0.5,
        block + "0.SelfAttention.k": 256**-0.5, block + "1.EncDecAttention.v": 256**-0.5,
        block + "1.EncDecAttention.o": 128**-0.5, block + "2.DenseReluDense.wi_1": 256**-0.5,
        block + "2.DenseReluDense.wo": 512**-0.5, block + "0.SelfAttention.relative_attention_bias": 256**-0.5,
    }.items():
        assert p[name + ".weight"].std() == pytest.approx(0.5 * deviation, rel=0.15), name
    assert (p["encoder.final_layer_norm.weight"] == 0.5).all()
