/* Owns the real servers of a test. */
#include "chroma.h"
#include "wire.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

bool chroma_answers(const struct chroma *c)
{
    struct wire *w = wire_open((int)c->port);
    struct answer *a = NULL;
    w->patience = 2;
    if (w->fd >= 0 && wire_sendf(w, "GET /api/v2/heartbeat HTTP/1.1\r\nHost: h\r\n\r\n"))
        a = wire_answer(w, false);
    wire_close(w);
    return a && a->status == 200;
}

static char *log_name(const struct chroma *c)
{
    return keepf("chroma%u.log", c->port);
}

void chroma_launch(struct chroma *c)
{
    check(c->pid == 0);
    const char *const argv[] = {"sh", "scripts/chroma.sh", "start", keepf("%u", c->port), c->folder,
                                NULL};
    c->pid = child_start(argv, log_name(c));
}

void chroma_wait(struct chroma *c)
{
    /* The first start of all may fetch the server. */
    if (!wait_until(chroma_answers(c), 60))
        harness_fail(__FILE__, __LINE__, "Chroma did not start: %s",
                     read_file(keepf("%s/%s", temp_folder(), log_name(c))));
}

void chroma_again(struct chroma *c)
{
    chroma_launch(c);
    chroma_wait(c);
}

struct chroma *chroma_new(const char *folder)
{
    struct chroma *c = keep(sizeof *c);
    c->folder = keepf("%s", folder);
    c->port = free_port();
    c->url = keepf("http://127.0.0.1:%u", c->port);
    return c;
}

struct chroma *chroma_start(const char *folder)
{
    struct chroma *c = chroma_new(folder);
    chroma_again(c);
    return c;
}

void chroma_kill(struct chroma *c)
{
    child_kill(&c->pid);
}

void chroma_signal(struct chroma *c, int sig)
{
    check(c->pid > 0 && kill(c->pid, sig) == 0);
}

void chroma_pair(struct chroma **a, struct chroma **b, void (*fill)(struct chroma *c))
{
    char *first = keepf("%s/first", temp_folder()), *second = keepf("%s/second", temp_folder());
    *a = chroma_start(first);
    fill(*a);
    chroma_kill(*a);
    const char *const copy[] = {"cp", "-a", first, second, NULL};
    check_int(run_program(copy, NULL, 30).status, 0);
    *b = chroma_new(second);
    chroma_launch(*a);
    chroma_launch(*b);
    chroma_wait(*a);
    chroma_wait(*b);
}

char *chroma_create(struct chroma *c, const char *name, unsigned sync)
{
    struct answer *a =
        http_post((int)c->port, CHROMA_DB "/collections",
                  keepf("{\"name\":\"%s\",\"configuration\":{\"hnsw\":{\"space\":\"l2\","
                        "\"batch_size\":%u,\"sync_threshold\":%u}}}",
                        name, sync, sync));
    if (!a || a->status != 200)
        harness_fail(__FILE__, __LINE__, "create %s: %s", name, a ? a->body : "no answer");
    const char *at = strstr(a->body, "\"id\":\"");
    check(at != NULL);
    return keep_text(at + 6, 36);
}

char *chroma_vector(unsigned n)
{
    return keepf("[%u,%u,%u,%u,%u,%u,%u,%u]", n % 10 * 100, n / 10 % 10 * 100, n / 100 % 10 * 100,
                 n / 1000 % 10 * 100, n * 7 % 13, n * 5 % 11, n * 3 % 7, n % 5);
}

void chroma_add(struct chroma *c, const char *id, unsigned from, unsigned to)
{
    char *ids = keepf("%s", ""), *vectors = ids, *documents = ids;
    for (unsigned n = from; n < to; n++) {
        const char *comma = n > from ? "," : "";
        ids = keepf("%s%s\"r%u\"", ids, comma, n);
        vectors = keepf("%s%s%s", vectors, comma, chroma_vector(n));
        documents = keepf("%s%s\"document %u\"", documents, comma, n);
    }
    struct answer *a = http_post(
        (int)c->port, keepf(CHROMA_DB "/collections/%s/add", id),
        keepf("{\"ids\":[%s],\"embeddings\":[%s],\"documents\":[%s]}", ids, vectors, documents));
    if (!a || a->status != 201)
        harness_fail(__FILE__, __LINE__, "add: %s", a ? a->body : "no answer");
}
