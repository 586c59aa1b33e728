"""A base class of this service's own, which comes before the one that is installed."""

from aihost_service import BaseService as Installed


class BaseService(Installed):
    origin = "beside the service"
