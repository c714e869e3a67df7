"""meo_torch: the goldens by state_dict and autograd, numerical gradients, and what PyTorch does with modules."""

import copy
import io
import sys
import types
import unittest

try:
    import torch
except ModuleNotFoundError:
    print("skipped: no torch (Debian: python3-torch)")
    sys.exit(77)

import meo_torch
from golden import goldens, largest_difference


def config_of(n_experts, k, level, description_size=0):
    return types.SimpleNamespace(n_experts=n_experts, k=k, moe_level=level, description_size=description_size)


def module_of(golden):
    data = golden.metadata
    config = config_of(golden.number("num_experts"), golden.number("top_k"), data["level"],
                       int(data.get("description_size", 0)))
    factor = golden.number("reduce_factor")
    if golden.is_block:
        return meo_torch.FeedForward(golden.number("features"), golden.number("hidden_features"), config, data["kind"],
                                     data["activation"], data["gated"] == "True", reduce_factor=factor)
    narrow = type("Narrow", (meo_torch.Conv1D_MEO,), {"attention_reduce_factor": factor})  # 64 leaves nothing of 16
    kinds = {"MoE": meo_torch.MoE, "MEO": meo_torch.MEO, "Conv1D_MEO": narrow}
    return kinds[data["kind"]](golden.number("in_features"), golden.number("out_features"), config,
                               reduce_factor=factor, bias=data["bias"] == "True")


def tensor(array):
    return torch.from_numpy(array.copy())


class GoldenTest(unittest.TestCase):
    def test_forward_and_backward(self):
        for golden in goldens():
            with self.subTest(golden.name):
                self.check(golden)

    def check(self, golden):
        x = tensor(golden["x"]).requires_grad_()
        module = module_of(golden).to(x.dtype)
        state = {name: tensor(value) for name, value in golden.under("param.").items()}
        constants = {name for name in module.state_dict() if name.split(".")[-1] in ("mean", "std")}
        self.assertEqual(set(module.state_dict()) - constants, set(state))
        module.load_state_dict(state, strict=False)
        module.train(golden.metadata["training"] == "True")
        if "noise" in golden:
            module._noise = lambda x, rows: golden["noise"]
        embeddings = tensor(golden["task_embeddings"]).requires_grad_() if "task_embeddings" in golden else None

        y, loss = module(x, embeddings, loss_coef=float(golden.metadata["loss_coef"]))
        self.assertLessEqual(largest_difference(y.detach(), golden["y"]), golden.tolerance())
        self.assertLessEqual(largest_difference(loss.detach().reshape(1), golden["loss"]), 8e-7)
        ((y * tensor(golden["cotangent"])).sum() + loss).backward()
        gradients = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.requires_grad}
        gradients["x"] = x.grad
        if embeddings is not None:
            gradients["task_embeddings"] = embeddings.grad
        expected = golden.under("grad.")
        self.assertEqual(set(gradients), set(expected))
        for name, value in expected.items():
            self.assertLessEqual(largest_difference(gradients[name], value), golden.gradient_tolerance(), name)


def gradcheck(module, x, embeddings=None):
    """Numerical gradients of y and the loss by x, the embeddings and every parameter."""
    module.double()
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    for parameter in module.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5)

    def run(x, embeddings, *parameters):
        torch.manual_seed(3)  # the same noise for every difference
        module.train(module.training)  # gradcheck writes to `.data`
        for name, value in zip(names, parameters):
            owner, _, last = name.rpartition(".")
            dict(module.named_modules())[owner]._parameters[last] = value
        return module(x, embeddings)

    inputs = [x, embeddings] + [parameter.detach().clone().requires_grad_()
                                for parameter in module.parameters() if parameter.requires_grad]
    return torch.autograd.gradcheck(run, inputs, eps=1e-6, atol=1e-6, rtol=1e-4)


class GradientTest(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(1)
        self.x = torch.randn(3, 4, 6, dtype=torch.double, requires_grad=True)

    def test_layers(self):
        for kind in (meo_torch.MoE, meo_torch.MEO, meo_torch.Conv1D_MEO, meo_torch.Conv1D_MoE):
            for level in ("token", "sequence"):
                with self.subTest(kind=kind.__name__, level=level):
                    self.assertTrue(gradcheck(kind(6, 5, config_of(4, 2, level), bias=True), self.x))

    def test_tasks(self):
        embeddings = torch.randn(3, 2, 32, dtype=torch.double, requires_grad=True)
        module = meo_torch.MEO(6, 5, config_of(4, 2, "task", 32), reduce_factor=8)
        self.assertTrue(gradcheck(module, self.x, embeddings))

    def test_blocks(self):
        for kind in ("MoE", "MEO"):
            for shared_gate in (False, True):
                with self.subTest(kind=kind, shared_gate=shared_gate):
                    block = meo_torch.FeedForward(6, 5, config_of(3, 2, "sequence"), kind, gated=True,
                                                  shared_gate=shared_gate).eval()
                    self.assertTrue(gradcheck(block, self.x))


class ModuleTest(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(1)
        self.module = meo_torch.MEO(6, 5, config_of(4, 2, "sequence"), bias=True).eval()
        self.x = torch.randn(3, 4, 6)

    def y(self):
        return self.module(self.x)[0].detach()

    def test_changed_parameters_count(self):
        for name, change in (("in place", lambda: self.module.weight.mul_(2)),
                             ("loaded", lambda: self.module.load_state_dict(
                                 {name: 2 * value for name, value in self.module.state_dict().items()}))):
            with self.subTest(name), torch.no_grad():
                before = self.y()
                change()
                self.assertGreater((self.y() - before).abs().max(), 0)

    def test_in_training_data_counts(self):
        self.module.train()
        self.module.noisy_gating = False
        before = self.y()
        self.module.weight.data.mul_(2)  # as older optimisers do, unseen by PyTorch
        self.assertGreater((self.y() - before).abs().max(), 0)

    def test_eval_packs_anew(self):
        before = self.y()
        self.module.weight.data.mul_(2)
        self.module.eval()
        self.assertGreater((self.y() - before).abs().max(), 0)

    def test_copies_and_files(self):
        before = self.y()
        file = io.BytesIO()
        torch.save(self.module, file)
        file.seek(0)
        for other in (copy.deepcopy(self.module), torch.load(file)):
            self.assertTrue(torch.equal(other(self.x)[0], before))
            with torch.no_grad():
                other.weight.zero_()
                other.bias.zero_()
            self.assertEqual(other(self.x)[0].abs().max(), 0)
        self.assertTrue(torch.equal(self.y(), before))

    def test_strided_inputs_and_gradients(self):
        turned = self.x.transpose(0, 1).contiguous().transpose(0, 1)
        self.assertTrue(torch.equal(self.module(turned)[0], self.y()))
        self.module(self.x.requires_grad_())[0].sum().backward()  # a gradient that is one number, expanded
        self.assertTrue(torch.isfinite(self.x.grad).all())

    def test_two_forwards_before_their_backwards(self):
        both = [self.x.clone().requires_grad_(), (2 * self.x).requires_grad_()]
        outputs = [self.module(x)[0].square().sum() for x in both]
        for output in outputs:
            output.backward()
        weight_gradient = torch.zeros_like(self.module.weight)
        for x in both:
            module, alone = copy.deepcopy(self.module), x.detach().requires_grad_()
            module.zero_grad()
            module(alone)[0].square().sum().backward()
            self.assertTrue(torch.equal(x.grad, alone.grad))
            weight_gradient += module.weight.grad
        self.assertLess(largest_difference(self.module.weight.grad, weight_gradient), 1e-5)

    def test_what_does_not_fit_is_refused(self):
        with self.assertRaisesRegex(TypeError, "a CPU tensor of the parameters' torch.float32, got torch.float64"):
            self.module(self.x.double())
        with self.assertRaisesRegex(TypeError, "expected parameters of float32 or float64, got torch.float16"):
            self.module.half()(self.x.half())
        with self.assertRaisesRegex(ValueError, "in_features = 6 columns, got 5"):
            self.module.float()(self.x[..., :5])

    def test_noise_is_the_authors_draw(self):
        module = meo_torch.MoE(6, 5, config_of(4, 2, "token"))
        torch.manual_seed(7)
        y, _ = module(self.x)
        torch.manual_seed(7)
        noise = torch.randn_like(self.x.reshape(-1, 6) @ module.w_gate)
        module._noise = lambda x, rows: noise.detach().numpy()
        self.assertTrue(torch.equal(module(self.x)[0], y))

    def test_training(self):
        self.module.train()
        optimizer = torch.optim.Adam(self.module.parameters(), 0.01)
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            y, loss = self.module(self.x)
            loss = loss + y.square().mean()
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
        self.assertLess(losses[-1], losses[0] / 2)


if __name__ == "__main__":
    unittest.main()
