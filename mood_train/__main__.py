"""``python -m mood_train``: the same as ``mood-train``."""

from mood_train.cli import main

if __name__ == "__main__":
    main()
