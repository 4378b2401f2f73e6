#include "hook.h"

#include <stdatomic.h>
#include <string.h>

static enum how plan[16];
static atomic_uint planned, done, answered;

void treat(const enum how *list, unsigned n)
{
    memcpy(plan, list, n * sizeof *list);
    atomic_store(&done, 0);
    atomic_store(&planned, n);
}

static void hook(struct conn *c)
{
    while (conn_request(c)) {
        unsigned i = atomic_fetch_add(&done, 1);
        switch (i < atomic_load(&planned) ? plan[i] : TAKE) {
        case TAKE:
            break;
        case FAIL:
            conn_send(c, "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n");
            continue;
        case LATER:
            conn_send(c, "HTTP/1.1 429 Slow\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n");
            continue;
        case REFUSE:
            conn_send(c, "HTTP/1.1 400 Bad\r\nContent-Length: 14\r\n\r\ninvalid_blocks");
            continue;
        case RESET:
            conn_reset(c);
            return;
        case HANG:
            conn_wait_gone(c);
            return;
        case HOLD:
            conn_wait(c);
            break;
        }
        if (!conn_send(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
            return;
        atomic_fetch_add(&answered, 1);
    }
}

struct peer *hook_start(void)
{
    treat(NULL, 0);
    atomic_store(&answered, 0);
    return peer_start(hook);
}

unsigned hooks_answered(void)
{
    return atomic_load(&answered);
}

char *slack_at(struct peer *p)
{
    return keepf("SLACK_WEBHOOK_URL=%s/services/" HOOK_SECRET, peer_url(p));
}

unsigned told(struct peer *p, const char *part)
{
    unsigned n = 0;
    for (unsigned i = 0; i < peer_requests(p); i++) {
        struct request *r = peer_request(p, i);
        n += r->complete && strstr(r->body, part) != NULL;
    }
    return n;
}

char *message(struct peer *p, const char *part)
{
    for (unsigned i = 0; i < peer_requests(p); i++)
        if (peer_request(p, i)->complete && strstr(peer_request(p, i)->body, part))
            return peer_request(p, i)->body;
    return keepf("%s", "");
}

int place(struct peer *p, const char *part)
{
    for (unsigned i = 0; i < peer_requests(p); i++)
        if (strstr(peer_request(p, i)->body, part))
            return (int)i;
    return -1;
}

void event(struct stage *s, const char *kind, const char *key, const char *title)
{
    sql(s,
        "WITH e AS (INSERT INTO notify_events (uid, kind, key, urgency, title, fields, raised_at) "
        "VALUES (md5(random()::text), '%s', '%s', 'medium', '%s', "
        "'[[\"instance\",\"a\"],[\"collection\",\"docs\"]]', now()) RETURNING 1) "
        "SELECT pg_notify('chromux_notify', '') FROM e",
        kind, key, title);
}

void flush(struct stage *s, struct peer *p, const char *mark)
{
    event(s, "mark", keepf("mark/%s", mark), mark);
    check_soon(told(p, mark) >= 1, 20);
}
