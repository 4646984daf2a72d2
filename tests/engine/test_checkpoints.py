# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from maploss.engine import load_for_evaluation
from maploss.engine.checkpoints import loading
from maploss.engine.safe_checkpointer import SafeCheckpointer


@pytest.fixture
def model(tiny_cfg):
    return build_model(tiny_cfg)


def save(model, folder):
    DetectionCheckpointer(model, str(folder)).save("good")
    return folder / "good.pth"


@pytest.mark.parametrize("resume", [True, False])
def test_what_was_saved_is_loaded_for_evaluation(model, tiny_cfg, tmp_path, resume):
    path = save(model, tmp_path)
    other = build_model(tiny_cfg)
    weights = "nowhere.pth" if resume else f"{path}"
    load_for_evaluation(other, weights, str(tmp_path), resume=resume)
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_weights_of_another_number_of_classes_name_the_parameters(model, tiny_cfg, tmp_path):
    path = save(model, tmp_path)
    tiny_cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    message = r"good\.pth: .*cls_score\.weight: expected \(3, 8\), got \(4, 8\).*cls_score\.bias"
    with pytest.raises(ValueError, match=message):
        load_for_evaluation(build_model(tiny_cfg), str(path), str(tmp_path), resume=False)


def test_all_parameters_of_another_shape_are_named(model, tiny_cfg, tmp_path):
    save(model, tmp_path)
    tiny_cfg.MODEL.SMALL_CONVNET.CHANNELS = [3, 3, 3, 3]
    other = build_model(tiny_cfg)
    with pytest.raises(ValueError, match="weights do not fit the config") as error:
        load_for_evaluation(other, str(tmp_path / "good.pth"), str(tmp_path), resume=False)
    shapes = {key: tuple(value.shape) for key, value in other.state_dict().items()}
    differ = [key for key, value in model.state_dict().items() if shapes[key] != value.shape]
    assert len(differ) > 5
    for key in differ:
        got = tuple(model.state_dict()[key].shape)
        assert f"{key}: expected {shapes[key]}, got {got}" in str(error.value)


def test_weights_of_the_backbone_alone_train_but_are_not_evaluated(model, tiny_cfg, tmp_path):
    path = str(tmp_path / "backbone.pth")
    torch.save(model.backbone.state_dict(), path)
    other = build_model(tiny_cfg)
    checkpointer = SafeCheckpointer(other, str(tmp_path))
    with loading(checkpointer, path, resume=False):
        checkpointer.resume_or_load(path, resume=False)
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, other.backbone.state_dict()[key]), key
    with pytest.raises(ValueError, match=r"backbone\.pth: .*roi_heads.*got none.* more"):
        load_for_evaluation(other, path, str(tmp_path), resume=False)


@pytest.mark.parametrize("shape", [None, (4, 3, 5, 5)])
def test_weights_without_a_frozen_parameter_do_not_train(model, tiny_cfg, tmp_path, shape):
    state = model.state_dict()
    key = next(iter(model.backbone.state_dict()))
    state.pop(f"backbone.{key}")
    if shape:
        state[f"backbone.{key}"] = torch.zeros(shape)
    torch.save({"model": state}, tmp_path / "partial.pth")
    path = str(tmp_path / "partial.pth")
    other = build_model(tiny_cfg)
    checkpointer = SafeCheckpointer(other, str(tmp_path))
    with loading(checkpointer, path, resume=False):  # it is not frozen: as Detectron2 does
        checkpointer.resume_or_load(path, resume=False)
    other.backbone.requires_grad_(False)
    got = r"\(4, 3, 5, 5\)" if shape else "none"
    message = rf"partial\.pth: .*{key}: expected \(4, 3, 3, 3\), got {got}; these are frozen"
    with pytest.raises(ValueError, match=message), loading(checkpointer, path, resume=False):
        checkpointer.resume_or_load(path, resume=False)
    assert "_load_model" not in vars(checkpointer)


def test_weights_that_do_not_exist_are_named(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth$"):
        load_for_evaluation(model, str(tmp_path / "nowhere.pth"), str(tmp_path), resume=False)


@pytest.mark.parametrize("name", ["x.pth", "x.pkl"])
@pytest.mark.parametrize("content", [b"", b"no checkpoint"])
def test_a_file_that_is_no_checkpoint_is_named(model, tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"Cannot load checkpoint .*{name}"):
        load_for_evaluation(model, str(path), str(tmp_path), resume=False)


def test_a_file_that_holds_something_else_is_named(model, tmp_path):
    path = str(tmp_path / "x.pth")
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"Cannot load checkpoint .*x\.pth"):
        load_for_evaluation(model, path, str(tmp_path), resume=False)


def break_tag(folder):
    (folder / "last_checkpoint").write_text("")


def break_name(folder):
    (folder / "good.pth").unlink()


def break_file(folder):
    path = folder / "good.pth"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        (break_tag, ValueError, "expected the name of a checkpoint, got nothing"),
        (break_name, FileNotFoundError, r"not found: .*good\.pth"),
        (break_file, ValueError, r"Cannot load checkpoint .*good\.pth"),
    ],
)
def test_a_checkpoint_to_resume_from_that_is_broken_names_the_remedy(
    model, tmp_path, break_it, error, message
):
    save(model, tmp_path)
    break_it(tmp_path)
    checkpointer = SafeCheckpointer(model, str(tmp_path))
    remedy = rf"delete {tmp_path}/last_checkpoint, or write the name of a good checkpoint"
    with (
        pytest.raises(error, match=rf"(?s){message}.*; {remedy}"),
        loading(checkpointer, "", resume=True),
    ):
        checkpointer.resume_or_load("", resume=True)
