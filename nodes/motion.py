"""StillMotion/loaders and StillMotion/motion: reads a motion model from a file and applies it to a model."""

# pyright: reportIncompatibleMethodOverride=false
# a V3 node names its inputs as the arguments of execute, whose base takes any keyword

from pathlib import Path

from comfy_api.v0_0_2 import io

from ..model_patches.comfy_host.motion.apply import BETA_SCHEDULES, FROM_FILE, apply_motion
from ..model_patches.comfy_host.motion.files import load_motion
from ..model_patches.comfy_host.motion.lora import with_lora
from .common import files
from .common.files import POCKET
from .common.sockets import CATEGORY, MotionModel
from .render import widgets

FOLDERS = (files.OWN, "animatediff_models")  # folders in models/: ours, and that of AnimateDiff files
OWN = ("motion", "harivo", "vidrd", "dreamvideo")
BUNDLED = {f"pocket/{name}.safetensors": POCKET / f"{name}.safetensors" for name in OWN}

LORA_FOLDERS = (files.OWN, "animatediff_motion_lora")  # folders in models/: ours, and that of AnimateDiff's LoRAs

for name in (*FOLDERS, *LORA_FOLDERS):
    files.add_folder(name)


def motion_names() -> list[str]:
    """The entries of the loader's list."""
    return files.names(FOLDERS, BUNDLED)


def motion_path(name: str) -> Path:
    """The path of a listed file. ValueError, with the folders that were searched, when it no longer exists."""
    return files.path_of(name, FOLDERS, BUNDLED, "motion model")


def lora_path(name: str) -> Path:
    """The path of a listed motion LoRA. ValueError, with the folders that were searched, when it no longer exists."""
    return files.path_of(name, LORA_FOLDERS, {}, "motion LoRA")


class LoadMotionModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_LoadMotionModel",
            display_name="Load Motion Model",
            category=f"{CATEGORY}/loaders",
            description="Loads a motion model: StillMotion's own files, HARIVO and VidRD files with all their parts, "
            "AnimateDiff v1, v2 and v3 and AnimateLCM for SD 1.5, AnimateDiff-SDXL, Hotshot-XL, and diffusers' motion "
            "adapters. The kind is recognised by the content of the file.",
            search_aliases=["AnimateDiff", "HARIVO", "VidRD", "motion module", "motion adapter", "temporal layers"],
            inputs=[
                io.Combo.Input(
                    "motion_name",
                    options=motion_names(),
                    tooltip="A file in models/animatediff_models or models/stillmotion, or a bundled one for the "
                    "pocket Stable Diffusion.",
                ),
            ],
            outputs=[
                MotionModel.Output("motion_model", tooltip="The motion model; connect it to Apply Motion Model."),
                io.String.Output("info", tooltip="Kind of the file, longest clip in frames, and sizes, as text."),
            ],
        )

    @classmethod
    def validate_inputs(cls, motion_name: str | None = None) -> bool | str:
        return files.validated(motion_path, motion_name)

    @classmethod
    def fingerprint_inputs(cls, motion_name: str) -> tuple[int, int]:
        return files.fingerprint(motion_path(motion_name))

    @classmethod
    def execute(cls, motion_name: str) -> io.NodeOutput:
        motion = load_motion(motion_path(motion_name))
        return io.NodeOutput(motion, motion.info)


class MotionLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_MotionLora",
            display_name="Motion LoRA",
            category=f"{CATEGORY}/motion",
            description="Adds a motion LoRA to a motion model, for example a camera movement for AnimateDiff v2. "
            "Several of these nodes can follow each other. The layouts of AnimateDiff, MotionDirector, diffusers and "
            "PEFT are recognised by the content of the file.",
            search_aliases=["AnimateDiff", "motion LoRA", "camera movement", "MotionDirector", "pan", "zoom"],
            inputs=[
                MotionModel.Input(
                    "motion_model", tooltip="The output of Load Motion Model, or of another Motion LoRA."
                ),
                io.Combo.Input(
                    "lora_name",
                    options=files.names(LORA_FOLDERS, {}),
                    tooltip="A file in models/animatediff_motion_lora or models/stillmotion, trained on this kind of "
                    "motion model.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Strength of the LoRA, a factor without unit. 1 is as trained, 0 is off, negative values "
                    "reverse it.",
                ),
                *widgets.percents(
                    "LoRA", last="A LoRA that does not last from 0 to 1 needs the memory of a second motion model."
                ),
            ],
            outputs=[
                MotionModel.Output(
                    "motion_model", tooltip="The motion model with the LoRA; connect it to Apply Motion Model."
                ),
                io.String.Output("info", tooltip="The motion model and its LoRAs, as text."),
            ],
        )

    @classmethod
    def validate_inputs(cls, lora_name: str | None = None) -> bool | str:
        return files.validated(lora_path, lora_name)

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, **_: object) -> tuple[int, int]:
        return files.fingerprint(lora_path(lora_name))

    @classmethod
    def execute(
        cls, motion_model, lora_name: str, strength: float, start_percent: float, end_percent: float
    ) -> io.NodeOutput:
        path = lora_path(lora_name)
        motion = with_lora(motion_model, path, strength=strength, start_percent=start_percent, end_percent=end_percent)
        return io.NodeOutput(motion, motion.info)


class ApplyMotionModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_ApplyMotionModel",
            display_name="Apply Motion Model",
            category=f"{CATEGORY}/motion",
            description="Turns an image model into a video model: the images of a batch become the frames of a clip. "
            "Works with every sampler, LoRA and ControlNet. A second motion model adds to the first.",
            search_aliases=["AnimateDiff", "HARIVO", "VidRD", "temporal attention", "motion module", "text to video"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The image model that the motion model was trained on, or a fine-tune of it."
                ),
                MotionModel.Input("motion_model", tooltip="The output of Load Motion Model."),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=1,
                    max=4096,
                    tooltip="Number of frames of one clip: the batch size of the latent, or a divisor of it for "
                    "several clips at once. With context windows: the batch size. 1 leaves the model unchanged.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=4.0,
                    step=0.01,
                    tooltip="Strength of the temporal layers, a factor without unit. 1 is as trained, 0 is off.",
                ),
                *widgets.percents("motion model"),
                io.Combo.Input(
                    "beta_schedule",
                    options=list(BETA_SCHEDULES),
                    default=FROM_FILE,
                    advanced=True,
                    tooltip="Noise levels of the sampling. from file: the levels that the motion model was trained "
                    "with. model: the levels of the image model. linear: AnimateDiff's. scaled_linear: Stable "
                    "Diffusion's.",
                ),
                io.Float.Input(
                    "mapping_strength",
                    optional=True,  # so that graphs from before it was added still run
                    default=1.0,
                    min=0.0,
                    max=4.0,
                    step=0.01,
                    advanced=True,
                    tooltip="For HARIVO files: strength of the mapping network, which changes the noisy latent before "
                    "the U-Net; a factor without unit. 1 is as trained, 0 is off. Other files have no such part.",
                ),
                io.Float.Input(
                    "token_strength",
                    optional=True,  # so that graphs from before it was added still run
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    advanced=True,
                    tooltip="For HARIVO files: strength of the text tokens of each frame, a factor without unit. 1 is "
                    "as trained, 0 is off. Other files have no such part.",
                ),
                io.Float.Input(
                    "spatial_strength",
                    optional=True,  # so that graphs from before it was added still run
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="For VidRD files: mix of the weights of the spatial transformers, without unit. 0: those "
                    "of the image model. 1: the fine-tuned ones. Other files have no such part.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with the motion model; connect it to the sampler.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        motion_model,
        frames: int,
        strength: float,
        start_percent: float,
        end_percent: float,
        beta_schedule: str = FROM_FILE,
        mapping_strength: float = 1.0,
        token_strength: float = 1.0,
        spatial_strength: float = 1.0,
    ) -> io.NodeOutput:
        patched = apply_motion(
            model,
            motion_model,
            frames=frames,
            strength=strength,
            start_percent=start_percent,
            end_percent=end_percent,
            beta_schedule=beta_schedule,
            mapping=mapping_strength,
            tokens=token_strength,
            spatial=spatial_strength,
        )
        return io.NodeOutput(patched)


NODES = [LoadMotionModel, MotionLora, ApplyMotionModel]
