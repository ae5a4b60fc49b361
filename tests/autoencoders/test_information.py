"""Entropy, cross-entropy and divergence against scipy and the definitions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from scipy import stats

from saetool.autoencoders.information import cross_entropy, entropy, kl_divergence
from saetool.errors import RequestError

P = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
Q = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)


def test_worked_example():
    assert entropy(P) == pytest.approx(1.03972, abs=5e-6)
    assert cross_entropy(P, Q) == pytest.approx(1.21301, abs=5e-6)
    assert kl_divergence(P, Q) == pytest.approx(0.17329, abs=5e-6)
    assert entropy(P, "bits") == pytest.approx(1.5, abs=1e-12)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(1e-3, 1)), min_size=2, max_size=8).filter(
        lambda w: sum(a for a, _ in w) > 1e-2
    )
)
def test_equals_scipy(weights):
    p, q = (np.array(column) / sum(column) for column in zip(*weights, strict=True))
    assert float(entropy(torch.tensor(p))) == pytest.approx(stats.entropy(p), abs=1e-12)
    assert float(kl_divergence(torch.tensor(p), torch.tensor(q))) == pytest.approx(stats.entropy(p, q), abs=1e-12)
    assert float(kl_divergence(torch.tensor(p), torch.tensor(q), "bits")) == pytest.approx(
        stats.entropy(p, q, base=2), abs=1e-12
    )


def test_conventions_at_zero():
    sure, never = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert entropy(sure) == 0
    assert kl_divergence(sure, sure) == 0
    assert cross_entropy(sure, never) == math.inf
    assert kl_divergence(torch.tensor([0.5, 0.5]), sure) == math.inf
    assert kl_divergence(sure, torch.tensor([0.5, 0.5])) == pytest.approx(math.log(2))


@pytest.mark.parametrize("wrong", [[0.5, 0.6], [1.5, -0.5], [math.nan, 1.0]])
def test_refuses_what_is_no_distribution(wrong):
    with pytest.raises(RequestError, match="not a distribution"):
        entropy(torch.tensor(wrong))
    with pytest.raises(RequestError, match="Q is not a distribution"):
        cross_entropy(P, torch.tensor([*wrong, 0.0]))


def test_refuses_unknown_units():
    with pytest.raises(RequestError, match="nats or bits"):
        entropy(P, "shannons")
