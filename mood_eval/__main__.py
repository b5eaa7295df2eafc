"""``python -m mood_eval``: the same as ``mood-eval``."""

from mood_eval.cli import main

if __name__ == "__main__":
    main()
