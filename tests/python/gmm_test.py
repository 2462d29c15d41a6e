"""A Gaussian mixture, as ADBench and GradBench have it, against NumPy: their objective and its gradient on paper.

Parameters, shared by all lanes: weights alphas (K), means (K, D), and of each component icf (D(D+1)/2), a triangular
matrix Q whose inverse square is the covariance: the logarithms of its diagonal, then what is below it, by columns. A
lane is one data point (D).
"""

from math import lgamma, log, pi

import numpy as np
import pytest

import dense

gamma, m = 0.9, 2  # the Wishart prior of Q


def log_prior_constant(D):
    n = D + m + 1
    log_gamma = 0.25 * D * (D - 1) * log(pi) + sum(lgamma(0.5 * (n - j)) for j in range(D))
    return n * D * (log(gamma) - 0.5 * log(2)) - log_gamma


def below_diagonal(D):  # rows and columns, by columns
    columns, rows = np.triu_indices(D, 1)
    return rows, columns


def in_dense(K, D, N, precision):
    """A program whose output is a data point's share of the objective."""
    t = dense.Tape()
    x = [t.input() for _ in range(D)]
    alphas = [t.shared() for _ in range(K)]
    means = [[t.shared() for _ in range(D)] for _ in range(K)]
    icf = [[t.shared() for _ in range(D * (D + 1) // 2)] for _ in range(K)]

    likelihoods, prior = [], 0
    for alpha, mean, q in zip(alphas, means, icf):
        c = [a - b for a, b in zip(x, mean)]
        diagonal = [dense.exp(v) for v in q[:D]]
        Qc = [[a * b] for a, b in zip(diagonal, c)]
        for v, i, j in zip(q[D:], *below_diagonal(D)):
            Qc[i].append(v * c[j])
        Qc = [dense.sum(row) for row in Qc]
        log_det = dense.sum(q[:D])
        likelihoods.append(alpha + log_det - 0.5 * dense.dot(Qc, Qc))
        below = q[D:]
        prior += 0.5 * gamma**2 * (dense.dot(diagonal, diagonal) + dense.dot(below, below)) - m * log_det
    y = dense.logsumexp(likelihoods) - dense.logsumexp(alphas)
    y += (prior - K * log_prior_constant(D)) / N - D * 0.5 * log(2 * pi)
    return t.compile(y, wrt=[*alphas, *sum(means, []), *sum(icf, [])], precision=precision)


def in_numpy(alphas, means, icf, X):
    """The objective and its gradient, by hand."""
    (K, D), N = means.shape, len(X)
    rows, columns = below_diagonal(D)
    Q = np.zeros((K, D, D))
    Q[:, range(D), range(D)] = np.exp(icf[:, :D])
    Q[:, rows, columns] = icf[:, D:]
    log_det = icf[:, :D].sum(1)

    c = X[:, None] - means                                                  # (N, K, D)
    Qc = np.einsum("kij,nkj->nki", Q, c)                                    # (N, K, D)
    likelihoods = alphas + log_det - 0.5 * (Qc**2).sum(2)                   # (N, K)
    total = np.log(np.exp(likelihoods).sum(1, keepdims=True))               # (N, 1)
    weights = np.exp(alphas) / np.exp(alphas).sum()                         # (K,)
    prior = 0.5 * gamma**2 * (Q**2).sum() - m * log_det.sum() - K * log_prior_constant(D)
    value = total.sum() - N * np.log(np.exp(alphas).sum()) - N * D * 0.5 * log(2 * pi) + prior

    r = np.exp(likelihoods - total)                                         # (N, K): whose point it is
    dalphas = r.sum(0) - N * weights                                        # (K,)
    dmeans = np.einsum("nk,kij,nki->kj", r, Q, Qc)                          # (K, D)
    dQ = gamma**2 * Q - np.einsum("nk,nki,nkj->kij", r, Qc, c)              # (K, D, D)
    diagonal = dQ[:, range(D), range(D)] * Q[:, range(D), range(D)] + r.sum(0)[:, None] - m
    dicf = np.concatenate([diagonal, dQ[:, rows, columns]], 1)              # (K, D(D+1)/2)
    return value, np.concatenate([dalphas, dmeans.ravel(), dicf.ravel()])


@pytest.mark.parametrize("precision, rtol", [("exact", 1e-13), ("f64", 1e-13), ("f32", 2e-5)])
@pytest.mark.parametrize("D, K, N", [(1, 1, 1), (2, 5, 100), (4, 3, 1000), (10, 5, 50)])
def test_value_and_gradient_of_a_gaussian_mixture(D, K, N, precision, rtol):
    rng = np.random.default_rng(D * K)
    X = rng.normal(size=(N, D))
    alphas, means, icf = rng.normal(size=K), rng.normal(size=(K, D)), rng.normal(0, 0.3, (K, D * (D + 1) // 2))
    value, gradient = in_numpy(alphas, means, icf, X)

    r = in_dense(K, D, N, precision).run(X, shared=np.concatenate([alphas, means.ravel(), icf.ravel()]))
    assert r.values.sum(dtype=float) == pytest.approx(value, rel=rtol)
    np.testing.assert_allclose(r.shared_grads, gradient, rtol=rtol, atol=rtol * abs(gradient).max())


def test_the_gradient_on_paper_is_that_of_the_objective_on_paper():
    rng = np.random.default_rng(7)
    D, K, N = 3, 2, 20
    X = rng.normal(size=(N, D))
    sizes = np.cumsum([K, K * D])

    def objective(p):
        alphas, means, icf = np.split(p, sizes)
        return in_numpy(alphas, means.reshape(K, D), icf.reshape(K, -1), X)

    p = rng.normal(0, 0.5, K + K * D + K * D * (D + 1) // 2)
    steps = 1e-6 * np.eye(len(p))
    differences = [(objective(p + step)[0] - objective(p - step)[0]) / 2e-6 for step in steps]
    np.testing.assert_allclose(objective(p)[1], differences, rtol=1e-6, atol=1e-6)
