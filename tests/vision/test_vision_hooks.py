"""Hooks read and replace, tuples included, and come off whatever happens."""

from collections import namedtuple

import pytest
import torch
from torch import nn

from saetool.errors import RequestError
from saetool.vision import reading, replacing
from saetool.vision.hooks import tensor_of, with_tensor

Pair = namedtuple("Pair", "x note")


def hooked(model):
    return [module for module in model.modules() if module._forward_hooks]


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))


def test_reading_gives_each_output_and_the_rest_runs(model):
    x = torch.randn(4, 3)
    with reading(model, ["0", "1"]) as outputs:
        y = model(x)
    torch.testing.assert_close(outputs["0"], model[0](x), rtol=0, atol=0)
    torch.testing.assert_close(outputs["1"], outputs["0"].relu(), rtol=0, atol=0)
    assert y.shape == (4, 2)
    assert not hooked(model)


def test_stopping_ends_the_block_once_everything_is_read(model):
    after = []
    with reading(model, ["1", "0"], stop=True) as outputs:
        model(torch.randn(4, 3))
        after.append("ran")
    assert set(outputs) == {"0", "1"}
    assert not after
    assert not hooked(model)


def test_hooks_come_off_after_an_error(model):
    def fail(x):
        assert len(hooked(model)) == 2
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"), reading(model, ["0"]), replacing(model, "1", fail):
        model(torch.randn(4, 3))
    assert not hooked(model)


def test_a_missing_module_leaves_no_hook_behind(model):
    with pytest.raises(RequestError, match="no module '7'"), reading(model, ["0", "7"]):
        pass
    assert not hooked(model)


def test_replacing_changes_what_later_modules_see(model):
    x = torch.randn(4, 3)
    with replacing(model, "1", lambda output: output * 0):
        changed = model(x)
    torch.testing.assert_close(changed, model[2].bias.expand(4, -1))
    assert not torch.allclose(model(x), changed)


@pytest.mark.parametrize(
    "output",
    [
        torch.ones(2),
        (None, torch.ones(2), "kept"),
        [torch.ones(2), 3],
        {"a": "kept", "b": torch.ones(2)},
        Pair(torch.ones(2), "kept"),
    ],
)
def test_the_tensor_of_any_output_is_found_and_put_back_in_place(output):
    changed = with_tensor(output, torch.zeros(2), "site")
    assert type(changed) is type(output)
    assert torch.equal(tensor_of(output, "site"), torch.ones(2))
    assert torch.equal(tensor_of(changed, "site"), torch.zeros(2))
    rest = [
        str(part) for part in (output.values() if isinstance(output, dict) else output) if not torch.is_tensor(part)
    ]
    after = [
        str(part) for part in (changed.values() if isinstance(changed, dict) else changed) if not torch.is_tensor(part)
    ]
    assert torch.is_tensor(output) or rest == after


def test_an_output_without_a_tensor_is_refused():
    with pytest.raises(RequestError, match="'site' gives tuple, which holds no tensor"):
        tensor_of(("nothing",), "site")
