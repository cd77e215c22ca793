#!/usr/bin/env python3
"""Builds the five networks of the DNN plane's tests and testbed as ONNX files with seeded random weights.

AlexNet, VGG-16, ResNet-18, DarkNet-53 and Inception-v4, 1x3x224x224 in, 1,000 logits out, as their papers describe
them: convolution, batch normalisation and activation are separate operators, so that importers have something to fuse. The weights
are random but scaled (He), so that values neither die nor explode and a wrong tile or a swapped branch shows in the
output. The same seed gives the same bytes.

    make_dnn_models.py OUT_FOLDER                 all five, in full: 1.2 GB
    make_dnn_models.py OUT_FOLDER --width 0.25    a quarter of the channels everywhere, for quick tests
"""

import argparse
import pathlib
import sys
import zlib

try:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper
except ImportError as error:
    sys.exit(f"{error}; scripts/bootstrap.py runs this script with the packages that it needs")

OPSET = 17


class Net:
    """A graph under construction: a method an operator, each returning the name of its output."""

    def __init__(self, name, width, seed):
        self.name, self.width, self.seed = name, width, seed
        self.nodes, self.initializers, self.counts = [], [], {}
        self.channels = {"input": 3}

    def scaled(self, n_channels):
        return max(8, int(round(n_channels * self.width / 8)) * 8)

    def fresh(self, kind):
        self.counts[kind] = self.counts.get(kind, 0) + 1
        return f"{kind}{self.counts[kind]}"

    def weights(self, name, shape, scale=1.0, mean=0.0):
        # A stream for each tensor, so that one network's layers do not depend on another's.
        key = zlib.crc32(f"{self.name}/{name}".encode()) + (self.seed << 32)
        values = np.random.Generator(np.random.PCG64(key)).standard_normal(shape, dtype=np.float32)
        values *= np.float32(scale)
        values += np.float32(mean)
        self.initializers.append(helper.make_tensor(name, TensorProto.FLOAT, shape, values.tobytes(), raw=True))
        return name

    def node(self, op, kind, inputs, channels, **attributes):
        name = self.fresh(kind)
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name=name, **attributes))
        self.channels[f"{name}_out"] = channels
        return f"{name}_out"

    def conv(self, x, n_out, kernel, stride=1, pad=0, bias=False, group=1):
        kh, kw = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        ph, pw = pad if isinstance(pad, tuple) else (pad, pad)
        n_in = self.channels[x]
        name = f"conv{self.counts.get('conv', 0) + 1}"
        fan_in = n_in // group * kh * kw
        inputs = [x, self.weights(f"{name}_w", [n_out, n_in // group, kh, kw], (2.0 / fan_in) ** 0.5)]
        if bias:
            inputs.append(self.weights(f"{name}_b", [n_out], 0.05))
        return self.node("Conv", "conv", inputs, n_out, kernel_shape=[kh, kw], strides=[stride, stride],
                         pads=[ph, pw, ph, pw], group=group)

    def norm(self, x):
        n = self.channels[x]
        name = f"bn{self.counts.get('bn', 0) + 1}"
        inputs = [x, self.weights(f"{name}_scale", [n], 0.1, 1.0), self.weights(f"{name}_shift", [n], 0.1),
                  self.weights(f"{name}_mean", [n], 0.1)]
        # Variances are positive: 1 to about 1.5.
        variance = np.random.Generator(np.random.PCG64(zlib.crc32(f"{self.name}/{name}/var".encode()) + (self.seed << 32)))
        values = (1.0 + 0.5 * variance.random(n)).astype(np.float32)
        self.initializers.append(helper.make_tensor(f"{name}_var", TensorProto.FLOAT, [n], values.tobytes(), raw=True))
        return self.node("BatchNormalization", "bn", inputs + [f"{name}_var"], n, epsilon=1e-5)

    def relu(self, x):
        return self.node("Relu", "relu", [x], self.channels[x])

    def leaky(self, x):
        return self.node("LeakyRelu", "leaky", [x], self.channels[x], alpha=0.1)

    def add(self, a, b):
        return self.node("Add", "add", [a, b], self.channels[a])

    def concat(self, parts):
        return self.node("Concat", "concat", parts, sum(self.channels[p] for p in parts), axis=1)

    def max_pool(self, x, kernel, stride, pad=0):
        return self.node("MaxPool", "pool", [x], self.channels[x], kernel_shape=[kernel] * 2, strides=[stride] * 2,
                         pads=[pad] * 4)

    def average_pool(self, x, kernel, stride, pad=0):
        return self.node("AveragePool", "avgpool", [x], self.channels[x], kernel_shape=[kernel] * 2,
                         strides=[stride] * 2, pads=[pad] * 4, count_include_pad=0)

    def global_pool(self, x):
        return self.node("GlobalAveragePool", "gap", [x], self.channels[x])

    def flatten(self, x, n):
        return self.node("Flatten", "flatten", [x], n, axis=1)

    def dense(self, x, n_out):
        n_in = self.channels[x]
        name = f"fc{self.counts.get('fc', 0) + 1}"
        inputs = [x, self.weights(f"{name}_w", [n_out, n_in], (2.0 / n_in) ** 0.5), self.weights(f"{name}_b", [n_out], 0.05)]
        return self.node("Gemm", "fc", inputs, n_out, transB=1)

    def model(self, output):
        value = helper.make_tensor_value_info
        self.nodes[-1].output[0] = "logits"
        graph = helper.make_graph(
            self.nodes, self.name, [value("input", TensorProto.FLOAT, [1, 3, 224, 224])],
            [value("logits", TensorProto.FLOAT, [1, self.channels[output]])], self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="frugal")
        model.ir_version = 8
        onnx.checker.check_model(model)
        return model


def alexnet(net):
    x = net.relu(net.conv("input", net.scaled(64), 11, 4, 2, bias=True))
    x = net.max_pool(x, 3, 2)
    x = net.relu(net.conv(x, net.scaled(192), 5, 1, 2, bias=True))
    x = net.max_pool(x, 3, 2)
    x = net.relu(net.conv(x, net.scaled(384), 3, 1, 1, bias=True))
    x = net.relu(net.conv(x, net.scaled(256), 3, 1, 1, bias=True))
    x = net.relu(net.conv(x, net.scaled(256), 3, 1, 1, bias=True))
    x = net.max_pool(x, 3, 2)
    x = net.flatten(x, net.channels[x] * 6 * 6)
    x = net.relu(net.dense(x, net.scaled(4096)))
    x = net.relu(net.dense(x, net.scaled(4096)))
    return net.dense(x, 1000)


def vgg16(net):
    x = "input"
    for n_out, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            x = net.relu(net.conv(x, net.scaled(n_out), 3, 1, 1, bias=True))
        x = net.max_pool(x, 2, 2)
    x = net.flatten(x, net.channels[x] * 7 * 7)
    x = net.relu(net.dense(x, net.scaled(4096)))
    x = net.relu(net.dense(x, net.scaled(4096)))
    return net.dense(x, 1000)


def resnet18(net):
    x = net.relu(net.norm(net.conv("input", net.scaled(64), 7, 2, 3)))
    x = net.max_pool(x, 3, 2, 1)
    for stage, n_out in enumerate((64, 128, 256, 512)):
        n_out = net.scaled(n_out)
        for block in range(2):
            stride = 2 if stage > 0 and block == 0 else 1
            y = net.relu(net.norm(net.conv(x, n_out, 3, stride, 1)))
            y = net.norm(net.conv(y, n_out, 3, 1, 1))
            if stride != 1 or net.channels[x] != n_out:
                x = net.norm(net.conv(x, n_out, 1, stride))
            x = net.relu(net.add(y, x))
    x = net.flatten(net.global_pool(x), net.channels[x])
    return net.dense(x, 1000)


def darknet53(net):
    def unit(x, n_out, kernel, stride=1):
        return net.leaky(net.norm(net.conv(x, n_out, kernel, stride, kernel // 2)))

    x = unit("input", net.scaled(32), 3)
    for n_out, n_blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        n_out = net.scaled(n_out)
        x = unit(x, n_out, 3, 2)
        for _ in range(n_blocks):
            x = net.add(x, unit(unit(x, max(8, n_out // 2), 1), n_out, 3))
    x = net.flatten(net.global_pool(x), net.channels[x])
    return net.dense(x, 1000)


def inception_v4(net):
    def unit(x, n_out, kernel, stride=1, pad=0):
        return net.relu(net.norm(net.conv(x, net.scaled(n_out), kernel, stride, pad)))

    def chain(x, *steps):
        for step in steps:
            x = unit(x, *step)
        return x

    # Stem.
    x = chain("input", (32, 3, 2), (32, 3), (64, 3, 1, 1))
    x = net.concat([net.max_pool(x, 3, 2), unit(x, 96, 3, 2)])
    x = net.concat([chain(x, (64, 1), (96, 3)),
                    chain(x, (64, 1), (64, (7, 1), 1, (3, 0)), (64, (1, 7), 1, (0, 3)), (96, 3))])
    x = net.concat([unit(x, 192, 3, 2), net.max_pool(x, 3, 2)])
    for _ in range(4):  # Inception-A
        x = net.concat([unit(net.average_pool(x, 3, 1, 1), 96, 1), unit(x, 96, 1),
                        chain(x, (64, 1), (96, 3, 1, 1)), chain(x, (64, 1), (96, 3, 1, 1), (96, 3, 1, 1))])
    x = net.concat([net.max_pool(x, 3, 2), unit(x, 384, 3, 2),  # Reduction-A
                    chain(x, (192, 1), (224, 3, 1, 1), (256, 3, 2))])
    tall, wide = ((7, 1), 1, (3, 0)), ((1, 7), 1, (0, 3))
    for _ in range(7):  # Inception-B
        x = net.concat([unit(net.average_pool(x, 3, 1, 1), 128, 1), unit(x, 384, 1),
                        chain(x, (192, 1), (224, *wide), (256, *tall)),
                        chain(x, (192, 1), (192, *wide), (224, *tall), (224, *wide), (256, *tall))])
    x = net.concat([net.max_pool(x, 3, 2), chain(x, (192, 1), (192, 3, 2)),  # Reduction-B
                    chain(x, (256, 1), (256, *wide), (320, *tall), (320, 3, 2))])
    for _ in range(3):  # Inception-C
        b = unit(x, 384, 1)
        c = chain(x, (384, 1), (448, (1, 3), 1, (0, 1)), (512, (3, 1), 1, (1, 0)))
        x = net.concat([unit(net.average_pool(x, 3, 1, 1), 256, 1), unit(x, 256, 1),
                        unit(b, 256, (1, 3), 1, (0, 1)), unit(b, 256, (3, 1), 1, (1, 0)),
                        unit(c, 256, (3, 1), 1, (1, 0)), unit(c, 256, (1, 3), 1, (0, 1))])
    x = net.flatten(net.global_pool(x), net.channels[x])
    return net.dense(x, 1000)


NETWORKS = {"alexnet": alexnet, "vgg16": vgg16, "resnet18": resnet18, "darknet53": darknet53,
            "inception_v4": inception_v4}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path, help="folder to write NAME.onnx files into")
    parser.add_argument("--width", type=float, default=1.0, help="factor on every layer's channels")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=sorted(NETWORKS), action="append", help="just this network; may be repeated")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only or NETWORKS:
        net = Net(name, args.width, args.seed)
        model = net.model(NETWORKS[name](net))
        partial = args.out / f"{name}.onnx.partial"
        partial.write_bytes(model.SerializeToString(deterministic=True))
        partial.rename(args.out / f"{name}.onnx")
        weights = sum(np.prod(t.dims) for t in model.graph.initializer)
        print(f"{name}: {len(model.graph.node)} nodes, {weights / 1e6:.1f} M weights")


if __name__ == "__main__":
    main()
