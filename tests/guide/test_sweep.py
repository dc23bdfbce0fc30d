"""`wandb sweep` and `wandb agent`, the real client against a server on this machine.

The server speaks as much of Weights & Biases' GraphQL as the client needs for one trial.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TRIAL = {"training.learning_rate": 0.001, "data.batch_size": 16, "model.variant": "b1"}
PROJECT = {"id": "P", "name": "skin-lesion-classification", "entity": {"id": "E", "name": "me"}}


class Server(ThreadingHTTPServer):
    """Hands out one trial, and keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.config = ""  # of the sweep, as YAML
        self.handed_out = self.started = False
        self.received: list[str] = []

    def reply(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        sweep = {"id": "S", "name": "abc123", "state": "RUNNING", "config": self.config}
        if operation == "Viewer":
            teams: dict[str, list[Any]] = {"edges": []}
            viewer = {"id": "U", "entity": "me", "username": "me", "flags": "{}", "teams": teams}
            return {"viewer": viewer | {"email": "me@example.org", "apiKeys": {"edges": []}}}
        if operation == "UpsertSweep":
            self.config = variables["config"]
            named = {"id": "S", "name": "abc123", "project": PROJECT}
            return {"upsertSweep": {"sweep": named, "configValidationWarnings": []}}
        if operation in ("SweepWithRuns", "Sweep"):
            facts: dict[str, Any] = {"runs": {"edges": []}, "runCount": 0, "heartbeatAt": None}
            facts["createdAt"] = "2026-01-01T00:00:00"
            return {"project": {"sweep": sweep | facts}}
        if operation == "CreateAgent":
            return {"createAgent": {"agent": {"id": "A"}}}
        if operation == "Heartbeat":
            arguments = {name: {"value": value} for name, value in TRIAL.items()}
            program = yaml.safe_load(self.config)["program"]
            trial = {"type": "run", "run_id": "run1", "args": arguments, "program": program}
            states = json.loads(variables.get("runState") or "{}")
            over = self.started and not states
            self.started = self.started or bool(states)
            commands = [{"type": "exit"}] if over else [] if self.handed_out else [trial]
            self.handed_out = True
            return {"agentHeartbeat": {"agent": {"id": "A"}, "commands": json.dumps(commands)}}
        if operation == "UpsertBucket":
            bucket: dict[str, Any] = {
                "id": "B",
                "name": "run1",
                "displayName": "run1",
                "project": PROJECT,
            }
            bucket |= {"config": "{}", "sweepName": "abc123", "historyLineCount": 0}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if operation == "CreateRunFiles":
            return {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": []}}
        return {}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.received.append(body.decode(errors="replace"))
        try:
            query = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", query.get("query") or "")
        except (ValueError, AttributeError):
            query, operation = {}, None
        name = operation.group(1) if operation else ""
        answer = {"data": self.server.reply(name, query.get("variables") or {})}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def test_a_sweep_is_made_and_its_trial_reports_the_metric(
    server: Server, demo_folder: Path, tmp_path: Path
) -> None:
    environment = os.environ | {
        "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}",
        "WANDB_API_KEY": "a" * 40,
        "WANDB_SILENT": "false",
        "NO_PROXY": "127.0.0.1",
    }

    def wandb(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "wandb", *arguments],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    said = wandb("sweep", str(ROOT / "configs/sweeps.yaml"))
    assert "wandb agent me/skin-lesion-classification/abc123" in said
    written = yaml.safe_load((ROOT / "configs/sweeps.yaml").read_text())
    assert yaml.safe_load(server.config) == written

    # The same sweep for a test's folder, data and patience
    command = list(written["command"])
    place = command.index("run") + 1
    command[place:place] = ["--no-sync", "--project", str(ROOT)]
    command += [f"data.data_dir={demo_folder}", "data.image_size=32", "model.pretrained=false"]
    command += ["training.max_epochs=1", "training.limit_train_batches=2"]
    program = str(ROOT / written["program"])
    server.config = yaml.safe_dump(written | {"program": program, "command": command})
    said = wandb("agent", "--count", "1", "me/skin-lesion-classification/abc123")
    made = tmp_path / "models/efficientnet/version_0/config.yaml"
    assert made.is_file(), said
    settings = yaml.safe_load(made.read_text())
    assert settings["model"]["variant"] == "b1", said
    assert settings["data"]["batch_size"] == 16
    assert settings["training"]["learning_rate"] == 0.001
    assert any("val_f1_score" in text for text in server.received)
