"""dense.Tokenizer: text to ids and back, from Python."""

import json
import threading

import dense
from pytest import fixture, raises


@fixture
def folder(tmp_path):
    byte_level = {"type": "ByteLevel", "add_prefix_space": False}
    vocab = {token: i for i, token in enumerate(["h", "e", "l", "o", "Ġ", "Ã", "©", "he", "ll", "hell"])}
    (tmp_path / "tokenizer.json").write_text(json.dumps({
        "added_tokens": [{"id": 10, "content": "<s>", "special": True, "normalized": False}],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "post_processor": {"type": "BertProcessing", "cls": ["<s>", 10], "sep": ["<s>", 10]},
        "model": {"type": "BPE", "vocab": vocab, "merges": ["h e", "l l", "he ll"]}}))
    return tmp_path


def test_text_becomes_ids_and_comes_back(folder):
    t = dense.Tokenizer(folder)
    assert t.encode("hello é") == [9, 3, 4, 5, 6]
    assert t.encode("he", special=True) == [10, 7, 10]
    assert t.decode([9, 3, 4, 5, 6]) == "hello é"
    assert t.decode([10, 7], skip_special=True) == "he" and t.decode([10, 7]) == "<s>he"
    assert len(t) == 11 and t.id_of("<s>") == 10 and t.id_of("x") is None and t.token_of(9) == "hell"
    assert repr(t) == "<dense.Tokenizer: 11 ids>"
    assert dense.Tokenizer(str(folder / "tokenizer.json")).encode("") == []


def test_text_comes_while_ids_come(folder):
    stream = dense.TextStream(dense.Tokenizer(folder))
    assert [stream.push(id) for id in [9, 5, 6, 5]] == ["hell", "", "é", ""]
    assert stream.finish() == "\ufffd"


def test_threads_share_a_tokenizer(folder):
    t = dense.Tokenizer(folder)
    texts = ["hello " * n for n in range(100)]
    ids, found = [t.encode(text) for text in texts], []
    threads = [threading.Thread(target=lambda: found.append([t.encode(text) for text in texts])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [ids] * 4


def test_what_is_no_tokenizer_is_an_error(folder):
    (folder / "empty").mkdir()
    with raises(dense.Error, match="expected tokenizer.json or vocab.txt in it"):
        dense.Tokenizer(folder / "empty")
    (folder / "tokenizer.json").write_text('{"model": {"type": "Magic"}}')
    with raises(dense.Error, match="model.type: expected BPE, Unigram, WordPiece or WordLevel, got Magic"):
        dense.Tokenizer(folder)


def test_ids_must_have_tokens(folder):
    with raises(dense.Error, match="expected ids of tokens, from 0 to 10, got 11"):
        dense.Tokenizer(folder).decode([11])


def test_everything_public_is_documented():
    for thing in [dense.Tokenizer, dense.TextStream]:
        for name, method in vars(thing).items():
            if not name.startswith("_"):
                words = [line for line in (method.__doc__ or "").splitlines() if not line.startswith(name + "(")]
                assert any(words), name
