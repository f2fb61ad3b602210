"""Named LoRA on a small network, beside the matrix W + (α / r) B A that it stands for and beside peft's own layers."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from scott.errors import UserError
from scott.teachers.lora import Adapters, lora_targets


def network():
    torch.manual_seed(0)
    body = nn.ModuleDict({"to_q": nn.Linear(6, 5), "conv1": nn.Conv2d(2, 3, 3, padding=1), "other": nn.Linear(2, 2)})
    return nn.ModuleDict({"down": body, "up": nn.ModuleDict({"to_q": nn.Linear(4, 4)})})


X, IMAGE = torch.randn(7, 6), torch.randn(2, 2, 8, 8)
LAYERS = ["down.conv1", "down.to_q"]


def outputs(net):
    return net["down"]["to_q"](X), net["down"]["conv1"](IMAGE)


def with_two_adapters(perturb, alpha=6.0):
    adapters = Adapters(network())
    for seed, name in enumerate(("one", "two")):
        adapters.add(name, LAYERS, rank=2, alpha=alpha)
        perturb(adapters.parameters(name), seed)
    return adapters.network, adapters


def test_targets_are_layers_below_the_prefixes_with_one_of_the_endings():
    net = network()
    assert lora_targets(net, ("",), ("to_q", "conv1")) == ["down.conv1", "down.to_q", "up.to_q"]
    assert lora_targets(net, ("down", "up"), ("to_q",)) == ["down.to_q", "up.to_q"]
    assert lora_targets(net, ("down",), ("to_q",)) == ["down.to_q"]
    assert lora_targets(net, ("down",), ("q",)) == []
    Adapters(net).add("one", LAYERS, rank=2, alpha=2.0)
    assert lora_targets(net, ("",), ("to_q", "conv1")) == ["down.conv1", "down.to_q", "up.to_q"]


def test_a_new_adapter_changes_nothing_and_freezes_the_weights():
    net = network()
    before = outputs(net)
    adapters = Adapters(net)
    adapters.add("one", LAYERS, rank=2, alpha=4.0)
    parameters = adapters.parameters("one")
    with adapters.use("one"):
        assert all(map(torch.equal, outputs(net), before))
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    assert shapes == {
        "down.to_q.lora_A.weight": (2, 6),
        "down.to_q.lora_B.weight": (5, 2),
        "down.conv1.lora_A.weight": (2, 2, 3, 3),
        "down.conv1.lora_B.weight": (3, 2, 1, 1),
    }
    assert all((p != 0).all() == ("lora_A" in name) for name, p in parameters.items())
    trained = {id(p) for layer in LAYERS for p in net.get_submodule(layer).parameters() if p.requires_grad}
    assert trained == {id(p) for p in parameters.values()}


def test_each_name_is_another_model_and_none_is_the_plain_one(perturb):
    net, adapters = with_two_adapters(perturb)
    plain = outputs(network())
    assert all(map(torch.equal, outputs(net), plain))
    seen = []
    for name in ("one", "two"):
        with adapters.use(name):
            seen.append(outputs(net))
        assert all(map(torch.equal, outputs(net), plain))
    assert not torch.equal(seen[0][0], seen[1][0])
    assert not torch.equal(seen[0][1], seen[1][1])


def test_what_was_on_comes_back_after_a_block_and_after_an_error(perturb):
    net, adapters = with_two_adapters(perturb)
    with adapters.use("two"):
        expected = outputs(net)
        with pytest.raises(ZeroDivisionError), adapters.use("one"):
            raise ZeroDivisionError
        with adapters.use(None):
            assert all(map(torch.equal, outputs(net), outputs(network())))
        assert all(map(torch.equal, outputs(net), expected))
    assert all(map(torch.equal, outputs(net), outputs(network())))


def test_an_adapter_on_some_layers_leaves_the_others_plain(perturb):
    net, adapters = with_two_adapters(perturb)
    adapters.add("three", ["down.to_q"], rank=1, alpha=1.0)
    perturb(adapters.parameters("three"))
    with adapters.use("three"):
        assert torch.equal(outputs(net)[1], outputs(network())[1])
        assert not torch.equal(outputs(net)[0], outputs(network())[0])
    assert adapters.parameters("three").keys() == {"down.to_q.lora_A.weight", "down.to_q.lora_B.weight"}


# --- the layer beside autograd and peft ------------------------------------------------------------------------

LAYER_KINDS = {
    "linear": (lambda: nn.Linear(6, 5), (3, 7, 6)),
    "linear without bias": (lambda: nn.Linear(6, 5, bias=False), (7, 6)),
    "conv 3x3": (lambda: nn.Conv2d(4, 3, 3, padding=1), (2, 4, 8, 8)),
    "conv 3x3 stride 2": (lambda: nn.Conv2d(4, 3, 3, stride=2, padding=1), (2, 4, 9, 8)),
    "conv 3x3 no padding": (lambda: nn.Conv2d(4, 3, 3, stride=(1, 2), padding=0, bias=False), (2, 4, 9, 7)),
    "conv 1x1": (lambda: nn.Conv2d(4, 3, 1), (2, 4, 5, 5)),
}


def adapted(kind, perturb, dtype=torch.float32, rank=2, alpha=5.0):
    """One layer in a network, with an adapter off its start; its A and B."""
    torch.manual_seed(0)
    net = nn.ModuleDict({"body": nn.ModuleDict({"to_q": LAYER_KINDS[kind][0]()})}).to(dtype)
    adapters = Adapters(net)
    adapters.add("one", ["body.to_q"], rank=rank, alpha=alpha)
    perturb(adapters.parameters("one"))
    return net, adapters


def answer(layer, x, parameters):
    """Output, and the gradients of one weighing of it in x and the parameters."""
    x = x.clone().requires_grad_(True)
    y = layer(x)
    weighing = torch.randn(y.shape, generator=torch.Generator().manual_seed(7)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * weighing).sum(), [x, *parameters])]


def reference(base, a, b, scale):
    """W + s B A, formed and differentiated by autograd."""

    def layer(x):
        weight = base.weight + scale * (b.flatten(1) @ a.flatten(1)).view(base.weight.shape)
        if isinstance(base, nn.Linear):
            return F.linear(x, weight, base.bias)
        return F.conv2d(x, weight, base.bias, base.stride, base.padding)

    return layer


@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_output_and_gradients_are_those_of_the_sum_of_weights(kind, perturb):
    net, adapters = adapted(kind, perturb)
    x = torch.randn(LAYER_KINDS[kind][1], generator=torch.Generator().manual_seed(1))
    a, b = adapters.parameters("one").values()
    with adapters.use("one"):
        ours = answer(net["body"]["to_q"], x, (a, b))
    expected = answer(reference(net["body"]["to_q"].base_layer, a, b, 5.0 / 2), x, (a, b))
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=2e-6)


def test_a_layer_makes_only_the_gradients_that_are_asked_for(perturb):
    for kind in ("linear", "conv 3x3"):
        net, adapters = adapted(kind, perturb)
        x = torch.randn(LAYER_KINDS[kind][1])
        a, b = adapters.parameters("one").values()
        with adapters.use("one"):
            y = net["body"]["to_q"](x).sum()
        (grad_b,) = torch.autograd.grad(y, [b], retain_graph=True)
        assert torch.equal(grad_b, torch.autograd.grad(y, [a, b])[1])
        b.requires_grad_(False)
        with adapters.use("one"):
            assert torch.autograd.grad(net["body"]["to_q"](x).sum(), [a])[0].abs().max() > 0


@pytest.mark.parametrize("kind", ["linear", "conv 3x3 stride 2", "conv 1x1"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_two_paths_are_added_and_gradients_are_fp32(kind, dtype, perturb):
    net, adapters = adapted(kind, perturb, dtype)
    x = torch.randn(LAYER_KINDS[kind][1], generator=torch.Generator().manual_seed(1)).to(dtype)
    a, b = adapters.parameters("one").values()
    assert a.dtype == b.dtype == torch.float32
    with adapters.use("one"):
        ours = answer(net["body"]["to_q"], x, (a, b))
    assert [value.dtype for value in ours] == [dtype, dtype, torch.float32, torch.float32]
    base = copy.deepcopy(net["body"]["to_q"].base_layer).float()
    expected = answer(reference(base, a, b, 5.0 / 2), x.float(), (a, b))
    for mine, theirs in zip(ours, expected, strict=True):
        assert (mine.float() - theirs).norm() < 0.02 * theirs.norm()


def test_an_update_below_the_resolution_of_half_precision_weights_is_kept():
    """bf16 has no number from 1 to 1 + 2⁻⁷: 2⁻¹⁰ more is lost in the sum of weights, but not in a second path."""
    net = nn.ModuleDict({"body": nn.ModuleDict({"to_q": nn.Linear(63, 1, bias=False)})}).to(torch.bfloat16)
    adapters = Adapters(net)
    adapters.add("one", ["body.to_q"], rank=1, alpha=1.0)
    a, b = adapters.parameters("one").values()
    x = torch.ones(1, 63)
    x[:, 32:] = -1
    with torch.no_grad():
        net["body"]["to_q"].base_layer.weight.fill_(1.0)
        a.copy_(x)
        b.fill_(2.0**-10)
        plain = net["body"]["to_q"](x.bfloat16()).item()
        with adapters.use("one"):
            moved = net["body"]["to_q"](x.bfloat16()).item()
    assert torch.equal(dict(adapters.merged_state("one"))["body.to_q.weight"], torch.ones(1, 63, dtype=torch.bfloat16))
    assert plain == 1
    assert moved - plain == pytest.approx(63 * 2.0**-10, abs=2.0**-8)


# --- merging -------------------------------------------------------------------------------------------------


def test_merged_state_is_the_adapted_network_and_leaves_it_unchanged(perturb):
    net, adapters = with_two_adapters(perturb)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    merged = network()
    merged.load_state_dict(dict(adapters.merged_state("two")))
    with adapters.use("two"):
        torch.testing.assert_close(outputs(merged), outputs(net))
    after = net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_plain_state_is_the_networks_own(perturb):
    _, adapters = with_two_adapters(perturb)
    plain, state = adapters.plain_state(), network().state_dict()
    assert plain.keys() == state.keys()
    assert all(torch.equal(plain[key], state[key]) for key in state)


# --- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "rank"), [([], 4), (LAYERS, 0), (LAYERS, -1)])
def test_no_layers_or_no_rank_is_an_error(layers, rank):
    with pytest.raises(UserError, match="expected a rank of 1 or more"):
        Adapters(network()).add("one", layers, rank, 1.0)


@pytest.mark.parametrize("options", [{"groups": 2}, {"dilation": 2}], ids=str)
def test_a_convolution_that_the_layer_does_not_take_is_an_error(options):
    net = nn.ModuleDict({"body": nn.ModuleDict({"conv1": nn.Conv2d(4, 4, 3, **options)})})
    with pytest.raises(UserError, match=r"body\.conv1 is a grouped or dilated convolution"):
        Adapters(net).add("one", ["body.conv1"], 1, 1.0)
