# SPDX-License-Identifier: Apache-2.0
"""
REINFORCE on mAP after NMS (Pinto et al., "Tuning computer vision models with task rewards", ICML
2023, section 3): the score-function gradient of the very number that the other gradients are of.

Shape letters: R windows, P of K classes ranked, S samples, T overlaps.
"""

import torch
import torch.distributed as dist

from .detection_pool import DetectionPool
from .distributed import Group
from .rank_minibatch import Candidates
from .rankings import Ranking, average_precisions
from .settings import MAPLossSettings


def reinforce_gradient(
    candidates: Candidates, pool: DetectionPool, settings: MAPLossSettings, num_classes: int
) -> torch.Tensor:
    """
    (P R,) float64, what raises the expected mAP, or pooled AP, of noisy scores in each window as
    each class, class by class.

    Detections are sampled by Gaussian noise on all scores, s_k = s + noise z_k, z_k ~ N(0, 1). The
    reward R_k of sample k is AP after NMS, the mean over overlaps; the baseline b_k is the mean of
    the other samples' rewards, which do not depend on z_k:

        g = 1/S sum_k (R_k - b_k) (s_k - s) / noise^2,    the mean of g being dE[AP(s + noise z)]/ds

    The scores of a class have its share 1 / K of mAP for their reward, not mAP: the scores of other
    classes do not change it, so that the mean is the same and the variance smaller. With
    `settings.pooled` p, the reward is 1 - p times that and p times AP of all classes in one list,
    which all scores change.

    Of other processes and of a memory come detections too: processes draw noise each for their own
    windows, what is remembered stays as it is.

    Args:
        candidates: the windows of this process.
        pool: who else takes part. Samples are not remembered.
        settings: of the loss.
        num_classes: K.
    """
    share_of_class = (1 - settings.pooled) / max(num_classes, 1)
    cells, noises, rewards = candidates.cells, [], []
    generator = _generator(cells.scores.device, pool.group)
    for _ in range(settings.num_samples):
        noises.append(_draw(cells.scores, generator))
        noisy = cells._replace(scores=cells.scores + settings.noise * noises[-1])
        is_kept = noisy.suppress(candidates.overlaps, settings.nms_thresh)
        scores = noisy.scores.t().flatten()
        sample = candidates.detections._replace(scores=scores, is_kept=is_kept)
        with torch.no_grad():  # or the pool would remember it
            pooled = pool.gather(sample, is_kept.nonzero().squeeze(1))
        ranking = Ranking.of(pooled, pool.num_gt, pool.num_objects, len(settings.iou_threshs))
        ap = pool.sum_ap(average_precisions(ranking, settings.ap_type)).mean(0)
        # Classes that have objects in no minibatch yet have no AP.
        reward = share_of_class * ap.nan_to_num(nan=0.0)
        if settings.pooled > 0:
            joint = ranking.in_one_list(pool.num_objects)
            pooled_ap = average_precisions(joint, settings.ap_type).mean(0)
            reward = reward + settings.pooled * pooled_ap.nan_to_num(nan=0.0)
        rewards.append(reward)
    reward = torch.stack(rewards)
    advantage = (reward - reward.mean(0)) * settings.num_samples / (settings.num_samples - 1)
    gradient = torch.zeros_like(cells.scores, dtype=torch.float64)
    for noise, own in zip(noises, advantage, strict=True):
        gradient += own * noise
    return (gradient / (settings.num_samples * settings.noise)).t().flatten()


def _generator(device: torch.device, group: Group | None) -> torch.Generator:
    """Seeded by torch's own generator, otherwise in each process even if those are seeded alike."""
    seed = int(torch.randint(1 << 62, (), device="cpu"))
    rank = dist.get_rank(group) if group is not None else 0
    return torch.Generator(device).manual_seed(seed + rank)


def _draw(scores: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(R, P) of N(0, 1)."""
    return torch.randn(scores.shape, generator=generator, dtype=scores.dtype, device=scores.device)
