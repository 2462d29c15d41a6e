"""Bundle adjustment, as ADBench and GradBench have it, against NumPy with complex steps.

A lane is one observation: a camera (11: rotation, center, focal length, principal point, radial distortion), a point
(3), its weight (1), and where the camera saw it (2). Residuals are how far from there it is projected, weighted (2),
and 1 - weight^2.
"""

import numpy as np
import pytest

import dense

n_camera, n_point = 11, 3
n_wrt = n_camera + n_point + 1


def cross(a, b):
    return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]


def in_dense(precision):
    t = dense.Tape()
    inputs = [t.input() for _ in range(n_wrt + 2)]
    rotation, center, focal, principal, distortion = inputs[:3], inputs[3:6], inputs[6], inputs[7:9], inputs[9:11]
    point, weight, seen = inputs[11:14], inputs[14], inputs[15:]

    X = [a - b for a, b in zip(point, center)]
    # Rodrigues' formula. Where there is no rotation, its angle must not enter the derivative: divide by 1 instead.
    squared = dense.dot(rotation, rotation)
    angle = dense.sqrt(dense.where(squared > 0, squared, 1))
    axis = [v / angle for v in rotation]
    c, s = dense.cos(angle), dense.sin(angle)
    along = dense.dot(axis, X) * (1 - c)
    rotated = [x * c + y * s + a * along for x, y, a in zip(X, cross(axis, X), axis)]
    first_order = [x + y for x, y in zip(X, cross(rotation, X))]
    x, y, z = [dense.where(squared > 0, a, b) for a, b in zip(rotated, first_order)]

    plane = [x / z, y / z]
    r2 = dense.dot(plane, plane)
    scale = focal * (1 + distortion[0] * r2 + distortion[1] * r2**2)
    residuals = [weight * (p * scale + q - o) for p, q, o in zip(plane, principal, seen)]
    return t.compile([*residuals, 1 - weight**2], wrt=inputs[:n_wrt], precision=precision)


def in_numpy(inputs):  # (lanes, 17), complex or not -> (lanes, 3)
    rotation, center, focal, principal, distortion, point, weight, seen = np.split(
        inputs, [3, 6, 7, 9, 11, 14, 15], axis=1)
    X = point - center
    squared = (rotation**2).sum(1, keepdims=True)
    turning = squared.real > 0
    angle = np.sqrt(np.where(turning, squared, 1))
    axis = rotation / angle
    along = (axis * X).sum(1, keepdims=True) * (1 - np.cos(angle))
    rotated = X * np.cos(angle) + np.cross(axis, X) * np.sin(angle) + axis * along
    X = np.where(turning, rotated, X + np.cross(rotation, X))
    plane = X[:, :2] / X[:, 2:]
    r2 = (plane**2).sum(1, keepdims=True)
    projected = plane * (1 + distortion[:, :1] * r2 + distortion[:, 1:] * r2**2) * focal + principal
    return np.concatenate([weight * (projected - seen), 1 - weight**2], 1)


def jacobian_by_complex_steps(inputs):  # (lanes, 3, 15); no difference is taken, so no digits are lost
    steps = 1e-30j * np.eye(n_wrt, inputs.shape[1])
    return np.stack([in_numpy(inputs + step).imag / 1e-30 for step in steps], axis=2)


def observations(n):
    rng = np.random.default_rng(3)
    scale = [0.5] * 3 + [1] * 3 + [50] + [5] * 2 + [0.05] * 2 + [1] * 3 + [0.3] + [20] * 2
    inputs = rng.normal(size=(n, n_wrt + 2)) * scale
    inputs[:, 6] += 500   # focal length
    inputs[:, 13] += 10   # points stand in front of the camera
    inputs[:, 14] += 1    # weight
    inputs[::10, :3] = 0  # every tenth camera is not turned
    return inputs


@pytest.mark.parametrize("precision, rtol", [("exact", 1e-12), ("f64", 1e-12), ("f32", 1e-4)])
def test_residuals_and_their_jacobian(precision, rtol):
    inputs = observations(500)
    program = in_dense(precision)
    values, J = program.run(inputs).values, program.jacobian(inputs)
    want, want_J = in_numpy(inputs), jacobian_by_complex_steps(inputs)
    assert J.shape == (500, 3, n_wrt)
    for got, want in [(values, want), (J, want_J)]:
        assert (abs(got - want).max(0) <= rtol * abs(want).max(0)).all()  # of each number the largest in any lane


def test_seeded_gradients_are_rows_of_the_jacobian():
    inputs = observations(100)
    program = in_dense("f64")
    seeds = np.random.default_rng(4).normal(size=(100, 3))
    grads = program.run(inputs, seeds=seeds).grads
    np.testing.assert_allclose(grads, np.einsum("li,lij->lj", seeds, program.jacobian(inputs)), rtol=1e-11, atol=1e-11)
