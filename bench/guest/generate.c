// Writes the inputs of the rows that run packaged programs, the same ones every time.
//   generate AMOUNT text|c|sql
// text: AMOUNT KB that compress about as well as prose. c: a C program of AMOUNT lines. sql: a script
// that fills, indexes and asks a table of AMOUNT thousand rows.
#include "bench.h"
#include <string.h>

static void text(long kilobytes) {
    static const char *words[] = {"machine", "records", "every",  "event", "that",    "enters",   "from",
                                  "outside", "and",     "replays", "it",    "exactly", "position", "time",
                                  "guest",   "host",    "page",   "table", "interrupt", "of",     "the",
                                  "a",       "to",      "in",     "is",    "by",      "counter",  "state"};
    uint64_t seed = 13;
    long bytes = 0;
    while (bytes < kilobytes * 1024) {
        uint64_t r = next_random(&seed);
        if (r % 19 == 0)
            bytes += printf("%u\n", (unsigned)(r >> 40));
        else
            bytes += printf("%s ", words[(r >> 20) % (sizeof words / sizeof *words)]);
    }
}

static void program(long lines) {
    printf("#include <stddef.h>\nstruct node { struct node *next; long key; double weight; };\n");
    for (long f = 0; f * 10 < lines - 10; f++) {
        printf("long f%ld(struct node *list, long a, const unsigned char *bytes, size_t n) {\n", f);
        printf("    long sum = a * %ld + %ld;\n", f % 97 + 3, f);
        printf("    for (size_t i = 0; i < n; i++) {\n");
        printf("        sum = (sum << %ld) ^ (sum >> %ld) ^ bytes[i];\n", f % 5 + 1, f % 7 + 2);
        printf("        if (sum %% %ld == 0 && list) { sum += list->key; list = list->next; }\n", f % 13 + 2);
        printf("    }\n");
        printf("    switch (a & 3) { case 0: sum ^= %ld; break; case 1: sum -= n; break; default: sum++; }\n", f);
        if (f > 0)
            printf("    if (a > %ld) sum += f%ld(list, a - %ld, bytes, n / 2);\n", f % 31 + 1, f - 1, f % 31 + 1);
        else
            printf("    if (list) list->weight += sum;\n");
        printf("    return sum;\n}\n");
    }
}

static void sql(long thousands) {
    printf("create table t(id integer primary key, name text, value integer);\n"
           "with recursive c(n) as (select 1 union all select n + 1 from c where n < %ld)\n"
           "  insert into t select n, 'name' || (n * 7919 %% 10007), n * 2654435761 %% 65537 from c;\n"
           "create index by_name on t(name);\n"
           "select count(*), sum(value) from t where value %% 7 = 3;\n"
           "select name, count(*), max(value) from t group by name order by 2 desc, 1 limit 5;\n"
           "select sum(a.value) from t a join t b on a.name = b.name and a.id < b.id;\n"
           "update t set value = value + 1 where id %% 3 = 0;\n"
           "delete from t where id %% 5 = 0;\n"
           "select count(*), sum(value) from t;\n",
           thousands * 1000);
}

int main(int argc, char **argv) {
    long n = amount(argc, argv);
    const char *what = argc > 2 ? argv[2] : "";
    if (strcmp(what, "text") == 0)
        text(n);
    else if (strcmp(what, "c") == 0)
        program(n);
    else if (strcmp(what, "sql") == 0)
        sql(n);
    else
        die("text, c or sql");
    return 0;
}
