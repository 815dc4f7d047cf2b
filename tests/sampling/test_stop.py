from hypothesis import given
from hypothesis import strategies as st

from fastllm.sampling.stop import StopMatcher

TEXT = st.text("abc", max_size=30)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)


def naive(text, stop):
    """Character by character: cut at the first place where a stop string is complete."""
    for end in range(1, len(text) + 1):
        starts = [end - len(s) for s in stop if text[:end].endswith(s)]
        if starts:
            return text[: min(starts)], True
    return text, False


@given(TEXT, STOPS, st.data())
def test_any_cutting_gives_the_text_before_the_first_stop_string(text, stop, data):
    matcher, shown, rest = StopMatcher(stop), "", text
    while rest:
        n = data.draw(st.integers(0, len(rest)))
        shown += matcher.push(rest[:n])
        rest = rest[n:]
        # What is shown is never taken back, and never holds part of a stop string to come.
        assert naive(text, stop)[0].startswith(shown)
        if n == 0:
            shown += matcher.push(rest)
            break
    shown += matcher.finish()
    assert (shown, matcher.stopped) == naive(text, stop)


def test_text_that_begins_no_stop_string_is_shown_at_once():
    matcher = StopMatcher(["\n\n", "END"])
    assert matcher.push("a\n") == "a"
    assert matcher.push("b E") == "\nb "
    assert matcher.push("N") == ""
    assert matcher.push("Dx") == ""
    assert matcher.stopped
    assert matcher.push("more") == ""
    assert matcher.finish() == ""
