"""``python -m chaos_reports RESULTS [RESULTS ...]``: render the matrix again."""

import sys

from chaos_reports.cli import main

if __name__ == "__main__":
    sys.exit(main())
