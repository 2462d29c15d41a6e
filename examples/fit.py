"""Fits a formula to data: which a, b, c, d, e bring a * exp(-b * x) * sin(c * x + d) + e closest to 10,000 points?

    PYTHONPATH=build/python /usr/bin/python3 examples/fit.py

By Levenberg and Marquardt: each step solves the least squares problem that has the residuals' tangents in their place,
damped so that it does not leave the region where they are a good likeness.
"""

import time

import numpy as np

import dense

names = "abcde"
true = np.array([2.0, 0.3, 1.7, 0.4, -0.5])
rng = np.random.default_rng(42)
x = rng.uniform(0, 8, 10_000)
y = true[0] * np.exp(-true[1] * x) * np.sin(true[2] * x + true[3]) + true[4] + rng.normal(0, 0.1, x.shape)
data = np.stack([x, y], axis=1)  # (rows, 2)

# The residual of one row, recorded once. A lane is a row of the data; the parameters are shared by all lanes.
start = time.perf_counter()
t = dense.Tape()
X, Y = t.input(), t.input()
a, b, c, d, e = parameters = [t.shared() for _ in names]
residual = a * dense.exp(-b * X) * dense.sin(c * X + d) + e - Y
program = t.compile(residual, wrt=parameters)

w = np.array([1.0, 0.0, 1.5, 0.0, 0.0])          # (5,)
r = program.run(data, shared=w).values[:, 0]     # (rows,)
damping = 1e-3
for step in range(100):
    J = program.jacobian(data, shared=w)[:, 0]   # (rows, 5)
    JJ = J.T @ J                                 # (5, 5)
    tried = w - np.linalg.solve(JJ + damping * np.diag(np.diag(JJ)), J.T @ r)
    tried_r = program.run(data, shared=tried).values[:, 0]
    gain = 1 - (tried_r @ tried_r) / (r @ r)
    print(f"step {step}  error {np.sqrt(tried_r @ tried_r / len(x)):.6f}  damping {damping:.0e}")
    if gain > 0:
        w, r, damping = tried, tried_r, damping / 10
    else:
        damping *= 10
    if abs(gain) < 1e-9:
        break

print(f"found in {time.perf_counter() - start:.3f} s, recording and compiling included:")
for name, found, wanted in zip(names, w, true):
    print(f"  {name} = {found:7.4f}    (the data were made with {wanted})")
