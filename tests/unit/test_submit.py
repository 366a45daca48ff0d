"""submit: what is asked of Ray, from where paths count, how a job is followed and stopped. Ray itself is a scripted
stand-in here; tests/stack/test_ray_jobs.py has the real one."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.job_submission import JobStatus
from typer.testing import CliRunner

from openrlhf_medical import cluster, devices, submit
from openrlhf_medical.cli import app
from openrlhf_medical.config import load_config
from openrlhf_medical.errors import RunError, UserError

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs" / "tiny.yaml"


class ScriptedRay:
    """Answers submissions with ``answers`` (an exception is raised), and status questions with ``states``."""

    def __init__(self, answers=(), states=(), tails=(), log="", grace="7"):
        self.answers, self.states, self.tails, self.log = list(answers), list(states), list(tails), log
        self.requests, self.stopped, self.grace = [], [], grace

    def submit_job(self, **request):
        self.requests.append(request)
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        return request["submission_id"]

    def get_job_info(self, name):
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(state, Exception):
            raise state
        status, code = state
        env = {"env_vars": {submit.STOP_GRACE_VARIABLE: self.grace}}
        return SimpleNamespace(submission_id=name, status=JobStatus(status), driver_exit_code=code, message="",
                               start_time=0, runtime_env=env)  # fmt: skip

    async def tail_job_logs(self, name):
        for piece in self.tails.pop(0):
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def get_job_logs(self, name):
        return self.log

    def list_jobs(self):
        return [self.get_job_info("one")]

    def stop_job(self, name):
        self.stopped.append(name)


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only while somebody sleeps."""
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr(submit.time, "monotonic", lambda: now.s)
    monkeypatch.setattr(submit.time, "sleep", lambda s: setattr(now, "s", now.s + s))
    return now


@pytest.fixture
def connected(monkeypatch, clock):
    def connect(ray):
        monkeypatch.setattr("ray.job_submission.JobSubmissionClient", lambda address: ray)
        return submit.Cluster("http://127.0.0.1:8265")

    return connect


JOB = submit.Job("exec true", Path("/code"), "run-1", {"A": "b"}, cpus=2, memory_gib=1.5, stop_grace_s=90)
NO_AGENT = RuntimeError(
    "Request failed with status code 500: No available agent to submit job, please try again later.."
)


class TestRequest:
    def test_time_to_save_a_state_reaches_the_process_that_kills(self):
        """Ray's own 3 s would be too short for any checkpoint; the name is one that Ray reads."""
        import inspect

        from ray.dashboard.modules.job import job_supervisor

        request = JOB.request()
        assert request["runtime_env"]["env_vars"] == {"A": "b", submit.STOP_GRACE_VARIABLE: "90"}
        assert f'"{submit.STOP_GRACE_VARIABLE}"' in inspect.getsource(job_supervisor)

    def test_the_driver_alone_sets_the_worker_hook(self):
        assert "worker_process_setup_hook" not in JOB.request()["runtime_env"]

    def test_variables_of_the_driver_are_the_refused_ones(self, monkeypatch):
        given = {}
        monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
        monkeypatch.setattr(cluster.ray, "init", lambda **kwargs: given.update(kwargs))
        monkeypatch.setattr(devices, "has_gpu", lambda: False)
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        cluster.connect(1)
        assert set(given["runtime_env"]["env_vars"]) == set(submit.SET_BY_THE_DRIVER)
        assert "num_gpus" not in given, "Ray refuses resources where it joins a cluster"
        for name in submit.SET_BY_THE_DRIVER:
            with pytest.raises(UserError, match="driver sets this itself"):
                submit.refuse_variables({name: "1"})
        with pytest.raises(UserError, match="--stop-grace-s"):
            submit.refuse_variables({submit.STOP_GRACE_VARIABLE: "1"})

    def test_resources_of_the_driver(self):
        request = JOB.request()
        assert (request["entrypoint_num_cpus"], request["entrypoint_memory"]) == (2, 3 << 29)
        assert request["entrypoint_resources"] is None

    def test_what_travels(self, tmp_path):
        """Judged by Ray's own reading of the patterns."""
        from ray._private.runtime_env.packaging import _get_excludes

        excluded = _get_excludes(tmp_path, list(submit.LEFT_BEHIND))
        for name in (".venv", "models", "runs", "data", ".git", "openrlhf_medical/__pycache__", ".mypy_cache"):
            (tmp_path / name).mkdir(parents=True)
            assert excluded(tmp_path / name), name
        for name in ("openrlhf_medical/data", "openrlhf_medical/models.py", "configs"):
            (tmp_path / name).mkdir(parents=True)
            assert not excluded(tmp_path / name), name

    def test_two_jobs_of_one_run_have_different_names(self):
        assert submit.job_name("a") != submit.job_name("a")


class TestPaths:
    def test_relative_paths_are_those_of_the_submitting_machine(self, tmp_path):
        (tmp_path / "models" / "tiny").mkdir(parents=True)
        config = load_config(TINY, ["--judge.token_file", "/t", "--judge.urls", "http://h:1"])
        found = submit.absolute_paths(config, tmp_path)
        assert found["run.dir"] == tmp_path / "runs" and found["data.train"] == tmp_path / "data/train.jsonl"
        assert found["actor.model_name_or_path"] == tmp_path / "models/tiny"
        assert not {"judge.token_file", "critic.model_name_or_path", "roles.checkpoint"} & found.keys()
        assert "actor.model_name_or_path" not in submit.absolute_paths(config, tmp_path / "models"), "a model of a hub"

    def test_the_driver_reads_what_was_meant(self, tmp_path, monkeypatch):
        """The job's command line resolves to the same settings with every path made absolute."""
        monkeypatch.chdir(tmp_path)
        words = ["--run.name", "r1", "--data.train=mine/x.jsonl", "--actor.model_name_or_path", "a model's folder"]
        config = load_config(TINY, words)
        command = shlex.split(submit.training("/py", TINY, words, config, ROOT, resume="auto"))
        assert command[:7] == ["exec", "/py", "-m", "openrlhf_medical", "train", "--config", "configs/tiny.yaml"]
        assert command[7:9] == ["--resume", "auto"]
        again = load_config(ROOT / command[6], command[9:])
        assert again.data.train == tmp_path / "mine/x.jsonl" and again.run.folder == tmp_path / "runs/r1"
        same = {"data", "run", "actor"}
        assert again.model_dump(exclude=same) == config.model_dump(exclude=same)

    @pytest.mark.parametrize(("file", "seen"), [("/else/a.yaml", "/else/a.yaml"), ("/code/b/a.yaml", "b/a.yaml"),
                                                ("/code/runs/x/config.yaml", "/code/runs/x/config.yaml")])  # fmt: skip
    def test_a_configuration_that_does_not_travel_is_named_in_full(self, file, seen):
        assert submit._seen_from(Path("/code"), Path(file)) == Path(seen)

    def test_a_run_that_ray_would_delete_is_refused(self):
        copy = Path("/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_1")
        with pytest.raises(UserError, match=r"run\.dir runs is relative"):
            submit.refuse_lost_folder(Path("runs"), copy)
        submit.refuse_lost_folder(Path("/shared/runs"), copy)
        submit.refuse_lost_folder(Path("runs"), Path("/home/me"))


class TestSubmission:
    def test_a_cluster_without_agent_is_asked_again(self, connected, clock):
        ray = ScriptedRay([NO_AGENT, NO_AGENT, None])
        assert connected(ray).submit(JOB) == "run-1"
        assert len(ray.requests) == 3 and clock.s > 0

    def test_but_not_forever(self, connected, clock):
        with pytest.raises(RunError, match=r"took no job within 20 s .*dashboard-agent-listen-port"):
            connected(ScriptedRay([NO_AGENT] * 99)).submit(JOB, deadline_s=20)
        assert clock.s <= 20

    def test_a_lost_answer_starts_no_second_job(self, connected):
        ray = ScriptedRay([ConnectionError("reset"), RuntimeError("Job with submission_id run-1 already exists.")])
        assert connected(ray).submit(JOB) == "run-1"

    def test_a_refusal_is_told_at_once(self, connected, clock):
        with pytest.raises(UserError, match="invalid env"):
            connected(ScriptedRay([RuntimeError("status code 400: invalid env")])).submit(JOB)
        assert clock.s == 0

    def test_nobody_there(self, monkeypatch, clock):
        def fail(address):
            raise ConnectionError("refused")

        monkeypatch.setattr("ray.job_submission.JobSubmissionClient", fail)
        with pytest.raises(UserError, match=r"no Ray cluster answers at http://127\.0\.0\.1:1 .*--address"):
            submit.Cluster("http://127.0.0.1:1")
        with pytest.raises(UserError, match="write http://HOST:PORT"):
            submit.Cluster("127.0.0.1:8265")


class TestFollowing:
    def test_a_lost_connection_repeats_and_loses_nothing(self, connected):
        ray = ScriptedRay(
            states=[("RUNNING", None), ("RUNNING", None), ("SUCCEEDED", 0)], log="one\ntwo\nthree\nfour\n",
            tails=[["one\n", RuntimeError("closed")], ["one\ntwo\n"], ["one\n", "two\nthree\n"]],
        )  # fmt: skip
        told = []
        assert connected(ray).follow("run-1", told.append).driver_exit_code == 0
        assert "".join(told) == ray.log

    def test_a_cluster_that_is_gone_ends_it(self, connected, clock):
        ray = ScriptedRay(states=[ConnectionError("refused")], tails=[[]])
        with pytest.raises(RunError, match="has not answered for 60 s"):
            connected(ray).follow("run-1", print)

    def test_no_such_job(self, connected):
        with pytest.raises(UserError, match="no job x at"):
            connected(ScriptedRay(states=[RuntimeError("404: Job x does not exist")])).details("x")

    @pytest.mark.parametrize(
        ("status", "code", "expected"),
        [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", None, 1), ("STOPPED", None, 143), ("STOPPED", 143, 143)],
    )
    def test_exit_codes_are_the_jobs(self, status, code, expected):
        assert submit.exit_code(SimpleNamespace(status=JobStatus(status), driver_exit_code=code)) == expected


class TestStopping:
    def test_it_waits_until_the_state_is_saved(self, connected, clock):
        ray = ScriptedRay(states=[("RUNNING", None)] * 5 + [("STOPPED", None)])
        assert str(connected(ray).stop("run-1").status) == "STOPPED"
        assert ray.stopped == ["run-1"] and clock.s > 0

    def test_as_long_as_the_job_was_given(self, connected, clock):
        with pytest.raises(RunError, match="has not ended 37 s after"):
            connected(ScriptedRay(states=[("RUNNING", None)], grace="7")).stop("run-1")

    def test_an_ended_job_is_left_alone(self, connected):
        ray = ScriptedRay(states=[("SUCCEEDED", 0)])
        connected(ray).stop("run-1")
        assert not ray.stopped


class TestCommandLine:
    @pytest.fixture
    def call(self, monkeypatch, clock):
        def call(ray, *words):
            monkeypatch.setattr("ray.job_submission.JobSubmissionClient", lambda address: ray)
            return CliRunner().invoke(app, ["submit", *words])

        return call

    def test_submit_follows_and_ends_as_the_job_does(self, call):
        ray = ScriptedRay(states=[("FAILED", 2)], tails=[["hello\n"]], log="hello\n")
        done = call(ray, "--config", str(TINY), "--run.name", "x", "--env", "A=b", "--python", "/py",
                    "--entrypoint-resource", "head=0.5", "--resume", "auto")  # fmt: skip
        assert done.exit_code == 2 and "hello\n" in done.output
        (request,) = ray.requests
        assert request["submission_id"].startswith("x-") and request["entrypoint_resources"] == {"head": 0.5}
        assert "/py -m openrlhf_medical train" in request["entrypoint"] and "--resume auto" in request["entrypoint"]
        assert request["runtime_env"]["env_vars"]["A"] == "b"

    def test_no_wait_prints_the_name_alone(self, call):
        done = call(ScriptedRay(), "--config", str(TINY), "--no-wait")
        assert done.exit_code == 0 and done.output.startswith("tiny-") and len(done.output.split()) == 1

    def test_a_bad_key_reaches_no_cluster(self, call):
        ray = ScriptedRay()
        done = call(ray, "--config", str(TINY), "--run.nam", "x")
        assert done.exit_code == 2 and not ray.requests

    @pytest.mark.parametrize("words", [(), ("status",), ("list", "x"), ("halt", "x")])
    def test_what_is_not_understood(self, call, words):
        assert call(ScriptedRay(), *words).exit_code == 2

    def test_asking(self, call):
        running = [("RUNNING", None)]
        assert "one  RUNNING" in call(ScriptedRay(states=running), "status", "one").output
        assert "one  RUNNING" in call(ScriptedRay(states=running), "list").output
        ray = ScriptedRay(states=[*running, ("STOPPED", None)])
        assert "STOPPED" in call(ray, "stop", "one").output and ray.stopped == ["one"]

    def test_the_script_is_the_command(self):
        done = subprocess.run([ROOT / "launch/ray_submit.sh", "--config", "no.yaml"], capture_output=True, text=True)
        assert done.returncode == 2 and "no.yaml: cannot be read" in done.stderr
