"""`python -m engine.packaging REQUEST`: the fresh process that loads an archive."""

import sys

from engine.packaging.fresh_process import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
