"""An export holds one network: what it writes goes out one tensor at a time, and it is read back after that."""

import ctypes
import gc
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from torch import nn

from scott.commands.export import export, export_finished
from scott.export import onnx
from scott.teachers import load_backbone
from scott.teachers.fingerprint import identity
from scott.training.checkpoint import save_checkpoint
from scott.training.config import DistillConfig

PROC = Path("/proc/self")
ALONE = get_context("forkserver")
ALONE.set_forkserver_preload(["scott.commands.export", "scott.export.onnx", "diffusers.pipelines.stable_diffusion"])
"""Of a process of its own for each measurement: what other tests left is freed at times of its own."""


def resident(field):
    """Bytes of now: "RssAnon" is what the process holds, without pages of files, which the system may take back."""
    (line,) = (line for line in (PROC / "status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


class Peak:
    """The most that the process holds within the block, looked at each millisecond."""

    def __enter__(self):
        self.most, self.over = 0, threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def _look(self):
        while not self.over.wait(0.001):
            self.most = max(self.most, resident("RssAnon"))

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


@pytest.fixture(scope="module")
def big_teacher(teacher_folders, tmp_path_factory):
    """(folder, bytes of the network): the tiny SD1 with a network of about 60 MB."""
    pipe = DiffusionPipeline.from_pretrained(teacher_folders["sd1"])
    config = {**pipe.unet.config, "block_out_channels": (192, 384), "attention_head_dim": 8}
    torch.manual_seed(0)
    pipe.unet = UNet2DConditionModel.from_config(config)
    folder = tmp_path_factory.mktemp("big")
    pipe.save_pretrained(folder)
    return folder, sum(p.numel() * p.element_size() for p in pipe.unet.parameters())


def held(run, end):
    """Bytes that the end of a run holds at most beside what the process holds before."""
    config = DistillConfig.load(run / "config.json")
    teacher = identity(load_backbone(config.teacher))
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed is not kept to be used again unseen
    before = resident("RssAnon")
    with Peak() as peak:
        if end == "checkpoint":
            export(run, end)
        else:
            export_finished(config, teacher)
    return peak.most - before


@pytest.mark.parametrize(("train", "end"), [("lora", "finished"), ("full", "finished"), ("lora", "checkpoint")])
def test_the_end_of_a_run_holds_less_than_a_network_beside_the_mapped_one(big_teacher, tmp_path, train, end):
    """A pipeline and, of a LoRA, its file too; or one file of all. Those of the teacher are mapped."""
    teacher, size = big_teacher
    assert 50e6 < size < 200e6
    backbone = load_backbone(teacher)
    backbone.add_student(train, rank=4, alpha=4.0)
    config = DistillConfig(
        teacher=str(teacher), data="mini", out=tmp_path, train=train, lora_rank=4, max_steps=1, guidance=3.0
    )
    save_checkpoint(tmp_path / "checkpoints", 1, {"target": backbone.target_parameters()}, {})
    (tmp_path / "config.json").write_text(config.to_json())
    with ProcessPoolExecutor(1, mp_context=ALONE) as alone:
        most = alone.submit(held, tmp_path, end).result()
    assert most < size


class Layers(nn.Sequential):
    """Of 4 MB each, whose weights fp16 holds exactly."""

    def __init__(self, number):
        super().__init__(*(nn.Linear(1024, 1024).half().float() for _ in range(number)))

    def forward(self, input):
        return (super().forward(input),)


def held_by_onnx(file):
    """Bytes beside a module of 64 MB that its graph in fp16 holds at most, while it is written."""
    once, graph = (onnx._Graph(Layers(n), {"input": torch.randn(2, 1024)}, ["output"]).eval() for n in (1, 16))
    onnx._export(once, file, torch.float16)  # which imports what it needs
    before = resident("RssAnon")
    with Peak() as peak:
        onnx._export(graph, file, torch.float16)
    return peak.most - before


def test_weights_of_a_graph_are_rounded_one_at_a_time(tmp_path):
    with ProcessPoolExecutor(1, mp_context=ALONE) as alone:
        most = alone.submit(held_by_onnx, tmp_path / "model.onnx").result()
    assert most < 16 * 2**20
    assert (tmp_path / "model.onnx.data").stat().st_size == pytest.approx(32 * 2**20, rel=0.01)
