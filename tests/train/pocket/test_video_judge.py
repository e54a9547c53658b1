"""The video judge: its labels are right, it learns, and its features separate good clips from broken ones."""

import pytest
import torch

from stillmotion.evaluation.judges.judge import load_judge
from stillmotion.evaluation.judges.video_judge import (
    FRAMES,
    VideoJudge,
    clip_features,
    load_video_judge,
    save_video_judge,
)
from stillmotion.evaluation.scores.score import compare, score
from stillmotion.training.data import sprites
from stillmotion.training.engine.loop import fit
from stillmotion.training.metrics import judging
from stillmotion.training.plans.run import TrainTable
from stillmotion.training.pocket.video_judge import (
    DISORDERED,
    IGNORED,
    ORDERED,
    VideoJudgeTask,
    held_out_accuracy,
    labels_of,
)

MOTIONS = ("right", "left", "up", "down", "still")


@pytest.fixture(scope="module")
def judges(root):
    return load_judge(root / "pocket" / "judge.safetensors"), load_video_judge(
        root / "pocket" / "video_judge.safetensors"
    )


@pytest.fixture(scope="module")
def truth():
    prompts = sprites.held_out(60, motions=MOTIONS)
    return prompts, list(judging.rendered(prompts))


@pytest.fixture(scope="module")
def real(judges):
    return judging.reference(judges[1][0], motions=MOTIONS, after=60, count=200)


def test_a_clip_played_backwards_has_the_label_of_the_way_back():
    clip = next(c for k in range(99) if (c := sprites.clip(0, k)).motion == "up")
    forth, back = labels_of(clip, order=ORDERED), labels_of(clip, order=ORDERED, backwards=True)
    assert [list(sprites.MOTIONS)[labels["motion"]] for labels in (forth, back)] == ["up", "down"]
    assert {name for name in forth if forth[name] != back[name]} == {"motion"}


def test_the_judge_has_no_labels_that_cannot_be_recognised():
    clips = [sprites.clip(0, k) for k in range(99)]
    moving, still = (next(c for c in clips if (c.motion == "still") == rest) for rest in (False, True))
    assert {n for n, v in labels_of(moving, order=DISORDERED).items() if v == IGNORED} == {"motion", "speed"}
    for order in (ORDERED, DISORDERED):
        assert {n for n, v in labels_of(still, order=order).items() if v == IGNORED} == {"speed", "order"}


def test_a_sample_is_a_function_of_its_number():
    one, other = VideoJudgeTask(seed=5).pair(3), VideoJudgeTask(seed=5).pair(3)
    assert all(torch.equal(a, b) and x == y for (a, x), (b, y) in zip(one, other, strict=True))
    (ordered, _), (mixed, _) = one
    assert sorted(f.sum().item() for f in ordered) == sorted(f.sum().item() for f in mixed)
    assert not torch.equal(ordered, mixed)


@pytest.mark.slow
def test_it_learns_and_its_file_is_its_weights(tmp_path):
    torch.manual_seed(0)
    task = VideoJudgeTask()
    before = task(list(range(8)))["loss"].item()
    fit(task, TrainTable(out=tmp_path / "run", steps=6, batch=4, lr=2e-3, warmup=1, lr_decay_share=0.1))
    assert task(list(range(8)))["loss"].item() < before
    save_video_judge(task.judge, tmp_path / "judge.safetensors", {"motion": 0.5})
    again, accuracy = load_video_judge(tmp_path / "judge.safetensors")
    assert accuracy == {"motion": 0.5}
    x = torch.rand(2, FRAMES, 3, 64, 64)
    torch.testing.assert_close(again.features(x), task.judge.eval().features(x), rtol=1e-2, atol=1e-2)


def test_another_file_and_another_length_are_refused(root):
    with pytest.raises(ValueError, match="not a video judge but 'judge'"):
        load_video_judge(root / "pocket" / "judge.safetensors")
    with pytest.raises(ValueError, match=r"\(16, 3, 64, 64\)"):
        clip_features(VideoJudge(), [torch.rand(8, 3, 64, 64)])


def test_the_bundled_one_is_as_good_as_its_header_says(judges):
    judge, printed = judges[1]
    accuracy = held_out_accuracy(judge, clips=60)
    assert accuracy.keys() == printed.keys()
    for name, share in accuracy.items():
        assert share >= printed[name] - 0.15, name
    assert printed["motion"] > 0.9
    assert printed["colour"] > 0.9


@pytest.mark.slow
def test_rendered_truth_has_perfect_scores(judges, truth, real):
    prompts, clips = truth
    scores = score(judging.sample(clips, prompts, judges[0], judges[1][0]), real, draws=20)
    for name in ("direction", "colour", "shape", "background", "constancy"):
        assert scores[name].value >= 0.98, name
    assert scores["still_ratio"].value < 0.02


@pytest.mark.slow
def test_broken_clips_are_farther_from_the_truth_and_flicker_more(judges, truth, real):
    prompts, clips = truth
    g = torch.Generator().manual_seed(0)
    good = judging.sample(clips, prompts, judges[0], judges[1][0])
    sets = {
        "shuffled": [c[torch.randperm(FRAMES, generator=g)] for c in clips],
        "frozen": [c[:1].expand(FRAMES, -1, -1, -1) for c in clips],
        "collapsed": [clips[k % 5] for k in range(len(clips))],
        # the judge is trained to ignore noise and blur, so the distance may miss noise, but flicker does not
        "noisy": [(c + 0.1 * torch.randn(c.shape, generator=g)).clamp(0, 1) for c in clips],
    }
    for name, broken in sets.items():
        change = compare(judging.sample(broken, prompts, judges[0], judges[1][0]), good, real, draws=30)
        if name != "noisy":
            assert change["pocket_fvd"].low > 0, name
        if name in {"shuffled", "noisy"}:
            assert change["flicker"].low > 0, name
