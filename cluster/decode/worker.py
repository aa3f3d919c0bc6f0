"""What Prism adds to each of vLLM's workers; loaded by name in their processes."""

from __future__ import annotations

from typing import Any


class WorkerExtension:
    """Mixed into vLLM's worker class (``--worker-extension-cls``); its methods are called through ``collective_rpc``."""

    model_runner: Any

    def parameter_names(self) -> list[str]:
        """The name of every weight that this worker holds."""
        return [name for name, _ in self.model_runner.get_model().named_parameters()]
