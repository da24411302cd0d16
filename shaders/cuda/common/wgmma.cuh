// wgmma with both operands in shared memory: accumulators += A B, 64 x N, one step of 32 bytes along k.
//
// Before inclusion: WGMMA_STEP, what follows the N in the instruction's name ("k16.f32.bf16.bf16"); WGMMA_TAIL, its immediates;
// Accumulator, its type (float or i32), and ACCUMULATOR, the matching constraint ("+f" or "+r").
//
// Fragment (PTX ISA, "Register fragments"): thread t of the warpgroup holds, for each 8 columns j, in d[4 j..4 j + 4] the elements
// (r, c), (r, c + 1), (r + 8, c), (r + 8, c + 1) where r = 16 (t / 32) + t % 32 / 4 and c = 8 j + 2 (t % 4).
#ifndef PERJOULE_WGMMA_CUH
#define PERJOULE_WGMMA_CUH

#include "common/hopper.cuh"

#define REGISTERS_0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define REGISTERS_1 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define REGISTERS_2 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define REGISTERS_3 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define REGISTERS_4 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define REGISTERS_5 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define REGISTERS_6 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define REGISTERS_7 "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define OPERANDS_4(i) ACCUMULATOR(d[i]), ACCUMULATOR(d[i + 1]), ACCUMULATOR(d[i + 2]), ACCUMULATOR(d[i + 3])
#define OPERANDS_16(i) OPERANDS_4(i), OPERANDS_4(i + 4), OPERANDS_4(i + 8), OPERANDS_4(i + 12)
#define OPERANDS_32(i) OPERANDS_16(i), OPERANDS_16(i + 16)
#define OPERANDS_64(i) OPERANDS_32(i), OPERANDS_32(i + 32)

template <int N>
struct Wgmma;

// A, B and ACC are the numbers of the operands that follow the N / 2 registers.
#define WGMMA_OF(N, HALF, A, B, ACC)                                                                                           \
    template <>                                                                                                             \
    struct Wgmma<N> {                                                                                                       \
        static __device__ __forceinline__ void multiply(Accumulator (&d)[N / 2], u64 a, u64 b, u32 accumulate) {            \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ACC ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N WGMMA_STEP  \
                         " {" REGISTERS_##HALF "}, " A ", " B ", p" WGMMA_TAIL ";\n}"                                              \
                         : OPERANDS_##HALF(0)                                                                                   \
                         : "l"(a), "l"(b), "r"(accumulate));                                                                \
        }                                                                                                                   \
    };

#define OPERANDS_96(i) OPERANDS_64(i), OPERANDS_32(i + 64)
#define OPERANDS_128(i) OPERANDS_64(i), OPERANDS_64(i + 64)
#define REGISTERS_32 REGISTERS_0 ", " REGISTERS_1
#define REGISTERS_64 REGISTERS_32 ", " REGISTERS_2 ", " REGISTERS_3
#define REGISTERS_96 REGISTERS_64 ", " REGISTERS_4 ", " REGISTERS_5
#define REGISTERS_128 REGISTERS_96 ", " REGISTERS_6 ", " REGISTERS_7

WGMMA_OF(64, 32, "%32", "%33", "%34")
WGMMA_OF(128, 64, "%64", "%65", "%66")
WGMMA_OF(192, 96, "%96", "%97", "%98")
WGMMA_OF(256, 128, "%128", "%129", "%130")

#endif
