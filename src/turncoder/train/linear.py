"""Probes: linear heads on the states of a frozen backbone, every seed and learning rate in one matrix product.

States are standardised for training (each dimension by its own mean and deviation over the training words), so that one
set of learning rates serves every backbone; what comes back is folded into plain linear heads on the states themselves.

In the names of tensors: M words, K layers that are read together, D width, C classes, S seeds, R learning rates,
B words of a step.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional
from transformers import get_scheduler

__all__ = ["Heads", "Recipe", "Words", "apply_head", "fit_heads"]

CHUNK = 4096  # words that are read at a time where all are
STEPS = 1 << 16  # the shares that dropout can have


@dataclass(frozen=True)
class Words:
    """States of words and their labels.

    Attributes
    ----------
    states_KMD
        One tensor [M, D] a layer, mapped from disk.
    labels_M
        int64: classes; UNSEEN and IGNORED (`turncoder.data.labels`), both below 0, are not trained on.
    """

    states_KMD: Sequence[torch.Tensor]
    labels_M: torch.Tensor

    def read(self, rows: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Read the states of some words, float32 [rows, K, D]."""
        return _put_together([states_MD.index_select(0, rows) for states_MD in self.states_KMD], device)

    def chunks(self, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Give all words, some thousand at a time: states [rows, K, D] and labels [rows]."""
        for start in range(0, len(self.labels_M), CHUNK):
            piece = [states_MD[start : start + CHUNK] for states_MD in self.states_KMD]
            labels = self.labels_M[start : start + CHUNK].to(device)
            yield _put_together(piece, device), labels


def _put_together(states_KMD: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Put layers side by side, float32 [M, K, D]; one layer alone is not copied."""
    states_MKD = states_KMD[0][:, None] if len(states_KMD) == 1 else torch.stack([*states_KMD], dim=1)
    return states_MKD.to(device, torch.float32)


@dataclass(frozen=True)
class Recipe:
    """How heads are trained; every field as `turncoder.config.words.WordsConfig` has it."""

    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    steps: int
    batch_words: int
    dropout: float
    weight_decay: float
    schedule: str
    warmup: float
    patience: int | None


@dataclass(frozen=True)
class Heads:
    """Trained heads.

    Attributes
    ----------
    weight_SRCE
        float32, on the K layers side by side: E is K x D.
    bias_SRC
        float32.
    score_SR
        On the validation words, at the best epoch of each.
    epoch_SR
        That epoch.
    mix_SRK
        How much of each layer is in the average, where several are.
    """

    weight_SRCE: torch.Tensor
    bias_SRC: torch.Tensor
    score_SR: torch.Tensor
    epoch_SR: torch.Tensor
    mix_SRK: torch.Tensor

    @torch.no_grad()
    def guess(self, words: Words, device: torch.device) -> Iterator[torch.Tensor]:
        """Give the class [S, R, rows] that each head finds for each word, some thousand words at a time."""
        weight_NE = self.weight_SRCE.flatten(0, 2).to(device)
        bias_SRC = self.bias_SRC.to(device)
        for states_MKD, _ in words.chunks(device):
            logits_MN = functional.linear(states_MKD.flatten(1), weight_NE, bias_SRC.flatten())
            yield logits_MN.unflatten(1, bias_SRC.shape).argmax(dim=-1).permute(1, 2, 0)


def apply_head(states_MKD: torch.Tensor, weight_CE: torch.Tensor, bias_C: torch.Tensor) -> torch.Tensor:
    """Give the logits [M, C] of a linear head on K layers side by side, in float32."""
    return functional.linear(states_MKD.float().flatten(1), weight_CE, bias_C)


def fit_heads(
    train: Words,
    held_out: Words,
    classes: int,
    recipe: Recipe,
    *,
    device: torch.device,
    judge: Callable[[np.ndarray], np.ndarray],
    report: Callable[[int, int, float], None] = lambda epoch, epochs, score: None,
) -> Heads:
    """Train heads of every seed and learning rate at once, and keep each at the epoch that was best held out.

    A seed decides the first weights, the order of the words and the dropout; learning rates of a seed share them.

    Parameters
    ----------
    train, held_out
        To learn from, and to choose the epoch on.
    classes
        How many there are, C.
    recipe
        See `Recipe`.
    device
        Where the matrix products are done.
    judge
        Scores what heads find for the held-out words, classes [N, M], as [N].
    report
        Told the epoch, how many there are, and the best score so far.

    Returns
    -------
    Heads
        On the states as they are.
    """
    rows_N = (train.labels_M >= 0).nonzero().squeeze(1)
    mean_KD, scale_KD = _measure(train, device)
    seeds, rates = len(recipe.seeds), len(recipe.learning_rates)
    draws = [torch.Generator().manual_seed(seed) for seed in recipe.seeds]
    weights, biases, mixes = _draw_heads(draws, rates, classes, mean_KD)
    noises = [np.random.SFC64(seed) for seed in recipe.seeds]
    dropped = min(round(recipe.dropout * STEPS), STEPS - 1)
    factor_KD = 1 / (scale_KD * (1 - dropped / STEPS))
    optimizer = torch.optim.AdamW(
        [
            {"params": [part for part in parts if part.requires_grad], "lr": rate}
            for *parts, rate in zip(weights, biases, mixes, recipe.learning_rates, strict=True)
        ],
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    per_epoch, steps = -(-len(rows_N) // recipe.batch_words), recipe.steps
    warmup = int(recipe.warmup if recipe.warmup >= 1 else recipe.warmup * steps)
    scheduler = get_scheduler(recipe.schedule, optimizer, warmup, steps)
    best = _Best(seeds, rates, recipe.patience)
    for step in range(steps):
        place = step % per_epoch
        if place == 0:
            order_SN = torch.stack([rows_N[torch.randperm(len(rows_N), generator=draw)] for draw in draws])
        rows_SB = order_SN[:, place * recipe.batch_words : (place + 1) * recipe.batch_words]
        states_SBKD = train.read(rows_SB.flatten(), device).unflatten(0, rows_SB.shape).sub_(mean_KD).mul_(factor_KD)
        if dropped:
            states_SBKD.mul_(_draw_mask(noises, states_SBKD.shape, dropped).to(device))
        labels_SBR = train.labels_M[rows_SB].to(device)[..., None].expand(-1, -1, rates)
        logits_SBRC = _run(states_SBKD, weights, biases, mixes)
        # The sum over heads is one loss: no head has a part in another's gradient
        loss = functional.cross_entropy(logits_SBRC.flatten(0, 2), labels_SBR.flatten(), reduction="sum")
        (loss / rows_SB.shape[1]).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if place == per_epoch - 1 or step == steps - 1:
            epoch = -(-(step + 1) // per_epoch)
            heads = _fold(weights, biases, mixes, mean_KD, scale_KD)
            guess_SRM = torch.cat(list(heads.guess(held_out, device)), dim=2).cpu().numpy()
            score_SR = torch.from_numpy(judge(guess_SRM.reshape(seeds * rates, -1))).float().view(seeds, rates)
            over = best.update(epoch, score_SR, heads)
            report(epoch, -(-steps // per_epoch), float(best.score_SR.max()))
            if over:
                break
    assert best.heads is not None
    return best.heads


def _draw_heads(
    draws: Sequence[torch.Generator], rates: int, classes: int, mean_KD: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Give the first weights [S, D, C], biases [S, 1, C] and mixes [S, K] of each learning rate."""
    (layers, width), device, seeds = mean_KD.shape, mean_KD.device, len(draws)
    bound = 1 / math.sqrt(width)
    first_SDC = torch.stack([torch.empty(width, classes).uniform_(-bound, bound, generator=draw) for draw in draws])
    weights = [first_SDC.clone().to(device).requires_grad_() for _ in range(rates)]
    biases = [torch.zeros(seeds, 1, classes, device=device, requires_grad=True) for _ in range(rates)]
    mixes = [torch.zeros(seeds, layers, device=device, requires_grad=layers > 1) for _ in range(rates)]
    return weights, biases, mixes


class _Best:
    """The best epoch of each head; one whose patience is over stays as it is, so that none depends on the others."""

    def __init__(self, seeds: int, rates: int, patience: int | None) -> None:
        self.patience = math.inf if patience is None else patience
        self.waited_SR = torch.zeros(seeds, rates)
        self.score_SR = torch.full((seeds, rates), -math.inf)
        self.heads: Heads | None = None

    def update(self, epoch: int, score_SR: torch.Tensor, heads: Heads) -> bool:
        """Keep what is better now; tell whether no head has patience left."""
        better_SR = (score_SR > self.score_SR) & (self.waited_SR < self.patience)
        self.waited_SR = torch.where(better_SR, 0, self.waited_SR + 1)
        self.score_SR = torch.where(better_SR, score_SR, self.score_SR)
        now = replace(heads, score_SR=score_SR, epoch_SR=torch.full_like(heads.epoch_SR, epoch))
        if self.heads is None:
            self.heads = now
        for name, kept in vars(self.heads).items():
            kept[better_SR] = getattr(now, name)[better_SR]
        return bool((self.waited_SR >= self.patience).all())


def _measure(words: Words, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Measure mean and deviation [K, D] of each dimension over the words that are trained on."""
    count, mean_KD, square_KD = 0, torch.zeros((), device=device), torch.zeros((), device=device)
    for states_MKD, labels_M in words.chunks(device):
        states_MKD = states_MKD[labels_M >= 0].double()
        count += len(states_MKD)
        mean_KD = mean_KD + states_MKD.sum(0)
        square_KD = square_KD + states_MKD.square().sum(0)
    mean_KD = mean_KD / count
    variance_KD = (square_KD / count - mean_KD.square()).clamp(min=0)
    scale_KD = variance_KD.sqrt()
    return mean_KD.float(), torch.where(scale_KD > 1e-6, scale_KD, torch.ones_like(scale_KD)).float()


def _draw_mask(noises: Sequence[np.random.SFC64], shape: torch.Size, dropped: int) -> torch.Tensor:
    """Draw 0 for what is dropped out, ``dropped`` of 65,536, and 1; 16 bits each, as random floats take longer."""
    count = math.prod(shape[1:])
    drawn_SN = np.stack([noise.random_raw(-(-count // 4)).view(np.uint16)[:count] for noise in noises])
    return torch.from_numpy((drawn_SN >= dropped).astype(np.float32)).view(shape)  # a product of floats is fastest


def _run(
    states_SBKD: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor],
    mixes: Sequence[torch.Tensor],
) -> torch.Tensor:
    """Give the logits [S, B, R, C]."""
    if states_SBKD.shape[2] == 1:
        weight_SDE = torch.cat(list(weights), dim=2)
        logits_SBE = torch.baddbmm(torch.cat(list(biases), dim=2), states_SBKD.squeeze(2), weight_SDE)
        return logits_SBE.unflatten(2, (len(weights), -1))
    found = []
    for weight_SDC, bias_S1C, mix_SK in zip(weights, biases, mixes, strict=True):
        states_SBD = torch.einsum("sk,sbkd->sbd", mix_SK.softmax(dim=1), states_SBKD)
        found.append(torch.baddbmm(bias_S1C, states_SBD, weight_SDC))
    return torch.stack(found, dim=2)


@torch.no_grad()
def _fold(
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor],
    mixes: Sequence[torch.Tensor],
    mean_KD: torch.Tensor,
    scale_KD: torch.Tensor,
) -> Heads:
    """Turn heads on standardised, averaged states into heads on the states as they are, side by side."""
    weight_SRDC = torch.stack(list(weights), dim=1)
    mix_SRK = torch.stack(list(mixes), dim=1).softmax(dim=2)
    weight_SRKDC = mix_SRK[..., None, None] * weight_SRDC[:, :, None] / scale_KD[..., None]
    bias_SRC = torch.stack([bias.squeeze(1) for bias in biases], dim=1)
    bias_SRC = bias_SRC - torch.einsum("kd,srkdc->src", mean_KD.double(), weight_SRKDC.double()).float()
    nothing_SR = torch.zeros(mix_SRK.shape[:2])
    return Heads(
        weight_SRKDC.flatten(2, 3).transpose(2, 3).contiguous().cpu(),
        bias_SRC.cpu(),
        nothing_SR.clone(),
        nothing_SR.clone(),
        mix_SRK.cpu(),
    )
