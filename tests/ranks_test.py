"""dense train on several ranks: the bits of one, stopped and killed together. Of a build with MPI, by ./test --all."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

from pytest import fixture, mark

dense = os.environ["DENSE_CLI"]
small = {"data.path": "names.txt", "batch": 2, "time": 8, "model.n_layer": 1, "model.n_embd": 16, "parts": 4,
         "threads": 1}
mpirun = ["mpirun", "--oversubscribe"] + (["--allow-run-as-root"] if os.geteuid() == 0 else [])


@fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "names.txt").write_text("anna\nbob\ncarol\ndave\n" * 40)
    (tmp_path / "other.txt").write_text("anna\nbob\ncarol\ndave\n" * 41)
    monkeypatch.chdir(tmp_path)
    yield
    while started:  # what a failed test leaves
        started.pop().kill()


started = []
save = {"save.every": 5, "save.keep": 1_000_000}  # so that what a test waits for is there whenever it looks


def start(ranks, config):
    call = [dense, "train", *(f"--{name}={value}" for name, value in config.items())]
    started.append(subprocess.Popen(call if ranks == 1 else [*mpirun, "-n", str(ranks), *call], text=True,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    return started[-1]


def train(ranks, config):
    process = start(ranks, config)
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (0, ""), err
    return err


def lines_of_dense(err):
    return [line for line in err.splitlines() if line.startswith("dense train: ")]


def refused(says, ranks, config):
    process = start(ranks, config)
    _, err = process.communicate(timeout=100)
    assert process.returncode != 0 and len(lines_of_dense(err)) == 1 and says in lines_of_dense(err)[0], err


def result(run):
    """Everything that a run is: losses, texts, weights, moments."""
    last = max(Path(run, "checkpoints").iterdir())
    metrics = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    for line in metrics:
        line.pop("tokens_per_second", None)
    return metrics, [Path(last, name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")]


def pids(process):
    """Of the processes that mpirun started, by rank."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and f"PPid:\t{process.pid}\n" in (folder / "status").read_text():
                for entry in (folder / "environ").read_bytes().split(b"\0"):
                    if entry.startswith(b"OMPI_COMM_WORLD_RANK="):
                        found[int(entry.split(b"=")[1])] = int(folder.name)
        except OSError:  # it ended meanwhile
            pass
    return found


def wait_for(file, process):
    while not Path(file).exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@mark.parametrize("ranks, more", [
    ([2, 4], {"evaluate.every": 3, "sample.every": 4}),
    ([4], {"parts": 8, "precision": "bf16", "optimizer.clip": 0.1}),
    ([2], {"parts": 6}),
    ([4], {"model.vocab_size": 70_000}),  # too many numbers to be sent at once
    ([2], {"parts": 2, "threads": 2})])
def test_the_bits_are_those_of_one_rank(ranks, more):
    config = {**small, **more, "steps": 8}
    train(1, {**config, "out": "r1"})
    for n in ranks:
        err = train(n, {**config, "out": f"r{n}"})
        assert f"{n} ranks" in err and err.count("trained 8 of 8 steps") == 1 and err.count("saved") == 1
        assert result(f"r{n}") == result("r1")


def test_another_number_of_ranks_goes_on_with_the_same_bits():
    config = {**small, "optimizer.schedule": "constant", "optimizer.lr": 0.01, "evaluate.every": 3}
    train(1, {**config, "steps": 9, "out": "a"})
    train(4, {**config, "steps": 3, "out": "b"})
    assert "resumed after step 3" in train(2, {"resume": "b", "steps": 6})
    train(1, {"resume": "b", "steps": 9})
    assert result("a") == result("b")


def test_a_signal_to_one_of_them_saves_and_stops_all():
    for rank in 0, 1:
        process = start(2, {**small, "steps": 1_000_000_000, **save, "evaluate.every": 0, "out": f"r{rank}"})
        wait_for(f"r{rank}/checkpoints/step-00000005", process)
        os.kill(pids(process)[rank], signal.SIGUSR1)
        _, err = process.communicate(timeout=100)
        assert process.returncode == 128 + signal.SIGUSR1 and f"saved r{rank}" in err, err
        assert json.loads(Path(f"r{rank}/run.json").read_text())["status"] == "stopped"
        stopped = len(Path(f"r{rank}/metrics.jsonl").read_text().splitlines())
        assert max(Path(f"r{rank}/checkpoints").iterdir()).name == f"step-{stopped:08}"


def test_a_lost_rank_ends_all_and_the_last_checkpoint_stays_good():
    config = {**small, "steps": 400, **save}
    train(1, {**config, "out": "a"})
    for lost in 1, 0:
        process = start(2, {**config, "out": f"b{lost}"})
        wait_for(f"b{lost}/checkpoints/step-00000010", process)
        os.kill(pids(process)[lost], signal.SIGKILL)
        _, err = process.communicate(timeout=100)
        assert process.returncode != 0 and "trained 400" not in err
        assert f"process rank {lost}" in err and "exited on signal 9 (Killed)" in err, err
        train(2, {"resume": f"b{lost}"})
        assert result(f"b{lost}") == result("a")


def test_what_is_wrong_is_said_once():
    refused("ranks: expected a power of two that divides parts = 4, got 3", 3, small)
    refused("ranks: expected a power of two that divides parts = 4, got 8", 8, small)
    refused("away.txt: cannot open", 2, {**small, "data.path": "away.txt"})
    refused("unknown flag --part; did you mean --parts?", 2, {**small, "part": 4})
    train(2, {**small, "steps": 1, "out": "r"})
    refused("out: r: holds a run already", 2, {**small, "out": "r"})
    refused("rank 0: step 2: the loss is ", 2, {**small, "steps": 9, "optimizer.lr": 1e38})


def test_ranks_that_differ_are_refused():
    call = [dense, "train", "--parts", "2", "--time", "8", "--steps", "1", "--data.path"]
    process = subprocess.run([*mpirun, "-n", "1", *call, "names.txt", ":", "-n", "1", *call, "other.txt"], text=True,
                             stderr=subprocess.PIPE, timeout=100)
    assert process.returncode != 0 and len(lines_of_dense(process.stderr)) == 1
    assert "rank 1: expected step 0, 760 tokens to train on, weights" in process.stderr
    assert "as rank 0 has, got step 0, 779 tokens" in process.stderr
