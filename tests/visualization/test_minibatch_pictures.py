# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from maploss.layers import average_precision, precision_recall
from maploss.visualization import gradient_picture, minibatch_pr_picture
from matplotlib import pyplot

UP, DOWN, NONE = np.array([31, 155, 255]), np.array([255, 85, 0]), np.array([154, 154, 154])
PULLED = np.array([255, 217, 47])
GREY = np.full((600, 500, 3), 60, np.uint8)


def is_drawn(picture, x, y, color, tolerance=40) -> bool:
    """Whether the colour is within a pixel of the place."""
    near = picture[y - 1 : y + 2, x - 1 : x + 2].astype(int)
    return bool((np.abs(near - color).max(axis=2) < tolerance).any())


def window(x: float, y: float, side: float = 60) -> list[float]:
    return [x, y, x + side, y + side]


def test_what_is_pushed_up_and_what_down_have_edges_of_different_colors():
    boxes = torch.tensor([window(50, 100), window(200, 100), window(350, 100)])
    picture = gradient_picture(GREY, boxes, torch.tensor([-0.2, 0.2, 0.0]))
    assert picture.dtype == np.uint8
    assert picture.shape == (644, 500, 3)  # the legend is below
    middle = 130
    assert is_drawn(picture, 50, middle, UP)
    assert not is_drawn(picture, 50, middle, DOWN)
    assert is_drawn(picture, 200, middle, DOWN)
    assert is_drawn(picture, 350, middle, 0.6 * NONE + 0.4 * 60)
    assert (picture[middle, 80] == 60).all()


def test_the_strongest_window_is_widest_and_on_top():
    boxes = torch.tensor([window(100, 100, 100), window(300, 100, 100), window(100, 100, 100)])
    picture = gradient_picture(GREY, boxes, torch.tensor([1.0, -0.1, -0.5])).astype(int)
    assert is_drawn(picture, 100, 150, DOWN, 10)
    touched = (np.abs(picture[:600] - 60).max(axis=2) > 20)[150]
    assert touched[90:110].sum() > touched[290:310].sum() > 0


def test_many_windows_without_a_gradient_are_left_out():
    boxes = torch.tensor([window(100, 100, 100)])
    for count, is_seen in ((40, True), (41, False)):
        picture = gradient_picture(GREY, boxes.repeat(count, 1), torch.zeros(count))
        assert bool((picture[:600] != 60).any()) == is_seen


def test_objects_are_dashed_in_white_and_black_on_top():
    box = torch.tensor([window(100, 100, 200)])
    picture = gradient_picture(GREY, box, torch.tensor([-1.0]), objects=box)
    edge = picture[100:300, 99:102].reshape(-1, 3).astype(int)
    for color in (UP, np.array([255, 255, 255]), np.array([0, 0, 0])):
        assert (np.abs(edge - color).max(axis=1) < 60).any()


def test_a_second_panel_shows_what_pulls_boxes_the_stronger_the_wider():
    boxes = torch.tensor([window(50, 100), window(200, 100), window(350, 100)])
    gradient, by_overlap = torch.tensor([-0.2, 0.2, 0.1]), torch.tensor([0.01, 0.1, 0.0])
    picture = gradient_picture(GREY, boxes, gradient, boxes[2:], by_overlap)
    by_scores, by_boxes = picture[:, :500], picture[:, 512:]
    assert np.array_equal(by_scores, gradient_picture(GREY, boxes, gradient, boxes[2:]))
    assert by_boxes.shape == by_scores.shape
    assert is_drawn(by_boxes, 200, 130, PULLED)
    assert not is_drawn(by_scores, 200, 130, PULLED)
    touched = (np.abs(by_boxes[:600].astype(int) - 60).max(axis=2) > 20)[130]
    assert touched[190:210].sum() > touched[40:60].sum() > 0
    # One that is not pulled is not yellow; its object is dashed here too.
    edge = by_boxes[100:160, 349:352].reshape(-1, 3).astype(int)
    assert (np.abs(edge - 255).max(axis=1) < 60).any()
    assert not (np.abs(edge - PULLED).max(axis=1) < 40).any()


def test_small_images_are_enlarged_and_channels_may_come_first():
    image = np.zeros((40, 30, 3), np.uint8)
    image[10:20, 5:15] = (200, 100, 50)
    boxes, gradient = torch.zeros(0, 4), torch.zeros(0)
    picture = gradient_picture(image, boxes, gradient)
    assert picture.shape == (480 + 44, 480, 3)
    left = (480 - 360) // 2
    assert (picture[12 * 12 : 18 * 12, left + 7 * 12 : left + 13 * 12] == (200, 100, 50)).all()
    first = torch.from_numpy(image).permute(2, 0, 1)
    assert np.array_equal(gradient_picture(first, boxes, gradient), picture)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"image": np.zeros((5, 5), np.uint8)}, ValueError, r"image: .*\(3, H, W\).*got \(5, 5\)"),
        ({"image": np.zeros((5, 5, 3))}, ValueError, "image: expected dtype uint8, got float64"),
        ({"boxes": torch.zeros(2, 3)}, ValueError, r"boxes: expected shape .*got \(2, 3\)"),
        ({"gradient": torch.zeros(3)}, ValueError, r"gradient: .*\(2,\), got \(3,\)"),
        ({"gradient": torch.tensor([0, float("nan")])}, FloatingPointError, "gradient"),
        ({"by_overlap": torch.zeros(3)}, ValueError, r"by_overlap: .*\(2,\), got \(3,\)"),
        ({"by_overlap": torch.tensor([0, -1.0])}, ValueError, "by_overlap: expected 0 .* got -1"),
        ({"by_overlap": torch.tensor([0, float("inf")])}, FloatingPointError, "by_overlap"),
        ({"objects": torch.zeros(4)}, ValueError, r"objects: expected shape .*got \(4,\)"),
    ],
)
def test_bad_input_is_named(change, error, says):
    good = {"image": GREY, "boxes": torch.zeros(2, 4), "gradient": torch.zeros(2)}
    with pytest.raises(error, match=says):
        gradient_picture(**{**good, **change})


def curve(seed: int) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(20, generator=generator)
    matched = torch.randint(-1, 4, (20,), generator=generator)
    return *precision_recall(scores, matched, 4), float(average_precision(scores, matched, 4))


def test_each_class_present_has_a_curve_of_its_color():
    curves = {name: curve(i) for i, name in enumerate("abc")}
    picture = minibatch_pr_picture(curves, 0.3)
    assert picture.dtype == np.uint8
    assert picture.shape == (420, 700, 3)
    seen = {tuple(color) for color in picture.reshape(-1, 3).tolist()}
    first_of_tab10 = {(31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40)}
    assert len(seen & first_of_tab10) == 3


def test_no_class_no_detection_and_many_classes_are_drawn():
    none = (torch.zeros(0), torch.zeros(0), 0.0)
    for curves in ({}, {"a": none}, {f"a class of number {i}": curve(i) for i in range(40)}):
        picture = minibatch_pr_picture(curves, 0.0)
        assert picture.shape == (420, 700, 3)
        assert picture.std() > 1


def test_no_figure_stays_open():
    before = pyplot.get_fignums()
    gradient_picture(GREY, torch.zeros(0, 4), torch.zeros(0))
    minibatch_pr_picture({}, 0.0)
    assert pyplot.get_fignums() == before
