# SPDX-License-Identifier: Apache-2.0
"""ROI heads that train on hard windows."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.structures import Instances

from .hard_example_mining import check_num_hard, without_lower_limit
from .output_layers import WindowOutputs
from .roi_heads import SoftmaxROIHeads


@ROI_HEADS_REGISTRY.register()
class OHEMROIHeads(SoftmaxROIHeads):
    """
    Softmax, trained on the windows of the largest losses (Shrivastava et al. 2016, section 4).

    All windows go forward through a read-only pass of the box head and the predictor (no graph, no
    dropout); those of the largest loss of classification and box together, after NMS by loss, go
    through the ordinary pass. Background begins at IoU 0, and no share of foreground is asked for:
    MODEL.ROI_HEADS.POSITIVE_FRACTION and the lower of its IOU_THRESHOLDS do not count.

    `one_pass` is for comparison (section 4.2): all windows go through the ordinary pass and the
    losses of the easy ones are dropped. It chooses the same and gives the same gradient where the
    head has no dropout and no batch normalisation, and needs the backward pass of all windows.
    """

    @configurable
    def __init__(self, *, one_pass: bool = False, **kwargs):
        """
        Args: one_pass: see above. kwargs: see :class:`WindowROIHeads`; `batch_size_per_image` is
            the number of hard windows.

        Raises:
            ValueError: a number of hard windows below 1.
        """
        super().__init__(**kwargs)
        check_num_hard(self.batch_size_per_image)
        self.one_pass = one_pass
        self.samples = False
        self.proposal_matcher = without_lower_limit(self.proposal_matcher)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        ret = super().from_config(cfg, input_shape)
        ret["one_pass"] = cfg.MODEL.OHEM.ONE_PASS
        return ret

    def score_to_train(
        self, features: dict[str, torch.Tensor], windows: list[Instances]
    ) -> tuple[list[Instances], WindowOutputs]:
        """The hard windows, and what the predictor says of them."""
        score = self.score_windows if self.one_pass else self.score_read_only
        outputs = score(features, windows)
        with torch.no_grad():
            losses = self.box_predictor.window_losses(outputs, windows)
        inds, hard = self.mine_hard_proposals(losses, windows)
        return hard, outputs.of(inds) if self.one_pass else self.score_windows(features, hard)
