"""StillMotion/loaders: the bundled pocket model, its ControlNet, its LoRA and pictures in its style."""

# V3 nodes take their inputs by name, so every `execute` has its own signature.
# pyright: reportIncompatibleMethodOverride=false

from comfy_api.v0_0_2 import io, ui

from ..evaluation.drawing.views import read_batch
from ..model_patches.comfy_host.pocket import load_pocket, load_pocket_control, with_pocket_lora
from .common import files
from .common.sockets import CATEGORY

POCKET, CONTROL = files.POCKET / "pocket.safetensors", files.POCKET / "control_edges.safetensors"
LORA = files.POCKET / "loras" / "pocket_glow.safetensors"
PICTURES = files.POCKET / "pictures"


class LoadPocket(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_LoadPocket",
            display_name="Load Pocket Stable Diffusion",
            category=f"{CATEGORY}/loaders",
            description="Loads the small Stable Diffusion that comes with StillMotion. It makes 64x64 images of "
            "coloured shapes, so that graphs can be tried without a download. Its outputs work with all nodes of "
            "ComfyUI.",
            search_aliases=["checkpoint loader", "demo model", "test model", "pocket"],
            inputs=[],
            outputs=[
                io.Model.Output(tooltip="The U-Net, for images of 64 x 64 pixels. It predicts eps."),
                io.Clip.Output(tooltip="The text encoder, for CLIP Text Encode."),
                io.Vae.Output(tooltip="The autoencoder, for VAE Encode and VAE Decode."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls) -> tuple[int, int]:
        return files.fingerprint(files.bundled(POCKET))

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_pocket(files.bundled(POCKET)))


class LoadPocketControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_LoadPocketControlNet",
            display_name="Load Pocket ControlNet",
            category=f"{CATEGORY}/loaders",
            description="Loads the edge ControlNet of the pocket Stable Diffusion. Its shapes follow white edges on "
            "black, as the Canny node draws them. ControlNet Frames limits it to some frames.",
            search_aliases=["canny", "edges", "ControlNet"],
            inputs=[],
            outputs=[io.ControlNet.Output(tooltip="The ControlNet; connect it to Apply ControlNet.")],
        )

    @classmethod
    def fingerprint_inputs(cls) -> tuple[int, int]:
        return files.fingerprint(files.bundled(CONTROL))

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(load_pocket_control(files.bundled(CONTROL)))


class LoadPocketLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_LoadPocketLora",
            display_name="Load Pocket LoRA",
            category=f"{CATEGORY}/loaders",
            description="Applies the LoRA of the pocket Stable Diffusion, which makes its shapes glow. It fits no "
            "other model, so it is not in the list of ComfyUI's Load LoRA.",
            search_aliases=["LoRA", "glow", "style", "pocket_glow"],
            inputs=[
                io.Model.Input("model", tooltip="The model of Load Pocket Stable Diffusion."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-4.0,
                    max=4.0,
                    step=0.01,
                    tooltip="Strength of the LoRA, a factor without unit. 1 is as trained, 0 is off.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the LoRA; connect it to Apply Motion Model or a sampler.")
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, model=None, strength: float = 1.0) -> tuple[int, int]:  # noqa: ARG003
        return files.fingerprint(files.bundled(LORA))

    @classmethod
    def execute(cls, model, strength: float = 1.0) -> io.NodeOutput:
        return io.NodeOutput(with_pocket_lora(model, files.bundled(LORA), strength))


class PocketPicture(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_PocketPicture",
            display_name="Pocket Picture",
            category=f"{CATEGORY}/loaders",
            description="Loads a picture in the style of the pocket Stable Diffusion, as the first frame of an image "
            "to video graph. With a photo model use Load Image instead.",
            search_aliases=["load image", "example image", "first frame", "image to video", "pocket"],
            inputs=[
                io.Combo.Input(
                    "picture",
                    options=sorted(path.stem for path in PICTURES.glob("*.png")),  # the name of a file is its caption
                    tooltip="The bundled picture to load. Its name is also a prompt that fits it.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="The picture: one image of 64 x 64 pixels."),
                io.String.Output("caption", tooltip="A prompt that fits the picture and says how its shape moves."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, picture: str) -> tuple[int, int]:
        return files.fingerprint(files.bundled(PICTURES / f"{picture}.png"))

    @classmethod
    def execute(cls, picture: str) -> io.NodeOutput:
        image = read_batch(files.bundled(PICTURES / f"{picture}.png"))
        return io.NodeOutput(image, picture, ui=ui.PreviewImage(image, cls=cls))


NODES = [LoadPocket, LoadPocketControlNet, LoadPocketLora, PocketPicture]
