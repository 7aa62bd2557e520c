"""A mypy plugin that adds ``.remote`` to classes decorated with `remote`; mypy ignores the types of class decorators.

::

    [tool.mypy]
    plugins = ["pyray_ser.mypy_plugin"]

No plugin is needed for pyright, or for decorated functions.
"""

from collections.abc import Callable

from mypy.nodes import ARG_STAR, ARG_STAR2, Argument, FuncDef, Var
from mypy.plugin import ClassDefContext, Plugin
from mypy.plugins.common import add_attribute_to_class, add_method_to_class
from mypy.types import AnyType, CallableType, Instance, Parameters, Type, TypeOfAny, TypeType, UnionType

__all__ = ["RemotePlugin", "plugin"]

_TYPED = "pyray_ser.tasks.typed"


def _any() -> AnyType:
    return AnyType(TypeOfAny.special_form)


def _anything() -> list[Argument]:
    """Return the argument list that stands for an unknown function."""
    return [
        Argument(Var("args", _any()), _any(), None, ARG_STAR),
        Argument(Var("kwargs", _any()), _any(), None, ARG_STAR2),
    ]


def _arguments(context: ClassDefContext) -> list[Argument] | None:
    """Return the arguments of the class, each of which may be a reference; None if they are not known yet."""
    found = context.cls.info.get("__init__")
    if found is None or found.node is None:
        return []
    node = found.node
    if not isinstance(node, FuncDef):
        return _anything()  # overloaded, or decorated
    if node.info.fullname == "builtins.object":
        return []
    kinds = list(zip(node.arguments, node.arg_kinds, strict=True))[1:]
    if not isinstance(node.type, CallableType):
        types: list[Type] = [_any() for _ in kinds]
    else:
        types = list(node.type.arg_types[1:])
    made = []
    for (argument, kind), kind_type in zip(kinds, types, strict=True):
        given = UnionType.make_union([kind_type, *_references(context)])
        made.append(Argument(Var(argument.variable.name, given), given, argument.initializer, kind))
    return made


def _references(context: ClassDefContext) -> list[Type]:
    found = [
        context.api.named_type_or_none(name, [_any()]) for name in ("pyray_ser._core.ObjectRef", f"{_TYPED}.TaskRef")
    ]
    return [kind for kind in found if kind is not None]


def _make_remote(context: ClassDefContext) -> bool:
    """Give a class the attributes of an `ActorClass`."""
    info = context.cls.info
    own = Instance(info, [_any() for _ in info.type_vars])
    handle = context.api.named_type_or_none(f"{_TYPED}.ActorHandle", [own])
    unknown = Parameters([_any(), _any()], [ARG_STAR, ARG_STAR2], [None, None])
    other = context.api.named_type_or_none(f"{_TYPED}.ActorClass", [unknown, own])
    arguments = _arguments(context)
    if handle is None or other is None or arguments is None:
        return not context.api.defer()
    add_method_to_class(context.api, context.cls, "remote", arguments, handle, is_classmethod=True)
    keywords = [_anything()[1]]
    add_method_to_class(context.api, context.cls, "options", keywords, other, is_classmethod=True)
    add_attribute_to_class(context.api, context.cls, "local", TypeType(own), is_classvar=True)
    return True


class RemotePlugin(Plugin):
    """The hooks for class decorators."""

    def get_class_decorator_hook_2(self, fullname: str) -> Callable[[ClassDefContext], bool] | None:
        """Return the hook for the decorator of that name."""
        return _make_remote if fullname in ("pyray_ser.remote", f"{_TYPED}.remote") else None


def plugin(version: str) -> type[Plugin]:
    """Return the plugin; mypy calls this function."""
    return RemotePlugin
