"""The judge in a run: who may judge, what it costs, whom it is believed by; the scores come from evaluate/judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..config import EndpointConfig, JudgeConfig
from ..data.language import language
from ..data.safety import refusal
from ..decide.answers import AnswerFile
from ..decide.client import Client, headers_for
from ..errors import BadInput, BudgetStopped, ConfigError
from ..evaluate.judge.bias import ADVICE, Endpoint, probe, to_record
from ..evaluate.judge.checks import Senses, is_reference
from ..evaluate.judge.kin import against_others
from ..evaluate.judge.labels import LABELS, read_labels, with_labels
from ..evaluate.judge.scoring import METRIC, identity, judge_rows, with_judged
from ..evaluate.judge.verdicts import Judge
from ..files import read_json
from ..ladder import models_of, rungs_of
from ..records import ArmScore, Completion, Curated, Estimate, Progress, Prompt, arm_from_json, to_json
from ..runfolder import fingerprint, rung_name
from ..units import usd
from .common import named, price, rung_file, sample_rows, with_far_score

if TYPE_CHECKING:
    from ..recipe import Run

ITEM = "judge "  # how the ledger's items of judging begin
BIAS = "judge.json"  # record of the probes
JUDGED = "judged.json"  # arms judged on request, in a run whose metric is another
ARM_RECORDS = ("decide/*.json", "rungs/*/eval.json")  # one arm each
SENSES = Senses(language, refusal)
ROUNDING_USD = 1e-9
# Of a request: bytes a token (a cautious and a usual count), and tokens of a usual reply.
CAUTIOUS_BYTES, USUAL_BYTES = 2, 4
USUAL_REPLY_TOKENS = 60


def config_of(run: Run) -> JudgeConfig:
    """The section judge. Raises: BadInput where the run file has none."""
    if run.config.judge is None:
        raise BadInput(
            "the run file has no section judge; add one with endpoints (name, base_url, model, both prices), and "
            "criteria where 'is the answer right' is not the question: 'shoestring explain judge', docs/judge.md"
        )
    return run.config.judge


def require_judge(run: Run) -> None:
    """A judge of another family than what it judges, and its key, before anything is spent. Raises: ConfigError."""
    config = run.config.judge
    if config is None:
        return
    refuse_own_family(run, config)
    if run.config.task.metric == METRIC and run.run_folder.record("ladder.json") is None:
        for endpoint in config.endpoints:
            headers_for(endpoint)


def judged_models(run: Run) -> list[str]:
    """Models whose answers may come before the judge, and the teacher that wrote training rows."""
    endpoints = [endpoint.model for endpoint in run.config.decide.endpoints]
    teacher = run.config.synth.teacher
    return [*models_of(run.config), *endpoints, *([teacher.model] if teacher else [])]


def refuse_own_family(run: Run, config: JudgeConfig) -> None:
    """Raises: ConfigError for a judge that would judge its own kin, unless the run file allows it."""
    from .families import shared

    for endpoint in config.endpoints:
        kin = shared(endpoint.model, judged_models(run))
        if kin and not config.allow_same_family:
            model, family = kin[0]
            raise ConfigError(
                f"judge {endpoint.name!r} ({endpoint.model}) is of the family {family}, and so is {model}: a judge "
                "favours its own kin. Name a judge of another family; or take it all the same with "
                "judge.allow_same_family: true, which the report then says"
            )


def family_notes(run: Run, config: JudgeConfig) -> list[str]:
    """What is to be said of the judges' families: kin that was allowed, names that tell no family."""
    from .families import families_of, shared

    notes = []
    for endpoint in config.endpoints:
        kin = shared(endpoint.model, judged_models(run))
        if kin:
            notes.append(
                f"judge {endpoint.name} is of the family {kin[0][1]}, as is {kin[0][0]}: it may favour its own "
                "(judge.allow_same_family)"
            )
        if not families_of(endpoint.model):
            notes.append(
                f"the family of judge {endpoint.name} ({endpoint.model}) is not known, so kinship is unchecked"
            )
    return notes


# ---- asking, within the budget --------------------------------------------------------------


def judge_of(run: Run, endpoint: EndpointConfig, config: JudgeConfig) -> tuple[Judge, Endpoint]:
    """A judge that asks within the budget and enters in the ledger what new answers cost.

    Each judge has an answer file of its own; answers that a killed session left out of the ledger are entered first.
    """
    answers = AnswerFile(run.folder / "cache" / f"judge-{rung_name(endpoint.name)}.jsonl")
    client = Client(endpoint, answers, config.max_new_tokens, temperature=config.temperature)
    item = f"{ITEM}{endpoint.name}"

    def enter_since(before_usd: float, predicted: Estimate | None = None) -> None:
        new_usd = answers.spent_usd() - before_usd
        if new_usd > ROUNDING_USD:
            told = {"usd": predicted} if predicted else None
            run.ledger.record(item, stage="judge", predicted=told, actual={"usd": new_usd}, price_usd_per_hour=None)

    def ask(prompts: list[Prompt], progress: Progress) -> list[Completion]:
        enter_since(sum(e["actual"]["usd"] for e in run.ledger.entries() if e["item"] == item))
        predicted = cost_usd(endpoint, config, {prompt for prompt in prompts if not client.has(prompt)})
        check_budget(run, endpoint, predicted)
        before_usd = answers.spent_usd()
        try:
            return client.generate(prompts, named(progress, f"judge {endpoint.name}"))
        finally:
            enter_since(before_usd, predicted)

    connection = Endpoint(endpoint.timeout_s, lambda: dict(Counter(client.troubles)))
    return Judge(endpoint.name, endpoint.model, ask), connection


def cost_usd(endpoint: EndpointConfig, config: JudgeConfig, prompts: set[Prompt]) -> Estimate:
    """Dollars of so many requests: as usual, and with every reply at its longest."""
    num_bytes = sum(len(m.text.encode("utf-8", "surrogatepass")) + 8 for prompt in prompts for m in prompt)

    def usd_for(bytes_per_token: int, reply_tokens: int) -> float:
        asked = num_bytes / bytes_per_token * endpoint.usd_per_million_input_tokens
        return (asked + len(prompts) * reply_tokens * endpoint.usd_per_million_output_tokens) / 1e6

    usual = min(USUAL_REPLY_TOKENS, config.max_new_tokens)
    low, expected = usd_for(USUAL_BYTES + 1, usual // 3), usd_for(USUAL_BYTES, usual)
    return Estimate(expected, low, usd_for(CAUTIOUS_BYTES, config.max_new_tokens))


def check_budget(run: Run, endpoint: EndpointConfig, predicted: Estimate) -> None:
    """Refuse requests that could pass the budget. Raises: BudgetStopped."""
    left_usd = run.config.budget_usd - run.ledger.spent_usd(live_usd_per_hour=price(run).usd_per_hour)
    if predicted.high > left_usd:
        raise BudgetStopped(
            f"judging by {endpoint.name} could cost {usd(predicted.high)} more (about {usd(predicted.value)}), and of "
            f"the budget of {usd(run.config.budget_usd)} there is {usd(max(left_usd, 0))} left; raise budget_usd, or "
            "lower curate.max_eval_rows, decide.max_rows or judge.max_new_tokens: verdicts paid for are kept"
        )


# ---- the probes ---------------------------------------------------------------------------------


def biases(run: Run, curated: Curated) -> dict[str, Any]:
    """The record of each judge's probes, made where it is missing or of other judges. Raises: BudgetStopped."""
    config = config_of(run)
    rows = sample_rows(
        [row for row in curated.eval if is_reference(row.completion)], config.probe_rows, run.config.seed
    )
    inputs_print = fingerprint(identity(config), [row.id for row in rows], config.allow_same_family)
    found = run.run_folder.finished(BIAS, inputs_print)
    if found is None:
        notes = family_notes(run, config)
        notes += [] if rows else ["no held-out row probes the judges: none has a reference, or judge.probe_rows is 0"]
        judges = [judge_of(run, endpoint, config) for endpoint in config.endpoints] if rows else []
        probed = [probe(config, judge, endpoint, rows, refusal, run.progress) for judge, endpoint in judges]
        probed = against_others(config, [judge for judge, _ in judges], rows, probed, refusal, run.progress)
        found = {"biases": to_record(probed), "notes": notes, **identity(config)}
        run.run_folder.finish(BIAS, inputs_print, found, 0.0)
        for line in told(found):
            run.log(line)
    return dict(found)


def told(found: dict[str, Any]) -> list[str]:
    """What the probes found, a line a defect."""
    lines = [f"Judge: {note}" for note in found["notes"]]
    for bias in found["biases"]:
        lines += [f"Judge {bias['judge']}: {note}" for note in bias["notes"]]
        for defect in bias["named"]:
            words = defect["code"].replace("_", " ")
            lines.append(f"Judge {bias['judge']} {words}: {defect['evidence']}; {defect['advice']}")
        if not bias["named"] and not bias["notes"]:
            lines.append(f"Judge {bias['judge']}: no bias found on {bias['num_rows']} rows")
    return lines


def refuse_useless(config: JudgeConfig, found: dict[str, Any]) -> None:
    """Raises: BadInput for a judge whose scores would mean nothing.

    That is one that gives no verdicts, or cannot tell right from wrong where that is asked.
    """
    for bias in found["biases"]:
        useless = next((d["evidence"] for d in bias["named"] if d["code"] == "no_better_than_chance"), "")
        why = f"{useless}; that is no better than chance, and so would its scores be" if useless else ""
        if config.criteria:
            why = ""  # what is asked may have nothing to do with the right answer
        if 2 * bias["num_no_verdict"] > bias["num_asked"]:
            why = f"{bias['num_no_verdict']} of {bias['num_asked']} requests gave no verdict, so rows would have none"
        if why:
            raise BadInput(
                f"judge {bias['judge']!r} ({bias['model']}): {why}: {ADVICE['no_better_than_chance']}; "
                "judge.probe_rows: 0 believes it unasked"
            )


# ---- the arms -----------------------------------------------------------------------------------


def scored(run: Run, curated: Curated, arm: ArmScore) -> ArmScore:
    """The arm as the run's metric scores it, judged where that is the judge's, with its score on far rows."""
    arm = with_far_score(run, curated, arm)
    return judged(run, curated, arm) if run.config.task.metric == METRIC else arm


def judged(run: Run, curated: Curated, arm: ArmScore) -> ArmScore:
    """The arm by the judges' scores, calibrated where there are labels. Raises: BadInput, BudgetStopped."""
    config = config_of(run)
    refuse_useless(config, biases(run, curated))
    judges = [judge_of(run, endpoint, config)[0] for endpoint in config.endpoints]
    by_id = {example.id: example for example in curated.eval}
    examples = [by_id[row.id] for row in arm.rows]
    answers = [
        Completion(r.output, r.num_prompt_tokens, r.num_completion_tokens, r.latency_s, r.cost_usd) for r in arm.rows
    ]
    rows, asked = judge_rows(config, judges, SENSES, examples, answers, run.progress)
    return _labelled(run, with_judged(arm, rows, asked, config, seed=run.config.seed))


def _labelled(run: Run, arm: ArmScore) -> ArmScore:
    receipt = run.folder / "data" / "receipt.json"
    near = read_json(receipt).get("near_eval_ids") if receipt.is_file() else None
    near_ids = None if near is None else frozenset(near)
    return with_labels(arm, read_labels(run.folder / LABELS), config_of(run), near_ids, seed=run.config.seed)


def recalibrate(run: Run) -> list[ArmScore]:
    """Judged arms of the records, calibrated by the labels there are now; a record that changes is written anew.

    Its fingerprint stays: nothing is generated or judged again; a verdict over such an arm is taken anew.
    """
    if run.config.judge is None:
        return []
    arms = []
    kept = [path for pattern in ARM_RECORDS for path in sorted(run.folder.glob(pattern))]
    for name in ("decide.json", JUDGED, *(str(path.relative_to(run.folder)) for path in kept)):
        record = run.run_folder.record(name)
        if record is None:
            continue
        result = record["result"]
        held = [arm for arm in (result["arms"] if "arms" in result else [result["arm"]]) if arm is not None]
        read = [arm_from_json(arm) for arm in held]
        if not any(METRIC in arm.details for arm in read):
            continue
        fresh = [_labelled(run, arm) if METRIC in arm.details else arm for arm in read]
        if not name.startswith("decide/"):  # these are in decide.json too
            arms += [arm for arm in fresh if METRIC in arm.details]
        as_json = to_json(fresh)
        if as_json != held:
            key = {"arms": as_json} if "arms" in record["result"] else {"arm": as_json[0]}
            run.run_folder.finish(name, record["fingerprint"], {**record["result"], **key}, record["wall_s"])
            if name != JUDGED:
                run.run_folder.retract("ladder.json")  # the verdict was taken by other scores
    return arms


def judge_arms(run: Run, curated: Curated, chosen: Callable[[ArmScore], bool]) -> list[ArmScore]:
    """Judge recorded arms of a run whose metric is another one, beside it; kept in a record of their own."""
    config = config_of(run)
    arms = [arm for arm in recorded_arms(run, curated) if chosen(arm)]
    inputs_print = fingerprint(identity(config), [[arm.arm, [[r.id, r.output] for r in arm.rows]] for arm in arms])
    found = run.run_folder.finished(JUDGED, inputs_print)
    if found is not None:
        return [arm_from_json(arm) for arm in found["arms"]]
    fresh = [judged(run, curated, arm) for arm in arms]
    run.run_folder.finish(JUDGED, inputs_print, {"arms": to_json(fresh)}, 0.0)
    return fresh


def recorded_arms(run: Run, curated: Curated) -> list[ArmScore]:
    """Arms that the run file names and that answered rows held out now: baselines, then rungs."""
    decided = run.run_folder.record("decide.json")
    arms = list(decided["result"]["arms"]) if decided else []
    for model in rungs_of(run.config):
        record = run.run_folder.record(rung_file(model, "eval.json"))
        arms += [record["result"]["arm"]] if record else []
    held_out, found = {example.id for example in curated.eval}, []
    for arm in map(arm_from_json, arms):
        if all(row.id in held_out for row in arm.rows):
            found.append(arm)
        else:
            run.log(f"{arm.arm} answered rows that are no longer held out; measure it again: shoestring run")
    return found
