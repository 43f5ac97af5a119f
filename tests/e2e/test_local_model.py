"""A real small model in one process answers a client in another, wherever there is one."""

import importlib.util
import json
from pathlib import Path

import pytest

from loremesh.backends.tokens import load_counter
from loremesh.config import models_directory
from loremesh.storage.weights import known_weights
from loremesh.testing.node_processes import StartNode, run_program

PROMPT = "Write one sentence about a lighthouse keeper who finds a map."

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or not known_weights("smollm2").path(models_directory()).is_file(),
    reason="needs a model: pip install 'loremesh[local]' && loremesh-executor model pull smollm2",
)


async def test_a_client_asks_a_model_that_runs_inside_an_executor(start: StartNode, tmp_path: Path) -> None:
    file = tmp_path / "local.toml"
    file.write_text('mine = false\n[[backend]]\nkind = "local"\nmodels = ["smollm2"]\n', encoding="utf-8")
    validator = await start("validator", role="validator")
    address = await validator.wait_address()
    executor = await start("ann", "--config", str(file), "--bootstrap-nodes", address)
    await executor.wait_address()

    mesh = ("--bootstrap-nodes", address, "--data-dir", str(tmp_path / "home"))
    asked = ("--model", "smollm2", "--prompt", PROMPT, "--max-tokens", "60", "--json")
    ended = await run_program("loremesh", "ask", *mesh, *asked)
    assert ended.code == 0, ended.err
    answer = ended.json()
    assert len(answer["content"].split()) > 5
    assert answer["executor"] == (await executor.wait("ready"))["peer_id"]
    assert answer["usage"]["completion_tokens"] == load_counter()(answer["content"])

    bill = tmp_path / "bill.json"
    bill.write_text(json.dumps(answer["receipt"]), encoding="utf-8")
    assert (await run_program("loremesh", "verify", str(bill))).code == 0
