"""Ray on this machine, small and in a process of its own, for the tests."""

import os
import subprocess
import sys
from pathlib import Path

_BEGIN = (
    "import ray; ray.init(num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, "
    "_node_ip_address='127.0.0.1', log_to_driver=False)\n"
)


def under_ray(code: str, folder: Path) -> str:
    """What ``code`` prints once Ray runs, with two cores and 80 MB for its objects."""
    own = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_raylet_start_wait_time_s": "300",  # a loaded machine starts it slowly
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", f"{_BEGIN}{code}\nray.shutdown()"]
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | own,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
