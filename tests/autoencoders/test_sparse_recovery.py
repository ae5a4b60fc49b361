"""Dictionary recovery: 64 directions in 32 dimensions, 3 active a row, found again by 64 latents (mathematics §3, §4).

Raw weights as the papers have them: normalize none, so the configured weight is λ / √d_in for L1 and β / d_in for KL.
"""

import math

import pytest
import torch
from torch.nn.functional import normalize

from saetool.autoencoders.base import Step
from saetool.autoencoders.sparse import SparseAutoencoder
from saetool.autoencoders.sparse_settings import SparseSettings

D_IN, ATOMS, BATCH = 32, 64, 1024
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def atoms():
    return normalize(torch.randn(ATOMS, D_IN, generator=torch.Generator().manual_seed(0)), dim=1)


def draw(atoms, rows, generator):
    active = torch.rand(rows, ATOMS, generator=generator).topk(3).indices
    sizes = torch.rand(rows, 3, generator=generator) + 0.5
    return torch.zeros(rows, ATOMS).scatter_(1, active, sizes) @ atoms


def recover(atoms, steps, encoder_scale=1.0, decoder_decay=None, **keys):
    """Train with Adam 3e-3 and a cosine to 0; return the best cosine of each atom, FVU and L0 on fresh rows."""
    torch.manual_seed(1)
    settings = SparseSettings(kind="sparse", n_latents=ATOMS, normalize="none", **keys)
    if decoder_decay is not None:  # the negative control that a config cannot ask for
        penalty = settings.penalty.model_copy(update={"decoder_decay": decoder_decay})
        settings = settings.model_copy(update={"penalty": penalty})
    model = SparseAutoencoder(settings, D_IN)
    with torch.no_grad():
        model.W_enc.mul_(encoder_scale)
        if settings.penalty.kind == "kl":
            model.b_enc.fill_(math.log(settings.penalty.rho / (1 - settings.penalty.rho)))
    model.use_dense.fill_(True)
    generator = torch.Generator().manual_seed(2)
    optimizer = model.make_optimizer(3e-3, (0.9, 0.999), 1e-8)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * 0.5 * (1 + math.cos(math.pi * step / steps))
        model.loss(draw(atoms, BATCH, generator), Step(step), generator).total.backward()
        model.before_update()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    x = draw(atoms, 8192, generator)
    fvu = (x - model(x)).square().sum() / (x - x.mean(0)).square().sum()
    cosines = (normalize(model.W_dec.detach(), dim=1) @ atoms.T).amax(0)
    return cosines, float(fvu), float((model.encode(x) > 0).float().sum(1).mean())


def test_l1_recovers_the_dictionary(atoms):
    weight = 0.3 / math.sqrt(D_IN)
    cosines, fvu, l0 = recover(atoms, 6000, penalty={"kind": "l1", "weight": weight, "warmup_steps": 0})
    assert float(cosines.mean()) >= 0.95
    assert float((cosines > 0.9).float().mean()) >= 0.85
    assert fvu < 0.15
    assert 3 <= l0 <= 8


def test_without_a_penalty_nothing_is_recovered(atoms):
    cosines, fvu, _ = recover(atoms, 6000, penalty={"kind": "l1", "weight": 0.0, "warmup_steps": 0})
    assert float(cosines.mean()) < 0.7
    assert fvu < 0.05  # it reconstructs very well


def test_topk_recovers_the_dictionary(atoms):
    cosines, _, l0 = recover(atoms, 3000, activation={"kind": "topk", "k": 3})
    assert float(cosines.mean()) >= 0.9
    assert l0 <= 3


KL = {"activation": {"kind": "sigmoid"}, "encoder_scale": 4.0}


def kl_penalty(weight=1.0):
    return {"kind": "kl", "rho": 0.047, "weight": weight / D_IN, "decoder_decay": 0.01, "warmup_steps": 0}


def test_kl_with_decoder_decay_recovers_the_dictionary(atoms):
    cosines, _, _ = recover(atoms, 4000, penalty=kl_penalty(), **KL)
    assert float(cosines.mean()) >= 0.9
    assert float((cosines > 0.9).float().mean()) >= 0.7


def test_kl_alone_reconstructs_and_recovers_nothing(atoms):
    cosines, fvu, _ = recover(atoms, 4000, penalty=kl_penalty(), decoder_decay=0.0, **KL)
    assert fvu < 0.1
    assert float((cosines > 0.9).float().mean()) < 0.1


def test_decay_alone_recovers_nothing(atoms):
    cosines, _, _ = recover(atoms, 4000, penalty=kl_penalty(0.0), **KL)
    assert float((cosines > 0.9).float().mean()) < 0.1
