# SPDX-License-Identifier: Apache-2.0
"""Outputs of a decoder layer by hand, and what is to be found, for the tests of their losses."""

import itertools
import math

import torch
from detectron2.structures import Boxes, Instances
from maploss.modeling.deformable_transformer import QueryOutputs
from maploss.modeling.query_matching import QueryTargets

SIZE = (80, 120)  # height, width
NUM_CLASSES, NUM_QUERIES = 3, 5
WEIGHTS = (2.0, 5.0, 2.0)


def make_objects(count, seed=0, **fields):
    """An image's Instances; `fields` such as gt_difficult are lists."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 50
    size = 10 + 20 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    objects = Instances(SIZE)
    objects.gt_boxes = Boxes(torch.zeros(count, 4))
    objects.gt_boxes.tensor = torch.cat([corner, corner + size], 1)  # Boxes are float32
    objects.gt_classes = torch.randint(NUM_CLASSES, (count,), generator=generator)
    for name, values in fields.items():
        objects.set(name, torch.tensor(values))
    return objects


def make_case(counts=(3, 2), num_queries=NUM_QUERIES, seed=0, **fields):
    """Leaf tensors as outputs, whose boxes are near the objects of their image, and targets."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(counts), num_queries)
    scores = torch.randn(*shape, NUM_CLASSES, generator=generator, dtype=torch.float64)
    boxes = 0.3 + 0.2 * torch.rand(*shape, 4, generator=generator, dtype=torch.float64)
    instances = [make_objects(n, i, **fields) for i, n in enumerate(counts)]
    width_height = torch.tensor([SIZE[1], SIZE[0]] * 2)
    for i, objects in enumerate(instances):
        for q in range(num_queries if len(objects) else 0):
            x1, y1, x2, y2 = objects.gt_boxes.tensor[q % len(objects)]
            center = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
            noise = 2.0 * torch.randn(4, generator=generator, dtype=torch.float64)
            boxes[i, q] = (center + noise) / width_height
    outputs = QueryOutputs(scores.requires_grad_(), boxes.requires_grad_())
    return outputs, QueryTargets.of(instances, train_on_difficult=False)


def pixel_corners(box):
    """A query's box as XYXY in pixels, with its graph."""
    x, y, w, h = box.unbind(-1)
    height, width = SIZE
    return torch.stack(
        [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height], -1
    )


def giou(a, b):
    """Of one box with another, XYXY, with its graph; and their IoU."""
    inter = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0).prod()
    hull = (torch.maximum(a[2:], b[2:]) - torch.minimum(a[:2], b[:2])).prod()
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inter
    return inter / union - (hull - union) / hull, inter / union


def cost(scores, box, objects, g, weights=WEIGHTS):
    """Of one query with one object (Carion et al. 2020, section 3.1, with focal loss)."""
    p = float(scores[int(objects.gt_classes[g])].sigmoid())
    of_class = 0.25 * (1 - p) ** 2 * -math.log(p) - 0.75 * p**2 * -math.log(1 - p)
    target = objects.gt_boxes.tensor[g]
    ratio = target / torch.tensor([SIZE[1], SIZE[0]] * 2)
    center = torch.cat([(ratio[:2] + ratio[2:]) / 2, ratio[2:] - ratio[:2]])
    distance = float((box - center).abs().sum())
    overlap = float(giou(pixel_corners(box), target)[0])
    return weights[0] * of_class + weights[1] * distance - weights[2] * overlap


def best_matching(scores, boxes, objects):
    """{query: object} of one image, by trying all."""
    num_queries, num_objects = len(scores), len(objects)
    costs = [
        [cost(scores[q], boxes[q], objects, g) for g in range(num_objects)]
        for q in range(num_queries)
    ]
    few = min(num_queries, num_objects)
    candidates = (
        dict(zip(queries, chosen, strict=True))
        for chosen in itertools.combinations(range(num_objects), few)
        for queries in itertools.permutations(range(num_queries), few)
    )
    return min(candidates, key=lambda pairs: sum(costs[q][g] for q, g in pairs.items()))


def positives(outputs, targets):
    """Slowly: [(image, query, object)] of all images, image by image, queries rising."""
    scores, boxes = outputs.scores.detach(), outputs.boxes.detach()
    return [
        (i, q, g)
        for i, objects in enumerate(targets.objects)
        for q, g in sorted(best_matching(scores[i], boxes[i], objects).items())
    ]
