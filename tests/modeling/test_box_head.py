# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from detectron2.layers import ShapeSpec
from maploss.modeling import FullyConnectedHead, NormalizedConvFCHead


@pytest.fixture
def head():
    torch.manual_seed(0)
    return NormalizedConvFCHead(
        ShapeSpec(channels=3, height=2, width=2), conv_dims=[], fc_dims=[8, 5]
    )


def test_the_size_and_the_offset_of_a_windows_features_do_not_matter(head):
    features = torch.randn(4, 3, 2, 2)
    scale = torch.tensor([1.0, 20.0, 300.0, 0.5])[:, None, None, None]
    assert head(features).shape == (4, 5)
    torch.testing.assert_close(head(features * scale + scale), head(features), atol=1e-4, rtol=1e-4)


def test_what_reaches_the_layers_has_mean_0_and_variance_1_over_the_whole_window(head):
    seen = []
    next(x for x in head.modules() if isinstance(x, torch.nn.Linear)).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].flatten(1))
    )
    channels = torch.tensor([0.0, 5.0, -3.0])[:, None, None]
    head(torch.randn(4, 3, 2, 2) + channels)
    torch.testing.assert_close(seen[0].mean(1), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[0].var(1, unbiased=False), torch.ones(4), atol=1e-4, rtol=0)
    # Not channel by channel: which channels are strong is what tells objects apart.
    assert (seen[0].view(4, 3, 4).mean(2)[:, 1] > 0.3).all()


def test_features_without_any_spread_and_no_window_at_all_are_fine(head):
    assert head(torch.full((2, 3, 2, 2), 7.0)).isfinite().all()
    assert head(torch.zeros(0, 3, 2, 2)).shape == (0, 5)


def test_a_config_names_it(tiny_cfg):
    from detectron2.modeling.roi_heads import build_box_head

    tiny_cfg.MODEL.ROI_BOX_HEAD.NAME = "NormalizedConvFCHead"
    built = build_box_head(tiny_cfg, ShapeSpec(channels=4, height=2, width=2))
    assert type(built) is NormalizedConvFCHead


def make_head(fc_dims=(6, 5), dropout=0.5):
    return FullyConnectedHead(
        ShapeSpec(channels=3, height=2, width=2), fc_dims=fc_dims, dropout=dropout
    )


def test_fc6_and_fc7_drop_outputs_in_training_only():
    torch.manual_seed(0)
    features = torch.randn(4, 3, 2, 2)
    head = make_head(fc_dims=(6, 5)).eval()
    expected = head.fc7(head.fc6(features.flatten(1)).relu()).relu()
    torch.testing.assert_close(head(features), expected)
    assert head.output_shape.channels == 5
    head = make_head(fc_dims=(1000,))
    expected = head.eval()(features)
    trained = head.train()(features)
    is_kept = trained > 0
    assert 0.4 < is_kept[expected > 0].float().mean() < 0.6
    torch.testing.assert_close(trained[is_kept], 2 * expected[is_kept])


def test_a_head_without_layers_or_with_a_wrong_share_is_refused():
    with pytest.raises(ValueError, match="fc_dims: expected the width of at least one layer"):
        make_head(fc_dims=())
    with pytest.raises(ValueError, match=r"dropout: expected a share in \[0, 1\), got 1.0"):
        make_head(dropout=1.0)
