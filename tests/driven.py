"""What tests of the driver's thread share: no sleeps, the thread itself says how far it is."""

from queue import SimpleQueue


def at_rest(llm):
    """Return after the thread has taken every message that was there and run a step."""
    loop = llm._driver._loop
    for _ in range(2):
        reply = SimpleQueue()
        loop.send(lambda reply=reply: reply.put(None))
        reply.get(timeout=60)
