"""Run experiments on the workers of a Ray cluster: the same batches, the same folder, another place to compute them.

This process alone writes. A worker is given a batch and returns its samples, all of them or none: one that dies in
the middle is started again, and does the batch anew.

Ray is imported where it is used: to import it changes the environment.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from typing import TYPE_CHECKING, Any

from unspoken.errors import UnspokenError, UsageError, WorkersLost
from unspoken.lab.experiment import Experiment
from unspoken.lab.record import Sample
from unspoken.lab.runner import Asked, Runner, Watcher
from unspoken.lab.study import Begin, Here, Study, close_study, identity

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

LOCAL = "local"
# How often one worker is started again before the run is given up; it can be gone on with.
RESTARTS = 5
CONNECT_SECONDS = 10.0

Plan = list[tuple[Asked, ...]]
"""What each batch asks, by its number."""


class Worker:
    """A process of the cluster with a model.

    Args:
        folder: Where paths in experiments start from.
        threads: To compute with.
    """

    def __init__(self, folder: str, threads: int) -> None:
        import torch

        os.chdir(folder)
        torch.set_num_threads(threads)
        self._here, self._held = Here(), ExitStack()
        self._opened: tuple[Experiment, Runner, dict[str, Any]] | None = None

    def plan(self, experiment: Experiment) -> tuple[dict[str, Any], Plan] | UnspokenError:
        """Return what is recorded about an experiment here, and what there is to run."""
        try:
            runner, env = self._open(experiment)
        except UnspokenError as error:
            return error  # One that is raised arrives as one of Ray's.
        return env, [batch.asked for batch in runner.batches()]

    def work(self, experiment: Experiment, batch: int, done: frozenset[Asked]) -> list[Sample] | UnspokenError:
        """Return the samples of a batch that are not there yet."""
        try:
            runner, _ = self._open(experiment)
            return [sample for fresh in runner.work(runner.batches()[batch], done) for sample in fresh]
        except UnspokenError as error:
            return error

    def _open(self, experiment: Experiment) -> tuple[Runner, dict[str, Any]]:
        """Return what runs an experiment; it stays for the next batch of the same."""
        if self._opened is None or self._opened[0] != experiment:
            self._opened = None
            self._held.close()
            self._opened = experiment, *self._held.enter_context(self._here.opened(experiment))
        return self._opened[1:]


class Cluster:
    """Runs experiments on the workers of a Ray cluster.

    Args:
        address: `HOST:PORT` of a cluster, `auto` for the one of this machine, or `local` to start one here that ends
            with this process. A cluster runs whatever it is given: its ports are for machines that trust each other.
        workers: How many processes; each has a model of its own.
        threads: Of each; so many processors of the cluster are taken for it.

    Raises:
        UsageError: If no worker is asked for, or more than the cluster has processors for.
        WorkersLost: If there is no cluster.
    """

    def __init__(self, address: str, workers: int, threads: int = 1) -> None:
        if workers < 1 or threads < 1:
            raise UsageError(f"{workers} workers of {threads} threads cannot run anything.", "Ask for one or more.")
        import ray
        from ray.exceptions import RayError

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._held = ExitStack()
        self._held.enter_context(redirect_stdout(sys.stderr))  # Ray tells what workers die of on standard output.
        self._held.callback(ray.shutdown)
        try:
            if re.fullmatch(r"[^/]+:\d+", address):  # Ray itself would look for it for minutes.
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
            ray.init(
                address=None if address == LOCAL else address,
                num_cpus=workers * threads if address == LOCAL else None,
                include_dashboard=False if address == LOCAL else None,
                logging_level=logging.ERROR,
                log_to_driver=False,
                runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads)}},
            )
        except (RayError, OSError, OverflowError, ValueError, RuntimeError) as error:
            self.close()
            raise WorkersLost(
                f"There is no Ray cluster at '{address}': {error}.", "Start one with `ray start --head`, or give local."
            ) from error
        resources: Any = ray.cluster_resources  # Not annotated.
        there = int(resources().get("CPU", 0))
        if there < workers * threads:  # Ray would wait for more to be added.
            self.close()
            raise UsageError(
                f"{workers} workers of {threads} threads take {workers * threads} processors, the cluster has {there}.",
                "Ask for fewer --workers, or add a machine.",
            )
        made: Any = ray.remote(num_cpus=threads, max_restarts=RESTARTS, max_task_retries=RESTARTS)(Worker)
        self._workers: list[ActorHandle[Worker]] = [made.remote(os.getcwd(), threads) for _ in range(workers)]

    def run(self, experiment: Experiment, begin: Begin, watch: Watcher) -> Study:
        """Run an experiment that has been checked.

        Raises:
            UsageError: If the workers have not the same model, code and packages.
            WorkersLost: If a worker dies again and again, or the cluster ends.
            UnspokenError: If the model cannot be used, or the folder cannot be written.
        """
        watch(0, 1, f"{len(self._workers)} workers load {experiment.model}")
        planned = [_sound(each) for each in _fetched([each.plan.remote(experiment) for each in self._workers])]
        env, plan = planned[0]
        _require_same([identity(each) for each, _ in planned])
        env |= {"machine": env["machine"] | {"workers": len(self._workers)}}
        folder = begin(identity(env), env)
        samples = folder.resumed()
        done = frozenset(sample.cell for sample in samples)
        total = sum(map(len, plan))
        watch(len(samples), total, "")
        left = [at for at, asked in enumerate(plan) if not done.issuperset(asked)]
        for fresh in self._work(experiment, plan, left, done):
            folder.append(fresh)
            samples += fresh
            watch(len(samples), total, f"{fresh[0].source}{' (alone)' if fresh[0].alone else ''}")
        return close_study(folder, experiment, samples)

    def close(self) -> None:
        """Give the workers back; a cluster that was started here ends."""
        self._held.close()

    def _work(
        self, experiment: Experiment, plan: Plan, left: Sequence[int], done: frozenset[Asked]
    ) -> Iterator[list[Sample]]:
        """Yield the samples of batch after batch as they come; each worker has one at a time."""
        import ray

        waiting = iter(left)
        given: dict[ObjectRef[Any], ActorHandle[Worker]] = {}

        def give(worker: ActorHandle[Worker]) -> None:
            if (at := next(waiting, None)) is not None:
                given[worker.work.remote(experiment, at, done.intersection(plan[at]))] = worker

        for worker in self._workers:
            give(worker)
        while given:
            (ready, *_), _ = ray.wait(list(given))
            worker = given.pop(ready)
            samples = _sound(_fetched(ready))
            give(worker)
            yield samples


def _fetched(refs: Any) -> Any:
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(refs)
    except RayError as error:
        raise WorkersLost(
            f"A worker was lost, or failed, too often: {str(error).splitlines()[0]}",
            "Run it again: it goes on where it was. The logs of Ray say more.",
        ) from error


def _sound(answer: Any) -> Any:
    if isinstance(answer, UnspokenError):
        raise answer
    return answer


def _require_same(found: Sequence[Mapping[str, Any]]) -> None:
    first = found[0]
    differing = {name for each in found for name in first if each[name] != first[name]}
    if differing:
        raise UsageError(
            f"The workers do not have the same {', '.join(sorted(differing))}.",
            "Install one version of everything on all machines of the cluster.",
        )
