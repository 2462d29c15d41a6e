"""How often `dense twin` takes luck for a difference: a table of rates.

    tools/false_alarms.py build/dense [PAIRS]

Each control is run PAIRS times (40). Its two twins should not differ: one is another order of the same data, the other
a learning rate that is 0.1% higher. "band" counts those whose 95% band excludes 0 at the end, "settled" those that
differences.json calls settled. Last a difference that there is: half the learning rate, a tenth, a hundredth.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

program = pathlib.Path(sys.argv[1]).resolve()
pairs = int(sys.argv[2]) if len(sys.argv) > 2 else 40
root = pathlib.Path(__file__).resolve().parent.parent

kinds = {  # name: data, layers, width, batch, time, steps, lr, schedule
    "names, 120 steps": ("data/names.txt", 1, 16, 4, 16, 120, 1e-2, "cosine"),
    "names, 4000 steps": ("data/names.txt", 1, 16, 4, 16, 4000, 1e-2, "constant"),
    "headers, 1000 steps": ("dense/tensor", 1, 16, 4, 16, 1000, 3e-3, "cosine"),
    "headers, 600 steps": ("dense/tensor", 2, 32, 8, 32, 600, 3e-3, "cosine"),
}


def config(kind, lr_factor=1.0, data_seed=0):
    path, layers, width, batch, time, steps, lr, schedule = kinds[kind]
    return {"model": {"n_layer": layers, "n_embd": width}, "batch": batch, "time": time, "steps": steps, "threads": 1,
            "data": {"path": str(root / path), "seed": data_seed}, "evaluate": {"every": 0}, "save": {"every": 0},
            "optimizer": {"lr": lr * lr_factor, "schedule": schedule}}


controls = {"other order of data": lambda kind, i: config(kind, data_seed=10000 + i),
            "lr 0.1% higher": lambda kind, i: config(kind, 1.001, i),
            "lr / 2": lambda kind, i: config(kind, 0.5, i),
            "lr / 10": lambda kind, i: config(kind, 0.1, i),
            "lr / 100": lambda kind, i: config(kind, 0.01, i)}
print(f"{'twins':<22}{'runs':<22}{'pairs':>6}{'band':>8}{'settled':>9}")
for kind in kinds:
    count = {name: [0, 0] for name in controls}
    for i in range(pairs):
        with tempfile.TemporaryDirectory() as folder:
            files = []
            for n, one in enumerate([config(kind, data_seed=i)] + [f(kind, i) for f in controls.values()]):
                files.append(f"{folder}/{n}.json")
                pathlib.Path(files[-1]).write_text(json.dumps(one))
            subprocess.run([program, "twin", *files, "--out", folder + "/out"], check=True, capture_output=True)
            for pair in json.loads(pathlib.Path(folder, "out/differences.json").read_text())["pairs"]:
                if pair["a"] == "0":
                    counts = count[list(controls)[int(pair["b"]) - 1]]
                    counts[0] += pair["low"][-1] > 0 or pair["high"][-1] < 0
                    counts[1] += pair["settled"] is not None
    for name, (band, settled) in count.items():
        print(f"{name:<22}{kind:<22}{pairs:>6}{band / pairs:>8.0%}{settled / pairs:>9.1%}", flush=True)
