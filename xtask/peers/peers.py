"""Times PyTorch, oneMKL or OpenBLAS on command: peers.py WHO THREADS. src/main.rs describes the protocol.

Same sizes, same numbers, same number of threads as ours; weights are packed once where the library can."""

import ctypes, glob, json, os, sys, time

import numpy as np

who, threads = sys.argv[1], int(sys.argv[2])
ROW, NO, YES, B, PACKED, FIX = 101, 111, 112, 162, 151, 173


def random(seed, count):
    with np.errstate(over="ignore"):
        x = (np.arange(1, count + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed << 40)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((x ^ (x >> np.uint64(31))) >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24) - np.float32(0.5)


def integers(seed, count):
    x = random(seed, count) * 128
    return (np.sign(x) * np.floor(np.abs(x) + 0.5)).astype(np.int8)  # away from zero, as Rust rounds


def bf16(x):
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def copies(case, size):
    return max(1, -(-case.get("rotate", 0) // size))


class Torch:
    def __init__(self):
        import torch

        self.torch = torch
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)

    def tensor(self, seed, dtype, *shape):
        count = int(np.prod(shape))
        if dtype == "i8":
            return self.torch.from_numpy(integers(seed, count)).reshape(shape)
        kind = {"f32": self.torch.float32, "bf16": self.torch.bfloat16}[dtype]
        return self.torch.from_numpy(random(seed, count)).reshape(shape).to(kind)

    def setup(self, case):
        torch, dtype = self.torch, case["dtype"]
        if dtype not in ("f32", "bf16", "i8"):
            return "has no product with such blocks"
        if case["op"] == "attention":
            b, q, kv = case["b"], case["q"], case["kv"]
            one = self.tensor(1, dtype, b, 8, kv, 128)
            n = copies(case, 2 * one.nbytes)
            query, keys, values = self.tensor(0, dtype, b, 32, q, 128), [], []
            for _ in range(n):
                keys.append(one.clone())
                values.append(one.clone())
            run = torch.nn.functional.scaled_dot_product_attention
            self.sets = n
            self.call = lambda i: run(query, keys[i], values[i], is_causal=q > 1, enable_gqa=True)
            return None
        m, n, k = case["m"], case["n"], case["k"]
        a = self.tensor(0, dtype, m, k)
        if case["form"] == "square":
            b = self.tensor(1, dtype, k, n)
            self.sets = 1
            self.call = (lambda i: torch._int_mm(a, b)) if dtype == "i8" else (lambda i: torch.mm(a, b))
            return None
        b = self.tensor(1, dtype, n, k)
        self.sets = copies(case, b.nbytes)
        weights = [b.clone() for _ in range(self.sets)]
        if dtype == "i8":
            self.call = lambda i: torch._int_mm(a, weights[i].t())
        else:
            self.call = lambda i: torch.nn.functional.linear(a, weights[i])
        return None

    def sample(self, out):
        return out.flatten()[:8].float().tolist()


class Blas:
    """cblas by ctypes; pointers are made once, so that a call costs little."""

    def __init__(self):
        root = os.environ["VIRTUAL_ENV"]
        names = {
            "mkl": ["lib/libmkl_rt.so*"],
            "openblas": ["lib/python*/site-packages/scipy_openblas32/lib/libscipy_openblas.so"],
        }[who]
        found = os.environ.get("PERJOULE_" + who.upper()) or next(
            (f for name in names for f in glob.glob(os.path.join(root, name))), None
        )
        if not found:
            raise SystemExit(f"no {who} in {root}")
        self.lib = ctypes.CDLL(found, mode=ctypes.RTLD_GLOBAL)
        if who == "mkl":
            self.lib.MKL_Set_Interface_Layer(0)
            self.lib.MKL_Set_Dynamic(0)
            self.lib.MKL_Set_Num_Threads(threads)
        else:
            self.f("openblas_set_num_threads")(threads)

    def f(self, name):
        for prefix in ("", "scipy_"):
            if hasattr(self.lib, prefix + name):
                return getattr(self.lib, prefix + name)
        return None

    def setup(self, case):
        if case["op"] != "matmul":
            return "has no attention"
        dtype, square = case["dtype"], case["form"] == "square"
        m, n, k = case["m"], case["n"], case["k"]
        P = lambda x: ctypes.c_void_p(x.ctypes.data)
        F, I = ctypes.c_float, ctypes.c_int
        ints = [I(m), I(n), I(k)]
        name = {"f32": "cblas_sgemm", "bf16": "cblas_gemm_bf16bf16f32", "i8": "cblas_gemm_s8u8s32"}.get(dtype)
        gemm = name and self.f(name)
        if not gemm:
            return f"has no product of {dtype}"
        draw = integers if dtype == "i8" else random
        a, b = draw(0, m * k), draw(1, n * k)
        if dtype == "bf16":
            a, b = bf16(a), bf16(b)
        if dtype == "i8":
            a = (a.view(np.uint8) ^ 0x80).astype(np.uint8)
        trans, ldb = (NO, n) if square else (YES, k)
        self.c = c = np.zeros(m * n, dtype=np.int32 if dtype == "i8" else np.float32)
        self.keep = keep = [a, b]
        pack = None if square or dtype == "i8" else self.f(name + "_pack")
        if pack:
            size = self.f(name + "_pack_get_size")
            size.restype = ctypes.c_size_t
            bytes_ = size(B, *ints)
        else:
            bytes_ = b.nbytes
        self.sets = copies(case, bytes_)
        weights = []
        for _ in range(self.sets):
            if pack:
                raw = np.zeros(bytes_ + 64, dtype=np.uint8)
                raw = raw[-raw.ctypes.data % 64 :][:bytes_]
                pack(ROW, B, trans, *ints, F(1.0), P(b), I(ldb), P(raw))
            else:
                raw = b.copy()
            keep.append(raw)
            weights.append(P(raw))
        pa, pc = P(a), P(c)
        if dtype == "i8":
            offset = np.zeros(1, dtype=np.int32)
            keep.append(offset)
            po, o8 = P(offset), ctypes.c_int8
            self.call = lambda i: gemm(
                ROW, NO, trans, FIX, *ints, F(1.0), pa, I(k), o8(-128), weights[i], I(ldb), o8(0), F(0.0), pc, I(n), po
            )
        elif pack and dtype == "f32":
            compute = self.f("cblas_sgemm_compute")
            self.call = lambda i: compute(ROW, NO, PACKED, *ints, pa, I(k), weights[i], I(ldb), F(0.0), pc, I(n))
        elif pack:
            compute = self.f(name + "_compute")
            self.call = lambda i: compute(
                ROW, NO, PACKED, *ints, F(1.0), pa, I(k), weights[i], I(ldb), F(0.0), pc, I(n)
            )
        else:
            self.call = lambda i: gemm(
                ROW, NO, trans, *ints, F(1.0), pa, I(k), weights[i], I(ldb), F(0.0), pc, I(n)
            )
        return None

    def sample(self, _):
        return self.c[:8].astype(float).tolist()


worker, at = Torch() if who == "torch" else Blas(), 0
for line in sys.stdin:
    command = json.loads(line)
    if command["do"] == "setup":
        worker.call = worker.keep = None
        refused = worker.setup(command)
        at = 0
        answer = {"refused": refused} if refused else {"ok": True, "sample": worker.sample(worker.call(0))}
    else:
        calls, call, sets = command["calls"], worker.call, worker.sets
        start = time.perf_counter()
        for _ in range(calls):
            call(at)
            at = at + 1 if at + 1 < sets else 0
        answer = {"seconds": (time.perf_counter() - start) / calls}
    print(json.dumps(answer), flush=True)
