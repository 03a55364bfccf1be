"""A Python program of everyday operations: dictionaries, strings, lists, classes, big integers."""
import sys


class Account:
    def __init__(self, name):
        self.name = name
        self.balance = 0

    def add(self, amount):
        self.balance += amount
        return self


def work(seed):
    words = {}
    for i in range(4000):
        seed = (seed * 6364136223846793005 + 1442695040888963407) % 2**64
        word = "w%d" % (seed % 997)
        words[word] = words.get(word, 0) + i
    accounts = [Account(word).add(n) for word, n in sorted(words.items())]
    total = sum(a.balance for a in accounts if a.name.endswith("7"))
    text = " ".join(a.name for a in accounts).upper().split("W1")
    primes = [n for n in range(2, 1500) if all(n % d for d in range(2, int(n**0.5) + 1))]
    return (total + len(text) * sum(primes) + pow(3, seed, 2**127 - 1)) % 2**61, seed


result, seed = 0, 1
for _ in range(int(sys.argv[1])):
    part, seed = work(seed)
    result = (result * 31 + part) % 2**61
print("%016x" % result)
