#!/usr/bin/env python3
"""The one entry for working with a checkout: demo, serve, test, lint, bench, train, workflows, env.

Everything it installs goes into the user's cache folder (STILLMOTION_CACHE names another); the Python that runs this
file, and a ComfyUI given by --comfyui or COMFYUI_DIR, are never changed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import webbrowser
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036  it is run by whatever Python the user has
    sys.exit(f"StillMotion needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}.")

import tomllib

from devkit import chromium, comfyui, demo, workflow
from devkit.environment import environment_python, script_of
from devkit.files import PACK, ROOT, Failed, cache_folder, digest, lock, package_link, remove_tree
from devkit.server import Server, spare_threads


def run_demo(options: argparse.Namespace, _rest: list[str]) -> int:
    prompt = workflow.adapt(
        workflow.load(options.workflow),
        text=options.prompt,
        negative=options.negative,
        seed=options.seed,
        frames=options.frames,
    )
    host = comfyui.find(options.comfyui)
    name = workflow.short_name(options.workflow) or Path(options.workflow).name.removesuffix(".json").removesuffix(
        ".api"
    )
    cpu = options.cpu or not host.has_accelerator()
    server_options = host.models_options(options.models)
    print(demo.make(host, name, prompt, options.output.resolve(), port=options.port, cpu=cpu, options=server_options))
    return 0


def run_serve(options: argparse.Namespace, rest: list[str]) -> int:
    """Unlike the demo's, its base directory stays: settings and saved workflows are there next time."""
    host = comfyui.find(options.comfyui)
    base = cache_folder() / "serve" / digest(str(ROOT))
    cpu = options.cpu or not host.has_accelerator()
    server_options = ("--output-directory", str(ROOT / "output"), *host.models_options(options.models), *rest)
    with lock(base.with_suffix(".lock"), "this checkout is being served already; use that one, or end it", wait=False):
        server = Server(host.folder, host.python, base, port=options.port, cpu=cpu, options=server_options)
        print(f"starting ComfyUI ({'CPU' if cpu else 'GPU'}); log: {server.log}", flush=True)
        try:
            server.start()
            server.check_pack()
            print(f"the editor is at {server.url} (Ctrl-C ends it); graphs: Templates, {PACK}", flush=True)
            if not options.no_browser:
                webbrowser.open(server.url)
            return server.wait()
        finally:
            server.stop()


def run_test(options: argparse.Namespace, rest: list[str]) -> int:
    began = time.monotonic()
    python, environment = _tools(options)
    workers = _workers(rest)
    environment |= spare_threads() | ({"OMP_NUM_THREADS": "1"} if workers else {})
    environment["STILLMOTION_COMFY_CLI"] = str(script_of(environment_python("cli").parents[1], "comfy"))
    if "--fast" not in rest and (reason := chromium.install()):
        print(f"the browser tests will be skipped: {reason}", flush=True)
        environment["STILLMOTION_NO_CHROMIUM"] = reason
    # -P: the checkout itself is not importable, its folder `nodes` would hide ComfyUI's module
    ended = _run([python, "-P", "-m", "pytest", *workers, *rest], environment)
    print(f"wall time of the tests, installs included: {time.monotonic() - began:.0f} s")
    return ended


def _workers(rest: list[str]) -> list[str]:
    """The whole suite, and the fast one, run on every core, up to 4 (each process takes 2 to 5 GB), files whole, as
    their tests share fixtures; what one looks for runs in one process, where -s and --pdb work."""
    count = min(4, os.cpu_count() or 1)
    return [] if set(rest) - {"--fast"} or count < 2 else ["--numprocesses", str(count), "--dist", "loadfile"]


def run_lint(options: argparse.Namespace, _rest: list[str]) -> int:
    python, environment = _tools(options)
    project = _pyright_project(python, environment["COMFYUI_DIR"])
    checks = [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["pyright", "--project", str(project)]]
    return max(_run([python, "-P", "-m", *check], environment) for check in checks)


def run_bench(options: argparse.Namespace, rest: list[str]) -> int:
    modules = {path.stem.removeprefix("bench_"): path for path in (ROOT / "benchmarks").rglob("bench_*.py")}
    if options.name not in modules:
        raise Failed(f"There is no benchmark {options.name!r}. Available: {', '.join(sorted(modules))}.")
    module = ".".join(("stillmotion", *modules[options.name].relative_to(ROOT).with_suffix("").parts))
    python, environment = _tools(options)
    environment.setdefault("OMP_NUM_THREADS", "1")  # times are compared on one thread
    return _run([python, "-P", "-m", module, *rest], environment, Path.cwd())


def run_train(options: argparse.Namespace, rest: list[str]) -> int:
    python, environment = _tools(options)
    return _run([python, "-P", "-m", "stillmotion.training", *rest], environment, Path.cwd())


def run_workflows(options: argparse.Namespace, rest: list[str]) -> int:
    python, environment = _tools(options)
    return _run([python, str(ROOT / "scripts" / "make_workflows.py"), *rest], environment)


def run_env(options: argparse.Namespace, _rest: list[str]) -> int:
    if options.remove:
        remove_tree(cache_folder())
        print(f"removed {cache_folder()}")
        return 0
    python, environment = _tools(options)
    for name in ("PYTHONPATH", "COMFYUI_DIR", "COMFYUI_PYTHON"):
        print(f"{name}={environment[name]}")
    print(python)
    return 0


def _tools(options: argparse.Namespace) -> tuple[str, dict[str, str]]:
    """The Python of our environment, and the variables by which tests and benchmarks find ComfyUI and the package."""
    python = environment_python()
    environment = {**os.environ, "PYTHONPATH": str(package_link()), "HF_HUB_OFFLINE": "1"}
    host = comfyui.find_for_tools(options.comfyui, python)
    environment |= {"COMFYUI_DIR": str(host.folder), "COMFYUI_PYTHON": str(host.python)}
    return str(python), environment


def _run(command: list[str], environment: dict[str, str], folder: Path = ROOT) -> int:
    """Run to the end; Ctrl-C reaches the command too, which ends in its own way."""
    with subprocess.Popen(command, cwd=folder, env=environment) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue


def _pyright_project(python: str, comfyui_dir: str) -> Path:
    """pyproject's settings with this machine's paths, in a file that belongs to nobody's checkout."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pyright"]
    # relative to the file, and by the package's name, so that a class is the same to the checker however it is imported
    settings["include"] = [f"stillmotion/{folder}" for folder in settings["include"] if (ROOT / folder).exists()]
    settings["extraPaths"] = [comfyui_dir, str(package_link()), str(ROOT / "scripts")]
    environment = Path(python).parents[1]
    settings |= {"venvPath": str(environment.parent), "venv": environment.name}
    path = package_link() / "pyrightconfig.json"
    path.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    return path


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return int(text)


def parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--comfyui", metavar="DIR", help="a ComfyUI of yours, with its own Python (or COMFYUI_DIR)")
    serving = argparse.ArgumentParser(add_help=False)
    serving.add_argument("--port", type=int, help="port of the server (default: a free one)")
    serving.add_argument("--cpu", action="store_true", help="do not use the GPU")
    serving.add_argument("--models", metavar="DIR", help="a models folder (default: that of the ComfyUI of yours)")
    main = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    commands = main.add_subparsers(dest="command", required=True, metavar="command")

    def add(name: str, function, text: str, *parents: argparse.ArgumentParser, **more) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, parents=[common, *parents], allow_abbrev=False, **more)
        command.set_defaults(function=function)
        return command

    command = add("demo", run_demo, "make a video from a prompt; the last line is its path", serving)
    command.add_argument("--prompt", help="what to show")
    command.add_argument("--negative", help="what not to show")
    command.add_argument("--seed", type=int)
    command.add_argument("--frames", type=positive)
    command.add_argument("--workflow", default="text_to_video_pocket", help=f"{', '.join(workflow.names())}, or a file")
    command.add_argument("--output", type=Path, default=ROOT / "output", metavar="DIR")
    command = add("serve", run_serve, "start ComfyUI with this pack and open the editor", serving)
    command.add_argument("--no-browser", action="store_true")
    add("test", run_test, "run the tests (--fast: those of the inner loop); further arguments go to pytest")
    add("lint", run_lint, "ruff and pyright")
    add("bench", run_bench, "run a benchmark; its last line is JSON").add_argument("name")
    add("train", run_train, "python -m stillmotion.training in the environment", add_help=False)
    add("workflows", run_workflows, "write the editor forms and pictures of the bundled workflows")
    add("env", run_env, "make the environment and say where it is").add_argument("--remove", action="store_true")
    return main


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped and the base is removed
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits it ignored
    main_parser = parser()
    options, rest = main_parser.parse_known_args()
    if rest and options.command not in ("test", "serve", "bench", "train", "workflows"):
        main_parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return options.function(options, rest)
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
