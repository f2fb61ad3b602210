"""What saves memory or time changes no numbers but by rounding: recomputation, half precision, parking, compiling."""

import copy
import functools
import gc
import weakref

import pytest
import torch
from accelerate import cpu_offload_with_hook
from tests.tiny.families import FAMILIES
from torch import nn
from torch._dynamo import lookup_backend

from scott.teachers import load_backbone
from scott.teachers.lora import Adapters


def both_gradients(backbone, x, t, cond):
    """The student's and the critic's gradients, as a training step makes them: all backward passes come last."""
    x0 = backbone.student(x, t, cond)
    logits = backbone.critic(x0, t, cond)
    loss = x0.square().mean() - logits.mean()
    student = torch.autograd.grad(loss, tuple(backbone.student_parameters().values()), retain_graph=True)
    critic = torch.autograd.grad(torch.tanh(logits).sum(), tuple(backbone.critic_parameters().values()))
    return student, critic


def assert_equal_gradients(ours, expected, tolerance=1e-6):
    for mine, theirs in zip(ours, expected, strict=True):
        scale = max(g.norm() for g in theirs)
        assert scale > 0
        for g, e in zip(mine, theirs, strict=True):
            assert (g - e).norm() <= tolerance * max(e.norm(), 1e-3 * scale)


def counted_calls(backbone):
    """Calls of the blocks' layers by (layer, what adapter is on), counted as they come."""
    counts = {}

    def count(module, args, name):
        key = (name, backbone.adapters.active)
        counts[key] = counts.get(key, 0) + 1

    networks = {"": backbone.network, **backbone.copies}
    for prefix, network in networks.items():
        for name, module in network.named_modules():
            if name.endswith((".to_q", ".conv1")):
                module.register_forward_pre_hook(functools.partial(count, name=f"{prefix}.{name}"))
    return counts


@pytest.mark.parametrize(("train", "critic"), [("lora", "lora"), ("full", "full")])
def test_recomputed_activations_give_the_same_gradients(make_backbone, inputs, perturb, family, train, critic):
    backbone = make_backbone(train, critic_rank=4, family=family, critic=critic)
    perturb(backbone.student_parameters())
    perturb(backbone.critic_parameters(), 1)
    x, t, cond = inputs(backbone)
    expected = both_gradients(backbone, x, t, cond)
    backbone.checkpoint_activations()
    counts = counted_calls(backbone)
    assert_equal_gradients(both_gradients(backbone, x, t, cond), expected)
    # that of the student, and of the critic's decoder, ran once more, under the adapter it ran under before
    mine = {key: n for key, n in counts.items() if key[1] == ("student" if train == "lora" else None)}
    assert mine
    assert max(mine.values()) >= 2
    with torch.no_grad():  # nothing to recompute, and the same answers
        plain = make_backbone(train, family=family)
        assert torch.equal(backbone.teacher(x, t, cond), plain.teacher(x, t, cond))


@pytest.mark.parametrize("family", ["sd1", "pixart"])
def test_recomputation_runs_under_the_adapter_of_the_forward_pass(make_backbone, inputs, perturb, family):
    backbone = make_backbone("lora", critic_rank=4, family=family)
    perturb(backbone.student_parameters())
    perturb(backbone.critic_parameters(), 1)
    x, t, cond = inputs(backbone)
    expected = both_gradients(backbone, x, t, cond)
    backbone.checkpoint_activations()
    for other in (None, "target", "critic", "student"):
        x0 = backbone.student(x, t, cond)
        with backbone.adapters.use(other):
            student = torch.autograd.grad(x0.square().sum(), tuple(backbone.student_parameters().values()))
            assert backbone.adapters.active == other
    logits = backbone.critic(x, t, cond)
    assert logits.requires_grad
    both = both_gradients(backbone, x, t, cond)
    assert_equal_gradients(both, expected)
    again = torch.autograd.grad(
        backbone.student(x, t, cond).square().sum(), tuple(backbone.student_parameters().values())
    )
    assert all(map(torch.equal, student, again))


def test_recomputation_in_half_precision_gives_the_same_gradients(make_backbone, inputs, perturb):
    for train in ("lora", "full"):
        backbone = make_backbone(train, critic_rank=4, dtype=torch.bfloat16)
        perturb(backbone.student_parameters())
        perturb(backbone.critic_parameters(), 1)
        x, t, cond = inputs(backbone)
        expected = both_gradients(backbone, x, t, cond)
        backbone.checkpoint_activations()
        assert_equal_gradients(both_gradients(backbone, x, t, cond), expected)


# --- precision -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "train", "critic", "dtype", "tolerance"),
    [
        *((family, "lora", "lora", torch.float16, 0.01) for family in ("sd1", "sd2", "sdxl", "pixart", "sd3")),
        ("sdxl", "full", "full", torch.float16, 0.01),
        ("sd3", "full", "full", torch.bfloat16, 0.05),
        ("pixart", "lora", "lora", torch.bfloat16, 0.05),
    ],
)
def test_the_base_is_in_half_precision_and_what_is_trained_in_fp32(
    make_backbone, inputs, family, train, critic, dtype, tolerance
):
    plain = make_backbone(family=family)
    x, t, cond = inputs(plain)
    backbone = make_backbone(train, critic_rank=4, family=family, critic=critic, dtype=dtype)
    models = (backbone.student_parameters(), backbone.target_parameters(), backbone.critic_parameters())
    assert {p.dtype for model in models for p in model.values()} == {torch.float32}
    own = {id(p) for model in models for p in model.values()}
    assert {p.dtype for p in backbone.network.parameters() if id(p) not in own} == {dtype}
    assert {p.dtype for p in backbone.vae.parameters()} == {torch.float32}
    encoded = backbone.encode_prompts(["a cat", "dog"]) | {"guidance": cond["guidance"]}
    with torch.no_grad():
        expected = plain.teacher(x, t, cond)
        for model in (backbone.teacher, backbone.student, backbone.target):
            x0 = model(x, t, encoded)
            assert x0.dtype == torch.float32
            assert (x0 - expected).norm() < tolerance * expected.norm()
        if train == "lora":
            assert torch.equal(backbone.student(x, t, encoded), backbone.teacher(x, t, encoded))
        logits = backbone.critic(x, t, encoded)
        assert logits.dtype == torch.float32
        assert backbone.decode(x0[:1]).dtype == torch.float32


# --- where things are ----------------------------------------------------------------------------------------


def test_parked_encoders_encode_alike_for_the_networks_device(make_backbone, monkeypatch, family):
    backbone = make_backbone(family=family)
    before, nothing = backbone.encode_prompts(["a cat", "dog"]), backbone.unconditional()
    moved = []
    for name, part in backbone.pipeline.components.items():
        if isinstance(part, nn.Module):
            monkeypatch.setattr(part, "to", lambda device, name=name: moved.append((name, device)))
    backbone.place_encoders("cpu")
    encoders = {name for name in backbone.pipeline.components if name.startswith("text_encoder")}
    assert set(moved) == {(name, "cpu") for name in encoders | {"vae"}}
    monkeypatch.undo()
    after = backbone.encode_prompts(["a cat", "dog"])
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    # a network on another device than the encoders gets its condition there
    backbone.network.to("meta")
    for cond, shape in ((backbone.encode_prompts(["a cat", "dog"]), before), (backbone.unconditional(), nothing)):
        assert {value.device.type for value in cond.values()} == {"meta"}
        assert {name: value.shape for name, value in cond.items()} == {n: v.shape for n, v in shape.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_text_encoders_are_freed_and_the_kept_prompts_have_their_conditions(teacher_folders, family):
    backbone = load_backbone(teacher_folders[family])
    encoders = [weakref.ref(encoder) for encoder in backbone.text_encoders]
    expected, nothing = backbone.encode_prompts(["a cat", "a", "a cat"]), backbone.unconditional()
    conds = {prompt: backbone.encode_prompts([prompt]) for prompt in ("a cat", "dog", "a")}
    for name in backbone.size_names:
        conds["a"][name] += 8  # of a picture of another shape
    backbone.keep_prompts({prompt: functools.partial(dict, cond) for prompt, cond in conds.items()})
    assert [encoder() for encoder in encoders] == [None] * len(encoders)
    kept, without = backbone.encode_prompts(["a cat", "a", "a cat"]), backbone.unconditional()
    assert (kept.keys(), without.keys()) == (expected.keys(), nothing.keys())
    for name, value in without.items():
        assert torch.equal(value, nothing[name])
    for name, value in kept.items():  # in a batch and alone, they are rounded each in its own way
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_a_text_encoder_that_took_turns_is_freed_at_once(teacher_folders):
    """Its hook leaves a forward pass that refers to it."""
    backbone = load_backbone(teacher_folders["sd1"])
    (encoder,) = backbone.text_encoders
    backbone._turns = [cpu_offload_with_hook(encoder, torch.device("cpu"))[1]]
    backbone.place_encoders("cpu")
    encoder = weakref.ref(encoder)
    gc.disable()
    try:
        backbone.keep_prompts({})
        assert encoder() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_text_encoders_in_turn_are_on_the_device_one_at_a_time(make_backbone, monkeypatch, family):
    """Shown on the meta device, with the weights kept beside while they are there."""
    backbone = make_backbone(family=family)
    expected = backbone.encode_prompts(["a cat", "dog"])
    encoders, order, most = backbone.text_encoders, [], 0

    def there():
        return [encoder for encoder in encoders if next(encoder.parameters()).is_meta]

    kept = [copy.deepcopy(encoder) for encoder in encoders]

    def move(encoder, device):
        nonlocal most
        index = encoders.index(encoder)
        if torch.device(device).type == "meta":
            order.append(index)
            nn.Module.to(encoder, "meta")
        elif encoder in there():
            encoder.to_empty(device="cpu")
            for named in (nn.Module.named_parameters, nn.Module.named_buffers):
                tensors = dict(named(kept[index], remove_duplicate=False))
                for name, tensor in named(encoder, remove_duplicate=False):
                    tensor.data.copy_(tensors[name])
        most = max(most, len(there()))
        return encoder

    monkeypatch.setattr(backbone.vae, "to", lambda device: None)
    for encoder in encoders:
        monkeypatch.setattr(type(encoder), "to", move)
    backbone.in_turn = True
    backbone.place_encoders("meta")
    assert not there()
    backbone.network.to("meta")
    for _ in range(2):
        backbone.encode_prompts(["a cat", "dog"])
    assert (order, most) == (list(range(len(encoders))) * 2, 1)
    backbone.place_encoders("cpu")
    assert not there()
    backbone.network.to_empty(device="cpu")
    assert all(torch.equal(value, expected[name]) for name, value in backbone.encode_prompts(["a cat", "dog"]).items())
    assert len(order) == 2 * len(encoders), "no turns once they are parked"


@pytest.mark.parametrize("critic", ["lora", "full"])
def test_to_moves_every_model(teacher_folders, critic):
    backbone = load_backbone(teacher_folders["sd1"])
    backbone.add_student("full")
    backbone.add_critic(4, critic)
    assert backbone.to("meta") is backbone
    assert backbone.device.type == "meta"
    modules = [*backbone.copies.values(), backbone.critic_model, backbone.network, backbone.vae]
    modules.append(backbone.pipeline.text_encoder)
    assert {p.device.type for module in modules for p in module.parameters()} == {"meta"}


# --- compiled ------------------------------------------------------------------------------------------------


def test_a_compiled_network_follows_the_adapter_that_is_on(perturb):
    """Dynamo's trace, run without a compiler: what is on is a guard of it, not baked in."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    adapters = Adapters(net)
    for seed, name in enumerate(("one", "two")):
        adapters.add(name, ["0", "2"], rank=2, alpha=3.0)
        perturb(adapters.parameters(name), seed)
    x = torch.randn(4, 6)

    def answers():
        found = []
        for name in (None, "one", "two", "one", None):
            with adapters.use(name):
                y = net(x)
                found.append(y)
            if name:
                found += torch.autograd.grad(y.sum(), tuple(adapters.parameters(name).values()))
        return found

    expected = answers()
    net.compile(backend="eager", fullgraph=True)
    assert all(map(torch.equal, answers(), expected))


@pytest.mark.parametrize("broken", [False, True])
def test_a_compiled_network_computes_activations_again(perturb, broken):
    """Within its graph; and where that breaks in a block, under the adapter of the forward pass, whichever is on."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    adapters = Adapters(block)
    for seed, name in enumerate(("one", "two")):
        adapters.add(name, ["0"], rank=2, alpha=3.0)
        perturb(adapters.parameters(name), seed)
    x, graphs = torch.randn(4, 6), []

    def gradients(net):
        with adapters.use("one"):
            y = net(x)
        with adapters.use("two"):
            return torch.autograd.grad(y.sum(), tuple(adapters.parameters("one").values()))

    def compiler(graph, inputs):
        graphs.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    def function(x):
        if broken:
            torch._dynamo.graph_break()
        return block(x)

    def again(x):
        return adapters.checkpointed(function, x)

    expected = gradients(block)
    assert all(map(torch.equal, gradients(torch.compile(again, backend=compiler, fullgraph=not broken)), expected))
    held = [sum("checkpoint" in str(node.target) for node in graph.graph.nodes) for graph in graphs]
    assert held == [1] if not broken else not any(held)


def test_compiling_reaches_the_network_and_its_copies(make_backbone, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    backbone = make_backbone("full", critic_rank=4, critic="full")
    backbone.compile()
    assert compiled == [backbone.network, *backbone.copies.values()]


def test_a_parked_vae_decodes_where_the_latents_are_and_goes_back(make_backbone, monkeypatch):
    backbone = make_backbone()
    backbone.place_encoders("cpu")
    moved, meta = [], copy.deepcopy(backbone.vae).to("meta")
    monkeypatch.setattr(backbone.vae, "to", lambda device: moved.append(str(device)))
    monkeypatch.setattr(backbone.vae, "decode", meta.decode)
    assert backbone.decode(torch.zeros(1, *backbone.latent_shape, device="meta")).device.type == "meta"
    assert moved == ["meta", "cpu"]
    moved.clear()
    monkeypatch.undo()
    monkeypatch.setattr(backbone.vae, "to", moved.append)
    backbone.decode(torch.zeros(1, *backbone.latent_shape))
    assert not moved, "one that is there already is left alone"
