"""Breaker configurations for the tests: a quiet one that nothing trips, to be sharpened by a keyword."""

from .host import endpoints


def breaker(**changes):
    """A breaker that trips for no reason unless `changes` give it one, and stays open for a minute."""
    policy = {
        "mode": "enforce",
        "window": "10s",
        "minimumRequests": 100_000,
        "failureRate": 1.0,
        "consecutiveFailures": 100_000,
        "slowCallDuration": "10s",
        "slowCallRate": 1.0,
        "openFor": "60s",
        "maxOpenFor": "60s",
        "probe": {"ratio": 0.01, "interval": "60s", "successes": 3, "ramp": "1s"},
    }
    probe = {**policy["probe"], **changes.pop("probe", {})}
    return {**policy, **changes, "probe": probe}


def service(name="web", port=9001, exclude=(), **changes):
    """A service with such a breaker, reachable by every route."""
    return {
        "name": name,
        "endpoints": [endpoint for endpoint in endpoints(port) if endpoint not in exclude],
        "breaker": breaker(**changes),
    }


def config(*services, **settings):
    """A configuration in which every breaker may open, with a lease that a busy machine keeps."""
    return {"breakers": {"maxOpenShare": 1.0, "lease": "10s"}, "services": list(services), **settings}
