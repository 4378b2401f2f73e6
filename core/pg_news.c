/* pg_news.c: owns the listeners and what they are still to be told.
 *
 * Items are told one for each event, and the next event is fed before: whoever is told may call
 * anything, also what ends in pg_news_fini(). The loop serves fed events before it reads again, so
 * there are never more items than one reading of the socket brought. */
#include "pg_news.h"

#include <stdlib.h>

enum listening { OFF, ASKED, ON };

struct pg_listener {
    struct pg_listener *next;
    char *channel; /* NULL: watches the state */
    enum listening state;
    pg_notify_fn *on_notify;
    pg_state_fn *on_state;
    void *arg;
};

struct pg_item {
    struct pg_item *next;
    const struct pg_listener *to;
    enum pg_state state;
    char *payload; /* may be NULL */
};

static void on_due(struct ev_loop *loop, ev_timer *w, int revents)
{
    struct pg_news *n = container_of(w, struct pg_news, due);
    struct pg_item *i = n->first;
    n->first = i->next;
    if (n->first)
        ev_feed_event(loop, w, EV_TIMER);
    else
        n->end = &n->first;
    struct pg_item told = *i;
    free(i);
    if (told.to->channel)
        told.to->on_notify(told.to->arg, told.payload);
    else
        told.to->on_state(told.to->arg, told.state);
    free(told.payload);
}

static struct pg_item *item_add(struct pg_news *n, const struct pg_listener *to)
{
    struct pg_item *i = base_zalloc(sizeof *i);
    i->to = to;
    if (!n->first)
        ev_feed_event(n->loop, &n->due, EV_TIMER);
    *n->end = i;
    n->end = &i->next;
    return i;
}

void pg_news_init(struct pg_news *n, struct ev_loop *loop)
{
    *n = (struct pg_news){.loop = loop};
    n->end = &n->first;
    ev_init(&n->due, on_due);
}

void pg_news_fini(struct pg_news *n)
{
    ev_timer_stop(n->loop, &n->due); /* takes back a fed event */
    for (struct pg_item *i; (i = n->first); free(i)) {
        n->first = i->next;
        free(i->payload);
    }
    for (struct pg_listener *l; (l = n->listeners); free(l)) {
        n->listeners = l->next;
        free(l->channel);
    }
}

static struct pg_listener *listener_new(struct pg_news *n, void *arg)
{
    struct pg_listener *l = base_zalloc(sizeof *l);
    l->arg = arg;
    l->next = n->listeners;
    n->listeners = l;
    return l;
}

void pg_news_listen(struct pg_news *n, const char *channel, pg_notify_fn *cb, void *arg)
{
    struct pg_listener *l = listener_new(n, arg);
    l->channel = base_strdup(channel);
    l->on_notify = cb;
}

void pg_news_observe(struct pg_news *n, pg_state_fn *cb, void *arg)
{
    listener_new(n, arg)->on_state = cb;
}

/* Names are compared as they are, so they are quoted. */
static char *listen_sql(const char *before, const char *channel)
{
    char *name = base_alloc(2 * strlen(channel) + 1), *to = name;
    for (const char *c = channel; *c; c++) {
        if (*c == '"')
            *to++ = '"';
        *to++ = *c;
    }
    *to = 0;
    char *sql = base_printf("%sLISTEN \"%s\";", before, name);
    free(name);
    return sql;
}

char *pg_news_sql(struct pg_news *n)
{
    char *sql = NULL;
    for (struct pg_listener *l = n->listeners; l; l = l->next) {
        if (!l->channel || l->state != OFF)
            continue;
        char *longer = listen_sql(sql ? sql : "", l->channel);
        free(sql);
        sql = longer;
        l->state = ASKED;
    }
    return sql;
}

void pg_news_began(struct pg_news *n)
{
    for (struct pg_listener *l = n->listeners; l; l = l->next) {
        if (l->state != ASKED)
            continue;
        l->state = ON;
        (void)item_add(n, l);
    }
}

void pg_news_lost(struct pg_news *n)
{
    for (struct pg_listener *l = n->listeners; l; l = l->next)
        l->state = OFF;
}

void pg_news_notified(struct pg_news *n, const char *channel, const char *payload)
{
    for (struct pg_listener *l = n->listeners; l; l = l->next)
        if (l->state == ON && l->channel && strcmp(l->channel, channel) == 0)
            item_add(n, l)->payload = base_strdup(payload);
}

void pg_news_state(struct pg_news *n, enum pg_state s)
{
    for (struct pg_listener *l = n->listeners; l; l = l->next)
        if (!l->channel)
            item_add(n, l)->state = s;
}
