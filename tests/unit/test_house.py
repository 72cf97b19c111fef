"""The rules of the house, kept by a check rather than by memory."""

import ast
import importlib
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import click
import pytest

import penstock
from penstock import cli

SRC = Path(penstock.__file__).parent
FILES = sorted(SRC.rglob("*.py"))
KINDS = ("stages", "passes", "quantizers", "backends", "frontends", "targets", "datasets")
LIGHT = [
    path
    for kind in KINDS
    for path in sorted((SRC / kind).glob("*.py"))
    if path.stem == "__init__" or path.stem[0] != "_"
]
HEAVY = ("torch", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "openvino", "sklearn", "PIL", "safetensors")


def relative(path: Path) -> str:
    return str(path.relative_to(SRC))


def module_of(path: Path) -> str:
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def child(code: str, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environ, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_plug_ins_import_without_any_framework() -> None:
    """All in one process: what fails is named."""
    assert len(LIGHT) > 30
    code = f"""
import sys, importlib, json
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
failed = {{}}
for name in {[module_of(path) for path in LIGHT]!r}:
    try:
        importlib.import_module(name)
    except BaseException as error:
        failed[name] = repr(error)
print(json.dumps(failed))
"""
    assert json.loads(child(code)) == {}


@pytest.mark.parametrize(
    "code",
    [
        "import penstock, penstock.cli",
        "from penstock.cli import run; run(['--help'])",
        "from penstock.cli import run; run(['--version'])",
        "from penstock.cli import run; run(['bild'])",
        "from penstock.cli import run; run(['qat', '--help'])",
        "from penstock import qat; qat.__all__, dir(qat)",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_used(code: str) -> None:
    told = child(f"import sys\n{code}\nprint('LOADED', [m for m in {(*HEAVY, 'numpy', 'rich')!r} if m in sys.modules])")
    assert told.splitlines()[-1] == "LOADED []"


def test_help_takes_less_than_300_ms_of_cpu() -> None:
    def cpu() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "penstock", "--help"] if (SRC / "__main__.py").exists() else
                       [sys.executable, "-c", "from penstock.cli import main; main(['--help'])"],
                       check=True, stdout=subprocess.DEVNULL)  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)

    assert min(cpu() for _ in range(5)) < 0.3


def test_telemetry_is_off_before_anyone_can_import_the_runtime() -> None:
    code = "import penstock, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environ = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, check=True)
    assert done.stdout.strip() == "1"
    assert child(code, ORT_DISABLE_TELEMETRY="0").strip() == "0", "who asks for it gets it"


# --- the public names


def test_public_names_are_those_with_a_home() -> None:
    homes = [name for names in penstock._HOMES.values() for name in names]
    assert sorted(penstock.__all__) == sorted(homes) and len(set(homes)) == len(homes)
    for name in penstock.__all__:
        assert getattr(penstock, name).__name__ == name and name in dir(penstock)
    with pytest.raises(AttributeError):
        _ = penstock.no_such_name


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((SRC / "__init__.py").read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        node.module: tuple(alias.name for alias in node.names)
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
    }
    assert seen == penstock._HOMES


# --- the command line


def test_commands_are_the_files() -> None:
    files = {path.stem for path in (SRC / "cli").glob("*.py") if path.stem[0] != "_"}
    assert set(cli.COMMANDS) == files


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_each_command_explains_itself(name: str) -> None:
    command: click.Command = importlib.import_module(f"penstock.cli.{name}").command
    assert cli.COMMANDS[name].endswith(".") and len(cli.COMMANDS[name]) < 80
    assert (command.help and command.help.splitlines()[0].endswith((".", ":"))) or name == "inspect", command.help
    examples = [line for line in (command.epilog or "").splitlines() if line.strip().startswith(f"penstock {name}")]
    assert len(examples) >= 3 and len(set(examples)) == len(examples)
    group = cli.group.make_context("penstock", ["--help"], resilient_parsing=True)
    with click.Context(command, parent=group, info_name=name) as context:
        shown = command.get_help(context)
    for example in examples:
        assert example.split()[-1] in shown
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{parameter.name} has no help"


def leaves(name: str) -> list[click.Command]:
    """Return a command, or the commands of a group."""
    command: click.Command = importlib.import_module(f"penstock.cli.{name}").command
    return [*command.commands.values()] if isinstance(command, click.Group) else [command]


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name != "zoo"])
def test_each_command_has_the_common_options(name: str) -> None:
    for command in leaves(name):
        flags = {flag for parameter in command.params for flag in parameter.opts}
        assert {"--json", "--quiet", "--verbose"} <= flags
        assert all("_" not in flag for flag in flags if flag.startswith("--")), "flags are written with dashes"


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name != "zoo"])
def test_the_options_of_the_examples_exist(name: str) -> None:
    import shlex

    command: click.Command = importlib.import_module(f"penstock.cli.{name}").command
    commands = leaves(name)
    flags = {flag for c in commands for parameter in c.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    for line in (command.epilog or "").splitlines():
        if line.strip().startswith("penstock "):
            used = {word for word in shlex.split(re.split(r" >>? ", line)[0]) if word.startswith("-")}
            assert used <= flags, line


# --- the sources


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_file_is_longer_than_500_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500


WRITES = {"write_text", "write_bytes", "mkdir", "touch", "unlink", "rename", "rmdir", "symlink_to", "hardlink_to", "rmtree",  # noqa: E501
          "savez", "savez_compressed", "mkdtemp", "mkstemp", "copyfile", "copytree", "tofile", "makedirs"}  # fmt: skip
# where a name of the list means something else, or a library has to write into a scratch folder of the store's
ALLOWED = {
    "api.py": {"mkdir"},  # a folder inside a scratch folder
    "qat/checkpoints.py": {"save"},  # into memory; the store writes the bytes
    "zoo/_training.py": {"save"},  # likewise
}  # fmt: skip


def written(tree: ast.AST) -> set[str]:
    """Return the calls that write files: by name, and ``open`` with a mode that writes."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if getattr(getattr(node.func, "value", None), "id", "") == "store":
            continue
        if name in WRITES:
            found.add(name)
        if name == "open":
            arguments = [*node.args, *[k.value for k in node.keywords if k.arg == "mode"]]
            modes = [a.value for a in arguments if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            if any(set(mode) <= set("rwaxbt+U") and set(mode) & set("wax+") for mode in modes):
                found.add("open")
        owner = getattr(node.func, "value", None)
        if name == "save" and getattr(owner, "id", "") in ("np", "numpy", "torch"):
            found.add("save")
    return found


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name != "store"], ids=relative)
def test_only_the_store_writes_files(path: Path) -> None:
    assert written(ast.parse(path.read_text())) - ALLOWED.get(relative(path), set()) == set()


def test_the_check_for_writes_finds_them() -> None:
    caught = written(
        ast.parse("p.open('wb'); open(p, mode='a'); p.write_text(''); np.save(p, a); open(p); p.open('rb')")
    )
    assert caught == {"open", "write_text", "save"} and written(ast.parse((SRC / "store" / "files.py").read_text()))


@pytest.mark.parametrize("path", [path for path in FILES if "cli" not in path.parts], ids=relative)
def test_only_the_command_line_prints(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    names = {getattr(call.func, "id", "") for call in calls}
    said = {ast.unparse(call.func) for call in calls} & {"sys.stdout.write", "sys.stderr.write", "click.echo"}
    assert "print" not in names and not said


def test_no_file_imports_a_runtime_that_is_not_its_own() -> None:
    allowed = {
        "onnxruntime": ("backends/", "quantizers/"),
        "openvino": ("backends/",),
        "torch": ("backends/", "frontends/", "qat/", "zoo/"),  # qat/ trains, which is torch's work
    }
    wrong = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in names:
                homes = allowed.get(name.partition(".")[0])
                if homes and not relative(path).startswith(homes):
                    wrong.append((relative(path), name))
    assert wrong == []
