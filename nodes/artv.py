"""ART-V: the loader of its model, videos that are rendered frame by frame into a file, stories and mask views."""

# pyright: reportIncompatibleMethodOverride=false
# a V3 node names its inputs as the arguments of execute, whose base takes any keyword

from pathlib import Path
from typing import Any

from comfy_api.v0_0_2 import io, ui

from ..evaluation.drawing.masks import draw_masks, masks_text
from ..evaluation.drawing.views import as_batch
from ..model_patches.artv.guidance import MASKS
from ..model_patches.artv.story import parse_story
from ..model_patches.comfy_host.artv.files import load_artv
from ..model_patches.comfy_host.artv.masks import as_images, image_masks, schedule_parts
from ..model_patches.comfy_host.conditions.prompts import StoryPrompts
from ..model_patches.comfy_host.video.autoregressive import FITS
from .common import files, sockets
from .common.sockets import CATEGORY, ArtvModel, Story
from .options import render_sockets
from .render import widgets
from .render.autoregressive import RollRequest
from .render.base import RenderNode
from .render.options import ArtvOptions

GROUP = f"{CATEGORY}/autoregressive"
FOLDERS = (files.OWN,)
BUNDLED = {"pocket/artv.safetensors": files.POCKET / "artv.safetensors"}

files.add_folder(files.OWN)


def artv_path(name: str) -> Path:
    """The path of a listed file. ValueError, with the folders that were searched, when it no longer exists."""
    return files.path_of(name, FOLDERS, BUNDLED, "ART-V model")


class LoadArtvModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_LoadArtvModel",
            display_name="Load ART-V Model",
            category=f"{CATEGORY}/loaders",
            description="Loads an ART-V model: the layers with which an image model draws the next frame from the two "
            "frames before it, and the mask network that copies what does not move.",
            search_aliases=["ART-V", "autoregressive", "frame by frame", "image to video"],
            inputs=[
                io.Combo.Input(
                    "artv_name",
                    options=files.names(FOLDERS, BUNDLED),
                    tooltip="An ART-V file in models/stillmotion, or the bundled one for the pocket Stable Diffusion.",
                ),
            ],
            outputs=[
                ArtvModel.Output("artv_model", tooltip="The ART-V model; connect it to Autoregressive Video."),
                io.String.Output("info", tooltip="Kind of the file and its sizes, as text."),
            ],
        )

    @classmethod
    def validate_inputs(cls, artv_name: str | None = None) -> bool | str:
        return files.validated(artv_path, artv_name)

    @classmethod
    def fingerprint_inputs(cls, artv_name: str) -> tuple[int, int]:
        return files.fingerprint(artv_path(artv_name))

    @classmethod
    def execute(cls, artv_name: str) -> io.NodeOutput:
        artv = load_artv(artv_path(artv_name))
        return io.NodeOutput(artv, artv.info)


class StoryNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_Story",
            display_name="Story",
            category=GROUP,
            description="Several prompts in a row for Autoregressive Video, each for a number of frames. A prompt is "
            "encoded when its first frame is rendered.",
            search_aliases=["ART-V", "multi prompt", "prompt travel", "storyboard"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    tooltip='One prompt per line. "24: a red ball rolls" lasts 24 frames; a line without a number '
                    "lasts 16 frames, as in the paper.",
                ),
            ],
            outputs=[Story.Output("story", tooltip="The prompts; connect them to Autoregressive Video.")],
        )

    @classmethod
    def execute(cls, clip, text: str) -> io.NodeOutput:
        return io.NodeOutput(StoryPrompts.of(clip, parse_story(text)))


class AutoregressiveOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        weight: dict[str, Any] = {"min": 0.0, "max": 100.0, "step": 0.05}
        return io.Schema(
            node_id="StillMotion_AutoregressiveOptions",
            display_name="Autoregressive Options",
            category=f"{CATEGORY}/options",
            description="Settings of Autoregressive Video (ART-V): guidance by earlier frames, noise on them, and "
            "masks. Without this node the paper's values are used.",
            search_aliases=["ART-V", "reference weight", "anchor", "noise augmentation", "masked diffusion"],
            inputs=[
                io.Float.Input(
                    "reference_weight",
                    default=ArtvOptions.reference_weight,
                    tooltip="Guidance scale of the two previous frames, without unit. 0 saves one model call per step.",
                    **weight,
                ),
                io.Float.Input(
                    "anchor_weight",
                    default=ArtvOptions.anchor_weight,
                    tooltip="Guidance scale of the anchor, without unit. 0 saves one model call per step.",
                    **weight,
                ),
                io.Int.Input(
                    "t_test",
                    default=ArtvOptions.t_test,
                    min=0,
                    max=999,
                    tooltip="Timestep (of 1000) whose amount of noise is added to the previous frames and the anchor, "
                    "so that errors do not accumulate. 0 adds none; the paper uses 200; trained up to 550.",
                ),
                io.Combo.Input(
                    "masks",
                    options=list(MASKS),
                    default=ArtvOptions.masks,
                    tooltip="Which mask decides where the previous frame is copied. one for all: the mask of the "
                    "prediction with all conditions; only what moves is guided. one for each: each of the four "
                    "predictions has its own, as in the paper's formula; where they differ, pictures can burst.",
                ),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    default=ArtvOptions.fit,
                    tooltip="What to do when a picture and the video have different aspect ratios. crop: keep the "
                    "middle of the picture. stretch: stretch the picture.",
                ),
            ],
            outputs=[sockets.ArtvOptions.Output("artv_options", tooltip="Connect them to Autoregressive Video.")],
        )

    @classmethod
    def execute(cls, **options) -> io.NodeOutput:
        return io.NodeOutput(ArtvOptions(**options))


class AutoregressiveVideo(RenderNode):
    request = RollRequest

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_AutoregressiveVideo",
            display_name="Autoregressive Video",
            category=GROUP,
            description="Renders a video of any length one frame at a time (ART-V), straight into a file. Each frame "
            "is drawn from the two frames before it and an anchor. The video begins with a picture, with a frame that "
            "the model draws, or at the end of another video. Queue it again after an interrupt or a crash and it "
            "resumes; raise frames to extend it.",
            search_aliases=["ART-V", "image to video", "story", "continue video", "long video", "resume"],
            inputs=cls._sockets() + cls._widgets(),
            outputs=[
                io.Video.Output("video", tooltip="The finished video, read from its file when it is needed."),
                io.Image.Output("last_frame", tooltip="The last frame of the video."),
                io.String.Output("job", tooltip="The path of the job's folder."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def _sockets(cls) -> list[Any]:
        return [
            io.Model.Input("model", tooltip="The image model that the ART-V model was trained on."),
            ArtvModel.Input("artv", tooltip="From Load ART-V Model."),
            io.Vae.Input("vae", tooltip="The VAE of the model. It decodes the frames and encodes the first picture."),
            widgets.latent(),
            io.Conditioning.Input(
                "positive",
                optional=True,
                tooltip="The prompt, for all frames. A ControlNet may have one image for each frame of the video.",
            ),
            io.Conditioning.Input(
                "negative",
                optional=True,
                tooltip="The conditioning of an empty prompt, as in training. It is optional with a story or with "
                "text_weight 0.",
            ),
            Story.Input(
                "story", optional=True, tooltip="The output of Story. Its prompts replace the prompt of positive."
            ),
            io.Image.Input(
                "image",
                optional=True,
                tooltip="The first frame. Without image and video, the model draws the first frame.",
            ),
            io.Video.Input(
                "video",
                optional=True,
                tooltip="A video to continue: its last two frames come before the first frame of the new one.",
            ),
            io.Image.Input(
                "anchor",
                optional=True,
                tooltip="With video: a picture whose look is kept. Without it, the last frame of the video is used.",
            ),
            sockets.ArtvOptions.Input(
                "artv_options",
                optional=True,
                tooltip="The output of Autoregressive Options: guidance by earlier frames, noise on them, masks. "
                "Without it the paper's values are used.",
            ),
            *render_sockets(),
        ]

    @classmethod
    def _widgets(cls) -> list[Any]:
        return [
            widgets.seed(),
            widgets.frames(
                RollRequest,
                "Number of frames of the video. A story has at least its own number; its last prompt then "
                "continues. Raise it after a render has finished to extend the video.",
                100000,
            ),
            io.Float.Input(
                "text_weight",
                default=RollRequest.text_weight,
                min=0.0,
                max=100.0,
                step=0.1,
                tooltip="Guidance scale of the prompt, without unit. 6.5 has the effect of cfg 7.5 elsewhere.",
            ),
            *widgets.sampling(
                RollRequest, steps="50 in the paper", sampler="Any sampler. The paper uses dpmpp_2s_ancestral."
            ),
        ]


class ArtvMasks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_ArtvMasks",
            display_name="ART-V Masks",
            category=f"{CATEGORY}/views",
            description="Shows, for the frames of an existing video, where ART-V would copy the previous frame "
            "(bright) and where it would draw (dark), at several noise levels. It runs the model on the frames with "
            "noise added.",
            search_aliases=["ART-V", "masked diffusion", "static and dynamic"],
            inputs=[
                io.Model.Input("model", tooltip="The image model that the ART-V model was trained on."),
                ArtvModel.Input("artv", tooltip="From Load ART-V Model."),
                io.Vae.Input("vae", tooltip="Encodes the frames."),
                io.Conditioning.Input("positive", tooltip="The prompt of the video."),
                io.Image.Input("images", tooltip="The frames of one video, in order; the first is the anchor."),
                io.Int.Input(
                    "levels",
                    default=6,
                    min=1,
                    max=50,
                    tooltip="Number of noise levels. The model runs once per frame and level.",
                ),
                io.Int.Input(
                    "t_test",
                    default=200,
                    min=0,
                    max=999,
                    advanced=True,
                    tooltip="Timestep (of 1000) whose amount of noise is added to the previous frames and the anchor, "
                    "as in Autoregressive Options.",
                ),
                widgets.seed("Seed of the added noise.", advanced=True),
            ],
            outputs=[
                io.Image.Output("picture", tooltip="One row per level and one column per frame, and the curves."),
                io.Image.Output(
                    "masks",
                    tooltip="Each mask as an image: all levels of the first frame, then of the second, and so on.",
                ),
                io.String.Output("measures", tooltip="Mean and contrast of the masks at each level, from 0 to 1."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, model, artv, vae, positive, images, levels: int, t_test: int = 200, seed: int = 0
    ) -> io.NodeOutput:
        percents = schedule_parts(levels)
        masks = image_masks(model, artv, vae, positive, images, percents=percents, level=t_test, seed=seed)
        picture = as_batch(draw_masks(masks, percents))
        measures = masks_text(masks, percents)
        return io.NodeOutput(picture, as_images(masks), measures, ui=ui.PreviewImage(picture, cls=cls))


NODES = [LoadArtvModel, StoryNode, AutoregressiveOptions, AutoregressiveVideo, ArtvMasks]
