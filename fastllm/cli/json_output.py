"""One JSON object on stdout, valid whatever the encoding of the stream."""

from __future__ import annotations

import json
import math
import sys
from typing import Any


def print_json(value: Any) -> None:
    """Print `value` as one line of JSON.

    Characters that stdout cannot hold become escapes, and numbers that JSON does not know (NaN,
    infinity) null.
    """
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        text = json.dumps(_finite(value), allow_nan=False)
    print(text)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
