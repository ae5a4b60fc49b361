"""What joined the sparse family because published models have it: layer norm of each row, TopK with negative values."""

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from saetool import intervene, wrap
from saetool.autoencoders.base import Step
from saetool.autoencoders.families import AutoencoderSettings, build
from saetool.evaluation.interventions import Delta, splice
from saetool.training.heldout import reconstruct

D, N = 8, 24


def model(**settings):
    settings = TypeAdapter(AutoencoderSettings).validate_python({"kind": "sparse", "n_latents": N, **settings})
    made = build(settings, D)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return made.eval()


@pytest.fixture
def rows():
    return torch.randn(50, D, generator=torch.Generator().manual_seed(3)) * 4 + 1


LAYER_NORM = {"normalize": "layer_norm", "activation": {"kind": "topk", "k": 5}}
SIGNED = {"normalize": "none", "activation": {"kind": "signed_topk", "k": 5}}


def test_layer_norm_sees_each_row_by_itself_and_gives_it_back_in_its_units(rows):
    sparse = model(**LAYER_NORM)
    codes, x_hat = reconstruct(sparse, rows)
    scaled, moved = rows * 7.0, rows + 5.0
    for other, back in ((scaled, x_hat * 7.0), (moved, x_hat + 5.0)):
        found, again = reconstruct(sparse, other)
        assert torch.equal(found.latents, codes.latents)
        torch.testing.assert_close(again, back, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(sparse(rows), x_hat, rtol=1e-6, atol=1e-6)


def test_signed_topk_keeps_k_of_each_row_whatever_their_sign(rows):
    sparse = model(**SIGNED)
    a = (rows - sparse.b_dec) @ sparse.W_enc.T + sparse.b_enc - 30
    with torch.no_grad():
        sparse.b_enc -= 30
    values, places = a.topk(5, dim=1)
    z = sparse.encode(rows)
    torch.testing.assert_close(z, torch.zeros_like(a).scatter(1, places, values).detach(), rtol=1e-5, atol=1e-5)
    assert (z < 0).any()
    torch.testing.assert_close(sparse.encode_sparse(rows).dense(), z)
    assert sparse.active_above == 0


@pytest.mark.parametrize("settings", [LAYER_NORM, SIGNED], ids=["layer_norm", "signed_topk"])
def test_a_training_step_lowers_the_loss(rows, settings):
    sparse = model(**settings).train()
    optimizer = torch.optim.Adam(sparse.parameters(), 0.01)
    losses = []
    for step in range(60):
        loss = sparse.loss(rows, Step(step), torch.Generator().manual_seed(step)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] * 0.5


class Picture(nn.Module):
    """Two layers over 4 × 4 patches of a picture."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, D, 4, 4)
        self.blocks = nn.ModuleList([nn.Linear(D, D), nn.Linear(D, D)])

    def forward(self, x):
        x = self.embed(x).flatten(2).mT
        for block in self.blocks:
            x = block(x)
        return x


def test_an_intervention_moves_a_row_by_its_own_deviation(rows):
    torch.manual_seed(0)
    backbone = wrap(Picture(), [1], image_size=16, blocks="blocks")
    images = torch.randn(2, 3, 16, 16)
    sparse = model(**LAYER_NORM)
    [before] = backbone.forward_to(images)
    site = backbone.sites[0]
    with intervene(backbone, sparse, {3: Delta(2.0)}, site=1):
        [after] = backbone.forward_to(images, [site])
    moved = 2.0 * sparse.W_dec[3].detach() * before.std(-1, keepdim=True)
    torch.testing.assert_close(after - before, moved, rtol=1e-4, atol=1e-5)
    with splice(backbone, sparse, site=1):
        [spliced] = backbone.forward_to(images, [site])
    wanted = reconstruct(sparse, before.flatten(0, 1))[1].view_as(before)
    torch.testing.assert_close(spliced, wanted.detach(), rtol=1e-5, atol=1e-5)
