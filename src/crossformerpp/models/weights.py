"""Where `pretrained=True` finds weights, and how a feature extractor takes a classifier's."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

# Gives the file of a variant's weights. `checkpoints`, which knows where they are, stands above this room, so that the
# package sets it (`crossformerpp/__init__.py`).
find_file: Callable[[str], Path] | None = None

_SOURCES = ("url", "file", "state_dict", "hf_hub_id", "source")  # keys of timm's that name weights


def with_file(variant: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """timm's arguments of a pretrained model with the file of its weights, unless they name others."""
    overlay = dict(arguments.get("pretrained_cfg_overlay") or {})
    given = arguments.get("pretrained_cfg") or {}
    given = given if isinstance(given, Mapping) else vars(given)
    if find_file is None or any(overlay.get(key) or given.get(key) for key in _SOURCES):
        return dict(arguments)
    return {**arguments, "pretrained_cfg_overlay": {**overlay, "file": str(find_file(variant))}}


class Features(FeatureGetterNet):
    """timm's `features_only`, which also loads the file of a classifier, whose head and last norm it does not need."""

    def load_state_dict(
        self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load own weights, or those of a classifier or backbone, with all that is here and nothing unknown.

        Raises:
            RuntimeError: Keys or shapes differ.
        """
        if not any(key.startswith("model.") for key in state_dict):
            stages = self.model.stages
            assert isinstance(stages, nn.Sequential)
            kept = {
                key: value for key, value in state_dict.items() if not self._is_left_out(key, len(stages))
            }
            state_dict = {f"model.{key}": value for key, value in kept.items()}
        return super().load_state_dict(state_dict, strict, assign)

    def _is_left_out(self, key: str, num_stages: int) -> bool:
        """Whether a classifier's key is of its head, or of a part that no requested map needs."""
        first, _, rest = key.partition(".")
        number = rest.partition(".")[0]
        if first == "stages":
            return number.isdecimal() and num_stages <= int(number) < 4
        return key in ("head.fc.weight", "head.fc.bias", "norm.weight", "norm.bias") and (
            f"model.{key}" not in dict(self.named_parameters())
        )
