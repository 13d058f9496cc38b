"""An exponential moving average of the weights, kept in the state of their optimizer."""

from typing import Any

import torch

# In the state of a parameter: whichever of the two, average or weight, the model does not hold.
OTHER_VALUE = "moving_average_or_weight"
# In a group of parameters.
IS_AVERAGE_SHOWN = "is_moving_average_shown"
NUM_STEPS = "num_averaged_steps"


class WeightAverage:
    """The exponential moving average of what an optimizer trains.

    The model holds either the weights, to be trained, or their average, to be evaluated and saved;
    the optimizer's state holds the other. So whatever saves, restores, moves or shards the
    optimizer does the same with the average, and a resumed training has both.

    The decay is `(1 + step) / (10 + step)` until that exceeds `decay`, so that the weights of the
    first steps do not stay in the average.

    Args:
        optimizer (`torch.optim.Optimizer`): Of the weights. Those without a gradient in a step
            are left out of the average of that step.
        decay (`float`): Share of the average that a step keeps, from 0 to below 1.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, decay: float) -> None:
        self._optimizer = optimizer
        self._decay = decay
        optimizer.register_step_post_hook(self._update)

    def show_average(self) -> None:
        """Put the average into the model; nothing happens if it is there."""
        self._show(is_average=True)

    def show_weights(self) -> None:
        """Put the weights that are trained into the model; nothing happens if they are there."""
        self._show(is_average=False)

    @torch.no_grad()
    def _update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            step = group.get(NUM_STEPS, 0) + 1
            group[NUM_STEPS] = step
            decay = min(self._decay, (1 + step) / (10 + step))
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                # not before the optimizer's own step, which takes an empty state for a new one
                state = optimizer.state[weight]
                if OTHER_VALUE in state:
                    state[OTHER_VALUE].lerp_(weight, 1 - decay)
                else:
                    state[OTHER_VALUE] = weight.detach().clone()

    @torch.no_grad()
    def _show(self, *, is_average: bool) -> None:
        for group in self._optimizer.param_groups:
            if group.get(IS_AVERAGE_SHOWN, False) == is_average:
                continue
            group[IS_AVERAGE_SHOWN] = is_average
            for weight in group["params"]:
                # looking a weight up in `state` itself would give it an empty entry
                other = self._optimizer.state.get(weight, {}).get(OTHER_VALUE)
                if other is not None:
                    shown = weight.detach().clone()
                    weight.copy_(other)
                    other.copy_(shown)
