"""`shoestring launch`: carry a run out here in the background, on a host, in a cloud, or by a service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BadInput, BudgetStopped, Interrupted, LaunchError, ModelError, ShoestringError
from ..launch import register
from ..launch.backend import Backend, Order, backend, parse_place
from ..launch.needs import variables
from ..launch.records import ENDED, Expense, Launch, Quote, Status
from ..launch.watch import billed_usd, refresh
from ..launch.watch import keep as keep_seen
from ..records import Estimate, to_json
from ..secrets import masked, without_secrets
from ..units import SECONDS_PER_HOUR, duration, usd
from .output import emit, say, warn
from .running import execute, open_run
from .tables import table, time_span, usd_span

if TYPE_CHECKING:
    from ..config import RunConfig
    from ..market.options import Option
    from ..recipe import Run

MODES = ("attach", "status", "logs", "stop", "dry-run", "detach")


def command(
    target: str, on: str | None, modes: Sequence[str], preempt: str | None, runs_dir: Path, is_json: bool
) -> int:
    """Launch, or look after the latest launch of a run. modes: those asked for, of MODES."""
    if len(modes) > 1:
        raise BadInput(f"--{modes[0]} and --{modes[1]} do not go together; give one of them")
    mode = modes[0] if modes else ""
    if mode in ("attach", "status", "logs", "stop"):
        if on is not None or preempt is not None:
            raise BadInput(f"--{mode} is about a launch that there is; leave out {'--on' if on else '--preempt'}")
        return _existing(_find(target, runs_dir), mode, is_json)
    run = open_run(target, runs_dir)
    place, where = parse_place(on or run.config.launch.place or "local")
    if preempt is not None and place != "local":
        raise BadInput(f"--preempt simulates a spot machine on this one; with --on {place} there are real ones")
    chosen = backend(place)
    if mode != "dry-run":
        _refuse_second(run.folder)
    if getattr(chosen, "needs_rows", False):  # curated and planned here, and sent
        execute(run, "plan")
    order = _order(run, place, where, preempt)
    quote = chosen.quote(order)
    if mode == "dry-run":
        return _dry_run(order, place, quote, is_json)
    if not is_json:
        _show_quote(place, order, quote)
    _hold_against_budget(order, quote)
    with register.alone(run.folder):
        _refuse_second(run.folder)  # another client may have been quicker
        left_usd = _hold_against_budget(order, quote)  # and have paid something
        launch = register.save(_launch(run.config.name, place, order, quote, left_usd))
    launch = _start(chosen, launch)
    if mode == "detach":
        return _told(launch, Status("running"), is_json, f"launched: {launch.id}. To follow it: {_again(launch)}")
    return _follow(chosen, launch, is_json)


# ---- what is launched -----------------------------------------------------------------------


def _order(run: Run, place: str, where: str, preempt: str | None) -> Order:
    from ..stages.choosing import keep, weigh
    from ..stages.told import told

    if run.run_file is None:
        raise BadInput(f"{run.folder} is a run folder; give its run file, which is what is carried to the machine")
    config = run.config
    options = {**config.launch.model_dump(exclude_defaults=True), **({"preempt": preempt} if preempt else {})}
    work_s, offers = None, []
    try:
        weighed = weigh(run)
        answer = told(weighed, config.name)
        offers = answer["options"]
        keep(run, answer)  # the plan that this launch follows
        kind = "here" if place == "local" else "rented"
        if place != "ssh" or config.market.device:  # what the host is, nobody has said
            out = [one.option for one in weighed.choice.discarded if one.option is not None]  # too dear, but told
            every = [*weighed.choice.options, *sorted(out, key=lambda option: option.usd.value)]
            work_s = _work_s([option for option in every if option.kind == kind], config)
    except ModelError as error:
        warn(f"note: nothing is predicted: {error}")
    return Order(
        config=config,
        run_file=run.run_file,
        run_folder=run.folder.resolve(),
        target=where,
        budget_usd=config.budget_usd,
        deadline_h=config.deadline_h,
        work_s=work_s,
        offer=next((offer for offer in offers if offer["kind"] == "rented"), None),
        offers=offers,
        options=options,
    )


def _work_s(options: Sequence[Option], config: RunConfig) -> Estimate | None:
    """Machine seconds: of the cheapest model, up to those of the whole ladder, should each rung be trained."""
    wanted = config.market.device
    cheapest: dict[str, Option] = {}
    for option in options:
        if option.work is not None and (option.kind == "here" or not wanted or option.gpu == wanted):
            cheapest.setdefault(option.model, option)
    if not cheapest:
        return None
    hours = [option.work.hours for option in cheapest.values() if option.work is not None]
    return Estimate(hours[0].value, hours[0].low, sum(h.high for h in hours)).scaled(SECONDS_PER_HOUR)


def _launch(name: str, place: str, order: Order, quote: Quote, left_usd: float) -> Launch:
    price = quote.price_usd_per_hour
    return Launch(
        id=register.new_id(name),
        backend=place,
        target=order.target,
        run_file=str(order.run_file),
        run_folder=str(order.run_folder),
        started_at=register.now(),
        basis=quote.basis,
        price_usd_per_hour=price,
        budget_usd=left_usd,
        deadline_h=order.deadline_h,
        limit_s=left_usd / price * SECONDS_PER_HOUR if price else None,
        predicted=quote.expenses,
        options=dict(order.options),
    )


def _refuse_second(folder: Path) -> None:
    """Raises: BadInput where a launch of this run goes on already: nothing is paid twice."""
    earlier = register.of_folder(folder)
    if earlier is None:
        return
    is_unknown = earlier.state == "lost" and not earlier.handle  # what became of its start was never told
    if earlier.state in ENDED and not is_unknown:
        return
    try:
        earlier = refresh(earlier)[0]
    except LaunchError as error:
        if is_unknown:
            warn(f"note: whether {earlier.id} was started on {earlier.backend} still cannot be asked")
            return
        raise LaunchError(
            f"whether {earlier.id} on {earlier.backend} still goes on cannot be asked ({without_secrets(str(error))}); "
            f"when its machine is gone: shoestring launch {earlier.id} --stop, then launch again"
        ) from error
    if earlier.state not in ENDED:
        raise BadInput(
            f"this run is launched already ({earlier.id} on {earlier.backend}, {earlier.state}); follow it with "
            f"{_again(earlier)}, or end it with shoestring launch {earlier.id} --stop"
        )


def _hold_against_budget(order: Order, quote: Quote) -> float:
    """Dollars left for this launch: the budget is of all launches of the run together.

    Machines go on where earlier ones ended, so what the whole work is expected to cost is held against the whole
    budget; a service is paid anew. Raises: BudgetStopped where more is expected than may be spent or nothing is left,
    BadInput where nobody knows what a job costs.
    """
    before_usd = billed_usd(order.run_folder)
    left_usd = order.budget_usd - before_usd
    of_budget = f"budget_usd is {usd(order.budget_usd)}"
    if before_usd:
        of_budget += f", and earlier launches of this run cost {usd(before_usd)}"
    if before_usd and left_usd <= 0:
        raise BudgetStopped(f"{of_budget}: nothing was started; raise the budget")
    parts = [expense.predicted_usd for expense in quote.expenses]
    if None in parts:
        if quote.basis == "job" and not quote.is_held_by_place:
            raise BadInput(f"what this costs is not known, so it cannot be held against the budget: {quote.notes}")
        return left_usd
    expected = sum(part.value for part in parts if part)
    if expected > (left_usd if quote.basis == "job" else order.budget_usd):
        raise BudgetStopped(
            f"{usd(expected)} expected, {of_budget}: nothing was started; raise the budget, "
            f"or look for a cheaper place with shoestring plan {order.run_file}"
        )
    return left_usd


def _start(place: Backend, launch: Launch) -> Launch:
    """Start it; where that fails for good the launch has ended, else --attach goes on with it.

    Raises: what the backend raises, Interrupted for Ctrl-C.
    """
    try:
        handle = place.start(launch, warn)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted while it was started; to go on with it: {_again(launch)}") from None
    except ShoestringError as error:
        note = without_secrets(str(error))
        may_be_there = isinstance(error, LaunchError) and getattr(place, "can_start_again", False)
        if may_be_there:
            register.save(replace(launch, note=note))
            warn(f"to go on with it: {_again(launch)}; to give it up: shoestring launch {launch.id} --stop")
        else:
            launch = register.save(replace(launch, state="failed", ended_at=register.now(), note=note))
            if isinstance(error, LaunchError):
                _look_whether_it_started(place, launch)
        raise
    return register.save(replace(launch, handle=handle, state="running"))


def _look_whether_it_started(place: Backend, launch: Launch) -> None:
    """An order whose answer was lost may have been taken all the same, and its machine bills."""
    try:
        status = place.status(launch)
    except ShoestringError as error:
        register.save(replace(launch, state="lost"))
        said = without_secrets(str(error))
        warn(f"whether it was started all the same cannot be asked ({said}); later: {_ask(launch)}")
        return
    if status.state not in ENDED:
        keep_seen(launch, status)
        warn(f"it is there all the same: {_again(launch)}; to end it: shoestring launch {launch.id} --stop")


# ---- what is there --------------------------------------------------------------------------


def _find(target: str, runs_dir: Path) -> Launch:
    """The latest launch of a run file, run folder or run, or the one of an id, from any folder. Raises: BadInput."""
    from ..config import load_run_file

    path = Path(target)
    folder = None
    if path.is_file():
        folder = runs_dir / load_run_file(path).name
    elif path.is_dir():
        folder = path
    elif (runs_dir / target).is_dir():
        folder = runs_dir / target
    launch = register.of_folder(folder) if folder is not None else None
    if launch is None and folder is not None and (path.is_file() or path.is_dir()):
        raise BadInput(f"{target} was not launched; to launch it: shoestring launch {target}")
    return launch or register.find(target)


def _existing(launch: Launch, mode: str, is_json: bool) -> int:
    place = backend(launch.backend)
    if mode == "attach":
        return _follow(place, _started(place, launch), is_json)
    if mode == "logs":
        lines = list(masked(place.logs(launch, follow=False), _names(launch)))
        if is_json:
            emit({"launch": to_json(launch), "lines": lines})
        else:
            for line in lines:
                say(line)
        return 0
    if mode == "stop":
        launch, status = refresh(launch) if launch.state in ENDED else keep_seen(launch, place.stop(launch))
        try:
            place.fetch(launch, warn)
        except LaunchError as error:  # it has ended all the same
            warn(f"note: its results are not here: {without_secrets(str(error))}; {_again(launch)} brings them")
        return _told(launch, status, is_json)
    return _told(*refresh(launch), is_json)


def _started(place: Backend, launch: Launch) -> Launch:
    """The launch, its start gone on with where that was cut short and the place says that this starts nothing twice."""
    if launch.handle or launch.state in ENDED or not getattr(place, "can_start_again", False):
        return launch
    return _start(place, launch)


def _follow(place: Backend, launch: Launch, is_json: bool) -> int:
    """Show its output until it ends, bring the results, and say what it came to."""
    try:
        if launch.state not in ENDED:
            for line in masked(place.logs(launch, follow=True), _names(launch)):
                warn(line)
        launch, status = refresh(launch)
        if launch.state in ENDED:
            place.fetch(launch, warn)
    except KeyboardInterrupt:
        raise Interrupted(f"detached; {launch.id} goes on. To follow it again: {_again(launch)}") from None
    _told(launch, status, is_json)
    return exit_code(status)


def exit_code(status: Status) -> int:
    """That of the run where it ended by itself; of a budget that is spent, or of an interruption, where it did not."""
    if status.state == "done":
        return status.exit_code or 0
    if status.state == "stopped":
        is_spent = status.exit_code == BudgetStopped.exit_code or "budget" in status.note
        return BudgetStopped.exit_code if is_spent else Interrupted.exit_code
    return ShoestringError.exit_code


def _names(launch: Launch) -> list[str]:
    """Variables whose values are secret whatever they are called."""
    from ..config import load_run_file

    try:
        return variables(load_run_file(launch.run_file), launch.options)[0]
    except ShoestringError:  # the run file is gone: those that are known by their name are masked all the same
        return []


def _ask(launch: Launch) -> str:
    return f"shoestring launch {launch.id} --status"


def _again(launch: Launch) -> str:
    return f"shoestring launch {launch.id} --attach"


# ---- what a person reads --------------------------------------------------------------------


def _dry_run(order: Order, place: str, quote: Quote, is_json: bool) -> int:
    shown = without_secrets(quote.shown)
    if is_json:
        told = {**to_json(quote), "shown": shown}
        emit({"place": place, "target": order.target, "budget_usd": order.budget_usd, "quote": told})
        return 0
    _show_quote(place, order, quote)
    say(shown)
    return 0


def _show_quote(place: str, order: Order, quote: Quote) -> None:
    where = f"{place}:{order.target}" if order.target else place
    price = "" if quote.price_usd_per_hour is None else f", {usd(quote.price_usd_per_hour)} an hour"
    say(f"{order.config.name} on {where}{price}; ends at the budget of {usd(order.budget_usd)}")
    say(_bill(quote.expenses))
    for note in quote.notes:
        say(f"note: {note}")


def _bill(expenses: Sequence[Expense]) -> str:
    """Expected beside actual, item by item."""
    is_over = any(expense.actual_usd is not None or expense.actual_s is not None for expense in expenses)
    rows = []
    for e in expenses:
        predicted = usd_span(to_json(e.predicted_usd)) if e.predicted_usd else "not known"
        predicted_s = time_span(to_json(e.predicted_s)) if e.predicted_s else ""
        actual = "" if e.actual_usd is None else usd(e.actual_usd)
        actual_s = "" if e.actual_s is None else duration(e.actual_s)
        rows.append((e.item, predicted, predicted_s, *((actual, actual_s) if is_over else ())))
    heads = ("item", "predicted", "", *(("actual", "") if is_over else ()))
    return table(heads, rows)


def _told(launch: Launch, status: Status, is_json: bool, last: str = "") -> int:
    """The launch, how it stands, its bill."""
    if is_json:
        emit({"launch": to_json(launch), "status": {**to_json(status), "cost_usd": status.cost_usd}})
        return 0
    since = f" since {status.since}" if status.since else ""
    say(f"{launch.id} on {launch.backend}{f':{launch.target}' if launch.target else ''}: {status.state}{since}")
    if status.note:
        say(f"  {status.note}")
    if status.bill:
        say(_bill(status.bill))
    if last:
        say(last)
    return 0
