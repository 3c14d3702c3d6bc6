"""Writes deploy/requirements-cuda.txt: deploy/requirements.txt with exact versions of CUDA's and cuDNN's wheels.

pip resolves them (x86_64 Linux) and installs nothing.
"""  # noqa: INP001

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
EXTRAS = "[cuda,cudnn]"


def main() -> None:
    serving = (HERE / "requirements.txt").read_text("utf-8").splitlines()
    # Other machines' onnxruntime is left out: CUDA's wheels are for x86_64 alone.
    serving = [line.partition(";")[0].strip() for line in serving if "!= 'x86_64'" not in line]
    runtime = next(line for line in serving if line.startswith("onnxruntime-gpu=="))
    wanted = runtime.replace("==", f"{EXTRAS}==")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    constraints = ["--constraint", str(HERE / "requirements.txt")]
    report = json.loads(subprocess.run([*pip, *constraints, wanted], check=True, stdout=subprocess.PIPE).stdout)  # noqa: S603
    packages = [package["metadata"] for package in report["install"]]
    wheels = [
        f"{package['name']}=={package['version']}" for package in packages if package["name"].startswith("nvidia-")
    ]
    target = HERE / "requirements-cuda.txt"
    target.write_text("\n".join(sorted({*serving, *wheels}, key=str.lower)) + "\n", "utf-8")
    sys.stdout.write(f"{target.name}: {len(wheels)} wheels of CUDA\n")


if __name__ == "__main__":
    main()
