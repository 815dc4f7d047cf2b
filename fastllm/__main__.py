"""``python -m fastllm``."""

from fastllm.cli.main import main

if __name__ == "__main__":
    main()
