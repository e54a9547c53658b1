"""Other nodes may call the MODEL with a part of the frames: the clip is then the rows of one condition, or an error."""

from typing import Any

import pytest
import torch

from .test_motion import FRAMES, close, motion_file, noise_of  # noqa: F401  the fixture of the files


@pytest.fixture
def split(comfy):
    """split(model, length) -> the same windows as `windowed`, but made by another pack, without names of the windows.

    AnimateDiff-Evolved's context options call the MODEL like this.
    """
    from comfy import context_windows
    from comfy.patcher_extension import WrappersMP

    def patch(model, length) -> Any:
        handler = context_windows.IndexListContextHandler(
            context_windows.get_matching_context_schedule("standard_static"),
            context_windows.get_matching_fuse_method("pyramid"),
            context_length=length,
            context_overlap=min(1, length - 1),
            causal_window_fix=False,
        )

        def windows(executor, inner, conds, x, t, options):
            def calc(inner, conds, x, t, options):
                options_left = {k: v for k, v in options["transformer_options"].items() if k != "context_window"}
                return executor(inner, conds, x, t, options | {"transformer_options": options_left})

            return handler.execute(calc, inner, conds, x, t, options)

        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "another pack", windows)
        return model

    return patch


@pytest.mark.slow
@pytest.mark.parametrize("frames", [12, 4])
def test_windows_of_another_pack_equal_those_of_comfyui(patched, run_sampler, windowed, split, frames):
    """With frames set to the batch, or to the length of a window. 12 frames are more than there are positions for."""
    core = run_sampler(windowed(patched(frames=12), 4), frames=12)
    assert torch.equal(run_sampler(split(patched(frames=frames), 4), frames=12), core)


def test_windows_of_another_pack_that_are_too_long_or_cut_clips_are_named(patched, run_sampler, split):
    with pytest.raises(ValueError, match=r"called with clips of 9 frames, but .* positions for only 8; use at most 8"):
        run_sampler(split(patched(frames=12), 9), frames=12)
    with pytest.raises(ValueError, match=r"with 3 of the 12 images at a time, but frames is 4.* set frames to 12"):
        run_sampler(split(patched(frames=4), 3), frames=12)
    with pytest.raises(ValueError, match=r"with 6 of the 12 images at a time, but frames is 4"):
        run_sampler(split(patched(frames=4), 6), frames=12)
    with pytest.raises(ValueError, match="with 1 image at a time, but a clip has 4 frames"):
        run_sampler(split(patched(frames=4), 1), frames=4)


@pytest.mark.slow
def test_conditions_one_by_one_give_the_same(patched, run_sampler):
    """A node that calls the MODEL once per condition may leave ComfyUI's list of conditions unchanged."""

    def one_by_one(apply, arguments):
        x, t, c = arguments["input"], arguments["timestep"], arguments["c"]
        parts = [
            apply(rows, times, **c | {"c_crossattn": text})
            for rows, times, text in zip(x.chunk(2), t.chunk(2), c["c_crossattn"].chunk(2), strict=True)
        ]
        return torch.cat(parts)

    model = patched()
    expected = run_sampler(model, frames=FRAMES)
    model.set_model_unet_function_wrapper(one_by_one)
    assert close(run_sampler(model, frames=FRAMES), expected)


@pytest.mark.slow
def test_tiles_in_one_batch_give_the_same_as_one_by_one(patched, run_sampler):
    """Tiled diffusion stacks the tiles of all conditions in one call; each tile has all frames."""

    def tiled(stacked):
        def run(apply, arguments):
            x, t, c = arguments["input"], arguments["timestep"], arguments["c"]
            tiles = x.chunk(2, dim=3)
            if not stacked:
                return torch.cat([apply(tile, t, **c) for tile in tiles], dim=3)
            text = {"c_crossattn": c["c_crossattn"].repeat(2, 1, 1)}
            return torch.cat(apply(torch.cat(tiles), t.repeat(2), **c | text).chunk(2), dim=3)

        model = patched()
        model.set_model_unet_function_wrapper(run)
        return run_sampler(model, frames=FRAMES, size=16)

    assert close(tiled(stacked=True), tiled(stacked=False))


@pytest.mark.parametrize(
    ("batch", "conditions", "levels", "texts", "rows"),
    [
        (16, 2, 8, "ab", 8),  # ComfyUI
        (16, 2, 1, "ab", 8),  # one noise level for all
        (32, 2, 8, "abab", 8),  # two tiles in one call
        (8, 2, 8, "a", 8),  # one condition of two
        (8, 2, 8, "ab", 4),  # a window of both, with the levels of the whole batch
    ],
)
def test_the_rows_of_a_condition(comfy, batch, conditions, levels, texts, rows):
    from stillmotion.model_patches.comfy_host.motion.clips import rows_of_condition

    text = torch.cat([torch.full((batch // len(texts), 1, 1), float(ord(letter))) for letter in texts])
    options = {"cond_or_uncond": list(range(conditions)), "sigmas": torch.ones(levels)}
    assert rows_of_condition(batch, options, text) == rows


def test_rows_that_contradict_each_other_are_named(comfy):
    from stillmotion.model_patches.comfy_host.motion.clips import rows_of_condition

    options = {"cond_or_uncond": [1, 0], "sigmas": torch.ones(5)}
    with pytest.raises(ValueError, match="calls this MODEL with 8 images for 2 conditions of 5 images"):
        rows_of_condition(8, options)


def test_outside_a_sampler_a_part_of_a_clip_is_named(comfy):
    from stillmotion.model_patches.comfy_host.motion.clips import clip_length

    assert clip_length(4, 8, None, windowed=False) == 4
    with pytest.raises(ValueError, match="outside a sampler with 2 images of each condition, but a clip has 4 frames"):
        clip_length(4, 2, None, windowed=False)
