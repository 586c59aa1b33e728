"""Where services look for their base class. It lives in `aihost_service`, so that a `core/` of their own can take this one's place."""

from aihost_service import BaseService

__all__ = ["BaseService"]
