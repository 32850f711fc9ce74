"""What holds for every test: Ctrl-C works in the processes that tests start, and no proof of another run is used.

Within a run a template is proved once, by whichever process comes to it first.

A shell that runs the tests in the background has them ignore SIGINT, and what they start inherits that.

Generated input is the same in every run, so that a run that fails can be repeated, and has no deadline;
`--hypothesis-profile exploring` (`make test-templates`) tries new input.
"""

from __future__ import annotations

import os
import signal
import tempfile

from hypothesis import HealthCheck, settings

_TIMELESS = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}
settings.register_profile("repeatable", derandomize=True, **_TIMELESS)
settings.register_profile("exploring", **_TIMELESS)
settings.load_profile("repeatable")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" not in os.environ:
    _PROOFS = tempfile.TemporaryDirectory(prefix="tokentrue-proofs-")
    os.environ["TOKENTRUE_CACHE_DIR"] = _PROOFS.name
