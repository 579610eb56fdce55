"""torchrun, but an interrupt or a failed process is what that process says, not torch's traceback.

python -m pipelines.engines.torchrun ARGUMENTS OF torchrun
"""

from __future__ import annotations

import logging
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

from pipelines.engines.local import INTERRUPTED

if __name__ == "__main__":
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        main()
    except SignalException:  # it has ended its processes
        sys.exit(INTERRUPTED)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        print(f"process {failure.local_rank} failed: {failure.message}", file=sys.stderr)
        sys.exit(max(1, failure.exitcode))
