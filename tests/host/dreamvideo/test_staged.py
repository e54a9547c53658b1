"""Staged Video without a server: each stage starts where the previous one ended; jobs stop and resume."""

import av
import numpy as np
import pytest
import torch
from PIL import Image

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.assembly import dreamvideo_model
from stillmotion.model_patches.dreamvideo.config import DreamVideoConfig, RetentionConfig
from stillmotion.model_patches.dreamvideo.stages import colours_of

from ..artv.test_autoregressive import Words, conditioning
from ..conftest import CONTEXT

FRAMES, SIZE = 3, 32
BRANCH = RetentionConfig(
    block_channels=(32, 64),
    attention=(False, True),
    heads=(2, 2),
    layers_per_block=1,
    context_dim=CONTEXT,
    linear_projection=False,
    hint_channels=(16, 16, 32, 32),
    temporal="none",
)


def picture(seed=3, size=(SIZE, SIZE), count=1):
    return torch.rand(count, *size, 3, generator=torch.Generator().manual_seed(seed))


def branch_file(path, **changes):
    """A branch with random weights, so that every part has an effect."""
    config = DreamVideoConfig(branch=RetentionConfig(**BRANCH.to_dict() | changes))
    torch.manual_seed(1)
    model = dreamvideo_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    checkpoint.save(path, system="dreamvideo", config=config.to_dict(), weights=model.state_dict())
    return path


@pytest.fixture
def branch(comfy, tmp_path):
    from stillmotion.model_patches.comfy_host.dreamvideo.retention import load_branch

    return load_branch(branch_file(tmp_path / "d.safetensors"))


@pytest.fixture
def output(comfy, tmp_path):
    import folder_paths

    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    yield tmp_path / "staged_video"
    folder_paths.set_output_directory(before)


@pytest.fixture
def rendered(output, tiny_sd, tiny_vae, branch, flat_request):
    """rendered(...) -> (path of the video, its last image)."""
    from stillmotion.model_patches.dreamvideo.stages import parse_stages
    from stillmotion.nodes.render.staged import StagedRequest, StagePrompts

    clip = Words(tiny_sd)
    settings = {"prompts": "a\nbb", "seed": 3, "frames": FRAMES, "steps": 2, "text_scale": 3.0, "image_scale": 2.0}
    settings |= {"width": SIZE, "height": SIZE, "sampler_name": "euler", "format": "ffv1-mkv", "image": picture()}
    settings |= {"negative": conditioning(2)}

    def render(*, prompt=None, pnginfo=None, node="9", **changes):
        inputs = {"model": tiny_sd, "vae": tiny_vae, "retention_branch": branch, **settings} | changes
        inputs["prompts"] = StagePrompts(clip, parse_stages(inputs["prompts"]))
        with torch.inference_mode():
            return flat_request(StagedRequest, **inputs).render(prompt, pnginfo, node)

    return render


@pytest.fixture
def counted(tiny_sd):
    """A MODEL, and the list of its calls; a call is added before act(calls) runs."""

    def count(act=lambda calls: None):
        calls = []

        def note(args):
            calls.append(float(args["sigma"][0]))
            act(calls)
            return args["denoised"]

        model = tiny_sd.clone()
        model.set_model_sampler_post_cfg_function(note)
        return model, calls

    return count


def frames_of(path):
    with av.open(str(path)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


def contents(folder):
    """The result files of a render, by name, without its log."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in {"log.txt", "manifest.json"}]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_stage_begins_with_the_last_frame_of_the_one_before(rendered, tiny_sd, tiny_vae, branch):
    """The second stage equals the first stage of a video that has the last frame as its image."""
    from stillmotion.model_patches.comfy_host.video.shared import clip_seed

    path, last = rendered()
    frames = frames_of(path)
    assert len(frames) == 2 * FRAMES
    assert frames.std() > 10  # otherwise the checks could not distinguish anything
    assert np.array_equal(frames[-1:], (last * 255).round().byte().numpy())
    last_frame = torch.from_numpy(frames[FRAMES - 1 : FRAMES]) / 255
    alone, _ = rendered(prompts="bb", image=last_frame, seed=clip_seed(3, 1), name="alone")
    assert np.array_equal(frames_of(alone), frames[FRAMES:])
    other, _ = rendered(prompts="bb", image=picture(8), seed=clip_seed(3, 1), name="other")
    assert not np.array_equal(frames_of(other), frames[FRAMES:])
    log = (path.parent / "log.txt").read_text()
    assert "2 stages, 6 frames" in log
    assert "stage 2 is sampled" in log


@pytest.mark.parametrize(
    ("text", "under", "from_image"),
    [("a", "off", False), ("a", "without text", False), ('""', "without text", True), ("a", "always", True)],
)
def test_a_stage_is_the_guider_by_hand(rendered, tiny_sd, tiny_vae, branch, text, under, from_image):
    import comfy.sample
    import comfy.samplers

    from stillmotion.model_patches.comfy_host.dreamvideo.guider import double_condition_guider
    from stillmotion.model_patches.comfy_host.dreamvideo.retention import apply_retention

    path, _ = rendered(prompts=text, image_under_noise=under)
    pair = apply_retention((conditioning(101 if text == "a" else 100), conditioning(2)), branch, picture())
    guider = double_condition_guider(tiny_sd, *pair, text=3.0, image=2.0)
    empty = torch.zeros(FRAMES, 4, SIZE // 8, SIZE // 8)
    sigmas = comfy.samplers.KSampler(tiny_sd, 2, torch.device("cpu"), "euler", "normal").sigmas
    with torch.inference_mode():
        beneath = tiny_vae.encode(picture()).expand(FRAMES, -1, -1, -1) if from_image else empty
        latents = guider.sample(
            comfy.sample.prepare_noise(empty, 3), beneath, comfy.samplers.sampler_object("euler"), sigmas, seed=3,
            disable_pbar=True,
        )  # fmt: skip
        expected = torch.cat([tiny_vae.decode(latent) for latent in latents.split(1)])
    assert np.array_equal(frames_of(path), (expected.clamp(0, 1) * 255).round().byte().numpy())


def test_without_an_image_the_first_stage_is_made_from_its_text(rendered, tiny_sd, branch, counted):
    """No image equals a white image; image guidance then needs no model call."""
    batch_sizes = []

    def listen(executor, x, *args, **kwargs):
        batch_sizes.append(len(x) // FRAMES)
        return executor(x, *args, **kwargs)

    model = tiny_sd.clone()
    model.add_wrapper_with_key("diffusion_model", "test", listen)
    plain, _ = rendered(prompts="a", image=None, model=model)
    assert set(batch_sizes) == {2}
    white, _ = rendered(prompts="a", image=torch.ones(1, SIZE, SIZE, 3), image_scale=9.0, order="image first")
    difference = np.abs(frames_of(plain).astype(int) - frames_of(white)).max()
    assert difference <= 1
    batch_sizes.clear()
    rendered(prompts="a\na", image=None, model=model)
    assert set(batch_sizes) == {3}  # only the second stage, which has an image, had to be sampled


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_an_interrupt_within_a_model_call_loses_one_stage_at_most(rendered, output, counted, stop):
    """Like the Cancel button, in any of three stages of two calls each; the final files equal those of one run."""
    import comfy.model_management

    settings = {"prompts": "a\nbb\nccc", "sampler_name": "euler_ancestral"}
    model, calls = counted(lambda calls: comfy.model_management.interrupt_current_processing(len(calls) == stop))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        rendered(model=model, **settings)
    assert len(calls) == stop  # within one model call
    assert not list(output.rglob("*.partial"))
    whole = (stop - 1) // 2
    (job,) = output.iterdir()
    growing = job / "growing.mkv"
    assert len(frames_of(growing) if whole else []) == whole * FRAMES
    model, again = counted()
    path, _ = rendered(model=model, **settings)
    assert len(again) == 2 * (3 - whole)
    at_once, _ = rendered(name="once", **settings)
    assert np.array_equal(frames_of(at_once), frames_of(path))
    stopped, once = contents(path.parent), contents(at_once.parent)
    assert {k: v for k, v in stopped.items() if k.endswith("segment.mkv")} == {
        k: v for k, v in once.items() if k.endswith("segment.mkv")
    }


@pytest.mark.slow
def test_a_stage_is_the_same_whatever_follows(rendered, counted):
    one, _ = rendered(prompts="a", name="one")
    model, calls = counted()
    path, _ = rendered(model=model)
    first = frames_of(path)
    assert len(calls) == 2 * 2
    assert np.array_equal(first[:FRAMES], frames_of(one))
    longer, _ = rendered(model=model, prompts="a\nbb\nccc")
    assert longer == path
    assert len(calls) == 3 * 2  # the third alone
    assert np.array_equal(frames_of(longer)[: 2 * FRAMES], first)
    edited, _ = rendered(model=model, prompts="a\ncccc\nccc")
    assert edited == path
    assert len(calls) == 5 * 2  # the second, and the third, which starts from it
    assert np.array_equal(frames_of(edited)[:FRAMES], first[:FRAMES])
    assert not np.array_equal(frames_of(edited)[FRAMES : 2 * FRAMES], first[FRAMES:])
    shorter, last = rendered(model=model, prompts="a\ncccc", keep="what extends it")
    assert len(calls) == 5 * 2
    assert np.array_equal(frames_of(shorter)[-1:], (last * 255).round().byte().numpy())


def test_another_take_renders_the_later_stages_again(rendered, counted):
    settings = {"prompts": "a\nbb\nccc"}
    path, _ = rendered(**settings)
    before = frames_of(path)
    model, calls = counted()
    after = frames_of(rendered(model=model, clips_again="2", **settings)[0])
    assert len(calls) == 2 * 2
    assert np.array_equal(after[:FRAMES], before[:FRAMES])
    assert not np.array_equal(after[FRAMES : 2 * FRAMES], before[FRAMES : 2 * FRAMES])
    assert not np.array_equal(after[2 * FRAMES :], before[2 * FRAMES :])
    calls.clear()
    assert np.array_equal(
        frames_of(rendered(model=model, **settings)[0]), after
    )  # it is kept without being named again
    assert calls == []
    assert np.array_equal(frames_of(rendered(clips_again="2:0", **settings)[0]), before)


@pytest.mark.slow
def test_a_take_that_is_interrupted_resumes(rendered, counted):
    """Interrupted when the second stage was new and the third still belonged to the old one."""
    import comfy.model_management

    settings = {"prompts": "a\nbb\nccc"}
    rendered(**settings)
    model, _ = counted(lambda calls: comfy.model_management.interrupt_current_processing(len(calls) == 3))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        rendered(model=model, clips_again="2", **settings)
    frames = frames_of(rendered(**settings)[0])
    rendered(name="once", **settings)
    assert np.array_equal(frames_of(rendered(name="once", clips_again="2", **settings)[0]), frames)


def test_the_doubled_frame_is_dropped_and_nothing_else(rendered):
    whole = frames_of(rendered(prompts="a\nbb\nccc")[0])
    path, _ = rendered(prompts="a\nbb\nccc", drop_doubled=True, format="png")
    keep = [i for i in range(3 * FRAMES) if i not in (FRAMES, 2 * FRAMES)]
    assert np.array_equal(frames_of(path), whole[keep])
    pictures = sorted((path.parent / "frames").glob("*"))
    assert [p.name for p in pictures] == [f"{i + 1:06}.png" for i in range(3 * FRAMES - 2)]
    for picture, frame in zip(pictures, whole[keep], strict=True):
        with Image.open(picture) as read:
            assert np.array_equal(np.asarray(read), frame)


def colours(frames):
    return torch.stack([colours_of(torch.from_numpy(frame[None]) / 255) for frame in frames])


def test_colours_are_brought_back_to_those_of_the_image(rendered):
    image = 0.4 + 0.2 * picture(5)  # so little contrast that nothing is clipped
    settings = {"prompts": "a\nbb", "image": image}
    off = frames_of(rendered(**settings)[0])
    assert (colours(off) - colours_of(image)).abs().max() > 0.05
    every = frames_of(rendered(reanchor="every frame", **settings)[0])
    assert (colours(every) - colours_of(image)).abs().max() < 0.01  # rounded to 8 bit
    handed = frames_of(rendered(reanchor="next image", **settings)[0])
    assert np.array_equal(handed[:FRAMES], off[:FRAMES])
    assert not np.array_equal(handed[FRAMES:], off[FRAMES:])


def test_without_an_image_colours_are_brought_back_to_those_of_the_first_frame(rendered):
    drifts = []
    for reanchor in ("off", "every frame"):
        frames = frames_of(rendered(image=None, reanchor=reanchor)[0])
        measures = colours(frames)
        drifts.append((measures - measures[:1]).abs().max())
        assert np.abs(frames[0].astype(int) - frames_of(rendered(prompts="a", image=None)[0])[0]).max() <= 1
    assert drifts[1] < 0.1  # values clipped at 0 and 1 are missing
    assert drifts[1] < drifts[0] / 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": ""}, "stages: there is no prompt"),
        ({"prompts": "a\n\nb"}, "stage 2 of 3 has no prompt"),
        ({"frames": 1, "drop_doubled": True}, "a stage needs 2 or more"),
        ({"width": 36}, "36 x 32 pixels, but the VAE needs multiples of 8"),
        ({"name": "../n"}, "the name is '../n'"),
        ({"image": picture(count=3)}, "the input has 3 images, but one is needed"),
        ({"image": picture() / 0}, "NaN or infinite values"),
        ({"clips_again": "3"}, "clip 3 cannot be rendered again"),
        ({"clips_again": "x"}, "render again: clips contains 'x'"),
        ({"order": "both"}, "order is 'both'"),
        ({"reanchor": "both"}, "reanchor is 'both'"),
        ({"image_under_noise": "yes"}, "image_under_noise is 'yes'; choose one of off, without text, always"),
        ({"fit": "squeeze"}, "fit is 'squeeze'"),
        ({"seconds": 4.0}, "seconds is 4 in Video Output Options, but the number of prompts determines the length"),
    ],
)
def test_bad_input_is_refused_before_sampling(rendered, counted, changes, message):
    model, _ = counted(lambda calls: pytest.fail("sampled"))
    with pytest.raises(ValueError, match=message):
        rendered(model=model, **changes)


def test_a_branch_for_another_base_is_refused_before_sampling(rendered, counted, tmp_path):
    from stillmotion.model_patches.comfy_host.dreamvideo.retention import load_branch

    other = load_branch(branch_file(tmp_path / "o.safetensors", block_channels=(64, 64)))
    model, _ = counted(lambda calls: pytest.fail("sampled"))
    with pytest.raises(ValueError, match=r"built for a U-Net with block channels \(64, 64\), but this MODEL is"):
        rendered(model=model, retention_branch=other)
    assert not list(tmp_path.glob("staged_video/*"))


def test_after_broken_latents_the_finished_part_can_be_played(rendered, output, tiny_sd):
    calls = []

    def broken(args):
        calls.append(None)
        return args["denoised"] * (float("nan") if len(calls) > 2 else 1.0)

    model = tiny_sd.clone()
    model.set_model_sampler_post_cfg_function(broken)
    with pytest.raises(ValueError, match="stage 2 contains NaN or infinite values"):
        rendered(model=model)
    (growing,) = output.rglob("growing.mkv")
    assert len(frames_of(growing)) == FRAMES


def test_an_image_of_another_aspect_is_fitted_and_logged(rendered):
    path, _ = rendered(prompts="a", image=picture(size=(48, 96)), fit="pad")
    assert (
        "the image is 96 x 48, the video 32 x 32; white edges are added (fit: pad)"
        in (path.parent / "log.txt").read_text()
    )


@pytest.mark.slow
def test_other_inputs_are_another_job(rendered, branch):
    first, _ = rendered(prompts="a")
    assert rendered(prompts="a", image=picture().clone())[0] == first
    for changed in (
        {"seed": 4},
        {"image": picture(8)},
        {"image": None},
        {"negative": conditioning(5)},
        {"image_scale": 3.0},
        {"drop_doubled": True},
        {"reanchor": "next image"},
        {"image_under_noise": "always"},
        {"strength": 0.5},
        {"fps": 9.0},
    ):
        assert rendered(prompts="a", **changed)[0].parent != first.parent


def test_without_a_negative_the_null_text_is_an_empty_prompt(rendered):
    expected = frames_of(rendered(prompts="a", negative=conditioning(100))[0])  # the encoding of ""
    assert np.array_equal(frames_of(rendered(prompts="a", negative=None, name="none")[0]), expected)


def test_progress_is_reported_in_stages(rendered, monkeypatch):
    from stillmotion.nodes.render.base import NodeWatch

    reports = []
    monkeypatch.setattr(NodeWatch, "progress", lambda self, progress: reports.append(progress))
    rendered(drop_doubled=True)
    shares = [progress.share for progress in reports]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert str(reports[-1]) == "stage 2 of 2, 0 s left"
    assert len(reports[-1].strip.getcolors(1 << 20)) > 9  # an image, not a blank one


def test_prompts_may_be_edited_and_the_text_encoder_behind_them_may_not(rendered, tiny_sd, tiny_vae, flat_request):
    from stillmotion.nodes.render.staged import StagedRequest

    request = flat_request(
        StagedRequest, model=tiny_sd, vae=tiny_vae, retention_branch=None, prompts=None, width=SIZE, height=SIZE
    )

    def graph(text="a", file="x"):
        return {
            "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": file}},
            "2": {"class_type": "StillMotion_StagePrompts", "inputs": {"clip": ["1", 1], "text": text}},
            "9": {"class_type": "StillMotion_StagedVideo", "inputs": {"prompts": ["2", 0], "seed": 1}},
        }

    before = request.graph(graph(), "9")
    assert before.keys() == {"clip"}
    assert request.graph(graph(text="a\nb"), "9") == before
    assert request.graph(graph(file="y"), "9") != before
