"""Language models in Python: dense.load, dense.init and dense.Model."""

import json
import os
import subprocess
import sys
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import dense

root = Path(__file__).resolve().parents[2]
shared = Path(os.environ.get("DENSE_SHARED", root.parent / "shared"))
checkpoints = ["gpt2", "gpt2_bf16_sharded", "gpt2_f16", "llama", "llama3"]
tiny = dict(n_layer=2, n_head=2, n_embd=32, vocab_size=50, n_positions=16)
tokens = np.random.default_rng(1).integers(50, size=(3, 12), dtype=np.int32)


def fixture(name):
    folder = shared / "fixtures/hf" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


def read_safetensors(file):
    data = file.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    types = {"F32": np.float32, "I64": np.int64, "BF16": np.uint16, "F16": np.float16}
    return {
        name: np.frombuffer(data, types[x["dtype"]], int(np.prod(x["shape"])), begin + x["data_offsets"][0])
        .reshape(x["shape"])
        for name, x in json.loads(data[8:begin]).items() if name != "__metadata__"
    }


def new(seed=0, **config):
    return dense.init("gpt2", seed=seed, **{**tiny, **config})


@contextmanager
def raises(kind, words):
    """`words` are all that the exception says."""
    with pytest.raises(kind) as caught:
        yield
    assert caught.type is kind and str(caught.value) == words


# What it computes


@pytest.mark.parametrize("name", checkpoints)
def test_checkpoints_have_the_logits_loss_and_gradients_that_pytorch_finds(name):
    folder = fixture(name)
    given, expected = read_safetensors(folder / "inputs.safetensors"), read_safetensors(folder / "expected.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # every field of these is known
        m = dense.load(folder)
    ids, labels, lengths = given["input_ids"], given["labels"], given["attention_mask"].sum(axis=1)
    assert m.num_parameters == json.loads((folder / "expected.json").read_text())["num_parameters"]

    real = given["attention_mask"] == 1
    logits = m.logits(ids, lengths=lengths)
    assert logits.dtype == np.float32 and logits.shape == (*ids.shape, m.config["vocab_size"])
    np.testing.assert_allclose(logits[real], expected["logits"][real], rtol=0, atol=1e-4)
    np.testing.assert_allclose(m.loss(ids, labels, lengths=lengths), expected["loss"], rtol=0, atol=1e-5)

    grads = m.grads(ids, labels, lengths=lengths)
    wanted = {key[5:]: value for key, value in expected.items() if key.startswith("grad.")}
    assert grads.keys() == wanted.keys() == m.parameters().keys()
    largest = max(abs(g).max() for g in wanted.values())
    for key, g in wanted.items():
        np.testing.assert_allclose(grads[key], g, rtol=0, atol=1e-4 * max(abs(g).max(), 1e-3 * largest), err_msg=key)


def test_training_lowers_the_loss():
    m, ids = new(), np.tile([3, 1, 4, 2, 5, 9, 7, 6], 2)
    losses = [m.step(ids, labels=ids, lr=1e-2) for _ in range(30)]
    assert abs(losses[0] - np.log(50)) < 0.5 and losses[-1] < 0.5
    assert m.loss(ids, ids) < 0.5
    assert (m.logits(ids)[0, :-1].argmax(axis=1) == ids[1:]).all()


def test_training_in_bf16_is_close_to_training_in_f32():
    losses = []
    for dtype in ["f32", "bf16"]:
        m = new()
        losses.append([m.step(tokens, tokens, lr=1e-2, dtype=dtype) for _ in range(10)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.05)
    assert losses[0] != losses[1]


def test_a_step_is_adamw_on_the_gradients():
    m = new()
    p = {name: x.astype(np.float64) for name, x in m.parameters().items()}
    moments = {name: (0, 0) for name in p}
    usual = dict(lr=1e-2, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01)  # but for lr, what step has if not told
    other = dict(lr=3e-3, beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=0.3)
    for t, settings in enumerate([usual, usual, other, other, usual], start=1):
        lr, b1, b2, eps, decay = settings.values()
        given = dict(lr=lr) if settings is usual else settings
        loss, grads = m.loss(tokens, tokens), m.grads(tokens, tokens)
        assert m.step(tokens, tokens, **given) == pytest.approx(loss, abs=1e-6)
        for name, g in grads.items():
            m1, m2 = moments[name]
            m1, m2 = moments[name] = b1 * m1 + (1 - b1) * g, b2 * m2 + (1 - b2) * np.square(g, dtype=np.float64)
            update = m1 / (1 - b1**t) / (np.sqrt(m2 / (1 - b2**t)) + eps)
            p[name] -= lr * (update + (decay * p[name] if p[name].ndim > 1 else 0))
            np.testing.assert_allclose(m.parameters()[name], p[name], rtol=0, atol=1e-6, err_msg=f"step {t}: {name}")
            p[name] = m.parameters()[name].astype(np.float64)


def test_new_weights_depend_on_the_seed_alone():
    a, b, c = new(), new(n_positions=8), new(seed=1)
    ids = tokens[:, :8]
    assert (a.logits(ids) == new().logits(ids)).all()
    assert (a.parameters()["transformer.wte.weight"] == b.parameters()["transformer.wte.weight"]).all()
    assert abs(a.logits(ids) - c.logits(ids)).max() > 0.01


def test_tokens_left_out_count_for_nothing():
    m = new()
    labels, lengths = tokens.copy(), [12, 7, 1]
    for row, length in enumerate(lengths):
        labels[row, length:] = -100
    ids = np.where(labels == -100, 0, tokens)
    assert m.loss(tokens, labels, lengths=lengths) == m.loss(ids, labels, lengths=lengths)
    each = [m.loss(tokens[row, :length], tokens[row, :length]) * (length - 1) for row, length in [(0, 12), (1, 7)]]
    np.testing.assert_allclose(m.loss(tokens, labels, lengths=lengths), sum(each) / 17, rtol=1e-6)
    before = m.loss(tokens, labels, lengths=lengths)
    assert m.step(tokens, labels, lengths=lengths) == pytest.approx(before, abs=1e-6)


def test_padding_may_be_before_and_behind_a_text():
    m = new()
    ids, mask, positions = np.zeros((2, 15), int), np.zeros((2, 15), int), np.zeros((2, 15), int)
    for row, (first, length) in enumerate([(3, 12), (5, 7)]):
        real = np.s_[row, first : first + length]
        ids[real], mask[real], positions[real] = tokens[row, :length], 1, np.arange(length)
    logits = m.logits(ids, attention_mask=mask, position_ids=positions)
    moved = m.logits(ids, attention_mask=mask)
    for row, (first, length) in enumerate([(3, 12), (5, 7)]):
        real, alone = np.s_[row, first : first + length], tokens[row, :length]
        np.testing.assert_allclose(logits[real], m.logits(alone)[0], rtol=0, atol=1e-6)
        np.testing.assert_allclose(moved[real], m.logits(alone, position_ids=first + np.arange(length))[0], atol=1e-6)
    assert abs(moved[mask == 1] - logits[mask == 1]).max() > 1e-3
    assert (m.logits(tokens, attention_mask=np.ones_like(tokens)) == m.logits(tokens)).all()

    labels = np.where(mask, ids, -100)
    given = dict(attention_mask=mask, position_ids=positions)
    loss = m.loss(ids, labels, **given)
    g = m.grads(ids, labels, **given)["transformer.wpe.weight"]
    assert (g[:11] != 0).any(axis=1).all() and not g[11:].any()
    losses = [m.loss(tokens[row, :n], tokens[row, :n]) * (n - 1) for row, n in [(0, 12), (1, 7)]]
    assert loss == pytest.approx(sum(losses) / 17, abs=1e-6)  # padding is not asked what comes next
    assert m.step(ids, labels, **given) == pytest.approx(loss, abs=1e-6)


def test_recomputing_changes_no_weight():
    results = []
    for recompute in [False, True]:
        m = new(n_layer=6)
        for _ in range(3):
            m.step(tokens, tokens, lr=1e-2, dropout=True, recompute=recompute)
        results.append(m.parameters())
    for name, x in results[0].items():
        np.testing.assert_array_equal(x, results[1][name])


def test_dropout_is_used_in_training_where_it_is_asked_for():
    with_it, without, none = new(resid_pdrop=0.5), new(resid_pdrop=0.5), new(resid_pdrop=0.0, embd_pdrop=0.0)
    assert without.step(tokens, tokens) == none.step(tokens, tokens, dropout=True)
    assert with_it.step(tokens, tokens, dropout=True) != none.loss(tokens, tokens)


# Arrays


@pytest.mark.parametrize("convert", [
    np.int64, np.uint8, np.uint64, ">i4", np.ndarray.tolist, np.asfortranarray,
    lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    lambda x: np.frombuffer(b"x" + x.tobytes(), x.dtype, offset=1).reshape(x.shape)])
def test_any_array_of_integers_is_read_right(convert):
    m = new()
    given = convert(tokens) if callable(convert) and not isinstance(convert, type) else tokens.astype(convert)
    np.testing.assert_array_equal(m.logits(given), m.logits(tokens))
    assert m.loss(given, given) == m.loss(tokens, tokens)


def test_one_row_is_a_batch_of_one():
    m = new()
    assert m.logits(tokens[0]).shape == (1, 12, 50)
    np.testing.assert_array_equal(m.logits(tokens[0]), m.logits(tokens[:1]))


def test_parameters_are_views():
    m = new()
    before, p = m.logits(tokens), m.parameters()
    assert sum(x.size for x in p.values()) == m.num_parameters
    assert all(x.dtype == np.float32 and x.flags.writeable for x in p.values())
    p["transformer.ln_f.weight"][:] = 0
    p["transformer.ln_f.bias"][:] = 0
    assert (m.logits(tokens) == 0).all() and (before != 0).any()
    m.step(tokens, tokens, lr=0.1)
    bias = p["transformer.ln_f.bias"].copy()
    assert (bias != 0).any()
    p["transformer.ln_f.bias"][:] = 0  # between two steps of one plan
    m.step(tokens, tokens, lr=0)
    assert (p["transformer.ln_f.bias"] == 0).all()
    del m
    assert p["transformer.wte.weight"].std() > 0.01  # the memory lives as long as its views


@pytest.mark.parametrize("name", checkpoints[1:3])
def test_weights_of_16_bits_are_copies_that_are_read_only_until_the_first_step(name):
    m = dense.load(fixture(name))
    copies = m.parameters()
    assert not any(x.flags.writeable for x in copies.values())
    if name == "gpt2_f16":
        for key, x in read_safetensors(fixture(name) / "model.safetensors").items():
            np.testing.assert_array_equal(copies[key], x.astype(np.float32))
    m.step([1, 2], [1, 2], lr=0)
    for key, x in m.parameters().items():
        assert x.flags.writeable
        np.testing.assert_array_equal(copies[key], x)


def test_what_is_returned_outlives_the_model():
    logits = new().logits(tokens)
    logits += 1  # and is the caller's
    np.testing.assert_array_equal(logits, new().logits(tokens) + 1)


# Folders and configs


def test_a_model_that_was_saved_is_loaded_again(tmp_path):
    m = new(layer_norm_epsilon=1e-3)
    m.step(tokens, tokens)
    m.save(tmp_path / "new folder")
    loaded = dense.load(str(tmp_path / "new folder"))
    np.testing.assert_array_equal(loaded.logits(tokens), m.logits(tokens))
    assert loaded.config == m.config and repr(loaded) == repr(m)
    weights = read_safetensors(tmp_path / "new folder/model.safetensors")
    for name, x in m.parameters().items():
        np.testing.assert_array_equal(weights[name], x)


def test_a_model_may_be_saved_over_the_files_that_it_reads(tmp_path):
    new().save(tmp_path)
    m = dense.load(tmp_path)
    m.step(tokens, tokens, lr=0.1)
    m.save(tmp_path)
    np.testing.assert_array_equal(dense.load(tmp_path).logits(tokens), m.logits(tokens))


def test_the_config_makes_a_model_of_the_same_kind():
    m = new(n_inner=20, activation_function="relu")
    assert m.config["n_inner"] == 20 and m.config["n_layer"] == 2 and m.config["tie_word_embeddings"] is True
    assert dense.init(**m.config).config == m.config
    assert new(n_layer=np.int64(3), layer_norm_epsilon=np.float64(1e-3)).config["n_layer"] == 3


def test_unknown_fields_of_a_file_are_a_warning(tmp_path):
    new().save(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "n_experts": 8}))
    with pytest.warns(UserWarning, match='config.json: ignored, being unknown here: "?n_experts"?$') as caught:
        dense.load(tmp_path)
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            dense.load(tmp_path)


# Errors


def test_errors_say_what_was_expected_and_leave_the_model_as_it_was():
    m = new()
    m.step(tokens, tokens)
    before = {name: x.copy() for name, x in m.parameters().items()}
    long = np.zeros((1, 17), int)
    for words, call in [
        ("input_ids: expected 0 to 49, got 50 at 1", lambda: m.logits([1, 50])),
        ("input_ids: expected 0 to 49, got -1 at 0", lambda: m.loss([-1, 5], [1, 5])),
        ("input_ids: expected 0 to 49, got 50 at 1", lambda: m.step([1, 50], [1, 5])),
        ("labels: expected 0 to 49, or -100 to leave out, got 50 at 1", lambda: m.loss([1, 5], [1, 50])),
        ("labels: expected 0 to 49, or -100 to leave out, got -1 at 1", lambda: m.step([1, 5], [1, -1])),
        ("gpt2: expected at most n_positions = 16 tokens, got 17", lambda: m.logits(long)),
        ("gpt2: expected at most n_positions = 16 tokens, got 17", lambda: m.step(long, long)),
        ("logits: ids: expected shape (B, T) or (T), got (1, 1, 2)", lambda: m.logits([[[1, 2]]])),
        ("logits: ids: expected shape (B, T) or (T), got ()", lambda: m.logits(1)),
        ("loss: labels: expected shape (2), got (3)", lambda: m.loss([1, 2], [1, 2, 3])),
        ("grads: lengths: expected shape (1), got (2)", lambda: m.grads([1, 2], [1, 2], lengths=[1, 2])),
        ("lengths: expected 0 to 2, got 3 at 0", lambda: m.logits([1, 2], lengths=[3])),
        ("logits: expected lengths or attention_mask, got both",
         lambda: m.logits([1, 2], lengths=[2], attention_mask=[1, 1])),
        ("attention_mask: row 0: expected ones side by side, got a 1 at 2 after a 0",
         lambda: m.logits([1, 2, 3], attention_mask=[1, 0, 1])),
        ("position_ids: expected 0 to 15, got 16 at 1", lambda: m.logits([1, 2], position_ids=[0, 16])),
        ("input_ids: expected a batch of one token or more", lambda: m.logits(np.zeros((0, 3), int))),
        ("step: labels: expected integers of 32 bits, got 4294967196 at element 1",
         lambda: m.step([1, 2], [1, 2**32 - 100])),
        ("step: expected labels other than -100", lambda: m.step([1, 2], [1, -100])),
        ("step: dtype: expected 'f32' or 'bf16', got 'f16'", lambda: m.step([1, 2], [1, 2], dtype="f16")),
        ("step: lr: expected a finite number, got nan", lambda: m.step([1, 2], [1, 2], lr=np.nan)),
        ("step: beta2: expected 0 or more, below 1, got 1", lambda: m.step([1, 2], [1, 2], beta2=1)),
    ]:
        with raises(dense.Error, words):
            call()
    for words, call in [
        ("logits: ids: expected an array of integers, got dtype float64", lambda: m.logits([1.0, 2.0])),
        ("step: labels: expected an array of integers, got dtype bool", lambda: m.step([1, 2], [True, False])),
        ("step: dtype: expected 'f32' or 'bf16', got 16", lambda: m.step([1, 2], [1, 2], dtype=16)),
    ]:
        with raises(TypeError, words):
            call()
    for name, x in m.parameters().items():
        np.testing.assert_array_equal(x, before[name])
    assert m.step(tokens, tokens) == pytest.approx(m.step(tokens, tokens, lr=0), abs=0.1)


def test_a_config_that_does_not_fit_is_named():
    for words, config in [
        ("init: unknown field n_layers; did you mean n_layer?", dict(n_layers=2)),
        ('init: n_layer: expected a whole number, got "2"', dict(n_layer="2")),
        ("init: n_layer: expected a whole number, got 2.0", dict(n_layer=2.0)),
        ("init: n_layer: expected 1 or more, got 0", dict(n_layer=0)),
        ("init: tie_word_embeddings: expected true or false, got 1", dict(tie_word_embeddings=1)),
        ("gpt2: n_head: expected a divisor of n_embd = 32, got 3", dict(n_head=3)),
    ]:
        with raises(dense.Error, words):
            new(**config)
    with raises(TypeError, "init: n_layer: expected a number, a string, a list or None, got object"):
        new(n_layer=object())
    with pytest.raises(dense.Error, match="^init: unknown field xyz; gpt2 has vocab_size, .*, pad_token_id$"):
        new(xyz=1)
    with pytest.raises(dense.Error, match=r"^model_type: expected one of gpt2\b.*, got gpt-17$"):
        dense.init("gpt-17")


def test_a_folder_that_does_not_fit_is_named(tmp_path):
    with raises(dense.Error, f"{tmp_path}/none: expected the folder of a model, missing"):
        dense.load(tmp_path / "none")
    new().save(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "vocab_size": 51}))
    with pytest.raises(dense.Error, match=r"transformer.wte.weight: expected \(51, 32\), got \(50, 32\)$"):
        dense.load(tmp_path)
    file.write_text(json.dumps({**config, "model_type": "gpt-17"}))
    with pytest.raises(dense.Error, match="^[^\n]*got gpt-17$"):
        dense.load(tmp_path)
    with raises(dense.Error, f"{file}: cannot write: Not a directory"):
        new().save(file)


# Threads


def test_threads_may_use_one_model_at_once():
    m, alone, together = new(), [], []
    for _ in range(40):
        alone.append(m.step(tokens, tokens))
    m = new()

    def train():
        for _ in range(20):
            together.append(m.step(tokens, tokens))
            m.parameters(), repr(m), m.config

    def look():
        for _ in range(20):
            assert np.isfinite(m.logits(tokens)).all() and m.loss(tokens, tokens) <= alone[0] + 1e-5

    threads = [threading.Thread(target=f) for f in [train, train, look]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(together, reverse=True) == sorted(alone, reverse=True)  # each step was whole


# What is printed


def test_a_model_says_how_large_it_is_and_lists_its_parameters():
    m = new(n_layer=1)
    assert repr(m) == f"<dense.Model: gpt2, {m.num_parameters} parameters>"
    lines = str(m).splitlines()
    assert str(m) == m.summary() and lines[-1] == f"gpt2: {m.num_parameters} parameters"
    assert [line.split()[0] for line in lines[:-1]] == list(m.parameters())
    assert lines[-2].split(maxsplit=2) == ["transformer.wte.weight", "f32", "(50, 32)"]


def test_a_profile_tells_the_kinds_of_kernels():
    m = new()
    with raises(dense.Error, "training_plan: expected a step before"):
        m.profile()
    m.step(tokens, tokens)
    m.profile()
    m.step(tokens, tokens)
    assert "matmul" in m.profile() and "total" in m.profile()


def test_everything_public_is_documented():
    for name, thing in vars(dense.Model).items():
        if not name.startswith("_"):
            words = [line for line in (thing.__doc__ or "").splitlines() if not line.startswith(name + "(")]
            assert any(words), name


def test_the_example_learns_its_rhyme():
    example = [sys.executable, "-B", root / "examples/train_gpt2.py"]
    printed = subprocess.check_output(example, text=True)
    losses = [float(line.split()[-1]) for line in printed.splitlines() if line.startswith("step")]
    assert losses[0] > 2.5 and losses[-1] < 0.3
    assert "picked a peck of" in printed.split(f"loss {losses[-1]:.4f}")[-1]
