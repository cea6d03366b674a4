"""Everything that a training depends on, in one file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from npconv.nn import files, init
from npconv.nn.arguments import Array
from npconv.nn.module import Module, joined_name
from npconv.nn.optim import Optimizer
from npconv.nn.schedule import LRScheduler

_KEY = "npconv training"


class Checkpoint:
    """A file with the network, the optimiser, the schedule, generators of random numbers, and where a training stands.

    Parameters
    ----------
    path : Path
    of_what : dict
        What must be the same for a training to be continued.
    model, optimizer, schedule
        Whose state is written and read. Generators of random numbers are found among the attributes of all modules.
    """

    def __init__(
        self, path: Path, of_what: dict[str, Any], model: Module, optimizer: Optimizer, schedule: LRScheduler | None
    ) -> None:
        files.kind_of(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {path.parent} for the checkpoint {path.name}")
        self.path, self.of_what, self.model = path, of_what, model
        self._parts: dict[str, Any] = {"model": model, "optimizer": optimizer}
        if schedule is not None:
            self._parts["schedule"] = schedule

    def write(self, state: dict[str, Any], best: dict[str, Array]) -> None:
        """Write everything: the parts, `state`, which JSON can hold, and the best weights so far."""
        arrays = {
            f"{part}/{name}": value
            for part, values in [*((p, owner.state_dict()) for p, owner in self._parts.items()), ("best", best)]
            for name, value in values.items()
        }
        states = {name: init.generator_state(rng) for name, rng in generators(self.model)}
        note = {"of what": self.of_what, "state": state, "generators": states}
        files.write(self.path, arrays, {_KEY: json.dumps(note)})

    def read(self) -> tuple[dict[str, Any], dict[str, Array]] | None:
        """Bring all parts where they were, and return `state` and the best weights; None if there is no file.

        Raises
        ------
        ValueError, TypeError
            If the file is damaged or of another training; nothing is changed then.
        """
        if not self.path.exists():
            return None
        arrays, metadata = files.read(self.path)
        note = self._note(metadata)
        values: dict[str, dict[str, Array]] = {part: {} for part in (*self._parts, "best")}
        for name, value in arrays.items():
            part, _, rest = name.partition("/")
            values.setdefault(part, {})[rest] = value
        before = {part: owner.state_dict() for part, owner in self._parts.items()}
        try:
            for part, owner in self._parts.items():
                owner.load_state_dict(values[part])
            self._restore_generators(note["generators"])
        except (ValueError, TypeError) as error:
            for part, owner in self._parts.items():
                owner.load_state_dict(before[part])
            raise type(error)(f"checkpoint {self.path}: {error}") from None
        return note["state"], values["best"]

    def _note(self, metadata: dict[str, str]) -> dict[str, Any]:
        try:
            note: dict[str, Any] = json.loads(metadata[_KEY])
            known = note["of what"]
            state, _ = note["state"], note["generators"]
            if not {"history", "tally", "batch"} <= set(state):
                raise KeyError("state")
        except (KeyError, ValueError, TypeError):
            raise ValueError(f"{self.path} is not the checkpoint of a training") from None
        differences = [
            f"{name} was {known.get(name)}, now {value}"
            for name, value in self.of_what.items()
            if known.get(name) != value
        ]
        if differences:
            raise ValueError(
                f"checkpoint {self.path} is of another training: {'; '.join(differences)}. Remove it to start anew"
            )
        return note

    def _restore_generators(self, states: dict[str, Any]) -> None:
        known = dict(generators(self.model))
        if known.keys() != states.keys():
            raise ValueError(f"it has generators {sorted(states)}, the network has {sorted(known)}")
        # Tried first, so that one that does not fit leaves all as they are.
        for name, rng in known.items():
            before = init.generator_state(rng)
            init.restore_generator(rng, states[name])
            init.restore_generator(rng, before)
        for name, rng in known.items():
            init.restore_generator(rng, states[name])


def generators(model: Module) -> Iterator[tuple[str, Any]]:
    """All generators of random numbers that layers hold, one that is shared only once."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if init.is_generator(value) and id(value) not in seen:
                seen.add(id(value))
                yield joined_name(prefix, name), value
