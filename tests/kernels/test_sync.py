"""The barrier: nobody passes before all have come, spinning or asleep."""

import threading

import numpy as np
import pytest

from tests.kernels.probe import BARRIERS
from tests.kernels.samples import aligned

# Byte offsets in the sync area, as ``fastllm.kernels.sync`` draws it (importing it imports numba).
SLEEPERS, BUDGET, SYNC_BYTES = 128, 192, 256


@pytest.mark.parametrize("polls", [0, 50, 20_000])
@pytest.mark.parametrize("num_threads", [1, 2, 3, 5])
def test_nobody_passes_early(kernels, num_threads, polls):
    """Every thread writes its word, meets the others, and must then see all words."""
    area, words = aligned(SYNC_BYTES), aligned(64 * num_threads)
    wrong = [-1] * num_threads

    def work(tid):
        wrong[tid] = kernels.call(
            BARRIERS, area.ctypes.data, num_threads, tid, 300, words.ctypes.data, polls
        )

    threads = [threading.Thread(target=work, args=(tid,)) for tid in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == [0] * num_threads
    state = area.view(np.int32)
    assert state[0] == 0  # nobody is counted
    assert state[SLEEPERS // 4] == 0
    assert 0 <= state[BUDGET // 4] <= polls
