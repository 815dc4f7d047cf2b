"""``python -m fastllm``."""

from fastllm.cli.start import main

if __name__ == "__main__":
    main()
