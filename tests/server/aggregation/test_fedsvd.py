"""FedSVD (Lee et al., 2025, https://arxiv.org/abs/2505.12805) is FFA-LoRA under SGD.

It replaces A by the right singular vectors of B A after every round. Those never leave the row
space of the first A, so A only turns, and so do the gradients of B. Clipping and plain steps do
not notice; hence there is no rule of this name: ``ffa`` with its orthonormal A is the same.
"""

import numpy as np

from server.aggregation.lowrank import decompose

M, N, R, SITES, ROUNDS, STEPS = 20, 30, 4, 5, 8, 10


def train(b, a, target, inputs, step):
    """Local steps on |B A X - Y|^2 / 2 with a clipped gradient; ``step`` makes a step of it."""
    for number in range(STEPS):
        gradient = (b @ a @ inputs - target) @ inputs.T @ a.T / inputs.shape[1]
        gradient = gradient * min(1.0, 1.0 / np.linalg.norm(gradient))
        b = step(b, gradient, number)
    return b


def sgd(b, gradient, _):
    return b - 0.2 * gradient


def signs(b, gradient, _):
    return b - 0.01 * np.sign(gradient)  # as Adam's first step


def courses(step):
    """The largest relative distance between the two rules' functions over the rounds."""
    generator = np.random.default_rng(0)
    data = []
    for _ in range(SITES):
        inputs = generator.standard_normal((N, 50))
        data.append((generator.standard_normal((M, N)) @ inputs / 5, inputs))
    first_a = np.linalg.qr(generator.standard_normal((N, R)))[0].T
    ffa_b, svd_b, svd_a = np.zeros((M, R)), np.zeros((M, R)), first_a
    distances, angles = [], []
    for _ in range(ROUNDS):
        ffa_b = np.mean([train(ffa_b, first_a, *each, step) for each in data], axis=0)
        svd_b = np.mean([train(svd_b, svd_a, *each, step) for each in data], axis=0)
        parts = decompose(svd_b, svd_a).leading(R)
        svd_b, svd_a = parts.left * parts.sizes, parts.right
        wanted = ffa_b @ first_a
        distances.append(np.linalg.norm(svd_b @ svd_a - wanted) / np.linalg.norm(wanted))
        angles.append(np.linalg.norm(svd_a - svd_a @ first_a.T @ first_a, 2))
    return max(distances), max(angles)


def test_fedsvd_is_ffa_with_an_orthonormal_a_under_sgd():
    distance, angle = courses(sgd)
    assert distance < 1e-12
    assert angle < 1e-12


def test_a_step_that_looks_at_coordinates_tells_them_apart():
    distance, angle = courses(signs)
    assert distance > 1e-2
    assert angle < 1e-12  # the row space stays that of the first A all the same
