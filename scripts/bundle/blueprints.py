"""Subgraph blueprints: all nodes of a system as one node in the editor's node library.

A blueprint is built in the editor from nodes in API form. `inputs` and `outputs` list the inputs and outputs of the
blueprint in order, with the inner sockets or widgets to which each is connected. `make_workflows.py` writes the files
in `subgraphs/`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devkit.dreamvideo import Graph, Link
from devkit.editor import Editor
from devkit.files import ROOT, Failed

FOLDER = ROOT / "subgraphs"
CATEGORY = "StillMotion"
SOCKETS = ("model", "clip", "vae", "artv", "image")  # placed above the widgets, in this order
SIDE, FRAMES = 64, 16
Inner = tuple[str, str | int]  # title of a node, and the name of its input or the index of its output


@dataclass(frozen=True)
class Blueprint:
    """The node in the node library, and the nodes inside it."""

    title: str
    about: str
    aliases: tuple[str, ...]
    nodes: dict[str, dict]
    inputs: dict[str, list[Inner]]
    outputs: dict[str, Inner]

    @property
    def file(self) -> Path:
        return FOLDER / f"{self.title}.json"


@dataclass
class Parts:
    """The nodes and inputs of a blueprint while it is built. Every node has a title of its own."""

    graph: Graph = field(default_factory=Graph)
    inputs: dict[str, list[Inner]] = field(default_factory=dict)

    def add(self, class_type: str, title: str, exposed: tuple[str, ...] | dict[str, str] = (), **values: Any) -> Link:
        """Add a node, and make inputs of the blueprint from some of its inputs: `exposed` contains their names, or
        {name on the blueprint: name on the node}.

        A name that several nodes use becomes one input of the blueprint.
        """
        names = exposed if isinstance(exposed, dict) else {name: name for name in exposed}
        for outer, inner in names.items():
            self.inputs.setdefault(outer, []).append((title, inner))
        return (self.graph.add(class_type, title, **values), 0)

    def frames(self) -> Link:
        return self.add("PrimitiveInt", "Frames", {"frames": "value"}, value=FRAMES)

    def motion(self, file: str, frames: Link) -> Link:
        motion = self.add("StillMotion_LoadMotionModel", "Load Motion Model", ("motion_name",), motion_name=file)
        return self.add(
            "StillMotion_ApplyMotionModel", "Apply Motion Model", ("model",), frames=frames, motion_model=motion
        )

    def prompts(self) -> tuple[Link, Link]:
        prompt = self.add("CLIPTextEncode", "Prompt", {"clip": "clip", "prompt": "text"}, text="")
        negative = self.add("CLIPTextEncode", "Negative prompt", {"clip": "clip", "negative_prompt": "text"}, text="")
        return prompt, negative

    def latent(self, frames: Link) -> Link:
        size = {"width": SIDE, "height": SIDE}
        return self.add("EmptyLatentImage", "Empty Latent Image", ("width", "height"), batch_size=frames, **size)

    def sorted_inputs(self) -> dict[str, list[Inner]]:
        """The sockets, then the widgets in the order in which they were added."""
        place = lambda name: SOCKETS.index(name) if name in SOCKETS else len(SOCKETS)  # noqa: E731
        return {name: self.inputs[name] for name in sorted(self.inputs, key=place)}

    def images(self, samples: Link) -> Link:
        return self.add("VAEDecode", "VAE Decode", ("vae",), samples=samples)


def harivo() -> Blueprint:
    parts = Parts()
    frames = parts.frames()
    model = parts.motion("pocket/harivo.safetensors", frames)
    model = parts.add("StillMotion_SteppedCFG", "Stepped CFG", early_cfg=12.5, late_cfg=7.5, model=model)
    model = parts.add(
        "StillMotion_MitigatingGradient", "Mitigating Gradient", ("alpha",), alpha=40.0, frames=frames, model=model
    )
    positive, negative = parts.prompts()
    links = {"model": model, "positive": positive, "negative": negative, "latent_image": parts.latent(frames)}
    settings = {"seed": 7, "steps": 25, "cfg": 7.5, "sampler_name": "ddim", "scheduler": "normal", "denoise": 1}
    parts.images(parts.add("KSampler", "KSampler", ("seed", "steps"), **settings, **links))
    return Blueprint(
        "Text to Video (HARIVO)",
        "Makes a video from a prompt with HARIVO: motion model, stepped CFG and mitigating gradient. Frames, width and "
        "height are set for the bundled pocket models.",
        ("HARIVO", "text to video", "AnimateDiff"),
        parts.graph.nodes,
        parts.sorted_inputs(),
        {"images": ("VAE Decode", 0), "readout": ("Mitigating Gradient", 1)},
    )


def clips() -> Blueprint:
    parts = Parts()
    frames = parts.frames()
    model = parts.motion("pocket/vidrd.safetensors", frames)
    positive, negative = parts.prompts()
    noise = parts.add("RandomNoise", "Random Noise", {"seed": "noise_seed"}, noise_seed=7)
    sampler = parts.add("KSamplerSelect", "KSampler Select", sampler_name="ddim")
    settings = {
        "overlap": 4,
        "recycle": 4.0,
        "staged_guidance": 0.4,
        "frames": frames,
        "noise": noise,
        "sampler": sampler,
    }
    exposed = ("overlap", "recycle", "staged_guidance")
    reuse, _ = parts.add("StillMotion_ReuseAndDiffuse", "Reuse and Diffuse", exposed, **settings)
    conditions = {"positive": positive, "negative": negative, "model": model}
    guider = parts.add("CFGGuider", "CFG Guider", ("cfg",), cfg=7.5, **conditions)
    levels = {"scheduler": "normal", "steps": 25, "denoise": 1, "model": model}
    sigmas = parts.add("BasicScheduler", "Basic Scheduler", ("steps",), **levels)
    latent = parts.add("RepeatLatentBatch", "Clips", {"clips": "amount"}, amount=3, samples=parts.latent(frames))
    links = {"noise": (reuse, 0), "sampler": (reuse, 1), "guider": guider, "sigmas": sigmas, "latent_image": latent}
    parts.images(parts.add("SamplerCustomAdvanced", "Sampler", (), **links))
    return Blueprint(
        "Text to Video in Clips (VidRD)",
        "Makes a video of several clips that continue each other, from one prompt (VidRD: Reuse and Diffuse). Frames, "
        "width and height are set for the bundled pocket models.",
        ("VidRD", "long video", "Reuse and Diffuse"),
        parts.graph.nodes,
        parts.sorted_inputs(),
        {"images": ("VAE Decode", 0)},
    )


def image_to_video() -> Blueprint:
    file = "pocket/dreamvideo.safetensors"
    parts = Parts()
    frames = parts.frames()
    model = parts.motion(file, frames)
    branch = parts.add("StillMotion_LoadRetentionBranch", "Load Retention Branch", ("branch_name",), branch_name=file)
    positive, negative = parts.prompts()
    links = {"positive": positive, "negative": negative, "retention_branch": branch}
    node, _ = parts.add("StillMotion_ApplyImageRetention", "Apply Image Retention", ("image",), fit="crop", **links)
    links = {"positive": (node, 0), "negative": (node, 1), "model": model}
    scales = {"text_scale": 3.0, "image_scale": 3.0, "order": "text first"}
    guider = parts.add(
        "StillMotion_DoubleConditionGuider", "Double-Condition Guider", ("text_scale", "image_scale"), **scales, **links
    )
    noise = parts.add("RandomNoise", "Random Noise", {"seed": "noise_seed"}, noise_seed=7)
    sampler = parts.add("KSamplerSelect", "KSampler Select", sampler_name="ddim")
    levels = {"scheduler": "normal", "steps": 25, "denoise": 1, "model": model}
    sigmas = parts.add("BasicScheduler", "Basic Scheduler", ("steps",), **levels)
    links = {"noise": noise, "sampler": sampler, "guider": guider, "sigmas": sigmas}
    parts.images(parts.add("SamplerCustomAdvanced", "Sampler", (), latent_image=parts.latent(frames), **links))
    return Blueprint(
        "Image to Video (DreamVideo)",
        "Makes a video that starts with an image, while the prompt says what happens in it (DreamVideo). Frames, width "
        "and height are set for the bundled pocket models.",
        ("DreamVideo", "image to video", "I2V"),
        parts.graph.nodes,
        parts.sorted_inputs(),
        {"images": ("VAE Decode", 0)},
    )


def long_video() -> Blueprint:
    parts = Parts()
    frames = parts.frames()
    model = parts.motion("pocket/vidrd.safetensors", frames)
    positive, negative = parts.prompts()
    size = {"width": SIDE, "height": SIDE, "batch_size": 1}
    latent = parts.add("EmptyLatentImage", "Empty Latent Image", ("width", "height"), **size)
    settings = {"seed": 7, "clips": 4, "cfg": 7.5, "steps": 25, "sampler_name": "ddim", "scheduler": "normal"}
    links = {"model": model, "positive": positive, "negative": negative, "latent": latent, "frames": frames}
    exposed = ("vae", "seed", "clips", "cfg", "steps")
    parts.add("StillMotion_LongVideo", "Long Video", exposed, **settings, **links)
    return Blueprint(
        "Long Video (VidRD)",
        "Renders a long video clip by clip into a file, from one prompt; queue it again to resume or extend it. "
        "Frames, width and height are set for the bundled pocket models.",
        ("VidRD", "long video", "infinite video", "AnimateDiff"),
        parts.graph.nodes,
        parts.sorted_inputs(),
        {"video": ("Long Video", 0), "first_clip": ("Long Video", 1)},
    )


def frame_by_frame() -> Blueprint:
    parts = Parts()
    artv = parts.add(
        "StillMotion_LoadArtvModel", "Load ART-V Model", ("artv_name",), artv_name="pocket/artv.safetensors"
    )
    positive, negative = parts.prompts()
    size = {"width": SIDE, "height": SIDE, "batch_size": 1}
    latent = parts.add("EmptyLatentImage", "Empty Latent Image", ("width", "height"), **size)
    settings = {"seed": 7, "frames": FRAMES, "text_weight": 6.5, "steps": 12}
    settings |= {"sampler_name": "dpmpp_2s_ancestral", "scheduler": "normal"}
    links = {"artv": artv, "positive": positive, "negative": negative, "latent": latent}
    exposed = ("model", "vae", "image", "seed", "frames", "text_weight", "steps")
    parts.add("StillMotion_AutoregressiveVideo", "Autoregressive Video", exposed, **settings, **links)
    return Blueprint(
        "Image to Video, Frame by Frame (ART-V)",
        "Continues an image one frame at a time into a file (ART-V); queue it again to resume or extend it. Width and "
        "height are set for the bundled pocket models.",
        ("ART-V", "image to video", "autoregressive", "long video"),
        parts.graph.nodes,
        parts.sorted_inputs(),
        {"video": ("Autoregressive Video", 0), "last_frame": ("Autoregressive Video", 1)},
    )


BLUEPRINTS: tuple[Callable[[], Blueprint], ...] = (harivo, clips, long_video, image_to_video, frame_by_frame)

# API form -> editor form, as one subgraph node: first the sockets, then the widgets in the order of `inputs`
FOLD = """async ([nodes, title, inputs, outputs]) => {
  window.app.loadApiJson(nodes, title);
  await new Promise(done => setTimeout(done, 1500));
  const graph = window.app.rootGraph;
  const depth = new Map();
  const deep = node => {
    if (!depth.has(node.id)) {
      const from = (node.inputs ?? []).map(slot => graph.getLink(slot.link)).filter(Boolean);
      depth.set(node.id, Math.max(-1, ...from.map(link => deep(graph.getNodeById(link.origin_id)))) + 1);
    }
    return depth.get(node.id);
  };
  const heights = [];
  for (const node of graph._nodes) {
    const column = deep(node);
    node.pos = [column * 400, heights[column] ?? 0];
    heights[column] = node.pos[1] + node.size[1] + 70;
    for (const widget of node.widgets ?? [])
      if (widget.name === 'control_after_generate') widget.value = 'fixed';
  }
  const {subgraph, node: folded} = graph.convertToSubgraph(new Set(graph._nodes));
  for (const input of [...subgraph.inputs]) subgraph.removeInput(input);  // the inputs that the editor chose
  const inside = name => subgraph.nodes.find(node => node.title === name);
  const missing = [];
  for (const [name, places] of inputs) {
    let outer = null;
    for (const [place, socket] of places) {
      const node = inside(place), slot = node?.inputs.find(slot => slot.name === socket);
      outer ??= slot && subgraph.addInput(name, slot.type);
      if (!slot || !outer.connect(slot, node)) missing.push(`${place}: ${socket}`);
    }
  }
  for (const [name, [place, number]] of outputs) {
    const node = inside(place), slot = node?.outputs[number];
    if (!slot || !subgraph.addOutput(name, slot.type).connect(slot, node)) missing.push(`${place}: ${number}`);
  }
  subgraph.name = folded.title = title;
  subgraph.inputNode.arrange();
  subgraph.outputNode.arrange();
  folded.setSize(folded.computeSize());
  folded.pos = [0, 0];
  await new Promise(done => setTimeout(done, 500));
  for (const [name, [[place, socket]]] of inputs) {
    const value = Object.values(nodes).find(node => node._meta.title === place).inputs[socket];
    const widget = (folded.widgets ?? []).find(widget => widget.name === name);
    if (value !== undefined && widget?.value !== value) missing.push(`${name} is ${widget?.value}, not ${value}`);
  }
  return [missing, JSON.parse(JSON.stringify(graph.serialize()))];
}"""


def fold(editor: Editor, blueprint: Blueprint) -> dict[str, Any]:
    """The blueprint in the editor's form: one node and the definition of its subgraph. Failed if an input or output
    of the blueprint does not exist."""
    titles = [node["_meta"]["title"] for node in blueprint.nodes.values()]
    if len(set(titles)) != len(titles):
        raise Failed(f"{blueprint.title}: two nodes have the same title")
    editor.open()  # a new page, because the editor remembers widget values of closed graphs
    sockets = [list(blueprint.inputs.items()), list(blueprint.outputs.items())]
    missing, graph = editor.evaluate(FOLD, [blueprint.nodes, blueprint.title, *sockets])
    if missing:
        raise Failed(f"{blueprint.title}: these inputs and outputs cannot be connected: {', '.join(missing)}")
    (definition,) = graph["definitions"]["subgraphs"]
    definition |= {"category": CATEGORY, "description": blueprint.about}
    graph["extra"] = {"BlueprintDescription": blueprint.about, "BlueprintSearchAliases": list(blueprint.aliases)}
    return graph
