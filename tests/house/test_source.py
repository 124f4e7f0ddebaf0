from __future__ import annotations

import ast
import doctest
import functools
import importlib
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import torch.distributed
from transformers import TrainingArguments

import burnish
from burnish.losses import preference_losses
from burnish.trainers.config import PolicyConfig
from burnish.trainers.dpo import DPOConfig

SOURCE = Path(burnish.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
TREES = {path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text()) for path in FILES}
MAX_FILE, MAX_FUNCTION, MAX_FIELDS = 400, 60, 20
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@functools.cache
def all_nodes() -> list[tuple[str, ast.AST]]:
    """Every node with the file that it is in."""
    return [(name, node) for name, tree in TREES.items() for node in ast.walk(tree)]


def each(*kinds: type[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    """Every node of these kinds with the file that it is in."""
    return ((name, node) for name, node in all_nodes() if isinstance(node, kinds))


def dotted(node: ast.AST) -> str:
    """`torch.distributed.all_reduce` of the expression; '' for what is no dotted name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}".lstrip(".")
    return ""


def where(name: str, node: ast.AST) -> str:
    return f"{name}:{node.lineno}"


def test_the_source_was_found():
    assert len(FILES) > 40
    assert "trainers/dpo.py" in TREES


# Laws 1, 5, 12.

COLLECTIVES = {
    name
    for name in dir(torch.distributed)
    if name.startswith(("all_", "reduce", "broadcast", "gather", "scatter", "barrier", "monitored_", "send", "recv"))
} | {"gather_for_metrics", "gather_object", "wait_for_everyone", "pad_across_processes"}


def test_collectives_are_named_in_one_file():
    """Nobody else imports torch.distributed, or calls a collective of torch or of accelerate."""
    found = {where(name, node) for name, node in each(ast.Attribute) if dotted(node).startswith("torch.distributed")}
    for name, node in each(ast.Import, ast.ImportFrom):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        found |= {where(name, node) for module in names if module.startswith("torch.distributed")}
    for name, node in each(ast.Call):
        function, parts = node.func, dotted(node.func).split(".")
        of_a_process_group = {"dist", "distributed", "accelerator", "torch"} & set(parts[:-1])
        if isinstance(function, ast.Attribute) and function.attr in COLLECTIVES and of_a_process_group:
            found.add(where(name, node))
    ours = {place for place in found if place.startswith("runtime/distributed.py:")}
    through_the_room = {place for place in found if _calls_our_room(place)}
    assert ours
    assert sorted(found - ours - through_the_room) == []


def _calls_our_room(place: str) -> bool:
    """A call of a function of `burnish.runtime.distributed` through the module's name."""
    name, line = place.split(":")
    public = {node.name for node in TREES["runtime/distributed.py"].body if isinstance(node, ast.FunctionDef)}
    calls = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.Call) and node.lineno == int(line)]
    imported = any(
        isinstance(node, ast.ImportFrom)
        and node.module == "burnish.runtime"
        and any(alias.name == "distributed" for alias in node.names)
        for node in ast.walk(TREES[name])
    )
    return imported and any(dotted(call.func) in {f"distributed.{function}" for function in public} for call in calls)


def test_nothing_branches_on_the_name_of_a_loss():
    """No `if loss_type == "ipo"`: facts of the table decide."""
    chains = []
    for name, node in each(ast.Compare, ast.Match):
        operands = [node.subject] if isinstance(node, ast.Match) else [node.left, *node.comparators]
        names = [dotted(operand) for operand in operands]
        constants = [o for o in operands if isinstance(o, ast.Constant | ast.Tuple | ast.List | ast.Set)]
        if any("loss_type" in part for part in names) and (constants or isinstance(node, ast.Match)):
            chains.append(where(name, node))
    assert chains == []


LOSSES = set(preference_losses)


def test_a_loss_name_occurs_once_in_code():
    """At its function; besides that only as a default, as the target of `rpo_alpha` or of another spelling of TRL, and
    in what the command line shows."""
    allowed = {
        "trainers/dpo.py": {"sigmoid"},
        "trainers/pair_losses.py": {"sft"},
        "compat.py": {"aot_unpaired"},
    }
    found: dict[str, set[str]] = {}
    for name, node in each(ast.Constant):
        if node.value in LOSSES and isinstance(node.value, str) and not name.startswith("cli/"):
            found.setdefault(name, set()).add(node.value)
    at_functions = [found.pop(name) for name in list(found) if name.startswith("losses/")]
    assert set().union(*at_functions) >= LOSSES
    assert found == allowed


FORBIDDEN_CALLS = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "compile": "runs text as code",
    "__import__": "imports by text",
    "torch.load": "unpickles",
    "torch.save": "pickles",
    "yaml.load": "builds arbitrary objects",
    "yaml.unsafe_load": "builds arbitrary objects",
    "os.system": "runs a shell",
    "os.popen": "runs a shell",
}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


def test_no_file_is_unpickled_and_no_text_is_run():
    calls = [where(name, node) for name, node in each(ast.Call) if dotted(node.func) in FORBIDDEN_CALLS]
    assert calls == []
    imported = []
    for name, node in each(ast.Import, ast.ImportFrom):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        imported += [where(name, node) for module in modules if module.split(".")[0] in FORBIDDEN_MODULES]
    assert imported == []


def test_no_shell_and_no_remote_code():
    """`shell=True` and `trust_remote_code=True` are nowhere; remote code only ever comes from the user's option."""
    switched_on = [
        where(name, node.value)
        for name, node in each(ast.keyword)
        if node.arg in ("shell", "trust_remote_code", "allow_pickle", "use_cache_artifacts")
        and isinstance(node.value, ast.Constant)
        and node.value.value
    ]
    assert switched_on == []
    assert DPOConfig.__dataclass_fields__["trust_remote_code"].default is False


NETWORK_MODULES = {"requests", "urllib", "http", "socket", "httpx", "aiohttp", "smtplib", "ftplib", "huggingface_hub"}
LOCAL_USES = {"socket": {"socket.gethostname"}}  # of these modules, only what stays on the machine


def test_no_network_of_our_own():
    """Downloads are those of transformers and datasets, for a name that the user gave."""
    found = []
    for name, node in each(ast.Attribute):
        module = dotted(node).split(".")[0]
        if module in LOCAL_USES and dotted(node) not in LOCAL_USES[module]:
            found.append(where(name, node))
    for name, node in each(ast.Import, ast.ImportFrom):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        forbidden = NETWORK_MODULES - set(LOCAL_USES)
        found += [where(name, node) for module in modules if module.split(".")[0] in forbidden]
    assert found == []


# Conventions.

PROBING_ROOMS = ("compat.py", "models/introspect.py")
# Everywhere else a name that is written down is read with a dot. A name that is computed is no probe: fields of a
# dataclass, public names of the package.
PROBES_ALLOWED = {
    "registry.py": "a callable of the user may have no __name__",
}


def test_nobody_probes():
    """hasattr anywhere, getattr and setattr with a literal name or a fallback: only in the rooms that look."""
    probes = []
    for name, node in each(ast.Call):
        called = dotted(node.func)
        literal = len(node.args) > 1 and isinstance(node.args[1], ast.Constant)
        if called == "hasattr" or (called in ("getattr", "setattr") and (literal or len(node.args) == 3)):
            probes.append((name, where(name, node)))
    outside = [place for name, place in probes if name not in (*PROBING_ROOMS, *PROBES_ALLOWED)]
    assert outside == []
    for name in PROBES_ALLOWED:
        assert sum(1 for file, _ in probes if file == name) == 1, f"{name} is listed for one probe"


def test_size_of_files():
    lengths = {path.relative_to(SOURCE).as_posix(): len(path.read_text().splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE} == {}


def test_size_of_functions():
    lengths = {
        f"{where(name, node)} {node.name}": node.end_lineno - node.lineno + 1
        for name, node in each(ast.FunctionDef, ast.AsyncFunctionDef)
    }
    assert {place: length for place, length in lengths.items() if length > MAX_FUNCTION} == {}


def test_size_of_config_classes_and_parcels():
    """At most twenty fields of its own, and as many attributes of any mixin or dataclass."""
    sizes = {
        f"{where(name, node)} {node.name}": sum(isinstance(item, ast.AnnAssign) for item in node.body)
        for name, node in each(ast.ClassDef)
    }
    assert {place: size for place, size in sizes.items() if size > MAX_FIELDS} == {}


def is_documented_elsewhere(node: Definition) -> bool:
    """An overload, or a method that overrides one with a docstring, like `state_dict` of a trainer."""
    return any(dotted(decorator) in ("overload", "override") for decorator in node.decorator_list)


def public_definitions(tree: ast.Module) -> Iterator[tuple[str, Definition]]:
    """Functions and classes of a module and methods of its public classes; dunders and nested functions are not."""
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node.name, node
            members = node.body if isinstance(node, ast.ClassDef) else []
            for member in members:
                if isinstance(member, Definition) and not member.name.startswith("_"):
                    yield f"{node.name}.{member.name}", member


def documented_nodes() -> Iterator[tuple[str, ast.AST]]:
    """Every module and what is public in it, by name."""
    for name, tree in TREES.items():
        yield name, tree
        yield from ((f"{name} {label}", node) for label, node in public_definitions(tree))


def test_everything_public_has_a_docstring():
    """A module too: it says what it owns."""
    missing = [
        label
        for label, node in documented_nodes()
        if not ast.get_docstring(node) and (isinstance(node, ast.Module) or not is_documented_elsewhere(node))
    ]
    assert missing == []


def test_docstrings_begin_with_one_line():
    """A summary, then an empty line."""
    lines = {label: (ast.get_docstring(node) or "").splitlines() for label, node in documented_nodes()}
    assert len(lines) > 1000
    assert [label for label, text in lines.items() if text[1:] and text[1].strip()] == []


def test_every_public_name_is_documented():
    """Its home has a docstring for it, not the signature that dataclasses make up."""
    for name in burnish.__all__:
        text = getattr(burnish, name).__doc__ or ""
        assert text.strip(), name
        assert not text.startswith(f"{name}("), name


@pytest.mark.parametrize("config", [PolicyConfig, DPOConfig])
def test_every_option_has_its_sentence(config):
    """`arg(default, "sentence")`: one line that ends with a full stop. Inherited options keep their own help."""
    assert is_dataclass(config)
    inherited = {field.name: field for field in fields(TrainingArguments)}
    for field in fields(config):
        help_text = field.metadata.get("help")
        assert help_text, f"{config.__name__}.{field.name} has no help"
        if field is not inherited.get(field.name) and field.name in vars(config).get("__annotations__", {}):
            assert help_text.endswith("."), field.name
            assert "\n" not in help_text, field.name


def test_nothing_is_left_to_do():
    marker = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    marked = [path.name for path in FILES if marker.search(path.read_text())]
    assert marked == []


def test_assertions_are_not_for_users():
    """User errors are ValueError or TypeError; an assert with a message is one of those in disguise."""
    assert [where(name, node) for name, node in each(ast.Assert) if node.msg is not None] == []


def test_no_star_imports_and_no_mutable_defaults():
    stars = [where(n, node) for n, node in each(ast.ImportFrom) if any(a.name == "*" for a in node.names)]
    mutable = [
        where(name, default)
        for name, node in each(ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
        for default in [*node.args.defaults, *node.args.kw_defaults]
        if isinstance(default, ast.List | ast.Dict | ast.Set)
    ]
    assert (stars, mutable) == ([], [])


NAMES = sorted(module.name for module in pkgutil.walk_packages(burnish.__path__, "burnish."))


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("__main__")])
def test_doctests(name):
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0


def test_there_are_doctests():
    """The examples in docstrings are really found and run."""
    finder = doctest.DocTestFinder()
    found = [test for name in NAMES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) >= 3


@pytest.mark.parametrize("mark", ["<" * 7 + " ", ">" * 7 + " "])
def test_no_merge_left_its_marks(mark):
    """In anything that a person reads, code included."""
    root = SOURCE.parent.parent
    folders = [
        path
        for name in ("src", "tests", "docs", "examples", "benchmarks", "tools")
        for path in (root / name).rglob("*")
    ]
    texts = [path for path in (*root.glob("*.md"), *folders) if path.suffix in (".md", ".py", ".yaml", ".json")]
    assert len(texts) > 500
    assert not [
        path for path in texts if any(line.startswith(mark) for line in path.read_text(encoding="utf-8").splitlines())
    ]
