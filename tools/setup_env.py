# SPDX-License-Identifier: Apache-2.0
"""Make .venv with torch, Detectron2 and this project; do nothing when nothing changed.

`make setup` runs this with the interpreter that .venv is to be made from. The environment variable
DETECTRON2 may force where Detectron2 comes from: `official` (GitHub) or `index` (third_party/).
"""

from __future__ import annotations  # older Pythons get as far as the message in main

import hashlib
import os
import subprocess
import sys
from pathlib import Path

DETECTRON2_URL = "https://github.com/facebookresearch/detectron2/archive/refs/heads/main.zip"
GITHUB_TIMEOUT_S = 5

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
REQUIREMENTS = ROOT / "requirements.txt"
CONSTRAINTS = ROOT / "constraints.txt"
STAMP = VENV / "setup.sha256"
REPACKAGED = ROOT / "third_party" / "detectron2"

# Prints the version of a Detectron2 that is neither broken nor the repackaged one, whose C++
# extension is a Python file.
FIND_OFFICIAL = """
import importlib.util, torch, torchvision, detectron2.layers, detectron2.model_zoo
extension = importlib.util.find_spec("detectron2._C")
if extension is None or not extension.origin.endswith(".py"):
    print(detectron2.__version__)
"""
FIND_OPENCV = """
import cv2
print(cv2.__version__ + (" without ximgproc" if not hasattr(cv2, "ximgproc") else ""))
"""
ASK_GITHUB = "import sys, urllib.request as r; r.urlopen(r.Request(sys.argv[1], method='HEAD'))"


def main() -> None:
    """Bring .venv up to date with the files that describe it."""
    if sys.version_info < (3, 10):  # noqa: UP036 (older ones get here too)
        sys.exit(f"setup: expected Python >= 3.10, got {sys.version.split()[0]} (set PYTHON=...)")
    forced = os.environ.get("DETECTRON2", "")
    if forced not in ("", "official", "index"):
        sys.exit(f"setup: DETECTRON2: expected official or index, got {forced!r}")
    wanted = fingerprint(forced)
    if STAMP.is_file() and STAMP.read_text() == wanted:
        return
    STAMP.unlink(missing_ok=True)

    # A container or GPU machine may have torch and Detectron2 already; then .venv uses those. Made
    # from another virtual environment it could not see that one's packages.
    present = ""
    if not forced and sys.prefix == sys.base_prefix:
        present = official_version(sys.executable)
    make_venv(system_site_packages=bool(present))
    if present:
        say(f"Detectron2 {present}: the official one that is already installed")
        pip_install("--editable", f"{ROOT}[{extras()}]")
    else:
        say("installing torch and torchvision (several GB the first time)")
        pip_install("--requirement", str(REQUIREMENTS))
        install_detectron2(forced)
        pip_install("--editable", f"{ROOT}[{extras()}]", "--constraint", str(CONSTRAINTS))
    STAMP.write_text(wanted)
    say("done")


def fingerprint(forced: str) -> str:
    """Digest of all that decides what .venv holds."""
    paths = [ROOT / "pyproject.toml", REQUIREMENTS, CONSTRAINTS, Path(__file__)]
    paths += [p for p in sorted(REPACKAGED.iterdir()) if p.suffix in (".py", ".toml")]
    digest = hashlib.sha256(f"{ROOT} {sys.version_info[:2]} {forced}".encode())
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def make_venv(system_site_packages: bool) -> None:
    """Create .venv unless it is there and of the Python version that runs this."""
    if Path(sys.prefix).resolve() == VENV.resolve():
        return
    command = [sys.executable, "-m", "venv", str(VENV)]
    version = "{}.{}".format(*sys.version_info[:2])
    if not (VENV / "lib" / f"python{version}").is_dir():
        command.append("--clear")
    if system_site_packages:
        command.append("--system-site-packages")
    say(f"preparing .venv with Python {version}")
    run(command)


def install_detectron2(forced: str) -> None:
    """Take the official Detectron2 if it is there or GitHub answers, else the repackaged one."""
    version = "" if forced else official_version(VENV_PYTHON)
    if version:
        say(f"Detectron2 {version}: the official one that is already installed")
        return
    problem = "DETECTRON2=index" if forced == "index" else install_official()
    if not problem:
        say(f"Detectron2 {official_version(VENV_PYTHON)}: the official one, from GitHub")
        return
    if forced == "official":
        sys.exit(f"setup: Detectron2: {problem}")
    say(f"Detectron2 0.5: repackaged from the package index ({problem})")
    pip_install(str(REPACKAGED), "--constraint", str(CONSTRAINTS))


def install_official() -> str:
    """Install the official Detectron2; return "" or, where that is not possible, the reason."""
    ask = [sys.executable, "-c", ASK_GITHUB, DETECTRON2_URL]
    try:
        # A process of its own, since urllib's own time-out does not cover looking up the name.
        answer = subprocess.run(ask, capture_output=True, timeout=GITHUB_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"GitHub did not answer within {GITHUB_TIMEOUT_S} s"
    if answer.returncode != 0:
        return "GitHub cannot be reached"
    say("building the official Detectron2 (some minutes)")
    try:
        # Its build imports the torch that is installed.
        pip_install("--no-build-isolation", "--constraint", str(CONSTRAINTS), DETECTRON2_URL)
    except subprocess.CalledProcessError:
        return "the official one could not be built, see above"
    return "" if official_version(VENV_PYTHON) else "the official one cannot be imported"


def extras() -> str:
    """Those of the project that .venv needs: OpenCV where it has none, whose packages overwrite
    each other.
    """
    version = opencv_version(VENV_PYTHON)
    if not version:
        return "dev,opencv"
    if version.endswith(" without ximgproc"):
        say(f"OpenCV {version}: kept; selective search needs opencv-contrib-python-headless")
    return "dev"


def opencv_version(python: str | Path) -> str:
    """Version of the OpenCV that `python` imports, "" if there is none."""
    command = [str(python), "-c", FIND_OPENCV]
    result = subprocess.run(command, capture_output=True, text=True, cwd=VENV.anchor, check=False)
    return result.stdout.strip() if result.returncode == 0 else ""


def official_version(python: str | Path) -> str:
    """Version of the official Detectron2 that `python` imports, "" if there is none."""
    command = [str(python), "-c", FIND_OFFICIAL]
    result = subprocess.run(command, capture_output=True, text=True, cwd=VENV.anchor, check=False)
    return result.stdout.strip() if result.returncode == 0 else ""


def pip_install(*arguments: str) -> None:
    """Run pip in .venv."""
    pip = [str(VENV_PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*pip, *arguments])


def run(command: list[str]) -> None:
    """Run `command` without input; raise CalledProcessError if it fails."""
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def say(message: str) -> None:
    """Print one line, at once."""
    print(f"setup: {message}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"setup: failed: {' '.join(map(str, error.cmd))}")
