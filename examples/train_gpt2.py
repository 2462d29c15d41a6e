"""Trains a tiny GPT-2 on the characters of a text, then lets it go on from the text's first letter.

    PYTHONPATH=build/python /usr/bin/python3 examples/train_gpt2.py [FILE]

Without a file the text is a rhyme, which the model soon knows by heart.
"""

import sys
from pathlib import Path

import numpy as np

import dense

rhyme = """Peter Piper picked a peck of pickled peppers. A peck of pickled peppers Peter Piper picked.
If Peter Piper picked a peck of pickled peppers, where is the peck of pickled peppers Peter Piper picked?\n"""

text = Path(sys.argv[1]).read_text() if len(sys.argv) > 1 else rhyme
alphabet, data = np.unique(list(text), return_inverse=True)                # (V,), (N,)
B, T = 8, min(64, len(data))
m = dense.init("gpt2", vocab_size=len(alphabet), n_positions=T, n_embd=64, n_layer=2, n_head=4)
print(repr(m))

rng = np.random.default_rng(42)
for step in range(401):
    starts = rng.integers(len(data) - T + 1, size=(B, 1))
    ids = data[starts + np.arange(T)]                                      # (B, T)
    loss = m.step(ids, labels=ids, lr=3e-3 * min(1, (401 - step) / 300))   # scored against the next character
    if step % 40 == 0:
        print(f"step {step:3}  loss {loss:.4f}")

ids = data[:1]
for _ in range(100):
    ids = np.append(ids, m.logits(ids[1 - T:])[0, -1].argmax())            # the likeliest next character
print("".join(alphabet[ids]))
