"""Times PyTorch's kernels, ggml's or llama.cpp's models on command: peers.py torch THREADS, peers.py ggml THREADS, or peers.py llama
THREADS FILE.

src/main.rs describes the protocol. Same sizes, same numbers, same number of threads as ours."""

import ctypes, json, os, sys, time

import numpy as np

who, threads = sys.argv[1], int(sys.argv[2])


def random(seed, count):
    with np.errstate(over="ignore"):
        x = (np.arange(1, count + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed << 40)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((x ^ (x >> np.uint64(31))) >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24) - np.float32(0.5)


def integers(seed, count):
    x = random(seed, count) * 128
    return (np.sign(x) * np.floor(np.abs(x) + 0.5)).astype(np.int8)  # away from zero, as Rust rounds



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
        """A list of calls, which are made in turn."""
        torch, dtype = self.torch, case["dtype"]
        if dtype not in ("f32", "bf16", "i8"):
            raise ValueError("has no product with such blocks")
        if case["op"] == "attention":
            b, q, kv = case["b"], case["q"], case["kv"]
            query = self.tensor(0, dtype, b, q, 32, 128).transpose(1, 2)  # heads of a token lie together, as projections leave them
            keys, values = (self.tensor(seed, dtype, b, 8, kv, 128) for seed in (1, 2))
            run = torch.nn.functional.scaled_dot_product_attention

            def grouped(k, v):
                return lambda: run(query, k, v, is_causal=q > 1, enable_gqa=True).transpose(1, 2)

            def folded(k, v):  # a token's heads that share keys, as if they were tokens
                return lambda: run(query.reshape(b, 8, 4, 128), k, v).reshape(b, 1, 32, 128)

            def repeated(k, v):  # with keys for every head, made beforehand
                k, v = (x.repeat_interleave(4, 1) for x in (k, v))
                return lambda: run(query, k, v, is_causal=True).transpose(1, 2)

            ways = [grouped, folded if q == 1 else repeated]
            attend = min(ways, key=lambda way: fastest(way(keys, values)))
            return [attend(keys.clone(), values.clone()) for _ in range(copies(case, 2 * keys.nbytes))]
        m, n, k = case["m"], case["n"], case["k"]
        a = self.tensor(0, dtype, m, k)
        if case["form"] == "square":
            b = self.tensor(1, dtype, k, n)
            return [(lambda: torch._int_mm(a, b)) if dtype == "i8" else (lambda: torch.mm(a, b))]
        b = self.tensor(1, dtype, n, k)

        def multiply(b):
            t = b.t()
            return (lambda: torch._int_mm(a, t)) if dtype == "i8" else (lambda: torch.nn.functional.linear(a, b))

        return [multiply(b.clone()) for _ in range(copies(case, b.nbytes))]

    def sample(self, out):
        out = out.flatten()
        return out[:8].float().tolist() + out[-8:].float().tolist()


class Llama:
    """Prompts and tokens one by one, as llama-bench measures them."""

    def __init__(self):
        import llama_cpp as llama

        self.llama = llama
        quiet = llama.llama_log_callback(lambda *_: None)
        self.keep = quiet
        llama.llama_log_set(quiet, ctypes.c_void_p(0))
        llama.llama_backend_init()
        self.model = llama.llama_model_load_from_file(sys.argv[3].encode(), llama.llama_model_default_params())
        if not self.model:
            raise SystemExit("llama.cpp does not load " + sys.argv[3])
        self.context, self.ends, self.vocab = None, True, llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))

    def setup(self, case):
        llama, tokens = self.llama, case["tokens"]
        if case.get("parallel", 1) > 1:
            raise ValueError("is asked for one sequence")
        self.ends = case["op"] != "logits"
        if self.context:
            llama.llama_free(self.context)
        step = {"prefill": tokens, "decode": 1, "logits": case.get("step")}[case["op"]]
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = max(tokens, 256), tokens, tokens
        params.n_threads = params.n_threads_batch = threads
        self.context = llama.llama_init_from_model(self.model, params)
        ids = (llama.llama_token * tokens)(*(3 + at * 7919 % 31000 for at in range(tokens)))
        at = lambda first: ctypes.cast(ctypes.byref(ids, 4 * first), ctypes.POINTER(llama.llama_token))

        def run():
            llama.llama_memory_clear(llama.llama_get_memory(self.context), True)
            for first in range(0, tokens, step):
                if llama.llama_decode(self.context, llama.llama_batch_get_one(at(first), step)):
                    raise SystemExit("llama_decode failed")
                llama.llama_synchronize(self.context)

        return [run]

    def sample(self, _):
        logits = self.llama.llama_get_logits_ith(self.context, -1)
        return logits[:8] + logits[self.vocab - 8 : self.vocab] if self.ends else logits[: self.vocab]


class Ggml:
    """Single rows by the library below llama.cpp, with its own threads: weights as it quantises them, in their plain layout."""

    TYPES = {"bf16": 30, "q8_0": 8, "q4_0": 2, "q4_k": 12}

    class Init(ctypes.Structure):
        _fields_ = [("size", ctypes.c_size_t), ("at", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]

    class Plan(ctypes.Structure):
        _fields_ = [("size", ctypes.c_size_t), ("work", ctypes.c_void_p), ("threads", ctypes.c_int)]
        _fields_ += [("rest", ctypes.c_void_p * 8)]  # longer than any version's

    class Pool(ctypes.Structure):
        _fields_ = [("mask", ctypes.c_bool * 512), ("threads", ctypes.c_int), ("rest", ctypes.c_int * 8)]

    def __init__(self):
        import llama_cpp

        folder = os.path.join(os.path.dirname(llama_cpp.__file__), "lib")
        base, cpu = (ctypes.CDLL(os.path.join(folder, f"lib{name}.so")) for name in ("ggml-base", "ggml-cpu"))
        pointer, size = ctypes.c_void_p, ctypes.c_size_t

        def function(library, name, result, *arguments):
            call = getattr(library, "ggml_" + name)
            call.restype, call.argtypes = result, arguments
            return call

        self.init = function(base, "init", pointer, self.Init)
        self.free = function(base, "free", None, pointer)
        self.matrix = function(base, "new_tensor_2d", pointer, pointer, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        self.data = function(base, "get_data", pointer, pointer)
        self.product = function(base, "mul_mat", pointer, pointer, pointer, pointer)
        self.graph = function(base, "new_graph", pointer, pointer)
        self.expand = function(base, "build_forward_expand", None, pointer, pointer)
        floats = ctypes.POINTER(ctypes.c_float)
        self.quantise = function(base, "quantize_chunk", size, ctypes.c_int, floats, pointer, *[ctypes.c_int64] * 3, pointer)
        self.plan = function(cpu, "graph_plan", self.Plan, pointer, ctypes.c_int, pointer)
        self.compute = function(cpu, "graph_compute", ctypes.c_int, pointer, pointer)
        function(cpu, "cpu_init", None)()
        params = function(base, "threadpool_params_default", self.Pool, ctypes.c_int)(threads)
        self.pool = function(cpu, "threadpool_new", pointer, pointer)(ctypes.byref(params))
        self.context = None

    def setup(self, case):
        if case["op"] != "matmul" or case["m"] != 1 or case["dtype"] not in self.TYPES:
            raise ValueError("is asked for single rows against bf16 and blocks")
        if self.context:
            self.free(self.context)
        kind, n, k = self.TYPES[case["dtype"]], case["n"], case["k"]
        x, b = random(0, k), random(1, n * k)
        packed = (ctypes.c_uint8 * (4 * n * k))()
        used = self.quantise(kind, b.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), packed, 0, n, k, None)
        count = copies(case, used)
        self.context = self.init(self.Init(count * (used + (1 << 20)), None, False))
        a, self.n = self.matrix(self.context, 0, k, 1), n
        ctypes.memmove(self.data(a), x.ctypes.data, 4 * k)

        def one():
            weights = self.matrix(self.context, kind, k, n)
            ctypes.memmove(self.data(weights), packed, used)
            out, graph = self.product(self.context, weights, a), self.graph(self.context)
            self.expand(graph, out)
            plan = self.plan(graph, threads, self.pool)
            work = (ctypes.c_uint8 * plan.size)()
            plan.work = ctypes.addressof(work)

            def run(work=work):
                if self.compute(graph, ctypes.byref(plan)):
                    raise SystemExit("ggml_graph_compute failed")
                return out

            return run

        return [one() for _ in range(count)]

    def sample(self, out):
        values = (ctypes.c_float * self.n).from_address(self.data(out))
        return values[:8] + values[-8:]


def fastest(call):
    def seconds():
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return min(seconds() for _ in range(3))


def copies(case, size):
    return max(1, -(-case.get("rotate", 0) // size))


worker, calls, at = {"torch": Torch, "ggml": Ggml, "llama": Llama}[who](), [], 0
for line in sys.stdin:
    command = json.loads(line)
    if command["do"] == "setup":
        calls, at = [], 0
        try:
            calls = worker.setup(command)
            answer = {"ok": True, "sample": worker.sample(calls[0]())}
        except (ValueError, RuntimeError) as refused:
            answer = {"refused": str(refused)}
    else:
        count, sets = command["calls"], len(calls)
        start = time.perf_counter()
        for _ in range(count):
            calls[at]()
            at = at + 1 if at + 1 < sets else 0
        answer = {"seconds": (time.perf_counter() - start) / count}
    print(json.dumps(answer), flush=True)
