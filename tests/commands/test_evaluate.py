"""`scott evaluate` on any captioned pictures: what is read of them, and the rows that come of it."""

import errno
import json
import math
import os
import re
import shutil
from itertools import zip_longest
from pathlib import Path

import pytest
import torch

from scott import targets as module
from scott.app.models import Models, teacher_source
from scott.commands.evaluate import check_replaced, evaluate_target
from scott.data.sources import open_source
from scott.errors import NotFinite, UserError
from scott.evaluation import Results, networks
from scott.evaluation.evaluating import evaluate_stored
from scott.evaluation.pictures import save_picture
from scott.evaluation.references import source_reference
from scott.evaluation.results import FLOOR
from scott.evaluation.stored import StoredPictures
from scott.export.info import STUDENT_INFO, StudentInfo
from scott.export.trained import student_grid
from scott.measured import Measured
from scott.mini import embedded, scenes
from scott.mini.protocol import ASKED, mini_reference
from scott.mini.scenes import Scenes, pictures
from scott.recipes.configs import sd15
from scott.samplers import StudentSampler
from scott.students import Student
from scott.targets import target_of
from scott.teacher_source import TeacherSource
from scott.teachers import load_backbone


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve held-out scenes, and two files that are none."""
    folder = tmp_path_factory.mktemp("pictures")
    held_out = Scenes(12, "held-out")
    for index in range(12):
        image, caption = held_out[index]
        image.save(folder / f"{index:02d}.png")
        (folder / f"{index:02d}.txt").write_text(caption)
    (folder / "00a.png").write_bytes(b"no picture")
    (folder / "00a.txt").write_text("a caption")
    held_out[0][0].save(folder / "00b.png")  # without a caption
    return folder


@pytest.fixture(scope="module")
def features():
    return embedded.load_features()


@pytest.fixture
def untrained(monkeypatch):
    """The embedded teacher in place of a student that is loaded."""
    backbone = embedded.load_teacher()
    grid = student_grid(backbone.schedule, 25)
    student = Student("s", backbone, backbone.teacher, grid, None)
    monkeypatch.setattr(module, "load_student", lambda name, dtype: student)
    monkeypatch.setattr(module, "is_student", lambda name: True)
    return student


def ignore(*_):
    pass


def oneline(text):
    return " ".join(text.split())


def test_the_first_pictures_that_can_be_read_are_the_reference(folder, features):
    reference = source_reference(open_source(str(folder)), 11, 64, {"features": features}, ignore)
    assert reference.prompts == Scenes(12, "held-out").captions()[:11]
    assert torch.allclose(
        reference.real["features"], features.images(pictures(Scenes(11, "held-out").scenes())), atol=1e-4
    )


def test_a_cache_that_cannot_be_read_or_written_is_done_without(features, tmp_path, monkeypatch):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(10):
        image, caption = Scenes(10, "held-out")[index]
        image.save(pictures / f"{index}.png")
        (pictures / f"{index}.txt").write_text(caption)

    def reference(cache):
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        made = source_reference(open_source(str(pictures)), 10, 64, {"features": features}, ignore, key=("test",))
        return made.real["features"]

    first = reference(tmp_path / "cache")
    (kept,) = tmp_path.rglob("*.safetensors")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:100])
    assert torch.equal(reference(tmp_path / "cache"), first)
    assert kept.read_bytes() == whole
    assert torch.equal(reference(os.devnull), first)


def test_pictures_of_another_size_are_cropped_to_the_students(tmp_path, features):
    """A wide picture is measured as the square of its centre."""
    for index in range(10):
        image, caption = Scenes(10, "held-out")[index]
        wide = image.crop((-32, 0, 96, 64)).resize((256, 128))  # black beside it
        wide.save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text(caption)
    reference = source_reference(open_source(str(tmp_path)), 10, 64, {"features": features}, ignore)
    own = features.images(pictures(Scenes(10, "held-out").scenes()))
    similarity = torch.nn.functional.cosine_similarity(reference.real["features"], own)
    assert similarity.min() > 0.9


@pytest.mark.parametrize("samples", [9, 100])
def test_too_few_pictures_are_refused(samples, tmp_path, features):
    for index in range(5):
        Scenes(5)[index][0].save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text("a caption")
    with pytest.raises(UserError, match="expected 10 or more"):
        source_reference(open_source(str(tmp_path)), samples, 64, {"features": features}, ignore)


def test_a_floor_of_fewer_pictures_is_refused(folder, tmp_path, features):
    for index in range(5):
        Scenes(5)[index][0].save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text("a caption")
    with pytest.raises(UserError, match="got 5 readable pictures in --floor-data; expected as many as are drawn, 10"):
        source_reference(
            open_source(str(folder)), 10, 64, {"features": features}, ignore, floor=open_source(str(tmp_path))
        )


def test_results_elsewhere_leave_a_runs_cards_alone(untrained, folder, tmp_path, monkeypatch):
    written, run = [], tmp_path / "run"
    run.mkdir()
    run.joinpath("config.json").write_text(sd15(data="d", out=run).to_json())
    monkeypatch.setattr(module, "check_run", lambda folder: None)
    monkeypatch.setattr("scott.commands.evaluate.write_cards", lambda run, config: written.append(run))
    few = Measured(data=str(folder), features=str(embedded.CLIP), samples=10, guidance=2.5, bootstrap=0)
    evaluate_target(str(run), (1,), few, out=tmp_path / "r.json", report=ignore)
    assert written == []
    evaluate_target(str(run), (1,), few, out=run / "r.json", report=ignore)
    assert written == [run]


def test_rows_are_not_lost(untrained, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = {"data": str(folder), "features": str(embedded.CLIP), "samples": 10, "guidance": 2.5, "bootstrap": 0}
    _, file = evaluate_target("s", (1, 2), Measured(**few), out=None, report=ignore)
    content = file.read_text()
    for steps, changes, said in (
        ((1,), {}, "has figures of student-2, which would be lost; write elsewhere with --out"),
        ((1, 2), {"guidance": 2.0}, "has figures of student-1 at guidance 2.5, and these would be at 2.0;"),
    ):
        with pytest.raises(UserError, match=said):
            evaluate_target("s", steps, Measured(**few | changes), out=None, report=ignore)
    assert file.read_text() == content
    evaluate_target("s", (1, 2, 4), Measured(**few), out=None, report=ignore)
    assert [row.name for row in Results.load(file).rows] == ["student-1", "student-2", "student-4"]


def test_figures_that_find_no_room_at_last_are_shown(untrained, folder, tmp_path, monkeypatch, capsys):
    def full(self, path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Results, "save", full)
    few = Measured(data=str(folder), features=str(embedded.CLIP), samples=10, guidance=2.5, bootstrap=0)
    with pytest.raises(OSError, match="No space left"):
        evaluate_target("s", (1,), few, out=tmp_path / "r.json", report=ignore)
    assert "student-1" in capsys.readouterr().out


def test_what_cannot_be_read_is_counted(folder, features):
    reference = source_reference(open_source(str(folder)), 100, 64, {"features": features}, ignore)
    assert len(reference.prompts) == 12
    assert reference.skipped == {"not-a-picture": 1, "no-caption": 1}


def test_teacher_and_student_are_measured_on_the_same_pictures(untrained, folder, tmp_path):
    measured = Measured(
        data=str(folder), features=str(embedded.CLIP), guidance=2.5, teacher="mini", teacher_steps=(4, 1)
    )
    results, file = evaluate_target("s", (1,), measured, out=tmp_path / "results.json", report=ignore)
    rows = {row.name: row for row in results.rows}
    assert list(rows) == ["teacher-ddim-4", "teacher-ddim-1", "student-1"]
    assert results.baseline() is rows["teacher-ddim-4"]
    assert rows["teacher-ddim-4"].network_calls == 8
    assert rows["teacher-ddim-4"].fid < rows["teacher-ddim-1"].fid
    assert {row.samples for row in results.rows} == {12}
    meta = json.loads(file.read_text())["meta"]
    assert (meta["samples"], meta["left out"]) == (12, "not-a-picture 1, no-caption 1")
    assert "split" not in meta


def test_what_the_teachers_pictures_show_and_how_they_vary(command_line, tmp_path, monkeypatch):
    """Place, size and background against what was asked for, the floor 1; the spread beside that of the data."""
    file = tmp_path / "results.json"
    monkeypatch.setattr("scott.evaluation.evaluating.SPREAD_CAPTIONS", 5)
    shown = ["--metrics", "fid", "place", "size", "background", "--features", "efficientnet", "--bootstrap", 0]
    arguments = ["--steps", 1, 6, "--guidance", 2.5, "--samples", 10, "--diversity", 2, "--out", file]
    code, _, error = command_line("evaluate", "mini", *shown, *arguments)
    assert code == 0, error
    results = Results.load(file)
    rows = {row.name: row.metrics for row in results.rows}
    few, more = rows["mini-ddim-1"], rows["mini-ddim-6"]
    assert more["background"].value > 0.7
    assert more["fid"].value < few["fid"].value
    assert all(0 <= few[name].value <= 1 for name in ("place", "size", "background"))
    assert more["diversity"].floor == few["diversity"].floor == rows[FLOOR]["diversity"].value > 0
    assert {row.network_calls for row in results.rows} == {0, 2, 12}


@pytest.fixture
def stored(tmp_path):
    """`stored(scenes, captions)`: the folder of their pictures, in that order, with their own captions or others."""

    def write(drawn, captions=()):
        folder = tmp_path / "stored"
        folder.mkdir(exist_ok=True)
        for index, (this, caption) in enumerate(zip_longest(drawn, captions)):
            scenes.render(this).save(folder / f"{index:02d}.png")
            (folder / f"{index:02d}.txt").write_text(caption or this.caption)
        return folder

    return write


@pytest.fixture(scope="module")
def asked():
    """The scenes whose captions mini's protocol asks for."""
    return Scenes(1000, "held-out", ASKED).scenes()


def test_stored_pictures_are_read_by_their_own_captions(command_line, asked, stored, tmp_path):
    """In any order, and of later scenes than there are pictures."""
    arguments = [
        "--metrics",
        "fid",
        "place",
        "size",
        "background",
        "--bootstrap",
        0,
        "--out",
        tmp_path / "results.json",
    ]
    code, _, error = command_line("evaluate", stored(asked[-2:] + asked[10::-1]), *arguments)
    assert code == 0, error
    metrics = Results.load(tmp_path / "results.json").rows[-1].metrics
    assert {metrics[name].value for name in ("place", "size", "background")} == {1.0}

    code, _, error = command_line("evaluate", stored(asked[:12], ["a cat"]), *arguments)
    assert code == 2
    assert "got a picture of 'a cat' for the metric place; expected one of the 998 captions" in oneline(error)


DRAWING = {
    "guidance": 4,
    "scheduler": "DDIMScheduler",
    "lora": "foo",
    "steps": 7,
    "images": "kept",
    "seeds": (1, 2),
    "precision": "bf16",
    "diversity": 2,
    "teacher-steps": 2,
}


@pytest.mark.parametrize(("flag", "value"), DRAWING.items())
def test_how_stored_pictures_are_drawn_is_not_asked(flag, value, command_line, asked, stored):
    given = value if isinstance(value, tuple) else (value,)
    code, _, error = command_line("evaluate", stored(asked[:1]), f"--{flag}", *given)
    assert code == 2
    assert re.search(f"got --{flag} for .*/stored, whose pictures are there already; leave it out", oneline(error))


def test_kept_pictures_stand_beside_what_drew_them(command_line, tmp_path):
    """The same row, but for its method; several rows or seeds are none."""
    drawing = ["--steps", 2, "--guidance", 2.5, "--samples", 10, "--images", tmp_path / "kept"]
    shown = ["--metrics", "fid,coverage", "place", "--bootstrap", 2]
    for seeds, name in (((1, 2), "both"), ((1,), "drawn")):
        words = ["evaluate", "mini", *drawing, *shown, "--seeds", *seeds, "--out", tmp_path / f"{name}.json"]
        code, _, error = command_line(*words)
        assert code == 0, error
    row = tmp_path / "kept" / "mini-ddim-2"
    for place in row.parent, row:
        code, _, error = command_line("evaluate", place, *shown, "--out", tmp_path / "kept.json")
        assert code == 2
        assert re.search("has pictures of 2 rows or seeds, .*seed-1 and .*seed-2; name one of them", oneline(error))
    shutil.copytree(row / "seed-1", row / "seed-3")
    for seed in 1, 3:
        code, _, error = command_line("evaluate", row / f"seed-{seed}", *shown, "--out", tmp_path / "kept.json")
        assert code == 0, error
        (ours,), (theirs,) = (Results.load(tmp_path / f"{name}.json").rows[1:] for name in ("kept", "drawn"))
        assert (ours.name, ours.steps, ours.network_calls, ours.guidance) == ("mini-ddim-2", 2, 4, 2.5)
        assert ours.seeds == ((1,) if seed == 1 else ()), "a folder's name is believed where the pictures bear it out"
        assert ours.metrics == theirs.metrics
    assert not {"seeds", "precision", "batch size"} & Results.load(tmp_path / "kept.json").meta.keys(), "not told"
    code, out, error = command_line("compare", tmp_path / "kept.json", tmp_path / "drawn.json")
    assert code == 0, error
    assert "| mini-ddim-2 | 2 | 4 | 2.5 |" in out.replace("kept/", "")


SOURCES = {
    "names": "nosuch",
    "floor-data": "nosuch",
    "data-split": "val",
    "image-column": "a",
    "caption-column": "b",
    "size": 32,
}


@pytest.mark.parametrize(("flag", "value"), SOURCES.items())
def test_what_embedded_data_do_not_read_is_refused(flag, value, command_line):
    code, _, error = command_line("evaluate", "mini", f"--{flag}", value)
    assert (code, f"got --{flag} with the protocol mini, which does not read it; leave it out" in oneline(error)) == (
        2,
        True,
    )


def test_a_split_is_of_embedded_data(command_line, folder):
    code, _, error = command_line("evaluate", "mini", "--data", folder, "--split", "validation")
    assert (code, "got --split with the protocol custom" in oneline(error)) == (2, True)


def test_diversity_stands_beside_the_datas_whatever_else_is_measured(command_line, tmp_path):
    file = tmp_path / "results.json"
    words = ["--metrics", "clip-score", "--diversity", 2, "--steps", 1, "--samples", 10, "--bootstrap", 0]
    code, out, error = command_line("evaluate", "mini", *words, "--out", file)
    assert code == 0, error
    floor, row = Results.load(file).rows
    assert (floor.name, set(floor.metrics) >= {"diversity", "style 3D"}) == (FLOOR, True)
    assert row.metrics["diversity"].floor == floor.metrics["diversity"].value
    assert "Diversity and styles: 2 pictures of each of 10 captions." in out


def test_only_what_a_metric_reads_is_loaded(command_line, tmp_path, monkeypatch):
    """No Inception for the CLIP score of other data, nor any network for what pictures themselves show."""
    monkeypatch.setattr(networks, "NETWORKS", {"inception": lambda *_: pytest.fail("nothing reads it")})
    words = ["--steps", 1, "--samples", 10, "--bootstrap", 0, "--guidance", 2.5, "--features", "inception"]
    for metrics, loaded in ((("clip-score",), {"clip"}), (("place",), set())):
        file = tmp_path / f"{metrics[0]}.json"
        code, _, error = command_line("evaluate", "mini", "--metrics", *metrics, *words, "--out", file)
        assert code == 0, error
        results = Results.load(file)
        assert results.meta.get("networks", {}).keys() == loaded
        assert results.rows[-1].metrics.keys() == {*metrics}
    monkeypatch.setattr(networks, "NETWORKS", {"inception": lambda *_: embedded.load_features()})
    more = ["--metrics", "clip-score", "--diversity", 2, "--out", tmp_path / "diversity.json"]
    code, _, error = command_line("evaluate", "mini", *words, *more)
    assert code == 0, error
    assert Results.load(tmp_path / "diversity.json").meta["networks"].keys() == {"clip", "features"}


def test_one_process_measures_stored_pictures(command_line, asked, stored, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, error = command_line("evaluate", stored(asked[:1]), "--images", "kept")
    assert code == 2
    assert "got 2 processes for" in error
    assert "measure in one" in oneline(error)


def test_stored_pictures_are_the_same_each_time(asked, stored):
    drawn = StoredPictures(Path("stored"), open_source(str(stored(asked[:12]))))
    drawn.size = 64
    passes = [torch.cat([pixels for pixels, _ in drawn.batches(12, size)]) for size in (5, 12)]
    assert torch.equal(*passes)
    assert torch.equal(passes[0], pictures(asked[:12]))
    assert drawn.names == [f"{index:02d}.png" for index in range(12)]


@pytest.mark.parametrize(("last", "cost"), [({"seconds": 3.5, "calls": 2}, (1.5, 2)), ({"seconds": None}, (1.0, 0))])
def test_stored_pictures_cost_what_they_say(last, cost, asked, stored, features):
    """The first batch, of five, warms up; of the last, where one does not say them, seconds are not known."""
    folder = stored(asked[:12])
    for index in range(12):
        made = {"seconds": 9.0 if index < 5 else 1.0 if index < 10 else 2.0, "calls": 2}
        save_picture(scenes.render(asked[index]), folder / f"{index:02d}.png", last if index == 11 else made)
    drawn = StoredPictures(Path("stored"), open_source(str(folder)))
    drawn.size = 64
    reference = mini_reference(12, instruments={"features": features, "clip": features})
    row = evaluate_stored(drawn, reference, batch_size=5)
    assert (row.seconds_per_image, row.network_calls) == cost


def test_a_stored_picture_with_an_empty_caption_is_one_line(asked, stored):
    with pytest.raises(UserError, match=r"00.png of the pictures to measure cannot be used: empty-caption"):
        StoredPictures(Path("stored"), open_source(str(stored(asked[:2], [" "]))))


@pytest.mark.parametrize(("part", "what"), [("unet", "UNet2DConditionModel"), ("text_encoder", "CLIPTextModel")])
def test_a_part_of_a_pipeline_is_no_run(part, what, teacher_folders):
    for options in {}, {"scheduler": "DDIMScheduler"}:
        with pytest.raises(UserError, match=rf"{part} is no run: its config.json is of \W*{what}\W*; name a run, or"):
            target_of(str(teacher_folders["sd1"] / part), (1,), Measured(**options), torch.float32)


def test_a_run_stands_for_its_lora(teacher_folders, style_lora, tmp_path):
    """As it does for `scott sample --lora`; one without is told apart from weights that do not open."""
    run, teacher = tmp_path / "mine", teacher_folders["sd1"]
    run.mkdir()
    (run / "config.json").write_text("{}")
    with pytest.raises(UserError, match="mine is a run without a LoRA file"):
        target_of(str(teacher), (1,), Measured(lora=str(run)), torch.float32)
    shutil.copytree(style_lora("sd1").parent, run / "lora")
    of_run, of_file, plain = (
        target_of(str(teacher), (1,), Measured(lora=lora), torch.float32).samplers
        for lora in (str(run), str(style_lora("sd1")), None)
    )
    assert [*of_run] == [f"{teacher.name}+mine-ddim-1"]
    drawn, same, other = (next(iter(one.values()))(["a cat"], 0) for one in (of_run, of_file, plain))
    assert torch.equal(drawn, same)
    assert not torch.equal(drawn, other)


def test_results_say_what_was_measured(teacher_folders, style_lora, folder, tmp_path, monkeypatch):
    """A LoRA, a scheduler, the data as they were; two commands that differ in one of them do in what is kept too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    few = {"data": str(folder), "features": str(embedded.CLIP), "samples": 10, "metrics": ("fid",), "bootstrap": 0}

    def kept(**given):
        measured = Measured(**few | given)
        return evaluate_target(str(teacher_folders["sd1"]), (1,), measured, out=tmp_path / "r.json", report=ignore)[0]

    plain, styled = kept(), kept(lora=str(style_lora("sd1")))
    name = teacher_folders["sd1"].name
    assert plain.rows[-1].name == f"{name}-ddim-1"
    assert styled.rows[-1].name == f"{name}+pytorch_lora_weights-ddim-1"
    assert "lora" not in plain.meta
    assert styled.meta == plain.meta | {"lora": str(style_lora("sd1"))}
    assert plain.meta["scheduler"] == "DDIMScheduler"
    assert (plain.meta["precision"], plain.meta["batch size"], plain.meta["bootstrap"]) == ("fp32", 64, 0)
    assert plain.meta["data version"] == open_source(str(folder)).version[:12]
    names = tmp_path / "names.txt"
    names.write_text("".join(f"{index:02d}.png\n" for index in reversed(range(10))))
    (others := tmp_path / "others").mkdir()
    for index in range(10):
        Scenes(10)[index][0].save(others / f"{index}.png")
        (others / f"{index}.txt").write_text("a caption")
    changes = {"names": names, "batch_size": 5, "floor_data": str(others), "scheduler": "EulerDiscreteScheduler"}
    differing = {"names": {"names", "prompts", "real pictures"}}  # and what was left out on the way to them
    for key, value in changes.items():
        other = kept(**{key: value}).meta
        changed = {one for one in other.keys() | plain.meta.keys() if other.get(one) != plain.meta.get(one)}
        assert changed - {"left out"} == differing.get(key, {key.replace("_", " ")})


def test_what_was_measured_before_a_failure_is_said(untrained, folder, tmp_path, monkeypatch, capfd):
    """No file is written, and none replaced."""

    def broken(self, prompts, seed, drawn=StudentSampler.latents):
        return drawn(self, prompts, seed) * (math.nan if self.steps == 2 else 1)

    monkeypatch.setattr(StudentSampler, "latents", broken)
    few = Measured(data=str(folder), features=str(embedded.CLIP), samples=10, guidance=2.0, bootstrap=0)
    with pytest.raises(NotFinite):
        evaluate_target("s", (1, 2), few, out=tmp_path / "r.json", report=ignore)
    said = "".join(capfd.readouterr())
    assert "student-1" in said
    assert "student-2" not in said
    assert not list(tmp_path.iterdir())


def test_the_list_beside_results_keeps_their_whole_name(untrained, folder, tmp_path):
    few = Measured(data=str(folder), features=str(embedded.CLIP), samples=10, guidance=2.0, bootstrap=0)
    evaluate_target("s", (1,), few, out=tmp_path / "w1.5", report=ignore)
    assert {file.name for file in tmp_path.iterdir()} == {"w1.5", "w1.5.prompts.csv"}


def test_results_of_other_conditions_are_not_replaced(untrained, folder, tmp_path, monkeypatch):
    """Unless their file is named; the same command replaces its own."""
    monkeypatch.chdir(tmp_path)
    few = {"data": str(folder), "features": str(embedded.CLIP), "samples": 10, "guidance": 2.5, "bootstrap": 0}
    _, file = evaluate_target("s", (1,), Measured(**few), out=None, report=ignore)
    content = file.read_text()
    for target, changes, said in (
        ("s", {"bootstrap": 2}, "has figures of bootstrap 0, and these would be of 2; write them elsewhere with --out"),
        ("s", {"metrics": ("fid",)}, "has figures of metrics fid clip-score coverage, and these would be of fid;"),
        ("other", {}, "has figures of target s, and these would be of other"),
    ):
        with pytest.raises(UserError, match=said):
            evaluate_target(target, (1,), Measured(**few | changes), out=None, report=ignore)
    assert file.read_text() == content
    meta = json.loads(content)["meta"]
    with pytest.raises(UserError, match=r"has figures of features CLIP clip: .* and these would be of Inception;"):
        check_replaced(file, meta | {"networks": meta["networks"] | {"features": "Inception"}}, in_run=False)
    check_replaced(file, meta | {"target": "./s", "scott": "later"}, in_run=True)
    assert len(evaluate_target("s", (1, 2), Measured(**few), out=None, report=ignore)[0].rows) == 2
    evaluate_target("other", (1,), Measured(**few), out=file, report=ignore)
    assert Results.load(file).meta["target"] == "other"
    old = {key: value for key, value in Results.load(file).meta.items() if key in ("target", "samples")}
    Results(meta=old).save(file)  # as it was written before it said more
    evaluate_target("other", (1,), Measured(**few), out=None, report=ignore)
    assert Results.load(file).meta["bootstrap"] == 0


BAD = {
    "an unknown metric": ({"metrics": ("fid", "lpips")}, "got the metric lpips; expected some of fid, "),
    "what is read off mini alone": ({"data": "PICTURES", "metrics": ("place",)}, "pictures of mini alone"),
    "a protocol's data": ({"protocol": "coco2017-5k"}, "give COCO's annotations/captions_val2017.json"),
    "weights of nothing": ({"models": {"vgg": "x"}}, "got --models vgg; expected inception"),
    "fewer than no resamples": ({"bootstrap": -1}, "got --bootstrap -1; expected 0 or more"),
    "no seed": ({"seeds": ()}, "each once"),
    "a seed twice": ({"seeds": (1, 1)}, "each once"),
    "no metric": ({"metrics": ()}, "got the metric of no name"),
    "one picture a caption": ({"diversity": 1}, "2 or more pictures a caption"),
    "no such data": ({"data": "nowhere/at/all", "features": "CLIP"}, "no data at nowhere/at/all"),
    "no such CLIP": ({"data": "PICTURES", "features": "PICTURES"}, "is not a CLIP model"),
    "shards": ({"data": "SHARDS", "features": "CLIP"}, "holds encoded pictures"),
    "a teacher that draws nothing": ({"teacher": "mini"}, "without --teacher-steps"),
    "solvers of no teacher": ({"teacher_solvers": ("er-sde",)}, "got --teacher-solvers er-sde without --teacher-steps"),
    "no teacher": ({"teacher_steps": (4,)}, "give --teacher beside --teacher-steps"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_measured_is_one_line(case, untrained, folder, tmp_path):
    changes, said = BAD[case]
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "manifest.json").touch()
    known = {"PICTURES": str(folder), "CLIP": str(embedded.CLIP), "SHARDS": str(tmp_path / "shards")}
    changes = {name: known.get(str(value), value) for name, value in changes.items()}
    with pytest.raises(UserError, match=said):
        evaluate_target("s", (1,), Measured(guidance=2.5, **changes), out=tmp_path / "r.json", report=ignore)
    assert not (tmp_path / "r.json").exists()


def test_a_runs_teacher_is_all_that_it_was_made_of(teacher_folders, style_lora, tmp_path):
    """In evaluation and in the app: with its LoRAs, at the size of its data."""
    given = {"teacher": str(teacher_folders["sd1"]), "teacher_lora": (f"{style_lora('sd1')}:0.5",)}
    (tmp_path / "config.json").write_text(sd15(**given, data="d", resolution=128, out=tmp_path).to_json())
    expected = load_backbone(TeacherSource(**given))
    measured, models = Measured(data="d", teacher_steps=(4,)), Models([str(tmp_path)])
    (sampler,) = module._teacher_rows(str(tmp_path), measured, torch.float32, 3.0, None).values()
    for backbone in (sampler.backbone, models.teacher(*teacher_source(str(tmp_path)))):
        assert (backbone.version, backbone.resolution) == (expected.version, 128)


def test_a_teacher_that_is_named_has_the_students_size_and_a_runs_parts(teacher_folders, style_lora, tmp_path):
    """Else what stands beside the student is another teacher."""
    measured = Measured(data="d", teacher=str(teacher_folders["sd1"]), teacher_steps=(4,))
    (sampler,) = module._teacher_rows("elsewhere/student", measured, torch.float32, 3.0, 128).values()
    assert sampler.backbone.resolution == 128
    given = {"teacher": str(tmp_path / "moved since"), "teacher_lora": (f"{style_lora('sd1')}:0.5",)}
    (tmp_path / "config.json").write_text(sd15(**given, data="d", resolution=128, out=tmp_path).to_json())
    (sampler,) = module._teacher_rows(str(tmp_path), measured, torch.float32, 3.0, 128).values()
    expected = load_backbone(TeacherSource(**given | {"teacher": measured.teacher}))
    assert (sampler.backbone.version, sampler.backbone.resolution) == (expected.version, 128)


MADE_FOR = StudentInfo(
    *("StableDiffusionPipeline", "LCMScheduler", "lora", 1, 3.0, 3.0, False, 125, {"1": [999.0]}),
    lora_rank=2,
    lora_alpha=2.0,
    resolution=128,
)


@pytest.mark.parametrize("holds", ["the pipeline", "its LoRA"])
def test_a_student_in_a_stock_pipeline_is_drawn_as_it_says(teacher_folders, style_lora, tmp_path, holds):
    """Its ω is built in, and 7.5 on top of it burns; of another size it is one that it was not trained for."""
    student = shutil.copytree(teacher_folders["sd1"], tmp_path / "student")
    (tmp_path / "lora").mkdir()
    lora = shutil.copy(style_lora("sd1"), tmp_path / "lora")
    ((student if holds == "the pipeline" else tmp_path / "lora") / STUDENT_INFO).write_text(MADE_FOR.to_json())
    for given in ({"scheduler": "LCMScheduler"}, {"scheduler": "LCMScheduler", "lora": str(lora)}):
        if holds == "its LoRA" and "lora" not in given:
            continue
        target = target_of(str(student), (2,), Measured(data="d", **given), torch.float32)
        (sampler,) = target.samplers.values()
        assert (sampler.guidance, sampler.resolution, target.size) == (1.0, 128, 128)
        stock = Models([])._kept(f"{student}+{lora}").sampler(2)
        assert (stock.guidance, stock.resolution) == (1.0, 128)


def test_what_else_has_a_config_beside_a_student_is_no_run(tmp_path):
    (tmp_path / "student").mkdir()
    for content in ('{"theme": "dark"}', "no JSON"):
        (tmp_path / "config.json").write_text(content)
        assert module._method(tmp_path / "student") == ""
        assert teacher_source(str(tmp_path / "student")) is None
    (tmp_path / "config.json").write_text(sd15(data="d", method="paper", out=tmp_path).to_json())
    assert module._method(tmp_path / "student") == "paper"


def test_a_place_that_takes_no_results_is_known_before_figures_are_taken():
    with pytest.raises(UserError, match=r"nothing can be written into /proc .*; name another place"):
        Results.check_path(Path("/proc/results.json"))
