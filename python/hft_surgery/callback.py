"""Half Fine-Tuning in the trainers of transformers and TRL."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Optional, Union

from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from . import provenance
from .applied import Applied, apply, check_optimizer, combined, digest, digests, listed, local_part
from .errors import HFTError
from .in_memory import parameters, plain_name, tied_names
from .plan import Plan, StrPath, write_whole
from .traps import refuse_trainer


class HFTCallback(TrainerCallback):
    """Trains in rounds, each of which updates the tensors of a plan and leaves all others bit-identical.

    Give it to a trainer at its construction, ``Trainer(..., callbacks=[HFTCallback(rounds=3)])``; to a trainer that exists
    already by :meth:`attach`. The steps of the run are divided evenly among the rounds. A round begins with a new plan, a new
    optimizer and a learning rate schedule of its own, as in ``hft-surgery train``.

    Of round N, ``OUTPUT_DIR/rounds/N/plan.json`` is the plan and ``metrics.json`` what was proved. Every checkpoint that the
    trainer saves has an ``hft_surgery.json``, from which ``diff --plan`` and ``reset --plan`` read the plan, and from which a run
    goes on in the round where it stopped.

    Args:
        rounds: number of rounds. More than one needs a single process; :func:`hft_surgery.run_rounds` is the form for several.
        plans: one plan (or file) for each round, or one for all; None draws one for each round.
        ratio: the share that is trainable, for the draw, as are the following.
        strategy: as in :meth:`Plan.draw`.
        seed: the seed of the draw.
        first_round: the number of the first round's draw.
        strict: a trainable tensor that does not move in the first step is an error, not a warning.
        draw: further arguments of :meth:`Plan.draw`.
    """

    def __init__(
        self,
        rounds: int = 1,
        *,
        plans: Optional[Union[Plan, StrPath, Sequence[Union[Plan, StrPath]]]] = None,
        ratio: float = 0.5,
        strategy: str = "category",
        seed: int = 0,
        first_round: int = 0,
        strict: bool = False,
        draw: Optional[dict[str, Any]] = None,
    ) -> None:
        if rounds < 1:
            raise HFTError(f"rounds: got {rounds}, expected 1 or more")
        self.rounds = rounds
        self.strict = strict
        self._draw = {"ratio": ratio, "strategy": strategy, "seed": seed, **(draw or {})}
        self._first_round = first_round
        self._plans = _plans(plans, rounds)
        self._trainer: Optional[Any] = None
        self._resume_from: Optional[Path] = None
        self._round: Optional[int] = None
        self._applied: Optional[Applied] = None
        self._before: dict[str, str] = {}
        self._frozen_digest = ""
        self._to_check = False
        self._inputs: list[dict[str, Any]] = []

    @property
    def plan(self) -> Plan:
        """The plan of the current round.

        Raises:
            HFTError: no trainer has been constructed with this callback.
        """
        if self._trainer is None or self._plans is None:
            raise HFTError("HFTCallback has no trainer", "give it to a trainer by callbacks=[...] or attach()")
        return self._plans[self._round or 0]

    @property
    def plans(self) -> list[Plan]:
        """The plans of all rounds; empty before a trainer has been constructed with this callback."""
        return list(self._plans or [])

    def attach(self, trainer: Trainer) -> HFTCallback:
        """Applies the first plan to the model of a trainer that has not begun, and takes its place in its callbacks.

        Raises:
            HFTError: as :func:`hft_surgery.apply`; what cannot be trained by rounds in this trainer.
        """
        if self._trainer is trainer:
            return self
        if self._trainer is not None:
            raise HFTError("HFTCallback has a trainer already", "make one for each trainer")
        refuse_trainer(trainer, self.rounds)
        if self._plans is None:
            draws = range(self._first_round, self._first_round + self.rounds)
            self._plans = [Plan.draw(trainer.model, round=number, **self._draw) for number in draws]
        self._applied = apply(_model(trainer), self._plans[0])
        for plan in self._plans[1:]:
            # A fault in a later plan shows now, not after hours.
            apply(_model(trainer), plan)
        apply(_model(trainer), self._plans[0])
        self._round = 0
        self._trainer = trainer
        self._inputs = provenance.describe_input(getattr(_model(trainer).config, "_name_or_path", None))
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        self._follow(trainer)
        return self

    def _follow(self, trainer: Any) -> None:
        """Takes part where a trainer has no event: before its optimizer and schedule are made, before and after a model is
        saved."""
        train, create_optimizer = trainer.train, trainer.create_optimizer
        create_scheduler, save_model, write_model = trainer.create_scheduler, trainer.save_model, trainer._save

        @wraps(train)
        def train_from(resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
            checkpoint = resume_from_checkpoint or None
            if checkpoint is True:
                checkpoint = get_last_checkpoint(trainer.args.output_dir)
            self._resume_from = Path(checkpoint) if checkpoint else None
            return train(resume_from_checkpoint, *args, **kwargs)

        @wraps(create_optimizer)
        def create_optimizer_of_round(*args: Any, **kwargs: Any) -> Any:
            self._begin_round(trainer, self._round_at(trainer.state))
            optimizer = create_optimizer(*args, **kwargs)
            groups = getattr(optimizer, "param_groups", None)
            if groups is not None:
                groups[:] = [group for group in groups if group["params"]]
            check_optimizer(_model(trainer), optimizer, self.plan)
            return optimizer

        @wraps(create_scheduler)
        def create_scheduler_of_round(num_training_steps: int, *args: Any, **kwargs: Any) -> Any:
            start, end = self._steps(self._round or 0, num_training_steps)
            standing = trainer.lr_scheduler
            if type(standing).__name__ != "DummyScheduler":
                return create_scheduler(end - start, *args, **kwargs)
            # For an optimizer of DeepSpeed's own, a copy of the trainer without a schedule is asked; it has these methods.
            trainer.lr_scheduler = None
            try:
                return create_scheduler(end - start, *args, **kwargs)
            finally:
                trainer.lr_scheduler = standing

        @wraps(save_model)
        def save_model_with_plan(output_dir: Optional[str] = None, *args: Any, **kwargs: Any) -> None:
            save_model(output_dir, *args, **kwargs)
            self.write_provenance(output_dir or trainer.args.output_dir)

        @wraps(write_model)
        def write_without_copies(output_dir: Optional[str] = None, state_dict: Optional[dict[str, Any]] = None) -> None:
            # What engines gather has every tied tensor under each of its names, as copies that save_pretrained does not
            # take for one.
            copies = tied_names(_model(trainer)) if state_dict else set()
            if state_dict and copies:
                state_dict = {name: tensor for name, tensor in state_dict.items() if plain_name(name) not in copies}
            write_model(output_dir, state_dict)

        trainer.train = train_from
        trainer.create_optimizer = create_optimizer_of_round
        trainer.create_scheduler = create_scheduler_of_round
        trainer.save_model = save_model_with_plan
        trainer._save = write_without_copies

    def write_provenance(self, directory: StrPath) -> None:
        """Writes ``hft_surgery.json`` into a checkpoint, as is done for all that the trainer saves. Use it after a
        ``model.save_pretrained`` of your own."""
        trainer, path = self._trainer, Path(directory)
        if trainer is None or not trainer.args.should_save or not path.is_dir():
            return
        options = {
            "trainer": type(trainer).__name__,
            "rounds": self.rounds,
            "round": self._round,
            "step": trainer.state.global_step,
            "learning_rate": trainer.args.learning_rate,
            "frozen_blake2b": self._frozen_digest or None,
            "processes": trainer.accelerator.num_processes,
        }
        provenance.write(path, self.plan, options, self._inputs)

    def _steps(self, number: int, steps: int) -> tuple[int, int]:
        """First step of a round, and the first one after it, of ``steps`` in all."""
        return steps * number // self.rounds, steps * (number + 1) // self.rounds

    def _round_at(self, state: Any) -> int:
        """The round that the next step belongs to."""
        if state.max_steps < 1:  # no training has begun
            return 0
        ends = [self._steps(number, state.max_steps)[1] for number in range(self.rounds)]
        return next((number for number, end in enumerate(ends) if state.global_step < end), self.rounds - 1)

    def _begin_round(self, trainer: Any, number: int) -> None:
        if 0 < trainer.state.max_steps < self.rounds:
            raise HFTError(f"rounds: got {self.rounds} for {trainer.state.max_steps} steps, expected one step or more for each")
        if number != self._round:
            self._round = number
            trainer.optimizer = None
            self._applied = apply(_model(trainer), self.plan)
        if self._resume_from is not None:
            self._check_resumed(self._resume_from)

    def _check_resumed(self, checkpoint: Path) -> None:
        """Refuses to go on under another plan than that of the checkpoint."""
        there = provenance.read(checkpoint)
        options = there.get("options", {})
        hint = "resume with the rounds, ratio, strategy, seed and plans that the run was started with"
        place = {"rounds": self.rounds, "round": self._round}
        for name, here in place.items():
            if options.get(name) != here:
                raise HFTError(f"{checkpoint}: saved with {name} {options.get(name)}, expected {here}", hint)
        if there.get("plan") != self.plan.to_dict():
            raise HFTError(f"{checkpoint}: saved under another plan than that of round {self._round} here", hint)

    # Events of the trainer.

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attaches to the trainer that is being constructed, before it wraps the model or makes an optimizer."""
        # A callback is not told its trainer; it stands on the stack, as this is called by its constructor.
        frame = sys._getframe(1)
        while frame is not None and not (isinstance(frame.f_locals.get("self"), Trainer)):
            frame = frame.f_back  # type: ignore[assignment]
        if frame is not None:
            self.attach(frame.f_locals["self"])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes the digests that the frozen tensors are compared with."""
        if self._trainer is None:
            raise HFTError("HFTCallback was added to a trainer that exists", "use HFTCallback(...).attach(trainer)")
        self._start_proof()
        if self._resume_from is not None:
            options = provenance.read(self._resume_from)["options"]
            same_split = options.get("processes") == self._trainer.accelerator.num_processes == 1
            recorded = options.get("frozen_blake2b")
            if same_split and recorded is not None and recorded != self._frozen_digest:
                raise HFTError(f"{self._resume_from}: its frozen tensors have changed since the round began")
            self._resume_from = None

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the first step of a round that learns: every trainable tensor moved, nothing else did."""
        if not self._to_check:
            return
        trainer = self._trainer
        rates = [group["lr"] for group in trainer.optimizer.param_groups]  # type: ignore[union-attr]
        if max(map(float, rates), default=0.0) == 0.0:
            return  # the first step of a warm-up moves nothing
        if getattr(trainer.accelerator, "optimizer_step_was_skipped", False):  # type: ignore[union-attr]
            return
        self._to_check = False
        self._check_frozen()
        unmoved = self._unmoved()
        if unmoved and len(unmoved) == len(self._held()):
            raise HFTError(
                "no trainable tensor moved in the first step",
                "reentrant gradient checkpointing with frozen embeddings does this: use_reentrant=False",
            )
        if unmoved:
            text = f"trainable, but not moved by the first step of round {self._round}: {listed(unmoved)}"
            if self.strict:
                raise HFTError(
                    text, "a learning rate below the precision of the weights does this, or tensors that the loss misses"
                )
            warnings.warn(text, stacklevel=2)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Where a round ends before the last one: its proof, then the next plan with a new optimizer and schedule."""
        number = self._round or 0
        if number + 1 >= self.rounds or state.global_step < self._steps(number, state.max_steps)[1]:
            return
        self._finish_round(state)
        trainer: Any = self._trainer
        before = trainer.optimizer
        trainer.accelerator._optimizers = [o for o in trainer.accelerator._optimizers if o is not before]
        trainer.optimizer = trainer.lr_scheduler = None
        trainer.create_optimizer()
        trainer.optimizer = trainer.accelerator.prepare(trainer.optimizer)
        trainer.create_scheduler(state.max_steps)
        trainer.callback_handler.optimizer = trainer.optimizer
        trainer.callback_handler.lr_scheduler = trainer.lr_scheduler
        self._start_proof()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The plan beside a checkpoint whose shards the engine wrote itself."""
        self.write_provenance(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The proof of the last round."""
        self._finish_round(state)

    # The proof.

    def _names(self, trainable: bool) -> list[str]:
        on = set(self.plan.trainable)
        tied = {names[0]: names for names in (self._applied.tied if self._applied else ())}
        return [name for name in self._before if bool(on & set(tied.get(name, (name,)))) == trainable]

    def _start_proof(self) -> None:
        self._before = digests(_model(self._trainer))
        self._frozen_digest = combined((name, self._before[name]) for name in self._names(False))
        self._to_check = True
        self._write("plan.json", self.plan.text)

    def _check_frozen(self) -> None:
        named = parameters(_model(self._trainer))
        moved = [name for name in self._names(False) if digest(named[name]) != self._before[name]]
        if moved:
            raise HFTError(f"frozen by the plan of round {self._round}, but changed by the trainer: {listed(moved)}")

    def _held(self) -> list[str]:
        """The trainable tensors of which this process holds something: a shard of a small tensor may be empty."""
        named = parameters(_model(self._trainer))
        return [name for name in self._names(True) if local_part(named[name]).numel() > 0]

    def _unmoved(self) -> list[str]:
        named = parameters(_model(self._trainer))
        return [name for name in self._held() if digest(named[name]) == self._before[name]]

    def _finish_round(self, state: Any) -> None:
        self._check_frozen()
        start, _ = self._steps(self._round or 0, state.max_steps)
        metrics = {
            "round": self._round,
            "steps": state.global_step - start,
            "trainable_parameters": self._applied.trainable_parameters if self._applied else None,
            "frozen_parameters": self._applied.frozen_parameters if self._applied else None,
            "frozen_bit_identical": True,
            "unmoved": self._unmoved(),
        }
        self._write("metrics.json", json.dumps(metrics, indent=2) + "\n")

    def _write(self, name: str, text: str) -> None:
        trainer = self._trainer
        if trainer is not None and trainer.is_world_process_zero():
            write_whole(Path(trainer.args.output_dir) / "rounds" / str(self._round) / name, text)


def _model(trainer: Any) -> Any:
    return trainer.model


def _plans(plans: Any, rounds: int) -> Optional[list[Plan]]:
    if plans is None:
        return None
    one = isinstance(plans, (Plan, str)) or hasattr(plans, "__fspath__")
    given = [plans] * rounds if one else list(plans)
    if len(given) != rounds:
        raise HFTError(f"plans: got {len(given)}, expected one, or one for each of {rounds} rounds")
    return [plan if isinstance(plan, Plan) else Plan.load(plan) for plan in given]
