"""A run folder belongs to one configuration and one training at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastgen.training.run_folder import (
    ConfigMismatch,
    Difference,
    FolderInUse,
    RunFolder,
    Settings,
    differences,
    new_run,
    next_run,
)

SETTINGS = {"model": "wgan", "steps": 100, "betas": (0.0, 0.9), "width": 64}


def test_the_same_settings_go_on(run: Path) -> None:
    RunFolder(run).claim(SETTINGS)
    RunFolder(run).claim(SETTINGS)
    assert RunFolder(run).settings() == {**SETTINGS, "betas": [0.0, 0.9]}


def test_other_settings_are_refused_with_a_table_of_the_differences(run: Path) -> None:
    RunFolder(run).claim(SETTINGS)
    other = {**SETTINGS, "width": 8, "loss": "hinge", "steps": 50}
    with pytest.raises(ConfigMismatch) as caught:
        RunFolder(run).claim(other)
    assert caught.value.differences == [
        Difference("steps", 100, 50),
        Difference("width", 64, 8),
        Difference("loss", None, "hinge"),
    ]
    assert "  option  this run  given\n  steps   100       50\n  width   64        8" in str(
        caught.value
    )
    assert RunFolder(run).settings() == {**SETTINGS, "betas": [0.0, 0.9]}


def test_only_the_number_of_steps_may_grow(run: Path) -> None:
    RunFolder(run).claim(SETTINGS)
    RunFolder(run).claim({**SETTINGS, "steps": 200})
    assert json.loads((run / "config.json").read_text())["settings"]["steps"] == 200
    assert differences({"steps": 5, "seed": 0}, {"steps": 6, "seed": 1}) == [
        Difference("seed", 0, 1)
    ]
    assert differences({"seed": 0}, {"seed": 0, "steps": 6}) == [Difference("steps", None, 6)]


def data(place: str, fingerprint: str, **more: object) -> dict[str, object]:
    return {**SETTINGS, "data": place, "data_fingerprint": fingerprint, "image_size": 64, **more}


def test_the_same_pictures_go_on_from_another_place(run: Path) -> None:
    RunFolder(run).claim(data("/old", "4796eb"))
    RunFolder(run).claim(data("/new", "4796eb"))
    assert RunFolder(run).settings() == {**data("/new", "4796eb"), "betas": [0.0, 0.9]}
    assert differences({"data": "/old"}, {"data": "/new"}) == [Difference("data", "/old", "/new")]


def test_other_pictures_are_told_in_words(run: Path) -> None:
    RunFolder(run).claim(data("/faces", "4796eb", image_shape=[1, 64, 64]))
    with pytest.raises(ConfigMismatch) as caught:
        RunFolder(run).check(data("/faces", "4c3f81", image_shape=[3, 64, 64]))
    assert str(caught.value) == (
        f"The pictures of /faces are not those that {run} was trained on.\n"
        "Put the former pictures back to continue it, or give another folder to start a new run."
    )
    assert Difference("data_fingerprint", "4796eb", "4c3f81") in caught.value.differences
    with pytest.raises(ConfigMismatch) as caught:
        RunFolder(run).check(data("/faces", "4c3f81", image_shape=[1, 64, 64], width=8))
    assert "width   64        8\nThe pictures of /faces" in str(caught.value)
    assert "Give the run's own values and put the former pictures back to" in str(caught.value)


def test_of_other_data_only_what_can_be_given_is_shown(run: Path) -> None:
    RunFolder(run).claim(data("/faces", "4796eb", image_shape=[1, 64, 64]))
    for other in (
        data("/cats", "4c3f81", image_shape=[3, 64, 64]),
        data("/faces", "4c3f81", image_shape=[1, 32, 32], image_size=32),
    ):
        with pytest.raises(ConfigMismatch) as caught:
            RunFolder(run).check(other)
        text = str(caught.value)
        assert "4c3f81" not in text
        assert "image_shape" not in text
        assert ("/cats" in text) != ("image_size  64        32" in text)
        assert "pictures" not in text


def test_what_is_no_run_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        RunFolder(tmp_path).claim(SETTINGS)
    with pytest.raises(ValueError, match="is a file: a run needs a folder"):
        RunFolder(tmp_path / "thesis.tex").claim(SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    for text in ("[1]", '{"settings": [1]}', '{"settings": "text"}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match="is not the configuration of a run"):
            RunFolder(tmp_path).claim(SETTINGS)


def test_a_second_training_in_the_same_folder_is_refused_until_the_first_is_gone(
    run: Path,
) -> None:
    folder = RunFolder(run)
    folder.claim(SETTINGS)
    other = (
        "import sys\nfrom pathlib import Path\nfrom fastgen.training.run_folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).locked():\n    print('in', flush=True)\n    input()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", other, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    with pytest.raises(FolderInUse, match="another process is training in"), folder.locked():
        pass
    process.kill()
    process.wait()
    with folder.locked():
        pass


def test_a_new_run_has_a_number_of_its_own_and_goes_if_nothing_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"model": "gan", "data": "digits"}
    runs = tmp_path / "runs"
    with new_run(runs, settings) as one, new_run(runs, settings) as other:
        assert [one.name, other.name] == ["0001-gan-digits", "0002-gan-digits"]
        (other / "config.json").touch()
    assert list(runs.iterdir()) == [other]

    def another_is_faster(folder: Path, settings: Settings) -> Path:
        monkeypatch.undo()
        path = next_run(folder, settings)
        path.mkdir()
        return path

    monkeypatch.setattr("fastgen.training.run_folder.next_run", another_is_faster)
    with new_run(runs, settings) as path:
        assert path.name == "0004-gan-digits"
    with new_run(tmp_path / "none", settings):
        pass
    assert not (tmp_path / "none").exists()


def test_runs_are_numbered(tmp_path: Path) -> None:
    settings = {"model": "gan", "data": "mnist:/data/mnist"}
    assert next_run(tmp_path, settings) == tmp_path / "0001-gan-mnist"
    (tmp_path / "0041-vae-faces").mkdir()
    (tmp_path / "notes").mkdir()
    assert next_run(tmp_path, {**settings, "data": "/a/faces.npz"}) == tmp_path / "0042-gan-faces"
    for taken, then in (("9999-mine", "10000"), ("10000-gan-mnist", "10001")):
        (tmp_path / taken).mkdir()
        assert next_run(tmp_path, settings) == tmp_path / f"{then}-gan-mnist"
