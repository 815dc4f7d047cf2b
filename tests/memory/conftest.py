"""Both ways to map memory, as one fixture."""

from __future__ import annotations

import pytest

from fastllm.memory.pages import PAGES, Pages, PurePages


@pytest.fixture(params=["native", "pure"])
def implementation(request: pytest.FixtureRequest) -> Pages:
    if request.param == "pure":
        return PurePages()
    if isinstance(PAGES, PurePages):
        pytest.skip("the extension was not built")
    return PAGES
