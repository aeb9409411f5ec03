"""The class of a command by its words, and how sure that is."""

from __future__ import annotations

import pytest

from rigbus.plans import parse_plan
from rigbus.plans.classes import UNSURE, guess_class

TOOLS = [
    "sort x",
    "cp a b && grep cuda x | sha256sum > {BATCH_PATH}/whisper.txt",
    'x=$(cat prompt); echo "$x" > z',
    'for f in *.gguf; do wc -l "$f"; done',
    "cat <<END > a\nollama\nEND",
    "f() { cp a b; }; f",
    "(cd x && tar cf - .) | /usr/bin/gzip > z",
    "if test -f a; then ls; else exit 1; fi",
    "echo {ITEM.id} > {BATCH_PATH}/{ITEM.id}.txt",
    "# a remark\ntrue",
    "X=1",
]
SURE = [
    ("script", "nvidia-smi"),
    ("script", "python3 -c 'import torch'"),
    ("script", "CUDA_VISIBLE_DEVICES=0 ./run.sh"),
    ("script", "python x.py --device cuda:0"),
    ("script", "whisper a.wav"),
    ("llm", "ollama run x"),
    ("llm", "/opt/bin/llama-server --port 1"),
    ("llm", "curl $OPENAI_BASE_URL/models"),
    ("llm", "./serve --model models/small.gguf"),
    ("llm", "python -m vllm"),
]
UNSURE_ONES = [
    ("cpu", "python3 train.py"),
    ("cpu", "./run.sh"),
    ("cpu", "$TOOL x"),
    ("cpu", "{PLAN_PATH}/scripts/cp x"),
    ("cpu", "/opt/sort x"),
    ("cpu", "cp a b; make all"),
    ("cpu", "ls | xargs rm"),
    ("cpu", "find . -name x -exec process {} +"),
    ("cpu", "x=$(train)"),
    ("cpu", "cat `train`"),
    ("cpu", "echo 'never closed"),
    ("cpu", "echo x; " * 2000),
    ("cpu", "bash -c 'ls'"),
    ("cpu", ". ./env.sh"),
    ("script", "python3 transcribe.py"),
    ("script", "python3 whisper_times.py"),
    ("script", "./run.sh --no-gpu"),
    ("llm", "python3 generate_report.py"),
    ("script", "ollama run x --cuda"),
    ("script", "cuda ollama"),
]


@pytest.mark.parametrize("command", TOOLS)
def test_what_starts_only_known_tools_is_cpu_whatever_its_arguments_are_called(command: str) -> None:
    guess = guess_class(command)
    assert (guess.task_class, guess.sure) == ("cpu", True), guess.reason


@pytest.mark.parametrize(("wanted", "command"), SURE)
def test_a_tool_a_library_a_variable_and_a_file_of_models_leave_no_doubt(wanted: str, command: str) -> None:
    guess = guess_class(command)
    assert (guess.task_class, guess.sure) == (wanted, True)


@pytest.mark.parametrize(("wanted", "command"), UNSURE_ONES)
def test_of_an_unknown_program_and_of_a_part_of_a_name_the_rule_is_not_sure(
    wanted: str, command: str
) -> None:
    guess = guess_class(command)
    assert (guess.task_class, guess.sure) == (wanted, False)
    assert guess.words.endswith(UNSURE)


def test_an_argv_is_its_program_and_the_words_of_the_others() -> None:
    assert guess_class(None, ["grep", "cuda", "x"]).sure
    assert not guess_class(None, ["python3", "{PLAN_PATH}/x.py"]).sure
    assert not guess_class(None, ["sh", "-c", "sort x"]).sure
    assert guess_class(None, ["ollama", "run"]).task_class == "llm"


def test_the_reason_names_the_tools_or_the_word() -> None:
    assert (
        guess_class("ls | sort | uniq | wc -l | tee x | cat").reason
        == "it starts only ls, sort, uniq, wc and 2 more"
    )
    assert guess_class("python3 transcribe.py").reason == "its command holds 'transcrib'"


HEAD = "# Plan: p\n\n## Tasks\n\n### a\n"


@pytest.mark.parametrize(
    ("fields", "unsure"),
    [
        ("- command: `./run.sh`\n", True),
        ('- argv: ["./run.sh"]\n', True),
        ("- command: `sort x`\n", False),
        ("- command: `./run.sh`\n- task_class: cpu\n", False),
        ("- command: `./run.sh`\n- task_class: gpuu\n", True),
        ("- command: `./run.sh`\n- executor: brain\n", False),
        ("- type: shout\n", False),
        ("- type: generate\n- prompt: x\n", False),
    ],
)
def test_only_a_command_without_a_class_is_unsure_and_its_warning_says_who_is_asked(
    fields: str, unsure: bool
) -> None:
    plan = parse_plan(HEAD + fields, name="p")
    assert plan.tasks[0].task_class_unsure is unsure
    assert (UNSURE in "".join(map(str, plan.warnings))) is unsure


def test_a_script_of_the_workflow_form_is_unsure_too() -> None:
    text = (
        "# Plan: p\n\n## Available Scripts\n\n### scripts/run.py\n**Run command**: `python3 {PLAN_PATH}/scripts/run.py`\n\n"
        "## Workflow\n\n1. run\n"
    )
    plan = parse_plan(text, name="p")
    assert [task.task_class_unsure for task in plan.tasks] == [True]
    assert UNSURE in "".join(map(str, plan.warnings))
