"""The Autoregressive Video node without a server: a job that stops, resumes, is extended and gets a new story."""

import av
import numpy as np
import pytest
import torch

from .test_autoregressive import SIZE, Words, artv, conditioning, picture

__all__ = ["artv"]  # the fixture


@pytest.fixture
def output(comfy, tmp_path):
    import folder_paths

    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    yield tmp_path
    folder_paths.set_output_directory(before)


@pytest.fixture
def rendered(output, tiny_sd, tiny_vae, artv, flat_request):
    """rendered(...) -> (path of the video, its last image)."""
    from stillmotion.nodes.render.autoregressive import RollRequest

    settings = {"name": "n", "seed": 3, "frames": 3, "steps": 2, "width": SIZE, "height": SIZE, "format": "ffv1-mkv"}
    settings |= {"positive": conditioning(1), "negative": conditioning(2), "text_weight": 2.0}

    def render(*, prompt=None, pnginfo=None, node="9", **changes):
        inputs = {"model": tiny_sd, "artv": artv, "vae": tiny_vae, **settings} | changes
        with torch.inference_mode():
            return flat_request(RollRequest, **inputs).render(prompt, pnginfo, node)

    return render


@pytest.fixture
def story_prompts(tiny_sd):
    from stillmotion.model_patches.artv.story import parse_story
    from stillmotion.model_patches.comfy_host.conditions.prompts import StoryPrompts

    return lambda text: StoryPrompts.of(Words(tiny_sd), parse_story(text))


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


@pytest.mark.slow
def test_a_video_its_last_frame_and_its_folder(rendered, output):
    path, last = rendered(image=picture())
    assert path.parent.parent == output / "autoregressive_video"
    frames = frames_of(path)
    assert len(frames) == 3
    assert frames.std() > 10  # otherwise the checks below could not distinguish anything
    assert np.array_equal(frames[-1:], (last * 255).round().byte().numpy())
    assert "frame 3 is sampled" in (path.parent / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 5, 8])
def test_an_interrupt_within_a_model_call_loses_one_frame_at_most(rendered, output, counted, stop):
    """Like the Cancel button, in any frame. The default sampler calls the MODEL three times in two steps."""
    import comfy.model_management

    model, calls = counted(lambda calls: comfy.model_management.interrupt_current_processing(len(calls) == stop))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        rendered(model=model)
    assert len(calls) == stop
    whole = (stop - 1) // 3
    (job,) = (output / "autoregressive_video").iterdir()
    growing = job / "growing.mkv"
    assert len(frames_of(growing) if whole else []) == whole
    model, again = counted()
    frames = frames_of(rendered(model=model)[0])
    assert len(again) == 3 * (3 - whole)
    model, _ = counted()
    assert np.array_equal(frames_of(rendered(model=model, name="at once")[0]), frames)


@pytest.mark.slow
def test_more_frames_extend_and_other_inputs_are_another_job(rendered, counted):
    first, _ = rendered()
    before = frames_of(first)
    model, calls = counted()
    plain, _ = rendered(model=model)
    assert plain.parent == first.parent  # a function that only observes is not an input
    assert calls == []
    longer, _ = rendered(model=model, frames=4)
    assert longer == first
    assert len(calls) == 3
    assert np.array_equal(frames_of(longer)[:3], before)
    for changed in (
        {"seed": 4},
        {"positive": conditioning(5)},
        {"t_test": 100},
        {"masks": "one for each"},
        {"anchor_weight": 0.0},
        {"image": picture()},
        {"image": picture(8)},
    ):
        assert rendered(**changed, frames=1)[0].parent != first.parent


@pytest.mark.slow
def test_an_edited_story_is_rendered_again_from_the_edit(rendered, counted, story_prompts):
    inputs = {"positive": None, "negative": None, "frames": 1}
    first, _ = rendered(story=story_prompts("2: a\n1: bb"), **inputs)
    before = frames_of(first)
    assert len(before) == 3
    model, calls = counted()
    edited, _ = rendered(model=model, story=story_prompts("2: a\n2: cccc"), **inputs)
    assert edited == first
    assert len(calls) == 2 * 3
    after = frames_of(edited)
    assert np.array_equal(after[:2], before[:2])
    assert not np.array_equal(after[2], before[2])
    whole, _ = rendered(story=story_prompts("2: a\n2: cccc"), name="at once", **inputs)
    assert np.array_equal(frames_of(whole), after)


def test_after_broken_latents_the_finished_part_can_be_played(rendered, output, tiny_sd):
    calls = []

    def broken(args):
        calls.append(None)
        return args["denoised"] * (float("nan") if len(calls) > 3 else 1.0)

    model = tiny_sd.clone()
    model.set_model_sampler_post_cfg_function(broken)
    with pytest.raises(ValueError, match="frame 2 contains NaN or infinite values"):
        rendered(model=model)
    (growing,) = output.rglob("growing.mkv")
    assert len(frames_of(growing)) == 1


@pytest.mark.slow
def test_any_video_is_continued(rendered, output):
    from comfy_api.v0_0_2 import InputImpl

    path, _ = rendered(image=picture())
    video = InputImpl.VideoFromFile(str(path))
    frames = frames_of(rendered(video=video, name="next", frames=2)[0])
    assert len(frames) == 2
    assert np.array_equal(frames_of(rendered(video=video, name="again", frames=2)[0]), frames)
    (output / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"broken\.mp4 cannot be read"):
        rendered(video=InputImpl.VideoFromFile(str(output / "broken.mp4")))


def test_small_pictures_are_enlarged_in_the_file(rendered):
    plain, last = frames_of(rendered(frames=1)[0]), rendered(frames=1, enlarge=2)
    assert np.array_equal(frames_of(last[0]), plain.repeat(2, axis=1).repeat(2, axis=2))
    assert last[1].shape == (1, SIZE, SIZE, 3)


def test_a_picture_of_another_size_is_fitted_and_logged(rendered):
    path, _ = rendered(image=picture(size=(48, 96)).expand(2, -1, -1, -1), frames=1)
    log = (path.parent / "log.txt").read_text()
    assert "the image of 96 x 48 pixels was scaled and cropped at its centre to 32 x 32" in log
    assert "; only the first of 2 images is used" in log


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 36}, "36 x 32 pixels, but the VAE needs multiples of 8"),
        ({"name": "../n"}, "the name is '../n'"),
        ({"positive": None}, "there is no prompt; connect positive or a story"),
        ({"negative": None}, "text_weight is 2, but negative is not connected"),
        ({"positive": conditioning(1, 2)}, "positive condition has 2 rows of cross_attn for a video of 3 frames"),
        ({"anchor": picture()}, "anchor is connected without a video"),
        ({"anchor_weight": float("nan")}, "anchor_weight is nan"),
    ],
)
def test_bad_input_is_refused_before_sampling(rendered, counted, changes, message):
    model, _ = counted(lambda calls: pytest.fail("sampled"))
    with pytest.raises(ValueError, match=message):
        rendered(model=model, **changes)
