// Matrix product in scalar double precision, 160 x 160. AMOUNT products.
#pragma GCC optimize("no-tree-vectorize")
#include "bench.h"
#include <string.h>

enum { N = 160 };
static double a[N][N], b[N][N], c[N][N];

int main(int argc, char **argv) {
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            a[i][j] = (i * 7 + j * 3) % 11;
            b[i][j] = (i * 5 + j * 2) % 13;
        }
    for (long r = amount(argc, argv); r > 0; r--) {
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j++) {
                double sum = 0;
                for (int k = 0; k < N; k++)
                    sum += a[i][k] * b[k][j];
                c[i][j] = sum;
            }
        a[r % N][0] = c[r % N][r % N] / 1024;
    }
    double sum = 0;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++)
            sum += c[i][j];
    uint64_t bits;
    memcpy(&bits, &sum, 8);
    return result(bits);
}
