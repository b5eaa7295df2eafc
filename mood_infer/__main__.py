"""``python -m mood_infer``: the same as ``mood-infer``."""

from mood_infer.cli import main

if __name__ == "__main__":
    main()
