"""Writes a task of lm-evaluation-harness, or the samples that it logged, as rows for `hft-surgery eval`.

usage: python docs/import_lm_eval.py TASK OUT.jsonl [--num-fewshot N] [--limit N] [--include-path DIR]
       (pip install lm-eval; the task's data set is fetched as lm-evaluation-harness fetches it)
   or: python docs/import_lm_eval.py samples_TASK_DATE.jsonl OUT.jsonl [--limit N]
       (a file that `lm_eval --log_samples` wrote; needs nothing but Python)

Each row of multiple choice has `question`, the whole context with its few-shot examples; `choices`; `answer`, an index from 0; and
`target_delimiter`. Context and choices are those of the harness's own requests, with its seed 1234 for few-shot examples.
Samples of `generate_until` become rows with `prompt`, `answer` and `stop`. Tasks that are not decided by the log-probability of one
choice after one context are refused, as are samples that are no plain multiple choice.
"""
import argparse
import json
import sys


def arguments(sample):
    """The pairs of arguments of all requests of a logged sample: text, and continuation or options."""
    logged = sample["arguments"]
    if isinstance(logged, dict):
        logged = [[pair["arg_0"], pair.get("arg_1")] for _, pair in sorted(logged.items(), key=lambda item: int(item[0].rsplit("_", 1)[1]))]
    return [tuple(pair) for pair in logged]


def logged_row(sample):
    """The row of one logged sample."""
    pairs, where = arguments(sample), f"document {sample['doc_id']}"
    if len(pairs) == 1 and isinstance(pairs[0][1], dict):
        stop = pairs[0][1].get("until") or []
        target = sample["target"]
        return {"prompt": pairs[0][0], "answer": target, "stop": [stop] if isinstance(stop, str) else stop}
    contexts, continuations = {text for text, _ in pairs}, [text for _, text in pairs]
    if len(pairs) < 2 or len(contexts) != 1 or not all(isinstance(text, str) for text in continuations):
        sys.exit(f"{where}: not one context with its choices")
    target, question = str(sample["target"]), contexts.pop()
    for delimiter in [" ", ""]:
        if not all(text.startswith(delimiter) and len(text) > len(delimiter) for text in continuations):
            continue
        choices = [text.removeprefix(delimiter) for text in continuations]
        answer = int(target) if target.isdigit() else choices.index(target) if target in choices else -1
        if not 0 <= answer < len(choices):
            sys.exit(f"{where}: the answer is {target!r}, expected an index below {len(choices)} or a choice")
        if normed(sample, choices, answer) == sample.get("acc_norm"):
            return {"question": question, "choices": choices, "answer": answer, "target_delimiter": delimiter}
    sys.exit(f"{where}: its `acc_norm` is not that of its choices: the task has a scoring of its own")


def normed(sample, choices, answer):
    """`acc_norm` of a sample by its log-probabilities; None where none was logged. It tells which delimiter the task has."""
    if "acc_norm" not in sample:
        return None
    per_character = [float(answer[0]) / len(choice) for answer, choice in zip(sample["filtered_resps"], choices)]
    return float(per_character.index(max(per_character)) == answer)


def logged_rows(path, limit):
    """The rows of a file of logged samples, each document once."""
    documents = {}
    with open(path) as lines:
        for line in lines:
            sample = json.loads(line)
            documents.setdefault(sample["doc_id"], sample)
    return [logged_row(sample) for _, sample in sorted(documents.items())][:limit]


def row(task, requests):
    """The row of all requests of one document."""
    first = requests[0]
    choices = list(task.doc_to_choice(first.doc))
    contexts = {request.arguments[0] for request in requests}
    delimiters = {request.arguments[1].removesuffix(choice) for request, choice in zip(requests, choices)}
    if len(requests) != len(choices) or len(contexts) != 1 or len(delimiters) != 1:
        sys.exit(f"document {first.doc_id}: not one context with its choices")
    target = task.doc_to_target(first.doc)
    answer = choices.index(target) if isinstance(target, str) and target in choices else target
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        sys.exit(f"document {first.doc_id}: the answer is {answer!r}, expected an index below {len(choices)} or a choice")
    return {"question": contexts.pop(), "choices": choices, "answer": answer, "target_delimiter": delimiters.pop()}


def rows(task, limit):
    """The rows of a task, in the order of its documents."""
    if task.OUTPUT_TYPE != "multiple_choice" or callable(task.config.process_results):
        sys.exit(f"the task is {task.OUTPUT_TYPE}, or has a scoring of its own; expected plain multiple_choice")
    task.build_all_requests(limit=limit, rank=0, world_size=1)
    documents = {}
    for request in task.instances:
        documents.setdefault(request.doc_id, []).append(request)
    return [row(task, sorted(requests, key=lambda request: request.idx)) for requests in documents.values()]


def load(name, num_fewshot, include_path):
    from lm_eval.tasks import TaskManager, get_task_dict

    tasks = get_task_dict([name], TaskManager(include_path=include_path))
    if list(tasks) != [name] or isinstance(tasks[name], dict):
        sys.exit(f"{name} is a group of tasks; give one of its tasks")
    task = tasks[name]
    if num_fewshot is not None:
        task.set_config(key="num_fewshot", value=num_fewshot)
    task.set_fewshot_seed(seed=1234)
    return task


def main():
    parser = argparse.ArgumentParser(description="Writes a task of lm-evaluation-harness, or samples that it logged, as rows for eval.")
    parser.add_argument("task", help="a task, or a file samples_*.jsonl")
    parser.add_argument("out")
    parser.add_argument("--num-fewshot", type=int)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--include-path")
    args = parser.parse_args()
    if args.task.endswith(".jsonl"):
        written = logged_rows(args.task, args.limit)
    else:
        written = rows(load(args.task, args.num_fewshot, args.include_path), args.limit)
    with open(args.out, "w") as out:
        out.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in written)
    print(f"{args.out}: {len(written)} rows")


if __name__ == "__main__":
    main()
