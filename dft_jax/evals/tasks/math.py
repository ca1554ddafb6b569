"""The public mathematics benchmarks: a question, and an answer in LaTeX or plain text."""

from dft_jax.evals.tasks import fields
from dft_jax.evals.tasks.task import Task

TASKS = (
    Task(
        "math500",
        source="HuggingFaceH4/MATH-500",
        count=500,
        answer=fields.answer_field,
        id_field="unique_id",
    ),
    Task(
        "minerva",
        source="math-ai/minervamath",
        count=272,
        answer=fields.boxed_in_solution,
    ),
    Task(
        "olympiadbench",
        source="Hothan/OlympiadBench",
        count=675,
        answer=fields.first_final_answer,
        id_field="id",
        split="train",
        subset="OE_TO_maths_en_COMP",
    ),
    Task(
        "aime24",
        source="math-ai/aime24",
        count=30,
        answer=fields.answer_field,
        id_field="id",
    ),
    Task(
        "aime25",
        source="math-ai/aime25",
        count=30,
        answer=fields.answer_field,
    ),
    Task(
        "amc23",
        source="math-ai/amc23",
        count=40,
        answer=fields.answer_field,
        id_field="id",
    ),
    Task(
        "gsm8k",
        source="openai/gsm8k",
        count=1319,
        answer=fields.after_hashes,
        file="gsm8k_test.jsonl",
        subset="main",
    ),
)
