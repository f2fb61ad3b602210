import copy
import pytest, torch
from scott.teachers.critic import Critic


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["lora", "full", "unconditional"])
def test_bit_equal(make_backbone, inputs, perturb, family, kind, dtype):
    old = make_backbone("lora", critic_rank=4, family=family, critic=kind, dtype=dtype)
    new = make_backbone("lora", family=family, dtype=dtype)
    torch.manual_seed(1)
    new.add_student("full") if False else None
    new.critic_model = Critic(new, 4, kind)
    perturb(old.critic_parameters())
    theirs, mine = old.critic_parameters(), new.critic_model.trained()
    print(list(mine)[-3:])
    for (a, p), (b, q) in zip(theirs.items(), mine.items(), strict=True):
        assert a == b or (a.startswith("head.") and b.startswith("heads."))
        with torch.no_grad():
            q.copy_(p)
    x, t, cond = inputs(old)
    x.requires_grad_()
    one = old.critic_logits(old.critic_features(x, t, cond)).flatten(1)
    two = new.critic(x, t, cond)
    assert one.abs().max() > 0.01
    assert torch.equal(one, two)
    assert torch.equal(torch.autograd.grad(one.sum(), x)[0], torch.autograd.grad(two.sum(), x)[0])
    # what is told both at once, as the training step does
    both = {k: torch.cat([v, v]) for k, v in cond.items()}
    torch.testing.assert_close(
        new.critic(torch.cat([x, x]), torch.cat([t, t]), both)[:2],
        two,
        rtol=1e-4 if dtype == torch.float32 else 0.1,
        atol=1e-4 if dtype == torch.float32 else 0.05,
    )
