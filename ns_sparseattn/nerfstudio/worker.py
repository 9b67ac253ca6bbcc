# SPDX-License-Identifier: Apache-2.0
"""``python -m ns_sparseattn.nerfstudio.worker JOB FAILURE``: the dataparser's pipeline, apart.

``JOB`` holds pickled options. If the pipeline fails for a reason that the user can mend,
``FAILURE`` is written with one sentence about it, and the exit code is 1.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from ..console import USER_ERRORS, show_process
from ..errors import BrokenPhotoError


def main(job: Path, failure: Path) -> None:
    """Run one job.

    Raises:
        SystemExit: If it fails.
    """
    # Written by the parent process a moment ago.
    options = pickle.loads(job.read_bytes())
    try:
        show_process(options, verbose=False, shows_next=False)
    except USER_ERRORS as error:
        hint = "\nAdd --skip-broken True to leave such files out."
        is_broken = isinstance(error, BrokenPhotoError)
        failure.write_text(f"{error}{hint if is_broken else ''}", encoding="utf-8")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
