"""Writes a task of lm-evaluation-harness as rows of multiple choice for `hft-surgery eval`.

usage: python docs/import_lm_eval.py TASK OUT.jsonl [--num-fewshot N] [--limit N] [--include-path DIR]
       (pip install lm-eval; the task's data set is fetched as lm-evaluation-harness fetches it)

Each row has `question`, the whole context with its few-shot examples; `choices`; `answer`, an index from 0; and
`target_delimiter`. Context and choices are those of the harness's own requests, with its seed 1234 for few-shot examples.
Tasks that are not decided by the log-probability of one choice after one context are refused.
"""
import argparse
import json
import sys

from lm_eval.tasks import TaskManager, get_task_dict


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
    tasks = get_task_dict([name], TaskManager(include_path=include_path))
    if list(tasks) != [name] or isinstance(tasks[name], dict):
        sys.exit(f"{name} is a group of tasks; give one of its tasks")
    task = tasks[name]
    if num_fewshot is not None:
        task.set_config(key="num_fewshot", value=num_fewshot)
    task.set_fewshot_seed(seed=1234)
    return task


def main():
    parser = argparse.ArgumentParser(description="Writes a task of lm-evaluation-harness as rows of multiple choice.")
    parser.add_argument("task")
    parser.add_argument("out")
    parser.add_argument("--num-fewshot", type=int)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--include-path")
    args = parser.parse_args()
    written = rows(load(args.task, args.num_fewshot, args.include_path), args.limit)
    with open(args.out, "w") as out:
        out.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in written)
    print(f"{args.out}: {len(written)} rows")


if __name__ == "__main__":
    main()
