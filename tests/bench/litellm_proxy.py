"""LiteLLM's proxy in an environment of its own, which pip makes once: what the gateway is measured against."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

from harness import BenchError

VERSION: Final = "1.106.2"  # the newest whose dependencies pip could bring
_HOME: Final = Path(__file__).parents[2] / "run" / f"litellm-{VERSION}"
_INSTALL_SECONDS: Final = 900
_START_SECONDS: Final = 120
_CONFIG: Final = """
model_list:
  - model_name: {model}
    litellm_params:
      model: openai/{model}
      api_base: http://127.0.0.1:{backend}/v1
      api_key: none
litellm_settings:
  telemetry: false
"""
# No key, no admin pages, and nothing fetched: what is measured is a request that comes in and goes out.
_ENVIRONMENT: Final = {
    "DISABLE_ADMIN_UI": "true",
    "HF_HUB_OFFLINE": "1",
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOG": "ERROR",
    "LITELLM_TELEMETRY": "False",
}


def set_up() -> Path:
    """Install it if need be, through whatever index pip is set up with; give its program."""
    program = _HOME / "bin" / "litellm"
    if not (_HOME / "complete").exists():
        _do(sys.executable, "-m", "venv", "--clear", str(_HOME))
        _do(str(_HOME / "bin" / "python"), "-m", "pip", "install", "-q", f"litellm[proxy]=={VERSION}")
        (_HOME / "complete").touch()
    return program


@contextmanager
def running(program: Path, backend: int, model: str) -> Iterator[tuple[int, psutil.Process]]:
    """Run it with one worker in front of a server at the port `backend`; give its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = _HOME / "config.yaml"
    config.write_text(_CONFIG.format(model=model, backend=backend))
    command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    with (_HOME / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **_ENVIRONMENT}, cwd=_HOME)
        try:
            _wait_until_alive(port, process)
            yield port, psutil.Process(process.pid)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_alive(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise BenchError("LiteLLM's proxy did not start; its log is log.txt in " + _HOME.name)


def _do(*command: str) -> None:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        raise BenchError("LiteLLM could not be installed in time") from None
    if done.returncode:
        raise BenchError((done.stderr.strip().splitlines() or ["LiteLLM could not be installed"])[-1])
