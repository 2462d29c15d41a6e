"""dense.train(config): the runs of `dense train`, driven from Python."""

import _thread
import json
import subprocess
import threading
import time
from pathlib import Path

import dense
import numpy as np
from pytest import fixture, mark, raises

command = Path(dense.__file__).parents[1] / "dense"


@fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "names.txt").write_text("anna\nbob\ncarol\ndave\n" * 40)
    monkeypatch.chdir(tmp_path)


def config(**more):
    return {"model_type": "gpt2", "model": {"n_layer": 1, "n_embd": 16}, "data": {"path": "names.txt"},
            "optimizer": {"lr": 1e-2}, "batch": 4, "time": 8, "steps": 6, **more}


def weights(run):
    return Path(run, "model/model.safetensors").read_bytes()


def metrics(run):
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def status(run):
    return json.loads(Path(run, "run.json").read_text())["status"]


@mark.parametrize("more", [{}, {"parts": 2, "precision": "bf16", "model_type": "llama",
                                "model": {"num_hidden_layers": 2, "hidden_size": 32}}])
def test_a_run_has_the_bits_that_the_command_gives_it(more):
    m = dense.train(config(out="a", **more))
    Path("c.json").write_text(json.dumps(config(out="b", **more)))
    subprocess.run([command, "train", "--config", "c.json"], check=True, stderr=subprocess.PIPE)
    page = Path(__file__).parents[2] / f"models/{more.get('model_type', 'gpt2')}.h"
    assert Path("a/page.h").read_text() == Path("b/page.h").read_text() == page.read_text()
    dense.train(Path("a/config.json"), resume=True)  # has nothing left to do
    assert weights("a") == weights("b")
    a, b = json.loads(Path("a/config.json").read_text()), json.loads(Path("b/config.json").read_text())
    assert a == {**b, "out": "a"}
    assert isinstance(m, dense.Model) and m.config["model_type"] == more.get("model_type", "gpt2")
    for name, array in dense.load("b/model").parameters().items():
        assert np.array_equal(m.parameters()[name], array)
    assert len(m.generate("an", tokens=3)) > 0


def test_without_data_it_learns_names_and_without_out_it_keeps_nothing():
    losses = []
    m = dense.train({"steps": 4}, on_step=lambda metrics: losses.append(metrics["loss"]))
    assert len(losses) == 4 and losses[3] < losses[0] and m.config["vocab_size"] == 256
    assert [path.name for path in Path().iterdir()] == ["names.txt"]


def test_callbacks_are_told_what_the_records_hold():
    steps, evaluations, samples = [], [], []
    dense.train(config(out="r", evaluate={"every": 3}, sample={"every": 2, "tokens": 4}), on_step=steps.append,
                on_evaluation=evaluations.append, on_sample=samples.append)
    told = [[{**line, **{name: np.float32(x) for name, x in line.items() if type(x) is float}} for line in list]
            for list in (steps, evaluations, samples)]
    recorded = [{name: np.float32(x) if type(x) is float else x for name, x in line.items()} for line in metrics("r")]
    assert told == [[line for line in recorded if kind in line] for kind in ("loss", "validation", "sample")]
    assert [len(list) for list in told] == [6, 2, 3]


def test_false_stops_and_the_run_can_be_resumed():
    dense.train(config(out="a"))
    m = dense.train(config(out="b"), on_step=lambda metrics: metrics["step"] < 4)
    assert status("b") == "stopped" and len(metrics("b")) == 4 and m.num_parameters > 0
    dense.train(config(out="b"), resume=True)
    assert status("b") == "done"
    assert weights("a") == weights("b")
    dense.train(config(out="c", evaluate={"every": 2}), on_evaluation=lambda metrics: False)
    assert metrics("c")[-1]["step"] == 2
    dense.train(config(out="d"), on_step=lambda metrics: None)  # what is no False goes on
    assert status("d") == "done"


def test_what_a_callback_raises_stops_saves_and_is_raised():
    def broken(metrics):
        if metrics["step"] == 3:
            raise KeyError("broken")

    with raises(KeyError, match="broken"):
        dense.train(config(out="r"), on_step=broken)
    assert status("r") == "stopped" and len(metrics("r")) == 3
    assert [path.name for path in Path("r/checkpoints").iterdir()] == ["step-00000003"]


def test_ctrl_c_stops_saves_and_is_raised_and_other_threads_go_on():
    turns = []

    def interrupt():
        while not Path("r/checkpoints/step-00000005").exists():
            turns.append(time.sleep(0.001))
        _thread.interrupt_main()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with raises(KeyboardInterrupt):
        dense.train(config(out="r", steps=10**9, save={"every": 5}, evaluate={"every": 0}))
    thread.join()
    steps = metrics("r")[-1]["step"]
    assert turns and status("r") == "stopped" and Path(f"r/checkpoints/step-{steps:08}").exists()


def test_what_does_not_fit_is_refused():
    dense.train(config(out="r"))
    Path("c.json").write_text('{"stepz": 1}')
    Path("list.json").write_text("[]")
    cases = [
        ({"stepz": 1}, "train: unknown field stepz; did you mean steps"),
        ({"optimizer": {"lrr": 1}}, r"train: unknown field optimizer.lrr; did you mean optimizer.lr"),
        ({"model": {"n_layers": 1}}, r"train: unknown field model.n_layers; did you mean model.n_layer"),
        ({"model": {"hidden_size": 1}, "model_type": "gpt2"}, "train: unknown field model.hidden_size"),
        ({"model_type": "gpt3"}, "model_type: expected one of .*, got gpt3"),
        ({"steps": 0}, "train: steps: expected 1 or more, got 0"),
        ({"steps": "many"}, 'train: steps: expected a whole number, got "many"'),
        ({"model": 3}, "train: model"),
        ({"precision": "f16"}, "precision: expected f32 or bf16, got f16"),
        ({"data": {"path": "away.txt"}}, "away.txt: cannot open"),
        (config(out="r"), "out: r: holds a run already"),
        ("c.json", "c.json: unknown field stepz"),
        ("list.json", r"list.json: expected an object, got \[\]"),
        ("away.json", "away.json: cannot open")]
    for given, says in cases:
        with raises(dense.Error, match=says):
            dense.train(given)
    for given, says in [(config(), "train: out: expected the folder"), (config(out="s"), "resume: s: expected a run")]:
        with raises(dense.Error, match=says):
            dense.train(given, resume=True)
    for given in 3, None, {"steps": object()}:
        with raises(TypeError):
            dense.train(given)
