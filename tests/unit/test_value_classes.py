"""Configurations and other values cannot be changed after their checks; configurations take values by name only."""

from dataclasses import FrozenInstanceError, fields, is_dataclass
from importlib import import_module
from typing import Any

import pytest

# module.class -> whether its values must be given by name
CLASSES = {
    "model_patches.core.config.MotionConfig": True,
    "model_patches.core.slots.Slot": False,
    "model_patches.harivo.config.MappingConfig": True,
    "model_patches.harivo.config.TokenConfig": True,
    "model_patches.harivo.config.HarivoConfig": True,
    "model_patches.harivo.mitigating.Config": True,
    "model_patches.harivo.mitigating.Effect": False,
    "model_patches.harivo.stepped.SteppedScale": False,
    "model_patches.vidrd.config.VidrdConfig": True,
    "model_patches.vidrd.config.DecoderConfig": True,
    "model_patches.vidrd.reuse.Config": True,
    "model_patches.vidrd.reuse.History": False,
    "model_patches.artv.config.ArtvConfig": True,
    "model_patches.artv.guidance.Weights": False,
    "model_patches.artv.conditions.Conditions": False,
    "model_patches.artv.story.Story": False,
    "model_patches.dreamvideo.config.RetentionConfig": True,
    "model_patches.dreamvideo.config.DreamVideoConfig": True,
    "model_patches.dreamvideo.retention.Residuals": False,
    "model_patches.dreamvideo.stages.StagePlan": True,
    "rendering.formats.Format": True,
    "rendering.job.Job": False,
    "rendering.job.Record": False,
    "rendering.loop.Work": False,
    "rendering.planning.Output": False,
    "rendering.planning.Plan": False,
    "rendering.preview.Progress": False,
}


@pytest.mark.parametrize(("name", "by_name"), list(CLASSES.items()))
def test_a_value_cannot_be_changed(name, by_name):
    module, _, class_name = name.rpartition(".")
    value_class: Any = getattr(import_module(f"stillmotion.{module}"), class_name)
    value = object.__new__(value_class)  # what it holds does not matter
    assert is_dataclass(value_class)
    with pytest.raises(FrozenInstanceError):
        setattr(value, fields(value_class)[0].name, 1)
    assert {field.kw_only for field in fields(value_class)} == {by_name}
