#!/usr/bin/env python3
"""mood-infer, mood-train or mood-eval: the one whose name this file was given."""

import sys
from importlib import import_module
from pathlib import Path

if __name__ == "__main__":
    package = Path(sys.argv[0]).name.replace("-", "_")
    import_module(f"{package}.cli").main()
