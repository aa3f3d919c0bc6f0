"""The settings of the demo model's image processor: the content of its ``preprocessor_config.json``."""

from __future__ import annotations

from typing import Any, Final

from cluster.checkpoint import ProcessorSettings

PROCESSOR: Final[dict[str, Any]] = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
    "patch_size": 14,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "min_pixels": 112 * 112,
    "max_pixels": 224 * 168,
    "size": {"shortest_edge": 112 * 112, "longest_edge": 224 * 168},
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
"""The processor's settings; with them a picture becomes 16 to 48 tokens."""

SETTINGS: Final = ProcessorSettings(**{key: PROCESSOR[key] for key in ProcessorSettings.model_fields})
