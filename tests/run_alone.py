"""A script run where only what the training core needs can be imported."""

import subprocess
import sys

REFUSE_OTHERS = """
import sys

OTHERS = {"ray", "optuna", "mlflow", "yaml", "rich", "safetensors", "matplotlib", "seaborn"}
OTHERS |= {"pandas", "scipy", "sklearn", "psutil", "sqlalchemy", "soxr", "av"}


class Refuse:
    # These are only watched: torch itself asks whether they are there.
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in OTHERS - {"pandas", "scipy", "sklearn"}:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
        return None


sys.meta_path.insert(0, Refuse())
"""

WATCH = """
print("imported", sorted(OTHERS & set(sys.modules)))
"""


def run_alone(script, *arguments, but=()):
    """Run `script` where none of the others can be imported `but` these; what it printed."""
    script = f"{REFUSE_OTHERS}\nOTHERS -= {set(but)!r}\n{script}{WATCH}"
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported []", done.stdout
    return done.stdout
