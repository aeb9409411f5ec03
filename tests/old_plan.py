"""A plan folder as the earlier system left it, with its `submit` beside it: test data, made anew for each test."""

from __future__ import annotations

from pathlib import Path

PLAN = """# Plan: sensor_survey

## Goal

Read every sensor of the greenhouse once, and write one table.

## Inputs

- **LIMIT**: how many sensors to read
- **UNIT**: `celsius` or `kelvin`

## Outputs

- `batches/{BATCH_ID}/table.csv`

## Available Scripts

### scripts/list_sensors.py

- **Purpose**: writes the list of sensors
- **GPU**: no
- **VRAM estimate**: 0
- **Run command**: `python3 {PLAN_PATH}/scripts/list_sensors.py --limit 3 --batch {BATCH_ID}`
- **Output**: manifest.json

### scripts/read_sensor.py

- **Purpose**: one reading
- **Run command**: `python3 {PLAN_PATH}/scripts/read_sensor.py --id s1 --batch {BATCH_ID}`

### scripts/table.py

- **Purpose**: all readings as one table
- **Run command**: `python3 {PLAN_PATH}/scripts/table.py {BATCH_PATH}`

## Tasks

### list_sensors

- **executor**: brain
- **task_class**: cpu
- **command**: `python3 {PLAN_PATH}/scripts/list_sensors.py --limit {LIMIT} --batch {BATCH_ID}`
- **depends_on**: none

### read_sensor

- **executor**: worker
- **task_class**: script
- **command**: `python3 {PLAN_PATH}/scripts/read_sensor.py --id {ITEM.id} --place "{ITEM.place}" --batch {BATCH_ID} --unit {UNIT}`
- **foreach**: {BATCH_PATH}/manifest.json:sensors
- **depends_on**: list_sensors

### table

- **executor**: worker
- **task_class**: cpu
- **command**: `python3 {PLAN_PATH}/scripts/table.py {BATCH_PATH}`
- **depends_on**: read_sensor

## Notes

- Sensors are numbered from one.
- Run it at night.
"""

LIST = """import argparse, json
from pathlib import Path

args = argparse.ArgumentParser()
args.add_argument("--limit", type=int)
args.add_argument("--batch")
given = args.parse_args()
batch = Path(__file__).resolve().parent.parent / "batches" / given.batch
batch.mkdir(parents=True, exist_ok=True)
places = ["north wall", "it's \\"warm\\" $HOME", "roof; true"]
sensors = [{"id": f"s{n}", "place": places[n % 3]} for n in range(1, given.limit + 1)]
(batch / "manifest.json").write_text(json.dumps({"sensors": sensors}))
"""

READ = """import argparse, json
from pathlib import Path

args = argparse.ArgumentParser()
for name in ("--id", "--place", "--batch", "--unit"):
    args.add_argument(name)
given = args.parse_args()
out = Path(__file__).resolve().parent.parent / "batches" / given.batch / "readings"
out.mkdir(exist_ok=True)
offset = json.loads((Path(__file__).resolve().parent.parent / "input" / "offsets.json").read_text())[given.unit]
with (out / f"{given.id}.json").open("a") as file:
    file.write(json.dumps({"id": given.id, "place": given.place, "value": 20 + offset}) + "\\n")
"""

TABLE = """import json, sys
from pathlib import Path

batch = Path(sys.argv[1])
rows = [json.loads(line) for f in sorted((batch / "readings").glob("*.json")) for line in f.open()]
(batch / "table.csv").write_text("".join(f"{r['id']},{r['place']},{r['value']}\\n" for r in rows))
print(f"{len(rows)} readings")
"""

#: As on the Pi: the plan is checked where it lies *there*, and the file is written in place, not atomically.
SUBMIT = """import argparse, json, os, sys, uuid
from datetime import datetime
from pathlib import Path

args = argparse.ArgumentParser()
args.add_argument("plan")
args.add_argument("--config", default="{}")
given = args.parse_args()
shared = Path(os.environ["OLD_SHARED"])
plan = os.path.abspath(given.plan)
if not os.path.exists(os.path.join(plan, "plan.md")):
    sys.exit("no plan.md")
queue = shared / "tasks" / "queue"
queue.mkdir(parents=True, exist_ok=True)
task = {
    "task_id": str(uuid.uuid4()),
    "type": "execute_plan",
    "executor": "brain",
    "plan_path": plan,
    "config": json.loads(given.config),
    "priority": 10,
    "status": "pending",
    "created_at": datetime.now().isoformat(),
    "created_by": "submit",
}
with open(queue / f"{task['task_id']}.json", "w") as file:
    json.dump(task, file, indent=2)
print(task["task_id"])
"""

OLD_TABLE = "s1,north wall,19\n"


def write_old_plan(folder: Path) -> Path:
    """The plan's folder, with the results of a batch of the earlier system in it."""
    (folder / "scripts").mkdir(parents=True)
    (folder / "input").mkdir()
    (folder / "plan.md").write_text(PLAN)
    for name, text in (("list_sensors", LIST), ("read_sensor", READ), ("table", TABLE)):
        (folder / "scripts" / f"{name}.py").write_text(text)
    (folder / "input/offsets.json").write_text('{"celsius": 1, "kelvin": 273}')
    old = folder / "batches/1f3a9c02"
    (old / "readings").mkdir(parents=True)
    (old / "table.csv").write_text(OLD_TABLE)
    (old / "manifest.json").write_text('{"sensors": [{"id": "s1", "place": "north wall"}]}')
    return folder


def write_submit(folder: Path) -> Path:
    """The script of the Pi."""
    file = folder / "submit.py"
    file.write_text(SUBMIT)
    return file
