"""ART-V: its model, the videos that it makes frame by frame onto the disk, and the stories that they tell."""

# pyright: reportIncompatibleMethodOverride=false
# a V3 node names its inputs as the arguments of execute, whose base takes any keyword

from pathlib import Path
from typing import Any

from comfy_api.latest import io, ui

from ..evaluation.drawing.masks import draw_masks, masks_text
from ..evaluation.drawing.views import as_batch
from ..model_patches.artv.guidance import MASKS
from ..model_patches.artv.story import parse_story
from ..model_patches.comfy_host.artv.files import load_artv
from ..model_patches.comfy_host.artv.masks import as_images, image_masks, schedule_parts
from ..model_patches.comfy_host.conditions.prompts import ToldStory
from ..model_patches.comfy_host.video.autoregressive import FITS
from . import files, sockets
from .options import render_sockets
from .render import widgets
from .render.autoregressive import RollRequest
from .render.base import RenderNode
from .render.options import ArtvOptions
from .sockets import CATEGORY, ArtvModel, Story

GROUP = f"{CATEGORY}/autoregressive"
FOLDERS = (files.OWN,)
BUNDLED = {"pocket/artv.safetensors": files.POCKET / "artv.safetensors"}

files.add_folder(files.OWN)


def artv_path(name: str) -> Path:
    """The file behind a name of the list. ValueError when it has gone, naming the folders that were searched."""
    return files.path_of(name, FOLDERS, BUNDLED, "ART-V model")


class LoadArtvModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_LoadArtvModel",
            display_name="Load ART-V Model",
            category=f"{CATEGORY}/loaders",
            description="Reads an ART-V model: what lets an image model draw the frame after two others, and the mask "
            "network that copies what does not move.",
            search_aliases=["ART-V", "autoregressive", "frame by frame", "image to video"],
            inputs=[
                io.Combo.Input(
                    "artv_name",
                    options=files.names(FOLDERS, BUNDLED),
                    tooltip="A StillMotion ART-V file of models/stillmotion, or the bundled one for the pocket Stable "
                    "Diffusion.",
                ),
            ],
            outputs=[
                ArtvModel.Output("artv_model", tooltip="For Autoregressive Video."),
                io.String.Output("info", tooltip="What the file was taken for, and its sizes."),
            ],
        )

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
            description="Several prompts one after the other, each for so many frames, for Autoregressive Video. "
            "Each is encoded when its first frame is made.",
            search_aliases=["ART-V", "multi prompt", "prompt travel", "storyboard"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    tooltip='One prompt per line. "24: a red ball rolls" is for 24 frames; a line without a number is '
                    "for 16, as in the paper.",
                ),
            ],
            outputs=[Story.Output("story", tooltip="For Autoregressive Video.")],
        )

    @classmethod
    def execute(cls, clip, text: str) -> io.NodeOutput:
        return io.NodeOutput(ToldStory.of(clip, parse_story(text)))


class AutoregressiveOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        weight: dict[str, Any] = {"min": 0.0, "max": 100.0, "step": 0.05}
        return io.Schema(
            node_id="StillMotion_AutoregressiveOptions",
            display_name="Autoregressive Options",
            category=f"{CATEGORY}/options",
            description="Guidance by earlier frames, noise on them, and masks for Autoregressive Video (ART-V). "
            "Without this node the values are those of the paper.",
            search_aliases=["ART-V", "reference weight", "anchor", "noise augmentation", "masked diffusion"],
            inputs=[
                io.Float.Input(
                    "reference_weight",
                    default=ArtvOptions.reference_weight,
                    tooltip="Guidance by the two frames before, no unit. 0 saves a model call in each step.",
                    **weight,
                ),
                io.Float.Input(
                    "anchor_weight",
                    default=ArtvOptions.anchor_weight,
                    tooltip="Guidance by the anchor, no unit. 0 saves a model call in each step.",
                    **weight,
                ),
                io.Int.Input(
                    "t_test",
                    default=ArtvOptions.t_test,
                    min=0,
                    max=999,
                    tooltip="Time step whose noise is put on references and anchor, so that errors do not add up. 0 is "
                    "none, 200 the paper's; it was trained up to 550.",
                ),
                io.Combo.Input(
                    "masks",
                    options=list(MASKS),
                    default=ArtvOptions.masks,
                    tooltip="What decides where the frame before is copied. one for all: decided under all conditions, "
                    "then only what moves is guided. one for each: the four predictions decide by themselves, as in "
                    "the paper's formula; where they disagree, guidance grows from step to step and pictures burst.",
                ),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    default=ArtvOptions.fit,
                    tooltip="A picture or video of another size. crop: scaled until it covers the frame, cut at both "
                    "sides. stretch: pulled into shape.",
                ),
            ],
            outputs=[sockets.ArtvOptions.Output("artv_options", tooltip="For Autoregressive Video.")],
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
            description="Makes a video of any length one frame at a time (ART-V), each from the two before it and an "
            "anchor, straight into a file. It begins with a picture, with what the model draws, or where a video ends. "
            "Queue it again after an interrupt or a crash and it resumes; ask for more frames to extend it.",
            search_aliases=["ART-V", "image to video", "story", "continue video", "long video", "resume"],
            inputs=cls._sockets() + cls._widgets(),
            outputs=[
                io.Video.Output("video", tooltip="The finished video, read from its file when it is needed."),
                io.Image.Output("last_frame", tooltip="The last frame."),
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
            io.Vae.Input("vae", tooltip="Decodes the frames, and encodes what the video begins with."),
            widgets.latent(),
            io.Conditioning.Input(
                "positive",
                optional=True,
                tooltip="For all frames. ControlNet images may be as many as the video has frames.",
            ),
            io.Conditioning.Input(
                "negative",
                optional=True,
                tooltip="An empty text, as in the training. With a story it may be left out; it is not needed with "
                "text_weight 0.",
            ),
            Story.Input("story", optional=True, tooltip="From Story: its texts replace the text of positive."),
            io.Image.Input(
                "image", optional=True, tooltip="The first frame; without it and without a video the model draws one."
            ),
            io.Video.Input(
                "video",
                optional=True,
                tooltip="A video to continue: its last two frames come before the first frame of the new one.",
            ),
            io.Image.Input(
                "anchor",
                optional=True,
                tooltip="With video: a picture that keeps the look, in the place of the video's last frame.",
            ),
            sockets.ArtvOptions.Input(
                "artv_options",
                optional=True,
                tooltip="From Autoregressive Options: guidance by earlier frames, noise on them, masks. Without them "
                "as in the paper.",
            ),
            *render_sockets(),
        ]

    @classmethod
    def _widgets(cls) -> list[Any]:
        return [
            widgets.seed(),
            widgets.frames(
                RollRequest,
                "Frames of the video; at least those of a story, whose last prompt goes on. Raise it after a render "
                "has finished to extend the video.",
                100000,
            ),
            io.Float.Input(
                "text_weight",
                default=RollRequest.text_weight,
                min=0.0,
                max=100.0,
                step=0.1,
                tooltip="Guidance by the text, no unit; 6.5 is what cfg 7.5 is elsewhere.",
            ),
            *widgets.sampling(
                RollRequest, steps="50 in the paper.", sampler="Any sampler; dpmpp_2s_ancestral in the paper."
            ),
        ]


class ArtvMasks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_ArtvMasks",
            display_name="ART-V Masks",
            category=f"{CATEGORY}/views",
            description="Where ART-V would copy the frame before, at each part of the schedule, on frames that are "
            "there: bright is copied, dark is drawn. Runs the model on the frames with noise added.",
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
                    tooltip="At how many places of the schedule; the model is run as often for each frame.",
                ),
                io.Int.Input(
                    "t_test",
                    default=200,
                    min=0,
                    max=999,
                    advanced=True,
                    tooltip="Time step whose noise is put on references and anchor, as in Autoregressive Video.",
                ),
                widgets.seed("Seed of the added noise.", advanced=True),
            ],
            outputs=[
                io.Image.Output("picture", tooltip="A row for each level, a column for each frame, and the curves."),
                io.Image.Output("masks", tooltip="Each mask as a picture, level after level within a frame."),
                io.String.Output("measures", tooltip="Mean and contrast at each level, in 0 to 1."),
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
        told = masks_text(masks, percents)
        return io.NodeOutput(picture, as_images(masks), told, ui=ui.PreviewImage(picture, cls=cls))


NODES = [LoadArtvModel, StoryNode, AutoregressiveOptions, AutoregressiveVideo, ArtvMasks]
