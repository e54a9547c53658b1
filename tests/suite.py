"""Plugin of pytest for a fast suite: `--fast`, the order of the tests, and a check of the mark `slow`.

A test is slow if it takes more than SLOW seconds of processor time, including the fixtures that are created for it.
Processor time is used because it is nearly the same on an idle machine and on a busy one.
"""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

SLOW = 2.0
OUTSIDE = {"server", "browser"}
SHARED = pytest.StashKey[list[float]]()  # processor times of the session's fixtures, which belong to no test
BEGAN = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="without slow tests and those of a server or a browser")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SHARED] = []
    config.pluginmanager.register(Times(config), "times")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files first, so that no process still runs one at the end: server and browser, then the files
    with most slow tests."""
    marks = {item: {mark.name for mark in item.iter_markers()} for item in items}
    if config.getoption("--fast"):
        slow = [item for item in items if marks[item] & {"slow", *OUTSIDE}]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in set(slow)]
    count = Counter(item.path for item in items if "slow" in marks[item])
    # the tests of a browser follow one another: it is closed after the last of them
    items.sort(key=lambda item: (not marks[item] & OUTSIDE, "browser" in item.path.parts, -count[item.path]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One process runs all tests of a file, because they share fixtures, and one process all tests with the server."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "server" if nodeid.startswith(("tests/server/", "tests/browser/")) else super()._split_scope(nodeid)

    config.option.loadscopereorder = False
    return Scheduling(config, log)


def processor_time() -> float:
    """Processor time of this process and of its finished child processes, in seconds."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef, request: pytest.FixtureRequest) -> Iterator[None]:
    began = processor_time()
    try:
        return (yield)
    finally:
        if fixturedef.scope == "session":
            request.config.stash[SHARED].append(processor_time() - began)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    item.config.stash[SHARED].clear()
    item.stash[BEGAN] = processor_time()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """The report of a test's end carries its processor time to the process that shows the results."""
    report = yield
    if call.when == "teardown":
        spent = processor_time() - item.stash[BEGAN] - sum(item.config.stash[SHARED])
        report.user_properties.append(("processor_time", spent))
    return report


class Times:
    """Collects the processor times where the results are shown, and says which marks are wrong."""

    def __init__(self, config: pytest.Config) -> None:
        self.fast = config.getoption("--fast")
        self.times: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == "processor_time" and isinstance(value, float) and report.when == "teardown":
                self.times[report.nodeid] = value

    def unmarked(self) -> dict[str, float]:
        """Slow tests without the mark `slow`."""
        return {name: spent for name, spent in self.times.items() if self.fast and spent > SLOW}

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unmarked() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for name, spent in self.unmarked().items():
            terminalreporter.line(f"{name} took {spent:.1f} s of processor time: mark it as slow, or make it faster")
