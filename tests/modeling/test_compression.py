# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import yaml
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from maploss.engine import load_config, load_for_evaluation, load_trained
from maploss.modeling import FullyConnectedHead
from maploss.modeling.compression import compress, factorize_linear

SHAPE = ShapeSpec(channels=3, height=2, width=2)


def make_head(kind):
    torch.manual_seed(0)
    if kind is FullyConnectedHead:
        return FullyConnectedHead(SHAPE, fc_dims=[8, 5], dropout=0.5).eval()
    return FastRCNNConvFCHead(SHAPE, conv_dims=[], fc_dims=[8, 5])


@pytest.mark.parametrize("kind", [FullyConnectedHead, FastRCNNConvFCHead])
def test_a_compressed_head_of_full_rank_does_the_same(kind):
    head, features = make_head(kind), torch.randn(6, 3, 2, 2)
    expected = head(features)
    report = compress(head, [8, 5])
    torch.testing.assert_close(head(features), expected)
    assert [(x.shape, x.rank) for x in report] == [((8, 12), 8), ((5, 8), 5)]


def test_the_lower_the_rank_the_more_is_lost_and_0_leaves_a_layer_whole():
    features, outputs, errors = torch.randn(6, 3, 2, 2), [], []
    for rank in (7, 4, 1):
        head = make_head(FullyConnectedHead)
        expected = head(features)
        (report,) = compress(head, [rank, 0])
        outputs.append(float((head(features) - expected).detach().norm()))
        errors.append(report.error)
        assert isinstance(head.fc7, torch.nn.Linear)
    assert 0 < outputs[0] < outputs[1] < outputs[2]
    assert 0 < errors[0] < errors[1] < errors[2] < 1


def test_ranks_that_do_not_fit_the_head_are_told():
    head = make_head(FullyConnectedHead)
    with pytest.raises(ValueError, match=r"ranks: expected 2, one for each of fc6, fc7.*\[3\]"):
        compress(head, [3])
    with pytest.raises(ValueError, match="fc7: rank: expected 1 to 5"):
        compress(head, [0, 6])
    with pytest.raises(ValueError, match="rank of fc6: expected at most 8, got 9"):
        factorize_linear(make_head(FullyConnectedHead), [9, 0])


@pytest.fixture
def checkpoint(tiny_cfg, tmp_path):
    tiny_cfg.OUTPUT_DIR = str(tmp_path / "run")
    (tmp_path / "run").mkdir()
    tiny_cfg.MODEL.WEIGHTS = str(tmp_path / "run" / "model_final.pth")
    torch.manual_seed(1)
    model = build_model(tiny_cfg)
    torch.save({"model": model.state_dict()}, tiny_cfg.MODEL.WEIGHTS)
    (tmp_path / "run" / "config.yaml").write_text(tiny_cfg.dump())
    return model.eval()


def test_the_tool_writes_a_checkpoint_and_a_config_that_load(checkpoint, tmp_path, call_tool):
    source, target = tmp_path / "run" / "config.yaml", tmp_path / "compressed"
    arguments = ("--config-file", str(source), "--output", str(target))
    _, out, _ = call_tool("compress_model", *arguments, "--ranks", "8", "4")
    assert "fc1" in out
    assert "8 x 16" in out
    assert yaml.safe_load((target / "config.yaml").read_text())["MODEL"]["WEIGHTS"]
    cfg = load_config(str(target / "config.yaml"), [])
    model = build_model(cfg).eval()
    load_for_evaluation(model, cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR, resume=False)
    features = torch.randn(3, 4, 2, 2)
    expected = checkpoint.roi_heads.box_head(features)
    actual = model.roi_heads.box_head(features)
    assert actual.shape == expected.shape
    assert 0 < (actual - expected).norm() < 0.9 * expected.norm()
    num_parameters = sum(x.numel() for x in model.roi_heads.box_head.parameters())
    assert num_parameters == 8 * (8 + 16) + 8 + 4 * (8 + 8) + 8


def test_a_rank_that_is_too_large_ends_the_tool_with_one_line(checkpoint, tmp_path, call_tool):
    source = str(tmp_path / "run" / "config.yaml")
    with pytest.raises(SystemExit, match=r"^error: fc1: rank: expected 1 to 8 .*, got 9$"):
        call_tool(
            "compress_model",
            "--config-file",
            source,
            "--output",
            str(tmp_path),
            "--ranks",
            "9",
            "1",
        )


def test_a_head_that_is_compressed_is_not_compressed_again():
    head = make_head(FullyConnectedHead)
    compress(head, [4, 0])
    with pytest.raises(ValueError, match="expected a box head that is whole"):
        compress(head, [4, 0, 2])


def test_the_tools_take_what_a_run_has_trained_not_what_it_began_with(checkpoint, tmp_path):
    config = str(tmp_path / "run" / "config.yaml")
    trained = build_model(load_config(config, ["MODEL.DEVICE", "cpu"]))
    torch.save({"model": trained.state_dict()}, tmp_path / "run" / "model_trained.pth")
    (tmp_path / "run" / "last_checkpoint").write_text("model_trained.pth")
    for overrides, expected in (
        ([], trained),
        (["MODEL.WEIGHTS", str(tmp_path / "run" / "model_final.pth")], checkpoint),
    ):
        cfg, model = load_trained(config, overrides)
        layer, wanted = model.roi_heads.box_head.fc1, expected.roi_heads.box_head.fc1
        assert torch.equal(layer.weight, wanted.weight)
        assert cfg.MODEL.WEIGHTS.endswith("final.pth" if overrides else "trained.pth")
