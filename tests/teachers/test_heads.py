"""A critic of heads on the frozen encoder: what it reads, what it computes, what it leaves alone."""

import pytest
import torch
from torch.nn import functional as F

from scott.objective import hinge_discriminator


@pytest.fixture
def backbone(make_backbone, perturb, family):
    made = make_backbone("lora", critic_rank=1, family=family, critic="heads")
    perturb(made.student_parameters())
    return made


def seen_by(backbone, run):
    """What the modules that it names gave out while `run()` ran, and how often the network's last block was called."""
    seen, calls, hooks = {}, [], []
    for name in backbone.feature_layers:
        layer = backbone.network.get_submodule(name)
        hooks.append(layer.register_forward_hook(lambda module, args, out, name=name: seen.update({name: out})))
    hooks.append(backbone.blocks()[-1].register_forward_pre_hook(lambda module, args: calls.append(module)))
    run()
    for hook in hooks:
        hook.remove()
    return [out[-1] if isinstance(out, tuple) else out for out in seen.values()], len(calls)


def test_it_reads_the_plain_network_and_stops_behind_what_it_reads(backbone, inputs):
    x, t, cond = inputs(backbone)
    with torch.no_grad():
        expected, whole = seen_by(backbone, lambda: backbone.teacher(x, t, cond))
        before = backbone.teacher(x, t, cond)
        made = []
        _, calls = seen_by(backbone, lambda: made.extend(backbone.critic_model.features(x, t, cond)))
        assert torch.equal(backbone.teacher(x, t, cond), before)
    assert (whole, calls) == (1, 0)
    assert len(made) == len(expected) == 3
    for features, layer, channels in zip(made, expected, backbone.feature_layers.values(), strict=True):
        assert features.shape[:2] == (2, channels)
        plain = layer if layer.ndim == 4 else layer.transpose(1, 2).reshape(features.shape)
        assert torch.equal(features, plain)


def by_hand(head, features, text):
    """w · h + ⟨V c, h⟩ + b, one matrix product a position."""
    features = (features - head.mean) / head.std
    inner = head.inner.weight[:, :, 0, 0]
    g = torch.einsum("oc,bchw->bohw", inner, features) + head.inner.bias[:, None, None]
    g = torch.where(g > 0, g, 0.2 * g)
    shifted = F.pad(g, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)
    h = g + torch.einsum("ocij,bchwij->bohw", head.residual.weight, shifted) + head.residual.bias[:, None, None]
    h = torch.where(h > 0, h, 0.2 * h)
    direction = head.logit.weight[0, :, 0, 0] + text @ head.text.weight.T
    return torch.einsum("bc,bchw->bhw", direction, h) + head.logit.bias


def mean_text(cond):
    if "mask" not in cond:
        return cond["text"].mean(1)
    rows = zip(cond["text"], cond["mask"], strict=True)
    return torch.stack([text[mask > 0].mean(0) for text, mask in rows])


def test_every_level_counts_alike_in_the_hinge(backbone, inputs):
    x, t, cond = inputs(backbone)
    critic = backbone.critic_model
    with torch.no_grad():
        features = critic.features(x, t, cond)
        critic.standardise([(2 * x + 1, cond)])
        pairs = list(zip(critic.heads, features, strict=True))
        levels = [by_hand(head, f, mean_text(cond)) for head, f in pairs]
        made = hinge_discriminator(backbone.critic(x, t, cond), backbone.critic(x, t, cond)).loss
    expected = torch.stack([(1 - d).relu().mean() + (1 + d).relu().mean() for d in levels]).mean()
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)


def test_standardised_features_of_the_data_have_no_mean_and_unit_deviation(backbone, inputs):
    x, t, cond = inputs(backbone)
    critic = backbone.critic_model
    one_by_one = [(x[k : k + 1], {name: value[k : k + 1] for name, value in cond.items()}) for k in range(2)]
    critic.standardise(one_by_one)
    clean = torch.full_like(t, backbone.schedule.t_data)
    with torch.no_grad():
        for head, features in zip(critic.heads, critic.features(x, clean, cond), strict=True):
            flat = ((features - head.mean) / head.std).transpose(0, 1).flatten(1)
            torch.testing.assert_close(flat.mean(1), torch.zeros(len(flat)), rtol=0, atol=1e-3)
            torch.testing.assert_close(flat.std(1, correction=0), torch.ones(len(flat)), rtol=1e-3, atol=0)


def test_gradients_reach_the_fake_and_the_heads_alone(backbone, inputs):
    x, t, cond = inputs(backbone)

    def gradients():
        fake = x.clone().requires_grad_()
        backbone.critic(fake, t, cond).square().mean().backward()
        made = [fake.grad, *(p.grad for p in backbone.critic_parameters().values())]
        for parameter in backbone.critic_parameters().values():
            parameter.grad = None
        return made

    made = gradients()
    assert all(g is not None and g.abs().max() > 0 for g in made)
    own = {id(p) for p in backbone.critic_parameters().values()}
    assert all(p.grad is None for p in backbone.network.parameters() if id(p) not in own)
    backbone.checkpoint_activations()
    for mine, theirs in zip(gradients(), made, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
