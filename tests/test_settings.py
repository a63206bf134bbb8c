"""Every setting is in the documentation, by its option and its variable."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from stagecast.settings import NodeSettings, ReplicaSettings, WorkerSettings

DOCUMENT = (Path(__file__).parent.parent / "docs" / "configuration.md").read_text()
SINGULAR = {"labels": "label"}


@pytest.mark.parametrize("settings", [NodeSettings, ReplicaSettings, WorkerSettings])
def test_every_setting_is_documented(settings: type) -> None:
    for field in dataclasses.fields(settings):
        name = SINGULAR.get(field.name, field.name)
        assert f"`--{name.replace('_', '-')}`" in DOCUMENT
        assert f"`STAGECAST_{name.upper()}`" in DOCUMENT


def test_models_lie_in_the_data_folder_unless_told_otherwise(tmp_path: Path) -> None:
    assert NodeSettings(data=tmp_path).models_folder == tmp_path / "models"
    assert NodeSettings(data=tmp_path, models=tmp_path / "elsewhere").models_folder == tmp_path / "elsewhere"


def test_secrets_are_never_shown() -> None:
    assert "secret" not in repr(ReplicaSettings(token="secret", api_key="secret"))
