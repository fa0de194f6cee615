// The race of kernels/_race.py on a GPU: the same integers in, the same bits out.
//
// filter:    each thread reads sixteen weights, makes one Philox block, and keeps the few items that may arrive in
//            time (about one product and one comparison each). One read of the weights; bound by memory.
// rows:      the same, for weights that are losses: a tile of losses is made from rows in shared memory first.
// arrive:    exact arrival times of the items kept; with replacement all their arrivals in time.
// estimate:  from a subsample of the weights, the time by which enough items arrive.
//
// Must be compiled with --fmad=false: contracted products would round differently from the definition.

typedef unsigned long long u64;
typedef long long i64;

#ifndef BLOCK
#define BLOCK 256
#endif
#define WARP 32
#define ALL 0xffffffffu
#define NEVER 0x7fffffffffffffffLL
#define TILE 4096  // most rows whose losses a block holds

enum Header { KEPT, ARRIVED, POSITIVE, INVALID, BOUND };  // int64 each; INVALID is the first such item

// ---------------------------------------------------------------------------------------------- random bits, times

struct Words {
    u64 a, b, c, d;
    __device__ u64 at(i64 i) const { return i & 2 ? (i & 1 ? d : c) : (i & 1 ? b : a); }
};

__device__ inline Words philox(u64 seed, u64 stream, u64 low, u64 high) {
    u64 a = low + 1, b = high, c = 0, d = 0;  // NumPy's generator steps its counter before it makes a block
#pragma unroll
    for (int turn = 0; turn < 10; ++turn) {
        u64 high_a = __umul64hi(0xD2E7470EE14C6C93ull, a), low_a = 0xD2E7470EE14C6C93ull * a;
        u64 high_c = __umul64hi(0xCA5A826395121157ull, c), low_c = 0xCA5A826395121157ull * c;
        a = high_c ^ b ^ seed;
        b = low_c;
        c = high_a ^ d ^ stream;
        d = low_a;
        seed += 0x9E3779B97F4A7C15ull;
        stream += 0xBB67AE8584CAA73Bull;
    }
    return {a, b, c, d};
}

__device__ inline double power_of_two(int exponent) { return __longlong_as_double((i64)(exponent + 1023) << 52); }

// x = mantissa * 2^exponent with the mantissa in [1/2, 1), for positive finite x
__device__ inline double split(double x, i64& exponent) {
    i64 bits = __double_as_longlong(x);
    exponent = -1022;
    if (bits >> 52 == 0) {
        bits = __double_as_longlong(x * power_of_two(54));
        exponent -= 54;
    }
    exponent += bits >> 52;
    return __longlong_as_double((bits & 0xFFFFFFFFFFFFFll) | 1022ll << 52);
}

// -log(1 - u) for u = (field 2^52 + rest + 1/2) 2^-68
__device__ inline double exponential(u64 field, u64 rest) {
    double h = (double)field, r = (double)rest, unit = power_of_two(-68), whole = power_of_two(52);
    double u = (h * whole + (r + 0.5)) * unit;
    double v = ((65535.0 - h) * whole + ((whole - 1.0 - r) + 0.5)) * unit;
    i64 exponent;
    double mantissa = split(v, exponent);
    if (mantissa < 0.7071067811865476) {
        mantissa = 2.0 * mantissa;
        exponent -= 1;
    }
    double f = mantissa - 1.0;
    if (field < 19195) {
        f = -u;
        exponent = 0;
    }
    double z = f / (2.0 + f), square = z * z, series = 1.0 / 21;
#pragma unroll
    for (int n = 19; n >= 1; n -= 2) series = series * square + 1.0 / n;
    return -((double)exponent * 0.6931471805599453) - 2.0 * z * series;
}

__device__ inline i64 arrival_key(double time, double weight) {
    i64 exponent;
    double mantissa = split(weight, exponent);
    return __double_as_longlong(time / mantissa) - (exponent + 1023) * (1ll << 52);
}

// 2^16 times the time of a key, rounded up by so much that no later rounding turns away an item that arrives in time
__device__ inline double factor_of(i64 bound) {
    i64 exponent = (bound >> 52) + 1023 + 16;
    if (bound == NEVER || exponent >= 2047) return __longlong_as_double(2047ll << 52);
    if (exponent < 1) return power_of_two(-1022);
    return __longlong_as_double(exponent << 52 | (bound & 0xFFFFFFFFFFFFFll)) * (1.0 + power_of_two(-20));
}

// ------------------------------------------------------------------------------------------------- types of weights

struct half_bits { unsigned short bits; };
struct bfloat_bits { unsigned short bits; };

__device__ inline float number(float x) { return x; }
__device__ inline double number(double x) { return x; }
__device__ inline float number(bfloat_bits x) { return __int_as_float((int)x.bits << 16); }
__device__ inline float number(half_bits x) {
    // The exponent is moved to its place in a float and corrected by a product, which normalises subnormals too.
    int moved = (x.bits & 0x7fff) << 13, sign = (x.bits & 0x8000) << 16;
    float size = __int_as_float(moved) * 5.192296858534828e33f;  // 2^112
    if (moved >= 0x0f800000) size = __int_as_float(moved | 0x7f800000);  // infinite or not a number
    return __int_as_float(__float_as_int(size) | sign);
}

template <class T> struct Real { typedef float type; };
template <> struct Real<double> { typedef double type; };

__device__ inline float rounded_up(double x, float) { return __double2float_ru(x); }
__device__ inline double rounded_up(double x, double) { return x; }
__device__ inline float largest(float) { return 3.4028234663852886e38f; }
__device__ inline double largest(double) { return 1.7976931348623157e308; }

// --------------------------------------------------------------------------------------------- threads in a block

// The sum over a block, in an order that is always the same; in thread 0.
template <class T> __device__ T block_sum(T value) {
    __shared__ T of_warp[BLOCK / WARP];
    for (int step = WARP / 2; step; step /= 2) value += __shfl_down_sync(ALL, value, step);
    __syncthreads();
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = value;
    __syncthreads();
    T sum = 0;
    if (threadIdx.x == 0)
        for (int i = 0; i < BLOCK / WARP; ++i) sum += of_warp[i];
    return sum;
}

// Room for `count` entries of a list: where this thread's begin. One atomic operation a warp.
__device__ inline i64 reserve(int count, i64* length) {
    int lane = threadIdx.x % WARP, upto = count;
    for (int step = 1; step < WARP; step *= 2) {
        int before = __shfl_up_sync(ALL, upto, step);
        if (lane >= step) upto += before;
    }
    u64 begin = 0;
    if (lane == WARP - 1) begin = atomicAdd((u64*)length, (u64)upto);
    return (i64)__shfl_sync(ALL, begin, WARP - 1) + upto - count;
}

// ------------------------------------------------------------------------------------------------------ the filter

struct Race {
    u64 seed, stream;  // of the first sixteen bits
    i64 start, n;      // number of the first item, how many
    i64 capacity;      // of the lists `kept` and `values`
    u64* kept;         // position << 16 | first sixteen bits
    double* values;
    i64* header;
    double* sums;      // of the weights, one a block
};

// Sixteen items whose numbers are 16 group ... 16 group + 15; weights of those that do not exist are zero.
template <class W> struct Filter {
    const Race& race;
    W factor;
    double sum;
    int positive;

    __device__ Filter(const Race& race)
        : race(race), factor(rounded_up(factor_of(race.header[BOUND]), W(0))), sum(0), positive(0) {}

    __device__ void operator()(i64 group, const W (&weights)[16]) {
        Words words = philox(race.seed, race.stream, group, 0);
        i64 place = 16 * group - race.start;
        unsigned passed = 0, valid = 0;
#pragma unroll
        for (int j = 0; j < 16; ++j) {
            W weight = weights[j];
            W field = (W)(int)(words.at(j / 4) >> 16 * (j % 4) & 0xffff);
            sum += weight;
            positive += weight > 0;
            valid |= (unsigned)(weight >= 0 && weight <= largest(W(0))) << j;
            passed |= (unsigned)(weight > 0 && field <= weight * factor) << j;
        }
        if (valid != 0xffffu) atomicMin(race.header + INVALID, place + __ffs(~valid) - 1);
        if (!__any_sync(ALL, passed)) return;
        i64 at = reserve(__popc(passed), race.header + KEPT);
#pragma unroll
        for (int j = 0; j < 16; ++j) {
            if (!(passed >> j & 1)) continue;
            if (at < race.capacity) {
                race.kept[at] = (u64)(place + j) << 16 | (words.at(j / 4) >> 16 * (j % 4) & 0xffff);
                race.values[at] = weights[j];
            }
            ++at;
        }
    }

    __device__ void finish() {
        double total = block_sum(sum);
        i64 count = block_sum((i64)positive);
        if (threadIdx.x == 0) {
            race.sums[blockIdx.x] = total;
            atomicAdd((u64*)(race.header + POSITIVE), (u64)count);
        }
    }
};

struct Pack { unsigned x, y, z, w; };

template <class T> __device__ void filter(const T* weights, const Race& race) {
    typedef typename Real<T>::type W;
    i64 group = race.start / 16 + (i64)blockIdx.x * BLOCK + threadIdx.x, place = 16 * group - race.start;
    W mine[16];
    if (place >= 0 && place + 16 <= race.n && (u64)(weights + place) % 16 == 0) {
        union Raw { Pack packs[sizeof(T)]; T items[16]; __device__ Raw() {} } raw;
        const Pack* from = (const Pack*)(weights + place);
#pragma unroll
        for (int i = 0; i < (int)sizeof(T); ++i) raw.packs[i] = from[i];
#pragma unroll
        for (int j = 0; j < 16; ++j) mine[j] = number(raw.items[j]);
    } else {
#pragma unroll
        for (int j = 0; j < 16; ++j)
            mine[j] = place + j >= 0 && place + j < race.n ? number(weights[place + j]) : W(0);
    }
    Filter<W> keep(race);
    keep(group, mine);
    keep.finish();
}

// ---------------------------------------------------------------------------------------------------------- losses

// Half the squared distance of two rows; `lanes` neighbouring threads share a row.
template <class T> struct Squared {
    typedef typename Real<T>::type W;
    const T *outputs, *targets;

    __device__ W operator()(i64 row, bool real, i64 columns, int lane, int lanes) const {
        W sum = 0;
        if (real)
            for (i64 j = lane; j < columns; j += lanes) {
                W difference = number(outputs[row * columns + j]) - number(targets[row * columns + j]);
                sum += difference * difference;
            }
        for (int step = lanes / 2; step; step /= 2) sum += __shfl_xor_sync(ALL, sum, step);
        return W(0.5) * sum;
    }
};

__device__ inline float exp_of(float x) { return expf(x); }
__device__ inline double exp_of(double x) { return exp(x); }
__device__ inline float log_of(float x) { return logf(x); }
__device__ inline double log_of(double x) { return log(x); }
__device__ inline float log_of_more(float x) { return log1pf(x); }
__device__ inline double log_of_more(double x) { return log1p(x); }

// log(1 + sum over the other classes of exp(logit - own logit)), in one read of the row.
template <class T> struct CrossEntropy {
    typedef typename Real<T>::type W;
    const T* logits;
    const i64* classes;

    __device__ W operator()(i64 row, bool real, i64 columns, int lane, int lanes) const {
        W most = -largest(W(0)), others = 0;  // the sum is others * exp(most)
        i64 own = real ? classes[row] : 0;
        bool known = own >= 0 && own < columns;
        if (real && known) {
            W base = number(logits[row * columns + own]);
            for (i64 j = lane; j < columns; j += lanes) {
                if (j == own) continue;
                W ahead = number(logits[row * columns + j]) - base;
                if (ahead > most) {
                    others = others * exp_of(most - ahead) + W(1);
                    most = ahead;
                } else {
                    others += exp_of(ahead - most);
                }
            }
        }
        for (int step = lanes / 2; step; step /= 2) {
            W its_most = __shfl_xor_sync(ALL, most, step), its_others = __shfl_xor_sync(ALL, others, step);
            W top = its_most > most ? its_most : most;
            others = others * exp_of(most - top) + its_others * exp_of(its_most - top);
            most = top;
        }
        W loss = most <= 0 ? log_of_more(others * exp_of(most)) : most + log_of(others + exp_of(-most));
        return known ? loss : W(0) / W(0);
    }
};

// `rows` (at most TILE, a multiple of 2 BLOCK) losses a block, then their race.
template <class Loss> __device__ void filter_rows(const Loss& loss, i64 columns, int lanes, int rows, const Race& race) {
    typedef typename Loss::W W;
    __shared__ W losses[TILE + TILE / 16];  // one gap in seventeen: no two threads of a warp meet in a bank
    i64 first = race.start / 16 + (i64)blockIdx.x * (rows / 16);
    int lane = threadIdx.x % lanes;
    for (int r = threadIdx.x / lanes; r < rows; r += BLOCK / lanes) {
        i64 place = 16 * first + r - race.start;
        bool real = place >= 0 && place < race.n;
        W value = loss(place, real, columns, lane, lanes);
        if (lane == 0) losses[r + r / 16] = real ? value : W(0);
    }
    __syncthreads();
    Filter<W> keep(race);
    for (int base = 0; base < rows / 16; base += BLOCK) {
        int group = base + threadIdx.x;
        W mine[16];
#pragma unroll
        for (int j = 0; j < 16; ++j) mine[j] = group < rows / 16 ? losses[17 * group + j] : W(0);
        keep(first + group, mine);
    }
    keep.finish();
}

// --------------------------------------------------------------------------------------------------------- kernels

#define RACE_ARGUMENTS                                                                                        \
    u64 seed, u64 stream, i64 start, i64 n, i64 capacity, u64 *kept, double *values, i64 *header, double *sums
#define RACE {seed, stream, start, n, capacity, kept, values, header, sums}
#define KERNEL extern "C" __global__ void __launch_bounds__(BLOCK)

#define FOR_TYPE(name, T)                                                                                     \
    KERNEL weights_##name(const T* weights, RACE_ARGUMENTS) {                                                 \
        Race race = RACE;                                                                                     \
        filter(weights, race);                                                                                \
    }                                                                                                         \
    KERNEL squared_##name(const T* outputs, const T* targets, i64 columns, i64 lanes, i64 rows, RACE_ARGUMENTS) { \
        Race race = RACE;                                                                                     \
        filter_rows(Squared<T>{outputs, targets}, columns, (int)lanes, (int)rows, race);                      \
    }                                                                                                         \
    KERNEL cross_entropy_##name(                                                                              \
        const T* logits, const i64* classes, i64 columns, i64 lanes, i64 rows, RACE_ARGUMENTS) {              \
        Race race = RACE;                                                                                     \
        filter_rows(CrossEntropy<T>{logits, classes}, columns, (int)lanes, (int)rows, race);                  \
    }

FOR_TYPE(float16, half_bits)
FOR_TYPE(bfloat16, bfloat_bits)
FOR_TYPE(float32, float)
FOR_TYPE(float64, double)

// Arrivals up to header[BOUND] of the items kept.
KERNEL arrive(
    u64 seed, u64 rest, u64 again, i64 start, i64 replacement, i64 capacity, const u64* kept, const double* values,
    i64* keys, i64* items, double* weights, i64* header) {
    i64 count = header[KEPT] < capacity ? header[KEPT] : capacity, bound = header[BOUND];
    for (i64 base = (i64)blockIdx.x * BLOCK; base < count; base += (i64)gridDim.x * BLOCK) {
        i64 at = base + threadIdx.x;
        bool alive = at < count;
        u64 entry = alive ? kept[at] : 0;
        double weight = alive ? values[at] : 1.0, time = 0;
        i64 item = start + (i64)(entry >> 16);
        u64 field = entry & 0xffff, bits = philox(seed, rest, item >> 2, 0).at(item & 3) >> 12;
        for (i64 block = 0;; ++block) {
            Words words = {0, 0, 0, 0};
#pragma unroll
            for (int i = -1; i < 4; ++i) {
                if (i < 0 && block > 0) continue;
                if (i == 0) {
                    if (!replacement) break;
                    words = philox(seed, again, block, item);
                }
                if (i >= 0) {
                    field = words.at(i) >> 48;
                    bits = ((words.at(i) & 0xFFFFFFFFFFFFull) << 4) + 8;
                }
                time += exponential(field, bits);
                i64 key = arrival_key(time, weight);
                alive = alive && key <= bound;
                i64 to = reserve(alive, header + ARRIVED);
                if (alive && to < capacity) {
                    keys[to] = key;
                    items[to] = item;
                    weights[to] = weight;
                }
                alive = alive && to < capacity;  // a full list is made anew with an earlier bound
            }
            if (!replacement || !__any_sync(ALL, alive)) break;
        }
    }
}

// 1 - exp(-weight * time) for the time of a key
__device__ inline float chance_before(i64 key, double weight) {
    if (!(weight > 0) || weight > largest(1.0)) return 0;
    i64 own, scale = key >> 52;
    float product = (float)split(weight, own) * (float)__longlong_as_double((key & 0xFFFFFFFFFFFFFll) | 1023ll << 52);
    scale += own;
    int power = (int)(scale < -60 ? -60 : scale > 6 ? 6 : scale);
    return -expm1f(-product * (float)power_of_two(power));
}

// header[BOUND] becomes a time by which about `mean` items arrive, if each of m weights stands for `share`; one block.
KERNEL estimate(const double* weights, i64 m, double share, double mean, i64 replacement, i64 limit, i64* header) {
    __shared__ double shared;
    double sum = 0;
    for (i64 i = threadIdx.x; i < m; i += BLOCK) sum += weights[i] * power_of_two(-60);  // cannot overflow
    sum = block_sum(sum);
    if (threadIdx.x == 0) shared = sum;
    __syncthreads();
    sum = shared;
    i64 early = NEVER;
    if (sum > 0 && sum <= largest(1.0)) {
        early = arrival_key(mean / share, sum) - (60ll << 52);  // right with replacement, or too early
        i64 first = early, late = early + (512ll << 52), last = late;
        // The logarithm of time is halved, to 2^(1/32).
        for (int turn = 0; turn < 14 && !replacement; ++turn) {
            i64 middle = early + (late - early) / 2;
            double arrived = 0;
            for (i64 i = threadIdx.x; i < m; i += BLOCK) arrived += chance_before(middle, weights[i]);
            arrived = block_sum(arrived);
            if (threadIdx.x == 0) shared = arrived;
            __syncthreads();
            if (shared * share < mean) early = middle;
            else late = middle;
        }
        if (late == last && early != first) early = NEVER;  // fewer than `mean` items ever arrive
    }
    if (threadIdx.x == 0) header[BOUND] = early < limit ? early : limit;
}
