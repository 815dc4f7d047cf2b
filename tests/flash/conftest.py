"""Both implementations of the reader, as one fixture."""

from __future__ import annotations

import pytest

from fastllm.flash import backend, pure

BACKENDS = {"pure": pure}
if backend.NAME == "native":
    BACKENDS["native"] = backend.BACKEND


@pytest.fixture(params=["native", "pure"])
def implementation(request: pytest.FixtureRequest) -> backend.Backend:
    if request.param not in BACKENDS:
        pytest.skip("the extension was not built")
    return BACKENDS[request.param]
