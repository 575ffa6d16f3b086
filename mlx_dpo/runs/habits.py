"""Settings of other trainers, their names and values turned into those of a run.

A setting that would change what is learned and has no counterpart is refused; one that would not
is left unused, with a note.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UsageError
from mlx_dpo.runs.foreign import (
    AGREES,
    DONE,
    INSTEAD,
    MEANS,
    NOTHING,
    OF_BATCHES,
    OF_LLAMA_FACTORY,
    OF_LORA,
    ON,
    RANKS,
    REFUSED,
    REFUSED_SWITCHES,
    SAME,
    SECTIONS,
    UNUSED,
    UNUSED_SWITCHES,
    WORDS,
)


def ours(
    given: Mapping[str, Any], known: Collection[str], spelled: Callable[[str], str] = str
) -> tuple[dict[str, Any], list[str]]:
    """Settings by the names and values that they have here, and notes on what is not as given.

    A name that no trainer has stays as it is.

    Args:
        given: Settings with underscores in their names; values are of a config file, or text.
        known: Names of the settings here.
        spelled: How a setting is written where the names stood.

    Raises:
        UsageError: If some would change what is learned and have no counterpart; it names all. Or
            if a switch is neither on nor off.
    """
    flat, notes = _in_updates(_settled(dict(_flat(given, known))), spelled)
    _check_data(flat, spelled)
    settings: dict[str, Any] = {}
    meant: dict[str, Any] = {} if given.keys().isdisjoint(OF_LORA) else {"method": "lora"}
    unused, refused = [], []
    for name, value in flat.items():
        if name in known or name in SAME:
            key, here = SAME.get(name, name), _value(SAME.get(name, name), value, spelled(name))
            if here is not None and key in settings:
                raise UsageError(f"{spelled(name)}: {spelled(key)} is given twice")
            settings |= {} if here is None else {key: here}
        elif name in MEANS:
            meant |= dict([MEANS[name]]) if _is_on(spelled(name), value) else {}
        elif not is_foreign(name):
            settings[name] = value
        elif value not in NOTHING and name not in DONE:
            if name not in UNUSED and _one(value) not in AGREES.get(name, ()):
                refused.append(name)
            elif name in UNUSED or name in INSTEAD:
                unused.append(name)
    if refused:
        raise UsageError("; ".join(_told(refused, REFUSED, spelled)))
    left = "; ".join(_told(unused, INSTEAD, spelled))
    return meant | settings, [*([f"not used here: {left}"] if left else []), *notes]


def is_switch(name: str) -> bool:
    """Whether no value follows this name of another trainer on a command line."""
    return any(name in names for names in (MEANS, DONE, UNUSED_SWITCHES, REFUSED_SWITCHES))


def counts_batches(names: Collection[str]) -> list[str]:
    """Those of the names that mlx-lm counts in batches."""
    found = [name for name in OF_BATCHES if name in names]
    return [] if found == ["save_every"] else found


def accumulation(settings: Mapping[str, Any]) -> Any:
    """How many batches make an update, as it was given; None where it was not."""
    found = (value for name, value in settings.items() if _key(name) == "grad_accumulation")
    return next(found, None)


def is_foreign(name: str) -> bool:
    """Whether a name, with underscores, is known from another trainer."""
    return any(name in names for names in (SAME, MEANS, DONE, UNUSED, REFUSED))


def _flat(given: Mapping[str, Any], known: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Settings without sections."""
    for name, value in given.items():
        if name in SECTIONS and isinstance(value, Mapping):
            names = SECTIONS[name]
            if name in ("lora", "lora_parameters") and "enabled" not in value:
                yield "use_lora", True
            below = {str(key).replace("-", "_"): each for key, each in value.items()}
            yield from _flat({names.get(key, key): each for key, each in below.items()}, known)
        elif name == "adapter" and value in ("lora", "qlora") and not Path(value).exists():
            yield "method", "lora"  # axolotl's word for it
        else:
            yield name, value


def _told(
    names: Sequence[str], texts: Mapping[str, str], spelled: Callable[[str], str]
) -> list[str]:
    """A note for each text, with all its names."""
    by_text: dict[str, list[str]] = {}
    for name in names:
        by_text.setdefault(texts.get(name, ""), []).append(spelled(name))
    told = []
    for text, of_text in by_text.items():
        here = re.sub(r"\{(\w+)\}", lambda found: spelled(found[1]), text)
        told.append(", ".join(of_text) + (f": {here}" if here else ""))
    return told


def _settled(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with alpha / r for these two, where both are numbers, and one length of the run."""
    if (settings.get("max_steps") or -1) not in (-1, "-1"):
        settings.pop("num_train_epochs", None)  # as in Hugging Face's trainer
        settings.pop("num_epochs", None)  # and in axolotl
    alpha = settings.get("lora_alpha")
    rank = next((settings[each] for each in ("lora_rank", *RANKS) if each in settings), None)
    try:
        scale = float(alpha) / float(rank)  # type: ignore[arg-type]
    except (TypeError, ValueError, ArithmeticError):
        return settings
    rest = {name: value for name, value in settings.items() if name != "lora_alpha"}
    return {"lora_scale": scale} | rest


def _in_updates(
    settings: dict[str, Any], spelled: Callable[[str], str]
) -> tuple[dict[str, Any], list[str]]:
    """Settings with updates for what mlx-lm counts in batches, and a note on them.

    Raises:
        UsageError: If the run's length is no whole number of updates.
    """
    batches = str(accumulation(settings))
    counted = {
        name: count
        for name in counts_batches(settings)
        if re.fullmatch(r"[1-9]\d{0,17}(\.0*)?", count := str(settings[name]))
    }
    if not counted or not re.fullmatch(r"[1-9]\d{0,8}", batches) or batches == "1":
        return settings, []
    why = f"mlx-lm counts batches, of which {batches} make a step here"
    size = int(batches)
    if int(float(counted.get("iters", 0))) % size:
        raise UsageError(
            f"{spelled('iters')} {counted['iters']}: {why}: give a multiple of {batches}, or steps "
            f"as {spelled('steps')}"
        )
    # How often something is shown or saved may be rounded: nothing that is learned depends on it.
    updates = {
        name: max(1, (int(float(count)) + size // 2) // size) for name, count in counted.items()
    }
    changed = (
        f"{spelled(name)} {counted[name]} is {spelled(OF_BATCHES[name])} {whole}"
        for name, whole in updates.items()
    )
    return settings | updates, [f"{', '.join(changed)}: {why}"]


def _check_data(settings: Mapping[str, Any], spelled: Callable[[str], str]) -> None:
    """Refuse the names that LLaMA-Factory has for files."""
    for name in ("dataset", "eval_dataset"):
        value = settings.get(name)
        if value and OF_LLAMA_FACTORY & settings.keys() and not Path(str(value)).exists():
            raise UsageError(
                f"{spelled(name)} {value!s:.60}: LLaMA-Factory looks such a name up in "
                f"dataset_info.json: give the file itself as {spelled(SAME[name])}, made by "
                "mlx_dpo data import"
            )


def _key(name: str) -> str:
    return SAME.get(name, name)


def _is_on(name: str, value: Any) -> bool:
    """Whether a switch is on.

    Raises:
        UsageError: If its value says neither.
    """
    if value in NOTHING:
        return False
    if value not in ON:
        raise UsageError(f"{name}: expected true or false, found {value!r:.60}")
    return True


def _one(value: Any) -> Any:
    """The only one of a list."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _value(key: str, value: Any, name: str) -> Any:
    """A value as it is said here; None leaves the setting out.

    Raises:
        UsageError: If a count is given by that name where a share is meant, or several data sets.
    """
    if key in ("data", "eval_data") and isinstance(value, Mapping | list):
        return _data_set(value)
    if key == "lora_modules" and isinstance(value, str | list):
        names = value if isinstance(value, list) else str(value).split(",")
        text = ",".join(str(name).strip().split(".")[-1] for name in names)
        return "all" if text == "all-linear" else text
    value = _one(value)
    if isinstance(value, str) and key in WORDS:
        return WORDS[key].get(value, value)
    if name != key == "eval_fraction" and re.fullmatch(r"[1-9]\d*(\.0*)?", str(value)):
        raise UsageError(f"{name} {value}: is a number of pairs: give their share of all, below 1")
    if key in ("epochs", "steps", "lora_layers", "batch_size"):
        if value in ("auto", -1, "-1"):
            return None
        if isinstance(value, float | str) and re.fullmatch(r"\d+\.0*", str(value)):
            return value.partition(".")[0] if isinstance(value, str) else int(value)
    return value


def _data_set(value: Any) -> Any:
    """The name of the only data set of a list or mixture.

    Raises:
        UsageError: If there are several.
    """
    if isinstance(value, Mapping) and "datasets" in value:
        return _data_set(value["datasets"])
    if isinstance(value, Mapping):
        value = [value] if value.keys() & {"path", "name", "id"} else [*value]
    names = [
        next((each[key] for key in ("path", "name", "id") if each.get(key)), None)
        if isinstance(each, Mapping)
        else each
        for each in value or []
    ]
    if len(names) != 1:
        raise UsageError(
            f"{', '.join(map(str, names)) or 'no data'}: one file of pairs is taken; mlx_dpo data "
            "import makes one of each data set, and mlx_dpo data merge one of all"
        )
    return names[0]
