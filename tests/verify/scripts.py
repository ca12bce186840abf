"""Has shellcheck judge the commands in GitHub workflows, which it cannot find there by itself. Arguments: the workflows."""

import subprocess
import sys

import yaml

for path in sys.argv[1:]:
    with open(path) as file:
        jobs = yaml.safe_load(file)["jobs"]
    for job in jobs.values():
        for step in job["steps"]:
            if "run" in step:
                script = "#!/bin/bash\nset -eo pipefail\n" + step["run"]
                if subprocess.run(["shellcheck", "-"], input=script, text=True).returncode != 0:
                    sys.exit(f"{path}: {step.get('name')}")
