"""kubectl as a recorder and a player: renders committed files, keeps calls, replays a cluster.

It reads and writes the folder FAKE_KUBECTL: `calls` (one line per call), `created` (objects as
YAML), `existing` (a RayJob as JSON), `refusal` (what `create` and `get` print before they fail),
`frames` (a recorded story, see `Recording`).
"""

import json
import os
import pathlib
import sys
import time

HOME = pathlib.Path(os.environ["FAKE_KUBECTL"])
RENDERED = pathlib.Path(__file__).parents[1] / "cluster/rendered"


def main(words: list[str]) -> int:
    with (HOME / "calls").open("a") as calls:
        print(*words, file=calls)
    if words[0] == "kustomize":
        return kustomize(pathlib.Path(words[1]))
    if (HOME / "refusal").exists():
        print((HOME / "refusal").read_text(), file=sys.stderr)
        return 1
    verb = next(
        word for word in words if word in ("get", "create", "delete", "patch", "logs", "exec")
    )
    return globals()[verb](words)


def kustomize(folder: pathlib.Path) -> int:
    text = (RENDERED / f"{folder.parent.name}-{folder.name}.yaml").read_text()
    if not (HOME / "unedited").exists():
        text = text.replace("REGION", "europe-west4").replace("PROJECT", "mine")
    print(text)
    return 0


def get(words: list[str]) -> int:
    if (HOME / "frames").exists():
        if "rayjob" in words:
            print(json.dumps(frame(advance=True)["job"]) if frame()["job"] else "")
        else:
            name, value = words[words.index("--selector") + 1].split(",")[0].split("=")
            found = [p for p in frame()["pods"] if p["metadata"]["labels"].get(name) == value]
            print(json.dumps({"items": found}))
        return 0
    existing = HOME / "existing"
    print(existing.read_text() if existing.exists() else "", end="")
    return 0


def create(words: list[str]) -> int:
    text = sys.stdin.read()
    kind = next(line for line in text.splitlines() if line.startswith("kind:")).split()[1]
    refused = HOME / f"refuse-{kind}"
    if refused.exists():
        print(refused.read_text(), file=sys.stderr)
        return 1
    with (HOME / "created").open("a") as created:
        print(f"---\n{text}", file=created)
    name = text.split("\n  name: ")[1].split("\n")[0]
    made = {"apiVersion": "ray.io/v1", "kind": kind, "metadata": {"name": name, "uid": "u-1"}}
    print(json.dumps(made))
    return 0


def delete(words: list[str]) -> int:
    refused = HOME / "refuse-delete"
    if refused.exists():
        print(refused.read_text(), file=sys.stderr)
        return 1
    if "--raw" in words:
        (HOME / "deletion").write_text(sys.stdin.read())
        (HOME / "existing").unlink(missing_ok=True)
    return 0


def patch(words: list[str]) -> int:
    (HOME / "patch").write_text(words[-1])
    return 0


def logs(words: list[str]) -> int:
    name, shown = words[-1], 0
    until = time.monotonic() + 20
    while time.monotonic() < until:
        now = frame()
        text = now["logs"].get(name, "")
        print(text[shown:], end="", flush=True)
        shown = max(shown, len(text))
        phases = {pod["metadata"]["name"]: pod["status"]["phase"] for pod in now["pods"]}
        if phases.get(name) != "Running" or name in now["cut"]:
            return 0
        time.sleep(0.005)
    return 1


def exec(words: list[str]) -> int:  # noqa: A001 - kubectl's own word
    (HOME / "executed").write_text(" ".join(words[words.index("--") + 1 :]))
    return 0


def frame(advance: bool = False) -> dict:
    """Return the present frame; each look at the RayJob shows the next one, as time goes by."""
    frames = json.loads((HOME / "frames").read_text())
    counter = HOME / "frame"
    number = int(counter.read_text()) if counter.exists() else -1
    if advance:
        number += 1
        counter.with_suffix(".new").write_text(str(number))
        counter.with_suffix(".new").replace(counter)
    return frames[max(0, min(number, len(frames) - 1))]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
