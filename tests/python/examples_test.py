"""The examples in Python do what they say."""

import re
import subprocess
import sys
from pathlib import Path

examples = Path(__file__).resolve().parents[2] / "examples"


def test_fit_finds_the_parameters_that_the_data_were_made_with():
    printed = subprocess.check_output([sys.executable, "-B", examples / "fit.py"], text=True)
    found = re.findall(r"(\w) = +(\S+) +\(the data were made with (\S+)\)", printed)
    assert "".join(name for name, _, _ in found) == "abcde"
    for name, value, wanted in found:
        assert abs(float(value) - float(wanted)) < 0.02, name  # some five standard errors
    assert float(re.findall(r"error (\S+)", printed)[-1]) < 0.102  # the noise in the data is 0.1


def test_train_gets_better_and_invents_names():
    printed = subprocess.check_output([sys.executable, "-B", examples / "train.py"], text=True)
    losses = [float(loss) for loss in re.findall(r"validation (\S+)", printed)]
    assert len(losses) == 5 and losses[-1] < losses[0]
    names = printed.split("validation")[-1].split()[1:]
    assert sum(bool(re.fullmatch("[a-z]+", name)) for name in names) > 2, names
