// OpenSSL's AES-256-GCM over pieces of 16 KB, as a TLS server would; AMOUNT MB. Declared by hand, so that
// libcrypto.so.3 is enough to build it.
#include "bench.h"
#include <string.h>

typedef struct evp_cipher_ctx EVP_CIPHER_CTX;
typedef struct evp_cipher EVP_CIPHER;
EVP_CIPHER_CTX *EVP_CIPHER_CTX_new(void);
const EVP_CIPHER *EVP_aes_256_gcm(void);
int EVP_EncryptInit_ex(EVP_CIPHER_CTX *, const EVP_CIPHER *, void *, const unsigned char *, const unsigned char *);
int EVP_EncryptUpdate(EVP_CIPHER_CTX *, unsigned char *, int *, const unsigned char *, int);
int EVP_EncryptFinal_ex(EVP_CIPHER_CTX *, unsigned char *, int *);
int EVP_CIPHER_CTX_ctrl(EVP_CIPHER_CTX *, int, int, void *);

enum { PIECE = 16 << 10, GET_TAG = 0x10 };

int main(int argc, char **argv) {
    static unsigned char in[PIECE], out[PIECE + 64], key[32], iv[12], tag[16];
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    uint64_t sum = 0;
    int length;
    if (!context || EVP_EncryptInit_ex(context, EVP_aes_256_gcm(), 0, key, iv) != 1)
        die("AES-256-GCM");
    for (long i = amount(argc, argv) * (1024 * 1024 / PIECE); i > 0; i--) {
        memcpy(iv, &i, sizeof i);
        if (EVP_EncryptInit_ex(context, 0, 0, 0, iv) != 1 || EVP_EncryptUpdate(context, out, &length, in, PIECE) != 1 ||
            EVP_EncryptFinal_ex(context, out + length, &length) != 1 ||
            EVP_CIPHER_CTX_ctrl(context, GET_TAG, 16, tag) != 1)
            die("encryption");
        uint64_t word;
        memcpy(&word, tag, 8);
        sum = sum * 31 + word;
        in[0] = out[1];
    }
    return result(sum);
}
