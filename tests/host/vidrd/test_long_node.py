"""The Long Video node without a server: errors before work, jobs that resume, the parts of a job's identity."""

import json
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
import torch

FRAMES, SIZE, CONTEXT = 4, 32, 32


def conditioning(seed):
    return [[torch.randn(1, 7, CONTEXT, generator=torch.Generator().manual_seed(seed)), {}]]


@pytest.fixture
def output(comfy, tmp_path):
    import folder_paths

    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    yield tmp_path
    folder_paths.set_output_directory(before)


@pytest.fixture
def rendered(output, tiny_sd, tiny_vae, flat_request):
    """rendered(...) -> (path of the video, images of the first clip)."""
    from stillmotion.nodes.render.long import LongRequest

    settings = {"name": "n", "seed": 3, "clips": 2, "frames": FRAMES, "steps": 2, "cfg": 3.0, "width": SIZE}
    settings |= {
        "height": SIZE,
        "overlap": 2,
        "format": "ffv1-mkv",
        "positive": conditioning(1),
        "negative": conditioning(2),
    }

    def render(*, prompt=None, pnginfo=None, node="9", **changes):
        inputs = {"model": tiny_sd, "vae": tiny_vae, **settings} | changes
        with torch.inference_mode():
            return flat_request(LongRequest, **inputs).render(prompt, pnginfo, node)

    return render


def frames_of(path):
    with av.open(str(path)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


def jobs(output):
    return sorted(path.name for path in (output / "long_video").iterdir())


def test_a_video_its_first_clip_and_its_folder(rendered, output):
    path, first = rendered(pnginfo={"workflow": {"nodes": []}})
    assert path.parent.parent == output / "long_video"
    frames = frames_of(path)
    assert len(frames) == 2 * FRAMES
    assert frames.std() > 10  # otherwise the checks below could not distinguish anything
    assert np.array_equal(frames[:FRAMES], (first * 255).round().byte().numpy())
    with av.open(str(path)) as video:
        metadata = {key.lower(): value for key, value in video.metadata.items()}
        assert json.loads(metadata["workflow"]) == {"nodes": []}
        assert video.streams.video[0].average_rate == Fraction(8)


def test_an_interrupt_within_a_model_call_loses_one_clip_at_most(rendered, output, tiny_sd):
    """Like the Cancel button, in the middle of the second clip."""
    import comfy.model_management

    calls = []

    def cancel(args):
        calls.append(args["sigma"])
        comfy.model_management.interrupt_current_processing(len(calls) == 3)
        return args["denoised"]

    model = tiny_sd.clone()
    model.set_model_sampler_post_cfg_function(cancel)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        rendered(model=model)
    assert not list(output.rglob("*.partial"))
    (job,) = jobs(output)
    assert len(frames_of(output / "long_video" / job / "growing.mkv")) == FRAMES
    calls.clear()
    calls.append(None)  # a further entry, so that nothing is cancelled at the third
    calls += [None, None]
    path, _ = rendered(model=model)
    assert len(calls) == 3 + 2  # the second clip's two steps
    frames = frames_of(path)
    path.unlink()
    for file in sorted(path.parent.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    assert np.array_equal(frames_of(rendered(model=model)[0]), frames)


@pytest.mark.slow
def test_more_clips_extend_and_other_inputs_are_another_job(rendered, output):
    first, _ = rendered()
    two = frames_of(first)
    longer, _ = rendered(clips=3)
    assert longer == first
    assert np.array_equal(frames_of(longer)[: 2 * FRAMES], two)
    seconds, _ = rendered(clips=99, seconds=1.2)  # 9.6 frames, rounded up to complete clips
    assert len(frames_of(seconds)) == 3 * FRAMES
    for changed in ({"seed": 4}, {"positive": conditioning(5)}, {"steps": 3}, {"staged_guidance": 0.9}, {"fps": 9.0}):
        assert rendered(**changed)[0].parent != first.parent
    assert len(jobs(output)) == 6


def test_a_clip_is_rendered_again_and_states_are_dropped(rendered):
    path, _ = rendered(clips=3)
    before = frames_of(path)
    after = frames_of(rendered(clips=3, clips_again="2", keep="what extends it")[0])
    same = [np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    # on a model with independent frames, frames that continue the previous clip contain nothing new
    assert same == [True] * FRAMES + [True, True, False, False] + [True] * FRAMES
    assert len(list(path.parent.glob("clips/*/state.safetensors"))) == 1
    assert np.array_equal(frames_of(rendered(clips=3, clips_again="2:0")[0]), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 36}, "36 x 32 pixels, but the VAE needs multiples of 8"),
        ({"clips_again": "x"}, "render again: clips contains 'x'; write clips, counted from 1"),
        ({"clips_again": "0"}, "render again: clips contains '0'"),
        ({"clips_again": "3"}, "clip 3 cannot be rendered again, because the video has clips 1 to 2"),
        ({"name": "../n"}, "the name is '../n'"),
        ({"overlap": 5}, "overlap is 5, but a clip has only 4 frames"),
        ({"positive": None}, "there is no prompt; connect positive, prompts or guider"),
        ({"negative": None}, "cfg is 3, but negative is not connected"),
        ({"model": None}, "neither a model nor a guider is connected; connect one of the two"),
        ({"sigmas": torch.zeros(1, 3)}, r"sigmas: the shape is \(1, 3\)"),
        ({"sigmas": torch.tensor([1.0, 2.0, 0.0])}, "must be finite, decrease from step to step"),
        ({"sigmas": torch.tensor([float("nan"), 0.0])}, "must be finite, decrease from step to step"),
    ],
)
def test_bad_input_is_refused_before_sampling(rendered, tiny_sd, changes, message):
    model = tiny_sd.clone()
    model.set_model_sampler_post_cfg_function(lambda args: pytest.fail("sampled"))
    with pytest.raises(ValueError, match=message):
        rendered(**({"model": model} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cfg": float("nan")}, "cfg is nan"),
        ({"seconds": float("inf")}, "seconds is inf"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"recycle": float("inf")}, "recycle"),
    ],
)
def test_settings_that_are_not_finite_are_refused(rendered, output, changes, message):
    """JSON of other programs has NaN and Infinity, and ComfyUI's limits let them through."""
    with pytest.raises(ValueError, match=message):
        rendered(**changes)
    assert not list(output.iterdir())


def test_the_size_of_a_latent_counts(rendered, tiny_vae):
    empty = {"samples": torch.zeros(1, 4, 6, 4), "downscale_ratio_spacial": 8}
    assert frames_of(rendered(latent=empty)[0]).shape[1:3] == (48, 32)
    assert frames_of(rendered(latent={"samples": torch.ones(1, 4, 4, 6)})[0]).shape[1:3] == (32, 48)


def test_small_pictures_are_enlarged_in_the_file_alone(rendered, output):
    small, large = rendered(), rendered(enlarge=3)
    pictures = frames_of(large[0])
    assert pictures.shape[1:3] == (3 * SIZE, 3 * SIZE)
    assert np.array_equal(pictures[:, 1::3, 2::3], frames_of(small[0]))
    assert np.array_equal(pictures[:, ::3, ::3], frames_of(small[0]))
    assert torch.equal(small[1], large[1])
    assert len(jobs(output)) == 2


def test_a_guider_guides_in_its_own_way(rendered, tiny_sd):
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(tiny_sd)
    guider.set_conds(conditioning(1), conditioning(2))
    guider.set_cfg(3.0)
    conditions, model = guider.original_conds, guider.model_patcher
    frames = frames_of(rendered(guider=guider, model=None, positive=None, negative=None, cfg=99.0)[0])
    assert np.array_equal(frames, frames_of(rendered()[0]))
    assert guider.original_conds is conditions
    assert guider.model_patcher is model


def test_a_guider_replaces_model_and_conditioning(rendered, tiny_sd):
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(tiny_sd)
    guider.set_conds(conditioning(1), conditioning(2))
    guider.set_cfg(3.0)
    path, _ = rendered(guider=guider, positive=conditioning(7))
    assert np.array_equal(frames_of(path), frames_of(rendered()[0]))
    assert "model, positive, negative and cfg are not used" in (path.parent / "log.txt").read_text()


@pytest.mark.slow
def test_a_sampler_and_sigmas_replace_names_and_steps(rendered, tiny_sd, output):
    import comfy.samplers

    by_name = frames_of(rendered(sampler_name="euler")[0])
    sigmas = comfy.samplers.KSampler(tiny_sd, 2, torch.device("cpu"), "euler", "normal").sigmas
    connected = {"sampler": comfy.samplers.sampler_object("euler"), "sigmas": sigmas}
    path, _ = rendered(**connected)
    assert np.array_equal(frames_of(path), by_name)
    again, _ = rendered(**connected, sampler_name="ddim", scheduler="karras", steps=9)
    assert again == path  # what is replaced is no part of the job
    assert np.array_equal(frames_of(rendered(sampler=connected["sampler"])[0]), by_name)
    assert np.array_equal(frames_of(rendered(sigmas=sigmas, sampler_name="euler")[0]), by_name)
    assert rendered(**connected | {"sigmas": sigmas * 0.5})[0].parent != path.parent
    with pytest.raises(
        ValueError, match="the sampler dpm_fast_function is not supported, because it chooses its own steps"
    ):
        rendered(sampler=comfy.samplers.sampler_object("dpm_fast"))


@pytest.mark.parametrize("options", [{"s_noise": 1.1}, {"s_tmin": 0.5}])
def test_options_of_a_sampler_are_part_of_the_job(rendered, options):
    import comfy.samplers

    plain, _ = rendered(sampler=comfy.samplers.ksampler("euler"))
    assert rendered(sampler=comfy.samplers.ksampler("euler"))[0] == plain
    assert rendered(sampler=comfy.samplers.ksampler("euler", options))[0].parent != plain.parent


def test_values_that_a_sampler_s_function_remembers_are_part_of_the_job(comfy):
    from stillmotion.model_patches.comfy_host.base.fingerprint import of_sampler

    def sampler(eta):
        import comfy.samplers

        return comfy.samplers.ksampler("sa_solver", {"tau_func": lambda sigma: eta * sigma})

    assert of_sampler(sampler(0.5)) == of_sampler(sampler(0.5)) != of_sampler(sampler(0.7))


PROMPT = {
    "1": {"class_type": "Loader", "inputs": {"file": "a"}, "is_changed": [7]},
    "2": {"class_type": "Apply", "inputs": {"model": ["1", 0], "strength": 1.0}},
    "3": {"class_type": "Other", "inputs": {}},
    "9": {"class_type": "StillMotion_LongVideo", "inputs": {"model": ["2", 0], "vae": ["1", 2], "clips": 4}},
}


def graph(**changes):
    from stillmotion.rendering.graph import input_hashes

    return input_hashes(PROMPT | changes, "9", ("model", "vae", "positive"))


def test_only_connected_nodes_count(comfy):
    before = graph()
    assert before.keys() == {"model", "vae"}
    assert graph(**{"3": {"class_type": "Other", "inputs": {"x": 1}}}) == before
    assert graph(**{"9": PROMPT["9"] | {"inputs": PROMPT["9"]["inputs"] | {"clips": 5, "seed": 3}}}) == before
    stronger = graph(**{"2": {"class_type": "Apply", "inputs": {"model": ["1", 0], "strength": 2.0}}})
    assert stronger["model"] != before["model"]
    assert stronger["vae"] == before["vae"]
    assert graph(**{"1": PROMPT["1"] | {"is_changed": [8]}})["vae"] != before["vae"]
    apply = {"class_type": "Apply", "inputs": {"model": ["12", 0], "strength": 1.0}}
    renamed = {"12": PROMPT["1"] | {"_meta": {"title": "x"}}, "2": apply}
    assert graph(**renamed)["model"] == before["model"]


def test_it_looks_at_its_folder_at_every_run(comfy):
    """ComfyUI runs a node again whose fingerprint differs: a job may be damaged or gone."""
    from stillmotion.nodes.long import LongVideoNode

    assert LongVideoNode.fingerprint_inputs(name="n") != LongVideoNode.fingerprint_inputs(name="n")


def test_the_graph_is_stored_without_values_that_json_lacks(comfy):
    from stillmotion.nodes.render.base import metadata

    noted = PROMPT | {"9": PROMPT["9"] | {"is_changed": [float("nan")]}}
    stored = metadata(noted, {"workflow": {}})
    json.dumps(stored, allow_nan=False)
    assert stored["prompt"]["9"] == PROMPT["9"]
    assert stored.keys() == {"workflow", "prompt"}


@pytest.mark.parametrize("file_format", ["h264-mp4", "ffv1-mkv"])
def test_the_editor_plays_mp4_and_shows_a_picture_of_other_formats(rendered, output, file_format):
    import folder_paths

    from stillmotion.nodes.render.base import node_output

    before = folder_paths.get_temp_directory()
    folder_paths.set_temp_directory(str(output / "temp"))
    try:
        path, pictures = rendered(format=file_format)
        preview: Any = node_output(path, pictures).ui
    finally:
        folder_paths.set_temp_directory(before)
    saved = {"filename": path.name, "subfolder": f"long_video/{path.parent.name}", "type": "output"}
    if file_format == "h264-mp4":
        assert preview == {"images": [saved], "animated": (True,)}  # like Save Video
    else:
        assert preview["video"] == [saved]
        assert [item["type"] for item in preview["images"]] == ["temp"]
