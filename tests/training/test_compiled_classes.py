"""Steps by graph notice what classes and modules hold beside their attributes: hooks, and more."""

import functools

import pyro
import pytest
import torch
from training.compiled_cases import normal

import pyro_ext as px

X = torch.arange(10.0) / 10


def a_forward_hook():
    layer = torch.nn.Linear(1, 1)
    model = lambda x: normal(x, layer(torch.ones(1)).squeeze())  # noqa: E731
    return model, lambda: layer.register_forward_hook(lambda module, args, out: out + 3.0)


def a_hook_before():
    layer = torch.nn.Linear(1, 1)
    model = lambda x: normal(x, layer(torch.ones(1)).squeeze())  # noqa: E731
    return model, lambda: layer.register_forward_pre_hook(lambda module, args: (args[0] * 5.0,))


def a_hook_that_is_gone():
    layer = torch.nn.Linear(1, 1)
    handle = layer.register_forward_hook(lambda module, args, out: out + 3.0)
    return lambda x: normal(x, layer(torch.ones(1)).squeeze()), handle.remove


def a_number_of_a_hook():
    layer, shift = torch.nn.Linear(1, 1), [3.0]
    layer.register_forward_hook(lambda module, args, out: out + shift[0])

    def change():
        shift[0] = 5.0

    return lambda x: normal(x, layer(torch.ones(1)).squeeze()), change


def a_class_attribute():
    class Model:
        scale = 1.0

        def __call__(self, x):
            normal(x, scale=self.scale)

    return Model(), lambda: setattr(Model, "scale", 3.0)


def an_attribute_of_a_modules_base():
    class Base(torch.nn.Module):
        scale = 1.0

    class Model(Base):
        def forward(self, x):
            normal(x, scale=self.scale)

    return Model(), lambda: setattr(Base, "scale", 3.0)


def a_class_of_settings():
    class Settings:
        scale = 1.0

    return lambda x: normal(x, scale=Settings.scale), lambda: setattr(Settings, "scale", 3.0)


def an_attribute_that_is_added():
    class Model:
        def __call__(self, x):
            normal(x, scale=getattr(self, "scale", 1.0))

    return Model(), lambda: setattr(Model, "scale", 3.0)


def an_attribute_that_an_object_gets():
    class Model:
        def __call__(self, x):
            normal(x, scale=getattr(self, "scale", 1.0))

    model = Model()
    return model, lambda: setattr(model, "scale", 3.0)


def an_attribute_that_a_module_gets():
    class Model(torch.nn.Module):
        def forward(self, x):
            normal(x, scale=getattr(self, "scale", 1.0))

    model = Model()
    return model, lambda: setattr(model, "scale", 3.0)


def a_method_that_is_replaced():
    class Model:
        def __call__(self, x):
            normal(x, scale=self.scale_of())

        def scale_of(self):
            return 1.0

    return Model(), lambda: setattr(Model, "scale_of", lambda self: 3.0)


def reading(kind):
    """Return a model that reads a number by a property, and a function that changes it."""
    known = {"scale": 1.0}

    class Model:
        if kind == "property":
            scale = property(lambda self: known["scale"])
        elif kind == "static method":
            read = staticmethod(lambda: known["scale"])
        else:
            read = classmethod(lambda cls: known["scale"])

        def __call__(self, x):
            normal(x, scale=self.scale if kind == "property" else self.read())

    return Model(), lambda: known.update(scale=3.0)


def a_list_that_was_empty():
    numbers = []
    return lambda x: normal(x, scale=1.0 + sum(numbers)), lambda: numbers.append(5.0)


def a_dict_that_was_empty():
    numbers = {}
    model = lambda x: normal(x, scale=1.0 + sum(numbers.values()))  # noqa: E731
    return model, lambda: numbers.update(a=5.0)


def layers_that_were_none():
    layers = torch.nn.ModuleList()

    def model(x):
        loc = torch.ones(())
        for layer in layers:
            loc = layer(loc)
        normal(x, loc)

    return model, lambda: layers.append(torch.nn.Softplus())


CASES = {
    make.__name__: make
    for make in (
        a_forward_hook,
        a_hook_before,
        a_hook_that_is_gone,
        a_number_of_a_hook,
        a_class_attribute,
        an_attribute_of_a_modules_base,
        a_class_of_settings,
        an_attribute_that_is_added,
        an_attribute_that_an_object_gets,
        an_attribute_that_a_module_gets,
        a_method_that_is_replaced,
        a_list_that_was_empty,
        a_dict_that_was_empty,
        layers_that_were_none,
    )
} | {
    kind: functools.partial(reading, kind)
    for kind in ("property", "static method", "class method")
}


def losses(make, *, compile):
    pyro.clear_param_store()
    torch.manual_seed(0)
    model, change = make()
    guide = px.AutoJoint(model)
    adam = functools.partial(torch.optim.Adam, lr=0.05)
    svi = px.CompiledSVI(model, guide, adam, px.ELBO(), compile=compile)
    found = []
    for step in range(7):
        if step == 4:
            assert (svi._last is not None) == bool(compile)
            change()
        torch.manual_seed(step)
        found.append(svi.step(X))
    return found


@pytest.mark.parametrize("name", CASES)
def test_losses_are_the_eager_ones(name):
    assert losses(CASES[name], compile="record") == losses(CASES[name], compile=False)
