# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from detectron2.utils.file_io import PathManager
from maploss.engine import torchvision_weights
from torchvision.models import VGG16_Weights

NAME = "torchvision://VGG16_Weights.IMAGENET1K_V1"


def test_a_name_stands_for_the_file_at_torchvisions_address(tmp_path, monkeypatch):
    torch.save({"features.0.bias": torch.ones(2)}, tmp_path / "vgg16.pth")
    asked = []

    class Files:
        def get_local_path(self, path, force=False):
            asked.append(path)
            return str(tmp_path / "vgg16.pth")

    monkeypatch.setattr(torchvision_weights, "PathManager", Files())
    assert PathManager.get_local_path(NAME) == str(tmp_path / "vgg16.pth")
    with PathManager.open(NAME, "rb") as file:
        assert torch.load(file)["features.0.bias"].tolist() == [1, 1]
    assert asked == [VGG16_Weights.IMAGENET1K_V1.url] * 2


@pytest.mark.parametrize("name", ["VGG99_Weights.IMAGENET1K_V1", "VGG16_Weights.NONE", ""])
def test_a_name_that_torchvision_does_not_know_is_told(name):
    with pytest.raises(ValueError, match="expected a name such as VGG16_Weights"):
        PathManager.get_local_path(f"torchvision://{name}")
