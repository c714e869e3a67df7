"""The module meo: goldens forward and backward, arrays taken without copies or refused, threads."""

import threading
import time
import unittest

import numpy

import meo
from golden import goldens, largest_difference


def of_dtype(dtype):
    return {"float32": meo.float32, "float64": meo.float64}[str(numpy.dtype(dtype))]


def layer_of(golden):
    data, namespace = golden.metadata, of_dtype(golden.dtype)
    options = dict(num_experts=golden.number("num_experts"), top_k=golden.number("top_k"), level=data["level"],
                   reduce_factor=golden.number("reduce_factor"), loss_coefficient=float(data["loss_coef"]))
    is_moe = data["kind"] == "MoE"
    if golden.is_block:
        kind = namespace.MoeFeedForward if is_moe else namespace.MeoFeedForward
        layer = kind(features=golden.number("features"), hidden_features=golden.number("hidden_features"), bias=False,
                     activation=data["activation"], gated=data["gated"] == "True", **options)
    else:
        if data["level"] == "task":
            options["task_features"] = golden.number("description_size")
        kind = namespace.MoeLayer if is_moe else namespace.MeoLayer
        layer = kind(in_features=golden.number("in_features"), out_features=golden.number("out_features"),
                     bias=data["bias"] == "True", gate_before_attention=data["kind"] == "Conv1D_MEO", **options)
    for name, value in golden.under("param.").items():
        layer.set(name, value)
    return layer


def context_of(golden):
    namespace = of_dtype(golden.dtype)
    return namespace.FeedForwardContext() if golden.is_block else namespace.Context()


class GoldenTest(unittest.TestCase):
    def test_forward_and_backward(self):
        files = goldens()
        self.assertEqual(len(files), 100)
        for golden in files:
            with self.subTest(golden.name):
                self.check(golden)

    def check(self, golden):
        layer, context = layer_of(golden), context_of(golden)
        inputs = {"task_embeddings": golden["task_embeddings"]} if "task_embeddings" in golden else {}
        noise = golden["noise"] if "noise" in golden else None
        y, decided = layer.forward(golden["x"], noise=noise, context=context, **inputs)
        self.assertLessEqual(largest_difference(y, golden["y"]), golden.tolerance())
        self.assertLessEqual(largest_difference([decided.loss], golden["loss"]), 8e-7)
        if not golden.is_block:
            self.assertLessEqual(largest_difference(decided.gates(), golden["gates"]), golden.tolerance())
            self.assertLessEqual(largest_difference(decided.load, golden["load"]), golden.tolerance())

        gradients = layer.zeros_like()
        dx = layer.backward(golden["x"], golden["cotangent"], gradients, context, **inputs)
        bound = golden.gradient_tolerance()
        expected = golden.under("grad.")
        self.assertLessEqual(largest_difference(dx, expected.pop("x")), bound)
        if "task_embeddings" in expected:
            got = context.task_embeddings_gradient().reshape(golden["task_embeddings"].shape)
            self.assertLessEqual(largest_difference(got, expected.pop("task_embeddings")), bound)
        self.assertEqual(set(expected), set(layer.shapes()))
        for name, value in expected.items():
            self.assertLessEqual(largest_difference(gradients.get(name), value), bound, name)


class ArrayTest(unittest.TestCase):
    def setUp(self):
        self.layer = meo.float32.MeoLayer(in_features=5, out_features=7, num_experts=4, top_k=2)
        self.layer.initialize(1)
        self.x = numpy.random.default_rng(1).standard_normal((6, 5)).astype(numpy.float32)
        self.y, _ = self.layer.forward(self.x)

    def test_rows_apart_are_taken_as_they_are(self):
        wide = numpy.full((6, 9), numpy.nan, numpy.float32)
        wide[:, 2:7] = self.x
        numpy.testing.assert_array_equal(self.layer.forward(wide[:, 2:7])[0], self.y)
        twice = numpy.full((12, 5), numpy.nan, numpy.float32)
        twice[::2] = self.x
        numpy.testing.assert_array_equal(self.layer.forward(twice[::2])[0], self.y)
        fixed = self.x.copy()
        fixed.setflags(write=False)
        numpy.testing.assert_array_equal(self.layer.forward(fixed)[0], self.y)

    def test_outputs_are_written_in_place(self):
        wide = numpy.full((6, 9), 42, numpy.float32)
        y, _ = self.layer.forward(self.x, y=wide[:, :7])
        self.assertTrue(numpy.shares_memory(y, wide))
        numpy.testing.assert_array_equal(wide[:, :7], self.y)
        numpy.testing.assert_array_equal(wide[:, 7:], 42)

    def test_sequences(self):
        both, decided = self.layer.forward(numpy.stack([self.x, 2 * self.x]))
        self.assertEqual(both.shape, (2, 6, 7))
        self.assertEqual(decided.experts.shape, (2, 2))
        numpy.testing.assert_array_equal(both[0], self.y)
        ragged, decided = self.layer.forward(numpy.concatenate([self.x, self.x[:2]]), lengths=[6, 2])
        numpy.testing.assert_array_equal(ragged[:6], self.y)
        self.assertEqual(decided.weights.shape, (2, 2))

    def test_route_is_what_forward_decides(self):
        both = numpy.stack([self.x, 2 * self.x])
        _, decided = self.layer.forward(both)
        routing = self.layer.route(both)
        numpy.testing.assert_array_equal(routing.experts, decided.experts)
        numpy.testing.assert_array_equal(routing.weights, decided.weights)

    def refused(self, error, message, *arguments, **named):
        with self.assertRaisesRegex(error, message):
            self.layer.forward(*arguments, **named)

    def test_what_cannot_be_taken_is_refused(self):
        x, zeros = self.x, numpy.zeros
        self.refused(TypeError, "x: expected float32, got float64", x.astype(numpy.float64))
        self.refused(TypeError, "x: expected float32, got >f4", x.astype(">f4"))
        self.refused(ValueError, "x: expected tokens x features", x[0])
        self.refused(ValueError, "x: expected in_features = 5 columns, got 4", numpy.ascontiguousarray(x[:, :4]))
        self.refused(ValueError, "ascontiguousarray", numpy.asfortranarray(x))
        self.refused(ValueError, "ascontiguousarray", zeros((6, 10), numpy.float32)[:, ::2])
        self.refused(ValueError, "ascontiguousarray", x[::-1])
        self.refused(ValueError, "ascontiguousarray", numpy.broadcast_to(x[0], (6, 5)))
        self.refused(ValueError, "ascontiguousarray", zeros((2, 6, 5), numpy.float32)[:, :3])
        unaligned = numpy.frombuffer(bytes(6 * 5 * 4 + 1), numpy.int8)[1:].view(numpy.float32).reshape(6, 5)
        self.refused(ValueError, "x: expected aligned values", unaligned)
        self.refused(ValueError, "sequence.*expected 6 tokens in all.*got 5", x, lengths=[3, 2])
        self.refused(ValueError, "lengths: expected none", x.reshape(2, 3, 5), lengths=[3, 3])
        self.refused(ValueError, r"y: expected shape \(6, 7\), got \(6, 8\)", x, y=zeros((6, 8), numpy.float32))
        self.refused(TypeError, "y: expected float32, got float64", x, y=zeros((6, 7)))
        self.refused(ValueError, "y: expected an array to write to", x, y=numpy.broadcast_to(self.y, (6, 7)))
        self.refused(TypeError, "noise: expected", x, noise="normal")
        self.refused(ValueError, "noise.*expected 1 x 4, got 2 x 4", x, noise=zeros((2, 4), numpy.float32))

    def test_an_output_over_its_input_is_refused(self):
        square = meo.float32.MoeLayer(in_features=5, out_features=5, num_experts=2)
        with self.assertRaisesRegex(ValueError, "y: expected memory that does not overlap x"):
            square.forward(self.x, y=self.x)

    def test_options_are_checked(self):
        with self.assertRaisesRegex(ValueError, "top_k: expected 1 to num_experts = 4, got 5"):
            meo.float32.MeoLayer(in_features=5, out_features=7, num_experts=4, top_k=5)
        with self.assertRaisesRegex(ValueError, "level: expected one of token"):
            meo.float32.MeoLayer(in_features=5, out_features=7, num_experts=4, level="word")

    def test_noise_of_a_seed_repeats(self):
        gates = [self.layer.forward(self.x, noise=seed)[1].gates() for seed in (3, 3, 4)]
        numpy.testing.assert_array_equal(gates[0], gates[1])
        self.assertGreater(numpy.abs(gates[0] - gates[2]).max(), 0)


class ParameterTest(unittest.TestCase):
    def setUp(self):
        self.layer = meo.float64.MeoLayer(in_features=5, out_features=7, num_experts=4, top_k=2)
        self.layer.initialize(1)

    def test_names_and_shapes(self):
        self.assertEqual(self.layer.shapes(),
                         {"w_gate": (5, 4), "w_noise": (5, 4), "weight": (4, 7, 5), "bias": (4, 7)})

    def test_set_and_get(self):
        weight = numpy.arange(140.0).reshape(4, 7, 5)
        self.layer.set("weight", weight)
        numpy.testing.assert_array_equal(self.layer.get("weight"), weight)
        out = numpy.zeros((4, 7, 5))
        self.assertIs(self.layer.get("weight", out), out)
        numpy.testing.assert_array_equal(out, weight)

    def test_refused(self):
        with self.assertRaisesRegex(KeyError, "expected one of w_gate.*got weights"):
            self.layer.get("weights")
        with self.assertRaisesRegex(ValueError, r"weight: expected shape \(4, 7, 5\), got \(4, 5, 7\)"):
            self.layer.set("weight", numpy.zeros((4, 5, 7)))
        with self.assertRaisesRegex(ValueError, "C-contiguous"):
            self.layer.set("weight", numpy.zeros((5, 7, 4)).T)
        with self.assertRaisesRegex(TypeError, "weight: expected float64, got float32"):
            self.layer.set("weight", numpy.zeros((4, 7, 5), numpy.float32))
        read_only = numpy.zeros((4, 7, 5))
        read_only.setflags(write=False)
        with self.assertRaisesRegex(ValueError, "weight: expected an array to write to"):
            self.layer.get("weight", read_only)

    def test_ranges_are_the_layers_memory_and_keep_it(self):
        ranges = self.layer.ranges()
        self.assertEqual(list(ranges), ["w_gate", "w_noise", "experts"])
        bias = self.layer.get("bias")
        ranges["experts"] *= 2
        numpy.testing.assert_array_equal(self.layer.get("bias"), 2 * bias)
        del self.layer
        self.assertTrue(numpy.isfinite(ranges["experts"]).all())

    def test_a_step_lowers_the_loss(self):
        x = numpy.random.default_rng(1).standard_normal((6, 5))
        context, gradients, losses = meo.float64.Context(), self.layer.zeros_like(), []
        for _ in range(2):
            y, _ = self.layer.forward(x, context=context)
            losses.append((y ** 2).sum() / 2)
            gradients.set_zero()
            self.layer.backward(x, y, gradients, context, d_loss=0)
            for name, values in self.layer.ranges().items():
                values -= 0.01 * gradients.ranges()[name]
        self.assertLess(losses[1], losses[0])

    def test_backward_without_its_forward_is_refused(self):
        x, dy = numpy.zeros((6, 5)), numpy.zeros((6, 7))
        with self.assertRaisesRegex(ValueError, "context: expected what a forward leaves"):
            self.layer.backward(x, dy, self.layer.zeros_like(), meo.float64.Context())


class MergedTest(unittest.TestCase):
    """Kept experts against the mixtures that they were merged from, to the bit where those merge first."""

    def setUp(self):
        self.x = numpy.random.default_rng(1).standard_normal((2, 6, 5)).astype(numpy.float32)

    def layer(self, kind="MeoLayer", **options):
        layer = getattr(meo.float32, kind)(in_features=5, out_features=7, num_experts=4, top_k=3,
                                           merge_order="merge_first", **options)
        layer.initialize(1)
        return layer

    def test_expert(self):
        for kind in ("MeoLayer", "MoeLayer"):
            layer = self.layer(kind)
            kept = meo.float32.MergedExpert(layer, layer.route(self.x))
            y, _ = self.layer().forward(self.x)
            self.assertEqual(kept.rows, 2)
            numpy.testing.assert_array_equal(kept.forward(self.x), y)
            one = meo.float32.MergedExpert(layer, layer.route(self.x), row=1)
            numpy.testing.assert_array_equal(one.forward(self.x[1]), y[1])
            out = numpy.zeros((8, 7), numpy.float32)
            ragged = numpy.concatenate([self.x[0], self.x[1, :2]])
            self.assertIs(kept.forward(ragged, lengths=[6, 2], y=out), out)
            numpy.testing.assert_array_equal(out, numpy.concatenate([y[0], y[1, :2]]))

    def test_merged_anew(self):
        layer = self.layer()
        kept = meo.float32.MergedExpert(layer, layer.route(-self.x))
        kept.merge(layer, layer.route(self.x))
        numpy.testing.assert_array_equal(kept.forward(self.x), layer.forward(self.x)[0])

    def block(self, kind, shared_gate):
        block = getattr(meo.float32, kind)(features=5, hidden_features=9, num_experts=4, top_k=3, gated=True,
                                           shared_gate=shared_gate)
        block.initialize(1)
        return block

    def test_block(self):
        context = meo.float32.FeedForwardContext()
        x = numpy.repeat(self.x, 32, axis=1)  # so many tokens that blocks merge first
        for shared_gate in (False, True):
            block = self.block("MeoFeedForward", shared_gate)
            y, _ = block.forward(x, context=context)
            kept = meo.float32.MergedFeedForward(block, context)
            numpy.testing.assert_array_equal(kept.forward(x), y)
            self.assertTrue((kept.forward(x[::-1].copy()) != y[::-1]).any())

    def test_refused(self):
        layer, block = self.layer(), self.block("MoeFeedForward", True)
        kept = meo.float32.MergedExpert(layer, layer.route(self.x))
        with self.assertRaisesRegex(ValueError, "sequences: expected 2, one for each merged row, got 1"):
            kept.forward(self.x[0])
        with self.assertRaisesRegex(ValueError, "row: expected 0 to 1, got 2"):
            meo.float32.MergedExpert(layer, layer.route(self.x), row=2)
        context = meo.float32.FeedForwardContext()
        block.forward(self.x, context=context)
        with self.assertRaisesRegex(ValueError, "whose experts are whole blocks"):
            meo.float32.MergedFeedForward(block, context)


class RouterTest(unittest.TestCase):
    """The gates of other models, against NumPy."""

    def setUp(self):
        self.x = numpy.random.default_rng(1).standard_normal((9, 5))

    def layer(self, kind="MoeLayer", top_k=2, **options):
        layer = getattr(meo.float64, kind)(in_features=5, out_features=7, num_experts=4, top_k=top_k, level="token",
                                           **options)
        layer.initialize(1)
        return layer

    def logits(self, layer):
        return self.x @ layer.get("w_gate")

    def gates(self, scores, selected_by=None, top_k=2):
        by = scores if selected_by is None else selected_by
        mask = numpy.zeros_like(scores)
        numpy.put_along_axis(mask, numpy.argsort(-by, axis=1)[:, :top_k], 1, axis=1)
        return scores * mask

    def assert_close(self, got, expected):
        numpy.testing.assert_allclose(got, expected, rtol=1e-12, atol=0)

    def test_scores(self):
        layer = self.layer(scores={"function": "sigmoid", "temperature": 2, "scale": 3.0})
        self.assert_close(layer.route(self.x).gates(), self.gates(3 / (1 + numpy.exp(-self.logits(layer) / 2))))
        layer = self.layer(scores={"function": "softmax", "bias": True})
        bias = numpy.array([0.5, -1, 2, 0])
        layer.set("w_gate.bias", bias)
        scores = numpy.exp(self.logits(layer) + bias)
        scores /= scores.sum(axis=1, keepdims=True)
        routing = layer.route(self.x)
        self.assert_close(routing.gates(), self.gates(scores))
        layer = self.layer(losses={"share_coefficient": 1}, loss_coefficient=0, scores={"function": "softmax"})
        scores = numpy.exp(self.logits(layer))
        scores /= scores.sum(axis=1, keepdims=True)
        share = (self.gates(scores) > 0).sum(axis=0) / 18
        self.assert_close(layer.forward(self.x)[1].loss, 4 * share @ scores.mean(axis=0))

    def test_correction_bias(self):
        layer = self.layer(scores={"function": "sigmoid"}, selection={"correction_bias": True})
        bias = numpy.array([0, 0, 9.0, 0])
        layer.set("correction_bias", bias)
        scores = 1 / (1 + numpy.exp(-self.logits(layer)))
        routing = layer.route(self.x)
        self.assert_close(routing.gates(), self.gates(scores, scores + bias))
        self.assertEqual(routing.load[2], 9)

    def test_capacity_leaves_rows_without_experts(self):
        layer = self.layer(top_k=1, selection={"capacity": 2}, scores={"function": "softmax"})
        y, routing = layer.forward(self.x)
        self.assertEqual(routing.experts.shape, routing.weights.shape)
        self.assertEqual(routing.begins.tolist()[-1], len(routing.experts))
        self.assertLess(len(routing.experts), 9)
        self.assertLessEqual(numpy.bincount(routing.experts).max(), 2)
        empty = numpy.diff(routing.begins) == 0
        self.assertTrue((y[empty] == 0).all())
        self.assertTrue((y[~empty] != 0).any(axis=1).all())

    def test_shared_experts(self):
        for kind in ("MoeLayer", "MeoLayer"):
            layer = self.layer(kind, shared_experts={"count": 1, "weight": "sigmoid"})
            routing = layer.route(self.x)
            rows = 9 if kind == "MoeLayer" else 1  # a MeoLayer decides for a sequence
            self.assertEqual(routing.experts.shape, (rows, 3))
            self.assertTrue((routing.experts[:, 2] == 4).all())
            if kind == "MoeLayer":
                of_shared = 1 / (1 + numpy.exp(-self.x @ layer.get("shared_expert_gate.weight").reshape(5)))
                self.assert_close(routing.weights[:, 2], of_shared)
            outputs = numpy.zeros((9, 5, 7))
            if kind == "MeoLayer":
                outputs[:, :4] = numpy.einsum("td,nfd->tnf", self.x, layer.get("weight")) + layer.get("bias")
            else:
                for expert in range(4):
                    dense = f"experts.{expert}.dense."
                    outputs[:, expert] = self.x @ layer.get(dense + "weight").T + layer.get(dense + "bias")
            shared = "shared_experts.0.dense." if kind == "MoeLayer" else "shared_"
            outputs[:, 4] = self.x @ layer.get(shared + "weight").reshape(7, 5).T + layer.get(shared + "bias").ravel()
            y = numpy.einsum("tn,tnf->tf", numpy.broadcast_to(routing.gates(), (9, 5)), outputs)
            numpy.testing.assert_allclose(layer.forward(self.x)[0], y, rtol=0, atol=1e-13)

    def test_a_call_of_its_own(self):
        layer = self.layer()
        y, routing = layer.forward(self.x, top_k=1, allowed_experts=[True, False, True, True])
        logits = self.logits(layer)
        logits[:, 1] = -numpy.inf
        numpy.testing.assert_array_equal(routing.experts[:, 0], logits.argmax(axis=1))
        self.assertEqual(routing.weights.shape, (9, 1))
        with self.assertRaisesRegex(ValueError, "allowed_experts: expected none or num_experts = 4, got 1"):
            layer.forward(self.x, allowed_experts=[True])

    def test_gradients(self):
        block = meo.float64.MoeFeedForward(features=5, hidden_features=3, num_experts=4, top_k=2, shared_gate=True,
                                           level="token", scores={"function": "softmax"},
                                           shared_experts={"count": 1}, losses={"z_coefficient": 0.1})
        block.initialize(1)
        context, gradients = meo.float64.FeedForwardContext(), block.zeros_like()

        def value():
            y, decided = block.forward(self.x, context=context)
            return (y ** 2).sum() / 2 + decided.loss

        y, _ = block.forward(self.x, context=context)
        block.backward(self.x, y, gradients, context)
        name, = [name for name in block.shapes() if name.endswith("w_gate")]
        weight = block.get(name)
        for place in ((0, 0), (3, 2), (4, 3)):
            values = []
            for step in (1e-6, -1e-6):
                moved = weight.copy()
                moved[place] += step
                block.set(name, moved)
                values.append(value())
            self.assertAlmostEqual((values[0] - values[1]) / 2e-6, gradients.get(name)[place], delta=1e-7)

    def test_refused(self):
        for error, message, options in (
                (ValueError, r"scores: expected function, .*, got \['funktion'\]", {"scores": {"funktion": "softmax"}}),
                (ValueError, r"scores\['function'\]: expected one of softmax_selected, .*, got soft",
                 {"scores": {"function": "soft"}}),
                (TypeError, r"selection\['groups'\]: expected an int, got 1.5", {"selection": {"groups": 1.5}}),
                (TypeError, r"scores\['normalize'\]: expected a bool, got 'yes'", {"scores": {"normalize": "yes"}}),
                (ValueError, "selection.groups: expected a divisor of num_experts = 4, got 3",
                 {"selection": {"groups": 3}}),
                (ValueError, "losses.z_coefficient", {"losses": {"z_coefficient": -1}}),
                (ValueError, "shared_experts.count: expected at least 0", {"shared_experts": {"count": -1}})):
            with self.subTest(message), self.assertRaisesRegex(error, message):
                self.layer(**options)


class ThreadTest(unittest.TestCase):
    def test_other_threads_run_meanwhile(self):
        layer = meo.float32.MeoLayer(in_features=512, out_features=512, num_experts=8, top_k=8)
        layer.initialize(1)
        x = numpy.ones((2048, 512), numpy.float32)
        ticks, done = [], threading.Event()

        def tick():
            while not done.is_set():
                ticks.append(time.perf_counter())
                time.sleep(0.0005)

        thread = threading.Thread(target=tick)
        thread.start()
        begins = time.perf_counter()
        layer.forward(x)
        ends = time.perf_counter()
        done.set()
        thread.join()
        self.assertGreater(sum(begins < t < ends for t in ticks), 2)


if __name__ == "__main__":
    unittest.main()
