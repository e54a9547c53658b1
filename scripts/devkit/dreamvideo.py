"""The graphs of DreamVideo with the pocket model, in API form. The five graphs are similar, so they share their parts.

To change a value, edit it here and run `make_workflows.py`, which writes the files. The graphs use
pocket/dreamvideo.safetensors and are bundled only if that file exists.

The image is a bundled picture: the first frame of a clip that was not used in any training.
"""

from collections.abc import Callable

from .files import ROOT

FILE = "pocket/dreamvideo.safetensors"
PROMPT = "a green square moving left on a gray background"  # also the name of the picture
STAGES = (PROMPT, "a green square moving up on a gray background", "a green square moving right on a gray background")
SIDE = 64  # pixels
FRAMES, STEPS, SEED = 8, 25, 7
TRAINED_FRAMES = 16  # of the clips in the last phase of the bundled model's training
TEXT_SCALE, IMAGE_SCALE, IMAGE_ONLY_SCALE = 3, 3, 2
Link = tuple[str, int]  # the number of a node, and the index of its output


class Graph:
    """A graph in API form, while it is built."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict] = {}

    def add(self, class_type: str, title: str, **inputs: object) -> str:
        """Add a node and return its number. Inputs are values or links."""
        number = str(len(self.nodes) + 1)
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in inputs.items()}
        self.nodes[number] = {"inputs": values, "class_type": class_type, "_meta": {"title": title}}
        return number


class Parts:
    """The parts of all graphs: the pocket model with the motion model, the retention branch, the prompts."""

    def __init__(self, prompt: str | None = PROMPT, frames: int = FRAMES) -> None:
        self.graph = Graph()
        add = self.add = self.graph.add
        pocket = add("StillMotion_LoadPocket", "Load Pocket Stable Diffusion")
        self.clip, self.vae = (pocket, 1), (pocket, 2)
        self.frames = (add("PrimitiveInt", "Frames", value=frames), 0)
        motion = add("StillMotion_LoadMotionModel", "Load Motion Model", motion_name=FILE)
        strengths = dict.fromkeys(("mapping_strength", "token_strength", "spatial_strength"), 1)
        settings = {"frames": self.frames, "beta_schedule": "from file", **WHOLE, **strengths}
        models = {"model": (pocket, 0), "motion_model": (motion, 0)}
        self.model = (add("StillMotion_ApplyMotionModel", "Apply Motion Model", **settings, **models), 0)
        self.branch = (add("StillMotion_LoadRetentionBranch", "Load Retention Branch", branch_name=FILE), 0)
        if prompt is not None:
            self.positive: Link = (add("CLIPTextEncode", "Prompt", text=prompt, clip=self.clip), 0)
        self.negative: Link = (add("CLIPTextEncode", "Negative prompt", text="", clip=self.clip), 0)

    def image(self) -> Link:
        """The bundled picture."""
        return (self.add("StillMotion_PocketPicture", "Pocket Picture", picture=PROMPT), 0)

    def latent(self) -> Link:
        size = {"width": SIDE, "height": SIDE, "batch_size": self.frames}
        return (self.add("EmptyLatentImage", "Empty Latent Image", **size), 0)

    def image_latent(self, image: Link) -> Link:
        """The image in every frame, to be covered with noise. Full noise leaves only a trace of it, as in training."""
        latent = (self.add("VAEEncode", "VAE Encode", pixels=image, vae=self.vae), 0)
        return (self.add("RepeatLatentBatch", "Every frame", amount=self.frames, samples=latent), 0)

    def add_control(self) -> None:
        """Add a ControlNet with the edges of the square in the last frame of a clip, which set where it arrives."""
        x, y, side = 6, 23, 19
        page = (self.add("SolidMask", "Empty page", value=0, width=SIDE, height=SIDE), 0)
        mask = (self.add("SolidMask", "Where it arrives", value=1, width=side, height=side), 0)
        masks = {"destination": page, "source": mask, "x": x, "y": y, "operation": "add"}
        mask = (self.add("MaskComposite", "Place in the last frame", **masks), 0)
        sketch = (self.add("MaskToImage", "Convert Mask to Image", mask=mask), 0)
        thresholds = {"low_threshold": 0.1, "high_threshold": 0.2}
        edges = (self.add("Canny", "Detect Edges (Canny)", image=sketch, **thresholds), 0)
        net = (self.add("StillMotion_LoadPocketControlNet", "Load Pocket ControlNet"), 0)
        self._pair("ControlNetApplyAdvanced", "Apply ControlNet", control_net=net, image=edges, **WHOLE)
        frames = {"frames_with_control": "-1", "frames": self.frames}
        self._pair("StillMotion_ControlNetFrames", "ControlNet Frames", **frames)

    def add_retention(self, image: Link | None) -> None:
        links = {} if image is None else {"image": image}
        inputs = {"retention_branch": self.branch, "fit": "crop", **WHOLE, **links}
        self._pair("StillMotion_ApplyImageRetention", "Apply Image Retention", **inputs)

    def _pair(self, class_type: str, title: str, **inputs: object) -> None:
        """Add a node that changes the positive and the negative conditioning."""
        node = self.add(class_type, title, positive=self.positive, negative=self.negative, **inputs)
        self.positive, self.negative = (node, 0), (node, 1)

    def add_gradient(self) -> None:
        measure = {"bandwidth": "median_log", "jacobian": "plain", "variance": 0.05}
        measure |= {"compensate_size": True, "compensate_frames": True}
        options = self.add("StillMotion_MitigatingGradientOptions", "Mitigating Gradient Options", **measure)
        settings = {"alpha": 20, "frames": self.frames, "kernel": "rbf", "max_eps_ratio": 0.5}
        settings |= {"start_percent": 0, "end_percent": 1, "model": self.model, "options": (options, 0)}
        self.model = (self.add("StillMotion_MitigatingGradient", "Mitigating Gradient", **settings), 0)

    def add_sampler(self, latent: Link, *, reuse: bool = False, image_scale: int = IMAGE_SCALE) -> Link:
        noise: Link = (self.add("RandomNoise", "RandomNoise", noise_seed=SEED), 0)
        sampler: Link = (self.add("KSamplerSelect", "KSamplerSelect", sampler_name="ddim"), 0)
        if reuse:
            rules = {"overlap": 3, "recycle": 4, "staged_guidance": 0.4, "rule": "code", "reuse_step_noise": False}
            both = {"frames": self.frames, "noise": noise, "sampler": sampler}
            node = self.add("StillMotion_ReuseAndDiffuse", "Reuse and Diffuse", **rules, **both)
            noise, sampler = (node, 0), (node, 1)
        conditions = {"positive": self.positive, "negative": self.negative, "model": self.model}
        scales = {"text_scale": TEXT_SCALE, "image_scale": image_scale, "order": "text first"}
        guider = self.add("StillMotion_DoubleConditionGuider", "Double-Condition Guider", **scales, **conditions)
        levels = {"scheduler": "normal", "steps": STEPS, "denoise": 1, "model": self.model}
        sigmas = self.add("BasicScheduler", "BasicScheduler", **levels)
        links = {"noise": noise, "guider": (guider, 0), "sampler": sampler, "sigmas": (sigmas, 0)}
        return (self.add("SamplerCustomAdvanced", "SamplerCustomAdvanced", latent_image=latent, **links), 0)

    def finish(self, latent: Link, name: str) -> dict:
        """Add the nodes that decode and save the video, and return the graph."""
        images = (self.add("VAEDecode", "VAE Decode", samples=latent, vae=self.vae), 0)
        larger = {"upscale_method": "nearest-exact", "scale_by": 8, "image": images}
        images = (self.add("ImageScaleBy", "Upscale Image By", **larger), 0)
        video = (self.add("CreateVideo", "Create Video", fps=8, bit_depth=8, images=images), 0)
        file = {"filename_prefix": f"video/{name}", "format": "mp4", "codec": "h264", "codec.encoding": "auto"}
        self.add("SaveVideo", "Save Video", video=video, **file)
        return self.graph.nodes


WHOLE = {"strength": 1, "start_percent": 0, "end_percent": 1}


def text_image_to_video() -> dict:
    parts = Parts()
    parts.add_retention(parts.image())
    return parts.finish(parts.add_sampler(parts.latent()), "dreamvideo_text_image_to_video")


def image_to_video() -> dict:
    """With an empty prompt. No text determines the colours, so the noise is added to the image (ADR 12)."""
    parts = Parts("", TRAINED_FRAMES)
    image = parts.image()
    parts.add_retention(image)
    latent = parts.add_sampler(parts.image_latent(image), image_scale=IMAGE_ONLY_SCALE)
    return parts.finish(latent, "dreamvideo_image_to_video")


def text_to_video() -> dict:
    """The same graph without an image; the node then uses a white one."""
    parts = Parts()
    parts.add_retention(None)
    return parts.finish(parts.add_sampler(parts.latent()), "dreamvideo_text_to_video")


def stages() -> dict:
    """Three prompts; the second and third stage begin with the last frame of the previous stage."""
    parts = Parts(None)
    prompts = parts.add("StillMotion_StagePrompts", "Stage Prompts", text="\n".join(STAGES), clip=parts.clip)
    size = parts.add("EmptyLatentImage", "Empty Latent Image", width=SIDE, height=SIDE, batch_size=1)
    options = {"drop_doubled": False, "reanchor": "off", "order": "text first", "strength": 1, "fit": "crop"}
    stage = parts.add("StillMotion_StageOptions", "Stage Options", **options, image_under_noise="off")
    file = {"name": "dreamvideo_stages", "fps": 8, "seconds": 0, "format": "h264-mp4", "enlarge": 8}
    output = parts.add("StillMotion_VideoOutputOptions", "Video Output Options", **file, keep="everything")
    inputs = {"model": parts.model, "vae": parts.vae, "retention_branch": parts.branch, "prompts": (prompts, 0)}
    inputs |= {"negative": parts.negative, "image": parts.image(), "frames": parts.frames, "latent": (size, 0)}
    inputs |= {"stage_options": (stage, 0), "output_options": (output, 0)}
    settings = {"seed": SEED, "steps": STEPS, "text_scale": TEXT_SCALE, "image_scale": IMAGE_SCALE}
    settings |= {"sampler_name": "ddim", "scheduler": "normal"}
    video = (parts.add("StillMotion_StagedVideo", "Staged Video", **settings, **inputs), 0)
    parts.add("StillMotion_VideoContinuity", "Video Continuity", video=video, frames=parts.frames)
    return parts.graph.nodes


def combination() -> dict:
    """Two clips with an image (DreamVideo), a stock ControlNet, reuse of the previous clip (VidRD), and the mitigating
    gradient (HARIVO)."""
    parts = Parts()
    parts.add_gradient()
    parts.add_control()
    parts.add_retention(parts.image())
    latent = (parts.add("RepeatLatentBatch", "Clips", amount=2, samples=parts.latent()), 0)
    return parts.finish(parts.add_sampler(latent, reuse=True), "dreamvideo_combination_pocket")


GRAPHS: dict[str, Callable[[], dict]] = {
    "dreamvideo_text_image_to_video": text_image_to_video,
    "dreamvideo_image_to_video": image_to_video,
    "dreamvideo_text_to_video": text_to_video,
    "dreamvideo_stages": stages,
    "dreamvideo_combination_pocket": combination,
}


def bundled() -> bool:
    """Whether the model file of the graphs exists."""
    return (ROOT / FILE).is_file()
