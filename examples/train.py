"""Trains a small GPT on given names, looks at it meanwhile, stops when it gets no better, and invents names.

    PYTHONPATH=build/python /usr/bin/python3 examples/train.py
"""

import dense

validation = []


def show(metrics):
    if metrics["step"] % 100 == 0:
        print(f"step {metrics['step']:4}  loss {metrics['loss']:.4f}  {metrics['tokens_per_second']:.0f} tokens/s")


def gets_better(metrics):
    validation.append(metrics["validation"])
    print(f"validation {validation[-1]:.4f}")
    return min(validation[-2:]) == min(validation)  # of the last two losses one is the best: else this is False


m = dense.train({"model": {"n_layer": 2, "n_embd": 64, "n_head": 4}, "data": {"documents": "lines"}, "time": 32,
                 "steps": 1000, "optimizer": {"lr": 3e-3, "warmup": 50}, "evaluate": {"every": 200, "batches": 16}},
                on_step=show, on_evaluation=gets_better)
print(bytes(m.generate(list(b"\n"), tokens=30, temperature=0.8)).decode(errors="replace"))  # its tokens are bytes
