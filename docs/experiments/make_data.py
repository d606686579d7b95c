#!/usr/bin/env python3
"""Rows of `forgetting.yml` from public packages, with the standard library alone: make_data.py DOWNLOADS OUT

DOWNLOADS is filled by

    pip download --no-deps -d DOWNLOADS gensim==4.4.0 chatterbot-corpus==1.3.3
    pip download --no-deps --no-binary llamafactory -d DOWNLOADS llamafactory==0.9.5

capitals and past_tense are pairs of words from gensim's questions-words.txt (Mikolov et al. 2013, arXiv:1301.3781), ai is a
conversation of chatterbot-corpus (BSD-3-Clause), alpaca and c4 are the samples of both that LLaMA-Factory (Apache-2.0) ships.
Each file is shuffled with seed 0; 12 rows of each task are held out, 32 at most are learnt. Rows of more than 160 characters
(alpaca: 260) are left out, and those of c4 end after 300, so that an experiment takes minutes.
"""

import glob
import json
import os
import random
import re
import sys
import tarfile
import zipfile

downloads, out = sys.argv[1:3]
os.makedirs(out, exist_ok=True)


def find(pattern):
    found = sorted(glob.glob(f"{downloads}/**/{pattern}", recursive=True))
    if not found:
        sys.exit(f"{downloads}: no {pattern}; {__doc__}")
    return found[0]


def write(name, rows):
    with open(f"{out}/{name}.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    print(f"{name}: {len(rows)} rows")


def message(prompt, answer):
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


def short(rows, most):
    return [row for row in rows if sum(len(part["content"]) for part in row["messages"]) < most]


def task(name, rows):
    rows = short(rows, 160)
    random.Random(0).shuffle(rows)
    write(f"{name}_eval", rows[:12])
    write(f"{name}_train", rows[12:44])


sections, section = {}, None
with zipfile.ZipFile(find("gensim-*.whl")) as wheel:
    text = wheel.read("gensim/test/test_data/questions-words.txt").decode()
for line in text.splitlines():
    if line.startswith(":"):
        section = sections.setdefault(line[2:].strip(), {})
    else:
        first, second, third, fourth = line.split()
        section[first], section[third] = second, fourth
capitals = sections["capital-world"].items()
task("capitals", [message(f"What is the capital of {country}?", city) for city, country in capitals])
tenses = sections["gram7-past-tense"].items()
task("past_tense", [message(f"Change to past tense: {present}", past) for present, past in tenses])

with zipfile.ZipFile(find("chatterbot_corpus-*.whl")) as wheel:
    text = wheel.read("chatterbot_corpus/data/english/ai.yml").decode()
pairs = re.findall(r"^- - (.+)\n  - (.+)$", text, re.MULTILINE)
plain = [[side.strip().strip("'\"").replace("''", "'") for side in pair] for pair in pairs]
task("ai", [message(question, answer) for question, answer in plain])

with tarfile.open(find("llamafactory-*.tar.gz")) as source:
    root = source.getnames()[0].split("/")[0]
    alpaca = json.load(source.extractfile(f"{root}/data/alpaca_en_demo.json"))
    c4 = source.extractfile(f"{root}/data/c4_demo.jsonl").read().decode().splitlines()
rows = [message((row["instruction"] + "\n" + row["input"]).strip(), row["output"]) for row in alpaca]
rows = short(rows, 260)
random.Random(0).shuffle(rows)
write("alpaca", rows[:12])
rows = [json.loads(line)["text"] for line in c4]
random.Random(0).shuffle(rows)
write("c4", [{"text": row[:300].rsplit(" ", 1)[0]} for row in rows[:12]])
