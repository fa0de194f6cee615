// Enough of CUDA to run a kernel's source as C++, one thread at a time, with warps and blocks that wait for each other.
//
// Threads are coroutines. One that reaches a barrier, or an exchange within its warp, hands over to the next; if all
// wait and none can go on, the kernel would hang on a GPU too, and the program stops.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)

struct Index { unsigned x = 0, y = 0, z = 0; };

struct Barrier {
    int size = 0, waiting = 0;
    long turn = 0;
};

struct Warp {
    Barrier barrier;
    unsigned long long slots[32];
};

constexpr std::size_t STACK = 1 << 16;

struct Thread {
    ucontext_t context;
    void* stack = std::malloc(STACK);
    Index index;
    Warp* warp = nullptr;
    bool done = false;
};

static ucontext_t scheduler;
static Thread* running;
static Index blockIdx, blockDim, gridDim;
static Barrier block_barrier;
static long progress;
#define threadIdx (running->index)

static void wait_for(Barrier& barrier) {
    long turn = barrier.turn;
    if (++barrier.waiting == barrier.size) {
        barrier.waiting = 0;
        ++barrier.turn;
        ++progress;
    } else {
        while (barrier.turn == turn) swapcontext(&running->context, &scheduler);
    }
}

static void __syncthreads() { wait_for(block_barrier); }

template <class T> static T exchange(T value, int from) {
    Warp& warp = *running->warp;
    std::memcpy(&warp.slots[running->index.x % 32], &value, sizeof value);
    wait_for(warp.barrier);
    T other;
    std::memcpy(&other, &warp.slots[from & 31], sizeof other);
    wait_for(warp.barrier);
    return other;
}

static int lane() { return running->index.x % 32; }
template <class T> static T __shfl_sync(unsigned, T v, int from) { return exchange(v, from); }
template <class T> static T __shfl_xor_sync(unsigned, T v, int step) { return exchange(v, lane() ^ step); }
template <class T> static T __shfl_up_sync(unsigned, T v, int step) {
    T other = exchange(v, lane() - step);
    return lane() < step ? v : other;
}
template <class T> static T __shfl_down_sync(unsigned, T v, int step) {
    T other = exchange(v, lane() + step);
    return lane() + step > 31 ? v : other;
}
static bool __any_sync(unsigned, int value) {
    int any = value != 0;
    for (int step = 16; step; step /= 2) any |= __shfl_xor_sync(0, any, step);
    return any;
}

template <class T> static T atomicAdd(T* at, T value) { T old = *at; *at += value; return old; }
template <class T> static T atomicMin(T* at, T value) { T old = *at; *at = value < old ? value : old; return old; }

template <class To, class From> static To same_bits(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &value, sizeof to);
    return to;
}
static double __longlong_as_double(long long x) { return same_bits<double>(x); }
static long long __double_as_longlong(double x) { return same_bits<long long>(x); }
static float __int_as_float(int x) { return same_bits<float>(x); }
static int __float_as_int(float x) { return same_bits<int>(x); }
static float __double2float_ru(double x) {
    float nearest = (float)x;
    return (double)nearest < x ? nextafterf(nearest, INFINITY) : nearest;
}
static unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static int __popc(unsigned x) { return __builtin_popcount(x); }
static int __ffs(unsigned x) { return __builtin_ffs((int)x); }

static void (*body)(void*);
static void* body_data;
static void run_thread() {
    body(body_data);
    running->done = true;
    ++progress;
    swapcontext(&running->context, &scheduler);
}

static void run_grid(unsigned blocks, unsigned threads) {
    static std::vector<Thread> team;
    while (team.size() < threads) team.emplace_back();
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
        blockDim.x = threads;
        gridDim.x = blocks;
        std::vector<Warp> warps((threads + 31) / 32);
        block_barrier = Barrier();
        block_barrier.size = (int)threads;
        for (unsigned i = 0; i < threads; ++i) {
            Thread& thread = team[i];
            thread.index.x = i;
            thread.done = false;
            thread.warp = &warps[i / 32];
            ++thread.warp->barrier.size;
            getcontext(&thread.context);
            thread.context.uc_stack.ss_sp = thread.stack;
            thread.context.uc_stack.ss_size = STACK;
            makecontext(&thread.context, run_thread, 0);
        }
        for (bool open = true; open;) {
            long before = progress;
            open = false;
            for (unsigned i = 0; i < threads; ++i) {
                Thread& thread = team[i];
                if (thread.done) continue;
                open = true;
                running = &thread;
                swapcontext(&scheduler, &thread.context);
            }
            if (open && progress == before) {
                std::fprintf(stderr, "every thread waits for another\n");
                std::abort();
            }
        }
    }
}

// Calls a kernel whose arguments are all 64 bits wide.
template <class... A, std::size_t... I>
static void call(void (*kernel)(A...), const unsigned long long* words, std::index_sequence<I...>) {
    kernel(same_bits<A>(words[I])...);
}

template <class... A>
static void launch(void (*kernel)(A...), unsigned blocks, unsigned threads, const unsigned long long* words) {
    auto once = [&] { call(kernel, words, std::index_sequence_for<A...>{}); };
    body = [](void* data) { (*(decltype(once)*)data)(); };
    body_data = &once;
    run_grid(blocks, threads);
}
