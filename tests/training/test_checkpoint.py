"""Checkpoints come back bit for bit, and are whole or absent."""

import shutil

import pytest
import torch
from torch import nn

from scott.errors import UserError
from scott.training import checkpoint
from scott.training.checkpoint import (
    checkpoints,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from scott.training.optimization import optimizer_class
from scott.training.parallel import load_optimizer_tensors, optimizer_tensors


def names(folder):
    return [path.name for path in checkpoints(folder)]


def test_round_trip_is_bit_equal(tmp_path):
    tensors = {
        "nan": torch.tensor([float("nan"), float("-inf"), -0.0, 1e-45]),
        "half": torch.randn(3, 2).half(),
        "long": torch.arange(4),
        "view": torch.randn(4, 6).T[1:],
        "scalar": torch.tensor(2.5),
    }
    shared = torch.randn(5)
    path = save_checkpoint(tmp_path, 7, {"a": tensors, "b": {"x": shared, "y": shared}}, {"seed": 3})
    parts, state = load_checkpoint(path)
    assert state == {"seed": 3, "step": 7}
    assert parts.keys() == {"a", "b"}
    for name, value in tensors.items():
        assert parts["a"][name].dtype == value.dtype
        assert parts["a"][name].numpy().tobytes() == value.contiguous().numpy().tobytes()
    assert torch.equal(parts["b"]["x"], shared)
    assert torch.equal(parts["b"]["y"], shared)


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_an_optimizer_continues_as_if_it_had_never_stopped(tmp_path, name):
    """With the weight, which bitsandbytes keeps 8-bit states of, behind the bias, of which it keeps whole ones."""

    def fresh():
        torch.manual_seed(0)
        layer = nn.Linear(3, 2048)
        groups = [{"params": [layer.bias]}, {"params": [layer.weight], "lr": 0.01}]
        return layer, optimizer_class(name)(groups, lr=0.1, weight_decay=0.1)

    def steps(layer, optimizer, count):
        for i in range(count):
            optimizer.zero_grad()
            layer(torch.full((1, 3), 1.0 + i)).square().sum().backward()
            optimizer.step()

    layer, optimizer = fresh()
    steps(layer, optimizer, 3)
    path = save_checkpoint(tmp_path, 3, {"m": layer.state_dict(), "o": optimizer_tensors(layer, optimizer)}, {})
    steps(layer, optimizer, 2)

    again, other = fresh()
    parts, _ = load_checkpoint(path)
    again.load_state_dict(parts["m"])
    load_optimizer_tensors(again, other, parts["o"])
    steps(again, other, 2)
    assert all(map(torch.equal, again.parameters(), layer.parameters()))
    assert any(value.dtype == torch.uint8 for value in parts["o"].values()) == (name == "adamw8bit")
    mine, theirs = optimizer_tensors(layer, optimizer), optimizer_tensors(again, other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_whole_numbers_in_an_optimizers_state_stay_so(tmp_path):
    """bitsandbytes counts steps in an int, where torch has a tensor."""

    class Counting(torch.optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {})

        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                state = self.state[p]
                state["step"] = state.get("step", 0) + 1
                state["state1"] = torch.zeros_like(p, dtype=torch.uint8)

    layer = nn.Linear(2, 1, bias=False)
    one, other = Counting(layer.parameters()), Counting(layer.parameters())
    one.step()
    one.step()
    path = save_checkpoint(tmp_path, 2, {"o": optimizer_tensors(layer, one)}, {})
    load_optimizer_tensors(layer, other, load_checkpoint(path)[0]["o"])
    assert other.state[layer.weight]["step"] == 2
    assert isinstance(other.state[layer.weight]["step"], int)
    other.step()
    assert other.state[layer.weight]["step"] == 3


def test_a_crash_while_writing_leaves_the_one_before(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, {"a": {"x": torch.ones(1)}}, {})

    def crash(tensors, file):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", crash)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, 2, {"a": {"x": torch.zeros(1)}}, {})
    assert names(tmp_path) == ["step-00000001"]
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000001"
    assert torch.equal(load_checkpoint(latest_checkpoint(tmp_path))[0]["a"]["x"], torch.ones(1))
    save_checkpoint(tmp_path, 3, {"a": {"x": torch.zeros(1)}}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]


def test_a_step_that_is_there_is_not_written_again(tmp_path):
    """It is of the same run; replacing it would leave a moment without one."""
    save_checkpoint(tmp_path, 1, {"old": {"x": torch.ones(1)}}, {})
    save_checkpoint(tmp_path, 1, {"new": {"x": torch.ones(1)}}, {})
    assert load_checkpoint(latest_checkpoint(tmp_path))[0].keys() == {"old"}


@pytest.mark.parametrize("harm", ["a flipped byte", "truncated", "empty", "no state", "bad state", "no hash"])
def test_a_corrupt_checkpoint_is_an_error_with_the_way_out(tmp_path, harm):
    path = save_checkpoint(tmp_path, 5, {"a": {"x": torch.randn(100)}}, {})
    file = path / "a.safetensors"
    if harm == "a flipped byte":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif harm == "truncated":
        file.write_bytes(file.read_bytes()[:-8])
    elif harm == "empty":
        file.write_bytes(b"")
    elif harm == "no state":
        (path / "state.json").unlink()
    elif harm == "no hash":
        (path / "state.json").write_text('{"step": 5}')
    else:
        (path / "state.json").write_text("{")
    why = "a.safetensors is not what was written, by its SHA-256" if harm == "a flipped byte" else ""
    with pytest.raises(UserError, match=rf"step-00000005 cannot be read .*{why}.*delete it") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "{}", "[1]", '{"step": "x", "metric": "fid", "value": 1}'])
def test_a_best_checkpoint_that_is_not_said_is_an_error_with_the_way_out(tmp_path, content):
    (tmp_path / "best.json").write_text(content)
    with pytest.raises(UserError, match=r"best\.json cannot be read .*; delete it to have the best found anew"):
        prune_checkpoints(tmp_path, keep=2)


def test_the_newest_are_kept(tmp_path):
    for step in (3, 20, 100, 1):
        save_checkpoint(tmp_path, step, {"a": {"x": torch.ones(1)}}, {})
    prune_checkpoints(tmp_path, keep=2)
    assert names(tmp_path) == ["step-00000020", "step-00000100"]
    prune_checkpoints(tmp_path, keep=5)
    assert names(tmp_path) == ["step-00000020", "step-00000100"]


def test_an_old_one_that_is_a_link_elsewhere_goes_and_stays_there(tmp_path):
    runs, disk = tmp_path / "checkpoints", tmp_path / "disk"
    for step in (3, 20):
        save_checkpoint(runs, step, {"a": {"x": torch.ones(1)}}, {})
    shutil.move(runs / "step-00000003", disk)
    (runs / "step-00000003").symlink_to(disk, target_is_directory=True)
    prune_checkpoints(runs, keep=1)
    assert names(runs) == ["step-00000020"]
    assert (disk / "state.json").is_file()


def test_what_is_not_a_checkpoint_is_passed_over(tmp_path):
    assert latest_checkpoint(tmp_path / "none") is None
    for name in ("step-1", "step-00000009x", ".partial-step-00000009", "step-best"):
        (tmp_path / name).mkdir()
    assert latest_checkpoint(tmp_path) is None
