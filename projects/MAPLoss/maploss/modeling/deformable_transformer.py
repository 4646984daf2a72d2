# SPDX-License-Identifier: Apache-2.0
"""
The transformer of Deformable DETR (Zhu et al., ICLR 2021), that of the library transformers.

The library makes features, tokens, queries and boxes in one model. Its backbone is replaced here by
the features of ours; its encoder, decoder and positions are used as they are.

Shape letters: N images, L levels of features, Q queries, K classes, D channels.
"""

import copy
import dataclasses
import importlib
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

from ..layers.checks import check_positive

# From here on the library's backbone is one module, which features can replace.
LEAST_TRANSFORMERS = (5, 8)


def import_transformers() -> ModuleType:
    """
    The library's module of Deformable DETR.

    Raises:
        ValueError: the library is not there or too old.
    """
    least = ".".join(map(str, LEAST_TRANSFORMERS))
    expected = (
        "MODEL.META_ARCHITECTURE RankingDeformableDETR: expected the package transformers "
        f">= {least} (pip install -e '.[detr]'), got "
    )
    try:
        version = importlib.import_module("transformers").__version__
    except ImportError as error:
        raise ValueError(f"{expected}none that can be imported ({error})") from error
    numbers = tuple(int(x) for x in version.split(".")[:2] if x.isdigit())
    if numbers < LEAST_TRANSFORMERS:
        raise ValueError(f"{expected}{version}")
    try:
        return importlib.import_module(
            "transformers.models.deformable_detr.modeling_deformable_detr"
        )
    except ImportError as error:  # such as a torch that is too old for it
        raise ValueError(f"{expected}{version}, which cannot be imported ({error})") from error


class QueryOutputs(NamedTuple):
    """
    What one layer of the decoder says.

    Args:
        scores: (N, Q, K) logits.
        boxes: (N, Q, 4) centre x, y, width and height, as shares of the image's width and height.
    """

    scores: torch.Tensor
    boxes: torch.Tensor


@dataclasses.dataclass(frozen=True)
class TransformerSettings:
    """
    Sizes of the transformer; the defaults are the paper's.

    Args:
        num_classes: K.
        num_queries: Q.
        num_levels: L.
        d_model: D of all levels, a multiple of 32 and of num_heads.
        num_heads: of each attention.
        ffn_dim: hidden width of the layers' feed-forward parts.
        encoder_layers: their number.
        decoder_layers: their number.
        num_points: sampled by a head on each level.
        dropout: share of outputs dropped in training, in [0, 1).

    Raises:
        ValueError: a number out of its range.
    """

    num_classes: int
    num_queries: int = 300
    num_levels: int = 4
    d_model: int = 256
    num_heads: int = 8
    ffn_dim: int = 1024
    encoder_layers: int = 6
    decoder_layers: int = 6
    num_points: int = 4
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name != "dropout":
                check_positive(field.name, getattr(self, field.name))
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a number in [0, 1), got {self.dropout}")
        if self.d_model % 32 or self.d_model % self.num_heads:
            raise ValueError(
                f"d_model: expected a multiple of 32 and of num_heads, {self.num_heads}, got "
                f"{self.d_model}"
            )


class DeformableTransformer(nn.Module):
    """
    From levels of features to what each layer of the decoder says of each query: one stage, with
    iterative refinement of the boxes (Zhu et al., section 4.2 and appendix A.4).

    Weights begin as those of the paper's code: the library's own beginning, made for weights that
    are loaded, has all queries look at the middle of the image.
    """

    def __init__(self, settings: TransformerSettings) -> None:
        """
        Args:
            settings: its sizes.

        Raises:
            ValueError: no library.
        """
        super().__init__()
        library = import_transformers()
        self.model = library.DeformableDetrModel(_library_config(library, settings))
        self.model.backbone = _GivenFeatures()
        self.model.input_proj = nn.ModuleList(nn.Identity() for _ in range(settings.num_levels))
        d_model, decoder_layers = settings.d_model, settings.decoder_layers
        box_embed = library.DeformableDetrMLPPredictionHead(d_model, d_model, 4, 3)
        class_embed = nn.Linear(d_model, settings.num_classes)
        _initialize(self.model, box_embed)
        # Each layer's own. The decoder refines its boxes by those that it has.
        self.class_embed = _clones(class_embed, decoder_layers)
        self.model.decoder.bbox_embed = _clones(box_embed, decoder_layers)
        # The first layer's boxes begin small.
        nn.init.constant_(self.model.decoder.bbox_embed[0].layers[-1].bias[2:], -2.0)
        self._inverse_sigmoid = library.inverse_sigmoid

    def forward(self, levels: list[tuple[torch.Tensor, torch.Tensor]]) -> list[QueryOutputs]:
        """
        Args:
            levels: L pairs of features (N, D, H, W) and where they are of the image and not of its
                padding: (N, H, W) bool.

        Returns:
            Of each layer of the decoder, the last one's last.
        """
        outputs = self.model(levels[0][0], pixel_mask=levels)
        layers = []
        for i, score_head in enumerate(self.class_embed):
            hidden = outputs.intermediate_hidden_states[:, i]
            deltas = self.model.decoder.bbox_embed[i](hidden)
            if i == 0:  # points, which have no size yet
                reference = self._inverse_sigmoid(outputs.init_reference_points)
                reference = nn.functional.pad(reference, (0, 2))
            else:
                reference = self._inverse_sigmoid(outputs.intermediate_reference_points[:, i - 1])
            boxes = (deltas + reference).sigmoid()
            layers.append(QueryOutputs(score_head(hidden), boxes))
        return layers


class _GivenFeatures(nn.Module):
    """In the place of the library's backbone: what it would make of the image is given."""

    def forward(self, _: torch.Tensor, levels: Any) -> Any:
        return levels


def _library_config(library: ModuleType, settings: TransformerSettings) -> Any:
    return library.DeformableDetrConfig(
        # Its backbone is replaced: the least that is built without a download.
        backbone_config={
            "model_type": "resnet",
            "embedding_size": 4,
            "hidden_sizes": [4],
            "depths": [1],
            "layer_type": "basic",
            "out_features": ["stage1"],
        },
        num_queries=settings.num_queries,
        num_feature_levels=settings.num_levels,
        d_model=settings.d_model,
        encoder_attention_heads=settings.num_heads,
        decoder_attention_heads=settings.num_heads,
        encoder_ffn_dim=settings.ffn_dim,
        decoder_ffn_dim=settings.ffn_dim,
        encoder_layers=settings.encoder_layers,
        decoder_layers=settings.decoder_layers,
        encoder_n_points=settings.num_points,
        decoder_n_points=settings.num_points,
        dropout=settings.dropout,
        with_box_refine=True,
    )


def _clones(module: nn.Module, number: int) -> nn.ModuleList:
    return nn.ModuleList(copy.deepcopy(module) for _ in range(number))


def _initialize(model: Any, box_embed: Any) -> None:
    """As the paper's code; what is special to deformable attention, the library has done."""
    special = ("sampling_offsets.weight", "attention_weights.weight")
    for name, param in model.named_parameters():
        if param.dim() > 1 and not name.endswith(special):
            nn.init.xavier_uniform_(param)
    nn.init.normal_(model.query_position_embeddings.weight)
    nn.init.normal_(model.level_embed)
    nn.init.zeros_(box_embed.layers[-1].weight)
    nn.init.zeros_(box_embed.layers[-1].bias)
