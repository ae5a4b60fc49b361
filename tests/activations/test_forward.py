"""What a GPU computes of a slice, on the CPU: the same rows and moments, whichever way they are taken."""

import pytest
import torch

from saetool.activations import CacheSettings
from saetool.activations.decoding import Decoder
from saetool.activations.forward import Forward
from saetool.activations.moments import LARGEST, SiteMoments
from saetool.activations.writer import Plan
from saetool.images import ImageSettings, open_source
from saetool.lanes import Lanes


def test_what_is_queued_for_a_gpu_comes_back_as_what_a_cpu_computes_at_once(tiny, pictures):
    for path in (*sorted(pictures.rglob("*.png"))[4:8], sorted(pictures.rglob("*.png"))[9]):
        path.write_bytes(b"not a picture")
    backbone, source = tiny(), open_source(ImageSettings(source=str(pictures)))
    plan = Plan(23, [{"folder": "a", "n_tokens": 16, "d": 12}], CacheSettings(batch_size=4))
    decoder = Decoder(source, backbone.transform, plan, "skip", threads=1)
    at_once, queued = (Forward(backbone, backbone.sites, torch.bfloat16) for _ in range(2))
    queued._lanes = Lanes(torch.device("cpu"))
    finishing = [(at_once.launch(decoded), queued.launch(decoded)) for decoded in decoder.slices(range(plan.n_slices))]
    for now, later in finishing:
        for (rows, moments), (same, near) in zip(now(), later(), strict=True):
            assert torch.equal(rows, same)
            assert moments.statistics.count == near.statistics.count
            assert torch.allclose(moments.statistics.mean, near.statistics.mean, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_moments_taken_at_once_agree_with_those_taken_in_pieces(dtype):
    rows = (torch.randn(500, 24, generator=torch.Generator().manual_seed(0)) * 3 + 5).to(dtype)
    found, wanted = SiteMoments.landed(SiteMoments.launch(rows), len(rows)), SiteMoments.of(rows)
    exact = rows.double()
    assert found.statistics.count == 500
    assert torch.allclose(found.statistics.mean, exact.mean(0), rtol=1e-13)
    assert torch.allclose(found.statistics.variance, exact.var(0, correction=0), rtol=1e-12)
    assert found.norm_sum == pytest.approx(float(exact.norm(dim=1).sum()), rel=1e-13)
    assert found.norm_sum == pytest.approx(wanted.norm_sum, rel=1e-6)
    assert found.max_abs == wanted.max_abs == float(exact.abs().max())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 10 * LARGEST])
def test_moments_taken_at_once_see_values_that_are_no_numbers_or_too_large(value):
    rows = torch.randn(30, 4)
    assert SiteMoments.landed(SiteMoments.launch(rows), 30).finite
    rows[17, 2] = value
    assert not SiteMoments.landed(SiteMoments.launch(rows), 30).finite


def test_rows_are_not_changed():
    rows = torch.randn(30, 4, dtype=torch.float64)
    before = rows.clone()
    SiteMoments.launch(rows)
    assert torch.equal(rows, before)
