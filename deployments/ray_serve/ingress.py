"""The base class of an ingress deployment whose HTTP application needs the replica itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.applications import Starlette


class AsgiIngress(ABC):
    """Serve calls ``__serve_build_asgi_app__`` once in each replica, after ``__init__``, and runs the application that
    it gives."""

    @abstractmethod
    def build_api(self) -> Starlette:
        """The HTTP application of this replica."""

    def __serve_build_asgi_app__(self) -> Starlette:
        return self.build_api()
