"""dense.load(...).generate: prompts in, text or ids out; and models by name and in fewer bits."""

import json
import subprocess
import sys
from pathlib import Path

import dense
import numpy as np
from pytest import fixture, mark, raises

prompt = "Anna"
ids = list(prompt.encode())
strange = dict(temperature=1, seed=5, tokens=12)  # tokens that hardly repeat


def printable(byte):
    return 33 <= byte <= 126 or 161 <= byte != 173


@fixture
def folder(tmp_path):
    """A small model whose tokens are bytes."""
    others = iter(range(256, 512))
    vocab = {chr(byte if printable(byte) else next(others)): byte for byte in range(256)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    m = dense.init("gpt2", n_layer=2, n_head=2, n_embd=32, vocab_size=256, n_positions=64, eos_token_id=None,
                   bos_token_id=None)
    text = np.frombuffer(b"the small cat sat on the red mat. ", np.uint8)
    for _ in range(60):
        m.step(text, labels=text, lr=1e-2)
    m.save(tmp_path / "m")
    (tmp_path / "m/tokenizer.json").write_text(json.dumps(
        {"pre_tokenizer": byte_level, "decoder": byte_level, "model": {"type": "BPE", "vocab": vocab, "merges": []}}))
    return tmp_path / "m"


@fixture
def model(folder):
    return dense.load(folder)


def test_a_text_is_continued_as_its_ids_are(model):
    text = model.generate(prompt, **strange)
    new = model.generate(ids, **strange)
    assert type(text) is str and type(new) is list and len(new) == 12 and all(0 <= id < 256 for id in new)
    assert bytes(new).decode(errors="replace") == text
    assert model.generate(prompt, 12, temperature=1, seed=5) == text
    assert model.generate(prompt, tokens=0) == "" and model.generate(ids, tokens=0) == []
    assert len(model.generate(ids)) == 60  # 64 in all


@mark.parametrize("dtype", ["int64", "int32", "uint8"])
def test_ids_may_be_any_array_of_integers(model, dtype):
    array = np.array([0, *ids, 0], dtype)[1:-1]
    assert model.generate(array, **strange) == model.generate(ids, **strange)
    assert model.generate(array[::-1], **strange) == model.generate(ids[::-1], **strange)


def test_texts_are_continued_each_as_if_alone(model):
    texts = [prompt, "B", "Carol and Dave went to the sea, but", "été"]
    assert model.generate(texts, **strange) == [model.generate(text, **strange) for text in texts]
    assert model.generate([prompt], **strange) == [model.generate(prompt, **strange)]


def test_pieces_of_the_text_come_as_it_is_made(model):
    pieces = []
    text = model.generate(prompt, on_text=pieces.append, **strange)
    assert "".join(pieces) == text and len(pieces) > 3 and all(pieces)


def test_what_on_text_raises_ends_it(model):
    def stop(piece):
        raise StopIteration(piece)

    with raises(StopIteration):
        model.generate(prompt, on_text=stop, **strange)
    assert model.generate(prompt, **strange)  # the model is as it was


def test_on_text_may_use_the_model(model):
    found = []
    text = model.generate(prompt, on_text=lambda piece: found.append(model.logits(ids)), **strange)
    assert found and all(np.array_equal(x, model.logits(ids)) for x in found)
    assert text == model.generate(prompt, **strange)


def test_choices_depend_on_the_seed_alone(model):
    greedy, seed = model.generate(ids, 20, greedy=True), model.generate(ids, 20, temperature=1, seed=1)
    assert model.generate(ids, 20) == model.generate(ids, 20, greedy=True, seed=7) == greedy
    assert model.generate(ids, 20, temperature=0) == model.generate(ids, 20, top_k=1) == greedy
    assert model.generate(ids, 20, temperature=1, seed=1) == seed
    assert model.generate(ids, 20, temperature=1, seed=2) != seed != greedy
    logits = model.logits(ids)[0, -1]
    assert greedy[0] == logits.argmax()


def test_generation_config_counts(folder, model):
    all = model.generate(ids, **strange)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [all[6], all[3]]}))
    ended = all[:min(all.index(all[6]), all.index(all[3])) + 1]
    assert model.generate(ids, **strange) == ended
    assert model.generate(prompt, **strange) == bytes(ended).decode(errors="replace")
    assert model.generate(ids, ignore_eos=True, **strange) == all
    (folder / "generation_config.json").write_text('{"do_sample": true, "temperature": 1.5, "top_k": 9, "top_p": 0.9}')
    assert model.generate(ids, seed=3) == dense.load(folder).generate(ids, temperature=1.5, top_k=9, top_p=0.9, seed=3)
    assert model.generate(ids, seed=3) != model.generate(ids, greedy=True)


def test_errors(folder, model):
    cases = [
        (dict(prompt=prompt, temperature=-1), "temperature: expected 0 or more, got -1"),
        (dict(prompt=prompt, top_k=-1), "top_k: expected 0 or more, got -1"),
        (dict(prompt=prompt, top_p=1.5), "top_p: expected more than 0, at most 1, got 1.5"),
        (dict(prompt=prompt, min_p=2), "min_p: expected 0 to 1, got 2"),
        (dict(prompt=prompt, repetition_penalty=0), "repetition_penalty: expected more than 0, got 0"),
        (dict(prompt=prompt, greedy=True, top_k=3), "greedy: expected no temperature, top_k, top_p or min_p beside it"),
        (dict(prompt=prompt, tokens=-1), "generate: tokens: expected 0 or more, got -1"),
        (dict(prompt=""), "prompt: expected one token or more"),
        (dict(prompt=[prompt, ""]), "prompt 2: expected one token or more"),
        (dict(prompt="x" * 64), "prompt: expected fewer than the 64 tokens of the model's context, got 64"),
        (dict(prompt=[256]), "prompt: expected ids of 0 to 255, got 256"),
        (dict(prompt=np.zeros((2, 3), int)), r"prompt: expected a text, texts or ids \(T\), got ids \(2, 3\)"),
        (dict(prompt=[prompt], on_text=print), "on_text: expected one text as prompt"),
        (dict(prompt=ids, on_text=print), "on_text: expected one text as prompt"),
    ]
    for arguments, words in cases:
        with raises(dense.Error, match=words):
            model.generate(**arguments)
    for wrong in [[1.5], [], None, [prompt, 1], (prompt,)]:
        with raises(TypeError):
            model.generate(wrong)
    new = dense.init("gpt2", n_layer=1, n_head=2, n_embd=8, vocab_size=256, n_positions=16)
    assert len(new.generate(ids, 5)) == 5
    with raises(dense.Error, match="expected token ids: only a model that was loaded has a tokenizer"):
        new.generate(prompt)
    (folder / "tokenizer.json").unlink()
    assert len(model.generate(ids, 5)) == 5
    with raises(dense.Error, match="expected tokenizer.json or vocab.txt in it"):
        model.generate(prompt)


def test_ctrl_c_ends_it(folder):
    program = f"""
import dense, shutil, signal
m = dense.init("llama", vocab_size=256, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
               num_attention_heads=2, max_position_embeddings=2_000_000)
m.save({str(folder / "endless")!r})
shutil.copy({str(folder / "tokenizer.json")!r}, {str(folder / "endless")!r})
m = dense.load({str(folder / "endless")!r})
interrupt = lambda piece: signal.raise_signal(signal.SIGINT)
try:
    m.generate("Anna", 1_000_000, temperature=1, ignore_eos=True, on_text=interrupt)
except KeyboardInterrupt:
    print("stopped")
"""
    assert subprocess.check_output([sys.executable, "-B", "-c", program], text=True, timeout=60) == "stopped\n"


def test_fewer_bits_give_nearly_the_same_logits(folder):
    exact = dense.load(folder, dtype="f32").logits(ids)
    assert np.array_equal(exact, dense.load(folder).logits(ids))
    for dtype, share in [("bf16", 0.02), ("int8", 0.03), ("int4", 0.3)]:
        model = dense.load(folder, dtype=dtype)
        difference = np.abs(model.logits(ids) - exact).max()
        assert 0 < difference < share * np.abs(exact).max(), dtype
        assert len(model.generate(ids, **strange)) == 12
    with raises(dense.Error, match="dtype: expected as-stored, f32, bf16, int8 or int4, got int3"):
        dense.load(folder, dtype="int3")


@mark.parametrize("dtype", ["int8", "int4"])
def test_fewer_bits_are_saved_and_read_back(folder, dtype):
    model = dense.load(folder, dtype=dtype)
    model.save(folder.parent / "saved")
    again = dense.load(folder.parent / "saved")
    assert np.array_equal(again.logits(ids), model.logits(ids))
    assert again.generate(ids, **strange) == model.generate(ids, **strange)
    with raises(dense.Error, match="expected weights that are not quantised"):
        again.step(ids, labels=ids)


def test_models_are_found_by_name_in_the_cache_of_hugging_face(folder, monkeypatch):
    cache = folder.parent / "hf/hub"
    snapshots = cache / "models--org--tiny/snapshots"
    snapshots.mkdir(parents=True)
    folder.rename(snapshots / "11aa")
    (cache / "models--org--tiny/refs").mkdir()
    (cache / "models--org--tiny/refs/main").write_text("11aa")
    monkeypatch.chdir(folder.parent)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(folder.parent / "hf"))
    expected = dense.load(snapshots / "11aa").generate(prompt, **strange)
    assert dense.load("org/tiny").generate(prompt, **strange) == expected
    assert dense.load(Path("org/tiny@11aa")).generate(prompt, **strange) == expected
    with raises(dense.Error, match=f"expected a folder, or a name in the cache {cache}, got org/other"):
        dense.load("org/other")
    with raises(dense.Error, match="expected a snapshot of revision v2, missing"):
        dense.load("org/tiny@v2")
    monkeypatch.setenv("HF_HUB_CACHE", str(folder.parent))
    with raises(dense.Error, match=f"in the cache {folder.parent}, got org/tiny"):
        dense.load("org/tiny")
