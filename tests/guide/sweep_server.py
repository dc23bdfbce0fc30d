"""As much of Weights & Biases' server as a sweep needs, on this machine."""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import median
from typing import Any

import yaml

PROJECT = {"id": "P", "name": "skin-lesion-classification", "entity": {"id": "E", "name": "me"}}
SWEEP = "me/skin-lesion-classification/abc123"


class Server(ThreadingHTTPServer):
    """Hands out trials to agents, takes their metrics, stops those that fall behind.

    Args:
        trials: arguments of each trial, by the name of its run.

    Attributes:
        config: of the sweep, as YAML; the metric, its goal and early_terminate are read from it.
        agent_of: which agent was given which run, in the order of handing out.
        history: values of the metric that each run has reported.
        exit_codes: of the runs that have reported their end.
        gone: runs that their agent no longer has, whether they have reported anything or not.
        stopped: runs that an agent was told to stop.
        changed: a condition that holds while any of these is looked at, told of each change.
    """

    def __init__(self, trials: Mapping[str, dict[str, Any]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.config = ""
        self.trials = dict(trials)
        self.waiting = deque(self.trials)
        self.agents = 0
        self.agent_of: dict[str, str] = {}
        self.history: dict[str, list[float]] = {}
        self.exit_codes: dict[str, int] = {}
        self.gone: set[str] = set()
        self.stopped: set[str] = set()
        self.changed = threading.Condition()

    def reply(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The answer to a GraphQL request; empty for one that is not known."""
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
            self.agents += 1
            return {"createAgent": {"agent": {"id": f"agent{self.agents}"}}}
        if operation == "Heartbeat":
            agent, states = variables["id"], json.loads(variables.get("runState") or "{}")
            commands = json.dumps(self._commands(agent, set(states)))
            return {"agentHeartbeat": {"agent": {"id": agent}, "commands": commands}}
        if operation == "UpsertBucket":
            name = variables.get("name") or "run"
            bucket = {"id": name, "name": name, "displayName": name, "project": PROJECT}
            bucket |= {"config": "{}", "sweepName": "abc123", "historyLineCount": 0}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if operation == "CreateRunFiles":
            return {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": []}}
        return {}

    def _commands(self, agent: str, running: set[str]) -> list[dict[str, Any]]:
        """What an agent is to do, which says which runs it has."""
        given = {run for run, whose in self.agent_of.items() if whose == agent}
        self.gone |= given - running
        behind = sorted(run for run in running if self._falls_behind(run))
        if behind:
            self.stopped |= set(behind)
            return [{"type": "stop", "run_id": run} for run in behind]
        if running:
            return []
        if not self.waiting:
            return [{"type": "exit"}]
        run = self.waiting.popleft()
        self.agent_of[run] = agent
        arguments = {name: {"value": value} for name, value in self.trials[run].items()}
        program = yaml.safe_load(self.config)["program"]
        return [{"type": "run", "run_id": run, "args": arguments, "program": program}]

    def _falls_behind(self, run: str) -> bool:
        """Hyperband's first bracket: worse than half of all at their epoch `min_iter`."""
        sweep = yaml.safe_load(self.config)
        after = sweep.get("early_terminate", {}).get("min_iter")
        if after is None:
            return False
        at = {name: seen[after - 1] for name, seen in self.history.items() if len(seen) >= after}
        if run not in at or len(at) < 4:
            return False
        middle = median(at.values())
        maximize = sweep["metric"]["goal"] == "maximize"
        return at[run] < middle if maximize else at[run] > middle

    def stream(self, run: str, message: dict[str, Any]) -> None:
        """Takes what a run reports of itself."""
        metric = yaml.safe_load(self.config)["metric"]["name"]
        lines = message.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
        for row in map(json.loads, lines):
            if metric in row:
                self.history.setdefault(run, []).append(row[metric])
        if message.get("complete"):
            self.exit_codes[run] = message["exitcode"]


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        with self.server.changed:
            answer = self._answer(body)
            self.server.changed.notify_all()
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST

    def _answer(self, body: bytes) -> dict[str, Any]:
        try:
            message = json.loads(body)
        except ValueError:
            return {"data": {}}
        if stream := re.search(r"/([^/]+)/file_stream$", self.path):
            self.server.stream(stream[1], message)
            return {}
        operation = re.search(r"(?:query|mutation)\s+(\w+)", message.get("query") or "")
        name = operation[1] if operation else ""
        return {"data": self.server.reply(name, message.get("variables") or {})}


@contextmanager
def serve(trials: Mapping[str, dict[str, Any]]) -> Iterator[Server]:
    """A server that runs as long as the context."""
    with Server(trials) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()
