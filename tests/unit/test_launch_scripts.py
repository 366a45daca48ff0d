"""launch/: shellcheck, and launch/slurm.sbatch against stand-ins of srun, scontrol and train that note what they are
asked. tests/stack/test_slurm.py runs it on a real Slurm."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openrlhf_medical import ray_node

ROOT = Path(__file__).parents[2]
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / "launch" / "slurm.sbatch"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script):
    program = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    assert program, "shellcheck is missing: ./launch/setup.sh --dev installs it"
    done = subprocess.run([program, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


class TestRayNode:
    def words(self, address=None, environment=None, has_gpu=False):
        return ray_node.start_command(Path("/tmp/r"), address, environment or {}, has_gpu=has_gpu, cores=4)

    def test_two_clusters_on_one_machine_do_not_meet(self):
        head = self.words()
        assert {"--port=0", "--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0",
                "--temp-dir=/tmp/r", "--head", "--include-dashboard=false", "--block"} <= set(head)  # fmt: skip
        worker = self.words("h:1")
        assert "--address=h:1" in worker and not {"--head", "--port=0", "--include-dashboard=false"} & set(worker)

    def test_options_are_rays(self):
        """Read, not imported: that would load all of Ray Serve."""
        source = Path(importlib.util.find_spec("ray.scripts.scripts").origin).read_text(encoding="utf-8")
        options = {word.partition("=")[0] for word in self.words()[1:] + self.words("h:1")[1:]}
        assert options and all(f'"{option}"' in source for option in options)

    def test_what_a_node_has(self):
        assert {"--num-cpus=16", "--num-gpus=16"} <= set(self.words())
        assert {"--num-cpus=40", "--num-gpus=16"} <= set(self.words(environment={"SLURM_CPUS_ON_NODE": "40"}))
        with_gpus = self.words(environment={"SLURM_CPUS_ON_NODE": "8"}, has_gpu=True)
        assert "--num-cpus=8" in with_gpus and not any("num-gpus" in word for word in with_gpus), "Ray counts them"


STAND_IN = """#!{python} -SE
import json, os, signal, sys, time
words = sys.argv[1:]
with open(os.environ["NOTES"], "a") as notes:
    print(json.dumps([os.path.basename(sys.argv[0]), *words, os.environ.get("CUDA_VISIBLE_DEVICES", "")]), file=notes)
def end(number, frame):
    with open(os.environ["NOTES"], "a") as notes:
        print(json.dumps(["ended by " + signal.Signals(number).name, *words]), file=notes)
    sys.exit(128 + number)
if "hostnames" in words:
    print("n1\\nn2")
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, end)
if "--temp-dir" in words and "openrlhf_medical.ray_node" in words:
    if "--address" not in words:
        with open(words[words.index("--temp-dir") + 1] + "/ray_current_cluster", "w") as file:
            file.write("n1:4321")
    time.sleep(60)
if "--port-file" in words:
    with open(words[words.index("--port-file") + 1], "w") as file:
        file.write("8123")
    time.sleep(60)
if "train" in words:
    time.sleep(float(os.environ.get("TRAIN_S", "0")))
    sys.exit(int(os.environ.get("TRAIN_CODE", "0")))
"""


class TestSlurmScript:
    """As Slurm would run it: a copy of the script, in the folder of the submission."""

    @pytest.fixture
    def job(self, tmp_path):
        programs = tmp_path / "bin"
        programs.mkdir()
        for name in ("srun", "scontrol", "python"):
            (programs / name).write_text(STAND_IN.format(python=sys.executable))
            (programs / name).chmod(0o755)
        shutil.copy(ROOT / "launch" / "slurm.sbatch", tmp_path / "slurm_script")
        number = str(900000 + os.getpid() % 99999)
        environment = {
            **os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "NOTES": str(tmp_path / "notes"),
            "SLURM_JOB_ID": number, "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NUM_NODES": "1",
            "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CPUS_ON_NODE": "2",
        }  # fmt: skip

        def start(*words, **variables):
            command = ["bash", str(tmp_path / "slurm_script"), "--python", str(programs / "python"), *words]
            return subprocess.Popen(
                command, env=environment | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )

        start.number = number
        start.notes = lambda: [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]
        yield start
        shutil.rmtree(f"/tmp/ray-{number}-0", ignore_errors=True)

    def done(self, process, expect):
        output, _ = process.communicate(timeout=60)
        assert process.returncode == expect, output
        return output

    def trained(self, job):
        return [words for words in job.notes() if "train" in words and not words[0].startswith("ended")]

    def test_one_node(self, job):
        self.done(job("--config", "c.yaml", "--run.steps", "2"), 0)
        (train,) = self.trained(job)
        assert train[:-1] == ["python", "-m", "openrlhf_medical", "train", "--config", "c.yaml", "--run.steps", "2",
                              "--resume", "auto"]  # fmt: skip
        assert sum("openrlhf_medical.ray_node" in words and words[0] == "srun" for words in job.notes()) == 1
        assert any(words[0] == "ended by SIGTERM" for words in job.notes()), "the head's step"
        assert not list(Path("/tmp").glob(f"ray-{job.number}-*"))
        assert not any("requeue" in words for words in job.notes())

    def test_several_nodes_wait_for_each_other(self, job):
        self.done(job("--config", "c.yaml", SLURM_JOB_NUM_NODES="4"), 0)
        assert {"--nodes=4", "rm", "-rf"} <= set(job.notes()[-1]), "on every node"
        notes = [words for words in job.notes() if not words[0].startswith("ended")]
        (workers,) = [words for words in notes if "--exclude=n1" in words]
        assert {"--nodes=3", "--ntasks=3", "--address", "n1:4321"} <= set(workers)
        (waiting,) = [words for words in notes if "--wait" in words]
        assert waiting[waiting.index("--wait") + 1] == "4"
        assert notes.index(waiting) < notes.index(*self.trained(job))

    def test_the_judge_beside_and_its_gpus(self, job):
        self.done(
            job("--judge-gpus", "1", "--config", "c.yaml", "--", "--backend", "vllm", CUDA_VISIBLE_DEVICES="4,5,7"), 0
        )
        (train,) = self.trained(job)
        assert train[-3:-1] == ["--judge.urls", "http://127.0.0.1:8123"]
        (judge,) = [words for words in job.notes() if "serve-judge" in words and not words[0].startswith("ended")]
        assert {"--backend", "vllm", "--port", "0"} <= set(judge) and judge[-1] == "7"
        (head,) = [words for words in job.notes() if "openrlhf_medical.ray_node" in words and words[0] == "srun"]
        assert "CUDA_VISIBLE_DEVICES=4,5" in head
        ended = [words for words in job.notes() if words[0] == "ended by SIGTERM"]
        assert any("serve-judge" in words for words in ended)

    def until_it_trains(self, job, process):
        deadline = time.monotonic() + 50
        while time.monotonic() < deadline and process.poll() is None:
            if Path(process.args[1]).with_name("notes").exists() and self.trained(job):
                return
            time.sleep(0.05)
        raise AssertionError(process.communicate()[0])

    def test_told_before_the_time_limit_it_saves_and_requeues(self, job):
        process = job("--config", "c.yaml", TRAIN_S="60")
        self.until_it_trains(job, process)
        time.sleep(0.3)  # until the stand-in listens to signals
        process.send_signal(signal.SIGUSR1)
        self.done(process, 138)
        order = [words[0] + " " + " ".join(words[1:3]) for words in job.notes()]
        assert any(words[0] == "ended by SIGUSR1" and "train" in words for words in job.notes())
        assert order[-1].startswith("scontrol requeue"), "last, when nothing runs any more"

    def test_cancelled_it_saves_and_does_not_requeue(self, job):
        process = job("--config", "c.yaml", TRAIN_S="60")
        self.until_it_trains(job, process)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        self.done(process, 143)
        assert not any("requeue" in words for words in job.notes())

    def test_a_failed_run_is_not_requeued(self, job):
        self.done(job("--config", "c.yaml", TRAIN_CODE="1"), 1)
        assert not any("requeue" in words for words in job.notes())

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (("--run.steps", "2"), "no --config FILE"),
            (("--judge-gpus", "x", "--config", "c"), "a number is needed"),
            (("--judge-gpus", "2", "--config", "c"), "Slurm gives 0 GPUs"),
        ],
    )
    def test_mistakes_are_told_before_anything_starts(self, job, words, told):
        assert told in self.done(job(*words, CUDA_VISIBLE_DEVICES=""), 2)

    def test_outside_of_slurm(self):
        bare = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        command = ["bash", str(ROOT / "launch/slurm.sbatch")]
        done = subprocess.run([*command, "--config", "c"], env=bare, capture_output=True, text=True)
        assert done.returncode == 2 and "sbatch launch/slurm.sbatch" in done.stderr
        usage = subprocess.run([*command, "--help"], capture_output=True, text=True)
        assert usage.returncode == 0 and usage.stdout.startswith("Self-play") and "shared by all nodes." in usage.stdout
