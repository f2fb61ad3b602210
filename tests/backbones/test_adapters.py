"""Named LoRA on a small network, beside the matrix W + (α / r) B A that it stands for."""

import pytest
import torch
from torch import nn

from scott.backbones import adapters
from scott.errors import UserError


def network():
    torch.manual_seed(0)
    body = nn.ModuleDict({"to_q": nn.Linear(6, 5), "conv1": nn.Conv2d(2, 3, 3, padding=1), "other": nn.Linear(2, 2)})
    return nn.ModuleDict({"down": body, "up": nn.ModuleDict({"to_q": nn.Linear(4, 4)})})


X, IMAGE = torch.randn(7, 6), torch.randn(2, 2, 8, 8)
LAYERS = ["down.conv1", "down.to_q"]


def outputs(net):
    return net["down"]["to_q"](X), net["down"]["conv1"](IMAGE)


def with_two_adapters(perturb, alpha=6.0):
    net = network()
    for seed, name in enumerate(("one", "two")):
        perturb(adapters.add_adapter(net, name, LAYERS, rank=2, alpha=alpha), seed)
    return net


def test_targets_are_layers_below_the_prefix_with_one_of_the_endings():
    net = network()
    assert adapters.lora_targets(net, "", ("to_q", "conv1")) == ["down.conv1", "down.to_q", "up.to_q"]
    assert adapters.lora_targets(net, "down", ("to_q",)) == ["down.to_q"]
    assert adapters.lora_targets(net, "down", ("q",)) == []
    adapters.add_adapter(net, "one", LAYERS, rank=2, alpha=2.0)
    assert adapters.lora_targets(net, "", ("to_q", "conv1")) == ["down.conv1", "down.to_q", "up.to_q"]


def test_a_new_adapter_changes_nothing_and_freezes_the_weights():
    net = network()
    before = outputs(net)
    parameters = adapters.add_adapter(net, "one", LAYERS, rank=2, alpha=4.0)
    with adapters.adapter(net, "one"):
        assert all(map(torch.equal, outputs(net), before))
    assert {tuple(p.shape) for p in parameters.values()} == {(2, 6), (5, 2), (2, 2, 3, 3), (3, 2, 1, 1)}
    trained = {id(p) for p in net["down"]["to_q"].parameters() if p.requires_grad}
    assert trained == {id(p) for key, p in parameters.items() if "to_q" in key}


def test_an_adapter_adds_alpha_over_rank_b_a(perturb):
    net = with_two_adapters(perturb)
    parameters = adapters.adapter_parameters(net, "two")
    a, b = parameters["down.to_q.lora_A.weight"], parameters["down.to_q.lora_B.weight"]
    base = net["down"]["to_q"].base_layer
    with adapters.adapter(net, "two"):
        torch.testing.assert_close(outputs(net)[0], X @ (base.weight + 3 * b @ a).T + base.bias)


def test_each_name_is_another_model_and_none_is_the_plain_one(perturb):
    net = with_two_adapters(perturb)
    plain = outputs(network())
    assert all(map(torch.equal, outputs(net), plain))
    seen = []
    for name in ("one", "two"):
        with adapters.adapter(net, name):
            seen.append(outputs(net))
        assert all(map(torch.equal, outputs(net), plain))
    assert not torch.equal(seen[0][0], seen[1][0])
    assert not torch.equal(seen[0][1], seen[1][1])


def test_the_plain_network_comes_back_after_an_error(perturb):
    net = with_two_adapters(perturb)
    with pytest.raises(ZeroDivisionError), adapters.adapter(net, "one"):
        raise ZeroDivisionError
    assert all(map(torch.equal, outputs(net), outputs(network())))


@pytest.mark.parametrize("active", [None, "one", "two"])
def test_every_adapter_stays_trainable_whichever_is_on(perturb, active):
    net = with_two_adapters(perturb)
    adapters.use_adapter(net, active)
    trained = {id(p) for p in net["down"]["to_q"].parameters() if p.requires_grad}
    owned = [p for n in ("one", "two") for k, p in adapters.adapter_parameters(net, n).items() if "to_q" in k]
    assert trained == {id(p) for p in owned}


def test_merged_state_is_the_adapted_network_and_leaves_it_unchanged(perturb):
    net = with_two_adapters(perturb)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    merged = network()
    merged.load_state_dict(adapters.merged_state(net, "two"))
    with adapters.adapter(net, "two"):
        torch.testing.assert_close(outputs(merged), outputs(net))
    after = net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_merging_writes_into_no_weight_of_the_network(perturb):
    net = with_two_adapters(perturb)
    for value in adapters.merged_state(net, "one").values():
        value.zero_()
    assert all(map(torch.equal, outputs(net), outputs(network())))


@pytest.mark.parametrize(("layers", "rank"), [([], 4), (LAYERS, 0), (LAYERS, -1)])
def test_no_layers_or_no_rank_is_an_error(layers, rank):
    with pytest.raises(UserError, match="expected a rank of 1 or more and some layers"):
        adapters.add_adapter(network(), "one", layers, rank, 1.0)
