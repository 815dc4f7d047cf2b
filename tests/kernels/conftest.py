"""Roads, and the compiled code of each, shared by all tests of this folder."""

from __future__ import annotations

import pytest

from fastllm.kernels.road import Road
from tests.kernels.probe import Probe, probe
from tests.kernels.samples import POSSIBLE_ROADS


@pytest.fixture(params=POSSIBLE_ROADS, ids=lambda road: road.name, scope="session")
def road(request: pytest.FixtureRequest) -> Road:
    """Every road that this CPU can run."""
    return request.param


@pytest.fixture(scope="session")
def kernels(road: Road) -> Probe:
    """The functions that live inside the step, built for `road`."""
    return probe(road.name)
