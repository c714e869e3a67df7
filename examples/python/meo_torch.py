"""The MEO authors' PyTorch layers, computed by meo: their constructors, forwards and state_dict names, so that a model
of theirs runs on this library with

    from meo_torch import MEO, MoE, Conv1D_MEO, Conv1D_MoE

Tensors are on the CPU, float32 or float64, and share their memory with NumPy's arrays; any PyTorch that has
autograd.Function will do. Outputs have the dtype of x, where the authors' MoE gives float32 whatever x is.

The library packs weights. A module packs its parameters for every forward in training, because optimisers may change
them through `.data`, which PyTorch does not count; in eval() only after changes that it counts, and after eval()
itself: whoever writes to `.data` between two forwards in eval() calls eval() again.
"""

import threading

import torch
from torch import nn
from torch.autograd.function import once_differentiable

import meo

_LAYERS_OF = {torch.float32: meo.float32, torch.float64: meo.float64}


def _array(tensor):
    """The tensor's memory; a copy where its values do not lie side by side."""
    return None if tensor is None else tensor.detach().contiguous().numpy()


class _Engine:
    """The library's layer for a module, made for the dtype of its parameters, and its gradients."""

    def __init__(self, kind, options):
        self.kind, self.options = kind, options
        self.lock = threading.Lock()
        self.dtype = self.layer = self.gradients = self.packed = None
        self.make(torch.get_default_dtype())

    def __reduce__(self):
        return _Engine, (self.kind, self.options)

    def make(self, dtype):
        if dtype not in _LAYERS_OF:
            raise TypeError(f"expected parameters of float32 or float64, got {dtype}")
        self.layer = getattr(_LAYERS_OF[dtype], self.kind)(**self.options)
        context = "FeedForwardContext" if "FeedForward" in self.kind else "Context"
        self.context_type = getattr(_LAYERS_OF[dtype], context)
        self.dtype, self.gradients, self.packed = dtype, None, None

    def pack(self, parameters, always):
        """Fills the layer from the parameters, in the order of its shapes."""
        with self.lock:
            if parameters[0].dtype != self.dtype:
                self.make(parameters[0].dtype)
            stamps = [(parameter.data_ptr(), parameter._version) for parameter in parameters]
            if not always and stamps == self.packed:
                return
            for name, parameter in zip(self.layer.shapes(), parameters):
                self.layer.set(name, _array(parameter))
            self.packed = stamps


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, engine, training, noise, x, task_embeddings, *parameters):
        if x.device.type != "cpu" or any(parameter.dtype != x.dtype for parameter in parameters):
            raise TypeError(f"x: expected a CPU tensor of the parameters' {parameters[0].dtype}, got {x.dtype} on "
                            f"{x.device}")
        engine.pack(parameters, training)
        ctx.engine, ctx.context = engine, engine.context_type()
        ctx.save_for_backward(x, task_embeddings, *parameters)
        y, decided = engine.layer.forward(_array(x), task_embeddings=_array(task_embeddings), noise=noise,
                                          context=ctx.context)
        return torch.from_numpy(y), x.new_tensor(decided.loss)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, d_loss):
        x, task_embeddings, *parameters = ctx.saved_tensors
        engine = ctx.engine
        with engine.lock:
            if engine.gradients is None:
                engine.gradients = engine.layer.zeros_like()
            else:
                engine.gradients.set_zero()
            dx = engine.layer.backward(_array(x), _array(dy), engine.gradients, ctx.context,
                                       task_embeddings=_array(task_embeddings), d_loss=float(d_loss))
            gradients = [torch.empty(parameter.shape, dtype=parameter.dtype) if needed else None
                         for parameter, needed in zip(parameters, ctx.needs_input_grad[5:])]
            for name, gradient in zip(engine.layer.shapes(), gradients):
                if gradient is not None:
                    engine.gradients.get(name, gradient.numpy())
        d_embeddings = None
        if task_embeddings is not None:
            d_embeddings = torch.from_numpy(ctx.context.task_embeddings_gradient()).view(task_embeddings.shape)
        return (None, None, None, torch.from_numpy(dx), d_embeddings, *gradients)


class _Mixture(nn.Module):
    """A layer or a block; forward returns y and the balance loss."""

    def __init__(self, kind, config, noisy_gating, options):
        super().__init__()
        self.n_experts, self.k, self.moe_level = config.n_experts, config.k, config.moe_level
        self.noisy_gating = noisy_gating
        if self.moe_level == "task":
            options["task_features"] = config.description_size
        # The coefficient of the loss is an argument of forward.
        self._engine = _Engine(kind, dict(options, num_experts=config.n_experts, top_k=config.k,
                                          level=config.moe_level, loss_coefficient=1.0))
        self._register(self._engine.layer.shapes())

    def _register(self, shapes):
        """Modules and parameters under the names, with start values."""
        for name, shape in shapes.items():
            *path, last = name.split(".")
            if len(shape) == 2 and last == "weight":
                linear = nn.Linear(shape[1], shape[0], bias=name[:-len("weight")] + "bias" in shapes)
                if path[-2:-1] == ["tokenatt"]:
                    nn.init.zeros_(linear.bias)
                    if path[-1] == "up_proj":
                        nn.init.zeros_(linear.weight)
                self._module_at(path[:-1]).add_module(path[-1], linear)
            elif len(shape) == 1:
                continue  # a bias, of a Linear that has it
            else:
                parent = self._module_at(path)
                values = torch.zeros(shape)
                if last in ("weight", "bias"):
                    bound = shapes[name[:-len(last)] + "weight"][-1] ** -0.5
                    nn.init.uniform_(values, -bound, bound)
                parent.register_parameter(last, nn.Parameter(values))
                if last == "w_gate":  # of the authors' normal distribution; in state_dict, not trained
                    parent.mean = nn.Parameter(torch.tensor([0.0]), requires_grad=False)
                    parent.std = nn.Parameter(torch.tensor([1.0]), requires_grad=False)

    def _module_at(self, path):
        module = self
        for i, name in enumerate(path):
            if not hasattr(module, name):
                is_list = i + 1 < len(path) and path[i + 1].isdigit() or name == "experts"
                module.add_module(name, nn.ModuleList() if is_list else nn.Module())
            module = getattr(module, name)
        return module

    def train(self, mode=True):
        self._engine.packed = None
        return super().train(mode)

    def _noise(self, x, rows):
        """What the gate adds to its logits, drawn as the authors draw it."""
        if not self.training or not self.noisy_gating:
            return None
        return torch.randn(rows, self.n_experts, dtype=x.dtype).numpy()

    def _rows(self, x):
        """The gate's rows: sequences, in a MoE at token level tokens."""
        return x.shape[0]

    def forward(self, x, task_embeddings=None, loss_coef=1e-2):
        """x: (…, tokens, features); task_embeddings: (sequences or 1, tokens, description_size). Returns y and loss."""
        if x.dim() < 2:
            raise ValueError(f"x: expected (…, tokens, features), got {tuple(x.shape)}")
        if task_embeddings is not None and task_embeddings.dim() != 3:
            raise ValueError("task_embeddings: expected (sequences or 1, tokens, description_size), got "
                             f"{tuple(task_embeddings.shape)}")
        batch = x.reshape(-1, *x.shape[-2:])
        parameters = dict(self.named_parameters())
        y, loss = _Forward.apply(self._engine, self.training, self._noise(batch, self._rows(batch)), batch,
                                 task_embeddings, *[parameters[name] for name in self._engine.layer.shapes()])
        return y.reshape(*x.shape[:-1], y.shape[-1]), loss * loss_coef


class MoE(_Mixture):
    """The vanilla mixture. config: k, n_experts, moe_level (token, sequence or task), description_size at task level."""

    def __init__(self, input_size, hidden_size, config, noisy_gating=True, reduce_factor=16, bias=False):
        super().__init__("MoeLayer", config, noisy_gating,
                         dict(in_features=input_size, out_features=hidden_size, reduce_factor=reduce_factor, bias=bias))
        self.input_size, self.output_size = input_size, hidden_size

    def _rows(self, x):
        return x.shape[0] * x.shape[1] if self.moe_level == "token" else x.shape[0]


class Conv1D_MoE(MoE):
    """As GPT-2 has it: with biases."""

    def __init__(self, input_size, hidden_size, config, noisy_gating=True, reduce_factor=16, bias=True):
        super().__init__(input_size, hidden_size, config, noisy_gating, reduce_factor, bias)


class MEO(_Mixture):
    """The selected experts merged to one."""

    def __init__(self, input_size, output_size, config, noisy_gating=True, reduce_factor=64, bias=False):
        super().__init__("MeoLayer", config, noisy_gating,
                         dict(in_features=input_size, out_features=output_size, reduce_factor=reduce_factor, bias=bias))


class Conv1D_MEO(_Mixture):
    """As GPT-2 has it: with biases, and a gate that sees x as it was before token attention."""

    attention_reduce_factor = 64  # whatever the reduce_factor, which is the task projection's

    def __init__(self, input_size, output_size, config, noisy_gating=True, reduce_factor=16, bias=True):
        if config.moe_level == "token":
            reduce_factor = self.attention_reduce_factor
        super().__init__("MeoLayer", config, noisy_gating,
                         dict(in_features=input_size, out_features=output_size, reduce_factor=reduce_factor, bias=bias,
                              gate_before_attention=True))


class FeedForward(_Mixture):
    """A block down(activation(up(x))), or with gated down(activation(up(x)) · gate_up(x)), whose projections are mixtures
    of the kind "MoE" or "MEO", under the names up., gate_up. and down. With shared_gate one gate decides for all."""

    def __init__(self, features, hidden_features, config, kind="MEO", activation="gelu", gated=False, shared_gate=False,
                 noisy_gating=True, reduce_factor=64, bias=False):
        kinds = {"MoE": "MoeFeedForward", "MEO": "MeoFeedForward"}
        if kind not in kinds:
            raise ValueError(f"kind: expected MoE or MEO, got {kind}")
        super().__init__(kinds[kind], config, noisy_gating,
                         dict(features=features, hidden_features=hidden_features, activation=activation, gated=gated,
                              shared_gate=shared_gate, reduce_factor=reduce_factor, bias=bias))

    def _noise(self, x, rows):
        """A seed, of which each gate draws noise of its own."""
        return int(torch.randint(2**62, ())) if self.training and self.noisy_gating else None
