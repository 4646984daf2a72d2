# SPDX-License-Identifier: Apache-2.0
"""Deformable DETR as a detector: what it takes and gives, from config to demo."""

import json
import sys
import types

import cv2
import numpy as np
import pytest
import torch
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from maploss.engine import load_config
from maploss.export import export_model
from maploss.modeling.deformable_transformer import TransformerSettings, import_transformers

import train_net
from tests.tiny import RESNET_FPN, SMALLER, arguments, as_list, config_file, train_on

DETR = "MODEL.DEFORMABLE_DETR."
TINY = SMALLER | {
    "MODEL.SMALL_CONVNET.CHANNELS": [4, 4, 4, 4],
    "MODEL.SMALL_CONVNET.NORM": "",
    "MODEL.MAP_LOSS.AP_TYPE": "area",
    DETR + "D_MODEL": 32,
    DETR + "FFN_DIM": 16,
    DETR + "NUM_QUERIES": 7,
    DETR + "ENCODER_LAYERS": 1,
    DETR + "DECODER_LAYERS": 2,
}
# Trained for mAP with NMS off.
MAP = {DETR + "LOSS": "map", "MODEL.MAP_LOSS.BOX_REG.BOXES": "regressed"}


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers", minversion="5.8")


def make_cfg(settings=()):
    return load_config(config_file("deformable_detr"), as_list(TINY | dict(settings)))


def build(settings=(), seed=0):
    torch.manual_seed(seed)
    model = build_model(make_cfg(settings))
    # Else all boxes of a layer have one size and all scores one value.
    for layers in (model.transformer.class_embed, model.transformer.model.decoder.bbox_embed):
        for param in layers.parameters():
            torch.nn.init.normal_(param, std=0.3)
    return model


def make_inputs(*sizes, seed=0, num_objects=2):
    generator = torch.Generator().manual_seed(seed)
    inputs = []
    for height, width in sizes:
        instances = Instances((height, width))
        corner = torch.rand(num_objects, 2, generator=generator) * 20
        instances.gt_boxes = Boxes(torch.cat([corner, corner + 20], 1))
        instances.gt_classes = torch.arange(num_objects) % 4
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        inputs.append({"image": image, "instances": instances})
    return inputs


FPN = RESNET_FPN | {DETR + "IN_FEATURES": ["p5", "p3"], DETR + "NUM_FEATURE_LEVELS": 3}
SQUEEZENET = {
    "MODEL.BACKBONE.NAME": "build_squeezenet_backbone",
    "MODEL.SQUEEZENET.OUT_FEATURES": ["fire4", "fire9"],
    DETR + "IN_FEATURES": ["fire4", "fire9"],
}
CAFFENET = {
    "MODEL.BACKBONE.NAME": "build_plain_convnet_backbone",
    "MODEL.PLAIN_CONVNET.NETWORK": "caffenet",
    DETR + "IN_FEATURES": ["conv5"],
}
BACKBONES = {"small": {}, "fpn": FPN, "squeezenet": SQUEEZENET, "caffenet": CAFFENET}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_is_detected_in_an_image_depends_on_no_other_image(transformers, backbone):
    model = build(BACKBONES[backbone]).eval()
    inputs = make_inputs((64, 96), (90, 75), (64, 96), (75, 120))
    with torch.no_grad():
        together = [x["instances"] for x in model(inputs)]
        alone = [model([x])[0]["instances"] for x in inputs]
    for found, expected in zip(together, alone, strict=True):
        assert len(found) == 7 * 4
        torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-2, rtol=1e-3
        )
    # Not because nothing depends on the image.
    assert (together[0].scores - together[2].scores).abs().max() > 1e-4


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("settings", [{}, MAP], ids=["focal", "map"])
def test_every_part_learns_on_any_backbone(transformers, storage, backbone, settings):
    model = build(BACKBONES[backbone] | settings)
    inputs = make_inputs((64, 96), (90, 75))
    if settings:
        # Only a box over an object learns: here each object is almost where a query says.
        with torch.no_grad():
            found = [x["instances"].pred_boxes.tensor for x in model.eval()(inputs)]
        model.train()
        for x, boxes in zip(inputs, found, strict=True):
            x["instances"].gt_boxes = Boxes(boxes[:2] + torch.tensor([0.5, 0.0, 0.0, 0.0]))
    losses = model(inputs)
    sum(losses.values()).backward()
    for name, param in model.named_parameters():
        # An FPN makes levels that are not used.
        assert param.grad is not None or name.startswith("backbone.fpn"), name
        assert param.grad is None or torch.isfinite(param.grad).all(), name
    for part in (model.backbone, model.levels, model.transformer.model.encoder):
        assert any(p.grad is not None and p.grad.any() for p in part.parameters())
    assert any(p.grad.any() for p in model.transformer.class_embed[-1].parameters())


def test_each_decoder_layer_has_its_losses(transformers, storage):
    names = set(build({DETR + "DECODER_LAYERS": 3})(make_inputs((64, 64))))
    own = {"loss_focal", "loss_box_giou", "loss_box_l1"}
    assert names == {f"{name}{end}" for name in own for end in ("", "_0", "_1")}


def test_an_image_without_objects_trains(transformers, storage):
    model = build()
    losses = model([*make_inputs((64, 96)), *make_inputs((48, 64), num_objects=0)])
    assert all(torch.isfinite(x) for x in losses.values())
    losses = model(make_inputs((48, 64), num_objects=0))
    assert losses["loss_focal"] > 0
    assert losses["loss_box_giou"] == losses["loss_box_l1"] == 0


def test_training_lowers_the_loss(transformers, storage):
    torch.manual_seed(0)
    model = build_model(make_cfg())
    values = train_on(model, make_inputs((64, 64), (64, 80)), learning_rate=0.003)
    assert sum(values[-5:]) < 0.7 * sum(values[:5])


def test_queries_begin_all_over_the_image_at_a_probability_of_a_hundredth(transformers):
    torch.manual_seed(0)
    model = build_model(make_cfg({DETR + "NUM_QUERIES": 100})).eval()
    images = [x["image"].float() for x in make_inputs((64, 64))]
    with torch.no_grad():
        layers = model.transformer(model.levels(model.backbone, model.in_features, images))
    centers = layers[0].boxes[0, :, :2]
    assert (centers.std(0) > 0.1).all()
    for layer in model.transformer.class_embed:
        torch.testing.assert_close(layer.bias.sigmoid(), torch.full_like(layer.bias, 0.01))


@pytest.mark.parametrize(("limit", "kept"), [(-1, 28), (5, 5), (1000, 28)])
@pytest.mark.parametrize("settings", [{}, MAP], ids=["probabilities", "raw"])
def test_the_best_queries_as_classes_are_detected(transformers, settings, limit, kept):
    model = build({**settings, "TEST.DETECTIONS_PER_IMAGE": limit}).eval()
    (inputs,) = make_inputs((64, 96))
    images = [(inputs["image"] - model.pixel_mean) / model.pixel_std]
    with torch.no_grad():
        found = model([{**inputs, "height": 128, "width": 192}])[0]["instances"]
        last = model.transformer(model.levels(model.backbone, model.in_features, images))[-1]
    logits = last.scores[0]
    scores = logits if settings else logits.sigmoid()
    assert len(found) == kept
    assert found.image_size == (128, 192)
    ranked = sorted(((scores[q, c].item(), q, c) for q in range(7) for c in range(4)), reverse=True)
    for i, (score, q, c) in enumerate(ranked[:kept]):
        assert found.scores[i].item() == pytest.approx(score, abs=1e-6)
        assert found.pred_classes[i] == c
        x, y, w, h = (last.boxes[0, q] * torch.tensor([192, 128, 192, 128])).tolist()
        sides = (x - w / 2, 192), (y - h / 2, 128), (x + w / 2, 192), (y + h / 2, 128)
        box = [min(max(side, 0), most) for side, most in sides]
        assert found.pred_boxes.tensor[i].tolist() == pytest.approx(box, abs=1e-2)


def test_the_score_threshold_of_the_config_holds(transformers):
    model = build().eval()
    inputs = make_inputs((64, 64))
    with torch.no_grad():
        scores = model(inputs)[0]["instances"].scores
        model.test_score_thresh = float(scores[4])
        found = model(inputs)[0]["instances"].scores
    assert found.tolist() == scores[:4].tolist()


REFUSED = [
    (
        {"MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5},
        r"NMS_THRESH_TEST: expected 1 .*\(there is no NMS\), got 0.5",
    ),
    ({"MODEL.LOAD_PROPOSALS": True}, "MODEL.LOAD_PROPOSALS: expected False .*, got True"),
    ({"TEST.BOX_VOTING_IOU_THRESH": 0.5}, "TEST.BOX_VOTING_IOU_THRESH: expected 0 .*, got 0.5"),
    ({"TEST.BOX_REG.ITERATIONS": 2}, "TEST.BOX_REG.ITERATIONS: expected 1 .*, got 2"),
    ({"DATALOADER.FEATURE_CACHE.FOLDER": "x"}, "FEATURE_CACHE.FOLDER: expected '' .*, got 'x'"),
    (MAP | {"MODEL.MAP_LOSS.BOX_REG.BOXES": "none"}, "BOXES: expected 'regressed' .*, got 'none'"),
    (MAP | {"MODEL.MAP_LOSS.WINDOWS": "all"}, "WINDOWS: expected 'sampled' .*, got 'all'"),
    (MAP | {"MODEL.MAP_LOSS.MEMORY": 2}, "MODEL.MAP_LOSS.MEMORY: expected 0 .*, got 2"),
    (
        {DETR + "LOSS": "softmax"},
        "DEFORMABLE_DETR.LOSS: .* one of ranking, map, got 'softmax'",
    ),
    (
        {DETR + "D_MODEL": 48},
        "MODEL.DEFORMABLE_DETR: d_model: .* a multiple of 32 .*, got 48",
    ),
    ({DETR + "NUM_QUERIES": 0}, "MODEL.DEFORMABLE_DETR: num_queries: expected a number above 0"),
    ({DETR + "DROPOUT": 1.0}, r"MODEL.DEFORMABLE_DETR: dropout: expected .*\[0, 1\), got 1.0"),
    ({DETR + "L1_WEIGHT": -1.0}, "L1_WEIGHT: expected a number of 0 or more, got -1.0"),
    ({DETR + "IN_FEATURES": ["res4"]}, r"IN_FEATURES: expected .*\['conv4'\], got \['res4'\]"),
    ({DETR + "NUM_FEATURE_LEVELS": 0}, "num_levels: expected a number above 0, got 0"),
    (FPN | {DETR + "NUM_FEATURE_LEVELS": 1}, "NUM_FEATURE_LEVELS: expected .* 2 .*, got 1"),
    (
        {"MODEL.RANKING_LOSS.NAME": "softmax"},
        "MODEL.RANKING_LOSS.NAME: expected .*'softmax'",
    ),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_settings_that_do_not_apply_are_refused(transformers, settings, message):
    with pytest.raises(ValueError, match=message):
        build_model(make_cfg(settings))


def test_images_that_cannot_train_are_named(transformers):
    model = build()
    (inputs,) = make_inputs((64, 64))
    inputs["file_name"] = "a.png"
    inputs["instances"].gt_classes = torch.tensor([0, 4])
    with pytest.raises(ValueError, match=r"image a.png: expected .* classes 0 to 3, got \[0, 4\]"):
        model([inputs])
    del inputs["instances"]
    with pytest.raises(ValueError, match=r"image a.png: expected 'instances', got only \["):
        model([inputs])


def run(data, *args, **keys):
    settings = {key.replace(".", "__"): value for key, value in TINY.items()}
    keys = {"SOLVER__CLIP_GRADIENTS__ENABLED": False} | settings | keys
    line = arguments(data, "output", *args, config="deformable_detr", **keys)
    return train_net.main(default_argument_parser().parse_args(line))


def older(version):
    return types.SimpleNamespace(__version__=version)


@pytest.mark.parametrize(
    ("module", "says"),
    [(None, "none that can be imported"), (older("5.7.9"), r"5\.7\.9"), (older("4.9"), r"4\.9")],
)
def test_without_transformers_or_with_an_old_one_there_is_one_line(
    tiny_data, monkeypatch, module, says
):
    monkeypatch.setitem(sys.modules, "transformers", module)
    expected = (
        rf"expected the package transformers >= 5\.8 \(pip install -e '\.\[detr\]'\), got {says}"
    )
    with pytest.raises(ValueError, match=expected):
        import_transformers()
    with pytest.raises(SystemExit, match=rf"\Aerror: MODEL\.META_ARCHITECTURE .*{expected}.*\Z"):
        run(tiny_data)


def test_a_data_set_of_more_classes_than_the_config_says_stops_with_one_line(
    transformers, tiny_data
):
    with pytest.raises(SystemExit, match=r"\Aerror: .*NUM_CLASSES: expected 4, .*, got 3\Z"):
        run(tiny_data, MODEL__ROI_HEADS__NUM_CLASSES=3)


@pytest.mark.parametrize("settings", [{}, MAP], ids=["focal", "map"])
def test_a_run_resumes_bit_for_bit_and_is_judged(transformers, tiny_data, settings):
    keys = {key.replace(".", "__"): value for key, value in settings.items()}
    results = run(tiny_data, **keys)
    assert 0 <= results["bbox"]["AP50"] <= 100
    whole = torch.load(tiny_data / "output/model_final.pth", weights_only=True)["model"]
    (tiny_data / "output/model_final.pth").unlink()
    (tiny_data / "output/last_checkpoint").write_text("model_0000003.pth")
    run(tiny_data, "--resume", **keys)
    resumed = torch.load(tiny_data / "output/model_final.pth", weights_only=True)["model"]
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    assert run(tiny_data, "--eval-only", **keys) == results


def test_a_checkpoint_of_other_sizes_is_refused_with_one_line(transformers, tiny_data):
    run(tiny_data, SOLVER__MAX_ITER=1, SOLVER__STEPS=())
    weights = tiny_data / "output/model_final.pth"
    keys = {"MODEL__WEIGHTS": weights, "MODEL__DEFORMABLE_DETR__NUM_QUERIES": 9}
    expected = r"query_position_embeddings.weight: expected \(9, 64\), got \(7, 64\)"
    with pytest.raises(SystemExit, match=rf"\Aerror: .*{expected}.*\Z"):
        run(tiny_data, "--eval-only", **keys)


@pytest.mark.parametrize("settings", [{}, MAP], ids=["focal", "map"])
def test_it_is_exported_and_shown(transformers, tmp_path, call_tool, settings):
    cfg = make_cfg(settings)
    model = build(settings)
    path = export_model(cfg, model, tmp_path / "exported")
    content = torch.load(path, weights_only=True)
    assert set(content["model"]) == set(model.state_dict())
    assert content["metadata"]["thing_classes"]
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "image.png"), image)
    output = tmp_path / "detected"
    config = str(path.with_suffix(".yaml"))
    call_tool("demo", "--config-file", config, "--output", str(output), str(tmp_path / "image.png"))
    (found,) = json.loads((output / "detections.json").read_text())
    with torch.no_grad():
        tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
        expected = model.eval()([{"image": tensor}])[0]["instances"]
    assert len(found["detections"]) == 10
    for one, score, box in zip(
        found["detections"], expected.scores, expected.pred_boxes.tensor, strict=False
    ):
        assert one["score"] == pytest.approx(float(score), abs=1e-5)
        assert one["box"] == pytest.approx(box.tolist(), abs=0.1)


def test_defaults_are_the_papers():
    settings = TransformerSettings(num_classes=91)
    assert (settings.num_queries, settings.num_levels, settings.d_model) == (300, 4, 256)
    keys = make_cfg().MODEL.DEFORMABLE_DETR
    assert (keys.CLASS_WEIGHT, keys.L1_WEIGHT, keys.GIOU_WEIGHT) == (2.0, 5.0, 2.0)
