"""What labels are learned as: functions of values and their unit, and their inverses."""

from typing import Any, NamedTuple

import numpy as np

from .configuration_rmat import RMatConfig

# A new transform is a line of `LABEL_TRANSFORMS`.
MOLAR_UNITS = {"M": 0, "mM": 3, "uM": 6, "µM": 6, "μM": 6, "nM": 9, "pM": 12}


class RMatLabelTransform(NamedTuple):
    """A monotone function of positive numbers, and back.

    Args:
        power: What `log10` is multiplied with, 1 or -1.
        is_molar: Whether the values are concentrations, which a unit of `MOLAR_UNITS` tells.
    """

    power: int = 1
    is_molar: bool = False

    def find_shift(self, unit: str) -> int:
        """Return what is added to the logarithm; the unit is that of the values."""
        return MOLAR_UNITS[unit] if self.is_molar else 0

    def apply(self, values: Any, unit: str) -> Any:
        """Return the numbers that are learned of NumPy values."""
        return self.power * np.log10(values) + self.find_shift(unit)

    def undo(self, values: Any, unit: str) -> Any:
        """Return values in their unit of learned numbers, a tensor or an array."""
        return 10.0 ** (self.power * (values - self.find_shift(unit)))


LABEL_TRANSFORMS = {
    "none": None,
    "log10": RMatLabelTransform(),
    "pIC50": RMatLabelTransform(power=-1, is_molar=True),
}


def undo_label_transforms(values: Any, config: RMatConfig) -> Any:
    """Return values `(..., num_labels)`, as the model learned them, in the units of the labels."""
    # CODEPATH: models finetuned with `--label-transform`.
    if config.label_transforms is None:
        return values
    units = config.label_units or [""] * len(config.label_transforms)
    shown = values.copy() if isinstance(values, np.ndarray) else values.clone()
    for idx, (name, unit) in enumerate(zip(config.label_transforms, units, strict=True)):
        if (transform := LABEL_TRANSFORMS[name]) is not None:
            shown[..., idx] = transform.undo(values[..., idx], unit)
    return shown


__all__ = ["LABEL_TRANSFORMS", "MOLAR_UNITS", "RMatLabelTransform", "undo_label_transforms"]
