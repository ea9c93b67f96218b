"""Errors of the state API."""


class DataSourceUnavailable(Exception):
    """A part of the cluster that was asked did not answer."""


class RayStateApiException(Exception):
    """A call of the state API failed, or its result would not be complete."""


class ServerUnavailable(RayStateApiException):
    """The cluster cannot be reached."""
