"""The pipeline of ``prune``: from a user's options to passes.

Without data there is one pass, `prune`. With calibration data the accuracy can be kept: batch norms
are folded, units are scored by what the rest cannot make up for (``reconstruction``, compared over
all groups), and after every step of pruning the weights are refitted (`recover`). A share s of
targets like MACs is reached in n steps: after step k, s^(k/n) of the original is left.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ..ir.errors import UsageError
from ..passes.base import Pass
from ..passes.prune import Prune

STEPS = 2
"""Steps of pruning and recovery where calibration data are given."""
_SHARES = ("macs", "params", "size", "memory", "latency")

HINT = (
    "chosen by weight norms, with no recovery: with --calibration FILE (inputs without labels, see"
    " 'secateur calibrate') units are chosen by their effect and the rest is refitted"
)
"""What data would bring, for those who gave none."""
NOTHING = "nothing was removed: the model meets the targets as it is"


def prune_recipe(
    *,
    calibrated: bool,
    recover: bool | None = None,
    steps: int | None = None,
    distill: float | None = None,
    criterion: str | None = None,
    scope: str | None = None,
    **options: Any,
) -> list[Pass]:
    """The passes for the options of `secateur.prune`. None lets the data decide: with them the
    criterion is ``reconstruction``, the scope global, and recovery is on.

    Raises UsageError for options that contradict each other or are out of range.
    """
    refit = calibrated if recover is None else recover
    learned = refit and calibrated
    by_data = ("reconstruction", "global") if learned else ("l2", "local")
    options["criterion"] = by_data[0] if criterion is None else criterion
    options["scope"] = by_data[1] if scope is None else scope
    try:
        whole = Prune(**options)
    except ValueError as error:
        raise UsageError(str(error)) from None
    count = steps if steps is not None else (STEPS if learned and _in_shares(whole) else 1)
    if count < 1:
        raise UsageError(f"`steps` must be at least 1, not {count}")
    if count > 1 and not _in_shares(whole):
        raise UsageError(
            "`steps` needs targets that are shares: `ratio`, `macs`, `params`, `latency`, or `size`"
            " and `memory` up to 1"
        )
    found: list[Pass] = []
    if refit:
        from ..passes.fold_batchnorm import FoldBatchNorm
        from ..passes.recover import Recover

        found.append(FoldBatchNorm())
        fitting = Recover() if calibrated else Recover(data="noise")
        for number in range(1, count + 1):
            found += [_step(whole, number, count), fitting]
    else:
        found += [_step(whole, number, count) for number in range(1, count + 1)]
    if distill is not None:
        from ..passes.distill import Distill
        from ..runtime.torch_support import require_torch

        if not 0 < distill < math.inf:
            raise UsageError(f"`distill` must be more than 0 minutes, not {distill:g}")
        if not calibrated:
            raise UsageError("`distill` learns from data: give --calibration FILE")
        require_torch("`distill`")  # says what is missing before the work
        found.append(Distill(minutes=distill))
    return found


def _in_shares(whole: Prune) -> bool:
    """Whether all targets are shares, so that they can be reached in steps."""
    return all(t.is_share for t in whole.targets)


def _step(whole: Prune, number: int, count: int) -> Prune:
    """Step ``number`` of ``count`` equal ones towards the targets."""
    if count == 1:
        return whole
    shares = {t.kind: t.value for t in whole.targets}
    changed: dict[str, Any] = {
        name: shares[name] ** (number / count) for name in _SHARES if name in shares
    }
    if number > 1 and changed:
        changed["of"] = "original"
    if whole.ratio is not None:
        changed["ratio"] = 1 - (1 - whole.ratio) ** (1 / count)
    return replace(whole, **changed)
