"""Trains an experiment in a workdir, where it is watched, saved, stopped and resumed."""

import concurrent.futures
import contextlib
import dataclasses
import math
import shlex
import time
from collections.abc import Callable

import jax
from absl import logging
from etils import epath

from diffusionrl_jax.data.files import prepare_folder, remove_partials
from diffusionrl_jax.distributed import processes
from diffusionrl_jax.distributed.digests import digests, not_finite
from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.evaluation.before_after import draw_before_after
from diffusionrl_jax.evaluation.evaluator import Evaluator
from diffusionrl_jax.evaluation.observation import Observer
from diffusionrl_jax.experiments import announcement, checks, fetching, fields, planning
from diffusionrl_jax.experiments import experiment as experiments
from diffusionrl_jax.experiments.algorithm import images_per_iteration, scores_on_host
from diffusionrl_jax.experiments.loading import load_policy
from diffusionrl_jax.experiments.out_of_memory import clear_out_of_memory
from diffusionrl_jax.learning import summary
from diffusionrl_jax.learning.execution import choose_execution, make_train_step
from diffusionrl_jax.learning.state import TrainState
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.families import PUBLISHED
from diffusionrl_jax.models.parameters import count
from diffusionrl_jax.monitoring.metrics import MetricWriter
from diffusionrl_jax.monitoring.progress import PhaseTimer, Progress
from diffusionrl_jax.monitoring.trace import Trace
from diffusionrl_jax.rewards.host_reward import ScorerError
from diffusionrl_jax.runs import trained
from diffusionrl_jax.runs.checkpoints import Checkpoints
from diffusionrl_jax.runs.lease import Lease
from diffusionrl_jax.runs.preemption import PreemptionGuard
from diffusionrl_jax.runs.provenance import first_revisions, write_run_information
from diffusionrl_jax.training.watching import Watcher, make_probe


def train(
    config,
    workdir: str,
    profiled: range = range(0),
    after: Callable[[int], None] = lambda done: None,
) -> bool:
    """Runs an experiment, or resumes it.

    Args:
      config: the experiment, see `experiments/config.py`.
      workdir: a folder. The run that an earlier call left there is continued.
      profiled: the iterations of which a trace is written into the workdir's folder "profile".
      after: is called with the number of each iteration, once its metrics are written.

    Returns:
      Whether all iterations are done, rather than the run was told to stop.

    Raises:
      UserError, FileNotFoundError: the config or the workdir cannot be used. This is raised before
        compute is spent. Or a reward seems to be fooled, and `config.watch.stop` is set; or the
        devices run out of memory.
      SaveError: there is no room for a checkpoint, or one could not be saved.
      FloatingPointError: the parameters, or all rewards of a task, are no longer finite.
      ScorerError: a scorer on the host fails for good. A checkpoint is saved first.
    """
    fields.check(config)
    workdir = str(prepare_folder(workdir, "--workdir"))
    with (
        contextlib.closing(trained.open_checkpoints(workdir, config)) as checkpoints,
        Lease(workdir) as lease,
    ):
        checkpoints.clean_up()
        if jax.process_index() == 0:
            remove_partials(epath.Path(workdir))
        if steps := checkpoints.steps():
            trained.check_same_experiment(workdir, config)
            if jax.process_index() == 0:
                trained.warn_of_other_scores(checkpoints)
        mesh = make_mesh(1)
        checks.check_experiment(config, mesh)
        if jax.process_index() == 0:
            checks.warn_of_guidance(config)
        checks.check_evaluation(config, mesh)
        if config.model in PUBLISHED:  # Its size is known before gigabytes are fetched.
            logging.info("The plan is %s (estimate).", planning.refuse_too_large(config))
        fetched = fetching.bring(config)
        revisions = {each.named.name: each.held.revision for each in fetched}
        if steps and jax.process_index() == 0:
            revisions = first_revisions(workdir, revisions)
        described = config.to_dict()
        config, plan = planning.resolve(config)
        execution = choose_execution(config.execution, scores_on_host(config))
        experiment = experiments.build(config)
        if jax.process_index() == 0:
            print(announcement.announce(experiment, plan, workdir), flush=True)
        if not steps or steps[-1] < config.iterations:
            checkpoints.check_room(experiment.abstract_state())
        policy = experiment.policy.without_denoiser()
        opened = experiment.opened_scorers()
        evaluator = Evaluator(policy, config, opened)
        with clear_out_of_memory(config, plan):
            experiment = experiment.with_pictures(str(epath.Path(workdir) / "cache"))
        restored = trained.restore_state(checkpoints, experiment.abstract_state())
        first, state = restored or (0, experiment.init_state())
        probe = make_probe(experiment) if first < config.iterations else None
        experiment = experiment.without_base()
        lease.check()
        write_run_information(workdir, described | {"plan": plan.to_json()}, revisions)
        if first < config.iterations:
            if first:
                logging.info("Resumed after iteration %d.", first)
            observer = Observer(evaluator, probe, opened, config.microbatch.score)
            watcher = Watcher(config, observer, workdir, first + 1 if first else 0)
            run = Run(experiment, watcher, checkpoints, lease, workdir, profiled, after)
            with clear_out_of_memory(config, plan):
                state = iterate(run, state, first, execution)
        else:
            logging.info(
                "%s is complete with %d iterations: nothing is left to do. To go on, raise "
                "--config.iterations=%d.",
                *(workdir, first, config.iterations),
            )
    picture = epath.Path(workdir) / "before_after.png"
    complete, goes_on = int(state.step) >= config.iterations, int(state.step) > first
    drawn = not goes_on and processes.true_everywhere(picture.exists())
    if complete and evaluator.prompts and not drawn:
        base = experiment.frozen.base or load_policy(config).denoiser
        draw_before_after(evaluator, base, experiment.merge(state.evaluation_params), picture)
    return complete


@dataclasses.dataclass(frozen=True)
class Run:
    """What an experiment is run with.

    Attributes:
      experiment: the experiment that is trained.
      watcher: evaluates it, and warns of rewards that are fooled.
      checkpoints: where it is saved.
      lease: the lease of the workdir.
      workdir: the folder for metrics and pictures.
      profiled: the iterations that are traced.
      after: is called with the number of each iteration that was made.
    """

    experiment: experiments.Experiment
    watcher: Watcher
    checkpoints: Checkpoints
    lease: Lease
    workdir: str
    profiled: range = range(0)
    after: Callable[[int], None] = lambda done: None

    def evaluate(self, state: TrainState) -> tuple[dict[str, float], dict]:
        """Returns `Watcher.evaluate` of the parameters that the state draws with.

        Raises:
          FloatingPointError: a parameter is not finite.
        """
        drawing = state.evaluation_params
        if broken := not_finite(digests(drawing)):
            raise FloatingPointError(f"{broken[0]} is not finite after iteration {state.step}.")
        policy = self.experiment.policy
        params = policy.with_denoiser(self.experiment.merge(drawing))
        return self.watcher.evaluate(params, int(state.step))

    def save(self, state: TrainState, score: float = math.nan) -> None:
        """Starts saving the state with its score, which is NaN without an evaluation."""
        self.lease.check()
        self.checkpoints.save(int(state.step), state.saved(), {"best": score})

    def what_is_saved(self) -> str:
        """Says what is saved, for the message of a run that cannot go on."""
        self.checkpoints.wait()
        lower = "a lower config.optimizer.learning_rate"
        if not (steps := self.checkpoints.whole_steps()):
            return f"No checkpoint was saved: start anew with {lower}, if that was the reason."
        checkpoint = shlex.quote(f"{self.workdir}@{steps[-1]}")
        return (
            f"Checkpoint {steps[-1]} in {self.checkpoints.directory} is from before. If learning "
            f"was too fast, export it (python -m diffusionrl_jax.export --checkpoint={checkpoint} "
            f"--output=DIR) and train DIR as config.model in another workdir with {lower}."
        )


def iterate(run: Run, state: TrainState, first: int, execution: str) -> TrainState:
    """Trains from iteration `first` + 1 to the last, or until the run is told to stop.

    Returns:
      The last state, which has been saved.

    Raises:
      SaveError, FloatingPointError, ScorerError, UserError: as in `train`.
    """
    experiment, checkpoints, warning = run.experiment, run.checkpoints, ""
    config = experiment.config
    timer = PhaseTimer()
    step = make_train_step(experiment.algorithm, state, execution, timer)
    images_per_step = images_per_iteration(config)
    parameters, optimizer, is_small = count(state.params), config.optimizer, False

    def evaluate(state) -> tuple[dict[str, float], dict]:
        with timer.phase("evaluation"):
            return run.evaluate(state)

    with (
        contextlib.closing(MetricWriter(run.workdir, first + 1 if first else 0)) as writer,
        contextlib.closing(Trace(run.workdir, run.profiled)) as trace,
        PreemptionGuard() as guard,
        Progress(config.iterations, first) as progress,
        # The host makes the next batch while the devices are busy with this one.
        concurrent.futures.ThreadPoolExecutor(1, "batch") as maker,
    ):
        try:
            if first == 0:
                scores, grids = evaluate(state)
                run.watcher.add(0, scores)
                writer.scalars(0, scores | timer.collect())
                writer.images(0, grids)
            upcoming = maker.submit(experiment.batch, first)
            for done in range(first + 1, config.iterations + 1):
                begun = time.monotonic()
                batch, following = upcoming.result(), None
                if done < config.iterations:
                    upcoming = maker.submit(experiment.batch, done)
                    following = upcoming.result() if state.samples_ahead else None
                with trace.iteration(done):
                    state, metrics = step(state, experiment.frozen, batch, following)
                    metrics = jax.device_get(metrics)
                values = summary.summarise(metrics, experiment.task_names, experiment.algorithm)
                summary.check_finite(values, metrics, experiment.task_names, config.batch_size)
                checkpoints.check()  # Stop before computing what cannot be saved.
                rms = summary.gradient_rms(
                    metrics["gradient_norm"], parameters, optimizer.gradient_clip
                )
                values["gradient_rms"] = rms
                if 0 < rms < optimizer.epsilon and not is_small:
                    is_small = True  # It is told once.
                    logging.warning(
                        "Gradients' root mean square, %.1e, is below config.optimizer.epsilon=%.1e:"
                        " steps are smaller than the learning rate says. Lower the epsilon.",
                        *(rms, optimizer.epsilon),
                    )
                values["images_per_second"] = images_per_step / (time.monotonic() - begun)
                means = {name: f"{name}/reward_mean" for name in experiment.task_names}
                rewards = {name: values[mean] for name, mean in means.items() if mean in values}
                progress.update(rewards, values["images_per_second"])
                stopping, last = guard.should_stop(), done == config.iterations
                # A checkpoint gets no score but that of an evaluation of its own parameters.
                scores, grids, warning = {"best": math.nan}, {}, ""
                evaluates = last or (done % config.evaluation.every == 0 and not stopping)
                try:
                    if evaluates:
                        scores, grids = evaluate(state)
                        values |= scores
                        # Evaluating may take as long as an iteration, so it is asked again.
                        stopping = guard.should_stop()
                finally:  # A failed evaluation loses no metrics.
                    run.watcher.add(done, values)
                    writer.scalars(done, values | timer.collect())
                writer.images(done, grids)
                run.after(done)
                if evaluates and (warning := run.watcher.warning(checkpoints.whole_steps())):
                    logging.warning("%s", warning)
                    stopping = stopping or config.watch.stop
                is_due = stopping or last or done % config.checkpoint.every == 0
                if is_due or checkpoints.is_best(scores["best"]):
                    with guard.completing():
                        run.save(state, scores["best"])
                if stopping:
                    break
            # A run that is told to stop, even twice, still completes what it is saving.
            with guard.completing():
                checkpoints.wait()
            if warning and config.watch.stop and not last:
                raise UserError(
                    f"config.watch.stop: {warning} Iteration {done} is saved; with "
                    "--config.watch.stop=False the same command goes on."
                )
        except ScorerError as error:
            run.save(state)
            checkpoints.wait()
            mend = f"Iteration {state.step} is saved: mend the scorer, and "
            mend += (
                "the same command goes on."
                if state.step < config.iterations
                else "make up for the last evaluation by python -m diffusionrl_jax.evaluate."
            )
            raise ScorerError(f"{error} {mend}") from error
        except FloatingPointError as error:
            raise FloatingPointError(f"{error} {run.what_is_saved()}") from error
    return state
