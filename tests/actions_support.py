"""A small runner of GitHub's workflows: `run:` steps for real, GitHub's own evaluator, stand-ins for `uses:`."""

import json
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

StandIn = Callable[[dict[str, str]], dict[str, str]]
STATUS = re.compile(r"\b(success|failure|cancelled|always)\(\)")


class Expressions:
    """GitHub's evaluator in a separate process."""

    def __init__(self, modules: Path) -> None:
        script = str(Path(__file__).with_name("evaluate.mjs"))
        self.process = subprocess.Popen(
            ["node", script, str(modules)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )

    def close(self) -> None:
        self.process.communicate()

    def ask(self, expression: str, contexts: dict[str, Any], failed: bool) -> dict[str, Any]:
        status = {"success": not failed, "failure": failed, "cancelled": False, "always": True}
        assert self.process.stdin
        assert self.process.stdout
        request = {"expression": expression, "contexts": contexts, "status": status}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        assert "error" not in answer, f"{expression}: {answer}"
        return answer


class Runner:
    """Runs one workflow in a project, job after job."""

    def __init__(
        self, expressions: Expressions, project: Path, environment: Mapping[str, str], uses: dict[str, StandIn]
    ):
        self.expressions, self.project, self.environment, self.uses = expressions, project, dict(environment), uses
        self.ran: list[str] = []
        self.meanwhile: dict[str, Callable[[], object]] = {}  # of a job: what happens while it waits
        self.services: dict[str, str] = {}  # of a service container: its address for the job, and its stand-in's
        self.called: dict[str, str] = {}  # of a called workflow: how it ends, without running it
        self.summary = project.with_name("summary.md")
        self.output = ""

    def run(self, name: str, event: str = "push", sha: str | None = None, **contexts: dict[str, Any]) -> dict[str, str]:
        """Run a workflow and return how each job ended."""
        self.workflow = self._read(name)
        self.ran.clear()
        self.summary.write_text("", encoding="utf-8")
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=self.project, capture_output=True, text=True)
        sha = sha or head.stdout.strip()
        github = {"event_name": event, "repository": "Acme/Shop-Churn", "sha": sha, "ref": "refs/heads/main"}
        github |= {"workflow": self.workflow["name"], "actor": "somebody", "token": "t"}
        self.contexts = {"github": github, "vars": {}, "secrets": {}, "inputs": {}} | contexts
        return {key: value["result"] for key, value in self._jobs().items()}

    def _read(self, name: str) -> dict[str, Any]:
        path = self.project / ".github" / "workflows" / name
        return dict(yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader))

    def _jobs(self) -> dict[str, dict[str, Any]]:
        results: dict[str, dict[str, Any]] = {}
        for key, job in self.workflow["jobs"].items():  # each is below the jobs that it needs
            self.meanwhile.get(key, lambda: None)()
            needs = job.get("needs", [])
            # Reversed, because an object's values are in no order that GitHub promises.
            needed = {n: results[n] for n in reversed([needs] if isinstance(needs, str) else needs)}
            results[key] = self._job(job, self.contexts | {"needs": needed})
        return results

    def _call(self, name: str) -> dict[str, Any]:
        """Run the jobs of a workflow that a job calls: with its own `env`, and the caller's event."""
        if name in self.called:
            return {"result": self.called[name], "outputs": {}}
        caller, self.workflow = self.workflow, self._read(name)
        try:
            ended = {job["result"] for job in self._jobs().values()}
        finally:
            self.workflow = caller
        return {"result": "failure" if "failure" in ended else "success", "outputs": {}}

    def _job(self, job: dict[str, Any], contexts: dict[str, Any]) -> dict[str, Any]:
        ended = [need["result"] for need in contexts["needs"].values()]
        failed = "failure" in ended
        if not self._holds(job.get("if", ""), contexts, failed, all(result == "success" for result in ended)):
            return {"result": "skipped", "outputs": {}}
        if "uses" in job:
            return self._call(Path(job["uses"].split()[0]).name)
        env = self._texts(self.workflow.get("env", {}), contexts)
        env |= self._texts(job.get("env", {}), contexts)
        env = {name: self.services.get(value, value) for name, value in env.items()}
        steps: dict[str, Any] = {}
        broken = False
        for step in job["steps"]:
            inner = contexts | {"env": env, "steps": steps}
            if not self._holds(step.get("if", ""), inner, broken, not broken):
                continue
            done, outputs = self._step(step, inner, env | self._texts(step.get("env", {}), inner))
            steps |= {step["id"]: {"outputs": outputs}} if "id" in step else {}
            broken = broken or not (done or step.get("continue-on-error") == "true")
        outputs = self._texts(job.get("outputs", {}), contexts | {"steps": steps})
        return {"result": "failure" if broken else "success", "outputs": outputs}

    def _step(self, step: dict[str, Any], contexts: dict[str, Any], env: dict[str, str]) -> tuple[bool, dict[str, str]]:
        if "uses" in step:
            action = step["uses"].partition("@")[0]
            return True, self.uses[action](self._texts(step.get("with", {}), contexts))
        self.ran.append(step["run"])
        output = self.project.with_name("output.txt")
        output.write_text("", encoding="utf-8")
        files = {"GITHUB_STEP_SUMMARY": str(self.summary), "GITHUB_OUTPUT": str(output)}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=self.project,
            env=self.environment | env | {"CI": "true", "GITHUB_SHA": contexts["github"]["sha"]} | files,
            capture_output=True,
            text=True,
            timeout=900,
        )
        self.output += f"$ {step['run']}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        lines = output.read_text(encoding="utf-8").splitlines()
        return done.returncode == 0, dict(line.split("=", 1) for line in lines)

    def _holds(self, condition: str, contexts: dict[str, Any], failed: bool, default: bool) -> bool:
        """Return True if a condition holds; without a status function it also asks for success, as on GitHub."""
        text = condition.strip().removeprefix("${{").removesuffix("}}").strip()
        if not text:
            return default
        answer = self.expressions.ask(text, contexts, failed)
        return (default or bool(STATUS.search(text))) and answer["value"] not in (False, None, "", 0)

    def _texts(self, values: dict[str, str], contexts: dict[str, Any]) -> dict[str, str]:
        def fill(found: "re.Match[str]") -> str:
            return str(self.expressions.ask(found[1].strip(), contexts, False)["text"])

        return {key: re.sub(r"\$\{\{(.*?)\}\}", fill, value) for key, value in values.items()}
