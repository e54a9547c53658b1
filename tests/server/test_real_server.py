"""The pack in a real ComfyUI server: its nodes, its results, its answers to bad input, how it stops."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import pytest
from devkit import metadata, workflow
from devkit.client import Client, Rejected
from devkit.server import Server

pytestmark = pytest.mark.server

POCKET = [
    "text_to_video_pocket",
    "text_to_video_mitigating_gradient_pocket",
    "controlled_text_to_video_pocket",
    "harivo_text_to_video",
]
SD15 = [name for name in workflow.names() if name.endswith("_sd15")]


def short(name: str, **changes) -> dict:
    """A bundled workflow with few steps; the quality of its result is not tested here."""
    prompt = workflow.adapt(workflow.load(name), **changes)
    node_of(prompt, "KSampler")["inputs"]["steps"] = 4
    return prompt


def node_of(prompt: dict, class_type: str) -> dict:
    (node,) = [node for node in prompt.values() if node["class_type"] == class_type]
    return node


def only_video(client: Client, run, folder: Path) -> Path:
    (item,) = run.check().results()
    return client.fetch(item, folder / item["filename"])


def test_the_pack_loads_with_all_its_nodes(server: Server, golden: Callable[[str, object], None]):
    assert server.import_failures() == []
    known = server.get("/object_info")
    golden("object_info", {name: info for name, info in known.items() if name.startswith("StillMotion_")})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("vidrd_long_video", "StillMotion_LongVideo"),
        ("artv_text_image_to_video", "StillMotion_AutoregressiveVideo"),
    ],
)
def test_a_graph_without_the_optional_nodes_runs(client: Client, name: str, kind: str):
    prompt = workflow.up_to(workflow.adapt(workflow.load(name), frames=4), kind)
    inputs = node_of(prompt, kind)["inputs"]
    inputs |= {"steps": 2, **({"clips": 1} if "clips" in inputs else {})}
    for optional in ("output_options", "reuse_options", "artv_options", "render_again"):
        inputs.pop(optional, None)
    client.run(prompt).check()


def test_every_node_is_shown_in_a_bundled_workflow(server: Server):
    used = {node["class_type"] for name in workflow.names() for node in workflow.load(name).values()}
    offered = {name for name in server.get("/object_info") if name.startswith("StillMotion_")}
    assert offered <= used


def test_the_workflows_are_offered_as_templates(server: Server):
    offered = sorted(server.get("/api/workflow_templates")["comfyui-stillmotion"])
    assert offered == [template.title for template in workflow.templates().values()]


@pytest.mark.parametrize("name", POCKET)
@pytest.mark.parametrize("frames", [16, 9])
def test_a_workflow_makes_a_playable_video(client: Client, tmp_path: Path, name: str, frames: int):
    with av.open(str(only_video(client, client.run(short(name, frames=frames)), tmp_path))) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", Fraction(8))
        pictures = [frame.to_ndarray(format="rgb24") for frame in video.decode(stream)]
    assert len(pictures) == frames
    assert {picture.shape for picture in pictures} == {(512, 512, 3)}


def test_a_long_video_is_a_file_that_can_be_extended(client: Client, tmp_path: Path):
    prompt = workflow.adapt(workflow.load("vidrd_long_video"), frames=4)
    node_of(prompt, "StillMotion_LongVideo")["inputs"] |= {"clips": 2, "steps": 2}
    node_of(prompt, "StillMotion_ReuseOptions")["inputs"]["overlap"] = 2
    run = client.run(prompt)
    assert len(decoded(only_video(client, run, tmp_path))) == 2 * 4
    assert run.data("progress")[-1]["value"] == run.data("progress")[-1]["max"] == 2 * 2
    assert run.previews
    (first,) = run.results()
    node_of(prompt, "StillMotion_LongVideo")["inputs"]["clips"] = 3
    longer = client.run(prompt)
    assert longer.results() == [first]
    with av.open(str(only_video(client, longer, tmp_path))) as video:
        assert sum(1 for _ in video.decode(video=0)) == 3 * 4
        stored = json.loads(video.metadata["prompt"])
    assert node_of(stored, "StillMotion_LongVideo")["inputs"]["clips"] == 3
    node_of(prompt, "StillMotion_ReuseOptions")["inputs"]["overlap"] = 9
    assert "overlap is 9, but a clip has only 4 frames" in (client.run(prompt).error or {})["exception_message"]


@pytest.mark.parametrize(
    ("name", "kind", "missing", "old"),
    [
        ("vidrd_long_video", "StillMotion_LongVideo", "latent", {"width": 64, "height": 64, "overlap": 4}),
        ("vidrd_reuse_pocket", "StillMotion_ReuseAndDiffuse", "staged_guidance", {"guidance": 0.4}),
    ],
)
def test_a_graph_with_inputs_that_have_moved_is_refused(client: Client, name: str, kind: str, missing: str, old: dict):
    prompt = workflow.load(name)
    inputs = node_of(prompt, kind)["inputs"]
    del inputs[missing]
    inputs |= old
    with pytest.raises(Rejected, match=f"{kind}.*{missing}"):
        client.run(prompt)


def test_clips_that_continue_each_other_become_one_video(client: Client, tmp_path: Path):
    prompt = workflow.adapt(workflow.load("vidrd_reuse_pocket"), frames=4)
    node_of(prompt, "BasicScheduler")["inputs"]["steps"] = 4
    run = client.run(prompt)
    assert len(decoded(only_video(client, run, tmp_path))) == 3 * 4
    (sampler,) = [n for n, node in prompt.items() if node["class_type"] == "SamplerCustomAdvanced"]
    events = [data for data in run.data("progress") if data["node"] == sampler]
    assert max(data["value"] / data["max"] for data in events) == 1
    node_of(prompt, "KSamplerSelect")["inputs"]["sampler_name"] = "euler_ancestral"
    refused = client.run(prompt)
    assert refused.error
    assert "adds new noise at every step" in refused.error["exception_message"]


def test_the_same_seed_gives_the_same_file_and_another_seed_another(client: Client, tmp_path: Path):
    files = []
    for number, seed in enumerate((3, 4, 3)):  # the run in between removes the first one from ComfyUI's cache
        prompt = short(POCKET[0], seed=seed, frames=4)
        files.append(only_video(client, client.run(prompt), tmp_path / str(number)))
    pictures = [decoded(path) for path in files]
    assert pictures[0] == pictures[2]
    assert pictures[0] != pictures[1]


def decoded(path: Path) -> list[bytes]:
    with av.open(str(path)) as video:
        return [frame.to_ndarray(format="rgb24").tobytes() for frame in video.decode(video=0)]


def test_progress_and_previews_arrive_with_each_step(client: Client):
    run = client.run(short(POCKET[0], seed=11)).check()
    prompt = workflow.load(POCKET[0])
    sampler = next(number for number, node in prompt.items() if node["class_type"] == "KSampler")
    steps = [data for data in run.data("progress") if data["node"] == sampler]
    assert {data["max"] for data in steps} == {4}
    assert max(data["value"] for data in steps) == 4
    assert len(run.previews) == 4
    assert all(b"\xff\xd8\xff" in preview[:512] for preview in run.previews), "each preview holds a JPEG"


def test_a_repeated_prompt_is_answered_from_the_cache(client: Client):
    prompt = short(POCKET[0], seed=12)
    client.run(prompt).check()
    again = client.run(prompt).check()
    (cached,) = again.data("execution_cached")
    assert set(cached["nodes"]) == set(prompt)
    assert again.files()
    assert again.data("progress") == []


def test_cancel_ends_within_one_step_and_leaves_the_server_fit(client: Client):
    prompt = workflow.adapt(workflow.load(POCKET[1]), seed=13)
    node_of(prompt, "KSampler")["inputs"]["steps"] = 400
    steps: list[float] = []

    def cancel(event: dict) -> None:
        if event["type"] == "progress":
            steps.append(time.monotonic())
            if len(steps) == 5:
                client.interrupt()

    run = client.run(prompt, on_event=cancel)
    took, step = time.monotonic() - steps[4], (steps[4] - steps[0]) / 4
    assert run.status == "interrupted"
    assert took < 2 * step + 0.5, f"{took:.2f} s for a step of {step:.2f} s"
    client.run(short(POCKET[1], seed=14, frames=4)).check()


@pytest.mark.parametrize("name", SD15)
def test_the_sd15_graph_lacks_nothing_but_its_files(client: Client, name: str):
    with pytest.raises(Rejected) as refused:
        client.run(workflow.load(name))
    errors = [str(error) for node in refused.value.node_errors.values() for error in node["errors"]]
    missing = {file for error in errors for file in metadata.MODELS if file in error}
    assert len(errors) == len(missing)  # one for each file
    assert missing == {model["name"] for model in metadata.files_of(workflow.load(name))}


@pytest.mark.parametrize("kind", ["pocket", "sd15"])
def test_the_graphs_differ_by_the_mitigating_gradient_alone(kind: str):
    plain, gradient = (workflow.load(f"text_to_video_{infix}{kind}") for infix in ("", "mitigating_gradient_"))
    extra = [number for number in gradient if number not in plain]
    assert {gradient[n]["class_type"] for n in extra} == {
        "StillMotion_MitigatingGradient",
        "StillMotion_GuidanceReadout",
    }
    changed = {node["class_type"] for number, node in plain.items() if node != gradient[number]}
    assert changed == {"KSampler", "SaveVideo"}


def test_frames_that_do_not_divide_the_batch_are_named(client: Client):
    prompt = short(POCKET[0])
    node_of(prompt, "EmptyLatentImage")["inputs"]["batch_size"] = 6
    node_of(prompt, "StillMotion_ApplyMotionModel")["inputs"]["frames"] = 4
    run = client.run(prompt)
    assert run.status == "error"
    assert run.error
    message = run.error["exception_message"]
    assert "6" in message, message
    assert "4" in message, message
    assert run.error["exception_type"] == "ValueError"


@pytest.mark.parametrize("frames", [0, 33])
def test_a_number_of_frames_that_cannot_be_is_named(client: Client, frames: int):
    """No frames, and more frames than the bundled motion model has positions."""
    run = client.run(short(POCKET[0], frames=frames))
    assert run.error
    assert run.error["exception_type"] == "ValueError"
    assert f"{frames}" in run.error["exception_message"]
    assert run.data("progress") == [], "before heavy work"


def test_one_frame_passes_through_with_a_warning(client: Client, server: Server, tmp_path: Path):
    path = only_video(client, client.run(short(POCKET[0], frames=1)), tmp_path)
    assert len(decoded(path)) == 1
    assert [line for line in server.lines() if "WARNING" in line and "1 frame" in line]


def test_a_motion_file_that_is_none_is_named(server: Server, client: Client):
    folder = server.base / "models" / "animatediff_models"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "truncated.safetensors").write_bytes(b"\x40\x00\x00\x00\x00\x00\x00\x00{")
    try:
        prompt = short(POCKET[0])
        node_of(prompt, "StillMotion_LoadMotionModel")["inputs"]["motion_name"] = "truncated.safetensors"
        run = client.run(prompt)
    finally:
        (folder / "truncated.safetensors").unlink()
    assert run.status == "error"
    assert run.error
    assert run.error["node_type"] == "StillMotion_LoadMotionModel"
    assert "truncated.safetensors" in run.error["exception_message"]
    assert "KSampler" not in [event.get("data", {}).get("node_type") for event in run.events], "before heavy work"


def test_a_value_out_of_range_is_refused_before_anything_runs(client: Client):
    prompt = short(POCKET[0])
    node_of(prompt, "StillMotion_ApplyMotionModel")["inputs"]["start_percent"] = 3.0
    with pytest.raises(Rejected, match=r"StillMotion_ApplyMotionModel.*start_percent"):
        client.run(prompt)


@pytest.fixture
def comfy_cli(tmp_path: Path, server: Server) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`comfy run --wait` with a file, in its own home folder."""
    program = os.environ.get("STILLMOTION_COMFY_CLI")
    if not program:
        pytest.skip("STILLMOTION_COMFY_CLI is not set; `python3 scripts/dev.py test` installs comfy-cli and sets it")
    folder = str(Path(program).parent)
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "DO_NOT_TRACK": "1",
        "PATH": folder + os.pathsep + os.environ["PATH"],
    }

    def run(path: Path) -> subprocess.CompletedProcess[str]:
        command = [program, "--skip-prompt", "--no-json", "run", "--wait", "--workflow", str(path)]
        place = ["--host", "127.0.0.1", "--port", str(server.port)]
        return subprocess.run(
            [*command, *place], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )

    return run


TEMPLATES = workflow.templates()
FILES = [TEMPLATES[POCKET[0]].api_file, TEMPLATES[POCKET[1]].api_file, TEMPLATES[POCKET[1]].editor_file]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_comfy_cli_runs_the_file_as_it_is(comfy_cli, file: Path):
    ended = comfy_cli(file)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "mp4" in ended.stdout


def test_comfy_cli_tells_of_an_error(comfy_cli, tmp_path: Path):
    prompt = short(POCKET[0])
    node_of(prompt, "StillMotion_ApplyMotionModel")["inputs"]["frames"] = 5
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(prompt))
    assert comfy_cli(path).returncode == 1
