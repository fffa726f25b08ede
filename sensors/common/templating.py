"""Templates: text stays text, and models of the ``kubernetes`` package have templates inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator
from airflow.sdk.definitions._internal.templater import create_template_env
from airflow.sdk.definitions.context import render_template
from jinja2.nativetypes import NativeEnvironment

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from airflow.sdk import Context


class TextTemplates(BaseOperator):
    """Renders text as text, whatever ``render_template_as_native_obj`` says.

    A native template takes every string for Python, those without a template too: ``"1.10"`` would become
    1.1, and ``'{"lr": 0.1}'`` a dict.

    ``native_fields`` are those whose values are no text: they are rendered as Airflow would. In the
    ``structured_fields`` a template that is the whole field may give an object of the type that stands there.
    """

    native_fields: ClassVar[frozenset[str]] = frozenset()
    structured_fields: ClassVar[Mapping[str, type | tuple[type, ...]]] = {}

    def _do_render_template_fields(
        self,
        parent: Any,
        template_fields: Iterable[str],
        context: Context,
        jinja_env: Any,
        seen_oids: set[int],
    ) -> None:
        if parent is not self or not _is_native(jinja_env):
            super()._do_render_template_fields(parent, template_fields, context, jinja_env, seen_oids)
            return
        text_env = self._text_env()
        for name in template_fields:
            if not self._became_an_object(name, context, jinja_env):
                env = jinja_env if name in self.native_fields else text_env
                super()._do_render_template_fields(self, [name], context, env, seen_oids)

    def _became_an_object(self, name: str, context: Context, jinja_env: Any) -> bool:
        template = getattr(self, name)
        if not isinstance(template, str) or name not in self.structured_fields or "{{" not in template:
            return False
        value = self.render_template(template, context, jinja_env)
        kept = isinstance(value, self.structured_fields[name])
        if kept:
            setattr(self, name, value)
        return kept

    def _render_nested_template_fields(
        self, value: Any, context: Context, jinja_env: Any, seen_oids: set[int]
    ) -> None:
        inside = _attributes_of_model(value)
        if not inside:
            super()._render_nested_template_fields(value, context, jinja_env, seen_oids)
        elif id(value) not in seen_oids:
            seen_oids.add(id(value))
            self._do_render_template_fields(value, inside, context, jinja_env, seen_oids)

    def _render(self, template: Any, context: Any, dag: Any = None) -> Any:
        return render_template(template, context, native=_is_native(template.environment))

    def _text_env(self) -> Any:
        dag = self.get_dag()
        return dag.get_template_env(force_sandboxed=True) if dag else create_template_env()


def _is_native(environment: Any) -> bool:
    return isinstance(environment, NativeEnvironment)


def _attributes_of_model(value: Any) -> tuple[str, ...]:
    """The attributes of a model of a Kubernetes client; none for anything else.

    A model is recognized by its maps and not by its class, which would have to be imported.
    """
    names = getattr(type(value), "attribute_map", None)
    return tuple(names) if isinstance(names, dict) else ()
