"""Locates the parts of a causal language model: decoder blocks, embedding, head, hidden states.

No other module depends on how architectures name their parts. Layer ℓ is the output of decoder
block ℓ, counted from 1, taken by a hook: transformers' `hidden_states` shows the last one after
the final norm.
"""

import re
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import UserError

Hook = Callable[..., Any]
MIXER = re.compile(r"attn|attention|mixer|mamba|ssm|conv|recurrent", re.IGNORECASE)
_POST_NORMS = (
    ("post_self_attn_layernorm", "post_mlp_layernorm"),  # GLM-4: its post_attention_ is the MLP's
    ("post_attention_layernorm", "post_feedforward_layernorm"),
    ("post_attention_layernorm", "post_mlp_layernorm"),
    ("post_operator_norm", "post_ffn_norm"),
    ("post_norm1", "post_norm2"),
)
_PER_LAYER_NORM = "post_per_layer_input_norm"  # of Gemma 4's smaller models, which write a third
_MIXER_OF_POSITIONS = re.compile(rf"{MIXER.pattern}|temporal|lstm", re.IGNORECASE)
_OF_EACH_POSITION = re.compile(r"mlp|moe|feed_forward|ffn", re.IGNORECASE)


@dataclass(frozen=True)
class Before:
    """A hook on a module's arguments: `(module, args, kwargs) -> (args, kwargs)`, or None.

    Attributes:
        function: the hook.
        whole_pass: whether its input determines what other hooks do, so that a block run alone,
            without it, would have another output.
    """

    function: Hook
    whole_pass: bool = False

    def __call__(self, *arguments: Any) -> Any:
        """Return the hook's result."""
        return self.function(*arguments)


def blocks_run_alone(model: nn.Module) -> bool:
    """Return whether a block run alone has its output of a whole pass: no hook needs the whole."""
    return not any(
        isinstance(hook, Before) and hook.whole_pass
        for module in model.modules()
        for hook in module._forward_pre_hooks.values()
    )


def decoder_list(model: nn.Module) -> nn.ModuleList:
    """Return the list of decoder blocks: the outermost list of `num_hidden_layers` modules.

    Raises:
        UserError: if the model has no such list.
    """
    config: Any = getattr(model, "config", None)
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    count = getattr(text, "num_hidden_layers", None)
    lists = [
        (name.count("."), module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not lists:
        raise UserError(
            f"{type(model).__name__} has no list of {count} decoder blocks to count layers by: "
            "select parameters by all or re:PATTERN"
        )
    return min(lists, key=lambda found: found[0])[1]


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the decoder blocks in order, layer 1 first."""
    return list(decoder_list(model))


def layer_output(model: nn.Module, layer: int) -> nn.Module:
    """Return the module whose output is layer `layer`, counted from 1.

    Raises:
        UserError: if there is no such layer.
    """
    blocks = decoder_layers(model)
    if not isinstance(layer, Integral) or not 1 <= layer <= len(blocks):
        raise UserError(f"layer {layer!r} of {len(blocks)}: choose from 1 to {len(blocks)}")
    return blocks[layer - 1]


def decoder(model: nn.Module) -> nn.Module:
    """Return the module that holds the decoder blocks: token ids and cache go into it."""
    blocks = decoder_list(model)
    return next(m for m in model.modules() if any(child is blocks for child in m.children()))


def writers(block: nn.Module) -> list[nn.Module]:
    """Return the modules of a block whose outputs are added to the residual stream.

    Attention (or another mixer of positions; both, where two stand side by side) and the MLP (a
    mixture and the MLP that all tokens share); where each is followed by a norm of its own (Gemma 2
    and 3, OLMo 2, GLM-4), those norms. In order, and only modules with parameters.
    """
    children = {name: m for name, m in block.named_children() if any(True for _ in m.parameters())}
    norms = {name: m for name, m in children.items() if "norm" in f"{name}{type(m)}".lower()}
    for pair in _POST_NORMS:
        if norms.keys() >= set(pair):
            return [norms[name] for name in (*pair, _PER_LAYER_NORM) if name in norms]
    rest = {n: m for n, m in children.items() if n not in norms and not n.startswith("ln_")}
    mixers = [m for name, m in rest.items() if _MIXER_OF_POSITIONS.search(name)]
    others = {n: m for n, m in rest.items() if not _MIXER_OF_POSITIONS.search(n)}
    plain = [m for name, m in others.items() if _OF_EACH_POSITION.search(name)]
    return [*mixers, *(plain or list(others.values())[-1:])]


def head(model: nn.Module) -> nn.Module | None:
    """Return the module of the output matrix, `None` where the model names none."""
    find: Any = getattr(model, "get_output_embeddings", None)
    return find() if find else None


def embedding(model: nn.Module) -> nn.Module | None:
    """Return the module of the token embedding, `None` where the model names none."""
    find: Any = getattr(model, "get_input_embeddings", None)
    return find() if find else None


def hidden_state(output: Any) -> Tensor:
    """Return the hidden state in a decoder block's output, which some families wrap in a tuple."""
    return output if isinstance(output, Tensor) else output[0]


def with_output_state(output: Any, state: Tensor) -> Any:
    """Return a decoder block's output with another hidden state, in the same form.

    The form is a tensor, a tuple or, in OpenAI's first GPT, a list.
    """
    return state if isinstance(output, Tensor) else type(output)((state, *output[1:]))


@contextmanager
def hooked(pairs: Iterable[tuple[nn.Module, Hook | Before]]) -> Generator[None]:
    """Apply hooks, `[(module, hook)]`: a hook's result replaces the module's output.

    A hook wrapped in `Before` receives, and may replace, the module's arguments instead.
    """
    with ExitStack() as stack:
        for module, hook in pairs:
            if isinstance(hook, Before):
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            else:
                handle = module.register_forward_hook(hook)
            stack.callback(handle.remove)
        yield


@contextmanager
def capture(model: nn.Module, layer: int) -> Generator[list[Float[Tensor, "batch seq hidden"]]]:
    """Collect the output of block `layer`.

    Yields:
        The list that each forward pass appends it to.
    """
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        found.append(hidden_state(output))

    with hooked([(layer_output(model, layer), keep)]):
        yield found


@contextmanager
def reading_last_positions(
    model: nn.Module, last: Int[Tensor, " batch"]
) -> Generator[Callable[[Tensor], Tensor]]:
    """Compute logits at one position of each row only, `last`.

    Yields:
        A function from the model's logits, of all positions or of that one, to `[batch, vocab]`.
    """

    def gather(values: Float[Tensor, "batch seq width"]) -> Float[Tensor, "batch 1 width"]:
        rows = torch.arange(len(last), device=values.device)
        return values[rows, last.to(values.device)].unsqueeze(1)

    def narrow(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (gather(inputs[0]), *inputs[1:])

    output = head(model)
    with ExitStack() as stack:
        if output is not None:
            stack.callback(output.register_forward_pre_hook(narrow).remove)
        yield lambda logits: (gather(logits) if output is None else logits)[:, 0]


@contextmanager
def reading_ends(model: nn.Module, number: int) -> Generator[None]:
    """Compute logits at the last `number` positions only, where the model's head is a module.

    A head that is not called leaves the logits of all positions: take the last `number` of them.
    """

    def narrow(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0][:, -number:], *inputs[1:])

    output = head(model)
    with ExitStack() as stack:
        if output is not None:
            stack.callback(output.register_forward_pre_hook(narrow).remove)
        yield


@contextmanager
def experts_one_by_one(model: nn.Module) -> Generator[None]:
    """Run each expert of a mixture on its own tokens, by transformers' eager loop, in any dtype."""
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    before = [(c, getattr(c, "_experts_implementation", None)) for c in configs.values()]
    mixtures = [(config, name) for config, name in before if name is not None]
    try:
        for config, _ in mixtures:
            config._experts_implementation = "eager"
        yield
    finally:
        for config, name in mixtures:
            config._experts_implementation = name
