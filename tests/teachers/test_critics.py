"""The critics of the paper's Table 7: what each trains, what it is given, and where its gradients go."""

import functools
from types import SimpleNamespace

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch._functorch import config as functorch_config

from scott.teachers import LatentBackbone


def bit_equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_no_critic_makes_none(make_backbone, family):
    backbone = make_backbone("lora", family=family)
    assert backbone.critic_parameters() == {}
    assert backbone.critic_model is None
    assert set(backbone.network.peft_config) == {"student", "target"}


def test_an_unconditional_critic_knows_neither_time_nor_text(make_backbone, inputs, perturb, family):
    backbone = make_backbone(critic_rank=4, critic="unconditional", family=family)
    perturb(backbone.critic_parameters())
    x, t, cond = inputs(backbone)
    with torch.no_grad():
        first = backbone.critic(x, t, cond)
        other = {name: value.flip(0) + 1 for name, value in cond.items()}
        assert torch.equal(first, backbone.critic(x, t.flip(0), other))
        assert not torch.allclose(first, backbone.critic(x.flip(0), t, cond))
        # it is the LoRA critic, given what says nothing
        backbone.critic_model.kind = "lora"
        nothing = {name: value.expand(2, *value.shape[1:]) for name, value in backbone.unconditional().items()}
        clean = torch.full_like(t, backbone.schedule.t_data)
        assert torch.equal(first, backbone.critic(x, clean, nothing))


def test_a_full_critic_starts_as_the_network_and_trains_all_of_it(make_backbone, inputs, family):
    backbone, plain = make_backbone("lora", critic_rank=4, critic="full", family=family), make_backbone(family=family)
    x, t, cond = inputs(backbone)
    own = dict(backbone.network.named_parameters())
    copy = {name: p for name, p in backbone.critic_parameters().items() if not name.startswith("heads.")}
    assert copy.keys() == {
        name for name, _ in plain.network.named_parameters() if not name.startswith(backbone.output_layer)
    }
    assert not any(isinstance(module, LoraLayer) for module in backbone.copies["critic"].modules())
    base = {name: p.clone() for name, p in own.items()}
    with torch.no_grad():
        assert torch.equal(backbone.output("critic", x, t, cond), plain.output(None, x, t, cond))

    optimizer = torch.optim.AdamW(backbone.critic_parameters().values(), lr=1e-3)
    for _ in range(2):  # the head starts at zero, so the first step moves the head alone
        optimizer.zero_grad()
        torch.tanh(backbone.critic(x, t, cond) + 0.1).sum().backward()
        optimizer.step()
    still = {name for name, p in copy.items() if not p.grad.any()}
    # SD3's last block drops its text, which still asks; keys' biases and absent additions have no say
    assert all("add_q_proj" in name or name.endswith("_k.bias") or "k_proj.bias" in name for name in still), still
    assert bit_equal(base, dict(backbone.network.named_parameters()))
    assert all(p.grad is None for p in own.values())


@pytest.mark.parametrize("critic", ["lora", "full", "unconditional"])
@pytest.mark.parametrize("train", ["lora", "full"])
def test_the_gradient_of_a_fake_passes_through_the_critic_to_the_student_alone(
    make_backbone, inputs, perturb, train, critic
):
    backbone = make_backbone(train, critic_rank=4, critic=critic)
    x, t, cond = inputs(backbone)
    perturb(backbone.critic_parameters())
    loss = -backbone.critic(backbone.student(x, t, cond), t, cond).mean()
    student = tuple(backbone.student_parameters().values())
    to_student = torch.autograd.grad(loss, student, retain_graph=True)
    to_critic = torch.autograd.grad(loss, tuple(backbone.critic_parameters().values()))
    assert max(g.abs().max() for g in to_student) > 0
    assert max(g.abs().max() for g in to_critic) > 0
    owned = (*student, *backbone.critic_parameters().values(), *backbone.target_parameters().values())
    base = {id(p): p for p in backbone.network.parameters()}
    assert not any(p.requires_grad for key, p in base.items() if key not in set(map(id, owned)))


@pytest.mark.parametrize("critic", ["lora", "heads"])
def test_compiling_reaches_the_critic(make_backbone, inputs, perturb, monkeypatch, critic):
    """Dynamo's trace without a compiler; the teacher runs first, so that the critic's hook has to be a part of it."""
    backbone = make_backbone("lora", critic_rank=4, family="few", critic=critic)
    perturb(backbone.critic_parameters())
    x, t, cond = inputs(backbone)

    def answers():
        teacher = backbone.teacher(x, t, cond).detach()
        logits = backbone.critic(x, t, cond)
        return [teacher, logits, *torch.autograd.grad(logits.sum(), list(backbone.critic_parameters().values()))]

    def traced():
        """Graphs so far: those of the teacher, and then the critic's."""
        (answers if counted else lambda: backbone.teacher(x, t, cond))()
        return len(counted)

    expected, counted = answers(), []
    compiled = functools.partialmethod(nn.Module.compile, backend=lambda g, inputs: counted.append(g) or g.forward)
    monkeypatch.setattr(nn.Module, "compile", compiled)
    backbone.compile()
    assert 0 < traced() < traced() == traced()
    for mine, theirs in zip(answers(), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)
def test_a_network_has_more_graphs_than_dynamo_makes_by_default(monkeypatch):
    """On a stand-in, since a trace of a real network takes seconds: a graph a model, where training makes more."""

    class Network(nn.Module):
        adapter = ""

        def forward(self, x):
            return x + len(self.adapter)

    network, graphs = Network(), []
    compiled = functools.partialmethod(nn.Module.compile, backend=lambda g, _: graphs.append(g) or g.forward)
    monkeypatch.setattr(nn.Module, "compile", compiled)
    LatentBackbone.compile(SimpleNamespace(network=network, copies={}, cut={}))
    for model in range(12):
        network.adapter = model * "a"
        assert network(torch.zeros(1)) == model
        assert len(graphs) == model + 1


@functorch_config.patch(donated_buffer=True)
def test_a_compiled_network_of_two_sizes_of_batch_goes_back_twice(monkeypatch):
    """As the critic's does: the guided teacher runs the network on twice the batch. On a stand-in that, as convolutions
    do, keeps the size of its batch for the backward pass."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            y = torch.tanh(self.first(x))
            return self.second(y * len(y)) * y

    network, x = Network(), torch.randn(2, 6, requires_grad=True)

    def gradients():
        with torch.no_grad():
            network(torch.randn(4, 6))
        loss = network(x).mean()
        (towards_data,) = torch.autograd.grad(loss, x, retain_graph=True)
        return towards_data, *torch.autograd.grad(loss, tuple(network.parameters()))

    expected = gradients()
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="aot_eager"))
    LatentBackbone.compile(SimpleNamespace(network=network, copies={}, cut={}))
    for mine, theirs in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("critic", ["lora", "heads"])
def test_no_head_gives_out_a_view(make_backbone, inputs, critic):
    """Of which FSDP2 warns, whose hooks a change in place of one would lose."""
    backbone, logits = make_backbone(critic_rank=4, critic=critic), []
    for head in backbone.heads:
        head.register_forward_hook(lambda module, given, output: logits.append(output))
    backbone.critic(*inputs(backbone))
    assert len(logits) == len(backbone.heads)
    assert all(output._base is None for output in logits)


def test_a_logit_is_the_heads_product_with_what_the_last_layer_is_fed(make_backbone, inputs, family):
    backbone = make_backbone(critic_rank=4, family=family)
    x, t, cond = inputs(backbone)
    seen = []
    backbone.network.get_submodule(backbone.output_layer).register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    (head,) = backbone.critic_model.heads
    with torch.no_grad():
        head.weight.normal_(generator=torch.Generator().manual_seed(0))
        logits, (f,) = backbone.critic(x, t, cond), seen
        weight = head.weight[0][:, None, None] if f.ndim == 4 else head.weight[0]
        expected = (f * weight).sum(1 if f.ndim == 4 else -1).flatten(1)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
