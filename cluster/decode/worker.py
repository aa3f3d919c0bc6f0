"""The methods that Prism adds to vLLM's workers. vLLM loads this module by its name in their processes."""

from __future__ import annotations

from typing import Any


class WorkerExtension:
    """vLLM mixes this into its worker class (``--worker-extension-cls``). ``collective_rpc`` calls its methods."""

    model_runner: Any

    def parameter_names(self) -> list[str]:
        """The name of every weight that this worker holds."""
        return [name for name, _ in self.model_runner.get_model().named_parameters()]
