// Arithmetic with about 46 bits of precision, in floats: GPUs for consumers compute in double at a
// 64th of the rate of float. A number is the sum of two floats. Sources: T. Dekker, "A
// floating-point technique for extending the available precision", Numerische Mathematik 18, 1971;
// D. Knuth, The Art of Computer Programming 2, 4.2.2; M. Joldes, J.-M. Muller, V. Popescu, "Tight
// and rigorous error bounds for basic building blocks of double-word arithmetic", 2017.
#pragma once

// `high` is the result that plain floats give, `low` is what rounding has taken from it.
struct Precise {
    float high, low;

    __device__ Precise(float high, float low = 0.0f) : high(high), low(low) {}

    // The nearest float. If `high` is infinite or NaN, `low` is NaN and means nothing.
    __device__ explicit operator float() const {
        float sum = high + low;
        return sum == sum ? sum : high;
    }
};

// a + b without rounding. The compiler may not fuse these operations with a product.
__device__ inline Precise exact_sum(float a, float b) {
    float sum = __fadd_rn(a, b), own_b = __fsub_rn(sum, a), own_a = __fsub_rn(sum, own_b);
    return {sum, __fadd_rn(__fsub_rn(a, own_a), __fsub_rn(b, own_b))};
}

// a * b without rounding.
__device__ inline Precise exact_product(float a, float b) {
    float product = __fmul_rn(a, b);
    return {product, fmaf(a, b, -product)};
}

__device__ inline Precise operator-(Precise a) { return {-a.high, -a.low}; }
__device__ inline Precise operator+(Precise a, float b) {
    Precise sum = exact_sum(a.high, b);
    return {sum.high, sum.low + a.low};
}
__device__ inline Precise operator+(Precise a, Precise b) {
    Precise sum = exact_sum(a.high, b.high);
    return {sum.high, sum.low + (a.low + b.low)};
}
// If a and b cancel, `low` is not small beside `high`, as products need it; so they are set anew.
__device__ inline Precise operator-(Precise a, Precise b) {
    Precise difference = a + -b;
    return exact_sum(difference.high, difference.low);
}
__device__ inline Precise operator*(Precise a, float b) {
    Precise product = exact_product(a.high, b);
    return {product.high, fmaf(a.low, b, product.low)};
}
__device__ inline Precise operator*(Precise a, Precise b) {
    Precise product = exact_product(a.high, b.high);
    return {product.high, fmaf(a.high, b.low, fmaf(a.low, b.high, product.low))};
}
__device__ inline Precise operator/(Precise a, Precise b) {
    float quotient = a.high / b.high;
    Precise rest = a - b * quotient;
    return {quotient, (rest.high + rest.low) / b.high};
}
__device__ inline Precise root(Precise a) {
    float r = sqrtf(a.high);
    Precise rest = a - exact_product(r, r);
    return {r, (rest.high + rest.low) / (2.0f * r)};
}
