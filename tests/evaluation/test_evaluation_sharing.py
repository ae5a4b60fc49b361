"""Parts of a pass are each done by one process, and come to the main one in order."""

import pytest
import torch

from saetool import distributed
from saetool.artifacts import Partial
from saetool.evaluation.sharing import Shared


@pytest.fixture
def process(tmp_path, monkeypatch):
    """Be one of three processes after the other: (rank, work) → what `work` returns of its `Shared`."""
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "barrier", lambda: None)

    def be(rank, work):
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        return work(Shared(Partial(tmp_path / "x.partial", tmp_path / "x")))

    return be


def test_every_part_is_done_once_and_comes_in_order(process):
    done = []

    def work(part: int) -> dict[str, torch.Tensor]:
        done.append(part)
        return {"square": torch.tensor([part**2])}

    found = [process(rank, lambda shared: shared.map("squares", range(7), work)) for rank in (2, 1, 0)]
    assert found[:2] == [None, None]
    assert [int(part["square"]) for part in found[2]] == [0, 1, 4, 9, 16, 25, 36]
    assert sorted(done) == list(range(7))
    assert done[:2] == [2, 5]


def test_what_the_main_process_makes_all_have(process):
    made = [
        process(rank, lambda shared, r=rank: shared.once("fit", lambda: {"by": torch.tensor(r)})) for rank in (0, 1)
    ]
    assert [int(fit["by"]) for fit in made] == [0, 0]


def test_alone_nothing_is_written(tmp_path):
    shared = Shared(Partial(tmp_path / "x.partial", tmp_path / "x"))
    assert shared.map("squares", [2, 3], lambda part: {"n": torch.tensor(part)}) == [
        {"n": torch.tensor(2)},
        {"n": torch.tensor(3)},
    ]
    assert not list(tmp_path.rglob("*.safetensors"))


def test_one_process_and_several_have_tensors_in_the_same_order_in_memory(process):
    """Else a product's last bits, and so an id, may depend on how many there are."""
    columns = torch.randn(6, 4).T  # column after column, as scikit-learn's components may lie
    found = [Shared().once("fit", lambda: {"w": columns}), *Shared().map("fits", [0], lambda _: {"w": columns})]
    found.append(process(0, lambda shared: shared.once("fit", lambda: {"w": columns})))
    assert all(torch.equal(made["w"], columns) and made["w"].stride() == (6, 1) for made in found)
