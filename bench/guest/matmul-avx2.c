// Matrix product in single precision with AVX2 and FMA, 256 x 256. AMOUNT products.
#include "bench.h"
#include <immintrin.h>
#include <string.h>

enum { N = 256 };
static float a[N][N], b[N][N] __attribute__((aligned(32))), c[N][N] __attribute__((aligned(32)));

__attribute__((target("avx2,fma"), noinline)) static void product(void) {
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j += 32) {
            __m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
            for (int k = 0; k < N; k++) {
                __m256 x = _mm256_broadcast_ss(&a[i][k]);
                s0 = _mm256_fmadd_ps(x, _mm256_load_ps(&b[k][j]), s0);
                s1 = _mm256_fmadd_ps(x, _mm256_load_ps(&b[k][j + 8]), s1);
                s2 = _mm256_fmadd_ps(x, _mm256_load_ps(&b[k][j + 16]), s2);
                s3 = _mm256_fmadd_ps(x, _mm256_load_ps(&b[k][j + 24]), s3);
            }
            _mm256_store_ps(&c[i][j], s0);
            _mm256_store_ps(&c[i][j + 8], s1);
            _mm256_store_ps(&c[i][j + 16], s2);
            _mm256_store_ps(&c[i][j + 24], s3);
        }
}

int main(int argc, char **argv) {
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            a[i][j] = (i * 7 + j * 3) % 11;
            b[i][j] = (i * 5 + j * 2) % 13;
        }
    for (long r = amount(argc, argv); r > 0; r--) {
        product();
        a[r % N][0] = c[r % N][r % N] / 4096;
    }
    uint64_t sum = 0;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            uint32_t bits;
            memcpy(&bits, &c[i][j], 4);
            sum = sum * 31 + bits;
        }
    return result(sum);
}
