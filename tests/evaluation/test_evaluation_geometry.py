"""Coherence and stability in blocks equal whole cosine matrices, and mean what they say."""

import itertools

import pytest
import torch

from saetool.errors import RequestError
from saetool.evaluation.matching import coherence, stability


def directions(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("block", [1, 4, 1000])
def test_coherence_equals_the_whole_matrix(block):
    w = directions(11, 5, 0)
    w[3] = -2 * w[7]
    unit = torch.nn.functional.normalize(w, dim=-1)
    nearest = [max(abs(float(unit[i] @ unit[j])) for j in range(11) if j != i) for i in range(11)]
    found = coherence(w, block)
    assert found["max"] == pytest.approx(1, abs=1e-6)
    assert found["mean"] == pytest.approx(sum(nearest) / 11, rel=1e-5)
    assert found["share_above_0.9"] == pytest.approx(sum(c > 0.9 for c in nearest) / 11)
    pairs = [float(unit[i] @ unit[j]) ** 2 for i, j in itertools.permutations(range(11), 2)]
    assert found["rms"] == pytest.approx((sum(pairs) / 110) ** 0.5, rel=1e-5)
    assert found["rms"] >= found["welch"]


def test_orthogonal_directions_have_no_coherence_and_zero_rows_are_left_out():
    assert coherence(torch.cat([torch.eye(4), torch.zeros(2, 4)]))["max"] == 0
    assert coherence(torch.cat([torch.eye(4), torch.zeros(2, 4)]))["latents"] == 4
    assert coherence(torch.eye(4)[:1]) is None


def test_a_dictionary_is_stable_against_its_own_permutation():
    w = directions(20, 6, 1)
    found = stability(w, 3 * w[torch.randperm(20, generator=torch.Generator().manual_seed(0))])
    for key in ("forward", "backward", "matched"):
        assert found[key]["mean_max_cosine"] == pytest.approx(1, abs=1e-6)
        assert found[key]["share_above_0.9"] == 1


def test_both_ways_and_the_matching_equal_brute_force():
    a, b = directions(5, 3, 2), directions(6, 3, 3)
    cosines = torch.nn.functional.normalize(a, dim=-1) @ torch.nn.functional.normalize(b, dim=-1).T
    found = stability(a, b)
    assert found["forward"]["mean_max_cosine"] == pytest.approx(float(cosines.amax(1).mean()), rel=1e-5)
    assert found["backward"]["mean_max_cosine"] == pytest.approx(float(cosines.amax(0).mean()), rel=1e-5)
    best = max(sum(float(cosines[i, j]) for i, j in enumerate(p)) for p in itertools.permutations(range(6), 5))
    assert found["matched"]["mean_max_cosine"] == pytest.approx(best / 5, rel=1e-5)


def test_chance_is_the_agreement_with_as_many_random_directions():
    a, b = directions(300, 8, 2), directions(500, 8, 3)
    found = stability(a, b, seed=1, sample=50)
    one, other = (torch.nn.functional.normalize(torch.randn(n, 8), dim=-1) for n in (300, 500))
    slow = float((one @ other.T).amax(1).mean())
    assert found["chance"]["forward"]["mean_max_cosine"] == pytest.approx(slow, abs=0.02)
    # The compared dictionaries are random themselves: they agree no better.
    for way in ("forward", "matched"):
        assert found[way]["mean_max_cosine"] == pytest.approx(found["chance"][way]["mean_max_cosine"], abs=0.02)
    assert stability(a, a, seed=1)["forward"]["mean_max_cosine"] > found["chance"]["forward"]["mean_max_cosine"] + 0.05


def test_opposite_directions_are_not_the_same_latent():
    w = torch.eye(3)
    assert stability(w, -w)["forward"]["mean_max_cosine"] == pytest.approx(0)


def test_other_widths_are_refused():
    with pytest.raises(RequestError, match="different input widths"):
        stability(directions(4, 3, 0), directions(4, 5, 0))
