# Run by `dense bench scalar`: the published graph from Python, float64, one thread. Prints the milliseconds to build and
# compile it, those with 10,000 runs as well, and the output of the first run.
import statistics
import time

try:
    import dense
    import numpy
except ImportError as error:
    raise SystemExit(print(f"not built: {error}"))


def published(operations):
    tape = dense.Tape()
    x = [tape.input() for _ in range(100)]
    nodes = list(x)
    for i in range(operations):
        if i % 4 == 0:
            nodes.append(dense.softplus(nodes[-10]))
        elif i % 4 == 1:
            nodes.append(dense.sum(nodes[-30:-10:5]))
        elif i % 4 == 2:
            nodes.append(nodes[-20] * nodes[-10])
        else:
            nodes.extend(dense.softmax(nodes[-4:]))
    return tape.compile(nodes[-1], wrt=x, precision="f64")


lanes = 10_000
X = numpy.arange(100) + 1e-5 * numpy.arange(lanes)[:, None]  # (lanes, inputs)
to_compile, in_all = [], []
for _ in range(9):
    start = time.perf_counter()
    program = published(10_000)
    to_compile.append(time.perf_counter() - start)
    result = program.run(X, threads=1)
    in_all.append(time.perf_counter() - start)

assert result.values.shape == (lanes, 1) and result.grads.shape == (lanes, 100)
assert numpy.isfinite(result.values).all() and numpy.isfinite(result.grads).all()
print(1e3 * statistics.median(to_compile), 1e3 * statistics.median(in_all), float(result.values[0, 0]))
