"""Small files as SQuAD and HotpotQA publish them."""

import json
import random
from pathlib import Path

WORDS = ["river", "stone", "cloud", "lamp", "tiger", "salt", "maple", "engine", "harbour", "violin"]


def sentence(rng: random.Random, number: int) -> str:
    return " ".join(rng.choices(WORDS, k=6)) + f" {number}."


def squad(path: Path, articles: int = 12) -> Path:
    rng = random.Random(0)
    data = []
    for a in range(articles):
        paragraphs = []
        for p in range(2):
            context = sentence(rng, 10 * a + p)
            start, answer = 0, context.split()[0]
            qas = [
                {
                    "id": f"q{a}.{p}.{q}",
                    "question": f"What is {q} of {a}.{p}?",
                    "answers": [{"text": answer, "answer_start": start}] * 2,
                    "is_impossible": False,
                }
                for q in range(2)
            ]
            qas.append({"id": f"no{a}.{p}", "question": "What?", "answers": []})
            paragraphs.append({"context": context, "qas": qas})
        data.append({"title": f"article {a}", "paragraphs": paragraphs})
    path.write_text(json.dumps({"version": "v2.0", "data": data}))
    return path


def hotpotqa(path: Path, questions: int = 20) -> Path:
    rng = random.Random(1)
    entries = [
        {
            "_id": f"h{number}",
            "question": f"Which one is {number}?",
            "answer": f"answer {number}",
            "context": [
                [f"Title {number}.{p}", [sentence(rng, p), " " + sentence(rng, p)]]
                for p in range(3)
            ],
            "supporting_facts": [[f"Title {number}.0", 0]],
        }
        for number in range(questions)
    ]
    path.write_text(json.dumps(entries))
    return path
