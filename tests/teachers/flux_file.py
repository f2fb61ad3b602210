"""FLUX's transformer in the names of its original code, and diffusers' converter of these for networks of any width."""

from types import FunctionType

import torch
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

PUBLISHED_WIDTH = 3072
EMBEDDERS = {"timestep": "time_in", "text": "vector_in", "guidance": "guidance_in"}
STREAMS = {
    "img": ("norm1", "to_{}", "norm_{}", "to_out.0", "ff"),
    "txt": ("norm1_context", "add_{}_proj", "norm_added_{}", "to_add_out", "ff_context"),
}


def original_names(network):
    """The state of a `FluxTransformer2DModel` as the checkpoint of the original code has it."""
    state = dict(network.state_dict())
    found = {}

    def move(new, *old, dim=0):
        for kind in ("weight", "bias"):
            parts = [state.pop(f"{name}.{kind}") for name in old if f"{name}.{kind}" in state]
            if parts:
                found[f"{new}.{kind}"] = torch.cat(parts, dim)

    def scale(new, old):
        found[f"{new}.scale"] = state.pop(f"{old}.weight")

    for embedder, new in EMBEDDERS.items():
        for mine, theirs in (("linear_1", "in_layer"), ("linear_2", "out_layer")):
            move(f"{new}.{theirs}", f"time_text_embed.{embedder}_embedder.{mine}")
    move("txt_in", "context_embedder")
    move("img_in", "x_embedder")
    move("final_layer.linear", "proj_out")
    for kind in ("weight", "bias"):  # shift before scale there
        scaled, shift = state.pop(f"norm_out.linear.{kind}").chunk(2)
        found[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scaled])
    for i in range(len(network.transformer_blocks)):
        old = f"transformer_blocks.{i}"
        for stream, (norm, project, normed, out, forward) in STREAMS.items():
            new = f"double_blocks.{i}.{stream}"
            move(f"{new}_mod.lin", f"{old}.{norm}.linear")
            move(f"{new}_attn.qkv", *(f"{old}.attn.{project.format(x)}" for x in "qkv"))
            move(f"{new}_attn.proj", f"{old}.attn.{out}")
            move(f"{new}_mlp.0", f"{old}.{forward}.net.0.proj")
            move(f"{new}_mlp.2", f"{old}.{forward}.net.2")
            for x, name in (("q", "query"), ("k", "key")):
                scale(f"{new}_attn.norm.{name}_norm", f"{old}.attn.{normed.format(x)}")
    for i in range(len(network.single_transformer_blocks)):
        old, new = f"single_transformer_blocks.{i}", f"single_blocks.{i}"
        move(f"{new}.modulation.lin", f"{old}.norm.linear")
        move(f"{new}.linear1", *(f"{old}.attn.to_{x}" for x in "qkv"), f"{old}.proj_mlp")
        move(f"{new}.linear2", f"{old}.proj_out")
        for x, name in (("q", "query"), ("k", "key")):
            scale(f"{new}.norm.{name}_norm", f"{old}.attn.norm_{x}")
    assert not state, sorted(state)
    return found


def converter(width):
    """diffusers' own, with a width in the place of the published one, which its code says as a number."""
    code = convert_flux_transformer_checkpoint_to_diffusers.__code__
    assert PUBLISHED_WIDTH in code.co_consts
    constants = tuple(width if value == PUBLISHED_WIDTH else value for value in code.co_consts)
    return FunctionType(code.replace(co_consts=constants), convert_flux_transformer_checkpoint_to_diffusers.__globals__)
